//! SegmentPolicy to the policy. Unlike NetworkPolicy, nothing empty ever means any: `from` and `to` are required and not empty.

use super::{namespace, note, parts};
use crate::path::{At, Problems};
use crate::validate;
use crate::{
    Block, EgressRule, Entity, HostAccess, Icmp, IngressRule, IntOrString, IpFamily, Mode, Peer, SegmentPolicy, SegmentPolicySpec,
    ServicePort,
};
use firebreak_policy::model::{
    self, Family, GroupName, NamespaceScope, Peers, Policy, PolicyKey, PolicyKind, Protocol, Rule, Service, Services,
};
use std::collections::BTreeSet;

pub(super) fn policy(object: &SegmentPolicy, problems: &mut Problems<'_>) -> Policy {
    let SegmentPolicy { metadata, spec } = object;
    let SegmentPolicySpec { applies_to, mode, host_access, ingress, egress } = spec;
    let root = At::ROOT;
    let at = root.field("spec");
    if ingress.is_none() && egress.is_none() {
        problems.add(&at, "says nothing: give ingress, egress or both (an empty list denies the direction)");
    } else if ingress.is_none() && *host_access == Some(HostAccess::Judge) {
        problems
            .add(&at.field("hostAccess"), "Judge asks the ingress rules, and there is no ingress; give ingress or leave hostAccess out");
    }
    Policy {
        key: PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: namespace(metadata), name: metadata.name.clone() },
        mode: mode_of(*mode),
        subject: parts::selector(applies_to, &at.field("appliesTo"), problems),
        ingress: ingress.as_deref().map(|rules| {
            let written = rules.iter().map(|IngressRule { name, from, ports }| Written { name, peers: from, ports });
            rules_of(written, "from", &at.field("ingress"), problems)
        }),
        egress: egress.as_deref().map(|rules| {
            let written = rules.iter().map(|EgressRule { name, to, ports }| Written { name, peers: to, ports });
            rules_of(written, "to", &at.field("egress"), problems)
        }),
        host_access: match host_access {
            None | Some(HostAccess::Allow) => model::HostAccess::Allow,
            Some(HostAccess::Judge) => model::HostAccess::Judge,
        },
    }
}

pub(super) fn mode_of(mode: Option<Mode>) -> model::Mode {
    match mode {
        None | Some(Mode::Enforce) => model::Mode::Enforce,
        Some(Mode::Audit) => model::Mode::Audit,
    }
}

struct Written<'a> {
    name: &'a Option<String>,
    peers: &'a [Peer],
    ports: &'a Option<Vec<ServicePort>>,
}

fn rules_of<'a>(written: impl Iterator<Item = Written<'a>>, peers_field: &str, list: &At<'_>, problems: &mut Problems<'_>) -> Vec<Rule> {
    let mut names = BTreeSet::new();
    let mut rules = Vec::new();
    for (position, Written { name, peers, ports }) in written.enumerate() {
        let at = list.index(position);
        if let Some(name) = name {
            rule_name(name, &at.field("name"), problems);
            if !names.insert(name) {
                problems.add(&at.field("name"), format!("{name:?} names two rules of this list; verdicts could not tell them apart"));
            }
        }
        let peers = peers_of(peers, &at.field(peers_field), problems);
        let services = services_of(ports.as_deref(), &at.field("ports"), problems);
        rules.push(Rule { name: name.clone(), peers, services });
    }
    rules
}

pub(super) fn rule_name(name: &str, at: &At<'_>, problems: &mut Problems<'_>) {
    note(validate::dns_label(name), at, problems);
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        problems.add(at, format!("{name:?} looks like a rule's number; give it at least one letter"));
    }
}

fn peers_of(peers: &[Peer], list: &At<'_>, problems: &mut Problems<'_>) -> Peers {
    if peers.is_empty() {
        problems.add(list, "is empty; name at least one peer, `entity: any` for anyone, or remove the rule");
    }
    let mut only = Vec::new();
    for (position, written) in peers.iter().enumerate() {
        only.extend(peer(written, &list.index(position), problems));
    }
    Peers::Only(only)
}

fn peer(peer: &Peer, at: &At<'_>, problems: &mut Problems<'_>) -> Option<model::Peer> {
    let Peer { workloads, namespaces, cidr, address_group, entity } = peer;
    let selects = workloads.is_some() || namespaces.is_some();
    let forms = [selects, cidr.is_some(), address_group.is_some(), entity.is_some()];
    match forms.into_iter().filter(|present| *present).count() {
        0 => problems.add(at, "is an empty peer; give workloads, namespaces, cidr, addressGroup or entity"),
        1 => {}
        _ => problems.add(at, "mixes kinds of peers; make one peer of each of: workloads with namespaces, cidr, addressGroup, entity"),
    }
    if selects {
        let everything = model::LabelSelector::everything;
        let workloads = workloads.as_ref().map_or_else(everything, |selector| parts::selector(selector, &at.field("workloads"), problems));
        let namespaces = match namespaces {
            None => NamespaceScope::Own,
            Some(selector) => NamespaceScope::Matching(parts::selector(selector, &at.field("namespaces"), problems)),
        };
        return Some(model::Peer::Workloads { namespaces, workloads });
    }
    by_address((cidr.as_ref(), address_group.as_deref(), *entity), at, problems)
}

