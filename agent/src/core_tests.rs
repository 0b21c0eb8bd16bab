#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::local::{ExemptInterface, ExemptReason, LocalInterface, Problem, Vouched};
use firebreak_policy::model::{
    Action, Answer, HostAccess, NamespaceName, NetworkAddress, NetworkName, PolicyKey, PolicyKind, WorkloadSource,
};
use firebreak_policy::node_state::{CompiledRule, CompiledServices, Isolation, RuleRef, Rulebook, TierRule};

pub(crate) fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// What the controller says: one segment per endpoint, each allowing the group `peers` in.
pub(crate) fn state(endpoints: &[(&str, &[u8])], peers: &[Member]) -> NodeState {
    let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: NamespaceName::new("shop"), name: "p".to_owned() };
    let group = GroupId("peers".into());
    let mut state = NodeState::default();
    state.groups.insert_shared(
        group.clone(),
        Arc::new(Group { id: group.clone(), title: "peers".to_owned(), members: peers.iter().copied().collect() }),
    );
    for (name, addresses) in endpoints {
        let segment = SegmentId((*name).into());
        let rule = CompiledRule {
            origin: RuleRef { policy: policy.clone(), index: 0, name: None },
            peers: CompiledPeers::Groups(vec![group.clone()]),
            services: CompiledServices::Any,
        };
        let isolation = Isolation { policies: vec![policy.clone()], host_access: HostAccess::Allow, rules: vec![rule] };
        state.segments.insert_shared(
            segment.clone(),
            Arc::new(Segment {
                id: segment.clone(),
                title: (*name).to_owned(),
                rules: Rulebook { ingress: Some(isolation), ..Rulebook::default() }.into(),
                audit: None,
            }),
        );
        let id = WorkloadId::new("n1", *name);
        state.endpoints.insert_shared(
            id.clone(),
            Arc::new(LocalEndpoint {
                id,
                name: (*name).to_owned(),
                namespace: NamespaceName::new("shop"),
                segment,
                addresses: addresses.iter().copied().map(ip).collect(),
                published_ports: Vec::new(),
            }),
        );
    }
    state
}

fn mac(index: u32) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, u8::try_from(index).unwrap()])
}

fn interface(index: u32, addresses: BTreeSet<NetworkAddress>) -> LocalInterface {
    LocalInterface {
        name: InterfaceName::from(format!("veth{index}")),
        addresses,
        mac: Some(mac(index)),
        vouched: None,
        not_routed: BTreeSet::new(),
        link: 1,
    }
}

/// What discovery says: workloads by name, ifindex, addresses.
pub(crate) fn local(workloads: &[(&str, u32, &[u8])]) -> LocalWorkloads {
    let workload = |(name, index, addresses): &(&str, u32, &[u8])| {
        let addresses =
            addresses.iter().map(|last| NetworkAddress { network: NetworkName::default_network(), address: ip(*last) }).collect();
        let workload = LocalWorkload {
            id: WorkloadId::new("n1", *name),
            name: (*name).to_owned(),
            namespace: NamespaceName::new("shop"),
            labels: firebreak_policy::model::Labels::default(),
            image_labels: BTreeMap::new(),
            image: String::new(),
            named_ports: Vec::new(),
            published_ports: Vec::new(),
            interfaces: BTreeMap::from([(*index, interface(*index, addresses))]),
            host_network: false,
            source: WorkloadSource::Docker,
            declared_place: String::new(),
            problem: None,
        };
        ((*name).into(), Arc::new(workload))
    };
    LocalWorkloads { in_sync: true, workloads: workloads.iter().map(workload).collect(), ..LocalWorkloads::default() }
}

/// `name: addresses` of each endpoint that is enforced.
fn endpoints(state: &NodeState) -> Vec<(&str, Vec<IpAddr>)> {
    state.endpoints.values().map(|endpoint| (endpoint.name.as_str(), endpoint.addresses.iter().copied().collect())).collect()
}

