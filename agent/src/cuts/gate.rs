//! Between commits and cuts: a connection is cut only while the state that forbids it is in force.
//!
//! A pass takes time, and a newer commit may allow what the pass is about to cut: a connection that began since would be reset though nothing
//! forbids it. So entries are changed under a lock that a commit takes too, a part of a pass at a time, and by the state of the last commit.

use super::error::ConntrackError;
use super::pass::{Court, InForce};
use super::rules::RulesLink;
use super::run::Made;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The state in force; `None` while nobody knows.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Option<Made>>);

/// Held during a commit; nothing is cut meanwhile.
#[derive(Debug)]
pub struct Turn<'a>(MutexGuard<'a, Option<Made>>);

impl Gate {
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Turn<'_> {
    /// The commit was made.
    pub fn made(&mut self, made: &Made) {
        *self.0 = Some(made.clone());
    }

    /// Whether it was made is not known: nothing is cut before the next one.
    pub fn unknown(&mut self) {
        *self.0 = None;
    }
}

/// Judges by what is in force.
#[derive(Debug)]
pub(super) struct Sitting {
    pub(super) gate: Arc<Gate>,
    /// Whose scene is the pass's.
    pub(super) of: Made,
    pub(super) rules: RulesLink,
    /// Whether the rules were made to ask.
    pub(super) has_asked: bool,
}

impl Court for Sitting {
    fn before_changes(&mut self) -> Result<(), ConntrackError> {
        // Not within a turn: the dataplane's thread may be waiting for one.
        self.has_asked = true;
        self.rules.ask()
    }

    fn while_in_force(&mut self, act: &mut dyn FnMut(InForce)) {
        let turn = self.gate.turn();
        match &*turn.0 {
            None => act(InForce::Unknown),
            Some(made) if made.is_same(&self.of) => act(InForce::Same),
            Some(made) => {
                self.of = made.clone();
                act(InForce::Newer(Arc::new(made.scene())));
            }
        }
    }
}
