//! The corners of the Kubernetes policy API that implementers get wrong, one table each, asked of the reference, the engine and the kernel sets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_policy::evaluate::{Field, NearMiss, Reason};
use firebreak_policy::judge::{Fate, Path};
use firebreak_policy::model::*;
use firebreak_policy::reference::Reference;
use firebreak_policy::{Engine, Problem, compile, flatten};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Node n1 runs shop/web (also tier=a, port http is 8080/TCP and 8081/UDP), shop/api and ops/web; node n2 runs shop/db (port http is 80/TCP)
/// and other/web; `other` is a namespace that nobody declared.
fn cluster() -> Inventory {
    let mut inventory = Inventory::default();
    for (name, labels) in [("shop", vec![("team", "x")]), ("ops", vec![("team", "y"), ("empty", "")])] {
        inventory.namespaces.insert(name.into(), Namespace { name: name.into(), labels: labels.into_iter().collect() });
    }
    for (name, addresses) in [("n1", ["10.0.0.1", "fd00::1"]), ("n2", ["10.0.0.2", "fd00::2"])] {
        let addresses = addresses.iter().map(|it| it.parse().unwrap()).collect();
        inventory.nodes.insert(name.into(), Node { name: name.into(), labels: Labels::default(), addresses });
    }
    for (node, namespace, app, address) in [
        ("n1", "shop", "web", "10.1.0.1"),
        ("n1", "shop", "api", "10.1.0.2"),
        ("n1", "ops", "web", "10.1.0.3"),
        ("n2", "shop", "db", "10.1.1.1"),
        ("n2", "other", "web", "10.1.1.2"),
    ] {
        add(&mut inventory, node, namespace, app, &[address, &address.replace("10.", "fd01::").replace('.', ":")]);
    }
    let port = |name: &str, protocol, port| NamedPort { name: name.to_owned(), protocol, port };
    let web = inventory.workloads.get_mut(&id("n1", "shop.web")).unwrap();
    web.labels.0.extend([("tier".to_owned(), "a".to_owned()), ("empty".to_owned(), String::new())]);
    web.named_ports = vec![port("http", Protocol::TCP, 8080), port("http", Protocol::UDP, 8081)];
    inventory.workloads.get_mut(&id("n2", "shop.db")).unwrap().named_ports = vec![port("http", Protocol::TCP, 80)];
    inventory
}

fn add(inventory: &mut Inventory, node: &str, namespace: &str, app: &str, addresses: &[&str]) -> WorkloadId {
    let at = |text: &&str| match text.split_once('%') {
        Some((address, network)) => NetworkAddress { network: network.into(), address: address.parse().unwrap() },
        None => NetworkAddress { network: NetworkName::default_network(), address: text.parse().unwrap() },
    };
    let id = id(node, &format!("{namespace}.{app}"));
    let workload = Workload {
        id: id.clone(),
        name: app.to_owned(),
        namespace: namespace.into(),
        labels: [("app", app)].into_iter().collect(),
        addresses: addresses.iter().map(at).collect(),
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        interface: None,
        host_network: false,
        terminated: false,
        source: WorkloadSource::Manifest,
    };
    inventory.workloads.insert(id.clone(), workload);
    id
}

fn id(node: &str, container: &str) -> WorkloadId {
    WorkloadId::new(node, container)
}

/// `n1/shop.web` is a workload, anything else an address.
fn end(text: &str) -> Endpoint {
    match text.split_once('/') {
        Some((node, container)) => Endpoint::Workload(id(node, container)),
        None => Endpoint::Address(text.parse().unwrap()),
    }
}

fn selector(text: &str) -> LabelSelector {
    text.parse().unwrap()
}

type Rules = Option<Vec<Rule>>;

