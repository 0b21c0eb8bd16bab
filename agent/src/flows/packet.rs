//! Reads the head of a logged packet. The bytes come from a container: nothing in them is believed, and no input panics.

use firebreak_policy::model::{Family, Protocol, Transport};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a packet's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketSummary {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// As netfilter sees it (`meta l4proto`, `th dport`).
    pub transport: Transport,
    /// Source port, of protocols with ports.
    pub source_port: Option<u16>,
    /// The whole packet's length by its IP header: what the kernel counts.
    pub length: u32,
}

/// Why a packet cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// It ends before its headers do.
    #[error("packet ends within its {0}")]
    Truncated(&'static str),
    /// Neither IPv4 nor IPv6.
    #[error("IP version {0}")]
    Version(u8),
    /// The IPv4 header length field is under 5 words.
    #[error("IPv4 header of {0} words")]
    HeaderLength(u8),
}

/// Reads an IPv4 or IPv6 packet without link-layer header (RFC 791, RFC 8200). Extension headers are passed as the kernel does
/// (`ipv6_find_hdr`): hop-by-hop, routing, destination options, fragment, authentication. ESP, no-next-header and what is unknown end the walk.
/// A fragment that is not the first has no ports.
///
/// # Errors
/// When the packet is too short for its own headers, or is not IP.
pub fn parse_packet(packet: &[u8]) -> Result<PacketSummary, PacketError> {
    match packet.first().map(|first| first >> 4) {
        None => Err(PacketError::Truncated("IP header")),
        Some(4) => parse_v4(packet),
        Some(6) => parse_v6(packet),
        Some(version) => Err(PacketError::Version(version)),
    }
}

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;

fn parse_v4(packet: &[u8]) -> Result<PacketSummary, PacketError> {
    let header: &[u8; V4_HEADER] = packet.first_chunk().ok_or(PacketError::Truncated("IPv4 header"))?;
    let words = header[0] & 0x0f;
    if words < 5 {
        return Err(PacketError::HeaderLength(words));
    }
    let body = packet.get(usize::from(words) * 4..).ok_or(PacketError::Truncated("IPv4 options"))?;
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let (transport, source_port) = parse_transport(Family::V4, Protocol(header[9]), body, fragment_offset == 0)?;
    Ok(PacketSummary {
        source: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
        destination: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
        transport,
        source_port,
        length: u16::from_be_bytes([header[2], header[3]]).into(),
    })
}

fn parse_v6(packet: &[u8]) -> Result<PacketSummary, PacketError> {
    let (header, body) = packet.split_first_chunk::<V6_HEADER>().ok_or(PacketError::Truncated("IPv6 header"))?;
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let (protocol, body, first_fragment) = skip_extensions(header[6], body)?;
    let (transport, source_port) = parse_transport(Family::V6, Protocol(protocol), body, first_fragment)?;
    let payload = u32::from(u16::from_be_bytes([header[4], header[5]]));
    Ok(PacketSummary { source: address(8), destination: address(24), transport, source_port, length: payload + 40 })
}

/// Passes extension headers: the last next-header value, what follows, and whether that is the beginning of the datagram. Each round takes at
/// least 8 bytes, so that it ends.
fn skip_extensions(mut next: u8, mut body: &[u8]) -> Result<(u8, &[u8], bool), PacketError> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let short = PacketError::Truncated("IPv6 extension headers");
    loop {
        if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
            return Ok((next, body, true));
        }
        let head: &[u8; 8] = body.first_chunk().ok_or(short)?;
        let length = match next {
            FRAGMENT => 8,
            // RFC 4302: in 32-bit words minus 2.
            AUTHENTICATION => (usize::from(head[1]) + 2) * 4,
            // RFC 8200: in 64-bit words, the first not counted.
            _ => (usize::from(head[1]) + 1) * 8,
        };
        let later_fragment = next == FRAGMENT && u16::from_be_bytes([head[2], head[3]]) & 0xfff8 != 0;
        next = head[0];
        body = body.get(length.max(8)..).ok_or(short)?;
        if later_fragment {
            return Ok((next, body, false));
        }
    }
}

fn parse_transport(family: Family, protocol: Protocol, body: &[u8], first_fragment: bool) -> Result<(Transport, Option<u16>), PacketError> {
    if !first_fragment {
        return Ok((Transport::Other(protocol), None));
    }
    if protocol.has_ports() {
        let ports: &[u8; 4] = body.first_chunk().ok_or(PacketError::Truncated("ports"))?;
        let source = u16::from_be_bytes([ports[0], ports[1]]);
        return Ok((Transport::Port(protocol, u16::from_be_bytes([ports[2], ports[3]])), Some(source)));
    }
    // ICMP of the other family is a protocol without ports: the table's rules ask `ip ... icmp type` and `ip6 ... icmpv6 type`.
    if protocol.icmp_family() == Some(family) {
        let [kind, code] = *body.first_chunk().ok_or(PacketError::Truncated("ICMP type and code"))?;
        return Ok((Transport::Icmp { family, kind, code }, None));
    }
    Ok((Transport::Other(protocol), None))
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
