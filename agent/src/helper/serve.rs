//! The helper's side: takes a request, does it, answers.

use super::frame::{self, Frame};
use super::{DONE, NFT_APPLY, NFT_APPLY_TEXT, NFT_CHECK, NFT_MISSING, NOTHING, OPEN_NETWORK, REFUSED, WATCH_DOCKER, own_program};
use crate::confine::{ConfineError, Role, confine};
use crate::dataplane::{NftRefusal, NftTask, run_nft};
use nix::fcntl::OFlag;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// Why the helper ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It could not be tied to the agent.
    #[error("prctl(PR_SET_PDEATHSIG): {0}")]
    Tie(nix::Error),
    /// It could not give up what it does not need.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The agent cannot be spoken with.
    #[error("speaking with the agent on standard input: {0}")]
    Agent(#[from] io::Error),
}

/// Serves the agent at the other end of standard input until that is gone. One thread; children end with it.
///
/// # Errors
/// As [`ServeError`] says.
pub fn serve(nft: &Path, docker_socket: Option<PathBuf>, with_filter: bool) -> Result<(), ServeError> {
    set_pdeathsig(Signal::SIGKILL).map_err(ServeError::Tie)?;
    confine(Role::Helper { docker: docker_socket.is_some() }, with_filter)?;
    let agent = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut watcher = Watcher { socket: docker_socket, child: None };
    while let Some(Frame { kind, body, descriptor }) = frame::receive(&agent)? {
        match kind {
            NFT_APPLY => answer_nft(&agent, nft, NftTask::Apply, &body)?,
            NFT_APPLY_TEXT => answer_nft(&agent, nft, NftTask::ApplyText, &body)?,
            NFT_CHECK => answer_nft(&agent, nft, NftTask::Check, &body)?,
            WATCH_DOCKER => match watcher.start(descriptor) {
                Ok(()) => answer(&agent, DONE, "", None)?,
                Err(error) => answer(&agent, REFUSED, &error.to_string(), None)?,
            },
            OPEN_NETWORK => match open_network(&body) {
                Some(network) => answer(&agent, DONE, "", Some(network.as_fd()))?,
                None => answer(&agent, NOTHING, "", None)?,
            },
            kind => answer(&agent, REFUSED, &format!("the helper knows no request {kind}"), None)?,
        }
    }
    Ok(())
}

fn answer(agent: &UnixStream, kind: u8, text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    frame::send(agent, kind, text.as_bytes(), descriptor)
}

fn answer_nft(agent: &UnixStream, nft: &Path, task: NftTask, input: &[u8]) -> io::Result<()> {
    let outcome = match std::str::from_utf8(input) {
        Ok(input) => run_nft(nft, task, input),
        Err(error) => Err(NftRefusal::Failed(error.to_string())),
    };
    match outcome {
        Ok(()) => answer(agent, DONE, "", None),
        Err(NftRefusal::Missing(error)) => answer(agent, NFT_MISSING, &error.to_string(), None),
        Err(NftRefusal::Failed(complaint)) => answer(agent, REFUSED, &complaint, None),
    }
}

struct Watcher {
    socket: Option<PathBuf>,
    child: Option<Child>,
}

impl Watcher {
    fn start(&mut self, output: Option<OwnedFd>) -> io::Result<()> {
        let (Some(socket), Some(output)) = (&self.socket, output) else {
            return Err(io::Error::other("there is no Docker engine to watch, or nothing to print to"));
        };
        if let Some(mut earlier) = self.child.take() {
            // It may have ended long ago.
            let _ = earlier.kill();
            earlier.wait()?;
        }
        let mut command = own_program();
        command.arg("docker-watch").arg("--socket").arg(socket);
        self.child = Some(command.stdin(Stdio::null()).stdout(output).stderr(Stdio::inherit()).spawn()?);
        Ok(())
    }
}

/// `/proc/PID/ns/net`, opened without waiting should something else be there.
fn open_network(pid: &[u8]) -> Option<File> {
    let pid = u32::from_le_bytes(pid.try_into().ok()?);
    File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(format!("/proc/{pid}/ns/net")).ok()
}
