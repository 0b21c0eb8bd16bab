//! The hub: one task that owns what everybody said, works out what every node needs, and publishes it.
//!
//! The first change after quiet is compiled at once; changes that come while a compile runs are taken in together by the next. A publication is
//! complete or absent: before the store is read there is none (the in-sync gate), so that no node ever sees half of the sources.

pub(crate) mod board;
pub(crate) mod census;
mod live;
pub(crate) mod published;
#[cfg(test)]
mod sequence_tests;
pub(crate) mod sources;
pub(crate) mod wake;
pub(crate) mod wave;
pub(crate) mod wire;

use crate::metrics::Metrics;
use crate::store::{Committed, ObjectKey, Store, StoreError};
use board::Board;
use firebreak_policy::model::{ContainerId, NodeName, Revision};
use firebreak_proto::v1;
use firebreak_proto::workload::ReportedWorkload;
use ipnet::IpNet;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use published::Published;
use sources::{Sources, policy_key};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wake::{Touched, Wakes};

/// Reports that wait for the hub; senders wait when it is full.
const QUEUE: usize = 1024;

/// A report that the store has.
#[derive(Debug)]
pub(crate) enum Report {
    /// A node had its first session.
    Met(NodeName),
    /// What a node runs.
    Workloads {
        /// The stream's node.
        node: NodeName,
        /// Came or changed.
        upserts: Vec<Arc<ReportedWorkload>>,
        /// Went.
        removed: Vec<ContainerId>,
        /// Whether what is not named is gone.
        full: bool,
        /// From [`Hub::ticket`]; a publication that has it, or a later one of this node, has this report.
        ticket: u64,
    },
    /// A node's word about itself.
    Node(NodeName, v1::NodeReport),
}

/// A handle on the hub. Clones share it.
#[derive(Clone, Debug)]
pub struct Hub {
    reports: mpsc::Sender<(Revision, Report)>,
    published: watch::Receiver<Option<Arc<Published>>>,
    board: Board,
    wakes: Wakes,
    tickets: Arc<AtomicU64>,
}

/// Why the hub cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The store cannot be read or followed.
    #[error("the hub cannot follow the store")]
    Store(#[from] StoreError),
}

impl Hub {
    /// Hands over a report; waits for room. `false` when the hub has ended. `at` is a revision that the store had before it kept the report: a
    /// report from before its node was deleted is passed over, however late it comes.
    pub(crate) async fn report(&self, at: Revision, report: Report) -> bool {
        self.reports.send((at, report)).await.is_ok()
    }

    /// A number for a report; later ones are higher.
    pub(crate) fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The newest publication, and those to come. `None` before everything is in sync.
    pub(crate) fn publications(&self) -> watch::Receiver<Option<Arc<Published>>> {
        self.published.clone()
    }

    /// The newest publication.
    pub(crate) fn newest(&self) -> Option<Arc<Published>> {
        self.published.borrow().clone()
    }

    /// How far each node is.
    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// Who is told of publications that concern a node.
    pub(crate) fn wakes(&self) -> &Wakes {
        &self.wakes
    }
}

/// The hub's task.
pub struct HubTask {
    store: Store,
    cluster_networks: Vec<IpNet>,
    reports: mpsc::Receiver<(Revision, Report)>,
    published: watch::Sender<Option<Arc<Published>>>,
    board: Board,
    wakes: Wakes,
    /// Nodes that reported something, or were forgotten, since the last publication.
    touched: Touched,
    /// Policies that were changed since the last publication.
    changed_policies: Vec<ObjectKey>,
    compile_seconds: Histogram,
}

/// A hub and its task; nothing is read before the task runs.
pub fn hub(store: Store, cluster_networks: Vec<IpNet>) -> (Hub, HubTask) {
    let (sender, reports) = mpsc::channel(QUEUE);
    let (publish, published) = watch::channel(None);
    let board = Board::default();
    let wakes = Wakes::default();
    let hub = Hub { reports: sender, published, board: board.clone(), wakes: wakes.clone(), tickets: Arc::default() };
    (
        hub,
        HubTask {
            store,
            cluster_networks,
            reports,
            published: publish,
            board,
            wakes,
            touched: Touched::default(),
            changed_policies: Vec::new(),
            compile_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 17)),
        },
    )
}

impl HubTask {
    /// Shows how long compiling takes.
    pub fn register(&self, metrics: &Metrics) {
        metrics.register(|registry| {
            registry.register("compile_seconds", "From what was said to every node's target", self.compile_seconds.clone());
        });
    }

