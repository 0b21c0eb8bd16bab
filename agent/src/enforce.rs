//! Brings the kernel to what the core says, one change at a time, and says how it went.
//!
//! The dataplane has a thread of its own. Each job takes the latest state and the latest local workloads; what came in between
//! is never seen. Nothing is asked of the kernel before the controller's first complete state and before discovery is in sync:
//! until then the kernel keeps what it has.

use crate::barred::{Barred, MOST_ATTEMPTS};
use crate::core::{Change, Core};
use crate::cuts::{CutHandle, Made, Owners, Rules};
use crate::dataplane::{
    Check, CommitError, CommitReport, Culprit, Dataplane, Delta, Desired, ObserveElement, ObserveError, ReadBackError, Revoked,
    read_revoked,
};
use crate::local::{LocalWorkloads, Warning};
use crate::session::{Applied, Backoff, Committed, NodeStatus};
use crate::state::Marker;
use firebreak_policy::Limits;
use firebreak_policy::model::Generation;
use firebreak_policy::node_state::NodeState;
use firebreak_proto::hash::ObjectKey;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// For how long chains that nothing leads to any more are left to the packets that were on their way through them.
const LEFTOVER: Duration = Duration::from_millis(250);

/// What is brought to the desired state. [`Dataplane`], or a stand-in in tests.
pub trait Kernel: Send + 'static {
    /// Makes it hold what is desired, in one transaction; on error the old contents stay whole.
    ///
    /// # Errors
    /// As [`Dataplane::commit`].
    fn commit(&mut self, desired: &Desired) -> Result<CommitReport, CommitError>;

    /// The same for a known change of what was committed last.
    ///
    /// # Errors
    /// As [`Dataplane::commit_delta`].
    fn commit_delta(&mut self, delta: &Delta) -> Result<CommitReport, CommitError>;

    /// Lets what policy denies through for a time, or ends that.
    ///
    /// # Errors
    /// As [`Dataplane::observe`].
    fn observe(&mut self, _wanted: Option<(Duration, &str)>) -> Result<(), ObserveError> {
        Err(ObserveError::NoTable)
    }

    /// Whether it does so now.
    ///
    /// # Errors
    /// As [`Dataplane::observing`].
    fn observing(&mut self) -> Result<Option<ObserveElement>, ObserveError> {
        Ok(None)
    }

    /// What is not as it should be: all of it, or the next part.
    ///
    /// # Errors
    /// As [`Dataplane::check`].
    fn check(&mut self, _how: Check) -> Result<Vec<String>, ReadBackError> {
        Ok(Vec::new())
    }

    /// Whether the next part goes on with what was begun.
    fn is_mid_check(&self) -> bool {
        false
    }

    /// Puts right what is not.
    ///
    /// # Errors
    /// As [`Dataplane::repair`].
    fn repair(&mut self) -> Result<CommitReport, CommitError> {
        Ok(CommitReport::default())
    }

    /// Forgets cut connections that are allowed again.
    ///
    /// # Errors
    /// As [`Dataplane::forget_revoked`].
    fn forget_revoked(&mut self, _which: &BTreeSet<Revoked>) -> Result<usize, CommitError> {
        Ok(0)
    }

    /// Whether the rules may pass by what asks for cut connections; says whether they do.
    ///
    /// # Errors
    /// As [`Dataplane::pass_by_cuts`].
    fn pass_by_cuts(&mut self, _nothing_is_cut: bool) -> Result<bool, CommitError> {
        Ok(false)
    }

    /// Puts up or takes away what drops known denied packets first of all, by how much is denied.
    ///
    /// # Errors
    /// As [`Dataplane::shield`].
    fn shield(&mut self) -> Result<(), CommitError> {
        Ok(())
    }
}

impl Kernel for Dataplane {
    fn commit(&mut self, desired: &Desired) -> Result<CommitReport, CommitError> {
        Dataplane::commit(self, desired)
    }

