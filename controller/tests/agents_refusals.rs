//! What an agent must not say: each is refused with a code and a message that names field and reason, and nothing of it counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api_support;
mod wire_support;

use api_support::{Server, namespace, policy};
use firebreak_proto::v1;
use firebreak_proto::v1::agent_message::Message as Up;
use tonic::Code;
use wire_support::{Agent, ack, at, eventually, hello, node_report, nodes, nothing_held, report, workload, workloads};

fn held(kind: i32, id: &str, hash: usize) -> Up {
    Up::Held(v1::Held { objects: vec![v1::HeldObject { kind, id: id.to_owned(), hash: vec![7; hash].into() }], last: false })
}

fn with(change: impl FnOnce(&mut v1::Workload)) -> Up {
    let mut bad = workload("n1", "new", "10.0.0.9");
    change(&mut bad);
    // A good one before it: the report is refused as a whole.
    report(vec![workload("n1", "good", "10.0.0.8"), bad])
}

#[tokio::test]
async fn a_bad_first_message_is_refused_before_anything_is_kept() {
    let server = Server::start().await;
    let said = |change: fn(&mut v1::Hello)| {
        let mut hello = hello("n1");
        change(&mut hello);
        Some(Up::Hello(hello))
    };
    let invalid = Code::InvalidArgument;
    let table: Vec<(Option<Up>, Code, &str)> = vec![
        (None, invalid, "message: is not set"),
        (Some(nothing_held()), invalid, "message: held came before hello"),
        (Some(node_report(&[])), invalid, "message: node came before hello"),
        (Some(report(vec![])), invalid, "message: workloads came before hello"),
        (Some(Up::Ack(v1::Ack::default())), invalid, "message: ack came before hello"),
        (said(|it| it.node.clear()), invalid, "hello.node: \"\" is no node name"),
        (said(|it| it.node = "N1".to_owned()), invalid, "hello.node: \"N1\" is no node name"),
        (said(|it| it.node = "n1/eth0".to_owned()), invalid, "hello.node: \"n1/eth0\" is no node name"),
        (said(|it| it.node = "-n1".to_owned()), invalid, "hello.node: \"-n1\" is no node name"),
        (said(|it| it.node = "n".repeat(100_000)), invalid, "hello.node: \"nnnn"),
        (said(|it| it.instance_id.clear()), invalid, "hello.instance_id: is not 8 to 64"),
        (said(|it| it.instance_id = "a b c d e f g".to_owned()), invalid, "hello.instance_id: is not 8 to 64"),
        (said(|it| it.boot_id = "x".repeat(65)), invalid, "hello.boot_id: is not 8 to 64"),
        (said(|it| it.protocol_min = 0), invalid, "hello.protocol_min: 0 to 2 is no range"),
        (said(|it| it.protocol_min = 3), invalid, "hello.protocol_min: 3 to 2 is no range"),
        (said(|it| it.generation = u64::MAX), invalid, "hello.generation: 18446744073709551615 is over"),
        (
            said(|it| (it.protocol_min, it.protocol_max) = (3, 4)),
            Code::FailedPrecondition,
            "no protocol version is shared: the agent of node n1 speaks 3 to 4, this controller speaks 2; upgrade the controller",
        ),
    ];
    for (message, code, expected) in table {
        let status = Agent::open(&server, vec![message]).await.err().unwrap_or_else(|| panic!("taken: {expected}"));
        assert_eq!(status.code(), code, "{expected}");
        assert!(status.message().starts_with(expected), "{:?} is not {expected:?}", status.message());
    }
    let mut agent = Agent::new(&server, "n9").await;
    agent.generation().await;
    assert_eq!(nodes(&server).await.len(), 1, "no name was taken by what was refused");
    server.stop().await;
}

