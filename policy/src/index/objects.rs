//! The objects of a node as keys and stamps, in pieces whose keys are memory of their own. Versions share the keys of a piece for as long as no
//! object of it comes or goes: a change of contents, as a change for every node mostly is, copies stamps alone, and two versions with the same
//! objects are compared without a look at the keys. An object that comes or goes copies the keys of one piece, and none where nobody else has it.

use crate::headed::{Headed as _, not_above};
use crate::node_state::ObjectKey;
use crate::seek::{first_looks, seek};
use std::fmt;
use std::sync::Arc;

/// The most that one piece holds.
const PIECE: usize = 32;

/// Key and stamp of every object of a node, in the order of the keys. Copies share their memory.
pub struct Objects<T> {
    /// In order, none empty, none longer than [`PIECE`].
    pieces: Vec<Piece<T>>,
    len: usize,
}

/// Some objects that follow one another.
struct Piece<T> {
    /// Of the first key.
    head: u64,
    /// Sorted, each once.
    keys: Arc<Vec<ObjectKey>>,
    /// One for each key, in their order.
    stamps: Arc<Vec<T>>,
}

impl<T> Clone for Piece<T> {
    fn clone(&self) -> Self {
        Self { head: self.head, keys: self.keys.clone(), stamps: self.stamps.clone() }
    }
}

impl<T> Clone for Objects<T> {
    fn clone(&self) -> Self {
        Self { pieces: self.pieces.clone(), len: self.len }
    }
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<T: fmt::Debug + Copy> fmt::Debug for Objects<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T: Copy + PartialEq> PartialEq for Objects<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

/// Sorts what is said of objects by their keys; of several words about one key the last is left.
pub(super) fn last_words<T: Copy>(said: &mut Vec<(ObjectKey, T)>) {
    // Stable, so that the last word about a key is the last of its run.
    said.sort_by(|(one, _), (other, _)| one.cmp(other));
    said.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            kept.1 = later.1;
        }
        same
    });
}

impl<T: Copy> FromIterator<(ObjectKey, T)> for Objects<T> {
    /// Of objects in any order; of several with one key the last counts.
    fn from_iter<I: IntoIterator<Item = (ObjectKey, T)>>(objects: I) -> Self {
        let mut objects: Vec<(ObjectKey, T)> = objects.into_iter().collect();
        last_words(&mut objects);
        let len = objects.len();
        let mut pieces = Vec::with_capacity(len.div_ceil(PIECE));
        let mut rest = objects.into_iter();
        while rest.len() > 0 {
            let (keys, stamps): (Vec<ObjectKey>, Vec<T>) = rest.by_ref().take(PIECE).unzip();
            pieces.push(Piece::of(keys, stamps));
        }
        Self { pieces, len }
    }
}

impl<T> Piece<T> {
    fn of(mut keys: Vec<ObjectKey>, mut stamps: Vec<T>) -> Self {
        // A controller has some of them for each of thousands of nodes.
        keys.shrink_to_fit();
        stamps.shrink_to_fit();
        Self::of_large(keys, stamps)
    }

    /// One that others will come to.
    fn of_large(keys: Vec<ObjectKey>, stamps: Vec<T>) -> Self {
        Self { head: head(&keys), keys: Arc::new(keys), stamps: Arc::new(stamps) }
    }
}

fn head(keys: &[ObjectKey]) -> u64 {
    keys.first().map(ObjectKey::head).unwrap_or_default()
}

