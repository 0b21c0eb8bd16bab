//! What a new connection pays: `connect()` between two workloads of one node, through the real rules, against conntrack alone.

use crate::dataplane::open;
use crate::report::{Figure, Report};
use crate::scratch;
use crate::stats::{median, median_ratio, ratio_range};
use anyhow::{Context as _, ensure};
use firebreak_agent::dataplane::{Claim, Dataplane, Desired, MacAddress, ManagedInterface};
use firebreak_policy::kernel_sets::{Comment, Element, KernelSets, SetId, Shape};
use firebreak_policy::model::{Direction, Family, InterfaceName, Protocol};
use firebreak_tests::lab::{Lab, Node, Topology, Workload};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PORT: u16 = 8080;
const ROUNDS: usize = 15;
const CONNECTS: usize = 400;
const WARM_UP: usize = 50;
/// Peers that the server lets in besides the client, and servers that the client may reach besides the one.
const PEERS: u32 = 50_000;

/// Adds the figures of both topologies.
///
/// # Errors
/// The lab is broken.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    for (topology, tag) in [(Topology::Routed, "routed"), (Topology::Bridged, "bridged")] {
        let ours = Pair::new(&format!("{tag}1"), topology)?;
        let theirs = Pair::new(&format!("{tag}2"), topology)?;
        let again = Pair::new(&format!("{tag}3"), topology)?;
        let _enforced = enforce(&ours)?;
        for pair in [&theirs, &again] {
            conntrack_alone(pair)?;
        }
        let (mut by_us, mut by_them, mut by_them_again) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let mut turns = [(&ours, &mut by_us), (&theirs, &mut by_them), (&again, &mut by_them_again)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (pair, times) in turns {
                times.push(pair.connect()?);
            }
        }
        let baseline = median(&by_them).as_secs_f64() * 1e6;
        let (low, high) = ratio_range(&by_us, &by_them);
        let name = format!(
            "connect, {tag}, policy of 100000 elements / conntrack alone, {ROUNDS} paired rounds of {CONNECTS}, ratios {low:.2}-{high:.2} \
             (row 5, Part 1's form)"
        );
        report.add(Figure::us(name, median(&by_us)).against(baseline, median_ratio(&by_us, &by_them)).ratio_at_most(1.06));
        let (low, high) = ratio_range(&by_them_again, &by_them);
        let name = format!("connect, {tag}, noise: conntrack alone / conntrack alone in another lab, ratios {low:.2}-{high:.2}");
        report.add(Figure::us(name, median(&by_them_again)).against(baseline, median_ratio(&by_them_again, &by_them)));
    }
    Ok(())
}

/// A node with a client and a server.
struct Pair {
    client: Workload,
    server: Workload,
    stop: Arc<AtomicBool>,
    node: Node,
    _lab: Lab,
}

