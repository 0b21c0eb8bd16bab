//! The wire carries a node's state whole: what goes in comes out, what is broken is refused by the name of its field, and
//! content hashes depend on content alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use firebreak_policy::model::{
    Action, Answer, Family, HostAccess, NamespaceName, NodeName, PolicyKey, PolicyKind, PortRange, Protocol, PublishedPort, WorkloadId,
};
use firebreak_policy::node_state::{
    CompiledPeers, CompiledRule, CompiledService, CompiledServices, Group, GroupId, Isolation, LocalEndpoint, Member, RuleRef, Rulebook,
    Segment, SegmentId, TierRule, TierRules,
};
use firebreak_proto::hash::{self, ContentHash, MemberSum, ObjectKey, ObjectKind, ObjectSum};
use firebreak_proto::state::{self, GroupChange};
use firebreak_proto::workload::{DeclaredWorkload, ReportedWorkload};
use firebreak_proto::{convert, v1};
use ipnet::IpNet;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        any::<u128>()
            .prop_map(Ipv6Addr::from)
            .prop_filter("has one form only", |address| address.to_ipv4_mapped().is_none())
            .prop_map(IpAddr::V6),
    ]
}

fn block() -> impl Strategy<Value = IpNet> {
    (address(), any::<u8>()).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 32 } else { 96 };
        IpNet::new(address, 1 + length % most).unwrap().trunc()
    })
}

fn ported() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::TCP), Just(Protocol::UDP), Just(Protocol::SCTP), Just(Protocol::DCCP), Just(Protocol::UDPLITE)]
}

fn member() -> impl Strategy<Value = Member> {
    prop_oneof![
        address().prop_map(Member::Address),
        block().prop_map(Member::Block),
        (address(), ported(), 1..=u16::MAX).prop_map(|(address, protocol, port)| Member::Service(address, protocol, port)),
    ]
}

fn key() -> impl Strategy<Value = PolicyKey> {
    (prop_oneof![Just(PolicyKind::NetworkPolicy), Just(PolicyKind::SegmentPolicy)], "[a-z]{1,8}", "[a-z]{1,8}")
        .prop_map(|(kind, namespace, name)| PolicyKey { kind, namespace: NamespaceName::from(namespace), name })
}

fn service() -> impl Strategy<Value = CompiledService> {
    prop_oneof![
        any::<u8>().prop_map(|number| CompiledService::Protocol(Protocol(number))),
        (ported(), any::<u16>(), any::<u16>())
            .prop_map(|(protocol, a, b)| CompiledService::Ports(protocol, PortRange::new(a.min(b), a.max(b)).unwrap())),
        (prop_oneof![Just(Family::V4), Just(Family::V6)], any::<u8>(), any::<Option<u8>>())
            .prop_map(|(family, kind, code)| CompiledService::Icmp { family, kind, code }),
    ]
}

fn rule() -> impl Strategy<Value = CompiledRule> {
    let origin = (key(), any::<u32>(), option::of("[a-z]{1,8}")).prop_map(|(policy, index, name)| RuleRef { policy, index, name });
    let groups = vec("[0-9a-f]{32}", 0..4).prop_map(|ids| CompiledPeers::Groups(ids.into_iter().map(|id| GroupId(id.into())).collect()));
    let peers = prop_oneof![Just(CompiledPeers::Any), groups];
    let services =
        prop_oneof![Just(CompiledServices::Any), vec(service(), 0..5).prop_map(CompiledServices::Only), Just(CompiledServices::OfMembers)];
    (origin, peers, services)
        .prop_filter("named ports belong to members", |(_, peers, services)| {
            !(matches!(peers, CompiledPeers::Any) && matches!(services, CompiledServices::OfMembers))
        })
        .prop_map(|(origin, peers, services)| CompiledRule { origin, peers, services })
}

fn isolation() -> impl Strategy<Value = Isolation> {
    (vec(key(), 1..4), prop_oneof![Just(HostAccess::Allow), Just(HostAccess::Judge)], vec(rule(), 0..5))
        .prop_map(|(policies, host_access, rules)| Isolation { policies, host_access, rules })
}

