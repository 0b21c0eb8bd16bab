//! A connection that was cut, as it is told.

use super::error::FlowsError;
use super::locals::LocalEnd;
use super::record::{
    FlowId, address_from_proto, address_to_proto, direction_from_proto, direction_to_proto, malformed, transport_from_proto,
    transport_to_proto,
};
use crate::cuts::{Counters, Detail, Entry, Tuple};
use bytes::Bytes;
use firebreak_policy::model::{Direction, Family, Generation, NetworkName, Transport};
use firebreak_proto::v1;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

/// A cut connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutTold {
    /// The cut's own.
    pub id: FlowId,
    /// At which end policy forbids it.
    pub direction: Direction,
    /// The workload at that end, if it is known.
    pub local: Option<Arc<LocalEnd>>,
    /// Who began it.
    pub source: IpAddr,
    /// Who it really led to.
    pub destination: IpAddr,
    /// What the first packet carried there.
    pub transport: Transport,
    /// The source's port, or the identifier of an ICMP exchange.
    pub source_port: Option<u16>,
    /// The ends on the wire before and after this node, where it translates; else nothing.
    pub wire: Option<[WireEnds; 2]>,
    /// What each direction has carried, the source's first; `None` if nobody counted.
    pub counters: Option<[Counters; 2]>,
    /// The generation that forbids it.
    pub generation: Generation,
    /// For people; mostly empty.
    pub note: Cow<'static, str>,
}

/// The ends of a connection as its packets have them somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireEnds {
    /// Of the first packet.
    pub source: IpAddr,
    /// As [`CutTold::source_port`].
    pub source_port: Option<u16>,
    /// Of the first packet.
    pub destination: IpAddr,
    /// For protocols with ports.
    pub destination_port: Option<u16>,
}

impl WireEnds {
    fn new(source: IpAddr, destination: IpAddr, detail: Detail, is_answer: bool) -> Self {
        let (source_port, destination_port) = match detail {
            Detail::Ports(from, to) if is_answer => (Some(to), Some(from)),
            Detail::Ports(from, to) => (Some(from), Some(to)),
            Detail::Icmp { id, .. } => (Some(id), None),
            Detail::None => (None, None),
        };
        Self { source, source_port, destination, destination_port }
    }

    fn to_proto(self) -> v1::WireEnds {
        v1::WireEnds {
            source: address_to_proto(self.source),
            source_port: self.source_port.map(u32::from),
            destination: address_to_proto(self.destination),
            destination_port: self.destination_port.map(u32::from),
        }
    }

    fn from_proto(wire: v1::WireEnds) -> Result<Self, FlowsError> {
        let v1::WireEnds { source, source_port, destination, destination_port } = wire;
        Ok(Self {
            source: address_from_proto(&source)?,
            source_port: port(source_port)?,
            destination: address_from_proto(&destination)?,
            destination_port: port(destination_port)?,
        })
    }
}

impl CutTold {
    /// Of an entry that was cut at one end.
    pub fn new(id: FlowId, entry: &Entry, direction: Direction, local: Option<Arc<LocalEnd>>, generation: Generation) -> Self {
        let Tuple { source, destination, protocol: _, detail } = entry.original;
        let arrived = WireEnds::new(source, destination, detail, false);
        let left = WireEnds::new(entry.reply.destination, entry.reply.source, entry.reply.detail, true);
        Self {
            id,
            direction,
            local,
            source: entry.source(),
            destination: entry.destination(),
            transport: entry.transport(),
            source_port: arrived.source_port.filter(|_| !matches!(entry.transport(), Transport::Other(_))),
            wire: entry.is_translated().then_some([arrived, left]),
            counters: entry.counters,
            generation,
            note: match entry.is_midstream() {
                true => "it is older than its conntrack entry: either end may have begun it".into(),
                false => "".into(),
            },
        }
    }

    pub(super) fn to_proto(&self) -> v1::CutEvent {
        let text = |pick: fn(&LocalEnd) -> &str| self.local.as_deref().map(pick).unwrap_or_default().to_owned();
        let [arrived, left] = self.wire.map_or([None, None], |wire| wire.map(|ends| Some(ends.to_proto())));
        let [sent, received] = self.counters.map_or([None, None], |counters| counters.map(Some));
        v1::CutEvent {
            cut_id: Bytes::copy_from_slice(&self.id.0),
            direction: direction_to_proto(self.direction).into(),
            interface: text(|end| end.interface.as_str()),
            container: text(|end| end.container.as_str()),
            network: text(|end| end.network.as_str()),
            source: address_to_proto(self.source),
            destination: address_to_proto(self.destination),
            transport: Some(transport_to_proto(self.transport)),
            source_port: self.source_port.map(u32::from),
            arrived,
            left,
            packets_sent: sent.map(|counters| counters.packets),
            bytes_sent: sent.map(|counters| counters.bytes),
            packets_received: received.map(|counters| counters.packets),
            bytes_received: received.map(|counters| counters.bytes),
            generation: self.generation.0,
            note: self.note.clone().into_owned(),
        }
    }

