//! AdminNetworkPolicy, BaselineAdminNetworkPolicy and ClusterNetworkPolicy to policies of tiers, with the validation of their CRDs
//! (kubernetes-sigs/network-policy-api, v1alpha1 and v1alpha2).

use super::{note, parts};
use crate::path::{At, Problems};
use crate::validate;
use crate::{
    AdminEgressRule, AdminIngressRule, AdminNetworkPolicy, AdminNetworkPolicySpec, AdminPort, AdminPortNumber, AdminPortRange,
    BaselineAdminNetworkPolicy, BaselineAdminNetworkPolicySpec, ClusterDestination, ClusterEgressRule, ClusterIngressRule,
    ClusterNetworkPolicy, ClusterNetworkPolicySpec, ClusterPort, ClusterPortRange, ClusterProtocol, NamespacedPod, PodSubject, TierPeer,
};
use firebreak_policy::model::{
    Action, Answer, CidrBlock, Direction, LabelSelector, NamespaceScope, Peer, Peers, PolicyKey, PolicyKind, PortRange, Protocol, Service,
    Services, Subject, Tier, TieredPolicy, TieredRule,
};

/// BaselineAdminNetworkPolicy has no priority: it goes last in its tier.
const LAST: u16 = 1000;
/// `MaxLength` of a rule's name.
const NAME_CHARACTERS: usize = 100;
/// `MaxItems` of `networks`, and `MaxLength` of one of them.
const NETWORKS: usize = 25;

/// What differs between the two versions of the API.
#[derive(Clone, Copy)]
struct Version {
    allow: &'static str,
    passes: bool,
    /// `MaxItems` of rules, peers and ports.
    most: usize,
    namespace_selector_required: bool,
}

const ADMIN: Version = Version { allow: "Allow", passes: true, most: 100, namespace_selector_required: true };
const BASELINE: Version = Version { passes: false, ..ADMIN };
const CLUSTER: Version = Version { allow: "Accept", passes: true, most: 25, namespace_selector_required: false };

pub(super) fn admin(object: &AdminNetworkPolicy, problems: &mut Problems<'_>) -> TieredPolicy {
    let AdminNetworkPolicy { metadata, spec } = object;
    let AdminNetworkPolicySpec { priority, subject, ingress, egress } = spec;
    let root = At::ROOT;
    let at = root.field("spec");
    TieredPolicy {
        key: PolicyKey::cluster_scoped(PolicyKind::AdminNetworkPolicy, &metadata.name),
        tier: Tier::Admin,
        priority: parts::priority(*priority, &at.field("priority"), problems),
        mode: parts::mode(metadata, problems),
        subject: ADMIN.subject(subject, &at.field("subject"), problems),
        ingress: ADMIN.ingress(ingress.as_deref(), &at, problems),
        egress: ADMIN.egress(egress.as_deref(), &at, problems),
    }
}

pub(super) fn baseline(object: &BaselineAdminNetworkPolicy, problems: &mut Problems<'_>) -> TieredPolicy {
    let BaselineAdminNetworkPolicy { metadata, spec } = object;
    let BaselineAdminNetworkPolicySpec { subject, ingress, egress } = spec;
    let root = At::ROOT;
    let at = root.field("spec");
    if metadata.name != "default" {
        problems.add(&root.field("metadata").field("name"), "there is one BaselineAdminNetworkPolicy, and its name is `default`");
    }
    TieredPolicy {
        key: PolicyKey::cluster_scoped(PolicyKind::BaselineAdminNetworkPolicy, &metadata.name),
        tier: Tier::Baseline,
        priority: LAST,
        mode: parts::mode(metadata, problems),
        subject: BASELINE.subject(subject, &at.field("subject"), problems),
        ingress: BASELINE.ingress(ingress.as_deref(), &at, problems),
        egress: BASELINE.egress(egress.as_deref(), &at, problems),
    }
}

