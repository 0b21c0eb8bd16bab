//! What a node does when things fail: reboots without a controller, restarts, damaged files, other people's changes, break-glass.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::probe::{Kind, probe};
use firebreak_tests::shop::{Shop, usual_policies};
use firebreak_tests::system::Agent;
use firebreak_tests::wait;
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// Whether a packet from `from` reaches db, over both families.
fn reaches_db(shop: &Shop, from: &str) -> [bool; 2] {
    shop.workload("db").addresses().map(|to| probe(&shop.workload(from).namespace, to, Kind::Tcp(5432)).unwrap())
}

fn assert_enforced(shop: &Shop, when: &str) {
    assert_eq!((reaches_db(shop, "api"), reaches_db(shop, "stranger")), ([true, true], [false, false]), "{when}");
}

fn wait_enforced(shop: &Shop, what: &str) -> Duration {
    let begun = Instant::now();
    wait::until_true(what, PATIENCE, || (reaches_db(shop, "api"), reaches_db(shop, "stranger")) == ([true, true], [false, false])).unwrap();
    begun.elapsed()
}

/// The first event of a kind that node-b has told.
fn event(shop: &Shop, kind: &str) -> Value {
    let found = wait::until(&format!("event {kind}"), PATIENCE, || {
        let told = shop.controller.ask(&["flows", "--node-events", "--node", "node-b", "-o", "json"])?;
        let events: Vec<Value> = told.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let event = events.iter().find(|event| event["nodeEvent"]["kind"] == kind).cloned();
        event.ok_or_else(|| anyhow::anyhow!("not among {told}"))
    });
    found.unwrap().0["nodeEvent"].clone()
}

fn node_b(shop: &Shop) -> Value {
    shop.controller.ask_json(&["nodes", "node-b", "-o", "json"]).unwrap()["items"][0].clone()
}

/// Waits until the policies are on node-b's disk.
fn wait_on_disk(shop: &Shop) {
    let path = shop.agents["node-b"].state_dir().join("state");
    let kept = || std::fs::read(&path).is_ok_and(|bytes| bytes.windows(8).any(|window| window == b"from-api"));
    wait::until_true("the policies on disk", PATIENCE, kept).unwrap();
}

/// Another agent takes node-b over, on the same files, with other options.
fn start_with(shop: &mut Shop, options: &[&str]) {
    let agent = Agent::start(&shop.nodes["node-b"], "node-b", shop.folder.path(), options).unwrap();
    shop.agents.insert("node-b", agent);
}

#[test]
fn a_node_that_boots_without_its_controller_enforces_the_state_on_disk() {
    let mut shop = Shop::start("fbm1").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    wait_on_disk(&shop);
    shop.agents.get_mut("node-b").unwrap().terminate().unwrap();
    shop.controller.terminate().unwrap();
    // As after a boot: the kernel holds nothing of ours.
    shop.agents["node-b"].uninstall(&shop.nodes["node-b"]).unwrap();
    assert_eq!(reaches_db(&shop, "stranger"), [true, true], "the node is open: the test can fail");
    shop.agents.get_mut("node-b").unwrap().start_again(&shop.nodes["node-b"]).unwrap();
    let took = wait_enforced(&shop, "enforcement from disk");
    println!("enforced {took:?} after the agent's start, without a controller");

    // The controller comes back: it is told what is held, and that it was held from disk.
    shop.controller.start_again(&shop.lab.core).unwrap();
    shop.wait_enforced().unwrap();
    assert_enforced(&shop, "with the controller back");
    let told = event(&shop, "EnforcedFromDisk");
    assert!(told["message"].as_str().unwrap().contains("generation"), "{told}");
}

/// `nft monitor` on a node.
struct Monitor(Child);

impl Monitor {
    fn start(shop: &Shop, node: &str) -> Self {
        let mut command = shop.nodes[node].namespace.command("nft");
        let child = command.arg("monitor").stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        Self(child)
    }

    fn stop(mut self) -> String {
        std::thread::sleep(Duration::from_millis(300));
        self.0.kill().unwrap();
        String::from_utf8(self.0.wait_with_output().unwrap().stdout).unwrap()
    }
}

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    let mut shop = Shop::start("fbm2").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    // Rules that pass by what asks for cut connections come when two looks have found none.
    let passes_by =
        || shop.nodes["node-b"].namespace.output("nft list chain inet firebreak output").unwrap().contains("goto judged_output6");
    wait::until_true("the rules to pass by what asks for cut connections", PATIENCE, passes_by).unwrap();
    let monitor = Monitor::start(&shop, "node-b");
    for with_controller in [true, false] {
        shop.agents.get_mut("node-b").unwrap().kill().unwrap();
        if !with_controller {
            shop.controller.kill().unwrap();
        }
        assert_enforced(&shop, "with the agent killed");
        shop.agents.get_mut("node-b").unwrap().start_again(&shop.nodes["node-b"]).unwrap();
        wait::until_true("the agent to be back", PATIENCE, || {
            shop.agents["node-b"].log().matches("kernel tables are in force").count() > usize::from(!with_controller) + 1
        })
        .unwrap();
        std::thread::sleep(Duration::from_secs(1));
        assert_enforced(&shop, "with the agent back");
    }
    shop.controller.start_again(&shop.lab.core).unwrap();
    shop.wait_enforced().unwrap();
    let written = monitor.stop();
    // What the kernel counts and an owner that comes and goes are no writes of ours.
    let ours: Vec<&str> = written
        .lines()
        .filter(|line| ["element", "rule", "chain", "set ", "counter"].iter().any(|word| line.contains(word)))
        .filter(|line| !line.contains(" denied_") && !line.contains(" guard_"))
        .collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
