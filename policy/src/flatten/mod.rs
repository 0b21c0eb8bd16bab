//! One node's state as the contents of the kernel's fixed sets.

mod contested;
mod grants;
mod incremental;
mod published;
mod rectangles;
mod rejected;
mod shared;

use crate::kernel_sets::{Comment, Element, GroupForm, KernelSets, SetId, Shape, Span};
use crate::model::{Direction, Family, HostAccess, Protocol};
use crate::node_state::{
    CompiledPeers, CompiledRule, CompiledService, CompiledServices, Group, GroupId, Isolation, LocalEndpoint, Member, NodeState, Segment,
};
use crate::shared_map::SharedMap;
use crate::shared_sets::single;
use crate::tiers::resolved;
use grants::{Grant, GrantPeers, GrantService, Layout, few};
use rectangles::{Rectangle, disjoint};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use incremental::{Flattened, SetsDelta, Step};

/// Up to this many ports of a range become exact elements: a hash lookup is cheaper than an interval one.
const EXACT_PORTS: usize = 16;

/// Comments longer than this are cut; nft takes 128 bytes.
const COMMENT_BYTES: usize = 120;

/// Everything is denied: what holds for an endpoint whose segment is missing, which can come neither out of `compile` nor off the wire.
pub(crate) static CLOSED: Isolation = Isolation { policies: Vec::new(), host_access: HostAccess::Allow, rules: Vec::new() };

/// Where the shared form begins. Part of the kernel state's meaning: the same state and the same limits give the same sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A group that would make more elements than this, all local workloads together, is a set of its own.
    pub pairs: usize,
    /// The most elements that all the other groups make together. Where they would make more, `pairs` is halved until they do not.
    pub elements: usize,
    /// The most rules that a segment's chain has. Where it would have more, groups with the same service are one set together; what finds no
    /// room even so is multiplied out.
    pub rules: usize,
}

impl Limits {
    /// The limits that agents use; ARCHITECTURE.md has the measurements behind them.
    pub const DEFAULT: Self = Self { pairs: 512, elements: 16_384, rules: 32 };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The sets that make the kernel enforce this state for all its endpoints. Equal states give equal sets.
///
/// An address that two endpoints claim is isolated if either is, and allowed only what both are allowed.
pub fn flatten(state: &NodeState) -> KernelSets {
    flatten_with(state, &Limits::DEFAULT)
}

/// As [`flatten`], with other limits: small ones make small states use the shared form, in tests.
pub fn flatten_with(state: &NodeState, limits: &Limits) -> KernelSets {
    let resolved = resolved(state);
    let plain = resolved.as_ref().unwrap_or(state);
    let mut sets = build(plain, &Layout::of(plain, limits));
    rejected::add(&mut sets, state);
    sets
}

fn build(state: &NodeState, layout: &Layout) -> KernelSets {
    let mut claims: BTreeMap<IpAddr, Vec<&LocalEndpoint>> = BTreeMap::new();
    for endpoint in state.endpoints.values() {
        for address in &endpoint.addresses {
            claims.entry(*address).or_default().push(endpoint);
        }
    }
    let mut sets = KernelSets::default();
    for (address, claimants) in &claims {
        for direction in [Direction::Ingress, Direction::Egress] {
            let isolated: Vec<Local<'_>> = claimants.iter().filter_map(|it| Local::of(state, layout, it, *address, direction)).collect();
            if let Some(local) = contested::agreed(isolated, &state.addresses) {
                add(&mut sets, local.finish());
            }
        }
    }
    shared::add(&mut sets, state, layout);
    published::add(&mut sets, state);
    sets
}

type Elements = BTreeMap<(SetId, Element), Comment>;

fn add(sets: &mut KernelSets, elements: Elements) {
    for ((id, element), comment) in elements {
        sets.sets.entry(id).or_default().insert(element, comment);
    }
}

/// One address of one endpoint in one isolated direction, and what its rules come to.
struct Local<'a> {
    groups: &'a SharedMap<GroupId, Group>,
    endpoint: &'a LocalEndpoint,
    address: IpAddr,
    direction: Direction,
    isolation: &'a Isolation,
    elements: Elements,
    ranges: Vec<Rectangle>,
    icmp_ranges: Vec<Rectangle>,
}

impl<'a> Local<'a> {
    /// `None` when the direction is not isolated, or one rule opens all of it.
    fn of(state: &'a NodeState, layout: &Layout, endpoint: &'a LocalEndpoint, address: IpAddr, direction: Direction) -> Option<Self> {
        let isolation = match state.segments.get(&endpoint.segment) {
            Some(segment) => side(segment, direction)?,
            None => &CLOSED,
        };
        if isolation.rules.iter().any(opens) {
            return None;
        }
        let mut local = Self::empty(state, endpoint, address, direction, isolation);
        local.fill(layout);
        Some(local)
    }

    fn empty(state: &'a NodeState, endpoint: &'a LocalEndpoint, address: IpAddr, direction: Direction, isolation: &'a Isolation) -> Self {
        let (elements, ranges, icmp_ranges) = (Elements::new(), Vec::new(), Vec::new());
        Self { groups: &state.groups, endpoint, address, direction, isolation, elements, ranges, icmp_ranges }
    }

