//! Work on many objects at once, on all cores where there are enough of them to be worth a thread.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

/// Below this a thread costs more than it saves.
const WORTH_A_THREAD: usize = 256;

/// Whether so many objects are worked on by several threads where there are several cores.
pub(super) fn is_worth_threads(items: usize) -> bool {
    items >= WORTH_A_THREAD
}

fn threads(items: usize) -> usize {
    if !is_worth_threads(items) {
        return 1;
    }
    // The operating system reads files to answer.
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, std::num::NonZero::get).min(16))
}

/// What `work` makes of each item, in their order.
pub(super) fn map<'a, T: Sync, R: Send>(items: &'a [T], work: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    let threads = threads(items.len());
    if threads == 1 {
        return items.iter().map(work).collect();
    }
    let piece = items.len().div_ceil(threads * 8);
    let pieces: Vec<&'a [T]> = items.chunks(piece).collect();
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Vec<R>)>> = Mutex::new(Vec::with_capacity(pieces.len()));
    let run = || {
        while let Some((number, piece)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, pieces.get(at)?))) {
            let made = piece.iter().map(&work).collect();
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, made));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().flat_map(|(_, made)| made).collect()
}

/// Does `work` with each item.
pub(super) fn for_each<T: Send>(items: &mut [T], weight: usize, work: impl Fn(&mut T) + Sync) {
    let threads = threads(weight).min(items.len().max(1));
    if threads == 1 {
        items.iter_mut().for_each(work);
        return;
    }
    let piece = items.len().div_ceil(threads * 8);
    let pieces = Mutex::new(items.chunks_mut(piece));
    let run = || {
        loop {
            let Some(piece) = pieces.lock().unwrap_or_else(PoisonError::into_inner).next() else { return };
            piece.iter_mut().for_each(&work);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
}
