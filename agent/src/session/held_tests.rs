#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use bytes::Bytes;
use firebreak_policy::model::NamespaceName;
use firebreak_policy::node_state::{Member, Rulebook};
use std::net::IpAddr;

fn node() -> NodeName {
    NodeName::new("n1")
}

fn member(last: u8) -> Member {
    Member::Address(IpAddr::from([10, 0, 0, last]))
}

fn group(id: &str, members: &[u8]) -> Arc<Group> {
    Arc::new(Group { id: GroupId(id.into()), title: format!("title of {id}"), members: members.iter().copied().map(member).collect() })
}

fn segment(id: &str) -> Arc<Segment> {
    Arc::new(Segment { id: SegmentId(id.into()), title: format!("shop/{id}"), rules: Rulebook::default().into(), audit: None })
}

fn endpoint(id: &str, segment: &str) -> Arc<LocalEndpoint> {
    let id = WorkloadId::new(node(), id);
    Arc::new(LocalEndpoint {
        name: "db".to_owned(),
        namespace: NamespaceName::new("shop"),
        segment: SegmentId(segment.into()),
        addresses: [IpAddr::from([10, 0, 0, 2])].into(),
        published_ports: Vec::new(),
        id,
    })
}

fn state(groups: &[Arc<Group>], segments: &[Arc<Segment>], endpoints: &[Arc<LocalEndpoint>]) -> NodeState {
    NodeState {
        addresses: BTreeSet::from([IpAddr::from([192, 0, 2, 1])]),
        groups: groups.iter().map(|group| (group.id.clone(), group.clone())).collect(),
        segments: segments.iter().map(|segment| (segment.id.clone(), segment.clone())).collect(),
        endpoints: endpoints.iter().map(|endpoint| (endpoint.id.clone(), endpoint.clone())).collect(),
    }
}

fn whole(group: &Group) -> v1::ObjectUpdate {
    state::group_update(&GroupChange {
        id: group.id.clone(),
        title: group.title.clone(),
        reset: true,
        add: group.members.iter().copied().collect(),
        remove: Vec::new(),
        hash: Some(hash::whole_group_hash(group)),
    })
}

fn all_of(state: &NodeState) -> Vec<v1::ObjectUpdate> {
    let groups = state.groups.values().map(whole);
    let segments = state.segments.values().map(state::segment_update);
    let endpoints = state.endpoints.values().map(state::endpoint_update);
    groups.chain(segments).chain(endpoints).chain([state::node_update(&node(), &state.addresses)]).collect()
}

fn commit(generation: u64, state: &NodeState) -> v1::Commit {
    let objects = hash::objects_of(&node(), state);
    let hash = hash::commit_hash(objects.iter().map(|(key, hash)| (key, *hash)));
    v1::Commit { epoch: "e".to_owned(), generation, revision: generation + 100, hash: hash.to_wire() }
}

/// Holds `state` as generation 1.
fn holding(state: &NodeState) -> Held {
    let mut held = Held::nothing(node());
    all_of(state).into_iter().for_each(|update| held.update(update).unwrap());
    held.commit(commit(1, state)).unwrap();
    held
}

fn part(id: &str, reset: bool, add: &[u8], remove: &[u8], last_of: Option<&Group>) -> v1::ObjectUpdate {
    state::group_update(&GroupChange {
        id: GroupId(id.into()),
        title: format!("title of {id}"),
        reset,
        add: add.iter().copied().map(member).collect(),
        remove: remove.iter().copied().map(member).collect(),
        hash: last_of.map(hash::whole_group_hash),
    })
}

/// The same update with an enum or a choice that this version does not know.
fn broken(mut update: v1::ObjectUpdate) -> v1::ObjectUpdate {
    match update.change.as_mut().unwrap() {
        v1::object_update::Change::Group(group) => group.add.push(v1::Member { member: None }),
        v1::object_update::Change::Segment(segment) => segment.ingress = Some(v1::Isolation::default()),
        v1::object_update::Change::Endpoint(endpoint) => endpoint.segment_id.clear(),
        v1::object_update::Change::Node(node) => node.addresses.push(Bytes::from_static(&[1])),
        v1::object_update::Change::Removed(_) => panic!("cannot be broken"),
    }
    update
}

