//! Sessions of agents over a real connection to a whole controller with its store.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api_support;
mod wire_support;

use api_support::{Server, group, namespace, object, policy, reference};
use firebreak_policy::node_state::Member;
use firebreak_proto::v1;
use firebreak_proto::v1::agent_message::Message as Up;
use serde_json::json;
use tonic::Code;
use wire_support::{Agent, ack, eventually, hello, node, node_report, nodes, nothing_held, report, workload, workloads};

/// `shop/db` takes connections of `app=web` and of the office.
fn db_policy() -> v1::Object {
    object(&json!({
        "apiVersion": "firebreak.dev/v1alpha1",
        "kind": "SegmentPolicy",
        "metadata": {"namespace": "shop", "name": "db"},
        "spec": {
            "appliesTo": {"matchLabels": {"app": "db"}},
            "ingress": [{"from": [{"workloads": {"matchLabels": {"app": "web"}}}], "ports": [{"protocol": "TCP", "port": 5432}]}],
        },
    }))
}

fn has_member(agent: &firebreak_policy::node_state::NodeState, address: &str) -> bool {
    let member = Member::Address(address.parse().unwrap());
    agent.groups.values().any(|group| group.members.contains(&member))
}

#[tokio::test]
async fn one_changed_member_is_one_small_message_and_a_reconnect_is_a_commit_alone() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), policy("shop", "db", "db")]).await;
    let blocks: Vec<_> =
        (0..20_000_u32).map(|n| json!({"cidr": format!("10.{}.{}.{}/32", n >> 14, (n >> 6) & 255, (n & 63) * 4)})).collect();
    let office = |blocks: &[serde_json::Value]| {
        object(
            &json!({"apiVersion": "firebreak.dev/v1alpha1", "kind": "AddressGroup", "metadata": {"name": "office"}, "spec": {"blocks": blocks}}),
        )
    };
    server.apply(vec![office(&blocks)]).await;
    let mut agent = Agent::new(&server, "n1").await;
    agent.send(node_report(&["192.0.2.1"])).await;
    agent.send(report(vec![workload("n1", "db", "172.16.0.2")])).await;
    agent.until(|state| state.groups.values().any(|group| group.members.len() == 20_000)).await;
    assert!(agent.sizes.iter().all(|size| *size <= 1 << 20), "{:?}", agent.sizes);

    server.apply(vec![office(&blocks[1..])]).await;
    let commit = agent.generation().await;
    assert_eq!(agent.updates, 1);
    assert!(agent.sizes.iter().sum::<usize>() < 512, "{:?}", agent.sizes);
    agent.ack(&commit).await;

    let mut again = agent.again(&server, commit.generation).await;
    let resumed = again.generation().await;
    assert_eq!((again.updates, resumed.hash.clone(), resumed.generation), (0, commit.hash.clone(), commit.generation + 1));
    assert_eq!(agent.end().await.code(), Code::Aborted, "the newer stream of the installation ends the older one");

    // A controller that starts on the same database: same epoch, the workload still there, nothing sent again.
    again.ack(&resumed).await;
    let server = Server::start_in(server.stop().await).await;
    eventually("it is in sync", || server.http("/readyz"), |answer| answer.0.contains("200")).await;
    let seen = workloads(&server).await;
    assert_eq!(seen.len(), 1, "workloads outlive the controller");
    assert_eq!((seen[0].enforced, node(&server, "n1").await.unwrap().connection()), (false, v1::NodeConnection::Lost));
    let mut third = again.again(&server, resumed.generation).await;
    let commit = third.generation().await;
    assert_eq!((third.updates, &third.epoch, commit.generation), (0, &again.epoch, resumed.generation + 1));
    third.ack(&commit).await;
    third.send(node_report(&["192.0.2.1"])).await;
    let enforced = eventually("the workload is enforced", || workloads(&server), |seen| seen.iter().all(|it| it.enforced)).await;
    assert_eq!(enforced[0].ingress_policies[0].name, "db");
    server.stop().await;
}