fn tier() -> impl Strategy<Value = TierRules> {
    let actions = [Action::Allow, Action::Pass, Action::Deny(Answer::Drop), Action::Deny(Answer::Reject)];
    let rules = || {
        vec((rule(), prop::sample::select(actions.to_vec()), option::of("[a-z ]{1,12}")), 0..3).prop_map(|rules| {
            let tier_rule =
                |(CompiledRule { origin, peers, services }, action, reason)| TierRule { origin, action, peers, services, reason };
            rules.into_iter().map(tier_rule).collect()
        })
    };
    (rules(), rules()).prop_map(|(ingress, egress)| TierRules { ingress, egress })
}

fn rulebook() -> impl Strategy<Value = Rulebook> {
    (tier(), option::of(isolation()), option::of(isolation()), tier()).prop_map(|(admin, ingress, egress, baseline)| Rulebook {
        admin,
        ingress,
        egress,
        baseline,
    })
}

fn segment() -> impl Strategy<Value = Segment> {
    ("[0-9a-f]{32}", "[a-z/]{0,12}", rulebook(), option::weighted(0.2, rulebook())).prop_map(|(id, title, rules, audit)| Segment {
        id: SegmentId(id.into()),
        title,
        rules: rules.into(),
        audit: audit.map(Into::into),
    })
}

fn published() -> impl Strategy<Value = PublishedPort> {
    (ported(), option::of(address()), 1..=u16::MAX, 1..=u16::MAX)
        .prop_map(|(protocol, host_address, host_port, workload_port)| PublishedPort { protocol, host_address, host_port, workload_port })
}

fn endpoint() -> impl Strategy<Value = LocalEndpoint> {
    ("[a-z]{1,8}", "[0-9a-f]{64}", "[a-z]{1,8}", "[a-z]{1,8}", "[0-9a-f]{32}", btree_set(address(), 0..4), vec(published(), 0..4)).prop_map(
        |(node, container, name, namespace, segment, addresses, published_ports)| LocalEndpoint {
            id: WorkloadId::new(node, container),
            name,
            namespace: NamespaceName::from(namespace),
            segment: SegmentId(segment.into()),
            addresses: addresses.into(),
            published_ports,
        },
    )
}

proptest! {
    #[test]
    fn a_segment_comes_back_as_it_went(segment in segment()) {
        prop_assert_eq!(Segment::try_from(v1::Segment::from(&segment)), Ok(segment));
    }

    #[test]
    fn an_endpoint_comes_back_as_it_went(endpoint in endpoint()) {
        prop_assert_eq!(LocalEndpoint::try_from(v1::LocalEndpoint::from(&endpoint)), Ok(endpoint));
    }

    #[test]
    fn a_group_change_comes_back_as_it_went(add in vec(member(), 0..8), remove in vec(member(), 0..8), reset: bool, hashed: bool) {
        let change = GroupChange {
            id: GroupId("g".into()),
            title: "app=web".to_owned(),
            reset,
            hash: hashed.then(|| hash::group_hash(&GroupId("g".into()), "app=web", &MemberSum::of(&add))),
            add,
            remove,
        };
        prop_assert_eq!(GroupChange::try_from(v1::GroupPart::from(&change)), Ok(change));
    }

    #[test]
    fn a_node_comes_back_as_it_went(addresses in btree_set(address(), 0..6)) {
        let name = NodeName::new("n1");
        let Some(v1::object_update::Change::Node(wire)) = state::node_update(&name, &addresses).change else { panic!("a node") };
        prop_assert_eq!(state::node_from_wire(wire), Ok((name, addresses)));
    }

    #[test]
    fn the_order_in_which_members_came_does_not_change_a_group_s_hash(members in btree_set(member(), 0..20), gone in btree_set(member(), 0..20)) {
        let group = Group { id: GroupId("g".into()), title: "app=web".to_owned(), members: members.clone().into() };
        let mut sum = MemberSum::default();
        members.iter().rev().for_each(|member| sum.add(member));
        gone.iter().for_each(|member| sum.add(member));
        prop_assert_eq!(gone.is_empty(), hash::group_hash(&group.id, &group.title, &sum) == hash::whole_group_hash(&group));
        gone.iter().rev().for_each(|member| sum.remove(member));
        prop_assert_eq!(hash::group_hash(&group.id, &group.title, &sum), hash::whole_group_hash(&group));
    }

    #[test]
    fn lists_without_order_do_not_change_a_hash(segment in segment(), endpoint in endpoint()) {
        let mut turned = segment.clone();
        let rules = std::sync::Arc::make_mut(&mut turned.rules);
        for isolation in [&mut rules.ingress, &mut rules.egress].into_iter().flatten() {
            isolation.policies.reverse();
            for rule in &mut isolation.rules {
                if let CompiledPeers::Groups(groups) = &mut rule.peers {
                    groups.reverse();
                }
                if let CompiledServices::Only(services) = &mut rule.services {
                    services.reverse();
                }
            }
        }
        prop_assert_eq!(hash::segment_hash(&turned), hash::segment_hash(&segment));
        let mut turned = endpoint.clone();
        turned.published_ports.reverse();
        prop_assert_eq!(hash::endpoint_hash(&turned), hash::endpoint_hash(&endpoint));
    }

    #[test]
    fn different_segments_have_different_hashes(one in segment(), other in segment()) {
        prop_assert_eq!(one == other, hash::segment_hash(&one) == hash::segment_hash(&other));
        let renamed = Segment { title: format!("{}x", one.title), ..one.clone() };
        prop_assert_ne!(hash::segment_hash(&one), hash::segment_hash(&renamed));
    }

    #[test]
    fn bytes_from_outside_are_converted_or_refused_and_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        use prost::Message;
        if let Ok(wire) = v1::ObjectUpdate::decode(bytes.as_slice()) {
            let _ = state::key_of(&wire);
            match wire.change {
                Some(v1::object_update::Change::Group(group)) => drop(GroupChange::try_from(group)),
                Some(v1::object_update::Change::Segment(segment)) => drop(Segment::try_from(segment)),
                Some(v1::object_update::Change::Endpoint(endpoint)) => drop(LocalEndpoint::try_from(endpoint)),
                Some(v1::object_update::Change::Node(node)) => drop(state::node_from_wire(node)),
                Some(v1::object_update::Change::Removed(_)) | None => {}
            }
        }
    }
}

