//! The agent's options: by flag, by environment, by file, in this order; then what is built in.

use crate::dataplane::{DataplaneConfig, InterfacePattern};
use crate::flows::Timing;
use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use firebreak_policy::Limits;
use firebreak_policy::model::NodeName;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::Endpoint;

/// The command line of `firebreak-agent`.
#[derive(Debug, Parser)]
#[command(name = "firebreak-agent", version, about = "The Firebreak node agent: enforces policy on this node's workloads")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` when nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `run`.
    #[command(flatten)]
    pub run: Options,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run until told to stop (SIGTERM, SIGINT). Stopping leaves everything in force. The default.
    Run(Options),
    /// Remove every kernel object that is ours, and nothing else: the node is open afterwards.
    Uninstall,
    /// Say what this node lacks for enforcement. Exit code 1 when it cannot enforce.
    Preflight(Options),
    /// Break-glass, on the node and without a controller: for a while, let through what policy denies, and tell it. Ends by itself.
    /// Without options: say whether the node does so.
    Observe {
        /// For how long: 90s, 15m, 2h; at most 4h.
        #[arg(long = "for", value_name = "TIME", conflicts_with = "off", requires = "reason", value_parser = crate::observe::parse_duration)]
        duration: Option<std::time::Duration>,
        /// End it now.
        #[arg(long)]
        off: bool,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
        /// Where the agent keeps its identity. Default: /var/lib/firebreak/agent
        #[arg(long, env = "FIREBREAK_AGENT_STATE_DIR", value_name = "PATH")]
        state_dir: Option<PathBuf>,
    },
    /// Watch a Docker engine and print typed events, one JSON object per line. The agent's helper starts this by itself.
    #[command(hide = true)]
    DockerWatch {
        /// The engine's socket.
        #[arg(long)]
        socket: PathBuf,
    },
    /// Run programs for the agent at the other end of standard input. The agent starts this by itself.
    #[command(hide = true)]
    Helper {
        /// The `nft` program.
        #[arg(long)]
        nft: PathBuf,
        /// The Docker engine's socket, if there may be an engine.
        #[arg(long)]
        docker_socket: Option<PathBuf>,
        /// Take the kernel to have no filters of system calls.
        #[arg(long)]
        without_filter: bool,
    },
    /// Print the version.
    Version,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

