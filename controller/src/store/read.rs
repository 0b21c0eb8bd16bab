//! Reading: pages of objects, history, the audit trail, everything at once.

use super::types::{
    Change, ChangeResult, Committed, InstanceId, ListQuery, Loaded, NODE_PIN, NodeRecord, ObjectKey, Page, RevisionEntry, StoreError,
    StoredObject, Verb,
};
use firebreak_policy::model::{ContainerId, Labels, NodeName, Revision};
use firebreak_proto::v1;
use jiff::Timestamp;
use prost::Message;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A page ends early when its objects' JSON is over this many bytes, so that it fits into a message of 4 MiB.
pub const PAGE_BYTES: usize = 1 << 20;
/// A page of the audit trail ends early before it has over this many bytes of text, unless one revision alone does.
const TRAIL_BYTES: usize = 3 << 20;
/// A look into the history ends after the revision that exceeds so many object changes.
const HISTORY_CHANGES: usize = 1_000;

const COLUMNS: &str = "kind, namespace, name, api_version, json, labels, from_revision, created_ms";

pub(super) fn database(act: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Database { act, source: Arc::new(source) }
}

pub(super) fn millisecond(value: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(value)
        .map_err(|_| StoreError::Corrupt { act: "cannot read a time", what: format!("{value} as milliseconds") })
}

pub(super) fn revision_number(value: i64) -> Result<Revision, StoreError> {
    u64::try_from(value).map(Revision).map_err(|_| StoreError::Corrupt { act: "cannot read a revision", what: format!("revision {value}") })
}

/// SQLite integers are signed; a revision beyond them cannot exist.
pub(super) fn column(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

pub(super) fn result_text(result: ChangeResult) -> &'static str {
    match result {
        ChangeResult::Created => "created",
        ChangeResult::Configured => "configured",
        ChangeResult::Unchanged => "unchanged",
        ChangeResult::Deleted => "deleted",
        ChangeResult::NotFound => "not-found",
    }
}

fn result_of(text: &str) -> Result<ChangeResult, StoreError> {
    match text {
        "created" => Ok(ChangeResult::Created),
        "configured" => Ok(ChangeResult::Configured),
        "deleted" => Ok(ChangeResult::Deleted),
        other => Err(StoreError::Corrupt { act: "cannot read a change", what: format!("a change called {other:?}") }),
    }
}

pub(super) fn encode_labels(labels: &Labels) -> String {
    let pairs: serde_json::Map<String, serde_json::Value> =
        labels.0.iter().map(|(key, value)| (key.clone(), serde_json::Value::String(value.clone()))).collect();
    serde_json::Value::Object(pairs).to_string()
}

struct RawObject {
    key: ObjectKey,
    api_version: String,
    json: String,
    labels: String,
    revision: i64,
    created: i64,
}

fn raw_object(row: &Row<'_>) -> rusqlite::Result<RawObject> {
    let (kind, namespace): (String, String) = (row.get(0)?, row.get(1)?);
    Ok(RawObject {
        key: ObjectKey::new(kind, &namespace, row.get::<_, String>(2)?),
        api_version: row.get(3)?,
        json: row.get(4)?,
        labels: row.get(5)?,
        revision: row.get(6)?,
        created: row.get(7)?,
    })
}

fn object(raw: RawObject) -> Result<StoredObject, StoreError> {
    let labels: BTreeMap<String, String> = serde_json::from_str(&raw.labels)
        .map_err(|error| StoreError::Corrupt { act: "cannot read an object", what: format!("labels of {}: {error}", raw.key) })?;
    Ok(StoredObject {
        revision: revision_number(raw.revision)?,
        created: millisecond(raw.created)?,
        key: raw.key,
        api_version: raw.api_version,
        json: Arc::from(raw.json),
        labels: Labels(labels),
    })
}

/// The newest revision; 0 for the empty store.
pub(super) fn newest_revision(connection: &Connection) -> Result<Revision, StoreError> {
    let newest: i64 = connection
        .prepare_cached("SELECT coalesce(max(revision), 0) FROM revisions")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(database("cannot read the revision"))?;
    revision_number(newest)
}

