//! Names both ends of a flow and says why it was denied.

use super::owners::{Owner, Owners};
use crate::hub::published::Published;
use crate::hub::sources::{reaching, workload_id};
use crate::hub::wire;
use firebreak_policy::evaluate::{DirectionVerdict, PeerView};
use firebreak_policy::model::{Direction, NetworkName, NodeName, PublishedPort, Transport, Workload};
use firebreak_proto::Refusal;
use firebreak_proto::convert::{address_from_wire, address_to_wire, protocol_from_wire};
use firebreak_proto::v1;
use jiff::Timestamp;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// What is known of an event beside itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attribution {
    pub(crate) source: v1::Peer,
    pub(crate) destination: v1::Peer,
    pub(crate) reason: Option<v1::DirectionVerdict>,
}

/// An event whose fields were read.
struct Event {
    node: NodeName,
    direction: Direction,
    source: IpAddr,
    destination: IpAddr,
    transport: Transport,
    network: String,
    container: String,
    generation: u64,
    denied: bool,
    time: Timestamp,
}

/// One end as it was found.
struct End {
    address: IpAddr,
    workload: Option<Arc<Workload>>,
    peer: v1::Peer,
}

/// Names both ends as of the event's time, and judges again to tell the reason.
///
/// # Errors
/// Names the field that cannot be read.
pub(crate) fn attribute(
    published: &Published,
    owners: &Owners,
    node: &NodeName,
    wire: &v1::FlowEvent,
    now: Timestamp,
) -> Result<Attribution, Refusal> {
    let event = read(node, wire, now)?;
    let (local_address, peer_address) = match event.direction {
        Direction::Ingress => (event.destination, event.source),
        Direction::Egress => (event.source, event.destination),
    };
    let local = local_end(published, owners, &event, local_address);
    let peer = remote_end(published, owners, &event, peer_address);
    let reason = reason(published, &event, &local, &peer);
    let (source, destination) = match event.direction {
        Direction::Ingress => (peer.peer, local.peer),
        Direction::Egress => (local.peer, peer.peer),
    };
    Ok(Attribution { source, destination, reason })
}

/// Names both ends of a cut connection as of now, and judges again to tell the reason.
///
/// # Errors
/// Names the field that cannot be read.
pub(crate) fn attribute_cut(
    published: &Published,
    owners: &Owners,
    node: &NodeName,
    cut: &v1::CutEvent,
    now: Timestamp,
) -> Result<Attribution, Refusal> {
    if cut.cut_id.len() != 16 {
        return Err(Refusal::new("cut_id", format!("has {} bytes, not 16", cut.cut_id.len())));
    }
    for (field, ends) in [("arrived", &cut.arrived), ("left", &cut.left)] {
        let Some(ends) = ends else { continue };
        let ports = [ends.source_port, ends.destination_port].into_iter().flatten();
        if let Some(port) = ports.into_iter().find(|port| *port > 65_535) {
            return Err(Refusal::new(field, format!("{port} is no port number")));
        }
        packet_address(&ends.source, "source").and(packet_address(&ends.destination, "destination")).map_err(|it| it.within(field))?;
    }
    // As the flow that it would be if it began now.
    let flow = v1::FlowEvent {
        flow_id: cut.cut_id.clone(),
        phase: v1::FlowPhase::Opened.into(),
        verdict: v1::Verdict::Drop.into(),
        direction: cut.direction,
        interface: cut.interface.clone(),
        container: cut.container.clone(),
        source: cut.source.clone(),
        destination: cut.destination.clone(),
        transport: cut.transport,
        source_port: cut.source_port,
        generation: cut.generation,
        network: cut.network.clone(),
        ..v1::FlowEvent::default()
    };
    attribute(published, owners, node, &flow, now)
}

