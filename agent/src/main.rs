//! The firebreak-agent program.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use firebreak_agent::config::{Cli, Command, Config, DockerSocket, LogFormat, Options};
use firebreak_agent::confine::{Confined, Role, confine, names};
use firebreak_agent::dataplane::{DataplaneConfig, Feature, Finding, Nft, Severity};
use firebreak_agent::discovery::docker::watch;
use firebreak_agent::helper::{Helper, HelperLife, serve};
use firebreak_agent::{app, dataplane, memory};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Threads for what blocks: files, names, questions to the helper and the kernel. Three of them are busy at most.
const BLOCKING: usize = 16;

fn main() -> ExitCode {
    memory::one_heap();
    let Cli { command, run: default } = Cli::parse();
    let outcome = match command {
        None => run(default),
        Some(Command::Run(options)) => run(options),
        Some(Command::Uninstall) => uninstall(),
        Some(Command::Preflight(options)) => preflight(options),
        Some(Command::DockerWatch { socket }) => docker_watch(&socket),
        Some(Command::Helper { nft, docker_socket, without_filter }) => helper(&nft, docker_socket, !without_filter),
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
    let mut config = Config::resolve(options)?;
    let filter: Targets = config.log.parse().map_err(|error| anyhow::anyhow!("--log {}: {error}", config.log))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match config.log_format {
        LogFormat::Text => registry.with(lines).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
    let helper = confined(&mut config)?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(BLOCKING).enable_all().build()?.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        app::run(config, helper, async move {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the helper while this process still may, then gives up what the agent does not need. Before any other thread is there.
fn confined(config: &mut Config) -> anyhow::Result<(Helper, HelperLife)> {
    let docker_socket = match &config.docker {
        DockerSocket::None => None,
        DockerSocket::At(socket) | DockerSocket::IfPresent(socket) => Some(socket.as_path()),
    };
    let program = config.dataplane.nft.program().to_owned();
    let with_filter = !config.dataplane.absent.contains(&Feature::SeccompFilter);
    let (helper, life) = Helper::start(&program, docker_socket, with_filter)?;
    config.dataplane.nft = Nft::Helper { helper: helper.clone(), program };
    let Confined { capabilities, bounded, filtered } = confine(Role::Agent, with_filter).context("giving up privileges")?;
    if !filtered {
        config.dataplane.absent.insert(Feature::SeccompFilter);
    }
    tracing::info!(capabilities = names(capabilities), bounded, filtered, "privileges given up");
    Ok((helper, life))
}

fn helper(nft: &Path, docker_socket: Option<PathBuf>, with_filter: bool) -> anyhow::Result<ExitCode> {
    serve(nft, docker_socket, with_filter)?;
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
    confine(Role::DockerWatch, true).context("giving up privileges")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(watch::watch(socket, &mut std::io::stdout()))? {}
}
