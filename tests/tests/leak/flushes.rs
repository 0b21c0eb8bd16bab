//! Others flush and rebuild what is in the kernel.

use crate::field::{ENOUGH, Field, NODES};
use firebreak_tests::scaled;

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
