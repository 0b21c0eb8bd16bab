//! The shared form in the kernel: sets of groups and chains of segments, which come and go, and how one leads to the next.

use super::element::{Entry, tidy};
use super::names::{Asked, DIRECTIONS, FAMILIES, SetRef};
use super::plan::{Plan, SetChange};
use firebreak_policy::Members;
use firebreak_policy::kernel_sets::{Chain, Comment, GroupKey, GroupSet, Shared, SharedRule};
use firebreak_policy::model::{Direction, Family};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the kernel holds of it. The members are those of the desired state, in the same memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HeldShared {
    pub(super) groups: BTreeMap<GroupSet, HeldGroup>,
    /// With their rules; none when the chain was read back: its name says which rules it has.
    pub(super) chains: BTreeMap<Chain, Vec<SharedRule>>,
    pub(super) segments: Led,
    /// The same for what may be an answer, while TCP may be picked up in the middle.
    pub(super) answers: Led,
}

/// Which chain a local address leads to.
pub(super) type Led = BTreeMap<(Direction, IpAddr), (Chain, Comment)>;

/// The same for answers.
pub(super) fn answers_of(segments: &Led) -> Led {
    segments.iter().map(|(key, (chain, comment))| (*key, (chain.of_answers(), comment.clone()))).collect()
}

/// With a second chain of each segment, for answers.
pub(super) fn with_chains_of_answers(shared: &Shared) -> Shared {
    let more = shared.chains.iter().map(|(chain, rules)| (chain.of_answers(), rules.clone()));
    let mut with = shared.clone();
    with.chains.extend(more);
    with
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
        self.segments.len() + self.answers.len() + self.groups.values().map(|group| group.elements).sum::<usize>()
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
            (SetRef::Segments(asked, direction, _), Entry::Segment(local, chain)) => {
                self.led_mut(asked).insert((direction, local), (chain, comment));
            }
            (
                SetRef::Group(_)
                | SetRef::Segments(..)
                | SetRef::KnownInterfaces(_)
                | SetRef::Workloads(_)
                | SetRef::Policy(_)
                | SetRef::Bound(..),
                Entry::Group(_) | Entry::Segment(..) | Entry::Interface(_) | Entry::Policy(_) | Entry::Bound(_),
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
        self.chains.extend(plan.rules.drain(..));
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

    pub(super) fn remove_segment(&mut self, asked: Asked, direction: Direction, local: IpAddr) {
        self.led_mut(asked).remove(&(direction, local));
    }

    /// What local addresses lead to.
    pub(super) fn led(&self, asked: Asked) -> &Led {
        match asked {
            Asked::Packet => &self.segments,
            Asked::Answer => &self.answers,
        }
    }

    fn led_mut(&mut self, asked: Asked) -> &mut Led {
        match asked {
            Asked::Packet => &mut self.segments,
            Asked::Answer => &mut self.answers,
        }
    }
}

/// Adds to a plan what has to change in the shared form. With `rewrite`, chains that are there get their rules anew.
pub(super) fn plan(plan: &mut Plan, actual: &HeldShared, desired: &Shared, answers: &Led, rewrite: bool) {
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
            // Its name says its rules; a chain that was read back learns them.
            Some(held) if held.is_empty() && !rewrite => plan.rules.push((*chain, rules.clone())),
            // Of a chain that was read back and not committed since nobody knows the rules.
            Some(_) if rewrite && !rules.is_empty() => plan.before.push(Object::RewriteChain(*chain, rules.clone())),
            Some(_) => {}
        }
    }
    for direction in DIRECTIONS {
        for family in FAMILIES {
            for (asked, desired) in [(Asked::Packet, &desired.segments), (Asked::Answer, answers)] {
                plan_segments(plan, actual.led(asked), desired, (asked, direction, family));
            }
        }
    }
}

/// What no local address leads to any more. It goes in a transaction after the one that left it behind: packets that were on their way through
/// a chain then find its sets as they were.
pub(super) fn plan_tidy(actual: &HeldShared) -> Plan {
    let wanted: BTreeSet<&Chain> = actual.segments.values().chain(actual.answers.values()).map(|(chain, _)| chain).collect();
    let gone = actual.chains.keys().filter(|chain| !wanted.contains(chain)).map(|chain| Object::DeleteChain(*chain));
    let mut plan = Plan { after: gone.collect(), ..Plan::default() };
    let kept = || actual.chains.iter().filter(|(chain, _)| wanted.contains(chain)).map(|(_, rules)| rules);
    // A chain that was read back does not say which sets it names: the first commit tells.
    if kept().all(|rules| !rules.is_empty()) {
        let named: BTreeSet<GroupSet> = kept().flatten().filter_map(SharedRule::group).collect();
        plan.after.extend(actual.groups.keys().filter(|set| !named.contains(set)).map(|set| Object::DeleteSet(*set)));
    }
    plan
}

/// Takes out of a plan what may go before it and means nothing by itself: new chains, and new sets with what is in them. When the plan then makes
/// addresses lead to a chain, it is there in full for every packet, also for one that began before.
pub(super) fn split_prepared(plan: &mut Plan) -> Option<Plan> {
    let objects: Vec<Object> = plan.before.extract_if(.., |object| !matches!(object, Object::RewriteChain(..))).collect();
    if objects.is_empty() {
        return None;
    }
    let added = |set: &GroupSet| objects.iter().any(|object| matches!(object, Object::AddSet(added, _) if added == set));
    let changes = plan.changes.extract_if(.., |change| matches!(change.set, SetRef::Group(set) if added(&set))).collect();
    let members = plan.members.extract_if(.., |(set, _)| added(set)).collect();
    Some(Plan { before: objects, changes, members, ..Plan::default() })
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

fn plan_segments(plan: &mut Plan, actual: &Led, desired: &Led, (asked, direction, family): (Asked, Direction, Family)) {
    let here = |key: &(Direction, IpAddr)| key.0 == direction && Family::of(key.1) == family;
    let mut change = SetChange { set: SetRef::Segments(asked, direction, family), remove: Vec::new(), put: Vec::new() };
    let same = |one: &(Chain, Comment), other: &(Chain, Comment)| one.0 == other.0 && *tidy(&one.1) == *tidy(&other.1);
    for (key, held) in actual.iter().filter(|(key, _)| here(key)) {
        if desired.get(key).is_none_or(|wanted| !same(held, wanted)) {
            change.remove.push(Entry::Segment(key.1, held.0));
        }
    }
    for (key, wanted) in desired.iter().filter(|(key, _)| here(key)) {
        if actual.get(key).is_none_or(|held| !same(held, wanted)) {
            change.put.push((Entry::Segment(key.1, wanted.0), (*tidy(&wanted.1)).into()));
        }
    }
    plan.push(change.set, change.remove, change.put);
}