/// A peer that is no workload: a block, a group of blocks or an entity; the first that is there.
pub(super) fn by_address(
    (cidr, address_group, entity): (Option<&Block>, Option<&str>, Option<Entity>),
    at: &At<'_>,
    problems: &mut Problems<'_>,
) -> Option<model::Peer> {
    if let Some(block) = cidr {
        return parts::block(&block.cidr, block.except.as_deref(), &at.field("cidr"), problems).map(model::Peer::Cidr);
    }
    if let Some(name) = address_group {
        note(validate::dns_subdomain(name), &at.field("addressGroup"), problems);
        return Some(model::Peer::Group(GroupName::new(name)));
    }
    entity.map(|entity| model::Peer::Entity(entity_of(entity)))
}

fn entity_of(entity: Entity) -> model::Entity {
    match entity {
        Entity::Any => model::Entity::Any,
        Entity::Host => model::Entity::Host,
        Entity::World => model::Entity::World,
    }
}

pub(super) fn services_of(ports: Option<&[ServicePort]>, list: &At<'_>, problems: &mut Problems<'_>) -> Services {
    let Some(ports) = ports else { return Services::Any };
    if ports.is_empty() {
        problems.add(list, "is empty; name at least one port, or leave ports out for every port");
    }
    let mut only = Vec::new();
    for (position, written) in ports.iter().enumerate() {
        only.extend(service(written, &list.index(position), problems));
    }
    Services::Only(only)
}

fn service(written: &ServicePort, at: &At<'_>, problems: &mut Problems<'_>) -> Option<Service> {
    let ServicePort { protocol, port, end_port, icmp } = written;
    match (protocol, icmp) {
        (None, None) => {
            problems.add(at, "names no service; give protocol (for instance TCP), or icmp");
            None
        }
        (Some(_), Some(_)) => {
            problems.add(at, "has both protocol and icmp; make two entries of it");
            None
        }
        (None, Some(icmp)) => {
            if port.is_some() {
                problems.add(&at.field("port"), "ICMP has no ports; give icmp.type and icmp.code");
            }
            if end_port.is_some() {
                problems.add(&at.field("endPort"), "ICMP has no ports; give icmp.type and icmp.code");
            }
            icmp_service(icmp, &at.field("icmp"), problems)
        }
        (Some(name), None) => {
            let protocol = note(protocol_of(name), &at.field("protocol"), problems);
            if let (Some(protocol), true) = (protocol, port.is_some() || end_port.is_some())
                && !protocol.has_ports()
            {
                let field = if port.is_some() { "port" } else { "endPort" };
                problems.add(&at.field(field), format!("{protocol} has no ports; leave the field out, or give another protocol"));
                return None;
            }
            ports_service(protocol, port.as_ref(), *end_port, at, problems)
        }
    }
}

fn ports_service(
    protocol: Option<Protocol>,
    port: Option<&IntOrString>,
    end_port: Option<i64>,
    at: &At<'_>,
    problems: &mut Problems<'_>,
) -> Option<Service> {
    match (port, end_port) {
        (None, None) => protocol.map(Service::Protocol),
        (None, Some(_)) => {
            problems.add(&at.field("endPort"), "needs a port, where the range begins");
            None
        }
        (Some(IntOrString::Int(number)), end_port) => {
            let range = parts::port_range(*number, end_port, at, problems);
            Some(Service::Ports(protocol?, range?))
        }
        (Some(IntOrString::String(name)), end_port) => {
            note(validate::port_name(name), &at.field("port"), problems);
            if end_port.is_some() {
                problems.add(&at.field("endPort"), "a named port has no range; give port as a number");
            }
            let protocol = protocol?;
            if !parts::has_named_ports(protocol) {
                problems
                    .add(&at.field("port"), format!("workloads name TCP, UDP and SCTP ports only; give the {protocol} port as a number"));
            }
            Some(Service::Named(protocol, name.clone()))
        }
    }
}

fn protocol_of(written: &IntOrString) -> Result<Protocol, String> {
    match written {
        IntOrString::Int(number) => {
            u8::try_from(*number).map(Protocol).map_err(|_| format!("{number} is not an IP protocol number; use 0 to 255"))
        }
        IntOrString::String(name) => match name.as_str() {
            "TCP" => Ok(Protocol::TCP),
            "UDP" => Ok(Protocol::UDP),
            "SCTP" => Ok(Protocol::SCTP),
            "UDPLite" => Ok(Protocol::UDPLITE),
            "DCCP" => Ok(Protocol::DCCP),
            "ICMP" => Ok(Protocol::ICMP),
            "ICMPv6" => Ok(Protocol::ICMPV6),
            _ => Err(format!("{name:?} is not known; use one of TCP, UDP, SCTP, UDPLite, DCCP, ICMP, ICMPv6, or an IP protocol number")),
        },
    }
}

fn icmp_service(icmp: &Icmp, at: &At<'_>, problems: &mut Problems<'_>) -> Option<Service> {
    let Icmp { family, kind, code } = icmp;
    let byte = |number: i64| u8::try_from(number).map_err(|_| format!("{number} is out of range; use 0 to 255"));
    let family = match family {
        IpFamily::IPv4 => Family::V4,
        IpFamily::IPv6 => Family::V6,
    };
    let kind = note(byte(*kind), &at.field("type"), problems);
    let code = match code {
        None => None,
        Some(code) => Some(note(byte(*code), &at.field("code"), problems)?),
    };
    Some(Service::Icmp { family, kind: kind?, code })
}
