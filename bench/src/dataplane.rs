//! Set contents into the kernel: our one transaction against `nft`, and one change at 200,000 members.

use crate::members::kernel_bytes;
use crate::report::{Figure, Report};
use crate::stats::{median, median_ratio, percentile, ratio_range, timed};
use crate::{peer, scratch, world};
use anyhow::{Context as _, ensure};
use firebreak_agent::dataplane::{Dataplane, DataplaneConfig, Delta, Desired, InterfacePattern};
use firebreak_policy::kernel_sets::{Comment, Element, KernelSets, SetId, Shape};
use firebreak_policy::model::{Direction, Family, Protocol};
use firebreak_policy::node_state::{Member, NodeState};
use firebreak_policy::{Limits, flatten_with};
use firebreak_tests::lab::INTERFACES;
use firebreak_tests::namespace::Namespace;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const SET: SetId = SetId { direction: Direction::Ingress, family: Family::V4, shape: Shape::PeerPort };
const COUNT: u32 = 200_000;
const LOADS: usize = 5;

/// Opens the dataplane inside, as an agent with the lab's interfaces does.
///
/// # Errors
/// As [`Dataplane::open`].
pub(crate) fn open(inside: &Namespace) -> anyhow::Result<Dataplane> {
    let config = DataplaneConfig { interface_patterns: vec![InterfacePattern::new(INTERFACES)?], ..DataplaneConfig::default() };
    let (dataplane, _) = inside.run(move || Dataplane::open(&config))??;
    Ok(dataplane)
}

/// Adds the figures of the dataplane.
///
/// # Errors
/// The kernel or `nft` refused.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let inside = Namespace::new(&scratch::prefix("ours"))?;
    let theirs = Namespace::new(&scratch::prefix("nft"))?;
    let mut dataplane = open(&inside)?;
    let mut desired = loaded();
    loads(report, &mut dataplane, &desired, &theirs)?;
    one_change(report, &mut dataplane, &theirs)?;
    whole_commits(report, &mut dataplane, &mut desired)?;
    as_the_agent(report, &mut dataplane)?;
    million(report, &mut dataplane)
}

/// A million elements in one sendmsg.
fn million(report: &mut Report, dataplane: &mut Dataplane) -> anyhow::Result<()> {
    let elements: BTreeMap<Element, Comment> = (0..1_000_000).map(|number| (element(number), "".into())).collect();
    let desired = Desired { sets: KernelSets { sets: [(SET, elements)].into(), ..KernelSets::default() }, ..Desired::default() };
    let (mut times, mut kernel) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..3 {
        dataplane.commit(&Desired::default())?;
        let before = kernel_bytes()?;
        let (committed, took) = timed(|| dataplane.commit(&desired));
        kernel.push(kernel_bytes()? - before);
        let committed = committed?;
        ensure!(committed.elements == 1_000_000, "{committed:?}");
        bytes = committed.bytes;
        times.push(took);
    }
    dataplane.commit(&Desired::default())?;
    report.add(Figure::ms(format!("load 1000000 elements in one sendmsg ({bytes} bytes), median of 3"), median(&times)));
    kernel.sort_unstable();
    // Of three the middle one; the kernel frees what went before a little later.
    let per = kernel.get(1).copied().unwrap_or_default() / 10_000;
    report.add(Figure::new("kernel memory of each of 1000000 elements", f64::from(i32::try_from(per).unwrap_or(i32::MAX)) / 100.0, "B"));
    Ok(())
}

fn element(number: u32) -> Element {
    let local = IpAddr::V4(Ipv4Addr::from_bits(0x0a09_0000 + number % 50));
    Element::PeerPort(local, IpAddr::V4(Ipv4Addr::from_bits(0x0a10_0000 + number)), Protocol::TCP, 443)
}

fn loaded() -> Desired {
    let comments: Vec<Comment> = (0..50).map(|number| format!("shop/db-{number} <- app=api by SegmentPolicy shop/db#0").into()).collect();
    let elements: BTreeMap<Element, Comment> =
        (0..COUNT).zip(comments.iter().cycle()).map(|(number, comment)| (element(number), comment.clone())).collect();
    Desired { sets: KernelSets { sets: [(SET, elements)].into(), ..KernelSets::default() }, ..Desired::default() }
}

