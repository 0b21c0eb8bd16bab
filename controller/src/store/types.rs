//! The words of the store: what it takes, what it gives back, and what can go wrong. The hub and the API share them.

use firebreak_policy::model::{ContainerId, Labels, NamespaceName, NodeName, Revision};
use firebreak_proto::v1;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The kind of an object, for instance `SegmentPolicy`. The store keeps any kind; which there are is the manifest crate's word.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindName(Arc<str>);

impl KindName {
    /// Takes the text as it is; validation belongs to the API.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(Arc::from(text.as_ref()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Identifies an object. Keys are ordered by kind, then namespace (cluster-scoped first), then name: the order of lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: KindName,
    /// `None` for cluster-scoped kinds.
    pub namespace: Option<NamespaceName>,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// A key of its parts; an empty namespace is none.
    pub fn new(kind: impl AsRef<str>, namespace: &str, name: impl Into<String>) -> Self {
        Self { kind: KindName::new(kind), namespace: (!namespace.is_empty()).then(|| NamespaceName::new(namespace)), name: name.into() }
    }

    /// The namespace's text; empty for cluster-scoped kinds, as the wire and the database write it.
    pub fn namespace_text(&self) -> &str {
        self.namespace.as_ref().map_or("", NamespaceName::as_str)
    }
}

/// `SegmentPolicy shop/db`, `AddressGroup office`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// The kind under which the audit trail names a node's pin; no object has it.
pub const NODE_PIN: &str = "NodePin";

/// An object as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Which one.
    pub key: ObjectKey,
    /// For instance `firebreak.dev/v1alpha1`.
    pub api_version: String,
    /// The whole object as JSON. Two equal objects have equal text: the API writes it canonically (keys sorted).
    pub json: Arc<str>,
    /// `metadata.labels`, for label selectors of lists.
    pub labels: Labels,
    /// The revision that changed it last.
    pub revision: Revision,
    /// When it was made; kept over changes.
    pub created: Timestamp,
}

/// An object to be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Which one.
    pub key: ObjectKey,
    /// For instance `firebreak.dev/v1alpha1`.
    pub api_version: String,
    /// The whole object as canonical JSON.
    pub json: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
}

/// What somebody did, as the audit trail names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Objects were created or replaced.
    Apply,
    /// Objects were deleted.
    Delete,
    /// A node was forgotten.
    DeleteNode,
    /// The database was restored from a backup.
    Restore,
    /// A node was told to let through what policy denies, or to stop that.
    Observe,
}

impl Verb {
    /// Every verb there is.
    pub const ALL: [Self; 5] = [Self::Apply, Self::Delete, Self::DeleteNode, Self::Restore, Self::Observe];

    /// `apply`, `delete`, `delete-node`, `restore`, `observe`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Delete => "delete",
            Self::DeleteNode => "delete-node",
            Self::Restore => "restore",
            Self::Observe => "observe",
        }
    }
}

/// Whether a delete of something that is not there is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The whole change is refused.
    Refuse,
    /// It is passed over.
    Ignore,
}

/// Whether a change is made or only worked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is made.
    Commit,
    /// It is worked out and taken back: nothing changes.
    DryRun,
}

/// A change of objects: all of it is made, as one revision, or none of it.
#[derive(Clone, Debug)]
pub struct ChangeSet {
    /// Objects to create or replace. No key may be here, or here and in `deletes`, twice.
    pub puts: Vec<Put>,
    /// Objects to delete.
    pub deletes: Vec<ObjectKey>,
    /// What a delete of something that is not there means.
    pub missing: Missing,
    /// Who, for the audit trail.
    pub principal: String,
    /// What they did, for the audit trail.
    pub verb: Verb,
    /// Why, for the audit trail.
    pub reason: String,
    /// Only if the store is still at this revision.
    pub expected_revision: Option<Revision>,
    /// Whether to make it.
    pub effect: Effect,
    /// When, by the controller's clock.
    pub time: Timestamp,
}

/// What happened to one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeResult {
    /// It was not there.
    Created,
    /// It was there and is different now.
    Configured,
    /// It was there and is the same.
    Unchanged,
    /// It is gone.
    Deleted,
    /// It was not there to be deleted.
    NotFound,
}

/// What a change set led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The store's revision afterwards; the one before when nothing had to change (or in a dry run).
    pub revision: Revision,
    /// For each put, then for each delete, in the change set's order.
    pub results: Vec<(ObjectKey, ChangeResult)>,
}

/// One revision as it was committed: what followers of the store receive, in order and without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its number: one more than that of the revision before.
    pub revision: Revision,
    /// When, by the controller's clock, to the millisecond.
    pub time: Timestamp,
    /// Who.
    pub principal: String,
    /// What they did.
    pub verb: Verb,
    /// Why, as they said.
    pub reason: String,
    /// What changed; only created, configured and deleted objects. Empty for `delete-node`, `restore` and `observe`.
    pub changes: Vec<Change>,
    /// Nodes that were forgotten, with everything that they had reported.
    pub forgotten_nodes: Vec<NodeName>,
}

