//! `ValidateNetworkPolicySpec` of the Kubernetes API (pkg/apis/networking/validation), and the policy.

use super::{namespace, note, parts};
use crate::path::{At, Problems};
use crate::validate;
use crate::{IntOrString, IpBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};
use firebreak_policy::model::{
    HostAccess, LabelSelector, NamespaceScope, Peer, Peers, Policy, PolicyKey, PolicyKind, Protocol, Rule, Service, Services,
};

pub(super) fn policy(object: &NetworkPolicy, problems: &mut Problems<'_>) -> Policy {
    let NetworkPolicy { metadata, spec } = object;
    let NetworkPolicySpec { pod_selector, policy_types, ingress, egress } = spec;
    let root = At::ROOT;
    let at = root.field("spec");
    let subject = pod_selector
        .as_ref()
        .map_or_else(LabelSelector::everything, |selector| parts::selector(selector, &at.field("podSelector"), problems));
    let (isolates_ingress, isolates_egress) = policy_types_of(policy_types.as_deref(), egress.is_some_and_full(), &at, problems);

    let list = at.field("ingress");
    let mut ingress_rules = Vec::new();
    for (position, written) in ingress.iter().flatten().enumerate() {
        ingress_rules.push(rule(written.from.as_deref(), "from", written.ports.as_deref(), &list.index(position), problems));
    }
    let list = at.field("egress");
    let mut egress_rules = Vec::new();
    for (position, written) in egress.iter().flatten().enumerate() {
        egress_rules.push(rule(written.to.as_deref(), "to", written.ports.as_deref(), &list.index(position), problems));
    }
    Policy {
        key: PolicyKey { kind: PolicyKind::NetworkPolicy, namespace: namespace(metadata), name: metadata.name.clone() },
        mode: parts::mode(metadata, problems),
        subject,
        // A section that the types do not name is checked but says nothing (SEMANTICS 1).
        ingress: isolates_ingress.then_some(ingress_rules),
        egress: isolates_egress.then_some(egress_rules),
        host_access: HostAccess::Allow,
    }
}

trait IsSomeAndFull {
    fn is_some_and_full(&self) -> bool;
}

impl<T> IsSomeAndFull for Option<Vec<T>> {
    fn is_some_and_full(&self) -> bool {
        self.as_ref().is_some_and(|list| !list.is_empty())
    }
}

/// Which directions the policy isolates (SEMANTICS 1). An empty list of types is the same as none (`SetDefaults_NetworkPolicy`).
fn policy_types_of(types: Option<&[String]>, has_egress_rules: bool, spec: &At<'_>, problems: &mut Problems<'_>) -> (bool, bool) {
    let types = types.unwrap_or_default();
    if types.is_empty() {
        return (true, has_egress_rules);
    }
    let at = spec.field("policyTypes");
    if types.len() > 2 {
        problems.add(&at, "there are only two policy types, Ingress and Egress; name each at most once");
    }
    for (position, name) in types.iter().enumerate() {
        if !matches!(name.as_str(), "Ingress" | "Egress") {
            problems.add(&at.index(position), format!("{name:?} is not known; use Ingress or Egress"));
        }
    }
    (types.iter().any(|name| name == "Ingress"), types.iter().any(|name| name == "Egress"))
}

fn rule(
    peers: Option<&[NetworkPolicyPeer]>,
    peers_field: &str,
    ports: Option<&[NetworkPolicyPort]>,
    at: &At<'_>,
    problems: &mut Problems<'_>,
) -> Rule {
    let list = at.field(peers_field);
    let mut only = Vec::new();
    for (position, written) in peers.into_iter().flatten().enumerate() {
        only.extend(peer(written, &list.index(position), problems));
    }
    let list = at.field("ports");
    let mut services = Vec::new();
    for (position, written) in ports.into_iter().flatten().enumerate() {
        services.extend(service(written, &list.index(position), problems));
    }
    // Absent and empty lists mean any here and only here (SEMANTICS 2); that is said by what was written, never by what is left
    // after conversion.
    Rule {
        name: None,
        peers: if peers.is_none_or(<[_]>::is_empty) { Peers::Any } else { Peers::Only(only) },
        services: if ports.is_none_or(<[_]>::is_empty) { Services::Any } else { Services::Only(services) },
    }
}

fn peer(peer: &NetworkPolicyPeer, at: &At<'_>, problems: &mut Problems<'_>) -> Option<Peer> {
    let NetworkPolicyPeer { pod_selector, namespace_selector, ip_block } = peer;
    let workloads = pod_selector.as_ref().map(|selector| parts::selector(selector, &at.field("podSelector"), problems));
    let namespaces = namespace_selector.as_ref().map(|selector| parts::selector(selector, &at.field("namespaceSelector"), problems));
    match (ip_block, workloads, namespaces) {
        (Some(IpBlock { cidr, except }), None, None) => {
            parts::block(cidr, except.as_deref(), &at.field("ipBlock"), problems).map(Peer::Cidr)
        }
        (Some(_), _, _) => {
            problems.add(at, "has ipBlock and a selector; make two peers of it");
            None
        }
        (None, None, None) => {
            problems.add(at, "is an empty peer; give podSelector, namespaceSelector or ipBlock");
            None
        }
        (None, workloads, namespaces) => Some(Peer::Workloads {
            namespaces: namespaces.map_or(NamespaceScope::Own, NamespaceScope::Matching),
            workloads: workloads.unwrap_or_default(),
        }),
    }
}

fn service(port: &NetworkPolicyPort, at: &At<'_>, problems: &mut Problems<'_>) -> Option<Service> {
    let NetworkPolicyPort { protocol, port, end_port } = port;
    let protocol = match protocol {
        None => Some(Protocol::TCP),
        Some(name) => note(validate::kubernetes_protocol(name), &at.field("protocol"), problems),
    };
    match (port, end_port) {
        (None, None) => protocol.map(Service::Protocol),
        (None, Some(_)) => {
            problems.add(&at.field("endPort"), "needs a port, where the range begins");
            None
        }
        (Some(IntOrString::Int(number)), end_port) => {
            let range = parts::port_range(*number, *end_port, at, problems);
            Some(Service::Ports(protocol?, range?))
        }
        (Some(IntOrString::String(name)), end_port) => {
            note(validate::port_name(name), &at.field("port"), problems);
            if end_port.is_some() {
                problems.add(&at.field("endPort"), "a named port has no range; give port as a number");
            }
            Some(Service::Named(protocol?, name.clone()))
        }
    }
}
