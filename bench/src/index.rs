//! The incremental index at the size of a large company: made from nothing, and then event by event.
//!
//! The large shape is the one that Antrea publishes for its controller (`TestInitXLargeScaleWithSmallNamespaces`: 25,000 namespaces of four pods
//! and three policies over 1,000 nodes). The other is 10,000 workloads of one application, each selected by 10,000 policies.

use crate::memory;
use crate::report::{Figure, Report};
use crate::stats::{median, percentile, timed};
use anyhow::{Context as _, ensure};
use firebreak_policy::index::Index;
use firebreak_policy::model::{
    Action, Answer, CidrBlock, HostAccess, LabelSelector, Labels, Mode, Namespace, NamespaceScope, NetworkAddress, NetworkName, Node,
    NodeName, Peer, Peers, Policy, PolicyKey, PolicyKind, Rule, Services, Subject, Tier, TieredPolicy, TieredRule, Workload, WorkloadId,
    WorkloadSource,
};
use firebreak_proto::hash::{Hashes, commit_hash};
use ipnet::{IpNet, Ipv4Net};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

const NODES: u32 = 1_000;
const SPACES: usize = 25_000;
/// Namespaces that a policy of a tier is about: 1,000 workloads.
const TOGETHER: usize = 250;
const EVENTS: usize = 4_000;

/// The parsed objects.
#[derive(Default)]
struct World {
    namespaces: Vec<Namespace>,
    nodes: Vec<Arc<Node>>,
    workloads: Vec<Arc<Workload>>,
    policies: Vec<Arc<Policy>>,
}

/// Adds the figures of the index.
///
/// # Errors
/// What was made is not what was meant.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let size = format!("{SPACES} namespaces, {} pods, {} policies, {NODES} nodes", SPACES * 4, SPACES * 3);
    let world = small_namespaces(SPACES);
    let (index, took) = made(&world, 5)?;
    report.add(Figure::ms(format!("index from nothing, {size}, every object and its hash, median of 5 (row 3)"), took).at_most(1e3));
    memory_of(report, "small-namespaces", &size, Some(300.0))?;
    events(report, &world, index, &size)?;
    drop(world);
    let size = "10000 workloads x 10000 policies that all match, 1000 nodes";
    let (_, took) = made(&all_match(10_000), 5)?;
    report.add(Figure::ms(format!("index from nothing, {size}, median of 5 (row 3)"), took).at_most(1e3));
    memory_of(report, "all-match", size, None)
}

fn memory_of(report: &mut Report, shape: &str, size: &str, goal: Option<f64>) -> anyhow::Result<()> {
    let child = Command::new(std::env::current_exe()?).args(["index-memory", shape]).output().context("cannot run index-memory")?;
    ensure!(child.status.success(), "index-memory: {}", String::from_utf8_lossy(&child.stderr));
    let text = String::from_utf8(child.stdout)?;
    let bytes: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().context("index-memory printed no numbers")?;
    let [resident, peak] = bytes.as_slice() else { anyhow::bail!("index-memory printed {text:?}") };
    let figure = Figure::new(format!("resident memory of the index, {size} (row 3)"), memory::megabytes(*resident), "MB");
    report.add(match goal {
        Some(goal) => figure.at_most(goal),
        None => figure,
    });
    report.add(Figure::new(format!("its peak while it is made, {size}"), memory::megabytes(*peak), "MB"));
    Ok(())
}

