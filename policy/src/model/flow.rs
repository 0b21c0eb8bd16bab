//! What is judged: one new connection or message from one end to another.

use super::id::WorkloadId;
use super::policy::{Family, Protocol};
use std::fmt;
use std::net::IpAddr;

/// A first packet and its two real ends (after destination NAT, before source NAT).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who sends it.
    pub from: Endpoint,
    /// Who is to receive it.
    pub to: Endpoint,
    /// What it carries.
    pub transport: Transport,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// A workload of the inventory. Which of its addresses is used follows from the other end's family.
    Workload(WorkloadId),
    /// An address of the default network; when a workload or node holds it there, it is that one.
    Address(IpAddr),
}

/// The part of a packet that services are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A protocol with ports, and the destination port.
    Port(Protocol, u16),
    /// An ICMP or ICMPv6 message.
    Icmp {
        /// ICMP belongs to IPv4, ICMPv6 to IPv6.
        family: Family,
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
    },
    /// A protocol without ports.
    Other(Protocol),
}

impl Transport {
    /// The echo request of a family.
    pub fn ping(family: Family) -> Self {
        match family {
            Family::V4 => Self::Icmp { family, kind: 8, code: 0 },
            Family::V6 => Self::Icmp { family, kind: 128, code: 0 },
        }
    }

    /// The IP protocol number.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Port(protocol, _) | Self::Other(protocol) => protocol,
            Self::Icmp { family: Family::V4, .. } => Protocol::ICMP,
            Self::Icmp { family: Family::V6, .. } => Protocol::ICMPV6,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(f, "{port}/{}", protocol.to_string().to_lowercase()),
            Self::Icmp { family: Family::V4, kind, code } => write!(f, "icmp type {kind} code {code}"),
            Self::Icmp { family: Family::V6, kind, code } => write!(f, "icmpv6 type {kind} code {code}"),
            Self::Other(protocol) => write!(f, "{protocol}"),
        }
    }
}
