//! The corners of NetworkPolicy (SEMANTICS 1 to 13) and SegmentPolicy, asked of the real binary: manifests and probes in,
//! verdicts out. The cluster is eval/cluster.yaml; each case adds policies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod eval_cases;

use eval_cases::{Case, No, Probe, Yes, check, eval};

const WEB_TO_DB: &str = "tcp/5432";

#[test]
fn semantics_1_policy_types_say_which_sections_count() {
    check(&[
        Case {
            what: "without policyTypes ingress always applies",
            policies: "np a p {podSelector: {matchLabels: {app: db}}}",
            probes: &[("a/web", "a/db", WEB_TO_DB, Yes, No), ("a/db", "a/web", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "without policyTypes egress rules add egress",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, egress: [{to: [{podSelector: {matchLabels: {app: api}}}]}]}",
            probes: &[("a/web", "a/db", WEB_TO_DB, Yes, No), ("a/db", "a/web", "tcp/1", No, Yes), ("a/db", "a/api", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "egress: [] without policyTypes adds nothing",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, egress: []}",
            probes: &[("a/web", "a/db", WEB_TO_DB, Yes, No), ("a/db", "a/web", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "empty policyTypes are the same as none",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [], egress: [{}]}",
            probes: &[("a/web", "a/db", WEB_TO_DB, Yes, No), ("a/db", "a/web", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "policyTypes [Egress] ignores the ingress section",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], ingress: []}",
            probes: &[("a/web", "a/db", WEB_TO_DB, Yes, Yes), ("a/db", "a/web", "tcp/1", No, Yes)],
        },
        Case {
            what: "policyTypes [Ingress] ignores the egress section",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{}], egress: [{to: [{podSelector: {matchLabels: {no: one}}}]}]}",
            probes: &[("a/web", "a/db", WEB_TO_DB, Yes, Yes), ("a/db", "a/web", "tcp/1", Yes, Yes)],
        },
    ]);
}

#[test]
fn semantics_2_empty_and_absent_lists() {
    check(&[
        Case {
            what: "present types without rules isolate both directions",
            policies: "np a p {podSelector: {}, policyTypes: [Ingress, Egress]}",
            probes: &[
                ("a/web", "a/db", WEB_TO_DB, No, No),
                ("b/web", "a/db", WEB_TO_DB, Yes, No),
                ("a/db", "b/web", "tcp/1", No, Yes),
                ("8.8.8.8", "a/db", WEB_TO_DB, Yes, No),
                ("a/db", "8.8.8.8", "tcp/1", No, Yes),
            ],
        },
        Case {
            what: "ingress: [] isolates as an absent one does",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: []}",
            probes: &[("a/web", "a/db", WEB_TO_DB, Yes, No), ("a/web", "a/db", "icmp", Yes, No)],
        },
        Case {
            what: "a rule {} allows everything",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{}]}",
            probes: &[
                ("a/web", "a/db", WEB_TO_DB, Yes, Yes),
                ("b/bare", "a/db", "udp/9", Yes, Yes),
                ("8.8.8.8", "a/db", "icmp", Yes, Yes),
                ("8.8.8.8", "a/db", "47", Yes, Yes),
            ],
        },
        Case {
            what: "from: [] and ports: [] mean any",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [], ports: []}]}",
            probes: &[("b/bare", "a/db", "udp/9", Yes, Yes), ("8.8.8.8", "a/db", "icmp", Yes, Yes)],
        },
        Case {
            what: "from: [] with a port is that port from anyone",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [], ports: [{port: 5432}]}]}",
            probes: &[
                ("8.8.8.8", "a/db", WEB_TO_DB, Yes, Yes),
                ("8.8.8.8", "a/db", "tcp/1", Yes, No),
                ("8.8.8.8", "a/db", "icmp", Yes, No),
            ],
        },
        Case {
            what: "to: [] with ports: [] means any",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [], ports: []}]}",
            probes: &[("a/db", "8.8.8.8", "udp/1", Yes, Yes), ("a/db", "a/web", "sctp/1", Yes, Yes)],
        },
        Case {
            what: "null lists are absent lists",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: null, ports: null}], egress: null}",
            probes: &[("8.8.8.8", "a/db", "udp/1", Yes, Yes), ("a/db", "8.8.8.8", "udp/1", Yes, Yes)],
        },
        Case {
            what: "a missing podSelector selects all pods of the namespace",
            policies: "np a p {}",
            probes: &[("b/web", "a/db", "tcp/1", Yes, No), ("b/web", "a/web", "tcp/1", Yes, No), ("a/web", "b/web", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "a missing spec is the empty one",
            policies: "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}",
            probes: &[("b/web", "a/db", "tcp/1", Yes, No)],
        },
    ]);
}

