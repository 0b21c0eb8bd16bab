//! What people wrote, over what is running: policies, the groups and segments that they come to, and what every node has of them.
//!
//! Events only say what may have changed. [`Written::settle`] works each such thing out anew from the state as it is, in the order in which one
//! depends on the other: policies, kinds, groups, segments, nodes. So what comes out is a function of the state, whatever the events were.

use super::groups::{GroupRecord, Moved, Referents, Source, scope};
use super::ids::{IdMap, IdSet, NONE, Slots, insert, remove};
use super::labels::{Anchors, Scope};
use super::nodes::{Dirty, Holding, NodeRecord};
use super::parallel;
use super::running::{Running, Touched};
use super::segments::{self, Builder, SegmentRecord, Variant};
use super::stamps::Stamps;
use super::template::{Item, PortName, Template, Wanted, draft};
use crate::compile::Problem;
use crate::model::{AddressGroup, GroupName, NamespaceScope, NodeName, Peer, Policy, PolicyKey, Tier, TieredPolicy};
use crate::node_state::{GroupId, ObjectKey, Rulebook, Segment, SegmentId};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The policies' part of an [`Index`](super::Index): one policy set over a [`Running`].
#[derive(Debug)]
pub struct Written<S: Stamps> {
    policies: Slots<PolicyRecord>,
    policy_ids: HashMap<Key, u32>,
    subjects: Anchors,
    address_groups: BTreeMap<GroupName, Arc<AddressGroup>>,
    cluster_networks: Vec<IpNet>,
    /// The policies that name an address group.
    referring: HashMap<GroupName, BTreeSet<u32>>,
    ranks: BTreeMap<(Tier, u16), BTreeSet<u32>>,
    problems: Arc<BTreeMap<PolicyKey, Vec<Problem>>>,
    groups: Slots<GroupRecord<S>>,
    group_ids: HashMap<GroupId, u32>,
    peers: Anchors,
    /// The groups that are made of blocks of an address group.
    of_address_groups: HashMap<GroupName, BTreeSet<u32>>,
    of_world: BTreeSet<u32>,
    of_nodes: BTreeSet<u32>,
    segments: Slots<SegmentRecord<S>>,
    segment_ids: HashMap<SegmentId, u32>,
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
    policies: BTreeMap<Key, Option<Item>>,
    address_groups: BTreeMap<GroupName, Option<Arc<AddressGroup>>>,
    cluster_networks: Option<Vec<IpNet>>,
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
    /// The segment that was named last: mostly that of all of them.
    last: Option<(Variant, SegmentId)>,
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

/// A segment's number, content and hash, and the groups that it names.
type Built<S> = (u32, Segment, <S as Stamps>::Stamp, Arc<[u32]>);

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
            policy_ids: HashMap::new(),
            subjects: Anchors::default(),
            address_groups: BTreeMap::new(),
            cluster_networks: Vec::new(),
            referring: HashMap::new(),
            ranks: BTreeMap::new(),
            problems: Arc::default(),
            groups: Slots::default(),
            group_ids: HashMap::new(),
            peers: Anchors::default(),
            of_address_groups: HashMap::new(),
            of_world: BTreeSet::new(),
            of_nodes: BTreeSet::new(),
            segments: Slots::default(),
            segment_ids: HashMap::new(),
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
        self.pending.policies.insert((false, policy.key.clone()), Some(Item::Namespaced(policy)));
    }

    /// A policy of a namespace went.
    pub fn remove_policy(&mut self, key: &PolicyKey) {
        self.pending.policies.insert((false, key.clone()), None);
    }

    /// A policy of a tier came or changed.
    pub fn put_tiered(&mut self, policy: Arc<TieredPolicy>) {
        self.pending.policies.insert((true, policy.key.clone()), Some(Item::Tiered(policy)));
    }

    /// A policy of a tier went.
    pub fn remove_tiered(&mut self, key: &PolicyKey) {
        self.pending.policies.insert((true, key.clone()), None);
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

    fn selecting<'a>(&'a self, policies: &'a [u32]) -> impl Iterator<Item = (&'a Item, &'a Template)> {
        policies.iter().filter_map(|policy| self.policies.get(*policy)).map(|policy| (&policy.item, &policy.template))
    }

    fn referents(&self) -> Referents<'_> {
        Referents { address_groups: &self.address_groups, cluster_networks: &self.cluster_networks }
    }
}

