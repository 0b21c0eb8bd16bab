//! From what the kernel holds and what it is to hold to the change between them. Pure: the same two states give the same plan,
//! in one order, whatever happened before.

use super::bind;
use super::desired::Desired;
use super::element::{Bound, Entry, tidy};
use super::literal::Literal;
use super::names::{BoundForm, Layer, SetRef};
use super::shared::{self, HeldShared, Led, Object, answers_of, with_chains_of_answers};
use super::{Delta, element::Comments};
use firebreak_policy::Members;
use firebreak_policy::kernel_sets::{Chain, Comment, Element, GroupSet, SetId, SharedRule};
use firebreak_policy::model::Family;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What is said of a bridge among the known interfaces.
const BRIDGE: &str = "bridge of workloads";

/// What the kernel holds, as far as we write it. Kept in memory, so that a commit reads nothing back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KernelState {
    /// Interfaces that may talk, by table: a table that is not there cannot be written.
    pub(super) known: BTreeMap<Layer, BTreeMap<u32, Comment>>,
    /// Addresses of local workloads.
    pub(super) workloads: BTreeMap<IpAddr, Comment>,
    /// Policy. No set in here is empty.
    pub(super) policy: BTreeMap<SetId, BTreeMap<Element, Comment>>,
    /// The guards' sets, of the tables that are there.
    pub(super) bound: BTreeMap<SetRef, BTreeMap<Entry, Comment>>,
    /// The guards' base chains, by the name of their interface; `None` without a netdev table.
    pub(super) ports: Option<Ports>,
    /// Policy in the shared form.
    pub(super) shared: HeldShared,
}

impl KernelState {
    /// Empty tables of these layers.
    pub(super) fn empty(layers: impl IntoIterator<Item = Layer>) -> Self {
        let mut state = Self::default();
        for layer in layers {
            if Layer::KNOWING.contains(&layer) {
                state.known.insert(layer, BTreeMap::new());
            }
            if layer == Layer::Netdev {
                state.ports = Some(Ports::new());
            }
            state.bound.extend(BoundForm::of(layer).iter().map(|form| (SetRef::Bound(layer, *form), BTreeMap::new())));
        }
        state
    }

    /// Whether a guard binds an interface to this.
    pub(super) fn binds(&self, _index: u32, bound: Bound) -> bool {
        let set = SetRef::Bound(Layer::Netdev, BoundForm::Mac);
        self.bound.get(&set).is_some_and(|elements| elements.contains_key(&Entry::Bound(bound)))
    }

    /// Whether a guard binds an interface to an IP address, with whatever MAC address.
    pub(super) fn holds(&self, index: u32, address: IpAddr) -> bool {
        let form = match Family::of(address) {
            Family::V4 => BoundForm::Quoted4,
            Family::V6 => BoundForm::Target6,
        };
        let elements = self.bound.get(&SetRef::Bound(Layer::Netdev, form));
        elements.is_some_and(|elements| elements.contains_key(&Entry::Bound(Bound::Ip(index, address))))
    }

    /// The bridges of workloads that may talk.
    pub(super) fn bridges(&self) -> impl Iterator<Item = u32> + '_ {
        let known = self.known.get(&Layer::Inet).into_iter().flatten();
        known.filter(|(_, comment)| &***comment == BRIDGE).map(|(index, _)| *index)
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> usize {
        let known: usize = self.known.values().map(BTreeMap::len).sum();
        let policy: usize = self.policy.values().map(BTreeMap::len).sum();
        let bound: usize = self.bound.values().map(BTreeMap::len).sum();
        known + self.workloads.len() + policy + bound + self.shared.len()
    }

    /// Every set that is written.
    pub(super) fn sets(&self) -> Vec<SetRef> {
        SetRef::all().into_iter().chain(self.shared.groups.keys().map(|set| SetRef::Group(*set))).collect()
    }

