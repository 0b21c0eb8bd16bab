//! Permissions that move from one set to another. The kernel makes a transaction's sets current one after the other, and a packet asks them one
//! after the other, so that a packet under way may meet the old half of one and the new half of another. What the state before and the state after
//! both allow is therefore allowed by elements that stand through the whole of the change:
//!
//! 1. before it, those new elements come that the state before allows already: they change no verdict;
//! 2. then comes the change itself;
//! 3. after it, those old elements go that the state after allows anyway.
//!
//! Each of the two directions of a packet is judged by the state before or by the state after at each moment; nothing is allowed that neither allows.
//! Pure, but for the wait between the three.

use super::element::Entry;
use super::names::{Asked, SetRef};
use super::plan::{KernelState, Plan, SetChange};
use super::shared::HeldShared;
use firebreak_policy::Members;
use firebreak_policy::kernel_sets::{
    Comment, Element, GroupSet, KernelSets, SetId, Shape, Shared, SharedPeers, SharedRule, SharedService, Span,
};
use firebreak_policy::model::{Direction, Family, Protocol, Transport};
use rustix::thread::{MembarrierCommand, membarrier};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Returns when every packet that was being judged when it was called has been: the kernel judges inside a read side of RCU, and
/// `MEMBARRIER_CMD_GLOBAL` waits for a grace period. Some milliseconds. A packet that began before one transaction and ends after the next would
/// meet the half of each that the other completes (seen: 2 of 108,000 during 300 changes without pause).
pub(super) fn wait_for_packets_under_way() {
    if membarrier(MembarrierCommand::Global).is_err() {
        // A kernel with processors that take no interrupts has none. Nothing tells then; a packet takes microseconds.
        std::thread::sleep(WITHOUT_BARRIER);
    }
}

/// Far longer than a packet is being judged.
const WITHOUT_BARRIER: Duration = Duration::from_millis(20);

/// Which end, in which direction.
type Stage = (Direction, IpAddr);

/// Takes out of a plan what is to come before it and what is to go after it.
pub(super) fn split(plan: &mut Plan, actual: &KernelState, desired: &KernelSets) -> (Vec<SetChange>, Vec<SetChange>) {
    let risky = at_risk(plan);
    if risky.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let before = View { sets: &actual.policy, shared: SharedView::Held(&actual.shared) };
    let after = View { sets: &desired.sets, shared: SharedView::Desired(&desired.shared) };
    let (mut early, mut late) = (Vec::new(), Vec::new());
    for change in &mut plan.changes {
        // A key that goes and comes has another comment or leads to another chain: that is one lookup, and takes effect at once.
        let keys = |entries: &mut dyn Iterator<Item = &Entry>| -> BTreeSet<Key> {
            entries.filter_map(|entry| Key::of(change.set, entry)).collect()
        };
        let comes = keys(&mut change.put.iter().map(|(entry, _)| entry));
        let goes = keys(&mut change.remove.iter());
        let set = change.set;
        let moves = |entry: &Entry, other: &BTreeSet<Key>, view: &View<'_>| {
            Key::of(set, entry).is_some_and(|key| risky.contains(&key.stage()) && !other.contains(&key) && view.covers(&key))
        };
        let put: Vec<_> = change.put.extract_if(.., |(entry, _)| moves(entry, &goes, &before)).collect();
        let remove: Vec<_> = change.remove.extract_if(.., |entry| moves(entry, &comes, &after)).collect();
        push(&mut early, SetChange { set, remove: Vec::new(), put });
        push(&mut late, SetChange { set, remove, put: Vec::new() });
    }
    plan.changes.retain(|change| !(change.put.is_empty() && change.remove.is_empty()));
    (early, late)
}

fn push(changes: &mut Vec<SetChange>, change: SetChange) {
    if !(change.put.is_empty() && change.remove.is_empty()) {
        changes.push(change);
    }
}

