//! Everything that is refused, each with the place and the reason that a person needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_manifest::{Object, build, parse_str};

/// The text, and for each error in order the fragments of its message.
struct Case {
    text: String,
    errors: &'static [&'static [&'static str]],
}

#[track_caller]
fn check(cases: &[Case]) {
    let mut wrong = Vec::new();
    for Case { text, errors } in cases {
        let found: Vec<String> = match parse_str("t", text) {
            Ok(_) => Vec::new(),
            Err(found) => found.iter().map(ToString::to_string).collect(),
        };
        let right = found.len() == errors.len()
            && found.iter().zip(*errors).all(|(found, fragments)| fragments.iter().all(|fragment| found.contains(fragment)));
        if !right {
            wrong.push(format!("{text}\nexpected: {errors:#?}\nfound: {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn plain(text: &str, errors: &'static [&'static [&'static str]]) -> Case {
    Case { text: text.to_owned(), errors }
}

/// A SegmentPolicy whose spec begins at line 4, column 7.
fn segment(spec: &str, errors: &'static [&'static [&'static str]]) -> Case {
    let text = format!("apiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {{name: p, namespace: n}}\nspec: {spec}\n");
    Case { text, errors }
}

fn network(spec: &str, errors: &'static [&'static [&'static str]]) -> Case {
    let text = format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: n}}\nspec: {spec}\n");
    Case { text, errors }
}

fn workload(spec: &str, errors: &'static [&'static [&'static str]]) -> Case {
    let text = format!("apiVersion: firebreak.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w, namespace: n}}\nspec: {spec}\n");
    Case { text, errors }
}

fn pod(rest: &str, errors: &'static [&'static [&'static str]]) -> Case {
    Case { text: format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: n}}\n{rest}\n"), errors }
}

#[test]
fn text_that_is_no_document_of_ours_is_refused() {
    check(&[
        plain("a: [1", &[&["t:1:", "document 1", "cannot be read as YAML"]]),
        plain("a: 1\na: 2", &[&["t:2:1: document 1", "the key \"a\" is there twice"]]),
        plain("a: {b: 1, b: 2}", &[&["the key \"b\" is there twice"]]),
        plain("- a\n- b", &[&["t:1:1: document 1", "has to be a mapping with apiVersion and kind, not a list"]]),
        plain("hello", &[&["not the text \"hello\""]]),
        plain("---\n# nothing\n---\n42", &[&["t:4:1: document 2", "not the number 42"]]),
        plain("kind: Pod", &[&["t:1:1", "apiVersion: is required, but not there"]]),
        plain("apiVersion: v1", &[&["t:1:1", "kind: is required, but not there"]]),
        plain("apiVersion: v1\nkind: 7", &[&["t:2:7", "kind: has to be text, not the number 7"]]),
        plain(
            "apiVersion: v1\nkind: Service",
            &[&["t:2:7", "kind: \"v1\" \"Service\" is not known here", "firebreak.dev/v1alpha1 SegmentPolicy"]],
        ),
        plain("apiVersion: apps/v1\nkind: Pod", &[&["t:1:13", "apiVersion: \"apps/v1\" is not the version of Pod", "write v1"]]),
        plain("apiVersion: firebreak.dev/v1\nkind: SegmentPolicy", &[&["write firebreak.dev/v1alpha1"]]),
        plain("apiVersion: networking.k8s.io/v1\nkind: networkpolicy", &[&["\"networkpolicy\" is not known here"]]),
        plain("apiVersion: v1\nkind: List\nitems: {}", &[&["items: has to be a list, not a mapping"]]),
        plain("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod}", &[&["t:4:3", "metadata: is required"]]),
        plain("a: !secret b", &[&["t:1:", "unsupported tag"]]),
        plain("a: *b", &[&["t:1:4", "names an anchor that is not in this document"]]),
        plain("a: &a [x]\n---\nb: *a", &[&["document 1", "apiVersion: is required"], &["document 2", "names an anchor"]]),
        plain("a: .nan", &[&["cannot be read as YAML"]]),
        plain("a: !include other.yaml", &[&["unsupported tag"]]),
    ]);
}

#[test]
fn bombs_are_refused_and_not_unpacked() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    let nested = format!("a: {}{}", "[".repeat(2000), "]".repeat(2000));
    let wide = format!("a: {{{}}}", "? ".repeat(3000));
    for text in [bomb, nested, wide] {
        let errors = parse_str("t", &text).unwrap_err().to_string();
        assert!(errors.contains("cannot be read as YAML"), "{errors}");
        assert!(errors.len() < 1000, "{errors}");
    }
}

#[test]
fn metadata_that_the_api_would_refuse_is_refused() {
    let with = |metadata: &str, errors| Case {
        text: format!(
            "apiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {metadata}\nspec: {{appliesTo: {{}}, egress: []}}"
        ),
        errors,
    };
    check(&[
        with("{}", &[&["t:3:1", "SegmentPolicy without a name", "metadata.name: is required, but not there"]]),
        with("{name: ''}", &[&["metadata.name: \"\" is not a DNS-1123 subdomain"]]),
        with("{name: Db}", &[&["t:3:18: document 1: SegmentPolicy default/Db", "metadata.name: \"Db\" is not a DNS-1123 subdomain"]]),
        with("{name: a..b}", &[&["metadata.name: \"a..b\" is not"]]),
        with("{name: -a}", &[&["metadata.name: \"-a\" is not"]]),
        with("{name: 7}", &[&["metadata.name: has to be text, not the number 7: put it in quotes"]]),
        with("{name: a, namespace: b.c}", &[&["metadata.namespace: \"b.c\" is not a DNS-1123 label"]]),
        with("{name: a, labels: {x: true}}", &[&["metadata.labels[x]: has to be text, not the truth value true: put it in quotes"]]),
        with("{name: a, labels: {x: 1.10}}", &[&["metadata.labels[x]: has to be text, not the number 1.1: put it in quotes"]]),
        with("{name: a, labels: {x: 'a b'}}", &[&["metadata.labels[x]: \"a b\" is not a label value"]]),
        with("{name: a, labels: {-x: a}}", &[&["metadata.labels[-x]: \"-x\" is not a label key"]]),
        with("{name: a, labels: {X/y: a}}", &[&["the prefix of the key \"X/y\" is wrong"]]),
        with("{name: a, labels: [x]}", &[&["metadata.labels: has to be a mapping, not a list"]]),
        with("{name: a, annotations: {'a b': x}}", &[&["metadata.annotations[a b]: \"a b\" is not a label key"]]),
        with(
            "{name: a, label: {x: y}}",
            &[&["t:3:21", "metadata.label: is not a known field; known here: name, namespace, labels, annotations"]],
        ),
        plain(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}",
            &[&["Namespace a.b", "metadata.name: \"a.b\" is not a DNS-1123 label"]],
        ),
        plain(
            "apiVersion: v1\nkind: Node\nmetadata: {name: a, namespace: b}",
            &[&["metadata.namespace: an object of kind Node is in no namespace"]],
        ),
        plain("apiVersion: v1\nkind: Namespace\nmetadata: []", &[&["metadata: has to be a mapping, not a list"]]),
        plain("apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {k: 3}}", &[&["metadata.labels[k]: has to be text"]]),
    ]);
    let long = "x".repeat(64);
    let texts = [
        format!("{{name: a, labels: {{{long}: a}}}}"),
        format!("{{name: a, labels: {{a: {long}}}}}"),
        format!("{{name: a, namespace: {long}}}"),
    ];
    for metadata in texts {
        check(&[with(&metadata, &[&["at most 63"]])]);
    }
    let subdomain = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join(".");
    check(&[with(&format!("{{name: {subdomain}}}"), &[&["at most 253"]])]);
    check(&[with(
        &format!("{{name: a, annotations: {{a: '{}'}}}}", "x".repeat(300_000)),
        &[&["metadata.annotations: the annotations have", "262144"]],
    )]);
}

#[test]
fn broken_segment_policies_are_refused() {
    check(&[
        plain("apiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {name: p}", &[&["t:1:1", "spec: is required"]]),
        segment("", &[&["spec: has to be a mapping, not nothing (null)"]]),
        segment("{ingress: []}", &[&["t:4:1", "spec.appliesTo: is required, but not there"]]),
        segment("{appliesTo: {}}", &[&["t:4:1", "spec: says nothing: give ingress, egress or both"]]),
        segment("{appliesTo: , ingress: []}", &[&["spec.appliesTo: has to be a mapping, not nothing (null)"]]),
        segment("{appliesTo: {}, ingress: }", &[&["spec.ingress: is null: give it a value or leave the field out"]]),
        segment("{appliesTo: {}, egress: [], hostAccess: Judge}", &[&["t:4:47", "spec.hostAccess: Judge asks the ingress rules"]]),
        segment("{appliesTo: {}, ingress: [], hostAccess: deny}", &[&["spec.hostAccess: \"deny\" is not known; use one of Allow, Judge"]]),
        segment(
            "{appliesTo: {}, ingress: [], tier: 3}",
            &[&["t:4:36", "spec.tier: is not a known field; known here: appliesTo, mode, hostAccess, ingress, egress"]],
        ),
        segment(
            "{appliesto: {}, ingress: []}",
            &[&["spec.appliesTo: is required"], &["spec.appliesto: is not a known field; write appliesTo"]],
        ),
        segment("{appliesTo: {}, ingress: [{}]}", &[&["t:4:33", "spec.ingress[0].from: is required"]]),
        segment(
            "{appliesTo: {}, ingress: [{from: []}]}",
            &[&["spec.ingress[0].from: is empty; name at least one peer, `entity: any` for anyone"]],
        ),
        segment("{appliesTo: {}, egress: [{to: []}]}", &[&["spec.egress[0].to: is empty"]]),
        segment(
            "{appliesTo: {}, egress: [{from: [{entity: any}]}]}",
            &[&["spec.egress[0].to: is required"], &["spec.egress[0].from: is not a known field; known here: name, to, ports"]],
        ),
        segment("{appliesTo: {}, ingress: [{from: [{}]}]}", &[&["spec.ingress[0].from[0]: is an empty peer"]]),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any, addressGroup: a}]}]}",
            &[&["spec.ingress[0].from[0]: mixes kinds of peers"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: cluster}]}]}",
            &[&["spec.ingress[0].from[0].entity: \"cluster\" is not known; use one of any, host, world"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{addressGroup: A}]}]}",
            &[&["spec.ingress[0].from[0].addressGroup: \"A\" is not a DNS-1123 subdomain"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{cidr: 10.0.0.0/8}]}]}",
            &[&["spec.ingress[0].from[0].cidr: has to be a mapping, not the text \"10.0.0.0/8\""]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{cidr: {cidr: 10.0.0.1}}]}]}",
            &[&["cidr.cidr: \"10.0.0.1\" has no prefix length", "write 10.0.0.1/32"]],
        ),
        segment("{appliesTo: {}, ingress: [{from: [{cidr: {cidr: 10.0.0.0/33}}]}]}", &[&["\"10.0.0.0/33\" is not a CIDR block"]]),
        segment("{appliesTo: {}, ingress: [{from: [{cidr: {cidr: 010.0.0.0/8}}]}]}", &[&["\"010.0.0.0/8\" is not a CIDR block"]]),
        segment("{appliesTo: {}, ingress: [{from: [{cidr: {cidr: '::ffff:10.0.0.0/104'}}]}]}", &[&["IPv4 block written as IPv6"]]),
        segment(
            "{appliesTo: {}, ingress: [{from: [{cidr: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
            &[&["cidr.except[0]: \"10.0.0.0/8\" is not a strict part of the block 10.0.0.0/8"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{workloads: {matchLabels: {a: b}, x: y}}]}]}",
            &[&["workloads.x: is not a known field; known here: matchLabels, matchExpressions"]],
        ),
        segment(
            "{appliesTo: {matchExpressions: [{key: a, operator: In}]}, ingress: []}",
            &[&["spec.appliesTo.matchExpressions[0].values: is empty; the operator In needs at least one value"]],
        ),
        segment(
            "{appliesTo: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}, ingress: []}",
            &[&["values: the operator Exists takes no values"]],
        ),
        segment(
            "{appliesTo: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}, ingress: []}",
            &[&["operator: \"Gt\" is not known; use one of In, NotIn, Exists, DoesNotExist"]],
        ),
        segment("{appliesTo: {matchExpressions: [{operator: Exists}]}, ingress: []}", &[&["matchExpressions[0].key: is required"]]),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: []}]}",
            &[&["spec.ingress[0].ports: is empty; name at least one port, or leave ports out"]],
        ),
        segment("{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{}]}]}", &[&["ports[0]: names no service"]]),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{port: 80}]}]}",
            &[&["ports[0]: names no service; give protocol"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: tcp}]}]}",
            &[&["ports[0].protocol: \"tcp\" is not known; use one of TCP, UDP"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: 256}]}]}",
            &[&["ports[0].protocol: 256 is not an IP protocol number"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: ICMP, port: 8}]}]}",
            &[&["ports[0].port: ICMP has no ports"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: 47, port: 8}]}]}",
            &[&["ports[0].port: protocol 47 has no ports"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: DCCP, port: web}]}]}",
            &[&["ports[0].port: workloads name TCP, UDP and SCTP ports only"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: TCP, port: 0}]}]}",
            &[&["ports[0].port: 0 is not a port; use 1 to 65535"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: TCP, port: '80'}]}]}",
            &[&["ports[0].port: the port name \"80\" has to have at least one letter; write a number without quotes"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: TCP, port: 80.5}]}]}",
            &[&["ports[0].port: has to be a whole number or a name"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: TCP, endPort: 80}]}]}",
            &[&["ports[0].endPort: needs a port"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: TCP, port: 80, endPort: 79}]}]}",
            &[&["t:4:100", "ports[0].endPort: 79 is below the port 80"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: TCP, port: web, endPort: 79}]}]}",
            &[&["ports[0].endPort: a named port has no range"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{protocol: TCP, icmp: {family: IPv4, type: 8}}]}]}",
            &[&["ports[0]: has both protocol and icmp"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{port: 1, icmp: {family: IPv4, type: 8}}]}]}",
            &[&["ports[0].port: ICMP has no ports"]],
        ),
        segment("{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{icmp: {type: 8}}]}]}", &[&["icmp.family: is required"]]),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{icmp: {family: ipv4, type: 8}}]}]}",
            &[&["icmp.family: \"ipv4\" is not known; use one of IPv4, IPv6"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{icmp: {family: IPv4, type: 256}}]}]}",
            &[&["icmp.type: 256 is out of range; use 0 to 255"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{from: [{entity: any}], ports: [{icmp: {family: IPv4, type: 3, code: -1}}]}]}",
            &[&["icmp.code: -1 is out of range"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{name: '0', from: [{entity: any}]}]}",
            &[&["spec.ingress[0].name: \"0\" looks like a rule's number"]],
        ),
        segment(
            "{appliesTo: {}, ingress: [{name: a, from: [{entity: any}]}, {name: a, from: [{entity: host}]}]}",
            &[&["spec.ingress[1].name: \"a\" names two rules"]],
        ),
        segment("{appliesTo: {}, ingress: {from: []}}", &[&["spec.ingress: has to be a list, not a mapping"]]),
        segment("{appliesTo: {}, ingress: yes}", &[&["spec.ingress: has to be a list, not the text \"yes\""]]),
    ]);
}

