//! The shared form: a group's members once for all local workloads, and for each segment a short chain of rules that name groups.
//!
//! ```text
//! set group4_app_api_in_shop_1f0c.. { type ipv4_addr; comment "app=api in namespace shop"; elements = { ... } }
//! map in4_segment                   { type ipv4_addr : verdict; elements = { 10.0.0.5 : jump in4_of_shop_db_83aa.. } }
//! chain in4_of_shop_db_83aa.. {
//!     tcp dport 5432 ip saddr @group4_app_api_in_shop_1f0c.. accept comment "shop/db <- app=api in namespace shop by SegmentPolicy shop/db#0"
//! }
//! ```
//! What no rule allows falls through it, to the other sets. A chain never changes: its name holds a hash of its rules, so that a change is another chain and one element of the map. What the chain lets
//! through on egress goes on to the ingress stage (`goto beyond_out4`).

use crate::kernel_sets::{Comment, Span};
use crate::members::Members;
use crate::model::{Direction, Family, Protocol, Transport};
use crate::node_state::Member;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// Groups and chains in the shared form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Each is a set of its own: of the members, those of its family and form. Other members of the group are not in it.
    pub groups: BTreeMap<GroupSet, (Members, Comment)>,
    /// Each with its rules in order; what none of them allows is denied.
    pub chains: BTreeMap<Chain, Vec<SharedRule>>,
    /// By direction and local address: the chain that is asked when no element of the other sets has allowed.
    pub segments: BTreeMap<(Direction, IpAddr), (Chain, Comment)>,
}

/// The set of a group's members of one family and form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupSet {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Which members.
    pub form: GroupForm,
    /// Of the group: readable, and with a hash of its id.
    pub name: ShortName,
}

/// Which of a group's members a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupForm {
    /// `peer`: single addresses; hash.
    Addresses,
    /// `peer . protocol . port`: what a named port resolved to; hash.
    Services,
    /// `peer range`: blocks of more than one address; interval.
    Blocks,
}

/// A chain of one direction and family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    /// Seen from the local workload.
    pub direction: Direction,
    /// IPv4 or IPv6.
    pub family: Family,
    /// Of the segment: readable, and with a hash of id and rules.
    pub name: ShortName,
    /// It is asked of packets that may be answers: source and destination, and their ports, stand for each other.
    pub answers: bool,
}

impl Chain {
    /// The one with the same rules that is asked of answers.
    pub fn of_answers(self) -> Self {
        Self { answers: true, ..self }
    }
}

/// One rule of a chain: who matches it is allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedRule {
    /// Who.
    pub peers: SharedPeers,
    /// What.
    pub service: SharedService,
    /// For people.
    pub comment: Comment,
}

impl SharedRule {
    /// The set that it names.
    pub fn group(&self) -> Option<GroupSet> {
        match self.peers {
            SharedPeers::In(set) => Some(set),
            SharedPeers::Any => None,
        }
    }
}

/// Who a rule of a chain allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SharedPeers {
    /// The addresses of this set; for [`GroupForm::Services`] on the ports that it says.
    In(GroupSet),
    /// Everybody.
    Any,
}

/// What a rule of a chain allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SharedService {
    /// Everything; for a set of [`GroupForm::Services`], what it says.
    Any,
    /// Every port or type of a protocol.
    Protocol(Protocol),
    /// Everything of the protocols from one number to another.
    Protocols(Span<u8>),
    /// Ports of a protocol.
    Ports(Protocol, Span<u16>),
    /// A type of the family's ICMP, and a code where one is given.
    Icmp(u8, Option<u8>),
}

/// The room of a [`ShortName`].
const NAME: usize = 44;
/// How much of it is for people.
const SLUG: usize = 26;

/// A name of at most 44 of the characters that nft takes in a name: some of a title, and a hash that tells titles apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortName([u8; NAME]);

impl ShortName {
    /// From a title for people and the parts that make it what it is.
    pub fn new<'a>(title: &'a str, parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [title].into_iter().chain(parts) {
            // With the length in front no two lists of parts are the same bytes.
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let hash = hasher.finalize().to_hex();
        let mut bytes = [b' '; NAME];
        let slug = title.bytes().map(|byte| if byte.is_ascii_alphanumeric() { byte } else { b'_' }).take(SLUG);
        let name = slug.chain([b'_']).chain(hash.bytes().take(NAME - SLUG - 1));
        bytes.iter_mut().zip(name).for_each(|(to, from)| *to = from);
        Self(bytes)
    }

    /// As the kernel tells it; `None` when it is none of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = text.len() <= NAME && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let mut bytes = [b' '; NAME];
        bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        fits.then_some(Self(bytes))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default().trim_end_matches(' ')
    }
}

impl fmt::Debug for ShortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for GroupSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.form, self.family, self.name)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.direction, self.family, self.name)
    }
}

/// What a set of a group holds of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupKey {
    /// Of [`GroupForm::Addresses`].
    Address(IpAddr),
    /// Of [`GroupForm::Services`].
    Service(IpAddr, Protocol, u16),
    /// Of [`GroupForm::Blocks`].
    Block(IpNet),
}

