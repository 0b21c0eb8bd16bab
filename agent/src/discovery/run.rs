//! The loop: hear, read again, publish.

use super::assemble::{Identity, Kernel, Place, assemble, wanted_peers};
use super::docker::{Container, DockerView, Sync};
use super::identity;
use super::rtnl::{Change, Monitor, PeerNamespace, Rtnl, RtnlError};
use crate::dataplane::InterfacePattern;
use crate::helper::Helper;
use crate::local::{LocalWorkloads, NOT_ROUTED_REMEDY, Warning};
use firebreak_policy::model::NodeName;
use firebreak_proto::workload::{DeclaredWorkload, Location};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::hash::Hash;
use std::net::IpAddr;
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
/// For how long an interface may be unknown, or an address without a route, before people are told: those of a container that starts are, for a
/// moment.
const TOLD_AFTER: Duration = Duration::from_secs(5);
/// How many of a kind are named.
const NAMED: usize = 20;
/// Routes are read again for at most this part of the time, whatever a routing daemon does: a node can have a million of them.
const ROUTES_SHARE: u32 = 20;
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
    let mut since = Since::default();
    loop {
        let ended = tokio::select! {
            () = shutdown.cancelled() => return,
            ended = discover(&config, &mut declared, &mut docker, &out, &mut since) => ended,
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
    since: &mut Since,
) -> Result<std::convert::Infallible, RtnlError> {
    // The monitor first: what changes while the rest is read is heard of.
    let mut monitor = Monitor::open()?;
    let mut reader = Reader::new(Rtnl::open()?);
    let mut changes = BTreeSet::from([Change::Overrun]);
    let mut read_all = Instant::now() + READ_ALL;
    loop {
        let listed = declared.borrow_and_update().clone();
        let containers = docker.borrow_and_update().clone();
        let identities = reader.read(config, &changes, listed.as_deref().map_or(&[], Vec::as_slice), &containers).await?;
        let mut local = assemble(&config.node, &config.patterns, &reader.kernel, &identities);
        local.in_sync = listed.is_some() && containers.sync != Sync::Waiting;
        let now = Instant::now();
        let next_told = warn(&mut local, &containers, since, now);
        publish(out, local);

        changes.clear();
        let quiet_until = now + COLLECT;
        let wake = [next_told, reader.routes_due].into_iter().flatten().fold(read_all, Instant::min);
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

/// Since when there is what people are told of when it stays.
#[derive(Debug, Default)]
struct Since {
    unknown: HashMap<u32, Instant>,
    not_routed: HashMap<(u32, IpAddr), Instant>,
}

/// Of what there is now, what has been there for long enough; and when there will be more of it.
fn lasting<K: Copy + Eq + Hash, T>(since: &mut HashMap<K, Instant>, there: Vec<(K, T)>, now: Instant) -> (Vec<T>, Option<Instant>) {
    let keys: HashSet<K> = there.iter().map(|(key, _)| *key).collect();
    since.retain(|key, _| keys.contains(key));
    let (mut told, mut next) = (Vec::new(), None);
    for (key, text) in there {
        let due = *since.entry(key).or_insert(now) + TOLD_AFTER;
        if due <= now {
            told.push(text);
        } else {
            next = Some(next.map_or(due, |next: Instant| next.min(due)));
        }
    }
    (told, next)
}

/// The first few by name, the rest by number.
fn some_of(mut names: Vec<String>) -> String {
    let more = if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
    names.truncate(NAMED);
    format!("{}{more}", names.join(", "))
}

/// Adds what people should know, and says when there will be more of it.
fn warn(local: &mut LocalWorkloads, docker: &DockerView, since: &mut Since, now: Instant) -> Option<Instant> {
    let unknown = local.unknown.iter().map(|(index, name)| (*index, name.to_string())).collect();
    let (unknown, next_unknown) = lasting(&mut since.unknown, unknown, now);
    if !unknown.is_empty() {
        let message = format!(
            "nobody knows what is behind {}: denied. Declare a Workload for it, or take it out of workload-interfaces",
            some_of(unknown)
        );
        local.warnings.insert(Warning::new("UnknownInterface", message));
    }
    let (not_routed, next_not_routed) = lasting(&mut since.not_routed, not_routed(local), now);
    if !not_routed.is_empty() {
        let message = format!(
            "no route of the node leads to {}: not taken for the workload's, and what it sends from there is refused. {NOT_ROUTED_REMEDY}",
            some_of(not_routed)
        );
        local.warnings.insert(Warning::new("AddressNotRouted", message));
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
    next_unknown.into_iter().chain(next_not_routed).min()
}

/// The addresses that workloads hold and that are not taken for theirs.
fn not_routed(local: &LocalWorkloads) -> Vec<((u32, IpAddr), String)> {
    let mut not_routed = Vec::new();
    for workload in local.workloads.values() {
        for (index, interface) in &workload.interfaces {
            let told = |address: &IpAddr| ((*index, *address), format!("{address} ({} at {})", workload.title(), interface.name));
            not_routed.extend(interface.not_routed.iter().map(told));
        }
    }
    not_routed
}

struct Reader {
    rtnl: Rtnl,
    kernel: Kernel,
    /// For each namespace in `kernel.peers`, the interfaces (here, there) that led into it when it was read. An id is given anew
    /// when its namespace is gone, an ifindex is not: where these differ, it is another namespace.
    leading: HashMap<i32, BTreeSet<(u32, u32)>>,
    /// When the routes may be read again, if they have changed since they were read.
    routes_due: Option<Instant>,
    /// When they may be read again if they change.
    routes_rest: Instant,
    /// When the process of a container started, so that another process with its number is not taken for it.
    starts: HashMap<String, (u32, String)>,
}

impl Reader {
    fn new(rtnl: Rtnl) -> Self {
        Self {
            rtnl,
            kernel: Kernel::default(),
            leading: HashMap::new(),
            routes_due: None,
            routes_rest: Instant::now(),
            starts: HashMap::new(),
        }
    }

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
        let begun = Instant::now();
        if changes.contains(&Change::Routes) {
            self.routes_due = Some(self.routes_rest);
        }
        if everything || changes.contains(&Change::Links) || self.routes_due.is_some_and(|due| due <= begun) {
            self.kernel.routes = self.rtnl.routes().await?;
            self.routes_rest = begun + begun.elapsed() * ROUTES_SHARE;
            self.routes_due = None;
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
        let mut since = Since::default();
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

    #[test]
    fn an_address_without_a_route_is_told_with_its_workload_and_what_to_do() {
        use crate::local::{LocalInterface, LocalWorkload};
        use firebreak_policy::model::{ContainerId, Labels, NamespaceName, WorkloadSource};
        let interface = LocalInterface {
            name: InterfaceName::new("veth7"),
            addresses: BTreeSet::new(),
            not_routed: [IpAddr::from([203, 0, 113, 9])].into(),
            mac: None,
            vouched: None,
            link: 7,
        };
        let workload = LocalWorkload {
            id: crate::local::local_id(&NodeName::new("n1"), &ContainerId::new("a")),
            name: "web".to_owned(),
            namespace: NamespaceName::new("shop"),
            labels: Labels::default(),
            image_labels: BTreeMap::new(),
            image: String::new(),
            named_ports: Vec::new(),
            published_ports: Vec::new(),
            interfaces: BTreeMap::from([(7, interface)]),
            host_network: false,
            source: WorkloadSource::Manifest,
            declared_place: String::new(),
            problem: None,
        };
        let mut local = LocalWorkloads { workloads: [(ContainerId::new("a"), Arc::new(workload))].into(), ..LocalWorkloads::default() };
        let (mut since, start) = (Since::default(), Instant::now());
        let next = warn(&mut local, &DockerView::without_engine(), &mut since, start);
        assert_eq!((local.warnings.len(), next), (0, Some(start + TOLD_AFTER)), "a route may be about to come");
        warn(&mut local, &DockerView::without_engine(), &mut since, start + TOLD_AFTER);
        let told: Vec<&Warning> = local.warnings.iter().collect();
        assert_eq!(told.iter().map(|warning| warning.code).collect::<Vec<_>>(), ["AddressNotRouted"]);
        for part in ["203.0.113.9 (shop/web at veth7)", NOT_ROUTED_REMEDY] {
            assert!(told[0].message.contains(part), "{}", told[0].message);
        }
    }
}