#[tokio::test]
async fn a_bad_message_ends_the_session_and_nothing_of_it_counts() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), policy("shop", "db", "db")]).await;
    let mut agent = Agent::new(&server, "n1").await;
    agent.send(node_report(&["192.0.2.1"])).await;
    agent.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    agent.until(|state| state.endpoints.len() == 1 && state.addresses.len() == 1).await;
    let is_enforced = |seen: &Vec<v1::WorkloadStatus>| seen.len() == 1 && seen.iter().all(|it| it.enforced);
    let before = eventually("everything is enforced", || workloads(&server), is_enforced).await;

    let before_last: Vec<(Option<Up>, &str)> = vec![
        (Some(held(0, "x", 16)), "held.objects[0]."),
        (Some(held(77, "x", 16)), "held.objects[0]."),
        (Some(held(1, "", 16)), "held.objects[0].id: is empty"),
        (Some(held(1, "x", 15)), "held.objects[0].hash: 15 bytes are no content hash"),
        (Some(report(vec![])), "workloads: came before the last part of held"),
        (Some(node_report(&[])), "node: came before the last part of held"),
        (Some(Up::Ack(v1::Ack::default())), "ack: came before the last part of held"),
        (None, "message: is not set"),
        (Some(Up::Hello(hello("n1"))), "hello: came twice"),
    ];
    for (message, expected) in before_last {
        let status = match Agent::open(&server, vec![Some(Up::Hello(hello("n1"))), message]).await {
            Ok(mut agent) => agent.end().await,
            Err(status) => status,
        };
        assert_eq!(status.code(), Code::InvalidArgument, "{expected}");
        assert!(status.message().starts_with(expected), "{:?} is not {expected:?}", status.message());
    }

    let refused = |kind: i32| v1::RefusedObject { kind, id: "x".to_owned(), reason: "y".to_owned() };
    let part = |full, last, upsert: Vec<v1::Workload>, removed: &[&str]| {
        Up::Workloads(v1::WorkloadReport { full, last, upsert, removed: removed.iter().map(|it| (*it).to_owned()).collect() })
    };
    type Say = Box<dyn Fn(&v1::Commit) -> Vec<Option<Up>>>;
    let say = |message: Up| -> Say { Box::new(move |_| vec![Some(message.clone())]) };
    let acked = |change: fn(&mut v1::Ack)| -> Say {
        Box::new(move |commit| {
            let mut ack = ack(commit);
            change(&mut ack);
            vec![Some(Up::Ack(ack))]
        })
    };
    let table: Vec<(Say, &str)> = vec![
        (Box::new(|_| vec![None]), "message: is not set"),
        (say(Up::Hello(hello("n1"))), "hello: came twice"),
        (say(nothing_held()), "held.last: came already"),
        (say(with(|it| it.id.as_mut().unwrap().node = "n2".to_owned())), "workloads.upsert[1].id.node: n2 is another node"),
        (say(with(|it| it.id = None)), "workloads.upsert[1].id: "),
        (say(with(|it| it.id.as_mut().unwrap().container.clear())), "workloads.upsert[1].id.container: "),
        (
            say(with(|it| it.addresses = vec![at("n2/docker0", "172.17.0.2")])),
            "workloads.upsert[1].addresses[0].network: n2/docker0 belongs to",
        ),
        (say(with(|it| it.addresses = vec![at("", "172.17.0.2")])), "workloads.upsert[1].addresses[0].network: "),
        (
            say(with(|it| it.addresses[0].address = [&[0; 10][..], &[255, 255, 10, 0, 0, 9]].concat().into())),
            "workloads.upsert[1].addresses[0].address: ::ffff:10.0.0.9 is IPv4-mapped; send 10.0.0.9",
        ),
        (say(with(|it| it.addresses[0].address = vec![1; 5].into())), "workloads.upsert[1].addresses[0].address: 5 bytes are no address"),
        (say(with(|it| it.source = 0)), "workloads.upsert[1].source: 0 is no source"),
        (say(with(|it| it.source = 99)), "workloads.upsert[1].source: 99 is no source"),
        (say(with(|it| it.namespace.clear())), "workloads.upsert[1].namespace: "),
        (say(with(|it| it.name.clear())), "workloads.upsert[1].name: "),
        (
            say(with(|it| it.named_ports = vec![v1::NamedPort { name: "x".to_owned(), protocol: 6, port: 70_000 }])),
            "workloads.upsert[1].named_ports[0].port: ",
        ),
        (
            say(with(|it| {
                it.published_ports = vec![v1::PublishedPort { protocol: 1, host_port: 80, workload_port: 80, ..Default::default() }]
            })),
            "workloads.upsert[1].published_ports[0].protocol: ",
        ),
        (say(part(false, true, vec![], &[""])), "workloads.removed[0]: is empty"),
        (say(part(false, true, vec![workload("n1", "x", "10.0.0.7")], &["x"])), "workloads.removed: x came and went in one report"),
        (
            Box::new(move |_| vec![Some(part(true, false, vec![], &[])), Some(part(false, true, vec![], &["db"]))]),
            "workloads.full: differs from the part before",
        ),
        (
            say(Up::Node(v1::NodeReport { addresses: vec![wire_support::bytes("192.0.2.9"), vec![1; 3].into()], ..Default::default() })),
            "node.addresses[1]: 3 bytes are no address",
        ),
        (
            say(Up::Node(v1::NodeReport { warnings: vec![v1::NodeWarning::default()], ..Default::default() })),
            "node.warnings[0].code: is empty",
        ),
        (acked(|it| it.generation += 1), "ack.generation: "),
        (acked(|it| it.revision += 1), "ack.revision: "),
        (acked(|it| it.epoch = "other".to_owned()), "ack.epoch: is not this controller's"),
        (Box::new(move |commit| vec![Some(Up::Ack(v1::Ack { refused: vec![refused(0)], ..ack(commit) }))]), "ack.refused[0]."),
    ];
    assert!(table.len() >= 20);
    let mut last = agent;
    for (said, expected) in table {
        let mut agent = last.again(&server, 1).await;
        let commit = agent.generation().await;
        for message in said(&commit) {
            agent.send_raw(message).await;
        }
        let status = agent.end().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{expected}");
        assert!(status.message().starts_with(expected), "{:?} is not {expected:?}", status.message());
        last = agent;
    }
    let mut agent = last.again(&server, 1).await;
    let commit = agent.generation().await;
    assert_eq!(agent.updates, 0, "no target changed");
    agent.ack(&commit).await;
    let after = eventually("everything is enforced again", || workloads(&server), |seen| seen == &before).await;
    assert_eq!(after, before);
    assert_eq!(nodes(&server).await[0].addresses, [wire_support::bytes("192.0.2.1")]);
    server.stop().await;
}
