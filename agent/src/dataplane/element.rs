//! Elements as the kernel has them: each field of a key padded to 4 bytes, ranges as two keys, the comment as user data.
//! Pure, and its own inverse: what `decode` makes of `encode` is what went in (property test below).

use super::desired::MacAddress;
use super::names::{Asked, BoundForm, SetRef};
use super::wire::{Attributes, element};
use firebreak_policy::kernel_sets::{Chain, Comment, Element, GroupForm, GroupKey, GroupSet, SetId, Shape, Span};
use firebreak_policy::model::{Direction, Family, Protocol};
use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest comment that nft writes and reads: `NFTNL_UDATA_COMMENT_MAXLEN`.
pub(super) const COMMENT_MAX: usize = 128;

/// One element of one of the sets that the agent writes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Entry {
    /// Of a `known_if` set: an ifindex.
    Interface(u32),
    /// Of a policy set, or (as [`Element::Local`]) of a set of workloads.
    Policy(Element),
    /// Of a guard's set.
    Bound(Bound),
    /// Of a group's set.
    Group(GroupKey),
    /// Of a map of segments: the local address and the chain that it is sent to.
    Segment(IpAddr, Chain),
}

/// What an interface, told by its ifindex, is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Bound {
    /// A MAC address.
    Mac(u32, MacAddress),
    /// MAC and IP address at once.
    Address(u32, MacAddress, IpAddr),
    /// An IP address.
    Ip(u32, IpAddr),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(index) => write!(f, "interface {index}"),
            Self::Bound(Bound::Mac(index, mac)) => write!(f, "interface {index} . {mac}"),
            Self::Bound(Bound::Address(index, mac, address)) => write!(f, "interface {index} . {mac} . {address}"),
            Self::Bound(Bound::Ip(index, address)) => write!(f, "interface {index} . {address}"),
            Self::Group(GroupKey::Address(peer)) => write!(f, "{peer}"),
            Self::Group(GroupKey::Service(peer, protocol, port)) => write!(f, "{peer} . {protocol} . {port}"),
            Self::Group(GroupKey::Block(block)) => write!(f, "{block}"),
            Self::Segment(local, chain) => write!(f, "{local} : jump {}", super::names::segment_chain(chain)),
            Self::Policy(element) => match element {
                Element::Local(local) => write!(f, "{local}"),
                Element::Peer(local, peer) => write!(f, "{local} . {peer}"),
                Element::PeerProtocol(local, peer, protocol) => write!(f, "{local} . {peer} . {protocol}"),
                Element::PeerPort(local, peer, protocol, port) => write!(f, "{local} . {peer} . {protocol} . {port}"),
                Element::PeerIcmp(local, peer, kind, code) => write!(f, "{local} . {peer} . {kind} . {code}"),
                Element::Port(local, protocol, port) => write!(f, "{local} . {protocol} . {port}"),
                Element::Range(local, peers, protocols, ports) => write!(f, "{local} . {peers:?} . {protocols:?} . {ports:?}"),
                Element::IcmpRange(local, peers, kinds, codes) => write!(f, "{local} . {peers:?} . {kinds:?} . {codes:?}"),
            },
        }
    }
}

/// Why an element does not belong into a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misfit {
    /// The set holds elements of another form.
    #[error("the set holds elements of another form")]
    Shape,
    /// An address is not of the set's family.
    #[error("an address is not of the set's family")]
    Family,
    /// A range ends before it begins.
    #[error("a range ends before it begins")]
    Backwards,
    /// Bytes that are no key of this set.
    #[error("{0} bytes are no key of this set")]
    Length(usize),
    /// Padding that is not zero: we never write that.
    #[error("padding is not zero")]
    Padding,
    /// A key with an end where the set holds single values, or one where the local end is a range.
    #[error("a range where a single value belongs")]
    Unexpected,
}

/// A key and, for ranges, the key of the last value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) first: Vec<u8>,
    pub(super) last: Vec<u8>,
}

impl Key {
    fn clear(&mut self) {
        self.first.clear();
        self.last.clear();
    }
}

