//! Which connections a change can concern. Pure.

use firebreak_policy::node_state::{CompiledPeers, GroupId, LocalEndpoint, NodeState, Segment};
use firebreak_policy::shared_map::Difference;
use firebreak_policy::{Headed, SharedMap};
use std::collections::{BTreeSet, HashSet};
use std::hash::Hash;
use std::net::IpAddr;

/// What must be judged again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// Every entry.
    pub everything: bool,
    /// Entries that have one of these at either end: addresses of local workloads, and of the node where what is published there changed.
    pub addresses: BTreeSet<IpAddr>,
}

impl Affected {
    /// Every entry.
    pub fn everything() -> Self {
        Self { everything: true, addresses: BTreeSet::new() }
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.addresses.is_empty()
    }

    /// Takes up another change.
    pub fn add(&mut self, other: Self) {
        self.everything |= other.everything;
        if self.everything {
            self.addresses.clear();
        } else {
            self.addresses.extend(other.addresses);
        }
    }
}

/// What a change can concern, by what it can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Concerned {
    /// Something may be forbidden there that was not.
    pub forbids: Affected,
    /// Something may be allowed that was not, and nothing is forbidden: rules that allow have more peers.
    pub allows: Affected,
}

/// What the change from one state to another can concern.
pub fn affected(before: &NodeState, after: &NodeState) -> Affected {
    let Concerned { mut forbids, allows } = concerned(before, after);
    forbids.add(allows);
    forbids
}

/// What the change from one state to another can concern: the endpoints whose segment, addresses or published ports changed, whose
/// segment says something else, or names a group that has other members. States share what did not change, so this looks at pointers first.
pub(super) fn concerned(before: &NodeState, after: &NodeState) -> Concerned {
    if before.addresses != after.addresses {
        return Concerned { forbids: Affected::everything(), allows: Affected::default() };
    }
    let groups = changed(&before.groups, &after.groups);
    let mut segments = changed(&before.segments, &after.segments);
    let mut widened = HashSet::new();
    if !groups.is_empty() {
        let grew = |id: &GroupId| {
            let (before, after) = (before.groups.get(id), after.groups.get(id));
            before.zip(after).is_some_and(|(before, after)| before.members.changes_to(&after.members).gone.is_empty())
        };
        let grown: HashSet<&GroupId> = groups.iter().filter(|id| grew(id)).collect();
        for (id, segment) in &after.segments {
            if !named(segment).any(|group| groups.contains(group)) {
                continue;
            }
            let denies = || segment.rules.named_by_tiers().any(|group| groups.contains(group));
            // Who isolates denies all but what its rules allow: with more peers they allow more.
            let only_allows = named(segment).all(|group| !groups.contains(group) || grown.contains(group)) && !denies();
            if only_allows { &mut widened } else { &mut segments }.insert(id.clone());
        }
    }
    let (mut forbids, mut allows) = (Ends::default(), Ends::default());
    for Difference { key: _, before: was, now: is } in before.endpoints.differences(&after.endpoints) {
        let judged = |it: &LocalEndpoint| (it.segment.clone(), it.addresses.clone(), it.published_ports.clone());
        if was.map(|it| judged(it)) != is.map(|it| judged(it)) {
            was.into_iter().chain(is).for_each(|endpoint| forbids.take(endpoint));
        }
    }
    if !(segments.is_empty() && widened.is_empty()) {
        for endpoint in after.endpoints.values() {
            if segments.contains(&endpoint.segment) {
                forbids.take(endpoint);
            } else if widened.contains(&endpoint.segment) {
                allows.take(endpoint);
            }
        }
    }
    Concerned { forbids: forbids.affected(after), allows: allows.affected(after) }
}

/// Local ends that a change is about.
#[derive(Default)]
struct Ends {
    addresses: BTreeSet<IpAddr>,
    has_published: bool,
}

impl Ends {
    fn take(&mut self, endpoint: &LocalEndpoint) {
        self.addresses.extend(&endpoint.addresses);
        self.has_published |= !endpoint.published_ports.is_empty();
    }

    /// With the node's addresses where something is published there.
    fn affected(mut self, state: &NodeState) -> Affected {
        if self.has_published {
            self.addresses.extend(&state.addresses);
        }
        Affected { everything: false, addresses: self.addresses }
    }
}

fn changed<K: Headed + Clone + Hash, V: PartialEq>(before: &SharedMap<K, V>, after: &SharedMap<K, V>) -> HashSet<K> {
    let differs = |it: &Difference<'_, K, V>| it.before != it.now;
    before.differences(after).into_iter().filter(differs).map(|it| it.key.clone()).collect()
}

fn named(segment: &Segment) -> impl Iterator<Item = &GroupId> {
    let books = [Some(&segment.rules), segment.audit.as_ref()];
    books.into_iter().flatten().flat_map(|rules| rules.peers()).flat_map(|peers| match peers {
        CompiledPeers::Any => [].as_slice(),
        CompiledPeers::Groups(groups) => groups.as_slice(),
    })
}

#[cfg(test)]
#[path = "affected_tests.rs"]
mod tests;
