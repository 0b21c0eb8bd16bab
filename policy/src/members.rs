//! The members of a group, as a sorted set whose copies share their memory: a copy costs one reference count per 256 members, and the
//! difference between two versions costs little more than what differs. Groups of 200,000 members change one member at a time, and
//! draft, held state and kernel state each keep a version.

use crate::node_state::Member;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// The most that one shared piece holds.
const PIECE: usize = 256;

/// A sorted set of members.
#[derive(Clone, Default)]
pub struct Members {
    /// Sorted, none empty, no piece longer than [`PIECE`].
    pieces: Vec<Arc<Vec<Member>>>,
    len: usize,
}

impl Members {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the member is there.
    pub fn contains(&self, member: &Member) -> bool {
        self.get(member).is_some()
    }

    /// The member, if it is there.
    pub fn get(&self, member: &Member) -> Option<&Member> {
        let piece = self.pieces.get(self.piece_of(member)?)?;
        piece.get(piece.binary_search(member).ok()?)
    }

    /// Adds a member; `false` when it was there.
    pub fn insert(&mut self, member: Member) -> bool {
        let Some(position) = self.piece_of(&member) else {
            // Before everything there is.
            return self.insert_into(0, 0, member);
        };
        match self.pieces.get(position).map(|piece| piece.binary_search(&member)) {
            Some(Ok(_)) => false,
            Some(Err(at)) => self.insert_into(position, at, member),
            None => self.insert_into(0, 0, member),
        }
    }

    fn insert_into(&mut self, position: usize, at: usize, member: Member) -> bool {
        self.len += 1;
        let last = position + 1 >= self.pieces.len();
        let Some(piece) = self.pieces.get_mut(position) else {
            self.pieces.push(Arc::new(vec![member]));
            return true;
        };
        if piece.len() < PIECE {
            Arc::make_mut(piece).insert(at, member);
            return true;
        }
        if last && at == piece.len() {
            // In order, as a whole group comes over the wire: full pieces stay full.
            self.pieces.push(Arc::new(vec![member]));
            return true;
        }
        let piece = Arc::make_mut(piece);
        piece.insert(at, member);
        let upper = piece.split_off(PIECE / 2);
        piece.shrink_to_fit();
        self.pieces.insert(position + 1, Arc::new(upper));
        true
    }

    /// Removes a member; `false` when it was not there.
    pub fn remove(&mut self, member: &Member) -> bool {
        let Some(position) = self.piece_of(member) else { return false };
        let Some(piece) = self.pieces.get_mut(position) else { return false };
        let Ok(at) = piece.binary_search(member) else { return false };
        self.len -= 1;
        Arc::make_mut(piece).remove(at);
        let left = piece.len();
        if left == 0 {
            self.pieces.remove(position);
        } else if left < PIECE / 2
            && let Some(next) = self.pieces.get(position + 1).filter(|next| left + next.len() <= PIECE / 2).cloned()
        {
            if let Some(piece) = self.pieces.get_mut(position) {
                Arc::make_mut(piece).extend(next.iter().copied());
            }
            self.pieces.remove(position + 1);
        }
        true
    }

    /// The members in order.
    pub fn iter(&self) -> impl Iterator<Item = &Member> + Clone {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// The members between two, both included, in order.
    pub fn range(&self, range: RangeInclusive<Member>) -> impl Iterator<Item = &Member> {
        let first = self.piece_of(range.start()).unwrap_or(0);
        let pieces = self.pieces.get(first..).unwrap_or_default();
        let (start, end) = range.into_inner();
        pieces.iter().flat_map(|piece| piece.iter()).skip_while(move |member| **member < start).take_while(move |member| **member <= end)
    }

    /// How many are between two, both included.
    pub(crate) fn count(&self, range: RangeInclusive<Member>) -> usize {
        let (start, end) = range.into_inner();
        self.rank(&end, true).saturating_sub(self.rank(&start, false))
    }

    /// How many are below a member, or not above it.
    fn rank(&self, member: &Member, included: bool) -> usize {
        let Some(position) = self.piece_of(member) else { return 0 };
        let before: usize = self.pieces.iter().take(position).map(|piece| piece.len()).sum();
        let below = |other: &Member| if included { other <= member } else { other < member };
        before + self.pieces.get(position).map_or(0, |piece| piece.partition_point(below))
    }

    /// What leads from this version to another, each list in order. Pieces that both share are passed over.
    pub fn changes_to(&self, next: &Self) -> Changes {
        let mut changes = Changes::default();
        let (mut left, mut right) = (Cursor::new(self), Cursor::new(next));
        loop {
            while left.skip_shared(&mut right) {}
            let order = match (left.peek(), right.peek()) {
                (None, None) => return changes,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(mine), Some(theirs)) => mine.cmp(&theirs),
            };
            let gone = if order.is_le() { left.next() } else { None };
            let come = if order.is_ge() { right.next() } else { None };
            if gone.is_some() != come.is_some() {
                changes.gone.extend(gone);
                changes.come.extend(come);
            }
        }
    }

    /// The piece in which the member is or would be; `None` when it would be before all pieces.
    fn piece_of(&self, member: &Member) -> Option<usize> {
        self.pieces.partition_point(|piece| piece.first().is_some_and(|first| first <= member)).checked_sub(1)
    }

