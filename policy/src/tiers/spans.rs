//! Sets of addresses of one family as sorted ranges, with the algebra that tiers need.

use crate::kernel_sets::Span;
use crate::model::Family;
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of one family, as numbers: ranges in order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spans(Vec<(u128, u128)>);

impl Spans {
    /// Every address of the family.
    pub(super) fn whole(family: Family) -> Self {
        Self(vec![(0, last(family))])
    }

    /// Of ranges in any order that may overlap.
    pub(super) fn of(mut ranges: Vec<(u128, u128)>) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match joined.last_mut() {
                Some((_, end)) if end.checked_add(1).is_none_or(|next| first <= next) => *end = last.max(*end),
                Some(_) | None => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        match (self.is_empty(), other.is_empty()) {
            (true, _) => other.clone(),
            (_, true) => self.clone(),
            (false, false) => Self::of(self.0.iter().chain(&other.0).copied().collect()),
        }
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = Vec::new();
        while let (Some(&&(first, last)), Some(&&(their_first, their_last))) = (left.peek(), right.peek()) {
            let (from, to) = (first.max(their_first), last.min(their_last));
            if from <= to {
                common.push((from, to));
            }
            if last <= their_last {
                left.next();
            } else {
                right.next();
            }
        }
        Self(common)
    }

    pub(super) fn without(&self, other: &Self) -> Self {
        let mut rest = Vec::new();
        let mut holes = other.0.iter().peekable();
        for &(first, last) in &self.0 {
            let mut from = Some(first);
            while let (Some(start), Some(&&(hole, hole_end))) = (from, holes.peek()) {
                if hole > last {
                    break;
                }
                if hole_end >= start {
                    if let Some(before) = hole.checked_sub(1).filter(|before| *before >= start) {
                        rest.push((start, before));
                    }
                    from = hole_end.checked_add(1).filter(|next| *next <= last);
                }
                // A hole that goes on behind this range may cut the next one too.
                if hole_end > last {
                    break;
                }
                holes.next();
            }
            rest.extend(from.map(|start| (start, last)));
        }
        Self(rest)
    }

    /// As ranges of addresses.
    pub(super) fn ranges(&self, family: Family) -> Vec<Span<IpAddr>> {
        self.0.iter().map(|&(first, last)| Span { first: address(first, family), last: address(last, family) }).collect()
    }

    /// The blocks that are these addresses, disjoint, as few as there can be.
    pub(super) fn blocks(&self, family: Family) -> Vec<IpNet> {
        let blocks = |&(first, last): &(u128, u128)| -> Vec<IpNet> {
            match (address(first, family), address(last, family)) {
                (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
                (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
                // Both are of one family by construction.
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
            }
        };
        self.0.iter().flat_map(blocks).collect()
    }
}

/// An address as a number.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(number: u128, family: Family) -> IpAddr {
    match family {
        // No number of the family is larger.
        Family::V4 => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

fn last(family: Family) -> u128 {
    match family {
        Family::V4 => u128::from(u32::MAX),
        Family::V6 => u128::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sets within 0..32 and at the end of the axis, as lists of what is in them.
    fn small() -> impl Strategy<Value = Vec<(u128, u128)>> {
        let at = || prop_oneof![0_u128..32, Just(u128::MAX), Just(u128::MAX - 1)];
        prop::collection::vec((at(), at()).prop_map(|(one, other)| (one.min(other), one.max(other))), 0..5)
    }

    fn has(ranges: &[(u128, u128)], number: u128) -> bool {
        ranges.iter().any(|(first, last)| (*first..=*last).contains(&number))
    }

    proptest! {
        #[test]
        fn the_algebra_is_that_of_sets(one in small(), other in small()) {
            let (a, b) = (Spans::of(one.clone()), Spans::of(other.clone()));
            for number in (0..40).chain([u128::MAX - 2, u128::MAX - 1, u128::MAX]) {
                let (in_one, in_other) = (has(&one, number), has(&other, number));
                prop_assert_eq!(has(&a.0, number), in_one);
                prop_assert_eq!(has(&a.union(&b).0, number), in_one || in_other);
                prop_assert_eq!(has(&a.intersection(&b).0, number), in_one && in_other);
                prop_assert_eq!(has(&a.without(&b).0, number), in_one && !in_other, "{:?} without {:?}", a, b);
            }
            for made in [a.union(&b), a.intersection(&b), a.without(&b)] {
                prop_assert_eq!(Spans::of(made.0.clone()), made, "in order, neither overlapping nor touching");
            }
            prop_assert_eq!(Spans::of(a.blocks(Family::V6).iter().map(|it| (number(it.network()), number(it.broadcast()))).collect()), a);
        }
    }
}
