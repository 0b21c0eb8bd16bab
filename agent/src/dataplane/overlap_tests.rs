#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::desired::Desired;
use super::super::moves;
use super::super::names::Layer;
use super::super::plan::{Plan, plan};
use super::super::shared::split_prepared;
use super::pass::{EVERY_BYTE, EVERY_PORT};
use super::*;
use firebreak_policy::kernel_sets::{KernelSets, Shared, SharedPeers, SharedService, ShortName};
use firebreak_policy::model::Transport;
use proptest::prelude::*;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));
const PORTS: [u16; 3] = [80, 443, 8080];

fn peer(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 1, number).into()
}

fn id(shape: Shape) -> SetId {
    SetId { direction: Direction::Ingress, family: Family::V4, shape }
}

fn group(number: u8) -> GroupSet {
    let form = if number == 2 { GroupForm::Blocks } else { GroupForm::Addresses };
    GroupSet { family: Family::V4, form, name: ShortName::new("peers", [number.to_string().as_str()]) }
}

/// A state of one local address, from small numbers.
fn sets(
    isolated: bool,
    elements: BTreeSet<(u8, u8, u8)>,
    rules: Vec<(u8, u8)>,
    members: &[BTreeSet<u8>; 3],
    range: Option<(u8, u8)>,
) -> KernelSets {
    let mut sets = KernelSets::default();
    if !isolated {
        return sets;
    }
    let mut put = |shape, element| drop(sets.sets.entry(id(shape)).or_default().insert(element, "a".into()));
    put(Shape::Isolated, Element::Local(LOCAL));
    for (kind, of, port) in elements {
        let (of, port) = (peer(of), PORTS[usize::from(port)]);
        match kind {
            0 => put(Shape::PeerPort, Element::PeerPort(LOCAL, of, Protocol::TCP, port)),
            1 => put(Shape::Peer, Element::Peer(LOCAL, of)),
            2 => put(Shape::PeerProtocol, Element::PeerProtocol(LOCAL, of, Protocol::TCP)),
            _ => put(Shape::Port, Element::Port(LOCAL, Protocol::TCP, port)),
        }
    }
    if let Some((first, ports)) = range {
        let peers = Span { first: peer(first), last: peer(3) };
        // Not so many that only another range could hold them, which may not overlap with this one.
        let ports = [Span { first: 0, last: 100 }, Span { first: 400, last: 450 }, EVERY_PORT][usize::from(ports)];
        put(Shape::Range, Element::Range(LOCAL, peers, Span::single(6), ports));
    }
    let rules: Vec<SharedRule> = rules
        .into_iter()
        .map(|(of, service)| SharedRule {
            peers: if of == 3 { SharedPeers::Any } else { SharedPeers::In(group(of)) },
            service: match service {
                0 => SharedService::Any,
                1 => SharedService::Protocol(Protocol::TCP),
                2 => SharedService::Ports(Protocol::TCP, Span { first: 1, last: 500 }),
                _ => SharedService::Ports(Protocol::TCP, Span::single(443)),
            },
            comment: "r".into(),
        })
        .collect();
    if rules.is_empty() {
        return sets;
    }
    let chain = Chain {
        direction: Direction::Ingress,
        family: Family::V4,
        name: ShortName::new("c", [format!("{rules:?}").as_str()]),
        answers: false,
    };
    let groups = rules.iter().filter_map(SharedRule::group);
    let of_set = |set: GroupSet| {
        let number = (0..3).find(|number| group(*number) == set).unwrap();
        let member = |of: &u8| {
            if number == 2 { Member::Block(ipnet::IpNet::new(peer(*of), 31).unwrap().trunc()) } else { Member::Address(peer(*of)) }
        };
        members[usize::from(number)].iter().map(member).collect::<Members>()
    };
    sets.shared = Shared {
        groups: groups.map(|set| (set, (of_set(set), "peers".into()))).collect(),
        chains: [(chain, rules)].into(),
        segments: [((Direction::Ingress, LOCAL), (chain, "web".into()))].into(),
    };
    sets
}

