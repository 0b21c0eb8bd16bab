//! A node with two workloads, each in a network namespace of its own, and probes with real packets.

use crate::namespace::Namespace;
use firebreak_agent::dataplane::{Claim, Desired, MacAddress, ManagedInterface};
use firebreak_policy::kernel_sets::{Comment, Element, KernelSets, SetId};
use firebreak_policy::model::{Family, InterfaceName, Protocol, Transport};
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// How the workloads are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Each veth has a subnet of its own and the node routes.
    Routed,
    /// Both veths are ports of one bridge.
    Bridged,
}

/// How long a probe waits for what does not come.
const PATIENCE: Duration = Duration::from_millis(250);

/// The node `wl0` and `wl1`, and behind them `a` and `b`.
pub struct Lab {
    pub node: Namespace,
    pub a: Namespace,
    pub b: Namespace,
    pub topology: Topology,
}

/// Who.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Node,
    A,
    B,
}

impl Lab {
    pub fn new(topology: Topology) -> Self {
        let lab = Self { node: Namespace::new(), a: Namespace::new(), b: Namespace::new(), topology };
        for namespace in [&lab.node, &lab.a, &lab.b] {
            // An address is there at once: no duplicate detection of link-local addresses either.
            namespace.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap());
        }
        lab.node.run(|| {
            for (name, value) in [
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/bridge/bridge-nf-call-iptables", "1"),
                ("net/bridge/bridge-nf-call-ip6tables", "1"),
            ] {
                std::fs::write(format!("/proc/sys/{name}"), value).unwrap();
            }
        });
        if topology == Topology::Bridged {
            lab.node.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0");
            lab.node.ip("link set br0 up");
            lab.node.ip("addr add 10.7.9.1/24 dev br0");
            lab.node.ip("addr add fd07:9::1/64 dev br0 nodad");
        }
        for (end, veth) in [(End::A, "wl0"), (End::B, "wl1")] {
            lab.attach(end, veth);
        }
        lab
    }

    /// Connects a workload by a new veth of this name.
    pub fn attach(&self, end: End, veth: &str) {
        let workload = self.namespace(end);
        self.node.ip(&format!("link add {veth} type veth peer name eth0 address {} netns {}", self.mac(end), workload.path()));
        match self.topology {
            Topology::Bridged => self.node.ip(&format!("link set {veth} master br0")),
            Topology::Routed => {
                self.node.ip(&format!("addr add {}/24 dev {veth}", self.gateway(end, Family::V4)));
                self.node.ip(&format!("addr add {}/64 dev {veth} nodad", self.gateway(end, Family::V6)));
            }
        }
        self.node.ip(&format!("link set {veth} up"));
        workload.ip("link set eth0 up");
        workload.ip(&format!("addr add {}/24 dev eth0", self.address(end, Family::V4)));
        workload.ip(&format!("addr add {}/64 dev eth0 nodad", self.address(end, Family::V6)));
        workload.ip(&format!("route add default via {}", self.gateway(end, Family::V4)));
        workload.ip(&format!("-6 route add default via {}", self.gateway(end, Family::V6)));
    }

    pub fn namespace(&self, end: End) -> &Namespace {
        match end {
            End::Node => &self.node,
            End::A => &self.a,
            End::B => &self.b,
        }
    }

    /// The address by which `a` and `b` know an end.
    pub fn address(&self, end: End, family: Family) -> IpAddr {
        let text = match (self.topology, family, end) {
            (_, _, End::Node) => return self.gateway(End::A, family),
            (Topology::Routed, Family::V4, End::A) => "10.7.1.2",
            (Topology::Routed, Family::V4, End::B) => "10.7.2.2",
            (Topology::Routed, Family::V6, End::A) => "fd07:1::2",
            (Topology::Routed, Family::V6, End::B) => "fd07:2::2",
            (Topology::Bridged, Family::V4, End::A) => "10.7.9.2",
            (Topology::Bridged, Family::V4, End::B) => "10.7.9.3",
            (Topology::Bridged, Family::V6, End::A) => "fd07:9::2",
            (Topology::Bridged, Family::V6, End::B) => "fd07:9::3",
        };
        text.parse().unwrap()
    }

    /// The node's address on the side of a workload.
    pub fn gateway(&self, end: End, family: Family) -> IpAddr {
        let text = match (self.topology, family, end) {
            (Topology::Routed, Family::V4, End::B) => "10.7.2.1",
            (Topology::Routed, Family::V6, End::B) => "fd07:2::1",
            (Topology::Routed, Family::V4, End::A | End::Node) => "10.7.1.1",
            (Topology::Routed, Family::V6, End::A | End::Node) => "fd07:1::1",
            (Topology::Bridged, Family::V4, _) => "10.7.9.1",
            (Topology::Bridged, Family::V6, _) => "fd07:9::1",
        };
        text.parse().unwrap()
    }

    /// The ifindex of an interface of the node.
    pub fn index(&self, name: &str) -> u32 {
        let name = name.to_owned();
        self.node.run(move || nix::net::if_::if_nametoindex(name.as_str()).unwrap())
    }

    /// What a guard binds a workload's interface to: these addresses and its link-local one.
    pub fn claim(&self, end: End, veth: &str, mut addresses: BTreeSet<IpAddr>) -> Claim {
        addresses.insert(self.link_local(end));
        let link = match self.topology {
            Topology::Routed => self.index(veth),
            Topology::Bridged => self.index("br0"),
        };
        Claim { mac: Some(self.mac(end)), addresses, vouched: false, link }
    }

    /// The MAC address of a workload's interface.
    pub fn mac(&self, end: End) -> MacAddress {
        MacAddress([2, 0, 0, 0, 0, if end == End::A { 0xa } else { 0xb }])
    }

    /// The MAC address of a host-side interface.
    pub fn host_mac(&self, name: &str) -> [u8; 6] {
        let listed = self.node.command("ip", &format!("-o link show {name}"));
        let text = listed.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
        let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    /// Everybody asks for its neighbours again.
    pub fn settle_neighbours(&self) {
        for namespace in [&self.node, &self.a, &self.b] {
            namespace.ip("neigh flush all");
        }
    }

    /// The link-local address of a workload's interface, which the kernel makes of the MAC address (RFC 4291, appendix A).
    pub fn link_local(&self, end: End) -> IpAddr {
        if end == End::A { "fe80::ff:fe00:a" } else { "fe80::ff:fe00:b" }.parse().unwrap()
    }

    /// Both workloads known, with this policy.
    pub fn desired(&self, sets: KernelSets) -> Desired {
        let interfaces = [(End::A, "wl0"), (End::B, "wl1")]
            .into_iter()
            .map(|(end, name)| {
                let addresses: BTreeSet<IpAddr> = [self.address(end, Family::V4), self.address(end, Family::V6)].into();
                let workload: Comment = format!("lab/{end:?}").into();
                let claim = self.claim(end, name, addresses.clone());
                (self.index(name), ManagedInterface { name: InterfaceName::new(name), workload, addresses, claim })
            })
            .collect();
        Desired { sets, interfaces, exempt: BTreeMap::new() }
    }

    /// Sends what the transport says and tells whether it arrived.
    pub fn probe(&self, from: End, to: IpAddr, listener: End, transport: Transport) -> bool {
        let (source, listener) = (self.namespace(from), self.namespace(listener));
        match transport {
            Transport::Port(Protocol::TCP, port) => {
                let listening = listener.run(move || TcpListener::bind(SocketAddr::new(to, port)).unwrap());
                let connected = source.run(move || TcpStream::connect_timeout(&SocketAddr::new(to, port), PATIENCE).is_ok());
                drop(listening);
                connected
            }
            Transport::Port(Protocol::UDP, port) => {
                let receiver = listener.run(move || UdpSocket::bind(SocketAddr::new(to, port)).unwrap());
                receiver.set_read_timeout(Some(PATIENCE)).unwrap();
                source.run(move || {
                    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
                    // A node that denies its own packet says so at once.
                    let _ = UdpSocket::bind(any).unwrap().send_to(b"probe", SocketAddr::new(to, port));
                });
                receiver.recv(&mut [0; 16]).is_ok()
            }
            Transport::Icmp { .. } => source.output("ping", &format!("-c 1 -W 0.25 -n {to}")).status.success(),
            Transport::Other(protocol) => {
                let receiver = listener.run(move || raw_socket(to, protocol));
                source.run(move || send_raw(to, protocol));
                let arrived = receive_raw(receiver);
                drop(std::os::fd::OwnedFd::from(receiver));
                arrived
            }
            Transport::Port(..) => panic!("no probe for {transport}"),
        }
    }
}