#[test]
fn what_was_sent_is_what_is_held() {
    let first = state(&[group("g", &[1, 2]), group("h", &[3])], &[segment("s")], &[endpoint("c", "s")]);
    let mut held = holding(&first);
    assert_eq!(held.committed().state, first);
    assert_eq!((held.committed().generation, held.committed().revision), (Generation(1), Revision(101)));

    let second = state(&[group("g", &[2, 9])], &[segment("s"), segment("t")], &[endpoint("d", "t")]);
    let updates = [
        part("g", false, &[], &[1], None),
        part("g", false, &[9], &[], Some(&group("g", &[2, 9]))),
        state::removal(&ObjectKey::new(ObjectKind::Group, "h")),
        state::segment_update(&segment("t")),
        state::removal(&ObjectKey::new(ObjectKind::Endpoint, "c")),
        state::endpoint_update(&endpoint("d", "t")),
    ];
    let before = held.committed().clone();
    updates.into_iter().for_each(|update| held.update(update).unwrap());
    assert_eq!(held.committed(), &before, "nothing takes effect before its commit");
    held.commit(commit(2, &second)).unwrap();
    assert_eq!(held.committed().state, second);
    assert_eq!(held.committed().refused, BTreeMap::new());
    let named: Vec<_> = held.objects().map(|(key, hash)| (key.clone(), hash)).collect();
    assert_eq!(named, hash::objects_of(&node(), &second));
}

#[test]
fn an_object_that_cannot_be_read_is_refused_by_name_and_the_rest_takes_effect() {
    let wanted = state(&[group("g", &[1]), group("h", &[2])], &[segment("s")], &[endpoint("c", "s")]);
    for (at, kind, id, field) in [
        (0, ObjectKind::Group, "g", "add[1].member"),
        (2, ObjectKind::Segment, "s", "ingress.policies"),
        (3, ObjectKind::Endpoint, "c", "segment_id"),
        (4, ObjectKind::Node, "n1", "addresses[1]"),
    ] {
        let mut held = Held::nothing(node());
        let mut updates = all_of(&wanted);
        updates[at] = broken(updates[at].clone());
        updates.into_iter().for_each(|update| held.update(update).unwrap());
        let committed = held.commit(commit(1, &wanted)).unwrap();
        let key = ObjectKey::new(kind, id);
        assert_eq!(committed.refused.iter().map(|(key, refusal)| (key, refusal.field.as_str())).collect::<Vec<_>>(), [(&key, field)]);
        assert_eq!(held.objects().count(), 4, "{key} is not named as held");
        let rest = &committed.state;
        let present = [rest.groups.len(), rest.segments.len(), rest.endpoints.len(), rest.addresses.len()];
        let expected = match kind {
            ObjectKind::Group => [1, 1, 1, 1],
            ObjectKind::Segment => [2, 0, 1, 1],
            ObjectKind::Endpoint => [2, 1, 0, 1],
            ObjectKind::Node => [2, 1, 1, 0],
        };
        assert_eq!(present, expected, "{key}");
    }
}

#[test]
fn of_a_refused_change_the_last_good_version_stays_until_a_good_one_comes() {
    let first = state(&[group("g", &[1])], &[segment("s")], &[]);
    let second = state(&[group("g", &[1, 2, 3])], &[segment("s")], &[]);
    let third = state(&[group("g", &[7])], &[segment("s")], &[]);
    let mut held = holding(&first);
    // A good part, then a broken one, then the last: the group is refused as a whole.
    held.update(part("g", false, &[2], &[], None)).unwrap();
    held.update(broken(part("g", false, &[3], &[], None))).unwrap();
    held.update(part("g", false, &[], &[], Some(&group("g", &[1, 2, 3])))).unwrap();
    let committed = held.commit(commit(2, &second)).unwrap();
    assert_eq!(committed.state, first);
    assert_eq!(committed.refused.len(), 1);
    assert_eq!(
        held.objects().find(|(key, _)| key.kind == ObjectKind::Group).map(|(_, hash)| hash),
        Some(hash::whole_group_hash(&group("g", &[1]))),
        "the version that is held is named, so that the controller sees the difference"
    );

    // A change that builds on what was refused is refused too.
    held.update(part("g", false, &[4], &[], Some(&group("g", &[1, 2, 3, 4])))).unwrap();
    let fourth = state(&[group("g", &[1, 2, 3, 4])], &[segment("s")], &[]);
    assert_eq!(
        held.commit(commit(3, &fourth)).unwrap().refused.values().next().map(|refusal| refusal.field.clone()),
        Some("reset".to_owned())
    );

    held.update(whole(&group("g", &[7]))).unwrap();
    let committed = held.commit(commit(4, &third)).unwrap();
    assert_eq!((&committed.state, committed.refused.len()), (&third, 0));
}

