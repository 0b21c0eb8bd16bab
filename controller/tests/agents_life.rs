//! The life of a session: an agent that dies without a word, one that knows more than the controller, one that takes its time to ack.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api_support;
mod wire_support;

use api_support::{Server, group, namespace, policy};
use firebreak_proto::v1;
use firebreak_proto::v1::controller_message::Message as Down;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use wire_support::{Agent, eventually, node, node_report, report, workload};

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

    // A revision without effect for the node is not as old as what the node holds.
    let begun = Instant::now();
    server.apply(vec![namespace("team")]).await;
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
