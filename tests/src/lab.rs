//! Nodes and workloads of the lab: a bridge between all nodes, and on each node workloads on a bridge or behind routed veths.

use crate::namespace::{Namespace, ip};
use anyhow::Context as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How a node connects its workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// veths on a bridge with the node's address on it, as Docker and the CNI bridge plugin do.
    Bridged,
    /// A veth and a route per workload, as Calico and the CNI ptp plugin do.
    Routed,
}

/// The pattern of the workload interfaces that the lab makes.
pub const INTERFACES: &str = "fbw*";

/// The lab: the network between the nodes, and the controller's place.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    /// Where the controller runs; holds the bridge between the nodes.
    pub core: Namespace,
    nodes: u8,
    keep: bool,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its namespace.
    pub namespace: Namespace,
    /// How it connects its workloads.
    pub topology: Topology,
    number: u8,
    subnet: u8,
    workloads: u8,
}

/// A workload.
#[derive(Debug)]
pub struct Workload {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// The host-side interface.
    pub interface: String,
}

impl Workload {
    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl Lab {
    /// An empty lab. Names begin with `prefix`, which must be short and the caller's own.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn new(prefix: &str) -> anyhow::Result<Self> {
        let core = Namespace::new(&format!("{prefix}-core"))?;
        core.ip("link add sw0 type bridge forward_delay 0")?;
        core.ip("link set sw0 up")?;
        core.ip("addr add 192.168.77.254/24 dev sw0")?;
        core.ip("addr add fd77::fe/64 dev sw0 nodad")?;
        Ok(Self { prefix: prefix.to_owned(), core, nodes: 0, keep: false })
    }

    /// What names in this lab begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Leaves everything in place when this, its nodes and its workloads are dropped.
    pub fn keep(&mut self) {
        self.core.keep();
        self.keep = true;
    }

    /// Adds a node whose workloads have addresses of its own.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn node(&mut self, name: &str, topology: Topology) -> anyhow::Result<Node> {
        let subnet = self.nodes + 1;
        self.node_with_subnet(name, topology, subnet)
    }

    /// Adds a node whose workloads have the addresses of subnet `subnet`, possibly those of another node's.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn node_with_subnet(&mut self, name: &str, topology: Topology, subnet: u8) -> anyhow::Result<Node> {
        self.nodes += 1;
        let number = self.nodes;
        let namespace = Namespace::new(&format!("{}-{name}", self.prefix))?;
        let port = format!("n{number}");
        ip(&["link", "add", "up0", "netns", namespace.name(), "type", "veth", "peer", "name", &port, "netns", self.core.name()])?;
        self.core.ip(&format!("link set {port} master sw0"))?;
        self.core.ip(&format!("link set {port} up"))?;
        namespace.ip("link set up0 up")?;
        namespace.ip(&format!("addr add 192.168.77.{number}/24 dev up0"))?;
        namespace.ip(&format!("addr add fd77::{number}/64 dev up0 nodad"))?;
        // The default route shows which interface is no workload's.
        namespace.ip("route add default via 192.168.77.254")?;
        namespace.ip("route add default via fd77::fe")?;
        namespace.sysctl("net.ipv4.ip_forward", "1")?;
        namespace.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        // Probes use a source port or identifier again after some 10 s. By then conntrack must have forgotten its first use, or a probe that
        // policy now denies would be let through as established.
        for timeout in ["udp_timeout", "udp_timeout_stream", "icmp_timeout", "icmpv6_timeout"] {
            namespace.sysctl(&format!("net.netfilter.nf_conntrack_{timeout}"), "3")?;
        }
        if topology == Topology::Bridged {
            // An address of its own, as Docker gives its bridges: else the bridge takes that of its lowest port, which changes when one comes or goes,
            // and neighbours send to the one before until they ask again.
            namespace.ip(&format!("link add br0 address 02:fb:00:00:00:{number:02x} type bridge forward_delay 0"))?;
            namespace.ip("link set br0 up")?;
            namespace.ip(&format!("addr add 10.50.{subnet}.254/24 dev br0"))?;
            namespace.ip(&format!("addr add fd50:{subnet}::fe/64 dev br0 nodad"))?;
        }
        Ok(Node { namespace, topology, number, subnet, workloads: 0 })
    }

    /// Makes every node reach the workloads of every other node.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn connect(&self, nodes: &[&Node]) -> anyhow::Result<()> {
        for from in nodes {
            for to in nodes.iter().filter(|to| to.number != from.number) {
                from.namespace.ip(&format!("route replace 10.50.{}.0/24 via 192.168.77.{}", to.subnet, to.number))?;
                from.namespace.ip(&format!("route replace fd50:{}::/64 via fd77::{}", to.subnet, to.number))?;
            }
        }
        Ok(())
    }
}

