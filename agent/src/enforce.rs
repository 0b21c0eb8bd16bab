//! Brings the kernel to what the core says, one change at a time, and says how it went.
//!
//! The dataplane has a thread of its own. Each job takes the latest state and the latest local workloads; what came in between
//! is never seen. Nothing is asked of the kernel before the controller's first complete state and before discovery is in sync:
//! until then the kernel keeps what it has.

use crate::core::desired;
use crate::cuts::{CutHandle, Owners};
use crate::dataplane::{CommitError, CommitReport, Dataplane, Desired};
use crate::local::{LocalWorkloads, Warning};
use crate::session::{Applied, Backoff, Committed, NodeStatus};
use crate::state::Marker;
use firebreak_policy::model::Generation;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// What is brought to the desired state. [`Dataplane`], or a stand-in in tests.
pub trait Kernel: Send + 'static {
    /// Makes it hold what is desired, in one transaction; on error the old contents stay whole.
    ///
    /// # Errors
    /// As [`Dataplane::commit`].
    fn commit(&mut self, desired: &Desired) -> Result<CommitReport, CommitError>;
}

impl Kernel for Dataplane {
    fn commit(&mut self, desired: &Desired) -> Result<CommitReport, CommitError> {
        Dataplane::commit(self, desired)
    }
}

/// How the enforcing side hangs together with the rest.
#[derive(Debug)]
pub struct EnforceLinks {
    /// What the controller wants.
    pub committed: watch::Receiver<Option<Arc<Committed>>>,
    /// What runs here.
    pub local: watch::Receiver<Arc<LocalWorkloads>>,
    /// How the last change went.
    pub applied: watch::Sender<Option<Arc<Applied>>>,
    /// What people should know of it.
    pub status: watch::Sender<NodeStatus>,
    /// What is counted.
    pub stats: Arc<EnforceStats>,
}

/// Counts of enforcing, for the metrics.
#[derive(Debug, Default)]
pub struct EnforceStats {
    /// Transactions that changed something.
    pub commits: AtomicU64,
    /// Changes that the kernel refused, retries too.
    pub failures: AtomicU64,
    /// Elements that our sets hold.
    pub elements: AtomicU64,
}

struct Job {
    committed: Arc<Committed>,
    local: Arc<LocalWorkloads>,
    reply: oneshot::Sender<Outcome>,
}

struct Outcome {
    at: SystemTime,
    took: Duration,
    result: Result<CommitReport, CommitError>,
}

/// The dataplane's thread. Ends when the handle is dropped; the kernel keeps what it holds.
#[derive(Debug)]
pub struct KernelThread(mpsc::Sender<Job>);

impl KernelThread {
    /// Starts the thread, in the network namespace of the calling one. `marker` is told before each commit, `cuts`
    /// hears of each one that was made, if there is one.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(mut kernel: impl Kernel, mut marker: Option<Marker>, mut cuts: Option<(CutHandle, Owners)>) -> io::Result<Self> {
        let (sender, mut jobs) = mpsc::channel::<Job>(1);
        thread::Builder::new().name("dataplane".to_owned()).spawn(move || {
            while let Some(Job { committed, local, reply }) = jobs.blocking_recv() {
                let begun = Instant::now();
                let desired = desired(&committed.state, &local, firebreak_policy::flatten);
                if let Some((cuts, owners)) = &mut cuts {
                    cuts.forget(&owners.newly_owned(&desired));
                }
                let noted = note(&mut marker, &committed);
                let result = kernel.commit(&desired);
                if let (Err(_), Some((epoch, generation))) = (&result, noted) {
                    // The kernel keeps the generation before. An answer that was lost leaves it open which one it holds.
                    if !matches!(result, Err(CommitError::Unknown(_))) {
                        note_as(&mut marker, &epoch, generation);
                    }
                }
                // Nobody waits any more when the agent is stopping; the kernel has it all the same.
                let is_in_force = result.is_ok();
                let _ = reply.send(Outcome { at: SystemTime::now(), took: begun.elapsed(), result });
                if let Some((cuts, owners)) = cuts.as_mut().filter(|_| is_in_force) {
                    owners.take(&desired);
                    cuts.committed(committed, local);
                }
            }
        })?;
        Ok(Self(sender))
    }
}

