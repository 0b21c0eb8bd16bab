//! Cut TCP connections whose ends have fallen silent: their entries are deleted, for conntrack would keep them for five days.
//!
//! Deleting is safe for TCP once nothing in the middle of a connection may pass as new: not before the grace after a first install is over.
//! Pure but for the conntrack that is handed in.

use super::apply::{Change, Conntrack};
use super::entry::{Entry, Tuple};
use super::error::ConntrackError;
use firebreak_policy::model::Protocol;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Without a packet for so long a cut connection is over: longer than TCP waits between two tries (`TCP_RTO_MAX`, 120 s).
pub(super) const SILENCE: Duration = Duration::from_secs(300);
/// Entries that are kept in mind; those beyond end when conntrack ends them.
const MOST: usize = 100_000;

/// Labelled TCP entries, and when each would end by itself.
#[derive(Debug)]
pub(super) struct Silent {
    not_before: Instant,
    checked: Instant,
    entries: HashMap<Tuple, Watched>,
}

#[derive(Debug)]
struct Watched {
    entry: Entry,
    /// By our clock; each packet moves it.
    ends: Instant,
}

impl Silent {
    /// Knows none; deletes none before `not_before`.
    pub(super) fn new(now: Instant, not_before: Instant) -> Self {
        Self { not_before, checked: now, entries: HashMap::new() }
    }

    /// An entry carries the label.
    pub(super) fn watch(&mut self, now: Instant, entry: Entry) {
        if entry.original.protocol == Protocol::TCP && (self.entries.len() < MOST || self.entries.contains_key(&entry.original)) {
            let ends = ends(now, &entry);
            self.entries.insert(entry.original, Watched { entry, ends });
        }
    }

    /// When to come again; `None` while nothing is watched.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.entries.is_empty()).then(|| (self.checked + SILENCE).max(self.not_before))
    }

    /// Deletes what was silent since the last check and says how many those were; what has ended or lost its label is forgotten.
    ///
    /// # Errors
    /// Conntrack could not be asked; the rest waits for the next check.
    pub(super) fn check(&mut self, now: Instant, conntrack: &mut dyn Conntrack) -> Result<usize, ConntrackError> {
        self.checked = now;
        let mut silent = Vec::new();
        let mut kept = HashMap::with_capacity(self.entries.len());
        for (tuple, watched) in std::mem::take(&mut self.entries) {
            let Some(entry) = conntrack.find(&watched.entry)?.filter(|entry| entry.is_cut) else { continue };
            let ends = ends(now, &entry);
            // The kernel tells whole seconds, and both readings are cut.
            if ends <= watched.ends + Duration::from_secs(2) {
                silent.push(entry);
            } else {
                kept.insert(tuple, Watched { entry, ends });
            }
        }
        self.entries = kept;
        let changes: Vec<Change<'_>> = silent.iter().map(Change::Delete).collect();
        conntrack.change(&changes)?;
        Ok(silent.len())
    }
}

fn ends(now: Instant, entry: &Entry) -> Instant {
    now + Duration::from_secs(entry.timeout.into())
}
