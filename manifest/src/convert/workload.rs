//! Workload to the model.

use super::{labels, namespace, note, parts};
use crate::path::{At, Problems};
use crate::validate;
use crate::{Workload, WorkloadPort, WorkloadProtocol, WorkloadPublishedPort, WorkloadSpec};
use firebreak_policy::model::{
    self, InterfaceName, NamedPort, NetworkAddress, NetworkName, NodeName, Protocol, PublishedPort, WorkloadId, WorkloadSource,
};
use std::collections::BTreeSet;

pub(super) fn workload(object: &Workload, problems: &mut Problems<'_>) -> model::Workload {
    let Workload { metadata, spec } = object;
    let WorkloadSpec { node, interface, network_namespace, network, addresses, ports, published_ports } = spec;
    let root = At::ROOT;
    let at = root.field("spec");
    note(validate::dns_subdomain(node), &at.field("node"), problems);
    let node = NodeName::new(node);
    match (interface, network_namespace) {
        (None, None) => problems.add(&at, "names no interface; give interface or networkNamespace"),
        (Some(_), Some(_)) => problems.add(&at, "has both interface and networkNamespace; keep the one that you know for sure"),
        (Some(name), None) => drop(note(validate::interface_name(name), &at.field("interface"), problems)),
        (None, Some(name)) => drop(note(validate::network_namespace(name), &at.field("networkNamespace"), problems)),
    }
    let network =
        network.as_deref().map_or_else(NetworkName::default_network, |name| network_of(name, &node, &at.field("network"), problems));
    if addresses.as_ref().is_some_and(Vec::is_empty) {
        problems.add(&at.field("addresses"), "is empty; name at least one address, or leave the field out to have them discovered");
    }
    let texts = addresses.iter().flatten().map(String::as_str);
    let addresses = parts::addresses(texts, &at.field("addresses"), None, problems);
    let namespace = namespace(metadata);
    model::Workload {
        id: WorkloadId::new(node, format!("{namespace}.{}", metadata.name)),
        name: metadata.name.clone(),
        namespace,
        labels: labels(metadata),
        addresses: addresses.into_iter().map(|address| NetworkAddress { network: network.clone(), address }).collect(),
        named_ports: named_ports(ports.as_deref().unwrap_or_default(), &at.field("ports"), problems),
        published_ports: published(published_ports.as_deref().unwrap_or_default(), &at.field("publishedPorts"), problems),
        interface: interface.as_deref().map(InterfaceName::new),
        host_network: false,
        terminated: false,
        source: WorkloadSource::Manifest,
    }
}

fn network_of(name: &str, node: &NodeName, at: &At<'_>, problems: &mut Problems<'_>) -> NetworkName {
    match name.split_once('/') {
        None if name == "default" => {}
        None => problems.add(at, format!("{name:?} is not known; write default, or {node}/BRIDGE for a bridge that hides its workloads")),
        Some((owner, bridge)) => {
            if owner != node.as_str() {
                problems.add(at, format!("{name:?} belongs to the node {owner:?}, and the workload is on {node}; write {node}/{bridge}"));
            }
            note(validate::interface_name(bridge), at, problems);
        }
    }
    NetworkName::new(name)
}

fn protocol(written: Option<WorkloadProtocol>) -> Protocol {
    match written {
        None | Some(WorkloadProtocol::Tcp) => Protocol::TCP,
        Some(WorkloadProtocol::Udp) => Protocol::UDP,
        Some(WorkloadProtocol::Sctp) => Protocol::SCTP,
    }
}

fn named_ports(ports: &[WorkloadPort], list: &At<'_>, problems: &mut Problems<'_>) -> Vec<NamedPort> {
    let mut seen = BTreeSet::new();
    let mut named = Vec::new();
    for (position, WorkloadPort { name, protocol: written, port }) in ports.iter().enumerate() {
        let at = list.index(position);
        note(validate::port_name(name), &at.field("name"), problems);
        let protocol = protocol(*written);
        if !seen.insert((name, protocol)) {
            problems.add(&at.field("name"), format!("{name:?} names two {protocol} ports; a name is one port of a protocol"));
        }
        if let Some(port) = note(validate::port_number(*port), &at.field("port"), problems) {
            named.push(NamedPort { name: name.clone(), protocol, port });
        }
    }
    named
}

fn published(ports: &[WorkloadPublishedPort], list: &At<'_>, problems: &mut Problems<'_>) -> Vec<PublishedPort> {
    let mut seen = BTreeSet::new();
    let mut published = Vec::new();
    for (position, WorkloadPublishedPort { protocol: written, host_address, host_port, port }) in ports.iter().enumerate() {
        let at = list.index(position);
        let protocol = protocol(*written);
        let host_address = host_address.as_deref().and_then(|text| note(validate::address(text), &at.field("hostAddress"), problems));
        if !seen.insert((protocol, host_address, host_port)) {
            problems.add(&at.field("hostPort"), format!("{protocol} port {host_port} of this address is published twice; keep one"));
        }
        let host_port = note(validate::port_number(*host_port), &at.field("hostPort"), problems);
        let workload_port = note(validate::port_number(*port), &at.field("port"), problems);
        if let (Some(host_port), Some(workload_port)) = (host_port, workload_port) {
            // 0.0.0.0 and :: are how Docker writes "every address".
            let host_address = host_address.filter(|address| !address.is_unspecified());
            published.push(PublishedPort { protocol, host_address, host_port, workload_port });
        }
    }
    published
}