/// Encodes an element into `key`, whose buffers are used again. An empty `last` is a single value.
pub(super) fn encode(set: SetRef, entry: &Entry, key: &mut Key) -> Result<(), Misfit> {
    key.clear();
    match (set, entry) {
        (SetRef::KnownInterfaces(_) | SetRef::Bound(_, BoundForm::Guarded), Entry::Interface(index)) => {
            // iface_index is in host order (nft's datatype says so).
            key.first.extend_from_slice(&index.to_ne_bytes());
            Ok(())
        }
        (SetRef::Workloads(family), Entry::Policy(Element::Local(address))) => put_address(&mut key.first, family, *address),
        (SetRef::Policy(id), Entry::Policy(element)) => encode_policy(id, element, key),
        (SetRef::Bound(_, form), Entry::Bound(bound)) => encode_bound(form, *bound, &mut key.first),
        (SetRef::Segments(asked, direction, family), Entry::Segment(local, chain)) => {
            if (asked, direction, family) != (Asked::of(chain), chain.direction, chain.family) {
                return Err(Misfit::Shape);
            }
            put_address(&mut key.first, family, *local)
        }
        (SetRef::Group(set), Entry::Group(group)) => encode_group(set, group, key),
        (
            SetRef::KnownInterfaces(_)
            | SetRef::Workloads(_)
            | SetRef::Policy(_)
            | SetRef::Bound(..)
            | SetRef::Segments(..)
            | SetRef::Group(_),
            Entry::Interface(_) | Entry::Policy(_) | Entry::Bound(_) | Entry::Group(_) | Entry::Segment(..),
        ) => Err(Misfit::Shape),
    }
}

fn encode_bound(form: BoundForm, bound: Bound, bytes: &mut Vec<u8>) -> Result<(), Misfit> {
    let (Bound::Mac(index, _) | Bound::Address(index, _, _) | Bound::Ip(index, _)) = bound;
    bytes.extend_from_slice(&index.to_ne_bytes());
    match (form, bound) {
        (BoundForm::Mac | BoundForm::Chaddr, Bound::Mac(_, mac)) => put_mac(bytes, mac),
        (BoundForm::Address(family), Bound::Address(_, mac, address)) => {
            put_mac(bytes, mac);
            put_address(bytes, family, address)?;
        }
        (BoundForm::Ip(family), Bound::Ip(_, address)) => put_address(bytes, family, address)?,
        (BoundForm::Quoted4, Bound::Ip(_, address)) => put_address(bytes, Family::V4, address)?,
        (BoundForm::Target6, Bound::Ip(_, address)) => put_address(bytes, Family::V6, address)?,
        (
            BoundForm::Guarded
            | BoundForm::Mac
            | BoundForm::Chaddr
            | BoundForm::Address(_)
            | BoundForm::Ip(_)
            | BoundForm::Quoted4
            | BoundForm::Target6,
            Bound::Mac(..) | Bound::Address(..) | Bound::Ip(..),
        ) => return Err(Misfit::Shape),
    }
    Ok(())
}

fn put_mac(bytes: &mut Vec<u8>, mac: MacAddress) {
    bytes.extend_from_slice(&mac.0);
    bytes.extend_from_slice(&[0, 0]);
}

