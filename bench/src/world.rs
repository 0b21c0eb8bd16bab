//! Made-up clusters: policies and inventories of a given size, always the same.

use firebreak_policy::model::{
    AddressGroup, CidrBlock, ContainerId, Entity, GroupName, HostAccess, Inventory, LabelSelector, Labels, Mode, Namespace, NamespaceName,
    NamespaceScope, NetworkAddress, NetworkName, Node, NodeName, Peer, Peers, Policy, PolicyKey, PolicyKind, PolicySet, PortRange,
    Protocol, Rule, Service, Services, Workload, WorkloadId, WorkloadSource,
};
use firebreak_policy::node_state::NodeState;
use firebreak_policy::{Compiled, compile};
use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv4Addr};

/// Apps in each namespace; as many policies.
pub(crate) const APPS: usize = 10;
/// Over how many nodes the workloads are spread.
pub(crate) const NODES: usize = 100;

/// A shop-like cluster: each policy isolates one app of one namespace in both directions, lets in two apps by labels (one of them
/// of another namespace), and lets out to one app and one block.
pub(crate) fn cluster(workloads: usize, policies: usize) -> (PolicySet, Inventory) {
    let namespaces = policies.div_ceil(APPS);
    let mut set = PolicySet::default();
    for number in 0..policies {
        let policy = app_policy(number % namespaces, number / namespaces, namespaces);
        set.policies.insert(policy.key.clone(), policy);
    }
    let mut inventory = Inventory::default();
    for number in 0..namespaces {
        let name = namespace(number);
        let labels = labels(&[("team", &format!("t{number}"))]);
        inventory.namespaces.insert(name.clone(), Namespace { name, labels });
    }
    for number in 0..NODES {
        let name = node(number);
        let addresses = vec![IpAddr::V4(address(0xc0a8_0000, number))];
        inventory.nodes.insert(name.clone(), Node { name, labels: Labels::default(), addresses });
    }
    for number in 0..workloads {
        let workload = app(number, namespaces);
        inventory.workloads.insert(workload.id.clone(), workload);
    }
    (set, inventory)
}

fn app(number: usize, namespaces: usize) -> Workload {
    // Spread so that no node holds a whole namespace.
    let app = format!("a{}", number / namespaces % APPS);
    workload(number, node(number / 7 % NODES), namespace(number % namespaces), labels(&[("app", &app), ("tier", "prod")]))
}

fn app_policy(space: usize, app: usize, namespaces: usize) -> Policy {
    let app_is = |number: usize| selector("app", &format!("a{}", number % APPS));
    let from_here = Peer::Workloads { namespaces: NamespaceScope::Own, workloads: app_is(app + 1) };
    let next_team = selector("team", &format!("t{}", (space + 1) % namespaces));
    let from_next = Peer::Workloads { namespaces: NamespaceScope::Matching(next_team), workloads: app_is(app) };
    let to_here = Peer::Workloads { namespaces: NamespaceScope::Own, workloads: app_is(app + APPS - 1) };
    let to_next = Peer::Workloads { namespaces: NamespaceScope::Matching(LabelSelector::everything()), workloads: app_is(app + 3) };
    let block = Peer::Cidr(CidrBlock { cidr: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24)), except: Vec::new() });
    Policy {
        key: key(space, &format!("a{app}")),
        mode: Mode::Enforce,
        subject: app_is(app),
        ingress: Some(vec![rule(vec![from_here], 8080), rule(vec![from_next], 9090)]),
        egress: Some(vec![rule(vec![to_here, block], 8080), rule(vec![to_next], 9090)]),
        host_access: HostAccess::Allow,
    }
}

/// One node with 50 isolated workloads that each let in 4,000 peers on one port: 200,000 elements.
pub(crate) fn heavy_node() -> NodeState {
    let mut inventory = Inventory::default();
    for number in 0..50 {
        let own = workload(number, node(0), namespace(0), labels(&[("app", "db")]));
        inventory.workloads.insert(own.id.clone(), own);
    }
    for number in 50..4_050 {
        let peer = workload(number, node(1), namespace(0), labels(&[("app", "api")]));
        inventory.workloads.insert(peer.id.clone(), peer);
    }
    let peer = Peer::Workloads { namespaces: NamespaceScope::Own, workloads: selector("app", "api") };
    only_node(&one_policy(peer), &inventory)
}

/// One node with one isolated workload that lets in an address group of this many blocks, no two of which can be joined.
pub(crate) fn node_with_blocks(blocks: usize) -> NodeState {
    let mut inventory = Inventory::default();
    let own = workload(0, node(0), namespace(0), labels(&[("app", "db")]));
    inventory.workloads.insert(own.id.clone(), own);
    let name = GroupName::new("blocks");
    let mut policies = one_policy(Peer::Group(name.clone()));
    let block =
        |number: usize| CidrBlock { cidr: IpNet::V4(Ipv4Net::new_assert(address(0x2000_0000, number * 512), 24)), except: Vec::new() };
    policies.address_groups.insert(name.clone(), AddressGroup { name, blocks: (0..blocks).map(block).collect() });
    only_node(&policies, &inventory)
}

fn one_policy(peer: Peer) -> PolicySet {
    let policy = Policy {
        key: key(0, "db"),
        mode: Mode::Enforce,
        subject: selector("app", "db"),
        ingress: Some(vec![rule(vec![peer], 5432)]),
        egress: Some(vec![Rule { name: None, peers: Peers::Only(vec![Peer::Entity(Entity::Any)]), services: Services::Any }]),
        host_access: HostAccess::Allow,
    };
    PolicySet { policies: [(policy.key.clone(), policy)].into(), ..PolicySet::default() }
}

fn only_node(policies: &PolicySet, inventory: &Inventory) -> NodeState {
    let compiled: Compiled = compile(policies, inventory);
    compiled.node(&node(0)).cloned().unwrap_or_default()
}

/// The node of this number.
pub(crate) fn node(number: usize) -> NodeName {
    NodeName::from(format!("node-{number}"))
}

fn namespace(number: usize) -> NamespaceName {
    NamespaceName::from(format!("team-{number}"))
}

fn key(space: usize, name: &str) -> PolicyKey {
    PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: namespace(space), name: name.to_owned() }
}

fn workload(number: usize, node: NodeName, namespace: NamespaceName, labels: Labels) -> Workload {
    let name = format!("w{number}");
    Workload {
        id: WorkloadId { node, container: ContainerId::new(&name) },
        name,
        namespace,
        labels,
        addresses: vec![NetworkAddress { network: NetworkName::default_network(), address: address(0x0a00_0100, number).into() }],
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        interface: None,
        host_network: false,
        terminated: false,
        source: WorkloadSource::Manifest,
    }
}

fn rule(peers: Vec<Peer>, port: u16) -> Rule {
    let services = Services::Only(vec![Service::Ports(Protocol::TCP, PortRange::single(port))]);
    Rule { name: None, peers: Peers::Only(peers), services }
}

fn selector(key: &str, value: &str) -> LabelSelector {
    LabelSelector { match_labels: [(key.to_owned(), value.to_owned())].into(), ..LabelSelector::default() }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn address(base: u32, offset: usize) -> Ipv4Addr {
    // The sizes that are asked for are far below the space behind each base.
    Ipv4Addr::from_bits(base.wrapping_add(u32::try_from(offset).unwrap_or(u32::MAX)))
}
