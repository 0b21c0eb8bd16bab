//! What all conversions share: the refusal that names a field, and the small values that many messages carry.

use crate::v1;
use bytes::Bytes;
use firebreak_policy::model::{NamespaceName, PolicyKey, PolicyKind, Protocol, PublishedPort, WorkloadId};
use firebreak_policy::node_state::RuleRef;
use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why a message was refused as a whole: the field, as a path from the message on, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `ingress.rules[2].services_list[0].ports.last`.
    pub field: String,
    /// `65536 is no port number`.
    pub reason: String,
}

impl Refusal {
    /// A refusal of one field.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }

    /// The same refusal seen from the message around it.
    #[must_use]
    pub fn within(self, outer: impl fmt::Display) -> Self {
        let field = if self.field.is_empty() { outer.to_string() } else { format!("{outer}.{}", self.field) };
        Self { field, reason: self.reason }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

impl std::error::Error for Refusal {}

/// An address as it travels: 4 or 16 bytes, network byte order.
pub fn address_to_wire(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

/// Reads an address of 4 or 16 bytes; IPv4-mapped IPv6 is refused, so that one address has one form.
pub fn address_from_wire(bytes: &[u8], field: &str) -> Result<IpAddr, Refusal> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    let Ok(octets) = <[u8; 16]>::try_from(bytes) else {
        return Err(Refusal::new(field, format!("{} bytes are no address (4 or 16 are)", bytes.len())));
    };
    let address = Ipv6Addr::from(octets);
    match address.to_ipv4_mapped() {
        Some(mapped) => Err(Refusal::new(field, format!("{address} is IPv4-mapped; send {mapped}"))),
        None => Ok(IpAddr::V6(address)),
    }
}

/// Addresses in the order given.
pub fn addresses_to_wire<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> Vec<Bytes> {
    addresses.into_iter().copied().map(address_to_wire).collect()
}

/// Reads a list of addresses into any collection.
pub fn addresses_from_wire<C: FromIterator<IpAddr>>(list: &[Bytes], field: &str) -> Result<C, Refusal> {
    list.iter().enumerate().map(|(at, bytes)| address_from_wire(bytes, &format!("{field}[{at}]"))).collect()
}

pub(crate) fn block_to_wire(block: IpNet) -> v1::Cidr {
    v1::Cidr { address: address_to_wire(block.network()), prefix_length: u32::from(block.prefix_len()) }
}

pub(crate) fn block_from_wire(wire: &v1::Cidr) -> Result<IpNet, Refusal> {
    let address = address_from_wire(&wire.address, "address")?;
    let length = u8::try_from(wire.prefix_length).ok();
    let Some(block) = length.and_then(|length| IpNet::new(address, length).ok()) else {
        return Err(Refusal::new("prefix_length", format!("{} is no prefix length of {address}", wire.prefix_length)));
    };
    if block.network() != address {
        return Err(Refusal::new("address", format!("{block} has host bits set")));
    }
    Ok(block)
}

/// Reads an IP protocol number.
pub fn protocol_from_wire(number: u32, field: &str) -> Result<Protocol, Refusal> {
    u8::try_from(number).map(Protocol).map_err(|_| Refusal::new(field, format!("{number} is no IP protocol number")))
}

/// Reads the number of a protocol that has ports.
pub fn ported_from_wire(number: u32, field: &str) -> Result<Protocol, Refusal> {
    let protocol = protocol_from_wire(number, field)?;
    if protocol.has_ports() { Ok(protocol) } else { Err(Refusal::new(field, format!("{protocol} has no ports"))) }
}

/// Reads a port from 1 to 65535.
pub fn port_from_wire(number: u32, field: &str) -> Result<u16, Refusal> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        Ok(_) | Err(_) => Err(Refusal::new(field, format!("{number} is no port number"))),
    }
}

/// Reads a text that must not be empty.
pub fn text_from_wire(text: String, field: &str) -> Result<String, Refusal> {
    if text.is_empty() { Err(Refusal::new(field, "is empty")) } else { Ok(text) }
}

/// Reads a part that must be there.
pub fn required<T>(part: Option<T>, field: &str) -> Result<T, Refusal> {
    part.ok_or_else(|| Refusal::new(field, "is unset"))
}

