//! The controller's options: every one by flag and by environment.

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The command line of `firebreak-controller`.
#[derive(Debug, Parser)]
#[command(name = "firebreak-controller", version, about = "The Firebreak controller: policy in, per-node state out, denied flows back")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` when nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `run`.
    #[command(flatten)]
    pub run: RunOptions,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run until told to stop (SIGTERM, SIGINT). The default.
    Run(RunOptions),
    /// Put a backup in the place of the database of a controller that is not running.
    Restore(RestoreOptions),
    /// Print the version.
    Version,
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// The database file; made when it is not there.
    #[arg(long, env = "FIREBREAK_DATABASE", default_value = "/var/lib/firebreak/controller.db", value_name = "PATH")]
    pub database: PathBuf,
    /// The operators' unix socket, mode 0660: whoever can connect is an operator.
    #[arg(long, env = "FIREBREAK_SOCKET", default_value = "/run/firebreak/controller.sock", value_name = "PATH")]
    pub socket: PathBuf,
    /// The group that owns the operators' socket; without it, the group of the process.
    #[arg(long, env = "FIREBREAK_SOCKET_GROUP", value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Where agents connect. Any address but loopback needs --insecure-listen.
    #[arg(long, env = "FIREBREAK_AGENT_LISTEN", default_value = "127.0.0.1:7443", value_name = "ADDRESS:PORT")]
    pub agent_listen: SocketAddr,
    /// Where metrics and health are served over HTTP. Any address but loopback needs --insecure-listen.
    #[arg(long, env = "FIREBREAK_METRICS_LISTEN", default_value = "127.0.0.1:9464", value_name = "ADDRESS:PORT")]
    pub metrics_listen: SocketAddr,
    /// Allow listening on addresses other than loopback although nothing is encrypted and agents are not authenticated yet.
    #[arg(long, env = "FIREBREAK_INSECURE_LISTEN")]
    pub insecure_listen: bool,
    /// The networks of the cluster; the entity `world` is everything outside. Until they are set it is public addresses only.
    #[arg(long, env = "FIREBREAK_CLUSTER_NETWORKS", value_delimiter = ',', value_name = "CIDR,...")]
    pub cluster_networks: Vec<IpNet>,
    /// How many of the newest flow records are kept for `firebreak flows`.
    #[arg(long, env = "FIREBREAK_KEPT_FLOWS", default_value_t = 10_000, value_name = "RECORDS")]
    pub kept_flows: usize,
    /// How long requests under way may take to end after a signal, in seconds.
    #[arg(long, env = "FIREBREAK_STOP_DEADLINE", default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    pub stop_deadline: Duration,
    /// How log lines are written, to standard error.
    #[arg(long, env = "FIREBREAK_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: LogFormat,
    /// Which log lines are written: a level, or levels by module as tracing's EnvFilter reads them.
    #[arg(long, env = "FIREBREAK_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// Options of `restore`.
#[derive(Clone, Debug, Args)]
pub struct RestoreOptions {
    /// The backup.
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// The database that it is to replace; the old one is kept beside it.
    #[arg(long, env = "FIREBREAK_DATABASE", default_value = "/var/lib/firebreak/controller.db", value_name = "PATH")]
    pub database: PathBuf,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(number @ 1..=3_600) => Ok(Duration::from_secs(number)),
        Ok(_) | Err(_) => Err("1 to 3600 seconds".to_owned()),
    }
}

/// An address that only this machine reaches may be listened on; any other takes a decision.
///
/// # Errors
/// Names the option and the way out.
pub fn check_listen(option: &str, address: SocketAddr, insecure_listen: bool) -> Result<(), String> {
    if address.ip().is_loopback() || insecure_listen {
        return Ok(());
    }
    Err(format!(
        "{option} {address} is not a loopback address: nothing is encrypted there and agents are not authenticated yet; \
         if the network is trusted, say --insecure-listen"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_run_is_the_default() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["firebreak-controller", "--agent-listen", "127.0.0.1:1"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.run.agent_listen, "127.0.0.1:1".parse().unwrap());
        let cli = Cli::try_parse_from(["firebreak-controller", "run", "--cluster-networks", "10.0.0.0/8,fd00::/8"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Run(options)) if options.cluster_networks.len() == 2));
    }

    #[test]
    fn bad_options_are_refused_by_name() {
        let cases: [&[&str]; 7] = [
            &["--agent-listen", "localhost"],
            &["--agent-listen", "127.0.0.1:99999"],
            &["--stop-deadline", "0"],
            &["--stop-deadline", "3601"],
            &["--cluster-networks", "10.0.0.0/33"],
            &["--log-format", "xml"],
            &["--databse", "x"],
        ];
        for case in cases {
            let error = Cli::try_parse_from([&["firebreak-controller"], case].concat()).unwrap_err().to_string();
            assert!(error.contains(case[0]), "{case:?}: {error}");
        }
    }

    #[test]
    fn only_loopback_is_listened_on_without_a_decision() {
        let cases = [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("127.5.5.5:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
            ("[::ffff:127.0.0.1]:1", false),
        ];
        for (address, allowed) in cases {
            let address = address.parse().unwrap();
            assert_eq!(check_listen("--agent-listen", address, false).is_ok(), allowed, "{address}");
            assert!(check_listen("--agent-listen", address, true).is_ok());
        }
    }
}
