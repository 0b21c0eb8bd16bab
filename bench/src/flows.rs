//! From a denied packet to its line at `firebreak flows --follow`.

use crate::follower::Follower;
use crate::report::{Figure, Report};
use crate::stats::{median, percentile};
use anyhow::ensure;
use firebreak_tests::lab::Workload;
use firebreak_tests::system::Controller;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

const FLOWS: u16 = 150;
const FIRST_PORT: u16 = 20_000;
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends one message on each of many denied ports, at uneven distances so that no interval of the agent is met in step.
///
/// # Errors
/// A flow was never shown.
pub(crate) fn measure(report: &mut Report, controller: &Controller, from: &Workload, to: &Workload) -> anyhow::Result<()> {
    let follower = Follower::start(controller)?;
    begin(&follower, from, to)?;
    let to = to.v4;
    let sent = from.namespace.run(move || -> anyhow::Result<BTreeMap<u16, Instant>> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let mut sent = BTreeMap::new();
        for number in 0..FLOWS {
            let port = FIRST_PORT + number;
            sent.insert(port, Instant::now());
            socket.send_to(b"denied", (to, port))?;
            std::thread::sleep(Duration::from_millis(15 + u64::from(number) * 7 % 23));
        }
        Ok(sent)
    })??;
    let mut times: BTreeMap<u16, Duration> = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    while times.len() < sent.len() && Instant::now() < deadline {
        let Ok((at, line)) = follower.lines.recv_timeout(Duration::from_millis(100)) else { continue };
        if let Some((port, sent)) = port(&line).and_then(|port| Some((port, sent.get(&port)?))) {
            times.entry(port).or_insert_with(|| at.saturating_duration_since(*sent));
        }
    }
    ensure!(times.len() == sent.len(), "{} of {} denied flows were shown", times.len(), sent.len());
    let times: Vec<Duration> = times.into_values().collect();
    let name = format!("denied packet to its line at firebreak flows --follow, small lab, {FLOWS} flows");
    report.add(Figure::ms(format!("{name}, p50"), median(&times)));
    report.add(Figure::ms(format!("{name}, p99"), percentile(&times, 99)));
    Ok(())
}

/// Following has begun when a flow is shown: one port after the other until then.
fn begin(follower: &Follower, from: &Workload, to: &Workload) -> anyhow::Result<()> {
    let to = to.v4;
    let mut port = FIRST_PORT - 1_000;
    let asked = firebreak_tests::wait::until("a first denied flow to be shown", PATIENCE, || {
        port += 1;
        from.namespace.run(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"denied", (to, port)))??;
        Ok(follower.lines.recv_timeout(Duration::from_millis(100))?)
    });
    asked.map(drop)
}

/// The destination port of a line about a UDP flow: `.. -> end 20000/udp ..`.
fn port(line: &str) -> Option<u16> {
    line.split_whitespace().find_map(|word| word.strip_suffix("/udp")?.parse().ok())
}
