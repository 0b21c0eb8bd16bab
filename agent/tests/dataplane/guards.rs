//! The guards against real frames. The attacker is root in `a` and writes what it likes on its own wire.

use crate::frames::{Frame, Witness, arp, ethernet, ipv4, ipv6, neighbour, send, udp};
use crate::install::{config, open};
use crate::lab::{End, Lab, Topology, sets};
use crate::namespace::Namespace;
use firebreak_agent::dataplane::names::GuardReason;
use firebreak_agent::dataplane::{
    Claim, Dataplane, Desired, GuardCount, GuardReader, MacAddress, ManagedInterface, SkeletonState, read_counters, uninstall,
};
use firebreak_agent::flows::{FirstFrame, RecentLocals, Told};
use firebreak_agent::guards::{self, GuardLinks};
use firebreak_agent::local::{LocalInterface, LocalWorkload, LocalWorkloads};
use firebreak_policy::kernel_sets::{Element, KernelSets, SetId, Shape};
use firebreak_policy::model::{Direction, Family, InterfaceName, Labels, NamespaceName, Protocol, Transport, WorkloadId, WorkloadSource};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const TOPOLOGIES: [Topology; 2] = [Topology::Routed, Topology::Bridged];
const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

fn v4(address: IpAddr) -> Ipv4Addr {
    if let IpAddr::V4(address) = address { address } else { panic!("{address}") }
}

fn v6(address: IpAddr) -> Ipv6Addr {
    if let IpAddr::V6(address) = address { address } else { panic!("{address}") }
}

/// The counts of one interface, by reason and EtherType.
fn counts(node: &Namespace, interface: u32) -> BTreeMap<(GuardReason, u16), u64> {
    let reading = node.run(|| GuardReader::open().unwrap().read().unwrap().unwrap());
    let total: u64 = reading.counts.iter().map(|count| count.packets).sum();
    assert_eq!((reading.refused, reading.overflow), (total, 0), "the elements add up to the control sum");
    let of_interface = |count: &&GuardCount| count.interface == interface;
    reading.counts.iter().filter(of_interface).map(|count| ((count.reason, count.ether_type), count.packets)).collect()
}

fn counter(node: &Namespace, name: &'static str) -> u64 {
    node.run(move || read_counters().unwrap().iter().filter(|counter| counter.name == name).map(|counter| counter.packets).sum())
}