fn encode_policy(id: SetId, element: &Element, key: &mut Key) -> Result<(), Misfit> {
    let family = id.family;
    let first = &mut key.first;
    match (id.shape, element) {
        (Shape::Isolated | Shape::HostJudged, Element::Local(local)) => put_address(first, family, *local),
        (Shape::Peer, Element::Peer(local, peer)) => {
            put_address(first, family, *local)?;
            put_address(first, family, *peer)
        }
        (Shape::PeerProtocol, Element::PeerProtocol(local, peer, protocol)) => {
            put_address(first, family, *local)?;
            put_address(first, family, *peer)?;
            put_byte(first, protocol.0);
            Ok(())
        }
        (Shape::PeerPort | Shape::PublishedAllow, Element::PeerPort(local, peer, protocol, port)) => {
            put_address(first, family, *local)?;
            put_address(first, family, *peer)?;
            put_byte(first, protocol.0);
            put_port(first, *port);
            Ok(())
        }
        (Shape::PeerIcmp, Element::PeerIcmp(local, peer, kind, code)) => {
            put_address(first, family, *local)?;
            put_address(first, family, *peer)?;
            put_byte(first, *kind);
            put_byte(first, *code);
            Ok(())
        }
        (Shape::Port | Shape::Published, Element::Port(local, protocol, port)) => {
            put_address(first, family, *local)?;
            put_byte(first, protocol.0);
            put_port(first, *port);
            Ok(())
        }
        (Shape::Range | Shape::Reject, Element::Range(local, peers, protocols, ports)) => {
            forwards(peers)?;
            forwards(protocols)?;
            forwards(ports)?;
            for (bytes, peer, protocol, port) in
                [(&mut key.first, peers.first, protocols.first, ports.first), (&mut key.last, peers.last, protocols.last, ports.last)]
            {
                put_address(bytes, family, *local)?;
                put_address(bytes, family, peer)?;
                put_byte(bytes, protocol);
                put_port(bytes, port);
            }
            Ok(())
        }
        (Shape::IcmpRange | Shape::RejectIcmp, Element::IcmpRange(local, peers, kinds, codes)) => {
            forwards(peers)?;
            forwards(kinds)?;
            forwards(codes)?;
            for (bytes, peer, kind, code) in
                [(&mut key.first, peers.first, kinds.first, codes.first), (&mut key.last, peers.last, kinds.last, codes.last)]
            {
                put_address(bytes, family, *local)?;
                put_address(bytes, family, peer)?;
                put_byte(bytes, kind);
                put_byte(bytes, code);
            }
            Ok(())
        }
        (
            Shape::Isolated
            | Shape::HostJudged
            | Shape::PeerPort
            | Shape::Peer
            | Shape::PeerProtocol
            | Shape::Port
            | Shape::Range
            | Shape::PeerIcmp
            | Shape::IcmpRange
            | Shape::Published
            | Shape::PublishedAllow
            | Shape::Reject
            | Shape::RejectIcmp,
            _,
        ) => Err(Misfit::Shape),
    }
}

