//! What each guard binds its interface to. Pure: a function of what is claimed and of what is bound already.
//!
//! An address, or a MAC address on its link, is bound to one interface at most. Of several that claim it, the one that somebody
//! outside the workload vouches for has it; else the one that has it already, for as long as it claims it; else nobody. So a
//! container that gives itself a neighbour's address takes nothing from the neighbour and gains nothing. "Already" is read from
//! the kernel's own sets, so it outlives the agent.

use super::desired::{Claim, Desired, MacAddress, ManagedInterface};
use super::element::{Bound, Entry};
use super::literal;
use super::names::{BoundForm, SetRef};
use super::plan::{KernelState, Ports};
use crate::local::is_link_local;
use firebreak_policy::kernel_sets::Comment;
use firebreak_policy::model::Family;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

/// What one interface is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    /// Its MAC address; without one nothing passes.
    pub(super) mac: Option<MacAddress>,
    /// Its IP addresses.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Whose it is.
    pub(super) comment: Comment,
}

/// By ifindex, what the guards are to let pass.
pub(super) fn bindings(actual: &KernelState, desired: &Desired) -> BTreeMap<u32, Binding> {
    let macs = winners(
        desired
            .interfaces
            .iter()
            .filter_map(|(index, interface)| Some((*index, (interface.claim.link, interface.claim.mac?), &interface.claim))),
        |index, (_, mac)| actual.binds(index, Bound::Mac(index, *mac)),
    );
    let addresses = winners(
        desired.interfaces.iter().flat_map(|(index, interface)| {
            interface.claim.addresses.iter().map(|address| (*index, (scope(&interface.claim, *address), *address), &interface.claim))
        }),
        |index, (_, address)| actual.holds(index, *address),
    );
    let binding = |index: u32, interface: &ManagedInterface| {
        let claim = &interface.claim;
        Binding {
            mac: claim.mac.filter(|mac| macs.get(&(claim.link, *mac)) == Some(&Some(index))),
            addresses: claim
                .addresses
                .iter()
                .copied()
                .filter(|address| addresses.get(&(scope(claim, *address), *address)) == Some(&Some(index)))
                .collect(),
            comment: interface.workload.clone(),
        }
    };
    desired.interfaces.iter().map(|(index, interface)| (*index, binding(*index, interface))).collect()
}

/// A link-local address means something on its link, any other on the node.
fn scope(claim: &Claim, address: IpAddr) -> u32 {
    if is_link_local(address) { claim.link } else { 0 }
}

/// By what is claimed, who has it; `None` when it is nobody's.
fn winners<'a, K: Hash + Eq>(
    claims: impl Iterator<Item = (u32, K, &'a Claim)>,
    has_it: impl Fn(u32, &K) -> bool,
) -> HashMap<K, Option<u32>> {
    let mut claimants: HashMap<K, Vec<(u32, bool)>> = HashMap::new();
    for (index, key, claim) in claims {
        claimants.entry(key).or_default().push((index, claim.vouched));
    }
    let only = |mut of: Vec<u32>| if of.len() == 1 { of.pop() } else { None };
    claimants
        .into_iter()
        .map(|(key, claimants)| {
            if let [(index, _)] = claimants[..] {
                return (key, Some(index));
            }
            let vouched: Vec<u32> = claimants.iter().filter(|(_, vouched)| *vouched).map(|(index, _)| *index).collect();
            let among = if vouched.is_empty() { claimants.iter().map(|(index, _)| *index).collect() } else { vouched };
            let winner =
                if among.len() == 1 { only(among) } else { only(among.into_iter().filter(|index| has_it(*index, &key)).collect()) };
            (key, winner)
        })
        .collect()
}

/// What the guards' sets hold for these bindings.
pub(super) fn elements(bindings: &BTreeMap<u32, Binding>, set: SetRef) -> BTreeMap<Entry, Comment> {
    let SetRef::Bound(_, form) = set else { return BTreeMap::new() };
    let mut elements = BTreeMap::new();
    for (index, binding) in bindings {
        let mut put = |entry| drop(elements.insert(entry, binding.comment.clone()));
        match (form, binding.mac) {
            (BoundForm::Guarded, _) => put(Entry::Interface(*index)),
            // Without a MAC address no frame can be the workload's.
            (
                BoundForm::Mac | BoundForm::Chaddr | BoundForm::Address(_) | BoundForm::Ip(_) | BoundForm::Quoted4 | BoundForm::Target6,
                None,
            ) => {}
            (BoundForm::Mac | BoundForm::Chaddr, Some(mac)) => put(Entry::Bound(Bound::Mac(*index, mac))),
            (BoundForm::Address(family), Some(mac)) => {
                of_family(binding, family).for_each(|address| put(Entry::Bound(Bound::Address(*index, mac, address))));
            }
            (BoundForm::Ip(family), Some(_)) => {
                of_family(binding, family).for_each(|address| put(Entry::Bound(Bound::Ip(*index, address))));
            }
            (BoundForm::Quoted4, Some(_)) => {
                of_family(binding, Family::V4).for_each(|address| put(Entry::Bound(Bound::Ip(*index, address))));
            }
            (BoundForm::Target6, Some(_)) => {
                of_family(binding, Family::V6).for_each(|address| put(Entry::Bound(Bound::Ip(*index, address))));
            }
        }
    }
    elements
}

