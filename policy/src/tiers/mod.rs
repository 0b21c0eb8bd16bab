//! Tiers resolved: what a segment's rulebook lets through, as rules that allow and nothing else. The kernel's sets, and whoever judges by a
//! node's state as the kernel does, know only those; priorities, denials and passes are worked out here.
//!
//! A packet's verdict is then one lookup: each service is in one rule of the result at most, with the set of those who may use it. Rules that
//! deny would have to be asked one after the other, and a change of members between two lookups could let through what is denied before and
//! after it. Sets that only allow have no such moment.

mod services;
mod spans;

use crate::kernel_sets::Span;
use crate::model::{Action, Answer, Direction, Family, HostAccess, PolicyKey};
use crate::node_state::{
    CompiledPeers, CompiledRule, CompiledServices, Group, GroupId, Isolation, Member, NodeState, RuleRef, Rulebook, Segment, SegmentId,
    TierRule,
};
use services::{Kind, kinds};
use spans::{Spans, number};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The state without tiers that lets through exactly what this one does; `None` where it has no tiers and is that state itself.
pub fn resolved(state: &NodeState) -> Option<NodeState> {
    let tiered: Vec<&Segment> = state.segments.values().filter(|segment| DIRECTIONS.iter().any(|it| segment.has_tiers(*it))).collect();
    if tiered.is_empty() {
        return None;
    }
    let mut next = state.clone();
    let mut sources = Sources { state, known: BTreeMap::new() };
    for segment in tiered {
        let mut rules = Rulebook { ingress: segment.rules.ingress.clone(), egress: segment.rules.egress.clone(), ..Rulebook::default() };
        for direction in DIRECTIONS.into_iter().filter(|it| segment.has_tiers(*it)) {
            let mut side = Side::of(segment, direction);
            let isolation = side.resolve(&mut sources);
            next.groups.extend(side.groups.into_iter().map(|group| (group.id.clone(), group)));
            match direction {
                Direction::Ingress => rules.ingress = Some(isolation),
                Direction::Egress => rules.egress = Some(isolation),
            }
        }
        let plain = Segment { id: segment.id.clone(), title: segment.title.clone(), rules: rules.into(), audit: segment.audit.clone() };
        next.segments.insert(segment.id.clone(), plain);
    }
    Some(next)
}

/// What a rule of a tier denies with an answer, in one family.
#[derive(Clone, Debug)]
pub(crate) struct Rejection {
    pub(crate) family: Family,
    pub(crate) peers: Vec<Span<IpAddr>>,
    pub(crate) services: CompiledServices,
}

/// What is denied with an answer, by segment and direction; nothing where no rule says so. Disjoint from what [`resolved`] lets through.
pub(crate) fn rejections(state: &NodeState) -> BTreeMap<(SegmentId, Direction), Vec<Rejection>> {
    let mut found = BTreeMap::new();
    let mut sources = Sources { state, known: BTreeMap::new() };
    for segment in state.segments.values() {
        for direction in DIRECTIONS.into_iter().filter(|it| rejects(segment, *it)) {
            let mut of_segment = Vec::new();
            for family in FAMILIES {
                let rules = ready(segment, direction, family, &Spans::default(), &mut sources);
                let rejected = |kind: Kind| {
                    let peers = rules.rejected(&kind, family);
                    (kind, peers)
                };
                let kinds = kinds(family, rules.each().map(|it| (it.services, &it.named))).into_iter().map(rejected).collect();
                let classes = classes(family, kinds).into_iter().filter(|(peers, _)| !peers.is_empty());
                of_segment.extend(classes.map(|(peers, services)| Rejection { family, peers: peers.ranges(family), services }));
            }
            found.insert((segment.id.clone(), direction), of_segment);
        }
    }
    found
}

/// Whether a rule of a tier denies with an answer.
pub(crate) fn rejects(segment: &Segment, direction: Direction) -> bool {
    let tiers = [&segment.rules.admin, &segment.rules.baseline];
    tiers.into_iter().flat_map(|tier| tier.of(direction)).any(|rule| rule.action == Action::Deny(Answer::Reject))
}

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// The members of groups as ranges, made once.
struct Sources<'a> {
    state: &'a NodeState,
    known: BTreeMap<(GroupId, Family), Arc<Listed>>,
}

