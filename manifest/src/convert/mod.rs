//! From objects to the policy model: whole or not at all. Checking an object is converting it and dropping the result, so that
//! what is checked and what is used cannot differ.

mod admin;
mod cluster;
mod cluster_segment_policy;
mod label_rule;
mod network_policy;
mod parts;
mod pod;
mod segment_policy;
mod workload;

use crate::error::{Error, Errors, Place};
use crate::kinds::{Kind, Object};
use crate::path::{At, Problems};
use crate::{
    AddressGroup, AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, ClusterSegmentPolicy, LabelRule, Namespace,
    NetworkPolicy, Node, Pod, SegmentPolicy, Workload,
};
use firebreak_policy::{model, reserved};
pub(crate) use pod::host_addresses;

/// Finds everything that is wrong with the object's values.
pub(crate) fn check(object: &Object, problems: &mut Problems<'_>) {
    parts::check_metadata(object.kind(), object.metadata(), problems);
    match object {
        Object::Namespace(_) => {}
        Object::Node(node) => drop(cluster::node(node, problems)),
        Object::LabelRule(rule) => drop(label_rule::rule(rule, problems)),
        Object::AddressGroup(group) => drop(cluster::address_group(group, problems)),
        Object::Pod(pod) => drop(pod::pod(pod, problems)),
        Object::Workload(workload) => drop(workload::workload(workload, problems)),
        Object::NetworkPolicy(policy) => drop(network_policy::policy(policy, problems)),
        Object::SegmentPolicy(policy) => drop(segment_policy::policy(policy, problems)),
        Object::ClusterSegmentPolicy(policy) => drop(cluster_segment_policy::policy(policy, problems)),
        Object::AdminNetworkPolicy(policy) => drop(admin::admin(policy, problems)),
        Object::BaselineAdminNetworkPolicy(policy) => drop(admin::baseline(policy, problems)),
        Object::ClusterNetworkPolicy(policy) => drop(admin::cluster(policy, problems)),
    }
}

/// Runs a conversion; `Ok` only if nothing at all was wrong.
fn whole<T>(kind: Kind, metadata: &crate::ObjectMeta, convert: impl FnOnce(&mut Problems<'_>) -> T) -> Result<T, Errors> {
    let mut problems = Problems::new(None);
    parts::check_metadata(kind, metadata, &mut problems);
    let converted = convert(&mut problems);
    let name = match (&metadata.namespace, kind.is_namespaced()) {
        (Some(namespace), true) => format!("{kind} {namespace}/{}", metadata.name),
        (None, true) => format!("{kind} {DEFAULT_NAMESPACE}/{}", metadata.name),
        (Some(_) | None, false) => format!("{kind} {}", metadata.name),
    };
    let place = Place::nowhere().with_object(Some(name));
    Errors::check(problems.into_list().into_iter().map(|problem| Error::of_problem(&place, problem)).collect())?;
    Ok(converted)
}

/// Where a namespaced object without a namespace lives.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// The namespace of a namespaced object.
fn namespace(metadata: &crate::ObjectMeta) -> model::NamespaceName {
    model::NamespaceName::new(metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE))
}

/// The labels of an object.
fn labels(metadata: &crate::ObjectMeta) -> model::Labels {
    metadata.labels.iter().flatten().collect()
}

impl SegmentPolicy {
    /// The policy. Errors: everything that is wrong with the object.
    pub fn to_policy(&self) -> Result<model::Policy, Errors> {
        whole(Kind::SegmentPolicy, &self.metadata, |problems| segment_policy::policy(self, problems))
    }
}

impl NetworkPolicy {
    /// The policy. Errors: everything that is wrong with the object.
    pub fn to_policy(&self) -> Result<model::Policy, Errors> {
        whole(Kind::NetworkPolicy, &self.metadata, |problems| network_policy::policy(self, problems))
    }
}

impl ClusterSegmentPolicy {
    /// The policy. Errors: everything that is wrong with the object.
    pub fn to_policy(&self) -> Result<model::TieredPolicy, Errors> {
        whole(Kind::ClusterSegmentPolicy, &self.metadata, |problems| cluster_segment_policy::policy(self, problems))
    }
}

impl AdminNetworkPolicy {
    /// The policy. Errors: everything that is wrong with the object.
    pub fn to_policy(&self) -> Result<model::TieredPolicy, Errors> {
        whole(Kind::AdminNetworkPolicy, &self.metadata, |problems| admin::admin(self, problems))
    }
}

impl BaselineAdminNetworkPolicy {
    /// The policy. Errors: everything that is wrong with the object.
    pub fn to_policy(&self) -> Result<model::TieredPolicy, Errors> {
        whole(Kind::BaselineAdminNetworkPolicy, &self.metadata, |problems| admin::baseline(self, problems))
    }
}

impl ClusterNetworkPolicy {
    /// The policy. Errors: everything that is wrong with the object.
    pub fn to_policy(&self) -> Result<model::TieredPolicy, Errors> {
        whole(Kind::ClusterNetworkPolicy, &self.metadata, |problems| admin::cluster(self, problems))
    }
}

impl LabelRule {
    /// The rule. Errors: everything that is wrong with the object.
    pub fn to_model(&self) -> Result<reserved::LabelRule, Errors> {
        whole(Kind::LabelRule, &self.metadata, |problems| label_rule::rule(self, problems))
    }
}

impl AddressGroup {
    /// The group. Errors: everything that is wrong with the object.
    pub fn to_model(&self) -> Result<model::AddressGroup, Errors> {
        whole(Kind::AddressGroup, &self.metadata, |problems| cluster::address_group(self, problems))
    }
}

impl Workload {
    /// The workload. Its `interface` is absent where the manifest names a network namespace, its addresses are empty where the
    /// agent discovers them. Errors: everything that is wrong with the object.
    pub fn to_model(&self) -> Result<model::Workload, Errors> {
        whole(Kind::Workload, &self.metadata, |problems| workload::workload(self, problems))
    }
}

impl Pod {
    /// The images of the containers that run with it; those of init containers that have ended by then are not among them.
    pub fn images(&self) -> Vec<String> {
        pod::images(self)
    }

    /// The pod as a workload. A pod without a node is on none that can exist: its node's name then stands in parentheses.
    /// Errors: everything that is wrong with the object.
    pub fn to_model(&self) -> Result<model::Workload, Errors> {
        whole(Kind::Pod, &self.metadata, |problems| pod::pod(self, problems))
    }
}

impl Node {
    /// The node. Errors: everything that is wrong with the object.
    pub fn to_model(&self) -> Result<model::Node, Errors> {
        whole(Kind::Node, &self.metadata, |problems| cluster::node(self, problems))
    }
}

impl Namespace {
    /// The namespace. Errors: everything that is wrong with the object.
    pub fn to_model(&self) -> Result<model::Namespace, Errors> {
        let name = model::NamespaceName::new(&self.metadata.name);
        whole(Kind::Namespace, &self.metadata, |_| model::Namespace { name, labels: labels(&self.metadata) })
    }
}

/// Adds what a check says to the problems.
fn note<T>(result: Result<T, String>, at: &At<'_>, problems: &mut Problems<'_>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(reason) => {
            problems.add(at, reason);
            None
        }
    }
}
