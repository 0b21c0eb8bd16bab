//! Targets depend on what holds now, never on the order or number of events that led there.
#![allow(clippy::unwrap_used)]

use super::published::Target;
use super::sources::Sources;
use crate::store::{Change, ChangeResult, Committed, ObjectKey, StoredObject, Verb};
use firebreak_policy::compile;
use firebreak_policy::model::{ContainerId, NetworkAddress, NetworkName, NodeName, Revision, Workload, WorkloadId, WorkloadSource};
use firebreak_policy::node_state::NodeState;
use firebreak_proto::hash::ContentHash;
use firebreak_proto::v1;
use firebreak_proto::workload::ReportedWorkload;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Something that the hub hears of. Events of one subject keep their order; those of two are independent.
#[derive(Clone, Debug)]
enum Event {
    /// The object is there now, in this form; `None` when it is deleted.
    Object(ObjectKey, Option<Arc<StoredObject>>),
    Reported {
        node: NodeName,
        upserts: Vec<Arc<ReportedWorkload>>,
        removed: Vec<ContainerId>,
        full: bool,
    },
    Node(NodeName, v1::NodeReport),
    Forgotten(NodeName),
}

impl Event {
    fn subject(&self) -> String {
        match self {
            Self::Object(key, _) => key.to_string(),
            Self::Reported { node, .. } | Self::Node(node, _) | Self::Forgotten(node) => format!("node {node}"),
        }
    }
}

fn committed(changes: Vec<Change>, forgotten_nodes: Vec<NodeName>) -> Committed {
    Committed {
        revision: Revision(1),
        time: Timestamp::UNIX_EPOCH,
        principal: "test".to_owned(),
        verb: Verb::Apply,
        reason: String::new(),
        changes,
        forgotten_nodes,
    }
}

fn change(key: &ObjectKey, object: Option<&Arc<StoredObject>>) -> Change {
    match object {
        Some(object) => Change { result: ChangeResult::Configured, object: Arc::clone(object) },
        None => Change { result: ChangeResult::Deleted, object: stored(key, &json!({})) },
    }
}

fn take(sources: &mut Sources, events: &[Event]) {
    let mut changes = Vec::new();
    for event in events {
        match event {
            Event::Object(key, object) => changes.push(change(key, object.as_ref())),
            Event::Reported { node, upserts, removed, full } => sources.report(node, upserts.clone(), removed, *full, 1),
            Event::Node(node, report) => sources.report_node(node, report.clone()),
            Event::Forgotten(node) => sources.commit(&committed(Vec::new(), vec![node.clone()])),
        }
    }
    sources.commit(&committed(changes, Vec::new()));
}

type Outcome = BTreeMap<NodeName, (ContentHash, NodeState)>;

/// Publishes after each step, each publication on top of the one before.
fn run<'a>(steps: impl IntoIterator<Item = &'a [Event]>) -> Outcome {
    let mut sources = Sources::default();
    let mut outcome = Outcome::new();
    let mut told = Outcome::new();
    for step in steps {
        take(&mut sources, step);
        let published = sources.publish(&Arc::from("e"), Revision(1));
        let (policies, inventory, labels) = sources.assembled();
        assert_eq!(published.labels, labels.into_iter().collect());
        assert_eq!(*published.policies, policies);
        assert_eq!(*published.inventory, inventory);
        assert_eq!(*published.compiled, compile(&policies, &inventory));
        outcome = published.targets.iter().map(|(node, target)| (node.clone(), (target.hash, (*target.state).clone()))).collect();
        // Whoever follows what a publication says to have changed knows everything.
        told.extend(published.changed.iter().map(|node| (node.clone(), outcome[node].clone())));
        told.retain(|node, _| outcome.contains_key(node));
        assert_eq!(told, outcome);
        for (node, (hash, state)) in &outcome {
            assert_eq!(*hash, Target::of(node, state).hash);
        }
    }
    outcome
}

fn stored(key: &ObjectKey, json: &Value) -> Arc<StoredObject> {
    Arc::new(StoredObject {
        key: key.clone(),
        api_version: String::new(),
        json: json.to_string().into(),
        labels: Default::default(),
        revision: Revision(1),
        created: Timestamp::UNIX_EPOCH,
    })
}

const APPS: [&str; 3] = ["db", "web", "api"];
const NODES: [&str; 2] = ["n1", "n2"];

