//! Connection after connection.

use super::stream::converse;
use super::{Held, SessionConfig, SessionError, SessionLinks};
use tokio_util::sync::CancellationToken;

/// Keeps a session with the controller until `shutdown`. Never gives up: without a controller the node goes on enforcing what
/// it holds; `held` is what it holds at the start. May be cancelled at any point; what was received whole stays received.
pub async fn run(config: SessionConfig, mut held: Held, mut links: SessionLinks, shutdown: CancellationToken) {
    let mut attempt = 0;
    loop {
        let mut progress = false;
        let ended = tokio::select! {
            () = shutdown.cancelled() => return,
            ended = converse(&config, &mut links, &mut held, &mut progress) => ended,
        };
        let Err(error) = ended;
        if progress {
            attempt = 0;
        }
        match &error {
            // All of it is asked for again. The kernel keeps what it has until a complete state is there.
            SessionError::Held(_) => held = Held::nothing(config.node.clone()),
            SessionError::Connect { .. } | SessionError::Refused(_) | SessionError::Closed | SessionError::Unexpected { .. } => {
                held.discard_draft();
            }
        }
        if error.needs_people() {
            attempt = attempt.max(5);
        }
        let wait = config.backoff.wait(attempt, &config.instance_id);
        tracing::error!(reason = %error, retry_in = ?wait, "no session with the controller; the node goes on enforcing what it holds");
        attempt = attempt.saturating_add(1);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
