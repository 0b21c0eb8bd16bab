//! Small integers instead of names: hashing them, and sets of them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, BuildHasherDefault, Hash, Hasher, RandomState};

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

/// How often something is used, by id.
#[derive(Debug, Default)]
pub(super) struct Counts(Counted);

/// Mostly there is one id.
#[derive(Debug, Default)]
enum Counted {
    #[default]
    Nothing,
    One((u32, u32)),
    /// Sorted, never empty.
    Many(Vec<(u32, u32)>),
}

impl Counts {
    /// One more; `true` when it is the first.
    pub(super) fn add(&mut self, item: u32) -> bool {
        match &mut self.0 {
            Counted::Nothing => self.0 = Counted::One((item, 1)),
            Counted::One((id, count)) if *id == item => {
                *count += 1;
                return false;
            }
            Counted::One(only) => {
                let mut both = vec![*only, (item, 1)];
                both.sort_unstable();
                self.0 = Counted::Many(both);
            }
            Counted::Many(list) => match list.binary_search_by_key(&item, |(id, _)| *id) {
                Ok(at) => {
                    list[at].1 += 1;
                    return false;
                }
                Err(at) => list.insert(at, (item, 1)),
            },
        }
        true
    }

    /// One less; `true` when it was the last.
    pub(super) fn remove(&mut self, item: u32) -> bool {
        match &mut self.0 {
            Counted::Nothing => false,
            Counted::One((id, _)) if *id != item => false,
            Counted::One((_, count)) => {
                *count -= 1;
                let last = *count == 0;
                if last {
                    self.0 = Counted::Nothing;
                }
                last
            }
            Counted::Many(list) => {
                let Ok(at) = list.binary_search_by_key(&item, |(id, _)| *id) else { return false };
                list[at].1 -= 1;
                let last = list[at].1 == 0;
                if last {
                    list.remove(at);
                }
                if list.is_empty() {
                    self.0 = Counted::Nothing;
                }
                last
            }
        }
    }

    pub(super) fn contains(&self, item: u32) -> bool {
        self.as_slice().binary_search_by_key(&item, |(id, _)| *id).is_ok()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.as_slice().iter().map(|(id, _)| *id)
    }

    fn as_slice(&self) -> &[(u32, u32)] {
        match &self.0 {
            Counted::Nothing => &[],
            Counted::One(only) => std::slice::from_ref(only),
            Counted::Many(list) => list,
        }
    }
}

/// Numbers by their names, which are kept only where the numbers lead: here are their hashes.
#[derive(Debug)]
pub(super) struct Directory<K> {
    hasher: RandomState,
    numbers: IdMap<u64, u32>,
    /// Names whose hash another one had when they came.
    others: HashMap<K, u32>,
}

impl<K> Default for Directory<K> {
    fn default() -> Self {
        Self { hasher: RandomState::new(), numbers: IdMap::default(), others: HashMap::new() }
    }
}

impl<K: Hash + Eq + Clone> Directory<K> {
    /// The number of a name; `has` says whether a number has this name.
    pub(super) fn get(&self, name: &K, has: impl Fn(u32) -> bool) -> Option<u32> {
        let by_hash = self.numbers.get(&self.hasher.hash_one(name)).copied().filter(|number| has(*number));
        by_hash.or_else(|| (!self.others.is_empty()).then(|| self.others.get(name).copied()).flatten())
    }

    /// Puts a name in that is not there.
    pub(super) fn insert(&mut self, name: &K, number: u32) {
        match self.numbers.entry(self.hasher.hash_one(name)) {
            Entry::Vacant(free) => drop(free.insert(number)),
            Entry::Occupied(_) => drop(self.others.insert(name.clone(), number)),
        }
    }

    /// Takes out a name that has the number.
    pub(super) fn remove(&mut self, name: &K, number: u32) {
        match self.numbers.entry(self.hasher.hash_one(name)) {
            Entry::Occupied(it) if *it.get() == number => drop(it.remove()),
            Entry::Occupied(_) | Entry::Vacant(_) => drop(self.others.remove(name)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Of few hashes, so that many names have the same.
    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Name(u32);

    impl Hash for Name {
        fn hash<H: Hasher>(&self, state: &mut H) {
            (self.0 % 3).hash(state);
        }
    }

    #[test]
    fn a_directory_finds_names_of_the_same_hash_whatever_came_and_went() {
        let (mut directory, mut plain) = (Directory::default(), BTreeMap::new());
        let mut names: Vec<Option<Name>> = vec![None; 64];
        let mut seed = 7_u64;
        for _ in 0..5_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let name = Name(u32::try_from((seed >> 33) % 12).unwrap_or(0));
            let found = directory.get(&name, |number: u32| names[number as usize].as_ref() == Some(&name));
            assert_eq!(found, plain.get(&name).copied());
            match found {
                Some(number) => {
                    directory.remove(&name, number);
                    plain.remove(&name);
                    names[number as usize] = None;
                }
                None => {
                    let number = id(names.iter().position(Option::is_none).unwrap_or(0));
                    names[number as usize] = Some(name.clone());
                    directory.insert(&name, number);
                    plain.insert(name, number);
                }
            }
        }
    }

    #[test]
    fn counts_are_what_was_added_less_what_was_removed() {
        let (mut counts, mut plain) = (Counts::default(), BTreeMap::<u32, u32>::new());
        let mut seed = 11_u64;
        for _ in 0..5_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let item = u32::try_from((seed >> 34) % 4).unwrap_or(0);
            if seed >> 63 == 0 {
                let first = !plain.contains_key(&item);
                *plain.entry(item).or_default() += 1;
                assert_eq!(counts.add(item), first);
            } else {
                let last = plain.get(&item) == Some(&1);
                assert_eq!(counts.remove(item), last);
                plain.entry(item).and_modify(|count| *count -= 1);
                plain.retain(|_, count| *count > 0);
            }
            assert!(counts.iter().eq(plain.keys().copied()));
            assert_eq!(counts.is_empty(), plain.is_empty());
            assert!((0..4).all(|item| counts.contains(item) == plain.contains_key(&item)));
        }
    }
}
