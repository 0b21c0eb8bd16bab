//! The objects of a node as keys and stamps. The keys are memory of their own, which versions share for as long as no object comes or goes:
//! a change of contents, as a change for every node mostly is, copies the stamps alone, and two versions are compared without a look at the keys.

use crate::node_state::ObjectKey;
use std::fmt;
use std::sync::Arc;

/// Key and stamp of every object of a node, in the order of the keys. Copies share their memory.
pub struct Objects<T> {
    /// Sorted, each once.
    keys: Arc<Vec<ObjectKey>>,
    /// One for each key, in their order.
    stamps: Arc<Vec<T>>,
}

impl<T> Clone for Objects<T> {
    fn clone(&self) -> Self {
        Self { keys: self.keys.clone(), stamps: self.stamps.clone() }
    }
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self { keys: Arc::default(), stamps: Arc::default() }
    }
}

impl<T: fmt::Debug + Copy> fmt::Debug for Objects<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T: Copy + PartialEq> PartialEq for Objects<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.has_keys_of(other) || self.keys == other.keys) && self.stamps == other.stamps
    }
}

impl<T: Copy> FromIterator<(ObjectKey, T)> for Objects<T> {
    /// Of objects in any order; of several with one key the last counts.
    fn from_iter<I: IntoIterator<Item = (ObjectKey, T)>>(objects: I) -> Self {
        let mut objects: Vec<(ObjectKey, T)> = objects.into_iter().collect();
        // Stable, so that the last word about a key is the last of its run.
        objects.sort_by(|(one, _), (other, _)| one.cmp(other));
        objects.reverse();
        objects.dedup_by(|(one, _), (other, _)| one == other);
        let (keys, stamps): (Vec<ObjectKey>, Vec<T>) = objects.into_iter().rev().unzip();
        Self { keys: Arc::new(keys), stamps: Arc::new(stamps) }
    }
}

impl<T: Copy> Objects<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys and stamps, in the order of the keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ObjectKey, T)> + Clone {
        self.keys.iter().zip(self.stamps.iter().copied())
    }

    /// The keys in order.
    pub fn keys(&self) -> &[ObjectKey] {
        &self.keys
    }

    /// The stamp under a key.
    pub fn get(&self, key: &ObjectKey) -> Option<T> {
        self.keys.binary_search(key).ok().and_then(|at| self.stamps.get(at).copied())
    }

    /// Whether there is an object with this key.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.keys.binary_search(key).is_ok()
    }

    /// Whether the keys are the same memory, so that both have the same objects in the same places. Others may have the same keys too.
    pub fn has_keys_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.keys, &other.keys)
    }

    /// What changes: a stamp for an object that is there from now on, `None` for one that is not. In the order of the keys, each once.
    pub(super) fn change(&mut self, edits: Vec<(ObjectKey, Option<T>)>) {
        let mut at = Vec::with_capacity(edits.len());
        at.extend(edits.iter().map_while(|(key, stamp)| stamp.and_then(|stamp| Some((self.keys.binary_search(key).ok()?, stamp)))));
        if at.len() == edits.len() {
            // None comes, none goes.
            if !at.is_empty() {
                let stamps = Arc::make_mut(&mut self.stamps);
                at.into_iter().for_each(|(at, stamp)| stamps[at] = stamp);
            }
            return;
        }
        let room = self.keys.len() + edits.len();
        let (mut keys, mut stamps) = (Vec::with_capacity(room), Vec::with_capacity(room));
        let mut before = self.iter().peekable();
        for (key, stamp) in edits {
            while let Some((kept, stamp)) = before.next_if(|(it, _)| **it < key) {
                keys.push(kept.clone());
                stamps.push(stamp);
            }
            before.next_if(|(it, _)| **it == key);
            if let Some(stamp) = stamp {
                keys.push(key);
                stamps.push(stamp);
            }
        }
        for (kept, stamp) in before {
            keys.push(kept.clone());
            stamps.push(stamp);
        }
        keys.shrink_to_fit();
        stamps.shrink_to_fit();
        *self = Self { keys: Arc::new(keys), stamps: Arc::new(stamps) };
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
            objects.change(edits);
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
        objects.change(vec![(key(69), None)]);
        assert_eq!(objects.len(), expected.len());
    }

    #[test]
    fn of_several_words_about_one_key_the_last_counts() {
        let objects: Objects<u32> = [(key(1), 1), (key(2), 2), (key(1), 3)].into_iter().collect();
        assert_eq!((objects.get(&key(1)), objects.get(&key(2)), objects.len()), (Some(3), Some(2), 2));
    }
}
