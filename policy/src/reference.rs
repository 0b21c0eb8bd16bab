//! The slow reference: the semantics written down once more, straight from the model, to be checked by eye and to check the engine by.
//!
//! It shares nothing with compile, flatten and evaluate but the model's types. No index, no groups, no sets: every question goes through
//! every policy. The numbers are those of the Kubernetes corner cases that the policy reference lists.

use crate::model::{
    Action, CidrBlock, Direction, Endpoint, Entity, Family, HostAccess, Inventory, LabelSelector, Mode, NamespaceName, NamespaceScope,
    NetworkAddress, NetworkName, NodeName, Peer, Peers, Policy, PolicySet, Rule, Service, Services, Tier, TieredPolicy, Transport,
    Workload,
};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is asked about. Policies in Audit mode are as if absent; the audit verdict is that over [`PolicySet::with_audit_enforced`].
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// The policies.
    pub policies: &'a PolicySet,
    /// What is running.
    pub inventory: &'a Inventory,
}

/// What each end says; `None` where no workload judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The source's end.
    pub egress: Option<bool>,
    /// The destination's end.
    pub ingress: Option<bool>,
}

impl<'a> Reference<'a> {
    /// The verdict on a flow between two ends (11: both must allow, each judged alone). `None` when they have no addresses of one family.
    pub fn flow(&self, from: &Endpoint, to: &Endpoint, transport: Transport) -> Option<Verdict> {
        let families = match transport {
            Transport::Icmp { family, .. } => vec![family],
            Transport::Port(..) | Transport::Other(_) => vec![Family::V4, Family::V6],
        };
        let of = |end: &Endpoint, family| self.addresses(end).into_iter().find(|at| Family::of(at.address) == family);
        let (source, destination) = families.into_iter().find_map(|family| Some((of(from, family)?, of(to, family)?)))?;
        Some(Verdict {
            egress: self.end(from, &source, to, &destination, Direction::Egress, transport),
            ingress: self.end(to, &destination, from, &source, Direction::Ingress, transport),
        })
    }

    /// What the workloads that hold `local` on `node` say to `peer`; `None` if none does. All of them must allow: who sends from an address
    /// that two claim cannot be told (DESIGN section 3).
    pub fn stage(&self, node: &NodeName, direction: Direction, local: IpAddr, peer: IpAddr, transport: Transport) -> Option<bool> {
        let holders: Vec<&Workload> = self.local(node, local).collect();
        let allows = |it: &&Workload| self.workload(it, direction, local, peer, transport);
        (!holders.is_empty()).then(|| holders.iter().all(allows))
    }