    /// Takes up an element; of one that does not belong into the set, nothing.
    pub(super) fn insert(&mut self, set: SetRef, entry: Entry, comment: Comment) {
        match (set, entry) {
            (SetRef::KnownInterfaces(layer), Entry::Interface(index)) => {
                self.known.entry(layer).or_default().insert(index, comment);
            }
            (SetRef::Workloads(_), Entry::Policy(Element::Local(address))) => {
                self.workloads.insert(address, comment);
            }
            (SetRef::Policy(id), Entry::Policy(element)) => {
                self.policy.entry(id).or_default().insert(element, comment);
            }
            (SetRef::Bound(..), entry) => drop(self.bound.entry(set).or_default().insert(entry, comment)),
            (set @ (SetRef::Group(_) | SetRef::Segments(..)), entry) => self.shared.insert(set, entry, comment),
            (SetRef::KnownInterfaces(_) | SetRef::Workloads(_) | SetRef::Policy(_), _) => {}
        }
    }

    /// Whether a set holds this element with this comment.
    pub(super) fn has(&self, set: SetRef, entry: &Entry, comment: &str) -> bool {
        let held = match (set, entry) {
            (SetRef::KnownInterfaces(layer), Entry::Interface(index)) => self.known.get(&layer).and_then(|known| known.get(index)),
            (SetRef::Workloads(_), Entry::Policy(Element::Local(address))) => self.workloads.get(address),
            (SetRef::Policy(id), Entry::Policy(element)) => self.policy.get(&id).and_then(|elements| elements.get(element)),
            (SetRef::Bound(..), entry) => self.bound.get(&set).and_then(|elements| elements.get(entry)),
            // Elements of groups have no comment.
            (SetRef::Group(set), Entry::Group(key)) => {
                return self.shared.groups.get(&set).is_some_and(|group| group.members.contains(&key.member()));
            }
            (SetRef::Segments(asked, direction, _), Entry::Segment(local, chain)) => {
                let held = self.shared.led(asked).get(&(direction, *local));
                held.filter(|(held, _)| held == chain).map(|(_, comment)| comment)
            }
            (SetRef::KnownInterfaces(_) | SetRef::Workloads(_) | SetRef::Policy(_) | SetRef::Group(_) | SetRef::Segments(..), _) => None,
        };
        held.is_some_and(|held| *tidy(held) == *comment)
    }

    /// How many elements a set holds.
    pub(super) fn count(&self, set: SetRef) -> usize {
        match set {
            SetRef::KnownInterfaces(layer) => self.known.get(&layer).map_or(0, BTreeMap::len),
            SetRef::Workloads(family) => self.workloads.keys().filter(|address| Family::of(**address) == family).count(),
            SetRef::Policy(id) => self.policy.get(&id).map_or(0, BTreeMap::len),
            SetRef::Bound(..) => self.bound.get(&set).map_or(0, BTreeMap::len),
            SetRef::Group(set) => self.shared.groups.get(&set).map_or(0, |group| group.elements),
            SetRef::Segments(asked, direction, family) => {
                self.shared.led(asked).keys().filter(|(of, local)| *of == direction && Family::of(*local) == family).count()
            }
        }
    }

    fn remove(&mut self, set: SetRef, entry: &Entry) {
        match (set, entry) {
            (SetRef::KnownInterfaces(layer), Entry::Interface(index)) => {
                if let Some(known) = self.known.get_mut(&layer) {
                    known.remove(index);
                }
            }
            (SetRef::Workloads(_), Entry::Policy(Element::Local(address))) => {
                self.workloads.remove(address);
            }
            (SetRef::Policy(id), Entry::Policy(element)) => {
                if let Some(elements) = self.policy.get_mut(&id) {
                    elements.remove(element);
                    if elements.is_empty() {
                        self.policy.remove(&id);
                    }
                }
            }
            (SetRef::Bound(..), entry) => {
                if let Some(elements) = self.bound.get_mut(&set) {
                    elements.remove(entry);
                }
            }
            (SetRef::Segments(asked, direction, _), Entry::Segment(local, _)) => self.shared.remove_segment(asked, direction, *local),
            (SetRef::KnownInterfaces(_) | SetRef::Workloads(_) | SetRef::Policy(_) | SetRef::Group(_) | SetRef::Segments(..), _) => {}
        }
    }

