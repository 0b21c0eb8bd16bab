//! Wiring only: opens the kernel side, starts every task in one `JoinSet`, stops when told to or when the first one ends. Stopping
//! leaves everything in force.

use crate::audit::{self, AuditLinks};
use crate::config::{Config, DockerSocket};
use crate::cuts::{self, CutConfig, CutHandle, CutLinks, Owners};
use crate::dataplane::{ChangeWatch, Dataplane, DataplaneConfig, Feature, Finding, Opened, Severity, SkeletonState, absent, preflight};
use crate::discovery::docker::{self, DockerView};
use crate::discovery::{self, DiscoveryConfig};
use crate::enforce::{self, EnforceLinks, EnforceStats, KernelThread};
use crate::flows::{self, FlowsConfig, FlowsStats, Limits, LocalEnd, NodeEventKind, NodeTold, Others, RecentLocals, Record};
use crate::guards::{self, GuardLinks};
use crate::helper::{Helper, HelperLife};
use crate::http;
use crate::identity::{self, StateDir};
use crate::local::{LocalWorkloads, Warning};
use crate::metrics::Sources;
use crate::observe::{self, ObserveLinks, RecordFile};
use crate::ready;
use crate::relayed;
use crate::session::{self, Applied, Backoff, Held, NodeStatus, SessionConfig, SessionLinks, SessionStats};
use crate::state::{self, KeepLinks, Marker, Restored, StateFile};
use crate::tamper;
use anyhow::{Context, anyhow, bail};
use futures::FutureExt;
use nix::net::if_::{Interface, if_nameindex};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long tasks may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// For how long a Docker engine that does not answer holds up enforcement at start.
const DOCKER_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether a Docker engine was installed.
const DOCKER_LOOK: Duration = Duration::from_secs(5);

type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

