//! A made-up large company: namespaces of teams, apps in them, deployments whose pods are spread over the nodes, who admits whom, and
//! the changes of its days. The same seed gives the same company and the same changes.

use firebreak_proto::v1;
use firebreak_tests::random::SplitMix;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Apps of one team.
const APPS_PER_TEAM: usize = 10;

/// Pods of a deployment: what one change of a pod concerns, its peers' nodes and its own, is 20 nodes on average.
const REPLICAS: std::ops::RangeInclusive<u32> = 8..=30;

/// The platform team's pods that everybody admits: what a change of one of them concerns is every node.
const MONITORS: usize = 20;

/// How large it is.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Size {
    /// Nodes, each with an agent.
    pub(crate) agents: u32,
    /// Pods on each node that the API tells of, beside what the agent itself reports.
    pub(crate) pods: u32,
    /// Where the random numbers begin.
    pub(crate) seed: u64,
}

/// The company as it is now.
#[derive(Debug)]
pub(crate) struct Company {
    agents: u32,
    apps: Vec<App>,
    pods: Vec<Pod>,
    /// Indexes into `pods` that everybody admits.
    monitors: Vec<usize>,
    random: Random,
    next_address: u32,
}

#[derive(Debug)]
struct App {
    team: usize,
    number: usize,
    pods: Vec<usize>,
    /// The app that it admits.
    admits: usize,
    /// The apps that admit it.
    admitted_by: Vec<usize>,
}

#[derive(Debug)]
struct Pod {
    name: String,
    /// `None` is the platform team's.
    app: Option<usize>,
    node: u32,
    address: u32,
}

/// A change, and whom it concerns.
#[derive(Debug)]
pub(crate) struct Change {
    /// The object to apply.
    pub(crate) object: v1::Object,
    /// The nodes whose state it changes.
    pub(crate) concerned: Concerned,
}

/// The nodes that a change is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Concerned {
    /// These.
    Some(BTreeSet<u32>),
    /// Every node.
    All,
}

impl Concerned {
    /// How many of `agents`.
    pub(crate) fn count(&self, agents: u32) -> u32 {
        match self {
            // At most as many as there are agents.
            Self::Some(nodes) => u32::try_from(nodes.len()).unwrap_or(agents),
            Self::All => agents,
        }
    }
}

impl Company {
    /// Founds it.
    pub(crate) fn new(size: Size) -> Self {
        let Size { agents, pods, seed } = size;
        let mut company = Self {
            agents,
            apps: Vec::new(),
            pods: Vec::new(),
            monitors: Vec::new(),
            random: Random(SplitMix::new(seed)),
            // The nodes' own are in 10.192.0.0/10.
            next_address: u32::from(Ipv4Addr::new(10, 0, 1, 0)),
        };
        // Each round puts one pod on every node, in another order.
        let mut places = Vec::new();
        for _ in 0..pods {
            let mut round: Vec<u32> = (0..agents).collect();
            company.random.shuffle(&mut round);
            places.extend(round);
        }
        let monitors = MONITORS.min(places.len() / 4);
        for (number, node) in places.drain(..monitors).enumerate() {
            let index = company.pod(format!("monitor-{number}"), None, node);
            company.monitors.push(index);
        }
        while !places.is_empty() {
            let number = company.apps.len();
            let replicas = company.random.between(*REPLICAS.start(), *REPLICAS.end()) as usize;
            let app =
                App { team: number / APPS_PER_TEAM, number: number % APPS_PER_TEAM, pods: Vec::new(), admits: 0, admitted_by: Vec::new() };
            company.apps.push(app);
            for (replica, node) in places.drain(..replicas.min(places.len())).enumerate() {
                let index = company.pod(format!("a{}-{replica}", number % APPS_PER_TEAM), Some(number), node);
                if let Some(app) = company.apps.get_mut(number) {
                    app.pods.push(index);
                }
            }
        }
        company.make_friends();
        company
    }

    /// Each app admits the next one of its team; the first of a team the first of another.
    fn make_friends(&mut self) {
        let count = self.apps.len();
        for number in 0..count {
            let team = number / APPS_PER_TEAM;
            let in_team = (count - team * APPS_PER_TEAM).min(APPS_PER_TEAM);
            let admits = if number % APPS_PER_TEAM == 0 {
                (number + APPS_PER_TEAM) % (count.div_ceil(APPS_PER_TEAM) * APPS_PER_TEAM)
            } else {
                team * APPS_PER_TEAM + (number % APPS_PER_TEAM + 1) % in_team
            };
            let admits = admits.min(count - 1);
            if let Some(app) = self.apps.get_mut(number) {
                app.admits = admits;
            }
            if let Some(admitted) = self.apps.get_mut(admits) {
                admitted.admitted_by.push(number);
            }
        }
    }

