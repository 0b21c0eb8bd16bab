//! Group 4: fragments, options, extension headers, tunnels, and protocols without ports.

use crate::arena::try_all;
use crate::attack::{Attack, Who, attack};
use crate::scene::Scene;
use firebreak_tests::frames::internet::{
    DESTINATION, FRAGMENT, HOP_BY_HOP, Header, NOTHING, PADDING, ROUTING, extension, fragment, fragment6, fragments, packet, v4, v6,
};
use firebreak_tests::frames::transport::{SCTP, SYN, TCP, UDP, sctp, tcp, udp};
use std::net::IpAddr;

#[test]
fn fragments_options_and_tunnels_are_no_way_round_policy() -> anyhow::Result<()> {
    try_all("b6", &attacks())
}

pub(crate) fn attacks() -> Vec<Attack> {
    [broken(), options(), extensions(), tunnels(), protocols()].into_iter().flatten().collect()
}

/// A datagram of 48 bytes whose marker stands in its last 16.
fn long(scene: &Scene, from: IpAddr) -> Vec<u8> {
    udp(from, scene.it(), (40_000, 80), &[&[0; 24][..], &scene.text(), &[0; 8]].concat())
}

fn broken() -> Vec<Attack> {
    vec![
        attack("a datagram in fragments", |s| s.send_all(&fragments(s.me(), s.it(), UDP, &long(s, s.me()), 24, 1))),
        attack("a datagram in fragments of eight bytes", |s| s.send_all(&fragments(s.me(), s.it(), UDP, &long(s, s.me()), 8, 2))),
        attack("the last fragment first", |s| {
            let mut pieces = fragments(s.me(), s.it(), UDP, &long(s, s.me()), 24, 3);
            pieces.reverse();
            s.send_all(&pieces)
        }),
        attack("fragments under the address of one who may", |s| {
            let friend = s.ip(&s.friend);
            s.send_all(&fragments(friend, s.it(), UDP, &long(s, friend), 24, 4))
        }),
        attack("a TCP header in two fragments", |s| {
            let segment = tcp(s.me(), s.it(), (40_000, 80), SYN, (1, 0), &[&[0; 4][..], &s.text()].concat());
            s.send_all(&fragments(s.me(), s.it(), TCP, &segment, 8, 5))
        }),
        attack("a later fragment alone", |s| s.send(&fragment(s.me(), s.it(), UDP, 24, false, 6, &s.text())))
            .at(&[Who::Victim, Who::Bystander]),
        attack("a first fragment alone", |s| s.send(&fragment(s.me(), s.it(), UDP, 0, true, 7, &long(s, s.me())[..40]))),
        attack("fragments that overlap", |s| {
            let datagram = long(s, s.me());
            s.send_all(&[
                fragment(s.me(), s.it(), UDP, 0, true, 8, &datagram[..32]),
                fragment(s.me(), s.it(), UDP, 24, false, 8, &datagram[24..]),
                fragment(s.me(), s.it(), UDP, 32, false, 8, &datagram[32..]),
            ])
        }),
        attack("fragments past the longest packet", |s| {
            s.send_all(&[
                fragment(s.me(), s.it(), UDP, 0, true, 9, &long(s, s.me())[..24]),
                fragment(s.me(), s.it(), UDP, 65_528, false, 9, &s.text()),
            ])
        }),
        attack("don't-fragment and more-fragments together", |s| match (s.me(), s.it()) {
            (IpAddr::V4(me), IpAddr::V4(it)) => {
                s.send(&v4(me, it, UDP, Header { fragment: 0x8000, ..Header::default() }, &long(s, me.into())))
            }
            _ => vec![],
        }),
        attack("an atomic fragment", |s| s.send_all(&atomic(s, UDP, &long(s, s.me())))),
        attack("an atomic fragment with destination options in it", |s| {
            s.send_all(&atomic(s, DESTINATION, &extension(UDP, &PADDING, &long(s, s.me()))))
        }),
        attack("an atomic fragment in an atomic fragment", |s| s.send_all(&atomic(s, FRAGMENT, &fragment6(UDP, 0, 11, &long(s, s.me()))))),
        attack("fragments whose first does not say the protocol", |s| {
            let whole = extension(UDP, &PADDING, &long(s, s.me()));
            if s.is_v4 { vec![] } else { s.send_all(&fragments(s.me(), s.it(), DESTINATION, &whole, 8, 12)) }
        }),
    ]
}

fn atomic(scene: &Scene, next: u8, rest: &[u8]) -> Vec<Vec<u8>> {
    match (scene.me(), scene.it()) {
        (IpAddr::V6(me), IpAddr::V6(it)) => vec![v6(me, it, FRAGMENT, 64, &fragment6(next, 0, 10, rest))],
        _ => vec![],
    }
}

