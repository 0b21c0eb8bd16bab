//! Gives up, once and for good, what a process of ours does not need: capabilities, the way to get them back, and the system calls
//! that an agent never makes. Before any thread is started; what is given up here no later fault can use.

mod filter;

pub use filter::never_called;
pub(crate) use filter::probe as probe_filter;

use rustix::io;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
    set_no_new_privs,
};

/// A process of ours, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The agent itself. It starts no process and no program.
    Agent,
    /// The helper: runs `nft` and, where there is a Docker engine, the watcher, and opens network namespaces of its containers.
    Helper {
        /// Whether there may be a Docker engine.
        docker: bool,
    },
    /// The watcher of the Docker engine. It needs nothing but the engine's socket, which belongs to its user.
    DockerWatch,
}

impl Role {
    /// The capabilities that remain, each with its reason.
    pub fn capabilities(self) -> CapabilitySet {
        // nf_tables, NFLOG and ctnetlink (nfnetlink_rcv), SO_*BUFFORCE, net.bridge.* (net_ctl_permissions), RTM_GETADDR in another
        // namespace (rtnl_get_net_ns_capable).
        let net_admin = CapabilitySet::NET_ADMIN;
        match self {
            // NETLINK_LISTEN_ALL_NSID, when it is set and for each message (netlink_setsockopt, do_one_broadcast).
            Self::Agent => net_admin | CapabilitySet::NET_BROADCAST,
            // /proc/PID/ns/net of a container (ptrace_may_access: it holds capabilities that we do not).
            Self::Helper { docker: true } => net_admin | CapabilitySet::SYS_PTRACE,
            Self::Helper { docker: false } => net_admin,
            Self::DockerWatch => CapabilitySet::empty(),
        }
    }

    /// What programs that it starts are given: `nft` needs this, and the watcher gives it up again.
    fn handed_on(self) -> CapabilitySet {
        match self {
            Self::Helper { docker: _ } => CapabilitySet::NET_ADMIN,
            Self::Agent | Self::DockerWatch => CapabilitySet::empty(),
        }
    }
}

/// As people and systemd write them: `CAP_NET_ADMIN CAP_NET_BROADCAST`, in the kernel's order.
pub fn names(capabilities: CapabilitySet) -> String {
    let mut named: Vec<(u64, &str)> = capabilities.iter_names().map(|(name, one)| (one.bits(), name)).collect();
    named.sort_unstable();
    named.iter().map(|(_, name)| format!("CAP_{name}")).collect::<Vec<_>>().join(" ")
}

/// What could be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confined {
    /// The capabilities that it has now.
    pub capabilities: CapabilitySet,
    /// Whether the bounding set and the secure bits could be changed, which takes CAP_SETPCAP. Without that they are what the process
    /// was started with; with no_new_privs neither gives anything back.
    pub bounded: bool,
    /// Whether the filter of system calls is in force. A kernel without CONFIG_SECCOMP_FILTER has none.
    pub filtered: bool,
}

/// Why nothing, or not everything, was given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A step was refused.
    #[error("{act}: {source}")]
    Refused {
        /// What was tried.
        act: &'static str,
        /// The kernel's answer.
        source: io::Errno,
    },
    /// The filter is one that the kernel does not take.
    #[error("the filter of system calls: {0}")]
    Filter(#[from] seccompiler::Error),
}

fn refused(act: &'static str) -> impl Fn(io::Errno) -> ConfineError {
    move |source| ConfineError::Refused { act, source }
}

/// Gives up what the role does not need. The calling thread must be the only one: capabilities are of the thread, and threads that
/// are started later inherit them; the filter goes to all. `with_filter` is false where the kernel is taken to have none.
///
/// # Errors
/// Which step the kernel refused. What came before it stays given up.
pub fn confine(role: Role, with_filter: bool) -> Result<Confined, ConfineError> {
    let held = capabilities(None).map_err(refused("reading the capabilities"))?.permitted;
    let keep = held & role.capabilities();
    let hand_on = keep & role.handed_on();
    let bounded = held.contains(CapabilitySet::SETPCAP);
    let while_working = keep | (held & CapabilitySet::SETPCAP);
    let set = |act, effective: CapabilitySet| {
        set_capabilities(None, CapabilitySets { effective, permitted: effective, inheritable: hand_on }).map_err(refused(act))
    };

    set("dropping capabilities", while_working)?;
    clear_ambient_capability_set().map_err(refused("emptying the ambient set"))?;
    for capability in hand_on.iter() {
        configure_capability_in_ambient_set(capability, true).map_err(refused("raising an ambient capability"))?;
    }
    if bounded {
        drop_from_bounding_set(keep)?;
        use CapabilitiesSecureBits as Bits;
        // User 0 is nobody special from here on, whatever program it runs or user it becomes, and none of it can be undone.
        let bits = Bits::NO_ROOT | Bits::NO_SETUID_FIXUP | Bits::NO_CAP_AMBIENT_RAISE;
        let locks = Bits::NO_ROOT_LOCKED | Bits::NO_SETUID_FIXUP_LOCKED | Bits::NO_CAP_AMBIENT_RAISE_LOCKED | Bits::KEEP_CAPS_LOCKED;
        set_capabilities_secure_bits(bits | locks).map_err(refused("locking the secure bits"))?;
    }
    set("dropping CAP_SETPCAP", keep)?;
    set_no_new_privs(true).map_err(refused("setting no_new_privs"))?;
    let filtered = with_filter && filter::install(role)?;
    Ok(Confined { capabilities: keep, bounded, filtered })
}

/// Capabilities are numbered without gaps; the kernel refuses a number that it does not know (EINVAL), which ends the list.
fn drop_from_bounding_set(keep: CapabilitySet) -> Result<(), ConfineError> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !keep.contains(capability) => {
                remove_capability_from_bounding_set(capability).map_err(refused("dropping from the bounding set"))?;
            }
            Ok(true | false) => {}
            Err(io::Errno::INVAL) => break,
            Err(source) => return Err(ConfineError::Refused { act: "reading the bounding set", source }),
        }
    }
    Ok(())
}
