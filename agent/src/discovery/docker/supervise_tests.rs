#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::event::Network;
use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

const PATIENCE: Duration = Duration::from_secs(10);

fn running(id: &str) -> Event {
    let container = Container {
        id: id.to_owned(),
        name: id.to_owned(),
        pid: 7,
        labels: BTreeMap::new(),
        image_labels: BTreeMap::new(),
        image: String::new(),
        network: Network::Own,
        bridges: Vec::new(),
        given: Vec::new(),
        ports: Vec::new(),
    };
    Event::Running { container: Box::new(container) }
}

fn stopped(id: &str) -> Event {
    Event::Stopped { id: id.to_owned() }
}

fn trouble() -> Event {
    Event::Trouble { reason: "no engine".to_owned() }
}

#[test]
fn what_was_known_stays_until_a_whole_list_says_otherwise() {
    use Event::{FullSyncBegin as Begin, FullSyncEnd as End};
    let known = || vec![Begin, running("a"), running("b"), End];
    type Case = (&'static str, Vec<Event>, &'static [&'static str], Sync, bool);
    let table: [Case; 7] = [
        ("a list", vec![], &["a", "b"], Sync::Synced, false),
        ("changes", vec![running("c"), stopped("a")], &["b", "c"], Sync::Synced, false),
        ("trouble", vec![trouble()], &["a", "b"], Sync::Synced, true),
        ("half a list", vec![trouble(), Begin, running("c")], &["a", "b", "c"], Sync::Synced, true),
        ("half a list, and trouble again", vec![Begin, running("c"), trouble()], &["a", "b", "c"], Sync::Synced, true),
        ("another list", vec![trouble(), Begin, running("c"), End], &["c"], Sync::Synced, false),
        ("one stops during the list", vec![Begin, running("a"), running("b"), stopped("a"), End], &["b"], Sync::Synced, false),
    ];
    for (case, events, expected, sync, troubled) in table {
        let mut view = DockerView::default();
        let mut listing = None;
        known().into_iter().chain(events).for_each(|event| take(&mut view, &mut listing, event));
        assert_eq!(view.containers.keys().map(String::as_str).collect::<Vec<_>>(), expected, "{case}");
        assert_eq!((view.sync, view.trouble.is_some()), (sync, troubled), "{case}");
    }
}

#[test]
fn a_line_is_an_event_or_refused() {
    let line = serde_json::to_string(&running("a")).unwrap();
    assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), running("a"));
    for bad in ["", "{}", "{\"event\":\"other\"}", "{\"event\":\"stopped\"}", "{\"event\":\"stopped\",\"id\":\"a\",\"more\":1}", "[]"] {
        assert!(serde_json::from_str::<Event>(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn lines_are_bounded_and_end_with_a_newline() {
    let read = async |bytes: &[u8]| {
        let mut reader = BufReader::with_capacity(7, bytes);
        let mut lines = Vec::new();
        loop {
            match next_line(&mut reader).await {
                Ok(Some(line)) => lines.push(String::from_utf8(line).unwrap()),
                Ok(None) => return Ok(lines),
                Err(error) => return Err(error.kind()),
            }
        }
    };
    assert_eq!(read(b"").await, Ok(vec![]));
    assert_eq!(read(b"one\n\nand a longer one\n").await, Ok(vec!["one".to_owned(), String::new(), "and a longer one".to_owned()]));
    assert_eq!(read(b"one\ntw").await, Err(io::ErrorKind::UnexpectedEof));
    assert_eq!(read(&vec![b'x'; MAX_LINE_BYTES + 2]).await, Err(io::ErrorKind::InvalidData));
}

/// Runs a program in the helper's place.
#[derive(Clone)]
struct StandIn {
    program: PathBuf,
    running: Arc<Mutex<Vec<Child>>>,
}

impl StandIn {
    fn end(&self) {
        for mut child in self.running.lock().unwrap().drain(..) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl StartWatcher for StandIn {
    fn start(&self) -> io::Result<OwnedFd> {
        self.end();
        let mut child = Command::new(&self.program).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().unwrap().into();
        self.running.lock().unwrap().push(child);
        Ok(output)
    }
}

/// A watcher that prints these lines and then does `end`.
fn watcher(folder: &std::path::Path, lines: &[Event], end: &str) -> StandIn {
    let path = folder.join("watcher");
    let lines: String = lines.iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
    std::fs::write(&path, format!("#!/bin/sh\ncat <<'E'\n{lines}E\n{end}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    StandIn { program: path, running: Arc::default() }
}

#[tokio::test]
async fn a_watcher_that_ends_is_started_again_and_nothing_is_lost_meanwhile() {
    for end in ["exit 1", "kill -9 $$", "echo nonsense; sleep 60", "printf half"] {
        let folder = tempfile::tempdir().unwrap();
        let list = [Event::FullSyncBegin, running("a"), Event::FullSyncEnd];
        let watcher = watcher(folder.path(), &list, end);
        let (sender, mut view) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(supervise(watcher.clone(), PATIENCE, sender, stop.clone()));
        let mut wait = async |holds: fn(&DockerView) -> bool| {
            let seen = tokio::time::timeout(PATIENCE, view.wait_for(|view| holds(view))).await;
            seen.unwrap_or_else(|_| panic!("{end}: not seen")).unwrap().clone()
        };
        let ended = wait(|view| view.trouble.is_some()).await;
        assert_eq!((ended.containers.len(), ended.sync), (1, Sync::Synced), "{end}");
        wait(|view| view.trouble.is_none()).await;
        stop.cancel();
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
        watcher.end();
    }
}

#[tokio::test]
async fn an_engine_that_says_nothing_does_not_hold_up_the_node_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let watcher = watcher(folder.path(), &[], "sleep 60");
    let (sender, mut view) = watch::channel(Arc::default());
    let stop = CancellationToken::new();
    let task = tokio::spawn(supervise(watcher.clone(), Duration::from_millis(20), sender, stop.clone()));
    assert_eq!(view.borrow().sync, Sync::Waiting);
    tokio::time::timeout(PATIENCE, view.wait_for(|view| view.sync == Sync::GaveUp)).await.unwrap().unwrap();
    stop.cancel();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    watcher.end();
}
