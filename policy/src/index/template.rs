//! A policy with its peers as numbers of groups: what every segment with that policy is built from.

use crate::compile::canonical::{Claim, Part, Subject, group_id_of, group_text};
use crate::compile::groups::canonical_title;
use crate::model::{
    Action, Answer, Direction, GroupName, Mode, Peer, Peers, Policy, PolicyKey, Protocol, Service, Services, Tier, TieredPolicy, TieredRule,
};
use crate::node_state::{CompiledService, GroupId};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A policy as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Namespaced(Arc<Policy>),
    Tiered(Arc<TieredPolicy>),
}

impl Item {
    pub(super) fn key(&self) -> &PolicyKey {
        match self {
            Self::Namespaced(policy) => &policy.key,
            Self::Tiered(policy) => &policy.key,
        }
    }

    pub(super) fn mode(&self) -> Mode {
        match self {
            Self::Namespaced(policy) => policy.mode,
            Self::Tiered(policy) => policy.mode,
        }
    }

    /// Policies of namespaces in key order, then those of tiers in the order of their precedence.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Namespaced(one), Self::Namespaced(other)) => one.key.cmp(&other.key),
            (Self::Namespaced(_), Self::Tiered(_)) => Ordering::Less,
            (Self::Tiered(_), Self::Namespaced(_)) => Ordering::Greater,
            (Self::Tiered(one), Self::Tiered(other)) => {
                let rank = |it: &TieredPolicy| (it.tier, it.priority);
                rank(one).cmp(&rank(other)).then_with(|| one.key.cmp(&other.key))
            }
        }
    }

    pub(super) fn rank(&self) -> Option<(Tier, u16)> {
        match self {
            Self::Namespaced(_) => None,
            Self::Tiered(policy) => Some((policy.tier, policy.priority)),
        }
    }

    /// Every peer that a rule names.
    pub(super) fn peers(&self) -> impl Iterator<Item = &Peer> {
        let (namespaced, tiered) = match self {
            Self::Namespaced(policy) => (Some(policy), None),
            Self::Tiered(policy) => (None, Some(policy)),
        };
        let namespaced = namespaced.into_iter().flat_map(|it| it.ingress.iter().chain(&it.egress).flatten()).map(|rule| &rule.peers);
        let tiered = tiered.into_iter().flat_map(|it| it.ingress.iter().chain(&it.egress)).map(|rule| &rule.peers);
        namespaced.chain(tiered).flat_map(listed)
    }

    /// The address groups that it names.
    pub(super) fn referents(&self) -> BTreeSet<GroupName> {
        let group = |peer: &Peer| match peer {
            Peer::Group(name) => Some(name.clone()),
            Peer::Workloads { .. } | Peer::Cidr(_) | Peer::Entity(_) | Peer::Nodes(_) | Peer::Unknown => None,
        };
        self.peers().filter_map(group).collect()
    }
}

/// A port by name, with the protocol that belongs to it.
pub(super) type PortName = (Protocol, Arc<str>);

/// A policy's rules, resolved as far as they are the same for everybody.
#[derive(Debug, Default)]
pub(super) struct Template {
    /// `None`: the policy does not concern the direction.
    pub(super) ingress: Option<Box<[RuleTemplate]>>,
    pub(super) egress: Option<Box<[RuleTemplate]>>,
    /// Every group that a rule names, sorted.
    pub(super) groups: Box<[u32]>,
    /// The ports that rules about ingress name: the subject resolves them. Sorted.
    pub(super) named: Box<[PortName]>,
    /// What the policy adds to the name of a segment, before its ports.
    pub(super) line: Box<str>,
}

impl Template {
    pub(super) fn rules(&self, direction: Direction) -> Option<&[RuleTemplate]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// A rule, or its part about ports that the other end names.
#[derive(Debug)]
pub(super) struct RuleTemplate {
    /// Its position in the policy.
    pub(super) position: u32,
    /// What it decides; the rules of namespaces allow.
    pub(super) action: Action,
    /// `None` is any.
    pub(super) peers: Option<Box<[u32]>>,
    pub(super) services: ServiceTemplate,
}

#[derive(Debug)]
pub(super) enum ServiceTemplate {
    Any,
    Only { numbers: Box<[CompiledService]>, own: Box<[PortName]> },
    OfMembers,
}

/// A template whose groups are not numbered yet.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    /// In it, groups are named by their position in `groups`.
    pub(super) template: Template,
    pub(super) groups: Vec<Wanted<'a>>,
}