#[test]
fn network_policies_that_the_api_refuses_are_refused() {
    check(&[
        network(
            "{podSelector: {}, ingres: []}",
            &[&["spec.ingres: is not a known field; known here: podSelector, policyTypes, ingress, egress"]],
        ),
        network("{podselector: {}}", &[&["spec.podselector: is not a known field; write podSelector"]]),
        network("{podSelector: {matchLabel: {a: b}}}", &[&["spec.podSelector.matchLabel: is not a known field"]]),
        network("{policyTypes: [ingress]}", &[&["t:4:22", "spec.policyTypes[0]: \"ingress\" is not known; use Ingress or Egress"]]),
        network("{policyTypes: [Ingress, Egress, Ingress]}", &[&["spec.policyTypes: there are only two policy types"]]),
        network("{policyTypes: Ingress}", &[&["spec.policyTypes: has to be a list"]]),
        network("{ingress: [{from: [{}]}]}", &[&["spec.ingress[0].from[0]: is an empty peer"]]),
        network("{ingress: [{from: [{podSelector: null}]}]}", &[&["spec.ingress[0].from[0]: is an empty peer"]]),
        network(
            "{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
            &[&["spec.ingress[0].from[0]: has ipBlock and a selector"]],
        ),
        network("{ingress: [{to: []}]}", &[&["spec.ingress[0].to: is not a known field; known here: ports, from"]]),
        network("{egress: [{from: []}]}", &[&["spec.egress[0].from: is not a known field; known here: ports, to"]]),
        network("{ingress: [{from: [{ipBlock: {}}]}]}", &[&["spec.ingress[0].from[0].ipBlock.cidr: is required"]]),
        network("{ingress: [{from: [{ipBlock: {cidr: ''}}]}]}", &[&["ipBlock.cidr: \"\" is not a CIDR block"]]),
        network("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}", &[&["ipBlock.cidr: \"10.0.0.0\" has no prefix length"]]),
        network(
            "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
            &[&["spec.egress[0].to[0].ipBlock.except[0]: \"11.0.0.0/16\" is not a strict part"]],
        ),
        network(
            "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.0.0/8]}}]}]}",
            &[&["except[0]: \"10.0.0.0/8\" is not a strict part"]],
        ),
        network(
            "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/16, except: ['2001:db8::/64']}}]}]}",
            &[&["except[0]: \"2001:db8::/64\" is not a strict part"]],
        ),
        network(
            "{egress: [{to: [{ipBlock: {cidr: nonsense, except: [x]}}]}]}",
            &[&["ipBlock.cidr: \"nonsense\""], &["ipBlock.except[0]: \"x\""]],
        ),
        network(
            "{ingress: [{ports: [{protocol: tcp}]}]}",
            &[&["spec.ingress[0].ports[0].protocol: \"tcp\" is not known; use one of TCP, UDP, SCTP"]],
        ),
        network("{ingress: [{ports: [{protocol: ICMP}]}]}", &[&["protocol: \"ICMP\" is not known"]]),
        network("{ingress: [{ports: [{port: 0}]}]}", &[&["spec.ingress[0].ports[0].port: 0 is not a port"]]),
        network("{ingress: [{ports: [{port: 65536}]}]}", &[&["port: 65536 is not a port"]]),
        network("{ingress: [{ports: [{port: HTTP}]}]}", &[&["the port name \"HTTP\" may have only a-z, 0-9 and -"]]),
        network(
            "{ingress: [{ports: [{port: sixteen-letters-}]}]}",
            &[&["the port name \"sixteen-letters-\" has to have 1 to 15 characters"]],
        ),
        network("{ingress: [{ports: [{port: a--b}]}]}", &[&["may not have two hyphens in a row"]]),
        network("{ingress: [{ports: [{port: a-}]}]}", &[&["may not begin or end with a hyphen"]]),
        network("{ingress: [{ports: [{port: '8080'}]}]}", &[&["at least one letter"]]),
        network("{ingress: [{ports: [{port: ''}]}]}", &[&["1 to 15 characters"]]),
        network("{ingress: [{ports: [{endPort: 80}]}]}", &[&["ports[0].endPort: needs a port"]]),
        network("{ingress: [{ports: [{port: http, endPort: 80}]}]}", &[&["endPort: a named port has no range"]]),
        network("{ingress: [{ports: [{port: 80, endPort: 70}]}]}", &[&["endPort: 70 is below the port 80"]]),
        network("{ingress: [{ports: [{port: 80, endPort: 70000}]}]}", &[&["endPort: 70000 is not a port"]]),
        network("{ingress: [{ports: [{port: 80, endPort: '90'}]}]}", &[&["endPort: has to be a whole number, not the text \"90\""]]),
        network("{ingress: [{ports: [{portt: 80}]}]}", &[&["ports[0].portt: is not a known field"]]),
        network(
            "{ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}]}]}",
            &[&["namespaceSelector.matchExpressions[0].values: is empty"]],
        ),
        network(
            "{ingress: [{from: [{podSelector: {matchExpressions: [{key: 'a b', operator: DoesNotExist, values: [x]}]}}]}]}",
            &[&["matchExpressions[0].key: \"a b\""], &["matchExpressions[0].values: the operator DoesNotExist takes no values"]],
        ),
        network("{podSelector: {matchLabels: {a: 'b c'}}}", &[&["spec.podSelector.matchLabels[a]: \"b c\" is not a label value"]]),
        network("{podSelector: {matchExpressions: [{key: a, operator: in, values: [x]}]}}", &[&["operator: \"in\" is not known"]]),
        network(
            "{podSelector: {matchExpressions: [{key: a, operator: In, values: ['-']}]}}",
            &[&["values[0]: \"-\" is not a label value"]],
        ),
        network("[]", &[&["spec: has to be a mapping, not a list"]]),
        // A section that the types do not name is ignored, but not unread.
        network("{policyTypes: [Egress], ingress: [{ports: [{port: 0}]}]}", &[&["spec.ingress[0].ports[0].port: 0 is not a port"]]),
        plain(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {}\nextra: 1",
            &[&["t:5:1", "extra: is not a known field"]],
        ),
    ]);
}