#[test]
fn semantics_3_missing_protocol_is_tcp() {
    check(&[
        Case {
            what: "a {} port entry is all TCP ports, not all protocols",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/1", Yes, Yes),
                ("a/web", "a/db", "tcp/65535", Yes, Yes),
                ("a/web", "a/db", "udp/1", Yes, No),
                ("a/web", "a/db", "sctp/1", Yes, No),
                ("a/web", "a/db", "icmp", Yes, No),
            ],
        },
        Case {
            what: "a protocol without a port is every port of it",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{protocol: UDP}]}]}",
            probes: &[("a/web", "a/db", "udp/1", Yes, Yes), ("a/web", "a/db", "udp/65535", Yes, Yes), ("a/web", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "a port without protocol is TCP",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 5432}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/5432", Yes, Yes),
                ("a/web", "a/db", "udp/5432", Yes, No),
                ("a/web", "a/db", "tcp/5433", Yes, No),
            ],
        },
    ]);
}

#[test]
fn semantics_4_an_sctp_rule_isolates_tcp() {
    check(&[Case {
        what: "only SCTP is allowed, so TCP, UDP and ICMP are isolated",
        policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{protocol: SCTP, port: 9}]}]}",
        probes: &[
            ("a/web", "a/db", "sctp/9", Yes, Yes),
            ("a/web", "a/db", "sctp/10", Yes, No),
            ("a/web", "a/db", "tcp/9", Yes, No),
            ("a/web", "a/db", "udp/9", Yes, No),
            ("a/web", "a/db", "icmp", Yes, No),
            ("a/web", "a/db", "47", Yes, No),
        ],
    }]);
}

#[test]
fn semantics_5_named_ports_belong_to_the_destination() {
    check(&[
        Case {
            what: "ingress: each pod resolves the name itself",
            policies: "np a p {podSelector: {}, ingress: [{ports: [{port: http}]}]}",
            probes: &[
                ("b/web", "a/web", "tcp/8080", Yes, Yes),
                ("b/web", "a/api", "tcp/9090", Yes, Yes),
                ("b/web", "a/api", "tcp/8080", Yes, No),
                ("b/web", "a/web", "tcp/9090", Yes, No),
                // db has no port of the name.
                ("b/web", "a/db", "tcp/8080", Yes, No),
            ],
        },
        Case {
            what: "egress: the destination resolves it, and an address outside never does",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}",
            probes: &[
                ("a/db", "a/web", "tcp/8080", Yes, Yes),
                ("a/db", "a/api", "tcp/9090", Yes, Yes),
                ("a/db", "b/web", "tcp/8081", Yes, Yes),
                ("a/db", "b/web", "tcp/8080", No, Yes),
                ("a/db", "8.8.8.8", "tcp/8080", No, Yes),
                ("a/db", "8.8.8.8", "tcp/80", No, Yes),
                ("a/db", "b/bare", "tcp/80", No, Yes),
            ],
        },
        Case {
            what: "egress to a block: a pod in it resolves the name, an address outside does not",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: http}]}]}",
            probes: &[("a/db", "b/web", "tcp/8081", Yes, Yes), ("a/db", "8.8.8.8", "tcp/8081", No, Yes)],
        },
        Case {
            what: "the protocol belongs to the name",
            policies: "np a p {podSelector: {}, ingress: [{ports: [{port: dns}, {port: stats, protocol: UDP}]}]}",
            probes: &[
                // dns is UDP, and the entry asks for TCP.
                ("b/web", "a/web", "udp/53", Yes, No),
                ("b/web", "a/web", "tcp/53", Yes, No),
                ("b/web", "a/db", "udp/5433", Yes, Yes),
                ("b/web", "a/db", "tcp/5433", Yes, No),
            ],
        },
        Case {
            what: "a sidecar's port counts, an init container's does not",
            policies: "np a p {podSelector: {}, ingress: [{ports: [{port: proxy}, {port: setup}]}]}",
            probes: &[("b/web", "a/db", "tcp/15001", Yes, Yes), ("b/web", "a/db", "tcp/15002", Yes, No)],
        },
        Case {
            what: "endPort is inclusive",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 100, endPort: 200}, {protocol: UDP, port: 7, endPort: 7}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/99", Yes, No),
                ("a/web", "a/db", "tcp/100", Yes, Yes),
                ("a/web", "a/db", "tcp/150", Yes, Yes),
                ("a/web", "a/db", "tcp/200", Yes, Yes),
                ("a/web", "a/db", "tcp/201", Yes, No),
                ("a/web", "a/db", "udp/150", Yes, No),
                ("a/web", "a/db", "udp/7", Yes, Yes),
                ("a/web", "a/db", "udp/8", Yes, No),
            ],
        },
        Case {
            what: "a probe may name the port, too",
            policies: "np a p {podSelector: {}, ingress: [{ports: [{port: 9090}]}]}",
            probes: &[("b/web", "a/api", "tcp/http", Yes, Yes), ("b/web", "a/web", "tcp/http", Yes, No)],
        },
    ]);
}

