//! The ctnetlink format (`linux/netfilter/nfnetlink_conntrack.h`), byte by byte. Pure: no I/O.
//!
//! By hand: `netlink-packet-netfilter` 0.4 has conntrack messages without filter, labels, counters, ids and SCTP, and allocates for each
//! attribute, while a hundred thousand entries are read here for one change.

use super::entry::{ASSURED, CONFIRMED, Counters, Detail, Entry, SEEN_REPLY, SctpInfo, TCP_LIBERAL, TCP_MIDSTREAM, TcpInfo, Tuple};
use crate::flows::netlink::{Attributes, be_u32, be_u64};
use firebreak_policy::model::{Family, Protocol};
use std::net::{IpAddr, Ipv4Addr};

/// `NFNL_SUBSYS_CTNETLINK`.
pub(crate) const SUBSYS_CTNETLINK: u8 = 1;

/// `IPCTNL_MSG_CT_*`.
pub(super) const CT_NEW: u8 = 0;
const CT_GET: u8 = 1;
const CT_DELETE: u8 = 2;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;

const NESTED: u16 = 0x8000;

/// `CTA_*`.
mod cta {
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const PROTOINFO: u16 = 4;
    pub(super) const TIMEOUT: u16 = 7;
    pub(super) const COUNTERS_ORIG: u16 = 9;
    pub(super) const COUNTERS_REPLY: u16 = 10;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const LABELS: u16 = 22;
    pub(super) const LABELS_MASK: u16 = 23;
    pub(super) const FILTER: u16 = 25;
}

/// `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;

/// `CTA_PROTO_*`.
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;

/// `CTA_FILTER_ORIG_FLAGS`, `CTA_FILTER_REPLY_FLAGS`, and the flag of the source address in either.
const FILTER_ORIG: u16 = 1;
const FILTER_REPLY: u16 = 2;
const FILTER_SOURCE: u32 = 1;

/// Bytes of a label (`NF_CT_LABELS_MAX_SIZE`).
const LABEL_BYTES: usize = 16;

/// Which entries a dump is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All of both families.
    All,
    /// All of one.
    Family(Family),
    /// Those that this address began.
    From(IpAddr),
    /// Those that really lead to this address.
    To(IpAddr),
}

impl Filter {
    /// Whether an entry is one of them.
    pub fn takes(self, entry: &Entry) -> bool {
        match self {
            Self::All => true,
            Self::Family(family) => Family::of(entry.source()) == family,
            Self::From(address) => entry.source() == address,
            Self::To(address) => entry.destination() == address,
        }
    }

    /// The family that it is about; `None` is both.
    pub fn family(self) -> Option<Family> {
        match self {
            Self::All => None,
            Self::Family(family) => Some(family),
            Self::From(address) | Self::To(address) => Some(Family::of(address)),
        }
    }
}

/// The bit of the label that is ours, as bytes of the kernel's array of longs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label([u8; LABEL_BYTES]);

impl Label {
    /// Of a bit, 0 to 127.
    pub fn new(bit: u8) -> Self {
        let bit = bit % 128;
        let mut bytes = [0; LABEL_BYTES];
        let word = usize::from(bit / 64) * 8;
        bytes[word..word + 8].copy_from_slice(&(1u64 << (bit % 64)).to_ne_bytes());
        Self(bytes)
    }

    fn is_in(self, labels: &[u8]) -> bool {
        self.0.iter().zip(labels).any(|(ours, theirs)| ours & theirs != 0)
    }
}

/// One message, built from its end inwards.
#[derive(Debug, Default)]
pub(crate) struct Request(Vec<u8>);

impl Request {
    fn new(kind: u8, flags: u16, sequence: u32, family: impl Into<Option<Family>>) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend([0; 4]);
        bytes.extend((u16::from(SUBSYS_CTNETLINK) << 8 | u16::from(kind)).to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([family.into().map_or(0, family_number), 0, 0, 0]);
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // Values are numbers, addresses and labels.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn tuple(&mut self, kind: u16, tuple: &Tuple) -> &mut Self {
        self.nest(kind, |request| {
            request.nest(TUPLE_IP, |request| {
                let (source, destination) = address_kinds(Family::of(tuple.source));
                request.attribute(source, &octets(tuple.source)).attribute(destination, &octets(tuple.destination));
            });
            request.nest(TUPLE_PROTO, |request| {
                request.attribute(PROTO_NUM, &[tuple.protocol.0]);
                match tuple.detail {
                    Detail::Ports(from, to) => {
                        request.attribute(PROTO_SRC_PORT, &from.to_be_bytes()).attribute(PROTO_DST_PORT, &to.to_be_bytes());
                    }
                    Detail::Icmp { kind, code, id } => {
                        let [id_kind, type_kind, code_kind] = icmp_kinds(tuple.protocol);
                        request.attribute(id_kind, &id.to_be_bytes()).attribute(type_kind, &[kind]).attribute(code_kind, &[code]);
                    }
                    Detail::None => {}
                }
            });
        })
    }

