//! The only place that runs the `nft` program; only at start, never on the way of a commit.

use super::error::OpenError;
use super::skeleton;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Applies commands in one transaction; all or nothing. Not with the helper of crate `nftables`: that lets the program's
/// complaint go to our own standard error, where no error value carries it.
pub(super) fn apply(program: &Path, commands: Vec<Value>) -> Result<(), OpenError> {
    run(program, &["-j", "-f", "-"], &skeleton::document(commands)).map_err(complain(program))
}

/// As [`apply`], for commands in nft's own text.
pub(super) fn apply_text(program: &Path, commands: &str) -> Result<(), OpenError> {
    run(program, &["-f", "-"], commands).map_err(complain(program))
}

fn complain(program: &Path) -> impl Fn(RunError) -> OpenError {
    move |error| match error {
        RunError::Missing(error) => OpenError::Nft(format!("{}: {error}", program.display())),
        RunError::Failed(complaint) => OpenError::Nft(format!("{}: {complaint}", program.display())),
    }
}

/// Has `nft` and the kernel judge a ruleset in nft's text, without making it so: the kernel takes the transaction apart again.
pub(super) fn check(program: &Path, ruleset: &str) -> Result<(), RunError> {
    run(program, &["-c", "-f", "-"], ruleset)
}

/// Why `nft` did not do what it was told.
#[derive(Debug)]
pub(super) enum RunError {
    /// It could not be started.
    Missing(std::io::Error),
    /// It refused; its own words.
    Failed(String),
}

fn run(program: &Path, arguments: &[&str], input: &str) -> Result<(), RunError> {
    let mut nft = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(RunError::Missing)?;
    // Dropping the pipe at the end of the statement is what ends nft's input. An nft that dies early breaks it; its own
    // complaint is the better one.
    let written = nft.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
    let output = nft.wait_with_output().map_err(|error| RunError::Failed(error.to_string()))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = complaint.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
        return Err(RunError::Failed(format!("{}: {}", output.status, lines.join(" | "))));
    }
    match written {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(RunError::Failed(error.to_string())),
        None => Err(RunError::Failed("no standard input".to_owned())),
    }
}
