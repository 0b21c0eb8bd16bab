//! One connection, from Hello to its end.

use super::report::{self, Told};
use super::{Applied, Held, HeldError, SessionConfig, SessionLinks};
use crate::local::{LocalWorkloads, Warning};
use crate::observe::{Change, Request};
use firebreak_policy::model::Generation;
use firebreak_proto::v1::agent_message::Message as Up;
use firebreak_proto::v1::controller_message::Message as Down;
use firebreak_proto::workload::DeclaredWorkload;
use firebreak_proto::{FEATURE_AUDIT, FEATURE_REJECT, FEATURE_TIERS, MAX_MESSAGE_BYTES, PROTOCOL_VERSION, v1};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// How many messages may wait for the transport.
const OUTGOING: usize = 4;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// There is nobody at the other end.
    #[error("connecting to the controller at {uri}: {}", causes(source))]
    Connect {
        /// Where.
        uri: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// The controller ended the stream with an error.
    #[error("the controller ended the session: {}: {}", .0.code(), .0.message())]
    Refused(Status),
    /// The controller closed the stream.
    #[error("the controller closed the session")]
    Closed,
    /// A message that is none, or comes at the wrong time.
    #[error("the controller sent {what}")]
    Unexpected {
        /// What was wrong.
        what: String,
    },
    /// The state received does not add up; all of it is asked for again.
    #[error("received state does not add up: {0}")]
    Held(#[from] HeldError),
}

/// An error with its causes: the transport's own words are only "transport error".
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        next = cause.source();
    }
    text
}

impl SessionError {
    /// Whether trying again soon is pointless: somebody has to do something first.
    pub fn needs_people(&self) -> bool {
        match self {
            Self::Refused(status) => matches!(
                status.code(),
                tonic::Code::FailedPrecondition | tonic::Code::PermissionDenied | tonic::Code::AlreadyExists | tonic::Code::InvalidArgument
            ),
            Self::Connect { .. } | Self::Closed | Self::Unexpected { .. } | Self::Held(_) => false,
        }
    }
}

/// Speaks with the controller until the connection ends. `progress` is set when a generation was received.
pub(super) async fn converse(
    config: &SessionConfig,
    links: &mut SessionLinks,
    held: &mut Held,
    progress: &mut bool,
) -> Result<std::convert::Infallible, SessionError> {
    let uri = config.endpoint.uri().to_string();
    let channel = config.endpoint.connect().await.map_err(|source| SessionError::Connect { uri, source })?;
    let mut client = v1::agent_service_client::AgentServiceClient::new(channel).max_decoding_message_size(2 * MAX_MESSAGE_BYTES);

    let opening = opening(config, held);
    let (sender, receiver) = mpsc::channel(OUTGOING);
    let outgoing =
        tokio_stream::iter(opening).chain(ReceiverStream::new(receiver)).map(|message| v1::AgentMessage { message: Some(message) });
    let incoming = client.sync(outgoing).await.map_err(SessionError::Refused)?.into_inner();
    let conversation = Conversation {
        config,
        links,
        held,
        progress,
        sender,
        queue: VecDeque::new(),
        told: Told::default(),
        welcome: None,
        newest: None,
        declared: None,
        declared_warnings: BTreeSet::new(),
        declared_heard: false,
    };
    conversation.run(incoming).await
}

