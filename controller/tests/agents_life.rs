//! The life of a session: an agent that dies without a word, one that knows more than the controller, one that takes its time to ack, one of
//! a name that is taken, one that repeats what was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api_support;
mod wire_support;

use api_support::{Server, group, namespace, object, policy};
use firebreak_proto::v1;
use firebreak_proto::v1::agent_message::Message as Up;
use firebreak_proto::v1::controller_message::Message as Down;
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use wire_support::{Agent, ack, eventually, hello, node, node_report, nothing_held, report, workload};

/// Relays connections until it is cut; then nothing moves any more and nothing is closed, as when a machine loses its power.
async fn cable(to: SocketAddr) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, cut) = (listener.local_addr().unwrap(), CancellationToken::new());
    let is_cut = cut.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let is_cut = is_cut.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = is_cut.cancelled() => std::future::pending().await,
                }
            });
        }
    });
    (address, cut)
}

#[tokio::test]
async fn an_agent_that_dies_without_a_word_is_lost_within_ten_seconds_and_a_quiet_one_is_not() {
    let mut server = Server::start().await;
    let direct = server.agents;
    let mut quiet = Agent::new(&server, "n1").await;
    quiet.generation().await;
    let (address, cut) = cable(direct).await;
    server.agents = address;
    let mut dying = Agent::new(&server, "n2").await;
    dying.generation().await;
    let connection = async |name: &str| node(&server, name).await.unwrap().connection();
    assert_eq!(connection("n2").await, v1::NodeConnection::Connected);
    cut.cancel();
    let begun = Instant::now();
    eventually("the node is lost", || connection("n2"), |it| *it == v1::NodeConnection::Lost).await;
    // Interval and timeout are 9 s together; the rest is for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(14), "{:?}", begun.elapsed());
    assert_eq!(connection("n1").await, v1::NodeConnection::Connected, "a connection on which nothing is said is alive");
    server.stop().await;
}

#[tokio::test]
async fn an_agent_that_knows_more_than_the_controller_is_heard_before_workloads_are_taken_from_it() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), policy("shop", "db", "db"), group("office", "192.0.2.0/24")]).await;
    let mut agent = Agent::new(&server, "n1").await;
    agent.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    let commit = agent.until(|state| state.endpoints.len() == 1).await;
    let forget = v1::DeleteNodeRequest { name: "n1".to_owned(), reason: "by mistake".to_owned() };
    server.client.clone().delete_node(forget).await.unwrap();
    agent.end().await;

    // The controller knows nothing of the node any more; its workload lives on.
    let mut again = agent.again(&server, commit.generation).await;
    again.send(node_report(&["192.0.2.1"])).await;
    assert!(matches!(again.next().await.unwrap(), Some(Down::Welcome(_))));
    assert!(matches!(again.next().await.unwrap(), Some(Down::Declared(_))));
    let known = |node: &Option<v1::NodeStatus>| node.as_ref().is_some_and(|node| !node.addresses.is_empty());
    let status = eventually("the node's own report is taken in", || node(&server, "n1"), known).await.unwrap();
    assert_eq!(status.sent_generation, 0, "publications without the workload were not sent");
    again.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    again.generation().await;
    assert_eq!(again.state.endpoints.len(), 1, "no generation was without the workload");
    server.stop().await;
}

#[tokio::test]
async fn a_nodes_lag_is_the_wait_of_its_oldest_change_and_ends_with_the_ack() {
    let server = Server::start().await;
    let started = Instant::now();
    server.apply(vec![namespace("shop"), policy("shop", "db", "db"), group("office", "192.0.2.0/24")]).await;
    let mut agent = Agent::new(&server, "n1").await;
    agent.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    agent.until(|state| state.endpoints.len() == 1 && !state.groups.is_empty()).await;
    let lag = async || Duration::from_millis(node(&server, "n1").await.unwrap().lag_milliseconds);
    eventually("it is up to date", &lag, Duration::is_zero).await;
    tokio::time::timeout(Duration::from_millis(50), agent.next()).await.expect_err("nothing comes unasked");

    // A revision without effect for the node is not sent to it, and the node is not behind.
    let revision = server.apply(vec![namespace("team")]).await.revision;
    let status = node(&server, "n1").await.unwrap();
    assert_eq!((status.acked_revision, status.target_revision, status.lag_milliseconds), (revision, revision, 0));
    tokio::time::timeout(Duration::from_millis(50), agent.next()).await.expect_err("nothing comes unasked");

    // A change is not as old as what the node holds.
    let begun = Instant::now();
    server.apply(vec![group("office", "203.0.113.0/24")]).await;
    let commit = agent.generation().await;
    let seen = lag().await;
    assert!(!seen.is_zero() && seen <= begun.elapsed() && begun.elapsed() < started.elapsed(), "{seen:?} of {:?}", begun.elapsed());
    // Newer changes do not make the oldest younger; one that is taken back at once does not wait for ever.
    server.apply(vec![group("office", "198.51.100.0/24")]).await;
    agent.send(report(Vec::new())).await;
    agent.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    assert!(eventually("it waits", &lag, |lag| *lag > seen).await >= seen);
    agent.ack(&commit).await;
    loop {
        let commit = agent.generation().await;
        agent.ack(&commit).await;
        if commit.revision == server.client.clone().list(v1::ListRequest::default()).await.unwrap().into_inner().revision {
            break;
        }
    }
    // More generations may come while reports are taken in one by one.
    let acked = async {
        loop {
            let commit = agent.generation().await;
            agent.ack(&commit).await;
        }
    };
    tokio::select! {
        () = acked => {}
        _ = eventually("it is up to date again", &lag, Duration::is_zero) => {}
    }
    let (_, text) = server.http("/metrics").await;
    assert!(text.contains("firebreak_controller_realize_seconds_count "), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn a_second_agent_of_a_nodes_name_is_refused_with_the_remedy_and_the_first_goes_on() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), policy("shop", "db", "db"), group("office", "192.0.2.0/24")]).await;
    let mut first = Agent::new(&server, "n1").await;
    first.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    first.until(|state| state.endpoints.len() == 1).await;
    for _ in 0..3 {
        let other = v1::Hello { instance_id: "another-installation".to_owned(), ..hello("n1") };
        let refused = Agent::open(&server, vec![Some(Up::Hello(other)), Some(nothing_held())]).await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        for part in
            ["node n1 belongs to another agent installation since ", "run `firebreak delete node n1 --forget` first", "a name of its own"]
        {
            assert!(refused.message().contains(part), "{refused}");
        }
    }
    server.apply(vec![group("office", "198.51.100.0/24")]).await;
    let commit = first.generation().await;
    first.ack(&commit).await;
    let status = eventually("the first has it", || node(&server, "n1"), |it| it.as_ref().unwrap().lag_milliseconds == 0).await.unwrap();
    assert_eq!((status.connection(), status.acked_generation), (v1::NodeConnection::Connected, commit.generation));
    server.stop().await;
}

