//! A whole installation: a lab, servers in every workload, a controller and an agent per node, and checks of who reaches whom.

use crate::lab::{Lab, Node, Topology, Workload};
use crate::leak::{End, LeakChecker, Pair};
use crate::namespace::Namespace;
use crate::probe::Kind;
use crate::sctp::Receivers;
use crate::server::Servers;
use crate::system::{Agent, Controller};
use crate::volley::{Shot, volleys};
use crate::wait;
use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// TCP ports that every workload and node serves.
pub const TCP: [u16; 6] = [80, 81, 82, 443, 5432, 8080];
/// UDP ports that every workload and node serves.
pub const UDP: [u16; 4] = [53, 80, 81, 8080];

/// How long the answer to a probe that is to pass may take: within one machine far below a millisecond, the rest is for a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// How long the answer to a probe that is to be denied is waited for.
pub const DENIED_PATIENCE: Duration = Duration::from_millis(250);
const START_PATIENCE: Duration = Duration::from_secs(60);

/// From, to (workloads as `namespace/name`, nodes by name), what, and whether it is to pass: over IPv4 and IPv6.
pub type Line<'a> = (&'a str, &'a str, Kind, bool);

/// The installation. Dropped in this order.
#[derive(Debug)]
pub struct Site {
    agents: BTreeMap<String, Agent>,
    /// The controller.
    pub controller: Controller,
    servers: BTreeMap<String, (Servers, Receivers)>,
    workloads: BTreeMap<String, Workload>,
    nodes: BTreeMap<String, Node>,
    lab: Lab,
    folder: tempfile::TempDir,
}

impl Site {
    /// A lab with a controller and no nodes. `area` is short and the test's own; the process id makes the names unique.
    ///
    /// # Errors
    /// The lab cannot be made, or the controller does not come up.
    pub fn new(area: &str) -> anyhow::Result<Self> {
        let lab = Lab::new(&format!("fb{area}{}", std::process::id()))?;
        let folder = tempfile::Builder::new().prefix(&format!("firebreak-{area}-")).tempdir()?;
        let controller = Controller::start(&lab.core, folder.path())?;
        let (agents, servers, workloads, nodes) = Default::default();
        Ok(Self { agents, controller, servers, workloads, nodes, lab, folder })
    }

    /// Two nodes whose workloads reach each other: `bridged` and `routed`.
    ///
    /// # Errors
    /// As [`Site::new`], or what `ip` said.
    pub fn with_two_nodes(area: &str) -> anyhow::Result<Self> {
        let mut site = Self::new(area)?;
        for (name, topology) in [("bridged", Topology::Bridged), ("routed", Topology::Routed)] {
            let node = site.lab.node(name, topology)?;
            site.add_node(name, node)?;
        }
        site.lab.connect(&site.nodes.values().collect::<Vec<_>>())?;
        Ok(site)
    }

    /// The lab, to add nodes to.
    pub fn lab(&mut self) -> &mut Lab {
        &mut self.lab
    }

    /// Takes a node of the lab in, with servers on it.
    ///
    /// # Errors
    /// A server cannot be started.
    pub fn add_node(&mut self, name: &str, node: Node) -> anyhow::Result<()> {
        self.serve(name, &node.namespace)?;
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    /// Makes a workload with servers and gives its manifest: `name` is `namespace/name`, `labels` and `spec` are inside of YAML maps.
    ///
    /// # Errors
    /// What `ip` said, or a server cannot be started.
    pub fn workload(&mut self, node: &str, name: &str, labels: &str, spec: &str) -> anyhow::Result<String> {
        let inside = format!("{}-{}", self.lab.prefix(), name.replace('/', "-"));
        let workload = self.nodes.get_mut(node).with_context(|| format!("no node {node}"))?.workload(&inside)?;
        self.adopt(name, workload)?;
        self.manifest(node, name, labels, spec)
    }

    /// Makes a workload with servers at the address of this number; the manifest is the caller's.
    ///
    /// # Errors
    /// As [`Site::workload`].
    pub fn workload_at(&mut self, node: &str, name: &str, number: u8) -> anyhow::Result<()> {
        let inside = format!("{}-{}", self.lab.prefix(), name.replace('/', "-"));
        let workload = self.node(node)?.workload_at(&inside, number)?;
        self.adopt(name, workload)
    }

    /// Takes a workload of the lab in, with servers.
    ///
    /// # Errors
    /// A server cannot be started.
    pub fn adopt(&mut self, name: &str, workload: Workload) -> anyhow::Result<()> {
        self.serve(name, &workload.namespace)?;
        self.workloads.insert(name.to_owned(), workload);
        Ok(())
    }

    /// The manifest of a workload that was made.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn manifest(&self, node: &str, name: &str, labels: &str, spec: &str) -> anyhow::Result<String> {
        let inside = self.namespace(name)?.name().to_owned();
        let (namespace, short) = name.split_once('/').context("a workload's name is namespace/name")?;
        Ok(format!(
            "---\napiVersion: firebreak.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {short}, namespace: {namespace}, labels: {{{labels}}}}}\n\
             spec: {{node: {node}, networkNamespace: {inside}, {spec}}}\n"
        ))
    }

