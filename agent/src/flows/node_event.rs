//! What happened to the node's enforcement itself, as a record among the flows.

use super::error::FlowsError;
use super::record::{Record, Told};
use firebreak_proto::v1;
use std::time::{Duration, SystemTime};

/// What a [`NodeTold`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeEventKind {
    /// Somebody else changed our tables.
    Tampered,
    /// They are right again.
    Repaired,
    /// The node lets through what policy denies.
    ObserveBegun,
    /// It does not any more.
    ObserveEnded,
    /// Tables of another version were replaced.
    Upgraded,
    /// The state on disk was not used.
    StateRefused,
    /// The state on disk is enforced before a controller has answered.
    EnforcedFromDisk,
}

/// Something that happened to the enforcement of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTold {
    /// What.
    pub kind: NodeEventKind,
    /// In words.
    pub message: String,
    /// Who; empty when nobody knows.
    pub principal: String,
    /// Why, as they said.
    pub reason: String,
    /// Until when the node observes.
    pub until: Option<SystemTime>,
    /// For how long the tables were not right.
    pub open: Option<Duration>,
    /// What was changed.
    pub objects: Vec<String>,
}

/// How many objects an event names.
pub const OBJECTS_NAMED: usize = 50;

impl NodeTold {
    /// Of this kind, in these words, and nothing else.
    pub fn new(kind: NodeEventKind, message: impl Into<String>) -> Self {
        let (principal, reason) = (String::new(), String::new());
        Self { kind, message: message.into(), principal, reason, until: None, open: None, objects: Vec::new() }
    }

    /// As a record of this moment.
    pub fn at(self, time: SystemTime) -> Record {
        Record { time, told: Told::Node(Box::new(self)) }
    }

    pub(super) fn to_proto(&self) -> v1::NodeEvent {
        let kind = match self.kind {
            NodeEventKind::Tampered => v1::NodeEventKind::Tampered,
            NodeEventKind::Repaired => v1::NodeEventKind::Repaired,
            NodeEventKind::ObserveBegun => v1::NodeEventKind::ObserveBegun,
            NodeEventKind::ObserveEnded => v1::NodeEventKind::ObserveEnded,
            NodeEventKind::Upgraded => v1::NodeEventKind::Upgraded,
            NodeEventKind::StateRefused => v1::NodeEventKind::StateRefused,
            NodeEventKind::EnforcedFromDisk => v1::NodeEventKind::EnforcedFromDisk,
        };
        v1::NodeEvent {
            kind: kind.into(),
            message: self.message.clone(),
            principal: self.principal.clone(),
            reason: self.reason.clone(),
            until: self.until.map(Into::into),
            open: self.open.and_then(|open| prost_types::Duration::try_from(open).ok()),
            objects: self.objects.iter().take(OBJECTS_NAMED).cloned().collect(),
        }
    }

    pub(super) fn from_proto(event: v1::NodeEvent) -> Result<Self, FlowsError> {
        let malformed = |reason| FlowsError::Decode { what: "node event", reason };
        let kind = match v1::NodeEventKind::try_from(event.kind) {
            Ok(v1::NodeEventKind::Tampered) => NodeEventKind::Tampered,
            Ok(v1::NodeEventKind::Repaired) => NodeEventKind::Repaired,
            Ok(v1::NodeEventKind::ObserveBegun) => NodeEventKind::ObserveBegun,
            Ok(v1::NodeEventKind::ObserveEnded) => NodeEventKind::ObserveEnded,
            Ok(v1::NodeEventKind::Upgraded) => NodeEventKind::Upgraded,
            Ok(v1::NodeEventKind::StateRefused) => NodeEventKind::StateRefused,
            Ok(v1::NodeEventKind::EnforcedFromDisk) => NodeEventKind::EnforcedFromDisk,
            Ok(v1::NodeEventKind::Unspecified) | Err(_) => return Err(malformed("kind")),
        };
        let until = event.until.map(SystemTime::try_from).transpose().map_err(|_| malformed("until"))?;
        let open = event.open.map(Duration::try_from).transpose().map_err(|_| malformed("open"))?;
        let v1::NodeEvent { message, principal, reason, objects, .. } = event;
        Ok(Self { kind, message, principal, reason, until, open, objects })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::record::from_proto;
    use super::*;

    #[test]
    fn an_event_is_read_back_as_it_was_told() {
        use NodeEventKind::*;
        for kind in [Tampered, Repaired, ObserveBegun, ObserveEnded, Upgraded, StateRefused, EnforcedFromDisk] {
            let told = NodeTold {
                principal: "uid 0 (root)".to_owned(),
                reason: "locked out".to_owned(),
                until: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
                open: Some(Duration::from_millis(12)),
                objects: vec!["chain inet firebreak forward".to_owned()],
                ..NodeTold::new(kind, "words")
            };
            let record = told.at(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
            assert_eq!(from_proto(record.to_proto(7)).unwrap(), record);
        }
        assert!(NodeTold::from_proto(v1::NodeEvent::default()).is_err());
    }
}
