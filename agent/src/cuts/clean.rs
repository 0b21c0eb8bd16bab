//! When the rules may pass by what asks for cut connections: after two looks at everything, one after the other, of which neither found an entry
//! with the label. One alone may have passed over an entry while the kernel moved them to a larger table. Pure.

use super::idle::SILENCE;
use std::time::Instant;

/// Looks that have to find nothing.
const LOOKS: u32 = 2;

/// What is known of labelled entries.
#[derive(Debug, Default)]
pub(super) struct Clean {
    /// How many looks at everything found none, since one was found or made.
    looks: u32,
    /// When everything is looked at for its sake.
    due: Option<Instant>,
}

impl Clean {
    /// After a look that was carried out whole. Says whether the rules are to be told.
    pub(super) fn looked(&mut self, now: Instant, at_everything: bool, found_none: bool) -> bool {
        if !found_none {
            self.not_yet(now);
            return false;
        }
        self.looks = self.looks.saturating_add(u32::from(at_everything));
        at_everything && self.looks >= LOOKS
    }

    /// Entries may carry it, or what is cut is remembered without one: both end with silence.
    pub(super) fn not_yet(&mut self, now: Instant) {
        *self = Self { looks: 0, due: Some(now + SILENCE) };
    }

    /// When to look at everything.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// It is looked at.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_looks_at_everything_without_a_label_between_them_tell_the_rules() {
        let now = Instant::now();
        let mut clean = Clean::default();
        assert!(!clean.looked(now, true, true), "one may have missed it");
        assert!(!clean.looked(now, false, true), "at some addresses");
        assert!(clean.looked(now, true, true));
        assert!(clean.looked(now, true, true), "and again: the rules may have been replaced");
        assert_eq!(clean.due(), None);
        assert!(!clean.looked(now, false, false), "one is found");
        assert_eq!(clean.due(), Some(now + SILENCE));
        assert!(!clean.looked(now, true, true));
        clean.not_yet(now);
        assert!(!clean.looked(now, true, true), "one was made between");
        assert!(clean.looked(now, true, true));
        assert!(!clean.take_due(now));
        assert!(clean.take_due(now + SILENCE));
        assert_eq!(clean.due(), None);
    }
}
