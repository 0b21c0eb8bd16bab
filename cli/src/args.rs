//! The arguments, as `--help` shows them.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Micro-segmentation by labels: write policy, see who may reach whom, watch what was denied.
#[derive(Debug, Parser)]
#[command(name = "firebreak", version, propagate_version = true, max_term_width = 120)]
pub struct Firebreak {
    /// The controller's operator socket.
    #[arg(long, global = true, env = "FIREBREAK_SOCKET", default_value = "/run/firebreak/controller.sock", value_name = "PATH")]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create or change objects from files, all or none.
    Apply(ApplyArgs),
    /// Delete objects by name or by file, all or none.
    Delete(DeleteArgs),
    /// Show objects, workloads or nodes.
    Get(GetArgs),
    /// Show everything known of one object, workload or node.
    Describe(DescribeArgs),
    /// Say whether a flow is allowed, by which rule, and what a denied one lacks.
    Explain(ExplainArgs),
    /// Show denied flows, as they arrive with --follow.
    Flows(FlowsArgs),
    /// Show how far each node is: revision, generation, lag, conflicts, warnings.
    Nodes(NodesArgs),
    /// Show the audit trail: every change with who, when and what.
    History(HistoryArgs),
    /// Judge probes against manifests, offline, with the engine that enforces.
    Eval(crate::eval::EvalArgs),
    /// Write a consistent copy of the controller's database, while it runs.
    Backup(BackupArgs),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// `firebreak apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Files, directories (*.yaml, *.yml, *.json), or - for standard input.
    #[arg(short, long = "filename", required = true, value_name = "PATH", num_args = 1..)]
    pub filename: Vec<PathBuf>,
    /// Check and say what would happen, change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Why, for the audit trail.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// Change only if the store is still at this revision.
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "REVISION")]
    pub if_revision: u64,
    /// Wait until every connected node has enforced the change, at most this many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30")]
    pub wait: Option<u64>,
}

/// `firebreak delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The kind (segmentpolicy, networkpolicy, addressgroup, workload, namespace, pod, node); `kind/name` works too.
    #[arg(required_unless_present = "filename", conflicts_with = "filename")]
    pub kind: Option<String>,
    /// The names.
    #[arg(conflicts_with = "filename")]
    pub names: Vec<String>,
    /// Delete what these files name.
    #[arg(short, long = "filename", value_name = "PATH", num_args = 1..)]
    pub filename: Vec<PathBuf>,
    /// The namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Objects that are not there are no error.
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Say what would happen, change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Forget an agent's node: its workloads and its pinned installation (kind `node` only).
    #[arg(long)]
    pub forget: bool,
    /// Why, for the audit trail.
    #[arg(long, default_value = "")]
    pub reason: String,
}

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// YAML.
    Yaml,
    /// JSON.
    Json,
    /// `kind/name`, a line each.
    Name,
}

/// `firebreak get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The kind: workloads, nodes, segmentpolicies, networkpolicies, addressgroups, namespaces, pods, policies, all. Short names work (sp, netpol, ag, wl, ns, po, no).
    pub kind: String,
    /// Only this one.
    pub name: Option<String>,
    /// The namespace; all of them when absent.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Every namespace (the default; accepted because hands are used to it).
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// A label selector: `app=web,tier in (a,b),!legacy`.
    #[arg(short = 'l', long, default_value = "")]
    pub selector: String,
    /// Go on with changes as they happen.
    #[arg(short, long)]
    pub watch: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `firebreak describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// The kind, or `kind/name`.
    pub kind: String,
    /// The name; `name@node` tells workloads of one name apart.
    pub name: Option<String>,
    /// The namespace.
    #[arg(short, long)]
    pub namespace: Option<String>,
}

/// `firebreak explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The source: `name`, `namespace/name`, `name@node`, or an address.
    #[arg(long)]
    pub from: String,
    /// The destination with port and protocol: `db:5432/tcp`, `shop/db:53/udp`, `10.0.0.7:443`, `[fd00::7]:443/tcp`, `db/icmp`. Without a protocol it is TCP.
    #[arg(long)]
    pub to: String,
    /// The namespace of ends that name none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: TextFormat,
}

/// How one answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TextFormat {
    /// For people.
    #[default]
    Text,
    /// JSON; one object a line.
    Json,
}

/// `firebreak flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Go on with flows as they arrive.
    #[arg(short, long)]
    pub follow: bool,
    /// How many of the kept ones to begin with (default: 100, and 0 with --follow).
    #[arg(long, value_name = "N")]
    pub tail: Option<u32>,
    /// Either end is in this namespace.
    #[arg(short, long, default_value = "")]
    pub namespace: String,
    /// Either end is this workload: `name` or `namespace/name`.
    #[arg(long, default_value = "")]
    pub workload: String,
    /// Reported by this node.
    #[arg(long, default_value = "")]
    pub node: String,
    /// Judged at this end.
    #[arg(long, value_enum)]
    pub direction: Option<DirectionArg>,
    /// With this verdict.
    #[arg(long, value_enum)]
    pub verdict: Option<VerdictArg>,
    /// The source is in this block.
    #[arg(long, value_name = "CIDR")]
    pub from: Option<ipnet::IpNet>,
    /// The destination is in this block.
    #[arg(long, value_name = "CIDR")]
    pub to: Option<ipnet::IpNet>,
    /// The protocol: tcp, udp, sctp, icmp, icmpv6, or a number.
    #[arg(long)]
    pub protocol: Option<String>,
    /// The destination port.
    #[arg(long)]
    pub port: Option<u16>,
    /// Only connections that were cut.
    #[arg(long)]
    pub cuts: bool,
    /// Begin after this cursor (column `cursor` of -o json).
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "CURSOR")]
    pub after: u64,
    /// End after this many records.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: TextFormat,
}

/// The end at which a flow was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DirectionArg {
    /// At the destination.
    Ingress,
    /// At the source.
    Egress,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VerdictArg {
    /// Let through.
    Allow,
    /// Dropped in silence.
    Drop,
    /// Refused with an answer.
    Reject,
    /// Let through, and reported.
    Audit,
}

/// `firebreak nodes`.
#[derive(Debug, Args)]
pub struct NodesArgs {
    /// Only this one.
    pub name: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `firebreak history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// How many revisions, newest first.
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub limit: u32,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: TextFormat,
}

/// `firebreak backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Where to write it; must not exist yet.
    pub file: PathBuf,
}
