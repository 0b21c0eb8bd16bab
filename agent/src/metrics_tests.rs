#![allow(clippy::unwrap_used)]

use super::*;
use crate::dataplane::names::Layer;
use crate::local::Warning;
use crate::observe::Observing;
use firebreak_policy::model::{Generation, InterfaceName, Revision};
use std::time::{Duration, SystemTime};

#[test]
fn what_the_agent_knows_is_written_in_openmetrics() {
    let until = SystemTime::UNIX_EPOCH + Duration::from_secs(2000);
    let observing = Observing { until, principal: "ops".to_owned(), reason: "locked out".to_owned() };
    let status = NodeStatus {
        tables_whole: true,
        able: true,
        warnings: [Warning::new("NoTableOwner", "in words")].into(),
        observing: Some(observing),
        answered: None,
    };
    let unknown = [(7, InterfaceName::new("veth7"))].into();
    let local = LocalWorkloads { in_sync: true, unknown, ..LocalWorkloads::default() };
    let applied = Applied {
        epoch: "e".to_owned(),
        generation: Generation(12),
        revision: Revision(5),
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
        kernel_time: Duration::from_millis(2),
        refused: BTreeMap::new(),
        failure: None,
    };
    let sources = Sources {
        flows: Arc::default(),
        sessions: Arc::default(),
        enforcement: Arc::default(),
        applied: watch::channel(Some(Arc::new(applied))).1,
        status: watch::channel(status).1,
        local: watch::channel(Arc::new(local)).1,
    };
    sources.enforcement.commits.store(3, Ordering::Relaxed);
    sources.enforcement.tampered.store(2, Ordering::Relaxed);
    sources.enforcement.repairs.store(1, Ordering::Relaxed);
    FlowsStats::add(&sources.flows.records_dropped, 4);
    let counters = vec![KernelCounter { layer: Layer::Bridge, name: "unknown_interface_in".to_owned(), packets: 9, bytes: 900 }];
    assert!(sources.ready());
    let text = sources.encode(Some(counters)).unwrap();
    for line in [
        "# TYPE firebreak_agent_commits counter",
        "firebreak_agent_commits_total 3",
        "firebreak_agent_generation 12",
        "firebreak_agent_revision 5",
        "firebreak_agent_generation_refused 0",
        "firebreak_agent_applied_timestamp_seconds 1000.0",
        "firebreak_agent_applied_seconds 0.002",
        "firebreak_agent_tampered_total 2",
        "firebreak_agent_repairs_total 1",
        "firebreak_agent_repair_failures_total 0",
        "firebreak_agent_observing 1",
        "firebreak_agent_observing_until_timestamp_seconds 2000.0",
        "firebreak_agent_connected 0",
        "firebreak_agent_sessions_total 0",
        "firebreak_agent_enforcing 1",
        "firebreak_agent_interfaces{state=\"unknown\"} 1",
        "firebreak_agent_warnings{code=\"NoTableOwner\"} 1",
        "# HELP firebreak_agent_denied_records_dropped Records dropped because the controller did not take them",
        "firebreak_agent_denied_records_dropped_total 4",
        "# TYPE firebreak_agent_denied_records_waiting gauge",
        "firebreak_agent_kernel_packets_total{table=\"bridge\",counter=\"unknown_interface_in\"} 9",
        "firebreak_agent_kernel_bytes_total{table=\"bridge\",counter=\"unknown_interface_in\"} 900",
        "firebreak_agent_kernel_counters_read 1",
        "# EOF",
    ] {
        assert!(text.lines().any(|written| written == line), "{line} is not in:\n{text}");
    }
    let unread = sources.encode(None).unwrap();
    assert!(unread.contains("firebreak_agent_kernel_counters_read 0") && !unread.contains("kernel_packets"), "{unread}");
}
