//! Policies and inventory in, what each node needs out. A function of its arguments: order and number of events never enter.

mod addresses;
pub(crate) mod blocks;
pub(crate) mod canonical;
pub(crate) mod groups;
mod index;
pub(crate) mod segments;

use crate::model::{
    Direction, GroupName, Inventory, NetworkAddress, NodeName, Peer, Peers, Policy, PolicyKey, PolicySet, Rule, Tier, WorkloadId,
};
use crate::node_state::{LocalEndpoint, NodeState, Segment};
use crate::shared_map::SharedMap;
use addresses::AddressBook;
pub(crate) use addresses::{is_link_local, takes_part};
use groups::Groups;
use index::Index;
use segments::{SegmentBuilder, Selections};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a policy set means over an inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    nodes: SharedMap<NodeName, NodeState>,
    conflicts: Arc<BTreeMap<NetworkAddress, BTreeSet<WorkloadId>>>,
    problems: Arc<BTreeMap<PolicyKey, Vec<Problem>>>,
}

/// Why a policy is not fully in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// It names an `AddressGroup` that is not there: nobody in a rule that allows, everybody in one that denies, until it appears.
    MissingAddressGroup(GroupName),
    /// A rule has a peer of a kind that is not known here; the rule fails closed.
    UnknownPeer,
    /// Another policy has the same priority in the same tier: of the two the first by kind and name goes first.
    SamePriority(PolicyKey),
}

impl Compiled {
    /// Out of what was worked out elsewhere.
    pub fn assembled(
        nodes: SharedMap<NodeName, NodeState>,
        conflicts: Arc<BTreeMap<NetworkAddress, BTreeSet<WorkloadId>>>,
        problems: Arc<BTreeMap<PolicyKey, Vec<Problem>>>,
    ) -> Self {
        Self { nodes, conflicts, problems }
    }

    /// What one node needs. A node without workloads needs nothing but its own addresses.
    pub fn node(&self, name: &NodeName) -> Option<&NodeState> {
        self.nodes.get(name)
    }

    /// Every node that is declared or has workloads.
    pub fn nodes(&self) -> &SharedMap<NodeName, NodeState> {
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
            state.segments.insert(segment_id.clone(), segment);
        }
        let endpoint = LocalEndpoint {
            id: workload.id.clone(),
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            segment: segment_id,
            addresses: workload.addresses.iter().filter(|at| at.network.reaches(&workload.id.node)).map(|at| at.address).collect(),
            published_ports: workload.published_ports.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
        };
        state.endpoints.insert(workload.id.clone(), endpoint);
    }
    Compiled { nodes: nodes.into_iter().collect(), conflicts: Arc::new(book.conflicts().clone()), problems: Arc::new(problems(policies)) }
}

fn problems(policies: &PolicySet) -> BTreeMap<PolicyKey, Vec<Problem>> {
    let mut problems: BTreeMap<PolicyKey, BTreeSet<Problem>> = BTreeMap::new();
    let namespaced = policies
        .policies
        .values()
        .flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten().map(|rule| (&policy.key, &rule.peers)));
    let tiered =
        policies.tiered.values().flat_map(|policy| policy.ingress.iter().chain(&policy.egress).map(|rule| (&policy.key, &rule.peers)));
    for (key, peers) in namespaced.chain(tiered) {
        let peers = match peers {
            Peers::Any => &[][..],
            Peers::Only(peers) => peers,
        };
        let found = peers.iter().filter_map(|peer| match peer {
            Peer::Group(name) if !policies.address_groups.contains_key(name) => Some(Problem::MissingAddressGroup(name.clone())),
            Peer::Unknown => Some(Problem::UnknownPeer),
            Peer::Group(_) | Peer::Workloads { .. } | Peer::Cidr(_) | Peer::Entity(_) | Peer::Nodes(_) => None,
        });
        let found: Vec<Problem> = found.collect();
        if !found.is_empty() {
            problems.entry(key.clone()).or_default().extend(found);
        }
    }
    let mut ranks: BTreeMap<(Tier, u16), Vec<&PolicyKey>> = BTreeMap::new();
    for policy in policies.tiered.values() {
        ranks.entry((policy.tier, policy.priority)).or_default().push(&policy.key);
    }
    for keys in ranks.into_values().filter(|keys| keys.len() > 1) {
        for key in &keys {
            let others = keys.iter().filter(|other| *other != key).map(|other| Problem::SamePriority((*other).clone()));
            problems.entry((*key).clone()).or_default().extend(others);
        }
    }
    problems.into_iter().map(|(key, problems)| (key, problems.into_iter().collect())).collect()
}

/// The rules of one direction, if the policy concerns it.
fn concerns(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}
