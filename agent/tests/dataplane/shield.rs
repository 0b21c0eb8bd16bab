//! The shield: what is known to be denied is dropped first of all in a flood, and nothing that policy lets through is.

use crate::install::config;
use crate::lab::{End, Lab, Topology, sets};
use crate::namespace::Namespace;
use firebreak_agent::dataplane::{Check, Dataplane, DataplaneConfig, Delta, Desired, SkeletonState, observe_without_agent};
use firebreak_policy::kernel_sets::{Element, KernelSets, SetId, Shape, Span};
use firebreak_policy::model::{Direction, Family, Protocol};
use nix::sys::time::{TimeVal, TimeValLike as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CASES: [(Topology, Family); 4] =
    [(Topology::Routed, Family::V4), (Topology::Bridged, Family::V4), (Topology::Routed, Family::V6), (Topology::Bridged, Family::V6)];
const PORT: u16 = 2001;
const FROM: u16 = 3001;
/// For what comes.
const PATIENCE: Duration = Duration::from_secs(20);
/// For what must not come.
const SILENCE: Duration = Duration::from_millis(100);

/// Every denied packet is a flood.
fn flooded() -> DataplaneConfig {
    DataplaneConfig { flood_rate: 0, ..config() }
}

fn id(family: Family, shape: Shape) -> SetId {
    SetId { direction: Direction::Ingress, family, shape }
}

fn elements(lab: &Lab, family: Family, more: Option<(Shape, Element)>) -> KernelSets {
    let isolated = (Shape::Isolated, Element::Local(lab.address(End::B, family)));
    sets(more.into_iter().chain([isolated]).map(|(shape, element)| (id(family, shape), element)))
}

/// `b` is isolated and lets nobody in.
fn denied(lab: &Lab, family: Family) -> Desired {
    lab.desired(elements(lab, family, None))
}

fn allow(lab: &Lab, family: Family) -> (Shape, Element) {
    (Shape::PeerPort, Element::PeerPort(lab.address(End::B, family), lab.address(End::A, family), Protocol::UDP, PORT))
}

fn rules(lab: &Lab, chain: &str) -> String {
    lab.node.command("nft", &format!("list chain inet firebreak {chain}"))
}

fn is_up(lab: &Lab) -> bool {
    rules(lab, "unknown_interface_in").contains("jump shield_in")
}

/// With the shield up in both directions.
fn shielded(lab: &Lab, desired: &Desired) -> Dataplane {
    let mut dataplane = lab.node.run(|| Dataplane::open(&flooded()).unwrap().0);
    dataplane.commit(desired).unwrap();
    put_up(lab, &mut dataplane);
    dataplane
}

fn put_up(lab: &Lab, dataplane: &mut Dataplane) {
    let until = Instant::now() + PATIENCE;
    // A rate needs two looks with some time between them.
    while !is_up(lab) {
        assert!(Instant::now() < until, "the shield does not come");
        dataplane.shield().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Two sockets, `a`'s that sends to `b`'s port from always the same port, and `b`'s.
fn sockets(lab: &Lab, family: Family, port: u16) -> [UdpSocket; 2] {
    let [a, b] = [End::A, End::B].map(|end| lab.address(end, family));
    let open = |end: End, own: (IpAddr, u16), other: (IpAddr, u16)| {
        lab.namespace(end).run(move || {
            let until = Instant::now() + PATIENCE;
            let socket = loop {
                match UdpSocket::bind(own) {
                    Ok(socket) => break socket,
                    // A program that is just being started beside this holds what was open, for a moment.
                    Err(error) => assert!(Instant::now() < until, "{error}"),
                }
            };
            socket.connect(other).unwrap();
            socket
        })
    };
    [open(End::A, (a, FROM), (b, port)), open(End::B, (b, port), (a, FROM))]
}

fn arrives(from: &UdpSocket, to: &UdpSocket, patience: Duration) -> bool {
    to.set_read_timeout(Some(patience)).unwrap();
    from.send(b"probe").unwrap();
    to.recv(&mut [0; 16]).is_ok()
}

/// A table of somebody else that counts what comes by behind the shield.
fn witness(lab: &Lab) {
    let chain = "add chain inet witness seen { type filter hook prerouting priority -300; }";
    let counted = format!("add table inet witness\n{chain}\nadd rule inet witness seen udp dport {PORT} counter\n");
    let loaded = lab.node.nft_load(&counted);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
}

fn number_behind(text: &str, word: &str) -> u64 {
    let number = text.split(word).nth(1).and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number behind {word:?}: {text}"))
}

fn witnessed(lab: &Lab) -> u64 {
    number_behind(&lab.node.command("nft", "list chain inet witness seen"), "counter packets ")
}

fn counted(lab: &Lab) -> u64 {
    number_behind(&lab.node.command("nft", "list counter inet firebreak denied_in"), "packets ")
}

fn listed(lab: &Lab, set: &str) -> String {
    lab.node.command("nft", &format!("list set inet firebreak {set}"))
}

fn digit(family: Family) -> char {
    if family == Family::V4 { '4' } else { '6' }
}

/// Sends until the shield holds it.
fn fill(lab: &Lab, a: &UdpSocket, family: Family) {
    let until = Instant::now() + PATIENCE;
    let set = format!("shield_in{}", digit(family));
    loop {
        a.send(b"probe").unwrap();
        if listed(lab, &set).contains(&format!("{FROM}")) {
            return;
        }
        assert!(Instant::now() < until, "it is not filled");
    }
}

#[test]
fn in_a_flood_known_packets_are_dropped_before_anything_else_and_each_is_counted() {
    const PACKETS: u64 = 400;
    for (topology, family) in CASES {
        let lab = Lab::new(topology);
        witness(&lab);
        let dataplane = shielded(&lab, &denied(&lab, family));
        let [a, b] = sockets(&lab, family, PORT);
        assert!(!arrives(&a, &b, SILENCE), "{topology:?} {family:?}");
        let begun = Instant::now();
        for _ in 1..PACKETS {
            a.send(b"probe").unwrap();
        }
        let lasted = begun.elapsed();
        // What a sender's processor leaves to another comes a moment later.
        let until = Instant::now() + PATIENCE;
        while counted(&lab) < PACKETS && Instant::now() < until {}
        assert_eq!(counted(&lab), PACKETS, "{topology:?} {family:?}: each once");
        let set = listed(&lab, &format!("denied_in{}", digit(family)));
        assert_eq!(number_behind(&set, "counter packets "), PACKETS, "{topology:?} {family:?}: in its element: {set}");
        // One when it begins, and one each four seconds.
        let whole_way = witnessed(&lab);
        assert!(whole_way <= 3 + lasted.as_secs(), "{topology:?} {family:?}: {whole_way} of {PACKETS} went the whole way in {lasted:?}");
        drop(dataplane);
    }
}

#[test]
fn what_is_newly_allowed_passes_at_once_though_it_was_just_denied() {
    for ((topology, family), by_delta) in CASES.into_iter().flat_map(|case| [(case, false), (case, true)]) {
        let lab = Lab::new(topology);
        let mut dataplane = shielded(&lab, &denied(&lab, family));
        let [a, b] = sockets(&lab, family, PORT);
        fill(&lab, &a, family);
        let (shape, element) = allow(&lab, family);
        if by_delta {
            let put = vec![(id(family, shape), element, "by the test".into())];
            dataplane.commit_delta(&Delta { put, ..Delta::default() }).unwrap();
        } else {
            dataplane.commit(&lab.desired(elements(&lab, family, Some((shape, element))))).unwrap();
        }
        assert!(is_up(&lab), "{topology:?} {family:?}: it is there again, empty");
        assert!(arrives(&a, &b, PATIENCE), "{topology:?} {family:?}, by a delta: {by_delta}");
        assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0], "{topology:?} {family:?}");
    }
}

#[test]
fn answers_pass_where_their_like_was_denied_until_the_other_end_began() {
    for (topology, family) in CASES {
        let lab = Lab::new(topology);
        let dataplane = shielded(&lab, &denied(&lab, family));
        let set = format!("shield_in{}", digit(family));
        for port in PORT..PORT + 10 {
            let [a, b] = sockets(&lab, family, port);
            // Packets from the same port to the same port, denied before and let through after, without a pause.
            let (stop, sent, flood) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), a.try_clone().unwrap());
            let (stopped, counts) = (stop.clone(), sent.clone());
            let flooding = std::thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    flood.send(b"flood").unwrap();
                    counts.fetch_add(1, Ordering::Relaxed);
                }
            });
            let until = Instant::now() + PATIENCE;
            while !listed(&lab, &set).contains(&port.to_string()) {
                assert!(Instant::now() < until, "it is not filled");
            }
            assert!(arrives(&b, &a, PATIENCE), "{topology:?} {family:?}: b may go to a");
            let (before, first) = (counted(&lab), sent.load(Ordering::Relaxed));
            let until = Instant::now() + PATIENCE;
            while sent.load(Ordering::Relaxed) < first + 500 {
                assert!(Instant::now() < until, "nothing is sent");
            }
            let denied = counted(&lab) - before;
            stop.store(true, Ordering::Relaxed);
            flooding.join().unwrap();
            assert_eq!(denied, 0, "{topology:?} {family:?}: answers of port {port} were refused");
        }
        drop(dataplane);
    }
}

