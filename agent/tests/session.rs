//! The session against a controller that is played by the test, over a real connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_agent::local::{LocalWorkload, LocalWorkloads};
use firebreak_agent::session::{self, Applied, Backoff, Committed, Held, NodeStatus, SessionConfig, SessionLinks};
use firebreak_policy::model::{Generation, Labels, NamespaceName, NodeName, Revision, WorkloadId, WorkloadSource};
use firebreak_policy::node_state::{NodeState, Rulebook, Segment, SegmentId};
use firebreak_proto::hash::{self, ObjectKey, ObjectKind};
use firebreak_proto::v1::agent_message::Message as Up;
use firebreak_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use firebreak_proto::v1::controller_message::Message as Down;
use firebreak_proto::workload::DeclaredWorkload;
use firebreak_proto::{MAX_MESSAGE_BYTES, state, v1};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const EPOCH: &str = "epoch-1";
const PATIENCE: Duration = Duration::from_secs(10);

/// One stream, as the controller sees it.
struct Talk {
    from_agent: Streaming<v1::AgentMessage>,
    to_agent: mpsc::Sender<Result<v1::ControllerMessage, Status>>,
}

impl Talk {
    async fn hear(&mut self) -> Up {
        let message = tokio::time::timeout(PATIENCE, self.from_agent.message()).await.expect("the agent says something").unwrap();
        let message = message.expect("the stream is open");
        assert!(message.encoded_len() <= MAX_MESSAGE_BYTES, "a message of {} bytes", message.encoded_len());
        message.message.expect("a message")
    }

    async fn say(&self, message: Down) {
        self.to_agent.send(Ok(v1::ControllerMessage { message: Some(message) })).await.unwrap();
    }

    async fn hello(&mut self) -> (v1::Hello, Vec<v1::HeldObject>) {
        let Up::Hello(hello) = self.hear().await else { panic!("Hello comes first") };
        let mut objects = Vec::new();
        loop {
            let Up::Held(part) = self.hear().await else { panic!("Held comes second") };
            objects.extend(part.objects);
            if part.last {
                return (hello, objects);
            }
        }
    }

    async fn welcome(&self) {
        self.say(Down::Welcome(v1::Welcome { protocol: 2, epoch: EPOCH.to_owned(), controller_version: "test".to_owned() })).await;
        self.say(Down::Declared(v1::Declared { workloads: Vec::new(), reset: true, last: true })).await;
    }

    async fn update(&self, updates: Vec<v1::ObjectUpdate>) {
        self.say(Down::Update(v1::Update { updates })).await;
    }

    async fn commit(&self, generation: u64, state: &NodeState) {
        let objects = hash::objects_of(&node(), state);
        let hash = hash::commit_hash(objects.iter().map(|(key, hash)| (key, *hash))).to_wire();
        self.say(Down::Commit(v1::Commit { epoch: EPOCH.to_owned(), generation, revision: generation, hash })).await;
    }

    async fn next_ack(&mut self) -> v1::Ack {
        loop {
            if let Up::Ack(ack) = self.hear().await {
                return ack;
            }
        }
    }

    async fn node_report(&mut self) -> v1::NodeReport {
        loop {
            if let Up::Node(report) = self.hear().await {
                return report;
            }
        }
    }

    /// A report, all its parts put together, and how many those were.
    async fn workload_report(&mut self) -> (v1::WorkloadReport, usize) {
        let mut whole = v1::WorkloadReport::default();
        let mut parts = 0;
        loop {
            let Up::Workloads(part) = self.hear().await else { continue };
            parts += 1;
            whole.full = part.full;
            whole.upsert.extend(part.upsert);
            whole.removed.extend(part.removed);
            if part.last {
                return (whole, parts);
            }
        }
    }
}

struct Fake(mpsc::Sender<Talk>);

#[tonic::async_trait]
impl AgentService for Fake {
    type SyncStream = ReceiverStream<Result<v1::ControllerMessage, Status>>;

