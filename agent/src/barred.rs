//! Objects that the kernel would not take. The rest of their generation is applied without them, so that nothing widens: a group that is barred has no
//! members, a segment that is barred allows nobody in either direction, and so does one with a tier that names a barred group: it may deny by it. An object is tried again when another version of it comes, and from time to
//! time. Pure.

use crate::dataplane::Culprit;
use firebreak_policy::Members;
use firebreak_policy::model::HostAccess;
use firebreak_policy::node_state::{Group, GroupId, Isolation, NodeState, Rulebook, Segment, SegmentId};
use firebreak_proto::Refusal;
use firebreak_proto::hash::{ObjectKey, ObjectKind};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// How many times a generation is tried without what was refused last; then it is refused whole.
pub(crate) const MOST_ATTEMPTS: usize = 16;

/// What is barred, each with the version that was refused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Barred {
    groups: BTreeMap<GroupId, (Arc<Group>, Refusal)>,
    segments: BTreeMap<SegmentId, (Arc<Segment>, Refusal)>,
}

impl Barred {
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.segments.is_empty()
    }

    /// Bars what the kernel refused; `false` when that is no object of the controller's, or is barred already. `groups`: those that a set is of.
    /// `leads`: the local addresses that lead to a chain.
    pub(crate) fn bar(
        &mut self,
        culprit: &Culprit,
        reason: &str,
        state: &NodeState,
        groups: &BTreeSet<GroupId>,
        leads: &BTreeSet<IpAddr>,
    ) -> bool {
        let refusal = Refusal::new("kernel", reason);
        let before = self.groups.len() + self.segments.len();
        match culprit {
            Culprit::Group(_) => {
                for group in groups.iter().filter_map(|id| state.groups.get_shared(id)) {
                    self.groups.entry(group.id.clone()).or_insert_with(|| (group.clone(), refusal.clone()));
                }
            }
            Culprit::Local(local) => self.bar_segments_at(state, |address| address == local, &refusal),
            Culprit::Chain(_) => self.bar_segments_at(state, |address| leads.contains(address), &refusal),
        }
        self.groups.len() + self.segments.len() > before
    }

    fn bar_segments_at(&mut self, state: &NodeState, at: impl Fn(&IpAddr) -> bool, refusal: &Refusal) {
        let there = state.endpoints.values().filter(|endpoint| endpoint.addresses.iter().any(&at));
        for segment in there.filter_map(|endpoint| state.segments.get_shared(&endpoint.segment)) {
            self.segments.entry(segment.id.clone()).or_insert_with(|| (segment.clone(), refusal.clone()));
        }
    }

    /// The state without what is barred. What has another version now is barred no more.
    pub(crate) fn without(&mut self, state: &NodeState) -> NodeState {
        self.groups.retain(|id, (refused, _)| state.groups.get_shared(id).is_some_and(|now| Arc::ptr_eq(now, refused) || now == refused));
        self.segments
            .retain(|id, (refused, _)| state.segments.get_shared(id).is_some_and(|now| Arc::ptr_eq(now, refused) || now == refused));
        let given = state;
        let mut state = given.clone();
        for (id, (group, _)) in &self.groups {
            let empty = Group { id: id.clone(), title: group.title.clone(), members: Members::default() };
            state.groups.insert(id.clone(), empty);
        }
        let by_tier = |segment: &Segment| segment.rules.named_by_tiers().any(|id| self.groups.contains_key(id));
        for (id, segment) in given.segments.iter().filter(|(_, segment)| by_tier(segment)) {
            state.segments.insert(id.clone(), closed(segment));
        }
        for (id, (segment, _)) in &self.segments {
            state.segments.insert(id.clone(), closed(segment));
        }
        state
    }

    /// By name, with the reason.
    pub(crate) fn refused(&self) -> BTreeMap<ObjectKey, Refusal> {
        let groups = self.groups.iter().map(|(id, (_, refusal))| (ObjectKey::new(ObjectKind::Group, id.0.clone()), refusal.clone()));
        let segments = self.segments.iter().map(|(id, (_, refusal))| (ObjectKey::new(ObjectKind::Segment, id.0.clone()), refusal.clone()));
        groups.chain(segments).collect()
    }
}

/// The segment as it is when it may do nothing.
fn closed(segment: &Segment) -> Segment {
    let nobody = |isolation: &Option<Isolation>| {
        let policies = isolation.iter().flat_map(|isolation| isolation.policies.clone()).collect();
        let host_access = isolation.as_ref().map_or(HostAccess::Allow, |isolation| isolation.host_access);
        Some(Isolation { policies, host_access, rules: Vec::new() })
    };
    let rules = Rulebook { ingress: nobody(&segment.rules.ingress), egress: nobody(&segment.rules.egress), ..Rulebook::default() };
    Segment { id: segment.id.clone(), title: segment.title.clone(), rules: rules.into(), audit: segment.audit.clone() }
}

#[cfg(test)]
#[path = "barred_tests.rs"]
mod tests;
