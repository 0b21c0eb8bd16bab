//! One simulated agent: a real client with a connection of its own. It holds, checks and acknowledges what it is sent with the code of the
//! real agent; what it leaves out is the kernel.

use super::company;
use firebreak_agent::session::{Backoff, Held};
use firebreak_policy::model::NodeName;
use firebreak_proto::v1;
use firebreak_proto::v1::agent_message::Message as Up;
use firebreak_proto::v1::agent_service_client::AgentServiceClient;
use firebreak_proto::v1::controller_message::Message as Down;
use firebreak_proto::{FEATURE_AUDIT, FEATURE_REJECT, FEATURE_TIERS, MAX_MESSAGE_BYTES, PROTOCOL_VERSION};
use prost::Message as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// Objects named in one message; each is far below a hundredth of what a message may hold.
const HELD_PER_PART: usize = 5_000;

/// What an agent is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Keep a session and answer.
    Serve,
    /// Keep the connection, and read nothing from the stream.
    Stall,
    /// Have no connection.
    Stop,
}

/// A generation that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    /// Its revision.
    pub(crate) revision: u64,
    /// When the ack was on its way.
    pub(crate) at: Instant,
}

/// What went to and fro since somebody took it.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Traffic {
    /// Generations acknowledged.
    pub(crate) generations: u64,
    /// Object updates that came down.
    pub(crate) updates: u64,
    /// Objects that came whole, and not as what changed in them.
    pub(crate) whole_objects: u64,
    /// Bytes of messages down.
    pub(crate) bytes_down: u64,
    /// Bytes of messages up.
    pub(crate) bytes_up: u64,
    /// Sessions begun.
    pub(crate) sessions: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        let Self { generations, updates, whole_objects, bytes_down, bytes_up, sessions } = other;
        self.generations += generations;
        self.updates += updates;
        self.whole_objects += whole_objects;
        self.bytes_down += bytes_down;
        self.bytes_up += bytes_up;
        self.sessions += sessions;
    }
}

/// What one agent saw.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// In order.
    pub(crate) acked: Vec<Acked>,
    /// Since somebody took it.
    pub(crate) traffic: Traffic,
    /// Whether there is a session now that has acknowledged a generation with the workload that the agent reported on it.
    pub(crate) in_sync: bool,
    /// What did not add up.
    pub(crate) problems: Vec<String>,
}

/// What all agents share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) endpoint: Endpoint,
    pub(crate) mode: watch::Receiver<Mode>,
    pub(crate) log: Arc<Mutex<Log>>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the agent of node `number` until the sender of its mode is gone.
pub(crate) async fn run(number: u32, mut shared: Shared) {
    let mut held = Held::nothing(NodeName::new(company::node(number)));
    let backoff = Backoff { first: Duration::from_millis(200), most: Duration::from_secs(2) };
    let mut attempt = 0;
    loop {
        if shared.mode.wait_for(|mode| *mode != Mode::Stop).await.is_err() {
            return;
        }
        let mut until = shared.mode.clone();
        let before = shared.log().traffic.sessions;
        let ended = tokio::select! {
            ended = converse(number, &mut shared, &mut held) => ended,
            stopped = until.wait_for(|mode| *mode == Mode::Stop) => match stopped {
                Ok(_) => Ok(()),
                Err(_) => return,
            },
        };
        shared.log().in_sync = false;
        held.discard_draft();
        match ended {
            Ok(()) | Err(Ended::Lost) => {}
            Err(Ended::Wrong(what)) => {
                held = Held::nothing(NodeName::new(company::node(number)));
                shared.log().problems.push(format!("{}: {what}", company::node(number)));
            }
        }
        if shared.log().traffic.sessions != before {
            attempt = 0;
        }
        tokio::time::sleep(backoff.wait(attempt, &company::node(number))).await;
        attempt += 1;
    }
}

