//! Sends records over a connection of its own, at least once, in sequence order.

use super::config::FlowsConfig;
use super::cursor::StateFiles;
use super::error::FlowsError;
use super::outbox::Outbox;
use super::record::Record;
use super::stats::FlowsStats;
use firebreak_proto::v1;
use firebreak_proto::v1::flow_service_client::FlowServiceClient;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A controller that acknowledges nothing for this long is given up and dialled again.
const ACK_TIMEOUT: Duration = Duration::from_secs(15);
/// How often an idle connection is asked for a sign of life, and how long it may take.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long records may still be delivered after the stop.
const DRAIN: Duration = Duration::from_secs(2);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(5);

/// Owns the outbox; ends when the record channel is closed and everything is acknowledged, or [`DRAIN`] after the shutdown.
pub(crate) struct Reporter {
    pub(crate) config: Arc<FlowsConfig>,
    pub(crate) files: StateFiles,
    pub(crate) outbox: Outbox,
    pub(crate) records: mpsc::Receiver<Vec<Record>>,
    pub(crate) stats: Arc<FlowsStats>,
    pub(crate) shutdown: CancellationToken,
    /// A random byte for each wait.
    pub(crate) chance: fn() -> u8,
    /// Up to here the sequence file covers what is sent.
    pub(crate) kept_sequence: u64,
}

/// Why a session ended.
enum Ended {
    /// Nothing is left to do.
    Stopped,
    /// It is worth another try. Says why, and whether the controller had taken anything.
    Lost { reason: String, had_progress: bool },
}

/// What happened next within a session.
enum Event {
    Ack(Result<Option<v1::FlowAck>, tonic::Status>),
    Records(Option<Vec<Record>>),
    Room(Result<mpsc::OwnedPermit<v1::FlowMessage>, String>),
    AckLate,
}

