//! The pure middle: what the controller wants and what runs here become what the kernel is to hold.
//!
//! What holds:
//! 1. Only workloads that are alive here and have a segment may talk; everybody else behind a workload interface is denied.
//! 2. An address that its workload has lost is nobody's: it leaves the local sets and every peer group at once, whatever the
//!    controller still says, so that the next owner of the address inherits nothing.
//! 3. An address that a workload has gained is isolated like its others before the controller knows of it.
//! 4. A workload without any address may not talk: nothing could be judged by it. The same for every interface that is said to be a
//!    workload's, whatever keeps the node from enforcing for it: what no name pattern denies is guarded and bound to nothing.
//! 5. A guard binds an interface to nothing that its workload alone says ([`claim`]).
//! 6. Missing referents allow nothing: a missing segment denies its workload, a missing group is empty, and a segment of which a rule of a tier
//!    names a missing group is a missing segment: that rule may be one that denies.

use crate::dataplane::{Claim, Delta, Desired, MacAddress, ManagedInterface};
use crate::local::{LocalInterface, LocalWorkload, LocalWorkloads};
use firebreak_policy::kernel_sets::{GroupSet, KernelSets};
use firebreak_policy::model::{InterfaceName, Protocol, WorkloadId};
use firebreak_policy::node_state::{CompiledPeers, Group, GroupId, LocalEndpoint, Member, NodeState, Segment, SegmentId};
use firebreak_policy::shared_map::Difference;
use firebreak_policy::{Flattened, Limits, Members, SharedMap, Step};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What the kernel is to hold for `state`, given what runs here. `flatten` is `firebreak_policy::flatten`, handed in so that
/// the rules above can be tested by themselves.
pub fn desired(state: &NodeState, local: &LocalWorkloads, flatten: impl FnOnce(&NodeState) -> KernelSets) -> Desired {
    let alive = restrict(state, local);
    whole(&alive, state, local, flatten(&alive))
}

fn whole(alive: &NodeState, state: &NodeState, local: &LocalWorkloads, sets: KernelSets) -> Desired {
    Desired { interfaces: interfaces(alive, &state.endpoints, local), exempt: exempt(local), sets }
}

/// Goes from state to state. What it says is a function of the state; it only looks at less where little differs.
#[derive(Debug, Default)]
pub struct Core {
    limits: Limits,
    last: Option<Last>,
}

/// What was said last.
#[derive(Debug)]
struct Last {
    state: NodeState,
    local: Arc<LocalWorkloads>,
    vacated: Vec<IpAddr>,
    flattened: Flattened,
}

/// What the kernel is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Hold this.
    Whole(Desired),
    /// Hold this beside what was said last: members of groups have come and gone, and nothing else.
    Members(Delta),
}

impl Core {
    /// With other limits than the default.
    pub fn new(limits: Limits) -> Self {
        Self { limits, last: None }
    }

    /// What it takes to enforce a state after the one before.
    pub fn next(&mut self, state: &NodeState, local: &Arc<LocalWorkloads>) -> Change {
        let goes_on = |last: &&mut Last| {
            // A group that goes or comes while a rule of a tier names it is no matter of members: rule 6.
            let known = |state: &NodeState| state.segments.values().all(|segment| knows_whom_its_tiers_name(segment, state));
            Arc::ptr_eq(&last.local, local) && last.state.differs_only_in_groups(state) && known(&last.state) && known(state)
        };
        if let Some(last) = self.last.as_mut().filter(goes_on) {
            let alive = last.alive_with_groups_of(state);
            let step = last.flattened.next(alive);
            last.state.groups = state.groups.clone();
            return match step {
                Step::Delta(delta) => Change::Members(delta),
                Step::Whole(sets) => Change::Whole(whole(last.flattened.state(), state, local, sets)),
            };
        }
        let (alive, vacated) = restrict_and_vacate(state, local);
        let (flattened, sets) = Flattened::new(alive, self.limits);
        let desired = whole(flattened.state(), state, local, sets);
        self.last = Some(Last { state: state.clone(), local: local.clone(), vacated, flattened });
        Change::Whole(desired)
    }

    /// The groups that a set of what was said last is of.
    pub(crate) fn groups_of(&self, set: &GroupSet) -> BTreeSet<GroupId> {
        self.last.as_ref().map(|last| last.flattened.groups_of(set)).unwrap_or_default()
    }

    /// What was said last did not come about: the next change is a whole one.
    pub fn forget(&mut self) {
        self.last = None;
    }
}