    fn pod(&mut self, name: String, app: Option<usize>, node: u32) -> usize {
        let address = self.address();
        self.pods.push(Pod { name, app, node, address });
        self.pods.len() - 1
    }

    fn address(&mut self) -> u32 {
        self.next_address += 1;
        self.next_address
    }

    /// How many pods, apps and policies there are.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.pods.len(), self.apps.len(), self.apps.len() + 1)
    }

    /// Everything that the API is to know at first.
    pub(crate) fn objects(&self) -> Vec<v1::Object> {
        let mut objects = vec![namespace("platform", "platform"), monitored_policy()];
        for team in 0..self.apps.len().div_ceil(APPS_PER_TEAM) {
            objects.push(namespace(&space(team), &space(team)));
        }
        objects.extend(self.apps.iter().map(|app| self.policy(app)));
        objects.extend(self.pods.iter().map(|pod| self.object(pod)));
        objects
    }

    /// Further policies of the apps, so many: each lets in the app after the next one of its team.
    pub(crate) fn more_policies(&self, count: usize) -> Vec<v1::Object> {
        let apps = self.apps.iter().cycle().take(if self.apps.is_empty() { 0 } else { count });
        let policy = |(number, app): (usize, &App)| {
            let peer = json!({"workloads": {"matchLabels": {"app": format!("a{}", (app.number + 2) % APPS_PER_TEAM)}}});
            let rules = json!([{"from": [peer], "ports": [{"protocol": "TCP", "port": 8443}]}]);
            segment_policy(&space(app.team), &format!("more-{number}"), &format!("a{}", app.number), &rules)
        };
        apps.enumerate().map(policy).collect()
    }

    /// A policy that is always there, by which one can ask how many nodes are in sync.
    pub(crate) fn any_policy() -> v1::ObjectRef {
        v1::ObjectRef { kind: "SegmentPolicy".to_owned(), namespace: "platform".to_owned(), name: "node-agent".to_owned() }
    }

    fn policy(&self, app: &App) -> v1::Object {
        let admits = self.apps.get(app.admits).map_or(0, |admitted| admitted.number);
        let team = self.apps.get(app.admits).map_or(0, |admitted| admitted.team);
        let mut peer = json!({"workloads": {"matchLabels": {"app": format!("a{admits}")}}});
        if team != app.team {
            peer["namespaces"] = json!({"matchLabels": {"team": space(team)}});
        }
        let rules = json!([
            {"from": [peer], "ports": [{"protocol": "TCP", "port": 8080}]},
            {"from": [monitors()], "ports": [{"protocol": "TCP", "port": 9090}]},
        ]);
        let name = format!("a{}", app.number);
        segment_policy(&space(app.team), &name, &name, &rules)
    }

    fn object(&self, pod: &Pod) -> v1::Object {
        let app = pod.app.and_then(|app| self.apps.get(app));
        let (namespace, label) = match app {
            Some(app) => (space(app.team), format!("a{}", app.number)),
            None => ("platform".to_owned(), "monitor".to_owned()),
        };
        let address = Ipv4Addr::from_bits(pod.address).to_string();
        let labels = json!({"app": label, "env": "prod", "pod-template-hash": format!("{:08x}", pod.address)});
        object(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": pod.name, "labels": labels},
            "spec": {"nodeName": node(pod.node)},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        }))
    }

    /// A pod of some deployment is replaced by one with an address that nobody had.
    pub(crate) fn roll(&mut self) -> Option<Change> {
        let apps = u32::try_from(self.apps.len()).ok()?;
        let number = self.random.below(apps) as usize;
        let app = self.apps.get(number)?;
        let choice = self.random.below(u32::try_from(app.pods.len()).ok()?) as usize;
        let index = *app.pods.get(choice)?;
        let peers = app.admitted_by.iter().filter_map(|app| self.apps.get(*app)).flat_map(|app| &app.pods);
        let mut concerned: BTreeSet<u32> = peers.filter_map(|pod| self.pods.get(*pod)).map(|pod| pod.node).collect();
        concerned.insert(self.pods.get(index)?.node);
        Some(Change { object: self.moved(index)?, concerned: Concerned::Some(concerned) })
    }

    /// A pod that everybody admits is replaced.
    pub(crate) fn roll_monitor(&mut self) -> Option<Change> {
        let choice = self.random.below(u32::try_from(self.monitors.len()).ok()?) as usize;
        let index = *self.monitors.get(choice)?;
        Some(Change { object: self.moved(index)?, concerned: Concerned::All })
    }

    /// One of many changes: in a hundred, one that concerns everybody.
    pub(crate) fn change(&mut self) -> Option<Change> {
        if self.random.below(100) == 0 { self.roll_monitor() } else { self.roll() }
    }

    fn moved(&mut self, index: usize) -> Option<v1::Object> {
        let address = self.address();
        self.pods.get_mut(index)?.address = address;
        self.pods.get(index).map(|pod| self.object(pod))
    }

    /// How many agents there are.
    pub(crate) fn agents(&self) -> u32 {
        self.agents
    }
}

