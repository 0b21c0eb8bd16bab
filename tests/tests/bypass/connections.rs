//! Group 5: packets that belong to no connection, and forged ends of others' connections.

use crate::arena::{Arena, NODES, try_all, try_in};
use crate::attack::{Attack, attack};
use crate::scene::Scene;
use firebreak_tests::frames::internet::packet;
use firebreak_tests::frames::transport::{ACK, FIN, PSH, RST, SYN, TCP, UDP, icmp, icmp_of, tcp, udp};
use std::net::IpAddr;

#[test]
fn nothing_that_belongs_to_no_connection_gets_in_and_nobody_ends_another_s() -> anyhow::Result<()> {
    try_all("b7", &attacks())
}

/// A segment from this address with the marker.
fn segment(scene: &Scene, from: IpAddr, ports: (u16, u16), flags: u8) -> Vec<Vec<u8>> {
    let it = scene.it();
    scene.send(&packet(from, it, TCP, &tcp(from, it, ports, flags, (1_000, 1_000), &scene.text())))
}

pub(crate) fn attacks() -> Vec<Attack> {
    [segments(), messages(), errors()].into_iter().flatten().collect()
}

fn segments() -> Vec<Attack> {
    const URG: u8 = 32;
    const ECE_CWR: u8 = 0xc0;
    let kinds = [
        ("no flags at all", 0),
        ("SYN", SYN),
        ("SYN with ECN", SYN | ECE_CWR),
        ("SYN and ACK", SYN | ACK),
        ("SYN and FIN", SYN | FIN),
        ("SYN and RST", SYN | RST),
        ("SYN and PSH", SYN | PSH),
        ("ACK", ACK),
        ("PSH and ACK", PSH | ACK),
        ("FIN", FIN),
        ("FIN and ACK", FIN | ACK),
        ("RST", RST),
        ("RST and ACK", RST | ACK),
        ("FIN, PSH and URG", FIN | PSH | URG),
        ("all flags", 0xff),
    ];
    let own = kinds.map(|(name, flags)| attack(format!("a segment with {name}"), move |s| segment(s, s.me(), (40_000, 80), flags)));
    let answers = [("SYN", SYN), ("SYN and ACK", SYN | ACK), ("ACK", ACK), ("RST", RST)]
        .map(|(name, flags)| attack(format!("as if it were an answer: {name}"), move |s| segment(s, s.me(), (80, 40_000), flags)));
    let forged = [("RST", RST), ("RST and ACK", RST | ACK), ("ACK", ACK), ("FIN and ACK", FIN | ACK), ("SYN", SYN)]
        .map(|(name, flags)| attack(format!("friend's connection: {name}"), move |s| segment(s, s.ip(&s.friend), (40_100, 80), flags)));
    let node = [("RST", RST), ("ACK", ACK)]
        .map(|(name, flags)| attack(format!("the node's connection: {name}"), move |s| segment(s, s.uplink(), (40_100, 80), flags)));
    own.into_iter().chain(answers).chain(forged).chain(node).collect()
}

/// ICMP of every type that says nothing about another packet.
fn messages() -> Vec<Attack> {
    let kinds = [
        ("an echo reply", 0, 129),
        ("an echo request", 8, 128),
        ("a timestamp request", 13, 139),
        ("a timestamp reply", 14, 140),
        ("an information request", 15, 144),
        ("an address mask request", 17, 146),
        ("an address mask reply", 18, 147),
        ("a photuris message", 40, 200),
        ("an extended echo request", 42, 160),
        ("a message of type 255", 255, 255),
    ];
    kinds
        .map(|(name, v4, v6)| {
            attack(format!("ICMP: {name}"), move |s| {
                let message = icmp(s.me(), s.it(), if s.is_v4 { v4 } else { v6 }, 0, [7, 7, 0, 1], &s.text());
                s.send(&packet(s.me(), s.it(), icmp_of(s.me()), &message))
            })
        })
        .into()
}

