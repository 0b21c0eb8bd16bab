//! `firebreak.dev/v1alpha1` ClusterSegmentPolicy.

use super::address_group::Block;
use super::meta::ObjectMeta;
use super::segment_policy::{Entity, Mode, ServicePort};
use super::selector::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rules of the network team around the policies of namespaces. In each direction the first rule that matches decides: by tier, then by
/// priority, then as written. It isolates nobody by itself. Cluster-scoped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSegmentPolicy {
    /// Name, labels, annotations; no namespace.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: ClusterSegmentPolicySpec,
}

/// What a ClusterSegmentPolicy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSegmentPolicySpec {
    /// `Admin`: before the policies of namespaces. `Baseline`: after them, and only where none of them isolates.
    pub tier: Tier,
    /// 0 to 1000, the lowest first within its tier.
    #[schemars(range(min = 0, max = 1000))]
    pub priority: i64,
    /// Whether it decides (`Enforce`, also when absent) or only says what it would decide (`Audit`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The workloads that it is about.
    pub subject: ClusterSubject,
    /// On what the subjects receive, in order; at least one of `ingress` and `egress`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<ClusterSegmentIngressRule>>,
    /// On what the subjects send, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<ClusterSegmentEgressRule>>,
}

/// A tier around the policies of namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Tier {
    /// Before them.
    Admin,
    /// After them, and only where none of them isolates.
    Baseline,
}

/// The workloads that match in the namespaces that match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSubject {
    /// In which namespaces; `{}` is every namespace.
    pub namespaces: LabelSelector,
    /// Which workloads there; absent is every one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workloads: Option<LabelSelector>,
}

/// What a rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Let through; final for this side only.
    Allow,
    /// Stop; final.
    Deny,
    /// Leave the tier.
    Pass,
}

/// How a denied packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Answer {
    /// Not at all.
    Drop,
    /// With a TCP reset or an ICMP error.
    Reject,
}

/// On what is received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSegmentIngressRule {
    /// A name that verdicts and flow records show; unique in its list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// What it decides.
    pub action: Action,
    /// How a denied packet is answered; only with `action: Deny`. Absent: `Drop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// Why, for people: verdicts and flow records show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub reason: Option<String>,
    /// Who; at least one. Anyone is `[{entity: any}]`.
    #[schemars(length(min = 1))]
    pub from: Vec<ClusterPeer>,
    /// On which ports; at least one. Absent: every port and protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub ports: Option<Vec<ServicePort>>,
}

/// On what is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSegmentEgressRule {
    /// A name that verdicts and flow records show; unique in its list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// What it decides.
    pub action: Action,
    /// How a denied packet is answered; only with `action: Deny`. Absent: `Drop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// Why, for people: verdicts and flow records show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub reason: Option<String>,
    /// Whom; at least one. Anyone is `[{entity: any}]`.
    #[schemars(length(min = 1))]
    pub to: Vec<ClusterPeer>,
    /// On which ports of the destination; at least one. Absent: every port and protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub ports: Option<Vec<ServicePort>>,
}

/// One peer. Exactly one of: `namespaces` (perhaps with `workloads`), `cidr`, `addressGroup`, `entity`, `nodes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = [
        { "required": ["namespaces"] },
        { "required": ["cidr"] },
        { "required": ["addressGroup"] },
        { "required": ["entity"] },
        { "required": ["nodes"] },
    ],
    "dependentRequired" = { "workloads": ["namespaces"] },
))]
pub struct ClusterPeer {
    /// The namespaces to look in; without `workloads`, every workload there. `{}` is every namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// The workloads that match there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workloads: Option<LabelSelector>,
    /// A block of addresses, workloads included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cidr: Option<Block>,
    /// The name of an AddressGroup. While there is none of this name it is nobody for Allow, and everybody for Deny and Pass, which then denies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub address_group: Option<String>,
    /// One of the entities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<Entity>,
    /// The addresses of the nodes that match, not the workloads on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
}
