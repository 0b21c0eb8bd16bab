//! `firebreak.dev/v1alpha1` AddressGroup.

use super::meta::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named list of address blocks that policies of every namespace can share. Cluster-scoped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressGroup {
    /// Name, labels, annotations; no namespace.
    pub metadata: ObjectMeta,
    /// Its content.
    pub spec: AddressGroupSpec,
}

/// The content of an AddressGroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressGroupSpec {
    /// The blocks. An empty list is nobody.
    pub blocks: Vec<Block>,
}

/// A block of addresses without some blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// The block: `10.0.0.0/8`, `2001:db8::/32`, `192.0.2.7/32`. Host bits are passed over.
    pub cidr: String,
    /// What is cut out of this block; each lies inside it and is smaller. Another block or peer can still allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub except: Option<Vec<String>>,
}