/// What `a` may not send, each with what it violates and its EtherType.
fn forbidden(lab: &Lab) -> Vec<(&'static str, GuardReason, u16, Frame)> {
    let (own, peer) = (lab.mac(End::A).0, if lab.topology == Topology::Bridged { lab.mac(End::B).0 } else { lab.host_mac("wl0") });
    let (a, b) = (v4(lab.address(End::A, Family::V4)), v4(lab.address(End::B, Family::V4)));
    let (a6, b6) = (v6(lab.address(End::A, Family::V6)), v6(lab.address(End::B, Family::V6)));
    let gateway = v4(lab.gateway(End::A, Family::V4));
    let link_local = v6(lab.link_local(End::A));
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let data = udp(4000, 5000, b"x");
    let plain = ipv4(a, b, 17, &[], &data);
    let plain6 = ipv6(a6, b6, 17, 64, &data);
    let quote = |to: Ipv4Addr| [&[3, 1, 0, 0, 0, 0, 0, 0][..], &ipv4(b, to, 17, &[], &data)].concat();
    let quote6 = |to: Ipv6Addr| [&[1, 4, 0, 0, 0, 0, 0, 0][..], &ipv6(b6, to, 17, 64, &data)].concat();
    let tagged = [&[0, 1, 8, 0][..], &plain].concat();
    use GuardReason as Reason;
    let mut cases = vec![
        ("another MAC address", Reason::Mac, 0x0800, ethernet(peer, [2, 0, 0, 0, 0, 0x99], 0x0800, &plain)),
        ("a neighbour's MAC address, IPv6", Reason::Mac, 0x86dd, ethernet(peer, lab.mac(End::B).0, 0x86dd, &plain6)),
        ("a neighbour's IPv4 address", Reason::Address, 0x0800, ethernet(peer, own, 0x0800, &ipv4(b, a, 17, &[], &data))),
        ("the node's IPv4 address", Reason::Address, 0x0800, ethernet(peer, own, 0x0800, &ipv4(gateway, b, 6, &[], &[0; 20]))),
        ("a neighbour's IPv6 address", Reason::Address, 0x86dd, ethernet(peer, own, 0x86dd, &ipv6(b6, a6, 6, 64, &[0; 20]))),
        ("no IPv4 address", Reason::Address, 0x0800, ethernet(peer, own, 0x0800, &ipv4(Ipv4Addr::UNSPECIFIED, b, 17, &[], &data))),
        ("ARP for a neighbour's address", Reason::Arp, 0x0806, ethernet(BROADCAST, own, 0x0806, &arp(2, own, b, BROADCAST, a))),
        ("ARP with another MAC address", Reason::Arp, 0x0806, ethernet(BROADCAST, own, 0x0806, &arp(2, peer, a, BROADCAST, b))),
        (
            "a probe for a neighbour's address",
            Reason::Arp,
            0x0806,
            ethernet(BROADCAST, own, 0x0806, &arp(1, own, Ipv4Addr::UNSPECIFIED, [0; 6], b)),
        ),
        (
            "ARP with a message",
            Reason::Arp,
            0x0806,
            ethernet(BROADCAST, own, 0x0806, &[&arp(1, own, a, [0; 6], b)[..], &[7; 100]].concat()),
        ),
        (
            "an advertisement of a neighbour's address",
            Reason::Neighbour,
            0x86dd,
            ethernet(ALL_NODES, own, 0x86dd, &ipv6(a6, all_nodes, 58, 255, &neighbour(136, b6))),
        ),
        ("an advertisement from afar", Reason::Neighbour, 0x86dd, ethernet(peer, own, 0x86dd, &ipv6(a6, b6, 58, 64, &neighbour(136, a6)))),
        (
            "duplicate detection of a neighbour's address",
            Reason::Neighbour,
            0x86dd,
            ethernet(
                [0x33, 0x33, 0xff, 0, 0, 3],
                own,
                0x86dd,
                &ipv6(Ipv6Addr::UNSPECIFIED, "ff02::1:ff00:3".parse().unwrap(), 58, 255, &neighbour(135, b6)),
            ),
        ),
        (
            "a router advertisement",
            Reason::Router,
            0x86dd,
            ethernet(ALL_NODES, own, 0x86dd, &ipv6(link_local, all_nodes, 58, 255, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])),
        ),
        ("an IPv6 redirect", Reason::Router, 0x86dd, ethernet(peer, own, 0x86dd, &ipv6(link_local, b6, 58, 255, &neighbour(137, b6)))),
        ("an IPv4 redirect", Reason::Router, 0x0800, ethernet(peer, own, 0x0800, &ipv4(a, b, 1, &[], &[5, 1, 0, 0, 10, 0, 0, 1]))),
        ("a DHCP server", Reason::Dhcp, 0x0800, ethernet(peer, own, 0x0800, &ipv4(a, b, 17, &[], &udp(67, 68, &[0; 240])))),
        ("a DHCPv6 server", Reason::Dhcp, 0x86dd, ethernet(peer, own, 0x86dd, &ipv6(a6, b6, 17, 64, &udp(547, 546, &[0; 20])))),
        ("IPv4 options", Reason::Options, 0x0800, ethernet(peer, own, 0x0800, &ipv4(a, b, 17, &[7, 3, 4, 0], &data))),
        (
            "a hop-by-hop header",
            Reason::Options,
            0x86dd,
            ethernet(peer, own, 0x86dd, &ipv6(a6, b6, 0, 64, &[&[17, 0, 1, 4, 0, 0, 0, 0][..], &data].concat())),
        ),
        (
            "a routing header",
            Reason::Options,
            0x86dd,
            ethernet(peer, own, 0x86dd, &ipv6(a6, b6, 43, 64, &[&[17, 0, 0, 0, 0, 0, 0, 0][..], &data].concat())),
        ),
        (
            "destination options",
            Reason::Options,
            0x86dd,
            ethernet(peer, own, 0x86dd, &ipv6(a6, b6, 60, 64, &[&[17, 0, 1, 4, 0, 0, 0, 0][..], &data].concat())),
        ),
        ("an IPv4 broadcast", Reason::Group, 0x0800, ethernet(BROADCAST, own, 0x0800, &ipv4(a, Ipv4Addr::BROADCAST, 17, &[], &data))),
        ("a unicast packet in a broadcast frame", Reason::Group, 0x0800, ethernet(BROADCAST, own, 0x0800, &plain)),
        (
            "an IPv4 group",
            Reason::Group,
            0x0800,
            ethernet([1, 0, 0x5e, 0, 0, 251], own, 0x0800, &ipv4(a, "224.0.0.251".parse().unwrap(), 17, &[], &data)),
        ),
        ("an IPv6 group", Reason::Group, 0x86dd, ethernet(ALL_NODES, own, 0x86dd, &ipv6(a6, all_nodes, 17, 64, &data))),
        (
            "an ICMP error about a neighbour's packet",
            Reason::IcmpError,
            0x0800,
            ethernet(peer, own, 0x0800, &ipv4(a, b, 1, &[], &quote(gateway))),
        ),
        (
            "an ICMP error that quotes nothing",
            Reason::IcmpError,
            0x0800,
            ethernet(peer, own, 0x0800, &ipv4(a, b, 1, &[], &[3, 1, 0, 0, 0, 0, 0, 0])),
        ),
        (
            "an ICMPv6 error about a neighbour's packet",
            Reason::IcmpError,
            0x86dd,
            ethernet(peer, own, 0x86dd, &ipv6(a6, b6, 58, 64, &quote6(b6))),
        ),
        ("a VLAN tag", Reason::EtherType, 0x8100, ethernet(peer, own, 0x8100, &tagged)),
        ("a service tag", Reason::EtherType, 0x88a8, ethernet(peer, own, 0x88a8, &tagged)),
        ("PPPoE", Reason::EtherType, 0x8864, ethernet(peer, own, 0x8864, &[0x11, 0, 0, 1, 0, 2, 0, 0x21])),
        ("a spanning tree", Reason::EtherType, 38, ethernet([1, 0x80, 0xc2, 0, 0, 0], own, 38, &[&[0x42, 0x42, 3][..], &[0; 35]].concat())),
        ("LLDP", Reason::EtherType, 0x88cc, ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], own, 0x88cc, &[0; 46])),
        ("MPLS", Reason::EtherType, 0x8847, ethernet(peer, own, 0x8847, &[&[0, 1, 1, 64][..], &plain].concat())),
    ];
    // A bridge learns MAC addresses from such frames before its own hooks are asked.
    cases.push((
        "a neighbour's MAC address to the bridge's own group",
        Reason::Mac,
        0x88cc,
        ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], lab.mac(End::B).0, 0x88cc, &[0; 46]),
    ));
    cases
}

