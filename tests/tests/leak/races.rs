//! Changes that leave a pair's verdict as it is, but move it from one set to another or isolate an end that may go on. Every packet is a new
//! connection to the rules (nobody answers), as many as a thread can send.
//!
//! nf_tables makes a generation of hash sets and rules current at one moment (`gencursor`), but each lookup reads that moment for itself, and the new
//! copy of a set of intervals (pipapo) is put in place a little later in the same commit. What both states allow is therefore written before the
//! change or taken away after it (`agent/src/dataplane/moves.rs`), and where each allows something that the other does not, what is common to them is
//! held meanwhile (`overlap.rs`); without that some 5 of 600,000 packets were dropped here.

use crate::field::{Field, segment};
use firebreak_tests::flood::{Flood, Stream};
use firebreak_tests::scaled;
use firebreak_tests::wait;
use serde_json::Value;
use std::time::Duration;

const PORT: u16 = 9_800;

/// Three shapes of one permission: all of the peer, its port, and a range of ports; and an ingress that no policy isolates.
fn shapes() -> Vec<(&'static str, Option<String>)> {
    let ingress = |ports: &str| {
        Some(segment("shape", "app: open", &format!("  ingress:\n  - from: [{{workloads: {{matchLabels: {{app: srv}}}}}}]{ports}")))
    };
    vec![
        ("not isolated", None),
        ("all of the peer", ingress("")),
        ("one port", ingress(&format!("\n    ports: [{{protocol: UDP, port: {PORT}}}]"))),
        ("a range", ingress(&format!("\n    ports: [{{protocol: UDP, port: {}, endPort: {}}}]", PORT - 700, PORT + 700))),
    ]
}

#[test]
fn no_packet_meets_a_verdict_that_moves_between_sets_half_way() {
    let field = Field::start("lr").unwrap();
    let (from, to) = ("field/srv-bridged", "field/open-bridged");
    let node = &field.site.node("bridged").unwrap().namespace;
    // Others of the segment are denied what only this pair sends, and keep quiet; what is denied is denied wrongly.
    let denied = || -> u64 {
        let listed: Value = serde_json::from_str(&node.output("nft -j list counter inet firebreak denied_in").unwrap()).unwrap();
        listed["nftables"].as_array().unwrap().iter().find_map(|entry| entry["counter"]["packets"].as_u64()).unwrap()
    };
    // A socket that nobody reads: no answer, and no ICMP error either.
    let address = field.site.addresses(to).unwrap()[0];
    let _sink = field.site.namespace(to).unwrap().run(move || std::net::UdpSocket::bind((address, PORT))).unwrap().unwrap();
    let stream = Stream { to: vec![address], ports: PORT..PORT + 1, per_second: None, packets: None };
    let flood = Flood::start(field.site.namespace(from).unwrap(), stream).unwrap();
    wait::until_true("packets", Duration::from_secs(10), || flood.sent() > 1_000).unwrap();
    let (shapes, before) = (shapes(), denied());
    let mut wrong = std::collections::BTreeMap::new();
    let (mut at, mut last) = (0, before);
    let changes = scaled(60, 1_000);
    for round in 0..changes {
        let next = (at + 1 + round % 3) % shapes.len();
        match &shapes[next].1 {
            Some(policy) => drop(field.site.controller.apply(policy).unwrap()),
            None => drop(field.site.delete(shapes[at].1.as_ref().unwrap()).unwrap()),
        }
        let now = denied();
        if now != last {
            *wrong.entry((shapes[at].0, shapes[next].0)).or_insert(0) += now - last;
        }
        (at, last) = (next, now);
    }
    let (sent, lasted) = flood.stop().unwrap();
    println!("{sent} packets in {lasted:?} during {changes} changes of shape: {} judged by half a state: {wrong:?}", denied() - before);
    assert!(sent > 0 && denied() == before, "{wrong:?}");
}
