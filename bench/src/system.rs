//! The real binaries in a small lab: two nodes, a client on the one, a server on the other.

use crate::memory::{self, megabytes};
use crate::operator::Operator;
use crate::report::{Figure, Report};
use crate::simulate::company::{Company, Size};
use crate::stats::{median, percentile};
use crate::verdict::{Beacon, SPACING};
use crate::{flows, scratch};
use anyhow::{Context as _, ensure};
use firebreak_tests::lab::{Lab, Node, Topology, Workload};
use firebreak_tests::system::{Agent, Controller};
use firebreak_tests::wait;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PORT: u16 = 7_000;
const CHANGES: usize = 60;
/// Of row 2: as many changes, other changes a second, and what is loaded beside the lab.
const LOADED_CHANGES: usize = 2_000;
const LOADED_RATE: u32 = 100;
const LOADED: Size = Size { agents: 1_000, pods: 100, seed: 2 };
const LOADED_POLICIES: usize = 10_000;
const STARTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(20);
const WORKLOADS: [&str; 2] = ["bench/client", "bench/server"];

/// Adds the figures of the whole system.
///
/// # Errors
/// It does not come up, or a change is not seen.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let folder = scratch::folder()?;
    let mut system = System::start(folder.path())?;
    changes(report, &system, folder.path())?;
    flows::measure(report, &system.controller, &system.client, &system.server)?;
    idle(report, &mut system)?;
    starts(report, &mut system)
}

/// Adds row 2: the same changes with a large company loaded and changing, most of it on nodes whose agents are elsewhere.
///
/// # Errors
/// As [`measure`].
pub(crate) fn measure_loaded(report: &mut Report) -> anyhow::Result<()> {
    let folder = scratch::folder()?;
    let system = System::start(folder.path())?;
    let mut company = Company::new(LOADED);
    let mut operator = Operator::connect(&system.controller.socket())?;
    let objects = company.objects();
    let (pods, _, policies) = company.counts();
    operator.load(objects)?;
    operator.load(company.more_policies(LOADED_POLICIES.saturating_sub(policies)))?;
    let size = format!("{pods} workloads and {LOADED_POLICIES} policies loaded, {LOADED_RATE} other changes/s");
    let stop = AtomicBool::new(false);
    let socket = system.controller.socket();
    std::thread::scope(|scope| {
        let others = scope.spawn(|| others(&mut company, &socket, &stop));
        let measured = api_changes(report, &system, folder.path(), &size, LOADED_CHANGES);
        stop.store(true, Ordering::Relaxed);
        let made = others.join().map_err(|_| anyhow::anyhow!("the other changes broke off"))??;
        report.add(Figure::new("  other changes made meanwhile", f64::from(made), ""));
        measured
    })
}

/// Makes other changes at a rate until told to stop; gives how many.
fn others(company: &mut Company, socket: &Path, stop: &AtomicBool) -> anyhow::Result<u32> {
    let mut operator = Operator::connect(socket)?;
    let begun = Instant::now();
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        let change = company.change().context("the company has nobody")?;
        operator.apply_objects(vec![change.object])?;
        made += 1;
        // Late ones are made up for: the rate holds on average.
        std::thread::sleep((begun + Duration::from_secs(1) / LOADED_RATE * made).saturating_duration_since(Instant::now()));
    }
    Ok(made)
}

