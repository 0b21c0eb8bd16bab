//! A flood of datagrams out of one namespace, and a meter of what permitted traffic still gets beside it.

use crate::frames::Mac;
use crate::frames::internet::packet;
use crate::frames::link::framed;
use crate::frames::transport::{UDP, udp};
use crate::frames::wire::Sender;
use crate::namespace::Namespace;
use anyhow::{Context as _, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage, sendmmsg, socket};
use serde_json::Value;
use std::io::{IoSlice, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Datagrams of one system call.
const BATCH: usize = 64;
/// Of the frames that are made before.
const SOURCE_PORT: u16 = 40_000;
const PAYLOAD: [u8; 16] = *b"let me in please";

/// What to send.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Where to: a flow for each address and port.
    pub to: Vec<IpAddr>,
    /// The destination ports, in turn.
    pub ports: Range<u16>,
    /// At most so many a second; `None` is as many as the machine can send.
    pub per_second: Option<u64>,
    /// The end; `None` is until it is stopped.
    pub packets: Option<u64>,
}

impl Stream {
    /// How many flows there are.
    pub fn flows(&self) -> usize {
        self.to.len() * self.ports.len()
    }

    /// Parts that together are the whole.
    fn split(&self, parts: u16) -> Vec<Self> {
        let (parts, ports) = (parts.clamp(1, 64), u64::from(self.ports.end - self.ports.start));
        let count = u64::from(parts);
        let share = |whole: u64, at: u64| whole * (at + 1) / count - whole * at / count;
        let port = |at: u64| self.ports.start + u16::try_from(ports * at / count).unwrap_or(u16::MAX);
        let part = |at: u64| Self {
            to: self.to.clone(),
            ports: port(at)..port(at + 1),
            per_second: self.per_second.map(|whole| share(whole, at)),
            packets: self.packets.map(|whole| share(whole, at)),
        };
        (0..count).map(part).collect()
    }
}

/// Where frames leave, from whom they are, and to whom.
#[derive(Clone, Debug)]
pub struct Link {
    /// The interface.
    pub interface: String,
    /// Its MAC address, and that of the next station.
    pub stations: [Mac; 2],
    /// Its addresses.
    pub from: Vec<IpAddr>,
}

impl Link {
    /// One for each flow, the families in turn.
    fn frames(&self, stream: &Stream) -> Vec<Vec<u8>> {
        let [own, next] = self.stations;
        let flows = stream.ports.clone().flat_map(|port| stream.to.iter().map(move |to| (port, *to)));
        let frame = |(port, to): (u16, IpAddr)| {
            let from = *self.from.iter().find(|from| from.is_ipv4() == to.is_ipv4())?;
            Some(framed(next, own, &packet(from, to, UDP, &udp(from, to, (SOURCE_PORT, port), &PAYLOAD))))
        };
        flows.filter_map(frame).collect()
    }
}

/// A running flood; a thread for each sender.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<anyhow::Result<Duration>>>,
}

impl Flood {
    /// Begins to send, by one sender.
    ///
    /// # Errors
    /// The namespace is not there.
    pub fn start(from: &Namespace, stream: Stream) -> anyhow::Result<Self> {
        Self::start_by(1, from, stream)
    }

