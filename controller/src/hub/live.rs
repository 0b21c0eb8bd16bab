//! What the API asks of the hub.

use super::Hub;
use super::board::Progress;
use super::published::{Published, Target};
use super::sources::policy_key;
use super::wire;
use crate::api::live::{EndName, Live, LiveError, NodeQuery, Question, WorkloadQuery};
use crate::store::ObjectKey;
use firebreak_policy::Engine;
use firebreak_policy::Problem;
use firebreak_policy::model::{
    Direction, Endpoint, Family, Flow, NetworkAddress, NetworkName, NodeName, PolicyKey, PolicySet, Revision, Transport, Workload,
    WorkloadId, WorkloadSource,
};
use firebreak_policy::node_state::CompiledPeers;
use firebreak_policy::reserved::RESERVED_PREFIX;
use firebreak_proto::convert::{address_to_wire, addresses_to_wire};
use firebreak_proto::hash::{ContentHash, ObjectKey as HeldKey, ObjectKind};
use firebreak_proto::v1;
use firebreak_proto::workload::ReportedWorkload;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a request waits for the hub to take in a revision that the store has.
const PATIENCE: Duration = Duration::from_secs(10);

const NOT_IN_SYNC: LiveError = LiveError::Unavailable("the controller is starting and has not read its store yet; try again");

#[tonic::async_trait]
impl Live for Hub {
    async fn conditions(&self, objects: Vec<ObjectKey>, revision: Revision) -> Result<Vec<Vec<v1::Condition>>, LiveError> {
        let published = self.at_least(revision).await?;
        // Every node is asked, so only where somebody wants to know, and once.
        let mut reach = None;
        Ok(objects.iter().map(|key| object_conditions(&published, key, || self.realized(&published, key, &mut reach))).collect())
    }

    async fn workloads(&self, query: WorkloadQuery) -> Result<Vec<v1::WorkloadStatus>, LiveError> {
        let published = self.newest().ok_or(NOT_IN_SYNC)?;
        let WorkloadQuery { namespace, node, selector, after, limit } = query;
        let wanted = published.inventory.workloads.values().filter(|workload| {
            after.as_ref().is_none_or(|after| workload.id > *after)
                && namespace.as_ref().is_none_or(|namespace| workload.namespace == *namespace)
                && node.as_ref().is_none_or(|node| workload.id.node == *node)
                && selector.matches(&workload.labels)
        });
        Ok(wanted.take(limit).map(|workload| self.workload_status(&published, workload)).collect())
    }

    async fn nodes(&self, query: NodeQuery) -> Result<Vec<v1::NodeStatus>, LiveError> {
        let published = self.newest().ok_or(NOT_IN_SYNC)?;
        let NodeQuery { name, after, limit } = query;
        let wanted = published
            .inventory
            .nodes
            .keys()
            .filter(|node| after.as_ref().is_none_or(|after| *node > after) && name.as_ref().is_none_or(|name| *node == name));
        Ok(wanted.take(limit).map(|node| self.node_status(&published, node)).collect())
    }

    async fn observe(&self, node: NodeName, order: v1::Observe) -> Result<Option<v1::Observing>, LiveError> {
        let remedy = "`firebreak-agent observe` on the node does the same without a controller";
        // Told of by then as not done, it must not be done later.
        let until = Instant::now() + OBSERVE_PATIENCE;
        if !self.board().of(&node).is_some_and(|progress| progress.connected) || !self.board().order(&node, (order.clone(), until)) {
            return Err(LiveError::NotReady(format!("node {node} is not connected; {remedy}")));
        }
        let mut publications = self.publications();
        let told = publications.wait_for(|published| {
            let report = published.as_ref().and_then(|it| it.reported.get(&node)?.report.as_ref());
            // What it said before may look like what is asked for: only its answer to this order counts.
            report.and_then(|report| report.observe_answer.as_ref()).is_some_and(|answer| answer.revision == order.revision)
        });
        match tokio::time::timeout(OBSERVE_PATIENCE, told).await {
            Ok(Ok(published)) => {
                let report = published.as_ref().and_then(|it| it.reported.get(&node)?.report.as_ref());
                match report.and_then(|report| report.observe_answer.as_ref()).filter(|answer| !answer.refused.is_empty()) {
                    Some(answer) => Err(LiveError::NotReady(format!("node {node} did not follow the order: {}", answer.refused))),
                    None => Ok(report.and_then(|report| report.observing.clone())),
                }
            }
            Ok(Err(_)) => Err(LiveError::Unavailable("the controller is stopping")),
            Err(_) => Err(LiveError::NotReady(format!("node {node} did not say within {OBSERVE_PATIENCE:?} that it did so; {remedy}"))),
        }
    }

