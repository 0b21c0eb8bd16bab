//! What goes up: reports as differences to what was sent, cut into messages. Pure.

use super::{Applied, NodeStatus, SessionConfig};
use crate::local::{LocalWorkload, LocalWorkloads, Warning};
use firebreak_policy::model::ContainerId;
use firebreak_proto::convert::addresses_to_wire;
use firebreak_proto::hash::{ContentHash, ObjectKey};
use firebreak_proto::v1;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What one message may hold, with room for its frame below [`firebreak_proto::MAX_MESSAGE_BYTES`].
const PART_BYTES: usize = firebreak_proto::MAX_MESSAGE_BYTES - 16 * 1024;

/// What the controller was told on this stream.
#[derive(Debug, Default)]
pub(super) struct Told {
    node: Option<v1::NodeReport>,
    workloads: Option<BTreeMap<ContainerId, Arc<LocalWorkload>>>,
    /// Workloads that fit into no message.
    oversized: BTreeMap<ContainerId, Warning>,
}

impl Told {
    /// The messages that bring the controller up to date; none when it is. The first ones of a stream are complete.
    pub(super) fn catch_up(
        &mut self,
        config: &SessionConfig,
        local: &LocalWorkloads,
        status: &NodeStatus,
        extra: &BTreeSet<Warning>,
    ) -> Vec<v1::agent_message::Message> {
        let mut messages = self.workload_parts(local);
        let node = node_report(config, local, status, extra.iter().chain(self.oversized.values()));
        if self.node.as_ref() != Some(&node) {
            messages.insert(0, v1::agent_message::Message::Node(node.clone()));
            self.node = Some(node);
        }
        messages
    }

    fn workload_parts(&mut self, local: &LocalWorkloads) -> Vec<v1::agent_message::Message> {
        let full = self.workloads.is_none();
        let told = self.workloads.get_or_insert_default();
        let removed: Vec<String> = told.keys().filter(|id| !local.workloads.contains_key(*id)).map(|id| id.as_str().to_owned()).collect();
        self.oversized.retain(|id, _| local.workloads.contains_key(id));
        let mut upserts = Vec::new();
        for (id, workload) in local.workloads.iter().filter(|(id, workload)| told.get(*id) != Some(*workload)) {
            let wire = v1::Workload::from(&workload.report());
            let size = wire.encoded_len();
            if size > PART_BYTES {
                let message = format!("workload {id} is not reported, so no policy knows it: {size} bytes of labels; shorten them");
                self.oversized.insert(id.clone(), Warning::new("WorkloadTooLarge", message));
            } else {
                self.oversized.remove(id);
                upserts.push(wire);
            }
        }
        if !full && upserts.is_empty() && removed.is_empty() {
            return Vec::new();
        }
        told.clone_from(&local.workloads);
        let mut parts: Vec<v1::WorkloadReport> = in_parts(upserts, Message::encoded_len)
            .into_iter()
            .map(|upsert| v1::WorkloadReport { full, upsert, removed: Vec::new(), last: false })
            .chain(in_parts(removed, String::len).into_iter().map(|removed| v1::WorkloadReport {
                full,
                upsert: Vec::new(),
                removed,
                last: false,
            }))
            .collect();
        match parts.last_mut() {
            Some(part) => part.last = true,
            None => parts.push(v1::WorkloadReport { full, upsert: Vec::new(), removed: Vec::new(), last: true }),
        }
        parts.into_iter().map(v1::agent_message::Message::Workloads).collect()
    }
}

fn node_report<'a>(
    config: &SessionConfig,
    local: &'a LocalWorkloads,
    status: &'a NodeStatus,
    extra: impl Iterator<Item = &'a Warning>,
) -> v1::NodeReport {
    let warnings: BTreeSet<&Warning> = local.warnings.iter().chain(&status.warnings).chain(extra).collect();
    v1::NodeReport {
        addresses: addresses_to_wire(&local.node_addresses),
        labels: config.labels.clone().into_iter().collect(),
        warnings: warnings.into_iter().map(Into::into).collect(),
        kernel: config.kernel.clone(),
        enforcing: status.enforcing(),
        observing: status.observing.as_ref().map(Into::into),
        observe_answer: status.answered.as_ref().map(Into::into),
    }
}

/// What the agent holds, in as many messages as it takes; at least one.
pub(super) fn held_parts<'a>(objects: impl Iterator<Item = (&'a ObjectKey, ContentHash)>) -> Vec<v1::agent_message::Message> {
    let objects: Vec<v1::HeldObject> = objects
        .map(|(key, hash)| v1::HeldObject { kind: v1::ObjectKind::from(key.kind).into(), id: key.id.to_string(), hash: hash.to_wire() })
        .collect();
    let mut parts: Vec<v1::Held> =
        in_parts(objects, Message::encoded_len).into_iter().map(|objects| v1::Held { objects, last: false }).collect();
    match parts.last_mut() {
        Some(part) => part.last = true,
        None => parts.push(v1::Held { objects: Vec::new(), last: true }),
    }
    parts.into_iter().map(v1::agent_message::Message::Held).collect()
}

/// The answer to a Commit.
pub(super) fn ack(applied: &Applied) -> v1::agent_message::Message {
    let Applied { epoch, generation, revision, at, kernel_time, refused, failure } = applied;
    let mut room = PART_BYTES;
    let mut named = Vec::new();
    for (key, refusal) in refused {
        let object = v1::RefusedObject { kind: v1::ObjectKind::from(key.kind).into(), id: key.id.to_string(), reason: refusal.to_string() };
        room = room.saturating_sub(object.encoded_len() + FRAME_BYTES);
        if room == 0 {
            break;
        }
        named.push(object);
    }
    v1::agent_message::Message::Ack(v1::Ack {
        generation: generation.0,
        revision: revision.0,
        epoch: epoch.clone(),
        applied_at: Some((*at).into()),
        kernel_time: prost_types::Duration::try_from(*kernel_time).ok(),
        refused: named,
        failure: failure.clone().unwrap_or_default(),
    })
}

/// Tag and length in front of each item of a repeated field.
const FRAME_BYTES: usize = 8;

/// Cuts a list so that no part is over [`PART_BYTES`], but for an item that is so alone. No parts of an empty list.
fn in_parts<T>(items: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for item in items {
        let bytes = size(&item) + FRAME_BYTES;
        match parts.last_mut() {
            Some(part) if bytes <= room => part.push(item),
            Some(_) | None => {
                parts.push(vec![item]);
                room = PART_BYTES;
            }
        }
        room = room.saturating_sub(bytes);
    }
    parts
}
