//! `kill -9` of everything at random moments while policy changes: nothing acknowledged is lost, nothing forbidden passes, nothing permitted stops.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::leak::LeakChecker;
use firebreak_tests::namespace::Namespace;
use firebreak_tests::probe::Kind;
use firebreak_tests::shop::{Shop, policy, usual_policies};
use firebreak_tests::witness::Witness;
use firebreak_tests::{scaled, wait};
use std::collections::BTreeSet;
use std::net::IpAddr;
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
    let ends = |from: &str, to: &str| -> Vec<(&Namespace, IpAddr)> {
        shop.workload(to).addresses().into_iter().map(|address| (&shop.workload(from).namespace, address)).collect()
    };
    let with = |pairs: Vec<(&'static str, &'static str, Kind)>| -> Vec<(&Namespace, IpAddr, Kind)> {
        pairs.into_iter().flat_map(|(from, to, kind)| ends(from, to).into_iter().map(move |(at, address)| (at, address, kind))).collect()
    };
    let permitted_pairs =
        vec![("web", "api", Kind::Tcp(80)), ("web", "api", Kind::Udp(80)), ("api", "db", Kind::Tcp(5432)), ("api", "db", Kind::Ping)];
    let forbidden_pairs = vec![
        ("web", "db", Kind::Tcp(5432)),
        ("stranger", "db", Kind::Udp(5432)),
        ("stranger", "db", Kind::Ping),
        ("web", "stranger", Kind::Udp(80)),
        ("db", "web", Kind::Udp(9000)),
    ];
    // The senders count answers; the receivers' kernels count arrivals, those that come late and those that nobody answers too.
    let watched: Vec<_> = permitted_pairs
        .iter()
        .chain(&forbidden_pairs)
        .map(|(from, to, kind)| (&shop.workloads[from], &shop.workloads[to], *kind))
        .collect();
    let witness = Witness::start(&watched).unwrap();
    let arrivals_permitted = permitted_pairs.len() * 2;
    let (permitted, forbidden) = (with(permitted_pairs), with(forbidden_pairs));
    let checker = LeakChecker::start(&permitted, &forbidden, Duration::from_millis(4)).unwrap();
    let mut acknowledged = BTreeSet::new();
    let mut number = 0;
    let mut killed = [0_usize; 3];
    // On a fast machine the kills are over before enough was sent to tell.
    let too_few = || checker.counts().permitted <= ENOUGH || checker.counts().forbidden <= ENOUGH;
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
    let counts = checker.stop().unwrap();
    let arrivals = witness.arrivals().unwrap();
    let stored = shop.controller.ask(&["get", "sp", "-n", "shop", "-o", "name"]).unwrap();
    let stored: BTreeSet<&str> = stored.lines().filter_map(|line| line.strip_prefix("segmentpolicy/")).collect();
    let lost: Vec<&String> = acknowledged.iter().filter(|name| !stored.contains(name.as_str())).collect();
    println!(
        "killed controller, node-a, node-b: {killed:?}; {} acknowledged changes; converged in {converged:?} at revision {revision}; {counts:?}",
        acknowledged.len()
    );
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(counts.permitted > ENOUGH && counts.forbidden > ENOUGH, "too few probes to tell: {counts:?}");
    assert_eq!(counts.passed, 0, "forbidden probes passed: {counts:?}");
    assert_eq!(counts.refused, 0, "permitted probes failed: {counts:?}");
    let (seen, leaked) = arrivals.split_at(arrivals_permitted);
    assert!(seen.iter().all(|(_, packets)| *packets > 50), "the witnesses do not see: {seen:?}");
    let leaked: Vec<String> =
        leaked.iter().filter(|(_, packets)| *packets > 0).map(|(sight, packets)| format!("{sight}: {packets}")).collect();
    assert!(leaked.is_empty(), "forbidden packets arrived: {leaked:?}");
}