fn a_damaged_state_is_refused_by_name_and_what_the_kernel_holds_stays_in_force() {
    let mut shop = Shop::start("fbm3").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    shop.agents.get_mut("node-b").unwrap().terminate().unwrap();
    let path = shop.agents["node-b"].state_dir().join("state");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    shop.agents.get_mut("node-b").unwrap().start_again(&shop.nodes["node-b"]).unwrap();
    let told = event(&shop, "StateRefused");
    let message = told["message"].as_str().unwrap();
    assert!(
        message.contains(path.to_str().unwrap()) && message.contains("checksum") && message.contains("nothing of it is used"),
        "{message}"
    );
    assert_enforced(&shop, "after a damaged state");
    let warned = node_b(&shop)["warnings"].to_string();
    assert!(warned.contains("StateDamaged"), "{warned}");
}

#[test]
fn where_the_kernel_lets_others_in_a_flush_is_put_right_and_told_with_who_and_how_long() {
    let mut shop = Shop::start("fbm4").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    shop.agents.get_mut("node-b").unwrap().terminate().unwrap();
    shop.agents["node-b"].uninstall(&shop.nodes["node-b"]).unwrap();
    start_with(&mut shop, &["--without-feature", "table-owner"]);
    wait_enforced(&shop, "enforcement by plain tables");
    for attack in ["flush ruleset", "flush chain inet firebreak forward", "delete table inet firebreak"] {
        shop.nodes["node-b"].namespace.output(&format!("nft {attack}")).unwrap();
        let took = wait_enforced(&shop, "the repair");
        println!("{attack}: enforced again within {took:?}");
    }
    let tampered = event(&shop, "Tampered");
    assert!(tampered["principal"].as_str().unwrap().starts_with("nft (pid "), "{tampered}");
    assert!(tampered["objects"].to_string().contains("table inet firebreak: gone"), "{tampered}");
    let told = shop.controller.ask(&["flows", "--node-events", "--node", "node-b"]).unwrap();
    assert!(told.contains("chain inet firebreak forward: changed"), "{told}");
    let repaired = event(&shop, "Repaired");
    let open = repaired["openSeconds"].as_f64().unwrap();
    println!("open for {open} s");
    assert!(open > 0.0 && open < 5.0, "{repaired}");
}

#[test]
fn tables_that_were_flushed_while_no_agent_ran_are_back_at_its_start_without_a_controller() {
    let mut shop = Shop::start("fbm5").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    wait_on_disk(&shop);
    shop.agents.get_mut("node-b").unwrap().kill().unwrap();
    shop.controller.kill().unwrap();
    shop.nodes["node-b"].namespace.output("nft flush ruleset").unwrap();
    let left = shop.nodes["node-b"].namespace.output("nft list ruleset").unwrap();
    println!("after a flush of orphans: {} lines are left", left.lines().count());
    shop.agents.get_mut("node-b").unwrap().start_again(&shop.nodes["node-b"]).unwrap();
    wait_enforced(&shop, "enforcement from disk");
}

#[test]
fn rules_that_were_changed_while_no_agent_ran_are_put_right_at_its_start_and_told() {
    let mut shop = Shop::start("fbm8").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    shop.agents.get_mut("node-b").unwrap().kill().unwrap();
    // Nobody knows what happens on a node that is not heard of: its workloads stay, and do not count as enforced.
    wait::until("the node to be lost", PATIENCE, || {
        let workloads = shop.controller.ask(&["get", "workloads"])?;
        let lost = workloads.lines().filter(|line| line.contains("no: node node-b is lost since")).count();
        anyhow::ensure!(lost > 0 && lost == workloads.lines().filter(|line| line.contains(" node-b ")).count(), "{workloads}");
        Ok(())
    })
    .unwrap();
    shop.nodes["node-b"].namespace.output("nft insert rule inet firebreak forward accept").unwrap();
    shop.agents.get_mut("node-b").unwrap().start_again(&shop.nodes["node-b"]).unwrap();
    wait_enforced(&shop, "the repair");
    let tampered = event(&shop, "Tampered");
    assert!(tampered["objects"].to_string().contains("rules of table inet firebreak: changed while no agent ran"), "{tampered}");
    let repaired = event(&shop, "Repaired");
    assert!(repaired["message"].as_str().unwrap().contains("nobody knows for how long"), "{repaired}");
}