#[test]
fn semantics_6_selectors_of_a_peer() {
    check(&[
        Case {
            what: "podSelector alone is the policy's own namespace",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, Yes), ("b/web", "a/db", "tcp/1", Yes, No), ("a/api", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "podSelector {} is every pod of the own namespace and nobody else",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/1", Yes, Yes),
                ("a/api", "a/db", "tcp/1", Yes, Yes),
                ("b/web", "a/db", "tcp/1", Yes, No),
                ("8.8.8.8", "a/db", "tcp/1", Yes, No),
            ],
        },
        Case {
            what: "both selectors in one peer are AND",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}, namespaceSelector: {matchLabels: {team: b}}}]}]}",
            probes: &[("b/web", "a/db", "tcp/1", Yes, Yes), ("b/bare", "a/db", "tcp/1", Yes, No), ("a/web", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "two peers are OR",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, {namespaceSelector: {matchLabels: {team: b}}}]}]}",
            probes: &[
                ("b/web", "a/db", "tcp/1", Yes, Yes),
                ("b/bare", "a/db", "tcp/1", Yes, Yes),
                ("a/web", "a/db", "tcp/1", Yes, Yes),
                ("a/api", "a/db", "tcp/1", Yes, No),
                ("c/web", "a/db", "tcp/1", Yes, No),
            ],
        },
        Case {
            what: "peers and ports of one rule are AND, rules are OR",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 1}]}, {from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 2}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/1", Yes, Yes),
                ("a/web", "a/db", "tcp/2", Yes, No),
                ("a/api", "a/db", "tcp/1", Yes, No),
                ("a/api", "a/db", "tcp/2", Yes, Yes),
            ],
        },
    ]);
}

#[test]
fn semantics_7_every_namespace_and_every_address() {
    check(&[
        Case {
            what: "namespaceSelector {} is all pods, of undeclared namespaces too, and no outside address",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {}}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/1", Yes, Yes),
                ("b/bare", "a/db", "tcp/1", Yes, Yes),
                ("c/web", "a/db", "tcp/1", Yes, Yes),
                ("10.2.0.2", "a/db", "tcp/1", Yes, Yes),
                ("8.8.8.8", "a/db", "tcp/1", Yes, No),
                ("10.0.0.1", "a/db", "tcp/1", Yes, No),
            ],
        },
        Case {
            what: "ipBlock 0.0.0.0/0 includes pods, and is IPv4 only",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}",
            probes: &[
                ("b/bare", "a/db", "tcp/1", Yes, Yes),
                ("8.8.8.8", "a/db", "tcp/1", Yes, Yes),
                ("2001:db8::1", "a/db", "tcp/1", Yes, No),
                ("a/web", "a/db", "icmpv6", Yes, No),
                ("a/web", "a/db", "icmp", Yes, Yes),
            ],
        },
        Case {
            what: "ipBlock ::/0 is IPv6 only",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]}",
            probes: &[
                ("2001:db8::1", "a/db", "tcp/1", Yes, Yes),
                ("8.8.8.8", "a/db", "tcp/1", Yes, No),
                ("a/web", "a/db", "icmpv6", Yes, Yes),
            ],
        },
        Case {
            what: "an ipBlock matches a pod by its address",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.1.0.0/24}}]}]}",
            probes: &[("a/db", "a/web", "tcp/1", Yes, Yes), ("a/db", "b/web", "tcp/1", No, Yes)],
        },
        Case {
            what: "a declared namespace without a Namespace object has no labels",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]}]}",
            probes: &[("c/web", "a/db", "tcp/1", Yes, Yes), ("b/web", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "no label is added that a manifest lacks",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}}]}]}",
            probes: &[("b/web", "a/db", "tcp/1", Yes, No)],
        },
    ]);
}