    /// Runs until `stop`. `ready` becomes true with the first publication. Works things out where it runs, so it is to have a thread of its own.
    ///
    /// # Errors
    /// The store ended or cannot be read.
    pub async fn run(mut self, ready: watch::Sender<bool>, stop: CancellationToken) -> Result<(), HubError> {
        let loaded = self.store.load().await?;
        let mut feed = self.store.watch(loaded.revision);
        let epoch: Arc<str> = Arc::from(loaded.epoch.as_str());
        let mut sources = Sources::of(&loaded, std::mem::take(&mut self.cluster_networks));
        let mut revision = loaded.revision;
        drop(loaded);
        loop {
            if self.may_publish(&sources) {
                self.publish(&mut sources, &epoch, revision);
                ready.send_replace(true);
            }
            // Waits for the first change, then takes in all that are there.
            let first = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                committed = feed.next() => {
                    revision = self.take_commit(&mut sources, &*committed?);
                    None
                }
                report = self.reports.recv() => match report {
                    Some(report) => Some(report),
                    None => return Ok(()),
                },
            };
            let newest = self.store.revision();
            while revision < newest {
                revision = self.take_commit(&mut sources, &*feed.next().await?);
            }
            let more = std::iter::from_fn(|| self.reports.try_recv().ok()).take(QUEUE);
            for (at, report) in first.into_iter().chain(more).collect::<Vec<_>>() {
                // A report comes after every revision that the store had before it.
                while revision < at {
                    revision = self.take_commit(&mut sources, &*feed.next().await?);
                }
                self.take_report(&mut sources, at, report);
            }
        }
    }

    /// Nothing is published at first while the store holds objects that this version cannot read: a policy that is missing would open what it
    /// closed, a workload that is missing what is denied to it by its labels, and the nodes hold a generation that knew both. Later the last
    /// version that was read stays in force.
    fn may_publish(&self, sources: &Sources) -> bool {
        if self.published.borrow().is_some() || (sources.unreadable().is_empty() && sources.unread().is_empty()) {
            return true;
        }
        for (workload, reason) in sources.unread() {
            let node = &workload.node;
            tracing::error!(workload = %workload, reason = %reason, "not in sync: its node reported it to another version; start the agent of {node}, which reports anew, or `firebreak delete node {node} --forget`");
        }
        for (object, reason) in sources.unreadable() {
            tracing::error!(object = %object, reason = %reason, "not in sync: apply this object again or delete it; nodes keep their generation until then");
        }
        false
    }

    fn take_commit(&mut self, sources: &mut Sources, committed: &Committed) -> Revision {
        sources.commit(committed);
        for node in &committed.forgotten_nodes {
            self.board.forget(node, committed.revision);
            self.touched.add(node);
        }
        let policies = committed.changes.iter().map(|change| &change.object.key).filter(|key| policy_key(key).is_some());
        self.changed_policies.extend(policies.cloned());
        committed.revision
    }

    fn take_report(&mut self, sources: &mut Sources, at: Revision, report: Report) {
        let (Report::Met(node) | Report::Workloads { node, .. } | Report::Node(node, _)) = &report;
        if sources.is_stale(node, at) {
            return;
        }
        self.touched.add(node);
        match report {
            Report::Met(node) => sources.meet(&node),
            Report::Workloads { node, upserts, removed, full, ticket } => sources.report(&node, upserts, &removed, full, ticket),
            Report::Node(node, report) => sources.report_node(&node, report),
        }
    }

    fn publish(&mut self, sources: &mut Sources, epoch: &Arc<str>, revision: Revision) {
        let begun = Instant::now();
        let first = self.published.borrow().is_none();
        let published = sources.publish(epoch, revision);
        let worked_out = begun.elapsed();
        // Before it can be acked.
        self.board.expect(&published.changed, published.number, begun, self.changed_policies.drain(..));
        let touched = self.touched.take();
        self.compile_seconds.observe(begun.elapsed().as_secs_f64());
        let published = Arc::new(published);
        let before = self.published.send_replace(Some(Arc::clone(&published)));
        // After it can be seen.
        if first {
            self.wakes.wake_all();
        } else {
            self.wakes.wake(published.changed.iter().chain(&published.redeclared).chain(&touched));
        }
        // Nobody waits for its lists to be taken apart.
        drop(before);
        tracing::debug!(revision = revision.0, nodes = published.changed.len(), ?worked_out, took = ?begun.elapsed(), "published");
    }
}
