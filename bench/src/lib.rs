//! `make bench`: measures what is there on this machine, prints a table and writes `target/bench/summary.json`.
//!
//! Timings on shared machines are noisy: what is compared is measured in turn within one run, and each name says how often.
#![forbid(unsafe_code)]

mod connect;
mod dataplane;
mod eval;
mod flow_rate;
mod flows;
mod follower;
mod index;
mod members;
mod memory;
mod operator;
mod peer;
mod policy;
mod report;
mod scratch;
mod simulate;
mod stats;
mod system;
mod verdict;
mod world;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use report::Report;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Measures Firebreak. Needs root (network namespaces) and the release binaries beside this one.
#[derive(Parser)]
struct Arguments {
    /// Which parts, all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Where the figures are written to as JSON.
    #[arg(long, default_value = "target/bench/summary.json")]
    summary: PathBuf,
    #[command(subcommand)]
    inner: Option<Inner>,
}

#[derive(Subcommand)]
enum Inner {
    /// Thousands of agents at one controller, with the changes of a large company.
    Simulate(simulate::Options),
    /// Compiles in a process of its own and prints how many bytes that took at the peak.
    #[command(hide = true)]
    CompileMemory {
        /// How many workloads.
        workloads: usize,
        /// How many policies.
        policies: usize,
    },
    /// Makes an index in a process of its own and prints by how many bytes that grew, now and at the peak.
    #[command(hide = true)]
    IndexMemory {
        /// `small-namespaces` or `all-match`.
        shape: String,
    },
    /// Loads remote members into an agent in a process of its own and prints by how many bytes it and the kernel grew.
    #[command(hide = true)]
    MemberMemory {
        /// How many local workloads.
        locals: u32,
        /// How many segments.
        segments: u32,
        /// How many groups.
        groups: u32,
        /// How many members each.
        members: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Compile, flatten, evaluate.
    Policy,
    /// The incremental index at the size of a large company.
    Index,
    /// Set contents into the kernel.
    Dataplane,
    /// One member through the agent, and memory.
    Members,
    /// What a packet pays.
    Connect,
    /// Of it, what everything costs against conntrack alone.
    Costs,
    /// Of it, what a hit in each kind of set costs.
    Hits,
    /// What a denied packet pays.
    Denied,
    /// The real binaries, end to end.
    System,
    /// The same with a large company loaded and changing.
    Loaded,
    /// Flow records into the controller.
    Flows,
    /// `firebreak eval`.
    Eval,
    /// Memory of an idle agent.
    Memory,
    /// 5,000 agents at one controller.
    Simulate,
}

/// Whose allocator the process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocator {
    /// That of the agent.
    Agents,
    /// That of the controller.
    Controllers,
}

impl Part {
    /// Whether what is measured in this process is the controller's.
    fn is_controllers(self) -> bool {
        match self {
            Self::Policy | Self::Index => true,
            Self::Dataplane
            | Self::Members
            | Self::Connect
            | Self::Costs
            | Self::Hits
            | Self::Denied
            | Self::System
            | Self::Loaded
            | Self::Flows
            | Self::Eval
            | Self::Memory
            | Self::Simulate => false,
        }
    }
}

/// The program that measures what is the controller's, beside this one.
const OF_CONTROLLER: &str = "firebreak-bench-controller";

/// Measures a part in the program that has the controller's allocator.
fn with_controllers_allocator(part: Part, report: &mut Report) -> anyhow::Result<()> {
    let program = std::env::current_exe()?.with_file_name(OF_CONTROLLER);
    let name = part.to_possible_value().context("a part without a name")?;
    let summary = tempfile::NamedTempFile::new()?;
    let mut child = Command::new(&program);
    child.args(["--only", name.get_name(), "--summary"]).arg(summary.path()).stdout(Stdio::null());
    let status = child.status().with_context(|| format!("cannot run {}", program.display()))?;
    report.extend_from(summary.path())?;
    ensure!(status.success(), "{OF_CONTROLLER} ended with {status}");
    Ok(())
}

/// Runs what the command line asks for, in a process with this allocator.
pub fn run(allocator: Allocator) -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.inner {
        Some(Inner::CompileMemory { workloads, policies }) => return memory::child(workloads, policies),
        Some(Inner::IndexMemory { shape }) => return index::child(&shape),
        Some(Inner::MemberMemory { locals, segments, groups, members }) => {
            return members::child(members::Size { locals, segments, groups, members });
        }
        Some(Inner::Simulate(options)) => return simulate::command(&options),
        None => {}
    }
    let parts = if arguments.only.is_empty() {
        Part::value_variants().iter().copied().filter(|part| !matches!(part, Part::Costs | Part::Hits)).collect()
    } else {
        arguments.only
    };
    let mut report = Report::default();
    let mut whole = true;
    for part in parts {
        let begun = Instant::now();
        let outcome = match part {
            part if part.is_controllers() && allocator != Allocator::Controllers => with_controllers_allocator(part, &mut report),
            Part::Policy => policy::measure(&mut report),
            Part::Index => index::measure(&mut report),
            Part::Dataplane => dataplane::measure(&mut report),
            Part::Members => members::measure(&mut report),
            Part::Connect => connect::measure(&mut report),
            Part::Costs => connect::measure_costs(&mut report),
            Part::Hits => connect::measure_hits(&mut report),
            Part::Denied => connect::measure_denied(&mut report),
            Part::System => system::measure(&mut report),
            Part::Loaded => system::measure_loaded(&mut report),
            Part::Flows => flow_rate::measure(&mut report),
            Part::Eval => eval::measure(&mut report),
            Part::Memory => memory::measure(&mut report),
            Part::Simulate => simulate::measure(&mut report),
        };
        eprintln!("{part:?}: {:.0} s", begun.elapsed().as_secs_f64());
        if let Err(error) = outcome {
            eprintln!("{part:?} broke off: {error:#}");
            whole = false;
        }
    }
    println!("{}", report.table());
    match report.write(&arguments.summary) {
        Ok(()) if whole => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
