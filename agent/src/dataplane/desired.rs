//! What the kernel is to hold. The agent's core makes it; nothing here knows how it gets there.

use firebreak_policy::kernel_sets::{Comment, KernelSets};
use firebreak_policy::model::InterfaceName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything that the agent writes into the kernel at run time. The rules are fixed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Policy, flattened for the workloads that are alive on this node.
    pub sets: KernelSets,
    /// The interfaces of local workloads, by ifindex, isolated or not: they may talk, and policy decides with whom.
    pub interfaces: BTreeMap<u32, ManagedInterface>,
    /// Interfaces that match a pattern but are no workload's (they carry a default route, or are no veth), by ifindex: they may
    /// talk, and nobody judges them.
    pub exempt: BTreeMap<u32, InterfaceName>,
}

/// The host-side interface of a local workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedInterface {
    /// Its name now; the ifindex is what counts.
    pub name: InterfaceName,
    /// Whose it is, for people: becomes the comment of the elements about it. `shop/web-1`.
    pub workload: Comment,
    /// The addresses of the workload behind it.
    pub addresses: BTreeSet<IpAddr>,
}