/// A block has two keys, its first address and the first behind it: one without an end reaches to the end of the addresses. In a set
/// of one field each is an element of its own.
fn encode_group(set: GroupSet, group: &GroupKey, key: &mut Key) -> Result<(), Misfit> {
    match (set.form, group) {
        (GroupForm::Addresses, GroupKey::Address(peer)) => put_address(&mut key.first, set.family, *peer),
        (GroupForm::Services, GroupKey::Service(peer, protocol, port)) => {
            put_address(&mut key.first, set.family, *peer)?;
            put_byte(&mut key.first, protocol.0);
            put_port(&mut key.first, *port);
            Ok(())
        }
        (GroupForm::Blocks, GroupKey::Block(block)) => {
            put_address(&mut key.first, set.family, block.network())?;
            match after(block.broadcast()) {
                Some(after) => put_address(&mut key.last, set.family, after),
                None => Ok(()),
            }
        }
        (GroupForm::Addresses | GroupForm::Services | GroupForm::Blocks, _) => Err(Misfit::Shape),
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// Decodes an element of a group's set; of a block, `last` is the key of the first address behind it.
pub(super) fn decode_group(set: GroupSet, first: &[u8], last: Option<&[u8]>) -> Result<GroupKey, Misfit> {
    let mut fields = Fields { family: set.family, rest: first };
    let key = match set.form {
        GroupForm::Addresses => {
            single(last)?;
            GroupKey::Address(fields.address()?)
        }
        GroupForm::Services => {
            single(last)?;
            GroupKey::Service(fields.address()?, Protocol(fields.byte()?), fields.port()?)
        }
        GroupForm::Blocks => {
            let start = fields.address()?;
            let end = match last {
                Some(last) => before(Fields { family: set.family, rest: last }.address()?).ok_or(Misfit::Backwards)?,
                None => match set.family {
                    Family::V4 => Ipv4Addr::BROADCAST.into(),
                    Family::V6 => Ipv6Addr::from_bits(u128::MAX).into(),
                },
            };
            // We write blocks only, so that anything else is not ours.
            GroupKey::block_of(start, end).ok_or(Misfit::Unexpected)?
        }
    };
    fields.end()?;
    Ok(key)
}

fn forwards<T: PartialOrd>(span: &Span<T>) -> Result<(), Misfit> {
    if span.first <= span.last { Ok(()) } else { Err(Misfit::Backwards) }
}

fn put_address(bytes: &mut Vec<u8>, family: Family, address: IpAddr) -> Result<(), Misfit> {
    match (family, address) {
        (Family::V4, IpAddr::V4(address)) => bytes.extend_from_slice(&address.octets()),
        (Family::V6, IpAddr::V6(address)) => bytes.extend_from_slice(&address.octets()),
        (Family::V4, IpAddr::V6(_)) | (Family::V6, IpAddr::V4(_)) => return Err(Misfit::Family),
    }
    Ok(())
}

fn put_byte(bytes: &mut Vec<u8>, value: u8) {
    bytes.extend_from_slice(&[value, 0, 0, 0]);
}

fn put_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
}

/// Decodes what the kernel lists; `last` is `None` for a single value.
pub(super) fn decode(set: SetRef, first: &[u8], last: Option<&[u8]>) -> Result<Entry, Misfit> {
    match set {
        SetRef::KnownInterfaces(_) | SetRef::Bound(_, BoundForm::Guarded) => {
            single(last)?;
            let bytes: [u8; 4] = first.try_into().map_err(|_| Misfit::Length(first.len()))?;
            Ok(Entry::Interface(u32::from_ne_bytes(bytes)))
        }
        SetRef::Workloads(family) => {
            single(last)?;
            let mut fields = Fields { family, rest: first };
            let address = fields.address()?;
            fields.end()?;
            Ok(Entry::Policy(Element::Local(address)))
        }
        SetRef::Policy(id) => decode_policy(id, first, last).map(Entry::Policy),
        SetRef::Bound(_, form) => {
            single(last)?;
            decode_bound(form, first).map(Entry::Bound)
        }
        SetRef::Group(set) => decode_group(set, first, last).map(Entry::Group),
        // The chain stands beside the key: `decode_segment`.
        SetRef::Segments(..) => Err(Misfit::Shape),
    }
}

fn decode_bound(form: BoundForm, key: &[u8]) -> Result<Bound, Misfit> {
    let family = match form {
        BoundForm::Address(family) | BoundForm::Ip(family) => family,
        BoundForm::Target6 => Family::V6,
        BoundForm::Guarded | BoundForm::Mac | BoundForm::Chaddr | BoundForm::Quoted4 => Family::V4,
    };
    let mut fields = Fields { family, rest: key };
    let index = u32::from_ne_bytes(fields.take::<4>()?);
    let bound = match form {
        BoundForm::Mac | BoundForm::Chaddr => Bound::Mac(index, fields.mac()?),
        BoundForm::Address(_) => Bound::Address(index, fields.mac()?, fields.address()?),
        BoundForm::Ip(_) | BoundForm::Quoted4 | BoundForm::Target6 => Bound::Ip(index, fields.address()?),
        BoundForm::Guarded => return Err(Misfit::Shape),
    };
    fields.end()?;
    Ok(bound)
}

/// Decodes an element of a map of segments.
pub(super) fn decode_segment(asked: Asked, direction: Direction, family: Family, key: &[u8], chain: Option<&str>) -> Result<Entry, Misfit> {
    let mut fields = Fields { family, rest: key };
    let local = fields.address()?;
    fields.end()?;
    let chain = chain.and_then(super::names::parse_segment_chain).ok_or(Misfit::Unexpected)?;
    if (Asked::of(&chain), chain.direction, chain.family) != (asked, direction, family) {
        return Err(Misfit::Unexpected);
    }
    Ok(Entry::Segment(local, chain))
}

fn decode_policy(id: SetId, first: &[u8], last: Option<&[u8]>) -> Result<Element, Misfit> {
    let mut fields = Fields { family: id.family, rest: first };
    // Where there is no end, the range is of one.
    let mut ends = Fields { family: id.family, rest: last.unwrap_or(first) };
    let element = match id.shape {
        Shape::Isolated | Shape::HostJudged => Element::Local(fields.address()?),
        Shape::Peer => Element::Peer(fields.address()?, fields.address()?),
        Shape::PeerProtocol => Element::PeerProtocol(fields.address()?, fields.address()?, Protocol(fields.byte()?)),
        Shape::PeerPort | Shape::PublishedAllow => {
            Element::PeerPort(fields.address()?, fields.address()?, Protocol(fields.byte()?), fields.port()?)
        }
        Shape::PeerIcmp => Element::PeerIcmp(fields.address()?, fields.address()?, fields.byte()?, fields.byte()?),
        Shape::Port | Shape::Published => Element::Port(fields.address()?, Protocol(fields.byte()?), fields.port()?),
        Shape::Range | Shape::IcmpRange | Shape::Reject | Shape::RejectIcmp => {
            let local = fields.address()?;
            if ends.address()? != local {
                return Err(Misfit::Unexpected);
            }
            let peers = Span { first: fields.address()?, last: ends.address()? };
            let bytes = Span { first: fields.byte()?, last: ends.byte()? };
            let element = if matches!(id.shape, Shape::Range | Shape::Reject) {
                Element::Range(local, peers, bytes, Span { first: fields.port()?, last: ends.port()? })
            } else {
                Element::IcmpRange(local, peers, bytes, Span { first: fields.byte()?, last: ends.byte()? })
            };
            ends.end()?;
            fields.end()?;
            return Ok(element);
        }
    };
    single(last)?;
    fields.end()?;
    Ok(element)
}

fn single(last: Option<&[u8]>) -> Result<(), Misfit> {
    if last.is_none() { Ok(()) } else { Err(Misfit::Unexpected) }
}

/// The fields of a key, read from the front.
#[derive(Debug)]
struct Fields<'a> {
    family: Family,
    rest: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Misfit> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Misfit::Length(self.rest.len()))?;
        self.rest = rest;
        Ok(*head)
    }

    fn address(&mut self) -> Result<IpAddr, Misfit> {
        Ok(match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(self.take::<4>()?)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(self.take::<16>()?)),
        })
    }

    fn mac(&mut self) -> Result<MacAddress, Misfit> {
        let [a, b, c, d, e, f, 0, 0] = self.take::<8>()? else { return Err(Misfit::Padding) };
        Ok(MacAddress([a, b, c, d, e, f]))
    }

    fn byte(&mut self) -> Result<u8, Misfit> {
        let [value, 0, 0, 0] = self.take::<4>()? else { return Err(Misfit::Padding) };
        Ok(value)
    }

    fn port(&mut self) -> Result<u16, Misfit> {
        let [high, low, 0, 0] = self.take::<4>()? else { return Err(Misfit::Padding) };
        Ok(u16::from_be_bytes([high, low]))
    }

    fn end(&self) -> Result<(), Misfit> {
        if self.rest.is_empty() { Ok(()) } else { Err(Misfit::Length(self.rest.len())) }
    }
}

