//! Policy, labels and groups change while packets flow: each change decides the next packets, and how soon is printed.

use crate::{ALLOW, DENY, address_group, namespace, network, segment};
use firebreak_tests::probe::Kind::{Ping, Tcp, Udp};
use firebreak_tests::site::{Line, Site};
use serde_json::Value;
use std::time::Instant;

/// Bridged: shop/web, other/guest. Routed: shop/db.
fn site() -> anyhow::Result<Site> {
    let mut site = Site::with_two_nodes("c")?;
    let mut manifests = namespace("shop", "team: shop") + &namespace("other", "team: other");
    for (node, name, labels) in
        [("bridged", "shop/web", "app: web"), ("bridged", "other/guest", "app: guest"), ("routed", "shop/db", "app: db")]
    {
        manifests += &site.workload(node, name, labels, "")?;
    }
    site.start(&manifests)?;
    Ok(site)
}

const WEB: &str = "shop/web";
const GUEST: &str = "other/guest";
const DB: &str = "shop/db";

/// Does the change, and prints how long it took from the call to the first packet that was decided otherwise.
fn timed(site: &Site, what: &str, change: impl FnOnce() -> anyhow::Result<String> + Send, line: Line<'_>) -> anyhow::Result<()> {
    let begun = Instant::now();
    let took = std::thread::scope(|scope| {
        let changing = scope.spawn(change);
        let took = site.until(begun, line);
        changing.join().expect("changing does not panic")?;
        took
    })?;
    println!("{:>6} ms  {what}", took.as_millis());
    Ok(())
}

#[test]
fn changes_decide_the_next_packets() -> anyhow::Result<()> {
    let site = site()?;
    policies(&site)?;
    labels_of_a_workload(&site)?;
    labels_of_a_namespace(&site)?;
    tiers(&site)?;
    a_missing_group(&site)
}

