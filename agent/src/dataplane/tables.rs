//! Our tables as objects: made with the flag `persist`, taken over as their owner, looked into, deleted. Netlink only: `nft` 1.0.6
//! knows neither flag.
//!
//! An owned table can be changed through its owner's socket alone, `nft flush ruleset` leaves it, and with `persist` it outlives
//! the owner as an orphan, which the next agent takes over (kernel 6.9). A plain table cannot be converted, so it is made right.

use super::error::{OpenError, Refusal};
use super::names::{BoundForm, COUNTER_UNKNOWN_IN, Layer, SET_KNOWN_IF, TABLE};
use super::skeleton::{Present, SetShape, Stamp};
use super::socket::{NetfilterSocket, RequestError};
use super::wire::{CREATE, Message, Received, chain, object, set, table};
use nix::errno::Errno;
use std::time::Duration;

/// A table as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) flags: u32,
}

impl Found {
    /// Whether it outlives its owner, and can be owned by the next.
    pub(super) fn persists(self) -> bool {
        self.flags & table::FLAG_PERSIST != 0
    }
}

/// How often a table that is owned is asked for again: a killed agent's socket is closed a moment after it.
const ADOPT_ATTEMPTS: u32 = 20;
const ADOPT_PAUSE: Duration = Duration::from_millis(50);

/// Looks for our table; `None` when there is none.
pub(super) fn find(socket: &mut NetfilterSocket, layer: Layer) -> Result<Option<Found>, OpenError> {
    let answer = socket.get(
        Message::GetTable,
        Some(layer),
        |writer| writer.text(table::NAME, TABLE),
        |answer| answer.attributes().find(table::FLAGS).and_then(|flags| flags.as_u32()).unwrap_or(0),
    );
    match answer {
        Ok(flags) => Ok(Some(Found { flags })),
        Err(RequestError::Refused(refusal)) if refusal.errno == Errno::ENOENT => Ok(None),
        Err(error) => Err(wrap("looking for", layer, error)),
    }
}

/// Makes an empty table, one that persists where the kernel knows that, unless it `may_own` none. Says whether it persists.
pub(super) fn create(socket: &mut NetfilterSocket, layer: Layer, may_own: bool) -> Result<bool, OpenError> {
    for flags in [table::FLAG_PERSIST, 0].into_iter().filter(|flags| may_own || *flags == 0) {
        let made = socket.transact_messages(|writer, sequence| {
            *sequence = sequence.wrapping_add(1);
            let open = writer.begin(Message::NewTable, CREATE, *sequence, layer);
            writer.text(table::NAME, TABLE);
            writer.number(table::FLAGS, flags);
            writer.end(open);
        });
        match made.map_err(OpenError::Socket)? {
            Ok(()) => return Ok(flags != 0),
            // A kernel before 6.9 does not know the flag.
            Err(refusal) if flags != 0 && matches!(refusal.errno, Errno::EOPNOTSUPP | Errno::EINVAL) => {}
            Err(source) => return Err(OpenError::Kernel { act: "making", layer, source }),
        }
    }
    // Without flags a table is made or refused with an error, so the loop has returned.
    Ok(false)
}

/// Becomes the owner of a table that persists and whose owner is gone.
pub(super) fn adopt(socket: &mut NetfilterSocket, layer: Layer) -> Result<(), OpenError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let adopted = socket.transact_messages(|writer, sequence| {
            *sequence = sequence.wrapping_add(1);
            let open = writer.begin(Message::NewTable, 0, *sequence, layer);
            writer.text(table::NAME, TABLE);
            writer.number(table::FLAGS, table::FLAG_OWNER | table::FLAG_PERSIST);
            writer.end(open);
        });
        match adopted.map_err(OpenError::Socket)? {
            Ok(()) => return Ok(()),
            Err(refusal) if refusal.errno == Errno::EPERM && attempt < ADOPT_ATTEMPTS => std::thread::sleep(ADOPT_PAUSE),
            Err(refusal) if refusal.errno == Errno::EPERM => return Err(OpenError::OwnedByAnother { layer }),
            Err(source) => return Err(OpenError::Kernel { act: "taking over", layer, source }),
        }
    }
}