/// Settling.
impl<S: Stamps> Written<S> {
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

    fn take_in_referents(&mut self, work: &mut Work) {
        if let Some(networks) = self.pending.cluster_networks.take()
            && networks != self.cluster_networks
        {
            self.cluster_networks = networks;
            work.whole.extend(&self.of_world);
        }
        for (name, group) in std::mem::take(&mut self.pending.address_groups) {
            let before = self.address_groups.get(&name);
            if before == group.as_ref() {
                continue;
            }
            if before.is_some() != group.is_some() {
                // Rules that deny say something else while what they name is missing.
                for policy in self.referring.get(&name).into_iter().flatten() {
                    if let Some(record) = self.policies.get(*policy) {
                        let key = (record.item.rank().is_some(), record.item.key().clone());
                        self.pending.policies.entry(key).or_insert_with(|| Some(record.item.clone()));
                    }
                }
            }
            work.whole.extend(self.of_address_groups.get(&name).into_iter().flatten());
            match group {
                Some(group) => drop(self.address_groups.insert(name, group)),
                None => drop(self.address_groups.remove(&name)),
            }
        }
    }

    /// Takes out what goes or is replaced; gives what comes, with the numbers of those that were there.
    fn take_out_policies(&mut self, running: &mut Running, work: &mut Work) -> Vec<(Option<u32>, Item)> {
        let mut coming = Vec::new();
        let mut leaving: IdMap<u32, IdSet<u32>> = IdMap::default();
        let mut gone = Vec::new();
        for (key, item) in std::mem::take(&mut self.pending.policies) {
            let number = match &item {
                Some(_) => self.policy_ids.get(&key).copied(),
                None => self.policy_ids.remove(&key),
            };
            if let Some(number) = number
                && let Some(record) = self.policies.take(number)
            {
                self.subjects.unregister(&record.subject, number);
                record.subject.let_go(&mut running.texts);
                for kind in &record.kinds {
                    leaving.entry(*kind).or_default().insert(number);
                    work.kinds.insert(*kind);
                }
                for name in record.item.referents() {
                    if let Some(policies) = self.referring.get_mut(&name) {
                        policies.remove(&number);
                    }
                    if self.referring.get(&name).is_some_and(BTreeSet::is_empty) {
                        self.referring.remove(&name);
                    }
                }
                self.leave_rank(&record.item, number);
                self.forget_problems(record.item.key());
                gone.extend(record.template.groups.iter().copied());
                if item.is_none() {
                    work.freed_policies.push(number);
                }
            }
            coming.extend(item.map(|item| (number, item)));
        }
        for (kind, policies) in leaving {
            let record = &mut self.kinds[kind as usize];
            record.policies = record.policies.iter().copied().filter(|policy| !policies.contains(policy)).collect();
        }
        // Let go of when what comes holds its own.
        work.freed_groups = gone;
        coming
    }

    fn leave_rank(&mut self, item: &Item, number: u32) {
        let Some(rank) = item.rank() else { return };
        let Some(others) = self.ranks.get_mut(&rank) else { return };
        others.remove(&number);
        let others: Vec<u32> = others.iter().copied().collect();
        if others.is_empty() {
            self.ranks.remove(&rank);
        }
        others.into_iter().for_each(|other| self.review_problems(other));
    }