#[tokio::test]
async fn a_lost_nodes_workloads_stay_peers_until_the_node_is_deleted() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), db_policy()]).await;
    let mut one = Agent::new(&server, "n1").await;
    one.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    let two = Agent::new(&server, "n2").await;
    two.send(report(vec![workload("n2", "web", "10.0.0.2")])).await;
    one.until(|state| has_member(state, "10.0.0.2")).await;
    drop(two);
    let lost = |node: &Option<v1::NodeStatus>| node.as_ref().is_some_and(|it| it.connection() == v1::NodeConnection::Lost);
    eventually("the node is lost", || node(&server, "n2"), lost).await;
    assert!(has_member(&one.state, "10.0.0.2"));
    assert_eq!(workloads(&server).await.len(), 2);

    // A node that is deleted while it has a session: the session ends, and nothing of it is left.
    let mut two = Agent::new(&server, "n2").await;
    let commit = two.generation().await;
    two.ack(&commit).await;
    let request = v1::DeleteNodeRequest { name: "n2".to_owned(), reason: "scrapped".to_owned() };
    server.client.clone().delete_node(request).await.unwrap();
    let status = two.end().await;
    assert_eq!((status.code(), status.message()), (Code::Aborted, "an operator deleted the node; connect again to take the name anew"));
    one.until(|state| !has_member(state, "10.0.0.2")).await;
    assert_eq!(workloads(&server).await.len(), 1);
    assert!(node(&server, "n2").await.is_none());
    // Its name is free for another installation.
    let other = v1::Hello { instance_id: "another-instance".to_owned(), ..hello("n2") };
    let mut other = Agent::open(&server, vec![Some(Up::Hello(other)), Some(nothing_held())]).await.unwrap();
    assert_eq!(other.generation().await.generation, 1);
    let status = Agent::open(&server, vec![Some(Up::Hello(hello("n2"))), Some(nothing_held())]).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("`firebreak delete node n2 --forget`"), "{}", status.message());
    server.stop().await;
}

#[tokio::test]
async fn an_address_that_two_claim_is_nobodys_and_shows_on_both_until_it_ends() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), db_policy()]).await;
    let mut one = Agent::new(&server, "n1").await;
    one.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    let two = Agent::new(&server, "n2").await;
    two.send(report(vec![workload("n2", "web", "10.0.0.2")])).await;
    let three = Agent::new(&server, "n3").await;
    one.until(|state| has_member(state, "10.0.0.2")).await;
    three.send(report(vec![workload("n3", "liar", "10.0.0.2")])).await;
    one.until(|state| !has_member(state, "10.0.0.2")).await;
    let seen = workloads(&server).await;
    let conflicts: Vec<_> = seen
        .iter()
        .map(|it| (it.workload.as_ref().unwrap().name.as_str(), it.conditions.iter().map(|it| it.message.as_str()).collect::<Vec<_>>()))
        .collect();
    assert_eq!(
        conflicts,
        [
            ("db", vec![]),
            ("web", vec!["10.0.0.2 is claimed by n3/liar too; it is nobody's peer until that ends"]),
            ("liar", vec!["10.0.0.2 is claimed by n2/web too; it is nobody's peer until that ends"]),
        ]
    );
    let shown: Vec<_> = nodes(&server).await.into_iter().map(|node| (node.name, node.conflicts.len())).collect();
    assert_eq!(shown, [("n1".to_owned(), 0), ("n2".to_owned(), 1), ("n3".to_owned(), 1)]);
    three.send(report(Vec::new())).await;
    one.until(|state| has_member(state, "10.0.0.2")).await;
    assert!(workloads(&server).await.iter().all(|it| it.conditions.is_empty()));
    server.stop().await;
}

