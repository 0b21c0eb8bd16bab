//! All groups: frames of the attacks with random damage.

use crate::arena::{Arena, workload};
use crate::identity::at_home;
use crate::moments::every_attack;
use crate::scene::Scene;
use anyhow::{Context as _, ensure};
use firebreak_tests::frames::Marker;
use firebreak_tests::frames::link::{SERVICE_VLAN, VLAN, tagged};
use firebreak_tests::random::SplitMix;
use firebreak_tests::scaled;
use std::time::SystemTime;

/// Frames between two of which the attacker waits for what it sent.
const BURST: usize = 200;

fn seed() -> anyhow::Result<u64> {
    match std::env::var("FIREBREAK_SEED") {
        Ok(seed) => seed.parse().with_context(|| format!("FIREBREAK_SEED={seed} is no number")),
        Err(_) => Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs()),
    }
}

#[test]
fn no_random_frame_reaches_an_isolated_neighbour() -> anyhow::Result<()> {
    let seed = seed()?;
    println!("again with FIREBREAK_SEED={seed}");
    let mut arena = Arena::start("bc", |_| String::new())?;
    let count = scaled(4_000, 200_000);
    let (sent, arrived) = shoot(&arena, &mut SplitMix::new(seed), count, |_| Ok(()))?;
    ensure!(arrived.is_empty(), "{} of {sent} random frames arrived: {}", arrived.len(), arrived.join("\n  "));
    arena.remove_enforcement()?;
    // Without enforcement the attacker has soon moved everybody's MAC address to its own port.
    let (without, arrived) = shoot(&arena, &mut SplitMix::new(seed), count.min(4_000), |scene| at_home(&arena, scene))?;
    println!("{sent} random frames: none arrived with enforcement, {} of {without} without", arrived.len());
    ensure!(arrived.len() * 10 > without, "too few arrive without enforcement to show anything: {} of {without}", arrived.len());
    Ok(())
}

/// Sends so many frames in all, with something to do after each burst; gives how many, and those that arrived at one who is isolated.
fn shoot(
    arena: &Arena,
    random: &mut SplitMix,
    count: usize,
    mend: impl Fn(&Scene) -> anyhow::Result<()>,
) -> anyhow::Result<(usize, Vec<String>)> {
    // What honest address resolution carries is no finding, and damage makes it of what is nearly that.
    let excluded = crate::neighbours::attacks();
    let attacks: Vec<_> = every_attack().into_iter().filter(|attack| excluded.iter().all(|it| it.name != attack.name)).collect();
    let scenes = arena.scenes()?;
    let (mut sent, mut arrived) = (0, Vec::new());
    while sent < count {
        for scene in &scenes {
            let mut flying = Vec::new();
            while flying.len() < BURST {
                let scene = Scene { marker: Marker::unique(), ..*scene };
                let frames = (attacks[random.below(attacks.len())].frames)(&scene);
                if frames.is_empty() {
                    continue;
                }
                let one = random.below(frames.len());
                let frame = damaged(random, &frames[one], &scene);
                // Not longer than the interface takes.
                if frame.len() <= 1514 {
                    flying.push((scene.marker, frame));
                }
            }
            let frames: Vec<Vec<u8>> = flying.iter().map(|(_, frame)| frame.clone()).collect();
            arena.send(&workload("attacker", scene.node), &frames)?;
            mend(scene)?;
            arena.settle(scene, &workload("attacker", scene.node))?;
            sent += flying.len();
            let isolated = ["victim", "bystander"].map(|app| workload(app, scene.node));
            let seen = flying.into_iter().filter(|(marker, _)| isolated.iter().any(|at| arena.heard(at, *marker) > 0));
            arrived.extend(seen.map(|(_, frame)| format!("{}: {}", scene.node, hex(&frame))));
        }
    }
    Ok((sent, arrived))
}

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The frame with up to four kinds of damage that leave its marker as it is.
fn damaged(random: &mut SplitMix, frame: &[u8], scene: &Scene) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for _ in 0..random.below(4) {
        let marker = frame.windows(8).position(|window| window == scene.marker.bytes());
        let at = random.below(frame.len());
        let is_marker = marker.is_some_and(|start| (start..start + 8).contains(&at));
        match random.below(8) {
            0 => frame = tagged(&frame, if random.below(2) == 0 { VLAN } else { SERVICE_VLAN }, u16::try_from(random.below(4)).unwrap()),
            1 => {
                let ways = [scene.victim.mac, scene.bystander.mac, scene.gateway.mac, scene.friend.mac, [0xff; 6]];
                frame[..6].copy_from_slice(&ways[random.below(ways.len())]);
            }
            2 => {
                let from = [scene.victim.mac, scene.friend.mac, scene.gateway.mac];
                frame[6..12].copy_from_slice(&from[random.below(from.len())]);
            }
            // A few low values, as they stand in headers.
            3 if !is_marker => frame[at] = u8::try_from(random.below(8)).unwrap(),
            // In the headers, where it matters.
            4 | 5 => {
                let at = 12 + random.below(42.min(frame.len() - 12));
                if marker.is_none_or(|start| !(start..start + 8).contains(&at)) {
                    frame[at] = u8::try_from(random.below(256)).unwrap();
                }
            }
            _ if !is_marker => frame[at] ^= 1 << random.below(8),
            _ => {}
        }
    }
    frame
}
