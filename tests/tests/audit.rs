//! Policies in Audit mode: they change no verdict, and what they would deny is told with the rule.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::follower::Follower;
use firebreak_tests::probe::{Kind, probe};
use firebreak_tests::scaled;
use firebreak_tests::shop::{Shop, policy, usual_policies};
use firebreak_tests::wait;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// Nobody would reach db.
fn closed(mode: &str) -> String {
    format!(
        "---\napiVersion: firebreak.dev/v1alpha1\nkind: ClusterSegmentPolicy\nmetadata: {{name: db-closed}}\nspec:\n  tier: Admin\n  priority: 1\n  \
         mode: {mode}\n  subject: {{namespaces: {{}}, workloads: {{matchLabels: {{app: db}}}}}}\n  ingress:\n  - {{name: nobody, action: Deny, \
         from: [{{entity: any}}]}}\n"
    )
}

/// api would take web on 80/tcp, and db would take nobody.
fn audited() -> String {
    policy(
        "api-strict",
        "  mode: Audit\n  appliesTo: {matchLabels: {app: api}}\n  ingress:\n  - name: from-web\n    from: [{workloads: {matchLabels: {app: web}}}]\n    \
         ports: [{protocol: TCP, port: 80}]",
    ) + &closed("Audit")
}

fn is_from(record: &Value, source: &str, to: IpAddr, kind: Kind) -> bool {
    let transport = match kind {
        Kind::Tcp(port) => json!({"protocol": "tcp", "port": port}),
        Kind::Udp(port) => json!({"protocol": "udp", "port": port}),
        Kind::Sctp(port) => json!({"protocol": "sctp", "port": port}),
        Kind::Ping if to.is_ipv4() => json!({"protocol": "icmp", "icmpType": 8, "icmpCode": 0}),
        Kind::Ping => json!({"protocol": "icmpv6", "icmpType": 128, "icmpCode": 0}),
    };
    record["source"]["workload"] == source && record["destination"]["address"] == to.to_string() && record["transport"] == transport
}

fn told(follower: &Follower, source: &str, to: IpAddr, kind: Kind) -> Vec<Value> {
    follower
        .matching(|record| record["phase"] == "opened" && is_from(record, source, to, kind))
        .into_iter()
        .map(|line| line.record)
        .collect()
}

fn wait_told(follower: &Follower, source: &str, to: IpAddr, kind: Kind) -> Value {
    let what = format!("the flow {source} -> {to} {kind}");
    let next = || told(follower, source, to, kind).pop().ok_or_else(|| anyhow::anyhow!("not among {} lines", follower.lines().len()));
    wait::until(&what, PATIENCE, next).unwrap().0
}