/// A connection from a port of one's own; `None` when nobody answers.
fn connect(namespace: &Namespace, from: SocketAddr, to: SocketAddr, patience: Duration) -> Option<TcpStream> {
    namespace.run(move || {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt};
        let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap())).unwrap();
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).ok().map(|()| TcpStream::from(socket))
    })
}

#[test]
fn a_tcp_connection_passes_whose_answers_look_like_a_denied_one() {
    for (topology, family) in CASES {
        let lab = Lab::new(topology);
        let dataplane = shielded(&lab, &denied(&lab, family));
        let [a, b] = [(End::A, FROM), (End::B, PORT)].map(|(end, port)| SocketAddr::new(lab.address(end, family), port));
        let (set, until) = (format!("shield_in{}", digit(family)), Instant::now() + PATIENCE);
        loop {
            assert!(connect(&lab.a, a, b, SILENCE).is_none(), "{topology:?} {family:?}");
            if listed(&lab, &set).contains(&FROM.to_string()) {
                break;
            }
            assert!(Instant::now() < until, "{topology:?} {family:?}: it is not filled");
        }
        let listening = lab.a.run(move || TcpListener::bind(a).unwrap());
        assert!(connect(&lab.b, b, a, PATIENCE).is_some(), "{topology:?} {family:?}");
        drop((listening, dataplane));
    }
}

