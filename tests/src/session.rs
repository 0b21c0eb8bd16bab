//! Long-lived connections with real sockets: both ends send a tick every 50 ms, whatever the other does, and note when they last heard one.

use crate::namespace::Namespace;
use anyhow::{Context as _, ensure};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often each end sends.
const TICK: Duration = Duration::from_millis(50);
/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a session runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Over {
    /// A connection.
    Tcp,
    /// Datagrams between two sockets.
    Udp,
    /// Echo requests with one identifier, answered by the other end's kernel: only the client hears.
    Ping,
}

impl Over {
    /// As `firebreak flows` calls it.
    pub fn protocol(self, is_ipv4: bool) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ping if is_ipv4 => "icmp",
            Self::Ping => "icmpv6",
        }
    }
}

/// One end.
#[derive(Debug, Default)]
struct End {
    heard: Mutex<(u64, Option<Instant>)>,
}

impl End {
    fn hear(&self) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        *heard = (heard.0 + 1, Some(Instant::now()));
    }

    fn heard(&self) -> (u64, Option<Instant>) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session between two namespaces; both ends stop when it is dropped.
#[derive(Debug)]
pub struct Session {
    /// For messages: `shop/web -> shop/db 10.0.0.1 9000/tcp`.
    pub name: String,
    /// What it runs over.
    pub over: Over,
    /// The client's own end.
    pub from: SocketAddr,
    /// What the client connects to.
    pub to: SocketAddr,
    ends: [Arc<End>; 2],
    stop: Arc<AtomicBool>,
}

impl Session {
    /// Starts a server in one namespace and a client in the other, and waits until both have heard each other. `to` is where the client
    /// connects to, `at` the port where the server listens.
    ///
    /// # Errors
    /// They do not meet.
    pub fn start(name: &str, client: &Namespace, server: &Namespace, over: Over, to: SocketAddr, at: u16) -> anyhow::Result<Self> {
        Self::start_every(TICK, name, client, server, over, to, at)
    }

