//! Policies and inventory in, what each node needs out. A function of its arguments: order and number of events never enter.

mod addresses;
mod blocks;
mod canonical;
mod groups;
mod index;
mod segments;

use crate::model::{
    Direction, GroupName, Inventory, NetworkAddress, NodeName, Peer, Peers, Policy, PolicyKey, PolicySet, Rule, WorkloadId,
};
use crate::node_state::{LocalEndpoint, NodeState, Segment};
pub(crate) use addresses::is_link_local;
use addresses::{AddressBook, takes_part};
use groups::Groups;
use index::Index;
use segments::{SegmentBuilder, Selections};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a policy set means over an inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    nodes: BTreeMap<NodeName, NodeState>,
    conflicts: BTreeMap<NetworkAddress, BTreeSet<WorkloadId>>,
    problems: BTreeMap<PolicyKey, Vec<Problem>>,
}

/// Why a policy is not fully in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// It names an `AddressGroup` that is not there: nobody, until it appears.
    MissingAddressGroup(GroupName),
}

impl Compiled {
    /// What one node needs. A node without workloads needs nothing but its own addresses.
    pub fn node(&self, name: &NodeName) -> Option<&NodeState> {
        self.nodes.get(name)
    }

    /// Every node that is declared or has workloads.
    pub fn nodes(&self) -> &BTreeMap<NodeName, NodeState> {
        &self.nodes
    }

    /// The addresses that two live workloads claim, or a workload and a node: nobody's peer until it ends.
    pub fn conflicts(&self) -> &BTreeMap<NetworkAddress, BTreeSet<WorkloadId>> {
        &self.conflicts
    }

    /// What is wrong with policies that are in force all the same.
    pub fn problems(&self) -> &BTreeMap<PolicyKey, Vec<Problem>> {
        &self.problems
    }

    /// A workload that takes part, and its segment. `None` for one that is unknown, has ended, or shares its node's network.
    pub fn workload(&self, id: &WorkloadId) -> Option<(&LocalEndpoint, &Segment)> {
        let state = self.nodes.get(&id.node)?;
        let endpoint = state.endpoints.get(id)?;
        Some((endpoint, state.segments.get(&endpoint.segment)?))
    }
}

/// Compiles the policy set over the inventory.
pub fn compile(policies: &PolicySet, inventory: &Inventory) -> Compiled {
    let book = AddressBook::of(inventory);
    let index = Index::of(inventory);
    let mut groups = Groups::new(policies, inventory, &index, &book);
    let selections = Selections::of(policies, &index);
    let mut nodes: BTreeMap<NodeName, NodeState> = inventory
        .nodes
        .values()
        .map(|node| (node.name.clone(), NodeState { addresses: node.addresses.iter().copied().collect(), ..NodeState::default() }))
        .collect();
    for workload in inventory.workloads.values().filter(|it| takes_part(it)) {
        let state = nodes.entry(workload.id.node.clone()).or_default();
        let builder = SegmentBuilder::of(workload, &selections);
        let segment_id = builder.id();
        if !state.segments.contains_key(&segment_id) {
            let (segment, used) = builder.build(segment_id.clone(), &mut groups);
            state.groups.extend(used.into_iter().map(|group| (group.id.clone(), group)));
            state.segments.insert(segment_id.clone(), Arc::new(segment));
        }
        let endpoint = LocalEndpoint {
            id: workload.id.clone(),
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            segment: segment_id,
            addresses: workload.addresses.iter().filter(|at| at.network.reaches(&workload.id.node)).map(|at| at.address).collect(),
            published_ports: workload.published_ports.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
        };
        state.endpoints.insert(workload.id.clone(), Arc::new(endpoint));
    }
    Compiled { nodes, conflicts: book.conflicts().clone(), problems: problems(policies) }
}

fn problems(policies: &PolicySet) -> BTreeMap<PolicyKey, Vec<Problem>> {
    let mut problems = BTreeMap::new();
    for policy in policies.policies.values() {
        let missing: BTreeSet<Problem> = rules(policy)
            .flat_map(|rule| match &rule.peers {
                Peers::Any => &[][..],
                Peers::Only(peers) => peers,
            })
            .filter_map(|peer| match peer {
                Peer::Group(name) if !policies.address_groups.contains_key(name) => Some(Problem::MissingAddressGroup(name.clone())),
                Peer::Group(_) | Peer::Workloads { .. } | Peer::Cidr(_) | Peer::Entity(_) => None,
            })
            .collect();
        if !missing.is_empty() {
            problems.insert(policy.key.clone(), missing.into_iter().collect());
        }
    }
    problems
}

fn rules(policy: &Policy) -> impl Iterator<Item = &Rule> {
    policy.ingress.iter().chain(policy.egress.iter()).flatten()
}

/// The rules of one direction, if the policy concerns it.
fn concerns(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}
