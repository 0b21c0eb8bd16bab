//! Which connections a change can concern. Pure.

use firebreak_policy::node_state::{CompiledPeers, GroupId, NodeState, Segment};
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

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
    for (id, segment) in &after.segments {
        if named(segment).any(|group| groups.contains(group)) {
            segments.insert(id.clone());
        }
    }
    let mut affected = Affected::default();
    let mut has_published = false;
    for id in before.endpoints.keys().chain(after.endpoints.keys()) {
        let (was, is) = (before.endpoints.get(id), after.endpoints.get(id));
        let same = match (was, is) {
            (Some(was), Some(is)) => {
                let kept = Arc::ptr_eq(was, is)
                    || (&was.segment, &was.addresses, &was.published_ports) == (&is.segment, &is.addresses, &is.published_ports);
                kept && !segments.contains(&is.segment)
            }
            (Some(_), None) | (None, Some(_)) | (None, None) => false,
        };
        if !same {
            for endpoint in was.into_iter().chain(is) {
                affected.addresses.extend(&endpoint.addresses);
                has_published |= !endpoint.published_ports.is_empty();
            }
        }
    }
    if has_published {
        affected.addresses.extend(&after.addresses);
    }
    affected
}

fn changed<K: Ord + Clone + std::hash::Hash, V: PartialEq>(
    before: &std::collections::BTreeMap<K, Arc<V>>,
    after: &std::collections::BTreeMap<K, Arc<V>>,
) -> HashSet<K> {
    let differs = |key: &K| match (before.get(key), after.get(key)) {
        (Some(was), Some(is)) => !Arc::ptr_eq(was, is) && was != is,
        (Some(_), None) | (None, Some(_)) | (None, None) => true,
    };
    before.keys().chain(after.keys()).filter(|key| differs(key)).cloned().collect()
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
