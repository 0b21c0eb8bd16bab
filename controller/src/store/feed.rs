//! Following the store: every revision once, in order, without gaps, at the follower's own pace.

use super::Store;
use super::types::{Committed, StoreError};
use firebreak_policy::model::Revision;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// A follower of the store. It holds a bounded number of revisions: one that is slow reads on from the database's history, and gets
/// [`StoreError::Expired`] when it is behind even that.
#[derive(Debug)]
pub struct ChangeFeed {
    store: Store,
    live: broadcast::Receiver<Arc<Committed>>,
    backlog: VecDeque<Arc<Committed>>,
    at: Revision,
}

impl ChangeFeed {
    pub(super) fn new(store: Store, after: Revision) -> Self {
        let live = store.subscribe();
        Self { store, live, backlog: VecDeque::new(), at: after }
    }

    /// The revision that was handed out last.
    pub fn position(&self) -> Revision {
        self.at
    }

    /// The next revision; waits for it. May be cancelled: nothing is lost.
    ///
    /// Errors: [`StoreError::Expired`] or [`StoreError::Future`] when the feed cannot go on from where it stands, [`StoreError::Closed`].
    pub async fn next(&mut self) -> Result<Arc<Committed>, StoreError> {
        loop {
            if let Some(committed) = self.backlog.pop_front() {
                self.at = committed.revision;
                return Ok(committed);
            }
            let received = match self.live.try_recv() {
                Err(TryRecvError::Empty) if self.store.revision() == self.at => self.live.recv().await.map(Some),
                Err(TryRecvError::Empty | TryRecvError::Lagged(_)) => Ok(None),
                Err(TryRecvError::Closed) => Err(RecvError::Closed),
                Ok(committed) => Ok(Some(committed)),
            };
            match received {
                Ok(Some(committed)) if committed.revision <= self.at => {}
                Ok(Some(committed)) if committed.revision.0 == self.at.0 + 1 => {
                    self.at = committed.revision;
                    return Ok(committed);
                }
                Ok(Some(_) | None) | Err(RecvError::Lagged(_)) => self.backlog = self.store.history(self.at).await?.into(),
                Err(RecvError::Closed) => return Err(StoreError::Closed),
            }
        }
    }
}
