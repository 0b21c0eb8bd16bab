//! Group 7: before the agent knows a workload, and after one has ended.

use crate::arena::{Arena, NODES, workload};
use crate::attack::{Attack, Effect};
use crate::scene::Scene;
use anyhow::{Context as _, ensure};
use firebreak_tests::frames::Marker;
use firebreak_tests::frames::internet::packet;
use firebreak_tests::frames::link::framed;
use firebreak_tests::frames::transport::{ACK, PSH, TCP, UDP, tcp, udp};
use firebreak_tests::lab::Topology;
use firebreak_tests::wait;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A workload that is there, and that nobody has told the agent about.
fn unknown(node: &str) -> String {
    format!("other/unknown-{node}")
}

const NUMBER: u8 = 20;

#[test]
fn an_interface_that_nobody_knows_yet_sends_nothing_and_hears_nothing() -> anyhow::Result<()> {
    let mut arena = Arena::start("ba", |_| String::new())?;
    for (node, _) in NODES {
        arena.site.workload_at(node, &unknown(node), NUMBER)?;
        arena.adopt(&unknown(node))?;
    }
    let attacks = every_attack();
    let (sent, [arrived, came_in]) = exchange(&arena, &attacks)?;
    ensure!(arrived.is_empty(), "{} of {sent} attacks of an unknown workload arrived: {arrived:?}", arrived.len());
    ensure!(came_in.is_empty(), "an unknown workload heard {came_in:?}");
    for (node, _) in NODES {
        let learnt = learnt(&arena, node)?;
        ensure!(learnt.is_empty(), "{node} has learnt of an unknown workload: {learnt:?}");
    }
    arena.remove_enforcement()?;
    let (_, [arrived, came_in]) = exchange(&arena, &attacks)?;
    println!("{sent} attacks of unknown workloads: none arrived with enforcement, {} without", arrived.len());
    ensure!(arrived.len() > 300 && came_in.len() >= 8, "too few arrive without enforcement: {} and {}", arrived.len(), came_in.len());
    ensure!(!learnt(&arena, "bridged")?.is_empty(), "nobody has learnt anything without enforcement");
    Ok(())
}

/// Those that show by what arrives.
pub(crate) fn every_attack() -> Vec<Attack> {
    let groups = [
        crate::identity::attacks(),
        crate::neighbours::attacks(),
        crate::routers::attacks(),
        crate::links::attacks(),
        crate::flooding::attacks(),
        crate::packets::attacks(),
        crate::connections::attacks(),
    ];
    groups.into_iter().flatten().filter(|attack| matches!(attack.effect, Effect::Arrives(_))).collect()
}

/// The unknown workload makes every attack and speaks with everybody, and everybody speaks with it: how many attacks, which arrived anywhere, and what it
/// heard.
fn exchange(arena: &Arena, attacks: &[Attack]) -> anyhow::Result<(usize, [Vec<String>; 2])> {
    const ALL: [&str; 4] = ["attacker", "victim", "friend", "bystander"];
    let (mut out, mut back) = (Vec::new(), Vec::new());
    for scene in arena.scenes()? {
        let name = unknown(scene.node);
        let scene_of = |scene: &Scene| {
            anyhow::Ok(Scene {
                marker: Marker::unique(),
                attacker: arena.party(&name)?,
                gateway: arena.gateway(scene.node, &name)?,
                ..*scene
            })
        };
        for (number, attack) in attacks.iter().enumerate() {
            let scene = scene_of(&scene)?;
            arena.send(&name, &(attack.frames)(&scene))?;
            out.push((scene.node, attack.name.clone(), scene.marker));
            if number % 64 == 0 {
                arena.settle(&arena_scene(arena, &scene)?, &workload("attacker", scene.node))?;
            }
        }
        let (new, gateway) = (arena.party(&name)?, arena.gateway(scene.node, &name)?);
        for (app, party) in ALL.into_iter().zip([scene.attacker, scene.victim, scene.friend, scene.bystander]) {
            let (there, here) = (scene.ip(&party), scene.ip(&new));
            let scene = scene_of(&scene)?;
            let [to_party, to_new] = if scene.is_bridged() {
                [party.mac, new.mac]
            } else {
                [gateway.mac, arena.gateway(scene.node, &workload(app, scene.node))?.mac]
            };
            arena.send(&name, &[framed(to_party, new.mac, &scene.datagram(here, there))])?;
            out.push((scene.node, format!("an honest datagram to {app}"), scene.marker));
            let scene = scene_of(&scene)?;
            arena.send(&workload(app, scene.node), &[framed(to_new, party.mac, &scene.datagram(there, here))])?;
            back.push((scene.node, format!("{app}, {here}"), scene.marker));
        }
        arena.settle(&scene, &workload("attacker", scene.node))?;
    }
    let heard = |node: &str, marker| ALL.iter().any(|app| arena.heard(&workload(app, node), marker) > 0);
    let sent = out.len();
    let arrived =
        out.into_iter().filter(|(node, _, marker)| heard(node, *marker)).map(|(node, what, _)| format!("{node}: {what}")).collect();
    let came_in = back.into_iter().filter(|(node, _, marker)| arena.heard(&unknown(node), *marker) > 0).map(|(_, what, _)| what).collect();
    Ok((sent, [arrived, came_in]))
}

