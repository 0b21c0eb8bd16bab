//! Rules taken apart into grants, and which of them go into the shared form. A function of the state alone.

use super::{EXACT_PORTS, Limits, opens, side};
use crate::kernel_sets::{GroupForm, GroupKey, GroupSet, ShortName, Span};
use crate::members::Members;
use crate::model::Direction;
use crate::model::{Family, PortRange, Protocol};
use crate::node_state::{
    CompiledPeers, CompiledService, CompiledServices, Group, GroupId, Isolation, LocalEndpoint, Member, NodeState, SegmentId,
};
use crate::shared_map::SharedMap;
use crate::shared_sets::single;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The smallest part of a rule that is decided by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// Which rule of its isolation.
    pub(super) rule: usize,
    pub(super) peers: GrantPeers,
    pub(super) service: GrantService,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GrantPeers {
    Any,
    Group(GroupId, GroupForm),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrantService {
    Any,
    One(CompiledService),
    /// All of several protocols that follow each other.
    Protocols(Span<u8>),
    /// What the members say.
    OfMembers,
}

impl GrantService {
    /// How many elements it makes of one peer; `None` when only a range says it.
    pub(super) fn exact(self) -> Option<usize> {
        match self {
            Self::Any | Self::OfMembers => Some(1),
            Self::One(CompiledService::Protocol(_) | CompiledService::Icmp { code: Some(_), .. }) => Some(1),
            Self::One(CompiledService::Ports(_, ports)) => few(ports).then_some(usize::from(ports.last() - ports.first()) + 1),
            Self::One(CompiledService::Icmp { code: None, .. }) | Self::Protocols(_) => None,
        }
    }
}

pub(super) fn few(ports: PortRange) -> bool {
    usize::from(ports.last() - ports.first()) < EXACT_PORTS
}

/// The isolated locals of one segment in one direction and family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Side {
    /// Addresses that one endpoint alone claims, with the name of that endpoint.
    pub(super) locals: Vec<(IpAddr, String)>,
    /// Whether somebody of the segment claims an address that another endpoint claims too.
    pub(super) contested: bool,
    /// Whether more grants ask for the chain than it takes.
    pub(super) overflows: bool,
    pub(super) grants: Vec<Grant>,
    /// Beside each grant, whether the chain has it.
    pub(super) in_chain: Vec<bool>,
    /// Of those in the chain, the ones that are one rule together.
    pub(super) merged: Vec<Merged>,
}

/// Grants of several groups for the same service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Merged {
    pub(super) form: GroupForm,
    pub(super) service: GrantService,
    /// Which of the side's grants.
    pub(super) grants: Vec<usize>,
    pub(super) groups: BTreeSet<GroupId>,
}

pub(super) type SideKey = (SegmentId, Direction, Family);

/// What is in which form, for a whole state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) sides: BTreeMap<SideKey, Side>,
    pub(super) facts: BTreeMap<GroupId, Facts>,
    /// Groups that are shared because of their size.
    pub(super) large: BTreeSet<GroupId>,
    /// What the groups make multiplied out, and the size from which they are shared.
    pub(super) ladder: Ladder,
    /// The members of groups that are one set together.
    pub(super) unions: BTreeMap<GroupSet, Members>,
    /// Elements that one member of the group would make, were it multiplied out.
    pub(super) multiples: BTreeMap<GroupId, usize>,
    /// Where a group is named.
    pub(super) uses: BTreeMap<GroupId, BTreeSet<SideKey>>,
    pub(super) contested: BTreeSet<IpAddr>,
}

/// How many members of which form a group has, for each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    v4: Counts,
    v6: Counts,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) addresses: usize,
    pub(super) services: usize,
    pub(super) blocks: usize,
    /// The only block is everything.
    pub(super) anyone: bool,
    /// Blocks overlap, which `compile` never makes: no interval set takes them.
    pub(super) overlapping: bool,
}