/// Notes what is about to be asked of the kernel; gives what was noted before.
fn note(marker: &mut Option<Marker>, committed: &Committed) -> Option<(String, Generation)> {
    note_as(marker, &committed.epoch, committed.generation)
}

fn note_as(marker: &mut Option<Marker>, epoch: &str, generation: Generation) -> Option<(String, Generation)> {
    match marker.as_mut()?.note(epoch, generation) {
        Ok(before) => before,
        Err(error) => {
            tracing::error!(reason = %error, "the marker of what is enforced cannot be written; a restart waits for the controller");
            None
        }
    }
}

/// The dataplane's thread has ended, which it does not do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the dataplane's thread has ended")]
pub struct KernelGone;

/// Enforces until `shutdown`. A change under way is finished first.
///
/// # Errors
/// When the dataplane's thread is gone.
pub async fn run(kernel: KernelThread, mut links: EnforceLinks, shutdown: CancellationToken) -> Result<(), KernelGone> {
    let backoff = Backoff { first: Duration::from_millis(250), most: Duration::from_secs(30) };
    let mut failures = 0;
    // Whether the controller waits for an answer.
    let mut owed = true;
    loop {
        owed |= links.committed.has_changed().unwrap_or(false);
        let committed = links.committed.borrow_and_update().clone();
        let local = links.local.borrow_and_update().clone();
        if let Some(committed) = committed.filter(|_| local.in_sync) {
            let (reply, outcome) = oneshot::channel();
            kernel.0.send(Job { committed: committed.clone(), local, reply }).await.map_err(|_| KernelGone)?;
            let outcome = outcome.await.map_err(|_| KernelGone)?;
            failures = if outcome.result.is_ok() { 0 } else { failures + 1 };
            tell(&links, &committed, outcome, std::mem::take(&mut owed));
        }
        let retry = async {
            match failures {
                0 => std::future::pending().await,
                failures => tokio::time::sleep(backoff.wait(failures - 1, "kernel")).await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = changed(&mut links.committed) => owed = true,
            () = changed(&mut links.local) => {}
            () = retry => {}
        }
    }
}

/// Says how a change went: to the controller when it waits for an answer or the answer is another one than before.
fn tell(links: &EnforceLinks, committed: &Committed, outcome: Outcome, owed: bool) {
    let Committed { epoch, generation, revision, state: _, refused } = committed;
    let Outcome { at, took, result } = outcome;
    let failure = match &result {
        Ok(report) => {
            links.stats.elements.store(u64::try_from(report.elements).unwrap_or(u64::MAX), Ordering::Relaxed);
            if report.bytes > 0 {
                links.stats.commits.fetch_add(1, Ordering::Relaxed);
                tracing::info!(
                    generation = generation.0,
                    revision = revision.0,
                    added = report.added,
                    removed = report.removed,
                    elements = report.elements,
                    took = ?took,
                    "enforcing"
                );
            }
            None
        }
        Err(error) => {
            links.stats.failures.fetch_add(1, Ordering::Relaxed);
            tracing::error!(generation = generation.0, revision = revision.0, reason = %error, "the kernel refused a change; its former state stays");
            Some(error.to_string())
        }
    };
    let broken = matches!(result, Err(CommitError::Repair(_)));
    let warnings: BTreeSet<Warning> = failure.iter().map(|reason| Warning::new("KernelRefusedChange", reason.clone())).collect();
    links.status.send_if_modified(|status| {
        let before = status.clone();
        status.tables_whole = !broken;
        status.warnings.retain(|warning| warning.code != "KernelRefusedChange");
        status.warnings.extend(warnings);
        *status != before
    });
    let applied = Applied {
        epoch: epoch.clone(),
        generation: *generation,
        revision: *revision,
        at,
        kernel_time: took,
        refused: refused.clone(),
        failure,
    };
    links.applied.send_if_modified(|last| {
        let same = last
            .as_ref()
            .is_some_and(|last| (&last.epoch, last.generation, &last.failure) == (&applied.epoch, applied.generation, &applied.failure));
        if same && !owed {
            return false;
        }
        *last = Some(Arc::new(applied));
        true
    });
}

/// Returns when there is something that was not looked at. A sender that is gone never changes again.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
#[path = "enforce_tests.rs"]
mod tests;