/// A segment with one rule in each direction and everything in order.
fn good_segment() -> v1::Segment {
    let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: NamespaceName::new("shop"), name: "db".to_owned() };
    let isolation = Isolation {
        policies: vec![policy.clone()],
        host_access: HostAccess::Allow,
        rules: vec![CompiledRule {
            origin: RuleRef { policy, index: 0, name: None },
            peers: CompiledPeers::Groups(vec![GroupId("g".into())]),
            services: CompiledServices::Only(vec![
                CompiledService::Ports(Protocol::TCP, PortRange::single(5432)),
                CompiledService::Icmp { family: Family::V4, kind: 8, code: Some(0) },
            ]),
        }],
    };
    v1::Segment::from(&Segment {
        id: SegmentId("s".into()),
        title: "shop/db".to_owned(),
        rules: Rulebook { ingress: Some(isolation.clone()), egress: Some(isolation), ..Rulebook::default() }.into(),
        audit: None,
    })
}

fn first_rule(segment: &mut v1::Segment) -> &mut v1::CompiledRule {
    &mut segment.ingress.as_mut().unwrap().rules[0]
}

fn service_at(segment: &mut v1::Segment, at: usize) -> &mut Option<v1::service::Service> {
    let Some(v1::compiled_rule::Services::ServicesList(list)) = &mut first_rule(segment).services else { panic!("a list") };
    &mut list.services[at].service
}

