//! The index is what a fresh compile of its state is, whatever the events were that led there: straight, reversed, squashed, split, with empty
//! states between; and what it says changed is all that changed. 1,200 random sequences, ten times as many at `FIREBREAK_SCALE=full`, and
//! every transition between two of the named states. Planted mistakes are found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_policy::arbitrary::{inventories, strangers, tiered_clusters, transports};
use firebreak_policy::evaluate::PeerView;
use firebreak_policy::index::{Forgotten, Holding, Index, Running, Stamps, Unstamped, Written};
use firebreak_policy::model::*;
use firebreak_policy::node_state::{GroupId, LocalEndpoint, Member, NodeState, ObjectKey, ObjectKind, Rulebook, SegmentId};
use firebreak_policy::reference::Reference;
use firebreak_policy::{Compiled, Headed, SharedMap, compile};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

mod named_states;

type State = (PolicySet, Inventory);

/// Content hashes that differ where contents do.
#[derive(Debug)]
struct Printed;

fn number(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

impl Stamps for Printed {
    type Stamp = u64;
    type Sum = u64;
    type Total = u64;
    type Rules = String;

    fn add(sum: &mut u64, member: &Member) {
        *sum = sum.wrapping_add(number(&format!("{member:?}")));
    }
    fn remove(sum: &mut u64, member: &Member) {
        *sum = sum.wrapping_sub(number(&format!("{member:?}")));
    }
    fn came(total: &mut u64, key: &ObjectKey, stamp: u64) {
        *total = total.wrapping_add(number(&format!("{key:?} {stamp}")));
    }
    fn went(total: &mut u64, key: &ObjectKey, stamp: u64) {
        *total = total.wrapping_sub(number(&format!("{key:?} {stamp}")));
    }
    fn group(id: &GroupId, title: &str, members: &u64) -> u64 {
        number(&format!("{id:?} {title} {members}"))
    }
    fn rules(rules: &Rulebook, audit: Option<&Rulebook>) -> String {
        format!("{rules:?} {audit:?}")
    }
    fn segment(id: &SegmentId, title: &str, rules: &String) -> u64 {
        number(&format!("{id:?} {title} {rules}"))
    }
    fn endpoint(endpoint: &LocalEndpoint) -> u64 {
        number(&format!("{endpoint:?}"))
    }
    fn node(name: &NodeName, addresses: &BTreeSet<IpAddr>) -> u64 {
        number(&format!("{name} {addresses:?}"))
    }
}

/// Every object of a state with its hash, from nothing.
fn objects(name: &NodeName, state: &NodeState) -> Vec<(ObjectKey, u64)> {
    let groups = state.groups.values().map(|group| {
        let mut sum = 0;
        group.members.iter().for_each(|member| Printed::add(&mut sum, member));
        (ObjectKey::new(ObjectKind::Group, group.id.0.clone()), Printed::group(&group.id, &group.title, &sum))
    });
    let segments = state.segments.values().map(|it| {
        (
            ObjectKey::new(ObjectKind::Segment, it.id.0.clone()),
            Printed::segment(&it.id, &it.title, &Printed::rules(&it.rules, it.audit.as_deref())),
        )
    });
    let endpoints =
        state.endpoints.values().map(|it| (ObjectKey::new(ObjectKind::Endpoint, it.id.container.as_str()), Printed::endpoint(it)));
    let node = (ObjectKey::new(ObjectKind::Node, name.as_str()), Printed::node(name, &state.addresses));
    let mut all: Vec<_> = groups.chain(segments).chain(endpoints).chain([node]).collect();
    all.sort();
    all
}

#[derive(Clone, Debug)]
enum Event {
    Workload(WorkloadId, Option<Workload>),
    Namespace(NamespaceName, Option<Namespace>),
    Node(NodeName, Option<Node>),
    Policy(PolicyKey, Option<Policy>),
    Tiered(PolicyKey, Option<TieredPolicy>),
    AddressGroup(GroupName, Option<AddressGroup>),
    ClusterNetworks(Vec<ipnet::IpNet>),
}

fn differences<K: Headed + Clone, V: Clone + PartialEq>(
    from: &SharedMap<K, V>,
    to: &SharedMap<K, V>,
    event: impl Fn(K, Option<V>) -> Event,
) -> Vec<Event> {
    let keys: BTreeSet<&K> = from.keys().chain(to.keys()).collect();
    keys.into_iter().filter(|key| from.get(*key) != to.get(*key)).map(|key| event(key.clone(), to.get(key).cloned())).collect()
}

/// The events that lead from one state to another.
fn events((old, was): &State, (new, is): &State) -> Vec<Event> {
    let mut events = differences(&old.policies, &new.policies, Event::Policy);
    events.extend(differences(&was.workloads, &is.workloads, Event::Workload));
    events.extend(differences(&old.tiered, &new.tiered, Event::Tiered));
    events.extend(differences(&was.nodes, &is.nodes, Event::Node));
    events.extend(differences(&old.address_groups, &new.address_groups, Event::AddressGroup));
    events.extend(differences(&was.namespaces, &is.namespaces, Event::Namespace));
    if old.cluster_networks != new.cluster_networks {
        events.push(Event::ClusterNetworks(new.cluster_networks.clone()));
    }
    events
}

fn tell_running(running: &mut Running, event: &Event) {
    match event.clone() {
        Event::Workload(_, Some(it)) => running.put_workload(Arc::new(it)),
        Event::Workload(id, None) => running.remove_workload(&id),
        Event::Namespace(_, Some(it)) => running.put_namespace(&it),
        Event::Namespace(name, None) => running.remove_namespace(&name),
        Event::Node(_, Some(it)) => running.put_node(Arc::new(it)),
        Event::Node(name, None) => running.remove_node(&name),
        Event::Policy(..) | Event::Tiered(..) | Event::AddressGroup(..) | Event::ClusterNetworks(_) => {}
    }
}

fn tell_written<S: Stamps>(written: &mut Written<S>, event: &Event) {
    match event.clone() {
        Event::Policy(_, Some(it)) => written.put_policy(Arc::new(it)),
        Event::Policy(key, None) => written.remove_policy(&key),
        Event::Tiered(_, Some(it)) => written.put_tiered(Arc::new(it)),
        Event::Tiered(key, None) => written.remove_tiered(&key),
        Event::AddressGroup(_, Some(it)) => written.put_address_group(Arc::new(it)),
        Event::AddressGroup(name, None) => written.remove_address_group(&name),
        Event::ClusterNetworks(networks) => written.set_cluster_networks(&networks),
        Event::Workload(..) | Event::Namespace(..) | Event::Node(..) => {}
    }
}

/// An index, and what its words about changes add up to.
#[derive(Default)]
struct Followed {
    running: Running,
    written: Written<Printed>,
    mirror: BTreeMap<NodeName, BTreeMap<ObjectKey, u64>>,
}

impl Followed {
    fn tell(&mut self, event: &Event) {
        tell_running(&mut self.running, event);
        tell_written(&mut self.written, event);
    }

    fn settle(&mut self) {
        self.settle_but(None);
    }

    /// Settles; an index with a planted mistake does not look at all that was touched.
    fn settle_but(&mut self, forgotten: Option<Forgotten>) {
        let mut touched = self.running.take_touched();
        forgotten.into_iter().for_each(|it| touched.forget(it));
        self.written.settle(&mut self.running, &touched);
        for (node, keys) in self.written.take_changed(&self.running) {
            let Some(holding) = self.written.node(&self.running, &node) else {
                self.mirror.remove(&node);
                continue;
            };
            let mirror = self.mirror.entry(node).or_default();
            for key in keys {
                match holding.objects.get(&key) {
                    Some(stamp) => mirror.insert(key, stamp),
                    None => mirror.remove(&key),
                };
            }
        }
    }

    fn is(&self, (policies, inventory): &State) -> Result<Compiled, TestCaseError> {
        let (is, expected) = (self.written.compiled(&self.running), compile(policies, inventory));
        prop_assert_eq!(&is, &expected);
        let mut mirrored = 0;
        for (name, holding) in self.written.nodes(&self.running) {
            let Holding { state, objects: stamped, total } = holding;
            let listed: Vec<_> = stamped.iter().map(|(key, stamp)| (key.clone(), stamp)).collect();
            prop_assert_eq!(&listed, &objects(name, state), "hashes on {}", name);
            let mut fresh = 0;
            stamped.iter().for_each(|(key, stamp)| Printed::came(&mut fresh, key, stamp));
            prop_assert_eq!(*total, fresh, "the total on {}", name);
            let mirror: Vec<_> = self.mirror.get(name).into_iter().flatten().map(|(key, stamp)| (key.clone(), *stamp)).collect();
            prop_assert_eq!(&mirror, &listed, "what was said to have changed on {}", name);
            mirrored += 1;
        }
        prop_assert_eq!(mirrored, self.mirror.len());
        Ok(is)
    }
}

/// How a sequence of states is told.
#[derive(Clone, Copy, Debug)]
enum Telling {
    /// All events of a step, then settled.
    AtOnce,
    /// Settled after each event.
    Split,
    /// The events of a step in reversed order.
    Backwards,
    /// Several steps before it is settled.
    Squashed,
}

fn follow(states: &[State], telling: Telling) -> TestCaseResult {
    let mut index = Followed::default();
    let empty = State::default();
    for (position, state) in states.iter().enumerate() {
        let before = position.checked_sub(1).map_or(&empty, |before| &states[before]);
        let mut events = events(before, state);
        if matches!(telling, Telling::Backwards) {
            events.reverse();
        }
        for event in &events {
            index.tell(event);
            if matches!(telling, Telling::Split) {
                index.settle();
            }
        }
        if matches!(telling, Telling::Squashed) && position % 3 != 2 && position + 1 != states.len() {
            continue;
        }
        index.settle();
        index.is(state)?;
    }
    Ok(())
}

fn every_way(states: &[State]) -> TestCaseResult {
    let reversed: Vec<State> = states.iter().rev().cloned().collect();
    let empties: Vec<State> = states.iter().flat_map(|state| [state.clone(), State::default()]).collect();
    for telling in [Telling::AtOnce, Telling::Split, Telling::Backwards, Telling::Squashed] {
        follow(states, telling)?;
        follow(&reversed, telling)?;
    }
    follow(&empties, Telling::AtOnce)?;
    follow(&empties, Telling::Squashed)
}

/// A small generator of numbers; the seed is the property's.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    /// Some of each: what has changed, what is there only sometimes, what stays.
    fn mix<K: Headed + Clone, V: Clone>(&mut self, sources: &[&SharedMap<K, V>], before: &SharedMap<K, V>) -> SharedMap<K, V> {
        let keys: BTreeSet<&K> = sources.iter().flat_map(|it| it.keys()).collect();
        let mut mixed = before.clone();
        for key in keys {
            if self.roll(3) > 0 {
                continue;
            }
            let source = sources.get(usize::try_from(self.roll(4)).unwrap());
            match source.and_then(|source| source.get(key)) {
                Some(value) => drop(mixed.insert(key.clone(), value.clone())),
                None => drop(mixed.remove(key)),
            }
        }
        mixed
    }
}