    fn review_problems(&mut self, number: u32) {
        let Some(record) = self.policies.get(number) else { return };
        let mut found: BTreeSet<Problem> = BTreeSet::new();
        for peer in record.item.peers() {
            match peer {
                Peer::Group(name) if !self.address_groups.contains_key(name) => {
                    found.insert(Problem::MissingAddressGroup(name.clone()));
                }
                Peer::Unknown => {
                    found.insert(Problem::UnknownPeer);
                }
                Peer::Group(_) | Peer::Workloads { .. } | Peer::Cidr(_) | Peer::Entity(_) | Peer::Nodes(_) => {}
            }
        }
        let same = record.item.rank().and_then(|rank| self.ranks.get(&rank));
        let others = same.into_iter().flatten().filter(|other| **other != number).filter_map(|other| self.policies.get(*other));
        found.extend(others.map(|other| Problem::SamePriority(other.item.key().clone())));
        let key = record.item.key().clone();
        if found.is_empty() {
            self.forget_problems(&key);
        } else {
            Arc::make_mut(&mut self.problems).insert(key, found.into_iter().collect());
        }
    }

    fn forget_problems(&mut self, key: &PolicyKey) {
        if self.problems.contains_key(key) {
            Arc::make_mut(&mut self.problems).remove(key);
        }
    }

    /// Groups that a change of a kind's claims at a place may be about.
    fn note_claims(&self, claims: impl Iterator<Item = (super::claims::Place, u32)>, work: &mut Work) {
        for (place, kind) in claims {
            if let Some(record) = self.kinds.get(kind as usize) {
                let kept = record.groups.iter().filter(|group| !work.whole.contains(group));
                work.places.extend(kept.map(|group| (*group, place)));
            }
        }
    }

    fn take_in_kinds(&mut self, running: &Running, touched: &Touched, work: &mut Work) {
        let relabelled = touched.namespaces.iter().flat_map(|space| running.kinds_in(*space));
        let kinds: BTreeSet<u32> = touched.kinds.iter().chain(relabelled).copied().collect();
        if let Some(highest) = kinds.last()
            && self.kinds.len() <= *highest as usize
        {
            self.kinds.resize_with(*highest as usize + 1, KindRecord::default);
        }
        for number in kinds {
            match running.kind(number) {
                None => self.drop_kind(number),
                Some(_) => self.match_kind(running, number, work),
            }
        }
    }

    fn drop_kind(&mut self, number: u32) {
        let record = std::mem::take(&mut self.kinds[number as usize]);
        for policy in record.policies.iter() {
            if let Some(policy) = self.policies.get_mut(*policy) {
                remove(&mut policy.kinds, number);
            }
        }
        for group in record.groups {
            if let Some(group) = self.groups.get_mut(group) {
                remove(&mut group.kinds, number);
            }
        }
    }

    /// Asks the selectors that are registered about a kind.
    fn match_kind(&mut self, running: &Running, number: u32, work: &mut Work) {
        let Some(kind) = running.kind(number) else { return };
        let (space, space_labels, labels) = (kind.namespace, running.namespace_labels(kind.namespace), running.labels(kind));
        let is_meant = |scope: Option<&Scope>| scope.is_some_and(|it| it.matches(space, space_labels, labels));
        let mut policies: Vec<u32> = self.subjects.candidates(space, space_labels, labels).collect();
        policies.retain(|policy| is_meant(self.policies.get(*policy).map(|it| &it.subject)));
        policies.sort_by(|one, other| self.order(*one, *other));
        let mut groups: Vec<u32> = self.peers.candidates(space, space_labels, labels).collect();
        groups.retain(|group| is_meant(self.groups.get(*group).and_then(|it| it.meaning.scope())));
        groups.sort_unstable();
        let record = &mut self.kinds[number as usize];
        if *record.policies != *policies || record.last.is_none() {
            let before = std::mem::replace(&mut record.policies, policies.as_slice().into());
            work.kinds.insert(number);
            for policy in before.iter().filter(|it| !policies.contains(it)) {
                if let Some(policy) = self.policies.get_mut(*policy) {
                    remove(&mut policy.kinds, number);
                }
            }
            for policy in policies {
                if let Some(policy) = self.policies.get_mut(policy) {
                    insert(&mut policy.kinds, number);
                }
            }
        }
        let record = &mut self.kinds[number as usize];
        if record.groups == groups {
            return;
        }
        let before = std::mem::replace(&mut record.groups, groups.clone());
        let left = before.iter().filter(|group| groups.binary_search(group).is_err());
        let joined = groups.iter().filter(|group| before.binary_search(group).is_err());
        let places: BTreeSet<_> = kind
            .workloads
            .iter()
            .filter_map(|workload| running.workload(*workload))
            .flat_map(|held| held.workload.addresses.iter().filter_map(|at| Some(running.place_of(at)?.0)))
            .collect();
        for (group, joins) in left.map(|it| (*it, false)).chain(joined.map(|it| (*it, true))) {
            let Some(record) = self.groups.get_mut(group) else { continue };
            match joins {
                true => insert(&mut record.kinds, number),
                false => remove(&mut record.kinds, number),
            };
            work.places.extend(places.iter().map(|place| (group, *place)));
        }
    }