#[test]
fn broken_workloads_and_address_groups_are_refused() {
    check(&[
        workload("{interface: veth0}", &[&["spec.node: is required"]]),
        workload("{node: 'Node A', interface: veth0}", &[&["spec.node: \"Node A\" is not a DNS-1123 subdomain"]]),
        workload("{node: a}", &[&["spec: names no interface; give interface or networkNamespace"]]),
        workload("{node: a, interface: veth0, networkNamespace: x}", &[&["spec: has both interface and networkNamespace"]]),
        workload("{node: a, interface: veth0123456789abc}", &[&["spec.interface: \"veth0123456789abc\" is not an interface name"]]),
        workload("{node: a, interface: a/b}", &[&["spec.interface"]]),
        workload("{node: a, networkNamespace: ../b}", &[&["spec.networkNamespace: \"../b\" is not the name of a network namespace"]]),
        workload("{node: a, interface: v, network: overlay}", &[&["spec.network: \"overlay\" is not known; write default, or a/BRIDGE"]]),
        workload("{node: a, interface: v, network: b/br0}", &[&["spec.network: \"b/br0\" belongs to the node \"b\"", "write a/br0"]]),
        workload("{node: a, interface: v, addresses: []}", &[&["spec.addresses: is empty"]]),
        workload("{node: a, interface: v, addresses: [10.0.0.0/8]}", &[&["spec.addresses[0]: \"10.0.0.0/8\" is not an IP address"]]),
        workload("{node: a, interface: v, addresses: [10.0.0.1, 10.0.0.1]}", &[&["spec.addresses[1]: 10.0.0.1 is there twice"]]),
        workload("{node: a, interface: v, addresses: ['::ffff:10.0.0.1']}", &[&["spec.addresses[0]", "write 10.0.0.1"]]),
        workload(
            "{node: a, interface: v, ports: [{name: http, port: 80}, {name: http, port: 81}]}",
            &[&["spec.ports[1].name: \"http\" names two TCP ports"]],
        ),
        workload(
            "{node: a, interface: v, ports: [{name: http, port: 80, protocol: ICMP}]}",
            &[&["spec.ports[0].protocol: \"ICMP\" is not known; use one of TCP, UDP, SCTP"]],
        ),
        workload("{node: a, interface: v, ports: [{port: 80}]}", &[&["spec.ports[0].name: is required"]]),
        workload(
            "{node: a, interface: v, publishedPorts: [{hostPort: 0, port: 70000}]}",
            &[&["publishedPorts[0].hostPort: 0"], &["publishedPorts[0].port: 70000"]],
        ),
        workload(
            "{node: a, interface: v, publishedPorts: [{hostPort: 80, port: 80}, {hostPort: 80, port: 81}]}",
            &[&["publishedPorts[1].hostPort: TCP port 80 of this address is published twice"]],
        ),
        workload(
            "{node: a, interface: v, publishedPorts: [{hostPort: 80, port: 80, hostAddress: node}]}",
            &[&["hostAddress: \"node\" is not an IP address"]],
        ),
        plain(
            "apiVersion: firebreak.dev/v1alpha1\nkind: AddressGroup\nmetadata: {name: g, namespace: n}\nspec: {blocks: []}",
            &[&["AddressGroup g", "metadata.namespace: an object of kind AddressGroup is in no namespace"]],
        ),
        plain("apiVersion: firebreak.dev/v1alpha1\nkind: AddressGroup\nmetadata: {name: g}\nspec: {}", &[&["spec.blocks: is required"]]),
        plain(
            "apiVersion: firebreak.dev/v1alpha1\nkind: AddressGroup\nmetadata: {name: g}\nspec: {blocks: [{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}, {cdr: x}]}",
            &[&["spec.blocks[1].cidr: is required"], &["spec.blocks[1].cdr: is not a known field"]],
        ),
    ]);
}