impl Last {
    fn alive_with_groups_of(&self, state: &NodeState) -> NodeState {
        let mut alive = self.flattened.state().clone();
        for Difference { key: id, before: _, now } in self.state.groups.differences(&state.groups) {
            // Groups that no living workload's segment names are not there.
            if alive.groups.contains_key(id) {
                let group = now.map_or_else(|| missing(id), |group| without(group, &self.vacated));
                alive.groups.insert_shared(id.clone(), group);
            }
        }
        alive
    }
}

/// The part of `state` that is about workloads alive here, with the addresses that they really hold.
pub fn restrict(state: &NodeState, local: &LocalWorkloads) -> NodeState {
    restrict_and_vacate(state, local).0
}

/// As [`restrict`], with the addresses that nobody holds of those who should.
fn restrict_and_vacate(state: &NodeState, local: &LocalWorkloads) -> (NodeState, Vec<IpAddr>) {
    let listed = claims(state);
    let rightful = rightful(&listed, local);
    let mut endpoints = SharedMap::new();
    for (id, endpoint) in &state.endpoints {
        let Some(workload) = alive(local, id) else { continue };
        if !state.segments.get(&endpoint.segment).is_some_and(|segment| knows_whom_its_tiers_name(segment, state)) {
            continue;
        }
        let addresses = effective_addresses(endpoint, workload, &rightful, local);
        endpoints.insert(id.clone(), LocalEndpoint { addresses: addresses.into(), ..endpoint.clone() });
    }
    // An address that the controller gave to an endpoint of this node, and that no endpoint holds of those it gave it to.
    let vacated: Vec<IpAddr> = listed.keys().copied().filter(|address| !rightful.contains(address)).collect();
    let named: BTreeSet<_> = endpoints.values().map(|endpoint| &endpoint.segment).collect();
    let segments: SharedMap<_, _> =
        state.segments.iter_shared().filter(|(id, _)| named.contains(id)).map(|(id, segment)| (id.clone(), segment.clone())).collect();
    let groups = groups_of(state, &segments, &vacated);
    let addresses = local.node_addresses.union(&state.addresses).copied().collect();
    (NodeState { addresses, groups, segments, endpoints }, vacated)
}

fn knows_whom_its_tiers_name(segment: &Segment, state: &NodeState) -> bool {
    segment.rules.named_by_tiers().all(|id| state.groups.contains_key(id))
}

fn alive<'a>(local: &'a LocalWorkloads, id: &WorkloadId) -> Option<&'a LocalWorkload> {
    let workload = local.workloads.get(&id.container)?;
    (workload.id == *id && workload.problem.is_none() && !workload.addresses().is_empty()).then_some(workload)
}

/// By address, the endpoints that the controller gives it to.
fn claims(state: &NodeState) -> HashMap<IpAddr, Vec<&WorkloadId>> {
    let mut claims: HashMap<IpAddr, Vec<&WorkloadId>> = HashMap::new();
    for (id, endpoint) in &state.endpoints {
        for address in &endpoint.addresses {
            claims.entry(*address).or_default().push(id);
        }
    }
    claims
}

/// The addresses that are held by somebody whom the controller gives them to.
fn rightful(claims: &HashMap<IpAddr, Vec<&WorkloadId>>, local: &LocalWorkloads) -> HashSet<IpAddr> {
    let holds = |id: &&WorkloadId, address: &IpAddr| alive(local, id).is_some_and(|workload| workload.addresses().contains(address));
    claims.iter().filter(|(address, ids)| ids.iter().any(|id| holds(id, address))).map(|(address, _)| *address).collect()
}

/// What the workload holds, but for the node's own addresses, and but for addresses of which another holder is the rightful
/// one: who takes an address of a neighbour must not be able to change what the neighbour may do.
fn effective_addresses(
    endpoint: &LocalEndpoint,
    workload: &LocalWorkload,
    rightful: &HashSet<IpAddr>,
    local: &LocalWorkloads,
) -> BTreeSet<IpAddr> {
    let mut addresses = workload.addresses();
    addresses
        .retain(|address| !local.node_addresses.contains(address) && (endpoint.addresses.contains(address) || !rightful.contains(address)));
    addresses
}

/// The groups that the segments name, without members at vacated addresses.
fn groups_of(state: &NodeState, segments: &SharedMap<SegmentId, Segment>, vacated: &[IpAddr]) -> SharedMap<GroupId, Group> {
    let mut groups = BTreeMap::new();
    for id in segments.values().flat_map(named_groups) {
        if groups.contains_key(id) {
            continue;
        }
        let group = match state.groups.get_shared(id) {
            Some(group) => without(group, vacated),
            None => missing(id),
        };
        groups.insert(id.clone(), group);
    }
    groups.into_iter().collect()
}

