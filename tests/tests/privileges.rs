//! What a running agent and its helper may still do, read from the kernel; and what happens when the helper dies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::namespace::Namespace;
use firebreak_tests::probe::{Kind, probe};
use firebreak_tests::process::Process;
use firebreak_tests::shop::{Shop, usual_policies};
use firebreak_tests::system::binaries;
use firebreak_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

// linux/capability.h
const NET_BROADCAST: u64 = 1 << 11;
const NET_ADMIN: u64 = 1 << 12;

type Status = BTreeMap<String, String>;

fn read_status(path: &Path) -> Option<Status> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect())
}

/// The status of every thread of a process.
fn threads(pid: u32) -> Vec<Status> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.filter_map(|task| read_status(&task.unwrap().path().join("status"))).collect()
}

fn children(pid: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_child = |child: &u32| {
        read_status(Path::new(&format!("/proc/{child}/status")))
            .is_some_and(|status| status["PPid"] == pid.to_string() && !status["State"].starts_with('Z'))
    };
    processes.filter(is_child).collect()
}

fn assert_has(status: &Status, capabilities: u64, handed_on: u64, who: &str) {
    for (set, expected) in
        [("CapEff", capabilities), ("CapPrm", capabilities), ("CapBnd", capabilities), ("CapInh", handed_on), ("CapAmb", handed_on)]
    {
        assert_eq!(u64::from_str_radix(&status[set], 16).unwrap(), expected, "{set} of thread {} of {who}", status["Name"]);
    }
    assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"), "thread {} of {who}", status["Name"]);
}

#[test]
fn every_thread_of_a_running_agent_has_what_it_needs_and_no_more() {
    let mut shop = Shop::start("fbp1").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    // A denied flow, so that everything that there is has run.
    assert!(!probe(&shop.workload("stranger").namespace, shop.workload("db").v4.into(), Kind::Tcp(5432)).unwrap());
    let agent = shop.agents.get_mut("node-b").unwrap().process().unwrap().id();
    let of_agent = threads(agent);
    assert!(of_agent.len() > 3, "{of_agent:?}");
    for thread in &of_agent {
        assert_has(thread, NET_ADMIN | NET_BROADCAST, 0, "the agent");
    }
    let helper = children(agent);
    assert_eq!(helper.len(), 1, "the agent has its helper and no other child");
    // Without a Docker engine it need not look at other processes.
    threads(helper[0]).iter().for_each(|thread| assert_has(thread, NET_ADMIN, NET_ADMIN, "the helper"));
    assert_eq!(children(helper[0]), [0u32; 0], "nft has ended");
}

#[test]
fn an_agent_whose_helper_dies_ends_and_its_next_start_goes_on_without_a_gap() {
    let mut shop = Shop::start("fbp2").unwrap();
    shop.controller.apply(&usual_policies()).unwrap();
    let agent = shop.agents.get_mut("node-b").unwrap().process().unwrap().id();
    let [helper] = children(agent)[..] else { panic!("no helper") };
    kill(Pid::from_raw(i32::try_from(helper).unwrap()), Signal::SIGKILL).unwrap();
    let node = shop.agents.get_mut("node-b").unwrap();
    wait::until_true("the agent to end", PATIENCE, || node.process().unwrap().check().is_err()).unwrap();
    assert!(node.log().contains("\"helper\""), "{}", node.log());
    let denied = |shop: &Shop| !probe(&shop.workload("stranger").namespace, shop.workload("db").v4.into(), Kind::Tcp(5432)).unwrap();
    let allowed = |shop: &Shop| probe(&shop.workload("api").namespace, shop.workload("db").v4.into(), Kind::Tcp(5432)).unwrap();
    assert!(denied(&shop) && allowed(&shop), "while there is no agent");
    shop.agents.get_mut("node-b").unwrap().start_again(&shop.nodes["node-b"]).unwrap();
    shop.wait_enforced().unwrap();
    assert!(denied(&shop) && allowed(&shop), "with the next agent");
}

#[test]
fn a_killed_agent_takes_its_helper_with_it() {
    let mut shop = Shop::start("fbp3").unwrap();
    let agent = shop.agents.get_mut("node-a").unwrap();
    let [helper] = children(agent.process().unwrap().id())[..] else { panic!("no helper") };
    agent.kill().unwrap();
    wait::until_true("the helper to end", PATIENCE, || !Path::new(&format!("/proc/{helper}")).exists()).unwrap();
}

#[test]
fn ready_for_systemd_means_that_the_tables_are_in_force() {
    let node = Namespace::new(&format!("fbp4{}", std::process::id())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = node.command(binaries().unwrap().join("firebreak-agent"));
    command.args(["run", "--node", "n", "--docker-socket", "none", "--state-dir"]).arg(folder.path().join("state"));
    command.env("NOTIFY_SOCKET", &path);
    let _agent = Process::start("agent", command, &folder.path().join("log")).unwrap();
    let mut text = [0; 32];
    let length = notify.recv(&mut text).unwrap();
    assert_eq!(&text[..length], b"READY=1");
    // Without any controller: what nobody knows is denied from here on.
    assert!(node.output("nft list ruleset").unwrap().contains("table inet firebreak"));
}
