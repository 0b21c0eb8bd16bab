//! Records between the aggregator and the controller's acknowledgement. Pure.
//!
//! A record gets its sequence when it is first sent, not before: what is dropped for want of room then leaves no gap. A record with a sequence is kept
//! until it is acknowledged.

use super::record::{Phase, Record, Told};
use firebreak_policy::model::Direction;
use firebreak_proto::v1;
use prost::Message;
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

/// The wire's limit of records in a batch.
pub const BATCH_RECORDS: usize = 1_000;
/// Under the wire's limit of 1 MiB in a message.
const BATCH_BYTES: usize = 1_000_000;
/// Records that were sent and not acknowledged, at most.
const WINDOW: usize = 20_000;

/// Bounded by the number of records given at its making.
#[derive(Clone, Debug)]
pub struct Outbox {
    limit: usize,
    next_sequence: u64,
    /// With sequences, oldest first.
    sequenced: VecDeque<(u64, Record)>,
    /// How many of `sequenced` this connection has sent.
    sent: usize,
    unsent: BTreeMap<u64, Record>,
    next_order: u64,
    /// Orders of unsent records in the order in which they may be dropped; orders that are sent are passed over.
    droppable: [VecDeque<u64>; 3],
    dropped: [Dropped; 2],
    dropped_total: u64,
    /// Up to this sequence a record is among those that the controller refused: they go one by one.
    suspect: Option<u64>,
    /// The sequence that stands for a refused record; refused itself, it goes without a successor.
    replaced: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Dropped {
    records: u64,
    packets: u64,
}

impl Outbox {
    /// Empty; the first record to be sent gets `next_sequence`.
    pub fn new(limit: usize, next_sequence: u64) -> Self {
        Self {
            limit: limit.max(1),
            next_sequence,
            sequenced: VecDeque::new(),
            sent: 0,
            unsent: BTreeMap::new(),
            next_order: 0,
            droppable: Default::default(),
            dropped: Default::default(),
            dropped_total: 0,
            suspect: None,
            replaced: None,
        }
    }

    /// Takes back what an earlier agent did not get acknowledged, oldest first. A sequence that cannot be one of this boot (not rising, or not below
    /// the next) is made anew.
    pub fn restore(&mut self, records: Vec<(Option<u64>, Record)>) {
        for (sequence, record) in records {
            let last = self.sequenced.back().map_or(0, |(last, _)| *last);
            match sequence.filter(|sequence| *sequence > last && *sequence < self.next_sequence && self.unsent.is_empty()) {
                Some(sequence) => self.sequenced.push_back((sequence, record)),
                None => self.push(record),
            }
        }
    }

    /// Records that wait, sent or not.
    pub fn len(&self) -> usize {
        self.sequenced.len() + self.unsent.len()
    }

    /// Whether nothing waits, not even the news of what was dropped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.dropped.iter().all(|dropped| dropped.records == 0)
    }

    /// Records that were dropped so far.
    pub fn dropped_total(&self) -> u64 {
        self.dropped_total
    }

    /// The sequence that the next new record gets.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Adds a record. At the limit an unsent one goes: the oldest `updated`, else the oldest `opened` (a flow's `closed` has everything that these
    /// say), else the oldest of the others.
    pub fn push(&mut self, record: Record) {
        let class = match &record.told {
            Told::Flow(flow) => match flow.phase {
                Phase::Updated => 0,
                Phase::Opened => 1,
                Phase::Closed => 2,
            },
            Told::Lost { .. } | Told::Cut(_) => 2,
        };
        self.unsent.insert(self.next_order, record);
        self.droppable[class].push_back(self.next_order);
        self.next_order += 1;
        if self.len() > self.limit {
            self.drop_one();
        }
    }

    fn drop_one(&mut self) {
        let Self { droppable, unsent, .. } = self;
        let dropped = droppable.iter_mut().find_map(|orders| {
            while let Some(order) = orders.pop_front() {
                if let Some(record) = unsent.remove(&order) {
                    return Some(record);
                }
            }
            None
        });
        let Some(record) = dropped else { return };
        let (direction, packets) = loss(&record.told);
        let slot = &mut self.dropped[slot(direction)];
        slot.records += 1;
        slot.packets = slot.packets.saturating_add(packets);
        self.dropped_total += 1;
    }

    /// Whether [`Self::next_batch`] has something.
    pub fn has_batch(&self) -> bool {
        if self.is_one_by_one() && self.sent > 0 {
            return false;
        }
        let has_new = self.sequenced.len() < WINDOW && !self.unsent.is_empty();
        self.sent < self.sequenced.len() || has_new || self.has_news_of_dropped()
    }

    /// Whether records were dropped and there is room to say so. News takes room too: while nothing is acknowledged it waits, and adds up.
    fn has_news_of_dropped(&self) -> bool {
        self.sequenced.len() < WINDOW && self.len() <= self.limit && self.dropped.iter().any(|dropped| dropped.records > 0)
    }