#[test]
fn an_endpoint_is_enforced_at_the_addresses_that_its_workload_holds() {
    type Case<'a> = (&'a str, &'a [(&'a str, &'a [u8])], &'a [(&'a str, u32, &'a [u8])], &'a [(&'a str, &'a [u8])], &'a [u32]);
    let table: &[Case<'_>] = &[
        ("both agree", &[("a", &[2])], &[("a", 7, &[2])], &[("a", &[2])], &[7]),
        ("not alive here", &[("a", &[2])], &[], &[], &[]),
        ("not known to the controller", &[], &[("a", 7, &[2])], &[], &[]),
        ("address lost", &[("a", &[2, 3])], &[("a", 7, &[3])], &[("a", &[3])], &[7]),
        ("address gained", &[("a", &[2])], &[("a", 7, &[2, 9])], &[("a", &[2, 9])], &[7]),
        ("no address left", &[("a", &[2])], &[("a", 7, &[])], &[], &[]),
        (
            "takes a neighbour's address",
            &[("a", &[2]), ("b", &[3])],
            &[("a", 7, &[2, 3]), ("b", 8, &[3])],
            &[("a", &[2]), ("b", &[3])],
            &[7, 8],
        ),
        (
            "takes it, and the controller knows of the conflict",
            &[("a", &[2, 3]), ("b", &[3])],
            &[("a", 7, &[2, 3]), ("b", 8, &[3])],
            &[("a", &[2, 3]), ("b", &[3])],
            &[7, 8],
        ),
        ("takes the address of one that is gone", &[("a", &[2]), ("b", &[3])], &[("a", 7, &[2, 3])], &[("a", &[2, 3])], &[7]),
        ("takes the node's address", &[("a", &[2])], &[("a", 7, &[1, 2])], &[("a", &[2])], &[7]),
    ];
    for (case, controller, discovered, expected, known) in table {
        let mut local = local(discovered);
        local.node_addresses.insert(ip(1));
        let desired_state = restrict(&state(controller, &[]), &local);
        let expected: Vec<_> =
            expected.iter().map(|(name, addresses)| (*name, addresses.iter().copied().map(ip).collect::<Vec<_>>())).collect();
        assert_eq!(endpoints(&desired_state), expected, "{case}");
        let desired = desired(&state(controller, &[]), &local, |_| KernelSets::default());
        assert_eq!(desired.interfaces.keys().copied().collect::<Vec<_>>(), *known, "{case}");
    }
}

#[test]
fn an_interface_that_only_a_manifest_makes_a_workloads_is_bound_to_nothing_until_the_workload_is_enforced() {
    for (case, discovered, bound) in
        [("enforced", [2].as_slice(), 1), ("without an address", [].as_slice(), 0), ("not known to the controller", [3].as_slice(), 0)]
    {
        let mut local = local(&[("a", 7, discovered)]);
        local.declared.insert(7, (InterfaceName::new("odd7"), "shop/a".to_owned()));
        let endpoints: &[(&str, &[u8])] = if case == "not known to the controller" { &[] } else { &[("a", &[2])] };
        let desired = desired(&state(endpoints, &[]), &local, |_| KernelSets::default());
        let interface = &desired.interfaces[&7];
        assert_eq!((interface.claim.mac.is_some(), interface.claim.addresses.len()), (bound == 1, bound), "{case}");
    }
}

#[test]
fn an_address_that_its_workload_has_lost_leaves_every_peer_group() {
    let tcp = Protocol::TCP;
    let block = Member::Block("10.0.0.0/24".parse().unwrap());
    let peers = [Member::Address(ip(2)), Member::Service(ip(2), tcp, 80), Member::Address(ip(3)), Member::Address(ip(99)), block];
    let rest = [Member::Address(ip(3)), Member::Address(ip(99)), block];
    let controller = state(&[("a", &[2]), ("b", &[3])], &peers);
    for (case, discovered, expected) in [
        ("everybody is there", local(&[("a", 7, &[2]), ("b", 8, &[3])]), peers.as_slice()),
        ("a stopped", local(&[("b", 8, &[3])]), rest.as_slice()),
        ("a stopped, a stranger has its address", local(&[("b", 8, &[3]), ("c", 9, &[2])]), rest.as_slice()),
        ("a stopped, b has its address", local(&[("b", 8, &[2, 3])]), rest.as_slice()),
    ] {
        let alive = restrict(&controller, &discovered);
        let members: firebreak_policy::Members = expected.iter().copied().collect();
        assert_eq!(alive.groups.values().map(|group| &group.members).collect::<Vec<_>>(), [&members], "{case}");
    }
}