impl Facts {
    pub(super) fn of(members: &Members) -> Self {
        Self { v4: counts(members, Family::V4), v6: counts(members, Family::V6) }
    }

    pub(super) fn for_family(&self, family: Family) -> &Counts {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Members that exact elements can be made of.
    pub(super) fn exact(&self) -> usize {
        [&self.v4, &self.v6].into_iter().map(|counts| counts.addresses + counts.services).sum()
    }

    /// What the layout looks at beside the size; a change of it changes which grants there are.
    pub(super) fn kinds(&self) -> impl PartialEq + use<> {
        [self.v4, self.v6].map(|it| (it.addresses > 0, it.services > 0, it.blocks > 0, it.anyone, it.overlapping))
    }
}

fn counts(members: &Members, family: Family) -> Counts {
    let (first, last): (IpAddr, IpAddr) = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()),
        Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from_bits(u128::MAX).into()),
    };
    let mut counts = Counts {
        addresses: members.count(Member::Address(first)..=Member::Address(last)),
        services: members.count(Member::Service(first, Protocol(0), 0)..=Member::Service(last, Protocol(u8::MAX), u16::MAX)),
        ..Counts::default()
    };
    let mut end: Option<IpAddr> = None;
    for member in members.range(Member::Block(whole_block(first))..=Member::Block(last.into())) {
        let Member::Block(block) = member else { continue };
        if single(*block).is_some() {
            counts.addresses += 1;
            continue;
        }
        counts.overlapping |= end.is_some_and(|end| block.network() <= end);
        end = end.max(Some(block.broadcast()));
        counts.blocks += 1;
        counts.anyone = counts.blocks == 1 && block.prefix_len() == 0;
    }
    counts
}

fn whole_block(first: IpAddr) -> IpNet {
    // A prefix length of nothing fits every family.
    IpNet::new(first, 0).unwrap_or_else(|_| first.into())
}

impl Layout {
    pub(super) fn of(state: &NodeState, limits: &Limits) -> Self {
        let mut layout = Self { contested: contested(state), ..Self::default() };
        for endpoint in state.endpoints.values() {
            for address in &endpoint.addresses {
                for direction in [Direction::Ingress, Direction::Egress] {
                    layout.seat(state, endpoint, *address, direction);
                }
            }
        }
        layout.measure(limits);
        for side in layout.sides.values_mut() {
            side.choose(&layout.facts, &layout.large, limits);
        }
        for ((_, _, family), side) in &layout.sides {
            for merged in &side.merged {
                let set = merged.set(*family);
                layout.unions.entry(set).or_insert_with(|| merged.members(&set, &state.groups));
            }
        }
        layout
    }

    fn seat(&mut self, state: &NodeState, endpoint: &LocalEndpoint, address: IpAddr, direction: Direction) {
        let Some(isolation) = state.segments.get(&endpoint.segment).and_then(|segment| side(segment, direction)) else { return };
        if isolation.rules.iter().any(opens) {
            return;
        }
        let family = Family::of(address);
        let key = (endpoint.segment.clone(), direction, family);
        if !self.sides.contains_key(&key) {
            let side = self.side(state, isolation, &key);
            self.sides.insert(key.clone(), side);
        }
        let alone = !self.contested.contains(&address);
        if let Some(side) = self.sides.get_mut(&key) {
            side.contested |= !alone;
            if alone {
                side.locals.push((address, format!("{}/{}", endpoint.namespace, endpoint.name)));
            }
        }
    }

    fn side(&mut self, state: &NodeState, isolation: &Isolation, key: &SideKey) -> Side {
        for id in isolation.rules.iter().flat_map(|rule| groups_of(&rule.peers)) {
            if let Some(group) = state.groups.get(id) {
                self.facts.entry(id.clone()).or_insert_with(|| Facts::of(&group.members));
                self.uses.entry(id.clone()).or_default().insert(key.clone());
            }
        }
        let grants = grants(isolation, &self.facts, key.2);
        Side { locals: Vec::new(), contested: false, overflows: false, in_chain: vec![false; grants.len()], merged: Vec::new(), grants }
    }

