//! What is denied with an answer, as sets that only what is denied asks.

use super::{Local, joined, low_byte};
use crate::kernel_sets::{Element, KernelSets, SetId, Shape, Span};
use crate::model::{Direction, Family};
use crate::node_state::{CompiledServices, LocalEndpoint, NodeState};
use crate::tiers::{Rejection, rejections};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Adds the sets of a state whose tiers are not resolved. An address that several claim is left out: what is denied there is dropped.
pub(super) fn add(sets: &mut KernelSets, state: &NodeState) {
    let rejections = rejections(state);
    if rejections.is_empty() {
        return;
    }
    let mut claims: BTreeMap<IpAddr, Vec<&LocalEndpoint>> = BTreeMap::new();
    for endpoint in state.endpoints.values() {
        for address in &endpoint.addresses {
            claims.entry(*address).or_default().push(endpoint);
        }
    }
    for (address, claimants) in claims {
        let [endpoint] = claimants.as_slice() else { continue };
        for direction in [Direction::Ingress, Direction::Egress] {
            let of_segment = rejections.get(&(endpoint.segment.clone(), direction)).map(Vec::as_slice).unwrap_or_default();
            add_local(sets, state, endpoint, address, direction, of_segment);
        }
    }
}

fn add_local(
    sets: &mut KernelSets,
    state: &NodeState,
    endpoint: &LocalEndpoint,
    address: IpAddr,
    direction: Direction,
    rejections: &[Rejection],
) {
    let family = Family::of(address);
    let said = super::comment(format!("{}/{} rejects", endpoint.namespace, endpoint.name));
    let mut local = Local::empty(state, endpoint, address, direction, &super::CLOSED);
    for Rejection { family: _, peers, services } in rejections.iter().filter(|it| it.family == family) {
        for peers in peers {
            match services {
                CompiledServices::Any => local.everything(*peers, &said),
                CompiledServices::Only(services) => services.iter().for_each(|service| local.range(*peers, *service, &said)),
                // Resolved services have no such.
                CompiledServices::OfMembers => {}
            }
        }
    }
    let id = |shape| SetId { direction, family, shape };
    for (peers, protocols, ports, said) in joined(super::disjoint(&local.ranges), u16::MAX) {
        sets.sets.entry(id(Shape::Reject)).or_default().insert(Element::Range(address, peers, protocols, ports), said);
    }
    for (peers, kinds, codes, said) in joined(super::disjoint(&local.icmp_ranges), u16::from(u8::MAX)) {
        let codes = Span { first: low_byte(codes.first), last: low_byte(codes.last) };
        sets.sets.entry(id(Shape::RejectIcmp)).or_default().insert(Element::IcmpRange(address, peers, kinds, codes), said);
    }
}