#[test]
fn what_is_missing_allows_nothing() {
    let discovered = local(&[("a", 7, &[2])]);

    let mut without_segment = state(&[("a", &[2])], &[]);
    without_segment.segments.clear();
    assert!(desired(&without_segment, &discovered, |_| KernelSets::default()).interfaces.is_empty());

    let mut without_group = state(&[("a", &[2])], &[Member::Address(ip(3))]);
    without_group.groups.clear();
    let alive = restrict(&without_group, &discovered);
    assert_eq!(alive.groups.values().map(|group| group.members.len()).collect::<Vec<_>>(), [0]);

    // A rule of a tier may deny: without its group nobody knows whom.
    let mut tiered = state(&[("a", &[2])], &[Member::Address(ip(3))]);
    let with_groups = tiered.groups.clone();
    for segment in tiered.segments.values_mut() {
        let isolation = Arc::make_mut(&mut segment.rules).ingress.take().unwrap();
        let rule = &isolation.rules[0];
        Arc::make_mut(&mut segment.rules).admin.ingress.push(TierRule {
            origin: rule.origin.clone(),
            action: Action::Deny(Answer::Drop),
            peers: rule.peers.clone(),
            services: rule.services.clone(),
            reason: None,
        });
    }
    assert_eq!(desired(&tiered, &discovered, |_| KernelSets::default()).interfaces.len(), 1);
    let discovered = Arc::new(discovered);
    let mut core = Core::default();
    core.next(&tiered, &discovered);
    tiered.groups.clear();
    assert!(desired(&tiered, &discovered, |_| KernelSets::default()).interfaces.is_empty());
    let Change::Whole(anew) = core.next(&tiered, &discovered) else { panic!("that is no change of members") };
    assert!(anew.interfaces.is_empty());
    tiered.groups = with_groups;
    let Change::Whole(again) = core.next(&tiered, &discovered) else { panic!("nothing was said of it") };
    assert_eq!(again.interfaces.len(), 1);

    let mut troubled = local(&[("a", 7, &[2])]);
    for workload in troubled.workloads.values_mut() {
        Arc::make_mut(workload).problem = Some(Problem::ClaimedTwice("veth7".into()));
    }
    assert!(desired(&state(&[("a", &[2])], &[]), &troubled, |_| KernelSets::default()).interfaces.is_empty());
}

#[test]
fn only_what_the_living_need_is_flattened() {
    let alive = restrict(&state(&[("a", &[2]), ("b", &[3])], &[Member::Address(ip(50))]), &local(&[("a", 7, &[2])]));
    assert_eq!(alive.segments.keys().map(|id| &*id.0).collect::<Vec<_>>(), ["a"]);
    assert_eq!(alive.groups.len(), 1);
    let nobody = restrict(&state(&[("a", &[2])], &[]), &local(&[]));
    assert!(nobody.segments.is_empty() && nobody.groups.is_empty());
}

#[test]
fn exempt_interfaces_are_handed_on_and_nobody_is_managed_behind_them() {
    let mut discovered = local(&[("a", 7, &[2])]);
    discovered.exempt.insert(3, ExemptInterface { name: "vethup".into(), reason: ExemptReason::DefaultRoute });
    let desired = desired(&state(&[("a", &[2])], &[]), &discovered, |_| KernelSets::default());
    assert_eq!(desired.exempt, BTreeMap::from([(3, InterfaceName::new("vethup"))]));
    let managed = &desired.interfaces[&7];
    assert_eq!((managed.name.as_str(), &*managed.workload, &managed.addresses), ("veth7", "shop/a", &BTreeSet::from([ip(2)])));
}

