//! From one state's sets to the next one's when only members of groups differ, without looking at the rest. The result is what
//! flattening the next state from the beginning gives (property test in `policy/tests/incremental.rs`); it only comes sooner.

use super::grants::{Facts, GrantPeers, GrantService, Layout, Side, SideKey, groups_of, is_large};
use super::{Limits, build, exact_address, exact_elements, said, shared, side};
use crate::kernel_sets::{Comment, Element, GroupForm, GroupSet, KernelSets, SetId, Shape};
use crate::members::{Changes, Members};
use crate::model::Family;
use crate::node_state::{Group, GroupId, Isolation, Member, NodeState};
use crate::shared_sets::single;
use crate::tiers::resolved;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// A state that was flattened, with what it takes to go on from it.
#[derive(Clone, Debug)]
pub struct Flattened {
    /// As it was given.
    given: NodeState,
    /// With its tiers resolved, where it has some.
    resolved: Option<NodeState>,
    limits: Limits,
    layout: Layout,
    /// Every local address, for published ports.
    local: HashSet<IpAddr>,
    publishes: bool,
    /// Comments that were made on the way, so that equal ones share their memory.
    comments: HashSet<Comment>,
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
        let resolved = resolved(&state);
        let judged = resolved.as_ref().unwrap_or(&state);
        let layout = Layout::of(judged, &limits);
        let sets = build(judged, &layout);
        let local = state.endpoints.values().flat_map(|endpoint| &endpoint.addresses).copied().collect();
        let publishes = state.endpoints.values().any(|endpoint| !endpoint.published_ports.is_empty());
        (Self { given: state, resolved, limits, layout, local, publishes, comments: HashSet::new() }, sets)
    }

    /// The state that was flattened last.
    pub fn state(&self) -> &NodeState {
        &self.given
    }

    fn judged(&self) -> &NodeState {
        self.resolved.as_ref().unwrap_or(&self.given)
    }

    /// Goes on to the next state.
    pub fn next(&mut self, next: NodeState) -> Step {
        let resolved = resolved(&next);
        match self.delta(resolved.as_ref().unwrap_or(&next)) {
            Some((delta, facts)) => {
                self.layout.facts.extend(facts);
                self.given = next;
                self.resolved = resolved;
                Step::Delta(delta)
            }
            None => {
                let (flattened, sets) = Self::new(next, self.limits);
                *self = flattened;
                Step::Whole(sets)
            }
        }
    }

    /// `None` where more than the membership of groups differs, or where it makes a difference to the form.
    fn delta(&mut self, next: &NodeState) -> Option<(SetsDelta, BTreeMap<GroupId, Facts>)> {
        if !self.judged().differs_only_in_groups(next) || self.judged().groups.len() != next.groups.len() {
            return None;
        }
        let mut delta = SetsDelta::default();
        let mut facts = BTreeMap::new();
        // By side, the peers whose elements may come or go.
        let mut touched: BTreeMap<SideKey, BTreeSet<Member>> = BTreeMap::new();
        for ((id, before), (next_id, after)) in self.judged().groups.iter().zip(&next.groups) {
            if id != next_id || before.title != after.title {
                return None;
            }
            if Arc::ptr_eq(before, after) {
                continue;
            }
            let changes = before.members.changes_to(&after.members);
            if changes == Changes::default() {
                continue;
            }
            let Some(uses) = self.layout.uses.get(id) else { continue };
            facts.insert(id.clone(), self.keeps_form(id, after, &changes)?);
            for key in uses {
                let side = self.layout.sides.get(key)?;
                if side.contested || side.overflows || changes_ranges(side, id, &changes) {
                    return None;
                }
                share(&mut delta, side, key, after);
                if makes_elements(side, id) {
                    let of_family = |member: &&Member| family_of(member) == key.2;
                    let changed = changes.gone.iter().chain(&changes.come).filter(of_family);
                    touched.entry(key.clone()).or_default().extend(changed.copied());
                }
            }
        }
        for (key, members) in touched {
            self.elements(&mut delta, next, &key, &members)?;
        }
        delta.groups.sort_by_key(|(set, _)| *set);
        delta.groups.dedup_by_key(|(set, _)| *set);
        Some((delta, facts))
    }

    /// The group's new facts, if they leave the layout as it is.
    fn keeps_form(&self, id: &GroupId, after: &Group, changes: &Changes) -> Option<Facts> {
        let before = self.layout.facts.get(id)?;
        let facts = Facts::of(&after.members);
        let multiple = self.layout.multiples.get(id).copied().unwrap_or(0);
        let large = is_large(&facts, multiple, &self.limits);
        let concerns_published = self.publishes && changes.gone.iter().chain(&changes.come).any(|member| self.is_local(member));
        (facts.kinds() == before.kinds() && large == self.layout.large.contains(id) && !concerns_published).then_some(facts)
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
        // Not by `judged`: comments are kept beside it.
        let state = self.resolved.as_ref().unwrap_or(&self.given);
        let side_layout = self.layout.sides.get(key)?;
        let isolation = side(state.segments.get(segment)?, *direction)?;
        for (local, who) in &side_layout.locals {
            // Several members may speak of one element: an address, and a block of one.
            let mut candidates: BTreeMap<(Shape, Element), ()> = BTreeMap::new();
            for member in members {
                candidates.extend(elements_of(side_layout, *local, *member).into_iter().map(|element| (element, ())));
            }
            for (shape, element) in candidates.into_keys() {
                let id = SetId { direction: *direction, family: *family, shape };
                let says = |state: &NodeState| comment_of(state, side_layout, isolation, key, *local, who, &element);
                match (says(state), says(next)) {
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

/// The sets of the group that the side's chain names.
fn share(delta: &mut SetsDelta, side: &Side, key: &SideKey, group: &Group) {
    for (grant, in_chain) in side.grants.iter().zip(&side.in_chain) {
        if let GrantPeers::Group(id, form) = &grant.peers
            && *in_chain
            && *id == group.id
        {
            delta.groups.push((shared::group_set(group, key.2, *form), group.members.clone()));
        }
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
