//! What the API asks of the running system, beside the store.

use crate::flows::Kept;
use crate::store::ObjectKey;
use firebreak_policy::model::{LabelSelector, NamespaceName, NodeName, Revision, Transport, WorkloadId};
use firebreak_proto::v1;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::broadcast;

/// Which workloads to list, in the order of their ids.
#[derive(Clone, Debug)]
pub struct WorkloadQuery {
    /// `None` is every namespace.
    pub namespace: Option<NamespaceName>,
    /// `None` is every node.
    pub node: Option<NodeName>,
    /// Which labels.
    pub selector: LabelSelector,
    /// Only workloads after this one.
    pub after: Option<WorkloadId>,
    /// At most so many.
    pub limit: usize,
}

/// Which nodes to list, in the order of their names.
#[derive(Clone, Debug)]
pub struct NodeQuery {
    /// `None` is every node.
    pub name: Option<NodeName>,
    /// Only nodes after this one.
    pub after: Option<NodeName>,
    /// At most so many.
    pub limit: usize,
}

/// One end of a flow, as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndName {
    /// An address.
    Address(IpAddr),
    /// A workload by name.
    Workload {
        /// Its namespace.
        namespace: NamespaceName,
        /// Its name.
        name: String,
        /// Its node, where the person says so.
        node: Option<NodeName>,
    },
}

/// A flow that might be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The source.
    pub from: EndName,
    /// The destination.
    pub to: EndName,
    /// What it carries.
    pub transport: Transport,
}

/// Why something cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LiveError {
    /// No such workload.
    #[error("{0}")]
    NotFound(String),
    /// The name fits several; the text names them.
    #[error("{field}: {reason}")]
    Unclear {
        /// Which part of the request.
        field: &'static str,
        /// What it could mean.
        reason: String,
    },
    /// The other side is not there, or does not do it.
    #[error("{0}")]
    NotReady(String),
    /// The controller is starting and does not know everything yet, or it is stopping.
    #[error("{0}")]
    Unavailable(&'static str),
}

/// The hub as the API sees it.
#[tonic::async_trait]
pub trait Live: Send + Sync + 'static {
    /// What is known of each of these objects, in their order, once the hub has taken in `revision`.
    async fn conditions(&self, objects: Vec<ObjectKey>, revision: Revision) -> Result<Vec<Vec<v1::Condition>>, LiveError>;

    /// Workloads and how they are enforced.
    async fn workloads(&self, query: WorkloadQuery) -> Result<Vec<v1::WorkloadStatus>, LiveError>;

    /// Nodes and how far they are.
    async fn nodes(&self, query: NodeQuery) -> Result<Vec<v1::NodeStatus>, LiveError>;

    /// Tells a node to observe, or to stop, and waits until it says so: as it reports it then.
    async fn observe(&self, _node: NodeName, _order: v1::Observe) -> Result<Option<v1::Observing>, LiveError> {
        Err(LiveError::NotReady("nodes cannot be told anything here".to_owned()))
    }

    /// The verdict on a flow.
    async fn explain(&self, question: Question) -> Result<v1::ExplainResponse, LiveError>;
}

/// The kept and the coming denied flows.
pub trait FlowTap: Send + Sync + 'static {
    /// Kept flows with a cursor over `after`, oldest first, at most the newest `limit` of them.
    fn recent(&self, after: u64, limit: usize) -> Vec<Arc<Kept>>;

    /// Flows from now on.
    fn subscribe(&self) -> broadcast::Receiver<Arc<Kept>>;
}
