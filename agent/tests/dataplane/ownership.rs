//! Whose the tables are: other processes, `flush ruleset`, killed agents, other versions, `uninstall`.

use crate::contents::{everything, generation};
use crate::install::{config, open};
use crate::lab::{Lab, Topology, sets};
use crate::namespace::Namespace;
use firebreak_agent::dataplane::{
    ChangeWatch, Check, Dataplane, DataplaneConfig, Feature, OpenError, SkeletonState, UninstallError, uninstall,
};

#[test]
fn other_processes_cannot_change_our_tables_and_flush_ruleset_leaves_them() {
    let node = Namespace::new();
    let (mut dataplane, opened) = open(&node);
    assert!(opened.owned);
    dataplane.commit(&everything(2, "ours")).unwrap();
    node.nft_load("table inet theirs { chain c { type filter hook input priority 0; } }");
    let before = node.stable_ruleset();
    for attempt in [
        "add element inet firebreak in4_isolated { 192.0.2.1 }",
        "flush chain inet firebreak forward",
        "delete table inet firebreak",
        "delete table bridge firebreak",
        "add rule arp firebreak unknown_interface_in accept",
    ] {
        let output = node.nft_load(attempt);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && complaint.contains("Operation not permitted"), "{attempt}: {complaint}");
    }
    assert_eq!(node.stable_ruleset(), before);

    node.command("nft", "flush ruleset");
    let after = node.stable_ruleset();
    assert!(!after.contains("theirs"), "their own table is gone");
    assert_eq!(after, before.split("table inet theirs").next().unwrap());
    assert_eq!(dataplane.commit(&everything(2, "ours")).unwrap().bytes, 0);
}

#[test]
fn the_next_agent_adopts_what_the_last_one_left_and_writes_nothing() {
    let node = Namespace::new();
    let (mut dataplane, _) = open(&node);
    let desired = everything(4, "held");
    let elements = dataplane.commit(&desired).unwrap().elements;
    let before = node.stable_ruleset();
    drop(dataplane);
    assert!(!node.ruleset().contains("flags owner"), "an orphan");
    assert_eq!(node.stable_ruleset(), before, "stopping leaves everything in force");

    let (mut next, opened) = open(&node);
    assert_eq!((opened.skeleton, opened.owned, opened.elements), (SkeletonState::Adopted, true, elements));
    let generation_before = generation(&node);
    assert_eq!(next.commit(&desired).unwrap().bytes, 0);
    assert_eq!(generation(&node), generation_before);
    assert_eq!(node.stable_ruleset(), before);
    assert!(!node.nft_load("delete table inet firebreak").status.success(), "owned again");
}

/// What says what the rules were, by table.
fn marks(node: &Namespace) -> Vec<String> {
    let listed = node.ruleset();
    listed.split_whitespace().filter(|word| word.starts_with("rules_")).map(str::to_owned).collect()
}

