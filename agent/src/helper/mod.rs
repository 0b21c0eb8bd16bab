//! The helper: a process of ours that still may start programs when the agent no longer may. It does three things and nothing else:
//! run `nft` on a document, run the watcher of the Docker engine, open the network namespace of a process. Which program and which
//! engine was said at its start; a request cannot choose.
//!
//! It gives the agent nothing that the agent does not have: whoever speaks for the agent changes nf_tables without `nft`, and a
//! namespace's descriptor opens no door without CAP_SYS_ADMIN, which neither has.

mod frame;
mod serve;

pub use serve::{ServeError, serve};

use crate::dataplane::{NftRefusal, NftTask};
use frame::Frame;
use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// Why the helper did not do something.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It could not be started.
    #[error("starting the helper: {0}")]
    Start(#[source] io::Error),
    /// It has ended.
    #[error("the helper has ended")]
    Ended,
    /// It cannot be spoken with.
    #[error("speaking with the helper: {0}")]
    Broken(#[from] io::Error),
    /// It tried and failed.
    #[error("{0}")]
    Refused(String),
}

// Requests.
const NFT_APPLY: u8 = 1;
const NFT_CHECK: u8 = 2;
const NFT_APPLY_TEXT: u8 = 5;
const WATCH_DOCKER: u8 = 3;
const OPEN_NETWORK: u8 = 4;
// Answers.
const DONE: u8 = 0;
const REFUSED: u8 = 1;
/// The program `nft` could not be started.
const NFT_MISSING: u8 = 2;
/// No such process, or it may not be looked at.
const NOTHING: u8 = 3;

/// The helper, to be asked. Copies are handles of the same one; it does one thing at a time. Every call blocks.
#[derive(Clone, Debug)]
pub struct Helper(Arc<Mutex<UnixStream>>);

/// Equal when they are the same process.
impl PartialEq for Helper {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Helper {}

/// The helper's life: a pipe that it holds open and writes nothing into. The helper ends when the agent does.
#[derive(Debug)]
pub struct HelperLife(PipeReader);

impl HelperLife {
    /// Returns when the helper has ended, which it does not do by itself. Asks for a runtime.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub async fn ended(self) -> io::Result<()> {
        let mut life = pipe::Receiver::from_owned_fd(self.0.into())?;
        let mut byte = [0];
        while life.read(&mut byte).await? > 0 {}
        Ok(())
    }
}

impl Helper {
    /// Starts it, with a filter of system calls or without, in the namespaces of the calling thread, which must live as long as the process: the helper ends with it.
    ///
    /// # Errors
    /// [`HelperError::Start`].
    pub fn start(nft: &Path, docker_socket: Option<&Path>, with_filter: bool) -> Result<(Self, HelperLife), HelperError> {
        let (ours, theirs) = UnixStream::pair().map_err(HelperError::Start)?;
        let mut command = own_program();
        command.arg("helper").arg("--nft").arg(nft);
        if let Some(socket) = docker_socket {
            command.arg("--docker-socket").arg(socket);
        }
        if !with_filter {
            command.arg("--without-filter");
        }
        let (life, held) = io::pipe().map_err(HelperError::Start)?;
        // It is not waited for: it outlives every wait, and what remains of it when it does end is one entry in the process table.
        command.stdin(OwnedFd::from(theirs)).stdout(held).stderr(Stdio::inherit()).spawn().map_err(HelperError::Start)?;
        Ok((Self(Arc::new(Mutex::new(ours))), HelperLife(life)))
    }

    /// Runs `nft`. The outer error is the helper's, the inner one that of `nft`.
    ///
    /// # Errors
    /// As said.
    pub(crate) fn nft(&self, task: NftTask, input: &str) -> Result<Result<(), NftRefusal>, HelperError> {
        let kind = match task {
            NftTask::Apply => NFT_APPLY,
            NftTask::ApplyText => NFT_APPLY_TEXT,
            NftTask::Check => NFT_CHECK,
        };
        let Frame { kind, body, descriptor: _ } = self.ask(kind, input.as_bytes(), None)?;
        let text = String::from_utf8_lossy(&body).into_owned();
        match kind {
            DONE => Ok(Ok(())),
            REFUSED => Ok(Err(NftRefusal::Failed(text))),
            NFT_MISSING => Ok(Err(NftRefusal::Missing(io::Error::other(text)))),
            kind => Err(unexpected(kind)),
        }
    }

    /// Starts the watcher of the Docker engine, in place of an earlier one. What it prints comes out of the pipe.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn watch_docker(&self) -> Result<PipeReader, HelperError> {
        let (reader, writer) = io::pipe()?;
        let Frame { kind, body, descriptor: _ } = self.ask(WATCH_DOCKER, &[], Some(writer.as_fd()))?;
        match kind {
            DONE => Ok(reader),
            REFUSED => Err(HelperError::Refused(String::from_utf8_lossy(&body).into_owned())),
            kind => Err(unexpected(kind)),
        }
    }

    /// Opens the network namespace of a process; `None` when there is no such process.
    ///
    /// # Errors
    /// When the helper cannot be asked.
    pub fn open_network(&self, pid: u32) -> Result<Option<File>, HelperError> {
        let Frame { kind, body: _, descriptor } = self.ask(OPEN_NETWORK, &pid.to_le_bytes(), None)?;
        match kind {
            DONE => descriptor.map(|descriptor| Some(descriptor.into())).ok_or_else(|| unexpected(kind)),
            NOTHING => Ok(None),
            kind => Err(unexpected(kind)),
        }
    }

    fn ask(&self, kind: u8, body: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<Frame, HelperError> {
        // Whoever panicked did so between requests: the lock is held for one whole request, in which nothing panics.
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        frame::send(&stream, kind, body, descriptor).map_err(broken)?;
        frame::receive(&stream).map_err(broken)?.ok_or(HelperError::Ended)
    }
}

fn broken(error: io::Error) -> HelperError {
    if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
        return HelperError::Ended;
    }
    HelperError::Broken(error)
}

fn unexpected(kind: u8) -> HelperError {
    HelperError::Broken(io::Error::new(io::ErrorKind::InvalidData, format!("an answer of kind {kind}")))
}

/// This very program, even where an upgrade has put another in its place.
fn own_program() -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("firebreak-agent");
    command
}
