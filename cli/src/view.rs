//! Wire messages as JSON, for `-o json` and `-o yaml`. Field names are camelCase; addresses and times are text.

use crate::output::{address, protocol_name, time};
use firebreak_proto::v1;
use serde_json::{Map, Value, json};

/// A rule, or a whole policy when it has no rule index.
pub(crate) fn rule(rule: &v1::RuleRef) -> Value {
    let mut value = json!({"kind": rule.kind, "namespace": rule.namespace, "name": rule.name});
    if let Some(index) = rule.rule_index {
        value["rule"] = json!(index);
    }
    if !rule.rule_name.is_empty() {
        value["ruleName"] = json!(rule.rule_name);
    }
    value
}

/// One end of a flow.
pub(crate) fn peer(peer: Option<&v1::Peer>) -> Value {
    let Some(peer) = peer else { return Value::Null };
    let mut value = Map::new();
    value.insert("address".into(), json!(address(&peer.address)));
    if let Some(id) = &peer.workload {
        value.insert("workload".into(), json!(peer.name));
        value.insert("namespace".into(), json!(peer.namespace));
        value.insert("labels".into(), json!(sorted(&peer.labels)));
        value.insert("node".into(), json!(id.node));
        value.insert("container".into(), json!(id.container));
    } else if !peer.node.is_empty() {
        value.insert("node".into(), json!(peer.node));
    }
    if !peer.note.is_empty() {
        value.insert("note".into(), json!(peer.note));
    }
    Value::Object(value)
}

/// Protocol, port, ICMP type and code.
pub(crate) fn transport(transport: Option<&v1::Transport>) -> Value {
    let Some(transport) = transport else { return Value::Null };
    let mut value = json!({"protocol": protocol_name(transport.protocol)});
    for (name, field) in [("port", transport.port), ("icmpType", transport.icmp_type), ("icmpCode", transport.icmp_code)] {
        if let Some(number) = field {
            value[name] = json!(number);
        }
    }
    value
}

/// `allow`, `drop`, `reject`, `audit`.
pub(crate) fn verdict(verdict: v1::Verdict) -> &'static str {
    match verdict {
        v1::Verdict::Unspecified => "unspecified",
        v1::Verdict::Allow => "allow",
        v1::Verdict::Drop => "drop",
        v1::Verdict::Reject => "reject",
        v1::Verdict::Audit => "audit",
    }
}

/// `ingress`, `egress`.
pub(crate) fn direction(direction: v1::Direction) -> &'static str {
    match direction {
        v1::Direction::Unspecified => "unspecified",
        v1::Direction::Ingress => "ingress",
        v1::Direction::Egress => "egress",
    }
}

/// `opened`, `updated`, `closed`.
pub(crate) fn phase(phase: v1::FlowPhase) -> &'static str {
    match phase {
        v1::FlowPhase::Unspecified => "unspecified",
        v1::FlowPhase::Opened => "opened",
        v1::FlowPhase::Updated => "updated",
        v1::FlowPhase::Closed => "closed",
    }
}

/// The verdict of one direction with its reasons.
pub(crate) fn direction_verdict(verdict_of: Option<&v1::DirectionVerdict>) -> Value {
    let Some(judged) = verdict_of else { return Value::Null };
    let mut value = json!({"direction": direction(judged.direction()), "verdict": verdict(judged.verdict()), "reason": judged.reason});
    if let Some(by) = &judged.rule {
        value["rule"] = rule(by);
    }
    if !judged.isolating.is_empty() {
        value["isolatedBy"] = judged.isolating.iter().map(rule).collect();
    }
    if let Some(nearest) = &judged.nearest {
        value["nearest"] = json!({
            "rule": nearest.rule.as_ref().map(rule),
            "field": nearest.field,
            "wanted": nearest.wanted,
            "got": nearest.got,
        });
    }
    value
}

