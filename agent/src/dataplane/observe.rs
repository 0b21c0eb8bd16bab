//! Break-glass: for a while, what policy denies is let through and told. It is two elements with a timeout in a set that the deny
//! chains ask, so that it ends by itself, whoever is alive.

use super::element::{put_comment, read_comment, tidy};
use super::error::{ObserveError, Refusal};
use super::names::{FAMILIES, Layer, SET_MIDSTREAM, SET_OBSERVE, TABLE};
use super::shortcut;
use super::socket::{NetfilterSocket, RequestError};
use super::tables::{self, DUMP_ATTEMPTS};
use super::wire::{CREATE, DATA_VALUE, LIST_ELEMENT, Message, Received, Writer, element};
use firebreak_policy::model::Family;
use nix::errno::Errno;
use std::time::Duration;

/// What the kernel says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObserveElement {
    /// How long it goes on.
    pub left: Duration,
    /// Who asked for it and why, as far as an element's comment holds it.
    pub note: String,
}

/// `NFPROTO_*`, as `meta nfproto` gives it.
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// What the set holds; `None` when the node does not observe.
pub(super) fn read(socket: &mut NetfilterSocket) -> Result<Option<ObserveElement>, ObserveError> {
    Ok(elements(socket)?.into_iter().map(|(_, element)| element).max_by_key(|element| element.left))
}

/// How long TCP may still be picked up in the middle.
pub(super) fn midstream_left(socket: &mut NetfilterSocket) -> Result<Duration, ObserveError> {
    Ok(elements_of(socket, SET_MIDSTREAM)?.into_iter().map(|(_, element)| element.left).max().unwrap_or_default())
}

fn elements(socket: &mut NetfilterSocket) -> Result<Vec<(u8, ObserveElement)>, ObserveError> {
    elements_of(socket, SET_OBSERVE)
}

/// Of a set with a timeout whose key is one byte.
fn elements_of(socket: &mut NetfilterSocket, set: &str) -> Result<Vec<(u8, ObserveElement)>, ObserveError> {
    for _ in 0..DUMP_ATTEMPTS {
        let mut found = Vec::new();
        let take = |received: &Received<'_>| -> Result<(), std::convert::Infallible> {
            let Some(list) = received.attributes().find(element::LIST_ELEMENTS) else { return Ok(()) };
            for item in list.nested() {
                let find = |kind| item.nested().find(kind);
                let key = find(element::KEY).and_then(|key| key.nested().find(DATA_VALUE)?.value.first().copied());
                let left = find(element::EXPIRATION).and_then(|left| left.as_u64()).map(Duration::from_millis);
                let note = find(element::USERDATA).map(|data| read_comment(data.value).to_owned()).unwrap_or_default();
                if let (Some(key), Some(left)) = (key, left) {
                    found.push((key, ObserveElement { left, note }));
                }
            }
            Ok(())
        };
        let request = |writer: &mut Writer| {
            writer.text(element::LIST_TABLE, TABLE);
            writer.text(element::LIST_SET, set);
        };
        match socket.dump(Message::GetSetElement, Some(Layer::Inet), request, take) {
            Ok(Ok(())) => return Ok(found),
            Err(RequestError::Interrupted) => {}
            Err(RequestError::Refused(refusal)) if refusal.errno == Errno::ENOENT => return Err(ObserveError::NoTable),
            Err(RequestError::Refused(source)) => return Err(ObserveError::Kernel { source }),
            Err(RequestError::Socket(error)) => return Err(ObserveError::Socket(error)),
        }
    }
    Err(ObserveError::Kernel { source: Refusal { errno: Errno::EAGAIN, message: None } })
}

/// Begins it anew, or ends it; in one transaction.
pub(super) fn write(socket: &mut NetfilterSocket, wanted: Option<(Duration, &str)>) -> Result<(), ObserveError> {
    // An element that ends by itself between reading and deleting makes the kernel refuse the whole.
    for attempt in 0..3 {
        let there: Vec<u8> = elements(socket)?.into_iter().map(|(key, _)| key).collect();
        if there.is_empty() && wanted.is_none() {
            return Ok(());
        }
        let done = socket.transact_messages(|writer, sequence| {
            if !there.is_empty() {
                message(writer, sequence, Message::DelSetElement, 0, &there, None);
            }
            if let Some(wanted) = wanted {
                message(writer, sequence, Message::NewSetElement, CREATE, &FAMILIES.map(number), Some(wanted));
            }
        });
        match done.map_err(ObserveError::Socket)? {
            Ok(()) => return Ok(()),
            Err(refusal) if refusal.errno == Errno::ENOENT && attempt < 2 => {}
            Err(source) => return Err(ObserveError::Kernel { source }),
        }
    }
    Err(ObserveError::Kernel { source: Refusal { errno: Errno::ENOENT, message: None } })
}

fn message(writer: &mut Writer, sequence: &mut u32, kind: Message, flags: u16, keys: &[u8], wanted: Option<(Duration, &str)>) {
    *sequence = sequence.wrapping_add(1);
    let open = writer.begin(kind, flags, *sequence, Layer::Inet);
    writer.text(element::LIST_TABLE, TABLE);
    writer.text(element::LIST_SET, SET_OBSERVE);
    let list = writer.nest(element::LIST_ELEMENTS);
    for key in keys {
        let item = writer.nest(LIST_ELEMENT);
        let nest = writer.nest(element::KEY);
        writer.attribute(DATA_VALUE, &[*key]);
        writer.end_nest(nest);
        if let Some((duration, note)) = wanted {
            let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
            writer.attribute(element::TIMEOUT, &milliseconds.to_be_bytes());
            let mut comment = Vec::new();
            put_comment(&mut comment, &tidy(note));
            writer.attribute(element::USERDATA, &comment);
        }
        writer.end_nest(item);
    }
    writer.end_nest(list);
    writer.end(open);
}

/// The same where no agent runs, in the caller's network namespace: the tables of a dead agent are taken over for this one change.
///
/// # Errors
/// When there is no table of this version, somebody owns it, or the kernel refuses.
pub fn observe_without_agent(wanted: Option<(Duration, &str)>) -> Result<(), ObserveError> {
    let mut socket = NetfilterSocket::open().map_err(ObserveError::Socket)?;
    let found = tables::find(&mut socket, Layer::Inet).map_err(|error| ObserveError::Table(error.to_string()))?;
    let found = found.ok_or(ObserveError::NoTable)?;
    if found.persists() {
        tables::adopt(&mut socket, Layer::Inet).map_err(|error| ObserveError::Table(error.to_string()))?;
    }
    if wanted.is_some() {
        // What an agent left that died in a flood: it refuses for some seconds more at most.
        let _ = shortcut::unshield(&mut socket);
    }
    write(&mut socket, wanted)
}
