//! From packets and counters to flow records: a state machine without I/O. Time, ids and attribution are handed in.
//!
//! An *element* is the kernel's counter of one flow key; it ends 5 minutes after it was made, whatever its traffic, and comes back with the next
//! packet. A *flow* lives while packets come. Both are kept per key: a flow may see several elements, and an element may outlive its flow.

use super::config::{Limits, Timing};
use super::control::{Control, LostReason};
use super::cursor::{Cursor, CursorElement, CursorEntry, CursorFlow};
use super::journal::JournalEntry;
use super::key::{FlowKey, FlowVerdict};
use super::locals::{LocalEnd, LocalView};
use super::read::{ElementReading, TableReading};
use super::record::{FlowId, FlowTold, Phase, Record, Told};
use super::stats::FlowsStats;
use firebreak_policy::model::{Direction, Generation};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// An element younger than this is left to its log event, which has the source port; the next read opens the flow if none came.
const YOUNG: Duration = Duration::from_millis(100);
/// How far two readings of when an element ends may differ.
const EXPIRY_SLACK: Duration = Duration::from_secs(1);

/// Room that is kept when it is not needed.
const KEPT_CAPACITY: usize = 4_096;

/// Now, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For intervals.
    pub at: Instant,
    /// For people.
    pub wall: SystemTime,
}

impl Moment {
    /// Reads both clocks.
    pub fn now() -> Self {
        Self { at: Instant::now(), wall: SystemTime::now() }
    }
}

/// The first packet of an element, or a packet that no element counts, as NFLOG told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketSeen {
    /// Its flow.
    pub key: FlowKey,
    /// Its source port.
    pub source_port: Option<u16>,
    /// Its length, IP header included.
    pub length: u32,
    /// The interface index that it came in by; a bridge's port where there is one.
    pub input: Option<u32>,
    /// The interface index that it was to leave by; a bridge's port where there is one.
    pub output: Option<u32>,
    /// Whether an element has it. What none has is in the overflow counter.
    pub is_counted: bool,
}

/// Holds all flows and what is known of their elements.
pub struct Aggregator<I> {
    limit: usize,
    timing: Timing,
    ids: I,
    view: Arc<dyn LocalView>,
    stats: Arc<FlowsStats>,
    entries: HashMap<FlowKey, Entry>,
    table: Option<TableReading>,
    /// The handle that `control` and the elements belong to.
    handle: Option<u64>,
    control: [Control; 2],
    /// Reads of each direction's sets.
    reads: [u64; 2],
    refused: bool,
    complete_reads: u64,
    /// Rises when a cursor would be another.
    changes: u64,
    records: Vec<Record>,
    journal: Vec<JournalEntry>,
}

#[derive(Debug, Default)]
struct Entry {
    element: Option<Element>,
    flow: Option<Flow>,
    seen_read: u64,
}

#[derive(Clone, Copy, Debug)]
struct Element {
    packets: u64,
    bytes: u64,
    ends_at: Option<Instant>,
}

#[derive(Debug)]
struct Flow {
    id: FlowId,
    local: Option<Arc<LocalEnd>>,
    generation: Generation,
    first_seen: SystemTime,
    last_seen: SystemTime,
    active_at: Instant,
    told_at: Instant,
    packets: u64,
    bytes: u64,
    /// The packet that NFLOG told of, until its element is read, which has it too.
    logged: Option<u32>,
    packets_told: u64,
    source_port: Option<u16>,
    note: Cow<'static, str>,
}

impl Flow {
    fn totals(&self) -> (u64, u64) {
        match self.logged {
            Some(length) => (self.packets + 1, self.bytes + u64::from(length)),
            None => (self.packets, self.bytes),
        }
    }

    fn told(&mut self, key: FlowKey, phase: Phase, now: Moment) -> Record {
        let (packets, bytes) = self.totals();
        self.packets_told = packets;
        self.told_at = now.at;
        Record {
            time: now.wall,
            told: Told::Flow(FlowTold {
                id: self.id,
                phase,
                key,
                local: self.local.clone(),
                source_port: self.source_port,
                packets,
                bytes,
                first_seen: self.first_seen,
                last_seen: self.last_seen,
                generation: self.generation,
                note: self.note.clone(),
            }),
        }
    }
}

impl Entry {
    /// Takes a reading; what it counted since the last one.
    fn advance(&mut self, reading: &ElementReading, now: Instant) -> (u64, u64) {
        let ends_at = reading.expires_in.and_then(|left| now.checked_add(left));
        let element = Element { packets: reading.packets, bytes: reading.bytes, ends_at };
        let known = self.element.replace(element);
        match known.filter(|known| !known.was_replaced_by(&element, now)) {
            Some(known) => (reading.packets - known.packets, reading.bytes - known.bytes),
            None => (reading.packets, reading.bytes),
        }
    }
}