    fn fill(&mut self, layout: &Layout) {
        let who = format!("{}/{}", self.endpoint.namespace, self.endpoint.name);
        let isolation = self.isolation;
        let isolated = comment(format!("{who} isolated by {}", listed(isolation)));
        self.put(Shape::Isolated, Element::Local(self.address), isolated.clone());
        if self.direction == Direction::Ingress && isolation.host_access == HostAccess::Judge {
            self.put(Shape::HostJudged, Element::Local(self.address), isolated);
        }
        let Some(side) = layout.sides.get(&(self.endpoint.segment.clone(), self.direction, self.family())) else { return };
        let contested = layout.contested.contains(&self.address);
        for (grant, in_chain) in side.grants.iter().zip(&side.in_chain) {
            // An address that several claim is in no chain: what all of them may is no segment's.
            if contested || !in_chain {
                self.grant(&who, grant);
            }
        }
    }

    /// The elements, those of interval sets disjoint.
    fn finish(mut self) -> Elements {
        for (peers, protocols, ports, said) in joined(disjoint(&self.ranges), u16::MAX) {
            self.put(Shape::Range, Element::Range(self.address, peers, protocols, ports), said);
        }
        for (peers, kinds, codes, said) in joined(disjoint(&self.icmp_ranges), u16::from(u8::MAX)) {
            let codes = Span { first: low_byte(codes.first), last: low_byte(codes.last) };
            self.put(Shape::IcmpRange, Element::IcmpRange(self.address, peers, kinds, codes), said);
        }
        self.elements
    }

    fn grant(&mut self, who: &str, grant: &Grant) {
        let Some(rule) = self.isolation.rules.get(grant.rule) else { return };
        match &grant.peers {
            GrantPeers::Any => self.block(whole(self.family()), grant.service, &said(who, self.direction, "any", rule), true),
            GrantPeers::Group(id, form) => {
                let Some(group) = self.groups.get(id) else { return };
                let said = said(who, self.direction, &group.title, rule);
                let family = self.family();
                match form {
                    GroupForm::Addresses => {
                        for peer in group.members.iter().filter_map(|member| exact_address(*member, family)) {
                            self.peer(peer, grant.service, &said);
                        }
                    }
                    GroupForm::Services => {
                        for member in &group.members {
                            if let Member::Service(peer, protocol, port) = *member
                                && Family::of(peer) == family
                            {
                                self.put(Shape::PeerPort, Element::PeerPort(self.address, peer, protocol, port), said.clone());
                            }
                        }
                    }
                    GroupForm::Blocks => {
                        for (peers, anyone) in grants::spans(group, family) {
                            self.block(peers, grant.service, &said, anyone);
                        }
                    }
                }
            }
        }
    }

    fn peer(&mut self, peer: IpAddr, service: GrantService, said: &Comment) {
        if let GrantService::Protocols(protocols) = service {
            return self.protocols(Span::single(peer), protocols, said);
        }
        if let GrantService::One(service @ (CompiledService::Ports(..) | CompiledService::Icmp { .. })) = service
            && GrantService::One(service).exact().is_none()
        {
            return self.range(Span::single(peer), service, said);
        }
        for (shape, element) in exact_elements(self.address, peer, service) {
            self.put(shape, element, said.clone());
        }
    }

    fn block(&mut self, peers: Span<IpAddr>, service: GrantService, said: &Comment, anyone: bool) {
        match service {
            GrantService::Any => self.everything(peers, said),
            GrantService::OfMembers => {}
            GrantService::One(CompiledService::Ports(protocol, ports)) if anyone && few(ports) => {
                for port in ports.first()..=ports.last() {
                    self.put(Shape::Port, Element::Port(self.address, protocol, port), said.clone());
                }
            }
            GrantService::One(service) => self.range(peers, service, said),
            GrantService::Protocols(protocols) => self.protocols(peers, protocols, said),
        }
    }

    fn everything(&mut self, peers: Span<IpAddr>, said: &Comment) {
        self.ranges.push(Rectangle { peers, service: None, comment: said.clone() });
        self.icmp_ranges.push(Rectangle { peers, service: None, comment: said.clone() });
    }

    fn protocols(&mut self, peers: Span<IpAddr>, protocols: Span<u8>, said: &Comment) {
        for protocol in protocols.first..=protocols.last {
            self.range(peers, CompiledService::Protocol(Protocol(protocol)), said);
        }
    }

