//! The verdict on a flow and why: by the compiled state, the same that is flattened into kernel sets.

use crate::compile::Compiled;
use crate::model::{Action, Answer, Direction, Family, HostAccess, PolicyKey, Protocol, Transport, WorkloadId};
use crate::node_judge::is_member;
use crate::node_state::{CompiledPeers, CompiledRule, CompiledService, CompiledServices, Member, NodeState, RuleRef, Rulebook, TierRule};
use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;

/// The verdict of one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectionVerdict {
    /// Seen from the workload that was judged.
    pub direction: Direction,
    /// Why it is allowed, or why not.
    pub reason: Reason,
    /// The same by every policy in Audit mode as if enforced; `None` when none is about the workload that was judged.
    pub audit: Option<Reason>,
}

/// Why one end allows or denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Allowed: no policy isolates the workload in this direction.
    NotIsolated,
    /// Allowed: the workload's own node gets in.
    OwnNode,
    /// Allowed: a workload always reaches itself.
    ToItself,
    /// Allowed by this rule, the first in policy and rule order.
    AllowedBy(RuleRef),
    /// Denied: policies isolate and no rule allows.
    NoRule {
        /// All the policies that isolate the workload in this direction, in key order.
        isolating: Vec<PolicyKey>,
        /// The allow rule that came nearest; `None` if there is no rule at all.
        nearest: Option<NearMiss>,
    },
    /// Denied by this rule of a tier, the first that matched.
    DeniedBy {
        /// The rule.
        rule: RuleRef,
        /// How the packet is answered.
        answer: Answer,
        /// Why, in the author's words.
        text: Option<String>,
    },
}

impl Reason {
    /// Whether it lets the flow through.
    pub fn allowed(&self) -> bool {
        match self {
            Self::NotIsolated | Self::OwnNode | Self::ToItself | Self::AllowedBy(_) => true,
            Self::NoRule { .. } | Self::DeniedBy { .. } => false,
        }
    }
}

/// An allow rule that nearly allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// The rule.
    pub rule: RuleRef,
    /// What did not match; mostly one field.
    pub fields: Vec<Field>,
    /// What the rule wants there, for people.
    pub wanted: String,
    /// What the flow has there, for people.
    pub got: String,
}

/// A field of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// Who is at the other end.
    Peer,
    /// The protocol.
    Protocol,
    /// The destination port.
    Port,
    /// The ICMP type or code.
    IcmpType,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "peer",
            Self::Protocol => "protocol",
            Self::Port => "port",
            Self::IcmpType => "icmp type",
        })
    }
}

impl DirectionVerdict {
    /// Whether this end lets the flow through.
    pub fn allowed(&self) -> bool {
        self.reason.allowed()
    }

    /// Why this end would deny a flow that it lets through, if the policies in Audit mode were enforced.
    pub fn audit_denied(&self) -> Option<&Reason> {
        self.audit.as_ref().filter(|audit| self.allowed() && !audit.allowed())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIsolated => f.write_str("not isolated"),
            Self::OwnNode => f.write_str("own node"),
            Self::ToItself => f.write_str("to itself"),
            Self::AllowedBy(rule) => write!(f, "allowed by {rule}"),
            Self::NoRule { .. } => f.write_str("isolated, and no rule allows"),
            Self::DeniedBy { rule, answer: _, text: None } => write!(f, "denied by {rule}"),
            Self::DeniedBy { rule, answer: _, text: Some(text) } => write!(f, "denied by {rule}: {text}"),
        }
    }
}

/// The other end as the subject's node sees it.
#[derive(Clone, Copy, Debug)]
pub struct PeerView<'a> {
    /// Its address on the wire.
    pub address: IpAddr,
    /// What people call it, for the text of a near miss.
    pub name: &'a str,
}

impl Compiled {
    /// Judges one end by addresses, as its node's kernel does: `local` belongs to `subject`.
    ///
    /// `None` when the workload is not known, has ended, or shares its node's network: nobody judges for it.
    pub fn judge_end(
        &self,
        subject: &WorkloadId,
        direction: Direction,
        local: IpAddr,
        peer: PeerView<'_>,
        transport: Transport,
    ) -> Option<DirectionVerdict> {
        let state = self.node(&subject.node)?;
        let (endpoint, segment) = self.workload(subject)?;
        // An address of its own that another workload here claims too may be that one.
        let claimed = || state.endpoints.values().any(|it| it.id != endpoint.id && it.addresses.contains(&peer.address));
        if peer.address == local || (endpoint.addresses.contains(&peer.address) && !claimed()) {
            return Some(DirectionVerdict { direction, reason: Reason::ToItself, audit: None });
        }
        let by = |rules: &Rulebook| judge(state, rules, direction, peer, transport);
        Some(DirectionVerdict { direction, reason: by(&segment.rules), audit: segment.audit.as_deref().map(by) })
    }
}

