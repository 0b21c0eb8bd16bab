//! Frames as an attacker builds them: every byte is the builder's, checksums are right unless the attack is that they are not.
//!
//! Nothing here checks that a frame makes sense; what comes out is what [`wire::Sender`] puts on the wire.

pub mod internet;
pub mod link;
pub mod transport;
pub mod wire;

use std::sync::atomic::{AtomicU32, Ordering};

/// A MAC address.
pub type Mac = [u8; 6];

/// Eight bytes that are in the frames of one attack and in no others, so that whoever receives them knows which attack came through.
/// Eight: they fit into the smallest fragment and into the padding of an ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Marker([u8; 8]);

/// What every marker begins with.
const MAGIC: [u8; 4] = [0xfb, 0xa7, 0x7a, 0xc4];

static MARKERS: AtomicU32 = AtomicU32::new(1);

impl Marker {
    /// One that nobody has had in this process.
    pub fn unique() -> Self {
        let [a, b, c, d] = MARKERS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let [m, n, o, p] = MAGIC;
        Self([m, n, o, p, a, b, c, d])
    }

    /// As it stands in a frame.
    pub fn bytes(&self) -> [u8; 8] {
        self.0
    }

    /// Those that a frame carries, wherever they stand.
    pub fn all_in(frame: &[u8]) -> impl Iterator<Item = Self> {
        frame.windows(8).filter(|window| window.starts_with(&MAGIC)).filter_map(|window| window.try_into().ok()).map(Self)
    }
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    // Every part but the last is of even length: pseudo headers are.
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}

/// A length as the wire says it.
///
/// # Panics
/// It does not fit: no frame of the tests is longer than an interface's MTU.
#[allow(clippy::expect_used, reason = "no frame of the tests is longer than an interface's MTU")]
pub(crate) fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("shorter than 64 KiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_wherever_it_stands() {
        let (one, other) = (Marker::unique(), Marker::unique());
        assert_ne!(one, other);
        let mut frame = vec![0; 13];
        frame.extend(one.bytes());
        frame.extend([1, 2, 3]);
        frame.extend(other.bytes());
        assert_eq!(Marker::all_in(&frame).collect::<Vec<_>>(), [one, other]);
        assert_eq!(Marker::all_in(&frame[..20]).count(), 0, "cut off");
    }

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 1071, section 3: the sum of these is ddf2.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(checksum(&[&[0x01]]), !0x0100, "an odd byte is the high one");
    }
}
