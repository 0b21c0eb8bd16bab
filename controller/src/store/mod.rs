//! The controller's state in one SQLite file: objects with their history, the audit trail, node pins, what nodes reported.
//!
//! Two threads own the two connections: one writes, one reads. Writes that wait together are committed together (one sync of the disk for
//! all of them), each in a savepoint of its own, so that one that fails takes nothing else with it. A caller hears of success only after the
//! commit: what was acknowledged survives `kill -9` and power loss.

mod backup;
mod feed;
mod lock;
mod read;
mod schema;
pub mod types;
mod worker;
mod write;

pub use backup::{Restored, restore};
pub use feed::ChangeFeed;
pub use read::PAGE_BYTES;
pub use schema::{MIGRATIONS, current_version};
pub use types::*;

use firebreak_policy::model::{NodeName, Revision};
use jiff::Timestamp;
use lock::{DatabaseLock, create_private};
use schema::Access;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use worker::{Reader, Writer};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lists and watches can go back so many revisions.
    pub history_revisions: u64,
    /// At most so many ended versions of objects are kept, whatever their revisions.
    pub history_versions: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { history_revisions: 10_000, history_versions: 100_000 }
    }
}

/// A handle on the store. Clones share it; the threads end when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    writer: Writer,
    reader: Reader,
    ended: CancellationToken,
    path: PathBuf,
    // Held last: another process may take the file when both threads have ended.
    _lock: DatabaseLock,
}

impl Store {
    /// Opens the file, or makes it with a new epoch, and brings its schema up to date.
    ///
    /// Fails when another process has it open, when another program made it, or when its schema is newer than this program.
    /// Blocks for as long as a migration takes.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Limits::default())
    }

    /// As [`Store::open`], keeping a history of another length.
    pub fn open_with(path: &Path, limits: Limits) -> Result<Self, StoreError> {
        let lock = DatabaseLock::take(path)?;
        if !path.exists() {
            create_private(path)?;
        }
        let mut connection = schema::connect(path, Access::ReadWrite)?;
        schema::migrate(&mut connection, path)?;
        if read::meta(&connection, "epoch")?.is_none() {
            write::set_meta(&connection, "epoch", &new_epoch())?;
        }
        let newest = read::newest_revision(&connection)?;
        let ended = CancellationToken::new();
        let writer = Writer::start(connection, newest, ended.clone())?;
        let reader = Reader::start(schema::connect(path, Access::ReadOnly)?, ended.clone())?;
        writer.set_limits(limits);
        Ok(Self { shared: Arc::new(Shared { writer, reader, ended, path: path.to_owned(), _lock: lock }) })
    }

    /// Everything at the newest revision.
    pub async fn load(&self) -> Result<Loaded, StoreError> {
        self.shared.reader.run(read::load).await
    }

    /// The newest revision; no I/O. Every follower was told of it before it is seen here.
    pub fn revision(&self) -> Revision {
        self.shared.writer.newest()
    }

    /// Is cancelled when one of the store's threads has ended: nothing can be done with the store any more. Holding it does not keep the
    /// store open.
    pub fn ended(&self) -> CancellationToken {
        self.shared.ended.clone()
    }

    /// Makes a change, all of it as one revision, or none of it. Objects that stay the same make no revision.
    ///
    /// Once the call was made the change may take effect, even if the future is dropped.
    pub async fn apply(&self, set: ChangeSet) -> Result<Applied, StoreError> {
        self.shared.writer.run(move |connection, limits| write::apply(connection, set, limits)).await
    }

    /// One object.
    pub async fn get(&self, key: ObjectKey) -> Result<Option<StoredObject>, StoreError> {
        self.shared.reader.run(move |connection| read::present(connection, &key)).await
    }

    /// A page of objects in key order, consistent at one revision: ask for the next page with `at` the page's revision.
    /// A page may be shorter than asked for and not be the last: `next` tells.
    pub async fn list(&self, query: ListQuery) -> Result<Page<Arc<StoredObject>, ObjectKey>, StoreError> {
        self.shared.reader.run(move |connection| read::list(connection, &query)).await
    }

    /// Every revision after `after`, in order and without gaps: first those that are, then those to come.
    /// Nothing is read before the feed is asked.
    pub fn watch(&self, after: Revision) -> ChangeFeed {
        ChangeFeed::new(self.clone(), after)
    }

    /// A page of the audit trail, newest first, from before `before`.
    pub async fn revisions(&self, before: Option<Revision>, limit: u32) -> Result<Page<RevisionEntry, Revision>, StoreError> {
        self.shared.reader.run(move |connection| read::revisions(connection, before, limit)).await
    }

    /// Takes over what a node reported.
    pub async fn put_reported(&self, change: ReportedChange) -> Result<(), StoreError> {
        self.shared.writer.run(move |connection, _| write::put_reported(connection, &change).map(|()| ((), None))).await
    }

    /// Pins a node's name to an installation on first use; says whether it is the caller's.
    pub async fn pin_node(&self, node: NodeName, instance: InstanceId, now: Timestamp) -> Result<Pinned, PinError> {
        self.shared
            .writer
            .run(move |connection, _| match write::pin_node(connection, &node, &instance, now) {
                Ok(pinned) => Ok((Ok(pinned), None)),
                Err(PinError::Store(error)) => Err(error),
                Err(taken @ PinError::Taken { .. }) => Ok((Err(taken), None)),
            })
            .await?
    }

    /// Forgets a node: its pin and everything it reported. Gives the revision that says so.
    pub async fn delete_node(&self, node: NodeName, principal: String, reason: String, time: Timestamp) -> Result<Revision, StoreError> {
        let head = write::Head { principal, verb: Verb::DeleteNode, reason, time };
        self.shared
            .writer
            .run(move |connection, _| {
                let committed = write::delete_node(connection, &node, head)?;
                Ok((committed.revision, Some(committed)))
            })
            .await
    }

    /// Notes in the audit trail that a node was told to observe, or to stop. Gives the revision that says so.
    ///
    /// # Errors
    /// When no such node is known, or the trail cannot be written: then nobody is to be told anything.
    pub async fn note_observe(&self, node: NodeName, principal: String, reason: String, time: Timestamp) -> Result<Revision, StoreError> {
        let head = write::Head { principal, verb: Verb::Observe, reason, time };
        self.shared
            .writer
            .run(move |connection, _| {
                let committed = write::observe(connection, &node, head)?;
                Ok((committed.revision, Some(committed)))
            })
            .await
    }

    /// Writes a consistent copy of the database, of one moment, to a file that must not exist. Reads and writes go on meanwhile.
    pub async fn backup(&self, to: PathBuf) -> Result<(), StoreError> {
        let from = self.shared.path.clone();
        tokio::task::spawn_blocking(move || backup::copy(&from, &to)).await.map_err(|_| StoreError::Closed)?
    }

    /// The folder of the database: where temporary copies belong, on the same file system.
    pub fn folder(&self) -> PathBuf {
        match self.shared.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            Some(_) | None => PathBuf::from("."),
        }
    }

    fn subscribe(&self) -> broadcast::Receiver<Arc<Committed>> {
        self.shared.writer.subscribe()
    }

    async fn history(&self, after: Revision) -> Result<Vec<Arc<Committed>>, StoreError> {
        self.shared.reader.run(move |connection| read::history(connection, after)).await
    }
}

/// A lineage id that no other database has.
fn new_epoch() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
