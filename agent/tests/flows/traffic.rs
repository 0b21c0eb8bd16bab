//! Real packets that the table denies.

use super::table::{IN4, IN6, OUT4, OUT6};
use firebreak_proto::v1;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Udp,
    Tcp,
    Ping,
    Gre,
}

/// One flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    protocol: Protocol,
    pub direction: v1::Direction,
    is_v6: bool,
}

const PORT: u16 = 5432;
const PAYLOAD: [u8; 32] = [7; 32];

impl Kind {
    pub fn udp(direction: v1::Direction, is_v6: bool) -> Self {
        Self { protocol: Protocol::Udp, direction, is_v6 }
    }
    pub fn tcp(direction: v1::Direction, is_v6: bool) -> Self {
        Self { protocol: Protocol::Tcp, direction, is_v6 }
    }
    pub fn ping(direction: v1::Direction, is_v6: bool) -> Self {
        Self { protocol: Protocol::Ping, direction, is_v6 }
    }
    pub fn gre(direction: v1::Direction, is_v6: bool) -> Self {
        Self { protocol: Protocol::Gre, direction, is_v6 }
    }

    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, Protocol::Udp | Protocol::Tcp)
    }

    pub fn destination(&self) -> IpAddr {
        match (self.direction, self.is_v6) {
            (v1::Direction::Ingress, false) => IN4,
            (v1::Direction::Ingress, true) => IN6,
            (_, false) => OUT4,
            (_, true) => OUT6,
        }
        .parse()
        .unwrap()
    }

    pub fn transport(&self) -> v1::Transport {
        let port = self.has_ports().then_some(u32::from(PORT));
        let (protocol, icmp_type, icmp_code) = match (self.protocol, self.is_v6) {
            (Protocol::Udp, _) => (17, None, None),
            (Protocol::Tcp, _) => (6, None, None),
            (Protocol::Gre, _) => (47, None, None),
            (Protocol::Ping, false) => (1, Some(8), Some(0)),
            (Protocol::Ping, true) => (58, Some(128), Some(0)),
        };
        v1::Transport { protocol, port, icmp_type, icmp_code }
    }

    /// Sends exactly one packet; how long it is, IP header included.
    pub fn send(&self) -> u64 {
        let header = if self.is_v6 { 40 } else { 20 };
        let destination = self.destination();
        match self.protocol {
            Protocol::Udp => {
                let socket = UdpSocket::bind(if self.is_v6 { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
                // The output hook's drop is told to the sender.
                assert!(socket.send_to(&PAYLOAD, (destination, PORT)).is_err(), "{self:?} got through");
                header + 8 + 32
            }
            Protocol::Tcp => {
                // The SYN; it is sent again after a second, when the socket is long closed.
                assert!(
                    TcpStream::connect_timeout(&SocketAddr::new(destination, PORT), Duration::from_millis(20)).is_err(),
                    "{self:?} got through"
                );
                // SYN options: MSS, SACK permitted, timestamps, window scale.
                header + 40
            }
            Protocol::Ping => {
                let (protocol, kind) = if self.is_v6 { (libc::IPPROTO_ICMPV6, 128) } else { (libc::IPPROTO_ICMP, 8) };
                let mut echo = [0; 16];
                echo[0] = kind;
                // A checksum that the kernel does not look at on the way out; it makes ICMPv6's itself.
                send_raw(destination, protocol, &echo);
                header + 16
            }
            Protocol::Gre => {
                send_raw(destination, libc::IPPROTO_GRE, &PAYLOAD);
                header + 32
            }
        }
    }
}

fn send_raw(destination: IpAddr, protocol: i32, body: &[u8]) {
    let family = if destination.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: a system call without pointers; the descriptor that it gives is owned by nobody else.
    let socket = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    assert!(socket >= 0, "raw socket: {}", std::io::Error::last_os_error());
    // SAFETY: as above; it is open.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let sent = match destination {
        IpAddr::V4(address) => {
            sendto(socket.as_raw_fd(), body, &SockaddrIn::from(std::net::SocketAddrV4::new(address, 0)), MsgFlags::empty())
        }
        IpAddr::V6(address) => {
            sendto(socket.as_raw_fd(), body, &SockaddrIn6::from(std::net::SocketAddrV6::new(address, 0, 0, 0)), MsgFlags::empty())
        }
    };
    assert!(sent.is_err(), "protocol {protocol} to {destination} got through");
}

/// One packet to each port, as fast as one thread can.
pub fn send_udp_to_ports(ports: RangeInclusive<u16>) {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp).unwrap();
    let IpAddr::V4(address) = IN4.parse().unwrap() else { panic!("an IPv4 address") };
    for port in ports {
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(address, port));
        assert!(sendto(socket.as_raw_fd(), &PAYLOAD, &to, MsgFlags::empty()).is_err(), "port {port} got through");
    }
}