    /// The live workloads of a node that have this address there. On one node an address is one thing, whatever the network is called.
    pub fn local(&self, node: &NodeName, address: IpAddr) -> impl Iterator<Item = &'a Workload> {
        let here = move |at: &NetworkAddress, node: &NodeName| at.address == address && at.network.reaches(node);
        live(self.inventory).filter(move |it| it.id.node == *node && it.addresses.iter().any(|at| here(at, &it.id.node)))
    }

    fn end(
        &self,
        subject: &Endpoint,
        local: &NetworkAddress,
        peer: &Endpoint,
        remote: &NetworkAddress,
        direction: Direction,
        transport: Transport,
    ) -> Option<bool> {
        let nodes: BTreeSet<&NodeName> = match subject {
            Endpoint::Workload(id) => live(self.inventory).filter(|it| it.id == *id).map(|it| &it.id.node).collect(),
            Endpoint::Address(_) => live(self.inventory).filter(|it| it.addresses.contains(local)).map(|it| &it.id.node).collect(),
        };
        let said = |node: &NodeName| self.stage(node, direction, local.address, self.seen(node, peer, remote), transport);
        nodes.into_iter().filter_map(said).reduce(|one, other| one && other)
    }

    /// A peer in a network that does not reach the node is behind masquerading: it appears as the node that it is on.
    fn seen(&self, node: &NodeName, peer: &Endpoint, at: &NetworkAddress) -> IpAddr {
        let (Endpoint::Workload(id), false) = (peer, at.network.reaches(node)) else { return at.address };
        let family = Family::of(at.address);
        let hiding = self.node_addresses(&id.node).iter().copied().find(|it| Family::of(*it) == family);
        hiding.unwrap_or(if family == Family::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() })
    }

    /// 12: a host-network workload is its node's addresses.
    fn addresses(&self, end: &Endpoint) -> Vec<NetworkAddress> {
        let plain = |address: &IpAddr| NetworkAddress { network: NetworkName::default_network(), address: *address };
        match end {
            Endpoint::Address(address) => vec![plain(address)],
            Endpoint::Workload(id) => match self.inventory.workloads.get(id) {
                Some(workload) if workload.terminated => Vec::new(),
                Some(workload) if workload.host_network => self.node_addresses(&id.node).iter().map(plain).collect(),
                Some(workload) => workload.addresses.clone(),
                None => Vec::new(),
            },
        }
    }

    fn node_addresses(&self, node: &NodeName) -> &'a [IpAddr] {
        self.inventory.nodes.get(node).map_or(&[], |node| &node.addresses)
    }

    /// One workload's word.
    fn workload(&self, subject: &Workload, direction: Direction, local: IpAddr, peer: IpAddr, transport: Transport) -> bool {
        // 11: a workload always reaches itself. An address that another one here claims too may not be itself.
        let mut holders = self.local(&subject.id.node, peer);
        if peer == local || (holders.next().is_some_and(|it| it.id == subject.id) && holders.next().is_none()) {
            return true;
        }
        // 14: tiers isolate nobody, the first decision wins. 15: a Pass leaves the tier, and after the Baseline everything is allowed.
        if let Some(decided) = self.tier(Tier::Admin, subject, direction, peer, transport) {
            return decided;
        }
        // 17: where a policy of the namespace isolates, that is final.
        if let Some(decided) = self.namespaced(subject, direction, peer, transport) {
            return decided;
        }
        self.tier(Tier::Baseline, subject, direction, peer, transport).unwrap_or(true)
    }

    /// What the policies of the subject's namespace say; `None` where none of them isolates the direction.
    fn namespaced(&self, subject: &Workload, direction: Direction, peer: IpAddr, transport: Transport) -> Option<bool> {
        // 10: policies add up; a policy is about its own namespace. 13: one that does not concern the direction does not isolate it.
        let selecting = self.policies.policies.values().filter(|it| it.mode == Mode::Enforce && it.key.namespace == subject.namespace);
        let isolating: Vec<(&Policy, &[Rule])> = selecting
            .filter(|policy| policy.subject.matches(&subject.labels))
            .filter_map(|policy| match direction {
                Direction::Ingress => Some((policy, policy.ingress.as_deref()?)),
                Direction::Egress => Some((policy, policy.egress.as_deref()?)),
            })
            .collect();
        if isolating.is_empty() {
            return None;
        }
        // 11: the own node always gets in, unless a SegmentPolicy that isolates says that it is judged.
        let from_own_node = direction == Direction::Ingress && self.node_addresses(&subject.id.node).contains(&peer);
        if from_own_node && isolating.iter().all(|(policy, _)| policy.host_access == HostAccess::Allow) {
            return Some(true);
        }
        let asked = |policy: &Policy, rule: &Rule| {
            self.rule(Some(&policy.key.namespace), &rule.peers, &rule.services, Claim::Sure, subject, direction, peer, transport)
        };
        Some(isolating.iter().any(|(policy, rules)| rules.iter().any(|rule| asked(policy, rule))))
    }

    /// What a tier says; `None` where no rule matches, or the first that does is a Pass.
    fn tier(&self, tier: Tier, subject: &Workload, direction: Direction, peer: IpAddr, transport: Transport) -> Option<bool> {
        let none = crate::model::Labels::default();
        let namespace = self.inventory.namespaces.get(&subject.namespace).map_or(&none, |it| &it.labels);
        let mut policies: Vec<&TieredPolicy> =
            self.policies.tiered.values().filter(|it| it.tier == tier && it.mode == Mode::Enforce).collect();
        policies.retain(|it| it.subject.namespaces.matches(namespace) && it.subject.workloads.matches(&subject.labels));
        // 14: the lowest number first; of equal ones the first by key.
        policies.sort_by_key(|it| (it.priority, &it.key));
        for rule in policies.into_iter().flat_map(|it| it.rules(direction)) {
            // 20: an unknown peer fails closed: an allow matches nothing by it, anything else denies everything. A group that is missing
            // does the same, but for the services that the rule is about.
            let peers = match &rule.peers {
                Peers::Any => &[][..],
                Peers::Only(peers) => peers,
            };
            let unknown = peers.contains(&Peer::Unknown);
            let missing = peers.iter().any(|it| matches!(it, Peer::Group(name) if !self.policies.address_groups.contains_key(name)));
            // A workload does not escape a rule that denies it by claiming an address that another one claims too.
            // A Pass that is closed is such a rule.
            let denies = matches!(rule.action, Action::Deny(_)) || (missing && rule.action == Action::Pass);
            let claim = if denies { Claim::Any } else { Claim::Sure };
            let asked = |peers: &Peers, services: &Services| self.rule(None, peers, services, claim, subject, direction, peer, transport);
            match rule.action {
                Action::Allow if asked(&rule.peers, &rule.services) => return Some(true),
                Action::Deny(_) | Action::Pass if unknown => return Some(false),
                Action::Deny(_) | Action::Pass if missing && asked(&Peers::Any, &rule.services) => return Some(false),
                Action::Deny(_) if asked(&rule.peers, &rule.services) => return Some(false),
                Action::Pass if asked(&rule.peers, &rule.services) => return None,
                Action::Allow | Action::Deny(_) | Action::Pass => {}
            }
        }
        None
    }

    /// Whether a rule of a policy of `own` matches; `None` for the policies of tiers, which have no namespace.
    #[allow(clippy::too_many_arguments)]
    fn rule(
        &self,
        own: Option<&NamespaceName>,
        peers: &Peers,
        services: &Services,
        claim: Claim,
        subject: &Workload,
        direction: Direction,
        peer: IpAddr,
        transport: Transport,
    ) -> bool {
        let node = &subject.id.node;
        let service = |service: &Service, peer_rule: Option<&Peer>| match (service, transport) {
            (Service::Protocol(protocol), _) => *protocol == transport.protocol(), // 3
            (Service::Ports(protocol, ports), Transport::Port(of, port)) => *protocol == of && ports.contains(port), // 5
            (Service::Icmp { family, kind, code }, Transport::Icmp { family: of, kind: sent, code: sent_code }) => {
                *family == of && *kind == sent && code.is_none_or(|code| code == sent_code)
            }
            (Service::Named(protocol, name), Transport::Port(of, port)) if *protocol == of => {
                // 5: resolved on the destination workload; never matches an address outside, and a node names no ports.
                let destinations = match direction {
                    Direction::Ingress => vec![subject],
                    Direction::Egress if matches!(peer_rule, Some(Peer::Entity(Entity::Host) | Peer::Nodes(_))) => Vec::new(),
                    // The port of the very workload that the rule means: of two that claim an address, one may be meant and the other name the port.
                    Direction::Egress => {
                        let meant = |holder: &&Workload| match peer_rule {
                            Some(Peer::Workloads { namespaces, workloads }) => self.is_meant(own, namespaces, workloads, holder),
                            None | Some(Peer::Cidr(_) | Peer::Group(_) | Peer::Entity(_) | Peer::Nodes(_) | Peer::Unknown) => true,
                        };
                        self.holders(node, peer, claim).into_iter().filter(meant).collect()
                    }
                };
                let is_it = |workload: &Workload| {
                    workload.named_ports.iter().any(|it| it.name == *name && it.protocol == *protocol && it.port == port)
                };
                destinations.into_iter().any(is_it)
            }
            (Service::Ports(..) | Service::Icmp { .. } | Service::Named(..), _) => false,
        };
        let serves = |peer_rule| match services {
            Services::Any => true,
            Services::Only(services) => services.iter().any(|it| service(it, peer_rule)),
        };
        match peers {
            Peers::Any => serves(None),
            Peers::Only(peers) => peers.iter().any(|it| self.is_peer(own, node, it, claim, peer) && serves(Some(it))),
        }
    }

    fn is_peer(&self, own: Option<&NamespaceName>, node: &NodeName, wanted: &Peer, claim: Claim, peer: IpAddr) -> bool {
        match wanted {
            Peer::Workloads { namespaces, workloads } => {
                self.holders(node, peer, claim).into_iter().any(|holder| self.is_meant(own, namespaces, workloads, holder))
            }
            Peer::Cidr(block) => in_block(block, peer),
            // A group that is missing is nobody.
            Peer::Group(name) => {
                self.policies.address_groups.get(name).is_some_and(|it| it.blocks.iter().any(|block| in_block(block, peer)))
            }
            Peer::Entity(Entity::Any) => true,
            Peer::Entity(Entity::Host) => self.node_addresses(node).contains(&peer),
            Peer::Entity(Entity::World) if self.policies.cluster_networks.is_empty() => is_public(peer),
            Peer::Entity(Entity::World) => !self.policies.cluster_networks.iter().any(|network| network.contains(&peer)),
            // 18: the addresses of the nodes, and not the workloads on them.
            Peer::Nodes(selector) => {
                let mut nodes = self.inventory.nodes.values().filter(|node| selector.matches(&node.labels));
                nodes.any(|node| node.addresses.contains(&peer))
            }
            // 20.
            Peer::Unknown => false,
        }
    }

    /// Whether a peer means this workload.
    fn is_meant(&self, own: Option<&NamespaceName>, namespaces: &NamespaceScope, workloads: &LabelSelector, holder: &Workload) -> bool {
        let scope = match namespaces {
            NamespaceScope::Own => own == Some(&holder.namespace), // 6
            NamespaceScope::Matching(selector) => match self.inventory.namespaces.get(&holder.namespace) {
                Some(namespace) => selector.matches(&namespace.labels),
                None => selector.matches(&crate::model::Labels::default()),
            },
        };
        scope && workloads.matches(&holder.labels)
    }

    /// The workloads that an address means on this node, in the networks that reach it. Sure: the one that claims it, if there is one claim
    /// and no more and, in the default network, no node has it; an address that two claim is nobody's.
    fn holders(&self, node: &NodeName, address: IpAddr, claim: Claim) -> Vec<&'a Workload> {
        let mut claims = BTreeSet::new();
        for workload in live(self.inventory) {
            let reaching = workload.addresses.iter().filter(|at| at.address == address && at.network.reaches(node));
            claims.extend(reaching.map(|at| (&workload.id, &at.network)));
        }
        let is_node = || self.inventory.nodes.values().any(|node| node.addresses.contains(&address));
        let sure = claims.len() == 1 && !(claims.iter().any(|(_, network)| network.is_default()) && is_node());
        match claim {
            Claim::Sure if !sure => Vec::new(),
            Claim::Sure | Claim::Any => claims.into_iter().filter_map(|(id, _)| self.inventory.workloads.get(id)).collect(),
        }
    }
}