    fn from_sorted(members: Vec<Member>) -> Self {
        Self { len: members.len(), pieces: members.chunks(PIECE).map(|piece| Arc::new(piece.to_vec())).collect() }
    }
}

/// How one version of a group's members differs from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Who is no member any more.
    pub gone: Vec<Member>,
    /// Who is a member now.
    pub come: Vec<Member>,
}

/// A place between two members.
struct Cursor<'a> {
    members: &'a Members,
    piece: usize,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(members: &'a Members) -> Self {
        Self { members, piece: 0, at: 0 }
    }

    fn peek(&self) -> Option<Member> {
        self.members.pieces.get(self.piece)?.get(self.at).copied()
    }

    fn next(&mut self) -> Option<Member> {
        let piece = self.members.pieces.get(self.piece)?;
        let member = piece.get(self.at).copied();
        self.at += 1;
        if self.at >= piece.len() {
            (self.piece, self.at) = (self.piece + 1, 0);
        }
        member
    }

    /// Passes over a piece that is the same memory in both; `false` when there is none at this place.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        let mine = self.members.pieces.get(self.piece).filter(|_| self.at == 0);
        let theirs = other.members.pieces.get(other.piece).filter(|_| other.at == 0);
        let shared = mine.zip(theirs).is_some_and(|(mine, theirs)| Arc::ptr_eq(mine, theirs));
        if shared {
            self.piece += 1;
            other.piece += 1;
        }
        shared
    }
}

impl PartialEq for Members {
    fn eq(&self, other: &Self) -> bool {
        let same = |(one, other): (&Arc<Vec<Member>>, &Arc<Vec<Member>>)| Arc::ptr_eq(one, other);
        if self.len != other.len {
            return false;
        }
        (self.pieces.len() == other.pieces.len() && self.pieces.iter().zip(&other.pieces).all(same)) || self.iter().eq(other.iter())
    }
}

impl Eq for Members {}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl FromIterator<Member> for Members {
    fn from_iter<I: IntoIterator<Item = Member>>(members: I) -> Self {
        let mut members: Vec<Member> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        Self::from_sorted(members)
    }
}

impl From<BTreeSet<Member>> for Members {
    fn from(members: BTreeSet<Member>) -> Self {
        Self::from_sorted(members.into_iter().collect())
    }
}

impl<const N: usize> From<[Member; N]> for Members {
    fn from(members: [Member; N]) -> Self {
        members.into_iter().collect()
    }
}

impl Extend<Member> for Members {
    fn extend<I: IntoIterator<Item = Member>>(&mut self, members: I) {
        for member in members {
            self.insert(member);
        }
    }
}

type Piece = Arc<Vec<Member>>;
type Pieces<'a> =
    std::iter::FlatMap<std::slice::Iter<'a, Piece>, std::slice::Iter<'a, Member>, fn(&'a Piece) -> std::slice::Iter<'a, Member>>;

impl<'a> IntoIterator for &'a Members {
    type Item = &'a Member;
    type IntoIter = Pieces<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn member(number: u16) -> Member {
        Member::Address(IpAddr::V4(Ipv4Addr::from_bits(number.into())))
    }

    proptest! {
        #[test]
        fn it_is_the_set_that_a_plain_set_is_and_versions_differ_by_what_was_done(
            before in prop::collection::vec(0_u16..2_000, 0..1_500),
            steps in prop::collection::vec((any::<bool>(), 0_u16..2_000), 0..600),
        ) {
            let mut plain: BTreeSet<Member> = before.iter().copied().map(member).collect();
            let mut members: Members = before.iter().copied().map(member).collect();
            let (old, first) = (plain.clone(), members.clone());
            for (add, number) in steps {
                let member = member(number);
                prop_assert_eq!(members.contains(&member), plain.contains(&member));
                if add {
                    prop_assert_eq!(members.insert(member), plain.insert(member));
                } else {
                    prop_assert_eq!(members.remove(&member), plain.remove(&member));
                }
            }
            prop_assert_eq!(members.len(), plain.len());
            prop_assert!(members.iter().eq(plain.iter()));
            prop_assert!(first.iter().eq(old.iter()), "a copy stays what it was");
            prop_assert!(members.pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE));
            prop_assert_eq!(&members, &Members::from(plain.clone()));
            let changes = first.changes_to(&members);
            prop_assert!(changes.gone.iter().eq(old.difference(&plain)));
            prop_assert!(changes.come.iter().eq(plain.difference(&old)));
            let (low, high) = (member(300), member(900));
            prop_assert!(members.range(low..=high).eq(plain.range(low..=high)));
        }
    }

    #[test]
    fn a_copy_of_200_000_members_and_one_change_touch_one_piece() {
        let number = |number: u32| Member::Address(IpAddr::V4(Ipv4Addr::from_bits(number * 2)));
        let old: Members = (0..200_000).map(number).collect();
        let mut next = old.clone();
        assert!(next.insert(Member::Address(IpAddr::V4(Ipv4Addr::from_bits(100_001)))));
        let shared = old.pieces.iter().filter(|piece| next.pieces.iter().any(|other| Arc::ptr_eq(piece, other))).count();
        assert_eq!(shared, old.pieces.len() - 1);
        assert_eq!(old.changes_to(&next).come.len(), 1);
    }
}
