//! What stands around and beside IP on an Ethernet.

use super::{Mac, length};
use std::net::Ipv4Addr;

/// ARP's EtherType.
pub const ARP: u16 = 0x0806;
/// IPv4's EtherType.
pub const IPV4: u16 = 0x0800;
/// IPv6's EtherType.
pub const IPV6: u16 = 0x86dd;
/// An 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// An 802.1ad (QinQ) service tag.
pub const SERVICE_VLAN: u16 = 0x88a8;
/// Everybody.
pub const BROADCAST: Mac = [0xff; 6];

/// An Ethernet II frame, padded to the shortest that there is.
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A frame with an IP packet, of the EtherType that the packet's version says.
pub fn framed(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    ethernet(to, from, if is_v6 { IPV6 } else { IPV4 }, packet)
}

/// The frame with a tag of this kind and number behind its addresses; a second call puts one outside the first.
pub fn tagged(frame: &[u8], kind: u16, number: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &kind.to_be_bytes(), &number.to_be_bytes(), rest].concat()
}

/// An 802.3 frame with an LLC header (IEEE 802.2): a length where Ethernet II has its EtherType.
pub fn llc(to: Mac, from: Mac, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let body = [header, payload].concat();
    ethernet(to, from, length(body.len()), &body)
}

/// PPPoE (RFC 2516) in a session with a PPP packet of this protocol.
pub fn pppoe(session: u16, protocol: u16, packet: &[u8]) -> Vec<u8> {
    let size = length(packet.len() + 2);
    [&[0x11, 0][..], &session.to_be_bytes(), &size.to_be_bytes(), &protocol.to_be_bytes(), packet].concat()
}

/// An ARP packet (RFC 826): operation 1 asks, 2 answers.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        packet.extend(mac);
        packet.extend(address.octets());
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stand_outside_each_other() {
        let frame = ethernet([1; 6], [2; 6], IPV4, &[0x45]);
        assert_eq!(frame.len(), 60);
        let twice = tagged(&tagged(&frame, VLAN, 5), SERVICE_VLAN, 7);
        assert_eq!(twice[..22], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x88, 0xa8, 0, 7, 0x81, 0, 0, 5, 8, 0]);
    }

    #[test]
    fn an_arp_packet_is_28_bytes_long() {
        let packet = arp(1, ([1; 6], Ipv4Addr::new(10, 0, 0, 1)), ([0; 6], Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(packet.len(), 28);
        assert_eq!(packet[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(packet[24..], [10, 0, 0, 2]);
    }
}