    fn order(&self, one: u32, other: u32) -> std::cmp::Ordering {
        match (self.policies.get(one), self.policies.get(other)) {
            (Some(one), Some(other)) => one.item.order(&other.item),
            // Numbers on lists are of policies that are there.
            (None, _) | (_, None) => one.cmp(&other),
        }
    }

    fn bring_in_policies(&mut self, coming: Vec<(Option<u32>, Item)>, running: &mut Running, work: &mut Work) {
        let (mut numbers, mut fresh) = (Vec::with_capacity(coming.len()), Vec::new());
        for coming in coming.chunks(AT_ONCE) {
            let drafts = parallel::map(coming, |(_, item)| draft(item, &|name| !self.address_groups.contains_key(name)));
            for ((number, item), draft) in coming.iter().zip(drafts) {
                let groups: Vec<u32> = draft.groups.iter().map(|wanted| self.hold_group(item.key(), wanted, running, &mut fresh)).collect();
                let template = draft.numbered(&groups);
                for group in &template.groups {
                    if let Some(group) = self.groups.get_mut(*group) {
                        group.uses += 1;
                    }
                }
                let subject = subject(item, running);
                let record = PolicyRecord { item: item.clone(), subject, template, kinds: Vec::new() };
                let number = match number {
                    Some(number) => {
                        self.policies.put(*number, record);
                        *number
                    }
                    None => self.policies.add(record),
                };
                self.policy_ids.insert((item.rank().is_some(), item.key().clone()), number);
                for name in item.referents() {
                    self.referring.entry(name).or_default().insert(number);
                }
                if let Some(rank) = item.rank() {
                    self.ranks.entry(rank).or_default().insert(number);
                }
                numbers.push(number);
            }
        }
        drop(coming);
        for number in &numbers {
            self.review_problems(*number);
            let rank = self.policies.get(*number).and_then(|it| it.item.rank());
            let same: Vec<u32> = rank.and_then(|rank| self.ranks.get(&rank)).into_iter().flatten().copied().collect();
            same.into_iter().for_each(|other| self.review_problems(other));
        }
        self.match_groups(&fresh, running, work);
        self.match_policies(&numbers, running, work);
        let released = std::mem::take(&mut work.freed_groups);
        self.let_groups_go(released, running, work);
    }

    /// The number of a group, which is there afterwards.
    fn hold_group(&mut self, key: &PolicyKey, wanted: &Wanted<'_>, running: &mut Running, fresh: &mut Vec<u32>) -> u32 {
        if let Some(number) = self.group_ids.get(&wanted.id) {
            return *number;
        }
        let number = self.groups.add(GroupRecord::new(&key.namespace, wanted, running));
        self.group_ids.insert(wanted.id.clone(), number);
        fresh.push(number);
        number
    }

