//! The addresses of one workload. There is nearly always one or two of them, and a tree would cost 208 bytes for each workload of a cluster.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;

/// A set of a few addresses, sorted.
#[derive(Clone, PartialEq, Eq)]
pub struct AddressSet(Few);

#[derive(Clone, PartialEq, Eq)]
enum Few {
    One(IpAddr),
    /// Sorted, each once, never exactly one.
    Other(Box<[IpAddr]>),
}

impl Default for AddressSet {
    fn default() -> Self {
        Self(Few::Other(Box::default()))
    }
}

impl Deref for AddressSet {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match &self.0 {
            Few::One(address) => std::slice::from_ref(address),
            Few::Other(addresses) => addresses,
        }
    }
}

impl FromIterator<IpAddr> for AddressSet {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut rest = addresses.into_iter();
        let (first, second) = (rest.next(), rest.next());
        let (Some(one), Some(two)) = (first, second) else {
            return first.map_or_else(Self::default, |only| Self(Few::One(only)));
        };
        let mut all: Vec<IpAddr> = [one, two].into_iter().chain(rest).collect();
        all.sort_unstable();
        all.dedup();
        match all.as_slice() {
            [only] => Self(Few::One(*only)),
            _ => Self(Few::Other(all.into())),
        }
    }
}

impl<const N: usize> From<[IpAddr; N]> for AddressSet {
    fn from(addresses: [IpAddr; N]) -> Self {
        addresses.into_iter().collect()
    }
}

impl From<BTreeSet<IpAddr>> for AddressSet {
    fn from(addresses: BTreeSet<IpAddr>) -> Self {
        addresses.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a AddressSet {
    type Item = &'a IpAddr;
    type IntoIter = std::slice::Iter<'a, IpAddr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for AddressSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_set_that_a_tree_is(
            bytes in prop::collection::vec(0_u8..4, 0..6),
            others in prop::collection::vec(0_u8..4, 0..6),
        ) {
            let addresses = |bytes: &[u8]| bytes.iter().map(|it| IpAddr::from([10, 0, 0, *it])).collect::<Vec<_>>();
            let (bytes, others) = (addresses(&bytes), addresses(&others));
            let (tree, set): (BTreeSet<IpAddr>, AddressSet) = (bytes.iter().copied().collect(), bytes.iter().copied().collect());
            let (other_tree, other): (BTreeSet<IpAddr>, AddressSet) = (others.iter().copied().collect(), others.iter().copied().collect());
            prop_assert!(set.iter().eq(tree.iter()));
            prop_assert_eq!(set == other, tree == other_tree);
            prop_assert_eq!(set, AddressSet::from(tree));
        }
    }
}
