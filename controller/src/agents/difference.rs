//! From what an agent holds to what it is to hold, as frames. Pure, but for what it takes from [`Encoded`].

use super::encoded::{Encoded, Step};
use super::frame::{Frame, piece};
use crate::hub::published::Target;
use bytes::Bytes;
use firebreak_policy::model::{NodeName, WorkloadId};
use firebreak_policy::node_state::{Group, GroupId, Member, SegmentId};
use firebreak_proto::hash::{ContentHash, ObjectKey, ObjectKind};
use firebreak_proto::state::{GroupChange, endpoint_update, group_update, node_update, removal, segment_update};
use firebreak_proto::{MAX_MESSAGE_BYTES, v1};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::sync::Arc;

/// What one object may take: one message carries it, with room for its frame below [`MAX_MESSAGE_BYTES`].
const OBJECT_BYTES: usize = MAX_MESSAGE_BYTES - 16 * 1024;

/// What is put into one message where it can be split. A stream whose agent does not read holds a message or two in its buffers: small ones, so that
/// hundreds of such streams in the middle of a large state are no matter.
const PART_BYTES: usize = 64 * 1024;

/// Tag and length in front of each item of a repeated field.
const FRAME_BYTES: usize = 8;

/// What an agent holds.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// Key and hash of every object, as the agent said; until something was sent on this stream.
    told: BTreeMap<ObjectKey, ContentHash>,
    /// The target that was sent last on this stream: with it a group's members need not all be sent again.
    sent: Option<Arc<Target>>,
    /// Of it, what the agent refused: goes out whole with the next generation.
    refused: BTreeSet<ObjectKey>,
}

impl Holding {
    /// The agent says that it holds an object.
    pub(crate) fn tell(&mut self, key: ObjectKey, hash: ContentHash) {
        self.told.insert(key, hash);
    }

    /// How many objects the agent said that it holds.
    pub(crate) fn told(&self) -> usize {
        self.told.len()
    }

    /// A target was sent: it is what the agent holds from here on.
    pub(crate) fn send(&mut self, target: &Arc<Target>) {
        self.told = BTreeMap::new();
        self.refused.clear();
        self.sent = Some(Arc::clone(target));
    }

    /// The agent refused an object of what was sent.
    pub(crate) fn refuse(&mut self, key: ObjectKey) {
        self.refused.insert(key);
    }

    /// The keys of everything held.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects().map(|(key, _)| key)
    }

    /// Everything held, in key order.
    fn objects(&self) -> impl Iterator<Item = (&ObjectKey, ContentHash)> {
        let sent = self.sent.iter().flat_map(|target| target.objects.iter());
        self.told.iter().map(|(key, hash)| (key, *hash)).chain(sent)
    }
}

/// An object that no message can carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} has {bytes} bytes, and a message carries {OBJECT_BYTES}; split the policies that make it")]
pub(crate) struct Oversized {
    pub(crate) key: ObjectKey,
    pub(crate) bytes: usize,
}

/// The frames that bring an agent from `holding` to `target`, without the Commit. Referents come before what refers to them, removals last.
///
/// # Errors
/// Names an object that does not fit into a message. The agent is to be sent nothing then and keeps what it holds.
pub(crate) fn difference(node: &NodeName, holding: &Holding, target: &Target, encoded: &Encoded) -> Result<Vec<Frame>, Oversized> {
    let (mut frames, mut gone) = (Frames::default(), Vec::new());
    if let Some(sent) = holding.sent.as_ref().filter(|sent| holding.refused.is_empty() && sent.objects.has_keys_of(&target.objects)) {
        // The same objects in the same places: the keys need not be looked at.
        for ((key, to), (_, from)) in target.objects.iter().zip(sent.objects.iter()).filter(|((_, to), (_, from))| to != from) {
            object(node, Step { key: key.clone(), from: Some(from), to }, holding, target, encoded, &mut frames)?;
        }
        return Ok(frames.done);
    }
    let mut held = holding.objects().peekable();
    for (key, to) in target.objects.iter() {
        take_before(key, &mut held, &mut gone);
        let from = held.next_if(|(held, _)| *held == key).map(|(_, hash)| hash).filter(|_| !holding.refused.contains(key));
        if from != Some(to) {
            object(node, Step { key: key.clone(), from, to }, holding, target, encoded, &mut frames)?;
        }
    }
    gone.extend(held.map(|(key, _)| key));
    gone.into_iter().for_each(|key| frames.push(piece(&removal(key))));
    Ok(frames.done)
}