    /// Finds the kinds that new groups mean.
    fn match_groups(&mut self, fresh: &[u32], running: &Running, work: &mut Work) {
        let kinds = parallel::map(fresh, |group| {
            self.groups.get(*group).and_then(|it| it.meaning.scope()).map(|scope| running.matching(scope)).unwrap_or_default()
        });
        for (number, kinds) in fresh.iter().zip(kinds) {
            work.whole.insert(*number);
            for kind in &kinds {
                insert(&mut self.kinds[*kind as usize].groups, *number);
            }
            let Some(group) = self.groups.get_mut(*number) else { continue };
            group.kinds = kinds;
            if let Some(scope) = group.meaning.scope() {
                self.peers.register(scope, *number);
            }
            match group.meaning.source() {
                Some(Source::Group(name)) => drop(self.of_address_groups.entry(name.clone()).or_default().insert(*number)),
                Some(Source::World) => drop(self.of_world.insert(*number)),
                Some(Source::Cidr(_) | Source::Any) | None => {}
            }
            if group.meaning.is_of_nodes() {
                self.of_nodes.insert(*number);
            }
        }
    }

    /// Finds the kinds that policies select.
    fn match_policies(&mut self, numbers: &[u32], running: &Running, work: &mut Work) {
        let kinds = parallel::map(numbers, |policy| self.policies.get(*policy).map(|it| running.matching(&it.subject)).unwrap_or_default());
        let mut joining: IdMap<u32, Vec<u32>> = IdMap::default();
        for (number, kinds) in numbers.iter().zip(kinds) {
            for kind in &kinds {
                joining.entry(*kind).or_default().push(*number);
            }
            if let Some(policy) = self.policies.get_mut(*number) {
                policy.kinds = kinds;
                self.subjects.register(&policy.subject, *number);
            }
        }
        for (kind, joining) in joining {
            let mut policies: Vec<u32> = self.kinds[kind as usize].policies.iter().copied().chain(joining).collect();
            policies.sort_by(|one, other| self.order(*one, *other));
            policies.dedup();
            self.kinds[kind as usize].policies = policies.into();
            work.kinds.insert(kind);
        }
    }

    fn let_groups_go(&mut self, released: Vec<u32>, running: &mut Running, work: &mut Work) {
        for number in released {
            let Some(group) = self.groups.get_mut(number) else { continue };
            group.uses -= 1;
            if group.uses > 0 {
                continue;
            }
            for kind in &group.kinds {
                remove(&mut self.kinds[*kind as usize].groups, number);
            }
            if let Some(scope) = group.meaning.scope() {
                self.peers.unregister(scope, number);
                scope.let_go(&mut running.texts);
            }
            if let Some(Source::Group(name)) = group.meaning.source()
                && let Some(groups) = self.of_address_groups.get_mut(name)
            {
                groups.remove(&number);
                if groups.is_empty() {
                    self.of_address_groups.remove(name);
                }
            }
            self.of_world.remove(&number);
            self.of_nodes.remove(&number);
            self.group_ids.remove(&group.shared.id);
            work.whole.remove(&number);
            // Its slot is needed until the nodes have let go of it too.
            work.freed_groups.push(number);
        }
    }

    fn renew_groups(&mut self, running: &Running, work: &mut Work) {
        let whole: Vec<u32> = work.whole.iter().copied().collect();
        for whole in whole.chunks(AT_ONCE) {
            let worked = parallel::map(whole, |number| self.groups.get(*number).map(|group| group.work_out(running, self.referents())));
            for (number, worked) in whole.iter().zip(worked) {
                self.install(*number, worked, work);
            }
        }
        let mut places = std::mem::take(&mut work.places);
        places.retain(|(group, _)| !work.whole.contains(group));
        places.sort_unstable();
        places.dedup();
        let each: Vec<&[(u32, super::claims::Place)]> = places.chunk_by(|one, other| one.0 == other.0).collect();
        let worked = parallel::map(&each, |places| {
            let (group, _) = places.first()?;
            let at: Vec<super::claims::Place> = places.iter().map(|(_, place)| *place).collect();
            Some((*group, self.groups.get(*group)?.work_out_at(running, &at)))
        });
        for (number, worked) in worked.into_iter().flatten() {
            self.install(number, Some(worked), work);
        }
    }