fn policy(kind: PolicyKind, key: &str, subject: &str, ingress: Rules, egress: Rules, host_access: HostAccess) -> Policy {
    let (namespace, name) = key.split_once('/').unwrap();
    let key = PolicyKey { kind, namespace: namespace.into(), name: name.to_owned() };
    Policy { key, mode: Mode::Enforce, subject: selector(subject), ingress, egress, host_access }
}

fn network_policy(key: &str, subject: &str, ingress: Rules, egress: Rules) -> Policy {
    policy(PolicyKind::NetworkPolicy, key, subject, ingress, egress, HostAccess::Allow)
}

fn set(policies: impl IntoIterator<Item = Policy>) -> PolicySet {
    PolicySet { policies: policies.into_iter().map(|it| (it.key.clone(), it)).collect(), ..PolicySet::default() }
}

fn rule(peers: Peers, services: Services) -> Rule {
    Rule { name: None, peers, services }
}

fn from(peers: impl IntoIterator<Item = Peer>) -> Rule {
    rule(Peers::Only(peers.into_iter().collect()), Services::Any)
}

fn on(services: impl IntoIterator<Item = Service>) -> Rule {
    rule(Peers::Any, Services::Only(services.into_iter().collect()))
}

fn own(workloads: &str) -> Peer {
    Peer::Workloads { namespaces: NamespaceScope::Own, workloads: selector(workloads) }
}

fn across(namespaces: &str, workloads: &str) -> Peer {
    Peer::Workloads { namespaces: NamespaceScope::Matching(selector(namespaces)), workloads: selector(workloads) }
}

fn cidr(block: &str, except: &[&str]) -> Peer {
    Peer::Cidr(CidrBlock { cidr: block.parse().unwrap(), except: except.iter().map(|it| it.parse().unwrap()).collect() })
}

fn ports(protocol: Protocol, first: u16, last: u16) -> Service {
    Service::Ports(protocol, PortRange::new(first, last).unwrap())
}

fn named(protocol: Protocol, name: &str) -> Service {
    Service::Named(protocol, name.to_owned())
}

fn tcp(port: u16) -> Transport {
    Transport::Port(Protocol::TCP, port)
}

fn udp(port: u16) -> Transport {
    Transport::Port(Protocol::UDP, port)
}

/// Asks all three for each flow of the table: from, to, transport, whether it gets through.
fn table(policies: &PolicySet, inventory: &Inventory, flows: &[(&str, &str, Transport, bool)]) {
    let engine = Engine::new(policies, inventory.clone());
    let reference = Reference { policies, inventory };
    for (source, destination, transport, expected) in flows {
        let (from, to) = (end(source), end(destination));
        let shown = format!("{source} -> {destination} {transport}");
        let slow = reference.flow(&from, &to, *transport).expect(&shown);
        assert_eq!(slow.egress.unwrap_or(true) && slow.ingress.unwrap_or(true), *expected, "reference: {shown}");
        let verdict = engine.evaluate(&Flow { from: from.clone(), to: to.clone(), transport: *transport }).unwrap();
        assert_eq!(verdict.allowed(), *expected, "engine: {shown}: {verdict:?}");
        if from != to {
            assert_eq!(kernel(&engine, &from, &to, *transport), *expected, "kernel sets: {shown}");
        }
    }
}

/// What the kernels of all nodes that such a packet crosses say.
fn kernel(engine: &Engine, from: &Endpoint, to: &Endpoint, transport: Transport) -> bool {
    let (source, destination) = (address(engine, from, transport), address(engine, to, transport));
    let sides = [(source, from), (destination, to)];
    let nodes: BTreeSet<NodeName> = sides.iter().filter_map(|(at, end)| home(engine, *at, end)).collect();
    nodes.iter().all(|name| {
        let state = engine.compiled().node(name).unwrap();
        let path = match (state.addresses.contains(&source), state.addresses.contains(&destination)) {
            (true, _) => Path::FromNode,
            (false, true) => Path::ToNode,
            (false, false) => Path::Forwarded,
        };
        flatten(state).judge(path, source, destination, transport) == Fate::Passed
    })
}

