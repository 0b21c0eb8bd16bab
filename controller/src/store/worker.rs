//! The two threads that own the connections. Only they touch SQLite.

use super::Limits;
use super::read::database;
use super::types::{Committed, StoreError};
use firebreak_policy::model::Revision;
use rusqlite::Connection;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Requests that may wait for a thread before callers wait for a place.
const QUEUE: usize = 256;
/// Writes that share one commit.
const GROUP: usize = 64;
/// Revisions that a follower may be behind before it reads them from the database instead.
const FOLLOWERS_BEHIND: usize = 256;

/// Called after the commit, or after it failed.
type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Runs inside a savepoint: gives the revision it made, and whom to tell. Without a savepoint it only tells its caller why.
type WriteJob = Box<dyn FnOnce(Result<(&Connection, Limits), StoreError>) -> (Option<Arc<Committed>>, Outcome) + Send>;
type ReadJob = Box<dyn FnOnce(&Connection) + Send>;

/// What becomes of a write's savepoint.
enum Outcome {
    /// It stays; the caller is told after the commit.
    Keep(Finish),
    /// It is taken back; the caller was told.
    TakeBack,
}

/// The writing thread.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<WriteJob>>,
    live: broadcast::Sender<Arc<Committed>>,
    newest: Arc<AtomicU64>,
    limits: Arc<Mutex<Limits>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// `ended` is cancelled when the thread ends, however that comes.
    pub(super) fn start(connection: Connection, newest: Revision, ended: CancellationToken) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (live, _) = broadcast::channel(FOLLOWERS_BEHIND);
        let newest = Arc::new(AtomicU64::new(newest.0));
        let limits = Arc::new(Mutex::new(Limits::default()));
        let (told, seen, kept) = (live.clone(), Arc::clone(&newest), Arc::clone(&limits));
        let thread = spawn("store-writer", ended, move || write_loop(&connection, queue, &told, &seen, &kept))?;
        Ok(Self { jobs: Some(jobs), live, newest, limits, thread: Some(thread) })
    }

    pub(super) fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    pub(super) fn newest(&self) -> Revision {
        Revision(self.newest.load(Ordering::Acquire))
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<Committed>> {
        self.live.subscribe()
    }

    /// Runs `act` in a savepoint and answers after the commit.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection, Limits) -> Result<(T, Option<Arc<Committed>>), StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: WriteJob = Box::new(move |savepoint| match savepoint.and_then(|(connection, limits)| act(connection, limits)) {
            // A caller that went away is told nothing: the change stands or falls without it.
            Ok((value, committed)) => (committed, Outcome::Keep(Box::new(move |written| drop(answer.send(written.map(|()| value)))))),
            Err(error) => {
                drop(answer.send(Err(error)));
                (None, Outcome::TakeBack)
            }
        });
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        join(self.thread.take());
    }
}

fn write_loop(
    connection: &Connection,
    mut queue: mpsc::Receiver<WriteJob>,
    live: &broadcast::Sender<Arc<Committed>>,
    newest: &AtomicU64,
    limits: &Mutex<Limits>,
) {
    while let Some(first) = queue.blocking_recv() {
        let limits = *limits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(job) = queue.try_recv()
        {
            group.push(job);
        }
        let (written, finishes, committed) = commit_group(connection, group, limits);
        if written.is_ok() {
            for revision in committed {
                let number = revision.revision.0;
                // No follower is no error. Followers hear of a revision before its number is seen, and before its author is answered.
                drop(live.send(revision));
                newest.store(number, Ordering::Release);
            }
        }
        for finish in finishes {
            finish(written.clone());
        }
    }
}

fn commit_group(
    connection: &Connection,
    group: Vec<WriteJob>,
    limits: Limits,
) -> (Result<(), StoreError>, Vec<Finish>, Vec<Arc<Committed>>) {
    let batch = |sql: &str, act| connection.execute_batch(sql).map_err(database(act));
    let mut finishes = Vec::with_capacity(group.len());
    let mut committed = Vec::new();
    let mut written = batch("BEGIN IMMEDIATE", "cannot begin a transaction");
    for job in group {
        written = written.and_then(|()| batch("SAVEPOINT job", "cannot begin a savepoint"));
        if let Err(error) = &written {
            // The job only tells its caller.
            drop(job(Err(error.clone())));
            continue;
        }
        let (revision, outcome) = job(Ok((connection, limits)));
        match outcome {
            Outcome::Keep(finish) => {
                finishes.push(finish);
                committed.extend(revision);
                written = batch("RELEASE job", "cannot end a savepoint");
            }
            Outcome::TakeBack => written = batch("ROLLBACK TO job; RELEASE job", "cannot take a change back"),
        }
    }
    if written.is_ok() {
        written = batch("COMMIT", "cannot commit");
    }
    if let Err(error) = &written {
        tracing::error!(error = %error, "a transaction of the store failed");
        // Without an open transaction this fails, and there is then nothing to take back.
        drop(connection.execute_batch("ROLLBACK"));
    }
    (written, finishes, committed)
}

/// The reading thread.
#[derive(Debug)]
pub(super) struct Reader {
    jobs: Option<mpsc::Sender<ReadJob>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// `ended` is cancelled when the thread ends, however that comes.
    pub(super) fn start(connection: Connection, ended: CancellationToken) -> Result<Self, StoreError> {
        let (jobs, mut queue) = mpsc::channel::<ReadJob>(QUEUE);
        let thread = spawn("store-reader", ended, move || {
            while let Some(job) = queue.blocking_recv() {
                job(&connection);
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `act` in a read transaction: all it sees is of one moment.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: ReadJob = Box::new(move |connection| drop(answer.send(read_once(connection, act))));
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.jobs.take());
        join(self.thread.take());
    }
}

fn read_once<T>(connection: &Connection, act: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
    let moment = connection.unchecked_transaction().map_err(database("cannot begin to read"))?;
    let value = act(&moment);
    moment.finish().map_err(database("cannot end a read"))?;
    value
}

fn spawn(name: &str, ended: CancellationToken, act: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    let run = move || {
        // Dropped by a panic too.
        let _guard = ended.drop_guard();
        act();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|error| StoreError::File {
        act: "cannot start thread",
        path: name.to_owned(),
        reason: error.to_string(),
    })
}

fn join(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        tracing::error!("a thread of the store panicked");
    }
}
