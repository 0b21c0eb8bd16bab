//! One walk over the affected entries: judge, cut, clear.

use super::affected::Affected;
use super::apply::{Change, Changed, Conntrack, dumps_of};
use super::entry::Entry;
use super::error::ConntrackError;
use super::judge::{Judgement, Scene};
use super::wire::Filter;
use firebreak_policy::model::{Direction, Generation};
use nix::errno::Errno;
use std::sync::Arc;

/// Decisions that are carried out at once, so that a hundred thousand of them are not held.
const CHUNK: usize = 1_024;

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Entries that were looked at.
    pub(super) entries: usize,
    /// Entries of other zones.
    pub(super) other_zones: usize,
    /// Connections that were cut.
    pub(super) cut: usize,
    /// Connections that are allowed again.
    pub(super) cleared: usize,
    /// Entries that carry the label, or carried it.
    pub(super) labelled: usize,
    /// Entries that the kernel did not let us change, and its first answer.
    pub(super) refused: Option<(usize, Errno)>,
    /// Nobody knows which state the kernel holds, so not everything was carried out.
    pub(super) is_unsure: bool,
}

/// What the kernel's sets hold, and for how long.
pub(super) trait Court {
    /// Called before entries are changed, and not within [`Self::while_in_force`]: the rules have to ask for the label before one is set.
    ///
    /// # Errors
    /// They may not ask; nothing is changed.
    fn before_changes(&mut self) -> Result<(), ConntrackError>;

    /// Calls `act` while nothing is committed: [`InForce::Same`] if that is what it was at the last call, or before the first
    /// what the pass began with.
    fn while_in_force(&mut self, act: &mut dyn FnMut(InForce));
}

/// What is in force now.
pub(super) enum InForce {
    /// What the caller knows of.
    Same,
    /// A newer one.
    Newer(Arc<Scene>),
    /// The answer to a commit was lost.
    Unknown,
}

/// Where a pass leaves what it did.
pub(super) trait Sink {
    /// A connection was cut, at this end, by this generation.
    fn cut(&mut self, entry: &Entry, direction: Direction, generation: Generation);
    /// The entry carries the label and stays.
    fn labelled(&mut self, entry: Entry);
}

/// A decision that is not carried out yet.
struct Decided {
    entry: Entry,
    act: Act,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Label(Direction),
    Delete(Direction),
    Clear,
}

impl Decided {
    fn change(&self) -> Change<'_> {
        match self.act {
            Act::Label(_) => Change::Label(&self.entry),
            Act::Delete(_) => Change::Delete(&self.entry),
            // One that we made anew does not translate, so it cannot carry its connection again.
            Act::Clear if self.entry.is_remade() => Change::Delete(&self.entry),
            Act::Clear => Change::Clear(&self.entry),
        }
    }
}

/// Judges the affected entries once and carries out what follows. `dumper` and `changer` are two sockets: changes are made while the dump goes on.
/// A commit that is made meanwhile is never contradicted: a connection that it allows may have begun since.
///
/// # Errors
/// Conntrack could not be read or changed; what was done until then holds, and the pass may be repeated.
pub(super) fn pass(
    dumper: &mut dyn Conntrack,
    changer: &mut dyn Conntrack,
    scene: Arc<Scene>,
    court: &mut dyn Court,
    affected: &Affected,
    sink: &mut dyn Sink,
) -> Result<Outcome, ConntrackError> {
    let mut pass = Pass { changer, scene, court, affected, sink, decided: Vec::new(), outcome: Outcome::default(), failed: None };
    let filters = if affected.everything { vec![Filter::All] } else { dumps_of(&affected.addresses, dumper) };
    for filter in filters {
        let passed = dumper.dump(filter, &mut |entry| pass.take(entry))?;
        pass.outcome.entries += passed.entries;
        pass.outcome.other_zones += passed.other_zones;
        pass.carry_out();
        if let Some(error) = pass.failed.take() {
            return Err(error);
        }
    }
    Ok(pass.outcome)
}

struct Pass<'a> {
    changer: &'a mut dyn Conntrack,
    scene: Arc<Scene>,
    court: &'a mut dyn Court,
    affected: &'a Affected,
    sink: &'a mut dyn Sink,
    decided: Vec<Decided>,
    outcome: Outcome,
    failed: Option<ConntrackError>,
}