fn address(engine: &Engine, end: &Endpoint, transport: Transport) -> IpAddr {
    let v6 = matches!(transport, Transport::Icmp { family: Family::V6, .. });
    match end {
        Endpoint::Address(address) => *address,
        Endpoint::Workload(id) => {
            let workload = &engine.inventory().workloads[id];
            let node = engine.inventory().nodes[&id.node].addresses.iter().copied();
            let own = workload.addresses.iter().map(|at| at.address);
            if workload.host_network { node.collect::<Vec<_>>() } else { own.collect() }.into_iter().find(|it| it.is_ipv6() == v6).unwrap()
        }
    }
}

fn home(engine: &Engine, at: IpAddr, end: &Endpoint) -> Option<NodeName> {
    match end {
        Endpoint::Workload(id) => Some(id.node.clone()),
        Endpoint::Address(_) => engine
            .compiled()
            .nodes()
            .iter()
            .find(|(_, state)| state.endpoints.values().any(|it| it.addresses.contains(&at)))
            .map(|(name, _)| name.clone()),
    }
}

const WEB: &str = "n1/shop.web";
const API: &str = "n1/shop.api";
const DB: &str = "n2/shop.db";
const OPS: &str = "n1/ops.web";
const OTHER: &str = "n2/other.web";

#[test]
fn corner_1_and_13_a_direction_that_no_policy_concerns_is_open() {
    for (ingress, egress, into, out) in [
        (None, None, true, true),
        (Some(vec![]), None, false, true),
        (None, Some(vec![]), true, false),
        (Some(vec![]), Some(vec![]), false, false),
    ] {
        let policies = set([network_policy("shop/p", "app=web", ingress, egress)]);
        table(&policies, &cluster(), &[(API, WEB, tcp(80), into), (WEB, API, tcp(80), out), (API, DB, tcp(80), true)]);
    }
}

#[test]
fn corner_2_an_empty_list_isolates_and_an_open_rule_allows_all() {
    let open = rule(Peers::Any, Services::Any);
    for (rules, allowed) in [(vec![], false), (vec![open], true), (vec![from([])], false), (vec![on([])], false)] {
        let policies = set([network_policy("shop/p", "", Some(rules), None)]);
        let ping = Transport::ping(Family::V6);
        table(
            &policies,
            &cluster(),
            &[(API, WEB, tcp(80), allowed), (OPS, DB, ping, allowed), ("8.8.8.8", WEB, Transport::Other(Protocol(47)), allowed)],
        );
        table(&policies, &cluster(), &[(WEB, OPS, tcp(80), true), (WEB, OTHER, tcp(80), true)]);
    }
}

#[test]
fn corner_3_and_4_a_protocol_is_all_its_ports_and_no_other_protocol() {
    let sctp = |port| Transport::Port(Protocol::SCTP, port);
    for (protocol, flows) in [
        (Protocol::TCP, [true, false, false, false]),
        (Protocol::SCTP, [false, false, true, false]),
        (Protocol::ICMP, [false, false, false, true]),
    ] {
        let policies = set([network_policy("shop/p", "app=web", Some(vec![on([Service::Protocol(protocol)])]), None)]);
        for (transport, allowed) in [tcp(1), udp(1), sctp(65535), Transport::ping(Family::V4)].into_iter().zip(flows) {
            table(&policies, &cluster(), &[(API, WEB, transport, allowed), ("8.8.8.8", WEB, transport, allowed)]);
        }
    }
}

