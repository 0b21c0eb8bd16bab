//! The newest flow records, numbered, and everybody who follows them.

use crate::api::live::FlowTap;
use firebreak_proto::v1;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;

/// Records that a slow follower may be behind before it is told that it lost some.
const FOLLOWER_QUEUE: usize = 16_384;

/// Keeps the newest records and hands new ones to followers. Clones share it.
#[derive(Clone, Debug)]
pub struct Ring {
    kept: Arc<Mutex<Kept>>,
    followers: broadcast::Sender<Arc<v1::AttributedFlow>>,
}

#[derive(Debug)]
struct Kept {
    records: VecDeque<Arc<v1::AttributedFlow>>,
    capacity: usize,
    next_cursor: u64,
}

impl Ring {
    /// A ring that keeps so many records. Cursors begin at `first_cursor`; a rising base (the start time) keeps the cursors of two runs apart.
    pub fn new(capacity: usize, first_cursor: u64) -> Self {
        let (followers, _) = broadcast::channel(FOLLOWER_QUEUE);
        let kept =
            Kept { records: VecDeque::with_capacity(capacity.min(1024)), capacity: capacity.max(1), next_cursor: first_cursor.max(1) };
        Self { kept: Arc::new(Mutex::new(kept)), followers }
    }

    /// Numbers the record, keeps it, and hands it on. Order of cursors is the order in which followers see records.
    pub fn push(&self, mut record: v1::AttributedFlow) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        record.cursor = kept.next_cursor;
        kept.next_cursor += 1;
        let record = Arc::new(record);
        if kept.records.len() == kept.capacity {
            kept.records.pop_front();
        }
        kept.records.push_back(Arc::clone(&record));
        // Nobody following is no error. Sent under the lock, so that cursors rise.
        let _ = self.followers.send(record);
    }
}

impl FlowTap for Ring {
    fn recent(&self, after: u64, limit: usize) -> Vec<Arc<v1::AttributedFlow>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest: Vec<_> = kept.records.iter().rev().take_while(|record| record.cursor > after).take(limit).cloned().collect();
        newest.reverse();
        newest
    }

    fn subscribe(&self) -> broadcast::Receiver<Arc<v1::AttributedFlow>> {
        self.followers.subscribe()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_records_are_kept_in_order_and_followers_see_each_once() {
        let ring = Ring::new(3, 1);
        let mut follower = ring.subscribe();
        for sequence in 1..=5 {
            ring.push(v1::AttributedFlow { sequence, ..Default::default() });
        }
        let sequences = |records: Vec<Arc<v1::AttributedFlow>>| records.iter().map(|it| (it.cursor, it.sequence)).collect::<Vec<_>>();
        assert_eq!(sequences(ring.recent(0, 10)), [(3, 3), (4, 4), (5, 5)]);
        assert_eq!(sequences(ring.recent(0, 2)), [(4, 4), (5, 5)]);
        assert_eq!(sequences(ring.recent(4, 10)), [(5, 5)]);
        let seen: Vec<u64> = std::iter::from_fn(|| follower.try_recv().ok()).map(|it| it.sequence).collect();
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }
}
