#![allow(clippy::unwrap_used)]

use super::*;
use crate::cuts::apply::Size;
use crate::cuts::entry::{Detail, Tuple};
use crate::cuts::idle::{SILENCE, Silent};
use crate::cuts::socket::Passed;
use firebreak_policy::model::{Family, HostAccess, NamespaceName, PolicyKey, PolicyKind, Protocol, WorkloadId};
use firebreak_policy::node_judge::NodeJudge;
use firebreak_policy::node_state::{Isolation, LocalEndpoint, NodeState, Rulebook, Segment, SegmentId};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const WEB: u8 = 1;
const DB: u8 = 2;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// db takes nothing, and may send everything.
fn state() -> NodeState {
    let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: NamespaceName::new("shop"), name: "db".to_owned() };
    let isolation = Isolation { policies: vec![policy], host_access: HostAccess::Allow, rules: Vec::new() };
    let id = WorkloadId::new("n1", "db");
    let segment = SegmentId("db".into());
    let endpoint = LocalEndpoint {
        id: id.clone(),
        name: "db".to_owned(),
        namespace: NamespaceName::new("shop"),
        segment: segment.clone(),
        addresses: [ip(DB)].into(),
        published_ports: Vec::new(),
    };
    let segment = Segment {
        id: segment,
        title: "db".to_owned(),
        rules: Rulebook { ingress: Some(isolation), ..Rulebook::default() }.into(),
        audit: None,
    };
    NodeState {
        segments: [(segment.id.clone(), Arc::new(segment))].into(),
        endpoints: [(id, Arc::new(endpoint))].into(),
        ..NodeState::default()
    }
}

fn entry(source: u8, destination: u8, protocol: Protocol, port: u16) -> Entry {
    let tuple = |source, destination, ports: (u16, u16)| Tuple {
        source: ip(source),
        destination: ip(destination),
        protocol,
        detail: if protocol.has_ports() { Detail::Ports(ports.0, ports.1) } else { Detail::None },
    };
    Entry {
        original: tuple(source, destination, (1000, port)),
        reply: tuple(destination, source, (port, 1000)),
        timeout: 1_000,
        ..Entry::probe(ip(source), ip(destination))
    }
}

/// Conntrack as a list, and what was done to it.
#[derive(Default)]
struct Table {
    entries: Vec<Entry>,
    has_no_room: BTreeSet<u16>,
    done: Vec<String>,
}

impl Conntrack for Table {
    fn dump(&mut self, filter: Filter, take: &mut dyn FnMut(Entry)) -> Result<Passed, ConntrackError> {
        let taken: Vec<Entry> = self.entries.iter().filter(|entry| filter.takes(entry)).cloned().collect();
        taken.into_iter().for_each(take);
        Ok(Passed { entries: self.entries.len(), other_zones: 0 })
    }

    fn selects(&self, _: Family) -> bool {
        true
    }

    fn size(&self) -> Size {
        Size { v4: self.entries.len(), v6: 0, buckets: 1 }
    }

    fn find(&mut self, entry: &Entry) -> Result<Option<Entry>, ConntrackError> {
        Ok(self.entries.iter().find(|found| found.original == entry.original).cloned())
    }

    fn change(&mut self, changes: &[Change<'_>]) -> Result<Vec<Changed>, ConntrackError> {
        let one = |change: &Change<'_>| {
            let (word, entry) = match change {
                Change::Label(entry) => ("label", entry),
                Change::Clear(entry) => ("clear", entry),
                Change::Delete(entry) => ("delete", entry),
                Change::Remake(entry) => ("remake", entry),
            };
            let Detail::Ports(_, port) = entry.original.detail else {
                self.done.push(format!("{word} {}", entry.original.protocol.0));
                return Changed::Done;
            };
            if word == "label" && self.has_no_room.contains(&port) {
                return Changed::NoRoom;
            }
            self.done.push(format!("{word} {port}"));
            Changed::Done
        };
        Ok(changes.iter().map(one).collect())
    }
}

#[derive(Default)]
struct Seen {
    cut: Vec<Entry>,
    labelled: usize,
}

impl Sink for Seen {
    fn cut(&mut self, entry: &Entry, direction: Direction, _: Generation) {
        assert_eq!(direction, Direction::Ingress);
        self.cut.push(entry.clone());
    }

    fn labelled(&mut self, _: Entry) {
        self.labelled += 1;
    }
}

