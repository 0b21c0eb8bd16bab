//! Figures, printed; the bounds are loose, for machines that do other things too.

use crate::install::open;
use crate::namespace::Namespace;
use firebreak_agent::dataplane::{Check, CommitError, Dataplane, Delta, Desired};
use firebreak_policy::kernel_sets::{Comment, Element, KernelSets, SetId, Shape};
use firebreak_policy::model::{Direction, Family, Protocol};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const SET: SetId = SetId { direction: Direction::Ingress, family: Family::V4, shape: Shape::PeerPort };

fn element(number: u32) -> Element {
    let local = IpAddr::V4(Ipv4Addr::new(10, 9, 0, u8::try_from(number % 50).unwrap()));
    Element::PeerPort(local, IpAddr::V4(Ipv4Addr::from(0x0a10_0000 + number)), Protocol::TCP, 443)
}

fn loaded(count: u32) -> Desired {
    let comments: Vec<Comment> = (0..50).map(|n| format!("shop/db-{n} <- app=api by SegmentPolicy shop/db#0").into()).collect();
    let elements: BTreeMap<Element, Comment> =
        (0..count).map(|n| (element(n), comments[usize::try_from(n % 50).unwrap()].clone())).collect();
    Desired { sets: KernelSets { sets: [(SET, elements)].into(), ..KernelSets::default() }, ..Desired::default() }
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

#[test]
fn two_hundred_thousand_elements_are_one_transaction_and_one_more_is_cheap() {
    const COUNT: u32 = 200_000;
    let node = Namespace::new();
    let (mut dataplane, _) = open(&node);
    let mut desired = loaded(COUNT);
    let start = Instant::now();
    let report = dataplane.commit(&desired).unwrap();
    let load = start.elapsed();
    assert_eq!((report.added, report.elements), (200_000, 200_000));

    let start = Instant::now();
    assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0);
    let same = start.elapsed();

    let (mut by_delta, mut by_whole) = (Vec::new(), Vec::new());
    for number in 0..400 {
        let one = element(COUNT + number / 2);
        let delta = if number % 2 == 0 {
            Delta { put: vec![(SET, one, "added".into())], ..Delta::default() }
        } else {
            Delta { remove: vec![(SET, one)], ..Delta::default() }
        };
        let start = Instant::now();
        let report = dataplane.commit_delta(&delta).unwrap();
        by_delta.push(start.elapsed());
        assert_eq!(report.added + report.removed, 1);
    }
    for number in 0..10 {
        desired.sets.sets.get_mut(&SET).unwrap().insert(element(COUNT + number), "added".into());
        let start = Instant::now();
        assert_eq!(dataplane.commit(&desired).unwrap().added, 1);
        by_whole.push(start.elapsed());
    }
    let start = Instant::now();
    assert_eq!(dataplane.read_back().unwrap(), 200_010);
    let read = start.elapsed();
    assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0);
    println!(
        "200,000 elements with comments: load {load:?} ({} bytes, one sendmsg), unchanged commit {same:?}, read back {read:?}; one element: \
         delta p50 {:?} p99 {:?}, whole commit p50 {:?}",
        report.bytes,
        percentile(&mut by_delta, 50),
        percentile(&mut by_delta, 99),
        percentile(&mut by_whole, 50),
    );
    assert!(percentile(&mut by_delta, 50) < Duration::from_millis(5));
}

