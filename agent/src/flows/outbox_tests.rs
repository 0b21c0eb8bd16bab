#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::key::{FlowKey, FlowVerdict};
use super::super::record::{FlowId, FlowTold};
use super::*;
use firebreak_policy::model::{Generation, Protocol, Transport};
use proptest::prelude::*;
use std::net::IpAddr;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn flow(number: u8, phase: Phase) -> Record {
    Record {
        time: NOW,
        told: Told::Flow(FlowTold {
            id: FlowId([number; 16]),
            phase,
            key: FlowKey {
                direction: Direction::Egress,
                verdict: FlowVerdict::Drop,
                source: IpAddr::from([10, 0, 0, 1]),
                destination: IpAddr::from([10, 0, 0, 2]),
                transport: Transport::Port(Protocol::TCP, 80),
            },
            local: None,
            source_port: None,
            packets: 100,
            bytes: 6_000,
            first_seen: NOW,
            last_seen: NOW,
            generation: Generation(1),
            note: "".into(),
        }),
    }
}

/// `sequence:flow id` or `sequence:lost packets`.
fn show(batch: &[v1::FlowRecord]) -> Vec<String> {
    let one = |record: &v1::FlowRecord| match record.record.as_ref().unwrap() {
        v1::flow_record::Record::Flow(flow) => format!("{}:{}", record.sequence, flow.flow_id[0]),
        v1::flow_record::Record::Cut(cut) => format!("{}:cut {}", record.sequence, cut.cut_id[0]),
        v1::flow_record::Record::Lost(lost) => format!("{}:lost {} ({})", record.sequence, lost.packets, &lost.reason[..2].trim()),
    };
    batch.iter().map(one).collect()
}

#[test]
fn a_refused_record_is_found_one_by_one_and_its_place_says_what_is_lost() {
    let mut outbox = Outbox::new(100, 11);
    outbox.push(flow(1, Phase::Opened));
    outbox.push(flow(2, Phase::Closed));
    outbox.push(flow(3, Phase::Opened));
    assert_eq!(show(&outbox.next_batch(NOW)), ["11:1", "12:2", "13:3"]);
    assert!(!outbox.refused("bad", NOW), "it is not known which");
    outbox.rewind();
    outbox.push(flow(4, Phase::Opened));
    assert_eq!(show(&outbox.next_batch(NOW)), ["11:1"]);
    assert!(!outbox.has_batch(), "the next waits for the answer");
    outbox.acknowledge(11);
    assert_eq!(show(&outbox.next_batch(NOW)), ["12:2"]);
    assert!(outbox.refused("bad", NOW));
    outbox.rewind();
    assert_eq!(show(&outbox.next_batch(NOW)), ["12:lost 100 (th)"], "the flow closed with 100 packets");
    outbox.acknowledge(12);
    assert_eq!(show(&outbox.next_batch(NOW)), ["13:3"]);
    outbox.acknowledge(13);
    outbox.push(flow(5, Phase::Opened));
    assert_eq!(show(&outbox.next_batch(NOW)), ["14:4", "15:5"], "behind those that were refused they go together again");
    assert_eq!(outbox.dropped_total(), 0);
}

#[test]
fn a_loss_that_is_refused_too_leaves_a_gap_and_holds_up_nothing() {
    let mut outbox = Outbox::new(100, 1);
    outbox.push(flow(1, Phase::Opened));
    outbox.push(flow(2, Phase::Opened));
    for refused in [false, true, true] {
        outbox.rewind();
        assert!(!outbox.next_batch(NOW).is_empty());
        assert_eq!(outbox.refused("bad", NOW), refused);
    }
    outbox.rewind();
    assert_eq!(show(&outbox.next_batch(NOW)), ["2:2"]);
    assert_eq!(outbox.acknowledge(2), Some(1));
    assert!(!outbox.refused("bad", NOW), "nothing was sent");
}

#[test]
fn what_is_not_acknowledged_is_sent_again_with_the_same_sequences() {
    let mut outbox = Outbox::new(100, 11);
    for number in 1..=3 {
        outbox.push(flow(number, Phase::Opened));
    }
    assert_eq!(show(&outbox.next_batch(NOW)), ["11:1", "12:2", "13:3"]);
    assert!(!outbox.has_batch());
    assert_eq!(outbox.acknowledge(11), Some(1));
    outbox.push(flow(4, Phase::Opened));
    outbox.rewind();
    assert_eq!(show(&outbox.next_batch(NOW)), ["12:2", "13:3", "14:4"]);
    assert_eq!(outbox.acknowledge(15), None, "it was never sent");
    assert_eq!(outbox.acknowledge(14), Some(3));
    assert_eq!(outbox.acknowledge(14), Some(0), "an ack may come twice");
    assert!(outbox.is_empty());
}