    async fn explain(&self, question: Question) -> Result<v1::ExplainResponse, LiveError> {
        let published = self.newest().ok_or(NOT_IN_SYNC)?;
        explain(&published, &question)
    }
}

impl Hub {
    async fn at_least(&self, revision: Revision) -> Result<Arc<Published>, LiveError> {
        let mut publications = self.publications();
        let reached = publications.wait_for(|published| published.as_ref().is_some_and(|it| it.revision >= revision));
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(Ok(published)) => published.clone().ok_or(NOT_IN_SYNC),
            Ok(Err(_)) => Err(LiveError::Unavailable("the controller is stopping")),
            Err(_) => Err(LiveError::Unavailable("the change is stored; the controller has not compiled it yet")),
        }
    }

    /// How many of the nodes that have something to enforce have all of it, and how fast the policy came to them.
    fn realized(&self, published: &Published, key: &ObjectKey, reach: &mut Option<Reach>) -> v1::Condition {
        let Reach { realized, nodes } = *reach.get_or_insert_with(|| self.reach(published));
        let took = self.board().took(key).map(|took| format!(", p99 {} ms", grouped(took.as_millis().max(1)))).unwrap_or_default();
        let message = format!("realized {}/{} nodes{took}", grouped(realized as u128), grouped(nodes as u128));
        let reason = if realized == nodes { "AllNodes" } else { "Pending" };
        condition("Realized", realized == nodes, reason, message)
    }

    fn reach(&self, published: &Published) -> Reach {
        let mut reach = Reach { realized: 0, nodes: 0 };
        for node in published.reported.keys().filter(|node| published.targets.contains_key(*node)) {
            reach.nodes += 1;
            reach.realized += usize::from(self.is_current(published, node));
        }
        reach
    }

    /// Whether a node has all that it is to have. A revision that changed nothing for it is not sent to it: it has that too.
    pub(crate) fn is_current(&self, published: &Published, node: &NodeName) -> bool {
        let Some(target) = published.targets.get_shared(node) else { return false };
        self.board().tells(node, |progress| {
            progress.acked.as_ref().is_some_and(|acked| Arc::ptr_eq(acked, target) || acked.hash == target.hash)
                && progress.failure.is_empty()
                // A generation that took effect without some of its objects is not what was asked for.
                && progress.refused.is_empty()
        })
    }

    fn workload_status(&self, published: &Published, workload: &Workload) -> v1::WorkloadStatus {
        let reported = published.reported.get(&workload.id.node).and_then(|node| node.workloads.get(&workload.id.container));
        // Its labels are those that select it, whoever gives them.
        let seen = match reported {
            Some(reported) => ReportedWorkload { workload: workload.clone(), ..ReportedWorkload::clone(reported) },
            None => ReportedWorkload {
                workload: workload.clone(),
                image_labels: Default::default(),
                image: String::new(),
                not_enforced: None,
                declared_place: String::new(),
            },
        };
        let known = published.compiled.workload(&workload.id);
        let policies = |direction| known.map(|(_, segment)| wire::policies(&segment.rules.policies(direction))).unwrap_or_default();
        let reason = self.not_enforced(published, workload, reported.is_some(), &seen);
        v1::WorkloadStatus {
            workload: Some(v1::Workload::from(&seen)),
            segment: known.map(|(_, segment)| segment.title.clone()).unwrap_or_default(),
            enforced: reason.is_none(),
            reason: reason.unwrap_or_default(),
            ingress_policies: policies(Direction::Ingress),
            egress_policies: policies(Direction::Egress),
            conditions: [workload_conflicts(published, workload), told_of_labels(published, &workload.id)].concat(),
        }
    }

    /// Why the workload's node does not enforce what is compiled for it; `None` if it does, as far as its last ack tells.
    fn not_enforced(&self, published: &Published, workload: &Workload, is_reported: bool, seen: &ReportedWorkload) -> Option<String> {
        let node = &workload.id.node;
        if workload.terminated {
            return Some("has ended".to_owned());
        }
        if workload.host_network {
            return Some("shares its node's network; policy does not apply to it".to_owned());
        }
        if let Some(reason) = &seen.not_enforced {
            return Some(reason.clone());
        }
        let Some(progress) = self.board().of(node) else {
            return Some(match (published.reported.contains_key(node), workload.source) {
                (true, _) => format!("node {node} has not connected since the controller started"),
                (false, WorkloadSource::Pod | WorkloadSource::Manifest | WorkloadSource::Docker) => {
                    format!("no agent of node {node} was ever seen")
                }
            });
        };
        if !is_reported {
            return Some(format!("the agent of node {node} does not find it"));
        }
        let lost = if progress.connected { "" } else { ", and the node is lost" };
        if !progress.failure.is_empty() {
            return Some(format!("the kernel of node {node} refused the last change: {}", progress.failure));
        }
        let enforcing = published.reported.get(node).and_then(|it| it.report.as_ref()).is_some_and(|report| report.enforcing);
        if !enforcing {
            return Some(format!("node {node} says that it is not enforcing; `firebreak nodes` tells why{lost}"));
        }
        let report = published.reported.get(node).and_then(|it| it.report.as_ref());
        if let Some(observing) = report.and_then(|report| report.observing.as_ref()) {
            let until = observing.until.as_ref().and_then(|it| jiff::Timestamp::new(it.seconds, it.nanos).ok());
            let until = until.map(|until| format!(" until {until:.0}")).unwrap_or_default();
            return Some(format!(
                "node {node} observes{until} by order of {} ({}): denied traffic passes{lost}",
                observing.principal, observing.reason
            ));
        }
        // Nobody knows what a node does that is not heard of: its agent may have been stopped, its tables removed.
        if !progress.connected {
            let since = progress.last_seen.map(|seen| format!(" since {seen:.0}")).unwrap_or_default();
            return Some(format!("node {node} is lost{since}; when last heard, it enforced"));
        }
        let target = published.targets.get(node)?;
        match &progress.acked {
            None => Some(format!("node {node} has not acked a generation yet{lost}")),
            Some(acked) if concerns(acked, &workload.id, target) => {
                // Who is in a group may have changed.
                let late = self.board().lag(node, Instant::now()).filter(|lag| *lag > LATE);
                late.map(|lag| format!("node {node} lacks a change for {} s{lost}", lag.as_secs()))
            }
            Some(_) => Some(format!("node {node} is at generation {}, which lacks the newest change{lost}", progress.acked_generation)),
        }
        .or_else(|| refused(&progress, &workload.id, target))
    }

    fn node_status(&self, published: &Published, node: &NodeName) -> v1::NodeStatus {
        let progress = self.board().of(node);
        let reported = published.reported.get(node);
        let report = reported.and_then(|it| it.report.clone()).unwrap_or_default();
        let connection = match (&progress, reported) {
            (Some(Progress { connected: true, .. }), _) => v1::NodeConnection::Connected,
            (Some(_), _) | (None, Some(_)) => v1::NodeConnection::Lost,
            (None, None) => v1::NodeConnection::NeverSeen,
        };
        let lag = self.board().lag(node, Instant::now()).filter(|_| reported.is_some());
        let progress = progress.unwrap_or_default();
        let is_current = self.is_current(published, node);
        let inventory = published.inventory.nodes.get(node);
        v1::NodeStatus {
            name: node.to_string(),
            connection: connection.into(),
            target_revision: published.revision.0,
            acked_revision: if is_current { published.revision.0 } else { progress.acked_revision.0 },
            sent_generation: progress.sent_generation.0,
            acked_generation: progress.acked_generation.0,
            lag_milliseconds: lag.map_or(0, |lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX).max(1)),
            workloads: reported.map_or(0, |it| u32::try_from(it.workloads.len()).unwrap_or(u32::MAX)),
            conflicts: conflicts(published, node),
            warnings: report.warnings,
            refused: progress.refused,
            failure: progress.failure,
            last_seen: progress.last_seen.map(timestamp),
            agent_version: progress.agent_version,
            kernel: report.kernel,
            addresses: inventory.map(|it| addresses_to_wire(&it.addresses)).unwrap_or_default(),
            labels: inventory.map(|it| it.labels.0.clone().into_iter().collect()).unwrap_or_default(),
            enforcing: report.enforcing && connection == v1::NodeConnection::Connected,
            observing: report.observing,
        }
    }
}

