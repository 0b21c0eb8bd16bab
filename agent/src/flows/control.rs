//! The control sum: the kernel counts every denied packet once more outside the sets (`denied_in`, `denied_out`), so that what no
//! flow's element tells of is noticed.
//!
//! `denied = base + told + overflow + lost`, where `told` is what flows' totals have, `overflow` the packets whose flow found its set full, and
//! `base` what was counted before anybody followed it. The counters are read before the elements; packets that come during the read make the right
//! side larger, never the left. A walk of the kernel's hash table may miss an element while the table is resized (`rhashtable_walk_start` says
//! so), and a log event may come after the read that counts its packet, so that a difference counts as a loss only when [`WINDOW`] reads in a row
//! have it, and then as the smallest of them.

use super::read::Counters;
use std::time::{Duration, Instant};

/// Reads that must agree that packets are missing.
pub const WINDOW: usize = 3;
/// Losses of one direction are told at most this often, the first at once.
pub const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Why packets are told without their flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LostReason {
    /// The kernel's set of denied flows had no room, or the kernel had no memory for an entry at that moment.
    SetFull,
    /// Entries came to their end in the kernel while no agent read them.
    AgentDown,
    /// The agent follows as many flows as it may.
    FlowLimit,
    /// Entries ended (5 minutes after their first packet) between two reads.
    EntryEnded,
}

impl LostReason {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SetFull => "flow set full or no memory for an entry",
            Self::AgentDown => "agent was down",
            Self::FlowLimit => "agent follows too many flows",
            Self::EntryEnded => "flow entries ended between two reads",
        }
    }
}

/// The part of the sum that outlives the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlState {
    /// Packets that were counted before anybody followed the table; `None` until the first read is complete.
    pub base: Option<u64>,
    /// Packets that flows' totals have.
    pub told: u64,
    /// Packets of `overflow` that `lost` records have.
    pub overflow_told: u64,
    /// Other packets that `lost` records have.
    pub lost: u64,
}

/// The sum of one direction.
#[derive(Clone, Debug, Default)]
pub struct Control {
    state: ControlState,
    denied: u64,
    missing: Recent,
    overflow: Recent,
    told_at: Option<Instant>,
    after_restart: bool,
}

/// What the last reads found missing.
#[derive(Clone, Debug, Default)]
struct Recent(Vec<u64>);

impl Recent {
    fn add(&mut self, missing: u64) {
        if self.0.len() == WINDOW {
            self.0.remove(0);
        }
        self.0.push(missing);
    }

    /// What all of them agree on; asked again, they begin anew.
    fn take_sure(&mut self) -> u64 {
        if self.0.len() < WINDOW {
            return 0;
        }
        let sure = self.0.iter().copied().min().unwrap_or(0);
        if sure > 0 {
            self.0.clear();
        }
        sure
    }
}

impl Control {
    /// For a table that was there before: what it has counted so far is nobody's.
    pub fn unknown_past() -> Self {
        Self::default()
    }

    /// For a table that was made a moment ago: everything in it is ours to tell.
    pub fn new_table() -> Self {
        Self { state: ControlState { base: Some(0), ..ControlState::default() }, ..Self::default() }
    }

    /// Goes on where an earlier agent stopped.
    pub fn restore(state: ControlState) -> Self {
        Self { state, after_restart: true, ..Self::default() }
    }

    /// What a later agent needs.
    pub fn state(&self) -> ControlState {
        self.state
    }

    /// A flow's total grew.
    pub fn tell(&mut self, packets: u64) {
        self.state.told = self.state.told.saturating_add(packets);
    }

    /// A flow's total has a packet of the overflow counter: its log event told of it.
    pub fn tell_overflow(&mut self) {
        self.state.overflow_told = self.state.overflow_told.saturating_add(1);
    }

