//! What people wrote, over what is running: policies, the groups and segments that they come to, and what every node has of them.
//!
//! Events only say what may have changed. [`Written::settle`] works each such thing out anew from the state as it is, in the order in which one
//! depends on the other: policies, kinds, groups, segments, nodes. So what comes out is a function of the state, whatever the events were.

mod policies;
mod renew;

use super::groups::{GroupRecord, Referents};
use super::ids::{Directory, IdMap, IdSet, NONE, Slots};
use super::labels::{Anchors, Scope};
use super::nodes::{Dirty, Holding, NodeRecord};
use super::running::{Running, Touched};
use super::segments::{Builder, SegmentRecord, Variant};
use super::stamps::Stamps;
use super::template::{Item, PortName, Template};
use crate::compile::Problem;
use crate::model::{AddressGroup, GroupName, NodeName, Policy, PolicyKey, Tier, TieredPolicy};
use crate::node_state::{GroupId, ObjectKey, Rulebook, SegmentId};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The policies' part of an [`Index`](super::Index): one policy set over a [`Running`].
#[derive(Debug)]
pub struct Written<S: Stamps> {
    policies: Slots<PolicyRecord>,
    policy_ids: Directory<Key>,
    subjects: Anchors,
    address_groups: BTreeMap<GroupName, Arc<AddressGroup>>,
    cluster_networks: Vec<IpNet>,
    /// The policies that name an address group.
    referring: HashMap<GroupName, BTreeSet<u32>>,
    ranks: BTreeMap<(Tier, u16), BTreeSet<u32>>,
    problems: Arc<BTreeMap<PolicyKey, Vec<Problem>>>,
    groups: Slots<GroupRecord<S>>,
    group_ids: Directory<GroupId>,
    peers: Anchors,
    /// The groups that are made of blocks of an address group.
    of_address_groups: HashMap<GroupName, BTreeSet<u32>>,
    of_world: BTreeSet<u32>,
    of_nodes: BTreeSet<u32>,
    segments: Slots<SegmentRecord<S>>,
    segment_ids: Directory<SegmentId>,
    /// What a segment has before it is built.
    no_rules: Arc<Rulebook>,
    kinds: Vec<KindRecord>,
    /// The segment of each workload.
    workload_segments: Vec<u32>,
    nodes: Vec<NodeRecord<S>>,
    pending: Pending,
    changed: BTreeMap<u32, BTreeSet<ObjectKey>>,
}

/// How many objects are worked out before they are taken in, so that what is not taken in yet stays small.
const AT_ONCE: usize = 8_192;

/// What was said since it was last settled.
#[derive(Debug, Default)]
struct Pending {
    /// In the order in which it was said: of several words about one policy the last counts.
    policies: Vec<Said>,
    address_groups: BTreeMap<GroupName, Option<Arc<AddressGroup>>>,
    cluster_networks: Option<Vec<IpNet>>,
}

/// A word about a policy.
#[derive(Debug)]
enum Said {
    Put(Item),
    Remove(Key),
}

impl Said {
    fn key(&self) -> (bool, &PolicyKey) {
        match self {
            Self::Put(item) => (item.rank().is_some(), item.key()),
            Self::Remove((tiered, key)) => (*tiered, key),
        }
    }
}

/// Policies of namespaces and those of tiers are kept apart, as in a `PolicySet`.
type Key = (bool, PolicyKey);

#[derive(Debug)]
struct PolicyRecord {
    item: Item,
    subject: Scope,
    template: Template,
    /// The kinds of workload that it selects, sorted.
    kinds: Vec<u32>,
}

/// What policies say of the workloads of one kind.
#[derive(Debug, Default)]
struct KindRecord {
    /// Who selects them, in order.
    policies: Arc<[u32]>,
    /// The groups that they may be members of, sorted.
    groups: Vec<u32>,
    /// The ports that their policies name for them to resolve.
    named: Box<[PortName]>,
    /// Whether its policies were looked for.
    is_known: bool,
    /// The segment that was named last, if others of the kind can be of it: mostly that of all of them.
    last: Option<Box<(Variant, SegmentId)>>,
}

