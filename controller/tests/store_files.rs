//! The database as a file: versions, one process at a time, copies of a running store, restore.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use firebreak_controller::store::{
    self, ChangeSet, Effect, ListQuery, Missing, ObjectKey, Put, Store, StoreError, Verb, current_version, restore,
};
use firebreak_policy::model::{Labels, NodeName, Revision};
use jiff::Timestamp;
use rusqlite::Connection;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn namespace(name: &str) -> ChangeSet {
    ChangeSet {
        puts: vec![Put {
            key: ObjectKey::new("Namespace", "", name),
            api_version: "v1".to_owned(),
            json: Arc::from("{}"),
            labels: Labels::default(),
        }],
        deletes: Vec::new(),
        missing: Missing::Refuse,
        principal: "uid 0".to_owned(),
        verb: Verb::Apply,
        reason: String::new(),
        expected_revision: None,
        effect: Effect::Commit,
        time: now(),
    }
}

async fn names(store: &Store) -> Vec<String> {
    let page = store.list(ListQuery { limit: 1_000, ..ListQuery::default() }).await.unwrap();
    page.items.iter().map(|object| object.key.name.clone()).collect()
}

/// Each schema version that ever was, as SQL text.
fn historic() -> Vec<(i32, String)> {
    (1..=current_version())
        .map(|version| {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/schema-v{version}.sql"));
            let sql = std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("every schema version needs a fixture, {}: {error}", path.display()));
            (version, sql)
        })
        .collect()
}

fn write_database(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test]
async fn every_historic_version_migrates_and_keeps_what_it_holds() {
    for (version, sql) in historic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controller.db");
        write_database(&path, &sql);
        for round in 0..2 {
            let store = Store::open(&path).unwrap_or_else(|error| panic!("version {version}, round {round}: {error}"));
            let loaded = store.load().await.unwrap();
            assert_eq!(loaded.revision, Revision(4));
            assert_eq!(loaded.epoch, "0123456789abcdef0123456789abcdef");
            assert_eq!(loaded.objects.len(), 1);
            assert_eq!(&*loaded.objects[0].json, "{\"n\":2}");
            assert_eq!(loaded.objects[0].labels, [("team", "a")].into_iter().collect());
            let node = &loaded.nodes[&NodeName::new("n1")];
            assert_eq!(node.workloads.values().next().unwrap().id.as_ref().unwrap().container, "c1");
            let mut feed = store.watch(Revision(0));
            let mut seen = Vec::new();
            while feed.position() < loaded.revision {
                let committed = feed.next().await.unwrap();
                seen.push((committed.verb.as_str(), committed.changes.len(), committed.forgotten_nodes.len()));
            }
            assert_eq!(seen, [("apply", 2, 0), ("apply", 1, 0), ("delete", 1, 0), ("delete-node", 0, 1)]);
        }
        let version: i32 = Connection::open(&path).unwrap().query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        assert_eq!(version, current_version());
    }
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_not_touched() {
    let newer = format!("{} PRAGMA user_version = {};", historic().pop().unwrap().1, current_version() + 1);
    let cases: [(&str, &[u8], &str); 4] = [
        ("newer", b"", "was written by a newer firebreak-controller"),
        ("foreign", b"", "made by another program"),
        (
            "text",
            b"this is a text file, and a long one: longer than the header of a database, which has a hundred bytes in all.",
            "not a database",
        ),
        ("folder", b"", "unable to open"),
    ];
    for (name, content, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controller.db");
        match name {
            "newer" => write_database(&path, &newer),
            "foreign" => write_database(&path, "CREATE TABLE notes (text TEXT);"),
            "folder" => std::fs::create_dir(&path).unwrap(),
            _ => std::fs::write(&path, content).unwrap(),
        }
        let before = std::fs::read(&path).unwrap_or_default();
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("controller.db"), "{name}: {error}");
        if name == "newer" {
            let version: i32 = Connection::open(&path).unwrap().query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
            assert_eq!(version, current_version() + 1);
        } else {
            assert!(std::fs::read(&path).unwrap_or_default() == before, "{name}: the file was changed");
        }
    }
}

#[tokio::test]
async fn one_process_at_a_time_has_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("controller.db");
    let store = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err().to_string();
    assert!(error.contains("a running firebreak-controller has it open"), "{error}");
    let backup = folder.path().join("copy.db");
    store.backup(backup.clone()).await.unwrap();
    let error = restore(&backup, &path, "uid 0".to_owned(), now()).unwrap_err().to_string();
    assert!(error.contains("a running firebreak-controller has it open"), "{error}");
    drop(store);
    Store::open(&path).unwrap();
}

