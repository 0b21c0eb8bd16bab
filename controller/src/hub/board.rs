//! How far each node is, as its session tells. A board that everybody reads and the sessions write; locks are held for a moment only.

use super::published::Target;
use firebreak_policy::model::{Generation, NodeName, Revision};
use firebreak_proto::v1;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// All nodes that had a session since this process began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board {
    nodes: Arc<Mutex<BTreeMap<NodeName, Progress>>>,
}

/// How far one node is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) connected: bool,
    pub(crate) sent_generation: Generation,
    pub(crate) acked_generation: Generation,
    pub(crate) acked_revision: Revision,
    /// What the node enforces as far as its last good ack tells.
    pub(crate) acked: Option<Arc<Target>>,
    pub(crate) refused: Vec<v1::RefusedObject>,
    pub(crate) failure: String,
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) agent_version: String,
}

impl Board {
    /// Changes one node's line.
    pub(crate) fn update(&self, node: &NodeName, change: impl FnOnce(&mut Progress)) {
        change(self.lock().entry(node.clone()).or_default());
    }

    /// One node's line as it is now.
    pub(crate) fn of(&self, node: &NodeName) -> Option<Progress> {
        self.lock().get(node).cloned()
    }

    /// A forgotten node has no line.
    pub(crate) fn forget(&self, node: &NodeName) {
        self.lock().remove(node);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeName, Progress>> {
        // A panic while a line is written leaves the line as it was or as it should be; both can be read.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
