//! What makes two packets one flow, and in which kernel set a flow is counted.

use crate::dataplane::names::{
    DeniedKey, DeniedSet, LOG_AUDIT_IN, LOG_AUDIT_OUT, LOG_DENY_IN, LOG_DENY_OUT, LOG_REJECT_IN, LOG_REJECT_OUT, Outcome,
};
use firebreak_policy::model::{Direction, Family, Protocol, Transport};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What was done to a packet. `Allow` is there from the first day and not made today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowVerdict {
    /// Let through.
    Allow,
    /// Dropped in silence.
    Drop,
    /// Refused with an answer.
    Reject,
    /// Let through; would be denied if the audited policies were enforced.
    Audit,
}

/// Two packets with one key belong to one flow. The source port is no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// At which end it was judged: ingress is the destination's, egress the source's.
    pub direction: Direction,
    /// What became of it.
    pub verdict: FlowVerdict,
    /// Who sent it.
    pub source: IpAddr,
    /// Whom it was for.
    pub destination: IpAddr,
    /// Protocol with destination port, or ICMP type and code.
    pub transport: Transport,
}

impl FlowKey {
    /// The end that was judged.
    pub fn local(&self) -> IpAddr {
        match self.direction {
            Direction::Ingress => self.destination,
            Direction::Egress => self.source,
        }
    }
}

/// How an element of a denied set reads as a flow.
pub trait DecodeKey {
    /// The flow that an element's key is about. `None` when the key has another length than the set's type makes it: each field takes whole
    /// 32-bit words (netfilter registers), padded behind.
    fn decode_key(self, key: &[u8]) -> Option<FlowKey>;
}

impl DecodeKey for DeniedSet {
    fn decode_key(self, key: &[u8]) -> Option<FlowKey> {
        let (source, destination, rest): (IpAddr, IpAddr, &[u8]) = match self.family {
            Family::V4 => {
                let (source, rest) = key.split_first_chunk::<4>()?;
                let (destination, rest) = rest.split_first_chunk::<4>()?;
                (Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination).into(), rest)
            }
            Family::V6 => {
                let (source, rest) = key.split_first_chunk::<16>()?;
                let (destination, rest) = rest.split_first_chunk::<16>()?;
                (Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), rest)
            }
        };
        let transport = match (self.key, rest) {
            (DeniedKey::Port, &[protocol, _, _, _, high, low, _, _]) => {
                Transport::Port(Protocol(protocol), u16::from_be_bytes([high, low]))
            }
            (DeniedKey::Icmp, &[kind, _, _, _, code, _, _, _]) => Transport::Icmp { family: self.family, kind, code },
            (DeniedKey::Protocol, &[protocol, _, _, _]) => Transport::Other(Protocol(protocol)),
            (DeniedKey::Port | DeniedKey::Icmp | DeniedKey::Protocol, _) => return None,
        };
        let verdict = match self.outcome {
            Outcome::Denied => FlowVerdict::Drop,
            Outcome::Rejected => FlowVerdict::Reject,
            Outcome::Audited => FlowVerdict::Audit,
        };
        Some(FlowKey { direction: self.direction, verdict, source, destination, transport })
    }
}

/// What a log prefix ends with when the packet is in no element, but in the overflow counter: its set is full, or the kernel had no memory for an
/// element at this moment (an element's counters are per-CPU memory, of which atomic context gets only what is ready; seen: 54 of 65,535 new
/// flows in half a second, none when the set has no counters).
pub const LOG_UNCOUNTED: &str = " uncounted";

/// What the rules write in front of a logged packet: direction, verdict, whether an element counts it. Anything else in the group is not ours.
pub(crate) fn decode_prefix(prefix: &[u8]) -> Option<(Direction, FlowVerdict, bool)> {
    let (prefix, is_counted) = match prefix.strip_suffix(LOG_UNCOUNTED.as_bytes()) {
        Some(prefix) => (prefix, false),
        None => (prefix, true),
    };
    if prefix == LOG_DENY_IN.as_bytes() {
        Some((Direction::Ingress, FlowVerdict::Drop, is_counted))
    } else if prefix == LOG_DENY_OUT.as_bytes() {
        Some((Direction::Egress, FlowVerdict::Drop, is_counted))
    } else if prefix == LOG_REJECT_IN.as_bytes() {
        Some((Direction::Ingress, FlowVerdict::Reject, is_counted))
    } else if prefix == LOG_REJECT_OUT.as_bytes() {
        Some((Direction::Egress, FlowVerdict::Reject, is_counted))
    } else if prefix == LOG_AUDIT_IN.as_bytes() {
        Some((Direction::Ingress, FlowVerdict::Audit, is_counted))
    } else if prefix == LOG_AUDIT_OUT.as_bytes() {
        Some((Direction::Egress, FlowVerdict::Audit, is_counted))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_decode_by_their_sets_layout_and_wrong_lengths_are_refused() {
        for set in DeniedSet::all() {
            let address = if set.family == Family::V4 { 4 } else { 16 };
            let tail: &[u8] = match set.key {
                DeniedKey::Port => &[6, 0, 0, 0, 0x15, 0x38, 0, 0],
                DeniedKey::Icmp => &[8, 0, 0, 0, 1, 0, 0, 0],
                DeniedKey::Protocol => &[47, 0, 0, 0],
            };
            let expected = match set.key {
                DeniedKey::Port => Transport::Port(Protocol::TCP, 5432),
                DeniedKey::Icmp => Transport::Icmp { family: set.family, kind: 8, code: 1 },
                DeniedKey::Protocol => Transport::Other(Protocol(47)),
            };
            let mut key = vec![10; address];
            key.extend(vec![11; address]);
            key.extend(tail);
            let Some(flow) = set.decode_key(&key) else { unreachable!("{} does not decode", set.name()) };
            assert_eq!((flow.direction, flow.transport), (set.direction, expected));
            for wrong in 0..key.len() {
                assert_eq!(set.decode_key(&key[..wrong]), None, "{} with {wrong} bytes", set.name());
            }
            key.push(0);
            assert_eq!(set.decode_key(&key), None);
        }
    }
}
