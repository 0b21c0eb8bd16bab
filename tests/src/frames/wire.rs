//! Frames onto the wire and off it: packet sockets (packet(7)) inside of workloads.

use super::{Mac, Marker};
use crate::namespace::Namespace;
use anyhow::{Context as _, ensure};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// `PACKET_OUTGOING` of packet(7): a frame that this host itself sent.
const OUTGOING: u8 = 4;

/// An interface as its own host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its MAC address.
    pub mac: Mac,
    /// Its link-local address, if it has one.
    pub link_local: Option<Ipv6Addr>,
}

/// Reads an interface of the namespace.
///
/// # Errors
/// There is none of this name.
pub fn read_interface(inside: &Namespace, name: &str) -> anyhow::Result<Interface> {
    let name = name.to_owned();
    inside.run(move || {
        let mac = link(&name)?.addr().with_context(|| format!("{name} has no MAC address"))?;
        let mut addresses = getifaddrs()?.filter(|it| it.interface_name == name).filter_map(|it| it.address);
        let link_local = addresses.find_map(|it| it.as_sockaddr_in6().map(|it| it.ip()).filter(Ipv6Addr::is_unicast_link_local));
        Ok(Interface { mac, link_local })
    })?
}

fn link(name: &str) -> anyhow::Result<LinkAddr> {
    let mut links = getifaddrs()?.filter(|it| it.interface_name == name).filter_map(|it| it.address);
    links.find_map(|it| it.as_link_addr().copied()).with_context(|| format!("no interface {name}"))
}

fn raw(heard: Option<SockProtocol>) -> anyhow::Result<OwnedFd> {
    socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, heard).context("cannot open a packet socket (root?)")
}

/// Sends frames as they are out of one interface of a namespace.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
}

impl Sender {
    /// Out of this interface.
    ///
    /// # Errors
    /// There is no such interface, or no packet socket (root?).
    pub fn open(inside: &Namespace, interface: &str) -> anyhow::Result<Self> {
        let name = interface.to_owned();
        inside.run(move || {
            // Of no protocol: what it sends is not copied to it as well.
            let socket = raw(None)?;
            bind(socket.as_raw_fd(), &link(&name)?).with_context(|| format!("cannot bind to {name}"))?;
            Ok(Self { socket })
        })?
    }

    /// For more than one frame at a time.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Puts a frame on the wire.
    ///
    /// # Errors
    /// The interface does not take it: longer than its MTU, or it is down.
    pub fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).with_context(|| format!("a frame of {} bytes", frame.len()))?;
        ensure!(sent == frame.len(), "{sent} of {} bytes were sent", frame.len());
        Ok(())
    }
}

/// Hears everything that arrives in a namespace and counts the markers; ends when it is dropped.
#[derive(Debug)]
pub struct Sniffer {
    own: Sender,
    heard: Arc<Mutex<BTreeMap<Marker, u64>>>,
    stop: Arc<AtomicBool>,
}

impl Sniffer {
    /// Starts it, on every interface of the namespace.
    ///
    /// # Errors
    /// No packet socket (root?).
    pub fn start(inside: &Namespace) -> anyhow::Result<Self> {
        let (heard, stop) = (Arc::new(Mutex::new(BTreeMap::new())), Arc::new(AtomicBool::new(false)));
        let own = Sender::open(inside, "lo")?;
        let socket = inside.run(|| raw(Some(SockProtocol::EthAll)))??;
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).context("a receive buffer")?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
        let (sink, ended) = (Arc::clone(&heard), Arc::clone(&stop));
        std::thread::spawn(move || listen(&socket, &sink, &ended));
        Ok(Self { own, heard, stop })
    }

    /// Puts a marker behind everything that has arrived so far: once it is heard, all of that has been counted.
    ///
    /// # Errors
    /// It cannot be sent on the namespace's loopback interface.
    pub fn mark(&self) -> anyhow::Result<Marker> {
        let marker = Marker::unique();
        // For experiments (IEEE 802): nobody else looks at it.
        self.own.send(&super::link::ethernet([0; 6], [0; 6], 0x88b5, &marker.bytes()))?;
        Ok(marker)
    }

    /// How often a marker arrived. One that was sent along by this host itself is not counted.
    pub fn heard(&self, marker: Marker) -> u64 {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(&marker).copied().unwrap_or(0)
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn listen(socket: &OwnedFd, heard: &Mutex<BTreeMap<Marker, u64>>, stop: &AtomicBool) {
    let mut buffer = [0_u8; 4096];
    while !stop.load(Ordering::Relaxed) {
        let Ok((bytes, from)) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else { continue };
        if from.is_some_and(|from| from.pkttype() == OUTGOING) {
            continue;
        }
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        for marker in Marker::all_in(&buffer[..bytes]) {
            *heard.entry(marker).or_default() += 1;
        }
    }
}
