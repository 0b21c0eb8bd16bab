//! The engine, the kernel sets and the slow reference say the same: 16,000 random clusters, 160,000 at `FIREBREAK_SCALE=full`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_policy::arbitrary::{Vocabulary, clusters, inventories, strangers, tiered_clusters, transports};
use firebreak_policy::evaluate::{DirectionVerdict, PeerView, Reason};
use firebreak_policy::judge::{Fate, Path};
use firebreak_policy::kernel_sets::{Element, KernelSets};
use firebreak_policy::model::{
    Answer, Direction, Endpoint, Family, Flow, Inventory, Mode, NetworkAddress, NetworkName, NodeName, Peers, PolicySet, Rule, Services,
    Transport, Workload, WorkloadId,
};
use firebreak_policy::node_judge::NodeJudge;
use firebreak_policy::node_state::{CompiledPeers, GroupId, NodeState, SegmentId};
use firebreak_policy::reference::Reference;
use firebreak_policy::{Compiled, Engine, Limits, compile, flatten, flatten_with};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Runs a property over its share of the cases and says how many those were.
fn check<S: Strategy>(name: &str, cases: u32, strategy: S, property: impl Fn(S::Value) -> TestCaseResult) {
    let scale = match std::env::var("FIREBREAK_SCALE").as_deref() {
        Ok("full") => 10,
        Ok("ci") | Err(_) => 1,
        Ok(other) => panic!("FIREBREAK_SCALE is {other:?}, not ci or full"),
    };
    let config = Config { cases: cases * scale, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    if let Err(failure) = TestRunner::new(config).run(&strategy, property) {
        panic!("{name}: {failure}");
    }
    println!("{name}: {} cases agree", cases * scale);
}

fn some_transports() -> impl Strategy<Value = Vec<Transport>> {
    (vec(transports(Family::V4), 3), vec(transports(Family::V6), 2)).prop_map(|(v4, v6)| v4.into_iter().chain(v6).collect())
}

/// Everything multiplied out, everything shared as far as chains have room, and between.
fn limits() -> impl Strategy<Value = Limits> {
    (prop::sample::select(vec![0, 1, 2, 5, 4_096]), prop::sample::select(vec![0, 8, 16_384]), prop::sample::select(vec![0, 1, 2, 32]))
        .prop_map(|(pairs, elements, rules)| Limits { pairs, elements, rules })
}

#[test]
fn reference_engine_and_kernel_sets_agree_on_every_node() {
    agree_on_every_node("nodes", 6_000, clusters());
}

#[test]
fn they_agree_on_every_node_with_tiers_too() {
    agree_on_every_node("tiered nodes", 2_000, tiered_clusters());
}

fn agree_on_every_node(name: &str, cases: u32, clusters: impl Strategy<Value = (PolicySet, Inventory)>) {
    let judged = Cell::new((0_u64, 0_u64));
    check(name, cases, (clusters, some_transports(), limits()), |((policies, inventory), transports, limits)| {
        let compiled = compile(&policies, &inventory);
        for (name, state) in compiled.nodes() {
            let node = Node {
                name,
                reference: Reference { policies: &policies, inventory: &inventory },
                compiled: &compiled,
                sets: flatten_with(state, &limits),
                own: &state.addresses,
                judged: &judged,
            };
            disjoint(&node.sets)?;
            node.agrees(&transports)?;
        }
        Ok(())
    });
    let (allowed, denied) = judged.get();
    println!("{name}: {allowed} judgements allow, {denied} deny");
    // Clusters in which hardly anything is isolated, or hardly anything allowed, would show nothing.
    assert!(denied * 10 > allowed && allowed * 10 > denied, "{allowed} allowed, {denied} denied");
}

#[test]
fn reference_and_engine_agree_on_every_flow_between_named_ends() {
    let about_it = inventories().prop_flat_map(|inventory| (Vocabulary::of(&inventory).policy_sets(), Just(inventory)));
    check("flows", 2_000, (about_it, some_transports()), |((policies, inventory), transports)| {
        let engine = Engine::new(&policies, inventory);
        let inventory = engine.inventory();
        let reference = Reference { policies: &policies, inventory };
        let workloads = inventory.workloads.values().filter(|it| !it.terminated).map(|it| Endpoint::Workload(it.id.clone()));
        let known = inventory.workloads.values().flat_map(|it| &it.addresses).map(|at| Endpoint::Address(at.address));
        let ends: BTreeSet<Endpoint> = workloads.chain(known).chain(strangers().into_iter().take(3).map(Endpoint::Address)).collect();
        for (from, to) in ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to))) {
            for transport in &transports {
                let Some(expected) = reference.flow(from, to, *transport) else { continue };
                let verdict = engine.evaluate(&Flow { from: from.clone(), to: to.clone(), transport: *transport }).unwrap();
                let said = |it: Option<DirectionVerdict>| it.map(|it| it.allowed());
                prop_assert_eq!(
                    (said(verdict.egress), said(verdict.ingress)),
                    (expected.egress, expected.ingress),
                    "{:?} {:?} {}",
                    from,
                    to,
                    transport
                );
            }
        }
        Ok(())
    });
}

