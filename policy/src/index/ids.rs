//! Small integers instead of names: hashing them, and sets of them.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// No id.
pub(super) const NONE: u32 = u32::MAX;

/// A map whose keys are ids of ours. What comes from outside (addresses, texts) is hashed by the standard library's keyed hash instead.
pub(super) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;
/// A set of ids of ours.
pub(super) type IdSet<K> = HashSet<K, BuildHasherDefault<IdHasher>>;

/// Multiply and rotate; nobody outside chooses these numbers.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = self.0.wrapping_add(number).wrapping_mul(0xf135_7aea_2e62_a9c5);
    }

    // Discriminants of enums.
    fn write_isize(&mut self, number: isize) {
        self.write_u64(number.cast_unsigned() as u64);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

/// The number of a new slot. More than 2^32 - 1 of one kind do not fit into the memory of a machine that this runs on.
pub(super) fn id(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(NONE)
}

/// Puts into a sorted list; `false` when it was there.
pub(super) fn insert(list: &mut Vec<u32>, item: u32) -> bool {
    match list.binary_search(&item) {
        Ok(_) => false,
        Err(at) => {
            list.insert(at, item);
            true
        }
    }
}

/// Takes out of a sorted list; `false` when it was not there.
pub(super) fn remove(list: &mut Vec<u32>, item: u32) -> bool {
    match list.binary_search(&item) {
        Ok(at) => {
            list.remove(at);
            true
        }
        Err(_) => false,
    }
}

/// How often something is used, by id: a sorted list of ids with counts.
#[derive(Debug, Default)]
pub(super) struct Counts(Vec<(u32, u32)>);

impl Counts {
    /// One more; `true` when it is the first.
    pub(super) fn add(&mut self, item: u32) -> bool {
        match self.0.binary_search_by_key(&item, |(id, _)| *id) {
            Ok(at) => {
                self.0[at].1 += 1;
                false
            }
            Err(at) => {
                self.0.insert(at, (item, 1));
                true
            }
        }
    }

    /// One less; `true` when it was the last.
    pub(super) fn remove(&mut self, item: u32) -> bool {
        let Ok(at) = self.0.binary_search_by_key(&item, |(id, _)| *id) else { return false };
        self.0[at].1 -= 1;
        let last = self.0[at].1 == 0;
        if last {
            self.0.remove(at);
        }
        last
    }

    pub(super) fn contains(&self, item: u32) -> bool {
        self.0.binary_search_by_key(&item, |(id, _)| *id).is_ok()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|(id, _)| *id)
    }
}

/// Numbered slots; a number that was freed is given out again.
#[derive(Debug)]
pub(super) struct Slots<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub(super) fn add(&mut self, item: T) -> u32 {
        if let Some(free) = self.free.pop() {
            self.items[free as usize] = Some(item);
            return free;
        }
        self.items.push(Some(item));
        id(self.items.len() - 1)
    }

    /// Fills a slot that was emptied and not released.
    pub(super) fn put(&mut self, number: u32, item: T) {
        self.items[number as usize] = Some(item);
    }

    /// Empties the slot; its number is not given out again before [`Self::release`].
    pub(super) fn take(&mut self, number: u32) -> Option<T> {
        self.items.get_mut(number as usize)?.take()
    }

    /// The number of an empty slot may be given out again.
    pub(super) fn release(&mut self, number: u32) {
        self.free.push(number);
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.items.get(number as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.items.get_mut(number as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.items.iter().enumerate().filter_map(|(position, item)| Some((id(position), item.as_ref()?)))
    }
}
