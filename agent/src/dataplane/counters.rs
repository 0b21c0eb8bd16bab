//! The named counters of our tables, read and never reset. Over a socket of its own, beside the one that holds the tables.

use super::error::OpenError;
use super::mark;
use super::names::{Layer, TABLE};
use super::skeleton::Stamp;
use super::socket::{NetfilterSocket, RequestError};
use super::tables::{self, DUMP_ATTEMPTS};
use super::wire::{Message, Received, object};

/// A named counter at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelCounter {
    /// In which table.
    pub layer: Layer,
    /// Its name; the fixed rules have some twenty.
    pub name: String,
    /// Packets since the table was made.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads them all, in the caller's network namespace. A table that is not there has none. Blocking.
///
/// # Errors
/// What the kernel refused.
pub fn read_counters() -> Result<Vec<KernelCounter>, OpenError> {
    let mut socket = NetfilterSocket::open().map_err(OpenError::Socket)?;
    let mut counters = Vec::new();
    for layer in Layer::ALL {
        counters.extend(of_table(&mut socket, layer)?);
    }
    Ok(counters)
}

/// Those of one table.
pub(super) fn of_table(socket: &mut NetfilterSocket, layer: Layer) -> Result<Vec<KernelCounter>, OpenError> {
    // A dump is interrupted only by a change at this very moment; what was read then is not told.
    for _ in 0..DUMP_ATTEMPTS {
        let mut found = Vec::new();
        let take = |received: &Received<'_>| -> Result<(), std::convert::Infallible> {
            found.extend(read(received, layer));
            Ok(())
        };
        match socket.dump(Message::GetObject, Some(layer), |writer| writer.text(object::TABLE, TABLE), take) {
            Ok(Ok(())) => return Ok(found),
            Err(RequestError::Interrupted) => {}
            Err(error) => return Err(tables::wrap("reading the counters of", layer, error)),
        }
    }
    Ok(Vec::new())
}

/// A counter of ours; the skeleton's stamp and the mark of the rules, which count nothing, are none.
fn read(received: &Received<'_>, layer: Layer) -> Option<KernelCounter> {
    let find = |kind| received.attributes().find(kind);
    let is_ours = received.family() == Some(layer.number()) && find(object::TABLE)?.as_text() == Some(TABLE);
    let name = find(object::NAME)?.as_text().filter(|name| Stamp::parse(name).is_none() && !mark::is_mark(name))?;
    let data = find(object::DATA)?.nested();
    let counter = find(object::TYPE)?.as_u32() == Some(object::COUNTER);
    let (packets, bytes) = (data.find(object::PACKETS)?.as_u64()?, data.find(object::BYTES)?.as_u64()?);
    (is_ours && counter).then(|| KernelCounter { layer, name: name.to_owned(), packets, bytes })
}
