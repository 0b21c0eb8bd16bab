//! Parsing never panics, whatever comes in, and what it takes survives the way to JSON and back.
//!
//! `FIREBREAK_SCALE=full` runs ten times as many cases.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_manifest::{Kind, Object, build, parse_str};
use proptest::prelude::*;
use proptest::test_runner::Config;

const SEEDS: [&str; 4] = [
    include_str!("valid/firebreak.yaml"),
    include_str!("valid/kubernetes.yaml"),
    include_str!("../../examples/shop/policies.yaml"),
    include_str!("../../examples/shop/workloads.yaml"),
];

/// Words that turn up where they are not expected.
const WORDS: [&str; 40] = [
    "",
    " ",
    "\n",
    "\n---\n",
    "\n  ",
    ":",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "\"",
    "'",
    "|",
    ">",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "!x ",
    "? ",
    "#",
    "%",
    "~",
    "null",
    "true",
    "-1",
    "65536",
    "1e400",
    "99999999999999999999",
    "spec",
    "metadata",
    "10.0.0.0/8",
    "::/0",
    "\t",
    "\u{0}",
    "\u{feff}",
    "é",
];

fn config(cases: u32) -> Config {
    let full = std::env::var("FIREBREAK_SCALE").is_ok_and(|scale| scale == "full");
    Config { cases: if full { cases * 10 } else { cases }, ..Config::default() }
}

/// A change to a text, at a place given as a part of its length.
#[derive(Clone, Debug)]
enum Change {
    Insert(prop::sample::Index, &'static str),
    Remove(prop::sample::Index, usize),
    Copy(prop::sample::Index, prop::sample::Index, usize),
    Swap(prop::sample::Index, char),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<prop::sample::Index>(), prop::sample::select(WORDS.as_slice())).prop_map(|(at, word)| Change::Insert(at, word)),
        (any::<prop::sample::Index>(), 1usize..40).prop_map(|(at, length)| Change::Remove(at, length)),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1usize..80)
            .prop_map(|(from, to, length)| Change::Copy(from, to, length)),
        (any::<prop::sample::Index>(), any::<char>()).prop_map(|(at, to)| Change::Swap(at, to)),
    ]
}

fn apply(text: &str, changes: &[Change]) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for change in changes {
        let count = characters.len().max(1);
        let end = |start: usize, length: usize| (start + length).min(characters.len());
        match change {
            Change::Insert(at, word) => {
                let at = at.index(count).min(characters.len());
                characters.splice(at..at, word.chars());
            }
            Change::Remove(at, length) => {
                let at = at.index(count).min(characters.len());
                characters.drain(at..end(at, *length));
            }
            Change::Copy(from, to, length) => {
                let from = from.index(count).min(characters.len());
                let piece: Vec<char> = characters[from..end(from, *length)].to_vec();
                let to = to.index(count).min(characters.len());
                characters.splice(to..to, piece);
            }
            Change::Swap(at, to) => {
                if let Some(character) = characters.get_mut(at.index(count)) {
                    *character = *to;
                }
            }
        }
    }
    characters.into_iter().collect()
}

