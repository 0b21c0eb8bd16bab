//! Firebreak's objects as people write them: YAML and JSON in, the policy model out, and back.
//!
//! An object is taken whole or refused whole. Every refusal names file, document, line, field and reason, and all
//! refusals of a load come back together ([`Errors`]). Our own kinds and `NetworkPolicy` are strict: an unknown field
//! refuses the object. Of `Namespace`, `Node` and `Pod` only the fields that policy can be about are read.
//!
//! ```
//! let objects = firebreak_manifest::parse_str("shop.yaml", "
//! apiVersion: firebreak.dev/v1alpha1
//! kind: SegmentPolicy
//! metadata: {name: db, namespace: shop}
//! spec:
//!   appliesTo: {matchLabels: {app: db}}
//!   ingress:
//!   - from: [{workloads: {matchLabels: {app: api}}}]
//!     ports: [{protocol: TCP, port: 5432}]
//! ").unwrap();
//! let (policies, _inventory) = firebreak_manifest::build(objects.iter().map(|located| &located.object)).unwrap();
//! assert_eq!(policies.policies.len(), 1);
//! ```
#![forbid(unsafe_code)]

mod assemble;
mod convert;
mod decode;
mod error;
mod kinds;
mod load;
mod path;
pub mod schema;
mod text;
mod tree;
mod validate;

pub use assemble::{Built, build, build_all};
pub use error::{Error, Errors, Place};
pub use kinds::address_group::{AddressGroup, AddressGroupSpec, Block};
pub use kinds::admin::{
    AdminEgressRule, AdminIngressRule, AdminNetworkPolicy, AdminNetworkPolicySpec, AdminPort, AdminPortNumber, AdminPortRange,
    BaselineAdminNetworkPolicy, BaselineAdminNetworkPolicySpec, ClusterDestination, ClusterEgressRule, ClusterIngressRule,
    ClusterNetworkPolicy, ClusterNetworkPolicySpec, ClusterPort, ClusterPortRange, ClusterProtocol, NamespacedPod, PodSubject, TierPeer,
};
pub use kinds::cluster::{Namespace, Node, NodeAddress, NodeStatus};
pub use kinds::cluster_segment_policy::{
    Action as RuleAction, Answer as RuleAnswer, ClusterPeer, ClusterSegmentEgressRule, ClusterSegmentIngressRule, ClusterSegmentPolicy,
    ClusterSegmentPolicySpec, ClusterSubject, Tier,
};
pub use kinds::label_rule::{LabelRule, LabelRuleSpec, LabelRuleSubject};
pub use kinds::meta::ObjectMeta;
pub use kinds::network_policy::{
    IpBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
pub use kinds::pod::{Container, ContainerPort, HostIp, Pod, PodIp, PodSpec, PodStatus};
pub use kinds::segment_policy::{
    EgressRule, Entity, HostAccess, Icmp, IngressRule, IpFamily, Mode, Peer, SegmentPolicy, SegmentPolicySpec, ServicePort,
};
pub use kinds::selector::{LabelSelector, LabelSelectorRequirement};
pub use kinds::value::IntOrString;
pub use kinds::workload::{Workload, WorkloadPort, WorkloadProtocol, WorkloadPublishedPort, WorkloadSpec};
pub use kinds::{Kind, Object, ObjectKey};
pub use load::{Located, MAX_BYTES, load_paths, parse_str};