    /// What the kernel holds after a plan was committed.
    pub(super) fn apply(&mut self, mut plan: Plan) {
        self.shared.apply(&mut plan);
        for change in plan.changes {
            if let SetRef::Group(set) = change.set {
                self.shared.count(set, change.put.len(), change.remove.len());
                continue;
            }
            for entry in &change.remove {
                self.remove(change.set, entry);
            }
            for (entry, comment) in change.put {
                self.insert(change.set, entry, comment);
            }
        }
        if let Some(ports) = &mut self.ports {
            ports.retain(|port, _| !plan.ports.remove.contains(port));
            let changed = [&mut plan.ports.put, &mut plan.ports.rewrite].into_iter().flat_map(std::mem::take);
            ports.extend(changed.map(|Port { device, literals }| (device, Some(literals))));
        }
    }
}

/// One transaction's worth of change: by set in order, in each set the removals first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// What the changes refer to.
    pub(super) before: Vec<Object>,
    /// Only sets that change.
    pub(super) changes: Vec<SetChange>,
    /// Guards' base chains that come and go.
    pub(super) ports: PortChange,
    /// What nothing refers to any more after the changes.
    pub(super) after: Vec<Object>,
    /// Whose members the sets of groups hold then.
    pub(super) members: Vec<(GroupSet, Members)>,
    /// Rules of chains that are there.
    pub(super) rules: Vec<(Chain, Vec<SharedRule>)>,
}

/// By the name of an interface, the literals of its guard's base chain; `None` when its rules are not ours.
pub(super) type Ports = BTreeMap<String, Option<BTreeSet<Literal>>>;

/// Base chains of guards, by the name of their interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PortChange {
    /// What goes, in order.
    pub(super) remove: Vec<String>,
    /// What comes, in order.
    pub(super) put: Vec<Port>,
    /// What stays and gets other rules, in order.
    pub(super) rewrite: Vec<Port>,
}

impl PortChange {
    /// Has the rules of the chains written again that it leaves as they are: for a transaction that empties all of them.
    pub(super) fn keep<'a>(&mut self, held: impl Iterator<Item = (&'a String, &'a Option<BTreeSet<Literal>>)>) {
        let changed: BTreeSet<String> =
            self.remove.iter().chain([&self.put, &self.rewrite].into_iter().flatten().map(|port| &port.device)).cloned().collect();
        let readable = held.filter_map(|(device, literals)| Some(Port { device: device.clone(), literals: literals.clone()? }));
        self.rewrite.extend(readable.filter(|port| !changed.contains(&port.device)));
    }

    fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.put.is_empty() && self.rewrite.is_empty()
    }
}

/// The base chain of an interface, and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) device: String,
    pub(super) literals: BTreeSet<Literal>,
}

/// What changes in one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SetChange {
    /// Which set.
    pub(super) set: SetRef,
    /// What goes, in key order. An element whose comment changes goes and comes: the kernel does not rewrite user data.
    pub(super) remove: Vec<Entry>,
    /// What comes, in key order.
    pub(super) put: Vec<(Entry, Comment)>,
}

impl SetChange {
    /// Whether something comes or goes.
    pub(super) fn is_something(&self) -> bool {
        !(self.remove.is_empty() && self.put.is_empty())
    }
}

