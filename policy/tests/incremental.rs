//! A state that is reached step by step has the sets that flattening it from the beginning gives, whatever the steps were.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_policy::arbitrary::{clusters, strangers, tiered_clusters};
use firebreak_policy::kernel_sets::{KernelSets, Shape};
use firebreak_policy::model::Protocol;
use firebreak_policy::node_state::{Group, GroupId, Member, NodeState};
use firebreak_policy::{Flattened, Limits, Step, compile, flatten_with};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

/// A member comes or goes, of the group at a position.
#[derive(Clone, Debug)]
struct Edit {
    group: usize,
    member: Member,
    comes: bool,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let pool: Vec<IpAddr> =
        strangers().into_iter().chain(["10.0.0.1", "10.0.0.2", "10.1.0.7", "fd00::1"].map(|it| it.parse().unwrap())).collect();
    let address = prop::sample::select(pool);
    let member = prop_oneof![
        4 => address.clone().prop_map(Member::Address),
        1 => address.clone().prop_map(|it| Member::Block(IpNet::from(it))),
        1 => (address.clone(), 8_u8..31).prop_map(|(it, length)| Member::Block(IpNet::new(it, length).unwrap().trunc())),
        1 => (address, prop::sample::select(vec![80_u16, 443])).prop_map(|(it, port)| Member::Service(it, Protocol::TCP, port)),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), member, any::<bool>()), 1..12)
        .prop_map(|edits| edits.into_iter().map(|(group, member, comes)| Edit { group: group.index(64), member, comes }).collect())
}

fn edited(state: &NodeState, edit: &Edit) -> NodeState {
    let mut next = state.clone();
    let Some(id) = state.groups.keys().nth(edit.group % state.groups.len().max(1)).cloned() else { return next };
    let group: &mut Group = next.groups.get_mut(&id).unwrap();
    if edit.comes {
        group.members.insert(edit.member)
    } else {
        group.members.remove(&edit.member)
    };
    next
}

/// Follows the states and says how many steps were deltas.
fn follow(states: &[NodeState], limits: Limits) -> Result<usize, TestCaseError> {
    let (mut flattened, mut sets) = Flattened::new(states[0].clone(), limits);
    let mut deltas = 0;
    for state in &states[1..] {
        match flattened.next(state.clone()) {
            Step::Delta(delta) => {
                deltas += 1;
                let before = sets.clone();
                delta.apply(&mut sets);
                prop_assert!(
                    (before == sets) == (delta.put.is_empty() && delta.remove.is_empty() && delta.groups.is_empty())
                        || !delta.groups.is_empty()
                );
            }
            Step::Whole(whole) => sets = whole,
        }
        let expected: KernelSets = flatten_with(state, &limits);
        prop_assert_eq!(&sets, &expected);
    }
    Ok(deltas)
}

fn limits() -> impl Strategy<Value = Limits> {
    (prop::sample::select(vec![0, 3, 10, 4_096]), prop::sample::select(vec![0, 7, 60, 16_384]), prop::sample::select(vec![1, 3, 32]))
        .prop_map(|(pairs, elements, rules)| Limits { pairs, elements, rules })
}

#[test]
fn step_by_step_reversed_squashed_and_with_empties_between_the_sets_are_those_of_the_state() {
    let (deltas, steps) = (Cell::new(0), Cell::new(0));
    let cases = if std::env::var("FIREBREAK_SCALE").as_deref() == Ok("full") { 20_000 } else { 2_000 };
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
    let property = |((policies, inventory), edits, limits): (_, Vec<Edit>, Limits)| -> TestCaseResult {
        let compiled = compile(&policies, &inventory);
        let Some(first) =
            compiled.nodes().values().filter(|state| !state.groups.is_empty()).max_by_key(|state| state.segments.len()).cloned()
        else {
            return Ok(());
        };
        let mut states = vec![first];
        for edit in &edits {
            states.push(edited(states.last().unwrap(), edit));
        }
        deltas.set(deltas.get() + follow(&states, limits)?);
        steps.set(steps.get() + edits.len());
        let reversed: Vec<NodeState> = states.iter().rev().cloned().collect();
        follow(&reversed, limits)?;
        let squashed = [states[0].clone(), states.last().unwrap().clone()];
        follow(&squashed, limits)?;
        let empties: Vec<NodeState> = states.iter().flat_map(|state| [state.clone(), NodeState::default()]).collect();
        follow(&empties, limits)?;
        Ok(())
    };
    let clusters = prop_oneof![3 => clusters(), 1 => tiered_clusters()];
    runner.run(&(clusters, edits(), limits()), property).unwrap();
    let (deltas, steps) = (deltas.get(), steps.get());
    println!("{deltas} of {steps} steps were deltas");
    assert!(deltas * 3 > steps, "too few deltas to show anything");
}

#[test]
fn a_change_of_one_member_of_a_shared_group_is_one_member_and_of_another_group_its_elements() {
    let (policies, inventory) = large();
    let compiled = compile(&policies, &inventory);
    let state = compiled.nodes().values().next().unwrap().clone();
    for (limits, elements, groups) in [(Limits::DEFAULT, 3, 0), (Limits { pairs: 10, ..Limits::DEFAULT }, 0, 1)] {
        let (mut flattened, _) = Flattened::new(state.clone(), limits);
        let mut next = state.clone();
        let id: GroupId = next.groups.keys().next().unwrap().clone();
        next.groups.get_mut(&id).unwrap().members.insert(Member::Address("10.77.0.1".parse().unwrap()));
        let Step::Delta(delta) = flattened.next(next) else { panic!("not a delta") };
        assert_eq!((delta.put.len(), delta.remove.len(), delta.groups.len()), (elements, 0, groups));
    }
}