/// Both lists are in key order: what is held and comes before the next that is wanted is not wanted.
fn take_before<'a>(
    key: &ObjectKey,
    held: &mut Peekable<impl Iterator<Item = (&'a ObjectKey, ContentHash)>>,
    gone: &mut Vec<&'a ObjectKey>,
) {
    while let Some((before, _)) = held.next_if(|(held, _)| *held < key) {
        gone.push(before);
    }
}

fn object(
    node: &NodeName,
    step: Step,
    holding: &Holding,
    target: &Target,
    encoded: &Encoded,
    frames: &mut Frames,
) -> Result<(), Oversized> {
    let (state, key, hash) = (&target.state, &step.key, step.to);
    // A hash beside the object lets the agent go on when it has to refuse the object itself.
    let whole = |update: Option<v1::ObjectUpdate>| -> Result<Vec<v1::ObjectUpdate>, Oversized> {
        let Some(mut update) = update else { return Ok(Vec::new()) };
        update.hash = hash.to_wire();
        let bytes = update.encoded_len() + FRAME_BYTES;
        if bytes > OBJECT_BYTES {
            return Err(Oversized { key: key.clone(), bytes });
        }
        Ok(vec![update])
    };
    match key.kind {
        ObjectKind::Group => {
            let base = step.from.and_then(|_| holding.sent.as_ref()?.state.groups.get(&GroupId(key.id.clone())));
            let Some(group) = state.groups.get(&GroupId(key.id.clone())) else { return Ok(()) };
            let from = step.from.filter(|_| base.is_some());
            let make = || Ok(group_parts(group, hash, base).iter().map(group_update).collect());
            frames.extend(&encoded.pieces(Step { from, ..step.clone() }, make)?);
        }
        ObjectKind::Segment => {
            let make = || whole(state.segments.get(&SegmentId(key.id.clone())).map(segment_update));
            frames.extend(&encoded.pieces(Step { from: None, ..step.clone() }, make)?);
        }
        ObjectKind::Endpoint => {
            let endpoint = state.endpoints.get(&WorkloadId::new(node.clone(), &*key.id));
            frames.extend(&whole(endpoint.map(endpoint_update))?.iter().map(piece).collect::<Vec<_>>());
        }
        ObjectKind::Node => frames.extend(&whole(Some(node_update(node, &state.addresses)))?.iter().map(piece).collect::<Vec<_>>()),
    }
    Ok(())
}

/// Frames of at most [`PART_BYTES`], but for one whose only piece is larger.
#[derive(Debug, Default)]
struct Frames {
    done: Vec<Frame>,
    room: usize,
}

impl Frames {
    fn extend(&mut self, pieces: &[Bytes]) {
        pieces.iter().for_each(|piece| self.push(piece.clone()));
    }

