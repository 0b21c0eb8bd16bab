//! Writing: change sets, pins, reports. Every function here runs inside a savepoint that its caller keeps or takes back as a whole.

use super::Limits;
use super::read::{column, database, encode_labels, millisecond, newest_revision, oldest_kept, present, result_text};
use super::types::{
    Applied, Change, ChangeResult, ChangeSet, Committed, Effect, InstanceId, Missing, NODE_PIN, ObjectKey, PinError, Pinned, Put,
    ReportedChange, StoreError, StoredObject, Verb,
};
use firebreak_policy::model::{NodeName, Revision};
use jiff::Timestamp;
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashSet;
use std::sync::Arc;

/// Who did what, when and why: the head of a revision.
pub(super) struct Head {
    pub(super) principal: String,
    pub(super) verb: Verb,
    pub(super) reason: String,
    pub(super) time: Timestamp,
}

/// What a change set led to, and the revision that it made, if it made one.
pub(super) fn apply(connection: &Connection, set: ChangeSet, limits: Limits) -> Result<(Applied, Option<Arc<Committed>>), StoreError> {
    let ChangeSet { puts, deletes, missing, principal, verb, reason, expected_revision, effect, time } = set;
    let actual = newest_revision(connection)?;
    if let Some(expected) = expected_revision
        && expected != actual
    {
        return Err(StoreError::RevisionMismatch { expected, actual });
    }
    refuse_duplicates(&puts, &deletes)?;
    let next = Revision(actual.0 + 1);
    let time = to_millisecond(time)?;
    let mut results = Vec::with_capacity(puts.len() + deletes.len());
    let mut changes = Vec::new();
    for put in puts {
        let key = put.key.clone();
        let before = present(connection, &key)?;
        let same = before
            .as_ref()
            .is_some_and(|before| before.json == put.json && before.api_version == put.api_version && before.labels == put.labels);
        if same {
            results.push((key, ChangeResult::Unchanged));
            continue;
        }
        let result = if before.is_some() { ChangeResult::Configured } else { ChangeResult::Created };
        let Put { key: put_key, api_version, json, labels } = put;
        let created = before.map_or(time, |before| before.created);
        let object = Arc::new(StoredObject { key: put_key, api_version, json, labels, revision: next, created });
        results.push((key, result));
        changes.push(Change { result, object });
    }
    let mut absent = Vec::new();
    for key in deletes {
        match present(connection, &key)? {
            Some(before) => {
                results.push((key, ChangeResult::Deleted));
                changes.push(Change { result: ChangeResult::Deleted, object: Arc::new(before) });
            }
            None => {
                absent.push(key.clone());
                results.push((key, ChangeResult::NotFound));
            }
        }
    }
    if missing == Missing::Refuse && !absent.is_empty() {
        return Err(StoreError::NotFound(absent));
    }
    if changes.is_empty() || effect == Effect::DryRun {
        return Ok((Applied { revision: actual, results }, None));
    }
    let committed = write_revision(connection, next, Head { principal, verb, reason, time }, changes, Vec::new())?;
    prune(connection, next, limits)?;
    Ok((Applied { revision: next, results }, Some(committed)))
}

/// The database keeps milliseconds: what followers see live must be what they would read later.
fn to_millisecond(time: Timestamp) -> Result<Timestamp, StoreError> {
    millisecond(time.as_millisecond())
}

fn refuse_duplicates(puts: &[Put], deletes: &[ObjectKey]) -> Result<(), StoreError> {
    let mut seen = HashSet::with_capacity(puts.len() + deletes.len());
    for key in puts.iter().map(|put| &put.key).chain(deletes) {
        if !seen.insert(key) {
            return Err(StoreError::Duplicate(key.clone()));
        }
    }
    Ok(())
}

