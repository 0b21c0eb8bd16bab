//! The newest flow records, numbered, and everybody who follows them.

use super::kept::Kept;
use crate::api::live::FlowTap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;

/// Records that a slow follower may be behind before it is told that it lost some.
const FOLLOWER_QUEUE: usize = 16_384;

/// Keeps the newest records and hands new ones to followers. Clones share it.
#[derive(Clone, Debug)]
pub struct Ring {
    kept: Arc<Mutex<Newest>>,
    followers: broadcast::Sender<Arc<Kept>>,
}

#[derive(Debug)]
struct Newest {
    records: VecDeque<Arc<Kept>>,
    capacity: usize,
    next_cursor: u64,
}

impl Ring {
    /// A ring that keeps so many records. Cursors begin at `first_cursor`; a rising base (the start time) keeps the cursors of two runs apart.
    pub fn new(capacity: usize, first_cursor: u64) -> Self {
        let (followers, _) = broadcast::channel(FOLLOWER_QUEUE);
        let kept =
            Newest { records: VecDeque::with_capacity(capacity.min(1024)), capacity: capacity.max(1), next_cursor: first_cursor.max(1) };
        Self { kept: Arc::new(Mutex::new(kept)), followers }
    }

    /// Numbers the records, keeps them, and hands them on. Order of cursors is the order in which followers see records.
    pub fn push(&self, records: Vec<Kept>) {
        let mut gone = Vec::with_capacity(records.len());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever begins to follow after this looks at the kept ones after it too.
        let followed = self.followers.receiver_count() > 0;
        for mut record in records {
            record.cursor = kept.next_cursor;
            kept.next_cursor += 1;
            let record = Arc::new(record);
            if kept.records.len() == kept.capacity {
                gone.extend(kept.records.pop_front());
            }
            kept.records.push_back(Arc::clone(&record));
            if followed {
                // That the last has gone since is no error. Sent under the lock, so that cursors rise.
                let _ = self.followers.send(record);
            }
        }
        // Freed when nobody waits for it.
        drop(kept);
        drop(gone);
    }
}

impl FlowTap for Ring {
    fn recent(&self, after: u64, limit: usize) -> Vec<Arc<Kept>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest: Vec<_> = kept.records.iter().rev().take_while(|record| record.cursor > after).take(limit).cloned().collect();
        newest.reverse();
        newest
    }

    fn subscribe(&self) -> broadcast::Receiver<Arc<Kept>> {
        self.followers.subscribe()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::flows::kept::{Reporter, What};
    use firebreak_proto::v1;

    fn record(sequence: u64) -> Kept {
        Kept {
            cursor: 0,
            reporter: Arc::new(Reporter { node: "n1".into(), instance: String::new(), boot_id: String::new() }),
            sequence,
            time: v1::Stamp::default(),
            revision: 0,
            what: What::Lost(v1::LostEvent::default()),
            source: None,
            destination: None,
            reason: None,
        }
    }

    #[test]
    fn the_newest_records_are_kept_in_order_and_followers_see_each_once() {
        let ring = Ring::new(3, 1);
        let mut follower = ring.subscribe();
        ring.push((1..=2).map(record).collect());
        ring.push((3..=5).map(record).collect());
        let sequences = |records: Vec<Arc<Kept>>| records.iter().map(|it| (it.cursor, it.sequence)).collect::<Vec<_>>();
        assert_eq!(sequences(ring.recent(0, 10)), [(3, 3), (4, 4), (5, 5)]);
        assert_eq!(sequences(ring.recent(0, 2)), [(4, 4), (5, 5)]);
        assert_eq!(sequences(ring.recent(4, 10)), [(5, 5)]);
        let seen: Vec<u64> = std::iter::from_fn(|| follower.try_recv().ok()).map(|it| it.sequence).collect();
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }
}
