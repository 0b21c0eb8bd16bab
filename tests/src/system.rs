//! The real binaries: one controller, an agent per node, the command line.

use crate::lab::{INTERFACES, Node};
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait;
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Where agents find the controller in the lab.
pub const CONTROLLER: &str = "192.168.77.254:7443";

/// The folder of the binaries of the profile that this program was built with; `FIREBREAK_BIN_DIR` names another.
///
/// # Errors
/// The binaries are not there; says how to make them.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let folder = match std::env::var_os("FIREBREAK_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let own = std::env::current_exe()?;
            let folder = own.parent().context("this program is in no folder")?;
            // Test programs are one level below.
            if folder.ends_with("deps") { folder.parent().unwrap_or(folder).to_owned() } else { folder.to_owned() }
        }
    };
    for name in ["firebreak-controller", "firebreak-agent", "firebreak"] {
        ensure!(folder.join(name).exists(), "{} is not there; run `cargo build --workspace` first", folder.join(name).display());
    }
    Ok(folder)
}

/// A controller and its files.
#[derive(Debug)]
pub struct Controller {
    bin: PathBuf,
    folder: PathBuf,
    process: Option<Process>,
    extra: Vec<String>,
}

impl Controller {
    /// Starts it inside the namespace and waits until it is ready.
    ///
    /// # Errors
    /// It did not come up; its log is in the message.
    pub fn start(inside: &Namespace, folder: &Path) -> anyhow::Result<Self> {
        let mut controller = Self { bin: binaries()?, folder: folder.to_owned(), process: None, extra: Vec::new() };
        controller.start_again(inside)?;
        Ok(controller)
    }

