//! Group 1: what ARP and neighbour discovery make others believe.

use crate::arena::{Arena, neighbour, try_all, workload};
use crate::attack::{Attack, Who, attack};
use crate::scene::Scene;
use firebreak_tests::frames::Mac;
use firebreak_tests::frames::internet::with_hops;
use firebreak_tests::frames::link::{ARP, BROADCAST, VLAN, arp, ethernet, framed, tagged};
use firebreak_tests::frames::transport::{ICMP6, about, icmp, option};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[test]
fn no_neighbour_is_made_to_believe_that_an_address_is_the_attacker_s() -> anyhow::Result<()> {
    try_all("b2", &attacks())
}

const ASK: u16 = 1;
const ANSWER: u16 = 2;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Override, unsolicited.
const OVERRIDE: [u8; 4] = [0x20, 0, 0, 0];
const SOLICITED: [u8; 4] = [0x60, 0, 0, 0];
const NOBODY: Mac = [0; 6];

/// Believes of friend what is so, and has had it confirmed lately.
fn believes_the_truth(arena: &Arena, scene: &Scene) -> anyhow::Result<()> {
    let hex: Vec<String> = scene.friend.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let victim = arena.site.namespace(&workload("victim", scene.node))?;
    let friend = scene.ip(&scene.friend);
    victim.ip(&format!("neigh replace {friend} lladdr {} dev eth0 nud stale", hex.join(":")))?;
    if scene.is_bridged() {
        arena.site.namespace(scene.node)?.ip(&format!("neigh replace {friend} lladdr {} dev br0 nud stale", hex.join(":")))?;
    }
    Ok(())
}

fn victim_believes(arena: &Arena, scene: &Scene) -> anyhow::Result<bool> {
    believes(arena, scene, &workload("victim", scene.node))
}

fn node_believes(arena: &Arena, scene: &Scene) -> anyhow::Result<bool> {
    // Where workloads are routed, the node asks its routing table for the interface first, and a neighbour on another one does not matter.
    if scene.is_bridged() { believes(arena, scene, scene.node) } else { Ok(false) }
}

fn believes(arena: &Arena, scene: &Scene, at: &str) -> anyhow::Result<bool> {
    let attacker: Vec<String> = scene.attacker.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(neighbour(arena, at, scene.ip(&scene.friend))?.is_some_and(|mac| mac == attacker.join(":")))
}

/// An ARP packet with what is behind it in the frame.
fn says(scene: &Scene, way: Mac, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr), more: &[u8]) -> Vec<Vec<u8>> {
    if !scene.is_v4 {
        return vec![];
    }
    vec![ethernet(way, scene.attacker.mac, ARP, &[&arp(operation, sender, target), more].concat())]
}

/// A neighbour discovery message with hop limit 255, as it must have.
fn discovers(scene: &Scene, way: Mac, ends: (Ipv6Addr, Ipv6Addr), kind: u8, word: [u8; 4], body: &[u8]) -> Vec<Vec<u8>> {
    if scene.is_v4 {
        return vec![];
    }
    let (from, to): (IpAddr, IpAddr) = (ends.0.into(), ends.1.into());
    vec![framed(way, scene.attacker.mac, &with_hops(from, to, ICMP6, 255, &icmp(from, to, kind, 0, word, body)))]
}

