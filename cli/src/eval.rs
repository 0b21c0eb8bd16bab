//! `firebreak eval`: manifests and probes in, verdicts out, without a controller and with the engine that enforces.

mod answer;
mod probe;

use crate::output::{BadInput, print};
use answer::Answer;
use clap::ValueEnum;
use firebreak_policy::model::WorkloadId;
use firebreak_policy::reserved::{Given, RESERVED_PREFIX};
use firebreak_policy::{Compiled, Engine, Problem};
use ipnet::IpNet;
use probe::{Ends, Probe};
use std::io::{IsTerminal, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The most that is read of probes, in bytes.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// How verdicts are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EvalFormat {
    /// One JSON object per probe, a line each, in the order of the probes.
    Json,
    /// A table.
    Table,
}

/// `firebreak eval`.
///
/// A probe is a JSON object on a line of its own: {"from":"ns/pod","to":"ns/pod","protocol":"TCP","port":80}. An end is a workload
/// (`pod` alone is in the namespace `default`) or an IP address; `port` is a number or a name of the destination's ports;
/// ICMP and ICMPv6 take `icmpType` and `icmpCode` instead (echo request when absent).
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    /// Manifests: files, directories (*.yaml, *.yml, *.json), or - for standard input.
    #[arg(short, long = "filename", required = true, value_name = "PATH", num_args = 1..)]
    pub filename: Vec<PathBuf>,
    /// Probes as JSON lines: a file, or - for standard input. Without probes the manifests are only checked.
    #[arg(long, value_name = "FILE")]
    pub probes: Option<PathBuf>,
    /// How to print; a table on a terminal, else JSON.
    #[arg(short, long)]
    pub output: Option<EvalFormat>,
    /// An address block of the cluster, again for each: what is outside all of them is the entity `world`.
    #[arg(long = "cluster-network", value_name = "CIDR")]
    pub cluster_networks: Vec<IpNet>,
}

/// Reads and checks everything before it prints anything. Exit code 0 when all was judged, whatever the verdicts.
///
/// # Errors
/// Manifests or probes that are refused, every one of them with its place: exit code 2, and nothing on standard output.
pub(crate) fn run(arguments: EvalArgs) -> anyhow::Result<ExitCode> {
    let EvalArgs { filename, probes, output, cluster_networks } = arguments;
    let stdin = Path::new("-");
    let readers = filename.iter().chain(&probes).filter(|path| *path == stdin).count();
    if readers > 1 {
        return Err(BadInput::new("standard input (-) can be read once only; put the manifests or the probes into a file").into());
    }
    let located = firebreak_manifest::load_paths(&filename).map_err(|errors| BadInput::new(errors.to_string()))?;
    let objects = located.iter().map(|located| &located.object);
    let built = firebreak_manifest::build_all(objects).map_err(|errors| BadInput::new(errors.to_string()))?;
    let firebreak_manifest::Built { mut policies, inventory, labels } = built;
    policies.cluster_networks = cluster_networks.iter().map(IpNet::trunc).collect();

    let format = output.unwrap_or(if std::io::stdout().is_terminal() { EvalFormat::Table } else { EvalFormat::Json });
    let Some(path) = probes else {
        if format == EvalFormat::Table {
            print(&format!("{} objects are right; no probes, nothing to judge\n", located.len()))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let ends = Ends::of(&inventory);
    let probes = probe::parse(&path.display().to_string(), &read(&path)?, &ends).map_err(|errors| BadInput::new(errors.join("\n")))?;
    let engine = Engine::new(&policies, inventory);
    for warning in warnings(engine.compiled()).into_iter().chain(labels.iter().flat_map(told_of_labels)) {
        // A closed standard error takes nothing from the verdicts.
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    let judge = |probe: Probe| Answer { verdict: engine.evaluate(&probe.flow), probe };
    let answers: Vec<Answer> = probes.into_iter().map(judge).collect();
    match format {
        EvalFormat::Json => print(&answer::json_lines(&answers)?)?,
        EvalFormat::Table => print(&answer::table(&answers))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What is in force, but perhaps not as meant.
fn warnings(compiled: &Compiled) -> Vec<String> {
    let missing = compiled.problems().iter().flat_map(|(policy, problems)| {
        problems.iter().map(move |problem| match problem {
            Problem::MissingAddressGroup(name) => {
                format!("{policy} names the AddressGroup {name}, which is not there: it is nobody for a rule that allows, everybody for one that denies")
            }
            Problem::UnknownPeer => format!("{policy} has a peer of a kind that is not known here: it allows nobody, or denies everybody"),
            Problem::SamePriority(other) => format!("{policy} and {other} have one priority in one tier: the first by kind and name goes first"),
        })
    });
    let contested = compiled.conflicts().iter().map(|(address, claimants)| {
        let claimants: Vec<String> = claimants.iter().map(ToString::to_string).collect();
        let other = if claimants.len() == 1 { " and a node" } else { "" };
        format!("the address {address} is claimed by {}{other}: it is nobody's peer", claimants.join(" and "))
    });
    missing.chain(contested).collect()
}

/// What was made of the labels of a workload, where it is not what somebody wrote.
fn told_of_labels((id, given): (&WorkloadId, &Given)) -> Vec<String> {
    let ignored = given.ignored.iter().map(|key| format!("{id} has the label {key} of its own, which is passed over: labels below {RESERVED_PREFIX} come from LabelRules only"));
    let contested = given.contested.iter().map(|(key, rules)| {
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        format!("{id} would get other values of the label {key} by LabelRule {}: the first rule by name goes first", rules.join(", "))
    });
    ignored.chain(contested).collect()
}

fn read(path: &Path) -> Result<String, BadInput> {
    let cannot = |cause: std::io::Error| BadInput::new(format!("{}: cannot be read: {cause}", path.display()));
    let mut text = String::new();
    let limit = MAX_BYTES + 1;
    let size = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text).map_err(cannot)?
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)).map_err(cannot)?
    };
    if u64::try_from(size).is_ok_and(|size| size > MAX_BYTES) {
        return Err(BadInput::new(format!("{}: has more than {MAX_BYTES} bytes; ask in parts", path.display())));
    }
    Ok(text)
}
