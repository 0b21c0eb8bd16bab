//! Apply, Delete, DeleteNode: what changes the store.

use super::OperatorApi;
use super::object::{self, MAX_OBJECTS};
use super::refusal::{Violations, invalid, of_store};
use crate::auth::{Act, Principal, Target, authorize};
use crate::store::{Applied, ChangeSet, Effect, Missing, ObjectKey, Put, StoreError, Verb};
use firebreak_policy::model::{NodeName, Revision};
use firebreak_proto::v1;
use std::collections::HashSet;
use std::time::Duration;
use tonic::Status;

/// How long an answer waits for the hub to take the change in, so that it can tell the objects' conditions.
const HUB_PATIENCE: Duration = Duration::from_secs(2);

impl OperatorApi {
    pub(super) async fn apply_objects(&self, principal: Principal, request: v1::ApplyRequest) -> Result<v1::ApplyResponse, Status> {
        let v1::ApplyRequest { objects, dry_run, reason, expected_revision } = request;
        let puts = read_objects(objects)?;
        let keys: Vec<ObjectKey> = puts.iter().map(|put| put.key.clone()).collect();
        authorize(&principal, Act::Apply, Target::Objects(&keys))?;
        let effect = if dry_run { Effect::DryRun } else { Effect::Commit };
        let set = ChangeSet {
            puts,
            deletes: Vec::new(),
            missing: Missing::Refuse,
            principal: principal.to_string(),
            verb: Verb::Apply,
            reason: object::reason(reason)?,
            expected_revision: (expected_revision != 0).then_some(Revision(expected_revision)),
            effect,
            time: self.now(),
        };
        let (revision, changes) = self.commit(set).await?;
        Ok(v1::ApplyResponse { revision, changes })
    }

    pub(super) async fn delete_objects(&self, principal: Principal, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Status> {
        let v1::DeleteRequest { objects, ignore_not_found, reason, dry_run } = request;
        let deletes = read_refs(objects)?;
        authorize(&principal, Act::Delete, Target::Objects(&deletes))?;
        let set = ChangeSet {
            puts: Vec::new(),
            deletes,
            missing: if ignore_not_found { Missing::Ignore } else { Missing::Refuse },
            principal: principal.to_string(),
            verb: Verb::Delete,
            reason: object::reason(reason)?,
            expected_revision: None,
            effect: if dry_run { Effect::DryRun } else { Effect::Commit },
            time: self.now(),
        };
        let (revision, changes) = self.commit(set).await?;
        Ok(v1::DeleteResponse { revision, changes })
    }

    async fn commit(&self, set: ChangeSet) -> Result<(u64, Vec<v1::ObjectChange>), Status> {
        let (principal, verb, effect) = (set.principal.clone(), set.verb, set.effect);
        let Applied { revision, results } = self.store.apply(set).await.map_err(|error| of_store(&error))?;
        if effect == Effect::Commit {
            tracing::info!(principal = %principal, verb = verb.as_str(), revision = revision.0, objects = results.len(), "changed objects");
        }
        let keys: Vec<ObjectKey> = results.iter().map(|(key, _)| key.clone()).collect();
        let conditions = match effect {
            Effect::Commit => self.conditions(keys, revision).await,
            // What is not there has no conditions yet.
            Effect::DryRun => vec![Vec::new(); keys.len()],
        };
        let changes =
            results.iter().zip(conditions).map(|((key, result), conditions)| object::change_to_wire(key, *result, conditions)).collect();
        Ok((revision.0, changes))
    }

    /// The conditions of objects as of a revision. The change itself stands, so none are told if the hub takes too long.
    pub(super) async fn conditions(&self, keys: Vec<ObjectKey>, revision: Revision) -> Vec<Vec<v1::Condition>> {
        let count = keys.len();
        let mut conditions = match tokio::time::timeout(HUB_PATIENCE, self.live.conditions(keys, revision)).await {
            Ok(Ok(conditions)) => conditions,
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        conditions.resize(count, Vec::new());
        conditions
    }

    pub(super) async fn forget_node(&self, principal: Principal, request: v1::DeleteNodeRequest) -> Result<v1::DeleteNodeResponse, Status> {
        let v1::DeleteNodeRequest { name, reason } = request;
        if name.is_empty() {
            return Err(invalid("name", "is empty; it names the node"));
        }
        let node = NodeName::from(name);
        authorize(&principal, Act::DeleteNode, Target::Node(&node))?;
        let reason = object::reason(reason)?;
        let revision =
            self.store.delete_node(node.clone(), principal.to_string(), reason, self.now()).await.map_err(|error| of_store(&error))?;
        tracing::info!(principal = %principal, verb = Verb::DeleteNode.as_str(), revision = revision.0, node = %node, "forgot a node");
        Ok(v1::DeleteNodeResponse { revision: revision.0 })
    }
}

#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
fn check_count(count: usize) -> Result<(), Status> {
    if count == 0 {
        return Err(invalid("objects", "is empty; name at least one object"));
    }
    if count > MAX_OBJECTS {
        return Err(invalid("objects", format!("has {count} objects; one request takes at most {MAX_OBJECTS}")));
    }
    Ok(())
}

/// All objects of a request, each once, or everything that is wrong with them.
#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
fn read_objects(objects: Vec<v1::Object>) -> Result<Vec<Put>, Status> {
    check_count(objects.len())?;
    let mut violations = Violations::default();
    let mut puts = Vec::with_capacity(objects.len());
    let mut seen = HashSet::with_capacity(objects.len());
    for (position, wire) in objects.into_iter().enumerate() {
        let Some(put) = object::read(position, wire, &mut violations) else { continue };
        if seen.insert(put.key.clone()) {
            puts.push(put);
        } else {
            violations.add(format!("objects[{position}]"), StoreError::Duplicate(put.key).to_string());
        }
    }
    violations.check()?;
    Ok(puts)
}

#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
fn read_refs(objects: Vec<v1::ObjectRef>) -> Result<Vec<ObjectKey>, Status> {
    check_count(objects.len())?;
    let mut violations = Violations::default();
    let mut keys = Vec::with_capacity(objects.len());
    let mut seen = HashSet::with_capacity(objects.len());
    for (position, wire) in objects.into_iter().enumerate() {
        let place = format!("objects[{position}]");
        let Some(key) = object::read_ref(&place, wire, &mut violations) else { continue };
        if seen.insert(key.clone()) {
            keys.push(key);
        } else {
            violations.add(place, StoreError::Duplicate(key).to_string());
        }
    }
    violations.check()?;
    Ok(keys)
}
