//! What is running, by number: namespaces, nodes, workloads, who claims which address. One of these serves any number of policy sets.
//!
//! Workloads of one namespace with the same labels are of one kind, and selectors are asked about kinds: a workload that comes to a kind that
//! is there asks no selector at all.

use super::claims::{Claim, Claims, DEFAULT_NETWORK, Place};
use super::ids::{Directory, IdMap, IdSet, NONE, Slots, id};
use super::labels::{Handle, Home, LabelSets, Pair, Scope, Selector, Texts, handles};
use crate::compile::takes_part;
use crate::model::{Labels, Namespace, NamespaceName, NetworkAddress, NetworkName, Node, NodeName, Workload, WorkloadId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// The inventory's part of an [`Index`](super::Index).
#[derive(Debug)]
pub struct Running {
    pub(super) texts: Texts,
    sets: LabelSets,
    namespaces: Vec<Space>,
    namespace_ids: HashMap<NamespaceName, u32>,
    namespaces_by_pair: IdMap<Pair, BTreeSet<u32>>,
    nodes: Vec<Host>,
    node_ids: HashMap<NodeName, u32>,
    networks: HashMap<NetworkName, (u32, u32)>,
    kinds: Slots<Kind>,
    kind_ids: IdMap<(u32, u32), u32>,
    kinds_by_pair: IdMap<Pair, BTreeSet<u32>>,
    workloads: Slots<Held>,
    workload_ids: Directory<WorkloadId>,
    pub(super) claims: Claims,
    conflicts: Arc<BTreeMap<NetworkAddress, BTreeSet<WorkloadId>>>,
    touched: Touched,
}

#[derive(Debug, Default)]
struct Space {
    labels: Box<[Pair]>,
    kinds: BTreeSet<u32>,
}

/// A node that is declared, has workloads, or had.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: NodeName,
    pub(super) declared: Option<Arc<Node>>,
    pub(super) workloads: BTreeSet<u32>,
}

impl Host {
    pub(super) fn is_there(&self) -> bool {
        self.declared.is_some() || !self.workloads.is_empty()
    }

    pub(super) fn addresses(&self) -> &[IpAddr] {
        self.declared.as_ref().map(|node| node.addresses.as_slice()).unwrap_or_default()
    }
}

/// Workloads of one namespace with the same labels.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) namespace: u32,
    labels: u32,
    pub(super) workloads: BTreeSet<u32>,
}

/// A workload that takes part.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) workload: Arc<Workload>,
    pub(super) node: u32,
    pub(super) kind: u32,
}

/// What events have touched since it was taken: where what policies come to may have changed.
#[derive(Debug, Default)]
pub struct Touched {
    /// Workloads that came or changed.
    pub(super) workloads: IdSet<u32>,
    /// Workloads that went, with their nodes.
    pub(super) gone: Vec<(u32, u32, WorkloadId)>,
    /// Kinds that came or went.
    pub(super) kinds: IdSet<u32>,
    /// Namespaces whose labels changed.
    pub(super) namespaces: IdSet<u32>,
    /// Addresses whose claims changed, with the kind that gave one up, if one did.
    pub(super) places: Vec<(Place, Option<u32>)>,
    /// Nodes that came, changed or went.
    pub(super) nodes: IdSet<u32>,
    /// Whether a node's labels or addresses changed.
    pub(super) node_facts: bool,
    /// Nodes on which other addresses are ambiguous now.
    pub(super) ambiguous: IdSet<u32>,
    gone_kinds: Vec<u32>,
}

impl Touched {
    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
            && self.gone.is_empty()
            && self.kinds.is_empty()
            && self.namespaces.is_empty()
            && self.places.is_empty()
            && self.nodes.is_empty()
            && !self.node_facts
            && self.ambiguous.is_empty()
    }
}

/// A part of [`Touched`] that a test leaves out: what an index would be that did not look at it.
#[cfg(feature = "arbitrary")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgotten {
    /// Workloads that came or changed.
    Workloads,
    /// Workloads that went.
    Gone,
    /// Kinds that came or went.
    Kinds,
    /// Namespaces whose labels changed.
    Namespaces,
    /// Addresses whose claims changed.
    Places,
    /// That a workload of another kind gave an address up.
    GivenUp,
    /// Nodes that came, changed or went.
    Nodes,
    /// That a node's labels or addresses changed.
    NodeFacts,
    /// Nodes on which other addresses are ambiguous.
    Ambiguous,
}

