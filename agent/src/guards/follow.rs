//! From events and counts to records. Pure: time, ids and names are handed in.
//!
//! Frames of one interface that violate one thing with one EtherType are a run: opened at the first, updated at most every 60 s, closed with
//! its totals after 60 s without any. Totals come from the kernel's counters; events only make `opened` prompt and tell what the first
//! frame claimed. What the counters had before this agent looked is an earlier agent's to tell.

use crate::dataplane::names::GuardReason;
use crate::dataplane::{GuardCount, GuardReading};
use crate::flows::control::{Control, LostReason};
use crate::flows::{Counters, FirstFrame, FlowId, GuardTold, Phase, Record, Told};
use firebreak_policy::model::{Direction, Generation};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

/// A run is told again after this time at the earliest, and closed after as long without frames.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Runs that one interface may have: a container can make up 65,536 EtherTypes. What is over it is told as lost.
const MOST_OF_ONE: usize = 64;
/// Two counts whose elements end so far apart are of two elements.
const SAME_ELEMENT: Duration = Duration::from_secs(2);

/// What tells runs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) interface: u32,
    pub(super) reason: GuardReason,
    pub(super) ether_type: u16,
}

/// Who is behind an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Behind {
    pub(super) interface: String,
    pub(super) container: String,
}

/// One moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) steady: Instant,
    pub(super) wall: SystemTime,
}

#[derive(Debug)]
struct Run {
    /// `None` while there is nothing to tell: the frames that the counter has were told, or are an earlier agent's.
    open: Option<Open>,
    /// What the element had when it was last read, and when it ends.
    counted: (u64, u64),
    ends: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    told: GuardTold,
    /// Frames of the last record.
    told_frames: u64,
    told_at: Instant,
    grown_at: Instant,
    /// Whether the one frame in the totals is an event's, which the counter has too.
    by_event: bool,
}

/// Follows all runs of the node.
#[derive(Debug)]
pub(super) struct Follower<I> {
    runs: BTreeMap<Key, Run>,
    control: Control,
    started: bool,
    id: I,
}

impl<I: FnMut() -> FlowId> Follower<I> {
    /// Knows nothing. `id` makes a new id each time.
    pub(super) fn new(id: I) -> Self {
        Self { runs: BTreeMap::new(), control: Control::unknown_past(), started: false, id }
    }

    fn has_room(&self, interface: u32) -> bool {
        let first = Key { interface, reason: GuardReason::Mac, ether_type: 0 };
        let last = Key { interface, reason: GuardReason::IcmpError, ether_type: u16::MAX };
        self.runs.range(first..=last).count() < MOST_OF_ONE
    }

    fn opened(&mut self, now: Moment, key: Key, behind: &Behind, generation: Generation, first: FirstFrame, counted: (u64, u64)) -> Open {
        let told = GuardTold {
            id: (self.id)(),
            phase: Phase::Opened,
            reason: key.reason,
            interface: behind.interface.clone(),
            container: behind.container.clone(),
            ether_type: key.ether_type,
            first,
            frames: counted.0,
            bytes: counted.1,
            first_seen: now.wall,
            last_seen: now.wall,
            generation,
        };
        Open { told_frames: told.frames, told, told_at: now.steady, grown_at: now.steady, by_event: false }
    }

    /// The kernel logged the first frame of an element.
    pub(super) fn frame(
        &mut self,
        now: Moment,
        key: Key,
        first: FirstFrame,
        length: u64,
        behind: &Behind,
        generation: Generation,
    ) -> Option<Record> {
        if self.runs.get(&key).is_some_and(|run| run.open.is_some()) || !self.runs.contains_key(&key) && !self.has_room(key.interface) {
            return None;
        }
        let mut open = self.opened(now, key, behind, generation, first, (1, length));
        open.by_event = true;
        let record = record(now, &open.told);
        self.control.tell(1);
        // A new element begins a new count.
        self.runs.insert(key, Run { open: Some(open), counted: (0, 0), ends: None });
        Some(record)
    }

