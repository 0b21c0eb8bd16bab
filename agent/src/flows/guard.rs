//! Frames that a guard refused, as they are told.

use super::error::FlowsError;
use super::record::{FlowId, Phase, address_from_proto, address_to_proto, malformed, phase_from_proto, phase_to_proto, timestamp};
use crate::dataplane::MacAddress;
use crate::dataplane::names::GuardReason;
use bytes::Bytes;
use firebreak_policy::model::Generation;
use firebreak_proto::v1;
use std::net::IpAddr;
use std::time::SystemTime;

/// Refused frames of one interface that violated one thing. Totals are since they were opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardTold {
    /// The same for all records of one run of frames.
    pub id: FlowId,
    /// Where the run is in its life.
    pub phase: Phase,
    /// What they violated.
    pub reason: GuardReason,
    /// The host-side interface that they came in through; empty when it is gone.
    pub interface: String,
    /// The container id of the workload behind it; empty when it is not known.
    pub container: String,
    /// Their EtherType.
    pub ether_type: u16,
    /// What the first one claimed.
    pub first: FirstFrame,
    /// How many.
    pub frames: u64,
    /// Their bytes, without the Ethernet header.
    pub bytes: u64,
    /// First frame.
    pub first_seen: SystemTime,
    /// Last frame known; late by up to one read interval.
    pub last_seen: SystemTime,
    /// The generation in force when the run was opened.
    pub generation: Generation,
}

/// What the first frame of a run claimed; of what only counters tell, nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirstFrame {
    /// Of the Ethernet header.
    pub source_mac: Option<MacAddress>,
    /// Of the Ethernet header.
    pub destination_mac: Option<MacAddress>,
    /// Of the IP header; of ARP, the sender.
    pub source: Option<IpAddr>,
    /// Of the IP header; of ARP, the target.
    pub destination: Option<IpAddr>,
}

impl GuardTold {
    pub(crate) fn to_proto(&self) -> v1::GuardEvent {
        let Self { id, phase, reason, interface, container, ether_type, first, frames, bytes, first_seen, last_seen, generation } = self;
        let FirstFrame { source_mac, destination_mac, source, destination } = *first;
        let mac = |mac: Option<MacAddress>| mac.map_or_else(Bytes::new, |mac| Bytes::copy_from_slice(&mac.0));
        let address = |address: Option<IpAddr>| address.map_or_else(Bytes::new, address_to_proto);
        v1::GuardEvent {
            guard_id: Bytes::copy_from_slice(&id.0),
            phase: phase_to_proto(*phase).into(),
            reason: reason_to_proto(*reason).into(),
            interface: interface.clone(),
            container: container.clone(),
            ether_type: (*ether_type).into(),
            source_mac: mac(source_mac),
            destination_mac: mac(destination_mac),
            source: address(source),
            destination: address(destination),
            frames: *frames,
            bytes: *bytes,
            first_seen: Some((*first_seen).into()),
            last_seen: Some((*last_seen).into()),
            generation: generation.0,
        }
    }

    /// Reads one back that this agent wrote down itself.
    pub(crate) fn from_proto(event: v1::GuardEvent) -> Result<Self, FlowsError> {
        let v1::GuardEvent {
            guard_id,
            phase,
            reason,
            interface,
            container,
            ether_type,
            source_mac,
            destination_mac,
            source,
            destination,
            frames,
            bytes,
            first_seen,
            last_seen,
            generation,
        } = event;
        let mac = |bytes: &[u8]| match bytes {
            [] => Ok(None),
            bytes => bytes.try_into().map(|bytes| Some(MacAddress(bytes))).map_err(|_| malformed("MAC address")),
        };
        let address = |bytes: &Bytes| if bytes.is_empty() { Ok(None) } else { address_from_proto(bytes).map(Some) };
        Ok(Self {
            id: FlowId(guard_id.as_ref().try_into().map_err(|_| malformed("guard id"))?),
            phase: phase_from_proto(phase)?,
            reason: reason_from_proto(reason)?,
            interface,
            container,
            ether_type: u16::try_from(ether_type).map_err(|_| malformed("EtherType"))?,
            first: FirstFrame {
                source_mac: mac(&source_mac)?,
                destination_mac: mac(&destination_mac)?,
                source: address(&source)?,
                destination: address(&destination)?,
            },
            frames,
            bytes,
            first_seen: timestamp(first_seen)?,
            last_seen: timestamp(last_seen)?,
            generation: Generation(generation),
        })
    }
}

fn reason_to_proto(reason: GuardReason) -> v1::GuardReason {
    match reason {
        GuardReason::Mac => v1::GuardReason::SourceMac,
        GuardReason::Address => v1::GuardReason::SourceAddress,
        GuardReason::Arp => v1::GuardReason::Arp,
        GuardReason::Neighbour => v1::GuardReason::NeighbourDiscovery,
        GuardReason::Router => v1::GuardReason::Router,
        GuardReason::Dhcp => v1::GuardReason::DhcpServer,
        GuardReason::EtherType => v1::GuardReason::EtherType,
        GuardReason::Options => v1::GuardReason::Options,
        GuardReason::Group => v1::GuardReason::Group,
        GuardReason::IcmpError => v1::GuardReason::IcmpError,
    }
}

fn reason_from_proto(reason: i32) -> Result<GuardReason, FlowsError> {
    GuardReason::ALL.into_iter().find(|known| i32::from(reason_to_proto(*known)) == reason).ok_or_else(|| malformed("reason"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_told_is_read_back() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let claims = FirstFrame {
            source_mac: Some(MacAddress([2, 0, 0, 0, 0, 7])),
            destination_mac: Some(MacAddress([0xff; 6])),
            source: Some("10.0.0.9".parse().unwrap()),
            destination: Some("fd00::1".parse().unwrap()),
        };
        for reason in GuardReason::ALL {
            for (phase, first) in [(Phase::Opened, claims), (Phase::Closed, FirstFrame::default())] {
                let told = GuardTold {
                    id: FlowId([7; 16]),
                    phase,
                    reason,
                    interface: "veth7".to_owned(),
                    container: "c".to_owned(),
                    ether_type: 0x8100,
                    first,
                    frames: 3,
                    bytes: 180,
                    first_seen: at,
                    last_seen: at,
                    generation: Generation(4),
                };
                assert_eq!(GuardTold::from_proto(told.to_proto()).unwrap(), told);
            }
        }
        let unspecified = v1::GuardEvent { reason: 0, ..v1::GuardEvent::default() };
        assert!(GuardTold::from_proto(unspecified).is_err());
    }
}
