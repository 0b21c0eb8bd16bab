//! The store against a map: whatever is applied and deleted, in whatever order, and after it was opened again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use firebreak_controller::store::{
    Applied, ChangeResult, ChangeSet, Effect, InstanceId, Limits, ListQuery, Missing, ObjectKey, PinError, Pinned, Put, ReportedChange,
    Store, StoreError, Verb,
};
use firebreak_policy::model::{ContainerId, Labels, NodeName, Revision};
use firebreak_proto::v1;
use jiff::Timestamp;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn put(key: &ObjectKey, content: &str) -> Put {
    Put {
        key: key.clone(),
        api_version: "firebreak.dev/v1alpha1".to_owned(),
        json: Arc::from(format!("{{\"content\":{content:?}}}")),
        labels: [("content", content)].into_iter().collect(),
    }
}

fn changes(puts: Vec<Put>, deletes: Vec<ObjectKey>) -> ChangeSet {
    ChangeSet {
        puts,
        deletes,
        missing: Missing::Ignore,
        principal: "uid 0 (root)".to_owned(),
        verb: Verb::Apply,
        reason: "test".to_owned(),
        expected_revision: None,
        effect: Effect::Commit,
        time: now(),
    }
}

fn key(number: u8) -> ObjectKey {
    match number % 3 {
        0 => ObjectKey::new("SegmentPolicy", "shop", format!("p{number}")),
        1 => ObjectKey::new("SegmentPolicy", "team", format!("p{number}")),
        _ => ObjectKey::new("AddressGroup", "", format!("g{number}")),
    }
}