/// What a guard refused frames for, in a word.
pub(crate) fn guard_reason(reason: v1::GuardReason) -> &'static str {
    match reason {
        v1::GuardReason::Unspecified => "unspecified",
        v1::GuardReason::SourceMac => "spoofed-mac",
        v1::GuardReason::SourceAddress => "spoofed-address",
        v1::GuardReason::Arp => "arp",
        v1::GuardReason::NeighbourDiscovery => "neighbour-discovery",
        v1::GuardReason::Router => "router-message",
        v1::GuardReason::DhcpServer => "dhcp-server",
        v1::GuardReason::EtherType => "ether-type",
        v1::GuardReason::Options => "ip-options",
        v1::GuardReason::Group => "group-destination",
        v1::GuardReason::IcmpError => "forged-icmp-error",
    }
}

/// `02:42:ac:11:00:02`; empty of nothing.
pub(crate) fn mac(bytes: &[u8]) -> String {
    let octets: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    octets.join(":")
}

/// A flow record as the SOC reads it.
pub(crate) fn flow(flow: &v1::AttributedFlow) -> Value {
    let stamp = flow.time.as_ref();
    let mut value = json!({
        "cursor": flow.cursor,
        "node": flow.node,
        "bootId": flow.boot_id,
        "sequence": flow.sequence,
        "nodeTime": time(stamp.and_then(|stamp| stamp.node_time.as_ref())),
        "controllerTime": time(stamp.and_then(|stamp| stamp.controller_time.as_ref())),
    });
    if let Some(lost) = &flow.lost {
        value["lost"] = json!({"direction": direction(lost.direction()), "packets": lost.packets, "reason": lost.reason});
    }
    if let Some(event) = &flow.node_event {
        let open = event.open.and_then(|open| std::time::Duration::try_from(open).ok());
        value["nodeEvent"] = json!({
            "kind": node_event(event.kind()),
            "message": event.message,
            "principal": event.principal,
            "reason": event.reason,
            "until": time(event.until.as_ref()),
            "openSeconds": open.map(|open| open.as_secs_f64()),
            "objects": event.objects,
        });
    }
    if let Some(cut) = &flow.cut {
        value["cut"] = json!({
            "cutId": hex(&cut.cut_id),
            "packetsSent": cut.packets_sent,
            "bytesSent": cut.bytes_sent,
            "packetsReceived": cut.packets_received,
            "bytesReceived": cut.bytes_received,
            "arrived": wire_ends(cut.arrived.as_ref()),
            "left": wire_ends(cut.left.as_ref()),
        });
        value["direction"] = json!(direction(cut.direction()));
        value["interface"] = json!(cut.interface);
        value["source"] = peer(flow.source.as_ref());
        value["destination"] = peer(flow.destination.as_ref());
        value["transport"] = transport(cut.transport.as_ref());
        value["sourcePort"] = json!(cut.source_port);
        value["generation"] = json!(cut.generation);
        value["network"] = json!(cut.network);
        value["revision"] = json!(flow.revision);
        value["reason"] = direction_verdict(flow.reason.as_ref());
        if !cut.note.is_empty() {
            value["note"] = json!(cut.note);
        }
    }
    if let Some(guard) = &flow.guard {
        value["guard"] = json!({
            "guardId": hex(&guard.guard_id),
            "reason": guard_reason(guard.reason()),
            "etherType": guard.ether_type,
            "sourceMac": mac(&guard.source_mac),
            "destinationMac": mac(&guard.destination_mac),
            "claimedSource": if guard.source.is_empty() { String::new() } else { address(&guard.source) },
            "claimedDestination": if guard.destination.is_empty() { String::new() } else { address(&guard.destination) },
            "frames": guard.frames,
            "bytes": guard.bytes,
            "firstSeen": time(guard.first_seen.as_ref()),
            "lastSeen": time(guard.last_seen.as_ref()),
        });
        value["phase"] = json!(phase(guard.phase()));
        value["direction"] = json!(direction(v1::Direction::Egress));
        value["interface"] = json!(guard.interface);
        value["source"] = peer(flow.source.as_ref());
        value["generation"] = json!(guard.generation);
        value["revision"] = json!(flow.revision);
    }
    if let Some(event) = &flow.event {
        value["flowId"] = json!(hex(&event.flow_id));
        value["phase"] = json!(phase(event.phase()));
        value["verdict"] = json!(verdict(event.verdict()));
        value["direction"] = json!(direction(event.direction()));
        value["interface"] = json!(event.interface);
        value["source"] = peer(flow.source.as_ref());
        value["destination"] = peer(flow.destination.as_ref());
        value["transport"] = transport(event.transport.as_ref());
        value["sourcePort"] = json!(event.source_port);
        value["sourcePorts"] = json!(event.source_ports);
        value["packets"] = json!(event.packets);
        value["bytes"] = json!(event.bytes);
        value["firstSeen"] = json!(time(event.first_seen.as_ref()));
        value["lastSeen"] = json!(time(event.last_seen.as_ref()));
        value["generation"] = json!(event.generation);
        value["network"] = json!(event.network);
        value["revision"] = json!(flow.revision);
        value["reason"] = direction_verdict(flow.reason.as_ref());
        if !event.note.is_empty() {
            value["note"] = json!(event.note);
        }
    }
    value
}