    /// Reads a cut back that this agent wrote down itself.
    pub(super) fn from_proto(cut: v1::CutEvent) -> Result<Self, FlowsError> {
        let local = (!cut.container.is_empty()).then(|| {
            Arc::new(LocalEnd {
                container: cut.container.as_str().into(),
                interface: cut.interface.as_str().into(),
                network: NetworkName::from(cut.network.as_str()),
            })
        });
        let source = address_from_proto(&cut.source)?;
        let counted = |packets: Option<u64>, bytes: Option<u64>| Some(Counters { packets: packets?, bytes: bytes? });
        let counters = counted(cut.packets_sent, cut.bytes_sent).zip(counted(cut.packets_received, cut.bytes_received));
        Ok(Self {
            id: FlowId(cut.cut_id.as_ref().try_into().map_err(|_| malformed("cut id"))?),
            direction: direction_from_proto(cut.direction)?,
            local,
            source,
            destination: address_from_proto(&cut.destination)?,
            transport: transport_from_proto(Family::of(source), cut.transport.ok_or(malformed("no transport"))?)?,
            source_port: port(cut.source_port)?,
            wire: match (cut.arrived, cut.left) {
                (Some(arrived), Some(left)) => Some([WireEnds::from_proto(arrived)?, WireEnds::from_proto(left)?]),
                (None, None) => None,
                (Some(_), None) | (None, Some(_)) => return Err(malformed("ends on the wire")),
            },
            counters: counters.map(|(sent, received)| [sent, received]),
            generation: Generation(cut.generation),
            note: Cow::Owned(cut.note),
        })
    }
}

fn port(number: Option<u32>) -> Result<Option<u16>, FlowsError> {
    number.map(u16::try_from).transpose().map_err(|_| malformed("port"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::flows::record::{Record, Told, from_proto};
    use firebreak_policy::model::Protocol;
    use std::time::{Duration, SystemTime};

    fn cut() -> CutTold {
        let [one, other, hidden] = [1, 2, 254].map(|last| IpAddr::from([10, 0, 0, last]));
        let entry = Entry {
            original: Tuple { source: one, destination: hidden, protocol: Protocol::TCP, detail: Detail::Ports(1000, 8080) },
            reply: Tuple { source: other, destination: hidden, protocol: Protocol::TCP, detail: Detail::Ports(80, 2000) },
            id: 1,
            status: 0,
            timeout: 1,
            is_cut: false,
            tcp: None,
            sctp: None,
            counters: Some([Counters { packets: 1, bytes: 2 }, Counters { packets: 3, bytes: 4 }]),
        };
        let local = Arc::new(LocalEnd { container: "c".into(), interface: "veth1".into(), network: NetworkName::default_network() });
        CutTold::new(FlowId([7; 16]), &entry, Direction::Ingress, Some(local), Generation(9))
    }

    #[test]
    fn a_cut_names_the_real_ends_and_those_on_the_wire() {
        let cut = cut();
        let ends = |source: &str, source_port, destination: &str, port| WireEnds {
            source: source.parse().unwrap(),
            source_port: Some(source_port),
            destination: destination.parse().unwrap(),
            destination_port: Some(port),
        };
        assert_eq!((cut.source.to_string(), cut.source_port), ("10.0.0.1".to_owned(), Some(1000)));
        assert_eq!((cut.destination.to_string(), cut.transport), ("10.0.0.2".to_owned(), Transport::Port(Protocol::TCP, 80)));
        assert_eq!(cut.wire, Some([ends("10.0.0.1", 1000, "10.0.0.254", 8080), ends("10.0.0.254", 2000, "10.0.0.2", 80)]));
    }

    #[test]
    fn a_cut_that_was_written_down_reads_back_as_it_was() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        let whole = cut();
        let bare =
            CutTold { local: None, wire: None, counters: None, source_port: None, transport: Transport::Other(Protocol(47)), ..cut() };
        for told in [whole, bare] {
            let record = Record { time, told: Told::Cut(Box::new(told)) };
            assert_eq!(from_proto(record.to_proto(3)).unwrap(), record);
        }
    }
}
