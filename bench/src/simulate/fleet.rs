//! All simulated agents together: what they are to do, and what they saw.

use super::agent::{self, Log, Mode, Shared, Traffic};
use super::company::Concerned;
use crate::stats::percentile;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::transport::Endpoint;

/// The agents, by number.
pub(crate) struct Fleet {
    agents: Vec<Handle>,
}

struct Handle {
    mode: watch::Sender<Mode>,
    log: Arc<Mutex<Log>>,
}

impl Fleet {
    /// Agents without a connection.
    pub(crate) fn new(runtime: &Runtime, endpoint: &Endpoint, count: u32) -> Self {
        let start = |number| {
            let (mode, receiver) = watch::channel(Mode::Stop);
            let log = Arc::default();
            let shared = Shared { endpoint: endpoint.clone(), mode: receiver, log: Arc::clone(&log) };
            runtime.spawn(agent::run(number, shared));
            Handle { mode, log }
        };
        Self { agents: (0..count).map(start).collect() }
    }

    /// Tells some of them what to do.
    pub(crate) fn order(&self, which: Range<u32>, mode: Mode) {
        for handle in self.some(which) {
            handle.mode.send_replace(mode);
        }
    }

    fn some(&self, which: Range<u32>) -> &[Handle] {
        self.agents.get(which.start as usize..which.end as usize).unwrap_or_default()
    }

    fn logs(&self, which: Range<u32>) -> impl Iterator<Item = MutexGuard<'_, Log>> {
        self.some(which).iter().map(|handle| handle.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many there are.
    pub(crate) fn size(&self) -> u32 {
        u32::try_from(self.agents.len()).unwrap_or(u32::MAX)
    }

    fn everybody(&self) -> Range<u32> {
        0..self.size()
    }

    /// How many are in sync, as they see it.
    pub(crate) fn in_sync(&self) -> usize {
        self.logs(self.everybody()).filter(|log| log.in_sync).count()
    }

    /// How many of some have acknowledged a revision, or a later one.
    pub(crate) fn have(&self, which: Range<u32>, revision: u64) -> usize {
        self.logs(which).filter(|log| log.acked.last().is_some_and(|acked| acked.revision >= revision)).count()
    }

    /// How many generations some of them have acknowledged since a moment, each.
    pub(crate) fn acked_since(&self, which: Range<u32>, since: Instant) -> Vec<usize> {
        self.logs(which).map(|log| log.acked.iter().filter(|acked| acked.at >= since).count()).collect()
    }

    /// How long after `since` each that a change concerns has acknowledged a generation with its revision or a later one; `None` for one that has not.
    pub(crate) fn waits(&self, concerned: &Concerned, revision: u64, since: Instant) -> Vec<Option<Duration>> {
        let wait = |log: MutexGuard<'_, Log>| {
            let first = log.acked.partition_point(|acked| acked.revision < revision);
            log.acked.get(first).map(|acked| acked.at.saturating_duration_since(since))
        };
        match concerned {
            Concerned::All => self.logs(self.everybody()).map(wait).collect(),
            Concerned::Some(nodes) => nodes.iter().flat_map(|node| self.logs(*node..node + 1)).map(wait).collect(),
        }
    }

    /// What went to and fro since the last time.
    pub(crate) fn take_traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        for mut log in self.logs(self.everybody()) {
            sum += std::mem::take(&mut log.traffic);
            // The last one says where the agent is.
            let last = log.acked.last().copied();
            log.acked.clear();
            log.acked.extend(last);
        }
        sum
    }

    /// What did not add up anywhere.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.logs(self.everybody()).flat_map(|log| log.problems.clone()).collect()
    }
}

/// What is told of many times.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Spread {
    /// How many.
    pub(crate) count: usize,
    /// Half are at most this, in milliseconds.
    pub(crate) p50_ms: f64,
    /// 99 of 100 are at most this.
    pub(crate) p99_ms: f64,
    /// All are at most this.
    pub(crate) max_ms: f64,
}

impl Spread {
    /// Of these.
    pub(crate) fn of(times: &[Duration]) -> Self {
        let ms = |percent| percentile(times, percent).as_secs_f64() * 1e3;
        Self { count: times.len(), p50_ms: ms(50), p99_ms: ms(99), max_ms: ms(100) }
    }
}
