//! What runs on this node, as discovery found it: the truth that reports, enforcement and flow records share.

use crate::dataplane::MacAddress;
use firebreak_policy::model::{
    ContainerId, InterfaceName, Labels, NamedPort, NamespaceName, NetworkAddress, NodeName, PublishedPort, Workload, WorkloadId,
    WorkloadSource,
};
use firebreak_proto::v1;
use firebreak_proto::workload::ReportedWorkload;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Everything that discovery knows at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalWorkloads {
    /// Whether every source has told all it has. Before that nothing is reported and nothing is written into the kernel:
    /// a workload that is merely not found yet must not count as gone.
    pub in_sync: bool,
    /// The node's workloads.
    pub workloads: BTreeMap<ContainerId, Arc<LocalWorkload>>,
    /// Interfaces that match a pattern and are left alone, by ifindex.
    pub exempt: BTreeMap<u32, ExemptInterface>,
    /// Interfaces that match a pattern and belong to nobody that we know, by ifindex. They are denied.
    pub unknown: BTreeMap<u32, InterfaceName>,
    /// Interfaces that match no pattern and that a source names as a workload's, by ifindex, with the title of (one of) the workloads. As long
    /// as none of them is enforced behind it, nothing passes: a name that no pattern denies must not be a way out.
    pub declared: BTreeMap<u32, (InterfaceName, String)>,
    /// The node's own addresses: of global scope, bridges included.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The same of every scope: loopback and link-local ones too.
    pub own_addresses: BTreeSet<IpAddr>,
    /// The MAC addresses of the node's own interfaces.
    pub node_macs: BTreeSet<MacAddress>,
    /// Whether a workload's interface is a bridge's port: `bridge-nf-call` matters then.
    pub bridged: bool,
    /// What people should know.
    pub warnings: BTreeSet<Warning>,
}

/// One workload of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalWorkload {
    /// Node and container id.
    pub id: WorkloadId,
    /// For people.
    pub name: String,
    /// The namespace whose policies apply.
    pub namespace: NamespaceName,
    /// What selectors look at.
    pub labels: Labels,
    /// Labels that came with the image; they select nothing.
    pub image_labels: BTreeMap<String, String>,
    /// The image as it was asked for; empty when that is not known.
    pub image: String,
    /// Ports that policies can name.
    pub named_ports: Vec<NamedPort>,
    /// Ports of the node that lead to it.
    pub published_ports: Vec<PublishedPort>,
    /// Its host-side interfaces by ifindex; none when it has none (yet, any more, or for a reason that `problem` gives).
    pub interfaces: BTreeMap<u32, LocalInterface>,
    /// Shares the node's network: neither subject nor peer.
    pub host_network: bool,
    /// Who told us of it.
    pub source: WorkloadSource,
    /// What the manifest by which it was looked for says of where it is; empty where there is none.
    pub declared_place: String,
    /// Why the node cannot enforce for it; `None` when it can.
    pub problem: Option<Problem>,
}

/// A workload's host-side interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalInterface {
    /// Its name now.
    pub name: InterfaceName,
    /// The workload's addresses behind it, link-local ones included: those are in the network of the bridge or, for a routed
    /// interface, of the interface itself.
    pub addresses: BTreeSet<NetworkAddress>,
    /// The MAC address of its other end, as that is set inside now.
    pub mac: Option<MacAddress>,
    /// What somebody outside the workload says of it; `None` when nobody does.
    pub vouched: Option<Vouched>,
    /// Addresses that are set inside, that nobody vouches for and that the node's routes do not lead here: not the workload's.
    pub not_routed: BTreeSet<IpAddr>,
    /// The link that it is on: the ifindex of its bridge, or its own where it is routed.
    pub link: u32,
}

/// What an engine says that it gave to a workload, or a manifest lists. A workload cannot change it from inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vouched {
    /// Its MAC addresses, of all its interfaces.
    pub macs: BTreeSet<MacAddress>,
    /// Its IP addresses, of all its interfaces.
    pub addresses: BTreeSet<IpAddr>,
}

/// An interface that matches a pattern and is not managed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExemptInterface {
    /// Its name.
    pub name: InterfaceName,
    /// Why it is left alone.
    pub reason: ExemptReason,
}

