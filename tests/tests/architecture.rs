//! The import arrows, over `cargo metadata`: which crate may use which.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use std::collections::BTreeSet;

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
