//! What the agent tells Prometheus: gathered when it is asked, kept nowhere. Labels are states, names of the fixed rules' counters and
//! codes of warnings, never names of workloads: their number is known when the program is built.

use crate::dataplane::KernelCounter;
use crate::enforce::EnforceStats;
use crate::flows::FlowsStats;
use crate::local::LocalWorkloads;
use crate::session::{Applied, NodeStatus, SessionStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;
use tokio::sync::watch;

/// Where the numbers come from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The collection of denied flows.
    pub flows: Arc<FlowsStats>,
    /// Sessions with the controller.
    pub sessions: Arc<SessionStats>,
    /// Enforcing.
    pub enforcement: Arc<EnforceStats>,
    /// How the last change in the kernel went.
    pub applied: watch::Receiver<Option<Arc<Applied>>>,
    /// Whether the node enforces, and warnings.
    pub status: watch::Receiver<NodeStatus>,
    /// What runs here.
    pub local: watch::Receiver<Arc<LocalWorkloads>>,
}

impl Sources {
    /// Whether the node enforces and discovery knows what runs here.
    pub fn ready(&self) -> bool {
        self.status.borrow().enforcing() && self.local.borrow().in_sync
    }

    /// Everything now, in the OpenMetrics text format; `counters` are the kernel's, `None` when they could not be read.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn encode(&self, counters: Option<Vec<KernelCounter>>) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("firebreak_agent");
        registry.register_collector(Box::new(Scrape { sources: self.clone(), counters }));
        let mut written = String::new();
        text::encode(&mut written, &registry)?;
        Ok(written)
    }
}

#[derive(Debug)]
struct Scrape {
    sources: Sources,
    counters: Option<Vec<KernelCounter>>,
}

/// A value with the value of its label.
type Labelled<'a, V> = (&'a str, V);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.enforcement(&mut encoder)?;
        self.node(&mut encoder)?;
        self.flows(&mut encoder)?;
        self.kernel(&mut encoder)
    }
}

impl Scrape {
    fn enforcement(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.sources.enforcement;
        counter(encoder, "commits", "Kernel transactions that changed something", stats.commits.load(Ordering::Relaxed))?;
        counter(encoder, "commit_failures", "Changes that the kernel refused, retries too", stats.failures.load(Ordering::Relaxed))?;
        gauge(encoder, "elements", "Elements that our sets hold", stats.elements.load(Ordering::Relaxed))?;
        counter(encoder, "tampered", "How often somebody else had changed our tables", stats.tampered.load(Ordering::Relaxed))?;
        counter(encoder, "repairs", "How often our tables were put right", stats.repairs.load(Ordering::Relaxed))?;
        counter(encoder, "repair_failures", "Attempts to put them right that failed", stats.repair_failures.load(Ordering::Relaxed))?;
        if let Some(applied) = self.sources.applied.borrow().as_ref() {
            gauge(encoder, "generation", "The generation that was last brought to the kernel", applied.generation.0)?;
            gauge(encoder, "revision", "Its policy revision", applied.revision.0)?;
            gauge(
                encoder,
                "generation_refused",
                "1 when the kernel refused it and the former state stays",
                flag(applied.failure.is_some()),
            )?;
            gauge(encoder, "objects_refused", "Objects of it that could not be read", number(applied.refused.len()))?;
            let at = applied.at.duration_since(UNIX_EPOCH).unwrap_or_default();
            gauge(encoder, "applied_timestamp_seconds", "When the kernel had it, in seconds since 1970", at.as_secs_f64())?;
            gauge(encoder, "applied_seconds", "How long flattening and the kernel took", applied.kernel_time.as_secs_f64())?;
        }
        Ok(())
    }

