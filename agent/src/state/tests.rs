#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::session::{Applied, NodeStatus};
use firebreak_policy::SharedMap;
use firebreak_policy::model::{Revision, WorkloadId};
use firebreak_policy::node_state::{Group, GroupId, LocalEndpoint, Member, NodeState, Rulebook, Segment, SegmentId};
use firebreak_proto::workload::Location;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn node() -> NodeName {
    NodeName::from("n1")
}

fn kept(generation: u64) -> Kept {
    let group = |id: &str, members: &[&str]| {
        let members: BTreeSet<Member> = members.iter().map(|text| Member::Address(text.parse().unwrap())).collect();
        (GroupId(id.into()), Arc::new(Group { id: GroupId(id.into()), title: format!("group {id}"), members: members.into() }))
    };
    let segment = Segment { id: SegmentId("s".into()), title: "shop/web".to_owned(), rules: Rulebook::default().into(), audit: None };
    let id = WorkloadId::new(node(), "c1");
    let endpoint = LocalEndpoint {
        id: id.clone(),
        segment: segment.id.clone(),
        addresses: ["10.0.0.1".parse().unwrap()].into(),
        published_ports: Vec::new(),
        name: "web-1".to_owned(),
        namespace: "shop".into(),
    };
    let state = NodeState {
        addresses: ["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
        groups: SharedMap::from([group("a", &["10.0.0.2", "fd00::2"]), group("empty", &[])]),
        segments: SharedMap::from([(segment.id.clone(), Arc::new(segment))]),
        endpoints: SharedMap::from([(id, Arc::new(endpoint))]),
    };
    let declared = DeclaredWorkload {
        container: "shop.db".into(),
        name: "db".to_owned(),
        namespace: "shop".into(),
        labels: Default::default(),
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        network: None,
        location: Location::NetworkNamespace("db".to_owned()),
        addresses: ["10.0.0.7".parse().unwrap()].into(),
    };
    let committed = Committed {
        epoch: "e1".to_owned(),
        generation: Generation(generation),
        revision: Revision(generation + 7),
        state,
        refused: BTreeMap::new(),
    };
    Kept { committed: Arc::new(committed), declared: Arc::new(vec![declared]) }
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = StateFile::new(folder.path(), node());
    assert_eq!(file.load().unwrap(), None);
    for generation in [1, 2] {
        file.store(&kept(generation)).unwrap();
        assert_eq!(file.load().unwrap(), Some(kept(generation)));
    }
    let nothing = Kept::default();
    file.store(&nothing).unwrap();
    assert_eq!(file.load().unwrap(), Some(nothing), "a node that was told nothing yet");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
}

#[test]
fn no_byte_can_change_and_none_can_be_missing_or_too_many() {
    let whole = encode(&node(), &kept(3)).unwrap();
    assert_eq!(decode(&node(), &whole).unwrap(), kept(3));
    for at in 0..whole.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            let refused = decode(&node(), &bytes).unwrap_err();
            let expected = if (16..20).contains(&at) { "StateOfOtherVersion" } else { "StateDamaged" };
            assert_eq!(refused.code(), expected, "byte {at} of {}: {refused}", whole.len());
        }
    }
    for length in 0..whole.len() {
        assert!(decode(&node(), &whole[..length]).is_err(), "cut off at {length}");
    }
    assert!(decode(&node(), &[whole.clone(), vec![0]].concat()).is_err());
    assert!(decode(&node(), &[whole.clone(), whole.clone()].concat()).is_err());
}

