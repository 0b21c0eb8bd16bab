//! Two nodes, bridged and routed, with an attacker, a victim, its friend and a bystander on each; attacks are made on all of them at once.

use crate::attack::{Attack, Effect, Fate, Who};
use crate::identity::at_home;
use crate::scene::{Party, Scene};
use anyhow::{Context as _, ensure};
use firebreak_tests::frames::Marker;
use firebreak_tests::frames::internet::packet;
use firebreak_tests::frames::link::framed;
use firebreak_tests::frames::transport::{UDP, udp};
use firebreak_tests::frames::wire::{Sender, Sniffer, read_interface};
use firebreak_tests::lab::Topology;
use firebreak_tests::site::Site;
use firebreak_tests::wait;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

pub(crate) const NODES: [(&str, Topology); 2] = [("bridged", Topology::Bridged), ("routed", Topology::Routed)];
const APPS: [&str; 4] = ["attacker", "victim", "friend", "bystander"];

/// How long something that is to be seen may take.
const SOON: Duration = Duration::from_secs(20);
/// How long an effect is waited for: far longer than the kernel needs to hand a frame on, short enough for those that stay out.
const EFFECT: Duration = Duration::from_millis(100);

/// Frames between two of which the attacker waits for what it sent: fewer than the kernel's input queue takes (net.core.netdev_max_backlog).
const BURST: usize = 256;

/// Where attacks are made, and on whom.
pub(crate) struct Arena {
    pub(crate) site: Site,
    sniffers: BTreeMap<String, Sniffer>,
    senders: BTreeMap<String, Sender>,
}

/// An attack in one scene, and whether it succeeded.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) attack: usize,
    pub(crate) place: String,
    pub(crate) succeeded: bool,
    pub(crate) frames: usize,
}

/// `shop/victim-bridged`.
pub(crate) fn workload(app: &str, node: &str) -> String {
    format!("shop/{app}-{node}")
}

/// victim lets in only friend, bystander nobody; nobody's egress is isolated, the hard case.
pub(crate) fn policies() -> String {
    let segment = |name: &str, ingress: &str| {
        format!(
            "---\napiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{appliesTo: {{matchLabels: {{app: {name}}}}}, ingress: [{ingress}]}}\n"
        )
    };
    segment("victim", "{from: [{workloads: {matchLabels: {app: friend}}}]}") + &segment("bystander", "")
}

