//! Looking ahead: what an event is about lies on several nodes, whose maps are far apart in memory and in no cache of the processor. A search
//! there waits for memory some ten times, one wait after the other. So the searches of several nodes are taken step by step, each step for all
//! of them before the next: the waits of one step are one.

use super::nodes::{Dirty, Holding, NodeRecord};
use super::running::Running;
use super::stamps::Stamps;
use super::written::Written;
use crate::model::WorkloadId;
use crate::node_state::{GroupId, ObjectKey, ObjectKind, SegmentId};
use std::hint::black_box;

/// Of how many nodes the searches are taken together. More are more than the processor waits for at a time.
pub(super) const TOGETHER: usize = 8;

/// Of one node, how many objects are looked for ahead.
const OBJECTS: usize = 8;

/// What will be looked for on a node.
enum Sought<'a> {
    Group(&'a GroupId),
    Segment(&'a SegmentId),
    Endpoint(&'a WorkloadId),
}

/// Looks at what a renewal of the nodes is going to search. Nothing comes of it but that the processor has it at hand then.
pub(super) fn look_at_nodes<'a, S: Stamps>(
    written: &Written<S>,
    running: &Running,
    nodes: impl Iterator<Item = (&'a NodeRecord<S>, &'a Dirty)> + Clone,
) {
    // The records themselves.
    black_box(nodes.clone().map(|(record, _)| record.holding.objects.len()).sum::<usize>());
    let mut searches: Vec<Search<'_, S>> = Vec::with_capacity(2 * TOGETHER);
    for (record, dirty) in nodes.filter(|(record, _)| record.there) {
        let sought = sought(written, running, dirty).take(OBJECTS);
        searches.extend(sought.map(|sought| Search { holding: &record.holding, sought, in_map: 0, in_objects: 0 }));
    }
    let sum = |sum: u64, it: u64| sum.wrapping_add(it);
    black_box(searches.iter().map(Search::begin).fold(0, sum));
    black_box(searches.iter_mut().map(Search::find_pieces).fold(0, sum));
    black_box(searches.iter().map(Search::look_into_pieces).fold(0, sum));
}

/// What is looked for on one node.
struct Search<'a, S: Stamps> {
    holding: &'a Holding<S>,
    sought: Sought<'a>,
    /// The pieces where it is, once they are found.
    in_map: usize,
    in_objects: usize,
}

impl<S: Stamps> Search<'_, S> {
    fn begin(&self) -> u64 {
        let Holding { state, objects, .. } = self.holding;
        let map = match self.sought {
            Sought::Group(_) => state.groups.glance(),
            Sought::Segment(_) => state.segments.glance(),
            Sought::Endpoint(_) => state.endpoints.glance(),
        };
        map.wrapping_add(objects.glance())
    }

    fn find_pieces(&mut self) -> u64 {
        let Holding { state, objects, .. } = self.holding;
        let ((in_map, one), head) = match self.sought {
            Sought::Group(id) => (state.groups.glance_for(id), ObjectKey::head_of(ObjectKind::Group, &id.0)),
            Sought::Segment(id) => (state.segments.glance_for(id), ObjectKey::head_of(ObjectKind::Segment, &id.0)),
            Sought::Endpoint(id) => (state.endpoints.glance_for(id), ObjectKey::head_of(ObjectKind::Endpoint, id.container.shared())),
        };
        let (in_objects, other) = objects.glance_for(head);
        (self.in_map, self.in_objects) = (in_map, in_objects);
        one.wrapping_add(other)
    }

    fn look_into_pieces(&self) -> u64 {
        let Holding { state, objects, .. } = self.holding;
        let map = match self.sought {
            Sought::Group(_) => state.groups.glance_into(self.in_map),
            Sought::Segment(_) => state.segments.glance_into(self.in_map),
            Sought::Endpoint(_) => state.endpoints.glance_into(self.in_map),
        };
        map.wrapping_add(objects.glance_into(self.in_objects))
    }
}

fn sought<'a, S: Stamps>(written: &'a Written<S>, running: &'a Running, dirty: &'a Dirty) -> impl Iterator<Item = Sought<'a>> {
    let groups = dirty.groups.iter().filter_map(|group| Some(Sought::Group(&written.group(*group)?.shared.id)));
    let segments = dirty.segments.iter().filter_map(|segment| Some(Sought::Segment(written.segment(*segment)?.id())));
    let gone = dirty.gone.iter().map(Sought::Endpoint);
    let endpoints = dirty.endpoints.iter().filter_map(|workload| Some(Sought::Endpoint(&running.workload(*workload)?.workload.id)));
    groups.chain(segments).chain(gone).chain(endpoints)
}
