//! What the controller has sent, object by object, and whether it is what the controller meant. Pure.
//!
//! Updates are collected into a draft; a Commit checks the draft's hash and makes it the state that is held. A draft that
//! does not add up is thrown away with everything held, and the next session asks for all of it: what the kernel enforces
//! stays until then.

use firebreak_policy::Members;
use firebreak_policy::model::{Generation, NodeName, Revision, WorkloadId};
use firebreak_policy::node_state::{Group, GroupId, LocalEndpoint, NodeState, Segment, SegmentId};
use firebreak_proto::hash::{self, ContentHash, MemberSum, ObjectKey, ObjectKind, ObjectSum};
use firebreak_proto::state::{self, GroupChange};
use firebreak_proto::{Refusal, v1};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A complete state that a Commit closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The controller's lineage.
    pub epoch: String,
    /// The number of this state.
    pub generation: Generation,
    /// The policy revision that it realises.
    pub revision: Revision,
    /// The state.
    pub state: NodeState,
    /// Objects that could not be read, with the reason. Where an earlier version was held, that one stays in `state`.
    pub refused: BTreeMap<ObjectKey, Refusal>,
}

/// Why the stream cannot go on. Nothing of the draft takes effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeldError {
    /// The update does not say what it is about.
    #[error("an update names no object that this version knows")]
    Nameless,
    /// The content is not what its hash says.
    #[error("{key}: content hash is {got}, the controller says {wanted}")]
    ObjectHash {
        /// The object.
        key: ObjectKey,
        /// Of what was received.
        got: ContentHash,
        /// As sent.
        wanted: ContentHash,
    },
    /// A group's last part is missing, or carries no hash.
    #[error("{key}: its last part did not come before the commit")]
    Incomplete {
        /// The group.
        key: ObjectKey,
    },
    /// The whole is not what the controller meant.
    #[error("generation {generation}: the hash of everything held is {got}, the controller says {wanted}")]
    CommitHash {
        /// The generation.
        generation: Generation,
        /// Of what is held.
        got: ContentHash,
        /// As sent.
        wanted: ContentHash,
    },
    /// The commit itself cannot be read.
    #[error("commit: {0}")]
    Commit(Refusal),
}

/// What is held, and the draft of the next generation.
#[derive(Clone, Debug)]
pub struct Held {
    node: NodeName,
    committed: Arc<Committed>,
    draft: Draft,
}

#[derive(Clone, Debug, Default)]
struct Draft {
    state: NodeState,
    hashes: Hashes,
    sums: BTreeMap<GroupId, MemberSum>,
    /// With the hash that the controller gives the object; a group's comes with its last part.
    refused: BTreeMap<ObjectKey, (Refusal, Option<ContentHash>)>,
    /// Groups of which a part came and the last did not.
    open: BTreeSet<GroupId>,
}

/// The hash of every object, and what stands for all of them.
#[derive(Clone, Debug, Default)]
struct Hashes {
    by_key: BTreeMap<ObjectKey, ContentHash>,
    sum: ObjectSum,
}

impl Hashes {
    fn of(objects: Vec<(ObjectKey, ContentHash)>) -> Self {
        Self { sum: ObjectSum::of(objects.iter().map(|(key, hash)| (key, *hash))), by_key: objects.into_iter().collect() }
    }

    fn insert(&mut self, key: ObjectKey, hash: ContentHash) {
        self.remove(&key);
        self.sum.add(&key, hash);
        self.by_key.insert(key, hash);
    }

    fn remove(&mut self, key: &ObjectKey) {
        if let Some(before) = self.by_key.remove(key) {
            self.sum.remove(key, before);
        }
    }

    /// The hash of a Commit with these objects, and with others in their place or beside them.
    fn commit_hash(&self, others: &BTreeMap<&ObjectKey, ContentHash>) -> ContentHash {
        let mut sum = self.sum;
        for (key, hash) in others {
            if let Some(before) = self.by_key.get(*key) {
                sum.remove(key, *before);
            }
            sum.add(key, *hash);
        }
        sum.commit_hash()
    }
}

impl Held {
    /// Holds nothing.
    pub fn nothing(node: NodeName) -> Self {
        Self { node, committed: Arc::default(), draft: Draft::default() }
    }

    /// Holds what an earlier agent was sent and kept.
    pub fn restored(node: NodeName, committed: Arc<Committed>) -> Self {
        let mut held = Self { node, committed, draft: Draft::default() };
        held.discard_draft();
        held
    }

