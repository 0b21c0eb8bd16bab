//! Random policies as manifests: crowded, so that most of them are about somebody, and most probes are about some policy.

use firebreak_tests::random::SplitMix;
use serde_json::{Value, json};
use std::net::IpAddr;

/// Choices of a seed.
pub(crate) struct Random(SplitMix);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix::new(seed))
    }

    fn below(&mut self, end: usize) -> usize {
        self.0.below(end)
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn some<T>(&mut self, least: usize, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..least + self.below(most - least + 1)).map(|_| one(self)).collect()
    }
}

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const APPS: [&str; 3] = ["web", "db", "api"];
const PORTS: [u16; 6] = [53, 80, 81, 82, 443, 1000];
const NAMES: [&str; 2] = ["http", "dns"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// The objects of one policy set. Blocks are made around these addresses.
pub(crate) fn policy_set(random: &mut Random, addresses: &[IpAddr]) -> Vec<Value> {
    let mut objects = vec![address_group(random, addresses, "g0")];
    if random.percent(50) {
        objects.push(address_group(random, addresses, "g1"));
    }
    for number in 0..1 + random.below(5) {
        let namespace = random.pick(&NAMESPACES);
        let metadata = json!({"name": format!("p{number}"), "namespace": namespace});
        objects.push(if random.percent(50) {
            let spec = network_policy(random, addresses);
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
        } else {
            let spec = segment_policy(random, addresses);
            json!({"apiVersion": "firebreak.dev/v1alpha1", "kind": "SegmentPolicy", "metadata": metadata, "spec": spec})
        });
    }
    objects
}

/// As [`policy_set`], with policies of tiers around it, of every kind.
pub(crate) fn tiered_set(random: &mut Random, addresses: &[IpAddr]) -> Vec<Value> {
    let mut objects = policy_set(random, addresses);
    for number in 0..1 + random.below(4) {
        objects.push(match random.below(3) {
            0 => cluster_segment_policy(random, addresses, number),
            1 => kubernetes_tier(random, addresses, &Api::ADMIN, json!({"name": format!("t{number}")})),
            _ => kubernetes_tier(random, addresses, &Api::CLUSTER, json!({"name": format!("t{number}")})),
        });
    }
    if random.percent(30) {
        objects.push(kubernetes_tier(random, addresses, &Api::BASELINE, json!({"name": "default"})));
    }
    objects
}

fn cluster_segment_policy(random: &mut Random, addresses: &[IpAddr], number: usize) -> Value {
    let mut spec = json!({"tier": random.pick(&["Admin", "Baseline"]), "priority": random.below(3)});
    spec["subject"] = json!({"namespaces": namespace_selector(random)});
    if random.percent(50) {
        spec["subject"]["workloads"] = selector(random);
    }
    for (direction, peers) in either_or_both(random) {
        spec[direction] = json!(random.some(1, 3, |random| {
            let mut rule = json!({"action": random.pick(&["Allow", "Deny", "Pass"])});
            rule[peers] = json!(random.some(1, 2, |random| match random.below(7) {
                0 => json!({"namespaces": namespace_selector(random)}),
                1 | 2 => json!({"namespaces": namespace_selector(random), "workloads": selector(random)}),
                3 => json!({"cidr": block(random, addresses)}),
                4 => json!({"addressGroup": random.pick(&["g0", "g1"])}),
                5 => json!({"entity": random.pick(&["any", "host", "world"])}),
                _ => json!({"nodes": {}}),
            }));
            if random.percent(65) {
                rule["ports"] = json!(random.some(1, 3, segment_port));
            }
            rule
        }));
    }
    json!({"apiVersion": "firebreak.dev/v1alpha1", "kind": "ClusterSegmentPolicy", "metadata": {"name": format!("t{number}")}, "spec": spec})
}

/// Where the Kubernetes kinds of tiers differ.
struct Api {
    version: &'static str,
    kind: &'static str,
    actions: &'static [&'static str],
    ports: &'static str,
}

impl Api {
    const ADMIN: Self = Self { version: "v1alpha1", kind: "AdminNetworkPolicy", actions: &["Allow", "Deny", "Pass"], ports: "ports" };
    const BASELINE: Self = Self { version: "v1alpha1", kind: "BaselineAdminNetworkPolicy", actions: &["Allow", "Deny"], ports: "ports" };
    const CLUSTER: Self =
        Self { version: "v1alpha2", kind: "ClusterNetworkPolicy", actions: &["Accept", "Deny", "Pass"], ports: "protocols" };
}