    fn install(&mut self, number: u32, worked: Option<super::groups::Worked<S>>, work: &mut Work) {
        let Some((group, worked)) = self.groups.get_mut(number).zip(worked) else { return };
        let Moved { shared, hidden } = group.install(worked);
        if shared {
            for node in group.nodes.iter() {
                work.nodes.entry(node).or_default().groups.push(number);
            }
        } else {
            for node in hidden.into_iter().filter(|node| group.nodes.contains(*node)) {
                work.nodes.entry(node).or_default().groups.push(number);
            }
        }
    }

    fn renew_segments(&mut self, running: &Running, touched: &Touched, work: &mut Work) {
        for (workload, node, id) in &touched.gone {
            self.move_workload(*workload, *node, NONE, work);
            work.nodes.entry(*node).or_default().gone.push(id.clone());
        }
        let mut kinds: IdMap<u32, Vec<u32>> = IdMap::default();
        for workload in &touched.workloads {
            let Some(held) = running.workload(*workload) else { continue };
            work.nodes.entry(held.node).or_default().endpoints.push(*workload);
            if !work.kinds.contains(&held.kind) {
                kinds.entry(held.kind).or_default().push(*workload);
            }
        }
        for number in &work.kinds {
            if let Some(kind) = running.kind(*number) {
                kinds.insert(*number, kind.workloads.iter().copied().collect());
            }
        }
        let kinds: Vec<(u32, Vec<u32>, bool)> =
            kinds.into_iter().map(|(kind, workloads)| (kind, workloads, work.kinds.contains(&kind))).collect();
        let placed = parallel::map(&kinds, |(kind, workloads, anew)| self.place(running, *kind, workloads, *anew));
        let (mut to_build, mut moves) = (IdSet::default(), Vec::new());
        for ((kind, _, anew), (named, placed)) in kinds.iter().zip(placed) {
            let record = &mut self.kinds[*kind as usize];
            if let Some(named) = named {
                record.named = named;
            }
            if let Some(Placed { id, variant, .. }) = placed.last() {
                record.last = Some((variant.clone(), id.clone()));
            }
            let policies = record.policies.clone();
            for Placed { id, title, variant, workloads } in placed {
                let known = self.segment_ids.get(&id).copied();
                let segment = known
                    .unwrap_or_else(|| self.segments.add(SegmentRecord::new(id.clone(), &title, policies.clone(), variant.into_ports())));
                if known.is_none() {
                    self.segment_ids.insert(id, segment);
                }
                if *anew || known.is_none() {
                    if let Some(record) = self.segments.get_mut(segment) {
                        record.policies = policies.clone();
                    }
                    to_build.insert(segment);
                }
                moves.extend(workloads.into_iter().map(|workload| (workload, segment)));
            }
        }
        self.build_segments(to_build.into_iter().collect(), work);
        for (workload, segment) in moves {
            let Some(held) = running.workload(workload) else { continue };
            self.move_workload(workload, held.node, segment, work);
        }
    }

    /// The segments of workloads of one kind. `anew` when its policies may be others, or name other ports.
    fn place(&self, running: &Running, kind: u32, workloads: &[u32], anew: bool) -> (Option<Box<[PortName]>>, Vec<Placed>) {
        let record = &self.kinds[kind as usize];
        let named = anew.then(|| {
            let all = self.selecting(&record.policies).flat_map(|(_, template)| &template.named);
            all.cloned().collect::<BTreeSet<PortName>>().into_iter().collect::<Box<[PortName]>>()
        });
        let names = named.as_ref().unwrap_or(&record.named);
        let mut placed: Vec<Placed> = Vec::new();
        let mut known: BTreeMap<Variant, usize> = BTreeMap::new();
        for (number, workload) in workloads.iter().filter_map(|it| Some((*it, &running.workload(*it)?.workload))) {
            let variant = Variant::of(workload, names);
            if let Some(last) = placed.last_mut().filter(|last| last.variant == variant) {
                last.workloads.push(number);
                continue;
            }
            if let Some(at) = known.get(&variant) {
                placed[*at].workloads.push(number);
                continue;
            }
            let title = segments::title(workload);
            let id = match &record.last {
                Some((last, id)) if !anew && *last == variant => id.clone(),
                Some(_) | None => segments::name(&title, self.selecting(&record.policies), variant.ports()),
            };
            if workloads.len() > 1 && variant.is_common() {
                known.insert(variant.clone(), placed.len());
            }
            placed.push(Placed { id, title, variant, workloads: vec![number] });
        }
        (named, placed)
    }

