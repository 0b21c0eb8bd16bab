//! What the collection tells the controller, before it has a sequence.

use super::cut::CutTold;
use super::error::FlowsError;
use super::key::{FlowKey, FlowVerdict};
use super::locals::LocalEnd;
use bytes::Bytes;
use firebreak_policy::model::{Direction, Family, Generation, NetworkName, Protocol, Transport};
use firebreak_proto::v1;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// 16 random bytes, the same for all records of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub [u8; 16]);

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The node's clock when it was made.
    pub time: SystemTime,
    /// What it tells.
    pub told: Told,
}

/// What a record tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// What became of a flow.
    Flow(FlowTold),
    /// Packets or records that cannot be told one by one.
    Lost {
        /// At which end.
        direction: Direction,
        /// How many packets.
        packets: u64,
        /// Why, for people.
        reason: Cow<'static, str>,
    },
    /// A connection was cut.
    Cut(Box<CutTold>),
}

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Its first packet.
    Opened,
    /// It goes on.
    Updated,
    /// Idle; the totals are final.
    Closed,
}

/// A flow as the node sees it. Totals are since the flow was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowTold {
    /// The flow.
    pub id: FlowId,
    /// Where it is in its life.
    pub phase: Phase,
    /// What it is.
    pub key: FlowKey,
    /// The workload that was judged, if it was known.
    pub local: Option<Arc<LocalEnd>>,
    /// The first packet's source port: known from the log event only.
    pub source_port: Option<u16>,
    /// Packets so far.
    pub packets: u64,
    /// Bytes so far, IP header included.
    pub bytes: u64,
    /// First packet.
    pub first_seen: SystemTime,
    /// Last packet known; late by up to one read interval.
    pub last_seen: SystemTime,
    /// The generation in force when it was opened.
    pub generation: Generation,
    /// For people; mostly empty.
    pub note: Cow<'static, str>,
}

impl Record {
    /// As it goes over the wire.
    pub fn to_proto(&self, sequence: u64) -> v1::FlowRecord {
        let record = match &self.told {
            Told::Flow(flow) => v1::flow_record::Record::Flow(flow.to_proto()),
            Told::Lost { direction, packets, reason } => v1::flow_record::Record::Lost(v1::LostEvent {
                direction: direction_to_proto(*direction).into(),
                packets: *packets,
                reason: reason.clone().into_owned(),
            }),
            Told::Cut(cut) => v1::flow_record::Record::Cut(cut.to_proto()),
        };
        v1::FlowRecord { sequence, time: Some(self.time.into()), record: Some(record) }
    }
}

impl FlowTold {
    /// The source port that is known is one of possibly many; how many there were the kernel does not count (the port is no part of the
    /// set's key), so that `source_ports` is 1 only for a single packet that was logged, and otherwise 0, unknown.
    fn source_ports(&self) -> u32 {
        u32::from(self.source_port.is_some() && self.packets == 1)
    }

    pub(crate) fn to_proto(&self) -> v1::FlowEvent {
        let text = |pick: fn(&LocalEnd) -> &str| self.local.as_deref().map(pick).unwrap_or_default().to_owned();
        v1::FlowEvent {
            flow_id: Bytes::copy_from_slice(&self.id.0),
            phase: match self.phase {
                Phase::Opened => v1::FlowPhase::Opened,
                Phase::Updated => v1::FlowPhase::Updated,
                Phase::Closed => v1::FlowPhase::Closed,
            }
            .into(),
            verdict: match self.key.verdict {
                FlowVerdict::Allow => v1::Verdict::Allow,
                FlowVerdict::Drop => v1::Verdict::Drop,
                FlowVerdict::Reject => v1::Verdict::Reject,
                FlowVerdict::Audit => v1::Verdict::Audit,
            }
            .into(),
            direction: direction_to_proto(self.key.direction).into(),
            interface: text(|end| end.interface.as_str()),
            container: text(|end| end.container.as_str()),
            source: address_to_proto(self.key.source),
            destination: address_to_proto(self.key.destination),
            transport: Some(transport_to_proto(self.key.transport)),
            source_port: self.source_port.map(u32::from),
            source_ports: self.source_ports(),
            packets: self.packets,
            bytes: self.bytes,
            first_seen: Some(self.first_seen.into()),
            last_seen: Some(self.last_seen.into()),
            generation: self.generation.0,
            network: text(|end| end.network.as_str()),
            note: self.note.clone().into_owned(),
        }
    }
}

pub(super) fn direction_to_proto(direction: Direction) -> v1::Direction {
    match direction {
        Direction::Ingress => v1::Direction::Ingress,
        Direction::Egress => v1::Direction::Egress,
    }
}

pub(super) fn address_to_proto(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    }
}

pub(super) fn transport_to_proto(transport: Transport) -> v1::Transport {
    let protocol = u32::from(transport.protocol().0);
    match transport {
        Transport::Port(_, port) => v1::Transport { protocol, port: Some(port.into()), icmp_type: None, icmp_code: None },
        Transport::Icmp { family: _, kind, code } => {
            v1::Transport { protocol, port: None, icmp_type: Some(kind.into()), icmp_code: Some(code.into()) }
        }
        Transport::Other(_) => v1::Transport { protocol, port: None, icmp_type: None, icmp_code: None },
    }
}

