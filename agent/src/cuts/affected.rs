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

/// What the change from one state to another can concern: the endpoints whose segment, addresses or published ports changed, whose
/// segment says something else, or names a group that has other members. States share what did not change, so this looks at pointers first.
pub fn affected(before: &NodeState, after: &NodeState) -> Affected {
    if before.addresses != after.addresses {
        return Affected::everything();
    }
    let groups = changed(&before.groups, &after.groups);
    let mut segments = changed(&before.segments, &after.segments);
    if !groups.is_empty() {
        let names = |segment: &Segment| named(segment).any(|group| groups.contains(group));
        segments.extend(after.segments.iter().filter(|(_, segment)| names(segment)).map(|(id, _)| id.clone()));
    }
    let mut affected = Affected::default();
    let mut has_published = false;
    let mut concern = |endpoint: &LocalEndpoint| {
        affected.addresses.extend(&endpoint.addresses);
        has_published |= !endpoint.published_ports.is_empty();
    };
    for Difference { key: _, before: was, now: is } in before.endpoints.differences(&after.endpoints) {
        let judged = |it: &LocalEndpoint| (it.segment.clone(), it.addresses.clone(), it.published_ports.clone());
        if was.map(|it| judged(it)) != is.map(|it| judged(it)) {
            was.into_iter().chain(is).for_each(|endpoint| concern(endpoint));
        }
    }
    if !segments.is_empty() {
        after.endpoints.values().filter(|endpoint| segments.contains(&endpoint.segment)).for_each(&mut concern);
    }
    if has_published {
        affected.addresses.extend(&after.addresses);
    }
    affected
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