/// Writes the revision, its changes and the objects' versions.
fn write_revision(
    connection: &Connection,
    revision: Revision,
    head: Head,
    changes: Vec<Change>,
    forgotten_nodes: Vec<NodeName>,
) -> Result<Arc<Committed>, StoreError> {
    let Head { principal, verb, reason, time } = head;
    let act = "cannot write a revision";
    let number = column(revision);
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(database(act))
    };
    run(
        "INSERT INTO revisions (revision, time_ms, principal, verb, reason) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![number, time.as_millisecond(), principal, verb.as_str(), reason],
    )?;
    for (position, Change { result, object }) in changes.iter().enumerate() {
        let StoredObject { key, api_version, json, labels, revision: _, created } = &**object;
        let (kind, namespace, name) = (key.kind.as_str(), key.namespace_text(), key.name.as_str());
        let position = i64::try_from(position).unwrap_or(i64::MAX);
        run(
            "INSERT INTO changes (revision, position, kind, namespace, name, result) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![number, position, kind, namespace, name, result_text(*result)],
        )?;
        run(
            "UPDATE object_versions SET to_revision = ?4
             WHERE kind = ?1 AND namespace = ?2 AND name = ?3 AND to_revision IS NULL",
            params![kind, namespace, name, number],
        )?;
        match result {
            ChangeResult::Created | ChangeResult::Configured => {
                run(
                    "INSERT INTO object_versions (kind, namespace, name, from_revision, api_version, json, labels, created_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![kind, namespace, name, number, api_version, &**json, encode_labels(labels), created.as_millisecond()],
                )?;
            }
            ChangeResult::Unchanged | ChangeResult::Deleted | ChangeResult::NotFound => {}
        }
    }
    for (position, node) in forgotten_nodes.iter().enumerate() {
        let position = i64::try_from(changes.len() + position).unwrap_or(i64::MAX);
        run(
            "INSERT INTO changes (revision, position, kind, namespace, name, result) VALUES (?1, ?2, ?3, '', ?4, 'deleted')",
            params![number, position, NODE_PIN, node.as_str()],
        )?;
    }
    Ok(Arc::new(Committed { revision, time, principal, verb, reason, changes, forgotten_nodes }))
}

/// Forgets versions that ended before the kept history. The audit trail itself is never shortened.
///
/// Not at each revision: looking for the oldest kept version walks the index of those that ended.
fn prune(connection: &Connection, newest: Revision, limits: Limits) -> Result<(), StoreError> {
    if !newest.0.is_multiple_of(limits.history_revisions.clamp(1, 64)) {
        return Ok(());
    }
    let act = "cannot shorten the history";
    let by_revisions = newest.0.saturating_sub(limits.history_revisions);
    // The version so many from the newest: everything that ended up to it goes.
    let by_versions: Option<i64> = connection
        .prepare_cached("SELECT to_revision FROM object_versions WHERE to_revision IS NOT NULL ORDER BY to_revision DESC LIMIT 1 OFFSET ?1")
        .and_then(|mut statement| statement.query_row([limits.history_versions], |row| row.get(0)).optional())
        .map_err(database(act))?;
    let floor = by_revisions.max(by_versions.and_then(|number| u64::try_from(number).ok()).unwrap_or(0));
    if floor <= oldest_kept(connection)?.0 {
        return Ok(());
    }
    connection
        .prepare_cached("DELETE FROM object_versions WHERE to_revision <= ?1")
        .and_then(|mut statement| statement.execute([column(Revision(floor))]))
        .map_err(database(act))?;
    set_meta(connection, "oldest_kept", &floor.to_string())
}

pub(super) fn set_meta(connection: &Connection, key: &str, value: &str) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
        .and_then(|mut statement| statement.execute([key, value]))
        .map(drop)
        .map_err(database("cannot write the store's settings"))
}

/// Writes a revision that changes no object: something that the audit trail must tell.
pub(super) fn note(connection: &Connection, head: Head, forgotten_nodes: Vec<NodeName>) -> Result<Arc<Committed>, StoreError> {
    let revision = Revision(newest_revision(connection)?.0 + 1);
    let head = Head { time: to_millisecond(head.time)?, ..head };
    write_revision(connection, revision, head, Vec::new(), forgotten_nodes)
}

