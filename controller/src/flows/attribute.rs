//! Names both ends of a flow and says why it was denied.

use super::kept::{End, Why};
use super::owners::{Addresses, Owner, Owners};
use super::view::{Outcome, Question, Reasons, View, Who};
use crate::hub::wire;
use firebreak_policy::evaluate::{DirectionVerdict, PeerView};
use firebreak_policy::model::{Direction, NetworkName, NodeName, PublishedPort, Transport, Workload};
use firebreak_proto::Refusal;
use firebreak_proto::convert::{address_from_wire, protocol_from_wire};
use firebreak_proto::v1;
use jiff::Timestamp;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, MutexGuard};

/// What is known of an event beside itself.
#[derive(Clone, Debug)]
pub(crate) struct Attribution {
    pub(crate) source: End,
    pub(crate) destination: End,
    pub(crate) reason: Option<Arc<Why>>,
}

/// Names ends and tells reasons for the records of one batch, all by one publication.
pub(crate) struct Attributor<'a> {
    view: &'a View,
    owners: &'a Owners,
    node: &'a NodeName,
    reasons: MutexGuard<'a, Reasons>,
    now: Timestamp,
    /// Addresses of the network that all nodes share.
    everywhere: Option<Addresses<'a>>,
    /// The network that a record named last, mostly the next names it too; and its addresses, where it is a hidden one.
    network: (NetworkName, Option<Addresses<'a>>),
}

/// An event whose fields were read.
struct Event<'a> {
    direction: Direction,
    source: IpAddr,
    destination: IpAddr,
    transport: Transport,
    container: &'a str,
    outcome: Outcome,
    time: Timestamp,
}

impl<'a> Attributor<'a> {
    /// For a node's records. Holds the node's part of the reasons for as long as it is there.
    pub(crate) fn new(view: &'a View, owners: &'a Owners, node: &'a NodeName, now: Timestamp) -> Self {
        let everywhere = NetworkName::default_network();
        Self { view, owners, node, reasons: view.reasons(node), now, everywhere: owners.network(&everywhere), network: (everywhere, None) }
    }

    /// Names both ends as of the event's time, and judges again to tell the reason.
    ///
    /// # Errors
    /// Names the field that cannot be read.
    pub(crate) fn flow(&mut self, wire: &v1::FlowEvent) -> Result<Attribution, Refusal> {
        if self.network.0.as_str() != wire.network {
            let network = NetworkName::new(&wire.network);
            let hidden = if network.is_default() { None } else { self.owners.network(&network) };
            self.network = (network, hidden);
        }
        let event = read(self.node, &self.network.0, wire, self.now)?;
        let (local_address, peer_address) = match event.direction {
            Direction::Ingress => (event.destination, event.source),
            Direction::Egress => (event.source, event.destination),
        };
        let local = self.local_end(&event, local_address);
        let peer = self.remote_end(&event, peer_address);
        let reason = self.reason(&event, (local_address, &local), (peer_address, &peer));
        let (source, destination) = match event.direction {
            Direction::Ingress => (peer, local),
            Direction::Egress => (local, peer),
        };
        Ok(Attribution { source, destination, reason })
    }

    /// Names both ends of a cut connection as of the node's time, and judges again to tell the reason.
    ///
    /// # Errors
    /// Names the field that cannot be read.
    pub(crate) fn cut(&mut self, cut: &v1::CutEvent, time: Option<prost_types::Timestamp>) -> Result<Attribution, Refusal> {
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
            first_seen: time,
            ..v1::FlowEvent::default()
        };
        self.flow(&flow)
    }

    /// Names the workload that sent what a guard refused. What the frames say of their source is a claim and names nobody.
    ///
    /// # Errors
    /// Names the field that cannot be read.
    pub(crate) fn guard(&self, guard: &v1::GuardEvent) -> Result<End, Refusal> {
        if guard.guard_id.len() != 16 {
            return Err(Refusal::new("guard_id", format!("has {} bytes, not 16", guard.guard_id.len())));
        }
        if guard.phase() == v1::FlowPhase::Unspecified {
            return Err(Refusal::new("phase", "is not set"));
        }
        if guard.reason() == v1::GuardReason::Unspecified {
            return Err(Refusal::new("reason", "is not set"));
        }
        if guard.ether_type > 0xffff {
            return Err(Refusal::new("ether_type", format!("{} is no EtherType", guard.ether_type)));
        }
        for (field, mac) in [("source_mac", &guard.source_mac), ("destination_mac", &guard.destination_mac)] {
            if !matches!(mac.len(), 0 | 6) {
                return Err(Refusal::new(field, format!("has {} bytes, not 6", mac.len())));
            }
        }
        for (field, address) in [("source", &guard.source), ("destination", &guard.destination)] {
            if !address.is_empty() {
                packet_address(address, field)?;
            }
        }
        Ok(End { workload: self.container(&guard.container).cloned(), ..End::default() })
    }

    /// The workload that the node means; none where it names none.
    fn container(&self, container: &str) -> Option<&'a Arc<Workload>> {
        if container.is_empty() { None } else { self.owners.workload(self.node, container) }
    }

    /// The judged end: the agent names its container; where that is gone, the address tells.
    fn local_end(&self, event: &Event<'_>, address: IpAddr) -> End {
        match self.container(event.container) {
            Some(workload) => End { address: Some(address), workload: Some(Arc::clone(workload)), ..End::default() },
            None => self.remote_end(event, address),
        }
    }

    fn remote_end(&self, event: &Event<'_>, address: IpAddr) -> End {
        let end = |workload, note| End { address: Some(address), workload, node: None, note };
        // Where an address can be looked up: the networks that reach the node.
        for place in [self.network.1, self.everywhere].into_iter().flatten() {
            match place.at(address, event.time) {
                Some(Owner::Workload(workload)) => return end(Some(workload), String::new()),
                Some(Owner::Former(workload, before)) => {
                    return end(Some(workload), format!("it had given up the address {} s before", before.as_secs()));
                }
                Some(Owner::Several(ids)) => {
                    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
                    return end(None, format!("address claimed by {}", names.join(" and ")));
                }
                None => {}
            }
        }
        let node = self.view.node_at(self.node, address).cloned();
        let hiding = node.as_ref().filter(|node| *node != self.node && address == event.source && self.view.hides(node));
        let note = hiding.map(|node| format!("node {node} hides its workloads behind masquerading: one of them may be the source"));
        End { address: Some(address), workload: None, note: note.unwrap_or_default(), node }
    }

    fn reason(&mut self, event: &Event<'_>, local: (IpAddr, &End), peer: (IpAddr, &End)) -> Option<Arc<Why>> {
        let who = |(address, end): (IpAddr, &End)| (address, Who::of(end));
        let (source, destination) = match event.direction {
            Direction::Ingress => (who(peer), who(local)),
            Direction::Egress => (who(local), who(peer)),
        };
        let question = Question {
            node: self.node.clone(),
            direction: event.direction,
            source,
            destination,
            transport: event.transport,
            outcome: event.outcome,
        };
        let (view, node) = (self.view, self.node);
        self.reasons.get(question, || work_out(view, node, event, local, peer).map(Arc::new))
    }
}

