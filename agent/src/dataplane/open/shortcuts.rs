//! The rules that come and go in the chains of an open dataplane: when they are there, and when they are away.

use super::Dataplane;
use crate::dataplane::counters;
use crate::dataplane::error::CommitError;
use crate::dataplane::flood::Floods;
use crate::dataplane::names::{COUNTER_DENIED_IN, COUNTER_DENIED_OUT, Layer};
use crate::dataplane::plan::{KernelState, Plan};
use crate::dataplane::shortcut::{self, Placed, Shortcuts};
use crate::dataplane::{moves, observe, revoked};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub(super) const SHORTCUTS_CHANGED: &str = "table inet firebreak: rules about bridges, floods and cut connections in its chains: changed";

/// How long the node is taken to observe when the kernel does not say.
const UNSURE: Duration = Duration::from_secs(1);

impl Dataplane {
    /// Whether rules may pass by what asks for the label of cut connections: `true` while no conntrack entry carries it. Says whether they do.
    /// `false` has to have been answered before the first entry is labelled; `true` is for who knows that none is and that none will be
    /// before `false` is. While a cut connection is remembered without an entry the answer is no.
    ///
    /// # Errors
    /// Nobody knows what they do; to be asked again.
    pub fn pass_by_cuts(&mut self, nothing_is_cut: bool) -> Result<bool, CommitError> {
        if self.is_outdated {
            // The rules of other versions always ask, or are replaced by ours that do.
            return Ok(false);
        }
        if nothing_is_cut && !self.nothing_is_cut {
            // A packet of a connection whose entry has just gone may be about to be remembered.
            moves::wait_for_packets_under_way();
            let left = revoked::read(&mut self.socket).map_err(|error| CommitError::Unknown(error.to_string()))?;
            if !left.is_empty() {
                return Ok(false);
            }
        }
        self.nothing_is_cut = nothing_is_cut;
        let wanted = self.wanted_shortcuts();
        self.write_shortcuts(wanted)?;
        Ok(nothing_is_cut)
    }

    /// Looks at how much is denied, and puts up or takes away what drops known denied packets first of all. To be called some times a second.
    ///
    /// # Errors
    /// What is there is whole, and is looked at again with the next call.
    pub fn shield(&mut self) -> Result<(), CommitError> {
        if self.is_outdated || !self.layers.contains(&Layer::Inet) {
            return Ok(());
        }
        let unread = |error: &dyn std::error::Error| CommitError::Unknown(error.to_string());
        let counters = counters::of_table(&mut self.socket, Layer::Inet).map_err(|error| unread(&error))?;
        let packets = |name| counters.iter().find(|counter| counter.name == name).map(|counter| counter.packets);
        let (Some(ingress), Some(egress)) = (packets(COUNTER_DENIED_IN), packets(COUNTER_DENIED_OUT)) else { return Ok(()) };
        let now = Instant::now();
        if self.floods.see(now, [ingress, egress]).is_empty() && self.shortcuts.as_ref().is_some_and(|held| !held.opens) {
            return Ok(());
        }
        self.observes_until = match observe::read(&mut self.socket) {
            Ok(observed) => observed.map(|element| now + element.left),
            Err(_) => Some(now + UNSURE),
        };
        let (before, wanted) = (self.shortcuts.clone(), self.wanted_shortcuts());
        self.write_shortcuts(wanted)?;
        let shields = |shortcuts: &Option<Shortcuts>| shortcuts.as_ref().map(|held| held.shields.clone()).unwrap_or_default();
        let (before, after) = (shields(&before), shields(&self.shortcuts));
        if before != after {
            tracing::info!(directions = ?after, "what is known to be denied is dropped first of all in these directions");
        }
        Ok(())
    }

    /// Nobody is refused any more by what was denied a moment ago. Has to be before anything is let through that was not; what puts the rules right
    /// puts the shield up again, empty.
    pub(super) fn drop_shield(&mut self) -> Result<(), CommitError> {
        if self.shortcuts.as_ref().is_some_and(|held| held.shields.is_empty()) || !self.layers.contains(&Layer::Inet) {
            return Ok(());
        }
        let before = self.shortcuts.take();
        let wrote = shortcut::unshield(&mut self.socket)?;
        self.commits += u64::from(wrote);
        self.shortcuts = before.map(Shortcuts::unshielded);
        Ok(())
    }

    /// What is found at a start is ours if it is whole; words if it is not.
    pub(super) fn adopt_shortcuts(&mut self, found: &[Placed]) -> Option<String> {
        let actual = self.actual.as_ref()?;
        let bridges: BTreeSet<u32> = actual.bridges().collect();
        let ours = Shortcuts::of(found).filter(|shortcuts| shortcuts.bridges.is_subset(&bridges));
        let shields = ours.as_ref().map(|shortcuts| shortcuts.shields.clone()).unwrap_or_default();
        self.floods = Floods::new(self.config.flood_rate, shields);
        self.nothing_is_cut = ours.as_ref().is_some_and(|shortcuts| shortcuts.nothing_is_cut);
        let words = ours.is_none().then(|| SHORTCUTS_CHANGED.to_owned());
        self.shortcuts = ours;
        words
    }

    pub(super) fn wanted_shortcuts(&self) -> Shortcuts {
        let bridges = self.actual.iter().flat_map(KernelState::bridges);
        let observes = self.observes_until.is_some_and(|until| Instant::now() < until);
        let shields = if observes { BTreeSet::new() } else { self.floods.shielded().clone() };
        Shortcuts::new(self.nothing_is_cut, bridges).shielding(shields)
    }

    /// As they should be. Where that fails the fixed rules do, and the next commit tries again.
    pub(super) fn put_shortcuts(&mut self) {
        let wanted = self.wanted_shortcuts();
        if let Err(error) = self.write_shortcuts(wanted) {
            tracing::warn!(error = &error as &dyn std::error::Error, "rules that make packets cheaper are not there");
        }
    }

    pub(super) fn write_shortcuts(&mut self, wanted: Shortcuts) -> Result<(), CommitError> {
        if self.shortcuts.as_ref() == Some(&wanted) || !self.layers.contains(&Layer::Inet) {
            return Ok(());
        }
        let before = self.shortcuts.take();
        match shortcut::write(&mut self.socket, &wanted) {
            Ok(wrote) => {
                self.commits += u64::from(wrote);
                self.shortcuts = Some(wanted);
                Ok(())
            }
            Err(error) => {
                // Refused, they are as they were.
                self.shortcuts = before.filter(|_| matches!(error, CommitError::Transaction { .. }));
                Err(error)
            }
        }
    }

    /// A bridge that is about to be unknown loses its rules first.
    pub(super) fn drop_shortcuts_of(&mut self, plan: &Plan) -> Result<(), CommitError> {
        let gone: BTreeSet<u32> = plan.interfaces_that_go(Layer::Inet).collect();
        let held = self.shortcuts.clone().unwrap_or_else(|| self.wanted_shortcuts());
        if gone.is_empty() || (self.shortcuts.is_some() && held.bridges.is_disjoint(&gone)) {
            return Ok(());
        }
        let left = held.bridges.difference(&gone).copied().collect();
        self.write_shortcuts(Shortcuts { bridges: left, ..held })
    }
}