/// Asks every workload of every node about every peer.
fn each_judgement(
    compiled: &Compiled,
    inventory: &Inventory,
    transports: &[Transport],
    mut ask: impl FnMut(&NodeName, &WorkloadId, Direction, IpAddr, IpAddr, Transport) -> TestCaseResult,
) -> TestCaseResult {
    let everywhere = inventory.workloads.values().flat_map(|it| &it.addresses).map(|at| at.address);
    let nodes = inventory.nodes.values().flat_map(|it| it.addresses.iter().copied());
    let peers: BTreeSet<IpAddr> = everywhere.chain(nodes).chain(strangers()).collect();
    for (name, state) in compiled.nodes() {
        for endpoint in state.endpoints.values() {
            for local in &endpoint.addresses {
                for peer in peers.iter().filter(|it| it.is_ipv4() == local.is_ipv4()) {
                    for transport in transports.iter().filter(|it| suits(**it, *local)) {
                        for direction in [Direction::Ingress, Direction::Egress] {
                            ask(name, &endpoint.id, direction, *local, *peer, *transport)?;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn tiers_and_audit_agree_with_the_reference() {
    let judged = Cell::new((0_u64, 0_u64, 0_u64));
    check("tiers", 4_000, (tiered_clusters(), some_transports()), |((policies, inventory), transports)| {
        let compiled = compile(&policies, &inventory);
        let audited = policies.with_audit_enforced();
        let enforced = Reference { policies: &policies, inventory: &inventory };
        let audit = audited.as_ref().map(|policies| Reference { policies, inventory: &inventory });
        each_judgement(&compiled, &inventory, &transports, |node, id, direction, local, peer, transport| {
            // Where two claim the local address, the reference speaks for both at once.
            if enforced.local(node, local).count() != 1 {
                return Ok(());
            }
            let verdict = compiled.judge_end(id, direction, local, PeerView { address: peer, name: "peer" }, transport).unwrap();
            let expected = enforced.stage(node, direction, local, peer, transport).unwrap();
            prop_assert_eq!(verdict.allowed(), expected, "{} {:?} {} {} {}", id, direction, local, peer, transport);
            let expected_audit = audit.map_or(expected, |it| it.stage(node, direction, local, peer, transport).unwrap());
            let would = verdict.audit.as_ref().map_or(verdict.allowed(), |it| it.allowed());
            prop_assert_eq!(would, expected_audit, "audit: {} {:?} {} {} {}", id, direction, local, peer, transport);
            let (allowed, denied, differ) = judged.get();
            judged.set((allowed + u64::from(expected), denied + u64::from(!expected), differ + u64::from(expected != expected_audit)));
            Ok(())
        })
    });
    let (allowed, denied, differ) = judged.get();
    println!("tiers: {allowed} judgements allow, {denied} deny, {differ} differ in audit");
    assert!(
        denied * 10 > allowed && allowed * 10 > denied && differ * 200 > allowed,
        "{allowed} allowed, {denied} denied, {differ} differ"
    );
}

#[test]
fn an_audit_policy_changes_no_enforced_verdict() {
    check("audit", 2_000, (tiered_clusters(), some_transports()), |((policies, inventory), transports)| {
        let mut without = policies.clone();
        without.policies.retain(|_, it| it.mode == Mode::Enforce);
        without.tiered.retain(|_, it| it.mode == Mode::Enforce);
        let (compiled, bare) = (compile(&policies, &inventory), compile(&without, &inventory));
        each_judgement(&compiled, &inventory, &transports, |_, id, direction, local, peer, transport| {
            let view = PeerView { address: peer, name: "peer" };
            let with_audit = compiled.judge_end(id, direction, local, view, transport).unwrap();
            let reason = bare.judge_end(id, direction, local, view, transport).unwrap().reason;
            prop_assert_eq!(with_audit.reason, reason);
            Ok(())
        })
    });
}

#[test]
fn the_sets_answer_what_a_rule_denies_with_an_answer_and_nothing_else() {
    let judged = Cell::new((0_u64, 0_u64));
    check("answers", 1_500, (tiered_clusters(), some_transports(), limits()), |((policies, inventory), transports, limits)| {
        let compiled = compile(&policies, &inventory);
        let reference = Reference { policies: &policies, inventory: &inventory };
        let sets: BTreeMap<_, _> = compiled.nodes().iter().map(|(name, state)| (name, flatten_with(state, &limits))).collect();
        each_judgement(&compiled, &inventory, &transports, |node, id, direction, local, peer, transport| {
            let answers = sets[node].answers(direction, local, peer, transport);
            // What several claim is dropped in silence.
            if reference.local(node, local).count() != 1 {
                prop_assert!(!answers);
                return Ok(());
            }
            let verdict = compiled.judge_end(id, direction, local, PeerView { address: peer, name: "peer" }, transport).unwrap();
            // To itself is asked of nobody.
            if verdict.reason == Reason::ToItself {
                return Ok(());
            }
            let expected = matches!(verdict.reason, Reason::DeniedBy { answer: Answer::Reject, .. });
            prop_assert_eq!(answers, expected, "{} {:?} {} {} {}: {}", id, direction, local, peer, transport, verdict.reason);
            let (answered, silent) = judged.get();
            judged.set((answered + u64::from(answers), silent + u64::from(!verdict.allowed() && !answers)));
            Ok(())
        })
    });
    let (answered, silent) = judged.get();
    println!("answers: {answered} are answered, {silent} are dropped");
    assert!(answered * 20 > silent && silent * 20 > answered, "{answered} are answered, {silent} are dropped");
}

#[test]
fn a_nodes_state_is_judged_as_its_kernel_sets_are() {
    let judged = Cell::new((0_u64, 0_u64));
    let clusters = prop_oneof![2 => clusters(), 1 => tiered_clusters()];
    check("node judge", 1_500, (clusters, some_transports()), |((policies, inventory), transports)| {
        for state in compile(&policies, &inventory).nodes().values() {
            judged_alike(state, &transports, &judged)?;
        }
        Ok(())
    });
    let (passed, denied) = judged.get();
    println!("node judge: {passed} pass, {denied} are denied");
    assert!(denied * 20 > passed && passed * 20 > denied, "{passed} pass, {denied} are denied");
}

/// Every path, whether or not packets would take it between these ends: the two functions have no excuse to differ.
fn judged_alike(state: &NodeState, transports: &[Transport], judged: &Cell<(u64, u64)>) -> TestCaseResult {
    let (sets, judge) = (flatten(state), NodeJudge::new(Arc::new(state.clone())));
    let locals: BTreeSet<IpAddr> = state.endpoints.values().flat_map(|it| it.addresses.iter().copied()).collect();
    let others = state.addresses.iter().copied().chain(strangers().into_iter().take(4));
    let ends: BTreeSet<IpAddr> = locals.iter().copied().chain(others).collect();
    let published = state.endpoints.values().flat_map(|it| &it.published_ports).map(|it| Transport::Port(it.protocol, it.host_port));
    let transports: Vec<Transport> = transports.iter().copied().chain(published.take(3)).collect();
    for (one, other) in locals.iter().flat_map(|one| ends.iter().map(move |other| (*one, *other))) {
        for transport in transports.iter().filter(|it| suits(**it, one) && one.is_ipv4() == other.is_ipv4()) {
            for (source, destination) in [(one, other), (other, one)] {
                for path in [Path::Forwarded, Path::FromNode, Path::ToNode] {
                    let (by_sets, by_state) =
                        (sets.judge(path, source, destination, *transport), judge.judge(path, source, destination, *transport));
                    let (passed, denied) = judged.get();
                    let passes = u64::from(by_sets == Fate::Passed);
                    judged.set((passed + passes, denied + 1 - passes));
                    prop_assert_eq!(by_state, by_sets, "{:?} {} {} {}", path, source, destination, transport);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn what_has_no_order_has_no_effect_by_order() {
    check("orders", 1_000, (clusters(), any::<u64>()), |((policies, inventory), seed)| {
        let (shuffled_policies, shuffled_inventory) = shuffled(&policies, &inventory, seed);
        let (compiled, again) = (compile(&policies, &inventory), compile(&shuffled_policies, &shuffled_inventory));
        prop_assert_eq!(&compiled, &again);
        for (name, state) in compiled.nodes() {
            prop_assert_eq!(flatten(state), flatten(again.node(name).unwrap()));
        }
        Ok(())
    });
}

#[test]
fn ids_stay_when_members_come_and_go() {
    let newcomer = (0_usize..8, prop::sample::select(Vocabulary::small().labels));
    check("ids", 1_000, (clusters(), newcomer), |((policies, inventory), (like, label))| {
        let Some(model) = inventory.workloads.values().nth(like % inventory.workloads.len().max(1)).cloned() else { return Ok(()) };
        let mut grown = inventory.clone();
        let id = WorkloadId::new(model.id.node.clone(), "newcomer");
        let at = NetworkAddress { network: NetworkName::default_network(), address: "10.9.9.9".parse().unwrap() };
        let newcomer = Workload { id: id.clone(), addresses: vec![at], labels: [label].into_iter().collect(), ..model };
        grown.workloads.insert(id.clone(), newcomer);
        let (before, mut after) = (ids(&compile(&policies, &inventory)), ids(&compile(&policies, &grown)));
        after.remove(&id);
        prop_assert_eq!(before, after);
        Ok(())
    });
}

/// Each workload's segment and the groups that its rules name.
fn ids(compiled: &Compiled) -> BTreeMap<WorkloadId, (SegmentId, Vec<GroupId>)> {
    let mut ids = BTreeMap::new();
    for state in compiled.nodes().values() {
        for endpoint in state.endpoints.values() {
            let segment = &state.segments[&endpoint.segment];
            let groups = segment.rules.peers().flat_map(|peers| match peers {
                CompiledPeers::Any => Vec::new(),
                CompiledPeers::Groups(groups) => groups.clone(),
            });
            ids.insert(endpoint.id.clone(), (endpoint.segment.clone(), groups.collect()));
        }
    }
    ids
}

struct Node<'a> {
    name: &'a NodeName,
    reference: Reference<'a>,
    compiled: &'a Compiled,
    sets: KernelSets,
    own: &'a BTreeSet<IpAddr>,
    judged: &'a Cell<(u64, u64)>,
}

impl Node<'_> {
    fn agrees(&self, transports: &[Transport]) -> TestCaseResult {
        let workloads = &self.reference.inventory.workloads;
        let everywhere: BTreeSet<IpAddr> = workloads.values().flat_map(|it| &it.addresses).map(|at| at.address).collect();
        let nodes = self.reference.inventory.nodes.values().flat_map(|it| it.addresses.iter().copied());
        let peers: BTreeSet<IpAddr> = everywhere.iter().copied().chain(nodes).chain(strangers()).collect();
        for local in everywhere.iter().filter(|it| self.holders(**it).next().is_some()) {
            for peer in peers.iter().filter(|it| it.is_ipv4() == local.is_ipv4()) {
                for transport in transports.iter().filter(|it| suits(**it, *local)) {
                    self.pair(*local, *peer, *transport)?;
                }
            }
        }
        Ok(())
    }

    fn pair(&self, local: IpAddr, peer: IpAddr, transport: Transport) -> TestCaseResult {
        // A workload's packets to itself never leave it: no hook sees them.
        let within = self.holders(local).any(|one| self.holders(peer).any(|other| one.id == other.id));
        for direction in [Direction::Ingress, Direction::Egress] {
            let expected = self.stage(direction, local, peer, transport);
            let (allowed, denied) = self.judged.get();
            self.judged.set((allowed + u64::from(expected), denied + u64::from(!expected)));
            let view = PeerView { address: peer, name: "peer" };
            let mut each = self.holders(local).map(|it| self.compiled.judge_end(&it.id, direction, local, view, transport).unwrap());
            let engine = each.all(|verdict| verdict.allowed());
            prop_assert_eq!(engine, expected, "engine on {}: {:?} {} {} {}", self.name, direction, local, peer, transport);
            let from_node = direction == Direction::Ingress && self.own.contains(&peer);
            if !within && !from_node {
                let flat = self.sets.allows(direction, local, peer, transport);
                prop_assert_eq!(flat, expected, "sets of {}: {:?} {} {} {}", self.name, direction, local, peer, transport);
            }
        }
        if within || self.own.contains(&local) {
            return Ok(());
        }
        let (out, into) = (|a, b| self.stage(Direction::Egress, a, b, transport), |a, b| self.stage(Direction::Ingress, b, a, transport));
        let paths = if self.own.contains(&peer) {
            let (relayed, is_exact) = self.published(local, peer, transport);
            if !is_exact {
                // Whoever claims what another claims gets no more than the reference gives it, perhaps less.
                let fate = self.sets.judge(Path::ToNode, local, peer, transport);
                let most = out(local, peer) && relayed;
                prop_assert!(most || fate != Fate::Passed, "{} {} at {} {}: more than it may", self.name, local, peer, transport);
                return Ok(());
            }
            vec![(Path::FromNode, peer, local, true, into(peer, local)), (Path::ToNode, local, peer, out(local, peer), relayed)]
        } else {
            vec![
                (Path::Forwarded, peer, local, out(peer, local), into(peer, local)),
                (Path::Forwarded, local, peer, out(local, peer), into(local, peer)),
            ]
        };
        for (path, source, destination, egress, ingress) in paths {
            let expected = match (egress, ingress) {
                (true, true) => Fate::Passed,
                (false, _) => Fate::Denied(Direction::Egress),
                (true, false) => Fate::Denied(Direction::Ingress),
            };
            let fate = self.sets.judge(path, source, destination, transport);
            prop_assert_eq!(fate, expected, "{} {:?} {} {} {}", self.name, path, source, destination, transport);
        }
        Ok(())
    }

    /// Whether `local` may use what is published at an address of the node, and whether that is all: where two claim one address, or the
    /// families differ, the sets may allow less.
    fn published(&self, local: IpAddr, at: IpAddr, transport: Transport) -> (bool, bool) {
        let Transport::Port(protocol, port) = transport else { return (true, true) };
        let (mut allowed, mut is_exact) = (true, true);
        for target in self.live() {
            for published in target.published_ports.iter().filter(|it| it.protocol == protocol && it.host_port == port) {
                if published.host_address.is_some_and(|bound| bound != at) {
                    continue;
                }
                for source in self.holders(local).filter(|it| it.id != target.id) {
                    let pairs: Vec<(IpAddr, IpAddr)> =
                        ips(source).flat_map(|a| ips(target).filter(move |b| a.is_ipv4() == b.is_ipv4()).map(move |b| (a, b))).collect();
                    let preferred: Vec<_> = pairs.iter().copied().filter(|(a, _)| a.is_ipv4() == at.is_ipv4()).collect();
                    let judged = if preferred.is_empty() { pairs } else { preferred };
                    // A workload that claims its node's address is in conflict too; the sets ask no less of it than of others.
                    let contested =
                        |(a, b): &(IpAddr, IpAddr)| self.own.contains(a) || [a, b].iter().any(|it| self.holders(**it).count() > 1);
                    is_exact &= !judged.is_empty() && !judged.iter().any(contested);
                    let transport = Transport::Port(protocol, published.workload_port);
                    allowed &= judged
                        .into_iter()
                        .all(|(a, b)| self.stage(Direction::Egress, a, b, transport) && self.stage(Direction::Ingress, b, a, transport));
                }
            }
        }
        (allowed, is_exact)
    }

    /// What the reference says; where nobody holds the address nobody judges.
    fn stage(&self, direction: Direction, local: IpAddr, peer: IpAddr, transport: Transport) -> bool {
        self.reference.stage(self.name, direction, local, peer, transport).unwrap_or(true)
    }

    fn holders(&self, address: IpAddr) -> impl Iterator<Item = &Workload> {
        self.reference.local(self.name, address)
    }

    fn live(&self) -> impl Iterator<Item = &Workload> {
        let all = self.reference.inventory.workloads.values();
        all.filter(|it| it.id.node == *self.name && !it.terminated && !it.host_network)
    }
}

fn ips(workload: &Workload) -> impl Iterator<Item = IpAddr> {
    workload.addresses.iter().map(|at| at.address)
}

fn suits(transport: Transport, address: IpAddr) -> bool {
    match transport {
        Transport::Icmp { family, .. } => family == Family::of(address),
        Transport::Port(..) | Transport::Other(_) => true,
    }
}

/// The kernel refuses interval elements that overlap.
fn disjoint(sets: &KernelSets) -> TestCaseResult {
    for elements in sets.sets.values() {
        let keys: Vec<&Element> = elements.keys().collect();
        for (position, one) in keys.iter().enumerate() {
            for other in &keys[position + 1..] {
                prop_assert!(!overlap(one, other), "{:?} and {:?}", one, other);
            }
        }
    }
    Ok(())
}

fn overlap(one: &Element, other: &Element) -> bool {
    match (one, other) {
        (Element::Range(a, peers, protocols, ports), Element::Range(b, other_peers, other_protocols, other_ports)) => {
            a == b
                && peers.first <= other_peers.last
                && other_peers.first <= peers.last
                && protocols.first <= other_protocols.last
                && other_protocols.first <= protocols.last
                && ports.first <= other_ports.last
                && other_ports.first <= ports.last
        }
        (Element::IcmpRange(a, peers, kinds, codes), Element::IcmpRange(b, other_peers, other_kinds, other_codes)) => {
            a == b
                && peers.first <= other_peers.last
                && other_peers.first <= peers.last
                && kinds.first <= other_kinds.last
                && other_kinds.first <= kinds.last
                && codes.first <= other_codes.last
                && other_codes.first <= codes.last
        }
        (one, other) => one == other,
    }
}

/// The same meaning, each list without order in another order.
fn shuffled(policies: &PolicySet, inventory: &Inventory, seed: u64) -> (PolicySet, Inventory) {
    let (mut policies, mut inventory) = (policies.clone(), inventory.clone());
    let mut dice = Dice(seed);
    for policy in policies.policies.values_mut() {
        dice.selector(&mut policy.subject);
        policy.ingress.iter_mut().chain(&mut policy.egress).flatten().for_each(|rule| dice.rule(rule));
    }
    for group in policies.address_groups.values_mut() {
        dice.shuffle(&mut group.blocks);
        group.blocks.iter_mut().for_each(|block| dice.shuffle(&mut block.except));
    }
    dice.shuffle(&mut policies.cluster_networks);
    for workload in inventory.workloads.values_mut() {
        dice.shuffle(&mut workload.addresses);
        dice.shuffle(&mut workload.named_ports);
        dice.shuffle(&mut workload.published_ports);
    }
    inventory.nodes.values_mut().for_each(|node| dice.shuffle(&mut node.addresses));
    (policies, inventory)
}

struct Dice(u64);

impl Dice {
    fn shuffle<T>(&mut self, list: &mut [T]) {
        for position in (1..list.len()).rev() {
            // Knuth's MMIX generator; its high bits are good enough to shuffle.
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            list.swap(position, (self.0 >> 33) as usize % (position + 1));
        }
    }

    fn selector(&mut self, selector: &mut firebreak_policy::model::LabelSelector) {
        self.shuffle(&mut selector.match_expressions);
    }

    fn rule(&mut self, rule: &mut Rule) {
        if let Peers::Only(peers) = &mut rule.peers {
            self.shuffle(peers);
        }
        if let Services::Only(services) = &mut rule.services {
            self.shuffle(services);
        }
    }
}
