//! SCTP without an SCTP socket, which not every kernel has: an INIT chunk (RFC 9260, section 3.3.2) out of a raw socket in one namespace,
//! seen by a raw socket in another and recognised by its initiate tag.

use crate::namespace::Namespace;
use anyhow::Context as _;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::collections::{BTreeMap, BTreeSet};
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
    let tag = TAGS.fetch_add(1, Ordering::Relaxed);
    Ok(send(to, source_port, port, 0, &initiation(INIT, tag))?.then_some(tag))
}

/// Chunk types (RFC 9260, section 3.2).
pub const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// May begin an entry of its own in conntrack: a multi-homed peer's first packet over another path.
pub const HEARTBEAT: u8 = 4;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// The chunk of an INIT or INIT ACK: initiate tag, receive window, one stream each way, initial TSN.
fn initiation(kind: u8, tag: u32) -> Vec<u8> {
    [&[kind, 0, 0, 20], &tag.to_be_bytes()[..], &[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]].concat()
}

/// Sends a packet of one chunk from the calling thread's namespace; `false` when the kernel refused to send it.
///
/// # Errors
/// A raw socket cannot be opened (root?).
pub fn send(to: IpAddr, source_port: u16, port: u16, verification_tag: u32, chunk: &[u8]) -> anyhow::Result<bool> {
    let raw = raw(if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 })?;
    let mut packet = Vec::with_capacity(HEADER + chunk.len());
    packet.extend(source_port.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(verification_tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(chunk);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    Ok(sendto(raw.as_raw_fd(), &packet, &SockaddrStorage::from(SocketAddr::new(to, 0)), MsgFlags::empty()).is_ok())
}

/// An association between two namespaces, as far as conntrack sees one: the four packets of its beginning were sent.
#[derive(Clone, Copy, Debug)]
pub struct Association {
    /// Who began it, and its port.
    pub client: (IpAddr, u16),
    /// The other end, and its port.
    pub server: (IpAddr, u16),
    /// Initiate tags of client and server.
    pub tags: [u32; 2],
}

impl Association {
    /// Begins one (RFC 9260, section 5.1).
    ///
    /// # Errors
    /// A raw socket cannot be opened (root?).
    pub fn begin(client: &Namespace, server: &Namespace, from: (IpAddr, u16), to: (IpAddr, u16)) -> anyhow::Result<Self> {
        let tags = [TAGS.fetch_add(1, Ordering::Relaxed), TAGS.fetch_add(1, Ordering::Relaxed)];
        let this = Self { client: from, server: to, tags };
        let [mine, theirs] = tags;
        this.say(client, true, 0, initiation(INIT, mine))?;
        this.say(server, false, mine, initiation(INIT_ACK, theirs))?;
        this.say(client, true, theirs, vec![COOKIE_ECHO, 0, 0, 4])?;
        this.say(server, false, mine, vec![COOKIE_ACK, 0, 0, 4])?;
        Ok(this)
    }

    /// Sends a chunk of this type with 16 bytes from one of the ends.
    ///
    /// # Errors
    /// A raw socket cannot be opened (root?).
    pub fn send(&self, inside: &Namespace, from_client: bool, kind: u8) -> anyhow::Result<()> {
        let tag = self.tags[usize::from(from_client)];
        self.say(inside, from_client, tag, [vec![kind, 3, 0, 16], vec![0; 12]].concat())
    }

    fn say(&self, inside: &Namespace, from_client: bool, tag: u32, chunk: Vec<u8>) -> anyhow::Result<()> {
        let (from, to) = if from_client { (self.client, self.server) } else { (self.server, self.client) };
        inside.run(move || send(to.0, from.1, to.1, tag, &chunk))?.map(drop)
    }
}

/// Counts the SCTP chunks that arrive in a namespace, by verification tag and type; ends when it is dropped.
#[derive(Debug)]
pub struct Chunks {
    seen: Arc<Mutex<BTreeMap<(u32, u8), usize>>>,
    stop: Arc<AtomicBool>,
}

impl Chunks {
    /// Starts counting IPv4 packets.
    ///
    /// # Errors
    /// A raw socket cannot be opened (root?).
    pub fn listen(inside: &Namespace) -> anyhow::Result<Self> {
        let this = Self { seen: Arc::default(), stop: Arc::default() };
        let raw = inside.run(|| raw(AddressFamily::Inet))??;
        setsockopt(&raw, sockopt::ReceiveTimeout, &TimeVal::new(0, 200_000))?;
        let (seen, stop) = (Arc::clone(&this.seen), Arc::clone(&this.stop));
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 512];
            while !stop.load(Ordering::Relaxed) {
                let Ok(bytes) = recv(raw.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { continue };
                let packet = buffer.get(usize::from(buffer[0] & 0x0f) * 4..bytes).unwrap_or_default();
                if let (Some(tag), Some(kind)) = (packet.get(4..8).and_then(|tag| tag.try_into().ok()), packet.get(HEADER)) {
                    *seen.lock().unwrap_or_else(PoisonError::into_inner).entry((u32::from_be_bytes(tag), *kind)).or_default() += 1;
                }
            }
        });
        Ok(this)
    }

    /// How many of this type arrived with this verification tag.
    pub fn count(&self, tag: u32, kind: u8) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&(tag, kind)).copied().unwrap_or_default()
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
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