impl Plan {
    /// The interfaces that are not known to a table any more.
    pub(super) fn interfaces_that_go(&self, layer: Layer) -> impl Iterator<Item = u32> + '_ {
        let of_layer = self.changes.iter().filter(move |change| change.set == SetRef::KnownInterfaces(layer));
        // One whose comment changes goes and comes.
        of_layer.flat_map(|change| &change.remove).filter_map(|entry| match entry {
            Entry::Interface(index) => Some(*index),
            Entry::Policy(_) | Entry::Bound(_) | Entry::Group(_) | Entry::Segment(..) => None,
        })
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        let objects = !(self.before.is_empty() && self.after.is_empty());
        !objects && self.changes.is_empty() && self.ports.is_empty()
    }

    /// Takes back elements that come.
    pub(super) fn undone(&self) -> Self {
        let back = |change: &SetChange| SetChange {
            set: change.set,
            remove: change.put.iter().map(|(entry, _)| entry.clone()).collect(),
            put: Vec::new(),
        };
        Self { changes: self.changes.iter().map(back).collect(), ..Self::default() }
    }

    /// Whether chains of segments come, go, are led to or left.
    pub(super) fn concerns_chains(&self) -> bool {
        let objects = [&self.before, &self.after].into_iter().any(|objects| !objects.is_empty());
        objects || !self.rules.is_empty() || self.changes.iter().any(|change| matches!(change.set, SetRef::Segments(..)))
    }

    /// How many elements come and go.
    pub(super) fn counts(&self) -> (usize, usize) {
        self.changes.iter().fold((0, 0), |(put, removed), change| (put + change.put.len(), removed + change.remove.len()))
    }

    pub(super) fn push(&mut self, set: SetRef, remove: Vec<Entry>, put: Vec<(Entry, Comment)>) {
        if !(remove.is_empty() && put.is_empty()) {
            self.changes.push(SetChange { set, remove, put });
        }
    }
}

/// What has to change for the kernel to hold what is desired.
#[cfg(test)]
pub(super) fn plan(actual: &KernelState, desired: &Desired) -> Plan {
    plan_with(actual, desired, false)
}

/// The same; `asks_answers` while TCP may be picked up in the middle, when segments have chains for what may be an answer too.
pub(super) fn plan_with(actual: &KernelState, desired: &Desired, asks_answers: bool) -> Plan {
    let bindings = bind::bindings(actual, desired);
    let mut plan = plan_to(actual, &desired_interfaces(desired), &desired_workloads(desired), &desired.sets.sets);
    plan_guards(&mut plan, actual, |set| bind::elements(&bindings, set), &bind::ports(desired, &bindings));
    let shared = &desired.sets.shared;
    if asks_answers {
        shared::plan(&mut plan, &actual.shared, &with_chains_of_answers(shared), &answers_of(&shared.segments), false);
    } else {
        shared::plan(&mut plan, &actual.shared, shared, &Led::new(), false);
    }
    plan
}

fn plan_guards(plan: &mut Plan, actual: &KernelState, desired: impl Fn(SetRef) -> BTreeMap<Entry, Comment>, desired_ports: &Ports) {
    for (set, actual) in &actual.bound {
        let (remove, put) = difference(actual, &desired(*set), std::convert::identity);
        plan.push(*set, remove, put);
    }
    if let Some(actual) = &actual.ports {
        plan.ports.remove = actual.keys().filter(|device| !desired_ports.contains_key(*device)).cloned().collect();
        for (device, literals) in desired_ports {
            let port = || Port { device: device.clone(), literals: literals.clone().unwrap_or_default() };
            match actual.get(device) {
                None => plan.ports.put.push(port()),
                Some(held) if held != literals => plan.ports.rewrite.push(port()),
                Some(_) => {}
            }
        }
    }
}

/// What has to change for the kernel to hold again what was committed. The interfaces are the same in each table.
pub(super) fn plan_restore(actual: &KernelState, committed: &KernelState) -> Plan {
    let nothing = BTreeMap::new();
    let mut plan = plan_to(actual, committed.known.values().next().unwrap_or(&nothing), &committed.workloads, &committed.policy);
    let bound = |set| committed.bound.get(&set).cloned().unwrap_or_default();
    plan_guards(&mut plan, actual, bound, committed.ports.as_ref().unwrap_or(&Ports::new()));
    shared::plan(&mut plan, &actual.shared, &committed.shared.desired(), &committed.shared.answers, true);
    plan
}

