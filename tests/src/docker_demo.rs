//! The second demo: containers of a real Docker engine under policy about their Compose labels.

use crate::docker::{Container, Options};
use crate::docker_site::Site;
use crate::namespace::{Namespace, ip};
use crate::probe::{Kind, probe};
use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Instant;

/// The node's own address, on which ports are published.
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 77, 1));

/// Where the demo runs: containers by service, and who is outside of the node.
struct Demo {
    containers: BTreeMap<&'static str, Container>,
    /// Somebody on the node's network who is not the office.
    visitor: Namespace,
    site: Site,
}

/// A row: who probes what, and what is to be seen with the policy in force.
struct Row {
    from: &'static str,
    to: To,
    port: u16,
    allowed: bool,
    why: &'static str,
}

/// Where a probe goes.
#[derive(Clone, Copy)]
enum To {
    Service(&'static str),
    /// A port of the node that the engine has published.
    Published(&'static str),
}

/// A row that is to get through.
const fn allowed(from: &'static str, to: To, port: u16, why: &'static str) -> Row {
    Row { from, to, port, allowed: true, why }
}

/// A row that is not.
const fn denied(from: &'static str, to: To, port: u16, why: &'static str) -> Row {
    Row { from, to, port, allowed: false, why }
}

const ROWS: [Row; 12] = [
    allowed("web", To::Service("api"), 8081, "web may call api"),
    allowed("api", To::Service("db"), 5432, "api may use db"),
    denied("web", To::Service("db"), 5432, "the compromised web tries db"),
    denied("web", To::Service("cms"), 8080, "the compromised web tries the other team"),
    denied("cms", To::Service("api"), 8081, "the other team may not call api"),
    denied("db", To::Service("api"), 8081, "db may start nothing"),
    allowed("cms", To::Service("web"), 80, "the other team may call web"),
    allowed("cms", To::Published("web"), 8080, "and through its published port"),
    denied("cms", To::Published("db"), 15432, "but not db, which is published too"),
    allowed("office", To::Published("web"), 8080, "the office may call web"),
    denied("visitor", To::Published("web"), 8080, "a visitor of the same network may not"),
    denied("office", To::Published("db"), 15432, "not even the office may use db"),
];

/// Runs the demo; `Ok(true)` when every probe went as it should. Names of network namespaces begin with `prefix`.
///
/// # Errors
/// The demo broke off: what was tried, and why it failed.
pub fn run(prefix: &str) -> anyhow::Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "the demo makes network namespaces: run it as root");
    println!("Firebreak demo with Docker: one engine, two Compose projects\n");
    let begun = Instant::now();
    let mut demo = start(prefix)?;
    println!("engine with four containers started in {} ms", begun.elapsed().as_millis());
    let before = demo.probe_all()?;
    let open = before.iter().all(|seen| *seen);
    println!("without Firebreak: {} of {} probes get through", before.iter().filter(|seen| **seen).count(), before.len());

    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/docker/policies.yaml");
    println!("\n$ firebreak apply -f examples/docker/policies.yaml");
    let policies = policies.to_str().context("the path is not UTF-8")?;
    print!("{}", demo.site.controller.ask(&["apply", "-f", policies, "--reason", "demo"])?);
    let begun = Instant::now();
    demo.site.start_agents()?;
    demo.site.wait_enforced(&["store/store-web-1", "store/store-api-1", "store/store-db-1", "blog/blog-cms-1"])?;
    println!("\nagent started, every container enforced after {} ms", begun.elapsed().as_millis());
    println!("\n$ firebreak get workloads\n{}", demo.site.controller.ask(&["get", "workloads"])?);
    let enforced = demo.probe_all()?;
    let good = print_table(&before, &enforced);
    println!("\nWhy may cms not reach db?\n$ firebreak explain -n blog --from blog-cms-1 --to store/store-db-1:5432/tcp");
    print!("{}", demo.site.controller.ask(&["explain", "-n", "blog", "--from", "blog-cms-1", "--to", "store/store-db-1:5432/tcp"])?);
    let replaced = replace_web(&mut demo)?;
    let begun = Instant::now();
    drop(demo);
    println!("\ncleaned up in {} ms", begun.elapsed().as_millis());
    Ok(open && good && replaced)
}

