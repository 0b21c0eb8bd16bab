//! The only place that runs the `nft` program: for the fixed rules, never on the way of a commit.

use super::error::OpenError;
use super::skeleton;
use crate::helper::Helper;
use serde_json::Value;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
    let output = nft.wait_with_output().map_err(|error| NftRefusal::Failed(error.to_string()))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = complaint.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
        return Err(NftRefusal::Failed(format!("{}: {}", output.status, lines.join(" | "))));
    }
    match written {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(NftRefusal::Failed(error.to_string())),
        None => Err(NftRefusal::Failed("no standard input".to_owned())),
    }
}
