//! Changes of objects as bytes, each made once and shared by every stream that it goes to.

use super::difference::Oversized;
use super::frame::piece;
use bytes::Bytes;
use firebreak_proto::hash::{ContentHash, ObjectKey};
use firebreak_proto::v1;
use prometheus_client::metrics::counter::Counter;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What is kept at most. What is dropped is encoded anew when it is asked for again.
const MOST_BYTES: usize = 64 << 20;
const MOST_CHANGES: usize = 16_384;

/// From which content to which: equal ones are equal bytes, whoever gets them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Step {
    pub(crate) key: ObjectKey,
    /// What the agent holds, when it is known member by member; `None` sends the object whole.
    pub(crate) from: Option<ContentHash>,
    pub(crate) to: ContentHash,
}

/// The pieces of one change, or why it does not fit.
type Pieces = Result<Arc<[Bytes]>, Oversized>;

/// Encoded changes of the last time. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Encoded {
    kept: Arc<Mutex<Kept>>,
    /// Changes that were encoded.
    pub(crate) made: Counter,
    /// Times that one was sent which somebody else had been sent before.
    pub(crate) shared: Counter,
}

#[derive(Debug, Default)]
struct Kept {
    steps: HashMap<Step, Arc<OnceLock<Pieces>>>,
    order: VecDeque<Step>,
    bytes: usize,
}

impl Encoded {
    /// The pieces of a step: those that were made before, or those that `make` gives. Others that ask for the same meanwhile wait for them.
    ///
    /// # Errors
    /// What `make` says.
    pub(crate) fn pieces(&self, step: Step, make: impl FnOnce() -> Result<Vec<v1::ObjectUpdate>, Oversized>) -> Pieces {
        let place = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            match kept.steps.get(&step) {
                Some(place) => Arc::clone(place),
                None => {
                    let place = Arc::default();
                    kept.steps.insert(step.clone(), Arc::clone(&place));
                    kept.order.push_back(step.clone());
                    place
                }
            }
        };
        let mut is_new = false;
        let pieces = place.get_or_init(|| {
            is_new = true;
            make().map(|updates| updates.iter().map(piece).collect())
        });
        if is_new {
            self.made.inc();
            let bytes = pieces.as_ref().map_or(0, |pieces| pieces.iter().map(Bytes::len).sum());
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            // One that was dropped while it was being made is nobody's to be dropped again.
            let is_kept = kept.steps.get(&step).is_some_and(|kept| Arc::ptr_eq(kept, &place));
            kept.make_room(if is_kept { bytes } else { 0 });
        } else {
            self.shared.inc();
        }
        pieces.clone()
    }
}

impl Kept {
    /// Counts what came and drops the oldest until it fits.
    fn make_room(&mut self, came: usize) {
        self.bytes += came;
        while self.bytes > MOST_BYTES || self.order.len() > MOST_CHANGES {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some(Ok(pieces)) = self.steps.remove(&oldest).and_then(|place| place.get().cloned()) {
                self.bytes = self.bytes.saturating_sub(pieces.iter().map(Bytes::len).sum());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use firebreak_proto::hash::ObjectKind;
    use firebreak_proto::state::removal;

    fn step(number: usize) -> Step {
        let mut to = [0; 16];
        to[..8].copy_from_slice(&number.to_le_bytes());
        Step { key: ObjectKey::new(ObjectKind::Group, "g"), from: None, to: ContentHash(to) }
    }

    #[test]
    fn what_many_streams_get_is_encoded_once_and_is_the_same_memory() {
        let (encoded, key) = (Encoded::default(), ObjectKey::new(ObjectKind::Group, "g"));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (encoded, key) = (encoded.clone(), key.clone());
                std::thread::spawn(move || encoded.pieces(step(1), || Ok(vec![removal(&key)])).unwrap())
            })
            .collect();
        let pieces: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(pieces.iter().all(|it| Arc::ptr_eq(it, &pieces[0])));
        assert_eq!((encoded.made.get(), encoded.shared.get()), (1, 7));
    }

    #[test]
    fn one_that_is_dropped_while_it_is_made_is_not_counted() {
        let encoded = Encoded::default();
        let others = encoded.clone();
        let made = encoded.pieces(step(0), || {
            for number in 1..=MOST_CHANGES + 1 {
                others.pieces(step(number), || Ok(Vec::new())).unwrap();
            }
            Ok(vec![v1::ObjectUpdate { hash: vec![0; 1 << 20].into(), ..v1::ObjectUpdate::default() }])
        });
        assert_eq!(made.unwrap().len(), 1);
        let kept = encoded.kept.lock().unwrap();
        assert_eq!((kept.steps.contains_key(&step(0)), kept.bytes), (false, 0));
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let encoded = Encoded::default();
        let large = v1::ObjectUpdate { hash: vec![0; 1 << 20].into(), ..v1::ObjectUpdate::default() };
        for number in 0..200 {
            encoded.pieces(step(number), || Ok(vec![large.clone()])).unwrap();
        }
        {
            let kept = encoded.kept.lock().unwrap();
            assert!(kept.bytes <= MOST_BYTES && kept.steps.len() == kept.order.len() && kept.steps.len() > 50, "{}", kept.steps.len());
            assert!(!kept.steps.contains_key(&step(0)) && kept.steps.contains_key(&step(199)));
        }
        for number in 1_000..1_000 + 2 * MOST_CHANGES {
            encoded.pieces(step(number), || Ok(Vec::new())).unwrap();
        }
        let kept = encoded.kept.lock().unwrap();
        assert_eq!((kept.steps.len(), kept.bytes), (MOST_CHANGES, 0));
    }
}