/// An orphan's rules are anybody's to change.
#[test]
fn rules_that_were_changed_while_no_agent_ran_are_noticed_at_the_next_start_and_put_right() {
    let lab = Lab::new(Topology::Bridged);
    let (mut dataplane, _) = open(&lab.node);
    let desired = lab.desired(sets([]));
    let elements = dataplane.commit(&desired).unwrap().elements;
    // The order of counters is that of their making, and what the rules were is said by the numbers of their unnamed sets too.
    let sorted = || {
        let listed = lab.node.stable_ruleset();
        let mut lines: Vec<String> = listed
            .lines()
            .filter(|line| !["counter rules_", "tcp timeout", "packets"].iter().any(|word| line.contains(word)))
            .map(str::to_owned)
            .collect();
        lines.sort_unstable();
        lines
    };
    let right = sorted();
    let differences = |now: &[String]| {
        let only = |these: &[String], those: &[String]| these.iter().filter(|line| !those.contains(line)).cloned().collect::<Vec<_>>();
        [only(now, &right), only(&right, now)].concat()
    };
    let table = [
        ("flush chain inet firebreak forward", "rules of table inet firebreak: changed while no agent ran"),
        ("insert rule inet firebreak input accept", "rules of table inet firebreak: changed while no agent ran"),
        (
            "add chain inet firebreak own { type filter hook input priority -900; }",
            "rules of table inet firebreak: changed while no agent ran",
        ),
        ("insert rule bridge firebreak unknown_interface_in accept", "rules of table bridge firebreak: changed while no agent ran"),
        ("flush chain arp firebreak unknown_interface_in", "rules of table arp firebreak: changed while no agent ran"),
        ("flush chain netdev firebreak from_workload", "rules of table netdev firebreak: changed while no agent ran"),
        ("insert rule netdev firebreak port_wl0 accept", "chain netdev firebreak port_wl0: changed"),
        ("insert rule netdev firebreak port_wl0 ip protocol tcp accept", "chain netdev firebreak port_wl0: changed"),
        ("flush chain netdev firebreak port_wl1", "chain netdev firebreak port_wl1: changed"),
        (
            "add chain netdev firebreak port_wl1 { type filter hook ingress device wl1 priority -500; policy accept; }",
            "chain netdev firebreak port_wl1: changed",
        ),
    ];
    for (change, expected) in table {
        drop(dataplane);
        lab.node.nft_load_given_up(change);
        assert_ne!(sorted(), right, "{change}");
        let opened;
        (dataplane, opened) = open(&lab.node);
        assert_eq!((opened.skeleton, opened.elements), (SkeletonState::Adopted, elements), "{change}");
        assert_eq!(opened.changed, [expected], "{change}");
        // A repair opens a socket of its own, in the namespace of its thread.
        dataplane = lab.node.run(move || {
            dataplane.repair().unwrap();
            dataplane
        });
        // Of a chain whose rules were not ours nobody knows the literals; until the next commit its guard looks up.
        let (first, second) = (dataplane.commit(&desired).unwrap(), dataplane.commit(&desired).unwrap());
        assert!(first.bytes == 0 || change.contains("port_"), "{change}: the elements stayed");
        assert_eq!((first.added, first.removed, second.bytes), (0, 0, 0), "{change}");
        assert_eq!(differences(&sorted()), [""; 0], "{change}");
        assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0], "{change}");
        // What was put right is what the next start finds, and it writes nothing.
        drop(dataplane);
        let marks = marks(&lab.node);
        let opened;
        (dataplane, opened) = open(&lab.node);
        let before = generation(&lab.node);
        assert_eq!((opened.skeleton, opened.changed), (SkeletonState::Adopted, Vec::new()), "{change}");
        assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0, "{change}");
        assert_eq!((generation(&lab.node), self::marks(&lab.node)), (before, marks), "{change}");
    }
    // Rules that do not say what they were are not taken at their word.
    drop(dataplane);
    let mark = marks(&lab.node).remove(0);
    lab.node.nft_load_given_up(&format!("flush chain inet firebreak forward; delete counter inet firebreak {mark}"));
    let (mut dataplane, opened) = open(&lab.node);
    assert_eq!((opened.skeleton, opened.elements), (SkeletonState::Replaced, elements));
    assert_eq!(differences(&sorted()), [""; 0]);
    assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0);
}

#[test]
fn a_second_agent_is_refused_while_the_first_one_lives() {
    let node = Namespace::new();
    let (_first, _) = open(&node);
    let before = node.stable_ruleset();
    let second = node.run(|| Dataplane::open(&config()).map(|_| ()));
    assert!(matches!(second, Err(OpenError::OwnedByAnother { .. })), "{second:?}");
    assert!(matches!(node.run(uninstall), Err(UninstallError::Tables { failures, removed }) if failures.len() == 4 && removed.is_empty()));
    assert_eq!(node.stable_ruleset(), before);
}

#[test]
fn other_rules_over_the_same_sets_are_replaced_in_one_transaction_and_the_elements_stay() {
    let node = Namespace::new();
    let (mut dataplane, _) = open(&node);
    let desired = everything(3, "stays");
    let elements = dataplane.commit(&desired).unwrap().elements;
    drop(dataplane);
    let generation_before = generation(&node);
    let changed = DataplaneConfig { nflog_group: 77, denied_size: 1000, ..config() };
    let (mut dataplane, opened) = node.run({
        let changed = changed.clone();
        move || Dataplane::open(&changed).unwrap()
    });
    assert_eq!((opened.skeleton, opened.owned, opened.elements), (SkeletonState::Replaced, true, elements));
    assert_ne!(generation(&node), generation_before);
    assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0);
    let replaced = node.stable_ruleset();
    assert!(
        replaced.contains("group 77")
            && !replaced.contains("group 5 ")
            && replaced.contains("size 1000")
            && !replaced.contains("size 65536")
    );

    let fresh = Namespace::new();
    let (mut other, _) = fresh.run(move || Dataplane::open(&changed).unwrap());
    other.commit(&desired).unwrap();
    // The order of counters and sets is that of their making; what they are is the same.
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).filter(|line| !line.contains("tcp timeout")).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(sorted(&replaced), sorted(&fresh.stable_ruleset()));
}

