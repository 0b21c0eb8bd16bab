//! The firebreak-controller program.
#![forbid(unsafe_code)]

use clap::Parser;
use firebreak_controller::config::{Cli, Command, LogFormat, RestoreOptions, RunOptions};
use firebreak_controller::{app, auth, store};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Takes a third off what the hub costs: it makes lists that other threads drop.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let Cli { command, run: default } = Cli::parse();
    let outcome = match command {
        None => run(default),
        Some(Command::Run(options)) => run(options),
        Some(Command::Restore(options)) => restore(&options),
        Some(Command::Version) => {
            println!("firebreak-controller {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("firebreak-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: RunOptions) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&options.log).map_err(|error| anyhow::anyhow!("--log {}: {error}", options.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        app::run(options, async move {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        })
        .await
    })
}

fn restore(options: &RestoreOptions) -> anyhow::Result<()> {
    let RestoreOptions { from, database } = options;
    let restored = store::restore(from, database, auth::own_principal().to_string(), jiff::Timestamp::now())?;
    println!("restored {} from {}: revision {}, epoch {}", database.display(), from.display(), restored.revision, restored.epoch);
    if let Some(replaced) = restored.replaced {
        println!("the database that was there is kept as {}", replaced.display());
    }
    Ok(())
}