    /// Builds segments as they are where every group is the shared one. Those with the same policies and ports share their rules.
    fn build_segments(&mut self, mut numbers: Vec<u32>, work: &mut Work) {
        let alike = |number: &u32| self.segments.get(*number).map(|it| (it.policies.as_ptr(), &it.ports));
        numbers.sort_by(|one, other| alike(one).cmp(&alike(other)));
        let runs: Vec<Vec<u32>> = numbers.chunk_by(|one, other| alike(one) == alike(other)).map(<[u32]>::to_vec).collect();
        for runs in runs.chunks(AT_ONCE) {
            let built = parallel::map(runs, |numbers| self.build_alike(numbers));
            for (number, segment, stamp, groups) in built.into_iter().flatten() {
                self.install_segment(number, segment, stamp, &groups, work);
            }
        }
    }

    fn build_alike(&self, numbers: &[u32]) -> Vec<Built<S>> {
        let Some(first) = numbers.first().and_then(|number| self.segments.get(*number)) else { return Vec::new() };
        let policies = self.selecting(&first.policies);
        let mut groups: Vec<u32> = policies.flat_map(|(_, template)| template.groups.iter().copied()).collect();
        groups.sort_unstable();
        groups.dedup();
        let groups: Arc<[u32]> = groups.into();
        let (rules, audit) = self.build(first, &|group, ids| ids.extend(self.group(group).map(|known| known.shared.id.clone())));
        let of_rules = S::rules(&rules, audit.as_deref());
        let all = numbers.iter().filter_map(|number| Some((*number, self.segments.get(*number)?)));
        let build = |(number, record): (u32, &SegmentRecord<S>)| {
            let (id, title) = (record.id.clone(), record.shared.title.clone());
            let stamp = S::segment(&id, &title, &of_rules);
            (number, Segment { id, title, rules: rules.clone(), audit: audit.clone() }, stamp, groups.clone())
        };
        all.map(build).collect()
    }

    fn install_segment(&mut self, number: u32, built: Segment, stamp: S::Stamp, groups: &Arc<[u32]>, work: &mut Work) {
        if let Some(segment) = self.segments.get_mut(number) {
            if segment.stamp.is_none() || *segment.shared != built {
                (segment.shared, segment.stamp) = (Arc::new(built), Some(stamp));
            }
            let before = std::mem::replace(&mut segment.groups, groups.clone());
            for node in segment.nodes.iter() {
                let dirty = work.nodes.entry(node).or_default();
                // Its form on the node may be another even where the shared one is the same.
                dirty.segments.push(number);
                if before != segment.groups {
                    for group in segment.groups.iter().filter(|group| before.binary_search(group).is_err()) {
                        if self.groups.get_mut(*group).is_some_and(|it| it.nodes.add(node)) {
                            dirty.groups.push(*group);
                        }
                    }
                    for group in before.iter().filter(|group| segment.groups.binary_search(group).is_err()) {
                        if self.groups.get_mut(*group).is_some_and(|it| it.nodes.remove(node)) {
                            dirty.groups.push(*group);
                        }
                    }
                }
            }
        }
    }

