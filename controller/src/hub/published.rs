//! One published moment: policies, inventory and every node's target, all of the same revision. Never changed after it was made.

use super::sources::{Assembled, Reported};
use crate::store::ObjectKey as StoredKey;
use firebreak_policy::model::{Inventory, NodeName, PolicySet, Revision, WorkloadId};
use firebreak_policy::node_state::NodeState;
use firebreak_policy::reserved::Given;
use firebreak_policy::{Compiled, compile};
use firebreak_proto::hash::{ContentHash, ObjectKey, commit_hash, objects_of};
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
    pub(crate) targets: BTreeMap<NodeName, Arc<Target>>,
    pub(crate) declared: BTreeMap<NodeName, Arc<Vec<DeclaredWorkload>>>,
    pub(crate) reported: BTreeMap<NodeName, Reported>,
    pub(crate) unreadable: BTreeMap<StoredKey, String>,
    /// Workloads about whose labels there is something to tell.
    pub(crate) labels: BTreeMap<WorkloadId, Given>,
    /// Deleted nodes and the revision that says so; a session that began before it ends.
    pub(crate) forgotten: BTreeMap<NodeName, Revision>,
}

/// What one node is to hold.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) state: NodeState,
    /// Key and hash of every object, in key order.
    pub(crate) objects: Vec<(ObjectKey, ContentHash)>,
    /// Over all of them.
    pub(crate) hash: ContentHash,
}

/// What goes into a publication beside the assembled sources.
pub(crate) struct Frame {
    pub(crate) epoch: Arc<str>,
    pub(crate) revision: Revision,
    pub(crate) reported: BTreeMap<NodeName, Reported>,
    pub(crate) unreadable: BTreeMap<StoredKey, String>,
    pub(crate) forgotten: BTreeMap<NodeName, Revision>,
}

impl Published {
    /// Compiles. A node whose content did not change keeps the target it had.
    pub(crate) fn of(assembled: Assembled, frame: Frame, previous: Option<&Published>) -> Self {
        let Assembled { policies, inventory, declared, labels, .. } = assembled;
        let Frame { epoch, revision, reported, unreadable, forgotten } = frame;
        let compiled = compile(&policies, &inventory);
        let targets = compiled
            .nodes()
            .iter()
            .map(|(name, state)| {
                let kept = previous.and_then(|it| it.targets.get(name)).filter(|target| target.state == *state);
                (name.clone(), kept.cloned().unwrap_or_else(|| Arc::new(Target::of(name, state))))
            })
            .collect();
        Self {
            number: previous.map_or(0, |it| it.number) + 1,
            epoch,
            revision,
            policies: Arc::new(policies),
            inventory: Arc::new(inventory),
            compiled: Arc::new(compiled),
            targets,
            declared: declared.into_iter().map(|(node, list)| (node, Arc::new(list))).collect(),
            reported,
            unreadable,
            labels,
            forgotten,
        }
    }

    /// The nodes that a generation has to go to that the previous publication did not ask for.
    pub(crate) fn new_for<'a>(&'a self, previous: Option<&'a Published>) -> impl Iterator<Item = &'a NodeName> {
        self.targets
            .iter()
            .filter(move |(name, target)| {
                let before = previous.filter(|it| it.revision == self.revision).and_then(|it| it.targets.get(*name));
                before.is_none_or(|before| before.hash != target.hash)
            })
            .map(|(name, _)| name)
    }
}

impl Target {
    /// What the node is to hold, with its hashes.
    pub(crate) fn of(node: &NodeName, state: &NodeState) -> Self {
        let objects = objects_of(node, state);
        let hash = commit_hash(objects.iter().map(|(key, hash)| (key, *hash)));
        Self { state: state.clone(), objects, hash }
    }
}
