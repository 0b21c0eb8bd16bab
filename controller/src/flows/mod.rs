//! Denied flows: taken from agents, each once; both ends named, the reason told; kept, and handed to followers.

mod attribute;
mod cuts;
mod kept;
mod owners;
mod ring;
mod view;

pub use kept::{End, Kept, Reporter, What, Why};
pub use ring::Ring;

use crate::agents::hello::{id, node_name};
use crate::agents::pin;
use crate::auth::{Act, Principal, Target, authorize};
use crate::hub::Hub;
use crate::hub::published::Published;
use crate::metrics::Metrics;
use crate::store::Store;
use attribute::{Attribution, Attributor};
use cuts::{Cuts, Told};
use firebreak_policy::model::NodeName;
use firebreak_proto::v1::flow_record::Record;
use firebreak_proto::{MAX_MESSAGE_BYTES, Refusal, v1};
use jiff::Timestamp;
use owners::Owners;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use view::View;

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
    /// The newest publication that a batch was named by.
    view: Arc<Mutex<Option<Arc<View>>>>,
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
type Received = HashMap<NodeName, VecDeque<(Arc<Reporter>, Arc<Mutex<Option<u64>>>)>>;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelValue)]
enum Outcome {
    /// A flow, kept and handed on.
    Flow,
    /// A word of packets that no record tells of.
    Lost,
    /// A cut connection, kept and handed on.
    Cut,
    /// Something that happened to a node's enforcement, kept and handed on.
    NodeEvent,
    /// Frames that a guard refused, kept and handed on.
    Guard,
    /// It was there already.
    Duplicate,
    /// A gap in a node's sequence.
    Gap,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Taken {
    outcome: Outcome,
}

impl Flows {
    /// A service over the hub; records go into the ring. Streams end when `stop` is cancelled.
    pub fn new(hub: Hub, store: Store, ring: Ring, stop: CancellationToken, clock: fn() -> Timestamp) -> Self {
        Self {
            hub,
            store,
            ring,
            owners: Arc::default(),
            view: Arc::default(),
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
    fn received(&self, reporter: &Arc<Reporter>) -> Arc<Mutex<Option<u64>>> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let boots = received.entry(reporter.node.clone()).or_default();
        if let Some((_, last)) = boots.iter().find(|(known, _)| known == reporter) {
            return Arc::clone(last);
        }
        if boots.len() == BOOTS {
            boots.pop_front();
        }
        let last = Arc::default();
        boots.push_back((Arc::clone(reporter), Arc::clone(&last)));
        last
    }

    /// The newest publication; what was remembered of the one before goes with it.
    fn view(&self) -> Option<Arc<View>> {
        let newest = self.hub.newest()?;
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        match &*view {
            Some(view) if Arc::ptr_eq(&view.published, &newest) => Some(Arc::clone(view)),
            Some(_) | None => Some(Arc::clone(view.insert(Arc::new(View::of(newest))))),
        }
    }

    async fn join(&self, principal: &Principal, inbound: &mut Streaming<v1::FlowMessage>) -> Result<Arc<Reporter>, Status> {
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
        Ok(Arc::new(Reporter { node, instance, boot_id }))
    }

    /// Takes a batch; gives the sequence up to which everything is here.
    fn take(&self, reporter: &Arc<Reporter>, batch: v1::FlowBatch) -> Result<u64, Refusal> {
        if batch.records.len() > LARGEST_BATCH {
            return Err(Refusal::new("records", format!("has {}, over {LARGEST_BATCH}", batch.records.len())));
        }
        let view = self.view().ok_or_else(|| Refusal::new("records", "came before the controller was in sync"))?;
        let now = (self.clock)();
        let received = self.received(reporter);
        // Two streams of one reporter take turns; other nodes do not wait.
        let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = *received;
        let mut records = Vec::with_capacity(batch.records.len());
        let mut duplicates = 0;
        let owners = self.owners.read().unwrap_or_else(PoisonError::into_inner);
        let mut named =
            Named { attributor: Attributor::new(&view, &owners, &reporter.node, now), published: &view.published, reporter, now };
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
                records.push((Outcome::Gap, named.gap(sequence, reason)));
            }
            records.push(named.record(record).map_err(within)?);
            last = Some(sequence);
        }
        drop(named);
        drop(owners);
        let taken = self.hand_on(reporter, records, now);
        duplicates += taken.get(&Outcome::Duplicate).copied().unwrap_or(0);
        for (outcome, count) in taken.into_iter().filter(|(outcome, _)| *outcome != Outcome::Duplicate) {
            self.taken.get_or_create(&Taken { outcome }).inc_by(count);
        }
        self.taken.get_or_create(&Taken { outcome: Outcome::Duplicate }).inc_by(duplicates);
        *received = last;
        Ok(last.unwrap_or(0))
    }