#[test]
fn what_a_workload_may_not_send_is_refused_and_counted_by_what_it_violates() {
    const EACH: u64 = 3;
    for topology in TOPOLOGIES {
        let lab = Lab::new(topology);
        let witness = Witness::new(&lab.b, "eth0");
        let cases = forbidden(&lab);
        // Without us most of it arrives or is at least sent: the frames are real.
        for (_, _, _, frame) in &cases {
            send(&lab.a, "eth0", frame, 1);
        }
        let arrived = witness.take_until(|seen| seen.len() > 10 || topology == Topology::Routed);
        assert!(topology == Topology::Routed || arrived.len() > 10, "{topology:?}: {} arrive without guards", arrived.len());
        let learnt = |lab: &Lab| lab.node.command("bridge", "fdb show br br0 brport wl0 dynamic").contains(&lab.mac(End::B).to_string());
        if topology == Topology::Bridged {
            assert!(learnt(&lab), "without guards the bridge believes that b is behind wl0");
            lab.node.ip("link set wl0 type bridge_slave fdb_flush");
            assert!(!learnt(&lab));
        }
        lab.settle_neighbours();

        let (mut dataplane, _) = open(&lab.node);
        dataplane.commit(&lab.desired(KernelSets::default())).unwrap();
        let interface = lab.index("wl0");
        witness.take_until(|_| true);
        for (case, reason, ether_type, frame) in &cases {
            let before = counts(&lab.node, interface);
            send(&lab.a, "eth0", frame, EACH);
            let mut grown = counts(&lab.node, interface);
            for (key, packets) in &before {
                *grown.get_mut(key).unwrap() -= packets;
            }
            grown.retain(|_, packets| *packets > 0);
            assert_eq!(grown, BTreeMap::from([((*reason, *ether_type), EACH)]), "{topology:?}: {case}");
        }
        let from_a: Vec<Frame> =
            witness.take_until(|_| true).into_iter().filter(|frame| cases.iter().any(|case| case.3 == *frame)).collect();
        assert_eq!(from_a, Vec::<Frame>::new(), "{topology:?}");
        assert!(topology == Topology::Routed || !learnt(&lab), "a MAC address that a guard refuses is not learnt");
    }
}

