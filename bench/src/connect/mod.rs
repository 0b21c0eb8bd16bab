//! What a packet pays (row 5): between two workloads of one node, through the real rules, against conntrack alone, bridged and routed.
//!
//! All contenders of a comparison stand side by side, each on a node of its own, and are timed in turn, every other round the other way
//! round. A second node with conntrack alone takes part in each comparison: its ratio is the noise.

mod place;
mod traffic;

use crate::report::{Figure, Report};
use crate::stats::{median, median_ratio, ratio_range};
use anyhow::Context as _;
use firebreak_policy::model::Family;
use firebreak_tests::lab::Topology;
use place::{Between, Hit, Place};
use std::time::Duration;
use traffic::Metric;

const ROUNDS: usize = 21;

const MOST_POLICIES: u32 = 10_000;

/// Adds the figures of both topologies.
///
/// # Errors
/// The lab is broken.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    for (topology, tag) in [(Topology::Routed, "routed"), (Topology::Bridged, "bridged")] {
        costs(report, topology, tag)?;
        sizes(report, topology, tag)?;
        hits(report, topology, tag)?;
    }
    Ok(())
}

/// Adds the figures against conntrack alone.
///
/// # Errors
/// As [`measure`].
pub(crate) fn measure_costs(report: &mut Report) -> anyhow::Result<()> {
    costs(report, Topology::Routed, "routed")?;
    costs(report, Topology::Bridged, "bridged")
}

/// Adds the figures of hits in each kind of set alone.
///
/// # Errors
/// As [`measure`].
pub(crate) fn measure_hits(report: &mut Report) -> anyhow::Result<()> {
    hits(report, Topology::Routed, "routed")?;
    hits(report, Topology::Bridged, "bridged")
}

/// Adds what a denied packet costs the node, of a flow that was denied before, against one plain rule that drops it.
///
/// # Errors
/// As [`measure`].
pub(crate) fn measure_denied(report: &mut Report) -> anyhow::Result<()> {
    for (topology, tag) in [(Topology::Routed, "routed"), (Topology::Bridged, "bridged")] {
        let contenders = [
            ("one rule", Between::OneRule),
            ("noise: one rule on another node", Between::OneRule),
            ("one rule, connections followed", Between::OneRuleTracked),
            ("everything", Between::Everything { policies: MOST_POLICIES, hit: Hit::Exact }),
        ];
        let comparison = Comparison::new(tag, topology, contenders)?;
        for (family, suffix) in [(Family::V4, "row 8"), (Family::V6, "IPv6, row 8")] {
            let measured = comparison.run(family, &[Metric::Denied])?;
            let first = measured.first().context("nothing to compare to")?.of(0)?;
            for ((name, _), times) in contenders.into_iter().zip(&measured).skip(1) {
                report.add(figure(format!("{}, {tag}, {name} / one rule ({suffix})", Metric::Denied.name()), times.of(0)?, first, None));
            }
        }
    }
    Ok(())
}

/// Policy, guards and everything against conntrack alone.
fn costs(report: &mut Report, topology: Topology, tag: &str) -> anyhow::Result<()> {
    let contenders = [
        ("conntrack alone", Between::Conntrack),
        ("noise: conntrack alone on another node", Between::Conntrack),
        ("floor: empty hooks where the guards are", Between::EmptyHooks),
        ("policy", Between::Policy { policies: MOST_POLICIES }),
        ("guards, nobody isolated", Between::Guards),
        ("everything", Between::Everything { policies: MOST_POLICIES, hit: Hit::Exact }),
        ("everything while a connection is cut", Between::WhileCut { policies: MOST_POLICIES }),
    ];
    let comparison = Comparison::new(tag, topology, contenders)?;
    for family in [Family::V4, Family::V6] {
        let measured = comparison.run(family, &Metric::ALL)?;
        let suffix = match family {
            Family::V4 => "200000 elements, row 5",
            Family::V6 => "IPv6, row 5",
        };
        for ((name, between), times) in contenders.into_iter().zip(&measured).skip(1) {
            for (index, metric) in Metric::ALL.into_iter().enumerate() {
                let first = measured.first().context("nothing to compare to")?;
                let what = format!("{}, {tag}, {name} / conntrack alone ({suffix})", metric.name());
                report.add(figure(what, times.of(index)?, first.of(index)?, goal(topology, between, metric)));
            }
        }
    }
    Ok(())
}

