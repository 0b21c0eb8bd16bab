//! Real packets through the fixed rules. What is expected is what `KernelSets::judge` says: the same rules as a function.

use crate::install::open;
use crate::lab::{End, Lab, Topology, sets};
use firebreak_agent::dataplane::{Check, Dataplane, Desired, SkeletonState};
use firebreak_policy::Members;
use firebreak_policy::judge::{Fate, Path};
use firebreak_policy::kernel_sets::{
    Chain, Element, GroupForm, GroupSet, KernelSets, SetId, Shape, Shared, SharedPeers, SharedRule, SharedService, ShortName, Span,
};
use firebreak_policy::model::{Direction, Family, Protocol, Transport};
use firebreak_policy::node_state::Member;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const TOPOLOGIES: [Topology; 2] = [Topology::Routed, Topology::Bridged];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const UNNAMED: Protocol = Protocol(253);

fn set(direction: Direction, family: Family, shape: Shape) -> SetId {
    SetId { direction, family, shape }
}

/// What every policy is asked.
fn probes(family: Family) -> Vec<Transport> {
    vec![
        Transport::Port(Protocol::TCP, 1001),
        Transport::Port(Protocol::TCP, 3005),
        Transport::Port(Protocol::TCP, 3011),
        Transport::Port(Protocol::UDP, 1001),
        Transport::Port(Protocol::UDP, 2001),
        Transport::ping(family),
        Transport::Other(UNNAMED),
    ]
}

/// One element of each shape that is about `local` and `peer`, beside the isolation.
fn policies(lab: &Lab, direction: Direction, family: Family) -> Vec<(&'static str, KernelSets)> {
    // Seen from the local end: ingress is about B's peer A, egress about A's peer B.
    let (local, peer) = match direction {
        Direction::Ingress => (lab.address(End::B, family), lab.address(End::A, family)),
        Direction::Egress => (lab.address(End::A, family), lab.address(End::B, family)),
    };
    let ping = if family == Family::V4 { 8 } else { 128 };
    let peers = Span::single(peer);
    let whole = Span { first: 0, last: u16::MAX };
    let cases = [
        ("nothing", vec![]),
        ("peer and port", vec![(Shape::PeerPort, Element::PeerPort(local, peer, Protocol::TCP, 1001))]),
        ("peer", vec![(Shape::Peer, Element::Peer(local, peer))]),
        ("protocol", vec![(Shape::PeerProtocol, Element::PeerProtocol(local, peer, Protocol::UDP))]),
        ("a protocol without ports", vec![(Shape::PeerProtocol, Element::PeerProtocol(local, peer, UNNAMED))]),
        ("anyone", vec![(Shape::Port, Element::Port(local, Protocol::UDP, 2001))]),
        ("ports", vec![(Shape::Range, Element::Range(local, peers, Span::single(6), Span { first: 3000, last: 3010 }))]),
        ("every protocol", vec![(Shape::Range, Element::Range(local, peers, Span { first: 0, last: 255 }, whole))]),
        ("message", vec![(Shape::PeerIcmp, Element::PeerIcmp(local, peer, ping, 0))]),
        (
            "messages",
            vec![(Shape::IcmpRange, Element::IcmpRange(local, peers, Span { first: 0, last: 255 }, Span { first: 0, last: 255 }))],
        ),
    ];
    let isolated = (set(direction, family, Shape::Isolated), Element::Local(local));
    let exact = cases
        .into_iter()
        .map(|(name, elements)| {
            let elements = elements.into_iter().map(|(shape, element)| (set(direction, family, shape), element));
            (name, sets(elements.chain([isolated.clone()])))
        })
        .collect::<Vec<_>>();
    let shared = shared(direction, family, local, peer).into_iter().map(|(name, shared)| {
        let isolated = sets([isolated.clone()]);
        (name, KernelSets { shared, ..isolated })
    });
    exact.into_iter().chain(shared).collect()
}

