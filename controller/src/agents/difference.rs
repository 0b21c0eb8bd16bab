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
            let changes = base.members.changes_to(&group.members);
            changes.gone.into_iter().map(|member| (false, member)).chain(changes.come.into_iter().map(|member| (true, member))).collect()
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use firebreak_policy::model::{HostAccess, PolicyKey, PolicyKind};
    use firebreak_policy::node_state::{CompiledPeers, CompiledRule, CompiledServices, Isolation, RuleRef, Rulebook, Segment};
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::sync::Arc;

    fn member(number: u32) -> Member {
        if number.is_multiple_of(2) {
            Member::Address(Ipv4Addr::from(0x0a00_0000 + number).into())
        } else {
            Member::Address(Ipv6Addr::from((0x2001_0db8_u128 << 96) + u128::from(number)).into())
        }
    }

    fn target(members: impl Iterator<Item = u32>) -> Target {
        let id = GroupId("g".into());
        let group = Group { id: id.clone(), title: "app=web".to_owned(), members: members.map(member).collect() };
        let state = NodeState { groups: [(id, Arc::new(group))].into(), ..NodeState::default() };
        Target::of(&NodeName::new("n1"), &state)
    }

    fn sizes(updates: &[v1::Update]) -> Vec<usize> {
        let message =
            |update: &v1::Update| v1::ControllerMessage { message: Some(v1::controller_message::Message::Update(update.clone())) };
        updates.iter().map(|update| message(update).encoded_len()).collect()
    }

    fn parts(updates: Vec<v1::Update>) -> Vec<GroupChange> {
        let changes = updates.into_iter().flat_map(|update| update.updates).map(|update| update.change.unwrap());
        changes
            .filter_map(|change| match change {
                v1::object_update::Change::Group(part) => Some(GroupChange::try_from(part).unwrap()),
                v1::object_update::Change::Node(_)
                | v1::object_update::Change::Segment(_)
                | v1::object_update::Change::Endpoint(_)
                | v1::object_update::Change::Removed(_) => None,
            })
            .collect()
    }

    #[test]
    fn a_group_of_300_000_comes_in_messages_within_the_bound_and_one_changed_member_in_a_small_one() {
        let node = NodeName::new("n1");
        let first = Arc::new(target(0..300_000));
        let updates = difference(&node, &Holding::default(), &first).unwrap();
        let sizes_of_first = sizes(&updates);
        assert!(sizes_of_first.iter().all(|size| *size <= MAX_MESSAGE_BYTES), "{sizes_of_first:?}");
        assert!((4..20).contains(&sizes_of_first.len()), "{sizes_of_first:?}");
        let parts_of_first = parts(updates);
        assert_eq!(parts_of_first.iter().filter(|part| part.reset).count(), 1);
        assert!(parts_of_first.first().unwrap().reset && parts_of_first.last().unwrap().hash.is_some());
        assert_eq!(parts_of_first.iter().map(|part| part.add.len()).sum::<usize>(), 300_000);

        let holding = Holding { objects: first.objects.iter().cloned().collect(), state: Some(Arc::clone(&first)) };
        assert!(difference(&node, &holding, &first).unwrap().is_empty(), "nothing is sent when nothing changed");
        let second = target(1..300_001);
        let updates = difference(&node, &holding, &second).unwrap();
        assert!(sizes(&updates).iter().sum::<usize>() < 256, "{:?}", sizes(&updates));
        let parts_of_second = parts(updates);
        assert_eq!(parts_of_second.len(), 1);
        assert_eq!((&parts_of_second[0].add, &parts_of_second[0].remove), (&vec![member(300_000)], &vec![member(0)]));
        assert!(!parts_of_second[0].reset && parts_of_second[0].hash.is_some());

        // Held by hash only, as after a reconnect: what is the same is not sent, what differs is sent whole.
        let by_hash = Holding { objects: first.objects.iter().cloned().collect(), state: None };
        assert!(difference(&node, &by_hash, &first).unwrap().is_empty());
        assert!(parts(difference(&node, &by_hash, &second).unwrap())[0].reset);
    }

    #[test]
    fn an_object_that_no_message_can_carry_is_named_and_nothing_is_sent() {
        let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: "shop".into(), name: "p".repeat(200) };
        let rule = |index| CompiledRule {
            origin: RuleRef { policy: policy.clone(), index, name: None },
            peers: CompiledPeers::Any,
            services: CompiledServices::Any,
        };
        let isolation =
            Isolation { policies: vec![policy.clone()], host_access: HostAccess::Allow, rules: (0..10_000).map(rule).collect() };
        let id = SegmentId("s".into());
        let segment = Segment {
            id: id.clone(),
            title: "shop/db".to_owned(),
            rules: Rulebook { ingress: Some(isolation), ..Rulebook::default() }.into(),
            audit: None,
        };
        let state = NodeState { segments: [(id, Arc::new(segment))].into(), ..NodeState::default() };
        let target = Target::of(&NodeName::new("n1"), &state);
        let oversized = difference(&NodeName::new("n1"), &Holding::default(), &target).unwrap_err();
        assert_eq!(oversized.key, ObjectKey::new(ObjectKind::Segment, "s"));
        assert!(oversized.bytes > MAX_MESSAGE_BYTES, "{oversized}");
    }
}
