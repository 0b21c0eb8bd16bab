//! Denied flows over a real connection: each record once, gaps told, both ends named, the reason given.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api_support;
mod wire_support;

use api_support::{Server, namespace, object};
use firebreak_proto::v1;
use firebreak_proto::v1::flow_message::Message as Up;
use futures::StreamExt;
use serde_json::json;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use wire_support::{Agent, LONG, at, bytes, connect, node_report, report, workload};

struct Reporter {
    up: mpsc::Sender<v1::FlowMessage>,
    acks: Streaming<v1::FlowAck>,
}

fn hello(node: &str) -> v1::FlowHello {
    v1::FlowHello { node: node.to_owned(), instance_id: format!("instance-of-{node}"), boot_id: "boot-0001".to_owned() }
}

impl Reporter {
    async fn open(server: &Server, first: Option<Up>) -> Result<Self, Status> {
        let (up, receiver) = mpsc::channel(16);
        up.send(v1::FlowMessage { message: first }).await.unwrap();
        let mut client = v1::flow_service_client::FlowServiceClient::new(connect(server.agents).await);
        let answer = tokio::time::timeout(LONG, client.report(ReceiverStream::new(receiver))).await.expect("an answer in time");
        Ok(Self { up, acks: answer?.into_inner() })
    }

    async fn new(server: &Server, node: &str) -> Self {
        Self::open(server, Some(Up::Hello(hello(node)))).await.unwrap()
    }

    /// Sends a batch; gives the acked sequence, or how the stream ended.
    async fn say(&mut self, message: Option<Up>) -> Result<u64, Status> {
        let _ = self.up.send(v1::FlowMessage { message }).await;
        let ack = tokio::time::timeout(LONG, self.acks.message()).await.expect("an answer in time")?;
        Ok(ack.expect("an ack").sequence)
    }

    async fn batch(&mut self, records: Vec<v1::FlowRecord>) -> Result<u64, Status> {
        self.say(Some(Up::Batch(v1::FlowBatch { records }))).await
    }
}

fn moment(seconds_ago: u64) -> prost_types::Timestamp {
    (SystemTime::now() - Duration::from_secs(seconds_ago)).into()
}

fn tcp(port: u32) -> v1::Transport {
    v1::Transport { protocol: 6, port: Some(port), icmp_type: None, icmp_code: None }
}

fn ingress(source: &str, destination: &str, port: u32) -> v1::FlowEvent {
    v1::FlowEvent {
        flow_id: vec![9; 16].into(),
        phase: v1::FlowPhase::Opened.into(),
        verdict: v1::Verdict::Drop.into(),
        direction: v1::Direction::Ingress.into(),
        source: bytes(source),
        destination: bytes(destination),
        transport: Some(tcp(port)),
        packets: 1,
        network: "default".to_owned(),
        // A node's clock may be ahead of the controller's.
        first_seen: Some((SystemTime::now() + Duration::from_secs(30)).into()),
        generation: 3,
        ..v1::FlowEvent::default()
    }
}

fn record(sequence: u64, event: v1::FlowEvent) -> v1::FlowRecord {
    v1::FlowRecord { sequence, time: Some(moment(0)), record: Some(v1::flow_record::Record::Flow(event)) }
}

fn loss(sequence: u64, direction: v1::Direction, packets: u64) -> v1::FlowRecord {
    let lost = v1::LostEvent { direction: direction.into(), packets, reason: "agent was down".to_owned() };
    v1::FlowRecord { sequence, time: Some(moment(0)), record: Some(v1::flow_record::Record::Lost(lost)) }
}

async fn kept(server: &Server, after_cursor: u64) -> Vec<v1::AttributedFlow> {
    let request = v1::WatchFlowsRequest { tail: 10_000, after_cursor, ..v1::WatchFlowsRequest::default() };
    server.client.clone().watch_flows(request).await.unwrap().into_inner().map(Result::unwrap).collect().await
}