#[test]
fn semantics_8_operators_and_empty_values() {
    check(&[
        Case {
            what: "NotIn matches an absent key",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}]}]}",
            probes: &[("b/bare", "a/db", "tcp/1", Yes, Yes), ("a/api", "a/db", "tcp/1", Yes, Yes), ("a/web", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "DoesNotExist matches an absent key only",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]}]}",
            probes: &[("b/bare", "a/db", "tcp/1", Yes, Yes), ("a/api", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "an empty value is a value: Exists",
            policies: "np a p {podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}",
            probes: &[("b/web", "a/db", "tcp/1", Yes, No), ("b/web", "a/api", "tcp/1", Yes, No), ("b/web", "a/web", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "an empty value is a value: matchLabels",
            policies: "np a p {podSelector: {matchLabels: {tier: ''}}}",
            probes: &[("b/web", "a/db", "tcp/1", Yes, No), ("b/web", "a/api", "tcp/1", Yes, Yes), ("b/web", "a/web", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "an empty value is a value: In and NotIn",
            policies: "np a p {podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: ['']}]}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: quiet, operator: In, values: ['']}]}}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/1", Yes, Yes),
                ("a/web", "a/api", "tcp/1", Yes, No),
                ("b/web", "a/api", "tcp/1", Yes, Yes),
                ("c/web", "a/web", "tcp/1", Yes, No),
            ],
        },
        Case {
            what: "matchLabels and matchExpressions are AND",
            policies: "np a p {podSelector: {matchLabels: {app: api}, matchExpressions: [{key: tier, operator: In, values: [front]}]}}",
            probes: &[("b/web", "a/api", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "In takes any of its values",
            policies: "np a p {podSelector: {matchExpressions: [{key: app, operator: In, values: [db, api]}]}}",
            probes: &[("b/web", "a/api", "tcp/1", Yes, No), ("b/web", "a/db", "tcp/1", Yes, No), ("b/web", "a/web", "tcp/1", Yes, Yes)],
        },
    ]);
}

#[test]
fn semantics_9_except_cuts_its_own_block_only() {
    check(&[
        Case {
            what: "except cuts",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16, 10.3.0.1/32]}}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/1", Yes, Yes),
                ("b/web", "a/db", "tcp/1", Yes, No),
                ("c/web", "a/db", "tcp/1", Yes, No),
                ("10.3.0.2", "a/db", "tcp/1", Yes, Yes),
                ("11.0.0.1", "a/db", "tcp/1", Yes, No),
            ],
        },
        Case {
            what: "another peer of the same rule still allows what is excepted",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16]}}, {ipBlock: {cidr: 10.2.0.2/32}}]}]}",
            probes: &[("b/bare", "a/db", "tcp/1", Yes, Yes), ("b/web", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "another policy still allows what is excepted",
            policies:
                "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16]}}]}]}
                np a q {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}",
            probes: &[("b/bare", "a/db", "tcp/1", Yes, Yes), ("10.2.0.77", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "CIDRs may carry host bits",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.99.99.99/8, except: [10.2.77.77/16]}}]}]}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, Yes), ("b/web", "a/db", "tcp/1", Yes, No)],
        },
    ]);
}