#[test]
fn label_rules_that_say_nothing_or_too_much_are_refused() {
    const PCI: &str = "labels: {reserved.firebreak.dev/zone: pci}";
    let rule = |spec: &str, reasons: &'static [&'static [&'static str]]| {
        let text = format!("apiVersion: firebreak.dev/v1alpha1\nkind: LabelRule\nmetadata: {{name: r}}\nspec: {{{spec}}}");
        (text, reasons)
    };
    let cases = [
        rule(PCI, &[&["LabelRule r", "spec.to: is required"]]),
        rule(&format!("to: {{}}, {PCI}"), &[&["spec.to: says nobody: give namespaces, workloads, nodes or images"]]),
        rule("to: {namespaces: {}}", &[&["spec.labels: is required"]]),
        rule("to: {namespaces: {}}, labels: {}", &[&["spec.labels: is empty"]]),
        rule("to: {namespaces: {}}, labels: {zone: pci}", &[&["spec.labels", "zone", "is not reserved"]]),
        rule("to: {namespaces: {}}, labels: {reserved.firebreak.dev/: pci}", &[&["spec.labels"]]),
        rule("to: {namespaces: {}}, labels: {reserved.firebreak.dev/zone: 'a b'}", &[&["spec.labels", "a b"]]),
        rule(&format!("to: {{images: []}}, {PCI}"), &[&["spec.to.images: is empty"]]),
        rule(&format!("to: {{images: ['*']}}, {PCI}"), &[&["spec.to.images[0]: names no image"]]),
        rule(&format!("to: {{images: [shop/*/db]}}, {PCI}"), &[&["spec.to.images[0]", "is no image"]]),
        rule(&format!("to: {{images: ['a b']}}, {PCI}"), &[&["spec.to.images[0]", "is no image"]]),
        rule(&format!("to: {{nodes: {{matchLabels: {{'-': a}}}}}}, {PCI}"), &[&["spec.to.nodes.matchLabels"]]),
        rule(&format!("to: {{pods: {{}}}}, {PCI}"), &[&["spec.to.pods: is not a known field"]]),
    ];
    for (text, reasons) in cases {
        let errors = firebreak_manifest::parse_str("t", &text).unwrap_err().to_string();
        for words in reasons {
            assert!(errors.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?} not in {errors} of {text}");
        }
    }
}

