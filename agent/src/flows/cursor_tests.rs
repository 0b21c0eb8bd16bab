#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::key::FlowVerdict;
use super::super::record::Told;
use super::*;
use firebreak_policy::model::{Direction, Family, Protocol, Transport};
use proptest::prelude::*;
use std::net::IpAddr;
use std::time::Duration;

fn files(boot: &str) -> (tempfile::TempDir, StateFiles) {
    let directory = tempfile::tempdir().unwrap();
    let files = StateFiles::open(&directory.path().join("agent"), boot).unwrap();
    (directory, files)
}

fn entry(transport: Transport, source: IpAddr, is_open: bool) -> CursorEntry {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let destination = if source.is_ipv4() { IpAddr::from([10, 0, 0, 2]) } else { IpAddr::from([2; 16]) };
    CursorEntry {
        key: FlowKey { direction: Direction::Egress, verdict: FlowVerdict::Drop, source, destination, transport },
        element: Some(CursorElement { packets: 7, bytes: 420, ends: Some(time) }),
        flow: is_open.then(|| CursorFlow {
            id: FlowId([9; 16]),
            local: Some(Arc::new(LocalEnd { container: "c".into(), interface: "v".into(), network: "n1/docker0".into() })),
            generation: Generation(4),
            first_seen: time,
            last_seen: time,
            packets: 7,
            bytes: 420,
            logged: Some(60),
            source_port: Some(1),
            note: "x".into(),
        }),
    }
}

#[test]
fn a_cursor_is_read_back_as_it_was_written() {
    let (_directory, files) = files("boot");
    assert_eq!(files.read_cursor().unwrap(), None);
    let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([1; 16]));
    let icmp = |family| Transport::Icmp { family, kind: 8, code: 0 };
    let cursor = Cursor {
        handle: Some(3),
        control: [ControlState { base: Some(1), told: 2, overflow_told: 3, lost: 4 }, ControlState::default()],
        journal: 6,
        entries: vec![
            entry(Transport::Port(Protocol::SCTP, 0), v4, true),
            entry(Transport::Other(Protocol(47)), v6, true),
            entry(icmp(Family::V4), v4, false),
            entry(icmp(Family::V6), v6, false),
        ],
    };
    files.write_cursor(cursor.clone()).unwrap();
    assert_eq!(files.read_cursor().unwrap(), Some(cursor));
}

#[test]
fn a_cursor_keeps_open_flows_before_others() {
    let (_directory, files) = files("boot");
    let entries = (0..160_000u32).map(|index| {
        let source = IpAddr::from(std::net::Ipv4Addr::from(index));
        entry(Transport::Port(Protocol::TCP, 1), source, index >= 130_000)
    });
    files.write_cursor(Cursor { entries: entries.collect(), ..Cursor::default() }).unwrap();
    let kept = files.read_cursor().unwrap().unwrap().entries;
    assert_eq!((kept.len(), kept.iter().filter(|entry| entry.flow.is_some()).count()), (MAX_ENTRIES, 30_000));
}

#[test]
fn sequences_belong_to_a_boot_and_a_damaged_file_is_refused() {
    let (_directory, files) = files("boot");
    assert_eq!(files.read_sequence().unwrap(), 1);
    files.write_sequence(42).unwrap();
    assert_eq!(files.read_sequence().unwrap(), 42);
    let rebooted = StateFiles { boot_id: "other".into(), ..files.clone() };
    assert_eq!(rebooted.read_sequence().unwrap(), 1);
    for damaged in ["", "boot", "boot x", "boot -1"] {
        fs::write(files.path("flows-sequence"), damaged).unwrap();
        assert!(files.read_sequence().is_err(), "{damaged:?}");
    }
}

#[test]
fn unacknowledged_records_are_taken_once_and_keep_their_sequence_within_a_boot() {
    let (_directory, files) = files("boot");
    let lost = |packets| Record {
        time: SystemTime::UNIX_EPOCH,
        told: Told::Lost { direction: Direction::Ingress, packets, reason: "flow set full".into() },
    };
    let written = || files.write_unacked(vec![lost(1).to_proto(8), lost(2).to_proto(0)]).unwrap();
    written();
    assert_eq!(files.take_unacked().unwrap(), [(Some(8), lost(1)), (None, lost(2))]);
    assert_eq!(files.take_unacked().unwrap(), []);
    written();
    let rebooted = StateFiles { boot_id: "other".into(), ..files.clone() };
    assert_eq!(rebooted.take_unacked().unwrap(), [(None, lost(1)), (None, lost(2))]);
}

proptest! {
    #[test]
    fn no_bytes_on_disk_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (_directory, files) = files("boot");
        for name in ["flows-cursor", "flows-sequence", "flows-unacked"] {
            fs::write(files.path(name), &bytes).unwrap();
        }
        let _ = (files.read_cursor(), files.read_sequence(), files.take_unacked());
    }
}
