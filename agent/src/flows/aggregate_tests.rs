#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::cursor::StateFiles;
use super::super::key::FlowVerdict;
use super::super::read::Counters;
use super::*;
use firebreak_policy::model::{Protocol, Transport};
use std::net::IpAddr;

const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Answers for one address.
struct One;

impl LocalView for One {
    fn locate(&self, _now: Instant, direction: Direction, address: IpAddr) -> Option<Arc<LocalEnd>> {
        let is_local = (direction, address) == (Direction::Ingress, IpAddr::from([10, 0, 0, 2]));
        is_local.then(|| Arc::new(LocalEnd { container: "c1".into(), interface: "veth1".into(), network: "default".into() }))
    }

    fn generation(&self) -> Generation {
        Generation(7)
    }
}

struct Bench {
    aggregator: Aggregator<Box<dyn FnMut() -> FlowId>>,
    start: Moment,
}

fn bench(flows: usize) -> Bench {
    let mut next: u8 = 0;
    let ids: Box<dyn FnMut() -> FlowId> = Box::new(move || {
        next = next.wrapping_add(1);
        FlowId([next; 16])
    });
    let limits = Limits { flows, records: 10 };
    Bench {
        aggregator: Aggregator::new(limits, Timing::default(), ids, Arc::new(One), Arc::new(FlowsStats::default())),
        start: Moment::now(),
    }
}

fn key(port: u16) -> FlowKey {
    FlowKey {
        direction: Direction::Ingress,
        verdict: FlowVerdict::Drop,
        source: IpAddr::from([10, 0, 0, 1]),
        destination: IpAddr::from([10, 0, 0, 2]),
        transport: Transport::Port(Protocol::TCP, port),
    }
}

/// An element that was made at `made` seconds and is read at `now`.
fn element(port: u16, packets: u64, made: f64, now: f64) -> ElementReading {
    ElementReading {
        key: key(port),
        packets,
        bytes: packets * 60,
        age: Some(Duration::from_secs_f64(now - made)),
        expires_in: Some(Duration::from_secs_f64(made + 300.0 - now)),
    }
}

fn table(handle: u64, denied: u64, overflow: u64) -> TableReading {
    TableReading { handle, ingress: Counters { denied, overflow }, egress: Counters::default() }
}

impl Bench {
    fn at(&self, seconds: f64) -> Moment {
        let after = Duration::from_secs_f64(seconds);
        Moment { at: self.start.at + after, wall: self.start.wall + after }
    }

    fn packet(&mut self, seconds: f64, port: u16) -> Vec<String> {
        let packet = PacketSeen { key: key(port), source_port: Some(40_000), length: 60, input: None, output: None, is_counted: true };
        self.aggregator.packet(self.at(seconds), &packet);
        self.told()
    }

    fn read(&mut self, seconds: f64, table: TableReading, elements: &[ElementReading]) -> Vec<String> {
        self.aggregator.begin_read(table, &BOTH);
        self.aggregator.elements(self.at(seconds), elements);
        self.aggregator.end_read(self.at(seconds));
        self.told()
    }

    /// A read whose control sum is that of its elements.
    fn read_even(&mut self, seconds: f64, denied: u64, elements: &[ElementReading]) -> Vec<String> {
        self.read(seconds, table(1, denied, 0), elements)
    }

    fn told(&mut self) -> Vec<String> {
        let one = |record: Record| match record.told {
            Told::Flow(flow) => {
                let Transport::Port(_, port) = flow.key.transport else { panic!("{:?}", flow.key) };
                format!("{:?} #{} :{port} {} packets {} bytes", flow.phase, flow.id.0[0], flow.packets, flow.bytes)
            }
            Told::Cut(cut) => format!("cut {cut:?}"),
            Told::Lost { direction, packets, reason } => format!("lost {packets} {} {reason}", direction.as_str()),
        };
        self.aggregator.drain().into_iter().map(one).collect()
    }
}