struct Scratch {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn scratch() -> Scratch {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("controller.db");
    Scratch { _folder: folder, path }
}

/// Every object, page by page.
async fn everything(store: &Store, at: Option<Revision>, limit: u32) -> BTreeMap<ObjectKey, String> {
    let mut objects = BTreeMap::new();
    let mut query = ListQuery { at, limit, ..ListQuery::default() };
    loop {
        let page = store.list(query.clone()).await.unwrap();
        for object in &page.items {
            assert!(objects.insert(object.key.clone(), object.json.to_string()).is_none(), "{} is listed twice", object.key);
        }
        query.at = Some(page.revision);
        match page.next {
            Some(after) => query.after = Some(after),
            None => return objects,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Change { puts: BTreeMap<u8, u8>, deletes: Vec<u8>, strict: bool, dry: bool, stale: bool },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let change = (
        prop::collection::btree_map(0..8_u8, 0..3_u8, 0..4),
        prop::collection::btree_set(0..12_u8, 0..3),
        any::<bool>(),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(puts, deletes, strict, dry, stale)| {
            let deletes = deletes.into_iter().filter(|number| !puts.contains_key(number)).collect();
            Step::Change { puts, deletes, strict, dry, stale }
        });
    prop_oneof![9 => change, 1 => Just(Step::Reopen)]
}

/// The store's promise in its simplest form.
#[derive(Clone, Debug, Default)]
struct Model {
    objects: BTreeMap<ObjectKey, String>,
    /// What there was after each revision; the revision is the index.
    past: Vec<BTreeMap<ObjectKey, String>>,
}

async fn run_step(store: &Store, model: &mut Model, step: &Step) {
    let Step::Change { puts, deletes, strict, dry, stale } = step else { return };
    let revision = Revision(u64::try_from(model.past.len() - 1).unwrap());
    let puts: Vec<Put> = puts.iter().map(|(number, content)| put(&key(*number), &content.to_string())).collect();
    let deletes: Vec<ObjectKey> = deletes.iter().map(|number| key(*number)).collect();
    let mut set = changes(puts.clone(), deletes.clone());
    set.missing = if *strict { Missing::Refuse } else { Missing::Ignore };
    set.effect = if *dry { Effect::DryRun } else { Effect::Commit };
    set.expected_revision = stale.then_some(Revision(revision.0 + 1));
    let outcome = store.apply(set).await;

    let mut after = model.objects.clone();
    let mut results = Vec::new();
    for put in &puts {
        let result = match after.insert(put.key.clone(), put.json.to_string()) {
            None => ChangeResult::Created,
            Some(before) if *before == *put.json => ChangeResult::Unchanged,
            Some(_) => ChangeResult::Configured,
        };
        results.push((put.key.clone(), result));
    }
    let mut absent = Vec::new();
    for gone in deletes {
        let result = if after.remove(&gone).is_some() { ChangeResult::Deleted } else { ChangeResult::NotFound };
        if result == ChangeResult::NotFound {
            absent.push(gone.clone());
        }
        results.push((gone, result));
    }
    match outcome {
        Err(StoreError::RevisionMismatch { actual, .. }) => {
            assert!(*stale);
            assert_eq!(actual, revision);
        }
        Err(StoreError::NotFound(keys)) => {
            assert!(*strict && !*stale);
            assert_eq!(keys, absent);
        }
        Err(other) => panic!("{other}"),
        Ok(Applied { revision: reported, results: reported_results }) => {
            assert!(!*stale);
            assert!(!*strict || absent.is_empty());
            assert_eq!(reported_results, results);
            let changed = after != model.objects;
            if changed && !*dry {
                model.objects = after.clone();
                model.past.push(after);
            }
            assert_eq!(reported.0, u64::try_from(model.past.len() - 1).unwrap());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_holds_what_a_map_would_hold_at_every_revision(steps in prop::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let scratch = scratch();
            let mut store = Store::open(&scratch.path).unwrap();
            let mut feed = store.watch(Revision(0));
            let mut followed = BTreeMap::new();
            let mut model = Model { objects: BTreeMap::new(), past: vec![BTreeMap::new()] };
            for step in &steps {
                if matches!(step, Step::Reopen) {
                    let position = feed.position();
                    drop(feed);
                    drop(store);
                    store = Store::open(&scratch.path).unwrap();
                    feed = store.watch(position);
                }
                run_step(&store, &mut model, step).await;
                // A follower that keeps up sees each revision once and arrives at the same objects.
                while feed.position() < store.revision() {
                    let committed = feed.next().await.unwrap();
                    for change in &committed.changes {
                        match change.result {
                            ChangeResult::Created | ChangeResult::Configured => {
                                assert_eq!(change.object.revision, committed.revision);
                                followed.insert(change.object.key.clone(), change.object.json.to_string());
                            }
                            ChangeResult::Deleted => {
                                assert_eq!(followed.remove(&change.object.key).as_deref(), Some(&*change.object.json));
                            }
                            ChangeResult::Unchanged | ChangeResult::NotFound => panic!("{change:?} is no change"),
                        }
                    }
                }
                assert_eq!(&followed, &model.objects);
                assert_eq!(&everything(&store, None, 2).await, &model.objects);
            }
            drop((feed, store));
            let store = Store::open(&scratch.path).unwrap();
            for (revision, objects) in model.past.iter().enumerate() {
                let at = Revision(u64::try_from(revision).unwrap());
                assert_eq!(&everything(&store, Some(at), 3).await, objects, "at revision {at}");
            }
            let loaded = store.load().await.unwrap();
            let objects: BTreeMap<_, _> = loaded.objects.iter().map(|object| (object.key.clone(), object.json.to_string())).collect();
            assert_eq!(&objects, &model.objects);
        });
    }
}

#[tokio::test]
async fn a_follower_that_falls_behind_reads_on_from_history_and_hears_when_it_is_too_late() {
    let scratch = scratch();
    let limits = Limits { history_revisions: 400, history_versions: 10_000 };
    let store = Store::open_with(&scratch.path, limits).unwrap();
    let mut slow = store.watch(Revision(0));
    let mut lost = store.watch(Revision(0));
    let one = key(0);
    for round in 0..380_u32 {
        store.apply(changes(vec![put(&one, &round.to_string())], Vec::new())).await.unwrap();
    }
    for expected in 1..=380_u64 {
        assert_eq!(slow.next().await.unwrap().revision, Revision(expected));
    }
    for round in 0..400_u32 {
        store.apply(changes(vec![put(&one, &format!("again {round}"))], Vec::new())).await.unwrap();
    }
    assert!(matches!(lost.next().await, Err(StoreError::Expired { asked: Revision(0), oldest }) if oldest.0 >= 300));
    let page = store.list(ListQuery { at: Some(Revision(1)), limit: 10, ..ListQuery::default() }).await;
    assert!(matches!(page, Err(StoreError::Expired { .. })), "{page:?}");
    let page = store.list(ListQuery { at: Some(Revision(9_999)), limit: 10, ..ListQuery::default() }).await;
    assert!(matches!(page, Err(StoreError::Future { .. })), "{page:?}");
    assert_eq!(slow.next().await.unwrap().revision, Revision(381));
}

#[tokio::test]
async fn history_is_bounded_by_versions_too() {
    let scratch = scratch();
    let store = Store::open_with(&scratch.path, Limits { history_revisions: 1_000, history_versions: 50 }).unwrap();
    for round in 0..256_u32 {
        store.apply(changes(vec![put(&key(0), &round.to_string())], Vec::new())).await.unwrap();
    }
    let oldest = match store.list(ListQuery { at: Some(Revision(0)), limit: 1, ..ListQuery::default() }).await {
        Err(StoreError::Expired { oldest, .. }) => oldest.0,
        other => panic!("{other:?}"),
    };
    assert_eq!(oldest, 256 - 50);
    assert_eq!(store.revisions(None, 1_000).await.unwrap().items.len(), 256, "the audit trail is not shortened");
}

#[tokio::test]
async fn many_writers_at_once_make_one_revision_each_and_one_that_fails_takes_nothing_with_it() {
    let scratch = scratch();
    let store = Store::open(&scratch.path).unwrap();
    let writers = (0..40_u8).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut set = changes(vec![put(&ObjectKey::new("Namespace", "", format!("n{number}")), "x")], Vec::new());
            if number % 4 == 3 {
                set.deletes = vec![ObjectKey::new("Namespace", "", "nobody")];
                set.missing = Missing::Refuse;
            }
            store.apply(set).await
        })
    });
    let mut revisions = Vec::new();
    for (number, writer) in writers.collect::<Vec<_>>().into_iter().enumerate() {
        match writer.await.unwrap() {
            Ok(applied) => revisions.push(applied.revision.0),
            Err(StoreError::NotFound(_)) => assert_eq!(number % 4, 3),
            Err(other) => panic!("{other}"),
        }
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=30).collect::<Vec<_>>());
    assert_eq!(everything(&store, None, 7).await.len(), 30);
}

