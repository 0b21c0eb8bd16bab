//! Two nodes whose containers have the same addresses behind masquerading, as two Docker hosts have.

use crate::{ALLOW, DENY, network, segment};
use firebreak_tests::lab::Topology;
use firebreak_tests::probe::Kind::{Ping, Tcp, Udp};
use firebreak_tests::site::Site;

const SUBNET: u8 = 9;

/// On both nodes: 10.50.9.1, .2, .3 and fd50:9::1, ::2, ::3. On `one` the first is web, on `two` it is a stranger.
fn site(area: &str) -> anyhow::Result<Site> {
    let mut site = Site::new(area)?;
    let mut manifests = String::new();
    for node in ["one", "two"] {
        let made = site.lab().node_with_subnet(node, Topology::Bridged, SUBNET)?;
        for rule in ["add table inet masq", "add chain inet masq post { type nat hook postrouting priority 100 ; }"] {
            made.namespace.output(&format!("nft {rule}"))?;
        }
        made.namespace.output("nft add rule inet masq post oifname up0 masquerade")?;
        site.add_node(node, made)?;
    }
    for (node, name, labels) in [
        ("one", "shop/web", "app: web"),
        ("one", "shop/db", "app: db"),
        ("two", "other/stranger", "app: stranger"),
        ("two", "shop/db2", "app: db"),
        ("two", "shop/web2", "app: web"),
    ] {
        manifests += &site.workload(node, name, labels, &format!("network: {node}/br0"))?;
    }
    site.start(&manifests)?;
    Ok(site)
}

#[test]
fn a_remote_workload_does_not_admit_the_local_stranger_of_its_address() -> anyhow::Result<()> {
    let site = site("h")?;
    assert_eq!(site.addresses("shop/web")?, site.addresses("other/stranger")?, "the lab is as this test needs it");
    let lines = [
        ("shop/web", "shop/db", Tcp(80), ALLOW),
        ("shop/web", "shop/db", Ping, ALLOW),
        ("other/stranger", "shop/db2", Tcp(80), DENY),
        ("other/stranger", "shop/db2", Udp(53), DENY),
        ("other/stranger", "shop/db2", Ping, DENY),
        ("shop/web2", "shop/db2", Tcp(80), ALLOW),
        ("shop/web2", "shop/db2", Udp(53), ALLOW),
    ];
    site.check_open("hidden networks", &lines)?;
    for policy in [
        segment("shop", "db", "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}]"),
        network("shop", "db", "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]"),
    ] {
        site.controller.apply(&policy)?;
        site.check("hidden networks", &lines)?;
        site.delete(&policy)?;
    }
    let nodes = site.controller.ask_json(&["nodes", "-o", "json"])?;
    for node in nodes["items"].as_array().expect("a list of nodes") {
        assert_eq!(node["conflicts"], serde_json::json!([]), "the same address in two networks is no conflict: {node}");
    }
    Ok(())
}

#[test]
fn a_masqueraded_stranger_of_another_node_stays_out() -> anyhow::Result<()> {
    let site = site("m")?;
    // Seen from `two`, what web sends comes from the node `one`; the route back to the hidden bridge does not matter.
    let lines = [("one", "two", Tcp(80), ALLOW), ("shop/web", "two", Tcp(80), DENY), ("shop/web", "shop/db", Tcp(80), ALLOW)];
    site.check_open("to the other node", &lines)?;
    let policy = segment("shop", "web", "appliesTo: {matchLabels: {app: web}}, egress: [{to: [{workloads: {matchLabels: {app: db}}}]}]");
    site.controller.apply(&policy)?;
    site.check("egress is judged before masquerading", &lines)
}
