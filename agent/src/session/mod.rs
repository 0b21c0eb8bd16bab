//! The session with the controller: what runs here goes up, what is to be enforced comes down. The state that was received
//! is held in memory across connections; a lost controller changes nothing on this node.

mod backoff;
pub mod held;
mod report;
mod run;
mod stream;

pub use backoff::Backoff;
pub use held::{Committed, Held, HeldError};
pub use run::run;
pub use stream::SessionError;

use crate::local::{LocalWorkloads, Warning};
use crate::observe::{Answered, Observing, Request};
use firebreak_policy::model::{Generation, NodeName, Revision};
use firebreak_proto::Refusal;
use firebreak_proto::hash::ObjectKey;
use firebreak_proto::workload::DeclaredWorkload;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tonic::transport::Endpoint;

/// Who this agent is, and where its controller is.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The controller's agent service.
    pub endpoint: Endpoint,
    /// This node.
    pub node: NodeName,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// Made at the first start of this installation.
    pub instance_id: String,
    /// Of this boot of the kernel.
    pub boot_id: String,
    /// The kernel's release, for people.
    pub kernel: String,
    /// How long to wait between attempts.
    pub backoff: Backoff,
}

/// How the session hangs together with the rest of the agent.
#[derive(Debug)]
pub struct SessionLinks {
    /// What runs here.
    pub local: watch::Receiver<Arc<LocalWorkloads>>,
    /// What the enforcing side has to say.
    pub status: watch::Receiver<NodeStatus>,
    /// The outcome of the last change in the kernel.
    pub applied: watch::Receiver<Option<Arc<Applied>>>,
    /// What manifests declare for this node; `None` until a controller said so.
    pub declared: watch::Sender<Option<Arc<Vec<DeclaredWorkload>>>>,
    /// The last complete state; `None` until the first.
    pub committed: watch::Sender<Option<Arc<Committed>>>,
    /// What is counted.
    pub stats: Arc<SessionStats>,
    /// Where an order to observe, or to stop that, goes.
    pub observe: mpsc::Sender<Request>,
}

/// Counts of sessions, for the metrics.
#[derive(Debug, Default)]
pub struct SessionStats {
    /// Whether the controller has said Welcome and nothing has ended the session since.
    pub is_connected: AtomicBool,
    /// Sessions begun.
    pub sessions: AtomicU64,
}

/// What the enforcing side has to say of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Whether the node's tables are in the kernel and as they should be.
    pub tables_whole: bool,
    /// Whether preflight found nothing that makes enforcement void.
    pub able: bool,
    /// What people should know, beside what discovery found.
    pub warnings: BTreeSet<Warning>,
    /// Set while what policy denies is let through.
    pub observing: Option<Observing>,
    /// What became of the controller's last order to observe.
    pub answered: Option<Answered>,
}

impl NodeStatus {
    /// Whether the node enforces.
    pub fn enforcing(&self) -> bool {
        self.tables_whole && self.able
    }
}

/// How a generation fared in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The controller's lineage.
    pub epoch: String,
    /// The generation.
    pub generation: Generation,
    /// Its revision.
    pub revision: Revision,
    /// When the kernel had it.
    pub at: SystemTime,
    /// How long flattening and the kernel's transaction took.
    pub kernel_time: Duration,
    /// Objects that could not be read.
    pub refused: BTreeMap<ObjectKey, Refusal>,
    /// Why the kernel's former state stays, if it does.
    pub failure: Option<String>,
}