    fn commit_delta(&mut self, delta: &Delta) -> Result<CommitReport, CommitError> {
        Dataplane::commit_delta(self, delta)
    }

    fn observe(&mut self, wanted: Option<(Duration, &str)>) -> Result<(), ObserveError> {
        Dataplane::observe(self, wanted)
    }

    fn observing(&mut self) -> Result<Option<ObserveElement>, ObserveError> {
        Dataplane::observing(self)
    }

    fn check(&mut self, how: Check) -> Result<Vec<String>, ReadBackError> {
        Dataplane::check(self, how)
    }

    fn is_mid_check(&self) -> bool {
        Dataplane::is_mid_check(self)
    }

    fn repair(&mut self) -> Result<CommitReport, CommitError> {
        Dataplane::repair(self)
    }

    fn forget_revoked(&mut self, which: &BTreeSet<Revoked>) -> Result<usize, CommitError> {
        Dataplane::forget_revoked(self, which)
    }

    fn pass_by_cuts(&mut self, nothing_is_cut: bool) -> Result<bool, CommitError> {
        Dataplane::pass_by_cuts(self, nothing_is_cut)
    }

    fn shield(&mut self) -> Result<(), CommitError> {
        Dataplane::shield(self)
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
    /// How often somebody else had changed our tables.
    pub tampered: AtomicU64,
    /// How often they were put right.
    pub repairs: AtomicU64,
    /// Attempts at it that failed.
    pub repair_failures: AtomicU64,
}

enum Job {
    /// `judges`: established connections too; what only takes away leftovers changes no verdict.
    Apply {
        committed: Arc<Committed>,
        local: Arc<LocalWorkloads>,
        judges: bool,
        /// What was barred is tried again.
        retries: bool,
        reply: oneshot::Sender<Outcome>,
    },
    Observe {
        wanted: Option<(Duration, String)>,
        reply: oneshot::Sender<Result<(), ObserveError>>,
    },
    Observing {
        reply: oneshot::Sender<Result<Option<ObserveElement>, ObserveError>>,
    },
    Check {
        how: Check,
        reply: oneshot::Sender<Result<Checked, ReadBackError>>,
    },
    Repair {
        reply: oneshot::Sender<Result<CommitReport, CommitError>>,
    },
    ForgetRevoked {
        of: Made,
        allowed: BTreeSet<Revoked>,
        reply: oneshot::Sender<Result<usize, CommitError>>,
    },
    PassByCuts {
        nothing_is_cut: bool,
        reply: oneshot::Sender<Result<bool, CommitError>>,
    },
    Shield {
        reply: oneshot::Sender<Result<(), CommitError>>,
    },
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    /// What is not as it should be, in words.
    pub(crate) found: Vec<String>,
    /// Whether the next part goes on with what was begun.
    pub(crate) has_more: bool,
}

struct Outcome {
    at: SystemTime,
    took: Duration,
    result: Result<CommitReport, CommitError>,
    /// Objects that the kernel would not take; the rest is in force without them.
    refused: BTreeMap<ObjectKey, firebreak_proto::Refusal>,
}

/// The dataplane's thread. Ends when the last handle is dropped; the kernel keeps what it holds.
#[derive(Clone, Debug)]
pub struct KernelThread {
    jobs: mpsc::Sender<Job>,
    again: Arc<Notify>,
}

impl KernelThread {
    /// Starts the thread, in the network namespace of the calling one. `marker` is told before each commit, `cuts`
    /// hears of each one that was made, if there is one. `limits` say where the shared form begins.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(kernel: impl Kernel, marker: Option<Marker>, cuts: Option<(CutHandle, Owners)>, limits: Limits) -> io::Result<Self> {
        let (sender, mut jobs) = mpsc::channel::<Job>(1);
        if let Some((cuts, _)) = &cuts {
            cuts.with_rules(Box::new(RulesOf(sender.downgrade())));
        }
        let mut worker = Worker { kernel, core: Core::new(limits), barred: Barred::default(), marker, cuts, in_force: None };
        thread::Builder::new().name("dataplane".to_owned()).spawn(move || {
            while let Some(job) = jobs.blocking_recv() {
                worker.run(job);
            }
        })?;
        Ok(Self { jobs: sender, again: Arc::default() })
    }