impl Element {
    /// Whether the later reading is of another element of the same key: counters only rise, and an element that is there after its own end is a new
    /// one.
    fn was_replaced_by(&self, later: &Self, now: Instant) -> bool {
        let counted_back = later.packets < self.packets || later.bytes < self.bytes;
        let outlived = match (self.ends_at, later.ends_at) {
            (Some(end), Some(later_end)) => later_end > end + EXPIRY_SLACK && now + EXPIRY_SLACK >= end,
            (None | Some(_), None) | (None, Some(_)) => false,
        };
        counted_back || outlived
    }
}

/// Whether the control sums are about it: what was let through is in no sum of what was denied.
fn is_controlled(key: &FlowKey) -> bool {
    match key.verdict {
        FlowVerdict::Drop | FlowVerdict::Reject => true,
        FlowVerdict::Allow | FlowVerdict::Audit => false,
    }
}

fn slot(direction: Direction) -> usize {
    match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    }
}

impl<I: FnMut() -> FlowId> Aggregator<I> {
    /// Knows no flow. `ids` gives 16 random bytes for each new flow.
    pub fn new(limits: Limits, timing: Timing, ids: I, view: Arc<dyn LocalView>, stats: Arc<FlowsStats>) -> Self {
        Self {
            limit: limits.flows,
            timing,
            ids,
            view,
            stats,
            entries: HashMap::new(),
            table: None,
            handle: None,
            control: [Control::unknown_past(), Control::unknown_past()],
            reads: [0, 0],
            refused: false,
            complete_reads: 0,
            changes: 0,
            records: Vec::new(),
            journal: Vec::new(),
        }
    }

