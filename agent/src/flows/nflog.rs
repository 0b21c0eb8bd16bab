//! The NFLOG group: one event per new denied flow, at once.

use super::aggregate::PacketSeen;
use super::error::FlowsError;
use super::key::{FlowKey, decode_prefix};
use super::netlink::{Attributes, Message, Messages, SUBSYS_ULOG, answer, be_u32};
use super::packet::parse_packet;
use super::stats::FlowsStats;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nflog::{ConfigCmd, ConfigFlags, ConfigMode, ConfigNla, config_request};
use netlink_sys::constants::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

const NFULNL_MSG_PACKET: u8 = 0;
const NFULA_IFINDEX_INDEV: u16 = 4;
const NFULA_IFINDEX_OUTDEV: u16 = 5;
const NFULA_IFINDEX_PHYSINDEV: u16 = 6;
const NFULA_IFINDEX_PHYSOUTDEV: u16 = 7;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NFULA_SEQ: u16 = 12;
/// `NFULA_HWHEADER`.
const NFULA_LINK_HEADER: u16 = 16;

/// Enough for an IPv6 header, an authentication header, a few extension headers and the ports.
const COPY_RANGE: u32 = 128;
/// What the kernel allocates for each event (`NFULA_CFG_NLBUFSIZ`): 128 bytes of packet and all attributes fit. The default is a page, of which
/// the receive buffer would hold a fifth as many.
const EVENT_SIZE: u32 = 512;
/// Room for some 25,000 events (the kernel charges each with 1.3 KiB): a burst of 10,000 new flows while the agent does not run.
const RECEIVE_BUFFER: usize = 16 << 20;
const DATAGRAM: usize = 64 * 1024;

/// A socket that is bound to one NFLOG group. Non-blocking; made for `AsyncFd`.
pub struct NflogSocket {
    socket: Socket,
    buffer: Vec<u8>,
    next_sequence: Option<u32>,
}

impl AsRawFd for NflogSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl NflogSocket {
    /// Binds the group in the calling thread's network namespace. Every event is sent at once (queue threshold 1: the kernel otherwise waits for
    /// up to 1 s to fill a page) and carries a sequence.
    ///
    /// # Errors
    /// When another socket has the group, or the kernel has no nfnetlink_log.
    pub fn open(group: u16) -> Result<Self, FlowsError> {
        let failed = |act| move |source| FlowsError::Socket { act, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)
            .map_err(|error| FlowsError::Socket { act: "enlarge the receive buffer", source: error.into() })?;
        let mut nflog = Self { socket, buffer: Vec::with_capacity(DATAGRAM), next_sequence: None };
        // The kernel takes NLBUFSIZ and QTHRESH only of a group that is bound already, hence two requests.
        nflog.configure(group, vec![ConfigCmd::Bind.into()])?;
        let settings = vec![
            ConfigMode::new_packet(COPY_RANGE).into(),
            ConfigNla::NlBufSiz(EVENT_SIZE),
            ConfigNla::QThresh(1),
            ConfigFlags::SEQ.into(),
        ];
        nflog.configure(group, settings)?;
        nflog.socket.set_non_blocking(true).map_err(failed("set non-blocking"))?;
        Ok(nflog)
    }

    /// Sends one request and waits for its answer. Events that come in between are left to the sets' reader.
    fn configure(&mut self, group: u16, settings: Vec<ConfigNla>) -> Result<(), FlowsError> {
        let failed = |source| FlowsError::Bind { group, source };
        let request = config_request(NetfilterProtoFamily::Unspec, group, settings);
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(failed)?;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => continue,
                Err(error) => return Err(failed(error)),
            }
            for message in Messages(&self.buffer) {
                if let Message::Answer(code) = message? {
                    return answer(code).map_err(failed);
                }
            }
        }
    }

    /// Takes up to `limit` datagrams. Returns whether there may be more.
    ///
    /// # Errors
    /// When the socket fails for good. A full buffer is counted and no error.
    pub fn receive(&mut self, limit: usize, events: &mut Vec<PacketSeen>, stats: &FlowsStats) -> Result<bool, FlowsError> {
        self.take(limit, stats, |event| events.extend(event.packet(stats)))
    }

    /// The same, for a group that frames are logged to: hands on each with its prefix.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn receive_frames(&mut self, limit: usize, stats: &FlowsStats, mut each: impl FnMut(LoggedFrame<'_>)) -> Result<bool, FlowsError> {
        self.take(limit, stats, |event| {
            each(LoggedFrame {
                prefix: event.prefix.and_then(|prefix| std::str::from_utf8(prefix).ok()).unwrap_or_default(),
                input: event.input,
                link: event.link.unwrap_or_default(),
                payload: event.payload.unwrap_or_default(),
            });
        })
    }

    fn take(&mut self, limit: usize, stats: &FlowsStats, mut each: impl FnMut(&Event<'_>)) -> Result<bool, FlowsError> {
        for _ in 0..limit {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                    FlowsStats::add(&stats.nflog_overruns, 1);
                    continue;
                }
                Err(source) => return Err(FlowsError::Socket { act: "receive events", source }),
            }
            for message in Messages(&self.buffer) {
                if let Message::Content { subsystem: SUBSYS_ULOG, kind: NFULNL_MSG_PACKET, attributes } = message? {
                    let event = decode_event(Attributes(attributes));
                    if let Some(sequence) = event.sequence {
                        let expected = self.next_sequence.replace(sequence.wrapping_add(1)).unwrap_or(sequence);
                        FlowsStats::add(&stats.nflog_missed, sequence.wrapping_sub(expected).into());
                    }
                    each(&event);
                }
            }
        }
        Ok(true)
    }
}

