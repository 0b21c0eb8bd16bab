//! Containers of a real Docker engine, started and stopped while policy stands. Each forbidden probe is first seen to get through
//! without an agent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::docker::{Container, Options};
use firebreak_tests::docker_demo;
use firebreak_tests::docker_site::{Site, service_on};
use firebreak_tests::namespace::{Namespace, ip};
use firebreak_tests::probe::{Kind, probe, send};
use firebreak_tests::scaled;
use firebreak_tests::wait;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// db takes connections from api only, and judges its own node too. api and web are not isolated.
const DB: &str = "apiVersion: firebreak.dev/v1alpha1
kind: SegmentPolicy
metadata: {name: db, namespace: store}
spec:
  appliesTo: {matchLabels: {app: db}}
  ingress:
  - from: [{workloads: {matchLabels: {app: api}}}]
    ports: [{protocol: TCP, port: 5432}]
";
const DB_PORT: Kind = Kind::Tcp(5432);

/// A prefix of names that no other run has.
fn prefix(name: &str) -> String {
    format!("fk{name}{}", std::process::id())
}

/// How long a change may take to be enforced.
const SOON: Duration = Duration::from_secs(10);

fn sees(from: &Container, to: IpAddr, kind: Kind) -> bool {
    from.probe(to, kind).unwrap()
}

fn soon(what: &str, expected: bool, mut ask: impl FnMut() -> bool) {
    wait::until_true(what, SOON, || ask() == expected).unwrap();
}

/// Packets that arrive inside a container, counted by sender before anything there can refuse them.
struct Counter<'a>(&'a Container);

impl<'a> Counter<'a> {
    fn install(container: &'a Container) -> Self {
        let counter = Self(container);
        counter.nft(
            "table ip seen { set by { type ipv4_addr; size 1024; flags dynamic; counter; }\nchain in { type filter hook prerouting priority -400;\n\
             ip saddr != 0.0.0.0 update @by { ip saddr }\n}\n}",
        );
        counter
    }

