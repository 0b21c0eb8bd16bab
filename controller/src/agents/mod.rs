//! The agents' service: one session per node, each at its own pace.

pub(crate) mod difference;
mod encoded;
mod frame;
pub(crate) mod hello;
mod report;
mod session;

use crate::auth::{Act, Principal, Target, authorize};
use crate::hub::{Hub, Report};
use crate::metrics::{Metrics, Outcome};
use crate::store::{InstanceId, PinError, Store};
use encoded::Encoded;
use firebreak_policy::model::{NodeName, Revision};
use firebreak_proto::v1;
use firebreak_proto::v1::controller_message::Message as Down;
pub use frame::AgentServer;
use frame::Frame;
use hello::Caller;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use session::Session;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// How long a caller may take to say who it is and what it holds.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// Messages between a session and its connection; a session waits while the agent does not read.
const OUTGOING: usize = 4;

/// What comes from an agent.
type Incoming = Streaming<v1::AgentMessage>;

/// Where a session puts what goes to its agent.
type Outgoing = mpsc::Sender<Result<Frame, Status>>;

/// The agents' service.
#[derive(Clone, Debug)]
pub struct Agents {
    hub: Hub,
    store: Store,
    sessions: Sessions,
    stop: CancellationToken,
    clock: fn() -> Timestamp,
    counted: Counted,
    encoded: Encoded,
}

/// What is counted of sessions.
#[derive(Clone, Debug)]
struct Counted {
    connected: Gauge,
    /// Sessions that the controller refused or ended, by the code that it gave.
    ended: Family<Ended, Counter>,
    realize_seconds: Histogram,
}

impl Default for Counted {
    fn default() -> Self {
        let realize_seconds = Histogram::new(exponential_buckets(0.001, 2.0, 17));
        Self { connected: Gauge::default(), ended: Family::default(), realize_seconds }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    code: Outcome,
}

/// The streams of each node: the newest one, and whose turn it is.
#[derive(Clone, Debug, Default)]
struct Sessions {
    by_node: Arc<Mutex<HashMap<NodeName, Slot>>>,
}

#[derive(Debug)]
struct Slot {
    /// Ends the newest session.
    newest: CancellationToken,
    /// One permit: a node's sessions come one after the other, so that nothing of an older one is taken in after the newer one began.
    turn: Arc<Semaphore>,
}

impl Sessions {
    /// Tells the node's session to end, if it has one, and waits until it has. `None` when a newer one came meanwhile, or the controller stops.
    async fn begin(&self, node: &NodeName, stop: &CancellationToken) -> Option<(CancellationToken, OwnedSemaphorePermit)> {
        let token = stop.child_token();
        let turn = {
            let mut by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
            let slot =
                by_node.entry(node.clone()).or_insert_with(|| Slot { newest: CancellationToken::new(), turn: Arc::new(Semaphore::new(1)) });
            std::mem::replace(&mut slot.newest, token.clone()).cancel();
            Arc::clone(&slot.turn)
        };
        tokio::select! {
            () = token.cancelled() => None,
            permit = turn.acquire_owned() => permit.ok().map(|permit| (token, permit)),
        }
    }

    /// Ends a session's turn; the node is not kept in mind when nobody waits for it.
    fn end(&self, node: &NodeName, permit: OwnedSemaphorePermit) {
        let mut by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        drop(permit);
        if by_node.get(node).is_some_and(|slot| Arc::strong_count(&slot.turn) == 1) {
            by_node.remove(node);
        }
    }
}

impl Agents {
    /// A service over the hub and the store; streams end when `stop` is cancelled.
    pub fn new(hub: Hub, store: Store, stop: CancellationToken, clock: fn() -> Timestamp) -> Self {
        Self { hub, store, sessions: Sessions::default(), stop, clock, counted: Counted::default(), encoded: Encoded::default() }
    }

    /// Shows how many agents are connected, how many sessions were ended and why, and how long changes take to every node.
    pub fn register(&self, metrics: &Metrics) {
        let Counted { connected, ended, realize_seconds } = self.counted.clone();
        let (made, shared) = (self.encoded.made.clone(), self.encoded.shared.clone());
        metrics.register(|registry| {
            registry.register("agents_connected", "Agents that have a session", connected);
            registry.register("agent_sessions_ended", "Sessions that the controller refused or ended, by gRPC code", ended);
            let help = "From a change to a node's ack that everything up to it is in the kernel";
            registry.register("realize_seconds", help, realize_seconds);
            registry.register("changes_encoded", "Changes of groups and segments that were encoded", made);
            registry.register("changes_shared", "Times that an encoded change went to a further agent as it was", shared);
        });
    }

