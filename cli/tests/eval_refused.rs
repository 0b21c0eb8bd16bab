//! What `firebreak eval` does with bad input and with none, asked of the real binary; and the shop example's verdicts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/eval/cluster.yaml");
const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop");

fn run(arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_firebreak"))
        .arg("eval")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A process that refuses its arguments does not read, and the pipe is then closed.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn refused(arguments: &[&str], stdin: &str, fragments: &[&str]) {
    let output = run(arguments, stdin);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?} {stdin:?}\n{stderr}");
    assert!(output.stdout.is_empty(), "something was printed: {}", String::from_utf8_lossy(&output.stdout));
    for fragment in fragments {
        assert!(stderr.contains(fragment), "{fragment:?} is not in:\n{stderr}\nfor {stdin:?}");
    }
}

#[test]
fn bad_probes_are_refused_with_line_and_reason() {
    let good = r#"{"from":"a/web","to":"a/db","port":5432}"#;
    let cases: &[(&str, &[&str])] = &[
        ("nonsense", &["no probe", "write it like {\"from\":\"ns/pod\""]),
        ("[]", &["no probe"]),
        ("{", &["no probe", "EOF"]),
        (r#"{"from":"a/web","to":"a/db","port":80} {}"#, &["no probe: trailing characters"]),
        (r#"{"to":"a/db","port":80}"#, &["missing field `from`"]),
        (r#"{"from":"a/web","port":80}"#, &["missing field `to`"]),
        (r#"{"from":"a/web","to":"a/db","prt":80}"#, &["unknown field `prt`", "`port`"]),
        (r#"{"from":"a/web","to":"a/db","port":80,"port":81}"#, &["duplicate field `port`"]),
        (r#"{"from":7,"to":"a/db","port":80}"#, &["invalid type"]),
        (r#"{"from":"a/nobody","to":"a/db","port":80}"#, &["from: no Pod or Workload of the manifests is called a/nobody"]),
        (r#"{"from":"db","to":"a/db","port":80}"#, &["from: no Pod or Workload of the manifests is called default/db; do you mean a/db?"]),
        (r#"{"from":"web","to":"a/db","port":80}"#, &["do you mean a/web or b/web or c/web?"]),
        (r#"{"from":"a/web","to":"10.0.0.0/8","port":80}"#, &["to: no Pod or Workload of the manifests is called 10.0.0.0/8"]),
        (r#"{"from":"a/web","to":"10.0.0.256","port":80}"#, &["to: no Pod or Workload of the manifests is called default/10.0.0.256"]),
        (r#"{"from":"a/web","to":"::ffff:10.1.0.3","port":80}"#, &["IPv4 address written as IPv6; write 10.1.0.3"]),
        (r#"{"from":"a/web","to":"","port":80}"#, &["to: no Pod or Workload"]),
        (r#"{"from":"a/web","to":"a/db"}"#, &["port: is missing, and TCP needs one"]),
        (r#"{"from":"a/web","to":"a/db","protocol":"UDP"}"#, &["port: is missing, and UDP needs one"]),
        (r#"{"from":"a/web","to":"a/db","port":0}"#, &["port: 0 is not a port; use 1 to 65535"]),
        (r#"{"from":"a/web","to":"a/db","port":65536}"#, &["port: 65536 is not a port"]),
        (r#"{"from":"a/web","to":"a/db","port":-1}"#, &["port: -1 is not a port"]),
        (r#"{"from":"a/web","to":"a/db","port":80.5}"#, &["no probe"]),
        (r#"{"from":"a/web","to":"a/db","port":"http"}"#, &["port: a/db has no TCP port of the name \"http\""]),
        (r#"{"from":"a/web","to":"a/db","protocol":"UDP","port":"pg"}"#, &["port: a/db has no UDP port of the name \"pg\""]),
        (r#"{"from":"a/web","to":"8.8.8.8","port":"http"}"#, &["port: 8.8.8.8 has no TCP port"]),
        (r#"{"from":"a/web","to":"a/db","protocol":"TPC","port":1}"#, &["protocol: \"TPC\" is not known; use TCP, UDP, SCTP"]),
        (r#"{"from":"a/web","to":"a/db","protocol":256,"port":1}"#, &["protocol: 256 is no IP protocol"]),
        (r#"{"from":"a/web","to":"a/db","protocol":"ICMP","port":8}"#, &["port: ICMP has no ports; leave it out"]),
        (r#"{"from":"a/web","to":"a/db","protocol":47,"port":8}"#, &["port: protocol 47 has no ports"]),
        (r#"{"from":"a/web","to":"a/db","protocol":"ICMP","icmpType":256}"#, &["icmpType: 256 is out of range"]),
        (r#"{"from":"a/web","to":"a/db","protocol":"ICMP","icmpCode":0}"#, &["icmpCode: is given without icmpType"]),
        (r#"{"from":"a/web","to":"a/db","port":1,"icmpType":8}"#, &["icmpType, icmpCode: TCP has none"]),
        (r#"{"from":"a/web","to":"a/db","protocol":47,"icmpType":8}"#, &["icmpType, icmpCode: protocol 47 has none"]),
    ];
    for (probe, fragments) in cases {
        // The bad one is on line 3, after a good one and a blank one: nothing is judged all the same.
        let stdin = format!("{good}\n\n{probe}\n{good}\n");
        refused(&["-f", CLUSTER, "--probes", "-", "-o", "json"], &stdin, &[&["-:3"][..], fragments].concat());
    }
    let two = r#"{"from":"a/web","to":"a/db"}"#.to_owned() + "\n" + r#"{"from":"x","to":"a/db","port":1}"#;
    refused(&["-f", CLUSTER, "--probes", "-"], &two, &["-:1: port: is missing", "-:2: from: no Pod"]);
}

#[test]
fn bad_manifests_are_refused_before_anything_is_judged() {
    let probe = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(probe.path(), r#"{"from":"a/web","to":"a/db","port":5432}"#).unwrap();
    let probes = probe.path().to_str().unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("a: [", &["-:1:", "document 1", "cannot be read as YAML"]),
        ("apiVersion: v1\nkind: Secret", &["-:2:7: document 1: kind: \"v1\" \"Secret\" is not known here"]),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  ingress:\n  - from: [{}]\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: P}\nspec: {}",
            &[
                "-:6:12: document 1: NetworkPolicy default/p: spec.ingress[0].from[0]: is an empty peer",
                "-:10:18: document 2: NetworkPolicy default/P: metadata.name",
            ],
        ),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: a}", &["Pod a/web: is there twice, first at"]),
        (
            "apiVersion: firebreak.dev/v1alpha1\nkind: Workload\nmetadata: {name: web, namespace: a}\nspec: {node: n1, interface: veth0}",
            &["Workload a/web: Pod a/web has the same name"],
        ),
    ];
    for (manifest, fragments) in cases {
        refused(&["-f", CLUSTER, "-", "--probes", probes], manifest, fragments);
    }
}

#[test]
fn bad_arguments_are_refused() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["--filename <PATH>"]),
        (&["-f"], &["a value is required"]),
        (&["-f", "/no/such/file"], &["/no/such/file: cannot be read: No such file"]),
        (&["-f", CLUSTER, "--probes", "/no/such/probes"], &["/no/such/probes: cannot be read: No such file"]),
        (&["-f", "-", "--probes", "-"], &["standard input (-) can be read once only"]),
        (&["-f", "-", "-f", "-"], &["standard input (-) can be read once only"]),
        (&["-f", CLUSTER, "-o", "xml"], &["invalid value 'xml'", "json"]),
        (&["-f", CLUSTER, "--cluster-network", "10.0.0.0"], &["--cluster-network"]),
        (&["-f", CLUSTER, "--probe", "x"], &["--probe"]),
    ];
    for (arguments, fragments) in cases {
        refused(arguments, "", fragments);
    }
}

#[test]
fn no_probes_only_check_the_manifests() {
    for (arguments, stdin, expected) in [
        (&["-f", CLUSTER][..], "", ""),
        (&["-f", CLUSTER, "--probes", "-"], "", ""),
        (&["-f", CLUSTER, "--probes", "-"], "\n   \n\t\n", ""),
        (&["-f", CLUSTER, "--probes", "/dev/null"], "", ""),
        (&["-f", "-"], "# nothing\n---\n", ""),
        (&["-f", CLUSTER, "-o", "table"], "", "13 objects are right; no probes, nothing to judge\n"),
    ] {
        let output = run(arguments, stdin);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{arguments:?}");
    }
}

#[test]
fn the_answer_repeats_the_probe_and_keeps_the_order() {
    let probes = [
        r#"{"from":"a/web","to":"a/db","protocol":"TCP","port":5432}"#,
        r#"{"from":"a/web","to":"a/db","port":"pg"}"#,
        r#"{"port":80,"to":"10.1.0.3","from":"8.8.8.8","protocol":"udp"}"#,
        r#"{"from":"a/web","to":"a/db","protocol":"ICMP","icmpType":3,"icmpCode":4}"#,
        r#"{"from":"a/web","to":"a/db","protocol":"ICMPv6"}"#,
        r#"{"from":"fd00:1::1","to":"a/db","protocol":47}"#,
    ];
    let output = run(&["-f", CLUSTER, "--probes", "-"], &probes.join("\r\n"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Value> = String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), probes.len());
    for (probe, answer) in probes.iter().zip(&answers) {
        let probe: Value = serde_json::from_str(probe).unwrap();
        for (field, value) in probe.as_object().unwrap() {
            assert_eq!(&answer[field], value, "{field} of {answer}");
        }
        assert_eq!(
            (&answer["verdict"], &answer["egress"]["verdict"], &answer["ingress"]["verdict"]),
            (&"allow".into(), &"allow".into(), &"allow".into())
        );
    }
}

#[test]
fn a_table_says_the_same_for_people() {
    let output = run(&["-f", SHOP, "--probes", "-", "-o", "table"], r#"{"from":"shop/web","to":"shop/db","port":5432}"#);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("FROM "), "{text}");
    for fragment in ["shop/web", "5432/tcp", "deny", "SegmentPolicy shop/db (peer: shop/app=api would do)"] {
        assert!(text.contains(fragment), "{fragment:?} is not in:\n{text}");
    }
}

#[test]
fn what_is_in_force_but_not_as_meant_is_warned_of() {
    let manifests = "
apiVersion: firebreak.dev/v1alpha1
kind: SegmentPolicy
metadata: {name: p}
spec: {appliesTo: {}, ingress: [{from: [{addressGroup: gone}]}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: one}, spec: {nodeName: n}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: two}, spec: {nodeName: n}, status: {podIP: 10.0.0.1}}
";
    let output = run(&["-f", "-", "--probes", "/dev/null"], manifests);
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8_lossy(&output.stderr);
    for fragment in [
        "warning: SegmentPolicy default/p names the AddressGroup gone, which is not there: it is nobody for a rule that allows",
        "warning: the address 10.0.0.1 is claimed by n/default.one and n/default.two: it is nobody's peer",
    ] {
        assert!(stderr.contains(fragment), "{fragment:?} is not in {stderr}");
    }
}

#[test]
fn the_world_is_what_is_outside_the_cluster_networks() {
    let manifests = "
apiVersion: firebreak.dev/v1alpha1
kind: SegmentPolicy
metadata: {name: p, namespace: a}
spec: {appliesTo: {matchLabels: {app: db}}, egress: [{to: [{entity: world}]}]}
";
    let probes = tempfile::NamedTempFile::new().unwrap();
    let to = ["8.8.8.8", "10.1.0.1", "10.9.9.9", "192.168.0.1"];
    let lines: Vec<String> = to.iter().map(|to| format!(r#"{{"from":"a/db","to":"{to}","port":1}}"#)).collect();
    std::fs::write(probes.path(), lines.join("\n")).unwrap();
    let base = ["-f", CLUSTER, "-", "--probes", probes.path().to_str().unwrap()];
    for (more, expected) in [
        (&[][..], ["allow", "deny", "deny", "deny"]),
        (&["--cluster-network", "10.1.0.0/16"], ["allow", "deny", "allow", "allow"]),
        (&["--cluster-network", "10.0.0.0/8", "--cluster-network", "192.168.0.1/16"], ["allow", "deny", "deny", "deny"]),
    ] {
        let output = run(&[&base[..], more].concat(), manifests);
        let text = String::from_utf8(output.stdout).unwrap();
        let verdicts: Vec<String> =
            text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["verdict"].as_str().unwrap().to_owned()).collect();
        assert_eq!(verdicts, expected, "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// What examples/shop promises: web -> api -> db and nobody else.
#[test]
fn the_shop_example_holds_what_it_promises() {
    let cases = [
        ("shop/visitor", "shop/web", "TCP", Some("http"), "allow"),
        ("192.0.2.10", "shop/web", "TCP", Some("8080"), "allow"),
        ("192.0.2.130", "shop/web", "TCP", Some("8080"), "deny"),
        ("203.0.113.5", "shop/web", "TCP", Some("8080"), "deny"),
        ("shop/web", "shop/api", "TCP", Some("http"), "allow"),
        ("shop/web", "shop/api", "TCP", Some("22"), "deny"),
        ("shop/web", "shop/dns", "UDP", Some("53"), "allow"),
        ("shop/web", "shop/dns", "TCP", Some("80"), "deny"),
        ("shop/web", "shop/db", "TCP", Some("5432"), "deny"),
        ("shop/web", "billing/ledger", "TCP", Some("8080"), "deny"),
        ("shop/api", "shop/db", "TCP", Some("5432"), "allow"),
        ("shop/api", "shop/db", "UDP", Some("5432"), "deny"),
        ("shop/api", "shop/db", "ICMP", None, "deny"),
        ("shop/visitor", "shop/api", "ICMP", None, "allow"),
        ("shop/visitor", "shop/api", "ICMPv6", None, "allow"),
        ("billing/ledger", "shop/api", "ICMP", None, "deny"),
        ("billing/ledger", "shop/api", "TCP", Some("http"), "deny"),
        ("billing/ledger", "shop/db", "TCP", Some("5432"), "deny"),
        ("shop/db", "shop/api", "TCP", Some("http"), "deny"),
        ("shop/api", "billing/ledger", "TCP", Some("http"), "deny"),
    ];
    let probes: Vec<String> = cases
        .iter()
        .map(|(from, to, protocol, port, _)| {
            let mut probe = serde_json::json!({"from": from, "to": to, "protocol": protocol});
            if let Some(port) = port {
                probe["port"] = port.parse::<u16>().map_or_else(|_| Value::from(*port), Value::from);
            }
            probe.to_string()
        })
        .collect();
    let output = run(&["-f", SHOP, "--probes", "-"], &probes.join("\n"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    for ((from, to, protocol, port, expected), line) in cases.iter().zip(text.lines()) {
        let answer: Value = serde_json::from_str(line).unwrap();
        assert_eq!(answer["verdict"], *expected, "{from} -> {to} {protocol} {port:?}: {line}");
    }
    assert_eq!(text.lines().count(), cases.len());
}