fn policy(name: usize, form: usize) -> Event {
    let key = ObjectKey::new("SegmentPolicy", "shop", APPS[name]);
    let peers = [
        json!([{"workloads": {"matchLabels": {"app": APPS[(name + 1) % 3]}}}]),
        json!([{"addressGroup": "office"}]),
        json!([{"cidr": "192.0.2.0/24"}, {"workloads": {}}]),
    ];
    let object = |peers: &Value| {
        json!({
            "apiVersion": "firebreak.dev/v1alpha1", "kind": "SegmentPolicy", "metadata": {"namespace": "shop", "name": APPS[name]},
            "spec": {
                "appliesTo": {"matchLabels": {"app": APPS[name]}},
                "ingress": [{"from": peers, "ports": [{"protocol": "TCP", "port": 5432}]}],
            },
        })
    };
    // The last form cannot be read: what was read before stays in force.
    let object = match form {
        3 => None,
        4 => Some(stored(&key, &json!({"kind": "SegmentPolicy", "newer": true}))),
        form => Some(stored(&key, &object(&peers[form]))),
    };
    Event::Object(key, object)
}

fn office(form: u8) -> Event {
    let key = ObjectKey::new("AddressGroup", "", "office");
    let object = json!({
        "apiVersion": "firebreak.dev/v1alpha1", "kind": "AddressGroup", "metadata": {"name": "office"},
        "spec": {"blocks": [{"cidr": format!("198.51.100.{form}/32")}]},
    });
    Event::Object(key.clone(), (form > 0).then(|| stored(&key, &object)))
}

fn label_rule(form: u8) -> Event {
    let key = ObjectKey::new("LabelRule", "", "zone");
    let object = json!({
        "apiVersion": "firebreak.dev/v1alpha1", "kind": "LabelRule", "metadata": {"name": "zone"},
        "spec": {"to": {"nodes": {"matchLabels": {"zone": "a"}}}, "labels": {"reserved.firebreak.dev/zone": format!("z{form}")}},
    });
    Event::Object(key.clone(), (form > 0).then(|| stored(&key, &object)))
}

fn workload(node: &str, app: usize, address: u8) -> Arc<ReportedWorkload> {
    let network = if address == 0 { NetworkName::new(format!("{node}/docker0")) } else { NetworkName::default_network() };
    let workload = Workload {
        id: WorkloadId::new(node, APPS[app]),
        name: APPS[app].to_owned(),
        namespace: "shop".into(),
        labels: [("app", APPS[app])].into_iter().collect(),
        addresses: vec![NetworkAddress { network, address: [10, 0, 0, address].into() }],
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        interface: None,
        host_network: false,
        terminated: false,
        source: WorkloadSource::Docker,
    };
    Arc::new(ReportedWorkload {
        workload,
        image_labels: BTreeMap::new(),
        image: String::new(),
        not_enforced: None,
        declared_place: String::new(),
    })
}

/// `shop/db`, which the node's agent is to look for in that network namespace.
fn declared(node: &str, app: &str, place: u8) -> Value {
    json!({
        "apiVersion": "firebreak.dev/v1alpha1", "kind": "Workload",
        "metadata": {"namespace": "shop", "name": "db", "labels": {"app": app}},
        "spec": {"node": node, "networkNamespace": format!("pod{place}")},
    })
}

fn declaration(node: usize, app: usize, place: u8) -> Event {
    let key = ObjectKey::new("Workload", "shop", "db");
    Event::Object(key.clone(), (place > 0).then(|| stored(&key, &declared(NODES[node], APPS[app], place))))
}

/// What the agent says that has found it there, when it was told that it is that app.
fn found(node: &str, app: usize, place: u8) -> Arc<ReportedWorkload> {
    let mut workload = ReportedWorkload::clone(&workload(node, app, 10 + place));
    workload.workload.id = WorkloadId::new(node, "shop.db");
    workload.workload.name = "db".to_owned();
    workload.workload.source = WorkloadSource::Manifest;
    workload.declared_place = format!("network namespace \"pod{place}\", network None, addresses {{}}");
    Arc::new(workload)
}

