//! What one transaction takes away in one set and gives in another. A packet asks the sets one after the other, so one that asks the second before
//! the moment of the commit and the first after it finds neither. What both the old and the new permission allow is therefore held by elements
//! that stand through the whole of the change: they come before it and go after it, and change no verdict. Pure.

#[path = "overlap_pass.rs"]
mod pass;

use super::element::Entry;
use super::moves::local;
use super::names::{Asked, SetRef};
use super::plan::{KernelState, Plan, SetChange};
use super::shared::Object;
use firebreak_policy::Members;
use firebreak_policy::kernel_sets::{Chain, Comment, Element, GroupForm, GroupKey, GroupSet, SetId, Shape, SharedRule, Span};
use firebreak_policy::model::{Direction, Family, Protocol};
use firebreak_policy::node_state::Member;
use pass::{Pass, Peers, Service, both};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Of a change that would take more of them the rest is left to chance: a packet may be dropped that both states allow.
const MOST: usize = 8_192;

/// How much is looked at: pairs of permissions, the members and addresses that they are written out for, and elements that a range might meet. With
/// tiers a stage may lose and get thousands of wide ranges at once; a commit must not wait for that.
const MOST_WORK: usize = 1_000_000;

/// So many ports or types are as many exact elements.
const FEW: usize = 16;

/// So many are where a range would overlap with another.
const MANY: usize = 1_024;

/// What `nft list` says beside them.
const COMMENT: &str = "held for the moment of a change";

/// Which end, in which direction.
type Stage = (Direction, IpAddr);

/// Takes what is to come before the plan and what is to go after it to `early` and `late`.
pub(super) fn hold(plan: &mut Plan, early: &mut Vec<SetChange>, late: &mut Vec<SetChange>, actual: &KernelState) {
    let goes = plan.changes.iter().any(|change| !change.remove.is_empty());
    let comes = plan.changes.iter().any(|change| !change.put.is_empty());
    if !(goes && comes) {
        return;
    }
    let by_set = |changes: &mut Vec<SetChange>| std::mem::take(changes).into_iter().map(|change| (change.set, change)).collect();
    let (mut first, mut last): (BTreeMap<SetRef, SetChange>, BTreeMap<SetRef, SetChange>) = (by_set(early), by_set(late));
    for (id, elements) in common(plan, actual) {
        let set = SetRef::Policy(id);
        let mut wanted: BTreeSet<Entry> = elements.into_iter().map(Entry::Policy).collect();
        let (first, last) = (part(&mut first, set), part(&mut last, set));
        if let Some(change) = plan.changes.iter_mut().find(|change| change.set == set) {
            let goes: BTreeSet<Entry> = change.remove.iter().filter(|entry| wanted.contains(entry)).cloned().collect();
            let comes: BTreeSet<Entry> =
                change.put.iter().map(|(entry, _)| entry).filter(|entry| wanted.contains(entry)).cloned().collect();
            // What goes and comes has another comment only: that is one lookup, and takes effect at once.
            last.remove.extend(change.remove.extract_if(.., |entry| goes.contains(entry) && !comes.contains(entry)));
            first.put.extend(change.put.extract_if(.., |(entry, _)| comes.contains(entry) && !goes.contains(entry)));
            wanted.retain(|entry| !goes.contains(entry) && !comes.contains(entry));
        }
        let held = |entry: &Entry| match (actual.policy.get(&id), entry) {
            (Some(elements), Entry::Policy(element)) => elements.contains_key(element),
            (None, _) | (Some(_), Entry::Group(_) | Entry::Segment(..) | Entry::Interface(_) | Entry::Bound(_)) => false,
        };
        for (entry, _) in &first.put {
            wanted.remove(entry);
        }
        for entry in wanted.into_iter().filter(|entry| !held(entry)) {
            first.put.push((entry.clone(), Comment::from(COMMENT)));
            last.remove.push(entry);
        }
    }
    plan.changes.retain(SetChange::is_something);
    early.extend(first.into_values().filter(SetChange::is_something));
    late.extend(last.into_values().filter(SetChange::is_something));
}

