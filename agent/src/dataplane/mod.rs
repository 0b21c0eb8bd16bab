//! The kernel side: the only code that talks to `nft` and to nf_tables over netlink. Blocking; it has a thread of its own.
//!
//! The rules are fixed and installed once; policy is the contents of sets, changed in one transaction per generation.
//! Stopping leaves everything in force: only [`uninstall`] takes it away.

mod config;
mod desired;
mod error;
pub mod names;

pub use config::{DataplaneConfig, InterfacePattern, PatternError};
pub use desired::{Desired, ManagedInterface};
pub use error::{CommitError, OpenError, ReadBackError, Refusal, UninstallError};

/// The kernel's tables, held open. One per network namespace; dropping it leaves them in force.
#[derive(Debug)]
pub struct Dataplane {
    _config: DataplaneConfig,
}

/// What [`Dataplane::open`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What became of the fixed rules.
    pub skeleton: SkeletonState,
    /// Whether the kernel keeps other processes from changing our tables (kernel 6.9).
    pub owned: bool,
    /// How many elements our sets hold.
    pub elements: usize,
}

/// What became of the fixed rules at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkeletonState {
    /// There were none.
    Installed,
    /// They were there and the same.
    Adopted,
    /// They were there with the same sets and other rules: the rules were replaced in one transaction, the elements stayed.
    Replaced,
}

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitReport {
    /// Elements written, those with only a new comment too.
    pub added: usize,
    /// Elements removed, those with only a new comment too.
    pub removed: usize,
    /// Bytes sent; 0 when nothing had changed and nothing was written.
    pub bytes: usize,
    /// Elements that the kernel holds now.
    pub elements: usize,
}

/// One change to the policy sets, when the caller knows what changed: the cost is that of the change, not of the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Elements that are to go; absent ones are no error.
    pub remove: Vec<(firebreak_policy::kernel_sets::SetId, firebreak_policy::kernel_sets::Element)>,
    /// Elements that are to be there, with this comment.
    pub put: Vec<(firebreak_policy::kernel_sets::SetId, firebreak_policy::kernel_sets::Element, firebreak_policy::kernel_sets::Comment)>,
}

impl Dataplane {
    /// Finds or installs our tables, takes ownership, reads what they hold. Nothing is written when the tables are there and
    /// right. Runs `nft` when rules are to be installed.
    pub fn open(config: DataplaneConfig) -> Result<(Self, Opened), OpenError> {
        let _ = &config;
        Err(OpenError::Nft("not built yet".to_owned()))
    }

    /// Makes the kernel hold what is desired, in one transaction; nothing is written when it does already.
    /// On error the old contents stay whole.
    pub fn commit(&mut self, _desired: &Desired) -> Result<CommitReport, CommitError> {
        Ok(CommitReport::default())
    }

    /// As [`Self::commit`], for a known change of the policy sets.
    pub fn commit_delta(&mut self, _delta: &Delta) -> Result<CommitReport, CommitError> {
        Ok(CommitReport::default())
    }
}

/// What `uninstall` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UninstallReport {
    /// Each object that was removed: `table inet firebreak`. Empty when there was nothing.
    pub removed: Vec<String>,
}

/// Removes every kernel object that is ours and nothing else. A second time it removes nothing.
pub fn uninstall() -> Result<UninstallReport, UninstallError> {
    Ok(UninstallReport::default())
}

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