#[cfg(feature = "arbitrary")]
impl Touched {
    /// Plants a mistake: a test of the index has to find it.
    pub fn forget(&mut self, what: Forgotten) {
        match what {
            Forgotten::Workloads => self.workloads.clear(),
            Forgotten::Gone => self.gone.clear(),
            Forgotten::Kinds => self.kinds.clear(),
            Forgotten::Namespaces => self.namespaces.clear(),
            Forgotten::Places => self.places.clear(),
            Forgotten::GivenUp => self.places.iter_mut().for_each(|(_, gave_up)| *gave_up = None),
            Forgotten::Nodes => self.nodes.clear(),
            Forgotten::NodeFacts => self.node_facts = false,
            Forgotten::Ambiguous => self.ambiguous.clear(),
        }
    }
}

impl Default for Running {
    fn default() -> Self {
        Self {
            texts: Texts::default(),
            sets: LabelSets::default(),
            namespaces: Vec::new(),
            namespace_ids: HashMap::new(),
            namespaces_by_pair: IdMap::default(),
            nodes: Vec::new(),
            node_ids: HashMap::new(),
            networks: HashMap::from([(NetworkName::default_network(), (DEFAULT_NETWORK, NONE))]),
            kinds: Slots::default(),
            kind_ids: IdMap::default(),
            kinds_by_pair: IdMap::default(),
            workloads: Slots::default(),
            workload_ids: Directory::default(),
            claims: Claims::default(),
            conflicts: Arc::default(),
            touched: Touched::default(),
        }
    }
}

impl Running {
    /// A workload came or changed. One that ended or shares its node's network takes no part, as if it were not there.
    pub fn put_workload(&mut self, workload: Arc<Workload>) {
        if !takes_part(&workload) {
            self.remove_workload(&workload.id);
            return;
        }
        let Some(number) = self.number_of_workload(&workload.id) else { return self.add_workload(workload) };
        let Some(Held { workload: before, kind: old_kind, .. }) = self.workloads.get(number) else { return };
        let (before, old_kind) = (before.clone(), *old_kind);
        if Arc::ptr_eq(&before, &workload) {
            return;
        }
        if before == workload {
            // The same, in memory that others share too.
            if let Some(held) = self.workloads.get_mut(number) {
                held.workload = workload;
            }
            return;
        }
        let kind = match before.namespace == workload.namespace && before.labels == workload.labels {
            true => old_kind,
            false => self.kind_of(&workload),
        };
        self.touched.workloads.insert(number);
        if kind != old_kind {
            if let Some(it) = self.kinds.get_mut(kind) {
                it.workloads.insert(number);
            }
            self.leave_kind(old_kind, number);
        }
        let (old_places, places) = (self.places_of(&before), self.places_of(&workload));
        let all = kind != old_kind || before.named_ports != workload.named_ports;
        if let Some(held) = self.workloads.get_mut(number) {
            (held.workload, held.kind) = (workload, kind);
        }
        for (place, network) in old_places.iter().filter(|it| !places.contains(it)) {
            self.unclaim(*place, Claim { network: *network, workload: number }, old_kind);
        }
        for (place, network) in places {
            if !old_places.contains(&(place, network)) {
                self.claim(place, Claim { network, workload: number });
            } else if all {
                self.touched.places.push((place, (kind != old_kind).then_some(old_kind)));
            }
        }
    }

    fn number_of_workload(&self, id: &WorkloadId) -> Option<u32> {
        self.workload_ids.get(id, |number| self.workloads.get(number).is_some_and(|held| held.workload.id == *id))
    }

    fn add_workload(&mut self, workload: Arc<Workload>) {
        let (node, kind) = (self.node_id(&workload.id.node), self.kind_of(&workload));
        let places = self.places_of(&workload);
        let id = workload.id.clone();
        let number = self.workloads.add(Held { workload, node, kind });
        self.workload_ids.insert(&id, number);
        if let Some(kind) = self.kinds.get_mut(kind) {
            kind.workloads.insert(number);
        }
        self.nodes[node as usize].workloads.insert(number);
        self.touched.workloads.insert(number);
        for (place, network) in places {
            self.claim(place, Claim { network, workload: number });
        }
    }