/// Runs the agent until `shutdown` is done (it names the reason) or a task ends by itself, which is an error. `dataplane.nft` of the
/// configuration is the helper's; this process needs no more than [`crate::confine::Role::Agent`] has.
///
/// # Errors
/// What could not be opened, or which task ended and why.
pub async fn run(config: Config, helper: (Helper, HelperLife), shutdown: impl Future<Output = &'static str>) -> anyhow::Result<()> {
    let (helper, helper_life) = helper;
    let Config {
        node,
        node_labels,
        controller,
        state_dir,
        docker,
        netns_dir,
        dataplane,
        flow_timing,
        limits,
        set_conntrack_acct,
        metrics_listen,
        log_format: _,
        log: _,
    } = config;
    let folder = StateDir::open(&state_dir)?;
    let (instance_id, boot_id, kernel) = (folder.instance_id()?, identity::boot_id()?, identity::kernel_release()?);
    tracing::info!(node = %node, version = env!("CARGO_PKG_VERSION"), kernel = %kernel, controller = %controller.uri(), "starting");
    let findings = check(&dataplane, false).await?;
    if let Some(finding) = findings.iter().find(|finding| finding.severity == Severity::Fatal) {
        bail!("this node cannot enforce: {} ({})", finding.message, finding.remedy);
    }
    let dataplane = DataplaneConfig { absent: absent(&findings), ..dataplane };
    let (status_sender, status) =
        watch::channel(NodeStatus { tables_whole: true, able: true, warnings: warnings_of(&findings), ..NodeStatus::default() });
    let ends = Arc::new(RecentLocals::new());
    // Other parts' records are few; a full channel makes them wait.
    let (records, other_records) = mpsc::channel(64);
    let links = CutLinks { view: ends.clone(), records: records.clone(), status: status_sender.clone() };
    let file = StateFile::new(folder.path(), node.clone());
    let marker = Marker::open(folder.path(), &boot_id)?;
    let flows_stats = Arc::new(FlowsStats::default());
    let (audited, audited_packets) = mpsc::channel(64);
    let audit_links = AuditLinks { packets: audited, status: status_sender.clone(), stats: flows_stats.clone() };
    let (kernel_side, mut opened, cuts) = open_kernel(&dataplane, set_conntrack_acct, links, audit_links).await?;
    // An owned table is changed by nobody else, and listening would cost each of our own commits.
    let change_watch = if opened.owned { None } else { watch_changes(kernel_side.port()) };
    if let Err(error) = ready::tell_systemd(std::env::var_os("NOTIFY_SOCKET").as_deref()) {
        tracing::warn!(reason = %error, "systemd cannot be told that enforcement is in force");
    }
    let Restored { kept, enforce, refused } =
        state::restore(&file, &marker, opened.skeleton == SkeletonState::Installed && opened.elements == 0);
    let kernel_thread = KernelThread::start(kernel_side, Some(marker), cuts, limits).context("starting the dataplane's thread")?;

    let stop = CancellationToken::new();
    let mut tasks: Tasks = JoinSet::new();
    let (local_sender, local) = watch::channel(LocalWorkloads::unknown());
    let (declared_sender, declared) = watch::channel(kept.as_ref().map(|kept| kept.declared.clone()));
    let (committed_sender, committed) = watch::channel(kept.as_ref().filter(|_| enforce).map(|kept| kept.committed.clone()));
    let (applied_sender, applied) = watch::channel(None);
    status_sender.send_modify(|status| status.warnings.extend(refused.clone()));
    let kept = kept.unwrap_or_default();
    let links =
        KeepLinks { committed: committed.clone(), applied: applied.clone(), declared: declared.clone(), status: status_sender.clone() };
    spawn(&mut tasks, "state on disk", state::keep(file, kept.clone(), links, stop.clone()).map(Ok));

    let task = async move { Ok(helper_life.ended().await?) };
    spawn(&mut tasks, "helper", watched(task, stop.clone()));
    let docker_view = start_docker(&mut tasks, docker, helper.clone(), stop.clone());
    let config = DiscoveryConfig { node: node.clone(), patterns: dataplane.interface_patterns.clone(), netns_dir, helper: Some(helper) };
    let task = discovery::run(config, declared, docker_view, local_sender, stop.clone());
    spawn(&mut tasks, "discovery", task.map(Ok));

    let enforcement = Arc::new(EnforceStats::default());
    let stats = enforcement.clone();
    let (orders, requests) = mpsc::channel(8);
    let links = ObserveLinks { requests, status: status_sender.clone(), records: records.clone(), file: RecordFile::new(folder.path()) };
    let task = observe::run(kernel_thread.clone(), links, stop.clone());
    spawn(&mut tasks, "observe", async move { Ok(task.await?) });
    match observe::listen(folder.path()) {
        Ok(listener) => {
            let task = observe::serve(listener, orders.clone(), status.clone(), stop.clone());
            spawn(&mut tasks, "control socket", task.map(Ok));
        }
        Err(error) => tracing::error!(reason = %error, "no control socket: `firebreak-agent observe` will not reach this agent"),
    }
    let changed = std::mem::take(&mut opened.changed);
    let task =
        tamper::run(kernel_thread.clone(), change_watch, status_sender.clone(), records.clone(), stats.clone(), changed, stop.clone());
    spawn(&mut tasks, "tables", async move { Ok(task.await?) });
    let task = tell_start(opened, refused, enforce, records.clone(), applied.clone(), stop.clone());
    spawn(&mut tasks, "start", task.map(Ok));

    let enforced = committed.clone();
    let links = EnforceLinks { committed, local: local.clone(), applied: applied_sender, status: status_sender.clone(), stats };
    let task = enforce::run(kernel_thread, links, stop.clone());
    spawn(&mut tasks, "enforcement", async move { Ok(task.await?) });

    let config = SessionConfig {
        endpoint: controller.clone(),
        node: node.clone(),
        labels: node_labels,
        instance_id: instance_id.clone(),
        boot_id: boot_id.clone(),
        kernel,
        backoff: Backoff::default(),
    };
    let sessions = Arc::new(SessionStats::default());
    let sources = Sources {
        flows: flows_stats.clone(),
        sessions: sessions.clone(),
        enforcement,
        applied: applied.clone(),
        status: status.clone(),
        local: local.clone(),
    };
    if let Some(address) = metrics_listen {
        serve_metrics(&mut tasks, address, sources, &status_sender, stop.clone()).await;
    }
    let links = SessionLinks {
        local: local.clone(),
        status,
        applied: applied.clone(),
        declared: declared_sender,
        committed: committed_sender,
        stats: sessions,
        observe: orders,
    };
    let task = session::run(config, Held::restored(node.clone(), kept.committed), links, stop.clone());
    spawn(&mut tasks, "session", task.map(Ok));

    let task = keep_ends(ends.clone(), local.clone(), applied, stop.clone());
    spawn(&mut tasks, "flow ends", task.map(Ok));
    let config = FlowsConfig {
        node,
        instance_id,
        boot_id,
        endpoint: controller,
        state_dir: folder.path().to_owned(),
        nflog_group: dataplane.nflog_group,
        read_interval: FlowsConfig::DEFAULT_READ_INTERVAL,
        timing: flow_timing,
        limits: Limits::default(),
    };
    let links = GuardLinks { local: local.clone(), view: ends.clone(), records };
    let task = guards::run(dataplane.guard_nflog_group(), links, stop.clone());
    spawn(&mut tasks, "guards", task.map(Ok));
    let task = flows::run(config, ends, flows_stats, Others { records: other_records, packets: audited_packets }, stop.clone());
    spawn(&mut tasks, "denied flows", async move { Ok(task.await?) });

    let task = relayed::watch(enforced, status_sender.clone(), stop.clone());
    spawn(&mut tasks, "published ports", task.map(Ok));
    let task = check_bridges(dataplane, local, status_sender, stop.clone());
    spawn(&mut tasks, "preflight of bridges", task);

    let outcome = tokio::select! {
        reason = shutdown => {
            tracing::info!(reason, "stopping; what is enforced stays");
            Ok(())
        }
        ended = tasks.join_next() => Err(unexpected(ended)),
    };
    stop.cancel();
    let ended = tokio::time::timeout(STOP_DEADLINE, async { while tasks.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!(deadline = ?STOP_DEADLINE, "not every task ended in time");
    }
    outcome
}

fn spawn(tasks: &mut Tasks, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
    tasks.spawn(async move { (name, task.await) });
}

fn unexpected(ended: Option<Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        None => anyhow!("no task is left"),
        Some(Ok((name, Ok(())))) => anyhow!("the task {name:?} ended by itself"),
        Some(Ok((name, Err(error)))) => error.context(format!("the task {name:?} ended")),
        Some(Err(error)) => anyhow!(error).context("a task broke off"),
    }
}

