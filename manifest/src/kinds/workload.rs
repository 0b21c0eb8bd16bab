//! `firebreak.dev/v1alpha1` Workload.

use super::meta::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that runs on a node and has a network interface of its own: a container, a VM, a bare network namespace. Its labels
/// are what policies select by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Name, namespace, labels, annotations.
    pub metadata: ObjectMeta,
    /// Where it is.
    pub spec: WorkloadSpec,
}

/// Where a workload is and what it offers. Exactly one of `interface` and `networkNamespace` says which of the node's interfaces is its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("oneOf" = [{ "required": ["interface"] }, { "required": ["networkNamespace"] }]))]
pub struct WorkloadSpec {
    /// The node that runs it.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// The host-side interface, as `ip link` on the node names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub interface: Option<String>,
    /// The name of its network namespace in /run/netns of the node; the agent finds the host-side interface by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub network_namespace: Option<String>,
    /// The routing domain of its addresses: `default` (also when absent), or `<node>/<bridge>` for a bridge that hides its
    /// workloads behind masquerading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Its addresses. Absent: the agent discovers them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub addresses: Option<Vec<String>>,
    /// Ports that policies can name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<WorkloadPort>>,
    /// Ports of the node that lead to this workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published_ports: Option<Vec<WorkloadPublishedPort>>,
}

/// A port with a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadPort {
    /// The name: at most 15 of a-z, 0-9 and -, with at least one letter.
    #[schemars(length(min = 1, max = 15))]
    pub name: String,
    /// TCP when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<WorkloadProtocol>,
    /// The number.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i64,
}

/// A port of the node that leads to the workload, as `docker run -p` makes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadPublishedPort {
    /// TCP when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<WorkloadProtocol>,
    /// The node's address that it is bound to; absent is every address of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_address: Option<String>,
    /// The port on the node.
    #[schemars(range(min = 1, max = 65535))]
    pub host_port: i64,
    /// The port of the workload.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i64,
}

/// A protocol whose ports can be named and published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum WorkloadProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}
