//! What the kernel holds, read from the kernel: at start, and when an answer was lost. Never on the way of a commit.

use super::element::{Comments, RawElement, decode, read_element};
use super::error::ReadBackError;
use super::names::{Layer, SetRef, TABLE};
use super::plan::KernelState;
use super::ports;
use super::socket::{NetfilterSocket, RequestError};
use super::tables::DUMP_ATTEMPTS;
use super::wire::{Message, Received, chain, element};
use std::collections::BTreeSet;

/// Reads every set that the agent writes, of the tables that are there.
pub(super) fn read_back(socket: &mut NetfilterSocket, layers: &[Layer]) -> Result<KernelState, ReadBackError> {
    read_back_of(socket, layers, |_| true)
}

/// The same of some sets; of the others it is as if they were empty.
pub(super) fn read_back_of(
    socket: &mut NetfilterSocket,
    layers: &[Layer],
    which: impl Fn(SetRef) -> bool,
) -> Result<KernelState, ReadBackError> {
    let mut state = KernelState::empty(layers.iter().copied());
    let mut comments = Comments::default();
    for set in SetRef::all().into_iter().filter(|set| layers.contains(&set.layer()) && which(*set)) {
        read_set(socket, set, &mut comments, &mut state)?;
    }
    if layers.contains(&Layer::Netdev) {
        state.ports = Some(read_ports(socket)?);
    }
    Ok(state)
}

/// The interfaces that have a guard's base chain.
fn read_ports(socket: &mut NetfilterSocket) -> Result<BTreeSet<String>, ReadBackError> {
    let what = || format!("chains of table {} {TABLE}", Layer::Netdev);
    for _ in 0..DUMP_ATTEMPTS {
        let mut found = BTreeSet::new();
        let take = |received: &Received<'_>| -> Result<(), std::convert::Infallible> {
            found.extend(ports::device(received).map(str::to_owned));
            Ok(())
        };
        match socket.dump(Message::GetChain, Some(Layer::Netdev), |writer| writer.text(chain::TABLE, TABLE), take) {
            Ok(Ok(())) => return Ok(found),
            Err(RequestError::Interrupted) => {}
            Err(RequestError::Refused(source)) => return Err(ReadBackError::Refused { set: what(), source }),
            Err(RequestError::Socket(error)) => return Err(ReadBackError::Socket(error)),
        }
    }
    Err(ReadBackError::Busy { set: what(), attempts: DUMP_ATTEMPTS })
}

fn read_set(socket: &mut NetfilterSocket, set: SetRef, comments: &mut Comments, state: &mut KernelState) -> Result<(), ReadBackError> {
    let name = set.name();
    for _ in 0..DUMP_ATTEMPTS {
        let mut elements = Vec::new();
        let take = |received: &Received<'_>| -> Result<(), String> {
            let Some(list) = received.attributes().find(element::LIST_ELEMENTS) else { return Ok(()) };
            for item in list.nested() {
                let RawElement { first, last, comment } = read_element(item.nested()).ok_or("an element without a key")?;
                let entry = decode(set, first, last).map_err(|misfit| format!("element {first:02x?}-{last:02x?}: {misfit}"))?;
                elements.push((entry, comments.share(comment)));
            }
            Ok(())
        };
        let dumped = socket.dump(
            Message::GetSetElement,
            Some(set.layer()),
            |writer| {
                writer.text(element::LIST_TABLE, TABLE);
                writer.text(element::LIST_SET, &name);
            },
            take,
        );
        match dumped {
            Ok(Ok(())) => {
                for (entry, comment) in elements {
                    state.insert(set, entry, comment);
                }
                return Ok(());
            }
            Ok(Err(reason)) => return Err(ReadBackError::Foreign { set: set.to_string(), reason }),
            Err(RequestError::Interrupted) => {}
            Err(RequestError::Refused(source)) => return Err(ReadBackError::Refused { set: set.to_string(), source }),
            Err(RequestError::Socket(error)) => return Err(ReadBackError::Socket(error)),
        }
    }
    Err(ReadBackError::Busy { set: set.to_string(), attempts: DUMP_ATTEMPTS })
}