fn kubernetes_tier(random: &mut Random, addresses: &[IpAddr], api: &Api, metadata: Value) -> Value {
    let mut spec = json!({});
    if api.kind != "BaselineAdminNetworkPolicy" {
        spec["priority"] = json!(random.below(3));
    }
    if api.kind == "ClusterNetworkPolicy" {
        spec["tier"] = json!(random.pick(&["Admin", "Baseline"]));
    }
    spec["subject"] = if random.percent(50) {
        json!({"namespaces": namespace_selector(random)})
    } else {
        json!({"pods": {"namespaceSelector": namespace_selector(random), "podSelector": selector(random)}})
    };
    for (direction, peers) in either_or_both(random) {
        spec[direction] = json!(random.some(1, 3, |random| {
            let mut rule = json!({"action": random.pick(api.actions)});
            rule[peers] = json!(random.some(1, 2, |random| match random.below(if direction == "egress" { 5 } else { 3 }) {
                0 => json!({"namespaces": namespace_selector(random)}),
                1 | 2 => json!({"pods": {"namespaceSelector": namespace_selector(random), "podSelector": selector(random)}}),
                3 => json!({"nodes": {}}),
                _ => json!({"networks": [block(random, addresses)["cidr"]]}),
            }));
            if random.percent(65) {
                // A name goes with pods only.
                let named = rule[peers].as_array().unwrap().iter().all(|peer| peer["nodes"].is_null() && peer["networks"].is_null());
                let port = if api.ports == "ports" { admin_port } else { cluster_protocol };
                rule[api.ports] = json!(random.some(1, 3, |random| port(random, named)));
            }
            rule
        }));
    }
    let version = format!("policy.networking.k8s.io/{}", api.version);
    json!({"apiVersion": version, "kind": api.kind, "metadata": metadata, "spec": spec})
}

fn either_or_both(random: &mut Random) -> Vec<(&'static str, &'static str)> {
    let (ingress, egress) = (("ingress", "from"), ("egress", "to"));
    random.pick(&[vec![ingress], vec![egress], vec![ingress, egress]]).clone()
}

fn admin_port(random: &mut Random, named: bool) -> Value {
    match random.below(if named { 4 } else { 3 }) {
        0 | 1 => json!({"portNumber": {"protocol": random.pick(&PROTOCOLS), "port": random.pick(&PORTS)}}),
        2 => {
            let (one, other) = (*random.pick(&PORTS), *random.pick(&PORTS));
            let (start, end) = (one.min(other), one.max(other) + 1);
            json!({"portRange": {"protocol": random.pick(&PROTOCOLS), "start": start, "end": end}})
        }
        _ => json!({"namedPort": random.pick(&NAMES)}),
    }
}

fn cluster_protocol(random: &mut Random, named: bool) -> Value {
    let protocol = *random.pick(&["tcp", "udp", "sctp"]);
    match random.below(if named { 4 } else { 3 }) {
        0 | 1 => json!({protocol: {"destinationPort": {"number": random.pick(&PORTS)}}}),
        2 => {
            let (one, other) = (*random.pick(&PORTS), *random.pick(&PORTS));
            json!({protocol: {"destinationPort": {"range": {"start": one.min(other), "end": one.max(other) + 1}}}})
        }
        _ => json!({"destinationNamedPort": random.pick(&NAMES)}),
    }
}

fn address_group(random: &mut Random, addresses: &[IpAddr], name: &str) -> Value {
    let blocks = random.some(0, 2, |random| block(random, addresses));
    json!({"apiVersion": "firebreak.dev/v1alpha1", "kind": "AddressGroup", "metadata": {"name": name}, "spec": {"blocks": blocks}})
}

fn selector(random: &mut Random) -> Value {
    match random.below(8) {
        0 | 1 => json!({}),
        2..=4 => json!({"matchLabels": {"app": random.pick(&APPS)}}),
        5 => json!({"matchLabels": {"tier": random.pick(&["1", "2"])}}),
        6 => json!({"matchExpressions": [expression(random, "app", &APPS)]}),
        _ => json!({"matchExpressions": [expression(random, "tier", &["1", "2"]), expression(random, "app", &APPS)]}),
    }
}

fn namespace_selector(random: &mut Random) -> Value {
    match random.below(4) {
        0 => json!({}),
        1 => json!({"matchLabels": {"team": random.pick(&["x", "y"])}}),
        2 => json!({"matchLabels": {"dev": ""}}),
        _ => json!({"matchExpressions": [expression(random, "team", &["x", "y"])]}),
    }
}

fn expression(random: &mut Random, key: &str, values: &[&str]) -> Value {
    match random.below(4) {
        0 => json!({"key": key, "operator": "Exists"}),
        1 => json!({"key": key, "operator": "DoesNotExist"}),
        2 => json!({"key": key, "operator": "In", "values": random.some(1, 2, |random| *random.pick(values))}),
        _ => json!({"key": key, "operator": "NotIn", "values": [random.pick(values)]}),
    }
}

