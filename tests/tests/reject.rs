//! `answer: Reject`: what such a rule denies is answered at once, TCP by a reset and the rest by an ICMP error; what another rule denies is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::follower::Follower;
use firebreak_tests::shop::Shop;
use firebreak_tests::wait;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Longer than an answer takes on a loaded machine, and shorter than TCP waits until it tries again for the second time.
const WAIT: Duration = Duration::from_millis(2_500);

/// Nobody may reach 5432 of the others; who asks for UDP or for TCP is answered, and who asks for TCP 9000 is not.
const POLICIES: &str = "---
apiVersion: firebreak.dev/v1alpha1
kind: ClusterSegmentPolicy
metadata: {name: cards}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress:
  - {name: no-cards, action: Deny, answer: Reject, reason: card data, from: [{namespaces: {}}], ports: [{protocol: TCP, port: 5432}, {protocol: UDP, port: 5432}]}
  - {name: silent, action: Deny, from: [{namespaces: {}}], ports: [{protocol: TCP, port: 9000}]}
---
apiVersion: firebreak.dev/v1alpha1
kind: ClusterSegmentPolicy
metadata: {name: quiet}
spec:
  tier: Baseline
  priority: 1
  subject: {namespaces: {}}
  egress:
  - {name: no-dns, action: Deny, answer: Reject, to: [{namespaces: {}}], ports: [{protocol: UDP, port: 9000}]}
";

fn tcp(to: IpAddr, port: u16) -> Result<(), ErrorKind> {
    TcpStream::connect_timeout(&SocketAddr::new(to, port), WAIT).map(drop).map_err(|error| error.kind())
}

fn udp(to: IpAddr, port: u16) -> Result<(), ErrorKind> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let exchange = || -> std::io::Result<()> {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.set_read_timeout(Some(WAIT))?;
        socket.connect(SocketAddr::new(to, port))?;
        socket.send(b"let me in")?;
        socket.recv(&mut [0; 64]).map(drop)
    };
    exchange().map_err(|error| error.kind())
}

fn is_silence(error: ErrorKind) -> bool {
    matches!(error, ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

#[test]
fn a_rule_that_rejects_is_answered_at_once_and_told_as_such_and_one_that_drops_is_silent() {
    let shop = Shop::start("fbrj").unwrap();
    let pairs = [("web", "stranger"), ("api", "db"), ("web", "db"), ("db", "stranger")];
    let from = |name: &str| &shop.workload(name).namespace;
    for (source, destination) in pairs {
        for to in shop.workload(destination).addresses() {
            let open = from(source).run(move || (tcp(to, 5432), udp(to, 5432), tcp(to, 9000), udp(to, 9000))).unwrap();
            assert_eq!(open, (Ok(()), Ok(()), Ok(()), Ok(())), "{source} -> {destination} {to} without policies");
        }
    }
    shop.controller.apply(POLICIES).unwrap();
    let follower = Follower::start(&shop.controller, &[]).unwrap();
    for (source, destination) in pairs {
        for to in shop.workload(destination).addresses() {
            let what = format!("{source} -> {destination} {to}");
            // The cuts of what was open before may take a moment.
            wait::until(&what, Duration::from_secs(20), || match from(source).run(move || tcp(to, 5432))? {
                Err(ErrorKind::ConnectionRefused) => Ok(()),
                other => anyhow::bail!("{other:?}"),
            })
            .unwrap();
            let (answered, silent, out, allowed) =
                from(source).run(move || (udp(to, 5432), tcp(to, 9000), udp(to, 9000), tcp(to, 80))).unwrap();
            assert!(answered.is_err_and(|it| !is_silence(it)), "{what}: {answered:?}, not an ICMP error");
            assert!(silent.is_err_and(is_silence), "{what}: {silent:?}, not silence");
            assert!(out.is_err_and(|it| !is_silence(it)), "{what}: {out:?}, not an ICMP error at its own end");
            assert_eq!(allowed, Ok(()), "{what}");
            for (protocol, port, verdict, rule, direction) in [
                ("tcp", 5432, "reject", "no-cards", "ingress"),
                ("udp", 5432, "reject", "no-cards", "ingress"),
                ("tcp", 9000, "drop", "silent", "ingress"),
                ("udp", 9000, "reject", "no-dns", "egress"),
            ] {
                let is_it = |record: &Value| {
                    record["phase"] == "opened"
                        && record["source"]["workload"] == source
                        && record["destination"]["address"] == to.to_string()
                        && record["transport"] == json!({"protocol": protocol, "port": port})
                };
                let what = format!("{what} {port}/{protocol}");
                let told = wait::until(&what, Duration::from_secs(20), || {
                    follower.matching(is_it).pop().ok_or_else(|| anyhow::anyhow!("not among {} lines", follower.lines().len()))
                });
                let record = told.unwrap().0.record;
                let told = (&record["verdict"], &record["direction"], &record["reason"]["rule"]["ruleName"]);
                assert_eq!(told, (&json!(verdict), &json!(direction), &json!(rule)), "{record}");
                assert_eq!(rule == "no-cards", record["reason"]["reason"].as_str().unwrap().contains("card data"), "{record}");
            }
        }
    }
}
