//! Client and server in one thread: what is measured is the kernel's way from one to the other and back, and no scheduler.

use crate::stats::median;
use anyhow::{Context as _, ensure};
use firebreak_policy::model::Family;
use firebreak_tests::lab::Workload;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

/// The service.
pub(super) const PORT: u16 = 8080;

const WARM_UP: usize = 20;
const MESSAGE: [u8; 64] = [7; 64];
/// What is sent at once where throughput is measured.
const BLOCK: usize = 256 * 1024;

/// Ports that no contender lets through.
pub(super) const DENIED_PORTS: std::ops::RangeInclusive<u16> = 20_000..=20_063;

/// Longer than anything that works takes.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    /// `connect()`: three packets.
    Connect,
    /// 64 bytes there and back on an open TCP connection.
    RoundTrip,
    /// A TCP connection with one request and its answer, from `connect()` until both ends are closed: its inverse is the rate.
    Request,
    /// A datagram from a new socket and its answer.
    UdpRequest,
    /// A datagram and its answer between sockets that know each other.
    UdpRoundTrip,
    /// 256 KiB on an open TCP connection: its inverse is the throughput.
    Throughput,
    /// A datagram that is denied, of a flow that was denied before: from the system call to its end in the node, which is in the same call.
    Denied,
}

impl Metric {
    pub(super) const ALL: [Self; 6] =
        [Self::Connect, Self::RoundTrip, Self::Request, Self::UdpRequest, Self::UdpRoundTrip, Self::Throughput];

    /// In the name of a figure.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::RoundTrip => "round trip",
            Self::Request => "TCP request/response on a new connection",
            Self::UdpRequest => "UDP request/response from a new socket",
            Self::UdpRoundTrip => "UDP round trip",
            Self::Throughput => "throughput, time of 256 KiB",
            Self::Denied => "a denied datagram",
        }
    }

    fn times(self) -> usize {
        match self {
            Self::Connect | Self::Request | Self::UdpRequest => 150,
            Self::RoundTrip | Self::UdpRoundTrip => 250,
            Self::Throughput => 40,
            Self::Denied => 2_000,
        }
    }
}

/// The sockets of a client and a server.
pub(super) struct Traffic {
    to: SocketAddr,
    listener: TcpListener,
    server_udp: UdpSocket,
    client_tcp: TcpStream,
    server_tcp: TcpStream,
    client_udp: UdpSocket,
}