/// As somebody writes it who knows the form: the checksum fits.
fn resealed(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    bytes.truncate(bytes.len() - 32);
    change(&mut bytes);
    let length = u64::try_from(bytes.len() - 28).unwrap().to_le_bytes();
    bytes[20..28].copy_from_slice(&length);
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

#[test]
fn a_file_with_a_right_checksum_and_wrong_contents_is_refused_all_the_same() {
    let whole = encode(&node(), &kept(3)).unwrap();
    let body = 28..whole.len() - 32;
    for at in body.clone() {
        let bytes = resealed(whole.clone(), |bytes| bytes[at] ^= 0x01);
        // A changed byte may be one that no hash covers (a declared workload's label): then it is another whole state, and nothing panics.
        if let Ok(read) = decode(&node(), &bytes) {
            assert_eq!(read.committed.state, kept(3).committed.state, "byte {at}");
        }
    }
    for length in body.start..body.end {
        let bytes = resealed(whole.clone(), |bytes| bytes.truncate(length));
        assert!(decode(&node(), &bytes).is_err(), "a body cut off at {length}");
    }
    let tail = resealed(whole.clone(), |bytes| bytes.extend_from_slice(&[0, 0, 0, 0]));
    assert!(decode(&node(), &tail).is_err());
}

#[test]
fn a_file_of_the_version_whose_commit_hash_was_made_in_another_way_is_read() {
    let whole = encode(&node(), &kept(3)).unwrap();
    // The hash is the last field of the last frame, before the checksum.
    let hash = whole.len() - 32 - 16;
    let other_hash = |bytes: &mut Vec<u8>| bytes[hash..hash + 16].fill(7);
    let first = resealed(whole.clone(), |bytes| {
        bytes[16] = 1;
        other_hash(bytes);
    });
    assert_eq!(decode(&node(), &first).unwrap(), kept(3));
    assert_eq!(decode(&node(), &resealed(whole, other_hash)).unwrap_err().code(), "StateDamaged");
}

#[test]
fn another_version_and_another_node_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = StateFile::new(folder.path(), node());
    let version = resealed(encode(&node(), &kept(3)).unwrap(), |bytes| bytes[16] = 9);
    for (bytes, code, words) in [
        (version, "StateOfOtherVersion", ["version 9", "versions 1 to 2"]),
        (encode(&NodeName::from("n2"), &kept(3)).unwrap(), "StateOfOtherNode", ["n2", "not this node's"]),
    ] {
        std::fs::write(file.path(), bytes).unwrap();
        let refused = file.load().unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        let text = refused.to_string();
        assert!(words.iter().all(|word| text.contains(word)) && text.contains(&file.path().display().to_string()), "{text}");
    }
}

#[test]
fn the_kernel_is_brought_to_the_disk_only_when_it_is_empty_or_holds_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = StateFile::new(folder.path(), node());
    let marker = || Marker::open(folder.path(), "boot-1").unwrap();
    assert_eq!(restore(&file, &marker(), true), Restored::default(), "nothing on disk");
    file.store(&kept(3)).unwrap();
    let enforce = |marker: &Marker, empty| restore(&file, marker, empty).enforce;
    assert!(enforce(&marker(), true), "the node has booted");
    assert!(!enforce(&marker(), false), "the kernel holds nobody knows what");
    marker().note("e1", Generation(4)).unwrap();
    assert!(!enforce(&marker(), false), "the kernel is ahead of the disk");
    assert_eq!(marker().note("e1", Generation(3)).unwrap(), Some(("e1".to_owned(), Generation(4))));
    assert!(enforce(&marker(), false), "the kernel holds the same");
    assert!(!enforce(&Marker::open(folder.path(), "boot-2").unwrap(), false), "of another boot");
    std::fs::write(folder.path().join("enforced"), [0xff; 300]).unwrap();
    assert!(!enforce(&marker(), false), "a marker that says nothing");

    std::fs::write(file.path(), "firebreak").unwrap();
    let refused = restore(&file, &marker(), true);
    assert!(refused.kept.is_none() && !refused.enforce);
    let told = refused.refused.unwrap();
    assert!(told.message.contains("nothing of it is used") && told.message.contains("/state"), "{}", told.message);
}

#[tokio::test]
async fn what_the_kernel_took_is_written_and_what_it_refused_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = StateFile::new(folder.path(), node());
    let (committed_sender, committed) = watch::channel(None);
    let (applied_sender, applied) = watch::channel(None);
    let (declared_sender, declared) = watch::channel(None);
    let (status, _) = watch::channel(NodeStatus::default());
    let stop = CancellationToken::new();
    let links = KeepLinks { committed, applied, declared, status };
    let task = tokio::spawn(keep(file.clone(), Kept::default(), links, stop.clone()));
    let outcome = |kept: &Kept, failure: Option<String>| {
        let Committed { epoch, generation, revision, .. } = Committed::clone(&kept.committed);
        let (at, kernel_time, refused) = (SystemTime::now(), Duration::ZERO, BTreeMap::new());
        Some(Arc::new(Applied { epoch, generation, revision, at, kernel_time, refused, failure }))
    };
    let until = async |expected: Kept| {
        let wait = async {
            while file.load().unwrap() != Some(expected.clone()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the file");
    };
    declared_sender.send_replace(Some(kept(1).declared));
    until(Kept { committed: Arc::default(), declared: kept(1).declared }).await;
    committed_sender.send_replace(Some(kept(1).committed));
    applied_sender.send_replace(outcome(&kept(1), None));
    until(kept(1)).await;
    committed_sender.send_replace(Some(kept(2).committed));
    applied_sender.send_replace(outcome(&kept(2), Some("no room".to_owned())));
    stop.cancel();
    task.await.unwrap();
    assert_eq!(file.load().unwrap(), Some(kept(1)));
}