fn work_out(view: &View, node: &NodeName, event: &Event<'_>, local: (IpAddr, &End), peer: (IpAddr, &End)) -> Option<Why> {
    if let Transport::Port(protocol, port) = event.transport
        && let Some((target, port)) = view.published_port(node, event.destination, protocol, port)
    {
        return Some(through_published_port(view, event, peer, target, port));
    }
    let workload = local.1.workload.as_ref()?;
    let name = name_of(peer);
    let seen = PeerView { address: peer.0, name: &name };
    let judged = view.published.compiled.judge_end(&workload.id, event.direction, local.0, seen, event.transport);
    Some(match (judged, event.outcome) {
        // Where the newest policy allows what was denied, the node judged by an older one.
        (Some(verdict), Outcome::Denied(generation)) if verdict.allowed() => Why::AllowedSince(verdict, generation),
        (Some(verdict), Outcome::Audited(generation)) if verdict.allowed() && verdict.audit_denied().is_none() => {
            Why::AuditedBefore(verdict, generation)
        }
        (Some(verdict), Outcome::Audited(_)) => Why::Audited(verdict),
        (Some(verdict), Outcome::Passed | Outcome::Denied(_)) => Why::Judged(verdict),
        (None, _) => Why::Ended(event.direction),
    })
}

fn through_published_port(view: &View, event: &Event<'_>, source: (IpAddr, &End), target: &Workload, port: &PublishedPort) -> Why {
    let compiled = &view.published.compiled;
    let transport = Transport::Port(port.protocol, port.workload_port);
    let local = target.addresses.iter().find(|at| at.address.is_ipv4() == source.0.is_ipv4()).or_else(|| target.addresses.first());
    let local = local.map_or(event.destination, |at| at.address);
    let name = name_of(source);
    let ingress = compiled.judge_end(&target.id, Direction::Ingress, local, PeerView { address: source.0, name: &name }, transport);
    let egress = source.1.workload.as_ref().and_then(|workload| {
        let name = format!("{}/{}", target.namespace, target.name);
        compiled.judge_end(&workload.id, Direction::Egress, source.0, PeerView { address: local, name: &name }, transport)
    });
    let generation = match event.outcome {
        Outcome::Passed => 0,
        Outcome::Denied(generation) | Outcome::Audited(generation) => generation,
    };
    let is_audited = matches!(event.outcome, Outcome::Audited(_));
    let denies = |verdict: &DirectionVerdict| !verdict.allowed() || (is_audited && verdict.audit_denied().is_some());
    Why::Behind {
        direction: event.direction,
        port: format!("node port {} leads to {}/{} port {}", port.host_port, target.namespace, target.name, port.workload_port),
        denied: [egress, ingress].into_iter().flatten().find(denies).ok_or(generation),
    }
}

fn name_of((address, end): (IpAddr, &End)) -> String {
    match (&end.workload, &end.node) {
        (Some(workload), _) if workload.labels.0.is_empty() => format!("{}/{}", workload.namespace, workload.name),
        (Some(workload), _) => format!("{}/{} [{}]", workload.namespace, workload.name, workload.labels),
        (None, None) => address.to_string(),
        (None, Some(node)) => format!("node {node} ({address})"),
    }
}

fn read<'a>(node: &NodeName, network: &NetworkName, wire: &'a v1::FlowEvent, now: Timestamp) -> Result<Event<'a>, Refusal> {
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
    if !network.reaches(node) {
        return Err(Refusal::new("network", format!("{} belongs to another node; this stream is node {node}'s", wire.network)));
    }
    let (source, destination) = (packet_address(&wire.source, "source")?, packet_address(&wire.destination, "destination")?);
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(Refusal::new("destination", format!("{destination} is not of the family of the source {source}")));
    }
    Ok(Event {
        direction,
        source,
        destination,
        transport: packet_transport(transport).map_err(|refusal| refusal.within("transport"))?,
        container: &wire.container,
        outcome: match wire.verdict() {
            v1::Verdict::Drop | v1::Verdict::Reject => Outcome::Denied(wire.generation),
            v1::Verdict::Audit => Outcome::Audited(wire.generation),
            v1::Verdict::Allow | v1::Verdict::Unspecified => Outcome::Passed,
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