/// IPv4 options; 1 does nothing and fills up.
fn options() -> Vec<Attack> {
    let with = |name: &'static str, options: fn(&Scene) -> Vec<u8>| {
        attack(name, move |s| match (s.me(), s.it()) {
            (IpAddr::V4(me), IpAddr::V4(it)) => s.send(&v4(
                me,
                it,
                UDP,
                Header { options: &options(s), ..Header::default() },
                &udp(s.me(), s.it(), (40_000, 80), &s.text()),
            )),
            _ => vec![],
        })
    };
    vec![
        with("an option that does nothing", |_| vec![1, 1, 1, 1]),
        with("an option that ends the list", |_| vec![0; 4]),
        with("record route", |_| vec![1, 7, 7, 4, 0, 0, 0, 0]),
        with("timestamps", |_| vec![68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        with("router alert", |_| vec![0x94, 4, 0, 0]),
        with("a security label", |_| vec![134, 4, 0, 0]),
        with("an unknown option", |_| vec![0x9e, 4, 0, 0]),
        with("loose source route that is done", |s| [&[1, 131, 7, 8][..], &s.friend.v4.octets()].concat()),
        attack("loose source route by way of one who may", |s| source_route(s, 131)).harmless(NO_SOURCE_ROUTES),
        attack("strict source route by way of one who may", |s| source_route(s, 137)).harmless(NO_SOURCE_ROUTES),
    ]
}

const NO_SOURCE_ROUTES: &str =
    "neither node nor workload follows source routes (net.ipv4.conf.all.accept_source_route=0, no segment routing)";

/// To friend, who is to send it on to the victim.
fn source_route(scene: &Scene, kind: u8) -> Vec<Vec<u8>> {
    let (IpAddr::V4(me), IpAddr::V4(it)) = (scene.me(), scene.it()) else { return vec![] };
    let route = [&[1, kind, 7, 4][..], &it.octets()].concat();
    let datagram = udp(me.into(), it.into(), (40_000, 80), &scene.text());
    let packets =
        [scene.friend.v4, scene.gateway.v4].map(|hop| v4(me, hop, UDP, Header { options: &route, ..Header::default() }, &datagram));
    packets.map(|packet| firebreak_tests::frames::link::framed(scene.gateway.mac, scene.attacker.mac, &packet)).to_vec()
}

fn extensions() -> Vec<Attack> {
    let with = |name: &'static str, kind: u8, body: &'static [u8]| {
        attack(name, move |s| match (s.me(), s.it()) {
            (IpAddr::V6(me), IpAddr::V6(it)) => {
                s.send(&v6(me, it, kind, 64, &extension(UDP, body, &udp(s.me(), s.it(), (40_000, 80), &s.text()))))
            }
            _ => vec![],
        })
    };
    const AUTHENTICATION: &[u8] = &[0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4];
    vec![
        with("hop-by-hop options", HOP_BY_HOP, &PADDING),
        with("router alert hop by hop", HOP_BY_HOP, &[5, 2, 0, 0, 1, 0]),
        with("a jumbogram's option", HOP_BY_HOP, &[0xc2, 4, 0, 1, 0, 0])
            .harmless("no interface here carries jumbograms, and the kernel drops what claims to be one"),
        with("destination options", DESTINATION, &PADDING),
        with("a routing header of type 0 that is done", ROUTING, &[0, 0, 0, 0, 0, 0]),
        with("a routing header of type 2", ROUTING, &[2, 0, 0, 0, 0, 0]),
        with("a routing header of an experiment", ROUTING, &[253, 0, 0, 0, 0, 0]),
        with("a mobility header", 135, &PADDING),
        with("host identity", 139, &PADDING),
        with("shim6", 140, &PADDING),
        with("an authentication header", 51, AUTHENTICATION),
        attack("a chain of destination options", |s| match (s.me(), s.it()) {
            (IpAddr::V6(me), IpAddr::V6(it)) => {
                let inner = extension(UDP, &PADDING, &udp(s.me(), s.it(), (40_000, 80), &s.text()));
                let chain = (0..6).fold(inner, |rest, _| extension(DESTINATION, &PADDING, &rest));
                s.send(&v6(me, it, DESTINATION, 64, &chain))
            }
            _ => vec![],
        }),
        attack("no next header, and a message behind it", |s| {
            if s.is_v4 { vec![] } else { s.send(&packet(s.me(), s.it(), NOTHING, &s.text())) }
        }),
        attack("a routing header by way of one who may", |s| {
            let (IpAddr::V6(me), IpAddr::V6(it)) = (s.me(), s.it()) else { return vec![] };
            let datagram = udp(s.me(), s.it(), (40_000, 80), &s.text());
            let hops = [s.friend.v6, s.gateway.v6].into_iter().flat_map(|hop| {
                // One segment left: type 0 (RFC 2460), type 4 (RFC 8754), which wants the last segment's number.
                [[0, 1, 0, 0, 0, 0], [4, 1, 0, 0, 0, 0]]
                    .map(|kind| v6(me, hop, ROUTING, 64, &extension(UDP, &[&kind[..], &it.octets()].concat(), &datagram)))
            });
            hops.map(|packet| firebreak_tests::frames::link::framed(s.gateway.mac, s.attacker.mac, &packet)).collect()
        })
        .harmless(NO_SOURCE_ROUTES),
    ]
}

fn tunnels() -> Vec<Attack> {
    let around = |name: &'static str, protocol: u8, head: &'static [u8], inner: fn(&Scene) -> Vec<u8>| {
        attack(name, move |s| s.send(&packet(s.me(), s.it(), protocol, &[head, &inner(s)].concat())))
    };
    let as_friend = |s: &Scene| s.datagram(s.ip(&s.friend), s.it());
    let other_family = |s: &Scene| {
        let other = Scene { is_v4: !s.is_v4, ..*s };
        other.datagram(other.ip(&s.friend), other.it())
    };
    const NO_TUNNEL: &str = "the node ends no tunnel; one that does, on purpose, is a router that its owner has to guard";
    vec![
        attack("IP in IP", move |s| s.send(&packet(s.me(), s.it(), if s.is_v4 { 4 } else { 41 }, &as_friend(s)))),
        attack("IP in IP of the other family", move |s| s.send(&packet(s.me(), s.it(), if s.is_v4 { 41 } else { 4 }, &other_family(s)))),
        around("GRE", 47, &[0, 0, 8, 0], |s| s.datagram(s.ip(&s.friend), s.it())),
        around("GRE with Ethernet inside", 47, &[0, 0, 0x65, 0x58], |s| s.datagram(s.ip(&s.friend), s.it())),
        around("EtherIP", 97, &[0x30, 0], |s| s.datagram(s.ip(&s.friend), s.it())),
        around("ESP", 50, &[0, 0, 0, 1, 0, 0, 0, 1], |s| s.text().to_vec()),
        around("L2TP", 115, &[0, 0, 0, 1], |s| s.text().to_vec()),
        attack("VXLAN", |s| {
            let inside = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &s.datagram(s.ip(&s.friend), s.it())].concat();
            s.send(&packet(s.me(), s.it(), UDP, &udp(s.me(), s.it(), (40_000, 4789), &inside)))
        }),
        attack("a tunnel to the node", move |s| {
            let inside = as_friend(s);
            let gateway = s.ip(&s.gateway);
            let gre = [&[0, 0][..], if s.is_v4 { &[8, 0] } else { &[0x86, 0xdd] }, &inside].concat();
            [(if s.is_v4 { 4 } else { 41 }, inside), (47, gre)]
                .map(|(protocol, body)| {
                    firebreak_tests::frames::link::framed(s.gateway.mac, s.attacker.mac, &packet(s.me(), gateway, protocol, &body))
                })
                .to_vec()
        })
        .harmless(NO_TUNNEL),
    ]
}