fn opening(config: &SessionConfig, held: &Held) -> Vec<Up> {
    let committed = held.committed();
    let hello = v1::Hello {
        node: config.node.as_str().to_owned(),
        instance_id: config.instance_id.clone(),
        boot_id: config.boot_id.clone(),
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        features: [FEATURE_TIERS, FEATURE_REJECT, FEATURE_AUDIT].map(str::to_owned).into(),
        epoch: committed.epoch.clone(),
        generation: committed.generation.0,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut messages = vec![Up::Hello(hello)];
    messages.extend(report::held_parts(held.objects()));
    messages
}

struct Conversation<'a> {
    config: &'a SessionConfig,
    links: &'a mut SessionLinks,
    held: &'a mut Held,
    progress: &'a mut bool,
    sender: mpsc::Sender<Up>,
    /// What is to be sent. Filled only when it is empty, so that it never holds more than one round of reports.
    queue: VecDeque<Up>,
    told: Told,
    welcome: Option<v1::Welcome>,
    /// The newest generation that came on this stream; only that one is answered.
    newest: Option<Generation>,
    /// Parts of a `Declared` list whose last one is not there yet.
    declared: Option<Vec<v1::DeclaredWorkload>>,
    declared_warnings: BTreeSet<Warning>,
    /// Whether this stream's list of declared workloads is there.
    declared_heard: bool,
}

