//! Content hashes: how agent and controller agree on what a node holds without sending it.
//!
//! - Segment, endpoint, node: the first 16 bytes of BLAKE3 over the canonical protobuf encoding, that is the fields in tag
//!   order with every list whose order has no meaning sorted.
//! - Group: the first 16 bytes of BLAKE3 over id, title and a [`MemberSum`]. The sum is kept up as members come and go, so
//!   that one member's change costs the same in a group of ten and of a million.
//! - Commit: the first 16 bytes of BLAKE3 over the [`ObjectSum`] of every held object: kind, id and hash. It is kept up in the same
//!   way, so that one object's change costs the same on a node that holds ten and one that holds ten thousand.
//!
//! They find mistakes and differences; they are no defence against a peer that makes up its own state.

use crate::convert::Refusal;
use crate::v1;
use bytes::Bytes;
use firebreak_policy::index::Stamps;
use firebreak_policy::model::NodeName;
use firebreak_policy::node_state::{Group, GroupId, LocalEndpoint, Member, NodeState, Rulebook, Segment, SegmentId};
pub use firebreak_policy::node_state::{ObjectKey, ObjectKind};
use prost::Message;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

/// 16 bytes that stand for a content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 16]);

impl ContentHash {
    /// As it travels.
    pub fn to_wire(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// Reads 16 bytes; any other length is refused under the name of `field`.
    pub fn from_wire(bytes: &[u8], field: &str) -> Result<Self, Refusal> {
        <[u8; 16]>::try_from(bytes)
            .map(Self)
            .map_err(|_| Refusal::new(field, format!("{} bytes are no content hash (16 are)", bytes.len())))
    }

    fn of(hasher: &blake3::Hasher) -> Self {
        let mut hash = [0; 16];
        hasher.finalize_xof().fill(&mut hash);
        Self(hash)
    }

    fn of_message(message: &impl Message) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&message.encode_to_vec());
        Self::of(&hasher)
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A set as a number: the sum, lane by lane and wrapping, of the BLAKE3 hashes of its elements read as four little-endian 64-bit lanes.
/// The same whatever the order, and an element can be taken out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Lanes([u64; 4]);

impl Lanes {
    fn fold(&mut self, element: &[u8], by: fn(u64, u64) -> u64) {
        let hash = blake3::hash(element);
        for (lane, bytes) in self.0.iter_mut().zip(hash.as_bytes().as_chunks::<8>().0) {
            *lane = by(*lane, u64::from_le_bytes(*bytes));
        }
    }

    fn update(&self, hasher: &mut blake3::Hasher) {
        self.0.iter().for_each(|lane| {
            hasher.update(&lane.to_le_bytes());
        });
    }
}

/// The members of a group as a number, of their protobuf encodings: the 256-bit sum of their hashes in four lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemberSum(Lanes);

impl MemberSum {
    /// The sum of all members.
    pub fn of<'a>(members: impl IntoIterator<Item = &'a Member>) -> Self {
        let mut sum = Self::default();
        members.into_iter().for_each(|member| sum.add(member));
        sum
    }

    /// A member that was not in the group came.
    pub fn add(&mut self, member: &Member) {
        self.0.fold(&v1::Member::from(member).encode_to_vec(), u64::wrapping_add);
    }

    /// A member that was in the group went.
    pub fn remove(&mut self, member: &Member) {
        self.0.fold(&v1::Member::from(member).encode_to_vec(), u64::wrapping_sub);
    }
}

/// The objects of a node as a number, each by its kind (little-endian 32 bits), the length of its id (64 bits), its id and its hash: the
/// 256-bit sum of their hashes in four lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectSum(Lanes);

