use super::*;
use firebreak_policy::model::{Action, Answer, HostAccess, NamespaceName, PolicyKey, PolicyKind, Protocol, PublishedPort, WorkloadId};
use firebreak_policy::node_state::{
    CompiledRule, CompiledServices, Group, Isolation, LocalEndpoint, Member, RuleRef, Rulebook, SegmentId, TierRule, TierRules,
};
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
fn more_peers_of_rules_that_allow_forbid_nothing_and_fewer_or_others_may() {
    let with = |members: &[u8], tiered: bool| {
        let mut state = state();
        let id = GroupId("api".into());
        let members = members.iter().map(|last| Member::Address(ip(*last))).collect();
        state.groups.insert_shared(id.clone(), Arc::new(Group { id: id.clone(), title: "api".to_owned(), members }));
        if tiered {
            let web = SegmentId("web".into());
            let mut segment = Segment::clone(&state.segments[&web]);
            let policy = PolicyKey { kind: PolicyKind::ClusterSegmentPolicy, namespace: NamespaceName::new(""), name: "deny".to_owned() };
            let origin = RuleRef { policy, index: 0, name: None };
            let rule = TierRule {
                origin,
                peers: CompiledPeers::Groups(vec![id]),
                services: CompiledServices::Any,
                action: Action::Deny(Answer::Drop),
                reason: None,
            };
            let admin = TierRules { ingress: vec![rule], egress: Vec::new() };
            segment.rules = Rulebook { admin, ..Rulebook::clone(&segment.rules) }.into();
            state.segments.insert_shared(web, Arc::new(segment));
        }
        state
    };
    for (before, after, tiered, forbids, allows) in [
        (&[100][..], &[100, 101][..], false, &[][..], &[1][..]),
        (&[100, 101], &[100], false, &[1], &[]),
        (&[100], &[101], false, &[1], &[]),
        (&[100], &[100], false, &[], &[]),
        // A rule that denies denies more.
        (&[100], &[100, 101], true, &[1], &[]),
    ] {
        let of = |last: &[u8]| Affected { everything: false, addresses: last.iter().copied().map(ip).collect() };
        let found = concerned(&with(before, tiered), &with(after, tiered));
        assert_eq!(found, Concerned { forbids: of(forbids), allows: of(allows) }, "{before:?} {after:?} {tiered}");
    }
}

#[test]
fn a_change_concerns_those_whose_policy_peers_or_addresses_it_changes() {
    let member = |state: &mut NodeState, group: &str| {
        let id = GroupId(group.into());
        let group = Group { id: id.clone(), title: group.to_owned(), members: [Member::Address(ip(101))].into() };
        state.groups.insert_shared(id, Arc::new(group));
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