    fn push(&mut self, piece: Bytes) {
        let bytes = piece.len();
        match self.done.last_mut() {
            Some(Frame::Update(pieces)) if bytes <= self.room => pieces.push(piece),
            Some(Frame::Update(_) | Frame::Message(_)) | None => {
                self.done.push(Frame::Update(vec![piece]));
                self.room = PART_BYTES;
            }
        }
        self.room = self.room.saturating_sub(bytes);
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use firebreak_policy::model::{HostAccess, PolicyKey, PolicyKind};
    use firebreak_policy::node_state::{CompiledPeers, CompiledRule, CompiledServices, Isolation, NodeState, RuleRef, Rulebook, Segment};
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

    fn updates(frames: &[Frame]) -> Vec<v1::Update> {
        let read = |frame: &Frame| match frame {
            Frame::Update(pieces) => v1::Update::decode(Bytes::from(pieces.concat())).unwrap(),
            Frame::Message(_) => v1::Update::default(),
        };
        frames.iter().map(read).collect()
    }

    fn sizes(frames: &[Frame]) -> Vec<usize> {
        let message = |update: v1::Update| v1::ControllerMessage { message: Some(v1::controller_message::Message::Update(update)) };
        updates(frames).into_iter().map(|update| message(update).encoded_len()).collect()
    }

    fn parts(frames: &[Frame]) -> Vec<GroupChange> {
        let changes = updates(frames).into_iter().flat_map(|update| update.updates).map(|update| update.change.unwrap());
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
        let encoded = Encoded::default();
        let frames = difference(&node, &Holding::default(), &first, &encoded).unwrap();
        let sizes_of_first = sizes(&frames);
        assert!(sizes_of_first.iter().all(|size| *size <= PART_BYTES + 64), "{sizes_of_first:?}");
        assert!((40..200).contains(&sizes_of_first.len()), "{sizes_of_first:?}");
        let parts_of_first = parts(&frames);
        assert_eq!(parts_of_first.iter().filter(|part| part.reset).count(), 1);
        assert!(parts_of_first.first().unwrap().reset && parts_of_first.last().unwrap().hash.is_some());
        assert_eq!(parts_of_first.iter().map(|part| part.add.len()).sum::<usize>(), 300_000);

        let mut holding = Holding::default();
        holding.send(&first);
        assert!(difference(&node, &holding, &first, &encoded).unwrap().is_empty(), "nothing is sent when nothing changed");
        let second = target(1..300_001);
        let frames = difference(&node, &holding, &second, &encoded).unwrap();
        assert!(sizes(&frames).iter().sum::<usize>() < 256, "{:?}", sizes(&frames));
        let parts_of_second = parts(&frames);
        assert_eq!(parts_of_second.len(), 1);
        assert_eq!((&parts_of_second[0].add, &parts_of_second[0].remove), (&vec![member(300_000)], &vec![member(0)]));
        assert!(!parts_of_second[0].reset && parts_of_second[0].hash.is_some());

        // Held by hash only, as after a reconnect: what is the same is not sent, what differs is sent whole.
        let mut by_hash = Holding::default();
        first.objects.iter().for_each(|(key, hash)| by_hash.tell(key.clone(), hash));
        assert!(difference(&node, &by_hash, &first, &encoded).unwrap().is_empty());
        assert!(parts(&difference(&node, &by_hash, &second, &encoded).unwrap())[0].reset);

        // And so is what the agent refused, although it is known member by member what was sent.
        holding.refuse(ObjectKey::new(ObjectKind::Group, "g"));
        assert!(parts(&difference(&node, &holding, &first, &encoded).unwrap())[0].reset);
    }

    #[test]
    fn two_nodes_that_go_the_same_step_get_the_same_bytes_and_what_is_not_wanted_any_more_goes_last() {
        let encoded = Encoded::default();
        let frames = |name: &str, state: &NodeState| {
            let node = NodeName::new(name);
            let mut holding = Holding::default();
            holding.tell(ObjectKey::new(ObjectKind::Group, "a"), ContentHash([1; 16]));
            holding.tell(ObjectKey::new(ObjectKind::Segment, "z"), ContentHash([1; 16]));
            difference(&node, &holding, &Target::of(&node, state), &encoded).unwrap()
        };
        let state = target(0..10).state.clone();
        let (one, other) = (frames("n1", &state), frames("n2", &state));
        let (Frame::Update(one), Frame::Update(other)) = (&one[0], &other[0]) else { panic!("no update") };
        assert_eq!(one[0].as_ptr(), other[0].as_ptr(), "the group is the same memory");
        assert_ne!(one[1], other[1], "each node's own object is its own");
        let last: Vec<bool> = updates(&[Frame::Update(one.clone())])[0]
            .updates
            .iter()
            .map(|update| matches!(update.change, Some(v1::object_update::Change::Removed(_))))
            .collect();
        assert_eq!(last, [false, false, true, true]);
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
        let oversized = difference(&NodeName::new("n1"), &Holding::default(), &target, &Encoded::default()).unwrap_err();
        assert_eq!(oversized.key, ObjectKey::new(ObjectKind::Segment, "s"));
        assert!(oversized.bytes > MAX_MESSAGE_BYTES, "{oversized}");
    }
}
