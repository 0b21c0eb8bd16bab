//! What a process can no longer do once it is confined. One test: it confines this very process.
#![allow(clippy::unwrap_used)]

use firebreak_agent::confine::{Role, confine, names};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, Uid, execv, execveat, setuid};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::process::Command;

/// `KEY` of `/proc/self/task/*/status`, of each thread.
fn of_each_thread(key: &str) -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let statuses = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    statuses.map(|status| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()).collect()
}

#[test]
fn a_confined_agent_can_start_nothing_and_get_nothing_back() {
    assert!(Command::new("/bin/true").status().unwrap().success(), "before, it can");
    // The test's thread is not the process's only one, unlike the agent's: the filter goes to all, capabilities are of this one.
    let confined = confine(Role::Agent, true).unwrap();
    assert_eq!(names(confined.capabilities), "CAP_NET_BROADCAST CAP_NET_ADMIN");
    assert!(confined.bounded && confined.filtered);
    assert!(of_each_thread("Seccomp:").iter().all(|mode| mode == "2"), "TSYNC reaches every thread");
    assert!(of_each_thread("NoNewPrivs:").contains(&"1".to_owned()));

    let error = Command::new("/bin/true").status().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM), "a program");
    assert_eq!(execv(c"/bin/true", &[c"true"]).unwrap_err(), Errno::EPERM);
    let here = execveat(AT_FDCWD, c"/bin/true", &[c"true"], &[c""], AtFlags::empty());
    assert_eq!(here.unwrap_err(), Errno::EPERM);
    let own = [1u8; 1];
    let remote = [RemoteIoVec { base: own.as_ptr() as usize, len: 1 }];
    let looked = process_vm_readv(Pid::this(), &mut [std::io::IoSliceMut::new(&mut [0])], &remote);
    assert_eq!(looked.unwrap_err(), Errno::EPERM, "even into itself");
    assert_eq!(unshare(CloneFlags::CLONE_NEWUSER).unwrap_err(), Errno::EPERM);
    assert_eq!(mount(Some("none"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap_err(), Errno::EPERM);
    assert_eq!(setuid(Uid::from_raw(1)).unwrap_err(), Errno::EPERM);

    let mut more = capabilities(None).unwrap();
    more.permitted |= CapabilitySet::SYS_ADMIN;
    more.effective |= CapabilitySet::SYS_ADMIN;
    assert_eq!(set_capabilities(None, more).unwrap_err(), rustix::io::Errno::PERM);

    let thread = std::thread::spawn(|| std::fs::read_to_string("/proc/thread-self/status").unwrap());
    let status = thread.join().unwrap();
    for line in [
        "CapEff:\t0000000000001800",
        "CapPrm:\t0000000000001800",
        "CapBnd:\t0000000000001800",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line}: a thread that starts later has what is left: {status}");
    }
}
