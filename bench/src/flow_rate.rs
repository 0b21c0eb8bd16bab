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
/// `USER_HZ`: utime and stime of `/proc/PID/stat` are in hundredths of a second on every architecture that Linux is built for today.
const TICK: Duration = Duration::from_millis(10);

/// Adds the rate: the real controller, its connection and its decoding included, by the processor time that its process took.
///
/// # Errors
/// The controller did not come up, or did not take, name or explain a record.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let folder = scratch::folder()?;
    let lab = Lab::new(&scratch::prefix("f"))?;
    let mut controller = Controller::start(&lab.core, folder.path())?;
    controller.apply(&eval::cluster(eval::Addresses::Listed)?)?;
    let process = controller.process().context("the controller has ended")?.id();
    let run = move || -> anyhow::Result<Vec<f64>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(rounds(process))
    };
    let rates = lab.core.run(run)??;
    explained(&controller)?;
    let name = format!(
        "flow records per controller CPU-second, {PODS} workloads x 200 policies, {BATCHES} messages of {BATCH} records, median of {ROUNDS} (row 9)"
    );
    report.add(Figure::new(name, median_of(&rates), "records/s").at_least(300_000.0));
    Ok(())
}

async fn rounds(process: u32) -> anyhow::Result<Vec<f64>> {
    let channel = Endpoint::try_from(format!("http://{CONTROLLER}"))?.connect().await?;
    let (up, receiver) = tokio::sync::mpsc::channel(4);
    let hello = v1::FlowHello { node: "node-0".to_owned(), instance_id: "bench-instance".to_owned(), boot_id: "bench-boot".to_owned() };
    up.send(v1::FlowMessage { message: Some(Up::Hello(hello)) }).await?;
    let mut acks = FlowServiceClient::new(channel).report(ReceiverStream::new(receiver)).await?.into_inner();
    let mut rates = Vec::new();
    let mut sequence = 0;
    for _ in 0..ROUNDS {
        let before = processor_time(process)?;
        for number in 0..BATCHES {
            let records: Vec<v1::FlowRecord> = (0..BATCH).map(|at| record(sequence + u64::from(at) + 1, number * BATCH + at)).collect();
            sequence += u64::from(BATCH);
            let times = if number % 10 == 9 { 2 } else { 1 };
            for _ in 0..times {
                let batch = v1::FlowBatch { records: records.clone() };
                up.send(v1::FlowMessage { message: Some(Up::Batch(batch)) }).await?;
                let ack = acks.message().await?.context("the stream ended")?;
                ensure!(ack.sequence == sequence, "acked {} of {sequence}", ack.sequence);
            }
        }
        let took = processor_time(process)?.saturating_sub(before);
        rates.push(f64::from(BATCH * BATCHES) / took.as_secs_f64());
    }
    Ok(rates)
}

/// A flow that was denied at a workload of `node-0`: 100 of them are met by 1,000 senders on 65,000 ports, so that hardly a flow comes twice.
fn record(sequence: u64, number: u32) -> v1::FlowRecord {
    let (to, from) = (number % (PODS / NODES) * NODES, number.wrapping_mul(7_919) % PODS);
    let event = v1::FlowEvent {
        flow_id: [sequence.to_be_bytes(), sequence.to_be_bytes()].concat().into(),
        phase: v1::FlowPhase::Opened.into(),
        verdict: v1::Verdict::Drop.into(),
        direction: v1::Direction::Ingress.into(),
        interface: format!("veth{to}"),
        container: eval::container(to),
        source: eval::address(from).octets().to_vec().into(),
        destination: eval::address(to).octets().to_vec().into(),
        transport: Some(v1::Transport { protocol: 6, port: Some(number.wrapping_mul(13) % 65_000 + 1), icmp_type: None, icmp_code: None }),
        source_port: Some(40_000),
        source_ports: 1,
        packets: 1,
        bytes: 60,
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
    let mut flows = 0;
    for line in shown.lines() {
        let flow: serde_json::Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        let named = |end: &str| flow[end]["workload"].as_str().is_some_and(|name| name.starts_with('w'));
        ensure!(named("source") && named("destination"), "an end has no name: {line}");
        ensure!(!flow["reason"].is_null(), "no reason: {line}");
        flows += 1;
    }
    ensure!(flows > 0, "no flow is shown");
    Ok(())
}

/// utime and stime of a process.
fn processor_time(process: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The 12th and 13th behind the name, which may hold spaces.
    let behind_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = behind_name.split(' ').skip(11).take(2).map(str::parse::<u32>).sum::<Result<u32, _>>();
    Ok(TICK * ticks.with_context(|| format!("cannot read {stat:?}"))?)
}