#[tokio::test]
async fn what_the_store_writes_only_its_owner_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("controller.db");
    let store = Store::open(&path).unwrap();
    store.apply(namespace("first")).await.unwrap();
    store.backup(folder.path().join("copy.db")).await.unwrap();
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        seen.push((entry.file_name().into_string().unwrap(), mode));
    }
    seen.sort();
    let expected = ["controller.db", "controller.db-shm", "controller.db-wal", "controller.db.lock", "copy.db"];
    assert_eq!(seen, expected.map(|name| (name.to_owned(), 0o600)));
}

#[tokio::test]
async fn a_backup_taken_while_others_write_is_whole_and_of_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("controller.db")).unwrap();
    store.apply(namespace("first")).await.unwrap();
    let writing = {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0..300 {
                store.apply(namespace(&format!("n{number}"))).await.unwrap();
            }
        })
    };
    for round in 0..5 {
        let copy = folder.path().join(format!("copy{round}.db"));
        let before = store.revision();
        store.backup(copy.clone()).await.unwrap();
        let opened = Store::open(&copy).unwrap();
        let loaded = opened.load().await.unwrap();
        assert!(before <= loaded.revision && loaded.revision <= store.revision());
        assert_eq!(u64::try_from(loaded.objects.len()).unwrap(), loaded.revision.0, "one namespace for each revision");
        let again = store.backup(copy).await.unwrap_err().to_string();
        assert!(again.contains("already there"), "{again}");
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn a_restore_brings_the_backup_back_under_a_new_epoch_and_keeps_the_old_database() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("controller.db"), folder.path().join("copy.db"));
    let store = Store::open(&path).unwrap();
    store.apply(namespace("before")).await.unwrap();
    store.backup(copy.clone()).await.unwrap();
    store.apply(namespace("after")).await.unwrap();
    let epoch = store.load().await.unwrap().epoch;
    drop(store);

    let restored = restore(&copy, &path, "uid 0 (root)".to_owned(), now()).unwrap();
    assert_eq!(restored.revision, Revision(2));
    assert_ne!(restored.epoch, epoch);
    let store = Store::open(&path).unwrap();
    assert_eq!(names(&store).await, ["before"]);
    assert_eq!(store.load().await.unwrap().epoch, restored.epoch);
    let entry = &store.revisions(None, 1).await.unwrap().items[0];
    assert_eq!((entry.verb.as_str(), entry.principal.as_str()), ("restore", "uid 0 (root)"));
    assert!(entry.reason.contains("copy.db"), "{}", entry.reason);
    drop(store);

    let kept = restored.replaced.unwrap();
    assert_eq!(names(&Store::open(&kept).unwrap()).await, ["after", "before"]);
    let fresh = folder.path().join("fresh.db");
    assert_eq!(restore(&copy, &fresh, "uid 0".to_owned(), now()).unwrap().replaced, None);
    assert_eq!(names(&Store::open(&fresh).unwrap()).await, ["before"]);
}

#[tokio::test]
async fn a_backup_that_is_damaged_foreign_newer_or_missing_is_refused_and_the_database_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("controller.db");
    let store = Store::open(&path).unwrap();
    for number in 0..200 {
        store.apply(namespace(&format!("n{number}"))).await.unwrap();
    }
    let good = folder.path().join("good.db");
    store.backup(good.clone()).await.unwrap();
    drop(store);
    let mut damaged = std::fs::read(&good).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 4_096].fill(0xA5);
    std::fs::write(folder.path().join("damaged.db"), damaged).unwrap();
    let newer = format!("{} PRAGMA user_version = {};", historic().pop().unwrap().1, current_version() + 1);
    write_database(&folder.path().join("newer.db"), &newer);
    write_database(&folder.path().join("foreign.db"), "CREATE TABLE notes (text TEXT);");
    std::fs::write(folder.path().join("empty.db"), b"").unwrap();
    let cases = [
        ("damaged.db", "damaged"),
        ("newer.db", "newer firebreak-controller"),
        ("foreign.db", "another program"),
        ("empty.db", "empty"),
        ("missing.db", "no such file"),
    ];
    for (name, expected) in cases {
        let error = restore(&folder.path().join(name), &path, "uid 0".to_owned(), now()).unwrap_err();
        assert!(matches!(error, StoreError::File { .. }), "{error:?}");
        let error = error.to_string();
        assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
        assert_eq!(names(&Store::open(&path).unwrap()).await.len(), 200);
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|entry| entry.contains(".restore-") || entry.contains(".replaced-"))
            .collect();
        assert_eq!(left, [] as [String; 0], "{name}");
    }
    assert_eq!(store::MIGRATIONS.len(), usize::try_from(current_version()).unwrap());
}
