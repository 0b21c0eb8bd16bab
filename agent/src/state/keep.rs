//! The task that writes the state down after each change.

use super::{Kept, StateError, StateFile};
use crate::local::Warning;
use crate::session::{Applied, Committed, NodeStatus};
use firebreak_proto::workload::DeclaredWorkload;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How the task hangs together with the rest.
#[derive(Debug)]
pub struct KeepLinks {
    /// What the controller wants.
    pub committed: watch::Receiver<Option<Arc<Committed>>>,
    /// How it fared in the kernel: only what the kernel took is written.
    pub applied: watch::Receiver<Option<Arc<Applied>>>,
    /// What manifests declare for this node.
    pub declared: watch::Receiver<Option<Arc<Vec<DeclaredWorkload>>>>,
    /// What people should know of it.
    pub status: watch::Sender<NodeStatus>,
}

/// Between two writes at least so many times as long as the last one took: a large state under many changes must not keep a core busy.
const REST: u32 = 20;
/// A failed write is tried again after so long.
const RETRY: Duration = Duration::from_secs(10);
const CODE: &str = "StateNotKept";

/// Writes the latest state until `shutdown`, and once more then when it is behind.
pub async fn keep(file: StateFile, mut kept: Kept, mut links: KeepLinks, shutdown: CancellationToken) {
    let mut behind = false;
    loop {
        behind |= take(&mut kept, &mut links);
        let mut rest = Duration::ZERO;
        if behind {
            let begun = Instant::now();
            let written = write(&file, kept.clone()).await;
            behind = written.is_err();
            rest = if behind { RETRY } else { begun.elapsed() * REST };
            tell(&links.status, written);
        }
        let stopped = tokio::select! {
            () = shutdown.cancelled() => true,
            () = tokio::time::sleep(rest) => false,
        };
        let stopped = stopped
            || tokio::select! {
                () = shutdown.cancelled() => true,
                () = changed(&mut links.applied), if !behind => false,
                () = changed(&mut links.declared), if !behind => false,
                () = std::future::ready(()), if behind => false,
            };
        if stopped {
            if take(&mut kept, &mut links) || behind {
                tell(&links.status, write(&file, kept).await);
            }
            return;
        }
    }
}

/// Takes up what is newer, and says whether something is.
fn take(kept: &mut Kept, links: &mut KeepLinks) -> bool {
    let mut newer = false;
    let applied = links.applied.borrow_and_update().clone();
    let committed = links.committed.borrow().clone();
    if let (Some(applied), Some(committed)) = (applied, committed)
        && applied.failure.is_none()
        && (applied.epoch.as_str(), applied.generation) == (committed.epoch.as_str(), committed.generation)
        && (kept.committed.epoch.as_str(), kept.committed.generation) != (committed.epoch.as_str(), committed.generation)
    {
        kept.committed = committed;
        newer = true;
    }
    if let Some(declared) = links.declared.borrow_and_update().clone()
        && kept.declared != declared
    {
        kept.declared = declared;
        newer = true;
    }
    newer
}

async fn write(file: &StateFile, kept: Kept) -> Result<usize, String> {
    let writer = file.clone();
    match tokio::task::spawn_blocking(move || writer.store(&kept)).await {
        Ok(written) => written.map_err(|error: StateError| error.to_string()),
        Err(_) => Err(format!("writing {}: the writer panicked", file.path().display())),
    }
}

fn tell(status: &watch::Sender<NodeStatus>, written: Result<usize, String>) {
    let warning = match written {
        Ok(bytes) => {
            tracing::debug!(bytes, "state kept");
            None
        }
        Err(reason) => {
            tracing::error!(%reason, "the state is not kept; after a reboot without a controller this node enforces an older one");
            Some(Warning::new(CODE, format!("{reason}; after a reboot without a controller this node enforces an older state")))
        }
    };
    status.send_if_modified(|status| {
        let before = status.warnings.clone();
        status.warnings.retain(|warning| warning.code != CODE);
        status.warnings.extend(warning);
        status.warnings != before
    });
}

/// Returns when there is something that was not looked at. A sender that is gone never changes again.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
