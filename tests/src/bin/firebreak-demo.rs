//! `make demo`: a controller and two nodes with workloads, on the real kernel; policy, probes, denied flows, a relabel.
//!
//! Exits 0 only if every probe went as it should. `KEEP=1` leaves everything running, `--clean` takes away what such a run left.

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use firebreak_tests::lab::{Lab, Node, Topology, Workload};
use firebreak_tests::namespace::ip;
use firebreak_tests::probe::{Kind, probe};
use firebreak_tests::server::Servers;
use firebreak_tests::system::{Agent, Controller};
use firebreak_tests::wait;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// What a probe is to see.
const ALLOWED: bool = true;
const DENIED: bool = false;

/// How long workloads may take to be found and enforced at first.
const START_PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let outcome = if std::env::args().any(|word| word == "--clean") { clean() } else { demo() };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("\nsome probes did not go as they should");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nthe demo broke off: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that runs. Dropped in this order.
struct Demo {
    follower: Follower,
    agents: Vec<Agent>,
    controller: Controller,
    _servers: Vec<Servers>,
    workloads: BTreeMap<&'static str, Workload>,
    nodes: Vec<Node>,
    lab: Lab,
    place: Place,
}

/// What names begin with, and where files are. A run that is left running has fixed ones, for the commands that people are shown;
/// any other has its own, so that two checkouts do not meet.
#[derive(Clone, Debug)]
struct Place {
    prefix: String,
    folder: PathBuf,
}

/// As in `examples/shop/workloads.yaml`.
const PREFIX: &str = "fbd";
const FOLDER: &str = "/tmp/firebreak-demo";

impl Place {
    fn kept() -> Self {
        Self { prefix: PREFIX.to_owned(), folder: PathBuf::from(FOLDER) }
    }

    fn of(process: u32) -> Self {
        Self { prefix: format!("{PREFIX}{process}"), folder: PathBuf::from(format!("{FOLDER}-{process}")) }
    }

    /// The folder `shop` of the examples, with this run's names of network namespaces.
    fn shop(&self) -> anyhow::Result<PathBuf> {
        let examples = examples()?.join("shop");
        if self.prefix == PREFIX {
            return Ok(examples);
        }
        let shop = self.folder.join("shop");
        std::fs::create_dir_all(&shop)?;
        for entry in std::fs::read_dir(&examples)? {
            let entry = entry?;
            let text = std::fs::read_to_string(entry.path())?;
            let (theirs, ours) = (format!("networkNamespace: {PREFIX}-"), format!("networkNamespace: {}-", self.prefix));
            std::fs::write(shop.join(entry.file_name()), text.replace(&theirs, &ours))?;
        }
        Ok(shop)
    }
}

fn demo() -> anyhow::Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "the demo makes network namespaces: run it as root");
    println!("Firebreak demo: two nodes, six workloads, one compromised web server\n");
    let mut steps = Steps::default();
    let is_kept = std::env::var_os("KEEP").is_some();
    let place = if is_kept { Place::kept() } else { Place::of(std::process::id()) };
    let taken = place.folder.exists() || Path::new(&format!("/run/netns/{}-core", place.prefix)).exists();
    ensure!(!taken, "a demo was left running, or broke off ({}): `make demo-clean` takes it away", place.folder.display());
    let mut demo = start(&mut steps, place)?;
    let mut good = probe_all(&demo, &mut steps)?;
    good &= show_flows(&demo, &mut steps)?;
    println!("\nWhy may web not reach db?\n$ firebreak explain -n shop --from web --to db:5432/tcp");
    print!("{}", demo.controller.ask(&["explain", "-n", "shop", "--from", "web", "--to", "db:5432/tcp"])?);
    good &= relabel(&demo, &mut steps)?;
    println!("\n$ firebreak nodes\n{}", demo.controller.ask(&["nodes"])?);
    println!("How long each step took:");
    steps.print();
    if is_kept {
        keep(&mut demo);
    } else {
        let begun = Instant::now();
        let folder = demo.place.folder.clone();
        drop(demo);
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        println!("\ncleaned up in {} ms", begun.elapsed().as_millis());
    }
    Ok(good)
}

