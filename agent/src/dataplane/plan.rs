//! From what the kernel holds and what it is to hold to the change between them. Pure: the same two states give the same plan,
//! in one order, whatever happened before.

use super::bind::{self, Binding};
use super::desired::Desired;
use super::element::{Bound, Entry, tidy};
use super::names::{BoundForm, Layer, SetRef};
use super::{Delta, element::Comments};
use firebreak_policy::kernel_sets::{Comment, Element, SetId};
use firebreak_policy::model::Family;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

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
    /// The interfaces that have a guard's base chain, by name; `None` without a netdev table.
    pub(super) ports: Option<BTreeSet<String>>,
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
                state.ports = Some(BTreeSet::new());
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

    /// How many elements there are.
    pub(super) fn len(&self) -> usize {
        let known: usize = self.known.values().map(BTreeMap::len).sum();
        let policy: usize = self.policy.values().map(BTreeMap::len).sum();
        let bound: usize = self.bound.values().map(BTreeMap::len).sum();
        known + self.workloads.len() + policy + bound
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
            (SetRef::KnownInterfaces(_) | SetRef::Workloads(_), Entry::Policy(_))
            | (SetRef::Workloads(_) | SetRef::Policy(_), Entry::Interface(_))
            | (SetRef::KnownInterfaces(_) | SetRef::Workloads(_) | SetRef::Policy(_), Entry::Bound(_)) => {}
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
            (SetRef::KnownInterfaces(_) | SetRef::Workloads(_), Entry::Policy(_))
            | (SetRef::Workloads(_) | SetRef::Policy(_), Entry::Interface(_))
            | (SetRef::KnownInterfaces(_) | SetRef::Workloads(_) | SetRef::Policy(_), Entry::Bound(_)) => {}
        }
    }

    /// What the kernel holds after a plan was committed.
    pub(super) fn apply(&mut self, plan: Plan) {
        for change in plan.changes {
            for entry in &change.remove {
                self.remove(change.set, entry);
            }
            for (entry, comment) in change.put {
                self.insert(change.set, entry, comment);
            }
        }
        if let Some(ports) = &mut self.ports {
            ports.retain(|port| !plan.ports.remove.contains(port));
            ports.extend(plan.ports.put);
        }
    }
}

/// One transaction's worth of change: by set in order, in each set the removals first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Only sets that change.
    pub(super) changes: Vec<SetChange>,
    /// Guards' base chains that come and go.
    pub(super) ports: PortChange,
}

/// Base chains of guards, by the name of their interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PortChange {
    /// What goes, in order.
    pub(super) remove: Vec<String>,
    /// What comes, in order.
    pub(super) put: Vec<String>,
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

impl Plan {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.ports.remove.is_empty() && self.ports.put.is_empty()
    }

    /// How many elements come and go.
    pub(super) fn counts(&self) -> (usize, usize) {
        self.changes.iter().fold((0, 0), |(put, removed), change| (put + change.put.len(), removed + change.remove.len()))
    }

    fn push(&mut self, set: SetRef, remove: Vec<Entry>, put: Vec<(Entry, Comment)>) {
        if !(remove.is_empty() && put.is_empty()) {
            self.changes.push(SetChange { set, remove, put });
        }
    }
}

/// What has to change for the kernel to hold what is desired.
pub(super) fn plan(actual: &KernelState, desired: &Desired) -> Plan {
    let bindings = bind::bindings(actual, desired);
    let mut plan = plan_to(actual, &desired_interfaces(desired), &desired_workloads(desired), &desired.sets.sets);
    plan_guards(&mut plan, actual, |set| bind::elements(&bindings, set), &guarded(desired, &bindings));
    plan
}

/// The names of the interfaces that get a guard's base chain: all that are managed.
fn guarded(desired: &Desired, bindings: &BTreeMap<u32, Binding>) -> BTreeSet<String> {
    bindings.keys().filter_map(|index| desired.interfaces.get(index)).map(|interface| interface.name.as_str().to_owned()).collect()
}

fn plan_guards(
    plan: &mut Plan,
    actual: &KernelState,
    desired: impl Fn(SetRef) -> BTreeMap<Entry, Comment>,
    desired_ports: &BTreeSet<String>,
) {
    for (set, actual) in &actual.bound {
        let (remove, put) = difference(actual, &desired(*set), std::convert::identity);
        plan.push(*set, remove, put);
    }
    if let Some(actual) = &actual.ports {
        plan.ports.remove = actual.difference(desired_ports).cloned().collect();
        plan.ports.put = desired_ports.difference(actual).cloned().collect();
    }
}

/// What has to change for the kernel to hold again what was committed. The interfaces are the same in each table.
pub(super) fn plan_restore(actual: &KernelState, committed: &KernelState) -> Plan {
    let nothing = BTreeMap::new();
    let mut plan = plan_to(actual, committed.known.values().next().unwrap_or(&nothing), &committed.workloads, &committed.policy);
    let bound = |set| committed.bound.get(&set).cloned().unwrap_or_default();
    plan_guards(&mut plan, actual, bound, committed.ports.as_ref().unwrap_or(&BTreeSet::new()));
    plan
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
    plan
}

fn desired_interfaces(desired: &Desired) -> BTreeMap<u32, Comment> {
    let exempt: Comment = "exempt: judged by nobody".into();
    let mut known: BTreeMap<u32, Comment> = desired.exempt.keys().map(|index| (*index, exempt.clone())).collect();
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
            sets: KernelSets { sets: if elements.is_empty() { BTreeMap::new() } else { [(id(Shape::Isolated), elements)].into() } },
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
                sets: KernelSets { sets: [(id, contents.clone())].into() }, ..Desired::default()
            };
            let mut actual = KernelState::empty([Layer::Inet]);
            let first = plan(&actual, &sets(&before));
            actual.apply(first);

            let whole = plan(&actual, &sets(&after));
            let delta = Delta {
                remove: before.keys().filter(|element| !after.contains_key(element)).map(|element| (id, element.clone())).collect(),
                put: after.iter().map(|(element, comment)| (id, element.clone(), comment.clone())).collect(),
            };
            prop_assert_eq!(&plan_delta(&actual, &delta), &whole);

            actual.apply(whole);
            prop_assert!(plan(&actual, &sets(&after)).is_empty());
            prop_assert_eq!(actual.policy.get(&id).cloned().unwrap_or_default(), after);
        }
    }
}