macro_rules! options {
    ($($(#[doc = $doc:literal])+ $(#[arg($($arg:tt)*)])? $name:ident: $type:ty = $env:literal, $value:literal;)*) => {
        /// Options as given by flag and environment; what is not given comes from the file.
        #[derive(Clone, Debug, Default, Args)]
        pub struct Options {
            /// A TOML file with the same names as the flags. Read when it is there; must be there when named.
            #[arg(long, env = "FIREBREAK_AGENT_CONFIG", value_name = "FILE")]
            pub config: Option<PathBuf>,
            $($(#[doc = $doc])+ #[arg(long, env = $env, value_name = $value $(, $($arg)*)?)] pub $name: Option<$type>,)*
        }

        /// The same from the file.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        struct File {
            $($name: Option<$type>,)*
        }

        impl Options {
            /// What is not given here comes from there.
            fn or(self, file: File) -> Self {
                Self { config: self.config, $($name: self.$name.or(file.$name),)* }
            }
        }
    };
}

options! {
    /// This node's name. The host's name when not given.
    node: String = "FIREBREAK_NODE", "NAME";
    /// Labels of this node.
    #[arg(value_parser = pairs)]
    node_labels: Pairs = "FIREBREAK_NODE_LABELS", "KEY=VALUE,...";
    /// The controller's agent service. Default: http://127.0.0.1:7443
    controller: String = "FIREBREAK_CONTROLLER", "URL";
    /// Where the agent keeps its identity and its cursors. Default: /var/lib/firebreak/agent
    state_dir: PathBuf = "FIREBREAK_AGENT_STATE_DIR", "PATH";
    /// Names of workload interfaces, `*` at the end stands for the rest. One that matches and is not known is denied. Default: veth*,cali*
    #[arg(value_parser = words)]
    workload_interfaces: Words = "FIREBREAK_WORKLOAD_INTERFACES", "NAME,...";
    /// The Docker engine's socket, or `none`. Default: /run/docker.sock, when it is there.
    docker_socket: String = "FIREBREAK_DOCKER_SOCKET", "PATH";
    /// Where named network namespaces are. Default: /run/netns
    netns_dir: PathBuf = "FIREBREAK_NETNS_DIR", "PATH";
    /// The NFLOG group of denied packets; no other program may read it. Default: 5
    nflog_group: u16 = "FIREBREAK_NFLOG_GROUP", "NUMBER";
    /// A denied flow without a packet for so many seconds is closed, and one that goes on is told again as often. Default: 60
    flow_idle: u64 = "FIREBREAK_FLOW_IDLE", "SECONDS";
    /// A group that would make more set elements than this, all local workloads together, is a set of its own that they share; 0 shares every
    /// group that is named in a rule with room. Default: 512
    shared_from: usize = "FIREBREAK_SHARED_FROM", "NUMBER";
    /// The bit of the conntrack label that marks cut connections, 0 to 127; no other program may use it in zone 0. Default: 127
    cut_label: u8 = "FIREBREAK_CUT_LABEL", "BIT";
    /// Seconds after the first install in which TCP in the middle of a connection passes if policy allows either direction; 0 for a node whose
    /// workloads start later. Default: 120
    midstream_grace: u32 = "FIREBREAK_MIDSTREAM_GRACE", "SECONDS";
    /// From so many denied packets a second in one direction those of known flows are dropped before anything else is done with them; until there
    /// are few, every packet pays for being asked about. Default: 10000
    flood_rate: u64 = "FIREBREAK_FLOOD_RATE", "PACKETS";
    /// Whether net.netfilter.nf_conntrack_acct may be turned on, so that cuts are told with packets and bytes. Default: true
    #[arg(action = clap::ArgAction::Set)]
    set_conntrack_acct: bool = "FIREBREAK_SET_CONNTRACK_ACCT", "BOOL";
    /// Whether net.bridge.bridge-nf-call-* may be put right for bridged workloads. Default: true
    #[arg(action = clap::ArgAction::Set)]
    set_bridge_sysctls: bool = "FIREBREAK_SET_BRIDGE_SYSCTLS", "BOOL";
    /// The nft program. Default: nft
    nft: PathBuf = "FIREBREAK_NFT", "PATH";
    /// Where metrics and health are served over HTTP, or `none`. Any address but loopback needs --insecure-listen. Default: 127.0.0.1:9465
    metrics_listen: String = "FIREBREAK_AGENT_METRICS_LISTEN", "ADDRESS:PORT";
    /// Whether metrics may be served beyond this machine, without encryption. Default: false
    #[arg(action = clap::ArgAction::Set)]
    insecure_listen: bool = "FIREBREAK_AGENT_INSECURE_LISTEN", "BOOL";
    /// What this kernel is taken to lack, by the names of docs/kernels.md: the agent takes its fallback or refuses to start.
    #[arg(value_parser = words, hide = true)]
    without_feature: Words = "FIREBREAK_WITHOUT_FEATURE", "NAME,...";
    /// How log lines are written, to standard error. Default: text
    #[arg(value_enum)]
    log_format: LogFormat = "FIREBREAK_LOG_FORMAT", "FORMAT";
    /// Which log lines are written: a level, or levels by module (`info,firebreak_agent::flows=debug`). Default: info
    log: String = "FIREBREAK_LOG", "FILTER";
}

/// Words as the command line takes them (`a,b`) or the file (`["a", "b"]`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Words(pub Vec<String>);

/// Pairs as the command line takes them (`a=1,b=2`) or the file (a table).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Pairs(pub BTreeMap<String, String>);

#[allow(clippy::unnecessary_wraps, reason = "clap asks for a Result")]
fn words(text: &str) -> Result<Words, std::convert::Infallible> {
    Ok(Words(text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()))
}

fn pairs(text: &str) -> Result<Pairs, String> {
    let pair = |word: &str| {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is not KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(pair).collect::<Result<_, _>>().map(Pairs)
}

/// Whether and where there is a Docker engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerSocket {
    /// There is none.
    None,
    /// There is one.
    At(PathBuf),
    /// There is one if this file is there.
    IfPresent(PathBuf),
}

/// The agent's settings, all of them there and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node: NodeName,
    /// Its labels.
    pub node_labels: BTreeMap<String, String>,
    /// The controller's agent service.
    pub controller: Endpoint,
    /// Where the agent keeps its identity and its cursors.
    pub state_dir: PathBuf,
    /// The Docker engine.
    pub docker: DockerSocket,
    /// Where named network namespaces are.
    pub netns_dir: PathBuf,
    /// The kernel side.
    pub dataplane: DataplaneConfig,
    /// When denied flows are told of.
    pub flow_timing: Timing,
    /// Where the shared form of groups begins.
    pub limits: Limits,
    /// Whether conntrack may be told to count.
    pub set_conntrack_acct: bool,
    /// Where metrics and health are served; `None` is nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Which log lines are written.
    pub log: String,
}

/// Read when it is there and no other is named.
const DEFAULT_FILE: &str = "/etc/firebreak/agent.toml";

impl Config {
    /// Puts together what was given.
    ///
    /// # Errors
    /// Which option is wrong, and why. Nothing wrong is passed over.
    pub fn resolve(options: Options) -> anyhow::Result<Self> {
        let file = match &options.config {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read_file(Path::new(DEFAULT_FILE))?,
            None => File::default(),
        };
        let Options {
            config: _,
            node,
            node_labels,
            controller,
            state_dir,
            workload_interfaces,
            docker_socket,
            netns_dir,
            nflog_group,
            flow_idle,
            shared_from,
            cut_label,
            midstream_grace,
            flood_rate,
            set_conntrack_acct,
            set_bridge_sysctls,
            nft,
            metrics_listen,
            insecure_listen,
            without_feature,
            log_format,
            log,
        } = options.or(file);
        let node = match node {
            Some(node) => node,
            None => std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host's name for --node")?.trim().to_owned(),
        };
        ensure!(is_name(&node), "--node {node:?}: a node's name is lowercase letters, digits, '-' and '.', at most 253 of them");
        let patterns = workload_interfaces.map_or_else(|| vec!["veth*".to_owned(), "cali*".to_owned()], |words| words.0);
        ensure!(!patterns.is_empty(), "--workload-interfaces is empty: nothing would be denied by default");
        let interface_patterns =
            patterns.iter().map(|text| InterfacePattern::new(text).context("--workload-interfaces")).collect::<Result<_, _>>()?;
        ensure!(
            flow_idle.is_none_or(|seconds| (1..=3_600).contains(&seconds)),
            "--flow-idle {}: give 1 to 3600 seconds",
            flow_idle.unwrap_or_default()
        );
        ensure!(
            cut_label.is_none_or(|bit| bit < 128),
            "--cut-label {}: a conntrack label has bits 0 to 127",
            cut_label.unwrap_or_default()
        );
        let absent = without_feature.unwrap_or_default().0;
        let absent = absent.iter().map(|name| name.parse().context("--without-feature")).collect::<anyhow::Result<_>>()?;
        let defaults = DataplaneConfig::default();
        let dataplane = DataplaneConfig {
            interface_patterns,
            nflog_group: nflog_group.unwrap_or(defaults.nflog_group),
            cut_label: cut_label.unwrap_or(defaults.cut_label),
            midstream_grace: midstream_grace.map_or(defaults.midstream_grace, |seconds| Duration::from_secs(seconds.into())),
            flood_rate: flood_rate.unwrap_or(defaults.flood_rate),
            set_bridge_sysctls: set_bridge_sysctls.unwrap_or(defaults.set_bridge_sysctls),
            nft: nft.map_or_else(|| defaults.nft.clone(), Into::into),
            absent,
            ..defaults
        };
        let docker = match docker_socket.as_deref() {
            None => DockerSocket::IfPresent(PathBuf::from("/run/docker.sock")),
            Some("none") => DockerSocket::None,
            Some("") => bail!("--docker-socket is empty: give a path, or `none`"),
            Some(path) => DockerSocket::At(PathBuf::from(path.strip_prefix("unix://").unwrap_or(path))),
        };
        Ok(Self {
            node: NodeName::from(node),
            node_labels: node_labels.unwrap_or_default().0,
            controller: endpoint(controller.as_deref().unwrap_or("http://127.0.0.1:7443"))?,
            state_dir: state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/firebreak/agent")),
            docker,
            netns_dir: netns_dir.unwrap_or_else(|| PathBuf::from("/run/netns")),
            dataplane,
            limits: Limits { pairs: shared_from.unwrap_or(Limits::DEFAULT.pairs), ..Limits::DEFAULT },
            flow_timing: flow_idle.map_or_else(Timing::default, |seconds| Timing::every(Duration::from_secs(seconds))),
            set_conntrack_acct: set_conntrack_acct.unwrap_or(true),
            metrics_listen: metrics_address(metrics_listen.as_deref(), insecure_listen.unwrap_or_default())?,
            log_format: log_format.unwrap_or_default(),
            log: log.unwrap_or_else(|| "info".to_owned()),
        })
    }
}

fn read_file(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

fn metrics_address(given: Option<&str>, insecure_listen: bool) -> anyhow::Result<Option<SocketAddr>> {
    let text = given.unwrap_or("127.0.0.1:9465");
    if text == "none" {
        return Ok(None);
    }
    let address: SocketAddr = text.parse().with_context(|| format!("--metrics-listen {text:?}: give ADDRESS:PORT, or `none`"))?;
    ensure!(
        address.ip().is_loopback() || insecure_listen,
        "--metrics-listen {address} is not a loopback address: nothing is encrypted there; if the network is trusted, say --insecure-listen true"
    );
    Ok(Some(address))
}

/// As the Kubernetes API names nodes (RFC 1123 subdomain).
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn endpoint(url: &str) -> anyhow::Result<Endpoint> {
    use std::time::Duration;
    ensure!(
        url.starts_with("http://") || url.starts_with("unix:"),
        "--controller {url:?}: give http://ADDRESS:PORT (encryption comes with a later version)"
    );
    let endpoint = Endpoint::from_shared(url.to_owned()).with_context(|| format!("--controller {url:?}"))?;
    // A controller that is gone without a word is noticed within 15 s.
    Ok(endpoint
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