/// The part of the changes that is about one set.
fn part(changes: &mut BTreeMap<SetRef, SetChange>, set: SetRef) -> &mut SetChange {
    changes.entry(set).or_insert_with(|| SetChange { set, remove: Vec::new(), put: Vec::new() })
}

/// What a stage loses and gets.
#[derive(Clone, Debug, Default)]
struct Turn {
    goes: Vec<Pass>,
    comes: Vec<Pass>,
    /// Of a chain that another takes the place of: it is asked before everything but `peer_port`, at one moment. Only a set that the commit
    /// changes later than that moment, an interval set of several fields, does not stand in for it at once.
    replaced: Vec<Pass>,
}

/// The elements that hold what both allow.
fn common(plan: &Plan, actual: &KernelState) -> BTreeMap<SetId, BTreeSet<Element>> {
    let mut by_set: BTreeMap<SetId, BTreeSet<Element>> = BTreeMap::new();
    for (id, element) in found(plan, actual).elements {
        by_set.entry(id).or_default().insert(element);
    }
    by_set
}

fn found(plan: &Plan, actual: &KernelState) -> Found {
    let before = |set: &GroupSet| actual.shared.groups.get(set).map(|group| &group.members);
    let after = |set: &GroupSet| plan.members.iter().find(|(of, _)| of == set).map(|(_, members)| members).or_else(|| before(set));
    let mut found = Found { elements: BTreeSet::new(), work: 0, ranged: ranged(plan, actual) };
    let turning = Turning::of(plan, actual);
    for stage in turning.stages() {
        if found.is_enough() {
            break;
        }
        let turn = turning.turn(stage);
        found.work += turn.goes.len() + turn.comes.len() + turn.replaced.len();
        found.stage(stage, &turn, &before, &after);
    }
    found
}

/// The stages at which interval sets hold something, or will: another element there could overlap with it, which the kernel refuses.
fn ranged(plan: &Plan, actual: &KernelState) -> BTreeSet<(SetId, IpAddr)> {
    let of = |id: &SetId, element: &Element| match element {
        Element::Range(local, ..) | Element::IcmpRange(local, ..) => Some((*id, *local)),
        Element::Local(_)
        | Element::Peer(..)
        | Element::PeerProtocol(..)
        | Element::PeerPort(..)
        | Element::PeerIcmp(..)
        | Element::Port(..) => None,
    };
    let intervals = actual.policy.iter().filter(|(id, _)| matches!(id.shape, Shape::Range | Shape::IcmpRange));
    let held = intervals.flat_map(|(id, elements)| elements.keys().filter_map(move |element| of(id, element)));
    let coming = plan.changes.iter().flat_map(|change| {
        change.put.iter().filter_map(move |(entry, _)| match (change.set, entry) {
            (SetRef::Policy(id), Entry::Policy(element)) => of(&id, element),
            (SetRef::Policy(_) | SetRef::KnownInterfaces(_) | SetRef::Workloads(_) | SetRef::Bound(..), _)
            | (SetRef::Group(_) | SetRef::Segments(..), _) => None,
        })
    });
    held.chain(coming).collect()
}

/// What the stages lose and get, in the form in which it is small: members of a group are named once, however many local addresses they are of.
struct Turning<'a> {
    plan: &'a Plan,
    actual: &'a KernelState,
    elements: BTreeMap<Stage, Turn>,
    groups: Moved,
    led: BTreeMap<Stage, Option<Chain>>,
}

impl<'a> Turning<'a> {
    fn of(plan: &'a Plan, actual: &'a KernelState) -> Self {
        let (elements, mut groups, led) = of_changes(plan);
        keep_moved(&mut groups, &elements, &led);
        Self { plan, actual, elements, groups, led }
    }