#[test]
fn a_member_that_comes_or_goes_is_a_delta_and_any_other_change_is_whole() {
    let there = |last| Member::Address(ip(last));
    let discovered = Arc::new(local(&[("a", 7, &[2])]));
    let mut core = Core::new(Limits { pairs: 1_000, ..Limits::DEFAULT });
    let mut kernel = match core.next(&state(&[("a", &[2]), ("gone", &[9])], &[there(50), there(9)]), &discovered) {
        Change::Whole(desired) => desired,
        Change::Members(_) => panic!("the first is whole"),
    };
    // An address that nobody holds stays out, also when only members change.
    for (members, puts, removes) in [(vec![50, 51, 9], 1, 0), (vec![51, 9], 0, 1), (vec![51], 0, 0), (vec![51, 52, 53], 2, 0)] {
        let members: Vec<Member> = members.into_iter().map(there).collect();
        let next = state(&[("a", &[2]), ("gone", &[9])], &members);
        let Change::Members(delta) = core.next(&next, &discovered) else { panic!("{members:?} is a change of members") };
        assert_eq!((delta.put.len(), delta.remove.len()), (puts, removes), "{members:?}");
        delta.apply(&mut kernel.sets);
        assert_eq!(kernel, desired(&next, &discovered, firebreak_policy::flatten), "{members:?}");
    }
    let same = state(&[("a", &[2]), ("gone", &[9])], &[there(51), there(52), there(53)]);
    core.forget();
    assert!(matches!(core.next(&same, &discovered), Change::Whole(_)), "after a refusal");
    assert!(matches!(core.next(&same, &Arc::new(local(&[("a", 8, &[2])]))), Change::Whole(_)), "another interface");
    let other = state(&[("a", &[2]), ("b", &[9])], &[there(51)]);
    assert!(matches!(core.next(&other, &discovered), Change::Whole(_)), "another endpoint");
}

/// What the guard of `a` (interface 7) may be bound to: MAC address and IP addresses.
fn claimed(controller: &NodeState, local: &LocalWorkloads) -> (Option<MacAddress>, Vec<IpAddr>) {
    let desired = desired(controller, local, |_| KernelSets::default());
    let claim = &desired.interfaces[&7].claim;
    (claim.mac, claim.addresses.iter().copied().collect())
}

#[test]
fn a_guard_binds_nothing_that_the_workload_alone_says() {
    type Change = fn(&mut LocalInterface, &mut LocalWorkloads);
    let link_local: IpAddr = "fe80::7".parse().unwrap();
    type Case<'a> = (&'a str, &'a [u8], Change, Option<MacAddress>, &'a [IpAddr]);
    let table: &[Case<'_>] = &[
        ("as the controller has it", &[2], |_, _| {}, Some(mac(7)), &[ip(2)]),
        ("an address that the controller has not heard of", &[2, 9], |_, _| {}, Some(mac(7)), &[ip(2)]),
        (
            "an engine says one of two that the controller has",
            &[2, 3],
            |interface, _| interface.vouched = Some(Vouched { macs: BTreeSet::new(), addresses: [ip(2)].into() }),
            Some(mac(7)),
            &[ip(2)],
        ),
        (
            "an engine says two, and the controller has heard of one",
            &[2, 9],
            |interface, _| interface.vouched = Some(Vouched { macs: BTreeSet::new(), addresses: [ip(2), ip(9)].into() }),
            Some(mac(7)),
            &[ip(2)],
        ),
        (
            "another MAC address than the engine gave",
            &[2],
            |interface, _| interface.vouched = Some(Vouched { macs: [mac(8)].into(), addresses: [ip(2)].into() }),
            None,
            &[ip(2)],
        ),
        ("the node's MAC address", &[2], |_, local| local.node_macs = [mac(7)].into(), None, &[ip(2)]),
        ("a group's MAC address", &[2], |interface, _| interface.mac = Some(MacAddress([1, 0, 0x5e, 0, 0, 1])), None, &[ip(2)]),
        (
            "a link-local address",
            &[2],
            |interface, _| {
                let network = NetworkName::default_network();
                interface.addresses.insert(NetworkAddress { network, address: "fe80::7".parse().unwrap() });
            },
            Some(mac(7)),
            &[ip(2), link_local],
        ),
        (
            "the node's link-local address",
            &[2],
            |interface, local| {
                let address: IpAddr = "fe80::7".parse().unwrap();
                interface.addresses.insert(NetworkAddress { network: NetworkName::default_network(), address });
                local.own_addresses.insert(address);
            },
            Some(mac(7)),
            &[ip(2)],
        ),
    ];
    for (case, addresses, change, expected_mac, expected) in table {
        let mut discovered = local(&[("a", 7, addresses)]);
        let mut workload = LocalWorkload::clone(&discovered.workloads["a"]);
        change(workload.interfaces.get_mut(&7).unwrap(), &mut discovered);
        discovered.workloads.insert("a".into(), Arc::new(workload));
        let controller = state(&[("a", if *case == "an engine says one of two that the controller has" { &[2, 3] } else { &[2] })], &[]);
        assert_eq!(claimed(&controller, &discovered), (*expected_mac, expected.to_vec()), "{case}");
    }
}