    fn serve(&mut self, name: &str, inside: &Namespace) -> anyhow::Result<()> {
        let servers = (Servers::start(inside, &TCP, &UDP)?, Receivers::start(inside)?);
        self.servers.insert(name.to_owned(), servers);
        Ok(())
    }

    /// Ends a workload: its namespace goes with everything in it.
    pub fn end(&mut self, name: &str) -> Option<Workload> {
        self.servers.remove(name);
        self.workloads.remove(name)
    }

    /// Applies the manifests, starts an agent on every node and waits until every workload is enforced.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn start(&mut self, manifests: &str) -> anyhow::Result<()> {
        self.start_with(manifests, &[])
    }

    /// The same, with further arguments for each agent.
    ///
    /// # Errors
    /// As [`Site::start`].
    pub fn start_with(&mut self, manifests: &str, extra: &[&str]) -> anyhow::Result<()> {
        self.controller.apply(manifests)?;
        for (name, node) in &self.nodes {
            self.agents.insert(name.clone(), Agent::start(node, name, self.folder.path(), extra)?);
        }
        self.wait_enforced()
    }

    /// Applies the manifests and starts one agent after the other, each when the workloads of the one before are enforced:
    /// so a later node's first generation knows the workloads of the earlier ones.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn start_in_order(&mut self, manifests: &str, nodes: &[(&str, &[&str])]) -> anyhow::Result<()> {
        self.controller.apply(manifests)?;
        for (name, workloads) in nodes {
            let agent = Agent::start(self.node(name)?, name, self.folder.path(), &[])?;
            self.agents.insert((*name).to_owned(), agent);
            self.controller.wait_enforced(workloads, START_PATIENCE)?;
        }
        Ok(())
    }

    /// Kills a node's agent and starts it again on the same files, with these further arguments.
    ///
    /// # Errors
    /// There is none, or it cannot be started.
    pub fn restart(&mut self, name: &str, extra: &[&str]) -> anyhow::Result<()> {
        self.agents.get_mut(name).with_context(|| format!("no agent on {name}"))?.kill()?;
        let node = self.nodes.get(name).with_context(|| format!("no node {name}"))?;
        self.agents.insert(name.to_owned(), Agent::start(node, name, self.folder.path(), extra)?);
        Ok(())
    }

    /// What a node's agent wrote so far.
    pub fn log(&self, name: &str) -> String {
        self.agents.get(name).map(Agent::log).unwrap_or_default()
    }

    /// Waits until every workload is enforced.
    ///
    /// # Errors
    /// Which one is not, and why.
    pub fn wait_enforced(&self) -> anyhow::Result<()> {
        let names: Vec<&str> = self.workloads.keys().map(String::as_str).collect();
        self.controller.wait_enforced(&names, START_PATIENCE).map(drop)
    }

    /// A node.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn node(&self, name: &str) -> anyhow::Result<&Node> {
        self.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// The namespace of a workload or node.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn namespace(&self, end: &str) -> anyhow::Result<&Namespace> {
        let workload = self.workloads.get(end).map(|workload| &workload.namespace);
        workload.or_else(|| self.nodes.get(end).map(|node| &node.namespace)).with_context(|| format!("no workload or node {end}"))
    }

    /// A workload.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn workload_of(&self, name: &str) -> anyhow::Result<&Workload> {
        self.workloads.get(name).with_context(|| format!("no workload {name}"))
    }

    /// Stops every agent and removes what is ours from every node: what then happens, happens without enforcement.
    ///
    /// # Errors
    /// An agent does not stop, or what `uninstall` said.
    pub fn uninstall(&mut self) -> anyhow::Result<()> {
        for (name, agent) in &mut self.agents {
            agent.terminate()?;
            agent.uninstall(self.nodes.get(name).with_context(|| format!("no node {name}"))?)?;
        }
        Ok(())
    }

    /// The addresses of a workload or node, IPv4 first.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn addresses(&self, end: &str) -> anyhow::Result<[IpAddr; 2]> {
        let workload = self.workloads.get(end).map(Workload::addresses);
        workload.or_else(|| self.nodes.get(end).map(Node::addresses)).with_context(|| format!("no workload or node {end}"))
    }

    /// A workload or node as the leak checker takes it.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn leak_end(&self, end: &str) -> anyhow::Result<End<'_>> {
        Ok(End { namespace: self.namespace(end)?, addresses: self.addresses(end)?, is_node: self.nodes.contains_key(end) })
    }

    /// Begins to check these lines all the time, with so many probes a second over all of them.
    ///
    /// # Errors
    /// A name is not known, or a port is taken.
    pub fn leak_checker(&self, lines: &[Line<'_>], per_second: u32) -> anyhow::Result<LeakChecker> {
        let mut pairs = Vec::new();
        for (from, to, kind, allowed) in lines {
            pairs.push(Pair { from: (from, self.leak_end(from)?), to: (to, self.leak_end(to)?), kind: *kind, allowed: *allowed });
        }
        LeakChecker::start(&pairs, per_second)
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// There is none.
    pub fn agent(&mut self, node: &str) -> anyhow::Result<&mut Agent> {
        self.agents.get_mut(node).with_context(|| format!("no agent on {node}"))
    }

    /// Starts the agent of a node again, after it was ended.
    ///
    /// # Errors
    /// There is none, or it does not start.
    pub fn start_agent_again(&mut self, node: &str) -> anyhow::Result<()> {
        let agent = self.agents.get_mut(node).with_context(|| format!("no agent on {node}"))?;
        agent.start_again(self.nodes.get(node).with_context(|| format!("no node {node}"))?)
    }

    /// Starts the controller again, after it was ended.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_controller_again(&mut self) -> anyhow::Result<()> {
        self.controller.start_again(&self.lab.core)
    }

    /// Deletes the objects that the manifests name, as far as they are there, and waits until every node has enforced that.
    ///
    /// # Errors
    /// What `firebreak delete` said, or a node that stays behind.
    pub fn delete(&self, manifests: &str) -> anyhow::Result<String> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(file.path(), manifests)?;
        let path = file.path().to_str().context("the temporary path is not UTF-8")?;
        let said = self.controller.ask(&["delete", "--ignore-not-found", "-f", path])?;
        let newest = self.controller.ask_json(&["history", "--limit", "1", "-o", "json"])?;
        let revision = newest["items"][0]["revision"].as_u64().or_else(|| newest["revision"].as_u64());
        let revision = revision.with_context(|| format!("no revision in {newest}"))?;
        wait::until(&format!("revision {revision} to be enforced"), START_PATIENCE, || {
            let nodes = self.controller.ask_json(&["nodes", "-o", "json"])?;
            let nodes = nodes["items"].as_array().context("no list of nodes")?;
            let behind = nodes.iter().find(|node| node["ackedRevision"].as_u64().is_none_or(|acked| acked < revision));
            ensure!(behind.is_none(), "behind: {behind:?}");
            Ok(())
        })?;
        Ok(said)
    }

    /// Probes every line and gives those that did not go as they should.
    ///
    /// # Errors
    /// A name is not known, or the lab is broken.
    pub fn wrong(&self, lines: &[Line<'_>]) -> anyhow::Result<Vec<String>> {
        let mut volley: BTreeMap<&str, (Vec<Shot>, Vec<String>)> = BTreeMap::new();
        let mut expected: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
        for (from, to, kind, allowed) in lines {
            for address in self.addresses(to)? {
                let patience = if *allowed { PATIENCE } else { DENIED_PATIENCE };
                let (shots, names) = volley.entry(from).or_default();
                shots.push(Shot { to: address, kind: *kind, patience });
                names.push(format!("{from} -> {to} ({address}) {kind}"));
                expected.entry(from).or_default().push(*allowed);
            }
        }
        let shots = volley.iter().map(|(from, (shots, _))| Ok((self.namespace(from)?, shots.clone()))).collect::<anyhow::Result<_>>()?;
        let mut wrong = Vec::new();
        for ((from, (_, names)), seen) in volley.into_iter().zip(volleys(shots)?) {
            for ((name, seen), expected) in names.into_iter().zip(seen).zip(&expected[from]) {
                if seen != *expected {
                    wrong.push(format!("{name}: expected {}, seen {}", word(*expected), word(seen)));
                }
            }
        }
        Ok(wrong)
    }

    /// Probes every line.
    ///
    /// # Errors
    /// Every line that did not go as it should.
    pub fn check(&self, what: &str, lines: &[Line<'_>]) -> anyhow::Result<()> {
        let wrong = self.wrong(lines)?;
        ensure!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
        Ok(())
    }

    /// Probes one line again and again until it goes as it says, and gives the time since `begun`.
    ///
    /// # Errors
    /// It does not, for as long as a change may take at all.
    pub fn until(&self, begun: Instant, line: Line<'_>) -> anyhow::Result<Duration> {
        let (from, to, kind, allowed) = line;
        let inside = self.namespace(from)?;
        let shots = self.addresses(to)?.map(|to| Shot { to, kind, patience: Duration::from_millis(60) }).to_vec();
        wait::until(&format!("{from} -> {to} {kind} to be {}", word(allowed)), START_PATIENCE, || {
            let seen = volleys(vec![(inside, shots.clone())])?;
            ensure!(seen.iter().flatten().all(|seen| *seen == allowed), "seen otherwise: {seen:?}");
            Ok(())
        })?;
        Ok(begun.elapsed())
    }

    /// Shows that the lines can fail: all of them pass now, where no policy is about them.
    ///
    /// # Errors
    /// What did not pass.
    pub fn check_open(&self, what: &str, lines: &[Line<'_>]) -> anyhow::Result<()> {
        let open: Vec<Line<'_>> = lines.iter().map(|(from, to, kind, _)| (*from, *to, *kind, true)).collect();
        self.check(&format!("{what}: without policy"), &open)
    }
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}