/// Where something comes and something goes, or isolation does: elsewhere no permission moves.
fn at_risk(plan: &Plan) -> BTreeSet<Stage> {
    let (mut come, mut gone, mut both) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for change in &plan.changes {
        if let SetRef::Policy(SetId { direction, shape: Shape::Isolated, .. }) = change.set {
            let entries = change.remove.iter().chain(change.put.iter().map(|(entry, _)| entry));
            both.extend(entries.filter_map(|entry| match entry {
                Entry::Policy(Element::Local(local)) => Some((direction, *local)),
                Entry::Policy(_) | Entry::Interface(_) | Entry::Bound(_) | Entry::Group(_) | Entry::Segment(..) => None,
            }));
        }
        come.extend(change.put.iter().filter_map(|(entry, _)| Key::of(change.set, entry)).map(|key| key.stage()));
        gone.extend(change.remove.iter().filter_map(|entry| Key::of(change.set, entry)).map(|key| key.stage()));
    }
    both.extend(come.intersection(&gone).copied());
    both
}

/// An element that allows something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Element(Direction, Element),
    /// The chain of a segment, whichever it is.
    Segment(Direction, IpAddr),
}

impl Key {
    /// `None` when it is of a set that allows nothing by itself.
    fn of(set: SetRef, entry: &Entry) -> Option<Self> {
        match (set, entry) {
            (SetRef::Policy(SetId { direction, shape, .. }), Entry::Policy(element)) => match shape {
                Shape::PeerPort | Shape::Peer | Shape::PeerProtocol | Shape::PeerIcmp | Shape::Port | Shape::Range | Shape::IcmpRange => {
                    Some(Self::Element(direction, element.clone()))
                }
                Shape::Isolated | Shape::HostJudged | Shape::Published | Shape::PublishedAllow | Shape::Reject | Shape::RejectIcmp => None,
            },
            (SetRef::Segments(Asked::Packet, direction, _), Entry::Segment(local, _)) => Some(Self::Segment(direction, *local)),
            (
                SetRef::Policy(_)
                | SetRef::Segments(..)
                | SetRef::Group(_)
                | SetRef::KnownInterfaces(_)
                | SetRef::Workloads(_)
                | SetRef::Bound(..),
                Entry::Policy(_) | Entry::Segment(..) | Entry::Group(_) | Entry::Interface(_) | Entry::Bound(_),
            ) => None,
        }
    }

    fn stage(&self) -> Stage {
        match self {
            Self::Segment(direction, local) => (*direction, *local),
            Self::Element(direction, element) => (*direction, local(element)),
        }
    }
}

pub(super) fn local(element: &Element) -> IpAddr {
    match element {
        Element::Local(local)
        | Element::Peer(local, _)
        | Element::PeerProtocol(local, ..)
        | Element::PeerPort(local, ..)
        | Element::PeerIcmp(local, ..)
        | Element::Port(local, ..)
        | Element::Range(local, ..)
        | Element::IcmpRange(local, ..) => *local,
    }
}

/// A state, as far as it allows.
struct View<'a> {
    sets: &'a BTreeMap<SetId, BTreeMap<Element, Comment>>,
    shared: SharedView<'a>,
}

enum SharedView<'a> {
    Held(&'a HeldShared),
    Desired(&'a Shared),
}

impl SharedView<'_> {
    fn rules(&self, stage: &Stage) -> &[SharedRule] {
        match self {
            Self::Held(held) => held.segments.get(stage).and_then(|(chain, _)| held.chains.get(chain)),
            Self::Desired(desired) => desired.segments.get(stage).and_then(|(chain, _)| desired.chains.get(chain)),
        }
        .map_or(&[], Vec::as_slice)
    }

    fn members(&self, set: &GroupSet) -> Option<&Members> {
        match self {
            Self::Held(held) => held.groups.get(set).map(|group| &group.members),
            Self::Desired(desired) => desired.groups.get(set).map(|(members, _)| members),
        }
    }
}

/// What an element allows of the ends' traffic, for asking whether one rule allows all of it.
enum What {
    Everything,
    Protocol(Protocol),
    Transport(Transport),
}