#[test]
fn semantics_10_policies_add_up_and_namespaces_part_them() {
    check(&[
        Case {
            what: "two policies allow together",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}
                np a q {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/1", Yes, Yes),
                ("a/api", "a/db", "tcp/1", Yes, Yes),
                ("b/web", "a/db", "tcp/1", Yes, No),
                ("a/web", "a/api", "tcp/1", Yes, No),
            ],
        },
        Case {
            what: "a policy that only denies takes nothing from one that allows",
            policies: "np a deny {podSelector: {}}
                np a open {podSelector: {matchLabels: {app: db}}, ingress: [{}]}",
            probes: &[("8.8.8.8", "a/db", "tcp/1", Yes, Yes), ("8.8.8.8", "a/web", "tcp/1", Yes, No)],
        },
        Case {
            what: "one name in two namespaces is two policies, each for its own",
            policies: "np a p {podSelector: {}}
                np b p {podSelector: {matchLabels: {app: web}}, ingress: [{}]}",
            probes: &[("c/web", "a/web", "tcp/1", Yes, No), ("c/web", "b/web", "tcp/1", Yes, Yes), ("c/web", "b/bare", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "a policy's namespace bounds its subjects, also where none is declared",
            policies: "np c p {}",
            probes: &[("a/web", "c/web", "tcp/1", Yes, No), ("c/web", "a/web", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "no policy at all allows",
            policies: "",
            probes: &[
                ("a/web", "a/db", "tcp/1", Yes, Yes),
                ("8.8.8.8", "a/db", "icmp", Yes, Yes),
                ("8.8.8.8", "9.9.9.9", "tcp/1", Yes, Yes),
            ],
        },
    ]);
}

#[test]
fn semantics_11_both_ends_self_and_own_node() {
    check(&[
        Case {
            what: "both sides must allow, each judged alone",
            policies: "np a in {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}
                np a out {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: api}}}]}]}",
            probes: &[("a/web", "a/db", "tcp/1", No, Yes), ("a/web", "a/api", "tcp/1", Yes, Yes), ("a/api", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "a pod always reaches itself",
            policies: "np a p {podSelector: {}, policyTypes: [Ingress, Egress]}",
            probes: &[
                ("a/web", "a/web", "tcp/1", Yes, Yes),
                ("a/web", "10.1.0.1", "icmp", Yes, Yes),
                ("10.1.0.1", "a/web", "udp/1", Yes, Yes),
                ("a/web", "fd00:1::1", "tcp/1", Yes, Yes),
                ("a/web", "a/db", "tcp/1", No, No),
            ],
        },
        Case {
            what: "the own node always gets in, others do not",
            policies: "np a p {podSelector: {}, policyTypes: [Ingress, Egress]}",
            probes: &[
                ("10.0.0.1", "a/web", "tcp/8080", Yes, Yes),
                ("fd00::1", "a/web", "tcp/8080", Yes, Yes),
                ("10.0.0.2", "a/web", "tcp/8080", Yes, No),
                ("10.0.0.2", "a/db", "tcp/5432", Yes, Yes),
                ("10.0.0.1", "a/db", "tcp/5432", Yes, No),
                // Getting in is not getting out.
                ("a/web", "10.0.0.1", "tcp/1", No, Yes),
            ],
        },
    ]);
}

#[test]
fn semantics_12_host_network_pods_are_their_node() {
    check(&[
        Case {
            what: "they are not selected",
            policies: "np a p {podSelector: {}, policyTypes: [Ingress, Egress]}",
            probes: &[("b/web", "a/host", "tcp/80", Yes, Yes), ("a/host", "8.8.8.8", "tcp/80", Yes, Yes)],
        },
        Case {
            what: "they are no peers by label, but their node's address",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}
                np a q {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/32}}]}]}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, Yes), ("a/host", "a/db", "tcp/1", Yes, No), ("a/host", "a/api", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "on the own node they get in as the node does",
            policies: "np a p {podSelector: {}}",
            probes: &[("a/host", "a/web", "tcp/1", Yes, Yes), ("a/host", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "egress to one is egress to its node's address",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}
                np a q {podSelector: {matchLabels: {app: api}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{port: 80}]}]}",
            probes: &[
                ("a/db", "a/host", "tcp/80", No, Yes),
                ("a/api", "a/host", "tcp/80", Yes, Yes),
                // A named port is a pod's, and here is none.
                ("a/api", "a/host", "tcp/81", No, Yes),
            ],
        },
        Case {
            what: "a named port does not come from one",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}",
            probes: &[("a/db", "a/host", "tcp/80", No, Yes)],
        },
    ]);
}