impl Reporter {
    /// Runs to the end and keeps what was not acknowledged.
    ///
    /// # Errors
    /// When what was not acknowledged cannot be kept.
    pub(crate) async fn run(mut self) -> Result<(), FlowsError> {
        let shutdown = self.shutdown.clone();
        let no_more_time = async {
            shutdown.cancelled().await;
            sleep(DRAIN).await;
        };
        // Whatever the sessions wait for may be left in the middle: the outbox has every record until it is acknowledged.
        tokio::select! {
            () = self.sessions() => {}
            () = no_more_time => {}
        }
        while let Ok(records) = self.records.try_recv() {
            self.take(records);
        }
        let left = self.outbox.unacknowledged();
        if left.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            records = left.len(),
            "flow reports: stopped with records that the controller has not acknowledged; kept for the next start"
        );
        self.files.write_unacked(left)
    }

    /// One session after the other, until nothing is left to do.
    async fn sessions(&mut self) {
        let mut wait = BACKOFF_FIRST;
        let mut was_told = false;
        loop {
            match self.session().await {
                Ended::Stopped => return,
                // A controller that is away for a day is worth one line.
                Ended::Lost { reason, had_progress: false } if was_told => tracing::debug!(%reason, "flow reports: still no connection"),
                Ended::Lost { reason, had_progress } => {
                    was_told = true;
                    wait = if had_progress { BACKOFF_FIRST } else { wait };
                    tracing::warn!(%reason, waiting = self.outbox.len(), retry_in = ?wait, "flow reports: no connection to the controller");
                }
            }
            let pause = jittered(wait, (self.chance)());
            if self.take_records_until(sleep(pause)).await.is_none() {
                return;
            }
            wait = (wait * 2).min(BACKOFF_MOST);
        }
    }

    /// Takes records while something else goes on. `None` when no more will come and none waits.
    async fn take_records_until<T>(&mut self, done: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(done);
        let mut is_closed = false;
        loop {
            tokio::select! {
                output = &mut done => return Some(output),
                records = self.records.recv(), if !is_closed => match records {
                    Some(records) => self.take(records),
                    None if self.outbox.is_empty() => return None,
                    None => is_closed = true,
                },
            }
        }
    }

    fn take(&mut self, records: Vec<Record>) {
        for record in records {
            self.outbox.push(record);
        }
        self.stats.records_dropped.store(self.outbox.dropped_total(), std::sync::atomic::Ordering::Relaxed);
        FlowsStats::set(&self.stats.records_waiting, self.outbox.len());
    }

    async fn session(&mut self) -> Ended {
        self.outbox.rewind();
        let lost = |reason: String| Ended::Lost { reason, had_progress: false };
        let connecting = connect(self.config.clone());
        let (sender, mut acks) = match self.take_records_until(timeout(CONNECT_TIMEOUT, connecting)).await {
            None => return Ended::Stopped,
            Some(Err(_)) => return lost(format!("connect: no answer within {CONNECT_TIMEOUT:?}")),
            Some(Ok(Err(reason))) => return lost(reason),
            Some(Ok(Ok(connection))) => connection,
        };
        FlowsStats::add(&self.stats.connections, 1);
        tracing::info!(waiting = self.outbox.len(), "flow reports: connected");
        let mut had_progress = false;
        let mut is_closed = false;
        let mut acked_at = Instant::now();
        loop {
            if is_closed && self.outbox.is_empty() {
                return Ended::Stopped;
            }
            let event = tokio::select! {
                biased;
                ack = acks.message() => Event::Ack(ack),
                records = self.records.recv(), if !is_closed => Event::Records(records),
                room = sender.clone().reserve_owned(), if self.outbox.has_batch() => Event::Room(room.map_err(|_| "the stream is closed".to_owned())),
                () = sleep_until(acked_at + ACK_TIMEOUT), if self.outbox.awaits_acknowledgement() => Event::AckLate,
            };
            let failed = match event {
                Event::Ack(Ok(Some(ack))) => match self.acknowledge(ack.sequence) {
                    Ok(()) => {
                        (had_progress, acked_at) = (true, Instant::now());
                        continue;
                    }
                    Err(reason) => reason,
                },
                Event::Ack(Ok(None)) => "the controller ended the stream".to_owned(),
                Event::Ack(Err(status)) => {
                    // What was given up is not sent again: the next try is another one.
                    had_progress |= self.refuse(&status);
                    status.to_string()
                }
                Event::Records(Some(records)) => {
                    self.take(records);
                    continue;
                }
                Event::Records(None) => {
                    is_closed = true;
                    continue;
                }
                Event::Room(Ok(permit)) => {
                    if !self.outbox.awaits_acknowledgement() {
                        acked_at = Instant::now();
                    }
                    self.send(permit).await;
                    continue;
                }
                Event::Room(Err(reason)) => reason,
                Event::AckLate => format!("nothing acknowledged for {ACK_TIMEOUT:?}"),
            };
            return Ended::Lost { reason: failed, had_progress };
        }
    }

    fn acknowledge(&mut self, sequence: u64) -> Result<(), String> {
        let freed = self
            .outbox
            .acknowledge(sequence)
            .ok_or_else(|| format!("the controller acknowledged sequence {sequence}, which was not sent"))?;
        FlowsStats::add(&self.stats.records_acked, u64::try_from(freed).unwrap_or(u64::MAX));
        FlowsStats::set(&self.stats.records_waiting, self.outbox.len());
        Ok(())
    }

    /// Gives up a record that the controller refuses: sent again for ever it would hold up all the others. Says whether anything changed.
    fn refuse(&mut self, status: &tonic::Status) -> bool {
        if status.code() != tonic::Code::InvalidArgument || !status.message().starts_with(firebreak_proto::REFUSED_RECORD) {
            return false;
        }
        if self.outbox.refused(status.message(), SystemTime::now()) {
            FlowsStats::add(&self.stats.records_refused, 1);
            tracing::error!(
                reason = status.message(),
                "flow reports: the controller refuses a record; it is given up, and reported as lost"
            );
        }
        true
    }

    /// Sends one batch; first the sequence file covers it, so that no later agent gives its numbers to other records.
    async fn send(&mut self, permit: mpsc::OwnedPermit<v1::FlowMessage>) {
        let records = self.outbox.next_batch(SystemTime::now());
        if records.is_empty() {
            return;
        }
        let next = self.outbox.next_sequence();
        if next > self.kept_sequence {
            let files = self.files.clone();
            match tokio::task::spawn_blocking(move || files.write_sequence(next)).await {
                Ok(Ok(())) => self.kept_sequence = next,
                // Reports matter more than the number of a later agent; that one starts at the number of the file and its first records
                // may be taken for duplicates.
                Ok(Err(error)) => tracing::error!(error = &error as &dyn std::error::Error, "flow reports: sequence not kept"),
                Err(_) => tracing::error!("flow reports: sequence not kept: the writer panicked"),
            }
        }
        permit.send(message(v1::flow_message::Message::Batch(v1::FlowBatch { records })));
    }
}

type Connection = (mpsc::Sender<v1::FlowMessage>, Streaming<v1::FlowAck>);

async fn connect(config: Arc<FlowsConfig>) -> Result<Connection, String> {
    // A connection that died in silence is found out before a flow is delayed by it.
    let endpoint = config.endpoint.clone().http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE).keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|error| describe(&error))?;
    let (sender, receiver) = mpsc::channel(4);
    let hello =
        v1::FlowHello { node: config.node.as_str().to_owned(), instance_id: config.instance_id.clone(), boot_id: config.boot_id.clone() };
    sender.send(message(v1::flow_message::Message::Hello(hello))).await.map_err(|error| error.to_string())?;
    let response = FlowServiceClient::new(channel).report(ReceiverStream::new(receiver)).await.map_err(|status| status.to_string())?;
    Ok((sender, response.into_inner()))
}

fn message(message: v1::flow_message::Message) -> v1::FlowMessage {
    v1::FlowMessage { message: Some(message) }
}

/// An error with its causes: tonic's own text says only "transport error".
fn describe(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Between half of the wait and all of it, so that agents that lost one controller do not come back in one moment.
fn jittered(wait: Duration, chance: u8) -> Duration {
    wait / 2 + wait * u32::from(chance) / 510
}

#[cfg(test)]
#[path = "reporter_tests.rs"]
mod tests;
