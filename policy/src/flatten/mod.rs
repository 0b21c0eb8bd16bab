//! One node's state as the contents of the kernel's fixed sets.

mod contested;
mod published;
mod rectangles;

use crate::kernel_sets::{Comment, Element, KernelSets, SetId, Shape, Span};
use crate::model::{Direction, Family, HostAccess, Protocol};
use crate::node_state::{
    CompiledPeers, CompiledRule, CompiledService, CompiledServices, Group, GroupId, Isolation, LocalEndpoint, Member, NodeState, Segment,
};
use ipnet::IpNet;
use rectangles::{Rectangle, disjoint};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Up to this many ports of a range become exact elements: a hash lookup is cheaper than an interval one.
const EXACT_PORTS: usize = 16;

/// Comments longer than this are cut; nft takes 128 bytes.
const COMMENT_BYTES: usize = 120;

/// The sets that make the kernel enforce this state for all its endpoints. Equal states give equal sets.
///
/// An address that two endpoints claim is isolated if either is, and allowed only what both are allowed.
pub fn flatten(state: &NodeState) -> KernelSets {
    let mut claims: BTreeMap<IpAddr, Vec<&LocalEndpoint>> = BTreeMap::new();
    for endpoint in state.endpoints.values() {
        for address in &endpoint.addresses {
            claims.entry(*address).or_default().push(endpoint);
        }
    }
    let mut sets = KernelSets::default();
    for (address, claimants) in &claims {
        for direction in [Direction::Ingress, Direction::Egress] {
            let isolated: Vec<Local<'_>> = claimants.iter().filter_map(|it| Local::of(state, it, *address, direction)).collect();
            if let Some(local) = contested::agreed(isolated, &state.addresses) {
                add(&mut sets, local.finish());
            }
        }
    }
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
    groups: &'a BTreeMap<GroupId, Arc<Group>>,
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
    fn of(state: &'a NodeState, endpoint: &'a LocalEndpoint, address: IpAddr, direction: Direction) -> Option<Self> {
        // An endpoint whose segment is missing cannot come out of `compile` or off the wire; it is denied everything rather than nothing.
        static UNKNOWN: Isolation = Isolation { policies: Vec::new(), host_access: HostAccess::Allow, rules: Vec::new() };
        let isolation = match state.segments.get(&endpoint.segment) {
            // The kernel's sets have no place for tiers yet: what they are about is denied, never opened.
            Some(segment) if has_tiers(segment, direction) => &UNKNOWN,
            Some(segment) => side(segment, direction)?,
            None => &UNKNOWN,
        };
        let opens = |rule: &CompiledRule| rule.peers == CompiledPeers::Any && rule.services == CompiledServices::Any;
        if isolation.rules.iter().any(opens) {
            return None;
        }
        let (elements, ranges, icmp_ranges) = (Elements::new(), Vec::new(), Vec::new());
        let mut local = Self { groups: &state.groups, endpoint, address, direction, isolation, elements, ranges, icmp_ranges };
        local.fill();
        Some(local)
    }

    fn fill(&mut self) {
        let who = format!("{}/{}", self.endpoint.namespace, self.endpoint.name);
        let isolation = self.isolation;
        let isolated = comment(format!("{who} isolated by {}", listed(isolation)));
        self.put(Shape::Isolated, Element::Local(self.address), isolated.clone());
        if self.direction == Direction::Ingress && isolation.host_access == HostAccess::Judge {
            self.put(Shape::HostJudged, Element::Local(self.address), isolated);
        }
        for rule in &isolation.rules {
            self.rule(&who, rule);
        }
    }

    /// The elements, those of interval sets disjoint.
    fn finish(mut self) -> Elements {
        for piece in disjoint(&self.ranges) {
            let (protocols, ports) = match piece.service {
                None => (Span { first: 0, last: u8::MAX }, Span { first: 0, last: u16::MAX }),
                Some((protocol, ports)) => (Span::single(protocol), ports),
            };
            self.put(Shape::Range, Element::Range(self.address, piece.peers, protocols, ports), piece.comment);
        }
        for piece in disjoint(&self.icmp_ranges) {
            let (kinds, codes) = match piece.service {
                None => (Span { first: 0, last: u8::MAX }, Span { first: 0, last: u8::MAX }),
                Some((kind, codes)) => (Span::single(kind), Span { first: low_byte(codes.first), last: low_byte(codes.last) }),
            };
            self.put(Shape::IcmpRange, Element::IcmpRange(self.address, piece.peers, kinds, codes), piece.comment);
        }
        self.elements
    }

    fn rule(&mut self, who: &str, rule: &CompiledRule) {
        let arrow = match self.direction {
            Direction::Ingress => "<-",
            Direction::Egress => "->",
        };
        let said = |title: &str| comment(format!("{who} {arrow} {title} by {}", rule.origin));
        match &rule.peers {
            CompiledPeers::Any => self.block(whole(self.family()), &rule.services, &said("any"), true),
            CompiledPeers::Groups(ids) => {
                let groups = self.groups;
                for group in ids.iter().filter_map(|id| groups.get(id)) {
                    let said = said(&group.title);
                    for member in &group.members {
                        self.member(*member, &rule.services, &said);
                    }
                }
            }
        }
    }

    fn member(&mut self, member: Member, services: &CompiledServices, said: &Comment) {
        match member {
            Member::Address(peer) if Family::of(peer) == self.family() => self.peer(peer, services, said),
            Member::Block(block) if Family::of(block.addr()) == self.family() => match single(block) {
                Some(peer) => self.peer(peer, services, said),
                None => self.block(Span { first: block.network(), last: block.broadcast() }, services, said, block.prefix_len() == 0),
            },
            Member::Service(peer, protocol, port) if Family::of(peer) == self.family() => {
                if *services == CompiledServices::OfMembers {
                    self.put(Shape::PeerPort, Element::PeerPort(self.address, peer, protocol, port), said.clone());
                }
            }
            // The other family has sets of its own.
            Member::Address(_) | Member::Block(_) | Member::Service(..) => {}
        }
    }

    fn peer(&mut self, peer: IpAddr, services: &CompiledServices, said: &Comment) {
        let local = self.address;
        let services = match services {
            CompiledServices::Any => return self.put(Shape::Peer, Element::Peer(local, peer), said.clone()),
            CompiledServices::OfMembers => return,
            CompiledServices::Only(services) => services,
        };
        for service in services {
            match *service {
                CompiledService::Protocol(protocol) => {
                    self.put(Shape::PeerProtocol, Element::PeerProtocol(local, peer, protocol), said.clone());
                }
                CompiledService::Ports(protocol, ports) if (ports.first()..=ports.last()).len() <= EXACT_PORTS => {
                    for port in ports.first()..=ports.last() {
                        self.put(Shape::PeerPort, Element::PeerPort(local, peer, protocol, port), said.clone());
                    }
                }
                CompiledService::Icmp { family, kind, code: Some(code) } => {
                    if family == self.family() {
                        self.put(Shape::PeerIcmp, Element::PeerIcmp(local, peer, kind, code), said.clone());
                    }
                }
                CompiledService::Ports(..) | CompiledService::Icmp { code: None, .. } => self.range(Span::single(peer), *service, said),
            }
        }
    }

    fn block(&mut self, peers: Span<IpAddr>, services: &CompiledServices, said: &Comment, anyone: bool) {
        let services = match services {
            CompiledServices::Any => {
                self.ranges.push(Rectangle { peers, service: None, comment: said.clone() });
                self.icmp_ranges.push(Rectangle { peers, service: None, comment: said.clone() });
                return;
            }
            CompiledServices::OfMembers => return,
            CompiledServices::Only(services) => services,
        };
        for service in services {
            match *service {
                CompiledService::Ports(protocol, ports) if anyone && (ports.first()..=ports.last()).len() <= EXACT_PORTS => {
                    for port in ports.first()..=ports.last() {
                        self.put(Shape::Port, Element::Port(self.address, protocol, port), said.clone());
                    }
                }
                CompiledService::Protocol(_) | CompiledService::Ports(..) | CompiledService::Icmp { .. } => {
                    self.range(peers, *service, said)
                }
            }
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

fn has_tiers(segment: &Segment, direction: Direction) -> bool {
    !(segment.rules.admin.of(direction).is_empty() && segment.rules.baseline.of(direction).is_empty())
}

fn side(segment: &Segment, direction: Direction) -> Option<&Isolation> {
    match direction {
        Direction::Ingress => segment.rules.ingress.as_ref(),
        Direction::Egress => segment.rules.egress.as_ref(),
    }
}

fn single(block: IpNet) -> Option<IpAddr> {
    (block.prefix_len() == block.max_prefix_len()).then(|| block.addr())
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