#[test]
fn a_flow_is_opened_once_updated_each_minute_and_closed_with_its_totals() {
    let mut bench = bench(100);
    bench.read_even(0.0, 0, &[]);
    assert_eq!(bench.packet(0.1, 80), ["Opened #1 :80 1 packets 60 bytes"]);
    // Ten packets each second for 130 s; only the first was logged.
    let mut told = Vec::new();
    for second in 1..=130u32 {
        let (now, packets) = (f64::from(second), u64::from(second) * 10);
        told.extend(bench.read_even(now, packets, &[element(80, packets, 0.1, now)]));
    }
    assert_eq!(told, ["Updated #1 :80 610 packets 36600 bytes", "Updated #1 :80 1210 packets 72600 bytes"]);
    let mut told = Vec::new();
    for second in 131..=260u32 {
        told.extend(bench.read_even(f64::from(second), 1_300, &[element(80, 1_300, 0.1, f64::from(second))]));
    }
    assert_eq!(told, ["Updated #1 :80 1300 packets 78000 bytes", "Closed #1 :80 1300 packets 78000 bytes"]);
}

#[test]
fn a_flow_wakes_up_under_a_new_id_while_its_element_lives_and_tells_only_what_is_new() {
    let mut bench = bench(100);
    bench.read_even(0.0, 0, &[]);
    bench.packet(0.1, 80);
    bench.read_even(1.0, 3, &[element(80, 3, 0.1, 1.0)]);
    assert_eq!(bench.read_even(62.0, 3, &[element(80, 3, 0.1, 62.0)]), ["Closed #1 :80 3 packets 180 bytes"]);
    assert_eq!(bench.read_even(63.0, 3, &[element(80, 3, 0.1, 63.0)]), [""; 0]);
    // No log event: the element is still there.
    assert_eq!(bench.read_even(100.0, 5, &[element(80, 5, 0.1, 100.0)]), ["Opened #2 :80 2 packets 120 bytes"]);
    assert_eq!(bench.read_even(161.0, 5, &[element(80, 5, 0.1, 161.0)]), ["Closed #2 :80 2 packets 120 bytes"]);
}

#[test]
fn totals_go_on_when_an_element_ends_and_is_made_again() {
    // (name, element before, element after): made anew with fewer, as many, or more packets.
    for (name, before, after) in [("fewer", 9, 2), ("as many", 4, 4), ("more", 2, 7)] {
        let mut bench = bench(100);
        bench.read_even(0.0, 0, &[]);
        bench.packet(0.1, 80);
        for second in 1..=300u32 {
            bench.read_even(f64::from(second), before, &[element(80, before, 0.1, f64::from(second))]);
            // The flow is kept awake by log events only here: its element does not count.
            bench.packet(f64::from(second) + 0.1, 80);
        }
        let expected = before + after;
        assert_eq!(bench.packet(301.0, 80), [""; 0], "{name}: the flow is open, its new element is no new flow");
        bench.read_even(301.5, expected, &[element(80, after, 301.0, 301.5)]);
        let closed = bench.read_even(362.0, expected, &[element(80, after, 301.0, 362.0)]);
        assert_eq!(closed, [format!("Closed #1 :80 {expected} packets {} bytes", expected * 60)], "{name}");
    }
}

#[test]
fn an_element_that_one_read_misses_is_not_told_twice() {
    let mut bench = bench(100);
    bench.read_even(0.0, 0, &[]);
    bench.packet(0.1, 80);
    bench.read_even(1.0, 5, &[element(80, 5, 0.1, 1.0)]);
    for missed in [2.0, 3.0, 4.0] {
        assert_eq!(bench.read_even(missed, 5, &[]), [""; 0]);
    }
    assert_eq!(bench.read_even(5.0, 6, &[element(80, 6, 0.1, 5.0)]), [""; 0]);
    assert_eq!(bench.read_even(66.0, 6, &[element(80, 6, 0.1, 66.0)]), ["Closed #1 :80 6 packets 360 bytes"]);
}