fn judge(state: &NodeState, rules: &Rulebook, direction: Direction, peer: PeerView<'_>, transport: Transport) -> Reason {
    if let Some(decided) = tier(state, rules.admin.of(direction), peer.address, transport) {
        return decided;
    }
    let Some(isolation) = rules.isolation(direction) else {
        return tier(state, rules.baseline.of(direction), peer.address, transport).unwrap_or(Reason::NotIsolated);
    };
    let mut nearest: Option<(&CompiledRule, Missed)> = None;
    for rule in &isolation.rules {
        let missed = missed(state, &rule.peers, &rule.services, peer.address, transport);
        if missed.is_nothing() {
            return Reason::AllowedBy(rule.origin.clone());
        }
        if nearest.is_none_or(|(_, least)| missed.distance() < least.distance()) {
            nearest = Some((rule, missed));
        }
    }
    let from_own_node = direction == Direction::Ingress && state.addresses.contains(&peer.address);
    if from_own_node && isolation.host_access == HostAccess::Allow {
        return Reason::OwnNode;
    }
    let nearest = nearest.map(|(rule, missed)| near_miss(state, rule, missed, peer, transport));
    Reason::NoRule { isolating: isolation.policies.clone(), nearest }
}

/// The first rule that matches decides; `None` where none does, or the first is a Pass.
fn tier(state: &NodeState, rules: &[TierRule], peer: IpAddr, transport: Transport) -> Option<Reason> {
    let rule = rules.iter().find(|it| missed(state, &it.peers, &it.services, peer, transport).is_nothing())?;
    match rule.action {
        Action::Allow => Some(Reason::AllowedBy(rule.origin.clone())),
        Action::Deny(answer) => Some(Reason::DeniedBy { rule: rule.origin.clone(), answer, text: rule.reason.clone() }),
        Action::Pass => None,
    }
}

/// The fields of a rule that do not match: the peer, and of what the packet carries the first that is not it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Missed {
    peer: bool,
    service: Option<Field>,
}

impl Missed {
    /// The rule allows.
    fn is_nothing(self) -> bool {
        self == Self::default()
    }

    fn fields(self) -> impl Iterator<Item = Field> {
        self.peer.then_some(Field::Peer).into_iter().chain(self.service)
    }

    /// Another port of the right protocol is nearer than another peer, and that is nearer than another protocol.
    fn distance(self) -> u32 {
        let of = |field| match field {
            Field::Port | Field::IcmpType => 2,
            Field::Peer => 3,
            Field::Protocol => 4,
        };
        self.fields().map(of).sum()
    }
}

fn missed(state: &NodeState, peers: &CompiledPeers, services: &CompiledServices, peer: IpAddr, transport: Transport) -> Missed {
    let service = match services {
        CompiledServices::OfMembers => return missed_of_members(state, peers, peer, transport),
        CompiledServices::Any => None,
        CompiledServices::Only(services) => missed_service(services, transport),
    };
    Missed { peer: !is_peer(state, peers, peer), service }
}

fn missed_of_members(state: &NodeState, peers: &CompiledPeers, peer: IpAddr, transport: Transport) -> Missed {
    let missed = |service| Missed { peer: false, service: Some(service) };
    let mut ports = services_of(state, peers, peer).peekable();
    if ports.peek().is_none() {
        return Missed { peer: true, service: None };
    }
    let Transport::Port(protocol, port) = transport else { return missed(Field::Protocol) };
    let mut nearest = Field::Protocol;
    for (of, wanted) in ports.filter(|(of, _)| *of == protocol) {
        if (of, wanted) == (protocol, port) {
            return Missed::default();
        }
        nearest = Field::Port;
    }
    missed(nearest)
}

fn is_peer(state: &NodeState, peers: &CompiledPeers, peer: IpAddr) -> bool {
    match peers {
        CompiledPeers::Any => true,
        CompiledPeers::Groups(ids) => ids.iter().filter_map(|id| state.groups.get(id)).any(|group| is_member(group, peer)),
    }
}

/// What the groups' members of this address are on: protocol and port.
fn services_of<'a>(state: &'a NodeState, peers: &'a CompiledPeers, peer: IpAddr) -> impl Iterator<Item = (Protocol, u16)> + 'a {
    let ids = match peers {
        CompiledPeers::Any => &[][..],
        CompiledPeers::Groups(ids) => ids,
    };
    let of_peer = Member::Service(peer, Protocol(0), 0)..=Member::Service(peer, Protocol(u8::MAX), u16::MAX);
    let members = ids.iter().filter_map(|id| state.groups.get(id)).flat_map(move |group| group.members.range(of_peer.clone()));
    members.filter_map(|member| match member {
        Member::Service(_, protocol, port) => Some((*protocol, *port)),
        Member::Address(_) | Member::Block(_) => None,
    })
}

