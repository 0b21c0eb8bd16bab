//! The sending side of a station.

use super::shared::Shared;
use super::station::{Job, LONG, PATIENCE, SHORT, TICK};
use crate::probe::{Kind, echo_request};
use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, sendto, setsockopt, socket, sockopt,
};
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a socket waits for the answer to its datagram before it is asked what came. Whether the packets arrived is the ledger's to say.
const DATAGRAM_OPEN: Duration = Duration::from_millis(400);
const MESSAGE: [u8; 9] = [SHORT, b'i', b'r', b'e', b'b', b'r', b'e', b'a', b'k'];

struct Connection {
    stream: TcpStream,
    has_written: bool,
    got: usize,
    begun: Instant,
    name: String,
}

/// Probes that wait for their answers.
pub(super) struct Clients {
    raw: [OwnedFd; 2],
    identifier: u16,
    connections: Vec<Connection>,
    datagrams: VecDeque<(Instant, UdpSocket, String)>,
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn storage(address: IpAddr, port: u16) -> SockaddrStorage {
    SockaddrStorage::from(SocketAddr::new(address, port))
}

/// What a send or connect says when policy dropped the packet on its way out of this namespace, or rejected one before it.
fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::EPERM | Errno::EACCES | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ECONNRESET)
}

/// What a busy machine says; nothing was sent then.
fn is_busy(errno: Errno) -> bool {
    matches!(errno, Errno::EAGAIN | Errno::ENOBUFS | Errno::EADDRINUSE | Errno::EADDRNOTAVAIL | Errno::EINTR)
}

impl Clients {
    pub(super) fn new(addresses: [IpAddr; 2]) -> anyhow::Result<Self> {
        let raw = |address: IpAddr| -> anyhow::Result<OwnedFd> {
            let protocol = if address.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
            let raw = socket(family(address), SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)
                .context("cannot open a raw ICMP socket (root?)")?;
            bind(raw.as_raw_fd(), &storage(address, 0)).with_context(|| format!("cannot send from {address}"))?;
            // Answers are counted by the ledger; nobody reads them here.
            setsockopt(&raw, sockopt::RcvBuf, &1)?;
            Ok(raw)
        };
        let [v4, v6] = addresses;
        Ok(Self { raw: [raw(v4)?, raw(v6)?], identifier: 0, connections: Vec::new(), datagrams: VecDeque::new() })
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.datagrams.is_empty()
    }

    /// Sends one probe.
    pub(super) fn send(&mut self, job: &Job, shared: &Shared) -> anyhow::Result<()> {
        let outcome = match job.kind {
            Kind::Tcp(port) => self.connect(job, port),
            Kind::Udp(port) => self.datagram(job, port),
            Kind::Ping => self.ping(job),
            Kind::Sctp(_) => bail!("the leak checker sends no SCTP"),
        };
        match outcome {
            Ok(()) => shared.probe(job.allowed),
            Err(errno) if is_busy(errno) => {}
            Err(errno) if is_refusal(errno) => {
                shared.probe(job.allowed);
                if job.allowed {
                    shared.refuse(format!("{}: {errno}", job.name));
                }
            }
            Err(errno) => bail!("{}: cannot send: {errno}", job.name),
        }
        Ok(())
    }

    fn connect(&mut self, job: &Job, port: u16) -> Result<(), Errno> {
        let stream = begin(job, port)?;
        // The SYN of a forbidden one has left; where it arrives is the receiver's to count.
        if job.allowed {
            let begun = Instant::now();
            self.connections.push(Connection { stream, has_written: false, got: 0, begun, name: job.name.clone() });
        }
        Ok(())
    }

    fn datagram(&mut self, job: &Job, port: u16) -> Result<(), Errno> {
        let raw = |error: Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let socket = UdpSocket::bind(SocketAddr::new(job.from, 0)).map_err(raw)?;
        socket.set_nonblocking(true).map_err(raw)?;
        socket.connect(SocketAddr::new(job.to, port)).map_err(raw)?;
        socket.send(&MESSAGE).map_err(raw)?;
        if job.allowed {
            self.datagrams.push_back((Instant::now(), socket, job.name.clone()));
        }
        Ok(())
    }

