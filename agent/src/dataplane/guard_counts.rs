//! What the guards refused, read and never reset. Over a socket of its own, beside the one that holds the tables.

use super::counters::of_table;
use super::error::OpenError;
use super::names::{COUNTER_GUARD_IN, COUNTER_GUARD_OVERFLOW, GuardReason, Layer, TABLE};
use super::socket::{NetfilterSocket, RequestError};
use super::tables::{self, DUMP_ATTEMPTS};
use super::wire::{Attribute, DATA_VALUE, Message, Received, element, expression};
use std::time::Duration;

/// Refused frames of one interface, reason and EtherType, since their element was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardCount {
    /// What they violated.
    pub reason: GuardReason,
    /// The ifindex of the interface that they came in through.
    pub interface: u32,
    /// Their EtherType.
    pub ether_type: u16,
    /// How many.
    pub packets: u64,
    /// Their bytes, without the Ethernet header.
    pub bytes: u64,
    /// When the element ends, which begins the count anew.
    pub expires_in: Duration,
}

/// One reading. The sums are read before the elements, so that nothing is in them that the elements cannot have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardReading {
    /// Every frame that a guard refused.
    pub refused: u64,
    /// Those of them that found no room in a set.
    pub overflow: u64,
    /// By interface, reason and EtherType.
    pub counts: Vec<GuardCount>,
}

/// Reads in the network namespace that it was opened in. Blocking.
#[derive(Debug)]
pub struct GuardReader(NetfilterSocket);

impl GuardReader {
    /// A reader in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, OpenError> {
        NetfilterSocket::open().map(Self).map_err(OpenError::Socket)
    }

    /// Reads it all; `None` when there is no such table (yet).
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn read(&mut self) -> Result<Option<GuardReading>, OpenError> {
        let socket = &mut self.0;
        if tables::find(socket, Layer::Netdev)?.is_none() {
            return Ok(None);
        }
        let counters = of_table(socket, Layer::Netdev)?;
        let counter = |name: &str| counters.iter().find(|counter| counter.name == name).map_or(0, |counter| counter.packets);
        let mut reading =
            GuardReading { refused: counter(COUNTER_GUARD_IN), overflow: counter(COUNTER_GUARD_OVERFLOW), counts: Vec::new() };
        for reason in GuardReason::ALL {
            read_set(socket, reason, &mut reading.counts)?;
        }
        Ok(Some(reading))
    }
}

fn read_set(socket: &mut NetfilterSocket, reason: GuardReason, counts: &mut Vec<GuardCount>) -> Result<(), OpenError> {
    // A dump is interrupted only by a change at this very moment; the next reading has what this one lacks.
    for _ in 0..DUMP_ATTEMPTS {
        let before = counts.len();
        let take = |received: &Received<'_>| -> Result<(), std::convert::Infallible> {
            let list = received.attributes().find(element::LIST_ELEMENTS);
            counts.extend(list.into_iter().flat_map(|list| list.nested()).filter_map(|item| decode(reason, item)));
            Ok(())
        };
        let attributes = |writer: &mut super::wire::Writer| {
            writer.text(element::LIST_TABLE, TABLE);
            writer.text(element::LIST_SET, &reason.set());
        };
        match socket.dump(Message::GetSetElement, Some(Layer::Netdev), attributes, take) {
            Ok(Ok(())) => return Ok(()),
            Err(RequestError::Interrupted) => counts.truncate(before),
            // Tables of another version may lack it; the next commit brings it.
            Err(RequestError::Refused(refusal)) if refusal.errno == nix::errno::Errno::ENOENT => return Ok(()),
            Err(error) => return Err(tables::wrap("reading what the guards refused, in", Layer::Netdev, error)),
        }
    }
    Ok(())
}

/// `None` of what is no element of such a set.
fn decode(reason: GuardReason, item: Attribute<'_>) -> Option<GuardCount> {
    let find = |kind| item.nested().find(kind);
    let key = find(element::KEY)?.nested().find(DATA_VALUE)?.value;
    let (index, rest) = key.split_first_chunk::<4>()?;
    let [high, low, 0, 0] = rest else { return None };
    let listed = find(element::EXPRESSIONS).into_iter().flat_map(|list| list.nested());
    let (packets, bytes) = find(element::EXPRESSION).into_iter().chain(listed).find_map(counter)?;
    Some(GuardCount {
        reason,
        interface: u32::from_ne_bytes(*index),
        ether_type: u16::from_be_bytes([*high, *low]),
        packets,
        bytes,
        expires_in: Duration::from_millis(find(element::EXPIRES).and_then(|left| left.as_u64()).unwrap_or(0)),
    })
}

fn counter(item: Attribute<'_>) -> Option<(u64, u64)> {
    if item.nested().find(expression::NAME)?.as_text() != Some("counter") {
        return None;
    }
    let data = item.nested().find(expression::DATA)?;
    let number = |kind| data.nested().find(kind)?.as_u64();
    Some((number(element::COUNTER_PACKETS)?, number(element::COUNTER_BYTES)?))
}