/// `shop/db` on n1 takes `web` on port 5432; `web` is on n1 and published as 8080, `api` is on n2.
async fn shop(server: &Server) -> (Agent, Agent) {
    let db = json!({
        "apiVersion": "firebreak.dev/v1alpha1", "kind": "SegmentPolicy", "metadata": {"namespace": "shop", "name": "db"},
        "spec": {
            "appliesTo": {"matchLabels": {"app": "db"}},
            "ingress": [{"from": [{"workloads": {"matchLabels": {"app": "web"}}}], "ports": [{"protocol": "TCP", "port": 5432}]}],
        },
    });
    server.apply(vec![namespace("shop"), object(&db)]).await;
    let mut one = Agent::new(server, "n1").await;
    one.send(node_report(&["192.0.2.1"])).await;
    let mut published = workload("n1", "db", "10.0.0.1");
    published.published_ports = vec![v1::PublishedPort { protocol: 6, host_port: 15432, workload_port: 5432, ..Default::default() }];
    let mut hidden = workload("n1", "hidden", "172.17.0.2");
    hidden.addresses = vec![at("n1/docker0", "172.17.0.2")];
    one.send(report(vec![published, workload("n1", "web", "10.0.0.2"), workload("n1", "short", "10.0.0.4"), hidden])).await;
    let mut two = Agent::new(server, "n2").await;
    two.send(node_report(&["192.0.2.2"])).await;
    let mut other = workload("n2", "elsewhere", "172.17.0.2");
    other.addresses = vec![at("n2/docker0", "172.17.0.2")];
    two.send(report(vec![workload("n2", "api", "10.0.0.3"), other])).await;
    two.until(|state| state.endpoints.len() == 2 && state.addresses.len() == 1).await;
    one.until(|state| state.endpoints.len() == 4 && state.addresses.len() == 1).await;
    (one, two)
}

#[tokio::test]
async fn each_record_is_kept_once_and_a_gap_is_told() {
    let server = Server::start().await;
    let (_one, _two) = shop(&server).await;
    let mut reporter = Reporter::new(&server, "n1").await;
    let flow = |sequence| record(sequence, ingress("10.0.0.3", "10.0.0.1", 22));
    assert_eq!(reporter.batch(vec![]).await.unwrap(), 0);
    assert_eq!(reporter.batch(vec![flow(5), flow(6)]).await.unwrap(), 6, "what came before this controller began is no gap");
    assert_eq!(reporter.batch(vec![flow(5), flow(6), flow(7)]).await.unwrap(), 7);
    let mut again = Reporter::new(&server, "n1").await;
    assert_eq!(again.batch(vec![flow(7)]).await.unwrap(), 7);
    assert_eq!(again.batch(vec![flow(8), flow(11), loss(12, v1::Direction::Egress, 0)]).await.unwrap(), 12);
    let told: Vec<String> = kept(&server, 0)
        .await
        .iter()
        .map(|flow| match &flow.lost {
            None => flow.sequence.to_string(),
            Some(lost) => format!("{}: {} {}", flow.sequence, lost.packets, lost.reason),
        })
        .collect();
    assert_eq!(told, ["5", "6", "7", "8", "11: 0 2 records between 8 and 11 never came", "11", "12: 0 agent was down"]);
    let all = kept(&server, 0).await;
    assert!(all.windows(2).all(|pair| pair[0].cursor + 1 == pair[1].cursor));
    let later: Vec<u64> = kept(&server, all[4].cursor).await.iter().map(|flow| flow.sequence).collect();
    assert_eq!(later, [11, 12], "a cursor resumes where it stands");
    // Another boot counts from 1 again.
    let mut rebooted =
        Reporter::open(&server, Some(Up::Hello(v1::FlowHello { boot_id: "boot-0002".to_owned(), ..hello("n1") }))).await.unwrap();
    assert_eq!(rebooted.batch(vec![flow(1)]).await.unwrap(), 1);
    assert_eq!(kept(&server, 0).await.len(), 8);
    let (_, text) = server.http("/metrics").await;
    for (outcome, count) in [("Flow", 6), ("Lost", 1), ("Gap", 1), ("Duplicate", 3)] {
        let line = format!("firebreak_controller_flow_records_total{{outcome=\"{outcome}\"}} {count}");
        assert!(text.contains(&line), "{line} in {text}");
    }
    server.stop().await;
}

