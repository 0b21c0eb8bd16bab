//! Segments: workloads on which the same policies act in the same way.

use super::canonical::{Claim, Subject, segment_id};
use super::concerns;
use super::groups::Groups;
use super::index::Index;
use crate::model::{
    Action, Answer, Direction, HostAccess, Mode, NamespaceScope, Peer, Peers, Policy, PolicyKey, PolicySet, PortRange, Protocol, Service,
    Services, Tier, TieredPolicy, TieredRule, Workload, WorkloadId,
};
use crate::node_state::{
    CompiledPeers, CompiledRule, CompiledService, CompiledServices, Group, GroupId, Isolation, RuleRef, Rulebook, Segment, SegmentId,
    TierRule, TierRules,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

/// Labels that say which application a workload is, in the order in which they are asked.
pub(crate) const APPLICATION_LABELS: [&str; 3] = ["app", "app.kubernetes.io/name", "k8s-app"];

/// Which policies select which workload: those of namespaces in key order, those of tiers in the order of their precedence.
pub(crate) struct Selections<'a> {
    policies: &'a PolicySet,
    by_workload: BTreeMap<&'a WorkloadId, Selected<'a>>,
    nobody: Selected<'a>,
}

#[derive(Debug, Default)]
struct Selected<'a> {
    namespaced: Vec<&'a Policy>,
    tiered: Vec<&'a TieredPolicy>,
}

impl<'a> Selections<'a> {
    pub(crate) fn of(policies: &'a PolicySet, index: &Index<'a>) -> Self {
        let mut by_workload: BTreeMap<&WorkloadId, Selected<'a>> = BTreeMap::new();
        for policy in policies.policies.values() {
            for workload in index.in_namespace(&policy.key.namespace, &policy.subject) {
                by_workload.entry(&workload.id).or_default().namespaced.push(policy);
            }
        }
        let mut tiered: Vec<&TieredPolicy> = policies.tiered.values().collect();
        tiered.sort_by_key(|it| (it.tier, it.priority, &it.key));
        for policy in tiered {
            let scope = NamespaceScope::Matching(policy.subject.namespaces.clone());
            for workload in index.peers(&policy.key.namespace, &scope, &policy.subject.workloads) {
                by_workload.entry(&workload.id).or_default().tiered.push(policy);
            }
        }
        Self { policies, by_workload, nobody: Selected::default() }
    }
}

/// The segment of one workload, in the making.
pub(crate) struct SegmentBuilder<'a> {
    workload: &'a Workload,
    policies: &'a PolicySet,
    selected: &'a Selected<'a>,
    title: String,
}

/// The peers and services that a rule comes to: one pair for its ports by number, one for those that the other end names.
type Resolved = (CompiledPeers, CompiledServices);

impl<'a> SegmentBuilder<'a> {
    pub(crate) fn of(workload: &'a Workload, selections: &'a Selections<'a>) -> Self {
        let selected = selections.by_workload.get(&workload.id).unwrap_or(&selections.nobody);
        let application = APPLICATION_LABELS.iter().find_map(|key| workload.labels.get(key)).unwrap_or(&workload.name);
        Self { workload, policies: selections.policies, selected, title: format!("{}/{application}", workload.namespace) }
    }