    /// The state that the last Commit closed; generation 0 and empty when there was none.
    pub fn committed(&self) -> &Arc<Committed> {
        &self.committed
    }

    /// Forgets what a broken stream left half done. Refused objects are forgotten too: the controller sends them again.
    pub fn discard_draft(&mut self) {
        let state = self.committed.state.clone();
        let hashes = hash::objects_of(&self.node, &state);
        // Without a generation not even the node's own object is held.
        self.draft = Draft {
            hashes: if self.committed.generation == Generation(0) { Hashes::default() } else { Hashes::of(hashes) },
            sums: state.groups.values().map(|group| (group.id.clone(), MemberSum::of(&group.members))).collect(),
            state,
            ..Draft::default()
        };
    }

    /// Key and hash of everything held, for `Held` messages. Refused objects are not among them.
    pub fn objects(&self) -> impl Iterator<Item = (&ObjectKey, ContentHash)> {
        self.draft.hashes.by_key.iter().map(|(key, hash)| (key, *hash))
    }

    /// What a Commit has to say of what is held now, refused objects left out.
    pub fn commit_hash(&self) -> ContentHash {
        self.draft.hashes.sum.commit_hash()
    }

    /// Takes an update into the draft. An object that cannot be read is refused by name and the rest goes on; an error ends
    /// the stream.
    pub fn update(&mut self, update: v1::ObjectUpdate) -> Result<(), HeldError> {
        let key = state::key_of(&update).ok_or(HeldError::Nameless)?;
        let v1::ObjectUpdate { change, hash } = update;
        let hash = if hash.is_empty() { None } else { Some(ContentHash::from_wire(&hash, "hash").map_err(HeldError::Commit)?) };
        match change.ok_or(HeldError::Nameless)? {
            v1::object_update::Change::Group(part) => self.group(key, part),
            v1::object_update::Change::Segment(wire) => {
                let read = Segment::try_from(wire).map(|segment| (hash::segment_hash(&segment), segment));
                self.put(key, hash, read, |state, segment| {
                    state.segments.insert(segment.id.clone(), segment);
                })
            }
            v1::object_update::Change::Endpoint(wire) => {
                let read = LocalEndpoint::try_from(wire).and_then(|endpoint| {
                    self.own(&endpoint.id.node, "id.node")?;
                    Ok((hash::endpoint_hash(&endpoint), endpoint))
                });
                self.put(key, hash, read, |state, endpoint| {
                    state.endpoints.insert(endpoint.id.clone(), endpoint);
                })
            }
            v1::object_update::Change::Node(wire) => {
                let read = state::node_from_wire(wire).and_then(|(name, addresses)| {
                    self.own(&name, "name")?;
                    Ok((hash::node_hash(&name, &addresses), addresses))
                });
                self.put(key, hash, read, |state, addresses| state.addresses = addresses)
            }
            v1::object_update::Change::Removed(_) => {
                self.remove(&key);
                Ok(())
            }
        }
    }

    /// Closes the draft: from here on it is what is held.
    pub fn commit(&mut self, commit: v1::Commit) -> Result<Arc<Committed>, HeldError> {
        let v1::Commit { epoch, generation, revision, hash: wanted } = commit;
        let generation = Generation(generation);
        let wanted = ContentHash::from_wire(&wanted, "hash").map_err(HeldError::Commit)?;
        if let Some(id) = self.draft.open.first() {
            return Err(HeldError::Incomplete { key: ObjectKey::new(ObjectKind::Group, id.0.clone()) });
        }
        let mut refused = BTreeMap::new();
        for (key, (_, claimed)) in &self.draft.refused {
            match claimed {
                Some(claimed) => refused.insert(key, *claimed),
                None => return Err(HeldError::Incomplete { key: key.clone() }),
            };
        }
        let got = self.draft.hashes.commit_hash(&refused);
        if got != wanted {
            return Err(HeldError::CommitHash { generation, got, wanted });
        }
        let refused = self.draft.refused.iter().map(|(key, (refusal, _))| (key.clone(), refusal.clone())).collect();
        let state = self.draft.state.clone();
        self.committed = Arc::new(Committed { epoch, generation, revision: Revision(revision), state, refused });
        Ok(self.committed.clone())
    }