/// A group that a policy needs.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) subject: Subject<'a>,
    pub(super) claim: Claim,
    pub(super) text: String,
    pub(super) id: GroupId,
    /// In words, where the group is not there yet.
    pub(super) title: Option<String>,
}

impl Template {
    /// Puts in the numbers of the groups, which are given by position.
    pub(super) fn numbered(self, numbers: &[u32]) -> Self {
        let mut template = self;
        for rule in [&mut template.ingress, &mut template.egress].into_iter().flatten().flatten() {
            if let Some(peers) = &mut rule.peers {
                peers.iter_mut().for_each(|group| *group = numbers[*group as usize]);
            }
        }
        let mut groups = numbers.to_vec();
        groups.sort_unstable();
        groups.dedup();
        template.groups = groups.into();
        template
    }
}

/// Resolves a policy. `missing` says of an address group that it is not there, `known` of a group that it is.
pub(super) fn draft<'a>(item: &'a Item, missing: &dyn Fn(&GroupName) -> bool, known: &dyn Fn(&GroupId) -> bool) -> Draft<'a> {
    let mut maker = Maker { key: item.key(), known, groups: Vec::new() };
    let PolicyKey { kind, namespace, name } = item.key();
    let line = format!("{} {namespace:?} {name:?}\n", kind.as_str()).into();
    let mut template = Template { line, ..Template::default() };
    match item {
        Item::Namespaced(policy) => {
            let mut rules = |direction, rules: &'a Option<Vec<crate::model::Rule>>| {
                rules.as_ref().map(|rules| {
                    let mut made = Vec::with_capacity(rules.len());
                    for (position, rule) in rules.iter().enumerate() {
                        maker.rule(direction, position, Action::Allow, (&rule.peers, &rule.services), &mut made);
                    }
                    made.into()
                })
            };
            template.ingress = rules(Direction::Ingress, &policy.ingress);
            template.egress = rules(Direction::Egress, &policy.egress);
            template.named = named_in(policy.ingress.iter().flatten().map(|rule| &rule.services));
        }
        Item::Tiered(policy) => {
            let mut rules = |direction| {
                let rules: &'a [TieredRule] = policy.rules(direction);
                let mut made = Vec::with_capacity(rules.len());
                for (position, rule) in rules.iter().enumerate() {
                    let (action, peers, services) = closed(rule, missing);
                    maker.rule(direction, position, action, (peers, services), &mut made);
                }
                Some(made.into())
            };
            template.ingress = rules(Direction::Ingress);
            template.egress = rules(Direction::Egress);
            template.named = named_in(policy.ingress.iter().map(|rule| &rule.services));
        }
    }
    Draft { template, groups: maker.groups }
}

struct Maker<'a, 'k> {
    key: &'a PolicyKey,
    known: &'k dyn Fn(&GroupId) -> bool,
    groups: Vec<Wanted<'a>>,
}

