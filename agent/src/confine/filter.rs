//! The seccomp filter: a list of what is refused, so that a library or a kernel that brings a new harmless system call breaks
//! nothing. What is refused answers EPERM and has no effect; a call of another architecture's ends the process.

use super::Role;
use nix::errno::Errno;
use nix::libc;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    apply_filter_all_threads,
};
use std::collections::BTreeMap;

/// A system call by its name and number.
type Call = (&'static str, libc::c_long);

macro_rules! calls {
    ($list:ident: $($call:ident),* $(,)?) => {
        const $list: &[Call] = &[$((stringify!($call), libc::$call)),*];
    };
}

// What none of our processes does: looking into or steering others, mounts and namespaces, modules, other kernels and programs in
// the kernel, clocks, names and quotas of the machine, keys, raw hardware, becoming another user.
calls! { NEVER:
    SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_process_madvise, SYS_pidfd_getfd, SYS_kcmp,
    SYS_perf_event_open, SYS_bpf, SYS_userfaultfd, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig,
    SYS_fsmount, SYS_fspick, SYS_mount_setattr, SYS_setns, SYS_unshare, SYS_name_to_handle_at, SYS_open_by_handle_at,
    SYS_mknodat, SYS_fanotify_init, SYS_quotactl, SYS_quotactl_fd, SYS_swapon, SYS_swapoff, SYS_acct, SYS_init_module,
    SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_kexec_file_load, SYS_reboot, SYS_syslog, SYS_settimeofday,
    SYS_clock_settime, SYS_clock_adjtime, SYS_adjtimex, SYS_sethostname, SYS_setdomainname, SYS_add_key,
    SYS_request_key, SYS_keyctl, SYS_personality, SYS_vhangup, SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid,
    SYS_setresuid, SYS_setresgid, SYS_setfsuid, SYS_setfsgid, SYS_setgroups,
}

#[cfg(target_arch = "x86_64")]
calls! { NEVER_ON_X86_64:
    SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_mknod,
}
#[cfg(not(target_arch = "x86_64"))]
const NEVER_ON_X86_64: &[Call] = &[];

fn never() -> impl Iterator<Item = Call> {
    NEVER.iter().chain(NEVER_ON_X86_64).copied()
}

/// The names of what each of our processes is refused, as systemd writes them.
pub fn never_called() -> impl Iterator<Item = &'static str> {
    never().map(|(name, _)| name.trim_start_matches("SYS_"))
}

/// Programs.
const EXECUTE: &[libc::c_long] = &[libc::SYS_execve, libc::SYS_execveat];
/// Processes, beside `clone` without `CLONE_THREAD`.
#[cfg(target_arch = "x86_64")]
const FORK: &[libc::c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const FORK: &[libc::c_long] = &[];

/// System calls of the x32 ABI have the same architecture as those of x86-64 and this bit (`__X32_SYSCALL_BIT`).
#[cfg(target_arch = "x86_64")]
const X32: libc::c_long = 0x4000_0000;
/// Those that have numbers of their own there (arch/x86/entry/syscalls/syscall_64.tbl: execve, ptrace, process_vm_readv,
/// process_vm_writev, kexec_load, execveat).
#[cfg(target_arch = "x86_64")]
const X32_OWN: [libc::c_long; 6] = [520, 521, 528, 539, 540, 545];

/// Whether this kernel can filter, and answer with an error number.
pub(crate) fn probe() -> Result<(), String> {
    const PATH: &str = "/proc/sys/kernel/seccomp/actions_avail";
    let actions = std::fs::read_to_string(PATH).map_err(|error| format!("{PATH}: {error}"))?;
    let answers = actions.split_ascii_whitespace().any(|action| action == "errno");
    if answers { Ok(()) } else { Err(format!("{PATH}: no errno among {}", actions.trim())) }
}

/// Puts the filters in force for every thread. `false`: this kernel has no seccomp filters.
pub(super) fn install(role: Role) -> Result<bool, Error> {
    let programs = programs(role)?;
    for program in &programs {
        match apply_filter_all_threads(program) {
            Ok(()) => {}
            Err(Error::Seccomp(error)) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn programs(role: Role) -> Result<Vec<BpfProgram>, Error> {
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = never().map(|(_, number)| (number, Vec::new())).collect();
    let mut programs = Vec::new();
    match role {
        Role::Helper { docker: _ } => {}
        Role::Agent | Role::DockerWatch => {
            refused.extend(EXECUTE.iter().chain(FORK).map(|number| (*number, Vec::new())));
            let thread = u64::try_from(libc::CLONE_THREAD).unwrap_or(u64::MAX);
            // flags & CLONE_THREAD == 0: a process and not a thread.
            let process = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), 0)?;
            refused.insert(libc::SYS_clone, vec![SeccompRule::new(vec![process])?]);
            // Its flags are in memory, where no filter looks. glibc asks `clone` instead when the answer is ENOSYS.
            programs.push(program(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), Errno::ENOSYS)?);
        }
    }
    programs.push(program(refused, Errno::EPERM)?);
    Ok(programs)
}

fn program(mut refused: BTreeMap<i64, Vec<SeccompRule>>, answer: Errno) -> Result<BpfProgram, Error> {
    #[cfg(target_arch = "x86_64")]
    {
        let same: Vec<_> = refused.iter().map(|(number, rules)| (number | X32, rules.clone())).collect();
        refused.extend(same);
        if answer == Errno::EPERM {
            refused.extend(X32_OWN.map(|number| (number | X32, Vec::new())));
        }
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    // Positive by the kernel's definition of errno.
    let answer = SeccompAction::Errno(answer as u32);
    let filter = SeccompFilter::new(refused, SeccompAction::Allow, answer, arch)?;
    Ok(BpfProgram::try_from(filter)?)
}