#[test]
fn what_a_workload_needs_passes_its_guard() {
    for topology in TOPOLOGIES {
        let lab = Lab::new(topology);
        let (mut dataplane, _) = open(&lab.node);
        dataplane.commit(&lab.desired(KernelSets::default())).unwrap();
        let interface = lab.index("wl0");
        let before = counts(&lab.node, interface);
        for family in [Family::V4, Family::V6] {
            let (b, gateway) = (lab.address(End::B, family), lab.gateway(End::A, family));
            for transport in [
                Transport::Port(Protocol::TCP, 1001),
                Transport::Port(Protocol::UDP, 1001),
                Transport::ping(family),
                // Tunnels are judged by policy, as protocols without ports.
                Transport::Other(Protocol(47)),
                Transport::Other(Protocol(253)),
            ] {
                assert!(lab.probe(End::A, b, End::B, transport), "{topology:?} {family:?} {transport}");
                assert!(lab.probe(End::B, lab.address(End::A, family), End::A, transport), "{topology:?} {family:?} {transport}: back");
            }
            assert!(lab.probe(End::A, gateway, End::Node, Transport::ping(family)), "{topology:?} {family:?}: the node");
            // In fragments, and an error about an own packet: the port is closed.
            assert!(lab.a.output("ping", &format!("-c 1 -W 2 -s 4000 -n {b}")).status.success(), "{topology:?} {family:?}: fragments");
            let refused = lab.a.run(move || {
                let any: std::net::SocketAddr = if b.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
                let socket = std::net::UdpSocket::bind(any).unwrap();
                socket.connect((b, 999)).unwrap();
                socket.send(b"x").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                socket.recv(&mut [0; 8]).unwrap_err().kind()
            });
            assert_eq!(refused, std::io::ErrorKind::ConnectionRefused, "{topology:?} {family:?}: b's ICMP error");
        }
        // Neighbours are found again: ARP and neighbour discovery in both directions.
        lab.settle_neighbours();
        for family in [Family::V4, Family::V6] {
            assert!(
                lab.probe(End::A, lab.address(End::B, family), End::B, Transport::Port(Protocol::TCP, 1001)),
                "{topology:?} {family:?}"
            );
        }
        // A DHCP client's question, and one about somebody else's hardware address.
        let own = lab.mac(End::A).0;
        let discover = |mac: [u8; 6]| {
            let mut bootp = vec![1, 1, 6, 0];
            bootp.resize(28, 0);
            bootp.extend(mac);
            bootp.resize(240, 0);
            ethernet(BROADCAST, own, 0x0800, &ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 17, &[], &udp(68, 67, &bootp)))
        };
        send(&lab.a, "eth0", &discover(own), 1);
        assert_eq!(counts(&lab.node, interface), before, "{topology:?}");
        send(&lab.a, "eth0", &discover(lab.mac(End::B).0), 1);
        assert_eq!(counts(&lab.node, interface).get(&(GuardReason::Address, 0x0800)), Some(&1), "{topology:?}");
    }
}