#[tokio::test]
async fn both_ends_are_named_and_the_reason_is_the_rule_that_came_nearest() {
    let server = Server::start().await;
    let (mut one, two) = shop(&server).await;
    // `short` ends, and api's address goes to another workload.
    let mut published = workload("n1", "db", "10.0.0.1");
    published.published_ports = vec![v1::PublishedPort { protocol: 6, host_port: 15432, workload_port: 5432, ..Default::default() }];
    let mut hidden = workload("n1", "hidden", "172.17.0.2");
    hidden.addresses = vec![at("n1/docker0", "172.17.0.2")];
    one.send(report(vec![published, workload("n1", "web", "10.0.0.2"), hidden, workload("n1", "twin", "10.0.0.9")])).await;
    let mut elsewhere = workload("n2", "elsewhere", "172.17.0.2");
    elsewhere.addresses = vec![at("n2/docker0", "172.17.0.2")];
    one.until(|state| state.endpoints.contains_key(&firebreak_policy::model::WorkloadId::new("n1", "twin"))).await;
    two.send(report(vec![workload("n2", "heir", "10.0.0.3"), workload("n2", "other-twin", "10.0.0.9"), elsewhere])).await;
    // Owners of addresses are known a moment after the workloads: asked until the heir is named.
    let mut probe = Reporter::new(&server, "n2").await;
    for sequence in 1.. {
        probe.batch(vec![record(sequence, ingress("10.0.0.3", "172.17.0.2", 1))]).await.unwrap();
        let newest = kept(&server, 0).await.pop().unwrap();
        if newest.source.unwrap().name == "heir" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = kept(&server, 0).await.pop().unwrap().cursor;

    let mut reporter = Reporter::new(&server, "n1").await;
    let long_ago = |event: v1::FlowEvent, seconds| v1::FlowEvent { first_seen: Some(moment(seconds)), ..event };
    let nearest = |field: &str, wanted: &str, got: &str| format!("db#0 {field}: {wanted} != {got}");
    let inside = |event: v1::FlowEvent| v1::FlowEvent { network: "n1/docker0".to_owned(), ..event };
    let egress =
        v1::FlowEvent { direction: v1::Direction::Egress.into(), container: "web".to_owned(), ..ingress("10.0.0.2", "192.0.2.1", 15433) };
    let relayed = inside(ingress("172.17.0.2", "192.0.2.1", 15432));
    // Event; names of both ends; part of the reason.
    let table: Vec<(&str, v1::FlowEvent, &str, &str, String)> = vec![
        ("a known workload on the wrong port", ingress("10.0.0.2", "10.0.0.1", 5433), "web", "db", nearest("port", "5432/tcp", "5433/tcp")),
        (
            "another workload",
            ingress("10.0.0.9", "10.0.0.1", 5432),
            "? address claimed by n1/twin and n2/other-twin",
            "db",
            "db#0 peer".to_owned(),
        ),
        ("the new owner of an address", ingress("10.0.0.3", "10.0.0.1", 5432), "heir", "db", "db#0 peer".to_owned()),
        ("its owner at the time", long_ago(ingress("10.0.0.3", "10.0.0.1", 5432), 3600), "api", "db", "db#0 peer".to_owned()),
        (
            "one that stopped a moment ago",
            ingress("10.0.0.4", "10.0.0.1", 5432),
            "short it had given up the address 3",
            "db",
            "db#0 peer".to_owned(),
        ),
        ("nobody", ingress("203.0.113.7", "10.0.0.1", 5432), "?", "db", "db#0 peer".to_owned()),
        (
            "another node, which hides workloads",
            ingress("192.0.2.2", "10.0.0.1", 5432),
            "node n2 node n2 hides its workloads behind masquerading",
            "db",
            "db#0 peer".to_owned(),
        ),
        ("the own node", ingress("192.0.2.1", "10.0.0.1", 5432), "node n1", "db", "denied by generation 3".to_owned()),
        ("the hidden neighbour of this node", inside(ingress("172.17.0.2", "10.0.0.1", 5432)), "hidden", "db", "db#0 peer".to_owned()),
        ("a hidden address seen outside", ingress("172.17.0.2", "10.0.0.1", 5432), "?", "db", "db#0 peer".to_owned()),
        (
            "what newer policy allows",
            ingress("10.0.0.2", "10.0.0.1", 5432),
            "web",
            "db",
            "denied by generation 3 of the node; the newest policy allows it".to_owned(),
        ),
        ("a published port", relayed, "hidden", "node n1", "node port 15432 leads to shop/db port 5432; ".to_owned()),
        ("a port of the node that is not published", egress, "web", "node n1", "denied by generation 3".to_owned()),
    ];
    let count = table.len();
    let records = table.iter().zip(1..).map(|((_, event, ..), sequence)| record(sequence, event.clone())).collect();
    assert_eq!(reporter.batch(records).await.unwrap(), count as u64);
    let name = |peer: &Option<v1::Peer>| {
        let peer = peer.as_ref().unwrap();
        let name = match (peer.name.as_str(), peer.node.as_str()) {
            ("", "") => "?".to_owned(),
            ("", node) => format!("node {node}"),
            (name, _) => name.to_owned(),
        };
        format!("{name} {}", peer.note).trim().to_owned()
    };
    for ((what, _, source, destination, reason), flow) in table.iter().zip(kept(&server, before).await) {
        assert!(name(&flow.source).starts_with(source), "{what}: {}", name(&flow.source));
        assert_eq!(name(&flow.destination), *destination, "{what}");
        let told = flow.reason.unwrap();
        assert_eq!(told.verdict(), v1::Verdict::Drop, "{what}");
        let rule = |it: &v1::RuleRef| format!("{}#{}", it.name, it.rule_index.unwrap());
        let near = told.nearest.as_ref().map(|it| format!("{} {}: {} != {}", rule(it.rule.as_ref().unwrap()), it.field, it.wanted, it.got));
        let told = format!("{} {}", near.unwrap_or_default(), told.reason);
        assert!(told.contains(reason), "{what}: {told:?} does not tell {reason:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn no_packet_that_a_container_can_make_has_a_record_that_is_refused() {
    let server = Server::start().await;
    let (_one, _two) = shop(&server).await;
    let mut reporter = Reporter::new(&server, "n1").await;
    let with = |protocol, source: &str, destination: &str| v1::FlowEvent {
        transport: Some(v1::Transport { protocol, ..Default::default() }),
        source: bytes(source),
        destination: bytes(destination),
        ..ingress(source, destination, 1)
    };
    let events = [
        ("ICMPv6 in IPv4", with(58, "10.0.0.3", "10.0.0.1")),
        ("ICMP in IPv6", with(1, "2001:db8::1", "2001:db8::2")),
        ("TCP without room for ports", with(6, "10.0.0.3", "10.0.0.1")),
        ("SCTP without room for ports", with(132, "10.0.0.3", "10.0.0.1")),
        ("protocol 0", with(0, "10.0.0.3", "10.0.0.1")),
        ("protocol 255", with(255, "10.0.0.3", "10.0.0.1")),
        ("IPv4-mapped source", with(17, "::ffff:10.0.0.3", "2001:db8::2")),
        ("IPv4-mapped destination", with(47, "2001:db8::2", "::ffff:10.0.0.1")),
        ("unspecified ends", with(47, "0.0.0.0", "255.255.255.255")),
        ("port 0", ingress("10.0.0.3", "10.0.0.1", 0)),
    ];
    for (sequence, (what, event)) in (1..).zip(events) {
        assert_eq!(reporter.batch(vec![record(sequence, event)]).await.unwrap(), sequence, "{what}");
    }
    let kept = kept(&server, 0).await;
    assert_eq!(kept.len(), 10);
    assert_eq!(kept[0].destination.as_ref().unwrap().name, "db");
    assert_eq!(kept[0].reason.as_ref().unwrap().verdict(), v1::Verdict::Drop);
    server.stop().await;
}

#[tokio::test]
async fn a_bad_record_refuses_its_batch_whole() {
    let server = Server::start().await;
    let (_one, _two) = shop(&server).await;
    let status = Reporter::open(&server, None).await.err().unwrap();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "message: is not set, or of a kind that this version does not know")
    );
    let status = Reporter::open(&server, Some(Up::Batch(v1::FlowBatch::default()))).await.err().unwrap();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "message: batch came before hello"));
    for (hello, code, expected) in [
        (v1::FlowHello { node: "N".to_owned(), ..hello("n1") }, Code::InvalidArgument, "hello.node: "),
        (v1::FlowHello { instance_id: String::new(), ..hello("n1") }, Code::InvalidArgument, "hello.instance_id: "),
        (v1::FlowHello { boot_id: "short".to_owned(), ..hello("n1") }, Code::InvalidArgument, "hello.boot_id: "),
        (
            v1::FlowHello { instance_id: "another-one".to_owned(), ..hello("n1") },
            Code::PermissionDenied,
            "node n1 belongs to another agent",
        ),
    ] {
        let status = Reporter::open(&server, Some(Up::Hello(hello))).await.err().unwrap();
        assert_eq!(status.code(), code);
        assert!(status.message().starts_with(expected), "{}", status.message());
    }
    let good = || ingress("10.0.0.3", "10.0.0.1", 22);
    let flow = |change: fn(&mut v1::FlowEvent)| {
        let mut event = good();
        change(&mut event);
        record(2, event)
    };
    let icmp = |event: &mut v1::FlowEvent| event.transport = Some(v1::Transport { protocol: 1, icmp_type: Some(8), ..Default::default() });
    let table: Vec<(v1::FlowRecord, &str)> = vec![
        (record(0, good()), "sequence: is 0"),
        (v1::FlowRecord { sequence: 2, time: None, record: None }, "record: is not set"),
        (flow(|it| it.flow_id = vec![1; 15].into()), "flow.flow_id: has 15 bytes, not 16"),
        (flow(|it| it.direction = 0), "flow.direction: is not set"),
        (flow(|it| it.direction = 9), "flow.direction: is not set"),
        (flow(|it| it.phase = 0), "flow.phase: is not set"),
        (flow(|it| it.verdict = 0), "flow.verdict: is not set"),
        (flow(|it| it.source.clear()), "flow.source: 0 bytes are no address"),
        (flow(|it| it.destination = vec![1; 5].into()), "flow.destination: 5 bytes are no address"),
        (flow(|it| it.transport = None), "flow.transport: is missing"),
        (flow(|it| it.transport = Some(tcp(70_000))), "flow.transport.port: 70000 is no port number"),
        (flow(|it| it.transport = Some(v1::Transport { protocol: 300, ..Default::default() })), "flow.transport.protocol: "),
        (flow(|it| it.transport = Some(v1::Transport { protocol: 6, icmp_type: Some(8), ..Default::default() })), "flow.transport.port: "),
        (flow(|it| it.transport = Some(v1::Transport { protocol: 47, port: Some(1), ..Default::default() })), "flow.transport.port: "),
        (flow(|it| it.network = "n2/docker0".to_owned()), "flow.network: n2/docker0 belongs to another node; this stream is node n1's"),
        (flow(|it| it.source = bytes("2001:db8::1")), "flow.destination: 10.0.0.1 is not of the family of the source 2001:db8::1"),
        (flow(icmp), "flow.transport.icmp_code: "),
        (flow(|it| it.source_port = Some(70_000)), "flow.source_port: 70000 is no port number"),
        (loss(2, v1::Direction::Unspecified, 1), "lost.direction: is not set"),
    ];
    for (bad, expected) in table {
        let mut reporter = Reporter::new(&server, "n1").await;
        let status = reporter.batch(vec![record(1, good()), bad]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{expected}");
        let expected = format!("batch.records[1].{expected}");
        assert!(status.message().starts_with(&expected), "{:?} is not {expected:?}", status.message());
    }
    let mut reporter = Reporter::new(&server, "n1").await;
    let status = reporter.batch((1..=1001).map(|sequence| record(sequence, good())).collect()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "batch.records: has 1001, over 1000"));
    for (message, expected) in [(None, "message: is not set"), (Some(Up::Hello(hello("n1"))), "hello: came twice")] {
        let mut reporter = Reporter::new(&server, "n1").await;
        let status = reporter.say(message).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(expected), "{}", status.message());
    }
    assert!(kept(&server, 0).await.is_empty(), "nothing of a refused batch is kept");
    let mut reporter = Reporter::new(&server, "n1").await;
    assert_eq!(reporter.batch(vec![record(1, good())]).await.unwrap(), 1, "what was refused can be sent as it should be");
    server.stop().await;
}

