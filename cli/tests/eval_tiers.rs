//! The corners of the tiered policy APIs (SEMANTICS 14 to 22), ClusterSegmentPolicy and Audit mode, asked of the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod eval_cases;

use eval_cases::{Case, No, Probe, Yes, check, eval};
use std::process::Command;

#[test]
fn semantics_14_the_lowest_number_goes_first_and_nobody_is_isolated() {
    check(&[
        Case {
            what: "priority before the order of objects, rules as written",
            policies: "anp late {priority: 10, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {}}]}]}
                anp early {priority: 5, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {team: b}}}]}]}",
            probes: &[("b/web", "a/db", "tcp/1", Yes, No), ("a/web", "a/db", "tcp/1", Yes, Yes), ("8.8.8.8", "a/db", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "zero is the strongest, and the first rule that matches decides",
            policies: "cnp one {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]}
                cnp zero {tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: api}}}}]}, {action: Deny, from: [{namespaces: {}}]}]}",
            probes: &[("a/api", "a/db", "tcp/1", Yes, Yes), ("a/web", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "priorities do not compare across tiers",
            policies: "csp base {tier: Baseline, priority: 0, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{entity: any}]}]}
                csp admin {tier: Admin, priority: 1000, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{entity: any}]}]}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "of equal ones the first by kind and name, in whatever order they come",
            policies: "anp z {priority: 3, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {}}]}]}
                anp a {priority: 3, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, No)],
        },
    ]);
}

#[test]
fn semantics_15_a_pass_leaves_the_whole_tier() {
    check(&[
        Case {
            what: "to the policies of namespaces",
            policies: "anp pass {priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {}}]}, {action: Deny, from: [{namespaces: {}}]}]}
                anp deny {priority: 2, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
                np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}",
            probes: &[("a/api", "a/db", "tcp/1", Yes, Yes), ("a/web", "a/db", "tcp/1", Yes, No), ("a/web", "a/api", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "to the Baseline where nothing isolates, and out of the Baseline to the default",
            policies: "cnp pass {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {}}]}]}
                cnp first {tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {matchLabels: {team: b}}}]}]}
                cnp second {tier: Baseline, priority: 2, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}",
            probes: &[("b/web", "a/db", "tcp/1", Yes, Yes), ("a/web", "a/db", "tcp/1", Yes, No)],
        },
    ]);
}

#[test]
fn semantics_16_and_17_each_side_is_final_for_itself_and_an_isolating_policy_ends_the_matter() {
    check(&[
        Case {
            what: "an Accept of egress does not open the destination",
            policies: "cnp out {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{namespaces: {}}]}]}
                np a p {podSelector: {matchLabels: {app: db}}}
                np a q {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, No), ("a/web", "a/api", "tcp/1", Yes, Yes), ("a/web", "8.8.8.8", "tcp/1", No, Yes)],
        },
        Case {
            what: "an Allow of the Admin tier goes past a NetworkPolicy, a Deny past an allow",
            policies: "anp p {priority: 1, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {matchLabels: {team: b}}}]}, {action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: api}}}}]}]}
                np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}",
            probes: &[("b/web", "a/db", "tcp/1", Yes, Yes), ("a/api", "a/db", "tcp/1", Yes, No), ("a/web", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "where a NetworkPolicy isolates the Baseline is not asked, whatever it would say",
            policies: "banp default {subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {}}]}], egress: [{action: Deny, to: [{namespaces: {}}]}]}
                np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}
                np a q {podSelector: {matchLabels: {app: api}}, policyTypes: [Egress], egress: [{}]}",
            probes: &[("a/web", "a/db", "tcp/1", No, No), ("a/api", "a/db", "tcp/1", Yes, Yes), ("a/api", "a/web", "tcp/1", Yes, Yes)],
        },
    ]);
}

#[test]
fn semantics_18_networks_are_everybody_there_and_nodes_are_their_addresses() {
    check(&[
        Case {
            what: "0.0.0.0/0 holds pods too",
            policies: "anp p {priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/1", No, Yes),
                ("a/web", "8.8.8.8", "tcp/1", No, Yes),
                ("a/web", "2001:db8::1", "tcp/1", Yes, Yes),
            ],
        },
        Case {
            what: "nodes are not the pods on them, but are the pods that share their network",
            policies: "anp p {priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{nodes: {}}]}]}",
            probes: &[
                ("a/api", "10.0.0.1", "tcp/1", No, Yes),
                ("a/api", "a/host", "tcp/1", No, Yes),
                ("a/api", "a/web", "tcp/1", Yes, Yes),
                ("a/web", "10.0.0.2", "tcp/1", No, Yes),
            ],
        },
    ]);
}

