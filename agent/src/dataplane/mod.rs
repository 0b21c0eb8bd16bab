//! The kernel side: the only code that talks to `nft` and to nf_tables over netlink. Blocking; it has a thread of its own.
//!
//! The rules are fixed and installed once; policy is the contents of sets, changed in one transaction per generation.
//! Stopping leaves everything in force: only [`uninstall`] takes it away.

mod bind;
mod check;
mod config;
mod counters;
mod desired;
mod element;
mod element_text;
mod error;
mod feature;
mod flood;
mod guard_counts;
mod install;
mod literal;
mod mark;
mod moves;
pub mod names;
mod nft;
mod observe;
mod open;
mod overlap;
mod plan;
mod ports;
mod preflight;
mod read_back;
mod render;
mod render_shared;
mod report;
mod revoked;
mod shared;
mod shared_text;
mod shortcut;
mod skeleton;
mod socket;
mod tables;
mod uninstall;
mod walk;
mod watch;
mod wire;

pub use check::Check;
pub use config::{DataplaneConfig, InterfacePattern, PatternError};
pub use counters::{KernelCounter, read_counters};
pub use desired::{Claim, Desired, MacAddress, ManagedInterface};
pub use error::{CommitError, Culprit, ObserveError, OpenError, ReadBackError, Refusal, UninstallError};
pub use feature::{Feature, UnknownFeature};
pub use guard_counts::{GuardCount, GuardReader, GuardReading};
pub use nft::Nft;
pub(crate) use nft::{NftRefusal, NftTask, run_nft};
pub use observe::{ObserveElement, observe_without_agent};
pub use open::Dataplane;
pub use preflight::{Finding, Severity, absent, preflight};
pub use report::{CommitReport, Delta, Opened, SkeletonState, UninstallReport};
pub use revoked::{Revoked, read_revoked};
pub use uninstall::uninstall;
pub use watch::{ChangeWatch, ForeignChange};
