//! Group 1: speaking under another's address.

use crate::arena::{Arena, NODES, try_all, workload};
use crate::attack::{Attack, Who, attack};
use crate::scene::{Party, Scene};
use firebreak_tests::frames::internet::packet;
use firebreak_tests::frames::link::framed;
use firebreak_tests::frames::transport::{SYN, TCP, icmp, icmp_of, tcp};
use firebreak_tests::frames::{Mac, Marker};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

#[test]
fn a_workload_cannot_speak_under_another_s_address() -> anyhow::Result<()> {
    try_all("b1", &attacks())
}

/// Whoever has root in a container gives it what addresses he likes, and the agent sees them there.
#[test]
fn addresses_that_a_container_gives_itself_open_nothing() -> anyhow::Result<()> {
    let mut arena = Arena::start("bd", |_| String::new())?;
    // The outside world may, too.
    arena.site.controller.apply(
        "---\napiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {name: world, namespace: shop}\n\
         spec: {appliesTo: {matchLabels: {app: victim}}, ingress: [{from: [{cidr: {cidr: 203.0.113.0/24}}, {cidr: {cidr: \"2001:db8::/64\"}}]}]}\n",
    )?;
    for (node, _) in NODES {
        // Those of the scenes before anything is taken.
        let scenes: Vec<Scene> = arena.scenes()?.into_iter().filter(|scene| scene.node == node).collect();
        let inside = arena.site.namespace(&workload("attacker", node))?;
        for scene in &scenes {
            for (_, address) in taken(scene) {
                let length = if scene.is_v4 { 32 } else { 128 };
                inside.ip(&format!("addr add {address}/{length} dev eth0{}", if scene.is_v4 { "" } else { " nodad" }))?;
            }
        }
        let mut sent = Vec::new();
        let begun = Instant::now();
        // As long as a report to the controller and its answer take, and longer.
        while begun.elapsed() < Duration::from_secs(3) {
            for scene in &scenes {
                sent.extend(take(&arena, scene)?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut got_in: Vec<&str> =
            sent.iter().filter(|(_, marker)| arena.heard(&workload("victim", node), *marker) > 0).map(|it| it.0).collect();
        got_in.sort_unstable();
        got_in.dedup();
        anyhow::ensure!(got_in.is_empty(), "{node}: it got in with {got_in:?} ({} datagrams)", sent.len());
        told(&arena, node, &scenes)?;
    }
    arena.remove_enforcement()?;
    for scene in arena.scenes()? {
        at_home(&arena, &scene)?;
        let sent = take(&arena, &scene)?;
        firebreak_tests::wait::until("them to arrive without enforcement", Duration::from_secs(5), || {
            let arrived = |marker| arena.heard(&workload("victim", scene.node), marker) > 0;
            let count = sent.iter().filter(|(_, marker)| arrived(*marker)).count();
            let world = sent.iter().all(|(name, marker)| *name != WORLD || arrived(*marker));
            anyhow::ensure!(world, "{WORLD} does not arrive without enforcement");
            // The node's own address is a martian source where packets are routed, and the victim's may be anywhere.
            anyhow::ensure!(count + 2 >= sent.len(), "{count} of {}", sent.len());
            Ok(())
        })?;
    }
    Ok(())
}

/// People hear which addresses are not taken for the workload's, and what to do where one should be.
fn told(arena: &Arena, node: &str, scenes: &[Scene]) -> anyhow::Result<()> {
    firebreak_tests::wait::until("the node to warn of the addresses", Duration::from_secs(15), || {
        let nodes = arena.site.controller.ask(&["nodes", "-o", "json"])?;
        for scene in scenes {
            let address = scene.address("203.0.113.9", "2001:db8::9");
            anyhow::ensure!(nodes.contains(&address.to_string()), "{node}: nothing about {address} in {nodes}");
        }
        anyhow::ensure!(nodes.contains("AddressNotRouted") && nodes.contains("add a route"), "{nodes}");
        Ok(())
    })?;
    Ok(())
}

/// A manifest may name an interface that the patterns do not. Root inside takes its addresses away: there is nothing left to be judged by.
#[test]
fn an_interface_that_no_pattern_denies_is_silent_when_its_workload_has_no_address() -> anyhow::Result<()> {
    let mut arena = Arena::start("bm", |_| String::new())?;
    let scenes = arena.scenes()?;
    for (node, _) in NODES {
        let name = workload("attacker", node);
        let interface = arena.site.workload_of(&name)?.interface.clone();
        // Known from here on by its place only: the manifest names the network namespace.
        arena.site.namespace(node)?.ip(&format!("link set dev {interface} name odd{node}"))?;
        arena.site.namespace(&name)?.ip("addr flush dev eth0")?;
        firebreak_tests::wait::until("the agent to have seen it", Duration::from_secs(15), || {
            let listed = arena.site.controller.ask_json(&["get", "workloads", "-o", "json"])?;
            let mine =
                listed["items"].as_array().and_then(|items| items.iter().find(|it| name.ends_with(it["name"].as_str().unwrap_or("?"))));
            let addresses = mine.and_then(|it| Some(it["addresses"].as_array()?.len()));
            anyhow::ensure!(addresses == Some(0), "{name}: {mine:?}");
            Ok(())
        })?;
    }
    for scene in &scenes {
        let sent = speak(&arena, scene)?;
        // Behind them in the same queues.
        let bystander = workload("bystander", scene.node);
        arena.settle(&Scene { attacker: scene.bystander, gateway: arena.gateway(scene.node, &bystander)?, ..*scene }, &bystander)?;
        for (what, at, marker) in sent {
            anyhow::ensure!(arena.heard(&workload(at, scene.node), marker) == 0, "{}: {what} got through", scene.node);
        }
    }
    arena.remove_enforcement()?;
    for scene in &scenes {
        let sent = speak(&arena, scene)?;
        firebreak_tests::wait::until("them to arrive without enforcement", Duration::from_secs(5), || {
            for (what, at, marker) in &sent {
                anyhow::ensure!(arena.heard(&workload(at, scene.node), *marker) > 0, "{}: {what} does not", scene.node);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// From the attacker: under the friend's address to the victim, and under its own to the friend, who is not isolated.
fn speak(arena: &Arena, scene: &Scene) -> anyhow::Result<Vec<(&'static str, &'static str, Marker)>> {
    let mut sent = Vec::new();
    let victim = ("a datagram under friend's address", "victim", scene.ip(&scene.friend), &scene.victim);
    for (what, at, source, party) in [victim, ("an honest datagram", "friend", scene.me(), &scene.friend)] {
        let scene = Scene { marker: Marker::unique(), ..*scene };
        let way = if scene.is_bridged() { party.mac } else { scene.gateway.mac };
        let datagram = scene.datagram(source, scene.ip(party));
        arena.send(&workload("attacker", scene.node), &[framed(way, scene.attacker.mac, &datagram)])?;
        sent.push((what, at, scene.marker));
    }
    Ok(sent)
}

/// The same with the MAC addresses of its neighbours on the bridge.
#[test]
fn a_mac_address_that_a_container_gives_itself_moves_nothing() -> anyhow::Result<()> {
    let mut arena = Arena::start("be", |_| String::new())?;
    let node = "bridged";
    let scenes: Vec<Scene> = arena.scenes()?.into_iter().filter(|scene| scene.node == node).collect();
    for (app, party) in [("friend", scenes[0].friend), ("victim", scenes[0].victim)] {
        at_home(&arena, &scenes[0])?;
        let mac: Vec<String> = party.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        arena.site.namespace(&workload("attacker", node))?.ip(&format!("link set eth0 address {}", mac.join(":")))?;
        // As long as the agent needs to see it, and longer.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            take_mac(&arena, &scenes, &party)?;
            anyhow::ensure!(!moved(&arena, &scenes[0], &party)?, "the bridge sends {app}'s frames to the attacker");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    arena.remove_enforcement()?;
    take_mac(&arena, &scenes, &scenes[0].victim)?;
    anyhow::ensure!(moved(&arena, &scenes[0], &scenes[0].victim)?, "a MAC address does not move without enforcement");
    Ok(())
}

/// Honest datagrams to the node but for their MAC address.
fn take_mac(arena: &Arena, scenes: &[Scene], party: &Party) -> anyhow::Result<()> {
    let frames: Vec<Vec<u8>> =
        scenes.iter().map(|scene| framed(scene.gateway.mac, party.mac, &scene.datagram(scene.me(), scene.ip(&scene.gateway)))).collect();
    arena.send(&workload("attacker", scenes[0].node), &frames)
}

const WORLD: &str = "an address of the outside world";

/// What the attacker would like to be.
fn taken(scene: &Scene) -> Vec<(&'static str, IpAddr)> {
    vec![
        ("friend's address", scene.ip(&scene.friend)),
        ("a remote friend's address", scene.ip(&scene.remote_friend)),
        ("the node's address outside", scene.uplink()),
        ("the victim's address", scene.it()),
        ("an address that nobody has", scene.nobody()),
        (WORLD, scene.address("203.0.113.9", "2001:db8::9")),
    ]
}

/// Datagrams to the victim from all of them.
fn take(arena: &Arena, scene: &Scene) -> anyhow::Result<Vec<(&'static str, Marker)>> {
    let mut sent = Vec::new();
    for (name, address) in taken(scene) {
        let scene = Scene { marker: Marker::unique(), ..*scene };
        arena.send(&workload("attacker", scene.node), &from(&scene, address, scene.attacker.mac))?;
        sent.push((name, scene.marker));
    }
    Ok(sent)
}

/// A datagram from this address to the victim, under this MAC address.
fn from(scene: &Scene, address: IpAddr, mac: Mac) -> Vec<Vec<u8>> {
    let datagram = scene.datagram(address, scene.it());
    scene.ways().into_iter().map(|way| framed(way, mac, &datagram)).collect()
}

pub(crate) fn attacks() -> Vec<Attack> {
    const EVERYBODY: &[Who] = &[Who::Victim, Who::Bystander, Who::Friend];
    vec![
        attack("the address of one who may", |s| from(s, s.ip(&s.friend), s.attacker.mac)),
        attack("the address and the MAC address of one who may", |s| from(s, s.ip(&s.friend), s.friend.mac)),
        attack("the address of one on another node who may", |s| from(s, s.ip(&s.remote_friend), s.attacker.mac)),
        attack("a TCP connection's first segment under the address of one who may", |s| {
            let (friend, it) = (s.ip(&s.friend), s.it());
            s.send(&packet(friend, it, TCP, &tcp(friend, it, (40_000, 80), SYN, (1, 0), &s.text())))
        }),
        attack("an echo request under the address of one who may", |s| {
            let (friend, it) = (s.ip(&s.friend), s.it());
            let kind = if s.is_v4 { 8 } else { 128 };
            s.send(&packet(friend, it, icmp_of(friend), &icmp(friend, it, kind, 0, [0, 1, 0, 1], &s.text())))
        }),
        attack("the node's address", |s| from(s, s.ip(&s.gateway), s.attacker.mac)),
        attack("the node's address and MAC address", |s| from(s, s.ip(&s.gateway), s.gateway.mac)),
        attack("the node's address outside", |s| from(s, s.uplink(), s.attacker.mac)),
        attack("the victim's own address", |s| from(s, s.it(), s.attacker.mac)),
        attack("an address that nobody has", |s| from(s, s.nobody(), s.attacker.mac)),
        attack("an address that nobody has, to one who is not isolated", |s| {
            let datagram = s.datagram(s.nobody(), s.ip(&s.friend));
            let way = if s.is_bridged() { s.friend.mac } else { s.gateway.mac };
            vec![framed(way, s.attacker.mac, &datagram)]
        })
        .at(EVERYBODY),
        attack("an address of the outside world", |s| from(s, s.address("203.0.113.9", "2001:db8::9"), s.attacker.mac)),
        attack("the loopback address", |s| from(s, s.address("127.0.0.1", "::1"), s.attacker.mac)),
        attack("the unspecified address", |s| from(s, s.address("0.0.0.0", "::"), s.attacker.mac)),
        attack("a group's address", |s| from(s, s.address("224.0.0.1", "ff02::1"), s.attacker.mac)),
        attack("the broadcast address", |s| if s.is_v4 { from(s, Ipv4Addr::BROADCAST.into(), s.attacker.mac) } else { vec![] }),
        attack("a link-local address that is not its own", |s| link_local(s, s.friend.link_local, s.victim.link_local, s.victim.mac)),
        attack("an IPv4 address mapped into IPv6", |s| {
            if s.is_v4 { vec![] } else { from(s, s.friend.v4.to_ipv6_mapped().into(), s.attacker.mac) }
        }),
        attack("its own link-local address", |s| link_local(s, s.attacker.link_local, s.victim.link_local, s.victim.mac)),
        attack("its own link-local address to the victim's global one", |s| {
            link_local(s, s.attacker.link_local, s.victim.v6, s.victim.mac)
        }),
        attack("the node's link-local address", |s| link_local(s, s.gateway.link_local, s.victim.link_local, s.victim.mac)),
        attack("the MAC address of one who may, which moves it to the attacker's port", |s| {
            vec![framed(s.gateway.mac, s.friend.mac, &s.datagram(s.me(), s.ip(&s.gateway)))]
        })
        .shows(at_home, |arena, scene| moved(arena, scene, &scene.friend)),
        attack("the victim's MAC address, which moves it to the attacker's port", |s| {
            vec![framed(s.gateway.mac, s.victim.mac, &s.datagram(s.me(), s.ip(&s.gateway)))]
        })
        .shows(at_home, |arena, scene| moved(arena, scene, &scene.victim)),
    ]
}

fn link_local(scene: &Scene, from: Ipv6Addr, to: Ipv6Addr, way: Mac) -> Vec<Vec<u8>> {
    if scene.is_v4 || !scene.is_bridged() {
        return vec![];
    }
    vec![framed(way, scene.attacker.mac, &scene.datagram(from.into(), to.into()))]
}

/// Every party has just been heard at its own port.
pub(crate) fn at_home(arena: &Arena, scene: &Scene) -> anyhow::Result<()> {
    for (app, party) in [("friend", &scene.friend), ("victim", &scene.victim)] {
        let frame = framed(scene.gateway.mac, party.mac, &scene.datagram(scene.ip(party), scene.ip(&scene.gateway)));
        arena.send(&workload(app, scene.node), &[frame])?;
    }
    if !scene.is_bridged() {
        return Ok(());
    }
    firebreak_tests::wait::until("the bridge to have learnt them", std::time::Duration::from_secs(5), || {
        anyhow::ensure!(!moved(arena, scene, &scene.friend)? && !moved(arena, scene, &scene.victim)?, "it has not");
        Ok(())
    })?;
    Ok(())
}

/// Whether the bridge sends the party's frames to the attacker.
fn moved(arena: &Arena, scene: &Scene, party: &Party) -> anyhow::Result<bool> {
    if !scene.is_bridged() {
        return Ok(false);
    }
    let interface = &arena.site.workload_of(&workload("attacker", scene.node))?.interface;
    let mac: Vec<String> = party.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let listed = arena.site.namespace(scene.node)?.output(&format!("bridge fdb show br br0 dev {interface}"))?;
    Ok(listed.lines().any(|line| line.starts_with(&mac.join(":"))))
}
