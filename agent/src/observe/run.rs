//! The task that follows orders, keeps the status, and tells of begin and end.

use super::{Answered, Change, ObserveRecord, Observing, RecordFile, Refused, Request, note};
use crate::dataplane::ObserveElement;
use crate::enforce::{KernelGone, KernelThread};
use crate::flows::{NodeEventKind, NodeTold, Record};
use crate::local::Warning;
use crate::session::NodeStatus;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How the task hangs together with the rest.
#[derive(Debug)]
pub struct ObserveLinks {
    /// Orders.
    pub requests: mpsc::Receiver<Request>,
    /// What people should know of it.
    pub status: watch::Sender<NodeStatus>,
    /// Where events go.
    pub records: mpsc::Sender<Vec<Record>>,
    /// Who asked, across restarts.
    pub file: RecordFile,
}

const CODE: &str = "Observing";
/// The kernel ends it by its own clock: asked a moment later, the element is gone.
const SLACK: Duration = Duration::from_millis(50);

/// Follows orders until `shutdown`, which ends nothing: the kernel goes on.
///
/// # Errors
/// When the dataplane's thread is gone.
pub async fn run(kernel: KernelThread, mut links: ObserveLinks, shutdown: CancellationToken) -> Result<(), KernelGone> {
    let mut ends = resume(&kernel, &mut links).await?;
    loop {
        let ended = async {
            match ends {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = ended => ends = look(&kernel, &mut links).await?,
            request = links.requests.recv() => match request {
                Some(request) => ends = follow(&kernel, &mut links, request, ends).await?,
                None => {
                    shutdown.cancelled().await;
                    return Ok(());
                }
            },
        }
    }
}

/// What an earlier agent, or nobody, left behind.
async fn resume(kernel: &KernelThread, links: &mut ObserveLinks) -> Result<Option<Instant>, KernelGone> {
    let record = links.file.read();
    let found = kernel.observing().await?.unwrap_or_else(|error| {
        tracing::error!(reason = %error, "it cannot be read whether the node observes");
        None
    });
    match (found, record) {
        (Some(ObserveElement { left, note }), record) => {
            let until = SystemTime::now() + left;
            // The element decides; the file knows the words that do not fit into a comment.
            let (principal, reason, told) = match record {
                Some(record) => (record.principal, record.reason, record.told),
                None => match note.split_once(": ") {
                    Some((principal, reason)) => (principal.to_owned(), reason.to_owned(), false),
                    None => (String::new(), note, false),
                },
            };
            let observing = Observing { until, principal, reason };
            tracing::warn!(?left, principal = %observing.principal, reason = %observing.reason, "this node observes; it did so before the agent's start");
            if !told {
                tell(links, &observing, NodeEventKind::ObserveBegun, "this node observes since before its agent's start").await;
            }
            show(links, Some(&observing));
            Ok(Some(Instant::now() + left + SLACK))
        }
        (None, Some(record)) => {
            let observing = Observing { until: record.until(), principal: record.principal, reason: record.reason };
            tell(links, &observing, NodeEventKind::ObserveEnded, "this node stopped observing while no agent ran").await;
            show(links, None);
            Ok(None)
        }
        (None, None) => Ok(None),
    }
}

/// The time is over.
async fn look(kernel: &KernelThread, links: &mut ObserveLinks) -> Result<Option<Instant>, KernelGone> {
    if let Ok(Some(ObserveElement { left, note: _ })) = kernel.observing().await? {
        return Ok(Some(Instant::now() + left + SLACK));
    }
    let before = links.status.borrow().observing.clone();
    if let Some(observing) = before {
        tell(links, &observing, NodeEventKind::ObserveEnded, "the time is over; what policy denies is denied again").await;
    }
    show(links, None);
    kernel.judge_again();
    Ok(None)
}

async fn follow(
    kernel: &KernelThread,
    links: &mut ObserveLinks,
    request: Request,
    ends: Option<Instant>,
) -> Result<Option<Instant>, KernelGone> {
    let Request { change, principal, reason, order, reply } = request;
    let wanted = match change {
        Change::Begin(duration) => Some((duration, note(&principal, &reason))),
        Change::End => None,
    };
    let done = match change.check(&reason) {
        Ok(()) => kernel.observe(wanted).await?.map_err(|error| Refused::Kernel(error.to_string())),
        Err(refused) => Err(refused),
    };
    let (answer, ends) = match (done, change) {
        (Err(refused), _) => {
            tracing::error!(%principal, reason = %refused, "an order to observe was refused");
            (Err(refused), ends)
        }
        (Ok(()), Change::Begin(duration)) => {
            let observing = Observing { until: SystemTime::now() + duration, principal, reason };
            show(links, Some(&observing));
            tell(links, &observing, NodeEventKind::ObserveBegun, "what policy denies is let through and told").await;
            (Ok(Some(observing)), Some(Instant::now() + duration + SLACK))
        }
        (Ok(()), Change::End) => {
            let before = links.status.borrow().observing.clone();
            if before.is_some() {
                let observing = Observing { until: SystemTime::now(), principal, reason };
                tell(links, &observing, NodeEventKind::ObserveEnded, "ended by order; what policy denies is denied again").await;
            }
            show(links, None);
            kernel.judge_again();
            (Ok(None), None)
        }
    };
    if let Some(order) = order {
        // After what it came to: a report that answers the order has that too.
        let refused = answer.as_ref().err().map(ToString::to_string);
        links.status.send_modify(|status| status.answered = Some(Answered { order, refused }));
    }
    if let Some(reply) = reply {
        // Whoever asked may have gone; it is done all the same.
        let _ = reply.send(answer);
    }
    Ok(ends)
}

/// Into the status, and onto disk.
fn show(links: &ObserveLinks, observing: Option<&Observing>) {
    links.status.send_if_modified(|status| {
        let before = status.clone();
        status.observing = observing.cloned();
        status.warnings.retain(|warning| warning.code != CODE);
        status.warnings.extend(observing.map(|observing| {
            let Observing { until, principal, reason } = observing;
            let until = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            Warning::new(CODE, format!("what policy denies is LET THROUGH until second {until} of 1970 by order of {principal}: {reason}"))
        }));
        *status != before
    });
    let record = observing.map(|observing| ObserveRecord::of(observing, true));
    if let Err(error) = links.file.write(record.as_ref()) {
        tracing::warn!(reason = %error, "it is not kept who asked to observe; the kernel's element says it too");
    }
}

async fn tell(links: &ObserveLinks, observing: &Observing, kind: NodeEventKind, message: &str) {
    let Observing { until, principal, reason } = observing.clone();
    tracing::warn!(%principal, %reason, "observe: {message}");
    let told = NodeTold { principal, reason, until: Some(until), ..NodeTold::new(kind, message) };
    // A collector that is gone means that the agent is stopping.
    let _ = links.records.send(vec![told.at(SystemTime::now())]).await;
}
