//! Network namespaces for tests: each is held by a thread of its own, and gone with it, whatever the test does.

use std::process::{Command, Output};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce() + Send>;

/// A fresh network namespace. What `run` is given runs inside, on one thread, in order.
pub struct Namespace {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    path: String,
}

impl Namespace {
    /// Makes one, with `lo` up.
    pub fn new() -> Self {
        let (jobs, todo) = sync_channel::<Job>(1);
        let (tell, told) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace (are you root?)");
            tell.send(format!("/proc/{}/task/{}/ns/net", nix::unistd::getpid(), nix::unistd::gettid())).unwrap();
            while let Ok(job) = todo.recv() {
                job();
            }
        });
        let this = Self { jobs: Some(jobs), thread: Some(thread), path: told.recv().unwrap() };
        this.ip("link set lo up");
        this
    }

    /// Its path, for `ip link ... netns PATH`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Runs something inside and gives back what it gives.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = sync_channel(1);
        self.jobs
            .as_ref()
            .unwrap()
            .send(Box::new(move || {
                let _ = tell.send(job());
            }))
            .expect("the namespace's thread");
        told.recv().expect("a job panicked in its namespace")
    }

    /// Runs a program inside and gives back its output.
    pub fn output(&self, program: &str, arguments: &str) -> Output {
        let (program, arguments): (String, Vec<String>) = (program.to_owned(), arguments.split_whitespace().map(str::to_owned).collect());
        self.run(move || Command::new(program).args(arguments).output().unwrap())
    }

    /// Runs a program inside; it has to succeed. Gives back what it printed.
    pub fn command(&self, program: &str, arguments: &str) -> String {
        let output = self.output(program, arguments);
        assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// `ip ...`
    pub fn ip(&self, arguments: &str) {
        self.command("ip", arguments);
    }

    /// Loads a ruleset in nft's text, in one transaction.
    pub fn nft_load(&self, ruleset: &str) -> Output {
        let ruleset = ruleset.to_owned();
        self.run(move || {
            use std::io::Write;
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            nft.stdin.take().unwrap().write_all(ruleset.as_bytes()).unwrap();
            nft.wait_with_output().unwrap()
        })
    }

    /// Loads what has to be taken into tables that their owner has just given up. A program that another test is about to start
    /// holds the owner's socket until its `exec`; for so long the kernel still refuses, and it is tried again.
    pub fn nft_load_given_up(&self, ruleset: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let loaded = self.nft_load(ruleset);
            if loaded.status.success() {
                return;
            }
            let complaint = String::from_utf8_lossy(&loaded.stderr);
            assert!(complaint.contains("Operation not permitted") && Instant::now() < deadline, "{ruleset}: {complaint}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `nft list ruleset` without what changes by the clock, and without the table's flags: loaded again, `flags owner` would
    /// make `nft` itself the owner, and the table would end with it (of an orphan nft 1.0.6 prints `flags` and no flag).
    pub fn stable_ruleset(&self) -> String {
        let mut lines = Vec::new();
        for line in self.ruleset().lines().filter(|line| !(line.is_empty() || line.starts_with("\tflags"))) {
            let line = line.split(" # progname").next().unwrap();
            let mut words = line.split(' ');
            let mut kept = Vec::new();
            while let Some(word) = words.next() {
                if word == "expires" {
                    words.next();
                } else {
                    kept.push(word);
                }
            }
            lines.push(kept.join(" "));
        }
        lines.join("\n") + "\n"
    }

    /// `nft list ruleset`
    pub fn ruleset(&self) -> String {
        self.command("nft", "list ruleset")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