/// The name of a node.
pub(crate) fn node(number: u32) -> String {
    format!("node-{number:05}")
}

/// A node's own address.
pub(crate) fn node_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 192, 0, 0)) + 1 + number)
}

/// The address of the workload that the node's agent reports itself.
pub(crate) fn agent_workload_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 224, 0, 0)) + 1 + number)
}

fn space(team: usize) -> String {
    format!("team-{team}")
}

fn monitors() -> Value {
    json!({"namespaces": {"matchLabels": {"team": "platform"}}, "workloads": {"matchLabels": {"app": "monitor"}}})
}

fn monitored_policy() -> v1::Object {
    segment_policy("platform", "node-agent", "node-agent", &json!([{"from": [monitors()], "ports": [{"protocol": "TCP", "port": 9100}]}]))
}

fn segment_policy(namespace: &str, name: &str, app: &str, ingress: &Value) -> v1::Object {
    object(&json!({
        "apiVersion": "firebreak.dev/v1alpha1", "kind": "SegmentPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"appliesTo": {"matchLabels": {"app": app}}, "ingress": ingress},
    }))
}

fn namespace(name: &str, team: &str) -> v1::Object {
    object(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}}))
}

fn object(value: &Value) -> v1::Object {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    v1::Object {
        api_version: text(&value["apiVersion"]),
        kind: text(&value["kind"]),
        namespace: text(&value["metadata"]["namespace"]),
        name: text(&value["metadata"]["name"]),
        json: value.to_string().into(),
        ..v1::Object::default()
    }
}

/// Choices of a seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(SplitMix);

impl Random {
    /// From 0 to `bound` less one; 0 for a bound of 0.
    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(((self.0.bits() >> 32) * u64::from(bound)) >> 32).unwrap_or(0)
    }

    fn between(&mut self, least: u32, most: u32) -> u32 {
        least + self.below(most - least + 1)
    }

    fn shuffle(&mut self, items: &mut [u32]) {
        for last in (1..items.len()).rev() {
            let other = self.below(u32::try_from(last + 1).unwrap_or(u32::MAX)) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SIZE: Size = Size { agents: 500, pods: 8, seed: 7 };

    #[test]
    fn one_seed_is_one_company_and_a_change_concerns_some_twenty_nodes() {
        let (mut one, mut other) = (Company::new(SIZE), Company::new(SIZE));
        assert_eq!(one.objects(), other.objects());
        assert_ne!(one.objects(), Company::new(Size { seed: 8, ..SIZE }).objects());
        let mut nodes = 0;
        for _ in 0..2_000 {
            let (a, b) = (one.roll().unwrap(), other.roll().unwrap());
            assert_eq!((&a.object, &a.concerned), (&b.object, &b.concerned));
            nodes += a.concerned.count(SIZE.agents);
        }
        assert!((16 * 2_000..24 * 2_000).contains(&nodes), "{} on average", nodes / 2_000);
        let all = (0..10_000).filter(|_| one.change().unwrap().concerned == Concerned::All).count();
        assert!((50..200).contains(&all), "{all} of 10,000 concern everybody");
    }

    #[test]
    fn every_node_runs_as_many_pods_and_every_address_is_somebodys_own() {
        let company = Company::new(SIZE);
        let mut by_node = std::collections::BTreeMap::new();
        company.pods.iter().for_each(|pod| *by_node.entry(pod.node).or_insert(0) += 1);
        assert_eq!(by_node.into_values().collect::<BTreeSet<_>>(), BTreeSet::from([8]));
        let addresses: BTreeSet<u32> = company.pods.iter().map(|pod| pod.address).collect();
        assert_eq!(addresses.len(), company.pods.len());
        assert!(*addresses.last().unwrap() < u32::from(node_address(0)));
    }
}
