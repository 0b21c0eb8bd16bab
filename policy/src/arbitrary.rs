//! Random clusters and policies for property tests: small and crowded, so that selectors meet, addresses collide and ranges overlap.
//!
//! Only with the feature `arbitrary`.

use crate::model::{
    Action, AddressGroup, Answer, CidrBlock, ContainerId, Entity, Family, GroupName, HostAccess, Inventory, LabelSelector, Labels, Mode,
    NamedPort, Namespace, NamespaceName, NamespaceScope, NetworkAddress, NetworkName, Node, NodeName, Operator, Peer, Peers, Policy,
    PolicyKey, PolicyKind, PolicySet, PortRange, Protocol, PublishedPort, Requirement, Rule, Service, Services, Subject, Tier,
    TieredPolicy, TieredRule, Transport, Workload, WorkloadId, WorkloadSource,
};
use crate::shared_map::SharedMap;
use ipnet::IpNet;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The words that random policies are made of.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// Namespaces that policies are in.
    pub namespaces: Vec<NamespaceName>,
    /// Pairs that selectors of workloads ask for.
    pub labels: Vec<(String, String)>,
    /// Pairs that selectors of namespaces ask for.
    pub namespace_labels: Vec<(String, String)>,
    /// Addresses that blocks are made around.
    pub addresses: Vec<IpAddr>,
    /// Names of ports.
    pub port_names: Vec<String>,
    /// Numbers at which ranges begin and end.
    pub ports: Vec<u16>,
}

const PROTOCOLS_WITH_PORTS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
/// GRE, as one of the protocols without ports.
const GRE: Protocol = Protocol(47);

impl Vocabulary {
    /// The words of [`inventories`].
    pub fn small() -> Self {
        let pairs = |list: &[(&str, &str)]| list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self {
            namespaces: ["a", "b", "c"].map(NamespaceName::from).to_vec(),
            labels: pairs(&[("app", "web"), ("app", "db"), ("app", ""), ("tier", "1"), ("tier", "2")]),
            namespace_labels: pairs(&[("team", "x"), ("team", "y"), ("dev", "")]),
            addresses: (0..12).map(v4).chain((0..8).map(v6)).chain([bridged(2), Ipv4Addr::new(8, 8, 8, 8).into(), node_v4(1)]).collect(),
            port_names: ["http", "dns"].map(str::to_owned).to_vec(),
            ports: vec![0, 1, 53, 79, 80, 81, 95, 96, 97, 443, 8080, u16::MAX],
        }
    }

    /// The words of a given inventory: policies made of these are about its workloads.
    pub fn of(inventory: &Inventory) -> Self {
        let small = Self::small();
        let workloads = || inventory.workloads.values();
        let or = |found: BTreeSet<(String, String)>, otherwise: Vec<(String, String)>| {
            if found.is_empty() { otherwise } else { found.into_iter().collect() }
        };
        let pairs = |labels: &Labels| labels.0.clone().into_iter();
        let namespaces: BTreeSet<NamespaceName> = workloads().map(|it| it.namespace.clone()).collect();
        let own = workloads().flat_map(|it| &it.addresses).map(|at| at.address);
        let nodes = inventory.nodes.values().flat_map(|it| it.addresses.iter().copied());
        let addresses: BTreeSet<IpAddr> = own.chain(nodes).collect();
        let names: BTreeSet<String> = workloads().flat_map(|it| &it.named_ports).map(|it| it.name.clone()).collect();
        Self {
            namespaces: if namespaces.is_empty() { small.namespaces } else { namespaces.into_iter().collect() },
            labels: or(workloads().flat_map(|it| pairs(&it.labels)).collect(), small.labels),
            namespace_labels: or(inventory.namespaces.values().flat_map(|it| pairs(&it.labels)).collect(), small.namespace_labels),
            addresses: if addresses.is_empty() { small.addresses } else { addresses.into_iter().collect() },
            port_names: if names.is_empty() { small.port_names } else { names.into_iter().collect() },
            ports: small.ports,
        }
    }