#[tokio::test]
async fn an_agent_that_does_not_ack_gets_the_newest_target_afterwards_and_nothing_between() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), policy("shop", "db", "db")]).await;
    let mut agent = Agent::new(&server, "n1").await;
    agent.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    agent.until(|state| state.endpoints.len() == 1).await;
    server.apply(vec![group("office", "192.0.2.0/32")]).await;
    let waiting = agent.generation().await;
    let mut newest = 0;
    for number in 1..=20 {
        newest = server.apply(vec![group("office", &format!("192.0.2.{number}/32"))]).await.revision;
        server.apply(vec![object(&json!({
            "apiVersion": "firebreak.dev/v1alpha1", "kind": "Workload",
            "metadata": {"namespace": "shop", "name": format!("w{number}")}, "spec": {"node": "n1", "interface": format!("veth{number}")},
        }))])
        .await;
        newest += 1;
    }
    agent.ack(&waiting).await;
    let commit = agent.generation().await;
    assert_eq!((commit.generation, commit.revision), (waiting.generation + 1, newest));
    assert_eq!(agent.updates, 1, "one change of one group");
    assert_eq!(agent.declared.len(), 20);
    server.stop().await;
}

#[tokio::test]
async fn a_refused_object_keeps_the_policy_from_being_realized_and_goes_out_again_whole() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), policy("shop", "db", "db"), group("office", "192.0.2.0/24")]).await;
    let mut agent = Agent::new(&server, "n1").await;
    agent.send(node_report(&[])).await;
    agent.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    agent.until(|state| !state.groups.is_empty()).await;
    let realized = async || {
        let get = v1::GetRequest { object: Some(reference("SegmentPolicy", "shop", "db")) };
        let object = server.client.clone().get(get).await.unwrap().into_inner();
        object.conditions.into_iter().find(|it| it.r#type == "Realized").unwrap()
    };
    assert!(eventually("it is realized", &realized, |it| it.status).await.status);
    server.apply(vec![group("office", "198.51.100.0/24")]).await;
    let commit = agent.generation().await;
    let group_id = agent.state.groups.keys().next().unwrap().0.to_string();
    let refused = v1::RefusedObject { kind: v1::ObjectKind::Group.into(), id: group_id, reason: "too much".to_owned() };
    agent.send(Up::Ack(v1::Ack { refused: vec![refused], ..ack(&commit) })).await;
    eventually("the refusal shows", || node(&server, "n1"), |it| it.as_ref().unwrap().refused.len() == 1).await;
    let pending = realized().await;
    assert_eq!((pending.status, pending.message.starts_with("realized 0/1 nodes")), (false, true), "{}", pending.message);
    // It is tried again although nothing changes, and comes whole: the agent does not have what a change would be against.
    agent.state.groups.clear();
    let commit = agent.generation().await;
    assert_eq!((agent.updates, agent.state.groups.len()), (1, 1));
    agent.ack(&commit).await;
    eventually("it is realized again", &realized, |it| it.status).await;
    server.stop().await;
}

#[tokio::test]
async fn nothing_is_published_over_an_object_that_cannot_be_read() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), policy("shop", "db", "db")]).await;
    let folder = server.stop().await;
    let database = rusqlite::Connection::open(folder.path().join("controller.db")).unwrap();
    let changed =
        database.execute("UPDATE object_versions SET json = '{\"kind\":\"SegmentPolicy\",\"newer\":1}' WHERE kind = 'SegmentPolicy'", []);
    assert_eq!(changed.unwrap(), 1);
    drop(database);
    let server = Server::start_in(folder).await;
    let mut agent = Agent::new(&server, "n1").await;
    agent.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    assert!(tokio::time::timeout(std::time::Duration::from_millis(300), agent.next()).await.is_err(), "a node keeps what it has");
    assert!(server.http("/readyz").await.0.contains("503"));
    server.delete(vec![reference("SegmentPolicy", "shop", "db")]).await;
    agent.until(|state| state.endpoints.len() == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn metrics_tell_how_many_agents_are_connected_and_how_long_compiling_takes() {
    let server = Server::start().await;
    let mut agent = Agent::new(&server, "n1").await;
    agent.generation().await;
    let (_, text) = server.http("/metrics").await;
    for line in ["firebreak_controller_agents_connected 1", "firebreak_controller_compile_seconds_count "] {
        assert!(text.contains(line), "{text}");
    }
    drop(agent);
    let gone = |text: &(String, String)| text.1.contains("firebreak_controller_agents_connected 0");
    eventually("the agent has gone", || server.http("/metrics"), gone).await;
    server.stop().await;
}