    fn ping(&mut self, job: &Job) -> Result<(), Errno> {
        self.identifier = self.identifier.wrapping_add(1);
        let packet = echo_request(job.to, self.identifier.to_be_bytes());
        let [v4, v6] = &self.raw;
        let raw = if job.to.is_ipv4() { v4 } else { v6 };
        sendto(raw.as_raw_fd(), &packet, &storage(job.to, 0), MsgFlags::empty()).map(drop)
    }

    /// What is waited for.
    pub(super) fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let flags = |connection: &Connection| if connection.has_written { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        self.connections.iter().map(move |connection| (connection.stream.as_fd(), flags(connection)))
    }

    /// Takes every answer that is there.
    pub(super) fn advance(&mut self, now: Instant, shared: &Shared) {
        self.connections.retain_mut(|connection| match connection.advance() {
            Ok(true) => false,
            Ok(false) if now.duration_since(connection.begun) < PATIENCE => true,
            Ok(false) => {
                shared.refuse(format!("{}: no answer in {PATIENCE:?}", connection.name));
                false
            }
            Err(error) => {
                shared.refuse(format!("{}: {error}", connection.name));
                false
            }
        });
        while self.datagrams.front().is_some_and(|(sent, _, _)| now.duration_since(*sent) >= DATAGRAM_OPEN) {
            let Some((_, socket, name)) = self.datagrams.pop_front() else { break };
            match socket.recv(&mut [0; 64]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => shared.refuse(format!("{name}: {error}")),
            }
        }
    }
}

/// A connection on its way; `from` says which of a node's addresses it comes from.
fn begin(job: &Job, port: u16) -> Result<TcpStream, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(family(job.to), SockType::Stream, flags, None)?;
    bind(stream.as_raw_fd(), &storage(job.from, 0))?;
    match connect(stream.as_raw_fd(), &storage(job.to, port)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(stream)),
        Err(errno) => Err(errno),
    }
}

/// Whether a connection is up; an error is a refusal.
fn is_up(stream: &TcpStream) -> std::io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

impl Connection {
    /// Whether its message came back. An end before that is an error like any other.
    fn advance(&mut self) -> std::io::Result<bool> {
        if !self.has_written {
            if !is_up(&self.stream)? {
                return Ok(false);
            }
            self.stream.write_all(&MESSAGE)?;
            self.has_written = true;
        }
        let mut buffer = [0_u8; 64];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                self.got += bytes;
                Ok(self.got >= MESSAGE.len())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A connection that is there the whole time, with messages both ways. One that ends is told, and another begun.
pub(super) struct LongConnection {
    job: Job,
    stream: Option<(TcpStream, bool)>,
    tick_at: Instant,
}

impl LongConnection {
    pub(super) fn new(job: Job) -> Self {
        Self { job, stream: None, tick_at: Instant::now() }
    }

    /// Reads what came and sends its message when it is due.
    pub(super) fn attend(&mut self, now: Instant, ticks: bool, shared: &Shared) -> anyhow::Result<()> {
        let Kind::Tcp(port) = self.job.kind else { bail!("only TCP has connections") };
        if self.stream.is_none() && ticks && now >= self.tick_at {
            match begin(&self.job, port) {
                Ok(stream) => self.stream = Some((stream, false)),
                Err(errno) if is_busy(errno) => {}
                Err(errno) => shared.refuse(format!("{}, to stay open: {errno}", self.job.name)),
            }
            self.tick_at = now + TICK;
        }
        let Some((stream, greeted)) = &mut self.stream else { return Ok(()) };
        if let Err(error) = exchange(stream, greeted, ticks && now >= self.tick_at, shared) {
            shared.refuse(format!("{}, open connection: {error}", self.job.name));
            self.stream = None;
        }
        if now >= self.tick_at {
            self.tick_at = now + TICK;
        }
        Ok(())
    }
}

fn exchange(stream: &mut TcpStream, greeted: &mut bool, is_due: bool, shared: &Shared) -> std::io::Result<()> {
    if !*greeted {
        if !is_up(stream)? {
            return Ok(());
        }
        stream.write_all(&[LONG])?;
        *greeted = true;
    }
    let mut buffer = [0_u8; 2048];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    if is_due {
        stream.write_all(b"from the client")?;
        shared.tick();
    }
    Ok(())
}
