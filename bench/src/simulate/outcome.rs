//! What a simulation counted and measured.

use super::agent::Traffic;
use super::company::Size;
use super::fleet::Spread;

/// Everything.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Outcome {
    pub(crate) size: Size,
    pub(crate) pods: usize,
    pub(crate) policies: usize,
    /// To put all objects into the controller.
    pub(crate) load_ms: f64,
    pub(crate) cold: Connected,
    pub(crate) one_change: OneChange,
    pub(crate) churn: Churn,
    pub(crate) stall: Stall,
    pub(crate) restart: Connected,
    /// What did not add up anywhere; nothing is lost and nothing goes wrong when it is empty.
    pub(crate) problems: Vec<String>,
}

/// All agents connected.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Connected {
    /// From the first connection to the last agent in sync, as the controller tells.
    pub(crate) took_ms: f64,
    pub(crate) controller_cpu_ms: f64,
    pub(crate) resident: u64,
    pub(crate) traffic: Traffic,
}

/// One change that concerns every node, several times.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct OneChange {
    /// From the call to the last ack.
    pub(crate) to_last_ack: Spread,
    pub(crate) controller_cpu_ms: f64,
    pub(crate) bytes_down: u64,
}

/// Changes at a rate.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Churn {
    pub(crate) changes: usize,
    pub(crate) rate: u32,
    /// From the call to each ack, of changes that concern some nodes.
    pub(crate) few: Spread,
    /// The same of changes that concern all.
    pub(crate) all: Spread,
    /// From the call to the last ack, one for each change.
    pub(crate) last_ack: Spread,
    /// From the answer of the API, which says that the change is accepted, to each ack, of changes that concern some nodes.
    pub(crate) accepted_few: Spread,
    /// The same of changes that concern all.
    pub(crate) accepted_all: Spread,
    /// From the call to the answer.
    pub(crate) call: Spread,
    /// Acks that did not come.
    pub(crate) lost: usize,
    /// Processor seconds a second.
    pub(crate) controller_cpu: f64,
    pub(crate) agents_cpu: f64,
    pub(crate) wire_bytes_per_second: f64,
    pub(crate) resident: u64,
    pub(crate) traffic: Traffic,
}

/// Some agents read nothing for a while, during the same changes.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Stall {
    pub(crate) stalled: u32,
    pub(crate) changes: usize,
    /// Of the others.
    pub(crate) few: Spread,
    pub(crate) lost: usize,
    /// The controller's memory, from the begin to the end.
    pub(crate) grew: u64,
    pub(crate) resident: u64,
    /// From the moment when they read again to the last of them in sync.
    pub(crate) converged_ms: f64,
    /// How many generations one of them took until then, the most of all.
    pub(crate) most_generations: u32,
    /// Object updates that all took until then.
    pub(crate) traffic: Traffic,
}
