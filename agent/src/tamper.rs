//! Notices that somebody else changed our tables, has them put right, and tells what it was, who, and for how long.
//!
//! A notification says that somebody wrote; whether something is wrong is then found by comparing, so that our own `nft` (which has a
//! socket of its own) is no false alarm. Without a notification the same is compared in small steps: an owned table can still be
//! changed while it has no owner, and a notification can be lost.

use crate::dataplane::{ChangeWatch, Check, ForeignChange};
use crate::enforce::{Checked, EnforceStats, KernelGone, KernelThread};
use crate::flows::{NodeEventKind, NodeTold, OBJECTS_NAMED, Record};
use crate::session::NodeStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Between two steps of the background check; the whole is looked at once in some five minutes.
const STEP: Duration = Duration::from_secs(6);
/// Between two parts of one set: a tenth of the time goes into it.
const WITHIN: Duration = Duration::from_millis(200);
/// A repair that failed is tried again after so long.
const RETRY: Duration = Duration::from_secs(2);

/// Watches until `shutdown`. `at_start` is what was changed while no agent ran.
///
/// # Errors
/// When the dataplane's thread is gone.
pub async fn run(
    kernel: KernelThread,
    mut notifications: Option<AsyncFd<ChangeWatch>>,
    status: watch::Sender<NodeStatus>,
    records: mpsc::Sender<Vec<Record>>,
    stats: Arc<EnforceStats>,
    at_start: Vec<String>,
    shutdown: CancellationToken,
) -> Result<(), KernelGone> {
    let links = Links { kernel: &kernel, status: &status, records: &records, stats: &stats };
    if !at_start.is_empty() {
        put_right(&links, (ForeignChange::default(), at_start), None, &shutdown).await?;
    }
    let mut rest = STEP;
    loop {
        let (change, how) = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            change = heard(&mut notifications) => (change, Check::All),
            () = tokio::time::sleep(rest) => (ForeignChange::default(), Check::Step),
        };
        let seen = Instant::now();
        let is_notified = how == Check::All;
        let found = match kernel.check(how).await? {
            Ok(Checked { found, has_more }) => {
                rest = if has_more { WITHIN } else { STEP };
                found
            }
            Err(error) => {
                rest = STEP;
                tracing::warn!(reason = %error, "what the kernel holds cannot be compared");
                continue;
            }
        };
        if !found.is_empty() {
            put_right(&links, (change, found), is_notified.then_some(seen), &shutdown).await?;
        }
    }
}

async fn heard(notifications: &mut Option<AsyncFd<ChangeWatch>>) -> ForeignChange {
    let Some(watch) = notifications else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = watch.readable_mut().await else { return std::future::pending().await };
        match ready.get_inner_mut().changes() {
            Ok(Some(change)) => return change,
            Ok(None) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!(reason = %error, "notifications of nf_tables cannot be read; the background check goes on");
                return std::future::pending().await;
            }
        }
    }
}

/// Whom it concerns.
struct Links<'a> {
    kernel: &'a KernelThread,
    status: &'a watch::Sender<NodeStatus>,
    records: &'a mpsc::Sender<Vec<Record>>,
    stats: &'a EnforceStats,
}

/// `since` is when it was noticed, if that was at once.
async fn put_right(
    Links { kernel, status, records, stats }: &Links<'_>,
    (change, found): (ForeignChange, Vec<String>),
    since: Option<Instant>,
    shutdown: &CancellationToken,
) -> Result<(), KernelGone> {
    let principal = change.process.unwrap_or_default();
    tracing::error!(by = %principal, changed = ?found, "somebody else changed our tables; putting them right");
    stats.tampered.fetch_add(1, Ordering::Relaxed);
    set_whole(status, false);
    let (count, objects) = (found.len(), found.into_iter().take(OBJECTS_NAMED).collect::<Vec<_>>());
    let message = format!("somebody else changed the node's tables: {count} objects");
    let tampered = NodeTold { principal: principal.clone(), objects: objects.clone(), ..NodeTold::new(NodeEventKind::Tampered, message) };
    let mut told = vec![tampered.at(SystemTime::now())];
    loop {
        let failed = match kernel.repair().await? {
            Ok(_) => {
                stats.repairs.fetch_add(1, Ordering::Relaxed);
                let open = since.map(|since| since.elapsed());
                let message = match open {
                    Some(_) => "the node's tables are as they should be again",
                    None => "the node's tables are as they should be again; nobody knows for how long they were not",
                };
                tracing::warn!(by = %principal, ?open, "our tables are as they should be again");
                let repaired = NodeTold { principal, open, objects, ..NodeTold::new(NodeEventKind::Repaired, message) };
                told.push(repaired.at(SystemTime::now()));
                set_whole(status, true);
                // A collector that is gone means that the agent is stopping.
                let _ = records.send(told).await;
                return Ok(());
            }
            Err(error) => error,
        };
        stats.repair_failures.fetch_add(1, Ordering::Relaxed);
        tracing::error!(reason = %failed, retry_in = ?RETRY, "our tables could not be put right");
        if !told.is_empty() {
            let _ = records.send(std::mem::take(&mut told)).await;
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

fn set_whole(status: &watch::Sender<NodeStatus>, whole: bool) {
    status.send_if_modified(|status| std::mem::replace(&mut status.tables_whole, whole) != whole);
}
