//! The loop: hear, read again, publish.

use super::assemble::{Identity, Kernel, Place, assemble, wanted_peers};
use super::docker::{Container, DockerView, Sync};
use super::identity;
use super::rtnl::{Change, Monitor, PeerNamespace, Rtnl, RtnlError};
use crate::dataplane::InterfacePattern;
use crate::helper::Helper;
use crate::local::{LocalWorkloads, Warning};
use firebreak_policy::model::NodeName;
use firebreak_proto::workload::{DeclaredWorkload, Location};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Settings of [`run`].
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// This node.
    pub node: NodeName,
    /// Which interfaces are workload interfaces.
    pub patterns: Vec<InterfacePattern>,
    /// Where named network namespaces are: `/run/netns`.
    pub netns_dir: PathBuf,
    /// Opens the namespaces of containers: this process may not look into others.
    pub helper: Option<Helper>,
}

/// Under load, how long changes are collected before they are read. The first change after quiet is read at once.
const COLLECT: Duration = Duration::from_millis(10);
/// Everything is read again this often, for what no notification tells (a file that appears in `/run/netns`).
const READ_ALL: Duration = Duration::from_secs(30);
/// For how long an interface may be unknown before people are told: that of a container that starts is, for a moment.
const UNKNOWN_TOLD: Duration = Duration::from_secs(5);
/// How many unknown interfaces are named.
const UNKNOWN_NAMED: usize = 20;
/// How long to wait before a broken socket is replaced.
const REOPEN: Duration = Duration::from_secs(1);

/// Publishes what runs here until `shutdown`. Sockets are made in the network namespace of the calling thread and used by the
/// runtime's.
pub async fn run(
    config: DiscoveryConfig,
    mut declared: watch::Receiver<Option<Arc<Vec<DeclaredWorkload>>>>,
    mut docker: watch::Receiver<Arc<DockerView>>,
    out: watch::Sender<Arc<LocalWorkloads>>,
    shutdown: CancellationToken,
) {
    let mut unknown_since = HashMap::new();
    loop {
        let ended = tokio::select! {
            () = shutdown.cancelled() => return,
            ended = discover(&config, &mut declared, &mut docker, &out, &mut unknown_since) => ended,
        };
        let Err(error) = ended;
        tracing::error!(reason = %error, retry_in = ?REOPEN, "discovery broke off; what was known stands");
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(REOPEN) => {}
        }
    }
}

async fn discover(
    config: &DiscoveryConfig,
    declared: &mut watch::Receiver<Option<Arc<Vec<DeclaredWorkload>>>>,
    docker: &mut watch::Receiver<Arc<DockerView>>,
    out: &watch::Sender<Arc<LocalWorkloads>>,
    unknown_since: &mut HashMap<u32, Instant>,
) -> Result<std::convert::Infallible, RtnlError> {
    // The monitor first: what changes while the rest is read is heard of.
    let mut monitor = Monitor::open()?;
    let mut reader = Reader { rtnl: Rtnl::open()?, kernel: Kernel::default(), leading: HashMap::new(), starts: HashMap::new() };
    let mut changes = BTreeSet::from([Change::Overrun]);
    let mut read_all = Instant::now() + READ_ALL;
    loop {
        let listed = declared.borrow_and_update().clone();
        let containers = docker.borrow_and_update().clone();
        let identities = reader.read(config, &changes, listed.as_deref().map_or(&[], Vec::as_slice), &containers).await?;
        let mut local = assemble(&config.node, &config.patterns, &reader.kernel, &identities);
        local.in_sync = listed.is_some() && containers.sync != Sync::Waiting;
        let now = Instant::now();
        let next_told = warn(&mut local, &containers, unknown_since, now);
        publish(out, local);

        changes.clear();
        let quiet_until = now + COLLECT;
        let wake = next_told.map_or(read_all, |told| told.min(read_all));
        tokio::select! {
            heard = monitor.next() => changes.extend(heard?),
            changed = declared.changed() => gone(changed).await,
            changed = docker.changed() => gone(changed).await,
            () = tokio::time::sleep_until(wake) => {}
        }
        tokio::time::sleep_until(quiet_until).await;
        if Instant::now() >= read_all {
            changes.insert(Change::Overrun);
            read_all = Instant::now() + READ_ALL;
        }
        if changes.contains(&Change::Overrun) {
            tracing::debug!("reading everything again");
        }
    }
}

/// A source that is gone never changes again; the process is about to end.
async fn gone(changed: Result<(), watch::error::RecvError>) {
    if changed.is_err() {
        std::future::pending::<()>().await;
    }
}