fn states() -> impl Strategy<Value = KernelSets> {
    let members = || prop::collection::btree_set(0_u8..4, 0..4);
    (
        prop::bool::weighted(0.9),
        prop::collection::btree_set((0_u8..4, 0_u8..4, 0_u8..3), 0..5),
        prop::collection::vec((0_u8..4, 0_u8..4), 0..4),
        [members(), members(), members()],
        prop::option::weighted(0.3, (0_u8..4, 0_u8..3)),
    )
        .prop_map(|(isolated, elements, rules, members, range)| sets(isolated, elements, rules, &members, range))
}

/// A packet that asks the sets of the first state up to some lookup and those of the second from there on; interval sets change later.
struct Straddling<'a> {
    states: [&'a KernelState; 2],
    at: usize,
    flip: usize,
    late: usize,
}

impl<'a> Straddling<'a> {
    fn state(&mut self, interval: bool) -> &'a KernelState {
        self.at += 1;
        let flip = if interval { self.late } else { self.flip };
        self.states[usize::from(self.at > flip)]
    }

    fn has(&mut self, shape: Shape, element: Element) -> bool {
        self.state(false).policy.get(&id(shape)).is_some_and(|elements| elements.contains_key(&element))
    }

    fn passes(&mut self, peer: IpAddr, port: u16) -> bool {
        if self.has(Shape::PeerPort, Element::PeerPort(LOCAL, peer, Protocol::TCP, port))
            || !self.has(Shape::Isolated, Element::Local(LOCAL))
        {
            return true;
        }
        let state = self.state(false);
        let transport = Transport::Port(Protocol::TCP, port);
        let chain = state.shared.segments.get(&(Direction::Ingress, LOCAL)).map(|(chain, _)| &state.shared.chains[chain]);
        for rule in chain.into_iter().flatten() {
            let peers = match rule.peers {
                SharedPeers::Any => true,
                SharedPeers::In(set) => {
                    let members = self.state(set.form == GroupForm::Blocks).shared.groups.get(&set).map(|group| &group.members);
                    set.matches(members.expect("a set that a chain names is there"), peer, transport)
                }
            };
            if peers && rule.service.matches(transport) {
                return true;
            }
        }
        self.has(Shape::Peer, Element::Peer(LOCAL, peer))
            || self.has(Shape::PeerProtocol, Element::PeerProtocol(LOCAL, peer, Protocol::TCP))
            || self.has(Shape::Port, Element::Port(LOCAL, Protocol::TCP, port))
            || self.state(true).policy.get(&id(Shape::Range)).into_iter().flat_map(BTreeMap::keys).any(|element| {
                matches!(element, Element::Range(_, peers, protocols, ports) if peers.contains(peer) && protocols.contains(6) && ports.contains(port))
            })
    }
}

fn passes(state: &KernelState, peer: IpAddr, port: u16) -> bool {
    Straddling { states: [state, state], at: 0, flip: 0, late: 0 }.passes(peer, port)
}

/// The states of the kernel on the way: before, with what comes first, after the change, at the end.
fn way(before: &KernelState, desired: &KernelSets, by_views: bool) -> [KernelState; 3] {
    let desired = Desired { sets: desired.clone(), ..Desired::default() };
    let mut change = plan(before, &desired);
    let (mut early, mut late) = if by_views { moves::split(&mut change, before, &desired.sets) } else { Default::default() };
    hold(&mut change, &mut early, &mut late, before);
    let mut first = split_prepared(&mut change).unwrap_or_default();
    first.changes.extend(early);
    for change in first.changes.iter().chain(&change.changes).chain(&late) {
        assert!(change.is_something());
    }
    let mut states = [before.clone(), before.clone(), before.clone()];
    let steps = [first, change, Plan { changes: late, ..Plan::default() }];
    for (number, step) in steps.into_iter().enumerate() {
        states[number..].iter_mut().for_each(|state| state.apply(step.clone()));
    }
    states
}

