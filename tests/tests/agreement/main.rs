//! Random policies, applied to the real controller and agents: what the kernel does with real packets is what the reference evaluator says.
//!
//! `FIREBREAK_SEED` repeats a run (set n of a run with seed s is the first of a run with seed s + n), `FIREBREAK_SCALE=full` does more sets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod random;

use anyhow::Context as _;
use firebreak_manifest::{Object, parse_str};
use firebreak_policy::model::{Endpoint, Family, Inventory, Labels, Node, NodeName, PolicySet, Protocol, Transport};
use firebreak_policy::reference::{Reference, Verdict};
use firebreak_tests::probe::Kind;
use firebreak_tests::site::Site;
use firebreak_tests::volley::{Shot, volleys};
use random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

/// How long the answer to a probe is waited for that the reference allows, and that it denies.
const ALLOWED_PATIENCE: Duration = Duration::from_secs(4);
const DENIED_PATIENCE: Duration = Duration::from_millis(150);

const NODES: [&str; 2] = ["bridged", "routed"];
const WORKLOADS: [(&str, &str, &str, &str); 6] = [
    ("bridged", "a/web", "app: web, tier: \"1\"", "{name: http, port: 80}, {name: dns, protocol: UDP, port: 53}"),
    ("bridged", "a/db", "app: db", "{name: http, port: 81}, {name: dns, protocol: SCTP, port: 81}"),
    ("bridged", "b/web", "app: web", "{name: http, port: 443}"),
    ("routed", "a/api", "app: api, tier: \"2\"", "{name: http, port: 81}, {name: dns, protocol: UDP, port: 81}"),
    ("routed", "b/db", "app: db, tier: \"1\"", "{name: http, port: 80}, {name: http, protocol: SCTP, port: 80}"),
    // No labels, in a namespace that nobody declared, without named ports.
    ("routed", "c/lone", "", ""),
];
const NAMESPACES: &str = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {team: x}}\n\
    ---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b, labels: {team: y, dev: \"\"}}\n";
const KINDS: [Kind; 8] =
    [Kind::Tcp(80), Kind::Tcp(81), Kind::Tcp(443), Kind::Udp(53), Kind::Udp(81), Kind::Ping, Kind::Sctp(80), Kind::Sctp(81)];

/// One probe and its two real ends.
#[derive(Clone, Copy, Debug)]
struct Probe {
    from: &'static str,
    to: &'static str,
    source: IpAddr,
    destination: IpAddr,
    kind: Kind,
}

impl Probe {
    fn transport(&self) -> Transport {
        match self.kind {
            Kind::Tcp(port) => Transport::Port(Protocol::TCP, port),
            Kind::Udp(port) => Transport::Port(Protocol::UDP, port),
            Kind::Sctp(port) => Transport::Port(Protocol::SCTP, port),
            Kind::Ping => Transport::ping(Family::of(self.destination)),
        }
    }
}

#[test]
fn the_kernel_decides_as_the_reference_does() -> anyhow::Result<()> {
    agree("g", &[], firebreak_tests::scaled(50, 500), random::policy_set)
}

/// Small groups are multiplied out otherwise.
#[test]
fn the_kernel_decides_as_the_reference_does_where_every_group_is_shared() -> anyhow::Result<()> {
    agree("h", &["--shared-from", "0"], firebreak_tests::scaled(25, 500), random::policy_set)
}

#[test]
fn the_kernel_decides_as_the_reference_does_with_tiers() -> anyhow::Result<()> {
    agree("t", &[], firebreak_tests::scaled(50, 500), random::tiered_set)
}

/// Makes the objects of a policy set, with blocks around these addresses.
type Maker = fn(&mut Random, &[IpAddr]) -> Vec<serde_json::Value>;

/// Random policies on a site of its own, whose agents have these arguments besides.
fn agree(tag: &str, arguments: &[&str], sets: usize, make: Maker) -> anyhow::Result<()> {
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most)?;
    let seed = seed()?;
    println!("seed {seed}, {sets} policy sets");
    let (site, inventory) = lab(tag, arguments)?;
    let probes = probes(&site)?;
    let addresses: Vec<IpAddr> = probes.iter().map(|probe| probe.destination).collect::<BTreeSet<_>>().into_iter().collect();
    let begun = Instant::now();
    let open = fire(&site, &probes, |_| true)?;
    let closed: Vec<&Probe> = probes.iter().zip(open).filter(|(_, seen)| !seen).map(|(probe, _)| probe).collect();
    assert!(closed.is_empty(), "without policy every probe passes, but: {closed:#?}");
    let (mut allowed, mut denied) = (0_usize, 0_usize);
    let mut applied = BTreeMap::new();
    for number in 0..sets {
        let set_seed = seed.wrapping_add(u64::try_from(number)?);
        let objects = parsed(&make(&mut Random::new(set_seed), &addresses))?;
        apply(&site, &mut applied, &objects)?;
        let (policies, _) = firebreak_manifest::build(objects.iter())?;
        let expected = verdicts(&policies, &inventory, &probes)?;
        let seen = fire(&site, &probes, |at| expected[at])?;
        let wrong: Vec<usize> = (0..probes.len()).filter(|at| expected[*at] != seen[*at]).collect();
        assert!(wrong.is_empty(), "{}", disagreement(&site, set_seed, &objects, &probes, &expected, &wrong)?);
        allowed += seen.iter().filter(|seen| **seen).count();
        denied += seen.iter().filter(|seen| !**seen).count();
    }
    println!("{sets} sets, {allowed} probes allowed and {denied} denied by both, in {:.1} s", begun.elapsed().as_secs_f64());
    let all = allowed + denied;
    assert!(allowed * 5 > all && denied * 5 > all, "policies that allow nearly everything or nothing show little");
    Ok(())
}