    /// The records made since the last call, in order.
    pub fn drain(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// What must be in the journal before those records are handed on.
    pub fn drain_journal(&mut self) -> Vec<JournalEntry> {
        std::mem::take(&mut self.journal)
    }

    /// A number that rises whenever [`Self::cursor`] would give something else.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many flow keys are followed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A log event: opens the flow, unless it is open.
    pub fn packet(&mut self, now: Moment, packet: &PacketSeen) {
        self.changes += 1;
        if !packet.is_counted && is_controlled(&packet.key) && self.has_room_for(&packet.key) {
            self.control[slot(packet.key.direction)].tell_overflow();
        }
        if let Some(flow) = self.entries.get_mut(&packet.key).and_then(|entry| entry.flow.as_mut()) {
            // A new element of a flow that goes on, or an event that came after the read. The element counts it.
            flow.last_seen = now.wall;
            flow.active_at = now.at;
            flow.source_port = flow.source_port.or(packet.source_port);
            if !packet.is_counted {
                flow.packets += 1;
                flow.bytes += u64::from(packet.length);
                self.journal.push(JournalEntry::Uncounted { key: packet.key, length: packet.length });
            }
            return;
        }
        if !self.has_room_for(&packet.key) {
            return;
        }
        let mut flow = self.begin(now, &packet.key, now.wall);
        flow.source_port = packet.source_port;
        if packet.is_counted {
            flow.logged = Some(packet.length);
        } else {
            (flow.packets, flow.bytes) = (1, u64::from(packet.length));
        }
        if flow.local.is_none() {
            flow.note = unknown_end_note(packet);
        }
        self.open(now, packet.key, flow, 0, !packet.is_counted);
    }

    /// A read begins, of the sets of these directions. A table that was made anew counts from zero.
    pub fn begin_read(&mut self, table: TableReading, directions: &[Direction]) {
        for direction in directions {
            self.reads[slot(*direction)] += 1;
        }
        self.refused = false;
        self.table = Some(table);
        let is_known = self.handle == Some(table.handle);
        if !is_known {
            if self.handle.is_some() {
                self.control = [Control::new_table(), Control::new_table()];
                for entry in self.entries.values_mut() {
                    entry.element = None;
                    if let Some(flow) = entry.flow.as_mut() {
                        (flow.packets, flow.bytes) = flow.totals();
                        flow.logged = None;
                    }
                }
            }
            self.handle = Some(table.handle);
        }
    }

    /// Part of a read.
    pub fn elements(&mut self, now: Moment, elements: &[ElementReading]) {
        for element in elements {
            self.element(now, element);
        }
    }

    fn element(&mut self, now: Moment, reading: &ElementReading) {
        let key = reading.key;
        if !self.entries.contains_key(&key) {
            let is_young = reading.age.is_some_and(|age| age < YOUNG);
            if is_young || !self.has_room_for(&key) {
                return;
            }
        }
        let read = self.reads[slot(key.direction)];
        let entry = self.entries.entry(key).or_default();
        entry.seen_read = read;
        let (packets, bytes) = entry.advance(reading, now.at);
        if packets == 0 {
            return;
        }
        self.changes += 1;
        if is_controlled(&key) {
            self.control[slot(key.direction)].tell(packets);
        }
        if let Some(flow) = entry.flow.as_mut() {
            // The element has the packet that was logged.
            flow.logged = None;
            flow.packets += packets;
            flow.bytes += bytes;
            flow.last_seen = now.wall;
            flow.active_at = now.at;
            return;
        }
        let first_seen = match reading.age {
            Some(age) if packets == reading.packets => now.wall.checked_sub(age).unwrap_or(now.wall),
            Some(_) | None => now.wall,
        };
        let mut flow = self.begin(now, &key, first_seen);
        flow.packets = packets;
        flow.bytes = bytes;
        if self.complete_reads == 0 && packets == reading.packets {
            flow.note =
                Cow::Borrowed("began before the agent started: an agent before it may have told of these packets under another flow id");
        }
        FlowsStats::add(&self.stats.flows_opened_by_read, 1);
        self.open(now, key, flow, packets, false);
    }

    /// The read is complete: losses are told, flows updated and closed, what is over is forgotten.
    pub fn end_read(&mut self, now: Moment) {
        self.complete_reads += 1;
        // The first one settles what the table had counted before: worth a cursor.
        self.changes += u64::from(self.complete_reads == 1);
        FlowsStats::add(&self.stats.reads, 1);
        if let Some(table) = self.table {
            for direction in [Direction::Ingress, Direction::Egress] {
                let lost = self.control[slot(direction)].settle(now.at, table.of(direction), self.refused);
                for (packets, reason) in lost {
                    self.lost(now, direction, packets, reason);
                }
            }
        }
        self.sweep(now);
    }

    /// Updates and closes flows by the time; also while the table cannot be read.
    pub fn sweep(&mut self, now: Moment) {
        let (followed, told) = (self.entries.len(), self.records.len());
        let Self { entries, control, records, reads, timing: Timing { idle, update_every }, .. } = self;
        entries.retain(|key, entry| {
            if let Some(flow) = entry.flow.as_mut() {
                if now.at.saturating_duration_since(flow.active_at) >= *idle {
                    // No element ever had the logged packet: the flow tells it.
                    if is_controlled(key) {
                        control[slot(key.direction)].tell(u64::from(flow.logged.is_some()));
                    }
                    records.push(flow.told(*key, Phase::Closed, now));
                    entry.flow = None;
                } else if flow.totals().0 > flow.packets_told && now.at.saturating_duration_since(flow.told_at) >= *update_every {
                    records.push(flow.told(*key, Phase::Updated, now));
                }
            }
            let element_is_over = match entry.element {
                None => true,
                // Two reads without it, and past its end: a read may miss an element, and its count must not be told twice.
                Some(Element { ends_at, .. }) => {
                    entry.seen_read + 2 <= reads[slot(key.direction)] && ends_at.is_none_or(|end| now.at >= end + EXPIRY_SLACK)
                }
            };
            entry.flow.is_some() || !element_is_over
        });
        self.changes += u64::from((followed, told) != (self.entries.len(), self.records.len()));
        // What a flood took is given back.
        if self.entries.capacity() > KEPT_CAPACITY && self.entries.len() < self.entries.capacity() / 8 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        FlowsStats::set(&self.stats.flows, self.entries.len());
    }

    fn has_room_for(&mut self, key: &FlowKey) -> bool {
        let has_room = self.entries.len() < self.limit || self.entries.contains_key(key);
        if !has_room {
            self.refused = true;
            FlowsStats::add(&self.stats.flows_refused, 1);
        }
        has_room
    }

    fn begin(&mut self, now: Moment, key: &FlowKey, first_seen: SystemTime) -> Flow {
        Flow {
            id: (self.ids)(),
            local: self.view.locate(now.at, key.direction, key.local()),
            generation: self.view.generation(),
            first_seen,
            last_seen: now.wall,
            active_at: now.at,
            told_at: now.at,
            packets: 0,
            bytes: 0,
            logged: None,
            packets_told: 0,
            source_port: None,
            note: Cow::Borrowed(""),
        }
    }

    /// `told`: packets of it that are in the control sum already; `uncounted`: its packet is in the overflow counter.
    fn open(&mut self, now: Moment, key: FlowKey, mut flow: Flow, told: u64, uncounted: bool) {
        self.records.push(flow.told(key, Phase::Opened, now));
        FlowsStats::add(&self.stats.flows_opened, 1);
        let entry = self.entries.entry(key).or_default();
        entry.flow = Some(flow);
        self.journal.push(JournalEntry::Opened { entry: cursor_entry(now, key, entry), told, uncounted });
    }

    fn lost(&mut self, now: Moment, direction: Direction, packets: u64, reason: LostReason) {
        self.changes += 1;
        FlowsStats::add(&self.stats.packets_lost, packets);
        self.records.push(Record { time: now.wall, told: Told::Lost { direction, packets, reason: Cow::Borrowed(reason.as_str()) } });
    }

    /// What a later agent of the same boot needs to go on, together with the journals from this number on.
    pub fn cursor(&self, now: Moment, journal: u64) -> Cursor {
        let entries = self.entries.iter().map(|(key, entry)| cursor_entry(now, *key, entry)).collect();
        Cursor { handle: self.handle, control: [self.control[0].state(), self.control[1].state()], entries, journal }
    }

    /// Goes on with the flows of an earlier agent. Each of them is told once more soon (`updated`): its last records may have been lost with that
    /// agent.
    pub fn restore(&mut self, now: Moment, cursor: Cursor) {
        let Cursor { handle, control: [ingress, egress], entries, journal: _ } = cursor;
        self.handle = handle;
        if handle.is_some() {
            self.control = [Control::restore(ingress), Control::restore(egress)];
        }
        for entry in entries.into_iter().take(self.limit) {
            self.restore_entry(now, entry);
        }
    }

    /// Goes on after the cursor: what the earlier agent had told since.
    pub fn replay(&mut self, now: Moment, journal: Vec<JournalEntry>) {
        for entry in journal {
            match entry {
                JournalEntry::Opened { entry, told, uncounted } => {
                    if is_controlled(&entry.key) {
                        let control = &mut self.control[slot(entry.key.direction)];
                        control.tell(told);
                        if uncounted {
                            control.tell_overflow();
                        }
                    }
                    if self.entries.len() < self.limit || self.entries.contains_key(&entry.key) {
                        self.restore_entry(now, entry);
                    }
                }
                JournalEntry::Uncounted { key, length } => {
                    if is_controlled(&key) {
                        self.control[slot(key.direction)].tell_overflow();
                    }
                    if let Some(flow) = self.entries.get_mut(&key).and_then(|entry| entry.flow.as_mut()) {
                        flow.packets += 1;
                        flow.bytes += u64::from(length);
                    }
                }
            }
        }
    }

    /// An element that the entry does not have stays as it is known.
    fn restore_entry(&mut self, now: Moment, entry: CursorEntry) {
        let instant = |wall: SystemTime| match wall.duration_since(now.wall) {
            Ok(ahead) => now.at.checked_add(ahead).unwrap_or(now.at),
            Err(past) => now.at.checked_sub(past.duration()).unwrap_or(now.at),
        };
        let CursorEntry { key, element, flow } = entry;
        let element = element.map(|CursorElement { packets, bytes, ends }| Element { packets, bytes, ends_at: ends.map(instant) });
        let told_at = now.at.checked_sub(self.timing.update_every).unwrap_or(now.at);
        let flow = flow.map(|flow| Flow {
            id: flow.id,
            local: flow.local,
            generation: flow.generation,
            first_seen: flow.first_seen,
            last_seen: flow.last_seen,
            active_at: instant(flow.last_seen).min(now.at),
            told_at,
            packets: flow.packets,
            bytes: flow.bytes,
            logged: flow.logged,
            packets_told: 0,
            source_port: flow.source_port,
            note: flow.note,
        });
        let known = self.entries.entry(key).or_default();
        *known = Entry { element: element.or(known.element), flow, seen_read: 0 };
    }
}

/// An entry as it outlives the agent.
fn cursor_entry(now: Moment, key: FlowKey, entry: &Entry) -> CursorEntry {
    CursorEntry {
        key,
        element: entry.element.map(|element| CursorElement {
            packets: element.packets,
            bytes: element.bytes,
            ends: element.ends_at.map(|end| now.wall + end.saturating_duration_since(now.at)),
        }),
        flow: entry.flow.as_ref().map(|flow| CursorFlow {
            id: flow.id,
            local: flow.local.clone(),
            generation: flow.generation,
            first_seen: flow.first_seen,
            last_seen: flow.last_seen,
            packets: flow.packets,
            bytes: flow.bytes,
            logged: flow.logged,
            source_port: flow.source_port,
            note: flow.note.clone(),
        }),
    }
}

/// The workload is not known (any more): the interface is all there is to say.
fn unknown_end_note(packet: &PacketSeen) -> Cow<'static, str> {
    let (word, index) = match packet.key.direction {
        Direction::Ingress => ("to", packet.output),
        Direction::Egress => ("from", packet.input),
    };
    match index {
        Some(index) => Cow::Owned(format!("workload not known; {word} interface index {index}")),
        None => Cow::Borrowed("workload not known"),
    }
}

#[cfg(test)]
#[path = "aggregate_tests.rs"]
mod tests;