#[test]
fn a_read_that_began_before_the_log_event_does_not_count_the_old_element_for_the_new_flow() {
    let mut bench = bench(100);
    bench.read_even(0.0, 0, &[]);
    bench.packet(0.1, 80);
    bench.read_even(1.0, 7, &[element(80, 7, 0.1, 1.0)]);
    bench.read_even(70.0, 7, &[element(80, 7, 0.1, 70.0)]);
    // The element ends at 300.1 and is made anew at 300.2; the read saw the old one.
    bench.aggregator.begin_read(table(1, 7, 0), &BOTH);
    assert_eq!(bench.packet(300.2, 80), ["Opened #2 :80 1 packets 60 bytes"]);
    bench.aggregator.elements(bench.at(300.05), &[element(80, 7, 0.1, 300.05)]);
    bench.aggregator.end_read(bench.at(300.3));
    assert_eq!(bench.told(), [""; 0]);
    bench.read_even(301.0, 9, &[element(80, 2, 300.2, 301.0)]);
    assert_eq!(bench.read_even(362.0, 9, &[element(80, 2, 300.2, 362.0)]), ["Closed #2 :80 2 packets 120 bytes"]);
}

#[test]
fn a_flow_whose_log_event_was_lost_is_opened_by_a_read_once_it_is_not_young() {
    let mut bench = bench(100);
    bench.read_even(0.0, 0, &[]);
    assert_eq!(bench.read_even(1.0, 1, &[element(80, 1, 0.95, 1.0)]), [""; 0], "its event may be on its way");
    assert_eq!(bench.read_even(1.5, 2, &[element(80, 2, 0.95, 1.5)]), ["Opened #1 :80 2 packets 120 bytes"]);
    assert_eq!(bench.packet(1.6, 80), [""; 0], "a late event opens nothing");
}

#[test]
fn flows_beyond_the_limit_are_told_as_lost_and_room_that_comes_is_used() {
    let mut bench = bench(2);
    bench.read_even(0.0, 0, &[]);
    assert_eq!(bench.packet(0.1, 1).len() + bench.packet(0.1, 2).len(), 2);
    assert_eq!(bench.packet(0.1, 3), [""; 0]);
    let elements = |now| [element(1, 1, 0.1, now), element(2, 1, 0.1, now), element(3, 4, 0.1, now)];
    let mut told = Vec::new();
    for second in 1..=4u32 {
        told.extend(bench.read_even(f64::from(second), 6, &elements(f64::from(second))));
    }
    assert_eq!(told, ["lost 4 ingress agent follows too many flows"]);
    assert_eq!(bench.aggregator.stats.snapshot().flows_refused, 5);
}

#[test]
fn what_no_element_tells_of_is_lost_and_a_full_set_is_named() {
    let mut bench = bench(100);
    bench.read(0.0, table(1, 10, 2), &[element(1, 1, -50.0, 0.0)]);
    // 8 packets before the agent came were nobody's.
    let mut told = Vec::new();
    for second in 1..=3u32 {
        told.extend(bench.read(f64::from(second), table(1, 15, 7), &[element(1, 1, -50.0, f64::from(second))]));
    }
    for second in 4..20u32 {
        told.extend(bench.read(f64::from(second), table(1, 18, 7), &[element(1, 1, -50.0, f64::from(second))]));
    }
    assert_eq!(told, ["lost 5 ingress flow set full or no memory for an entry", "lost 3 ingress flow entries ended between two reads"]);
}

