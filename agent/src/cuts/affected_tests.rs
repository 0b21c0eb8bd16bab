use super::*;
use firebreak_policy::model::{HostAccess, NamespaceName, PolicyKey, PolicyKind, Protocol, PublishedPort, WorkloadId};
use firebreak_policy::node_state::{CompiledRule, CompiledServices, Group, Isolation, LocalEndpoint, Member, RuleRef, Rulebook, SegmentId};
use std::sync::Arc;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// web (10.0.0.1) names the group `api`, db (10.0.0.2) names `web` and is published, free (10.0.0.3) names nobody.
fn state() -> NodeState {
    let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: NamespaceName::new("shop"), name: "p".to_owned() };
    let mut state = NodeState { addresses: [ip(254)].into(), ..NodeState::default() };
    for (name, last, group) in [("web", 1, Some("api")), ("db", 2, Some("web")), ("free", 3, None)] {
        let rule = |group: &str| CompiledRule {
            origin: RuleRef { policy: policy.clone(), index: 0, name: None },
            peers: CompiledPeers::Groups(vec![GroupId(group.into())]),
            services: CompiledServices::Any,
        };
        let isolation = |group| Isolation { policies: vec![policy.clone()], host_access: HostAccess::Allow, rules: vec![rule(group)] };
        let segment = Segment {
            id: SegmentId(name.into()),
            title: name.to_owned(),
            rules: Rulebook { ingress: group.map(isolation), ..Rulebook::default() }.into(),
            audit: None,
        };
        state.segments.insert_shared(segment.id.clone(), Arc::new(segment));
        let id = WorkloadId::new("n1", name);
        let published = PublishedPort { protocol: Protocol::TCP, host_address: None, host_port: 80, workload_port: 80 };
        let endpoint = LocalEndpoint {
            id: id.clone(),
            name: name.to_owned(),
            namespace: NamespaceName::new("shop"),
            segment: SegmentId(name.into()),
            addresses: [ip(last)].into(),
            published_ports: if name == "db" { vec![published] } else { Vec::new() },
        };
        state.endpoints.insert_shared(id, Arc::new(endpoint));
    }
    for name in ["api", "web"] {
        let id = GroupId(name.into());
        let group = Group { id: id.clone(), title: name.to_owned(), members: [Member::Address(ip(100))].into() };
        state.groups.insert_shared(id, Arc::new(group));
    }
    state
}

#[test]
fn a_change_concerns_those_whose_policy_peers_or_addresses_it_changes() {
    let member = |state: &mut NodeState, group: &str| {
        let id = GroupId(group.into());
        let group = Group { id: id.clone(), title: group.to_owned(), members: [Member::Address(ip(101))].into() };
        state.groups.insert_shared(id, Arc::new(group));
    };
    // The workload `free` gets a segment of its own that says this.
    let moved = |state: &mut NodeState, says: &str| {
        let says = state.segments[&SegmentId(says.into())].rules.clone();
        let id = SegmentId("other".into());
        state.segments.insert_shared(id.clone(), Arc::new(Segment { id: id.clone(), title: "other".to_owned(), rules: says, audit: None }));
        let endpoint = LocalEndpoint { segment: id, ..LocalEndpoint::clone(&state.endpoints[&WorkloadId::new("n1", "free")]) };
        state.endpoints.insert_shared(endpoint.id.clone(), Arc::new(endpoint));
    };
    type Edit<'a> = Box<dyn Fn(&mut NodeState) + 'a>;
    let cases: Vec<(&str, Edit<'_>, Option<&[u8]>)> = vec![
        ("nothing", Box::new(|_| {}), Some(&[])),
        ("a member of web's peers", Box::new(|state| member(state, "api")), Some(&[1])),
        ("a member of db's peers, and db is published", Box::new(|state| member(state, "web")), Some(&[2, 254])),
        (
            "free is isolated",
            Box::new(|state| {
                let isolated = state.segments[&SegmentId("db".into())].rules.ingress.clone();
                let id = SegmentId("free".into());
                let segment =
                    Segment { rules: Rulebook { ingress: isolated, ..Rulebook::default() }.into(), ..Segment::clone(&state.segments[&id]) };
                state.segments.insert_shared(id, Arc::new(segment));
            }),
            Some(&[3]),
        ),
        ("free is in another segment that says the same", Box::new(|state| moved(state, "free")), Some(&[])),
        ("free is in another segment that says something else", Box::new(|state| moved(state, "web")), Some(&[3])),
        (
            "free is in another segment that says what web's says, and that names a group with other members",
            Box::new(|state| {
                moved(state, "web");
                member(state, "api");
            }),
            Some(&[1, 3]),
        ),
        (
            "free is in a segment that is not there",
            Box::new(|state| {
                moved(state, "free");
                state.segments.remove(&SegmentId("other".into()));
            }),
            Some(&[3]),
        ),
        (
            "web is in another segment that says the same, and its peers have changed",
            Box::new(|state| {
                let id = SegmentId("other".into());
                let segment = Segment { id: id.clone(), ..Segment::clone(&state.segments[&SegmentId("web".into())]) };
                state.segments.insert_shared(id.clone(), Arc::new(segment));
                let endpoint = LocalEndpoint { segment: id, ..LocalEndpoint::clone(&state.endpoints[&WorkloadId::new("n1", "web")]) };
                state.endpoints.insert_shared(endpoint.id.clone(), Arc::new(endpoint));
                member(state, "api");
            }),
            Some(&[1]),
        ),
        (
            "free has another address",
            Box::new(|state| {
                let id = WorkloadId::new("n1", "free");
                let endpoint = LocalEndpoint { addresses: [ip(4)].into(), ..LocalEndpoint::clone(&state.endpoints[&id]) };
                state.endpoints.insert_shared(id, Arc::new(endpoint));
            }),
            Some(&[3, 4]),
        ),
        (
            "web has ended",
            Box::new(|state| {
                state.endpoints.remove(&WorkloadId::new("n1", "web"));
            }),
            Some(&[1]),
        ),
        (
            "the node has another address",
            Box::new(|state| {
                state.addresses.insert(ip(253));
            }),
            None,
        ),
    ];
    for (name, edit, expected) in cases {
        let before = state();
        let mut after = before.clone();
        edit(&mut after);
        let expected = match expected {
            Some(last) => Affected { everything: false, addresses: last.iter().copied().map(ip).collect() },
            None => Affected::everything(),
        };
        assert_eq!(affected(&before, &after), expected, "{name}");
        // The same with nothing shared: content counts, not pointers.
        assert_eq!(affected(&before, &state()), Affected::default(), "{name}");
    }
}
