#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use firebreak_policy::Limits;
use firebreak_policy::model::Revision;
use std::sync::mpsc as sync_mpsc;

const PATIENCE: Duration = Duration::from_secs(10);

/// Answers each change with the next prepared outcome and passes on what was desired.
struct Stand {
    seen: sync_mpsc::Sender<Desired>,
    outcomes: std::vec::IntoIter<Result<CommitReport, CommitError>>,
}

impl Kernel for Stand {
    fn commit(&mut self, desired: &Desired) -> Result<CommitReport, CommitError> {
        self.seen.send(desired.clone()).unwrap();
        self.outcomes.next().unwrap_or(Ok(CommitReport::default()))
    }

    fn commit_delta(&mut self, _: &Delta) -> Result<CommitReport, CommitError> {
        self.outcomes.next().unwrap_or(Ok(CommitReport::default()))
    }
}

struct Stage {
    seen: sync_mpsc::Receiver<Desired>,
    committed: watch::Sender<Option<Arc<Committed>>>,
    local: watch::Sender<Arc<LocalWorkloads>>,
    applied: watch::Receiver<Option<Arc<Applied>>>,
    status: watch::Receiver<NodeStatus>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), KernelGone>>,
}

fn stage(outcomes: Vec<Result<CommitReport, CommitError>>) -> Stage {
    let (sender, seen) = sync_mpsc::channel();
    let kernel = KernelThread::start(Stand { seen: sender, outcomes: outcomes.into_iter() }, None, None, Limits::DEFAULT).unwrap();
    let (committed, committed_of_task) = watch::channel(None);
    let (local, local_of_task) = watch::channel(LocalWorkloads::unknown());
    let (applied_of_task, applied) = watch::channel(None);
    let (status_of_task, status) = watch::channel(NodeStatus { tables_whole: true, able: true, ..NodeStatus::default() });
    let links = EnforceLinks {
        committed: committed_of_task,
        local: local_of_task,
        applied: applied_of_task,
        status: status_of_task,
        stats: Arc::default(),
    };
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(run(kernel, links, shutdown.clone()));
    Stage { seen, committed, local, applied, status, shutdown, task }
}

impl Stage {
    fn want(&self, generation: u64) {
        let committed =
            Committed { epoch: "e".to_owned(), generation: Generation(generation), revision: Revision(generation), ..Committed::default() };
        self.committed.send_replace(Some(Arc::new(committed)));
    }

    fn in_sync(&self, exempt: u32) {
        let exempt = crate::local::ExemptInterface { name: format!("up{exempt}").into(), reason: crate::local::ExemptReason::DefaultRoute };
        let exempt = std::collections::BTreeMap::from([(1, exempt)]);
        self.local.send_replace(Arc::new(LocalWorkloads { in_sync: true, exempt, ..LocalWorkloads::default() }));
    }

    async fn outcome(&mut self) -> Arc<Applied> {
        tokio::time::timeout(PATIENCE, self.applied.changed()).await.expect("an outcome").unwrap();
        self.applied.borrow_and_update().clone().unwrap()
    }

