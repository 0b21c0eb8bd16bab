//! One publication as those who name ends ask it, and the reasons that were worked out with it.

use super::kept::{End, Why};
use crate::hub::published::Published;
use firebreak_policy::model::{Direction, NodeName, Protocol, PublishedPort, Transport, Workload, WorkloadId};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, Hash, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Reasons are kept in so many parts, each with a lock of its own, by the reporter's node: a batch takes one of them.
const PARTS: usize = 4;
/// Reasons in one part: more than the flows of a flood at one node. 131,072 in all take some 60 MB.
const MOST: usize = 32_768;

/// A publication, with answers that are remembered for as long as it is the newest.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) published: Arc<Published>,
    /// Made when somebody asks: where no stranger is denied nobody does.
    nodes: OnceLock<HashMap<IpAddr, NodeName>>,
    reasons: [Mutex<Reasons>; PARTS],
    hasher: RandomState,
}

/// Reasons by what they depend on, beside the publication. A part that is full begins anew.
#[derive(Debug, Default)]
pub(crate) struct Reasons {
    known: HashMap<Question, Option<Arc<Why>>>,
}

/// All that a reason depends on, beside the publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) node: NodeName,
    pub(crate) direction: Direction,
    pub(crate) source: (IpAddr, Who),
    pub(crate) destination: (IpAddr, Who),
    pub(crate) transport: Transport,
    /// What the node made of it.
    pub(crate) outcome: Outcome,
}

/// What a node made of a flow, and by which generation where the newest policy may say otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Let through.
    Passed,
    /// Denied.
    Denied(u64),
    /// Let through, and told as what would have been denied: by a policy in Audit mode, or while the node observes.
    Audited(u64),
}

/// Who an end is. Which node has an address is the publication's word.
#[derive(Clone, Debug)]
pub(crate) enum Who {
    /// This one as it was then: the same memory. Held, so that nothing else comes to be there.
    Workload(Arc<Workload>),
    Node,
    Nobody,
}

impl Who {
    pub(crate) fn of(end: &End) -> Self {
        match (&end.workload, &end.node) {
            (Some(workload), _) => Self::Workload(Arc::clone(workload)),
            (None, Some(_)) => Self::Node,
            (None, None) => Self::Nobody,
        }
    }

    fn place(&self) -> (u8, *const Workload) {
        match self {
            Self::Workload(workload) => (0, Arc::as_ptr(workload)),
            Self::Node => (1, std::ptr::null()),
            Self::Nobody => (2, std::ptr::null()),
        }
    }
}

impl PartialEq for Who {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Who {}

/// Packed, as this is done for every record: what tells questions apart in a flood. The rest is compared.
impl Hash for Question {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let transport = match self.transport {
            Transport::Port(protocol, port) => u64::from(protocol.0) << 16 | u64::from(port),
            Transport::Icmp { family: _, kind, code } => u64::from(kind) << 8 | u64::from(code),
            Transport::Other(protocol) => u64::from(protocol.0),
        };
        let mut packed = [0; 56];
        packed[..16].copy_from_slice(&bits(self.source.0).to_ne_bytes());
        packed[16..32].copy_from_slice(&bits(self.destination.0).to_ne_bytes());
        packed[32..40].copy_from_slice(&transport.to_ne_bytes());
        packed[40..48].copy_from_slice(&(self.source.1.place().1 as u64).to_ne_bytes());
        packed[48..].copy_from_slice(&(self.destination.1.place().1 as u64).to_ne_bytes());
        state.write(&packed);
    }
}

impl View {
    pub(crate) fn of(published: Arc<Published>) -> Self {
        Self { published, nodes: OnceLock::new(), reasons: Default::default(), hasher: RandomState::new() }
    }

    /// The reasons of a node's flows.
    pub(crate) fn reasons(&self, node: &NodeName) -> MutexGuard<'_, Reasons> {
        let part = usize::try_from(self.hasher.hash_one(node) % PARTS as u64).unwrap_or(0);
        // Within bounds by the line above.
        self.reasons[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node whose own address this is. Bridges of several nodes may have one address; the asking node's own goes first, then the first by name.
    pub(crate) fn node_at(&self, asking: &NodeName, address: IpAddr) -> Option<&NodeName> {
        let nodes = &self.published.inventory.nodes;
        if let Some(own) = nodes.get(asking).filter(|node| node.addresses.contains(&address)) {
            return Some(&own.name);
        }
        let index = || {
            let mut index = HashMap::new();
            for node in nodes.values() {
                for address in &node.addresses {
                    index.entry(*address).or_insert_with(|| node.name.clone());
                }
            }
            index
        };
        self.nodes.get_or_init(index).get(&address)
    }

    /// Whether a node hides workloads behind masquerading.
    pub(crate) fn hides(&self, node: &NodeName) -> bool {
        self.workloads_of(node).any(|it| it.addresses.iter().any(|at| !at.network.is_default()))
    }

    /// The workload behind a port of an address of the node itself.
    pub(crate) fn published_port(&self, node: &NodeName, at: IpAddr, protocol: Protocol, port: u16) -> Option<(&Workload, &PublishedPort)> {
        self.published.inventory.nodes.get(node).filter(|node| node.addresses.contains(&at))?;
        let here = self.workloads_of(node).filter(|it| !it.terminated);
        let mut ports = here.flat_map(|workload| workload.published_ports.iter().map(move |port| (workload, port)));
        ports.find(|(_, it)| it.protocol == protocol && it.host_port == port && it.host_address.is_none_or(|bound| bound == at))
    }

    fn workloads_of(&self, node: &NodeName) -> impl Iterator<Item = &Workload> {
        let first = WorkloadId::new(node.clone(), "");
        self.published.inventory.workloads.range(first..).map(|(_, workload)| workload).take_while(move |it| it.id.node == *node)
    }
}

impl Reasons {
    /// The reason that is known, or that `work_out` finds.
    pub(crate) fn get(&mut self, question: Question, work_out: impl FnOnce() -> Option<Arc<Why>>) -> Option<Arc<Why>> {
        if self.known.len() == MOST {
            self.known.clear();
        }
        match self.known.entry(question) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(place) => place.insert(work_out()).clone(),
        }
    }
}
