//! Long-lived connections with real sockets: both ends send a tick every 50 ms, whatever the other does, and note when they last heard one.

use crate::namespace::Namespace;
use anyhow::{Context as _, ensure};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
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
}

impl Over {
    /// As nft and `firebreak flows` call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
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
        let (ends, stop) = ([Arc::<End>::default(), Arc::default()], Arc::<AtomicBool>::default());
        let name = format!("{name} {to} {}", over.as_str());
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let local = SocketAddr::new(any, at);
        let [of_client, of_server] = ends.clone();
        let from = match over {
            Over::Tcp => {
                let listener = server.run(move || TcpListener::bind(local))??;
                let (flag, stopped) = (of_server, Arc::clone(&stop));
                let accepting = std::thread::spawn(move || {
                    if let Ok((stream, _)) = listener.accept() {
                        tick_stream(stream, &flag, &stopped);
                    }
                });
                let stream =
                    client.run(move || TcpStream::connect_timeout(&to, PATIENCE))?.with_context(|| format!("{name}: connecting"))?;
                let from = stream.local_addr()?;
                let stopped = Arc::clone(&stop);
                std::thread::spawn(move || tick_stream(stream, &of_client, &stopped));
                drop(accepting);
                from
            }
            Over::Udp => {
                let there = server.run(move || UdpSocket::bind(local))??;
                let here = client.run(move || -> std::io::Result<_> {
                    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
                    socket.connect(to)?;
                    Ok(socket)
                })??;
                let from = here.local_addr()?;
                let (one, other) = (Arc::clone(&stop), Arc::clone(&stop));
                std::thread::spawn(move || tick_datagrams(&there, None, &of_server, &one));
                std::thread::spawn(move || tick_datagrams(&here, Some(to), &of_client, &other));
                from
            }
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

fn tick_stream(mut stream: TcpStream, end: &End, stop: &AtomicBool) {
    if stream.set_read_timeout(Some(TICK)).is_err() || stream.set_nodelay(true).is_err() {
        return;
    }
    let mut buffer = [0_u8; 256];
    let mut sent = Instant::now() - TICK;
    while !stop.load(Ordering::Relaxed) {
        if sent.elapsed() >= TICK {
            sent = Instant::now();
            // A full buffer is a peer that does not answer: what is in it is tried again by TCP.
            if stream.set_write_timeout(Some(TICK)).is_err() || (stream.write(b"tick").is_err_and(|error| !is_wait(&error))) {
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
fn tick_datagrams(socket: &UdpSocket, mut peer: Option<SocketAddr>, end: &End, stop: &AtomicBool) {
    if socket.set_read_timeout(Some(TICK)).is_err() {
        return;
    }
    let is_connected = peer.is_some();
    let mut buffer = [0_u8; 256];
    let mut sent = Instant::now() - TICK;
    while !stop.load(Ordering::Relaxed) {
        if let Some(peer) = peer.filter(|_| sent.elapsed() >= TICK) {
            sent = Instant::now();
            let _ = if is_connected { socket.send(b"tick") } else { socket.send_to(b"tick", peer) };
        }
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            peer = peer.or(Some(from));
            end.hear();
        }
    }
}