#[test]
fn semantics_19_ports_are_tcp_unless_said_and_names_bring_their_own_protocol() {
    check(&[
        Case {
            what: "numbers and ranges, both ends",
            policies: "anp p {priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {port: 80}}, {portRange: {start: 100, end: 102}}, {portNumber: {protocol: UDP, port: 53}}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/80", Yes, No),
                ("a/web", "a/db", "udp/80", Yes, Yes),
                ("a/web", "a/db", "tcp/99", Yes, Yes),
                ("a/web", "a/db", "tcp/100", Yes, No),
                ("a/web", "a/db", "tcp/102", Yes, No),
                ("a/web", "a/db", "tcp/103", Yes, Yes),
                ("a/web", "a/db", "udp/53", Yes, No),
                ("a/web", "a/db", "icmp", Yes, Yes),
            ],
        },
        Case {
            what: "a name is what the destination says, of whatever protocol",
            policies: "anp p {priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}], ports: [{namedPort: http}, {namedPort: stats}]}]}",
            probes: &[
                ("a/db", "a/web", "tcp/8080", No, Yes),
                ("a/db", "a/api", "tcp/8080", Yes, Yes),
                ("a/db", "a/api", "tcp/9090", No, Yes),
                ("a/web", "a/db", "udp/5433", No, Yes),
                ("a/web", "a/db", "tcp/5433", Yes, Yes),
                ("a/db", "8.8.8.8", "tcp/8080", Yes, Yes),
            ],
        },
    ]);
}

#[test]
fn semantics_20_an_unknown_peer_fails_closed() {
    check(&[
        Case {
            what: "Accept matches nothing by it",
            policies: "cnp p {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{}]}]}
                np a p {podSelector: {matchLabels: {app: db}}}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, No), ("a/web", "a/api", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "Deny matches everything",
            policies: "cnp p {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{}]}]}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, No), ("8.8.8.8", "a/db", "icmp", Yes, No)],
        },
        Case {
            what: "Pass is a Deny of everything, as the API says",
            policies: "cnp p {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{}]}]}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "a group that is missing is nobody for Allow, everybody for Deny on the rule's ports",
            policies: "csp p {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{addressGroup: gone}]}, {action: Deny, from: [{addressGroup: gone}], ports: [{protocol: TCP, port: 22}]}]}",
            probes: &[("a/web", "a/db", "tcp/22", Yes, No), ("a/web", "a/db", "tcp/23", Yes, Yes)],
        },
    ]);
}

#[test]
fn semantics_21_the_newer_version_accepts_and_has_several_baselines() {
    check(&[Case {
        what: "Baseline objects by priority, protocols as they are named there",
        policies: "cnp a {tier: Baseline, priority: 7, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}, ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 5432}}}, {udp: {destinationPort: {range: {start: 10, end: 20}}}}, {destinationNamedPort: pg}]}]}
            cnp b {tier: Baseline, priority: 8, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}",
        probes: &[
            ("a/web", "a/db", "tcp/5432", Yes, Yes),
            ("a/web", "a/db", "udp/15", Yes, Yes),
            ("a/web", "a/db", "udp/21", Yes, No),
            ("a/web", "a/api", "tcp/5432", Yes, No),
            ("8.8.8.8", "a/db", "tcp/1", Yes, Yes),
        ],
    }]);
}

#[test]
fn a_cluster_segment_policy_speaks_of_hosts_worlds_and_icmp_and_says_why() {
    check(&[Case {
        what: "the own node, public addresses, ICMP; a workload reaches itself",
        policies: "csp p {tier: Admin, priority: 1, subject: {namespaces: {}, workloads: {matchLabels: {app: db}}}, ingress: [{action: Deny, from: [{entity: host}]}, {action: Deny, from: [{entity: any}], ports: [{icmp: {family: IPv4, type: 8}}]}], egress: [{action: Deny, to: [{entity: world}]}]}",
        probes: &[
            ("10.0.0.2", "a/db", "tcp/1", Yes, No),
            ("a/web", "a/db", "icmp", Yes, No),
            ("a/web", "a/db", "tcp/1", Yes, Yes),
            ("a/db", "8.8.8.8", "tcp/443", No, Yes),
            ("a/db", "a/db", "icmp", Yes, Yes),
        ],
    }]);
    let answers = eval(
        "csp crown {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{name: pci, action: Deny, answer: Reject, reason: card data, from: [{namespaces: {matchLabels: {team: b}}}]}]}",
        &[("b/web", "a/db", "tcp/1", Yes, No)],
    );
    let ingress = &answers[0]["ingress"];
    assert_eq!(ingress["policy"], "ClusterSegmentPolicy crown");
    assert_eq!((&ingress["ruleName"], &ingress["answer"], &ingress["reason"]), (&"pci".into(), &"reject".into(), &"card data".into()));
}