impl<'a> Maker<'a, '_> {
    fn rule(
        &mut self,
        direction: Direction,
        position: usize,
        action: Action,
        (peers, services): (&'a Peers, &'a Services),
        made: &mut Vec<RuleTemplate>,
    ) {
        let claim = match action {
            Action::Deny(_) => Claim::Any,
            Action::Allow | Action::Pass => Claim::Sure,
        };
        // A manifest is bounded far below 2^32 rules; one beyond would only lose its number, not its effect.
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        let (services, named) = services_of(direction, services);
        // A rule whose services are all named ports of the other end has nothing to say about plain peers.
        let only_named =
            !named.is_empty() && matches!(&services, ServiceTemplate::Only { numbers, own } if numbers.is_empty() && own.is_empty());
        if !only_named {
            let peers = match peers {
                Peers::Any => None,
                Peers::Only(peers) => Some(peers.iter().map(|peer| self.group(Subject::Peer(peer), claim)).collect()),
            };
            made.push(RuleTemplate { position, action, peers, services });
        }
        if !named.is_empty() {
            let peers: Vec<Option<&Peer>> = match peers {
                Peers::Any => vec![None],
                Peers::Only(peers) => peers.iter().map(Some).collect(),
            };
            let mut groups = Vec::new();
            for peer in peers {
                for (protocol, name) in &named {
                    groups.push(self.group(Subject::NamedPort(peer, *protocol, name), claim));
                }
            }
            made.push(RuleTemplate { position, action, peers: Some(groups.into()), services: ServiceTemplate::OfMembers });
        }
    }

    fn group(&mut self, subject: Subject<'a>, claim: Claim) -> u32 {
        let text = group_text(&self.key.namespace, subject, claim);
        let id = group_id_of(&text, Part::Shared);
        let title = (!(self.known)(&id)).then(|| canonical_title(&self.key.namespace, subject));
        self.groups.push(Wanted { subject, claim, text, id, title });
        super::ids::id(self.groups.len() - 1)
    }
}

/// A rule as it stands when what it names is not there or not known: an allow loses that peer (the group is empty), anything else denies.
fn closed<'a>(rule: &'a TieredRule, missing: &dyn Fn(&GroupName) -> bool) -> (Action, &'a Peers, &'a Services) {
    let answer = match rule.action {
        Action::Allow => return (rule.action, &rule.peers, &rule.services),
        Action::Deny(answer) => answer,
        Action::Pass => Answer::Drop,
    };
    let peers = listed(&rule.peers);
    if peers.contains(&Peer::Unknown) {
        return (Action::Deny(answer), &Peers::Any, &Services::Any);
    }
    if peers.iter().any(|it| matches!(it, Peer::Group(name) if missing(name))) {
        return (Action::Deny(answer), &Peers::Any, &rule.services);
    }
    (rule.action, &rule.peers, &rule.services)
}

/// The services by number, and those that only the other end can resolve (SEMANTICS 5).
fn services_of(direction: Direction, services: &Services) -> (ServiceTemplate, BTreeSet<(Protocol, &str)>) {
    let Services::Only(services) = services else { return (ServiceTemplate::Any, BTreeSet::new()) };
    let mut numbers = BTreeSet::new();
    let mut own = BTreeSet::new();
    let mut named = BTreeSet::new();
    for service in services {
        match (service, direction) {
            (Service::Protocol(protocol), _) => numbers.extend([CompiledService::Protocol(*protocol)]),
            (Service::Ports(protocol, ports), _) => numbers.extend([CompiledService::Ports(*protocol, *ports)]),
            (Service::Icmp { family, kind, code }, _) => {
                numbers.extend([CompiledService::Icmp { family: *family, kind: *kind, code: *code }]);
            }
            (Service::Named(protocol, name), Direction::Ingress) => own.extend([(*protocol, Arc::from(name.as_str()))]),
            (Service::Named(protocol, name), Direction::Egress) => named.extend([(*protocol, name.as_str())]),
        }
    }
    (ServiceTemplate::Only { numbers: numbers.into_iter().collect(), own: own.into_iter().collect() }, named)
}

fn named_in<'a>(services: impl Iterator<Item = &'a Services>) -> Box<[PortName]> {
    let services = services.flat_map(|services| match services {
        Services::Any => &[][..],
        Services::Only(services) => services,
    });
    let named = services.filter_map(|service| match service {
        Service::Named(protocol, name) => Some((*protocol, Arc::from(name.as_str()))),
        Service::Protocol(_) | Service::Ports(..) | Service::Icmp { .. } => None,
    });
    named.collect::<BTreeSet<PortName>>().into_iter().collect()
}

fn listed(peers: &Peers) -> &[Peer] {
    match peers {
        Peers::Any => &[],
        Peers::Only(peers) => peers,
    }
}