#[test]
fn uninstall_removes_what_is_ours_and_nothing_else_and_twice_is_once() {
    let node = Namespace::new();
    node.nft_load(
        "table inet theirs { set known_if { type ipv4_addr; elements = { 192.0.2.1 } } chain forward { type filter hook forward priority -10; } }\n\
         table ip firebreak { chain c { } }",
    );
    let before = node.stable_ruleset();
    let (mut dataplane, _) = open(&node);
    dataplane.commit(&everything(3, "ours")).unwrap();
    drop(dataplane);
    let report = node.run(|| uninstall().unwrap());
    assert_eq!(report.removed, ["table inet firebreak", "table bridge firebreak", "table arp firebreak", "table netdev firebreak"]);
    assert_eq!(node.stable_ruleset(), before, "an `ip firebreak` of somebody else's is not ours");
    assert!(node.run(|| uninstall().unwrap()).removed.is_empty());
}

#[test]
fn an_nft_that_fails_or_is_not_there_leaves_nothing_in_force_and_the_next_try_heals_it() {
    let node = Namespace::new();
    for nft in ["/nonexistent/nft", "/bin/false"] {
        let broken = DataplaneConfig { nft: nft.into(), ..config() };
        let error = node.run(move || Dataplane::open(&broken).map(|_| ())).unwrap_err();
        assert!(matches!(&error, OpenError::Nft(text) if text.contains(nft)), "{error}");
        assert!(!node.ruleset().contains("chain"));
    }
    let (_dataplane, opened) = open(&node);
    assert_eq!((opened.skeleton, opened.owned), (SkeletonState::Installed, true));
}

#[test]
fn a_kernel_without_a_feature_gets_the_rest() {
    for (feature, tables) in [
        (Feature::TableOwner, ["inet", "bridge", "arp"].as_slice()),
        (Feature::BridgeFamily, &["inet", "arp"]),
        (Feature::ArpFamily, &["inet", "bridge"]),
    ] {
        let node = Namespace::new();
        let config = DataplaneConfig { absent: [feature].into(), ..config() };
        let (mut dataplane, opened) = node.run(move || Dataplane::open(&config).unwrap());
        assert_eq!((opened.skeleton, opened.owned), (SkeletonState::Installed, feature != Feature::TableOwner), "{feature}");
        dataplane.commit(&everything(3, "ours")).unwrap();
        let ruleset = node.ruleset();
        for family in ["inet", "bridge", "arp"] {
            assert_eq!(ruleset.contains(&format!("table {family} firebreak")), tables.contains(&family), "{feature}: {family}");
        }
        assert_eq!(node.nft_load("flush chain inet firebreak forward").status.success(), feature == Feature::TableOwner, "{feature}");
    }
}

#[test]
fn where_the_kernel_lets_others_in_their_changes_are_noticed_and_put_right() {
    let node = Namespace::new();
    // Plain tables, as a kernel before 6.9 makes them.
    for family in ["inet", "bridge", "arp"] {
        node.command("nft", &format!("add table {family} firebreak"));
    }
    let (mut dataplane, opened) = open(&node);
    assert_eq!((opened.skeleton, opened.owned), (SkeletonState::Installed, false));
    let desired = everything(3, "ours");
    dataplane.commit(&desired).unwrap();
    let port = dataplane.port();
    let mut watch = node.run(move || ChangeWatch::open(port).unwrap());
    dataplane.commit(&everything(4, "ours")).unwrap();
    dataplane.commit(&desired).unwrap();
    assert!(!watch.changed().unwrap(), "our own changes");
    let sorted = |node: &Namespace| {
        let mut lines: Vec<String> =
            node.stable_ruleset().lines().map(str::to_owned).filter(|line| !line.contains("tcp timeout")).collect();
        lines.sort_unstable();
        lines
    };
    let before = sorted(&node);
    for attack in [
        "flush chain inet firebreak forward",
        "delete element inet firebreak in4_isolated { 10.1.2.1 }",
        "flush set arp firebreak known_if",
        "delete table bridge firebreak",
        "delete table inet firebreak",
        "flush ruleset",
    ] {
        let done = node.nft_load(attack);
        assert!(done.status.success(), "{attack}: {}", String::from_utf8_lossy(&done.stderr));
        assert!(watch.changed().unwrap(), "{attack}");
        dataplane = node.run(move || {
            dataplane.repair().unwrap();
            dataplane
        });
        assert_eq!(sorted(&node), before, "{attack}");
        watch.changed().unwrap();
    }
}
