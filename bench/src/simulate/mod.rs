//! Thousands of agents as real clients against the real controller, with the changes of a made-up large company.
//!
//! The controller is a process of its own in a network namespace of its own; every agent has a connection of its own over its loopback
//! interface. Both ends share this machine's processors, and so do the figures: what the agents take is told beside what the controller takes.

mod agent;
pub(crate) mod company;
mod driver;
mod fleet;
mod outcome;

use crate::report::{Figure, Report};
use clap::Args;
use company::Size;
use driver::Driver;
use outcome::Outcome;
use std::path::PathBuf;
use std::process::ExitCode;

/// Agents, pods and changes of a simulation.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Agents, each with a connection of its own.
    #[arg(long, default_value_t = 5_000)]
    agents: u32,
    /// Pods on each node that the operators' API tells of.
    #[arg(long, default_value_t = 8)]
    pods: u32,
    /// Changes a second; one in a hundred concerns everybody, the others 20 nodes on average.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// For how many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// For how many seconds a tenth of the agents read nothing.
    #[arg(long, default_value_t = 60)]
    stall: u32,
    /// Where random numbers begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where everything that was counted and measured is written to as JSON.
    #[arg(long)]
    outcome: Option<PathBuf>,
}

/// What the part of `make bench` does: the sizes of the acceptance, the changes for a minute.
const BENCH: Options = Options { agents: 5_000, pods: 8, rate: 100, seconds: 60, stall: 60, seed: 1, outcome: None };

/// Adds the figures of row 6.
///
/// # Errors
/// Something did not come up, or did not converge.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let outcome = run(&BENCH)?;
    add(report, &outcome);
    Ok(())
}

/// `firebreak-bench simulate`.
pub(crate) fn command(options: &Options) -> ExitCode {
    let outcome = match run(options) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::default();
    add(&mut report, &outcome);
    println!("{}", report.table());
    if let Some(path) = &options.outcome
        && let Err(error) =
            serde_json::to_string_pretty(&outcome).map_err(anyhow::Error::from).and_then(|text| Ok(std::fs::write(path, text)?))
    {
        eprintln!("cannot write {}: {error:#}", path.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(options: &Options) -> anyhow::Result<Outcome> {
    let Options { agents, pods, rate, seconds, stall, seed, outcome: _ } = *options;
    let mut driver = Driver::start(Size { agents, pods, seed })?;
    driver.connect()?;
    driver.one_change_for_all()?;
    driver.churn(rate, seconds)?;
    driver.stall(rate, stall)?;
    driver.restart()?;
    driver.finish()
}

fn add(report: &mut Report, outcome: &Outcome) {
    let Outcome { size, pods, policies, load_ms, cold, one_change, churn, stall, restart, problems } = outcome;
    let scale = format!("{} agents, {pods} pods, {policies} policies", size.agents);
    let mb = |bytes: u64| crate::memory::megabytes(bytes);
    report.add(Figure::new(format!("all objects applied, {scale}"), *load_ms, "ms"));
    report.add(Figure::new("all connected and in sync, from the first connection (row 6)", cold.took_ms, "ms").at_most(30_000.0));
    report.add(Figure::new("  controller's processor time for it", cold.controller_cpu_ms, "ms"));
    report.add(Figure::new("  messages down", mb(cold.traffic.bytes_down), "MB"));
    report.add(Figure::new("  controller's resident memory then", mb(cold.resident), "MB").at_most(1_000.0));
    report.add(
        Figure::new("one change that concerns all to the last ack, worst of its rounds (row 6)", one_change.to_last_ack.max_ms, "ms")
            .at_most(1_000.0),
    );
    report.add(Figure::new("  the middle of them", one_change.to_last_ack.p50_ms, "ms"));
    report.add(Figure::new("  controller's processor time for one", one_change.controller_cpu_ms, "ms"));
    report.add(Figure::new("  messages down for one", mb(one_change.bytes_down), "MB"));
    let of = format!("{} changes at {}/s", churn.changes, churn.rate);
    report.add(Figure::new(format!("{of}: call to a node's ack, p99 of changes that concern few"), churn.few.p99_ms, "ms").at_most(50.0));
    report.add(Figure::new("  p50 of these", churn.few.p50_ms, "ms"));
    report.add(Figure::new("  call to a node's ack, p99 of changes that concern all", churn.all.p99_ms, "ms"));
    report.add(
        Figure::new("  the API's answer to a node's ack, p99 of changes that concern few", churn.accepted_few.p99_ms, "ms").at_most(50.0),
    );
    report.add(
        Figure::new("  the API's answer to a node's ack, p99 of changes that concern all", churn.accepted_all.p99_ms, "ms").at_most(50.0),
    );
    report.add(Figure::new("  p50 of these", churn.accepted_all.p50_ms, "ms"));
    report.add(Figure::new("  the call itself, p50", churn.call.p50_ms, "ms"));
    report.add(Figure::new("  the call itself, p99", churn.call.p99_ms, "ms"));
    report.add(Figure::new("  p99 over changes of the call to the last ack", churn.last_ack.p99_ms, "ms").at_most(50.0));
    report.add(Figure::new("  of a processor, the controller", churn.controller_cpu, ""));
    report.add(Figure::new("  of a processor, all agents together", churn.agents_cpu, ""));
    report.add(Figure::new("  on the loopback interface, with all headers", churn.wire_bytes_per_second / 1e6, "MB/s"));
    report.add(Figure::new("  controller's resident memory then", mb(churn.resident), "MB").at_most(1_000.0));
    report.add(
        Figure::new(format!("{} agents stall: the others' p99, changes that concern few", stall.stalled), stall.few.p99_ms, "ms")
            .at_most(50.0),
    );
    report.add(Figure::new("  controller's memory grew by", mb(stall.grew), "MB"));
    report.add(Figure::new("  the stalled ones in sync after", stall.converged_ms, "ms"));
    report.add(Figure::new("  generations that a stalled one took then, the most", f64::from(stall.most_generations), ""));
    report.add(Figure::new("controller killed and started: all in sync after (row 6)", restart.took_ms, "ms").at_most(30_000.0));
    report.add(Figure::new("  objects sent whole", restart.traffic.whole_objects as f64, "").at_most(0.0));
    report.add(Figure::new("  messages down", mb(restart.traffic.bytes_down), "MB"));
    report
        .add(Figure::new("changes without an ack, and other problems", (churn.lost + stall.lost + problems.len()) as f64, "").at_most(0.0));
}
