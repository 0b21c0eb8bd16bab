//! A node's state, object by object, to the wire and back. Reading converts whole or refuses whole: an unset choice, an enum's
//! zero, a number out of range refuse the object by the name of the field, and never stand for a default.

use crate::convert::{
    Refusal, address_from_wire, address_to_wire, addresses_from_wire, addresses_to_wire, block_from_wire, block_to_wire, policy_from_wire,
    policy_to_wire, port_from_wire, ported_from_wire, protocol_from_wire, published_from_wire, required, text_from_wire,
};
use crate::hash::{self, ContentHash, ObjectKey, ObjectKind, WireKind as _};
use crate::v1;
use firebreak_policy::model::{Action, Answer, Family, HostAccess, NamespaceName, NodeName, PortRange, Protocol, WorkloadId};
use firebreak_policy::node_state::{
    CompiledPeers, CompiledRule, CompiledService, CompiledServices, GroupId, Isolation, LocalEndpoint, Member, RuleRef, Rulebook, Segment,
    SegmentId, TierRule, TierRules,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The update that creates or replaces a segment.
pub fn segment_update(segment: &Segment) -> v1::ObjectUpdate {
    update(v1::object_update::Change::Segment(segment.into()), Some(hash::segment_hash(segment)))
}

/// The update that creates or replaces a workload of the node.
pub fn endpoint_update(endpoint: &LocalEndpoint) -> v1::ObjectUpdate {
    update(v1::object_update::Change::Endpoint(endpoint.into()), Some(hash::endpoint_hash(endpoint)))
}

/// The update that sets the node's own addresses.
pub fn node_update(name: &NodeName, addresses: &BTreeSet<IpAddr>) -> v1::ObjectUpdate {
    update(v1::object_update::Change::Node(node_to_wire(name, addresses)), Some(hash::node_hash(name, addresses)))
}

/// The update that changes a group, or a part of that update.
pub fn group_update(change: &GroupChange) -> v1::ObjectUpdate {
    update(v1::object_update::Change::Group(change.into()), None)
}

/// The update that takes an object away.
pub fn removal(key: &ObjectKey) -> v1::ObjectUpdate {
    let removed = v1::RemovedObject { kind: v1::ObjectKind::from(key.kind).into(), id: key.id.to_string() };
    update(v1::object_update::Change::Removed(removed), None)
}

fn update(change: v1::object_update::Change, hash: Option<ContentHash>) -> v1::ObjectUpdate {
    v1::ObjectUpdate { change: Some(change), hash: hash.map(ContentHash::to_wire).unwrap_or_default() }
}

/// The object that an update is about, readable even where the rest of it is not; `None` when it does not say.
pub fn key_of(update: &v1::ObjectUpdate) -> Option<ObjectKey> {
    let (kind, id) = match update.change.as_ref()? {
        v1::object_update::Change::Group(group) => (ObjectKind::Group, group.id.as_str()),
        v1::object_update::Change::Segment(segment) => (ObjectKind::Segment, segment.id.as_str()),
        v1::object_update::Change::Endpoint(endpoint) => (ObjectKind::Endpoint, endpoint.id.as_ref()?.container.as_str()),
        v1::object_update::Change::Node(node) => (ObjectKind::Node, node.name.as_str()),
        v1::object_update::Change::Removed(removed) => (ObjectKind::from_wire(removed.kind).ok()?, removed.id.as_str()),
    };
    (!id.is_empty()).then(|| ObjectKey::new(kind, id))
}

/// A group's members, all of them or what comes and goes, as one message carries them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupChange {
    /// The group.
    pub id: GroupId,
    /// For people.
    pub title: String,
    /// Forget the members held so far before this is applied.
    pub reset: bool,
    /// Members that come.
    pub add: Vec<Member>,
    /// Members that go.
    pub remove: Vec<Member>,
    /// The hash of the whole group after its last part; `None` in the parts before.
    pub hash: Option<ContentHash>,
}