#[test]
fn semantics_13_isolation_is_per_direction() {
    check(&[
        Case {
            what: "an ingress policy leaves egress open",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}",
            probes: &[("a/db", "8.8.8.8", "tcp/1", Yes, Yes), ("a/web", "a/db", "tcp/1", Yes, No)],
        },
        Case {
            what: "an egress policy leaves ingress open",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]}",
            probes: &[("a/db", "8.8.8.8", "tcp/1", No, Yes), ("a/web", "a/db", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "an egress allow does not open the destination",
            policies: "np a p {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{}]}
                np a q {podSelector: {matchLabels: {app: db}}}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, No)],
        },
    ]);
}

#[test]
fn ended_and_new_pods() {
    check(&[
        Case {
            what: "a pod that ended is nobody's peer, by name or address, and sends nothing",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
            probes: &[("10.1.0.9", "a/db", "tcp/1", Yes, No), ("a/done", "a/db", "tcp/1", No, No), ("a/db", "a/done", "tcp/1", No, No)],
        },
        Case {
            what: "a pod without an address yet is judged by its labels",
            policies: "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}
                np a q {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}
                np a r {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}",
            probes: &[
                ("a/new", "a/db", "tcp/1", Yes, Yes),
                ("a/new", "a/api", "tcp/1", Yes, No),
                ("a/new", "8.8.8.8", "tcp/1", No, Yes),
                ("b/web", "a/new", "tcp/1", Yes, Yes),
            ],
        },
    ]);
}

