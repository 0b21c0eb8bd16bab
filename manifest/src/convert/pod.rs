//! Pod to the model.

use super::{labels, namespace, note, parts};
use crate::path::{At, Problems};
use crate::validate;
use crate::{Container, ContainerPort, Pod, PodSpec, PodStatus};
use firebreak_policy::model::{
    self, Family, NamedPort, NetworkAddress, NetworkName, NodeName, Protocol, PublishedPort, WorkloadId, WorkloadSource,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(super) fn pod(object: &Pod, problems: &mut Problems<'_>) -> model::Workload {
    let Pod { metadata, spec, status } = object;
    let PodSpec { node_name, host_network, init_containers, containers } = spec;
    let host_network = host_network.unwrap_or(false);
    let root = At::ROOT;
    let at = root.field("spec");
    if let Some(name) = node_name.as_deref().filter(|name| !name.is_empty()) {
        note(validate::dns_subdomain(name), &at.field("nodeName"), problems);
    }
    let mut ports = Ports { host_network, named: Vec::new(), published: Vec::new(), taken: BTreeSet::new() };
    let list = at.field("initContainers");
    for (position, container) in init_containers.iter().flatten().enumerate() {
        // Only sidecars go on running beside the containers.
        let counts = container.restart_policy.as_deref() == Some("Always");
        ports.read(container, counts, &list.index(position), problems);
    }
    // FindPort of the Kubernetes API looks through the containers before the sidecars, and takes the first.
    let sidecars = std::mem::take(&mut ports.named);
    let list = at.field("containers");
    for (position, container) in containers.iter().flatten().enumerate() {
        ports.read(container, true, &list.index(position), problems);
    }
    let Ports { host_network: _, mut named, published, taken: _ } = ports;
    named.extend(sidecars);
    let mut seen = BTreeSet::new();
    named.retain(|port| seen.insert((port.name.clone(), port.protocol)));

    let empty = PodStatus::default();
    let status = status.as_ref().unwrap_or(&empty);
    let status_at = root.field("status");
    let terminated = has_ended(status, &status_at, problems);
    let addresses = own_addresses(status, &status_at, problems);
    let hosts = hosts(status, &status_at, problems);
    let namespace = namespace(metadata);
    model::Workload {
        id: WorkloadId::new(node_of(object, &hosts), format!("{namespace}.{}", metadata.name)),
        name: metadata.name.clone(),
        namespace,
        labels: labels(metadata),
        addresses: addresses
            .into_iter()
            .filter(|_| !terminated)
            .map(|address| NetworkAddress { network: NetworkName::default_network(), address })
            .collect(),
        named_ports: named,
        published_ports: if host_network { Vec::new() } else { published },
        interface: None,
        host_network,
        terminated,
        source: WorkloadSource::Pod,
    }
}

/// The images of what runs; none at all where one of them is not known.
pub(super) fn images(object: &Pod) -> Vec<String> {
    let PodSpec { node_name: _, host_network: _, init_containers, containers } = &object.spec;
    let sidecars = init_containers.iter().flatten().filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let images: Option<Vec<String>> = containers.iter().flatten().chain(sidecars).map(|it| it.image.clone()).collect();
    images.unwrap_or_default()
}

/// Addresses that a valid pod shows its node to have.
pub(crate) fn host_addresses(object: &Pod) -> Vec<IpAddr> {
    let mut ignored = Problems::new(None);
    let root = At::ROOT;
    let Some(status) = &object.status else { return Vec::new() };
    let mut addresses = hosts(status, &root, &mut ignored);
    if object.spec.host_network == Some(true) && !has_ended(status, &root, &mut ignored) {
        for address in own_addresses(status, &root, &mut ignored) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}

/// The pod's node. Names in parentheses are no DNS names, so that no node can be called so.
fn node_of(object: &Pod, hosts: &[IpAddr]) -> NodeName {
    match (object.spec.node_name.as_deref().filter(|name| !name.is_empty()), hosts.first()) {
        (Some(name), _) => NodeName::new(name),
        (None, Some(host)) => NodeName::from(format!("(node of {host})")),
        (None, None) => NodeName::new("(unscheduled)"),
    }
}

fn has_ended(status: &PodStatus, at: &At<'_>, problems: &mut Problems<'_>) -> bool {
    match status.phase.as_deref() {
        None | Some("" | "Pending" | "Running" | "Unknown") => false,
        Some("Succeeded" | "Failed") => true,
        Some(other) => {
            problems.add(&at.field("phase"), format!("{other:?} is not known; use one of Pending, Running, Succeeded, Failed, Unknown"));
            false
        }
    }
}

/// `podIPs`, else `podIP`; as the API asks, the first is `podIP` and there is at most one of a family.
fn own_addresses(status: &PodStatus, at: &At<'_>, problems: &mut Problems<'_>) -> Vec<IpAddr> {
    let list = at.field("podIPs");
    let texts = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
    let mut addresses = parts::addresses(texts, &list, Some("ip"), problems);
    for family in [Family::V4, Family::V6] {
        if addresses.iter().filter(|address| Family::of(**address) == family).count() > 1 {
            problems.add(
                &list,
                format!("has two {} addresses; a pod has at most one of a family", if family == Family::V4 { "IPv4" } else { "IPv6" }),
            );
        }
    }
    if let Some(text) = status.pod_ip.as_deref().filter(|text| !text.is_empty())
        && let Some(address) = note(validate::address(text), &at.field("podIP"), problems)
    {
        match addresses.first() {
            None => addresses.push(address),
            Some(first) if *first == address => {}
            Some(first) => {
                problems.add(&at.field("podIP"), format!("{address} is not the first of podIPs, {first}; they have to be the same"))
            }
        }
    }
    addresses
}

fn hosts(status: &PodStatus, at: &At<'_>, problems: &mut Problems<'_>) -> Vec<IpAddr> {
    let texts = status.host_ips.iter().flatten().map(|entry| entry.ip.as_str());
    let mut addresses = parts::addresses(texts, &at.field("hostIPs"), Some("ip"), problems);
    if let Some(text) = status.host_ip.as_deref().filter(|text| !text.is_empty())
        && let Some(address) = note(validate::address(text), &at.field("hostIP"), problems)
        && !addresses.contains(&address)
    {
        addresses.insert(0, address);
    }
    addresses
}

struct Ports {
    host_network: bool,
    named: Vec<NamedPort>,
    published: Vec<PublishedPort>,
    /// The node's ports that containers ask for (`checkHostPortConflicts`).
    taken: BTreeSet<(Protocol, Option<IpAddr>, u16)>,
}

impl Ports {
    /// `validateContainerPorts`, and the ports if the container counts.
    fn read(&mut self, container: &Container, counts: bool, at: &At<'_>, problems: &mut Problems<'_>) {
        let list = at.field("ports");
        let mut names = BTreeSet::new();
        for (position, port) in container.ports.iter().flatten().enumerate() {
            let at = list.index(position);
            let ContainerPort { name, protocol, container_port, host_port, host_ip } = port;
            let name = name.as_deref().filter(|name| !name.is_empty());
            if let Some(name) = name {
                note(validate::port_name(name), &at.field("name"), problems);
                if !names.insert(name) {
                    problems.add(&at.field("name"), format!("{name:?} names two ports of this container; a name may stand once"));
                }
            }
            let protocol = match protocol.as_deref().filter(|text| !text.is_empty()) {
                None => Some(Protocol::TCP),
                Some(text) => note(validate::kubernetes_protocol(text), &at.field("protocol"), problems),
            };
            let number = note(validate::port_number(*container_port), &at.field("containerPort"), problems);
            let host_port = match host_port {
                None | Some(0) => None,
                Some(port) => note(validate::port_number(*port), &at.field("hostPort"), problems),
            };
            if self.host_network && host_port.is_some() && host_port != number {
                problems.add(&at.field("hostPort"), "has to be the same as containerPort with hostNetwork");
            }
            let host_address = host_ip
                .as_deref()
                .filter(|text| !text.is_empty())
                .and_then(|text| note(validate::address(text), &at.field("hostIP"), problems))
                .filter(|address| !address.is_unspecified());
            let (Some(protocol), Some(number), true) = (protocol, number, counts) else { continue };
            if let Some(name) = name {
                self.named.push(NamedPort { name: name.to_owned(), protocol, port: number });
            }
            if let Some(host_port) = host_port {
                if !self.taken.insert((protocol, host_address, host_port)) {
                    problems.add(&at.field("hostPort"), format!("{protocol} port {host_port} of the node is asked for twice; keep one"));
                }
                self.published.push(PublishedPort { protocol, host_address, host_port, workload_port: number });
            }
        }
    }
}
