//! The checked-in JSON Schemas are those of the types, and say yes and no to the same objects as the parser.
//!
//! `FIREBREAK_WRITE_SCHEMA=1 cargo test -p firebreak-manifest --test schema` writes them anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_manifest::{Kind, load_paths, parse_str, schema};
use serde_json::Value;
use std::path::PathBuf;

fn path(kind: Kind) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schema").join(schema::file_name(kind))
}

fn validator(kind: Kind) -> jsonschema::Validator {
    jsonschema::validator_for(&schema::of(kind).unwrap()).unwrap()
}

#[test]
fn the_checked_in_schemas_are_those_of_the_types() {
    for kind in schema::KINDS {
        let desired = serde_json::to_string_pretty(&schema::of(kind).unwrap()).unwrap() + "\n";
        if std::env::var_os("FIREBREAK_WRITE_SCHEMA").is_some() {
            std::fs::create_dir_all(path(kind).parent().unwrap()).unwrap();
            std::fs::write(path(kind), &desired).unwrap();
        }
        let actual = std::fs::read_to_string(path(kind)).unwrap_or_default();
        assert_eq!(actual, desired, "{} is out of date; run with FIREBREAK_WRITE_SCHEMA=1", path(kind).display());
    }
}

#[test]
fn every_kind_of_ours_has_a_schema_and_no_other() {
    for kind in Kind::ALL {
        assert_eq!(schema::of(kind).is_some(), schema::KINDS.contains(&kind), "{kind}");
        assert_eq!(schema::of(kind).is_some(), kind.api_version().starts_with("firebreak.dev/"), "{kind}");
    }
}

#[test]
fn valid_manifests_validate() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let load = |path| load_paths(&[root.join(path)]).unwrap();
    let objects = [load("tests/valid"), load("../examples/shop")].concat();
    let mut count = 0;
    for located in objects.iter().filter(|located| schema::KINDS.contains(&located.object.kind())) {
        let object: Value = serde_json::from_str(&located.object.to_json()).unwrap();
        let errors: Vec<String> = validator(located.object.kind()).iter_errors(&object).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", located.place);
        count += 1;
    }
    assert!(count >= 10, "only {count} objects of our kinds were looked at");
}

/// What an API server adds is accepted by schema and parser.
#[test]
fn server_set_metadata_and_status_validate() {
    let text = r#"{"apiVersion":"firebreak.dev/v1alpha1","kind":"AddressGroup",
        "metadata":{"name":"a","uid":"x","creationTimestamp":null,"generation":1,"managedFields":[{}],"resourceVersion":"1"},
        "spec":{"blocks":[]},"status":{"conditions":[]}}"#;
    assert!(validator(Kind::AddressGroup).is_valid(&serde_json::from_str(text).unwrap()));
    parse_str("text", text).unwrap();
}

#[test]
fn broken_objects_do_not_validate() {
    const POLICY: &str = r#"{"apiVersion":"firebreak.dev/v1alpha1","kind":"SegmentPolicy","metadata":{"name":"p"},"spec":SPEC}"#;
    const WORKLOAD: &str = r#"{"apiVersion":"firebreak.dev/v1alpha1","kind":"Workload","metadata":{"name":"w"},"spec":SPEC}"#;
    const GROUP: &str = r#"{"apiVersion":"firebreak.dev/v1alpha1","kind":"AddressGroup","metadata":{"name":"g"},"spec":SPEC}"#;
    const RULE: &str = r#"{"apiVersion":"firebreak.dev/v1alpha1","kind":"LabelRule","metadata":{"name":"r"},"spec":SPEC}"#;
    let cases: &[(Kind, &str, &str)] = &[
        (Kind::SegmentPolicy, POLICY, r#"{"ingress":[]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingres":[]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":[{}]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":[{"from":[]}]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":[{"from":[{}]}]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":[{"from":[{"entity":"any","cidr":{"cidr":"10.0.0.0/8"}}]}]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":[{"from":[{"entity":"cluster"}]}]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":[{"from":[{"entity":"any"}],"ports":[]}]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":[{"from":[{"entity":"any"}],"ports":[{"port":80}]}]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":[{"from":[{"entity":"any"}],"ports":[{"protocol":"tcp"}]}]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":[{"from":[{"entity":"any"}],"ports":[{"protocol":"TCP","port":0}]}]}"#),
        (
            Kind::SegmentPolicy,
            POLICY,
            r#"{"appliesTo":{},"egress":[{"to":[{"entity":"any"}],"ports":[{"icmp":{"type":256,"family":"IPv4"}}]}]}"#,
        ),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"egress":[{"to":[{"entity":"any"}],"ports":[{"icmp":{"type":8}}]}]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{"matchExpressions":[{"key":"a","operator":"Gt","values":["1"]}]},"ingress":[]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{"matchLabels":{"a":1}},"ingress":[]}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":null}"#),
        (Kind::SegmentPolicy, POLICY, r#"{"appliesTo":{},"ingress":[],"hostAccess":"Deny"}"#),
        (Kind::Workload, WORKLOAD, r#"{"interface":"veth0"}"#),
        (Kind::Workload, WORKLOAD, r#"{"node":"a"}"#),
        (Kind::Workload, WORKLOAD, r#"{"node":"a","interface":"veth0","networkNamespace":"x"}"#),
        (Kind::Workload, WORKLOAD, r#"{"node":"a","interface":"veth0123456789ab"}"#),
        (Kind::Workload, WORKLOAD, r#"{"node":"a","interface":"veth0","addresses":[]}"#),
        (Kind::Workload, WORKLOAD, r#"{"node":"a","interface":"veth0","ports":[{"name":"x","port":65536}]}"#),
        (Kind::Workload, WORKLOAD, r#"{"node":"a","interface":"veth0","ports":[{"name":"x","protocol":"ICMP","port":1}]}"#),
        (Kind::LabelRule, RULE, r#"{"labels":{"reserved.firebreak.dev/zone":"pci"}}"#),
        (Kind::LabelRule, RULE, r#"{"to":{},"labels":{"reserved.firebreak.dev/zone":"pci"}}"#),
        (Kind::LabelRule, RULE, r#"{"to":{"namespaces":{}},"labels":{}}"#),
        (Kind::LabelRule, RULE, r#"{"to":{"namespaces":{}},"labels":{"zone":"pci"}}"#),
        (Kind::LabelRule, RULE, r#"{"to":{"images":[]},"labels":{"reserved.firebreak.dev/zone":"pci"}}"#),
        (Kind::LabelRule, RULE, r#"{"to":{"pods":{}},"labels":{"reserved.firebreak.dev/zone":"pci"}}"#),
        (Kind::AddressGroup, GROUP, r#"{}"#),
        (Kind::AddressGroup, GROUP, r#"{"blocks":["10.0.0.0/8"]}"#),
        (Kind::AddressGroup, GROUP, r#"{"blocks":[{"cidr":"10.0.0.0/8","except":null}]}"#),
    ];
    for (kind, frame, spec) in cases {
        let text = frame.replace("SPEC", spec);
        assert!(!validator(*kind).is_valid(&serde_json::from_str(&text).unwrap()), "the schema takes {text}");
        assert!(parse_str("text", &text).is_err(), "the parser takes {text}");
    }
}
