//! What is running: namespaces, nodes and workloads.

use super::id::{InterfaceName, NamespaceName, NetworkName, NodeName, WorkloadId};
use super::label::Labels;
use super::policy::Protocol;
use crate::shared_map::SharedMap;
use std::fmt;
use std::net::IpAddr;

/// Everything that policy can be about at one moment. Copies share their memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Namespaces that somebody declared. A workload's namespace need not be here: it then has no labels.
    pub namespaces: SharedMap<NamespaceName, Namespace>,
    /// Nodes by name.
    pub nodes: SharedMap<NodeName, Node>,
    /// Workloads by id.
    pub workloads: SharedMap<WorkloadId, Workload>,
}

/// A namespace and the labels that namespace selectors look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: NamespaceName,
    /// Its labels, none added.
    pub labels: Labels,
}

/// A node and the addresses under which it appears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its labels.
    pub labels: Labels,
    /// Every address that is the node itself: uplinks, bridges, loopback excluded. No order is meant.
    pub addresses: Vec<IpAddr>,
}

/// An address inside one network; the same address in another network is another thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkAddress {
    /// The routing domain.
    pub network: NetworkName,
    /// The address; an IPv4-mapped IPv6 address is never stored as IPv6.
    pub address: IpAddr,
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.network.is_default() { write!(f, "{}", self.address) } else { write!(f, "{}%{}", self.address, self.network) }
    }
}

/// One container, pod, VM or bare network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Node and container id.
    pub id: WorkloadId,
    /// For people; unique only within namespace and moment.
    pub name: String,
    /// The namespace whose policies apply.
    pub namespace: NamespaceName,
    /// The labels that selectors look at.
    pub labels: Labels,
    /// Its own addresses. Empty when it has none yet, or holds none any more (`Succeeded`, `Failed`).
    pub addresses: Vec<NetworkAddress>,
    /// Ports that policies can name (SEMANTICS 5).
    pub named_ports: Vec<NamedPort>,
    /// Ports of the node that lead to this workload.
    pub published_ports: Vec<PublishedPort>,
    /// The host-side interface, when known.
    pub interface: Option<InterfaceName>,
    /// Shares the node's network: neither subject nor peer, it is the node's address (SEMANTICS 12).
    pub host_network: bool,
    /// Has ended and holds no address any more.
    pub terminated: bool,
    /// Who told us of it.
    pub source: WorkloadSource,
}

/// Who told us of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkloadSource {
    /// A `Workload` manifest.
    Manifest,
    /// The Docker Engine of its node.
    Docker,
    /// A Kubernetes `Pod` object.
    Pod,
}

/// A container port with a name; the protocol belongs to the name (SEMANTICS 5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name, an IANA_SVC_NAME of at most 15 characters.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The number, 1 to 65535.
    pub port: u16,
}

/// A port of the node that is relayed to a workload (`docker run -p`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedPort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The node's address that it is bound to; `None` is every address of the node.
    pub host_address: Option<IpAddr>,
    /// The port on the node.
    pub host_port: u16,
    /// The port of the workload.
    pub workload_port: u16,
}
