//! One namespace's part of a checker: one thread that answers what comes and sends what is due, over sockets that never block.

use super::client::{Clients, LongConnection};
use super::shared::{Phase, Shared};
use crate::probe::Kind;
use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

/// A permitted connection that got no answer for so long is refused; TCP has sent its first segment four times by then.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// A connection that stays sends a message this often, from both ends.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Probes that one wake-up sends at most; a machine that is late sends fewer, not all at once.
const BURST: usize = 32;
/// How long connections may take to close.
const CLOSING: Duration = Duration::from_secs(5);

/// What a short and a long connection begin with.
pub(super) const SHORT: u8 = b'S';
pub(super) const LONG: u8 = b'L';

/// One family of one pair, as its sender sees it.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) kind: Kind,
    pub(super) allowed: bool,
    pub(super) name: String,
}

/// What one namespace sends and serves.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) addresses: [IpAddr; 2],
    pub(super) jobs: Vec<Job>,
    tcp: BTreeSet<u16>,
    udp: BTreeSet<u16>,
    every: Duration,
}

impl Plan {
    pub(super) fn new(addresses: [IpAddr; 2]) -> Self {
        Self { addresses, jobs: Vec::new(), tcp: BTreeSet::new(), udp: BTreeSet::new(), every: Duration::MAX }
    }

    pub(super) fn serve(&mut self, kind: Kind) {
        match kind {
            Kind::Tcp(port) => drop(self.tcp.insert(port)),
            Kind::Udp(port) => drop(self.udp.insert(port)),
            Kind::Ping | Kind::Sctp(_) => {}
        }
    }

    /// Its share of all probes.
    pub(super) fn share(&mut self, per_second: u32, all_jobs: usize) {
        let here = per_second as f64 * self.jobs.len() as f64 / all_jobs.max(1) as f64;
        if here > 0.0 {
            self.every = Duration::from_secs_f64(1.0 / here);
        }
    }
}

/// What listens.
#[derive(Debug)]
pub(super) struct Sockets {
    listeners: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
}

impl Sockets {
    /// Opens them in the calling thread's namespace. Datagrams are answered from the address that they came to. A port that somebody has is one of
    /// [`crate::server::Servers`], which answers as well.
    pub(super) fn open(plan: &Plan) -> anyhow::Result<Self> {
        let mut sockets = Self { listeners: Vec::new(), datagrams: Vec::new() };
        for port in &plan.tcp {
            match TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)) {
                Ok(listener) => sockets.listeners.push(listener),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).with_context(|| format!("cannot listen on {port}/tcp")),
            }
        }
        for at in plan.udp.iter().flat_map(|port| plan.addresses.map(|address| SocketAddr::new(address, *port))) {
            match UdpSocket::bind(at) {
                Ok(socket) => sockets.datagrams.push(socket),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).with_context(|| format!("cannot bind {at}/udp")),
            }
        }
        sockets.listeners.iter().try_for_each(|it| it.set_nonblocking(true))?;
        sockets.datagrams.iter().try_for_each(|it| it.set_nonblocking(true))?;
        Ok(sockets)
    }
}

/// An accepted connection.
struct Served {
    stream: TcpStream,
    is_long: bool,
    tick_at: Instant,
}

/// Runs until the checker closes.
///
/// # Errors
/// A socket cannot be made or polled: a broken lab, not a verdict.
pub(super) fn run(plan: Plan, sockets: Sockets, shared: &Shared) -> anyhow::Result<()> {
    let Plan { addresses, jobs, tcp: _, udp: _, every } = plan;
    let mut clients = Clients::new(addresses)?;
    let mut long: Vec<LongConnection> =
        jobs.iter().filter(|job| job.allowed && matches!(job.kind, Kind::Tcp(_))).map(|job| LongConnection::new(job.clone())).collect();
    let mut served: Vec<Served> = Vec::new();
    let (mut next_job, mut due) = (0, Instant::now());
    let mut told_idle = false;
    let mut closing: Option<Instant> = None;
    loop {
        let phase = shared.phase();
        let now = Instant::now();
        match phase {
            Phase::Run if !jobs.is_empty() => {
                for _ in 0..BURST {
                    if due > now {
                        break;
                    }
                    if let Some(job) = jobs.get(next_job) {
                        clients.send(job, shared)?;
                    }
                    next_job = (next_job + 1) % jobs.len();
                    due += every;
                }
                due = due.max(now.checked_sub(every).unwrap_or(now));
            }
            Phase::Run => {}
            Phase::Quiet | Phase::Close => {
                if clients.is_empty() && !told_idle {
                    told_idle = true;
                    shared.is_idle();
                }
            }
        }
        if phase == Phase::Close {
            long.clear();
            let since = *closing.get_or_insert(now);
            if (served.is_empty() && now.duration_since(since) > Duration::from_millis(200)) || now.duration_since(since) > CLOSING {
                return Ok(());
            }
        }
        for connection in &mut long {
            connection.attend(now, phase == Phase::Run, shared)?;
        }
        attend(&mut served, now, phase == Phase::Run, shared);
        let wait = if phase == Phase::Run && !jobs.is_empty() { due.saturating_duration_since(now) } else { Duration::from_millis(20) };
        let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(20));
        let mut watched: Vec<PollFd<'_>> = Vec::with_capacity(64);
        let reads = |fd| PollFd::new(fd, PollFlags::POLLIN);
        watched.extend(sockets.listeners.iter().map(|it| reads(it.as_fd())));
        watched.extend(sockets.datagrams.iter().map(|it| reads(it.as_fd())));
        watched.extend(served.iter().map(|it| reads(it.stream.as_fd())));
        watched.extend(clients.watched().map(|(fd, flags): (BorrowedFd<'_>, _)| PollFd::new(fd, flags)));
        poll(&mut watched, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)).context("cannot poll")?;
        accept(&sockets.listeners, &mut served, now);
        echo(&sockets.datagrams);
        clients.advance(Instant::now(), shared);
    }
}

fn accept(listeners: &[TcpListener], served: &mut Vec<Served>, now: Instant) {
    for listener in listeners {
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                served.push(Served { stream, is_long: false, tick_at: now });
            }
        }
    }
}

/// Answers connections; what has come to its end goes. Whether that was in order is told by the client's side.
fn attend(served: &mut Vec<Served>, now: Instant, ticks: bool, shared: &Shared) {
    let mut buffer = [0_u8; 2048];
    served.retain_mut(|connection| {
        loop {
            match connection.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(bytes) => match buffer.first() {
                    Some(&LONG) => connection.is_long = true,
                    Some(_) if !connection.is_long => {
                        if connection.stream.write_all(buffer.get(..bytes).unwrap_or_default()).is_err() {
                            return false;
                        }
                    }
                    Some(_) | None => {}
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        if connection.is_long && ticks && now >= connection.tick_at {
            connection.tick_at = now + TICK;
            shared.tick();
            return connection.stream.write_all(b"from the server").is_ok();
        }
        true
    });
}

fn echo(sockets: &[UdpSocket]) {
    let mut buffer = [0_u8; 2048];
    for socket in sockets {
        // An error is an ICMP answer to an answer: the prober had closed.
        while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(buffer.get(..bytes).unwrap_or_default(), from);
        }
    }
}
