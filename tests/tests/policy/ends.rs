//! Ends that come, go, are published, unknown, or claim each other's address.

use crate::{ALLOW, DENY, network, segment};
use anyhow::Context as _;
use firebreak_tests::probe::Kind::{Ping, Sctp, Tcp, Udp};
use firebreak_tests::relay::Relay;
use firebreak_tests::site::{Line, Site};
use firebreak_tests::wait;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const WEB: &str = "shop/web";
const API: &str = "shop/api";
const STRANGER: &str = "other/stranger";
const DB: &str = "shop/db";
const CACHE: &str = "shop/cache";
const FAR: &str = "other/far";

/// Node ports: relayed 9081 leads to api, 9082 to db; forwarded by nft 9181 to api, 9182 to db.
fn site(area: &str) -> anyhow::Result<Site> {
    let mut site = Site::with_two_nodes(area)?;
    let mut manifests = String::new();
    let to_api = "publishedPorts: [{hostPort: 9081, port: 81}, {hostPort: 9181, port: 81}]";
    let to_db = "publishedPorts: [{hostPort: 9082, port: 5432}, {hostPort: 9182, port: 5432}]";
    for (node, name, labels, spec) in [
        ("bridged", WEB, "app: web", ""),
        ("bridged", API, "app: api", to_api),
        ("bridged", STRANGER, "app: stranger", ""),
        ("routed", DB, "app: db", to_db),
        ("routed", CACHE, "app: cache", ""),
        ("routed", FAR, "app: far", ""),
    ] {
        manifests += &site.workload(node, name, labels, spec)?;
    }
    site.start(&manifests)?;
    Ok(site)
}

#[test]
fn a_published_port_is_no_way_round_policy() -> anyhow::Result<()> {
    let site = site("p")?;
    let at = |end: &str, port| anyhow::Ok(site.addresses(end)?.map(|address| SocketAddr::new(address, port)));
    let _relays =
        [Relay::start(site.namespace("bridged")?, 9081, at(API, 81)?)?, Relay::start(site.namespace("routed")?, 9082, at(DB, 5432)?)?];
    forward(&site, "bridged", 9181, at(API, 81)?)?;
    forward(&site, "routed", 9182, at(DB, 5432)?)?;
    let lines: [Line<'_>; 14] = [
        (WEB, "bridged", Tcp(9081), ALLOW),
        (STRANGER, "bridged", Tcp(9081), DENY),
        (WEB, "bridged", Tcp(9181), ALLOW),
        (STRANGER, "bridged", Tcp(9181), DENY),
        (CACHE, "routed", Tcp(9082), ALLOW),
        (FAR, "routed", Tcp(9082), DENY),
        (CACHE, "routed", Tcp(9182), ALLOW),
        (FAR, "routed", Tcp(9182), DENY),
        // Across nodes the forwarded connection shows its real source.
        (FAR, "bridged", Tcp(9181), DENY),
        (STRANGER, "routed", Tcp(9182), DENY),
        // The same ends at the workload's own port, and the node's other ports.
        (STRANGER, API, Tcp(81), DENY),
        (FAR, DB, Tcp(5432), DENY),
        (STRANGER, "bridged", Tcp(80), ALLOW),
        (FAR, "routed", Tcp(80), ALLOW),
    ];
    site.check_open("published ports", &lines)?;
    let policies = network(
        "shop",
        "api",
        "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 81}]}]",
    ) + &segment(
        "shop",
        "db",
        "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: cache}}}], ports: [{protocol: TCP, port: \
         5432}]}]",
    );
    site.controller.apply(&policies)?;
    site.check("published ports", &lines)?;
    site.delete(&policies)?;
    // The sender's egress counts as well: it is asked about the node that it sends to.
    let lines = [
        (WEB, "bridged", Tcp(9081), DENY),
        (WEB, "bridged", Tcp(9181), DENY),
        (CACHE, "routed", Tcp(9082), DENY),
        (STRANGER, "bridged", Tcp(9081), ALLOW),
    ];
    site.check_open("egress to published ports", &lines)?;
    let policies = segment("shop", "all", "appliesTo: {}, egress: []");
    site.controller.apply(&policies)?;
    site.check("egress to published ports", &lines)
}