impl From<&GroupChange> for v1::GroupPart {
    fn from(change: &GroupChange) -> Self {
        let GroupChange { id, title, reset, add, remove, hash } = change;
        Self {
            id: id.0.to_string(),
            title: title.clone(),
            reset: *reset,
            add: add.iter().map(Into::into).collect(),
            remove: remove.iter().map(Into::into).collect(),
            hash: hash.map(ContentHash::to_wire).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::GroupPart> for GroupChange {
    type Error = Refusal;

    fn try_from(wire: v1::GroupPart) -> Result<Self, Refusal> {
        let v1::GroupPart { id, title, reset, add, remove, hash } = wire;
        Ok(Self {
            id: GroupId(text_from_wire(id, "id")?.into()),
            title,
            reset,
            add: each(add, "add", Member::try_from)?,
            remove: each(remove, "remove", Member::try_from)?,
            hash: if hash.is_empty() { None } else { Some(ContentHash::from_wire(&hash, "hash")?) },
        })
    }
}

impl From<&Member> for v1::Member {
    fn from(member: &Member) -> Self {
        Self {
            member: Some(match member {
                Member::Address(address) => v1::member::Member::Address(address_to_wire(*address)),
                Member::Block(block) => v1::member::Member::Block(block_to_wire(*block)),
                Member::Service(address, protocol, port) => v1::member::Member::Service(v1::MemberService {
                    address: address_to_wire(*address),
                    protocol: u32::from(protocol.0),
                    port: u32::from(*port),
                }),
            }),
        }
    }
}

impl TryFrom<v1::Member> for Member {
    type Error = Refusal;

    fn try_from(wire: v1::Member) -> Result<Self, Refusal> {
        Ok(match required(wire.member, "member")? {
            v1::member::Member::Address(address) => Self::Address(address_from_wire(&address, "address")?),
            v1::member::Member::Block(block) => Self::Block(block_from_wire(&block).map_err(|refusal| refusal.within("block"))?),
            v1::member::Member::Service(service) => {
                let read = || {
                    let v1::MemberService { address, protocol, port } = service;
                    Ok(Self::Service(
                        address_from_wire(&address, "address")?,
                        ported_from_wire(protocol, "protocol")?,
                        port_from_wire(port, "port")?,
                    ))
                };
                read().map_err(|refusal: Refusal| refusal.within("service"))?
            }
        })
    }
}

impl From<&Segment> for v1::Segment {
    fn from(segment: &Segment) -> Self {
        let Segment { id, title, rules, audit } = segment;
        Self { id: id.0.to_string(), title: title.clone(), ..rules_to_wire(rules, audit.as_deref()) }
    }
}

/// A segment's rules, as a segment without id and title.
pub(crate) fn rules_to_wire(rules: &Rulebook, audit: Option<&Rulebook>) -> v1::Segment {
    let Rulebook { admin, ingress, egress, baseline } = rules;
    v1::Segment {
        id: String::new(),
        title: String::new(),
        ingress: ingress.as_ref().map(Into::into),
        egress: egress.as_ref().map(Into::into),
        admin_ingress: tier_to_wire(&admin.ingress),
        admin_egress: tier_to_wire(&admin.egress),
        baseline_ingress: tier_to_wire(&baseline.ingress),
        baseline_egress: tier_to_wire(&baseline.egress),
        audit: audit.map(|Rulebook { admin, ingress, egress, baseline }| v1::AuditRules {
            ingress: ingress.as_ref().map(Into::into),
            egress: egress.as_ref().map(Into::into),
            admin_ingress: tier_to_wire(&admin.ingress),
            admin_egress: tier_to_wire(&admin.egress),
            baseline_ingress: tier_to_wire(&baseline.ingress),
            baseline_egress: tier_to_wire(&baseline.egress),
        }),
    }
}

impl TryFrom<v1::Segment> for Segment {
    type Error = Refusal;

    fn try_from(wire: v1::Segment) -> Result<Self, Refusal> {
        let v1::Segment { id, title, ingress, egress, admin_ingress, admin_egress, baseline_ingress, baseline_egress, audit } = wire;
        let read = |wire: v1::AuditRules| -> Result<Rulebook, Refusal> {
            let v1::AuditRules { ingress, egress, admin_ingress, admin_egress, baseline_ingress, baseline_egress } = wire;
            let isolation = |wire: Option<v1::Isolation>, field: &str| {
                wire.map(Isolation::try_from).transpose().map_err(|refusal| refusal.within(field))
            };
            let tier = |ingress: (Vec<v1::CompiledRule>, &str), egress: (Vec<v1::CompiledRule>, &str)| -> Result<TierRules, Refusal> {
                Ok(TierRules {
                    ingress: each(ingress.0, ingress.1, TierRule::try_from)?,
                    egress: each(egress.0, egress.1, TierRule::try_from)?,
                })
            };
            Ok(Rulebook {
                admin: tier((admin_ingress, "admin_ingress"), (admin_egress, "admin_egress"))?,
                ingress: isolation(ingress, "ingress")?,
                egress: isolation(egress, "egress")?,
                baseline: tier((baseline_ingress, "baseline_ingress"), (baseline_egress, "baseline_egress"))?,
            })
        };
        Ok(Self {
            id: SegmentId(text_from_wire(id, "id")?.into()),
            title,
            rules: read(v1::AuditRules { ingress, egress, admin_ingress, admin_egress, baseline_ingress, baseline_egress })?.into(),
            audit: audit.map(read).transpose().map_err(|refusal| refusal.within("audit"))?.map(Into::into),
        })
    }
}

fn tier_to_wire(rules: &[TierRule]) -> Vec<v1::CompiledRule> {
    rules.iter().map(Into::into).collect()
}

impl From<&TierRule> for v1::CompiledRule {
    fn from(rule: &TierRule) -> Self {
        let TierRule { origin, action, peers, services, reason } = rule;
        let action = match action {
            Action::Allow => v1::Action::Allow,
            Action::Deny(Answer::Drop) => v1::Action::Deny,
            Action::Deny(Answer::Reject) => v1::Action::Reject,
            Action::Pass => v1::Action::Pass,
        };
        Self {
            origin: Some(origin.into()),
            action: action.into(),
            peers: Some(peers_to_wire(peers)),
            services: Some(services_to_wire(services)),
            reason: reason.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::CompiledRule> for TierRule {
    type Error = Refusal;

    fn try_from(wire: v1::CompiledRule) -> Result<Self, Refusal> {
        let v1::CompiledRule { origin, action, peers, services, reason } = wire;
        let action = match v1::Action::try_from(action) {
            Ok(v1::Action::Allow) => Action::Allow,
            Ok(v1::Action::Deny) => Action::Deny(Answer::Drop),
            Ok(v1::Action::Reject) => Action::Deny(Answer::Reject),
            Ok(v1::Action::Pass) => Action::Pass,
            Ok(v1::Action::Unspecified) | Err(_) => return Err(Refusal::new("action", format!("{action} is no action"))),
        };
        let (origin, peers, services) = rule_from_wire(origin, peers, services)?;
        Ok(Self { origin, action, peers, services, reason: Some(reason).filter(|it| !it.is_empty()) })
    }
}

impl From<&Isolation> for v1::Isolation {
    fn from(isolation: &Isolation) -> Self {
        let Isolation { policies, host_access, rules } = isolation;
        let host_access = match host_access {
            HostAccess::Allow => v1::HostAccess::Allow,
            HostAccess::Judge => v1::HostAccess::Judge,
        };
        Self {
            policies: policies.iter().map(policy_to_wire).collect(),
            host_access: host_access.into(),
            rules: rules.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Isolation> for Isolation {
    type Error = Refusal;

    fn try_from(wire: v1::Isolation) -> Result<Self, Refusal> {
        let v1::Isolation { policies, host_access, rules } = wire;
        if policies.is_empty() {
            return Err(Refusal::new("policies", "is empty: something must have isolated"));
        }
        Ok(Self {
            policies: each(policies, "policies", policy_from_wire)?,
            host_access: match v1::HostAccess::try_from(host_access) {
                Ok(v1::HostAccess::Allow) => HostAccess::Allow,
                Ok(v1::HostAccess::Judge) => HostAccess::Judge,
                Ok(v1::HostAccess::Unspecified) | Err(_) => {
                    return Err(Refusal::new("host_access", format!("{host_access} is no choice")));
                }
            },
            rules: each(rules, "rules", CompiledRule::try_from)?,
        })
    }
}

impl From<&CompiledRule> for v1::CompiledRule {
    fn from(rule: &CompiledRule) -> Self {
        let CompiledRule { origin, peers, services } = rule;
        Self {
            origin: Some(origin.into()),
            action: v1::Action::Allow.into(),
            peers: Some(peers_to_wire(peers)),
            services: Some(services_to_wire(services)),
            reason: String::new(),
        }
    }
}

impl TryFrom<v1::CompiledRule> for CompiledRule {
    type Error = Refusal;

    fn try_from(wire: v1::CompiledRule) -> Result<Self, Refusal> {
        let v1::CompiledRule { origin, action, peers, services, reason } = wire;
        match v1::Action::try_from(action) {
            Ok(v1::Action::Allow) => {}
            Ok(v1::Action::Deny | v1::Action::Pass | v1::Action::Reject) => {
                return Err(Refusal::new("action", "is one of a tier, and what isolates only allows"));
            }
            Ok(v1::Action::Unspecified) | Err(_) => return Err(Refusal::new("action", format!("{action} is no action"))),
        }
        if !reason.is_empty() {
            return Err(Refusal::new("reason", "is set, and only rules of tiers have one"));
        }
        let (origin, peers, services) = rule_from_wire(origin, peers, services)?;
        Ok(Self { origin, peers, services })
    }
}

fn peers_to_wire(peers: &CompiledPeers) -> v1::compiled_rule::Peers {
    match peers {
        CompiledPeers::Any => v1::compiled_rule::Peers::AnyPeer(v1::AnyMarker {}),
        CompiledPeers::Groups(groups) => {
            v1::compiled_rule::Peers::Groups(v1::GroupList { group_ids: groups.iter().map(|id| id.0.to_string()).collect() })
        }
    }
}

fn services_to_wire(services: &CompiledServices) -> v1::compiled_rule::Services {
    match services {
        CompiledServices::Any => v1::compiled_rule::Services::AnyService(v1::AnyMarker {}),
        CompiledServices::Only(list) => {
            v1::compiled_rule::Services::ServicesList(v1::ServiceList { services: list.iter().map(Into::into).collect() })
        }
        CompiledServices::OfMembers => v1::compiled_rule::Services::OfMembers(v1::AnyMarker {}),
    }
}

fn rule_from_wire(
    origin: Option<v1::RuleRef>,
    peers: Option<v1::compiled_rule::Peers>,
    services: Option<v1::compiled_rule::Services>,
) -> Result<(RuleRef, CompiledPeers, CompiledServices), Refusal> {
    let peers = match required(peers, "peers")? {
        v1::compiled_rule::Peers::AnyPeer(v1::AnyMarker {}) => CompiledPeers::Any,
        v1::compiled_rule::Peers::Groups(list) => {
            CompiledPeers::Groups(each(list.group_ids, "groups", |id| text_from_wire(id, "").map(|id| GroupId(id.into())))?)
        }
    };
    let services = match required(services, "services")? {
        v1::compiled_rule::Services::AnyService(v1::AnyMarker {}) => CompiledServices::Any,
        v1::compiled_rule::Services::ServicesList(list) => {
            CompiledServices::Only(each(list.services, "services_list", CompiledService::try_from)?)
        }
        v1::compiled_rule::Services::OfMembers(v1::AnyMarker {}) => match peers {
            CompiledPeers::Groups(_) => CompiledServices::OfMembers,
            CompiledPeers::Any => return Err(Refusal::new("of_members", "needs groups as peers")),
        },
    };
    let origin = RuleRef::try_from(required(origin, "origin")?).map_err(|refusal| refusal.within("origin"))?;
    Ok((origin, peers, services))
}

impl From<&CompiledService> for v1::Service {
    fn from(service: &CompiledService) -> Self {
        Self {
            service: Some(match service {
                CompiledService::Protocol(protocol) => v1::service::Service::Protocol(u32::from(protocol.0)),
                CompiledService::Ports(protocol, range) => v1::service::Service::Ports(v1::PortRange {
                    protocol: u32::from(protocol.0),
                    first: u32::from(range.first()),
                    last: u32::from(range.last()),
                }),
                CompiledService::Icmp { family, kind, code } => v1::service::Service::Icmp(v1::IcmpService {
                    protocol: u32::from(icmp_of(*family).0),
                    r#type: u32::from(*kind),
                    code: code.map(u32::from),
                }),
            }),
        }
    }
}

impl TryFrom<v1::Service> for CompiledService {
    type Error = Refusal;

    fn try_from(wire: v1::Service) -> Result<Self, Refusal> {
        match required(wire.service, "service")? {
            v1::service::Service::Protocol(number) => Ok(Self::Protocol(protocol_from_wire(number, "protocol")?)),
            v1::service::Service::Ports(ports) => ports_from_wire(ports).map_err(|refusal| refusal.within("ports")),
            v1::service::Service::Icmp(icmp) => icmp_from_wire(icmp).map_err(|refusal| refusal.within("icmp")),
        }
    }
}

fn ports_from_wire(wire: v1::PortRange) -> Result<CompiledService, Refusal> {
    let v1::PortRange { protocol, first, last } = wire;
    let port = |number: u32, field: &str| u16::try_from(number).map_err(|_| Refusal::new(field, format!("{number} is no port number")));
    let protocol = ported_from_wire(protocol, "protocol")?;
    let range = PortRange::new(port(first, "first")?, port(last, "last")?);
    let range = range.ok_or_else(|| Refusal::new("last", format!("{last} is less than first, {first}")))?;
    Ok(CompiledService::Ports(protocol, range))
}

fn icmp_from_wire(wire: v1::IcmpService) -> Result<CompiledService, Refusal> {
    let v1::IcmpService { protocol, r#type, code } = wire;
    let byte = |number: u32, field: &str| u8::try_from(number).map_err(|_| Refusal::new(field, format!("{number} is over 255")));
    let family = protocol_from_wire(protocol, "protocol")?.icmp_family();
    Ok(CompiledService::Icmp {
        family: family.ok_or_else(|| Refusal::new("protocol", format!("{protocol} is neither ICMP (1) nor ICMPv6 (58)")))?,
        kind: byte(r#type, "type")?,
        code: code.map(|code| byte(code, "code")).transpose()?,
    })
}

fn icmp_of(family: Family) -> Protocol {
    match family {
        Family::V4 => Protocol::ICMP,
        Family::V6 => Protocol::ICMPV6,
    }
}

impl From<&LocalEndpoint> for v1::LocalEndpoint {
    fn from(endpoint: &LocalEndpoint) -> Self {
        let LocalEndpoint { id, name, namespace, segment, addresses, published_ports } = endpoint;
        Self {
            id: Some(id.into()),
            name: name.clone(),
            namespace: namespace.as_str().to_owned(),
            segment_id: segment.0.to_string(),
            addresses: addresses_to_wire(addresses),
            published_ports: published_ports.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::LocalEndpoint> for LocalEndpoint {
    type Error = Refusal;

    fn try_from(wire: v1::LocalEndpoint) -> Result<Self, Refusal> {
        let v1::LocalEndpoint { id, name, namespace, segment_id, addresses, published_ports } = wire;
        Ok(Self {
            id: WorkloadId::try_from(required(id, "id")?).map_err(|refusal| refusal.within("id"))?,
            name: text_from_wire(name, "name")?,
            namespace: NamespaceName::from(text_from_wire(namespace, "namespace")?),
            segment: SegmentId(text_from_wire(segment_id, "segment_id")?.into()),
            addresses: addresses_from_wire(&addresses, "addresses")?,
            published_ports: published_from_wire(published_ports)?,
        })
    }
}

pub(crate) fn node_to_wire(name: &NodeName, addresses: &BTreeSet<IpAddr>) -> v1::NodeObject {
    v1::NodeObject { name: name.as_str().to_owned(), addresses: addresses_to_wire(addresses) }
}

/// Reads the node itself: its name and its addresses.
pub fn node_from_wire(wire: v1::NodeObject) -> Result<(NodeName, BTreeSet<IpAddr>), Refusal> {
    let v1::NodeObject { name, addresses } = wire;
    Ok((NodeName::from(text_from_wire(name, "name")?), addresses_from_wire(&addresses, "addresses")?))
}

fn each<W, T>(list: Vec<W>, field: &str, read: impl Fn(W) -> Result<T, Refusal>) -> Result<Vec<T>, Refusal> {
    list.into_iter().enumerate().map(|(at, item)| read(item).map_err(|refusal| refusal.within(format_args!("{field}[{at}]")))).collect()
}
