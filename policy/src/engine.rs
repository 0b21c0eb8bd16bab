//! Flows between named ends: who they are, by which addresses they meet, and what both ends say.

use crate::compile::{Compiled, compile};
use crate::evaluate::{DirectionVerdict, PeerView};
use crate::model::{
    Direction, Endpoint, Family, Flow, Inventory, NetworkAddress, NetworkName, NodeName, PolicySet, Transport, Workload, WorkloadId,
};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A policy set compiled over an inventory, ready to answer.
#[derive(Clone, Debug)]
pub struct Engine {
    inventory: Arc<Inventory>,
    compiled: Arc<Compiled>,
}

/// The verdict on a flow, from both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowVerdict {
    /// Judged at the source; `None` when the source is no workload that takes part.
    pub egress: Option<DirectionVerdict>,
    /// Judged at the destination; `None` when the destination is no workload that takes part.
    pub ingress: Option<DirectionVerdict>,
}

impl FlowVerdict {
    /// Both sides must allow, each judged alone (SEMANTICS 11).
    pub fn allowed(&self) -> bool {
        [&self.egress, &self.ingress].into_iter().flatten().all(DirectionVerdict::allowed)
    }
}

/// Why a flow cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluateError {
    /// No workload of that id.
    #[error("no workload is called {0}")]
    UnknownWorkload(WorkloadId),
    /// A workload that ended holds no address, so no packet is its own.
    #[error("workload {0} has ended and holds no address any more")]
    Ended(WorkloadId),
}

/// One end with the addresses under which it can be met.
struct End<'a> {
    /// The workloads that judge for it: none, one, or all that claim a contested address.
    subjects: Vec<&'a Workload>,
    addresses: Vec<NetworkAddress>,
    name: String,
}

impl Engine {
    /// Compiles. Workloads that take part and have no address yet (manifests without status) are given placeholders that nobody else has,
    /// so that they are judged by their labels: such an address is in no block but one that holds its whole family.
    pub fn new(policies: &PolicySet, mut inventory: Inventory) -> Self {
        let homeless = inventory.workloads.values_mut().filter(|it| !it.terminated && it.addresses.is_empty());
        for (position, workload) in homeless.enumerate() {
            workload.addresses = placeholders(position);
        }
        let compiled = compile(policies, &inventory);
        Self { inventory: Arc::new(inventory), compiled: Arc::new(compiled) }
    }

    /// What was compiled already, over an inventory in which every address is known.
    pub fn of(compiled: Arc<Compiled>, inventory: Arc<Inventory>) -> Self {
        Self { inventory, compiled }
    }

    /// The compiled form.
    pub fn compiled(&self) -> &Arc<Compiled> {
        &self.compiled
    }

    /// What was compiled over.
    pub fn inventory(&self) -> &Arc<Inventory> {
        &self.inventory
    }

    /// The verdict, with the deciding rule or the reasons of a deny.
    ///
    /// # Errors
    /// A workload that is not known, or has ended.
    pub fn evaluate(&self, flow: &Flow) -> Result<FlowVerdict, EvaluateError> {
        let (from, to) = (self.end(&flow.from)?, self.end(&flow.to)?);
        let (source, destination) = meeting(&from.addresses, &to.addresses, flow.transport);
        Ok(FlowVerdict {
            egress: self.judge(&from, source, &to, destination, Direction::Egress, flow.transport),
            ingress: self.judge(&to, destination, &from, source, Direction::Ingress, flow.transport),
        })
    }