/// What Docker does without its proxy.
fn forward(site: &Site, node: &str, port: u16, to: [SocketAddr; 2]) -> anyhow::Result<()> {
    let inside = site.namespace(node)?;
    let table = format!("published{port}");
    inside.output(&format!("nft add table inet {table}"))?;
    inside.output(&format!("nft add chain inet {table} pre {{ type nat hook prerouting priority -100 ; }}"))?;
    for (family, to) in ["ip", "ip6"].into_iter().zip(to) {
        inside.output(&format!("nft add rule inet {table} pre fib daddr type local tcp dport {port} dnat {family} to {to}"))?;
    }
    Ok(())
}

#[test]
fn an_unknown_interface_is_denied_from_its_first_packet() -> anyhow::Result<()> {
    let mut site = site("u")?;
    for (node, name, number, local, remote) in [("bridged", "other/new-b", 20, WEB, FAR), ("routed", "other/new-r", 21, CACHE, STRANGER)] {
        let other = if node == "bridged" { "routed" } else { "bridged" };
        let lines: Vec<Line<'_>> = [Tcp(80), Udp(53), Ping, Sctp(80)]
            .into_iter()
            .flat_map(|kind| [(name, local, kind, DENY), (name, remote, kind, DENY), (local, name, kind, DENY), (remote, name, kind, DENY)])
            .chain([(name, node, Tcp(80), DENY), (name, node, Ping, DENY), (name, other, Ping, DENY), (node, name, Tcp(80), DENY)])
            .collect();
        site.workload_at(node, name, number)?;
        site.check("an interface that nobody declared", &lines)?;
        let manifest = site.manifest(node, name, "app: new", "")?;
        site.controller.apply(&manifest)?;
        site.wait_enforced()?;
        settled(&site, &lines)?;
    }
    Ok(())
}