impl Traffic {
    /// Opens them; the connections go through whatever rules there are.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub(super) fn open(client: &Workload, server: &Workload, family: Family) -> anyhow::Result<Self> {
        let (address, any): (IpAddr, IpAddr) = match family {
            Family::V4 => (server.v4.into(), Ipv4Addr::UNSPECIFIED.into()),
            Family::V6 => (server.v6.into(), Ipv6Addr::UNSPECIFIED.into()),
        };
        let to = SocketAddr::new(address, PORT);
        let (listener, server_udp) =
            server.namespace.run(move || anyhow::Ok((TcpListener::bind(to)?, UdpSocket::bind(to)?)))?.context("the server's sockets")?;
        let (client_tcp, client_udp) = client
            .namespace
            .run(move || {
                let udp = UdpSocket::bind((any, 0))?;
                udp.connect(to)?;
                anyhow::Ok((TcpStream::connect_timeout(&to, PATIENCE)?, udp))
            })?
            .context("the server cannot be reached")?;
        let server_tcp = listener.accept()?.0;
        for stream in [&client_tcp, &server_tcp] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        for socket in [&client_udp, &server_udp] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Self { to, listener, server_udp, client_tcp, server_tcp, client_udp })
    }

    /// The median time of one round.
    ///
    /// # Errors
    /// Something was lost.
    pub(super) fn time(&self, client: &Workload, metric: Metric) -> anyhow::Result<Duration> {
        let times = WARM_UP + metric.times();
        let measured = match metric {
            Metric::Connect | Metric::Request => {
                let (to, listener) = (self.to, self.listener.try_clone()?);
                client
                    .namespace
                    .run(move || (0..times).map(|_| connection(to, &listener, metric)).collect::<anyhow::Result<Vec<_>>>())??
            }
            Metric::UdpRequest => {
                let (to, server) = (self.to, self.server_udp.try_clone()?);
                client.namespace.run(move || (0..times).map(|_| request(to, &server)).collect::<anyhow::Result<Vec<_>>>())??
            }
            Metric::RoundTrip => (0..times).map(|_| self.round_trip()).collect::<anyhow::Result<Vec<_>>>()?,
            Metric::UdpRoundTrip => (0..times).map(|_| answered(&self.client_udp, &self.server_udp)).collect::<anyhow::Result<Vec<_>>>()?,
            Metric::Throughput => (0..times).map(|_| self.block()).collect::<anyhow::Result<Vec<_>>>()?,
            Metric::Denied => {
                let to = self.to;
                client.namespace.run(move || denied(to, times))??
            }
        };
        Ok(median(measured.get(WARM_UP..).context("nothing was measured")?))
    }

    fn round_trip(&self) -> anyhow::Result<Duration> {
        let (mut client, mut server, mut buffer) = (&self.client_tcp, &self.server_tcp, MESSAGE);
        let begun = Instant::now();
        client.write_all(&MESSAGE)?;
        server.read_exact(&mut buffer)?;
        server.write_all(&MESSAGE)?;
        client.read_exact(&mut buffer)?;
        Ok(begun.elapsed())
    }

    fn block(&self) -> anyhow::Result<Duration> {
        let (mut sent, mut received) = (0, 0);
        let mut buffer = vec![0; BLOCK];
        let begun = Instant::now();
        while received < BLOCK {
            let rest = vec_len(BLOCK - sent);
            if rest > 0 {
                sent += ready(send(self.client_tcp.as_raw_fd(), &buffer[..rest], MsgFlags::MSG_DONTWAIT))?;
            }
            received += ready(recv(self.server_tcp.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT))?;
            ensure!(begun.elapsed() < PATIENCE, "{received} bytes of {BLOCK} came through");
        }
        Ok(begun.elapsed())
    }
}

/// At most 64 KiB at once, as programs write.
fn vec_len(rest: usize) -> usize {
    rest.min(64 * 1024)
}

/// Nothing where the socket would have to wait.
fn ready(moved: nix::Result<usize>) -> anyhow::Result<usize> {
    match moved {
        Err(Errno::EAGAIN) => Ok(0),
        moved => Ok(moved?),
    }
}

/// Connections end by RST, so that no port is left waiting.
fn connection(to: SocketAddr, listener: &TcpListener, metric: Metric) -> anyhow::Result<Duration> {
    let mut buffer = MESSAGE;
    let begun = Instant::now();
    let mut client = TcpStream::connect(to).context("the server cannot be reached")?;
    let connected = begun.elapsed();
    let (mut server, _) = listener.accept()?;
    if metric == Metric::Request {
        client.write_all(&MESSAGE)?;
        server.read_exact(&mut buffer)?;
        server.write_all(&MESSAGE)?;
        client.read_exact(&mut buffer)?;
    }
    setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(client);
    drop(server);
    Ok(if metric == Metric::Request { begun.elapsed() } else { connected })
}

fn denied(to: SocketAddr, times: usize) -> anyhow::Result<Vec<Duration>> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let client = UdpSocket::bind((any, 0))?;
    let ports = DENIED_PORTS.cycle().take(times);
    ports
        .map(|port| {
            let begun = Instant::now();
            client.send_to(&MESSAGE, SocketAddr::new(to.ip(), port))?;
            Ok(begun.elapsed())
        })
        .collect()
}

fn request(to: SocketAddr, server: &UdpSocket) -> anyhow::Result<Duration> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let client = UdpSocket::bind((any, 0))?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.connect(to)?;
    answered(&client, server)
}

fn answered(client: &UdpSocket, server: &UdpSocket) -> anyhow::Result<Duration> {
    let mut buffer = [0; 128];
    let begun = Instant::now();
    client.send(&MESSAGE)?;
    let (_, from) = server.recv_from(&mut buffer)?;
    server.send_to(&MESSAGE, from)?;
    client.recv(&mut buffer)?;
    Ok(begun.elapsed())
}
