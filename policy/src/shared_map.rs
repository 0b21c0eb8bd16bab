//! A sorted map whose copies share their memory: a copy costs one reference count per piece, and the difference between two versions costs
//! little more than what differs. A publication of 100,000 workloads of which one changed is such a copy.

use crate::headed::{Headed, not_above};
use crate::seek::{first_looks, seek};
use std::borrow::Borrow;
use std::fmt;
use std::ops::{Index, RangeBounds};
use std::sync::Arc;

/// The most that one shared piece holds.
const PIECE: usize = 64;

type Entry<K, V> = (K, Arc<V>);

/// Some entries that follow one another.
struct Piece<K, V> {
    /// Of the first key.
    head: u64,
    entries: Arc<Vec<Entry<K, V>>>,
}

impl<K, V> Clone for Piece<K, V> {
    fn clone(&self) -> Self {
        Self { head: self.head, entries: self.entries.clone() }
    }
}

impl<K: Headed, V> Piece<K, V> {
    fn of(entries: Vec<Entry<K, V>>) -> Self {
        let head = entries.first().map(|(key, _)| key.head()).unwrap_or_default();
        Self { head, entries: Arc::new(entries) }
    }
}

impl<K: Headed + Clone, V> Piece<K, V> {
    /// Changes the entries, of which some are left.
    fn change<R>(&mut self, change: impl FnOnce(&mut Vec<Entry<K, V>>) -> R) -> R {
        let entries = Arc::make_mut(&mut self.entries);
        let changed = change(entries);
        self.head = entries.first().map(|(key, _)| key.head()).unwrap_or_default();
        changed
    }
}

/// A sorted map.
pub struct SharedMap<K, V> {
    /// Sorted, none empty, no piece longer than [`PIECE`].
    pieces: Vec<Piece<K, V>>,
    len: usize,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { pieces: self.pieces.clone(), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

/// A place in a map, for as long as nothing in that map changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    piece: usize,
    at: usize,
}

/// How one version of a map differs from another.
#[derive(Debug)]
pub struct Difference<'a, K, V> {
    /// What is under the key in the one version.
    pub before: Option<&'a Arc<V>>,
    /// What is under it in the other.
    pub now: Option<&'a Arc<V>>,
    /// The key.
    pub key: &'a K,
}