    /// A workload went.
    pub fn remove_workload(&mut self, id: &WorkloadId) {
        let Some(number) = self.number_of_workload(id) else { return };
        self.workload_ids.remove(id, number);
        let Some(Held { workload, node, kind }) = self.workloads.take(number) else { return };
        self.leave_kind(kind, number);
        self.nodes[node as usize].workloads.remove(&number);
        for (place, network) in self.places_of(&workload) {
            self.unclaim(place, Claim { network, workload: number }, kind);
        }
        self.touched.gone.push((number, node, id.clone()));
        self.touched.nodes.insert(node);
    }

    /// A namespace came or changed.
    pub fn put_namespace(&mut self, namespace: &Namespace) {
        self.label_namespace(&namespace.name, &namespace.labels);
    }

    /// A namespace went: its workloads, if any, are in one without labels.
    pub fn remove_namespace(&mut self, name: &NamespaceName) {
        if self.namespace_ids.contains_key(name) {
            self.label_namespace(name, &Labels::default());
        }
    }

    fn label_namespace(&mut self, name: &NamespaceName, labels: &Labels) {
        let number = self.namespace_id(name);
        let labels = self.texts.hold_labels(labels);
        let before = std::mem::replace(&mut self.namespaces[number as usize].labels, labels);
        let labels = &self.namespaces[number as usize].labels;
        if before != *labels {
            for pair in handles(&before) {
                remove_from(&mut self.namespaces_by_pair, pair, number);
            }
            for pair in handles(labels) {
                self.namespaces_by_pair.entry(pair).or_default().insert(number);
            }
            self.touched.namespaces.insert(number);
        }
        self.texts.let_labels_go(&before);
    }

    /// A node came or changed.
    pub fn put_node(&mut self, node: Arc<Node>) {
        let number = self.node_id(&node.name);
        self.declare(number, Some(node));
    }

    /// A node's declaration went; its workloads stay.
    pub fn remove_node(&mut self, name: &NodeName) {
        if let Some(number) = self.node_ids.get(name).copied() {
            self.declare(number, None);
        }
    }

    fn declare(&mut self, number: u32, node: Option<Arc<Node>>) {
        let before = std::mem::replace(&mut self.nodes[number as usize].declared, node.clone());
        if before == node {
            return;
        }
        let addresses = |node: &Option<Arc<Node>>| -> BTreeSet<IpAddr> { node.iter().flat_map(|it| &it.addresses).copied().collect() };
        let (old, new) = (addresses(&before), addresses(&node));
        for address in old.difference(&new) {
            self.claims.remove_node_address(*address);
        }
        for address in new.difference(&old) {
            self.claims.add_node_address(*address);
        }
        for address in old.symmetric_difference(&new) {
            let place = Place { owner: NONE, address: *address };
            self.touched.places.push((place, None));
            self.review_conflict(place, DEFAULT_NETWORK);
        }
        self.touched.nodes.insert(number);
        self.touched.node_facts = true;
    }

    /// The addresses that two live workloads claim, or a workload and a node.
    pub fn conflicts(&self) -> &Arc<BTreeMap<NetworkAddress, BTreeSet<WorkloadId>>> {
        &self.conflicts
    }

    /// What was touched since this was last asked. Every policy set over this inventory has to be told of it before the next events.
    pub fn take_touched(&mut self) -> Touched {
        let mut touched = std::mem::take(&mut self.touched);
        for kind in touched.gone_kinds.drain(..) {
            // Nobody can have taken the number: it was not free before.
            self.kinds.release(kind);
        }
        for (workload, ..) in &touched.gone {
            self.workloads.release(*workload);
        }
        touched
    }

    /// All there is: what a policy set has to be told that was not there when it came.
    pub(super) fn everything(&self) -> Touched {
        let there = (0_u32..).zip(&self.nodes).filter(|(_, host)| host.is_there());
        Touched {
            workloads: self.workloads.iter().map(|(number, _)| number).collect(),
            kinds: self.kinds.iter().map(|(number, _)| number).collect(),
            nodes: there.map(|(number, _)| number).collect(),
            ..Touched::default()
        }
    }

    /// How many texts of labels and selectors are held.
    pub fn texts(&self) -> usize {
        self.texts.len()
    }

    fn places_of(&mut self, workload: &Workload) -> Vec<(Place, u32)> {
        workload.addresses.iter().map(|at| self.place(at)).collect()
    }

    fn place(&mut self, at: &NetworkAddress) -> (Place, u32) {
        let (network, owner) = self.network(&at.network);
        (Place { owner, address: at.address }, network)
    }

