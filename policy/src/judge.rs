//! What the kernel's fixed rules do with set contents, as a function: the first packet of a connection in, its fate out.

use crate::kernel_sets::{Element, KernelSets, SetId, Shape, Span};
use crate::model::{Direction, Family, Protocol, Transport};
use std::net::IpAddr;

/// Which hook sees the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Between two ends that are not the node: forward.
    Forwarded,
    /// From the node itself: output.
    FromNode,
    /// To the node itself: input.
    ToNode,
}

/// The packet's fate, and at which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// Let through.
    Passed,
    /// Stopped in the stage of this direction.
    Denied(Direction),
}

impl KernelSets {
    /// The fate of the first packet of a connection on this node, its addresses being the real ends.
    pub fn judge(&self, path: Path, source: IpAddr, destination: IpAddr, transport: Transport) -> Fate {
        let egress = || self.allows(Direction::Egress, source, destination, transport);
        let ingress = || self.allows(Direction::Ingress, destination, source, transport);
        match path {
            Path::Forwarded if !egress() => Fate::Denied(Direction::Egress),
            Path::Forwarded if !ingress() => Fate::Denied(Direction::Ingress),
            Path::FromNode if self.has(Direction::Ingress, Shape::HostJudged, &Element::Local(destination)) && !ingress() => {
                Fate::Denied(Direction::Ingress)
            }
            Path::ToNode if !egress() => Fate::Denied(Direction::Egress),
            Path::ToNode if self.is_barred(source, destination, transport) => Fate::Denied(Direction::Ingress),
            Path::Forwarded | Path::FromNode | Path::ToNode => Fate::Passed,
        }
    }

    /// Whether the local address is isolated in the direction.
    pub fn is_isolated(&self, direction: Direction, local: IpAddr) -> bool {
        self.has(direction, Shape::Isolated, &Element::Local(local))
    }

    /// Whether one stage lets the packet through: not isolated, or an element allows it.
    pub fn allows(&self, direction: Direction, local: IpAddr, peer: IpAddr, transport: Transport) -> bool {
        if !self.is_isolated(direction, local) {
            return true;
        }
        let has = |shape, element| self.has(direction, shape, &element);
        let protocol = transport.protocol();
        if has(Shape::Peer, Element::Peer(local, peer)) || has(Shape::PeerProtocol, Element::PeerProtocol(local, peer, protocol)) {
            return true;
        }
        let exactly_or_in_a_range = match transport {
            Transport::Port(_, port) => {
                has(Shape::PeerPort, Element::PeerPort(local, peer, protocol, port))
                    || has(Shape::Port, Element::Port(local, protocol, port))
                    || self.in_range(direction, local, peer, protocol, port)
            }
            Transport::Icmp { kind, code, .. } => {
                has(Shape::PeerIcmp, Element::PeerIcmp(local, peer, kind, code)) || self.in_icmp_range(direction, local, peer, kind, code)
            }
            Transport::Other(_) => self.in_range(direction, local, peer, protocol, 0),
        };
        exactly_or_in_a_range || self.shared.allows(direction, local, peer, transport)
    }

    /// Whether what the stage denies is answered (a reset, or an ICMP error) and not dropped in silence.
    pub fn answers(&self, direction: Direction, local: IpAddr, peer: IpAddr, transport: Transport) -> bool {
        let protocol = transport.protocol();
        match transport {
            Transport::Port(_, port) => self.in_range_of(Shape::Reject, direction, local, peer, protocol, port),
            Transport::Other(_) => self.in_range_of(Shape::Reject, direction, local, peer, protocol, 0),
            Transport::Icmp { kind, code, .. } => self.in_icmp_range_of(Shape::RejectIcmp, direction, local, peer, kind, code),
        }
    }

    fn is_barred(&self, source: IpAddr, destination: IpAddr, transport: Transport) -> bool {
        let Transport::Port(protocol, port) = transport else { return false };
        self.has(Direction::Egress, Shape::Published, &Element::Port(destination, protocol, port))
            && !self.has(Direction::Egress, Shape::PublishedAllow, &Element::PeerPort(source, destination, protocol, port))
    }

    fn has(&self, direction: Direction, shape: Shape, element: &Element) -> bool {
        let address = match element {
            Element::Local(local)
            | Element::Peer(local, _)
            | Element::PeerProtocol(local, ..)
            | Element::PeerPort(local, ..)
            | Element::PeerIcmp(local, ..)
            | Element::Port(local, ..)
            | Element::Range(local, ..)
            | Element::IcmpRange(local, ..) => *local,
        };
        self.sets.get(&SetId { direction, family: Family::of(address), shape }).is_some_and(|elements| elements.contains_key(element))
    }

    fn in_range(&self, direction: Direction, local: IpAddr, peer: IpAddr, protocol: Protocol, port: u16) -> bool {
        self.in_range_of(Shape::Range, direction, local, peer, protocol, port)
    }

    fn in_range_of(&self, shape: Shape, direction: Direction, local: IpAddr, peer: IpAddr, protocol: Protocol, port: u16) -> bool {
        let id = SetId { direction, family: Family::of(local), shape };
        self.sets.get(&id).is_some_and(|elements| {
            elements.keys().any(|element| match element {
                Element::Range(of, peers, protocols, ports) => {
                    *of == local && within(peers, peer) && protocols.contains(protocol.0) && ports.contains(port)
                }
                Element::Local(_)
                | Element::Peer(..)
                | Element::PeerProtocol(..)
                | Element::PeerPort(..)
                | Element::PeerIcmp(..)
                | Element::Port(..)
                | Element::IcmpRange(..) => false,
            })
        })
    }

    fn in_icmp_range(&self, direction: Direction, local: IpAddr, peer: IpAddr, kind: u8, code: u8) -> bool {
        self.in_icmp_range_of(Shape::IcmpRange, direction, local, peer, kind, code)
    }

    fn in_icmp_range_of(&self, shape: Shape, direction: Direction, local: IpAddr, peer: IpAddr, kind: u8, code: u8) -> bool {
        let id = SetId { direction, family: Family::of(local), shape };
        self.sets.get(&id).is_some_and(|elements| {
            elements.keys().any(|element| match element {
                Element::IcmpRange(of, peers, kinds, codes) => {
                    *of == local && within(peers, peer) && kinds.contains(kind) && codes.contains(code)
                }
                Element::Local(_)
                | Element::Peer(..)
                | Element::PeerProtocol(..)
                | Element::PeerPort(..)
                | Element::PeerIcmp(..)
                | Element::Port(..)
                | Element::Range(..) => false,
            })
        })
    }
}

fn within(peers: &Span<IpAddr>, peer: IpAddr) -> bool {
    peers.contains(peer)
}
