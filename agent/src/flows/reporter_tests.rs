#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::config::{Limits, Timing};
use super::super::record::Told;
use super::*;
use firebreak_policy::model::Direction;
use firebreak_proto::v1::flow_service_server::{FlowService, FlowServiceServer};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// What the fake controller does with one connection.
#[derive(Clone, Copy)]
enum Act {
    /// Takes and acknowledges everything.
    AckAll,
    /// Takes this many batches, acknowledges all but the last one, and breaks off: that ack is lost.
    LoseAckAfter(usize),
    /// Refuses the stream.
    Refuse,
    /// Acknowledges what was never sent.
    AckTooMuch,
    /// Refuses every batch that has a record of 7, 17, 27, ... packets, and acknowledges the others.
    RefuseSevens,
}

#[derive(Default)]
struct Seen {
    /// Per connection: sequences in order of arrival.
    connections: Vec<Vec<u64>>,
    /// By sequence: what it meant. A number with two meanings fails the test.
    records: BTreeMap<u64, u64>,
    hellos: Vec<v1::FlowHello>,
}

#[derive(Clone)]
struct Fake {
    script: Arc<Mutex<Vec<Act>>>,
    seen: Arc<Mutex<Seen>>,
}

#[tonic::async_trait]
impl FlowService for Fake {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<v1::FlowAck, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<v1::FlowMessage>>) -> Result<Response<Self::ReportStream>, Status> {
        let act = self.script.lock().unwrap().pop().unwrap_or(Act::AckAll);
        if matches!(act, Act::Refuse) {
            return Err(Status::unavailable("not now"));
        }
        let (acks, receiver) = mpsc::channel(1);
        tokio::spawn(serve(request.into_inner(), act, self.seen.clone(), acks));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn serve(mut stream: Streaming<v1::FlowMessage>, act: Act, seen: Arc<Mutex<Seen>>, acks: mpsc::Sender<Result<v1::FlowAck, Status>>) {
    let connection = {
        let mut seen = seen.lock().unwrap();
        seen.connections.push(Vec::new());
        seen.connections.len() - 1
    };
    let is_seven = |record: &v1::FlowRecord| {
        let Some(v1::flow_record::Record::Lost(lost)) = &record.record else { return false };
        lost.packets % 10 == 7 && lost.reason == "x"
    };
    let mut batches = 0;
    while let Ok(Some(v1::FlowMessage { message: Some(message) })) = stream.message().await {
        let last = match message {
            v1::flow_message::Message::Hello(hello) => {
                seen.lock().unwrap().hellos.push(hello);
                continue;
            }
            v1::flow_message::Message::Batch(batch) if matches!(act, Act::RefuseSevens) && batch.records.iter().any(is_seven) => {
                let _ = acks.send(Err(Status::invalid_argument("batch.records[0].lost: is a seven"))).await;
                return;
            }
            v1::flow_message::Message::Batch(batch) => {
                let mut seen = seen.lock().unwrap();
                for record in &batch.records {
                    let Some(v1::flow_record::Record::Lost(lost)) = &record.record else { panic!("{record:?}") };
                    let known = *seen.records.entry(record.sequence).or_insert(lost.packets);
                    assert_eq!(known, lost.packets, "sequence {} names two records", record.sequence);
                    seen.connections[connection].push(record.sequence);
                }
                batch.records.last().unwrap().sequence
            }
        };
        batches += 1;
        let sequence = match act {
            Act::AckAll | Act::RefuseSevens => last,
            Act::LoseAckAfter(limit) if batches >= limit => {
                let _ = acks.send(Err(Status::unavailable("broken off"))).await;
                return;
            }
            Act::LoseAckAfter(_) => last,
            Act::AckTooMuch => last + 1_000_000,
            Act::Refuse => unreachable!("refused before"),
        };
        if acks.send(Ok(v1::FlowAck { sequence })).await.is_err() {
            return;
        }
    }
}

struct Bench {
    records: Option<mpsc::Sender<Vec<Record>>>,
    shutdown: CancellationToken,
    reporter: JoinHandle<Result<(), FlowsError>>,
    stats: Arc<FlowsStats>,
    directory: Arc<tempfile::TempDir>,
}

fn fake(script: &[Act]) -> Fake {
    let script = Arc::new(Mutex::new(script.iter().rev().copied().collect()));
    Fake { script, seen: Arc::default() }
}

fn listen(fake: Fake, listener: TcpListener) -> JoinHandle<()> {
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(FlowServiceServer::new(fake));
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    })
}

/// A reporter as `run` makes it.
fn report(address: std::net::SocketAddr, directory: Arc<tempfile::TempDir>) -> Bench {
    let files = StateFiles::open(directory.path(), "boot").unwrap();
    let limits = Limits { flows: 10, records: 50_000 };
    let config = FlowsConfig {
        node: "n1".into(),
        instance_id: "i1".into(),
        boot_id: "boot".into(),
        endpoint: tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap(),
        state_dir: directory.path().to_owned(),
        nflog_group: 5,
        read_interval: FlowsConfig::DEFAULT_READ_INTERVAL,
        timing: Timing::default(),
        limits,
    };
    let next = files.read_sequence().unwrap();
    let mut outbox = Outbox::new(limits.records, next);
    outbox.restore(files.take_unacked().unwrap());
    let (sender, records) = mpsc::channel(16);
    let (shutdown, stats) = (CancellationToken::new(), Arc::new(FlowsStats::default()));
    let reporter = Reporter {
        config: Arc::new(config),
        files,
        outbox,
        records,
        stats: stats.clone(),
        shutdown: shutdown.clone(),
        chance: || 0,
        kept_sequence: next,
    };
    Bench { records: Some(sender), shutdown, reporter: tokio::spawn(reporter.run()), stats, directory }
}

