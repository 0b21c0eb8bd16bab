//! Numbers that stand for the beginnings of keys. A sorted list keeps that of each of its pieces where it keeps where the piece is, so that a
//! search finds the piece without a look at a key, which is somewhere else in memory.

use crate::model::{ContainerId, GroupName, InterfaceName, NamespaceName, NetworkName, NodeName, PolicyKey, WorkloadId};
use crate::node_state::{GroupId, ObjectKey, SegmentId};
use crate::seek::seek;

/// What sorted maps have as keys.
pub trait Headed: Ord {
    /// A number in the order of the keys: where two differ, the keys are in the same order. What a key may be looked for by has the same.
    /// The number that is here for all says nothing; then the keys themselves are looked at.
    fn head(&self) -> u64 {
        0
    }
}

/// The first eight bytes, zeros after a shorter text, as a big-endian number.
pub(crate) fn of_text(text: &str) -> u64 {
    let mut head = [0; 8];
    head.iter_mut().zip(text.as_bytes()).for_each(|(to, byte)| *to = *byte);
    u64::from_be_bytes(head)
}

/// How many of the first `len` places are not above a key, when all that are come before all that are above it: by the heads that are at the
/// places, and by `is_not_above` where these are the key's.
pub(crate) fn not_above(len: usize, head: u64, head_at: impl Fn(usize) -> u64, is_not_above: impl Fn(usize) -> bool) -> usize {
    let below = seek(len, |at| head_at(at) < head);
    if below == len || head_at(below) != head {
        return below;
    }
    let alike = seek(len - below, |at| head_at(below + at) == head);
    below + seek(alike, |at| is_not_above(below + at))
}

impl Headed for str {
    fn head(&self) -> u64 {
        of_text(self)
    }
}

macro_rules! texts {
    ($($name:ty),*) => {
        $(impl Headed for $name {
            fn head(&self) -> u64 {
                of_text(self.as_str())
            }
        })*
    };
}

texts!(NodeName, NamespaceName, NetworkName, GroupName, InterfaceName);

impl Headed for ContainerId {
    fn head(&self) -> u64 {
        self.shared().head()
    }
}

impl Headed for GroupId {
    fn head(&self) -> u64 {
        self.0.head()
    }
}

impl Headed for SegmentId {
    fn head(&self) -> u64 {
        self.0.head()
    }
}

impl Headed for ObjectKey {
    fn head(&self) -> u64 {
        Self::head_of(self.kind, &self.id)
    }
}

/// By its node, which is the same for all of a node's.
impl Headed for WorkloadId {}
/// By its kind and namespace, which are the same for many.
impl Headed for PolicyKey {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_state::ObjectKind;
    use proptest::prelude::*;

    impl Headed for u32 {
        fn head(&self) -> u64 {
            u64::from(*self)
        }
    }

    /// Many have the head of others.
    impl Headed for u16 {
        fn head(&self) -> u64 {
            u64::from(*self / 50)
        }
    }

    fn object_key() -> impl Strategy<Value = ObjectKey> {
        let kinds = [ObjectKind::Group, ObjectKind::Segment, ObjectKind::Endpoint, ObjectKind::Node];
        // Often the same for the first eight bytes and beyond, or with the byte that stands for no byte.
        let id = prop_oneof!["[ab\0é]{0,10}", "abcdefg[hi]?[a-c]{0,3}"];
        (prop::sample::select(kinds.to_vec()), id).prop_map(|(kind, id)| ObjectKey::new(kind, id))
    }

    proptest! {
        #[test]
        fn where_heads_differ_the_keys_are_in_their_order(one in object_key(), other in object_key()) {
            let texts = ((*one.id).head().cmp(&(*other.id).head()), one.id.cmp(&other.id));
            for (heads, keys) in [(one.head().cmp(&other.head()), one.cmp(&other)), texts] {
                prop_assert!(heads.is_eq() || heads == keys, "{one} {other}");
            }
        }

        #[test]
        fn it_counts_what_is_not_above_a_key_whose_head_others_have_too(
            mut list in prop::collection::vec(0_u16..400, 0..300),
            key in 0_u16..400,
        ) {
            list.sort_unstable();
            let counted = not_above(list.len(), key.head(), |at| list[at].head(), |at| list[at] <= key);
            prop_assert_eq!(counted, list.partition_point(|it| *it <= key));
        }
    }
}