fn api_changes(report: &mut Report, system: &System, folder: &Path, size: &str, count: usize) -> anyhow::Result<()> {
    let beacon = Beacon::start(&system.client, &system.server, PORT)?;
    let [client, other] = files(system, folder)?;
    let mut operator = Operator::connect(&system.controller.socket())?;
    let (mut times, mut calls) = (Vec::new(), Vec::new());
    for number in 0..count {
        let allows = number % 2 == 0;
        let path = if allows { &client } else { &other };
        let change = || {
            let (begun, took) = operator.apply(path)?;
            calls.push(took);
            Ok(begun)
        };
        times.push(if allows { beacon.until_allowed(change)? } else { beacon.until_denied(change)? });
    }
    let name = format!(
        "label change at the operator API to the first packet decided otherwise on another node, {size}, {count} changes, +-{:.1} ms",
        SPACING.as_secs_f64() * 1e3
    );
    report.add(Figure::ms(format!("{name}, p50 (row 2)"), median(&times)).at_most(2.0));
    report.add(Figure::ms(format!("{name}, p99 (row 2)"), percentile(&times, 99)).at_most(10.0));
    // The answer waits until the change is published, so it parts the way in two.
    report.add(Figure::ms("  of that the call itself, p50", median(&calls)));
    report.add(Figure::ms("  of that the call itself, p99", percentile(&calls, 99)));
    let after: Vec<Duration> = times.iter().zip(&calls).map(|(time, call)| time.saturating_sub(*call)).collect();
    report.add(Figure::ms("  from the answer to the packet, p50", median(&after)));
    report.add(Figure::ms("  from the answer to the packet, p99", percentile(&after, 99)));
    Ok(())
}

struct System {
    agents: Vec<Agent>,
    controller: Controller,
    client: Workload,
    server: Workload,
    client_node: Node,
    _server_node: Node,
    lab: Lab,
}

impl System {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let prefix = scratch::prefix("s");
        let mut lab = Lab::new(&prefix)?;
        let mut client_node = lab.node("a", Topology::Bridged)?;
        let mut server_node = lab.node("b", Topology::Routed)?;
        lab.connect(&[&client_node, &server_node])?;
        let client = client_node.workload(&format!("{prefix}-client"))?;
        let server = server_node.workload(&format!("{prefix}-server"))?;
        let controller = Controller::start(&lab.core, folder)?;
        let agents = vec![Agent::start(&client_node, "a", folder, &[])?, Agent::start(&server_node, "b", folder, &[])?];
        controller.apply(&format!(
            "{POLICY}---\n{}---\n{}",
            workload("client", "a", client.namespace.name(), "other"),
            workload("server", "b", server.namespace.name(), "server")
        ))?;
        controller.wait_enforced(&WORKLOADS, PATIENCE)?;
        Ok(Self { agents, controller, client, server, client_node, _server_node: server_node, lab })
    }
}

/// The server lets in `app: client` on one port; the client may send whatever it likes.
const POLICY: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: bench}\n---\n\
    apiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {name: server, namespace: bench}\nspec:\n  \
    appliesTo:\n    matchLabels: {app: server}\n  ingress:\n  - from:\n    - workloads:\n        matchLabels: {app: client}\n    \
    ports:\n    - {protocol: UDP, port: 7000}\n";

fn workload(name: &str, node: &str, namespace: &str, app: &str) -> String {
    format!(
        "apiVersion: firebreak.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: {name}\n  namespace: bench\n  labels: {{app: {app}}}\n\
         spec:\n  node: {node}\n  networkNamespace: {namespace}\n"
    )
}

/// How a change is made.
#[derive(Clone, Copy)]
enum Way {
    Api,
    Command,
}

/// The client's label is changed to and fro; the server's node must decide otherwise.
fn changes(report: &mut Report, system: &System, folder: &Path) -> anyhow::Result<()> {
    let beacon = Beacon::start(&system.client, &system.server, PORT)?;
    let [client, other] = files(system, folder)?;
    let mut operator = Operator::connect(&system.controller.socket())?;
    for (way, what) in [(Way::Api, "label change at the operator API"), (Way::Command, "label change by a firebreak apply process")] {
        let (mut times, mut calls) = (Vec::new(), Vec::new());
        for number in 0..CHANGES {
            let allows = number % 2 == 0;
            let path = if allows { &client } else { &other };
            let mut call = Duration::ZERO;
            let change = || -> anyhow::Result<Instant> {
                let (begun, took) = match way {
                    Way::Api => operator.apply(path)?,
                    Way::Command => command(&system.controller, path)?,
                };
                call = took;
                Ok(begun)
            };
            times.push(if allows { beacon.until_allowed(change)? } else { beacon.until_denied(change)? });
            calls.push(call);
        }
        let name = format!(
            "{what} to the first packet decided otherwise on another node, small lab, {CHANGES} changes, +-{:.1} ms",
            SPACING.as_secs_f64() * 1e3
        );
        let (p50, p99) = (Figure::ms(format!("{name}, p50"), median(&times)), Figure::ms(format!("{name}, p99"), percentile(&times, 99)));
        match way {
            Way::Api => {
                report.add(p50.named("row 2, Part 1's form").at_most(2.0));
                report.add(p99.named("row 2, Part 1's form").at_most(10.0));
            }
            Way::Command => {
                report.add(p50);
                report.add(p99);
            }
        }
        report.add(Figure::ms(format!("{what}: the call itself, p50"), median(&calls)));
    }
    Ok(())
}

