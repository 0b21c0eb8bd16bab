//! How many flow records a second of the controller's processor takes, from encoded messages to kept records with both ends named.

use crate::report::{Figure, Report};
use crate::stats::median_of;
use crate::{eval, scratch};
use anyhow::{Context as _, ensure};
use firebreak_proto::v1;
use firebreak_proto::v1::flow_message::Message as Up;
use firebreak_proto::v1::flow_service_client::FlowServiceClient;
use firebreak_tests::lab::Lab;
use firebreak_tests::system::{CONTROLLER, Controller};
use std::time::{Duration, SystemTime};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// Records in one message, as many as the controller takes.
const BATCH: u32 = 1_000;
/// Messages of one round; each tenth is sent once more, as after a connection that broke.
const BATCHES: u32 = 200;
const ROUNDS: usize = 5;
/// Workloads of the made-up cluster, spread over so many nodes.
const PODS: u32 = 1_000;
const NODES: u32 = 10;
/// Nodes that report.
const REPORTERS: u32 = 5;
/// `USER_HZ`: utime and stime of `/proc/PID/stat` are in hundredths of a second on every architecture that Linux is built for today.
const TICK: Duration = Duration::from_millis(10);

/// Which flows the records are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A flood of some minutes: 10,000 flows at each node, each opened, updated twice and closed.
    Flood,
    /// No two records are of one flow, and no port of a workload comes twice from one sender.
    Distinct,
}

/// Adds the rates: the real controller, its connection and its decoding included, by the processor time that its process took.
///
/// # Errors
/// The controller did not come up, or did not take, name or explain a record.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let folder = scratch::folder()?;
    let lab = Lab::new(&scratch::prefix("f"))?;
    let mut controller = Controller::start(&lab.core, folder.path())?;
    controller.apply(&eval::cluster(eval::Addresses::Listed)?)?;
    let process = controller.process().context("the controller has ended")?.id();
    let run = move || -> anyhow::Result<[Vec<f64>; 2]> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(rounds(process))
    };
    let [flood, distinct] = lab.core.run(run)??;
    explained(&controller)?;
    let size = format!("{PODS} workloads x 200 policies, {REPORTERS} nodes, {BATCHES} messages of {BATCH} records, median of {ROUNDS}");
    let name = |what: &str| format!("flow records per controller CPU-second, {what}, {size} (row 9)");
    report.add(Figure::new(name("flows opened, updated twice and closed"), median_of(&flood), "records/s").at_least(300_000.0));
    report.add(Figure::new(name("each record of another flow"), median_of(&distinct), "records/s").at_least(300_000.0));
    Ok(())
}

/// A node's stream of records.
struct Reporter {
    number: u32,
    sequence: u64,
    up: tokio::sync::mpsc::Sender<v1::FlowMessage>,
    acks: tonic::Streaming<v1::FlowAck>,
}

impl Reporter {
    async fn new(channel: &tonic::transport::Channel, number: u32) -> anyhow::Result<Self> {
        let (up, receiver) = tokio::sync::mpsc::channel(4);
        let hello = v1::FlowHello {
            node: format!("node-{number}"),
            instance_id: format!("bench-instance-{number}"),
            boot_id: "bench-boot".to_owned(),
        };
        up.send(v1::FlowMessage { message: Some(Up::Hello(hello)) }).await?;
        let acks = FlowServiceClient::new(channel.clone()).report(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { number, sequence: 0, up, acks })
    }

    async fn send(&mut self, flows: impl Iterator<Item = (u32, v1::FlowPhase)>, times: u32) -> anyhow::Result<()> {
        let records: Vec<v1::FlowRecord> =
            (self.sequence + 1..).zip(flows).map(|(at, (flow, phase))| record(self.number, at, flow, phase)).collect();
        self.sequence += u64::from(BATCH);
        for _ in 0..times {
            let batch = v1::FlowBatch { records: records.clone() };
            self.up.send(v1::FlowMessage { message: Some(Up::Batch(batch)) }).await?;
            let ack = self.acks.message().await?.context("the stream ended")?;
            ensure!(ack.sequence == self.sequence, "acked {} of {}", ack.sequence, self.sequence);
        }
        Ok(())
    }
}