/// An error about a packet, from this address to the victim. The marker stands behind the quotation.
fn error(scene: &Scene, from: IpAddr, kinds: (u8, u8), quoted: &[u8]) -> Vec<Vec<u8>> {
    let it = scene.it();
    let (kind, word) = if scene.is_v4 { (kinds.0, [0, 0, 2, 0]) } else { (kinds.1, [0, 0, 5, 0]) };
    let message = icmp(from, it, kind, if scene.is_v4 { 1 } else { 0 }, word, &[quoted, &scene.text()].concat());
    scene.send(&packet(from, it, icmp_of(from), &message))
}

fn errors() -> Vec<Attack> {
    let kinds = [
        ("destination unreachable", (3, 1)),
        ("packet too big", (3, 2)),
        ("time exceeded", (11, 3)),
        ("parameter problem", (12, 4)),
        ("source quench", (4, 100)),
    ];
    let about = |from: IpAddr, to: IpAddr, ports: (u16, u16)| packet(from, to, TCP, &tcp(from, to, ports, ACK, (1, 1), &[]));
    let mut attacks = Vec::new();
    for (name, kinds) in kinds {
        attacks.push(attack(format!("{name} about the victim's answer to friend"), move |s| {
            error(s, s.me(), kinds, &about(s.it(), s.ip(&s.friend), (80, 40_100)))
        }));
        attacks.push(attack(format!("{name} about the victim's answer to friend, as the node"), move |s| {
            error(s, s.ip(&s.gateway), kinds, &about(s.it(), s.ip(&s.friend), (80, 40_100)))
        }));
        attacks.push(attack(format!("{name} about the victim's answer to friend, as friend"), move |s| {
            error(s, s.ip(&s.friend), kinds, &about(s.it(), s.ip(&s.friend), (80, 40_100)))
        }));
        attacks.push(attack(format!("{name} about a packet that the victim never sent to the attacker"), move |s| {
            error(s, s.me(), kinds, &about(s.it(), s.me(), (80, 40_200)))
        }));
        attacks.push(attack(format!("{name} about the attacker's own packet to friend"), move |s| {
            error(s, s.me(), kinds, &packet(s.me(), s.ip(&s.friend), UDP, &udp(s.me(), s.ip(&s.friend), (40_001, 80), b"text")))
        }));
        attacks.push(attack(format!("{name} about friend's packet to the attacker"), move |s| {
            error(s, s.me(), kinds, &packet(s.ip(&s.friend), s.me(), UDP, &udp(s.ip(&s.friend), s.me(), (80, 40_001), b"text")))
        }));
    }
    attacks.push(attack("an error that quotes nothing", |s| error(s, s.me(), (3, 1), &[])));
    attacks.push(attack("an error about an error", |s| {
        let inner = icmp(s.it(), s.me(), if s.is_v4 { 3 } else { 1 }, 1, [0; 4], &[0; 28]);
        error(s, s.me(), (3, 1), &packet(s.it(), s.me(), icmp_of(s.me()), &inner))
    }));
    attacks
}

#[test]
fn what_others_leave_untracked_is_judged_by_the_packet() -> anyhow::Result<()> {
    let mut arena = Arena::start("b8", |_| String::new())?;
    for (node, _) in NODES {
        let inside = arena.site.namespace(node)?;
        // Before fragments are put together (-400): not even that is done for such packets.
        for words in [
            "add table inet others",
            "add chain inet others pre { type filter hook prerouting priority -450 ; }",
            "add chain inet others out { type filter hook output priority -450 ; }",
            "add rule inet others pre notrack",
            "add rule inet others out notrack",
        ] {
            inside.output(&format!("nft {words}"))?;
        }
    }
    let mut attacks = segments();
    attacks.extend(messages());
    attacks.extend(crate::packets::attacks().into_iter().filter(|attack| !attack.name.starts_with("protocol number")));
    try_in(&mut arena, &attacks)
}