fn start(steps: &mut Steps, place: Place) -> anyhow::Result<Demo> {
    let Place { prefix, folder } = &place;
    std::fs::create_dir_all(folder)?;
    let begun = Instant::now();
    let mut lab = Lab::new(prefix)?;
    let mut bridged = lab.node("node-a", Topology::Bridged)?;
    let mut routed = lab.node("node-b", Topology::Routed)?;
    lab.connect(&[&bridged, &routed])?;
    let mut workloads = BTreeMap::new();
    for name in ["web", "dns", "ledger"] {
        workloads.insert(name, bridged.workload(&format!("{prefix}-{name}"))?);
    }
    for name in ["visitor", "api", "db"] {
        workloads.insert(name, routed.workload(&format!("{prefix}-{name}"))?);
    }
    let servers = [("web", 8080), ("api", 8081), ("db", 5432), ("ledger", 8080), ("dns", 53), ("visitor", 9000)]
        .iter()
        .map(|(name, port)| Servers::start(&workload(&workloads, name)?.namespace, &[*port], &[*port]))
        .collect::<anyhow::Result<Vec<_>>>()?;
    steps.took("two nodes and six workloads", begun);
    let before = probe(&workload(&workloads, "web")?.namespace, workload(&workloads, "db")?.v4.into(), Kind::Tcp(5432))?;
    ensure!(before, "the lab is broken: without Firebreak web does not reach db");
    println!("without Firebreak: web reaches db on 5432/tcp, like everything else");

    let begun = Instant::now();
    let controller = Controller::start(&lab.core, folder)?;
    steps.took("controller ready", begun);
    let follower = Follower::start(&controller)?;
    let begun = Instant::now();
    println!("\n$ firebreak apply -f examples/shop/");
    let shop = place.shop()?;
    print!("{}", controller.ask(&["apply", "-f", shop.to_str().context("path is not UTF-8")?, "--reason", "demo"])?);
    steps.took("policies and workloads applied", begun);
    let begun = Instant::now();
    let agents = vec![Agent::start(&bridged, "node-a", folder, &[])?, Agent::start(&routed, "node-b", folder, &[])?];
    let names = ["shop/web", "shop/dns", "billing/ledger", "shop/visitor", "shop/api", "shop/db"];
    controller.wait_enforced(&names, START_PATIENCE)?;
    steps.took("two agents started, every workload enforced", begun);
    println!("\n$ firebreak get workloads\n{}", controller.ask(&["get", "workloads"])?);
    Ok(Demo { follower, agents, controller, _servers: servers, workloads, nodes: vec![bridged, routed], lab, place })
}

fn workload<'a>(workloads: &'a BTreeMap<&'static str, Workload>, name: &str) -> anyhow::Result<&'a Workload> {
    workloads.get(name).with_context(|| format!("the demo has no workload {name}"))
}

fn examples() -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    folder.canonicalize().with_context(|| format!("{} is not there", folder.display()))
}

/// Who probes whom, with what, and what is to be seen; each over IPv4 and IPv6.
const PROBES: [(&str, &str, Kind, bool, &str); 16] = [
    ("visitor", "web", Kind::Tcp(8080), ALLOWED, "visitors may call web"),
    ("visitor", "api", Kind::Tcp(8081), DENIED, "visitors may not call api"),
    ("web", "api", Kind::Tcp(8081), ALLOWED, "web may call api"),
    ("web", "dns", Kind::Udp(53), ALLOWED, "web may ask for names"),
    ("web", "dns", Kind::Tcp(53), ALLOWED, "web may ask for names over TCP"),
    ("api", "db", Kind::Tcp(5432), ALLOWED, "api may use db"),
    ("api", "db", Kind::Udp(5432), DENIED, "only over TCP"),
    ("web", "db", Kind::Tcp(5432), DENIED, "the compromised web tries db"),
    ("web", "db", Kind::Udp(5432), DENIED, "the compromised web tries db over UDP"),
    ("web", "db", Kind::Ping, DENIED, "the compromised web pings db"),
    ("web", "ledger", Kind::Tcp(8080), DENIED, "the compromised web tries the other team, on its own bridge"),
    ("ledger", "api", Kind::Tcp(8081), DENIED, "the other team may not call api"),
    ("visitor", "api", Kind::Ping, ALLOWED, "the shop may ping api"),
    ("ledger", "api", Kind::Ping, DENIED, "the other team may not"),
    ("db", "api", Kind::Tcp(8081), DENIED, "db may start nothing"),
    ("ledger", "visitor", Kind::Tcp(9000), ALLOWED, "no policy is about these two"),
];