    fn measure(&mut self, limits: &Limits) {
        for side in self.sides.values() {
            for grant in &side.grants {
                if let (GrantPeers::Group(id, GroupForm::Addresses | GroupForm::Services), Some(exact)) =
                    (&grant.peers, grant.service.exact())
                {
                    *self.multiples.entry(id.clone()).or_default() += exact * side.locals.len();
                }
            }
        }
        let facts = &self.facts;
        let makes = |(id, multiple): (&GroupId, &usize)| Some(product(facts.get(id)?, *multiple));
        self.ladder = Ladder::of(self.multiples.iter().filter_map(makes), limits);
        let from = self.ladder.from(limits);
        let large = |(id, multiple): (&GroupId, &usize)| (product(facts.get(id)?, *multiple) > from).then(|| id.clone());
        self.large = self.multiples.iter().filter_map(large).collect();
    }
}

/// How many elements a group makes that makes so many of a member.
pub(super) fn product(facts: &Facts, multiple: usize) -> usize {
    facts.exact().saturating_mul(multiple)
}

/// How many elements groups of which size make together, by halvings of `Limits::pairs`: a change of one group is a change of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ladder(BTreeMap<u32, usize>);

impl Ladder {
    fn of(products: impl Iterator<Item = usize>, limits: &Limits) -> Self {
        let mut ladder = Self::default();
        products.for_each(|product| ladder.add(product, limits));
        ladder
    }

    pub(super) fn add(&mut self, product: usize, limits: &Limits) {
        if let Some(step) = Self::step(product, limits) {
            *self.0.entry(step).or_default() += product;
        }
    }

    pub(super) fn take(&mut self, product: usize, limits: &Limits) {
        let Some(step) = Self::step(product, limits) else { return };
        if let Some(sum) = self.0.get_mut(&step) {
            *sum = sum.saturating_sub(product);
            if *sum == 0 {
                self.0.remove(&step);
            }
        }
    }

    /// How often `pairs` can be halved until the group is shared; `None` when it is anyway, or makes nothing.
    fn step(product: usize, limits: &Limits) -> Option<u32> {
        (product > 0 && product <= limits.pairs).then(|| (limits.pairs / product).ilog2())
    }

    /// Groups that make more than this are shared.
    pub(super) fn from(&self, limits: &Limits) -> usize {
        let mut sum: usize = self.0.values().sum();
        let mut from = limits.pairs;
        for (step, makes) in &self.0 {
            if sum <= limits.elements {
                break;
            }
            sum = sum.saturating_sub(*makes);
            from = limits.pairs.checked_shr(step + 1).unwrap_or(0);
        }
        from
    }
}

impl Merged {
    /// The set of all its groups' members, of one family.
    pub(super) fn set(&self, family: Family) -> GroupSet {
        GroupSet { family, form: self.form, name: ShortName::new(&self.title(), self.groups.iter().map(|id| &*id.0)) }
    }

    pub(super) fn title(&self) -> String {
        format!("{} groups", self.groups.len())
    }

    fn members(&self, set: &GroupSet, groups: &SharedMap<GroupId, Group>) -> Members {
        let all = self.groups.iter().filter_map(|id| groups.get(id)).flat_map(|group| &group.members);
        let members: Members = all.filter_map(|member| set.key(*member)).map(GroupKey::member).collect();
        if self.form != GroupForm::Blocks {
            return members;
        }
        // Blocks lie in one another or apart; of those that lie in one another the outer comes first.
        let mut outer: Option<IpNet> = None;
        let apart = members.iter().filter(|member| match member {
            Member::Block(block) if outer.is_some_and(|outer| outer.contains(block)) => false,
            Member::Block(block) => {
                outer = Some(*block);
                true
            }
            Member::Address(_) | Member::Service(..) => true,
        });
        apart.copied().collect()
    }
}

