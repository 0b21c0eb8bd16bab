//! Wiring only: opens the store and the listeners, starts every task in one `JoinSet`, and stops them in order when the first one ends.

use crate::agents::Agents;
use crate::api::OperatorApi;
use crate::api::live::{FlowTap, Live};
use crate::auth::Identify;
use crate::config::{RunOptions, check_listen};
use crate::flows::{Flows, Ring};
use crate::http::{self, Seen};
use crate::hub;
use crate::listen;
use crate::metrics::Metrics;
use crate::store::Store;
use anyhow::Context;
use firebreak_proto::FILE_DESCRIPTOR_SET;
use futures::{Stream, stream};
use jiff::Timestamp;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::{InterceptorLayer, Routes, RoutesBuilder};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// A connection that is silent for so long is asked whether somebody is there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);

/// A connection that does not answer for so long is closed: the node of an agent that died without a word is lost within 10 s.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(6);

/// The task that waits to be told to stop.
const SIGNALS: &str = "signals";

/// A task's place in the order of stopping, its name, and how it ended.
type Ended = (Order, &'static str, anyhow::Result<()>);

/// When a task is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// First: what others call.
    Serving,
    /// Then: what those use.
    Core,
}

/// The one `JoinSet`, and how many of its tasks are to end first.
#[derive(Default)]
struct Tasks {
    set: JoinSet<Ended>,
    serving: usize,
}

impl Tasks {
    fn spawn(&mut self, order: Order, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.serving += usize::from(order == Order::Serving);
        self.set.spawn(async move { (order, name, task.await) });
    }
}

/// Who stops when: listeners first, so that nobody is served by half a controller; the core after them; the store last.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Ends listeners and their streams.
    pub serving: CancellationToken,
    /// Ends what the listeners use.
    pub core: CancellationToken,
}

/// What is left of the agents' sessions when everything has been stopped gets so long.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The threads of the agents' connections and sessions. With the operators' and the hub's tasks among them, a call would wait behind thousands of
/// sessions that a change for everybody has woken, each in its turn; as threads of their own they share the processors.
///
/// They come last where processors are short (their `nice` value is higher): what one session does is small, and thousands of them, woken by one change
/// for all, would hold up the store, the hub and the operators, which all later changes go through. On a machine with nothing else to do it costs them
/// nothing.
struct AgentThreads(Option<Runtime>);

/// Of ten parts of a processor that both want, a thread of the others gets nine.
const AGENTS_NICE: i32 = 10;

impl AgentThreads {
    fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("agents").on_thread_start(come_last).enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Ends what is still there, sessions past the deadline. Blocking.
    fn end(mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(LAST_WORDS);
        }
    }

    /// Runs a task there; it ends with the threads.
    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Option<JoinHandle<T>> {
        self.0.as_ref().map(|runtime| runtime.spawn(task))
    }
}