/// Makes an index in a process of its own and prints by how many bytes that process grew, now and at the peak.
pub(crate) fn child(shape: &str) -> ExitCode {
    let measure = || -> anyhow::Result<(u64, u64)> {
        let world = if shape == "all-match" { all_match(10_000) } else { small_namespaces(SPACES) };
        let before = memory::of_process("self", "VmRSS")?;
        let index = black_box(make(&world));
        let (resident, peak) = (memory::of_process("self", "VmRSS")?, memory::of_process("self", "VmHWM")?);
        ensure!(index.nodes().count() > 0, "nothing was made");
        Ok((resident.saturating_sub(before), peak.saturating_sub(before)))
    };
    match measure() {
        Ok((resident, peak)) => {
            println!("{resident} {peak}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn make(world: &World) -> Index<Hashes> {
    let mut index = Index::default();
    world.namespaces.iter().for_each(|it| index.put_namespace(it));
    world.nodes.iter().for_each(|it| index.put_node(Arc::clone(it)));
    world.workloads.iter().for_each(|it| index.put_workload(Arc::clone(it)));
    world.policies.iter().for_each(|it| index.put_policy(Arc::clone(it)));
    index.settle();
    index
}

fn made(world: &World, rounds: usize) -> anyhow::Result<(Index<Hashes>, Duration)> {
    let mut times = Vec::with_capacity(rounds);
    let mut index = Index::default();
    for _ in 0..rounds {
        drop(std::mem::take(&mut index));
        let took;
        (index, took) = timed(|| make(world));
        times.push(took);
    }
    ensure!(index.nodes().count() == NODES as usize, "{} nodes", index.nodes().count());
    ensure!(
        index.nodes().map(|(_, holding)| holding.state.endpoints.len()).sum::<usize>() == world.workloads.len(),
        "workloads are missing"
    );
    Ok((index, median(&times)))
}

/// One workload comes, goes, gets other labels; each time until the nodes that it concerns have their new state with its hashes.
fn events(report: &mut Report, world: &World, mut index: Index<Hashes>, size: &str) -> anyhow::Result<()> {
    let settled = |index: &mut Index<Hashes>, event: &mut dyn FnMut(&mut Index<Hashes>)| -> anyhow::Result<Duration> {
        let (changed, took) = timed(|| {
            event(index);
            index.settle();
            index.take_changed()
        });
        ensure!(!changed.is_empty(), "an event changed nothing");
        Ok(took)
    };
    index.take_changed();
    let (mut come, mut gone, mut relabelled, mut hashed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..EVENTS {
        let like = &world.workloads[number * 7_919 % world.workloads.len()];
        let fresh = Arc::new(Workload { labels: like.labels.clone(), ..workload(1_000_000 + number, like.namespace.as_str(), "new", &[]) });
        come.push(settled(&mut index, &mut |index| index.put_workload(Arc::clone(&fresh)))?);
        gone.push(settled(&mut index, &mut |index| index.remove_workload(&fresh.id))?);
        let other = if like.labels.get("app-1").is_some() { ("app-2", "scale-2") } else { ("app-1", "scale-1") };
        let other = Arc::new(Workload { labels: [other].into_iter().collect(), ..(**like).clone() });
        relabelled.push(settled(&mut index, &mut |index| index.put_workload(Arc::clone(&other)))?);
        let node = index.node(&like.id.node).context("no such node")?;
        hashed.push(timed(|| black_box(commit_hash(node.objects.iter()))).1);
        relabelled.push(settled(&mut index, &mut |index| index.put_workload(Arc::clone(like)))?);
    }
    for (what, times) in [("comes", come), ("goes", gone), ("gets other labels", relabelled)] {
        let name = format!("a workload {what}, in the index, {size}, {} times", times.len());
        report.add(Figure::us(format!("{name}, p50 (row 4)"), percentile(&times, 50)).at_most(20.0));
        report.add(Figure::us(format!("{name}, p99 (row 4)"), percentile(&times, 99)).at_most(200.0));
    }
    report.add(Figure::us("beside it, the hash over all objects of one node, p50".to_owned(), percentile(&hashed, 50)));
    let (mut come, mut gone) = (Vec::new(), Vec::new());
    for number in 0..40 {
        let policy = Arc::new(tiered(number));
        come.push(settled(&mut index, &mut |index| index.put_tiered(Arc::clone(&policy)))?);
        gone.push(settled(&mut index, &mut |index| index.remove_tiered(&policy.key))?);
    }
    let name = format!("a policy that selects 1000 workloads of {TOGETHER} namespaces");
    report.add(Figure::ms(format!("{name} comes, {size}, median of 40 (row 4)"), median(&come)).at_most(5.0));
    report.add(Figure::ms(format!("{name} goes, {size}, median of 40"), median(&gone)));
    Ok(())
}

fn tiered(number: usize) -> TieredPolicy {
    let block = CidrBlock { cidr: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24)), except: Vec::new() };
    let group = format!("g{}", number % (SPACES / TOGETHER));
    TieredPolicy {
        key: PolicyKey::cluster_scoped(PolicyKind::ClusterSegmentPolicy, format!("tier-{number}")),
        tier: Tier::Admin,
        priority: 10,
        mode: Mode::Enforce,
        subject: Subject { namespaces: selector("group", &group), workloads: LabelSelector::everything() },
        ingress: vec![TieredRule {
            name: None,
            action: Action::Deny(Answer::Drop),
            peers: Peers::Only(vec![Peer::Cidr(block)]),
            services: Services::Any,
            reason: None,
        }],
        egress: Vec::new(),
    }
}

fn small_namespaces(spaces: usize) -> World {
    let mut world = World { nodes: nodes(), ..World::default() };
    for space in 0..spaces {
        let name = format!("ns{space:06}");
        let labels = [("app", name.clone()), ("group", format!("g{}", space / TOGETHER))].into_iter().collect();
        world.namespaces.push(Namespace { name: name.as_str().into(), labels });
        world.policies.push(policy(&name, "default-deny-all", LabelSelector::everything(), None));
        for (policy_name, key, value) in [("np-1", "app-1", "scale-1"), ("np-2", "app-2", "scale-2")] {
            world.policies.push(policy(&name, policy_name, selector(key, value), Some(selector(key, value))));
        }
        for (pod, (key, value)) in
            [("app-1", "scale-1"), ("app-1", "scale-1"), ("app-2", "scale-2"), ("app-2", "scale-2")].into_iter().enumerate()
        {
            world.workloads.push(Arc::new(workload(space * 4 + pod, &name, &format!("pod{}", pod + 1), &[(key, value)])));
        }
    }
    world
}

fn all_match(size: usize) -> World {
    let mut world = World { nodes: nodes(), ..World::default() };
    world.namespaces.push(Namespace { name: "one".into(), labels: Labels::default() });
    for number in 0..size {
        let all = || selector("app-1", "scale-1");
        world.policies.push(policy("one", &format!("np-{number:05}"), all(), Some(all())));
        // With an application of their own they would be as many segments, of 10,000 policies each.
        world.workloads.push(Arc::new(workload(number, "one", &format!("pod{number}"), &[("app", "web"), ("app-1", "scale-1")])));
    }
    world
}

fn nodes() -> Vec<Arc<Node>> {
    let node = |number: u32| Node {
        name: node_name(number as usize),
        labels: Labels::default(),
        addresses: vec![IpAddr::V4(Ipv4Addr::from_bits(0xc0a8_0000 + number))],
    };
    (0..NODES).map(node).map(Arc::new).collect()
}

fn node_name(number: usize) -> NodeName {
    NodeName::from(format!("node-{number}"))
}

fn workload(number: usize, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Workload {
    let node = node_name(number.wrapping_mul(7_919) % NODES as usize);
    // The sizes that are asked for are far below the space of 10.0.0.0/8.
    let address = Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).unwrap_or(0));
    Workload {
        id: WorkloadId::new(node, format!("c{number}")),
        name: name.to_owned(),
        namespace: namespace.into(),
        labels: labels.iter().copied().collect(),
        addresses: vec![NetworkAddress { network: NetworkName::default_network(), address: address.into() }],
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        interface: None,
        host_network: false,
        terminated: false,
        source: WorkloadSource::Pod,
    }
}

fn policy(namespace: &str, name: &str, subject: LabelSelector, from: Option<LabelSelector>) -> Arc<Policy> {
    let rule = |workloads| Rule {
        name: None,
        peers: Peers::Only(vec![Peer::Workloads { namespaces: NamespaceScope::Own, workloads }]),
        services: Services::Any,
    };
    Arc::new(Policy {
        key: PolicyKey { kind: PolicyKind::NetworkPolicy, namespace: namespace.into(), name: name.to_owned() },
        mode: Mode::Enforce,
        subject,
        ingress: Some(from.map(rule).into_iter().collect()),
        egress: None,
        host_access: HostAccess::Allow,
    })
}

fn selector(key: &str, value: &str) -> LabelSelector {
    LabelSelector { match_labels: [(key.to_owned(), value.to_owned())].into(), ..LabelSelector::default() }
}
