//! From objects to what the engine judges.

use crate::convert;
use crate::error::{Error, Errors};
use crate::kinds::{Kind, Object, ObjectKey};
use firebreak_policy::model::{Inventory, Labels, Node, NodeName, PolicySet, Workload, WorkloadId};
use firebreak_policy::reserved::{self, Given};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What objects say, with what is to be told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Built {
    /// Policies of every kind, and address groups.
    pub policies: PolicySet,
    /// What there is; the labels of workloads are those that select them, with what LabelRules give.
    pub inventory: Inventory,
    /// Workloads whose own labels below the reserved prefix were passed over, or to which several rules give different values.
    pub labels: BTreeMap<WorkloadId, Given>,
}

/// As [`build_all`], without what is to be told.
/// Errors: as there.
pub fn build<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Result<(PolicySet, Inventory), Errors> {
    build_all(objects).map(|Built { policies, inventory, labels: _ }| (policies, inventory))
}

/// Everything that the objects say, as policies and inventory. No label is added that no object has or gives, and no Namespace or Node
/// object is needed. A node's addresses are those of its Node object and those that its pods' status shows.
/// Errors: every object that is wrong, and objects that cannot stand together.
pub fn build_all<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Result<Built, Errors> {
    let mut rules = BTreeMap::new();
    let mut images = BTreeMap::new();
    let mut policies = PolicySet::default();
    let mut inventory = Inventory::default();
    let mut node_addresses: Vec<(NodeName, Vec<IpAddr>)> = Vec::new();
    let mut named: BTreeMap<(String, String), ObjectKey> = BTreeMap::new();
    let mut errors = Vec::new();
    for object in objects {
        let result = match object {
            Object::Namespace(namespace) => namespace.to_model().map(|namespace| {
                inventory.namespaces.insert(namespace.name.clone(), namespace);
            }),
            Object::Node(node) => node.to_model().map(|node| {
                node_addresses.push((node.name.clone(), node.addresses.clone()));
                inventory.nodes.insert(node.name.clone(), node);
            }),
            Object::LabelRule(rule) => rule.to_model().map(|rule| {
                rules.insert(rule.name.clone(), rule);
            }),
            Object::AddressGroup(group) => group.to_model().map(|group| {
                policies.address_groups.insert(group.name.clone(), group);
            }),
            Object::NetworkPolicy(policy) => policy.to_policy().map(|policy| {
                policies.policies.insert(policy.key.clone(), policy);
            }),
            Object::SegmentPolicy(policy) => policy.to_policy().map(|policy| {
                policies.policies.insert(policy.key.clone(), policy);
            }),
            Object::ClusterSegmentPolicy(policy) => policy.to_policy().map(|policy| {
                policies.tiered.insert(policy.key.clone(), policy);
            }),
            Object::AdminNetworkPolicy(policy) => policy.to_policy().map(|policy| {
                policies.tiered.insert(policy.key.clone(), policy);
            }),
            Object::BaselineAdminNetworkPolicy(policy) => policy.to_policy().map(|policy| {
                policies.tiered.insert(policy.key.clone(), policy);
            }),
            Object::ClusterNetworkPolicy(policy) => policy.to_policy().map(|policy| {
                policies.tiered.insert(policy.key.clone(), policy);
            }),
            Object::Pod(pod) => pod.to_model().map(|workload| {
                node_addresses.push((workload.id.node.clone(), convert::host_addresses(pod)));
                images.insert(workload.id.clone(), pod.images());
                errors.extend(add_workload(workload, object.key(), &mut named, &mut inventory));
            }),
            Object::Workload(workload) => workload.to_model().map(|workload| {
                errors.extend(add_workload(workload, object.key(), &mut named, &mut inventory));
            }),
        };
        if let Err(wrong) = result {
            errors.extend(wrong.into_vec());
        }
    }
    for (name, addresses) in node_addresses {
        if addresses.is_empty() {
            continue;
        }
        let empty = || Node { name: name.clone(), labels: Labels::default(), addresses: Vec::new() };
        let node = inventory.nodes.get_or_insert_with(&name, empty);
        for address in addresses {
            if !node.addresses.contains(&address) {
                node.addresses.push(address);
            }
        }
        node.addresses.sort();
    }
    Errors::check(errors)?;
    let labels = reserved::apply(&rules, &mut inventory, &images);
    Ok(Built { policies, inventory, labels })
}

fn add_workload(
    workload: Workload,
    key: ObjectKey,
    named: &mut BTreeMap<(String, String), ObjectKey>,
    inventory: &mut Inventory,
) -> Option<Error> {
    let name = (workload.namespace.as_str().to_owned(), workload.name.clone());
    if let Some(other) = named.get(&name) {
        debug_assert!(matches!(key.kind, Kind::Pod | Kind::Workload), "only these become workloads");
        let reason = format!("{other} has the same name, and both would be the workload {}/{}; rename one", name.0, name.1);
        return Some(Error::Conflict { object: key, reason });
    }
    named.insert(name, key);
    inventory.workloads.insert(workload.id.clone(), workload);
    None
}
