//! Ports of the node that lead to a workload: traffic of a local workload to one is judged as traffic to that workload (DESIGN 6.8).

use super::comment;
use crate::compile::is_link_local;
use crate::kernel_sets::{Comment, Element, KernelSets, SetId, Shape};
use crate::model::{Direction, Family, PublishedPort, Transport};
use crate::node_state::{LocalEndpoint, NodeState};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Adds which ports lead to workloads, and who may use them by what `sets` already says.
pub(crate) fn add(sets: &mut KernelSets, state: &NodeState) {
    for target in state.endpoints.values() {
        for port in &target.published_ports {
            for at in state.addresses.iter().filter(|at| port.host_address.is_none_or(|bound| bound == **at)) {
                add_port(sets, state, target, port, *at);
            }
        }
    }
}

fn add_port(sets: &mut KernelSets, state: &NodeState, target: &LocalEndpoint, port: &PublishedPort, at: IpAddr) {
    let family = Family::of(at);
    let leads_to = comment(format!("leads to {}/{} port {}", target.namespace, target.name, port.workload_port));
    let published = SetId { direction: Direction::Egress, family, shape: Shape::Published };
    let first_claim = sets.sets.entry(published).or_default().insert(Element::Port(at, port.protocol, port.host_port), leads_to).is_none();
    let allow = SetId { direction: Direction::Egress, family, shape: Shape::PublishedAllow };
    // An address that two workloads claim may use the port only if both may.
    let mut locals: BTreeMap<IpAddr, (bool, Comment)> = BTreeMap::new();
    for source in state.endpoints.values() {
        let allowed = may_reach(sets, source, target, port, family);
        let said = comment(format!("{}/{} -> {}/{}", source.namespace, source.name, target.namespace, target.name));
        for local in source.addresses.iter().filter(|it| Family::of(**it) == family) {
            locals.entry(*local).and_modify(|(all, _)| *all &= allowed).or_insert_with(|| (allowed, said.clone()));
        }
    }
    let elements = sets.sets.entry(allow).or_default();
    for (local, (allowed, said)) in locals {
        let element = Element::PeerPort(local, at, port.protocol, port.host_port);
        // Two workloads behind one port: only who may reach both.
        if allowed && (first_claim || elements.contains_key(&element)) {
            elements.insert(element, said);
        } else {
            elements.remove(&element);
        }
    }
}

fn may_reach(sets: &KernelSets, source: &LocalEndpoint, target: &LocalEndpoint, port: &PublishedPort, family: Family) -> bool {
    if source.id == target.id {
        return true;
    }
    let transport = Transport::Port(port.protocol, port.workload_port);
    // Link-local addresses are nobody's peer, and no relay uses them.
    let usable = |it: &&IpAddr| !is_link_local(**it);
    let pairs = source.addresses.iter().filter(usable).flat_map(|from| target.addresses.iter().filter(usable).map(move |to| (*from, *to)));
    let same_family: Vec<(IpAddr, IpAddr)> = pairs.filter(|(from, to)| Family::of(*from) == Family::of(*to)).collect();
    let preferred: Vec<_> = same_family.iter().copied().filter(|(from, _)| Family::of(*from) == family).collect();
    let judged = if preferred.is_empty() { same_family } else { preferred };
    if judged.is_empty() {
        // The relay changes families, so no rule speaks of this pair: only where nothing is isolated is it allowed.
        let open = |direction, addresses: &[IpAddr]| addresses.iter().all(|it| !sets.is_isolated(direction, *it));
        return open(Direction::Egress, &source.addresses) && open(Direction::Ingress, &target.addresses);
    }
    judged
        .into_iter()
        .all(|(from, to)| sets.allows(Direction::Egress, from, to, transport) && sets.allows(Direction::Ingress, to, from, transport))
}
