//! The systemd units: whether systemd takes them, and whether they say the same as the code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_agent::confine::{Role, names, never_called};
use rustix::thread::CapabilitySet;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const AGENT: &str = "firebreak-agent.service";
const CONTROLLER: &str = "firebreak-controller.service";

fn unit(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd").join(name)).unwrap()
}

/// The values of a setting, in order.
fn settings<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

fn systemd_analyze(arguments: &[&str]) -> String {
    let output = Command::new("systemd-analyze").args(arguments).output().expect("systemd-analyze: scripts/setup installs it");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "systemd-analyze {}: {text}", arguments.join(" "));
    text
}

#[test]
fn systemd_takes_the_units_and_finds_them_well_confined() {
    let folder = tempfile::tempdir().unwrap();
    // Exposure in tenths, by `systemd-analyze security`: 0 is none, 100 is unconfined. The agent needs the network's administration and netlink.
    for (name, exposure) in [(AGENT, "35"), (CONTROLLER, "15")] {
        // The programs are not installed here; any program does.
        let text = unit(name).replace("ExecStart=/usr/bin/firebreak-", "ExecStart=/bin/true /usr/bin/firebreak-");
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(systemd_analyze(&["verify", path]), "", "{name}");
        systemd_analyze(&["security", "--offline=true", "--threshold", exposure, path]);
    }
}

#[test]
fn the_agents_unit_allows_what_its_processes_keep_and_no_more() {
    let unit = unit(AGENT);
    let kept = [Role::Agent, Role::Helper { docker: true }, Role::DockerWatch].map(Role::capabilities);
    // The last one is what it takes to give up the others.
    let needed = kept.into_iter().fold(CapabilitySet::SETPCAP, |all, one| all | one);
    let written: BTreeSet<&str> = settings(&unit, "CapabilityBoundingSet").concat().leak().split(' ').collect();
    assert_eq!(written, names(needed).split(' ').collect::<BTreeSet<_>>());
    assert_eq!(settings(&unit, "NoNewPrivileges"), ["yes"]);

    let mut refused = BTreeSet::new();
    for word in
        settings(&unit, "SystemCallFilter").iter().flat_map(|list| list.strip_prefix('~').expect("a list of what is refused").split(' '))
    {
        match word.strip_prefix('@') {
            Some(_) => {
                let listed = systemd_analyze(&["syscall-filter", word]);
                refused.extend(
                    listed.lines().filter_map(|line| line.strip_prefix("    ")).filter(|call| !call.starts_with('#')).map(str::to_owned),
                );
            }
            None => {
                refused.insert(word.to_owned());
            }
        }
    }
    let missing: Vec<_> = never_called().filter(|call| !refused.contains(*call)).collect();
    assert!(missing.is_empty(), "the unit's filter lacks {missing:?}");
    for call in ["execve", "clone", "seccomp", "prctl", "capset", "socket", "sendmsg"] {
        assert!(!refused.contains(call), "the agent or its helper needs {call}");
    }
}

#[test]
fn containers_start_behind_the_agent_and_the_agent_says_when_it_enforces() {
    let unit = unit(AGENT);
    let before = settings(&unit, "Before").concat();
    for other in ["docker.service", "containerd.service", "kubelet.service"] {
        assert!(before.split(' ').any(|word| word == other), "{before}");
    }
    assert_eq!((settings(&unit, "Type"), settings(&unit, "KillMode")), (vec!["notify"], vec!["mixed"]));
    assert_eq!(settings(&unit, "StateDirectory"), ["firebreak/agent"]);
}
