//! Reserved labels: a LabelRule gives them, what a workload says of itself does not, and both follow changes.

use crate::{ALLOW, DENY, namespace, segment};
use firebreak_tests::probe::Kind::Tcp;
use firebreak_tests::site::Site;

const WEB: &str = "shop/web";
const GUEST: &str = "other/guest";
const LIAR: &str = "other/liar";
const DB: &str = "shop/db";

fn rule(name: &str, to: &str) -> String {
    format!(
        "---\napiVersion: firebreak.dev/v1alpha1\nkind: LabelRule\nmetadata: {{name: {name}}}\nspec: {{to: {{{to}}}, labels: \
         {{reserved.firebreak.dev/zone: pci}}}}\n"
    )
}

#[test]
fn a_reserved_label_is_what_rules_say_and_not_what_a_workload_says_of_itself() -> anyhow::Result<()> {
    let mut site = Site::with_two_nodes("r")?;
    let mut manifests = namespace("shop", "team: shop") + &namespace("other", "team: other");
    for (node, name, labels) in [
        ("bridged", WEB, "app: web"),
        ("routed", GUEST, "app: guest"),
        ("bridged", LIAR, "app: liar, reserved.firebreak.dev/zone: pci"),
        ("routed", DB, "app: db"),
    ] {
        manifests += &site.workload(node, name, labels, "")?;
    }
    site.start(&manifests)?;
    let only_pci = segment(
        "shop",
        "db",
        "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{namespaces: {}, workloads: {matchLabels: {reserved.firebreak.dev/zone: pci}}}]}]",
    );
    let all = [(WEB, DB, Tcp(80), DENY), (GUEST, DB, Tcp(80), DENY), (LIAR, DB, Tcp(80), DENY)];
    site.check_open("before", &all)?;
    site.controller.apply(&only_pci)?;
    site.check("nobody has the label", &all)?;
    let told = site.controller.ask(&["describe", "workload", "liar", "--namespace", "other"])?;
    assert!(told.contains("ReservedLabels") && told.contains("are passed over"), "{told}");
    site.controller.apply(&rule("shop", "namespaces: {matchLabels: {team: shop}}"))?;
    site.check("the rule gives it to its namespace", &[(WEB, DB, Tcp(80), ALLOW), (GUEST, DB, Tcp(80), DENY), (LIAR, DB, Tcp(80), DENY)])?;
    let told = site.controller.ask(&["explain", "--from", WEB, "--to", "shop/db:80/tcp"])?;
    assert!(told.contains("reserved.firebreak.dev/zone=pci"), "{told}");
    site.controller.apply(&namespace("other", "team: shop"))?;
    site.check("labels of the namespace changed", &[(WEB, DB, Tcp(80), ALLOW), (GUEST, DB, Tcp(80), ALLOW), (LIAR, DB, Tcp(80), ALLOW)])?;
    site.controller.apply(&rule("shop", "namespaces: {matchLabels: {team: shop}}, workloads: {matchLabels: {app: guest}}"))?;
    site.check("the rule changed", &[(WEB, DB, Tcp(80), DENY), (GUEST, DB, Tcp(80), ALLOW), (LIAR, DB, Tcp(80), DENY)])?;
    site.delete(&rule("shop", "namespaces: {}"))?;
    site.check("the rule is gone", &all)
}