impl Pair {
    fn new(tag: &str, topology: Topology) -> anyhow::Result<Self> {
        let prefix = scratch::prefix(tag);
        let mut lab = Lab::new(&prefix)?;
        let mut node = lab.node("node", topology)?;
        if topology == Topology::Bridged {
            node.namespace.sysctl("net.bridge.bridge-nf-call-iptables", "1")?;
            node.namespace.sysctl("net.bridge.bridge-nf-call-ip6tables", "1")?;
        }
        let client = node.workload(&format!("{prefix}-client"))?;
        let server = node.workload(&format!("{prefix}-server"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let listener = server.namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
        // So that the thread sees the end.
        setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(0, 200_000))?;
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                drop(listener.accept());
            }
        });
        Ok(Self { client, server, stop, node, _lab: lab })
    }

    /// The median time of `connect()` in one round. Connections end by RST, so that no port is left waiting.
    fn connect(&self) -> anyhow::Result<Duration> {
        let to = SocketAddr::new(self.server.v4.into(), PORT);
        let times = self.client.namespace.run(move || -> anyhow::Result<Vec<Duration>> {
            let mut times = Vec::with_capacity(CONNECTS);
            for number in 0..WARM_UP + CONNECTS {
                let begun = Instant::now();
                let stream = TcpStream::connect(to).context("the server cannot be reached")?;
                let took = begun.elapsed();
                setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
                if number >= WARM_UP {
                    times.push(took);
                }
            }
            Ok(times)
        })??;
        Ok(median(&times))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The least that a stateful firewall does.
fn conntrack_alone(pair: &Pair) -> anyhow::Result<()> {
    let folder = scratch::folder()?;
    let path = folder.path().join("conntrack.nft");
    std::fs::write(
        &path,
        "table inet alone { chain forward { type filter hook forward priority 0; ct state established,related accept; ct state new accept\n }\n}\n",
    )?;
    pair.node.namespace.output(&format!("nft -f {}", path.display())).map(drop)
}

/// Client and server isolated in the directions of the connection, each with many peers; both must let it through.
fn enforce(pair: &Pair) -> anyhow::Result<Dataplane> {
    let (client, server) = (IpAddr::V4(pair.client.v4), IpAddr::V4(pair.server.v4));
    let mut dataplane = open(&pair.node.namespace)?;
    let comment: Comment = "by the benchmark".into();
    let mut sets: BTreeMap<SetId, BTreeMap<Element, Comment>> = BTreeMap::new();
    for (direction, local, remote) in [(Direction::Ingress, server, client), (Direction::Egress, client, server)] {
        let id = |shape| SetId { direction, family: Family::V4, shape };
        let others = (0..PEERS).map(|number| IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + number)));
        let elements = others.chain([remote]).map(|peer| (Element::PeerPort(local, peer, Protocol::TCP, PORT), comment.clone()));
        sets.insert(id(Shape::PeerPort), elements.collect());
        sets.insert(id(Shape::Isolated), [(Element::Local(local), comment.clone())].into());
    }
    let mut interfaces = BTreeMap::new();
    for workload in [&pair.client, &pair.server] {
        let index = index(&pair.node, &workload.interface)?;
        let mac = Some(mac(workload)?);
        let managed = ManagedInterface {
            name: InterfaceName::new(&workload.interface),
            workload: comment.clone(),
            addresses: workload.addresses().into(),
            claim: Claim { mac, addresses: workload.addresses().into(), vouched: false, link: index },
        };
        interfaces.insert(index, managed);
    }
    let committed = dataplane.commit(&Desired { sets: KernelSets { sets }, interfaces, exempt: BTreeMap::new() })?;
    ensure!(committed.elements > 100_000, "{committed:?}");
    refuses(pair)?;
    Ok(dataplane)
}

/// The rules are really asked: another port is denied.
fn refuses(pair: &Pair) -> anyhow::Result<()> {
    let to = SocketAddr::new(pair.server.v4.into(), PORT + 1);
    let answered = pair.client.namespace.run(move || {
        // Nobody listens there: an unfiltered server would refuse at once.
        TcpStream::connect_timeout(&to, Duration::from_millis(100)).map_err(|error| error.kind())
    })?;
    ensure!(matches!(answered, Err(std::io::ErrorKind::TimedOut)), "the rules are not in the way: {answered:?}");
    Ok(())
}

/// The MAC address of a workload's own interface.
fn mac(workload: &Workload) -> anyhow::Result<MacAddress> {
    let listed = workload.namespace.output("ip -o link show eth0")?;
    let text = listed.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("no MAC address")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<u8>, _>>()?;
    Ok(MacAddress(<[u8; 6]>::try_from(bytes).map_err(|bytes| anyhow::anyhow!("{bytes:?} is no MAC address"))?))
}

fn index(node: &Node, interface: &str) -> anyhow::Result<u32> {
    let text = node.namespace.output(&format!("ip -o link show {interface}"))?;
    text.split(':').next().context("ip said nothing")?.trim().parse().with_context(|| format!("no ifindex in {text:?}"))
}