    /// Puts a workload of a node into a segment, and takes it out of the one where it was.
    fn move_workload(&mut self, workload: u32, node: u32, to: u32, work: &mut Work) {
        if self.workload_segments.len() <= workload as usize {
            self.workload_segments.resize(workload as usize + 1, NONE);
        }
        let from = std::mem::replace(&mut self.workload_segments[workload as usize], to);
        if from == to {
            return;
        }
        let dirty = work.nodes.entry(node).or_default();
        if to != NONE {
            dirty.endpoints.push(workload);
        }
        if let Some(segment) = self.segments.get_mut(to)
            && segment.nodes.add(node)
        {
            dirty.segments.push(to);
            for group in segment.groups.iter() {
                if self.groups.get_mut(*group).is_some_and(|it| it.nodes.add(node)) {
                    dirty.groups.push(*group);
                }
            }
        }
        if let Some(segment) = self.segments.get_mut(from)
            && segment.nodes.remove(node)
        {
            dirty.segments.push(from);
            for group in segment.groups.iter() {
                if self.groups.get_mut(*group).is_some_and(|it| it.nodes.remove(node)) {
                    dirty.groups.push(*group);
                }
            }
            if segment.nodes.is_empty() {
                work.emptied.push(from);
            }
        }
    }

    fn renew_nodes(&mut self, running: &Running, work: &mut Work) {
        let mut nodes = std::mem::take(&mut self.nodes);
        nodes.resize_with(running.nodes().len(), NodeRecord::default);
        let dirty = std::mem::take(&mut work.nodes);
        let weight = dirty.values().map(|it| it.groups.len() + it.segments.len() + it.endpoints.len()).sum();
        let mut jobs: Vec<(u32, &mut NodeRecord<S>, Dirty, Vec<ObjectKey>)> = Vec::with_capacity(dirty.len());
        if dirty.len() * 4 < nodes.len() {
            // A few of many: found one by one, from the back.
            let mut order: Vec<(u32, Dirty)> = dirty.into_iter().collect();
            order.sort_unstable_by_key(|(number, _)| *number);
            let mut rest = nodes.as_mut_slice();
            let mut passed = 0;
            for (number, dirty) in order {
                let (_, from) = rest.split_at_mut(number as usize - passed);
                let Some((record, after)) = from.split_first_mut() else { break };
                jobs.push((number, record, dirty, Vec::new()));
                (rest, passed) = (after, number as usize + 1);
            }
        } else {
            let mut dirty = dirty;
            for (number, record) in (0_u32..).zip(&mut nodes) {
                if let Some(dirty) = dirty.remove(&number) {
                    jobs.push((number, record, dirty, Vec::new()));
                }
            }
        }
        parallel::for_each(&mut jobs, weight, |(number, record, dirty, keys)| {
            *keys = self.renew_node(running, *number, record, std::mem::take(dirty));
        });
        for (number, _, _, keys) in jobs {
            if !keys.is_empty() {
                self.changed.entry(number).or_default().extend(keys);
            }
        }
        self.nodes = nodes;
    }

    fn free(&mut self, work: Work) {
        for policy in work.freed_policies {
            self.policies.release(policy);
        }
        for group in work.freed_groups {
            if self.groups.take(group).is_some() {
                self.groups.release(group);
            }
        }
        for number in work.emptied {
            // It may have been taken up again, or be named twice.
            if self.segments.get(number).is_some_and(|segment| segment.nodes.is_empty())
                && let Some(segment) = self.segments.take(number)
            {
                self.segment_ids.remove(&segment.id);
                self.segments.release(number);
            }
        }
    }
}

/// The workloads that a policy is about.
fn subject(item: &Item, running: &mut Running) -> Scope {
    match item {
        Item::Namespaced(policy) => scope(&policy.key.namespace, &NamespaceScope::Own, &policy.subject, running),
        Item::Tiered(policy) => {
            let namespaces = NamespaceScope::Matching(policy.subject.namespaces.clone());
            scope(&policy.key.namespace, &namespaces, &policy.subject.workloads, running)
        }
    }
}
