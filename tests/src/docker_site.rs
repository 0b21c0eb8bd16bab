//! A controller, and nodes with a Docker engine and an agent each.

use crate::docker::{self, Container, Engine, Options};
use crate::lab::{Lab, Node, Topology};
use crate::system::{Agent, Controller};
use anyhow::Context as _;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// How long a container may take from its start to enforcement. An idle machine needs some 20 ms after the engine's event.
pub const ENFORCED: Duration = Duration::from_secs(20);

/// A site. Its parts are dropped in this order.
#[derive(Debug)]
pub struct Site {
    /// The agents that run, by node.
    pub agents: Vec<Agent>,
    /// The controller, in the lab's core.
    pub controller: Controller,
    /// The engines, by node.
    pub engines: Vec<Engine>,
    /// The nodes: no bridge but those of their engines.
    pub nodes: Vec<Node>,
    /// What is around them.
    pub lab: Lab,
    folder: TempDir,
}

impl Site {
    /// A site of so many nodes (`node-a`, `node-b`, ...), without agents. Names of network namespaces begin with `prefix`.
    ///
    /// # Errors
    /// What did not come up, and why.
    pub fn start(prefix: &str, nodes: usize, options: Options) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("firebreak-docker-").tempdir()?;
        let mut lab = Lab::new(prefix)?;
        // Routed: the lab itself makes no bridge on the node.
        let nodes = (0..nodes).map(|position| lab.node(&node_name(position), Topology::Routed)).collect::<Result<Vec<_>, _>>()?;
        let engines = nodes.iter().map(|node| Engine::start(node, folder.path(), options)).collect::<Result<Vec<_>, _>>()?;
        let controller = Controller::start(&lab.core, folder.path())?;
        Ok(Self { agents: Vec::new(), controller, engines, nodes, lab, folder })
    }

    /// Starts an agent on every node. Containers are enforced a moment later: see [`Site::wait_enforced`].
    ///
    /// # Errors
    /// One cannot be started.
    pub fn start_agents(&mut self) -> anyhow::Result<()> {
        for (position, (node, engine)) in self.nodes.iter().zip(&self.engines).enumerate() {
            let socket = engine.socket();
            let socket = socket.to_str().context("the temporary path is not UTF-8")?;
            let extra = ["--docker-socket", socket, "--workload-interfaces", docker::INTERFACES];
            self.agents.push(Agent::start(node, &node_name(position), self.folder.path(), &extra)?);
        }
        Ok(())
    }

    /// Waits until these workloads (`namespace/name`) are enforced.
    ///
    /// # Errors
    /// Which one is not, and why; what the agents wrote is printed.
    pub fn wait_enforced(&self, workloads: &[&str]) -> anyhow::Result<Duration> {
        self.controller.wait_enforced(workloads, ENFORCED).inspect_err(|_| {
            for agent in &self.agents {
                eprintln!("---- agent:\n{}", agent.log());
            }
        })
    }

    /// The engine of the first node.
    ///
    /// # Errors
    /// There is no node.
    pub fn engine(&self) -> anyhow::Result<&Engine> {
        self.engines.first().context("the site has no node")
    }

    /// Starts a container of a Compose project and service on the first node, serving on a TCP port.
    ///
    /// # Errors
    /// What the engine said.
    pub fn service(&self, project: &str, service: &str, port: u16, options: &[&str]) -> anyhow::Result<Container> {
        service_on(self.engine()?, project, service, port, options)
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Starts a container as Compose does: `PROJECT-SERVICE-1`, with the labels that Compose gives.
///
/// # Errors
/// What the engine said.
pub fn service_on(engine: &Engine, project: &str, service: &str, port: u16, options: &[&str]) -> anyhow::Result<Container> {
    let labels = [format!("com.docker.compose.project={project}"), format!("com.docker.compose.service={service}")];
    let options = [&["--label", &labels[0], "--label", &labels[1]], options].concat();
    engine.serve(&format!("{project}-{service}-1"), &options, port)
}

/// `node-a`, `node-b`, ...
fn node_name(position: usize) -> String {
    format!("node-{}", char::from(b'a' + u8::try_from(position).unwrap_or(25).min(25)))
}