/// A block around one of the addresses, perhaps with a hole around another.
fn block(random: &mut Random, addresses: &[IpAddr]) -> Value {
    let (address, hole) = (*random.pick(addresses), *random.pick(addresses));
    let lengths: [u8; 5] = if address.is_ipv4() { [0, 16, 24, 31, 32] } else { [0, 16, 64, 127, 128] };
    let cidr = ipnet::IpNet::new(address, *random.pick(&lengths)).unwrap().trunc();
    let longer: Vec<u8> = lengths.into_iter().filter(|length| *length > cidr.prefix_len()).collect();
    if !cidr.contains(&hole) || longer.is_empty() || random.percent(40) {
        return json!({"cidr": cidr.to_string()});
    }
    let except = ipnet::IpNet::new(hole, *random.pick(&longer)).unwrap().trunc();
    json!({"cidr": cidr.to_string(), "except": [except.to_string()]})
}

fn network_policy(random: &mut Random, addresses: &[IpAddr]) -> Value {
    let mut spec = json!({"podSelector": selector(random)});
    let types = [None, Some(json!(["Ingress"])), Some(json!(["Egress"])), Some(json!(["Ingress", "Egress"]))];
    if let Some(types) = random.pick(&types) {
        spec["policyTypes"] = types.clone();
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        if random.percent(75) {
            spec[direction] = json!(random.some(0, 3, |random| network_rule(random, addresses, peers)));
        }
    }
    spec
}

fn network_rule(random: &mut Random, addresses: &[IpAddr], peers: &str) -> Value {
    let mut rule = json!({});
    if random.percent(85) {
        rule[peers] = json!(random.some(1, 3, |random| network_peer(random, addresses)));
    }
    if random.percent(65) {
        rule["ports"] = json!(random.some(1, 3, network_port));
    }
    rule
}

fn network_peer(random: &mut Random, addresses: &[IpAddr]) -> Value {
    match random.below(4) {
        0 => json!({"podSelector": selector(random)}),
        1 => json!({"namespaceSelector": namespace_selector(random)}),
        2 => json!({"podSelector": selector(random), "namespaceSelector": namespace_selector(random)}),
        _ => json!({"ipBlock": block(random, addresses)}),
    }
}

fn network_port(random: &mut Random) -> Value {
    let mut entry = ports(random);
    if random.percent(70) {
        entry["protocol"] = json!(random.pick(&PROTOCOLS));
    }
    entry
}

/// A number, a range, a name, or nothing: every port.
fn ports(random: &mut Random) -> Value {
    match random.below(6) {
        0..=2 => json!({"port": random.pick(&PORTS)}),
        3 => {
            let (one, other) = (*random.pick(&PORTS), *random.pick(&PORTS));
            json!({"port": one.min(other), "endPort": one.max(other)})
        }
        4 => json!({"port": random.pick(&NAMES)}),
        _ => json!({}),
    }
}

fn segment_policy(random: &mut Random, addresses: &[IpAddr]) -> Value {
    let mut spec = json!({"appliesTo": selector(random)});
    let directions = *random.pick(&[(true, false), (false, true), (true, true)]);
    // Judge asks the ingress rules: it is refused where there are none.
    if directions.0 && random.percent(40) {
        spec["hostAccess"] = json!(random.pick(&["Allow", "Judge"]));
    }
    for (direction, peers, present) in [("ingress", "from", directions.0), ("egress", "to", directions.1)] {
        if present {
            spec[direction] = json!(random.some(0, 3, |random| segment_rule(random, addresses, peers)));
        }
    }
    spec
}

fn segment_rule(random: &mut Random, addresses: &[IpAddr], peers: &str) -> Value {
    let mut rule = json!({peers: random.some(1, 3, |random| segment_peer(random, addresses))});
    if random.percent(65) {
        rule["ports"] = json!(random.some(1, 3, segment_port));
    }
    rule
}

fn segment_peer(random: &mut Random, addresses: &[IpAddr]) -> Value {
    match random.below(8) {
        0 | 1 => json!({"workloads": selector(random)}),
        2 => json!({"namespaces": namespace_selector(random)}),
        3 => json!({"workloads": selector(random), "namespaces": namespace_selector(random)}),
        4 => json!({"cidr": block(random, addresses)}),
        5 => json!({"addressGroup": random.pick(&["g0", "g1"])}),
        6 => json!({"entity": "host"}),
        _ => json!({"entity": random.pick(&["any", "world"])}),
    }
}

fn segment_port(random: &mut Random) -> Value {
    match random.below(8) {
        0 => json!({"protocol": "ICMP"}),
        1 => json!({"protocol": "ICMPv6"}),
        2 => json!({"icmp": {"family": "IPv4", "type": random.pick(&[8, 0, 3])}}),
        3 => json!({"icmp": {"family": "IPv6", "type": 128, "code": random.pick(&[0, 1])}}),
        _ => {
            let mut entry = ports(random);
            entry["protocol"] = json!(random.pick(&PROTOCOLS));
            entry
        }
    }
}