    fn node(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (status, local) = (self.sources.status.borrow().clone(), self.sources.local.borrow().clone());
        let sessions = &self.sources.sessions;
        let is_connected = sessions.is_connected.load(Ordering::Relaxed);
        gauge(encoder, "connected", "1 while there is a session with the controller", flag(is_connected))?;
        counter(encoder, "sessions", "Sessions with the controller that began", sessions.sessions.load(Ordering::Relaxed))?;
        gauge(encoder, "enforcing", "1 when the node enforces", flag(status.enforcing()))?;
        gauge(encoder, "tables_whole", "1 when our tables are in the kernel and as they should be", flag(status.tables_whole))?;
        gauge(encoder, "observing", "1 while the node lets through what policy denies", flag(status.observing.is_some()))?;
        if let Some(observing) = &status.observing {
            let until = observing.until.duration_since(UNIX_EPOCH).unwrap_or_default();
            gauge(encoder, "observing_until_timestamp_seconds", "Until when, in seconds since 1970", until.as_secs_f64())?;
        }
        gauge(encoder, "able", "1 when nothing is missing that enforcement needs", flag(status.able))?;
        gauge(encoder, "discovery_in_sync", "1 when every source of workloads has told all it has", flag(local.in_sync))?;
        let enforced = local.workloads.values().filter(|workload| workload.problem.is_none()).count();
        let workloads = [("enforced", number(enforced)), ("not_enforced", number(local.workloads.len() - enforced))];
        gauges(encoder, "workloads", "Workloads of this node", "state", workloads)?;
        let interfaces = [("unknown", number(local.unknown.len())), ("exempt", number(local.exempt.len()))];
        gauges(
            encoder,
            "interfaces",
            "Interfaces that match a pattern and are no workload's; unknown ones are denied",
            "state",
            interfaces,
        )?;
        let mut warnings: BTreeMap<&str, u64> = BTreeMap::new();
        for warning in status.warnings.iter().chain(&local.warnings) {
            *warnings.entry(warning.code).or_default() += 1;
        }
        gauges(encoder, "warnings", "What the node warns of", "code", warnings)?;
        if let Some(bytes) = resident() {
            gauge(encoder, "resident_memory_bytes", "Memory of the agent's process that is in use", bytes)?;
        }
        Ok(())
    }

    fn flows(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in self.sources.flows.snapshot().each() {
            let (name, help) = (format!("denied_{name}"), help.trim());
            match help.strip_suffix(" A gauge.") {
                Some(help) => gauge(encoder, &name, help, value)?,
                None => counter(encoder, &name, help, value)?,
            }
        }
        Ok(())
    }

    fn kernel(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        gauge(encoder, "kernel_counters_read", "1 when the counters of our tables could be read", flag(self.counters.is_some()))?;
        let Some(counters) = self.counters.as_ref().filter(|counters| !counters.is_empty()) else { return Ok(()) };
        let mut write = |name, help, value: fn(&KernelCounter) -> u64| -> fmt::Result {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for counter in counters {
                let labels = [("table", counter.layer.as_str()), ("counter", counter.name.as_str())];
                metric.encode_family(&labels)?.encode_counter::<[(&str, &str); 0], _, u64>(&value(counter), None)?;
            }
            Ok(())
        };
        write("kernel_packets", "Packets that a named counter of our tables counted", |counter| counter.packets)?;
        write("kernel_bytes", "Their bytes", |counter| counter.bytes)
    }
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help.trim_end_matches('.'), None, MetricType::Counter)?;
    metric.encode_counter::<[(&str, &str); 0], _, u64>(&value, None)
}

fn gauge<V: prometheus_client::encoding::EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: V,
) -> fmt::Result {
    encoder.encode_descriptor(name, help.trim_end_matches('.'), None, MetricType::Gauge)?.encode_gauge(&value)
}

fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: impl IntoIterator<Item = Labelled<'a, u64>>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (value_of_label, value) in values {
        metric.encode_family(&[(label, value_of_label)])?.encode_gauge(&value)?;
    }
    Ok(())
}

fn flag(is_set: bool) -> u64 {
    u64::from(is_set)
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// `VmRSS` of proc(5).
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some(kilobytes.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