/// The scene as the declared attacker sees it.
fn arena_scene(arena: &Arena, scene: &Scene) -> anyhow::Result<Scene> {
    let all = arena.scenes()?;
    all.into_iter().find(|it| it.node == scene.node && it.is_v4 == scene.is_v4).context("the scene is there")
}

/// What bridge and node know of the unknown interface: forwarding entries and neighbours.
fn learnt(arena: &Arena, node: &str) -> anyhow::Result<Vec<String>> {
    let inside = arena.site.namespace(node)?;
    let interface = format!("fbw{NUMBER}");
    let mut lines = Vec::new();
    if node == "bridged" {
        let listed = inside.output(&format!("bridge fdb show br br0 dev {interface}"))?;
        lines.extend(listed.lines().filter(|line| !line.contains("permanent")).map(str::to_owned));
    }
    let listed = inside.output(&format!("ip neigh show dev {interface}"))?;
    lines.extend(listed.lines().filter(|line| line.contains("lladdr")).map(str::to_owned));
    Ok(lines)
}

/// One connection of a friend that ends: where to, from which port, over what.
struct Line {
    node: &'static str,
    to: &'static str,
    ends: (IpAddr, IpAddr),
    ports: (u16, u16),
    is_tcp: bool,
}

#[test]
fn an_heir_cannot_go_on_with_the_connections_of_the_one_before() -> anyhow::Result<()> {
    let mut arena = Arena::start("bb", |_| String::new())?;
    for (node, _) in NODES {
        // Long enough for the next owner: the lab makes them short.
        for timeout in ["udp_timeout", "udp_timeout_stream"] {
            arena.site.namespace(node)?.sysctl(&format!("net.netfilter.nf_conntrack_{timeout}"), "120")?;
        }
    }
    let lines = connected(&arena)?;
    let mut manifests = String::new();
    for (node, _) in NODES {
        let friend = workload("friend", node);
        let old = arena.site.workload_of(&friend)?;
        let number = old.v4.octets()[3];
        // The interface goes before the sockets: nobody says goodbye.
        old.namespace.ip("link del eth0")?;
        drop(arena.site.end(&friend).context("it was there")?);
        let heir = heir(node);
        wait::until("the name of the interface to be free", Duration::from_secs(20), || arena.site.workload_at(node, &heir, number))?;
        arena.adopt(&heir)?;
        manifests += &arena.site.manifest(node, &heir, "app: heir", "")?;
    }
    let mut sent = speak(&arena, &lines, "unknown")?;
    arena.site.controller.apply(&manifests)?;
    arena.site.wait_enforced()?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        sent.extend(speak(&arena, &lines, "known")?);
        NODES.iter().try_for_each(|(node, _)| is_heard(&arena, node))?;
    }
    let wrong = arrived(&arena, &sent);
    ensure!(wrong.is_empty(), "{} of {} datagrams of a next owner arrived: {wrong:?}", wrong.len(), sent.len());
    arena.remove_enforcement()?;
    let sent = speak(&arena, &lines, "without enforcement")?;
    wait::until("everything to arrive without enforcement", Duration::from_secs(10), || {
        let count = arrived(&arena, &sent).len();
        // Also those that a neighbour had to be asked for first.
        speak(&arena, &lines, "again")?;
        ensure!(count * 2 > sent.len(), "{count} of {}", sent.len());
        Ok(())
    })?;
    Ok(())
}

