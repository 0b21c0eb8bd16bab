//! Group 8: the node itself, and neighbours reached through it.

use crate::arena::{Arena, NODES, try_in, workload};
use crate::attack::{Attack, Who, attack};
use crate::scene::Scene;
use anyhow::ensure;
use firebreak_tests::frames::internet::packet;
use firebreak_tests::frames::link::{BROADCAST, framed};
use firebreak_tests::frames::transport::{UDP, udp};
use firebreak_tests::probe::{Kind, probe};
use firebreak_tests::relay::{Datagrams, Relay};
use firebreak_tests::site::Site;
use std::net::{IpAddr, SocketAddr};

/// Relayed as docker-proxy does, and forwarded by destination NAT as Docker does without it.
const RELAYED: u16 = 9053;
const FORWARDED: u16 = 9153;
const SERVICE: u16 = 80;

/// The datagram to this address of the node, relayed and forwarded.
fn to_node(scene: &Scene, address: IpAddr) -> Vec<Vec<u8>> {
    let group = if scene.is_v4 { [1, 0, 0x5e, 0, 0, 1] } else { [0x33, 0x33, 0, 0, 0, 1] };
    let from = match address {
        // A link-local address is reached from one.
        IpAddr::V6(address) if address.is_unicast_link_local() || address.is_multicast() => scene.attacker.link_local.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => scene.me(),
    };
    let mut frames = Vec::new();
    for way in [scene.gateway.mac, BROADCAST, group] {
        for port in [RELAYED, FORWARDED] {
            frames.push(framed(way, scene.attacker.mac, &packet(from, address, UDP, &udp(from, address, (40_300, port), &scene.text()))));
        }
    }
    frames
}

fn attacks() -> Vec<Attack> {
    let at = |name: &'static str, address: fn(&Scene) -> Option<IpAddr>| {
        attack(format!("a published port on {name}"), move |s| address(s).map(|address| to_node(s, address)).unwrap_or_default())
    };
    vec![
        at("the node's address outside", |s| Some(s.uplink())),
        at("the address that workloads know the node by", |s| Some(s.ip(&s.gateway))),
        at("the node's link-local address", |s| (!s.is_v4).then_some(s.gateway.link_local.into())),
        at("the limited broadcast address", |s| v4_of(s, [255; 4])),
        at("the workloads' broadcast address", |s| {
            let [a, b, c, _] = s.attacker.v4.octets();
            v4_of(s, [a, b, c, 255])
        }),
        at("the outside network's broadcast address", |s| v4_of(s, [192, 168, 77, 255])),
        at("everybody's group", |s| Some(s.address("224.0.0.1", "ff02::1"))),
        at("everybody's group on the interface", |s| (!s.is_v4).then(|| "ff01::1".parse().unwrap())),
        at("all routers' group", |s| (!s.is_v4).then(|| "ff02::2".parse().unwrap())),
        at("the subnet router's anycast address", |s| {
            let [a, b, ..] = s.attacker.v6.segments();
            (!s.is_v4).then(|| IpAddr::from([a, b, 0, 0, 0, 0, 0, 0]))
        }),
        at("the loopback address", |s| Some(s.address("127.0.0.1", "::1"))),
        attack("a port that another node's relay publishes", |s| to_node(s, other(s)))
            .at(&[Who::RemoteVictim])
            .remains("a remote workload is like any client outside to a relay (docker-proxy), which asks nobody; isolate its egress, or publish without the relay"),
    ]
}

fn v4_of(scene: &Scene, address: [u8; 4]) -> Option<IpAddr> {
    scene.is_v4.then(|| IpAddr::from(address))
}

/// The other node's address outside.
fn other(scene: &Scene) -> IpAddr {
    match scene.uplink() {
        IpAddr::V4(address) => {
            let [a, b, c, last] = address.octets();
            IpAddr::from([a, b, c, 3 - last])
        }
        IpAddr::V6(address) => {
            let mut segments = address.segments();
            segments[7] = 3 - segments[7];
            IpAddr::from(segments)
        }
    }
}

/// What Docker does without its proxy.
fn forward(site: &Site, node: &str, port: u16, to: [SocketAddr; 2]) -> anyhow::Result<()> {
    let inside = site.namespace(node)?;
    inside.output("nft add table inet published")?;
    inside.output("nft add chain inet published pre { type nat hook prerouting priority -100 ; }")?;
    for protocol in ["tcp", "udp"] {
        for (family, to) in ["ip", "ip6"].into_iter().zip(to) {
            inside
                .output(&format!("nft add rule inet published pre fib daddr type local {protocol} dport {port} dnat {family} to {to}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_neighbour_is_not_reached_through_any_address_of_the_node() -> anyhow::Result<()> {
    let mut arena = Arena::start("b9", |_| {
        let ports = [RELAYED, FORWARDED].map(|port| {
            format!("{{hostPort: {port}, port: {SERVICE}, protocol: UDP}}, {{hostPort: {port}, port: {SERVICE}, protocol: TCP}}")
        });
        format!("publishedPorts: [{}]", ports.join(", "))
    })?;
    let mut relays = Vec::new();
    for (node, _) in NODES {
        let to = arena.site.addresses(&workload("victim", node))?.map(|address| SocketAddr::new(address, SERVICE));
        let inside = arena.site.namespace(node)?;
        relays.push((Datagrams::start(inside, RELAYED, to)?, Relay::start(inside, RELAYED, to)?));
        forward(&arena.site, node, FORWARDED, to)?;
    }
    let wrong = connects(&arena, false)?;
    ensure!(wrong.is_empty(), "connections through the node: {wrong:?}");
    try_in(&mut arena, &attacks())?;
    let wrong = connects(&arena, true)?;
    ensure!(wrong.is_empty(), "no connections through the node without enforcement: {wrong:?}");
    Ok(())
}

/// Whether TCP connections to the published ports of every address get as far as they should; gives those that do not.
fn connects(arena: &Arena, expected: bool) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    for scene in arena.scenes()? {
        let attacker = arena.site.namespace(&workload("attacker", scene.node))?;
        // Routed workloads know the node by a link-local address over IPv6.
        let beside = (scene.is_v4 || scene.is_bridged()).then(|| scene.ip(&scene.gateway));
        for address in [scene.uplink()].into_iter().chain(beside) {
            for port in [RELAYED, FORWARDED] {
                if probe(attacker, address, Kind::Tcp(port))? != expected {
                    wrong.push(format!("{}: {address} port {port}/tcp", scene.node));
                }
            }
        }
    }
    Ok(wrong)
}