#[test]
fn a_dhcp_client_and_its_server_on_the_link_understand_each_other_whatever_policy_says() {
    let lab = Lab::new(Topology::Bridged);
    let outside = Namespace::new();
    lab.node.ip(&format!("link add up0 type veth peer name eth0 netns {}", outside.path()));
    lab.node.ip("link set up0 master br0 up");
    outside.ip("link set eth0 up");
    let (mut dataplane, _) = open(&lab.node);
    let (a, b) = (lab.address(End::A, Family::V4), lab.address(End::B, Family::V4));
    let isolated = |direction, local| (SetId { direction, family: Family::V4, shape: Shape::Isolated }, Element::Local(local));
    let all = [a, b].into_iter().flat_map(|local| [isolated(Direction::Ingress, local), isolated(Direction::Egress, local)]);
    dataplane.commit(&lab.desired(sets(all))).unwrap();
    let (own, server) = (lab.mac(End::A).0, [2, 0, 0, 0, 0, 0x77]);
    let mut bootp = vec![1, 1, 6, 0];
    bootp.resize(28, 0);
    bootp.extend(own);
    bootp.resize(240, 0);
    let rebind = ethernet(BROADCAST, own, 0x0800, &ipv4(v4(a), Ipv4Addr::BROADCAST, 17, &[], &udp(68, 67, &bootp)));
    let answer = ethernet(own, server, 0x0800, &ipv4("10.7.9.77".parse().unwrap(), v4(a), 17, &[], &udp(67, 68, &bootp)));
    let forged = ethernet(own, lab.mac(End::B).0, 0x0800, &ipv4(v4(b), v4(a), 17, &[], &udp(67, 68, &bootp)));
    let other = ethernet(own, server, 0x0800, &ipv4("10.7.9.77".parse().unwrap(), v4(a), 17, &[], &udp(67, 69, &bootp)));
    let (at_server, at_client, at_neighbour) = (Witness::new(&outside, "eth0"), Witness::new(&lab.a, "eth0"), Witness::new(&lab.b, "eth0"));
    send(&lab.a, "eth0", &rebind, 1);
    assert!(at_server.take_until(|seen| seen.contains(&rebind)).contains(&rebind), "the server hears it");
    for refused in [&forged, &other] {
        send(if refused == &forged { &lab.b } else { &outside }, "eth0", refused, 1);
    }
    send(&outside, "eth0", &answer, 1);
    let heard = at_client.take_until(|seen| seen.contains(&answer));
    assert!(heard.contains(&answer), "the client hears the answer");
    assert!(!heard.contains(&forged) && !heard.contains(&other), "and nothing else");
    assert!(!at_neighbour.take_until(|_| true).contains(&rebind), "a neighbour does not hear it");
}