    /// The same by so many senders, each with its part of the ports, of the rate and of the packets. What a sender's packets cost is done on
    /// the processor that it runs on, up to the verdict: one for each processor is as much as the machine can send.
    ///
    /// # Errors
    /// The namespace is not there.
    pub fn start_by(senders: u16, from: &Namespace, stream: Stream) -> anyhow::Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = stream.split(senders).into_iter().map(|part| {
            let (ended, counted) = (Arc::clone(&stop), Arc::clone(&sent));
            let thread = from.spawn(move || send_all(&part, &ended, &counted))?;
            Ok(std::thread::spawn(move || thread.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??))
        });
        let threads = threads.collect::<anyhow::Result<_>>()?;
        Ok(Self { stop, sent, threads })
    }

    /// The same by frames that were made before, past the sender's own UDP and IP: with one sender for each processor nothing that a machine does
    /// with sockets sends more.
    ///
    /// # Errors
    /// As [`Self::start_by`], or the interface is not there.
    pub fn start_frames(senders: u16, from: &Namespace, link: &Link, stream: Stream) -> anyhow::Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = stream.split(senders).into_iter().map(|part| {
            let (ended, counted) = (Arc::clone(&stop), Arc::clone(&sent));
            let (sender, frames) = (Sender::open(from, &link.interface)?, link.frames(&part));
            Ok(std::thread::spawn(move || send_frames(&sender, &frames, &part, &ended, &counted)))
        });
        let threads = threads.collect::<anyhow::Result<_>>()?;
        Ok(Self { stop, sent, threads })
    }

    /// Datagrams that the kernel took so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits for its own end; how many the kernel took, and how long it sent.
    ///
    /// # Errors
    /// Why it could not send.
    pub fn join(mut self) -> anyhow::Result<(u64, Duration)> {
        let mut lasted = Duration::ZERO;
        for thread in std::mem::take(&mut self.threads) {
            lasted = lasted.max(thread.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??);
        }
        Ok((self.sent(), lasted))
    }

    /// Ends it.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub fn stop(self) -> anyhow::Result<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send_all(stream: &Stream, stop: &AtomicBool, counted: &AtomicU64) -> anyhow::Result<Duration> {
    // IPv6 sockets take IPv4 destinations in no other form, so there is one of each.
    let open = |family| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("cannot open a UDP socket");
    let sockets = [open(AddressFamily::Inet)?, open(AddressFamily::Inet6)?];
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = stream.to.iter().partition(|to| to.is_ipv4());
    let addresses = |list: &[IpAddr]| -> Vec<Option<SockaddrStorage>> {
        let at = |port| list.iter().map(move |to| Some(SockaddrStorage::from(SocketAddr::new(*to, port))));
        stream.ports.clone().flat_map(at).collect()
    };
    let targets = [addresses(&v4), addresses(&v6)];
    let slices = [IoSlice::new(&PAYLOAD)];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let begun = Instant::now();
    let (mut total, mut at) = (0_u64, [0_usize; 2]);
    let end = stream.packets.unwrap_or(u64::MAX);
    while total < end && !stop.load(Ordering::Relaxed) {
        for ((socket, targets), at) in sockets.iter().zip(&targets).zip(&mut at) {
            let left = usize::try_from(end - total).unwrap_or(usize::MAX);
            let some = targets.get(*at..).unwrap_or_default();
            let some = some.get(..some.len().min(BATCH).min(left)).unwrap_or_default();
            if some.is_empty() {
                continue;
            }
            let slices = std::iter::repeat_n(&slices, some.len());
            // What the machine has no room for is not sent, and sent in the next round.
            let sent = match sendmmsg(socket.as_raw_fd(), &mut headers, slices, some, [], MsgFlags::empty()) {
                Ok(results) => results.count(),
                Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => 0,
                Err(errno) => return Err(errno).context("cannot send"),
            };
            *at = (*at + sent) % targets.len();
            total += u64::try_from(sent)?;
            counted.fetch_add(u64::try_from(sent)?, Ordering::Relaxed);
        }
        pace(stream, total, begun);
    }
    Ok(begun.elapsed())
}

fn send_frames(sender: &Sender, frames: &[Vec<u8>], stream: &Stream, stop: &AtomicBool, counted: &AtomicU64) -> anyhow::Result<Duration> {
    ensure!(!frames.is_empty(), "no flow to send");
    let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let begun = Instant::now();
    let (mut total, mut at) = (0_u64, 0);
    let end = stream.packets.unwrap_or(u64::MAX);
    while total < end && !stop.load(Ordering::Relaxed) {
        let left = usize::try_from(end - total).unwrap_or(usize::MAX);
        let some = slices.get(at..).unwrap_or_default();
        let some = some.get(..some.len().min(BATCH).min(left)).unwrap_or_default();
        let sent = match sendmmsg(sender.socket().as_raw_fd(), &mut headers, some, [None; BATCH], [], MsgFlags::empty()) {
            Ok(results) => results.count(),
            Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => 0,
            Err(errno) => return Err(errno).context("cannot send"),
        };
        at = (at + sent) % slices.len();
        total += u64::try_from(sent)?;
        counted.fetch_add(u64::try_from(sent)?, Ordering::Relaxed);
        pace(stream, total, begun);
    }
    Ok(begun.elapsed())
}

/// Waits until so many are due.
fn pace(stream: &Stream, sent: u64, begun: Instant) {
    if let Some(per_second) = stream.per_second {
        let due = Duration::from_secs_f64(sent as f64 / per_second.max(1) as f64);
        let ahead = due.saturating_sub(begun.elapsed());
        if ahead > Duration::from_millis(1) {
            std::thread::sleep(ahead);
        }
    }
}