fn read(node: &NodeName, wire: &v1::FlowEvent, now: Timestamp) -> Result<Event, Refusal> {
    let direction = match wire.direction() {
        v1::Direction::Ingress => Direction::Ingress,
        v1::Direction::Egress => Direction::Egress,
        v1::Direction::Unspecified => return Err(Refusal::new("direction", "is not set")),
    };
    if wire.phase() == v1::FlowPhase::Unspecified {
        return Err(Refusal::new("phase", "is not set"));
    }
    if wire.verdict() == v1::Verdict::Unspecified {
        return Err(Refusal::new("verdict", "is not set"));
    }
    if wire.flow_id.len() != 16 {
        return Err(Refusal::new("flow_id", format!("has {} bytes, not 16", wire.flow_id.len())));
    }
    if let Some(port) = wire.source_port.filter(|port| *port > 65_535) {
        return Err(Refusal::new("source_port", format!("{port} is no port number")));
    }
    let transport = wire.transport.as_ref().ok_or_else(|| Refusal::new("transport", "is missing"))?;
    let seen = wire.first_seen.as_ref().and_then(|it| Timestamp::new(it.seconds, it.nanos).ok());
    if !NetworkName::new(&wire.network).reaches(node) {
        return Err(Refusal::new("network", format!("{} belongs to another node; this stream is node {node}'s", wire.network)));
    }
    let (source, destination) = (packet_address(&wire.source, "source")?, packet_address(&wire.destination, "destination")?);
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(Refusal::new("destination", format!("{destination} is not of the family of the source {source}")));
    }
    Ok(Event {
        node: node.clone(),
        direction,
        source,
        destination,
        transport: packet_transport(transport).map_err(|refusal| refusal.within("transport"))?,
        network: wire.network.clone(),
        container: wire.container.clone(),
        generation: wire.generation,
        denied: match wire.verdict() {
            v1::Verdict::Drop | v1::Verdict::Reject => true,
            v1::Verdict::Allow | v1::Verdict::Audit | v1::Verdict::Unspecified => false,
        },
        time: seen.unwrap_or(now),
    })
}

/// An address as a packet had it. A container may put anything there, IPv4-mapped IPv6 too; a record refused for that would be sent again for
/// ever, and its node's reports end.
fn packet_address(bytes: &[u8], field: &str) -> Result<IpAddr, Refusal> {
    match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => Ok(Ipv6Addr::from(octets).into()),
        Err(_) => address_from_wire(bytes, field),
    }
}

/// What a packet carried. A container may send ICMPv6 in IPv4, or TCP without room for ports: such a packet has a protocol and no more.
fn packet_transport(wire: &v1::Transport) -> Result<Transport, Refusal> {
    match wire {
        v1::Transport { protocol, port: None, icmp_type: None, icmp_code: None } => {
            Ok(Transport::Other(protocol_from_wire(*protocol, "protocol")?))
        }
        told => wire::transport(told),
    }
}

/// The judged end: the agent names its container; where that is gone, the address tells.
fn local_end(published: &Published, owners: &Owners, event: &Event, address: IpAddr) -> End {
    let named = (!event.container.is_empty()).then(|| owners.workload(&workload_id(&event.node, &event.container))).flatten();
    match named {
        Some(workload) => End { address, workload: Some(Arc::clone(workload)), peer: wire::workload_peer(workload, Some(address)) },
        None => remote_end(published, owners, event, address),
    }
}

fn remote_end(published: &Published, owners: &Owners, event: &Event, address: IpAddr) -> End {
    for place in reaching(&event.node, &event.network, address) {
        match owners.at(&place, event.time) {
            Some(Owner::Workload(workload)) => {
                let peer = wire::workload_peer(&workload, Some(address));
                return End { address, workload: Some(workload), peer };
            }
            Some(Owner::Former(workload, before)) => {
                let mut peer = wire::workload_peer(&workload, Some(address));
                peer.note = format!("it had given up the address {} s before", before.as_secs());
                return End { address, workload: Some(workload), peer };
            }
            Some(Owner::Several(ids)) => {
                let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
                let peer = plain(address, format!("address claimed by {}", names.join(" and ")));
                return End { address, workload: None, peer };
            }
            None => {}
        }
    }
    End { address, workload: None, peer: node_or_stranger(published, event, address) }
}

fn node_or_stranger(published: &Published, event: &Event, address: IpAddr) -> v1::Peer {
    let nodes = &published.inventory.nodes;
    // Bridges of several nodes may have one address; the reporting node's own goes first.
    let own = nodes.get(&event.node).filter(|node| node.addresses.contains(&address));
    let Some(node) = own.or_else(|| nodes.values().find(|node| node.addresses.contains(&address))) else {
        return plain(address, String::new());
    };
    let hides = node.name != event.node
        && published
            .inventory
            .workloads
            .values()
            .any(|it| it.id.node == node.name && it.addresses.iter().any(|at| !at.network.is_default()));
    let note = if hides && address == event.source {
        format!("node {} hides its workloads behind masquerading: one of them may be the source", node.name)
    } else {
        String::new()
    };
    v1::Peer { node: node.name.to_string(), ..plain(address, note) }
}

