//! What the kernel is to hold. The agent's core makes it; nothing here knows how it gets there.

use firebreak_policy::kernel_sets::{Comment, KernelSets};
use firebreak_policy::model::InterfaceName;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
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

/// An Ethernet address (IEEE 802 MAC-48).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether one station can have it: not a group's, not everybody's, not all zeros.
    pub fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a guard may bind an interface to: nothing else passes it. Who else claims the same is not looked at here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The workload's MAC address; without one nothing is bound.
    pub mac: Option<MacAddress>,
    /// Its IP addresses, link-local ones included.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether somebody outside the workload says so (an engine). Of two that claim one address, this one has it.
    pub vouched: bool,
    /// The link that its MAC and link-local addresses mean something on: the ifindex of its bridge, or its own.
    pub link: u32,
}

/// The host-side interface of a local workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedInterface {
    /// Its name now; the ifindex is what counts.
    pub name: InterfaceName,
    /// Whose it is, for people: becomes the comment of the elements about it. `shop/web-1`.
    pub workload: Comment,
    /// The addresses of the workload behind it: those it is judged at.
    pub addresses: BTreeSet<IpAddr>,
    /// What its guard may bind it to.
    pub claim: Claim,
}