/// Why an interface is never managed, whatever the pattern says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExemptReason {
    /// The node's way out.
    DefaultRoute,
    /// Not a veth.
    NotVeth,
}

/// Why the node does not enforce for a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// It shares the node's network.
    HostNetwork,
    /// It shares the network of another container.
    SharedNetwork(String),
    /// No host-side veth leads to it.
    NoInterface(String),
    /// The interface that was declared is never managed.
    Exempt(InterfaceName, ExemptReason),
    /// Two workloads are said to be behind one interface; both are denied.
    ClaimedTwice(InterfaceName),
    /// It holds more addresses than the node keeps apart.
    TooManyAddresses(usize),
    /// The node sends packets for all that it holds elsewhere, and nobody vouches for it.
    NotRouted(BTreeSet<IpAddr>),
}

impl fmt::Display for ExemptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DefaultRoute => "carries a default route",
            Self::NotVeth => "is not a veth",
        })
    }
}

/// What to do where the node does not send packets for an address to the workload that holds it.
pub const NOT_ROUTED_REMEDY: &str =
    "If it is right, add a route to it by the workload's interface or its bridge, or list the workload's addresses in its manifest";

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork => f.write_str("shares the node's network"),
            Self::SharedNetwork(with) => write!(f, "shares the network of container {with}"),
            Self::NoInterface(why) => f.write_str(why),
            Self::Exempt(name, reason) => write!(f, "interface {name} {reason}"),
            Self::ClaimedTwice(name) => write!(f, "interface {name} is claimed by another workload too; it is denied"),
            Self::TooManyAddresses(most) => write!(f, "holds more than {most} addresses; it is denied"),
            Self::NotRouted(addresses) => {
                let some: Vec<String> = addresses.iter().take(4).map(ToString::to_string).collect();
                let more = if addresses.len() > some.len() { ", ..." } else { "" };
                write!(f, "no route of the node leads to it for {}{more}; it is denied. {NOT_ROUTED_REMEDY}", some.join(", "))
            }
        }
    }
}

/// Something that people should know of the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Warning {
    /// A fixed word.
    pub code: &'static str,
    /// In words, with the remedy.
    pub message: String,
}

impl Warning {
    /// A warning of its two parts.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<&Warning> for v1::NodeWarning {
    fn from(warning: &Warning) -> Self {
        Self { code: warning.code.to_owned(), message: warning.message.clone() }
    }
}

impl LocalWorkload {
    /// All its addresses, whatever the interface.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.interfaces.values().flat_map(|interface| &interface.addresses).map(|address| address.address).collect()
    }

    /// `shop/web-1`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// As the controller is told of it: global addresses first, so that the first of a family is the one that people mean.
    pub fn report(&self) -> ReportedWorkload {
        let mut addresses: Vec<NetworkAddress> =
            self.interfaces.values().flat_map(|interface| interface.addresses.iter().cloned()).collect();
        addresses.sort_by(|a, b| (is_link_local(a.address), a).cmp(&(is_link_local(b.address), b)));
        addresses.dedup();
        ReportedWorkload {
            workload: Workload {
                id: self.id.clone(),
                name: self.name.clone(),
                namespace: self.namespace.clone(),
                labels: self.labels.clone(),
                addresses,
                named_ports: self.named_ports.clone(),
                published_ports: self.published_ports.clone(),
                interface: self.interfaces.values().next().map(|interface| interface.name.clone()),
                host_network: self.host_network,
                terminated: false,
                source: self.source,
            },
            image_labels: self.image_labels.clone(),
            image: self.image.clone(),
            not_enforced: self.problem.as_ref().map(ToString::to_string),
            declared_place: self.declared_place.clone(),
        }
    }
}

impl LocalWorkloads {
    /// Nothing known yet.
    pub fn unknown() -> Arc<Self> {
        Arc::new(Self::default())
    }
}

/// Whether an address means something on one link only (RFC 3927, RFC 4291 section 2.5.6).
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The id of a workload of this node.
pub fn local_id(node: &NodeName, container: &ContainerId) -> WorkloadId {
    WorkloadId { node: node.clone(), container: container.clone() }
}
