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

/// What none of our processes does: looking into or steering others, mounts and namespaces, modules, other kernels and programs in
/// the kernel, clocks, names and quotas of the machine, keys, raw hardware, becoming another user.
const NEVER: &[libc::c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_vhangup,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
];

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
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = NEVER.iter().map(|number| (*number, Vec::new())).collect();
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
