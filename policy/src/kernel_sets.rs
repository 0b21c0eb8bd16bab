//! The sets that the kernel judges by, as values. `flatten` makes them, the agent writes them, `judge` reads them the
//! way the kernel's fixed rules do.

use crate::model::{Direction, Family, Protocol};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

pub use crate::shared_sets::{Chain, GroupForm, GroupKey, GroupSet, Shared, SharedPeers, SharedRule, SharedService, ShortName};

/// Set contents, element by element, each with the comment that the kernel keeps beside it. A missing set is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelSets {
    /// By set, then by element in key order.
    pub sets: BTreeMap<SetId, BTreeMap<Element, Comment>>,
    /// What is too large to be multiplied out with every local workload.
    pub shared: Shared,
}

/// What the kernel keeps beside an element, for `nft list`; at most 128 bytes (`NFT_USERDATA_MAXLEN` leaves that much to a comment).
pub type Comment = Arc<str>;

/// One of the fixed sets of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId {
    /// Seen from the local workload. [`Shape::Published`] and [`Shape::PublishedAllow`] are always egress.
    pub direction: Direction,
    /// IPv4 or IPv6.
    pub family: Family,
    /// What its elements are.
    pub shape: Shape,
}

/// The forms of set. In this order the fixed rules ask them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// `local`: isolated in this direction. A local workload that is in none is not isolated.
    Isolated,
    /// `local` (ingress only): the own node is judged too.
    HostJudged,
    /// `local . peer . protocol . port`: hash, the hot one.
    PeerPort,
    /// `local . peer`: every protocol.
    Peer,
    /// `local . peer . protocol`: every port or type.
    PeerProtocol,
    /// `local . protocol . port`: anyone.
    Port,
    /// `local . peer range . protocol range . port range`: interval. For protocols without ports the port range is whole.
    Range,
    /// `local . peer . type . code`: hash.
    PeerIcmp,
    /// `local . peer range . type range . code range`: interval.
    IcmpRange,
    /// `node address . protocol . port`: a port of the node that leads to a workload.
    Published,
    /// `local . node address . protocol . port`: a local workload that may reach what is published there.
    PublishedAllow,
    /// `local . peer range . protocol range . port range`: interval. What is denied with an answer; asked only about what is denied, so it allows
    /// nothing and denies nothing.
    Reject,
    /// The same for ICMP: `local . peer range . type range . code range`.
    RejectIcmp,
}

/// One element. Ranges are inclusive, and within one set no two elements overlap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// For [`Shape::Isolated`] and [`Shape::HostJudged`].
    Local(IpAddr),
    /// For [`Shape::Peer`].
    Peer(IpAddr, IpAddr),
    /// For [`Shape::PeerProtocol`].
    PeerProtocol(IpAddr, IpAddr, Protocol),
    /// For [`Shape::PeerPort`] and [`Shape::PublishedAllow`].
    PeerPort(IpAddr, IpAddr, Protocol, u16),
    /// For [`Shape::PeerIcmp`]: type, code.
    PeerIcmp(IpAddr, IpAddr, u8, u8),
    /// For [`Shape::Port`] and [`Shape::Published`].
    Port(IpAddr, Protocol, u16),
    /// For [`Shape::Range`] and [`Shape::Reject`]: peers, protocols, ports.
    Range(IpAddr, Span<IpAddr>, Span<u8>, Span<u16>),
    /// For [`Shape::IcmpRange`] and [`Shape::RejectIcmp`]: peers, types, codes.
    IcmpRange(IpAddr, Span<IpAddr>, Span<u8>, Span<u8>),
}

/// An inclusive range that can be ordered and hashed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span<T> {
    /// The first.
    pub first: T,
    /// The last.
    pub last: T,
}

impl<T: Copy + PartialOrd> Span<T> {
    /// A range of one.
    pub fn single(value: T) -> Self {
        Self { first: value, last: value }
    }

    /// Whether the value is in the range.
    pub fn contains(&self, value: T) -> bool {
        (self.first..=self.last).contains(&value)
    }
}

impl<T: Copy> From<RangeInclusive<T>> for Span<T> {
    fn from(range: RangeInclusive<T>) -> Self {
        Self { first: *range.start(), last: *range.end() }
    }
}

impl<T: fmt::Debug + PartialEq> fmt::Debug for Span<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{:?}", self.first) } else { write!(f, "{:?}-{:?}", self.first, self.last) }
    }
}