#[test]
fn pods_and_nodes_with_broken_modelled_fields_are_refused() {
    check(&[
        pod("status: {podIP: 10.0.0.256}", &[&["t:4:17", "Pod n/p", "status.podIP: \"10.0.0.256\" is not an IP address"]]),
        pod("status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.2}]}", &[&["status.podIP: 10.0.0.1 is not the first of podIPs, 10.0.0.2"]]),
        pod("status: {podIPs: [{ip: 10.0.0.2}, {ip: 10.0.0.3}]}", &[&["status.podIPs: has two IPv4 addresses"]]),
        pod("status: {podIPs: [{}]}", &[&["status.podIPs[0].ip: is required"]]),
        pod(
            "spec: {containers: [{ports: [{containerPort: 1, hostPort: 80}]}, {ports: [{containerPort: 2, hostPort: 80}]}]}",
            &[&["spec.containers[1].ports[0].hostPort: TCP port 80 of the node is asked for twice"]],
        ),
        pod("status: {phase: Done}", &[&["status.phase: \"Done\" is not known; use one of Pending, Running"]]),
        pod("status: {hostIP: here}", &[&["status.hostIP: \"here\" is not an IP address"]]),
        pod("spec: {nodeName: [a]}", &[&["spec.nodeName: has to be text, not a list"]]),
        pod("spec: {nodeName: A}", &[&["spec.nodeName: \"A\" is not"]]),
        pod("spec: {hostNetwork: 'true'}", &[&["spec.hostNetwork: has to be true or false, not the text \"true\""]]),
        pod("spec: {hostNetwork: yes}", &[&["spec.hostNetwork: has to be true or false, not the text \"yes\""]]),
        pod(
            "spec: {containers: [{ports: [{containerPort: 70000}]}]}",
            &[&["spec.containers[0].ports[0].containerPort: 70000 is not a port"]],
        ),
        pod("spec: {containers: [{ports: [{name: http}]}]}", &[&["ports[0].containerPort: is required"]]),
        pod(
            "spec: {containers: [{ports: [{name: a, containerPort: 1}, {name: a, containerPort: 2}]}]}",
            &[&["ports[1].name: \"a\" names two ports of this container"]],
        ),
        pod("spec: {containers: [{ports: [{name: A, containerPort: 1}]}]}", &[&["the port name \"A\" may have only"]]),
        pod("spec: {containers: [{ports: [{protocol: DCCP, containerPort: 1}]}]}", &[&["protocol: \"DCCP\" is not known"]]),
        pod("spec: {initContainers: [{ports: [{containerPort: 0}]}]}", &[&["spec.initContainers[0].ports[0].containerPort: 0"]]),
        pod(
            "spec: {hostNetwork: true, containers: [{ports: [{containerPort: 80, hostPort: 81}]}]}",
            &[&["hostPort: has to be the same as containerPort with hostNetwork"]],
        ),
        plain(
            "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nstatus: {addresses: [{type: InternalIP, address: x}, {type: Mystery, address: y}]}",
            &[&["status.addresses[0].address: \"x\" is not an IP address"], &["status.addresses[1].type: \"Mystery\" is not known"]],
        ),
    ]);
}