impl Pass<'_> {
    fn take(&mut self, entry: Entry) {
        self.outcome.labelled += usize::from(entry.is_cut);
        let concerns = |address| self.affected.addresses.contains(&address);
        if !self.affected.everything && !concerns(entry.source()) && !concerns(entry.destination()) {
            return;
        }
        match decide(&self.scene, &entry) {
            Decision::Leave => return,
            Decision::IsCut => return self.sink.labelled(entry),
            Decision::Act(act) => self.decided.push(Decided { entry, act }),
        }
        if self.decided.len() >= CHUNK {
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        let mut decided = std::mem::take(&mut self.decided);
        if self.failed.is_some() || decided.is_empty() {
            return;
        }
        // Whatever they are: a newer state may make a cut of each.
        if let Err(error) = self.court.before_changes() {
            self.failed = Some(error);
            return;
        }
        let (court, changer) = (&mut *self.court, &mut *self.changer);
        let mut came = None;
        court.while_in_force(&mut |in_force| {
            let (decided, scene) = match in_force {
                InForce::Same => (std::mem::take(&mut decided), None),
                InForce::Newer(scene) => (again(&scene, std::mem::take(&mut decided)), Some(scene)),
                InForce::Unknown => return,
            };
            let result = change(changer, &decided);
            came = Some((decided, scene, result));
        });
        let Some((decided, scene, result)) = came else {
            self.outcome.is_unsure = true;
            return;
        };
        if let Some(scene) = scene {
            self.scene = scene;
        }
        match result {
            Ok(results) => decided.into_iter().zip(results).for_each(|(decided, result)| self.done(decided, result)),
            Err(error) => self.failed = Some(error),
        }
    }

    fn done(&mut self, Decided { entry, act }: Decided, result: Changed) {
        match (act, result) {
            (Act::Label(direction) | Act::Delete(direction), Changed::Done) => {
                if !entry.is_cut {
                    self.outcome.cut += 1;
                    self.sink.cut(&entry, direction, self.scene.generation);
                }
                if matches!(act, Act::Label(_)) {
                    self.outcome.labelled += 1;
                    self.sink.labelled(entry);
                }
            }
            (Act::Clear, Changed::Done) => self.outcome.cleared += 1,
            (_, Changed::Gone) => {}
            (_, Changed::Refused(errno)) => self.refused(errno),
            (_, Changed::NoRoom) => self.refused(Errno::ENOSPC),
        }
    }

    fn refused(&mut self, errno: Errno) {
        let (count, first) = self.outcome.refused.unwrap_or((0, errno));
        self.outcome.refused = Some((count + 1, first));
    }
}

enum Decision {
    Leave,
    /// It is cut already and stays so.
    IsCut,
    Act(Act),
}

fn decide(scene: &Scene, entry: &Entry) -> Decision {
    match (scene.judge(entry), entry.is_cut) {
        (Judgement::Foreign, _) | (Judgement::Keep, false) => Decision::Leave,
        (Judgement::Forbidden(_), true) => Decision::IsCut,
        (Judgement::Forbidden(direction), false) => Decision::Act(Act::Label(direction)),
        (Judgement::ForbiddenOneWay(direction), _) => Decision::Act(Act::Delete(direction)),
        (Judgement::Keep, true) => Decision::Act(Act::Clear),
    }
}

/// The same entries by a newer state. What it forbids of those that are not among them is looked at by the pass that follows its commit.
fn again(scene: &Scene, decided: Vec<Decided>) -> Vec<Decided> {
    let one = |Decided { entry, .. }| match decide(scene, &entry) {
        Decision::Leave | Decision::IsCut => None,
        Decision::Act(act) => Some(Decided { entry, act }),
    };
    decided.into_iter().filter_map(one).collect()
}

fn change(changer: &mut dyn Conntrack, decided: &[Decided]) -> Result<Vec<Changed>, ConntrackError> {
    let changes: Vec<Change<'_>> = decided.iter().map(Decided::change).collect();
    let mut results = changer.change(&changes)?;
    let no_room: Vec<usize> = (0..results.len()).filter(|at| results[*at] == Changed::NoRoom).collect();
    let anew: Vec<Change<'_>> = no_room.iter().map(|at| Change::Remake(&decided[*at].entry)).collect();
    for (at, result) in no_room.into_iter().zip(changer.change(&anew)?) {
        results[at] = result;
    }
    Ok(results)
}

#[cfg(test)]
#[path = "pass_tests.rs"]
mod tests;
