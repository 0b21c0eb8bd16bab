//! Wiring: NFLOG task, reading thread, aggregator task, reporter task.

use super::aggregate::{Aggregator, Moment, PacketSeen};
use super::config::FlowsConfig;
use super::cursor::StateFiles;
use super::error::FlowsError;
use super::events::Events;
use super::locals::LocalView;
use super::nflog::NflogSocket;
use super::outbox::Outbox;
use super::read::{ElementReading, Reader, TableReading};
use super::record::{FlowId, Record};
use super::reporter::Reporter;
use super::stats::FlowsStats;
use crate::dataplane::names::DeniedSet;
use firebreak_policy::model::Direction;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Datagrams taken before the aggregator sees them.
const NFLOG_BATCH: usize = 256;
/// How long to wait before the group is bound anew: another agent may be on its way out.
const NFLOG_RETRY: Duration = Duration::from_secs(1);
/// A changed cursor is kept this often, and less often when it is large: a megabyte each second at most.
const CURSOR_EVERY: Duration = Duration::from_secs(1);
const CURSOR_EVERY_ENTRY: Duration = Duration::from_micros(200);
/// A read may take this part of the time at most: under a flood over many flows the traffic that is let through needs the processor more.
const READ_SHARE: u32 = 50;
/// And it comes this late at most: an element that nothing hits lives five minutes in the kernel, and is read four times in its life.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// What other parts of the agent tell.
#[derive(Debug)]
pub struct Others {
    /// Made already.
    pub records: mpsc::Receiver<Vec<Record>>,
    /// Seen, and to be counted in flows.
    pub packets: mpsc::Receiver<Vec<PacketSeen>>,
}

/// Collects and reports denied flows until `shutdown`; then what there is gets two seconds to reach the controller, and the rest is kept in the state
/// directory. Records and packets that other parts of the agent tell of come in by `others`. Waits for a table that is not there yet, follows one that is made anew, and goes on without NFLOG while another process has the
/// group. Sockets are made in the network namespace of the runtime's threads.
///
/// # Errors
/// When the state directory cannot be used, or a task ended that should not.
pub async fn run(
    config: FlowsConfig,
    view: Arc<dyn LocalView>,
    stats: Arc<FlowsStats>,
    others: Others,
    shutdown: CancellationToken,
) -> Result<(), FlowsError> {
    let config = Arc::new(config);
    let files = StateFiles::open(&config.state_dir, &config.boot_id)?;
    let next_sequence = files.read_sequence()?;
    // A file that cannot be written is found out now, not when the numbers are needed.
    files.write_sequence(next_sequence)?;
    let mut outbox = Outbox::new(config.limits.records, next_sequence);
    let events = Events::take_back(&files, &mut outbox);

    let (packets_in, packets) = mpsc::channel(64);
    let (requests, requests_out) = mpsc::channel(1);
    let (parts_in, parts) = mpsc::channel(4);
    let (records_in, records) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    let audited_in = packets_in.clone();
    tasks.spawn(follow_nflog(config.nflog_group, packets_in, stats.clone(), shutdown.clone()));
    tasks.spawn_blocking(move || {
        read_on_request(requests_out, &parts_in);
        Ok(())
    });
    let reporter = Reporter {
        config: config.clone(),
        files: files.clone(),
        outbox,
        events,
        records,
        stats: stats.clone(),
        shutdown: shutdown.clone(),
        chance: || Uuid::new_v4().into_bytes()[0],
        kept_sequence: next_sequence,
    };
    tasks.spawn(reporter.run());
    tasks.spawn(pass_on(others.records, records_in.clone(), shutdown.clone()));
    tasks.spawn(pass_on(others.packets, audited_in, shutdown.clone()));
    let random_id = || FlowId(Uuid::new_v4().into_bytes());
    let mut aggregator = Aggregator::new(config.limits, config.timing, random_id, view, stats.clone());
    let journal = restore(&mut aggregator, &files);
    let collector = Collector {
        config,
        files,
        stats,
        packets,
        requests: Some(requests),
        parts,
        records: records_in,
        journal,
        shutdown: shutdown.clone(),
    };
    tasks.spawn(collector.run(aggregator));

    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or(Err(FlowsError::Task("a task of the flow collection")));
        let ended = if ended.is_ok() && !shutdown.is_cancelled() { Err(FlowsError::Task("a task of the flow collection")) } else { ended };
        if outcome.is_ok() && ended.is_err() {
            outcome = ended;
            // The first that ends stops the others, in order.
            shutdown.cancel();
        }
    }
    outcome
}

