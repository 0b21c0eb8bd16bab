//! Group 3: what a bridge gives to everybody.

use crate::arena::try_all;
use crate::attack::{Attack, Who, attack};
use crate::scene::Scene;
use firebreak_tests::frames::Mac;
use firebreak_tests::frames::internet::{HOP_BY_HOP, Header, extension, packet, v4, with_hops};
use firebreak_tests::frames::link::{BROADCAST, framed};
use firebreak_tests::frames::transport::{ICMP6, UDP, dhcp, icmp, udp};
use std::net::IpAddr;

#[test]
fn nothing_that_is_for_everybody_reaches_an_isolated_neighbour() -> anyhow::Result<()> {
    try_all("b5", &attacks())
}

const ISOLATED: &[Who] = &[Who::Victim, Who::Bystander];
/// Locally administered, nobody's.
const NOBODY: Mac = [2, 0, 0, 0, 0, 99];

/// A datagram to this address, in frames to everybody, to the address's group, to nobody, and to each isolated neighbour.
fn to(scene: &Scene, address: IpAddr) -> Vec<Vec<u8>> {
    let group = match address {
        IpAddr::V4(address) => {
            let [_, b, c, d] = address.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [0x33, 0x33, a, b, c, d]
        }
    };
    let datagram = scene.datagram(scene.me(), address);
    [BROADCAST, group, NOBODY, scene.victim.mac, scene.bystander.mac].map(|way| framed(way, scene.attacker.mac, &datagram)).to_vec()
}

fn subnet_broadcast(scene: &Scene) -> IpAddr {
    let [a, b, c, _] = scene.attacker.v4.octets();
    IpAddr::from([a, b, c, 255])
}

pub(crate) fn attacks() -> Vec<Attack> {
    let v4_only = |name: &'static str, address: fn(&Scene) -> IpAddr| {
        attack(name, move |s| if s.is_v4 { to(s, address(s)) } else { vec![] }).at(ISOLATED)
    };
    let group = |name: &'static str, v4: &'static str, v6: &'static str| attack(name, move |s| to(s, s.address(v4, v6))).at(ISOLATED);
    vec![
        v4_only("the limited broadcast", |_| IpAddr::from([255; 4])),
        v4_only("the subnet's broadcast", subnet_broadcast),
        v4_only("the network's own address", |s| {
            let [a, b, c, _] = s.attacker.v4.octets();
            IpAddr::from([a, b, c, 0])
        }),
        group("all nodes", "224.0.0.1", "ff02::1"),
        group("all routers", "224.0.0.2", "ff02::2"),
        group("mDNS", "224.0.0.251", "ff02::fb"),
        group("SSDP and DHCP servers", "239.255.255.250", "ff02::1:2"),
        group("a group of a wider scope", "239.1.2.3", "ff05::1:3"),
        group("a group of this host alone", "224.0.0.99", "ff01::1"),
        attack("the victim's group of neighbour discovery", |s| {
            let last = s.victim.v6.octets();
            if s.is_v4 { vec![] } else { to(s, format!("ff02::1:ff{:02x}:{:02x}{:02x}", last[13], last[14], last[15]).parse().unwrap()) }
        })
        .at(ISOLATED),
        attack("a packet to the victim in a frame to everybody", |s| vec![framed(BROADCAST, s.attacker.mac, &s.honest())]).at(ISOLATED),
        attack("a packet to the victim in a frame to a group", |s| {
            [[1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]].map(|way| framed(way, s.attacker.mac, &s.honest())).to_vec()
        })
        .at(ISOLATED),
        attack("a packet to the victim in a frame to nobody", |s| vec![framed(NOBODY, s.attacker.mac, &s.honest())]).at(ISOLATED),
        attack("a packet to one who is not isolated, in a frame to everybody", |s| {
            vec![framed(BROADCAST, s.attacker.mac, &s.datagram(s.me(), s.ip(&s.friend)))]
        })
        .at(ISOLATED),
        attack("a packet to one who is not isolated, in a frame to nobody", |s| {
            vec![framed(NOBODY, s.attacker.mac, &s.datagram(s.me(), s.ip(&s.friend)))]
        })
        .at(ISOLATED),
        attack("a packet to one who is not isolated, in a frame to an isolated neighbour", |s| {
            [s.victim.mac, s.bystander.mac].map(|way| framed(way, s.attacker.mac, &s.datagram(s.me(), s.ip(&s.friend)))).to_vec()
        })
        .at(ISOLATED),
        attack("a packet to nobody, in frames to nobody and to isolated neighbours", |s| to(s, s.nobody())).at(ISOLATED),
        attack("an echo request to everybody", |s| {
            let everybody = s.address("255.255.255.255", "ff02::1");
            let kind = if s.is_v4 { 8 } else { 128 };
            let request = icmp(s.me(), everybody, kind, 0, [1, 2, 3, 4], &s.text());
            let protocol = if s.is_v4 { 1 } else { ICMP6 };
            let ways = [BROADCAST, [0x33, 0x33, 0, 0, 0, 1], s.victim.mac];
            ways.map(|way| framed(way, s.attacker.mac, &packet(s.me(), everybody, protocol, &request))).to_vec()
        })
        .at(ISOLATED),
        attack("an IGMP or MLD query", |s| vec![listener(s, true)]).at(ISOLATED),
        attack("an IGMP or MLD report", |s| vec![listener(s, false)]).at(ISOLATED),
        attack("a DHCP client's question with a message in it", |s| {
            let (from, to, ports) = if s.is_v4 {
                (s.me(), IpAddr::from([255; 4]), (68, 67))
            } else {
                (s.attacker.link_local.into(), "ff02::1:2".parse().unwrap(), (546, 547))
            };
            let message = dhcp(1, s.attacker.mac, [0; 4], 1, [0; 4], &s.text());
            let datagram = packet(from, to, UDP, &udp(from, to, ports, &message));
            [BROADCAST, [0x33, 0x33, 0, 1, 0, 2], s.victim.mac, s.bystander.mac].map(|way| framed(way, s.attacker.mac, &datagram)).to_vec()
        })
        .at(ISOLATED),
    ]
}

/// A querier's or a member's message, with the marker behind it.
fn listener(scene: &Scene, asks: bool) -> Vec<u8> {
    let text = scene.text();
    let everybody = scene.address("224.0.0.1", "ff02::1");
    match (scene.me(), everybody) {
        (IpAddr::V4(me), IpAddr::V4(all)) => {
            let mut message = vec![if asks { 0x11 } else { 0x16 }, 10, 0, 0, 224, 0, 0, 251];
            message.extend(text);
            let alert = Header { hops: 1, options: &[0x94, 4, 0, 0], ..Header::default() };
            framed([1, 0, 0x5e, 0, 0, 1], scene.attacker.mac, &v4(me, all, 2, alert, &message))
        }
        _ => {
            let me = IpAddr::from(scene.attacker.link_local);
            let message = icmp(me, everybody, if asks { 130 } else { 131 }, 0, [0, 10, 0, 0], &[&[0; 16][..], &text].concat());
            let alert = extension(ICMP6, &[5, 2, 0, 0, 1, 0], &message);
            framed([0x33, 0x33, 0, 0, 0, 1], scene.attacker.mac, &with_hops(me, everybody, HOP_BY_HOP, 1, &alert))
        }
    }
}
