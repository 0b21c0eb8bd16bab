//! IPv4 and IPv6, with options, extension headers and fragments.

use super::{checksum, length};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an IPv4 header says beside its addresses, protocol and lengths.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// Time to live.
    pub hops: u8,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset, as they stand in the header.
    pub fragment: u16,
    /// Options; a multiple of four bytes.
    pub options: &'a [u8],
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self { hops: 64, id: 0, fragment: 0, options: &[] }
    }
}

/// A packet of either family; the source's decides, and the destination must be of the same.
pub fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    with_hops(from, to, protocol, 64, payload)
}

/// The same with this time to live or hop limit.
///
/// # Panics
/// The ends are of different families: a mistake in the test.
#[allow(clippy::panic, reason = "a mistake in the test")]
pub fn with_hops(from: IpAddr, to: IpAddr, protocol: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => v4(from, to, protocol, Header { hops, ..Header::default() }, payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => v6(from, to, protocol, hops, payload),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("{from} and {to} are of different families"),
    }
}

/// An IPv4 packet (RFC 791).
pub fn v4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, header: Header<'_>, payload: &[u8]) -> Vec<u8> {
    let size = 20 + header.options.len();
    let [_, words] = length(size / 4).to_be_bytes();
    let mut packet = vec![0x40 | words, 0];
    packet.extend(length(size + payload.len()).to_be_bytes());
    packet.extend(header.id.to_be_bytes());
    packet.extend(header.fragment.to_be_bytes());
    packet.extend([header.hops, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(header.options);
    let sum = checksum(&[&packet]).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend(payload);
    packet
}

/// An IPv6 packet (RFC 8200); `next` is the kind of what the payload begins with.
pub fn v6(from: Ipv6Addr, to: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length(payload.len()).to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// Hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// The routing header.
pub const ROUTING: u8 = 43;
/// The fragment header.
pub const FRAGMENT: u8 = 44;
/// No next header.
pub const NOTHING: u8 = 59;
/// Destination options.
pub const DESTINATION: u8 = 60;

/// An extension header (RFC 8200, section 4) with `rest` behind it, which is of the kind `next`. The body is six bytes and any multiple of eight more.
pub fn extension(next: u8, body: &[u8], rest: &[u8]) -> Vec<u8> {
    let [_, units] = length((body.len() + 2) / 8).to_be_bytes();
    [&[next, units.saturating_sub(1)][..], body, rest].concat()
}

/// Options that say nothing: one PadN of six bytes.
pub const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];

/// A fragment header with what follows; `word` is offset, reserved bits and the more-fragments bit.
pub fn fragment6(next: u8, word: u16, id: u32, rest: &[u8]) -> Vec<u8> {
    [&[next, 0][..], &word.to_be_bytes(), &id.to_be_bytes(), rest].concat()
}

/// A packet in fragments whose payloads are `size` bytes (a multiple of eight) each.
///
/// # Panics
/// As [`with_hops`].
pub fn fragments(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let count = payload.chunks(size).count();
    let pieces = payload.chunks(size).enumerate();
    pieces.map(|(number, piece)| fragment(from, to, protocol, number * size, number + 1 < count, id, piece)).collect()
}

/// One fragment: where it stands in the whole in bytes, and whether more follow.
///
/// # Panics
/// As [`with_hops`].
#[allow(clippy::panic, reason = "a mistake in the test")]
pub fn fragment(from: IpAddr, to: IpAddr, protocol: u8, at: usize, more: bool, id: u16, piece: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let word = length(at / 8) | if more { 0x2000 } else { 0 };
            v4(from, to, protocol, Header { id, fragment: word, ..Header::default() }, piece)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let word = length(at) | u16::from(more);
            v6(from, to, FRAGMENT, 64, &fragment6(protocol, word, id.into(), piece))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("{from} and {to} are of different families"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_header_sums_up_to_nothing() {
        let header = Header { options: &[7, 7, 4, 0, 0, 0, 0, 0], ..Header::default() };
        let packet = v4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), 17, header, &[1, 2, 3]);
        assert_eq!(packet[0], 0x47);
        assert_eq!(packet[2..4], [0, 31]);
        assert_eq!(checksum(&[&packet[..28]]), 0);
    }

    #[test]
    fn extension_headers_say_their_length_in_units_of_eight_bytes() {
        assert_eq!(extension(17, &PADDING, &[9]), [17, 0, 1, 4, 0, 0, 0, 0, 9]);
        assert_eq!(extension(17, &[0; 22], &[])[..2], [17, 2]);
    }

    #[test]
    fn fragments_put_together_are_the_payload() {
        let payload: Vec<u8> = (0..20).collect();
        for (from, to, header) in [("10.0.0.1", "10.0.0.2", 20), ("fd00::1", "fd00::2", 48)] {
            let pieces = fragments(from.parse().unwrap(), to.parse().unwrap(), 17, &payload, 8, 7);
            let bodies: Vec<u8> = pieces.iter().flat_map(|piece| piece[header..].to_vec()).collect();
            assert_eq!(bodies, payload);
        }
        let [first, last] = [(0, true), (8, false)]
            .map(|(at, more)| fragment(Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into(), 17, at, more, 1, &[0; 8])[6..8].to_vec());
        assert_eq!((first, last), (vec![0x20, 0], vec![0, 1]));
    }
}
