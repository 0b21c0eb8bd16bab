//! The only place that runs the `nft` program: for the fixed rules, never on the way of a commit.

use super::error::OpenError;
use super::skeleton;
use crate::helper::Helper;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How `nft` is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nft {
    /// As a child of this process.
    Program(PathBuf),
    /// By the helper: this process may start no program any more.
    Helper {
        /// Which one.
        helper: Helper,
        /// The program that it was told to run; for messages.
        program: PathBuf,
    },
}

impl Nft {
    /// The program.
    pub fn program(&self) -> &Path {
        match self {
            Self::Program(program) | Self::Helper { helper: _, program } => program,
        }
    }

    fn run(&self, task: NftTask, input: &str) -> Result<(), NftRefusal> {
        match self {
            Self::Program(program) => run_nft(program, task, input),
            Self::Helper { helper, program: _ } => {
                helper.nft(task, input).unwrap_or_else(|error| Err(NftRefusal::Failed(error.to_string())))
            }
        }
    }
}

impl<T: Into<PathBuf>> From<T> for Nft {
    fn from(program: T) -> Self {
        Self::Program(program.into())
    }
}

/// What `nft` can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NftTask {
    /// To make a JSON document so, in one transaction.
    Apply,
    /// To make commands in nft's own text so, in one transaction.
    ApplyText,
    /// To have the kernel judge a ruleset in nft's text, and to take it apart again.
    Check,
}

/// Why `nft` did not do what it was told.
#[derive(Debug)]
pub(crate) enum NftRefusal {
    /// It could not be started.
    Missing(std::io::Error),
    /// It refused; its own words.
    Failed(String),
}

impl fmt::Display for NftRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(error) => write!(f, "{error}"),
            Self::Failed(complaint) => f.write_str(complaint),
        }
    }
}

/// Applies commands in one transaction; all or nothing. Not with the helper of crate `nftables`: that lets the program's
/// complaint go to our own standard error, where no error value carries it.
/// `elements` are commands as text, after the others.
pub(super) fn apply(nft: &Nft, commands: &[Value], elements: &[String]) -> Result<(), OpenError> {
    let done = nft.run(NftTask::Apply, &skeleton::document(commands, elements));
    done.map_err(|refusal| OpenError::Nft(format!("{}: {refusal}", nft.program().display())))
}

/// As [`apply`], for commands in nft's own text: sets whose type its JSON has no words for.
pub(super) fn apply_text(nft: &Nft, commands: &str) -> Result<(), OpenError> {
    let done = nft.run(NftTask::ApplyText, commands);
    done.map_err(|refusal| OpenError::Nft(format!("{}: {refusal}", nft.program().display())))
}

/// Has `nft` and the kernel judge a ruleset in nft's text, without making it so: the kernel takes the transaction apart again.
pub(super) fn check(nft: &Nft, ruleset: &str) -> Result<(), NftRefusal> {
    nft.run(NftTask::Check, ruleset)
}

/// Runs the program as a child of this process, in its network namespace.
pub(crate) fn run_nft(program: &Path, task: NftTask, input: &str) -> Result<(), NftRefusal> {
    run_within(PATIENCE, program, task, input)
}

/// How long `nft` may take. Version 1.0.6 never ends while somebody's chain hooks devices by a prefix (kernel 6.18); the helper, which does
/// one thing at a time, must not wait for it for ever.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most of its complaint that is kept.
const COMPLAINT: usize = 64 << 10;

fn run_within(patience: Duration, program: &Path, task: NftTask, input: &str) -> Result<(), NftRefusal> {
    let arguments: &[&str] = match task {
        NftTask::Apply => &["-j", "-f", "-"],
        NftTask::ApplyText => &["-f", "-"],
        NftTask::Check => &["-c", "-f", "-"],
    };
    let mut nft = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftRefusal::Missing)?;
    // Dropping the pipe at the end of the statement is what ends nft's input. An nft that dies early breaks it; its own
    // complaint is the better one.
    let written = nft.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
    let (status, complaint) = ended(&mut nft, patience).map_err(|error| NftRefusal::Failed(error.to_string()))?;
    if !status.success() {
        let complaint = String::from_utf8_lossy(&complaint);
        let lines: Vec<&str> = complaint.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
        return Err(NftRefusal::Failed(format!("{status}: {}", lines.join(" | "))));
    }
    match written {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(NftRefusal::Failed(error.to_string())),
        None => Err(NftRefusal::Failed("no standard input".to_owned())),
    }
}

/// Waits for the program's end and gives what it complained of; kills it when it takes too long.
fn ended(program: &mut Child, patience: Duration) -> io::Result<(ExitStatus, Vec<u8>)> {
    let until = Instant::now() + patience;
    let mut complaint = Vec::new();
    if let Some(mut stderr) = program.stderr.take() {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up: a wait of nothing would ask again and again.
            let wait = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)], wait) {
                Ok(0) if until <= Instant::now() => {
                    program.kill()?;
                    program.wait()?;
                    return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {patience:?}, and was killed")));
                }
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            let mut chunk = [0; 4096];
            let read = stderr.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            let room = COMPLAINT.saturating_sub(complaint.len());
            complaint.extend_from_slice(&chunk[..read.min(room)]);
        }
    }
    Ok((program.wait()?, complaint))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_nft_that_does_not_end_is_killed_and_one_that_complains_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let run = |script: &str, patience| {
            let path = folder.path().join("nft");
            std::fs::write(&path, format!("#!/bin/sh\ncat >/dev/null\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let begun = Instant::now();
            (run_within(patience, &path, NftTask::Apply, "{}").map_err(|refusal| refusal.to_string()), begun.elapsed())
        };
        let long = Duration::from_secs(30);
        assert_eq!(run("exit 0", long).0, Ok(()));
        assert!(run("echo one >&2; echo two >&2; exit 3", long).0.unwrap_err().ends_with("3: one | two"));
        // Its complaint may be longer than a pipe holds.
        assert!(run("yes complaint | head -c 1000000 >&2; exit 1", long).0.unwrap_err().contains("complaint | complaint"));
        let (outcome, took) = run("exec sleep 60", Duration::from_millis(200));
        assert!(outcome.unwrap_err().contains("was killed") && took < Duration::from_secs(20));
    }
}