    /// After a complete read: what must be told as lost now. `refused`: the read had elements that the agent could not follow.
    pub fn settle(&mut self, now: Instant, counters: Counters, refused: bool) -> Vec<(u64, LostReason)> {
        if counters.denied < self.denied {
            // Somebody set the counter back; the past is unknown again.
            *self = Self::unknown_past();
        }
        self.denied = counters.denied;
        let counted = self.state.told.saturating_add(self.state.lost).saturating_add(counters.overflow);
        let Some(base) = self.state.base else {
            self.state.base = Some(counters.denied.saturating_sub(counted));
            self.state.overflow_told = counters.overflow;
            return Vec::new();
        };
        self.missing.add(counters.denied.saturating_sub(base.saturating_add(counted)));
        self.overflow.add(counters.overflow.saturating_sub(self.state.overflow_told));
        if self.told_at.is_some_and(|at| now.saturating_duration_since(at) < TOLD_EVERY) {
            return Vec::new();
        }
        let has_window = self.missing.0.len() == WINDOW;
        let mut lost = Vec::new();
        let overflow = self.overflow.take_sure();
        if overflow > 0 {
            self.state.overflow_told = self.state.overflow_told.saturating_add(overflow);
            lost.push((overflow, LostReason::SetFull));
        }
        let missing = self.missing.take_sure();
        if missing > 0 {
            self.state.lost = self.state.lost.saturating_add(missing);
            let reason = match (self.after_restart, refused) {
                (true, _) => LostReason::AgentDown,
                (false, true) => LostReason::FlowLimit,
                (false, false) => LostReason::EntryEnded,
            };
            lost.push((missing, reason));
        }
        // Once all reads of a window are this agent's own, no loss is the restart's any more.
        self.after_restart = self.after_restart && !has_window;
        if !lost.is_empty() {
            self.told_at = Some(now);
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(denied: u64, overflow: u64) -> Counters {
        Counters { denied, overflow }
    }

    #[test]
    fn a_difference_is_a_loss_only_when_three_reads_have_it() {
        let now = Instant::now();
        let mut control = Control::new_table();
        control.tell(10);
        // (denied, told since the read before, expected)
        let reads = [
            (10, 0, None),
            (15, 0, None), // an element was missed by the read ...
            (15, 5, None), // ... and is there in the next
            (18, 3, None),
            (25, 0, None),
            (27, 0, None),
            (30, 0, Some((7, LostReason::EntryEnded))), // missing 7, 9, 12
            (30, 0, None),
            (30, 5, None),
        ];
        for (step, (denied, told, expected)) in reads.into_iter().enumerate() {
            control.tell(told);
            let expected: Vec<_> = expected.into_iter().collect();
            assert_eq!(control.settle(now, counters(denied, 0), false), expected, "read {step}");
        }
    }

    #[test]
    fn packets_of_a_full_set_are_told_every_ten_seconds_but_for_those_that_a_flow_has() {
        let start = Instant::now();
        let mut control = Control::new_table();
        // (seconds, overflow so far, log events since the read before, expected)
        let reads = [
            (0, 100, 30, 0),
            (1, 110, 0, 0),
            (2, 120, 40, 50), // missing 70, 80, 50: 20 of them are in events that come late
            (3, 120, 20, 0),
            (9, 170, 0, 0),
            (11, 180, 0, 0),
            (12, 190, 0, 30), // ... and are told once in the end
            (13, 190, 0, 0),
            (30, 190, 0, 0),
            (31, 190, 0, 20),
        ];
        for (seconds, overflow, events, expected) in reads {
            for _ in 0..events {
                control.tell_overflow();
            }
            let lost = control.settle(start + Duration::from_secs(seconds), counters(overflow, overflow), true);
            let expected: Vec<_> = (expected > 0).then_some((expected, LostReason::SetFull)).into_iter().collect();
            assert_eq!(lost, expected, "after {seconds} s");
        }
    }

    #[test]
    fn the_past_of_a_table_is_nobodys_and_a_restart_tells_what_nobody_read() {
        let now = Instant::now();
        let mut first = Control::unknown_past();
        first.tell(5);
        for _ in 0..4 {
            assert_eq!(first.settle(now, counters(100, 20), false), []);
        }
        let mut second = Control::restore(first.state());
        second.tell(1);
        let lost: Vec<_> = (0..6).flat_map(|_| second.settle(now, counters(111, 22), false)).collect();
        assert_eq!(lost, [(2, LostReason::SetFull), (8, LostReason::AgentDown)]);
    }

    #[test]
    fn a_counter_that_was_set_back_is_no_loss() {
        let now = Instant::now();
        let mut control = Control::new_table();
        control.tell(50);
        assert_eq!(control.settle(now, counters(50, 0), false), []);
        for denied in [3, 3, 3, 3] {
            assert_eq!(control.settle(now, counters(denied, 0), false), []);
        }
    }
}
