//! Pages: how long they are, and the tokens by which one follows another.

use super::refusal::invalid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

/// The page size to serve: `wanted`, or the default when it is 0.
#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
pub(super) fn size(wanted: u32, default: u32) -> Result<u32, Status> {
    match wanted {
        0 => Ok(default),
        1..=1_000 => Ok(wanted),
        _ => Err(invalid("page_size", format!("is {wanted}; at most 1000 fit on a page"))),
    }
}

/// A token that leads to the next page. Clients hand it back as it is; what it says is nobody's business but ours, so it is written as hex.
pub(super) fn write_token(position: &impl Serialize) -> String {
    // A position is plain structs of texts and numbers, which always serialize.
    let text = serde_json::to_string(position).unwrap_or_default();
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// What a token says; `None` for the empty token, which is the first page.
#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
pub(super) fn read_token<T: DeserializeOwned>(token: &str) -> Result<Option<T>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let refuse = || invalid("page_token", "is not one that this service gave out for this request; begin again without it");
    if token.len() > 8_192 || !token.is_ascii() || !token.len().is_multiple_of(2) {
        return Err(refuse());
    }
    let bytes: Option<Vec<u8>> =
        (0..token.len()).step_by(2).map(|at| token.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok())).collect();
    let position = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(refuse)?;
    Ok(Some(position))
}

/// The refusal of a token that belongs to another request.
pub(super) fn foreign_token() -> Status {
    invalid("page_token", "belongs to a request with other filters; begin again without it")
}
