//! The JSON Schema of our own kinds, made from their types.

use crate::kinds::meta::{SERVER_SET, STRUCT_NAME};
use crate::{AddressGroup, ClusterSegmentPolicy, Kind, LabelRule, SegmentPolicy, Workload};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The kinds that have a schema here: our own.
pub const KINDS: [Kind; 5] = [Kind::AddressGroup, Kind::ClusterSegmentPolicy, Kind::LabelRule, Kind::SegmentPolicy, Kind::Workload];

/// The JSON Schema (draft 2020-12) of one of [`KINDS`]; `None` for the kinds of Kubernetes, which publishes theirs.
pub fn of(kind: Kind) -> Option<Value> {
    match kind {
        Kind::LabelRule => Some(object::<LabelRule>(kind)),
        Kind::AddressGroup => Some(object::<AddressGroup>(kind)),
        Kind::SegmentPolicy => Some(object::<SegmentPolicy>(kind)),
        Kind::ClusterSegmentPolicy => Some(object::<ClusterSegmentPolicy>(kind)),
        Kind::Workload => Some(object::<Workload>(kind)),
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::NetworkPolicy
        | Kind::AdminNetworkPolicy
        | Kind::BaselineAdminNetworkPolicy
        | Kind::ClusterNetworkPolicy => None,
    }
}

/// The file name of a kind's schema below `manifest/schema`.
pub fn file_name(kind: Kind) -> String {
    format!("{}.json", kind.as_str().to_lowercase())
}

/// The type's schema, with what every object has around it: version, kind, a status that is passed over.
fn object<T: JsonSchema>(kind: Kind) -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value();
    refuse_null(&mut schema);
    if let Some(root) = schema.as_object_mut() {
        root.insert("$id".to_owned(), json!(format!("https://firebreak.dev/schema/v1alpha1/{}", file_name(kind))));
        insert(root, "properties", "apiVersion", json!({ "description": "The version of this kind.", "const": kind.api_version() }));
        insert(root, "properties", "kind", json!({ "description": "The kind.", "const": kind.as_str() }));
        insert(root, "properties", "status", json!({ "description": "Written by the controller; passed over." }));
        if let Some(required) = root.get_mut("required").and_then(Value::as_array_mut) {
            required.insert(0, json!("kind"));
            required.insert(0, json!("apiVersion"));
        }
        let metadata = root.get_mut("$defs").and_then(Value::as_object_mut).and_then(|defs| defs.get_mut(STRUCT_NAME));
        if let Some(metadata) = metadata.and_then(Value::as_object_mut) {
            for field in SERVER_SET {
                insert(metadata, "properties", field, json!({ "description": "Written by an API server; passed over." }));
            }
        }
    }
    schema
}

fn insert(schema: &mut Map<String, Value>, section: &str, name: &str, value: Value) {
    if let Some(section) = schema.get_mut(section).and_then(Value::as_object_mut) {
        section.insert(name.to_owned(), value);
    }
}

/// schemars lets every `Option` be null; below `spec` an explicit null is refused (it would be read as absent, and people write it
/// by forgetting a value). Metadata keeps its nulls: tools write them.
fn refuse_null(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Array(types)) = fields.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    fields.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    fields.remove("anyOf");
                    fields.extend(only);
                }
            }
            for (name, inner) in fields.iter_mut() {
                if name != STRUCT_NAME {
                    refuse_null(inner);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(refuse_null),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