impl Arena {
    /// Everything started and enforced; the calling thread stays on one CPU from here on, whose queue keeps frames in order. `spec` gives more of a victim's manifest, by node.
    pub(crate) fn start(area: &str, spec: fn(&str) -> String) -> anyhow::Result<Self> {
        let mut site = Site::with_two_nodes(area)?;
        let mut manifests = String::new();
        for (node, _) in NODES {
            for app in APPS {
                let spec = if app == "victim" { spec(node) } else { String::new() };
                manifests += &site.workload(node, &workload(app, node), &format!("app: {app}"), &spec)?;
            }
        }
        site.start_with(&manifests, &["--midstream-grace", "0"])?;
        site.controller.apply(&policies())?;
        let mut arena = Self { site, sniffers: BTreeMap::new(), senders: BTreeMap::new() };
        for (node, _) in NODES {
            for app in APPS {
                let name = workload(app, node);
                let inside = arena.site.namespace(&name)?;
                let (sniffer, sender) = (Sniffer::start(inside)?, Sender::open(inside, "eth0")?);
                // An ARP entry is not overridden within a second of its last change. An attacker would wait; a test need not.
                inside.sysctl("net.ipv4.neigh.eth0.locktime", "0")?;
                arena.sniffers.insert(name.clone(), sniffer);
                arena.senders.insert(name, sender);
            }
        }
        arena.site.namespace("bridged")?.sysctl("net.ipv4.neigh.br0.locktime", "0")?;
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut one = CpuSet::new();
        let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).context("no CPU")?;
        one.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        Ok(arena)
    }

    /// What an attacker knows.
    pub(crate) fn scenes(&self) -> anyhow::Result<Vec<Scene>> {
        let mut scenes = Vec::new();
        for (node, topology) in NODES {
            let other = if node == "bridged" { "routed" } else { "bridged" };
            for is_v4 in [true, false] {
                scenes.push(Scene {
                    node,
                    topology,
                    is_v4,
                    marker: Marker::unique(),
                    attacker: self.party(&workload("attacker", node))?,
                    victim: self.party(&workload("victim", node))?,
                    friend: self.party(&workload("friend", node))?,
                    bystander: self.party(&workload("bystander", node))?,
                    gateway: self.gateway(node, &workload("attacker", node))?,
                    remote_friend: self.party(&workload("friend", other))?,
                    uplink: self.site.addresses(node)?,
                });
            }
        }
        Ok(scenes)
    }

    /// An end.
    pub(crate) fn party(&self, name: &str) -> anyhow::Result<Party> {
        let workload = self.site.workload_of(name)?;
        let interface = read_interface(&workload.namespace, "eth0")?;
        let link_local = interface.link_local.with_context(|| format!("{name} has no link-local address"))?;
        Ok(Party { mac: interface.mac, v4: workload.v4, v6: workload.v6, link_local })
    }

    /// The node as this workload of it knows it.
    pub(crate) fn gateway(&self, node: &str, from: &str) -> anyhow::Result<Party> {
        let workload = self.site.workload_of(from)?;
        let name = match self.site.node(node)?.topology {
            Topology::Bridged => "br0",
            Topology::Routed => &workload.interface,
        };
        let interface = read_interface(self.site.namespace(node)?, name)?;
        let [a, b, c, _] = workload.v4.octets();
        let [s, t, ..] = workload.v6.segments();
        Ok(Party {
            mac: interface.mac,
            v4: [a, b, c, 254].into(),
            v6: [s, t, 0, 0, 0, 0, 0, 0xfe].into(),
            link_local: interface.link_local.context("the node has no link-local address")?,
        })
    }

    /// Sends from a workload.
    pub(crate) fn send(&self, from: &str, frames: &[Vec<u8>]) -> anyhow::Result<()> {
        let sender = self.senders.get(from).with_context(|| format!("no sender in {from}"))?;
        frames.iter().try_for_each(|frame| sender.send(frame))
    }

    /// Lets a further workload send and be heard.
    pub(crate) fn adopt(&mut self, name: &str) -> anyhow::Result<()> {
        let inside = self.site.namespace(name)?;
        let (sniffer, sender) = (Sniffer::start(inside)?, Sender::open(inside, "eth0")?);
        self.sniffers.insert(name.to_owned(), sniffer);
        self.senders.insert(name.to_owned(), sender);
        Ok(())
    }

    /// How often a marker arrived.
    pub(crate) fn heard(&self, at: &str, marker: Marker) -> u64 {
        self.sniffers.get(at).map_or(0, |sniffer| sniffer.heard(marker))
    }

    /// From here on without enforcement.
    pub(crate) fn remove_enforcement(&mut self) -> anyhow::Result<()> {
        self.site.uninstall()
    }

    /// Honest frames from this workload to friend, in one piece and in fragments, until both have arrived: everything that was sent before has then
    /// been decided, and the interface is not just dead.
    pub(crate) fn settle(&self, scene: &Scene, from: &str) -> anyhow::Result<()> {
        let friend = workload("friend", scene.node);
        let (me, it) = (scene.me(), scene.ip(&scene.friend));
        let way = if scene.is_bridged() { scene.friend.mac } else { scene.gateway.mac };
        let frames = |marker: Marker, id: u16| {
            let datagram = udp(me, it, (40_001, 80), &[[0; 8], [0; 8], marker.bytes(), [0; 8]].concat());
            let mut packets = vec![packet(me, it, UDP, &datagram)];
            packets.extend(firebreak_tests::frames::internet::fragments(me, it, UDP, &datagram, 24, id));
            packets.iter().map(|packet| framed(way, scene.attacker.mac, packet)).collect::<Vec<_>>()
        };
        let mut id = 0;
        wait::until(&format!("an honest datagram from {from} to {friend} ({it})"), SOON, || {
            id += 1;
            let marker = Marker::unique();
            self.send(from, &frames(marker, id))?;
            // A datagram that is lost while a neighbour is asked for is sent again.
            wait::until("it to arrive", Duration::from_millis(250), || {
                ensure!(self.heard(&friend, marker) >= 2, "heard {} times", self.heard(&friend, marker));
                Ok(())
            })
        })?;
        self.catch_up()
    }

    /// Until everything that has arrived anywhere has been counted.
    fn catch_up(&self) -> anyhow::Result<()> {
        let marks = self.sniffers.values().map(|sniffer| Ok((sniffer, sniffer.mark()?))).collect::<anyhow::Result<Vec<_>>>()?;
        wait::until("the sniffers to have counted everything", SOON, || {
            ensure!(marks.iter().all(|(sniffer, mark)| sniffer.heard(*mark) > 0), "one is behind");
            Ok(())
        })?;
        Ok(())
    }

    /// Makes every attack in every scene.
    pub(crate) fn run(&self, attacks: &[Attack]) -> anyhow::Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for scene in self.scenes()? {
            at_home(self, &scene)?;
            outcomes.extend(self.arrivals(&scene, attacks)?);
            outcomes.extend(self.effects(&scene, attacks)?);
        }
        Ok(outcomes)
    }

    /// All frames first, then what arrived.
    fn arrivals(&self, scene: &Scene, attacks: &[Attack]) -> anyhow::Result<Vec<Outcome>> {
        let attacker = workload("attacker", scene.node);
        let mut sent = Vec::new();
        let mut since = 0;
        for (number, attack) in attacks.iter().enumerate() {
            let Effect::Arrives(who) = attack.effect else { continue };
            let scene = Scene { marker: Marker::unique(), ..*scene };
            let frames = (attack.frames)(&scene);
            if frames.is_empty() {
                continue;
            }
            self.send(&attacker, &frames).with_context(|| attack.name.clone())?;
            since += frames.len();
            if since >= BURST {
                self.settle(&scene, &attacker)?;
                since = 0;
            }
            sent.push((number, scene.marker, who, frames.len()));
        }
        if sent.is_empty() {
            return Ok(Vec::new());
        }
        self.settle(scene, &attacker)?;
        let arrived = |marker: Marker, who: &[Who]| who.iter().any(|who| self.heard(&name(*who, scene), marker) > 0);
        Ok(sent
            .into_iter()
            .map(|(attack, marker, who, frames)| Outcome { attack, place: place(scene), succeeded: arrived(marker, who), frames })
            .collect())
    }

    /// One after the other: an effect must not come from another attack.
    fn effects(&self, scene: &Scene, attacks: &[Attack]) -> anyhow::Result<Vec<Outcome>> {
        let attacker = workload("attacker", scene.node);
        let mut outcomes = Vec::new();
        for (number, attack) in attacks.iter().enumerate() {
            let Effect::Shows(prepare, done) = attack.effect else { continue };
            let scene = Scene { marker: Marker::unique(), ..*scene };
            let frames = (attack.frames)(&scene);
            if frames.is_empty() {
                continue;
            }
            prepare(self, &scene).with_context(|| format!("{}: cannot prepare", attack.name))?;
            ensure!(!done(self, &scene)?, "{}, {}: the effect is there before the attack", attack.name, place(&scene));
            self.send(&attacker, &frames).with_context(|| attack.name.clone())?;
            // What is decided is decided; what the receivers make of it is seen at once, and may be gone again when they speak themselves.
            let succeeded = wait::until("the effect", EFFECT, || {
                ensure!(done(self, &scene)?, "it is not there");
                Ok(())
            })
            .is_ok();
            self.settle(&scene, &attacker)?;
            outcomes.push(Outcome { attack: number, place: place(&scene), succeeded, frames: frames.len() });
        }
        Ok(outcomes)
    }
}