    /// Policy sets of both kinds in these words.
    pub fn policy_sets(&self) -> impl Strategy<Value = PolicySet> + use<> {
        let groups = vec(vec(blocks(self.addresses.clone()), 0..3), 0..=2);
        let cluster = prop_oneof![2 => Just(Vec::new()), 1 => vec(blocks(self.addresses.clone()).prop_map(|it| it.cidr), 1..3)];
        (vec(self.policies(), 0..6), groups, cluster).prop_map(|(policies, groups, cluster_networks)| PolicySet {
            policies: policies.into_iter().map(|it| (it.key.clone(), it)).collect(),
            tiered: SharedMap::new(),
            address_groups: ["g0", "g1"]
                .map(GroupName::from)
                .into_iter()
                .zip(groups)
                .map(|(name, blocks)| (name.clone(), AddressGroup { name, blocks }))
                .collect(),
            cluster_networks,
        })
    }

    /// Policy sets with tiers around the namespaces, and policies of every kind in Audit mode.
    pub fn tiered_policy_sets(&self) -> impl Strategy<Value = PolicySet> + use<> {
        let modes = || vec(prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Audit)], 8);
        (self.policy_sets(), vec(self.tiered_policies(), 0..6), modes(), modes()).prop_map(|(mut set, tiered, modes, tiered_modes)| {
            set.tiered = tiered.into_iter().map(|it| (it.key.clone(), it)).collect();
            set.policies.values_mut().zip(modes).for_each(|(policy, mode)| policy.mode = mode);
            set.tiered.values_mut().zip(tiered_modes).for_each(|(policy, mode)| policy.mode = mode);
            set
        })
    }

    /// One policy of a tier in these words. Few priorities, so that some are equal.
    pub fn tiered_policies(&self) -> impl Strategy<Value = TieredPolicy> + use<> {
        let kind = select(vec![PolicyKind::ClusterSegmentPolicy, PolicyKind::AdminNetworkPolicy, PolicyKind::ClusterNetworkPolicy]);
        let subject = (selectors(self.namespace_labels.clone()), selectors(self.labels.clone()))
            .prop_map(|(namespaces, workloads)| Subject { namespaces, workloads });
        let rules = || vec(self.tiered_rules(), 0..4);
        (kind, select(vec!["s", "t", "u"]), any::<bool>(), 0_u16..3, subject, rules(), rules()).prop_map(
            |(kind, name, admin, priority, subject, ingress, egress)| TieredPolicy {
                key: PolicyKey::cluster_scoped(kind, name),
                tier: if admin { Tier::Admin } else { Tier::Baseline },
                priority,
                mode: Mode::Enforce,
                subject,
                ingress,
                egress,
            },
        )
    }

    fn tiered_rules(&self) -> impl Strategy<Value = TieredRule> + use<> {
        let actions = vec![Action::Allow, Action::Deny(Answer::Drop), Action::Deny(Answer::Reject), Action::Pass];
        let nodes = select(vec!["zone=1", "zone=2"]).prop_map(|pair| {
            let pairs = pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            Peer::Nodes(LabelSelector { match_labels: pairs.into_iter().collect(), match_expressions: Vec::new() })
        });
        let peers = prop_oneof![12 => self.peers(), 1 => nodes, 1 => Just(Peer::Unknown)];
        (select(actions), vec(peers, 0..3), self.rules()).prop_map(|(action, peers, rule)| TieredRule {
            name: rule.name,
            action,
            peers: if rule.peers == Peers::Any { Peers::Any } else { Peers::Only(peers) },
            services: rule.services,
            reason: None,
        })
    }

    /// One policy in these words.
    pub fn policies(&self) -> impl Strategy<Value = Policy> + use<> {
        let kind = select(vec![PolicyKind::NetworkPolicy, PolicyKind::SegmentPolicy]);
        let rules = |chance| option::weighted(chance, vec(self.rules(), 0..4));
        let subject = selectors(self.labels.clone());
        let key = (kind, select(self.namespaces.clone()), select(vec!["p", "q", "r"]));
        (key, subject, rules(0.7), rules(0.5), any::<bool>()).prop_map(|((kind, namespace, name), subject, ingress, egress, judged)| {
            Policy {
                key: PolicyKey { kind, namespace, name: name.to_owned() },
                mode: Mode::Enforce,
                subject,
                ingress,
                egress,
                // A NetworkPolicy cannot keep its node out.
                host_access: if judged && kind == PolicyKind::SegmentPolicy { HostAccess::Judge } else { HostAccess::Allow },
            }
        })
    }

    fn rules(&self) -> impl Strategy<Value = Rule> + use<> {
        let peers = prop_oneof![1 => Just(Peers::Any), 5 => vec(self.peers(), 0..4).prop_map(Peers::Only)];
        let services = prop_oneof![1 => Just(Services::Any), 4 => vec(self.services(), 0..4).prop_map(Services::Only)];
        (option::weighted(0.2, Just("named".to_owned())), peers, services).prop_map(|(name, peers, services)| Rule {
            name,
            peers,
            services,
        })
    }

    fn peers(&self) -> impl Strategy<Value = Peer> + use<> {
        let scope = prop_oneof![
            Just(NamespaceScope::Own),
            selectors(self.namespace_labels.clone()).prop_map(NamespaceScope::Matching),
            Just(NamespaceScope::Matching(LabelSelector::everything())),
        ];
        let workloads = selectors(self.labels.clone());
        prop_oneof![
            5 => (scope, workloads).prop_map(|(namespaces, workloads)| Peer::Workloads { namespaces, workloads }),
            3 => blocks(self.addresses.clone()).prop_map(Peer::Cidr),
            1 => select(vec!["g0", "g1", "missing"]).prop_map(|name| Peer::Group(name.into())),
            2 => select(vec![Entity::Any, Entity::Host, Entity::World]).prop_map(Peer::Entity),
        ]
    }

    fn services(&self) -> impl Strategy<Value = Service> + use<> {
        let with_ports = || select(PROTOCOLS_WITH_PORTS.to_vec());
        let whole = vec![Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP, Protocol::ICMPV6, GRE];
        let range = (select(self.ports.clone()), select(self.ports.clone()))
            .prop_filter_map("the later end first", |(one, other)| PortRange::new(one.min(other), one.max(other)));
        let port = select(self.ports.clone()).prop_map(PortRange::single);
        let family = select(vec![Family::V4, Family::V6]);
        let icmp = (family, select(vec![0_u8, 3, 8, 128, 255]), option::of(select(vec![0_u8, 1, 255])));
        prop_oneof![
            2 => select(whole).prop_map(Service::Protocol),
            4 => (with_ports(), prop_oneof![range, port]).prop_map(|(protocol, ports)| Service::Ports(protocol, ports)),
            3 => (with_ports(), select(self.port_names.clone())).prop_map(|(protocol, name)| Service::Named(protocol, name)),
            2 => icmp.prop_map(|(family, kind, code)| Service::Icmp { family, kind, code }),
        ]
    }
}

