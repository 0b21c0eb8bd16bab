//! The second half of settling: groups, segments and nodes are worked out anew where something of theirs may have changed.

use super::{AT_ONCE, Built, Placed, Work, Written};
use crate::index::ahead;
use crate::index::claims::Place;
use crate::index::groups::{Moved, Worked};
use crate::index::ids::{IdMap, IdSet, NONE};
use crate::index::nodes::{Dirty, NodeRecord};
use crate::index::parallel;
use crate::index::running::{Running, Touched};
use crate::index::segments::{self, Ports, SegmentRecord, Variant};
use crate::index::stamps::Stamps;
use crate::index::template::PortName;
use crate::node_state::ObjectKey;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl<S: Stamps> Written<S> {
    pub(super) fn renew_groups(&mut self, running: &Running, work: &mut Work) {
        // In order, as they are in memory.
        let mut whole: Vec<u32> = work.whole.iter().copied().collect();
        whole.sort_unstable();
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
        let each: Vec<&[(u32, Place)]> = places.chunk_by(|one, other| one.0 == other.0).collect();
        let worked = parallel::map(&each, |places| {
            let (group, _) = places.first()?;
            let at: Vec<Place> = places.iter().map(|(_, place)| *place).collect();
            Some((*group, self.groups.get(*group)?.work_out_at(running, &at)))
        });
        for (number, worked) in worked.into_iter().flatten() {
            self.install(number, Some(worked), work);
        }
    }

    fn install(&mut self, number: u32, worked: Option<Worked<S>>, work: &mut Work) {
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

    pub(super) fn renew_segments(&mut self, running: &Running, touched: &Touched, work: &mut Work) {
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
        let mut kinds: Vec<(u32, Vec<u32>, bool)> =
            kinds.into_iter().map(|(kind, workloads)| (kind, workloads, work.kinds.contains(&kind))).collect();
        kinds.sort_unstable_by_key(|(kind, ..)| *kind);
        let (mut to_build, mut moves) = (IdSet::default(), Vec::new());
        for kinds in kinds.chunks(AT_ONCE) {
            let placed = parallel::map(kinds, |(kind, workloads, anew)| self.place(running, *kind, workloads, *anew));
            for ((kind, _, anew), (named, placed)) in kinds.iter().zip(placed) {
                let record = &mut self.kinds[*kind as usize];
                if let Some(named) = named {
                    record.named = named;
                }
                if let Some(Placed { id, variant, .. }) = placed.last().filter(|last| last.variant.is_common()) {
                    record.last = Some(Box::new((variant.clone(), id.clone())));
                }
                let policies = record.policies.clone();
                for Placed { id, title, variant, workloads } in placed {
                    let known = self.segment_ids.get(&id, |it| self.segments.get(it).is_some_and(|it| *it.id() == id));
                    let segment = known.unwrap_or_else(|| {
                        let fresh = SegmentRecord::new(id.clone(), title, policies.clone(), variant.into_ports(), &self.no_rules);
                        self.segments.add(fresh)
                    });
                    if known.is_none() {
                        self.segment_ids.insert(&id, segment);
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
            let id = match record.last.as_deref() {
                Some((last, id)) if !anew && *last == variant => id.clone(),
                Some(_) | None => segments::name(&title, self.selecting(&record.policies).map(|(_, template)| template), variant.ports()),
            };
            if workloads.len() > 1 && variant.is_common() {
                known.insert(variant.clone(), placed.len());
            }
            placed.push(Placed { id, title, variant, workloads: vec![number] });
        }
        (named, placed)
    }

    /// Builds segments as they are where every group is the shared one. Those with the same policies and ports share their rules.
    fn build_segments(&mut self, numbers: Vec<u32>, work: &mut Work) {
        // Where the policies are in memory is all that mostly has to be compared; it is not looked for again in each comparison.
        let mut alike: Vec<(*const u32, u32, &Ports)> = numbers
            .iter()
            .filter_map(|it| self.segments.get(*it).map(|segment| (segment.policies.as_ptr(), *it, &segment.ports)))
            .collect();
        alike.sort_unstable_by(|one, other| (one.0, one.2, one.1).cmp(&(other.0, other.2, other.1)));
        let runs = alike.chunk_by(|one, other| (one.0, one.2) == (other.0, other.2));
        let runs: Vec<Vec<u32>> = runs.map(|run| run.iter().map(|(_, number, _)| *number).collect()).collect();
        for runs in runs.chunks(AT_ONCE) {
            let built = parallel::map(runs, |numbers| self.build_alike(numbers));
            for built in built.into_iter().flatten() {
                self.install_segment(built, work);
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
            let stamp = S::segment(record.id(), &record.shared.title, &of_rules);
            Built { number, rules: rules.clone(), audit: audit.clone(), stamp, groups: groups.clone() }
        };
        all.map(build).collect()
    }

    fn install_segment(&mut self, built: Built<S>, work: &mut Work) {
        let Built { number, rules, audit, stamp, groups } = built;
        if let Some(segment) = self.segments.get_mut(number) {
            if segment.stamp.is_none() || segment.shared.rules != rules || segment.shared.audit != audit {
                // A fresh one is nobody else's yet and is filled in where it is.
                let shared = Arc::make_mut(&mut segment.shared);
                (shared.rules, shared.audit) = (rules, audit);
                segment.stamp = Some(stamp);
            }
            let before = std::mem::replace(&mut segment.groups, groups);
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
        let entered = self.segments.get_mut(to).and_then(|it| it.nodes.add(node).then(|| it.groups.clone()));
        let left = self.segments.get_mut(from).and_then(|it| it.nodes.remove(node).then(|| (it.groups.clone(), it.nodes.is_empty())));
        work.emptied.extend(left.as_ref().is_some_and(|(_, emptied)| *emptied).then_some(from));
        dirty.segments.extend(entered.is_some().then_some(to));
        dirty.segments.extend(left.is_some().then_some(from));
        let (entered, left) = (entered.unwrap_or_default(), left.map(|(groups, _)| groups).unwrap_or_default());
        // A group that both name is used as often as before, and is not looked at.
        for group in entered.iter().filter(|group| left.binary_search(group).is_err()) {
            if self.groups.get_mut(*group).is_some_and(|it| it.nodes.add(node)) {
                dirty.groups.push(*group);
            }
        }
        for group in left.iter().filter(|group| entered.binary_search(group).is_err()) {
            if self.groups.get_mut(*group).is_some_and(|it| it.nodes.remove(node)) {
                dirty.groups.push(*group);
            }
        }
    }

    pub(super) fn renew_nodes(&mut self, running: &Running, work: &mut Work) {
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
        let together = match parallel::is_worth_threads(weight) {
            // Every thread gets some.
            true => (jobs.len() / 64).clamp(1, ahead::TOGETHER),
            false => ahead::TOGETHER,
        };
        let mut together: Vec<_> = jobs.chunks_mut(together).collect();
        parallel::for_each(&mut together, weight, |jobs| {
            ahead::look_at_nodes(self, running, jobs.iter().map(|(_, record, dirty, _)| (&**record, dirty)));
            for (number, record, dirty, keys) in jobs.iter_mut() {
                *keys = self.renew_node(running, *number, record, std::mem::take(dirty));
            }
        });
        for (number, _, _, keys) in jobs {
            if !keys.is_empty() {
                match self.changed.entry(number) {
                    // In order already: the tree is packed at once.
                    Entry::Vacant(free) => drop(free.insert(keys.into_iter().collect())),
                    Entry::Occupied(mut said) => said.get_mut().extend(keys),
                }
            }
        }
        self.nodes = nodes;
    }

    pub(super) fn free(&mut self, work: Work) {
        for policy in work.freed_policies {
            self.policies.release(policy);
        }
        for group in work.freed_groups {
            if self.groups.take(group).is_some() {
                self.groups.release(group);
            }
        }
        let mut emptied = Vec::with_capacity(work.emptied.len());
        for number in work.emptied {
            // It may have been taken up again, or be named twice.
            if self.segments.get(number).is_some_and(|segment| segment.nodes.is_empty())
                && let Some(segment) = self.segments.take(number)
            {
                self.segment_ids.remove(segment.id(), number);
                self.segments.release(number);
                emptied.push(Some(segment));
            }
        }
        // To give their memory back is much of what it costs to replace them.
        let weight = emptied.len();
        parallel::for_each(&mut emptied, weight, |segment| drop(segment.take()));
    }
}