#[tokio::test]
async fn the_audit_trail_tells_who_when_why_and_what() {
    let scratch = scratch();
    let store = Store::open(&scratch.path).unwrap();
    store.apply(changes(vec![put(&key(0), "a"), put(&key(1), "b")], Vec::new())).await.unwrap();
    let mut delete = changes(Vec::new(), vec![key(1), key(7)]);
    delete.verb = Verb::Delete;
    delete.principal = "uid 7 (ops)".to_owned();
    delete.reason = "no longer needed".to_owned();
    store.apply(delete).await.unwrap();
    let page = store.revisions(None, 1).await.unwrap();
    assert_eq!(page.items.len(), 1);
    let entry = &page.items[0];
    assert_eq!((entry.revision, entry.verb.as_str(), entry.principal.as_str()), (Revision(2), "delete", "uid 7 (ops)"));
    assert_eq!((entry.reason.as_str(), entry.time), ("no longer needed", now()));
    assert_eq!(entry.changes, [(key(1), ChangeResult::Deleted)]);
    let page = store.revisions(page.next, 10).await.unwrap();
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.items[0].changes, [(key(0), ChangeResult::Created), (key(1), ChangeResult::Created)]);
    assert_eq!(page.next, None);
}

#[tokio::test]
async fn one_object_named_twice_refuses_the_change() {
    let scratch = scratch();
    let store = Store::open(&scratch.path).unwrap();
    let twice = changes(vec![put(&key(0), "a"), put(&key(0), "b")], Vec::new());
    let both = changes(vec![put(&key(0), "a")], vec![key(0)]);
    for set in [twice, both] {
        assert!(matches!(store.apply(set).await, Err(StoreError::Duplicate(named)) if named == key(0)));
    }
    assert_eq!(store.revision(), Revision(0));
}

fn workload(node: &str, container: &str, label: &str) -> v1::Workload {
    v1::Workload {
        id: Some(v1::WorkloadId { node: node.to_owned(), container: container.to_owned() }),
        name: container.to_owned(),
        labels: [("app".to_owned(), label.to_owned())].into_iter().collect(),
        ..v1::Workload::default()
    }
}

