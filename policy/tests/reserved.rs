//! Reserved labels: what rules give, what workloads say of themselves, and policies about them, against the slow reference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_policy::arbitrary::{Vocabulary, inventories, strangers, transports};
use firebreak_policy::compile;
use firebreak_policy::evaluate::PeerView;
use firebreak_policy::model::{
    Direction, Family, Inventory, LabelSelector, Labels, Operator, PolicySet, Requirement, Transport, Workload, WorkloadId, WorkloadSource,
};
use firebreak_policy::reference::Reference;
use firebreak_policy::reserved::{Around, ImagePattern, LabelRule, RESERVED_PREFIX, apply, given};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

type Images = BTreeMap<WorkloadId, Vec<String>>;

/// Namespaces, workloads, nodes, images and labels of a rule.
type Draft = (LabelSelector, LabelSelector, LabelSelector, Vec<&'static str>, Vec<(String, String)>);

fn key(name: &str) -> String {
    format!("{RESERVED_PREFIX}{name}")
}

fn reserved() -> Vec<(String, String)> {
    [("zone", "pci"), ("zone", "dmz"), ("owner", "soc")].map(|(name, value)| (key(name), value.to_owned())).to_vec()
}

fn selectors(pairs: Vec<(&'static str, &'static str)>) -> impl Strategy<Value = LabelSelector> {
    let pair = || select(pairs.clone()).prop_map(|(key, value)| (key.to_owned(), value.to_owned()));
    prop_oneof![
        3 => Just(LabelSelector::everything()),
        3 => pair().prop_map(|pair| LabelSelector { match_labels: [pair].into(), match_expressions: Vec::new() }),
        1 => pair().prop_map(|(key, value)| LabelSelector {
            match_labels: BTreeMap::new(),
            match_expressions: vec![Requirement { key, operator: Operator::NotIn(vec![value]) }],
        }),
    ]
}

fn rules() -> impl Strategy<Value = BTreeMap<String, LabelRule>> {
    let images = prop_oneof![
        3 => Just(Vec::new()),
        1 => Just(vec!["shop/db:1"]),
        1 => Just(vec!["shop/*"]),
        1 => Just(vec!["shop/*", "base/sidecar:2"]),
    ];
    let labels = proptest::collection::vec(select(reserved()), 1..3);
    // A reserved key among those that a rule asks of a workload: it never sees one.
    let own = vec![("app", "web"), ("app", "db"), ("tier", "1"), ("reserved.firebreak.dev/zone", "pci")];
    let rule = (selectors(vec![("team", "x"), ("dev", "")]), selectors(own), selectors(vec![("zone", "1")]), images, labels);
    proptest::collection::vec((select(vec!["a", "b", "c", "d"]), rule), 0..4).prop_map(|rules| {
        let named = |(name, (namespaces, workloads, nodes, images, labels)): (&str, Draft)| {
            let images = images.into_iter().map(|it| ImagePattern(it.to_owned())).collect();
            (
                name.to_owned(),
                LabelRule { name: name.to_owned(), namespaces, workloads, nodes, images, labels: labels.into_iter().collect() },
            )
        };
        rules.into_iter().map(named).collect()
    })
}

/// An inventory some of whose workloads say reserved labels of themselves, and the images of most.
fn claimed() -> impl Strategy<Value = (Inventory, Images)> {
    let image = select(vec![vec![], vec!["shop/db:1"], vec!["shop/web:2"], vec!["shop/db:1", "base/sidecar:2"], vec!["other/db:1"]]);
    let said = proptest::option::weighted(0.3, select(reserved()));
    (inventories(), proptest::collection::vec((image, said), 8)).prop_map(|(mut inventory, drafts)| {
        let mut images = Images::new();
        for (workload, (of, said)) in inventory.workloads.values_mut().zip(drafts) {
            workload.labels.0.extend(said);
            images.insert(workload.id.clone(), of.into_iter().map(str::to_owned).collect());
        }
        (inventory, images)
    })
}

/// The labels of one workload, as slow and as plain as can be.
fn slowly(rules: &BTreeMap<String, LabelRule>, inventory: &Inventory, images: &Images, workload: &Workload) -> Labels {
    let mut own = Labels::default();
    for (key, value) in &workload.labels.0 {
        if !key.starts_with("reserved.firebreak.dev/") {
            own.0.insert(key.clone(), value.clone());
        }
    }
    let mut labels = own.clone();
    let nothing = Labels::default();
    // From the last to the first, so that the first has the last word.
    for rule in rules.values().rev() {
        let namespace = inventory.namespaces.get(&workload.namespace).map_or(&nothing, |it| &it.labels);
        let node = inventory.nodes.get(&workload.id.node).map_or(&nothing, |it| &it.labels);
        let of = &images[&workload.id];
        let mut fits = rule.images.is_empty() || !of.is_empty();
        for image in of {
            let by = |pattern: &ImagePattern| match pattern.0.split_once('*') {
                Some((beginning, _)) => image.len() >= beginning.len() && &image[..beginning.len()] == beginning,
                None => *image == pattern.0,
            };
            fits &= rule.images.is_empty() || rule.images.iter().any(by);
        }
        if fits && rule.namespaces.matches(namespace) && rule.nodes.matches(node) && rule.workloads.matches(&own) {
            labels.0.extend(rule.labels.0.clone());
        }
    }
    labels
}

#[test]
fn rules_policies_and_the_reference_agree_on_reserved_labels() {
    let cases = if std::env::var("FIREBREAK_SCALE").as_deref() == Ok("full") { 20_000 } else { 2_000 };
    let strategy = (claimed(), rules()).prop_flat_map(|((inventory, images), rules)| {
        let mut words = Vocabulary::of(&inventory);
        words.labels = words.labels.into_iter().filter(|(key, _)| !key.starts_with(RESERVED_PREFIX)).take(2).chain(reserved()).collect();
        let transports = (proptest::collection::vec(transports(Family::V4), 2), proptest::collection::vec(transports(Family::V6), 2));
        (words.tiered_policy_sets(), Just(inventory), Just(images), Just(rules), transports)
    });
    let (judged, given_to, ignored_of) = (Cell::new((0_u64, 0_u64)), Cell::new(0_u64), Cell::new(0_u64));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&strategy, |(policies, inventory, images, rules, (v4, v6))| {
        let mut slow = inventory.clone();
        for workload in slow.workloads.values_mut() {
            workload.labels = slowly(&rules, &inventory, &images, workload);
            given_to.set(given_to.get() + u64::from(workload.labels.0.keys().any(|key| key.starts_with(RESERVED_PREFIX))));
        }
        let mut fast = inventory.clone();
        let told = apply(&rules, &mut fast, &images);
        prop_assert_eq!(&fast, &slow);
        for (id, workload) in &inventory.workloads {
            let said: BTreeSet<String> = workload.labels.0.keys().filter(|key| key.starts_with(RESERVED_PREFIX)).cloned().collect();
            prop_assert_eq!(told.get(id).map(|it| it.ignored.clone()).unwrap_or_default(), said.clone(), "what it says itself is told");
            ignored_of.set(ignored_of.get() + u64::from(!said.is_empty()));
        }
        agree(&policies, &fast, &slow, &[v4, v6].concat(), &judged)
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    let ((allowed, denied), given_to, ignored_of) = (judged.get(), given_to.get(), ignored_of.get());
    println!(
        "reserved: {cases} cases agree, {allowed} judgements allow, {denied} deny; {given_to} workloads were given labels, {ignored_of} said some"
    );
    assert!(given_to > u64::from(cases) / 10 && ignored_of > u64::from(cases) / 10);
    assert!(denied * 20 > allowed && allowed * 20 > denied, "{allowed} allowed, {denied} denied");
}

fn agree(
    policies: &PolicySet,
    fast: &Inventory,
    slow: &Inventory,
    transports: &[Transport],
    judged: &Cell<(u64, u64)>,
) -> Result<(), TestCaseError> {
    let compiled = compile(policies, fast);
    let reference = Reference { policies, inventory: slow };
    let known = fast.workloads.values().flat_map(|it| &it.addresses).map(|at| at.address);
    let peers: BTreeSet<IpAddr> = known.chain(strangers().into_iter().take(2)).collect();
    for (node, state) in compiled.nodes() {
        for endpoint in state.endpoints.values() {
            for local in endpoint.addresses.iter().filter(|it| reference.local(node, **it).count() == 1) {
                for peer in peers.iter().filter(|it| it.is_ipv4() == local.is_ipv4()) {
                    for transport in
                        transports.iter().filter(|it| !matches!(it, Transport::Icmp { family, .. } if *family != Family::of(*local)))
                    {
                        for direction in [Direction::Ingress, Direction::Egress] {
                            let view = PeerView { address: *peer, name: "peer" };
                            let verdict = compiled.judge_end(&endpoint.id, direction, *local, view, *transport).unwrap();
                            let expected = reference.stage(node, direction, *local, *peer, *transport).unwrap();
                            prop_assert_eq!(verdict.allowed(), expected, "{} {:?} {} {}", endpoint.id, direction, peer, transport);
                            let (allowed, denied) = judged.get();
                            judged.set((allowed + u64::from(expected), denied + u64::from(!expected)));
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_first_rule_by_name_goes_first_and_the_other_is_told() {
    let workload = |labels: &[(&str, &str)]| Workload {
        id: WorkloadId::new("n1", "db"),
        name: "db".to_owned(),
        namespace: "shop".into(),
        labels: labels.iter().copied().collect(),
        addresses: Vec::new(),
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        interface: None,
        host_network: false,
        terminated: false,
        source: WorkloadSource::Manifest,
    };
    let rule = |name: &str, zone: &str| LabelRule {
        name: name.to_owned(),
        namespaces: LabelSelector::everything(),
        workloads: LabelSelector::everything(),
        nodes: LabelSelector::everything(),
        images: Vec::new(),
        labels: [(key("zone"), zone.to_owned())].into_iter().collect(),
    };
    let none = Labels::default();
    let around = Around { namespace: &none, node: &none, images: &[] };
    let zone = key("zone");
    let said = workload(&[("app", "db"), (&zone, "mine")]);
    let told = given([&rule("a", "pci"), &rule("b", "dmz"), &rule("c", "pci")], &said, around);
    assert_eq!(told.labels, [("app", "db"), (&*zone, "pci")].into_iter().collect());
    assert_eq!(told.ignored, BTreeSet::from([zone.clone()]));
    assert_eq!(told.contested, BTreeMap::from([(zone, BTreeSet::from(["b".to_owned()]))]));
}
