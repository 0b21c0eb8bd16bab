//! Established connections that a new generation forbids: ended within a second, not revived by anybody, told once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::conntrack;
use firebreak_tests::follower::{Follower, Line};
use firebreak_tests::scaled;
use firebreak_tests::sctp::{self, Association, Chunks};
use firebreak_tests::session::{Over, Session};
use firebreak_tests::site::Site;
use firebreak_tests::wait;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

/// How long after the change was enforced a connection may live (issue 3).
const BOUND: Duration = Duration::from_secs(1);

/// For how long it is watched that nothing comes back.
fn trying() -> Duration {
    Duration::from_secs(u64::try_from(scaled(5, 60)).unwrap())
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

/// Opens sessions of echoes over both families; identifiers rise from the given one.
fn pings(site: &Site, from: &str, to: &str, identifier: &mut u16) -> Vec<Session> {
    let open = |address| {
        *identifier += 1;
        let (client, server) = (site.namespace(from).unwrap(), site.namespace(to).unwrap());
        Session::start(&format!("{from} -> {to}"), client, server, Over::Ping, SocketAddr::new(address, 7), *identifier).unwrap()
    };
    site.addresses(to).unwrap().map(open).into()
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
        && record["transport"]["protocol"] == session.over.protocol(session.to.is_ipv4())
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

/// Whether the rules of a node pass by what asks for the label of cut connections.
fn passes_by(site: &Site, node: &str) -> bool {
    let listed = site.node(node).unwrap().namespace.output("nft list chain inet firebreak forward").unwrap();
    listed.lines().any(|line| line.trim() == "ct state established accept")
}

/// Nothing is cut here, and the rules know.
fn wait_until_rules_pass_by(site: &Site) {
    for node in ["bridged", "routed"] {
        wait::until("two looks that find nothing cut", Duration::from_secs(20), || {
            anyhow::ensure!(passes_by(site, node), "the rules of {node} ask");
            Ok(())
        })
        .unwrap();
    }
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
    wait_until_rules_pass_by(&site);
    let begun = Instant::now();
    site.controller.apply(&close_db()).unwrap();
    assert_ended(&cut, begun, Instant::now());
    assert!(!passes_by(&site, "bridged") && !passes_by(&site, "routed"), "rules pass by labels that were set");
    let told = assert_told(&follower, &site, &cut, client_address);
    for Line { record, .. } in &told {
        assert_eq!(record["direction"], "ingress", "{record}");
        assert_eq!(record["reason"]["isolatedBy"][0]["name"], "db", "{record}");
        assert_eq!(record["source"]["namespace"], "shop", "{record}");
        assert!(record["destination"]["workload"].as_str().unwrap().starts_with("db-"), "{record}");
    }
    assert_stay_ended(&cut, &controls);
}

#[test]
fn what_was_cut_does_not_come_back_when_somebody_deletes_its_entry() {
    let site = site("k2");
    let mut port = 9_000;
    let (mut cut, mut controls) = (Vec::new(), Vec::new());
    for (from, to) in [("bridged", "bridged"), ("routed", "routed"), ("bridged", "routed")] {
        cut.extend(open(&site, &format!("shop/web-{from}"), &format!("shop/db-{to}"), &mut port));
        controls.extend(open(&site, &format!("shop/db-{to}"), &format!("shop/web-{from}"), &mut port));
    }
    for end in ["web-bridged", "web-routed", "db-bridged", "db-routed"] {
        ignore_endings(&site, &format!("shop/{end}"));
    }
    let begun = Instant::now();
    site.controller.apply(&close_db()).unwrap();
    assert_ended(&cut, begun, Instant::now());
    for node in ["bridged", "routed"] {
        conntrack::flush(site.namespace(node).unwrap()).unwrap();
    }
    assert_stay_ended(&cut, &controls);
    // Once more, after what they sent meanwhile was refused.
    for node in ["bridged", "routed"] {
        conntrack::flush(site.namespace(node).unwrap()).unwrap();
    }
    assert_stay_ended(&cut, &controls);
}

#[test]
fn connections_with_the_node_itself_are_cut_too() {
    let site = site("k3");
    let follower = Follower::start(&site.controller, &["--cuts"]).unwrap();
    let mut port = 9_000;
    let (mut cut, mut controls) = (Vec::new(), Vec::new());
    for node in ["bridged", "routed"] {
        cut.extend(open(&site, &format!("shop/web-{node}"), node, &mut port));
        cut.extend(open(&site, node, &format!("shop/db-{node}"), &mut port));
        controls.extend(open(&site, &format!("shop/free-{node}"), node, &mut port));
        controls.extend(open(&site, node, &format!("shop/web-{node}"), &mut port));
    }
    cut.extend(open(&site, "shop/web-bridged", "routed", &mut port));
    let policies = segment("web", "appliesTo: {matchLabels: {app: web}}, egress: []")
        + &segment("db", "appliesTo: {matchLabels: {app: db}}, hostAccess: Judge, ingress: []");
    let begun = Instant::now();
    site.controller.apply(&policies).unwrap();
    assert_ended(&cut, begun, Instant::now());
    assert_told(&follower, &site, &cut, client_address);
    assert_stay_ended(&cut, &controls);
}

#[test]
fn a_connection_is_judged_on_its_real_ends_and_told_once_though_both_nodes_translate_and_cut_it() {
    let site = site("k4");
    let follower = Follower::start(&site.controller, &["--cuts"]).unwrap();
    let db = site.addresses("shop/db-bridged").unwrap()[0];
    let [node_port, db_port] = [18_080, 9_100];
    let bridged = site.namespace("bridged").unwrap();
    bridged.output("nft add table ip nat").unwrap();
    bridged.output("nft add chain ip nat pre { type nat hook prerouting priority -100 ; }").unwrap();
    for over in ["tcp", "udp"] {
        bridged.output(&format!("nft add rule ip nat pre iifname up0 {over} dport {node_port} dnat to {db}:{db_port}")).unwrap();
    }
    let routed = site.namespace("routed").unwrap();
    routed.output("nft add table ip nat").unwrap();
    routed.output("nft add chain ip nat post { type nat hook postrouting priority 100 ; }").unwrap();
    routed.output("nft add rule ip nat post oifname up0 masquerade").unwrap();
    let to = SocketAddr::new(site.addresses("bridged").unwrap()[0], node_port);
    let (web, inside_db) = (site.namespace("shop/web-routed").unwrap(), site.namespace("shop/db-bridged").unwrap());
    let cut: Vec<Session> =
        [Over::Tcp, Over::Udp].map(|over| Session::start("web -> node port -> db", web, inside_db, over, to, db_port).unwrap()).into();
    let begun = Instant::now();
    site.controller.apply(&(close_db() + &segment("web", "appliesTo: {matchLabels: {app: web}}, egress: []"))).unwrap();
    assert_ended(&cut, begun, Instant::now());
    for node in ["bridged", "routed"] {
        assert!(site.log(node).contains("cut=2"), "node {node} has cut both:\n{}", site.log(node));
    }
    std::thread::sleep(Duration::from_secs(2));
    let told = follower.matching(|record| record["cut"].is_object());
    for over in ["tcp", "udp"] {
        let of_it: Vec<_> = told.iter().filter(|line| line.record["transport"]["protocol"] == over).collect();
        assert_eq!(of_it.len(), 1, "{of_it:#?}");
        let record = &of_it[0].record;
        assert!(record["cut"]["arrived"].is_object() && record["cut"]["left"].is_object(), "{record}");
    }
    assert_stay_ended(&cut, &[]);
}

#[test]
fn connections_from_before_the_first_start_are_judged_by_the_first_generation() {
    let mut site = Site::with_two_nodes("k5").unwrap();
    let mut manifests = close_db();
    for node in ["bridged", "routed"] {
        // Somebody else's rules track connections, so that entries are there before ours, without room for labels.
        let inside = site.namespace(node).unwrap();
        inside.output("nft add table inet theirs").unwrap();
        inside.output("nft add chain inet theirs forward { type filter hook forward priority 0 ; }").unwrap();
        inside.output("nft add rule inet theirs forward ct state established accept").unwrap();
        for app in ["web", "db", "free"] {
            manifests += &site.workload(node, &format!("shop/{app}-{node}"), &format!("app: {app}"), "").unwrap();
        }
    }
    let mut port = 9_000;
    let (mut cut, mut controls) = (Vec::new(), Vec::new());
    for (from, to) in [("bridged", "bridged"), ("routed", "routed"), ("bridged", "routed"), ("routed", "bridged")] {
        cut.extend(open(&site, &format!("shop/web-{from}"), &format!("shop/db-{to}"), &mut port));
        controls.extend(open(&site, &format!("shop/web-{from}"), &format!("shop/free-{to}"), &mut port));
    }
    for end in ["web-bridged", "web-routed", "db-bridged", "db-routed"] {
        ignore_endings(&site, &format!("shop/{end}"));
    }
    let begun = Instant::now();
    site.start(&manifests).unwrap();
    assert_ended(&cut, begun, Instant::now());
    let told = site.controller.ask(&["flows", "--cuts", "-o", "json"]).unwrap();
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for session in &cut {
        assert_eq!(told.iter().filter(|record| is_of(record, session, client_address(session))).count(), 1, "{}", session.name);
    }
    assert_stay_ended(&cut, &controls);
}

#[test]
fn tcp_from_before_connection_tracking_lives_on_if_either_orientation_is_allowed() {
    let mut site = Site::with_two_nodes("k6").unwrap();
    // web may call db, and db may call nobody: the answers of a connection that is older than any entry look like calls.
    let mut manifests =
        segment("db", "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}], egress: []")
            + &segment("free", "appliesTo: {matchLabels: {app: free}}, ingress: [], egress: []");
    for node in ["bridged", "routed"] {
        for app in ["web", "db", "free"] {
            manifests += &site.workload(node, &format!("shop/{app}-{node}"), &format!("app: {app}"), "").unwrap();
        }
    }
    let mut port = 9_000;
    let tcp = |session: &Session| session.over == Over::Tcp;
    let mut allowed: Vec<Session> = Vec::new();
    let mut forbidden: Vec<Session> = Vec::new();
    for (from, to) in [("bridged", "bridged"), ("routed", "routed"), ("bridged", "routed")] {
        allowed.extend(open(&site, &format!("shop/web-{from}"), &format!("shop/db-{to}"), &mut port).into_iter().filter(tcp));
        forbidden.extend(open(&site, &format!("shop/web-{from}"), &format!("shop/free-{to}"), &mut port).into_iter().filter(tcp));
    }
    let begun = Instant::now();
    // A node whose first generation does not know a peer cuts its connection, rightly: `routed` comes when those of `bridged` are known.
    let of_bridged = ["shop/web-bridged", "shop/db-bridged", "shop/free-bridged"].as_slice();
    let of_routed = ["shop/web-routed", "shop/db-routed", "shop/free-routed"].as_slice();
    site.start_in_order(&manifests, &[("bridged", of_bridged), ("routed", of_routed)]).unwrap();
    assert_ended(&forbidden, begun, Instant::now());
    assert_stay_ended(&forbidden, &allowed);
}

#[test]
fn a_cut_that_the_agent_did_not_get_to_is_made_by_the_next() {
    let mut site = Site::with_two_nodes("k7").unwrap();
    let mut manifests = String::new();
    for node in ["bridged", "routed"] {
        for app in ["web", "db"] {
            manifests += &site.workload(node, &format!("shop/{app}-{node}"), &format!("app: {app}"), "").unwrap();
        }
    }
    // These agents commit and cannot cut: as if each were killed between the two.
    site.start_with(&manifests, &["--without-feature", "conntrack-netlink"]).unwrap();
    let mut port = 9_000;
    let mut cut = open(&site, "shop/web-bridged", "shop/db-bridged", &mut port);
    cut.extend(open(&site, "shop/web-routed", "shop/db-routed", &mut port));
    site.controller.apply(&close_db()).unwrap();
    let heard: Vec<_> = cut.iter().map(Session::heard).collect();
    std::thread::sleep(BOUND);
    for (session, heard) in cut.iter().zip(heard) {
        assert!(session.heard()[0] > heard[0], "{} lives as long as nobody cuts it", session.name);
    }
    let nodes = site.controller.ask(&["nodes"]).unwrap();
    assert!(nodes.contains("NoConntrackNetlink"), "{nodes}");
    let follower = Follower::start(&site.controller, &["--cuts"]).unwrap();
    let begun = Instant::now();
    for node in ["bridged", "routed"] {
        site.restart(node, &[]).unwrap();
    }
    for node in ["bridged", "routed"] {
        wait::until("the agent's first commit", Duration::from_secs(20), || {
            anyhow::ensure!(site.log(node).contains("connections cut"), "{}", site.log(node));
            Ok(())
        })
        .unwrap();
    }
    assert_ended(&cut, begun, Instant::now());
    assert_told(&follower, &site, &cut, client_address);
    assert_stay_ended(&cut, &[]);
}

#[test]
fn rules_that_pass_by_when_the_agent_is_killed_ask_before_the_next_one_cuts() {
    let mut site = site("k14");
    let mut port = 9_000;
    let mut cut = open(&site, "shop/web-bridged", "shop/db-bridged", &mut port);
    cut.extend(open(&site, "shop/web-routed", "shop/db-routed", &mut port));
    let controls = open(&site, "shop/web-bridged", "shop/free-routed", &mut port);
    wait_until_rules_pass_by(&site);
    for node in ["bridged", "routed"] {
        site.agent(node).unwrap().kill().unwrap();
    }
    for node in ["bridged", "routed"] {
        assert!(passes_by(&site, node), "{node}: nobody touches what a killed agent leaves");
    }
    site.controller.apply(&close_db()).unwrap();
    for node in ["bridged", "routed"] {
        site.start_agent_again(node).unwrap();
    }
    let begun = Instant::now();
    for node in ["bridged", "routed"] {
        wait::until("the rules to ask", Duration::from_secs(20), || {
            anyhow::ensure!(!passes_by(&site, node), "{}", site.log(node));
            Ok(())
        })
        .unwrap();
    }
    assert_ended(&cut, begun, Instant::now());
    // Killed while connections are cut: the next one finds their labels.
    for node in ["bridged", "routed"] {
        site.agent(node).unwrap().kill().unwrap();
        site.start_agent_again(node).unwrap();
    }
    assert_stay_ended(&cut, &controls);
    assert!(!passes_by(&site, "bridged") && !passes_by(&site, "routed"), "rules pass by labels that are there");
}

#[test]
fn what_is_allowed_again_goes_on() {
    let site = site("k8");
    let mut port = 9_000;
    let mut sessions = open(&site, "shop/web-bridged", "shop/db-bridged", &mut port);
    sessions.extend(open(&site, "shop/web-bridged", "shop/db-routed", &mut port));
    for end in ["web-bridged", "db-bridged", "db-routed"] {
        ignore_endings(&site, &format!("shop/{end}"));
    }
    for _ in 0..2 {
        let begun = Instant::now();
        site.controller.apply(&close_db()).unwrap();
        assert_ended(&sessions, begun, Instant::now());
        let heard: Vec<_> = sessions.iter().map(Session::heard).collect();
        site.delete(&close_db()).unwrap();
        wait::until("the sessions to go on", Duration::from_secs(20), || {
            for (session, heard) in sessions.iter().zip(&heard) {
                let now = session.heard();
                anyhow::ensure!(now[0] > heard[0] && now[1] > heard[1], "{} does not: {heard:?}, {now:?}", session.name);
            }
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn what_was_cut_and_lost_its_entry_goes_on_when_a_block_of_addresses_allows_it_though_only_its_other_end_speaks() {
    let site = site("k15");
    let mut port = 9_000;
    let mut sessions = open(&site, "shop/web-bridged", "shop/db-bridged", &mut port);
    sessions.extend(open(&site, "shop/web-routed", "shop/db-routed", &mut port));
    sessions.retain(|session| session.over == Over::Udp);
    for end in ["web-bridged", "db-bridged", "web-routed", "db-routed"] {
        ignore_endings(&site, &format!("shop/{end}"));
    }
    let begun = Instant::now();
    site.controller.apply(&close_db()).unwrap();
    assert_ended(&sessions, begun, Instant::now());
    for end in ["web-bridged", "web-routed"] {
        let inside = site.namespace(&format!("shop/{end}")).unwrap();
        inside.output("nft add table inet mute").unwrap();
        inside.output("nft add chain inet mute out { type filter hook output priority 0 ; }").unwrap();
        inside.output("nft add rule inet mute out meta l4proto udp drop").unwrap();
    }
    for node in ["bridged", "routed"] {
        conntrack::flush(site.namespace(node).unwrap()).unwrap();
    }
    assert_stay_ended(&sessions, &[]);
    let heard: Vec<_> = sessions.iter().map(Session::heard).collect();
    let everybody = "ingress: [{from: [{cidr: {cidr: 0.0.0.0/0}}, {cidr: {cidr: \"::/0\"}}]}]";
    site.controller.apply(&segment("db", &format!("appliesTo: {{matchLabels: {{app: db}}}}, {everybody}"))).unwrap();
    wait::until("clients to hear their servers", Duration::from_secs(20), || {
        for (session, heard) in sessions.iter().zip(&heard) {
            anyhow::ensure!(session.heard()[0] > heard[0], "{} is still refused", session.name);
        }
        Ok(())
    })
    .unwrap();
}

/// Connects from a port of its own choice and hears one byte.
fn connect_from(port: u16, to: SocketAddr) -> std::io::Result<TcpStream> {
    let (family, any): (_, IpAddr) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let stream = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&stream, sockopt::ReuseAddr, &true)?;
    bind(stream.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
    connect(stream.as_raw_fd(), &SockaddrStorage::from(to))?;
    let mut stream = TcpStream::from(stream);
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

#[test]
fn an_attempt_from_the_port_of_a_cut_connection_waits_and_gets_through_once_it_is_allowed() {
    const FROM: u16 = 9_100;
    let site = site("k13");
    for (number, to) in ["shop/db-bridged", "shop/db-routed"].into_iter().enumerate() {
        for address in site.addresses(to).unwrap() {
            let from = FROM + u16::try_from(number).unwrap();
            let to_port = SocketAddr::new(address, from);
            let listener = site.namespace(to).unwrap().run(move || TcpListener::bind(to_port).unwrap()).unwrap();
            let greeter = std::thread::spawn(move || {
                let greet = |_| {
                    let (mut stream, _) = listener.accept().unwrap();
                    stream.write_all(b"x").unwrap();
                    stream
                };
                (0..2).map(greet).collect::<Vec<_>>()
            });
            let client = site.namespace("shop/web-bridged").unwrap();
            let mut first = client.run(move || connect_from(from, to_port)).unwrap().unwrap();
            site.controller.apply(&close_db()).unwrap();
            wait::until("the first connection to be cut", Duration::from_secs(5), || {
                anyhow::ensure!(first.write(b"x").is_err(), "it goes on");
                Ok(())
            })
            .unwrap();
            // Its ends know that it is over; conntrack keeps it, with the label.
            drop(first);
            let attempt = client.spawn(move || connect_from(from, to_port)).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            assert!(!attempt.is_finished(), "{to_port}: refused: {:?}", attempt.join());
            site.delete(&close_db()).unwrap();
            let came = attempt.join().unwrap().unwrap();
            assert!(came.is_ok(), "{to_port}: {came:?}");
            greeter.join().unwrap();
        }
    }
}

#[test]
fn the_next_owner_of_an_address_inherits_no_connection() {
    let mut site = site("k9");
    site.controller
        .apply(&segment("next", "appliesTo: {matchLabels: {app: next}}, ingress: [{from: [{workloads: {matchLabels: {app: free}}}]}]"))
        .unwrap();
    for (node, client) in [("bridged", "shop/web-routed"), ("routed", "shop/web-bridged")] {
        let mut port = 9_000;
        let former = format!("shop/db-{node}");
        let addresses = site.addresses(&former).unwrap();
        let sessions = addresses.map(|address| {
            port += 1;
            let (web, db) = (site.namespace(client).unwrap(), site.namespace(&former).unwrap());
            let (every, to) = (Duration::from_millis(1), SocketAddr::new(address, port));
            Session::start_every(every, &format!("{client} -> {former}"), web, db, Over::Udp, to, port).unwrap()
        });
        // Its own end of the sessions keeps the namespace, so the interface is taken away by itself.
        site.namespace(node).unwrap().ip("link del fbw2").unwrap();
        drop(site.end(&former).unwrap());
        let next = format!("shop/next-{node}");
        site.workload_at(node, &next, 2).unwrap();
        assert_eq!(site.addresses(&next).unwrap(), addresses);
        // Listening before anybody knows it; the former peers go on sending all the time.
        let inside = site.namespace(&next).unwrap();
        let heard =
            firebreak_tests::session::listen(inside, &sessions.iter().map(|session| session.to.port()).collect::<Vec<_>>()).unwrap();
        let manifest = site.manifest(node, &next, "app: next", "").unwrap();
        site.controller.apply(&manifest).unwrap();
        site.controller.wait_enforced(&[&next], Duration::from_secs(20)).unwrap();
        // The listener can hear: who is allowed gets through.
        for address in addresses {
            let session = open_one(&site, &format!("shop/free-{node}"), &next, address, 9_050);
            assert!(session.heard()[1] >= 3);
        }
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(heard.count(), 0, "{node}: something of the former owner's connections arrived");
    }
}

fn open_one(site: &Site, from: &str, to: &str, address: IpAddr, port: u16) -> Session {
    let (client, server) = (site.namespace(from).unwrap(), site.namespace(to).unwrap());
    Session::start(&format!("{from} -> {to}"), client, server, Over::Udp, SocketAddr::new(address, port), port).unwrap()
}

#[test]
fn a_hundred_thousand_entries_do_not_hold_up_the_cut() {
    const ENTRIES: u32 = 100_000;
    let mut site = site("k10");
    let node = site.namespace("bridged").unwrap();
    let IpAddr::V4(free) = site.addresses("shop/free-bridged").unwrap()[0] else { panic!("IPv4 comes first") };
    conntrack::fill(node, free, ENTRIES).unwrap();
    assert!(conntrack::count(node).unwrap() >= ENTRIES);
    let mut port = 9_000;
    let cut = open(&site, "shop/web-bridged", "shop/db-bridged", &mut port);
    let controls = open(&site, "shop/free-bridged", "shop/web-bridged", &mut port);
    let begun = Instant::now();
    site.controller.apply(&close_db()).unwrap();
    assert_ended(&cut, begun, Instant::now());
    assert!(conntrack::count(node).unwrap() >= ENTRIES, "what does not concern the change stays");
    // Everything is judged when the agent starts.
    site.restart("bridged", &["--log", "info,firebreak_agent::cuts=debug"]).unwrap();
    wait::until("the first pass of the next agent", Duration::from_secs(20), || {
        let log = site.log("bridged");
        anyhow::ensure!(log.matches("connections judged").count() >= 2, "{log}");
        Ok(())
    })
    .unwrap();
    let log = site.log("bridged");
    for line in log.lines().filter(|line| line.contains("connections cut") || line.contains("connections judged")) {
        println!("{line}");
    }
    let heard: Vec<_> = controls.iter().map(Session::heard).collect();
    wait::until("the controls to go on", Duration::from_secs(5), || {
        anyhow::ensure!(controls.iter().zip(&heard).all(|(session, heard)| session.heard()[0] > heard[0]), "{heard:?}");
        Ok(())
    })
    .unwrap();
    assert_stay_ended(&cut, &[]);
}

#[test]
fn echoes_are_cut_by_identifier_and_the_other_direction_goes_on() {
    let site = site("k11");
    let follower = Follower::start(&site.controller, &["--cuts"]).unwrap();
    let mut identifier = 20_000;
    let mut cut = pings(&site, "shop/web-bridged", "shop/db-bridged", &mut identifier);
    cut.extend(pings(&site, "shop/web-routed", "shop/db-bridged", &mut identifier));
    let mut controls = pings(&site, "shop/db-bridged", "shop/web-bridged", &mut identifier);
    controls.extend(pings(&site, "shop/web-bridged", "shop/free-bridged", &mut identifier));
    // An exchange of the other direction under an identifier that is cut.
    let mut same = 20_000;
    controls.extend(pings(&site, "shop/db-bridged", "shop/web-bridged", &mut same));
    let begun = Instant::now();
    site.controller.apply(&close_db()).unwrap();
    assert_ended(&cut, begun, Instant::now());
    let told = assert_told(&follower, &site, &cut, client_address);
    assert!(told.iter().all(|line| line.record["transport"]["icmpType"].is_u64()), "{told:?}");
    conntrack::flush(site.namespace("bridged").unwrap()).unwrap();
    assert_stay_ended(&cut, &controls);
}

#[test]
fn an_sctp_association_is_cut_and_a_heartbeat_of_its_other_end_does_not_bring_it_back() {
    let site = site("k12");
    let (web, db) = (site.namespace("shop/web-bridged").unwrap(), site.namespace("shop/db-bridged").unwrap());
    let [from, to] = ["shop/web-bridged", "shop/db-bridged"].map(|name| site.addresses(name).unwrap()[0]);
    let (at_web, at_db) = (Chunks::listen(web).unwrap(), Chunks::listen(db).unwrap());
    let association = Association::begin(web, db, (from, 5_000), (to, 5_001)).unwrap();
    let [web_tag, db_tag] = association.tags;
    let arrives = |chunks: &Chunks, tag, kind, before: usize| {
        wait::until_true("the chunk to arrive", Duration::from_secs(2), || chunks.count(tag, kind) > before).is_ok()
    };
    association.send(web, true, sctp::DATA).unwrap();
    assert!(arrives(&at_db, db_tag, sctp::DATA, 0), "the association works");
    site.controller.apply(&close_db()).unwrap();
    std::thread::sleep(BOUND);
    association.send(web, true, sctp::DATA).unwrap();
    association.send(db, false, sctp::DATA).unwrap();
    let told = site.controller.ask(&["flows", "--cuts", "--protocol", "sctp"]).unwrap();
    assert_eq!(told.matches("CUT").count(), 1, "{told}");
    conntrack::flush(site.namespace("bridged").unwrap()).unwrap();
    for _ in 0..3 {
        association.send(db, false, sctp::HEARTBEAT).unwrap();
        association.send(db, false, sctp::DATA).unwrap();
        association.send(web, true, sctp::DATA).unwrap();
    }
    // The same between other ports is a new association's, and allowed.
    let control = Association { client: (from, 5_002), server: (to, 5_003), tags: [web_tag + 1_000_000, db_tag + 1_000_000] };
    control.send(db, false, sctp::HEARTBEAT).unwrap();
    assert!(arrives(&at_web, control.tags[0], sctp::HEARTBEAT, 0), "a heartbeat of nobody's association passes");
    assert_eq!(at_web.count(web_tag, sctp::HEARTBEAT), 0);
    assert_eq!(at_web.count(web_tag, sctp::DATA), 0);
    assert_eq!(at_db.count(db_tag, sctp::DATA), 1, "only what was sent before the cut");
}