/// Three random clusters, and states that are mixed from them, each from the one before.
fn sequences() -> impl Strategy<Value = Vec<State>> {
    (prop::collection::vec(tiered_clusters(), 3), any::<u64>(), 2_usize..8).prop_map(|(clusters, seed, steps)| {
        let mut dice = Dice(seed);
        let mut states = vec![clusters[0].clone()];
        for _ in 1..steps {
            let (policies, inventory) = states.last().unwrap().clone();
            let sets: Vec<&PolicySet> = clusters.iter().map(|(policies, _)| policies).collect();
            let inventories: Vec<&Inventory> = clusters.iter().map(|(_, inventory)| inventory).collect();
            let policies = PolicySet {
                policies: dice.mix(&sets.iter().map(|it| &it.policies).collect::<Vec<_>>(), &policies.policies),
                tiered: dice.mix(&sets.iter().map(|it| &it.tiered).collect::<Vec<_>>(), &policies.tiered),
                address_groups: dice.mix(&sets.iter().map(|it| &it.address_groups).collect::<Vec<_>>(), &policies.address_groups),
                cluster_networks: sets[usize::try_from(dice.roll(3)).unwrap()].cluster_networks.clone(),
            };
            let inventory = Inventory {
                namespaces: dice.mix(&inventories.iter().map(|it| &it.namespaces).collect::<Vec<_>>(), &inventory.namespaces),
                nodes: dice.mix(&inventories.iter().map(|it| &it.nodes).collect::<Vec<_>>(), &inventory.nodes),
                workloads: dice.mix(&inventories.iter().map(|it| &it.workloads).collect::<Vec<_>>(), &inventory.workloads),
            };
            states.push((policies, inventory));
        }
        states
    })
}

