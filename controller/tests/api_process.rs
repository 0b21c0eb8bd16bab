//! The real program as a process: killed, told to stop, started wrongly, restored.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api_support;

use api_support::{Client, channel, namespace};
use firebreak_proto::v1;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_firebreak-controller");

fn command(folder: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .env_clear()
        .env("FIREBREAK_DATABASE", folder.join("controller.db"))
        .env("FIREBREAK_SOCKET", folder.join("controller.sock"))
        .env("FIREBREAK_AGENT_LISTEN", "127.0.0.1:0")
        .env("FIREBREAK_METRICS_LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null());
    command
}

/// A running controller; killed when it is dropped.
struct Process {
    child: Child,
    socket: PathBuf,
    lines: BufReader<std::process::ChildStderr>,
}

impl Process {
    /// Starts it and waits until it says that operators can connect.
    fn start(folder: &Path) -> Self {
        let mut child = command(folder).arg("--log-format=json").stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        let mut process = Self { child, socket: folder.join("controller.sock"), lines };
        process.wait_for("listening", "operators");
        process
    }

    /// Reads log lines until one has this message and is about this.
    fn wait_for(&mut self, message: &str, what: &str) -> serde_json::Value {
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the controller ended before it said {message:?}");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            if event["message"].as_str().is_some_and(|text| text.starts_with(message)) && event["what"] == what {
                return event;
            }
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the end; gives the exit code and what was logged meanwhile.
    fn wait(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn client(process: &Process) -> Client {
    Client::new(channel(&process.socket).await)
}

fn output(folder: &Path, arguments: &[&str]) -> Output {
    command(folder).args(arguments).output().unwrap()
}

fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = output(folder, arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Applies one namespace after the other until the controller is gone. Gives how many were acknowledged; at most one more was sent.
async fn apply_until_killed(mut client: Client, begin: u64, acknowledged: Arc<AtomicU64>) {
    for number in begin.. {
        let request = v1::ApplyRequest { objects: vec![namespace(&format!("n{number}"))], ..v1::ApplyRequest::default() };
        match client.apply(request).await {
            Ok(response) => {
                assert_eq!(response.into_inner().revision, number + 1);
                acknowledged.store(number + 1, Ordering::SeqCst);
            }
            Err(_) => return,
        }
    }
}

#[tokio::test]
async fn no_acknowledged_change_is_lost_when_the_controller_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut there = 0;
    for round in 0..8_u64 {
        let process = Process::start(folder.path());
        let acknowledged = Arc::new(AtomicU64::new(there));
        let applying = tokio::spawn(apply_until_killed(client(&process).await, there, Arc::clone(&acknowledged)));
        // Killed in the middle of whatever it does after some more changes.
        while acknowledged.load(Ordering::SeqCst) < there + 3 + 7 * round {
            tokio::task::yield_now().await;
        }
        process.signal(nix::sys::signal::Signal::SIGKILL);
        applying.await.unwrap();
        drop(process);

        let process = Process::start(folder.path());
        let mut client = client(&process).await;
        let mut names = Vec::new();
        let mut request = v1::ListRequest { page_size: 1_000, ..v1::ListRequest::default() };
        let revision = loop {
            let page = client.list(request.clone()).await.unwrap().into_inner();
            names.extend(page.objects.into_iter().map(|object| (object.revision, object.name)));
            if page.next_page_token.is_empty() {
                break page.revision;
            }
            request.page_token = page.next_page_token;
        };
        let known = acknowledged.load(Ordering::SeqCst);
        assert!(revision == known || revision == known + 1, "acknowledged {known}, found {revision}");
        names.sort_unstable();
        let expected: Vec<_> = (0..revision).map(|number| (number + 1, format!("n{number}"))).collect();
        assert!(names == expected, "round {round}: every revision is there, whole and once");
        there = revision;
    }
}

#[tokio::test]
async fn a_signal_stops_it_in_order_and_the_next_one_starts() {
    for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT] {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(folder.path());
        let mut client = client(&process).await;
        let mut watch = client.watch(v1::WatchRequest::default()).await.unwrap().into_inner();
        process.signal(signal);
        assert_eq!(watch.message().await.unwrap_err().code(), tonic::Code::Unavailable);
        drop((watch, client));
        let (code, log) = process.wait();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("asked to stop") && log.contains(signal.as_str()) && log.contains("\"stopped\""), "{log}");
        assert!(!folder.path().join("controller.sock").exists());
        Process::start(folder.path());
    }
}

#[test]
fn a_wrong_start_is_refused_with_the_reason_and_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.sock");
    std::fs::write(&text, b"text").unwrap();
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--agent-listen", "0.0.0.0:0"], &["--agent-listen 0.0.0.0:0", "not a loopback address", "--insecure-listen"]),
        (&["run", "--agent-listen", "[::]:0"], &["--agent-listen [::]:0", "not a loopback address"]),
        (&["--metrics-listen", "0.0.0.0:0"], &["--metrics-listen 0.0.0.0:0", "not a loopback address"]),
        (&["--socket", text.to_str().unwrap()], &["text.sock", "no socket"]),
        (&["--socket-group", "no-such-group-here"], &["there is no group no-such-group-here"]),
        (&["--database", "/proc/firebreak/controller.db"], &["/proc/firebreak"]),
        (&["--log", "what?=is=this"], &["--log", "what?=is=this"]),
        (&["restore", "--from", "/nonexistent/backup.db"], &["/nonexistent/backup.db", "no such file"]),
        (&["restart"], &["restart"]),
    ];
    for (arguments, parts) in cases {
        let error = refused(folder.path(), arguments);
        for part in parts {
            assert!(error.contains(part), "{arguments:?}: {part:?} is not in {error}");
        }
    }
}