    fn nft(&self, text: &str) -> String {
        let net = format!("--net=/proc/{}/ns/net", self.0.pid);
        let output = Command::new("nsenter").args([&net, "nft", text]).output().unwrap();
        assert!(output.status.success(), "nft {text}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether anything came from this address.
    fn has(&self, from: IpAddr) -> bool {
        self.nft("list set ip seen by").contains(&format!("{from} counter"))
    }
}

/// Asks again and again from inside a container or namespace, on a thread; counts what got through.
struct Asking {
    stop: Arc<AtomicBool>,
    through: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Asking {
    fn start(from: &Container, to: IpAddr, kinds: &'static [Kind]) -> Self {
        let (stop, through, asked): (Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let asking = (stop.clone(), through.clone(), asked.clone());
        let from = from.clone();
        let thread = std::thread::spawn(move || {
            from.inside(move || {
                let (stop, through, asked) = asking;
                while !stop.load(Ordering::Relaxed) {
                    for kind in kinds {
                        // Short: what gets through takes far below a millisecond, what is denied is to be asked often.
                        let got = send(to, *kind, Duration::from_millis(20)).unwrap();
                        through.fetch_add(usize::from(got), Ordering::Relaxed);
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
            .unwrap();
        });
        Self { stop, through, asked, thread }
    }

    /// Ends it; how many were asked and how many got through.
    fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        (self.asked.load(Ordering::Relaxed), self.through.load(Ordering::Relaxed))
    }
}

#[test]
fn the_second_demo_goes_as_it_should() {
    assert!(docker_demo::run(&prefix("d")).unwrap());
}

#[test]
fn identity_comes_from_compose_labels_and_not_from_the_image() {
    let mut site = Site::start(&prefix("i"), 1, Options::default()).unwrap();
    let engine = site.engine().unwrap();
    engine.import("forged:1", &["app=api", "com.docker.compose.project=store", "com.docker.compose.service=api"]).unwrap();
    let db = site.service("store", "db", 5432, &[]).unwrap();
    let api = site.service("store", "api", 8081, &[]).unwrap();
    // The service is one name, the label that people gave another: the label counts.
    let labelled = site.service("store", "worker", 8082, &["--label", "app=api"]).unwrap();
    engine.docker(&["run", "--detach", "--name", "forged", "forged:1"]).unwrap();
    let forged = engine.inspect("forged").unwrap();
    let plain = engine.run("plain", &["--label", "app=api"]).unwrap();
    for from in [&api, &labelled, &forged, &plain] {
        assert!(sees(from, db.ip(), DB_PORT), "{} without Firebreak", from.name);
    }
    site.controller.apply(DB).unwrap();
    site.start_agents().unwrap();
    site.wait_enforced(&["store/store-db-1", "store/store-api-1", "store/store-worker-1", "docker/forged", "docker/plain"]).unwrap();
    let table = [(&api, true), (&labelled, true), (&forged, false), (&plain, false)];
    for (from, expected) in table {
        assert_eq!(sees(from, db.ip(), DB_PORT), expected, "{} -> db", from.name);
    }
    let listed = site.controller.ask_json(&["get", "workloads", "-o", "json"]).unwrap();
    let items = listed["items"].as_array().unwrap();
    let named = |name: &str| items.iter().find(|item| item["name"] == name).unwrap();
    assert_eq!(named("store-api-1")["labels"]["app"], "api");
    assert_eq!(named("store-worker-1")["labels"]["app"], "api");
    assert_eq!(
        (&named("forged")["labels"]["app"], &named("plain")["labels"]["role"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
}

#[test]
fn a_label_rule_goes_by_the_image_and_not_by_what_a_container_says_of_itself() {
    let mut site = Site::start(&prefix("l"), 1, Options::default()).unwrap();
    let engine = site.engine().unwrap();
    engine.import("payments/db:1", &[]).unwrap();
    let db = site.service("store", "db", 5432, &[]).unwrap();
    engine.docker(&["run", "--detach", "--name", "teller", "payments/db:1"]).unwrap();
    let teller = engine.inspect("teller").unwrap();
    let liar = engine.run("liar", &["--label", "reserved.firebreak.dev/zone=pci"]).unwrap();
    for from in [&teller, &liar] {
        assert!(sees(from, db.ip(), DB_PORT), "{} without Firebreak", from.name);
    }
    let manifests = "---
apiVersion: firebreak.dev/v1alpha1
kind: LabelRule
metadata: {name: payments}
spec: {to: {images: ['payments/*']}, labels: {reserved.firebreak.dev/zone: pci}}
---
apiVersion: firebreak.dev/v1alpha1
kind: SegmentPolicy
metadata: {name: db, namespace: store}
spec:
  appliesTo: {matchLabels: {app: db}}
  ingress: [{from: [{namespaces: {}, workloads: {matchLabels: {reserved.firebreak.dev/zone: pci}}}]}]
";
    site.controller.apply(manifests).unwrap();
    site.start_agents().unwrap();
    site.wait_enforced(&["store/store-db-1", "docker/teller", "docker/liar"]).unwrap();
    assert!(sees(&teller, db.ip(), DB_PORT), "the rule is about its image");
    assert!(!sees(&liar, db.ip(), DB_PORT), "it says so of itself");
    let listed = site.controller.ask_json(&["get", "workloads", "-o", "json"]).unwrap();
    let named = |name: &str| listed["items"].as_array().unwrap().iter().find(|item| item["name"] == name).unwrap().clone();
    assert_eq!(named("teller")["image"], "payments/db:1");
    assert_eq!(named("liar")["conditions"][0]["type"], "ReservedLabels", "{}", named("liar"));
}

/// Who asks for a published port: a neighbour that may, one that may not, one on another bridge, and two from outside of the node.
fn published(userland_proxy: bool) {
    let name = prefix(if userland_proxy { "p" } else { "q" });
    let mut site = Site::start(&name, 1, Options { userland_proxy }).unwrap();
    let engine = site.engine().unwrap();
    engine.docker(&["network", "create", "other"]).unwrap();
    let db = site.service("store", "db", 5432, &["--publish", "15432:5432"]).unwrap();
    let api = site.service("store", "api", 8081, &[]).unwrap();
    let web = site.service("store", "web", 80, &[]).unwrap();
    let far = site.service("store", "far", 80, &["--network", "other"]).unwrap();
    let visitor = Namespace::new(&format!("{name}-v")).unwrap();
    ip(&["link", "add", "eth0", "netns", visitor.name(), "type", "veth", "peer", "name", "v0", "netns", site.lab.core.name()]).unwrap();
    site.lab.core.ip("link set v0 master sw0 up").unwrap();
    visitor.ip("link set eth0 up").unwrap();
    visitor.ip("addr add 192.168.77.200/24 dev eth0").unwrap();
    visitor.ip("addr add fd77::200/64 dev eth0 nodad").unwrap();

    let node: [IpAddr; 2] = ["192.168.77.1".parse().unwrap(), "172.17.0.1".parse().unwrap()];
    let port = Kind::Tcp(15432);
    let office = |to| probe(&site.lab.core, to, port).unwrap();
    let stranger = |to| probe(&visitor, to, port).unwrap();
    // There is no destination NAT for IPv6 to an IPv4 container: only the proxy listens.
    let over_ipv6: IpAddr = "fd77::1".parse().unwrap();
    assert_eq!(stranger(over_ipv6), userland_proxy, "without Firebreak");
    assert!(office(node[0]) && stranger(node[0]), "without Firebreak the port is open to the network");
    for (from, address) in [&api, &web].into_iter().flat_map(|from| node.map(|address| (from, address))) {
        assert!(sees(from, address, port), "{} -> {address} without Firebreak", from.name);
    }
    assert!(!userland_proxy || sees(&far, node[0], port), "without Firebreak the proxy relays for another bridge");

    let outside = DB.replace("from: [", "from: [{cidr: {cidr: 192.168.77.254/32}}, ");
    site.controller.apply(&outside).unwrap();
    site.start_agents().unwrap();
    site.wait_enforced(&["store/store-db-1", "store/store-api-1", "store/store-web-1", "store/store-far-1"]).unwrap();
    let site = &site;
    for address in node {
        assert!(sees(&api, address, port), "api is allowed, through {address} too");
        assert!(!sees(&web, address, port), "web is denied, through {address} too");
        assert!(!sees(&far, address, port), "far is denied on another bridge, through {address} too");
    }
    assert!(!sees(&web, db.ip(), DB_PORT) && sees(&api, db.ip(), DB_PORT));
    assert!(probe(&site.lab.core, node[0], port).unwrap(), "the office is allowed");
    assert!(!probe(&visitor, node[0], port).unwrap(), "a stranger of the same network is not");
    // What the proxy relays from outside comes from the node: it is told, and a policy that judges the node stops it.
    let warned = || site.controller.ask(&["nodes", "-o", "json"]).unwrap().contains("RelayedPublishedPort");
    if userland_proxy {
        assert!(probe(&visitor, over_ipv6, port).unwrap(), "the proxy is open, or the warning would be wrong");
        soon("the node to warn of its relayed port", true, warned);
    }
    site.controller.apply(&outside.replace("spec:\n", "spec:\n  hostAccess: Judge\n")).unwrap();
    assert!(!probe(&visitor, over_ipv6, port).unwrap(), "a stranger over IPv6");
    soon("no warning, or no more", false, warned);
    assert!(probe(&site.lab.core, node[0], port).unwrap(), "the office over IPv4 does not come from the node");
    site.controller.ask(&["delete", "segmentpolicy", "db", "-n", "store"]).unwrap();
    soon("web to reach the published port again", true, || sees(&web, node[0], port));
    assert!(probe(&visitor, node[0], port).unwrap());
}

#[test]
fn a_published_port_that_docker_proxy_relays_is_judged_as_its_container() {
    published(true);
}

#[test]
fn a_published_port_behind_destination_nat_is_judged_as_its_container() {
    published(false);
}

#[test]
fn a_remote_container_of_the_same_address_admits_no_local_stranger() {
    let mut site = Site::start(&prefix("n"), 2, Options::default()).unwrap();
    let [here, there] = site.engines.as_slice() else { panic!("two nodes") };
    // 172.17.0.2 is the stranger here, and api there; 172.17.0.4 is api here, and nobody there.
    let stranger = service_on(here, "store", "stranger", 80, &[]).unwrap();
    let db = service_on(here, "store", "db", 5432, &[]).unwrap();
    let remote_api = service_on(there, "store", "api", 80, &[]).unwrap();
    let local_api = here.run("local-api", &["--label", "com.docker.compose.project=store", "--label", "app=api"]).unwrap();
    assert_eq!(stranger.address, remote_api.address, "the case needs one address on both nodes");
    assert!(sees(&stranger, db.ip(), DB_PORT), "without Firebreak");
    site.controller.apply(DB).unwrap();
    site.start_agents().unwrap();
    site.wait_enforced(&["store/store-stranger-1", "store/store-db-1", "store/store-api-1", "store/local-api"]).unwrap();
    assert!(!sees(&stranger, db.ip(), DB_PORT), "the stranger has the address of api on the other node");
    assert!(sees(&local_api, db.ip(), DB_PORT));
    let nodes = site.controller.ask(&["nodes", "-o", "json"]).unwrap();
    assert!(!nodes.contains("AddressConflict"), "one address in two hidden networks is no conflict: {nodes}");
    assert!(nodes.contains("SourceNatHidesWorkloads"), "the masquerading is told: {nodes}");
}

/// A network in which containers are given their addresses.
const APART: &[&str] = &["network", "create", "--subnet", "10.99.0.0/16", "apart"];

/// Tries db from a container's first moment: a TCP connection, a ping and a datagram every 10 ms or so, for `rounds` rounds. Each
/// container has an address that none had before, so that a counter tells them apart.
fn first_moments(site: &Site, name: &str, app: &str, last: usize, db: IpAddr, rounds: usize) -> Container {
    let script = format!(
        "i=0; while [ $i -lt {rounds} ]; do (echo through | nc -w 1 {db} 5432) & ping -c 1 -W 1 {db} >/dev/null & \
         nslookup -timeout=1 x {db} >/dev/null 2>&1 & usleep 10000; i=$((i+1)); done; wait; exec sleep 1000000"
    );
    let (app, address) = (format!("app={app}"), format!("10.99.0.{last}"));
    let options = ["--label", "com.docker.compose.project=store", "--label", &app, "--network", "apart", "--ip", &address];
    site.engine().unwrap().run_command(name, &options, &["sh", "-c", &script]).unwrap()
}

#[test]
fn no_forbidden_packet_passes_from_a_containers_first_moment() {
    let mut site = Site::start(&prefix("f"), 1, Options::default()).unwrap();
    site.engine().unwrap().docker(APART).unwrap();
    let db = site.service("store", "db", 5432, &["--network", "apart", "--ip", "10.99.0.200"]).unwrap();
    let counter = Counter::install(&db);
    let log = |site: &Site, name: &str| site.engine().unwrap().docker(&["logs", name]).unwrap();

    let open = first_moments(&site, "open", "web", 10, db.ip(), 5);
    soon("the loop to get through without Firebreak", true, || log(&site, "open").contains("through"));
    assert!(counter.has(open.ip()));

    site.controller.apply(DB).unwrap();
    site.start_agents().unwrap();
    site.wait_enforced(&["store/store-db-1"]).unwrap();
    let rounds = scaled(4, 20);
    let early: Vec<Container> = (0..rounds)
        .map(|round| {
            let web = first_moments(&site, &format!("early-{round}"), "web", 50 + round, db.ip(), 60);
            site.wait_enforced(&[&format!("store/early-{round}")]).unwrap();
            web
        })
        .collect();
    // The same loop does get through where policy allows it, once the container is known.
    let api = first_moments(&site, "api", "api", 100, db.ip(), 60);
    soon("the loop of api to get through", true, || log(&site, "api").contains("through"));
    assert!(counter.has(api.ip()));
    for web in &early {
        assert!(!counter.has(web.ip()), "{}: a packet reached db: {}", web.name, counter.nft("list set ip seen by"));
        assert!(!log(&site, &web.name).contains("through"), "{}", web.name);
    }
}

#[test]
fn an_isolated_container_lets_nobody_in_from_its_first_moment() {
    const KINDS: &[Kind] = &[Kind::Ping, DB_PORT];
    let mut site = Site::start(&prefix("g"), 1, Options::default()).unwrap();
    site.engine().unwrap().docker(APART).unwrap();
    let on = |address: &'static str| ["--network", "apart", "--ip", address];
    let stranger = site.service("store", "stranger", 80, &on("10.99.0.200")).unwrap();
    let address: IpAddr = "10.99.0.10".parse().unwrap();
    let asking = Asking::start(&stranger, address, KINDS);
    site.service("store", "db", 5432, &on("10.99.0.10")).unwrap();
    soon("the stranger to get in without Firebreak", true, || sees(&stranger, address, DB_PORT));
    assert!(asking.end().1 > 0, "without Firebreak");
    site.engine().unwrap().remove("store-db-1").unwrap();

    site.controller.apply(DB).unwrap();
    site.start_agents().unwrap();
    site.wait_enforced(&["store/store-stranger-1"]).unwrap();
    let asking = Asking::start(&stranger, address, KINDS);
    for _ in 0..scaled(4, 20) {
        site.service("store", "db", 5432, &on("10.99.0.10")).unwrap();
        site.wait_enforced(&["store/store-db-1"]).unwrap();
        site.engine().unwrap().remove("store-db-1").unwrap();
    }
    let (asked, through) = asking.end();
    assert_eq!(through, 0, "of {asked} probes of the stranger");
    // The next owner of the address is not isolated: the stranger gets in.
    site.service("store", "cache", 5432, &on("10.99.0.10")).unwrap();
    soon("the stranger to reach the next owner of the address", true, || sees(&stranger, address, DB_PORT));
    site.engine().unwrap().remove("store-cache-1").unwrap();
    // And one that policy lets through inherits nothing to who comes after it.
    let db = site.service("store", "db", 5432, &on("10.99.0.11")).unwrap();
    let api = site.service("store", "api", 80, &on("10.99.0.10")).unwrap();
    soon("api to reach db", true, || sees(&api, db.ip(), DB_PORT));
    site.engine().unwrap().remove("store-api-1").unwrap();
    let heir = site.service("store", "heir", 80, &on("10.99.0.10")).unwrap();
    let asking = Asking::start(&heir, db.ip(), KINDS);
    site.wait_enforced(&["store/store-heir-1"]).unwrap();
    let (asked, through) = asking.end();
    assert_eq!((sees(&heir, db.ip(), DB_PORT), through), (false, 0), "of {asked} probes of the heir");
}

#[test]
fn restarts_of_engine_agent_and_watcher_open_nothing_and_lose_nothing() {
    let mut site = Site::start(&prefix("r"), 1, Options::default()).unwrap();
    let db = site.service("store", "db", 5432, &["--publish", "15432:5432"]).unwrap();
    let api = site.service("store", "api", 80, &[]).unwrap();
    let web = site.service("store", "web", 80, &[]).unwrap();
    assert!(sees(&web, db.ip(), DB_PORT), "without Firebreak");
    site.controller.apply(DB).unwrap();
    site.start_agents().unwrap();
    site.wait_enforced(&["store/store-db-1", "store/store-api-1", "store/store-web-1"]).unwrap();
    let forbidden = Asking::start(&web, db.ip(), &[DB_PORT, Kind::Ping]);
    let stands = |when: &str| {
        assert!(sees(&api, db.ip(), DB_PORT), "api is let through {when}");
        assert!(!sees(&web, db.ip(), DB_PORT), "web is not {when}");
    };
    stands("at first");

    site.engines[0].kill().unwrap();
    stands("while the engine is gone");
    site.agents[0].kill().unwrap();
    stands("while engine and agent are gone");
    site.agents[0].start_again(&site.nodes[0]).unwrap();
    stands("while the agent waits for the engine");
    site.engines[0].start_again().unwrap();
    site.wait_enforced(&["store/store-db-1", "store/store-api-1", "store/store-web-1"]).unwrap();
    stands("after both came back");

    for round in 0..scaled(3, 30) {
        // A container starts while the watcher is gone.
        kill_watcher(&mut site);
        let name = format!("late-{round}");
        let late = site.engine().unwrap().run(&name, &["--label", "com.docker.compose.project=store", "--label", "app=api"]).unwrap();
        kill_watcher(&mut site);
        soon(&format!("{name} to be let through"), true, || sees(&late, db.ip(), DB_PORT));
        stands("after the watcher was killed");
        // And one stops.
        kill_watcher(&mut site);
        site.engine().unwrap().remove(&name).unwrap();
        let listed = |site: &Site| site.controller.ask(&["get", "workloads", "-n", "store"]).unwrap().contains(&name);
        soon(&format!("{name} to be gone"), false, || listed(&site));
    }
    site.engines[0].terminate().unwrap();
    site.engines[0].start_again().unwrap();
    stands("after an orderly restart of the engine");
    let (asked, through) = forbidden.end();
    assert_eq!(through, 0, "of {asked} forbidden probes");
    assert!(asked > 20, "{asked}");
}

/// `kill -9` of the process that watches the engine, as soon as there is one: a child of the agent's helper.
fn kill_watcher(site: &mut Site) {
    let agent = site.agents[0].process().unwrap().id();
    wait::until_true("the watcher to run", SOON, || {
        let watcher = children(agent).into_iter().flat_map(children).find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains("docker-watch"))
        });
        let Some(pid) = watcher.and_then(|pid| i32::try_from(pid).ok()) else { return false };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).is_ok()
    })
    .unwrap();
}

/// The children of a process, whichever of its threads started them.
fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>()).collect()
}

#[test]
fn an_engine_that_is_dropped_leaves_nothing() {
    let name = prefix("z");
    let mut site = Site::start(&name, 1, Options::default()).unwrap();
    let pid = site.engine().unwrap().run("left", &[]).unwrap().pid;
    let folder = site.folder().to_owned();
    // Even if the engine was killed before, and its containers run on.
    site.engines[0].kill().unwrap();
    drop(site);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the container runs on");
    assert!(!folder.exists(), "{} is left", folder.display());
    assert!(!std::fs::read_to_string("/proc/self/mounts").unwrap().contains(&name), "a mount is left");
    assert!(std::fs::read_dir("/run/netns").unwrap().all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with(&name)));
    let groups = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path().join(format!("firebreak-{name}-node-a")));
    assert!(groups.into_iter().all(|group| !group.exists()), "a control group is left");
}
