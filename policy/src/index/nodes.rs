//! What each node has, changed in place where something of it changed.

use super::groups::View;
use super::ids::IdMap;
use super::objects::{Objects, last_words};
use super::running::{Held, Running};
use super::segments::SegmentRecord;
use super::stamps::Stamps;
use super::written::Written;
use crate::headed::Headed;
use crate::model::{NodeName, WorkloadId};
use crate::node_state::{Group, GroupId, LocalEndpoint, NodeState, ObjectKey, ObjectKind, Segment, SegmentId};
use crate::shared_map::SharedMap;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Everything one node needs, with the content hash of each object.
#[derive(Debug)]
pub struct Holding<S: Stamps> {
    /// Groups, segments, endpoints, addresses.
    pub state: Arc<NodeState>,
    /// Key and hash of every object, the node itself among them.
    pub objects: Objects<S::Stamp>,
    /// What stands for all of them.
    pub total: S::Total,
}

impl<S: Stamps> Clone for Holding<S> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), objects: self.objects.clone(), total: self.total }
    }
}

impl<S: Stamps> Default for Holding<S> {
    fn default() -> Self {
        Self { state: Arc::default(), objects: Objects::default(), total: S::Total::default() }
    }
}

/// A node's holding and where it departs from what all nodes share.
#[derive(Debug)]
pub(super) struct NodeRecord<S: Stamps> {
    pub(super) holding: Holding<S>,
    /// The node is declared or has workloads.
    pub(super) there: bool,
    /// The ids of the groups that this node has in a form of its own.
    own_groups: IdMap<u32, Box<[GroupId]>>,
}

impl<S: Stamps> Default for NodeRecord<S> {
    fn default() -> Self {
        Self { holding: Holding::default(), there: false, own_groups: IdMap::default() }
    }
}

/// What of a node has to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) groups: Vec<u32>,
    pub(super) segments: Vec<u32>,
    pub(super) endpoints: Vec<u32>,
    pub(super) gone: Vec<WorkloadId>,
    /// Its declaration.
    pub(super) itself: bool,
    /// Every group that it uses.
    pub(super) all_groups: bool,
}

type Edits<K, V, S> = Vec<Edit<K, V, <S as Stamps>::Stamp>>;
/// An object's content, or that it goes.
type Edit<K, V, T> = (K, Option<(Arc<V>, T)>);

impl<S: Stamps> Written<S> {
    /// Brings a node up to date; gives the keys of the objects that came, changed or went.
    pub(super) fn renew_node(&self, running: &Running, number: u32, record: &mut NodeRecord<S>, mut dirty: Dirty) -> Vec<ObjectKey> {
        let host = running.node(number);
        if !host.is_there() {
            let before = std::mem::take(record);
            return before.holding.objects.iter().map(|(key, _)| key.clone()).collect();
        }
        if dirty.all_groups {
            dirty.groups.extend(self.segments_on(running, number).iter().flat_map(|segment| segment.groups.iter()));
        }
        if dirty.itself {
            dirty.groups.extend(record.own_groups.keys());
        }
        let itself = dirty.itself || !record.there;
        record.there = true;
        let (groups, redone) = self.group_edits(running, number, record, &mut dirty.groups);
        if !redone.is_empty() {
            let uses = |segment: &SegmentRecord<S>| redone.iter().any(|group| segment.groups.binary_search(group).is_ok());
            dirty.segments.extend(self.segment_numbers_on(running, number).into_iter().filter(|it| self.segment(*it).is_some_and(uses)));
        }
        let segments = self.segment_edits(number, record, &mut dirty.segments);
        // Said both of a workload that changed and of one that moved.
        dirty.endpoints.sort_unstable();
        dirty.endpoints.dedup();
        let endpoints = self.endpoint_edits(running, &host.name, &dirty);
        let Holding { state, objects, total } = &mut record.holding;
        let mut stamps: Vec<(ObjectKey, Option<S::Stamp>)> = Vec::with_capacity(groups.len() + segments.len() + endpoints.len() + 1);
        apply(state, |it| &it.groups, |it| &mut it.groups, groups, &mut stamps, |id| ObjectKey::new(ObjectKind::Group, id.0.clone()));
        apply(
            state,
            |it| &it.segments,
            |it| &mut it.segments,
            segments,
            &mut stamps,
            |id| ObjectKey::new(ObjectKind::Segment, id.0.clone()),
        );
        apply(
            state,
            |it| &it.endpoints,
            |it| &mut it.endpoints,
            endpoints,
            &mut stamps,
            |id| ObjectKey::new(ObjectKind::Endpoint, id.container.shared().clone()),
        );
        if itself {
            let addresses: BTreeSet<_> = host.addresses().iter().copied().collect();
            if addresses != state.addresses || objects.is_empty() {
                let key = ObjectKey::new(ObjectKind::Node, host.name.shared().clone());
                stamps.push((key, Some(S::node(&host.name, &addresses))));
                if addresses != state.addresses {
                    Arc::make_mut(state).addresses = addresses;
                }
            }
        }
        restamp::<S>(objects, total, stamps)
    }