impl Drop for AgentThreads {
    fn drop(&mut self) {
        // Waiting for them is not allowed in a task; what serves has ended by now.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A controller with its store and listeners open; nothing is served before [`App::run`].
pub struct App {
    agent_threads: AgentThreads,
    options: RunOptions,
    store: Store,
    stop: Stop,
    tasks: Tasks,
    agent_address: SocketAddr,
    metrics_address: SocketAddr,
}

/// Runs the controller until `shutdown` is done (it names the reason) or a task ends by itself, which is an error.
///
/// # Errors
/// What could not be opened, or which task ended and why.
pub async fn run(options: RunOptions, shutdown: impl Future<Output = &'static str> + Send + 'static) -> anyhow::Result<()> {
    App::open(options).await?.run(shutdown).await
}

impl App {
    /// Opens everything and starts the tasks.
    ///
    /// # Errors
    /// What could not be opened. Nothing stays open then.
    pub async fn open(options: RunOptions) -> anyhow::Result<Self> {
        check_listen("--agent-listen", options.agent_listen, options.insecure_listen).map_err(anyhow::Error::msg)?;
        check_listen("--metrics-listen", options.metrics_listen, options.insecure_listen).map_err(anyhow::Error::msg)?;
        let path = options.database.clone();
        let store = tokio::task::spawn_blocking(move || open_store(&path)).await??;
        let operators = listen::unix(&options.socket, options.socket_group.as_deref()).await?;
        let agents = listen::tcp("agents", options.agent_listen).await?;
        let scrapers = listen::tcp("metrics and health", options.metrics_listen).await?;
        let (agent_address, metrics_address) = (announce("agents", &agents)?, announce("metrics and health", &scrapers)?);
        tracing::info!(what = "operators", address = %options.socket.display(), "listening");

        let stop = Stop::default();
        let metrics = Arc::new(Metrics::new());
        let mut tasks = Tasks::default();
        let core = start_core(&options, &store, &stop, &metrics, &mut tasks);
        let api = OperatorApi::new(store.clone(), core.live, core.flows, Arc::clone(&metrics), stop.serving.clone(), Timestamp::now);
        let health = HealthReporter::new();
        let mut operator_routes = RoutesBuilder::default();
        operator_routes.add_service(api.into_server());
        add_standard_services(&mut operator_routes, &health)?;
        let mut agent_routes = core.agent_routes;
        add_standard_services(&mut agent_routes, &health)?;
        let until = stop.serving.clone();
        tasks.spawn(Order::Serving, "operator service", serve(unix_connections(operators), operator_routes.routes(), until.clone()));
        let agent_threads = AgentThreads::start().context("cannot start the agents' threads")?;
        let serving = agent_threads.spawn(serve(tcp_connections(agents), agent_routes.routes(), until.clone()));
        tasks.spawn(Order::Serving, "agent services", async move {
            match serving {
                Some(serving) => serving.await?,
                None => Ok(()),
            }
        });
        tasks.spawn(Order::Serving, "health reporter", report_health(health, core.ready.clone(), until));
        let seen = Seen { metrics, store: store.clone(), ready: core.ready };
        tasks.spawn(Order::Core, "metrics and health", serve_http(scrapers, seen, stop.core.clone()));
        let (store_ended, stopping) = (store.ended(), stop.core.clone());
        tasks.spawn(Order::Core, "store", async move {
            tokio::select! {
                () = store_ended.cancelled() => anyhow::bail!("one of its threads has ended"),
                () = stopping.cancelled() => Ok(()),
            }
        });
        Ok(Self { agent_threads, options, store, stop, tasks, agent_address, metrics_address })
    }

    /// Where agents connect; tells the port when port 0 was asked for.
    pub fn agent_address(&self) -> SocketAddr {
        self.agent_address
    }

    /// Where metrics and health are.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics_address
    }

    /// Serves until `shutdown` is done or a task ends by itself; then stops everything in order.
    ///
    /// # Errors
    /// Which task ended, or failed while stopping.
    pub async fn run(self, shutdown: impl Future<Output = &'static str> + Send + 'static) -> anyhow::Result<()> {
        let Self { agent_threads, options, store, stop, mut tasks, agent_address: _, metrics_address: _ } = self;
        let stopping = stop.core.clone();
        tasks.spawn(Order::Core, SIGNALS, async move {
            tokio::select! {
                reason = shutdown => tracing::info!(reason, "asked to stop"),
                () = stopping.cancelled() => {}
            }
            Ok(())
        });
        let outcome = supervise(tasks, &stop, options.stop_deadline).await;
        if let Err(error) = listen::remove(&options.socket) {
            tracing::warn!(error = %error, path = %options.socket.display(), "could not remove the operators' socket");
        }
        // The store's threads are waited for; the last handle is dropped here.
        tokio::task::spawn_blocking(move || {
            agent_threads.end();
            drop(store);
        })
        .await?;
        tracing::info!("stopped");
        outcome
    }
}

fn announce(what: &'static str, listener: &TcpListener) -> anyhow::Result<SocketAddr> {
    let address = listener.local_addr().context("cannot read a listener's address")?;
    tracing::info!(what, address = %address, "listening");
    if !address.ip().is_loopback() {
        tracing::warn!(what, address = %address, "listening beyond this machine: nothing is encrypted and agents are not authenticated");
    }
    Ok(address)
}

fn open_store(path: &Path) -> anyhow::Result<Store> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let store = Store::open(path)?;
    tracing::info!(path = %path.display(), revision = store.revision().0, "opened the store");
    Ok(store)
}

/// Waits for the first task to end, then stops the others in order, all within the deadline.
async fn supervise(mut tasks: Tasks, stop: &Stop, deadline: Duration) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    match tasks.set.join_next().await {
        // The one good reason to stop.
        None | Some(Ok((Order::Core, SIGNALS, Ok(())))) => {}
        Some(ended) => {
            tasks.serving -= usize::from(matches!(&ended, Ok((Order::Serving, _, _))));
            let error = unexpected(ended);
            tracing::error!(error = %format!("{error:#}"), "a task ended; stopping");
            failures.push(error);
        }
    }
    stop.serving.cancel();
    let begun = Instant::now();
    // What serves ends by itself now. What it uses goes on until it has, or until half of the time is over.
    while tasks.serving > 0 {
        match tokio::time::timeout_at(begun + deadline / 2, tasks.set.join_next()).await {
            Ok(Some(ended)) => {
                tasks.serving -= usize::from(matches!(&ended, Ok((Order::Serving, _, _))));
                note_end(ended, &mut failures);
            }
            Ok(None) | Err(_) => break,
        }
    }
    stop.core.cancel();
    loop {
        match tokio::time::timeout_at(begun + deadline, tasks.set.join_next()).await {
            Ok(Some(ended)) => note_end(ended, &mut failures),
            Ok(None) => break,
            Err(_) => {
                tracing::warn!(tasks = tasks.set.len(), "tasks did not end in time and are dropped");
                tasks.set.shutdown().await;
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.swap_remove(0)) }
}