pub(super) fn cluster(object: &ClusterNetworkPolicy, problems: &mut Problems<'_>) -> TieredPolicy {
    let ClusterNetworkPolicy { metadata, spec } = object;
    let ClusterNetworkPolicySpec { tier, priority, subject, ingress, egress } = spec;
    let root = At::ROOT;
    let at = root.field("spec");
    let tier = match tier.as_str() {
        "Admin" => Tier::Admin,
        "Baseline" => Tier::Baseline,
        other => {
            problems.add(&at.field("tier"), format!("{other:?} is not known; use Admin or Baseline"));
            Tier::Admin
        }
    };
    let lists = [("ingress", ingress.as_ref().map(Vec::len)), ("egress", egress.as_ref().map(Vec::len))];
    for (field, count) in lists {
        CLUSTER.count(count.unwrap_or(0), "rules", &at.field(field), problems);
    }
    let list = at.field("ingress");
    let mut ingress_rules = Vec::new();
    for (position, ClusterIngressRule { name, action, from, protocols }) in ingress.iter().flatten().enumerate() {
        let at = list.index(position);
        let services = CLUSTER.protocols(protocols.as_deref(), &at.field("protocols"), problems);
        ingress_rules.push(CLUSTER.rule(name, action, (from, "from"), services, Direction::Ingress, &at, problems));
    }
    let list = at.field("egress");
    let mut egress_rules = Vec::new();
    for (position, ClusterEgressRule { name, action, to, protocols }) in egress.iter().flatten().enumerate() {
        let at = list.index(position);
        let services = CLUSTER.protocols(protocols.as_deref(), &at.field("protocols"), problems);
        let named = protocols.iter().flatten().any(|it| it.destination_named_port.is_some());
        no_names_outside(named, to, &at.field("protocols"), problems);
        egress_rules.push(CLUSTER.rule(name, action, (to, "to"), services, Direction::Egress, &at, problems));
    }
    TieredPolicy {
        key: PolicyKey::cluster_scoped(PolicyKind::ClusterNetworkPolicy, &metadata.name),
        tier,
        priority: parts::priority(*priority, &at.field("priority"), problems),
        mode: parts::mode(metadata, problems),
        subject: CLUSTER.subject(subject, &at.field("subject"), problems),
        ingress: ingress_rules,
        egress: egress_rules,
    }
}

/// The API's own rule: networks and nodes have no named ports.
fn no_names_outside(named: bool, peers: &[TierPeer], at: &At<'_>, problems: &mut Problems<'_>) {
    if named && peers.iter().any(|it| it.networks.is_some() || it.nodes.is_some()) {
        problems.add(at, "a named port goes with pods only, and this rule has a networks or nodes peer; make two rules of it");
    }
}

impl Version {
    fn count(self, count: usize, what: &str, at: &At<'_>, problems: &mut Problems<'_>) {
        if count > self.most {
            problems.add(at, format!("has {count} {what}; the API takes at most {}", self.most));
        }
    }

    fn ingress(self, rules: Option<&[AdminIngressRule]>, spec: &At<'_>, problems: &mut Problems<'_>) -> Vec<TieredRule> {
        let list = spec.field("ingress");
        self.count(rules.unwrap_or_default().len(), "rules", &list, problems);
        let mut converted = Vec::new();
        for (position, AdminIngressRule { name, action, from, ports }) in rules.into_iter().flatten().enumerate() {
            let at = list.index(position);
            let services = self.ports(ports.as_deref(), &at.field("ports"), problems);
            converted.push(self.rule(name, action, (from, "from"), services, Direction::Ingress, &at, problems));
        }
        converted
    }

    fn egress(self, rules: Option<&[AdminEgressRule]>, spec: &At<'_>, problems: &mut Problems<'_>) -> Vec<TieredRule> {
        let list = spec.field("egress");
        self.count(rules.unwrap_or_default().len(), "rules", &list, problems);
        let mut converted = Vec::new();
        for (position, AdminEgressRule { name, action, to, ports }) in rules.into_iter().flatten().enumerate() {
            let at = list.index(position);
            let services = self.ports(ports.as_deref(), &at.field("ports"), problems);
            no_names_outside(ports.iter().flatten().any(|it| it.named_port.is_some()), to, &at.field("ports"), problems);
            converted.push(self.rule(name, action, (to, "to"), services, Direction::Egress, &at, problems));
        }
        converted
    }

    fn subject(self, subject: &PodSubject, at: &At<'_>, problems: &mut Problems<'_>) -> Subject {
        let PodSubject { namespaces, pods } = subject;
        let nobody = || Subject { namespaces: LabelSelector::everything(), workloads: LabelSelector::everything() };
        match (namespaces, pods) {
            (Some(namespaces), None) => Subject { namespaces: parts::selector(namespaces, &at.field("namespaces"), problems), ..nobody() },
            (None, Some(pods)) => {
                let (namespaces, workloads) = self.namespaced_pod(pods, &at.field("pods"), problems);
                Subject { namespaces, workloads }
            }
            (None, None) | (Some(_), Some(_)) => {
                problems.add(at, "has to have exactly one of namespaces and pods");
                nobody()
            }
        }
    }