fn missed_service(services: &[CompiledService], transport: Transport) -> Option<Field> {
    if services.iter().any(|service| is_service(*service, transport)) {
        return None;
    }
    let same_protocol = services.iter().any(|service| protocol_of(*service) == transport.protocol());
    Some(match transport {
        Transport::Port(..) if same_protocol => Field::Port,
        Transport::Icmp { .. } if same_protocol => Field::IcmpType,
        Transport::Port(..) | Transport::Icmp { .. } | Transport::Other(_) => Field::Protocol,
    })
}

fn is_service(service: CompiledService, transport: Transport) -> bool {
    match (service, transport) {
        (CompiledService::Protocol(protocol), _) => protocol == transport.protocol(),
        (CompiledService::Ports(protocol, ports), Transport::Port(of, port)) => of == protocol && ports.contains(port),
        (CompiledService::Icmp { family, kind, code }, Transport::Icmp { family: of, kind: got, code: got_code }) => {
            family == of && kind == got && code.is_none_or(|code| code == got_code)
        }
        (CompiledService::Ports(..) | CompiledService::Icmp { .. }, _) => false,
    }
}

fn protocol_of(service: CompiledService) -> Protocol {
    match service {
        CompiledService::Protocol(protocol) | CompiledService::Ports(protocol, _) => protocol,
        CompiledService::Icmp { family: Family::V4, .. } => Protocol::ICMP,
        CompiledService::Icmp { family: Family::V6, .. } => Protocol::ICMPV6,
    }
}

/// What a rule wants, and what it got.
fn near_miss(state: &NodeState, rule: &CompiledRule, missed: Missed, peer: PeerView<'_>, transport: Transport) -> NearMiss {
    let (mut wanted, mut got) = (String::new(), String::new());
    if missed.peer {
        wanted = peers_text(state, &rule.peers);
        peer.name.clone_into(&mut got);
    }
    if missed.service.is_some() {
        let (on, services) = (if missed.peer { " on " } else { "" }, services_text(state, rule, peer.address));
        wanted.extend([on, &services]);
        // Writing to a string does not fail.
        let _ = write!(got, "{on}{transport}");
    }
    NearMiss { rule: rule.origin.clone(), fields: missed.fields().collect(), wanted, got }
}

fn peers_text(state: &NodeState, peers: &CompiledPeers) -> String {
    const SHOWN: usize = 4;
    let CompiledPeers::Groups(ids) = peers else { return "any".to_owned() };
    let mut titles: Vec<&str> = ids.iter().filter_map(|id| state.groups.get(id)).map(|group| group.title.as_str()).collect();
    titles.sort_unstable();
    titles.dedup();
    match titles.len() {
        0 => "nobody".to_owned(),
        1..=SHOWN => titles.join(" or "),
        more => format!("{} or {} more", titles[..SHOWN].join(" or "), more - SHOWN),
    }
}

fn services_text(state: &NodeState, rule: &CompiledRule, peer: IpAddr) -> String {
    let texts: Vec<String> = match &rule.services {
        CompiledServices::Any => return "any".to_owned(),
        CompiledServices::Only(services) => match services.as_slice() {
            [] => return "no port".to_owned(),
            [only] => return service_text(*only),
            services => services.iter().map(|service| service_text(*service)).collect(),
        },
        CompiledServices::OfMembers => {
            services_of(state, &rule.peers, peer).map(|(protocol, port)| Transport::Port(protocol, port).to_string()).collect()
        }
    };
    texts.join(", ")
}

fn service_text(service: CompiledService) -> String {
    match service {
        CompiledService::Protocol(protocol) => format!("any {protocol}"),
        CompiledService::Ports(protocol, ports) if ports.first() == ports.last() => Transport::Port(protocol, ports.first()).to_string(),
        CompiledService::Ports(protocol, ports) => format!("{}-{}/{}", ports.first(), ports.last(), protocol.to_string().to_lowercase()),
        CompiledService::Icmp { family, kind, code: Some(code) } => Transport::Icmp { family, kind, code }.to_string(),
        CompiledService::Icmp { family: Family::V4, kind, code: None } => format!("icmp type {kind}"),
        CompiledService::Icmp { family: Family::V6, kind, code: None } => format!("icmpv6 type {kind}"),
    }
}