#[test]
fn a_broken_segment_is_refused_by_the_name_of_its_field() {
    type Break = fn(&mut v1::Segment);
    let table: &[(Break, &str, &str)] = &[
        (|s| s.id.clear(), "id", "is empty"),
        (|s| s.ingress.as_mut().unwrap().policies.clear(), "ingress.policies", "is empty"),
        (|s| s.egress.as_mut().unwrap().host_access = 0, "egress.host_access", "0 is no choice"),
        (|s| s.ingress.as_mut().unwrap().host_access = 77, "ingress.host_access", "77 is no choice"),
        (|s| s.ingress.as_mut().unwrap().policies[0].kind = "Policy".to_owned(), "ingress.policies[0].kind", "\"Policy\""),
        (|s| s.ingress.as_mut().unwrap().policies[0].rule_index = Some(0), "ingress.policies[0].rule_index", "whole policy"),
        (|s| first_rule(s).action = 0, "ingress.rules[0].action", "0 is no action"),
        (|s| first_rule(s).action = v1::Action::Deny.into(), "ingress.rules[0].action", "only allows"),
        (|s| first_rule(s).action = v1::Action::Pass.into(), "ingress.rules[0].action", "only allows"),
        (|s| first_rule(s).peers = None, "ingress.rules[0].peers", "is unset"),
        (|s| first_rule(s).services = None, "ingress.rules[0].services", "is unset"),
        (|s| first_rule(s).origin = None, "ingress.rules[0].origin", "is unset"),
        (|s| first_rule(s).origin.as_mut().unwrap().rule_index = None, "ingress.rules[0].origin.rule_index", "is unset"),
        (|s| first_rule(s).origin.as_mut().unwrap().namespace.clear(), "ingress.rules[0].origin.namespace", "is empty"),
        (
            |s| {
                first_rule(s).peers = Some(v1::compiled_rule::Peers::AnyPeer(v1::AnyMarker {}));
                first_rule(s).services = Some(v1::compiled_rule::Services::OfMembers(v1::AnyMarker {}));
            },
            "ingress.rules[0].of_members",
            "needs groups",
        ),
        (|s| *service_at(s, 0) = None, "ingress.rules[0].services_list[0].service", "is unset"),
        (|s| *service_at(s, 0) = Some(v1::service::Service::Protocol(256)), "ingress.rules[0].services_list[0].protocol", "256"),
        (
            |s| *service_at(s, 0) = Some(v1::service::Service::Ports(v1::PortRange { protocol: 6, first: 10, last: 9 })),
            "ingress.rules[0].services_list[0].ports.last",
            "less than first",
        ),
        (
            |s| *service_at(s, 0) = Some(v1::service::Service::Ports(v1::PortRange { protocol: 6, first: 1, last: 65536 })),
            "ingress.rules[0].services_list[0].ports.last",
            "65536",
        ),
        (
            |s| *service_at(s, 0) = Some(v1::service::Service::Ports(v1::PortRange { protocol: 1, first: 1, last: 2 })),
            "ingress.rules[0].services_list[0].ports.protocol",
            "ICMP has no ports",
        ),
        (
            |s| *service_at(s, 1) = Some(v1::service::Service::Icmp(v1::IcmpService { protocol: 6, r#type: 8, code: None })),
            "ingress.rules[0].services_list[1].icmp.protocol",
            "neither ICMP",
        ),
        (
            |s| *service_at(s, 1) = Some(v1::service::Service::Icmp(v1::IcmpService { protocol: 1, r#type: 8, code: Some(256) })),
            "ingress.rules[0].services_list[1].icmp.code",
            "256",
        ),
    ];
    assert!(Segment::try_from(good_segment()).is_ok());
    for (break_it, field, reason) in table {
        let mut wire = good_segment();
        break_it(&mut wire);
        let refusal = Segment::try_from(wire).expect_err(field);
        assert_eq!(refusal.field, *field);
        assert!(refusal.reason.contains(reason), "{refusal}");
    }
}

#[test]
fn a_broken_member_refuses_the_whole_group() {
    let service = |address: &[u8], protocol, port| {
        v1::member::Member::Service(v1::MemberService { address: Bytes::copy_from_slice(address), protocol, port })
    };
    let block =
        |address: &[u8], prefix_length| v1::member::Member::Block(v1::Cidr { address: Bytes::copy_from_slice(address), prefix_length });
    let mapped = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
    let table: Vec<(Option<v1::member::Member>, &str, &str)> = vec![
        (None, "add[1].member", "is unset"),
        (Some(v1::member::Member::Address(Bytes::new())), "add[1].address", "0 bytes"),
        (Some(v1::member::Member::Address(Bytes::from_static(&[1, 2, 3, 4, 5]))), "add[1].address", "5 bytes"),
        (Some(v1::member::Member::Address(Bytes::copy_from_slice(&mapped))), "add[1].address", "IPv4-mapped; send 10.0.0.1"),
        (Some(block(&[10, 0, 0, 1], 24)), "add[1].block.address", "host bits"),
        (Some(block(&[10, 0, 0, 0], 33)), "add[1].block.prefix_length", "33"),
        (Some(block(&[10, 0, 0, 0], 300)), "add[1].block.prefix_length", "300"),
        (Some(service(&[10, 0, 0, 1], 6, 0)), "add[1].service.port", "0 is no port"),
        (Some(service(&[10, 0, 0, 1], 6, 65536)), "add[1].service.port", "65536"),
        (Some(service(&[10, 0, 0, 1], 1, 80)), "add[1].service.protocol", "no ports"),
        (Some(service(&[10, 0, 0], 6, 80)), "add[1].service.address", "3 bytes"),
    ];
    for (broken, field, reason) in table {
        let good = v1::Member::from(&Member::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let part = v1::GroupPart { id: "g".to_owned(), add: vec![good, v1::Member { member: broken }], ..v1::GroupPart::default() };
        let refusal = GroupChange::try_from(part).expect_err(field);
        assert_eq!(refusal.field, field);
        assert!(refusal.reason.contains(reason), "{refusal}");
    }
    let short = v1::GroupPart { id: "g".to_owned(), hash: Bytes::from_static(&[1; 15]), ..v1::GroupPart::default() };
    assert_eq!(GroupChange::try_from(short).expect_err("hash").field, "hash");
}

#[test]
fn a_broken_endpoint_is_refused_by_the_name_of_its_field() {
    type Break = fn(&mut v1::LocalEndpoint);
    let good = || {
        v1::LocalEndpoint::from(&LocalEndpoint {
            id: WorkloadId::new("n1", "c1"),
            name: "db".to_owned(),
            namespace: NamespaceName::new("shop"),
            segment: SegmentId("s".into()),
            addresses: [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2))].into(),
            published_ports: vec![PublishedPort { protocol: Protocol::TCP, host_address: None, host_port: 80, workload_port: 8080 }],
        })
    };
    let table: &[(Break, &str)] = &[
        (|e| e.id = None, "id"),
        (|e| e.id.as_mut().unwrap().node.clear(), "id.node"),
        (|e| e.id.as_mut().unwrap().container.clear(), "id.container"),
        (|e| e.name.clear(), "name"),
        (|e| e.namespace.clear(), "namespace"),
        (|e| e.segment_id.clear(), "segment_id"),
        (|e| e.addresses[0] = Bytes::from_static(&[1]), "addresses[0]"),
        (|e| e.published_ports[0].protocol = 1, "published_ports[0].protocol"),
        (|e| e.published_ports[0].host_port = 0, "published_ports[0].host_port"),
        (|e| e.published_ports[0].workload_port = 70_000, "published_ports[0].workload_port"),
        (|e| e.published_ports[0].host_address = Bytes::from_static(&[1]), "published_ports[0].host_address"),
    ];
    assert!(LocalEndpoint::try_from(good()).is_ok());
    for (break_it, field) in table {
        let mut wire = good();
        break_it(&mut wire);
        assert_eq!(LocalEndpoint::try_from(wire).expect_err(field).field, *field);
    }
}

#[test]
fn a_broken_workload_is_refused_by_the_name_of_its_field() {
    type Break = fn(&mut v1::Workload);
    let good = || v1::Workload {
        id: Some(v1::WorkloadId { node: "n1".to_owned(), container: "c1".to_owned() }),
        name: "db".to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![v1::NetworkAddress {
            network: "default".to_owned(),
            address: convert::address_to_wire(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        }],
        named_ports: vec![v1::NamedPort { name: "sql".to_owned(), protocol: 6, port: 5432 }],
        source: v1::WorkloadSource::Docker.into(),
        ..v1::Workload::default()
    };
    let table: &[(Break, &str)] = &[
        (|w| w.id = None, "id"),
        (|w| w.name.clear(), "name"),
        (|w| w.namespace.clear(), "namespace"),
        (|w| w.source = 0, "source"),
        (|w| w.source = 9, "source"),
        (|w| w.addresses[0].network.clear(), "addresses[0].network"),
        (|w| w.addresses[0].address = Bytes::new(), "addresses[0].address"),
        (|w| w.named_ports[0].name.clear(), "named_ports[0].name"),
        (|w| w.named_ports[0].protocol = 47, "named_ports[0].protocol"),
        (|w| w.named_ports[0].port = 0, "named_ports[0].port"),
    ];
    let read = ReportedWorkload::try_from(good()).unwrap();
    assert_eq!(v1::Workload::from(&read), good());
    for (break_it, field) in table {
        let mut wire = good();
        break_it(&mut wire);
        assert_eq!(ReportedWorkload::try_from(wire).expect_err(field).field, *field);
    }
}

#[test]
fn a_declared_workload_must_say_where_it_is() {
    use v1::declared_workload::Location;
    let table = [
        (None, Err("location")),
        (Some(Location::Interface(String::new())), Err("interface")),
        (Some(Location::NetworkNamespace(String::new())), Err("network_namespace")),
        (Some(Location::NetworkNamespace("../../proc/1/ns/net".to_owned())), Err("network_namespace")),
        (Some(Location::NetworkNamespace("..".to_owned())), Err("network_namespace")),
        (Some(Location::NetworkNamespace("db".to_owned())), Ok(())),
        (Some(Location::Interface("vethdb".to_owned())), Ok(())),
    ];
    for (location, expected) in table {
        let wire = v1::DeclaredWorkload {
            container: "shop.db".to_owned(),
            name: "db".to_owned(),
            namespace: "shop".to_owned(),
            location,
            addresses: vec![vec![10, 0, 0, 7].into()],
            ..v1::DeclaredWorkload::default()
        };
        match (DeclaredWorkload::try_from(wire.clone()), expected) {
            (Ok(read), Ok(())) => assert_eq!(v1::DeclaredWorkload::from(&read), wire),
            (Err(refusal), Err(field)) => assert_eq!(refusal.field, field),
            (read, expected) => panic!("{read:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn an_update_names_its_object_and_carries_its_hash() {
    let segment = Segment::try_from(good_segment()).unwrap();
    let update = state::segment_update(&segment);
    assert_eq!(state::key_of(&update), Some(ObjectKey::new(ObjectKind::Segment, "s")));
    assert_eq!(update.hash, hash::segment_hash(&segment).to_wire());
    let key = ObjectKey::new(ObjectKind::Endpoint, "c1");
    assert_eq!(state::key_of(&state::removal(&key)), Some(key));
    assert_eq!(state::key_of(&v1::ObjectUpdate::default()), None);
    let unknown = v1::RemovedObject { kind: 0, id: "x".to_owned() };
    let update = v1::ObjectUpdate { change: Some(v1::object_update::Change::Removed(unknown)), hash: Bytes::new() };
    assert_eq!(state::key_of(&update), None);
}

#[test]
fn the_commit_hash_tells_kind_id_and_content_apart() {
    let content = |text: &str| hash::group_hash(&GroupId(text.into()), "", &MemberSum::default());
    let of = |kind, id: &str, text: &str| hash::commit_hash([(&ObjectKey::new(kind, id), content(text))]);
    let base = of(ObjectKind::Group, "a", "x");
    assert_eq!(base, of(ObjectKind::Group, "a", "x"));
    for other in
        [of(ObjectKind::Segment, "a", "x"), of(ObjectKind::Group, "b", "x"), of(ObjectKind::Group, "a", "y"), hash::commit_hash([])]
    {
        assert_ne!(base, other);
    }
}

proptest! {
    #[test]
    fn the_commit_hash_is_the_same_by_whatever_way_the_objects_came(
        first in prop::collection::btree_map("[a-d]{1,2}", any::<[u8; 16]>(), 0..8),
        second in prop::collection::btree_map("[a-d]{1,2}", any::<[u8; 16]>(), 0..8),
    ) {
        let objects = |map: &BTreeMap<String, [u8; 16]>| -> Vec<_> {
            map.iter().map(|(id, hash)| (ObjectKey::new(ObjectKind::Group, id.as_str()), ContentHash(*hash))).collect()
        };
        let mut sum = ObjectSum::default();
        objects(&first).iter().for_each(|(key, hash)| sum.add(key, *hash));
        objects(&second).iter().rev().for_each(|(key, hash)| sum.add(key, *hash));
        objects(&first).iter().for_each(|(key, hash)| sum.remove(key, *hash));
        let fresh = hash::commit_hash(objects(&second).iter().map(|(key, hash)| (key, *hash)));
        prop_assert_eq!(sum.commit_hash(), fresh);
        let other = hash::commit_hash(objects(&first).iter().map(|(key, hash)| (key, *hash)));
        prop_assert_eq!(first == second, fresh == other);
    }
}
