//! Reads the head of a frame that a guard refused. The bytes come from a container: nothing in them is believed, and no input panics.

use crate::dataplane::MacAddress;
use crate::flows::{FirstFrame, parse_packet};
use std::net::{IpAddr, Ipv4Addr};

/// `ETH_P_ARP`.
const ARP: u16 = 0x0806;

/// The EtherType that the kernel's rule saw, if the link-layer header is there: the outermost.
pub(super) fn ether_type(link: &[u8]) -> Option<u16> {
    let [high, low] = *link.get(12..14)?.first_chunk()?;
    Some(u16::from_be_bytes([high, low]))
}

/// What a frame claims, as far as it can be read.
pub(super) fn read(link: &[u8], payload: &[u8]) -> FirstFrame {
    let mac = |at: usize| link.get(at..at + 6).and_then(|bytes| bytes.try_into().ok()).map(MacAddress);
    let (source, destination) = match ether_type(link) {
        Some(ARP) => arp(payload),
        Some(_) | None => match parse_packet(payload) {
            Ok(packet) => (Some(packet.source), Some(packet.destination)),
            Err(_) => (None, None),
        },
    };
    FirstFrame { source_mac: mac(6), destination_mac: mac(0), source, destination }
}

/// Sender and target of ARP for IPv4 over Ethernet (RFC 826).
fn arp(payload: &[u8]) -> (Option<IpAddr>, Option<IpAddr>) {
    if payload.get(..6) != Some(&[0, 1, 8, 0, 6, 4]) {
        return (None, None);
    }
    let address = |at: usize| payload.get(at..at + 4)?.first_chunk::<4>().map(|octets| IpAddr::V4(Ipv4Addr::from(*octets)));
    (address(14), address(24))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn link(ether_type: u16) -> Vec<u8> {
        [&[0xff; 6][..], &[2, 0, 0, 0, 0, 7], &ether_type.to_be_bytes()].concat()
    }

    #[test]
    fn a_frame_tells_whom_it_claims_to_be_from() {
        let request = [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9][..], &[10, 0, 0, 9], &[0; 6], &[10, 0, 0, 1]].concat();
        let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0];
        packet.extend([10, 0, 0, 9, 10, 0, 0, 3]);
        let ip = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
        for (case, ether_type, payload, source, destination) in [
            ("ARP", 0x0806, request.clone(), ip(9), ip(1)),
            ("ARP that is cut off", 0x0806, request[..20].to_vec(), ip(9), None),
            ("another kind of ARP", 0x0806, vec![0; 28], None, None),
            ("IPv4", 0x0800, packet, ip(9), ip(3)),
            ("a VLAN tag", 0x8100, vec![0, 1, 8, 0], None, None),
        ] {
            let expected = FirstFrame {
                source_mac: Some(MacAddress([2, 0, 0, 0, 0, 7])),
                destination_mac: Some(MacAddress([0xff; 6])),
                source,
                destination,
            };
            assert_eq!(read(&link(ether_type), &payload), expected, "{case}");
        }
        assert_eq!(read(&[], &[]), FirstFrame::default());
        assert_eq!(ether_type(&link(0x86dd)), Some(0x86dd));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(link in proptest::collection::vec(any::<u8>(), 0..20), payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (ether_type(&link), read(&link, &payload));
        }
    }
}
