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
    /// Entries, of this network namespace.
    pub entries: usize,
    /// Buckets, of all namespaces together.
    pub buckets: usize,
}

/// Walking past so many buckets takes as long as reading one entry (measured on kernel 6.18: 60 ns a bucket, 1.5 us an entry).
const BUCKETS_PER_ENTRY: usize = 25;

/// The dumps in which every entry with one of these addresses at either end is found: two selected ones for each address, or one of
/// everything where that is less work. Each walks the kernel's whole table, whatever it selects.
pub(super) fn dumps_of(addresses: &BTreeSet<IpAddr>, conntrack: &dyn Conntrack) -> Vec<Filter> {
    let size = conntrack.size();
    let walk = size.buckets / BUCKETS_PER_ENTRY;
    let walks = addresses.len().saturating_mul(2);
    let is_selected = addresses.iter().all(|address| conntrack.selects(Family::of(*address)));
    if is_selected && walks.saturating_mul(walk) < walk.saturating_add(size.entries) {
        addresses.iter().flat_map(|address| [Filter::From(*address), Filter::To(*address)]).collect()
    } else {
        vec![Filter::All]
    }
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
