//! Segments: workloads on which the same policies act in the same way.

use super::canonical::{Subject, segment_id};
use super::concerns;
use super::groups::Groups;
use super::index::Index;
use crate::model::{
    Direction, HostAccess, Peer, Peers, Policy, PolicySet, PortRange, Protocol, Rule, Service, Services, Workload, WorkloadId,
};
use crate::node_state::{
    CompiledPeers, CompiledRule, CompiledService, CompiledServices, Group, GroupId, Isolation, RuleRef, Segment, SegmentId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

/// Labels that say which application a workload is, in the order in which they are asked.
const APPLICATION_LABELS: [&str; 3] = ["app", "app.kubernetes.io/name", "k8s-app"];

/// Which policies select which workload, in key order.
pub(crate) struct Selections<'a> {
    by_workload: BTreeMap<&'a WorkloadId, Vec<&'a Policy>>,
}

impl<'a> Selections<'a> {
    pub(crate) fn of(policies: &'a PolicySet, index: &Index<'a>) -> Self {
        let mut by_workload: BTreeMap<&WorkloadId, Vec<&Policy>> = BTreeMap::new();
        for policy in policies.policies.values() {
            for workload in index.in_namespace(&policy.key.namespace, &policy.subject) {
                by_workload.entry(&workload.id).or_default().push(policy);
            }
        }
        Self { by_workload }
    }
}

/// The segment of one workload, in the making.
pub(crate) struct SegmentBuilder<'a> {
    workload: &'a Workload,
    policies: &'a [&'a Policy],
    title: String,
}

impl<'a> SegmentBuilder<'a> {
    pub(crate) fn of(workload: &'a Workload, selections: &'a Selections<'a>) -> Self {
        let policies = selections.by_workload.get(&workload.id).map(Vec::as_slice).unwrap_or_default();
        let application = APPLICATION_LABELS.iter().find_map(|key| workload.labels.get(key)).unwrap_or(&workload.name);
        Self { workload, policies, title: format!("{}/{application}", workload.namespace) }
    }

    /// Title, policies, and how this workload resolves the ports that they name.
    pub(crate) fn id(&self) -> SegmentId {
        let mut text = format!("segment/1\n{:?}\n", self.title);
        for policy in self.policies {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {:?} {:?}", policy.key.kind.as_str(), policy.key.namespace, policy.key.name);
            for (protocol, name) in named_in(policy.ingress.as_deref().unwrap_or_default()) {
                let _ = writeln!(text, "  {} {name:?} is {:?}", protocol.0, self.own_ports(protocol, name));
            }
        }
        segment_id(&text)
    }

    pub(crate) fn build(&self, id: SegmentId, groups: &mut Groups<'_>) -> (Segment, Vec<Arc<Group>>) {
        let mut used = Vec::new();
        let ingress = self.isolation(Direction::Ingress, groups, &mut used);
        let egress = self.isolation(Direction::Egress, groups, &mut used);
        (Segment { id, title: self.title.clone(), ingress, egress }, used)
    }

    fn isolation(&self, direction: Direction, groups: &mut Groups<'_>, used: &mut Vec<Arc<Group>>) -> Option<Isolation> {
        let mut isolation = Isolation { policies: Vec::new(), host_access: HostAccess::Allow, rules: Vec::new() };
        for policy in self.policies {
            let Some(rules) = concerns(policy, direction) else { continue };
            isolation.policies.push(policy.key.clone());
            isolation.host_access = isolation.host_access.max(policy.host_access);
            for (index, rule) in rules.iter().enumerate() {
                // A manifest is bounded far below 2^32 rules; one beyond would only lose its number, not its effect.
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                let origin = RuleRef { policy: policy.key.clone(), index, name: rule.name.clone() };
                self.compile_rule(direction, policy, rule, &origin, groups, used, &mut isolation.rules);
            }
        }
        (!isolation.policies.is_empty()).then_some(isolation)
    }