    /// The next records to send, in sequence order: first what an earlier connection sent in vain. Empty when there is nothing or the window is full.
    pub fn next_batch(&mut self, now: SystemTime) -> Vec<v1::FlowRecord> {
        self.sequence_news_of_dropped(now);
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let most = if self.is_one_by_one() { 1 } else { BATCH_RECORDS };
        while batch.len() < most {
            if self.sent == self.sequenced.len() && !self.sequence_next() {
                break;
            }
            let Some((sequence, record)) = self.sequenced.get(self.sent) else { break };
            let record = record.to_proto(*sequence);
            // Tag and length of the repeated field take at most 6 bytes.
            bytes += record.encoded_len() + 6;
            if bytes > BATCH_BYTES && !batch.is_empty() {
                break;
            }
            batch.push(record);
            self.sent += 1;
        }
        batch
    }

    fn sequence_next(&mut self) -> bool {
        if self.sequenced.len() >= WINDOW {
            return false;
        }
        let Some((_, record)) = self.unsent.pop_first() else { return false };
        self.sequence(record);
        let first = self.unsent.keys().next().copied().unwrap_or(self.next_order);
        for orders in &mut self.droppable {
            while orders.front().is_some_and(|order| *order < first) {
                orders.pop_front();
            }
        }
        true
    }

    fn sequence(&mut self, record: Record) {
        self.sequenced.push_back((self.next_sequence, record));
        self.next_sequence += 1;
    }

    fn sequence_news_of_dropped(&mut self, now: SystemTime) {
        if !self.has_news_of_dropped() {
            return;
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            let Dropped { records, packets } = std::mem::take(&mut self.dropped[slot(direction)]);
            if records > 0 {
                let reason = Cow::Owned(format!(
                    "{records} flow records dropped: the controller did not take them; the packets are those of flows that closed, at most"
                ));
                self.sequence(Record { time: now, told: Told::Lost { direction, packets, reason } });
            }
        }
    }

    /// The controller has everything up to the sequence. How many records that freed; `None` if no such sequence was sent.
    pub fn acknowledge(&mut self, sequence: u64) -> Option<usize> {
        if sequence >= self.next_sequence {
            return None;
        }
        let count = self.sequenced.partition_point(|(known, _)| *known <= sequence);
        self.sequenced.drain(..count);
        self.sent = self.sent.saturating_sub(count);
        Some(count)
    }

    /// The controller refused a record and with it the batch that it is in. First that means that what was sent and not acknowledged goes
    /// one by one; of a batch of one record it is known which. That record's place is taken by one that says what is lost, so that its
    /// sequence leaves no gap. Says whether a record was given up.
    pub fn refused(&mut self, reason: &str, now: SystemTime) -> bool {
        let Some(last) = self.sent.checked_sub(1).and_then(|last| self.sequenced.get(last)).map(|(sequence, _)| *sequence) else {
            return false;
        };
        if !self.is_one_by_one() {
            self.suspect = Some(last);
            return false;
        }
        let Some((sequence, record)) = self.sequenced.front_mut() else { return false };
        if self.replaced == Some(*sequence) {
            self.sequenced.pop_front();
            self.sent = self.sent.saturating_sub(1);
            return true;
        }
        let (direction, packets) = loss(&record.told);
        let reason =
            Cow::Owned(format!("the controller refused a record ({reason}); the packets are those of a flow that closed, at most"));
        *record = Record { time: now, told: Told::Lost { direction, packets, reason } };
        self.replaced = Some(*sequence);
        true
    }

    /// Whether the next record to be acknowledged is one of those among which one was refused.
    fn is_one_by_one(&self) -> bool {
        self.suspect.is_some_and(|suspect| self.sequenced.front().is_some_and(|(sequence, _)| *sequence <= suspect))
    }

    /// Whether something was sent on this connection that is not acknowledged.
    pub fn awaits_acknowledgement(&self) -> bool {
        self.sent > 0
    }

    /// A new connection: what is not acknowledged is sent again.
    pub fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Everything that waits, oldest first, for a later agent; records that were never sent have sequence 0.
    pub fn unacknowledged(&self) -> Vec<v1::FlowRecord> {
        let sequenced = self.sequenced.iter().map(|(sequence, record)| record.to_proto(*sequence));
        sequenced.chain(self.unsent.values().map(|record| record.to_proto(0))).collect()
    }
}

/// What is lost with a record: at which end, and how many packets nobody else tells of.
fn loss(told: &Told) -> (Direction, u64) {
    match told {
        Told::Flow(flow) => (flow.key.direction, if flow.phase == Phase::Closed { flow.packets } else { 0 }),
        Told::Lost { direction, packets, reason: _ } => (*direction, *packets),
        Told::Cut(cut) => (cut.direction, 0),
    }
}

fn slot(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
