//! An agent as the controller sees it: what it sends is up to the test, what it receives is put together and checked.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]

use crate::api_support::Server;
use firebreak_policy::model::NodeName;
use firebreak_policy::node_state::{Group, LocalEndpoint, NodeState, Segment};
use firebreak_proto::hash::{ContentHash, ObjectKey, commit_hash, objects_of};
use firebreak_proto::state::{GroupChange, node_from_wire};
use firebreak_proto::v1;
use firebreak_proto::v1::agent_message::Message as Up;
use firebreak_proto::v1::controller_message::Message as Down;
use prost::Message as _;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// Longer than anything takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

pub fn hello(node: &str) -> v1::Hello {
    v1::Hello {
        node: node.to_owned(),
        instance_id: format!("instance-of-{node}"),
        boot_id: "boot-0001".to_owned(),
        protocol_min: 1,
        protocol_max: 2,
        agent_version: "test".to_owned(),
        ..v1::Hello::default()
    }
}

pub fn nothing_held() -> Up {
    Up::Held(v1::Held { objects: Vec::new(), last: true })
}

pub fn bytes(address: &str) -> bytes::Bytes {
    match address.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec().into(),
        IpAddr::V6(v6) => v6.octets().to_vec().into(),
    }
}

pub fn at(network: &str, address: &str) -> v1::NetworkAddress {
    v1::NetworkAddress { network: network.to_owned(), address: bytes(address) }
}

pub fn workload(node: &str, app: &str, address: &str) -> v1::Workload {
    v1::Workload {
        id: Some(v1::WorkloadId { node: node.to_owned(), container: app.to_owned() }),
        name: app.to_owned(),
        namespace: "shop".to_owned(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        addresses: vec![at("default", address)],
        interface: format!("veth{app}"),
        source: v1::WorkloadSource::Docker.into(),
        ..v1::Workload::default()
    }
}

pub fn report(workloads: Vec<v1::Workload>) -> Up {
    Up::Workloads(v1::WorkloadReport { full: true, upsert: workloads, removed: Vec::new(), last: true })
}

pub fn node_report(addresses: &[&str]) -> Up {
    let addresses = addresses.iter().map(|address| bytes(address)).collect();
    Up::Node(v1::NodeReport { addresses, enforcing: true, kernel: "6.18".to_owned(), ..v1::NodeReport::default() })
}

pub async fn connect(address: SocketAddr) -> Channel {
    // Little, so that a controller soon finds that an agent does not read.
    let endpoint = Endpoint::try_from(format!("http://{address}")).unwrap().initial_stream_window_size(65_535);
    endpoint.connect().await.unwrap()
}

/// One stream of an agent.
pub struct Agent {
    up: mpsc::Sender<v1::AgentMessage>,
    down: Streaming<v1::ControllerMessage>,
    node: NodeName,
    pub epoch: String,
    pub state: NodeState,
    /// What a session before held, without the objects themselves.
    pub resumed: BTreeMap<ObjectKey, ContentHash>,
    /// Sizes of the messages since the last commit.
    pub sizes: Vec<usize>,
    /// Updates since the last commit.
    pub updates: usize,
    pub declared: Vec<v1::DeclaredWorkload>,
}

impl Agent {
    /// Opens a stream with these messages; the error is the controller's answer.
    pub async fn open(server: &Server, messages: Vec<Option<Up>>) -> Result<Self, Status> {
        let (up, receiver) = mpsc::channel(64);
        let node = messages.iter().find_map(|message| match message {
            Some(Up::Hello(hello)) => Some(NodeName::new(&hello.node)),
            _ => None,
        });
        for message in messages {
            up.send(v1::AgentMessage { message }).await.unwrap();
        }
        let mut client = v1::agent_service_client::AgentServiceClient::new(connect(server.agents).await);
        let answer = tokio::time::timeout(LONG, client.sync(ReceiverStream::new(receiver))).await.expect("an answer in time");
        let down = answer?.into_inner();
        Ok(Self {
            up,
            down,
            node: node.unwrap_or_else(|| NodeName::new("nobody")),
            epoch: String::new(),
            state: NodeState::default(),
            resumed: BTreeMap::new(),
            sizes: Vec::new(),
            updates: 0,
            declared: Vec::new(),
        })
    }

    /// A node that holds nothing.
    pub async fn new(server: &Server, node: &str) -> Self {
        Self::open(server, vec![Some(Up::Hello(hello(node))), Some(nothing_held())]).await.unwrap()
    }

    /// The same node again, that says what it holds.
    pub async fn again(&self, server: &Server, generation: u64) -> Self {
        let hello = v1::Hello { epoch: self.epoch.clone(), generation, ..hello(self.node.as_str()) };
        let objects = self.objects();
        let held = objects.iter().map(|(key, hash)| v1::HeldObject {
            kind: v1::ObjectKind::from(key.kind).into(),
            id: key.id.to_string(),
            hash: hash.to_wire(),
        });
        let held = Up::Held(v1::Held { objects: held.collect(), last: true });
        let mut again = Self::open(server, vec![Some(Up::Hello(hello)), Some(held)]).await.unwrap();
        again.state = self.state.clone();
        again
    }

    pub fn objects(&self) -> Vec<(ObjectKey, ContentHash)> {
        objects_of(&self.node, &self.state)
    }

    pub async fn send(&self, message: Up) {
        self.up.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    }

    pub async fn send_raw(&self, message: Option<Up>) {
        // The controller may have ended the stream already.
        let _ = self.up.send(v1::AgentMessage { message }).await;
    }

    pub async fn next(&mut self) -> Result<Option<Down>, Status> {
        let message = tokio::time::timeout(LONG, self.down.message()).await.expect("a message in time")?;
        let Some(message) = message else { return Ok(None) };
        self.sizes.push(message.encoded_len());
        Ok(Some(message.message.expect("a message of a known kind")))
    }

    /// Reads up to the next commit and checks that it closes what was received.
    pub async fn generation(&mut self) -> v1::Commit {
        self.generation_before(|_| {}).await
    }

    /// The same; what is ordered meanwhile is the caller's.
    pub async fn generation_before(&mut self, mut ordered: impl FnMut(v1::Observe)) -> v1::Commit {
        (self.sizes, self.updates) = (Vec::new(), 0);
        loop {
            match self.next().await.unwrap().expect("the stream goes on") {
                Down::Welcome(welcome) => self.epoch = welcome.epoch,
                Down::Observe(order) => ordered(order),
                Down::Declared(declared) => {
                    if declared.reset {
                        self.declared.clear();
                    }
                    self.declared.extend(declared.workloads);
                }
                Down::Update(update) => {
                    for update in update.updates {
                        self.updates += 1;
                        put(&mut self.state, update);
                    }
                }
                Down::Commit(commit) => {
                    let objects = self.objects();
                    assert_eq!(commit_hash(objects.iter().map(|(key, hash)| (key, *hash))).to_wire(), commit.hash, "what is held adds up");
                    return commit;
                }
            }
        }
    }

    pub async fn ack(&self, commit: &v1::Commit) {
        self.send(Up::Ack(ack(commit))).await;
    }

    /// Takes generations until one has what the test waits for.
    pub async fn until(&mut self, what: impl Fn(&NodeState) -> bool) -> v1::Commit {
        loop {
            let commit = self.generation().await;
            self.ack(&commit).await;
            if what(&self.state) {
                return commit;
            }
        }
    }

    /// How the controller ends the stream.
    pub async fn end(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a word"),
                Err(status) => return status,
            }
        }
    }
}

