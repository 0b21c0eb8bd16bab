//! Follows how much is denied, so that in a flood what is known to be denied is dropped before anything else is done with it.

use crate::enforce::{KernelGone, KernelThread};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often is looked.
const EVERY: Duration = Duration::from_millis(500);

/// Goes on until `shutdown`.
///
/// # Errors
/// When the dataplane's thread is gone.
pub async fn run(kernel: KernelThread, shutdown: CancellationToken) -> Result<(), KernelGone> {
    let mut has_failed = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(EVERY) => {}
        }
        let done = kernel.shield().await?;
        if let (Err(error), false) = (&done, has_failed) {
            tracing::warn!(error = error as &dyn std::error::Error, "what is known to be denied is dropped no sooner in a flood than else");
        }
        has_failed = done.is_err();
    }
}