/// The client's manifest with the label that is let in, and with another.
fn files(system: &System, folder: &Path) -> anyhow::Result<[PathBuf; 2]> {
    let file = |app: &str| -> anyhow::Result<PathBuf> {
        let path = folder.join(format!("client-{app}.yaml"));
        std::fs::write(&path, workload("client", "a", system.client.namespace.name(), app))?;
        Ok(path)
    };
    Ok([file("client")?, file("other")?])
}

/// From before the process is there to its end.
fn command(controller: &Controller, path: &Path) -> anyhow::Result<(Instant, Duration)> {
    let path = path.to_str().context("the temporary path is not UTF-8")?;
    let begun = Instant::now();
    controller.ask(&["apply", "-f", path, "--reason", "bench"])?;
    Ok((begun, begun.elapsed()))
}

fn idle(report: &mut Report, system: &mut System) -> anyhow::Result<()> {
    let agent = system.agents.last_mut().and_then(Agent::process).context("no agent runs")?.id().to_string();
    let controller = system.controller.process().context("no controller runs")?.id().to_string();
    let resident = |process: &str, field| memory::of_process(process, field).map(megabytes);
    let name = "agent resident memory after the changes and flows above, small lab (row 7, Part 1's form)";
    report.add(Figure::new(name, resident(&agent, "VmRSS")?, "MB").at_most(20.0));
    report.add(Figure::new("agent anonymous memory, of that", resident(&agent, "RssAnon")?, "MB"));
    report.add(Figure::new("controller resident memory, small lab", resident(&controller, "VmRSS")?, "MB"));
    Ok(())
}

fn starts(report: &mut Report, system: &mut System) -> anyhow::Result<()> {
    let mut fresh = Vec::new();
    for _ in 0..STARTS {
        let agent = system.agents.first_mut().context("no agent")?;
        agent.terminate()?;
        agent.uninstall(&system.client_node)?;
        wait::until("the client to be unenforced", PATIENCE, || {
            let listed = system.controller.ask_json(&["get", "workloads", "-n", "bench", "-o", "json"])?;
            let items = listed["items"].as_array().context("no items")?;
            let client = items.iter().find(|item| item["name"] == "client");
            ensure!(client.is_none_or(|client| client["enforced"] != true), "it still is");
            Ok(())
        })?;
        let begun = Instant::now();
        agent.start_again(&system.client_node)?;
        system.controller.wait_enforced(&WORKLOADS, PATIENCE)?;
        fresh.push(begun.elapsed());
    }
    report.add(Figure::ms(
        format!("agent start on a clean node to its workload enforced, as firebreak get shows it, median of {STARTS}"),
        median(&fresh),
    ));
    let mut ready = Vec::new();
    for _ in 0..STARTS {
        system.controller.kill()?;
        let begun = Instant::now();
        system.controller.start_again(&system.lab.core)?;
        ready.push(begun.elapsed());
    }
    let name = format!("controller start after kill -9 to its first answer to firebreak nodes, median of {STARTS}");
    report.add(Figure::ms(name, median(&ready)));
    Ok(())
}