fn check<T: Strategy>(name: &str, cases: u32, strategy: T, property: impl Fn(T::Value) -> TestCaseResult) {
    let scale = match std::env::var("FIREBREAK_SCALE").as_deref() {
        Ok("full") => 10,
        Ok("ci") | Err(_) => 1,
        Ok(other) => panic!("FIREBREAK_SCALE is {other:?}, not ci or full"),
    };
    let config = Config { cases: cases * scale, failure_persistence: None, max_shrink_iters: 5_000, ..Config::default() };
    if let Err(failure) = TestRunner::new(config).run(&strategy, property) {
        panic!("{name}: {failure}");
    }
    println!("{name}: {} sequences", cases * scale);
}

#[test]
fn straight_reversed_squashed_split_and_with_empties_between_it_is_a_fresh_compile_of_its_state() {
    check("sequences", 400, sequences(), |states| every_way(&states));
}

#[test]
fn what_it_says_of_sampled_flows_is_what_the_reference_says() {
    check("flows", 150, (sequences(), transports(Family::V4), transports(Family::V6)), |(states, v4, v6)| {
        let mut index = Followed::default();
        let mut before = State::default();
        for state in states {
            events(&before, &state).iter().for_each(|event| index.tell(event));
            index.settle();
            agrees(&index.written.compiled(&index.running), &state, &[v4, v6])?;
            before = state;
        }
        Ok(())
    });
}

