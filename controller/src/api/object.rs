//! Objects between the wire, the manifest crate and the store.

use super::refusal::{Violations, invalid};
use crate::store::{ChangeResult, ObjectKey, Put, StoredObject};
use bytes::Bytes;
use firebreak_manifest::{Error, Kind, Object};
use firebreak_proto::v1;
use jiff::Timestamp;
use std::sync::Arc;
use tonic::Status;

/// Bytes of one object's JSON.
pub(super) const MAX_OBJECT_BYTES: usize = 1 << 20;
/// Objects of one request.
pub(super) const MAX_OBJECTS: usize = 10_000;
/// Bytes of a reason for the audit trail.
const MAX_REASON_BYTES: usize = 1_024;

/// The reason for the audit trail, if it is one line of bearable length.
#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
pub(super) fn reason(text: String) -> Result<String, Status> {
    if text.len() > MAX_REASON_BYTES {
        return Err(invalid("reason", format!("has {} bytes; at most {MAX_REASON_BYTES} are kept", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid("reason", "has control characters; the audit trail takes one line of text"));
    }
    Ok(text)
}

/// Reads one object of a request as a whole. What is wrong goes into `violations`; the result is then `None`.
pub(super) fn read(position: usize, wire: v1::Object, violations: &mut Violations) -> Option<Put> {
    let v1::Object { api_version, kind, namespace, name, json, revision: _, created: _, conditions: _ } = wire;
    let place = format!("objects[{position}]");
    if json.len() > MAX_OBJECT_BYTES {
        violations.add(format!("{place}.json"), format!("has {} bytes; an object has at most {MAX_OBJECT_BYTES}", json.len()));
        return None;
    }
    for (field, text) in [("kind", &kind), ("name", &name)] {
        if text.is_empty() {
            violations.add(format!("{place}.{field}"), "is empty; it names the object");
            return None;
        }
    }
    let object = match Object::from_json(&json) {
        Ok(object) => object,
        Err(errors) => {
            let named = ObjectKey::new(&kind, &namespace, name);
            for error in errors.iter() {
                let field = match error.field() {
                    "" => format!("{place} {named}"),
                    field => format!("{place} {named}: {field}"),
                };
                violations.add(field, reason_of(error));
            }
            return None;
        }
    };
    let said = [
        ("kind", kind.as_str(), object.kind().as_str()),
        ("api_version", api_version.as_str(), object.api_version()),
        ("namespace", namespace.as_str(), object.namespace().unwrap_or_default()),
        ("name", name.as_str(), object.name()),
    ];
    let mut agrees = true;
    for (field, outside, inside) in said {
        if outside != inside {
            violations.add(format!("{place}.{field}"), format!("is {outside:?}, but the object's JSON says {inside:?}"));
            agrees = false;
        }
    }
    agrees.then(|| Put {
        key: key_of(&object),
        api_version: object.api_version().to_owned(),
        json: Arc::from(object.to_json()),
        labels: object.labels(),
    })
}

/// The refusal without its place: a request has neither lines nor documents.
fn reason_of(error: &Error) -> String {
    match error {
        Error::Syntax { place: _, reason }
        | Error::UnknownKind { place: _, field: _, reason }
        | Error::Field { place: _, field: _, reason }
        | Error::Conflict { object: _, reason } => reason.clone(),
        Error::Read { .. } | Error::EmptyDirectory { .. } | Error::TooLarge { .. } | Error::NotUtf8 { .. } | Error::Duplicate { .. } => {
            error.to_string()
        }
    }
}

/// The store's key of an object.
pub(super) fn key_of(object: &Object) -> ObjectKey {
    ObjectKey::new(object.kind().as_str(), object.namespace().unwrap_or_default(), object.name())
}

/// Reads the name of an object. What is wrong goes into `violations`.
pub(super) fn read_ref(place: &str, wire: v1::ObjectRef, violations: &mut Violations) -> Option<ObjectKey> {
    let v1::ObjectRef { kind, namespace, name } = wire;
    let Some(known) = Kind::from_name(&kind) else {
        violations.add(format!("{place}.kind"), unknown_kind(&kind));
        return None;
    };
    if name.is_empty() {
        violations.add(format!("{place}.name"), "is empty");
        return None;
    }
    match (known.is_namespaced(), namespace.is_empty()) {
        (true, true) => violations.add(format!("{place}.namespace"), format!("is empty; a {kind} lives in a namespace")),
        (false, false) => violations.add(format!("{place}.namespace"), format!("is {namespace:?}, but a {kind} lives in no namespace")),
        (true, false) | (false, true) => return Some(ObjectKey::new(kind, &namespace, name)),
    }
    None
}

/// What is wrong with a kind that nobody knows.
pub(super) fn unknown_kind(kind: &str) -> String {
    let known: Vec<&str> = Kind::ALL.into_iter().map(Kind::as_str).collect();
    if kind.is_empty() {
        format!("is empty; use one of {}", known.join(", "))
    } else {
        format!("{kind:?} is not known; use one of {}", known.join(", "))
    }
}

/// An object as the wire carries it.
pub(super) fn to_wire(object: &StoredObject, conditions: Vec<v1::Condition>) -> v1::Object {
    let StoredObject { key, api_version, json, labels: _, revision, created } = object;
    v1::Object {
        api_version: api_version.clone(),
        kind: key.kind.as_str().to_owned(),
        namespace: key.namespace_text().to_owned(),
        name: key.name.clone(),
        json: Bytes::copy_from_slice(json.as_bytes()),
        revision: revision.0,
        created: Some(time_to_wire(*created)),
        conditions,
    }
}

/// A change as the wire carries it.
pub(super) fn change_to_wire(key: &ObjectKey, result: ChangeResult, conditions: Vec<v1::Condition>) -> v1::ObjectChange {
    v1::ObjectChange {
        kind: key.kind.as_str().to_owned(),
        namespace: key.namespace_text().to_owned(),
        name: key.name.clone(),
        result: result_to_wire(result).into(),
        conditions,
    }
}

/// What happened, as the wire says it.
pub(super) fn result_to_wire(result: ChangeResult) -> v1::ChangeResult {
    match result {
        ChangeResult::Created => v1::ChangeResult::Created,
        ChangeResult::Configured => v1::ChangeResult::Configured,
        ChangeResult::Unchanged => v1::ChangeResult::Unchanged,
        ChangeResult::Deleted => v1::ChangeResult::Deleted,
        ChangeResult::NotFound => v1::ChangeResult::NotFound,
    }
}

/// A moment as the wire carries it.
pub(super) fn time_to_wire(time: Timestamp) -> prost_types::Timestamp {
    // The protobuf type counts nanoseconds forward from the second; `jiff` counts both towards zero.
    let whole = time.as_nanosecond().div_euclid(1_000_000_000);
    let rest = time.as_nanosecond().rem_euclid(1_000_000_000);
    // A Timestamp is within the years -9999 to 9999: its seconds fit 64 bits, and a remainder of 10^9 fits 32.
    prost_types::Timestamp { seconds: i64::try_from(whole).unwrap_or(i64::MAX), nanos: i32::try_from(rest).unwrap_or(0) }
}
