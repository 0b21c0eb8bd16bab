//! What a running agent tells a scraper, over a real connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::namespace::Namespace;
use firebreak_tests::probe::{Kind, probe};
use firebreak_tests::shop::{Shop, usual_policies};
use firebreak_tests::wait;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The answer to a GET of the agent in this namespace: status line, headers and body.
fn get(node: &Namespace, path: &str) -> anyhow::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n");
    node.run(move || {
        let mut stream = TcpStream::connect("127.0.0.1:9465")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?
}

/// The value of a metric; `None` when it is not there.
fn value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn a_scraper_reads_generation_elements_denials_and_the_kernels_counters() {
    let shop = Shop::start("fbm1").unwrap();
    let node = &shop.nodes["node-b"].namespace;
    shop.controller.apply(&usual_policies()).unwrap();
    assert!(!probe(&shop.workload("stranger").namespace, shop.workload("db").v4.into(), Kind::Tcp(5432)).unwrap());
    assert!(get(node, "/readyz").unwrap().starts_with("HTTP/1.1 200 "));
    assert!(get(node, "/healthz").unwrap().starts_with("HTTP/1.1 200 "));
    assert!(get(node, "/elsewhere").unwrap().starts_with("HTTP/1.1 404 "));
    let read = |name: &str| get(node, "/metrics").map(|text| value(&text, name));
    wait::until("the flow to be acknowledged", Duration::from_secs(10), || {
        anyhow::ensure!(read("firebreak_agent_denied_records_acked_total")?.is_some_and(|acked| acked >= 1.0));
        Ok(())
    })
    .unwrap();
    let text = get(node, "/metrics").unwrap();
    assert!(text.contains("content-type: application/openmetrics-text"), "{text}");
    for (name, least) in [
        ("firebreak_agent_generation", 1.0),
        ("firebreak_agent_commits_total", 1.0),
        ("firebreak_agent_elements", 1.0),
        ("firebreak_agent_enforcing", 1.0),
        ("firebreak_agent_tables_whole", 1.0),
        ("firebreak_agent_workloads{state=\"enforced\"}", 2.0),
        ("firebreak_agent_denied_flows_opened_total", 1.0),
        ("firebreak_agent_kernel_packets_total{table=\"inet\",counter=\"denied_in\"}", 1.0),
        ("firebreak_agent_resident_memory_bytes", 1e6),
    ] {
        assert!(value(&text, name).is_some_and(|value| value >= least), "{name} is not at least {least}:\n{text}");
    }
}

#[test]
fn more_connections_than_are_served_at_once_wait_and_none_stays_for_ever() {
    let shop = Shop::start("fbm2").unwrap();
    let node = &shop.nodes["node-a"].namespace;
    let idle = node.run(|| (0..8).map(|_| TcpStream::connect("127.0.0.1:9465").unwrap()).collect::<Vec<_>>()).unwrap();
    // Those that say nothing are ended after five seconds each, four at once.
    wait::until("an answer beside idle connections", Duration::from_secs(40), || {
        anyhow::ensure!(get(node, "/healthz")?.starts_with("HTTP/1.1 200 "));
        Ok(())
    })
    .unwrap();
    drop(idle);
}