    /// Keeps what is news; gives how many there were of each.
    fn hand_on(&self, reporter: &Reporter, records: Vec<(Outcome, Kept)>, now: Timestamp) -> BTreeMap<Outcome, u64> {
        let mut taken = BTreeMap::new();
        let news = records.into_iter().filter_map(|(outcome, record)| {
            let outcome = match &record.what {
                What::Cut(cut) if self.told(reporter, cut, now) == Told::Before => Outcome::Duplicate,
                What::Cut(_) | What::Flow(_) | What::Lost(_) | What::NodeEvent(_) | What::Guard(_) => outcome,
            };
            *taken.entry(outcome).or_default() += 1;
            (outcome != Outcome::Duplicate).then_some(record)
        });
        self.ring.push(news.collect());
        taken
    }

    fn told(&self, reporter: &Reporter, cut: &v1::CutEvent, now: Timestamp) -> Told {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).tell(&reporter.node, cut, now)
    }
}

/// Makes kept records of a batch's.
struct Named<'a> {
    attributor: Attributor<'a>,
    published: &'a Published,
    reporter: &'a Arc<Reporter>,
    now: Timestamp,
}

impl Named<'_> {
    /// A record of our own: some of the reporter's did not come.
    fn gap(&self, sequence: u64, reason: String) -> Kept {
        let now = wire_time(self.now);
        Kept {
            cursor: 0,
            reporter: Arc::clone(self.reporter),
            sequence,
            time: v1::Stamp { node_time: Some(now), controller_time: Some(now) },
            revision: 0,
            what: What::Lost(v1::LostEvent { reason, ..v1::LostEvent::default() }),
            source: None,
            destination: None,
            reason: None,
        }
    }

    fn record(&mut self, record: v1::FlowRecord) -> Result<(Outcome, Kept), Refusal> {
        let v1::FlowRecord { sequence, time, record } = record;
        let record = record.ok_or_else(|| Refusal::new("record", "is not set, or of a kind that this version does not know"))?;
        let both = |named: Attribution| (Some(named.source), Some(named.destination), named.reason);
        let (outcome, what, (source, destination, reason)) = match record {
            Record::Lost(event) => match event.direction() {
                v1::Direction::Ingress | v1::Direction::Egress => (Outcome::Lost, What::Lost(event), (None, None, None)),
                v1::Direction::Unspecified => return Err(Refusal::new("lost.direction", "is not set")),
            },
            Record::Flow(event) => {
                let named = self.attributor.flow(&event).map_err(|refusal| refusal.within("flow"))?;
                (Outcome::Flow, What::Flow(event), both(named))
            }
            Record::Cut(cut) => {
                let named = self.attributor.cut(&cut, time).map_err(|refusal| refusal.within("cut"))?;
                (Outcome::Cut, What::Cut(Box::new(cut)), both(named))
            }
            Record::NodeEvent(event) => {
                if event.kind() == v1::NodeEventKind::Unspecified {
                    return Err(Refusal::new("node_event.kind", "is not set, or of a kind that this version does not know"));
                }
                (Outcome::NodeEvent, What::NodeEvent(event), (None, None, None))
            }
            Record::Guard(guard) => {
                let sender = self.attributor.guard(&guard).map_err(|refusal| refusal.within("guard"))?;
                (Outcome::Guard, What::Guard(Box::new(guard)), (Some(sender), None, None))
            }
        };
        let kept = Kept {
            cursor: 0,
            reporter: Arc::clone(self.reporter),
            sequence,
            time: v1::Stamp { node_time: time, controller_time: Some(wire_time(self.now)) },
            revision: self.published.revision.0,
            what,
            source,
            destination,
            reason,
        };
        Ok((outcome, kept))
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
        reporter: &Arc<Reporter>,
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
