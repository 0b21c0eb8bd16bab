//! Probes: one new connection or message with real sockets, and whether it got through and back.

use crate::namespace::Namespace;
use anyhow::Context as _;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A TCP connection, a message and its echo.
    Tcp(u16),
    /// A UDP message and its echo.
    Udp(u16),
    /// An echo request and its reply.
    Ping,
    /// An SCTP INIT; it has arrived when a [`crate::sctp::Receivers`] over there has seen it.
    Sctp(u16),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "{port}/tcp"),
            Self::Udp(port) => write!(f, "{port}/udp"),
            Self::Ping => f.write_str("ping"),
            Self::Sctp(port) => write!(f, "{port}/sctp"),
        }
    }
}

/// How long a probe waits for its answer. Within one machine an answer takes far below a millisecond; the rest is for a loaded machine.
pub const PATIENCE: Duration = Duration::from_millis(400);

/// Sends one probe from inside the namespace. `Ok(true)` when the answer came.
///
/// # Errors
/// The probe could not be sent for a reason that is not policy: a broken lab, not a verdict.
pub fn probe(from: &Namespace, to: IpAddr, kind: Kind) -> anyhow::Result<bool> {
    from.run(move || send(to, kind, PATIENCE))?
}

/// Sends many probes from inside the namespace, a few at a time, in the order given.
///
/// # Errors
/// As [`probe`].
pub fn probes(from: &Namespace, probes: Vec<(IpAddr, Kind)>) -> anyhow::Result<Vec<bool>> {
    const AT_A_TIME: usize = 32;
    let mut results = Vec::with_capacity(probes.len());
    for some in probes.chunks(AT_A_TIME) {
        let threads: Vec<_> = some
            .iter()
            .map(|(to, kind)| (*to, *kind))
            .map(|(to, kind)| from.spawn(move || send(to, kind, PATIENCE)))
            .collect::<Result<_, _>>()?;
        for thread in threads {
            results.push(thread.join().map_err(|_| anyhow::anyhow!("a probe panicked"))???);
        }
    }
    Ok(results)
}

/// Sends one probe from the calling thread's namespace.
///
/// # Errors
/// As [`probe`].
pub fn send(to: IpAddr, kind: Kind, patience: Duration) -> anyhow::Result<bool> {
    match kind {
        Kind::Tcp(port) => Ok(tcp(SocketAddr::new(to, port), patience)),
        Kind::Udp(port) => udp(SocketAddr::new(to, port), patience),
        Kind::Ping => ping(to, patience),
        Kind::Sctp(port) => sctp(to, port, patience),
    }
}

fn sctp(to: IpAddr, port: u16, patience: Duration) -> anyhow::Result<bool> {
    let Some(tag) = crate::sctp::init(to, port, port)? else { return Ok(false) };
    Ok(crate::wait::until_true("the INIT to arrive", patience, || crate::sctp::arrived(tag)).is_ok())
}

fn tcp(to: SocketAddr, patience: Duration) -> bool {
    let exchange = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"firebreak")?;
        let mut answer = [0_u8; 9];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"firebreak")
    };
    // Timeout, RST and unreachable all mean that nothing got through and back.
    exchange().unwrap_or(false)
}

fn udp(to: SocketAddr, patience: Duration) -> anyhow::Result<bool> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).context("cannot bind a UDP socket")?;
    socket.set_read_timeout(Some(patience))?;
    let exchange = || -> std::io::Result<bool> {
        socket.connect(to)?;
        socket.send(b"firebreak")?;
        let mut answer = [0_u8; 64];
        Ok(socket.recv(&mut answer)? == 9)
    };
    Ok(exchange().unwrap_or(false))
}

/// An echo request over a raw socket; the reply is told by an identifier of our own.
fn ping(to: IpAddr, patience: Duration) -> anyhow::Result<bool> {
    let identifier = u16::try_from(nix::unistd::gettid().as_raw() & 0xffff).unwrap_or(1);
    let raw = ping_socket(to, patience)?;
    if !send_echo(&raw, to, identifier) {
        return Ok(false);
    }
    let begun = Instant::now();
    while begun.elapsed() < patience {
        if hear_echo(&raw, to, identifier) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A raw socket for echoes of the address's family, whose reads wait for `patience`.
pub(crate) fn ping_socket(to: IpAddr, patience: Duration) -> anyhow::Result<OwnedFd> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).context("cannot open a raw ICMP socket (root?)")?;
    setsockopt(&raw, sockopt::ReceiveTimeout, &TimeVal::new(0, i64::try_from(patience.as_micros())?))?;
    Ok(raw)
}

/// Sends an echo request; `false` when the kernel refused.
pub(crate) fn send_echo(raw: &OwnedFd, to: IpAddr, identifier: u16) -> bool {
    sent(raw, to, &echo_request(to, identifier.to_be_bytes()))
}

/// Reads one message and says whether it is the reply to such a request.
pub(crate) fn hear_echo(raw: &OwnedFd, to: IpAddr, identifier: u16) -> bool {
    let mut buffer = [0_u8; 512];
    let Ok(bytes) = recv(raw.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { return false };
    // Raw IPv4 sockets hand over the IP header, IPv6 ones do not.
    let header = if to.is_ipv4() { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
    let reply = if to.is_ipv4() { 0 } else { 129 };
    let message = buffer.get(header..bytes).unwrap_or_default();
    message.len() >= 8 && message[0] == reply && message[4..6] == identifier.to_be_bytes()
}

/// An echo request of the address's family.
pub(crate) fn echo_request(to: IpAddr, identifier: [u8; 2]) -> [u8; 12] {
    let request = if to.is_ipv4() { 8 } else { 128 };
    let mut packet = [request, 0, 0, 0, identifier[0], identifier[1], 0, 1, b'f', b'i', b'r', b'e'];
    if to.is_ipv4() {
        // The kernel fills in ICMPv6 checksums (RFC 3542), not ICMP ones.
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
    }
    packet
}

fn sent(raw: &OwnedFd, to: IpAddr, packet: &[u8]) -> bool {
    // A send that policy refuses (EPERM, EHOSTUNREACH) is a denied probe.
    match to {
        IpAddr::V4(to) => send_to(raw, &SockaddrIn::from(std::net::SocketAddrV4::new(to, 0)), packet),
        IpAddr::V6(to) => send_to(raw, &SockaddrIn6::from(std::net::SocketAddrV6::new(to, 0, 0, 0)), packet),
    }
}

fn send_to(raw: &OwnedFd, to: &dyn SockaddrLike, packet: &[u8]) -> bool {
    sendto(raw.as_raw_fd(), packet, to, MsgFlags::empty()).is_ok()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
