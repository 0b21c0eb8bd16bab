//! The leak checker: permitted and forbidden traffic all the time, every wrong decision counted.

use crate::namespace::Namespace;
use crate::probe::{Kind, send};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A forbidden probe has passed if its answer comes; an answer within one machine takes far less.
const FORBIDDEN_PATIENCE: Duration = Duration::from_millis(60);

/// A permitted probe has failed if no answer comes for so long, which is more than a loaded machine needs, and less than a TCP connect
/// takes whose first SYN was dropped (1 s): a dropped packet is seen.
const PERMITTED_PATIENCE: Duration = Duration::from_millis(900);

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Permitted probes that were sent.
    pub permitted: u64,
    /// Of these, without an answer.
    pub refused: u64,
    /// Forbidden probes that were sent.
    pub forbidden: u64,
    /// Of these, with an answer.
    pub passed: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    permitted: AtomicU64,
    refused: AtomicU64,
    forbidden: AtomicU64,
    passed: AtomicU64,
}

/// A running checker.
#[derive(Debug)]
pub struct LeakChecker {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl LeakChecker {
    /// Starts a thread per probe, each sending one after the other, at most every `pause`.
    ///
    /// # Errors
    /// A namespace is not there.
    pub fn start(
        permitted: &[(&Namespace, IpAddr, Kind)],
        forbidden: &[(&Namespace, IpAddr, Kind)],
        pause: Duration,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for (list, allowed) in [(permitted, true), (forbidden, false)] {
            for (from, to, kind) in list {
                let (shared, to, kind) = (Arc::clone(&shared), *to, *kind);
                let thread = from.spawn(move || check(&shared, to, kind, allowed, pause))?;
                threads.push(std::thread::spawn(move || thread.join().map_err(|_| anyhow::anyhow!("a probe thread panicked"))??));
            }
        }
        Ok(Self { shared, threads })
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Shared { stop: _, permitted, refused, forbidden, passed } = &*self.shared;
        Counts { permitted: read(permitted), refused: read(refused), forbidden: read(forbidden), passed: read(passed) }
    }

    /// Stops, and gives what was counted.
    ///
    /// # Errors
    /// A probe could not be sent for a reason that is not policy.
    pub fn stop(mut self) -> anyhow::Result<Counts> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow::anyhow!("a probe thread panicked"))??;
        }
        Ok(self.counts())
    }
}

impl Drop for LeakChecker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn check(shared: &Shared, to: IpAddr, kind: Kind, allowed: bool, pause: Duration) -> anyhow::Result<()> {
    while !shared.stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answered = send(to, kind, if allowed { PERMITTED_PATIENCE } else { FORBIDDEN_PATIENCE })?;
        let (sent, wrong) = if allowed { (&shared.permitted, &shared.refused) } else { (&shared.forbidden, &shared.passed) };
        sent.fetch_add(1, Ordering::Relaxed);
        wrong.fetch_add(u64::from(answered != allowed), Ordering::Relaxed);
        std::thread::sleep(pause.saturating_sub(begun.elapsed()));
    }
    Ok(())
}
