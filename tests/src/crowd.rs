//! A node with many local workloads and an agent, for what memory costs.

use crate::lab::{Lab, Node, Topology, Workload};
use crate::system::{Agent, Controller};
use anyhow::{Context as _, ensure};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the agent may take to know everything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it is left alone before its memory counts as idle.
pub const QUIET: Duration = Duration::from_secs(5);

/// The node and all that is on it. Dropped in this order.
#[derive(Debug)]
pub struct Crowd {
    /// The agent.
    pub agent: Agent,
    /// The controller.
    pub controller: Controller,
    workloads: Vec<Workload>,
    node: Node,
    _lab: Lab,
}

/// Memory of the agent's processes, in bytes of resident set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// The agent itself.
    pub agent: u64,
    /// Its helper.
    pub helper: u64,
}

impl Crowd {
    /// Starts a node with so many workloads (at most 250), half of them isolated with the others as peers, and waits until all are
    /// enforced. Names begin with `prefix`.
    ///
    /// # Errors
    /// What did not come up.
    pub fn start(prefix: &str, workloads: u8, folder: &Path) -> anyhow::Result<Self> {
        let mut lab = Lab::new(prefix)?;
        let node = lab.node("crowd", Topology::Bridged)?;
        let mut manifests = POLICY.to_owned();
        let mut names = Vec::new();
        let workloads = (1..=workloads)
            .map(|number| {
                let namespace = format!("{prefix}-{number}");
                let app = if number % 2 == 0 { "server" } else { "client" };
                write!(
                    manifests,
                    "---\napiVersion: firebreak.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{number}, namespace: crowd, labels: {{app: {app}}}}}\n\
                     spec: {{node: crowd, networkNamespace: {namespace}}}\n"
                )?;
                names.push(format!("crowd/w{number}"));
                node.workload_at(&namespace, number)
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let controller = Controller::start(&lab.core, folder)?;
        controller.apply_quietly(&manifests)?;
        let agent = Agent::start(&node, "crowd", folder, &[])?;
        controller.wait_enforced(&names.iter().map(String::as_str).collect::<Vec<_>>(), PATIENCE)?;
        Ok(Self { agent, controller, workloads, node, _lab: lab })
    }

    /// How many workloads there are.
    pub fn len(&self) -> usize {
        self.workloads.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The resident memory after [`QUIET`] in which nothing was asked of the agent.
    ///
    /// # Errors
    /// The agent or its helper does not run.
    pub fn idle(&mut self) -> anyhow::Result<Resident> {
        let until = Instant::now() + QUIET;
        let process = self.agent.process().context("the agent does not run")?;
        // Nothing to wait for: time itself is what is measured.
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        process.check()?;
        let agent = process.id();
        let helpers = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children"))?;
        let helper = helpers.split_whitespace().next().context("the agent has no helper")?;
        Ok(Resident { agent: resident(&agent.to_string())?, helper: resident(helper)? })
    }
}

fn resident(process: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    ensure!(kilobytes > 0, "no resident memory");
    Ok(kilobytes * 1024)
}

/// Servers let clients in on one port and nobody else.
const POLICY: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: crowd}\n---\n\
    apiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {name: server, namespace: crowd}\nspec:\n  \
    appliesTo: {matchLabels: {app: server}}\n  ingress:\n  - from: [{workloads: {matchLabels: {app: client}}}]\n    \
    ports:\n    - {protocol: TCP, port: 7000}\n";
