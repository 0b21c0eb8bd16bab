use super::*;
use crate::core::tests::{ip, state};
use firebreak_policy::kernel_sets::{Chain, GroupForm, GroupSet, ShortName};
use firebreak_policy::model::{Direction, Family};
use firebreak_policy::node_state::Member;

fn with(members: &[u8]) -> NodeState {
    let members: Vec<Member> = members.iter().map(|last| Member::Address(ip(*last))).collect();
    state(&[("a", &[2]), ("b", &[3])], &members)
}

fn names(barred: &Barred) -> Vec<String> {
    barred.refused().keys().map(ToString::to_string).collect()
}

#[test]
fn a_group_that_is_barred_has_no_members_until_another_version_comes() {
    let mut barred = Barred::default();
    let refused = with(&[50, 51]);
    let peers = GroupId("peers".into());
    let set = GroupSet { family: Family::V4, form: GroupForm::Addresses, name: ShortName::new("peers", ["peers"]) };
    assert!(barred.bar(&Culprit::Group(set), "no room", &refused, &[peers.clone()].into(), &BTreeSet::new()));
    assert!(
        !barred.bar(&Culprit::Group(set), "no room", &refused, &[peers.clone()].into(), &BTreeSet::new()),
        "there is nothing more to bar"
    );
    let now = barred.without(&refused);
    assert!(now.groups[&peers].members.is_empty());
    assert_eq!((&now.segments, &now.endpoints), (&refused.segments, &refused.endpoints));
    assert_eq!(names(&barred), ["group peers"]);
    // The same again, from other memory.
    assert!(barred.without(&with(&[50, 51])).groups[&peers].members.is_empty());
    let next = with(&[50]);
    assert_eq!(barred.without(&next), next);
    assert!(barred.is_empty());
}

#[test]
fn a_segment_that_is_barred_allows_nobody_in_either_direction() {
    let state = with(&[50]);
    let chain = Chain { direction: Direction::Ingress, family: Family::V4, name: ShortName::new("b", ["b"]), answers: false };
    for culprit in [Culprit::Local(ip(3)), Culprit::Chain(chain)] {
        let mut barred = Barred::default();
        assert!(barred.bar(&culprit, "no room", &state, &BTreeSet::new(), &[ip(3)].into()));
        assert_eq!(names(&barred), ["segment b"]);
        let now = barred.without(&state);
        let closed = &now.segments[&SegmentId("b".into())];
        for isolation in [&closed.rules.ingress, &closed.rules.egress] {
            assert!(isolation.as_ref().is_some_and(|isolation| isolation.rules.is_empty()), "{isolation:?}");
        }
        assert_eq!(now.segments[&SegmentId("a".into())], state.segments[&SegmentId("a".into())]);
    }
    let mut barred = Barred::default();
    assert!(!barred.bar(&Culprit::Local(ip(9)), "no room", &state, &BTreeSet::new(), &BTreeSet::new()), "nobody's address");
}
