//! What policies say, held against what packets do: one installation, a table of policies, each with who then reaches whom.

use crate::{ALLOW, DENY, address_group, namespace, network, segment};
use firebreak_tests::probe::Kind::{Ping, Sctp, Tcp, Udp};
use firebreak_tests::site::{Line, Site};

/// Bridged: web 10.50.1.1, api .2, stranger .3. Routed: db 10.50.2.1, cache .2, far .3; IPv6 alike under fd50:1:: and fd50:2::.
fn site() -> anyhow::Result<Site> {
    let mut site = Site::with_two_nodes("v")?;
    let mut manifests = namespace("shop", "team: shop") + &namespace("other", "team: other");
    for (node, name, labels, spec) in [
        ("bridged", "shop/web", "app: web", ""),
        ("bridged", "shop/api", "app: api", "ports: [{name: http, port: 81}]"),
        ("bridged", "other/stranger", "app: web", "ports: [{name: http, port: 80}]"),
        ("routed", "shop/db", "app: db", ""),
        ("routed", "shop/cache", "app: cache", "ports: [{name: http, port: 82}]"),
        ("routed", "other/far", "app: far", ""),
    ] {
        manifests += &site.workload(node, name, labels, spec)?;
    }
    site.start(&manifests)?;
    Ok(site)
}

struct Case {
    what: &'static str,
    manifests: String,
    lines: Vec<Line<'static>>,
}

const WEB: &str = "shop/web";
const API: &str = "shop/api";
const DB: &str = "shop/db";
const CACHE: &str = "shop/cache";
const STRANGER: &str = "other/stranger";
const FAR: &str = "other/far";