/// Reads a record back that this agent wrote down itself.
///
/// # Errors
/// When a field is missing or out of range.
pub(crate) fn from_proto(record: v1::FlowRecord) -> Result<Record, FlowsError> {
    let time = timestamp(record.time)?;
    let told = match record.record.ok_or(malformed("neither flow, loss nor cut"))? {
        v1::flow_record::Record::Flow(flow) => Told::Flow(FlowTold::from_proto(flow)?),
        v1::flow_record::Record::Lost(lost) => {
            Told::Lost { direction: direction_from_proto(lost.direction)?, packets: lost.packets, reason: Cow::Owned(lost.reason) }
        }
        v1::flow_record::Record::Cut(cut) => Told::Cut(Box::new(CutTold::from_proto(cut)?)),
    };
    Ok(Record { time, told })
}

impl FlowTold {
    /// Reads a flow back that this agent wrote down itself.
    pub(crate) fn from_proto(event: v1::FlowEvent) -> Result<Self, FlowsError> {
        let source = address_from_proto(&event.source)?;
        let phase = match v1::FlowPhase::try_from(event.phase) {
            Ok(v1::FlowPhase::Opened) => Phase::Opened,
            Ok(v1::FlowPhase::Updated) => Phase::Updated,
            Ok(v1::FlowPhase::Closed) => Phase::Closed,
            Ok(v1::FlowPhase::Unspecified) | Err(_) => return Err(malformed("phase")),
        };
        let verdict = match v1::Verdict::try_from(event.verdict) {
            Ok(v1::Verdict::Allow) => FlowVerdict::Allow,
            Ok(v1::Verdict::Drop) => FlowVerdict::Drop,
            Ok(v1::Verdict::Reject) => FlowVerdict::Reject,
            Ok(v1::Verdict::Audit) => FlowVerdict::Audit,
            Ok(v1::Verdict::Unspecified) | Err(_) => return Err(malformed("verdict")),
        };
        let local = (!event.container.is_empty()).then(|| {
            Arc::new(LocalEnd {
                container: event.container.as_str().into(),
                interface: event.interface.as_str().into(),
                network: NetworkName::from(event.network.as_str()),
            })
        });
        let source_port = event.source_port.map(u16::try_from).transpose().map_err(|_| malformed("source port"))?;
        Ok(Self {
            id: FlowId(event.flow_id.as_ref().try_into().map_err(|_| malformed("flow id"))?),
            phase,
            key: FlowKey {
                direction: direction_from_proto(event.direction)?,
                verdict,
                source,
                destination: address_from_proto(&event.destination)?,
                transport: transport_from_proto(Family::of(source), event.transport.ok_or(malformed("no transport"))?)?,
            },
            local,
            source_port,
            packets: event.packets,
            bytes: event.bytes,
            first_seen: timestamp(event.first_seen)?,
            last_seen: timestamp(event.last_seen)?,
            generation: Generation(event.generation),
            note: Cow::Owned(event.note),
        })
    }
}

pub(super) fn malformed(reason: &'static str) -> FlowsError {
    FlowsError::Decode { what: "flow record", reason }
}

fn timestamp(time: Option<prost_types::Timestamp>) -> Result<SystemTime, FlowsError> {
    time.and_then(|time| SystemTime::try_from(time).ok()).ok_or(malformed("time"))
}

pub(super) fn direction_from_proto(direction: i32) -> Result<Direction, FlowsError> {
    match v1::Direction::try_from(direction) {
        Ok(v1::Direction::Ingress) => Ok(Direction::Ingress),
        Ok(v1::Direction::Egress) => Ok(Direction::Egress),
        Ok(v1::Direction::Unspecified) | Err(_) => Err(malformed("direction")),
    }
}

pub(super) fn address_from_proto(address: &[u8]) -> Result<IpAddr, FlowsError> {
    if let Ok(octets) = <[u8; 4]>::try_from(address) {
        return Ok(IpAddr::from(octets));
    }
    <[u8; 16]>::try_from(address).map(IpAddr::from).map_err(|_| malformed("address"))
}

pub(super) fn transport_from_proto(family: Family, transport: v1::Transport) -> Result<Transport, FlowsError> {
    let protocol = Protocol(u8::try_from(transport.protocol).map_err(|_| malformed("protocol"))?);
    let byte = |number: u32| u8::try_from(number).map_err(|_| malformed("ICMP type or code"));
    Ok(match (transport.port, transport.icmp_type, transport.icmp_code) {
        (Some(port), None, None) => Transport::Port(protocol, u16::try_from(port).map_err(|_| malformed("port"))?),
        (None, Some(kind), Some(code)) => Transport::Icmp { family, kind: byte(kind)?, code: byte(code)? },
        (None, None, None) => Transport::Other(protocol),
        (_, _, _) => return Err(malformed("transport")),
    })
}
