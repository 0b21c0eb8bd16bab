//! The rules, as far as they know of cut connections.

use super::error::ConntrackError;
use super::run::Made;
use crate::dataplane::Revoked;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

/// Whether the rules ask each packet for the label.
pub trait Rules: Send + Sync {
    /// `true`: no conntrack entry carries the label, and none will before this is called with `false`. Says whether they pass by now.
    /// `false`: they ask when this has returned.
    ///
    /// # Errors
    /// In words; nobody knows what they do.
    fn pass_by_cuts(&self, nothing_is_cut: bool) -> Result<bool, String>;

    /// The cut connections that are remembered by what their answering ends send.
    ///
    /// # Errors
    /// In words.
    fn revoked(&self) -> Result<BTreeSet<Revoked>, String>;

    /// Forgets those, if this is in force still. Says how many were there.
    ///
    /// # Errors
    /// In words; none was forgotten.
    fn forget(&self, of: &Made, allowed: BTreeSet<Revoked>) -> Result<usize, String>;
}

/// Those of the dataplane, once it is there. Until then nothing was told that nothing is cut, but by an agent before.
#[derive(Clone, Default)]
pub(super) struct RulesLink(Arc<OnceLock<Box<dyn Rules>>>);

impl std::fmt::Debug for RulesLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RulesLink").finish_non_exhaustive()
    }
}

impl RulesLink {
    pub(super) fn set(&self, rules: Box<dyn Rules>) {
        // There is one dataplane.
        let _ = self.0.set(rules);
    }

    /// To be called before an entry is labelled, and while no commit is waited for: it waits for the dataplane's thread.
    pub(super) fn ask(&self) -> Result<(), ConntrackError> {
        self.0.get().map_or(Ok(()), |rules| rules.pass_by_cuts(false).map(drop).map_err(ConntrackError::Rules))
    }

    /// Forgets of the remembered those that `is_allowed` says are allowed by `of`. Says how many.
    pub(super) fn forget(&self, of: &Made, is_allowed: impl Fn(&Revoked) -> bool) -> Result<usize, ConntrackError> {
        let Some(rules) = self.0.get() else { return Ok(0) };
        let allowed: BTreeSet<Revoked> = rules.revoked().map_err(ConntrackError::Rules)?.into_iter().filter(is_allowed).collect();
        if allowed.is_empty() { Ok(0) } else { rules.forget(of, allowed).map_err(ConntrackError::Rules) }
    }

    /// No entry carries the label. Says whether the rules take that in.
    pub(super) fn pass_by(&self) -> Result<bool, ConntrackError> {
        self.0.get().map_or(Ok(false), |rules| rules.pass_by_cuts(true).map_err(ConntrackError::Rules))
    }
}
