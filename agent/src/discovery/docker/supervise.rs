//! Keeps the watcher running and knows what it said last. A dead watcher or engine loses nothing: what was known stays until a
//! full list says otherwise.

use super::event::{Container, Event, MAX_LINE_BYTES};
use crate::session::Backoff;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Which engine, and what watches it.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// The engine's socket.
    pub socket: PathBuf,
    /// The program with the subcommand `docker-watch`: this one.
    pub program: PathBuf,
    /// For how long an engine that does not answer holds up everything else at start.
    pub patience: Duration,
}

/// What is known of the engine's containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerView {
    /// Running containers by id.
    pub containers: BTreeMap<String, Arc<Container>>,
    /// How far that can be relied on.
    pub sync: Sync,
    /// Why the engine cannot be asked at the moment.
    pub trouble: Option<String>,
}

/// How far what is known can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sync {
    /// The engine has not told everything yet.
    #[default]
    Waiting,
    /// It has.
    Synced,
    /// It did not answer in time; the node goes on without it.
    GaveUp,
}

impl DockerView {
    /// For a node without an engine.
    pub fn without_engine() -> Self {
        Self { sync: Sync::Synced, ..Self::default() }
    }
}

/// Runs the watcher until `shutdown`, again whenever it ends.
pub async fn supervise(config: DockerConfig, view: watch::Sender<Arc<DockerView>>, shutdown: CancellationToken) {
    let backoff = Backoff { first: Duration::from_millis(200), most: Duration::from_secs(10) };
    let mut attempt = 0;
    let give_up = tokio::time::sleep(config.patience);
    tokio::pin!(give_up);
    let mut waiting = true;
    loop {
        let mut run = Box::pin(run_once(&config, &view, &mut attempt));
        let ended = loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                ended = &mut run => break ended,
                () = &mut give_up, if waiting => {
                    waiting = false;
                    change(&view, |view| if view.sync == Sync::Waiting { view.sync = Sync::GaveUp });
                }
            }
        };
        drop(run);
        let reason = ended.map_or_else(|error| error.to_string(), |()| "it ended".to_owned());
        tracing::warn!(reason = %reason, "the watcher of the Docker engine ended; what it said last stands");
        change(&view, |view| view.trouble = Some(format!("the watcher ended: {reason}")));
        let wait = backoff.wait(attempt, "docker-watch");
        attempt = attempt.saturating_add(1);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One life of the watcher. Killed when this is dropped.
async fn run_once(config: &DockerConfig, view: &watch::Sender<Arc<DockerView>>, attempt: &mut u32) -> io::Result<()> {
    let mut child: Child = Command::new(&config.program)
        .arg("docker-watch")
        .arg("--socket")
        .arg(&config.socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no pipe to the watcher"))?;
    let mut lines = BufReader::new(stdout);
    let mut listing = None;
    while let Some(line) = next_line(&mut lines).await? {
        let event: Event = serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if event == Event::FullSyncEnd {
            *attempt = 0;
        }
        change(view, |view| take(view, &mut listing, event));
    }
    child.wait().await?;
    Ok(())
}

fn change(view: &watch::Sender<Arc<DockerView>>, change: impl FnOnce(&mut DockerView)) {
    view.send_if_modified(|shared| {
        let before = shared.clone();
        change(Arc::make_mut(shared));
        *shared != before
    });
}

/// Takes one event in. During a full list, `listing` collects it: what was known stays until the list is complete.
fn take(view: &mut DockerView, listing: &mut Option<BTreeMap<String, Arc<Container>>>, event: Event) {
    match event {
        Event::FullSyncBegin => *listing = Some(BTreeMap::new()),
        Event::Running { container } => {
            let container: Arc<Container> = Arc::from(container);
            listing.iter_mut().for_each(|listing| drop(listing.insert(container.id.clone(), container.clone())));
            view.containers.insert(container.id.clone(), container);
        }
        Event::Stopped { id } => {
            listing.iter_mut().for_each(|listing| drop(listing.remove(&id)));
            view.containers.remove(&id);
        }
        Event::FullSyncEnd => {
            if let Some(listing) = listing.take() {
                view.containers = listing;
            }
            view.sync = Sync::Synced;
            view.trouble = None;
        }
        Event::Trouble { reason } => {
            *listing = None;
            view.trouble = Some(reason);
        }
    }
}

/// The next line without its end; `None` at the end. A line without an end, or too long, is an error.
async fn next_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return if line.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        let (taken, complete) = match available.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (available.len(), false),
        };
        line.extend_from_slice(&available[..taken]);
        reader.consume(taken);
        if line.len() > MAX_LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
        }
        if complete {
            line.pop();
            return Ok(Some(line));
        }
    }
}

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;