#[tokio::test]
async fn a_replayed_generation_sets_nothing_back_and_its_number_is_not_used_again() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), policy("shop", "db", "db"), group("office", "192.0.2.0/24")]).await;
    let mut agent = Agent::new(&server, "n1").await;
    agent.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    let old = agent.until(|state| state.endpoints.len() == 1).await;
    server.apply(vec![group("office", "198.51.100.0/24")]).await;
    let newer = agent.generation().await;
    // While the newer one is on its way, and after it was acknowledged.
    agent.ack(&old).await;
    let status = node(&server, "n1").await.unwrap();
    assert!(status.acked_generation <= old.generation && status.lag_milliseconds > 0, "{status:?}");
    agent.ack(&newer).await;
    let acked = |it: &Option<v1::NodeStatus>| it.as_ref().unwrap().acked_generation == newer.generation;
    eventually("the newer one counts", || node(&server, "n1"), acked).await;
    agent.ack(&old).await;
    server.apply(vec![group("office", "203.0.113.0/24")]).await;
    let newest = agent.generation().await;
    assert_eq!(newest.generation, newer.generation + 1);
    assert!(acked(&node(&server, "n1").await), "an old ack counts for nothing");

    // An agent that was put back to an older state says so: what it lacks is told by the hashes, and no number comes again.
    let mut back = agent.again(&server, old.generation).await;
    let commit = back.generation().await;
    assert_eq!((commit.generation, back.updates), (newest.generation + 1, 0));
    back.send(Up::Ack(v1::Ack { generation: commit.generation + 1, ..ack(&commit) })).await;
    let ended = back.end().await;
    assert_eq!(ended.code(), tonic::Code::InvalidArgument);
    assert!(ended.message().contains("was never sent; the newest is"), "{ended}");
    server.stop().await;
}

#[tokio::test]
async fn a_node_receives_what_its_workloads_need_and_hears_of_nothing_else() {
    let server = Server::start().await;
    let lets_in = |app: &str, from: &str| {
        object(&json!({
            "apiVersion": "firebreak.dev/v1alpha1", "kind": "SegmentPolicy", "metadata": {"namespace": "shop", "name": app},
            "spec": {"appliesTo": {"matchLabels": {"app": app}}, "ingress": [{"from": [{"workloads": {"matchLabels": {"app": from}}}]}]},
        }))
    };
    let pod = |number: usize, app: &str| {
        object(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": format!("{app}-{number}"), "labels": {"app": app}},
            "spec": {"nodeName": "elsewhere"}, "status": {"phase": "Running", "podIP": format!("10.1.{}.{}", number / 250, number % 250 + 1)},
        }))
    };
    let mut objects = vec![namespace("shop"), lets_in("db", "web"), lets_in("mail", "relay")];
    objects.extend((0..200).map(|number| pod(number, "web")));
    objects.extend((200..210).map(|number| pod(number, "relay")));
    server.apply(objects).await;
    let (mut db, mut mail) = (Agent::new(&server, "n1").await, Agent::new(&server, "n2").await);
    db.send(report(vec![workload("n1", "db", "10.0.0.1")])).await;
    mail.send(report(vec![workload("n2", "mail", "10.0.0.2")])).await;
    let members = |agent: &Agent| agent.state.groups.values().map(|group| group.members.len()).collect::<Vec<_>>();
    db.until(|state| state.endpoints.len() == 1).await;
    mail.until(|state| state.endpoints.len() == 1).await;
    assert_eq!((members(&db), members(&mail)), (vec![200], vec![10]), "each has its own peers only");
    // A hundred changes that concern the one are none for the other.
    for number in 300..400 {
        server.apply(vec![pod(number, "web")]).await;
    }
    db.until(|state| state.groups.values().all(|group| group.members.len() == 300)).await;
    server.apply(vec![pod(500, "relay")]).await;
    let commit = mail.generation().await;
    assert_eq!((mail.updates, members(&mail)), (1, vec![11]), "the first that it hears is its own");
    mail.ack(&commit).await;
    server.stop().await;
}