/// The guards' base chains for these bindings: one for each interface that is managed.
pub(super) fn ports(desired: &Desired, bindings: &BTreeMap<u32, Binding>) -> Ports {
    let mut ports = Ports::new();
    for (index, binding) in bindings {
        let Some(interface) = desired.interfaces.get(index) else { continue };
        // For a moment there may be two of one name: their rules ask for the ifindex.
        let literals = ports.entry(interface.name.as_str().to_owned()).or_default().get_or_insert_default();
        if let Some(mac) = binding.mac {
            literals.extend(literal::chosen(*index, mac, &binding.addresses));
        }
    }
    ports
}

fn of_family(binding: &Binding, family: Family) -> impl Iterator<Item = IpAddr> {
    binding.addresses.iter().copied().filter(move |address| Family::of(*address) == family)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::names::Layer;
    use super::super::plan::plan;
    use super::*;
    use firebreak_policy::model::InterfaceName;

    fn mac(last: u8) -> MacAddress {
        MacAddress([2, 0, 0, 0, 0, last])
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// ifindex, last byte of its MAC address, last bytes of its addresses, whether vouched for.
    fn desired(interfaces: &[(u32, u8, &[u8], bool)]) -> Desired {
        let interface = |(index, last, addresses, vouched): &(u32, u8, &[u8], bool)| {
            let addresses: BTreeSet<IpAddr> = addresses.iter().copied().map(ip).collect();
            let claim = Claim { mac: Some(mac(*last)), addresses: addresses.clone(), vouched: *vouched, link: 1 };
            (*index, ManagedInterface { name: InterfaceName::from(format!("veth{index}")), workload: "w".into(), addresses, claim })
        };
        Desired { interfaces: interfaces.iter().map(interface).collect(), ..Desired::default() }
    }

    #[test]
    fn who_takes_a_neighbours_address_takes_nothing() {
        type Case<'a> = (&'a str, &'a [(u32, u8, &'a [u8], bool)], &'a [(u32, u8, &'a [u8], bool)], &'a [(u32, bool, &'a [u8])]);
        let table: &[Case<'_>] = &[
            ("nobody else claims it", &[], &[(7, 7, &[2], false)], &[(7, true, &[2])]),
            (
                "the first has it",
                &[(7, 7, &[2], false)],
                &[(7, 7, &[2], false), (8, 8, &[2, 3], false)],
                &[(7, true, &[2]), (8, true, &[3])],
            ),
            (
                "until it gives it up",
                &[(7, 7, &[2], false)],
                &[(7, 7, &[4], false), (8, 8, &[2], false)],
                &[(7, true, &[4]), (8, true, &[2])],
            ),
            ("both at once: nobody", &[], &[(7, 7, &[2], false), (8, 8, &[2], false)], &[(7, true, &[]), (8, true, &[])]),
            (
                "the vouched one, though later",
                &[(7, 7, &[2], false)],
                &[(7, 7, &[2], false), (8, 8, &[2], true)],
                &[(7, true, &[]), (8, true, &[2])],
            ),
            (
                "two vouched: the first",
                &[(8, 8, &[2], true)],
                &[(7, 7, &[2], true), (8, 8, &[2], true)],
                &[(7, true, &[]), (8, true, &[2])],
            ),
            (
                "a neighbour's MAC address",
                &[(7, 7, &[2], false)],
                &[(7, 7, &[2], false), (8, 7, &[3], false)],
                &[(7, true, &[2]), (8, false, &[3])],
            ),
        ];
        for (case, before, now, expected) in table {
            let mut actual = KernelState::empty(Layer::ALL);
            let first = plan(&actual, &desired(before));
            actual.apply(first);
            let bound = bindings(&actual, &desired(now));
            let bound: Vec<(u32, bool, Vec<IpAddr>)> =
                bound.into_iter().map(|(index, binding)| (index, binding.mac.is_some(), binding.addresses.into_iter().collect())).collect();
            let expected: Vec<_> = expected
                .iter()
                .map(|(index, has_mac, addresses)| (*index, *has_mac, addresses.iter().copied().map(ip).collect::<Vec<_>>()))
                .collect();
            assert_eq!(bound, expected, "{case}");
        }
    }
}