/// What has to change in one set for it to hold again what was committed.
pub(super) fn restore_of(set: SetRef, actual: &KernelState, committed: &KernelState) -> SetChange {
    let nothing = BTreeMap::new();
    let no_bound = BTreeMap::new();
    let no_element = BTreeMap::new();
    let (remove, put) = match set {
        SetRef::KnownInterfaces(layer) => {
            let actual = actual.known.get(&layer).unwrap_or(&nothing);
            difference(actual, committed.known.get(&layer).unwrap_or(&nothing), Entry::Interface)
        }
        SetRef::Workloads(family) => {
            let of_family = |state: &KernelState| -> BTreeMap<IpAddr, Comment> {
                let one = |(address, comment): (&IpAddr, &Comment)| (Family::of(*address) == family).then(|| (*address, comment.clone()));
                state.workloads.iter().filter_map(one).collect()
            };
            difference(&of_family(actual), &of_family(committed), |address| Entry::Policy(Element::Local(address)))
        }
        SetRef::Policy(id) => {
            let actual = actual.policy.get(&id).unwrap_or(&no_element);
            difference(actual, committed.policy.get(&id).unwrap_or(&no_element), Entry::Policy)
        }
        SetRef::Bound(..) => {
            let actual = actual.bound.get(&set).unwrap_or(&no_bound);
            difference(actual, committed.bound.get(&set).unwrap_or(&no_bound), std::convert::identity)
        }
        SetRef::Group(_) | SetRef::Segments(..) => {
            let mut plan = Plan::default();
            shared::plan(&mut plan, &actual.shared, &committed.shared.desired(), &committed.shared.answers, true);
            let change = plan.changes.into_iter().find(|change| change.set == set);
            change.map_or_else(Default::default, |change| (change.remove, change.put))
        }
    };
    SetChange { set, remove, put }
}

fn plan_to(
    actual: &KernelState,
    interfaces: &BTreeMap<u32, Comment>,
    workloads: &BTreeMap<IpAddr, Comment>,
    policy: &BTreeMap<SetId, BTreeMap<Element, Comment>>,
) -> Plan {
    let mut plan = Plan::default();
    for (layer, actual) in &actual.known {
        let (remove, put) = difference(actual, interfaces, Entry::Interface);
        plan.push(SetRef::KnownInterfaces(*layer), remove, put);
    }

    let (remove, put) = difference(&actual.workloads, workloads, |address| Entry::Policy(Element::Local(address)));
    for family in super::names::FAMILIES {
        let of_family = |entry: &Entry| matches!(entry, Entry::Policy(Element::Local(address)) if Family::of(*address) == family);
        let remove = remove.iter().filter(|entry| of_family(entry)).cloned().collect();
        let put = put.iter().filter(|(entry, _)| of_family(entry)).cloned().collect();
        plan.push(SetRef::Workloads(family), remove, put);
    }

    let nothing = BTreeMap::new();
    let mut ids: Vec<SetId> = actual.policy.keys().chain(policy.keys()).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let actual = actual.policy.get(&id).unwrap_or(&nothing);
        let (remove, put) = difference(actual, policy.get(&id).unwrap_or(&nothing), Entry::Policy);
        plan.push(SetRef::Policy(id), remove, put);
    }
    plan
}

/// The plan of a known change: looks at the elements that it names and at no others.
pub(super) fn plan_delta(actual: &KernelState, delta: &Delta) -> Plan {
    // An element that is named twice is decided by its last mention; a put after a removal is a put.
    let mut wanted: BTreeMap<(SetId, &Element), Option<&Comment>> = BTreeMap::new();
    for (id, element) in &delta.remove {
        wanted.insert((*id, element), None);
    }
    for (id, element, comment) in &delta.put {
        wanted.insert((*id, element), Some(comment));
    }
    let mut comments = Comments::default();
    let mut plan = Plan::default();
    let mut open: Option<SetChange> = None;
    for ((id, element), desired) in wanted {
        let present = actual.policy.get(&id).and_then(|elements| elements.get(element));
        let (remove, put) = match (present, desired) {
            (None, None) => (false, None),
            (Some(_), None) => (true, None),
            (None, Some(desired)) => (false, Some(desired)),
            (Some(present), Some(desired)) if **present == *tidy(desired) => (false, None),
            (Some(_), Some(desired)) => (true, Some(desired)),
        };
        let set = SetRef::Policy(id);
        if open.as_ref().is_none_or(|change| change.set != set) {
            if let Some(SetChange { set, remove, put }) = open.take() {
                plan.push(set, remove, put);
            }
            open = Some(SetChange { set, remove: Vec::new(), put: Vec::new() });
        }
        if let Some(change) = &mut open {
            if remove {
                change.remove.push(Entry::Policy(element.clone()));
            }
            if let Some(comment) = put {
                change.put.push((Entry::Policy(element.clone()), keep_tidy(comment, &mut comments)));
            }
        }
    }
    if let Some(SetChange { set, remove, put }) = open {
        plan.push(set, remove, put);
    }
    for (set, members) in &delta.groups {
        if let Some(held) = actual.shared.groups.get(set) {
            shared::plan_group(&mut plan, *set, &held.members, members);
        }
    }
    plan
}

