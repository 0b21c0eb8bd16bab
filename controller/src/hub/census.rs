//! How far the nodes are, as numbers for Prometheus. Labels are states, never nodes: `firebreak nodes` names them.

use super::Hub;
use super::board::Progress;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric as _};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use std::fmt;
use std::time::{Duration, Instant};

/// Counts the nodes whenever somebody asks.
#[derive(Clone, Debug)]
pub(crate) struct Census(pub(crate) Hub);

/// What is true of a node; of several, the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelValue)]
enum State {
    /// Its last generation did not take effect, or could not be sent.
    Failed,
    /// It refused objects of its last generation.
    Refused,
    /// Nothing is heard of it.
    Lost,
    /// It does not have all that it is to have yet.
    Behind,
    /// It has all that it is to have.
    Current,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    state: State,
}

/// The counts of one moment.
#[derive(Debug, Default)]
struct Counts {
    nodes: Family<Labels, Gauge>,
    refused_objects: i64,
    lag: Duration,
    /// The lowest revision that a connected node has acknowledged; the newest one where all are current.
    revision: u64,
}

impl Census {
    fn take(&self, now: Instant) -> Counts {
        let mut counts = Counts::default();
        for state in [State::Failed, State::Refused, State::Lost, State::Behind, State::Current] {
            counts.nodes.get_or_create(&Labels { state }).set(0);
        }
        let Some(published) = self.0.newest() else { return counts };
        counts.revision = published.revision.0;
        for node in published.reported.keys().filter(|node| published.targets.contains_key(*node)) {
            let is_current = self.0.is_current(&published, node);
            let state = self.0.board().ask(node, |progress| {
                let Progress { connected, refused, failure, acked_revision, .. } = progress;
                counts.refused_objects += i64::try_from(refused.len()).unwrap_or(i64::MAX);
                if *connected && !is_current {
                    counts.revision = counts.revision.min(acked_revision.0);
                }
                match (failure.is_empty(), refused.is_empty(), connected, is_current) {
                    (false, _, _, _) => State::Failed,
                    (true, false, _, _) => State::Refused,
                    (true, true, false, _) => State::Lost,
                    (true, true, true, false) => State::Behind,
                    (true, true, true, true) => State::Current,
                }
            });
            counts.nodes.get_or_create(&Labels { state: state.unwrap_or(State::Lost) }).inc();
            counts.lag = counts.lag.max(self.0.board().lag(node, now).unwrap_or_default());
        }
        counts
    }
}

impl Collector for Census {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Counts { nodes, refused_objects, lag, revision } = self.take(Instant::now());
        let metric = encoder.encode_descriptor("nodes", "Nodes that reported something, by how far they are", None, nodes.metric_type())?;
        nodes.encode(metric)?;
        let mut gauge = |name: &str, help: &str, value: ConstGauge<f64>| {
            let metric = encoder.encode_descriptor(name, help, None, value.metric_type())?;
            value.encode(metric)
        };
        gauge("nodes_lag_seconds", "The longest wait of a change that a node has not realized yet", ConstGauge::new(lag.as_secs_f64()))?;
        // Both are far below 2^53, where this is exact.
        #[allow(clippy::cast_precision_loss)]
        let (revision, refused) = (revision as f64, refused_objects as f64);
        gauge("nodes_revision", "The lowest revision that a connected node has in its kernel", ConstGauge::new(revision))?;
        gauge("nodes_refused_objects", "Objects that nodes refused", ConstGauge::new(refused))
    }
}
