//! Metrics and health over HTTP.

use crate::metrics::Metrics;
use crate::store::Store;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;
use tokio::sync::watch;

/// What the answers are made of.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The store, for its revision.
    pub store: Store,
    /// Whether every source has said that it is in sync; false again while stopping.
    pub ready: watch::Receiver<bool>,
}

/// `/metrics` in the OpenMetrics text format; `/healthz` answers while the process serves; `/readyz` answers 200 only when the controller is in
/// sync and not stopping.
pub fn router(seen: Seen) -> Router {
    Router::new().route("/metrics", get(metrics)).route("/healthz", get(async || "ok\n")).route("/readyz", get(ready)).with_state(seen)
}

async fn metrics(State(seen): State<Seen>) -> Response {
    let revision = i64::try_from(seen.store.revision().0).unwrap_or(i64::MAX);
    seen.metrics.revision.set(revision);
    match seen.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n")).into_response(),
    }
}

async fn ready(State(seen): State<Seen>) -> (StatusCode, &'static str) {
    if *seen.ready.borrow() { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not in sync\n") }
}
