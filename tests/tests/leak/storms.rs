//! Change without a pause: policy, labels and workloads.

use crate::changes::harmless;
use crate::field::{ENOUGH, Field, NODES, segment};
use firebreak_tests::scaled;
use std::time::{Duration, Instant};

/// Objects in one call of `apply`.
const BATCH: usize = 100;
/// Object changes a second that are tried.
const PER_SECOND: usize = 500;

/// A policy that concerns nobody and is another one each time.
fn bystander(slot: usize, version: usize) -> String {
    segment(
        &format!("storm-{slot}"),
        &format!("app: nobody-{slot}"),
        &format!(
            "  ingress:\n  - from: [{{workloads: {{matchLabels: {{app: open}}}}}}]\n    ports: [{{protocol: TCP, port: {}}}]",
            1_000 + version % 60_000
        ),
    )
}

#[test]
fn a_reload_under_500_changes_a_second_opens_nothing_and_stops_nothing() {
    let mut field = Field::start("ls").unwrap();
    let checker = field.check().unwrap();
    let (begun, changes) = (Instant::now(), scaled(2_000, 30_000));
    let mut done = 0;
    while done < changes {
        let mut manifests = String::new();
        for slot in 0..BATCH - 1 {
            manifests += &bystander(slot, done + slot);
        }
        // One of each batch touches what is probed.
        manifests += &harmless(done / BATCH);
        field.site.controller.apply_quietly(&manifests).unwrap();
        done += BATCH;
        if done % 1_000 == 0 {
            // In the middle of it an agent is killed, and takes up what it missed.
            field.site.agent(NODES[done / 1_000 % 2]).unwrap().kill().unwrap();
            field.site.start_agent_again(NODES[done / 1_000 % 2]).unwrap();
        }
        let due = begun + Duration::from_secs_f64(done as f64 / PER_SECOND as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    println!("{done} object changes in {:?}: {:.0}/s", begun.elapsed(), done as f64 / begun.elapsed().as_secs_f64());
    field.wait_converged().unwrap();
    checker.wait_for(ENOUGH).unwrap();
    checker.stop().unwrap().clean("a storm of changes", ENOUGH).unwrap();
}

#[test]
fn containers_that_start_and_stop_beside_a_pair_are_not_seen_by_it() {
    let mut field = Field::start("lw").unwrap();
    let checker = field.check().unwrap();
    for round in 0..scaled(4, 50) {
        let node = NODES[round % 2];
        let name = format!("field/guest{round}-{node}");
        // Peers of the probed workloads, so that their sets change with each.
        let label = ["app: open", "app: tight"][round / 2 % 2];
        let number = 100 + u8::try_from(round % 100).unwrap();
        field.site.workload_at(node, &name, number).unwrap();
        let manifest = field.site.manifest(node, &name, label, "").unwrap();
        field.site.controller.apply(&manifest).unwrap();
        checker.wait_for(50).unwrap();
        field.site.end(&name);
        field.site.delete(&manifest).unwrap();
    }
    checker.wait_for(ENOUGH).unwrap();
    checker.stop().unwrap().clean("containers that come and go", ENOUGH).unwrap();
}