    fn network(&mut self, name: &NetworkName) -> (u32, u32) {
        if name.is_default() {
            return (DEFAULT_NETWORK, NONE);
        }
        if let Some(known) = self.networks.get(name) {
            return *known;
        }
        let owner = name.owner().map_or(NONE, |owner| self.node_id(&owner));
        let number = id(self.networks.len());
        self.networks.insert(name.clone(), (number, owner));
        (number, owner)
    }

    /// The place and the network of an address that a workload of this inventory has.
    pub(super) fn place_of(&self, at: &NetworkAddress) -> Option<(Place, u32)> {
        let (network, owner) = if at.network.is_default() { (DEFAULT_NETWORK, NONE) } else { self.networks.get(&at.network).copied()? };
        Some((Place { owner, address: at.address }, network))
    }

    fn claim(&mut self, place: Place, claim: Claim) {
        let changed = self.claims.add(place, claim);
        self.touched.ambiguous.extend(changed);
        self.touched.places.push((place, None));
        self.review_conflict(place, claim.network);
    }

    fn unclaim(&mut self, place: Place, claim: Claim, kind: u32) {
        let changed = self.claims.remove(place, claim);
        self.touched.ambiguous.extend(changed);
        self.touched.places.push((place, Some(kind)));
        self.review_conflict(place, claim.network);
    }

    fn review_conflict(&mut self, place: Place, network: u32) {
        let contested = self.claims.is_contested(&place, network);
        if !contested && self.conflicts.is_empty() {
            return;
        }
        let Some(name) = self.network_name(network) else { return };
        let at = NetworkAddress { network: name, address: place.address };
        if contested {
            let claims = self.claims.at(&place).iter().filter(|claim| claim.network == network);
            let claimants = claims.filter_map(|claim| Some(self.workloads.get(claim.workload)?.workload.id.clone())).collect();
            Arc::make_mut(&mut self.conflicts).insert(at, claimants);
        } else if self.conflicts.contains_key(&at) {
            Arc::make_mut(&mut self.conflicts).remove(&at);
        }
    }

    fn network_name(&self, number: u32) -> Option<NetworkName> {
        if number == DEFAULT_NETWORK {
            return Some(NetworkName::default_network());
        }
        // Asked where an address is contested, or was: rarely.
        self.networks.iter().find(|(_, (network, _))| *network == number).map(|(name, _)| name.clone())
    }

    fn kind_of(&mut self, workload: &Workload) -> u32 {
        let namespace = self.namespace_id(&workload.namespace);
        let labels = self.sets.hold(&workload.labels, &mut self.texts);
        if let Some(known) = self.kind_ids.get(&(namespace, labels)).copied() {
            self.sets.let_go(labels, &mut self.texts);
            return known;
        }
        let number = self.kinds.add(Kind { namespace, labels, workloads: BTreeSet::new() });
        self.kind_ids.insert((namespace, labels), number);
        for pair in handles(self.sets.pairs(labels)) {
            self.kinds_by_pair.entry(pair).or_default().insert(number);
        }
        self.namespaces[namespace as usize].kinds.insert(number);
        self.touched.kinds.insert(number);
        number
    }

    fn leave_kind(&mut self, number: u32, workload: u32) {
        let Some(kind) = self.kinds.get_mut(number) else { return };
        kind.workloads.remove(&workload);
        if !kind.workloads.is_empty() {
            return;
        }
        let Some(Kind { namespace, labels, .. }) = self.kinds.take(number) else { return };
        self.kind_ids.remove(&(namespace, labels));
        for pair in handles(self.sets.pairs(labels)) {
            remove_from(&mut self.kinds_by_pair, pair, number);
        }
        self.namespaces[namespace as usize].kinds.remove(&number);
        self.sets.let_go(labels, &mut self.texts);
        self.touched.kinds.insert(number);
        self.touched.gone_kinds.push(number);
    }

    pub(super) fn namespace_id(&mut self, name: &NamespaceName) -> u32 {
        if let Some(number) = self.namespace_ids.get(name) {
            return *number;
        }
        let number = id(self.namespaces.len());
        self.namespaces.push(Space::default());
        self.namespace_ids.insert(name.clone(), number);
        number
    }

    fn node_id(&mut self, name: &NodeName) -> u32 {
        if let Some(number) = self.node_ids.get(name) {
            return *number;
        }
        let number = id(self.nodes.len());
        self.nodes.push(Host { name: name.clone(), declared: None, workloads: BTreeSet::new() });
        self.node_ids.insert(name.clone(), number);
        number
    }

