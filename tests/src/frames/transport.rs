//! What stands inside IP: TCP, UDP, SCTP, ICMP, neighbour discovery, DHCP.

use super::{Mac, checksum, length};
use crate::sctp::crc32c;
use std::net::{IpAddr, Ipv6Addr};

/// Protocol numbers (IANA).
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// SCTP.
pub const SCTP: u8 = 132;
/// ICMP for IPv6.
pub const ICMP6: u8 = 58;

/// TCP flags.
pub const FIN: u8 = 1;
/// SYN.
pub const SYN: u8 = 2;
/// RST.
pub const RST: u8 = 4;
/// PSH.
pub const PSH: u8 = 8;
/// ACK.
pub const ACK: u8 = 16;

/// The ICMP protocol of a family.
pub fn icmp_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { ICMP } else { ICMP6 }
}

/// The pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1).
fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, size: usize) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    [octets(from), octets(to), vec![0, protocol], length(size).to_be_bytes().to_vec()].concat()
}

fn summed(from: IpAddr, to: IpAddr, protocol: u8, mut segment: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = checksum(&[&pseudo(from, to, protocol, segment.len()), &segment]);
    // UDP has no zero checksum: it means that there is none.
    let sum = if protocol == UDP && sum == 0 { 0xffff } else { sum };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// A UDP datagram (RFC 768); ports from, to.
pub fn udp(from: IpAddr, to: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = [ports.0.to_be_bytes(), ports.1.to_be_bytes(), length(8 + payload.len()).to_be_bytes(), [0, 0]].concat();
    datagram.extend(payload);
    summed(from, to, UDP, datagram, 6)
}

/// A TCP segment (RFC 9293); ports from, to; numbers: sequence, acknowledgement.
pub fn tcp(from: IpAddr, to: IpAddr, ports: (u16, u16), flags: u8, numbers: (u32, u32), payload: &[u8]) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend(numbers.0.to_be_bytes());
    segment.extend(numbers.1.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    summed(from, to, TCP, segment, 16)
}

/// An ICMP or ICMPv6 message, by the family: type, code, the four bytes behind the checksum, and the rest.
pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, word: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(word);
    message.extend(body);
    match from {
        IpAddr::V4(_) => {
            let sum = checksum(&[&message]).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
            message
        }
        IpAddr::V6(_) => summed(from, to, ICMP6, message, 2),
    }
}

/// An SCTP packet with one chunk (RFC 9260).
pub fn sctp(ports: (u16, u16), tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut packet = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(chunk);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// A neighbour discovery option (RFC 4861, section 4.6): its kind, and a body of six bytes and any multiple of eight more.
pub fn option(kind: u8, body: &[u8]) -> Vec<u8> {
    let [_, units] = length((body.len() + 2) / 8).to_be_bytes();
    [&[kind, units][..], body].concat()
}

/// A neighbour solicitation's or advertisement's body: the target and options.
pub fn about(target: Ipv6Addr, options: &[Vec<u8>]) -> Vec<u8> {
    [target.octets().to_vec(), options.concat()].concat()
}

/// A DHCP message (RFC 2131): operation 1 is a client's, 2 a server's; `given` is the address that it gives.
pub fn dhcp(operation: u8, client: Mac, given: [u8; 4], kind: u8, server: [u8; 4], more: &[u8]) -> Vec<u8> {
    let mut message = vec![operation, 1, 6, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0x80, 0];
    message.extend([0; 4]);
    message.extend(given);
    message.extend(server);
    message.extend([0; 4]);
    message.extend(client);
    message.extend([0; 10 + 64 + 128]);
    // The cookie; message type, server, router, domain name (whatever the caller says).
    message.extend([99, 130, 83, 99, 53, 1, kind, 54, 4]);
    message.extend(server);
    message.extend([3, 4]);
    message.extend(server);
    message.push(15);
    message.push(length(more.len()).to_be_bytes()[1]);
    message.extend(more);
    message.push(255);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_cover_the_pseudo_header() {
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for (protocol, segment) in [
                (UDP, udp(from, to, (1, 2), b"odd")),
                (TCP, tcp(from, to, (1, 2), SYN, (3, 4), b"even")),
                (ICMP6, icmp(from, to, 128, 0, [0; 4], b"odd")),
            ] {
                if protocol == ICMP6 && from.is_ipv4() {
                    assert_eq!(checksum(&[&segment]), 0);
                } else {
                    assert_eq!(checksum(&[&pseudo(from, to, protocol, segment.len()), &segment]), 0, "{protocol}");
                }
            }
        }
    }

    #[test]
    fn a_dhcp_message_has_its_cookie_where_the_rfc_puts_it() {
        let message = dhcp(2, [2; 6], [10, 0, 0, 1], 2, [10, 0, 0, 2], b"x");
        assert_eq!(message[236..240], [99, 130, 83, 99]);
        assert_eq!(message[16..20], [10, 0, 0, 1]);
        assert_eq!(message[28..34], [2; 6]);
    }
}