#[test]
fn segment_policies() {
    check(&[
        Case {
            what: "ingress by workload, namespace, port and ICMP type",
            policies: "sp a p {appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: api}}}], ports: [{protocol: TCP, port: pg}]}, {from: [{namespaces: {matchLabels: {team: b}}}], ports: [{icmp: {family: IPv4, type: 8, code: 0}}, {icmp: {family: IPv4, type: 3}}]}]}",
            probes: &[
                ("a/api", "a/db", "tcp/5432", Yes, Yes),
                ("a/api", "a/db", "tcp/5433", Yes, No),
                ("a/web", "a/db", "tcp/5432", Yes, No),
                ("b/bare", "a/db", "icmp", Yes, Yes),
                ("b/bare", "a/db", "icmp/8/1", Yes, No),
                ("b/bare", "a/db", "icmp/3/1", Yes, Yes),
                ("b/bare", "a/db", "icmp/3/4", Yes, Yes),
                ("b/bare", "a/db", "icmp/13/0", Yes, No),
                ("a/api", "a/db", "icmp", Yes, No),
            ],
        },
        Case {
            what: "absent sections do not concern the direction, empty ones deny",
            policies: "sp a p {appliesTo: {matchLabels: {app: db}}, egress: []}
                sp a q {appliesTo: {matchLabels: {app: api}}, ingress: []}",
            probes: &[("a/web", "a/db", "tcp/1", Yes, Yes), ("a/db", "a/web", "tcp/1", No, Yes), ("a/web", "a/api", "tcp/1", Yes, No), ("a/api", "a/web", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "ports absent is every port and protocol; a protocol alone is all of it",
            policies: "sp a p {appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}, {from: [{entity: any}], ports: [{protocol: ICMP}, {protocol: 47}, {protocol: UDP, port: 100, endPort: 110}]}]}",
            probes: &[
                ("a/web", "a/db", "tcp/1", Yes, Yes),
                ("a/web", "a/db", "50", Yes, Yes),
                ("8.8.8.8", "a/db", "icmp/0/0", Yes, Yes),
                ("8.8.8.8", "a/db", "47", Yes, Yes),
                ("8.8.8.8", "a/db", "50", Yes, No),
                ("8.8.8.8", "a/db", "udp/110", Yes, Yes),
                ("8.8.8.8", "a/db", "udp/111", Yes, No),
                ("2001:db8::1", "a/db", "icmpv6", Yes, No),
            ],
        },
        Case {
            what: "the own node gets in unless a policy says Judge, and then as the rules say",
            policies: "sp a p {appliesTo: {matchLabels: {app: web}}, ingress: []}
                sp a q {appliesTo: {matchLabels: {app: db}}, hostAccess: Judge, ingress: []}
                sp a r {appliesTo: {matchLabels: {app: api}}, hostAccess: Judge, ingress: [{from: [{entity: host}], ports: [{protocol: TCP, port: 9090}]}]}
                np a s {podSelector: {matchLabels: {app: db}}}",
            probes: &[
                ("10.0.0.1", "a/web", "tcp/1", Yes, Yes),
                ("10.0.0.2", "a/db", "tcp/1", Yes, No),
                ("10.0.0.2", "a/api", "tcp/9090", Yes, Yes),
                ("10.0.0.2", "a/api", "tcp/9091", Yes, No),
                ("10.0.0.1", "a/api", "tcp/9090", Yes, No),
            ],
        },
        Case {
            what: "address groups with exceptions, and world as public addresses",
            policies: "sp a p {appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{addressGroup: partners}]}], egress: [{to: [{entity: world}], ports: [{protocol: TCP, port: 443}]}]}
                ---
                apiVersion: firebreak.dev/v1alpha1
                kind: AddressGroup
                metadata: {name: partners}
                spec: {blocks: [{cidr: 192.0.2.0/24, except: [192.0.2.128/25]}, {cidr: 10.2.0.0/24}]}",
            probes: &[
                ("192.0.2.1", "a/db", "tcp/1", Yes, Yes),
                ("192.0.2.129", "a/db", "tcp/1", Yes, No),
                ("b/web", "a/db", "tcp/1", Yes, Yes),
                ("a/web", "a/db", "tcp/1", Yes, No),
                ("a/db", "8.8.8.8", "tcp/443", Yes, Yes),
                ("a/db", "8.8.8.8", "tcp/80", No, Yes),
                ("a/db", "a/web", "tcp/443", No, Yes),
                ("a/db", "192.168.0.1", "tcp/443", No, Yes),
                ("a/db", "169.254.169.254", "tcp/443", No, Yes),
                ("a/db", "2606:4700::1", "tcp/443", Yes, Yes),
            ],
        },
        Case {
            what: "a missing address group matches nobody",
            policies: "sp a p {appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{addressGroup: nobody}, {workloads: {matchLabels: {app: api}}}]}]}",
            probes: &[("192.0.2.1", "a/db", "tcp/1", Yes, No), ("a/api", "a/db", "tcp/1", Yes, Yes)],
        },
        Case {
            what: "SegmentPolicy and NetworkPolicy add up",
            policies: "sp a p {appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: api}}}]}]}
                np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
            probes: &[("a/api", "a/db", "tcp/1", Yes, Yes), ("a/web", "a/db", "tcp/1", Yes, Yes), ("b/web", "a/db", "tcp/1", Yes, No)],
        },
    ]);
}

#[test]
fn the_deciding_policy_and_rule_are_named() {
    let policies = "np a p {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 1}]}, {from: [{podSelector: {matchLabels: {app: api}}}]}]}
        sp a q {appliesTo: {matchLabels: {app: db}}, ingress: [{name: ping, from: [{entity: any}], ports: [{protocol: ICMP}]}]}";
    let probes: &[Probe] = &[
        ("a/api", "a/db", "tcp/1", Yes, Yes),
        ("8.8.8.8", "a/db", "icmp", Yes, Yes),
        ("a/web", "a/db", "tcp/2", Yes, No),
        ("10.0.0.2", "a/db", "tcp/2", Yes, Yes),
    ];
    let answers = eval(policies, probes);
    let [by_rule, by_name, denied, own_node] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!((&by_rule["ingress"]["policy"], &by_rule["ingress"]["rule"]), (&"NetworkPolicy a/p".into(), &1.into()));
    assert_eq!(by_rule["egress"]["reason"], "not isolated");
    assert_eq!((&by_name["ingress"]["policy"], &by_name["ingress"]["ruleName"]), (&"SegmentPolicy a/q".into(), &"ping".into()));
    assert_eq!(denied["ingress"]["isolatedBy"], serde_json::json!(["NetworkPolicy a/p", "SegmentPolicy a/q"]));
    let nearest = &denied["ingress"]["nearest"];
    assert_eq!(nearest["policy"], "NetworkPolicy a/p");
    assert_eq!((&nearest["rule"], &nearest["field"], &nearest["wanted"]), (&0.into(), &"port".into(), &"1/tcp".into()));
    assert_eq!(own_node["ingress"]["reason"], "own node");
}
