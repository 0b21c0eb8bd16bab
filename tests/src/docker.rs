//! A real Docker engine (`dockerd` with a `containerd` of its own) inside a node: its own network and mount namespace, data, sockets and
//! control groups. Images are made here from busybox, nothing is pulled. Dropping the engine ends what it runs and removes what it made.

use crate::lab::Node;
use crate::probe::{self, Kind, PATIENCE};
use crate::process::Process;
use crate::wait;
use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The image that every engine has: busybox, and the label `role=builder` from the image.
pub const IMAGE: &str = "firebreak/busybox:1";

/// The pattern of the host-side interfaces that the engine makes.
pub const INTERFACES: &str = "veth*";

/// How long an engine may take to start. An idle machine needs one second.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Holds the engine's mount namespace, so that an engine that is started again finds the network namespaces that it had mounted.
/// Control groups are mounted where the machine has none, and the key that `dockerd` writes to /etc/docker gets a place of its own.
const HOLD: &str = "set -e
grep -q ' /sys/fs/cgroup[ /]' /proc/self/mountinfo || mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /etc/docker
mount -t tmpfs none /etc/docker
exec sleep infinity";

/// What can be chosen about an engine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether published ports are relayed by `docker-proxy` for the node's own containers (the engine's default) or only by
    /// destination NAT.
    pub userland_proxy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { userland_proxy: true }
    }
}

/// An engine. Its containers outlive it when it is killed or stopped (`--live-restore`), not when it is dropped.
#[derive(Debug)]
pub struct Engine {
    namespace: String,
    folder: PathBuf,
    options: Options,
    process: Option<Process>,
    holder: Process,
}

/// A container, as it was when it was asked about.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its full id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its first process.
    pub pid: u32,
    /// Its address on its first network.
    pub address: Ipv4Addr,
}