fn cut(source: &str, destination: &str, port: u32) -> v1::CutEvent {
    v1::CutEvent {
        cut_id: vec![7; 16].into(),
        direction: v1::Direction::Ingress.into(),
        source: bytes(source),
        source_port: Some(40_000),
        destination: bytes(destination),
        transport: Some(tcp(port)),
        network: "default".to_owned(),
        generation: 3,
        packets_sent: Some(5),
        bytes_sent: Some(500),
        packets_received: Some(4),
        bytes_received: Some(4_000),
        ..v1::CutEvent::default()
    }
}

fn cut_record(sequence: u64, event: v1::CutEvent) -> v1::FlowRecord {
    v1::FlowRecord { sequence, time: Some(moment(0)), record: Some(v1::flow_record::Record::Cut(event)) }
}

#[tokio::test]
async fn a_cut_is_told_once_with_both_ends_and_the_reason_whichever_node_tells_first() {
    let server = Server::start().await;
    let (_one, _two) = shop(&server).await;
    let (mut one, mut two) = (Reporter::new(&server, "n1").await, Reporter::new(&server, "n2").await);
    let event = cut("10.0.0.3", "10.0.0.1", 5432);
    assert_eq!(two.batch(vec![cut_record(1, v1::CutEvent { direction: v1::Direction::Egress.into(), ..event.clone() })]).await.unwrap(), 1);
    assert_eq!(one.batch(vec![cut_record(1, event.clone()), cut_record(2, cut("10.0.0.3", "10.0.0.1", 22))]).await.unwrap(), 2);
    let told = kept(&server, 0).await;
    let shown: Vec<(&str, u64)> = told.iter().map(|flow| (flow.node.as_str(), flow.sequence)).collect();
    assert_eq!(shown, [("n2", 1), ("n1", 2)]);
    let second = &told[1];
    assert!(second.event.is_none() && second.lost.is_none());
    assert_eq!(second.cut.as_ref().unwrap().bytes_received, Some(4_000));
    assert_eq!(second.source.as_ref().unwrap().name, "api");
    assert_eq!(second.destination.as_ref().unwrap().name, "db");
    let reason = second.reason.as_ref().unwrap();
    assert_eq!((reason.isolating[0].name.as_str(), reason.nearest.is_some()), ("db", true), "{reason:?}");
    // The filter.
    one.batch(vec![record(3, ingress("10.0.0.3", "10.0.0.1", 22))]).await.unwrap();
    let request = v1::WatchFlowsRequest { cuts: true, tail: 100, port: Some(22), ..v1::WatchFlowsRequest::default() };
    let cuts: Vec<_> = server.client.clone().watch_flows(request).await.unwrap().into_inner().map(Result::unwrap).collect().await;
    assert_eq!(cuts.iter().map(|flow| flow.sequence).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn what_an_entry_can_hold_makes_no_record_that_is_refused() {
    let server = Server::start().await;
    let (_one, _two) = shop(&server).await;
    let mut reporter = Reporter::new(&server, "n1").await;
    let with = |change: fn(&mut v1::CutEvent)| {
        let mut event = cut("10.0.0.3", "10.0.0.1", 22);
        change(&mut event);
        event
    };
    let plain = |protocol| Some(v1::Transport { protocol, port: None, icmp_type: None, icmp_code: None });
    let mut gre = with(|event| event.source_port = None);
    gre.transport = plain(47);
    let mut icmpv6_in_ipv4 = with(|_| {});
    icmpv6_in_ipv4.transport = plain(58);
    let mapped = v1::CutEvent { network: String::new(), ..cut("::ffff:10.0.0.3", "::ffff:10.0.0.1", 22) };
    let nowhere = with(|event| event.network = String::new());
    let port_zero = with(|event| event.transport = Some(tcp(0)));
    let events = [gre, icmpv6_in_ipv4, mapped, nowhere, port_zero];
    let count = u64::try_from(events.len()).unwrap();
    let records = events.into_iter().zip(1..).map(|(event, sequence)| cut_record(sequence, event)).collect();
    assert_eq!(reporter.batch(records).await.unwrap(), count);
    for (field, event) in [
        ("cut_id", with(|event| event.cut_id = vec![1; 15].into())),
        ("direction", with(|event| event.direction = 0)),
        ("network", with(|event| event.network = "n2/docker0".to_owned())),
        ("arrived", with(|event| event.arrived = Some(v1::WireEnds::default()))),
        ("transport", with(|event| event.transport = None)),
    ] {
        let mut reporter = Reporter::new(&server, "n1").await;
        let refused = reporter.batch(vec![cut_record(count + 1, event)]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
        assert!(refused.message().contains(field), "{field}: {}", refused.message());
    }
}