/// Small clusters with their policies: both families, hidden networks, colliding addresses, host-network and ended workloads.
pub fn clusters() -> impl Strategy<Value = (PolicySet, Inventory)> {
    (Vocabulary::small().policy_sets(), inventories())
}

/// The same with tiers and Audit mode.
pub fn tiered_clusters() -> impl Strategy<Value = (PolicySet, Inventory)> {
    (Vocabulary::small().tiered_policy_sets(), inventories())
}

/// Small inventories of one to three nodes.
pub fn inventories() -> impl Strategy<Value = Inventory> {
    let namespaces = vec(btree_set(select(Vocabulary::small().namespace_labels), 0..3), 0..=2);
    let nodes = vec(option::weighted(0.1, (0_u8..12).prop_map(v4)), 1..=3);
    (namespaces, nodes, vec(workloads(), 0..8)).prop_map(|(namespaces, nodes, workloads)| {
        let mut inventory = Inventory::default();
        for (name, labels) in ["a", "b"].map(NamespaceName::from).into_iter().zip(namespaces) {
            inventory.namespaces.insert(name.clone(), Namespace { name, labels: labels.into_iter().collect() });
        }
        for (number, taken) in (1_u8..).zip(&nodes) {
            let name = NodeName::new(format!("n{number}"));
            let addresses = [node_v4(number), node_v6(number), bridged(1)].into_iter().chain(*taken).collect();
            let labels = [("zone".to_owned(), number.to_string())].into_iter().collect();
            inventory.nodes.insert(name.clone(), Node { name, labels, addresses });
        }
        for (number, draft) in (0_u8..).zip(workloads) {
            let workload = draft.workload(number, nodes.len());
            inventory.workloads.insert(workload.id.clone(), workload);
        }
        inventory
    })
}