pub fn ack(commit: &v1::Commit) -> v1::Ack {
    let v1::Commit { epoch, generation, revision, hash: _ } = commit.clone();
    v1::Ack { generation, revision, epoch, ..v1::Ack::default() }
}

/// What an agent does with an update.
fn put(state: &mut NodeState, update: v1::ObjectUpdate) {
    match update.change.unwrap() {
        v1::object_update::Change::Group(part) => {
            let change = GroupChange::try_from(part).unwrap();
            let empty = || Group { id: change.id.clone(), title: change.title.clone(), members: Default::default() };
            if change.reset {
                state.groups.insert(change.id.clone(), empty());
            }
            let group = state.groups.get_or_insert_with(&change.id, empty);
            change.remove.iter().for_each(|member| assert!(group.members.remove(member)));
            change.add.into_iter().for_each(|member| assert!(group.members.insert(member)));
        }
        v1::object_update::Change::Segment(segment) => {
            let segment = Segment::try_from(segment).unwrap();
            state.segments.insert(segment.id.clone(), segment);
        }
        v1::object_update::Change::Endpoint(endpoint) => {
            let endpoint = LocalEndpoint::try_from(endpoint).unwrap();
            state.endpoints.insert(endpoint.id.clone(), endpoint);
        }
        v1::object_update::Change::Node(node) => state.addresses = node_from_wire(node).unwrap().1,
        v1::object_update::Change::Removed(removed) => match v1::ObjectKind::try_from(removed.kind).unwrap() {
            v1::ObjectKind::Group => state.groups.retain(|id, _| *id.0 != *removed.id),
            v1::ObjectKind::Segment => state.segments.retain(|id, _| *id.0 != *removed.id),
            v1::ObjectKind::Endpoint => state.endpoints.retain(|id, _| id.container.as_str() != removed.id),
            v1::ObjectKind::Node | v1::ObjectKind::Unspecified => panic!("the node's own object stays"),
        },
    }
}

/// What the operator sees.
pub async fn workloads(server: &Server) -> Vec<v1::WorkloadStatus> {
    server.client.clone().list_workloads(v1::ListWorkloadsRequest::default()).await.unwrap().into_inner().workloads
}

pub async fn nodes(server: &Server) -> Vec<v1::NodeStatus> {
    server.client.clone().list_nodes(v1::ListNodesRequest::default()).await.unwrap().into_inner().nodes
}

pub async fn node(server: &Server, name: &str) -> Option<v1::NodeStatus> {
    nodes(server).await.into_iter().find(|node| node.name == name)
}

/// Asks the operator's side again until it tells what the test waits for.
pub async fn eventually<T, F: Future<Output = T>>(what: &str, ask: impl Fn() -> F, holds: impl Fn(&T) -> bool) -> T {
    let wait = async {
        loop {
            let answer = ask().await;
            if holds(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{what}"))
}