async fn rounds(process: u32) -> anyhow::Result<[Vec<f64>; 2]> {
    let channel = Endpoint::try_from(format!("http://{CONTROLLER}"))?.connect().await?;
    let mut reporters = Vec::new();
    for number in 0..REPORTERS {
        reporters.push(Reporter::new(&channel, number).await?);
    }
    let mut rates = [Vec::new(), Vec::new()];
    let each = BATCHES / REPORTERS;
    for round in 0..u32::try_from(ROUNDS)? {
        for (kind, rates) in [Kind::Flood, Kind::Distinct].into_iter().zip(&mut rates) {
            let before = processor_time(process)?;
            for turn in 0..BATCHES {
                let number = turn / REPORTERS;
                let flow = |at: u32| match kind {
                    // A quarter of the messages for each phase, the same flows in each.
                    Kind::Flood => {
                        let phases = [v1::FlowPhase::Opened, v1::FlowPhase::Updated, v1::FlowPhase::Updated, v1::FlowPhase::Closed];
                        let phase = phases.get((number * 4 / each) as usize).copied().unwrap_or_default();
                        ((round * each / 4 + number % (each / 4)) * BATCH + at, phase)
                    }
                    Kind::Distinct => (1_000_000 + (round * each + number) * BATCH + at, v1::FlowPhase::Opened),
                };
                let times = if turn % 10 == 9 { 2 } else { 1 };
                let reporter = reporters.get_mut((turn % REPORTERS) as usize).context("no such reporter")?;
                reporter.send((0..BATCH).map(flow), times).await?;
            }
            let took = processor_time(process)?.saturating_sub(before);
            rates.push(f64::from(BATCH * BATCHES) / took.as_secs_f64());
        }
    }
    Ok(rates)
}

/// A flow that was denied at a workload of the node, with one of 1,000 others, so that no two numbers are one flow. One in four
/// is what the workload sent; of what it received, one in sixteen comes from nobody that is known.
fn record(node: u32, sequence: u64, flow: u32, phase: v1::FlowPhase) -> v1::FlowRecord {
    let (local, other) = (flow % (PODS / NODES) * NODES + node, flow.wrapping_mul(7_919) % PODS);
    // A prime: with the thousand others, 65 million numbers go by before one flow comes again.
    let port = flow.wrapping_mul(31) % 64_997 + 1;
    let (local_address, other_address) = (eval::address(local), eval::address(if flow % 16 == 5 { PODS + other } else { other }));
    let (direction, source, destination) = if flow % 4 == 3 {
        (v1::Direction::Egress, local_address, other_address)
    } else {
        (v1::Direction::Ingress, other_address, local_address)
    };
    let packets = if phase == v1::FlowPhase::Opened { 1 } else { 1_000 };
    let event = v1::FlowEvent {
        flow_id: [[0; 8], (u64::from(node) << 32 | u64::from(flow)).to_be_bytes()].concat().into(),
        phase: phase.into(),
        verdict: v1::Verdict::Drop.into(),
        direction: direction.into(),
        interface: format!("veth{local}"),
        container: eval::container(local),
        source: source.octets().to_vec().into(),
        destination: destination.octets().to_vec().into(),
        transport: Some(v1::Transport { protocol: 6, port: Some(port), icmp_type: None, icmp_code: None }),
        source_port: Some(40_000),
        source_ports: 1,
        packets,
        bytes: 60 * packets,
        first_seen: Some(SystemTime::now().into()),
        last_seen: Some(SystemTime::now().into()),
        generation: 1,
        network: "default".to_owned(),
        ..v1::FlowEvent::default()
    };
    v1::FlowRecord { sequence, time: Some(SystemTime::now().into()), record: Some(v1::flow_record::Record::Flow(event)) }
}

/// The newest records name both ends and say why: what was measured is the whole of it.
fn explained(controller: &Controller) -> anyhow::Result<()> {
    let shown = controller.ask(&["flows", "-o", "json"])?;
    let (mut flows, mut strangers) = (0, 0);
    for line in shown.lines() {
        let flow: serde_json::Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        let named = |end: &str| flow[end]["workload"].as_str().is_some_and(|name| name.starts_with('w'));
        ensure!(named("source") || named("destination"), "no end has a name: {line}");
        strangers += usize::from(!named("source") || !named("destination"));
        ensure!(!flow["reason"].is_null(), "no reason: {line}");
        flows += 1;
    }
    ensure!(flows > 0 && strangers * 8 <= flows, "{flows} flows are shown, {strangers} of them with an end that is not known");
    Ok(())
}

/// utime and stime of a process.
pub(crate) fn processor_time(process: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The 12th and 13th behind the name, which may hold spaces.
    let behind_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = behind_name.split(' ').skip(11).take(2).map(str::parse::<u32>).sum::<Result<u32, _>>();
    Ok(TICK * ticks.with_context(|| format!("cannot read {stat:?}"))?)
}