    fn range(&mut self, peers: Span<IpAddr>, service: CompiledService, said: &Comment) {
        let rectangle = |service| Rectangle { peers, service, comment: said.clone() };
        match service {
            CompiledService::Protocol(protocol) if protocol.icmp_family() == Some(self.family()) => self.icmp_ranges.push(rectangle(None)),
            CompiledService::Protocol(Protocol(number)) => self.ranges.push(rectangle(Some((number, Span { first: 0, last: u16::MAX })))),
            CompiledService::Ports(Protocol(number), ports) => {
                self.ranges.push(rectangle(Some((number, Span { first: ports.first(), last: ports.last() }))));
            }
            CompiledService::Icmp { family, kind, code } if family == self.family() => {
                let codes = code.map_or(Span { first: 0, last: u16::from(u8::MAX) }, |code| Span::single(code.into()));
                self.icmp_ranges.push(rectangle(Some((kind, codes))));
            }
            CompiledService::Icmp { .. } => {}
        }
    }

    fn put(&mut self, shape: Shape, element: Element, comment: Comment) {
        let id = SetId { direction: self.direction, family: self.family(), shape };
        // Of several rules that allow the same, the first by text is named, whatever their order.
        self.elements.entry((id, element)).and_modify(|kept| *kept = comment.clone().min(kept.clone())).or_insert(comment);
    }

    fn family(&self) -> Family {
        Family::of(self.address)
    }
}

/// What isolates in a direction, of a segment whose tiers were resolved.
pub(crate) fn side(segment: &Segment, direction: Direction) -> Option<&Isolation> {
    segment.rules.isolation(direction)
}

/// Whether the rule allows everything, so that the direction is not isolated.
fn opens(rule: &CompiledRule) -> bool {
    rule.peers == CompiledPeers::Any && rule.services == CompiledServices::Any
}

/// Peers, protocols or ICMP types, ports or codes, and which rule says it.
type Ranges = (Span<IpAddr>, Span<u8>, Span<u16>, Comment);

/// Pieces as ranges in all three dimensions: protocols, or ICMP types, that follow each other with all that they have are one.
fn joined(pieces: Vec<Rectangle>, most: u16) -> Vec<Ranges> {
    let whole = Span { first: 0, last: most };
    let mut joined: Vec<Ranges> = Vec::new();
    for Rectangle { peers, service, comment } in pieces {
        let (kinds, range) = match service {
            None => (Span { first: 0, last: u8::MAX }, whole),
            Some((kind, range)) => (Span::single(kind), range),
        };
        match joined.last_mut() {
            Some((who, before, all, said))
                if *who == peers
                    && *all == whole
                    && range == whole
                    && *said == comment
                    && before.last.checked_add(1) == Some(kinds.first) =>
            {
                before.last = kinds.last;
            }
            Some(_) | None => joined.push((peers, kinds, range, comment)),
        }
    }
    joined
}

/// The one address that a member of this family is.
fn exact_address(member: Member, family: Family) -> Option<IpAddr> {
    let address = match member {
        Member::Address(address) => Some(address),
        Member::Block(block) => single(block),
        Member::Service(..) => None,
    };
    address.filter(|address| Family::of(*address) == family)
}

/// The exact elements that let one peer use a service; none when it takes a range to say it, or the members say it.
fn exact_elements(local: IpAddr, peer: IpAddr, service: GrantService) -> Vec<(Shape, Element)> {
    match service {
        GrantService::Any => vec![(Shape::Peer, Element::Peer(local, peer))],
        GrantService::OfMembers | GrantService::Protocols(_) => Vec::new(),
        GrantService::One(CompiledService::Protocol(protocol)) => {
            vec![(Shape::PeerProtocol, Element::PeerProtocol(local, peer, protocol))]
        }
        GrantService::One(CompiledService::Ports(protocol, ports)) if few(ports) => {
            (ports.first()..=ports.last()).map(|port| (Shape::PeerPort, Element::PeerPort(local, peer, protocol, port))).collect()
        }
        GrantService::One(CompiledService::Icmp { family: _, kind, code: Some(code) }) => {
            vec![(Shape::PeerIcmp, Element::PeerIcmp(local, peer, kind, code))]
        }
        GrantService::One(CompiledService::Ports(..) | CompiledService::Icmp { code: None, .. }) => Vec::new(),
    }
}

/// Who may reach whom by which rule, as the kernel keeps it.
fn said(who: &str, direction: Direction, peers: &str, rule: &CompiledRule) -> Comment {
    comment(format!("{who} {} {peers} by {}", arrow(direction), rule.origin))
}

fn arrow(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "<-",
        Direction::Egress => "->",
    }
}

fn whole(family: Family) -> Span<IpAddr> {
    match family {
        Family::V4 => Span { first: Ipv4Addr::UNSPECIFIED.into(), last: Ipv4Addr::BROADCAST.into() },
        Family::V6 => Span { first: Ipv6Addr::UNSPECIFIED.into(), last: Ipv6Addr::from_bits(u128::MAX).into() },
    }
}

/// ICMP codes are made of bytes, so nothing above a byte comes here.
fn low_byte(code: u16) -> u8 {
    code.to_be_bytes()[1]
}

fn listed(isolation: &Isolation) -> String {
    let names: Vec<String> = isolation.policies.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// Cut to what the kernel keeps, at a character's end.
fn comment(mut text: String) -> Comment {
    if text.len() > COMMENT_BYTES {
        let end = (0..=COMMENT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    Comment::from(text)
}