impl Node {
    /// The node's own addresses on the network between the nodes.
    pub fn addresses(&self) -> [IpAddr; 2] {
        let number = self.number;
        [Ipv4Addr::new(192, 168, 77, number).into(), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()).into()]
    }

    /// Adds a workload in a namespace of this full name, with the next address.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn workload(&mut self, namespace: &str) -> anyhow::Result<Workload> {
        self.workloads += 1;
        self.workload_at(namespace, self.workloads)
    }

    /// Adds a workload with the address of this number (1 to 250).
    ///
    /// # Errors
    /// What `ip` said.
    pub fn workload_at(&self, namespace: &str, number: u8) -> anyhow::Result<Workload> {
        let subnet = self.subnet;
        let workload = Workload {
            namespace: Namespace::new(namespace)?,
            v4: Ipv4Addr::new(10, 50, subnet, number),
            v6: Ipv6Addr::new(0xfd50, subnet.into(), 0, 0, 0, 0, 0, number.into()),
            interface: format!("fbw{number}"),
        };
        self.attach(&workload).with_context(|| format!("cannot connect {namespace}"))?;
        Ok(workload)
    }

    fn attach(&self, workload: &Workload) -> anyhow::Result<()> {
        let (inside, host, subnet) = (&workload.namespace, &workload.interface, self.subnet);
        ip(&["link", "add", host, "netns", self.namespace.name(), "type", "veth", "peer", "name", "eth0", "netns", inside.name()])?;
        match self.topology {
            Topology::Bridged => {
                self.namespace.ip(&format!("link set {host} master br0"))?;
                inside.ip(&format!("addr add {}/24 dev eth0", workload.v4))?;
                inside.ip(&format!("addr add {}/64 dev eth0 nodad", workload.v6))?;
                inside.ip("link set eth0 up")?;
                self.namespace.ip(&format!("link set {host} up"))?;
                inside.ip(&format!("route add default via 10.50.{subnet}.254"))?;
                inside.ip(&format!("route add default via fd50:{subnet}::fe"))?;
            }
            Topology::Routed => {
                self.namespace.ip(&format!("addr add 10.50.{subnet}.254/32 dev {host}"))?;
                self.namespace.ip(&format!("addr add fe80::1/64 dev {host} nodad"))?;
                inside.ip(&format!("addr add {}/32 dev eth0", workload.v4))?;
                inside.ip(&format!("addr add {}/128 dev eth0 nodad", workload.v6))?;
                inside.ip("link set eth0 up")?;
                self.namespace.ip(&format!("link set {host} up"))?;
                self.namespace.ip(&format!("route add {}/32 dev {host}", workload.v4))?;
                self.namespace.ip(&format!("route add {}/128 dev {host}", workload.v6))?;
                inside.ip(&format!("route add 10.50.{subnet}.254 dev eth0 scope link"))?;
                inside.ip(&format!("route add default via 10.50.{subnet}.254"))?;
                inside.ip("route add default via fe80::1 dev eth0")?;
            }
        }
        Ok(())
    }
}
