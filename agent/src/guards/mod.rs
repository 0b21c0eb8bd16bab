//! What guards refused, told to the controller: the first frame of a kind at once, totals later. The rules are in `dataplane`.

mod follow;
mod frame;

use crate::dataplane::names::GuardReason;
use crate::dataplane::{GuardReader, GuardReading, OpenError};
use crate::flows::{FlowId, FlowsError, FlowsStats, LocalView, LoggedFrame, NflogSocket, Record};
use crate::local::LocalWorkloads;
use follow::{Behind, Follower, Key, Moment};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often the counters are read: an element lasts for at least four such times.
const READ_EVERY: Duration = Duration::from_secs(1);
/// How long to wait before the group is bound anew: another agent may be on its way out.
const RETRY: Duration = Duration::from_secs(1);
/// Datagrams taken before anything else is looked at.
const BATCH: usize = 256;

/// How the collection hangs together with the rest.
pub struct GuardLinks {
    /// What runs here.
    pub local: watch::Receiver<Arc<LocalWorkloads>>,
    /// The generation that is in force.
    pub view: Arc<dyn LocalView>,
    /// Where records go.
    pub records: mpsc::Sender<Vec<Record>>,
}

/// Collects until `shutdown`. Waits for tables that are not there yet, and goes on by the counters alone while another process has the NFLOG
/// group. Sockets are made in the network namespace of the runtime's threads.
pub async fn run(group: u16, links: GuardLinks, shutdown: CancellationToken) {
    let GuardLinks { local, view, records } = links;
    let (frames_in, mut frames) = mpsc::channel(64);
    let mut follower = Follower::new(|| FlowId(Uuid::new_v4().into_bytes()));
    let mut reader = None;
    let listen = follow_nflog(group, frames_in);
    tokio::pin!(listen);
    let mut ticks = tokio::time::interval(READ_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let told: Vec<Record> = tokio::select! {
            () = shutdown.cancelled() => return,
            () = &mut listen => return,
            Some(seen) = frames.recv() => {
                let Seen { key, first, length } = seen;
                let behind = behind(&local.borrow(), key.interface);
                follower.frame(now(), key, first, length, &behind, view.generation()).into_iter().collect()
            }
            _ = ticks.tick() => match read(&mut reader).await {
                Some(reading) => {
                    let local = local.borrow().clone();
                    follower.counted(now(), &reading, view.generation(), |index| behind(&local, index))
                }
                None => Vec::new(),
            },
        };
        if !told.is_empty() && records.send(told).await.is_err() {
            // The collection has ended, which stops the agent.
            return;
        }
    }
}

fn now() -> Moment {
    Moment { steady: Instant::now(), wall: SystemTime::now() }
}

fn behind(local: &LocalWorkloads, index: u32) -> Behind {
    let found = local.workloads.values().find_map(|workload| Some((workload, workload.interfaces.get(&index)?)));
    found.map_or_else(Behind::default, |(workload, interface)| Behind {
        interface: interface.name.to_string(),
        container: workload.id.container.to_string(),
    })
}

/// One reading; `None` when there is nothing to read or it failed, which is said once for each time that it begins to fail.
async fn read(reader: &mut Option<GuardReader>) -> Option<GuardReading> {
    let taken = reader.take();
    let read = move || -> Result<(GuardReader, Option<GuardReading>), OpenError> {
        let mut reader = match taken {
            Some(reader) => reader,
            None => GuardReader::open()?,
        };
        let reading = reader.read()?;
        Ok((reader, reading))
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok((again, reading))) => {
            *reader = Some(again);
            reading
        }
        Ok(Err(error)) => {
            tracing::warn!(reason = %error, "what the guards refused cannot be read; the kernel counts on");
            None
        }
        Err(_) => None,
    }
}

struct Seen {
    key: Key,
    first: crate::flows::FirstFrame,
    length: u64,
}

fn seen(frame: &LoggedFrame<'_>) -> Option<Seen> {
    let reason = GuardReason::of_prefix(frame.prefix)?;
    let key = Key { interface: frame.input?, reason, ether_type: frame::ether_type(frame.link)? };
    let length = u64::try_from(frame.payload.len()).unwrap_or(0);
    Some(Seen { key, first: frame::read(frame.link, frame.payload), length })
}

/// Binds the group and hands on what the kernel logs; binds again when the socket fails. Ends when nobody listens.
async fn follow_nflog(group: u16, frames: mpsc::Sender<Seen>) {
    let mut is_told = false;
    while !frames.is_closed() {
        match listen(group, &frames).await {
            Ok(()) => return,
            Err(error) if !is_told => {
                is_told = true;
                tracing::warn!(group, reason = %error, "frames that guards refuse are told by their counters alone, until the NFLOG group can be had");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn listen(group: u16, frames: &mpsc::Sender<Seen>) -> Result<(), FlowsError> {
    let stats = FlowsStats::default();
    let socket = NflogSocket::open(group)?;
    let failed = |source| FlowsError::Socket { act: "watch", source };
    // SAFETY: `NflogSocket` owns its descriptor, gives the same one for as long as it lives, and nobody closes it from elsewhere.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    let mut socket = socket.map_err(|error| failed(error.into()))?;
    loop {
        let mut batch = Vec::new();
        let mut ready = socket.readable_mut().await.map_err(failed)?;
        let more = ready.get_inner_mut().receive_frames(BATCH, &stats, |frame| batch.extend(seen(&frame)))?;
        if !more {
            ready.clear_ready();
        }
        drop(ready);
        for seen in batch {
            if frames.send(seen).await.is_err() {
                return Ok(());
            }
        }
    }
}
