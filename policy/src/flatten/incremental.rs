//! From one state's sets to the next one's when only members of groups differ, without looking at the rest. The result is what
//! flattening the next state from the beginning gives (property test in `policy/tests/incremental.rs`); it only comes sooner.

use super::grants::{Facts, GrantPeers, GrantService, Ladder, Layout, Side, SideKey, groups_of, product};
use super::{Limits, build, exact_address, exact_elements, rejected, said, shared, side};
use crate::kernel_sets::{Comment, Element, GroupForm, GroupKey, GroupSet, KernelSets, SetId, Shape};
use crate::members::{Changes, Members};
use crate::model::{Direction, Family};
use crate::node_state::{Group, GroupId, Isolation, Member, NodeState};
use crate::shared_map::Difference;
use crate::shared_sets::{holds, single};
use crate::tiers::{rejects, resolved};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

/// A state that was flattened, with what it takes to go on from it.
#[derive(Clone, Debug)]
pub struct Flattened {
    /// With its tiers resolved.
    state: NodeState,
    /// As it was given, where it has tiers.
    given: Option<NodeState>,
    limits: Limits,
    layout: Layout,
    /// Every local address, for published ports.
    local: HashSet<IpAddr>,
    publishes: bool,
    /// Comments that were made on the way, so that equal ones share their memory.
    comments: HashSet<Comment>,
}

/// What a step makes different in the layout without changing its form.
struct Learnt {
    facts: BTreeMap<GroupId, Facts>,
    ladder: Ladder,
    unions: BTreeMap<GroupSet, Members>,
}

/// How the sets of the next state come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// By this change.
    Delta(SetsDelta),
    /// From the beginning.
    Whole(KernelSets),
}

/// A change of set contents. The removals come first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetsDelta {
    /// Elements that go.
    pub remove: Vec<(SetId, Element)>,
    /// Elements that come, or get another comment.
    pub put: Vec<(SetId, Element, Comment)>,
    /// Sets of groups that are there, with their group's members now.
    pub groups: Vec<(GroupSet, Members)>,
}

impl SetsDelta {
    /// Changes `sets`.
    pub fn apply(&self, sets: &mut KernelSets) {
        for (id, element) in &self.remove {
            if let Some(elements) = sets.sets.get_mut(id) {
                elements.remove(element);
                if elements.is_empty() {
                    sets.sets.remove(id);
                }
            }
        }
        for (id, element, comment) in &self.put {
            sets.sets.entry(*id).or_default().insert(element.clone(), comment.clone());
        }
        for (set, members) in &self.groups {
            if let Some((held, _)) = sets.shared.groups.get_mut(set) {
                held.clone_from(members);
            }
        }
    }
}

impl Flattened {
    /// Flattens from the beginning.
    pub fn new(state: NodeState, limits: Limits) -> (Self, KernelSets) {
        let (state, given) = without_tiers(state);
        let layout = Layout::of(&state, &limits);
        let mut sets = build(&state, &layout);
        if let Some(given) = &given {
            rejected::add(&mut sets, given);
        }
        let local = state.endpoints.values().flat_map(|endpoint| &endpoint.addresses).copied().collect();
        let publishes = state.endpoints.values().any(|endpoint| !endpoint.published_ports.is_empty());
        (Self { state, given, limits, layout, local, publishes, comments: HashSet::new() }, sets)
    }

    /// The state that was flattened last.
    pub fn state(&self) -> &NodeState {
        self.given.as_ref().unwrap_or(&self.state)
    }

    /// The groups that a set of the shared form is of.
    pub fn groups_of(&self, set: &GroupSet) -> BTreeSet<GroupId> {
        let mut groups = BTreeSet::new();
        for ((_, _, family), side) in &self.layout.sides {
            for merged in side.merged.iter().filter(|merged| merged.set(*family) == *set) {
                groups.extend(merged.groups.iter().cloned());
            }
            for (id, form) in side.grants.iter().filter_map(|grant| match &grant.peers {
                GrantPeers::Group(id, form) => Some((id, *form)),
                GrantPeers::Any => None,
            }) {
                if self.state.groups.get(id).is_some_and(|group| shared::group_set(group, *family, form) == *set) {
                    groups.insert(id.clone());
                }
            }
        }
        groups
    }