fn held(sets: &KernelSets) -> KernelState {
    let mut state = KernelState::empty([Layer::Inet]);
    let first = plan(&state, &Desired { sets: sets.clone(), ..Desired::default() });
    state.apply(first);
    state
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_both_states_allow_is_never_missed_and_what_neither_allows_never_let_through(
        before in states(), after in states(), by_views in any::<bool>(),
    ) {
        let (old, new) = (held(&before), held(&after));
        // What changes members alone neither isolates nor leads to another chain.
        let isolates = |sets: &KernelSets| sets.is_isolated(Direction::Ingress, LOCAL);
        let by_views = by_views || isolates(&before) != isolates(&after) || before.shared.segments != after.shared.segments;
        let [first, second, last] = way(&old, &after, by_views);
        prop_assert_eq!(&last.policy, &new.policy);
        let ranges: Vec<&Element> = first.policy.get(&id(Shape::Range)).into_iter().flat_map(BTreeMap::keys).collect();
        for (number, one) in ranges.iter().enumerate() {
            for other in &ranges[number + 1..] {
                let (Element::Range(_, peers, _, ports), Element::Range(_, others, _, other_ports)) = (one, other) else { panic!("no range") };
                prop_assert!(both(*peers, *others).is_none() || both(*ports, *other_ports).is_none(), "{:?} and {:?}", one, other);
            }
        }
        for (of, port) in (0..4).flat_map(|of| PORTS.map(|port| (peer(of), port))) {
            let (was, will) = (passes(&old, of, port), passes(&new, of, port));
            prop_assert_eq!(passes(&first, of, port), was, "{} {} after what comes first", of, port);
            prop_assert_eq!(passes(&second, of, port), will, "{} {} after the change", of, port);
            for (flip, late) in (0..14).flat_map(|flip| [flip, flip + 1, 14].map(|late| (flip, late))) {
                let verdict = Straddling { states: [&first, &second], at: 0, flip, late }.passes(of, port);
                if was && will {
                    prop_assert!(verdict, "{} {} asks the new sets from lookup {} on, intervals from {}", of, port, flip, late);
                }
            }
        }
    }
}

/// A chain with two rules, and the members of its two groups.
fn relabelled(first: &[u8], second: &[u8]) -> KernelSets {
    let members = [first.iter().copied().collect(), second.iter().copied().collect(), BTreeSet::new()];
    sets(true, BTreeSet::new(), vec![(0, 2), (1, 1)], &members, None)
}

#[test]
fn a_peer_that_goes_from_one_group_to_another_is_held_meanwhile_and_others_are_not() {
    let old = held(&relabelled(&[0, 1], &[2]));
    let desired = Desired { sets: relabelled(&[0, 3], &[1, 2]), ..Desired::default() };
    let mut change = plan(&old, &desired);
    let (mut early, mut late) = (Vec::new(), Vec::new());
    hold(&mut change, &mut early, &mut late, &old);
    let element = Entry::Policy(Element::Range(LOCAL, Span::single(peer(1)), Span::single(6), Span { first: 1, last: 500 }));
    assert_eq!(early.len(), 1);
    assert_eq!(early[0].put, [(element.clone(), Comment::from(COMMENT))]);
    assert_eq!(late[0].remove, [element]);
    // Who only comes or only goes is held nowhere.
    let desired = Desired { sets: relabelled(&[0], &[2]), ..Desired::default() };
    let (mut early, mut late) = (Vec::new(), Vec::new());
    hold(&mut plan(&old, &desired), &mut early, &mut late, &old);
    assert!(early.is_empty() && late.is_empty());
}