/// Deletes our table with all that is in it.
pub(super) fn delete(socket: &mut NetfilterSocket, layer: Layer) -> std::io::Result<Result<(), Refusal>> {
    socket.transact_messages(|writer, sequence| {
        *sequence = sequence.wrapping_add(1);
        let open = writer.begin(Message::DelTable, 0, *sequence, layer);
        writer.text(table::NAME, TABLE);
        writer.end(open);
    })
}

/// What is in our table. Anonymous sets come and go with their rules and are not told.
pub(super) fn look_into(socket: &mut NetfilterSocket, layer: Layer) -> Result<Present, OpenError> {
    let named = |received: &Received<'_>, name| received.attributes().find(name)?.as_text().map(str::to_owned);
    let chains = list(socket, layer, Message::GetChain, chain::TABLE, |received| named(received, chain::NAME))?;
    let sets = list(socket, layer, Message::GetSet, set::TABLE, |received| {
        let flags = received.attributes().find(set::FLAGS).and_then(|flags| flags.as_u32()).unwrap_or(0);
        let name = named(received, set::NAME).filter(|_| flags & set::FLAG_ANONYMOUS == 0)?;
        Some((name, SetShape::read(received.attributes())))
    })?;
    let objects = list(socket, layer, Message::GetObject, object::TABLE, |received| {
        Some((received.attributes().find(object::TYPE)?.as_u32()?, named(received, object::NAME)?))
    })?;
    let mut present = Present { chains, sets: sets.into_iter().collect(), ..Present::default() };
    for (kind, name) in objects {
        match object::word(kind) {
            _ if kind == object::COUNTER => present.counters.push(name),
            Some(word) => present.others.push((word, name)),
            None => {
                let message = Some(format!("object {name} is of kind {kind}, which this version does not know"));
                return Err(OpenError::Kernel { act: "looking into", layer, source: Refusal { errno: Errno::ENOTSUP, message } });
            }
        }
    }
    Ok(present)
}

/// The stamp among the counters of a table.
pub(super) fn stamp(present: &Present) -> Option<Stamp> {
    present.counters.iter().find_map(|counter| Stamp::parse(counter))
}

/// Whether a table without a stamp was made by an agent all the same: somebody may have taken the stamp away.
pub(super) fn looks_like_ours(present: &Present) -> bool {
    let from_prelude = BoundForm::Target6.name();
    present.sets.contains_key(SET_KNOWN_IF)
        || present.sets.contains_key(from_prelude)
        || present.chains.iter().any(|chain| chain == COUNTER_UNKNOWN_IN)
}

fn list<T>(
    socket: &mut NetfilterSocket,
    layer: Layer,
    message: Message,
    table_attribute: u16,
    read: impl Fn(&Received<'_>) -> Option<T>,
) -> Result<Vec<T>, OpenError> {
    // A dump is interrupted only by somebody else's change at this very moment.
    for _ in 0..DUMP_ATTEMPTS {
        let mut found = Vec::new();
        let take = |received: &Received<'_>| -> Result<(), std::convert::Infallible> {
            let table = received.attributes().find(table_attribute);
            if received.family() == Some(layer.number()) && table.and_then(|table| table.as_text()) == Some(TABLE) {
                found.extend(read(received));
            }
            Ok(())
        };
        // Sets can only be dumped by table; the others take the table as a filter.
        match socket.dump(message, Some(layer), |writer| writer.text(table_attribute, TABLE), take) {
            Ok(Ok(())) => return Ok(found),
            Err(RequestError::Interrupted) => {}
            Err(error) => return Err(wrap("looking into", layer, error)),
        }
    }
    Err(OpenError::Kernel { act: "looking into", layer, source: Refusal { errno: Errno::EAGAIN, message: None } })
}

/// How often a dump that somebody else's change interrupts is begun again.
pub(super) const DUMP_ATTEMPTS: u32 = 10;

pub(super) fn wrap(act: &'static str, layer: Layer, error: RequestError) -> OpenError {
    match error {
        RequestError::Socket(error) => OpenError::Socket(error),
        RequestError::Refused(source) => OpenError::Kernel { act, layer, source },
        RequestError::Interrupted => OpenError::Kernel { act, layer, source: Refusal { errno: Errno::EAGAIN, message: None } },
    }
}