pub(super) fn meta(connection: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")
        .and_then(|mut statement| statement.query_row([key], |row| row.get(0)).optional())
        .map_err(database("cannot read the store's settings"))
}

/// The oldest revision that lists and watches can still be asked about.
pub(super) fn oldest_kept(connection: &Connection) -> Result<Revision, StoreError> {
    match meta(connection, "oldest_kept")? {
        None => Ok(Revision(0)),
        Some(text) => text
            .parse()
            .map(Revision)
            .map_err(|_| StoreError::Corrupt { act: "cannot read the history", what: format!("oldest_kept = {text:?}") }),
    }
}

fn check_kept(connection: &Connection, asked: Revision, actual: Revision) -> Result<(), StoreError> {
    let oldest = oldest_kept(connection)?;
    if asked < oldest {
        return Err(StoreError::Expired { asked, oldest });
    }
    if asked > actual {
        return Err(StoreError::Future { asked, actual });
    }
    Ok(())
}

/// The present version of one object.
pub(super) fn present(connection: &Connection, key: &ObjectKey) -> Result<Option<StoredObject>, StoreError> {
    let raw = connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM object_versions WHERE kind = ?1 AND namespace = ?2 AND name = ?3 AND to_revision IS NULL"
        ))
        .and_then(|mut statement| statement.query_row(params![key.kind.as_str(), key.namespace_text(), key.name], raw_object).optional())
        .map_err(database("cannot read an object"))?;
    raw.map(object).transpose()
}

/// A page of objects as of one revision. The caller holds a read transaction.
pub(super) fn list(connection: &Connection, query: &ListQuery) -> Result<Page<Arc<StoredObject>, ObjectKey>, StoreError> {
    let newest = newest_revision(connection)?;
    let at = query.at.unwrap_or(newest);
    check_kept(connection, at, newest)?;
    let act = "cannot list objects";
    let (after_kind, after_namespace, after_name) = match &query.after {
        Some(key) => (key.kind.as_str(), key.namespace_text(), key.name.as_str()),
        None => ("", "", ""),
    };
    let mut statement = connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM object_versions
             WHERE (kind, namespace, name) > (?1, ?2, ?3)
               AND from_revision <= ?4 AND (to_revision IS NULL OR to_revision > ?4)
               AND (?5 IS NULL OR kind = ?5) AND (?6 IS NULL OR namespace = ?6)
             ORDER BY kind, namespace, name"
        ))
        .map_err(database(act))?;
    let kind = query.kind.as_ref().map(|kind| kind.as_str());
    let namespace = query.namespace.as_ref().map(|namespace| namespace.as_str());
    // A given kind bounds the walk of the primary key from below too.
    let after_kind = match (kind, &query.after) {
        (Some(kind), None) => kind,
        (Some(_) | None, _) => after_kind,
    };
    let mut rows = statement.query(params![after_kind, after_namespace, after_name, column(at), kind, namespace]).map_err(database(act))?;
    let mut page = Page { items: Vec::new(), next: None, revision: at };
    let mut bytes = 0;
    while let Some(row) = rows.next().map_err(database(act))? {
        if page.items.len() >= usize::try_from(query.limit).unwrap_or(usize::MAX) || bytes >= PAGE_BYTES {
            page.next = page.items.last().map(|object: &Arc<StoredObject>| object.key.clone());
            break;
        }
        let object = object(raw_object(row).map_err(database(act))?)?;
        bytes += object.json.len();
        page.items.push(Arc::new(object));
    }
    Ok(page)
}