#[test]
fn a_declared_workload_has_its_objects_labels_before_its_agent_has_heard_of_them_unless_it_is_elsewhere_by_now() {
    let mut sources = Sources::default();
    let app = |sources: &mut Sources, events: &[Event]| {
        take(sources, events);
        let published = sources.publish(&Arc::from("e"), Revision(1));
        published.inventory.workloads.get(&WorkloadId::new("n1", "shop.db")).map(|it| it.labels.0["app"].clone())
    };
    let report =
        |app, place| Event::Reported { node: "n1".into(), upserts: vec![found("n1", app, place)], removed: Vec::new(), full: false };
    assert_eq!(app(&mut sources, &[declaration(0, 0, 1)]), None, "nobody has found it");
    assert_eq!(app(&mut sources, &[report(0, 1)]).as_deref(), Some("db"));
    assert_eq!(app(&mut sources, &[declaration(0, 1, 1)]).as_deref(), Some("web"), "at once");
    assert_eq!(app(&mut sources, &[report(1, 1)]).as_deref(), Some("web"));
    assert_eq!(
        app(&mut sources, &[declaration(0, 2, 2)]).as_deref(),
        Some("web"),
        "what is in the first place is not what is to be in the second"
    );
    assert_eq!(app(&mut sources, &[report(2, 2)]).as_deref(), Some("api"));
    assert_eq!(app(&mut sources, &[declaration(1, 0, 2)]).as_deref(), Some("api"), "it is to be on another node");
    assert_eq!(app(&mut sources, &[declaration(0, 0, 2)]).as_deref(), Some("db"));
    // One that its agent found by itself is not the object's, whatever it is called.
    let mut own = ReportedWorkload::clone(&found("n1", 1, 2));
    own.declared_place = String::new();
    let own = Event::Reported { node: "n1".into(), upserts: vec![Arc::new(own)], removed: Vec::new(), full: false };
    assert_eq!(app(&mut sources, &[own]).as_deref(), Some("web"));
}

fn event() -> impl Strategy<Value = Event> {
    let report = (0..2_usize, 0..3_usize, 0..4_u8, any::<bool>()).prop_map(|(node, app, address, full)| Event::Reported {
        node: NODES[node].into(),
        upserts: vec![workload(NODES[node], app, address)],
        removed: Vec::new(),
        full,
    });
    let found = (0..2_usize, 0..3_usize, 1..3_u8).prop_map(|(node, app, place)| Event::Reported {
        node: NODES[node].into(),
        upserts: vec![found(NODES[node], app, place)],
        removed: Vec::new(),
        full: false,
    });
    let removal = (0..2_usize, 0..3_usize).prop_map(|(node, app)| Event::Reported {
        node: NODES[node].into(),
        upserts: Vec::new(),
        removed: vec![APPS[app].into()],
        full: false,
    });
    let node = (0..2_usize, 0..4_u8).prop_map(|(node, address)| {
        let addresses = vec![vec![10, 0, 0, address].into()];
        let labels = [("zone".to_owned(), if address < 2 { "a" } else { "b" }.to_owned())].into();
        Event::Node(NODES[node].into(), v1::NodeReport { addresses, labels, ..v1::NodeReport::default() })
    });
    prop_oneof![
        4 => (0..3_usize, 0..5_usize).prop_map(|(name, form)| policy(name, form)),
        1 => (0..3_u8).prop_map(office),
        1 => (0..3_u8).prop_map(label_rule),
        4 => report,
        2 => (0..2_usize, 0..3_usize, 0..3_u8).prop_map(|(node, app, place)| declaration(node, app, place)),
        2 => found,
        1 => removal,
        1 => node,
        1 => (0..2_usize).prop_map(|node| Event::Forgotten(NODES[node].into())),
    ]
}

/// The same events, subject by subject, the last subject first; each subject's own order is kept.
fn reversed(events: &[Event]) -> Vec<Event> {
    let mut by_subject: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for event in events {
        by_subject.entry(event.subject()).or_default().push(event.clone());
    }
    by_subject.into_values().rev().flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn targets_are_the_same_whatever_the_order_and_number_of_events(events in prop::collection::vec(event(), 1..40), size in 1..7_usize) {
        let one_by_one = run(events.chunks(1));
        let nothing: &[Event] = &[];
        let turned = reversed(&events);
        prop_assert_eq!(&run([&*events]), &one_by_one, "squashed");
        prop_assert_eq!(&run(events.chunks(size)), &one_by_one, "split");
        prop_assert_eq!(&run(events.chunks(1).flat_map(|one| [one, nothing])), &one_by_one, "with empty steps between");
        prop_assert_eq!(&run(turned.chunks(1)), &one_by_one, "independent events reversed");
    }
}
