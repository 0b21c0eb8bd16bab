//! SCTP without an SCTP socket, which not every kernel has: an INIT chunk (RFC 9260, section 3.3.2) out of a raw socket in one namespace,
//! seen by a raw socket in another and recognised by its initiate tag.

use crate::namespace::Namespace;
use anyhow::Context as _;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The initiate tags that arrived anywhere in this process's labs. A tag is used once, so nobody needs to be told apart.
static ARRIVED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
static TAGS: AtomicU32 = AtomicU32::new(1);

/// The length of the common header.
const HEADER: usize = 12;

/// Raw sockets of one namespace that note what INITs arrive there; they end when this is dropped.
#[derive(Debug)]
pub struct Receivers {
    stop: Arc<AtomicBool>,
}

impl Receivers {
    /// Starts them, for IPv4 and IPv6.
    ///
    /// # Errors
    /// A raw socket cannot be opened (root?).
    pub fn start(inside: &Namespace) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sockets = inside.run(|| [AddressFamily::Inet, AddressFamily::Inet6].map(raw))?;
        for (is_v4, raw) in [true, false].into_iter().zip(sockets) {
            let (raw, stop) = (raw?, Arc::clone(&stop));
            setsockopt(&raw, sockopt::ReceiveTimeout, &TimeVal::new(0, 200_000))?;
            std::thread::spawn(move || receive(&raw, is_v4, &stop));
        }
        Ok(Self { stop })
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn raw(family: AddressFamily) -> anyhow::Result<OwnedFd> {
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp).context("cannot open a raw SCTP socket (root?)")
}

fn receive(raw: &OwnedFd, is_v4: bool, stop: &AtomicBool) {
    let mut buffer = [0_u8; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok(bytes) = recv(raw.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { continue };
        // Raw IPv4 sockets hand over the IP header, IPv6 ones do not.
        let header = if is_v4 { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
        let chunk = buffer.get(header + HEADER..bytes).unwrap_or_default();
        if let (Some(1), Some(tag)) = (chunk.first(), chunk.get(4..8).and_then(|tag| tag.try_into().ok())) {
            ARRIVED.lock().unwrap_or_else(PoisonError::into_inner).insert(u32::from_be_bytes(tag));
        }
    }
}

/// Sends an INIT from the calling thread's namespace and gives its tag; `None` when the kernel refused to send it.
///
/// # Errors
/// A raw socket cannot be opened (root?).
pub fn init(to: IpAddr, source_port: u16, port: u16) -> anyhow::Result<Option<u32>> {
    let raw = raw(if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 })?;
    let tag = TAGS.fetch_add(1, Ordering::Relaxed);
    let mut packet = Vec::with_capacity(HEADER + 20);
    packet.extend(source_port.to_be_bytes());
    packet.extend(port.to_be_bytes());
    // Verification tag 0 (an INIT's), room for the checksum; chunk type 1, no flags, 20 bytes.
    packet.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20]);
    packet.extend(tag.to_be_bytes());
    // Receive window, one stream each way, initial TSN.
    packet.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    let sent = sendto(raw.as_raw_fd(), &packet, &SockaddrStorage::from(SocketAddr::new(to, 0)), MsgFlags::empty());
    Ok(sent.is_ok().then_some(tag))
}

/// Whether the INIT of this tag arrived.
pub fn arrived(tag: u32) -> bool {
    ARRIVED.lock().unwrap_or_else(PoisonError::into_inner).contains(&tag)
}

/// CRC32c, bit by bit (RFC 9260, appendix A): conntrack drops INITs with a wrong one.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(super::crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
