//! Denied flows: taken from agents, each once; both ends named, the reason told; kept, and handed to followers.

mod attribute;
mod cuts;
mod owners;
mod ring;

pub use ring::Ring;

use crate::agents::hello::{id, node_name};
use crate::agents::pin;
use crate::auth::{Act, Principal, Target, authorize};
use crate::hub::Hub;
use crate::hub::published::Published;
use crate::metrics::Metrics;
use crate::store::Store;
use attribute::{attribute, attribute_cut};
use cuts::{Cuts, Told};
use firebreak_policy::model::NodeName;
use firebreak_proto::v1::flow_record::Record;
use firebreak_proto::{MAX_MESSAGE_BYTES, Refusal, v1};
use jiff::Timestamp;
use owners::Owners;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Records in one batch (flow.proto).
const LARGEST_BATCH: usize = 1_000;

/// How long a caller may take to say who it is.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// The flow service.
#[derive(Clone, Debug)]
pub struct Flows {
    hub: Hub,
    store: Store,
    ring: Ring,
    /// Read by those who name ends; written by the one task that follows publications.
    owners: Arc<RwLock<Owners>>,
    received: Arc<Mutex<Received>>,
    /// Cuts that one end's node has told, so that the other's word of the same is no second event.
    cuts: Arc<Mutex<Cuts>>,
    taken: Family<Taken, Counter>,
    stop: CancellationToken,
    clock: fn() -> Timestamp,
}

/// Boots of one node whose sequences are kept in mind; a node has one at a time.
const BOOTS: usize = 4;

/// The highest sequence of each of a node's last boots, newest boot last. Each has a lock of its own, so that nodes do not wait for each other.
type Received = HashMap<NodeName, VecDeque<(Reporter, Arc<Mutex<Option<u64>>>)>>;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    /// A flow, kept and handed on.
    Flow,
    /// A word of packets that no record tells of.
    Lost,
    /// A cut connection, kept and handed on.
    Cut,
    /// It was there already.
    Duplicate,
    /// A gap in a node's sequence.
    Gap,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Taken {
    outcome: Outcome,
}

/// A reporter of records. Another installation on the same boot counts from 1 again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reporter {
    node: NodeName,
    instance: String,
    boot_id: String,
}

impl Flows {
    /// A service over the hub; records go into the ring. Streams end when `stop` is cancelled.
    pub fn new(hub: Hub, store: Store, ring: Ring, stop: CancellationToken, clock: fn() -> Timestamp) -> Self {
        Self {
            hub,
            store,
            ring,
            owners: Arc::default(),
            received: Arc::default(),
            cuts: Arc::default(),
            taken: Family::default(),
            stop,
            clock,
        }
    }

    /// Shows how many records came, by what became of them.
    pub fn register(&self, metrics: &Metrics) {
        metrics
            .register(|registry| registry.register("flow_records", "Records of denied flows, by what became of them", self.taken.clone()));
    }