#[test]
fn an_audit_policy_decides_nothing_and_says_what_it_would_decide() {
    let policies = "sp a strict {mode: Audit, appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: api}}}]}]}
        np a p {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}
        csp later {tier: Admin, priority: 5, mode: Audit, subject: {namespaces: {}, workloads: {matchLabels: {app: api}}}, ingress: [{action: Deny, from: [{entity: any}]}]}";
    let probes: &[Probe] = &[
        ("a/web", "a/db", "tcp/1", Yes, Yes),
        ("a/api", "a/db", "tcp/1", Yes, Yes),
        ("a/web", "a/api", "tcp/1", Yes, Yes),
        ("a/db", "a/api", "tcp/1", Yes, No),
        ("a/api", "a/web", "tcp/1", Yes, Yes),
    ];
    check(&[Case { what: "as if absent", policies, probes }]);
    let answers = eval(policies, probes);
    for (answer, (verdict, audit)) in answers.iter().zip([
        ("allow", Some("deny")),
        ("allow", Some("allow")),
        ("allow", Some("deny")),
        ("deny", Some("deny")),
        ("allow", Some("allow")),
    ]) {
        assert_eq!(answer["verdict"], verdict, "{answer}");
        assert_eq!(answer["auditVerdict"].as_str(), audit, "{answer}");
    }
    assert_eq!(answers[0]["ingress"]["audit"]["isolatedBy"][0], "SegmentPolicy a/strict");
    assert_eq!(answers[2]["ingress"]["audit"]["policy"], "ClusterSegmentPolicy later");
}

