//! A network namespace and a running collection in it.

use super::service::{Seen, Service};
use firebreak_agent::flows::{FlowsConfig, FlowsError, FlowsStats, FlowsStatsSnapshot, Limits, LocalEnd, LocalView, Timing};
use firebreak_policy::model::{Direction, Generation};
use firebreak_proto::v1::flow_service_server::FlowServiceServer;
use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

/// The namespace of the calling thread.
pub struct Namespace;

impl Namespace {
    pub fn load(&self, text: &str) {
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        nft.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "{text}");
    }
}

/// Runs a test in a nameless network namespace: it goes with its last thread. All threads of the runtime are in it. One test at a time:
/// figures and deadlines are about one.
pub fn in_namespace(test: impl AsyncFnOnce(&Namespace) + Send) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    std::thread::scope(|scope| {
        let body = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
            let commands = "link set lo up
                link add v0 type veth peer name v1
                link set v0 up
                link set v1 up
                address add 10.77.0.1/24 dev v0
                address add fd77::1/64 dev v0 nodad";
            for command in commands.lines() {
                assert!(Command::new("ip").args(command.split_whitespace()).status().unwrap().success(), "ip {command}");
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(test(&Namespace));
            runtime.shutdown_timeout(Duration::from_secs(5));
        };
        if let Err(panic) = scope.spawn(body).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

struct Web;

impl LocalView for Web {
    fn locate(&self, _now: std::time::Instant, _direction: Direction, _address: IpAddr) -> Option<Arc<LocalEnd>> {
        Some(Arc::new(LocalEnd { container: "web".into(), interface: "veth-web".into(), network: "default".into() }))
    }

    fn generation(&self) -> Generation {
        Generation(3)
    }
}

/// A running collection and the service that it reports to.
pub struct Node {
    service: Service,
    stats: Arc<FlowsStats>,
    shutdown: CancellationToken,
    collection: JoinHandle<Result<(), FlowsError>>,
    server: JoinHandle<()>,
    state: TempDir,
}

impl Node {
    pub fn start(limits: Limits) -> Self {
        Self::start_with(limits, tempfile::tempdir().unwrap())
    }

    pub fn start_with(limits: Limits, state: TempDir) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let service = Service::default();
        let server = tonic::transport::Server::builder().add_service(FlowServiceServer::new(service.clone()));
        let server = tokio::spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        let config = FlowsConfig {
            node: "n1".into(),
            instance_id: "i1".into(),
            boot_id: "boot".into(),
            endpoint: tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap(),
            state_dir: state.path().to_owned(),
            nflog_group: FlowsConfig::DEFAULT_NFLOG_GROUP,
            read_interval: FlowsConfig::DEFAULT_READ_INTERVAL,
            timing: Timing { idle: Duration::from_secs(3), update_every: Duration::from_secs(60) },
            limits,
        };
        let (stats, shutdown) = (Arc::new(FlowsStats::default()), CancellationToken::new());
        let (_, records) = tokio::sync::mpsc::channel(1);
        let (_, packets) = tokio::sync::mpsc::channel(1);
        let others = firebreak_agent::flows::Others { records, packets };
        let collection = tokio::spawn(firebreak_agent::flows::run(config, Arc::new(Web), stats.clone(), others, shutdown.clone()));
        Self { service, stats, shutdown, collection, server, state }
    }

    pub fn stats(&self) -> FlowsStatsSnapshot {
        self.stats.snapshot()
    }

    pub async fn wait_until(&self, what: &str, condition: impl Fn(FlowsStatsSnapshot, &Seen) -> bool) {
        let waiting = async {
            while !condition(self.stats(), &self.service.0.lock().unwrap()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(40), waiting).await.is_err() {
            let last: Vec<_> = self.service.0.lock().unwrap().records.values().rev().take(5).cloned().collect();
            panic!("not within 40 s: {what}; {:#?} {last:#?}", self.stats());
        }
    }

    pub async fn stop(self) -> Seen {
        self.stop_and_keep().await.1
    }

    /// Stops in order; what it kept, and what arrived.
    pub async fn stop_and_keep(self) -> (TempDir, Seen) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.collection).await.expect("stops in time").unwrap().unwrap();
        self.server.abort();
        let seen = self.service.0.lock().unwrap().clone();
        (self.state, seen)
    }

    /// Ends it in the middle of whatever it does: no drain, no last cursor.
    pub async fn kill(self) -> (TempDir, Seen) {
        self.collection.abort();
        let _ = self.collection.await;
        self.server.abort();
        let seen = self.service.0.lock().unwrap().clone();
        (self.state, seen)
    }

    /// How much of what was told is on disk: in the cursor, and in the journal of what was told since.
    pub fn kept_len(&self) -> u64 {
        let files = std::fs::read_dir(self.state.path()).unwrap().map(|file| file.unwrap());
        let kept =
            files.filter(|file| ["flows-cursor", "flows-journal"].iter().any(|name| file.file_name().to_string_lossy().starts_with(name)));
        kept.map(|file| file.metadata().map_or(0, |file| file.len())).sum()
    }
}
