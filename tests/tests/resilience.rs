//! `kill -9` of everything at random moments while policy changes: nothing acknowledged is lost, nothing forbidden passes, nothing permitted stops.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::leak::{End, LeakChecker, Pair, probes_per_second};
use firebreak_tests::probe::Kind;
use firebreak_tests::shop::{Shop, policy, usual_policies};
use firebreak_tests::{scaled, wait};
use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A small generator: the seed is printed, so that a run can be repeated.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = std::env::var("FIREBREAK_SEED").ok().and_then(|it| it.parse().ok()).unwrap_or(u64::from(now.subsec_nanos()) | 1);
        println!("FIREBREAK_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        // xorshift64 (Marsaglia 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A policy about nobody who is probed.
fn bystander(number: usize) -> String {
    policy(
        &format!("bystander-{number}"),
        &format!(
            "  appliesTo: {{matchLabels: {{app: nobody-{number}}}}}\n  ingress:\n  - from: [{{workloads: {{matchLabels: {{app: web}}}}}}]"
        ),
    )
}

/// A policy about a probed workload that changes nothing for the probed pairs: another port of db.
fn harmless(number: usize) -> String {
    let port = 10_000 + number;
    policy(
        "harmless",
        &format!(
            "  appliesTo: {{matchLabels: {{app: db}}}}\n  ingress:\n  - from: [{{workloads: {{matchLabels: {{app: api}}}}}}]\n    ports: [{{protocol: TCP, port: {port}}}]"
        ),
    )
}

/// Probes of each sort that show something.
const ENOUGH: u64 = 500;

#[test]
fn kills_at_random_moments_lose_nothing_open_nothing_and_stop_nothing() {
    let kills = scaled(6, 30);
    let mut dice = Dice::new();
    let mut shop = Shop::start("fbr1").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    let permitted_pairs =
        vec![("web", "api", Kind::Tcp(80)), ("web", "api", Kind::Udp(80)), ("api", "db", Kind::Tcp(5432)), ("api", "db", Kind::Ping)];
    let forbidden_pairs = vec![
        ("web", "db", Kind::Tcp(5432)),
        ("stranger", "db", Kind::Udp(5432)),
        ("stranger", "db", Kind::Ping),
        ("web", "stranger", Kind::Udp(80)),
        ("db", "web", Kind::Udp(9000)),
    ];
    let end = |name: &str| {
        let workload = shop.workload(name);
        End { namespace: &workload.namespace, addresses: workload.addresses(), is_node: false }
    };
    let mut pairs = Vec::new();
    for (list, allowed) in [(&permitted_pairs, true), (&forbidden_pairs, false)] {
        pairs.extend(list.iter().map(|(from, to, kind)| Pair { from: (from, end(from)), to: (to, end(to)), kind: *kind, allowed }));
    }
    let checker = LeakChecker::start(&pairs, probes_per_second()).unwrap();
    let mut acknowledged = BTreeSet::new();
    let mut number = 0;
    let mut killed = [0_usize; 3];
    // On a fast machine the kills are over before enough was sent to tell.
    let too_few = || checker.sent().0 <= ENOUGH || checker.sent().1 <= ENOUGH;
    while killed.iter().any(|count| *count < kills) || too_few() {
        let victim = usize::try_from(dice.below(3)).unwrap();
        let at = Instant::now() + Duration::from_millis(dice.below(150));
        while Instant::now() < at {
            number += 1;
            // A change that was not acknowledged may be lost; one that was may not.
            if shop.controller.apply_quietly(&bystander(number)).is_ok() {
                acknowledged.insert(format!("bystander-{number}"));
            }
            let _ = shop.controller.apply_quietly(&harmless(number));
        }
        match victim {
            0 => {
                shop.controller.kill().unwrap();
                shop.controller.start_again(&shop.lab.core).unwrap();
            }
            _ => {
                let name = ["node-a", "node-b"][victim - 1];
                let agent = shop.agents.get_mut(name).unwrap();
                agent.kill().unwrap();
                agent.start_again(&shop.nodes[name]).unwrap();
            }
        }
        killed[victim] += 1;
    }
    let converged = shop.wait_enforced().unwrap();
    let (revision, _) = wait::until("the nodes to converge", Duration::from_secs(60), || {
        let nodes = shop.controller.ask_json(&["nodes", "-o", "json"])?;
        let items = nodes["items"].as_array().unwrap().clone();
        let target = items[0]["targetRevision"].as_u64().unwrap();
        anyhow::ensure!(
            items.len() == 2 && items.iter().all(|it| it["ackedRevision"] == target && it["connection"] == "Connected"),
            "{nodes}"
        );
        Ok(target)
    })
    .unwrap();
    let outcome = checker.stop().unwrap();
    let stored = shop.controller.ask(&["get", "sp", "-n", "shop", "-o", "name"]).unwrap();
    let stored: BTreeSet<&str> = stored.lines().filter_map(|line| line.strip_prefix("segmentpolicy/")).collect();
    let lost: Vec<&String> = acknowledged.iter().filter(|name| !stored.contains(name.as_str())).collect();
    println!(
        "killed controller, node-a, node-b: {killed:?}; {} acknowledged changes; converged in {converged:?} at revision {revision}",
        acknowledged.len()
    );
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    outcome.clean("kills at random moments", ENOUGH).unwrap();
}