    fn stages(&self) -> BTreeSet<Stage> {
        let led = self.actual.shared.segments.keys().chain(self.led.keys());
        self.elements.keys().chain(led).copied().collect()
    }

    fn turn(&self, stage: Stage) -> Turn {
        let Self { plan, actual, elements, groups, led } = self;
        let mut turn = elements.get(&stage).cloned().unwrap_or_default();
        let held = actual.shared.segments.get(&stage).map(|(chain, _)| chain);
        let old = held.and_then(|chain| actual.shared.chains.get(chain)).map_or(&[][..], Vec::as_slice);
        for (rule, (gone, come)) in old.iter().filter_map(|rule| Some((rule, groups.get(&rule.group()?)?))) {
            turn.goes.extend(gone.iter().filter_map(|key| Pass::of_key(*key, rule)));
            if !led.contains_key(&stage) {
                turn.comes.extend(come.iter().filter_map(|key| Pass::of_key(*key, rule)));
            }
        }
        if let Some(to) = led.get(&stage) {
            turn.replaced.extend(old.iter().filter_map(Pass::of_rule));
            let new = to.iter().flat_map(|chain| rules_of(plan, actual, chain));
            turn.comes.extend(new.clone().filter_map(Pass::of_rule));
            // What comes into an interval set that is there may be seen later than the chain.
            for (rule, set) in new.filter_map(|rule| Some((rule, rule.group()?))).filter(|(_, set)| set.form == GroupForm::Blocks) {
                let come = groups.get(&set).into_iter().flat_map(|(_, come)| come);
                turn.comes.extend(come.filter_map(|key| Pass::of_key(*key, rule)));
            }
        }
        turn
    }
}

/// By group, the members that go and those that come.
type Moved = BTreeMap<GroupSet, (Vec<GroupKey>, Vec<GroupKey>)>;

/// What the plan says of elements, of members of groups, and of chains that stages are led to.
fn of_changes(plan: &Plan) -> (BTreeMap<Stage, Turn>, Moved, BTreeMap<Stage, Option<Chain>>) {
    let mut turns: BTreeMap<Stage, Turn> = BTreeMap::new();
    let mut groups = Moved::new();
    let mut led: BTreeMap<Stage, Option<Chain>> = BTreeMap::new();
    for change in &plan.changes {
        match change.set {
            SetRef::Policy(SetId { direction, family: _, shape }) => {
                let pass = |entry: &Entry| match entry {
                    Entry::Policy(element) => Pass::of(shape, element).map(|pass| ((direction, local(element)), pass)),
                    Entry::Group(_) | Entry::Segment(..) | Entry::Interface(_) | Entry::Bound(_) => None,
                };
                // What goes and comes has another comment only.
                let goes: BTreeSet<&Entry> = change.remove.iter().collect();
                let comes: BTreeSet<&Entry> = change.put.iter().map(|(entry, _)| entry).collect();
                for (stage, pass) in goes.difference(&comes).filter_map(|entry| pass(entry)) {
                    turns.entry(stage).or_default().goes.push(pass);
                }
                for (stage, pass) in comes.difference(&goes).filter_map(|entry| pass(entry)) {
                    turns.entry(stage).or_default().comes.push(pass);
                }
            }
            SetRef::Group(set) => {
                let key = |entry: &Entry| match entry {
                    Entry::Group(key) => Some(*key),
                    Entry::Policy(_) | Entry::Segment(..) | Entry::Interface(_) | Entry::Bound(_) => None,
                };
                let comes = change.put.iter().filter_map(|(entry, _)| key(entry)).collect();
                groups.insert(set, (change.remove.iter().filter_map(key).collect(), comes));
            }
            SetRef::Segments(Asked::Packet, direction, _) => {
                let put = change.put.iter().map(|(entry, _)| (entry, true));
                for (entry, comes) in change.remove.iter().map(|entry| (entry, false)).chain(put) {
                    if let Entry::Segment(local, chain) = entry {
                        led.insert((direction, *local), comes.then_some(*chain));
                    }
                }
            }
            SetRef::Segments(Asked::Answer, ..) | SetRef::KnownInterfaces(_) | SetRef::Workloads(_) | SetRef::Bound(..) => {}
        }
    }
    (turns, groups, led)
}