/// The shared form: a chain of one rule of each kind.
fn shared(direction: Direction, family: Family, local: IpAddr, peer: IpAddr) -> Vec<(&'static str, Shared)> {
    let host = if family == Family::V4 { 24 } else { 64 };
    let block = IpNet::new(peer, host).unwrap().trunc();
    let members: Members = [Member::Address(peer), Member::Block(block), Member::Service(peer, Protocol::TCP, 1001)].into();
    let strangers: Members = [Member::Address(local), Member::Block("203.0.113.0/24".parse().unwrap())].into();
    let group = |title: &str, form| GroupSet { family, form, name: ShortName::new(title, []) };
    let of = |form| SharedPeers::In(group("peers", form));
    let ports = |first, last| SharedService::Ports(Protocol::TCP, Span { first, last });
    let cases = [
        ("shared: nobody", SharedPeers::In(group("strangers", GroupForm::Addresses)), SharedService::Any),
        ("shared: peer and port", of(GroupForm::Addresses), ports(1001, 1001)),
        ("shared: peer and ports", of(GroupForm::Addresses), ports(3000, 3010)),
        ("shared: peer", of(GroupForm::Addresses), SharedService::Any),
        ("shared: services", of(GroupForm::Services), SharedService::Any),
        ("shared: block", of(GroupForm::Blocks), SharedService::Any),
        ("shared: block and protocol", of(GroupForm::Blocks), SharedService::Protocol(Protocol::UDP)),
        ("shared: anyone on ports", SharedPeers::Any, ports(3000, 3010)),
        ("shared: anyone on a protocol without ports", SharedPeers::Any, SharedService::Protocol(UNNAMED)),
        ("shared: message", of(GroupForm::Blocks), SharedService::Icmp(if family == Family::V4 { 8 } else { 128 }, Some(0))),
        ("shared: other message", of(GroupForm::Blocks), SharedService::Icmp(3, None)),
    ];
    let shared = |(name, peers, service): (&'static str, SharedPeers, SharedService)| {
        let rules = vec![SharedRule { peers, service, comment: format!("web <- peers by {name}").as_str().into() }];
        let chain = Chain { direction, family, name: ShortName::new("web", [name]), answers: false };
        let groups = [GroupForm::Addresses, GroupForm::Services, GroupForm::Blocks]
            .map(|form| (group("peers", form), (members.clone(), "peers".into())));
        let mut groups: BTreeMap<_, _> = groups.into();
        groups.insert(group("strangers", GroupForm::Addresses), (strangers.clone(), "strangers".into()));
        let segments = [((direction, local), (chain, "web".into()))].into();
        (name, Shared { groups, chains: [(chain, rules)].into(), segments })
    };
    cases.into_iter().map(shared).collect()
}

#[test]
fn real_packets_are_judged_as_the_function_says_routed_ipv4() {
    packets_are_judged(Topology::Routed, Family::V4);
}

#[test]
fn real_packets_are_judged_as_the_function_says_routed_ipv6() {
    packets_are_judged(Topology::Routed, Family::V6);
}

#[test]
fn real_packets_are_judged_as_the_function_says_bridged_ipv4() {
    packets_are_judged(Topology::Bridged, Family::V4);
}

#[test]
fn real_packets_are_judged_as_the_function_says_bridged_ipv6() {
    packets_are_judged(Topology::Bridged, Family::V6);
}

fn packets_are_judged(topology: Topology, family: Family) {
    let lab = Lab::new(topology);
    let (mut dataplane, _) = open(&lab.node);
    let (a, b) = (lab.address(End::A, family), lab.address(End::B, family));
    let mut fates = std::collections::BTreeMap::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for (name, policy) in policies(&lab, direction, family) {
            let desired = lab.desired(policy.clone());
            dataplane.commit(&desired).unwrap();
            dataplane.read_back().unwrap();
            assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0, "{name}: what was read back is what was committed");
            for (transport, arrived) in at_once(&lab, b, probes(family)) {
                let fate = policy.judge(Path::Forwarded, a, b, transport);
                assert_eq!(arrived, fate == Fate::Passed, "{direction:?} {name}: {transport}");
                *fates.entry(fate).or_insert(0) += 1;
            }
            // The other end may begin what nobody forbids it; it is asked once per policy.
            let back = Transport::Port(Protocol::TCP, 1001);
            let fate = policy.judge(Path::Forwarded, b, a, back);
            assert_eq!(lab.probe(End::B, a, End::A, back), fate == Fate::Passed, "{direction:?} {name}: back");
        }
    }
    assert!(fates.values().all(|count| *count >= 20) && fates.len() == 3, "{fates:?}");
    denials_are_counted(&lab);
}

/// From A to B, each by itself, all at the same time: most are denied, and each of those is waited for.
fn at_once(lab: &Lab, to: IpAddr, transports: Vec<Transport>) -> Vec<(Transport, bool)> {
    std::thread::scope(|scope| {
        let probe = |transport| scope.spawn(move || (transport, lab.probe(End::A, to, End::B, transport)));
        let running: Vec<_> = transports.into_iter().map(probe).collect();
        running.into_iter().map(|probe| probe.join().unwrap()).collect()
    })
}