impl ObjectSum {
    /// The sum of all objects; each is handed over once, in any order.
    pub fn of<'a>(objects: impl IntoIterator<Item = (&'a ObjectKey, ContentHash)>) -> Self {
        let mut sum = Self::default();
        objects.into_iter().for_each(|(key, hash)| sum.add(key, hash));
        sum
    }

    /// An object that was not there came.
    pub fn add(&mut self, key: &ObjectKey, hash: ContentHash) {
        self.fold(key, hash, u64::wrapping_add);
    }

    /// An object that was there with this hash went.
    pub fn remove(&mut self, key: &ObjectKey, hash: ContentHash) {
        self.fold(key, hash, u64::wrapping_sub);
    }

    /// The hash of a Commit after which these objects are held.
    pub fn commit_hash(&self) -> ContentHash {
        let mut hasher = blake3::Hasher::new();
        self.0.update(&mut hasher);
        ContentHash::of(&hasher)
    }

    fn fold(&mut self, key: &ObjectKey, hash: ContentHash, by: fn(u64, u64) -> u64) {
        let kind: i32 = v1::ObjectKind::from(key.kind).into();
        let mut bytes = Vec::with_capacity(28 + key.id.len());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&u64::try_from(key.id.len()).unwrap_or(u64::MAX).to_le_bytes());
        bytes.extend_from_slice(key.id.as_bytes());
        bytes.extend_from_slice(&hash.0);
        self.0.fold(&bytes, by);
    }
}

/// The hash of a group whose members have the sum `members`.
pub fn group_hash(id: &GroupId, title: &str, members: &MemberSum) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    update_text(&mut hasher, &id.0);
    update_text(&mut hasher, title);
    members.0.update(&mut hasher);
    ContentHash::of(&hasher)
}

/// The hash of a group, from all its members.
pub fn whole_group_hash(group: &Group) -> ContentHash {
    group_hash(&group.id, &group.title, &MemberSum::of(&group.members))
}

/// The hash of a segment.
pub fn segment_hash(segment: &Segment) -> ContentHash {
    let mut wire = v1::Segment::from(segment);
    sort_rules(&mut wire);
    ContentHash::of_message(&wire)
}

/// Sorts what has no order in a segment's rules.
fn sort_rules(wire: &mut v1::Segment) {
    let v1::Segment { id: _, title: _, ingress, egress, admin_ingress, admin_egress, baseline_ingress, baseline_egress, audit } = wire;
    sort_rulebook([ingress, egress], [admin_ingress, admin_egress, baseline_ingress, baseline_egress]);
    if let Some(v1::AuditRules { ingress, egress, admin_ingress, admin_egress, baseline_ingress, baseline_egress }) = audit {
        sort_rulebook([ingress, egress], [admin_ingress, admin_egress, baseline_ingress, baseline_egress]);
    }
}

/// Sorts what has no order. The rules of a tier have one.
fn sort_rulebook(isolations: [&mut Option<v1::Isolation>; 2], tiers: [&mut Vec<v1::CompiledRule>; 4]) {
    for isolation in isolations.into_iter().flatten() {
        isolation.policies.sort_by(|a, b| (&a.kind, &a.namespace, &a.name).cmp(&(&b.kind, &b.namespace, &b.name)));
        isolation.rules.iter_mut().for_each(sort_rule);
    }
    tiers.into_iter().flatten().for_each(sort_rule);
}

fn sort_rule(rule: &mut v1::CompiledRule) {
    if let Some(v1::compiled_rule::Peers::Groups(groups)) = &mut rule.peers {
        groups.group_ids.sort();
    }
    if let Some(v1::compiled_rule::Services::ServicesList(list)) = &mut rule.services {
        list.services.sort_by_key(Message::encode_to_vec);
    }
}

/// The hash of a workload of the node.
pub fn endpoint_hash(endpoint: &LocalEndpoint) -> ContentHash {
    let mut wire = v1::LocalEndpoint::from(endpoint);
    wire.published_ports.sort_by_key(Message::encode_to_vec);
    ContentHash::of_message(&wire)
}

/// The hash of the node itself.
pub fn node_hash(name: &NodeName, addresses: &BTreeSet<IpAddr>) -> ContentHash {
    ContentHash::of_message(&crate::state::node_to_wire(name, addresses))
}

/// Reads [`ObjectKind`] off the wire.
pub trait WireKind: Sized {
    /// Reads a kind; 0 and unknown numbers are refused.
    ///
    /// # Errors
    /// Names the number.
    fn from_wire(number: i32) -> Result<Self, Refusal>;
}