    fn namespaced_pod(self, pods: &NamespacedPod, at: &At<'_>, problems: &mut Problems<'_>) -> (LabelSelector, LabelSelector) {
        let NamespacedPod { namespace_selector, pod_selector } = pods;
        let field = at.field("namespaceSelector");
        let namespaces = match namespace_selector {
            Some(selector) => parts::selector(selector, &field, problems),
            None => {
                if self.namespace_selector_required {
                    problems.add(&field, "is required, but not there; `{}` is every namespace");
                }
                LabelSelector::everything()
            }
        };
        (namespaces, parts::selector(pod_selector, &at.field("podSelector"), problems))
    }

    #[allow(clippy::too_many_arguments)]
    fn rule(
        self,
        name: &Option<String>,
        action: &str,
        (peers, peers_field): (&[TierPeer], &str),
        services: Services,
        direction: Direction,
        at: &At<'_>,
        problems: &mut Problems<'_>,
    ) -> TieredRule {
        if name.as_ref().is_some_and(|name| name.chars().count() > NAME_CHARACTERS) {
            problems.add(&at.field("name"), format!("has more than {NAME_CHARACTERS} characters"));
        }
        let action = match action {
            "Deny" => Action::Deny(Answer::Drop),
            "Pass" if self.passes => Action::Pass,
            allow if allow == self.allow => Action::Allow,
            other => {
                let pass = if self.passes { " or Pass" } else { "" };
                let comma = if self.passes { "," } else { " or" };
                problems.add(&at.field("action"), format!("{other:?} is not known; use {}{comma} Deny{pass}", self.allow));
                Action::Deny(Answer::Drop)
            }
        };
        let list = at.field(peers_field);
        if peers.is_empty() {
            problems.add(&list, "is empty; name at least one peer");
        }
        self.count(peers.len(), "peers", &list, problems);
        let mut only = Vec::new();
        for (position, written) in peers.iter().enumerate() {
            self.peer(written, direction, &list.index(position), &mut only, problems);
        }
        TieredRule { name: name.clone().filter(|it| !it.is_empty()), action, peers: Peers::Only(only), services, reason: None }
    }

    fn peer(self, peer: &TierPeer, direction: Direction, at: &At<'_>, into: &mut Vec<Peer>, problems: &mut Problems<'_>) {
        let TierPeer { namespaces, pods, nodes, networks, domain_names } = peer;
        if domain_names.is_some() {
            problems
                .add(&at.field("domainNames"), "domain names are not taken by this version of Firebreak; give the addresses as networks");
            return;
        }
        let outside = [("nodes", nodes.is_some()), ("networks", networks.is_some())];
        for (field, _) in outside.into_iter().filter(|(_, present)| *present && direction == Direction::Ingress) {
            problems.add(&at.field(field), "goes with egress only; peers of ingress are namespaces or pods");
        }
        let forms = [namespaces.is_some(), pods.is_some(), nodes.is_some(), networks.is_some()];
        match forms.into_iter().filter(|present| *present).count() {
            // SEMANTICS 20: of a version that is not known here.
            0 => return into.push(Peer::Unknown),
            1 => {}
            _ => problems.add(at, "has more than one field; make one peer of each"),
        }
        if let Some(namespaces) = namespaces {
            let namespaces = NamespaceScope::Matching(parts::selector(namespaces, &at.field("namespaces"), problems));
            into.push(Peer::Workloads { namespaces, workloads: LabelSelector::everything() });
        }
        if let Some(pods) = pods {
            let (namespaces, workloads) = self.namespaced_pod(pods, &at.field("pods"), problems);
            into.push(Peer::Workloads { namespaces: NamespaceScope::Matching(namespaces), workloads });
        }
        if let Some(nodes) = nodes {
            into.push(Peer::Nodes(parts::selector(nodes, &at.field("nodes"), problems)));
        }
        if let Some(networks) = networks {
            networks_of(networks, &at.field("networks"), into, problems);
        }
    }

    fn ports(self, ports: Option<&[AdminPort]>, list: &At<'_>, problems: &mut Problems<'_>) -> Services {
        let Some(ports) = ports else { return Services::Any };
        if ports.is_empty() {
            problems.add(list, "is empty; name at least one port, or leave the field out for every port");
        }
        self.count(ports.len(), "ports", list, problems);
        let mut only = Vec::new();
        for (position, AdminPort { port_number, named_port, port_range }) in ports.iter().enumerate() {
            let at = list.index(position);
            match (port_number, named_port, port_range) {
                (Some(AdminPortNumber { protocol, port }), None, None) => {
                    let at = at.field("portNumber");
                    let protocol = protocol_of(protocol.as_deref(), &at, problems);
                    let port = note(validate::port_number(*port), &at.field("port"), problems);
                    only.extend(protocol.zip(port).map(|(protocol, port)| Service::Ports(protocol, PortRange::single(port))));
                }
                (None, Some(name), None) => named(name, &at.field("namedPort"), &mut only, problems),
                (None, None, Some(AdminPortRange { protocol, start, end })) => {
                    let at = at.field("portRange");
                    let protocol = protocol_of(protocol.as_deref(), &at, problems);
                    let range = range_of(*start, *end, &at, problems);
                    only.extend(protocol.zip(range).map(|(protocol, range)| Service::Ports(protocol, range)));
                }
                (_, _, _) => problems.add(&at, "has to have exactly one of portNumber, namedPort and portRange"),
            }
        }
        Services::Only(only)
    }

