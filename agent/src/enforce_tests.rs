#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
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
    let kernel = KernelThread::start(Stand { seen: sender, outcomes: outcomes.into_iter() }, None, None).unwrap();
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