fn publish(out: &watch::Sender<Arc<LocalWorkloads>>, local: LocalWorkloads) {
    out.send_if_modified(|shared| {
        if **shared == local {
            return false;
        }
        tell(shared, &local);
        *shared = Arc::new(local);
        true
    });
}

fn tell(before: &LocalWorkloads, now: &LocalWorkloads) {
    for (id, workload) in &now.workloads {
        if before.workloads.get(id) != Some(workload) {
            let interfaces: Vec<&str> = workload.interfaces.values().map(|interface| interface.name.as_str()).collect();
            let problem = workload.problem.as_ref().map(ToString::to_string);
            tracing::info!(container = %id, workload = %workload.title(), ?interfaces, addresses = ?workload.addresses(), problem, "workload");
        }
    }
    for (id, workload) in before.workloads.iter().filter(|(id, _)| !now.workloads.contains_key(*id)) {
        tracing::info!(container = %id, workload = %workload.title(), "workload is gone");
    }
}

/// Adds what people should know, and says when there will be more of it.
fn warn(local: &mut LocalWorkloads, docker: &DockerView, unknown_since: &mut HashMap<u32, Instant>, now: Instant) -> Option<Instant> {
    unknown_since.retain(|index, _| local.unknown.contains_key(index));
    let mut told = Vec::new();
    let mut next = None;
    for (index, name) in &local.unknown {
        let due = *unknown_since.entry(*index).or_insert(now) + UNKNOWN_TOLD;
        if due <= now {
            told.push(name.as_str());
        } else {
            next = Some(next.map_or(due, |next: Instant| next.min(due)));
        }
    }
    if !told.is_empty() {
        let more = if told.len() > UNKNOWN_NAMED { format!(" and {} more", told.len() - UNKNOWN_NAMED) } else { String::new() };
        told.truncate(UNKNOWN_NAMED);
        let message = format!(
            "nobody knows what is behind {}{more}: denied. Declare a Workload for it, or take it out of workload-interfaces",
            told.join(", ")
        );
        local.warnings.insert(Warning::new("UnknownInterface", message));
    }
    if let Some(trouble) = &docker.trouble {
        let message =
            format!("the Docker engine cannot be asked ({trouble}): what was known of its containers stands, new ones stay denied");
        local.warnings.insert(Warning::new("DockerUnavailable", message));
    }
    let hidden = |interface: &crate::local::LocalInterface| {
        interface.addresses.iter().any(|address| !address.network.is_default() && !crate::local::is_link_local(address.address))
    };
    if local.workloads.values().any(|workload| workload.interfaces.values().any(hidden)) {
        let message = "containers behind a masquerading bridge appear on other nodes as this node: policy there cannot tell them apart";
        local.warnings.insert(Warning::new("SourceNatHidesWorkloads", message));
    }
    next
}

struct Reader {
    rtnl: Rtnl,
    kernel: Kernel,
    /// For each namespace in `kernel.peers`, the interfaces (here, there) that led into it when it was read. An id is given anew
    /// when its namespace is gone, an ifindex is not: where these differ, it is another namespace.
    leading: HashMap<i32, BTreeSet<(u32, u32)>>,
    /// When the process of a container started, so that another process with its number is not taken for it.
    starts: HashMap<String, (u32, String)>,
}

impl Reader {
    /// Reads again what the changes can have touched, and finds where the workloads are.
    async fn read(
        &mut self,
        config: &DiscoveryConfig,
        changes: &BTreeSet<Change>,
        declared: &[DeclaredWorkload],
        docker: &DockerView,
    ) -> Result<Vec<Identity>, RtnlError> {
        let everything = changes.contains(&Change::Overrun);
        if everything || changes.contains(&Change::Links) {
            self.kernel.links = self.rtnl.links().await?;
        }
        if everything || changes.contains(&Change::Links) || changes.contains(&Change::DefaultRoute) {
            self.kernel.default_routes = self.rtnl.default_routes().await?;
        }
        if everything || changes.contains(&Change::Links) || changes.contains(&Change::Addresses(None)) {
            self.kernel.own = self.rtnl.addresses(None).await?;
        }
        let identities = self.identities(config, declared, docker).await?;
        let wanted = wanted_peers(&config.patterns, &self.kernel.links, &identities);
        let mut peers: HashMap<i32, Arc<PeerNamespace>> = HashMap::new();
        for (nsid, leading) in &wanted {
            let stale = everything || changes.contains(&Change::Addresses(Some(*nsid))) || self.leading.get(nsid) != Some(leading);
            let held = match self.kernel.peers.remove(nsid) {
                Some(held) if !stale => held,
                Some(_) | None => Arc::new(self.rtnl.peer_namespace(*nsid).await?),
            };
            peers.insert(*nsid, held);
        }
        self.kernel.peers = peers;
        self.leading = wanted.into_iter().collect();
        Ok(identities)
    }