impl View<'_> {
    /// Whether the stage lets through all that the element allows. `false` where that would take several elements together: then the element comes
    /// or goes with the rest.
    fn covers(&self, key: &Key) -> bool {
        let stage = key.stage();
        let (direction, at) = stage;
        if !self.has(direction, Shape::Isolated, &Element::Local(at)) {
            return true;
        }
        let Key::Element(_, element) = key else { return false };
        let has = |shape, element| self.has(direction, shape, &element);
        let of_protocol = |peer, protocol| {
            has(Shape::Peer, Element::Peer(at, peer)) || has(Shape::PeerProtocol, Element::PeerProtocol(at, peer, protocol))
        };
        match element {
            Element::Local(_) | Element::Range(..) | Element::IcmpRange(..) => false,
            Element::Peer(_, peer) => has(Shape::Peer, element.clone()) || self.chain(&stage, Some(*peer), &What::Everything),
            Element::PeerProtocol(_, peer, protocol) => {
                of_protocol(*peer, *protocol) || self.chain(&stage, Some(*peer), &What::Protocol(*protocol))
            }
            Element::PeerPort(_, peer, protocol, port) => {
                has(Shape::PeerPort, element.clone())
                    || has(Shape::Port, Element::Port(at, *protocol, *port))
                    || of_protocol(*peer, *protocol)
                    || self.chain(&stage, Some(*peer), &What::Transport(Transport::Port(*protocol, *port)))
                    || self.ranges(direction, at).any(|range| {
                        matches!(range, Element::Range(_, peers, protocols, ports)
                            if peers.contains(*peer) && protocols.contains(protocol.0) && ports.contains(*port))
                    })
            }
            Element::PeerIcmp(_, peer, kind, code) => {
                let family = Family::of(at);
                let transport = Transport::Icmp { family, kind: *kind, code: *code };
                has(Shape::PeerIcmp, element.clone())
                    || of_protocol(*peer, transport.protocol())
                    || self.chain(&stage, Some(*peer), &What::Transport(transport))
                    || self.icmp_ranges(direction, at).any(|range| {
                        matches!(range, Element::IcmpRange(_, peers, kinds, codes)
                            if peers.contains(*peer) && kinds.contains(*kind) && codes.contains(*code))
                    })
            }
            Element::Port(_, protocol, port) => {
                has(Shape::Port, element.clone()) || self.chain(&stage, None, &What::Transport(Transport::Port(*protocol, *port)))
            }
        }
    }

    fn has(&self, direction: Direction, shape: Shape, element: &Element) -> bool {
        let id = SetId { direction, family: Family::of(local(element)), shape };
        self.sets.get(&id).is_some_and(|elements| elements.contains_key(element))
    }

    /// Whether one rule of the stage's chain allows all of it; without a peer, to everybody.
    fn chain(&self, stage: &Stage, peer: Option<IpAddr>, what: &What) -> bool {
        self.shared.rules(stage).iter().any(|rule| {
            let service = match what {
                What::Everything => rule.service == SharedService::Any,
                What::Protocol(protocol) => match rule.service {
                    SharedService::Any => true,
                    SharedService::Protocol(of) => of == *protocol,
                    SharedService::Protocols(of) => of.contains(protocol.0),
                    SharedService::Ports(..) | SharedService::Icmp(..) => false,
                },
                What::Transport(transport) => rule.service.matches(*transport),
            };
            let transport = match what {
                What::Transport(transport) => *transport,
                // Of no service that members say.
                What::Everything | What::Protocol(_) => Transport::Other(Protocol(0)),
            };
            let peers = match (rule.peers, peer) {
                (SharedPeers::Any, _) => true,
                (SharedPeers::In(_), None) => false,
                (SharedPeers::In(set), Some(peer)) => {
                    self.shared.members(&set).is_some_and(|members| set.matches(members, peer, transport))
                }
            };
            service && peers
        })
    }

    /// The ranges of one local address.
    fn ranges(&self, direction: Direction, at: IpAddr) -> impl Iterator<Item = &Element> {
        let lowest = Element::Range(at, Span::single(lowest(at)), Span::single(0), Span::single(0));
        self.from(direction, at, Shape::Range, lowest)
    }

    fn icmp_ranges(&self, direction: Direction, at: IpAddr) -> impl Iterator<Item = &Element> {
        let lowest = Element::IcmpRange(at, Span::single(lowest(at)), Span::single(0), Span::single(0));
        self.from(direction, at, Shape::IcmpRange, lowest)
    }

    fn from(&self, direction: Direction, at: IpAddr, shape: Shape, lowest: Element) -> impl Iterator<Item = &Element> {
        let elements = self.sets.get(&SetId { direction, family: Family::of(at), shape });
        let from = elements.into_iter().flat_map(move |elements| elements.range(lowest.clone()..));
        from.map(|(element, _)| element).take_while(move |element| local(element) == at)
    }
}

fn lowest(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
