//! `firebreak-agent observe` asks the agent that runs here over a socket in its state directory. One JSON line each way; who may
//! enter the directory (0700) may ask.

use super::{Change, ObserveRecord, Observing, RecordFile, Request, note};
use crate::dataplane::{ObserveError, observe_without_agent};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Its name in the state directory.
pub const SOCKET: &str = "control.sock";

/// An order's longest line.
const MOST: u64 = 16 << 10;
/// For how long a caller may say nothing, and the kernel may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// For how many seconds to observe; 0 ends it; nothing only asks.
    pub seconds: Option<u64>,
    /// Why.
    pub reason: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The node observes for so many more seconds.
    Observing {
        /// For how long.
        seconds: u64,
        /// Who asked.
        principal: String,
        /// Why.
        reason: String,
    },
    /// It does not.
    Enforcing,
    /// It was not done.
    Refused(String),
}

impl Answer {
    fn of(observing: Option<&Observing>) -> Self {
        match observing {
            None => Self::Enforcing,
            Some(Observing { until, principal, reason }) => {
                let seconds = until.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
                Self::Observing { seconds, principal: principal.clone(), reason: reason.clone() }
            }
        }
    }
}

/// Listens in this directory; a socket that a dead agent left is replaced: the caller holds the directory's lock.
///
/// # Errors
/// What the system said.
pub fn listen(folder: &Path) -> io::Result<UnixListener> {
    let path = folder.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path)
}

/// Answers one caller after the other until `shutdown`.
pub async fn serve(
    listener: UnixListener,
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<crate::session::NodeStatus>,
    shutdown: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let observing = status.borrow().observing.clone();
                if let Ok(Err(error)) = tokio::time::timeout(PATIENCE * 2, converse(stream, &requests, observing)).await {
                    tracing::debug!(reason = %error, "a caller of the control socket went away");
                }
            }
            Err(error) => {
                tracing::warn!(reason = %error, "the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, requests: &mpsc::Sender<Request>, observing: Option<Observing>) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(MOST));
    tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Order>(&line) {
        Err(error) => Answer::Refused(format!("the order cannot be read: {error}")),
        Ok(Order { seconds: None, reason: _ }) => Answer::of(observing.as_ref()),
        Ok(Order { seconds: Some(seconds), reason }) => {
            let change = if seconds == 0 { Change::End } else { Change::Begin(Duration::from_secs(seconds)) };
            let (reply, answer) = oneshot::channel();
            let request = Request { change, principal: local_principal(uid), reason, order: None, reply: Some(reply) };
            let gone = |_| io::Error::other("the agent is stopping");
            requests.send(request).await.map_err(|error| gone(error.to_string()))?;
            match answer.await.map_err(|error| gone(error.to_string()))? {
                Ok(observing) => Answer::of(observing.as_ref()),
                Err(refused) => Answer::Refused(refused.to_string()),
            }
        }
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

/// As events name somebody on the node: `uid 0 on the node`.
pub(super) fn local_principal(uid: u32) -> String {
    format!("uid {uid} on the node")
}

/// Asks the agent that runs with this directory. Blocking.
///
/// # Errors
/// When none listens within 10 s (an agent that is starting has the directory before it listens), or it does not answer.
pub fn ask(folder: &Path, order: &Order) -> io::Result<Answer> {
    let begun = std::time::Instant::now();
    let mut stream = loop {
        match std::os::unix::net::UnixStream::connect(folder.join(SOCKET)) {
            Ok(stream) => break stream,
            Err(error) if begun.elapsed() >= PATIENCE => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    stream.set_read_timeout(Some(PATIENCE * 2))?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// Follows an order where no agent runs; the caller holds the directory's lock. What nobody tells now the next agent tells.
/// Blocking.
///
/// # Errors
/// As [`crate::dataplane::observe_without_agent`].
pub fn without_agent(folder: &Path, order: &Order) -> Result<Answer, ObserveError> {
    let file = RecordFile::new(folder);
    let known = file.read();
    let Some(seconds) = order.seconds else {
        let left = known.filter(|record| record.until() > SystemTime::now());
        return Ok(left.map_or(Answer::Enforcing, |record| {
            let ObserveRecord { until: _, principal, reason, told: _ } = record.clone();
            Answer::of(Some(&Observing { until: record.until(), principal, reason }))
        }));
    };
    let duration = Duration::from_secs(seconds);
    let change = if seconds == 0 { Change::End } else { Change::Begin(duration) };
    if let Err(refused) = change.check(&order.reason) {
        return Ok(Answer::Refused(refused.to_string()));
    }
    let principal = local_principal(nix::unistd::getuid().as_raw());
    if seconds == 0 {
        observe_without_agent(None)?;
        // The file stays: it lets the next agent tell that it has ended.
        return Ok(Answer::Enforcing);
    }
    observe_without_agent(Some((duration, &note(&principal, &order.reason))))?;
    let observing = Observing { until: SystemTime::now() + duration, principal, reason: order.reason.clone() };
    if let Err(error) = file.write(Some(&ObserveRecord::of(&observing, false))) {
        eprintln!("the file that lets the next agent tell of this cannot be written: {error}");
    }
    Ok(Answer::of(Some(&observing)))
}
