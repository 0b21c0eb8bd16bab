#![allow(clippy::unwrap_used)]

use super::*;
use crate::cuts::{Detail, Tuple};
use firebreak_policy::model::{HostAccess, NamespaceName, PolicyKey, PolicyKind, Protocol, Transport, WorkloadId};
use firebreak_policy::node_state::{
    CompiledPeers, CompiledRule, CompiledServices, Group, GroupId, Isolation, LocalEndpoint, Member, RuleRef, Rulebook, SegmentId,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

const WEB: u8 = 1;
const API: u8 = 2;
const DB: u8 = 3;
const STRANGER: u8 = 9;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn admits(group: &str) -> Option<Isolation> {
    let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: NamespaceName::new("shop"), name: group.to_owned() };
    let rule = CompiledRule {
        origin: RuleRef { policy: policy.clone(), index: 0, name: None },
        peers: CompiledPeers::Groups(vec![GroupId(group.into())]),
        services: CompiledServices::Any,
    };
    Some(Isolation { policies: vec![policy], host_access: HostAccess::Allow, rules: vec![rule] })
}

fn segment(name: &str, ingress: Option<Isolation>, audit: Option<Option<Isolation>>) -> (SegmentId, Arc<Segment>) {
    let book = |ingress| Rulebook { ingress, ..Rulebook::default() };
    let id = SegmentId(name.into());
    (id.clone(), Arc::new(Segment { id, title: name.to_owned(), rules: book(ingress).into(), audit: audit.map(book).map(Arc::new) }))
}

fn endpoint(name: &str, last: u8) -> (WorkloadId, Arc<LocalEndpoint>) {
    let id = WorkloadId::new("n1", name);
    let endpoint = LocalEndpoint {
        id: id.clone(),
        name: name.to_owned(),
        namespace: NamespaceName::new("shop"),
        segment: SegmentId(name.into()),
        addresses: [ip(last)].into(),
        published_ports: Vec::new(),
    };
    (id, Arc::new(endpoint))
}

/// db takes web and nobody else; so would api, if its policy in Audit mode were enforced; web is not isolated.
fn state(api: Option<Option<Isolation>>) -> NodeState {
    let web = GroupId("web".into());
    NodeState {
        groups: [(web.clone(), Arc::new(Group { id: web, title: "web".to_owned(), members: [Member::Address(ip(WEB))].into() }))].into(),
        segments: [segment("web", None, None), segment("api", None, api), segment("db", admits("web"), None)].into(),
        endpoints: [endpoint("web", WEB), endpoint("api", API), endpoint("db", DB)].into(),
        ..NodeState::default()
    }
}

fn scenes(state: NodeState) -> Option<Scenes> {
    let locals: BTreeSet<IpAddr> = [WEB, API, DB].map(ip).into();
    let audited = Arc::new(with_audit_enforced(&state)?);
    let scene = |state: Arc<NodeState>| Scene {
        generation: Default::default(),
        policy: NodeJudge::new(state),
        node: BTreeSet::new(),
        locals: locals.clone(),
    };
    let in_force = Arc::new(state);
    Some(Scenes { enforced: scene(in_force.clone()), audited: scene(audited.clone()), in_force, state: audited })
}

fn connection(from: u8, to: u8) -> Entry {
    let tuple = |source, destination, detail| Tuple { source, destination, protocol: Protocol::TCP, detail };
    Entry {
        original: tuple(ip(from), ip(to), Detail::Ports(40_000, 80)),
        reply: tuple(ip(to), ip(from), Detail::Ports(80, 40_000)),
        ..Entry::probe(ip(from), ip(to))
    }
}

#[test]
fn what_is_let_through_and_would_be_denied_is_told_and_nothing_else() {
    assert!(scenes(state(None)).is_none(), "nobody is audited");
    let scenes = scenes(state(Some(admits("web")))).unwrap();
    let told = |from, to| scenes.would_be_denied(&connection(from, to));
    let flow = told(STRANGER, API).unwrap();
    assert_eq!(
        (flow.direction, flow.verdict, flow.source, flow.destination),
        (Direction::Ingress, FlowVerdict::Audit, ip(STRANGER), ip(API))
    );
    assert_eq!(flow.transport, Transport::Port(Protocol::TCP, 80));
    assert_eq!(told(DB, API), Some(FlowKey { source: ip(DB), ..flow }), "a local peer as well");
    assert_eq!(told(WEB, API), None, "the audited policy allows it");
    assert_eq!(told(STRANGER, DB), None, "the policies in force deny it: that is told by what denies");
    assert_eq!(told(STRANGER, WEB), None, "nobody is about web");
    assert_eq!(told(STRANGER, 77), None, "neither end is here");
    let cut = |to| Entry { is_cut: true, ..connection(STRANGER, to) };
    assert!(scenes.would_be_denied(&cut(API)).is_some(), "cut while the policy was enforced: it goes on now");
    assert_eq!(scenes.would_be_denied(&cut(DB)), None, "it stays cut");
}

#[test]
fn only_connections_of_those_who_are_audited_otherwise_are_looked_at_again() {
    let (none, some) = (scenes(state(Some(None))).unwrap(), scenes(state(Some(admits("web")))).unwrap());
    assert!(some.affected_since(None).everything, "nobody was audited before");
    assert!(some.affected_since(Some(&some)).is_empty());
    let changed = some.affected_since(Some(&none));
    assert_eq!((changed.everything, changed.addresses), (false, BTreeSet::from([ip(API)])));
}

#[test]
fn connections_of_a_policy_that_goes_from_enforce_to_audit_are_looked_at_again() {
    let with = |api: (SegmentId, Arc<Segment>)| {
        let mut state = state(None);
        for (id, segment) in [segment("web", None, Some(None)), api] {
            state.segments.insert_shared(id, segment);
        }
        scenes(state).unwrap()
    };
    let (enforced, audited) = (with(segment("api", admits("web"), None)), with(segment("api", None, Some(admits("web")))));
    let changed = audited.affected_since(Some(&enforced));
    assert_eq!((changed.everything, changed.addresses), (false, BTreeSet::from([ip(API)])), "what was cut goes on");
    assert!(enforced.affected_since(Some(&audited)).is_empty(), "what is denied now is told by what denies");
}
