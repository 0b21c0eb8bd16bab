//! What the API makes of its neighbours' answers: pages of workloads and nodes, questions, streams of flows. The hub and the flow store are
//! stand-ins here, so that what they answer is known.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use firebreak_controller::api::OperatorApi;
use firebreak_controller::api::live::{EndName, FlowTap, Live, LiveError, NodeQuery, Question, WorkloadQuery};
use firebreak_controller::auth::Principal;
use firebreak_controller::flows::{End, Kept, Reporter, What};
use firebreak_controller::metrics::Metrics;
use firebreak_controller::store::{ObjectKey, Store};
use firebreak_policy::model::{Labels, NodeName, Revision, Transport, Workload, WorkloadId, WorkloadSource};
use firebreak_proto::v1;
use firebreak_proto::v1::operator_service_server::OperatorService;
use futures::StreamExt;
use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

/// A hub of 25 workloads on 5 nodes.
struct Hub {
    asked: Mutex<Vec<Question>>,
}

fn workload_ids() -> Vec<WorkloadId> {
    let mut ids: Vec<_> =
        (0..25).map(|number| WorkloadId::new(format!("n{}", number % 5).as_str(), format!("c{number:02}").as_str())).collect();
    ids.sort();
    ids
}

#[tonic::async_trait]
impl Live for Hub {
    async fn conditions(&self, objects: Vec<ObjectKey>, _: Revision) -> Result<Vec<Vec<v1::Condition>>, LiveError> {
        Ok(objects.iter().map(|key| vec![v1::Condition { message: key.to_string(), ..v1::Condition::default() }]).collect())
    }

    async fn workloads(&self, query: WorkloadQuery) -> Result<Vec<v1::WorkloadStatus>, LiveError> {
        let WorkloadQuery { namespace, node, selector, after, limit } = query;
        let labels: Labels = [("app", "web")].into_iter().collect();
        let ids = workload_ids().into_iter().filter(|id| {
            namespace.as_ref().is_none_or(|namespace| namespace.as_str() == "shop")
                && node.as_ref().is_none_or(|node| *node == id.node)
                && selector.matches(&labels)
                && after.as_ref().is_none_or(|after| id > after)
        });
        let status = |id: WorkloadId| v1::WorkloadStatus {
            workload: Some(v1::Workload { id: Some((&id).into()), ..v1::Workload::default() }),
            ..v1::WorkloadStatus::default()
        };
        Ok(ids.take(limit).map(status).collect())
    }

    async fn nodes(&self, query: NodeQuery) -> Result<Vec<v1::NodeStatus>, LiveError> {
        let NodeQuery { name, after, limit } = query;
        let names = (0..5).map(|number| NodeName::from(format!("n{number}")));
        let wanted = names.filter(|node| name.as_ref().is_none_or(|name| name == node) && after.as_ref().is_none_or(|after| node > after));
        Ok(wanted.take(limit).map(|node| v1::NodeStatus { name: node.to_string(), ..v1::NodeStatus::default() }).collect())
    }

    async fn explain(&self, question: Question) -> Result<v1::ExplainResponse, LiveError> {
        let answer = match &question.from {
            EndName::Workload { name, .. } if name == "nobody" => Err(LiveError::NotFound("no workload shop/nobody is known".to_owned())),
            EndName::Workload { name, .. } if name == "two" => {
                Err(LiveError::Unclear { field: "from", reason: "two could be two@n1 or two@n2".to_owned() })
            }
            EndName::Workload { name, .. } if name == "early" => Err(LiveError::Unavailable("the controller is not in sync yet")),
            EndName::Workload { .. } | EndName::Address(_) => Ok(v1::ExplainResponse::default()),
        };
        self.asked.lock().unwrap().push(question);
        answer
    }
}

/// Keeps the newest flows.
struct Tap {
    kept: Mutex<Vec<Arc<Kept>>>,
    keep: usize,
    live: broadcast::Sender<Arc<Kept>>,
}

impl Tap {
    fn push(&self, flow: Kept) {
        let flow = Arc::new(flow);
        let mut kept = self.kept.lock().unwrap();
        kept.push(Arc::clone(&flow));
        let over = kept.len().saturating_sub(self.keep);
        kept.drain(..over);
        drop(self.live.send(flow));
    }
}

impl FlowTap for Tap {
    fn recent(&self, after: u64, limit: usize) -> Vec<Arc<Kept>> {
        let kept: Vec<_> = self.kept.lock().unwrap().iter().filter(|flow| flow.cursor > after).cloned().collect();
        kept[kept.len().saturating_sub(limit)..].to_vec()
    }

    fn subscribe(&self) -> broadcast::Receiver<Arc<Kept>> {
        self.live.subscribe()
    }
}

struct Scene {
    _folder: tempfile::TempDir,
    api: OperatorApi,
    hub: Arc<Hub>,
    tap: Arc<Tap>,
    stop: CancellationToken,
}