    async fn end(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_kernel_is_left_alone_until_there_is_a_state_and_discovery_is_in_sync() {
    let mut stage = stage(Vec::new());
    stage.want(1);
    stage.local.send_replace(Arc::new(LocalWorkloads { bridged: true, ..LocalWorkloads::default() }));
    tokio::task::yield_now().await;
    assert!(stage.seen.try_recv().is_err());
    stage.in_sync(1);
    assert_eq!(stage.outcome().await.generation, Generation(1));
    assert_eq!(stage.seen.try_iter().count(), 1);
    stage.end().await;
}

#[tokio::test]
async fn each_generation_is_answered_also_one_that_comes_again_and_local_changes_are_not() {
    let mut stage = stage(Vec::new());
    stage.in_sync(1);
    stage.want(1);
    assert_eq!(stage.outcome().await.generation, Generation(1));
    stage.in_sync(2);
    let seen = tokio::task::spawn_blocking(move || {
        (stage.seen.recv_timeout(PATIENCE).unwrap(), stage.seen.recv_timeout(PATIENCE).unwrap(), stage)
    });
    let (first, second, back) = seen.await.unwrap();
    stage = back;
    assert_eq!((first.exempt[&1].as_str(), second.exempt[&1].as_str()), ("up1", "up2"));
    stage.want(1);
    assert_eq!(stage.outcome().await.generation, Generation(1));
    stage.want(2);
    assert_eq!(stage.outcome().await.generation, Generation(2));
    stage.end().await;
}

#[tokio::test]
async fn a_refused_change_is_told_tried_again_and_told_again_when_it_goes_through() {
    let refusal = || Err(CommitError::TooLarge { bytes: 9, limit: 8 });
    let mut stage = stage(vec![refusal(), refusal(), Ok(CommitReport::default())]);
    stage.in_sync(1);
    stage.want(1);
    let failed = stage.outcome().await;
    assert!(failed.failure.as_deref().is_some_and(|reason| reason.contains("9 bytes")), "{failed:?}");
    assert!(stage.status.borrow().enforcing(), "the former state stays");
    assert_eq!(stage.status.borrow().warnings.iter().map(|warning| warning.code).collect::<Vec<_>>(), ["KernelRefusedChange"]);
    assert_eq!(stage.outcome().await.failure, None);
    assert_eq!(stage.status.borrow().warnings.len(), 0);
    stage.end().await;
}

#[tokio::test]
async fn an_object_that_the_kernel_refuses_is_told_by_name_while_the_rest_is_applied_and_it_allows_nobody() {
    use crate::core::tests::{ip, local, state};
    use firebreak_policy::kernel_sets::{Element, SetId, Shape};
    use firebreak_policy::model::{Direction, Family};
    let refusal = || {
        let source = crate::dataplane::Refusal { errno: nix::errno::Errno::ENOSPC, message: None };
        let set = "inet firebreak in4_peer".to_owned();
        Err(CommitError::Refused {
            set,
            act: "adding",
            element: "10.0.0.2 . 10.0.0.50".to_owned(),
            source,
            others: 0,
            culprit: Some(Box::new(Culprit::Local(ip(2)))),
        })
    };
    let mut stage = stage(vec![refusal(), Ok(CommitReport::default()), Ok(CommitReport::default())]);
    let members = [firebreak_policy::node_state::Member::Address(ip(50))];
    let state = state(&[("a", &[2]), ("b", &[3])], &members);
    stage.local.send_replace(Arc::new(local(&[("a", 7, &[2]), ("b", 8, &[3])])));
    let committed = Committed { epoch: "e".to_owned(), generation: Generation(1), revision: Revision(1), state, ..Committed::default() };
    stage.committed.send_replace(Some(Arc::new(committed)));
    let applied = stage.outcome().await;
    assert_eq!(applied.failure, None);
    let refused: Vec<String> = applied.refused.iter().map(|(key, refusal)| format!("{key}: {refusal}")).collect();
    assert!(
        refused.len() == 1 && refused[0].starts_with("segment a: kernel: ") && refused[0].contains("10.0.0.2 . 10.0.0.50"),
        "{refused:?}"
    );
    let warnings: Vec<&str> = stage.status.borrow().warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(warnings, ["KernelRefusedObject"]);
    assert!(stage.status.borrow().enforcing());

    let held = |desired: &Desired, direction, shape, element: Element| {
        let id = SetId { direction, family: Family::V4, shape };
        desired.sets.sets.get(&id).is_some_and(|elements| elements.contains_key(&element))
    };
    let (whole, rest) = (stage.seen.recv_timeout(PATIENCE).unwrap(), stage.seen.recv_timeout(PATIENCE).unwrap());
    for (desired, allows) in [(&whole, true), (&rest, false)] {
        assert_eq!(held(desired, Direction::Ingress, Shape::Peer, Element::Peer(ip(2), ip(50))), allows);
        assert_eq!(held(desired, Direction::Egress, Shape::Isolated, Element::Local(ip(2))), !allows);
        assert!(held(desired, Direction::Ingress, Shape::Isolated, Element::Local(ip(2))));
        assert!(held(desired, Direction::Ingress, Shape::Peer, Element::Peer(ip(3), ip(50))), "the rest is applied");
    }
    // It is tried again, and taken.
    let applied = stage.outcome().await;
    assert!(applied.refused.is_empty() && applied.failure.is_none(), "{applied:?}");
    assert_eq!(stage.seen.recv_timeout(PATIENCE).unwrap(), whole);
    assert!(stage.status.borrow().warnings.is_empty());
    stage.end().await;
}
