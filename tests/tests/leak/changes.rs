//! Policy changes: those that do not concern the probed pairs are not seen by them, those that do are seen at one moment.

use crate::field::{ENOUGH, Field, NODES, segment};
use crate::metronome::Metronome;
use firebreak_tests::scaled;
use std::time::{Duration, Instant};

/// A change of policy around the probed pairs that changes none of their verdicts.
pub(crate) fn harmless(number: usize) -> String {
    let port = 20_000 + number % 20_000;
    let peers = |app: &str| format!("{{workloads: {{matchLabels: {{app: {app}}}}}}}");
    match number % 6 {
        // Nobody is selected.
        0 => segment(
            &format!("bystander-{}", number % 50),
            &format!("app: nobody-{number}"),
            &format!("  ingress:\n  - from: [{}]", peers("open")),
        ),
        // Another port of a probed workload.
        1 => segment(
            "more-ports",
            "app: srv",
            &format!("  ingress:\n  - from: [{}]\n    ports: [{{protocol: TCP, port: {port}}}]", peers("open")),
        ),
        // A range of ports and a block: the sets of intervals change.
        2 => segment(
            "more-ranges",
            "app: srv",
            &format!(
                "  ingress:\n  - from: [{{cidr: {{cidr: \"198.51.100.0/24\"}}}}]\n    ports: [{{protocol: TCP, port: {port}, endPort: {}}}]",
                port + 300
            ),
        ),
        // Peers that are not there.
        3 => segment("more-peers", "app: srv", &format!("  ingress:\n  - from: [{}]", peers(&format!("ghost-{number}")))),
        // Another destination of a workload whose egress is isolated.
        4 => segment(
            "more-targets",
            "app: tight",
            &format!("  egress:\n  - to: [{}]\n    ports: [{{protocol: TCP, port: {port}}}]", peers("srv")),
        ),
        _ => segment(
            &format!("bystander-{}", number % 50),
            &format!("app: nobody-{number}"),
            &format!("  egress:\n  - to: [{}]", peers("srv")),
        ),
    }
}

#[test]
fn changes_that_do_not_concern_a_pair_are_not_seen_by_it() {
    let field = Field::start("lp").unwrap();
    let checker = field.check().unwrap();
    let changes = scaled(40, 1_000);
    for number in 0..changes {
        field.site.controller.apply_quietly(&harmless(number)).unwrap();
    }
    field.wait_converged().unwrap();
    checker.wait_for(ENOUGH).unwrap();
    checker.stop().unwrap().clean(&format!("{changes} policy changes"), ENOUGH).unwrap();
}

/// Ingress of `srv` over one more port, for `open`.
pub(crate) fn extra(allowed: bool) -> String {
    let port = if allowed { crate::metronome::PORT } else { 1 };
    segment(
        "extra",
        "app: srv",
        &format!("  ingress:\n  - from: [{{workloads: {{matchLabels: {{app: open}}}}}}]\n    ports: [{{protocol: UDP, port: {port}}}]"),
    )
}

#[test]
fn a_change_that_concerns_a_pair_is_seen_at_once_and_the_old_verdict_never_again() {
    let field = Field::start("lv").unwrap();
    field.site.controller.apply(&extra(false)).unwrap();
    let checker = field.check().unwrap();
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..scaled(6, 100) {
        let (from, to) = (NODES[round / 2 % 2], NODES[round / 4 % 2]);
        let allowed = round % 2 == 0;
        let (from, to) = (format!("field/open-{from}"), format!("field/srv-{to}"));
        for (family, address) in field.site.addresses(&to).unwrap().into_iter().enumerate() {
            // The second family meets the change already made; only the first one is timed.
            if family == 1 {
                continue;
            }
            let metronome = Metronome::start(field.site.namespace(&from).unwrap(), field.site.namespace(&to).unwrap(), address).unwrap();
            metronome.wait_for(50).unwrap();
            let begun = Instant::now();
            field.site.controller.apply(&extra(allowed)).unwrap();
            let acked = begun.elapsed();
            metronome.wait_for(200).unwrap();
            let beats = metronome.stop().unwrap();
            let last_old = beats.last_seen(!allowed).map_or(Duration::ZERO, |at| at.saturating_duration_since(begun));
            let first_new = beats.first_seen(allowed, begun).unwrap().saturating_duration_since(begun);
            println!(
                "{} -> {} {from} -> {to}: apply to last old verdict {last_old:?}, to first new verdict {first_new:?}, acked after {acked:?}",
                word(!allowed),
                word(allowed)
            );
            took[usize::from(allowed)].push(last_old);
            // Acked means in the kernel: no packet that began after the ack had the old verdict.
            assert!(last_old <= acked, "the old verdict was seen {last_old:?} after the change was begun, which was acked after {acked:?}");
        }
    }
    for (name, times) in ["allow -> deny", "deny -> allow"].into_iter().zip(&mut took) {
        times.sort();
        println!(
            "{name}: apply to last old verdict: median {:?}, worst {:?}, {} changes",
            times[times.len() / 2],
            times[times.len() - 1],
            times.len()
        );
    }
    checker.stop().unwrap().clean("changes of another pair", ENOUGH / 2).unwrap();
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}