#[test]
fn packets_go_where_policies_say() -> anyhow::Result<()> {
    let site = site()?;
    let mut count = 0;
    let mut wrong = Vec::new();
    for Case { what, manifests, lines } in ingress().into_iter().chain(egress()).chain(peers()).chain(ports()).chain(nodes()) {
        site.check_open(what, &lines)?;
        site.controller.apply(&manifests)?;
        wrong.extend(site.wrong(&lines)?.into_iter().map(|line| format!("{what}: {line}")));
        site.delete(&manifests)?;
        count += lines.len() * 2;
    }
    println!("{count} probes decided by policy, each seen to pass without");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn ingress() -> Vec<Case> {
    vec![
        Case {
            what: "ingress isolated, nobody allowed",
            manifests: network("shop", "p", "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]")
                + &network("shop", "q", "podSelector: {matchLabels: {app: api}}, ingress: []"),
            lines: vec![
                (WEB, DB, Tcp(5432), DENY),
                (WEB, DB, Udp(53), DENY),
                (WEB, DB, Ping, DENY),
                (WEB, DB, Sctp(80), DENY),
                (CACHE, DB, Tcp(5432), DENY),
                (CACHE, DB, Udp(53), DENY),
                (CACHE, DB, Ping, DENY),
                (WEB, API, Tcp(80), DENY),
                (WEB, API, Udp(53), DENY),
                (WEB, API, Ping, DENY),
                (FAR, API, Tcp(80), DENY),
                (DB, WEB, Tcp(80), ALLOW),
                (DB, WEB, Udp(53), ALLOW),
                (DB, CACHE, Ping, ALLOW),
                (API, WEB, Tcp(80), ALLOW),
                (WEB, CACHE, Tcp(80), ALLOW),
            ],
        },
        Case {
            what: "ingress allowed to some, same node and across",
            manifests: segment(
                "shop",
                "p",
                "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: api}}}, {workloads: {matchLabels: \
                 {app: cache}}}], ports: [{protocol: TCP, port: 5432}, {protocol: UDP, port: 53}]}]",
            ) + &segment(
                "shop",
                "q",
                "appliesTo: {matchLabels: {app: api}}, ingress: [{from: [{workloads: {matchLabels: {app: web}}}], ports: [{protocol: TCP, \
                 port: 80}, {icmp: {family: IPv4, type: 8}}, {icmp: {family: IPv6, type: 128}}]}]",
            ),
            lines: vec![
                (API, DB, Tcp(5432), ALLOW),
                (API, DB, Udp(53), ALLOW),
                (API, DB, Tcp(80), DENY),
                (API, DB, Udp(80), DENY),
                (API, DB, Ping, DENY),
                (CACHE, DB, Tcp(5432), ALLOW),
                (CACHE, DB, Udp(53), ALLOW),
                (CACHE, DB, Tcp(443), DENY),
                (WEB, DB, Tcp(5432), DENY),
                (WEB, DB, Udp(53), DENY),
                (WEB, API, Tcp(80), ALLOW),
                (WEB, API, Ping, ALLOW),
                (WEB, API, Udp(80), DENY),
                (STRANGER, API, Tcp(80), DENY),
                (STRANGER, API, Ping, DENY),
                (CACHE, API, Tcp(80), DENY),
                (CACHE, API, Ping, DENY),
            ],
        },
        Case {
            what: "a NetworkPolicy and a SegmentPolicy of one workload add up",
            manifests: network(
                "shop",
                "p",
                "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]",
            ) + &segment(
                "shop",
                "p",
                "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{workloads: {matchLabels: {app: cache}}}], ports: [{protocol: \
                 UDP, port: 53}]}]",
            ),
            lines: vec![
                (WEB, DB, Tcp(5432), ALLOW),
                (WEB, DB, Udp(53), DENY),
                (CACHE, DB, Udp(53), ALLOW),
                (CACHE, DB, Tcp(5432), DENY),
                (API, DB, Tcp(5432), DENY),
                (API, DB, Udp(53), DENY),
            ],
        },
    ]
}

fn egress() -> Vec<Case> {
    vec![
        Case {
            what: "egress isolated, nobody allowed",
            manifests: network("shop", "p", "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]")
                + &segment("shop", "q", "appliesTo: {matchLabels: {app: db}}, egress: []"),
            lines: vec![
                (WEB, API, Tcp(80), DENY),
                (WEB, API, Udp(53), DENY),
                (WEB, API, Ping, DENY),
                (WEB, API, Sctp(80), DENY),
                (WEB, DB, Tcp(80), DENY),
                (WEB, DB, Udp(53), DENY),
                (WEB, DB, Ping, DENY),
                (DB, CACHE, Tcp(80), DENY),
                (DB, CACHE, Ping, DENY),
                (DB, WEB, Tcp(80), DENY),
                (DB, WEB, Udp(80), DENY),
                (API, WEB, Tcp(80), ALLOW),
                (FAR, WEB, Udp(53), ALLOW),
                (API, DB, Ping, ALLOW),
                (STRANGER, API, Tcp(80), ALLOW),
            ],
        },
        Case {
            what: "egress allowed to some",
            manifests: segment(
                "shop",
                "p",
                "appliesTo: {matchLabels: {app: web}}, egress: [{to: [{workloads: {matchLabels: {app: api}}}, {namespaces: {matchLabels: \
                 {team: other}}, workloads: {matchLabels: {app: far}}}], ports: [{protocol: TCP, port: 80}, {protocol: ICMP}, {protocol: \
                 ICMPv6}]}, {to: [{entity: any}], ports: [{protocol: UDP, port: 53}]}]",
            ),
            lines: vec![
                (WEB, API, Tcp(80), ALLOW),
                (WEB, API, Ping, ALLOW),
                (WEB, API, Tcp(81), DENY),
                (WEB, FAR, Tcp(80), ALLOW),
                (WEB, FAR, Ping, ALLOW),
                (WEB, FAR, Udp(80), DENY),
                (WEB, DB, Tcp(80), DENY),
                (WEB, DB, Ping, DENY),
                (WEB, DB, Udp(53), ALLOW),
                (WEB, STRANGER, Tcp(80), DENY),
                (WEB, STRANGER, Udp(53), ALLOW),
            ],
        },
        Case {
            what: "both sides have to allow, each judged alone",
            manifests: segment(
                "shop",
                "p",
                "appliesTo: {matchLabels: {app: web}}, egress: [{to: [{workloads: {matchLabels: {app: db}}}]}]",
            ) + &network(
                "shop",
                "q",
                "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchExpressions: [{key: \
                 app, operator: In, values: [web, api]}]}}], ports: [{port: 5432}]}]",
            ),
            lines: vec![
                (WEB, DB, Tcp(5432), ALLOW),
                (WEB, DB, Tcp(80), DENY),
                (WEB, DB, Ping, DENY),
                (WEB, API, Tcp(5432), DENY),
                (API, DB, Tcp(5432), ALLOW),
                (API, CACHE, Tcp(80), ALLOW),
                (CACHE, DB, Tcp(5432), DENY),
            ],
        },
    ]
}

fn peers() -> Vec<Case> {
    vec![
        Case {
            what: "ipBlock with except",
            manifests: network(
                "shop",
                "p",
                "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.50.0.0/16, except: [10.50.1.1/32, \
                 10.50.2.2/31]}}, {ipBlock: {cidr: \"fd50::/16\", except: [\"fd50:1::1/128\", \"fd50:2::2/127\"]}}]}]",
            ) + &network(
                "shop",
                "q",
                "podSelector: {matchLabels: {app: api}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.50.1.0/24, except: \
                 [10.50.1.3/32]}}, {ipBlock: {cidr: \"fd50:1::/64\", except: [\"fd50:1::3/128\"]}}, {podSelector: {matchLabels: {app: \
                 db}}}]}]",
            ),
            lines: vec![
                (API, DB, Tcp(80), ALLOW),
                (API, DB, Ping, ALLOW),
                (STRANGER, DB, Udp(53), ALLOW),
                (WEB, DB, Tcp(80), DENY),
                (WEB, DB, Ping, DENY),
                (CACHE, DB, Tcp(80), DENY),
                (FAR, DB, Udp(53), DENY),
                (API, WEB, Tcp(80), ALLOW),
                (API, STRANGER, Tcp(80), DENY),
                (API, CACHE, Tcp(80), DENY),
            ],
        },
        Case {
            what: "namespaces: one's own, others by label, all",
            manifests: network("shop", "p", "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]")
                + &network(
                    "shop",
                    "q",
                    "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: other}}, \
                     podSelector: {matchLabels: {app: far}}}]}]",
                )
                + &network("shop", "r", "podSelector: {matchLabels: {app: cache}}, ingress: [{from: [{namespaceSelector: {}}]}]"),
            lines: vec![
                (WEB, DB, Tcp(80), ALLOW),
                (CACHE, DB, Tcp(80), ALLOW),
                (STRANGER, DB, Tcp(80), DENY),
                (FAR, DB, Tcp(80), DENY),
                (FAR, API, Tcp(80), ALLOW),
                (FAR, API, Ping, ALLOW),
                (STRANGER, API, Tcp(80), DENY),
                (WEB, API, Tcp(80), DENY),
                (STRANGER, CACHE, Tcp(80), ALLOW),
                (WEB, CACHE, Udp(53), ALLOW),
                ("bridged", CACHE, Tcp(80), DENY),
            ],
        },
        Case {
            what: "a named group of addresses",
            manifests: address_group("office", &["10.50.1.1/32", "fd50:1::1/128", "10.50.2.2/31", "fd50:2::2/127"])
                + &segment("shop", "p", "appliesTo: {matchLabels: {app: db}}, ingress: [{from: [{addressGroup: office}]}]"),
            lines: vec![
                (WEB, DB, Tcp(80), ALLOW),
                (CACHE, DB, Udp(53), ALLOW),
                (FAR, DB, Ping, ALLOW),
                (API, DB, Tcp(80), DENY),
                (STRANGER, DB, Ping, DENY),
            ],
        },
    ]
}

fn ports() -> Vec<Case> {
    vec![
        Case {
            what: "ranges of ports, and a protocol without a port",
            manifests: network(
                "shop",
                "p",
                "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80, \
                 endPort: 82}, {protocol: UDP}]}]",
            ) + &network(
                "shop",
                "q",
                "podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{protocol: SCTP, port: 80}]}]",
            ),
            lines: vec![
                (WEB, DB, Tcp(80), ALLOW),
                (WEB, DB, Tcp(81), ALLOW),
                (WEB, DB, Tcp(82), ALLOW),
                (WEB, DB, Tcp(443), DENY),
                (WEB, DB, Udp(53), ALLOW),
                (WEB, DB, Udp(8080), ALLOW),
                (WEB, DB, Sctp(80), DENY),
                (CACHE, DB, Tcp(81), DENY),
                (WEB, API, Sctp(80), ALLOW),
                (FAR, API, Sctp(80), ALLOW),
                (WEB, API, Sctp(81), DENY),
                (WEB, API, Tcp(80), DENY),
            ],
        },
        Case {
            what: "a named port is the destination's own, for egress too",
            manifests: segment(
                "shop",
                "p",
                "appliesTo: {matchLabels: {app: web}}, egress: [{to: [{namespaces: {}}], ports: [{protocol: TCP, port: http}]}]",
            ) + &network("shop", "q", "podSelector: {matchLabels: {app: cache}}, ingress: [{ports: [{port: http}]}]"),
            lines: vec![
                (WEB, API, Tcp(81), ALLOW),
                (WEB, API, Tcp(80), DENY),
                (WEB, API, Udp(81), DENY),
                (WEB, STRANGER, Tcp(80), ALLOW),
                (WEB, STRANGER, Tcp(81), DENY),
                (WEB, CACHE, Tcp(82), ALLOW),
                (WEB, CACHE, Tcp(81), DENY),
                (WEB, DB, Tcp(80), DENY),
                (FAR, CACHE, Tcp(82), ALLOW),
                (FAR, CACHE, Tcp(80), DENY),
                (FAR, CACHE, Ping, DENY),
            ],
        },
    ]
}

fn nodes() -> Vec<Case> {
    vec![
        Case {
            what: "the own node gets in, other nodes do not",
            manifests: network("shop", "p", "podSelector: {}, ingress: []"),
            lines: vec![
                ("bridged", WEB, Tcp(80), ALLOW),
                ("bridged", WEB, Ping, ALLOW),
                ("bridged", WEB, Udp(53), ALLOW),
                ("routed", DB, Tcp(80), ALLOW),
                ("routed", DB, Ping, ALLOW),
                ("routed", WEB, Tcp(80), DENY),
                ("routed", WEB, Ping, DENY),
                ("bridged", DB, Tcp(80), DENY),
                ("bridged", DB, Udp(53), DENY),
            ],
        },
        Case {
            what: "hostAccess: Judge keeps the own node out but for what the rules allow",
            manifests: segment(
                "shop",
                "p",
                "appliesTo: {matchLabels: {app: db}}, hostAccess: Judge, ingress: [{from: [{entity: host}], ports: [{protocol: TCP, port: \
                 80}]}]",
            ) + &segment("shop", "q", "appliesTo: {matchLabels: {app: web}}, hostAccess: Judge, ingress: []")
                + &network("shop", "r", "podSelector: {matchLabels: {app: web}}, ingress: []"),
            lines: vec![
                ("routed", DB, Tcp(80), ALLOW),
                ("routed", DB, Tcp(5432), DENY),
                ("routed", DB, Ping, DENY),
                ("routed", DB, Sctp(80), DENY),
                ("bridged", DB, Tcp(80), DENY),
                ("bridged", WEB, Tcp(80), DENY),
                ("bridged", WEB, Udp(53), DENY),
                ("bridged", WEB, Ping, DENY),
                ("routed", WEB, Tcp(80), DENY),
                ("bridged", API, Tcp(80), ALLOW),
            ],
        },
        Case {
            what: "to nodes: the entity host is the own node only",
            manifests: segment("shop", "p", "appliesTo: {matchLabels: {app: web}}, egress: []")
                + &segment(
                    "shop",
                    "q",
                    "appliesTo: {matchLabels: {app: api}}, egress: [{to: [{entity: host}], ports: [{protocol: TCP, port: 80}]}]",
                )
                + &segment(
                    "shop",
                    "r",
                    "appliesTo: {matchLabels: {app: db}}, egress: [{to: [{entity: host}], ports: [{protocol: ICMP}, {protocol: ICMPv6}]}]",
                ),
            lines: vec![
                (WEB, "bridged", Tcp(80), DENY),
                (WEB, "bridged", Ping, DENY),
                (WEB, "bridged", Sctp(80), DENY),
                (WEB, "routed", Tcp(80), DENY),
                (API, "bridged", Tcp(80), ALLOW),
                (API, "bridged", Tcp(443), DENY),
                (API, "bridged", Ping, DENY),
                (API, "routed", Tcp(80), DENY),
                (DB, "routed", Ping, ALLOW),
                (DB, "routed", Tcp(80), DENY),
                (DB, "bridged", Ping, DENY),
                (CACHE, "routed", Tcp(80), ALLOW),
                (CACHE, "bridged", Tcp(80), ALLOW),
            ],
        },
    ]
}
