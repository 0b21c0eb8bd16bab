//! Who calls, and what they may do. One interceptor names the caller; every handler asks [`authorize`] once.
//!
//! Until mutual TLS comes, two things are known of a caller. On the operator socket the kernel tells the process's user (`SO_PEERCRED`, unix(7)),
//! and **whoever can connect is an operator**: the socket's owner, group and mode 0660 decide who that is. On the agents' listener nothing is
//! known: a caller becomes a node by its first message, and the store pins a node's name to one installation on first use.

use crate::store::ObjectKey;
use firebreak_policy::model::NodeName;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::service::Interceptor;
use tonic::transport::server::{TcpConnectInfo, UdsConnectInfo};
use tonic::{Request, Status};

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Somebody who could connect to the operator socket.
    Operator {
        /// The user of the connecting process.
        uid: u32,
        /// That user's name, if the machine knows one.
        user: Option<Arc<str>>,
    },
    /// The agent of a node whose name is pinned to the calling installation.
    Node(NodeName),
    /// Somebody on the agents' listener who has not said yet which node it is.
    Stranger(SocketAddr),
}

/// As the audit trail writes it: `uid 0 (root)`, `node n1`.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator { uid, user: Some(user) } => write!(f, "uid {uid} ({user})"),
            Self::Operator { uid, user: None } => write!(f, "uid {uid}"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Stranger(address) => write!(f, "unknown agent at {address}"),
        }
    }
}

impl Principal {
    /// The principal that the interceptor found for this request. UNAUTHENTICATED when it found none, which only a listener without the
    /// interceptor can lead to.
    #[allow(clippy::result_large_err, reason = "handlers hand the status on")]
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        request.extensions().get::<Self>().cloned().ok_or_else(|| Status::unauthenticated("nobody knows who is calling"))
    }
}

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Create or replace objects.
    Apply,
    /// Delete objects.
    Delete,
    /// Read objects, workloads, nodes, the audit trail.
    Read,
    /// Follow changes.
    Watch,
    /// Ask for a verdict.
    Explain,
    /// See denied flows.
    WatchFlows,
    /// Forget a node.
    DeleteNode,
    /// Make a node let through what policy denies, for a while.
    Observe,
    /// Copy the whole database.
    Backup,
    /// Become a node: the first message of an agent's stream.
    Join,
    /// Report workloads and receive state, as a node.
    Sync,
    /// Report denied flows, as a node.
    ReportFlows,
}

impl Act {
    /// The act as it stands in log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Delete => "delete",
            Self::Read => "read",
            Self::Watch => "watch",
            Self::Explain => "explain",
            Self::WatchFlows => "watch flows",
            Self::DeleteNode => "delete node",
            Self::Observe => "observe node",
            Self::Backup => "backup",
            Self::Join => "join",
            Self::Sync => "sync",
            Self::ReportFlows => "report flows",
        }
    }
}

/// What it is done to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// These objects.
    Objects(&'a [ObjectKey]),
    /// Whatever matches: lists, watches, the audit trail, flows.
    Everything,
    /// This node.
    Node(&'a NodeName),
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Objects([]) => f.write_str("no object"),
            Self::Objects([only]) => write!(f, "{only}"),
            Self::Objects([first, rest @ ..]) => write!(f, "{first} and {} more", rest.len()),
            Self::Everything => f.write_str("everything"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// What a caller may not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{principal} may not {act} {target}", act = .act.as_str())]
pub struct Denied {
    /// Who.
    pub principal: Principal,
    /// What.
    pub act: Act,
    /// To what.
    pub target: String,
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        Self::permission_denied(denied.to_string())
    }
}

/// Whether the caller may. Every handler asks this once, before anything else; a denial is logged here.
///
/// Operators do everything of the operator service and nothing of the agents'; a node acts for itself only; a stranger may only join.
pub fn authorize(principal: &Principal, act: Act, target: Target<'_>) -> Result<(), Denied> {
    let allowed = match (principal, act) {
        (
            Principal::Operator { .. },
            Act::Apply
            | Act::Delete
            | Act::Read
            | Act::Watch
            | Act::Explain
            | Act::WatchFlows
            | Act::DeleteNode
            | Act::Observe
            | Act::Backup,
        ) => true,
        (Principal::Node(own), Act::Sync | Act::ReportFlows) => matches!(target, Target::Node(node) if node == own),
        (Principal::Stranger(_), Act::Join) => matches!(target, Target::Node(_)),
        (Principal::Operator { .. }, Act::Join | Act::Sync | Act::ReportFlows)
        | (
            Principal::Node(_),
            Act::Apply
            | Act::Delete
            | Act::Read
            | Act::Watch
            | Act::Explain
            | Act::WatchFlows
            | Act::DeleteNode
            | Act::Observe
            | Act::Backup
            | Act::Join,
        )
        | (
            Principal::Stranger(_),
            Act::Apply
            | Act::Delete
            | Act::Read
            | Act::Watch
            | Act::Explain
            | Act::WatchFlows
            | Act::DeleteNode
            | Act::Observe
            | Act::Backup
            | Act::Sync
            | Act::ReportFlows,
        ) => false,
    };
    if allowed {
        return Ok(());
    }
    let denied = Denied { principal: principal.clone(), act, target: target.to_string() };
    tracing::warn!(principal = %denied.principal, act = act.as_str(), object = %denied.target, "denied a request");
    Err(denied)
}

/// Names the caller of each request by how it is connected, and puts the [`Principal`] into the request's extensions.
#[derive(Clone, Debug, Default)]
pub struct Identify {
    users: UserNames,
}

impl Interceptor for Identify {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let extensions = request.extensions();
        let uid = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred).map(|credentials| credentials.uid());
        let remote = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let principal = match (uid, remote) {
            (Some(uid), _) => Principal::Operator { uid, user: self.users.name(uid) },
            (None, Some(address)) => Principal::Stranger(address),
            (None, None) => return Err(Status::unauthenticated("the connection does not tell who is calling")),
        };
        request.extensions_mut().insert(principal);
        Ok(request)
    }
}