    /// Starts it again on the same files.
    ///
    /// # Errors
    /// As [`Controller::start`].
    pub fn start_again(&mut self, inside: &Namespace) -> anyhow::Result<()> {
        let mut command = inside.command(self.bin.join("firebreak-controller"));
        command.arg("run").arg("--database").arg(self.folder.join("controller.db")).arg("--socket").arg(self.socket());
        command.args(["--agent-listen", CONTROLLER, "--insecure-listen", "--metrics-listen", "127.0.0.1:9464"]);
        command.args(&self.extra);
        let mut process = Process::start("controller", command, &self.folder.join("controller.log"))?;
        wait::until("the controller", Duration::from_secs(20), || {
            process.check()?;
            let output = self.cli(&["nodes", "-o", "json"])?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Further arguments from the next start on.
    pub fn set_extra(&mut self, extra: &[&str]) {
        self.extra = extra.iter().map(ToString::to_string).collect();
    }

    /// The operators' socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("controller.sock")
    }

    /// The process, while it runs.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)
    }

    /// SIGTERM.
    ///
    /// # Errors
    /// It does not stop.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(process) => {
                let status = process.terminate()?;
                ensure!(status.success(), "the controller ended with {status}");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A command line of `firebreak` against this controller.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.bin.join("firebreak"));
        command.arg("--socket").arg(self.socket());
        command
    }

    /// Runs `firebreak`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.command().args(arguments).stdin(Stdio::null()).output().context("cannot run firebreak")
    }

    /// Runs `firebreak` and gives what it printed.
    ///
    /// # Errors
    /// What it said when it failed.
    pub fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.cli(arguments)?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        ensure!(output.status.success(), "firebreak {}: {}", arguments.join(" "), text(&output.stderr));
        Ok(text(&output.stdout))
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// As [`Controller::ask`], or it printed no JSON.
    pub fn ask_json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.ask(arguments)?;
        serde_json::from_str(&text).with_context(|| format!("firebreak {}: no JSON: {text}", arguments.join(" ")))
    }

    /// Applies a manifest text.
    ///
    /// # Errors
    /// What `firebreak apply` said.
    pub fn apply_quietly(&self, manifests: &str) -> anyhow::Result<String> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(file.path(), manifests)?;
        let path = file.path().to_str().context("the temporary path is not UTF-8")?;
        self.ask(&["apply", "-f", path])
    }

    /// Applies a manifest text and waits until every connected node has enforced it.
    ///
    /// # Errors
    /// What `firebreak apply` said.
    pub fn apply(&self, manifests: &str) -> anyhow::Result<String> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(file.path(), manifests)?;
        let path = file.path().to_str().context("the temporary path is not UTF-8")?;
        self.ask(&["apply", "-f", path, "--wait=180"])
    }

    /// Waits until these workloads are enforced; gives how long it took.
    ///
    /// # Errors
    /// Which one is not, and why.
    pub fn wait_enforced(&self, workloads: &[&str], at_most: Duration) -> anyhow::Result<Duration> {
        let asked = wait::until("workloads to be enforced", at_most, || {
            let listed = self.ask_json(&["get", "workloads", "-o", "json"])?;
            let items = listed["items"].as_array().context("no items")?;
            for name in workloads {
                let found = items.iter().find(|item| format!("{}/{}", text(&item["namespace"]), text(&item["name"])) == *name);
                let found = found.with_context(|| format!("{name} is not known"))?;
                ensure!(found["enforced"] == true, "{name} is not enforced: {}", text(&found["reason"]));
            }
            Ok(())
        })?;
        Ok(asked.1)
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// An agent and its files.
#[derive(Debug)]
pub struct Agent {
    bin: PathBuf,
    folder: PathBuf,
    name: String,
    process: Option<Process>,
    extra: Vec<String>,
}

impl Agent {
    /// Starts an agent of this name inside the node, with further arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(node: &Node, name: &str, folder: &Path, extra: &[&str]) -> anyhow::Result<Self> {
        let extra = extra.iter().map(ToString::to_string).collect();
        let mut agent = Self { bin: binaries()?, folder: folder.to_owned(), name: name.to_owned(), process: None, extra };
        agent.start_again(node)?;
        Ok(agent)
    }

    /// Starts it again on the same files.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_again(&mut self, node: &Node) -> anyhow::Result<()> {
        let mut command = node.namespace.command(self.bin.join("firebreak-agent"));
        command.args(["run", "--node", &self.name, "--controller", &format!("http://{CONTROLLER}")]);
        command.arg("--state-dir").arg(self.folder.join(format!("agent-{}", self.name)));
        if !self.extra.iter().any(|word| word == "--workload-interfaces") {
            command.args(["--workload-interfaces", INTERFACES]);
        }
        if !self.extra.iter().any(|word| word == "--docker-socket") {
            command.args(["--docker-socket", "none"]);
        }
        command.args(&self.extra);
        self.process = Some(Process::start(&format!("agent {}", self.name), command, &self.log_file())?);
        Ok(())
    }

    /// Further arguments from the next start on.
    pub fn set_extra(&mut self, extra: &[&str]) {
        self.extra = extra.iter().map(ToString::to_string).collect();
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join(format!("agent-{}.log", self.name))
    }

    /// The process, while it runs.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// `kill -9`. `ip netns exec` replaces itself by the agent, so the process is the agent.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)
    }

    /// SIGTERM.
    ///
    /// # Errors
    /// It does not stop.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(process) => {
                let status = process.terminate()?;
                ensure!(status.success(), "agent {} ended with {status}:\n{}", self.name, self.log());
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// `firebreak-agent observe` on the node, beside the agent or without one.
    ///
    /// # Errors
    /// What it said.
    pub fn observe(&self, node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = node.namespace.command(self.bin.join("firebreak-agent"));
        command.arg("observe").arg("--state-dir").arg(self.state_dir()).args(arguments);
        let output = command.output()?;
        ensure!(output.status.success(), "observe: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join(format!("agent-{}", self.name))
    }

    /// Removes everything that is ours from the node.
    ///
    /// # Errors
    /// What it said.
    pub fn uninstall(&self, node: &Node) -> anyhow::Result<String> {
        let output = node.namespace.command(self.bin.join("firebreak-agent")).arg("uninstall").output()?;
        ensure!(output.status.success(), "uninstall: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