fn missing(id: &GroupId) -> Arc<Group> {
    Arc::new(Group { id: id.clone(), title: "missing".to_owned(), members: Members::default() })
}

fn named_groups(segment: &Segment) -> impl Iterator<Item = &GroupId> {
    let books = [Some(&segment.rules), segment.audit.as_ref()];
    books.into_iter().flatten().flat_map(|rules| rules.peers()).flat_map(|peers| match peers {
        CompiledPeers::Any => [].as_slice(),
        CompiledPeers::Groups(groups) => groups.as_slice(),
    })
}

/// The group without its members at these addresses; blocks stay, they are about whoever is there.
fn without(group: &Arc<Group>, vacated: &[IpAddr]) -> Arc<Group> {
    let first = |address| Member::Service(address, Protocol(0), 0);
    let last = |address| Member::Service(address, Protocol(u8::MAX), u16::MAX);
    let gone: Vec<Member> = vacated
        .iter()
        .flat_map(|address| {
            let whole = group.members.get(&Member::Address(*address)).copied();
            whole.into_iter().chain(group.members.range(first(*address)..=last(*address)).copied())
        })
        .collect();
    if gone.is_empty() {
        return group.clone();
    }
    let mut group = Group::clone(group);
    for member in gone {
        group.members.remove(&member);
    }
    Arc::new(group)
}

fn interfaces(
    alive: &NodeState,
    acknowledged: &SharedMap<WorkloadId, LocalEndpoint>,
    local: &LocalWorkloads,
) -> BTreeMap<u32, ManagedInterface> {
    let refused = local.declared.iter().map(|(index, (name, title))| (*index, bound_to_nothing(name, title)));
    let enforced = alive.endpoints.keys().filter_map(|id| Some((local.workloads.get(&id.container)?, acknowledged.get(id)?))).flat_map(
        |(workload, endpoint)| {
            let title: Arc<str> = workload.title().into();
            workload.interfaces.iter().map(move |(index, interface)| {
                let managed = ManagedInterface {
                    name: interface.name.clone(),
                    workload: title.clone(),
                    // The node's own addresses stay the node's, whoever claims them.
                    addresses: interface
                        .addresses
                        .iter()
                        .map(|address| address.address)
                        .filter(|address| !local.node_addresses.contains(address))
                        .collect(),
                    claim: claim(interface, endpoint, local),
                };
                (*index, managed)
            })
        },
    );
    // What is enforced takes the place of what is refused.
    refused.chain(enforced).collect()
}

fn bound_to_nothing(name: &InterfaceName, title: &str) -> ManagedInterface {
    ManagedInterface { name: name.clone(), workload: title.into(), addresses: BTreeSet::new(), claim: Claim::default() }
}

/// What the guard of an interface may bind it to. Whoever has root in a container sets its addresses and its MAC address as he
/// likes, so what is set inside is never enough:
///
/// - what is set, as far as the controller has it as this workload's: it has then looked whether anybody else has it, and rules that deny by
///   label know it;
/// - of that, where an engine says what it gave to the workload, only what it gave;
/// - of link-local addresses, which are nobody's peer, those that are set;
/// - never the node's own.
///
/// Who has it of several is decided later, with what is bound already (`dataplane::bind`).
fn claim(interface: &LocalInterface, acknowledged: &LocalEndpoint, local: &LocalWorkloads) -> Claim {
    let may_bind = |address: &IpAddr| {
        let nodes = local.node_addresses.contains(address) || local.own_addresses.contains(address);
        let told = interface.vouched.as_ref().is_none_or(|vouched| vouched.addresses.contains(address));
        let known = told && acknowledged.addresses.contains(address);
        !nodes && (known || matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()))
    };
    let may_have = |mac: &MacAddress| {
        let told = interface.vouched.as_ref().is_none_or(|vouched| vouched.macs.is_empty() || vouched.macs.contains(mac));
        mac.is_station() && told && !local.node_macs.contains(mac)
    };
    Claim {
        mac: interface.mac.filter(may_have),
        addresses: interface.addresses.iter().map(|address| address.address).filter(may_bind).collect(),
        vouched: interface.vouched.is_some(),
        link: interface.link,
    }
}

fn exempt(local: &LocalWorkloads) -> BTreeMap<u32, InterfaceName> {
    local.exempt.iter().map(|(index, interface)| (*index, interface.name.clone())).collect()
}

#[cfg(test)]
#[path = "core_tests.rs"]
pub(crate) mod tests;