/// A comment as the kernel keeps it: what nft can print and read again. Quotes and control characters are replaced, what is
/// longer than [`COMMENT_MAX`] bytes is cut.
pub(super) fn tidy(comment: &str) -> Cow<'_, str> {
    let printable = |c: char| !c.is_control() && c != '"' && c != '\\';
    if comment.len() <= COMMENT_MAX && comment.chars().all(printable) {
        return Cow::Borrowed(comment);
    }
    let mut tidied = String::with_capacity(COMMENT_MAX);
    for c in comment.chars() {
        let c = match c {
            '"' | '\\' => '\'',
            c if c.is_control() => ' ',
            c => c,
        };
        if tidied.len() + c.len_utf8() > COMMENT_MAX {
            break;
        }
        tidied.push(c);
    }
    Cow::Owned(tidied)
}

/// The user data that carries a comment: type, length, text and a closing zero, as libnftnl has it.
pub(super) fn put_comment(bytes: &mut Vec<u8>, comment: &str) {
    bytes.clear();
    // `tidy` keeps a comment at 128 bytes, so its length fits into the one byte that there is.
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    bytes.extend_from_slice(&[element::USERDATA_COMMENT, length]);
    bytes.extend_from_slice(comment.as_bytes());
    bytes.push(0);
}

/// The comment in user data; empty when there is none.
pub(super) fn read_comment(userdata: &[u8]) -> &str {
    let mut rest = userdata;
    while let [kind, length, tail @ ..] = rest {
        let Some((value, next)) = tail.split_at_checked(usize::from(*length)) else { return "" };
        if *kind == element::USERDATA_COMMENT {
            return std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).unwrap_or_default();
        }
        rest = next;
    }
    ""
}