#[test]
fn what_a_bridge_floods_reaches_nobody_it_is_not_for() {
    let lab = Lab::new(Topology::Bridged);
    let outside = Namespace::new();
    lab.node.ip(&format!("link add up0 type veth peer name eth0 netns {}", outside.path()));
    lab.node.ip("link set up0 master br0 up");
    outside.ip("link set eth0 up");
    let (mut dataplane, _) = open(&lab.node);
    dataplane.commit(&lab.desired(KernelSets::default())).unwrap();
    let from = [2, 0, 0, 0, 0, 0x77];
    let (mac, b) = (lab.mac(End::B).0, v4(lab.address(End::B, Family::V4)));
    let (b6, outsider): (Ipv6Addr, Ipv4Addr) = (v6(lab.address(End::B, Family::V6)), "10.7.9.77".parse().unwrap());
    let outsider6: Ipv6Addr = "fd07:9::77".parse().unwrap();
    let data = udp(4000, 5000, b"x");
    let nobody = [2, 0, 0, 0, 0, 0x55];
    let refused = [
        ("a broadcast", ethernet(BROADCAST, from, 0x0800, &ipv4(outsider, Ipv4Addr::BROADCAST, 17, &[], &data))),
        ("a broadcast packet in its own frame", ethernet(mac, from, 0x0800, &ipv4(outsider, Ipv4Addr::BROADCAST, 17, &[], &data))),
        ("another's packet in its own frame", ethernet(mac, from, 0x0800, &ipv4(outsider, "10.7.9.9".parse().unwrap(), 17, &[], &data))),
        ("a group", ethernet(ALL_NODES, from, 0x86dd, &ipv6(outsider6, "ff02::1".parse().unwrap(), 17, 64, &data))),
        ("flooding", ethernet(nobody, from, 0x0800, &ipv4(outsider, "10.7.9.9".parse().unwrap(), 17, &[], &data))),
        ("ARP about another", ethernet(BROADCAST, from, 0x0806, &arp(1, from, outsider, [0; 6], "10.7.9.9".parse().unwrap()))),
        (
            "a router advertisement",
            ethernet(
                ALL_NODES,
                from,
                0x86dd,
                &ipv6(
                    "fe80::77".parse().unwrap(),
                    "ff02::1".parse().unwrap(),
                    58,
                    255,
                    &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0],
                ),
            ),
        ),
        ("a VLAN tag", ethernet(mac, from, 0x8100, &[&[0, 1, 8, 0][..], &ipv4(outsider, b, 17, &[], &data)].concat())),
    ];
    let passes = [
        ("a packet to it, which policy judges, in whatever frame", ethernet(BROADCAST, from, 0x0800, &ipv4(outsider, b, 17, &[], &data))),
        ("IPv4", ethernet(mac, from, 0x0800, &ipv4(outsider, b, 17, &[], &data))),
        ("IPv6", ethernet(mac, from, 0x86dd, &ipv6(outsider6, b6, 17, 64, &data))),
        ("ARP about it", ethernet(BROADCAST, from, 0x0806, &arp(1, from, outsider, [0; 6], b))),
        (
            "a solicitation about it",
            ethernet(
                [0x33, 0x33, 0xff, 0, 0, 3],
                from,
                0x86dd,
                &ipv6(outsider6, "ff02::1:ff00:3".parse().unwrap(), 58, 255, &neighbour(135, b6)),
            ),
        ),
        ("a DHCP answer", ethernet(mac, from, 0x0800, &ipv4(outsider, "10.7.9.200".parse().unwrap(), 17, &[], &udp(67, 68, &[0; 240])))),
    ];
    let witness = Witness::new(&lab.b, "eth0");
    for (case, frame) in &refused {
        let before = counter(&lab.node, "guard_out");
        send(&outside, "eth0", frame, 1);
        assert!(counter(&lab.node, "guard_out") > before, "{case}");
    }
    for (case, frame) in &passes {
        send(&outside, "eth0", frame, 1);
        let wanted = frame.clone();
        let seen = witness.take_until(move |seen| seen.contains(&wanted));
        assert!(seen.contains(frame), "{case}");
        assert!(refused.iter().all(|(_, frame)| !seen.contains(frame)), "{case}: what was refused has arrived");
    }
    assert_eq!(counts(&lab.node, lab.index("wl1")), BTreeMap::new(), "nothing of it is b's doing");
}

#[test]
fn who_gives_itself_a_neighbours_address_gains_nothing_also_after_a_restart() {
    for topology in TOPOLOGIES {
        let lab = Lab::new(topology);
        let (mut dataplane, _) = open(&lab.node);
        dataplane.commit(&lab.desired(KernelSets::default())).unwrap();
        let stolen = lab.address(End::B, Family::V4);
        lab.a.ip(&format!("addr add {stolen}/32 dev eth0"));
        let mut desired = lab.desired(KernelSets::default());
        let (a, b) = (lab.index("wl0"), lab.index("wl1"));
        let interface = desired.interfaces.get_mut(&a).unwrap();
        interface.addresses.insert(stolen);
        interface.claim.addresses.insert(stolen);
        let spoofed = ethernet(
            if topology == Topology::Bridged { lab.mac(End::B).0 } else { lab.host_mac("wl0") },
            lab.mac(End::A).0,
            0x0800,
            &ipv4(v4(stolen), v4(lab.gateway(End::A, Family::V4)), 17, &[], &udp(1, 2, b"x")),
        );
        let own = ethernet(
            if topology == Topology::Bridged { lab.mac(End::A).0 } else { lab.host_mac("wl1") },
            lab.mac(End::B).0,
            0x0800,
            &ipv4(v4(stolen), v4(lab.gateway(End::B, Family::V4)), 17, &[], &udp(1, 2, b"x")),
        );
        for restarted in [false, true] {
            if restarted {
                drop(dataplane);
                let opened;
                (dataplane, opened) = open(&lab.node);
                assert_eq!(opened.skeleton, SkeletonState::Adopted);
                assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0, "adopted: nothing is written");
            } else {
                dataplane.commit(&desired).unwrap();
            }
            let spoofs = |lab: &Lab| counts(&lab.node, a).get(&(GuardReason::Address, 0x0800)).copied().unwrap_or(0);
            let (before, of_b) = (spoofs(&lab), counts(&lab.node, b));
            send(&lab.a, "eth0", &spoofed, 2);
            send(&lab.b, "eth0", &own, 2);
            assert_eq!(spoofs(&lab), before + 2, "{topology:?}: restarted: {restarted}");
            assert_eq!(counts(&lab.node, b), of_b, "{topology:?}: the neighbour keeps its address");
        }
    }
}

