//! Workloads between agent and controller: what a node runs goes up, what manifests declare for it comes down.

use crate::convert::{
    Refusal, address_from_wire, address_to_wire, addresses_from_wire, addresses_to_wire, port_from_wire, ported_from_wire,
    published_from_wire, required, text_from_wire,
};
use crate::v1;
use firebreak_policy::model::{
    ContainerId, InterfaceName, Labels, NamedPort, NamespaceName, NetworkAddress, NetworkName, PublishedPort, Workload, WorkloadId,
    WorkloadSource,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A workload as its node reports it: the model's words, and what only people read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedWorkload {
    /// What policy is about. Never `terminated`: a workload that has ended is removed from the report.
    pub workload: Workload,
    /// Labels that came with the image. They select nothing.
    pub image_labels: BTreeMap<String, String>,
    /// The image as it was asked for; empty when that is not known. LabelRules ask for it.
    pub image: String,
    /// `None` when the node enforces for it; otherwise why it does not.
    pub not_enforced: Option<String>,
    /// [`DeclaredWorkload::place`] of the declared workload that the agent looked for; empty where nobody declared it.
    pub declared_place: String,
}

impl From<&ReportedWorkload> for v1::Workload {
    fn from(reported: &ReportedWorkload) -> Self {
        let ReportedWorkload { workload, image_labels, image, not_enforced, declared_place } = reported;
        let Workload {
            id,
            name,
            namespace,
            labels,
            addresses,
            named_ports,
            published_ports,
            interface,
            host_network,
            terminated: _, // A workload that has ended is not reported.
            source,
        } = workload;
        Self {
            id: Some(id.into()),
            name: name.clone(),
            namespace: namespace.as_str().to_owned(),
            labels: labels.0.clone().into_iter().collect(),
            addresses: addresses
                .iter()
                .map(|NetworkAddress { network, address }| v1::NetworkAddress {
                    network: network.as_str().to_owned(),
                    address: address_to_wire(*address),
                })
                .collect(),
            named_ports: named_ports.iter().map(Into::into).collect(),
            published_ports: published_ports.iter().map(Into::into).collect(),
            interface: interface.as_ref().map(|name| name.as_str().to_owned()).unwrap_or_default(),
            host_network: *host_network,
            source: source_to_wire(*source).into(),
            image_labels: image_labels.clone().into_iter().collect(),
            image: image.clone(),
            not_enforced_reason: not_enforced.clone().unwrap_or_default(),
            declared_place: declared_place.clone(),
        }
    }
}

impl TryFrom<v1::Workload> for ReportedWorkload {
    type Error = Refusal;

    fn try_from(wire: v1::Workload) -> Result<Self, Refusal> {
        let v1::Workload {
            id,
            name,
            namespace,
            labels,
            addresses,
            named_ports,
            published_ports,
            interface,
            host_network,
            source,
            image_labels,
            image,
            not_enforced_reason,
            declared_place,
        } = wire;
        let id = WorkloadId::try_from(required(id, "id")?).map_err(|refusal| refusal.within("id"))?;
        let addresses = addresses
            .into_iter()
            .enumerate()
            .map(|(at, address)| network_address(address).map_err(|refusal| refusal.within(format_args!("addresses[{at}]"))))
            .collect::<Result<Vec<_>, _>>()?;
        let workload = Workload {
            name: text_from_wire(name, "name")?,
            namespace: NamespaceName::from(text_from_wire(namespace, "namespace")?),
            labels: Labels(labels.into_iter().collect()),
            addresses,
            named_ports: named_from_wire(named_ports)?,
            published_ports: published_from_wire(published_ports)?,
            interface: Some(interface).filter(|name| !name.is_empty()).map(InterfaceName::from),
            host_network,
            terminated: false,
            source: source_from_wire(source)?,
            id,
        };
        Ok(Self {
            workload,
            image_labels: image_labels.into_iter().collect(),
            image,
            not_enforced: Some(not_enforced_reason).filter(|reason| !reason.is_empty()),
            declared_place,
        })
    }
}

fn network_address(wire: v1::NetworkAddress) -> Result<NetworkAddress, Refusal> {
    let v1::NetworkAddress { network, address } = wire;
    Ok(NetworkAddress { network: NetworkName::from(text_from_wire(network, "network")?), address: address_from_wire(&address, "address")? })
}

fn source_to_wire(source: WorkloadSource) -> v1::WorkloadSource {
    match source {
        WorkloadSource::Manifest => v1::WorkloadSource::Manifest,
        WorkloadSource::Docker => v1::WorkloadSource::Docker,
        WorkloadSource::Pod => v1::WorkloadSource::Pod,
    }
}

