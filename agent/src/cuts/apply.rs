//! What is done to an entry, and what came of it.

use super::entry::Entry;
use super::error::ConntrackError;
use super::socket::Passed;
use super::wire::Filter;
use firebreak_policy::model::Family;
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Conntrack, as far as cuts use it: [`super::ConntrackSocket`], or a stand-in in tests.
pub trait Conntrack: Send {
    /// Hands each entry that the filter takes to `take`, some perhaps twice.
    ///
    /// # Errors
    /// The kernel refused, or the socket broke; some entries may have been handed over.
    fn dump(&mut self, filter: Filter, take: &mut dyn FnMut(Entry)) -> Result<Passed, ConntrackError>;

    /// Whether the kernel itself selects the entries of a family by address.
    fn selects(&self, family: Family) -> bool;

    /// How large the table is now.
    fn size(&self) -> Size;

    /// The entry as it is now; `None` if it has ended, whatever has its tuples now.
    ///
    /// # Errors
    /// The socket broke.
    fn find(&mut self, entry: &Entry) -> Result<Option<Entry>, ConntrackError>;

    /// Makes the changes, each by itself, and says what came of each, in order.
    ///
    /// # Errors
    /// The socket broke; some changes may have been made.
    fn change(&mut self, changes: &[Change<'_>]) -> Result<Vec<Changed>, ConntrackError>;
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Cut it.
    Label(&'a Entry),
    /// It is allowed again.
    Clear(&'a Entry),
    /// End it without a trace.
    Delete(&'a Entry),
    /// Delete it and make it again with the label: for one without room for labels. If a packet comes between the two, what it made is
    /// labelled.
    Remake(&'a Entry),
}

/// How large conntrack's table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// IPv4 entries of this network namespace, as far as they can be told from the others.
    pub v4: usize,
    /// The same of IPv6.
    pub v6: usize,
    /// Buckets, of all namespaces together.
    pub buckets: usize,
}

/// Walking past so many buckets takes as long as reading one entry (kernel 6.18: 0.1 us a bucket, 2.4 us an entry).
const BUCKETS_PER_ENTRY: usize = 20;

/// The dumps in which every entry with one of these addresses at either end is found, by what is less work: each walks the kernel's whole
/// table, whatever it selects, and reads what it selects.
pub(crate) fn dumps_of(addresses: &BTreeSet<IpAddr>, conntrack: &dyn Conntrack) -> Vec<Filter> {
    let size = conntrack.size();
    let walk = size.buckets / BUCKETS_PER_ENTRY;
    let mut filters = Vec::new();
    let mut work = 0_usize;
    for (family, entries) in [(Family::V4, size.v4), (Family::V6, size.v6)] {
        let of_family = || addresses.iter().copied().filter(|address| Family::of(*address) == family);
        let (walks, whole) = (of_family().count().saturating_mul(2), walk.saturating_add(entries));
        if walks == 0 {
            continue;
        }
        let selected = walk.saturating_mul(walks);
        if conntrack.selects(family) && selected < whole {
            work = work.saturating_add(selected);
            filters.extend(of_family().flat_map(|address| [Filter::From(address), Filter::To(address)]));
        } else {
            work = work.saturating_add(whole);
            filters.push(Filter::Family(family));
        }
    }
    if walk.saturating_add(size.v4).saturating_add(size.v6) < work { vec![Filter::All] } else { filters }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is done.
    Done,
    /// The entry has no room for labels: it is older than the first rule that asks for one.
    NoRoom,
    /// The entry has ended.
    Gone,
    /// The kernel refused.
    Refused(Errno),
}

impl From<Option<Errno>> for Changed {
    fn from(answer: Option<Errno>) -> Self {
        match answer {
            None => Self::Done,
            Some(Errno::ENOSPC) => Self::NoRoom,
            Some(Errno::ENOENT) => Self::Gone,
            Some(errno) => Self::Refused(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stand(Size, [bool; 2]);

    impl Conntrack for Stand {
        fn dump(&mut self, _: Filter, _: &mut dyn FnMut(Entry)) -> Result<Passed, ConntrackError> {
            Ok(Passed::default())
        }

        fn selects(&self, family: Family) -> bool {
            self.1[usize::from(family == Family::V6)]
        }

        fn size(&self) -> Size {
            self.0
        }

        fn find(&mut self, _: &Entry) -> Result<Option<Entry>, ConntrackError> {
            Ok(None)
        }

        fn change(&mut self, _: &[Change<'_>]) -> Result<Vec<Changed>, ConntrackError> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn entries_are_found_by_the_least_work() {
        let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]));
        let small = Size { v4: 500, v6: 500, buckets: 262_144 };
        let large = Size { v4: 90_000, v6: 10_000, buckets: 262_144 };
        let unknown = Size { v4: 0, v6: 0, buckets: usize::MAX };
        let by_address = [Filter::From(v4), Filter::To(v4)];
        type Case<'a> = (&'a str, Size, [bool; 2], &'a [IpAddr], Vec<Filter>);
        let cases: [Case<'_>; 6] = [
            ("few entries are read at once", small, [true, true], &[v4, v6], vec![Filter::All]),
            ("one family", small, [true, true], &[v4], vec![Filter::Family(Family::V4)]),
            ("many are selected", large, [true, true], &[v4], by_address.to_vec()),
            (
                "what the kernel cannot select is read",
                large,
                [true, false],
                &[v4, v6],
                [&by_address[..], &[Filter::Family(Family::V6)]].concat(),
            ),
            ("nothing is selected", large, [false, false], &[v4, v6], vec![Filter::All]),
            ("the size is not known", unknown, [true, true], &[v4, v6], vec![Filter::All]),
        ];
        for (name, size, selects, addresses, expected) in cases {
            assert_eq!(dumps_of(&addresses.iter().copied().collect(), &Stand(size, selects)), expected, "{name}");
        }
        let many: BTreeSet<IpAddr> = (0..50).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        assert_eq!(dumps_of(&many, &Stand(large, [true, true])), [Filter::Family(Family::V4)], "many addresses");
    }
}