#[test]
fn corner_5_named_ports_are_the_destinations_own_and_ranges_are_inclusive() {
    let into = set([network_policy("shop/p", "", Some(vec![on([named(Protocol::TCP, "http")])]), None)]);
    table(
        &into,
        &cluster(),
        &[(API, WEB, tcp(8080), true), (API, WEB, udp(8081), false), (API, WEB, tcp(80), false), (WEB, DB, tcp(80), true)],
    );
    let out =
        set([network_policy("shop/p", "app=api", None, Some(vec![on([named(Protocol::TCP, "http"), named(Protocol::UDP, "http")])]))]);
    table(
        &out,
        &cluster(),
        &[
            (API, WEB, tcp(8080), true),
            (API, WEB, udp(8081), true),
            (API, WEB, tcp(80), false),
            (API, DB, tcp(80), true),
            (API, DB, tcp(8080), false),
            (API, "8.8.8.8", tcp(80), false),
            (API, "10.0.0.2", tcp(80), false),
        ],
    );
    for (first, last) in [(80, 90), (80, 200)] {
        let range = set([network_policy(
            "shop/p",
            "app=web",
            Some(vec![rule(Peers::Only(vec![own("app=api")]), Services::Only(vec![ports(Protocol::TCP, first, last)]))]),
            None,
        )]);
        table(
            &range,
            &cluster(),
            &[
                (API, WEB, tcp(first - 1), false),
                (API, WEB, tcp(first), true),
                (API, WEB, tcp(last), true),
                (API, WEB, tcp(last + 1), false),
                (DB, WEB, tcp(first), false),
            ],
        );
    }
}

#[test]
fn corner_6_selectors_of_one_peer_are_both_asked_and_peers_add_up() {
    for (peers, allowed) in [
        (vec![own("app=web")], [false, false, false]),
        (vec![own("app=api")], [true, false, false]),
        (vec![across("team=y", "app=web")], [false, true, false]),
        (vec![across("team=y", "app=api")], [false, false, false]),
        (vec![across("team=y", ""), own("app=api")], [true, true, false]),
        (vec![across("", "app=web")], [false, true, true]),
    ] {
        let policies = set([network_policy("shop/p", "app=db", Some(vec![from(peers)]), None)]);
        for (source, allowed) in [API, OPS, OTHER].into_iter().zip(allowed) {
            table(&policies, &cluster(), &[(source, DB, tcp(1), allowed)]);
        }
    }
}

#[test]
fn corner_7_all_namespaces_are_no_outside_address_and_a_whole_block_includes_workloads() {
    for (peer, workload, outside) in
        [(across("", ""), true, false), (cidr("0.0.0.0/0", &[]), true, true), (Peer::Entity(Entity::World), false, true)]
    {
        let policies = set([network_policy("shop/p", "app=web", Some(vec![from([peer])]), None)]);
        table(
            &policies,
            &cluster(),
            &[(OTHER, WEB, tcp(1), workload), ("8.8.8.8", WEB, tcp(1), outside), ("10.0.0.2", WEB, tcp(1), outside && workload)],
        );
    }
}

#[test]
fn corner_8_an_absent_key_is_not_in_and_an_empty_value_is_a_value() {
    for (peer, allowed) in [
        (own("tier notin (a)"), [false, true]),
        (own("!tier"), [false, true]),
        (own("empty"), [true, false]),
        (own("empty="), [true, false]),
        (own("tier!=b"), [true, true]),
    ] {
        let policies = set([network_policy("shop/p", "app=db", Some(vec![from([peer])]), None)]);
        table(&policies, &cluster(), &[(WEB, DB, tcp(1), allowed[0]), (API, DB, tcp(1), allowed[1])]);
    }
    let undeclared = set([network_policy("shop/p", "app=db", Some(vec![from([across("!team", "")])]), None)]);
    table(&undeclared, &cluster(), &[(OTHER, DB, tcp(1), true), (API, DB, tcp(1), false)]);
}

