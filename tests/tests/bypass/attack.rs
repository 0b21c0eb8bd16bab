//! An attack: frames, what it would do, and what is to come of it.

use crate::arena::Arena;
use crate::scene::Scene;

/// Frames of an attack in a scene; none if it has no form there.
pub(crate) type Frames = Box<dyn Fn(&Scene) -> Vec<Vec<u8>>>;

/// Who must not hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Victim,
    Friend,
    Bystander,
    /// The victim on the other node.
    RemoteVictim,
}

/// How its success is seen.
#[derive(Clone, Copy)]
pub(crate) enum Effect {
    /// Its marker arrives at one of them.
    Arrives(&'static [Who]),
    /// Something has changed in a victim or in the node: what is prepared first, and what then shows it.
    Shows(fn(&Arena, &Scene) -> anyhow::Result<()>, fn(&Arena, &Scene) -> anyhow::Result<bool>),
}

/// What is to come of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// Stopped; without enforcement it succeeds in one topology or family at least.
    Stopped,
    /// It succeeds nowhere, not even without enforcement, because.
    Harmless(&'static str),
    /// It is not stopped, because. docs/threat-model.md names it.
    Remains(&'static str),
}

pub(crate) struct Attack {
    pub(crate) name: String,
    pub(crate) frames: Frames,
    pub(crate) effect: Effect,
    pub(crate) fate: Fate,
}

/// An attack that is to be stopped before a marker arrives at the victim.
pub(crate) fn attack(name: impl Into<String>, frames: impl Fn(&Scene) -> Vec<Vec<u8>> + 'static) -> Attack {
    Attack { name: name.into(), frames: Box::new(frames), effect: Effect::Arrives(&[Who::Victim]), fate: Fate::Stopped }
}

impl Attack {
    /// It must not arrive at any of these.
    pub(crate) fn at(mut self, who: &'static [Who]) -> Self {
        self.effect = Effect::Arrives(who);
        self
    }

    /// It shows in another way.
    pub(crate) fn shows(
        mut self,
        prepare: fn(&Arena, &Scene) -> anyhow::Result<()>,
        done: fn(&Arena, &Scene) -> anyhow::Result<bool>,
    ) -> Self {
        self.effect = Effect::Shows(prepare, done);
        self
    }

    pub(crate) fn harmless(mut self, because: &'static str) -> Self {
        self.fate = Fate::Harmless(because);
        self
    }

    pub(crate) fn remains(mut self, because: &'static str) -> Self {
        self.fate = Fate::Remains(because);
        self
    }
}