/// All lines pass, each soon: a neighbour that did not answer while it was denied is asked again only after seconds (RFC 4861, 7.2.2).
fn settled(site: &Site, lines: &[Line<'_>]) -> anyhow::Result<()> {
    lines.iter().try_for_each(|(from, to, kind, _)| site.until(Instant::now(), (*from, *to, *kind, ALLOW)).map(drop))
}

#[test]
fn an_address_that_is_used_again_carries_the_rights_of_its_new_holder() -> anyhow::Result<()> {
    let mut site = site("r")?;
    let policies = segment(
        "shop",
        "db",
        "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{namespaces: {}, workloads: {matchLabels: {app: web}}}, {workloads: \
         {matchLabels: {app: cache}}}]}]",
    );
    site.controller.apply(&policies)?;
    site.check("before", &[(WEB, DB, Tcp(80), ALLOW), (CACHE, DB, Tcp(80), ALLOW), (STRANGER, DB, Tcp(80), DENY)])?;
    for (node, ended, heir, number) in [("bridged", WEB, "other/heir-b", 1), ("routed", CACHE, "other/heir-r", 2)] {
        let addresses = site.addresses(ended)?;
        drop(site.end(ended).context("it was there")?);
        // At once, and under the interface name of the one before.
        remake(&mut site, node, heir, number)?;
        assert_eq!(site.addresses(heir)?, addresses);
        let lines = [(heir, DB, Tcp(80), DENY), (heir, DB, Udp(53), DENY), (heir, DB, Ping, DENY)];
        site.check("an heir that nobody declared", &lines)?;
        let manifest = site.manifest(node, heir, "app: heir", "")?;
        site.controller.apply(&manifest)?;
        site.wait_enforced()?;
        site.check("an heir with labels of its own", &lines)?;
        settled(&site, &[(heir, FAR, Tcp(80), ALLOW), (heir, STRANGER, Ping, ALLOW)])?;
        // The one before comes back at another address and has its rights there.
        drop(site.end(heir).context("it was there")?);
        site.delete(&manifest)?;
        remake(&mut site, node, ended, number + 30)?;
        site.wait_enforced()?;
        site.check("back at another address", &[(ended, DB, Tcp(80), ALLOW), (STRANGER, DB, Tcp(80), DENY)])?;
    }
    Ok(())
}

/// As soon as the kernel has taken away the interface of a namespace that was deleted.
fn remake(site: &mut Site, node: &str, name: &str, number: u8) -> anyhow::Result<()> {
    wait::until("the interface's name to be free", Duration::from_secs(20), || site.workload_at(node, name, number)).map(drop)
}

#[test]
fn an_address_that_two_claim_is_nobody_s_peer() -> anyhow::Result<()> {
    let site = site("x")?;
    let policies = segment(
        "shop",
        "db",
        "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: web}}}, {workloads: {matchLabels: {app: \
         cache}}}]}]",
    );
    site.controller.apply(&policies)?;
    site.check("before", &[(WEB, DB, Tcp(80), ALLOW), (CACHE, DB, Tcp(80), ALLOW), (STRANGER, DB, Tcp(80), DENY)])?;
    assert_eq!(conflicts(&site)?, [""; 0]);
    let [v4, v6] = site.addresses(WEB)?;
    // far, on the other node, takes web's addresses beside its own. Its node sends nothing there for them, so it has taken nothing.
    site.namespace(FAR)?.ip(&format!("addr add {v4}/32 dev eth0"))?;
    site.namespace(FAR)?.ip(&format!("addr add {v6}/128 dev eth0 nodad"))?;
    wait::until("far's node to say that it sends nothing there", Duration::from_secs(20), || {
        let nodes = site.controller.ask(&["nodes", "-o", "json"])?;
        anyhow::ensure!(nodes.contains("AddressNotRouted") && nodes.contains(&v4.to_string()), "{nodes}");
        Ok(())
    })?;
    assert_eq!(conflicts(&site)?, [""; 0]);
    site.check("while nobody believes it", &[(WEB, DB, Tcp(80), ALLOW), (FAR, DB, Tcp(80), DENY)])?;
    // With a route to it both have a claim. In a table that nothing looks into, so that the answers to web still go to web.
    let interface = &site.workload_of(FAR)?.interface;
    site.namespace("routed")?.ip(&format!("route add {v4}/32 dev {interface} table 77"))?;
    site.namespace("routed")?.ip(&format!("route add {v6}/128 dev {interface} table 77"))?;
    wait::until("the conflict to show", Duration::from_secs(20), || {
        let mut shown = conflicts(&site)?;
        shown.sort();
        shown.dedup();
        anyhow::ensure!(shown == [v4.to_string(), v6.to_string()], "shown: {shown:?}");
        Ok(())
    })?;
    site.until(Instant::now(), (WEB, DB, Tcp(80), DENY))?;
    site.check("while two claim it", &[(WEB, DB, Tcp(80), DENY), (WEB, DB, Ping, DENY), (CACHE, DB, Tcp(80), ALLOW)])?;
    let workloads = site.controller.ask(&["get", "workloads", "-o", "json"])?;
    assert!(workloads.contains("AddressConflict"), "the workloads say so: {workloads}");
    site.namespace(FAR)?.ip(&format!("addr del {v4}/32 dev eth0"))?;
    site.namespace(FAR)?.ip(&format!("addr del {v6}/128 dev eth0"))?;
    site.until(Instant::now(), (WEB, DB, Tcp(80), ALLOW))?;
    site.check("afterwards", &[(WEB, DB, Tcp(80), ALLOW), (STRANGER, DB, Tcp(80), DENY)])?;
    assert_eq!(conflicts(&site)?, [""; 0]);
    Ok(())
}

/// The contested addresses that `firebreak nodes` shows.
fn conflicts(site: &Site) -> anyhow::Result<Vec<String>> {
    let nodes = site.controller.ask_json(&["nodes", "-o", "json"])?;
    let nodes = nodes["items"].as_array().context("a list of nodes")?;
    let all = nodes.iter().flat_map(|node| node["conflicts"].as_array().into_iter().flatten());
    Ok(all.map(|conflict| conflict["address"].as_str().map_or_else(|| conflict.to_string(), str::to_owned)).collect())
}
