//! From the engine's answers to our words. Pure; what cannot be read refuses the container, with the field's name.

use super::event::{Bridge, Container, Given, Network, Port};
use bollard::models::{ContainerInspectResponse, ImageInspect, NetworkInspect, NetworkSettings};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A field of an answer that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InspectError {
    /// As the API names it: `State.Pid`.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, InspectError> {
    Err(InspectError { field: field.into(), reason: reason.into() })
}

/// What matters of one of the engine's networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFacts {
    /// The bridge of the node that it is; `None` for drivers without one.
    pub bridge: Option<Bridge>,
}

/// Reads a network. Addresses behind a bridge are hidden when the engine masquerades for it, keeps it internal or isolated; of a
/// routed one (`gateway_mode_ipv4=routed`, or masquerading turned off) they mean the same everywhere.
pub fn network(answer: &NetworkInspect) -> Result<NetworkFacts, InspectError> {
    let Some(driver) = &answer.driver else { return refuse("Driver", "is missing") };
    if driver != "bridge" {
        return Ok(NetworkFacts { bridge: None });
    }
    let option = |key: &str| answer.options.as_ref().and_then(|options| options.get(key)).map(String::as_str);
    let name = match (option("com.docker.network.bridge.name"), &answer.id) {
        (Some(name), _) => name.to_owned(),
        // libnetwork: the bridge of a network without a name is br- and the first 12 characters of its id.
        (None, Some(id)) if id.len() >= 12 && id.is_ascii() => format!("br-{}", &id[..12]),
        (None, _) => return refuse("Id", "is no network id"),
    };
    let routed = option("com.docker.network.bridge.gateway_mode_ipv4") == Some("routed")
        || option("com.docker.network.bridge.enable_ip_masquerade") == Some("false");
    let internal = answer.internal == Some(true);
    Ok(NetworkFacts { bridge: Some(Bridge { name, hidden: internal || !routed }) })
}

/// Reads a container with its image and its networks (those by id, as `NetworkSettings.Networks` names them). `Ok(None)` when it
/// is not running.
pub fn container(
    answer: &ContainerInspectResponse,
    image: Option<&ImageInspect>,
    networks: &BTreeMap<String, NetworkFacts>,
) -> Result<Option<Container>, InspectError> {
    let Some(id) = answer.id.clone().filter(|id| !id.is_empty()) else { return refuse("Id", "is missing") };
    let Some(state) = &answer.state else { return refuse("State", "is missing") };
    if state.running != Some(true) {
        return Ok(None);
    }
    let pid = match state.pid.map(u32::try_from) {
        Some(Ok(pid)) if pid > 0 => pid,
        pid => return refuse("State.Pid", format!("{pid:?} is no process of a running container")),
    };
    let name = answer.name.as_deref().map(|name| name.trim_start_matches('/')).filter(|name| !name.is_empty());
    let (labels, image_labels) = labels(answer, image);
    let mode = answer.host_config.as_ref().and_then(|config| config.network_mode.as_deref()).unwrap_or("default");
    let network = match mode.split_once(':') {
        Some(("container", of)) => Network::Container { of: of.to_owned() },
        None if mode == "host" => Network::Host,
        None if mode == "none" => Network::None,
        Some(_) | None => Network::Own,
    };
    let settings = answer.network_settings.as_ref();
    Ok(Some(Container {
        name: name.unwrap_or(&id).to_owned(),
        pid,
        labels,
        image_labels,
        image: answer.config.as_ref().and_then(|config| config.image.clone()).unwrap_or_default(),
        network,
        bridges: bridges(settings, networks),
        given: given(settings)?,
        ports: ports(settings)?,
        id,
    }))
}