#[test]
fn corner_9_an_exception_cuts_its_own_block_only_and_host_bits_are_ignored() {
    let block = cidr("10.1.0.77/16", &["10.1.0.2/31"]);
    for (peers, api, db) in [
        (vec![block.clone()], false, true),
        (vec![block.clone(), own("app=api")], true, true),
        (vec![block, cidr("10.1.0.2/32", &[])], true, true),
    ] {
        let policies = set([network_policy("shop/p", "app=web", Some(vec![from(peers)]), None)]);
        table(&policies, &cluster(), &[(API, WEB, tcp(1), api), (DB, WEB, tcp(1), db), ("10.2.0.1", WEB, tcp(1), false)]);
    }
}

#[test]
fn corner_10_policies_add_up_and_a_relabel_takes_effect() {
    let one = network_policy("shop/p", "app=web", Some(vec![from([own("app=api")])]), None);
    let two = network_policy("shop/q", "app=web", Some(vec![from([own("app=db")])]), None);
    let elsewhere = network_policy("ops/p", "app=web", Some(vec![]), None);
    table(
        &set([one.clone(), two, elsewhere]),
        &cluster(),
        &[(API, WEB, tcp(1), true), (DB, WEB, tcp(1), true), (OPS, WEB, tcp(1), false), (API, OPS, tcp(1), false)],
    );
    let mut relabelled = cluster();
    relabelled.workloads.get_mut(&id("n1", "shop.api")).unwrap().labels = [("app", "db")].into_iter().collect();
    table(&set([one]), &relabelled, &[(API, WEB, tcp(1), false)]);
}

#[test]
fn corner_11_both_ends_are_asked_a_workload_reaches_itself_and_its_node_gets_in() {
    let closed = || Some(vec![]);
    let policies = set([network_policy("shop/p", "app=web", closed(), closed())]);
    let flows = [
        (WEB, WEB, tcp(1), true),
        ("10.0.0.1", WEB, tcp(1), true),
        ("10.0.0.2", WEB, tcp(1), false),
        ("fd00::1", "fd01::1:0:1", tcp(1), true),
        (WEB, "10.0.0.1", tcp(1), false),
    ];
    table(&policies, &cluster(), &flows);
    let out = network_policy("shop/out", "app=api", None, Some(vec![from([own("app=db")])]));
    for (into, allowed) in [(vec![], false), (vec![from([own("app=api")])], true)] {
        let both = set([out.clone(), network_policy("shop/in", "app=db", Some(into), None)]);
        table(&both, &cluster(), &[(API, DB, tcp(1), allowed), (API, WEB, tcp(1), false)]);
    }
    let judged = |rules| policy(PolicyKind::SegmentPolicy, "shop/s", "app=web", Some(rules), None, HostAccess::Judge);
    for (rules, node) in
        [(vec![], false), (vec![from([Peer::Entity(Entity::Host)])], true), (vec![from([cidr("10.0.0.2/31", &[])])], false)]
    {
        let policies = set([judged(rules), network_policy("shop/p", "app=web", closed(), None)]);
        table(&policies, &cluster(), &[("10.0.0.1", WEB, tcp(1), node)]);
    }
}

#[test]
fn corner_12_host_network_and_ended_workloads_are_neither_subjects_nor_peers() {
    let mut inventory = cluster();
    let agent = add(&mut inventory, "n2", "shop", "agent", &[]);
    inventory.workloads.get_mut(&agent).unwrap().host_network = true;
    let job = add(&mut inventory, "n2", "shop", "job", &["10.1.1.9"]);
    inventory.workloads.get_mut(&job).unwrap().terminated = true;
    let policies = set([
        network_policy("shop/p", "app=web", Some(vec![from([own("app=agent"), own("app=job")])]), None),
        network_policy("shop/q", "app=agent", Some(vec![]), Some(vec![])),
    ]);
    table(
        &policies,
        &inventory,
        &[
            ("n2/shop.agent", WEB, tcp(1), false),
            ("10.1.1.9", WEB, tcp(1), false),
            (API, "n2/shop.agent", tcp(1), true),
            ("n2/shop.agent", DB, tcp(1), true),
        ],
    );
    let node = set([network_policy("shop/p", "app=web", Some(vec![from([cidr("10.0.0.2/32", &[])])]), None)]);
    table(&node, &inventory, &[("n2/shop.agent", WEB, tcp(1), true)]);
}

