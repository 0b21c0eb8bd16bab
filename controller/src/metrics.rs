//! Prometheus metrics. Labels are enums, never names of workloads, nodes or policies: their number is known when the program is built.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tonic::Code;

/// The operator service's methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs, reason = "the names are operator.proto's")]
pub enum Method {
    Apply,
    Delete,
    Get,
    List,
    Watch,
    ListWorkloads,
    ListNodes,
    DeleteNode,
    SetObserve,
    Explain,
    WatchFlows,
    ListRevisions,
    Backup,
}

/// How a request ended: the gRPC code, as gRPC names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome(Code);

impl From<Code> for Outcome {
    fn from(code: Code) -> Self {
        Self(code)
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self.0 {
            Code::Ok => "OK",
            Code::Cancelled => "CANCELLED",
            Code::Unknown => "UNKNOWN",
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::NotFound => "NOT_FOUND",
            Code::AlreadyExists => "ALREADY_EXISTS",
            Code::PermissionDenied => "PERMISSION_DENIED",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::Aborted => "ABORTED",
            Code::OutOfRange => "OUT_OF_RANGE",
            Code::Unimplemented => "UNIMPLEMENTED",
            Code::Internal => "INTERNAL",
            Code::Unavailable => "UNAVAILABLE",
            Code::DataLoss => "DATA_LOSS",
            Code::Unauthenticated => "UNAUTHENTICATED",
        })
    }
}

/// Which requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    method: Method,
    code: Outcome,
}

/// Which requests, however they ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MethodLabels {
    method: Method,
}

/// The controller's metrics. Other parts add their own with [`Metrics::register`].
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<MethodLabels, Histogram, fn() -> Histogram>,
    /// Watches and backups that are open.
    pub open_streams: Gauge,
    /// The store's newest revision.
    pub revision: Gauge,
}

/// 0.5 ms to 4 s.
fn request_seconds() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 4.0])
}

impl Metrics {
    /// Every metric at zero.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("firebreak_controller")),
            requests: Family::default(),
            seconds: Family::new_with_constructor(request_seconds as fn() -> Histogram),
            open_streams: Gauge::default(),
            revision: Gauge::default(),
        };
        metrics.register(|registry| {
            registry.register("operator_requests", "Requests of the operator service, by method and gRPC code", metrics.requests.clone());
            registry.register("operator_request_seconds", "Time to the answer, or to a stream's begin", metrics.seconds.clone());
            registry.register("operator_open_streams", "Watches and backups that are open", metrics.open_streams.clone());
            registry.register("store_revision", "The newest revision of the store", metrics.revision.clone());
        });
        metrics
    }

    /// Adds metrics of another part; names get the prefix `firebreak_controller_`.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Counts a request of the operator service.
    pub fn request(&self, method: Method, code: Code, took: Duration) {
        self.requests.get_or_create(&RequestLabels { method, code: Outcome(code) }).inc();
        self.seconds.get_or_create(&MethodLabels { method }).observe(took.as_secs_f64());
    }

    /// Everything in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