/// What the ratio to conntrack alone is to be at most (DESIGN section 9). A datagram from a new socket and its answer stand for what a
/// connection pays with UDP.
fn goal(topology: Topology, between: Between, metric: Metric) -> Option<f64> {
    match (between, metric) {
        (Between::Policy { .. }, Metric::Connect | Metric::UdpRequest) => Some(1.06),
        (Between::Everything { .. }, Metric::Connect | Metric::UdpRequest) => match topology {
            Topology::Routed => Some(1.18),
            Topology::Bridged => Some(1.20),
        },
        (Between::Everything { .. }, Metric::RoundTrip | Metric::UdpRoundTrip) => Some(1.08),
        (Between::Policy { .. } | Between::Everything { .. }, _)
        | (Between::WhileCut { .. }, _)
        | (Between::Conntrack | Between::EmptyHooks | Between::OneRule | Between::OneRuleTracked | Between::Guards, _) => None,
    }
}

/// Many policies against few.
fn sizes(report: &mut Report, topology: Topology, tag: &str) -> anyhow::Result<()> {
    let sizes = [10, 1_000, MOST_POLICIES];
    let contenders = sizes.map(|policies| ("everything", Between::Everything { policies, hit: Hit::Exact }));
    let comparison = Comparison::new(tag, topology, contenders)?;
    let metrics = [Metric::Connect, Metric::RoundTrip, Metric::UdpRequest];
    let measured = comparison.run(Family::V4, &metrics)?;
    for (policies, times) in sizes.into_iter().zip(&measured).skip(1) {
        for (index, metric) in metrics.into_iter().enumerate() {
            let first = measured.first().context("nothing to compare to")?;
            let what = format!("{}, {tag}, {policies} policies with {} elements / 10 policies (row 5)", metric.name(), policies * 20);
            report.add(figure(what, times.of(index)?, first.of(index)?, Some(1.03)));
        }
    }
    Ok(())
}

/// Hits in every kind of set against a hit in the first that is asked.
fn hits(report: &mut Report, topology: Topology, tag: &str) -> anyhow::Result<()> {
    let kinds = [
        (Hit::Exact, "exact"),
        (Hit::Peer, "any port of a peer"),
        (Hit::Protocol, "a protocol of a peer"),
        (Hit::FromAnyone, "a port for everybody"),
        (Hit::Shared, "a block with a range of ports, among 1000"),
        (Hit::Range, "a block with a range of ports, among 1000, where the chain of the segment is full"),
    ];
    let contenders = kinds.map(|(hit, name)| (name, Between::Everything { policies: 1_000, hit }));
    let comparison = Comparison::new(tag, topology, contenders)?;
    let metrics = [Metric::Connect, Metric::UdpRequest];
    let measured = comparison.run(Family::V4, &metrics)?;
    for ((_, name), times) in kinds.into_iter().zip(&measured).skip(1) {
        for (index, metric) in metrics.into_iter().enumerate() {
            let first = measured.first().context("nothing to compare to")?;
            let what = format!("{}, {tag}, allowed by {name} / by an exact element (row 5)", metric.name());
            report.add(figure(what, times.of(index)?, first.of(index)?, Some(1.10)));
        }
    }
    Ok(())
}

fn figure(what: String, ours: &[Duration], theirs: &[Duration], goal: Option<f64>) -> Figure {
    let (low, high) = ratio_range(ours, theirs);
    let name = format!("{what}, {} paired rounds, ratios {low:.2}-{high:.2}", ours.len());
    let figure = Figure::us(name, median(ours)).against(median(theirs).as_secs_f64() * 1e6, median_ratio(ours, theirs));
    match goal {
        Some(goal) => figure.ratio_at_most(goal),
        None => figure,
    }
}

/// What stands side by side.
struct Comparison {
    places: Vec<Place>,
}

/// Of one contender: for each metric the rounds' medians.
struct Times(Vec<Vec<Duration>>);

impl Times {
    fn of(&self, metric: usize) -> anyhow::Result<&[Duration]> {
        self.0.get(metric).map(Vec::as_slice).context("no such metric")
    }
}

impl Comparison {
    fn new<'a>(tag: &str, topology: Topology, contenders: impl IntoIterator<Item = (&'a str, Between)>) -> anyhow::Result<Self> {
        let places = contenders
            .into_iter()
            .enumerate()
            .map(|(number, (name, between))| {
                let letter = tag.chars().next().unwrap_or('x');
                Place::new(&format!("{letter}{number}"), topology, between).with_context(|| name.to_owned())
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { places })
    }

    fn run(&self, family: Family, metrics: &[Metric]) -> anyhow::Result<Vec<Times>> {
        let mut measured: Vec<Times> = self.places.iter().map(|_| Times(vec![Vec::new(); metrics.len()])).collect();
        for round in 0..ROUNDS {
            for (index, metric) in metrics.iter().enumerate() {
                let mut turns: Vec<(&Place, &mut Times)> = self.places.iter().zip(&mut measured).collect();
                if round % 2 == 1 {
                    turns.reverse();
                }
                for (place, times) in turns {
                    let took = place.time(family, *metric)?;
                    times.0.get_mut(index).context("no such metric")?.push(took);
                }
            }
        }
        Ok(measured)
    }
}