    #[allow(clippy::too_many_arguments)]
    fn compile_rule(
        &self,
        direction: Direction,
        policy: &Policy,
        rule: &Rule,
        origin: &RuleRef,
        groups: &mut Groups<'_>,
        used: &mut Vec<Arc<Group>>,
        compiled: &mut Vec<CompiledRule>,
    ) {
        let node = &self.workload.id.node;
        let namespace = &policy.key.namespace;
        let mut resolve = |subject: Subject<'_>, ids: &mut Vec<GroupId>| {
            for group in groups.on_node(node, namespace, subject) {
                ids.push(group.id.clone());
                used.push(group);
            }
        };
        let (services, named) = self.services(direction, &rule.services);
        // A rule whose services are all named ports of the other end has nothing to say about plain peers.
        let only_named = !named.is_empty() && services == CompiledServices::Only(Vec::new());
        if !only_named {
            let peers = match &rule.peers {
                Peers::Any => CompiledPeers::Any,
                Peers::Only(peers) => {
                    let mut ids = Vec::new();
                    peers.iter().for_each(|peer| resolve(Subject::Peer(peer), &mut ids));
                    CompiledPeers::Groups(sorted(ids))
                }
            };
            compiled.push(CompiledRule { origin: origin.clone(), peers, services });
        }
        if !named.is_empty() {
            let peers: Vec<Option<&Peer>> = match &rule.peers {
                Peers::Any => vec![None],
                Peers::Only(peers) => peers.iter().map(Some).collect(),
            };
            let mut ids = Vec::new();
            for peer in peers {
                for (protocol, name) in &named {
                    resolve(Subject::NamedPort(peer, *protocol, name), &mut ids);
                }
            }
            compiled.push(CompiledRule {
                origin: origin.clone(),
                peers: CompiledPeers::Groups(sorted(ids)),
                services: CompiledServices::OfMembers,
            });
        }
    }

    /// The services by number, and those that only the other end can resolve (SEMANTICS 5).
    fn services<'r>(&self, direction: Direction, services: &'r Services) -> (CompiledServices, BTreeSet<(Protocol, &'r str)>) {
        let Services::Only(services) = services else { return (CompiledServices::Any, BTreeSet::new()) };
        let mut numbers = BTreeSet::new();
        let mut named = BTreeSet::new();
        for service in services {
            match (service, direction) {
                (Service::Protocol(protocol), _) => numbers.extend([CompiledService::Protocol(*protocol)]),
                (Service::Ports(protocol, ports), _) => numbers.extend([CompiledService::Ports(*protocol, *ports)]),
                (Service::Icmp { family, kind, code }, _) => {
                    numbers.extend([CompiledService::Icmp { family: *family, kind: *kind, code: *code }])
                }
                (Service::Named(protocol, name), Direction::Ingress) => {
                    numbers.extend(
                        self.own_ports(*protocol, name).into_iter().map(|port| CompiledService::Ports(*protocol, PortRange::single(port))),
                    );
                }
                (Service::Named(protocol, name), Direction::Egress) => named.extend([(*protocol, name.as_str())]),
            }
        }
        (CompiledServices::Only(numbers.into_iter().collect()), named)
    }

    fn own_ports(&self, protocol: Protocol, name: &str) -> BTreeSet<u16> {
        self.workload.named_ports.iter().filter(|it| it.protocol == protocol && it.name == name).map(|it| it.port).collect()
    }
}

fn sorted(mut ids: Vec<GroupId>) -> Vec<GroupId> {
    ids.sort();
    ids.dedup();
    ids
}

fn named_in(rules: &[Rule]) -> BTreeSet<(Protocol, &str)> {
    rules
        .iter()
        .flat_map(|rule| match &rule.services {
            Services::Any => &[][..],
            Services::Only(services) => services,
        })
        .filter_map(|service| match service {
            Service::Named(protocol, name) => Some((*protocol, name.as_str())),
            Service::Protocol(_) | Service::Ports(..) | Service::Icmp { .. } => None,
        })
        .collect()
}