#[test]
fn listening_beyond_the_machine_is_logged_at_each_start() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut command = command(folder.path());
        command.args(["--agent-listen", "0.0.0.0:0", "--log-format", "json"]).env("FIREBREAK_INSECURE_LISTEN", "true");
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        let mut process = Process { child, socket: folder.path().join("controller.sock"), lines };
        let line = process.wait_for("listening beyond this machine", "agents");
        assert_eq!(line["level"], "WARN");
    }
}

#[tokio::test]
async fn a_second_controller_and_a_restore_keep_off_a_running_one() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path());
    let mut client = client(&process).await;
    client.apply(v1::ApplyRequest { objects: vec![namespace("before")], ..v1::ApplyRequest::default() }).await.unwrap();
    let error = refused(folder.path(), &[]);
    assert!(error.contains("a running firebreak-controller has it open"), "{error}");
    let other = folder.path().join("other.db");
    let error = refused(folder.path(), &["--database", other.to_str().unwrap()]);
    assert!(error.contains("controller.sock") && error.contains("another process listens there"), "{error}");

    let copy = folder.path().join("copy.db");
    let mut data = Vec::new();
    let mut chunks = client.backup(v1::BackupRequest {}).await.unwrap().into_inner();
    while let Some(chunk) = chunks.message().await.unwrap() {
        data.extend_from_slice(&chunk.data);
    }
    std::fs::write(&copy, data).unwrap();
    client.apply(v1::ApplyRequest { objects: vec![namespace("after")], ..v1::ApplyRequest::default() }).await.unwrap();
    let restore = ["restore", "--from", copy.to_str().unwrap()];
    let error = refused(folder.path(), &restore);
    assert!(error.contains("a running firebreak-controller has it open"), "{error}");

    process.signal(nix::sys::signal::Signal::SIGKILL);
    drop((client, process));
    let output = output(folder.path(), &restore);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && told.contains("revision 2, epoch ") && told.contains("is kept as "), "{told}");
    let process = Process::start(folder.path());
    let mut client = self::client(&process).await;
    let list = client.list(v1::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.objects.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["before"]);
    let trail = client.list_revisions(v1::ListRevisionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(trail.revisions[0].verb, "restore");
}

#[test]
fn the_version_and_the_help_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let version = output(folder.path(), &["version"]);
    assert_eq!(String::from_utf8(version.stdout).unwrap(), format!("firebreak-controller {}\n", env!("CARGO_PKG_VERSION")));
    let help = String::from_utf8(output(folder.path(), &["run", "--help"]).stdout).unwrap();
    let options: Vec<&str> = help.lines().filter(|line| line.starts_with("      --")).collect();
    assert!(options.len() >= 10, "{help}");
    assert_eq!(help.matches("[env: FIREBREAK_").count(), options.len(), "every option has an environment variable: {help}");
    assert_eq!(Duration::from_secs(10), api_support::options(folder.path()).stop_deadline);
}