#[test]
fn of_one_object_at_most_a_hundred_faults_are_told() {
    let with_fields = |count: u32| {
        let fields: String = (0..count).map(|number| format!("\"x{number}\":0,")).collect();
        format!(
            r#"{{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{{"name":"p"}},"spec":{{{fields}"podSelector":{{}}}}}}"#
        )
    };
    let refuse = |count: u32| {
        let text = with_fields(count);
        let took = |_| {
            let started = std::time::Instant::now();
            assert!(Object::from_json(text.as_bytes()).is_err());
            started.elapsed()
        };
        (0..5).map(took).min().unwrap()
    };
    // Ten times as much text, ten times the time: with room for noise, and far below the hundred times of work that grows with the square.
    let (few, many) = (refuse(10_000), refuse(100_000));
    assert!(many < few * 35, "10,000 fields in {few:?}, 100,000 in {many:?}");
    let errors = Object::from_json(with_fields(100_000).as_bytes()).unwrap_err();
    assert_eq!(errors.iter().count(), 101);
    assert!(
        errors.to_string().ends_with("NetworkPolicy default/p: has more faults than these 100; the others are told when these are mended")
    );
}

#[test]
fn an_object_that_is_there_twice_is_refused_with_both_places() {
    let group = "apiVersion: firebreak.dev/v1alpha1\nkind: AddressGroup\nmetadata: {name: g}\nspec: {blocks: []}\n";
    check(&[plain(
        &format!("{group}---\n{group}"),
        &[&["t:6:1: document 2: AddressGroup g: is there twice, first at t:1:1: document 1: AddressGroup g; keep one"]],
    )]);
    let spaces =
        |namespace: &str| format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: a{namespace}}}\nspec: {{}}\n");
    check(&[plain(&format!("{}---\n{}", spaces(""), spaces(", namespace: default")), &[&["NetworkPolicy default/a: is there twice"]])]);
    // One name in two namespaces is two policies (SEMANTICS 10).
    assert_eq!(parse_str("t", &format!("{}---\n{}", spaces(""), spaces(", namespace: other"))).unwrap().len(), 2);
}