fn scene(keep: usize) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("controller.db")).unwrap();
    let hub = Arc::new(Hub { asked: Mutex::default() });
    let tap = Arc::new(Tap { kept: Mutex::default(), keep, live: broadcast::channel(4).0 });
    let stop = CancellationToken::new();
    let api = OperatorApi::new(store, hub.clone(), tap.clone(), Arc::new(Metrics::new()), stop.clone(), Timestamp::now);
    Scene { _folder: folder, api, hub, tap, stop }
}

fn operator<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Principal::Operator { uid: 0, user: None });
    request
}

#[tokio::test]
async fn workloads_and_nodes_come_page_by_page_each_once() {
    let scene = scene(0);
    for (page_size, filter_node, expected) in [(4, "", 25), (25, "", 25), (0, "", 25), (2, "n3", 5)] {
        let mut request =
            v1::ListWorkloadsRequest { page_size, node: filter_node.to_owned(), namespace: "shop".to_owned(), ..Default::default() };
        let mut seen = Vec::new();
        loop {
            let page = scene.api.list_workloads(operator(request.clone())).await.unwrap().into_inner();
            seen.extend(page.workloads.into_iter().map(|status| status.workload.unwrap().id.unwrap().container));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        let wanted: Vec<_> = workload_ids()
            .iter()
            .filter(|id| filter_node.is_empty() || id.node.as_str() == filter_node)
            .map(|id| id.container.to_string())
            .collect();
        assert_eq!((seen.len(), seen), (expected, wanted));
    }
    let none = v1::ListWorkloadsRequest { label_selector: "app=db".to_owned(), ..Default::default() };
    assert!(scene.api.list_workloads(operator(none)).await.unwrap().into_inner().workloads.is_empty());
    let mut request = v1::ListNodesRequest { page_size: 2, ..Default::default() };
    let mut sizes = Vec::new();
    loop {
        let page = scene.api.list_nodes(operator(request.clone())).await.unwrap().into_inner();
        sizes.push(page.nodes.len());
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [2, 2, 1]);
}

#[tokio::test]
async fn a_question_reaches_the_hub_as_it_was_meant_and_its_refusals_come_back_with_their_codes() {
    let scene = scene(0);
    let ask = |from: &str, transport| v1::ExplainRequest {
        from: from.to_owned(),
        to: "10.0.0.1".to_owned(),
        namespace: "shop".to_owned(),
        transport: Some(transport),
    };
    let tcp = v1::Transport { protocol: 6, port: Some(5432), ..Default::default() };
    let ping = v1::Transport { protocol: 58, ..Default::default() };
    scene.api.explain(operator(ask("team/web@n1", ping))).await.unwrap();
    let asked = scene.hub.asked.lock().unwrap().pop().unwrap();
    assert_eq!(asked.from, EndName::Workload { namespace: "team".into(), name: "web".to_owned(), node: Some("n1".into()) });
    assert_eq!(
        (asked.to, asked.transport),
        (EndName::Address("10.0.0.1".parse().unwrap()), Transport::ping(firebreak_policy::model::Family::V6))
    );
    let cases = [
        ("nobody", Code::NotFound, "no workload shop/nobody is known"),
        ("two", Code::InvalidArgument, "from: two could be two@n1 or two@n2"),
        ("early", Code::Unavailable, "the controller is not in sync yet"),
    ];
    for (from, code, message) in cases {
        let status = scene.api.explain(operator(ask(from, tcp))).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, message));
    }
}