/// The background check of a node with a large set holds up no commit, and misses nothing.
#[test]
fn a_large_set_is_compared_in_small_parts_and_what_somebody_changed_in_it_is_found() {
    const COUNT: u32 = 100_000;
    // More than there are sets and rules.
    const ROUND: usize = 100;
    let node = Namespace::new();
    // Plain tables, which anybody may change.
    for family in ["inet", "bridge", "arp", "netdev"] {
        node.command("nft", &format!("add table {family} firebreak"));
    }
    let (mut dataplane, _) = open(&node);
    dataplane.commit(&loaded(COUNT)).unwrap();
    let start = Instant::now();
    assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0]);
    let at_once = start.elapsed();
    // A part at a time, of one round; what is found, how many parts, how long they took, and that of a commit between two.
    let round = |mut dataplane: Dataplane, commits: bool| {
        node.run(move || {
            let (mut parts, mut whole, mut times, mut commit) = (0, 0, Vec::new(), Duration::ZERO);
            let mut found = Vec::new();
            while whole < ROUND && found.is_empty() {
                let start = Instant::now();
                found = dataplane.check(Check::Step).unwrap();
                times.push(start.elapsed());
                parts += 1;
                whole += usize::from(!dataplane.is_mid_check());
                if commits && dataplane.is_mid_check() && parts % 4 == 0 {
                    let one = element(COUNT + u32::try_from(parts).unwrap());
                    let start = Instant::now();
                    dataplane.commit_delta(&Delta { put: vec![(SET, one, "added".into())], ..Delta::default() }).unwrap();
                    commit = commit.max(start.elapsed());
                }
            }
            (dataplane, found, parts, times, commit)
        })
    };
    let told = |times: &mut [Duration]| {
        format!("p50 {:?} p99 {:?} most {:?}", percentile(times, 50), percentile(times, 99), percentile(times, 100))
    };
    let (same, found, parts, mut times, _) = round(dataplane, false);
    println!("{COUNT} elements compared in {parts} parts: {}; at once: {at_once:?}", told(&mut times));
    assert_eq!(found, [""; 0]);
    assert!(parts > ROUND + 2 && percentile(&mut times, 99) * 3 < at_once, "{parts}");
    // Commits in between make it begin again, then leave the set for later, and are no alarm.
    let (same, found, parts, mut times, commit) = round(same, true);
    println!("with commits in between: {parts} parts: {}, commits of at most {commit:?}", told(&mut times));
    assert_eq!(found, [""; 0]);
    assert!(percentile(&mut times, 99) * 3 < at_once);
    let mut dataplane = same;
    for (change, expected) in [
        (
            "delete element inet firebreak in4_peer_port { 10.9.0.3 . 10.16.0.3 . tcp . 443 }",
            "1 elements missing or changed, 0 to be removed",
        ),
        ("add element inet firebreak in4_peer_port { 10.9.0.3 . 192.0.2.1 . tcp . 443 }", "0 elements missing or changed, 1 to be removed"),
    ] {
        let done = node.nft_load(change);
        assert!(done.status.success(), "{change}: {}", String::from_utf8_lossy(&done.stderr));
        let found;
        (dataplane, found, ..) = round(dataplane, false);
        assert!(found.concat().contains(expected), "{change}: {found:?}");
        dataplane = node.run(move || {
            dataplane.repair().unwrap();
            dataplane
        });
    }
}

#[test]
fn thousands_of_complaints_are_still_an_answer() {
    let node = Namespace::new();
    let (mut dataplane, _) = open(&node);
    dataplane.commit(&loaded(20_000)).unwrap();
    // Somebody with the rights of the kernel took everything: removing it again is refused message by message.
    let range = SetId { shape: Shape::Range, ..SET };
    let mut desired = loaded(100);
    let overlap = |last: u8| {
        let all = firebreak_policy::kernel_sets::Span {
            first: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            last: IpAddr::V4(Ipv4Addr::new(9, 9, 9, last)),
        };
        let local = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
        Element::Range(local, all, firebreak_policy::kernel_sets::Span::single(6), firebreak_policy::kernel_sets::Span::single(80))
    };
    let elements = (0..=255).map(|last| (overlap(last), Comment::from("x".repeat(120)))).collect();
    desired.sets.sets.insert(range, elements);
    assert!(matches!(dataplane.commit(&desired), Err(CommitError::Refused { set, .. }) if set == "inet firebreak in4_range"));
    assert_eq!(dataplane.read_back().unwrap(), 20_000);
}