fn plain(address: IpAddr, note: String) -> v1::Peer {
    v1::Peer { address: address_to_wire(address), note, ..v1::Peer::default() }
}

fn reason(published: &Published, event: &Event, local: &End, peer: &End) -> Option<v1::DirectionVerdict> {
    if let Some(found) = published_port(published, event) {
        return Some(through_published_port(published, event, peer, &found));
    }
    let workload = local.workload.as_ref()?;
    let name = name_of(peer);
    let view = PeerView { address: peer.address, name: &name };
    let judged = published.compiled.judge_end(&workload.id, event.direction, local.address, view, event.transport);
    Some(match judged {
        Some(verdict) => denied_then(&verdict, event),
        None => v1::DirectionVerdict {
            direction: wire::direction(event.direction).into(),
            verdict: v1::Verdict::Drop.into(),
            reason: "the workload has ended; its policies are not known any more".to_owned(),
            ..v1::DirectionVerdict::default()
        },
    })
}

/// The reason of what the node did. Where the newest policy allows what was denied, the node judged by an older one.
fn denied_then(verdict: &DirectionVerdict, event: &Event) -> v1::DirectionVerdict {
    let mut wire = wire::direction_verdict(verdict);
    if verdict.allowed() && event.denied {
        wire.verdict = v1::Verdict::Drop.into();
        wire.reason = format!("denied by generation {} of the node; the newest policy allows it ({})", event.generation, verdict.reason);
    }
    wire
}

/// The workload behind a port of the node, when the flow went to one.
fn published_port<'a>(published: &'a Published, event: &Event) -> Option<(&'a Workload, &'a PublishedPort)> {
    let Transport::Port(protocol, port) = event.transport else { return None };
    let node = published.inventory.nodes.get(&event.node).filter(|node| node.addresses.contains(&event.destination))?;
    let here = published.inventory.workloads.values().filter(|it| it.id.node == node.name && !it.terminated);
    let mut ports = here.flat_map(|workload| workload.published_ports.iter().map(move |port| (workload, port)));
    ports.find(|(_, it)| it.protocol == protocol && it.host_port == port && it.host_address.is_none_or(|bound| bound == event.destination))
}

fn through_published_port(published: &Published, event: &Event, source: &End, found: &(&Workload, &PublishedPort)) -> v1::DirectionVerdict {
    let (target, port) = found;
    let transport = Transport::Port(port.protocol, port.workload_port);
    let local = target.addresses.iter().find(|at| at.address.is_ipv4() == source.address.is_ipv4()).or_else(|| target.addresses.first());
    let local = local.map_or(event.destination, |at| at.address);
    let name = name_of(source);
    let ingress =
        published.compiled.judge_end(&target.id, Direction::Ingress, local, PeerView { address: source.address, name: &name }, transport);
    let egress = source.workload.as_ref().and_then(|workload| {
        let name = format!("{}/{}", target.namespace, target.name);
        published.compiled.judge_end(&workload.id, Direction::Egress, source.address, PeerView { address: local, name: &name }, transport)
    });
    let denying = [egress, ingress].into_iter().flatten().find(|verdict| !verdict.allowed());
    let behind = format!("node port {} leads to {}/{} port {}", port.host_port, target.namespace, target.name, port.workload_port);
    match denying {
        Some(verdict) => {
            let mut wire = wire::direction_verdict(&verdict);
            wire.reason = format!("{behind}; {}", wire.reason);
            wire
        }
        None => v1::DirectionVerdict {
            direction: wire::direction(event.direction).into(),
            verdict: v1::Verdict::Drop.into(),
            reason: format!("{behind}; denied by generation {} of the node, the newest policy allows it", event.generation),
            ..v1::DirectionVerdict::default()
        },
    }
}

fn name_of(end: &End) -> String {
    match &end.workload {
        Some(workload) if workload.labels.0.is_empty() => format!("{}/{}", workload.namespace, workload.name),
        Some(workload) => format!("{}/{} [{}]", workload.namespace, workload.name, workload.labels),
        None if end.peer.node.is_empty() => end.address.to_string(),
        None => format!("node {} ({})", end.peer.node, end.address),
    }
}