    /// The tonic service, with its bounds on messages.
    pub fn into_server(self) -> AgentServer {
        AgentServer(self)
    }

    /// Reads the first message, pins the name, and makes the caller the node that it says it is; with a revision that the store had then.
    async fn join(&self, principal: &Principal, inbound: &mut Incoming) -> Result<(Caller, Revision), Status> {
        let first = tokio::time::timeout(HELLO_PATIENCE, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??
            .ok_or_else(|| Status::invalid_argument("message: the stream ended before a hello"))?;
        let hello = match first.message {
            Some(v1::agent_message::Message::Hello(hello)) => hello,
            Some(other) => return Err(Status::invalid_argument(format!("message: {} came before hello", session::name_of(&other)))),
            None => return Err(Status::invalid_argument("message: is not set, or of a kind that this version does not know")),
        };
        let caller = hello::read(hello)?;
        authorize(principal, Act::Join, Target::Node(&caller.node))?;
        // Read before: a session that began while its node was deleted ends once too often rather than never.
        let joined = self.store.revision();
        pin(&self.store, &caller.node, &caller.instance, (self.clock)()).await?;
        authorize(&Principal::Node(caller.node.clone()), Act::Sync, Target::Node(&caller.node))?;
        Ok((caller, joined))
    }
}

/// Pins a node's name to the caller's installation, or refuses with the remedy.
pub(crate) async fn pin(store: &Store, node: &NodeName, instance: &str, now: Timestamp) -> Result<(), Status> {
    match store.pin_node(node.clone(), InstanceId(instance.to_owned()), now).await {
        Ok(_) => Ok(()),
        Err(PinError::Taken { node, since }) => Err(Status::permission_denied(format!(
            "node {node} belongs to another agent installation since {since:.0}; if this machine replaces that one, run \
             `firebreak delete node {node} --forget` first, else give this agent a name of its own"
        ))),
        Err(PinError::Store(error)) => {
            tracing::error!(node = %node, error = %error, "could not pin a node");
            Err(Status::unavailable("the store cannot be written; try again"))
        }
    }
}

impl Agents {
    /// `Sync`, see agent.proto.
    async fn sync(&self, request: Request<Incoming>) -> Result<Response<ReceiverStream<Result<Frame, Status>>>, Status> {
        let principal = Principal::of(&request)?;
        let mut inbound = request.into_inner();
        let (caller, joined) = self.join(&principal, &mut inbound).await.inspect_err(|status| {
            tracing::warn!(principal = %principal, reason = status.message(), "refused an agent");
            self.counted.ended.get_or_create(&Ended { code: status.code().into() }).inc();
        })?;
        let node = caller.node.clone();
        let Some((token, turn)) = self.sessions.begin(&node, &self.stop).await else {
            return Err(Status::aborted("the session ends: the controller is stopping, or the node has a newer session"));
        };
        if !self.hub.report(joined, Report::Met(node.clone())).await {
            return Err(Status::unavailable("the controller is stopping"));
        }
        self.hub.board().connected(&node, &caller.boot_id, &caller.version, joined, ((self.clock)(), Instant::now()));
        self.counted.connected.inc();
        tracing::info!(node = %node, agent = %caller.version, boot = %caller.boot_id, "agent connected");
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        let service = self.clone();
        tokio::spawn(async move {
            let session = Session::new(&service, caller, joined, outgoing.clone());
            let ended = session.run(inbound, &token).await;
            service.hub.board().disconnected(&node);
            service.counted.connected.dec();
            service.sessions.end(&node, turn);
            match ended {
                Ok(()) => tracing::info!(node = %node, "agent disconnected"),
                Err(status) => {
                    tracing::warn!(node = %node, reason = status.message(), "ended a session");
                    service.counted.ended.get_or_create(&Ended { code: status.code().into() }).inc();
                    // An agent that has gone does not hear why.
                    let _ = outgoing.try_send(Err(status));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