#[test]
fn a_hidden_address_of_another_node_does_not_admit_a_local_stranger() {
    let mut inventory = cluster();
    let stranger = add(&mut inventory, "n1", "ops", "stranger", &["172.17.0.2%n1/docker0"]);
    add(&mut inventory, "n1", "shop", "front", &["172.17.0.3%n1/docker0"]);
    let friend = add(&mut inventory, "n2", "shop", "friend", &["172.17.0.2%n2/docker0"]);
    let near = add(&mut inventory, "n2", "shop", "near", &["172.17.0.3%n2/docker0"]);
    let policies = set([network_policy("shop/p", "", Some(vec![from([own("app=friend")])]), None)]);
    let front = id("n1", "shop.front");
    let (stranger, friend, front, near) = (stranger.to_string(), friend.to_string(), front.to_string(), near.to_string());
    table(&policies, &inventory, &[(&stranger, &front, tcp(1), false), (&friend, &near, tcp(1), true)]);
}

#[test]
fn an_address_that_two_claim_is_nobodys_peer_and_does_what_both_may() {
    let mut inventory = cluster();
    add(&mut inventory, "n1", "shop", "twin", &["10.1.0.2"]);
    let admits = network_policy("shop/p", "app=web", Some(vec![from([own("app=api"), own("app=twin")])]), None);
    table(&set([admits]), &inventory, &[(API, WEB, tcp(1), false), ("n1/shop.twin", WEB, tcp(1), false)]);
    let whole = network_policy("shop/a", "app=api", None, Some(vec![from([own("app=db")])]));
    let one_port = network_policy("shop/b", "app=twin", None, Some(vec![on([ports(Protocol::TCP, 5432, 5432)])]));
    let both = set([whole, one_port]);
    table(
        &both,
        &inventory,
        &[(API, DB, tcp(5432), true), (API, DB, tcp(80), false), (API, WEB, tcp(5432), false), ("10.1.0.2", DB, tcp(80), false)],
    );
    let conflicts = compile(&both, &inventory).conflicts().clone();
    assert_eq!(conflicts.into_values().collect::<Vec<_>>(), [BTreeSet::from([id("n1", "shop.api"), id("n1", "shop.twin")])]);
}

#[test]
fn a_missing_address_group_is_nobody_and_a_problem() {
    let mut policies = set([network_policy("shop/p", "app=web", Some(vec![from([Peer::Group("offices".into())])]), None)]);
    table(&policies, &cluster(), &[("8.8.8.8", WEB, tcp(1), false)]);
    let problems = compile(&policies, &cluster()).problems().clone();
    assert_eq!(problems.into_values().flatten().collect::<Vec<_>>(), [Problem::MissingAddressGroup("offices".into())]);
    let blocks = vec![CidrBlock { cidr: "8.8.0.0/16".parse().unwrap(), except: vec!["8.8.4.0/24".parse().unwrap()] }];
    policies.address_groups.insert("offices".into(), AddressGroup { name: "offices".into(), blocks });
    table(&policies, &cluster(), &[("8.8.8.8", WEB, tcp(1), true), ("8.8.4.4", WEB, tcp(1), false)]);
    assert!(compile(&policies, &cluster()).problems().is_empty());
}