/// Whatever is taken has to survive, and be buildable or refused in words.
fn survives(text: &str) {
    match parse_str("t", text) {
        Err(errors) => assert!(!errors.to_string().is_empty()),
        Ok(located) => {
            let objects: Vec<Object> = located.into_iter().map(|located| located.object).collect();
            for object in &objects {
                let json = object.to_json();
                assert_eq!(Object::from_json(json.as_bytes()).unwrap(), *object, "{json}");
                let again = parse_str("yaml", &object.to_yaml()).unwrap_or_else(|errors| panic!("{errors}\n{}", object.to_yaml()));
                assert_eq!(again[0].object, *object);
            }
            drop(build(&objects));
        }
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn mutated_manifests_never_panic(seed in 0..SEEDS.len(), changes in prop::collection::vec(change(), 1..12)) {
        // One document at a time: a change then meets the parser more often than the syntax.
        let documents: Vec<&str> = SEEDS[seed].split("\n---\n").collect();
        let document = documents[changes.len() % documents.len()];
        survives(&apply(document, &changes));
    }

    #[test]
    fn any_text_never_panics(text in any::<String>()) {
        survives(&text);
    }

    #[test]
    fn any_json_never_panics(changes in prop::collection::vec(change(), 1..6), seed in 0..SEEDS.len()) {
        let objects = parse_str("t", SEEDS[seed]).unwrap();
        let object = &objects[changes.len() % objects.len()].object;
        let text = apply(&object.to_json(), &changes);
        if let Ok(object) = Object::from_json(text.as_bytes()) {
            prop_assert_eq!(Object::from_json(object.to_json().as_bytes()).unwrap(), object);
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?"
}

fn selector() -> impl Strategy<Value = serde_json::Value> {
    let labels = prop::collection::btree_map("[a-z]{1,4}(/[a-z])?", "[A-Za-z0-9]{0,5}", 0..3);
    let expression = (name(), 0..4usize, prop::collection::vec("[a-z0-9]{0,3}", 1..3)).prop_map(|(key, operator, values)| match operator {
        0 => serde_json::json!({"key": key, "operator": "In", "values": values}),
        1 => serde_json::json!({"key": key, "operator": "NotIn", "values": values}),
        2 => serde_json::json!({"key": key, "operator": "Exists"}),
        _ => serde_json::json!({"key": key, "operator": "DoesNotExist"}),
    });
    (labels, prop::collection::vec(expression, 0..3))
        .prop_map(|(labels, expressions)| serde_json::json!({"matchLabels": labels, "matchExpressions": expressions}))
}

fn cidr() -> impl Strategy<Value = String> {
    prop_oneof![
        (any::<u32>(), 0u8..=32).prop_map(|(bits, length)| format!("{}/{length}", std::net::Ipv4Addr::from(bits))),
        (any::<u64>(), 0u8..=128).prop_map(|(bits, length)| format!("{}/{length}", std::net::Ipv6Addr::from(u128::from(bits) << 64 | 1))),
    ]
}

fn peer() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        selector().prop_map(|workloads| serde_json::json!({"workloads": workloads})),
        (selector(), selector()).prop_map(|(workloads, namespaces)| serde_json::json!({"workloads": workloads, "namespaces": namespaces})),
        cidr().prop_map(|cidr| serde_json::json!({"cidr": {"cidr": cidr}})),
        name().prop_map(|name| serde_json::json!({"addressGroup": name})),
        prop::sample::select(vec!["any", "host", "world"]).prop_map(|entity| serde_json::json!({"entity": entity})),
    ]
}

fn port() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        (prop::sample::select(vec!["TCP", "UDP", "SCTP", "UDPLite", "DCCP"]), 1u16..)
            .prop_map(|(protocol, port)| serde_json::json!({"protocol": protocol, "port": port})),
        (1u16..30000, 0u16..30000).prop_map(|(port, more)| serde_json::json!({"protocol": "UDP", "port": port, "endPort": port + more})),
        "[a-z]{1,15}".prop_map(|port| serde_json::json!({"protocol": "TCP", "port": port})),
        any::<u8>().prop_map(|protocol| serde_json::json!({"protocol": protocol})),
        (any::<u8>(), any::<Option<u8>>()).prop_map(|(kind, code)| match code {
            Some(code) => serde_json::json!({"icmp": {"family": "IPv4", "type": kind, "code": code}}),
            None => serde_json::json!({"icmp": {"family": "IPv6", "type": kind}}),
        }),
    ]
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn every_right_segment_policy_is_taken_and_loses_nothing(
        name in name(), namespace in name(), applies_to in selector(),
        ingress in prop::collection::vec((prop::collection::vec(peer(), 1..4), prop::collection::vec(port(), 1..4)), 0..4),
        egress in prop::option::of(prop::collection::vec(prop::collection::vec(peer(), 1..4), 0..4)),
    ) {
        let rules: Vec<_> = ingress.iter().map(|(from, ports)| serde_json::json!({"from": from, "ports": ports})).collect();
        let mut spec = serde_json::json!({"appliesTo": applies_to, "ingress": rules});
        if let Some(egress) = &egress {
            spec["egress"] = egress.iter().map(|to| serde_json::json!({"to": to})).collect();
        }
        let written = serde_json::json!({
            "apiVersion": "firebreak.dev/v1alpha1", "kind": "SegmentPolicy", "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        });
        let object = Object::from_json(written.to_string().as_bytes()).unwrap_or_else(|errors| panic!("{errors}\n{written}"));
        prop_assert_eq!(object.kind(), Kind::SegmentPolicy);
        // Nothing that was written is lost, and nothing is added.
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&object.to_json()).unwrap(), written);
        let Object::SegmentPolicy(object) = object else { panic!("another kind") };
        let policy = object.to_policy().unwrap();
        prop_assert_eq!(policy.ingress.as_ref().map(Vec::len), Some(ingress.len()));
        prop_assert_eq!(policy.egress.as_ref().map(Vec::len), egress.as_ref().map(Vec::len));
        for (rule, (from, ports)) in policy.ingress.iter().flatten().zip(&ingress) {
            let firebreak_policy::model::Peers::Only(peers) = &rule.peers else { panic!("any came out of a list") };
            let firebreak_policy::model::Services::Only(services) = &rule.services else { panic!("any came out of a list") };
            prop_assert_eq!((peers.len(), services.len()), (from.len(), ports.len()));
        }
    }
}