    /// The tonic service, with its bounds on messages.
    pub fn into_server(self) -> v1::flow_service_server::FlowServiceServer<Self> {
        v1::flow_service_server::FlowServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Follows publications, so that owners are known by their time. Runs until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        let mut publications = self.hub.publications();
        loop {
            let newest = publications.borrow_and_update().clone();
            if let Some(published) = newest {
                // Looked for beside those who read; only what changed is written.
                let changes = self.owners.read().unwrap_or_else(PoisonError::into_inner).changes(&published.inventory);
                self.owners.write().unwrap_or_else(PoisonError::into_inner).take(changes, (self.clock)());
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = publications.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Where the highest sequence of a reporter is kept.
    fn received(&self, reporter: &Reporter) -> Arc<Mutex<Option<u64>>> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let boots = received.entry(reporter.node.clone()).or_default();
        if let Some((_, last)) = boots.iter().find(|(known, _)| known == reporter) {
            return Arc::clone(last);
        }
        if boots.len() == BOOTS {
            boots.pop_front();
        }
        let last = Arc::default();
        boots.push_back((reporter.clone(), Arc::clone(&last)));
        last
    }

    async fn join(&self, principal: &Principal, inbound: &mut Streaming<v1::FlowMessage>) -> Result<Reporter, Status> {
        let first = tokio::time::timeout(HELLO_PATIENCE, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??
            .ok_or_else(|| Status::invalid_argument("message: the stream ended before a hello"))?;
        let hello = match first.message {
            Some(v1::flow_message::Message::Hello(hello)) => hello,
            Some(v1::flow_message::Message::Batch(_)) => return Err(Status::invalid_argument("message: batch came before hello")),
            None => return Err(Status::invalid_argument("message: is not set, or of a kind that this version does not know")),
        };
        let invalid = |refusal: Refusal| Status::invalid_argument(refusal.within("hello").to_string());
        let node = node_name(hello.node).map_err(invalid)?;
        let instance = id(hello.instance_id, "instance_id").map_err(invalid)?;
        let boot_id = id(hello.boot_id, "boot_id").map_err(invalid)?;
        authorize(principal, Act::Join, Target::Node(&node))?;
        pin(&self.store, &node, &instance, (self.clock)()).await?;
        authorize(&Principal::Node(node.clone()), Act::ReportFlows, Target::Node(&node))?;
        Ok(Reporter { node, instance, boot_id })
    }

    /// Takes a batch; gives the sequence up to which everything is here.
    fn take(&self, reporter: &Reporter, batch: v1::FlowBatch) -> Result<u64, Refusal> {
        if batch.records.len() > LARGEST_BATCH {
            return Err(Refusal::new("records", format!("has {}, over {LARGEST_BATCH}", batch.records.len())));
        }
        let published = self.hub.newest().ok_or_else(|| Refusal::new("records", "came before the controller was in sync"))?;
        let now = (self.clock)();
        let received = self.received(reporter);
        // Two streams of one reporter take turns; other nodes do not wait.
        let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
        let owners = self.owners.read().unwrap_or_else(PoisonError::into_inner);
        let mut last = *received;
        let mut records = Vec::with_capacity(batch.records.len());
        let mut duplicates = 0;
        for (at, record) in batch.records.into_iter().enumerate() {
            let within = |refusal: Refusal| refusal.within(format_args!("records[{at}]"));
            let sequence = record.sequence;
            if sequence == 0 {
                return Err(within(Refusal::new("sequence", "is 0; sequences begin at 1")));
            }
            if last.is_some_and(|last| sequence <= last) {
                duplicates += 1;
                continue;
            }
            if let Some(missing) = last.map(|last| sequence - last - 1).filter(|missing| *missing > 0) {
                let reason = format!("{missing} records between {} and {sequence} never came", sequence - missing - 1);
                let gap = lost(reporter, sequence, now, v1::LostEvent { reason, ..v1::LostEvent::default() });
                records.push((Outcome::Gap, gap));
            }
            records.push(attributed(&published, &owners, reporter, record, now).map_err(within)?);
            last = Some(sequence);
        }
        drop(owners);
        for (outcome, record) in records {
            if record.cut.as_ref().is_some_and(|cut| self.told(reporter, cut, now) == Told::Before) {
                duplicates += 1;
                continue;
            }
            self.taken.get_or_create(&Taken { outcome }).inc();
            self.ring.push(record);
        }
        self.taken.get_or_create(&Taken { outcome: Outcome::Duplicate }).inc_by(duplicates);
        *received = last;
        Ok(last.unwrap_or(0))
    }
}

impl Flows {
    fn told(&self, reporter: &Reporter, cut: &v1::CutEvent, now: Timestamp) -> Told {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).tell(&reporter.node, cut, now)
    }
}

fn lost(reporter: &Reporter, sequence: u64, now: Timestamp, event: v1::LostEvent) -> v1::AttributedFlow {
    v1::AttributedFlow {
        node: reporter.node.to_string(),
        boot_id: reporter.boot_id.clone(),
        sequence,
        time: Some(v1::Stamp { node_time: Some(wire_time(now)), controller_time: Some(wire_time(now)) }),
        lost: Some(event),
        ..v1::AttributedFlow::default()
    }
}

fn attributed(
    published: &Published,
    owners: &Owners,
    reporter: &Reporter,
    record: v1::FlowRecord,
    now: Timestamp,
) -> Result<(Outcome, v1::AttributedFlow), Refusal> {
    let v1::FlowRecord { sequence, time, record } = record;
    let mut flow = lost(reporter, sequence, now, v1::LostEvent::default());
    flow.time = Some(v1::Stamp { node_time: time, controller_time: Some(wire_time(now)) });
    flow.revision = published.revision.0;
    match record.ok_or_else(|| Refusal::new("record", "is not set, or of a kind that this version does not know"))? {
        Record::Lost(event) => {
            match event.direction() {
                v1::Direction::Ingress | v1::Direction::Egress => {}
                v1::Direction::Unspecified => return Err(Refusal::new("lost.direction", "is not set")),
            }
            flow.lost = Some(event);
            Ok((Outcome::Lost, flow))
        }
        Record::Flow(event) => {
            let named = attribute(published, owners, &reporter.node, &event, now).map_err(|refusal| refusal.within("flow"))?;
            flow.lost = None;
            flow.source = Some(named.source);
            flow.destination = Some(named.destination);
            flow.reason = named.reason;
            flow.event = Some(event);
            Ok((Outcome::Flow, flow))
        }
        Record::Cut(cut) => {
            let named = attribute_cut(published, owners, &reporter.node, &cut, now).map_err(|refusal| refusal.within("cut"))?;
            flow.lost = None;
            flow.source = Some(named.source);
            flow.destination = Some(named.destination);
            flow.reason = named.reason;
            flow.cut = Some(cut);
            Ok((Outcome::Cut, flow))
        }
    }
}

fn wire_time(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

#[tonic::async_trait]
impl v1::flow_service_server::FlowService for Flows {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<v1::FlowAck, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<v1::FlowMessage>>) -> Result<Response<Self::ReportStream>, Status> {
        let principal = Principal::of(&request)?;
        let mut inbound = request.into_inner();
        let reporter = self.join(&principal, &mut inbound).await.inspect_err(|status| {
            tracing::warn!(principal = %principal, reason = status.message(), "refused a reporter of flows");
        })?;
        let (outgoing, receiver) = mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            if let Err(status) = service.converse(&reporter, inbound, &outgoing).await {
                tracing::warn!(node = %reporter.node, reason = status.message(), "ended a stream of flows");
                // A reporter that has gone does not hear why.
                let _ = outgoing.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl Flows {
    async fn converse(
        &self,
        reporter: &Reporter,
        mut inbound: Streaming<v1::FlowMessage>,
        outgoing: &mpsc::Sender<Result<v1::FlowAck, Status>>,
    ) -> Result<(), Status> {
        loop {
            let message = tokio::select! {
                () = self.stop.cancelled() => return Err(Status::unavailable("the controller is stopping")),
                message = inbound.message() => message,
            };
            // A broken connection has nobody to tell.
            let Ok(Some(message)) = message else { return Ok(()) };
            let batch = match message.message {
                Some(v1::flow_message::Message::Batch(batch)) => batch,
                Some(v1::flow_message::Message::Hello(_)) => return Err(Status::invalid_argument("hello: came twice")),
                None => return Err(Status::invalid_argument("message: is not set, or of a kind that this version does not know")),
            };
            if self.hub.newest().is_none() {
                return Err(Status::unavailable("the controller is not in sync yet; report again"));
            }
            let sequence = self.take(reporter, batch).map_err(|refusal| Status::invalid_argument(refusal.within("batch").to_string()))?;
            if outgoing.send(Ok(v1::FlowAck { sequence })).await.is_err() {
                return Ok(());
            }
        }
    }
}
