//! Kubernetes `v1` Namespace and Node: only what policy can be about.

use super::meta::ObjectMeta;
use serde::{Deserialize, Serialize};

/// A namespace; its labels are what namespace selectors look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Name, labels.
    pub metadata: ObjectMeta,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name, labels.
    pub metadata: ObjectMeta,
    /// What the kubelet reports.
    pub status: Option<NodeStatus>,
}

/// What is read of a node's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node's addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<NodeAddress>>,
}

/// One address of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// `InternalIP` and `ExternalIP` are addresses; `Hostname` and the DNS types are not, and are passed over.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}