#[test]
fn a_pod_and_a_workload_of_one_name_cannot_stand_together() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: firebreak.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspec: {node: n, interface: v}\n";
    let objects = parse_str("t", text).unwrap();
    let error = build(objects.iter().map(|located| &located.object)).unwrap_err().to_string();
    assert_eq!(error, "Workload default/a: Pod default/a has the same name, and both would be the workload default/a; rename one");
}

#[test]
fn all_that_is_wrong_in_all_documents_is_told_in_one_go() {
    let text = "\
apiVersion: firebreak.dev/v1alpha1
kind: SegmentPolicy
metadata: {name: p, nam: q}
spec:
  appliesTo: {matchLabels: {a: 1}}
  ingress:
  - from: 7
  - from:
    - entity: nobody
    - entity: any
    ports:
    - {protocol: TCP, port: [80]}
    - {protocl: TCP}
---
a: [
---
apiVersion: v1
kind: Nothing
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: n}
spec:
  ingress:
  - ports: [{port: 0}, {port: 80, endPort: 1}]
";
    check(&[plain(
        text,
        &[
            &["t:3:21: document 1: SegmentPolicy default/p: metadata.nam: is not a known field"],
            &["t:5:32: document 1", "spec.appliesTo.matchLabels[a]: has to be text"],
            &["t:7:11: document 1", "spec.ingress[0].from: has to be a list"],
            &["t:9:15: document 1", "spec.ingress[1].from[0].entity"],
            &["t:12:23: document 1", "spec.ingress[1].ports[0].port: has to be a whole number or a name"],
            &["t:13:8: document 1", "spec.ingress[1].ports[1].protocl: is not a known field"],
            &["t:15:4: document 2", "cannot be read as YAML"],
            &["t:18:7: document 3", "\"Nothing\" is not known here"],
            &["t:25:20: document 4: NetworkPolicy default/n", "spec.ingress[0].ports[0].port"],
            &["t:25:44", "spec.ingress[0].ports[1].endPort"],
        ],
    )]);
}