/// A transport that random policies can be about; ICMP is of the given family.
pub fn transports(family: Family) -> impl Strategy<Value = Transport> {
    let port = (select(PROTOCOLS_WITH_PORTS.to_vec()), select(Vocabulary::small().ports));
    let icmp = (select(vec![0_u8, 3, 8, 128, 255]), select(vec![0_u8, 1, 2, 255]));
    prop_oneof![
        6 => port.prop_map(|(protocol, port)| Transport::Port(protocol, port)),
        2 => icmp.prop_map(move |(kind, code)| Transport::Icmp { family, kind, code }),
        1 => select(vec![GRE, Protocol(4)]).prop_map(Transport::Other),
    ]
}

/// Addresses that no generated workload or node has, public and private.
pub fn strangers() -> Vec<IpAddr> {
    ["10.1.0.99", "172.17.0.77", "8.8.8.8", "100.64.0.1", "0.0.0.0", "255.255.255.255", "fd01::99", "2606:4700::1", "2001:db8::1", "::"]
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect()
}

#[derive(Clone, Debug)]
struct Draft {
    node: usize,
    namespace: &'static str,
    labels: BTreeMap<String, String>,
    shared: Vec<(u8, Option<&'static str>)>,
    own_v4: bool,
    own_v6: bool,
    named_ports: BTreeSet<NamedPort>,
    published_ports: Vec<PublishedPort>,
    state: u8,
}

impl Draft {
    fn workload(self, number: u8, nodes: usize) -> Workload {
        let node = NodeName::new(format!("n{}", self.node % nodes + 1));
        let network = |bridge: Option<&str>| bridge.map_or_else(NetworkName::default_network, |it| NetworkName::hidden(&node, it));
        let at = |address, bridge| NetworkAddress { network: network(bridge), address };
        let mut addresses = Vec::new();
        addresses.extend(self.own_v4.then(|| at(v4(number), None)));
        addresses.extend(self.own_v6.then(|| at(v6(number), None)));
        for (which, bridge) in self.shared {
            let address = match (bridge, which % 4) {
                (Some(_), 0) => v6(which % 2),
                (Some(_), _) => bridged(2 + which % 2),
                (None, 0) => v6(which),
                (None, 1) => bridged(2 + which % 2),
                (None, _) => v4(which),
            };
            addresses.push(at(address, bridge));
        }
        Workload {
            id: WorkloadId::new(node.clone(), ContainerId::new(format!("c{number}"))),
            name: format!("w{number}"),
            namespace: self.namespace.into(),
            labels: Labels(self.labels),
            addresses,
            named_ports: self.named_ports.into_iter().collect(),
            published_ports: self.published_ports,
            interface: None,
            host_network: self.state == 0,
            terminated: self.state == 1,
            source: WorkloadSource::Docker,
        }
    }
}

fn workloads() -> impl Strategy<Value = Draft> {
    let labels = vec(select(Vocabulary::small().labels), 0..3).prop_map(|pairs| pairs.into_iter().collect());
    let shared = prop_oneof![
        3 => Just(Vec::new()),
        2 => vec((0_u8..12, select(vec![None, Some("docker0"), Some("br1")])), 1..3),
    ];
    let protocol = || select(PROTOCOLS_WITH_PORTS.to_vec());
    let port = || select(vec![53_u16, 80, 443]);
    let named = (select(vec!["http", "dns"]), protocol(), port()).prop_map(|(name, protocol, port)| NamedPort {
        name: name.to_owned(),
        protocol,
        port,
    });
    let bound = option::weighted(0.3, select(vec![node_v4(1), node_v6(1), bridged(1)]));
    let published = (protocol(), bound, select(vec![8080_u16, 8443]), port())
        .prop_map(|(protocol, host_address, host_port, workload_port)| PublishedPort { protocol, host_address, host_port, workload_port });
    (
        (0_usize..3, select(vec!["a", "b", "c"]), labels, shared),
        (prop::bool::weighted(0.8), prop::bool::weighted(0.6)),
        (btree_set(named, 0..3), prop_oneof![2 => Just(Vec::new()), 1 => vec(published, 1..3)]),
        0_u8..16,
    )
        .prop_map(|((node, namespace, labels, shared), (own_v4, own_v6), (named_ports, published_ports), state)| Draft {
            node,
            namespace,
            labels,
            shared,
            own_v4,
            own_v6,
            named_ports,
            published_ports,
            state,
        })
}

fn selectors(pairs: Vec<(String, String)>) -> impl Strategy<Value = LabelSelector> {
    let key = select(pairs.iter().map(|(key, _)| key.clone()).chain(["absent".to_owned()]).collect::<Vec<_>>());
    let values = vec(select(pairs.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>()), 1..3);
    let operator = prop_oneof![
        values.clone().prop_map(Operator::In),
        values.prop_map(Operator::NotIn),
        Just(Operator::Exists),
        Just(Operator::DoesNotExist)
    ];
    let requirement = (key, operator).prop_map(|(key, operator)| Requirement { key, operator });
    let labels = vec(select(pairs), 0..2).prop_map(|it| it.into_iter().collect());
    prop_oneof![
        1 => Just(LabelSelector::everything()),
        4 => (labels, vec(requirement, 0..2)).prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions }),
    ]
}

/// Blocks around one address, with host bits, and holes around others.
fn blocks(addresses: Vec<IpAddr>) -> impl Strategy<Value = CidrBlock> {
    let lengths = |v4: &[u8], v6: &[u8]| (select(v4.to_vec()), select(v6.to_vec()));
    let cidr = (select(addresses.clone()), lengths(&[0, 8, 24, 29, 30, 31, 32], &[0, 16, 64, 124, 127, 128]));
    let hole = (select(addresses), lengths(&[16, 24, 30, 31, 32], &[64, 125, 127, 128]));
    let net = |(address, (v4, v6)): (IpAddr, (u8, u8))| IpNet::new(address, if address.is_ipv4() { v4 } else { v6 }).ok();
    (cidr.prop_filter_map("a length of the family", net), vec(hole.prop_filter_map("a length of the family", net), 0..3))
        .prop_map(|(cidr, except)| CidrBlock { cidr, except })
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, last).into()
}

fn v6(last: u8) -> IpAddr {
    Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, last.into()).into()
}

fn bridged(last: u8) -> IpAddr {
    Ipv4Addr::new(172, 17, 0, last).into()
}

fn node_v4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

fn node_v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
}