#[test]
fn while_the_node_observes_nothing_is_dropped_so_with_an_agent_and_without_one() {
    for (topology, family) in CASES {
        let lab = Lab::new(topology);
        let mut dataplane = shielded(&lab, &denied(&lab, family));
        let [a, b] = sockets(&lab, family, PORT);
        fill(&lab, &a, family);
        dataplane.observe(Some((Duration::from_secs(60), "by the test"))).unwrap();
        assert!(arrives(&a, &b, PATIENCE), "{topology:?} {family:?}");
        for _ in 0..5 {
            dataplane.shield().unwrap();
            assert!(!is_up(&lab), "{topology:?} {family:?}");
            std::thread::sleep(Duration::from_millis(60));
        }
        dataplane.observe(None).unwrap();
        assert!(is_up(&lab), "{topology:?} {family:?}");
        fill(&lab, &a, family);
        assert!(!arrives(&a, &b, SILENCE), "{topology:?} {family:?}");
        drop(dataplane);
        lab.node.run(|| observe_without_agent(Some((Duration::from_secs(60), "by the test"))).unwrap());
        assert!(arrives(&a, &b, PATIENCE), "{topology:?} {family:?}: without an agent");
    }
}

#[test]
fn what_is_answered_and_what_comes_in_parts_goes_the_whole_way() {
    const TIMES: u64 = 20;
    for (topology, family) in CASES {
        let lab = Lab::new(topology);
        witness(&lab);
        let [local, peer] = [End::B, End::A].map(|end| lab.address(end, family));
        let answered = Element::Range(local, Span::single(peer), Span::single(17), Span::single(PORT));
        let mut dataplane = shielded(&lab, &lab.desired(elements(&lab, family, Some((Shape::Reject, answered)))));
        let [a, b] = sockets(&lab, family, PORT);
        let before = witnessed(&lab);
        let refusals = (0..TIMES).filter(|_| a.send(b"probe").is_err()).count();
        assert!(refusals > 0, "{topology:?} {family:?}: it is answered");
        // What fails is told of the one before.
        assert_eq!(witnessed(&lab) - before, TIMES - refusals as u64, "{topology:?} {family:?}");
        assert!(!listed(&lab, &format!("shield_in{}", digit(family))).contains(&FROM.to_string()), "{topology:?} {family:?}");

        dataplane.commit(&denied(&lab, family)).unwrap();
        let _ = a.take_error();
        fill(&lab, &a, family);
        let (before, seen) = (counted(&lab), witnessed(&lab));
        for _ in 0..TIMES {
            a.send(&[0; 3_000]).unwrap();
        }
        let until = Instant::now() + PATIENCE;
        while counted(&lab) < before + TIMES && Instant::now() < until {}
        assert_eq!(counted(&lab) - before, TIMES, "{topology:?} {family:?}: each once");
        assert_eq!(witnessed(&lab) - seen, TIMES, "{topology:?} {family:?}: whole, behind where parts are put together");
        drop(b);
    }
}