impl GroupSet {
    /// What this set holds of a member; `None` when that belongs into another.
    pub fn key(&self, member: Member) -> Option<GroupKey> {
        let (form, address, key) = match member {
            Member::Address(address) => (GroupForm::Addresses, address, GroupKey::Address(address)),
            Member::Block(block) => match single(block) {
                Some(address) => (GroupForm::Addresses, address, GroupKey::Address(address)),
                None => (GroupForm::Blocks, block.addr(), GroupKey::Block(block.trunc())),
            },
            Member::Service(address, protocol, port) => (GroupForm::Services, address, GroupKey::Service(address, protocol, port)),
        };
        (form == self.form && Family::of(address) == self.family).then_some(key)
    }

    /// Everything that it holds, in order.
    pub fn keys<'a>(&'a self, members: &'a Members) -> impl Iterator<Item = GroupKey> + 'a {
        members.iter().filter(|member| !doubled(members, member)).filter_map(|member| self.key(*member))
    }

    /// What goes and what comes when its group's members change.
    pub fn changes(&self, actual: &Members, desired: &Members) -> (Vec<GroupKey>, Vec<GroupKey>) {
        let changes = actual.changes_to(desired);
        let of = |list: Vec<Member>, other: &Members| {
            let mut keys: Vec<GroupKey> =
                list.into_iter().filter_map(|member| self.key(member)).filter(|key| !holds(other, *key)).collect();
            keys.sort_unstable();
            keys.dedup();
            keys
        };
        (of(changes.gone, desired), of(changes.come, actual))
    }

    /// Whether a packet from or to this peer finds itself in the set.
    pub fn matches(&self, members: &Members, peer: IpAddr, transport: Transport) -> bool {
        if Family::of(peer) != self.family {
            return false;
        }
        match self.form {
            GroupForm::Addresses => holds(members, GroupKey::Address(peer)),
            GroupForm::Services => match transport {
                Transport::Port(protocol, port) => members.contains(&Member::Service(peer, protocol, port)),
                Transport::Icmp { .. } | Transport::Other(_) => false,
            },
            GroupForm::Blocks => {
                let longest = if peer.is_ipv4() { 31 } else { 127 };
                let block = |length| IpNet::new(peer, length).ok().map(|block| Member::Block(block.trunc()));
                (0..=longest).filter_map(block).any(|block| members.contains(&block))
            }
        }
    }
}

impl GroupKey {
    /// The block from one address to another; `None` when that is no block.
    pub fn block_of(first: IpAddr, last: IpAddr) -> Option<Self> {
        let block = |length| IpNet::new(first, length).ok().filter(|block| block.network() == first && block.broadcast() == last);
        (0..=128).find_map(block).map(Self::Block)
    }

    /// The member that a set with this key holds, as far as the set can tell.
    pub fn member(self) -> Member {
        match self {
            Self::Address(address) => Member::Address(address),
            Self::Service(address, protocol, port) => Member::Service(address, protocol, port),
            Self::Block(block) => Member::Block(block),
        }
    }
}

pub(crate) fn holds(members: &Members, key: GroupKey) -> bool {
    match key {
        GroupKey::Address(address) => members.contains(&Member::Address(address)) || members.contains(&Member::Block(IpNet::from(address))),
        GroupKey::Service(..) | GroupKey::Block(_) => members.contains(&key.member()),
    }
}

/// An address that is a member and a block of one besides is one element; the block is passed over.
fn doubled(members: &Members, member: &Member) -> bool {
    match member {
        Member::Block(block) => single(*block).is_some_and(|address| members.contains(&Member::Address(address))),
        Member::Address(_) | Member::Service(..) => false,
    }
}

/// The only address of a block of one.
pub(crate) fn single(block: IpNet) -> Option<IpAddr> {
    (block.prefix_len() == block.max_prefix_len()).then(|| block.addr())
}

impl SharedService {
    /// Whether the packet is of this service.
    pub fn matches(&self, transport: Transport) -> bool {
        match (self, transport) {
            (Self::Any, _) => true,
            (Self::Protocol(protocol), transport) => *protocol == transport.protocol(),
            (Self::Protocols(protocols), transport) => protocols.contains(transport.protocol().0),
            (Self::Ports(protocol, ports), Transport::Port(of, port)) => *protocol == of && ports.contains(port),
            (Self::Icmp(kind, code), Transport::Icmp { kind: of, code: with, .. }) => *kind == of && code.is_none_or(|code| code == with),
            (Self::Ports(..), Transport::Icmp { .. } | Transport::Other(_))
            | (Self::Icmp(..), Transport::Port(..) | Transport::Other(_)) => false,
        }
    }
}

impl Shared {
    /// Whether the chain of a local address lets the packet through.
    pub fn allows(&self, direction: Direction, local: IpAddr, peer: IpAddr, transport: Transport) -> bool {
        let Some((chain, _)) = self.segments.get(&(direction, local)) else { return false };
        self.chains.get(chain).into_iter().flatten().any(|rule| {
            let who = match rule.peers {
                SharedPeers::Any => true,
                SharedPeers::In(set) => self.groups.get(&set).is_some_and(|(members, _)| set.matches(members, peer, transport)),
            };
            who && rule.service.matches(transport)
        })
    }
}
