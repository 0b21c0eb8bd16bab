//! Whether policies in Audit mode would deny a connection. Pure.

use crate::cuts::{Affected, Entry, Judgement, Made, Scene, affected};
use crate::flows::{FlowKey, FlowVerdict};
use firebreak_policy::model::Direction;
use firebreak_policy::node_judge::NodeJudge;
use firebreak_policy::node_state::{NodeState, Segment};
use std::sync::Arc;

/// What connections are judged by: as it is, and as it would be if every policy in Audit mode were enforced.
#[derive(Debug)]
pub struct Scenes {
    enforced: Scene,
    audited: Scene,
    state: Arc<NodeState>,
}

impl Scenes {
    /// Of a commit; `None` when no policy in Audit mode is about a workload that lives here.
    pub fn of(made: &Made) -> Option<Self> {
        let (enforced, state) = made.scene_and_state();
        let audited = with_audit_enforced(&state)?;
        let state = Arc::new(audited);
        let audited = Scene {
            generation: enforced.generation,
            policy: NodeJudge::new(state.clone()),
            node: enforced.node.clone(),
            locals: enforced.locals.clone(),
        };
        Some(Self { enforced, audited, state })
    }

    /// The flow that an audited policy would deny, and the policies in force do not.
    pub fn would_be_denied(&self, entry: &Entry) -> Option<FlowKey> {
        let direction = denied_at(self.audited.judge(entry))?;
        if entry.is_cut || denied_at(self.enforced.judge(entry)).is_some() {
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
        changed.add(Affected {
            everything: before.audited.node != self.audited.node,
            addresses: before.audited.locals.symmetric_difference(&self.audited.locals).copied().collect(),
        });
        changed
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