#[test]
fn stored_json_is_checked_as_files_are() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["object: cannot be read as JSON"]),
        ("{", &["cannot be read as JSON"]),
        ("[]", &["object: a document has to be a mapping"]),
        (r#"{"kind":"Pod","kind":"Pod"}"#, &["the key \"kind\" is there twice"]),
        (r#"{"apiVersion":"v1","kind":"List","items":[]}"#, &["exactly one object is expected"]),
        (
            r#"{"apiVersion":"firebreak.dev/v1alpha1","kind":"AddressGroup","metadata":{"name":"g"},"spec":{"blocks":[{"cidr":"x"}]}}"#,
            &["AddressGroup g: spec.blocks[0].cidr: \"x\" is not a CIDR block"],
        ),
    ];
    for (text, fragments) in cases {
        let error = Object::from_json(text.as_bytes()).unwrap_err().to_string();
        for fragment in *fragments {
            assert!(error.contains(fragment), "{fragment:?} is not in {error:?}");
        }
    }
}

#[test]
fn objects_made_by_hand_are_checked_when_they_are_converted() {
    let text = "apiVersion: firebreak.dev/v1alpha1\nkind: AddressGroup\nmetadata: {name: g}\nspec: {blocks: []}";
    let object = parse_str("t", text).unwrap().remove(0).object;
    let Object::AddressGroup(mut group) = object else { panic!("{object:?}") };
    group.metadata.name = "G".to_owned();
    assert_eq!(group.to_model().unwrap_err().iter().map(firebreak_manifest::Error::field).collect::<Vec<_>>(), ["metadata.name"]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    use firebreak_manifest::load_paths;
    let directory = std::env::temp_dir().join(format!("firebreak-manifest-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let empty = load_paths(std::slice::from_ref(&directory)).unwrap_err().to_string();
    assert!(empty.contains("has no file that ends in .yaml, .yml or .json"), "{empty}");
    let missing = load_paths(&[directory.join("missing.yaml")]).unwrap_err().to_string();
    assert!(missing.contains("missing.yaml: cannot be read: No such file"), "{missing}");
    let binary = directory.join("binary.yaml");
    std::fs::write(&binary, b"a: \xff").unwrap();
    let binary = load_paths(&[binary]).unwrap_err().to_string();
    assert!(binary.contains("binary.yaml: is not UTF-8 text (first bad byte at offset 3)"), "{binary}");
    std::fs::remove_dir_all(&directory).unwrap();
}