impl<K, V> SharedMap<K, V> {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keys and values in order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { pieces: self.pieces.iter(), piece: [].iter() }
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.pieces.iter().flat_map(|piece| piece.entries.iter()).map(|(key, _)| key)
    }

    /// The values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.pieces.iter().flat_map(|piece| piece.entries.iter()).map(|(_, value)| &**value)
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl<K: Headed + Clone, V> SharedMap<K, V> {
    /// The piece in which the key is or would be; `None` when it would be before all pieces.
    fn piece_of<Q: Headed + ?Sized>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        let is_not_above = |at: usize| self.pieces[at].entries.first().is_some_and(|(first, _)| first.borrow() <= key);
        not_above(self.pieces.len(), key.head(), |at| self.pieces[at].head, is_not_above).checked_sub(1)
    }

    /// Where a key is, or with `Err` would be: the piece and the place in it.
    pub(crate) fn place_of<Q: Headed + ?Sized>(&self, key: &Q) -> Result<Place, Place>
    where
        K: Borrow<Q>,
    {
        let piece = self.piece_of(key).unwrap_or(0);
        let Some(Piece { entries, .. }) = self.pieces.get(piece) else { return Err(Place { piece, at: 0 }) };
        let at = seek(entries.len(), |at| entries[at].0.borrow() < key);
        let is_there = entries.get(at).is_some_and(|(it, _)| it.borrow() == key);
        if is_there { Ok(Place { piece, at }) } else { Err(Place { piece, at }) }
    }

    /// The first step of a search, ahead of it: looks at where its pieces are. Gives a number of no meaning. See `index::ahead`.
    pub(crate) fn glance(&self) -> u64 {
        self.pieces.first().map_or(0, |piece| piece.head)
    }

    /// The second step: the piece in which the key is or would be, and a number of no meaning.
    pub(crate) fn glance_for(&self, key: &K) -> (usize, u64) {
        let piece = self.piece_of(key).unwrap_or(0);
        (piece, self.pieces.get(piece).map_or(0, |piece| piece.entries.len() as u64))
    }

    /// The third step: looks into that piece, where a search looks first.
    pub(crate) fn glance_into(&self, piece: usize) -> u64 {
        let Some(Piece { entries, .. }) = self.pieces.get(piece) else { return 0 };
        first_looks(entries.len()).map(|at| entries[at].0.head()).fold(0, u64::wrapping_add)
    }

    fn find<Q: Headed + ?Sized>(&self, key: &Q) -> Option<(usize, usize)>
    where
        K: Borrow<Q>,
    {
        self.place_of(key).ok().map(|Place { piece, at }| (piece, at))
    }

    /// The value at a place where there is one.
    pub(crate) fn at(&self, place: Place) -> &Arc<V> {
        &self.pieces[place.piece].entries[place.at].1
    }

    /// Puts another value where there is one; gives what was there.
    pub(crate) fn replace_at(&mut self, place: Place, value: Arc<V>) -> Arc<V> {
        std::mem::replace(&mut Arc::make_mut(&mut self.pieces[place.piece].entries)[place.at].1, value)
    }

    /// Puts a key that is not there where it would be.
    pub(crate) fn insert_at(&mut self, place: Place, key: K, value: Arc<V>) {
        let Place { piece: position, at } = place;
        self.len += 1;
        let is_last = position + 1 >= self.pieces.len();
        let Some(piece) = self.pieces.get_mut(position) else {
            self.pieces.push(Piece::of(vec![(key, value)]));
            return;
        };
        let len = piece.entries.len();
        if len >= PIECE && is_last && at == len {
            // In order, as everything comes at first: full pieces stay full.
            self.pieces.push(Piece::of(vec![(key, value)]));
            return;
        }
        if len < PIECE {
            piece.change(|entries| entries.insert(at, (key, value)));
            return;
        }
        let upper = piece.change(|entries| {
            let mut upper = entries.split_off(PIECE / 2);
            match at.checked_sub(PIECE / 2) {
                Some(at) if at > 0 => upper.insert(at, (key, value)),
                Some(_) | None => entries.insert(at, (key, value)),
            }
            upper
        });
        self.pieces.insert(position + 1, Piece::of(upper));
    }

    /// Removes what is at a place where there is something; gives the value.
    pub(crate) fn remove_at(&mut self, place: Place) -> Arc<V> {
        let Place { piece: position, at } = place;
        self.len -= 1;
        let (_, value) = self.pieces[position].change(|entries| entries.remove(at));
        let left = self.pieces[position].entries.len();
        if left == 0 {
            self.pieces.remove(position);
        } else if left < PIECE / 2
            && let Some(next) = self.pieces.get(position + 1).filter(|next| left + next.entries.len() <= PIECE / 2).cloned()
        {
            self.pieces[position].change(|entries| entries.extend(next.entries.iter().cloned()));
            self.pieces.remove(position + 1);
        }
        value
    }

    /// The value under a key.
    pub fn get<Q: Headed + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get_shared(key).map(|value| &**value)
    }

    /// The value under a key, in the memory that all versions share.
    pub fn get_shared<Q: Headed + ?Sized>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.find(key).map(|(position, at)| &self.pieces[position].entries[at].1)
    }

    /// The key as it is kept, and the value under it.
    pub fn get_key_value<Q: Headed + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.find(key).map(|(position, at)| &self.pieces[position].entries[at]).map(|(key, value)| (key, &**value))
    }

    /// Whether the key is there.
    pub fn contains_key<Q: Headed + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).is_some()
    }

    /// The value under a key, to be changed in this version only.
    pub fn get_mut<Q: Headed + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        V: Clone,
    {
        let (position, at) = self.find(key)?;
        Some(Arc::make_mut(&mut Arc::make_mut(&mut self.pieces[position].entries)[at].1))
    }

    /// The value under a key; made if there is none.
    pub fn get_or_insert_with(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V
    where
        V: Clone,
    {
        if !self.contains_key(key) {
            self.insert(key.clone(), make());
        }
        let (position, at) = self.find(key).unwrap_or_default();
        Arc::make_mut(&mut Arc::make_mut(&mut self.pieces[position].entries)[at].1)
    }

    /// The values in order, to be changed in this version only.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V>
    where
        V: Clone,
    {
        self.pieces.iter_mut().flat_map(|piece| Arc::make_mut(&mut piece.entries).iter_mut()).map(|(_, value)| Arc::make_mut(value))
    }

    /// Puts a value under a key; gives what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<Arc<V>> {
        self.insert_shared(key, Arc::new(value))
    }

    /// Puts a value under a key that others share; gives what was there.
    pub fn insert_shared(&mut self, key: K, value: Arc<V>) -> Option<Arc<V>> {
        let is_after_all = self.pieces.last().and_then(|piece| piece.entries.last()).is_none_or(|(last, _)| *last < key);
        if is_after_all {
            // In order, as everything comes at first: full pieces stay full.
            self.len += 1;
            match self.pieces.last_mut() {
                Some(piece) if piece.entries.len() < PIECE => Arc::make_mut(&mut piece.entries).push((key, value)),
                Some(_) | None => self.pieces.push(Piece::of(vec![(key, value)])),
            }
            return None;
        }
        match self.place_of(&key) {
            Ok(place) => Some(self.replace_at(place, value)),
            Err(place) => {
                self.insert_at(place, key, value);
                None
            }
        }
    }

    /// Removes a key; gives what was under it.
    pub fn remove<Q: Headed + ?Sized>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.place_of(key).ok().map(|place| self.remove_at(place))
    }

    /// Keeps what a test says.
    pub fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) {
        *self = self.iter_shared().filter(|(key, value)| keep(key, value)).map(|(key, value)| (key.clone(), value.clone())).collect();
    }

    /// Keys and values in order, in the memory that all versions share.
    pub fn iter_shared(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.pieces.iter().flat_map(|piece| piece.entries.iter()).map(|(key, value)| (key, value))
    }

    /// The values in the order of their keys, in the memory that all versions share.
    pub fn values_shared(&self) -> impl Iterator<Item = &Arc<V>> {
        self.pieces.iter().flat_map(|piece| piece.entries.iter()).map(|(_, value)| value)
    }

    /// Keys and values from a key on, as far as the range goes.
    pub fn range<R: RangeBounds<K>>(&self, range: R) -> impl Iterator<Item = (&K, &V)> {
        let first = match range.start_bound() {
            std::ops::Bound::Included(key) | std::ops::Bound::Excluded(key) => self.piece_of(key).unwrap_or(0),
            std::ops::Bound::Unbounded => 0,
        };
        let end = range.end_bound().cloned();
        let in_order = self.pieces[first..].iter().flat_map(|piece| piece.entries.iter());
        let begun = in_order.skip_while(move |(key, _)| match range.start_bound() {
            std::ops::Bound::Included(start) => key < start,
            std::ops::Bound::Excluded(start) => key <= start,
            std::ops::Bound::Unbounded => false,
        });
        let inside = begun.take_while(move |(key, _)| match &end {
            std::ops::Bound::Included(end) => key <= end,
            std::ops::Bound::Excluded(end) => key < end,
            std::ops::Bound::Unbounded => true,
        });
        inside.map(|(key, value)| (key, &**value))
    }

    /// What leads from this version to another, in the order of the keys. Pieces that both share are passed over; a value that is the same
    /// memory is the same.
    pub fn differences<'a>(&'a self, now: &'a Self) -> Vec<Difference<'a, K, V>> {
        let (mut left, mut right) = (Cursor::new(&self.pieces), Cursor::new(&now.pieces));
        let mut found = Vec::new();
        loop {
            while left.skip_shared(&mut right) {}
            let order = match (left.peek(), right.peek()) {
                (None, None) => return found,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((mine, _)), Some((theirs, _))) => mine.cmp(theirs),
            };
            let before = if order.is_le() { left.next() } else { None };
            let now = if order.is_ge() { right.next() } else { None };
            match (before, now) {
                (Some((_, before)), Some((_, now))) if Arc::ptr_eq(before, now) => {}
                (before, Some((key, now))) => found.push(Difference { before: before.map(|(_, it)| it), now: Some(now), key }),
                (Some((key, before)), None) => found.push(Difference { before: Some(before), now: None, key }),
                (None, None) => return found,
            }
        }
    }
}