    async fn sync(&self, request: Request<Streaming<v1::AgentMessage>>) -> Result<Response<Self::SyncStream>, Status> {
        let (to_agent, receiver) = mpsc::channel(16);
        self.0.send(Talk { from_agent: request.into_inner(), to_agent }).await.unwrap();
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// A running session, the controller that it speaks with, and the agent's side of its links.
struct Stage {
    talks: mpsc::Receiver<Talk>,
    local: watch::Sender<Arc<LocalWorkloads>>,
    status: watch::Sender<NodeStatus>,
    applied: watch::Sender<Option<Arc<Applied>>>,
    declared: watch::Receiver<Option<Arc<Vec<DeclaredWorkload>>>>,
    committed: watch::Receiver<Option<Arc<Committed>>>,
    shutdown: CancellationToken,
    session: JoinHandle<()>,
    server: JoinHandle<()>,
}

impl Stage {
    async fn set() -> Self {
        let (sender, talks) = mpsc::channel(4);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let service = AgentServiceServer::new(Fake(sender)).max_decoding_message_size(2 * MAX_MESSAGE_BYTES);
        let server = tokio::spawn(async move {
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        let synced = LocalWorkloads { in_sync: true, ..LocalWorkloads::default() };
        let (local, local_of_session) = watch::channel(Arc::new(synced));
        let (status, status_of_session) = watch::channel(NodeStatus { tables_whole: true, able: true, ..NodeStatus::default() });
        let (applied, applied_of_session) = watch::channel(None);
        let (declared_of_session, declared) = watch::channel(None);
        let (committed_of_session, committed) = watch::channel(None);
        let config = SessionConfig {
            endpoint,
            node: node(),
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            instance_id: "i-1".to_owned(),
            boot_id: "b-1".to_owned(),
            kernel: "6.18".to_owned(),
            backoff: Backoff { first: Duration::from_millis(5), most: Duration::from_millis(50) },
        };
        let links = SessionLinks {
            local: local_of_session,
            status: status_of_session,
            applied: applied_of_session,
            declared: declared_of_session,
            committed: committed_of_session,
            stats: Arc::default(),
            observe: mpsc::channel(1).0,
        };
        let shutdown = CancellationToken::new();
        let session = tokio::spawn(session::run(config, Held::nothing(node()), links, shutdown.clone()));
        Self { talks, local, status, applied, declared, committed, shutdown, session, server }
    }

    async fn next_talk(&mut self) -> Talk {
        tokio::time::timeout(PATIENCE, self.talks.recv()).await.expect("the agent connects").unwrap()
    }

    async fn next_committed(&mut self) -> Arc<Committed> {
        tokio::time::timeout(PATIENCE, self.committed.changed()).await.expect("a state comes through").unwrap();
        self.committed.borrow_and_update().clone().unwrap()
    }

    fn apply(&self, committed: &Committed, failure: Option<&str>) {
        let applied = Applied {
            epoch: committed.epoch.clone(),
            generation: committed.generation,
            revision: committed.revision,
            at: SystemTime::now(),
            kernel_time: Duration::from_micros(250),
            refused: committed.refused.clone(),
            failure: failure.map(str::to_owned),
        };
        self.applied.send_replace(Some(Arc::new(applied)));
    }

    async fn end(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.session).await.expect("the session ends when told to").unwrap();
        self.server.abort();
    }
}

fn node() -> NodeName {
    NodeName::new("n1")
}

fn state_of(segments: &[&str]) -> NodeState {
    let segment = |id: &&str| {
        let id = SegmentId((*id).into());
        (id.clone(), Arc::new(Segment { title: format!("shop/{}", id.0), id, rules: Rulebook::default().into(), audit: None }))
    };
    NodeState { segments: segments.iter().map(segment).collect(), ..NodeState::default() }
}

fn updates_of(state: &NodeState) -> Vec<v1::ObjectUpdate> {
    let segments = state.segments.values().map(state::segment_update);
    segments.chain([state::node_update(&node(), &state.addresses)]).collect()
}

fn workload(name: &str, label_bytes: usize) -> Arc<LocalWorkload> {
    Arc::new(LocalWorkload {
        id: WorkloadId::new(node(), name),
        name: name.to_owned(),
        namespace: NamespaceName::new("shop"),
        labels: Labels(BTreeMap::from([("pad".to_owned(), "x".repeat(label_bytes))])),
        image_labels: BTreeMap::new(),
        image: String::new(),
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        interfaces: BTreeMap::new(),
        host_network: false,
        source: WorkloadSource::Docker,
        declared_place: String::new(),
        problem: None,
    })
}

fn local_of(workloads: &[Arc<LocalWorkload>]) -> Arc<LocalWorkloads> {
    let workloads = workloads.iter().map(|workload| (workload.id.container.clone(), workload.clone())).collect();
    Arc::new(LocalWorkloads { in_sync: true, workloads, ..LocalWorkloads::default() })
}

#[tokio::test]
async fn a_session_says_who_it_is_takes_a_state_and_acknowledges_it_when_the_kernel_has_it() {
    let mut stage = Stage::set().await;
    let mut talk = stage.next_talk().await;
    let (hello, held) = talk.hello().await;
    assert_eq!((hello.node.as_str(), hello.instance_id.as_str(), hello.boot_id.as_str()), ("n1", "i-1", "b-1"));
    assert_eq!((hello.protocol_min, hello.protocol_max, hello.generation, hello.epoch.as_str()), (2, 2, 0, ""));
    assert_eq!(held, []);
    talk.welcome().await;
    let report = talk.node_report().await;
    assert!(report.enforcing);
    assert_eq!((report.kernel.as_str(), report.labels.get("zone").map(String::as_str)), ("6.18", Some("a")));
    assert!(talk.workload_report().await.0.full);

    let wanted = state_of(&["s"]);
    talk.update(updates_of(&wanted)).await;
    talk.commit(1, &wanted).await;
    let committed = stage.next_committed().await;
    assert_eq!((committed.generation, &committed.state), (Generation(1), &wanted));
    stage.apply(&committed, None);
    let ack = talk.next_ack().await;
    assert_eq!((ack.generation, ack.revision, ack.epoch.as_str(), ack.failure.as_str()), (1, 1, EPOCH, ""));
    assert!(ack.applied_at.is_some());
    assert_eq!(ack.kernel_time.map(|time| time.nanos), Some(250_000));

    stage.apply(&committed, Some("in4_peer_port: adding 10.0.0.2: ENOSPC"));
    assert_eq!(talk.next_ack().await.failure, "in4_peer_port: adding 10.0.0.2: ENOSPC");
    stage.end().await;
}

#[tokio::test]
async fn a_refused_object_is_named_in_the_ack_and_the_rest_takes_effect() {
    let mut stage = Stage::set().await;
    let mut talk = stage.next_talk().await;
    talk.hello().await;
    talk.welcome().await;
    let wanted = state_of(&["good", "strange"]);
    let mut updates = updates_of(&wanted);
    for update in &mut updates {
        if let Some(v1::object_update::Change::Segment(segment)) = &mut update.change
            && segment.id == "strange"
        {
            segment.ingress = Some(v1::Isolation::default());
        }
    }
    talk.update(updates).await;
    talk.commit(1, &wanted).await;
    let committed = stage.next_committed().await;
    assert_eq!(committed.state, state_of(&["good"]));
    stage.apply(&committed, None);
    let ack = talk.next_ack().await;
    let named: Vec<_> = ack.refused.iter().map(|object| (object.kind(), object.id.as_str(), object.reason.as_str())).collect();
    assert_eq!(named, [(v1::ObjectKind::Segment, "strange", "ingress.policies: is empty: something must have isolated")]);
    stage.end().await;
}

#[tokio::test]
async fn a_state_that_does_not_add_up_is_asked_for_again_from_nothing() {
    let mut stage = Stage::set().await;
    let mut talk = stage.next_talk().await;
    talk.hello().await;
    talk.welcome().await;
    let first = state_of(&["s"]);
    talk.update(updates_of(&first)).await;
    talk.commit(1, &first).await;
    stage.next_committed().await;
    talk.update(vec![state::segment_update(first.segments.values().next().unwrap())]).await;
    talk.commit(2, &state_of(&["something-else"])).await;

    let mut again = stage.next_talk().await;
    let (hello, held) = again.hello().await;
    assert_eq!((hello.generation, held.len()), (0, 0));
    assert_eq!(stage.committed.borrow().as_ref().map(|committed| committed.generation), Some(Generation(1)), "what is enforced stays");
    again.welcome().await;
    let second = state_of(&["t"]);
    again.update(updates_of(&second)).await;
    again.commit(3, &second).await;
    assert_eq!(stage.next_committed().await.state, second);
    stage.end().await;
}

#[tokio::test]
async fn a_lost_connection_is_taken_up_again_with_what_is_held() {
    let mut stage = Stage::set().await;
    let mut talk = stage.next_talk().await;
    talk.hello().await;
    talk.welcome().await;
    let wanted = state_of(&["s", "t"]);
    talk.update(updates_of(&wanted)).await;
    talk.commit(7, &wanted).await;
    let committed = stage.next_committed().await;
    stage.apply(&committed, None);
    assert_eq!(talk.next_ack().await.generation, 7);
    talk.update(vec![state::removal(&ObjectKey::new(ObjectKind::Segment, "t"))]).await;
    drop(talk);

    let mut again = stage.next_talk().await;
    let (hello, held) = again.hello().await;
    assert_eq!((hello.generation, hello.epoch.as_str()), (7, EPOCH));
    let wanted_hashes: Vec<_> = hash::objects_of(&node(), &wanted)
        .into_iter()
        .map(|(key, hash)| v1::HeldObject { kind: v1::ObjectKind::from(key.kind).into(), id: key.id.to_string(), hash: hash.to_wire() })
        .collect();
    assert_eq!(held, wanted_hashes, "an update without its commit was never held");
    again.welcome().await;
    stage.apply(&committed, Some("of a generation that this stream never brought"));
    again.workload_report().await;
    again.commit(8, &wanted).await;
    let committed = stage.next_committed().await;
    assert_eq!(committed.state, wanted);
    stage.apply(&committed, None);
    let ack = again.next_ack().await;
    assert_eq!((ack.generation, ack.failure.as_str()), (8, ""), "only what came on this stream is answered");
    stage.end().await;
}

#[tokio::test]
async fn reports_are_full_once_then_differences_and_never_over_a_megabyte() {
    let mut stage = Stage::set().await;
    let many: Vec<_> = (0..30).map(|number| workload(&format!("w{number}"), 100_000)).collect();
    stage.local.send_replace(local_of(&many));
    let mut talk = stage.next_talk().await;
    talk.hello().await;
    talk.welcome().await;
    let (report, parts) = talk.workload_report().await;
    assert!(report.full && parts >= 3, "{parts} parts");
    assert_eq!(report.upsert.len(), 30);

    let mut fewer = many[1..].to_vec();
    fewer[0] = workload("w1", 5);
    stage.local.send_replace(local_of(&fewer));
    let (report, _) = talk.workload_report().await;
    assert_eq!((report.full, report.removed), (false, vec!["w0".to_owned()]));
    assert_eq!(report.upsert.iter().map(|workload| workload.name.as_str()).collect::<Vec<_>>(), ["w1"]);

    fewer[0] = workload("w1", 2_000_000);
    stage.local.send_replace(local_of(&fewer));
    let report = talk.node_report().await;
    assert_eq!(report.warnings.iter().map(|warning| warning.code.as_str()).collect::<Vec<_>>(), ["WorkloadTooLarge"]);
    stage.end().await;
}

#[tokio::test]
async fn nothing_is_reported_before_discovery_is_in_sync() {
    let mut stage = Stage::set().await;
    stage.local.send_replace(Arc::new(LocalWorkloads::default()));
    let mut talk = stage.next_talk().await;
    talk.hello().await;
    talk.welcome().await;
    // The declared list has come through, so the agent has had its chance to report.
    tokio::time::timeout(PATIENCE, stage.declared.wait_for(Option::is_some)).await.unwrap().unwrap();
    stage.status.send_replace(NodeStatus::default());
    stage.local.send_replace(local_of(&[workload("w", 1)]));
    let report = talk.node_report().await;
    assert!(!report.enforcing);
    let (report, _) = talk.workload_report().await;
    assert_eq!((report.full, report.upsert.len()), (true, 1));
    stage.end().await;
}

#[tokio::test]
async fn declared_workloads_come_through_whole_and_bad_ones_are_named() {
    let mut stage = Stage::set().await;
    let mut talk = stage.next_talk().await;
    talk.hello().await;
    talk.welcome().await;
    talk.workload_report().await;
    let declared = |name: &str, netns: &str| v1::DeclaredWorkload {
        container: format!("shop.{name}"),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        location: Some(v1::declared_workload::Location::NetworkNamespace(netns.to_owned())),
        ..v1::DeclaredWorkload::default()
    };
    talk.say(Down::Declared(v1::Declared { workloads: vec![declared("db", "db")], reset: true, last: false })).await;
    talk.say(Down::Declared(v1::Declared { workloads: vec![declared("web", "../web"), declared("api", "api")], reset: false, last: true }))
        .await;
    let list = stage.declared.wait_for(|list| list.as_ref().is_some_and(|list| !list.is_empty()));
    let names: Vec<_> =
        tokio::time::timeout(PATIENCE, list).await.unwrap().unwrap().as_ref().unwrap().iter().map(|w| w.name.clone()).collect();
    assert_eq!(names, ["db", "api"]);
    let report = talk.node_report().await;
    assert_eq!(report.warnings.iter().map(|warning| warning.code.as_str()).collect::<Vec<_>>(), ["DeclaredRefused"]);
    assert!(
        report.warnings[0].message.contains("shop.web") && report.warnings[0].message.contains("network_namespace"),
        "{:?}",
        report.warnings
    );
    stage.end().await;
}

#[tokio::test]
async fn a_controller_that_refuses_or_talks_nonsense_is_tried_again_and_nothing_is_lost() {
    let mut stage = Stage::set().await;
    let wanted = state_of(&["s"]);
    let mut talk = stage.next_talk().await;
    talk.hello().await;
    talk.welcome().await;
    talk.update(updates_of(&wanted)).await;
    talk.commit(1, &wanted).await;
    stage.next_committed().await;
    drop(talk);

    let refusals = [
        Status::failed_precondition("this controller speaks protocol 2 to 3, the agent 1 to 1: upgrade the agent"),
        Status::permission_denied("node n1 is pinned to another installation"),
        Status::unavailable("shutting down"),
    ];
    for refusal in refusals {
        let mut talk = stage.next_talk().await;
        assert_eq!(talk.hello().await.0.generation, 1);
        talk.to_agent.send(Err(refusal)).await.unwrap();
    }
    let nonsense = [
        Down::Welcome(v1::Welcome { protocol: 1, epoch: EPOCH.to_owned(), controller_version: String::new() }),
        Down::Welcome(v1::Welcome { protocol: 2, epoch: String::new(), controller_version: String::new() }),
        Down::Update(v1::Update::default()),
        Down::Commit(v1::Commit::default()),
    ];
    for message in nonsense {
        let mut talk = stage.next_talk().await;
        assert_eq!(talk.hello().await.0.generation, 1);
        talk.say(message).await;
    }
    let objects = hash::objects_of(&node(), &NodeState::default());
    let nothing = hash::commit_hash(objects.iter().map(|(key, hash)| (key, *hash))).to_wire();
    let replayed = |generation| Down::Commit(v1::Commit { epoch: EPOCH.to_owned(), generation, revision: 9, hash: nothing.clone() });
    for message in [
        Down::Welcome(v1::Welcome { protocol: 2, epoch: EPOCH.to_owned(), controller_version: String::new() }),
        // A generation that comes back, even with another content.
        replayed(1),
        replayed(0),
        Down::Update(v1::Update { updates: vec![v1::ObjectUpdate::default()] }),
        Down::Commit(v1::Commit { epoch: "another".to_owned(), ..v1::Commit::default() }),
    ] {
        let mut talk = stage.next_talk().await;
        talk.hello().await;
        talk.welcome().await;
        talk.say(message).await;
    }
    stage.next_talk().await;
    assert_eq!(
        stage.committed.borrow().as_ref().map(|committed| (committed.revision, committed.state.clone())),
        Some((Revision(1), wanted))
    );
    stage.end().await;
}