/// Of members that come or go, those that do the other somewhere else too: there may be many, and each would be looked at for each local address.
fn keep_moved(groups: &mut Moved, turns: &BTreeMap<Stage, Turn>, led: &BTreeMap<Stage, Option<Chain>>) {
    let peers_of = |passes: &mut dyn Iterator<Item = &Pass>| -> (BTreeSet<IpAddr>, bool) {
        let (mut peers, mut wide) = (BTreeSet::new(), false);
        for pass in passes {
            match pass.peer() {
                Some(peer) => drop(peers.insert(peer)),
                None => wide = true,
            }
        }
        (peers, wide)
    };
    let (mut gone, mut any_gone) = peers_of(&mut turns.values().flat_map(|turn| &turn.goes));
    let (mut come, mut any_come) = peers_of(&mut turns.values().flat_map(|turn| &turn.comes));
    any_come |= led.values().any(Option::is_some);
    any_gone |= !led.is_empty();
    for (goes, comes) in groups.values() {
        for (keys, peers, any) in [(goes, &mut gone, &mut any_gone), (comes, &mut come, &mut any_come)] {
            for key in keys {
                match key {
                    GroupKey::Address(address) | GroupKey::Service(address, ..) => drop(peers.insert(*address)),
                    GroupKey::Block(_) => *any = true,
                }
            }
        }
    }
    let moves = |key: &GroupKey, others: &BTreeSet<IpAddr>, any: bool| match key {
        GroupKey::Address(address) | GroupKey::Service(address, ..) => any || others.contains(address),
        GroupKey::Block(_) => any || !others.is_empty(),
    };
    for (goes, comes) in groups.values_mut() {
        goes.retain(|key| moves(key, &come, any_come));
        comes.retain(|key| moves(key, &gone, any_gone));
    }
}

fn rules_of<'a>(plan: &'a Plan, actual: &'a KernelState, chain: &Chain) -> &'a [SharedRule] {
    let made = plan.before.iter().find_map(|object| match object {
        Object::AddChain(of, rules) | Object::RewriteChain(of, rules) => (of == chain).then_some(rules),
        Object::AddSet(..) | Object::DeleteChain(_) | Object::DeleteSet(_) => None,
    });
    let learnt = || plan.rules.iter().find(|(of, _)| of == chain).map(|(_, rules)| rules);
    made.or_else(learnt).or_else(|| actual.shared.chains.get(chain)).map_or(&[], Vec::as_slice)
}

struct Found {
    elements: BTreeSet<(SetId, Element)>,
    work: usize,
    ranged: BTreeSet<(SetId, IpAddr)>,
}

