//! The firebreak-agent program.
#![forbid(unsafe_code)]

use clap::Parser;
use firebreak_agent::config::{Cli, Command, Config, LogFormat, Options};
use firebreak_agent::dataplane::{DataplaneConfig, Finding, Severity};
use firebreak_agent::discovery::docker::watch;
use firebreak_agent::{app, dataplane};
use std::path::Path;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Cli { command, run: default } = Cli::parse();
    let outcome = match command {
        None => run(default),
        Some(Command::Run(options)) => run(options),
        Some(Command::Uninstall) => uninstall(),
        Some(Command::Preflight(options)) => preflight(options),
        Some(Command::DockerWatch { socket }) => docker_watch(&socket),
        Some(Command::Version) => {
            println!("firebreak-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("firebreak-agent: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(options: Options) -> anyhow::Result<ExitCode> {
    let config = Config::resolve(options)?;
    let filter = EnvFilter::try_new(&config.log).map_err(|error| anyhow::anyhow!("--log {}: {error}", config.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        app::run(config, async move {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn uninstall() -> anyhow::Result<ExitCode> {
    let removed = dataplane::uninstall()?.removed;
    if removed.is_empty() {
        println!("nothing of ours is in the kernel");
    }
    removed.iter().for_each(|object| println!("removed {object}"));
    Ok(ExitCode::SUCCESS)
}

fn preflight(options: Options) -> anyhow::Result<ExitCode> {
    let config = Config::resolve(options)?;
    // Only looks: what the agent would put right is told as it is.
    let findings = dataplane::preflight(&DataplaneConfig { set_bridge_sysctls: false, ..config.dataplane }, true);
    if findings.is_empty() {
        println!("this node can enforce; nothing is missing");
    }
    for Finding { code, severity, message, remedy } in &findings {
        let word = match severity {
            Severity::Notice => "notice",
            Severity::Warning => "warning",
            Severity::Fatal => "fatal",
        };
        println!("{word:<8} {code:<28} {message}\n{:37}remedy: {remedy}", "");
    }
    let fatal = findings.iter().any(|finding| finding.severity == Severity::Fatal);
    Ok(if fatal { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn docker_watch(socket: &Path) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(watch::watch(socket, &mut std::io::stdout()))? {}
}
