//! Established connections that a new generation forbids: ended within a second, not revived by anybody, told once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::follower::{Follower, Line};
use firebreak_tests::scaled;
use firebreak_tests::session::{Over, Session};
use firebreak_tests::site::Site;
use firebreak_tests::wait;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long after the change was enforced a connection may live (issue 3).
const BOUND: Duration = Duration::from_secs(1);

/// For how long it is watched that nothing comes back.
fn trying() -> Duration {
    Duration::from_secs(u64::try_from(scaled(15, 60)).unwrap())
}

fn segment(name: &str, spec: &str) -> String {
    format!("---\napiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n")
}

/// Nobody may reach db; neither end is isolated in the other direction.
fn close_db() -> String {
    segment("db", "appliesTo: {matchLabels: {app: db}}, ingress: []")
}

/// Two nodes with web, db and free each: `shop/web-bridged`, and so on.
fn site(area: &str) -> Site {
    let mut site = Site::with_two_nodes(area).unwrap();
    let mut manifests = String::new();
    for node in ["bridged", "routed"] {
        for app in ["web", "db", "free"] {
            manifests += &site.workload(node, &format!("shop/{app}-{node}"), &format!("app: {app}"), "").unwrap();
        }
    }
    site.start(&manifests).unwrap();
    site
}

/// Opens sessions over both families and both protocols; ports rise from the given one.
fn open(site: &Site, from: &str, to: &str, port: &mut u16) -> Vec<Session> {
    let mut sessions = Vec::new();
    for address in site.addresses(to).unwrap() {
        for over in [Over::Tcp, Over::Udp] {
            *port += 1;
            let (client, server) = (site.namespace(from).unwrap(), site.namespace(to).unwrap());
            let name = format!("{from} -> {to}");
            sessions.push(Session::start(&name, client, server, over, SocketAddr::new(address, *port), *port).unwrap());
        }
    }
    sessions
}

/// Makes both ends deaf to what would end their connections, so that they go on trying: an attacker's stacks.
fn ignore_endings(site: &Site, end: &str) {
    let inside = site.namespace(end).unwrap();
    inside.output("nft add table inet deaf").unwrap();
    inside.output("nft add chain inet deaf in { type filter hook input priority 0 ; }").unwrap();
    inside.output("nft add rule inet deaf in tcp flags rst drop").unwrap();
    inside.output("nft add rule inet deaf in icmp type destination-unreachable drop").unwrap();
    inside.output("nft add rule inet deaf in icmpv6 type destination-unreachable drop").unwrap();
}

/// The change has been enforced at `enforced`: the sessions have ended within the bound.
fn assert_ended(sessions: &[Session], begun: Instant, enforced: Instant) {
    // Longer than the bound, so that what lives is seen to.
    std::thread::sleep((BOUND + Duration::from_millis(700)).saturating_sub(enforced.elapsed()));
    let mut slowest = Duration::ZERO;
    for session in sessions {
        let last = session.last().unwrap();
        assert!(last <= enforced + BOUND, "{} lives", session.name);
        slowest = slowest.max(last.saturating_duration_since(begun));
    }
    println!("{} sessions: the last tick came {slowest:?} after the change was applied", sessions.len());
}

/// Nothing is heard for as long as it is tried, and the controls live.
fn assert_stay_ended(cut: &[Session], controls: &[Session]) {
    let heard: Vec<_> = cut.iter().map(Session::heard).collect();
    let lived: Vec<_> = controls.iter().map(Session::heard).collect();
    let begun = Instant::now();
    while begun.elapsed() < trying() {
        for (session, heard) in cut.iter().zip(&heard) {
            assert_eq!(session.heard(), *heard, "{} revived after {:?}", session.name, begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for (session, lived) in controls.iter().zip(lived) {
        let now = session.heard();
        assert!(now[0] > lived[0] && now[1] > lived[1], "the control {} has ended", session.name);
    }
}

fn is_of(record: &Value, session: &Session, from: IpAddr) -> bool {
    record["cut"].is_object()
        && record["sourcePort"] == session.from.port()
        && record["source"]["address"] == from.to_string()
        && record["transport"]["protocol"] == session.over.as_str()
}

/// One cut event for each session, and no other.
fn assert_told(follower: &Follower, site: &Site, sessions: &[Session], from: impl Fn(&Session) -> IpAddr) -> Vec<Line> {
    let cuts = || follower.matching(|record| record["cut"].is_object());
    wait::until("every cut to be told", Duration::from_secs(5), || {
        let cuts = cuts().len();
        anyhow::ensure!(cuts >= sessions.len(), "{cuts} of {}", sessions.len());
        Ok(())
    })
    .unwrap_or_else(|error| {
        let cuts = cuts();
        let missing = |session: &&Session| !cuts.iter().any(|line| is_of(&line.record, session, from(session)));
        let names: Vec<&str> = sessions.iter().filter(missing).map(|session| session.name.as_str()).collect();
        panic!("{error}; not told: {names:?}\n{}", site.controller.ask(&["flows", "--cuts"]).unwrap())
    });
    // A second word of the other node comes a little later at most.
    std::thread::sleep(Duration::from_secs(1));
    let cuts = cuts();
    for session in sessions {
        let of_it: Vec<_> = cuts.iter().filter(|line| is_of(&line.record, session, from(session))).collect();
        assert_eq!(of_it.len(), 1, "{}: {of_it:?}", session.name);
        let record = &of_it[0].record;
        assert!(record["cut"]["packetsSent"].as_u64().unwrap() >= 3 && record["cut"]["bytesReceived"].as_u64().unwrap() > 0, "{record}");
        assert!(record["generation"].as_u64().unwrap() > 0, "{record}");
    }
    assert_eq!(cuts.len(), sessions.len(), "{cuts:#?}");
    cuts
}

/// The address of the workload at the client's end of a session that nobody translates.
fn client_address(session: &Session) -> IpAddr {
    session.from.ip()
}

#[test]
fn forbidden_connections_end_within_a_second_do_not_come_back_and_are_told_once() {
    let site = site("k1");
    let follower = Follower::start(&site.controller, &["--cuts"]).unwrap();
    let mut port = 9_000;
    let (mut cut, mut controls) = (Vec::new(), Vec::new());
    for (from, to) in [("bridged", "bridged"), ("routed", "routed"), ("bridged", "routed"), ("routed", "bridged")] {
        cut.extend(open(&site, &format!("shop/web-{from}"), &format!("shop/db-{to}"), &mut port));
        // The other direction, which stays allowed: what revives would look like one of these.
        controls.extend(open(&site, &format!("shop/db-{to}"), &format!("shop/web-{from}"), &mut port));
        controls.extend(open(&site, &format!("shop/web-{from}"), &format!("shop/free-{to}"), &mut port));
    }
    for end in ["web-bridged", "web-routed", "db-bridged", "db-routed"] {
        ignore_endings(&site, &format!("shop/{end}"));
    }
    let begun = Instant::now();
    site.controller.apply(&close_db()).unwrap();
    assert_ended(&cut, begun, Instant::now());
    let told = assert_told(&follower, &site, &cut, client_address);
    for Line { record, .. } in &told {
        assert_eq!(record["direction"], "ingress", "{record}");
        assert_eq!(record["reason"]["isolatedBy"][0]["name"], "db", "{record}");
        assert_eq!(record["source"]["namespace"], "shop", "{record}");
        assert!(record["destination"]["workload"].as_str().unwrap().starts_with("db-"), "{record}");
    }
    assert_stay_ended(&cut, &controls);
}