/// The ends of a connection on the wire.
fn wire_ends(ends: Option<&v1::WireEnds>) -> Value {
    ends.map_or(Value::Null, |ends| {
        json!({
            "source": address(&ends.source),
            "sourcePort": ends.source_port,
            "destination": address(&ends.destination),
            "destinationPort": ends.destination_port,
        })
    })
}

/// A condition.
pub(crate) fn conditions(conditions: &[v1::Condition]) -> Value {
    conditions.iter().map(|it| json!({"type": it.r#type, "status": it.status, "reason": it.reason, "message": it.message})).collect()
}

/// A stored object with its status beside it.
///
/// # Errors
/// If the controller sent JSON that is none.
pub(crate) fn object(object: &v1::Object) -> anyhow::Result<Value> {
    let mut value: Value = serde_json::from_slice(&object.json)?;
    if let Value::Object(fields) = &mut value {
        fields.insert(
            "status".into(),
            json!({"revision": object.revision, "created": time(object.created.as_ref()), "conditions": conditions(&object.conditions)}),
        );
    }
    Ok(value)
}

/// A live workload.
pub(crate) fn workload(status: &v1::WorkloadStatus) -> Value {
    let empty = v1::Workload::default();
    let workload = status.workload.as_ref().unwrap_or(&empty);
    let id = workload.id.clone().unwrap_or_default();
    json!({
        "kind": "Workload",
        "name": workload.name,
        "namespace": workload.namespace,
        "node": id.node,
        "container": id.container,
        "labels": sorted(&workload.labels),
        "imageLabels": sorted(&workload.image_labels),
        "image": workload.image,
        "addresses": workload.addresses.iter().map(|it| json!({"network": it.network, "address": address(&it.address)})).collect::<Vec<_>>(),
        "namedPorts": workload.named_ports.iter().map(|it| json!({"name": it.name, "protocol": protocol_name(it.protocol), "port": it.port})).collect::<Vec<_>>(),
        "publishedPorts": workload.published_ports.iter().map(published).collect::<Vec<_>>(),
        "interface": workload.interface,
        "hostNetwork": workload.host_network,
        "source": source(workload.source()),
        "segment": status.segment,
        "enforced": status.enforced,
        "reason": status.reason,
        "ingressPolicies": status.ingress_policies.iter().map(rule).collect::<Vec<_>>(),
        "egressPolicies": status.egress_policies.iter().map(rule).collect::<Vec<_>>(),
        "conditions": conditions(&status.conditions),
    })
}

fn published(port: &v1::PublishedPort) -> Value {
    json!({
        "protocol": protocol_name(port.protocol),
        "hostAddress": if port.host_address.is_empty() { "every".to_owned() } else { address(&port.host_address) },
        "hostPort": port.host_port,
        "workloadPort": port.workload_port,
    })
}

/// Who told us of a workload.
pub(crate) fn source(source: v1::WorkloadSource) -> &'static str {
    match source {
        v1::WorkloadSource::Unspecified => "unspecified",
        v1::WorkloadSource::Manifest => "manifest",
        v1::WorkloadSource::Docker => "docker",
        v1::WorkloadSource::Pod => "pod",
    }
}

/// `Connected`, `Lost`, `NeverSeen`.
pub(crate) fn connection(connection: v1::NodeConnection) -> &'static str {
    match connection {
        v1::NodeConnection::Unspecified => "Unspecified",
        v1::NodeConnection::Connected => "Connected",
        v1::NodeConnection::Lost => "Lost",
        v1::NodeConnection::NeverSeen => "NeverSeen",
    }
}

/// `Group`, `Segment`, `Endpoint`, `Node`.
pub(crate) fn object_kind(kind: v1::ObjectKind) -> &'static str {
    match kind {
        v1::ObjectKind::Unspecified => "Unspecified",
        v1::ObjectKind::Group => "Group",
        v1::ObjectKind::Segment => "Segment",
        v1::ObjectKind::Endpoint => "Endpoint",
        v1::ObjectKind::Node => "Node",
    }
}