/// A logged frame.
#[derive(Clone, Copy, Debug)]
pub struct LoggedFrame<'a> {
    /// The rule's prefix.
    pub prefix: &'a str,
    /// The ifindex of the interface that it came in through.
    pub input: Option<u32>,
    /// The link-layer header; empty when the kernel does not tell.
    pub link: &'a [u8],
    /// What follows it, cut off.
    pub payload: &'a [u8],
}

/// The attributes of one event that we use.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event<'a> {
    prefix: Option<&'a [u8]>,
    payload: Option<&'a [u8]>,
    link: Option<&'a [u8]>,
    input: Option<u32>,
    output: Option<u32>,
    sequence: Option<u32>,
}

fn decode_event(attributes: Attributes<'_>) -> Event<'_> {
    let mut event = Event::default();
    for (kind, value) in attributes {
        match kind {
            NFULA_PREFIX => event.prefix = Some(value.strip_suffix(b"\0").unwrap_or(value)),
            NFULA_PAYLOAD => event.payload = Some(value),
            NFULA_LINK_HEADER => event.link = Some(value),
            // A bridge's port tells more than the bridge.
            NFULA_IFINDEX_PHYSINDEV => event.input = be_u32(value).or(event.input),
            NFULA_IFINDEX_PHYSOUTDEV => event.output = be_u32(value).or(event.output),
            NFULA_IFINDEX_INDEV => event.input = event.input.or(be_u32(value)),
            NFULA_IFINDEX_OUTDEV => event.output = event.output.or(be_u32(value)),
            NFULA_SEQ => event.sequence = be_u32(value),
            _ => {}
        }
    }
    event
}

impl Event<'_> {
    fn packet(&self, stats: &FlowsStats) -> Option<PacketSeen> {
        let Some((direction, verdict, is_counted)) = self.prefix.and_then(decode_prefix) else {
            FlowsStats::add(&stats.nflog_foreign, 1);
            return None;
        };
        let Ok(summary) = parse_packet(self.payload.unwrap_or_default()) else {
            FlowsStats::add(&stats.nflog_unreadable, 1);
            return None;
        };
        FlowsStats::add(&stats.nflog_packets, 1);
        Some(PacketSeen {
            key: FlowKey { direction, verdict, source: summary.source, destination: summary.destination, transport: summary.transport },
            source_port: summary.source_port,
            length: summary.length,
            input: self.input,
            output: self.output,
            is_counted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn an_event_gives_prefix_packet_ports_of_the_bridge_and_sequence() {
        for order in [[4u16, 6], [6, 4]] {
            let mut bytes = attribute(NFULA_PREFIX, b"firebreak deny in\0");
            for kind in order {
                bytes.extend(attribute(kind, &u32::from(kind).to_be_bytes()));
            }
            bytes.extend(attribute(NFULA_IFINDEX_OUTDEV, &9u32.to_be_bytes()));
            bytes.extend(attribute(NFULA_SEQ, &7u32.to_be_bytes()));
            bytes.extend(attribute(NFULA_PAYLOAD, b"x"));
            let event = decode_event(Attributes(&bytes));
            let expected = Event {
                prefix: Some(b"firebreak deny in"),
                payload: Some(b"x"),
                link: None,
                input: Some(6),
                output: Some(9),
                sequence: Some(7),
            };
            assert_eq!(event, expected);
        }
    }

    #[test]
    fn events_that_are_not_ours_or_not_readable_are_counted_and_dropped() {
        let stats = FlowsStats::default();
        let foreign = Event { prefix: Some(b"IPT: "), ..Event::default() };
        let broken = Event { prefix: Some(b"firebreak deny out"), payload: Some(&[0x45]), ..Event::default() };
        assert_eq!((foreign.packet(&stats), Event::default().packet(&stats), broken.packet(&stats)), (None, None, None));
        let counted = stats.snapshot();
        assert_eq!((counted.nflog_foreign, counted.nflog_unreadable, counted.nflog_packets), (2, 1, 0));
    }

    proptest! {
        #[test]
        fn no_event_makes_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut whole = attribute(NFULA_PREFIX, b"firebreak deny in\0");
            whole.extend(attribute(NFULA_PAYLOAD, &bytes));
            whole.extend(&bytes);
            let _ = decode_event(Attributes(&whole)).packet(&FlowsStats::default());
        }
    }
}