impl Side {
    /// Chooses which grants the chain has: the largest first, when they are too many.
    fn choose(&mut self, facts: &BTreeMap<GroupId, Facts>, large: &BTreeSet<GroupId>, limits: &Limits) {
        if self.locals.is_empty() {
            return;
        }
        let family = self.locals.first().map_or(Family::V4, |(address, _)| Family::of(*address));
        let mut wanting: Vec<(usize, usize)> = Vec::new();
        for (index, grant) in self.grants.iter().enumerate() {
            if let Some(weight) = wants_chain(grant, facts, large, family) {
                wanting.push((usize::MAX - weight, index));
            }
        }
        if wanting.len() > limits.rules {
            self.merge(wanting.iter().map(|(_, index)| *index), limits);
        }
        let merged: BTreeSet<usize> = self.merged.iter().flat_map(|merged| &merged.grants).copied().collect();
        wanting.retain(|(_, index)| !merged.contains(index));
        wanting.sort_unstable();
        let room = limits.rules.saturating_sub(self.merged.len());
        self.overflows = wanting.len() > room;
        let alone = wanting.into_iter().take(room).map(|(_, index)| index);
        for index in alone.chain(merged) {
            if let Some(chosen) = self.in_chain.get_mut(index) {
                *chosen = true;
            }
        }
    }

    /// Makes one rule of the groups with the same service, whatever their size, so that a change of sizes changes nothing. Not at all where even so
    /// there would be too many rules.
    fn merge(&mut self, wanting: impl Iterator<Item = usize>, limits: &Limits) {
        let mut kinds: Vec<Merged> = Vec::new();
        let mut alone = 0;
        for index in wanting {
            let Some(grant) = self.grants.get(index) else { continue };
            let GrantPeers::Group(id, form) = &grant.peers else {
                alone += 1;
                continue;
            };
            let same = kinds.iter().position(|kind| kind.form == *form && kind.service == grant.service);
            if same.is_none() {
                if kinds.len() + alone >= limits.rules {
                    return;
                }
                kinds.push(Merged { form: *form, service: grant.service, grants: Vec::new(), groups: BTreeSet::new() });
            }
            let last = kinds.len().saturating_sub(1);
            let Some(kind) = kinds.get_mut(same.unwrap_or(last)) else { return };
            kind.grants.push(index);
            kind.groups.insert(id.clone());
        }
        if kinds.len() + alone > limits.rules {
            return;
        }
        kinds.retain(|kind| kind.groups.len() > 1);
        for kind in &mut kinds {
            kind.grants.sort_unstable();
        }
        self.merged = kinds;
    }
}

/// How many members a grant that belongs into a chain stands for; `None` when it is cheaper as elements.
fn wants_chain(grant: &Grant, facts: &BTreeMap<GroupId, Facts>, large: &BTreeSet<GroupId>, family: Family) -> Option<usize> {
    let exact = grant.service.exact();
    match &grant.peers {
        // A few ports for anyone are as many elements for each local workload.
        GrantPeers::Any => match grant.service {
            GrantService::One(CompiledService::Ports(..)) if exact.is_some() => None,
            GrantService::Any | GrantService::One(_) | GrantService::Protocols(_) | GrantService::OfMembers => Some(1),
        },
        GrantPeers::Group(id, form) => {
            let counts = facts.get(id)?.for_family(family);
            match form {
                GroupForm::Addresses => (exact.is_none() || large.contains(id)).then_some(counts.addresses),
                GroupForm::Services => large.contains(id).then_some(counts.services),
                GroupForm::Blocks if counts.overlapping => None,
                GroupForm::Blocks if counts.anyone => match grant.service {
                    GrantService::One(CompiledService::Ports(..)) if exact.is_some() => None,
                    GrantService::Any | GrantService::One(_) | GrantService::Protocols(_) | GrantService::OfMembers => Some(counts.blocks),
                },
                GroupForm::Blocks => Some(counts.blocks),
            }
        }
    }
}