/// Why a session ended.
enum Ended {
    /// The connection is gone, or could not be made.
    Lost,
    /// The controller sent or said what it must not.
    Wrong(String),
}

async fn converse(number: u32, shared: &mut Shared, held: &mut Held) -> Result<(), Ended> {
    let channel = shared.endpoint.connect().await.map_err(|_| Ended::Lost)?;
    let mut client = AgentServiceClient::new(channel).max_decoding_message_size(2 * MAX_MESSAGE_BYTES);
    let (sender, receiver) = mpsc::channel(16);
    let mut session = Session { number, shared, held, sender, epoch: None, reported: false };
    session.send(hello(number, session.held)).await?;
    for part in held_parts(session.held) {
        session.send(part).await?;
    }
    let incoming = client.sync(ReceiverStream::new(receiver)).await;
    let mut incoming = incoming.map_err(refused)?.into_inner();
    while let Some(message) = session.next(&mut incoming).await? {
        session.take(message).await?;
    }
    Err(Ended::Lost)
}

fn refused(status: tonic::Status) -> Ended {
    match status.code() {
        // A controller that stops, or is killed.
        tonic::Code::Unavailable | tonic::Code::Aborted | tonic::Code::Cancelled | tonic::Code::Unknown | tonic::Code::Internal => {
            Ended::Lost
        }
        tonic::Code::Ok
        | tonic::Code::InvalidArgument
        | tonic::Code::DeadlineExceeded
        | tonic::Code::NotFound
        | tonic::Code::AlreadyExists
        | tonic::Code::PermissionDenied
        | tonic::Code::ResourceExhausted
        | tonic::Code::FailedPrecondition
        | tonic::Code::OutOfRange
        | tonic::Code::Unimplemented
        | tonic::Code::DataLoss
        | tonic::Code::Unauthenticated => Ended::Wrong(status.to_string()),
    }
}

struct Session<'a> {
    number: u32,
    shared: &'a mut Shared,
    held: &'a mut Held,
    sender: mpsc::Sender<v1::AgentMessage>,
    epoch: Option<String>,
    reported: bool,
}

impl Session<'_> {
    /// The next message; none is read while the agent stalls.
    async fn next(&mut self, incoming: &mut Streaming<v1::ControllerMessage>) -> Result<Option<v1::ControllerMessage>, Ended> {
        if *self.shared.mode.borrow() == Mode::Stall && self.shared.mode.wait_for(|mode| *mode != Mode::Stall).await.is_err() {
            return Ok(None);
        }
        incoming.message().await.map_err(refused)
    }

    async fn send(&self, message: Up) -> Result<(), Ended> {
        let message = v1::AgentMessage { message: Some(message) };
        self.shared.log().traffic.bytes_up += message.encoded_len() as u64;
        self.sender.send(message).await.map_err(|_| Ended::Lost)
    }

    async fn take(&mut self, message: v1::ControllerMessage) -> Result<(), Ended> {
        self.shared.log().traffic.bytes_down += message.encoded_len() as u64;
        match message.message {
            Some(Down::Welcome(welcome)) => {
                self.epoch = Some(welcome.epoch);
                self.shared.log().traffic.sessions += 1;
                Ok(())
            }
            Some(Down::Declared(_)) if self.reported => Ok(()),
            Some(Down::Declared(_)) => {
                self.reported = true;
                self.send(node_report(self.number)).await?;
                self.send(workloads(self.number)).await
            }
            Some(Down::Update(update)) => {
                for update in update.updates {
                    {
                        let mut log = self.shared.log();
                        log.traffic.updates += 1;
                        log.traffic.whole_objects += u64::from(is_whole(&update));
                    }
                    self.held.update(update).map_err(|error| Ended::Wrong(error.to_string()))?;
                }
                Ok(())
            }
            Some(Down::Commit(commit)) => self.commit(commit).await,
            Some(Down::Observe(_)) => Ok(()),
            None => Err(Ended::Wrong("a message of no kind".to_owned())),
        }
    }

    async fn commit(&mut self, commit: v1::Commit) -> Result<(), Ended> {
        let v1::Commit { epoch, generation, revision, hash: _ } = commit.clone();
        if Some(&epoch) != self.epoch.as_ref() || generation <= self.held.committed().generation.0 {
            return Err(Ended::Wrong(format!("generation {generation} of epoch {epoch} after {}", self.held.committed().generation)));
        }
        let committed = self.held.commit(commit).map_err(|error| Ended::Wrong(error.to_string()))?;
        if let Some((key, refusal)) = committed.refused.first_key_value() {
            return Err(Ended::Wrong(format!("{key}: {refusal}")));
        }
        self.send(Up::Ack(v1::Ack { generation, revision, epoch, ..v1::Ack::default() })).await?;
        let own = committed.state.endpoints.keys().any(|id| id.container.as_str() == CONTAINER);
        let mut log = self.shared.log();
        log.traffic.generations += 1;
        log.acked.push(Acked { revision, at: Instant::now() });
        log.in_sync |= self.reported && own;
        Ok(())
    }
}

