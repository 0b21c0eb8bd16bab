//! Cuts: established connections that a generation forbids are ended, so that they cannot come back in either direction, and told.
//!
//! ```text
//! commit --> CutThread: state + local workloads --affected (pure)--> which addresses changed
//!            conntrack dump of those --judge (pure)--> keep, forbidden
//!            forbidden: label bit on the entry (apply); the skeleton's chain `cut` answers with RST or ICMP
//!            each cut --> a record to the outbox of `flows`
//! ```
//!
//! What holds:
//! 1. The verdict is that of the kernel's rules for a first packet from the entry's source to its real destination ([`judge`]).
//! 2. An entry is labelled, never just deleted: after a deletion the other end's next packet would be a new connection, which may be allowed.
//!    Where an entry has no room for a label (it is older than our rules) it is made anew with one, in the same `sendmsg`.
//! 3. Everything is judged at the first commit after a start, so that a cut which an agent before did not get to is made. After that only
//!    connections of workloads whose policy, peers or addresses changed are; everything again when the same is committed once more.
//! 4. Each commit is followed by two passes: the second finds entries that were not confirmed during the first.
//! 5. A connection that is allowed again loses its label. The label of others is left alone.
//! 6. Only entries of zone 0 are judged, the one that our rules see unless somebody sets zones; others are counted and said once.
//! 7. A commit waits for one part of a pass at most (1,024 entries), and entries are changed by the state of the last commit only ([`gate`]).
//!    The latest state wins; what changed meanwhile adds up.
//! 8. The rules ask for the label before the first entry gets one ([`rules`]), and pass by it when no entry has one ([`clean`]).
//! 9. A new owner of an address inherits no entry of the one before ([`owners`]).
//!
//! This is, beside `dataplane` and `flows`, the only code that speaks nfnetlink.

mod affected;
mod apply;
mod clean;
mod entry;
mod error;
mod gate;
mod idle;
mod judge;
mod owners;
mod pass;
mod rules;
mod run;
mod socket;
mod wire;

pub use affected::{Affected, affected};
pub(crate) use apply::dumps_of;
pub use apply::{Change, Changed, Conntrack, Size};
pub use entry::{Counters, Detail, Entry, SctpInfo, TcpInfo, Tuple};
pub use error::ConntrackError;
pub use gate::Turn;
pub use judge::{Judgement, Scene};
pub use owners::Owners;
pub use rules::Rules;
pub use run::{CutConfig, CutHandle, CutLinks, Made, WARNING, count_connections, probe, start};
pub use socket::{ConntrackSocket, Passed, Selects};
pub use wire::{Filter, Label};
