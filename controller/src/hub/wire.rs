//! Verdicts and ends as messages.

use firebreak_policy::FlowVerdict;
use firebreak_policy::evaluate::{DirectionVerdict, NearMiss, Reason};
use firebreak_policy::model::{Answer, Direction, PolicyKey, Transport, Workload};
use firebreak_policy::node_state::RuleRef;
use firebreak_proto::Refusal;
use firebreak_proto::convert::{address_to_wire, policy_to_wire, protocol_from_wire};
use firebreak_proto::v1;
use std::net::IpAddr;

/// A verdict from both ends.
pub(crate) fn flow_verdict(verdict: &FlowVerdict) -> v1::FlowVerdict {
    let egress = verdict.egress.as_ref().map(direction_verdict);
    let ingress = verdict.ingress.as_ref().map(direction_verdict);
    // What the source's side denies never comes to the other.
    let denies = [&egress, &ingress].into_iter().flatten().map(v1::DirectionVerdict::verdict).find(|it| *it != v1::Verdict::Allow);
    v1::FlowVerdict { verdict: denies.unwrap_or(v1::Verdict::Allow).into(), egress, ingress }
}

fn wire_verdict(allowed: bool) -> v1::Verdict {
    if allowed { v1::Verdict::Allow } else { v1::Verdict::Drop }
}

/// The verdict of one end with its reasons.
pub(crate) fn direction_verdict(verdict: &DirectionVerdict) -> v1::DirectionVerdict {
    let mut wire = reason(verdict.direction, &verdict.reason);
    wire.audit = verdict.audit.as_ref().map(|audit| Box::new(reason(verdict.direction, audit)));
    wire
}

fn reason(seen_from: Direction, reason: &Reason) -> v1::DirectionVerdict {
    let mut wire = v1::DirectionVerdict {
        direction: direction(seen_from).into(),
        verdict: wire_verdict(reason.allowed()).into(),
        reason: reason.to_string(),
        ..v1::DirectionVerdict::default()
    };
    match reason {
        Reason::NotIsolated | Reason::OwnNode | Reason::ToItself => {}
        Reason::AllowedBy(by) => wire.rule = Some(rule(by)),
        Reason::DeniedBy { rule: by, answer, text: _ } => {
            wire.rule = Some(rule(by));
            if *answer == Answer::Reject {
                wire.verdict = v1::Verdict::Reject.into();
            }
        }
        Reason::NoRule { isolating, nearest } => {
            wire.isolating = policies(isolating);
            wire.nearest = nearest.as_ref().map(near_miss);
        }
    }
    wire
}

fn near_miss(miss: &NearMiss) -> v1::NearMiss {
    let fields: Vec<String> = miss.fields.iter().map(ToString::to_string).collect();
    v1::NearMiss { rule: Some(rule(&miss.rule)), field: fields.join(","), wanted: miss.wanted.clone(), got: miss.got.clone() }
}

fn rule(rule: &RuleRef) -> v1::RuleRef {
    v1::RuleRef { rule_index: Some(rule.index), rule_name: rule.name.clone().unwrap_or_default(), ..policy_to_wire(&rule.policy) }
}

/// Policies as a whole.
pub(crate) fn policies(keys: &[PolicyKey]) -> Vec<v1::RuleRef> {
    keys.iter().map(policy_to_wire).collect()
}

/// Ingress or egress.
pub(crate) fn direction(direction: Direction) -> v1::Direction {
    match direction {
        Direction::Ingress => v1::Direction::Ingress,
        Direction::Egress => v1::Direction::Egress,
    }
}

/// A workload as one end of a flow.
pub(crate) fn workload_peer(workload: &Workload, address: Option<IpAddr>) -> v1::Peer {
    v1::Peer {
        address: address.map(address_to_wire).unwrap_or_default(),
        workload: Some(v1::WorkloadId { node: workload.id.node.to_string(), container: workload.id.container.to_string() }),
        name: workload.name.clone(),
        namespace: workload.namespace.to_string(),
        labels: workload.labels.0.clone().into_iter().collect(),
        node: workload.id.node.to_string(),
        note: String::new(),
    }
}

/// Reads what a packet carries; whole or refused.
///
/// # Errors
/// Names the field that is missing or out of place.
pub(crate) fn transport(wire: &v1::Transport) -> Result<Transport, Refusal> {
    let protocol = protocol_from_wire(wire.protocol, "protocol")?;
    if protocol.has_ports() {
        let port = wire.port.ok_or_else(|| Refusal::new("port", format!("{protocol} has ports, and none is given")))?;
        let port = u16::try_from(port).map_err(|_| Refusal::new("port", format!("{port} is no port number")))?;
        return Ok(Transport::Port(protocol, port));
    }
    if wire.port.is_some() {
        return Err(Refusal::new("port", format!("{protocol} has no ports")));
    }
    let Some(family) = protocol.icmp_family() else { return Ok(Transport::Other(protocol)) };
    let byte = |value: Option<u32>, field: &str| {
        let value = value.ok_or_else(|| Refusal::new(field, format!("{protocol} has a type and a code, and this one is not given")))?;
        u8::try_from(value).map_err(|_| Refusal::new(field, format!("{value} is over 255")))
    };
    Ok(Transport::Icmp { family, kind: byte(wire.icmp_type, "icmp_type")?, code: byte(wire.icmp_code, "icmp_code")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebreak_policy::model::{NamespaceName, PolicyKind};

    #[test]
    fn a_flow_meets_what_the_first_side_does_that_denies_it() {
        let side = |of: Direction, does: Option<Answer>| {
            let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: NamespaceName::new("shop"), name: "p".to_owned() };
            let by = RuleRef { policy, index: 0, name: None };
            let reason = match does {
                None => Reason::NotIsolated,
                Some(answer) => Reason::DeniedBy { rule: by, answer, text: None },
            };
            Some(DirectionVerdict { direction: of, reason, audit: None })
        };
        let (drop, reject) = (Some(Answer::Drop), Some(Answer::Reject));
        for (egress, ingress, whole) in [
            (None, None, v1::Verdict::Allow),
            (None, reject, v1::Verdict::Reject),
            (reject, None, v1::Verdict::Reject),
            (drop, reject, v1::Verdict::Drop),
            (reject, drop, v1::Verdict::Reject),
        ] {
            let verdict = FlowVerdict { egress: side(Direction::Egress, egress), ingress: side(Direction::Ingress, ingress) };
            assert_eq!(flow_verdict(&verdict).verdict(), whole, "{egress:?} {ingress:?}");
        }
    }
}