impl Found {
    /// What goes and comes at one stage, until it is enough.
    fn stage<'a>(
        &mut self,
        stage: Stage,
        turn: &Turn,
        before: &impl Fn(&GroupSet) -> Option<&'a Members>,
        after: &impl Fn(&GroupSet) -> Option<&'a Members>,
    ) {
        // Most of what comes is for one peer; only that is looked at for what goes of the same peer.
        let mut by_peer: BTreeMap<IpAddr, Vec<&Pass>> = BTreeMap::new();
        let mut wide = Vec::new();
        for pass in &turn.comes {
            match pass.peer() {
                Some(peer) => by_peer.entry(peer).or_default().push(pass),
                None => wide.push(pass),
            }
        }
        for going in &turn.goes {
            let mut pairs: Box<dyn Iterator<Item = &Pass>> = match going.peer() {
                Some(peer) => Box::new(by_peer.get(&peer).into_iter().flatten().chain(&wide).copied()),
                None => Box::new(turn.comes.iter()),
            };
            if pairs.any(|coming| !self.add(stage, going, coming, after)) {
                return;
            }
        }
        for going in &turn.replaced {
            let mut spans = turn.comes.iter().filter(|coming| matches!(coming.peers, Peers::Span(_)));
            if spans.any(|coming| !self.add(stage, going, coming, before)) {
                return;
            }
        }
    }

    /// What both allow; `false` when no more is looked at.
    fn add<'a>(&mut self, stage: Stage, going: &Pass, coming: &Pass, members: &impl Fn(&GroupSet) -> Option<&'a Members>) -> bool {
        self.work += 1;
        if self.is_enough() {
            return false;
        }
        let family = Family::of(stage.1);
        let Some(service) = going.service.and(coming.service, family) else { return true };
        match (going.peers, coming.peers) {
            (Peers::Any, Peers::Any) => self.put(stage, None, service),
            (Peers::Any, Peers::Span(span)) | (Peers::Span(span), Peers::Any) => self.put(stage, Some(span), service),
            (Peers::Span(one), Peers::Span(other)) => {
                if let Some(span) = both(one, other) {
                    self.put(stage, Some(span), service);
                }
            }
            (Peers::In(set), other) | (other, Peers::In(set)) => {
                let Some(members) = members(&set) else { return true };
                let within = match other {
                    Peers::Span(span) => Some(span),
                    // The members of two sets, of a chain that another takes the place of.
                    Peers::Any | Peers::In(_) => None,
                };
                self.members(stage, set, members, within, service);
            }
        }
        true
    }

    fn is_enough(&self) -> bool {
        self.work > MOST_WORK || self.elements.len() >= MOST
    }

    fn members(&mut self, stage: Stage, set: GroupSet, members: &Members, within: Option<Span<IpAddr>>, service: Service) {
        let one = within.filter(|span| span.first == span.last).map(|span| span.first);
        let keys: Vec<GroupKey> = match (one, set.form) {
            (Some(peer), GroupForm::Addresses) => {
                let transport = firebreak_policy::model::Transport::Other(Protocol(0));
                set.matches(members, peer, transport).then_some(GroupKey::Address(peer)).into_iter().collect()
            }
            (Some(peer), GroupForm::Blocks) => {
                let transport = firebreak_policy::model::Transport::Other(Protocol(0));
                set.matches(members, peer, transport).then_some(GroupKey::Address(peer)).into_iter().collect()
            }
            (Some(peer), GroupForm::Services) => {
                let (first, last) = (Member::Service(peer, Protocol(0), 0), Member::Service(peer, Protocol(u8::MAX), u16::MAX));
                members.range(first..=last).filter_map(|member| set.key(*member)).collect()
            }
            // More than are ever held would be too many.
            (None, _) => set.keys(members).take(MOST * 4).collect(),
        };
        self.work += keys.len();
        for key in keys {
            if self.is_enough() {
                return;
            }
            let (span, service) = match key {
                GroupKey::Address(address) => (Span::single(address), Some(service)),
                GroupKey::Block(block) => (Span { first: block.network(), last: block.broadcast() }, Some(service)),
                GroupKey::Service(address, protocol, port) => {
                    (Span::single(address), service.and(Service::Ports(protocol, Span::single(port)), set.family))
                }
            };
            let span = match within {
                Some(within) => both(span, within),
                None => Some(span),
            };
            if let (Some(span), Some(service)) = (span, service) {
                self.put(stage, Some(span), service);
            }
        }
    }

    fn range(&mut self, (direction, local): Stage, mut peers: Span<IpAddr>, protocol: u8, mut ports: Span<u16>) {
        let id = SetId { direction, family: Family::of(local), shape: Shape::Range };
        let meets = |element: &Element, peers, ports| match element {
            Element::Range(of, others, protocols, other_ports) if *of == local && protocols.contains(protocol) => {
                (both(*others, peers).is_some() && both(*other_ports, ports).is_some()).then_some((*others, *other_ports))
            }
            Element::Range(..)
            | Element::Local(_)
            | Element::Peer(..)
            | Element::PeerProtocol(..)
            | Element::PeerPort(..)
            | Element::PeerIcmp(..)
            | Element::Port(..)
            | Element::IcmpRange(..) => None,
        };
        let element = |peers, ports| Element::Range(local, peers, Span::single(protocol), ports);
        let of_the_same = (id, element(peers, Span::single(0)))..=(id, element(peers, Span::single(u16::MAX)));
        let holds = |of: &Element| matches!(of, Element::Range(.., held) if held.first <= ports.first && ports.last <= held.last);
        if self.elements.range(of_the_same).any(|(_, element)| holds(element)) {
            return;
        }
        self.work += self.elements.len();
        loop {
            let other = of_set(&self.elements, id).find_map(|element| meets(element, peers, ports));
            let Some(other) = other else { break };
            let Some(joined) = joined((peers, ports), other) else { return };
            self.elements.remove(&(id, element(other.0, other.1)));
            (peers, ports) = joined;
        }
        self.elements.insert((id, element(peers, ports)));
    }

    fn icmp_range(&mut self, (direction, local): Stage, peers: Span<IpAddr>, kinds: Span<u8>, codes: Span<u8>) {
        let meets = |element: &Element| match element {
            Element::IcmpRange(of, others, other_kinds, other_codes) if *of == local => {
                both(*others, peers).is_some() && both(*other_kinds, kinds).is_some() && both(*other_codes, codes).is_some()
            }
            Element::IcmpRange(..)
            | Element::Range(..)
            | Element::Local(_)
            | Element::Peer(..)
            | Element::PeerProtocol(..)
            | Element::PeerPort(..)
            | Element::PeerIcmp(..)
            | Element::Port(..) => false,
        };
        let id = SetId { direction, family: Family::of(local), shape: Shape::IcmpRange };
        self.work += self.elements.len();
        if !of_set(&self.elements, id).any(meets) {
            self.elements.insert((id, Element::IcmpRange(local, peers, kinds, codes)));
        }
    }

    /// `None`: everybody.
    fn put(&mut self, (direction, local): Stage, peers: Option<Span<IpAddr>>, service: Service) {
        // A span that finds no room is not begun: the first few thousand addresses of "everybody but" are nobody who sends anything.
        let fitting = peers.and_then(width).filter(|width| self.elements.len() + width <= MOST);
        self.work += fitting.unwrap_or_default();
        let mut add = |shape, element| {
            if self.elements.len() < MOST {
                self.elements.insert((SetId { direction, family: Family::of(local), shape }, element));
            }
        };
        let Some(peers) = peers else {
            if let Service::Ports(protocol, ports) = service
                && usize::from(ports.last - ports.first) < FEW
            {
                (ports.first..=ports.last).for_each(|port| add(Shape::Port, Element::Port(local, protocol, port)));
            }
            return;
        };
        let is_free = |shape| !self.ranged.contains(&(SetId { direction, family: Family::of(local), shape }, local));
        let addresses = fitting.map(|_| addresses(peers)).into_iter().flatten();
        match service {
            Service::AnyButIcmp => {}
            Service::Any => addresses.for_each(|peer| add(Shape::Peer, Element::Peer(local, peer))),
            Service::Protocol(protocol) => {
                addresses.for_each(|peer| add(Shape::PeerProtocol, Element::PeerProtocol(local, peer, protocol)))
            }
            Service::Ports(protocol, ports) => {
                let few = usize::from(ports.last - ports.first) < FEW;
                if !few && is_free(Shape::Range) {
                    return self.range((direction, local), peers, protocol.0, ports);
                }
                // Beside another range only exact elements have a place.
                if usize::from(ports.last - ports.first) < MANY {
                    let each = addresses.flat_map(|peer| (ports.first..=ports.last).map(move |port| (peer, port)));
                    self.exact((direction, local), Shape::PeerPort, each, |(peer, port)| Element::PeerPort(local, peer, protocol, port));
                }
            }
            Service::Icmp(kinds, codes) => {
                let one = kinds.first == kinds.last && codes.first == codes.last;
                if !one && is_free(Shape::IcmpRange) {
                    return self.icmp_range((direction, local), peers, kinds, codes);
                }
                let types =
                    move || (kinds.first..=kinds.last).flat_map(move |kind| (codes.first..=codes.last).map(move |code| (kind, code)));
                // "Any" is 65,536 of them, for each address.
                if types().take(MANY + 1).count() <= MANY {
                    let each = addresses.flat_map(|peer| types().map(move |(kind, code)| (peer, kind, code)));
                    self.exact((direction, local), Shape::PeerIcmp, each, |(peer, kind, code)| Element::PeerIcmp(local, peer, kind, code));
                }
            }
        }
    }

    /// Each one, until it is enough.
    fn exact<T>(&mut self, (direction, local): Stage, shape: Shape, each: impl Iterator<Item = T>, element: impl Fn(T) -> Element) {
        let id = SetId { direction, family: Family::of(local), shape };
        for one in each {
            if self.is_enough() {
                return;
            }
            self.work += 1;
            self.elements.insert((id, element(one)));
        }
    }
}

