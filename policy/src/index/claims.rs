//! Who claims which address, and which addresses nobody can be sure of. It says what `compile`'s address book says, address by address.

use super::ids::{IdMap, NONE};
use crate::compile::is_link_local;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// The number of the network that all nodes share.
pub(super) const DEFAULT_NETWORK: u32 = 0;

/// Where an address means one thing: on every node, or on the one whose hidden network it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// The node that owns the hidden network; [`NONE`] for networks that are nobody's.
    pub(super) owner: u32,
    pub(super) address: IpAddr,
}

/// One workload's word that an address of a network is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) network: u32,
    pub(super) workload: u32,
}

/// Nearly every address has one claimant.
#[derive(Debug)]
enum Claimants {
    One(Claim),
    Many(Vec<Claim>),
}

impl Claimants {
    fn as_slice(&self) -> &[Claim] {
        match self {
            Self::One(claim) => std::slice::from_ref(claim),
            Self::Many(claims) => claims,
        }
    }
}

/// All claims.
#[derive(Debug, Default)]
pub(super) struct Claims {
    places: HashMap<Place, Claimants>,
    /// How many nodes have an address as their own.
    node_addresses: HashMap<IpAddr, u32>,
    /// The nodes in whose hidden networks an address is claimed.
    hidden: HashMap<IpAddr, BTreeSet<u32>>,
    /// On each node, the addresses that more than one of the networks that reach it use: nobody's there.
    ambiguous: IdMap<u32, BTreeSet<IpAddr>>,
}

impl Claims {
    /// Who claims the address at the place, in order.
    pub(super) fn at(&self, place: &Place) -> &[Claim] {
        self.places.get(place).map(Claimants::as_slice).unwrap_or_default()
    }

    /// Adds a claim, and says on which nodes that changes what is ambiguous.
    pub(super) fn add(&mut self, place: Place, claim: Claim) -> Vec<u32> {
        match self.places.get_mut(&place) {
            None => {
                self.places.insert(place, Claimants::One(claim));
                if place.owner != NONE {
                    self.hidden.entry(place.address).or_default().insert(place.owner);
                }
            }
            Some(Claimants::One(only)) if *only == claim => return Vec::new(),
            Some(claimants @ Claimants::One(_)) => {
                let mut claims = [claimants.as_slice(), &[claim]].concat();
                claims.sort_unstable();
                *claimants = Claimants::Many(claims);
            }
            Some(Claimants::Many(claims)) => {
                if let Err(at) = claims.binary_search(&claim) {
                    claims.insert(at, claim);
                }
            }
        }
        self.review(&place)
    }

    /// Takes a claim away, and says on which nodes that changes what is ambiguous.
    pub(super) fn remove(&mut self, place: Place, claim: Claim) -> Vec<u32> {
        let left = match self.places.get_mut(&place) {
            None => return Vec::new(),
            Some(Claimants::One(only)) if *only != claim => return Vec::new(),
            Some(Claimants::One(_)) => 0,
            Some(Claimants::Many(claims)) => {
                if let Ok(at) = claims.binary_search(&claim) {
                    claims.remove(at);
                }
                claims.len()
            }
        };
        if left == 0 {
            self.places.remove(&place);
            if place.owner != NONE
                && let Some(nodes) = self.hidden.get_mut(&place.address)
            {
                nodes.remove(&place.owner);
                if nodes.is_empty() {
                    self.hidden.remove(&place.address);
                }
            }
        }
        let mut changed = self.review(&place);
        // Nobody claims it in the node's own networks any more.
        if left == 0 && place.owner != NONE && self.forget(place.owner, place.address) {
            changed.push(place.owner);
        }
        changed
    }

    pub(super) fn add_node_address(&mut self, address: IpAddr) {
        *self.node_addresses.entry(address).or_default() += 1;
    }

    pub(super) fn remove_node_address(&mut self, address: IpAddr) {
        if let Some(nodes) = self.node_addresses.get_mut(&address) {
            *nodes -= 1;
            if *nodes == 0 {
                self.node_addresses.remove(&address);
            }
        }
    }

    /// Whether more than one workload claims the address in the network, or a node has it too.
    pub(super) fn is_contested(&self, place: &Place, network: u32) -> bool {
        let claims = self.at(place);
        let mut claimants = claims.iter().filter(|claim| claim.network == network);
        let many = claimants.next().is_some() && (claimants.next().is_some() || self.is_nodes(place, network));
        many && !is_link_local(place.address)
    }

    fn is_nodes(&self, place: &Place, network: u32) -> bool {
        network == DEFAULT_NETWORK && self.node_addresses.contains_key(&place.address)
    }

    /// The addresses that are nobody's on a node.
    pub(super) fn ambiguous_on(&self, node: u32) -> Option<&BTreeSet<IpAddr>> {
        self.ambiguous.get(&node)
    }

    fn review(&mut self, place: &Place) -> Vec<u32> {
        let address = place.address;
        let nodes: Vec<u32> = match (place.owner, self.hidden.get(&address)) {
            (_, None) => return Vec::new(),
            (NONE, Some(nodes)) => nodes.iter().copied().collect(),
            (owner, Some(_)) => vec![owner],
        };
        let shared = self.networks(&Place { owner: NONE, address });
        let mut changed = Vec::new();
        for node in nodes {
            let hidden = self.networks(&Place { owner: node, address });
            let change = if hidden > 0 && hidden + shared > 1 {
                self.ambiguous.entry(node).or_default().insert(address)
            } else {
                self.forget(node, address)
            };
            if change {
                changed.push(node);
            }
        }
        changed
    }

    fn forget(&mut self, node: u32, address: IpAddr) -> bool {
        let Some(addresses) = self.ambiguous.get_mut(&node) else { return false };
        let was = addresses.remove(&address);
        if addresses.is_empty() {
            self.ambiguous.remove(&node);
        }
        was
    }

    fn networks(&self, place: &Place) -> usize {
        // In order of their networks.
        self.at(place).chunk_by(|one, other| one.network == other.network).count()
    }
}