    /// What becomes of groups, and those of them whose ids on the node are others now.
    fn group_edits(
        &self,
        running: &Running,
        number: u32,
        record: &mut NodeRecord<S>,
        dirty: &mut Vec<u32>,
    ) -> (Edits<GroupId, Group, S>, Vec<u32>) {
        dirty.sort_unstable();
        dirty.dedup();
        let mut edits = Vec::with_capacity(dirty.len());
        let mut redone = Vec::new();
        for group in dirty.iter() {
            let Some(known) = self.group(*group) else { continue };
            let before = record.own_groups.remove(group);
            let mut now: Vec<Edit<GroupId, _, _>> = Vec::new();
            let mut own = None;
            if known.nodes.contains(number) {
                match known.on_node(number, running) {
                    View::Shared => now.push((known.shared.id.clone(), Some((known.shared.clone(), known.stamp())))),
                    View::Own(groups) => {
                        own = Some(groups.iter().map(|(group, _)| group.id.clone()).collect::<Box<[GroupId]>>());
                        now.extend(groups.into_iter().map(|(group, stamp)| (group.id.clone(), Some((group, stamp)))));
                    }
                }
            }
            let shared = [known.shared.id.clone()];
            for id in before.as_deref().unwrap_or(&shared) {
                if !now.iter().any(|(it, _)| it == id) {
                    edits.push((id.clone(), None));
                }
            }
            if before != own {
                redone.push(*group);
            }
            if let Some(own) = own {
                record.own_groups.insert(*group, own);
            }
            edits.extend(now);
        }
        (edits, redone)
    }

    fn segment_edits(&self, number: u32, record: &NodeRecord<S>, dirty: &mut Vec<u32>) -> Edits<SegmentId, Segment, S> {
        dirty.sort_unstable();
        dirty.dedup();
        let mut edits = Vec::with_capacity(dirty.len());
        for segment in dirty.iter().filter_map(|segment| self.segment(*segment)) {
            if !segment.nodes.contains(number) {
                edits.push((segment.id().clone(), None));
                continue;
            }
            let is_own = |group: &u32| record.own_groups.contains_key(group);
            let own = !record.own_groups.is_empty() && segment.groups.iter().any(is_own);
            let content = match segment.stamp {
                Some(stamp) if !own => (segment.shared.clone(), stamp),
                Some(_) | None => {
                    let ids = |group: u32, ids: &mut Vec<GroupId>| match record.own_groups.get(&group) {
                        Some(own) => ids.extend_from_slice(own),
                        None => ids.extend(self.group(group).map(|known| known.shared.id.clone())),
                    };
                    let (rules, audit) = self.build(segment, &ids);
                    let stamp = S::segment(segment.id(), &segment.shared.title, &S::rules(&rules, audit.as_deref()));
                    let title = segment.shared.title.clone();
                    (Arc::new(Segment { id: segment.id().clone(), title, rules, audit }), stamp)
                }
            };
            edits.push((segment.id().clone(), Some(content)));
        }
        edits
    }