/// Which claims to an address count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// Only one that nobody else makes: for rules that allow.
    Sure,
    /// Each: for rules that deny.
    Any,
}

/// 12: host-network workloads are neither subjects nor peers; one that ended holds no address.
fn live(inventory: &Inventory) -> impl Iterator<Item = &Workload> {
    inventory.workloads.values().filter(|it| !it.terminated && !it.host_network)
}

/// 9: `except` cuts only its own block, and blocks may carry host bits.
fn in_block(block: &CidrBlock, address: IpAddr) -> bool {
    block.cidr.contains(&address) && !block.except.iter().any(|hole: &IpNet| hole.contains(&address))
}

/// Reached over the internet: outside the IANA special-purpose registries and multicast, IPv6 only in 2000::/3.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_documentation() || v4.is_multicast();
            let shared = a == 100 && (64..128).contains(&b);
            let benchmarks = a == 198 && (b == 18 || b == 19);
            let protocols = (a, b, c) == (192, 0, 0) || (a, b, c) == (192, 88, 99);
            !(special || shared || benchmarks || protocols || a == 0 || a >= 240)
        }
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            let special = (a == 0x2001 && (b < 0x200 || b == 0xdb8)) || a == 0x2002 || (a == 0x3fff && b < 0x1000);
            a & 0xe000 == 0x2000 && !special && (a, b, c) != (0x2620, 0x4f, 0x8000)
        }
    }
}
