//! What the tests of `firebreak eval` share: a case is policies and probes, asked of the real binary over eval/cluster.yaml.
#![allow(dead_code, reason = "each test binary uses a part")]

use serde_json::Value;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// One probe: from, to, transport (`tcp/80`, `icmp`, `icmp/3/1`, `47`), and what the egress and ingress ends say.
pub(crate) type Probe = (&'static str, &'static str, &'static str, Word, Word);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Yes,
    No,
}

pub(crate) use Word::{No, Yes};

pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) policies: &'static str,
    pub(crate) probes: &'static [Probe],
}

/// `kind: NetworkPolicy` in namespace a.
pub(crate) fn expand(policies: &str) -> String {
    let header = |name: &str, namespace: &str| {
        format!("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: ")
    };
    let segment = |name: &str, namespace: &str| {
        format!("---\napiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: ")
    };
    let tiered =
        |version: &str, kind: &str, name: &str| format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: ");
    let after = |line: &str, words: usize| line.splitn(words + 1, ' ').last().unwrap_or_default().to_owned();
    let mut text = String::new();
    for line in policies.trim().lines().map(str::trim).filter(|line| !line.is_empty()) {
        // `np NAMESPACE NAME SPEC`, `sp NAMESPACE NAME SPEC`, `csp NAME SPEC`, `anp`, `banp`, `cnp`; everything else is YAML.
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["np", namespace, name, spec] => text.push_str(&(header(name, namespace) + spec)),
            ["sp", namespace, name, spec] => text.push_str(&(segment(name, namespace) + spec)),
            ["csp", name, ..] => text.push_str(&(tiered("firebreak.dev/v1alpha1", "ClusterSegmentPolicy", name) + &after(line, 2))),
            ["anp", name, ..] => {
                text.push_str(&(tiered("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", name) + &after(line, 2)));
            }
            ["banp", name, ..] => {
                text.push_str(&(tiered("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", name) + &after(line, 2)));
            }
            ["cnp", name, ..] => {
                text.push_str(&(tiered("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", name) + &after(line, 2)));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

pub(crate) fn probe_line((from, to, transport, _, _): &Probe) -> String {
    let parts: Vec<&str> = transport.split('/').collect();
    let number = |text: &str| text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from);
    let mut probe = serde_json::json!({"from": from, "to": to});
    match parts.as_slice() {
        ["icmp" | "icmpv6", kind, code] => {
            probe["protocol"] = parts[0].into();
            probe["icmpType"] = number(kind);
            probe["icmpCode"] = number(code);
        }
        [protocol, port] => {
            probe["protocol"] = protocol.to_uppercase().into();
            probe["port"] = number(port);
        }
        [protocol] => probe["protocol"] = number(protocol),
        _ => panic!("{transport}"),
    }
    probe.to_string()
}

pub(crate) fn eval(policies: &str, probes: &[Probe]) -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().join("policies.yaml");
    std::fs::write(&manifests, expand(policies)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_firebreak"))
        .args(["eval", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/eval/cluster.yaml")])
        .arg(&manifests)
        .args(["--probes", "-", "-o", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = probes.iter().map(|probe| probe_line(probe) + "\n").collect();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{policies}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn check(cases: &[Case]) {
    let mut wrong = Vec::new();
    for Case { what, policies, probes } in cases {
        let answers = eval(policies, probes);
        assert_eq!(answers.len(), probes.len(), "{what}");
        for ((from, to, transport, egress, ingress), answer) in probes.iter().zip(&answers) {
            let word = |word: &Word| if *word == Yes { "allow" } else { "deny" };
            let both = if (*egress, *ingress) == (Yes, Yes) { Yes } else { No };
            let right = answer["verdict"] == word(&both)
                && answer["egress"]["verdict"] == word(egress)
                && answer["ingress"]["verdict"] == word(ingress)
                && answer["from"] == *from
                && answer["to"] == *to;
            if !right {
                wrong.push(format!("{what}: {from} -> {to} {transport}: expected egress {egress:?} ingress {ingress:?}\n  {answer}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