impl From<&WorkloadId> for v1::WorkloadId {
    fn from(id: &WorkloadId) -> Self {
        Self { node: id.node.as_str().to_owned(), container: id.container.as_str().to_owned() }
    }
}

impl TryFrom<v1::WorkloadId> for WorkloadId {
    type Error = Refusal;

    fn try_from(wire: v1::WorkloadId) -> Result<Self, Refusal> {
        let v1::WorkloadId { node, container } = wire;
        Ok(Self::new(text_from_wire(node, "node")?, text_from_wire(container, "container")?))
    }
}

impl From<&PublishedPort> for v1::PublishedPort {
    fn from(port: &PublishedPort) -> Self {
        let PublishedPort { protocol, host_address, host_port, workload_port } = port;
        Self {
            protocol: u32::from(protocol.0),
            host_address: host_address.map(address_to_wire).unwrap_or_default(),
            host_port: u32::from(*host_port),
            workload_port: u32::from(*workload_port),
        }
    }
}

impl TryFrom<v1::PublishedPort> for PublishedPort {
    type Error = Refusal;

    fn try_from(wire: v1::PublishedPort) -> Result<Self, Refusal> {
        let v1::PublishedPort { protocol, host_address, host_port, workload_port } = wire;
        let host_address = if host_address.is_empty() { None } else { Some(address_from_wire(&host_address, "host_address")?) };
        Ok(Self {
            protocol: ported_from_wire(protocol, "protocol")?,
            host_address,
            host_port: port_from_wire(host_port, "host_port")?,
            workload_port: port_from_wire(workload_port, "workload_port")?,
        })
    }
}

/// Reads a list of published ports.
pub(crate) fn published_from_wire(list: Vec<v1::PublishedPort>) -> Result<Vec<PublishedPort>, Refusal> {
    list.into_iter()
        .enumerate()
        .map(|(at, port)| PublishedPort::try_from(port).map_err(|refusal| refusal.within(format_args!("published_ports[{at}]"))))
        .collect()
}

/// A policy as a whole.
pub fn policy_to_wire(key: &PolicyKey) -> v1::RuleRef {
    let PolicyKey { kind, namespace, name } = key;
    v1::RuleRef {
        kind: kind.as_str().to_owned(),
        namespace: namespace.as_str().to_owned(),
        name: name.clone(),
        rule_index: None,
        rule_name: String::new(),
    }
}

/// Reads a reference to a policy as a whole.
pub fn policy_from_wire(wire: v1::RuleRef) -> Result<PolicyKey, Refusal> {
    if wire.rule_index.is_some() {
        return Err(Refusal::new("rule_index", "is set where a whole policy is meant"));
    }
    key_from_wire(wire.kind, wire.namespace, wire.name)
}

fn key_from_wire(kind: String, namespace: String, name: String) -> Result<PolicyKey, Refusal> {
    let known = PolicyKind::ALL.into_iter().find(|known| known.as_str() == kind);
    let Some(kind) = known else {
        return Err(Refusal::new("kind", format!("{kind:?} is no policy kind")));
    };
    let name = text_from_wire(name, "name")?;
    if !kind.is_namespaced() {
        return match namespace.is_empty() {
            true => Ok(PolicyKey::cluster_scoped(kind, name)),
            false => Err(Refusal::new("namespace", format!("is {namespace:?}, and {} has none", kind.as_str()))),
        };
    }
    Ok(PolicyKey { kind, namespace: NamespaceName::from(text_from_wire(namespace, "namespace")?), name })
}

impl From<&RuleRef> for v1::RuleRef {
    fn from(rule: &RuleRef) -> Self {
        let RuleRef { policy, index, name } = rule;
        Self { rule_index: Some(*index), rule_name: name.clone().unwrap_or_default(), ..policy_to_wire(policy) }
    }
}

impl TryFrom<v1::RuleRef> for RuleRef {
    type Error = Refusal;

    fn try_from(wire: v1::RuleRef) -> Result<Self, Refusal> {
        let v1::RuleRef { kind, namespace, name, rule_index, rule_name } = wire;
        Ok(Self {
            policy: key_from_wire(kind, namespace, name)?,
            index: required(rule_index, "rule_index")?,
            name: Some(rule_name).filter(|name| !name.is_empty()),
        })
    }
}
