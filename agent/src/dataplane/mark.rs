//! What the rules of a table were when we had brought them about, kept in the kernel beside them as the name of a counter:
//! `rules_<fingerprint>`. The stamp says which rules are to be there; this says that they are: whoever changes a rule while no agent runs leaves
//! a fingerprint that does not fit. It goes with the rules that it is of, in the transaction that replaces them.

use super::check::Prints;
use super::error::OpenError;
use super::names::{Layer, TABLE};
use super::skeleton::Present;
use super::socket::NetfilterSocket;
use super::wire::{CREATE, Message, object};

const MARK: &str = "rules_";

/// For the chains of a table as they are: 32 hexadecimal digits.
pub(super) fn name(prints: &Prints, layer: Layer) -> String {
    let mut hasher = blake3::Hasher::new();
    for ((_, chain), print) in prints.iter().filter(|((of, _), _)| *of == layer) {
        hasher.update(chain.as_bytes());
        hasher.update(&[0]);
        hasher.update(print.as_bytes());
    }
    let digits = hasher.finalize().to_hex();
    format!("{MARK}{}", &digits.as_str()[..32])
}

/// Whether a counter is one.
pub(super) fn is_mark(counter: &str) -> bool {
    counter.starts_with(MARK)
}

/// The one of a table.
pub(super) fn found(present: &Present) -> Option<&str> {
    present.counters.iter().map(String::as_str).find(|counter| is_mark(counter))
}

/// Writes it.
///
/// # Errors
/// What the kernel refused; the table has none then, and the next start replaces the rules.
pub(super) fn write(socket: &mut NetfilterSocket, layer: Layer, name: &str) -> Result<(), OpenError> {
    let made = socket.transact_messages(|writer, sequence| {
        *sequence = sequence.wrapping_add(1);
        let open = writer.begin(Message::NewObject, CREATE, *sequence, layer);
        writer.text(object::TABLE, TABLE);
        writer.text(object::NAME, name);
        writer.number(object::TYPE, object::COUNTER);
        // The kernel refuses an object without data (`nf_tables_newobj`); a counter needs none.
        let data = writer.nest(object::DATA);
        writer.end_nest(data);
        writer.end(open);
    });
    made.map_err(OpenError::Socket)?.map_err(|source| OpenError::Kernel { act: "marking", layer, source })
}