/// The engine merges the image's labels into the container's. One that has the image's value may well come from there: it counts
/// as the image's, which anyone who builds images can write.
fn labels(answer: &ContainerInspectResponse, image: Option<&ImageInspect>) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let merged = answer.config.as_ref().and_then(|config| config.labels.clone()).unwrap_or_default();
    let of_image = image.and_then(|image| image.config.as_ref()).and_then(|config| config.labels.as_ref());
    merged.into_iter().partition(|(key, value)| of_image.and_then(|labels| labels.get(key)) != Some(value))
}

fn bridges(settings: Option<&NetworkSettings>, networks: &BTreeMap<String, NetworkFacts>) -> Vec<Bridge> {
    let ids = settings.and_then(|settings| settings.networks.as_ref()).into_iter().flat_map(|networks| networks.values());
    let bridges: BTreeSet<Bridge> =
        ids.filter_map(|endpoint| endpoint.network_id.as_ref()).filter_map(|id| networks.get(id)?.bridge.clone()).collect();
    bridges.into_iter().collect()
}

/// What the engine gave the container in each network, told again and again in the same order.
fn given(settings: Option<&NetworkSettings>) -> Result<Vec<Given>, InspectError> {
    let mut all = BTreeSet::new();
    for (network, endpoint) in settings.and_then(|settings| settings.networks.as_ref()).into_iter().flatten() {
        let field = |name: &str| format!("NetworkSettings.Networks[{network:?}].{name}");
        let mac = match endpoint.mac_address.as_deref().unwrap_or_default() {
            "" => None,
            text => match mac(text) {
                Some(mac) => Some(mac),
                None => return refuse(field("MacAddress"), format!("{text:?} is no MAC address")),
            },
        };
        let link_local = endpoint.ipam_config.as_ref().and_then(|config| config.link_local_ips.as_ref()).into_iter().flatten();
        let told = [&endpoint.ip_address, &endpoint.global_ipv6_address].into_iter().flatten().chain(link_local);
        let mut addresses = BTreeSet::new();
        for text in told.filter(|text| !text.is_empty()) {
            match text.parse::<IpAddr>() {
                Ok(address) => drop(addresses.insert(address.to_canonical())),
                Err(_) => return refuse(field("IPAddress"), format!("{text:?} is no address")),
            }
        }
        if mac.is_some() || !addresses.is_empty() {
            all.insert(Given { mac, addresses: addresses.into_iter().collect() });
        }
    }
    Ok(all.into_iter().collect())
}

/// Six bytes in hex with colons between them, as Go's `net.HardwareAddr` prints them.
fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2)).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

fn ports(settings: Option<&NetworkSettings>) -> Result<Vec<Port>, InspectError> {
    let mut ports = BTreeSet::new();
    let all = settings.and_then(|settings| settings.ports.as_ref()).into_iter().flatten();
    for (inside, bindings) in all {
        let field = || format!("NetworkSettings.Ports[{inside:?}]");
        let read = inside.split_once('/').and_then(|(port, protocol)| Some((port.parse().ok()?, protocol_number(protocol)?)));
        let Some((container_port, protocol)) = read else { return refuse(field(), "is no port and protocol") };
        for binding in bindings.iter().flatten() {
            let host_port = binding.host_port.as_deref().unwrap_or_default();
            let Some(host_port) = host_port.parse().ok().filter(|port| *port > 0) else {
                return refuse(field(), format!("HostPort {host_port:?} is no port"));
            };
            let host_ip = binding.host_ip.as_deref().unwrap_or_default();
            let host_address = match host_ip {
                "" => None,
                text => match text.parse::<IpAddr>() {
                    Ok(address) => Some(address.to_canonical()).filter(|address| !address.is_unspecified()),
                    Err(_) => return refuse(field(), format!("HostIp {text:?} is no address")),
                },
            };
            ports.insert(Port { protocol, host_address, host_port, container_port });
        }
    }
    Ok(ports.into_iter().collect())
}

fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "tcp" => Some(6),
        "udp" => Some(17),
        "sctp" => Some(132),
        _ => None,
    }
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
