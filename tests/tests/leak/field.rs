//! The installation that is probed: on a bridged and on a routed node each, `open` that no policy selects, `srv` whose ingress is isolated, the node
//! included, and `tight` whose egress is.

use firebreak_tests::leak::{LeakChecker, probes_per_second};
use firebreak_tests::probe::Kind;
use firebreak_tests::site::{Line, Site};
use firebreak_tests::wait;
use std::time::Duration;

pub(crate) const NODES: [&str; 2] = ["bridged", "routed"];

/// Probes of each sort that a scenario needs at least to tell anything.
pub(crate) const ENOUGH: u64 = 1_000;

const SRV: Kind = Kind::Tcp(9001);
const SRV_UDP: Kind = Kind::Udp(9001);
const TIGHT: Kind = Kind::Tcp(9002);
const OPEN: Kind = Kind::Tcp(9003);
const OPEN_UDP: Kind = Kind::Udp(9003);
const NODE: Kind = Kind::Tcp(9004);
const NODE_UDP: Kind = Kind::Udp(9004);

/// A site with the policies in force.
pub(crate) struct Field {
    pub(crate) site: Site,
    lines: Vec<(String, String, Kind, bool)>,
}

impl Field {
    pub(crate) fn start(area: &str) -> anyhow::Result<Self> {
        Self::start_with(area, &[])
    }

    /// With further arguments for the agents.
    pub(crate) fn start_with(area: &str, extra: &[&str]) -> anyhow::Result<Self> {
        let mut site = Site::with_two_nodes(area)?;
        let mut manifests = policies();
        for node in NODES {
            // Some 100 connections a second end here; their entries in conntrack are of no use afterwards.
            site.node(node)?.namespace.sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "10")?;
            for app in ["open", "srv", "tight"] {
                manifests += &site.workload(node, &format!("field/{app}-{node}"), &format!("app: {app}"), "")?;
            }
        }
        site.start_with(&manifests, extra)?;
        Ok(Self { site, lines: lines() })
    }

    pub(crate) fn lines(&self) -> Vec<Line<'_>> {
        self.lines.iter().map(|(from, to, kind, allowed)| (from.as_str(), to.as_str(), *kind, *allowed)).collect()
    }

    /// Begins to check every line at the acceptance's rate, and waits until all of them were tried.
    pub(crate) fn check(&self) -> anyhow::Result<LeakChecker> {
        let checker = self.site.leak_checker(&self.lines(), probes_per_second())?;
        checker.wait_for(300)?;
        Ok(checker)
    }

    /// `kill -9` of an agent and its start; waits until it has adopted the kernel's state and is connected again.
    pub(crate) fn restart_agent(&mut self, node: &str) -> anyhow::Result<()> {
        self.site.agent(node)?.kill()?;
        self.start_agent(node)
    }

    /// Starts an agent and waits until it is connected and has enforced the newest state.
    pub(crate) fn start_agent(&mut self, node: &str) -> anyhow::Result<()> {
        self.site.start_agent_again(node)?;
        self.wait_converged()
    }

    /// Waits until every node is connected and enforces its newest target.
    pub(crate) fn wait_converged(&self) -> anyhow::Result<()> {
        wait::until("the nodes to converge", Duration::from_secs(60), || {
            let nodes = self.site.controller.ask_json(&["nodes", "-o", "json"])?;
            let items = nodes["items"].as_array().cloned().unwrap_or_default();
            let is_done = |it: &serde_json::Value| it["connection"] == "Connected" && it["ackedRevision"] == it["targetRevision"];
            anyhow::ensure!(items.len() == NODES.len() && items.iter().all(is_done), "{nodes}");
            Ok(())
        })
        .map(drop)
    }
}

pub(crate) fn policies() -> String {
    segment(
        "srv",
        "app: srv",
        "  hostAccess: Judge\n  ingress:\n  - from: [{workloads: {matchLabels: {app: open}}}]\n    ports:\n    - {protocol: TCP, port: 9001}\n    \
         - {protocol: UDP, port: 9001}\n    - icmp: {family: IPv4, type: 8}\n    - icmp: {family: IPv6, type: 128}\n\
         \x20 - from: [{workloads: {matchLabels: {app: tight}}}]\n    ports: [{protocol: TCP, port: 9002}]",
    ) + &segment(
        "tight",
        "app: tight",
        "  egress:\n  - to: [{workloads: {matchLabels: {app: srv}}}]\n    ports: [{protocol: TCP, port: 9002}]",
    )
}

/// A SegmentPolicy in namespace `field`; `spec` is indented by two.
pub(crate) fn segment(name: &str, labels: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: firebreak.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {{name: {name}, namespace: field}}\nspec:\n  \
         appliesTo: {{matchLabels: {{{labels}}}}}\n{spec}\n"
    )
}

/// Every direction: same node and across, workload and node as either end, both orientations.
fn lines() -> Vec<(String, String, Kind, bool)> {
    let mut lines = Vec::new();
    let mut add = |from: &str, to: &str, allowed: bool, kinds: &[Kind]| {
        lines.extend(kinds.iter().map(|kind| (from.to_owned(), to.to_owned(), *kind, allowed)));
    };
    let name = |app: &str, node: &str| format!("field/{app}-{node}");
    for here in NODES {
        for there in NODES {
            add(&name("open", here), &name("srv", there), true, &[SRV, SRV_UDP, Kind::Ping]);
            add(&name("open", here), &name("srv", there), false, &[Kind::Tcp(9009), Kind::Udp(9009)]);
            add(&name("srv", here), &name("open", there), true, &[OPEN, OPEN_UDP]);
            add(&name("tight", here), &name("srv", there), true, &[TIGHT]);
            add(&name("tight", here), &name("srv", there), false, &[Kind::Udp(9002), Kind::Ping]);
            add(&name("tight", here), &name("open", there), false, &[OPEN, OPEN_UDP, Kind::Ping]);
            add(here, &name("srv", there), false, &[SRV, SRV_UDP, Kind::Ping]);
        }
        add(&name("open", here), here, true, &[NODE, NODE_UDP, Kind::Ping]);
        add(here, &name("open", here), true, &[OPEN, OPEN_UDP, Kind::Ping]);
        add(here, &name("tight", here), true, &[OPEN]);
        add(&name("tight", here), here, false, &[NODE, NODE_UDP, Kind::Ping]);
    }
    lines
}
