//! What is taken, and what becomes of it in the model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_manifest::{Located, Object, build, parse_str};
use firebreak_policy::model::{
    CidrBlock, Entity, Family, HostAccess, Inventory, LabelSelector, NamespaceScope, Peer, Peers, PolicySet, PortRange, Protocol, Service,
    Services, Workload,
};

fn objects(text: &str) -> Vec<Located<Object>> {
    parse_str("t", text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

fn model(text: &str) -> (PolicySet, Inventory) {
    build(objects(text).iter().map(|located| &located.object)).unwrap()
}

fn workload(text: &str) -> Workload {
    model(text).1.workloads.values().next().unwrap().clone()
}

const GROUP: &str = "apiVersion: firebreak.dev/v1alpha1\nkind: AddressGroup\nmetadata: {name: NAME}\nspec: {blocks: []}\n";

fn group(name: &str) -> String {
    GROUP.replace("NAME", name)
}

#[test]
fn texts_are_taken_in_every_form_that_people_and_tools_write() {
    let one = group("a");
    let json = "{\n\t\"apiVersion\": \"firebreak.dev/v1alpha1\",\n\t\"kind\": \"AddressGroup\",\n\t\"metadata\": {\"name\": \"a\", \"annotations\": {\"x\": \"\\ud83d\\ude00 \\/ \\u00e9\"}},\n\t\"spec\": {\"blocks\": []}\n}\n";
    let anchored = "apiVersion: firebreak.dev/v1alpha1\nkind: AddressGroup\nmetadata: {name: a}\nspec:\n  blocks:\n  - &block {cidr: 10.0.0.0/8}\n  - *block\n  - <<: *block\n    except: [10.1.0.0/16]\n";
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, metadata: {name: b}}]}\n";
    let cases: &[(&str, usize, usize)] = &[
        ("", 0, 0),
        ("# nothing\n", 0, 0),
        ("---\n---\n\n--- # still nothing\n", 0, 0),
        (&one, 1, 1),
        (&one.replace('\n', "\r\n"), 1, 1),
        (&format!("\u{feff}{one}"), 1, 1),
        (&format!("%YAML 1.2\n---\n{one}"), 1, 1),
        (&format!("# comment\n\n---\n{one}---\n# empty\n---\n{}...\n", group("b")), 2, 3),
        (&format!("--- {{apiVersion: v1, kind: Namespace, metadata: {{name: n}}}}\n---\n{one}"), 2, 2),
        (json, 1, 1),
        (&format!("{json}---\n{}", group("b")), 2, 2),
        (anchored, 1, 1),
        (list, 2, 1),
        ("apiVersion: v1\nkind: List\nitems: []\n", 0, 0),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {name: 'on', labels: {a: yes, b: 'true', c: on, d: 010, e: 1_000}}\n", 1, 1),
    ];
    for (text, count, last_document) in cases {
        let found = objects(text);
        assert_eq!(found.len(), *count, "{text}");
        if let Some(last) = found.last() {
            assert_eq!(last.place.document, Some(*last_document), "{text}");
        }
    }
    let Object::AddressGroup(group) = &objects(anchored)[0].object else { panic!("another kind") };
    assert_eq!(group.spec.blocks[2].except.as_deref(), Some(&["10.1.0.0/16".to_owned()][..]));
}

#[test]
fn places_count_lines_from_the_beginning_of_the_file() {
    let text = format!("# one\n\n---\n{}---\n\n{}", group("a"), group("b"));
    let places: Vec<String> = objects(&text).iter().map(|located| located.place.to_string()).collect();
    assert_eq!(places, ["t:4:1: document 1: AddressGroup a", "t:10:1: document 2: AddressGroup b"]);
}

#[test]
fn a_pod_becomes_the_workload_that_policy_is_about() {
    let pod = workload(
        "
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: n, labels: {app: web}}
spec:
  nodeName: node
  initContainers:
  - {restartPolicy: Always, ports: [{name: http, containerPort: 1}, {name: side, containerPort: 2}]}
  - {ports: [{name: init, containerPort: 3}]}
  containers:
  - ports: [{name: http, containerPort: 80, hostPort: 8080}, {name: dns, protocol: UDP, containerPort: 53, hostPort: 53, hostIP: 10.0.0.1}]
  - ports: [{name: http, containerPort: 81}, {containerPort: 9}]
  - ports: [{name: http, containerPort: 82, protocol: UDP}]
status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}
",
    );
    let named: Vec<(&str, Protocol, u16)> = pod.named_ports.iter().map(|it| (it.name.as_str(), it.protocol, it.port)).collect();
    // As FindPort: containers before sidecars, the first of a name and protocol.
    let expected = [("http", Protocol::TCP, 80), ("dns", Protocol::UDP, 53), ("http", Protocol::UDP, 82), ("side", Protocol::TCP, 2)];
    assert_eq!(named, expected);
    let published: Vec<_> = pod.published_ports.iter().map(|it| (it.protocol, it.host_address, it.host_port, it.workload_port)).collect();
    assert_eq!(published, [(Protocol::TCP, None, 8080, 80), (Protocol::UDP, Some("10.0.0.1".parse().unwrap()), 53, 53)]);
    assert_eq!(pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.0.1", "fd00::1"]);
    assert_eq!((pod.id.to_string().as_str(), pod.terminated, pod.host_network), ("node/n.p", false, false));
}

