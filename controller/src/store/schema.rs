//! The database's schema: opening, versions, forward migrations.

use super::types::StoreError;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// `FBRD`: tells our databases from others (`PRAGMA application_id`).
pub(super) const APPLICATION_ID: i32 = 0x4642_5244;

/// The steps from an empty file to today's schema. Step n (from 1) leads to `user_version` n. A step that was released is never edited:
/// what is to be different goes into a further step.
///
/// `object_versions` is objects and history in one: a version lives from `from_revision` until (not including) `to_revision`, NULL for the
/// present one. So a list is consistent at any kept revision, page by page, without holding a read transaction open.
pub const MIGRATIONS: [&str; 1] = ["
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE revisions (
    revision INTEGER PRIMARY KEY,
    time_ms INTEGER NOT NULL,
    principal TEXT NOT NULL,
    verb TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE TABLE changes (
    revision INTEGER NOT NULL REFERENCES revisions (revision),
    position INTEGER NOT NULL,
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    result TEXT NOT NULL CHECK (result IN ('created', 'configured', 'deleted')),
    PRIMARY KEY (revision, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE object_versions (
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    from_revision INTEGER NOT NULL REFERENCES revisions (revision),
    to_revision INTEGER REFERENCES revisions (revision) CHECK (to_revision > from_revision),
    api_version TEXT NOT NULL,
    json TEXT NOT NULL,
    labels TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (kind, namespace, name, from_revision)
) STRICT;
CREATE UNIQUE INDEX object_present ON object_versions (kind, namespace, name) WHERE to_revision IS NULL;
CREATE INDEX object_ended ON object_versions (to_revision) WHERE to_revision IS NOT NULL;
CREATE TABLE nodes (
    name TEXT PRIMARY KEY,
    instance_id TEXT NOT NULL,
    pinned_ms INTEGER NOT NULL,
    report BLOB
) STRICT, WITHOUT ROWID;
CREATE TABLE reported_workloads (
    node TEXT NOT NULL REFERENCES nodes (name) ON DELETE CASCADE,
    container TEXT NOT NULL,
    workload BLOB NOT NULL,
    PRIMARY KEY (node, container)
) STRICT, WITHOUT ROWID;
"];

/// Whether a connection may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Creates the file if it is not there.
    ReadWrite,
    /// Never writes.
    ReadOnly,
}

/// Opens the file with the settings that the store's promises rest on. It does not migrate.
pub(super) fn connect(path: &Path, access: Access) -> Result<Connection, StoreError> {
    let flags = match access {
        Access::ReadWrite => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        Access::ReadOnly => OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    };
    let refused = |error: rusqlite::Error| StoreError::File {
        act: "cannot open database",
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    let connection = Connection::open_with_flags(path, flags).map_err(refused)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(refused)?;
    match access {
        Access::ReadWrite => {
            // Before the first write, and the journal mode is one: a file that is not ours is not touched.
            check_origin(&connection, path)?;
            // `synchronous=FULL` makes SQLite sync the WAL at each commit: an acknowledged change survives power loss
            // (https://www.sqlite.org/pragma.html#pragma_synchronous).
            let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(refused)?;
            if mode != "wal" {
                return Err(StoreError::File {
                    act: "cannot use database",
                    path: path.display().to_string(),
                    reason: format!("its journal mode is {mode} and cannot be changed to wal; is the file system local?"),
                });
            }
            connection
                .execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;")
                .map_err(refused)?;
        }
        Access::ReadOnly => {
            connection.execute_batch("PRAGMA query_only = ON; PRAGMA trusted_schema = OFF;").map_err(refused)?;
        }
    }
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// The schema version that this program writes.
pub fn current_version() -> i32 {
    i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX)
}

/// Brings the database to [`current_version`], all steps in one transaction.
///
/// A database of a newer version, or one that another program made, is refused and not touched.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let version = check_origin(connection, path)?;
    let Ok(done) = usize::try_from(version) else {
        return Err(foreign(path, format!("its schema version is {version}")));
    };
    if done == MIGRATIONS.len() {
        return Ok(());
    }
    let failed = |source| StoreError::Database { act: "cannot migrate the database", source: Arc::new(source) };
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive).map_err(failed)?;
    for step in &MIGRATIONS[done..] {
        transaction.execute_batch(step).map_err(failed)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    transaction.pragma_update(None, "user_version", current_version()).map_err(failed)?;
    transaction.commit().map_err(failed)
}

/// The version of a database that is ours or empty; everything else is refused.
pub(super) fn check_origin(connection: &Connection, path: &Path) -> Result<i32, StoreError> {
    let number = |pragma: &str| -> Result<i32, StoreError> {
        connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0)).map_err(|error| foreign(path, error.to_string()))
    };
    let version = number("user_version")?;
    let application = number("application_id")?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|error| foreign(path, error.to_string()))?;
    if tables == 0 && version == 0 {
        return Ok(0);
    }
    if application != APPLICATION_ID {
        return Err(foreign(path, "it was made by another program".to_owned()));
    }
    if version > current_version() {
        return Err(foreign(
            path,
            format!(
                "its schema version is {version} and this program knows up to {}: it was written by a newer firebreak-controller",
                current_version()
            ),
        ));
    }
    Ok(version)
}

fn foreign(path: &Path, reason: String) -> StoreError {
    StoreError::File { act: "cannot use database", path: path.display().to_string(), reason }
}