/// Revisions after one, oldest first, with their objects; not all of them if they are many. The caller holds a read transaction.
pub(super) fn history(connection: &Connection, after: Revision) -> Result<Vec<Arc<Committed>>, StoreError> {
    check_kept(connection, after, newest_revision(connection)?)?;
    let act = "cannot read the history";
    let mut statement = connection
        .prepare_cached("SELECT revision, time_ms, principal, verb, reason FROM revisions WHERE revision > ?1 ORDER BY revision LIMIT 100")
        .map_err(database(act))?;
    let entries = statement
        .query_map([column(after)], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?, row.get::<_, String>(3)?, row.get(4)?))
        })
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .map_err(database(act))?;
    let mut history = Vec::with_capacity(entries.len());
    let mut total = 0;
    for (number, time, principal, verb, reason) in entries {
        let Some(verb) = Verb::ALL.into_iter().find(|known| known.as_str() == verb) else {
            return Err(StoreError::Corrupt { act, what: format!("a verb called {verb:?}") });
        };
        let changes = changed_objects(connection, number)?;
        total += changes.len();
        history.push(Arc::new(Committed {
            revision: revision_number(number)?,
            time: millisecond(time)?,
            principal,
            verb,
            reason,
            changes,
            forgotten_nodes: forgotten_nodes(connection, number)?,
        }));
        if total >= HISTORY_CHANGES {
            break;
        }
    }
    Ok(history)
}

fn changed_objects(connection: &Connection, number: i64) -> Result<Vec<Change>, StoreError> {
    let act = "cannot read the history";
    let mut statement = connection
        .prepare_cached(
            "SELECT v.kind, v.namespace, v.name, v.api_version, v.json, v.labels, v.from_revision, v.created_ms, c.result
             FROM changes c JOIN object_versions v ON v.kind = c.kind AND v.namespace = c.namespace AND v.name = c.name
               AND (CASE c.result WHEN 'deleted' THEN v.to_revision ELSE v.from_revision END) = c.revision
             WHERE c.revision = ?1 ORDER BY c.position",
        )
        .map_err(database(act))?;
    let mut rows = statement.query([number]).map_err(database(act))?;
    let mut changes = Vec::new();
    while let Some(row) = rows.next().map_err(database(act))? {
        let result: String = row.get(8).map_err(database(act))?;
        changes.push(Change { result: result_of(&result)?, object: Arc::new(object(raw_object(row).map_err(database(act))?)?) });
    }
    Ok(changes)
}

fn forgotten_nodes(connection: &Connection, number: i64) -> Result<Vec<NodeName>, StoreError> {
    connection
        .prepare_cached("SELECT name FROM changes WHERE revision = ?1 AND kind = ?2 AND result = 'deleted' ORDER BY position")
        .and_then(|mut statement| {
            statement.query_map(params![number, NODE_PIN], |row| row.get::<_, String>(0).map(NodeName::from))?.collect()
        })
        .map_err(database("cannot read the history"))
}

/// A page of the audit trail, newest first, beginning before `before`. The caller holds a read transaction.
pub(super) fn revisions(
    connection: &Connection,
    before: Option<Revision>,
    limit: u32,
) -> Result<Page<RevisionEntry, Revision>, StoreError> {
    let act = "cannot read the audit trail";
    let mut statement = connection
        .prepare_cached("SELECT revision, time_ms, principal, verb, reason FROM revisions WHERE revision < ?1 ORDER BY revision DESC")
        .map_err(database(act))?;
    let mut changes_of = connection
        .prepare_cached("SELECT kind, namespace, name, result FROM changes WHERE revision = ?1 ORDER BY position")
        .map_err(database(act))?;
    let mut rows = statement.query([before.map_or(i64::MAX, column)]).map_err(database(act))?;
    let mut page = Page { items: Vec::new(), next: None, revision: newest_revision(connection)? };
    let mut bytes = 0;
    while let Some(row) = rows.next().map_err(database(act))? {
        let last = page.items.last().map(|entry: &RevisionEntry| entry.revision);
        if page.items.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
            page.next = last;
            break;
        }
        let number: i64 = row.get(0).map_err(database(act))?;
        let mut changes = Vec::new();
        let mut found = changes_of.query([number]).map_err(database(act))?;
        while let Some(change) = found.next().map_err(database(act))? {
            let text = |index: usize| change.get::<_, String>(index).map_err(database(act));
            changes.push((ObjectKey::new(text(0)?, &text(1)?, text(2)?), result_of(&text(3)?)?));
        }
        let entry = RevisionEntry {
            revision: revision_number(number)?,
            time: millisecond(row.get(1).map_err(database(act))?)?,
            principal: row.get(2).map_err(database(act))?,
            verb: row.get(3).map_err(database(act))?,
            reason: row.get(4).map_err(database(act))?,
            changes,
        };
        bytes += entry_bytes(&entry);
        if bytes > TRAIL_BYTES && last.is_some() {
            page.next = last;
            break;
        }
        page.items.push(entry);
    }
    Ok(page)
}

