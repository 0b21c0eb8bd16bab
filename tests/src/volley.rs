//! Many probes at once out of one namespace, on one thread: what is denied is waited for together.

use crate::namespace::Namespace;
use crate::probe::{Kind, echo_request};
use crate::sctp;
use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, getsockopt, recv, send, sendto, socket, sockopt,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// One probe of a volley.
#[derive(Clone, Copy, Debug)]
pub struct Shot {
    /// Where to.
    pub to: IpAddr,
    /// What.
    pub kind: Kind,
    /// How long its answer is waited for.
    pub patience: Duration,
}

const GREETING: &[u8] = b"firebreak";

/// Source ports and echo identifiers, each used once before all others are: a number that comes again soon would meet conntrack's entry of
/// its first use, and be let through as established.
static NUMBERS: AtomicU16 = AtomicU16::new(0);

fn number() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    // Below the ephemeral ports, so that TCP probes do not take them.
    FIRST + NUMBERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| Some((it + 1) % COUNT)).unwrap_or(0)
}

/// What a shot waits for.
enum Flight {
    Connecting(OwnedFd),
    Echoing(OwnedFd),
    Pinging { raw: OwnedFd, identifier: [u8; 2], is_v4: bool },
    Sctp(u32),
    Over(bool),
}

/// Fires all shots of each namespace at once, and says of each whether its answer came (of SCTP: whether the INIT arrived).
///
/// # Errors
/// A probe could not be sent for a reason that is not policy: a broken lab, not a verdict.
pub fn volleys(from: Vec<(&Namespace, Vec<Shot>)>) -> anyhow::Result<Vec<Vec<bool>>> {
    let threads: Vec<_> = from.into_iter().map(|(inside, shots)| inside.spawn(move || fire(&shots))).collect::<Result<_, _>>()?;
    threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a volley panicked"))??).collect()
}

fn fire(shots: &[Shot]) -> anyhow::Result<Vec<bool>> {
    let begun = Instant::now();
    let mut flights = shots.iter().map(launch).collect::<anyhow::Result<Vec<_>>>()?;
    loop {
        let waited = begun.elapsed();
        for (flight, shot) in flights.iter_mut().zip(shots) {
            if waited >= shot.patience && !matches!(flight, Flight::Over(_)) {
                *flight = Flight::Over(false);
            }
        }
        let left = flights.iter().zip(shots).filter(|(flight, _)| !matches!(flight, Flight::Over(_)));
        let Some(nearest) = left.map(|(_, shot)| shot.patience.saturating_sub(waited)).min() else { break };
        await_something(&flights, nearest)?;
        for flight in &mut flights {
            if let Some(next) = advance(flight) {
                *flight = next;
            }
        }
    }
    Ok(flights.iter().map(|flight| matches!(flight, Flight::Over(true))).collect())
}

fn await_something(flights: &[Flight], at_most: Duration) -> anyhow::Result<()> {
    // What arrives elsewhere wakes no poll here.
    let elsewhere = flights.iter().any(|flight| matches!(flight, Flight::Sctp(_)));
    let at_most = if elsewhere { at_most.min(Duration::from_millis(5)) } else { at_most };
    let mut waited: Vec<PollFd<'_>> = flights.iter().filter_map(watched).map(|(fd, flags)| PollFd::new(fd, flags)).collect();
    let timeout = PollTimeout::try_from(at_most + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    poll(&mut waited, timeout).context("cannot poll")?;
    Ok(())
}

fn watched(flight: &Flight) -> Option<(BorrowedFd<'_>, PollFlags)> {
    match flight {
        Flight::Connecting(socket) => Some((socket.as_fd(), PollFlags::POLLOUT)),
        Flight::Echoing(socket) => Some((socket.as_fd(), PollFlags::POLLIN)),
        Flight::Pinging { raw, .. } => Some((raw.as_fd(), PollFlags::POLLIN)),
        Flight::Sctp(_) | Flight::Over(_) => None,
    }
}

fn launch(shot: &Shot) -> anyhow::Result<Flight> {
    let family = if shot.to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    match shot.kind {
        Kind::Tcp(port) => {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let stream = socket(family, SockType::Stream, flags, None).context("cannot open a TCP socket")?;
            Ok(match connect(stream.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(shot.to, port))) {
                Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Flight::Connecting(stream),
                Err(_) => Flight::Over(false),
            })
        }
        Kind::Udp(port) => {
            let socket = udp_socket(shot.to)?;
            socket.set_nonblocking(true)?;
            let sent = socket.connect(SocketAddr::new(shot.to, port)).and_then(|()| socket.send(GREETING));
            Ok(if sent.is_ok() { Flight::Echoing(socket.into()) } else { Flight::Over(false) })
        }
        Kind::Ping => {
            let protocol = if shot.to.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
            let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).context("cannot open a raw ICMP socket (root?)")?;
            let identifier = number().to_be_bytes();
            let packet = echo_request(shot.to, identifier);
            let sent = sendto(raw.as_raw_fd(), &packet, &SockaddrStorage::from(SocketAddr::new(shot.to, 0)), MsgFlags::empty());
            Ok(if sent.is_ok() { Flight::Pinging { raw, identifier, is_v4: shot.to.is_ipv4() } } else { Flight::Over(false) })
        }
        Kind::Sctp(port) => Ok(sctp::init(shot.to, number(), port)?.map_or(Flight::Over(false), Flight::Sctp)),
    }
}

fn udp_socket(to: IpAddr) -> anyhow::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A taken number is passed over.
    let bound = (0..100).find_map(|_| UdpSocket::bind(SocketAddr::new(any, number())).ok());
    bound.context("cannot bind a UDP socket")
}

/// What the flight has become, if anything happened to it.
fn advance(flight: &Flight) -> Option<Flight> {
    match flight {
        Flight::Connecting(stream) => {
            let mut ready = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut ready, PollTimeout::ZERO).ok()? == 0 {
                return None;
            }
            let is_up = getsockopt(stream, sockopt::SocketError).is_ok_and(|error| error == 0);
            if !is_up || send(stream.as_raw_fd(), GREETING, MsgFlags::MSG_NOSIGNAL).is_err() {
                return Some(Flight::Over(false));
            }
            Some(stream.try_clone().map_or(Flight::Over(false), Flight::Echoing))
        }
        Flight::Echoing(socket) => {
            let mut answer = [0_u8; 64];
            match recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
                Ok(bytes) => Some(Flight::Over(answer.get(..bytes) == Some(GREETING))),
                Err(nix::errno::Errno::EAGAIN) => None,
                Err(_) => Some(Flight::Over(false)),
            }
        }
        Flight::Pinging { raw, identifier, is_v4 } => pinged(raw, *identifier, *is_v4).then_some(Flight::Over(true)),
        Flight::Sctp(tag) => sctp::arrived(*tag).then_some(Flight::Over(true)),
        Flight::Over(_) => None,
    }
}

fn pinged(raw: &OwnedFd, identifier: [u8; 2], is_v4: bool) -> bool {
    let mut buffer = [0_u8; 512];
    while let Ok(bytes) = recv(raw.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        // Raw IPv4 sockets hand over the IP header, IPv6 ones do not.
        let header = if is_v4 { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
        let message = buffer.get(header..bytes).unwrap_or_default();
        let reply = if is_v4 { 0 } else { 129 };
        if message.len() >= 8 && message[0] == reply && message[4..6] == identifier {
            return true;
        }
    }
    false
}