#[test]
fn pods_without_node_or_life_hold_nothing_that_is_not_theirs() {
    let pod = |rest: &str| workload(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\n{rest}"));
    for (rest, node, addresses, terminated) in [
        ("", "(unscheduled)", 0, false),
        ("status: {podIP: ''}", "(unscheduled)", 0, false),
        ("status: {hostIP: 10.0.0.7, podIP: 10.1.0.1}", "(node of 10.0.0.7)", 1, false),
        ("spec: {nodeName: n}\nstatus: {phase: Succeeded, podIP: 10.1.0.1}", "n", 0, true),
        ("spec: {nodeName: n}\nstatus: {phase: Failed, podIPs: [{ip: 10.1.0.1}]}", "n", 0, true),
        ("spec: {nodeName: n}\nstatus: {phase: Pending}", "n", 0, false),
    ] {
        let pod = pod(rest);
        assert_eq!((pod.id.node.as_str(), pod.addresses.len(), pod.terminated), (node, addresses, terminated), "{rest}");
    }
}

#[test]
fn a_node_has_the_addresses_of_its_object_and_of_its_pods_status() {
    let (_, inventory) = model(
        "
{apiVersion: v1, kind: Pod, metadata: {name: host}, spec: {nodeName: n, hostNetwork: true}, status: {podIP: 10.0.0.3, hostIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ended}, spec: {nodeName: n, hostNetwork: true}, status: {phase: Failed, podIP: 10.0.0.9}}
---
{apiVersion: v1, kind: Node, metadata: {name: n, labels: {a: b}}, status: {addresses: [{type: ExternalIP, address: 192.0.2.1}, {type: Hostname, address: n}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other}, spec: {nodeName: m}, status: {hostIP: 10.0.0.5}}
",
    );
    let addresses = |name: &str| inventory.nodes[name].addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(addresses("n"), ["10.0.0.2", "10.0.0.3", "192.0.2.1"]);
    assert_eq!(addresses("m"), ["10.0.0.5"]);
    assert_eq!(inventory.nodes["n"].labels.get("a"), Some("b"));
}

#[test]
fn a_workload_manifest_becomes_the_workload_of_its_node() {
    let web = workload(
        "
apiVersion: firebreak.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  node: node-a
  interface: veth0
  network: node-a/docker0
  addresses: [172.17.0.2]
  ports: [{name: http, port: 80}]
  publishedPorts: [{hostPort: 8080, port: 80, hostAddress: 0.0.0.0}]
",
    );
    assert_eq!(web.id.to_string(), "node-a/shop.web");
    assert_eq!(web.addresses[0].to_string(), "172.17.0.2%node-a/docker0");
    assert_eq!(web.interface.unwrap().as_str(), "veth0");
    assert_eq!((web.named_ports[0].protocol, web.named_ports[0].port), (Protocol::TCP, 80));
    assert_eq!((web.published_ports[0].host_address, web.published_ports[0].host_port), (None, 8080));
    let bare = workload("apiVersion: firebreak.dev/v1alpha1\nkind: Workload\nmetadata: {name: w}\nspec: {node: n, networkNamespace: x}");
    assert_eq!((bare.interface, bare.addresses.len(), bare.namespace.as_str()), (None, 0, "default"));
}

#[test]
fn a_segment_policy_becomes_the_policy_that_it_says() {
    let (policies, _) = model(
        "
apiVersion: firebreak.dev/v1alpha1
kind: SegmentPolicy
metadata: {name: p, namespace: n}
spec:
  appliesTo: {matchLabels: {app: db}}
  hostAccess: Judge
  ingress:
  - name: one
    from:
    - workloads: {matchLabels: {app: api}}
    - namespaces: {}
    - cidr: {cidr: 10.0.0.7/8, except: [10.1.2.3/16]}
    - addressGroup: g
    - entity: world
    ports:
    - {protocol: TCP, port: 80, endPort: 90}
    - {protocol: UDP, port: dns}
    - {protocol: SCTP}
    - {protocol: 47}
    - icmp: {family: IPv6, type: 128}
  - from: [{entity: any}]
",
    );
    let policy = policies.policies.values().next().unwrap();
    assert_eq!(policy.key.to_string(), "SegmentPolicy n/p");
    assert_eq!((policy.host_access, policy.egress.is_none()), (HostAccess::Judge, true));
    let [one, two] = policy.ingress.as_deref().unwrap() else { panic!("two rules were written") };
    let api = LabelSelector { match_labels: [("app".to_owned(), "api".to_owned())].into(), match_expressions: Vec::new() };
    let everything = LabelSelector::everything;
    assert_eq!(one.name.as_deref(), Some("one"));
    assert_eq!(
        one.peers,
        Peers::Only(vec![
            Peer::Workloads { namespaces: NamespaceScope::Own, workloads: api },
            Peer::Workloads { namespaces: NamespaceScope::Matching(everything()), workloads: everything() },
            Peer::Cidr(CidrBlock { cidr: "10.0.0.0/8".parse().unwrap(), except: vec!["10.1.0.0/16".parse().unwrap()] }),
            Peer::Group("g".into()),
            Peer::Entity(Entity::World),
        ])
    );
    assert_eq!(
        one.services,
        Services::Only(vec![
            Service::Ports(Protocol::TCP, PortRange::new(80, 90).unwrap()),
            Service::Named(Protocol::UDP, "dns".to_owned()),
            Service::Protocol(Protocol::SCTP),
            Service::Protocol(Protocol(47)),
            Service::Icmp { family: Family::V6, kind: 128, code: None },
        ])
    );
    assert_eq!((&two.peers, &two.services), (&Peers::Only(vec![Peer::Entity(Entity::Any)]), &Services::Any));
}
