//! The texts that ids of groups, segments and objects are. They are keys of sorted maps with hundreds of entries on every node, so that a text
//! carries its beginning with it: two that differ there are told apart without a look at the texts themselves, which are somewhere else in memory.

use crate::headed::of_text;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A text in memory that all copies share. Its order is that of its bytes.
#[derive(Clone)]
pub struct IdText {
    /// The first eight bytes, zeros after a shorter text, as a big-endian number: where two of these differ, the texts are in the same order.
    head: u64,
    text: Arc<str>,
}

impl From<Arc<str>> for IdText {
    fn from(text: Arc<str>) -> Self {
        Self { head: of_text(&text), text }
    }
}

impl From<&str> for IdText {
    fn from(text: &str) -> Self {
        Self::from(Arc::<str>::from(text))
    }
}

impl From<String> for IdText {
    fn from(text: String) -> Self {
        Self::from(Arc::<str>::from(text))
    }
}

impl Deref for IdText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl IdText {
    /// A number in the order of the texts: where two differ, the texts are in the same order.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }
}

impl PartialEq for IdText {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.head == other.head && (Arc::ptr_eq(&self.text, &other.text) || *self.text == *other.text)
    }
}

impl Eq for IdText {}

impl Ord for IdText {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.head.cmp(&other.head).then_with(|| match Arc::ptr_eq(&self.text, &other.text) {
            true => Ordering::Equal,
            false => self.text.cmp(&other.text),
        })
    }
}

impl PartialOrd for IdText {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl std::hash::Hash for IdText {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for IdText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for IdText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts() -> impl Strategy<Value = String> {
        // Often the same for the first eight bytes and beyond, or with the byte that stands for no byte.
        prop_oneof!["[ab\0]{0,10}", "abcdefg[hi]?[a-c\0é]{0,3}", any::<String>()]
    }

    proptest! {
        #[test]
        fn it_is_equal_and_ordered_as_its_text_is(one in texts(), other in texts()) {
            let (left, right) = (IdText::from(one.as_str()), IdText::from(other.clone()));
            prop_assert_eq!(left.cmp(&right), one.cmp(&other));
            prop_assert_eq!(left == right, one == other);
            prop_assert_eq!(left.cmp(&left.clone()), Ordering::Equal);
            prop_assert_eq!(left.to_string(), one);
        }
    }
}