    /// Goes on to the next state.
    pub fn next(&mut self, next: NodeState) -> Step {
        let (next, given) = without_tiers(next);
        // Whom rules of tiers answer depends on members too, and is worked out with the whole.
        let answers = [&self.given, &given].into_iter().flatten().any(has_answers);
        let delta = if answers { None } else { self.delta(&next) };
        match delta {
            Some((delta, Learnt { facts, ladder, unions })) => {
                self.layout.facts.extend(facts);
                self.layout.ladder = ladder;
                self.layout.unions.extend(unions);
                self.state = next;
                self.given = given;
                Step::Delta(delta)
            }
            None => {
                let (flattened, sets) = Self::new(given.unwrap_or(next), self.limits);
                *self = flattened;
                Step::Whole(sets)
            }
        }
    }

    /// `None` where more than the membership of groups differs, or where it makes a difference to the form.
    fn delta(&mut self, next: &NodeState) -> Option<(SetsDelta, Learnt)> {
        if !self.state.differs_only_in_groups(next) || self.state.groups.len() != next.groups.len() {
            return None;
        }
        let mut delta = SetsDelta::default();
        let mut learnt = Learnt { facts: BTreeMap::new(), ladder: self.layout.ladder.clone(), unions: BTreeMap::new() };
        // By side, the peers whose elements may come or go.
        let mut touched: BTreeMap<SideKey, BTreeSet<Member>> = BTreeMap::new();
        for Difference { key: id, before, now } in self.state.groups.differences(&next.groups) {
            let (Some(before), Some(after)) = (before, now) else { return None };
            if before.title != after.title {
                return None;
            }
            let changes = before.members.changes_to(&after.members);
            if changes == Changes::default() {
                continue;
            }
            let Some(uses) = self.layout.uses.get(id) else { continue };
            self.keeps_form(id, after, &changes, &mut learnt)?;
            for key in uses {
                let side = self.layout.sides.get(key)?;
                if side.contested || side.overflows || changes_ranges(side, id, &changes) {
                    return None;
                }
                share(&mut delta, side, key, after);
                self.unite(&mut learnt.unions, next, side, key, (id, &changes))?;
                if makes_elements(side, id) {
                    let of_family = |member: &&Member| family_of(member) == key.2;
                    let changed = changes.gone.iter().chain(&changes.come).filter(of_family);
                    touched.entry(key.clone()).or_default().extend(changed.copied());
                }
            }
        }
        if learnt.ladder.from(&self.limits) != self.layout.ladder.from(&self.limits) {
            return None;
        }
        delta.groups.extend(learnt.unions.iter().map(|(set, members)| (*set, members.clone())));
        for (key, members) in touched {
            self.elements(&mut delta, next, &key, &members)?;
        }
        delta.groups.sort_by_key(|(set, _)| *set);
        delta.groups.dedup_by_key(|(set, _)| *set);
        Some((delta, learnt))
    }

    /// Takes up the group's new facts, if they leave the layout as it is.
    fn keeps_form(&self, id: &GroupId, after: &Group, changes: &Changes, learnt: &mut Learnt) -> Option<()> {
        let before = self.layout.facts.get(id)?;
        let facts = Facts::of(&after.members);
        let multiple = self.layout.multiples.get(id).copied().unwrap_or(0);
        let makes = product(&facts, multiple);
        learnt.ladder.take(product(before, multiple), &self.limits);
        learnt.ladder.add(makes, &self.limits);
        let large = makes > self.layout.ladder.from(&self.limits);
        let concerns_published = self.publishes && changes.gone.iter().chain(&changes.come).any(|member| self.is_local(member));
        let keeps = facts.kinds() == before.kinds() && large == self.layout.large.contains(id) && !concerns_published;
        learnt.facts.insert(id.clone(), facts);
        keeps.then_some(())
    }

