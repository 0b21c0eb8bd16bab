//! What policies in Audit mode would deny: connections that the rules have let through are judged once more, as if those policies were enforced, and
//! told with verdict AUDIT. Nothing of it is in the kernel's rules, so that an Audit policy can change no verdict.
//!
//! ```text
//! commit --> AuditThread: state, local workloads --Scenes (pure)--> by what is judged; nothing where no policy audits
//! conntrack, a new entry (it has passed every hook) --judge twice (pure)--> let through, would be denied --> a packet for `flows`
//! ```
//!
//! What holds:
//! 1. The kernel is asked for new entries only while a policy in Audit mode is about somebody here.
//! 2. What the policies in force deny is not told here: `flows` tells it. That is so while the node observes, too.
//! 3. A flow counts one packet for each connection. Connections that were there before are found by a dump when what is audited changes; they open
//!    a flow and count as one. New ones that come during a dump are told as new ones, whatever the dump has of them.
//! 4. Entries that the kernel could not tell of (its buffer was full) are found by a dump, as far as they are still there; that it happened is
//!    counted, and a warning of the node.

mod run;
mod scene;

pub use run::{AuditHandle, AuditLinks, WARNING, start};
pub use scene::Scenes;
