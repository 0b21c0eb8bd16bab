//! `firebreak.dev/v1alpha1` SegmentPolicy.

use super::address_group::Block;
use super::meta::ObjectMeta;
use super::selector::LabelSelector;
use super::value::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may talk to the workloads of one namespace, and to whom they may talk. What it selects is denied by default in the
/// directions that it lists; its rules allow. Policies add up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SegmentPolicy {
    /// Name, namespace, labels, annotations.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: SegmentPolicySpec,
}

/// What a SegmentPolicy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SegmentPolicySpec {
    /// The workloads of the policy's own namespace that it is about. `{}` is all of them.
    pub applies_to: LabelSelector,
    /// Whether it decides (`Enforce`, also when absent) or only says what it would decide (`Audit`): flows that it would deny are let through
    /// and reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Whether the node that runs the workload gets in past this policy: `Allow` (also when absent) lets it in unasked, `Judge`
    /// asks the ingress rules. One policy that isolates ingress and says `Judge` is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_access: Option<HostAccess>,
    /// What may come in. Absent: this policy does not concern ingress. An empty list: nothing may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<IngressRule>>,
    /// What may go out. Absent: this policy does not concern egress. An empty list: nothing may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<EgressRule>>,
}

/// Whether a policy decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// It decides.
    Enforce,
    /// It only says what it would decide.
    Audit,
}

/// Whether the workload's own node gets in past the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HostAccess {
    /// Unasked.
    Allow,
    /// Only as the ingress rules say.
    Judge,
}

/// What may come in: from any of these peers, on any of these ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IngressRule {
    /// A name that verdicts and flow records show; unique in its list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// Who; at least one. Anyone is `[{entity: any}]`.
    #[schemars(length(min = 1))]
    pub from: Vec<Peer>,
    /// On which ports; at least one. Absent: every port and protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub ports: Option<Vec<ServicePort>>,
}

/// What may go out: to any of these peers, on any of these ports of theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// A name that verdicts and flow records show; unique in its list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// Whom; at least one. Anyone is `[{entity: any}]`.
    #[schemars(length(min = 1))]
    pub to: Vec<Peer>,
    /// On which ports of the destination; at least one. Absent: every port and protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub ports: Option<Vec<ServicePort>>,
}

/// One peer. Exactly one of: `workloads` and/or `namespaces`, `cidr`, `addressGroup`, `entity`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "anyOf": [{ "required": ["workloads"] }, { "required": ["namespaces"] }] },
    { "required": ["cidr"] },
    { "required": ["addressGroup"] },
    { "required": ["entity"] },
]))]
pub struct Peer {
    /// The workloads that match, in the namespaces that match; without `namespaces`, of the policy's own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workloads: Option<LabelSelector>,
    /// The namespaces to look in; without `workloads`, every workload there. `{}` is every namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// A block of addresses, workloads included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cidr: Option<Block>,
    /// The name of an AddressGroup. While there is none of this name it matches nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub address_group: Option<String>,
    /// One of the entities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<Entity>,
}

/// Peers that have a name of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Entity {
    /// Every address.
    Any,
    /// The addresses of the node that runs the selected workload.
    Host,
    /// Every address outside the configured cluster networks; until those are configured, public addresses only.
    World,
}

/// One service of the destination: a protocol, perhaps with a port or a range of ports, or ICMP messages.
/// Exactly one of `protocol` and `icmp`; `port` and `endPort` go with a protocol that has ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = [{ "required": ["protocol"] }, { "required": ["icmp"] }],
    "dependentRequired" = { "port": ["protocol"], "endPort": ["port"] },
))]
pub struct ServicePort {
    /// `TCP`, `UDP`, `SCTP`, `UDPLite`, `DCCP`, `ICMP` (every message, IPv4), `ICMPv6` (every message), or an IP protocol number
    /// from 0 to 255.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("anyOf" = [
        { "enum": ["TCP", "UDP", "SCTP", "UDPLite", "DCCP", "ICMP", "ICMPv6"] },
        { "type": "integer", "minimum": 0, "maximum": 255 },
    ]))]
    pub protocol: Option<IntOrString>,
    /// A number, or a name that the destination workload gives one of its ports. Absent: every port of the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("anyOf" = [
        { "type": "integer", "minimum": 1, "maximum": 65535 },
        { "type": "string", "minLength": 1, "maxLength": 15 },
    ]))]
    pub port: Option<IntOrString>,
    /// The last port of a range, inclusive; `port` is then the first, a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i64>,
    /// ICMP messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
}

/// ICMP messages of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Icmp {
    /// ICMP belongs to IPv4, ICMPv6 to IPv6, and their numbers differ.
    pub family: IpFamily,
    /// The type: echo request is 8 for IPv4 and 128 for IPv6.
    #[serde(rename = "type")]
    #[schemars(range(min = 0, max = 255))]
    pub kind: i64,
    /// The code. Absent: every code.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub code: Option<i64>,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IpFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}