#[test]
fn a_flow_that_found_no_room_in_the_kernel_is_told_by_its_log_events_and_not_lost() {
    let mut bench = bench(100);
    bench.read(0.0, table(1, 0, 0), &[]);
    let uncounted = PacketSeen { key: key(80), source_port: Some(40_000), length: 60, input: None, output: None, is_counted: false };
    for seconds in [0.1, 0.2, 0.3] {
        bench.aggregator.packet(bench.at(seconds), &uncounted);
    }
    assert_eq!(bench.told(), ["Opened #1 :80 1 packets 60 bytes"]);
    // Then there is room: an element is made, logged, and counts four.
    assert_eq!(bench.packet(0.4, 80), [""; 0]);
    let mut told = Vec::new();
    for second in 1..=62u32 {
        told.extend(bench.read(f64::from(second), table(1, 7, 3), &[element(80, 4, 0.4, f64::from(second))]));
    }
    assert_eq!(told, ["Closed #1 :80 7 packets 420 bytes"]);
}

#[test]
fn a_table_that_is_made_anew_counts_from_zero() {
    let mut bench = bench(100);
    bench.read_even(0.0, 0, &[]);
    bench.packet(0.1, 80);
    bench.read_even(1.0, 5, &[element(80, 5, 0.1, 1.0)]);
    let mut told = Vec::new();
    for second in 2..10u32 {
        told.extend(bench.read(f64::from(second), table(2, 6, 0), &[element(80, 6, 1.5, f64::from(second))]));
    }
    assert_eq!(told, [""; 0]);
    assert_eq!(bench.read(72.0, table(2, 6, 0), &[]), ["Closed #1 :80 11 packets 660 bytes"]);
}

#[test]
fn flows_are_closed_while_the_table_is_gone() {
    let mut bench = bench(100);
    bench.read_even(0.0, 0, &[]);
    bench.packet(0.1, 80);
    bench.aggregator.sweep(bench.at(60.0));
    assert_eq!(bench.told(), [""; 0]);
    bench.aggregator.sweep(bench.at(60.2));
    assert_eq!(bench.told(), ["Closed #1 :80 1 packets 60 bytes"]);
}

#[test]
fn elements_without_an_end_are_remembered_while_their_sets_are_not_read() {
    let mut bench = bench(100);
    let endless = |packets| [ElementReading { age: None, expires_in: None, ..element(80, packets, 0.1, 1.0) }];
    assert_eq!(bench.read_even(1.0, 3, &endless(3)), ["Opened #1 :80 3 packets 180 bytes"]);
    bench.aggregator.begin_read(table(1, 3, 0), &[]);
    bench.aggregator.end_read(bench.at(62.0));
    assert_eq!(bench.told(), ["Closed #1 :80 3 packets 180 bytes"]);
    for second in 63..70u32 {
        bench.aggregator.begin_read(table(1, 3, 0), &[Direction::Egress]);
        bench.aggregator.end_read(bench.at(f64::from(second)));
    }
    assert_eq!(bench.read_even(71.0, 4, &endless(4)), ["Opened #2 :80 1 packets 60 bytes"]);
}

#[test]
fn memory_is_given_back_once_flows_and_elements_are_over() {
    let mut bench = bench(10_000);
    bench.read_even(0.0, 0, &[]);
    for port in 0..10_000 {
        bench.packet(0.1, port);
    }
    let elements = |now| (0..10_000).map(|port| element(port, 1, 0.1, now)).collect::<Vec<_>>();
    bench.read_even(1.0, 10_000, &elements(1.0));
    assert_eq!(bench.read_even(100.0, 10_000, &elements(100.0)).len(), 10_000);
    assert_eq!(bench.aggregator.entries.len(), 10_000, "elements that live are remembered");
    for now in [302.0, 303.0, 304.0] {
        bench.read_even(now, 10_000, &[]);
    }
    assert_eq!(bench.aggregator.entries.len(), 0);
    assert!(bench.aggregator.entries.capacity() <= KEPT_CAPACITY);
}

#[test]
fn a_flow_takes_as_much_memory_as_the_limits_say() {
    // A hash table is at least 7/16 full after it grew, with one byte of its own per slot.
    let slot = size_of::<(FlowKey, Entry)>() + 1;
    println!("a flow: {slot} bytes, in the table at most {}; a record: {} bytes", slot * 16 / 7, size_of::<Record>());
    assert!(slot <= 300 && size_of::<Record>() <= 250);
}