    pub(super) fn number_of_node(&self, name: &NodeName) -> Option<u32> {
        self.node_ids.get(name).copied()
    }

    pub(super) fn node(&self, number: u32) -> &Host {
        &self.nodes[number as usize]
    }

    pub(super) fn nodes(&self) -> &[Host] {
        &self.nodes
    }

    pub(super) fn kind(&self, number: u32) -> Option<&Kind> {
        self.kinds.get(number)
    }

    pub(super) fn workload(&self, number: u32) -> Option<&Held> {
        self.workloads.get(number)
    }

    pub(super) fn namespace_labels(&self, number: u32) -> &[Pair] {
        &self.namespaces[number as usize].labels
    }

    pub(super) fn labels(&self, kind: &Kind) -> &[Pair] {
        self.sets.pairs(kind.labels)
    }

    pub(super) fn kinds_in(&self, namespace: u32) -> &BTreeSet<u32> {
        &self.namespaces[namespace as usize].kinds
    }

    /// Chooses by which of its terms a scope is found: the rarest.
    pub(super) fn handle(&self, home: &Home, workloads: &Selector) -> Handle {
        let kinds = |pair: Pair| self.kinds_by_pair.get(&pair).map_or(0, BTreeSet::len);
        let spaces = |pair: Pair| self.namespaces_by_pair.get(&pair).map_or(0, BTreeSet::len);
        let by_workloads = workloads.rarest(kinds);
        let by_namespaces = match home {
            Home::Own(_) | Home::Everywhere => None,
            Home::Matching(selector) => selector.rarest(spaces),
        };
        match (by_workloads, by_namespaces) {
            (Some((at, _, few)), Some((_, _, more))) if few <= more => Handle::Workloads(at),
            (_, Some((at, ..))) => Handle::Namespaces(at),
            (Some((at, ..)), None) => Handle::Workloads(at),
            (None, None) => Handle::Nothing,
        }
    }

    /// The kinds that a scope is about, in order.
    pub(super) fn matching(&self, scope: &Scope) -> Vec<u32> {
        let kinds = |pair: Pair| self.kinds_by_pair.get(&pair).map_or(0, BTreeSet::len);
        let rarest = scope.workloads.rarest(kinds);
        let is_meant = |number: &u32| {
            self.kinds
                .get(*number)
                .is_some_and(|kind| scope.matches(kind.namespace, self.namespace_labels(kind.namespace), self.labels(kind)))
        };
        let by_pairs = |pairs: Vec<Pair>| -> Vec<u32> {
            let mut found: Vec<u32> = pairs.iter().filter_map(|pair| self.kinds_by_pair.get(pair)).flatten().copied().collect();
            found.sort_unstable();
            found.dedup();
            found
        };
        let spaces: Vec<u32> = match &scope.home {
            Home::Own(own) => vec![*own],
            Home::Everywhere => match rarest {
                Some((_, pairs, _)) => return by_pairs(pairs).into_iter().filter(is_meant).collect(),
                None => return self.kinds.iter().map(|(number, _)| number).filter(is_meant).collect(),
            },
            Home::Matching(selector) => {
                let spaces = |pair: Pair| self.namespaces_by_pair.get(&pair).map_or(0, BTreeSet::len);
                let all: Vec<u32> = match selector.rarest(spaces) {
                    Some((_, pairs, _)) => pairs.iter().filter_map(|pair| self.namespaces_by_pair.get(pair)).flatten().copied().collect(),
                    None => (0..id(self.namespaces.len())).collect(),
                };
                all.into_iter().filter(|number| selector.matches(self.namespace_labels(*number))).collect()
            }
        };
        let there: usize = spaces.iter().map(|space| self.kinds_in(*space).len()).sum();
        if let Some((_, pairs, few)) = rarest
            && few < there
        {
            return by_pairs(pairs).into_iter().filter(is_meant).collect();
        }
        let mut found: Vec<u32> = spaces.iter().flat_map(|space| self.kinds_in(*space)).copied().filter(is_meant).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn remove_from(map: &mut IdMap<Pair, BTreeSet<u32>>, pair: Pair, number: u32) {
    if let Some(list) = map.get_mut(&pair) {
        list.remove(&number);
        if list.is_empty() {
            map.remove(&pair);
        }
    }
}