/// Three local workloads that let in one group of ten.
fn large() -> (firebreak_policy::model::PolicySet, firebreak_policy::model::Inventory) {
    use firebreak_policy::model::*;
    let mut inventory = Inventory::default();
    let namespace = NamespaceName::from("shop");
    let labels = |app: &str| [("app", app)].into_iter().collect::<Labels>();
    for number in 0..13_u8 {
        let (node, app) = if number < 3 { ("node", "db") } else { ("other", "api") };
        let id = WorkloadId::new(NodeName::from(node), &*format!("w{number}"));
        let address = NetworkAddress { network: NetworkName::default_network(), address: IpAddr::from([10, 0, 0, number]) };
        let workload = Workload {
            id: id.clone(),
            name: format!("w{number}"),
            namespace: namespace.clone(),
            labels: labels(app),
            addresses: vec![address],
            named_ports: Vec::new(),
            published_ports: Vec::new(),
            interface: None,
            host_network: false,
            terminated: false,
            source: WorkloadSource::Manifest,
        };
        inventory.workloads.insert(id, workload);
    }
    let selector = |app: &str| LabelSelector { match_labels: [("app".to_owned(), app.to_owned())].into(), ..LabelSelector::default() };
    let rule = Rule {
        name: None,
        peers: Peers::Only(vec![Peer::Workloads { namespaces: NamespaceScope::Own, workloads: selector("api") }]),
        services: Services::Only(vec![Service::Ports(Protocol::TCP, PortRange::single(5432))]),
    };
    let key = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace, name: "db".to_owned() };
    let policy = Policy {
        key: key.clone(),
        mode: Mode::Enforce,
        subject: selector("db"),
        ingress: Some(vec![rule]),
        egress: None,
        host_access: HostAccess::Allow,
    };
    (PolicySet { policies: [(key, policy)].into(), ..PolicySet::default() }, inventory)
}

/// One local workload that lets in so many groups of so many members each, on one port.
fn node_with_groups(groups: u32, members: u32) -> NodeState {
    use firebreak_policy::model::*;
    use firebreak_policy::node_state::*;
    let mut state = NodeState::default();
    let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: NamespaceName::from("shop"), name: "db".to_owned() };
    let mut rules = Vec::new();
    for number in 0..groups {
        let id = GroupId(format!("group-{number:04}").into());
        let address = |of: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(0x0b00_0000 + number * 1_024 + of));
        let members = (0..members).map(|of| Member::Address(address(of))).collect();
        state
            .groups
            .insert_shared(id.clone(), Arc::new(Group { id: id.clone(), title: format!("app=api-{number} in namespace shop"), members }));
        rules.push(CompiledRule {
            origin: RuleRef { policy: policy.clone(), index: number, name: None },
            peers: CompiledPeers::Groups(vec![id]),
            services: CompiledServices::Only(vec![CompiledService::Ports(Protocol::TCP, PortRange::single(5432))]),
        });
    }
    let id = SegmentId("db".into());
    let ingress = Isolation { policies: vec![policy], host_access: HostAccess::Allow, rules };
    state.segments.insert_shared(
        id.clone(),
        Arc::new(Segment {
            id: id.clone(),
            title: "shop/db".to_owned(),
            rules: Rulebook { ingress: Some(ingress), ..Rulebook::default() }.into(),
            audit: None,
        }),
    );
    let workload = WorkloadId::new(NodeName::from("node"), "w0");
    let endpoint = LocalEndpoint {
        id: workload.clone(),
        name: "db-0".to_owned(),
        namespace: NamespaceName::from("shop"),
        segment: id,
        addresses: [IpAddr::from([10, 9, 0, 1])].into(),
        published_ports: Vec::new(),
    };
    state.endpoints.insert_shared(workload, Arc::new(endpoint));
    state
}

#[test]
fn small_groups_that_make_much_together_are_shared_and_those_beyond_a_chain_are_one_set() {
    // Elements that are multiplied out, sets, rules.
    let cases = [
        (20, 20, Limits::DEFAULT, (400, 0, 0)),
        (20, 20, Limits { elements: 399, ..Limits::DEFAULT }, (0, 20, 20)),
        (40, 20, Limits { elements: 799, ..Limits::DEFAULT }, (0, 1, 1)),
        (40, 600, Limits::DEFAULT, (0, 1, 1)),
        (32, 600, Limits::DEFAULT, (0, 32, 32)),
    ];
    for (groups, members, limits, (elements, sets, rules)) in cases {
        let state = node_with_groups(groups, members);
        let flat = flatten_with(&state, &limits);
        let multiplied: usize = flat.sets.iter().filter(|(id, _)| id.shape == Shape::PeerPort).map(|(_, elements)| elements.len()).sum();
        let named: usize = flat.shared.chains.values().map(Vec::len).sum();
        assert_eq!((multiplied, flat.shared.groups.len(), named), (elements, sets, rules), "{groups} groups of {members}, {limits:?}");
        let held: usize = flat.shared.groups.values().map(|(members, _)| members.len()).sum();
        assert_eq!(multiplied + held, usize::try_from(groups * members).unwrap());
    }
}

#[test]
fn a_member_of_one_of_many_groups_of_one_set_comes_and_goes_with_the_last_of_them() {
    let limits = Limits::DEFAULT;
    let mut states = vec![node_with_groups(40, 600)];
    let shared = Member::Address("10.77.0.1".parse().unwrap());
    for (group, comes) in [(3, true), (7, true), (3, false), (7, false)] {
        states.push(edited(states.last().unwrap(), &Edit { group, member: shared, comes }));
    }
    assert_eq!(follow(&states, limits).unwrap(), 4, "each step is a delta");
}