fn probe_all(demo: &Demo, steps: &mut Steps) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["probe", "", "expected", "IPv4", "IPv6", ""]);
    let mut good = true;
    for (from, to, kind, expected, why) in PROBES {
        let source = workload(&demo.workloads, from)?;
        let mut cells = vec![format!("{from} -> {to} {kind}"), why.to_owned(), word(expected).to_owned()];
        let mut row_good = true;
        for address in workload(&demo.workloads, to)?.addresses() {
            let seen = probe(&source.namespace, address, kind)?;
            row_good &= seen == expected;
            cells.push(word(seen).to_owned());
        }
        cells.push(if row_good { "ok" } else { "WRONG" }.to_owned());
        good &= row_good;
        table.add_row(cells);
    }
    node_rows(demo, &mut table, &mut good)?;
    println!("{}", table.lines().collect::<Vec<_>>().join("\n"));
    steps.took("all probes", begun);
    Ok(good)
}

/// db judges even its own node; the others let their node in, as probes of the node need it.
fn node_rows(demo: &Demo, table: &mut Table, good: &mut bool) -> anyhow::Result<()> {
    let node = demo.nodes.get(1).context("the demo has two nodes")?;
    for (to, kind, expected, why) in [
        ("api", Kind::Tcp(8081), ALLOWED, "a node may probe its own workloads"),
        ("db", Kind::Tcp(5432), DENIED, "but for those that say hostAccess: Judge"),
    ] {
        let mut cells = vec![format!("node-b -> {to} {kind}"), why.to_owned(), word(expected).to_owned()];
        let mut row_good = true;
        for address in workload(&demo.workloads, to)?.addresses() {
            let seen = probe(&node.namespace, address, kind)?;
            row_good &= seen == expected;
            cells.push(word(seen).to_owned());
        }
        cells.push(if row_good { "ok" } else { "WRONG" }.to_owned());
        *good &= row_good;
        table.add_row(cells);
    }
    Ok(())
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

/// The denied flows that `firebreak flows --follow` has printed; one of web and db must be among them.
fn show_flows(demo: &Demo, steps: &mut Steps) -> anyhow::Result<bool> {
    println!("\n$ firebreak flows --follow");
    let begun = Instant::now();
    let mut shown = Vec::new();
    let wanted = wait::until("the denied flow from web to db", Duration::from_secs(3), || {
        shown.extend(demo.follower.lines.try_iter());
        let found = shown.iter().any(|line| line.contains("shop/web") && line.contains("shop/db") && line.contains("5432/tcp"));
        ensure!(found, "it is not among {} lines", shown.len());
        Ok(())
    });
    shown.extend(demo.follower.lines.try_iter());
    for line in &shown {
        println!("{line}");
    }
    wanted?;
    steps.took("after the last probe: the denied flow was there", begun);
    Ok(true)
}

fn relabel(demo: &Demo, steps: &mut Steps) -> anyhow::Result<bool> {
    println!("\nledger is given to the shop as a second api: its label changes, no policy does");
    let ledger = workload(&demo.workloads, "ledger")?;
    let db: IpAddr = workload(&demo.workloads, "db")?.v4.into();
    let before = probe(&ledger.namespace, db, Kind::Tcp(5432))?;
    let manifest = demo.place.folder.join("relabel.yaml");
    std::fs::write(
        &manifest,
        format!(
            "apiVersion: firebreak.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: api-2\n  namespace: shop\n  labels: {{app: api}}\n\
             spec:\n  node: node-a\n  networkNamespace: {}\n",
            ledger.namespace.name()
        ),
    )?;
    let path = manifest.to_str().context("path is not UTF-8")?;
    demo.controller.ask(&["delete", "manifest", "ledger", "-n", "billing", "--reason", "demo"])?;
    let begun = Instant::now();
    print!("{}", demo.controller.ask(&["apply", "-f", path, "--reason", "demo"])?);
    let asked = wait::until("db to let the new api in", Duration::from_secs(10), || {
        ensure!(probe(&ledger.namespace, db, Kind::Tcp(5432))?, "it is denied");
        Ok(())
    });
    asked?;
    steps.took("relabel, from apply to the first packet let through", begun);
    println!("ledger -> db 5432/tcp: {} before, {} after", word(before), word(true));
    Ok(!before)
}

/// `firebreak flows --follow`, line by line as they come.
struct Follower {
    child: Child,
    lines: Receiver<String>,
    keep: bool,
}

impl Follower {
    fn start(controller: &Controller) -> anyhow::Result<Self> {
        let mut child = controller.command().args(["flows", "--follow"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines, keep: false })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if !self.keep {
            // Tear-down goes on whatever happens.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[derive(Default)]
struct Steps {
    rows: Vec<(String, u128)>,
}

impl Steps {
    fn took(&mut self, what: &str, begun: Instant) {
        self.rows.push((what.to_owned(), begun.elapsed().as_millis()));
    }

    fn print(&self) {
        for (what, milliseconds) in &self.rows {
            println!("  {milliseconds:>6} ms  {what}");
        }
    }
}

fn keep(demo: &mut Demo) {
    for process in demo.agents.iter_mut().filter_map(Agent::process).chain(demo.controller.process()) {
        process.keep();
    }
    demo.lab.keep();
    demo.nodes.iter_mut().for_each(|node| node.namespace.keep());
    demo.workloads.values_mut().for_each(|workload| workload.namespace.keep());
    let socket = demo.controller.socket();
    println!("\nleft running. Try:");
    println!("  export FIREBREAK_SOCKET={}", socket.display());
    println!("  firebreak get workloads -o wide        firebreak flows --follow        firebreak history");
    println!("  firebreak explain -n shop --from web --to db:5432");
    println!("  ip netns exec fbd-web ping -c1 {}", demo.workloads["db"].v4);
    println!("  ip netns exec fbd-node-b nft list table inet firebreak");
    println!("and `make demo-clean` takes it away.");
}

/// Takes away what a run with KEEP=1, or one that was killed, left behind.
fn clean() -> anyhow::Result<bool> {
    let mut places = vec![Place::kept()];
    places.extend(broken_off().into_iter().map(Place::of));
    let processes: Vec<i32> =
        std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.parse().ok()).collect();
    for Place { prefix, folder } in places {
        let files = format!("{}/", folder.display());
        for pid in &processes {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&files) && (line.contains("firebreak-controller") || line.contains("firebreak-agent")) {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL)?;
            }
        }
        for name in namespaces().into_iter().filter(|name| name.starts_with(&format!("{prefix}-"))) {
            ip(&["netns", "del", &name])?;
        }
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
    }
    println!("cleaned up");
    Ok(true)
}

fn namespaces() -> Vec<String> {
    names_in("/run/netns")
}

fn names_in(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The processes whose demo is left although they are gone, by the names of their network namespaces and folders.
fn broken_off() -> BTreeSet<u32> {
    let of_namespace = |name: String| name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok();
    let of_folder = |name: String| name.strip_prefix("firebreak-demo-")?.parse::<u32>().ok();
    let mut processes: BTreeSet<u32> = namespaces().into_iter().filter_map(of_namespace).collect();
    processes.extend(names_in("/tmp").into_iter().filter_map(of_folder));
    processes.retain(|process| !Path::new(&format!("/proc/{process}")).exists());
    processes
}