/// Hands on what other parts of the agent tell, until the shutdown; what they told until then goes too.
async fn pass_on<T>(
    mut others: mpsc::Receiver<Vec<T>>,
    records: mpsc::Sender<Vec<T>>,
    shutdown: CancellationToken,
) -> Result<(), FlowsError> {
    loop {
        let told = tokio::select! {
            biased;
            told = others.recv() => told,
            () = shutdown.cancelled() => return Ok(()),
        };
        match told {
            // A reporter that has ended is noticed by the JoinSet.
            Some(told) => drop(records.send(told).await),
            None => {
                shutdown.cancelled().await;
                return Ok(());
            }
        }
    }
}

/// Goes on where the agent before stopped; gives the number of the journal to go on in.
fn restore<I: FnMut() -> FlowId>(aggregator: &mut Aggregator<I>, files: &StateFiles) -> u64 {
    let cursor = files.read_cursor().unwrap_or_else(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "denied flows: starting anew, the cursor is of no use");
        None
    });
    let from = cursor.as_ref().map_or(0, |cursor| cursor.journal);
    let (journal, next) = files.read_journals(from).unwrap_or_else(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "denied flows: the journal is of no use, flows may be told again");
        (Vec::new(), from + 1)
    });
    if cursor.is_some() || !journal.is_empty() {
        let entries = cursor.as_ref().map_or(0, |cursor| cursor.entries.len());
        tracing::info!(entries, journal = journal.len(), "denied flows: going on where the agent before stopped");
    }
    if let Some(cursor) = cursor {
        aggregator.restore(Moment::now(), cursor);
    }
    aggregator.replay(Moment::now(), journal);
    next
}

/// Binds the group and hands on events; binds again when the socket fails.
async fn follow_nflog(
    group: u16,
    events: mpsc::Sender<Vec<PacketSeen>>,
    stats: Arc<FlowsStats>,
    shutdown: CancellationToken,
) -> Result<(), FlowsError> {
    let mut was_told = false;
    loop {
        let failed = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            failed = follow_socket(group, &events, &stats) => failed,
        };
        match failed {
            Ok(()) => return Ok(()),
            Err(error) if was_told => tracing::debug!(error = &error as &dyn std::error::Error, group, "NFLOG: still not bound"),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    group,
                    "NFLOG: not bound; flows are opened by the next read of the sets, without source port"
                );
                was_told = true;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = sleep(NFLOG_RETRY) => {}
        }
    }
}

/// Ends without an error when nobody takes events any more.
async fn follow_socket(group: u16, events: &mpsc::Sender<Vec<PacketSeen>>, stats: &FlowsStats) -> Result<(), FlowsError> {
    let socket = NflogSocket::open(group)?;
    let watch = |source| FlowsError::Socket { act: "watch", source };
    // SAFETY: the descriptor is the one that `NflogSocket` owns: the same for its whole life, open until it is dropped.
    let mut socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(|error| watch(error.into()))?;
    tracing::info!(group, "NFLOG: bound");
    loop {
        let mut ready = socket.readable_mut().await.map_err(watch)?;
        let mut batch = Vec::new();
        let has_more = ready.get_inner_mut().receive(NFLOG_BATCH, &mut batch, stats)?;
        if !has_more {
            ready.clear_ready();
        }
        if !batch.is_empty() && events.send(batch).await.is_err() {
            return Ok(());
        }
    }
}

/// Sets are read this often after their direction's counter stood still: as often as the control sum needs to be sure, and once more.
const READS_AFTER_CHANGE: u32 = 4;

/// What the reading thread hands on.
enum Part {
    /// The counters, and whose sets are read.
    Begin(TableReading, Vec<Direction>),
    Elements(Vec<ElementReading>),
    End {
        took: Duration,
        elements: usize,
    },
    /// There is no such table (yet).
    Absent,
    Failed(FlowsError),
}

