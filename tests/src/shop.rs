//! A small shop over two nodes, for tests: web and stranger on a bridged node, api and db on a routed one.

use crate::lab::{Lab, Node, Topology, Workload};
use crate::server::Servers;
use crate::system::{Agent, Controller};
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::time::Duration;
use tempfile::TempDir;

/// The ports that every workload answers on, over TCP and UDP.
pub const PORTS: [u16; 3] = [80, 5432, 9000];

/// Who lives where: name, node.
const WORKLOADS: [(&str, &str); 4] = [("web", "node-a"), ("stranger", "node-a"), ("api", "node-b"), ("db", "node-b")];

/// Everything that runs; dropped in this order.
#[derive(Debug)]
pub struct Shop {
    /// Agents by node name.
    pub agents: BTreeMap<&'static str, Agent>,
    /// The controller.
    pub controller: Controller,
    servers: Vec<Servers>,
    /// Workloads by name, all in namespace `shop` with label `app`.
    pub workloads: BTreeMap<&'static str, Workload>,
    /// Nodes by name.
    pub nodes: BTreeMap<&'static str, Node>,
    /// The lab.
    pub lab: Lab,
    /// Where databases, sockets and logs are.
    pub folder: TempDir,
}

impl Shop {
    /// Starts everything and waits until all workloads are enforced, without any policy. Names begin with `prefix` and the process id.
    ///
    /// # Errors
    /// What did not come up.
    pub fn start(prefix: &str) -> anyhow::Result<Self> {
        Self::start_with(prefix, &[])
    }

    /// The same, with further arguments for the agents.
    ///
    /// # Errors
    /// As [`Shop::start`].
    pub fn start_with(prefix: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let prefix = &format!("{prefix}{}", std::process::id());
        let folder = tempfile::tempdir()?;
        let mut lab = Lab::new(prefix)?;
        let mut nodes = BTreeMap::from([("node-a", lab.node("a", Topology::Bridged)?), ("node-b", lab.node("b", Topology::Routed)?)]);
        lab.connect(&nodes.values().collect::<Vec<_>>())?;
        let mut workloads = BTreeMap::new();
        let mut manifests = String::new();
        for (name, node) in WORKLOADS {
            let namespace = format!("{prefix}-{name}");
            workloads.insert(name, nodes.get_mut(node).context("the node is there")?.workload(&namespace)?);
            manifests.push_str(&manifest(name, node, &namespace, &format!("app: {name}")));
        }
        let servers = workloads.values().map(|it| Servers::start(&it.namespace, &PORTS, &PORTS)).collect::<anyhow::Result<_>>()?;
        let controller = Controller::start(&lab.core, folder.path())?;
        controller.apply_quietly(&manifests)?;
        let mut agents = BTreeMap::new();
        for (name, node) in &nodes {
            agents.insert(*name, Agent::start(node, name, folder.path(), arguments)?);
        }
        let shop = Self { agents, controller, servers, workloads, nodes, lab, folder };
        shop.wait_enforced()?;
        Ok(shop)
    }

    /// Waits until every workload is enforced.
    ///
    /// # Errors
    /// Which one is not, and why.
    pub fn wait_enforced(&self) -> anyhow::Result<Duration> {
        let names: Vec<String> = WORKLOADS.iter().map(|(name, _)| format!("shop/{name}")).collect();
        self.controller.wait_enforced(&names.iter().map(String::as_str).collect::<Vec<_>>(), Duration::from_secs(30))
    }

    /// A workload by name.
    ///
    /// # Panics
    /// If the shop has none of that name: a mistake in the test.
    #[allow(clippy::panic, reason = "a mistake in the test")]
    pub fn workload(&self, name: &str) -> &Workload {
        self.workloads.get(name).unwrap_or_else(|| panic!("the shop has no workload {name}"))
    }

    /// How many server groups answer.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }
}

/// A `Workload` manifest in namespace `shop`.
pub fn manifest(name: &str, node: &str, namespace: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: firebreak.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{{labels}}}\n\
         spec:\n  node: {node}\n  networkNamespace: {namespace}\n"
    )
}

/// A `SegmentPolicy` in namespace `shop` with this spec, indented by two.
pub fn policy(name: &str, spec: &str) -> String {
    format!("---\napiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n{spec}\n")
}

/// db answers api on 5432/tcp and ping, and starts nothing; web may only call api on 80/tcp.
pub fn usual_policies() -> String {
    policy(
        "db",
        "  appliesTo: {matchLabels: {app: db}}\n  ingress:\n  - name: from-api\n    from: [{workloads: {matchLabels: {app: api}}}]\n    ports:\n    \
         - {protocol: TCP, port: 5432}\n    - icmp: {family: IPv4, type: 8}\n    - icmp: {family: IPv6, type: 128}\n  egress: []",
    ) + &policy(
        "web",
        "  appliesTo: {matchLabels: {app: web}}\n  egress:\n  - name: to-api\n    to: [{workloads: {matchLabels: {app: api}}}]\n    ports:\n    \
         - {protocol: TCP, port: 80}\n    - {protocol: UDP, port: 80}",
    )
}
