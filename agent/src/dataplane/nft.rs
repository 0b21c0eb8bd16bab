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
    let document = skeleton::document(commands);
    let failed = |what: String| OpenError::Nft(format!("{}: {what}", program.display()));
    let mut nft = Command::new(program)
        .args(["-j", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    // Dropping the pipe at the end of the statement is what ends nft's input. An nft that dies early breaks it; its own
    // complaint is the better one.
    let written = nft.stdin.take().map(|mut input| input.write_all(document.as_bytes()));
    let output = nft.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = complaint.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
        return Err(failed(format!("{}: {}", output.status, lines.join(" | "))));
    }
    match written {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(failed(error.to_string())),
        None => Err(failed("no standard input".to_owned())),
    }
}