impl Conversation<'_> {
    async fn run(mut self, mut incoming: Streaming<v1::ControllerMessage>) -> Result<std::convert::Infallible, SessionError> {
        // Everything is told in full; outcomes only of generations of this stream.
        self.links.local.mark_changed();
        self.links.status.mark_changed();
        loop {
            let may_send = self.welcome.is_some();
            let idle = may_send && self.queue.is_empty();
            let sender = self.sender.clone();
            tokio::select! {
                message = incoming.next() => match message {
                    None => return Err(SessionError::Closed),
                    Some(message) => self.receive(message.map_err(SessionError::Refused)?)?,
                },
                permit = sender.reserve(), if may_send && !self.queue.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(message) = self.queue.pop_front() {
                            permit.send(message);
                        }
                    }
                    // The transport is gone; the stream says why.
                    Err(_) => return Err(self.end_of(&mut incoming).await),
                },
                () = changed(&mut self.links.applied), if idle => self.acknowledge(),
                () = changed(&mut self.links.local), if idle => self.report(),
                () = changed(&mut self.links.status), if idle => self.report(),
            }
        }
    }

    async fn end_of(&self, incoming: &mut Streaming<v1::ControllerMessage>) -> SessionError {
        loop {
            match incoming.next().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return SessionError::Refused(status),
                None => return SessionError::Closed,
            }
        }
    }

    fn report(&mut self) {
        let local: Arc<LocalWorkloads> = self.links.local.borrow_and_update().clone();
        let status = self.links.status.borrow_and_update().clone();
        // What was declared before this stream may lack somebody, and so would a full report.
        if local.in_sync && self.declared_heard {
            self.queue.extend(self.told.catch_up(self.config, &local, &status, &self.declared_warnings));
        }
    }

    fn acknowledge(&mut self) {
        let applied: Option<Arc<Applied>> = self.links.applied.borrow_and_update().clone();
        let epoch = self.welcome.as_ref().map(|welcome| welcome.epoch.as_str());
        if let Some(applied) = applied.filter(|applied| Some(applied.epoch.as_str()) == epoch && Some(applied.generation) == self.newest) {
            self.queue.push_back(report::ack(&applied));
        }
    }

    fn receive(&mut self, message: v1::ControllerMessage) -> Result<(), SessionError> {
        let unexpected = |what: String| Err(SessionError::Unexpected { what });
        match (message.message, self.welcome.as_ref()) {
            (None, _) => unexpected("a message of a kind that this version does not know".to_owned()),
            (Some(Down::Welcome(welcome)), None) => self.begin(welcome),
            (Some(Down::Welcome(_)), Some(_)) => unexpected("a second Welcome".to_owned()),
            (Some(Down::Update(_) | Down::Commit(_) | Down::Declared(_) | Down::Observe(_)), None) => {
                unexpected("something before its Welcome".to_owned())
            }
            (Some(Down::Update(update)), Some(_)) => {
                update.updates.into_iter().try_for_each(|update| self.held.update(update)).map_err(SessionError::Held)
            }
            (Some(Down::Declared(part)), Some(_)) => {
                self.declare(part);
                Ok(())
            }
            (Some(Down::Observe(order)), Some(_)) => {
                self.observe(order);
                Ok(())
            }
            (Some(Down::Commit(commit)), Some(welcome)) => {
                if commit.epoch != welcome.epoch {
                    return unexpected(format!("a commit of epoch {:?} in a session of epoch {:?}", commit.epoch, welcome.epoch));
                }
                let held = self.held.committed();
                if commit.epoch == held.epoch && commit.generation <= held.generation.0 {
                    return unexpected(format!(
                        "generation {} again: generation {} of the same epoch is held, and none may come back",
                        commit.generation, held.generation
                    ));
                }
                self.commit(commit)
            }
        }
    }

    fn begin(&mut self, welcome: v1::Welcome) -> Result<(), SessionError> {
        if welcome.protocol != PROTOCOL_VERSION {
            let what = format!("protocol version {}; this agent speaks {PROTOCOL_VERSION}", welcome.protocol);
            return Err(SessionError::Unexpected { what });
        }
        if welcome.epoch.is_empty() {
            return Err(SessionError::Unexpected { what: "a Welcome without an epoch".to_owned() });
        }
        tracing::info!(epoch = %welcome.epoch, controller_version = %welcome.controller_version, "session with the controller");
        self.links.stats.is_connected.store(true, Ordering::Relaxed);
        self.links.stats.sessions.fetch_add(1, Ordering::Relaxed);
        self.welcome = Some(welcome);
        Ok(())
    }

    fn declare(&mut self, part: v1::Declared) {
        let v1::Declared { workloads, reset, last } = part;
        let list = self.declared.get_or_insert_default();
        if reset {
            list.clear();
        }
        list.extend(workloads);
        if !last {
            return;
        }
        let mut warnings = BTreeSet::new();
        let mut read = Vec::new();
        for wire in self.declared.take().unwrap_or_default() {
            let container = wire.container.clone();
            match DeclaredWorkload::try_from(wire) {
                Ok(workload) => read.push(workload),
                Err(refusal) => {
                    warnings.insert(Warning::new("DeclaredRefused", format!("declared workload {container:?} cannot be read: {refusal}")));
                }
            }
        }
        if warnings != self.declared_warnings {
            for warning in &warnings {
                tracing::warn!(reason = %warning.message, "a declared workload was refused");
            }
            self.declared_warnings = warnings;
            self.links.status.mark_changed();
        }
        self.links.declared.send_replace(Some(Arc::new(read)));
        self.hear_declared();
    }

    fn commit(&mut self, commit: v1::Commit) -> Result<(), SessionError> {
        let committed = self.held.commit(commit)?;
        for (key, refusal) in &committed.refused {
            tracing::warn!(object = %key, reason = %refusal, "an object was refused");
        }
        self.newest = Some(committed.generation);
        tracing::debug!(generation = committed.generation.0, revision = committed.revision.0, "received a generation");
        *self.progress = true;
        // A controller that declares nothing need not say so before its first generation.
        self.links.declared.send_if_modified(|declared| declared.is_none() && declared.replace(Arc::default()).is_none());
        self.links.committed.send_replace(Some(committed));
        self.hear_declared();
        Ok(())
    }

    /// Hands an order on. What became of it the node's next report tells.
    fn observe(&mut self, order: v1::Observe) {
        let v1::Observe { duration, principal, reason, revision } = order;
        let change = match duration.map(Duration::try_from) {
            None => Change::End,
            Some(Ok(duration)) => Change::Begin(duration),
            Some(Err(error)) => {
                tracing::warn!(reason = %error, "an order to observe cannot be read");
                return;
            }
        };
        if self.links.observe.try_send(Request { change, principal, reason, order: Some(revision), reply: None }).is_err() {
            tracing::warn!("an order to observe was dropped: others wait before it");
        }
    }

    /// From here on reports go out.
    fn hear_declared(&mut self) {
        if !std::mem::replace(&mut self.declared_heard, true) {
            self.links.local.mark_changed();
        }
    }
}

/// Returns when there is something that was not looked at. A sender that is gone never changes again.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
