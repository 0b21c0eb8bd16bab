//! `firebreak.dev/v1alpha1` LabelRule.

use super::meta::ObjectMeta;
use super::selector::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Gives reserved labels to workloads. What a workload itself says below the reserved prefix is passed over, so that such a label means what its rule
/// says and nothing else. Cluster-scoped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelRule {
    /// Name, labels, annotations; no namespace. Of two rules that give one key, the first by name goes first.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: LabelRuleSpec,
}

/// What a LabelRule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelRuleSpec {
    /// Which workloads get the labels: all that is given must hold, and something must be given.
    pub to: LabelRuleSubject,
    /// What they get, at least one. Every key begins with `reserved.firebreak.dev/`.
    #[schemars(extend("minProperties" = 1, "propertyNames" = {"pattern": "^reserved\\.firebreak\\.dev/"}))]
    pub labels: BTreeMap<String, String>,
}

/// Workloads by what they cannot say of themselves, and by their own labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct LabelRuleSubject {
    /// By the labels of their namespace; `{}` is every namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// By their own labels; reserved ones are not among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workloads: Option<LabelSelector>,
    /// By the labels of their node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// By image as it was asked for: a whole name (`registry.example/shop/db:1.2`), or how it begins with `*` behind it (`registry.example/shop/*`). All
    /// images of the workload must fit. Where the images are not known, it is not about the workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub images: Option<Vec<String>>,
}