/// One element of a dump, as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawElement<'a> {
    pub(super) first: &'a [u8],
    /// The end of a range; `None` for a single value.
    pub(super) last: Option<&'a [u8]>,
    pub(super) comment: &'a str,
    /// Whether it is the end of an interval in a set of one field.
    pub(super) ends: bool,
    /// In a map of verdicts, the chain.
    pub(super) chain: Option<&'a str>,
}

/// Reads one element of a dump; `None` when it has no key.
pub(super) fn read_element(attributes: Attributes<'_>) -> Option<RawElement<'_>> {
    let mut first = None;
    let mut last = None;
    let mut comment = "";
    let (mut ends, mut chain) = (false, None);
    for attribute in attributes {
        let value = || attribute.nested().find(super::wire::DATA_VALUE).map(|value| value.value);
        match attribute.kind {
            element::KEY => first = value(),
            element::KEY_END => last = value(),
            element::USERDATA => comment = read_comment(attribute.value),
            element::FLAGS => ends = attribute.as_u32().is_some_and(|flags| flags & element::INTERVAL_END != 0),
            element::DATA => {
                let verdict = attribute.nested().find(super::wire::DATA_VERDICT);
                chain = verdict.and_then(|verdict| verdict.nested().find(super::wire::verdict::CHAIN)).and_then(|it| it.as_text());
            }
            _ => {}
        }
    }
    Some(RawElement { first: first?, last, comment, ends, chain })
}

/// Shares equal texts, so that a thousand elements with one comment hold it once.
#[derive(Debug, Default)]
pub(super) struct Comments(std::collections::HashSet<Comment>);

impl Comments {
    /// The shared one.
    pub(super) fn share(&mut self, text: &str) -> Comment {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let comment: Comment = text.into();
        self.0.insert(comment.clone());
        comment
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::names::{Layer, policy_sets};
    use super::*;
    use proptest::prelude::*;

    fn address(family: Family) -> BoxedStrategy<IpAddr> {
        match family {
            Family::V4 => any::<Ipv4Addr>().prop_map(IpAddr::V4).boxed(),
            Family::V6 => any::<Ipv6Addr>().prop_map(IpAddr::V6).boxed(),
        }
    }

    fn span<T: std::fmt::Debug + Copy + Ord + 'static>(value: impl Strategy<Value = T> + Clone + 'static) -> BoxedStrategy<Span<T>> {
        (value.clone(), value).prop_map(|(a, b)| Span { first: a.min(b), last: a.max(b) }).boxed()
    }

    fn element(id: SetId) -> BoxedStrategy<Element> {
        let one = move || address(id.family);
        let protocol = || any::<u8>().prop_map(Protocol);
        match id.shape {
            Shape::Isolated | Shape::HostJudged => one().prop_map(Element::Local).boxed(),
            Shape::Peer => (one(), one()).prop_map(|(a, b)| Element::Peer(a, b)).boxed(),
            Shape::PeerProtocol => (one(), one(), protocol()).prop_map(|(a, b, c)| Element::PeerProtocol(a, b, c)).boxed(),
            Shape::PeerPort | Shape::PublishedAllow => {
                (one(), one(), protocol(), any::<u16>()).prop_map(|(a, b, c, d)| Element::PeerPort(a, b, c, d)).boxed()
            }
            Shape::PeerIcmp => (one(), one(), any::<u8>(), any::<u8>()).prop_map(|(a, b, c, d)| Element::PeerIcmp(a, b, c, d)).boxed(),
            Shape::Port | Shape::Published => (one(), protocol(), any::<u16>()).prop_map(|(a, b, c)| Element::Port(a, b, c)).boxed(),
            Shape::Range | Shape::Reject => {
                (one(), span(one()), span(any::<u8>()), span(any::<u16>())).prop_map(|(a, b, c, d)| Element::Range(a, b, c, d)).boxed()
            }
            Shape::IcmpRange | Shape::RejectIcmp => {
                (one(), span(one()), span(any::<u8>()), span(any::<u8>())).prop_map(|(a, b, c, d)| Element::IcmpRange(a, b, c, d)).boxed()
            }
        }
    }

    fn entry() -> impl Strategy<Value = (SetRef, Entry)> {
        let policy = proptest::sample::select(policy_sets())
            .prop_flat_map(|id| element(id).prop_map(move |element| (SetRef::Policy(id), Entry::Policy(element))));
        let interface = (proptest::sample::select(Layer::KNOWING.to_vec()), any::<u32>())
            .prop_map(|(layer, index)| (SetRef::KnownInterfaces(layer), Entry::Interface(index)));
        let bound = (proptest::sample::select(bound_sets()), any::<(u32, [u8; 6], Ipv4Addr, Ipv6Addr)>()).prop_map(
            |((layer, form), (index, mac, v4, v6))| {
                let mac = MacAddress(mac);
                let entry = match form {
                    BoundForm::Guarded => Entry::Interface(index),
                    BoundForm::Mac | BoundForm::Chaddr => Entry::Bound(Bound::Mac(index, mac)),
                    BoundForm::Address(Family::V4) => Entry::Bound(Bound::Address(index, mac, v4.into())),
                    BoundForm::Address(Family::V6) => Entry::Bound(Bound::Address(index, mac, v6.into())),
                    BoundForm::Ip(Family::V4) | BoundForm::Quoted4 => Entry::Bound(Bound::Ip(index, v4.into())),
                    BoundForm::Ip(Family::V6) | BoundForm::Target6 => Entry::Bound(Bound::Ip(index, v6.into())),
                };
                (SetRef::Bound(layer, form), entry)
            },
        );
        let workload = proptest::sample::select(vec![Family::V4, Family::V6]).prop_flat_map(|family| {
            address(family).prop_map(move |local| (SetRef::Workloads(family), Entry::Policy(Element::Local(local))))
        });
        prop_oneof![8 => policy, 1 => interface, 1 => workload, 3 => bound]
    }

    fn bound_sets() -> Vec<(Layer, BoundForm)> {
        Layer::ALL.into_iter().flat_map(|layer| BoundForm::of(layer).iter().map(move |form| (layer, *form))).collect()
    }

    proptest! {
        #[test]
        fn decoding_gives_back_what_was_encoded((set, entry) in entry()) {
            let mut key = Key::default();
            encode(set, &entry, &mut key).unwrap();
            prop_assert_eq!(key.first.len() % 4, 0);
            let last = (!key.last.is_empty()).then_some(key.last.as_slice());
            prop_assert_eq!(decode(set, &key.first, last).unwrap(), entry);
        }

        #[test]
        fn decoding_any_bytes_never_panics(set in proptest::sample::select(SetRef::all()), first in proptest::collection::vec(any::<u8>(), 0..90), last in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..90))) {
            if let Ok(entry) = decode(set, &first, last.as_deref()) {
                let _ = entry.to_string();
            }
            let _ = read_comment(&first);
        }

        #[test]
        fn a_tidy_comment_is_short_and_printable_and_survives(text in ".{0,200}") {
            let tidied = tidy(&text).into_owned();
            prop_assert!(tidied.len() <= COMMENT_MAX);
            prop_assert_eq!(tidy(&tidied), tidied.as_str());
            let mut bytes = Vec::new();
            put_comment(&mut bytes, &tidied);
            prop_assert_eq!(read_comment(&bytes), tidied.as_str());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let v6: IpAddr = "fd00::1".parse().unwrap();
        let set = |shape| SetRef::Policy(SetId { direction: Direction::Ingress, family: Family::V4, shape });
        let whole = Span { first: 0u16, last: 65_535 };
        for (set, entry, expected) in [
            (set(Shape::Isolated), Entry::Policy(Element::Local(v6)), Misfit::Family),
            (set(Shape::Peer), Entry::Policy(Element::Peer(v4, v6)), Misfit::Family),
            (set(Shape::Peer), Entry::Policy(Element::Local(v4)), Misfit::Shape),
            (set(Shape::Peer), Entry::Interface(1), Misfit::Shape),
            (SetRef::KnownInterfaces(Layer::Arp), Entry::Policy(Element::Local(v4)), Misfit::Shape),
            (SetRef::Workloads(Family::V6), Entry::Policy(Element::Local(v4)), Misfit::Family),
            (set(Shape::Range), Entry::Policy(Element::Range(v4, Span::single(v4), Span { first: 7, last: 6 }, whole)), Misfit::Backwards),
        ] {
            assert_eq!(encode(set, &entry, &mut Key::default()), Err(expected), "{set} {entry}");
        }
    }
}