fn run_while(court: &mut dyn Court, entries: Vec<Entry>, has_no_room: &[u16], affected: &Affected) -> (Vec<String>, Seen, Outcome) {
    let mut dumper = Table { entries, ..Table::default() };
    let mut changer = Table { has_no_room: has_no_room.iter().copied().collect(), ..Table::default() };
    let mut seen = Seen::default();
    let outcome = pass(&mut dumper, &mut changer, Arc::new(scene(1, state())), court, affected, &mut seen).unwrap();
    (changer.done, seen, outcome)
}

fn run(entries: Vec<Entry>, has_no_room: &[u16], affected: &Affected) -> (Vec<String>, Seen, Outcome) {
    run_while(&mut Stands, entries, has_no_room, affected)
}

fn scene(generation: u64, state: NodeState) -> Scene {
    let (locals, node) = ([ip(WEB), ip(DB)].into(), BTreeSet::new());
    Scene { generation: Generation(generation), policy: NodeJudge::new(Arc::new(state)), node, locals }
}

/// Nothing is committed meanwhile.
struct Stands;

impl Court for Stands {
    fn before_changes(&mut self) -> Result<(), ConntrackError> {
        Ok(())
    }

    fn while_in_force(&mut self, act: &mut dyn FnMut(InForce)) {
        act(InForce::Same);
    }
}

/// At the second part of a pass, db takes everything.
#[derive(Default)]
struct Opens {
    parts: usize,
}

impl Court for Opens {
    fn before_changes(&mut self) -> Result<(), ConntrackError> {
        Ok(())
    }

    fn while_in_force(&mut self, act: &mut dyn FnMut(InForce)) {
        self.parts += 1;
        let mut open = state();
        for segment in open.segments.values_mut() {
            segment.rules = Rulebook::default().into();
        }
        act(if self.parts == 2 { InForce::Newer(Arc::new(scene(2, open))) } else { InForce::Same });
    }
}

struct NobodyKnows;

impl Court for NobodyKnows {
    fn before_changes(&mut self) -> Result<(), ConntrackError> {
        Ok(())
    }

    fn while_in_force(&mut self, act: &mut dyn FnMut(InForce)) {
        act(InForce::Unknown);
    }
}

/// The rules do not come to ask for the label.
struct PassesBy;

impl Court for PassesBy {
    fn before_changes(&mut self) -> Result<(), ConntrackError> {
        Err(ConntrackError::Rules("no".to_owned()))
    }

    fn while_in_force(&mut self, _: &mut dyn FnMut(InForce)) {
        unreachable!("nothing is changed")
    }
}

#[test]
fn nothing_is_labelled_before_the_rules_ask_for_it_and_nothing_is_asked_where_nothing_is_done() {
    let run = |entries: Vec<Entry>| {
        let (mut dumper, mut changer) = (Table { entries, ..Table::default() }, Table::default());
        let mut seen = Seen::default();
        let scene = Arc::new(scene(1, state()));
        let passed = pass(&mut dumper, &mut changer, scene, &mut PassesBy, &Affected::everything(), &mut seen);
        (passed, changer.done)
    };
    let (passed, done) = run(vec![entry(WEB, DB, Protocol::TCP, 5432)]);
    assert!(matches!(passed, Err(ConntrackError::Rules(_))), "{passed:?}");
    assert_eq!(done, Vec::<String>::new());
    let (passed, _) = run(vec![entry(DB, WEB, Protocol::TCP, 80), Entry { is_cut: true, ..entry(WEB, DB, Protocol::TCP, 22) }]);
    assert_eq!(passed.unwrap().labelled, 1, "one that is cut stays so, and is counted");
}

#[test]
fn what_a_commit_allows_that_is_made_during_a_pass_is_not_cut() {
    let entries: Vec<Entry> = (0..3_000).map(|port| entry(WEB, DB, Protocol::UDP, port)).collect();
    let mut court = Opens::default();
    let (done, seen, outcome) = run_while(&mut court, entries, &[], &Affected::everything());
    assert_eq!((done.len(), seen.cut.len(), outcome.cut), (CHUNK, CHUNK, CHUNK), "only the part before the commit was cut");
    assert_eq!(court.parts, 2, "by the newer state there is nothing to do in what follows");
    let cut_before = |port| Entry { is_cut: true, ..entry(WEB, DB, Protocol::UDP, port) };
    let mixed = (0..2_048).map(|port| if port >= 2_000 { cut_before(port) } else { entry(WEB, DB, Protocol::UDP, port) }).collect();
    let (done, _, outcome) = run_while(&mut Opens { parts: 1 }, mixed, &[], &Affected::everything());
    assert_eq!((outcome.cut, outcome.cleared, done.len()), (0, 48, 48), "and what was cut before is allowed again");
}