/// A group's members of one family.
#[derive(Default)]
struct Listed {
    addresses: Spans,
    named: BTreeMap<(u8, u16), Vec<(u128, u128)>>,
}

impl Sources<'_> {
    fn of(&mut self, id: &GroupId, family: Family) -> Arc<Listed> {
        let key = (id.clone(), family);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let mut ranges = Vec::new();
        let mut listed = Listed::default();
        // A group that is missing cannot come out of `compile` or off the wire; it is nobody.
        for member in self.state.groups.get(id).into_iter().flat_map(|group| &group.members) {
            match member {
                Member::Address(address) if Family::of(*address) == family => ranges.push((number(*address), number(*address))),
                Member::Block(block) if Family::of(block.addr()) == family => {
                    ranges.push((number(block.network()), number(block.broadcast())));
                }
                Member::Service(address, protocol, port) if Family::of(*address) == family => {
                    listed.named.entry((protocol.0, *port)).or_default().push((number(*address), number(*address)));
                }
                Member::Address(_) | Member::Block(_) | Member::Service(..) => {}
            }
        }
        listed.addresses = Spans::of(ranges);
        let listed = Arc::new(listed);
        self.known.insert(key, listed.clone());
        listed
    }

    /// A rule with the ranges of its peers.
    fn ready<'r>(&mut self, peers: &CompiledPeers, services: &'r CompiledServices, family: Family) -> Ready<'r> {
        let mut ready = Ready { services, addresses: Spans::default(), named: BTreeMap::new() };
        match (peers, services) {
            // Who is said by members that name ports is never everybody.
            (CompiledPeers::Any, CompiledServices::OfMembers) => {}
            (CompiledPeers::Any, CompiledServices::Any | CompiledServices::Only(_)) => ready.addresses = Spans::whole(family),
            (CompiledPeers::Groups(ids), CompiledServices::OfMembers) => {
                let mut named: BTreeMap<(u8, u16), Vec<(u128, u128)>> = BTreeMap::new();
                for id in ids {
                    for (service, ranges) in &self.of(id, family).named {
                        named.entry(*service).or_default().extend(ranges);
                    }
                }
                ready.named = named.into_iter().map(|(service, ranges)| (service, Spans::of(ranges))).collect();
            }
            (CompiledPeers::Groups(ids), CompiledServices::Any | CompiledServices::Only(_)) => {
                for id in ids {
                    ready.addresses = ready.addresses.union(&self.of(id, family).addresses);
                }
            }
        }
        ready
    }
}

/// A rule of one family.
struct Ready<'r> {
    services: &'r CompiledServices,
    addresses: Spans,
    /// Who, by protocol and port, where members say it.
    named: BTreeMap<(u8, u16), Spans>,
}

impl Ready<'_> {
    /// Whom the rule is about on services of this kind.
    fn peers(&self, kind: &Kind) -> Option<&Spans> {
        match self.services {
            CompiledServices::OfMembers => self.named.get(&kind.port()?),
            CompiledServices::Any | CompiledServices::Only(_) => kind.is_of(self.services).then_some(&self.addresses),
        }
    }
}