/// A node and how far it is.
pub(crate) fn node(node: &v1::NodeStatus) -> Value {
    json!({
        "kind": "Node",
        "name": node.name,
        "connection": connection(node.connection()),
        "enforcing": node.enforcing,
        "targetRevision": node.target_revision,
        "ackedRevision": node.acked_revision,
        "sentGeneration": node.sent_generation,
        "ackedGeneration": node.acked_generation,
        "lagMilliseconds": node.lag_milliseconds,
        "workloads": node.workloads,
        "conflicts": node.conflicts.iter().map(conflict).collect::<Vec<_>>(),
        "warnings": node.warnings.iter().map(|it| json!({"code": it.code, "message": it.message})).collect::<Vec<_>>(),
        "refused": node.refused.iter().map(|it| json!({"kind": object_kind(it.kind()), "id": it.id, "reason": it.reason})).collect::<Vec<_>>(),
        "failure": node.failure,
        "observing": node.observing.as_ref().map(|it| json!({"until": time(it.until.as_ref()), "principal": it.principal, "reason": it.reason})),
        "lastSeen": time(node.last_seen.as_ref()),
        "agentVersion": node.agent_version,
        "kernel": node.kernel,
        "addresses": node.addresses.iter().map(|it| address(it)).collect::<Vec<_>>(),
        "labels": sorted(&node.labels),
    })
}

fn conflict(conflict: &v1::AddressConflict) -> Value {
    let at = conflict.address.clone().unwrap_or_default();
    json!({
        "address": address(&at.address),
        "network": at.network,
        "claimants": conflict.claimants.iter().map(|it| format!("{}/{}", it.node, it.container)).collect::<Vec<_>>(),
    })
}

/// A kind of node events, as one word.
pub(crate) fn node_event(kind: v1::NodeEventKind) -> &'static str {
    match kind {
        v1::NodeEventKind::Unspecified => "Unknown",
        v1::NodeEventKind::Tampered => "Tampered",
        v1::NodeEventKind::Repaired => "Repaired",
        v1::NodeEventKind::ObserveBegun => "ObserveBegun",
        v1::NodeEventKind::ObserveEnded => "ObserveEnded",
        v1::NodeEventKind::Upgraded => "Upgraded",
        v1::NodeEventKind::StateRefused => "StateRefused",
        v1::NodeEventKind::EnforcedFromDisk => "EnforcedFromDisk",
    }
}

/// One entry of the audit trail.
pub(crate) fn revision(entry: &v1::RevisionEntry) -> Value {
    json!({
        "revision": entry.revision,
        "time": time(entry.time.as_ref()),
        "principal": entry.principal,
        "verb": entry.verb,
        "reason": entry.reason,
        "changes": entry.changes.iter().map(|it| json!({"kind": it.kind, "namespace": it.namespace, "name": it.name, "result": result(it.result())})).collect::<Vec<_>>(),
    })
}

/// `created`, `configured`, `unchanged`, `deleted`, `not found`: kubectl's words.
pub(crate) fn result(result: v1::ChangeResult) -> &'static str {
    match result {
        v1::ChangeResult::Unspecified => "unspecified",
        v1::ChangeResult::Created => "created",
        v1::ChangeResult::Configured => "configured",
        v1::ChangeResult::Unchanged => "unchanged",
        v1::ChangeResult::Deleted => "deleted",
        v1::ChangeResult::NotFound => "not found",
    }
}

fn sorted(labels: &std::collections::HashMap<String, String>) -> std::collections::BTreeMap<&String, &String> {
    labels.iter().collect()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
