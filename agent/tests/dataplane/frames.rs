//! Frames byte by byte, sent and received on packet sockets.

use crate::namespace::Namespace;
use nix::libc;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A whole frame, without the checksum.
pub type Frame = Vec<u8>;

pub fn ethernet(destination: [u8; 6], source: [u8; 6], ether_type: u16, payload: &[u8]) -> Frame {
    [&destination[..], &source, &ether_type.to_be_bytes(), payload].concat()
}

/// RFC 826: operation, sender, target.
pub fn arp(operation: u8, sender_mac: [u8; 6], sender: Ipv4Addr, target_mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &sender_mac, &sender.octets(), &target_mac, &target.octets()].concat()
}

pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let length = u16::try_from(words * 4 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![0x40 | u8::try_from(words).unwrap(), 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(destination.octets());
    header.extend(options);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&folded.to_be_bytes());
    [header, payload.to_vec()].concat()
}

pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], next, hops][..], &source.octets(), &destination.octets(), payload].concat()
}

/// Without a checksum, which IPv4 allows and a guard does not look at.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}

/// A neighbour discovery message about a target.
pub fn neighbour(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets()].concat()
}

fn packet_socket(interface: &str) -> OwnedFd {
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    let protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
    // SAFETY: plain system calls on a descriptor that is owned from the line after its making; the address is whole and initialised.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
        assert!(socket >= 0, "a packet socket");
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = protocol;
        address.sll_ifindex = i32::try_from(index).unwrap();
        let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        assert_eq!(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length), 0, "bind");
        socket
    }
}

/// Sends a frame some times. A veth hands a frame to its other end before the call returns.
pub fn send(namespace: &Namespace, interface: &'static str, frame: &Frame, times: u64) {
    let frame = frame.clone();
    namespace.run(move || {
        let socket = packet_socket(interface);
        for _ in 0..times {
            assert_eq!(nix::unistd::write(&socket, &frame).unwrap(), frame.len());
        }
    });
}

/// Sees every frame that comes in through an interface.
pub struct Witness(OwnedFd);

impl Witness {
    pub fn new(namespace: &Namespace, interface: &'static str) -> Self {
        Self(namespace.run(move || packet_socket(interface)))
    }

    /// What came in, until it is enough or a second has passed.
    pub fn take_until(&self, enough: impl Fn(&[Frame]) -> bool) -> Vec<Frame> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut seen = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            match nix::sys::socket::recv(self.0.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::MSG_DONTWAIT) {
                Ok(length) => seen.push(buffer[..length].to_vec()),
                Err(_) if enough(&seen) || Instant::now() > deadline => return seen,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}
