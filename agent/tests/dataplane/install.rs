//! The fixed rules: installed, listed, read again.

use crate::namespace::Namespace;
use firebreak_agent::dataplane::{Dataplane, DataplaneConfig, InterfacePattern, Opened, SkeletonState};

/// What tests configure.
pub fn config() -> DataplaneConfig {
    DataplaneConfig {
        interface_patterns: ["wl*", "tap0"].map(|text| InterfacePattern::new(text).unwrap()).to_vec(),
        ..DataplaneConfig::default()
    }
}

/// Opens the dataplane inside.
pub fn open(namespace: &Namespace) -> (Dataplane, Opened) {
    namespace.run(|| Dataplane::open(&config()).unwrap())
}

#[test]
fn the_tables_are_listed_by_nft_and_what_is_listed_can_be_loaded() {
    let node = Namespace::new();
    let (_dataplane, opened) = open(&node);
    assert_eq!(opened, Opened { skeleton: SkeletonState::Installed, owned: true, elements: 0, changed: Vec::new() });
    let listed = node.stable_ruleset();
    let other = Namespace::new();
    let loaded = other.nft_load(&listed);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    assert_eq!(other.stable_ruleset(), listed);
    for expected in [
        "set in4_peer_port",
        "chain forward4",
        "log prefix \"firebreak deny in\" group 5",
        "table arp firebreak",
        "table bridge firebreak",
        "iifname \"wl*\" iif != @known_if counter name \"unknown_interface_in\" drop",
    ] {
        assert!(listed.contains(expected), "{expected}");
    }
}
