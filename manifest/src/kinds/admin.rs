//! `policy.networking.k8s.io`: AdminNetworkPolicy and BaselineAdminNetworkPolicy (v1alpha1), ClusterNetworkPolicy (v1alpha2). Whole and strict.

use super::meta::ObjectMeta;
use super::selector::LabelSelector;
use serde::{Deserialize, Serialize};

/// A policy of the Admin tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminNetworkPolicy {
    /// Name, labels, annotations; no namespace.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: AdminNetworkPolicySpec,
}

/// What an AdminNetworkPolicy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminNetworkPolicySpec {
    /// 0 to 1000, the lowest first.
    pub priority: i64,
    /// The pods that it is about.
    pub subject: PodSubject,
    /// On what the subjects receive, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<AdminIngressRule>>,
    /// On what the subjects send, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<AdminEgressRule>>,
}

/// The one policy of the Baseline tier of its version; its name is `default`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineAdminNetworkPolicy {
    /// Name, labels, annotations; no namespace.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: BaselineAdminNetworkPolicySpec,
}

/// What a BaselineAdminNetworkPolicy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineAdminNetworkPolicySpec {
    /// The pods that it is about.
    pub subject: PodSubject,
    /// On what the subjects receive, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<AdminIngressRule>>,
    /// On what the subjects send, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<AdminEgressRule>>,
}

/// A policy of the Admin or the Baseline tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNetworkPolicy {
    /// Name, labels, annotations; no namespace.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: ClusterNetworkPolicySpec,
}

/// What a ClusterNetworkPolicy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterNetworkPolicySpec {
    /// `Admin` or `Baseline`.
    pub tier: String,
    /// 0 to 1000, the lowest first.
    pub priority: i64,
    /// The pods that it is about.
    pub subject: PodSubject,
    /// On what the subjects receive, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<ClusterIngressRule>>,
    /// On what the subjects send, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<ClusterEgressRule>>,
}

/// Exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSubject {
    /// Every pod of the namespaces that match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// The pods that match in the namespaces that match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
}

/// The pods that match in the namespaces that match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespacedPod {
    /// `{}` is every namespace; v1alpha2 takes an absent one for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// `{}` is every pod.
    pub pod_selector: LabelSelector,
}

/// On what is received, v1alpha1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminIngressRule {
    /// At most 100 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Allow`, `Deny`, and in the Admin tier `Pass`.
    pub action: String,
    /// From these.
    pub from: Vec<TierPeer>,
    /// On these ports; absent is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<AdminPort>>,
}

/// On what is sent, v1alpha1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminEgressRule {
    /// At most 100 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Allow`, `Deny`, and in the Admin tier `Pass`.
    pub action: String,
    /// To these.
    pub to: Vec<TierPeer>,
    /// On these ports of the destination; absent is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<AdminPort>>,
}

/// On what is received, v1alpha2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterIngressRule {
    /// At most 100 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// From these.
    pub from: Vec<TierPeer>,
    /// Of these protocols; absent is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Vec<ClusterProtocol>>,
}

/// On what is sent, v1alpha2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterEgressRule {
    /// At most 100 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// To these.
    pub to: Vec<TierPeer>,
    /// Of these protocols; absent is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Vec<ClusterProtocol>>,
}

/// One peer: exactly one field. One without any is of a version that is not known here, and fails closed (SEMANTICS 20).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TierPeer {
    /// Every pod of the namespaces that match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// The pods that match in the namespaces that match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
    /// Egress only: the addresses of the nodes that match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// Egress only: blocks of addresses, pods included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// Egress only; not taken by this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_names: Option<Vec<String>>,
}

/// One port entry of v1alpha1: exactly one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdminPort {
    /// One port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_number: Option<AdminPortNumber>,
    /// A name that the destination pod resolves, with the protocol that it gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named_port: Option<String>,
    /// A range of ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_range: Option<AdminPortRange>,
}

/// One port of v1alpha1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminPortNumber {
    /// `TCP` (also when absent), `UDP` or `SCTP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// 1 to 65535.
    pub port: i64,
}

/// A range of v1alpha1, both ends inclusive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminPortRange {
    /// `TCP` (also when absent), `UDP` or `SCTP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// 1 to 65535.
    pub start: i64,
    /// Greater than `start`.
    pub end: i64,
}

/// One protocol entry of v1alpha2: exactly one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterProtocol {
    /// TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<ClusterDestination>,
    /// UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<ClusterDestination>,
    /// SCTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<ClusterDestination>,
    /// A name that the destination pod resolves, with the protocol that it gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
}

/// What of a protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterDestination {
    /// Which ports of the destination; the API asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<ClusterPort>,
}

/// Exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterPort {
    /// One port, 1 to 65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<i64>,
    /// A range of ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<ClusterPortRange>,
}

/// A range of v1alpha2, both ends inclusive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterPortRange {
    /// 1 to 65535.
    pub start: i64,
    /// Greater than `start`.
    pub end: i64,
}