/// Reads once for each request, until nobody asks any more.
fn read_on_request(mut requests: mpsc::Receiver<()>, parts: &mpsc::Sender<Part>) {
    let mut reader: Option<Reader> = None;
    let mut quiet = Quiet::default();
    while requests.blocking_recv().is_some() {
        let opened = match reader.take() {
            Some(reader) => Ok(reader),
            None => Reader::open(),
        };
        let last = match opened.and_then(|mut opened| {
            let last = read_once(&mut opened, &mut quiet, parts)?;
            reader = Some(opened);
            Ok(last)
        }) {
            Ok(last) => last,
            Err(error) => Part::Failed(error),
        };
        if parts.blocking_send(last).is_err() {
            return;
        }
    }
}

/// Which directions have nothing to tell: a full set takes the kernel two thirds of a second to list, and most of the time nothing is denied.
#[derive(Default)]
struct Quiet {
    handle: u64,
    counted: [(u64, u32); 2],
}

impl Quiet {
    /// The directions whose sets are to be read.
    fn changed(&mut self, table: &TableReading) -> Vec<Direction> {
        if self.handle != table.handle {
            *self = Self { handle: table.handle, counted: [(0, 0); 2] };
        }
        let directions = [Direction::Ingress, Direction::Egress].into_iter().zip(table.audited).zip(&mut self.counted);
        let is_due = |((direction, audited), (counted, reads)): ((Direction, u64), &mut (u64, u32))| {
            let sum = table.of(direction).denied.wrapping_add(audited);
            if *counted != sum {
                (*counted, *reads) = (sum, 0);
            }
            *reads += 1;
            (*reads <= READS_AFTER_CHANGE).then_some(direction)
        };
        directions.filter_map(is_due).collect()
    }
}

fn read_once(reader: &mut Reader, quiet: &mut Quiet, parts: &mpsc::Sender<Part>) -> Result<Part, FlowsError> {
    let began = Instant::now();
    let Some(table) = reader.table()? else { return Ok(Part::Absent) };
    let directions = quiet.changed(&table);
    // A receiver that is gone is noticed with the last part.
    let _ = parts.blocking_send(Part::Begin(table, directions.clone()));
    let mut elements = 0;
    for set in DeniedSet::all().into_iter().filter(|set| directions.contains(&set.direction)) {
        elements += reader.elements(set, |chunk| {
            let _ = parts.blocking_send(Part::Elements(chunk.to_vec()));
        })?;
    }
    Ok(Part::End { took: began.elapsed(), elements })
}

/// How long to wait after a read that took so long: at least the interval that is wanted, and longer where the sets are large.
fn pause_after(took: Duration, wanted: Duration) -> Duration {
    wanted.max(took.saturating_mul(READ_SHARE).min(LONGEST_INTERVAL))
}

/// What reading was like last time; a line is logged when it changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    NotYet,
    Works,
    Absent,
    Fails,
}

struct Collector {
    config: Arc<FlowsConfig>,
    files: StateFiles,
    stats: Arc<FlowsStats>,
    packets: mpsc::Receiver<Vec<PacketSeen>>,
    /// Gone once the collection stops: that ends the reading thread.
    requests: Option<mpsc::Sender<()>>,
    parts: mpsc::Receiver<Part>,
    records: mpsc::Sender<Vec<Record>>,
    /// The number of the journal that is written.
    journal: u64,
    shutdown: CancellationToken,
}