    /// Lets what policy denies through for a time, or ends that.
    pub(crate) async fn observe(&self, wanted: Option<(Duration, String)>) -> Result<Result<(), ObserveError>, KernelGone> {
        self.ask(|reply| Job::Observe { wanted, reply }).await
    }

    /// Whether it does so now.
    pub(crate) async fn observing(&self) -> Result<Result<Option<ObserveElement>, ObserveError>, KernelGone> {
        self.ask(|reply| Job::Observing { reply }).await
    }

    /// What is not as it should be.
    pub(crate) async fn check(&self, how: Check) -> Result<Result<Checked, ReadBackError>, KernelGone> {
        self.ask(|reply| Job::Check { how, reply }).await
    }

    /// Puts right what is not.
    pub(crate) async fn repair(&self) -> Result<Result<CommitReport, CommitError>, KernelGone> {
        self.ask(|reply| Job::Repair { reply }).await
    }

    /// Looks at how much is denied.
    pub(crate) async fn shield(&self) -> Result<Result<(), CommitError>, KernelGone> {
        self.ask(|reply| Job::Shield { reply }).await
    }

    /// Has everything applied once more, so that established connections are judged again too.
    pub(crate) fn judge_again(&self) {
        self.again.notify_one();
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, KernelGone> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| KernelGone)?;
        answer.await.map_err(|_| KernelGone)
    }
}

/// The dataplane's thread as the one that cuts sees it. Does not keep it from ending.
struct RulesOf(mpsc::WeakSender<Job>);

impl Rules for RulesOf {
    fn pass_by_cuts(&self, nothing_is_cut: bool) -> Result<bool, String> {
        self.ask(|reply| Job::PassByCuts { nothing_is_cut, reply })
    }

    fn revoked(&self) -> Result<BTreeSet<Revoked>, String> {
        read_revoked().map_err(|error| error.to_string())
    }

    fn forget(&self, of: &Made, allowed: BTreeSet<Revoked>) -> Result<usize, String> {
        self.ask(|reply| Job::ForgetRevoked { of: of.clone(), allowed, reply })
    }
}

impl RulesOf {
    fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, CommitError>>) -> Job) -> Result<T, String> {
        let gone = || KernelGone.to_string();
        let (reply, answer) = oneshot::channel();
        let jobs = self.0.upgrade().ok_or_else(gone)?;
        jobs.blocking_send(job(reply)).map_err(|_| gone())?;
        // While the answer is waited for, this must not be what keeps the thread alive.
        drop(jobs);
        answer.blocking_recv().map_err(|_| gone())?.map_err(|error| error.to_string())
    }
}

struct Worker<K> {
    kernel: K,
    core: Core,
    barred: Barred,
    marker: Option<Marker>,
    cuts: Option<(CutHandle, Owners)>,
    /// What was committed last; `None` while nobody knows.
    in_force: Option<Made>,
}

