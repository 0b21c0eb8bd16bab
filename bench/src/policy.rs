//! The pure core: compile, flatten, evaluate.

use crate::report::{Figure, Report};
use crate::stats::{median, percentile, timed};
use crate::{memory, world};
use anyhow::{Context as _, ensure};
use firebreak_policy::kernel_sets::KernelSets;
use firebreak_policy::model::{Endpoint, Flow, Inventory, Protocol, Transport, WorkloadId};
use firebreak_policy::{Compiled, Engine, compile, flatten};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

const POLICIES: usize = 1_000;

/// Adds the figures of the policy core.
///
/// # Errors
/// What was made is not what was meant.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    compiles(report, 1_000, 9)?;
    let (engine, flows) = compiles(report, 10_000, 5)?;
    evaluates(report, &engine, &flows)?;
    flattens(report)
}

fn compiles(report: &mut Report, workloads: usize, rounds: usize) -> anyhow::Result<(Engine, Vec<Flow>)> {
    let (policies, mut inventory) = world::cluster(workloads, POLICIES);
    let size = format!("{workloads} workloads x {POLICIES} policies, {} nodes", world::NODES);
    let mut whole = Vec::new();
    let mut after_change = Vec::new();
    let mut compiled = Compiled::default();
    for round in 0..rounds {
        let took;
        (compiled, took) = timed(|| compile(&policies, &inventory));
        whole.push(took);
        relabel(&mut inventory, round)?;
        let (changed, took) = timed(|| compile(&policies, &inventory));
        ensure!(changed != compiled, "a label changed and no node's state did");
        after_change.push(took);
    }
    let nodes = compiled.nodes().len();
    let goal = |figure: Figure| if workloads == 10_000 { figure.at_most(1e3) } else { figure };
    report.add(goal(Figure::ms(format!("full compile, {size}, median of {rounds} (row 3, Part 1's form)"), median(&whole))));
    report.add(Figure::us(format!("full compile per node, {size}"), median(&whole) / u32::try_from(nodes)?));
    report.add(Figure::ms(
        format!("recompile after one label change, {size}, median of {rounds} (Part 1 compiles all anew)"),
        median(&after_change),
    ));
    let peak = memory::megabytes(memory::of_compile(workloads, POLICIES)?);
    report.add(goal_memory(
        Figure::new(format!("peak resident memory of the compile, {size} (row 3, Part 1's form)"), peak, "MB"),
        workloads,
    ));
    let flows = flows(&inventory);
    Ok((Engine::of(Arc::new(compile(&policies, &inventory)), Arc::new(inventory)), flows))
}

fn goal_memory(figure: Figure, workloads: usize) -> Figure {
    if workloads == 10_000 { figure.at_most(300.0) } else { figure }
}

/// Gives one workload another app.
fn relabel(inventory: &mut Inventory, round: usize) -> anyhow::Result<()> {
    let workload = inventory.workloads.values_mut().nth(round * 13).context("no such workload")?;
    let app = workload.labels.0.get_mut("app").context("no app")?;
    *app = if app == "a0" { "a5".to_owned() } else { "a0".to_owned() };
    Ok(())
}

fn flows(inventory: &Inventory) -> Vec<Flow> {
    let ids: Vec<&WorkloadId> = inventory.workloads.keys().collect();
    let pick = |number: usize| Endpoint::Workload(ids[number % ids.len()].clone());
    let port = |number: usize| if number.is_multiple_of(2) { 8080 } else { 9090 };
    (0..20_000)
        .map(|number| Flow {
            from: pick(number * 7919),
            to: pick(number * 104_729 + 1),
            transport: Transport::Port(Protocol::TCP, port(number)),
        })
        .collect()
}

fn evaluates(report: &mut Report, engine: &Engine, flows: &[Flow]) -> anyhow::Result<()> {
    let mut times = Vec::with_capacity(flows.len());
    let mut allowed = 0_usize;
    for flow in flows {
        let (verdict, took) = timed(|| black_box(engine.evaluate(black_box(flow))));
        times.push(took);
        allowed += usize::from(verdict?.allowed());
    }
    let name = format!("evaluate one flow, 10000 workloads x 1000 policies, {} flows of which {allowed} allowed", flows.len());
    report.add(Figure::us(format!("{name}, p50"), percentile(&times, 50)));
    report.add(Figure::us(format!("{name}, p99"), percentile(&times, 99)));
    Ok(())
}

fn flattens(report: &mut Report) -> anyhow::Result<()> {
    for (state, expected, name) in [
        (world::heavy_node(), 200_000, "flatten a node of 200000 elements, 50 workloads x 4000 peers"),
        (world::node_with_blocks(10_000), 10_000, "flatten a node with an address group of 10000 CIDR blocks"),
    ] {
        let mut times: Vec<Duration> = Vec::new();
        let mut sets = KernelSets::default();
        for _ in 0..7 {
            let took;
            (sets, took) = timed(|| flatten(black_box(&state)));
            times.push(took);
        }
        let elements: usize = sets.sets.values().map(std::collections::BTreeMap::len).sum();
        ensure!((expected..expected + 1_000).contains(&elements), "{name}: {elements} elements");
        report.add(Figure::ms(format!("{name}, median of {}", times.len()), median(&times)));
    }
    Ok(())
}
