//! The agents' service: one session per node, each at its own pace.

pub(crate) mod difference;
pub(crate) mod hello;
mod report;
mod session;

use crate::auth::{Act, Principal, Target, authorize};
use crate::hub::{Hub, Report};
use crate::store::{InstanceId, PinError, Store};
use firebreak_policy::model::NodeName;
use firebreak_proto::{MAX_MESSAGE_BYTES, v1};
use hello::Caller;
use jiff::Timestamp;
use session::Session;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// How long a caller may take to say who it is and what it holds.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// Messages between a session and its connection; a session waits while the agent does not read.
const OUTGOING: usize = 4;

/// The agents' service.
#[derive(Clone, Debug)]
pub struct Agents {
    hub: Hub,
    store: Store,
    sessions: Sessions,
    stop: CancellationToken,
    clock: fn() -> Timestamp,
}

/// The stream that each node has now.
#[derive(Clone, Debug, Default)]
struct Sessions {
    by_node: Arc<Mutex<HashMap<NodeName, CancellationToken>>>,
}

impl Sessions {
    /// Begins a session; the one that the node had before is told to end.
    fn begin(&self, node: &NodeName, stop: &CancellationToken) -> CancellationToken {
        let token = stop.child_token();
        let mut by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = by_node.insert(node.clone(), token.clone()) {
            before.cancel();
        }
        token
    }

    /// Ends the session that holds this token; `false` when a newer one has taken its place.
    fn end(&self, node: &NodeName, token: &CancellationToken) -> bool {
        let mut by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        // A session that was replaced or stopped finds its token cancelled; only the newest one is still in the map uncancelled.
        let replaced = token.is_cancelled() && by_node.get(node).is_some_and(|newest| !newest.is_cancelled());
        if !replaced {
            by_node.remove(node);
        }
        !replaced
    }
}

impl Agents {
    /// A service over the hub and the store; streams end when `stop` is cancelled.
    pub fn new(hub: Hub, store: Store, stop: CancellationToken, clock: fn() -> Timestamp) -> Self {
        Self { hub, store, sessions: Sessions::default(), stop, clock }
    }

    /// The tonic service, with its bounds on messages.
    pub fn into_server(self) -> v1::agent_service_server::AgentServiceServer<Self> {
        v1::agent_service_server::AgentServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Reads the first message, pins the name, and makes the caller the node that it says it is.
    async fn join(&self, principal: &Principal, inbound: &mut Streaming<v1::AgentMessage>) -> Result<Caller, Status> {
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
        pin(&self.store, &caller.node, &caller.instance, (self.clock)()).await?;
        authorize(&Principal::Node(caller.node.clone()), Act::Sync, Target::Node(&caller.node))?;
        Ok(caller)
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

#[tonic::async_trait]
impl v1::agent_service_server::AgentService for Agents {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<v1::ControllerMessage, Status>> + Send>>;

    async fn sync(&self, request: Request<Streaming<v1::AgentMessage>>) -> Result<Response<Self::SyncStream>, Status> {
        let principal = Principal::of(&request)?;
        let mut inbound = request.into_inner();
        let caller = self.join(&principal, &mut inbound).await.inspect_err(|status| {
            tracing::warn!(principal = %principal, reason = status.message(), "refused an agent");
        })?;
        let node = caller.node.clone();
        let token = self.sessions.begin(&node, &self.stop);
        if !self.hub.report(Report::Met(node.clone())).await {
            return Err(Status::unavailable("the controller is stopping"));
        }
        self.hub.board().update(&node, |progress| {
            progress.connected = true;
            progress.agent_version.clone_from(&caller.version);
            progress.last_seen = Some((self.clock)());
        });
        tracing::info!(node = %node, agent = %caller.version, boot = %caller.boot_id, "agent connected");
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        let service = self.clone();
        tokio::spawn(async move {
            let session = Session::new(service.hub.clone(), service.store.clone(), service.clock, caller, outgoing.clone());
            let ended = session.run(inbound, &token).await;
            if service.sessions.end(&node, &token) {
                service.hub.board().update(&node, |progress| progress.connected = false);
            }
            match ended {
                Ok(()) => tracing::info!(node = %node, "agent disconnected"),
                Err(status) => {
                    tracing::warn!(node = %node, reason = status.message(), "ended a session");
                    // An agent that has gone does not hear why.
                    let _ = outgoing.try_send(Err(status));
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