impl<K: Kernel> Worker<K> {
    /// Does one job. Nobody waits for its answer any more when the agent is stopping; the kernel has it all the same.
    fn run(&mut self, job: Job) {
        match job {
            Job::Apply { committed, local, judges, retries, reply } => {
                if retries {
                    self.barred = Barred::default();
                }
                self.apply(committed, local, judges, reply);
            }
            Job::Observe { wanted, reply } => {
                let wanted = wanted.as_ref().map(|(duration, note)| (*duration, note.as_str()));
                let _ = reply.send(self.kernel.observe(wanted));
            }
            Job::Observing { reply } => {
                let _ = reply.send(self.kernel.observing());
            }
            Job::Check { how, reply } => {
                let found = self.kernel.check(how);
                let _ = reply.send(found.map(|found| Checked { found, has_more: self.kernel.is_mid_check() }));
            }
            Job::Repair { reply } => {
                let repaired = self.kernel.repair();
                // What comes next is compared as a whole.
                self.core.forget();
                let _ = reply.send(repaired);
            }
            Job::ForgetRevoked { of, allowed, reply } => {
                // By a state that is not in force any more nothing is allowed; the commit that followed is looked at too.
                let is_in_force = self.in_force.as_ref().is_some_and(|made| made.is_same(&of));
                let _ = reply.send(if is_in_force { self.kernel.forget_revoked(&allowed) } else { Ok(0) });
            }
            Job::PassByCuts { nothing_is_cut, reply } => {
                let _ = reply.send(self.kernel.pass_by_cuts(nothing_is_cut));
            }
            Job::Shield { reply } => {
                let _ = reply.send(self.kernel.shield());
            }
        }
    }

    fn apply(&mut self, committed: Arc<Committed>, local: Arc<LocalWorkloads>, judges: bool, reply: oneshot::Sender<Outcome>) {
        let begun = Instant::now();
        let noted = note(&mut self.marker, &committed);
        let mut attempts = 0;
        let (change, made, result) = loop {
            attempts += 1;
            let committed = self.without_barred(&committed);
            let (change, made, result) = self.attempt(committed.clone(), &local);
            match &result {
                Err(error) if attempts < MOST_ATTEMPTS && self.bars(error, &committed.state, &change) => self.core.forget(),
                Ok(_) | Err(_) => break (change, made, result),
            }
        };
        if result.is_err() {
            self.core.forget();
        }
        if let (Err(_), Some((epoch, generation))) = (&result, noted) {
            // The kernel keeps the generation before. An answer that was lost leaves it open which one it holds.
            if !matches!(result, Err(CommitError::Unknown(_))) {
                note_as(&mut self.marker, &epoch, generation);
            }
        }
        let is_in_force = result.is_ok();
        let refused = self.barred.refused();
        let _ = reply.send(Outcome { at: SystemTime::now(), took: begun.elapsed(), result, refused });
        if let Some((cuts, owners)) = self.cuts.as_mut().filter(|_| is_in_force && judges) {
            if let Change::Whole(desired) = &change {
                owners.take(desired);
            }
            cuts.committed(made);
        }
    }
}

impl<K: Kernel> Worker<K> {
    fn without_barred(&mut self, committed: &Arc<Committed>) -> Arc<Committed> {
        if self.barred.is_empty() {
            return committed.clone();
        }
        let state = self.barred.without(&committed.state);
        Arc::new(Committed { state, ..Committed::clone(committed) })
    }

    fn attempt(&mut self, committed: Arc<Committed>, local: &Arc<LocalWorkloads>) -> (Change, Made, Result<CommitReport, CommitError>) {
        let change = self.core.next(&committed.state, local);
        // Who owns which address changes only with the whole.
        if let (Change::Whole(desired), Some((cuts, owners))) = (&change, &mut self.cuts) {
            cuts.forget(&owners.newly_owned(desired));
        }
        let made = Made { committed, local: local.clone() };
        let mut turn = self.cuts.as_ref().map(|(cuts, _)| cuts.turn());
        let result = match &change {
            Change::Whole(desired) => self.kernel.commit(desired),
            Change::Members(delta) => self.kernel.commit_delta(delta),
        };
        match &result {
            Ok(_) => self.in_force = Some(made.clone()),
            Err(CommitError::Unknown(_)) => self.in_force = None,
            Err(_) => {}
        }
        match (&result, &mut turn) {
            (Ok(_), Some(turn)) => turn.made(&made),
            (Err(CommitError::Unknown(_)), Some(turn)) => turn.unknown(),
            (Ok(_) | Err(_), _) => {}
        }
        (change, made, result)
    }