    /// The sets of several groups that a changed one is of.
    fn unite(
        &self,
        unions: &mut BTreeMap<GroupSet, Members>,
        next: &NodeState,
        side: &Side,
        key: &SideKey,
        (id, changes): (&GroupId, &Changes),
    ) -> Option<()> {
        for merged in side.merged.iter().filter(|merged| merged.groups.contains(id)) {
            let set = merged.set(key.2);
            let keys = |members: &[Member]| -> Vec<GroupKey> { members.iter().filter_map(|member| set.key(*member)).collect() };
            let (gone, come) = (keys(&changes.gone), keys(&changes.come));
            if gone.is_empty() && come.is_empty() {
                continue;
            }
            if merged.form == GroupForm::Blocks {
                // Of blocks that lie in one another only the outer is there.
                return None;
            }
            let union = match unions.entry(set) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.layout.unions.get(&set)?.clone()),
            };
            let stays = |key: &GroupKey| merged.groups.iter().filter_map(|of| next.groups.get(of)).any(|group| holds(&group.members, *key));
            for key in gone.iter().filter(|key| !stays(key)) {
                union.remove(&key.member());
            }
            for key in come.iter().filter(|key| stays(key)) {
                union.insert(key.member());
            }
        }
        Some(())
    }

    fn is_local(&self, member: &Member) -> bool {
        match member {
            Member::Address(address) | Member::Service(address, ..) => self.local.contains(address),
            Member::Block(block) => self.local.iter().any(|address| block.contains(address)),
        }
    }

    /// The elements that these members make in one side, before and after.
    fn elements(&mut self, delta: &mut SetsDelta, next: &NodeState, key: &SideKey, members: &BTreeSet<Member>) -> Option<()> {
        let (segment, direction, family) = key;
        let side_layout = self.layout.sides.get(key)?;
        let isolation = side(self.state.segments.get(segment)?, *direction)?;
        for (local, who) in &side_layout.locals {
            // Several members may speak of one element: an address, and a block of one.
            let mut candidates: BTreeMap<(Shape, Element), ()> = BTreeMap::new();
            for member in members {
                candidates.extend(elements_of(side_layout, *local, *member).into_iter().map(|element| (element, ())));
            }
            for (shape, element) in candidates.into_keys() {
                let id = SetId { direction: *direction, family: *family, shape };
                let says = |state: &NodeState| comment_of(state, side_layout, isolation, key, *local, who, &element);
                match (says(&self.state), says(next)) {
                    (None, None) => {}
                    (Some(before), Some(after)) if before == after => {}
                    (_, Some(after)) => {
                        let comment = self.comments.get(&after).cloned().unwrap_or(after);
                        self.comments.insert(comment.clone());
                        delta.put.push((id, element, comment));
                    }
                    (Some(_), None) => delta.remove.push((id, element)),
                }
            }
        }
        Some(())
    }
}

/// The sets of the group alone that the side's chain names.
fn share(delta: &mut SetsDelta, side: &Side, key: &SideKey, group: &Group) {
    for (index, (grant, in_chain)) in side.grants.iter().zip(&side.in_chain).enumerate() {
        if let GrantPeers::Group(id, form) = &grant.peers
            && *in_chain
            && *id == group.id
            && !side.merged.iter().any(|merged| merged.grants.binary_search(&index).is_ok())
        {
            delta.groups.push((shared::group_set(group, key.2, *form), group.members.clone()));
        }
    }
}

fn has_answers(state: &NodeState) -> bool {
    state.segments.values().any(|segment| rejects(segment, Direction::Ingress) || rejects(segment, Direction::Egress))
}

/// The state with its tiers resolved, and as it was given where it has some.
fn without_tiers(state: NodeState) -> (NodeState, Option<NodeState>) {
    match resolved(&state) {
        Some(plain) => (plain, Some(state)),
        None => (state, None),
    }
}

