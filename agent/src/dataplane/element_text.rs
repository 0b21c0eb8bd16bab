//! Elements as `nft -j` takes them: for the one transaction that changes rules and elements together. Everything else goes over
//! netlink ([`super::render`]). Pure. Made from the kernel's form of a key and the set's fields, so that it knows nothing of what the
//! elements mean.

use super::element::{Key, encode, tidy};
use super::error::CommitError;
use super::names::{Layer, SetRef, TABLE};
use super::plan::Plan;
use super::ports;
use super::skeleton::{INTEGER_32, INTEGER_48, INTEGER_128};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The commands of a plan, each as its text: per set what goes, then what comes; then the guards' base chains. `fields` gives the types of a set's fields.
///
/// # Errors
/// An element that does not fit its set, or a set of which the fields are not known.
pub(super) fn commands<'a>(plan: &Plan, fields: impl Fn(Layer, &str) -> Option<&'a [&'static str]>) -> Result<Vec<String>, CommitError> {
    let mut commands = Vec::new();
    let mut key = Key::default();
    for change in &plan.changes {
        let (set, name) = (change.set, change.set.name());
        let types = fields(set.layer(), &name).ok_or_else(|| misfit(set, String::new(), "the set has no fields that are known"))?;
        let mut gone = Vec::new();
        for entry in &change.remove {
            encode(set, entry, &mut key).map_err(|error| misfit(set, entry.to_string(), &error.to_string()))?;
            gone.push(value(types, &key).ok_or_else(|| misfit(set, entry.to_string(), "it has no text"))?.to_string());
        }
        let mut come = Vec::new();
        for (entry, comment) in &change.put {
            encode(set, entry, &mut key).map_err(|error| misfit(set, entry.to_string(), &error.to_string()))?;
            let value = value(types, &key).ok_or_else(|| misfit(set, entry.to_string(), "it has no text"))?;
            come.push(element(value, comment, None).to_string());
        }
        commands.extend(command("delete", set.layer(), &name, &gone));
        commands.extend(command("add", set.layer(), &name, &come));
    }
    commands.extend(ports::text(&plan.ports));
    Ok(commands)
}

/// An element with its comment, and for how many seconds it lasts, if not for ever.
pub(super) fn element(value: Value, comment: &str, seconds: Option<u64>) -> Value {
    let mut inside = json!({ "val": value });
    let comment = tidy(comment);
    if !comment.is_empty() {
        inside["comment"] = Value::String(comment.into_owned());
    }
    if let Some(seconds) = seconds {
        inside["timeout"] = seconds.into();
    }
    json!({ "elem": inside })
}

/// `add element` or `delete element`; `None` when there is nothing to add or delete.
pub(super) fn command(verb: &str, layer: Layer, set: &str, elements: &[String]) -> Option<String> {
    (!elements.is_empty()).then(|| {
        format!(
            "{{\"{verb}\":{{\"element\":{{\"family\":\"{layer}\",\"table\":\"{TABLE}\",\"name\":\"{set}\",\"elem\":[{}]}}}}}}",
            elements.join(",")
        )
    })
}

fn misfit(set: SetRef, element: String, reason: &str) -> CommitError {
    CommitError::Misfit { set: set.to_string(), element, reason: reason.to_owned() }
}

/// The key as nft writes it; `None` when it is not of these types.
fn value(types: &[&'static str], key: &Key) -> Option<Value> {
    let (mut first, mut last) = (key.first.as_slice(), key.last.as_slice());
    let mut fields = Vec::with_capacity(types.len());
    for name in types {
        let (low, rest) = field(name, first)?;
        first = rest;
        let mut text = low.clone();
        if !key.last.is_empty() {
            let (high, rest) = field(name, last)?;
            last = rest;
            if high != low {
                text = json!({ "range": [low, high] });
            }
        }
        fields.push(text);
    }
    if !(first.is_empty() && last.is_empty()) {
        return None;
    }
    match <[Value; 1]>::try_from(fields) {
        Ok([single]) => Some(single),
        Err(several) => Some(json!({ "concat": several })),
    }
}

/// One field, and what follows it.
fn field<'a>(name: &str, bytes: &'a [u8]) -> Option<(Value, &'a [u8])> {
    Some(match name {
        "ipv4_addr" => {
            let (address, rest) = bytes.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*address).to_string().into(), rest)
        }
        "ipv6_addr" => {
            let (address, rest) = bytes.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*address).to_string().into(), rest)
        }
        INTEGER_32 => raw::<4, 4>(bytes)?,
        INTEGER_48 => raw::<6, 8>(bytes)?,
        INTEGER_128 => raw::<16, 16>(bytes)?,
        "ether_addr" => {
            let (padded, rest) = bytes.split_first_chunk::<8>()?;
            let octets: Vec<String> = padded[..6].iter().map(|octet| format!("{octet:02x}")).collect();
            (octets.join(":").into(), rest)
        }
        "inet_service" => {
            let ([high, low, _, _], rest) = bytes.split_first_chunk::<4>()?;
            (u16::from_be_bytes([*high, *low]).into(), rest)
        }
        "inet_proto" | "icmp_type" | "icmp_code" | "icmpv6_type" | "icmpv6_code" => {
            let ([number, _, _, _], rest) = bytes.split_first_chunk::<4>()?;
            ((*number).into(), rest)
        }
        // In host order, as nft's datatype says.
        "iface_index" => {
            let (index, rest) = bytes.split_first_chunk::<4>()?;
            (u32::from_ne_bytes(*index).into(), rest)
        }
        _ => return None,
    })
}

/// Raw bytes as a number in hex, and what follows their padding.
fn raw<const BYTES: usize, const PADDED: usize>(bytes: &[u8]) -> Option<(Value, &[u8])> {
    let (padded, rest) = bytes.split_first_chunk::<PADDED>()?;
    let digits: String = padded[..BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    Some((format!("0x{digits}").into(), rest))
}
