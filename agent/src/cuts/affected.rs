//! Which connections a change can concern. Pure.

use firebreak_policy::node_state::{CompiledPeers, GroupId, LocalEndpoint, NodeState, Segment, SegmentId};
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
    let mut concerned = Concerned::default();
    concerned.forbids.addresses = of_endpoints(before, after, &segments, true);
    concerned.allows.addresses = of_endpoints(before, after, &widened, false);
    concerned
}

/// The addresses of the endpoints of these segments, and of those that changed where that is asked; with the node's where something is published.
fn of_endpoints(before: &NodeState, after: &NodeState, segments: &HashSet<SegmentId>, changed: bool) -> BTreeSet<IpAddr> {
    let mut addresses = BTreeSet::new();
    let mut has_published = false;
    let mut concern = |endpoint: &LocalEndpoint| {
        addresses.extend(&endpoint.addresses);
        has_published |= !endpoint.published_ports.is_empty();
    };
    for Difference { key: _, before: was, now: is } in before.endpoints.differences(&after.endpoints).into_iter().filter(|_| changed) {
        let judged = |it: &LocalEndpoint| (it.segment.clone(), it.addresses.clone(), it.published_ports.clone());
        if was.map(|it| judged(it)) != is.map(|it| judged(it)) {
            was.into_iter().chain(is).for_each(|endpoint| concern(endpoint));
        }
    }
    if !segments.is_empty() {
        after.endpoints.values().filter(|endpoint| segments.contains(&endpoint.segment)).for_each(&mut concern);
    }
    if has_published {
        addresses.extend(&after.addresses);
    }
    addresses
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