fn start(prefix: &str) -> anyhow::Result<Demo> {
    let site = Site::start(prefix, 1, Options::default())?;
    let visitor = Namespace::new(&format!("{prefix}-visitor"))?;
    ip(&["link", "add", "eth0", "netns", visitor.name(), "type", "veth", "peer", "name", "v0", "netns", site.lab.core.name()])?;
    site.lab.core.ip("link set v0 master sw0")?;
    site.lab.core.ip("link set v0 up")?;
    visitor.ip("link set eth0 up")?;
    visitor.ip("addr add 192.168.77.200/24 dev eth0")?;
    let containers = BTreeMap::from([
        ("web", site.service("store", "web", 80, &["--publish", "8080:80"])?),
        ("api", site.service("store", "api", 8081, &[])?),
        ("db", site.service("store", "db", 5432, &["--publish", "15432:5432"])?),
        ("cms", site.service("blog", "cms", 8080, &[])?),
    ]);
    Ok(Demo { containers, visitor, site })
}

impl Demo {
    fn container(&self, name: &str) -> anyhow::Result<&Container> {
        self.containers.get(name).with_context(|| format!("the demo has no container {name}"))
    }

    fn probe(&self, row: &Row) -> anyhow::Result<bool> {
        let to = match row.to {
            To::Service(name) => self.container(name)?.ip(),
            To::Published(_) => NODE,
        };
        match row.from {
            "office" => probe(&self.site.lab.core, to, Kind::Tcp(row.port)),
            "visitor" => probe(&self.visitor, to, Kind::Tcp(row.port)),
            name => self.container(name)?.probe(to, Kind::Tcp(row.port)),
        }
    }

    fn probe_all(&self) -> anyhow::Result<Vec<bool>> {
        ROWS.iter().map(|row| self.probe(row)).collect()
    }
}

fn print_table(before: &[bool], enforced: &[bool]) -> bool {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["probe", "", "without", "expected", "seen", ""]);
    let mut good = true;
    for (row, (before, seen)) in ROWS.iter().zip(before.iter().zip(enforced)) {
        let to = match row.to {
            To::Service(name) => format!("{name} {}/tcp", row.port),
            To::Published(name) => format!("node:{}/tcp ({name})", row.port),
        };
        let right = *seen == row.allowed;
        good &= right;
        let outcome = if right { "ok" } else { "WRONG" };
        table.add_row([&format!("{} -> {to}", row.from), row.why, word(*before), word(row.allowed), word(*seen), outcome]);
    }
    println!("{}", table.lines().collect::<Vec<_>>().join("\n"));
    good
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

/// web's container is replaced, and a container of the other project takes its address: the address brings it no right.
fn replace_web(demo: &mut Demo) -> anyhow::Result<bool> {
    println!("\nstore-web-1 is removed, and the other team's blog-heir-1 is given its address");
    let address = demo.container("web")?.address;
    demo.site.engine()?.remove("store-web-1")?;
    let heir = demo.site.service("blog", "heir", 80, &[])?;
    demo.site.wait_enforced(&["blog/blog-heir-1"])?;
    let api = demo.container("api")?.ip();
    let inherited = heir.probe(api, Kind::Tcp(8081))?;
    println!("heir has {} (web had {address}); heir -> api 8081/tcp: {}", heir.address, word(inherited));
    let web = demo.site.service("store", "web", 80, &["--publish", "8080:80"])?;
    demo.site.wait_enforced(&["store/store-web-1"])?;
    let back = web.probe(api, Kind::Tcp(8081))?;
    println!("a new store-web-1 has {}; web -> api 8081/tcp: {}", web.address, word(back));
    demo.containers.insert("web", web);
    Ok(heir.address == address && !inherited && back)
}