/// About what the entry takes on the wire.
fn entry_bytes(entry: &RevisionEntry) -> usize {
    let changes: usize =
        entry.changes.iter().map(|(key, _)| key.kind.as_str().len() + key.namespace_text().len() + key.name.len() + 16).sum();
    64 + entry.principal.len() + entry.reason.len() + changes
}

/// Everything at the newest revision. The caller holds a read transaction.
pub(super) fn load(connection: &Connection) -> Result<Loaded, StoreError> {
    let act = "cannot load the store";
    let epoch = meta(connection, "epoch")?.ok_or_else(|| StoreError::Corrupt { act, what: "no epoch".to_owned() })?;
    let mut statement = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM object_versions WHERE to_revision IS NULL ORDER BY kind, namespace, name"))
        .map_err(database(act))?;
    let mut rows = statement.query([]).map_err(database(act))?;
    let mut objects = Vec::new();
    while let Some(row) = rows.next().map_err(database(act))? {
        objects.push(Arc::new(object(raw_object(row).map_err(database(act))?)?));
    }
    Ok(Loaded { revision: newest_revision(connection)?, epoch, objects, nodes: nodes(connection)? })
}

fn nodes(connection: &Connection) -> Result<BTreeMap<NodeName, NodeRecord>, StoreError> {
    let act = "cannot load the nodes";
    let unreadable = |what: String| StoreError::Corrupt { act, what };
    let mut nodes = BTreeMap::new();
    let mut statement = connection.prepare_cached("SELECT name, instance_id, pinned_ms, report FROM nodes").map_err(database(act))?;
    let mut rows = statement.query([]).map_err(database(act))?;
    while let Some(row) = rows.next().map_err(database(act))? {
        let name = NodeName::from(row.get::<_, String>(0).map_err(database(act))?);
        let report = row
            .get::<_, Option<Vec<u8>>>(3)
            .map_err(database(act))?
            .map(|bytes| v1::NodeReport::decode(bytes.as_slice()))
            .transpose()
            .map_err(|error| unreadable(format!("the report of node {name}: {error}")))?;
        let record = NodeRecord {
            name: name.clone(),
            instance: InstanceId(row.get(1).map_err(database(act))?),
            pinned: millisecond(row.get(2).map_err(database(act))?)?,
            report,
            workloads: BTreeMap::new(),
        };
        nodes.insert(name, record);
    }
    let mut statement = connection.prepare_cached("SELECT node, container, workload FROM reported_workloads").map_err(database(act))?;
    let mut rows = statement.query([]).map_err(database(act))?;
    while let Some(row) = rows.next().map_err(database(act))? {
        let node = NodeName::from(row.get::<_, String>(0).map_err(database(act))?);
        let container = ContainerId::from(row.get::<_, String>(1).map_err(database(act))?);
        let bytes: Vec<u8> = row.get(2).map_err(database(act))?;
        let workload =
            v1::Workload::decode(bytes.as_slice()).map_err(|error| unreadable(format!("workload {container} of node {node}: {error}")))?;
        match nodes.get_mut(&node) {
            Some(record) => {
                record.workloads.insert(container, workload);
            }
            None => return Err(unreadable(format!("workload {container} of node {node}, which is not pinned"))),
        }
    }
    Ok(nodes)
}