fn place(scene: &Scene) -> String {
    format!("{}/{}", scene.node, if scene.is_v4 { "IPv4" } else { "IPv6" })
}

fn name(who: Who, scene: &Scene) -> String {
    let other = if scene.is_bridged() { "routed" } else { "bridged" };
    match who {
        Who::Victim => workload("victim", scene.node),
        Who::Friend => workload("friend", scene.node),
        Who::Bystander => workload("bystander", scene.node),
        Who::RemoteVictim => workload("victim", other),
    }
}

/// Makes the attacks with enforcement and without, and holds them against their fates.
pub(crate) fn try_all(area: &str, attacks: &[Attack]) -> anyhow::Result<()> {
    let mut arena = Arena::start(area, |_| String::new())?;
    try_in(&mut arena, attacks)
}

/// The same in an arena of the caller's.
pub(crate) fn try_in(arena: &mut Arena, attacks: &[Attack]) -> anyhow::Result<()> {
    let on = arena.run(attacks)?;
    arena.remove_enforcement()?;
    let off = arena.run(attacks)?;
    judge(attacks, &on, &off)
}

/// Says what came of each attack, and fails with all that went otherwise.
pub(crate) fn judge(attacks: &[Attack], on: &[Outcome], off: &[Outcome]) -> anyhow::Result<()> {
    let places = |outcomes: &[Outcome], number: usize| -> Vec<String> {
        outcomes.iter().filter(|it| it.attack == number && it.succeeded).map(|it| it.place.clone()).collect()
    };
    let mut wrong = Vec::new();
    let mut shown = 0;
    for (number, attack) in attacks.iter().enumerate() {
        let (with, without) = (places(on, number), places(off, number));
        ensure!(on.iter().any(|it| it.attack == number), "{} has frames in no scene", attack.name);
        match attack.fate {
            Fate::Stopped if !with.is_empty() => wrong.push(format!("{}: SUCCEEDS on {}", attack.name, with.join(", "))),
            Fate::Stopped if without.is_empty() => {
                wrong.push(format!("{}: does not succeed without enforcement: a test that cannot fail", attack.name))
            }
            Fate::Stopped => shown += 1,
            Fate::Harmless(because) => {
                println!("harmless: {}: {because}", attack.name);
                if !with.is_empty() || !without.is_empty() {
                    wrong.push(format!("{}: said to be harmless, but succeeds: with {with:?}, without {without:?}", attack.name));
                }
            }
            Fate::Remains(because) => {
                println!("remains: {}: {because}", attack.name);
                if with.is_empty() {
                    wrong.push(format!("{}: said to remain, but is stopped: take it out of docs/threat-model.md", attack.name));
                }
            }
        }
    }
    let frames: usize = on.iter().map(|it| it.frames).sum();
    println!(
        "{} attacks in {} scenes, {frames} frames: {shown} stopped, each seen to succeed without enforcement",
        attacks.len(),
        on.len()
    );
    ensure!(wrong.is_empty(), "{} of {}:\n  {}", wrong.len(), attacks.len(), wrong.join("\n  "));
    Ok(())
}

/// A neighbour's entry in a namespace: the MAC address that this address has there.
pub(crate) fn neighbour(arena: &Arena, at: &str, address: IpAddr) -> anyhow::Result<Option<String>> {
    let listed: serde_json::Value = serde_json::from_str(&arena.site.namespace(at)?.output(&format!("ip -j neigh show to {address}"))?)?;
    Ok(listed.as_array().into_iter().flatten().find_map(|entry| entry["lladdr"].as_str().map(str::to_owned)))
}
