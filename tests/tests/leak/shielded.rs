//! Beside a denied flood, while what is known to be denied is dropped before anything else: nothing that policy lets through is.

use crate::changes::extra;
use crate::field::{ENOUGH, Field, NODES};
use crate::flood::PORTS;
use crate::metronome::Metronome;
use firebreak_tests::flood::{Flood, Stream};
use firebreak_tests::{scaled, wait};
use std::time::{Duration, Instant};

/// What the agents take for a flood here, so that no queue of a busy machine overflows by it, which would be told as a drop.
const FLOOD: &str = "500";
const SENT: u64 = 2_000;

/// Waits until a node drops known packets first of all.
fn wait_for_shield(field: &Field, node: &str) {
    let node = &field.site.node(node).unwrap().namespace;
    let is_up = || node.output("nft list chain inet firebreak unknown_interface_in").unwrap().contains("jump shield_in");
    wait::until_true("known packets to be dropped first", Duration::from_secs(60), is_up).unwrap();
}

#[test]
fn in_a_denied_flood_what_is_newly_allowed_passes_at_once_through_restarts_and_upgrades() {
    let mut field = Field::start_with("lf", &["--flood-rate", FLOOD]).unwrap();
    field.site.controller.apply(&extra(false)).unwrap();
    let floods = NODES.map(|node| {
        let to = field.site.addresses(&format!("field/srv-{node}")).unwrap().to_vec();
        let stream = Stream { to, ports: PORTS, per_second: Some(SENT), packets: None };
        Flood::start(field.site.namespace(&format!("field/open-{node}")).unwrap(), stream).unwrap()
    });
    for node in NODES {
        wait_for_shield(&field, node);
    }
    let checker = field.check().unwrap();
    for round in 0..scaled(4, 60) {
        let allowed = round % 2 == 0;
        let (from, to) = (format!("field/open-{}", NODES[round / 2 % 2]), format!("field/srv-{}", NODES[round / 2 % 2]));
        let address = field.site.addresses(&to).unwrap()[round / 4 % 2];
        let metronome = Metronome::start(field.site.namespace(&from).unwrap(), field.site.namespace(&to).unwrap(), address).unwrap();
        // A second's worth of the ports that its connections come from is known to be denied.
        metronome.wait_for(2_000).unwrap();
        let begun = Instant::now();
        field.site.controller.apply(&extra(allowed)).unwrap();
        let acked = begun.elapsed();
        metronome.wait_for(2_000).unwrap();
        let last_old = metronome.stop().unwrap().last_seen(!allowed).map_or(Duration::ZERO, |at| at.saturating_duration_since(begun));
        println!("{from} -> {to}, allowed: {allowed}: apply to last old verdict {last_old:?}, acked after {acked:?}");
        assert!(last_old <= acked, "the old verdict was seen {last_old:?} after the change was begun, which was acked after {acked:?}");
        for node in NODES {
            wait_for_shield(&field, node);
        }

        let node = NODES[round % 2];
        if round % 4 < 2 {
            field.restart_agent(node).unwrap();
        } else {
            // Another NFLOG group is another skeleton: all rules are replaced.
            let group = if round / 4 % 2 == 0 { "6" } else { "5" };
            field.site.agent(node).unwrap().kill().unwrap();
            field.site.agent(node).unwrap().set_extra(&["--flood-rate", FLOOD, "--nflog-group", group]);
            field.start_agent(node).unwrap();
        }
        wait_for_shield(&field, node);
    }
    checker.wait_for(ENOUGH).unwrap();
    checker.stop().unwrap().clean("changes, restarts and upgrades in a denied flood", ENOUGH).unwrap();
    for flood in floods {
        flood.stop().unwrap();
    }
}