#[test]
fn at_the_limit_updates_go_first_then_openings_then_closings_and_the_loss_is_told() {
    let mut outbox = Outbox::new(3, 1);
    for (number, phase) in [(1, Phase::Opened), (2, Phase::Updated), (3, Phase::Closed), (4, Phase::Updated), (5, Phase::Opened)] {
        outbox.push(flow(number, phase));
    }
    assert_eq!((outbox.len(), outbox.dropped_total()), (3, 2), "both updates went");
    outbox.push(flow(6, Phase::Closed));
    outbox.push(flow(7, Phase::Closed));
    assert_eq!(outbox.dropped_total(), 4, "both openings went");
    outbox.push(flow(8, Phase::Closed));
    assert_eq!(show(&outbox.next_batch(NOW)), ["1:lost 100 (5)", "2:6", "3:7", "4:8"]);
}

#[test]
fn what_was_sent_is_never_dropped_so_that_sequences_have_no_gap() {
    let mut outbox = Outbox::new(2, 1);
    outbox.push(flow(1, Phase::Updated));
    outbox.push(flow(2, Phase::Updated));
    assert_eq!(show(&outbox.next_batch(NOW)), ["1:1", "2:2"]);
    outbox.push(flow(3, Phase::Opened));
    outbox.rewind();
    assert_eq!(show(&outbox.next_batch(NOW)), ["1:1", "2:2", "3:lost 0 (1)"]);
}

#[test]
fn a_batch_is_within_the_wires_limits_and_the_window_ends() {
    let mut outbox = Outbox::new(100_000, 1);
    for _ in 0..30_000 {
        outbox.push(flow(1, Phase::Opened));
    }
    let mut expected = 1;
    let mut batches = 0;
    while outbox.has_batch() {
        let batch = outbox.next_batch(NOW);
        assert!(!batch.is_empty() && batch.len() <= BATCH_RECORDS);
        for record in &batch {
            assert_eq!(record.sequence, expected);
            expected += 1;
        }
        assert!(v1::FlowBatch { records: batch }.encoded_len() < 1 << 20);
        batches += 1;
    }
    assert_eq!((batches, expected - 1), (20, 20_000));
    let mut long = Outbox::new(10, 1);
    for number in 0..3 {
        let Record { time, told: Told::Flow(flow) } = flow(number, Phase::Opened) else { unreachable!() };
        long.push(Record { time, told: Told::Flow(FlowTold { note: "n".repeat(600_000).into(), ..flow }) });
    }
    assert_eq!(std::iter::from_fn(|| long.has_batch().then(|| long.next_batch(NOW).len())).collect::<Vec<_>>(), [1, 1, 1]);
}

#[test]
fn a_later_agent_takes_over_what_waits() {
    let mut outbox = Outbox::new(100, 5);
    for number in 1..=4 {
        outbox.push(flow(number, Phase::Opened));
        if number == 2 {
            outbox.next_batch(NOW);
        }
    }
    let left = outbox.unacknowledged();
    assert_eq!(show(&left), ["5:1", "6:2", "0:3", "0:4"]);
    let mut later = Outbox::new(100, outbox.next_sequence());
    let records = [(Some(5), 1), (Some(6), 2), (Some(7), 3), (None, 4)].map(|(sequence, number)| (sequence, flow(number, Phase::Opened)));
    later.restore(records.into());
    assert_eq!(show(&later.next_batch(NOW)), ["5:1", "6:2", "7:3", "8:4"], "7 was not given out yet: it is made anew");
}

proptest! {
    /// Whatever is pushed, sent, acknowledged and torn down: sequences arrive without gaps, and each names one record.
    #[test]
    fn sequences_have_no_gaps_and_one_meaning(steps in proptest::collection::vec((0u8..5, any::<u8>()), 0..200)) {
        let mut outbox = Outbox::new(20, 1);
        let mut arrived: BTreeMap<u64, v1::FlowRecord> = BTreeMap::new();
        let mut number = 0u8;
        for (step, argument) in steps {
            match step {
                0 | 1 => {
                    number = number.wrapping_add(1);
                    let phase = [Phase::Opened, Phase::Updated, Phase::Closed][usize::from(argument % 3)];
                    outbox.push(flow(number, phase));
                }
                2 => for record in outbox.next_batch(NOW) {
                    let known = arrived.entry(record.sequence).or_insert_with(|| record.clone());
                    prop_assert_eq!(&*known, &record);
                },
                3 => outbox.rewind(),
                _ => {
                    let highest = arrived.keys().next_back().copied().unwrap_or(0);
                    outbox.acknowledge(highest.saturating_sub(u64::from(argument % 4)));
                }
            }
            prop_assert!(outbox.len() <= 22, "bounded: the limit, and news of both directions");
            prop_assert_eq!(outbox.has_batch(), !outbox.clone().next_batch(NOW).is_empty(), "nobody waits for nothing");
        }
        let expected: Vec<u64> = (1..=u64::try_from(arrived.len()).unwrap()).collect();
        prop_assert_eq!(arrived.into_keys().collect::<Vec<_>>(), expected);
    }
}