    /// The kernel's counts, complete. `behind` says who is behind an interface.
    pub(super) fn counted(
        &mut self,
        now: Moment,
        reading: &GuardReading,
        generation: Generation,
        behind: impl Fn(u32) -> Behind,
    ) -> Vec<Record> {
        let mut records = Vec::new();
        let mut refused = false;
        let mut names: HashMap<u32, Behind> = HashMap::new();
        for count in &reading.counts {
            let key = Key { interface: count.interface, reason: count.reason, ether_type: count.ether_type };
            let ends = now.steady + count.expires_in;
            if !self.runs.contains_key(&key) {
                if !self.has_room(key.interface) {
                    refused = true;
                    continue;
                }
                // What is there at the first reading was counted before anybody looked.
                let counted = if self.started { (0, 0) } else { (count.packets, count.bytes) };
                self.runs.insert(key, Run { open: None, counted, ends: Some(ends) });
            }
            let grown = self.grow(key, count, ends);
            if grown == (0, 0) {
                continue;
            }
            let is_open = self.runs.get(&key).is_some_and(|run| run.open.is_some());
            if !is_open {
                let behind = names.entry(key.interface).or_insert_with(|| behind(key.interface)).clone();
                let open = self.opened(now, key, &behind, generation, FirstFrame::default(), grown);
                records.push(record(now, &open.told));
                if let Some(run) = self.runs.get_mut(&key) {
                    run.open = Some(open);
                }
            } else if let Some(open) = self.runs.get_mut(&key).and_then(|run| run.open.as_mut()) {
                open.told.frames += grown.0;
                open.told.bytes += grown.1;
                open.told.last_seen = now.wall;
                open.grown_at = now.steady;
            }
            self.control.tell(grown.0);
        }
        records.extend(self.due(now));
        let present: HashSet<Key> = reading
            .counts
            .iter()
            .map(|count| Key { interface: count.interface, reason: count.reason, ether_type: count.ether_type })
            .collect();
        self.runs.retain(|key, run| run.open.is_some() || present.contains(key));
        self.started = true;
        let counters = Counters { denied: reading.refused, overflow: reading.overflow };
        let lost = self.control.settle(now.steady, counters, refused);
        records.extend(lost.into_iter().map(|(packets, reason)| lost_record(now, packets, reason)));
        records
    }

    /// What a count has beyond what is in the totals.
    fn grow(&mut self, key: Key, count: &GuardCount, ends: Instant) -> (u64, u64) {
        let Some(run) = self.runs.get_mut(&key) else { return (0, 0) };
        let is_other = run.ends.is_some_and(|before| ends > before + SAME_ELEMENT) || count.packets < run.counted.0;
        let before = if is_other { (0, 0) } else { run.counted };
        let mut grown = (count.packets.saturating_sub(before.0), count.bytes.saturating_sub(before.1));
        if let Some(open) = run.open.as_mut().filter(|open| open.by_event) {
            // The event's frame is in the totals already.
            open.by_event = false;
            grown = (grown.0.saturating_sub(1), grown.1.saturating_sub(open.told.bytes));
        }
        run.counted = (count.packets, count.bytes);
        run.ends = Some(ends);
        grown
    }

    /// What is to be told now of runs that go on or have ended.
    fn due(&mut self, now: Moment) -> Vec<Record> {
        let mut records = Vec::new();
        for run in self.runs.values_mut() {
            let Some(open) = &mut run.open else { continue };
            if now.steady.saturating_duration_since(open.grown_at) >= TOLD_EVERY {
                open.told.phase = Phase::Closed;
                records.push(record(now, &open.told));
                run.open = None;
            } else if open.told.frames > open.told_frames && now.steady.saturating_duration_since(open.told_at) >= TOLD_EVERY {
                open.told.phase = Phase::Updated;
                open.told_frames = open.told.frames;
                open.told_at = now.steady;
                records.push(record(now, &open.told));
            }
        }
        records
    }
}

fn record(now: Moment, told: &GuardTold) -> Record {
    Record { time: now.wall, told: Told::Guard(Box::new(told.clone())) }
}

fn lost_record(now: Moment, packets: u64, reason: LostReason) -> Record {
    let reason = Cow::Owned(format!("refused by guards: {}", reason.as_str()));
    Record { time: now.wall, told: Told::Lost { direction: Direction::Egress, packets, reason } }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