fn desired_interfaces(desired: &Desired) -> BTreeMap<u32, Comment> {
    let exempt: Comment = "exempt: judged by nobody".into();
    let mut known: BTreeMap<u32, Comment> = desired.exempt.keys().map(|index| (*index, exempt.clone())).collect();
    // In `inet` a bridged packet comes from its bridge and goes to it: one lookup for it too. What matches a pattern and is no veth is exempt anyway.
    let bridge: Comment = BRIDGE.into();
    let links = desired.interfaces.values().map(|interface| interface.claim.link).filter(|link| *link != 0);
    known.extend(links.map(|link| (link, bridge.clone())));
    known.extend(desired.interfaces.iter().map(|(index, interface)| (*index, interface.workload.clone())));
    known
}

fn desired_workloads(desired: &Desired) -> BTreeMap<IpAddr, Comment> {
    let mut workloads = BTreeMap::new();
    for interface in desired.interfaces.values() {
        for address in &interface.addresses {
            // Two workloads that claim one address: the first is as good as the other, both are local.
            workloads.entry(*address).or_insert_with(|| interface.workload.clone());
        }
    }
    workloads
}

/// One walk over both: costs their sum, allocates only what differs.
fn difference<K: Ord + Clone>(
    actual: &BTreeMap<K, Comment>,
    desired: &BTreeMap<K, Comment>,
    entry: impl Fn(K) -> Entry,
) -> (Vec<Entry>, Vec<(Entry, Comment)>) {
    let (mut remove, mut put) = (Vec::new(), Vec::new());
    let mut comments = Comments::default();
    let mut left = actual.iter().peekable();
    let mut right = desired.iter().peekable();
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return (remove, put),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((actual, _)), Some((desired, _))) => actual.cmp(desired),
        };
        let gone = if order.is_le() { left.next() } else { None };
        let come = if order.is_ge() { right.next() } else { None };
        if let (Some((_, actual)), Some((_, desired))) = (gone, come)
            && (std::sync::Arc::ptr_eq(actual, desired) || **actual == *tidy(desired))
        {
            continue;
        }
        if let Some((key, _)) = gone {
            remove.push(entry(key.clone()));
        }
        if let Some((key, comment)) = come {
            put.push((entry(key.clone()), keep_tidy(comment, &mut comments)));
        }
    }
}