fn seed() -> anyhow::Result<u64> {
    match std::env::var("FIREBREAK_SEED") {
        Ok(seed) => seed.parse().with_context(|| format!("FIREBREAK_SEED={seed} is no number")),
        Err(_) => Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs()),
    }
}

/// The installation, and what runs there as the reference is told of it: not from the controller, but from what the lab was made to be.
fn lab(tag: &str, arguments: &[&str]) -> anyhow::Result<(Site, Inventory)> {
    let mut site = Site::with_two_nodes(tag)?;
    let mut manifests = NAMESPACES.to_owned();
    let mut told = NAMESPACES.to_owned();
    for (node, name, labels, ports) in WORKLOADS {
        let ports = if ports.is_empty() { String::new() } else { format!("ports: [{ports}]") };
        manifests += &site.workload(node, name, labels, &ports)?;
        let addresses = site.addresses(name)?.map(|address| format!("\"{address}\"")).join(", ");
        let separator = if ports.is_empty() { "" } else { ", " };
        told += &site.manifest(node, name, labels, &format!("addresses: [{addresses}]{separator}{ports}"))?;
    }
    site.start_with(&manifests, arguments)?;
    let objects: Vec<Object> = parse_str("told", &told)?.into_iter().map(|located| located.object).collect();
    let (_, mut inventory) = firebreak_manifest::build(objects.iter())?;
    for (name, bridge) in NODES.into_iter().zip(["10.50.1.254 fd50:1::fe", "10.50.2.254"]) {
        let bridge = bridge.split(' ').map(str::parse).collect::<Result<Vec<IpAddr>, _>>()?;
        let addresses = site.addresses(name)?.into_iter().chain(bridge).collect();
        let name = NodeName::new(name);
        inventory.nodes.insert(name.clone(), Node { name, labels: Labels::default(), addresses });
    }
    Ok((site, inventory))
}

/// Every ordered pair of workloads, each node to every workload and back; every kind, both families.
fn probes(site: &Site) -> anyhow::Result<Vec<Probe>> {
    let ends: Vec<&'static str> = WORKLOADS.iter().map(|(_, name, _, _)| *name).chain(NODES).collect();
    let is_node = |end: &str| NODES.contains(&end);
    let mut probes = Vec::new();
    for from in &ends {
        for to in ends.iter().filter(|to| *to != from && !(is_node(to) && is_node(from))) {
            for destination in site.addresses(to)? {
                let source = site.namespace(from)?.run(move || source(destination))??;
                // A node answers UDP from another of its addresses than was asked: no verdict, but no answer either.
                let kinds = KINDS.into_iter().filter(|kind| !(is_node(to) && matches!(kind, Kind::Udp(_))));
                probes.extend(kinds.map(|kind| Probe { from, to, source, destination, kind }));
            }
        }
    }
    Ok(probes)
}