/// A stage of one direction meets only what its own set has: looked for in both, what was found in the other was never there to be taken away.
#[test]
fn ranges_of_both_directions_of_one_workload_are_held_each_in_its_own_set() {
    let mut found = Found { elements: BTreeSet::new(), work: 0, ranged: BTreeSet::new() };
    let peers = Span { first: peer(0), last: peer(9) };
    let ports = |first, last| Service::Ports(Protocol::TCP, Span { first, last });
    let types = Service::Icmp(Span { first: 0, last: 9 }, EVERY_BYTE);
    for (direction, service) in [
        (Direction::Ingress, ports(1_000, 2_000)),
        (Direction::Egress, ports(1_000, 2_000)),
        (Direction::Egress, ports(1_500, 3_000)),
        (Direction::Ingress, types),
        (Direction::Egress, types),
    ] {
        found.put((direction, LOCAL), Some(peers), service);
    }
    let of = |direction, shape, element| (SetId { direction, ..id(shape) }, element);
    let range = |last| Element::Range(LOCAL, peers, Span::single(6), Span { first: 1_000, last });
    let message = || Element::IcmpRange(LOCAL, peers, Span { first: 0, last: 9 }, EVERY_BYTE);
    let expected = [
        of(Direction::Ingress, Shape::Range, range(2_000)),
        of(Direction::Egress, Shape::Range, range(3_000)),
        of(Direction::Ingress, Shape::IcmpRange, message()),
        of(Direction::Egress, Shape::IcmpRange, message()),
    ];
    assert_eq!(found.elements, expected.into());
}

/// A feed of addresses that turns over: 5,000 blocks go and 5,000 come, in a chain that 50 workloads are led to, and with types of ICMP beside
/// ranges. Every pair would be 25 million steps for each workload, every type 65,536 for each address.
#[test]
fn of_a_change_that_is_too_large_to_look_at_whole_only_so_much_is_looked_at() {
    let blocks = |second: u16| -> Members {
        (0..5_000_u16).map(|n| Member::Block(format!("{second}.{}.{}.0/24", n / 250, n % 250).parse().unwrap())).collect()
    };
    let state = |second: u16, types: u8| {
        let one = sets(true, BTreeSet::new(), vec![(2, 0)], &[BTreeSet::new(), BTreeSet::new(), [0].into()], None);
        let mut all = one.clone();
        let led = *one.shared.segments.values().next().map(|(chain, _)| chain).unwrap();
        for number in 0..50 {
            let local = IpAddr::V4(Ipv4Addr::new(10, 0, 3, number));
            all.sets.entry(id(Shape::Isolated)).or_default().insert(Element::Local(local), "a".into());
            all.shared.segments.insert((Direction::Ingress, local), (led, "web".into()));
        }
        let peers = Span { first: IpAddr::from([10, 32, 0, 0]), last: IpAddr::from([10, 32, 15 + types, 255]) };
        let ping = Element::IcmpRange(LOCAL, peers, EVERY_BYTE, EVERY_BYTE);
        all.sets.entry(id(Shape::IcmpRange)).or_default().insert(ping, "a".into());
        all.shared.groups.values_mut().for_each(|(members, _)| *members = blocks(second));
        all
    };
    let desired = Desired { sets: state(12, 16), ..Desired::default() };
    let old = held(&state(11, 0));
    let looked = found(&plan(&old, &desired), &old);
    // Whole pieces of work are begun while there is room: the turn of one more workload, the addresses of one more span.
    assert!((5_000..=MOST_WORK + 20_000).contains(&looked.work), "{}", looked.work);
    assert!(looked.elements.len() <= MOST);
}

/// What tiers make: thousands of wide blocks that go and come, each for many services. It ends, and soon.
#[test]
fn wide_blocks_are_not_written_out_and_the_work_is_bounded() {
    let mut found = Found { elements: BTreeSet::new(), work: 0, ranged: BTreeSet::new() };
    let everybody = Span { first: peer(0), last: IpAddr::from([200, 0, 0, 0]) };
    found.put((Direction::Ingress, LOCAL), Some(everybody), Service::Any);
    assert_eq!((found.elements.len(), found.work), (0, 0), "a part of everybody is not held");
    let members: Members = (0..4_000_u16).map(|n| Member::Block(format!("10.{}.{}.0/24", n / 250, n % 250).parse().unwrap())).collect();
    let begun = std::time::Instant::now();
    for first in 0..200 {
        // As `add` asks before each pair.
        if found.is_enough() {
            break;
        }
        let service = Service::Ports(Protocol::TCP, Span { first, last: first + 5_000 });
        found.members((Direction::Ingress, LOCAL), group(2), &members, None, service);
    }
    assert!(found.is_enough() && found.work <= MOST_WORK + 2 * MOST, "{}", found.work);
    println!("{} elements after {} steps in {:?}", found.elements.len(), found.work, begun.elapsed());
}
