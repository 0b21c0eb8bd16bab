//! A named network namespace, and code that runs inside it.

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::process::{Command, Output};

/// A network namespace of its own; gone with everything in it when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    keep: bool,
}

impl Namespace {
    /// Makes it. One of the same name that a crashed run left behind is removed first.
    ///
    /// # Errors
    /// What `ip netns` said.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        if std::path::Path::new("/run/netns").join(name).exists() {
            ip(&["netns", "del", name])?;
        }
        ip(&["netns", "add", name])?;
        let namespace = Self { name: name.to_owned(), keep: false };
        namespace.ip("link set lo up")?;
        // Addresses are usable at once: nobody else has them here.
        namespace.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        Ok(namespace)
    }

    /// Its name in /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves it in place when this is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Runs `ip` inside, with words separated by spaces.
    ///
    /// # Errors
    /// What it said.
    pub fn ip(&self, words: &str) -> anyhow::Result<()> {
        let mut arguments = vec!["-n", self.name.as_str()];
        arguments.extend(words.split_whitespace());
        ip(&arguments)
    }

    /// Sets a sysctl inside.
    ///
    /// # Errors
    /// The file and why it could not be written.
    pub fn sysctl(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let value = value.to_owned();
        self.run(move || std::fs::write(&path, &value).with_context(|| format!("cannot write {value} to {path}")))?
    }

    /// Reads a sysctl inside.
    ///
    /// # Errors
    /// The file and why it could not be read.
    pub fn read_sysctl(&self, key: &str) -> anyhow::Result<String> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let text = self.run(move || std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}")))??;
        Ok(text.trim().to_owned())
    }

    /// A command that runs inside, with its view of /sys.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a command inside and gives what it printed.
    ///
    /// # Errors
    /// What it said when it failed.
    pub fn output(&self, words: &str) -> anyhow::Result<String> {
        let mut parts = words.split_whitespace();
        let program = parts.next().context("names no command")?;
        let output = self.command(program).args(parts).output().with_context(|| format!("cannot run {words}"))?;
        checked(words, output)
    }

    /// Runs code on a thread inside; sockets made there stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the code panicked.
    pub fn run<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let thread = self.spawn(code)?;
        thread.join().map_err(|_| anyhow::anyhow!("code inside {} panicked", self.name))?
    }

    /// The same, without waiting for it.
    ///
    /// # Errors
    /// The namespace is not there.
    pub fn spawn<T: Send + 'static>(
        &self,
        code: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<std::thread::JoinHandle<anyhow::Result<T>>> {
        let path = format!("/run/netns/{}", self.name);
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        Ok(std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {path}"))?;
            Ok(code())
        }))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.keep {
            // Tear-down goes on whatever happens.
            let _ = ip(&["netns", "del", &self.name]);
        }
    }
}

/// Runs `ip` in the root namespace: only to make and remove namespaces and the veth pairs between them.
///
/// # Errors
/// What it said.
pub fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("cannot run ip")?;
    checked(&format!("ip {}", arguments.join(" ")), output).map(drop)
}

fn checked(what: &str, output: Output) -> anyhow::Result<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {}", stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