/// All that is asked in one direction and family, in the order in which it is asked.
struct Rules<'r> {
    admin: Vec<(Action, Ready<'r>)>,
    isolation: Option<Vec<Ready<'r>>>,
    /// Of the own node, where it gets in unasked.
    host: Spans,
    baseline: Vec<(Action, Ready<'r>)>,
}

impl Rules<'_> {
    fn each(&self) -> impl Iterator<Item = &Ready<'_>> {
        let tiers = self.admin.iter().chain(&self.baseline).map(|(_, rule)| rule);
        tiers.chain(self.isolation.iter().flatten())
    }

    /// Who may use services of this kind.
    fn allowed(&self, kind: &Kind, family: Family) -> Spans {
        let Decided { mut allowed, rest, .. } = tier(&self.admin, kind, Spans::whole(family));
        match &self.isolation {
            // SEMANTICS 17: where a policy of the namespace isolates, that is final.
            Some(rules) => {
                let named = rules.iter().filter_map(|rule| rule.peers(kind)).fold(self.host.clone(), |all, peers| all.union(peers));
                allowed = allowed.union(&named.intersection(&rest));
            }
            // 15: a Pass of the Baseline, and what it says nothing about, is allowed.
            None => {
                let baseline = tier(&self.baseline, kind, rest);
                allowed = allowed.union(&baseline.allowed).union(&baseline.rest);
            }
        }
        allowed
    }

    /// Who is denied with an answer. Where a policy of the namespace isolates, what it does not allow is dropped.
    fn rejected(&self, kind: &Kind, family: Family) -> Spans {
        let admin = tier(&self.admin, kind, Spans::whole(family));
        match &self.isolation {
            Some(_) => admin.rejected,
            None => admin.rejected.union(&tier(&self.baseline, kind, admin.rest).rejected),
        }
    }
}

/// What a tier makes of those who are asked about. The rest is dropped.
#[derive(Default)]
struct Decided {
    allowed: Spans,
    /// Denied with an answer.
    rejected: Spans,
    /// Left to what comes after it.
    rest: Spans,
}

fn tier(rules: &[(Action, Ready<'_>)], kind: &Kind, asked: Spans) -> Decided {
    let (mut open, mut allowed, mut passed, mut rejected) = (asked, Spans::default(), Spans::default(), Spans::default());
    for (action, rule) in rules {
        let Some(peers) = rule.peers(kind) else { continue };
        match action {
            Action::Allow => allowed = allowed.union(&open.intersection(peers)),
            Action::Pass => passed = passed.union(&open.intersection(peers)),
            Action::Deny(Answer::Reject) => rejected = rejected.union(&open.intersection(peers)),
            Action::Deny(Answer::Drop) => {}
        }
        open = open.without(peers);
    }
    Decided { allowed, rejected, rest: open.union(&passed) }
}

/// The rules of a segment, ready to be asked.
fn ready<'r>(segment: &'r Segment, direction: Direction, family: Family, host: &Spans, sources: &mut Sources<'_>) -> Rules<'r> {
    let rules = &segment.rules;
    let mut tier = |rules: &'r [TierRule]| -> Vec<(Action, Ready<'r>)> {
        rules.iter().map(|rule| (rule.action, sources.ready(&rule.peers, &rule.services, family))).collect()
    };
    let (admin, baseline) = (tier(rules.admin.of(direction)), tier(rules.baseline.of(direction)));
    let isolation = rules.isolation(direction);
    let unasked = direction == Direction::Ingress && isolation.is_some_and(|it| it.host_access == HostAccess::Allow);
    Rules {
        admin,
        isolation: isolation.map(|it| it.rules.iter().map(|rule| sources.ready(&rule.peers, &rule.services, family)).collect()),
        host: if unasked { host.clone() } else { Spans::default() },
        baseline,
    }
}

/// One direction of one segment, in the making.
struct Side<'a> {
    segment: &'a Segment,
    direction: Direction,
    policies: Vec<PolicyKey>,
    rules: Vec<CompiledRule>,
    groups: Vec<Group>,
}

impl<'a> Side<'a> {
    fn of(segment: &'a Segment, direction: Direction) -> Self {
        Self { segment, direction, policies: segment.rules.policies(direction), rules: Vec::new(), groups: Vec::new() }
    }