fn agrees(compiled: &Compiled, (policies, inventory): &State, transports: &[Transport]) -> TestCaseResult {
    let reference = Reference { policies, inventory };
    let addresses = inventory.workloads.values().flat_map(|it| &it.addresses).map(|at| at.address);
    let peers: BTreeSet<IpAddr> = addresses.chain(strangers()).collect();
    for (node, state) in compiled.nodes() {
        for endpoint in state.endpoints.values() {
            for local in endpoint.addresses.iter().filter(|local| reference.local(node, **local).count() == 1) {
                for peer in peers.iter().filter(|peer| peer.is_ipv4() == local.is_ipv4()) {
                    for (transport, direction) in transports.iter().flat_map(|it| [(*it, Direction::Ingress), (*it, Direction::Egress)]) {
                        if matches!(transport, Transport::Icmp { family, .. } if family != Family::of(*local)) {
                            continue;
                        }
                        let view = PeerView { address: *peer, name: "peer" };
                        let said = compiled.judge_end(&endpoint.id, direction, *local, view, transport).unwrap().allowed();
                        let expected = reference.stage(node, direction, *local, *peer, transport).unwrap();
                        prop_assert_eq!(said, expected, "{} {:?} {} {} {}", endpoint.id, direction, local, peer, transport);
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_named_state_is_what_the_reference_says() {
    let transports = [Transport::Port(Protocol::TCP, 80), Transport::Port(Protocol::TCP, 8080), Transport::Other(Protocol(47))];
    for (name, state) in named_states::all() {
        let index = Index::<Unstamped>::of(&state.0, &state.1);
        agrees(&index.compiled(), &state, &transports).unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }
}

#[test]
fn every_transition_between_two_named_states_ends_in_a_fresh_compile_however_it_is_told() {
    let states = named_states::all();
    let names: BTreeSet<&str> = states.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), states.len(), "two states of one name");
    for (at, (one, before)) in states.iter().enumerate() {
        for (other, after) in &states[at + 1..] {
            assert_ne!(before, after, "{one} is {other}");
            every_way(&[before.clone(), after.clone()]).unwrap_or_else(|failure| panic!("{one} and {other}: {failure}"));
        }
    }
    let walk: Vec<State> = states.iter().map(|(_, state)| state.clone()).collect();
    every_way(&walk).unwrap_or_else(|failure| panic!("all of them: {failure}"));
    println!("{} states, {} transitions", states.len(), states.len() * (states.len() - 1));
}

/// Tells a transition to an index with a planted mistake, which may be that an event is lost.
fn mistaken(before: &State, after: &State, forgotten: Option<Forgotten>, lost: impl Fn(&Event) -> bool) -> TestCaseResult {
    let mut index = Followed::default();
    events(&State::default(), before).iter().for_each(|event| index.tell(event));
    index.settle();
    events(before, after).iter().filter(|event| !lost(event)).for_each(|event| index.tell(event));
    index.settle_but(forgotten);
    index.is(after).map(drop)
}

/// In how many transitions between named states a mistake is found.
fn found(forgotten: Option<Forgotten>, lost: impl Fn(&Event) -> bool) -> usize {
    let states = named_states::all();
    let pairs = states.iter().flat_map(|(_, before)| states.iter().map(move |(_, after)| (before, after)));
    // An index that is wrong may break off too.
    let is_found = |before, after| {
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mistaken(before, after, forgotten, &lost)));
        told.is_err() || told.is_ok_and(|told| told.is_err())
    };
    pairs.filter(|(before, after)| is_found(before, after)).count()
}

#[test]
fn an_index_that_does_not_look_at_a_part_of_what_was_touched_is_found_out() {
    assert_eq!(found(None, |_| false), 0, "without a mistake");
    for forgotten in [
        Forgotten::Workloads,
        Forgotten::Gone,
        Forgotten::Kinds,
        Forgotten::Namespaces,
        Forgotten::Places,
        Forgotten::GivenUp,
        Forgotten::Nodes,
        Forgotten::NodeFacts,
        Forgotten::Ambiguous,
    ] {
        let found = found(Some(forgotten), |_| false);
        println!("{forgotten:?}: found in {found} transitions");
        assert!(found > 0, "{forgotten:?} is not missed by anybody");
    }
}

/// Whether an event is lost.
type Loses = fn(&Event) -> bool;

#[test]
fn an_index_that_loses_events_of_one_kind_is_found_out() {
    let kinds: [(&str, Loses); 9] = [
        ("workloads that come", |it| matches!(it, Event::Workload(_, Some(_)))),
        ("workloads that go", |it| matches!(it, Event::Workload(_, None))),
        ("namespaces", |it| matches!(it, Event::Namespace(..))),
        ("nodes", |it| matches!(it, Event::Node(..))),
        ("policies that come", |it| matches!(it, Event::Policy(_, Some(_)))),
        ("policies that go", |it| matches!(it, Event::Policy(_, None))),
        ("policies of tiers", |it| matches!(it, Event::Tiered(..))),
        ("address groups", |it| matches!(it, Event::AddressGroup(..))),
        ("cluster networks", |it| matches!(it, Event::ClusterNetworks(_))),
    ];
    for (what, lost) in kinds {
        assert!(found(None, lost) > 0, "{what} are not missed by anybody");
    }
}

#[test]
fn a_policy_set_that_joins_a_filled_inventory_is_a_fresh_one_and_leaves_nothing_behind() {
    let shape = (sequences(), sequences(), any::<u64>());
    check("joining", 150, shape, |(one, other, seed)| {
        let mut dice = Dice(seed);
        let mut index = Followed::default();
        let mut second: Option<(Written<Unstamped>, PolicySet)> = None;
        let mut before = State::default();
        for (state, (policies, _)) in one.iter().zip(&other) {
            events(&before, state).iter().for_each(|event| index.tell(event));
            before = state.clone();
            second = match (second, dice.roll(3)) {
                // Before the others have taken what was touched, or after.
                (None, at @ (0 | 1)) => {
                    if at == 0 {
                        index.settle();
                    }
                    let mut fresh = Written::default();
                    let all = (policies.clone(), state.1.clone());
                    events(&State::default(), &all).iter().for_each(|event| tell_written(&mut fresh, event));
                    fresh.join(&mut index.running);
                    prop_assert_eq!(fresh.compiled(&index.running), compile(policies, &state.1));
                    Some((fresh, policies.clone()))
                }
                (Some((gone, _)), 0) => {
                    gone.leave(&mut index.running);
                    None
                }
                (second, _) => second,
            };
            let touched = index.running.take_touched();
            index.written.settle(&mut index.running, &touched);
            prop_assert_eq!(index.written.compiled(&index.running), compile(&state.0, &state.1));
            if let Some((written, policies)) = &mut second {
                written.settle(&mut index.running, &touched);
                prop_assert_eq!(written.compiled(&index.running), compile(policies, &state.1));
            }
        }
        if let Some((gone, _)) = second {
            gone.leave(&mut index.running);
        }
        let fresh = Index::<Unstamped>::of(&before.0, &before.1);
        prop_assert_eq!(index.running.texts(), fresh.running().texts(), "texts of labels and selectors are left behind");
        Ok(())
    });
}

#[test]
fn a_policy_set_joins_and_leaves_between_any_two_named_states() {
    let states = named_states::all();
    for (name, (_, inventory)) in &states {
        let (mut running, mut first) = (Running::default(), Written::<Unstamped>::default());
        for event in events(&State::default(), &(PolicySet::default(), inventory.clone())) {
            tell_running(&mut running, &event);
        }
        let touched = running.take_touched();
        first.settle(&mut running, &touched);
        let alone = running.texts();
        for (other, (others, _)) in &states {
            let mut second = Written::<Printed>::default();
            let all = (others.clone(), Inventory::default());
            events(&State::default(), &all).iter().for_each(|event| tell_written(&mut second, event));
            second.join(&mut running);
            assert_eq!(second.compiled(&running), compile(others, inventory), "policies of {other} join {name}");
            second.leave(&mut running);
            assert_eq!(running.texts(), alone, "policies of {other} leave {name}");
        }
        assert_eq!(first.compiled(&running), compile(&PolicySet::default(), inventory), "{name}");
    }
}

#[test]
fn two_policy_sets_live_over_one_inventory() {
    let sets = (sequences(), sequences());
    check("two sets", 150, sets, |(one, other)| {
        let mut running = Running::default();
        let (mut first, mut second) = (Written::<Unstamped>::default(), Written::<Unstamped>::default());
        let (mut before, mut policies_before) = (State::default(), PolicySet::default());
        for (state, (policies, _)) in one.into_iter().zip(other) {
            for event in events(&before, &state) {
                tell_running(&mut running, &event);
                tell_written(&mut first, &event);
            }
            let planned = (policies_before, before.1.clone());
            for event in events(&planned, &(policies.clone(), before.1.clone())) {
                tell_written(&mut second, &event);
            }
            let touched = running.take_touched();
            first.settle(&mut running, &touched);
            second.settle(&mut running, &touched);
            prop_assert_eq!(first.compiled(&running), compile(&state.0, &state.1));
            prop_assert_eq!(second.compiled(&running), compile(&policies, &state.1));
            (before, policies_before) = (state, policies);
        }
        Ok(())
    });
}

#[test]
fn an_index_made_all_at_once_is_a_fresh_compile() {
    let cluster = prop_oneof![tiered_clusters(), (Just(PolicySet::default()), inventories())];
    check("at once", 500, cluster, |(policies, inventory)| {
        let index = Index::<Unstamped>::of(&policies, &inventory);
        prop_assert_eq!(index.compiled(), compile(&policies, &inventory));
        Ok(())
    });
}
