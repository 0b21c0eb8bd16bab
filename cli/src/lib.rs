//! `firebreak`, the command line: kubectl-like, over the operator API; `eval` works offline.
#![forbid(unsafe_code)]

pub mod args;

mod apply;
mod backup;
mod client;
mod delete;
mod describe;
mod eval;
mod explain;
mod flows;
mod get;
mod history;
mod kinds;
mod nodes;
mod observe;
mod output;
mod view;

use args::{Command, Firebreak};
use clap::CommandFactory as _;
use std::io::Write as _;
use std::process::ExitCode;

/// Exit code for wrong arguments and bad input, as clap uses it; other failures are 1.
pub const BAD_INPUT: u8 = 2;

/// Runs one command to its end. Errors are printed to stderr, each cause on a line of its own.
pub fn run(arguments: Firebreak) -> ExitCode {
    match dispatch(arguments) {
        Ok(code) => code,
        Err(error) => {
            // A closed pipe (`firebreak get | head`) is how people end a listing, not a failure to report.
            if error
                .chain()
                .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
                .any(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
            {
                return ExitCode::SUCCESS;
            }
            let mut stderr = std::io::stderr().lock();
            let _ = writeln!(stderr, "error: {error}");
            for cause in error.chain().skip(1) {
                let _ = writeln!(stderr, "  because: {cause}");
            }
            if error.is::<output::BadInput>() { ExitCode::from(BAD_INPUT) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(arguments: Firebreak) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Eval(eval) => return eval::run(eval),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Firebreak::command(), "firebreak", &mut std::io::stdout().lock());
            return Ok(ExitCode::SUCCESS);
        }
        Command::Apply(_)
        | Command::Delete(_)
        | Command::Get(_)
        | Command::Describe(_)
        | Command::Explain(_)
        | Command::Flows(_)
        | Command::Nodes(_)
        | Command::Node { .. }
        | Command::History(_)
        | Command::Backup(_) => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(online(arguments))
}

async fn online(arguments: Firebreak) -> anyhow::Result<ExitCode> {
    let client = &mut client::Client::new(arguments.socket);
    match arguments.command {
        Command::Apply(apply) => apply::run(client, apply).await,
        Command::Delete(delete) => delete::run(client, delete).await,
        Command::Get(get) => get::run(client, get).await,
        Command::Describe(describe) => describe::run(client, describe).await,
        Command::Explain(explain) => explain::run(client, explain).await,
        Command::Flows(flows) => flows::run(client, flows).await,
        Command::Nodes(nodes) => nodes::run(client, nodes).await,
        Command::Node { command: args::NodeCommand::Observe(observe) } => observe::run(client, observe).await,
        Command::History(history) => history::run(client, history).await,
        Command::Backup(backup) => backup::run(client, backup).await,
        Command::Eval(_) | Command::Completion { .. } => anyhow::bail!("offline commands need no controller"),
    }
}