impl Collector {
    async fn run<I: FnMut() -> FlowId + Send>(mut self, mut aggregator: Aggregator<I>) -> Result<(), FlowsError> {
        let mut reading = Reading::NotYet;
        let (mut cursor_at, mut kept) = (Instant::now(), 0);
        let mut read_at = Instant::now();
        // A request is on its way until its last part came.
        let mut is_reading = false;
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break,
                // Log events first: they know the source port.
                packets = self.packets.recv() => match packets {
                    Some(packets) => packets.iter().for_each(|packet| aggregator.packet(Moment::now(), packet)),
                    None => break,
                },
                part = self.parts.recv() => match part {
                    Some(part) => {
                        if let Some(next_in) = self.take_part(&mut aggregator, part, &mut reading) {
                            is_reading = false;
                            read_at = Instant::now() + next_in;
                        }
                    }
                    None => break,
                },
                () = sleep_until(read_at.into()), if !is_reading => {
                    is_reading = true;
                    if let Some(requests) = &self.requests {
                        // One request at a time: there is always room.
                        let _ = requests.try_send(());
                    }
                }
            }
            self.hand_on(&mut aggregator).await;
            let pause = CURSOR_EVERY.max(CURSOR_EVERY_ENTRY * u32::try_from(aggregator.len()).unwrap_or(u32::MAX));
            if reading == Reading::Works && kept != aggregator.changes() && cursor_at.elapsed() >= pause {
                (cursor_at, kept) = (Instant::now(), aggregator.changes());
                self.keep_cursor(&aggregator).await;
            }
        }
        self.requests = None;
        while let Ok(packets) = self.packets.try_recv() {
            packets.iter().for_each(|packet| aggregator.packet(Moment::now(), packet));
        }
        self.hand_on(&mut aggregator).await;
        // Nothing was read: an earlier cursor knows more.
        if reading != Reading::NotYet {
            self.keep_cursor(&aggregator).await;
        }
        Ok(())
    }

    /// How long until the next read, after the last part of one.
    fn take_part<I: FnMut() -> FlowId>(&self, aggregator: &mut Aggregator<I>, part: Part, reading: &mut Reading) -> Option<Duration> {
        let now = Moment::now();
        let (is_now, took) = match part {
            Part::Begin(table, directions) => {
                aggregator.begin_read(table, &directions);
                return None;
            }
            Part::Elements(elements) => {
                aggregator.elements(now, &elements);
                return None;
            }
            Part::End { took, elements } => {
                aggregator.end_read(now);
                FlowsStats::set(&self.stats.elements, elements);
                if *reading != Reading::Works {
                    tracing::info!(elements, "denied flows: reading the table");
                }
                (Reading::Works, took)
            }
            Part::Absent => {
                aggregator.sweep(now);
                if *reading != Reading::Absent {
                    tracing::info!("denied flows: the table is not there; waiting for it");
                }
                (Reading::Absent, Duration::ZERO)
            }
            Part::Failed(error) => {
                aggregator.sweep(now);
                FlowsStats::add(&self.stats.read_failures, 1);
                if *reading != Reading::Fails {
                    tracing::error!(error = &error as &dyn std::error::Error, "denied flows: the table cannot be read");
                }
                (Reading::Fails, Duration::ZERO)
            }
        };
        *reading = is_now;
        Some(pause_after(took, self.config.read_interval))
    }

    async fn hand_on<I: FnMut() -> FlowId>(&self, aggregator: &mut Aggregator<I>) {
        let journal = aggregator.drain_journal();
        if !journal.is_empty() {
            let (files, number) = (self.files.clone(), self.journal);
            self.write("journal", move || files.append_journal(number, journal)).await;
        }
        let records = aggregator.drain();
        if !records.is_empty() {
            FlowsStats::add(&self.stats.records, u64::try_from(records.len()).unwrap_or(u64::MAX));
            // A reporter that has ended is noticed by the JoinSet.
            let _ = self.records.send(records).await;
        }
    }

    async fn keep_cursor<I: FnMut() -> FlowId>(&mut self, aggregator: &Aggregator<I>) {
        // What comes from now on goes into the next journal; the ones before go once the cursor is there.
        self.journal += 1;
        let (files, number) = (self.files.clone(), self.journal);
        let cursor = aggregator.cursor(Moment::now(), number);
        let keep = move || files.write_cursor(cursor).and_then(|()| files.drop_journals(number));
        self.write("cursor", keep).await;
    }

    async fn write(&self, what: &'static str, write: impl FnOnce() -> Result<(), FlowsError> + Send + 'static) {
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = &error as &dyn std::error::Error, what, "denied flows: not kept"),
            Err(_) => tracing::error!(what, "denied flows: not kept: the writer panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::DataplaneConfig;

    #[test]
    fn a_read_that_takes_long_comes_less_often_and_four_times_in_the_life_of_an_element() {
        let wanted = FlowsConfig::DEFAULT_READ_INTERVAL;
        let table = [(0, 500), (10, 500), (60, 3_000), (700, 35_000), (5_000, 60_000), (60_000, 60_000)];
        for (took, pause) in table {
            assert_eq!(pause_after(Duration::from_millis(took), wanted), Duration::from_millis(pause), "{took} ms");
        }
        // The read itself included, which is never longer than what it makes the next one wait unless it is bounded.
        let life = DataplaneConfig::default().denied_timeout;
        assert!(LONGEST_INTERVAL * 4 < life, "{life:?}");
    }
}
