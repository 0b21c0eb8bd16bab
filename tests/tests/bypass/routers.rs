//! Group 1: pretending to be the router or the server that gives addresses.

use crate::arena::{Arena, try_all, workload};
use crate::attack::{Attack, Who, attack};
use crate::scene::Scene;
use firebreak_tests::frames::Mac;
use firebreak_tests::frames::internet::{
    DESTINATION, FRAGMENT, HOP_BY_HOP, Header, PADDING, extension, fragment6, packet, v4, v6, with_hops,
};
use firebreak_tests::frames::link::{BROADCAST, VLAN, framed, tagged};
use firebreak_tests::frames::transport::{ICMP, ICMP6, UDP, about, dhcp, icmp, option, udp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[test]
fn nobody_but_the_node_is_router_or_gives_addresses() -> anyhow::Result<()> {
    try_all("b3", &attacks())
}

const ISOLATED: &[Who] = &[Who::Victim, Who::Bystander];
const REDIRECT4: u8 = 5;
const ADVERTISEMENT: u8 = 134;
const REDIRECT6: u8 = 137;

fn all_nodes() -> (Mac, Ipv6Addr) {
    ([0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse().unwrap())
}

/// A router advertisement with a long life, a prefix for autoconfiguration and the marker.
fn advertisement(scene: &Scene, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![0; 8];
    let mut prefix = vec![64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0];
    prefix.extend("fdba::".parse::<Ipv6Addr>().unwrap().octets());
    body.extend(option(3, &prefix));
    body.extend(option(1, &scene.attacker.mac));
    body.extend(option(253, &[&[0; 6][..], &scene.text()].concat()));
    icmp(from.into(), to.into(), ADVERTISEMENT, 0, [64, 0, 7, 8], &body)
}

/// A router advertisement to everybody or to the victim, in a frame made of it.
fn advertised(scene: &Scene, from: Ipv6Addr, to: (Mac, Ipv6Addr), made: fn(Ipv6Addr, Ipv6Addr, &[u8]) -> Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    if scene.is_v4 {
        return vec![];
    }
    let packets = made(from, to.1, &advertisement(scene, from, to.1));
    packets.iter().map(|packet| framed(to.0, scene.attacker.mac, packet)).collect()
}

fn plain(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<Vec<u8>> {
    vec![v6(from, to, ICMP6, 255, message)]
}

fn no_router(arena: &Arena, scene: &Scene) -> anyhow::Result<()> {
    arena.site.namespace(&workload("victim", scene.node))?.ip("-6 route flush proto ra")
}

fn not_redirected(arena: &Arena, scene: &Scene) -> anyhow::Result<()> {
    let victim = arena.site.namespace(&workload("victim", scene.node))?;
    victim.ip("-4 route flush cache")?;
    // It knows the attacker: a redirect to a stranger only makes it ask for the stranger first.
    let mac: Vec<String> = scene.attacker.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    victim.ip(&format!("neigh replace {} lladdr {} dev eth0 nud reachable", scene.attacker.v4, mac.join(":")))
}

/// The victim sends to the world through the attacker.
fn is_router(arena: &Arena, scene: &Scene) -> anyhow::Result<bool> {
    let routes = arena.site.namespace(&workload("victim", scene.node))?.output("ip -6 route show default")?;
    Ok(routes.contains(&scene.attacker.link_local.to_string()))
}

/// The victim sends to that one address through the attacker.
fn is_redirected(arena: &Arena, scene: &Scene) -> anyhow::Result<bool> {
    let route = arena.site.namespace(&workload("victim", scene.node))?.output("ip route get 198.51.100.7")?;
    Ok(route.contains(&format!("via {}", scene.attacker.v4)))
}

pub(crate) fn attacks() -> Vec<Attack> {
    [advertisements(), redirects(), addresses()].into_iter().flatten().collect()
}

fn advertisements() -> Vec<Attack> {
    vec![
        attack("a router advertisement", |s| advertised(s, s.attacker.link_local, all_nodes(), plain)).shows(no_router, is_router),
        attack("a router advertisement to everybody", |s| advertised(s, s.attacker.link_local, all_nodes(), plain)).at(ISOLATED),
        attack("a router advertisement to the victim alone", |s| {
            advertised(s, s.attacker.link_local, (s.victim.mac, s.victim.link_local), plain)
        }),
        attack("a router advertisement under the node's address", |s| advertised(s, s.gateway.link_local, all_nodes(), plain)).at(ISOLATED),
        attack("a router advertisement with the victim's MAC address and everybody's address", |s| {
            advertised(s, s.attacker.link_local, (s.victim.mac, all_nodes().1), plain)
        }),
        attack("a router advertisement behind destination options", |s| {
            advertised(s, s.attacker.link_local, all_nodes(), |from, to, message| {
                vec![v6(from, to, DESTINATION, 255, &extension(ICMP6, &PADDING, message))]
            })
        })
        .at(ISOLATED),
        attack("a router advertisement behind hop-by-hop options", |s| {
            advertised(s, s.attacker.link_local, (s.victim.mac, all_nodes().1), |from, to, message| {
                vec![v6(from, to, HOP_BY_HOP, 255, &extension(ICMP6, &PADDING, message))]
            })
        }),
        attack("a router advertisement in an atomic fragment", |s| {
            advertised(s, s.attacker.link_local, (s.victim.mac, all_nodes().1), |from, to, message| {
                vec![v6(from, to, FRAGMENT, 255, &fragment6(ICMP6, 0, 77, message))]
            })
        }),
        attack("a router advertisement whose first fragment does not say what it is", |s| {
            advertised(s, s.attacker.link_local, (s.victim.mac, all_nodes().1), |from, to, message| {
                let whole = extension(ICMP6, &PADDING, message);
                let (first, rest) = whole.split_at(8);
                vec![
                    v6(from, to, FRAGMENT, 255, &fragment6(DESTINATION, 1, 78, first)),
                    v6(from, to, FRAGMENT, 255, &fragment6(DESTINATION, 8, 78, rest)),
                ]
            })
        }),
        attack("a router advertisement with a priority tag", |s| {
            let frames = advertised(s, s.attacker.link_local, all_nodes(), plain);
            frames.iter().map(|frame| tagged(frame, VLAN, 0)).collect()
        })
        .at(ISOLATED),
        attack("an ICMP router advertisement (RFC 1256)", |s| {
            if !s.is_v4 {
                return vec![];
            }
            let (from, to) = (s.me(), IpAddr::from(Ipv4Addr::new(224, 0, 0, 1)));
            let body = [&s.attacker.v4.octets()[..], &[0, 0, 0, 1], &s.text()].concat();
            let message = icmp(from, to, 9, 0, [1, 2, 7, 8], &body);
            [[1, 0, 0x5e, 0, 0, 1], BROADCAST, s.victim.mac]
                .map(|way| framed(way, s.attacker.mac, &with_hops(from, to, ICMP, 1, &message)))
                .to_vec()
        })
        .at(ISOLATED),
    ]
}

/// What the victim would have sent to 198.51.100.7, as a redirect quotes it. An echo reply over IPv4: Linux then asks for no socket that sent it.
fn quoted(scene: &Scene) -> Vec<u8> {
    let text = scene.text();
    match scene.it() {
        IpAddr::V4(it) => v4(it, Ipv4Addr::new(198, 51, 100, 7), ICMP, Header::default(), &[&[0; 8][..], &text].concat()),
        IpAddr::V6(it) => v6(it, "2001:db8::7".parse().unwrap(), UDP, 64, &text),
    }
}

fn redirect(scene: &Scene, from: IpAddr) -> Vec<Vec<u8>> {
    let to = scene.it();
    let message = match from {
        IpAddr::V4(_) => icmp(from, to, REDIRECT4, 1, scene.attacker.v4.octets(), &quoted(scene)),
        IpAddr::V6(_) => {
            let there: Ipv6Addr = "2001:db8::7".parse().unwrap();
            let body = [about(scene.attacker.link_local, &[]), there.octets().to_vec(), option(4, &[&[0; 6][..], &quoted(scene)].concat())];
            icmp(from, to, REDIRECT6, 0, [0; 4], &body.concat())
        }
    };
    let protocol = if scene.is_v4 { ICMP } else { ICMP6 };
    vec![framed(scene.victim.mac, scene.attacker.mac, &with_hops(from, to, protocol, 255, &message))]
}

fn redirects() -> Vec<Attack> {
    vec![
        attack("a redirect under the node's address", |s| if s.is_v4 { redirect(s, s.gateway.v4.into()) } else { vec![] })
            .shows(not_redirected, is_redirected),
        attack("a redirect under the node's address that anybody may hear", |s| redirect(s, s.ip(&s.gateway))),
        attack(
            "a redirect under the node's link-local address",
            |s| {
                if s.is_v4 { vec![] } else { redirect(s, s.gateway.link_local.into()) }
            },
        ),
        attack("a redirect under its own address", |s| redirect(s, s.me())),
        attack("a redirect under its own link-local address", |s| if s.is_v4 { vec![] } else { redirect(s, s.attacker.link_local.into()) }),
    ]
}

/// A server's answer: ports, ends, frame's destination.
fn offer(scene: &Scene, from: IpAddr, to: IpAddr, way: Mac) -> Vec<Vec<u8>> {
    let (ports, message) = match from {
        IpAddr::V4(_) => {
            let given = scene.victim.v4.octets();
            ((67, 68), dhcp(2, scene.victim.mac, given, 2, scene.attacker.v4.octets(), &scene.text()))
        }
        // Advertise (RFC 8415), with the marker as the server's identifier.
        IpAddr::V6(_) => ((547, 546), [&[2, 1, 2, 3, 0, 2, 0, 8][..], &scene.text()].concat()),
    };
    vec![framed(way, scene.attacker.mac, &packet(from, to, UDP, &udp(from, to, ports, &message)))]
}

fn addresses() -> Vec<Attack> {
    let everybody = |s: &Scene| s.address("255.255.255.255", "ff02::1");
    vec![
        attack("a DHCP offer to everybody", move |s| {
            let way = if s.is_v4 { BROADCAST } else { all_nodes().0 };
            offer(s, s.me(), everybody(s), way)
        })
        .at(ISOLATED),
        attack("a DHCP offer under the node's address", move |s| offer(s, s.ip(&s.gateway), everybody(s), s.victim.mac)).at(ISOLATED),
        attack("a DHCP offer to the victim", |s| offer(s, s.me(), s.it(), s.victim.mac)).at(ISOLATED),
        attack("a DHCP offer to the victim's link-local address", |s| {
            if s.is_v4 { vec![] } else { offer(s, s.attacker.link_local.into(), s.victim.link_local.into(), s.victim.mac) }
        }),
        attack("a DHCP offer to one who is not isolated", |s| offer(s, s.me(), s.ip(&s.friend), s.friend.mac)).at(&[Who::Friend]),
    ]
}
