//! The comparison of one set, a part at a time: a set of a million elements takes seconds to read, and a commit would wait for it.
//!
//! The dump has a socket of its own, where it rests between two parts. Each element is looked up as it comes and they are counted, so that nothing is
//! held. A commit, or anybody's change of the ruleset, makes the dump one of no one moment; then it begins again, and after some attempts the
//! set is left for the next round. What looks different is only a suspicion: it is for a comparison in one go to say so.

use super::error::ReadBackError;
use super::names::{SetRef, TABLE};
use super::plan::KernelState;
use super::read_back::each_element;
use super::socket::{Dump, NetfilterSocket, RequestError};
use super::wire::{Message, Received, Writer, element};
use nix::errno::Errno;
use std::time::Instant;

/// A set is begun so often in one round.
const ATTEMPTS: u32 = 3;

/// A comparison that is under way.
#[derive(Debug)]
pub(super) struct Walk {
    socket: NetfilterSocket,
    set: SetRef,
    dump: Dump,
    /// Which commit the state was of when it began.
    commits: u64,
    seen: usize,
    attempt: u32,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stands {
    /// There is more to read.
    More,
    /// The set holds what it should.
    Same,
    /// It does not look so.
    Unsure,
    /// It changes too often for parts to be compared.
    Busy,
}

impl Walk {
    /// Begins with a set.
    pub(super) fn begin(set: SetRef, commits: u64) -> Result<Self, ReadBackError> {
        let mut socket = NetfilterSocket::open().map_err(ReadBackError::Socket)?;
        let dump = ask(&mut socket, set)?;
        Ok(Self { socket, set, dump, commits, seen: 0, attempt: 1 })
    }

    /// Which set.
    pub(super) fn set(&self) -> SetRef {
        self.set
    }

    /// Reads on for some time, at least a part. `committed` is what it should hold, after so many commits.
    pub(super) fn go_on(&mut self, committed: &KernelState, commits: u64, until: Instant) -> Result<Stands, ReadBackError> {
        let set = self.set;
        loop {
            if self.commits != commits || self.dump.interrupted {
                if self.attempt >= ATTEMPTS {
                    return Ok(Stands::Busy);
                }
                *self = Self { attempt: self.attempt + 1, ..Self::begin(set, commits)? };
            }
            let (mut seen, mut is_right) = (0, true);
            let mut take = |received: &Received<'_>| {
                let read = each_element(set, received, |entry, comment| {
                    seen += 1;
                    is_right &= committed.has(set, &entry, comment);
                });
                is_right &= read.is_ok();
            };
            let is_over = match self.socket.go_on(&mut self.dump, &mut take) {
                Ok(is_over) => is_over,
                Err(RequestError::Refused(refusal)) if refusal.errno == Errno::ENOENT => return Ok(Stands::Unsure),
                Err(error) => return Err(refused(set, error)),
            };
            self.seen += seen;
            match (self.dump.interrupted, is_right, is_over) {
                (true, ..) => {}
                (false, false, _) => return Ok(Stands::Unsure),
                (false, true, true) => {
                    return Ok(if self.seen == committed.count(set) { Stands::Same } else { Stands::Unsure });
                }
                (false, true, false) => {}
            }
            if Instant::now() >= until {
                return Ok(Stands::More);
            }
        }
    }
}

fn ask(socket: &mut NetfilterSocket, set: SetRef) -> Result<Dump, ReadBackError> {
    let name = set.name();
    let asked = |writer: &mut Writer| {
        writer.text(element::LIST_TABLE, TABLE);
        writer.text(element::LIST_SET, &name);
    };
    socket.begin_dump(Message::GetSetElement, Some(set.layer()), asked).map_err(|error| refused(set, error))
}

fn refused(set: SetRef, error: RequestError) -> ReadBackError {
    match error {
        RequestError::Socket(error) => ReadBackError::Socket(error),
        RequestError::Refused(source) => ReadBackError::Refused { set: set.to_string(), source },
        RequestError::Interrupted => ReadBackError::Busy { set: set.to_string(), attempts: ATTEMPTS },
    }
}