fn makes_elements(side: &Side, group: &GroupId) -> bool {
    let multiplied = side.grants.iter().zip(&side.in_chain).filter(|(_, in_chain)| !**in_chain);
    multiplied.map(|(grant, _)| &grant.peers).any(|peers| matches!(peers, GrantPeers::Group(id, _) if id == group))
}

/// Whether blocks that change are multiplied out, in ranges that have to be made disjoint.
fn changes_ranges(side: &Side, group: &GroupId, changes: &Changes) -> bool {
    let is_block = |member: &Member| matches!(member, Member::Block(block) if single(*block).is_none());
    changes.gone.iter().chain(&changes.come).any(is_block)
        && multiplied(side).any(|(peers, _)| matches!(peers, GrantPeers::Group(id, GroupForm::Blocks) if id == group))
}

fn family_of(member: &Member) -> Family {
    match member {
        Member::Address(address) | Member::Service(address, ..) => Family::of(*address),
        Member::Block(block) => Family::of(block.addr()),
    }
}

/// The elements that a side may make of a member, whichever of its groups has it.
fn elements_of(side: &Side, local: IpAddr, member: Member) -> Vec<(Shape, Element)> {
    match member {
        Member::Service(peer, protocol, port) => vec![(Shape::PeerPort, Element::PeerPort(local, peer, protocol, port))],
        Member::Address(_) | Member::Block(_) => {
            let Some(peer) = exact_address(member, Family::of(local)) else { return Vec::new() };
            multiplied(side).flat_map(|(_, service)| exact_elements(local, peer, service)).collect()
        }
    }
}

/// Groups that are multiplied out, with the service.
fn multiplied(side: &Side) -> impl Iterator<Item = (&GrantPeers, GrantService)> {
    side.grants.iter().zip(&side.in_chain).filter(|(_, in_chain)| !**in_chain).map(|(grant, _)| (&grant.peers, grant.service))
}

/// The comment of an element in the sets of a state; `None` when no grant makes it.
fn comment_of(
    state: &NodeState,
    layout: &Side,
    isolation: &Isolation,
    key: &SideKey,
    local: IpAddr,
    who: &str,
    element: &Element,
) -> Option<Comment> {
    let makers = layout.grants.iter().zip(&layout.in_chain).filter(|(_, in_chain)| !**in_chain).filter_map(|(grant, _)| {
        let GrantPeers::Group(id, form) = &grant.peers else { return None };
        let group = state.groups.get(id)?;
        let rule = isolation.rules.get(grant.rule)?;
        debug_assert!(groups_of(&rule.peers).contains(id), "a grant is of its rule's groups");
        makes(group, *form, grant.service, local, element).then(|| said(who, key.1, &group.title, rule))
    });
    makers.min()
}

fn makes(group: &Group, form: GroupForm, service: GrantService, local: IpAddr, element: &Element) -> bool {
    let peer = match element {
        Element::Peer(_, peer) | Element::PeerProtocol(_, peer, _) | Element::PeerPort(_, peer, ..) | Element::PeerIcmp(_, peer, ..) => {
            *peer
        }
        Element::Local(_) | Element::Port(..) | Element::Range(..) | Element::IcmpRange(..) => return false,
    };
    match form {
        GroupForm::Addresses => {
            exact_elements(local, peer, service).iter().any(|(_, made)| made == element)
                && (group.members.contains(&Member::Address(peer)) || group.members.contains(&Member::Block(peer.into())))
        }
        GroupForm::Services => match element {
            Element::PeerPort(_, _, protocol, port) => group.members.contains(&Member::Service(peer, *protocol, *port)),
            Element::Local(_)
            | Element::Peer(..)
            | Element::PeerProtocol(..)
            | Element::PeerIcmp(..)
            | Element::Port(..)
            | Element::Range(..)
            | Element::IcmpRange(..) => false,
        },
        // Blocks that are multiplied out are everybody's (`Element::Port`), and stay as long as the facts do.
        GroupForm::Blocks => false,
    }
}