#[tokio::test]
async fn a_nodes_name_belongs_to_the_first_installation_until_the_node_is_deleted() {
    let scratch = scratch();
    let mut store = Store::open(&scratch.path).unwrap();
    let (node, first, second) = (NodeName::new("n1"), InstanceId("a".to_owned()), InstanceId("b".to_owned()));
    assert_eq!(store.pin_node(node.clone(), first.clone(), now()).await.unwrap(), Pinned::New);
    assert_eq!(store.pin_node(node.clone(), first.clone(), now()).await.unwrap(), Pinned::Known);
    drop(store);
    store = Store::open(&scratch.path).unwrap();
    let refused = store.pin_node(node.clone(), second.clone(), now()).await.unwrap_err();
    assert!(matches!(&refused, PinError::Taken { .. }), "{refused}");
    assert!(refused.to_string().contains("node n1 belongs to another installation since 2027-01-15T08:00:00Z"), "{refused}");
    let mut feed = store.watch(store.revision());
    let revision = store.delete_node(node.clone(), "uid 0".to_owned(), "gone".to_owned(), now()).await.unwrap();
    let committed = feed.next().await.unwrap();
    assert_eq!((committed.revision, committed.forgotten_nodes.as_slice()), (revision, [node.clone()].as_slice()));
    assert_eq!(store.watch(Revision(0)).next().await.unwrap(), committed, "history tells the same");
    let entry = &store.revisions(None, 1).await.unwrap().items[0];
    assert_eq!(
        (entry.verb.as_str(), entry.changes.as_slice()),
        ("delete-node", [(ObjectKey::new("NodePin", "", "n1"), ChangeResult::Deleted)].as_slice())
    );
    assert_eq!(store.pin_node(node.clone(), second, now()).await.unwrap(), Pinned::New);
    let unknown = store.delete_node(NodeName::new("n2"), String::new(), String::new(), now()).await;
    assert!(matches!(unknown, Err(StoreError::UnknownNode(node)) if node.as_str() == "n2"));
}

#[tokio::test]
async fn what_a_node_reported_outlives_a_restart_and_goes_with_a_full_report_or_the_node() {
    let scratch = scratch();
    let mut store = Store::open(&scratch.path).unwrap();
    let node = NodeName::new("n1");
    let change = |upserts: Vec<v1::Workload>, removed: &[&str], full| ReportedChange {
        node: node.clone(),
        upserts,
        removed: removed.iter().map(|text| ContainerId::new(*text)).collect(),
        full,
        report: None,
    };
    let early = store.put_reported(change(vec![workload("n1", "c1", "web")], &[], false)).await;
    assert!(matches!(early, Err(StoreError::UnknownNode(_))), "{early:?}");
    store.pin_node(node.clone(), InstanceId("a".to_owned()), now()).await.unwrap();
    let steps: [(ReportedChange, &[(&str, &str)]); 5] = [
        (change(vec![workload("n1", "c1", "web"), workload("n1", "c2", "db")], &[], true), &[("c1", "web"), ("c2", "db")]),
        (change(vec![workload("n1", "c2", "api")], &[], false), &[("c1", "web"), ("c2", "api")]),
        (change(vec![workload("n1", "c3", "new")], &["c1"], false), &[("c2", "api"), ("c3", "new")]),
        (change(vec![workload("n1", "c3", "new")], &[], true), &[("c3", "new")]),
        (change(Vec::new(), &[], true), &[]),
    ];
    for (step, expected) in steps {
        store.put_reported(step).await.unwrap();
        drop(store);
        store = Store::open(&scratch.path).unwrap();
        let loaded = store.load().await.unwrap();
        let seen: Vec<(String, String)> =
            loaded.nodes[&node].workloads.iter().map(|(id, workload)| (id.to_string(), workload.labels["app"].clone())).collect();
        let seen: Vec<(&str, &str)> = seen.iter().map(|(id, label)| (id.as_str(), label.as_str())).collect();
        assert_eq!(seen, expected);
    }
    assert_eq!(store.revision(), Revision(0), "what runs is not what people wrote");
    let report = v1::NodeReport { kernel: "6.18".to_owned(), ..v1::NodeReport::default() };
    store
        .put_reported(ReportedChange { report: Some(report.clone()), ..change(vec![workload("n1", "c1", "web")], &[], false) })
        .await
        .unwrap();
    assert_eq!(store.load().await.unwrap().nodes[&node].report, Some(report));
    store.delete_node(node, String::new(), String::new(), now()).await.unwrap();
    assert!(store.load().await.unwrap().nodes.is_empty());
}

#[tokio::test]
async fn labels_and_creation_time_are_kept() {
    let scratch = scratch();
    let store = Store::open(&scratch.path).unwrap();
    store.apply(changes(vec![put(&key(0), "one \" two")], Vec::new())).await.unwrap();
    let mut later = changes(vec![put(&key(0), "two")], Vec::new());
    later.time = Timestamp::from_second(1_900_000_000).unwrap();
    store.apply(later).await.unwrap();
    let object = store.get(key(0)).await.unwrap().unwrap();
    assert_eq!((object.revision, object.created), (Revision(2), now()));
    assert_eq!(object.labels, [("content", "two")].into_iter().collect::<Labels>());
    assert_eq!(store.get(key(1)).await.unwrap(), None);
}
