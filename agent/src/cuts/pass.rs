//! One walk over the affected entries: judge, cut, clear.

use super::affected::Affected;
use super::apply::{Change, Changed, Conntrack, dumps_of};
use super::entry::Entry;
use super::error::ConntrackError;
use super::judge::{Judgement, Scene};
use super::wire::Filter;
use firebreak_policy::model::Direction;
use nix::errno::Errno;

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
    /// Entries that the kernel did not let us change, and its first answer.
    pub(super) refused: Option<(usize, Errno)>,
}

/// Where a pass leaves what it did.
pub(super) trait Sink {
    /// A connection was cut, at this end.
    fn cut(&mut self, entry: &Entry, direction: Direction);
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
///
/// # Errors
/// Conntrack could not be read or changed; what was done until then holds, and the pass may be repeated.
pub(super) fn pass(
    dumper: &mut dyn Conntrack,
    changer: &mut dyn Conntrack,
    scene: &Scene<'_>,
    affected: &Affected,
    sink: &mut dyn Sink,
) -> Result<Outcome, ConntrackError> {
    let mut pass = Pass { changer, scene, affected, sink, decided: Vec::new(), outcome: Outcome::default(), failed: None };
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

struct Pass<'a, 'b> {
    changer: &'a mut dyn Conntrack,
    scene: &'a Scene<'b>,
    affected: &'a Affected,
    sink: &'a mut dyn Sink,
    decided: Vec<Decided>,
    outcome: Outcome,
    failed: Option<ConntrackError>,
}

impl Pass<'_, '_> {
    fn take(&mut self, entry: Entry) {
        let concerns = |address| self.affected.addresses.contains(&address);
        if !self.affected.everything && !concerns(entry.source()) && !concerns(entry.destination()) {
            return;
        }
        let act = match (self.scene.judge(&entry), entry.is_cut) {
            (Judgement::Foreign, _) | (Judgement::Keep, false) => return,
            (Judgement::Forbidden(_), true) => return self.sink.labelled(entry),
            (Judgement::Forbidden(direction), false) => Act::Label(direction),
            (Judgement::ForbiddenOneWay(direction), _) => Act::Delete(direction),
            (Judgement::Keep, true) => Act::Clear,
        };
        self.decided.push(Decided { entry, act });
        if self.decided.len() >= CHUNK {
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        let decided = std::mem::take(&mut self.decided);
        if self.failed.is_some() || decided.is_empty() {
            return;
        }
        let changes: Vec<Change<'_>> = decided.iter().map(Decided::change).collect();
        let result = self.changer.change(&changes).and_then(|mut results| {
            let no_room: Vec<usize> = (0..results.len()).filter(|at| results[*at] == Changed::NoRoom).collect();
            let again: Vec<Change<'_>> = no_room.iter().map(|at| Change::Remake(&decided[*at].entry)).collect();
            for (at, result) in no_room.into_iter().zip(self.changer.change(&again)?) {
                results[at] = result;
            }
            Ok(results)
        });
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
                    self.sink.cut(&entry, direction);
                }
                if matches!(act, Act::Label(_)) {
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
