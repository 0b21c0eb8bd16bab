//! Others flush and rebuild what is in the kernel.

use crate::field::{ENOUGH, Field, NODES};
use crate::metronome::Metronome;
use firebreak_tests::scaled;
use std::time::{Duration, Instant};

/// A table as others have them: it drops nothing of ours.
const THEIRS: &str = "add table ip theirs ; add chain ip theirs forward { type filter hook forward priority 0 ; policy accept ; } ; \
                      add rule ip theirs forward ip saddr 203.0.113.9 drop";

#[test]
fn a_flush_of_the_ruleset_or_of_foreign_tables_opens_nothing_and_stops_nothing() {
    let field = Field::start("lf").unwrap();
    let checker = field.check().unwrap();
    for round in 0..scaled(10, 200) {
        let node = &field.site.node(NODES[round % 2]).unwrap().namespace;
        let run = |arguments: &[&str]| node.command("nft").args(arguments).output().unwrap();
        assert!(run(&[THEIRS]).status.success());
        match round % 4 {
            0 | 1 => {
                // Refused or passed over, as far as it is about us.
                run(&["flush ruleset"]);
            }
            2 => drop(run(&["delete table ip theirs"])),
            _ => {
                for attack in ["flush table inet firebreak", "delete table inet firebreak", "flush chain inet firebreak forward"] {
                    assert!(!run(&[attack]).status.success(), "{attack}: the table is owned");
                }
            }
        }
    }
    checker.wait_for(ENOUGH).unwrap();
    checker.stop().unwrap().clean("flushes by others", ENOUGH).unwrap();
}

/// Without the kernel's owned tables a flush is not refused: it is noticed and put right, and until then the node is open.
#[test]
fn without_owned_tables_a_flush_is_put_right_and_its_open_time_is_measured() {
    let field = Field::start_with("lo", &["--without-feature", "table-owner"]).unwrap();
    let checker = field.check().unwrap();
    let mut open = Vec::new();
    let rounds = scaled(4, 40);
    for round in 0..rounds {
        let node = NODES[round % 2];
        let (from, to) = (format!("field/open-{node}"), format!("field/srv-{node}"));
        let address = field.site.addresses(&to).unwrap()[round / 2 % 2];
        let metronome = Metronome::start(field.site.namespace(&from).unwrap(), field.site.namespace(&to).unwrap(), address).unwrap();
        metronome.wait_for(30).unwrap();
        let begun = Instant::now();
        let flushed = field.site.node(node).unwrap().namespace.command("nft").args(["flush", "ruleset"]).output().unwrap();
        let took = begun.elapsed();
        assert!(flushed.status.success(), "nothing refuses it: {flushed:?}");
        // Open, and closed again for good: the probes that follow are all denied.
        firebreak_tests::wait::until("the tables to be back", Duration::from_secs(30), || {
            field.site.node(node)?.namespace.output("nft list chain inet firebreak forward").map(drop)
        })
        .unwrap();
        metronome.wait_for(1_000).unwrap();
        let beats = metronome.stop().unwrap();
        let last = beats.last_seen(true).map_or(Duration::ZERO, |at| at.saturating_duration_since(begun));
        let passed = beats.seen(true);
        println!("{node}: nft flush ruleset took {took:?}; forbidden packets passed until {last:?} after it began, {passed} of them");
        assert!(!beats.ends_with(true, 300), "{node} is still open");
        open.push(last);
    }
    open.sort();
    println!("open time of a flush without owned tables: median {:?}, worst {:?}", open[open.len() / 2], open[open.len() - 1]);
    checker.wait_for(ENOUGH).unwrap();
    let outcome = checker.stop().unwrap();
    println!("{outcome}");
    assert_eq!(outcome.refused, Vec::<String>::new(), "no permitted connection is refused or reset");
    // A flush takes the node's last rule that tracks connections with it. A request of that time has no entry, and its answer, should it come after
    // the tables are back, belongs to no connection: one exchange in flight at each repair may be lost.
    println!("in flight at a repair: {:?}", outcome.dropped);
    assert!(outcome.dropped.len() <= rounds, "permitted packets are dropped: {:?}", outcome.dropped);
}
