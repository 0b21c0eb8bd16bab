//! Denied flows at `firebreak flows --follow`: named, explained, at once, one `opened` per flow, totals under the same id.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::follower::{Follower, Line};
use firebreak_tests::probe::{Kind, probe};
use firebreak_tests::scaled;
use firebreak_tests::shop::{Shop, usual_policies};
use firebreak_tests::wait;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, Instant};

fn protocol(kind: Kind, to: IpAddr) -> Value {
    match (kind, to.is_ipv4()) {
        (Kind::Tcp(port), _) => json!({"protocol": "tcp", "port": port}),
        (Kind::Udp(port), _) => json!({"protocol": "udp", "port": port}),
        (Kind::Sctp(port), _) => json!({"protocol": "sctp", "port": port}),
        (Kind::Ping, true) => json!({"protocol": "icmp", "icmpType": 8, "icmpCode": 0}),
        (Kind::Ping, false) => json!({"protocol": "icmpv6", "icmpType": 128, "icmpCode": 0}),
    }
}

#[test]
fn a_denied_flow_arrives_within_a_second_with_both_ends_and_the_reason() {
    let shop = Shop::start("fbf1").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    let follower = Follower::start(&shop.controller, &[]).unwrap();
    // From, to, what, where it is judged, on which node and interface, isolated by, nearest rule, field, what the rule wants.
    let cases = [
        ("web", "db", Kind::Tcp(5432), "egress", "node-a", "fbw1", "web", Some("to-api"), "peer,port", "shop/app=api"),
        ("web", "stranger", Kind::Udp(80), "egress", "node-a", "fbw1", "web", Some("to-api"), "peer", "shop/app=api"),
        ("web", "api", Kind::Tcp(5432), "egress", "node-a", "fbw1", "web", Some("to-api"), "port", "80/tcp"),
        ("stranger", "db", Kind::Tcp(5432), "ingress", "node-b", "fbw2", "db", Some("from-api"), "peer", "shop/app=api"),
        ("api", "db", Kind::Tcp(80), "ingress", "node-b", "fbw2", "db", Some("from-api"), "port", "5432/tcp"),
        ("api", "db", Kind::Udp(5432), "ingress", "node-b", "fbw2", "db", Some("from-api"), "protocol", "5432/tcp"),
        ("stranger", "db", Kind::Ping, "ingress", "node-b", "fbw2", "db", Some("from-api"), "peer", "shop/app=api"),
        ("db", "api", Kind::Ping, "egress", "node-b", "fbw2", "db", None, "", ""),
    ];
    let mut slowest = Duration::ZERO;
    for (from, to, kind, direction, node, interface, policy, nearest, field, wanted) in cases {
        for address in shop.workload(to).addresses() {
            let sent = Instant::now();
            assert!(!probe(&shop.workload(from).namespace, address, kind).unwrap(), "{from} -> {to} {kind} is denied");
            let is_it = |record: &Value| {
                record["phase"] == "opened"
                    && record["source"]["workload"] == from
                    && record["destination"]["address"] == address.to_string()
                    && record["transport"] == protocol(kind, address)
            };
            let what = format!("the flow {from} -> {to} {address} {kind}");
            let (line, _) = wait::until(&what, Duration::from_secs(3), || {
                follower.matching(is_it).pop().ok_or_else(|| anyhow::anyhow!("not among {} lines", follower.lines().len()))
            })
            .unwrap();
            let took = line.at.duration_since(sent);
            slowest = slowest.max(took);
            assert!(took < Duration::from_secs(1), "{what} took {took:?}");
            let record = &line.record;
            let own =
                |name: &str| shop.workload(name).addresses().into_iter().find(|it| it.is_ipv4() == address.is_ipv4()).unwrap().to_string();
            for (end, name) in [("source", from), ("destination", to)] {
                assert_eq!(record[end]["workload"], name, "{record}");
                assert_eq!(record[end]["namespace"], "shop", "{record}");
                assert_eq!(record[end]["labels"], json!({"app": name}), "{record}");
                assert_eq!(record[end]["address"], own(name), "{record}");
            }
            assert_eq!(
                (&record["node"], &record["interface"], &record["direction"]),
                (&json!(node), &json!(interface), &json!(direction)),
                "{record}"
            );
            assert_eq!(record["verdict"], "drop");
            assert!(record["packets"].as_u64().unwrap() >= 1, "{record}");
            assert_eq!(record["sourcePort"].is_u64(), kind != Kind::Ping, "{record}");
            let reason = &record["reason"];
            assert_eq!(reason["isolatedBy"], json!([{"kind": "SegmentPolicy", "namespace": "shop", "name": policy}]), "{record}");
            match nearest {
                Some(rule) => {
                    assert_eq!(reason["nearest"]["rule"]["ruleName"], rule, "{record}");
                    assert_eq!(reason["nearest"]["field"], field, "{record}");
                    assert!(reason["nearest"]["wanted"].as_str().unwrap().contains(wanted), "{record}");
                }
                None => assert!(reason["nearest"].is_null(), "{record}"),
            }
        }
    }
    println!("slowest denied flow from probe to terminal: {slowest:?}");
}

