#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

struct Bench {
    follower: Follower<Box<dyn FnMut() -> FlowId>>,
    start: Instant,
}

impl Bench {
    fn new() -> Self {
        let mut next = 0;
        let id: Box<dyn FnMut() -> FlowId> = Box::new(move || {
            next += 1;
            FlowId([next; 16])
        });
        Self { follower: Follower::new(id), start: Instant::now() }
    }

    fn at(&self, seconds: u64) -> Moment {
        Moment { steady: self.start + Duration::from_secs(seconds), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 + seconds) }
    }

    /// Counts of interface 7, all for spoofed addresses: EtherType, frames; each element ends 300 s after `made`.
    fn read(&mut self, seconds: u64, made: u64, counts: &[(u16, u64)]) -> Vec<String> {
        let counts: Vec<GuardCount> = counts
            .iter()
            .map(|(ether_type, packets)| GuardCount {
                reason: GuardReason::Address,
                interface: 7,
                ether_type: *ether_type,
                packets: *packets,
                bytes: packets * 60,
                expires_in: Duration::from_secs((made + 300).saturating_sub(seconds)),
            })
            .collect();
        let refused = counts.iter().map(|count| count.packets).sum();
        self.read_with(seconds, &GuardReading { refused, overflow: 0, counts })
    }

    fn read_with(&mut self, seconds: u64, reading: &GuardReading) -> Vec<String> {
        let behind = |index| Behind { interface: format!("veth{index}"), container: "c".to_owned() };
        let now = self.at(seconds);
        self.follower.counted(now, reading, Generation(3), behind).iter().map(told).collect()
    }

    fn event(&mut self, seconds: u64, ether_type: u16) -> Vec<String> {
        let key = Key { interface: 7, reason: GuardReason::Address, ether_type };
        let first = FirstFrame { source: Some("10.0.0.9".parse().unwrap()), ..FirstFrame::default() };
        let now = self.at(seconds);
        let behind = Behind { interface: "veth7".to_owned(), container: "c".to_owned() };
        self.follower.frame(now, key, first, 60, &behind, Generation(3)).iter().map(told).collect()
    }
}

fn told(record: &Record) -> String {
    match &record.told {
        Told::Guard(told) => {
            let claimed = told.first.source.map(|source| format!(" from {source}")).unwrap_or_default();
            format!("{:?} {} {} frames {} bytes{claimed}", told.phase, told.id.0[0], told.frames, told.bytes)
        }
        Told::Lost { packets, reason, .. } => format!("lost {packets}: {reason}"),
        Told::Flow(_) | Told::Cut(_) => panic!("{record:?}"),
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_run_is_opened_at_once_told_once_a_minute_and_closed_with_its_totals() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(0, 0, &[]), NOTHING);
    assert_eq!(bench.event(1, 0x800), ["Opened 1 1 frames 60 bytes from 10.0.0.9"]);
    assert_eq!(bench.event(1, 0x800), NOTHING, "one event for one run");
    assert_eq!(bench.read(2, 1, &[(0x800, 1)]), NOTHING, "the counter has the event's frame too");
    assert_eq!(bench.read(3, 1, &[(0x800, 500)]), NOTHING);
    assert_eq!(bench.read(61, 1, &[(0x800, 700)]), ["Updated 1 700 frames 42000 bytes from 10.0.0.9"]);
    assert_eq!(bench.read(62, 1, &[(0x800, 701)]), NOTHING);
    assert_eq!(bench.read(122, 1, &[(0x800, 701)]), ["Closed 1 701 frames 42060 bytes from 10.0.0.9"]);
    assert_eq!(bench.read(123, 1, &[(0x800, 701)]), NOTHING);
    assert_eq!(bench.read(130, 1, &[(0x800, 703)]), ["Opened 2 2 frames 120 bytes"], "a new run of the same element");
}

#[test]
fn an_element_that_is_made_again_goes_on_counting() {
    let mut bench = Bench::new();
    bench.read(0, 0, &[]);
    assert_eq!(bench.read(1, 1, &[(0x800, 10)]), ["Opened 1 10 frames 600 bytes"], "without an event it is opened by the next reading");
    assert_eq!(bench.read(299, 1, &[(0x800, 20)]), ["Updated 1 20 frames 1200 bytes"]);
    // The element has ended at 301 and was made again; its count is higher than the old one's.
    assert_eq!(bench.event(302, 0x800), NOTHING);
    let reading = GuardReading {
        refused: 20 + 50,
        overflow: 0,
        counts: vec![GuardCount {
            reason: GuardReason::Address,
            interface: 7,
            ether_type: 0x800,
            packets: 50,
            bytes: 3_000,
            expires_in: Duration::from_secs(295),
        }],
    };
    assert_eq!(bench.read_with(360, &reading), ["Closed 1 70 frames 4200 bytes"].map(|_| "Updated 1 70 frames 4200 bytes"));
}

#[test]
fn what_was_counted_before_is_an_earlier_agents_to_tell() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(0, 0, &[(0x800, 100)]), NOTHING);
    assert_eq!(bench.read(1, 0, &[(0x800, 103)]), ["Opened 1 3 frames 180 bytes"]);
}

#[test]
fn an_interface_that_makes_up_ether_types_is_bounded_and_the_rest_is_told_as_lost() {
    let mut bench = Bench::new();
    bench.read(0, 0, &[]);
    let many: Vec<(u16, u64)> = (0..100).map(|number| (0x9000 + number, 2)).collect();
    let records = bench.read(1, 1, &many);
    assert_eq!(records.len(), MOST_OF_ONE);
    bench.read(2, 1, &many);
    assert_eq!(bench.read(3, 1, &many), ["lost 72: refused by guards: agent follows too many flows"]);
}

#[test]
fn frames_between_the_last_reading_and_the_elements_end_are_told_as_lost() {
    let mut bench = Bench::new();
    bench.read(0, 0, &[]);
    bench.read(1, 1, &[(0x800, 10)]);
    let gone = GuardReading { refused: 14, overflow: 0, counts: Vec::new() };
    let records: Vec<String> = (302..306).flat_map(|second| bench.read_with(second, &gone)).collect();
    assert_eq!(records, ["Closed 1 10 frames 600 bytes", "lost 4: refused by guards: flow entries ended between two reads"]);
}