    async fn identities(
        &mut self,
        config: &DiscoveryConfig,
        declared: &[DeclaredWorkload],
        docker: &DockerView,
    ) -> Result<Vec<Identity>, RtnlError> {
        let mut identities = Vec::with_capacity(declared.len() + docker.containers.len());
        for workload in declared {
            let place = match &workload.location {
                Location::Interface(name) => Place::Interface(name.clone()),
                Location::NetworkNamespace(name) => {
                    let path = config.netns_dir.join(name);
                    self.place(open_namespace(&path), || format!("there is no network namespace {}", path.display())).await?
                }
            };
            identities.push(identity::declared(workload, place));
        }
        self.starts.retain(|id, _| docker.containers.contains_key(id));
        for container in docker.containers.values() {
            let place = match identity::told_place(container) {
                Some(place) => place,
                None => {
                    let namespace = self.namespace_of(container, config.helper.as_ref()).await;
                    self.place(namespace, || "its process is gone".to_owned()).await?
                }
            };
            identities.push(identity::docker(container, place));
        }
        Ok(identities)
    }

    async fn place(&mut self, namespace: Option<File>, missing: impl Fn() -> String) -> Result<Place, RtnlError> {
        let Some(namespace) = namespace else { return Ok(Place::Unresolved(missing())) };
        Ok(match self.rtnl.nsid_of(&namespace).await? {
            Some(nsid) => Place::Namespace(nsid),
            None => Place::Unresolved("no veth of the node leads to its network namespace".to_owned()),
        })
    }

    /// The network namespace of a container's process, if that is still the process that it was.
    async fn namespace_of(&mut self, container: &Container, helper: Option<&Helper>) -> Option<File> {
        let pid = container.pid;
        let before = started(pid)?;
        let known = self.starts.entry(container.id.clone()).or_insert_with(|| (pid, before.clone()));
        if known.0 != pid {
            *known = (pid, before.clone());
        }
        if known.1 != before {
            return None;
        }
        let namespace = match helper.cloned() {
            None => open_namespace(Path::new(&format!("/proc/{pid}/ns/net"))),
            // The helper does one thing at a time, and `nft` may be before us.
            Some(helper) => match tokio::task::spawn_blocking(move || helper.open_network(pid)).await {
                Ok(Ok(namespace)) => namespace,
                Ok(Err(error)) => {
                    tracing::warn!(container = %container.id, reason = %error, "the network namespace of a container cannot be opened");
                    None
                }
                Err(_) => None,
            },
        };
        // The helper answered a moment later: by then the number may have been another process's.
        namespace.filter(|_| started(pid).as_ref() == Some(&before))
    }
}

/// Opened without waiting, should somebody have put a pipe there.
fn open_namespace(path: &Path) -> Option<File> {
    std::fs::OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path).ok()
}

/// When a process started, in clock ticks after boot: field 22 of proc(5) `stat`, counted after the command in parentheses.
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_command = &stat[stat.rfind(')')? + 1..];
    after_command.split_ascii_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use firebreak_policy::model::InterfaceName;
    use std::collections::BTreeMap;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = started(std::process::id()).unwrap();
        assert!(own.parse::<u64>().is_ok(), "{own}");
        assert_eq!(started(0), None);
    }

    #[test]
    fn an_unknown_interface_is_told_when_it_has_been_unknown_for_a_while() {
        let mut since = HashMap::new();
        let start = Instant::now();
        let mut told = |names: &[(u32, &str)], after: u64| {
            let unknown: BTreeMap<u32, InterfaceName> = names.iter().map(|(index, name)| (*index, InterfaceName::new(name))).collect();
            let mut local = LocalWorkloads { unknown, ..LocalWorkloads::default() };
            let next = warn(&mut local, &DockerView::without_engine(), &mut since, start + Duration::from_secs(after));
            let messages: Vec<String> = local.warnings.iter().map(|warning| warning.message.clone()).collect();
            (messages.concat(), next.map(|next| (next - start).as_secs()))
        };
        assert_eq!(told(&[(7, "veth7")], 0), (String::new(), Some(5)));
        assert_eq!(told(&[(7, "veth7"), (8, "veth8")], 3), (String::new(), Some(5)));
        let (message, next) = told(&[(7, "veth7"), (8, "veth8")], 5);
        assert!(message.contains("behind veth7:"), "{message}");
        assert_eq!(next, Some(8));
        assert_eq!(told(&[(8, "veth8")], 6), (String::new(), Some(8)), "one that went is forgotten");
        assert_eq!(told(&[(7, "veth7")], 9), (String::new(), Some(14)), "and unknown again when it comes back");
    }
}