/// A task that is left alone when the agent stops.
async fn watched(task: impl Future<Output = anyhow::Result<()>>, stop: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = task => ended,
    }
}

/// Finds what is missing, and says so.
async fn check(config: &DataplaneConfig, bridged: bool) -> anyhow::Result<Vec<Finding>> {
    let config = config.clone();
    let findings = tokio::task::spawn_blocking(move || preflight(&config, bridged)).await?;
    for Finding { code, severity, message, remedy } in &findings {
        match severity {
            Severity::Notice => tracing::info!(code, remedy = %remedy, "preflight: {message}"),
            Severity::Warning => tracing::warn!(code, remedy = %remedy, "preflight: {message}"),
            Severity::Fatal => tracing::error!(code, remedy = %remedy, "preflight: {message}"),
        }
    }
    Ok(findings)
}

fn warnings_of(findings: &[Finding]) -> BTreeSet<Warning> {
    findings.iter().map(|finding| Warning::new(finding.code, format!("{} ({})", finding.message, finding.remedy))).collect()
}

/// The kernel side, what opening it found, and what ends connections, where that can be had.
type KernelSide = (Dataplane, Opened, Option<(CutHandle, Owners)>);

async fn open_kernel(config: &DataplaneConfig, set_conntrack_acct: bool, links: CutLinks, audit: AuditLinks) -> anyhow::Result<KernelSide> {
    let config = config.clone();
    let opening = tokio::task::spawn_blocking(move || {
        if set_conntrack_acct {
            cuts::count_connections();
        }
        let interfaces = if_nameindex().context("listing interfaces")?;
        let (kernel, opened) = Dataplane::open(&config)?;
        let at_start = match opened.skeleton {
            // Whoever was there before our rules, or under those of another version, may have connections from before.
            SkeletonState::Installed | SkeletonState::Outdated => interfaces.iter().map(Interface::index).collect(),
            SkeletonState::Adopted | SkeletonState::Replaced => kernel.known_interfaces(),
        };
        let cuts = start_cuts(&config, links, audit).map(|cuts| (cuts, Owners::new(at_start)));
        Ok::<_, anyhow::Error>((kernel, opened, cuts))
    });
    let (kernel, opened, cuts) = opening.await?.context("opening the kernel side")?;
    tracing::info!(rules = ?opened.skeleton, owned = opened.owned, elements = opened.elements, "kernel tables are in force");
    Ok((kernel, opened, cuts))
}

