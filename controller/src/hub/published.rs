//! One published moment: policies, inventory and every node's target, all of the same revision. Never changed after it was made. What did not
//! change since the moment before is the same memory.

use super::sources::Reported;
use crate::store::ObjectKey as StoredKey;
use firebreak_policy::index::{Holding, Objects};
use firebreak_policy::model::{Inventory, NodeName, PolicySet, Revision, WorkloadId};
use firebreak_policy::node_state::NodeState;
use firebreak_policy::reserved::Given;
use firebreak_policy::{Compiled, SharedMap};
use firebreak_proto::hash::{ContentHash, Hashes};
use firebreak_proto::workload::DeclaredWorkload;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What everybody reads. A reader that holds one sees one moment.
#[derive(Debug)]
pub(crate) struct Published {
    /// Rises by one with every publication of this process.
    pub(crate) number: u64,
    pub(crate) epoch: Arc<str>,
    pub(crate) revision: Revision,
    pub(crate) policies: Arc<PolicySet>,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) targets: SharedMap<NodeName, Target>,
    pub(crate) declared: SharedMap<NodeName, Vec<DeclaredWorkload>>,
    pub(crate) reported: SharedMap<NodeName, Reported>,
    pub(crate) unreadable: Arc<BTreeMap<StoredKey, String>>,
    /// Workloads about whose labels there is something to tell.
    pub(crate) labels: SharedMap<WorkloadId, Given>,
    /// Deleted nodes and the revision that says so; a session that began before it ends.
    pub(crate) forgotten: Arc<BTreeMap<NodeName, Revision>>,
    /// The nodes with another target than in the publication before, in order: a generation has to go to them.
    pub(crate) changed: Vec<NodeName>,
    /// The nodes to which other workloads may be declared, in order.
    pub(crate) redeclared: Vec<NodeName>,
}

/// What one node is to hold.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) state: Arc<NodeState>,
    /// Key and hash of every object.
    pub(crate) objects: Objects<ContentHash>,
    /// Over all of them.
    pub(crate) hash: ContentHash,
}

impl Target {
    /// What the index says that the node is to hold.
    pub(crate) fn held(holding: &Holding<Hashes>) -> Self {
        let Holding { state, objects, total } = holding.clone();
        Self { state, objects, hash: total.commit_hash() }
    }

    /// What the node is to hold, with its hashes, from nothing.
    #[cfg(test)]
    pub(crate) fn of(node: &NodeName, state: &NodeState) -> Self {
        let objects = firebreak_proto::hash::objects_of(node, state);
        let hash = firebreak_proto::hash::commit_hash(objects.iter().map(|(key, hash)| (key, *hash)));
        Self { state: Arc::new(state.clone()), objects: objects.into_iter().collect(), hash }
    }
}
