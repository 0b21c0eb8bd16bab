//! Group 2: frames that are not untagged IPv4, IPv6 or ARP.

use crate::arena::try_all;
use crate::attack::{Attack, Who, attack};
use crate::scene::Scene;
use firebreak_tests::frames::Mac;
use firebreak_tests::frames::link::{BROADCAST, IPV4, IPV6, SERVICE_VLAN, VLAN, ethernet, framed, llc, pppoe, tagged};

#[test]
fn nothing_but_untagged_ip_and_arp_leaves_a_workload() -> anyhow::Result<()> {
    try_all("b4", &attacks())
}

const ISOLATED: &[Who] = &[Who::Victim, Who::Bystander];

const NO_IP: &str = "br_netfilter and the node's own stack drop what has no IP header before any rule sees it";

/// The frame for each way to the victim and for everybody.
fn everywhere(scene: &Scene, made: impl Fn(Mac) -> Vec<u8>) -> Vec<Vec<u8>> {
    scene.ways().into_iter().chain([BROADCAST]).map(made).collect()
}

/// The datagram to the victim with tags, the outermost last.
fn with_tags(scene: &Scene, datagram: &[u8], tags: &[(u16, u16)]) -> Vec<Vec<u8>> {
    everywhere(scene, |way| {
        tags.iter().fold(framed(way, scene.attacker.mac, datagram), |frame, (kind, number)| tagged(&frame, *kind, *number))
    })
}

/// EtherTypes that mean something to somebody, and some that mean nothing.
const TYPES: [(&str, u16); 30] = [
    ("RARP", 0x8035),
    ("AppleTalk", 0x809b),
    ("AARP", 0x80f3),
    ("IPX", 0x8137),
    ("loopback test", 0x9000),
    ("Wake-on-LAN", 0x0842),
    ("TRILL", 0x22f3),
    ("SRP", 0x22ea),
    ("DECnet", 0x6003),
    ("transparent bridging", 0x6558),
    ("MPLS", 0x8847),
    ("MPLS multicast", 0x8848),
    ("PPPoE discovery", 0x8863),
    ("802.1X", 0x888e),
    ("PROFINET", 0x8892),
    ("ATA over Ethernet", 0x88a2),
    ("EtherCAT", 0x88a4),
    ("experiment", 0x88b5),
    ("LLDP", 0x88cc),
    ("MACsec", 0x88e5),
    ("provider backbone", 0x88e7),
    ("precision time", 0x88f7),
    ("parallel redundancy", 0x88fb),
    ("CFM", 0x8902),
    ("FCoE", 0x8906),
    ("RoCE", 0x8915),
    ("HSR", 0x892f),
    ("NSH", 0x894f),
    ("the lowest that there is", 0x0600),
    ("the highest that there is", 0xffff),
];

pub(crate) fn attacks() -> Vec<Attack> {
    let tag = |name: &'static str, tags: &'static [(u16, u16)]| attack(name, move |s| with_tags(s, &s.honest(), tags)).at(ISOLATED);
    let spoofed = |name: &'static str, tags: &'static [(u16, u16)]| {
        attack(name, move |s| with_tags(s, &s.datagram(s.ip(&s.friend), s.it()), tags)).at(ISOLATED)
    };
    let mut attacks = vec![
        tag("an 802.1Q tag", &[(VLAN, 5)]),
        tag("a priority tag (VLAN 0)", &[(VLAN, 0)]),
        tag("a priority tag with a priority", &[(VLAN, 0xe000)]),
        tag("VLAN 4095", &[(VLAN, 4095)]),
        tag("a service tag", &[(SERVICE_VLAN, 5)]),
        tag("a service tag 0", &[(SERVICE_VLAN, 0)]),
        tag("QinQ", &[(VLAN, 5), (SERVICE_VLAN, 6)]),
        tag("QinQ with priority tags", &[(VLAN, 0), (SERVICE_VLAN, 0)]),
        tag("two 802.1Q tags", &[(VLAN, 0), (VLAN, 0)]),
        tag("three tags", &[(VLAN, 1), (VLAN, 2), (VLAN, 3)]),
        tag("the old QinQ type 0x9100", &[(0x9100, 5)]),
        spoofed("a priority tag and the address of one who may", &[(VLAN, 0)]),
        spoofed("an 802.1Q tag and the address of one who may", &[(VLAN, 5)]),
        attack("PPPoE with IP inside", |s| {
            let inside = pppoe(1, if s.is_v4 { 0x0021 } else { 0x0057 }, &s.honest());
            everywhere(s, |way| ethernet(way, s.attacker.mac, 0x8864, &inside))
        })
        .at(ISOLATED),
        attack("LLC with SNAP and IP inside", |s| {
            let [a, b] = if s.is_v4 { IPV4 } else { IPV6 }.to_be_bytes();
            everywhere(s, |way| llc(way, s.attacker.mac, &[0xaa, 0xaa, 3, 0, 0, 0, a, b], &s.honest()))
        })
        .at(ISOLATED),
        attack("LLC of an own kind", |s| everywhere(s, |way| llc(way, s.attacker.mac, &[0xfe, 0xfe, 3], &s.text()))).at(ISOLATED),
        attack("a spanning tree frame", |s| vec![llc([1, 0x80, 0xc2, 0, 0, 0], s.attacker.mac, &[0x42, 0x42, 3], &s.text())]).at(ISOLATED),
        attack("IP under the EtherType of the other version", |s| {
            everywhere(s, |way| ethernet(way, s.attacker.mac, if s.is_v4 { IPV6 } else { IPV4 }, &s.honest()))
        })
        .at(ISOLATED)
        .harmless(NO_IP),
        attack("IPv4 under the EtherType of ARP", |s| everywhere(s, |way| ethernet(way, s.attacker.mac, 0x0806, &s.honest()))).at(ISOLATED),
        attack("an IP header that is cut off", |s| {
            let kind = if s.is_v4 { IPV4 } else { IPV6 };
            let start = &s.honest()[..8];
            everywhere(s, |way| ethernet(way, s.attacker.mac, kind, &[start, &s.text()].concat()))
        })
        .at(ISOLATED)
        .harmless(NO_IP),
    ];
    attacks.extend(TYPES.map(|(name, kind)| {
        attack(format!("EtherType {kind:#06x} ({name})"), move |s| everywhere(s, |way| ethernet(way, s.attacker.mac, kind, &s.text())))
            .at(ISOLATED)
    }));
    attacks
}