fn protocols() -> Vec<Attack> {
    // An SCTP INIT with the marker as an unknown parameter, which its receiver passes over.
    let init = |s: &Scene| {
        let head = [1, 0, 0, 32, 0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0x80, 0x99, 0, 12];
        sctp((40_000, 80), 0, &[&head[..], &s.text()].concat())
    };
    let mut attacks = vec![
        attack("an SCTP INIT", move |s| s.send(&packet(s.me(), s.it(), SCTP, &init(s)))),
        attack("UDP-Lite", |s| s.send(&packet(s.me(), s.it(), 136, &udp(s.me(), s.it(), (40_000, 80), &s.text())))),
        attack("UDP without a checksum", |s| {
            let mut datagram = udp(s.me(), s.it(), (40_000, 80), &s.text());
            datagram[6..8].copy_from_slice(&[0, 0]);
            s.send(&packet(s.me(), s.it(), UDP, &datagram))
        }),
        attack("UDP with a wrong checksum", |s| {
            let mut datagram = udp(s.me(), s.it(), (40_000, 80), &s.text());
            datagram[6] ^= 0x55;
            s.send(&packet(s.me(), s.it(), UDP, &datagram))
        }),
        attack("a datagram to port 0", |s| s.send(&packet(s.me(), s.it(), UDP, &udp(s.me(), s.it(), (0, 0), &s.text())))),
    ];
    // Every protocol number, with bytes that mean nothing to it; extension headers and fragments have attacks of their own.
    attacks.extend((0..=u8::MAX).filter(|protocol| ![0, 43, 44, 51, 59, 60, 135, 139, 140].contains(protocol)).map(|protocol| {
        attack(format!("protocol number {protocol}"), move |s| {
            s.send(&packet(s.me(), s.it(), protocol, &[&[0x9c, 0x40, 0, 80][..], &[0; 16], &s.text(), &[0; 16]].concat()))
        })
    }));
    attacks
}
