//! What operators are told of what agents answer, and what becomes of orders, retries and reports that cannot be used at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api_support;
mod wire_support;

use api_support::{Server, group, namespace, object, policy, reference};
use firebreak_proto::v1;
use firebreak_proto::v1::agent_message::Message as Up;
use firebreak_proto::v1::controller_message::Message as Down;
use serde_json::json;
use std::time::Duration;
use tonic::{Code, Status};
use wire_support::{Agent, ack, eventually, node, node_report, report, workload, workloads};

/// A node with one workload that a policy isolates, and that has all it is to have.
async fn enforced(server: &Server) -> Agent {
    server.apply(vec![namespace("shop"), policy("shop", "db", "db"), group("office", "192.0.2.0/24")]).await;
    let mut agent = Agent::new(server, "n1").await;
    agent.send(node_report(&[])).await;
    agent.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    agent.until(|state| state.endpoints.len() == 1 && !state.groups.is_empty()).await;
    eventually("it is enforced", || workloads(server), |them| them.iter().all(|it| it.enforced)).await;
    agent
}

fn observe(server: &Server, minutes: Option<i64>) -> tokio::task::JoinHandle<Result<v1::SetObserveResponse, Status>> {
    let mut client = server.client.clone();
    let duration = minutes.map(|minutes| prost_types::Duration { seconds: 60 * minutes, nanos: 0 });
    let request = v1::SetObserveRequest { name: "n1".to_owned(), duration, reason: "locked out".to_owned() };
    tokio::spawn(async move { client.set_observe(request).await.map(tonic::Response::into_inner) })
}

/// The next order; what else comes is acked.
async fn order(agent: &mut Agent) -> v1::Observe {
    loop {
        match agent.next().await.unwrap().expect("the stream goes on") {
            Down::Observe(order) => return order,
            Down::Commit(commit) => agent.ack(&commit).await,
            Down::Welcome(_) | Down::Declared(_) | Down::Update(_) => {}
        }
    }
}

fn told(observing: Option<v1::Observing>, answer: Option<(u64, &str)>) -> Up {
    let observe_answer = answer.map(|(revision, refused)| v1::ObserveAnswer { revision, refused: refused.to_owned() });
    Up::Node(v1::NodeReport { enforcing: true, observing, observe_answer, ..v1::NodeReport::default() })
}

#[tokio::test]
async fn an_order_to_observe_is_answered_by_the_answer_to_it_and_not_by_what_was_said_before() {
    let server = Server::start().await;
    let mut agent = enforced(&server).await;
    let first = observe(&server, Some(5));
    let given = order(&mut agent).await;
    let observing = |seconds| v1::Observing {
        until: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        principal: given.principal.clone(),
        reason: given.reason.clone(),
    };
    agent.send(told(Some(observing(1_000)), Some((given.revision, "")))).await;
    let answer = first.await.unwrap().unwrap();
    assert_eq!((answer.revision, answer.observing), (given.revision, Some(observing(1_000))));
    // The same order again: what the node says already is word for word what is asked for.
    let mut again = observe(&server, Some(5));
    let renewed = order(&mut agent).await;
    assert!(renewed.revision > given.revision);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut again).await.is_err(), "nobody has answered it");
    agent.send(told(Some(observing(2_000)), Some((renewed.revision, "")))).await;
    assert_eq!(again.await.unwrap().unwrap().observing, Some(observing(2_000)), "the new time and not the old one");
    // One that is not followed.
    let end = observe(&server, None);
    let given = order(&mut agent).await;
    agent.send(told(Some(v1::Observing::default()), Some((given.revision, "the table is gone")))).await;
    let status = end.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("node n1 did not follow the order: the table is gone"), "{status}");
    server.stop().await;
}