/// A node that lacks any change for so long is not said to enforce what its workloads are to have.
const LATE: Duration = Duration::from_secs(10);

/// For how long a node may take to say that it observes.
const OBSERVE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// A moment as it travels.
pub(crate) fn timestamp(at: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// How many nodes have all that they are to have, of how many.
#[derive(Clone, Copy, Debug)]
struct Reach {
    realized: usize,
    nodes: usize,
}

/// `4,998`.
fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn object_conditions(published: &Published, key: &ObjectKey, realized: impl FnOnce() -> v1::Condition) -> Vec<v1::Condition> {
    let mut conditions = Vec::new();
    if let Some(reason) = published.unreadable.get(key) {
        conditions.push(condition("Degraded", true, "Unreadable", reason.clone()));
    }
    let Some(policy) = policy_key(key).filter(|policy| is_in(&published.policies, policy)) else {
        if conditions.is_empty() {
            conditions.push(condition("Accepted", true, "Valid", String::new()));
        }
        return conditions;
    };
    conditions.push(condition("Accepted", true, "Valid", String::new()));
    let problems = published.compiled.problems().get(&policy).map(Vec::as_slice).unwrap_or_default();
    for problem in problems {
        let (reason, message) = match problem {
            Problem::MissingAddressGroup(group) => (
                "MissingAddressGroup",
                format!(
                    "AddressGroup {group} is not there: until it is, rules that allow it allow nobody, and rules that deny it deny everybody"
                ),
            ),
            Problem::UnknownPeer => {
                ("UnknownPeer", "a rule has a peer of a kind that is not known here: it allows nobody, or denies everybody".to_owned())
            }
            Problem::SamePriority(other) => {
                ("SamePriority", format!("{other} has the same priority in the same tier: the first by kind and name goes first"))
            }
        };
        conditions.push(condition("Degraded", true, reason, message));
    }
    conditions.push(realized());
    conditions
}

fn is_in(policies: &PolicySet, policy: &PolicyKey) -> bool {
    policies.policies.contains_key(policy) || policies.tiered.contains_key(policy)
}

fn condition(kind: &str, status: bool, reason: &str, message: String) -> v1::Condition {
    v1::Condition { r#type: kind.to_owned(), status, reason: reason.to_owned(), message }
}

/// Whether an acked state has the workload as the target has it.
fn concerns(acked: &Target, id: &WorkloadId, target: &Target) -> bool {
    let parts = |of: &Target| -> Option<Vec<ContentHash>> {
        let endpoint = of.state.endpoints.get(id)?;
        let hash = |kind, id: &str| of.objects.get(&HeldKey::new(kind, id));
        Some(vec![hash(ObjectKind::Endpoint, id.container.as_str())?, hash(ObjectKind::Segment, &endpoint.segment.0)?])
    };
    acked.hash == target.hash || parts(acked).is_some_and(|acked| parts(target) == Some(acked))
}

fn refused(progress: &Progress, id: &WorkloadId, target: &Target) -> Option<String> {
    let endpoint = target.state.endpoints.get(id)?;
    let segment = target.state.segments.get(&endpoint.segment);
    let names_group = |of: &str| {
        let peers = segment.into_iter().flat_map(|segment| segment.rules.peers());
        peers.into_iter().any(|peers| match peers {
            CompiledPeers::Any => false,
            CompiledPeers::Groups(groups) => groups.iter().any(|group| &*group.0 == of),
        })
    };
    let is_own = |of: &str| of == id.container.as_str() || of == &*endpoint.segment.0 || names_group(of);
    let refused = progress.refused.iter().find(|it| is_own(&it.id))?;
    Some(format!("its node refused {}: {}", refused.id, refused.reason))
}

/// What was made of its labels, where it is not what somebody wrote.
fn told_of_labels(published: &Published, id: &WorkloadId) -> Vec<v1::Condition> {
    let Some(given) = published.labels.get(id) else { return Vec::new() };
    let list = |words: &BTreeSet<String>| words.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let ignored = (!given.ignored.is_empty()).then(|| {
        let message =
            format!("its own labels {} are passed over: labels below {RESERVED_PREFIX} come from LabelRules only", list(&given.ignored));
        condition("ReservedLabels", true, "Ignored", message)
    });
    let contested = given.contested.iter().map(|(key, rules)| {
        let message = format!("LabelRule {} would give other values of {key}: the first rule by name goes first", list(rules));
        condition("ReservedLabels", true, "Contested", message)
    });
    ignored.into_iter().chain(contested).collect()
}

fn workload_conflicts(published: &Published, workload: &Workload) -> Vec<v1::Condition> {
    let conflicts = published.compiled.conflicts();
    let claimed = workload.addresses.iter().filter_map(|at| conflicts.get(at).map(|claimants| (at, claimants)));
    claimed
        .map(|(at, claimants)| {
            let others: Vec<String> = claimants.iter().filter(|it| **it != workload.id).map(ToString::to_string).collect();
            let whom = if others.is_empty() { "a node".to_owned() } else { others.join(", ") };
            condition(
                "AddressConflict",
                true,
                "ClaimedTwice",
                format!("{at} is claimed by {whom} too; it is nobody's peer until that ends"),
            )
        })
        .collect()
}

fn conflicts(published: &Published, node: &NodeName) -> Vec<v1::AddressConflict> {
    let concerned = published.compiled.conflicts().iter().filter(|(_, claimants)| claimants.iter().any(|id| id.node == *node));
    concerned
        .map(|(at, claimants)| v1::AddressConflict {
            address: Some(v1::NetworkAddress { network: at.network.to_string(), address: address_to_wire(at.address) }),
            claimants: claimants.iter().map(v1::WorkloadId::from).collect(),
        })
        .collect()
}

fn explain(published: &Published, question: &Question) -> Result<v1::ExplainResponse, LiveError> {
    let engine = Engine::of(Arc::clone(&published.compiled), Arc::clone(&published.inventory));
    let from = end(published, &question.from, "from")?;
    let to = end(published, &question.to, "to")?;
    let transport = in_family(question.transport, &from, &to, published);
    let flow = Flow { from: from.clone(), to: to.clone(), transport };
    let verdict = engine.evaluate(&flow).map_err(|error| LiveError::NotFound(error.to_string()))?;
    Ok(v1::ExplainResponse {
        verdict: Some(wire::flow_verdict(&verdict)),
        source: Some(peer(published, &from)),
        destination: Some(peer(published, &to)),
        revision: published.revision.0,
    })
}

/// Somebody who asks for ICMP between ends that only have IPv6 means ICMPv6, and the other way round.
fn in_family(transport: Transport, from: &Endpoint, to: &Endpoint, published: &Published) -> Transport {
    let has = |end: &Endpoint, family| match end {
        Endpoint::Address(address) => Family::of(*address) == family,
        Endpoint::Workload(id) => {
            published.inventory.workloads.get(id).is_some_and(|it| it.addresses.iter().any(|at| Family::of(at.address) == family))
        }
    };
    match transport {
        Transport::Icmp { family, kind, code } if Transport::ping(family) == transport && !(has(from, family) && has(to, family)) => {
            let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
            if has(from, other) && has(to, other) { Transport::ping(other) } else { Transport::Icmp { family, kind, code } }
        }
        Transport::Icmp { .. } | Transport::Port(..) | Transport::Other(_) => transport,
    }
}

fn end(published: &Published, name: &EndName, field: &'static str) -> Result<Endpoint, LiveError> {
    let EndName::Workload { namespace, name, node } = name else {
        let EndName::Address(address) = name else { return Err(LiveError::NotFound(format!("{field}: names nobody"))) };
        return Ok(Endpoint::Address(*address));
    };
    let of_that_name = published.inventory.workloads.values().filter(|it| it.name == *name && !it.terminated);
    let (here, elsewhere): (Vec<&Workload>, Vec<&Workload>) = of_that_name.partition(|it| it.namespace == *namespace);
    let found: Vec<&Workload> = here.into_iter().filter(|it| node.as_ref().is_none_or(|node| it.id.node == *node)).collect();
    match found.as_slice() {
        [only] => Ok(Endpoint::Workload(only.id.clone())),
        [] => {
            let hint: Vec<String> = elsewhere.iter().take(5).map(|it| format!("{}/{}", it.namespace, it.name)).collect();
            let hint = if hint.is_empty() {
                "`firebreak get workloads` lists them".to_owned()
            } else {
                format!("did you mean {}?", hint.join(", "))
            };
            Err(LiveError::NotFound(format!("{field}: no workload is called {namespace}/{name}; {hint}")))
        }
        // Replicas of one segment are judged alike, so any of them answers for all.
        [first, rest @ ..] if rest.iter().all(|it| alike(published, first, it)) => Ok(Endpoint::Workload(first.id.clone())),
        several => {
            let names: Vec<String> = several.iter().take(8).map(|it| format!("{}/{}@{}", it.namespace, it.name, it.id.node)).collect();
            Err(LiveError::Unclear { field, reason: format!("{namespace}/{name} fits several workloads; name one: {}", names.join(", ")) })
        }
    }
}

fn alike(published: &Published, one: &Workload, other: &Workload) -> bool {
    let segment = |workload: &Workload| published.compiled.workload(&workload.id).map(|(_, segment)| segment.id.clone());
    one.labels == other.labels && one.id.node == other.id.node && segment(one) == segment(other)
}

fn peer(published: &Published, end: &Endpoint) -> v1::Peer {
    match end {
        Endpoint::Workload(id) => match published.inventory.workloads.get(id) {
            Some(workload) => wire::workload_peer(workload, workload.addresses.first().map(|at| at.address)),
            None => v1::Peer::default(),
        },
        Endpoint::Address(address) => address_peer(published, *address),
    }
}

fn address_peer(published: &Published, address: IpAddr) -> v1::Peer {
    let at = NetworkAddress { network: NetworkName::default_network(), address };
    let holders: Vec<&Workload> =
        published.inventory.workloads.values().filter(|it| !it.terminated && !it.host_network && it.addresses.contains(&at)).collect();
    if let [only] = holders.as_slice() {
        return wire::workload_peer(only, Some(address));
    }
    let node = published.inventory.nodes.values().find(|node| node.addresses.contains(&address));
    v1::Peer {
        address: address_to_wire(address),
        node: node.map(|node| node.name.to_string()).unwrap_or_default(),
        note: if holders.len() > 1 { "address claimed by two workloads".to_owned() } else { String::new() },
        ..v1::Peer::default()
    }
}