#[test]
fn nothing_is_cut_while_nobody_knows_what_is_in_force() {
    let entries = vec![entry(WEB, DB, Protocol::TCP, 1)];
    let (done, seen, outcome) = run_while(&mut NobodyKnows, entries, &[], &Affected::everything());
    assert!(done.is_empty() && seen.cut.is_empty() && outcome.is_unsure);
}

#[test]
fn what_is_forbidden_is_labelled_told_once_and_made_anew_where_there_is_no_room() {
    let (tcp, udp, gre) = (Protocol::TCP, Protocol::UDP, Protocol(47));
    let cut_already = Entry { is_cut: true, ..entry(WEB, DB, tcp, 3) };
    let allowed_again = Entry { is_cut: true, ..entry(DB, WEB, tcp, 4) };
    // The label of an entry that we made anew, translated no more.
    let mut remade = Entry { is_cut: true, ..entry(DB, WEB, tcp, 5) };
    remade.original.destination = ip(200);
    let entries = vec![
        entry(WEB, DB, tcp, 1),
        entry(WEB, DB, udp, 2),
        cut_already,
        allowed_again,
        remade,
        entry(DB, WEB, udp, 6),
        entry(WEB, DB, gre, 0),
        entry(8, 9, tcp, 7),
    ];
    let (mut done, seen, outcome) = run(entries, &[2], &Affected::everything());
    done.sort();
    assert_eq!(done, ["clear 4", "delete 47", "delete 5", "label 1", "remake 2"]);
    assert_eq!(seen.cut.len(), 3, "the one that was cut before is not told again");
    assert_eq!(seen.labelled, 3);
    assert_eq!((outcome.cut, outcome.cleared, outcome.refused), (3, 2, None));
}

#[test]
fn only_what_the_change_concerns_is_judged() {
    let entries = || vec![entry(WEB, DB, Protocol::TCP, 1), entry(WEB, 9, Protocol::TCP, 2)];
    let of = |last: u8| Affected { everything: false, addresses: [ip(last)].into() };
    assert_eq!(run(entries(), &[], &of(DB)).0, ["label 1"]);
    assert_eq!(run(entries(), &[], &of(9)).0, [""; 0]);
    assert_eq!(run(entries(), &[], &of(77)).0, [""; 0]);
}

#[test]
fn many_are_carried_out_in_parts_and_none_is_forgotten() {
    let entries = (0..3_000).map(|port| entry(WEB, DB, Protocol::UDP, port)).collect();
    let (done, seen, _) = run(entries, &[1_500], &Affected::everything());
    assert_eq!((done.len(), seen.cut.len()), (3_000, 3_000));
    assert_eq!(done.iter().filter(|done| done.starts_with("remake")).count(), 1);
}

#[test]
fn a_cut_connection_that_fell_silent_is_deleted_and_one_that_tries_is_not() {
    let start = Instant::now();
    let cut = |port, timeout| Entry { is_cut: true, timeout, ..entry(WEB, DB, Protocol::TCP, port) };
    let mut silent = Silent::new(start, start);
    assert_eq!(silent.due(), None);
    for entry in [cut(1, 1_000), cut(2, 1_000), cut(3, 1_000), cut(4, 1_000)] {
        silent.watch(start, entry);
    }
    silent.watch(start, Entry { is_cut: true, ..entry(WEB, DB, Protocol::UDP, 9) });
    let later = start + SILENCE;
    assert_eq!(silent.due(), Some(later));
    // 1 was silent, 2 has sent, 3 has ended, 4 is allowed again.
    let elapsed = u32::try_from(SILENCE.as_secs()).unwrap();
    let mut table = Table {
        entries: vec![cut(1, 1_000 - elapsed), cut(2, 990), Entry { is_cut: false, ..cut(4, 1_000 - elapsed) }],
        ..Table::default()
    };
    assert_eq!(silent.check(later, &mut table).unwrap(), 1);
    assert_eq!(table.done, ["delete 1"]);
    assert_eq!(silent.due(), Some(later + SILENCE), "2 is still watched");
    let mut early = Silent::new(start, start + Duration::from_secs(10_000));
    early.watch(start, cut(1, 1_000));
    assert_eq!(early.due(), Some(start + Duration::from_secs(10_000)), "not while connections may be picked up in the middle");
}