/// Without ctnetlink everything is enforced but for connections that are established already; preflight says so.
fn start_cuts(config: &DataplaneConfig, links: CutLinks, audit: AuditLinks) -> Option<CutHandle> {
    if config.absent.contains(&Feature::ConntrackNetlink) {
        return None;
    }
    let status = links.status.clone();
    let selects = !config.absent.contains(&Feature::ConntrackFilter);
    match cuts::start(CutConfig { label: config.cut_label, midstream_grace: config.midstream_grace, selects }, links) {
        Ok(mut cuts) => {
            match audit::start(config.cut_label, audit) {
                Ok(audit) => cuts.tell_audit(audit),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "policies in Audit mode are not judged by");
                    let message = format!("what policies in Audit mode would deny is not told: {error}");
                    status.send_modify(|status| {
                        status.warnings.insert(Warning::new(audit::WARNING, message));
                    });
                }
            }
            Some(cuts)
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "established connections go on when policy forbids them");
            let message = format!(
                "established connections go on when policy forbids them, and what policies in Audit mode would deny is not told: {error}"
            );
            status.send_modify(|status| {
                status.warnings.insert(Warning::new(cuts::WARNING, message));
            });
            None
        }
    }
}

/// Where notifications cannot be had, the background check alone notices.
fn watch_changes(ours: u32) -> Option<AsyncFd<ChangeWatch>> {
    match ChangeWatch::open(ours).and_then(ChangeWatch::watched) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(reason = %error, "no notifications of nf_tables: changes by others are noticed late");
            None
        }
    }
}

/// Tells what the start has found, as events.
async fn tell_start(
    opened: Opened,
    refused: Option<Warning>,
    enforce: bool,
    records: mpsc::Sender<Vec<Record>>,
    mut applied: watch::Receiver<Option<Arc<Applied>>>,
    stop: CancellationToken,
) {
    let now = SystemTime::now;
    // A collector that is gone means that the agent is stopping.
    if let Some(Warning { code: _, message }) = refused {
        let _ = records.send(vec![NodeTold::new(NodeEventKind::StateRefused, message).at(now())]).await;
    }
    let told = match opened.skeleton {
        SkeletonState::Installed if enforce => {
            Some((NodeEventKind::EnforcedFromDisk, "the kernel held nothing; the state on disk is enforced, of generation"))
        }
        SkeletonState::Installed | SkeletonState::Adopted => None,
        SkeletonState::Replaced | SkeletonState::Outdated => Some((
            NodeEventKind::Upgraded,
            "the tables of another version of the agent were replaced in one transaction; enforced is generation",
        )),
    };
    if let Some((kind, message)) = told {
        let first = tokio::select! {
            () = stop.cancelled() => return,
            first = applied.wait_for(|applied| applied.as_ref().is_some_and(|applied| applied.failure.is_none())) => {
                first.ok().and_then(|applied| applied.as_ref().map(|applied| applied.generation))
            }
        };
        if let Some(generation) = first {
            let _ = records.send(vec![NodeTold::new(kind, format!("{message} {generation}")).at(now())]).await;
        }
    }
    stop.cancelled().await;
}

