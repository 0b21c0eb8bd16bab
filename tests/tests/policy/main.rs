//! Policy with the real binaries and real packets: manifests in, and who then reaches whom. Both topologies, IPv4 and IPv6.
//! Every line that is to be denied is first seen to pass without the policy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod changes;
mod ends;
mod hidden;
mod reserved;
mod verdicts;

/// What probes are to see.
const ALLOW: bool = true;
const DENY: bool = false;

/// A SegmentPolicy; `spec` is its spec in flow style.
fn segment(namespace: &str, name: &str, spec: &str) -> String {
    policy("firebreak.dev/v1alpha1", "SegmentPolicy", namespace, name, spec)
}

/// A NetworkPolicy; `spec` is its spec in flow style.
fn network(namespace: &str, name: &str, spec: &str) -> String {
    policy("networking.k8s.io/v1", "NetworkPolicy", namespace, name, spec)
}

fn policy(version: &str, kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n")
}

fn namespace(name: &str, labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

fn address_group(name: &str, cidrs: &[&str]) -> String {
    let blocks: Vec<String> = cidrs.iter().map(|cidr| format!("{{cidr: \"{cidr}\"}}")).collect();
    let blocks = blocks.join(", ");
    format!("---\napiVersion: firebreak.dev/v1alpha1\nkind: AddressGroup\nmetadata: {{name: {name}}}\nspec: {{blocks: [{blocks}]}}\n")
}
