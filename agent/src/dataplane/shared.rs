//! The shared form in the kernel: sets of groups and chains of segments, which come and go, and how one leads to the next.

use super::element::{Entry, tidy};
use super::names::{DIRECTIONS, FAMILIES, SetRef};
use super::plan::{Plan, SetChange};
use firebreak_policy::Members;
use firebreak_policy::kernel_sets::{Chain, Comment, GroupKey, GroupSet, Shared, SharedRule};
use firebreak_policy::model::{Direction, Family};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What the kernel holds of it. The members are those of the desired state, in the same memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HeldShared {
    pub(super) groups: BTreeMap<GroupSet, HeldGroup>,
    /// With their rules; none when the chain was read back: its name says which rules it has.
    pub(super) chains: BTreeMap<Chain, Vec<SharedRule>>,
    pub(super) segments: BTreeMap<(Direction, IpAddr), (Chain, Comment)>,
}

/// A set of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HeldGroup {
    pub(super) members: Members,
    pub(super) title: Comment,
    /// How many of the members are in this set.
    pub(super) elements: usize,
}

/// An object that comes or goes in a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// A set for a group of this title.
    AddSet(GroupSet, Comment),
    /// A chain with its rules.
    AddChain(Chain, Vec<SharedRule>),
    /// The rules of a chain anew.
    RewriteChain(Chain, Vec<SharedRule>),
    /// A chain that nothing leads to any more.
    DeleteChain(Chain),
    /// A set that no rule names any more.
    DeleteSet(GroupSet),
}

impl HeldShared {
    /// How many elements there are.
    pub(super) fn len(&self) -> usize {
        self.segments.len() + self.groups.values().map(|group| group.elements).sum::<usize>()
    }

    /// As it is desired, for the sake of comparing.
    pub(super) fn desired(&self) -> Shared {
        let groups = self.groups.iter().map(|(set, group)| (*set, (group.members.clone(), group.title.clone())));
        Shared { groups: groups.collect(), chains: self.chains.clone(), segments: self.segments.clone() }
    }

    /// Takes up an element that was read back.
    pub(super) fn insert(&mut self, set: SetRef, entry: Entry, comment: Comment) {
        match (set, entry) {
            (SetRef::Group(set), Entry::Group(key)) => {
                let group = self.groups.entry(set).or_default();
                group.elements += usize::from(group.members.insert(key.member()));
            }
            (SetRef::Segments(direction, _), Entry::Segment(local, chain)) => {
                self.segments.insert((direction, local), (chain, comment));
            }
            (
                SetRef::Group(_) | SetRef::Segments(..) | SetRef::KnownInterfaces(_) | SetRef::Workloads(_) | SetRef::Policy(_),
                Entry::Group(_) | Entry::Segment(..) | Entry::Interface(_) | Entry::Policy(_),
            ) => {}
        }
    }

    /// What the kernel holds after these were committed.
    pub(super) fn apply(&mut self, plan: &mut Plan) {
        for object in plan.before.drain(..).chain(plan.after.drain(..)) {
            match object {
                Object::AddSet(set, title) => {
                    self.groups.insert(set, HeldGroup { title, ..HeldGroup::default() });
                }
                Object::AddChain(chain, rules) | Object::RewriteChain(chain, rules) => {
                    self.chains.insert(chain, rules);
                }
                Object::DeleteChain(chain) => {
                    self.chains.remove(&chain);
                }
                Object::DeleteSet(set) => {
                    self.groups.remove(&set);
                }
            }
        }
        for (set, members) in plan.members.drain(..) {
            if let Some(group) = self.groups.get_mut(&set) {
                group.members = members;
            }
        }
    }

    /// The count of a set's elements after a change of it.
    pub(super) fn count(&mut self, set: GroupSet, put: usize, removed: usize) {
        if let Some(group) = self.groups.get_mut(&set) {
            group.elements = (group.elements + put).saturating_sub(removed);
        }
    }

    pub(super) fn remove_segment(&mut self, direction: Direction, local: IpAddr) {
        self.segments.remove(&(direction, local));
    }
}

/// Adds to a plan what has to change in the shared form. With `rewrite`, chains that are there get their rules anew.
pub(super) fn plan(plan: &mut Plan, actual: &HeldShared, desired: &Shared, rewrite: bool) {
    let none = Members::default();
    for (set, (members, title)) in &desired.groups {
        let held = actual.groups.get(set);
        if held.is_none() {
            plan.before.push(Object::AddSet(*set, title.clone()));
        }
        plan_group(plan, *set, held.map_or(&none, |held| &held.members), members);
    }
    for (chain, rules) in &desired.chains {
        match actual.chains.get(chain) {
            None => plan.before.push(Object::AddChain(*chain, rules.clone())),
            Some(_) if rewrite => plan.before.push(Object::RewriteChain(*chain, rules.clone())),
            Some(_) => {}
        }
    }
    for direction in DIRECTIONS {
        for family in FAMILIES {
            plan_segments(plan, actual, desired, direction, family);
        }
    }
    plan.after.extend(actual.chains.keys().filter(|chain| !desired.chains.contains_key(chain)).map(|chain| Object::DeleteChain(*chain)));
    plan.after.extend(actual.groups.keys().filter(|set| !desired.groups.contains_key(set)).map(|set| Object::DeleteSet(*set)));
}

/// Adds to a plan what comes and goes in one set of a group.
pub(super) fn plan_group(plan: &mut Plan, set: GroupSet, actual: &Members, desired: &Members) {
    let (gone, come) = set.changes(actual, desired);
    let uncommented: Comment = "".into();
    let remove = gone.into_iter().map(Entry::Group).collect();
    let put = come.into_iter().map(|key: GroupKey| (Entry::Group(key), uncommented.clone())).collect();
    plan.push(SetRef::Group(set), remove, put);
    plan.members.push((set, desired.clone()));
}

fn plan_segments(plan: &mut Plan, actual: &HeldShared, desired: &Shared, direction: Direction, family: Family) {
    let here = |key: &(Direction, IpAddr)| key.0 == direction && Family::of(key.1) == family;
    let mut change = SetChange { set: SetRef::Segments(direction, family), remove: Vec::new(), put: Vec::new() };
    let same = |one: &(Chain, Comment), other: &(Chain, Comment)| one.0 == other.0 && *tidy(&one.1) == *tidy(&other.1);
    for (key, held) in actual.segments.iter().filter(|(key, _)| here(key)) {
        if desired.segments.get(key).is_none_or(|wanted| !same(held, wanted)) {
            change.remove.push(Entry::Segment(key.1, held.0));
        }
    }
    for (key, wanted) in desired.segments.iter().filter(|(key, _)| here(key)) {
        if actual.segments.get(key).is_none_or(|held| !same(held, wanted)) {
            change.put.push((Entry::Segment(key.1, wanted.0), (*tidy(&wanted.1)).into()));
        }
    }
    plan.push(change.set, change.remove, change.put);
}