/// The comment itself where it is tidy already, so that memory is shared with whoever made it.
fn keep_tidy(comment: &Comment, comments: &mut Comments) -> Comment {
    match tidy(comment) {
        std::borrow::Cow::Borrowed(_) => comment.clone(),
        std::borrow::Cow::Owned(tidied) => comments.share(&tidied),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Claim, ManagedInterface};
    use super::*;
    use firebreak_policy::kernel_sets::{KernelSets, Shape};
    use firebreak_policy::model::{Direction, InterfaceName};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn id(shape: Shape) -> SetId {
        SetId { direction: Direction::Ingress, family: Family::V4, shape }
    }

    fn local(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
    }

    fn desired(isolated: &[(u8, &str)], interfaces: &[(u32, &str, &[u8])], exempt: &[u32]) -> Desired {
        let elements: BTreeMap<Element, Comment> =
            isolated.iter().map(|(last, comment)| (Element::Local(local(*last)), Comment::from(*comment))).collect();
        Desired {
            sets: KernelSets {
                sets: if elements.is_empty() { BTreeMap::new() } else { [(id(Shape::Isolated), elements)].into() },
                ..KernelSets::default()
            },
            interfaces: interfaces
                .iter()
                .map(|(index, workload, addresses)| {
                    let addresses = addresses.iter().map(|last| local(*last)).collect();
                    (
                        *index,
                        ManagedInterface {
                            name: InterfaceName::new("veth0"),
                            workload: (*workload).into(),
                            addresses,
                            claim: Claim::default(),
                        },
                    )
                })
                .collect(),
            exempt: exempt.iter().map(|index| (*index, InterfaceName::new("uplink"))).collect(),
        }
    }

    #[test]
    fn a_plan_names_only_what_changed_and_removes_first() {
        let mut actual = KernelState::empty([Layer::Inet, Layer::Arp]);
        let first = plan(&actual, &desired(&[(1, "a"), (2, "b")], &[(7, "shop/web", &[1])], &[3]));
        assert_eq!(first.counts(), (2 + 1 + 4, 0));
        actual.apply(first);

        let same = desired(&[(1, "a"), (2, "b")], &[(7, "shop/web", &[1])], &[3]);
        assert!(plan(&actual, &same).is_empty(), "equal states make no plan");

        let second = plan(&actual, &desired(&[(1, "a"), (2, "b, now by another policy"), (3, "c")], &[(7, "shop/web", &[1])], &[]));
        let isolated = second.changes.iter().find(|change| change.set == SetRef::Policy(id(Shape::Isolated))).unwrap();
        assert_eq!(isolated.remove, [Entry::Policy(Element::Local(local(2)))]);
        assert_eq!(isolated.put.len(), 2);
        assert!(second.changes.iter().map(|change| change.set).is_sorted());
        assert_eq!(second.counts(), (2, 1 + 2), "the exempt interface goes from both tables");
    }

    #[test]
    fn comments_are_compared_as_the_kernel_keeps_them() {
        let long = "x".repeat(300);
        let wanted = desired(&[(1, "say \"hi\"\n"), (2, &long)], &[], &[]);
        let mut actual = KernelState::empty([Layer::Inet]);
        let first = plan(&actual, &wanted);
        actual.apply(first);
        assert!(actual.policy[&id(Shape::Isolated)].values().all(|comment| comment.len() <= 128 && !comment.contains('"')));
        assert!(plan(&actual, &wanted).is_empty());
    }

    fn contents() -> impl Strategy<Value = BTreeMap<Element, Comment>> {
        proptest::collection::btree_map(
            any::<u8>().prop_map(|last| Element::Local(local(last))),
            proptest::sample::select(vec!["a", "b"]).prop_map(Comment::from),
            0..12,
        )
    }

    proptest! {
        #[test]
        fn a_plan_leads_from_any_state_to_any_other_and_a_delta_does_the_same(before in contents(), after in contents()) {
            let id = id(Shape::Isolated);
            let sets = |contents: &BTreeMap<Element, Comment>| Desired {
                sets: KernelSets { sets: [(id, contents.clone())].into(), ..KernelSets::default() }, ..Desired::default()
            };
            let mut actual = KernelState::empty([Layer::Inet]);
            let first = plan(&actual, &sets(&before));
            actual.apply(first);

            let whole = plan(&actual, &sets(&after));
            let delta = Delta {
                remove: before.keys().filter(|element| !after.contains_key(element)).map(|element| (id, element.clone())).collect(),
                put: after.iter().map(|(element, comment)| (id, element.clone(), comment.clone())).collect(),
                ..Delta::default()
            };
            prop_assert_eq!(&plan_delta(&actual, &delta), &whole);

            actual.apply(whole);
            prop_assert!(plan(&actual, &sets(&after)).is_empty());
            prop_assert_eq!(actual.policy.get(&id).cloned().unwrap_or_default(), after);
        }
    }
}
