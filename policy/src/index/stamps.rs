//! Content hashes, as whoever sends the objects defines them.

use crate::model::NodeName;
use crate::node_state::{GroupId, LocalEndpoint, Member, ObjectKey, Rulebook, SegmentId};
use std::collections::BTreeSet;
use std::fmt::Debug;

/// How the content of an object becomes the few bytes that stand for it. The wire's encodings are not this crate's; the index keeps what they
/// give beside each object, so that no object is hashed twice.
pub trait Stamps: Debug + 'static {
    /// What stands for a content.
    type Stamp: Copy + Debug + PartialEq + Send + Sync;
    /// What stands for the members of a group; kept up member by member.
    type Sum: Copy + Debug + Default + Send + Sync;
    /// What stands for all objects of a node; kept up object by object.
    type Total: Copy + Debug + Default + Send + Sync;
    /// What stands for the rules of a segment until it is hashed.
    type Rules: Send + Sync;

    /// A member that was not in the group came.
    fn add(sum: &mut Self::Sum, member: &Member);
    /// A member that was in the group went.
    fn remove(sum: &mut Self::Sum, member: &Member);
    /// An object that the node did not have came.
    fn came(total: &mut Self::Total, key: &ObjectKey, stamp: Self::Stamp);
    /// An object that the node had with this stamp went.
    fn went(total: &mut Self::Total, key: &ObjectKey, stamp: Self::Stamp);
    /// Of a group whose members have this sum.
    fn group(id: &GroupId, title: &str, members: &Self::Sum) -> Self::Stamp;
    /// What the rules of a segment add to its hash, and what they would be with every Audit policy enforced: workloads of many titles share them.
    fn rules(rules: &Rulebook, audit: Option<&Rulebook>) -> Self::Rules;
    /// Of a segment.
    fn segment(id: &SegmentId, title: &str, rules: &Self::Rules) -> Self::Stamp;
    /// Of a workload of the node.
    fn endpoint(endpoint: &LocalEndpoint) -> Self::Stamp;
    /// Of the node itself.
    fn node(name: &NodeName, addresses: &BTreeSet<std::net::IpAddr>) -> Self::Stamp;
}

/// For whoever needs no content hashes.
#[derive(Clone, Copy, Debug)]
pub struct Unstamped;

impl Stamps for Unstamped {
    type Stamp = ();
    type Sum = ();
    type Total = ();
    type Rules = ();

    fn add((): &mut (), _member: &Member) {}
    fn remove((): &mut (), _member: &Member) {}
    fn came((): &mut (), _key: &ObjectKey, (): ()) {}
    fn went((): &mut (), _key: &ObjectKey, (): ()) {}
    fn group(_id: &GroupId, _title: &str, (): &()) {}
    fn rules(_rules: &Rulebook, _audit: Option<&Rulebook>) {}
    fn segment(_id: &SegmentId, _title: &str, (): &()) {}
    fn endpoint(_endpoint: &LocalEndpoint) {}
    fn node(_name: &NodeName, _addresses: &BTreeSet<std::net::IpAddr>) {}
}
