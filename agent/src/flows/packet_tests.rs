#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use proptest::prelude::*;

fn v4(protocol: u8, words: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let header = usize::from(words) * 4;
    let mut packet = vec![0; header];
    packet[0] = 0x40 | words;
    packet[2..4].copy_from_slice(&u16::try_from(header + body.len()).unwrap().to_be_bytes());
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    packet.extend(body);
    packet
}

fn v6(next: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    packet[6] = next;
    packet[23] = 1;
    packet[39] = 2;
    packet.extend(body);
    packet
}

const PORTS: [u8; 8] = [0x9c, 0x40, 0x15, 0x38, 0, 0, 0, 0];

#[test]
fn a_packet_is_read_as_netfilter_reads_it() {
    let icmp = |family, kind, code| Transport::Icmp { family, kind, code };
    let tcp = Transport::Port(Protocol::TCP, 5432);
    let extension = |next: u8, words: u8| {
        let mut header = vec![0; 8 * (usize::from(words) + 1)];
        header[0] = next;
        header[1] = words;
        header
    };
    let with = |mut head: Vec<u8>, tail: &[u8]| {
        head.extend(tail);
        head
    };
    let table: Vec<(&str, Vec<u8>, Transport, Option<u16>)> = vec![
        ("TCP", v4(6, 5, 0, &PORTS), tcp, Some(40_000)),
        ("UDP with options", v4(17, 15, 0x4000, &PORTS), Transport::Port(Protocol::UDP, 5432), Some(40_000)),
        ("SCTP", v4(132, 5, 0, &PORTS), Transport::Port(Protocol::SCTP, 5432), Some(40_000)),
        ("DCCP", v4(33, 5, 0, &PORTS), Transport::Port(Protocol::DCCP, 5432), Some(40_000)),
        ("UDP-Lite", v4(136, 5, 0, &PORTS), Transport::Port(Protocol::UDPLITE, 5432), Some(40_000)),
        ("first fragment", v4(17, 5, 0x2000, &PORTS), Transport::Port(Protocol::UDP, 5432), Some(40_000)),
        ("later fragment", v4(17, 5, 0x2001, &PORTS), Transport::Other(Protocol::UDP), None),
        ("ICMP", v4(1, 5, 0, &[8, 0]), icmp(Family::V4, 8, 0), None),
        ("ICMPv6 in IPv4", v4(58, 5, 0, &[]), Transport::Other(Protocol::ICMPV6), None),
        ("GRE without a body", v4(47, 5, 0, &[]), Transport::Other(Protocol(47)), None),
        ("TCP over IPv6", v6(6, &PORTS), tcp, Some(40_000)),
        ("ICMPv6", v6(58, &[128, 0]), icmp(Family::V6, 128, 0), None),
        ("ICMP in IPv6", v6(1, &[]), Transport::Other(Protocol::ICMP), None),
        ("no next header", v6(59, &[]), Transport::Other(Protocol(59)), None),
        ("hop-by-hop, routing", v6(0, &with(with(extension(43, 0), &extension(6, 2)), &PORTS)), tcp, Some(40_000)),
        ("destination options", v6(60, &with(extension(6, 0), &PORTS)), tcp, Some(40_000)),
        ("authentication", v6(51, &with(extension(6, 4)[..24].to_vec(), &PORTS)), tcp, Some(40_000)),
        ("IPv6 first fragment", v6(44, &with(vec![6, 0, 0, 1, 0, 0, 0, 9], &PORTS)), tcp, Some(40_000)),
        ("IPv6 later fragment", v6(44, &with(vec![6, 0, 0, 8, 0, 0, 0, 9], &PORTS)), Transport::Other(Protocol::TCP), None),
        ("ESP ends the walk", v6(50, &PORTS), Transport::Other(Protocol(50)), None),
    ];
    for (name, packet, transport, source_port) in table {
        let summary = parse_packet(&packet).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((summary.transport, summary.source_port), (transport, source_port), "{name}");
        assert_eq!(usize::try_from(summary.length).unwrap(), packet.len(), "{name}");
    }
}

#[test]
fn a_packet_that_is_too_short_or_not_ip_is_refused() {
    let table: Vec<(Vec<u8>, PacketError)> = vec![
        (vec![], PacketError::Truncated("IP header")),
        (vec![0x45], PacketError::Truncated("IPv4 header")),
        (vec![0x60; 39], PacketError::Truncated("IPv6 header")),
        (vec![0x50; 60], PacketError::Version(5)),
        ([vec![0x44], vec![0; 30]].concat(), PacketError::HeaderLength(4)),
        (v4(6, 6, 0, &[])[..22].to_vec(), PacketError::Truncated("IPv4 options")),
        (v4(6, 5, 0, &[1, 2, 3]), PacketError::Truncated("ports")),
        (v4(1, 5, 0, &[8]), PacketError::Truncated("ICMP type and code")),
        (v6(0, &[6, 9, 0, 0, 0, 0, 0, 0]), PacketError::Truncated("IPv6 extension headers")),
        (v6(43, &[6]), PacketError::Truncated("IPv6 extension headers")),
    ];
    for (packet, error) in table {
        assert_eq!(parse_packet(&packet), Err(error), "{packet:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in prop_oneof![Just(0x45u8), Just(0x4f), Just(0x60), any::<u8>()]) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        let _ = parse_packet(&bytes);
    }

    #[test]
    fn chains_of_extension_headers_end(chain in proptest::collection::vec(prop_oneof![Just(0u8), Just(43), Just(44), Just(51), Just(60), any::<u8>()], 0..64)) {
        let mut body = Vec::new();
        for next in &chain {
            body.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
        }
        let _ = parse_packet(&v6(0, &body));
    }

    #[test]
    fn what_was_written_is_read_back(source in any::<u16>(), port in any::<u16>(), words in 5u8..=15, protocol in prop_oneof![Just(6u8), Just(17), Just(33), Just(132), Just(136)]) {
        let body = [source.to_be_bytes(), port.to_be_bytes()].concat();
        let summary = parse_packet(&v4(protocol, words, 0, &body)).unwrap();
        prop_assert_eq!(summary.transport, Transport::Port(Protocol(protocol), port));
        prop_assert_eq!(summary.source_port, Some(source));
    }
}