#[test]
fn an_object_of_another_node_is_refused() {
    let wanted = state(&[], &[segment("s")], &[]);
    let mut held = Held::nothing(node());
    all_of(&wanted).into_iter().for_each(|update| held.update(update).unwrap());
    let foreign = LocalEndpoint { id: WorkloadId::new("n2", "c"), ..LocalEndpoint::clone(&endpoint("c", "s")) };
    held.update(state::endpoint_update(&foreign)).unwrap();
    let mut objects = hash::objects_of(&node(), &wanted);
    objects.push((ObjectKey::new(ObjectKind::Endpoint, "c"), hash::endpoint_hash(&foreign)));
    objects.sort_unstable();
    let hash = hash::commit_hash(objects.iter().map(|(key, hash)| (key, *hash))).to_wire();
    let committed = held.commit(v1::Commit { hash, ..commit(1, &wanted) }).unwrap();
    assert!(committed.state.endpoints.is_empty());
    assert_eq!(committed.refused.values().map(|refusal| refusal.field.as_str()).collect::<Vec<_>>(), ["id.node"]);
}

#[test]
fn what_does_not_add_up_ends_the_stream_and_leaves_the_held_state() {
    let first = state(&[group("g", &[1])], &[segment("s")], &[]);
    let good = holding(&first);
    let other = hash::whole_group_hash(&group("g", &[1, 2])).to_wire();

    let mut held = good.clone();
    let error = held.update(part("g", false, &[5], &[], Some(&group("g", &[6])))).unwrap_err();
    assert!(matches!(error, HeldError::ObjectHash { .. }), "{error}");

    let mut held = good.clone();
    let error = held.update(v1::ObjectUpdate { hash: other.clone(), ..state::segment_update(&segment("t")) }).unwrap_err();
    assert!(matches!(error, HeldError::ObjectHash { .. }), "{error}");

    let mut held = good.clone();
    held.update(part("g", false, &[5], &[], None)).unwrap();
    let error = held.commit(commit(2, &first)).unwrap_err();
    assert_eq!(error, HeldError::Incomplete { key: ObjectKey::new(ObjectKind::Group, "g") });

    let mut held = good.clone();
    held.update(state::segment_update(&segment("t"))).unwrap();
    let error = held.commit(commit(2, &first)).unwrap_err();
    assert!(matches!(error, HeldError::CommitHash { generation: Generation(2), .. }), "{error}");
    assert_eq!(held.committed(), good.committed());

    let mut held = good.clone();
    let error = held.commit(v1::Commit { hash: Bytes::new(), ..commit(2, &first) }).unwrap_err();
    assert!(matches!(error, HeldError::Commit(_)), "{error}");

    let mut held = good.clone();
    assert_eq!(held.update(v1::ObjectUpdate::default()), Err(HeldError::Nameless));
}

#[test]
fn a_broken_stream_leaves_nothing_half_done() {
    let first = state(&[group("g", &[1])], &[segment("s")], &[endpoint("c", "s")]);
    let mut held = holding(&first);
    held.update(part("g", false, &[5], &[], None)).unwrap();
    held.update(state::removal(&ObjectKey::new(ObjectKind::Endpoint, "c"))).unwrap();
    held.discard_draft();
    assert_eq!(held.objects().map(|(key, hash)| (key.clone(), hash)).collect::<Vec<_>>(), hash::objects_of(&node(), &first));
    assert_eq!(held.commit(commit(2, &first)).unwrap().state, first);

    let mut nothing = Held::nothing(node());
    nothing.update(state::segment_update(&segment("s"))).unwrap();
    nothing.discard_draft();
    assert_eq!(nothing.objects().count(), 0);
}