/// What one round of settling found to be done.
#[derive(Debug, Default)]
struct Work {
    /// Groups to be worked out from nothing.
    whole: IdSet<u32>,
    /// Groups with the places where claims changed.
    places: Vec<(u32, super::claims::Place)>,
    /// Kinds whose policies are others, or say something else.
    kinds: IdSet<u32>,
    nodes: IdMap<u32, Dirty>,
    freed_policies: Vec<u32>,
    freed_groups: Vec<u32>,
    /// Segments that some node has no workload of any more.
    emptied: Vec<u32>,
}

/// A segment's rules and hash, and the groups that it names.
struct Built<S: Stamps> {
    number: u32,
    rules: Arc<Rulebook>,
    audit: Option<Arc<Rulebook>>,
    stamp: S::Stamp,
    groups: Arc<[u32]>,
}

/// The workloads of one segment, found for one kind.
struct Placed {
    id: SegmentId,
    title: Box<str>,
    variant: Variant,
    workloads: Vec<u32>,
}

impl<S: Stamps> Default for Written<S> {
    fn default() -> Self {
        Self {
            policies: Slots::default(),
            policy_ids: Directory::default(),
            subjects: Anchors::default(),
            address_groups: BTreeMap::new(),
            cluster_networks: Vec::new(),
            referring: HashMap::new(),
            ranks: BTreeMap::new(),
            problems: Arc::default(),
            groups: Slots::default(),
            group_ids: Directory::default(),
            peers: Anchors::default(),
            of_address_groups: HashMap::new(),
            of_world: BTreeSet::new(),
            of_nodes: BTreeSet::new(),
            segments: Slots::default(),
            segment_ids: Directory::default(),
            no_rules: Arc::default(),
            kinds: Vec::new(),
            workload_segments: Vec::new(),
            nodes: Vec::new(),
            pending: Pending::default(),
            changed: BTreeMap::new(),
        }
    }
}

/// Events and questions.
impl<S: Stamps> Written<S> {
    /// A policy of a namespace came or changed.
    pub fn put_policy(&mut self, policy: Arc<Policy>) {
        self.pending.policies.push(Said::Put(Item::Namespaced(policy)));
    }

    /// A policy of a namespace went.
    pub fn remove_policy(&mut self, key: &PolicyKey) {
        self.pending.policies.push(Said::Remove((false, key.clone())));
    }

    /// A policy of a tier came or changed.
    pub fn put_tiered(&mut self, policy: Arc<TieredPolicy>) {
        self.pending.policies.push(Said::Put(Item::Tiered(policy)));
    }

    /// A policy of a tier went.
    pub fn remove_tiered(&mut self, key: &PolicyKey) {
        self.pending.policies.push(Said::Remove((true, key.clone())));
    }

    /// An address group came or changed.
    pub fn put_address_group(&mut self, group: Arc<AddressGroup>) {
        self.pending.address_groups.insert(group.name.clone(), Some(group));
    }

    /// An address group went.
    pub fn remove_address_group(&mut self, name: &GroupName) {
        self.pending.address_groups.insert(name.clone(), None);
    }

    /// The configured cluster networks.
    pub fn set_cluster_networks(&mut self, networks: &[IpNet]) {
        self.pending.cluster_networks = Some(networks.to_vec());
    }

    /// What is wrong with policies that are in force all the same.
    pub fn problems(&self) -> &Arc<BTreeMap<PolicyKey, Vec<Problem>>> {
        &self.problems
    }

    /// What a node needs; `None` for one that is neither declared nor has workloads.
    pub fn node(&self, running: &Running, name: &NodeName) -> Option<&Holding<S>> {
        let record = self.nodes.get(running.number_of_node(name)? as usize)?;
        record.there.then_some(&record.holding)
    }