#[tokio::test]
async fn a_request_without_a_caller_or_from_an_agent_is_refused() {
    let scene = scene(0);
    let status = scene.api.list(Request::new(v1::ListRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut request = Request::new(v1::ListRequest::default());
    request.extensions_mut().insert(Principal::Node("n1".into()));
    let status = scene.api.list(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "node n1 may not read everything"));
}

fn end(namespace: &str, name: &str) -> Option<End> {
    let workload = Workload {
        id: WorkloadId::new("n0", name),
        name: name.to_owned(),
        namespace: namespace.into(),
        labels: Labels::default(),
        addresses: Vec::new(),
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        interface: None,
        host_network: false,
        terminated: false,
        source: WorkloadSource::Docker,
    };
    Some(End { workload: Some(Arc::new(workload)), ..End::default() })
}

fn flow(cursor: u64, namespace: &str, port: u32) -> Kept {
    let node = if cursor.is_multiple_of(2) { "n0" } else { "n1" };
    Kept {
        cursor,
        reporter: Arc::new(Reporter { node: node.into(), instance: String::new(), boot_id: String::new() }),
        sequence: cursor,
        time: v1::Stamp::default(),
        revision: 0,
        source: end(namespace, "web"),
        destination: end("data", "db"),
        reason: None,
        what: What::Flow(v1::FlowEvent {
            verdict: v1::Verdict::Drop.into(),
            direction: v1::Direction::Ingress.into(),
            source: vec![10, 0, 0, 1].into(),
            destination: vec![10, 0, 1, 1].into(),
            transport: Some(v1::Transport { protocol: 6, port: Some(port), ..Default::default() }),
            ..Default::default()
        }),
    }
}

async fn cursors(scene: &Scene, request: v1::WatchFlowsRequest, count: usize) -> Vec<u64> {
    let stream = scene.api.watch_flows(operator(request)).await.unwrap().into_inner();
    stream.take(count).map(|flow| flow.unwrap().cursor).collect().await
}

#[tokio::test]
async fn kept_flows_are_told_by_filter_and_tail() {
    let scene = scene(300);
    for cursor in 1..=250 {
        scene.tap.push(flow(cursor, if cursor % 10 == 0 { "shop" } else { "team" }, u32::try_from(cursor).unwrap()));
    }
    let base = v1::WatchFlowsRequest::default;
    let block = |address: [u8; 4], prefix_length| Some(v1::Cidr { address: address.to_vec().into(), prefix_length });
    let cases: [(&str, v1::WatchFlowsRequest, usize); 16] = [
        ("default", base(), 100),
        ("tail", v1::WatchFlowsRequest { tail: 7, ..base() }, 7),
        ("all", v1::WatchFlowsRequest { tail: 10_000, ..base() }, 250),
        ("namespace", v1::WatchFlowsRequest { namespace: "shop".to_owned(), ..base() }, 25),
        ("either end", v1::WatchFlowsRequest { namespace: "data".to_owned(), ..base() }, 100),
        ("workload", v1::WatchFlowsRequest { workload: "shop/web".to_owned(), ..base() }, 25),
        ("workload of another namespace", v1::WatchFlowsRequest { workload: "shop/db".to_owned(), ..base() }, 0),
        ("node", v1::WatchFlowsRequest { node: "n1".to_owned(), tail: 1_000, ..base() }, 125),
        ("direction", v1::WatchFlowsRequest { direction: v1::Direction::Egress.into(), ..base() }, 0),
        ("verdict", v1::WatchFlowsRequest { verdict: v1::Verdict::Drop.into(), tail: 3, ..base() }, 3),
        ("source", v1::WatchFlowsRequest { source: block([10, 0, 0, 0], 24), tail: 3, ..base() }, 3),
        ("other source", v1::WatchFlowsRequest { source: block([10, 0, 1, 0], 24), ..base() }, 0),
        ("destination", v1::WatchFlowsRequest { destination: block([10, 0, 1, 1], 32), tail: 3, ..base() }, 3),
        ("protocol", v1::WatchFlowsRequest { protocol: Some(17), ..base() }, 0),
        ("port", v1::WatchFlowsRequest { port: Some(44), ..base() }, 1),
        ("after", v1::WatchFlowsRequest { after_cursor: 240, ..base() }, 10),
    ];
    for (case, request, expected) in cases {
        let seen = cursors(&scene, request, usize::MAX).await;
        assert_eq!(seen.len(), expected, "{case}");
        assert!(seen.is_sorted() && (seen.is_empty() || case == "port" || *seen.last().unwrap() >= 249), "{case}: {seen:?}");
    }
}

#[tokio::test]
async fn a_follower_of_flows_misses_none_and_hears_when_it_was_too_slow() {
    let scene = scene(10);
    for cursor in 1..=5 {
        scene.tap.push(flow(cursor, "shop", 1));
    }
    let follow = |tail, after_cursor| v1::WatchFlowsRequest { follow: true, tail, after_cursor, ..Default::default() };
    let mut watch = scene.api.watch_flows(operator(follow(2, 0))).await.unwrap().into_inner();
    // More than the live channel holds, fewer than are kept: read on from the kept ones.
    for cursor in 6..=14 {
        scene.tap.push(flow(cursor, "shop", 1));
    }
    for expected in 4..=14 {
        assert_eq!(watch.next().await.unwrap().unwrap().cursor, expected);
    }
    for cursor in 15..=40 {
        scene.tap.push(flow(cursor, "shop", 1));
    }
    let status: Status = watch.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DataLoss);
    assert!(status.message().contains("after cursor 14 are no longer kept") && status.message().contains("after_cursor 30"), "{status}");
    assert!(watch.next().await.is_none());

    for (after, code) in [(29, Code::DataLoss), (41, Code::OutOfRange)] {
        assert_eq!(scene.api.watch_flows(operator(follow(0, after))).await.err().unwrap().code(), code, "after cursor {after}");
    }
    let mut resumed = scene.api.watch_flows(operator(follow(0, 30))).await.unwrap().into_inner();
    for expected in 31..=40 {
        assert_eq!(resumed.next().await.unwrap().unwrap().cursor, expected);
    }
    scene.stop.cancel();
    assert_eq!(resumed.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert!(resumed.next().await.is_none());
}

#[tokio::test]
async fn conditions_stand_beside_their_objects() {
    let scene = scene(0);
    let json = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}"#;
    let object =
        v1::Object { api_version: "v1".into(), kind: "Namespace".into(), name: "shop".into(), json: json.into(), ..Default::default() };
    let request = v1::ApplyRequest { objects: vec![object], ..Default::default() };
    let applied = scene.api.apply(operator(request)).await.unwrap().into_inner();
    assert_eq!(applied.changes[0].conditions[0].message, "Namespace shop");
    let listed = scene.api.list(operator(v1::ListRequest::default())).await.unwrap().into_inner();
    assert_eq!(listed.objects[0].conditions[0].message, "Namespace shop");
}
