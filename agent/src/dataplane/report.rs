//! What the dataplane says it did, and a known change as it is told one.

use firebreak_policy::kernel_sets::{Comment, Element, SetId};

/// What opening found and did.
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
    /// They were there and the same: nothing was written.
    Adopted,
    /// They were there with the same sets and other rules: the rules were replaced in one transaction, the elements stayed.
    Replaced,
    /// They were there with other sets. They stay in force as they are; the first commit replaces rules and elements in one
    /// transaction.
    Outdated,
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

/// A change to the policy sets, when the caller knows what changed: its cost is that of the change, not of the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Elements that are to go; absent ones are no error.
    pub remove: Vec<(SetId, Element)>,
    /// Elements that are to be there, with this comment.
    pub put: Vec<(SetId, Element, Comment)>,
}

/// What `uninstall` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UninstallReport {
    /// Each object that was removed: `table inet firebreak`. Empty when there was nothing.
    pub removed: Vec<String>,
}