/// Pins a node's name to an installation, on first use.
pub(super) fn pin_node(connection: &Connection, node: &NodeName, instance: &InstanceId, now: Timestamp) -> Result<Pinned, PinError> {
    let act = "cannot pin a node";
    let held: Option<(String, i64)> = connection
        .prepare_cached("SELECT instance_id, pinned_ms FROM nodes WHERE name = ?1")
        .and_then(|mut statement| statement.query_row([node.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .map_err(database(act))?;
    match held {
        Some((holder, _)) if holder == instance.0 => Ok(Pinned::Known),
        Some((_, since)) => Err(PinError::Taken { node: node.clone(), since: millisecond(since)? }),
        None => {
            connection
                .prepare_cached("INSERT INTO nodes (name, instance_id, pinned_ms) VALUES (?1, ?2, ?3)")
                .and_then(|mut statement| statement.execute(params![node.as_str(), instance.0, now.as_millisecond()]))
                .map_err(database(act))?;
            Ok(Pinned::New)
        }
    }
}

/// Takes over what a node reported. Nothing is written for what is the same.
pub(super) fn put_reported(connection: &Connection, change: &ReportedChange) -> Result<(), StoreError> {
    let ReportedChange { node, upserts, removed, full, report } = change;
    let act = "cannot write what a node reported";
    let known: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM nodes WHERE name = ?1)")
        .and_then(|mut statement| statement.query_row([node.as_str()], |row| row.get(0)))
        .map_err(database(act))?;
    if !known {
        return Err(StoreError::UnknownNode(node.clone()));
    }
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(database(act))
    };
    if let Some(report) = report {
        run("UPDATE nodes SET report = ?2 WHERE name = ?1 AND report IS NOT ?2", params![node.as_str(), report.encode_to_vec()])?;
    }
    if *full {
        let kept: HashSet<&str> = upserts.iter().filter_map(|workload| workload.id.as_ref()).map(|id| id.container.as_str()).collect();
        let held: Vec<String> = connection
            .prepare_cached("SELECT container FROM reported_workloads WHERE node = ?1")
            .and_then(|mut statement| statement.query_map([node.as_str()], |row| row.get(0))?.collect())
            .map_err(database(act))?;
        for container in held.iter().filter(|container| !kept.contains(container.as_str())) {
            run("DELETE FROM reported_workloads WHERE node = ?1 AND container = ?2", params![node.as_str(), container])?;
        }
    }
    for container in removed {
        run("DELETE FROM reported_workloads WHERE node = ?1 AND container = ?2", params![node.as_str(), container.as_str()])?;
    }
    for workload in upserts {
        let Some(id) = &workload.id else {
            return Err(StoreError::Corrupt { act, what: format!("a workload without id, reported by node {node}") });
        };
        run(
            "INSERT INTO reported_workloads (node, container, workload) VALUES (?1, ?2, ?3)
             ON CONFLICT (node, container) DO UPDATE SET workload = excluded.workload WHERE workload IS NOT excluded.workload",
            params![node.as_str(), id.container, workload.encode_to_vec()],
        )?;
    }
    Ok(())
}

/// Forgets a node with everything it reported, as a revision.
pub(super) fn delete_node(connection: &Connection, node: &NodeName, head: Head) -> Result<Arc<Committed>, StoreError> {
    let gone = connection
        .prepare_cached("DELETE FROM nodes WHERE name = ?1")
        .and_then(|mut statement| statement.execute([node.as_str()]))
        .map_err(database("cannot delete a node"))?;
    if gone == 0 {
        return Err(StoreError::UnknownNode(node.clone()));
    }
    note(connection, head, vec![node.clone()])
}

/// Writes into the audit trail that a node was told to observe; changes nothing else.
pub(super) fn observe(connection: &Connection, node: &NodeName, head: Head) -> Result<Arc<Committed>, StoreError> {
    let known: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM nodes WHERE name = ?1)")
        .and_then(|mut statement| statement.query_row([node.as_str()], |row| row.get(0)))
        .map_err(database("cannot look for a node"))?;
    if !known {
        return Err(StoreError::UnknownNode(node.clone()));
    }
    note(connection, head, Vec::new())
}