/// A deny of the Admin tier goes before an allow of the namespace, and the Baseline is asked where nothing isolates; who is denied is told by
/// which rule.
fn tiers(site: &Site) -> anyhow::Result<()> {
    let tier = |name: &str, tier: &str, rules: &str| {
        let spec = format!(
            "tier: {tier}, priority: 5, subject: {{namespaces: {{}}, workloads: {{matchLabels: {{app: db}}}}}}, ingress: [{rules}]"
        );
        format!("---\napiVersion: firebreak.dev/v1alpha1\nkind: ClusterSegmentPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    };
    let shop = segment(
        "shop",
        "db",
        "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{namespaces: {}}], ports: [{protocol: TCP, port: 80}]}]",
    );
    let admin = tier(
        "admin",
        "Admin",
        "{action: Allow, from: [{entity: host}]}, {name: no-guests, action: Deny, reason: guests stay out, \
         from: [{namespaces: {matchLabels: {team: other}}}], ports: [{protocol: TCP}]}",
    );
    let baseline = tier("base", "Baseline", "{action: Deny, from: [{entity: any}], ports: [{protocol: UDP}]}");
    site.check_open("before", &[(GUEST, DB, Tcp(80), DENY), (GUEST, DB, Tcp(81), DENY), (WEB, DB, Udp(53), DENY)])?;
    timed(site, "admin policy added", || site.controller.apply(&admin), (GUEST, DB, Tcp(80), DENY))?;
    site.check(
        "nobody is isolated by it",
        &[
            (GUEST, DB, Tcp(81), DENY),
            // Nothing of it was denied before, so this is a flow of its own.
            (GUEST, DB, Tcp(443), DENY),
            (GUEST, DB, Udp(53), ALLOW),
            (GUEST, DB, Ping, ALLOW),
            (WEB, DB, Tcp(81), ALLOW),
            ("routed", DB, Tcp(80), ALLOW),
        ],
    )?;
    let told = site.controller.ask(&["explain", "--from", GUEST, "--to", "shop/db:80/tcp"])?;
    assert!(told.contains("ClusterSegmentPolicy admin") && told.contains("no-guests"), "{told}");
    let denied = || {
        let told = site.controller.ask(&["flows"]).unwrap();
        told.lines().any(|line| line.contains("ClusterSegmentPolicy admin#no-guests") && line.contains("guests stay out"))
    };
    let begun = Instant::now();
    while !denied() {
        assert!(begun.elapsed().as_secs() < 60, "the denied flow is told by its rule: {}", site.controller.ask(&["flows"])?);
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    site.controller.apply(&shop)?;
    site.check(
        "with a policy of the namespace",
        &[(GUEST, DB, Tcp(80), DENY), (WEB, DB, Tcp(80), ALLOW), (WEB, DB, Tcp(81), DENY), (WEB, DB, Ping, DENY)],
    )?;
    site.controller.apply(&baseline)?;
    site.check("the Baseline is not asked where something isolates", &[(WEB, DB, Udp(53), DENY), (WEB, DB, Tcp(80), ALLOW)])?;
    timed(site, "policy of the namespace deleted", || site.delete(&shop), (WEB, DB, Tcp(81), ALLOW))?;
    site.check(
        "the Baseline is asked",
        &[(WEB, DB, Udp(53), DENY), (WEB, DB, Ping, ALLOW), (GUEST, DB, Tcp(80), DENY), ("routed", DB, Udp(53), ALLOW)],
    )?;
    timed(site, "admin policy deleted", || site.delete(&admin), (GUEST, DB, Tcp(80), ALLOW))?;
    site.check("nothing lets the node past the Baseline", &[("routed", DB, Udp(53), DENY), ("routed", DB, Tcp(80), ALLOW)])?;
    timed(site, "baseline deleted", || site.delete(&baseline), (WEB, DB, Udp(53), ALLOW))
}

fn policies(site: &Site) -> anyhow::Result<()> {
    let db = |ingress: &str| segment("shop", "db", &format!("appliesTo: {{matchLabels: {{app: db}}}}, ingress: [{ingress}]"));
    let from_web =
        |port: u16| db(&format!("{{from: [{{workloads: {{matchLabels: {{app: web}}}}}}], ports: [{{protocol: TCP, port: {port}}}]}}"));
    site.check_open("before any policy", &[(WEB, DB, Tcp(80), DENY), (WEB, DB, Tcp(81), DENY), (GUEST, DB, Ping, DENY)])?;
    timed(site, "policy added", || site.controller.apply(&db("")), (WEB, DB, Tcp(80), DENY))?;
    site.check("a policy that allows nobody", &[(WEB, DB, Tcp(80), DENY), (WEB, DB, Tcp(81), DENY), (GUEST, DB, Ping, DENY)])?;
    timed(site, "policy changed: rule added", || site.controller.apply(&from_web(80)), (WEB, DB, Tcp(80), ALLOW))?;
    site.check("web on port 80", &[(WEB, DB, Tcp(80), ALLOW), (WEB, DB, Tcp(81), DENY), (GUEST, DB, Tcp(80), DENY)])?;
    timed(site, "policy changed: other port", || site.controller.apply(&from_web(81)), (WEB, DB, Tcp(80), DENY))?;
    site.check("web on port 81", &[(WEB, DB, Tcp(80), DENY), (WEB, DB, Tcp(81), ALLOW), (GUEST, DB, Tcp(81), DENY)])?;
    timed(site, "policy deleted", || site.delete(&db("")), (GUEST, DB, Ping, ALLOW))?;
    site.check_open("after the policy", &[(WEB, DB, Tcp(80), DENY), (WEB, DB, Tcp(81), DENY), (GUEST, DB, Ping, DENY)])
}

fn labels_of_a_workload(site: &Site) -> anyhow::Result<()> {
    let policy = segment(
        "shop",
        "db",
        "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{namespaces: {}, workloads: {matchLabels: {app: web}}}]}]",
    );
    site.controller.apply(&policy)?;
    site.check("guest has another label", &[(GUEST, DB, Tcp(80), DENY), (WEB, DB, Tcp(80), ALLOW)])?;
    let relabel = |labels: &str| site.controller.apply(&site.manifest("bridged", GUEST, labels, "")?);
    timed(site, "peer relabelled: allowed", || relabel("app: web"), (GUEST, DB, Tcp(80), ALLOW))?;
    timed(site, "peer relabelled: denied", || relabel("app: guest"), (GUEST, DB, Tcp(80), DENY))?;
    site.check("guest is a guest again", &[(GUEST, DB, Tcp(80), DENY), (GUEST, DB, Udp(53), DENY), (WEB, DB, Tcp(80), ALLOW)])?;
    let subject = |labels: &str| site.controller.apply(&site.manifest("routed", DB, labels, "")?);
    timed(site, "subject relabelled: not isolated", || subject("app: free"), (GUEST, DB, Tcp(80), ALLOW))?;
    timed(site, "subject relabelled: isolated", || subject("app: db"), (GUEST, DB, Tcp(80), DENY))?;
    site.delete(&policy).map(drop)
}

fn labels_of_a_namespace(site: &Site) -> anyhow::Result<()> {
    let policy = network(
        "shop",
        "db",
        "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {trust: \"yes\"}}}]}]",
    );
    site.check_open("before", &[(GUEST, DB, Tcp(80), DENY), (WEB, DB, Tcp(80), DENY)])?;
    site.controller.apply(&policy)?;
    site.check("nobody has that label", &[(GUEST, DB, Tcp(80), DENY), (WEB, DB, Tcp(80), DENY)])?;
    let trusted = || site.controller.apply(&namespace("other", "team: other, trust: \"yes\""));
    timed(site, "namespace relabelled: allowed", trusted, (GUEST, DB, Tcp(80), ALLOW))?;
    site.check("only that namespace", &[(GUEST, DB, Tcp(80), ALLOW), (WEB, DB, Tcp(80), DENY)])?;
    let plain = || site.controller.apply(&namespace("other", "team: other"));
    timed(site, "namespace relabelled: denied", plain, (GUEST, DB, Tcp(80), DENY))?;
    site.delete(&policy).map(drop)
}

fn a_missing_group(site: &Site) -> anyhow::Result<()> {
    let policy = segment("shop", "db", "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{addressGroup: friends}]}]");
    site.check_open("before", &[(GUEST, DB, Tcp(80), DENY), (WEB, DB, Tcp(80), DENY)])?;
    let said = site.controller.apply(&policy)?;
    assert!(said.contains("MissingAddressGroup") && said.contains("friends"), "apply warns: {said}");
    site.check("the group is missing: nobody", &[(GUEST, DB, Tcp(80), DENY), (WEB, DB, Tcp(80), DENY)])?;
    assert_eq!(degraded(site)?, ["MissingAddressGroup"], "while the group is missing");
    let group = address_group("friends", &["10.50.1.1/32", "fd50:1::1/128"]);
    timed(site, "missing group appeared", || site.controller.apply(&group), (WEB, DB, Tcp(80), ALLOW))?;
    site.check("the group is there", &[(GUEST, DB, Tcp(80), DENY), (WEB, DB, Tcp(80), ALLOW)])?;
    assert_eq!(degraded(site)?, [""; 0], "healed");
    timed(site, "group deleted", || site.delete(&group), (WEB, DB, Tcp(80), DENY))?;
    assert_eq!(degraded(site)?, ["MissingAddressGroup"], "missing again");
    site.delete(&policy).map(drop)
}

/// The reasons of the policy's Degraded conditions.
fn degraded(site: &Site) -> anyhow::Result<Vec<String>> {
    let listed = site.controller.ask_json(&["get", "segmentpolicies", "-n", "shop", "-o", "json"])?;
    let conditions = listed["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let bad = conditions.iter().filter(|it| it["type"] == "Degraded" && (it["status"] == true || it["status"] == "True"));
    Ok(bad.map(|it| it["reason"].as_str().map_or_else(|| Value::to_string(it), str::to_owned)).collect())
}