#[test]
fn the_next_agent_takes_the_shield_over_as_it_is_and_puts_right_what_was_changed() {
    let (topology, family) = (Topology::Bridged, Family::V4);
    let lab = Lab::new(topology);
    let desired = denied(&lab, family);
    let mut dataplane = shielded(&lab, &desired);
    dataplane.pass_by_cuts(true).unwrap();
    let chains = ["unknown_interface_in", "forward", "input", "output", "deny_in4_with_ports", "deny_out6_with_ports", "opened_output"];
    let all = |lab: &Lab| chains.map(|chain| rules(lab, chain));
    let up = all(&lab);
    assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0]);
    drop(dataplane);
    let opened;
    (dataplane, opened) = lab.node.run(|| Dataplane::open(&flooded()).unwrap());
    assert_eq!((opened.skeleton, opened.changed), (SkeletonState::Adopted, Vec::new()));
    let generation = crate::contents::generation(&lab.node);
    dataplane.commit(&desired).unwrap();
    dataplane.shield().unwrap();
    assert_eq!(crate::contents::generation(&lab.node), generation, "nothing is written");
    assert_eq!(all(&lab), up);
    for change in [
        "add rule inet firebreak unknown_interface_in jump shield_in",
        "insert rule inet firebreak deny_in4_with_ports jump shield_fill_in4",
        "insert rule inet firebreak input jump shield_in",
        "add rule inet firebreak opened_forward accept",
        "insert rule inet firebreak opened_forward accept",
        "flush chain inet firebreak opened_input",
        "delete chain inet firebreak opened_output",
        "insert rule inet firebreak shielded_in4 drop",
        "flush chain inet firebreak opens",
    ] {
        drop(dataplane);
        lab.node.nft_load_given_up(change);
        let opened;
        (dataplane, opened) = lab.node.run(|| Dataplane::open(&flooded()).unwrap());
        assert_ne!(opened.changed, Vec::<String>::new(), "{change}");
        dataplane = lab.node.run(move || {
            dataplane.repair().unwrap();
            dataplane
        });
        assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0], "{change}");
        put_up(&lab, &mut dataplane);
        dataplane.pass_by_cuts(true).unwrap();
        assert_eq!(all(&lab), up, "{change}");
    }
}