fn source_from_wire(number: i32) -> Result<WorkloadSource, Refusal> {
    match v1::WorkloadSource::try_from(number) {
        Ok(v1::WorkloadSource::Manifest) => Ok(WorkloadSource::Manifest),
        Ok(v1::WorkloadSource::Docker) => Ok(WorkloadSource::Docker),
        Ok(v1::WorkloadSource::Pod) => Ok(WorkloadSource::Pod),
        Ok(v1::WorkloadSource::Unspecified) | Err(_) => Err(Refusal::new("source", format!("{number} is no source"))),
    }
}

impl From<&NamedPort> for v1::NamedPort {
    fn from(port: &NamedPort) -> Self {
        let NamedPort { name, protocol, port } = port;
        Self { name: name.clone(), protocol: u32::from(protocol.0), port: u32::from(*port) }
    }
}

fn named_from_wire(list: Vec<v1::NamedPort>) -> Result<Vec<NamedPort>, Refusal> {
    list.into_iter()
        .enumerate()
        .map(|(at, v1::NamedPort { name, protocol, port })| {
            let read = || {
                Ok(NamedPort {
                    name: text_from_wire(name, "name")?,
                    protocol: ported_from_wire(protocol, "protocol")?,
                    port: port_from_wire(port, "port")?,
                })
            };
            read().map_err(|refusal: Refusal| refusal.within(format_args!("named_ports[{at}]")))
        })
        .collect()
}

/// A workload that a `Workload` manifest declares for this node, and where to look for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredWorkload {
    /// `namespace.name` of the manifest.
    pub container: ContainerId,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its labels.
    pub labels: Labels,
    /// Ports that policies can name.
    pub named_ports: Vec<NamedPort>,
    /// Ports of the node that lead to it.
    pub published_ports: Vec<PublishedPort>,
    /// The network of its addresses; `None` lets the agent tell.
    pub network: Option<NetworkName>,
    /// Where it is.
    pub location: Location,
    /// Its addresses where the manifest lists them: it has no others. Empty where they are discovered.
    pub addresses: BTreeSet<IpAddr>,
}

/// Where the agent finds a declared workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Location {
    /// The host-side interface.
    Interface(InterfaceName),
    /// A named network namespace, `/run/netns/NAME`.
    NetworkNamespace(String),
}

impl DeclaredWorkload {
    /// Where it is, with the addresses and the network that the manifest gives it: all by which an agent tells which interface is its own, in one line
    /// that is compared and not read. Never empty.
    pub fn place(&self) -> String {
        let place = match &self.location {
            Location::Interface(name) => format!("interface {:?}", name.as_str()),
            Location::NetworkNamespace(name) => format!("network namespace {name:?}"),
        };
        let network = self.network.as_ref().map(NetworkName::as_str);
        format!("{place}, network {network:?}, addresses {:?}", self.addresses)
    }
}

impl From<&DeclaredWorkload> for v1::DeclaredWorkload {
    fn from(declared: &DeclaredWorkload) -> Self {
        let DeclaredWorkload { container, name, namespace, labels, named_ports, published_ports, network, location, addresses } = declared;
        Self {
            container: container.as_str().to_owned(),
            name: name.clone(),
            namespace: namespace.as_str().to_owned(),
            labels: labels.0.clone().into_iter().collect(),
            named_ports: named_ports.iter().map(Into::into).collect(),
            published_ports: published_ports.iter().map(Into::into).collect(),
            network: network.as_ref().map(|network| network.as_str().to_owned()).unwrap_or_default(),
            location: Some(match location {
                Location::Interface(name) => v1::declared_workload::Location::Interface(name.as_str().to_owned()),
                Location::NetworkNamespace(name) => v1::declared_workload::Location::NetworkNamespace(name.clone()),
            }),
            addresses: addresses_to_wire(addresses),
        }
    }
}

impl TryFrom<v1::DeclaredWorkload> for DeclaredWorkload {
    type Error = Refusal;

    fn try_from(wire: v1::DeclaredWorkload) -> Result<Self, Refusal> {
        let v1::DeclaredWorkload { container, name, namespace, labels, named_ports, published_ports, network, location, addresses } = wire;
        let location = match required(location, "location")? {
            v1::declared_workload::Location::Interface(name) => {
                Location::Interface(InterfaceName::from(text_from_wire(name, "interface")?))
            }
            v1::declared_workload::Location::NetworkNamespace(name) => {
                if name.is_empty() || name.contains('/') || name == "." || name == ".." {
                    return Err(Refusal::new("network_namespace", format!("{name:?} is no name of a file in /run/netns")));
                }
                Location::NetworkNamespace(name)
            }
        };
        Ok(Self {
            container: ContainerId::from(text_from_wire(container, "container")?),
            name: text_from_wire(name, "name")?,
            namespace: NamespaceName::from(text_from_wire(namespace, "namespace")?),
            labels: Labels(labels.into_iter().collect()),
            named_ports: named_from_wire(named_ports)?,
            published_ports: published_from_wire(published_ports)?,
            network: Some(network).filter(|network| !network.is_empty()).map(NetworkName::from),
            location,
            addresses: addresses_from_wire(&addresses, "addresses")?,
        })
    }
}
