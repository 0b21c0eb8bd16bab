//! An address that several endpoints of a node claim: who sends from it cannot be told, so it may do what all of them may.

use super::rectangles::{Rectangle, intersection};
use super::{Local, whole};
use crate::kernel_sets::{Element, Shape, Span};
use crate::model::{Direction, HostAccess};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The claimants as one: isolated as any of them, allowed what all the isolated ones allow. `None` when none is isolated.
pub(crate) fn agreed<'a>(mut claimants: Vec<Local<'a>>, node_addresses: &BTreeSet<IpAddr>) -> Option<Local<'a>> {
    if claimants.len() < 2 {
        return claimants.pop();
    }
    let judges = |it: &Local<'_>| it.direction == Direction::Ingress && it.isolation.host_access == HostAccess::Judge;
    if claimants.iter().any(judges) {
        // The node is judged because of one; the others let it in without a rule that says so.
        for local in claimants.iter_mut().filter(|it| !judges(it)) {
            local.admit(node_addresses);
        }
    }
    claimants.iter_mut().for_each(Local::as_ranges);
    claimants.into_iter().reduce(|mut one, other| {
        one.elements.extend(other.elements);
        one.ranges = intersection(&one.ranges, &other.ranges);
        one.icmp_ranges = intersection(&one.icmp_ranges, &other.icmp_ranges);
        one
    })
}

impl Local<'_> {
    fn admit(&mut self, peers: &BTreeSet<IpAddr>) {
        for peer in peers.iter().filter(|it| it.is_ipv4() == self.address.is_ipv4()) {
            let open = Rectangle { peers: Span::single(*peer), service: None, comment: "own node".into() };
            self.ranges.push(open.clone());
            self.icmp_ranges.push(open);
        }
    }

    /// Turns exact elements into ranges of one, so that they can be compared with wider ones. What isolates stays.
    fn as_ranges(&mut self) {
        let anyone = whole(self.family());
        let ports = |port: u16| Span::single(port);
        for ((id, element), comment) in std::mem::take(&mut self.elements) {
            let rectangle = |peers, service| Rectangle { peers, service, comment: comment.clone() };
            match element {
                Element::Peer(_, peer) => {
                    self.ranges.push(rectangle(Span::single(peer), None));
                    self.icmp_ranges.push(rectangle(Span::single(peer), None));
                }
                Element::PeerProtocol(_, peer, protocol) if protocol.icmp_family() == Some(self.family()) => {
                    self.icmp_ranges.push(rectangle(Span::single(peer), None));
                }
                Element::PeerProtocol(_, peer, protocol) => {
                    self.ranges.push(rectangle(Span::single(peer), Some((protocol.0, Span { first: 0, last: u16::MAX }))));
                }
                Element::PeerPort(_, peer, protocol, port) => {
                    self.ranges.push(rectangle(Span::single(peer), Some((protocol.0, ports(port)))));
                }
                Element::Port(_, protocol, port) => self.ranges.push(rectangle(anyone, Some((protocol.0, ports(port))))),
                Element::PeerIcmp(_, peer, kind, code) => {
                    self.icmp_ranges.push(rectangle(Span::single(peer), Some((kind, ports(code.into())))));
                }
                Element::Local(_) | Element::Range(..) | Element::IcmpRange(..) => {
                    debug_assert!(matches!(id.shape, Shape::Isolated | Shape::HostJudged), "ranges become elements only at the end");
                    self.elements.insert((id, element), comment);
                }
            }
        }
    }
}