fn unexpected(ended: Result<Ended, JoinError>) -> anyhow::Error {
    match ended {
        Ok((_, name, Ok(()))) => anyhow::anyhow!("{name} ended by itself"),
        Ok((_, name, Err(error))) => error.context(format!("{name} failed")),
        Err(error) => anyhow::Error::from(error).context("a task panicked"),
    }
}

fn note_end(ended: Result<Ended, JoinError>, failures: &mut Vec<anyhow::Error>) {
    if !matches!(&ended, Ok((_, _, Ok(())))) {
        let error = unexpected(ended);
        tracing::error!(error = %format!("{error:#}"), "a task failed while stopping");
        failures.push(error);
    }
}

/// Health and reflection, the same on every listener.
fn add_standard_services(routes: &mut RoutesBuilder, health: &HealthReporter) -> anyhow::Result<()> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes
        .add_service(HealthServer::new(HealthService::from_health_reporter(health.clone())))
        .add_service(reflection().build_v1().context("cannot build the reflection service")?)
        .add_service(reflection().build_v1alpha().context("cannot build the reflection service")?);
    Ok(())
}

async fn serve<S>(connections: impl Stream<Item = io::Result<S>>, routes: Routes, stop: CancellationToken) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    Server::builder()
        .layer(InterceptorLayer::new(Identify::default()))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(1_024)
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await
        .context("cannot serve")
}

async fn serve_http(listener: TcpListener, seen: Seen, stop: CancellationToken) -> anyhow::Result<()> {
    axum::serve(listener, http::router(seen)).with_graceful_shutdown(stop.cancelled_owned()).await.context("cannot serve HTTP")
}

/// Tells health watchers: SERVING once everything is in sync, NOT_SERVING before and while stopping.
async fn report_health(health: HealthReporter, mut ready: watch::Receiver<bool>, stop: CancellationToken) -> anyhow::Result<()> {
    const SERVICES: [&str; 4] = ["", "firebreak.v1.OperatorService", "firebreak.v1.AgentService", "firebreak.v1.FlowService"];
    let say = async |serving: bool| {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            health.set_service_status(service, status).await;
        }
    };
    loop {
        let is_ready = *ready.borrow_and_update();
        say(is_ready).await;
        tokio::select! {
            changed = ready.changed() => if changed.is_err() {
                say(false).await;
                stop.cancelled().await;
                return Ok(());
            },
            () = stop.cancelled() => {
                say(false).await;
                return Ok(());
            }
        }
    }
}

fn unix_connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    connections(listener, async |listener| Ok(listener.accept().await?.0))
}

fn tcp_connections(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    connections(listener, async |listener| {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        Ok(connection)
    })
}