    fn label(&mut self, label: Label, is_set: bool) -> &mut Self {
        let value = if is_set { label.0 } else { [0; LABEL_BYTES] };
        self.attribute(cta::LABELS, &value).attribute(cta::LABELS_MASK, &label.0)
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Asks for entries.
pub(crate) fn dump(filter: Filter, in_kernel: bool, sequence: u32) -> Vec<u8> {
    let mut request = Request::new(CT_GET, DUMP, sequence, filter.family());
    if in_kernel {
        let (tuple, flags, address) = match filter {
            Filter::All | Filter::Family(_) => return request.finish(),
            Filter::From(address) => (cta::TUPLE_ORIG, [FILTER_SOURCE, 0], address),
            Filter::To(address) => (cta::TUPLE_REPLY, [0, FILTER_SOURCE], address),
        };
        request.nest(tuple, |request| {
            request.nest(TUPLE_IP, |request| {
                request.attribute(address_kinds(Family::of(address)).0, &octets(address));
            });
        });
        request.nest(cta::FILTER, |request| {
            request.attribute(FILTER_ORIG, &flags[0].to_ne_bytes()).attribute(FILTER_REPLY, &flags[1].to_ne_bytes());
        });
    }
    request.finish()
}

/// Asks for one entry.
pub(crate) fn get(original: &Tuple, sequence: u32) -> Vec<u8> {
    let mut request = Request::new(CT_GET, 0, sequence, Family::of(original.source));
    request.tuple(cta::TUPLE_ORIG, original);
    request.finish()
}

/// Sets or clears the label of an entry that is there.
pub(crate) fn set_label(original: &Tuple, label: Label, is_set: bool, sequence: u32) -> Vec<u8> {
    let mut request = Request::new(CT_NEW, ACK, sequence, Family::of(original.source));
    request.tuple(cta::TUPLE_ORIG, original).label(label, is_set);
    request.finish()
}

/// Deletes an entry; one of the same tuple with another id stays.
pub(crate) fn delete(entry: &Entry, sequence: u32) -> Vec<u8> {
    let mut request = Request::new(CT_DELETE, ACK, sequence, Family::of(entry.original.source));
    request.tuple(cta::TUPLE_ORIG, &entry.original).attribute(cta::ID, &entry.id.to_be_bytes());
    request.finish()
}

/// Makes an entry with the label, or labels the one that is there. It lets every packet of the connection find it and does not look at
/// sequence numbers, so that the cut rule sees them.
pub(crate) fn create_labelled(entry: &Entry, label: Label, sequence: u32) -> Vec<u8> {
    let mut request = Request::new(CT_NEW, ACK | CREATE, sequence, Family::of(entry.original.source));
    request.tuple(cta::TUPLE_ORIG, &entry.original).tuple(cta::TUPLE_REPLY, &entry.reply);
    let status = entry.status & (SEEN_REPLY | ASSURED) | CONFIRMED;
    request.attribute(cta::STATUS, &status.to_be_bytes()).attribute(cta::TIMEOUT, &entry.timeout.max(1).to_be_bytes());
    if let Some(tcp) = entry.tcp {
        request.nest(cta::PROTOINFO, |request| {
            request.nest(1, |request| {
                // `struct nf_ct_tcp_flags`: value and mask.
                let flags = if entry.is_midstream() { [TCP_MIDSTREAM; 2] } else { [TCP_LIBERAL; 2] };
                request.attribute(1, &[tcp.state]).attribute(4, &flags).attribute(5, &flags);
            });
        });
    }
    if let Some(sctp) = entry.sctp {
        request.nest(cta::PROTOINFO, |request| {
            request.nest(3, |request| {
                let [original, reply] = sctp.tags.map(u32::to_be_bytes);
                request.attribute(1, &[sctp.state]).attribute(2, &original).attribute(3, &reply);
            });
        });
    }
    request.label(label, true);
    request.finish()
}

/// What a message of a dump holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// An entry of zone 0, the one that our rules see.
    Entry(Entry),
    /// An entry of another zone.
    OtherZone,
    /// Something that has no addresses and ports that we could judge.
    Unreadable,
}

/// Reads the attributes of an entry.
pub(crate) fn decode(attributes: &[u8], label: Label) -> Decoded {
    let (mut original, mut reply) = (None, None);
    let (mut id, mut status, mut timeout, mut is_cut) = (0, 0, 0, false);
    let (mut tcp, mut sctp, mut sent, mut received) = (None, None, None, None);
    for (kind, value) in Attributes(attributes) {
        match kind {
            cta::TUPLE_ORIG => original = tuple(value),
            cta::TUPLE_REPLY => reply = tuple(value),
            cta::ID => id = be_u32(value).unwrap_or_default(),
            cta::STATUS => status = be_u32(value).unwrap_or_default(),
            cta::TIMEOUT => timeout = be_u32(value).unwrap_or_default(),
            cta::LABELS => is_cut = label.is_in(value),
            cta::COUNTERS_ORIG => sent = counters(value),
            cta::COUNTERS_REPLY => received = counters(value),
            cta::PROTOINFO => (tcp, sctp) = proto_info(value),
            cta::ZONE if value != [0, 0] => return Decoded::OtherZone,
            _ => {}
        }
    }
    let (Some(original), Some(reply)) = (original, reply) else { return Decoded::Unreadable };
    let counters = sent.zip(received).map(|(sent, received)| [sent, received]);
    Decoded::Entry(Entry { original, reply, id, status, timeout, is_cut, tcp, sctp, counters })
}

fn tuple(value: &[u8]) -> Option<Tuple> {
    usual_tuple(value).or_else(|| any_tuple(value))
}

/// The tuple of IPv4 with ports as the kernel has always written it: a hundred thousand of them are read at an agent's start. `None` for every
/// other, which [`any_tuple`] reads. (Attributes are in the host's order; where that is another, none is the usual.)
fn usual_tuple(value: &[u8]) -> Option<Tuple> {
    #[rustfmt::skip]
    let &[
        20, 0, 1, 0x80, 8, 0, 1, 0, s0, s1, s2, s3, 8, 0, 2, 0, d0, d1, d2, d3,
        28, 0, 2, 0x80, 5, 0, 1, 0, protocol, _, _, _, 6, 0, 2, 0, f0, f1, _, _, 6, 0, 3, 0, t0, t1, _, _,
    ] = value else {
        return None;
    };
    Some(Tuple {
        source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
        destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
        protocol: Protocol(protocol),
        detail: Detail::Ports(u16::from_be_bytes([f0, f1]), u16::from_be_bytes([t0, t1])),
    })
}

fn any_tuple(value: &[u8]) -> Option<Tuple> {
    let mut ends = (None, None);
    for (kind, value) in Attributes(Attributes(value).find(TUPLE_IP)?) {
        match kind {
            1 | 3 => ends.0 = address(value),
            2 | 4 => ends.1 = address(value),
            _ => {}
        }
    }
    let (mut protocol, mut ports, mut icmp) = (None, (None, None), (None, None, None));
    for (kind, value) in Attributes(Attributes(value).find(TUPLE_PROTO)?) {
        match kind {
            PROTO_NUM => protocol = value.first().copied(),
            PROTO_SRC_PORT => ports.0 = be_u16(value),
            PROTO_DST_PORT => ports.1 = be_u16(value),
            4 | 7 => icmp.0 = be_u16(value),
            5 | 8 => icmp.1 = value.first().copied(),
            6 | 9 => icmp.2 = value.first().copied(),
            _ => {}
        }
    }
    let detail = match (ports, icmp) {
        ((Some(from), Some(to)), _) => Detail::Ports(from, to),
        (_, (Some(id), Some(kind), Some(code))) => Detail::Icmp { kind, code, id },
        _ => Detail::None,
    };
    Some(Tuple { source: ends.0?, destination: ends.1?, protocol: Protocol(protocol?), detail })
}

fn counters(value: &[u8]) -> Option<Counters> {
    let (mut packets, mut bytes) = (None, None);
    for (kind, value) in Attributes(value) {
        match kind {
            1 => packets = be_u64(value),
            2 => bytes = be_u64(value),
            _ => {}
        }
    }
    Some(Counters { packets: packets?, bytes: bytes? })
}

fn proto_info(value: &[u8]) -> (Option<TcpInfo>, Option<SctpInfo>) {
    let (mut tcp, mut sctp) = (None, None);
    for (kind, value) in Attributes(value) {
        match kind {
            1 => tcp = Some(tcp_info(value)),
            3 => sctp = Some(sctp_info(value)),
            _ => {}
        }
    }
    (tcp, sctp)
}

fn tcp_info(value: &[u8]) -> TcpInfo {
    let mut info = TcpInfo { state: 0, flags: [0; 2] };
    for (kind, value) in Attributes(value) {
        match (kind, value) {
            (1, [state, ..]) => info.state = *state,
            (4, [flags, ..]) => info.flags[0] = *flags,
            (5, [flags, ..]) => info.flags[1] = *flags,
            _ => {}
        }
    }
    info
}

fn sctp_info(value: &[u8]) -> SctpInfo {
    let mut info = SctpInfo { state: 0, tags: [0; 2] };
    for (kind, value) in Attributes(value) {
        match (kind, value) {
            (1, [state, ..]) => info.state = *state,
            (2, value) => info.tags[0] = be_u32(value).unwrap_or_default(),
            (3, value) => info.tags[1] = be_u32(value).unwrap_or_default(),
            _ => {}
        }
    }
    info
}

fn address(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn be_u16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

/// `CTA_IP_V4_SRC`, `CTA_IP_V4_DST`, or those of IPv6.
fn address_kinds(family: Family) -> (u16, u16) {
    match family {
        Family::V4 => (1, 2),
        Family::V6 => (3, 4),
    }
}

/// `CTA_PROTO_ICMP_ID`, `_TYPE`, `_CODE`, or those of ICMPv6.
fn icmp_kinds(protocol: Protocol) -> [u16; 3] {
    if protocol == Protocol::ICMPV6 { [7, 8, 9] } else { [4, 5, 6] }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
