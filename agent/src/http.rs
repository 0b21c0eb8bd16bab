//! Metrics and health over HTTP. Bounded: so many connections at once, each for so long and with one answer.

use crate::dataplane::read_counters;
use crate::metrics::Sources;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Connections that are served at once; others wait for their turn.
const CONNECTIONS: usize = 4;
/// How long a connection may last.
const LIFETIME: Duration = Duration::from_secs(5);
/// How long to wait before the next try when no connection can be taken (no descriptors left).
const PAUSE: Duration = Duration::from_secs(1);

/// `/metrics` in the OpenMetrics text format; `/healthz` answers while the process serves; `/readyz` answers 200 only when the node
/// enforces and knows what runs on it.
fn router(sources: Sources) -> Router {
    Router::new().route("/metrics", get(metrics)).route("/healthz", get(async || "ok\n")).route("/readyz", get(ready)).with_state(sources)
}

async fn metrics(State(sources): State<Sources>) -> Response {
    let counters = match tokio::task::spawn_blocking(read_counters).await {
        Ok(Ok(counters)) => Some(counters),
        Ok(Err(error)) => {
            tracing::debug!(reason = %error, "metrics: the counters of our tables cannot be read");
            None
        }
        Err(_) => None,
    };
    match sources.encode(counters) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n")).into_response(),
    }
}

async fn ready(State(sources): State<Sources>) -> (StatusCode, &'static str) {
    if sources.ready() { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not enforcing, or not in sync\n") }
}

/// Serves until `shutdown`.
pub async fn serve(listener: TcpListener, sources: Sources, shutdown: CancellationToken) {
    let router = router(sources);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            // The semaphore is never closed.
            let slot = slots.clone().acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let router = router.clone();
                connections.spawn(async move {
                    // A scraper that is too slow or speaks no HTTP is its own problem.
                    let _ = timeout(LIFETIME, answer(stream, router)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(reason = %error, retry_in = ?PAUSE, "metrics: no connection can be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, router: Router) -> hyper::Result<()> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(LIFETIME).keep_alive(false).max_buf_size(16 << 10);
    http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await
}