fn lost(packets: u64) -> Record {
    Record { time: SystemTime::now(), told: Told::Lost { direction: Direction::Ingress, packets, reason: "x".into() } }
}

impl Bench {
    async fn push(&self, numbers: std::ops::Range<u64>) {
        for chunk in numbers.collect::<Vec<_>>().chunks(300) {
            self.records.as_ref().unwrap().send(chunk.iter().copied().map(lost).collect()).await.unwrap();
        }
    }

    async fn wait_for_acks(&self, count: u64) {
        let acked = async {
            while self.stats.snapshot().records_acked < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), acked).await.unwrap_or_else(|_| panic!("{:?}", self.stats.snapshot()));
    }

    async fn stop(mut self) -> Duration {
        let began = Instant::now();
        self.records = None;
        self.shutdown.cancel();
        timeout(Duration::from_secs(10), &mut self.reporter).await.expect("ends in time").unwrap().unwrap();
        began.elapsed()
    }
}

#[tokio::test]
async fn every_record_arrives_in_order_though_acks_are_lost_and_streams_break() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let fake = fake(&[Act::LoseAckAfter(1), Act::Refuse, Act::LoseAckAfter(4), Act::AckTooMuch, Act::LoseAckAfter(2), Act::AckAll]);
    let server = listen(fake.clone(), listener);
    let bench = report(address, Arc::new(tempfile::tempdir().unwrap()));
    bench.push(0..10_000).await;
    bench.wait_for_acks(10_000).await;
    bench.push(10_000..10_001).await;
    bench.wait_for_acks(10_001).await;
    assert!(bench.stop().await < DRAIN);
    server.abort();

    let seen = fake.seen.lock().unwrap();
    assert_eq!(seen.records.len(), 10_001);
    for (index, (sequence, packets)) in seen.records.iter().enumerate() {
        let index = u64::try_from(index).unwrap();
        assert_eq!((*sequence, *packets), (index + 1, index), "in the order in which they were made, without gaps");
    }
    assert!(seen.connections.len() >= 5, "{} connections", seen.connections.len());
    for sequences in &seen.connections {
        assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1), "one connection's sequences have no gap");
    }
    assert!(
        seen.hellos.iter().all(|hello| (hello.node.as_str(), hello.instance_id.as_str(), hello.boot_id.as_str()) == ("n1", "i1", "boot"))
    );
}

#[tokio::test]
async fn a_record_that_is_refused_holds_up_no_other_and_is_reported_as_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let fake = fake(&[Act::RefuseSevens; 100]);
    let server = listen(fake.clone(), listener);
    let bench = report(address, Arc::new(tempfile::tempdir().unwrap()));
    bench.push(0..30).await;
    bench.wait_for_acks(30).await;
    assert_eq!(bench.stats.snapshot().records_refused, 3);
    bench.stop().await;
    server.abort();
    let seen = fake.seen.lock().unwrap();
    let arrived: Vec<_> = seen.records.iter().map(|(sequence, packets)| (*sequence, *packets)).collect();
    assert_eq!(arrived, (0..30).map(|n| (n + 1, n)).collect::<Vec<_>>(), "no gap: a loss of as many packets stands for each");
}

#[tokio::test]
async fn records_wait_for_a_controller_that_comes_later_and_outlive_the_agent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let first = report(address, directory.clone());
    first.push(0..2_000).await;
    let took = first.stop().await;
    assert!((DRAIN..DRAIN + Duration::from_secs(1)).contains(&took), "{took:?}");

    // The second sends and gets no ack for what it took over.
    let listener = TcpListener::bind(address).await.unwrap();
    let unreliable = fake(&[Act::LoseAckAfter(1); 40]);
    let server = listen(unreliable.clone(), listener);
    let second = report(address, directory.clone());
    second.push(2_000..2_500).await;
    second.stop().await;
    server.abort();
    let _ = server.await;

    let reliable = Fake { seen: unreliable.seen.clone(), ..fake(&[]) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = listen(reliable.clone(), listener);
    let third = report(address, directory);
    third.push(2_500..3_000).await;
    third.wait_for_acks(3_000).await;
    assert!(third.stop().await < DRAIN);
    server.abort();
    let seen = reliable.seen.lock().unwrap();
    assert_eq!(
        seen.records.iter().map(|(sequence, packets)| (*sequence, *packets)).collect::<Vec<_>>(),
        (0..3_000).map(|n| (n + 1, n)).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_killed_agents_numbers_are_not_given_to_other_records() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let fake = fake(&[]);
    let server = listen(fake.clone(), listener);
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut expected = 0;
    for round in 0..5u64 {
        let bench = report(address, directory.clone());
        bench.push(round * 1_000..round * 1_000 + 100).await;
        bench.wait_for_acks(100).await;
        // As a kill does: no drain, no file.
        bench.reporter.abort();
        let _ = (&bench.directory, bench.reporter.await);
        expected += 100;
    }
    server.abort();
    let seen = fake.seen.lock().unwrap();
    let sequences: Vec<u64> = seen.records.keys().copied().collect();
    assert_eq!(sequences, (1..=expected).collect::<Vec<u64>>(), "what was acknowledged leaves no gap");
}
