//! What an agent reports, part by part, whole or refused.

use crate::store::ReportedChange;
use firebreak_policy::model::{ContainerId, NodeName};
use firebreak_proto::convert::address_from_wire;
use firebreak_proto::workload::ReportedWorkload;
use firebreak_proto::{Refusal, v1};
use prost::Message as _;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// More workloads than any node runs; a report that names more, or comes to more, is refused before it fills the memory.
const MOST_WORKLOADS: usize = 20_000;

/// More than what is said of a node's workloads has, as messages.
const MOST_BYTES: usize = 64 << 20;

/// More addresses and warnings than any node has.
const MOST_ITEMS: usize = 10_000;

/// A report in the making.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    begun: bool,
    full: bool,
    upserts: BTreeMap<ContainerId, (v1::Workload, Arc<ReportedWorkload>)>,
    removed: Vec<ContainerId>,
    /// Of this report so far.
    bytes: usize,
    said: Said,
}

/// What the reports of one session came to: the size of each workload's message.
#[derive(Debug, Default)]
struct Said {
    sizes: HashMap<ContainerId, usize>,
    bytes: usize,
}

impl Said {
    fn put(&mut self, container: &ContainerId, size: usize) {
        self.bytes += size;
        self.bytes -= self.sizes.insert(container.clone(), size).unwrap_or_default();
    }

    fn remove(&mut self, container: &ContainerId) {
        self.bytes -= self.sizes.remove(container).unwrap_or_default();
    }
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
            self.bytes += wire.encoded_len();
            check(self.upserts.len(), self.bytes)?;
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
        check(self.upserts.len() + self.removed.len(), self.bytes)?;
        if !last {
            return Ok(None);
        }
        // Which of the two came later cannot be told from the whole.
        if let Some(container) = self.removed.iter().find(|container| self.upserts.contains_key(*container)) {
            return Err(Refusal::new("removed", format!("{container} came and went in one report")));
        }
        let Self { begun: _, full, upserts, removed, bytes: _, mut said } = std::mem::take(self);
        if full {
            said = Said::default();
        }
        removed.iter().for_each(|container| said.remove(container));
        upserts.iter().for_each(|(container, (wire, _))| said.put(container, wire.encoded_len()));
        check(said.sizes.len(), said.bytes)?;
        self.said = said;
        let (wires, upserts): (Vec<_>, Vec<_>) = upserts.into_values().unzip();
        let stored = ReportedChange { node: node.clone(), upserts: wires, removed: removed.clone(), full, report: None };
        Ok(Some(Whole { upserts, removed, full, stored }))
    }
}

fn check(workloads: usize, bytes: usize) -> Result<(), Refusal> {
    if workloads > MOST_WORKLOADS {
        return Err(Refusal::new("upsert", format!("names over {MOST_WORKLOADS} workloads")));
    }
    if bytes > MOST_BYTES {
        return Err(Refusal::new("upsert", format!("what is said of the node's workloads has over {MOST_BYTES} bytes")));
    }
    Ok(())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::ops::Range;

    fn report(numbers: Range<usize>, bytes: usize, full: bool) -> v1::WorkloadReport {
        let workload = |number| v1::Workload {
            id: Some(v1::WorkloadId { node: "n1".to_owned(), container: format!("c{number}") }),
            name: format!("w{number}"),
            namespace: "shop".to_owned(),
            labels: [("text".to_owned(), "x".repeat(bytes))].into(),
            source: v1::WorkloadSource::Docker.into(),
            ..v1::Workload::default()
        };
        v1::WorkloadReport { full, upsert: numbers.map(workload).collect(), removed: Vec::new(), last: true }
    }

    #[test]
    fn what_all_reports_of_a_session_come_to_is_bounded_in_workloads_and_in_bytes() {
        let node = NodeName::new("n1");
        let mut many = Parts::default();
        many.take(&node, report(0..15_000, 1, true)).unwrap();
        many.take(&node, report(0..15_000, 1, false)).unwrap();
        many.take(&node, report(15_000..20_000, 1, false)).unwrap();
        let refused = many.take(&node, report(20_000..20_001, 1, false)).map(drop).unwrap_err();
        assert_eq!(refused.to_string(), "upsert: names over 20000 workloads");
        let mut large = Parts::default();
        for _ in 0..3 {
            // A full report takes the place of what was said, and so does another word of the same workload.
            large.take(&node, report(0..60, 1 << 20, true)).unwrap();
            large.take(&node, report(10..60, 1 << 20, false)).unwrap();
        }
        large.take(&node, v1::WorkloadReport { removed: vec!["c0".to_owned()], last: true, ..report(0..0, 0, false) }).unwrap();
        large.take(&node, report(60..63, 1 << 20, false)).unwrap();
        let refused = large.take(&node, report(63..67, 1 << 20, false)).map(drop).unwrap_err();
        assert_eq!(refused.to_string(), "upsert: what is said of the node's workloads has over 67108864 bytes");
        assert!(Parts::default().take(&node, report(0..64, 1 << 20, true)).is_err(), "one report that is too large by itself");
    }
}
