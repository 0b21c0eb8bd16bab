//! From what an agent holds to what it is to hold, as messages. Pure.

use crate::hub::published::Target;
use firebreak_policy::model::{NodeName, WorkloadId};
use firebreak_policy::node_state::{Group, GroupId, Member, NodeState, SegmentId};
use firebreak_proto::hash::{ContentHash, ObjectKey, ObjectKind};
use firebreak_proto::state::{GroupChange, endpoint_update, group_update, key_of, node_update, removal, segment_update};
use firebreak_proto::{MAX_MESSAGE_BYTES, v1};
use prost::Message as _;
use std::collections::BTreeMap;

/// What one message may hold, with room for its frame below [`MAX_MESSAGE_BYTES`].
const PART_BYTES: usize = MAX_MESSAGE_BYTES - 16 * 1024;

/// Tag and length in front of each item of a repeated field.
const FRAME_BYTES: usize = 8;

/// What an agent holds.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// Key and hash of every object, as the agent said or as it was sent.
    pub(crate) objects: BTreeMap<ObjectKey, ContentHash>,
    /// The target that was sent last on this stream: with it a group's members need not all be sent again.
    pub(crate) state: Option<std::sync::Arc<Target>>,
}

/// An object that no message can carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} has {bytes} bytes, and a message carries {PART_BYTES}; split the policies that make it")]
pub(crate) struct Oversized {
    pub(crate) key: ObjectKey,
    pub(crate) bytes: usize,
}

/// The messages that bring an agent from `holding` to `target`, without the Commit. Referents come before what refers to them, removals last.
///
/// # Errors
/// Names an object that does not fit into a message. The agent is to be sent nothing then and keeps what it holds.
pub(crate) fn difference(node: &NodeName, holding: &Holding, target: &Target) -> Result<Vec<v1::Update>, Oversized> {
    let mut updates = Vec::new();
    for (key, hash) in &target.objects {
        if holding.objects.get(key) != Some(hash) {
            object(node, key, *hash, holding, target, &mut updates);
        }
    }
    let wanted = |key: &ObjectKey| target.objects.binary_search_by(|(held, _)| held.cmp(key)).is_ok();
    updates.extend(holding.objects.keys().filter(|key| !wanted(key)).map(removal));
    in_parts(updates)
}

fn object(node: &NodeName, key: &ObjectKey, hash: ContentHash, holding: &Holding, target: &Target, updates: &mut Vec<v1::ObjectUpdate>) {
    let state = &target.state;
    match key.kind {
        ObjectKind::Group => {
            if let Some(group) = state.groups.get(&GroupId(key.id.clone())) {
                updates.extend(group_parts(group, hash, base(key, holding)).iter().map(group_update));
            }
        }
        ObjectKind::Segment => updates.extend(state.segments.get(&SegmentId(key.id.clone())).map(|segment| segment_update(segment))),
        ObjectKind::Endpoint => {
            let endpoint = state.endpoints.get(&WorkloadId::new(node.clone(), &*key.id));
            updates.extend(endpoint.map(|endpoint| endpoint_update(endpoint)));
        }
        ObjectKind::Node => updates.push(node_update(node, &state.addresses)),
    }
    // A hash beside the object lets the agent go on when it has to refuse the object itself.
    if key.kind != ObjectKind::Group
        && let Some(update) = updates.last_mut()
    {
        update.hash = hash.to_wire();
    }
}

/// The group as the agent holds it, if that is known member by member.
fn base<'a>(key: &ObjectKey, holding: &'a Holding) -> Option<&'a Group> {
    let sent = holding.state.as_ref()?;
    let at = sent.objects.binary_search_by(|(held, _)| held.cmp(key)).ok()?;
    let (_, hash) = sent.objects.get(at)?;
    if holding.objects.get(key) != Some(hash) {
        return None;
    }
    let NodeState { groups, .. } = &sent.state;
    groups.get(&GroupId(key.id.clone())).map(|group| &**group)
}

fn group_parts(group: &Group, hash: ContentHash, base: Option<&Group>) -> Vec<GroupChange> {
    let changes: Vec<(bool, Member)> = match base {
        Some(base) => {
            let gone = base.members.difference(&group.members).map(|member| (false, *member));
            gone.chain(group.members.difference(&base.members).map(|member| (true, *member))).collect()
        }
        None => group.members.iter().map(|member| (true, *member)).collect(),
    };
    let empty =
        |reset| GroupChange { id: group.id.clone(), title: group.title.clone(), reset, add: Vec::new(), remove: Vec::new(), hash: None };
    let mut parts = vec![empty(base.is_none())];
    let first_room = PART_BYTES.saturating_sub(group.title.len() + group.id.0.len() + 64);
    let mut room = first_room;
    for (comes, member) in changes {
        let bytes = v1::Member::from(&member).encoded_len() + FRAME_BYTES;
        if bytes > room {
            parts.push(empty(false));
            room = first_room;
        }
        room = room.saturating_sub(bytes);
        if let Some(part) = parts.last_mut() {
            if comes { part.add.push(member) } else { part.remove.push(member) }
        }
    }
    if let Some(last) = parts.last_mut() {
        last.hash = Some(hash);
    }
    parts
}

/// Cuts the updates so that no message is over [`PART_BYTES`].
fn in_parts(updates: Vec<v1::ObjectUpdate>) -> Result<Vec<v1::Update>, Oversized> {
    let mut parts: Vec<v1::Update> = Vec::new();
    let mut room = 0;
    for update in updates {
        let bytes = update.encoded_len() + FRAME_BYTES;
        if bytes > PART_BYTES {
            let key = key_of(&update).unwrap_or_else(|| ObjectKey::new(ObjectKind::Node, "?"));
            return Err(Oversized { key, bytes });
        }
        match parts.last_mut() {
            Some(part) if bytes <= room => part.updates.push(update),
            Some(_) | None => {
                parts.push(v1::Update { updates: vec![update] });
                room = PART_BYTES;
            }
        }
        room = room.saturating_sub(bytes);
    }
    Ok(parts)
}