/// A workload as discovery finds it, behind an interface.
fn found(index: u32, name: &str) -> LocalWorkloads {
    let interface = LocalInterface {
        name: InterfaceName::new(name),
        addresses: BTreeSet::new(),
        mac: None,
        vouched: None,
        not_routed: BTreeSet::new(),
        link: index,
    };
    let workload = LocalWorkload {
        id: WorkloadId::new("n1", "attacker"),
        name: "attacker".to_owned(),
        namespace: NamespaceName::new("shop"),
        labels: Labels::default(),
        image_labels: BTreeMap::new(),
        image: String::new(),
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        interfaces: BTreeMap::from([(index, interface)]),
        host_network: false,
        source: WorkloadSource::Manifest,
        declared_place: String::new(),
        problem: None,
    };
    LocalWorkloads { workloads: BTreeMap::from([("attacker".into(), Arc::new(workload))]), ..LocalWorkloads::default() }
}

#[test]
fn the_first_refused_frame_is_told_at_once_with_what_it_claimed() {
    let lab = Lab::new(Topology::Bridged);
    let (mut dataplane, _) = open(&lab.node);
    dataplane.commit(&lab.desired(KernelSets::default())).unwrap();
    let index = lab.index("wl0");
    let (own, stolen) = (lab.mac(End::A), lab.address(End::B, Family::V4));
    let frame = ethernet(BROADCAST, own.0, 0x0806, &arp(2, own.0, v4(stolen), BROADCAST, v4(lab.gateway(End::A, Family::V4))));
    let (told, records) = std::sync::mpsc::channel();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let collect =
        // The collection has the namespace's thread for itself; others send meanwhile.
        std::thread::scope(|scope| {
            let node = &lab.node;
            let collecting = scope.spawn(move || {
                node.run(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async move {
                        let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
                        let (_local, local) = tokio::sync::watch::channel(Arc::new(found(index, "wl0")));
                        let links = GuardLinks { local, view: Arc::new(RecentLocals::new()), records: sender };
                        let running = guards::run(config().guard_nflog_group(), links, stopped);
                        tokio::pin!(running);
                        loop {
                            tokio::select! {
                                () = &mut running => return,
                                Some(records) = receiver.recv() => drop(told.send((Instant::now(), records))),
                            }
                        }
                    });
                })
            });
            // Until the group is bound nobody hears the event; a frame of another kind each time makes a new one.
            let deadline = Instant::now() + Duration::from_secs(10);
            let mut first = None;
            let mut ether_type = 0x9000u16;
            while first.is_none() && Instant::now() < deadline {
                send(&lab.a, "eth0", &ethernet(BROADCAST, own.0, ether_type, &[0; 46]), 1);
                ether_type += 1;
                first = records.recv_timeout(Duration::from_millis(200)).ok();
            }
            assert!(first.is_some(), "nothing is told");
            let sent = Instant::now();
            send(&lab.a, "eth0", &frame, 5);
            let mut found = None;
            while found.is_none() && Instant::now() < deadline {
                let Ok((at, records)) = records.recv_timeout(Duration::from_secs(2)) else { break };
                let of_arp = records.into_iter().find_map(|record| match record.told {
                    Told::Guard(told) if told.reason == GuardReason::Arp => Some(told),
                    Told::Guard(_) | Told::Node(_) | Told::Flow(_) | Told::Lost { .. } | Told::Cut(_) => None,
                });
                found = of_arp.map(|told| (at, told));
            }
            stop.cancel();
            collecting.join().unwrap();
            found.map(|(at, told)| (at - sent, told))
        });
    let (took, told) = collect.expect("the ARP frame is told");
    assert!(took < Duration::from_millis(700), "at once, not with the next reading: {took:?}");
    assert_eq!((told.interface.as_str(), told.container.as_str(), told.ether_type, told.frames), ("wl0", "attacker", 0x0806, 1));
    let claimed = FirstFrame {
        source_mac: Some(own),
        destination_mac: Some(MacAddress(BROADCAST)),
        source: Some(stolen),
        destination: Some(lab.gateway(End::A, Family::V4)),
    };
    assert_eq!(told.first, claimed);
}