#[test]
fn a_record_names_the_local_workload_the_generation_and_the_first_source_port() {
    let mut bench = bench(100);
    let packet = PacketSeen { key: key(80), source_port: Some(40_000), length: 60, input: None, output: Some(5), is_counted: true };
    bench.aggregator.packet(bench.at(0.0), &packet);
    let stranger = FlowKey { destination: IpAddr::from([10, 0, 0, 9]), ..key(80) };
    bench.aggregator.packet(bench.at(0.0), &PacketSeen { key: stranger, ..packet });
    let told: Vec<FlowTold> = bench
        .aggregator
        .drain()
        .into_iter()
        .map(|record| match record.told {
            Told::Flow(flow) => flow,
            Told::Lost { .. } | Told::Cut(_) => panic!("nothing is lost or cut"),
        })
        .collect();
    assert_eq!(told[0].local.as_ref().map(|end| end.container.as_str()), Some("c1"));
    assert_eq!((told[0].source_port, told[0].generation, told[0].note.as_ref()), (Some(40_000), Generation(7), ""));
    assert_eq!((told[1].local.clone(), told[1].note.as_ref()), (None, "workload not known; to interface index 5"));
}

#[test]
fn a_restarted_agent_goes_on_with_the_same_flows_and_exact_totals() {
    let directory = tempfile::tempdir().unwrap();
    let files = StateFiles::open(directory.path(), "boot").unwrap();
    let mut first = bench(100);
    first.read_even(0.0, 0, &[]);
    first.packet(0.1, 80);
    first.packet(0.1, 81);
    first.read_even(1.0, 8, &[element(80, 5, 0.1, 1.0), element(81, 3, 0.1, 1.0)]);
    files.write_cursor(first.aggregator.cursor(first.at(1.0))).unwrap();

    let mut second = bench(100);
    second.start = first.start;
    let cursor = files.read_cursor().unwrap().expect("a cursor of this boot");
    second.aggregator.restore(second.at(20.0), cursor);
    let elements = |now| [element(80, 9, 0.1, now), element(81, 3, 0.1, now), element(82, 1, 10.0, now)];
    // 15 were denied: the elements have 13, two ended while nobody read them.
    let mut told = second.read_even(20.0, 15, &elements(20.0));
    told.sort();
    assert_eq!(
        told,
        ["Opened #1 :82 1 packets 60 bytes", "Updated #1 :80 9 packets 540 bytes", "Updated #2 :81 3 packets 180 bytes"],
        "known flows are told once more under their ids, a new one is opened"
    );
    second.read_even(21.0, 15, &elements(21.0));
    assert_eq!(second.read_even(22.0, 15, &elements(22.0)), ["lost 2 ingress agent was down"]);
    assert_eq!(second.read_even(61.5, 15, &elements(61.5)), ["Closed #2 :81 3 packets 180 bytes"]);

    let rebooted = StateFiles::open(directory.path(), "another boot").unwrap();
    assert_eq!(rebooted.read_cursor().unwrap(), None);
}

#[test]
fn without_a_cursor_flows_that_were_there_are_opened_with_a_note() {
    let mut bench = bench(100);
    bench.aggregator.begin_read(table(1, 5, 0), &BOTH);
    bench.aggregator.elements(bench.at(0.0), &[element(80, 5, -30.0, 0.0)]);
    bench.aggregator.end_read(bench.at(0.0));
    let records = bench.aggregator.drain();
    let [Record { told: Told::Flow(flow), .. }] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((flow.phase, flow.packets, flow.first_seen), (Phase::Opened, 5, bench.start.wall - Duration::from_secs(30)));
    assert!(flow.note.starts_with("began before the agent started"), "{}", flow.note);
}