    fn resolve(&mut self, sources: &mut Sources<'_>) -> Isolation {
        let mut host_access = self.segment.rules.isolation(self.direction).map_or(HostAccess::Allow, |it| it.host_access);
        let mut everybody = Vec::new();
        for family in FAMILIES {
            let own = sources.state.addresses.iter().filter(|it| Family::of(**it) == family).map(|it| (number(*it), number(*it)));
            let host = Spans::of(own.collect());
            let rules = ready(self.segment, self.direction, family, &host, sources);
            let kinds: Vec<(Kind, Spans)> = kinds(family, rules.each().map(|it| (it.services, &it.named)))
                .into_iter()
                .map(|kind| {
                    let allowed = rules.allowed(&kind, family);
                    (kind, allowed)
                })
                .collect();
            // Where the node is let in whatever it asks for, its packets need not be judged.
            if self.direction == Direction::Ingress && kinds.iter().any(|(_, allowed)| !host.without(allowed).is_empty()) {
                host_access = HostAccess::Judge;
            }
            let mut whole = None;
            for (peers, services) in classes(family, kinds) {
                if peers == Spans::whole(family) {
                    whole = Some(services);
                } else if !peers.is_empty() {
                    self.allow(family, &peers, services);
                }
            }
            everybody.push((family, whole));
        }
        self.allow_everybody(everybody);
        Isolation { policies: self.policies.clone(), host_access, rules: std::mem::take(&mut self.rules) }
    }

    /// A rule for these peers of one family.
    fn allow(&mut self, family: Family, peers: &Spans, services: CompiledServices) {
        let (way, digit) = (if self.direction == Direction::Ingress { "in" } else { "out" }, if family == Family::V4 { 4 } else { 6 });
        let first = services::text(&services);
        // By the services, and not by the members, which change; by all of them, or a chain that is on its way out would let these members use
        // what they were never given.
        let all = blake3::hash(format!("{services:?}").as_bytes()).to_hex();
        let id = GroupId(format!("tiers/{}/{way}{digit}/{all}", self.segment.id.0).into());
        let title = format!("{} {way} {first}", self.segment.title);
        let members = peers.blocks(family).into_iter().map(|block| match block.prefix_len() == block.max_prefix_len() {
            true => Member::Address(block.addr()),
            false => Member::Block(block),
        });
        self.groups.push(Group { id: id.clone(), title, members: members.collect() });
        self.push(CompiledPeers::Groups(vec![id]), services);
    }

    /// What is open to all of a family; in one rule as far as it is to both.
    fn allow_everybody(&mut self, everybody: Vec<(Family, Option<CompiledServices>)>) {
        let lists: Vec<(Family, CompiledServices)> =
            everybody.into_iter().filter_map(|(family, services)| Some((family, services?))).collect();
        if let [(_, one), (_, other)] = lists.as_slice() {
            let both = services::common(one, other);
            if both != CompiledServices::Only(Vec::new()) {
                self.push(CompiledPeers::Any, both.clone());
            }
            for (family, services) in &lists {
                let rest = services::without(services, &both);
                if rest != CompiledServices::Only(Vec::new()) {
                    self.allow(*family, &Spans::whole(*family), rest);
                }
            }
            return;
        }
        for (family, services) in lists {
            self.allow(family, &Spans::whole(family), services);
        }
    }

    fn push(&mut self, peers: CompiledPeers, services: CompiledServices) {
        let Some(policy) = self.policies.first().cloned() else { return };
        // For people who read what the kernel keeps; a reason names the rule that decided.
        let origin = RuleRef { policy, index: 0, name: Some("tiers".to_owned()) };
        self.rules.push(CompiledRule { origin, peers, services });
    }
}

/// Who may use what, in one family: distinct sets of peers, each with its services.
fn classes(family: Family, kinds: Vec<(Kind, Spans)>) -> Vec<(Spans, CompiledServices)> {
    let mut classes: Vec<(Spans, Vec<Kind>)> = Vec::new();
    for (kind, peers) in kinds {
        match classes.iter_mut().find(|(known, _)| *known == peers) {
            Some((_, kinds)) => kinds.push(kind),
            None => classes.push((peers, vec![kind])),
        }
    }
    let is_one = classes.len() == 1;
    let listed = |kinds: Vec<Kind>| if is_one { CompiledServices::Any } else { services::listed(family, kinds) };
    classes.into_iter().map(|(peers, kinds)| (peers, listed(kinds))).collect()
}
