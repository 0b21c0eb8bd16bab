//! What is read can be written, and what is written reads the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_manifest::{Kind, Object, build, load_paths, parse_str};
use std::collections::BTreeSet;
use std::path::PathBuf;

fn valid() -> Vec<Object> {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/valid"));
    load_paths(&[directory]).unwrap().into_iter().map(|located| located.object).collect()
}

#[test]
fn every_object_reads_back_from_its_json_and_its_yaml() {
    let objects = valid();
    let kinds: BTreeSet<Kind> = objects.iter().map(Object::kind).collect();
    assert_eq!(kinds, Kind::ALL.into_iter().collect(), "the valid manifests hold every kind");
    for object in &objects {
        assert_eq!(Object::from_json(object.to_json().as_bytes()).unwrap(), *object);
        let yaml = object.to_yaml();
        let again = parse_str("yaml", &yaml).unwrap();
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].object, *object);
        assert_eq!(again[0].object.to_json(), object.to_json());
    }
    // One stream of all of them, as `get -o yaml` prints it.
    let stream = objects.iter().map(Object::to_yaml).collect::<Vec<_>>().join("---\n");
    let again: Vec<_> = parse_str("stream", &stream).unwrap().into_iter().map(|located| located.object).collect();
    assert_eq!(again, objects);
}

#[test]
fn the_model_does_not_depend_on_how_and_in_which_order_objects_were_written() {
    let objects = valid();
    let expected = build(&objects).unwrap();
    let reversed: Vec<_> = objects.iter().rev().cloned().collect();
    assert_eq!(build(&reversed).unwrap(), expected);
    let from_json: Vec<_> = objects.iter().map(|object| Object::from_json(object.to_json().as_bytes()).unwrap()).collect();
    assert_eq!(build(&from_json).unwrap(), expected);
}
