//! `compile`, kept up event by event: what every node needs, without looking at what an event cannot change.
//!
//! Two parts, so that several policy sets can live over one inventory: [`Running`] is the workloads, nodes and namespaces by number, [`Written`]
//! one policy set over it. [`Index`] is one of each.

mod ahead;
mod claims;
mod groups;
mod ids;
mod labels;
mod nodes;
mod objects;
mod parallel;
mod running;
mod segments;
mod stamps;
mod template;
mod written;

pub use nodes::Holding;
pub use objects::Objects;
#[cfg(feature = "arbitrary")]
pub use running::Forgotten;
pub use running::{Running, Touched};
pub use stamps::{Stamps, Unstamped};
pub use written::Written;

use crate::compile::Compiled;
use crate::model::{
    AddressGroup, GroupName, Inventory, Namespace, NamespaceName, Node, NodeName, Policy, PolicyKey, PolicySet, TieredPolicy, Workload,
    WorkloadId,
};
use crate::node_state::ObjectKey;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One policy set over one inventory. It is told events, in any order and any number; [`Self::settle`] then brings what nodes need up to date.
/// What comes out is what `compile` gives for the state that the events led to.
#[derive(Debug)]
pub struct Index<S: Stamps> {
    running: Running,
    written: Written<S>,
}

impl<S: Stamps> Default for Index<S> {
    fn default() -> Self {
        Self { running: Running::default(), written: Written::default() }
    }
}

impl<S: Stamps> Index<S> {
    /// The index of a state, settled.
    pub fn of(policies: &PolicySet, inventory: &Inventory) -> Self {
        let mut index = Self::default();
        index.set_cluster_networks(&policies.cluster_networks);
        policies.address_groups.iter_shared().for_each(|(_, it)| index.put_address_group(it.clone()));
        policies.policies.iter_shared().for_each(|(_, it)| index.put_policy(it.clone()));
        policies.tiered.iter_shared().for_each(|(_, it)| index.put_tiered(it.clone()));
        inventory.namespaces.values().for_each(|it| index.put_namespace(it));
        inventory.nodes.iter_shared().for_each(|(_, it)| index.put_node(it.clone()));
        inventory.workloads.iter_shared().for_each(|(_, it)| index.put_workload(it.clone()));
        index.settle();
        index
    }

    /// A workload came or changed.
    pub fn put_workload(&mut self, workload: Arc<Workload>) {
        self.running.put_workload(workload);
    }

    /// A workload went.
    pub fn remove_workload(&mut self, id: &WorkloadId) {
        self.running.remove_workload(id);
    }

    /// A namespace came or changed.
    pub fn put_namespace(&mut self, namespace: &Namespace) {
        self.running.put_namespace(namespace);
    }

    /// A namespace went.
    pub fn remove_namespace(&mut self, name: &NamespaceName) {
        self.running.remove_namespace(name);
    }

    /// A node came or changed.
    pub fn put_node(&mut self, node: Arc<Node>) {
        self.running.put_node(node);
    }

    /// A node's declaration went.
    pub fn remove_node(&mut self, name: &NodeName) {
        self.running.remove_node(name);
    }

    /// A policy of a namespace came or changed.
    pub fn put_policy(&mut self, policy: Arc<Policy>) {
        self.written.put_policy(policy);
    }

    /// A policy of a namespace went.
    pub fn remove_policy(&mut self, key: &PolicyKey) {
        self.written.remove_policy(key);
    }

    /// A policy of a tier came or changed.
    pub fn put_tiered(&mut self, policy: Arc<TieredPolicy>) {
        self.written.put_tiered(policy);
    }

    /// A policy of a tier went.
    pub fn remove_tiered(&mut self, key: &PolicyKey) {
        self.written.remove_tiered(key);
    }

    /// An address group came or changed.
    pub fn put_address_group(&mut self, group: Arc<AddressGroup>) {
        self.written.put_address_group(group);
    }

    /// An address group went.
    pub fn remove_address_group(&mut self, name: &GroupName) {
        self.written.remove_address_group(name);
    }

    /// The configured cluster networks.
    pub fn set_cluster_networks(&mut self, networks: &[IpNet]) {
        self.written.set_cluster_networks(networks);
    }

    /// Brings what nodes need up to date with the events since this was last called.
    pub fn settle(&mut self) {
        let touched = self.running.take_touched();
        self.written.settle(&mut self.running, &touched);
    }

    /// The nodes that changed since this was last asked, with the keys of the objects that came, changed or went. A node that is there no more
    /// is named too.
    pub fn take_changed(&mut self) -> BTreeMap<NodeName, BTreeSet<ObjectKey>> {
        self.written.take_changed(&self.running)
    }

    /// What a node needs as of the last settling.
    pub fn node(&self, name: &NodeName) -> Option<&Holding<S>> {
        self.written.node(&self.running, name)
    }

    /// Every node that is declared or has workloads.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeName, &Holding<S>)> {
        self.written.nodes(&self.running)
    }

    /// The inventory's part.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// The policies' part.
    pub fn written(&self) -> &Written<S> {
        &self.written
    }

    /// The same as `compile` gives.
    pub fn compiled(&self) -> Compiled {
        self.written.compiled(&self.running)
    }
}

impl<S: Stamps> Written<S> {
    /// The same as `compile` gives for this policy set.
    pub fn compiled(&self, running: &Running) -> Compiled {
        let nodes = self.nodes(running).map(|(name, holding)| (name.clone(), holding.state.clone()));
        Compiled::assembled(nodes.collect(), running.conflicts().clone(), self.problems().clone())
    }
}