    /// Title, policies, and how this workload resolves the ports that they name.
    pub(crate) fn id(&self) -> SegmentId {
        let mut text = format!("segment/1\n{:?}\n", self.title);
        let mut add = |key: &PolicyKey, named: BTreeSet<(Protocol, &str)>| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {:?} {:?}", key.kind.as_str(), key.namespace, key.name);
            for (protocol, name) in named {
                let _ = writeln!(text, "  {} {name:?} is {:?}", protocol.0, self.own_ports(protocol, name));
            }
        };
        for policy in &self.selected.namespaced {
            add(&policy.key, named_in(policy.ingress.iter().flatten().map(|rule| &rule.services)));
        }
        for policy in &self.selected.tiered {
            add(&policy.key, named_in(policy.ingress.iter().map(|rule| &rule.services)));
        }
        segment_id(&text)
    }

    pub(crate) fn build(&self, id: SegmentId, groups: &mut Groups<'_>) -> (Segment, Vec<Arc<Group>>) {
        let mut used = Vec::new();
        let rules = self.rulebook(false, groups, &mut used);
        let modes = self.selected.namespaced.iter().map(|it| it.mode).chain(self.selected.tiered.iter().map(|it| it.mode));
        let audited = modes.into_iter().any(|mode| mode == Mode::Audit);
        let audit = audited.then(|| self.rulebook(true, groups, &mut used));
        (Segment { id, title: self.title.clone(), rules: rules.into(), audit: audit.map(Arc::new) }, used)
    }

    /// What the policies say that are enforced, and with `audit` those in Audit mode as if they were.
    fn rulebook(&self, audit: bool, groups: &mut Groups<'_>, used: &mut Vec<Arc<Group>>) -> Rulebook {
        let mut tier = |tier| TierRules {
            ingress: self.tier(tier, Direction::Ingress, audit, groups, used),
            egress: self.tier(tier, Direction::Egress, audit, groups, used),
        };
        let (admin, baseline) = (tier(Tier::Admin), tier(Tier::Baseline));
        Rulebook {
            admin,
            ingress: self.isolation(Direction::Ingress, audit, groups, used),
            egress: self.isolation(Direction::Egress, audit, groups, used),
            baseline,
        }
    }

    fn isolation(&self, direction: Direction, audit: bool, groups: &mut Groups<'_>, used: &mut Vec<Arc<Group>>) -> Option<Isolation> {
        let mut isolation = Isolation { policies: Vec::new(), host_access: HostAccess::Allow, rules: Vec::new() };
        for policy in self.selected.namespaced.iter().filter(|it| counts(it.mode, audit)) {
            let Some(rules) = concerns(policy, direction) else { continue };
            isolation.policies.push(policy.key.clone());
            isolation.host_access = isolation.host_access.max(policy.host_access);
            for (index, rule) in rules.iter().enumerate() {
                let origin = origin(&policy.key, index, &rule.name);
                for (peers, services) in self.resolve(direction, &policy.key, (&rule.peers, &rule.services), Claim::Sure, groups, used) {
                    isolation.rules.push(CompiledRule { origin: origin.clone(), peers, services });
                }
            }
        }
        (!isolation.policies.is_empty()).then_some(isolation)
    }

    fn tier(&self, tier: Tier, direction: Direction, audit: bool, groups: &mut Groups<'_>, used: &mut Vec<Arc<Group>>) -> Vec<TierRule> {
        let mut compiled = Vec::new();
        for policy in self.selected.tiered.iter().filter(|it| it.tier == tier && counts(it.mode, audit)) {
            for (index, rule) in policy.rules(direction).iter().enumerate() {
                let origin = origin(&policy.key, index, &rule.name);
                let (action, peers, services) = self.closed(rule);
                let claim = match action {
                    Action::Deny(_) => Claim::Any,
                    Action::Allow | Action::Pass => Claim::Sure,
                };
                for (peers, services) in self.resolve(direction, &policy.key, (peers, services), claim, groups, used) {
                    compiled.push(TierRule { origin: origin.clone(), action, peers, services, reason: rule.reason.clone() });
                }
            }
        }
        compiled
    }

    /// A rule as it stands when what it names is not there or not known: an allow loses that peer (the group is empty), anything else denies.
    fn closed<'r>(&self, rule: &'r TieredRule) -> (Action, &'r Peers, &'r Services) {
        let peers = match &rule.peers {
            Peers::Any => &[][..],
            Peers::Only(peers) => peers,
        };
        let answer = match rule.action {
            Action::Allow => return (rule.action, &rule.peers, &rule.services),
            Action::Deny(answer) => answer,
            Action::Pass => Answer::Drop,
        };
        if peers.contains(&Peer::Unknown) {
            return (Action::Deny(answer), &Peers::Any, &Services::Any);
        }
        let missing = |it: &Peer| matches!(it, Peer::Group(name) if !self.policies.address_groups.contains_key(name));
        if peers.iter().any(missing) {
            return (Action::Deny(answer), &Peers::Any, &rule.services);
        }
        (rule.action, &rule.peers, &rule.services)
    }

    fn resolve(
        &self,
        direction: Direction,
        policy: &PolicyKey,
        (peers, services): (&Peers, &Services),
        claim: Claim,
        groups: &mut Groups<'_>,
        used: &mut Vec<Arc<Group>>,
    ) -> Vec<Resolved> {
        let node = &self.workload.id.node;
        let mut resolve = |subject: Subject<'_>, ids: &mut Vec<GroupId>| {
            for group in groups.on_node(node, &policy.namespace, subject, claim) {
                ids.push(group.id.clone());
                used.push(group);
            }
        };
        let mut resolved = Vec::new();
        let (services, named) = self.services(direction, services);
        // A rule whose services are all named ports of the other end has nothing to say about plain peers.
        let only_named = !named.is_empty() && services == CompiledServices::Only(Vec::new());
        if !only_named {
            let peers = match peers {
                Peers::Any => CompiledPeers::Any,
                Peers::Only(peers) => {
                    let mut ids = Vec::new();
                    peers.iter().for_each(|peer| resolve(Subject::Peer(peer), &mut ids));
                    CompiledPeers::Groups(sorted(ids))
                }
            };
            resolved.push((peers, services));
        }
        if !named.is_empty() {
            let peers: Vec<Option<&Peer>> = match peers {
                Peers::Any => vec![None],
                Peers::Only(peers) => peers.iter().map(Some).collect(),
            };
            let mut ids = Vec::new();
            for peer in peers {
                for (protocol, name) in &named {
                    resolve(Subject::NamedPort(peer, *protocol, name), &mut ids);
                }
            }
            resolved.push((CompiledPeers::Groups(sorted(ids)), CompiledServices::OfMembers));
        }
        resolved
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

/// Whether a policy of this mode takes part.
fn counts(mode: Mode, audit: bool) -> bool {
    match mode {
        Mode::Enforce => true,
        Mode::Audit => audit,
    }
}

fn origin(policy: &PolicyKey, index: usize, name: &Option<String>) -> RuleRef {
    // A manifest is bounded far below 2^32 rules; one beyond would only lose its number, not its effect.
    RuleRef { policy: policy.clone(), index: u32::try_from(index).unwrap_or(u32::MAX), name: name.clone() }
}

fn named_in<'a>(services: impl Iterator<Item = &'a Services>) -> BTreeSet<(Protocol, &'a str)> {
    services
        .flat_map(|services| match services {
            Services::Any => &[][..],
            Services::Only(services) => services,
        })
        .filter_map(|service| match service {
            Service::Named(protocol, name) => Some((*protocol, name.as_str())),
            Service::Protocol(_) | Service::Ports(..) | Service::Icmp { .. } => None,
        })
        .collect()
}
