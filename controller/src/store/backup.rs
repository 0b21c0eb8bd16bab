//! Copies of a running database, and putting one in the place of another.

use super::lock::{DatabaseLock, create_private, sibling};
use super::read::database;
use super::schema::{self, Access};
use super::types::{StoreError, Verb};
use super::write::{self, Head};
use super::{new_epoch, read};
use firebreak_policy::model::Revision;
use jiff::Timestamp;
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What a restore led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The revision that says that the database was restored.
    pub revision: Revision,
    /// The new lineage.
    pub epoch: String,
    /// Where the database that was there before is kept.
    pub replaced: Option<PathBuf>,
}

/// Copies the database, as of one moment, into a file that must not exist.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let act = "cannot copy the database";
    let source = schema::connect(from, Access::ReadOnly)?;
    create_private(to)?;
    let mut target = Connection::open(to).map_err(database(act))?;
    let result = all_pages(&source, &mut target);
    drop(target);
    if result.is_err() {
        remove_quietly(to);
    }
    result
}

/// One step for all pages: the copy is of one moment and is not begun again when somebody writes (https://www.sqlite.org/backup.html).
fn all_pages(source: &Connection, target: &mut Connection) -> Result<(), StoreError> {
    let act = "cannot copy the database";
    {
        let backup = Backup::new(source, target).map_err(database(act))?;
        let step = backup.step(-1).map_err(database(act))?;
        if step != StepResult::Done {
            return Err(StoreError::Corrupt { act, what: format!("pages that cannot be read now ({step:?})") });
        }
    }
    // A copy of a WAL database says that it is one; as a single file it is easier to carry about.
    target.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).map_err(database(act))
}

/// Puts the backup `from` in the place of the database at `path`, with a new epoch and an entry in the audit trail.
///
/// Refused when a controller has the database open, when `from` is damaged, foreign or newer than this program. The present database is kept
/// beside the new one. At every moment `path` is either the old database or the new one, whole.
pub fn restore(from: &Path, path: &Path, principal: String, now: Timestamp) -> Result<Restored, StoreError> {
    let _lock = DatabaseLock::take(path)?;
    if !from.is_file() {
        return Err(file("cannot restore from", from, "there is no such file"));
    }
    let stamp = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let staged = sibling(path, &format!(".restore-{stamp}"));
    let result = stage(from, &staged, principal, now).and_then(|(revision, epoch)| {
        let replaced = swap(&staged, path, &stamp)?;
        Ok(Restored { revision, epoch, replaced })
    });
    if result.is_err() {
        for suffix in ["", "-wal", "-shm"] {
            remove_quietly(&sibling(&staged, suffix));
        }
    }
    result
}

/// Copies the backup beside the database, verifies it and gives it its new epoch. Leaves one synced file.
fn stage(from: &Path, staged: &Path, principal: String, now: Timestamp) -> Result<(Revision, String), StoreError> {
    {
        let source = schema::connect(from, Access::ReadOnly)?;
        if schema::check_origin(&source, from)? == 0 {
            return Err(file("cannot restore from", from, "it is empty"));
        }
        verify(&source, from)?;
        create_private(staged)?;
        let mut target = Connection::open(staged).map_err(database("cannot copy the backup"))?;
        all_pages(&source, &mut target)?;
    }
    let mut connection = schema::connect(staged, Access::ReadWrite)?;
    schema::migrate(&mut connection, staged)?;
    let epoch = new_epoch();
    let act = "cannot write the restored database";
    connection.execute_batch("BEGIN IMMEDIATE").map_err(database(act))?;
    write::set_meta(&connection, "epoch", &epoch)?;
    let head = Head { principal, verb: Verb::Restore, reason: format!("from {}", from.display()), time: now };
    let revision = write::note(&connection, head, Vec::new())?.revision;
    connection.execute_batch("COMMIT").map_err(database(act))?;
    // Everything into the one file, which then is complete without a WAL.
    connection.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).map_err(database(act))?;
    drop(connection);
    sync(staged)?;
    Ok((revision, epoch))
}

fn verify(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let refused = |reason: String| StoreError::File { act: "cannot restore from", path: path.display().to_string(), reason };
    let found: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| refused(format!("it is damaged: {error}")))?;
    if found != "ok" {
        return Err(refused(format!("it is damaged: {found}")));
    }
    let orphans = connection
        .prepare("PRAGMA foreign_key_check")
        .and_then(|mut statement| statement.exists([]))
        .map_err(|error| refused(format!("it is damaged: {error}")))?;
    if orphans {
        return Err(refused("it is damaged: rows point at rows that are not there".to_owned()));
    }
    read::load(connection).map(drop).map_err(|error| refused(error.to_string()))
}

/// Keeps the old database under another name and moves the new one into its place.
fn swap(staged: &Path, path: &Path, stamp: &str) -> Result<Option<PathBuf>, StoreError> {
    let failed = |act: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| file(act, &path, &error.to_string())
    };
    let mut replaced = None;
    if path.exists() {
        let kept = sibling(path, &format!(".replaced-{stamp}"));
        // A WAL that stays behind would be taken for the new database's. If the old database cannot take it in, both are kept as they are.
        let folded = schema::connect(path, Access::ReadWrite).and_then(|old| {
            old.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).map_err(database("cannot close the old database"))
        });
        std::fs::hard_link(path, &kept).map_err(failed("cannot keep the old database as", &kept))?;
        let wal = sibling(path, "-wal");
        if folded.is_err() && wal.exists() {
            let kept_wal = sibling(&kept, "-wal");
            std::fs::rename(&wal, &kept_wal).map_err(failed("cannot keep the old log as", &kept_wal))?;
        }
        remove_quietly(&sibling(path, "-shm"));
        replaced = Some(kept);
    }
    std::fs::rename(staged, path).map_err(failed("cannot put the restored database at", path))?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => sync(folder)?,
        Some(_) | None => sync(Path::new("."))?,
    }
    Ok(replaced)
}

fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|opened| opened.sync_all()).map_err(|error| file("cannot sync", path, &error.to_string()))
}

/// Tidying up after an error that is already told: what cannot be removed stays, and is refused by name next time.
fn remove_quietly(path: &Path) {
    drop(std::fs::remove_file(path));
}

fn file(act: &'static str, path: &Path, reason: &str) -> StoreError {
    StoreError::File { act, path: path.display().to_string(), reason: reason.to_owned() }
}