impl WireKind for ObjectKind {
    fn from_wire(number: i32) -> Result<Self, Refusal> {
        match v1::ObjectKind::try_from(number) {
            Ok(v1::ObjectKind::Group) => Ok(Self::Group),
            Ok(v1::ObjectKind::Segment) => Ok(Self::Segment),
            Ok(v1::ObjectKind::Endpoint) => Ok(Self::Endpoint),
            Ok(v1::ObjectKind::Node) => Ok(Self::Node),
            Ok(v1::ObjectKind::Unspecified) | Err(_) => Err(Refusal::new("kind", format!("{number} is no kind of object"))),
        }
    }
}

impl From<ObjectKind> for v1::ObjectKind {
    fn from(kind: ObjectKind) -> Self {
        match kind {
            ObjectKind::Group => Self::Group,
            ObjectKind::Segment => Self::Segment,
            ObjectKind::Endpoint => Self::Endpoint,
            ObjectKind::Node => Self::Node,
        }
    }
}

/// The wire's content hashes, for an index.
#[derive(Clone, Copy, Debug)]
pub struct Hashes;

impl Stamps for Hashes {
    type Stamp = ContentHash;
    type Sum = MemberSum;
    type Total = ObjectSum;
    /// The encoded fields after `id` and `title`, which come before them.
    type Rules = Vec<u8>;

    fn add(sum: &mut MemberSum, member: &Member) {
        sum.add(member);
    }

    fn remove(sum: &mut MemberSum, member: &Member) {
        sum.remove(member);
    }

    fn came(total: &mut ObjectSum, key: &ObjectKey, stamp: ContentHash) {
        total.add(key, stamp);
    }

    fn went(total: &mut ObjectSum, key: &ObjectKey, stamp: ContentHash) {
        total.remove(key, stamp);
    }

    fn group(id: &GroupId, title: &str, members: &MemberSum) -> ContentHash {
        group_hash(id, title, members)
    }

    fn rules(rules: &Rulebook, audit: Option<&Rulebook>) -> Vec<u8> {
        let mut wire = crate::state::rules_to_wire(rules, audit);
        sort_rules(&mut wire);
        wire.encode_to_vec()
    }

    fn segment(id: &SegmentId, title: &str, rules: &Vec<u8>) -> ContentHash {
        let named = v1::Segment { id: id.0.to_string(), title: title.to_owned(), ..v1::Segment::default() };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&named.encode_to_vec());
        hasher.update(rules);
        ContentHash::of(&hasher)
    }

    fn endpoint(endpoint: &LocalEndpoint) -> ContentHash {
        endpoint_hash(endpoint)
    }

    fn node(name: &NodeName, addresses: &BTreeSet<IpAddr>) -> ContentHash {
        node_hash(name, addresses)
    }
}

/// The hash of a Commit over all objects held after it, each handed over once.
pub fn commit_hash<'a>(objects: impl IntoIterator<Item = (&'a ObjectKey, ContentHash)>) -> ContentHash {
    ObjectSum::of(objects).commit_hash()
}

/// Key and hash of every object of a node's state, in key order: what [`commit_hash`] and `Held` are about.
pub fn objects_of(node: &NodeName, state: &NodeState) -> Vec<(ObjectKey, ContentHash)> {
    let NodeState { addresses, groups, segments, endpoints } = state;
    let mut objects: Vec<_> = groups
        .values()
        .map(|group| (ObjectKey::new(ObjectKind::Group, group.id.0.clone()), whole_group_hash(group)))
        .chain(segments.values().map(|segment| (ObjectKey::new(ObjectKind::Segment, segment.id.0.clone()), segment_hash(segment))))
        .chain(
            endpoints
                .values()
                .map(|endpoint| (ObjectKey::new(ObjectKind::Endpoint, endpoint.id.container.as_str()), endpoint_hash(endpoint))),
        )
        .chain(std::iter::once((ObjectKey::new(ObjectKind::Node, node.as_str()), node_hash(node, addresses))))
        .collect();
    objects.sort_unstable();
    objects
}

fn update_text(hasher: &mut blake3::Hasher, text: &str) {
    // A length in front, so that no two pairs of texts run together into the same bytes.
    hasher.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes());
    hasher.update(text.as_bytes());
}