    fn endpoint_edits(&self, running: &Running, node: &NodeName, dirty: &Dirty) -> Edits<WorkloadId, LocalEndpoint, S> {
        // All with the name of the node as the node has it: what is the same memory is compared without a look.
        let named = |id: &WorkloadId| WorkloadId { node: node.clone(), container: id.container.clone() };
        // Whoever went and came again in one batch is there: the later edit counts.
        let mut edits: Edits<WorkloadId, LocalEndpoint, S> = dirty.gone.iter().map(|id| (named(id), None)).collect();
        for number in &dirty.endpoints {
            let Some(Held { workload, .. }) = running.workload(*number) else { continue };
            let Some(segment) = self.segment_of(*number) else { continue };
            let mut published_ports = workload.published_ports.clone();
            published_ports.sort_unstable();
            published_ports.dedup();
            let reaching = workload.addresses.iter().filter(|at| at.network.reaches(&workload.id.node));
            let endpoint = LocalEndpoint {
                id: named(&workload.id),
                name: workload.name.clone(),
                namespace: workload.namespace.clone(),
                segment: segment.id().clone(),
                addresses: reaching.map(|at| at.address).collect(),
                published_ports,
            };
            let stamp = S::endpoint(&endpoint);
            edits.push((endpoint.id.clone(), Some((Arc::new(endpoint), stamp))));
        }
        edits
    }
}

/// Changes one of the maps of a state, which is copied first if somebody else has it too and something changes at all.
fn apply<K: Headed + Clone, V: PartialEq, T>(
    state: &mut Arc<NodeState>,
    map: impl Fn(&NodeState) -> &SharedMap<K, V>,
    map_mut: impl Fn(&mut NodeState) -> &mut SharedMap<K, V>,
    mut edits: Vec<Edit<K, V, T>>,
    stamps: &mut Vec<(ObjectKey, Option<T>)>,
    key: impl Fn(&K) -> ObjectKey,
) {
    if edits.is_empty() {
        return;
    }
    if map(state).is_empty() {
        // All at once: the tree is packed, and nothing has to be found in it. Of several words about one object the last counts.
        edits.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut fresh: Vec<(K, Arc<V>)> = Vec::with_capacity(edits.len());
        for (id, content) in edits {
            let known = fresh.last().is_some_and(|(last, _)| *last == id);
            if known {
                fresh.pop();
            }
            match content {
                Some((content, stamp)) => {
                    stamps.push((key(&id), Some(stamp)));
                    fresh.push((id, content));
                }
                None if known => stamps.push((key(&id), None)),
                None => {}
            }
        }
        if !fresh.is_empty() {
            *map_mut(Arc::make_mut(state)) = fresh.into_iter().collect();
        }
        return;
    }
    for (id, content) in edits {
        match (map(state).place_of(&id), content) {
            (Ok(place), Some((content, stamp))) => {
                let before = map(state).at(place);
                if Arc::ptr_eq(before, &content) || *before == content {
                    continue;
                }
                stamps.push((key(&id), Some(stamp)));
                map_mut(Arc::make_mut(state)).replace_at(place, content);
            }
            (Err(place), Some((content, stamp))) => {
                stamps.push((key(&id), Some(stamp)));
                map_mut(Arc::make_mut(state)).insert_at(place, id, content);
            }
            (Ok(place), None) => {
                stamps.push((key(&id), None));
                map_mut(Arc::make_mut(state)).remove_at(place);
            }
            (Err(_), None) => {}
        }
    }
}

/// Changes the keys and hashes, and what stands for them; of several words about one key the last counts. Gives the keys.
fn restamp<S: Stamps>(
    objects: &mut Objects<S::Stamp>,
    total: &mut S::Total,
    mut edits: Vec<(ObjectKey, Option<S::Stamp>)>,
) -> Vec<ObjectKey> {
    if edits.is_empty() {
        return Vec::new();
    }
    last_words(&mut edits);
    if objects.is_empty() {
        *objects = edits.iter().filter_map(|(key, stamp)| Some((key.clone(), (*stamp)?))).collect();
        objects.iter().for_each(|(key, stamp)| S::came(total, key, stamp));
    } else {
        for (key, stamp) in &edits {
            if let Some(before) = objects.change(key, *stamp) {
                S::went(total, key, before);
            }
            if let Some(stamp) = stamp {
                S::came(total, key, *stamp);
            }
        }
    }
    edits.into_iter().map(|(key, _)| key).collect()
}
