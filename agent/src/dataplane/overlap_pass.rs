//! What one element of a set, or one rule of a chain, allows, and what two of them allow both. Pure.

use firebreak_policy::kernel_sets::{Element, GroupKey, GroupSet, Shape, SharedPeers, SharedRule, SharedService, Span};
use firebreak_policy::model::{Family, Protocol};
use std::net::IpAddr;

/// Who is allowed what by one element, or by one rule of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    pub(super) peers: Peers,
    pub(super) service: Service,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peers {
    Any,
    Span(Span<IpAddr>),
    /// The members before the change of what goes, and after it of what comes.
    In(GroupSet),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Any,
    /// What an interval of four fields means by every protocol.
    AnyButIcmp,
    Protocol(Protocol),
    Ports(Protocol, Span<u16>),
    Icmp(Span<u8>, Span<u8>),
}

pub(super) const EVERY_PORT: Span<u16> = Span { first: 0, last: u16::MAX };
pub(super) const EVERY_BYTE: Span<u8> = Span { first: 0, last: u8::MAX };

impl Pass {
    /// `None` for an element that allows nothing by itself.
    pub(super) fn of(shape: Shape, element: &Element) -> Option<Self> {
        match shape {
            Shape::Isolated | Shape::HostJudged | Shape::Published | Shape::PublishedAllow | Shape::Reject | Shape::RejectIcmp => {
                return None;
            }
            Shape::PeerPort | Shape::Peer | Shape::PeerProtocol | Shape::Port | Shape::Range | Shape::PeerIcmp | Shape::IcmpRange => {}
        }
        let one = |peer: &IpAddr| Peers::Span(Span::single(*peer));
        let (peers, service) = match element {
            Element::Local(_) => return None,
            Element::Peer(_, peer) => (one(peer), Service::Any),
            Element::PeerProtocol(_, peer, protocol) => (one(peer), Service::Protocol(*protocol)),
            Element::PeerPort(_, peer, protocol, port) => (one(peer), Service::Ports(*protocol, Span::single(*port))),
            Element::PeerIcmp(_, peer, kind, code) => (one(peer), Service::Icmp(Span::single(*kind), Span::single(*code))),
            Element::Port(_, protocol, port) => (Peers::Any, Service::Ports(*protocol, Span::single(*port))),
            Element::Range(_, peers, protocols, ports) => {
                let service = match (protocols.first == protocols.last, *ports == EVERY_PORT) {
                    (true, true) => Service::Protocol(Protocol(protocols.first)),
                    (true, false) => Service::Ports(Protocol(protocols.first), *ports),
                    (false, true) if *protocols == EVERY_BYTE => Service::AnyButIcmp,
                    (false, _) => return None,
                };
                (Peers::Span(*peers), service)
            }
            Element::IcmpRange(_, peers, kinds, codes) => (Peers::Span(*peers), Service::Icmp(*kinds, *codes)),
        };
        Some(Self { peers, service })
    }

    /// `None` where the rule is about several protocols: what it allows is not held through a change.
    pub(super) fn of_rule(rule: &SharedRule) -> Option<Self> {
        let peers = match rule.peers {
            SharedPeers::Any => Peers::Any,
            SharedPeers::In(set) => Peers::In(set),
        };
        Some(Self { peers, service: Service::of(rule.service)? })
    }

    pub(super) fn of_key(key: GroupKey, rule: &SharedRule) -> Option<Self> {
        let service = Service::of(rule.service)?;
        Some(match key {
            GroupKey::Address(address) => Self { peers: Peers::Span(Span::single(address)), service },
            GroupKey::Block(block) => Self { peers: Peers::Span(Span { first: block.network(), last: block.broadcast() }), service },
            GroupKey::Service(address, protocol, port) => {
                Self { peers: Peers::Span(Span::single(address)), service: Service::Ports(protocol, Span::single(port)) }
            }
        })
    }

    pub(super) fn peer(&self) -> Option<IpAddr> {
        match self.peers {
            Peers::Span(span) if span.first == span.last => Some(span.first),
            Peers::Any | Peers::Span(_) | Peers::In(_) => None,
        }
    }
}

impl Service {
    pub(super) fn of(service: SharedService) -> Option<Self> {
        Some(match service {
            SharedService::Protocols(_) => return None,
            SharedService::Any => Self::Any,
            SharedService::Protocol(protocol) => Self::Protocol(protocol),
            SharedService::Ports(protocol, ports) => Self::Ports(protocol, ports),
            SharedService::Icmp(kind, code) => Self::Icmp(Span::single(kind), code.map_or(EVERY_BYTE, Span::single)),
        })
    }

    pub(super) fn and(self, other: Self, family: Family) -> Option<Self> {
        let is_icmp = |protocol: Protocol| protocol.icmp_family() == Some(family);
        match (self, other) {
            (Self::Any, service) | (service, Self::Any) => Some(service),
            (Self::AnyButIcmp, Self::AnyButIcmp) => Some(Self::AnyButIcmp),
            (Self::AnyButIcmp, Self::Icmp(..)) | (Self::Icmp(..), Self::AnyButIcmp) => None,
            (Self::AnyButIcmp, service @ (Self::Protocol(protocol) | Self::Ports(protocol, _)))
            | (service @ (Self::Protocol(protocol) | Self::Ports(protocol, _)), Self::AnyButIcmp) => {
                (!is_icmp(protocol)).then_some(service)
            }
            (Self::Protocol(one), service @ (Self::Protocol(other) | Self::Ports(other, _)))
            | (service @ Self::Ports(other, _), Self::Protocol(one)) => (one == other).then_some(service),
            (Self::Protocol(protocol), service @ Self::Icmp(..)) | (service @ Self::Icmp(..), Self::Protocol(protocol)) => {
                is_icmp(protocol).then_some(service)
            }
            (Self::Ports(one, ports), Self::Ports(other, others)) => {
                both(ports, others).filter(|_| one == other).map(|ports| Self::Ports(one, ports))
            }
            (Self::Icmp(kinds, codes), Self::Icmp(other_kinds, other_codes)) => {
                Some(Self::Icmp(both(kinds, other_kinds)?, both(codes, other_codes)?))
            }
            (Self::Ports(..), Self::Icmp(..)) | (Self::Icmp(..), Self::Ports(..)) => None,
        }
    }
}

pub(super) fn both<T: Copy + Ord>(one: Span<T>, other: Span<T>) -> Option<Span<T>> {
    let span = Span { first: one.first.max(other.first), last: one.last.min(other.last) };
    (span.first <= span.last).then_some(span)
}