#[test]
fn a_published_port_is_the_workload_behind_it() {
    let mut inventory = cluster();
    let publish = |host_address: Option<&str>| PublishedPort {
        protocol: Protocol::TCP,
        host_address: host_address.map(|it| it.parse().unwrap()),
        host_port: 8000,
        workload_port: 80,
    };
    inventory.workloads.get_mut(&id("n1", "ops.web")).unwrap().published_ports = vec![publish(None)];
    let policies = set([network_policy(
        "ops/p",
        "app=web",
        Some(vec![rule(Peers::Only(vec![across("", "app=api")]), Services::Only(vec![ports(Protocol::TCP, 80, 80)]))]),
        None,
    )]);
    let judged = |inventory: &Inventory, source: &str, node: &str, port| {
        let sets = flatten(compile(&policies, inventory).node(&"n1".into()).unwrap());
        sets.judge(Path::ToNode, source.parse().unwrap(), node.parse().unwrap(), tcp(port))
    };
    let denied = Fate::Denied(Direction::Ingress);
    for (source, node, port, fate) in [
        ("10.1.0.2", "10.0.0.1", 8000, Fate::Passed),
        ("10.1.0.1", "10.0.0.1", 8000, denied),
        ("10.1.0.1", "10.0.0.1", 8001, Fate::Passed),
        ("fd01::1:0:2", "fd00::1", 8000, Fate::Passed),
        ("fd01::1:0:1", "fd00::1", 8000, denied),
        ("10.1.0.3", "10.0.0.1", 8000, Fate::Passed),
    ] {
        assert_eq!(judged(&inventory, source, node, port), fate, "{source} -> {node}:{port}");
    }
    // Every interface has a link-local address beside: nobody's peer, and no hindrance.
    for (workload, address) in [("shop.api", "fe80::2"), ("ops.web", "fe80::1")] {
        let address = NetworkAddress { network: NetworkName::default_network(), address: address.parse().unwrap() };
        inventory.workloads.get_mut(&id("n1", workload)).unwrap().addresses.push(address);
    }
    assert_eq!(judged(&inventory, "fd01::1:0:2", "fd00::1", 8000), Fate::Passed);
    // Who shares an address with a workload that may not, may not.
    add(&mut inventory, "n1", "shop", "a-twin", &["10.1.0.2"]);
    assert_eq!(judged(&inventory, "10.1.0.2", "10.0.0.1", 8000), denied);
    inventory.workloads.get_mut(&id("n1", "ops.web")).unwrap().published_ports = vec![publish(Some("fd00::1"))];
    assert_eq!(judged(&inventory, "10.1.0.1", "10.0.0.1", 8000), Fate::Passed);
}

#[test]
fn a_deny_names_the_rule_that_came_nearest_and_the_field_that_missed() {
    let rules = vec![
        rule(Peers::Only(vec![own("app=api")]), Services::Only(vec![ports(Protocol::TCP, 5432, 5432)])),
        rule(
            Peers::Only(vec![own("app=web")]),
            Services::Only(vec![ports(Protocol::UDP, 53, 53), Service::Icmp { family: Family::V4, kind: 8, code: None }]),
        ),
    ];
    let policies = set([network_policy("shop/db", "app=db", Some(rules), None)]);
    let engine = Engine::new(&policies, cluster());
    for (source, transport, index, field) in [
        (API, tcp(80), 0, Field::Port),
        (API, udp(5432), 0, Field::Protocol),
        (OPS, tcp(5432), 0, Field::Peer),
        (WEB, tcp(53), 1, Field::Protocol),
        (WEB, udp(54), 1, Field::Port),
        (WEB, Transport::Icmp { family: Family::V4, kind: 13, code: 0 }, 1, Field::IcmpType),
        ("8.8.8.8", udp(53), 1, Field::Peer),
    ] {
        let verdict = engine.evaluate(&Flow { from: end(source), to: end(DB), transport }).unwrap();
        let Reason::NoRule { isolating, nearest: Some(NearMiss { rule, fields, .. }) } = verdict.ingress.unwrap().reason else {
            panic!("{source} {transport} is not denied with a near miss")
        };
        assert_eq!((isolating.len(), rule.index, fields), (1, index, vec![field]), "{source} {transport}");
    }
}