impl<T: Copy> Objects<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keys and stamps, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, T)> + Clone {
        self.pieces.iter().flat_map(|piece| piece.keys.iter().zip(piece.stamps.iter().copied()))
    }

    /// The stamp under a key.
    pub fn get(&self, key: &ObjectKey) -> Option<T> {
        let piece = self.pieces.get(self.piece_of(key)?)?;
        piece.stamps.get(piece.place_of(key).ok()?).copied()
    }

    /// Whether there is an object with this key.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.get(key).is_some()
    }

    /// Whether the keys are the same memory, so that both have the same objects in the same places. Others may have the same keys too.
    pub fn has_keys_of(&self, other: &Self) -> bool {
        let mut pairs = self.pieces.iter().zip(&other.pieces);
        self.pieces.len() == other.pieces.len() && pairs.all(|(one, other)| Arc::ptr_eq(&one.keys, &other.keys))
    }

    /// The piece in which the key is or would be; `None` when it would be before all pieces.
    fn piece_of(&self, key: &ObjectKey) -> Option<usize> {
        let begins_later = |at: usize| self.pieces[at].keys.first().is_some_and(|first| key.is_before(first));
        not_above(self.pieces.len(), key.head(), |at| self.pieces[at].head, |at| !begins_later(at)).checked_sub(1)
    }

    /// The first step of a search, ahead of it: looks at where its pieces are. Gives a number of no meaning. See `ahead`.
    pub(super) fn glance(&self) -> u64 {
        self.pieces.iter().step_by(2).map(|piece| piece.head).fold(0, u64::wrapping_add)
    }

    /// The second step: the piece in which a key of this head is or would be, and a number of no meaning.
    pub(super) fn glance_for(&self, head: u64) -> (usize, u64) {
        let at = seek(self.pieces.len(), |at| self.pieces[at].head <= head).saturating_sub(1);
        (at, self.pieces.get(at).map_or(0, |piece| (piece.keys.len() + piece.stamps.len()) as u64))
    }

    /// The third step: looks into that piece, where a search looks first.
    pub(super) fn glance_into(&self, piece: usize) -> u64 {
        let Some(Piece { keys, .. }) = self.pieces.get(piece) else { return 0 };
        first_looks(keys.len()).map(|at| keys[at].head()).fold(0, u64::wrapping_add)
    }

    /// An object has the stamp from now on, or with `None` is not there; gives the stamp that it had.
    pub(super) fn change(&mut self, key: &ObjectKey, stamp: Option<T>) -> Option<T> {
        let position = self.piece_of(key).unwrap_or(0);
        let Some(piece) = self.pieces.get_mut(position) else {
            if let Some(stamp) = stamp {
                self.pieces.push(Piece::of(vec![key.clone()], vec![stamp]));
                self.len += 1;
            }
            return None;
        };
        match (piece.place_of(key), stamp) {
            (Ok(at), Some(stamp)) => Some(std::mem::replace(&mut Arc::make_mut(&mut piece.stamps)[at], stamp)),
            (Ok(at), None) => {
                Arc::make_mut(&mut piece.keys).remove(at);
                piece.head = head(&piece.keys);
                let before = Arc::make_mut(&mut piece.stamps).remove(at);
                self.len -= 1;
                self.join(position);
                Some(before)
            }
            (Err(at), Some(stamp)) => {
                self.len += 1;
                let (keys, stamps) = (Arc::make_mut(&mut piece.keys), Arc::make_mut(&mut piece.stamps));
                let upper = (keys.len() >= PIECE).then(|| (keys.split_off(PIECE / 2), stamps.split_off(PIECE / 2)));
                match upper {
                    Some((mut keys, mut stamps)) if at > PIECE / 2 => {
                        keys.insert(at - PIECE / 2, key.clone());
                        stamps.insert(at - PIECE / 2, stamp);
                        self.pieces.insert(position + 1, Piece::of_large(keys, stamps));
                    }
                    upper => {
                        keys.insert(at, key.clone());
                        stamps.insert(at, stamp);
                        piece.head = head(keys);
                        let upper = upper.map(|(keys, stamps)| Piece::of_large(keys, stamps));
                        self.pieces.splice(position + 1..position + 1, upper);
                    }
                }
                None
            }
            (Err(_), None) => None,
        }
    }

    /// Takes away a piece that is empty, and joins one with the next where both are small.
    fn join(&mut self, position: usize) {
        let left = self.pieces[position].keys.len();
        if left == 0 {
            self.pieces.remove(position);
        } else if left < PIECE / 2 && self.pieces.get(position + 1).is_some_and(|next| left + next.keys.len() <= PIECE / 2) {
            let next = self.pieces.remove(position + 1);
            let piece = &mut self.pieces[position];
            Arc::make_mut(&mut piece.keys).extend(next.keys.iter().cloned());
            Arc::make_mut(&mut piece.stamps).extend(next.stamps.iter().copied());
        }
    }
}

