//! Who holds which address, and which addresses nobody can be sure of.

use crate::model::{Inventory, NetworkAddress, NetworkName, NodeName, Workload, WorkloadId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// Whether a workload can be subject and peer: it lives and has a network of its own (SEMANTICS 12).
pub(crate) fn takes_part(workload: &Workload) -> bool {
    !workload.terminated && !workload.host_network
}

/// A link-local address means something on one link only (RFC 4291 2.5.6, RFC 3927), so it is nobody's peer and no conflict. As a local
/// address it is isolated like the others.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The holders of every address.
#[derive(Debug, Default)]
pub(crate) struct AddressBook {
    holders: HashMap<NetworkAddress, Holder>,
    conflicts: BTreeMap<NetworkAddress, BTreeSet<WorkloadId>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Holder {
    Workload(WorkloadId),
    Node(NodeName),
    Contested,
}

impl AddressBook {
    pub(crate) fn of(inventory: &Inventory) -> Self {
        let mut claims: HashMap<NetworkAddress, BTreeSet<&WorkloadId>> = HashMap::new();
        for workload in inventory.workloads.values().filter(|it| takes_part(it)) {
            for address in workload.addresses.iter().filter(|at| !is_link_local(at.address)) {
                claims.entry(address.clone()).or_default().insert(&workload.id);
            }
        }
        let mut book = Self::default();
        for (address, claimants) in claims {
            match (claimants.len(), claimants.first()) {
                (1, Some(only)) => {
                    book.holders.insert(address, Holder::Workload((*only).clone()));
                }
                _ => {
                    book.conflicts.insert(address.clone(), claimants.into_iter().cloned().collect());
                    book.holders.insert(address, Holder::Contested);
                }
            }
        }
        book.add_nodes(inventory);
        book
    }

    fn add_nodes(&mut self, inventory: &Inventory) {
        for node in inventory.nodes.values() {
            for address in &node.addresses {
                let at = NetworkAddress { network: NetworkName::default_network(), address: *address };
                match self.holders.get(&at) {
                    None => {
                        self.holders.insert(at, Holder::Node(node.name.clone()));
                    }
                    Some(Holder::Workload(claimant)) => {
                        self.conflicts.insert(at.clone(), BTreeSet::from([claimant.clone()]));
                        self.holders.insert(at, Holder::Contested);
                    }
                    // Bridges have the same address on every Docker host; a node's own address is asked of the node itself.
                    Some(Holder::Node(_) | Holder::Contested) => {}
                }
            }
        }
    }

    pub(crate) fn is_contested(&self, address: &NetworkAddress) -> bool {
        matches!(self.holders.get(address), Some(Holder::Contested))
    }

    pub(crate) fn conflicts(&self) -> &BTreeMap<NetworkAddress, BTreeSet<WorkloadId>> {
        &self.conflicts
    }
}