/// Ours, `nft -f`, `nft -j` in turn, every other round the other way round. What each is handed is made beforehand: for us the
/// sets, for nft the file. All are loaded afterwards.
fn loads(report: &mut Report, dataplane: &mut Dataplane, desired: &Desired, theirs: &Namespace) -> anyhow::Result<()> {
    let folder = scratch::folder()?;
    let elements = desired.sets.sets.get(&SET).context("nothing to load")?;
    let (text, json) = (folder.path().join("peer.nft"), folder.path().join("peer.json"));
    std::fs::write(&text, peer::text(elements)?)?;
    std::fs::write(&json, peer::json(elements)?)?;
    let (mut ours, mut as_text, mut as_json) = (Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for round in 0..LOADS {
        let mut turns = [0, 1, 2];
        if round % 2 == 1 {
            turns.reverse();
        }
        for turn in turns {
            match turn {
                0 => {
                    dataplane.commit(&Desired::default())?;
                    let (report, took) = timed(|| dataplane.commit(desired));
                    let report = report?;
                    ensure!(report.added == elements.len(), "{} elements were added", report.added);
                    bytes = report.bytes;
                    ours.push(took);
                }
                1 => {
                    as_text.push(peer::load(theirs, &text, false)?);
                    peer::clear(theirs)?;
                }
                _ => {
                    as_json.push(peer::load(theirs, &json, true)?);
                    peer::clear(theirs)?;
                }
            }
        }
    }
    peer::load(theirs, &text, false)?;
    for (other, times) in [("nft -f", &as_text), ("nft -j -f", &as_json)] {
        let (low, high) = ratio_range(&ours, times);
        let name =
            format!("load 200000 elements in one sendmsg ({bytes} bytes) against {other}, {LOADS} rounds, ratios {low:.2}-{high:.2}");
        let baseline = median(times).as_secs_f64() * 1e3;
        report.add(Figure::ms(name, median(&ours)).against(baseline, median_ratio(&ours, times)));
    }
    Ok(())
}

fn one_change(report: &mut Report, dataplane: &mut Dataplane, theirs: &Namespace) -> anyhow::Result<()> {
    let (mut ours, mut paired, mut nft) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..7 {
        nft.push(peer::add(theirs, &element(COUNT + round))?);
        let mut some = Vec::new();
        for number in 0..100 {
            let one = element(COUNT + number / 2);
            let delta = if number % 2 == 0 {
                Delta { put: vec![(SET, one, "added".into())], ..Delta::default() }
            } else {
                Delta { remove: vec![(SET, one)], ..Delta::default() }
            };
            let (committed, took) = timed(|| dataplane.commit_delta(&delta));
            let committed = committed?;
            ensure!(committed.added + committed.removed == 1, "{committed:?}");
            some.push(took);
        }
        paired.push(median(&some));
        ours.extend(some);
    }
    let name = "one-element change at 200000 members, commit_delta";
    let baseline = median(&nft).as_secs_f64() * 1e6;
    let p50 = Figure::us(format!("{name}, p50 of {}, against one nft process adding one, 7 rounds (row 1)", ours.len()), median(&ours));
    report.add(p50.against(baseline, median_ratio(&paired, &nft)).at_most(100.0));
    report.add(Figure::us(format!("{name}, p99 (row 1)"), percentile(&ours, 99)).at_most(1_000.0));
    Ok(())
}

fn whole_commits(report: &mut Report, dataplane: &mut Dataplane, desired: &mut Desired) -> anyhow::Result<()> {
    // What the deltas left behind goes first.
    dataplane.commit(desired)?;
    let (mut whole, mut same) = (Vec::new(), Vec::new());
    for number in 0..30 {
        let set = desired.sets.sets.get_mut(&SET).context("nothing is loaded")?;
        set.insert(element(COUNT + number), "added".into());
        let (committed, took) = timed(|| dataplane.commit(desired));
        ensure!(committed?.added == 1, "more than one element was added");
        whole.push(took);
        let (committed, took) = timed(|| dataplane.commit(desired));
        ensure!(committed?.bytes == 0, "an unchanged commit wrote something");
        same.push(took);
    }
    let name = "one-element change at 200000 members, whole commit";
    report.add(Figure::us(format!("{name}, p50 of {}", whole.len()), median(&whole)));
    report.add(Figure::us(format!("{name}, p99 of {} (the slowest)", whole.len()), percentile(&whole, 99)));
    report.add(Figure::us("unchanged commit at 200000 members, nothing written, median of 30", median(&same)));
    let mut reads = Vec::new();
    for _ in 0..5 {
        let (read, took) = timed(|| dataplane.read_back());
        ensure!(read? == 200_030, "other elements were read back than were written");
        reads.push(took);
    }
    report.add(Figure::ms("read_back of 200000 elements, median of 5", median(&reads)));
    Ok(())
}

/// As Part 1 did it: nothing is shared.
fn multiplied(state: &NodeState) -> KernelSets {
    flatten_with(state, &Limits { pairs: usize::MAX, elements: usize::MAX, rules: 0 })
}

/// One member of a group that 50 workloads let in goes or comes: the whole state is flattened and committed, as Part 1's agent does.
fn as_the_agent(report: &mut Report, dataplane: &mut Dataplane) -> anyhow::Result<()> {
    let mut state = world::heavy_node();
    dataplane.commit(&Desired { sets: multiplied(&state), ..Desired::default() })?;
    let peer = Member::Address(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)));
    let mut times: Vec<Duration> = Vec::new();
    for round in 0..8 {
        let group = state.groups.values_mut().find(|group| group.members.len() >= 4_000).context("no group of 4000")?;
        let members = &mut group.members;
        if round % 2 == 0 {
            members.insert(peer);
        } else {
            members.remove(&peer);
        }
        let (committed, took) = timed(|| dataplane.commit(&Desired { sets: multiplied(&state), ..Desired::default() }));
        let committed = committed?;
        ensure!(committed.added + committed.removed == 50, "{committed:?}");
        times.push(took);
    }
    report.add(Figure::ms(
        "one member of a group let in by 50 workloads, 200000 elements: flatten and whole commit, as Part 1's agent does, median of 8",
        median(&times),
    ));
    Ok(())
}