    fn judge(
        &self,
        subject: &End<'_>,
        local: Option<&NetworkAddress>,
        peer: &End<'_>,
        remote: Option<&NetworkAddress>,
        direction: Direction,
        transport: Transport,
    ) -> Option<DirectionVerdict> {
        let local = local.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |at| at.address);
        let verdicts = self.claimants(subject, local).into_iter().filter_map(|id| {
            let address = self.as_seen_on(&id.node, remote, peer);
            self.compiled.judge_end(id, direction, local, PeerView { address, name: &peer.name }, transport)
        });
        // A contested address is allowed only what all its claimants are.
        verdicts.min_by_key(DirectionVerdict::allowed)
    }

    /// The subjects, and whoever else has their address on their node: the kernel cannot tell them apart.
    fn claimants<'a>(&'a self, subject: &End<'a>, local: IpAddr) -> BTreeSet<&'a WorkloadId> {
        let mut claimants: BTreeSet<&WorkloadId> = subject.subjects.iter().map(|workload| &workload.id).collect();
        for node in claimants.clone().into_iter().filter_map(|id| self.compiled.node(&id.node)) {
            claimants.extend(node.endpoints.values().filter(|it| it.addresses.contains(&local)).map(|it| &it.id));
        }
        claimants
    }

    /// A peer behind masquerading appears as its node; when that node's address is not known, as an address that nobody has.
    fn as_seen_on(&self, node: &NodeName, remote: Option<&NetworkAddress>, peer: &End<'_>) -> IpAddr {
        let Some(at) = remote else { return Ipv4Addr::UNSPECIFIED.into() };
        if at.network.reaches(node) {
            return at.address;
        }
        let family = Family::of(at.address);
        let hiding = peer.subjects.first().and_then(|workload| self.inventory.nodes.get(&workload.id.node));
        let seen = hiding.and_then(|node| node.addresses.iter().find(|it| Family::of(**it) == family)).copied();
        seen.unwrap_or(match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        })
    }

    fn end(&self, endpoint: &Endpoint) -> Result<End<'_>, EvaluateError> {
        match endpoint {
            Endpoint::Workload(id) => {
                let workload = self.inventory.workloads.get(id).ok_or_else(|| EvaluateError::UnknownWorkload(id.clone()))?;
                if workload.terminated {
                    return Err(EvaluateError::Ended(id.clone()));
                }
                let name = named(workload);
                if workload.host_network {
                    return Ok(End { subjects: Vec::new(), addresses: self.node_addresses(workload), name });
                }
                Ok(End { subjects: vec![workload], addresses: workload.addresses.clone(), name })
            }
            Endpoint::Address(address) => {
                let at = NetworkAddress { network: NetworkName::default_network(), address: *address };
                let holders =
                    self.inventory.workloads.values().filter(|it| !it.terminated && !it.host_network && it.addresses.contains(&at));
                let subjects: Vec<&Workload> = holders.collect();
                let name = subjects.first().map_or_else(|| address.to_string(), |workload| named(workload));
                Ok(End { subjects, addresses: vec![at], name })
            }
        }
    }

    /// A host-network workload is its node's address (SEMANTICS 12).
    fn node_addresses(&self, workload: &Workload) -> Vec<NetworkAddress> {
        let declared = self.inventory.nodes.get(&workload.id.node).map(|node| node.addresses.as_slice()).unwrap_or_default();
        if declared.is_empty() {
            return workload.addresses.clone();
        }
        declared.iter().map(|address| NetworkAddress { network: NetworkName::default_network(), address: *address }).collect()
    }
}

fn named(workload: &Workload) -> String {
    let labels = workload.labels.to_string();
    if labels.is_empty() {
        format!("{}/{}", workload.namespace, workload.name)
    } else {
        format!("{}/{} [{labels}]", workload.namespace, workload.name)
    }
}

/// The first pair of one family: the one that the transport belongs to, else IPv4 before IPv6. Without a common family the first of each.
fn meeting<'a>(
    from: &'a [NetworkAddress],
    to: &'a [NetworkAddress],
    transport: Transport,
) -> (Option<&'a NetworkAddress>, Option<&'a NetworkAddress>) {
    let families = match transport {
        Transport::Icmp { family, .. } => vec![family],
        Transport::Port(..) | Transport::Other(_) => vec![Family::V4, Family::V6],
    };
    let of = |addresses: &'a [NetworkAddress], family| addresses.iter().find(|at| Family::of(at.address) == family);
    families.into_iter().find_map(|family| Some((Some(of(from, family)?), Some(of(to, family)?)))).unwrap_or((from.first(), to.first()))
}

/// Addresses that nobody has: class E (RFC 1112) and the discard-only prefix (RFC 6666).
fn placeholders(position: usize) -> Vec<NetworkAddress> {
    let number = u32::try_from(position).unwrap_or(u32::MAX).min(0x0fff_fffe);
    let v4 = Ipv4Addr::from_bits(0xf000_0000 | number);
    let v6 = Ipv6Addr::from_bits(0x0100_u128 << 112 | u128::from(number));
    let network = NetworkName::default_network;
    vec![NetworkAddress { network: network(), address: v4.into() }, NetworkAddress { network: network(), address: v6.into() }]
}