#[test]
fn a_flow_is_opened_once_and_its_totals_come_under_the_same_id() {
    const PACKETS: u64 = 40;
    // By the agents' own 60 s at full scale.
    let idle: &[&str] = if scaled(0, 1) == 1 { &[] } else { &["--flow-idle", "10"] };
    let shop = Shop::start_with("fbf2", idle).unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    let follower = Follower::start(&shop.controller, &["--workload", "shop/stranger"]).unwrap();
    let db: IpAddr = shop.workload("db").v4.into();
    let source = &shop.workload("stranger").namespace;
    source
        .run(move || {
            // One socket, so that it is one flow by every account; spread over a few seconds, so that several reads see it.
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            for _ in 0..PACKETS {
                socket.send_to(b"let me in", (db, 9000)).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
        })
        .unwrap();
    let of_the_flow =
        |phase: &str| -> Vec<Line> { follower.matching(|record| record["phase"] == phase && record["transport"]["port"] == 9000) };
    let patience = Duration::from_secs(90);
    let (closed, _) =
        wait::until("the flow to be closed", patience, || of_the_flow("closed").pop().ok_or_else(|| anyhow::anyhow!("it is not"))).unwrap();
    let opened = of_the_flow("opened");
    assert_eq!(opened.len(), 1, "one opened per flow, not per packet: {opened:?}");
    assert_eq!(opened[0].record["flowId"], closed.record["flowId"]);
    assert_eq!(closed.record["packets"], PACKETS);
    assert_eq!(closed.record["bytes"], PACKETS * (20 + 8 + 9));
    for line in of_the_flow("updated") {
        assert_eq!(line.record["flowId"], closed.record["flowId"]);
    }
    let lost = follower.matching(|record| !record["lost"].is_null());
    assert!(lost.is_empty(), "nothing was lost: {lost:?}");
}

#[test]
fn filters_show_what_they_say_and_nothing_else() {
    let shop = Shop::start("fbf3").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    let db = shop.workload("db");
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--node", "node-a"], &["web"]),
        (&["--node", "node-b"], &["stranger"]),
        (&["--direction", "egress"], &["web"]),
        (&["--workload", "shop/stranger"], &["stranger"]),
        (&["--namespace", "billing"], &[]),
        (&["--protocol", "udp"], &["stranger"]),
        (&["--port", "5432", "--protocol", "tcp"], &["web"]),
        (&["--to", "10.50.2.0/24"], &["stranger", "web"]),
    ];
    assert!(!probe(&shop.workload("web").namespace, db.v4.into(), Kind::Tcp(5432)).unwrap());
    assert!(!probe(&shop.workload("stranger").namespace, db.v4.into(), Kind::Udp(9000)).unwrap());
    wait::until("both flows", Duration::from_secs(3), || {
        let kept = shop.controller.ask(&["flows", "-o", "json"])?;
        anyhow::ensure!(kept.contains("\"web\"") && kept.contains("\"stranger\""), "{kept}");
        Ok(())
    })
    .unwrap();
    for (filters, expected) in cases {
        let kept = shop.controller.ask(&[&["flows", "-o", "json"], filters].concat()).unwrap();
        let records = kept.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut sources: Vec<String> = records.map(|it| it["source"]["workload"].as_str().unwrap_or("?").to_owned()).collect();
        sources.sort();
        sources.dedup();
        assert_eq!(sources, expected, "{filters:?}");
    }
}
