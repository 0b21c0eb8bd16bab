//! Many agents at one controller: everybody gets what concerns him, once, through changes, stalls and a restart. Counts, not times: those are
//! `make bench`'s, and of the full scale.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::scaled;
use firebreak_tests::system::binaries;
use serde_json::Value;
use std::process::Command;

#[test]
fn many_agents_stay_in_sync_through_changes_stalls_and_a_restart() {
    let [agents, rate, seconds, stall] = [(200, 5_000), (5, 100), (6, 600), (6, 60)].map(|(ci, full)| scaled(ci, full) as u64);
    let is_full = agents == 5_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outcome.json");
    let simulation = Command::new(binaries().unwrap().join("firebreak-bench"))
        .args(["simulate", "--agents", &agents.to_string(), "--rate", &rate.to_string()])
        .args(["--seconds", &seconds.to_string(), "--stall", &stall.to_string(), "--outcome"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(simulation.status.success(), "{}", String::from_utf8_lossy(&simulation.stderr));
    let outcome: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let count = |pointer: &str| outcome.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {outcome:#}"));

    assert_eq!(outcome["problems"].as_array().map(Vec::len), Some(0), "{:#}", outcome["problems"]);
    assert_eq!(count("/cold/traffic/sessions"), agents, "nobody had to come twice");
    // Each agent hears of one member that went and one that came, with a commit.
    assert!(count("/one_change/bytes_down") <= 400 * agents, "{:#}", outcome["one_change"]);
    assert_eq!((count("/churn/changes"), count("/churn/lost")), (rate * seconds, 0));
    assert_eq!((count("/stall/changes"), count("/stall/lost")), (rate * stall, 0), "the others get theirs meanwhile");
    // Two that were in the connection when it stopped, and the newest.
    assert!(count("/stall/most_generations") <= 4, "{:#}", outcome["stall"]);
    assert!(count("/stall/grew") <= 200_000_000, "{:#}", outcome["stall"]);
    assert_eq!(count("/restart/traffic/sessions"), agents);
    assert_eq!(count("/restart/traffic/whole_objects"), 0, "what is held is not sent again: {:#}", outcome["restart"]);
    if is_full {
        let ms = |pointer: &str| outcome.pointer(pointer).and_then(Value::as_f64).unwrap();
        let measured =
            [("/cold/took_ms", 30e3), ("/one_change/to_last_ack/max_ms", 1e3), ("/churn/few/p99_ms", 50.0), ("/restart/took_ms", 30e3)];
        for (pointer, goal) in measured {
            assert!(ms(pointer) <= goal, "{pointer}: {} ms, the goal is {goal}", ms(pointer));
        }
        assert!(count("/churn/resident") <= 1_000_000_000 && count("/stall/resident") <= 1_000_000_000);
    }
}