impl Engine {
    /// Starts an engine inside the node, with its files in `folder`, and makes [`IMAGE`].
    ///
    /// # Errors
    /// It did not come up; its log's end is in the message.
    pub fn start(node: &Node, folder: &Path, options: Options) -> anyhow::Result<Self> {
        let namespace = node.namespace.name().to_owned();
        let folder = folder.join(format!("docker-{namespace}"));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("daemon.json"), "{}")?;
        let holder = hold(&namespace, &folder)?;
        let mut engine = Self { namespace, folder, options, process: None, holder };
        engine.start_again()?;
        engine.import(IMAGE, &["role=builder"])?;
        Ok(engine)
    }

    /// Starts it again on the same files.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--net", "dockerd"]);
        command.args(["--config-file", &path("daemon.json"), "--data-root", &path("data"), "--exec-root", &path("exec")]);
        command.args(["--pidfile", &path("docker.pid"), "--host", &format!("unix://{}", self.socket().display())]);
        command.args(["--cgroup-parent", &self.control_group(), "--storage-driver", "vfs", "--live-restore", "--iptables=true"]);
        command.arg(format!("--userland-proxy={}", self.options.userland_proxy));
        let mut process = Process::start("dockerd", command, &self.folder.join("dockerd.log"))?;
        wait::until("the Docker engine", START_PATIENCE, || {
            process.check()?;
            self.docker(&["version"]).map(drop)
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// The engine's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }

    fn control_group(&self) -> String {
        format!("/firebreak-{}", self.namespace)
    }

    /// Runs `docker` against this engine and gives what it printed.
    ///
    /// # Errors
    /// What it said when it failed.
    pub fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("docker");
        command.env("DOCKER_CONFIG", &self.folder).env_remove("DOCKER_CONTEXT");
        command.arg("--host").arg(format!("unix://{}", self.socket().display())).args(arguments);
        let output = command.output().context("cannot run docker")?;
        ensure!(output.status.success(), "docker {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Makes an image of busybox with these labels (`key=value`). Its containers do nothing until they are told otherwise.
    ///
    /// # Errors
    /// busybox is not there, or what `tar` or `docker import` said.
    pub fn import(&self, tag: &str, labels: &[&str]) -> anyhow::Result<()> {
        let root = self.folder.join("image");
        for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).context("cannot copy /bin/busybox (package busybox-static)")?;
        for applet in ["cat", "grep", "nc", "nslookup", "ping", "sh", "sleep", "usleep"] {
            let link = root.join("bin").join(applet);
            if !link.is_symlink() {
                std::os::unix::fs::symlink("busybox", link)?;
            }
        }
        let archive = self.folder.join("image.tar");
        let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status().context("cannot run tar")?;
        ensure!(packed.success(), "tar ended with {packed}");
        let mut arguments = vec!["import".to_owned(), "--change".to_owned(), r#"CMD ["sleep","1000000"]"#.to_owned()];
        for label in labels {
            arguments.extend(["--change".to_owned(), format!("LABEL {label}")]);
        }
        arguments.extend([archive.display().to_string(), tag.to_owned()]);
        self.docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(())
    }

    /// `docker run -d --name NAME OPTIONS IMAGE`, the container doing nothing.
    ///
    /// # Errors
    /// What the engine said.
    pub fn run(&self, name: &str, options: &[&str]) -> anyhow::Result<Container> {
        self.run_command(name, options, &[])
    }

    /// The same with an echo server on a TCP port.
    ///
    /// # Errors
    /// What the engine said.
    pub fn serve(&self, name: &str, options: &[&str], port: u16) -> anyhow::Result<Container> {
        let port = port.to_string();
        let container = self.run_command(name, options, &["nc", "-ll", "-p", &port, "-e", "/bin/cat"])?;
        // 0A is LISTEN; the file is of the container's network namespace (proc(5)).
        let listening = format!(":{:04X} ", port.parse::<u16>()?);
        wait::until(&format!("{name} to listen"), Duration::from_secs(10), || {
            let read = |table| std::fs::read_to_string(format!("/proc/{}/net/{table}", container.pid));
            let tables = read("tcp")? + &read("tcp6")?;
            ensure!(tables.lines().any(|line| line.contains(&listening) && line.contains(" 0A ")), "it does not");
            Ok(())
        })?;
        Ok(container)
    }

    /// The same with a command.
    ///
    /// # Errors
    /// What the engine said.
    pub fn run_command(&self, name: &str, options: &[&str], command: &[&str]) -> anyhow::Result<Container> {
        // No init: what runs is the container's first process, and ends at once with SIGKILL.
        let arguments = [&["run", "--detach", "--name", name, "--stop-timeout", "0"], options, &[IMAGE], command].concat();
        self.docker(&arguments)?;
        self.inspect(name)
    }

    /// A running container.
    ///
    /// # Errors
    /// There is none of this name, or it does not run.
    pub fn inspect(&self, name: &str) -> anyhow::Result<Container> {
        let answer: Value = serde_json::from_str(&self.docker(&["container", "inspect", name])?)?;
        let answer = &answer[0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pid = answer["State"]["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        let networks = answer["NetworkSettings"]["Networks"].as_object().context("no networks")?;
        let address = networks.values().find_map(|network| network["IPAddress"].as_str()?.parse().ok());
        Ok(Container {
            id: text(&answer["Id"]),
            name: name.to_owned(),
            pid: pid.with_context(|| format!("{name} does not run: {}", answer["State"]))?,
            address: address.with_context(|| format!("{name} has no address"))?,
        })
    }

    /// Ends a container at once and removes it.
    ///
    /// # Errors
    /// What the engine said.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.docker(&["rm", "--force", name]).map(drop)
    }

    /// `kill -9`, its containerd included: the containers run on, published ports lose their proxies.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)?;
        // The kernel kills containerd with its parent. Where nobody reaps orphans, its number counts as running for the next engine.
        match std::fs::remove_file(self.folder.join("exec/containerd/containerd.pid")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Err(_) | Ok(()) => Ok(()),
        }
    }

    /// SIGTERM: the containers run on.
    ///
    /// # Errors
    /// It does not stop.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), |process| process.terminate().map(drop))
    }

    /// The processes of the engine and of its containers: those in its mount namespace (but for the holder) or its control groups.
    fn processes(&self) -> Vec<i32> {
        let mount_of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let holder = self.holder.id().to_string();
        let held = mount_of(&holder);
        let group = format!("{}/", self.control_group());
        let ours = |pid: &i32| {
            let mount = mount_of(&pid.to_string());
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            (mount.is_some() && mount == held && pid.to_string() != holder) || groups.contains(&group)
        };
        let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(ours).collect()
    }

    fn remove_everything(&mut self) {
        // Tear-down goes on whatever happens; what the engine does not end is ended without it.
        if self.process.as_mut().is_some_and(|process| process.check().is_ok())
            && let Ok(ids) = self.docker(&["ps", "--all", "--quiet"])
            && !ids.is_empty()
        {
            let arguments: Vec<&str> = ["rm", "--force", "--volumes"].into_iter().chain(ids.lines()).collect();
            let _ = self.docker(&arguments);
        }
        let _ = self.terminate();
        let gone = wait::until_true("the engine's processes to end", Duration::from_secs(10), || {
            let left = self.processes();
            for pid in &left {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            left.is_empty()
        });
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
        remove_control_groups(Path::new("/sys/fs/cgroup"), &self.control_group()[1..]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.join("dockerd.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("level=info")).collect();
            eprintln!("---- end of the log of dockerd:\n{}", lines[lines.len().saturating_sub(10)..].join("\n"));
        }
        self.remove_everything();
    }
}

/// A process in a new mount namespace, in the node's network namespace. Not by `ip netns exec`, whose /sys has no control groups.
fn hold(namespace: &str, folder: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}"));
    command.args(["unshare", "--mount", "--propagation", "private", "sh", "-c", HOLD]);
    let mut holder = Process::start("the engine's mount namespace", command, &folder.join("holder.log"))?;
    let comm = format!("/proc/{}/comm", holder.id());
    wait::until("the engine's mount namespace", START_PATIENCE, || {
        holder.check()?;
        ensure!(std::fs::read_to_string(&comm)? == "sleep\n", "it is not prepared");
        Ok(())
    })?;
    Ok(holder)
}

/// Removes the groups of this name of every hierarchy (the machine's version 1 has one per controller), deepest first.
fn remove_control_groups(root: &Path, name: &str) {
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    for folder in hierarchies.map(|hierarchy| hierarchy.join(name)).chain([root.join(name)]) {
        for inside in std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            let _ = std::fs::remove_dir(inside.path());
        }
        let _ = std::fs::remove_dir(folder);
    }
}

impl Container {
    /// Its address on its first network.
    pub fn ip(&self) -> IpAddr {
        self.address.into()
    }

    /// Runs code on a thread in the container's network namespace.
    ///
    /// # Errors
    /// The container is gone, or the code panicked.
    pub fn inside<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let path = format!("/proc/{}/ns/net", self.pid);
        let file = File::open(&path).with_context(|| format!("{}: cannot open {path}", self.name))?;
        let thread = std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {path}"))?;
            anyhow::Ok(code())
        });
        thread.join().map_err(|_| anyhow::anyhow!("code inside {} panicked", self.name))?
    }

    /// Sends one probe from inside the container.
    ///
    /// # Errors
    /// As [`probe::probe`].
    pub fn probe(&self, to: IpAddr, kind: Kind) -> anyhow::Result<bool> {
        self.inside(move || probe::send(to, kind, PATIENCE))?
    }
}
