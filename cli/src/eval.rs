//! `firebreak eval`.

use std::process::ExitCode;

/// `firebreak eval`.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {}

/// Judges probes offline.
pub(crate) fn run(_arguments: EvalArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
