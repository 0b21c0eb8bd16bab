//! Kernels that lack something, made by failing the agent's own probes: it refuses to start, or takes the fallback that it names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::lab::{Lab, Topology};
use firebreak_tests::namespace::Namespace;
use firebreak_tests::system::{Agent, Controller, binaries};
use firebreak_tests::wait;
use std::process::Stdio;
use std::time::Duration;

/// What enforcement cannot be built without, with the code that the agent gives.
const NEEDED: [(&str, &str); 11] = [
    ("nf-tables", "NoNfTables"),
    ("inet-family", "NoInetFamily"),
    ("conntrack", "NoConntrack"),
    ("conntrack-labels", "NoConntrackLabels"),
    ("concatenated-ranges", "NoConcatenatedRanges"),
    ("dynamic-sets", "NoDynamicSets"),
    ("packet-log", "NoPacketLog"),
    ("reject", "NoReject"),
    ("netdev-ingress", "NoNetdevIngress"),
    ("target-namespace", "NoTargetNamespace"),
    ("all-namespaces", "NoAllNamespaces"),
];

/// What there is a fallback for: feature, code, and what of the ruleset is then missing.
const FALLBACKS: [(&str, &str, &str); 4] = [
    ("table-owner", "NoTableOwner", "owner"),
    ("bridge-family", "NoBridgeFamily", "table bridge"),
    ("arp-family", "NoArpFamily", "table arp"),
    ("seccomp-filter", "NoSeccompFilter", ""),
];

#[test]
fn without_what_it_needs_the_agent_refuses_says_why_and_installs_nothing() {
    let node = Namespace::new(&format!("fbk{}-refused", std::process::id())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let program = binaries().unwrap().join("firebreak-agent");
    for (feature, code) in NEEDED {
        let mut agent = node.command(&program);
        agent.args(["run", "--node", "n", "--docker-socket", "none", "--without-feature", feature, "--state-dir"]);
        let output = agent.arg(folder.path()).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{feature}: {said}");
        assert!(said.contains(code) && said.contains("this node cannot enforce: "), "{feature}: {said}");
        assert_eq!(node.output("nft list ruleset").unwrap(), "", "{feature}");
        let told = node.command(&program).args(["preflight", "--without-feature", feature]).output().unwrap();
        let told = (told.status.success(), String::from_utf8_lossy(&told.stdout).into_owned());
        assert!(!told.0 && told.1.contains(code) && told.1.contains("remedy: "), "{feature}: {told:?}");
    }
    let unknown = node.command(&program).args(["run", "--without-feature", "warp-drive"]).output().unwrap();
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("warp-drive"));
}

#[test]
fn without_the_rest_the_agent_takes_its_fallback_and_the_node_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(&format!("fbk{}", std::process::id())).unwrap();
    let nodes: Vec<_> = FALLBACKS.iter().map(|(feature, ..)| (*feature, lab.node(feature, Topology::Bridged).unwrap())).collect();
    let controller = Controller::start(&lab.core, folder.path()).unwrap();
    let mut agents: Vec<_> =
        nodes.iter().map(|(feature, node)| Agent::start(node, feature, folder.path(), &["--without-feature", feature]).unwrap()).collect();
    for (((feature, code, missing), (_, node)), agent) in FALLBACKS.into_iter().zip(&nodes).zip(&mut agents) {
        wait::until(&format!("node {feature}"), Duration::from_secs(20), || {
            agent.process().unwrap().check()?;
            let said = controller.ask_json(&["nodes", "-o", "json"])?;
            let said = said["items"].as_array().unwrap().iter().find(|item| item["name"] == feature).map(ToString::to_string);
            anyhow::ensure!(said.as_ref().is_some_and(|said| said.contains(code)), "{said:?}");
            Ok(())
        })
        .unwrap();
        let ruleset = node.namespace.output("nft list ruleset").unwrap();
        for table in ["table inet", "table bridge", "table arp"].iter().filter(|table| **table != missing) {
            assert!(ruleset.contains(&format!("{table} firebreak")), "{feature}: no {table}: {ruleset}");
        }
        assert!(missing.is_empty() || !ruleset.contains(missing), "{feature}: {ruleset}");
        // Only a table without an owner can be changed by others.
        let changed = node.namespace.output("nft flush chain inet firebreak forward");
        assert_eq!(changed.is_ok(), feature == "table-owner", "{feature}: {changed:?}");
        let pid = agent.process().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert_eq!(status.contains("Seccomp:\t0"), feature == "seccomp-filter", "{feature}: {status}");
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("CapBnd:\t0000000000001800"), "{feature}: {status}");
    }
}