/// Connections as they come. An error of one (or too many open files) does not end the listener.
fn connections<L, S>(listener: L, accept: impl AsyncFn(&L) -> io::Result<S>) -> impl Stream<Item = io::Result<S>> {
    stream::unfold((listener, accept), |(listener, accept)| async move {
        loop {
            match accept(&listener).await {
                Ok(connection) => return Some((Ok(connection), (listener, accept))),
                Err(error) => {
                    tracing::warn!(error = %error, "could not accept a connection");
                    // Too many open files is the usual reason, and does not go away faster by asking.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

/// Has the calling thread, and it alone, come after the others (setpriority(2): on Linux the value is a thread's).
fn come_last() {
    let lowered = rustix::process::getpriority_process(None).and_then(|nice| {
        // One that was started with a higher value keeps it.
        if nice < AGENTS_NICE { rustix::process::setpriority_process(None, AGENTS_NICE) } else { Ok(()) }
    });
    if let Err(error) = lowered {
        tracing::warn!(error = %error, "the agents' threads come as soon as the others: a change for all may hold up later ones");
    }
}

/// Runs what computes for long, and what others wait for, on a thread that nobody else uses.
async fn on_own_thread(name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> anyhow::Result<()> {
    let (end, ended) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Nobody waits for it any more when it was dropped past the deadline.
        let _ = end.send(runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(task)));
    })?;
    ended.await.context("panicked")?
}

/// What the listeners need of the core.
struct Core {
    live: Arc<dyn Live>,
    flows: Arc<dyn FlowTap>,
    ready: watch::Receiver<bool>,
    agent_routes: RoutesBuilder,
}

/// Starts the hub and what follows it.
fn start_core(options: &RunOptions, store: &Store, stop: &Stop, metrics: &Metrics, tasks: &mut Tasks) -> Core {
    let (hub, hub_task) = hub::hub(store.clone(), options.cluster_networks.clone());
    hub_task.register(metrics);
    metrics.register(|registry| registry.register_collector(Box::new(hub::census::Census(hub.clone()))));
    let (ready, is_ready) = watch::channel(false);
    let (turns, until) = (hub.wakes().clone(), stop.core.clone());
    tasks.spawn(Order::Core, "turns of sessions", async move {
        turns.run(until).await;
        Ok(())
    });
    let until = stop.core.clone();
    tasks.spawn(Order::Core, "hub", on_own_thread("hub", async move { Ok(hub_task.run(ready, until).await?) }));
    // Milliseconds since 1970 in the upper bits: cursors of two runs of the controller do not meet.
    let first_cursor = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0) << 20;
    let ring = Ring::new(options.kept_flows, first_cursor);
    let flows = Flows::new(hub.clone(), store.clone(), ring.clone(), stop.serving.clone(), Timestamp::now);
    flows.register(metrics);
    let (following, until) = (flows.clone(), stop.core.clone());
    tasks.spawn(Order::Core, "owners of addresses", async move {
        following.follow(until).await;
        Ok(())
    });
    let agents = Agents::new(hub.clone(), store.clone(), stop.serving.clone(), Timestamp::now);
    agents.register(metrics);
    let mut agent_routes = RoutesBuilder::default();
    agent_routes.add_service(agents.into_server()).add_service(flows.into_server());
    Core { live: Arc::new(hub), flows: Arc::new(ring), ready: is_ready, agent_routes }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn the_first_task_that_ends_stops_the_others_in_order_and_late_ones_are_dropped() {
        let stop = Stop::default();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Tasks::default();
        let note = |name: &'static str| {
            let order = Arc::clone(&order);
            move || order.lock().unwrap().push(name)
        };
        let (core, serving) = (stop.core.clone(), stop.serving.clone());
        let (core_ended, serving_ended) = (note("core"), note("serving"));
        tasks.spawn(Order::Core, "core", async move {
            core.cancelled().await;
            core_ended();
            Ok(())
        });
        tasks.spawn(Order::Serving, "serving", async move {
            serving.cancelled().await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            serving_ended();
            Ok(())
        });
        tasks.spawn(Order::Core, "stubborn", std::future::pending());
        tasks.spawn(Order::Core, "fails", async { anyhow::bail!("the disk is full") });
        let begun = Instant::now();
        let error = supervise(tasks, &stop, Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "fails failed: the disk is full");
        assert_eq!(*order.lock().unwrap(), ["serving", "core"]);
        assert!(begun.elapsed() >= Duration::from_millis(300), "the stubborn one has its time");
    }

    #[test]
    fn the_agents_threads_come_last_and_no_other_does() {
        let threads = AgentThreads::start().unwrap();
        let before = rustix::process::getpriority_process(None).unwrap();
        let (told, hears) = std::sync::mpsc::channel();
        threads.spawn(async move { told.send(rustix::process::getpriority_process(None).unwrap()) }).unwrap();
        let theirs = hears.recv().unwrap();
        assert_eq!(theirs, AGENTS_NICE.max(before));
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
        threads.end();
    }

    #[tokio::test]
    async fn what_has_a_thread_of_its_own_says_how_it_ended_a_panic_too() {
        let named = on_own_thread("own", async {
            assert_eq!(std::thread::current().name(), Some("own"));
            anyhow::bail!("the disk is full")
        });
        assert_eq!(named.await.unwrap_err().to_string(), "the disk is full");
        on_own_thread("own", async { Ok(()) }).await.unwrap();
        let panicked = on_own_thread("own", async { std::panic::panic_any("no") }).await;
        assert_eq!(panicked.unwrap_err().to_string(), "panicked");
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_is_an_error_and_a_signal_is_not() {
        for (name, expected) in [(SIGNALS, None), ("hub", Some("hub ended by itself"))] {
            let mut tasks = Tasks::default();
            tasks.spawn(Order::Core, name, async { Ok(()) });
            let outcome = supervise(tasks, &Stop::default(), Duration::from_secs(1)).await;
            assert_eq!(outcome.err().map(|error| error.to_string()).as_deref(), expected);
        }
        let mut tasks = Tasks::default();
        tasks.spawn(Order::Serving, "panics", async { std::panic::panic_any("no") });
        let error = supervise(tasks, &Stop::default(), Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.to_string(), "a task panicked");
    }
}
