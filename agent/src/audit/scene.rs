//! Whether policies in Audit mode would deny a connection. Pure.

use crate::cuts::{Affected, Entry, Judgement, Made, Scene, affected};
use crate::flows::{FlowKey, FlowVerdict};
use firebreak_policy::model::Direction;
use firebreak_policy::node_judge::NodeJudge;
use firebreak_policy::node_state::{NodeState, Segment, SegmentId};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// What connections are judged by: as it is, and as it would be if every policy in Audit mode were enforced.
#[derive(Debug)]
pub struct Scenes {
    enforced: Scene,
    audited: Scene,
    /// What is in force.
    in_force: Arc<NodeState>,
    /// What would be if every policy in Audit mode were enforced.
    state: Arc<NodeState>,
}

impl Scenes {
    /// Of a commit; `None` when no policy in Audit mode is about a workload that lives here.
    pub fn of(made: &Made) -> Option<Self> {
        let (enforced, in_force) = made.scene_and_state();
        let audited = with_audit_enforced(&in_force)?;
        let state = Arc::new(audited);
        let audited = Scene {
            generation: enforced.generation,
            policy: NodeJudge::new(state.clone()),
            node: enforced.node.clone(),
            locals: enforced.locals.clone(),
        };
        Some(Self { enforced, audited, in_force, state })
    }

    /// The flow that an audited policy would deny, and the policies in force do not.
    pub fn would_be_denied(&self, entry: &Entry) -> Option<FlowKey> {
        let direction = denied_at(self.audited.judge(entry))?;
        // One that is cut still, and that is allowed now, goes on.
        if denied_at(self.enforced.judge(entry)).is_some() {
            return None;
        }
        Some(FlowKey {
            direction,
            verdict: FlowVerdict::Audit,
            source: entry.source(),
            destination: entry.destination(),
            transport: entry.transport(),
        })
    }

    /// Whose connections may be audited otherwise than before.
    pub(super) fn affected_since(&self, before: Option<&Self>) -> Affected {
        let Some(before) = before else { return Affected::everything() };
        let mut changed = affected(&before.state, &self.state);
        // What is not cut any more goes on without being new, and may be what an audited policy would deny: one that was enforced before, say.
        changed.add(self.where_audited(affected(&before.in_force, &self.in_force)));
        changed.add(Affected {
            everything: before.audited.node != self.audited.node,
            addresses: before.audited.locals.symmetric_difference(&self.audited.locals).copied().collect(),
        });
        changed
    }
}

impl Scenes {
    fn where_audited(&self, changed: Affected) -> Affected {
        let Affected { everything, addresses } = changed;
        let is_audited = |segment: &SegmentId| self.in_force.segments.get(segment).is_some_and(|segment| segment.audit.is_some());
        let audited = self.in_force.endpoints.values().filter(|endpoint| is_audited(&endpoint.segment));
        let audited: BTreeSet<IpAddr> = audited.flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
        Affected { everything, addresses: addresses.intersection(&audited).copied().collect() }
    }
}

fn denied_at(judgement: Judgement) -> Option<Direction> {
    match judgement {
        Judgement::Foreign | Judgement::Keep => None,
        Judgement::Forbidden(direction) | Judgement::ForbiddenOneWay(direction) => Some(direction),
    }
}

/// The state with each segment's audited rules in the place of its own; `None` when no segment has any.
fn with_audit_enforced(state: &NodeState) -> Option<NodeState> {
    if state.segments.values().all(|segment| segment.audit.is_none()) {
        return None;
    }
    let mut audited = state.clone();
    for segment in state.segments.values() {
        if let Some(rules) = &segment.audit {
            let enforced = Segment { id: segment.id.clone(), title: segment.title.clone(), rules: rules.clone(), audit: None };
            audited.segments.insert(segment.id.clone(), enforced);
        }
    }
    Some(audited)
}

#[cfg(test)]
#[path = "scene_tests.rs"]
mod tests;