    fn protocols(self, protocols: Option<&[ClusterProtocol]>, list: &At<'_>, problems: &mut Problems<'_>) -> Services {
        let Some(protocols) = protocols else { return Services::Any };
        if protocols.is_empty() {
            problems.add(list, "is empty; name at least one protocol, or leave the field out for every protocol");
        }
        self.count(protocols.len(), "protocols", list, problems);
        let mut only = Vec::new();
        for (position, ClusterProtocol { tcp, udp, sctp, destination_named_port }) in protocols.iter().enumerate() {
            let at = list.index(position);
            match (tcp, udp, sctp, destination_named_port) {
                (Some(of), None, None, None) => destination(of, Protocol::TCP, &at.field("tcp"), &mut only, problems),
                (None, Some(of), None, None) => destination(of, Protocol::UDP, &at.field("udp"), &mut only, problems),
                (None, None, Some(of), None) => destination(of, Protocol::SCTP, &at.field("sctp"), &mut only, problems),
                (None, None, None, Some(name)) => named(name, &at.field("destinationNamedPort"), &mut only, problems),
                (_, _, _, _) => problems.add(&at, "has to have exactly one of tcp, udp, sctp and destinationNamedPort"),
            }
        }
        Services::Only(only)
    }
}

fn networks_of(networks: &[String], list: &At<'_>, into: &mut Vec<Peer>, problems: &mut Problems<'_>) {
    if networks.is_empty() {
        problems.add(list, "is empty; name at least one block");
    }
    if networks.len() > NETWORKS {
        problems.add(list, format!("has {} blocks; the API takes at most {NETWORKS}", networks.len()));
    }
    for (position, text) in networks.iter().enumerate() {
        let at = list.index(position);
        if networks.iter().take(position).any(|other| other == text) {
            problems.add(&at, format!("{text} is there twice; keep one"));
        }
        if let Some(cidr) = note(validate::cidr(text), &at, problems) {
            into.push(Peer::Cidr(CidrBlock { cidr, except: Vec::new() }));
        }
    }
}

/// The name with each protocol that it may have at the destination (SEMANTICS 19).
fn named(name: &str, at: &At<'_>, only: &mut Vec<Service>, problems: &mut Problems<'_>) {
    note(validate::port_name(name), at, problems);
    only.extend([Protocol::TCP, Protocol::UDP, Protocol::SCTP].map(|protocol| Service::Named(protocol, name.to_owned())));
}

fn destination(of: &ClusterDestination, protocol: Protocol, at: &At<'_>, only: &mut Vec<Service>, problems: &mut Problems<'_>) {
    let ClusterDestination { destination_port } = of;
    let field = at.field("destinationPort");
    match destination_port {
        None => problems.add(at, "is empty; give destinationPort"),
        Some(ClusterPort { number: Some(number), range: None }) => {
            let port = note(validate::port_number(*number), &field.field("number"), problems);
            only.extend(port.map(|port| Service::Ports(protocol, PortRange::single(port))));
        }
        Some(ClusterPort { number: None, range: Some(ClusterPortRange { start, end }) }) => {
            only.extend(range_of(*start, *end, &field.field("range"), problems).map(|range| Service::Ports(protocol, range)));
        }
        Some(ClusterPort { number: None, range: None } | ClusterPort { number: Some(_), range: Some(_) }) => {
            problems.add(&field, "has to have exactly one of number and range");
        }
    }
}

fn protocol_of(name: Option<&str>, at: &At<'_>, problems: &mut Problems<'_>) -> Option<Protocol> {
    match name {
        // SEMANTICS 19.
        None => Some(Protocol::TCP),
        Some(name) => note(validate::kubernetes_protocol(name), &at.field("protocol"), problems),
    }
}

fn range_of(start: i64, end: i64, at: &At<'_>, problems: &mut Problems<'_>) -> Option<PortRange> {
    let first = note(validate::port_number(start), &at.field("start"), problems);
    let last = note(validate::port_number(end), &at.field("end"), problems);
    let (first, last) = (first?, last?);
    if first >= last {
        problems.add(&at.field("end"), format!("{last} has to be greater than start, {first}; for one port give its number"));
        return None;
    }
    PortRange::new(first, last)
}
