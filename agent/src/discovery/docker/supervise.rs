//! Keeps the watcher running and knows what it said last. A dead watcher or engine loses nothing: what was known stays until a
//! full list says otherwise.

use super::event::{Container, Event, MAX_LINE_BYTES};
use crate::helper::Helper;
use crate::session::Backoff;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Starts the process that watches the engine, in place of an earlier one. [`Helper`], or a stand-in in tests.
pub trait StartWatcher: Clone + Send + std::marker::Sync + 'static {
    /// What the process prints. Blocking.
    ///
    /// # Errors
    /// Why it could not be started.
    fn start(&self) -> io::Result<OwnedFd>;
}

impl StartWatcher for Helper {
    fn start(&self) -> io::Result<OwnedFd> {
        self.watch_docker().map(OwnedFd::from).map_err(io::Error::other)
    }
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

/// Runs the watcher until `shutdown`, again whenever it ends. For `patience` an engine that does not answer holds up everything else
/// at start.
pub async fn supervise(watcher: impl StartWatcher, patience: Duration, view: watch::Sender<Arc<DockerView>>, shutdown: CancellationToken) {
    let backoff = Backoff { first: Duration::from_millis(200), most: Duration::from_secs(10) };
    let mut attempt = 0;
    let give_up = tokio::time::sleep(patience);
    tokio::pin!(give_up);
    let mut waiting = true;
    loop {
        let mut run = Box::pin(run_once(&watcher, &view, &mut attempt));
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

/// One life of the watcher. It is not told to end: nobody reads it any more, and the next one takes its place.
async fn run_once(watcher: &impl StartWatcher, view: &watch::Sender<Arc<DockerView>>, attempt: &mut u32) -> io::Result<()> {
    let starting = watcher.clone();
    let output = tokio::task::spawn_blocking(move || starting.start()).await.map_err(io::Error::other)??;
    let mut lines = BufReader::new(pipe::Receiver::from_owned_fd(output)?);
    let mut listing = None;
    while let Some(line) = next_line(&mut lines).await? {
        let event: Event = serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if event == Event::FullSyncEnd {
            *attempt = 0;
        }
        change(view, |view| take(view, &mut listing, event));
    }
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