fn all_nodes() -> (Mac, Ipv6Addr) {
    ([0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse().unwrap())
}

/// An unknown option (RFC 4727) with the marker.
fn marked(scene: &Scene) -> Vec<u8> {
    option(253, &[&[0; 6][..], &scene.text()].concat())
}

pub(crate) fn attacks() -> Vec<Attack> {
    [arp_attacks(), discovery_attacks(), channels()].into_iter().flatten().collect()
}

fn arp_attacks() -> Vec<Attack> {
    let shown = |attack: Attack| attack.shows(believes_the_truth, victim_believes);
    vec![
        shown(attack("an ARP answer that nobody asked for", |s| {
            says(s, s.victim.mac, ANSWER, (s.attacker.mac, s.friend.v4), (s.victim.mac, s.victim.v4), &[])
        })),
        shown(attack("a gratuitous ARP answer to everybody", |s| {
            says(s, BROADCAST, ANSWER, (s.attacker.mac, s.friend.v4), (BROADCAST, s.friend.v4), &[])
        })),
        shown(attack("a gratuitous ARP request to everybody", |s| {
            says(s, BROADCAST, ASK, (s.attacker.mac, s.friend.v4), (NOBODY, s.friend.v4), &[])
        })),
        shown(attack("an ARP request under another's address", |s| {
            says(s, s.victim.mac, ASK, (s.attacker.mac, s.friend.v4), (NOBODY, s.victim.v4), &[])
        })),
        shown(attack("an ARP answer in a frame with a priority tag", |s| {
            let frames = says(s, s.victim.mac, ANSWER, (s.attacker.mac, s.friend.v4), (s.victim.mac, s.victim.v4), &[]);
            frames.iter().map(|frame| tagged(frame, VLAN, 0)).collect()
        })),
        attack("an ARP answer to the node", |s| {
            says(s, s.gateway.mac, ANSWER, (s.attacker.mac, s.friend.v4), (s.gateway.mac, s.gateway.v4), &[])
        })
        .shows(believes_the_truth, node_believes),
        attack("an ARP answer in a frame under the other's MAC address", |s| {
            let packet = arp(ANSWER, (s.attacker.mac, s.friend.v4), (s.victim.mac, s.victim.v4));
            if s.is_v4 { vec![ethernet(s.victim.mac, s.friend.mac, ARP, &packet)] } else { vec![] }
        })
        .shows(believes_the_truth, victim_believes),
        attack("an ARP answer about the node's address", |s| {
            says(s, s.victim.mac, ANSWER, (s.attacker.mac, s.gateway.v4), (s.victim.mac, s.victim.v4), &s.text())
        }),
        attack("an ARP packet of another hardware type", |s| {
            let frames = says(s, s.victim.mac, ASK, (s.attacker.mac, s.attacker.v4), (NOBODY, s.victim.v4), &s.text());
            frames
                .into_iter()
                .map(|mut frame| {
                    frame[15] = 6;
                    frame
                })
                .collect()
        }),
        attack("an ARP packet of another operation, under another's address", |s| {
            says(s, s.victim.mac, 8, (s.attacker.mac, s.friend.v4), (NOBODY, s.victim.v4), &s.text())
        }),
        attack("an ARP request with a message of 64 bytes behind it", |s| {
            says(s, s.victim.mac, ASK, (s.attacker.mac, s.attacker.v4), (NOBODY, s.victim.v4), &[&[0; 56][..], &s.text()].concat())
        }),
        attack("an ARP request for another's address, to an isolated neighbour", |s| {
            says(s, s.victim.mac, ASK, (s.attacker.mac, s.attacker.v4), (NOBODY, s.friend.v4), &s.text())
        }),
    ]
}

fn discovery_attacks() -> Vec<Attack> {
    let shown = |attack: Attack| attack.shows(believes_the_truth, victim_believes);
    vec![
        shown(attack("a neighbour advertisement that overrides", |s| {
            let body = about(s.friend.v6, &[option(2, &s.attacker.mac)]);
            discovers(s, s.victim.mac, (s.friend.v6, s.victim.v6), ADVERTISEMENT, OVERRIDE, &body)
        })),
        shown(attack("a neighbour advertisement about another under its own address", |s| {
            let body = about(s.friend.v6, &[option(2, &s.attacker.mac)]);
            discovers(s, s.victim.mac, (s.attacker.v6, s.victim.v6), ADVERTISEMENT, SOLICITED, &body)
        })),
        shown(attack("a neighbour advertisement under its own link-local address", |s| {
            let body = about(s.friend.v6, &[option(2, &s.attacker.mac)]);
            discovers(s, s.victim.mac, (s.attacker.link_local, s.victim.link_local), ADVERTISEMENT, SOLICITED, &body)
        })),
        shown(attack("an unsolicited neighbour advertisement to everybody", |s| {
            let (mac, group) = all_nodes();
            let body = about(s.friend.v6, &[option(2, &s.attacker.mac)]);
            discovers(s, mac, (s.friend.v6, group), ADVERTISEMENT, OVERRIDE, &body)
        })),
        shown(attack("a neighbour solicitation under another's address", |s| {
            let body = about(s.victim.v6, &[option(1, &s.attacker.mac)]);
            discovers(s, s.victim.mac, (s.friend.v6, s.victim.v6), SOLICITATION, [0; 4], &body)
        })),
        shown(attack("a neighbour advertisement in a frame with a priority tag", |s| {
            let body = about(s.friend.v6, &[option(2, &s.attacker.mac)]);
            let frames = discovers(s, s.victim.mac, (s.friend.v6, s.victim.v6), ADVERTISEMENT, OVERRIDE, &body);
            frames.iter().map(|frame| tagged(frame, VLAN, 0)).collect()
        })),
        attack("a neighbour advertisement to the node", |s| {
            let body = about(s.friend.v6, &[option(2, &s.attacker.mac)]);
            discovers(s, s.gateway.mac, (s.friend.v6, s.gateway.v6), ADVERTISEMENT, OVERRIDE, &body)
        })
        .shows(believes_the_truth, node_believes),
        attack("a neighbour advertisement about the node", |s| {
            let body = about(s.gateway.v6, &[option(2, &s.attacker.mac), marked(s)]);
            discovers(s, s.victim.mac, (s.attacker.v6, s.victim.v6), ADVERTISEMENT, OVERRIDE, &body)
        }),
        attack("duplicate address detection for the victim's address", |s| {
            discovers(s, s.victim.mac, (Ipv6Addr::UNSPECIFIED, s.victim.v6), SOLICITATION, [0; 4], &about(s.victim.v6, &[marked(s)]))
        }),
        attack("a neighbour solicitation with a message of 128 bytes in it", |s| {
            let long = option(253, &[&[0; 118][..], &s.text()].concat());
            discovers(s, s.victim.mac, (s.attacker.v6, s.victim.v6), SOLICITATION, [0; 4], &about(s.victim.v6, &[long]))
        }),
        attack("a neighbour solicitation about another, to an isolated neighbour", |s| {
            let (mac, group) = all_nodes();
            discovers(s, mac, (s.attacker.v6, group), SOLICITATION, [0; 4], &about(s.friend.v6, &[marked(s)]))
        })
        .at(&[Who::Victim, Who::Bystander]),
    ]
}

/// What honest address resolution carries with it.
fn channels() -> Vec<Attack> {
    const ANSWERED: &str =
        "neighbours answer whatever the policy, or an allowed connection could not begin; 18 bytes of padding come along";
    const OPTIONS: &str =
        "neighbours answer whatever the policy, or an allowed connection could not begin; some 40 bytes of options come along";
    vec![
        attack("eight bytes in the padding of an honest ARP request", |s| {
            says(s, s.victim.mac, ASK, (s.attacker.mac, s.attacker.v4), (NOBODY, s.victim.v4), &s.text())
        })
        .remains(ANSWERED),
        attack("eight bytes in an option of an honest neighbour solicitation", |s| {
            discovers(s, s.victim.mac, (s.attacker.v6, s.victim.v6), SOLICITATION, [0; 4], &about(s.victim.v6, &[marked(s)]))
        })
        .remains(OPTIONS),
    ]
}