/// Enforcement does not depend on who takes the port first: where it cannot be had, the node says so and goes on.
async fn serve_metrics(
    tasks: &mut Tasks,
    address: SocketAddr,
    sources: Sources,
    status: &watch::Sender<NodeStatus>,
    stop: CancellationToken,
) {
    match TcpListener::bind(address).await {
        Ok(listener) => {
            tracing::info!(%address, "listening for scrapers of metrics and health");
            spawn(tasks, "metrics", http::serve(listener, sources, stop).map(Ok));
        }
        Err(error) => {
            tracing::error!(%address, reason = %error, "metrics and health are not served");
            let message = format!("metrics and health are not served: {address}: {error} (choose another with --metrics-listen)");
            status.send_modify(|status| {
                status.warnings.insert(Warning::new("MetricsUnavailable", message));
            });
        }
    }
}

/// The containers of the engine, if there is one or when there will be one.
fn start_docker(tasks: &mut Tasks, socket: DockerSocket, helper: Helper, stop: CancellationToken) -> watch::Receiver<Arc<DockerView>> {
    let expected = match &socket {
        DockerSocket::None => false,
        DockerSocket::IfPresent(socket) => socket.exists(),
        DockerSocket::At(_) => true,
    };
    // An engine that comes later holds up nothing.
    let (sender, view) = watch::channel(Arc::new(if expected { DockerView::default() } else { DockerView::without_engine() }));
    spawn(tasks, "Docker engine", async move {
        match socket {
            DockerSocket::IfPresent(socket) | DockerSocket::At(socket) => {
                while !socket.exists() && !expected {
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(DOCKER_LOOK) => {}
                    }
                }
                docker::supervise(helper, DOCKER_PATIENCE, sender, stop).await;
            }
            // The sender is held, so that the view never counts as gone.
            DockerSocket::None => stop.cancelled().await,
        }
        Ok(())
    });
    view
}

/// Tells the collection of denied flows who holds which address, and which generation is enforced.
async fn keep_ends(
    ends: Arc<RecentLocals>,
    mut local: watch::Receiver<Arc<LocalWorkloads>>,
    mut applied: watch::Receiver<Option<Arc<Applied>>>,
    stop: CancellationToken,
) {
    loop {
        ends.update(Instant::now(), local_ends(&local.borrow_and_update()));
        if let Some(applied) = applied.borrow_and_update().as_ref().filter(|applied| applied.failure.is_none()) {
            ends.set_generation(applied.generation);
        }
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            changed = local.changed() => changed,
            changed = applied.changed() => changed,
        };
        if changed.is_err() {
            stop.cancelled().await;
            return;
        }
    }
}

fn local_ends(local: &LocalWorkloads) -> HashMap<IpAddr, Arc<LocalEnd>> {
    let mut ends = HashMap::new();
    for workload in local.workloads.values() {
        for interface in workload.interfaces.values() {
            for address in &interface.addresses {
                let end = LocalEnd {
                    container: workload.id.container.clone(),
                    interface: interface.name.clone(),
                    network: address.network.clone(),
                };
                ends.insert(address.address, Arc::new(end));
            }
        }
    }
    ends
}

/// When the first workload appears on a bridge, looks whether bridged frames meet the rules.
async fn check_bridges(
    config: DataplaneConfig,
    mut local: watch::Receiver<Arc<LocalWorkloads>>,
    status: watch::Sender<NodeStatus>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let bridged = async { local.wait_for(|local| local.bridged).await.is_ok() };
    let bridged = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        bridged = bridged => bridged,
    };
    if bridged {
        let findings = check(&config, true).await?;
        status.send_if_modified(|status| {
            let before = status.clone();
            status.warnings.extend(warnings_of(&findings));
            status.able &= findings.iter().all(|finding| finding.severity != Severity::Fatal);
            *status != before
        });
    }
    stop.cancelled().await;
    Ok(())
}
