//! Agents whose fixed rules differ take over from each other.

use crate::field::{ENOUGH, Field, NODES};
use firebreak_tests::scaled;

#[test]
fn an_agent_with_other_rules_takes_over_and_no_packet_is_judged_by_half_of_them() {
    let mut field = Field::start("lu").unwrap();
    let checker = field.check().unwrap();
    let upgrades = scaled(4, 20);
    for round in 0..upgrades {
        let node = NODES[round % 2];
        // Another NFLOG group is another skeleton: its stamp differs, and all rules are replaced.
        let group = if round / 2 % 2 == 0 { "6" } else { "5" };
        if round % 4 < 2 {
            field.site.agent(node).unwrap().kill().unwrap();
        } else {
            field.site.agent(node).unwrap().terminate().unwrap();
        }
        field.site.agent(node).unwrap().set_extra(&["--nflog-group", group]);
        field.start_agent(node).unwrap();
    }
    let replaced: usize = NODES.iter().map(|node| field.site.agent(node).unwrap().log().matches("rules=Replaced").count()).sum();
    assert_eq!(replaced, upgrades, "every start was an upgrade");
    checker.wait_for(ENOUGH).unwrap();
    checker.stop().unwrap().clean(&format!("{upgrades} upgrades"), ENOUGH).unwrap();
}