fn contested(state: &NodeState) -> BTreeSet<IpAddr> {
    let mut seen = BTreeSet::new();
    let all = state.endpoints.values().flat_map(|endpoint| &endpoint.addresses);
    all.filter(|address| !seen.insert(**address)).copied().collect()
}

pub(super) fn groups_of(peers: &CompiledPeers) -> &[GroupId] {
    match peers {
        CompiledPeers::Any => &[],
        CompiledPeers::Groups(ids) => ids,
    }
}

/// The grants of an isolation for one family, in the order of rules, groups and services.
pub(super) fn grants(isolation: &Isolation, facts: &BTreeMap<GroupId, Facts>, family: Family) -> Vec<Grant> {
    let mut grants = Vec::new();
    for (rule, compiled) in isolation.rules.iter().enumerate() {
        let services: Vec<GrantService> = match &compiled.services {
            CompiledServices::Any => vec![GrantService::Any],
            CompiledServices::OfMembers => vec![GrantService::OfMembers],
            CompiledServices::Only(only) => in_runs(only.iter().filter(|it| suits(it, family))),
        };
        let mut add = |peers: GrantPeers, of_members: bool| {
            let suiting = services.iter().filter(|service| (**service == GrantService::OfMembers) == of_members);
            grants.extend(suiting.map(|service| Grant { rule, peers: peers.clone(), service: *service }));
        };
        if compiled.peers == CompiledPeers::Any {
            add(GrantPeers::Any, false);
        }
        for id in groups_of(&compiled.peers) {
            let Some(counts) = facts.get(id).map(|facts| facts.for_family(family)) else { continue };
            for (form, count) in
                [(GroupForm::Addresses, counts.addresses), (GroupForm::Services, counts.services), (GroupForm::Blocks, counts.blocks)]
            {
                if count > 0 {
                    add(GrantPeers::Group(id.clone(), form), form == GroupForm::Services);
                }
            }
        }
    }
    grants
}

/// One by one, but protocols that follow each other in one.
fn in_runs<'a>(services: impl Iterator<Item = &'a CompiledService>) -> Vec<GrantService> {
    let mut runs: Vec<GrantService> = Vec::new();
    for service in services {
        let CompiledService::Protocol(protocol) = service else {
            runs.push(GrantService::One(*service));
            continue;
        };
        let before = match runs.last() {
            Some(GrantService::One(CompiledService::Protocol(before))) => Some(Span::single(before.0)),
            Some(GrantService::Protocols(before)) => Some(*before),
            Some(GrantService::Any | GrantService::One(_) | GrantService::OfMembers) | None => None,
        };
        match before.filter(|before| before.last.checked_add(1) == Some(protocol.0)) {
            Some(before) => {
                runs.pop();
                runs.push(GrantService::Protocols(Span { first: before.first, last: protocol.0 }));
            }
            None => runs.push(GrantService::One(*service)),
        }
    }
    runs
}

fn suits(service: &CompiledService, family: Family) -> bool {
    match service {
        CompiledService::Icmp { family: of, .. } => *of == family,
        CompiledService::Protocol(_) | CompiledService::Ports(..) => true,
    }
}

/// The addresses of one family and form among a group's members.
pub(super) fn spans(group: &Group, family: Family) -> impl Iterator<Item = (Span<IpAddr>, bool)> + '_ {
    let blocks = group.members.iter().filter_map(|member| match member {
        Member::Block(block) => Some(*block),
        Member::Address(_) | Member::Service(..) => None,
    });
    blocks
        .filter(move |block| Family::of(block.addr()) == family && single(*block).is_none())
        .map(|block| (Span { first: block.network(), last: block.broadcast() }, block.prefix_len() == 0))
}
