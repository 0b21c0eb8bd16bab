//! What an agent reports, part by part, whole or refused.

use crate::store::ReportedChange;
use firebreak_policy::model::{ContainerId, NodeName};
use firebreak_proto::convert::address_from_wire;
use firebreak_proto::workload::ReportedWorkload;
use firebreak_proto::{Refusal, v1};
use std::collections::BTreeMap;
use std::sync::Arc;

/// More workloads than any node runs; a report that names more is refused before it fills the memory.
const MOST_WORKLOADS: usize = 20_000;

/// More addresses and warnings than any node has.
const MOST_ITEMS: usize = 10_000;

/// A report in the making.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    begun: bool,
    full: bool,
    upserts: BTreeMap<ContainerId, (v1::Workload, Arc<ReportedWorkload>)>,
    removed: Vec<ContainerId>,
}

/// A report that is whole.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) upserts: Vec<Arc<ReportedWorkload>>,
    pub(crate) removed: Vec<ContainerId>,
    pub(crate) full: bool,
    pub(crate) stored: ReportedChange,
}

impl Parts {
    /// Takes a part; gives the report with its last one.
    ///
    /// # Errors
    /// Names the field. Nothing of the report counts then.
    pub(crate) fn take(&mut self, node: &NodeName, part: v1::WorkloadReport) -> Result<Option<Whole>, Refusal> {
        let v1::WorkloadReport { full, upsert, removed, last } = part;
        if self.begun && self.full != full {
            return Err(Refusal::new("full", "differs from the part before"));
        }
        (self.begun, self.full) = (true, full);
        for (at, wire) in upsert.into_iter().enumerate() {
            let within = |refusal: Refusal| refusal.within(format_args!("upsert[{at}]"));
            let reported = ReportedWorkload::try_from(wire.clone()).map_err(within)?;
            let id = &reported.workload.id;
            if id.node != *node {
                return Err(within(Refusal::new("id.node", format!("{} is another node; this stream is node {node}'s", id.node))));
            }
            for (index, address) in reported.workload.addresses.iter().enumerate() {
                if !address.network.reaches(node) {
                    let reason = format!("{} belongs to another node; this stream is node {node}'s", address.network);
                    return Err(within(Refusal::new(format!("addresses[{index}].network"), reason)));
                }
            }
            self.upserts.insert(id.container.clone(), (wire, Arc::new(reported)));
        }
        for (at, container) in removed.into_iter().enumerate() {
            if container.is_empty() {
                return Err(Refusal::new(format!("removed[{at}]"), "is empty"));
            }
            self.removed.push(ContainerId::from(container));
        }
        if self.upserts.len() + self.removed.len() > MOST_WORKLOADS {
            return Err(Refusal::new("upsert", format!("names over {MOST_WORKLOADS} workloads")));
        }
        if !last {
            return Ok(None);
        }
        // Which of the two came later cannot be told from the whole.
        if let Some(container) = self.removed.iter().find(|container| self.upserts.contains_key(*container)) {
            return Err(Refusal::new("removed", format!("{container} came and went in one report")));
        }
        let Self { begun: _, full, upserts, removed } = std::mem::take(self);
        let (wires, upserts): (Vec<_>, Vec<_>) = upserts.into_values().unzip();
        let stored = ReportedChange { node: node.clone(), upserts: wires, removed: removed.clone(), full, report: None };
        Ok(Some(Whole { upserts, removed, full, stored }))
    }
}

/// Checks a node's word about itself.
///
/// # Errors
/// Names the field.
pub(crate) fn check_node(report: &v1::NodeReport) -> Result<(), Refusal> {
    for (at, address) in report.addresses.iter().enumerate() {
        address_from_wire(address, &format!("addresses[{at}]"))?;
    }
    for (at, warning) in report.warnings.iter().enumerate() {
        if warning.code.is_empty() {
            return Err(Refusal::new(format!("warnings[{at}].code"), "is empty"));
        }
    }
    for (field, count) in [("addresses", report.addresses.len()), ("warnings", report.warnings.len()), ("labels", report.labels.len())] {
        if count > MOST_ITEMS {
            return Err(Refusal::new(field, format!("has over {MOST_ITEMS} items")));
        }
    }
    Ok(())
}