/// Users' names, looked up once each: a lookup may ask a directory service.
#[derive(Clone, Debug, Default)]
struct UserNames {
    known: Arc<Mutex<BTreeMap<u32, Option<Arc<str>>>>>,
}

impl UserNames {
    /// Users remembered; more than one machine has operators.
    const KEPT: usize = 1_024;

    fn name(&self, uid: u32) -> Option<Arc<str>> {
        if let Some(name) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&uid) {
            return name.clone();
        }
        // A user that cannot be looked up is told by number.
        let found = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
        let name = found.map(|user| Arc::from(user.name));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < Self::KEPT {
            known.insert(uid, name.clone());
        }
        name
    }
}

/// The principal of the process itself, for what it does without a caller (`restore`).
pub fn own_principal() -> Principal {
    let uid = nix::unistd::Uid::effective().as_raw();
    Principal::Operator { uid, user: UserNames::default().name(uid) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_principal_may_do_its_own_and_nothing_else() {
        let operator = Principal::Operator { uid: 0, user: Some(Arc::from("root")) };
        let node = Principal::Node(NodeName::new("n1"));
        let stranger = Principal::Stranger("127.0.0.1:5000".parse().unwrap());
        let (own, other) = (NodeName::new("n1"), NodeName::new("n2"));
        let cases = [
            (&operator, Act::Apply, Target::Objects(&[]), true),
            (&operator, Act::DeleteNode, Target::Node(&own), true),
            (&operator, Act::Observe, Target::Node(&own), true),
            (&operator, Act::Backup, Target::Everything, true),
            (&operator, Act::Sync, Target::Node(&own), false),
            (&operator, Act::Join, Target::Node(&own), false),
            (&node, Act::Sync, Target::Node(&own), true),
            (&node, Act::ReportFlows, Target::Node(&own), true),
            (&node, Act::Sync, Target::Node(&other), false),
            (&node, Act::Sync, Target::Everything, false),
            (&node, Act::Apply, Target::Objects(&[]), false),
            (&node, Act::Read, Target::Everything, false),
            (&stranger, Act::Join, Target::Node(&own), true),
            (&stranger, Act::Join, Target::Everything, false),
            (&stranger, Act::Sync, Target::Node(&own), false),
            (&stranger, Act::Backup, Target::Everything, false),
        ];
        for (principal, act, target, allowed) in cases {
            assert_eq!(authorize(principal, act, target).is_ok(), allowed, "{principal} {} {target}", act.as_str());
        }
    }

    #[test]
    fn a_denial_says_who_what_and_to_what() {
        let keys = [ObjectKey::new("SegmentPolicy", "shop", "db"), ObjectKey::new("Namespace", "", "shop")];
        let denied = authorize(&Principal::Node(NodeName::new("n1")), Act::Apply, Target::Objects(&keys)).unwrap_err();
        assert_eq!(denied.to_string(), "node n1 may not apply SegmentPolicy shop/db and 1 more");
    }
}