#[test]
fn what_a_policy_in_audit_mode_would_deny_passes_and_is_told_with_the_rule() {
    let shop = Shop::start("fba1").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    let follower = Follower::start(&shop.controller, &[]).unwrap();
    let (web, stranger, api) = (shop.workload("web"), shop.workload("stranger"), shop.workload("api"));
    // Open before anybody audits.
    let to = SocketAddr::from((api.v4, 9000));
    let mut before = stranger.namespace.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(5))).unwrap().unwrap();
    shop.controller.apply(&audited()).unwrap();

    let known = wait_told(&follower, "stranger", to.ip(), Kind::Tcp(9000));
    assert_eq!((&known["verdict"], &known["sourcePort"]), (&json!("audit"), &json!(before.local_addr().unwrap().port())), "{known}");
    before.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    before.write_all(b"still here").unwrap();
    assert!(before.read(&mut [0; 64]).unwrap() > 0, "the connection lives");

    for address in api.addresses() {
        for kind in [Kind::Tcp(80), Kind::Udp(80), Kind::Ping] {
            assert!(probe(&stranger.namespace, address, kind).unwrap(), "stranger -> {address} {kind} is let through");
            let record = wait_told(&follower, "stranger", address, kind);
            assert_eq!(
                (&record["verdict"], &record["direction"], &record["node"], &record["destination"]["workload"]),
                (&json!("audit"), &json!("ingress"), &json!("node-b"), &json!("api")),
                "{record}"
            );
            let reason = &record["reason"];
            assert_eq!(reason["verdict"], "audit", "{record}");
            assert_eq!(reason["isolatedBy"], json!([{"kind": "SegmentPolicy", "namespace": "shop", "name": "api-strict"}]), "{record}");
            assert_eq!(reason["nearest"]["rule"]["ruleName"], "from-web", "{record}");
        }
        // Allowed by both, and what is told after it has come.
        assert!(probe(&web.namespace, address, Kind::Tcp(80)).unwrap());
        assert!(probe(&stranger.namespace, address, Kind::Udp(9000)).unwrap());
        wait_told(&follower, "stranger", address, Kind::Udp(9000));
        assert_eq!(told(&follower, "web", address, Kind::Tcp(80)), Vec::<Value>::new(), "the audited policy allows it");
    }
    for address in shop.workload("db").addresses() {
        // Denied by the policies in force: stays denied, and is told as a denial once.
        assert!(!probe(&stranger.namespace, address, Kind::Tcp(9000)).unwrap());
        let record = wait_told(&follower, "stranger", address, Kind::Tcp(9000));
        assert_eq!(record["verdict"], "drop", "{record}");
        // Allowed by them, and db would be closed.
        assert!(probe(&api.namespace, address, Kind::Tcp(5432)).unwrap());
        let record = wait_told(&follower, "api", address, Kind::Tcp(5432));
        assert_eq!((&record["verdict"], &record["reason"]["rule"]["ruleName"]), (&json!("audit"), &json!("nobody")), "{record}");
        assert_eq!(told(&follower, "stranger", address, Kind::Tcp(9000)).len(), 1);
    }
    shop.controller.ask(&["delete", "segmentpolicy", "api-strict", "--namespace", "shop"]).unwrap();
    shop.controller.apply(&closed("Enforce")).unwrap();
    // Nobody audits api any more; and what is enforced is denied. Both are told by one node, in order.
    let (api_at, db_at): (IpAddr, IpAddr) = (api.v4.into(), shop.workload("db").v4.into());
    assert!(probe(&stranger.namespace, api_at, Kind::Udp(5432)).unwrap());
    assert!(!probe(&api.namespace, db_at, Kind::Udp(5432)).unwrap(), "the policy is enforced now");
    let record = wait_told(&follower, "api", db_at, Kind::Udp(5432));
    assert_eq!(record["verdict"], "drop", "{record}");
    assert_eq!(told(&follower, "stranger", api_at, Kind::Udp(5432)), Vec::<Value>::new(), "nobody audits it any more");
}

#[test]
fn each_connection_of_an_audited_flow_is_counted_once() {
    let connections = scaled(200, 5_000);
    let shop = Shop::start_with("fba2", &["--flow-idle", "5"]).unwrap();
    shop.controller.apply(&audited()).unwrap();
    let follower = Follower::start(&shop.controller, &["--verdict", "audit"]).unwrap();
    let (stranger, api) = (shop.workload("stranger"), shop.workload("api"));
    let to = SocketAddr::from((api.v4, 9000));
    // Those that are there before the agent follows new ones count as one together: it follows them when it has told of one.
    assert!(probe(&stranger.namespace, to.ip(), Kind::Tcp(80)).unwrap());
    wait_told(&follower, "stranger", to.ip(), Kind::Tcp(80));
    let made = stranger
        .namespace
        .run(move || (0..connections).filter(|_| TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok()).count())
        .unwrap();
    assert_eq!(made, connections, "all are let through");
    let closed = |record: &Value| record["phase"] == "closed" && is_from(record, "stranger", to.ip(), Kind::Tcp(9000));
    let last = wait::until("the flow to be closed", Duration::from_secs(120), || {
        follower.matching(closed).pop().ok_or_else(|| anyhow::anyhow!("it is not"))
    });
    let (closed, _) = last.unwrap();
    assert_eq!(closed.record["packets"], connections, "{}", closed.record);
}
