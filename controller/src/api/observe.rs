//! SetObserve: break-glass for one node.

use super::ask::of_live;
use super::refusal::{invalid, of_store};
use super::{OperatorApi, object};
use crate::auth::{Act, Principal, Target, authorize};
use crate::store::Verb;
use firebreak_policy::model::NodeName;
use firebreak_proto::v1;
use std::time::Duration;
use tonic::Status;

/// As the agents have it too.
const LONGEST: Duration = Duration::from_secs(4 * 3600);

impl OperatorApi {
    /// Into the audit trail first: nobody is let through by an order that no trail has.
    pub(super) async fn observe_node(
        &self,
        principal: Principal,
        request: v1::SetObserveRequest,
    ) -> Result<v1::SetObserveResponse, Status> {
        let v1::SetObserveRequest { name, duration, reason } = request;
        if name.is_empty() {
            return Err(invalid("name", "is empty; it names the node"));
        }
        let node = NodeName::from(name);
        authorize(&principal, Act::Observe, Target::Node(&node))?;
        let reason = object::reason(reason)?;
        let time = match duration.map(Duration::try_from) {
            None => None,
            Some(Ok(time)) if time >= Duration::from_secs(1) && time <= LONGEST => Some(time),
            Some(Ok(_) | Err(_)) => return Err(invalid("duration", "is not between 1 s and 4 h")),
        };
        if time.is_some() && reason.trim().is_empty() {
            return Err(invalid("reason", "is empty; say why what policy denies is to be let through"));
        }
        let what = match time {
            Some(time) => format!("node {node} for {} s: {reason}", time.as_secs()),
            None => format!("node {node} ended: {reason}"),
        };
        let written = self.store.note_observe(node.clone(), principal.to_string(), what, self.now()).await;
        let revision = written.map_err(|error| of_store(&error))?;
        tracing::warn!(principal = %principal, verb = Verb::Observe.as_str(), revision = revision.0, node = %node, reason = %reason, "observe");
        let duration = time.and_then(|time| prost_types::Duration::try_from(time).ok());
        let order = v1::Observe { duration, principal: principal.to_string(), reason, revision: revision.0 };
        let observing = self.live.observe(node, order).await.map_err(of_live)?;
        Ok(v1::SetObserveResponse { revision: revision.0, observing })
    }
}
