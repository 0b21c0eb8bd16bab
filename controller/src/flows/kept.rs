//! A record as it is kept: what many of them share is there once, and the message for people is made when somebody looks.

use crate::hub::wire;
use firebreak_policy::evaluate::DirectionVerdict;
use firebreak_policy::model::{Direction, NodeName, Workload};
use firebreak_proto::convert::address_to_wire;
use firebreak_proto::v1;
use std::net::IpAddr;
use std::sync::Arc;

/// A reporter of records. Another installation on the same boot counts from 1 again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reporter {
    /// Its node.
    pub node: NodeName,
    /// The installation of the agent.
    pub instance: String,
    /// The node's boot.
    pub boot_id: String,
}

/// A record with both ends named and the reason.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The controller's own number; 0 until the record is kept.
    pub cursor: u64,
    /// Whose word it is.
    pub reporter: Arc<Reporter>,
    /// The reporter's number.
    pub sequence: u64,
    /// Both clocks.
    pub time: v1::Stamp,
    /// The policy revision that the reason was worked out with; 0 of a record of our own.
    pub revision: u64,
    /// What it tells of.
    pub what: What,
    /// The source; `None` where the record has none.
    pub source: Option<End>,
    /// The destination; `None` where the record has none.
    pub destination: Option<End>,
    /// Why; `None` where policy was not asked.
    pub reason: Option<Arc<Why>>,
}

/// What a record tells of.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "almost every record is a flow")]
pub enum What {
    /// A denied flow.
    Flow(v1::FlowEvent),
    /// Packets that no record tells of.
    Lost(v1::LostEvent),
    /// A cut connection.
    Cut(Box<v1::CutEvent>),
    /// Something that happened to a node's enforcement.
    NodeEvent(v1::NodeEvent),
    /// Frames that a guard refused.
    Guard(Box<v1::GuardEvent>),
}

/// One end, as of the record's time.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// Its address on the wire; `None` where that is a claim.
    pub address: Option<IpAddr>,
    /// Who held it.
    pub workload: Option<Arc<Workload>>,
    /// The node whose own address it is, where no workload held it.
    pub node: Option<NodeName>,
    /// Why it cannot be named for sure; mostly empty.
    pub note: String,
}

/// Why a flow was denied.
#[derive(Clone, Debug)]
pub enum Why {
    /// The newest policy says so.
    Judged(DirectionVerdict),
    /// The newest policy lets it through and would deny it if policies in Audit mode were enforced, or denies it where the node observed.
    Audited(DirectionVerdict),
    /// The newest policy lets it through whatever is enforced; by an older generation of the node it was told as what would be denied.
    AuditedBefore(DirectionVerdict, u64),
    /// The newest policy allows it; an older generation of the node did not.
    AllowedSince(DirectionVerdict, u64),
    /// The workload that was judged is gone, and its policies with it.
    Ended(Direction),
    /// It went to a port of the node that leads to a workload.
    Behind {
        /// Seen from which end the record is.
        direction: Direction,
        /// Which port, and where it leads.
        port: String,
        /// What denies it there; else the generation that did.
        denied: Result<DirectionVerdict, u64>,
    },
}

impl Kept {
    /// The message for people.
    pub fn to_wire(&self) -> v1::AttributedFlow {
        let mut wire = v1::AttributedFlow {
            node: self.reporter.node.to_string(),
            boot_id: self.reporter.boot_id.clone(),
            sequence: self.sequence,
            time: Some(self.time),
            source: self.source.as_ref().map(End::to_wire),
            destination: self.destination.as_ref().map(End::to_wire),
            reason: self.reason.as_ref().map(|why| why.to_wire()),
            revision: self.revision,
            cursor: self.cursor,
            ..v1::AttributedFlow::default()
        };
        match &self.what {
            What::Flow(event) => wire.event = Some(event.clone()),
            What::Lost(event) => wire.lost = Some(event.clone()),
            What::Cut(cut) => wire.cut = Some((**cut).clone()),
            What::NodeEvent(event) => wire.node_event = Some(event.clone()),
            What::Guard(guard) => wire.guard = Some((**guard).clone()),
        }
        wire
    }
}

impl End {
    /// As it is shown.
    pub fn to_wire(&self) -> v1::Peer {
        match &self.workload {
            Some(workload) => v1::Peer { note: self.note.clone(), ..wire::workload_peer(workload, self.address) },
            None => v1::Peer {
                address: self.address.map(address_to_wire).unwrap_or_default(),
                node: self.node.as_ref().map(ToString::to_string).unwrap_or_default(),
                note: self.note.clone(),
                ..v1::Peer::default()
            },
        }
    }
}

impl Why {
    /// As it is shown.
    pub fn to_wire(&self) -> v1::DirectionVerdict {
        match self {
            Self::Judged(verdict) => wire::direction_verdict(verdict),
            // What people look for is the rule that would deny: it stands where a denial's rule stands.
            Self::Audited(verdict) => {
                let wire = wire::direction_verdict(verdict);
                match (verdict.audit_denied(), &wire.audit) {
                    (Some(_), Some(audit)) => v1::DirectionVerdict {
                        verdict: v1::Verdict::Audit.into(),
                        reason: format!("would be denied if policies in Audit mode were enforced: {}", audit.reason),
                        rule: audit.rule.clone(),
                        isolating: audit.isolating.clone(),
                        nearest: audit.nearest.clone(),
                        ..wire
                    },
                    (Some(_) | None, _) => wire,
                }
            }
            Self::AuditedBefore(verdict, generation) => v1::DirectionVerdict {
                reason: format!(
                    "by generation {generation} of the node it would be denied; the newest policy allows it ({})",
                    verdict.reason
                ),
                ..wire::direction_verdict(verdict)
            },
            Self::AllowedSince(verdict, generation) => v1::DirectionVerdict {
                verdict: v1::Verdict::Drop.into(),
                reason: format!("denied by generation {generation} of the node; the newest policy allows it ({})", verdict.reason),
                ..wire::direction_verdict(verdict)
            },
            Self::Ended(direction) => dropped(*direction, "the workload has ended; its policies are not known any more".to_owned()),
            Self::Behind { direction: _, port, denied: Ok(verdict) } => {
                let wire = wire::direction_verdict(verdict);
                v1::DirectionVerdict { reason: format!("{port}; {}", wire.reason), ..wire }
            }
            Self::Behind { direction, port, denied: Err(generation) } => {
                dropped(*direction, format!("{port}; denied by generation {generation} of the node, the newest policy allows it"))
            }
        }
    }
}

fn dropped(direction: Direction, reason: String) -> v1::DirectionVerdict {
    v1::DirectionVerdict {
        direction: wire::direction(direction).into(),
        verdict: v1::Verdict::Drop.into(),
        reason,
        ..v1::DirectionVerdict::default()
    }
}
