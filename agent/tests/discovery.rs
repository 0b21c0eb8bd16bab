//! Discovery against the kernel, in network namespaces made for it. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_agent::dataplane::{InterfacePattern, MacAddress};
use firebreak_agent::discovery::docker::{Container, DockerView, Network};
use firebreak_agent::discovery::rtnl::{Change, Monitor};
use firebreak_agent::discovery::{self, DiscoveryConfig};
use firebreak_agent::local::{ExemptReason, LocalWorkloads, Problem};
use firebreak_policy::model::{ContainerId, InterfaceName, Labels, NamespaceName, NetworkAddress, NetworkName, NodeName};
use firebreak_proto::workload::{DeclaredWorkload, Location};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);
static NUMBER: AtomicU32 = AtomicU32::new(0);

fn sh(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A node: a namespace of its own, in which discovery runs.
struct Node {
    prefix: String,
    namespaces: Vec<String>,
    declared: watch::Sender<Option<Arc<Vec<DeclaredWorkload>>>>,
    docker: watch::Sender<Arc<DockerView>>,
    local: watch::Receiver<Arc<LocalWorkloads>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    fn new() -> Self {
        let prefix = format!("fbdisc{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let node = format!("{prefix}-node");
        sh(&format!("ip netns add {node}; ip -n {node} link set lo up"));
        let (declared, declared_of_task) = watch::channel(Some(Arc::default()));
        let (docker, docker_of_task) = watch::channel(Arc::new(DockerView::without_engine()));
        let (out, local) = watch::channel(LocalWorkloads::unknown());
        let stop = CancellationToken::new();
        let config = DiscoveryConfig {
            node: NodeName::new("n1"),
            patterns: vec![InterfacePattern::new("veth*").unwrap()],
            netns_dir: PathBuf::from("/run/netns"),
            helper: None,
        };
        let (namespace, stopped) = (format!("/run/netns/{node}"), stop.clone());
        let thread = std::thread::spawn(move || {
            let namespace = File::open(namespace).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(discovery::run(config, declared_of_task, docker_of_task, out, stopped));
        });
        Self { namespaces: vec![node], prefix, declared, docker, local, stop, thread: Some(thread) }
    }

    fn node(&self) -> &str {
        &self.namespaces[0]
    }

    /// Runs `ip` in the node's namespace.
    fn ip(&self, command: &str) {
        sh(&format!("ip -n {} {command}", self.node()));
    }

    /// Makes a namespace for a container and gives its full name.
    fn container(&mut self, name: &str) -> String {
        let full = format!("{}-{name}", self.prefix);
        sh(&format!("ip netns add {full}; ip -n {full} link set lo up"));
        self.namespaces.push(full.clone());
        full
    }

    /// A veth from the node into a container's namespace, with an address in there; the node has a route to a single address.
    fn veth(&self, host: &str, container: &str, address: &str) {
        self.ip(&format!("link add {host} type veth peer name eth0 netns {container}"));
        self.ip(&format!("link set {host} up"));
        sh(&format!("ip -n {container} addr add {address} dev eth0; ip -n {container} link set eth0 up"));
        if address.ends_with("/32") {
            self.ip(&format!("route add {address} dev {host}"));
        }
    }

    fn declare(&self, workloads: &[(&str, Location)]) {
        let list = workloads.iter().map(|(name, location)| DeclaredWorkload {
            container: ContainerId::from(format!("shop.{name}")),
            name: (*name).to_owned(),
            namespace: NamespaceName::new("shop"),
            labels: Labels::from_iter([("app", *name)]),
            named_ports: Vec::new(),
            published_ports: Vec::new(),
            network: None,
            location: location.clone(),
            addresses: BTreeSet::new(),
        });
        self.declared.send_replace(Some(Arc::new(list.collect())));
    }

    fn see(&mut self, what: &str, holds: impl Fn(&LocalWorkloads) -> bool) -> Arc<LocalWorkloads> {
        let begun = Instant::now();
        loop {
            let local = self.local.borrow_and_update().clone();
            if holds(&local) {
                return local;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} was not seen: {local:#?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// The addresses of a workload that are not link-local, with their networks.
fn addresses(local: &LocalWorkloads, container: &str) -> BTreeSet<String> {
    let all = local.workloads.get(container_id(container)).into_iter().flat_map(|workload| workload.interfaces.values());
    all.flat_map(|interface| &interface.addresses)
        .filter(|address| !firebreak_agent::local::is_link_local(address.address))
        .map(ToString::to_string)
        .collect()
}

fn container_id(name: &str) -> &ContainerId {
    Box::leak(Box::new(ContainerId::new(name)))
}

fn set(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_routed_container_is_found_by_its_interface_and_followed_until_it_goes() {
    let mut node = Node::new();
    let container = node.container("a");
    node.declare(&[("a", Location::Interface(InterfaceName::new("veth-a")))]);
    let local = node.see("the declared workload", |local| local.workloads.contains_key(container_id("shop.a")));
    let problem = local.workloads[container_id("shop.a")].problem.clone();
    assert_eq!(problem, Some(Problem::NoInterface("there is no interface veth-a".to_owned())));

    node.veth("veth-a", &container, "10.1.0.2/32");
    let local = node.see("its address", |local| addresses(local, "shop.a") == set(&["10.1.0.2"]));
    assert!(local.in_sync && !local.bridged);
    let workload = &local.workloads[container_id("shop.a")];
    assert_eq!((workload.problem.clone(), workload.interfaces.len()), (None, 1));
    assert!(local.unknown.is_empty());

    // Changes that only the container sees.
    sh(&format!("ip -n {container} addr add fd00:1::2/128 dev eth0 nodad"));
    let at = |local: &LocalWorkloads| local.workloads[container_id("shop.a")].interfaces.values().next().cloned().unwrap();
    let local = node.see("an address that the node does not send there", |local| at(local).not_routed.len() == 1);
    assert_eq!(addresses(&local, "shop.a"), set(&["10.1.0.2"]));
    let is_told = |local: &LocalWorkloads| local.warnings.iter().any(|warning| warning.message.contains("fd00:1::2 (shop/a at veth-a)"));
    node.see("a warning of it", is_told);
    node.ip("route add fd00:1::2/128 dev veth-a");
    node.see("the IPv6 address", |local| addresses(local, "shop.a") == set(&["10.1.0.2", "fd00:1::2"]));
    sh(&format!("ip -n {container} addr del 10.1.0.2/32 dev eth0"));
    node.see("the address gone", |local| addresses(local, "shop.a") == set(&["fd00:1::2"]));

    // The MAC address of the container's end, and that it changes.
    let mac = |local: &LocalWorkloads| local.workloads[container_id("shop.a")].interfaces.values().find_map(|interface| interface.mac);
    assert!(mac(&local).is_some_and(|mac| !local.node_macs.contains(&mac)), "not that of the node's end");
    sh(&format!("ip -n {container} link set eth0 address 02:00:00:00:00:07"));
    node.see("the new MAC address", |local| mac(local) == Some(MacAddress([2, 0, 0, 0, 0, 7])));

    // A link-local address belongs to the link, which is this interface.
    let link = NetworkName::new("n1/veth-a");
    node.see("the link-local address", |local| {
        let all = local.workloads[container_id("shop.a")].interfaces.values().flat_map(|interface| &interface.addresses);
        all.into_iter().any(|NetworkAddress { network, address }| *network == link && firebreak_agent::local::is_link_local(*address))
    });

    node.ip("link del veth-a");
    let local = node.see("the interface gone", |local| local.workloads[container_id("shop.a")].interfaces.is_empty());
    assert!(local.workloads[container_id("shop.a")].problem.is_some());
    node.declare(&[]);
    node.see("the workload gone", |local| local.workloads.is_empty());
}

#[test]
fn a_bridged_container_is_found_by_its_named_namespace() {
    let mut node = Node::new();
    let container = node.container("b");
    node.declare(&[
        ("b", Location::NetworkNamespace(container.clone())),
        ("c", Location::NetworkNamespace("no-such-namespace".to_owned())),
    ]);
    node.ip("link add br0 type bridge");
    node.ip("link set br0 up");
    node.ip("addr add 10.2.0.1/24 dev br0");
    node.ip("addr add fd00:2::1/64 dev br0 nodad");
    let local = node.see("two workloads without a place", |local| {
        local.workloads.len() == 2 && local.workloads.values().all(|workload| workload.problem.is_some())
    });
    let problem = local.workloads[container_id("shop.c")].problem.as_ref().unwrap().to_string();
    assert_eq!(problem, "there is no network namespace /run/netns/no-such-namespace");

    node.veth("veth-b", &container, "10.2.0.2/24");
    node.ip("link set veth-b master br0");
    let local = node.see("the workload on the bridge", |local| local.bridged && addresses(local, "shop.b") == set(&["10.2.0.2"]));
    assert_eq!(local.node_addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.2.0.1", "fd00:2::1"]);
    assert_eq!(
        local.workloads[container_id("shop.b")].interfaces.values().map(|interface| interface.name.as_str()).collect::<Vec<_>>(),
        ["veth-b"]
    );

    // The same namespace, reached by another veth: a new ifindex, the same workload.
    let index = |local: &LocalWorkloads| local.workloads[container_id("shop.b")].interfaces.keys().copied().collect::<Vec<_>>();
    let before = index(&local);
    node.ip("link del veth-b");
    node.see("the interface gone", |local| index(local).is_empty());
    node.veth("veth-b", &container, "10.2.0.2/24");
    node.see("that no route leads to it before it is on the bridge", |local| {
        matches!(local.workloads[container_id("shop.b")].problem, Some(Problem::NotRouted(_)))
    });
    node.ip("link set veth-b master br0");
    let local = node.see("the interface again", |local| !index(local).is_empty());
    assert_ne!(index(&local), before);
}

#[test]
fn an_interface_that_nobody_knows_is_unknown_and_one_with_a_default_route_is_exempt() {
    let mut node = Node::new();
    let stranger = node.container("s");
    let outside = node.container("o");
    node.veth("veth-s", &stranger, "10.3.0.2/32");
    node.veth("veth-up", &outside, "192.0.2.1/24");
    node.ip("addr add 192.0.2.2/24 dev veth-up");
    node.ip("link add vethbridge type bridge");
    node.ip("link add other0 type veth peer name other1");
    let names = |local: &LocalWorkloads| local.unknown.values().map(|name| name.as_str().to_owned()).collect::<BTreeSet<_>>();
    node.see("two unknown", |local| names(local) == set(&["veth-s", "veth-up"]));

    node.ip("route add default via 192.0.2.1");
    let exempt = |local: &LocalWorkloads| -> BTreeMap<String, ExemptReason> {
        local.exempt.values().map(|exempt| (exempt.name.as_str().to_owned(), exempt.reason)).collect()
    };
    let wanted = BTreeMap::from([("veth-up".to_owned(), ExemptReason::DefaultRoute), ("vethbridge".to_owned(), ExemptReason::NotVeth)]);
    let local = node.see("the way out", |local| exempt(local) == wanted);
    assert_eq!(names(&local), set(&["veth-s"]));

    // Whatever anybody says of it, it is never managed.
    node.declare(&[("o", Location::Interface(InterfaceName::new("veth-up"))), ("s", Location::NetworkNamespace(stranger.clone()))]);
    let local = node.see("the stranger known", |local| local.unknown.is_empty() && local.workloads.len() == 2);
    let problem = local.workloads[container_id("shop.o")].problem.clone();
    assert_eq!(problem, Some(Problem::Exempt(InterfaceName::new("veth-up"), ExemptReason::DefaultRoute)));

    node.ip("route del default");
    node.see("the way out gone", |local| local.workloads[container_id("shop.o")].problem.is_none());
    node.ip("-6 route add default dev veth-up");
    node.see("another way out", |local| exempt(local) == wanted);
}

/// A process in a container's namespace, as an engine would have started it.
struct Process(Child);

impl Process {
    fn start(namespace: &str) -> Self {
        Self(Command::new("nsenter").arg(format!("--net=/run/netns/{namespace}")).args(["sleep", "600"]).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn engine(containers: &[(&str, u32, Network)]) -> Arc<DockerView> {
    let container = |(id, pid, network): &(&str, u32, Network)| {
        let container = Container {
            id: (*id).to_owned(),
            name: (*id).to_owned(),
            pid: *pid,
            labels: BTreeMap::new(),
            image_labels: BTreeMap::new(),
            image: String::new(),
            network: network.clone(),
            bridges: Vec::new(),
            given: Vec::new(),
            ports: Vec::new(),
        };
        ((*id).to_owned(), Arc::new(container))
    };
    Arc::new(DockerView { containers: containers.iter().map(container).collect(), ..DockerView::without_engine() })
}

#[test]
fn a_container_of_an_engine_is_found_through_its_process() {
    let mut node = Node::new();
    let namespace = node.container("d");
    let process = Process::start(&namespace);
    // nsenter has entered when its namespace is that one.
    let begun = Instant::now();
    let inode = |path: String| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    while inode(format!("/proc/{}/ns/net", process.0.id())) != inode(format!("/run/netns/{namespace}")) {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(2));
    }
    node.veth("veth-d", &namespace, "10.4.0.2/32");
    node.docker.send_replace(engine(&[
        ("d", process.0.id(), Network::Own),
        ("h", process.0.id(), Network::Host),
        ("s", process.0.id(), Network::Container { of: "d".to_owned() }),
        ("gone", u32::MAX, Network::Own),
    ]));
    let local = node.see("the container", |local| addresses(local, "d") == set(&["10.4.0.2"]));
    let problem = |id: &str| local.workloads[container_id(id)].problem.clone();
    assert_eq!(problem("d"), None);
    assert_eq!((problem("h"), local.workloads[container_id("h")].host_network), (Some(Problem::HostNetwork), true));
    assert_eq!(problem("s"), Some(Problem::SharedNetwork("d".to_owned())));
    assert_eq!(problem("gone"), Some(Problem::NoInterface("its process is gone".to_owned())));

    // The engine is silent, the container's process ends: at the next look it is not taken for whoever has its number.
    drop(process);
    node.ip("link set veth-d down");
    node.see("the container without a place", |local| local.workloads[container_id("d")].interfaces.is_empty());
}

#[test]
fn two_manifests_for_one_interface_are_both_denied_and_a_manifest_goes_before_an_engine() {
    let mut node = Node::new();
    let namespace = node.container("e");
    node.veth("veth-e", &namespace, "10.5.0.2/32");
    let by_name = Location::Interface(InterfaceName::new("veth-e"));
    node.declare(&[("e", by_name.clone()), ("f", Location::NetworkNamespace(namespace.clone()))]);
    let local = node.see("both denied", |local| local.workloads.len() == 2 && local.unknown.len() == 1);
    for workload in local.workloads.values() {
        assert_eq!(workload.problem, Some(Problem::ClaimedTwice(InterfaceName::new("veth-e"))));
    }
    let process = Process::start(&namespace);
    node.declare(&[("e", by_name)]);
    node.docker.send_replace(engine(&[("d", process.0.id(), Network::Own)]));
    node.see("the manifest's", |local| local.workloads.len() == 2 && addresses(local, "shop.e") == set(&["10.5.0.2"]));
}

#[test]
fn a_hundred_containers_that_come_at_once_are_all_found_and_all_gone_again() {
    let mut node = Node::new();
    let container = node.container("many");
    // One namespace with many veths is enough for a flood of notifications.
    let batch: String = (0..100)
        .map(|number| format!("link add veth{number} type veth peer name e{number} netns {container}\nlink set veth{number} up\nroute add 10.6.0.{number}/32 dev veth{number}\n"))
        .collect();
    let inside: String = (0..100).map(|number| format!("addr add 10.6.0.{number}/32 dev e{number}\nlink set e{number} up\n")).collect();
    let run = |namespace: &str, lines: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines).unwrap();
        sh(&format!("ip -n {namespace} -batch {}", file.path().display()));
    };
    node.declare(&[("many", Location::NetworkNamespace(container.clone()))]);
    run(node.node(), &batch);
    run(&container, &inside);
    let begun = Instant::now();
    node.see("all of them", |local| addresses(local, "shop.many").len() == 100);
    println!("100 veths and their addresses were known {:?} after the last was made", begun.elapsed());
    let node_name = node.node().to_owned();
    let gone: String = (0..100).map(|number| format!("link del veth{number}\n")).collect();
    run(&node_name, &gone);
    node.see("none of them", |local| local.workloads[container_id("shop.many")].interfaces.is_empty());
}

#[test]
fn notifications_that_the_kernel_had_to_drop_are_heard_of_as_an_overrun() {
    let namespace = format!("fbdisc{}-overrun", std::process::id());
    struct Cleanup(String);
    impl Drop for Cleanup {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
    sh(&format!("ip netns add {namespace}"));
    let cleanup = Cleanup(namespace.clone());
    let heard = std::thread::spawn(move || {
        let file = File::open(format!("/run/netns/{namespace}")).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut monitor = Monitor::open().unwrap();
            // Nobody reads while the socket's buffer (at most net.core.rmem_max) fills up.
            let lines = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(lines.path(), "link set lo up\nlink set lo down\n".repeat(4000)).unwrap();
            sh(&format!("ip -n {namespace} -batch {}", lines.path().display()));
            let mut heard = BTreeSet::new();
            while !heard.contains(&Change::Overrun) {
                heard.extend(tokio::time::timeout(PATIENCE, monitor.next()).await.expect("an overrun").unwrap());
            }
            // And the socket goes on.
            sh(&format!("ip -n {namespace} link add br0 type bridge"));
            while !tokio::time::timeout(PATIENCE, monitor.next()).await.expect("the next change").unwrap().contains(&Change::Links) {}
        });
    });
    heard.join().unwrap();
    drop(cleanup);
}