    /// The same with another time between two ticks.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn start_every(
        tick: Duration,
        name: &str,
        client: &Namespace,
        server: &Namespace,
        over: Over,
        to: SocketAddr,
        at: u16,
    ) -> anyhow::Result<Self> {
        let (mut ends, stop) = ([Arc::<End>::default(), Arc::default()], Arc::<AtomicBool>::default());
        if over == Over::Ping {
            ends[1] = Arc::clone(&ends[0]);
        }
        let name = format!("{name} {to} {}", over.protocol(to.is_ipv4()));
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        // At the address itself, so that answers come from it; behind a translation it is another.
        let (exact, local) = (SocketAddr::new(to.ip(), at), SocketAddr::new(any, at));
        let [of_client, of_server] = ends.clone();
        let from = match over {
            Over::Tcp => {
                let listener = server.run(move || TcpListener::bind(exact).or_else(|_| TcpListener::bind(local)))??;
                let (flag, stopped) = (of_server, Arc::clone(&stop));
                let accepting = std::thread::spawn(move || {
                    if let Ok((stream, _)) = listener.accept() {
                        tick_stream(stream, tick, &flag, &stopped);
                    }
                });
                let stream =
                    client.run(move || TcpStream::connect_timeout(&to, PATIENCE))?.with_context(|| format!("{name}: connecting"))?;
                let from = stream.local_addr()?;
                let stopped = Arc::clone(&stop);
                std::thread::spawn(move || tick_stream(stream, tick, &of_client, &stopped));
                drop(accepting);
                from
            }
            Over::Ping => {
                let (raw, from) = client.run(move || -> anyhow::Result<_> {
                    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
                    socket.connect(to)?;
                    Ok((crate::probe::ping_socket(to.ip(), tick)?, socket.local_addr()?))
                })??;
                let stopped = Arc::clone(&stop);
                std::thread::spawn(move || tick_echoes(&raw, to.ip(), at, tick, &of_client, &stopped));
                from
            }
            Over::Udp => {
                let there = server.run(move || UdpSocket::bind(exact).or_else(|_| UdpSocket::bind(local)))??;
                let here = client.run(move || -> std::io::Result<_> {
                    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
                    socket.connect(to)?;
                    Ok(socket)
                })??;
                let from = here.local_addr()?;
                let (one, other) = (Arc::clone(&stop), Arc::clone(&stop));
                std::thread::spawn(move || tick_datagrams(&there, tick, None, &of_server, &one));
                std::thread::spawn(move || tick_datagrams(&here, tick, Some(to), &of_client, &other));
                from
            }
        };
        let from = match over {
            Over::Ping => SocketAddr::new(from.ip(), at),
            Over::Tcp | Over::Udp => from,
        };
        let session = Self { name, over, from, to, ends, stop };
        crate::wait::until(&format!("{} to be open", session.name), PATIENCE, || {
            ensure!(session.ends.iter().all(|end| end.heard().0 >= 3), "heard {:?}", session.heard());
            Ok(())
        })?;
        Ok(session)
    }

    /// Ticks that client and server have heard.
    pub fn heard(&self) -> [u64; 2] {
        [self.ends[0].heard().0, self.ends[1].heard().0]
    }

    /// When either end heard a tick last.
    pub fn last(&self) -> Option<Instant> {
        self.ends.iter().filter_map(|end| end.heard().1).max()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn tick_stream(mut stream: TcpStream, tick: Duration, end: &End, stop: &AtomicBool) {
    if stream.set_read_timeout(Some(tick)).is_err() || stream.set_nodelay(true).is_err() {
        return;
    }
    let mut buffer = [0_u8; 256];
    let mut sent = Instant::now() - tick;
    while !stop.load(Ordering::Relaxed) {
        if sent.elapsed() >= tick {
            sent = Instant::now();
            // A full buffer is a peer that does not answer: what is in it is tried again by TCP.
            if stream.set_write_timeout(Some(tick)).is_err() || (stream.write(b"tick").is_err_and(|error| !is_wait(&error))) {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => end.hear(),
            Err(error) if is_wait(&error) => {}
            Err(_) => return,
        }
    }
}

fn is_wait(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut | std::io::ErrorKind::Interrupted)
}

/// A server learns its peer from the first datagram and goes on sending to it, whatever errors come back.
fn tick_datagrams(socket: &UdpSocket, tick: Duration, mut peer: Option<SocketAddr>, end: &End, stop: &AtomicBool) {
    if socket.set_read_timeout(Some(tick)).is_err() {
        return;
    }
    let is_connected = peer.is_some();
    let mut buffer = [0_u8; 256];
    let mut sent = Instant::now() - tick;
    while !stop.load(Ordering::Relaxed) {
        if let Some(peer) = peer.filter(|_| sent.elapsed() >= tick) {
            sent = Instant::now();
            let _ = if is_connected { socket.send(b"tick") } else { socket.send_to(b"tick", peer) };
        }
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            peer = peer.or(Some(from));
            end.hear();
        }
    }
}

fn tick_echoes(raw: &OwnedFd, to: IpAddr, identifier: u16, tick: Duration, end: &End, stop: &AtomicBool) {
    let mut sent = Instant::now() - tick;
    while !stop.load(Ordering::Relaxed) {
        if sent.elapsed() >= tick {
            sent = Instant::now();
            crate::probe::send_echo(raw, to, identifier);
        }
        if crate::probe::hear_echo(raw, to, identifier) {
            end.hear();
        }
    }
}

/// Counts what arrives at some UDP ports; ends when it is dropped.
#[derive(Debug)]
pub struct Heard {
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Heard {
    /// Datagrams so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Listens on UDP ports of a namespace, on every address of both families.
///
/// # Errors
/// A port is taken.
pub fn listen(inside: &Namespace, ports: &[u16]) -> anyhow::Result<Heard> {
    let heard = Heard { count: Arc::default(), stop: Arc::default() };
    for port in ports.iter().copied() {
        let socket = inside.run(move || UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))))??;
        socket.set_read_timeout(Some(TICK))?;
        let (count, stop) = (Arc::clone(&heard.count), Arc::clone(&heard.stop));
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 256];
            while !stop.load(Ordering::Relaxed) {
                if socket.recv_from(&mut buffer).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    Ok(heard)
}