/// Whether an update is an object as a whole, and not what changed in it.
fn is_whole(update: &v1::ObjectUpdate) -> bool {
    match &update.change {
        Some(v1::object_update::Change::Group(part)) => part.reset,
        Some(v1::object_update::Change::Segment(_) | v1::object_update::Change::Endpoint(_) | v1::object_update::Change::Node(_)) => true,
        Some(v1::object_update::Change::Removed(_)) | None => false,
    }
}

fn hello(number: u32, held: &Held) -> Up {
    let committed = held.committed();
    Up::Hello(v1::Hello {
        node: company::node(number),
        instance_id: format!("simulated-installation-{number}"),
        boot_id: "simulated-boot".to_owned(),
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        features: [FEATURE_TIERS, FEATURE_REJECT, FEATURE_AUDIT].map(str::to_owned).into(),
        epoch: committed.epoch.clone(),
        generation: committed.generation.0,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn held_parts(held: &Held) -> Vec<Up> {
    let objects: Vec<v1::HeldObject> = held
        .objects()
        .map(|(key, hash)| v1::HeldObject { kind: v1::ObjectKind::from(key.kind).into(), id: key.id.to_string(), hash: hash.to_wire() })
        .collect();
    let mut parts: Vec<v1::Held> = objects.chunks(HELD_PER_PART).map(|some| v1::Held { objects: some.to_vec(), last: false }).collect();
    match parts.last_mut() {
        Some(part) => part.last = true,
        None => parts.push(v1::Held { objects: Vec::new(), last: true }),
    }
    parts.into_iter().map(Up::Held).collect()
}

fn node_report(number: u32) -> Up {
    let address = company::node_address(number).octets().to_vec().into();
    Up::Node(v1::NodeReport { addresses: vec![address], enforcing: true, kernel: "simulated".to_owned(), ..v1::NodeReport::default() })
}

/// The container that every simulated agent finds on its node.
const CONTAINER: &str = "node-agent-container";

fn workloads(number: u32) -> Up {
    let address = company::agent_workload_address(number).octets().to_vec().into();
    let workload = v1::Workload {
        id: Some(v1::WorkloadId { node: company::node(number), container: CONTAINER.to_owned() }),
        name: format!("node-agent-{number}"),
        namespace: "platform".to_owned(),
        labels: [("app".to_owned(), "node-agent".to_owned())].into(),
        addresses: vec![v1::NetworkAddress { network: "default".to_owned(), address }],
        interface: "veth0".to_owned(),
        source: v1::WorkloadSource::Docker.into(),
        ..v1::Workload::default()
    };
    Up::Workloads(v1::WorkloadReport { full: true, upsert: vec![workload], removed: Vec::new(), last: true })
}