/// What is wrong, and a piece of the refusal that names place and reason.
#[test]
fn what_the_api_refuses_is_refused() {
    const ANP: &str = "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: p}\nspec: ";
    const BANP: &str = "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicy\nmetadata: {name: default}\nspec: ";
    const CNP: &str = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: ";
    const CSP: &str = "apiVersion: firebreak.dev/v1alpha1\nkind: ClusterSegmentPolicy\nmetadata: {name: p}\nspec: ";
    let all = "namespaces: {}";
    let cases: Vec<(String, &str)> = vec![
        (format!("{ANP}{{priority: 1001, subject: {{{all}}}}}"), "spec.priority: 1001 is out of range"),
        (format!("{ANP}{{priority: -1, subject: {{{all}}}}}"), "spec.priority: -1 is out of range"),
        (format!("{ANP}{{subject: {{{all}}}}}"), "priority"),
        (format!("{ANP}{{priority: 1, subject: {{}}}}"), "spec.subject: has to have exactly one of namespaces and pods"),
        (format!("{ANP}{{priority: 1, subject: {{{all}, pods: {{namespaceSelector: {{}}, podSelector: {{}}}}}}}}"), "exactly one of namespaces and pods"),
        (format!("{ANP}{{priority: 1, subject: {{pods: {{podSelector: {{}}}}}}}}"), "spec.subject.pods.namespaceSelector: is required"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, ingress: [{{action: Accept, from: [{{{all}}}]}}]}}"), "spec.ingress[0].action: \"Accept\" is not known; use Allow, Deny or Pass"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: []}}]}}"), "spec.ingress[0].from: is empty"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: [{{networks: [10.0.0.0/8]}}]}}]}}"), "networks: goes with egress only"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, egress: [{{action: Allow, to: [{{domainNames: [\"*.x.org\"]}}]}}]}}"), "domain names are not taken by this version"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, egress: [{{action: Deny, to: [{{networks: [10.0.0.0]}}]}}]}}"), "networks[0]: \"10.0.0.0\" has no prefix length"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, egress: [{{action: Deny, to: [{{networks: []}}]}}]}}"), "networks: is empty"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, egress: [{{action: Deny, to: [{{networks: [10.0.0.0/8], {all}}}]}}]}}"), "has more than one field"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, egress: [{{action: Deny, to: [{{networks: [10.0.0.0/8]}}], ports: [{{namedPort: http}}]}}]}}"), "a named port goes with pods only"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: [{{{all}}}], ports: []}}]}}"), "ports: is empty"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: [{{{all}}}], ports: [{{}}]}}]}}"), "exactly one of portNumber, namedPort and portRange"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: [{{{all}}}], ports: [{{portRange: {{start: 5, end: 5}}}}]}}]}}"), "has to be greater than start"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: [{{{all}}}], ports: [{{portNumber: {{protocol: ICMP, port: 5}}}}]}}]}}"), "\"ICMP\" is not known"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, form: [{{{all}}}]}}]}}"), "form"),
        (format!("{ANP}{{priority: 1, subject: {{{all}}}, ingress: [{{name: {}, action: Deny, from: [{{{all}}}]}}]}}", "n".repeat(101)), "has more than 100 characters"),
        (format!("{BANP}{{subject: {{{all}}}, ingress: [{{action: Pass, from: [{{{all}}}]}}]}}"), "\"Pass\" is not known; use Allow or Deny"),
        (format!("{BANP}{{priority: 1, subject: {{{all}}}}}"), "priority"),
        (BANP.replace("default", "other") + "{subject: {namespaces: {}}}", "its name is `default`"),
        (format!("{CNP}{{tier: Middle, priority: 1, subject: {{{all}}}}}"), "spec.tier: \"Middle\" is not known"),
        (format!("{CNP}{{tier: Admin, priority: 1, subject: {{{all}}}, ingress: [{{action: Allow, from: [{{{all}}}]}}]}}"), "use Accept, Deny or Pass"),
        (format!("{CNP}{{tier: Admin, priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: [{{{all}}}], protocols: [{{tcp: {{}}}}]}}]}}"), "tcp: is empty"),
        (format!("{CNP}{{tier: Admin, priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: [{{{all}}}], protocols: [{{tcp: {{destinationPort: {{}}}}}}]}}]}}"), "exactly one of number and range"),
        (format!("{CNP}{{tier: Admin, priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: [{{{all}}}], ports: [{{portNumber: {{port: 1}}}}]}}]}}"), "ports"),
        (format!("{CNP}{{tier: Admin, priority: 1, subject: {{{all}}}, ingress: [{}]}}", format!("{{action: Deny, from: [{{{all}}}]}},").repeat(26)), "has 26 rules; the API takes at most 25"),
        (format!("{CSP}{{tier: Admin, priority: 1, subject: {{{all}}}}}"), "says nothing"),
        (format!("{CSP}{{tier: Admin, priority: 1, subject: {{}}, ingress: []}}"), "namespaces"),
        (format!("{CSP}{{tier: Admin, priority: 1, subject: {{{all}}}, ingress: [{{action: Allow, answer: Reject, from: [{{entity: any}}]}}]}}"), "only a rule with `action: Deny` answers"),
        (format!("{CSP}{{tier: Admin, priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: [{{workloads: {{}}}}]}}]}}"), "needs namespaces"),
        (format!("{CSP}{{tier: Admin, priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, from: [{{}}]}}]}}"), "is an empty peer"),
        (format!("{CSP}{{tier: Admin, priority: 1, subject: {{{all}}}, ingress: [{{action: Drop, from: [{{entity: any}}]}}]}}"), "Drop"),
        (format!("{CSP}{{tier: Admin, priority: 1, subject: {{{all}}}, ingress: [{{action: Deny, reason: \"\", from: [{{entity: any}}]}}]}}"), "reason: has to be one line"),
        (format!("{CSP}{{tier: Admin, priority: 1, mode: Maybe, subject: {{{all}}}, ingress: []}}"), "Maybe"),
        ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, annotations: {firebreak.dev/mode: audit}}\nspec: {podSelector: {}}".to_owned(), "\"audit\" is not known; use Enforce or Audit"),
        (CSP.replace("{name: p}", "{name: p, namespace: n}") + "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: []}", "is in no namespace"),
    ];
    let directory = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (number, (text, fragment)) in cases.iter().enumerate() {
        let path = directory.path().join(format!("{number}.yaml"));
        std::fs::write(&path, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_firebreak")).args(["eval", "-f"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(2) || !said.contains(fragment) {
            wrong.push(format!("{text}\nexpected exit 2 and {fragment:?}, got {:?}: {said}", output.status.code()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
