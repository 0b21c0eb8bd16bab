//! The operator service: what people and their tools ask of the controller (proto/firebreak/v1/operator.proto).
//!
//! Every handler names the caller, asks [`crate::auth::authorize`] once, reads the request whole or refuses it whole, and is counted.

mod ask;
mod change;
mod copy;
mod flows;
pub mod live;
mod object;
mod observe;
mod page;
mod read;
mod refusal;
mod watch;

use crate::auth::Principal;
use crate::metrics::{Method, Metrics};
use crate::store::Store;
use firebreak_proto::v1;
use firebreak_proto::v1::operator_service_server::{OperatorService, OperatorServiceServer};
use futures::{Stream, StreamExt, future, stream};
use jiff::Timestamp;
use live::{FlowTap, Live};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Bytes of one message, in either direction (operator.proto).
pub const MAX_MESSAGE: usize = 4 << 20;
/// Watches and backups that are open at one time.
const MAX_STREAMS: usize = 1_024;

/// A stream of answers.
pub type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The operator service over a store and what runs beside it. Clones share everything.
#[derive(Clone)]
pub struct OperatorApi {
    store: Store,
    live: Arc<dyn Live>,
    flows: Arc<dyn FlowTap>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    streams: Arc<Semaphore>,
    backups: Arc<Semaphore>,
    clock: fn() -> Timestamp,
}

/// Counts an open stream for as long as it lives.
struct Open {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.open_streams.dec();
    }
}

impl OperatorApi {
    /// The service. Its streams end with UNAVAILABLE when `stop` is cancelled; `clock` dates the audit trail.
    pub fn new(
        store: Store,
        live: Arc<dyn Live>,
        flows: Arc<dyn FlowTap>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
        clock: fn() -> Timestamp,
    ) -> Self {
        let (streams, backups) = (Arc::new(Semaphore::new(MAX_STREAMS)), Arc::new(Semaphore::new(1)));
        Self { store, live, flows, metrics, stop, streams, backups, clock }
    }

    /// As a gRPC service with the bounds that operator.proto promises.
    pub fn into_server(self) -> OperatorServiceServer<Self> {
        OperatorServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    #[allow(clippy::result_large_err, reason = "handlers hand the status on")]
    fn open_stream(&self) -> Result<Open, Status> {
        let permit = Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted(format!("{MAX_STREAMS} streams are open; close one and try again")))?;
        self.metrics.open_streams.inc();
        Ok(Open { _permit: permit, metrics: Arc::clone(&self.metrics) })
    }

    /// The stream, and one last UNAVAILABLE when the controller stops before it ends.
    fn until_stopped<T: Send + 'static>(&self, items: impl Stream<Item = Result<T, Status>> + Send + 'static) -> Streamed<T> {
        let stop = self.stop.clone();
        let stopped = self.stop.clone();
        let farewell = stream::once(async move {
            stopped.is_cancelled().then(|| Err(Status::unavailable("the controller is stopping; go on from where you are")))
        });
        Box::pin(items.take_until(stop.cancelled_owned()).chain(farewell.filter_map(future::ready)))
    }

    /// Names the caller, runs the handler and counts the outcome.
    async fn counted<T, R, F>(
        &self,
        method: Method,
        request: Request<T>,
        handler: impl FnOnce(Self, Principal, T) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<R, Status>>,
    {
        let begun = Instant::now();
        let outcome = match Principal::of(&request) {
            Ok(principal) => handler(self.clone(), principal, request.into_inner()).await,
            Err(status) => Err(status),
        };
        let code = outcome.as_ref().err().map_or(tonic::Code::Ok, Status::code);
        self.metrics.request(method, code, begun.elapsed());
        outcome
    }
}

#[tonic::async_trait]
impl OperatorService for OperatorApi {
    type WatchStream = Streamed<v1::WatchEvent>;
    type WatchFlowsStream = Streamed<v1::AttributedFlow>;
    type BackupStream = Streamed<v1::BackupChunk>;

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let act = |api: Self, principal, request| async move { api.apply_objects(principal, request).await };
        self.counted(Method::Apply, request, act).await.map(Response::new)
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let act = |api: Self, principal, request| async move { api.delete_objects(principal, request).await };
        self.counted(Method::Delete, request, act).await.map(Response::new)
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::Object>, Status> {
        let act = |api: Self, principal, request| async move { api.get_object(principal, request).await };
        self.counted(Method::Get, request, act).await.map(Response::new)
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let act = |api: Self, principal, request| async move { api.list_objects(principal, request).await };
        self.counted(Method::List, request, act).await.map(Response::new)
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let act = |api: Self, principal, request| async move { api.watch_objects(principal, request).await };
        self.counted(Method::Watch, request, act).await.map(Response::new)
    }

    async fn list_workloads(&self, request: Request<v1::ListWorkloadsRequest>) -> Result<Response<v1::ListWorkloadsResponse>, Status> {
        let act = |api: Self, principal, request| async move { api.list_live_workloads(principal, request).await };
        self.counted(Method::ListWorkloads, request, act).await.map(Response::new)
    }

    async fn list_nodes(&self, request: Request<v1::ListNodesRequest>) -> Result<Response<v1::ListNodesResponse>, Status> {
        let act = |api: Self, principal, request| async move { api.list_live_nodes(principal, request).await };
        self.counted(Method::ListNodes, request, act).await.map(Response::new)
    }

    async fn delete_node(&self, request: Request<v1::DeleteNodeRequest>) -> Result<Response<v1::DeleteNodeResponse>, Status> {
        let act = |api: Self, principal, request| async move { api.forget_node(principal, request).await };
        self.counted(Method::DeleteNode, request, act).await.map(Response::new)
    }

    async fn set_observe(&self, request: Request<v1::SetObserveRequest>) -> Result<Response<v1::SetObserveResponse>, Status> {
        let act = |api: Self, principal, request| async move { api.observe_node(principal, request).await };
        self.counted(Method::SetObserve, request, act).await.map(Response::new)
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let act = |api: Self, principal, request| async move { api.explain_flow(principal, request).await };
        self.counted(Method::Explain, request, act).await.map(Response::new)
    }

    async fn watch_flows(&self, request: Request<v1::WatchFlowsRequest>) -> Result<Response<Self::WatchFlowsStream>, Status> {
        let act = |api: Self, principal, request| async move { api.watch_flow_events(&principal, request) };
        self.counted(Method::WatchFlows, request, act).await.map(Response::new)
    }

    async fn list_revisions(&self, request: Request<v1::ListRevisionsRequest>) -> Result<Response<v1::ListRevisionsResponse>, Status> {
        let act = |api: Self, principal, request| async move { api.list_trail(principal, request).await };
        self.counted(Method::ListRevisions, request, act).await.map(Response::new)
    }

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let act = |api: Self, principal, _request| async move { api.copy_database(principal).await };
        self.counted(Method::Backup, request, act).await.map(Response::new)
    }
}