/// The elements of one set: those of the other direction are another set's, whatever they say.
fn of_set(elements: &BTreeSet<(SetId, Element)>, id: SetId) -> impl Iterator<Item = &Element> {
    // Before every other element of the set.
    let first = Element::Local(Ipv4Addr::UNSPECIFIED.into());
    elements.range((id, first)..).take_while(move |(set, _)| *set == id).map(|(_, element)| element)
}

/// What an element of an interval set becomes where another is there that it meets: both are common to old and new, so what joins them is too.
/// `None`: it has to stay away, for the kernel refuses two that overlap.
fn joined<T: Copy + Ord>(one: (Span<IpAddr>, Span<T>), other: (Span<IpAddr>, Span<T>)) -> Option<(Span<IpAddr>, Span<T>)> {
    let holds = |outer: Span<IpAddr>, inner: Span<IpAddr>| outer.first <= inner.first && inner.last <= outer.last;
    let spans = Span { first: one.1.first.min(other.1.first), last: one.1.last.max(other.1.last) };
    if one.0 == other.0 {
        return Some((one.0, spans));
    }
    (holds(one.0, other.0) && spans == one.1).then_some(one).or_else(|| (holds(other.0, one.0) && spans == other.1).then_some(other))
}

/// How many addresses there are; `None`: more than are ever held.
fn width(span: Span<IpAddr>) -> Option<usize> {
    let last = match (span.first, span.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => usize::try_from(last.to_bits().checked_sub(first.to_bits())?).ok()?,
        (IpAddr::V6(first), IpAddr::V6(last)) => usize::try_from(last.to_bits().checked_sub(first.to_bits())?).ok()?,
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    last.checked_add(1).filter(|width| *width <= MOST)
}

/// Each address of a span, as far as any number of them makes elements.
fn addresses(span: Span<IpAddr>) -> Box<dyn Iterator<Item = IpAddr>> {
    match (span.first, span.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            Box::new((first.to_bits()..=last.to_bits()).map(|bits| IpAddr::V4(bits.into())).take(MOST))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            Box::new((first.to_bits()..=last.to_bits()).map(|bits| IpAddr::V6(bits.into())).take(MOST))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
#[path = "overlap_tests.rs"]
mod tests;