    fn own(&self, node: &NodeName, field: &str) -> Result<(), Refusal> {
        if *node == self.node { Ok(()) } else { Err(Refusal::new(field, format!("{node} is another node; this is {}", self.node))) }
    }

    fn put<T>(
        &mut self,
        key: ObjectKey,
        claimed: Option<ContentHash>,
        read: Result<(ContentHash, T), Refusal>,
        insert: impl FnOnce(&mut NodeState, T),
    ) -> Result<(), HeldError> {
        match read {
            Ok((got, object)) => {
                if let Some(wanted) = claimed.filter(|wanted| *wanted != got) {
                    return Err(HeldError::ObjectHash { key, got, wanted });
                }
                insert(&mut self.draft.state, object);
                self.draft.refused.remove(&key);
                self.draft.hashes.insert(key, got);
            }
            Err(refusal) => {
                self.draft.refused.insert(key, (refusal, claimed));
            }
        }
        Ok(())
    }

    fn group(&mut self, key: ObjectKey, part: v1::GroupPart) -> Result<(), HeldError> {
        let id = GroupId(key.id.clone());
        let claimed = ContentHash::from_wire(&part.hash, "hash").ok();
        let starts = !self.draft.open.contains(&id);
        if claimed.is_some() {
            self.draft.open.remove(&id);
        } else {
            self.draft.open.insert(id.clone());
        }
        if !starts && let Some((_, hash)) = self.draft.refused.get_mut(&key) {
            // A part before was refused, so the group is: this part only tells the hash of the whole.
            *hash = claimed;
            return Ok(());
        }
        let held_back = starts && !part.reset && self.draft.refused.contains_key(&key);
        let change = match GroupChange::try_from(part) {
            Ok(_) if held_back => Err(Refusal::new("reset", "is a change to a version that was refused")),
            read => read,
        };
        match change {
            Ok(change) => self.change_group(key, id, change),
            Err(refusal) => {
                if !starts {
                    self.restore_group(&key, &id);
                }
                self.draft.refused.insert(key, (refusal, claimed));
                Ok(())
            }
        }
    }

    fn change_group(&mut self, key: ObjectKey, id: GroupId, change: GroupChange) -> Result<(), HeldError> {
        let GroupChange { id: _, title, reset, add, remove, hash: wanted } = change;
        let empty = || Group { id: id.clone(), title: String::new(), members: Members::default() };
        let sum = self.draft.sums.entry(id.clone()).or_default();
        if reset {
            self.draft.state.groups.insert(id.clone(), empty());
            *sum = MemberSum::default();
        }
        let group = self.draft.state.groups.get_or_insert_with(&id, empty);
        group.title = title;
        for member in remove {
            if group.members.remove(&member) {
                sum.remove(&member);
            }
        }
        for member in add {
            if group.members.insert(member) {
                sum.add(&member);
            }
        }
        if let Some(wanted) = wanted {
            let got = hash::group_hash(&id, &group.title, sum);
            if got != wanted {
                return Err(HeldError::ObjectHash { key, got, wanted });
            }
            self.draft.refused.remove(&key);
            self.draft.hashes.insert(key, got);
        }
        Ok(())
    }

    /// Puts a group back to the version of the last Commit, after some of its parts were taken in.
    fn restore_group(&mut self, key: &ObjectKey, id: &GroupId) {
        match self.committed.state.groups.get_shared(id) {
            Some(group) => {
                self.draft.sums.insert(id.clone(), MemberSum::of(&group.members));
                self.draft.hashes.insert(key.clone(), hash::whole_group_hash(group));
                self.draft.state.groups.insert_shared(id.clone(), group.clone());
            }
            None => {
                self.draft.sums.remove(id);
                self.draft.hashes.remove(key);
                self.draft.state.groups.remove(id);
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.draft.refused.remove(key);
        self.draft.hashes.remove(key);
        let state = &mut self.draft.state;
        match key.kind {
            ObjectKind::Group => {
                let id = GroupId(key.id.clone());
                state.groups.remove(&id);
                self.draft.sums.remove(&id);
                self.draft.open.remove(&id);
            }
            ObjectKind::Segment => {
                state.segments.remove(&SegmentId(key.id.clone()));
            }
            ObjectKind::Endpoint => {
                state.endpoints.remove(&WorkloadId::new(self.node.clone(), &*key.id));
            }
            ObjectKind::Node => state.addresses.clear(),
        }
    }
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
