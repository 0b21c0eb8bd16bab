//! What tiers come to in the kernel's sets, on named cases.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_policy::judge::{Fate, Path};
use firebreak_policy::kernel_sets::{KernelSets, Shape, SharedPeers, SharedRule};
use firebreak_policy::model::*;
use firebreak_policy::node_state::NodeState;
use firebreak_policy::reference::Reference;
use firebreak_policy::{compile, flatten, resolved};
use std::net::IpAddr;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload(node: &str, app: &str, address: &str, named_ports: Vec<NamedPort>) -> Workload {
    Workload {
        id: WorkloadId::new(node, app),
        name: app.to_owned(),
        namespace: "shop".into(),
        labels: [("app", app)].into_iter().collect(),
        addresses: vec![NetworkAddress { network: NetworkName::default_network(), address: ip(address) }],
        named_ports,
        published_ports: Vec::new(),
        interface: None,
        host_network: false,
        terminated: false,
        source: WorkloadSource::Manifest,
    }
}

/// Node n1 with db, and the peers a and b elsewhere; the Admin tier has these rules about db.
fn state(rules: Vec<(Action, Peers, Services)>, isolated: bool) -> NodeState {
    let mut inventory = Inventory::default();
    let node = Node { name: "n1".into(), labels: Labels::default(), addresses: vec![ip("10.0.0.1")] };
    inventory.nodes.insert("n1".into(), node);
    for (node, app, address) in [("n1", "db", "10.1.0.1"), ("n2", "a", "10.1.0.2"), ("n2", "b", "10.1.0.3")] {
        let workload = workload(node, app, address, Vec::new());
        inventory.workloads.insert(workload.id.clone(), workload);
    }
    let everything = LabelSelector::everything;
    let db = LabelSelector { match_labels: [("app".to_owned(), "db".to_owned())].into(), ..everything() };
    let rule = |(action, peers, services)| TieredRule { name: None, action, peers, services, reason: None };
    let tiered = TieredPolicy {
        key: PolicyKey::cluster_scoped(PolicyKind::ClusterSegmentPolicy, "t"),
        tier: Tier::Admin,
        priority: 0,
        mode: Mode::Enforce,
        subject: Subject { namespaces: everything(), workloads: db.clone() },
        ingress: rules.into_iter().map(rule).collect(),
        egress: Vec::new(),
    };
    let mut policies = PolicySet::default();
    if !tiered.ingress.is_empty() {
        policies.tiered.insert(tiered.key.clone(), tiered);
    }
    if isolated {
        let key = PolicyKey { kind: PolicyKind::NetworkPolicy, namespace: "shop".into(), name: "p".to_owned() };
        let (ingress, host_access) = (Some(Vec::new()), HostAccess::Allow);
        let policy = Policy { key: key.clone(), mode: Mode::Enforce, subject: db, ingress, egress: None, host_access };
        policies.policies.insert(key, policy);
    }
    compile(&policies, &inventory).node(&"n1".into()).unwrap().clone()
}

fn app(name: &str) -> Peers {
    let workloads = LabelSelector { match_labels: [("app".to_owned(), name.to_owned())].into(), ..LabelSelector::everything() };
    Peers::Only(vec![Peer::Workloads { namespaces: NamespaceScope::Matching(LabelSelector::everything()), workloads }])
}

fn tcp(port: u16) -> Services {
    Services::Only(vec![Service::Ports(Protocol::TCP, PortRange::single(port))])
}

fn passes(sets: &KernelSets, from: &str, port: u16) -> bool {
    sets.judge(Path::Forwarded, ip(from), ip("10.1.0.1"), Transport::Port(Protocol::TCP, port)) == Fate::Passed
}

fn chain(sets: &KernelSets) -> Vec<SharedRule> {
    sets.shared.chains.iter().find(|(chain, _)| chain.family == Family::V4).map(|(_, rules)| rules.clone()).unwrap_or_default()
}

const DROP: Action = Action::Deny(Answer::Drop);