/// The address that the kernel sends from.
fn source(destination: IpAddr) -> anyhow::Result<IpAddr> {
    let any = if destination.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(SocketAddr::new(destination, 9))?;
    Ok(socket.local_addr()?.ip())
}

fn fire(site: &Site, probes: &[Probe], expected: impl Fn(usize) -> bool) -> anyhow::Result<Vec<bool>> {
    let mut volley: BTreeMap<&str, (Vec<usize>, Vec<Shot>)> = BTreeMap::new();
    for (at, probe) in probes.iter().enumerate() {
        let patience = if expected(at) { ALLOWED_PATIENCE } else { DENIED_PATIENCE };
        let (places, shots) = volley.entry(probe.from).or_default();
        places.push(at);
        shots.push(Shot { to: probe.destination, kind: probe.kind, patience });
    }
    let shots = volley.iter().map(|(from, (_, shots))| Ok((site.namespace(from)?, shots.clone()))).collect::<anyhow::Result<_>>()?;
    let mut seen = vec![false; probes.len()];
    for ((places, _), answers) in volley.values().zip(volleys(shots)?) {
        for (at, answer) in places.iter().zip(answers) {
            seen[*at] = answer;
        }
    }
    Ok(seen)
}

fn parsed(set: &[serde_json::Value]) -> anyhow::Result<Vec<Object>> {
    let text: String = set.iter().map(|object| format!("---\n{object}\n")).collect();
    let objects = parse_str("random", &text).map_err(|errors| anyhow::anyhow!("{errors}\n{text}"))?;
    Ok(objects.into_iter().map(|located| located.object).collect())
}

fn yaml(objects: &[Object]) -> String {
    objects.iter().map(|object| format!("---\n{}", object.to_yaml())).collect()
}

/// Makes these the only policies and groups, and waits until both nodes enforce them.
fn apply(site: &Site, applied: &mut BTreeMap<String, Object>, objects: &[Object]) -> anyhow::Result<()> {
    let wanted: BTreeMap<String, Object> = objects.iter().map(|object| (object.key().to_string(), object.clone())).collect();
    let stale: Vec<Object> = applied.iter().filter(|(key, _)| !wanted.contains_key(*key)).map(|(_, object)| object.clone()).collect();
    if !stale.is_empty() {
        site.delete(&yaml(&stale))?;
    }
    site.controller.apply(&yaml(objects))?;
    *applied = wanted;
    Ok(())
}

fn verdicts(policies: &PolicySet, inventory: &Inventory, probes: &[Probe]) -> anyhow::Result<Vec<bool>> {
    let reference = Reference { policies, inventory };
    let verdict = |probe: &Probe| {
        let (from, to) = (Endpoint::Address(probe.source), Endpoint::Address(probe.destination));
        let Verdict { egress, ingress } = reference.flow(&from, &to, probe.transport()).context("both ends have one family")?;
        // Where no workload judges, nobody denies.
        Ok(egress != Some(false) && ingress != Some(false))
    };
    probes.iter().map(verdict).collect()
}

/// Everything that is needed to see who is wrong.
fn disagreement(
    site: &Site,
    seed: u64,
    objects: &[Object],
    probes: &[Probe],
    expected: &[bool],
    wrong: &[usize],
) -> anyhow::Result<String> {
    let patient: Vec<Probe> = wrong.iter().map(|at| probes[*at]).collect();
    let again = fire(site, &patient, |_| true)?;
    let mut text = format!("seed {seed}: {} of {} probes disagree\n{}", wrong.len(), probes.len(), yaml(objects));
    let word = |allowed: bool| if allowed { "allow" } else { "deny" };
    for (at, again) in wrong.iter().zip(again) {
        let Probe { from, to, source, destination, kind } = probes[*at];
        let (reference, kernel) = (word(expected[*at]), word(!expected[*at]));
        writeln!(
            text,
            "{from} ({source}) -> {to} ({destination}) {kind}: reference {reference}, kernel {kernel}, asked again {}",
            word(again)
        )?;
    }
    Ok(text)
}