/// A place between two entries.
struct Cursor<'a, K, V> {
    pieces: &'a [Piece<K, V>],
    at: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(pieces: &'a [Piece<K, V>]) -> Self {
        Self { pieces, at: 0 }
    }

    fn peek(&self) -> Option<&'a Entry<K, V>> {
        self.pieces.first()?.entries.get(self.at)
    }

    fn next(&mut self) -> Option<&'a Entry<K, V>> {
        let piece = self.pieces.first()?;
        let entry = piece.entries.get(self.at);
        self.at += 1;
        if self.at >= piece.entries.len() {
            (self.pieces, self.at) = (&self.pieces[1..], 0);
        }
        entry
    }

    /// Passes over a piece that is the same memory in both; `false` when there is none at this place.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        let (Some(mine), Some(theirs)) = (self.pieces.first(), other.pieces.first()) else { return false };
        let shared = self.at == 0 && other.at == 0 && Arc::ptr_eq(&mine.entries, &theirs.entries);
        if shared {
            (self.pieces, other.pieces) = (&self.pieces[1..], &other.pieces[1..]);
        }
        shared
    }
}

/// Keys and values in order.
pub struct Iter<'a, K, V> {
    pieces: std::slice::Iter<'a, Piece<K, V>>,
    piece: std::slice::Iter<'a, Entry<K, V>>,
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Self { pieces: self.pieces.clone(), piece: self.piece.clone() }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.piece.next() {
                return Some((key, value));
            }
            self.piece = self.pieces.next()?.entries.iter();
        }
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Headed + Clone, V> FromIterator<(K, Arc<V>)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, Arc<V>)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert_shared(key, value);
        }
        // A controller has three such maps for each of thousands of nodes, with a last piece that is mostly not full.
        map.pieces.shrink_to_fit();
        if let Some(last) = map.pieces.last_mut().and_then(|piece| Arc::get_mut(&mut piece.entries)) {
            last.shrink_to_fit();
        }
        map
    }
}