#[test]
fn an_exempt_interface_has_no_guard_and_a_guard_goes_with_its_interface() {
    let lab = Lab::new(Topology::Routed);
    let (mut dataplane, _) = open(&lab.node);
    let mut desired = lab.desired(KernelSets::default());
    dataplane.commit(&desired).unwrap();
    let chains = |lab: &Lab| {
        let listed = lab.node.ruleset();
        ["wl0", "wl1"].map(|name| listed.contains(&format!("chain port_{name} ")))
    };
    assert_eq!(chains(&lab), [true, true]);
    // The default route leads over it now: it is judged by nobody.
    let index = lab.index("wl0");
    desired.interfaces.remove(&index);
    desired.exempt.insert(index, InterfaceName::new("wl0"));
    dataplane.commit(&desired).unwrap();
    assert_eq!(chains(&lab), [false, true]);
    assert!(lab.probe(End::A, lab.gateway(End::A, Family::V4), End::Node, Transport::ping(Family::V4)));
    lab.node.ip("link set wl1 down");
    lab.node.ip("link set wl1 name other1");
    lab.node.ip("link set other1 up");
    let index = lab.index("other1");
    let renamed = desired.interfaces.get_mut(&index).unwrap();
    renamed.name = InterfaceName::new("other1");
    dataplane.commit(&desired).unwrap();
    assert!(lab.node.ruleset().contains("device \"other1\"") && chains(&lab) == [false, false], "the guard follows a new name");
    dataplane.commit(&Desired::default()).unwrap();
    assert!(!lab.node.ruleset().contains("chain port_"));
    drop(dataplane);
    lab.node.run(|| uninstall().unwrap());
    assert_eq!(lab.node.ruleset(), "");
}

#[test]
fn a_thousand_interfaces_come_and_go_in_one_transaction_each_and_are_listed() {
    let node = Namespace::new();
    let (mut dataplane, _) = open(&node);
    let interfaces: BTreeMap<u32, ManagedInterface> = (1..=1_000u32)
        .map(|index| {
            let addresses: BTreeSet<IpAddr> = [IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + index))].into();
            let [.., high, low] = index.to_be_bytes();
            let claim = Claim { mac: Some(MacAddress([2, 0, 0, 0, high, low])), addresses: addresses.clone(), vouched: false, link: 1 };
            let name = InterfaceName::from(format!("wl{index}"));
            (10_000 + index, ManagedInterface { name, workload: format!("shop/web-{index}").into(), addresses, claim })
        })
        .collect();
    let desired = Desired { interfaces, ..Desired::default() };
    let mut one_less = desired.clone();
    one_less.interfaces.pop_last();
    let mut took = Vec::new();
    for wanted in [&desired, &one_less, &desired] {
        let begun = Instant::now();
        dataplane.commit(wanted).unwrap();
        took.push(begun.elapsed());
    }
    let listed = Instant::now();
    let ruleset = node.stable_ruleset();
    let listed = listed.elapsed();
    assert_eq!(ruleset.matches("hook ingress device").count(), 1_000);
    let chain = node.command("nft", "list chain netdev firebreak port_wl500");
    assert!(chain.contains("jump from_workload"), "{chain}");
    let other = Namespace::new();
    let loaded = other.nft_load(&ruleset.replace("flags owner", ""));
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    drop(dataplane);
    let (mut dataplane, opened): (Dataplane, _) = open(&node);
    assert_eq!(opened.skeleton, SkeletonState::Adopted);
    assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0);
    let begun = Instant::now();
    dataplane.commit(&Desired::default()).unwrap();
    println!(
        "1,000 interfaces: come {:?}, one goes {:?}, one comes {:?}, all go {:?}, listed {listed:?}",
        took[0],
        took[1],
        took[2],
        begun.elapsed()
    );
    assert!(!node.ruleset().contains("port_"));
}