/// A change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Created, configured or deleted.
    pub result: ChangeResult,
    /// The object afterwards, or before it was deleted.
    pub object: Arc<StoredObject>,
}

/// One entry of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionEntry {
    /// Its number.
    pub revision: Revision,
    /// When.
    pub time: Timestamp,
    /// Who.
    pub principal: String,
    /// `apply`, `delete`, `delete-node`, `restore`, `observe`.
    pub verb: String,
    /// Why.
    pub reason: String,
    /// Which objects, and what happened to each.
    pub changes: Vec<(ObjectKey, ChangeResult)>,
}

/// A page of something, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, K> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins (after this key); `None` when this was the last page.
    pub next: Option<K>,
    /// The revision that the items are of.
    pub revision: Revision,
}

/// Which objects to list.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// `None` is every kind.
    pub kind: Option<KindName>,
    /// `None` is every namespace, and cluster-scoped objects.
    pub namespace: Option<NamespaceName>,
    /// As of this revision; `None` is now. A revision before the kept history is [`StoreError::Expired`].
    pub at: Option<Revision>,
    /// Only objects after this one.
    pub after: Option<ObjectKey>,
    /// At most so many items.
    pub limit: u32,
}

/// The random id of an agent's installation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstanceId(pub String);

/// What the store knows of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// The installation that the name is pinned to.
    pub instance: InstanceId,
    /// When it was pinned.
    pub pinned: Timestamp,
    /// What its agent said last of the node itself.
    pub report: Option<v1::NodeReport>,
    /// The workloads that its agent reported, by container id.
    pub workloads: BTreeMap<ContainerId, v1::Workload>,
}

/// Everything in the store at one revision; what the hub starts from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The revision.
    pub revision: Revision,
    /// The lineage id of the database; a restore makes a new one.
    pub epoch: String,
    /// The objects in key order.
    pub objects: Vec<Arc<StoredObject>>,
    /// Pinned nodes with what they reported.
    pub nodes: BTreeMap<NodeName, NodeRecord>,
}

/// A change of what a node's agent reported. It makes no revision: what runs is not what people wrote.
#[derive(Clone, Debug)]
pub struct ReportedChange {
    /// The stream's node; it must be pinned.
    pub node: NodeName,
    /// Workloads that came or changed. Their `id.container` is the key.
    pub upserts: Vec<v1::Workload>,
    /// Workloads that went.
    pub removed: Vec<ContainerId>,
    /// Whether everything that `upserts` does not name is gone too.
    pub full: bool,
    /// The node itself, when it reported.
    pub report: Option<v1::NodeReport>,
}

/// How a node's name came to be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// Now, on first use.
    New,
    /// Before, to the same installation.
    Known,
}

/// Why a node's name is not pinned to the caller.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It belongs to another installation.
    #[error("node {node} belongs to another installation since {since}; `firebreak delete node {node}` forgets it")]
    Taken {
        /// The node.
        node: NodeName,
        /// Since when.
        since: Timestamp,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What can go wrong in the store. Nothing was changed when one of these comes back.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The expected revision does not hold.
    #[error("the store is at revision {actual}, not {expected}")]
    RevisionMismatch {
        /// Asked for.
        expected: Revision,
        /// What is.
        actual: Revision,
    },
    /// Objects that were to be deleted are not there.
    #[error("not found: {}", join(.0))]
    NotFound(Vec<ObjectKey>),
    /// One object is named twice in one change.
    #[error("{0} is named twice in one change")]
    Duplicate(ObjectKey),
    /// The revision is no longer in the kept history.
    #[error("revision {asked} is too old: history is kept from revision {oldest}")]
    Expired {
        /// Asked for.
        asked: Revision,
        /// The oldest that can be asked for.
        oldest: Revision,
    },
    /// The revision does not exist yet.
    #[error("revision {asked} does not exist: the store is at revision {actual}")]
    Future {
        /// Asked for.
        asked: Revision,
        /// What is.
        actual: Revision,
    },
    /// No such node is pinned.
    #[error("node {0} is not known")]
    UnknownNode(NodeName),
    /// The database file cannot be used.
    #[error("{act} {path}: {reason}")]
    File {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// SQLite refused.
    #[error("{act}: {source}")]
    Database {
        /// What was tried.
        act: &'static str,
        /// Why not.
        source: Arc<rusqlite::Error>,
    },
    /// The database holds something that this program did not write.
    #[error("{act}: the database holds {what}")]
    Corrupt {
        /// What was tried.
        act: &'static str,
        /// What was found.
        what: String,
    },
    /// The store's thread has ended.
    #[error("the store is closed")]
    Closed,
}

/// The first ten by name: the text travels in an HTTP/2 header, which is small.
fn join(keys: &[ObjectKey]) -> String {
    let mut text = keys.iter().take(10).map(ObjectKey::to_string).collect::<Vec<_>>().join(", ");
    if keys.len() > 10 {
        text.push_str(&format!(" and {} more", keys.len() - 10));
    }
    text
}