#[test]
fn observe_from_the_controller_lets_through_and_tells_and_ends_by_order_and_by_itself() {
    let shop = Shop::start("fbm6").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    assert_enforced(&shop, "before");
    for wrong in [
        &["node", "observe", "node-b", "--for", "5h", "--reason", "x"][..],
        &["node", "observe", "node-b", "--for", "15m"],
        &["node", "observe", "nobody", "--for", "15m", "--reason", "x"],
    ] {
        assert!(shop.controller.ask(wrong).is_err(), "{wrong:?}");
    }
    let said = shop.controller.ask(&["node", "observe", "node-b", "--for", "15m", "--reason", "locked out of db"]).unwrap();
    assert!(said.contains("LET THROUGH"), "{said}");
    assert_eq!((reaches_db(&shop, "stranger"), reaches_db(&shop, "api")), ([true, true], [true, true]), "observing");
    let nodes = shop.controller.ask(&["nodes"]).unwrap();
    assert!(nodes.lines().any(|line| line.starts_with("node-b") && line.contains("OBSERVES until")), "{nodes}");
    let workloads = shop.controller.ask_json(&["get", "workloads", "-o", "json"]).unwrap();
    let db = workloads["items"].as_array().unwrap().iter().find(|item| item["name"] == "db").unwrap().clone();
    assert!(db["enforced"] == false && db["reason"].to_string().contains("observes"), "{db}");
    let history = shop.controller.ask(&["history", "-o", "json"]).unwrap();
    assert!(history.contains("observe") && history.contains("locked out of db") && history.contains("uid 0"), "{history}");
    wait::until("an audit flow", PATIENCE, || {
        let told = shop.controller.ask(&["flows", "--verdict", "audit", "-o", "json"])?;
        anyhow::ensure!(told.contains("stranger"), "{told}");
        Ok(())
    })
    .unwrap();
    let begun = event(&shop, "ObserveBegun");
    assert!(begun["principal"].as_str().unwrap().starts_with("uid 0") && begun["reason"] == "locked out of db", "{begun}");

    let said = shop.controller.ask(&["node", "observe", "node-b", "--off"]).unwrap();
    assert!(said.contains("enforces"), "{said}");
    assert_enforced(&shop, "after --off");
    event(&shop, "ObserveEnded");

    shop.controller.ask(&["node", "observe", "node-b", "--for", "3s", "--reason", "briefly"]).unwrap();
    wait_enforced(&shop, "the end of a short time");
}

#[test]
fn observe_on_the_node_works_without_controller_and_without_agent_and_ends_while_nobody_looks() {
    let mut shop = Shop::start("fbm7").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    shop.controller.kill().unwrap();
    let said = shop.agents["node-b"].observe(&shop.nodes["node-b"], &["--for", "15m", "--reason", "at the console"]).unwrap();
    assert!(said.contains("LET THROUGH") && said.contains("uid 0"), "{said}");
    assert_eq!(reaches_db(&shop, "stranger"), [true, true]);
    // A restart keeps the time that is left.
    shop.agents.get_mut("node-b").unwrap().kill().unwrap();
    assert_eq!(reaches_db(&shop, "stranger"), [true, true], "with the agent killed");
    shop.agents.get_mut("node-b").unwrap().start_again(&shop.nodes["node-b"]).unwrap();
    let resumed = wait::until("the status after the restart", PATIENCE, || {
        let said = shop.agents["node-b"].observe(&shop.nodes["node-b"], &[])?;
        anyhow::ensure!(said.contains("LET THROUGH") && said.contains("at the console"), "{said}");
        Ok(())
    });
    resumed.unwrap();
    shop.agents["node-b"].observe(&shop.nodes["node-b"], &["--off"]).unwrap();
    assert_enforced(&shop, "after --off");

    // Without an agent the command takes the tables over for one change; the time ends in the kernel.
    shop.agents.get_mut("node-b").unwrap().kill().unwrap();
    let said = shop.agents["node-b"].observe(&shop.nodes["node-b"], &["--for", "6s", "--reason", "nobody is here"]).unwrap();
    assert!(said.contains("LET THROUGH"), "{said}");
    assert_eq!(reaches_db(&shop, "stranger"), [true, true], "without an agent");
    wait_enforced(&shop, "the end that nobody sees");
    shop.controller.start_again(&shop.lab.core).unwrap();
    shop.agents.get_mut("node-b").unwrap().start_again(&shop.nodes["node-b"]).unwrap();
    let ended = wait::until("the end to be told", PATIENCE, || {
        let told = shop.controller.ask(&["flows", "--node-events", "--node", "node-b", "-o", "json"])?;
        anyhow::ensure!(told.contains("while no agent ran") && told.contains("nobody is here"), "{told}");
        Ok(())
    });
    ended.unwrap();
}