/// What a datagram to the ports costs that is denied: from the system call to its end in the node, which is in the same call. The median of so many
/// is one that nothing interrupted.
///
/// # Errors
/// It cannot be sent.
pub fn each_denied(from: &Namespace, to: IpAddr, ports: Range<u16>, count: usize) -> anyhow::Result<Duration> {
    from.run(move || {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        let mut times = Vec::with_capacity(count);
        for port in ports.cycle().take(count) {
            let at = Instant::now();
            socket.send_to(&PAYLOAD, (to, port))?;
            times.push(at.elapsed());
        }
        times.sort();
        times.get(times.len() / 2).copied().context("none was sent")
    })?
}

/// Packets of one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Came in.
    pub received: u64,
    /// Went out and was taken by the other end.
    pub sent: u64,
    /// Went out and was not taken: the other end's queue was full.
    pub not_taken: u64,
}

impl Interface {
    /// Reads them.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn read(namespace: &Namespace, device: &str) -> anyhow::Result<Self> {
        let output = std::process::Command::new("ip").args(["-n", namespace.name(), "-s", "-j", "link", "show", "dev", device]).output()?;
        ensure!(output.status.success(), "ip link: {}", String::from_utf8_lossy(&output.stderr));
        let listed: Value = serde_json::from_slice(&output.stdout)?;
        let count =
            |way: &str, what: &str| listed[0]["stats64"][way][what].as_u64().with_context(|| format!("no {way} {what} in {listed}"));
        Ok(Self { received: count("rx", "packets")?, sent: count("tx", "packets")?, not_taken: count("tx", "dropped")? })
    }
}

/// What a permitted pair gets: connections, each with some requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// Requests that were answered, a second: what whoever else used the processors left over for them.
    pub exchanges: f64,
    /// The same by the median connection, which is one that nothing interrupted: what the kernel's way from one end to the other allows.
    pub undisturbed: f64,
    /// How long the median connection took to be made.
    pub connect: Duration,
}

/// Requests on each connection.
const REQUESTS: u32 = 20;

/// A client and a server in one thread: nobody has to be woken for a request or its answer.
#[derive(Debug)]
pub struct Meter<'a> {
    client: &'a Namespace,
    listener: TcpListener,
    to: SocketAddr,
}

impl<'a> Meter<'a> {
    /// Opens the server's socket.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(client: &'a Namespace, server: &Namespace, to: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { client, listener: server.run(move || TcpListener::bind(to))??, to })
    }

    /// Asks for so long.
    ///
    /// # Errors
    /// A permitted request was not answered.
    pub fn measure(&self, lasting: Duration) -> anyhow::Result<Rate> {
        let (to, listener) = (self.to, self.listener.try_clone()?);
        self.client.run(move || ask(to, &listener, lasting))?.context("permitted traffic beside the flood")
    }
}

fn ask(to: SocketAddr, listener: &TcpListener, lasting: Duration) -> anyhow::Result<Rate> {
    let begun = Instant::now();
    let (mut connects, mut connections) = (Vec::new(), Vec::new());
    while begun.elapsed() < lasting || connections.is_empty() {
        let at = Instant::now();
        let mut client = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
        connects.push(at.elapsed());
        let (mut server, _) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        }
        let at = Instant::now();
        for _ in 0..REQUESTS {
            let mut buffer = [0; PAYLOAD.len()];
            client.write_all(&PAYLOAD)?;
            server.read_exact(&mut buffer)?;
            server.write_all(&buffer)?;
            client.read_exact(&mut buffer)?;
        }
        connections.push(at.elapsed());
    }
    let median = |mut list: Vec<Duration>| {
        list.sort();
        list.get(list.len() / 2).copied().unwrap_or_default()
    };
    let exchanges = f64::from(REQUESTS) * connections.len() as f64 / begun.elapsed().as_secs_f64();
    let connect = median(connects);
    Ok(Rate { exchanges, undisturbed: f64::from(REQUESTS) / (connect + median(connections)).as_secs_f64(), connect })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_stream_are_the_whole_of_it() {
        let whole = Stream { to: vec![IpAddr::from([10, 0, 0, 1])], ports: 100..111, per_second: Some(1_001), packets: Some(7) };
        for senders in [1, 2, 3, 11] {
            let parts = whole.split(senders);
            assert_eq!(parts.len(), usize::from(senders));
            let ports: Vec<u16> = parts.iter().flat_map(|part| part.ports.clone()).collect();
            assert_eq!(ports, whole.ports.clone().collect::<Vec<_>>(), "{senders}");
            assert_eq!(parts.iter().filter_map(|part| part.per_second).sum::<u64>(), 1_001);
            assert_eq!(parts.iter().filter_map(|part| part.packets).sum::<u64>(), 7);
        }
    }
}