#[test]
fn a_state_without_tiers_is_not_touched() {
    assert_eq!(resolved(&state(Vec::new(), true)), None);
}

#[test]
fn a_denied_port_is_one_set_of_all_but_those_and_the_rest_takes_no_lookup() {
    let sets = flatten(&state(vec![(DROP, app("a"), tcp(22))], false));
    assert_eq!((passes(&sets, "10.1.0.2", 22), passes(&sets, "10.1.0.2", 23), passes(&sets, "10.1.0.3", 22)), (false, true, true));
    let rules = chain(&sets);
    let asks = |rule: &&SharedRule| matches!(rule.peers, SharedPeers::In(_));
    assert_eq!((rules.len(), rules.iter().filter(asks).count()), (5, 1), "{rules:#?}");
}

#[test]
fn a_tier_that_allows_all_isolates_nobody() {
    let sets = flatten(&state(vec![(Action::Allow, Peers::Any, Services::Any)], true));
    assert!(sets.sets.is_empty() && sets.shared.segments.is_empty(), "{sets:?}");
}

#[test]
fn a_pass_leaves_the_matter_to_the_policies_of_the_namespace() {
    let rules = vec![(Action::Pass, app("a"), Services::Any), (Action::Allow, app("a"), Services::Any), (Action::Allow, app("b"), tcp(80))];
    let sets = flatten(&state(rules, true));
    assert_eq!((passes(&sets, "10.1.0.2", 80), passes(&sets, "10.1.0.3", 80), passes(&sets, "10.1.0.3", 81)), (false, true, false));
}

#[test]
fn the_own_node_is_judged_only_where_a_tier_keeps_some_of_it_out() {
    let judged = |rules| flatten(&state(rules, true)).sets.keys().any(|id| id.shape == Shape::HostJudged);
    assert!(!judged(vec![(DROP, app("a"), Services::Any)]));
    assert!(judged(vec![(DROP, Peers::Any, tcp(22))]));
}

/// Two claim one address, one of them with a port of that name: a rule that denies names the port of the one that it means, and of no other.
#[test]
fn a_denied_named_port_is_that_of_the_workload_that_is_meant() {
    for (denied, passes) in [("a", true), ("b", false)] {
        let mut inventory = Inventory::default();
        inventory.nodes.insert("n1".into(), Node { name: "n1".into(), labels: Labels::default(), addresses: Vec::new() });
        for (app, address, ports) in [("db", "10.1.0.1", 0), ("a", "10.1.0.9", 0), ("b", "10.1.0.9", 1)] {
            let named = NamedPort { name: "dns".to_owned(), protocol: Protocol::UDP, port: 53 };
            let workload = workload("n1", app, address, vec![named; ports]);
            inventory.workloads.insert(workload.id.clone(), workload);
        }
        let services = Services::Only(vec![Service::Named(Protocol::UDP, "dns".to_owned())]);
        let tiered = TieredPolicy {
            key: PolicyKey::cluster_scoped(PolicyKind::ClusterSegmentPolicy, "t"),
            tier: Tier::Admin,
            priority: 0,
            mode: Mode::Enforce,
            subject: Subject { namespaces: LabelSelector::everything(), workloads: LabelSelector::everything() },
            ingress: Vec::new(),
            egress: vec![TieredRule { name: None, action: DROP, peers: app(denied), services, reason: None }],
        };
        let mut policies = PolicySet::default();
        policies.tiered.insert(tiered.key.clone(), tiered);
        let (from, to, dns) = (ip("10.1.0.1"), ip("10.1.0.9"), Transport::Port(Protocol::UDP, 53));
        let reference = Reference { policies: &policies, inventory: &inventory };
        assert_eq!(reference.stage(&"n1".into(), Direction::Egress, from, to, dns), Some(passes), "the reference, {denied}");
        let sets = flatten(compile(&policies, &inventory).node(&"n1".into()).unwrap());
        assert_eq!(sets.allows(Direction::Egress, from, to, dns), passes, "the sets, {denied}");
    }
}
