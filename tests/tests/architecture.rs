//! The import arrows, over `cargo metadata`: which crate may use which. And that the threat model names tests that are there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use std::collections::BTreeSet;
use std::path::Path;

fn packages() -> Vec<Package> {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata runs in the workspace");
    metadata.packages
}

fn dependencies(package: &Package) -> BTreeSet<&str> {
    package.dependencies.iter().filter(|it| it.kind != DependencyKind::Development).map(|it| it.name.as_str()).collect()
}

#[test]
fn crates_use_only_what_the_arrows_allow() {
    let arrows: [(&str, &[&str]); 8] = [
        ("firebreak-policy", &[]),
        ("firebreak-manifest", &["firebreak-policy"]),
        ("firebreak-proto", &["firebreak-policy"]),
        ("firebreak-controller", &["firebreak-policy", "firebreak-manifest", "firebreak-proto"]),
        ("firebreak-agent", &["firebreak-policy", "firebreak-manifest", "firebreak-proto"]),
        ("firebreak-cli", &["firebreak-policy", "firebreak-manifest", "firebreak-proto"]),
        ("firebreak-tests", &["firebreak-policy", "firebreak-manifest", "firebreak-proto", "firebreak-agent"]),
        ("firebreak-bench", &["firebreak-policy", "firebreak-manifest", "firebreak-proto", "firebreak-agent", "firebreak-tests"]),
    ];
    let packages = packages();
    assert_eq!(packages.len(), arrows.len(), "a crate came or went: say here what it may use");
    for package in &packages {
        let (_, allowed) =
            arrows.iter().find(|(name, _)| *name == package.name.as_str()).unwrap_or_else(|| panic!("{} has no arrows", package.name));
        for used in dependencies(package).iter().filter(|name| name.starts_with("firebreak-")) {
            assert!(allowed.contains(used), "{} must not use {used}", package.name);
        }
    }
}

#[test]
fn outside_crates_stay_in_their_rooms() {
    let rooms: [(&str, &[&str]); 9] = [
        ("kube", &["firebreak-controller", "firebreak-manifest"]),
        ("rtnetlink", &["firebreak-agent"]),
        ("nftables", &["firebreak-agent"]),
        ("netlink-packet-netfilter", &["firebreak-agent"]),
        ("netlink-packet-route", &["firebreak-agent"]),
        ("netlink-sys", &["firebreak-agent"]),
        ("bollard", &["firebreak-agent"]),
        ("rusqlite", &["firebreak-controller"]),
        ("serde-saphyr", &["firebreak-manifest", "firebreak-cli"]),
    ];
    for package in packages() {
        let used = dependencies(&package);
        for (name, may_use) in rooms {
            assert!(!used.contains(name) || may_use.contains(&package.name.as_str()), "{} must not use {name}", package.name);
        }
    }
}

#[test]
fn the_policy_core_is_pure() {
    let packages = packages();
    let policy = packages.iter().find(|package| package.name.as_str() == "firebreak-policy").expect("the policy crate is there");
    let allowed = BTreeSet::from(["blake3", "ipnet", "thiserror", "proptest"]);
    let used = dependencies(policy);
    assert!(used.is_subset(&allowed), "the policy core does no I/O and knows no serde, async or clock: {:?}", used.difference(&allowed));
}

#[test]
fn every_test_that_the_threat_model_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let page = std::fs::read_to_string(root.join("docs/threat-model.md")).expect("the page");
    let mut sources = String::new();
    for member in ["tests/tests", "agent/tests", "agent/src", "policy/tests"] {
        read_sources(&root.join(member), &mut sources);
    }
    // Test names are sentences: whatever has three words or more and no capitals is one.
    let quoted = page.split('`').skip(1).step_by(2);
    let named: Vec<&str> =
        quoted.filter(|word| word.matches('_').count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')).collect();
    assert!(named.len() > 20, "the page names tests: {named:?}");
    let missing: Vec<&&str> = named.iter().filter(|name| !sources.contains(&format!("#[test]\nfn {name}("))).collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
    // And every bypass test is on the page.
    let mut bypass = String::new();
    read_sources(&root.join("tests/tests/bypass"), &mut bypass);
    let tests = bypass.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next());
    let unnamed: Vec<&str> = tests.filter(|name| !named.contains(name)).collect();
    assert!(unnamed.is_empty(), "docs/threat-model.md does not name {unnamed:?}");
}

fn read_sources(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read_sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(&path).expect("a source"));
        }
    }
}