/// A descriptor that is closed when it is dropped as an `OwnedFd`.
#[derive(Clone, Copy)]
struct RawSocket(i32);

impl From<RawSocket> for std::os::fd::OwnedFd {
    fn from(socket: RawSocket) -> Self {
        use std::os::fd::FromRawFd;
        // SAFETY: the descriptor was opened by `raw_socket` and is handed over once, at the end of a probe.
        unsafe { Self::from_raw_fd(socket.0) }
    }
}

fn raw_socket(to: IpAddr, protocol: Protocol) -> RawSocket {
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: a plain system call; nix has no word for these protocol numbers.
    let socket = unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol.0)) };
    assert!(socket >= 0);
    RawSocket(socket)
}

/// Two bytes: the shortest packet that says anything.
fn send_raw(to: IpAddr, protocol: Protocol) {
    use nix::sys::socket::{MsgFlags, SockaddrIn, SockaddrIn6, sendto};
    let socket = raw_socket(to, protocol);
    let _ = match to {
        IpAddr::V4(to) => sendto(socket.0, b"hi", &SockaddrIn::from(std::net::SocketAddrV4::new(to, 0)), MsgFlags::empty()),
        IpAddr::V6(to) => sendto(socket.0, b"hi", &SockaddrIn6::from(std::net::SocketAddrV6::new(to, 0, 0, 0)), MsgFlags::empty()),
    };
    drop(std::os::fd::OwnedFd::from(socket));
}

fn receive_raw(socket: RawSocket) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::BorrowedFd;
    // SAFETY: the descriptor is open until the probe ends.
    let borrowed = unsafe { BorrowedFd::borrow_raw(socket.0) };
    poll(&mut [PollFd::new(borrowed, PollFlags::POLLIN)], PollTimeout::try_from(PATIENCE).unwrap()).unwrap() == 1
}

/// Sets from a list.
pub fn sets(elements: impl IntoIterator<Item = (SetId, Element)>) -> KernelSets {
    let mut sets: BTreeMap<SetId, BTreeMap<Element, Comment>> = BTreeMap::new();
    for (id, element) in elements {
        sets.entry(id).or_default().insert(element, "by the test".into());
    }
    KernelSets { sets, ..KernelSets::default() }
}