    /// Every node that is declared or has workloads.
    pub fn nodes<'a>(&'a self, running: &'a Running) -> impl Iterator<Item = (&'a NodeName, &'a Holding<S>)> {
        let there = self.nodes.iter().zip(running.nodes()).filter(|(record, _)| record.there);
        there.map(|(record, host)| (&host.name, &record.holding))
    }

    /// The nodes that changed since this was last asked, with the keys of the objects that came, changed or went.
    pub fn take_changed(&mut self, running: &Running) -> BTreeMap<NodeName, BTreeSet<ObjectKey>> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|(node, keys)| (running.node(node).name.clone(), keys)).collect()
    }

    pub(super) fn group(&self, number: u32) -> Option<&GroupRecord<S>> {
        self.groups.get(number)
    }

    pub(super) fn segment(&self, number: u32) -> Option<&SegmentRecord<S>> {
        self.segments.get(number)
    }

    pub(super) fn segment_of(&self, workload: u32) -> Option<&SegmentRecord<S>> {
        self.segments.get(*self.workload_segments.get(workload as usize)?)
    }

    pub(super) fn segment_numbers_on(&self, running: &Running, node: u32) -> BTreeSet<u32> {
        let workloads = running.node(node).workloads.iter();
        workloads.filter_map(|workload| self.workload_segments.get(*workload as usize)).copied().filter(|it| *it != NONE).collect()
    }

    pub(super) fn segments_on(&self, running: &Running, node: u32) -> Vec<&SegmentRecord<S>> {
        self.segment_numbers_on(running, node).into_iter().filter_map(|number| self.segment(number)).collect()
    }

    pub(super) fn build(&self, segment: &SegmentRecord<S>, ids: &dyn Fn(u32, &mut Vec<GroupId>)) -> (Arc<Rulebook>, Option<Arc<Rulebook>>) {
        let policies = self.selecting(&segment.policies).collect();
        Builder { policies, ports: &segment.ports, ids }.build()
    }

    fn policy_number(&self, key: &Key) -> Option<u32> {
        let has = |it: &PolicyRecord| it.item.rank().is_some() == key.0 && *it.item.key() == key.1;
        self.policy_ids.get(key, |number| self.policies.get(number).is_some_and(has))
    }

    fn group_number(&self, id: &GroupId) -> Option<u32> {
        self.group_ids.get(id, |number| self.groups.get(number).is_some_and(|it| it.shared.id == *id))
    }

    fn selecting<'a>(&'a self, policies: &'a [u32]) -> impl Iterator<Item = (&'a Item, &'a Template)> {
        policies.iter().filter_map(|policy| self.policies.get(*policy)).map(|policy| (&policy.item, &policy.template))
    }

    fn referents(&self) -> Referents<'_> {
        Referents { address_groups: &self.address_groups, cluster_networks: &self.cluster_networks }
    }
}

/// Settling.
impl<S: Stamps> Written<S> {
    /// Brings a policy set up to date that was told its policies and nothing of what runs: one that comes to an inventory which is there
    /// already. From then on it follows by [`Self::settle`]; to be told once more of what was not taken yet does no harm.
    pub fn join(&mut self, running: &mut Running) {
        let everything = running.everything();
        self.settle(running, &everything);
    }

    /// Lets go of what it holds in an inventory that goes on without it.
    pub fn leave(self, running: &mut Running) {
        self.policies.iter().for_each(|(_, policy)| policy.subject.let_go(&mut running.texts));
        self.groups.iter().filter_map(|(_, group)| group.meaning.scope()).for_each(|scope| scope.let_go(&mut running.texts));
    }

    /// Brings everything up to date after events. Whatever `running` was told since this was last called has to be in `touched`.
    pub fn settle(&mut self, running: &mut Running, touched: &Touched) {
        let mut work = Work::default();
        self.take_in_referents(&mut work);
        let coming = self.take_out_policies(running, &mut work);
        self.note_claims(touched.places.iter().filter_map(|(place, gave_up)| Some((*place, (*gave_up)?))), &mut work);
        self.take_in_kinds(running, touched, &mut work);
        self.bring_in_policies(coming, running, &mut work);
        self.note_claims(
            touched.places.iter().flat_map(|(place, _)| {
                let claims = running.claims.at(place).iter();
                claims.filter_map(|claim| Some((*place, running.workload(claim.workload)?.kind)))
            }),
            &mut work,
        );
        if touched.node_facts {
            work.whole.extend(&self.of_nodes);
        }
        self.renew_groups(running, &mut work);
        self.renew_segments(running, touched, &mut work);
        for node in &touched.nodes {
            work.nodes.entry(*node).or_default().itself = true;
        }
        for node in &touched.ambiguous {
            work.nodes.entry(*node).or_default().all_groups = true;
        }
        self.renew_nodes(running, &mut work);
        self.free(work);
    }
}