impl<T> Piece<T> {
    /// Where the key is, or would be.
    fn place_of(&self, key: &ObjectKey) -> Result<usize, usize> {
        let at = seek(self.keys.len(), |at| self.keys[at].is_before(key));
        match self.keys.get(at) {
            Some(there) if there == key => Ok(at),
            Some(_) | None => Err(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_state::ObjectKind;
    use std::collections::BTreeMap;

    fn key(number: u32) -> ObjectKey {
        let kind = if number.is_multiple_of(3) { ObjectKind::Group } else { ObjectKind::Endpoint };
        ObjectKey::new(kind, format!("o{number}").as_str())
    }

    #[test]
    fn keys_are_the_same_memory_until_an_object_comes_or_goes_and_what_is_held_is_what_was_said() {
        let mut objects: Objects<u32> = (0..50).rev().map(|number| (key(number), number)).collect();
        let mut expected: BTreeMap<ObjectKey, u32> = (0..50).map(|number| (key(number), number)).collect();
        // Which are changed, which come, which go; and whether the keys stay.
        type Step<'a> = (&'a [u32], &'a [u32], &'a [u32], bool);
        let steps: [Step<'_>; 7] = [
            (&[1, 7, 49], &[], &[], true),
            (&[], &[], &[], true),
            (&[3], &[60], &[], false),
            (&[], &[], &[0], false),
            (&[2], &[], &[4, 5], false),
            (&[], &[0, 4, 61], &[60], false),
            (&[0, 61], &[], &[], true),
        ];
        for (step, (changed, came, gone, stays)) in (1_000..).zip(steps) {
            let before = objects.clone();
            let mut edits: Vec<_> = changed.iter().chain(came).map(|number| (key(*number), Some(step + number))).collect();
            edits.extend(gone.iter().map(|number| (key(*number), None)));
            edits.sort();
            for (key, stamp) in &edits {
                match stamp {
                    Some(stamp) => expected.insert(key.clone(), *stamp),
                    None => expected.remove(key),
                };
            }
            let unchanged: Vec<_> = before.iter().map(|(key, stamp)| (key.clone(), stamp)).collect();
            for (key, stamp) in edits {
                assert_eq!(objects.change(&key, stamp), before.get(&key), "what was there is told");
            }
            assert_eq!(objects.has_keys_of(&before), stays, "step {step}");
            let is: Vec<_> = objects.iter().map(|(key, stamp)| (key.clone(), stamp)).collect();
            assert_eq!(is, expected.iter().map(|(key, stamp)| (key.clone(), *stamp)).collect::<Vec<_>>(), "step {step}");
            assert_eq!(
                before.iter().map(|(key, stamp)| (key.clone(), stamp)).collect::<Vec<_>>(),
                unchanged,
                "the version before is as it was"
            );
            assert!((0..70).all(|number| objects.get(&key(number)) == expected.get(&key(number)).copied()));
        }
        // Something that is not there goes: nothing is there of it, whatever becomes of the keys.
        assert_eq!(objects.change(&key(69), None), None);
        assert_eq!(objects.len(), expected.len());
    }

    #[test]
    fn of_several_words_about_one_key_the_last_counts() {
        let objects: Objects<u32> = [(key(1), 1), (key(2), 2), (key(1), 3)].into_iter().collect();
        assert_eq!((objects.get(&key(1)), objects.get(&key(2)), objects.len()), (Some(3), Some(2), 2));
    }

    #[test]
    fn whatever_comes_and_goes_it_is_what_a_tree_is_in_pieces_that_are_neither_empty_nor_too_long() {
        let (mut objects, mut plain) = (Objects::default(), BTreeMap::new());
        let mut seed = 5_u64;
        for step in 0_u32..6_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let key = key(u32::try_from((seed >> 33) % 300).unwrap_or(0));
            // It grows, then shrinks, then grows again.
            let comes = (seed >> 20) % 10 < if (2_000..4_000).contains(&step) { 2 } else { 7 };
            let before = match comes {
                true => plain.insert(key.clone(), step),
                false => plain.remove(&key),
            };
            assert_eq!(objects.change(&key, comes.then_some(step)), before);
            assert_eq!(objects.len(), plain.len());
            assert!(objects.pieces.iter().all(|it| !it.keys.is_empty() && it.keys.len() <= PIECE && it.keys.len() == it.stamps.len()));
            if step % 100 == 0 {
                assert!(objects.iter().eq(plain.iter().map(|(key, stamp)| (key, *stamp))), "step {step}");
                assert!(objects == plain.iter().map(|(key, stamp)| (key.clone(), *stamp)).collect());
            }
        }
        assert!(objects.pieces.len() > 4, "it came to several pieces");
    }

    #[test]
    fn an_object_that_comes_copies_the_keys_of_one_piece_and_of_none_that_nobody_else_has() {
        let mut objects: Objects<u32> = (0..300).map(|number| (key(number), number)).collect();
        let keys = |objects: &Objects<u32>| objects.pieces.iter().map(|piece| Arc::as_ptr(&piece.keys)).collect::<Vec<_>>();
        objects.change(&key(7), None);
        let alone = keys(&objects);
        objects.change(&key(7), Some(7));
        assert_eq!(keys(&objects), alone, "nobody else had it");
        let before = objects.clone();
        objects.change(&key(7), None);
        let others = keys(&objects).iter().zip(keys(&before)).filter(|(now, before)| *now != before).count();
        assert_eq!((others, before.get(&key(7))), (1, Some(7)));
    }
}
