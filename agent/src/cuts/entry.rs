//! A conntrack entry, as far as it is judged.

use firebreak_policy::model::{Family, Protocol, Transport};
use std::net::IpAddr;

/// One direction of a connection as its packets have it on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: Protocol,
    /// What tells it from others between the same ends.
    pub detail: Detail,
}

/// What conntrack tells connections of one protocol by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detail {
    /// Source and destination port. GRE has its keys here.
    Ports(u16, u16),
    /// ICMP or ICMPv6.
    Icmp {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
        /// The identifier.
        id: u16,
    },
    /// Nothing.
    None,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As its first packet was, before any translation.
    pub original: Tuple,
    /// As the answers are: from the real destination to the address that the source has after translation.
    pub reply: Tuple,
    /// `CTA_ID`: another entry with the same tuples has another one.
    pub id: u32,
    /// `IPS_*`.
    pub status: u32,
    /// Seconds until it ends if nothing more is sent.
    pub timeout: u32,
    /// Whether it has our label.
    pub is_cut: bool,
    /// TCP's state.
    pub tcp: Option<TcpInfo>,
    /// SCTP's state.
    pub sctp: Option<SctpInfo>,
    /// From the source and from the destination; `None` if nobody counts (`nf_conntrack_acct`).
    pub counters: Option<[Counters; 2]>,
}

/// `CTA_PROTOINFO_TCP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// `TCP_CONNTRACK_*`.
    pub state: u8,
    /// `IP_CT_TCP_FLAG_*` of both directions.
    pub flags: [u8; 2],
}

/// `CTA_PROTOINFO_SCTP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SctpInfo {
    /// `SCTP_CONNTRACK_*`.
    pub state: u8,
    /// The verification tags of both directions.
    pub tags: [u32; 2],
}

/// What one direction has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP header included.
    pub bytes: u64,
}

/// `IPS_SEEN_REPLY`.
pub(super) const SEEN_REPLY: u32 = 1 << 1;
/// `IPS_ASSURED`.
pub(super) const ASSURED: u32 = 1 << 2;
/// `IPS_CONFIRMED`.
pub(super) const CONFIRMED: u32 = 1 << 3;
/// `IPS_SRC_NAT | IPS_DST_NAT`.
const TRANSLATED: u32 = 1 << 4 | 1 << 5;

/// `IP_CT_TCP_FLAG_BE_LIBERAL`: sequence numbers are not looked at.
pub(super) const TCP_LIBERAL: u8 = 0x08;
/// `IP_CT_TCP_FLAG_BE_LIBERAL | IP_CT_TCP_FLAG_SACK_PERM`: in both directions the mark of a connection that was picked up in the middle
/// (`tcp_new` of nf_conntrack_proto_tcp.c). An entry that we make anew has only the first, so that it is not taken for one.
pub(super) const TCP_MIDSTREAM: u8 = 0x0a;
/// `TCP_CONNTRACK_SYN_SENT`, `_LAST_ACK`, `_TIME_WAIT`, `_CLOSE`, `_SYN_SENT2`: not yet a connection, or not any more.
const TCP_NO_CONNECTION: [u8; 5] = [1, 6, 7, 8, 9];

impl Entry {
    /// One that stands for no connection: UDP between the discard ports.
    pub(crate) fn probe(source: IpAddr, destination: IpAddr) -> Self {
        const DISCARD: u16 = 9;
        let tuple = |source, destination| Tuple { source, destination, protocol: Protocol::UDP, detail: Detail::Ports(DISCARD, DISCARD) };
        Self {
            original: tuple(source, destination),
            reply: tuple(destination, source),
            id: 0,
            status: 0,
            timeout: 1,
            is_cut: false,
            tcp: None,
            sctp: None,
            counters: None,
        }
    }

    /// Who began it.
    pub fn source(&self) -> IpAddr {
        self.original.source
    }

    /// Who it really leads to, after destination NAT.
    #[allow(clippy::misnamed_getters, reason = "the answers come from the real destination")]
    pub fn destination(&self) -> IpAddr {
        self.reply.source
    }

    /// What the first packet carried at its real destination.
    pub fn transport(&self) -> Transport {
        match (self.original.detail, self.reply.detail) {
            (Detail::Icmp { kind, code, .. }, _) if self.original.protocol.icmp_family() == Some(Family::of(self.source())) => {
                Transport::Icmp { family: Family::of(self.source()), kind, code }
            }
            (Detail::Ports(..), Detail::Ports(port, _)) if self.original.protocol.has_ports() => {
                Transport::Port(self.original.protocol, port)
            }
            (Detail::Icmp { .. } | Detail::Ports(..) | Detail::None, _) => Transport::Other(self.original.protocol),
        }
    }

    /// The same seen from the other end: what would have been the first packet if the destination had begun it. `None` for what has no
    /// other side (ICMP).
    pub fn reversed_transport(&self) -> Option<Transport> {
        match (self.transport(), self.original.detail) {
            (Transport::Port(protocol, _), Detail::Ports(port, _)) => Some(Transport::Port(protocol, port)),
            (Transport::Other(protocol), _) => Some(Transport::Other(protocol)),
            (Transport::Port(..) | Transport::Icmp { .. }, _) => None,
        }
    }

    /// The source's port, for protocols with ports.
    pub fn source_port(&self) -> Option<u16> {
        match (self.transport(), self.original.detail) {
            (Transport::Port(..), Detail::Ports(port, _)) => Some(port),
            (Transport::Port(..) | Transport::Icmp { .. } | Transport::Other(_), _) => None,
        }
    }

    /// Whether nobody knows who began it: TCP that was picked up in the middle.
    pub fn is_midstream(&self) -> bool {
        self.tcp.is_some_and(|tcp| tcp.flags.iter().all(|flags| flags & TCP_MIDSTREAM == TCP_MIDSTREAM))
    }

    /// Whether it is worth an event: a connection that was in use, and not one that never came about or has ended.
    pub fn is_connection(&self) -> bool {
        self.tcp.is_none_or(|tcp| !TCP_NO_CONNECTION.contains(&tcp.state))
    }

    /// Whether addresses or ports are translated.
    pub fn is_translated(&self) -> bool {
        let Tuple { source, destination, protocol: _, detail } = self.original;
        let same_ports = match (detail, self.reply.detail) {
            (Detail::Ports(from, to), Detail::Ports(answers, to_port)) => (from, to) == (to_port, answers),
            (Detail::Icmp { id, .. }, Detail::Icmp { id: answers, .. }) => id == answers,
            (Detail::None, Detail::None) => true,
            (Detail::Ports(..) | Detail::Icmp { .. } | Detail::None, _) => false,
        };
        (source, destination) != (self.reply.destination, self.reply.source) || !same_ports
    }

    /// Whether it is one that we made anew to carry the label, which does not translate: see [`super::apply`].
    pub fn is_remade(&self) -> bool {
        self.is_cut && self.is_translated() && self.status & TRANSLATED == 0
    }
}