impl<K: Headed + Clone, V> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Headed + Clone, V, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Headed + Clone, V, const N: usize> From<[(K, Arc<V>); N]> for SharedMap<K, V> {
    fn from(entries: [(K, Arc<V>); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Headed + Clone, V> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Headed + Clone, V> Extend<(K, Arc<V>)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, Arc<V>)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert_shared(key, value);
        }
    }
}

impl<K: Headed + Clone, V, Q: Headed + ?Sized> Index<&Q> for SharedMap<K, V>
where
    K: Borrow<Q>,
{
    type Output = V;

    /// # Panics
    /// Without the key, like every map.
    #[allow(clippy::expect_used)]
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no such key")
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SharedMap<K, V> {
    /// What is the same memory is equal without a look.
    fn eq(&self, other: &Self) -> bool {
        if self.len != other.len {
            return false;
        }
        let (mut left, mut right) = (Cursor::new(&self.pieces), Cursor::new(&other.pieces));
        loop {
            while left.skip_shared(&mut right) {}
            match (left.next(), right.next()) {
                (None, None) => return true,
                (Some(mine), Some(theirs)) if mine.0 == theirs.0 && (Arc::ptr_eq(&mine.1, &theirs.1) || mine.1 == theirs.1) => {}
                (Some(_) | None, _) => return false,
            }
        }
    }
}

impl<K: Eq, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_the_map_that_a_plain_map_is_and_versions_differ_by_what_was_done(
            before in prop::collection::vec((0_u16..600, any::<u8>()), 0..500),
            steps in prop::collection::vec((any::<bool>(), 0_u16..600, any::<u8>()), 0..400),
        ) {
            let mut plain: BTreeMap<u16, u8> = before.iter().copied().collect();
            let mut map: SharedMap<u16, u8> = before.iter().copied().collect();
            let (old, first) = (plain.clone(), map.clone());
            for (add, key, value) in steps {
                prop_assert_eq!(map.get(&key), plain.get(&key));
                if add {
                    prop_assert_eq!(map.insert(key, value).map(|it| *it), plain.insert(key, value));
                } else {
                    prop_assert_eq!(map.remove(&key).map(|it| *it), plain.remove(&key));
                }
            }
            prop_assert_eq!(map.len(), plain.len());
            prop_assert!(map.iter().eq(plain.iter()));
            prop_assert!(first.iter().eq(old.iter()), "a copy stays what it was");
            prop_assert!(map.pieces.iter().all(|piece| !piece.entries.is_empty() && piece.entries.len() <= PIECE));
            prop_assert!(map.range(200..=400).eq(plain.range(200..=400)));
            prop_assert!(map.range(200..).eq(plain.range(200..)));
            let mut replayed = old;
            for Difference { key, now, .. } in first.differences(&map) {
                match now {
                    Some(now) => drop(replayed.insert(*key, **now)),
                    None => drop(replayed.remove(key)),
                }
            }
            prop_assert_eq!(replayed, plain);
        }
    }

    #[test]
    fn a_copy_of_100_000_entries_and_one_change_touch_one_piece() {
        let old: SharedMap<u32, u32> = (0..100_000).map(|key| (key, key)).collect();
        let mut next = old.clone();
        *next.get_mut(&50_000).unwrap() = 7;
        let shared = old.pieces.iter().filter(|piece| next.pieces.iter().any(|other| Arc::ptr_eq(&piece.entries, &other.entries))).count();
        assert_eq!(shared, old.pieces.len() - 1);
        let differences = old.differences(&next);
        assert_eq!(differences.iter().map(|it| (*it.key, **it.now.unwrap())).collect::<Vec<_>>(), [(50_000, 7)]);
    }
}
