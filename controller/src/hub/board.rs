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
    /// The boot of the newest session; what an earlier boot acked is not in the kernel any more.
    pub(crate) boot_id: String,
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

    /// What one node's line says, without a copy of it.
    pub(crate) fn tells(&self, node: &NodeName, ask: impl FnOnce(&Progress) -> bool) -> bool {
        self.lock().get(node).is_some_and(ask)
    }

    /// A session began. What an earlier boot of the node acked, refused or failed at is gone with it.
    pub(crate) fn connected(&self, node: &NodeName, boot_id: &str, agent_version: &str, now: Timestamp) {
        self.update(node, |progress| {
            if progress.boot_id != boot_id {
                *progress = Progress { boot_id: boot_id.to_owned(), ..Progress::default() };
            }
            progress.connected = true;
            progress.agent_version = agent_version.to_owned();
            progress.last_seen = Some(now);
        });
    }

    /// A session ended.
    pub(crate) fn disconnected(&self, node: &NodeName) {
        if let Some(progress) = self.lock().get_mut(node) {
            progress.connected = false;
        }
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