    /// Whether there is something less to try it with.
    fn bars(&mut self, error: &CommitError, state: &NodeState, change: &Change) -> bool {
        let CommitError::Refused { culprit: Some(culprit), .. } = error else { return false };
        let groups = match &**culprit {
            Culprit::Group(set) => self.core.groups_of(set),
            Culprit::Chain(_) | Culprit::Local(_) => BTreeSet::new(),
        };
        let leads = match (&**culprit, change) {
            (Culprit::Chain(chain), Change::Whole(desired)) => {
                let led = desired.sets.shared.segments.iter().filter(|(_, (to, _))| to == chain);
                led.map(|((_, local), _)| *local).collect()
            }
            (Culprit::Chain(_) | Culprit::Group(_) | Culprit::Local(_), _) => BTreeSet::new(),
        };
        let bars = self.barred.bar(culprit, &error.to_string(), state, &groups, &leads);
        if bars {
            tracing::error!(reason = %error, "the kernel refused an object; the rest is applied without it");
        }
        bars
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
    let mut leftover = false;
    let mut only_tidies = false;
    let mut retries = false;
    // Whether the controller waits for an answer.
    let mut owed = true;
    loop {
        owed |= links.committed.has_changed().unwrap_or(false);
        let is_news = owed || links.local.has_changed().unwrap_or(false);
        let judges = !std::mem::take(&mut only_tidies) || is_news;
        let committed = links.committed.borrow_and_update().clone();
        let local = links.local.borrow_and_update().clone();
        if let Some(committed) = committed.filter(|_| local.in_sync) {
            let retries = std::mem::take(&mut retries);
            let outcome = kernel.ask(|reply| Job::Apply { committed: committed.clone(), local, judges, retries, reply }).await?;
            leftover = outcome.result.as_ref().is_ok_and(|report| report.leftover);
            failures = if outcome.result.is_ok() && outcome.refused.is_empty() { 0 } else { failures + 1 };
            tell(&links, &committed, outcome, std::mem::take(&mut owed));
        }
        let retry = async {
            match failures {
                0 => std::future::pending().await,
                failures => tokio::time::sleep(backoff.wait(failures - 1, "kernel")).await,
            }
        };
        let tidy = async {
            if !leftover {
                std::future::pending().await
            }
            // Long after the last packet that the old chains have seen.
            tokio::time::sleep(LEFTOVER).await;
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tidy => only_tidies = true,
            () = changed(&mut links.committed) => owed = true,
            () = changed(&mut links.local) => {}
            () = kernel.again.notified() => {}
            () = retry => retries = true,
        }
    }
}

/// Says how a change went: to the controller when it waits for an answer or the answer is another one than before.
fn tell(links: &EnforceLinks, committed: &Committed, outcome: Outcome, owed: bool) {
    let Committed { epoch, generation, revision, state: _, refused } = committed;
    let Outcome { at, took, result, refused: barred } = outcome;
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
    let mut warnings: BTreeSet<Warning> = failure.iter().map(|reason| Warning::new("KernelRefusedChange", reason.clone())).collect();
    warnings.extend(barred.iter().map(|(key, refusal)| {
        Warning::new("KernelRefusedObject", format!("{key}: {}; the rest is in force, and what it would allow is denied", refusal.reason))
    }));
    let mut refused = refused.clone();
    refused.extend(barred);
    links.status.send_if_modified(|status| {
        let before = status.clone();
        status.tables_whole = !broken;
        status.warnings.retain(|warning| !["KernelRefusedChange", "KernelRefusedObject"].contains(&warning.code));
        status.warnings.extend(warnings);
        *status != before
    });
    let applied = Applied { epoch: epoch.clone(), generation: *generation, revision: *revision, at, kernel_time: took, refused, failure };
    links.applied.send_if_modified(|last| {
        let same = last.as_ref().is_some_and(|last| {
            (&last.epoch, last.generation, &last.failure, &last.refused)
                == (&applied.epoch, applied.generation, &applied.failure, &applied.refused)
        });
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