#[tokio::test]
async fn an_order_that_was_told_as_not_done_is_not_passed_on_later() {
    let server = Server::start().await;
    let mut agent = enforced(&server).await;
    // More than connection and session take in while the agent does not read.
    let address = |at: u32| std::net::Ipv4Addr::from(0x6440_0000 + 2 * at);
    let blocks: Vec<_> = (0..35_000).map(|at| json!({"cidr": format!("{}/32", address(at))})).collect();
    let large = json!({
        "apiVersion": "firebreak.dev/v1alpha1", "kind": "AddressGroup", "metadata": {"name": "office"}, "spec": {"blocks": blocks},
    });
    server.apply(vec![object(&large)]).await;
    eventually(
        "the generation is on its way",
        || node(&server, "n1"),
        |it| it.as_ref().is_some_and(|it| it.sent_generation > it.acked_generation),
    )
    .await;
    let status = observe(&server, Some(5)).await.unwrap().unwrap_err();
    assert!(status.message().contains("did not say within 10s"), "{status}");
    let commit = agent.generation_before(|order| panic!("it comes: {order:?}")).await;
    agent.ack(&commit).await;
    let second = observe(&server, Some(7));
    let given = order(&mut agent).await;
    assert_eq!(given.duration.map(|it| it.seconds), Some(420), "the first order was dropped");
    agent.send(told(None, Some((given.revision, "")))).await;
    second.await.unwrap().unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_workload_is_not_said_to_be_enforced_where_a_group_of_its_policy_was_refused_or_a_change_is_late() {
    let server = Server::start().await;
    let mut agent = enforced(&server).await;
    server.apply(vec![group("office", "198.51.100.0/24")]).await;
    let commit = agent.generation().await;
    let id = agent.state.groups.keys().next().unwrap().0.to_string();
    let refused = v1::RefusedObject { kind: v1::ObjectKind::Group.into(), id: id.clone(), reason: "too much".to_owned() };
    agent.send(Up::Ack(v1::Ack { refused: vec![refused], ..ack(&commit) })).await;
    let said = eventually("it is told", || workloads(&server), |them| !them[0].enforced).await;
    assert_eq!(said[0].reason, format!("its node refused {id}: too much"));
    agent.state.groups.clear();
    // It comes again, and is not acked: a member of the group may be one that should be gone.
    let commit = agent.generation().await;
    let said = eventually("it is told", || workloads(&server), |them| them[0].reason.contains("lacks a change for ")).await;
    assert!(!said[0].enforced);
    agent.ack(&commit).await;
    eventually("it is enforced again", || workloads(&server), |them| them[0].enforced).await;
    server.stop().await;
}

#[tokio::test]
async fn what_is_due_to_be_tried_again_stays_due_while_something_else_cannot_be_sent() {
    let server = Server::start().await;
    let mut agent = enforced(&server).await;
    server.apply(vec![group("office", "198.51.100.0/24")]).await;
    let commit = agent.generation().await;
    agent.send(Up::Ack(v1::Ack { failure: "no memory".to_owned(), ..ack(&commit) })).await;
    // An agent without the ability is not sent what needs it.
    let tiered = json!({
        "apiVersion": "firebreak.dev/v1alpha1", "kind": "ClusterSegmentPolicy", "metadata": {"name": "all"},
        "spec": {
            "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
        },
    });
    server.apply(vec![object(&tiered)]).await;
    let cannot = |it: &Option<v1::NodeStatus>| it.as_ref().is_some_and(|it| it.failure.contains("does not know policies of tiers"));
    eventually("it cannot be sent", || node(&server, "n1"), cannot).await;
    // The retry falls due after 5 s, and nothing shows that it did.
    tokio::time::sleep(Duration::from_secs(6)).await;
    server.delete(vec![reference("ClusterSegmentPolicy", "", "all")]).await;
    let again = agent.generation().await;
    assert!(again.generation > commit.generation);
    agent.ack(&again).await;
    eventually("it is enforced again", || workloads(&server), |them| them[0].enforced).await;
    server.stop().await;
}

#[tokio::test]
async fn declared_workloads_come_in_messages_of_a_size_that_is_bounded() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop")]).await;
    let mut agent = Agent::new(&server, "n1").await;
    agent.generation().await;
    let labels: std::collections::BTreeMap<String, String> =
        (0..60).map(|number| (format!("example.com/{}{number:02}", "k".repeat(60)), "v".repeat(60))).collect();
    let manifest = |number: usize| {
        object(&json!({
            "apiVersion": "firebreak.dev/v1alpha1", "kind": "Workload",
            "metadata": {"namespace": "shop", "name": format!("w{number}"), "labels": labels.clone()},
            "spec": {"node": "n1", "interface": format!("veth{number}")},
        }))
    };
    server.apply((0..40).map(manifest).collect()).await;
    let mut sizes = Vec::new();
    while agent.declared.len() < 40 {
        let Some(Down::Declared(part)) = agent.next().await.unwrap() else { continue };
        sizes.push(prost::Message::encoded_len(&part));
        if part.reset {
            agent.declared.clear();
        }
        agent.declared.extend(part.workloads);
    }
    assert!(sizes.len() > 1 && sizes.iter().all(|size| *size <= 65 * 1024), "{sizes:?}");
    server.stop().await;
}

#[tokio::test]
async fn nothing_is_published_over_a_reported_workload_that_cannot_be_read() {
    let mut server = Server::start().await;
    drop(enforced(&server).await);
    for is_forgotten in [false, true] {
        let folder = server.stop().await;
        let database = rusqlite::Connection::open(folder.path().join("controller.db")).unwrap();
        // A workload without an id: no version writes one, and every version refuses it.
        let nameless = prost::Message::encode_to_vec(&v1::Workload { name: "db".to_owned(), ..v1::Workload::default() });
        assert_eq!(database.execute("UPDATE reported_workloads SET workload = ?1", [nameless]).unwrap(), 1);
        drop(database);
        server = Server::start_in(folder).await;
        let mut other = Agent::new(&server, "n2").await;
        assert!(tokio::time::timeout(Duration::from_millis(300), other.next()).await.is_err(), "nodes keep what they have");
        assert!(server.http("/readyz").await.0.contains("503"));
        if is_forgotten {
            let forget = v1::DeleteNodeRequest { name: "n1".to_owned(), reason: "gone for good".to_owned() };
            server.client.clone().delete_node(forget).await.unwrap();
        } else {
            // Its agent reports anew.
            let agent = Agent::new(&server, "n1").await;
            agent.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
            eventually("it is in sync", || server.http("/readyz"), |it| it.0.contains("200")).await;
        }
        other.generation().await;
    }
    server.stop().await;
}