fn heir(node: &str) -> String {
    format!("other/heir-{node}")
}

/// Every friend connects to both victims over TCP and UDP, and hears an answer.
fn connected(arena: &Arena) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (node, _) in NODES {
        for (to, _) in NODES {
            let (friend, victim) = (workload("friend", node), workload("victim", to));
            let ends = arena.site.addresses(&friend)?.into_iter().zip(arena.site.addresses(&victim)?);
            for ends in ends {
                let inside = arena.site.namespace(&friend)?;
                let port = inside.run(move || greet(ends.1))?.with_context(|| format!("{friend} to {victim} {}", ends.1))?;
                lines.push(Line { node, to, ends, ports: (port.0, 80), is_tcp: true });
                lines.push(Line { node, to, ends, ports: (port.1, 80), is_tcp: false });
            }
        }
    }
    Ok(lines)
}

/// Exchanges a word over TCP and UDP; gives the ports. The TCP connection stays open as far as anybody can tell.
fn greet(to: IpAddr) -> anyhow::Result<(u16, u16)> {
    let patience = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, 80), patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"word")?;
    stream.read_exact(&mut [0; 4])?;
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = std::net::UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(SocketAddr::new(to, 80))?;
    for _ in 0..2 {
        socket.send(b"word")?;
        socket.recv(&mut [0; 4])?;
    }
    let ports = (stream.local_addr()?.port(), socket.local_addr()?.port());
    Ok(ports)
}

/// The heirs send as if the connections were theirs.
fn speak(arena: &Arena, lines: &[Line], when: &'static str) -> anyhow::Result<Vec<(String, String, Marker)>> {
    let mut sent = Vec::new();
    for line in lines {
        let (name, victim, marker) = (heir(line.node), workload("victim", line.to), Marker::unique());
        let (from, to) = line.ends;
        let (protocol, body) = if line.is_tcp {
            (TCP, tcp(from, to, line.ports, PSH | ACK, (1, 1), &marker.bytes()))
        } else {
            (UDP, udp(from, to, line.ports, &marker.bytes()))
        };
        let me = arena.party(&name)?;
        let is_beside = line.node == line.to && arena.site.node(line.node)?.topology == Topology::Bridged;
        let way = if is_beside { arena.party(&victim)?.mac } else { arena.gateway(line.node, &name)?.mac };
        arena.send(&name, &[framed(way, me.mac, &packet(from, to, protocol, &body))])?;
        sent.push((victim, format!("{when}: {from} -> {to} {}", if line.is_tcp { "TCP" } else { "UDP" }), marker));
    }
    Ok(sent)
}

/// What the heir honestly sends to somebody arrives, after everything that it sent before.
fn is_heard(arena: &Arena, node: &str) -> anyhow::Result<()> {
    let attacker = workload("attacker", node);
    let (me, it) = (arena.party(&heir(node))?, arena.party(&attacker)?);
    let way = if node == "bridged" { it.mac } else { arena.gateway(node, &heir(node))?.mac };
    wait::until(&format!("an honest datagram from {} to {attacker}", heir(node)), Duration::from_secs(10), || {
        let marker = Marker::unique();
        let (from, to) = (me.v4.into(), it.v4.into());
        arena.send(&heir(node), &[framed(way, me.mac, &packet(from, to, UDP, &udp(from, to, (40_500, 80), &marker.bytes())))])?;
        wait::until("it to arrive", Duration::from_millis(100), || {
            ensure!(arena.heard(&attacker, marker) > 0, "it has not");
            Ok(())
        })
    })?;
    Ok(())
}

fn arrived(arena: &Arena, sent: &[(String, String, Marker)]) -> Vec<String> {
    sent.iter().filter(|(victim, _, marker)| arena.heard(victim, *marker) > 0).map(|(_, what, _)| what.clone()).collect()
}
