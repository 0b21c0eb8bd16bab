//! The node's kernel objects over their life: readable, owned, kept when the agent stops, gone when it is uninstalled.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::probe::{Kind, probe};
use firebreak_tests::shop::{Shop, usual_policies};
use firebreak_tests::wait;
use std::time::Duration;

/// api may use db, stranger and web may not; over both families.
fn assert_enforced(shop: &Shop, when: &str) {
    for to in shop.workload("db").addresses() {
        for (from, kind, expected) in [
            ("api", Kind::Tcp(5432), true),
            ("stranger", Kind::Tcp(5432), false),
            ("web", Kind::Udp(5432), false),
            ("stranger", Kind::Ping, false),
        ] {
            assert_eq!(probe(&shop.workload(from).namespace, to, kind).unwrap(), expected, "{when}: {from} -> db {to} {kind}");
        }
    }
}

#[test]
fn the_tables_can_be_read_by_people_and_survive_a_flush_by_others() {
    let shop = Shop::start("fbl1").unwrap();
    // The probes below can fail: without policy everything passes.
    assert!(probe(&shop.workload("stranger").namespace, shop.workload("db").v4.into(), Kind::Tcp(5432)).unwrap());
    shop.controller.apply(&usual_policies()).unwrap();
    assert_enforced(&shop, "with policy");
    let node = &shop.nodes["node-b"].namespace;
    let listed = node.output("nft list ruleset").unwrap();
    let (api, db) = (shop.workload("api").v4, shop.workload("db").v4);
    for part in [
        "table inet firebreak",
        "table bridge firebreak",
        "table arp firebreak",
        &format!("{db} comment \"shop/db isolated by SegmentPolicy shop/db\""),
        &format!("{db} . {api} . tcp . 5432 comment \"shop/db <- shop/app=api by SegmentPolicy shop/db#from-api\""),
    ] {
        assert!(listed.contains(part), "the ruleset does not say {part:?}:\n{listed}");
    }
    // By another process: refused or passed over, and the node stays closed.
    for _ in 0..3 {
        let _ = node.output("nft flush ruleset");
        assert_enforced(&shop, "after nft flush ruleset");
    }
    assert!(node.output("nft delete table inet firebreak").is_err(), "the table is owned");
    assert_enforced(&shop, "after nft delete table");
    assert_eq!(node.output("nft list ruleset").unwrap().matches("shop/db isolated").count(), listed.matches("shop/db isolated").count());
}

#[test]
fn stopping_leaves_enforcement_in_place_and_starting_again_writes_nothing() {
    let mut shop = Shop::start("fbl2").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    for name in ["node-a", "node-b"] {
        shop.agents.get_mut(name).unwrap().terminate().unwrap();
    }
    assert_enforced(&shop, "with the agents stopped");
    shop.controller.terminate().unwrap();
    assert_enforced(&shop, "with the controller stopped");
    let before = shop.nodes["node-b"].namespace.output("nft -s list table inet firebreak").unwrap();
    for (name, agent) in &mut shop.agents {
        agent.start_again(&shop.nodes[name]).unwrap();
    }
    shop.controller.start_again(&shop.lab.core).unwrap();
    shop.wait_enforced().unwrap();
    assert_enforced(&shop, "with everything started again");
    let policy = |text: &str| text.lines().filter(|line| line.contains("comment")).map(str::to_owned).collect::<Vec<_>>();
    let after = shop.nodes["node-b"].namespace.output("nft -s list table inet firebreak").unwrap();
    assert_eq!(policy(&before), policy(&after));
}

#[test]
fn uninstall_removes_what_is_ours_and_nothing_else() {
    let mut shop = Shop::start("fbl3").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    let node = &shop.nodes["node-b"].namespace;
    node.output("nft add table inet theirs").unwrap();
    node.output("nft add chain inet theirs forward { type filter hook forward priority 0 ; }").unwrap();
    let theirs = node.output("nft list table inet theirs").unwrap();
    shop.agents.get_mut("node-b").unwrap().terminate().unwrap();
    let said = shop.agents["node-b"].uninstall(&shop.nodes["node-b"]).unwrap();
    println!("{said}");
    let left = node.output("nft list ruleset").unwrap();
    assert!(!left.contains("firebreak"), "{left}");
    assert_eq!(node.output("nft list table inet theirs").unwrap(), theirs);
    assert!(
        probe(&shop.workload("stranger").namespace, shop.workload("db").v4.into(), Kind::Tcp(5432)).unwrap(),
        "the node is open afterwards"
    );
    shop.agents["node-b"].uninstall(&shop.nodes["node-b"]).expect("a second uninstall finds nothing and says so");
}

#[test]
fn an_interface_that_nobody_knows_is_denied_from_its_first_packet() {
    let mut shop = Shop::start("fbl4").unwrap();
    for name in ["node-a", "node-b"] {
        let node = shop.nodes.get_mut(name).unwrap();
        let stranger = node.workload(&format!("{}-unknown-{name}", shop.lab.prefix())).unwrap();
        for (to, kind) in [("api", Kind::Tcp(80)), ("web", Kind::Ping), ("web", Kind::Udp(80))] {
            for address in shop.workload(to).addresses() {
                assert!(!probe(&stranger.namespace, address, kind).unwrap(), "{name}: unknown -> {to} {address} {kind}");
            }
        }
        let warned = wait::until("the node's warning", Duration::from_secs(15), || {
            let nodes = shop.controller.ask(&["nodes"])?;
            anyhow::ensure!(nodes.lines().any(|line| line.starts_with(name) && line.contains("UnknownInterface")), "{nodes}");
            Ok(())
        });
        warned.unwrap();
    }
}

#[test]
fn a_lost_node_is_shown_and_its_workloads_stay_peers() {
    let mut shop = Shop::start("fbl5").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    shop.agents.get_mut("node-b").unwrap().kill().unwrap();
    wait::until("node-b to be lost", Duration::from_secs(40), || {
        let nodes = shop.controller.ask(&["nodes"])?;
        anyhow::ensure!(nodes.lines().any(|line| line.starts_with("node-b") && line.contains("Lost")), "{nodes}");
        Ok(())
    })
    .unwrap();
    let api = shop.workload("api").v4.into();
    assert!(probe(&shop.workload("web").namespace, api, Kind::Tcp(80)).unwrap(), "api is still web's peer");
    // A change meanwhile reaches the node that is there.
    shop.controller.apply_quietly(&firebreak_tests::shop::policy("web", "  appliesTo: {matchLabels: {app: web}}\n  egress: []")).unwrap();
    wait::until_true("web to be cut off", Duration::from_secs(5), || !probe(&shop.workload("web").namespace, api, Kind::Tcp(80)).unwrap())
        .unwrap();
}
