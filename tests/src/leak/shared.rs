//! What the stations tell each other and the checker.

use anyhow::ensure;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Refusals that are written down; more are only counted.
const KEPT: usize = 50;

/// What stations do. It only moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Probes and ticks are sent.
    Run,
    /// Nothing new is sent; what waits for an answer gets it.
    Quiet,
    /// Open connections are closed.
    Close,
}

/// Shared by the stations of one checker.
#[derive(Debug)]
pub(super) struct Shared {
    phase: AtomicU8,
    stations: u64,
    idle: AtomicU64,
    permitted: AtomicU64,
    forbidden: AtomicU64,
    ticks: AtomicU64,
    refused_more: AtomicU64,
    refused: Mutex<Vec<String>>,
}

impl Shared {
    pub(super) fn new(stations: usize) -> Self {
        let (phase, idle, permitted, forbidden, ticks, refused_more, refused) = Default::default();
        Self { phase, stations: u64::try_from(stations).unwrap_or(u64::MAX), idle, permitted, forbidden, ticks, refused_more, refused }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Run,
            1 => Phase::Quiet,
            _ => Phase::Close,
        }
    }

    pub(super) fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::SeqCst);
    }

    /// A station has no probe left that waits for its answer.
    pub(super) fn is_idle(&self) {
        self.idle.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn wait_idle(&self) -> anyhow::Result<()> {
        let all = || self.idle.load(Ordering::SeqCst) >= self.stations;
        let waited = crate::wait::until_true("the last probes to be answered", 2 * super::station::PATIENCE, all);
        ensure!(waited.is_ok(), "a probing thread has ended: {waited:?}");
        Ok(())
    }

    pub(super) fn probe(&self, allowed: bool) {
        let counter = if allowed { &self.permitted } else { &self.forbidden };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refuse(&self, what: String) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < KEPT {
            refused.push(what);
        } else {
            self.refused_more.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn sent(&self) -> (u64, u64) {
        (self.permitted.load(Ordering::Relaxed), self.forbidden.load(Ordering::Relaxed))
    }

    pub(super) fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> Vec<String> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let more = self.refused_more.load(Ordering::Relaxed);
        if more > 0 {
            refused.push(format!("and {more} more"));
        }
        refused
    }
}