/// The elements' counters add up to the control sums, and nothing overflowed.
fn denials_are_counted(lab: &Lab) {
    let listed = lab.node.ruleset();
    for word in ["in", "out"] {
        let total = counter(&listed, &format!("denied_{word}"));
        let mut elements = 0;
        let mut ours = false;
        for line in listed.lines() {
            if let Some(name) = line.trim().strip_prefix("set ") {
                ours = name.starts_with(&format!("denied_{word}"));
            }
            if ours {
                let mut words = line.split_whitespace();
                while let Some(found) = words.next() {
                    if found == "packets" {
                        elements += words.next().unwrap().parse::<u64>().unwrap();
                    }
                }
            }
        }
        assert!(total > 0);
        assert_eq!(total, elements, "{word}");
        assert_eq!(counter(&listed, &format!("denied_overflow_{word}")), 0);
    }
}

fn counter(ruleset: &str, name: &str) -> u64 {
    let at = ruleset.find(&format!("counter {name} {{")).unwrap();
    ruleset[at..].split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_own_node_gets_in_unless_it_is_judged_and_a_published_port_is_no_way_round() {
    for topology in TOPOLOGIES {
        let lab = Lab::new(topology);
        let (mut dataplane, _) = open(&lab.node);
        for family in FAMILIES {
            let (a, b, node) = (lab.address(End::A, family), lab.address(End::B, family), lab.gateway(End::B, family));
            let web = Transport::Port(Protocol::TCP, 1001);
            let isolated = (set(Direction::Ingress, family, Shape::Isolated), Element::Local(b));
            let judged = (set(Direction::Ingress, family, Shape::HostJudged), Element::Local(b));
            let allowed = (set(Direction::Ingress, family, Shape::PeerPort), Element::PeerPort(b, node, Protocol::TCP, 1001));
            for policy in [
                sets([isolated.clone()]),
                sets([isolated.clone(), judged.clone()]),
                sets([isolated.clone(), judged.clone(), allowed]),
                sets([judged.clone()]),
            ] {
                dataplane.commit(&lab.desired(policy.clone())).unwrap();
                let passed = policy.judge(Path::FromNode, node, b, web) == Fate::Passed;
                assert_eq!(lab.probe(End::Node, b, End::B, web), passed, "{topology:?} {family:?} {policy:?}");
            }

            // The relay of a published port is the node itself.
            let door = lab.address(End::Node, family);
            let published = (set(Direction::Egress, family, Shape::Published), Element::Port(door, Protocol::TCP, 1001));
            let may = (set(Direction::Egress, family, Shape::PublishedAllow), Element::PeerPort(a, door, Protocol::TCP, 1001));
            let bound = (set(Direction::Egress, family, Shape::Isolated), Element::Local(a));
            for policy in [sets([]), sets([published.clone()]), sets([published.clone(), may.clone()]), sets([published, may, bound])] {
                dataplane.commit(&lab.desired(policy.clone())).unwrap();
                for transport in [web, Transport::Port(Protocol::TCP, 1002), Transport::ping(family)] {
                    let passed = policy.judge(Path::ToNode, a, door, transport) == Fate::Passed;
                    assert_eq!(lab.probe(End::A, door, End::Node, transport), passed, "{topology:?} {family:?} {transport} {policy:?}");
                }
            }
        }
    }
}

#[test]
fn an_unknown_interface_is_dead_also_when_it_has_a_known_name() {
    for topology in TOPOLOGIES {
        let lab = Lab::new(topology);
        let web = Transport::Port(Protocol::TCP, 1001);
        let reach = |lab: &Lab| {
            FAMILIES.map(|family| {
                let ping = Transport::ping(family);
                let to = lab.address(End::B, family);
                (
                    lab.probe(End::A, to, End::B, web),
                    lab.probe(End::A, lab.gateway(End::A, family), End::Node, ping),
                    lab.probe(End::Node, to, End::B, ping),
                )
            })
        };
        let everything_passes = |what: &str| {
            // Neighbours that did not answer are asked again once a second.
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while reach(&lab) != [(true, true, true); 2] {
                assert!(std::time::Instant::now() < deadline, "{topology:?}: {what}");
            }
        };
        everything_passes("without us everything passes");
        let (mut dataplane, _) = open(&lab.node);
        assert_eq!(reach(&lab), [(false, false, false); 2], "{topology:?}: installed, nothing known yet");
        dataplane.commit(&lab.desired(KernelSets::default())).unwrap();
        everything_passes("known, and not isolated");

        lab.node.ip("link del wl0");
        lab.attach(End::A, "wl0");
        assert_eq!(reach(&lab), [(false, false, true); 2], "{topology:?}: made again under the same name");
        dataplane.commit(&lab.desired(KernelSets::default())).unwrap();
        everything_passes("known again");
        let ruleset = lab.node.ruleset();
        let counted = |table: &str, name: &str| counter(&ruleset[ruleset.find(table).unwrap()..], name);
        assert!(counted("table inet", "unknown_interface_in") + counted("table bridge", "unknown_interface_in") > 0, "{topology:?}");
        // The guard of the name was there before the new interface: it binds nothing to its ifindex.
        assert!(counted("table netdev", "guard_in") > 0, "{topology:?}");
    }
}

/// An echo on a connection.
pub fn ticks(client: &mut TcpStream, server: &mut TcpStream) -> bool {
    let mut seen = [0; 4];
    for stream in [&*client, &*server] {
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    }
    client.write_all(b"tick").is_ok()
        && server.read_exact(&mut seen).is_ok()
        && server.write_all(b"tock").is_ok()
        && client.read_exact(&mut seen).is_ok()
}

pub fn connect(lab: &Lab, family: Family) -> (TcpStream, TcpStream) {
    let at = SocketAddr::new(lab.address(End::B, family), 1001);
    let listener = lab.b.run(move || TcpListener::bind(at).unwrap());
    let client = lab.a.run(move || TcpStream::connect_timeout(&at, Duration::from_secs(2)).unwrap());
    (client, listener.accept().unwrap().0)
}

/// A to B on port 1001; both ends isolated in both directions otherwise.
fn one_way(lab: &Lab, family: Family) -> Desired {
    let (a, b) = (lab.address(End::A, family), lab.address(End::B, family));
    let isolated = [Direction::Ingress, Direction::Egress]
        .into_iter()
        .flat_map(|direction| [a, b].map(|local| (set(direction, family, Shape::Isolated), Element::Local(local))));
    lab.desired(sets(isolated.chain([
        (set(Direction::Egress, family, Shape::PeerPort), Element::PeerPort(a, b, Protocol::TCP, 1001)),
        (set(Direction::Ingress, family, Shape::PeerPort), Element::PeerPort(b, a, Protocol::TCP, 1001)),
    ])))
}

#[test]
fn a_connection_lives_through_stop_start_flush_and_other_rules() {
    for (topology, family) in [(Topology::Routed, Family::V4), (Topology::Bridged, Family::V6)] {
        let lab = Lab::new(topology);
        let (mut dataplane, _) = open(&lab.node);
        dataplane.commit(&one_way(&lab, family)).unwrap();
        let (mut client, mut server) = connect(&lab, family);
        assert!(ticks(&mut client, &mut server));
        drop(dataplane);
        assert!(ticks(&mut client, &mut server), "the agent is gone");
        assert!(!lab.probe(End::A, lab.address(End::B, family), End::B, Transport::Port(Protocol::TCP, 1002)), "and policy stands");
        let (dataplane, _) = open(&lab.node);
        lab.node.command("nft", "flush ruleset");
        assert!(ticks(&mut client, &mut server), "adopted, and flushed at");
        assert!(!lab.probe(End::A, lab.address(End::B, family), End::B, Transport::Port(Protocol::TCP, 1002)));
        drop(dataplane);
        let mut config = crate::install::config();
        config.nflog_group = 9;
        let _dataplane = lab.node.run(move || Dataplane::open(&config).unwrap());
        assert!(ticks(&mut client, &mut server), "other rules");
        assert!(!lab.probe(End::A, lab.address(End::B, family), End::B, Transport::Port(Protocol::TCP, 1002)));
    }
}

/// Servers speak first on connections that are older than the rules: an answer is judged as the connection that it is of, or by itself.
fn answers_are_judged(topology: Topology, family: Family) {
    const PORTS: [u16; 2] = [1001, 3005];
    let lab = Lab::new(topology);
    let (a, b) = (lab.address(End::A, family), lab.address(End::B, family));
    let cases: Vec<_> = [Direction::Ingress, Direction::Egress]
        .into_iter()
        .flat_map(|direction| policies(&lab, direction, family).into_iter().map(move |(name, policy)| (direction, name, policy)))
        .collect();
    let listeners = PORTS.map(|port| lab.b.run(move || TcpListener::bind(SocketAddr::new(b, port)).unwrap()));
    let connect = |port: u16, listener: &TcpListener| {
        let client = lab.a.run(move || TcpStream::connect_timeout(&SocketAddr::new(b, port), Duration::from_secs(5)).unwrap());
        (port, client, listener.accept().unwrap().0)
    };
    let pairs = || PORTS.iter().zip(&listeners).map(|(port, listener)| connect(*port, listener)).collect::<Vec<_>>();
    let connections: Vec<_> = cases.iter().map(|_| pairs()).collect();
    let (mut dataplane, _) = open(&lab.node);
    let mut counts = [0, 0];
    for ((direction, name, mut policy), connections) in cases.into_iter().zip(connections) {
        // Whoever is isolated in one direction allows nobody in the other, so that no answer passes by itself.
        let (local, other) = match direction {
            Direction::Ingress => (b, Direction::Egress),
            Direction::Egress => (a, Direction::Ingress),
        };
        policy.sets.entry(set(other, family, Shape::Isolated)).or_default().insert(Element::Local(local), "by the test".into());
        dataplane.commit(&lab.desired(policy.clone())).unwrap();
        for (port, mut client, mut server) in connections {
            let tcp = |port| Transport::Port(Protocol::TCP, port);
            let by_itself = policy.judge(Path::Forwarded, b, a, tcp(client.local_addr().unwrap().port()));
            assert_ne!(by_itself, Fate::Passed, "{direction:?} {name}");
            let expected = policy.judge(Path::Forwarded, a, b, tcp(port)) == Fate::Passed;
            client.set_read_timeout(Some(Duration::from_millis(if expected { 5_000 } else { 250 }))).unwrap();
            server.write_all(b"tick").unwrap();
            let heard = client.read_exact(&mut [0; 4]).is_ok();
            assert_eq!(heard, expected, "{topology:?} {family:?} {direction:?} {name}: an answer from port {port}");
            counts[usize::from(heard)] += 1;
        }
    }
    assert!(counts.iter().all(|count| *count >= 10), "{counts:?}");
}

#[test]
fn an_answer_on_a_connection_from_before_the_first_install_is_judged_as_the_function_says_of_the_connection_ipv4() {
    TOPOLOGIES.into_iter().for_each(|topology| answers_are_judged(topology, Family::V4));
}

#[test]
fn an_answer_on_a_connection_from_before_the_first_install_is_judged_as_the_function_says_of_the_connection_ipv6() {
    TOPOLOGIES.into_iter().for_each(|topology| answers_are_judged(topology, Family::V6));
}

/// Segments have chains for answers while connections may be picked up, and no longer.
#[test]
fn chains_for_answers_go_with_the_grace_after_the_first_install() {
    let lab = Lab::new(Topology::Routed);
    let (mut dataplane, _) = open(&lab.node);
    let (_, mut policy) =
        policies(&lab, Direction::Ingress, Family::V4).into_iter().find(|(name, _)| name.starts_with("shared: block")).unwrap();
    let Shared { groups, chains, .. } = &mut policy.shared;
    groups.retain(|set, _| chains.values().flatten().any(|rule| rule.group() == Some(*set)));
    let desired = lab.desired(policy);
    dataplane.commit(&desired).unwrap();
    let has = |word: &str| lab.node.ruleset().contains(word);
    assert!(has("chain in4_answers_of_") && has("chain in4_of_"));
    dataplane.read_back().unwrap();
    assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0, "what was read back is what was committed");
    assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0]);
    drop(dataplane);
    // As it ends by itself.
    lab.node.command("nft", "delete element inet firebreak midstream_allowed { tcp }");
    let (mut dataplane, opened) = open(&lab.node);
    assert_eq!((opened.skeleton, opened.changed), (SkeletonState::Adopted, Vec::new()));
    assert!(dataplane.commit(&desired).unwrap().leftover);
    dataplane.tidy().unwrap();
    assert!(!has("in4_answers_of_") && has("chain in4_of_"));
    assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0);
    assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0]);
}

#[test]
fn a_connection_from_before_the_first_install_is_taken_up_while_the_grace_lasts_and_refused_without() {
    for (grace, lives) in [(120, true), (0, false)] {
        let lab = Lab::new(Topology::Routed);
        let (mut client, mut server) = connect(&lab, Family::V4);
        assert!(ticks(&mut client, &mut server));
        let mut config = crate::install::config();
        config.midstream_grace = Duration::from_secs(grace);
        let desired = one_way(&lab, Family::V4);
        let _dataplane = lab.node.run(move || {
            let (mut dataplane, _) = Dataplane::open(&config).unwrap();
            dataplane.commit(&desired).unwrap();
            dataplane
        });
        assert_eq!(ticks(&mut client, &mut server), lives, "grace {grace}");
        assert_eq!(counter(&lab.node.ruleset(), "out_of_state") > 0, !lives);
    }
}
