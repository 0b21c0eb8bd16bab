//! Denied floods: every packet counted, every flow reported, and permitted traffic goes on.

use crate::field::{Field, segment};
use firebreak_tests::flood::{Flood, Interface, Meter, Rate, Stream, each_denied};
use firebreak_tests::follower::Follower;
use firebreak_tests::lab::Topology;
use firebreak_tests::{scaled, wait};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

const NODE: &str = "bridged";
const FROM: &str = "field/open-bridged";
const TO: &str = "field/srv-bridged";

/// A denied flow is closed after so many seconds, so that totals come soon.
const IDLE: &str = "8";

/// 20,000 flows over both families, and nothing that the policies allow.
pub(crate) const PORTS: Range<u16> = 20_000..30_000;

/// What the agent may take in a flood, of processor time and not of time that passes: once for each flow that it tells of, and a share of one core
/// for as long as the flood lasts, whatever its rate. Its reads of the kernel's sets take a fiftieth of the time. A debug build's figures; where the
/// cases are small the machine may be any, so that it has three times as long for a flow.
const AGENT_EACH_FLOW: Duration = Duration::from_micros(60);
const AGENT_CORE_SHARE: f64 = 0.1;

fn most_of_agent(flows: usize, lasted: Duration) -> Duration {
    let slower = u32::try_from(scaled(3, 1)).unwrap();
    (AGENT_EACH_FLOW * u32::try_from(flows).unwrap() + lasted.mul_f64(AGENT_CORE_SHARE)) * slower
}

/// And the most that it may have in memory: what it takes idle, and less than 2 KiB for each of 20,000 flows.
const AGENT_PEAK_KIB: u64 = 80 * 1024;

/// As many as there are processors: what the machine can send.
pub(crate) fn senders() -> u16 {
    std::thread::available_parallelism().map_or(1, |count| u16::try_from(count.get()).unwrap_or(u16::MAX))
}

/// A field whose bridged node is flooded from `FROM` to `TO`, and what is told of it.
struct Arena {
    field: Field,
    follower: Follower,
    heard: Heard,
    counted_before: u64,
}

impl Arena {
    fn start(area: &str) -> Self {
        let mut field = Field::start(area).unwrap();
        // The test takes in every record, at its own pace.
        field.site.controller.terminate().unwrap();
        field.site.controller.set_extra(&["--kept-flows", "300000"]);
        field.site.start_controller_again().unwrap();
        field.site.agent(NODE).unwrap().terminate().unwrap();
        field.site.agent(NODE).unwrap().set_extra(&["--flow-idle", IDLE]);
        field.start_agent(NODE).unwrap();
        // What the workloads' own kernels send now and then is no part of the flood.
        field.site.controller.apply(&segment("quiet", "app: none", "  ingress: []")).unwrap();
        let follower = Follower::start(&field.site.controller, &["--node", NODE]).unwrap();
        let mut arena = Self { field, follower, heard: Heard::default(), counted_before: 0 };
        arena.counted_before = arena.counted();
        arena
    }

    /// The kernel's own sum of denied packets, at both ends.
    fn counted(&self) -> u64 {
        let node = &self.field.site.node(NODE).unwrap().namespace;
        ["denied_in", "denied_out"]
            .map(|name| {
                let listed: Value =
                    serde_json::from_str(&node.output(&format!("nft -j list counter inet firebreak {name}")).unwrap()).unwrap();
                listed["nftables"].as_array().unwrap().iter().find_map(|entry| entry["counter"]["packets"].as_u64()).unwrap()
            })
            .iter()
            .sum()
    }

    fn stream(&self, per_second: Option<u64>, packets: Option<u64>) -> Stream {
        Stream { to: self.field.site.addresses(TO).unwrap().to_vec(), ports: PORTS, per_second, packets }
    }

    fn flood(&self, stream: Stream) -> Flood {
        Flood::start_by(senders(), self.field.site.namespace(FROM).unwrap(), stream).unwrap()
    }

    fn interface(&self) -> Interface {
        Interface::read(self.field.site.namespace(FROM).unwrap(), "eth0").unwrap()
    }

    /// What was told so far.
    fn told(&mut self) -> Told {
        for line in self.follower.take() {
            self.heard.hear(&line.record);
        }
        self.heard.told()
    }

    /// Waits until every packet that the kernel denied is told, and every flow closed.
    fn settle(&mut self) -> (u64, Told) {
        let counted = self.counted() - self.counted_before;
        // On a slow machine a read comes a minute after the one before, and a flow is closed by the read that finds nothing new.
        let settled = wait::until("every packet to be told", Duration::from_secs(240), || {
            let told = self.told();
            anyhow::ensure!(told.sum() >= counted && told.open == 0, "{counted} denied packets, told {told:?}");
            Ok(told)
        });
        let told = settled.unwrap().0;
        // Nothing more comes that would make it too many.
        assert_eq!(self.counted() - self.counted_before, counted, "the flood is over");
        (counted, told)
    }
}

/// What the records said, flow by flow.
#[derive(Default)]
struct Heard {
    /// Packets in the newest total, and whether it is the last.
    flows: HashMap<String, (u64, bool)>,
    keys: HashSet<(String, u64)>,
    opened: usize,
    lost: BTreeMap<String, u64>,
}

impl Heard {
    fn hear(&mut self, record: &Value) {
        if let Some(lost) = record["lost"].as_object() {
            let reason = lost["reason"].as_str().unwrap_or_default().to_owned();
            *self.lost.entry(reason).or_default() += lost["packets"].as_u64().unwrap_or_default();
            return;
        }
        let Some(id) = record["flowId"].as_str() else { return };
        let packets = record["packets"].as_u64().unwrap();
        let flow = self.flows.entry(id.to_owned()).or_default();
        *flow = (packets.max(flow.0), flow.1 || record["phase"] == "closed");
        self.opened += usize::from(record["phase"] == "opened");
        if let (Some(address), Some(port)) = (record["destination"]["address"].as_str(), record["transport"]["port"].as_u64()) {
            self.keys.insert((address.to_owned(), port));
        }
    }

    fn told(&self) -> Told {
        Told {
            keys: self.keys.len(),
            flows: self.flows.len(),
            opened: self.opened,
            open: self.flows.values().filter(|(_, closed)| !closed).count(),
            packets: self.flows.values().map(|(packets, _)| packets).sum(),
            lost: self.lost.clone(),
        }
    }
}

#[derive(Debug, Default)]
struct Told {
    keys: usize,
    flows: usize,
    opened: usize,
    open: usize,
    packets: u64,
    lost: BTreeMap<String, u64>,
}

impl Told {
    fn sum(&self) -> u64 {
        self.packets + self.lost.values().sum::<u64>()
    }
}

/// CPU time and memory of a process.
#[derive(Clone, Copy, Debug)]
struct Cost {
    cpu: Duration,
    resident_peak_kib: u64,
}

fn cost(process: u32) -> Cost {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // utime and stime, in ticks of 10 ms: the 12th and 13th behind the name.
    let after_state: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = after_state[11].parse::<u64>().unwrap() + after_state[12].parse::<u64>().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    Cost { cpu: Duration::from_millis(ticks * 10), resident_peak_kib: peak.trim().trim_end_matches(" kB").parse().unwrap() }
}

#[test]
fn every_packet_of_a_denied_flood_is_counted_and_every_flow_reported() {
    let mut arena = Arena::start("fc");
    let packets = u64::try_from(scaled(200_000, 10_000_000)).unwrap();
    let agent = arena.field.site.agent(NODE).unwrap().process().unwrap().id();
    let controller = arena.field.site.controller.process().unwrap().id();
    let (before, before_there, wire) = (cost(agent), cost(controller), arena.interface());
    let stream = arena.stream(None, Some(packets));
    let flows = stream.flows();
    let (sent, lasted) = arena.flood(stream).join().unwrap();
    let (after, after_there) = (cost(agent), cost(controller));
    let not_taken = arena.interface().not_taken - wire.not_taken;
    let (counted, told) = arena.settle();
    let (end, end_there) = (cost(agent), cost(controller));
    let rate = sent as f64 / lasted.as_secs_f64();
    println!(
        "{sent} packets over {flows} flows in {lasted:?} ({rate:.0}/s), {not_taken} not taken by the node's queue, {counted} denied; told: {} flows, {} opened, \
         {} packets, lost {:?}",
        told.flows, told.opened, told.packets, told.lost
    );
    println!(
        "agent: {:?} CPU during the flood ({:.0} % of a core), {:?} until all was told, peak {} KiB; controller: {:?}, {:?}, peak {} KiB",
        after.cpu - before.cpu,
        (after.cpu - before.cpu).as_secs_f64() / lasted.as_secs_f64() * 100.0,
        end.cpu - before.cpu,
        end.resident_peak_kib,
        after_there.cpu - before_there.cpu,
        end_there.cpu - before_there.cpu,
        end_there.resident_peak_kib
    );
    assert_eq!(sent, packets);
    assert_eq!(counted, sent - not_taken, "the node denied what it took");
    assert_eq!(told.sum(), counted, "flows and losses together are what was denied: {told:?}");
    assert_eq!(told.keys, flows, "every flow is reported");
    assert_eq!(told.lost, BTreeMap::new(), "nothing had to be told as lost");
    let most = most_of_agent(flows, lasted);
    assert!(after.cpu - before.cpu <= most, "the agent took {:?} of processor time, and {most:?} is the most", after.cpu - before.cpu);
    assert!(end.resident_peak_kib <= AGENT_PEAK_KIB, "the agent's memory went up to {} KiB", end.resident_peak_kib);
}

/// As many new flows as a second has to take, each of one packet, for as long as the kernel's sets have room for them.
const NEW_FLOWS: u64 = 10_000;

#[test]
fn ten_thousand_new_denied_flows_a_second_are_each_reported() {
    let mut arena = Arena::start("fn");
    // None of them is one that the policies allow.
    let ports = 10_000..10_000 + u16::try_from(scaled(10_000, 55_000)).unwrap();
    let flows = ports.len() * 2;
    let stream = Stream { ports, packets: Some(flows as u64), ..arena.stream(Some(NEW_FLOWS), None) };
    let agent = arena.field.site.agent(NODE).unwrap().process().unwrap().id();
    let (before, wire) = (cost(agent), arena.interface());
    let (sent, lasted) = Flood::start(arena.field.site.namespace(FROM).unwrap(), stream).unwrap().join().unwrap();
    let not_taken = arena.interface().not_taken - wire.not_taken;
    let after = cost(agent);
    let (counted, told) = arena.settle();
    let end = cost(agent);
    println!(
        "{flows} new flows in {lasted:?} ({:.0}/s), {counted} denied; told: {} flows, {} opened, {} packets, lost {:?}; agent: {:?} CPU meanwhile, \
         {:?} until all was told, peak {} KiB",
        sent as f64 / lasted.as_secs_f64(),
        told.flows,
        told.opened,
        told.packets,
        told.lost,
        after.cpu - before.cpu,
        end.cpu - before.cpu,
        end.resident_peak_kib
    );
    assert_eq!((sent, not_taken), (flows as u64, 0));
    assert_eq!(counted, sent, "the node denied each");
    assert_eq!((told.keys, told.flows, told.opened), (flows, flows, flows), "every flow is reported, and once");
    assert_eq!((told.packets, told.lost), (counted, BTreeMap::new()), "each with its packet");
    let most = most_of_agent(flows, lasted);
    assert!(after.cpu - before.cpu <= most, "the agent took {:?} of processor time, and {most:?} is the most", after.cpu - before.cpu);
}

#[test]
fn an_agent_killed_in_a_flood_tells_every_packet_when_it_is_back() {
    let mut arena = Arena::start("fk");
    let wire = arena.interface();
    let flood = arena.flood(arena.stream(Some(100_000), None));
    for _ in 0..scaled(2, 10) {
        let reached = flood.sent() + 60_000;
        wait::until_true("the flood to go on", Duration::from_secs(60), || flood.sent() >= reached).unwrap();
        arena.field.site.agent(NODE).unwrap().kill().unwrap();
        let reached = flood.sent() + 60_000;
        wait::until_true("the flood to go on without an agent", Duration::from_secs(60), || flood.sent() >= reached).unwrap();
        arena.field.site.start_agent_again(NODE).unwrap();
    }
    arena.field.wait_converged().unwrap();
    let (sent, lasted) = flood.stop().unwrap();
    let not_taken = arena.interface().not_taken - wire.not_taken;
    let (counted, told) = arena.settle();
    println!(
        "{sent} packets in {lasted:?} with the agent killed again and again, {counted} denied; told: {} flows, {} packets, lost {:?}",
        told.flows, told.packets, told.lost
    );
    assert_eq!(counted, sent - not_taken);
    assert_eq!(told.sum(), counted, "{told:?}");
    assert_eq!(told.keys, PORTS.len() * 2, "every flow is reported");
}

/// A node without an agent, whose one nft rule drops the flood; with `tracked` connections are followed too, as on every node that does NAT.
pub(crate) fn plain(field: &mut Field, name: &str, tracked: bool) {
    let node = field.site.lab().node(name, Topology::Bridged).unwrap();
    field.site.add_node(name, node).unwrap();
    for app in ["open", "srv", "tight"] {
        field.site.workload(name, &format!("field/{app}-{name}"), "app: plain", "").unwrap();
    }
    let [[from4, from6], [to4, to6]] = ["open", "srv"].map(|app| field.site.addresses(&format!("field/{app}-{name}")).unwrap());
    let track = if tracked { "add rule inet plain forward ct state established accept\n" } else { "" };
    let text = format!(
        "add table inet plain\nadd chain inet plain forward {{ type filter hook forward priority 0; }}\n{track}\
         add rule inet plain forward ip saddr {from4} ip daddr {to4} udp dport {0}-{1} drop\n\
         add rule inet plain forward ip6 saddr {from6} ip6 daddr {to6} udp dport {0}-{1} drop\n",
        PORTS.start, PORTS.end
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let output = field.site.node(name).unwrap().namespace.command("nft").arg("-f").arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    field.site.node(name).unwrap().namespace.sysctl("net.bridge.bridge-nf-call-iptables", "1").unwrap();
    field.site.node(name).unwrap().namespace.sysctl("net.bridge.bridge-nf-call-ip6tables", "1").unwrap();
}

/// What a permitted pair of a node gets while the node is flooded, and how much flood there was.
fn beside_flood(field: &Field, meter: &Meter<'_>, node: &str, per_second: Option<u64>, lasting: Duration) -> (Rate, f64) {
    let name = |app: &str| format!("field/{app}-{node}");
    let to = field.site.addresses(&name("srv")).unwrap();
    let Some(per_second) = per_second else { return (meter.measure(lasting).unwrap(), 0.0) };
    let stream = Stream { to: to.to_vec(), ports: PORTS, per_second: Some(per_second), packets: None };
    let flood = Flood::start_by(senders(), field.site.namespace(&name("open")).unwrap(), stream).unwrap();
    wait::until_true("the flood to begin", Duration::from_secs(60), || flood.sent() > per_second / 8).unwrap();
    let rate = meter.measure(lasting).unwrap();
    let (sent, lasted) = flood.stop().unwrap();
    (rate, sent as f64 / lasted.as_secs_f64())
}

pub(crate) fn median(list: &[f64]) -> f64 {
    let mut list = list.to_vec();
    list.sort_by(f64::total_cmp);
    list[list.len() / 2]
}

/// The part of its rate that permitted traffic keeps beside a flood, to the part that it keeps where one plain rule drops the flood and there is
/// no agent. What the kernel's way from end to end allows is asked everywhere; what is left over of the processors is asked at full scale, where
/// the machine is the test's own.
const KEPT: f64 = 0.9;

/// What a denied datagram of a known flow costs the node to what one rule makes of it, the system call included: `make bench`, part `denied`, shows
/// 1.7. It is what a flood takes from the processors.
const COSTS: f64 = 2.5;

#[test]
fn permitted_traffic_keeps_nine_tenths_of_what_it_keeps_beside_a_flood_that_one_rule_drops() {
    let mut field = Field::start("fr").unwrap();
    plain(&mut field, "plain", false);
    plain(&mut field, "tracked", true);
    let lasting = Duration::from_millis(u64::try_from(scaled(200, 2_000)).unwrap());
    let nodes = [NODE, "plain", "tracked"];
    let meters: BTreeMap<&str, Meter<'_>> = nodes
        .map(|node| {
            let [client, server] = ["tight", "srv"].map(|app| field.site.namespace(&format!("field/{app}-{node}")).unwrap());
            let to = field.site.addresses(&format!("field/srv-{node}")).unwrap()[0];
            (node, Meter::start(client, server, SocketAddr::new(to, 9002)).unwrap())
        })
        .into();
    // What the product can take, so that the flood is the same for all: first once over all flows, then what it takes of flows that it knows.
    let from = field.site.namespace(FROM).unwrap();
    let to = field.site.addresses(TO).unwrap().to_vec();
    let stream = Stream { to, ports: PORTS, per_second: None, packets: Some(u64::try_from(scaled(100_000, 2_000_000)).unwrap()) };
    Flood::start_by(senders(), from, stream.clone()).unwrap().join().unwrap();
    let (sent, lasted) = Flood::start_by(senders(), from, stream).unwrap().join().unwrap();
    let most = sent as f64 / lasted.as_secs_f64();
    let wanted = std::env::var("FIREBREAK_FLOOD").ok().and_then(|it| it.parse().ok()).unwrap_or(500_000.0_f64);
    let per_second = (most / 2.0).min(wanted) as u64;
    println!("{} senders flood {most:.0}/s at most; the rounds use {per_second}/s", senders());
    let mut of: BTreeMap<&str, Vec<[Rate; 2]>> = BTreeMap::new();
    let (rounds, bound) = (scaled(9, 21), scaled(36, 63));
    let own_machine = scaled(0, 1) == 1;
    // Few ports: each flow is there before the median is.
    let ports = PORTS.start..PORTS.start + 64;
    let costs = |node: &str| {
        let [from, to] = ["open", "srv"].map(|app| format!("field/{app}-{node}"));
        let to = field.site.addresses(&to).unwrap()[0];
        each_denied(field.site.namespace(&from).unwrap(), to, ports.clone(), 2_000).unwrap().as_secs_f64()
    };
    let mut cost = Vec::new();
    let (mut kept, mut left_over) = (Vec::new(), Vec::new());
    for round in 0..bound {
        let mut order = nodes;
        if round % 2 == 1 {
            order.reverse();
        }
        for node in order {
            let (quiet, _) = beside_flood(&field, &meters[node], node, None, lasting);
            let (rate, flooded) = beside_flood(&field, &meters[node], node, Some(per_second), lasting);
            println!(
                "round {round}: {node}: {:.0} exchanges/s ({:.0} undisturbed, connect {:?}) beside {flooded:.0} denied packets/s; {:.0} ({:.0}, {:?}) without",
                rate.exchanges, rate.undisturbed, rate.connect, quiet.exchanges, quiet.undisturbed, quiet.connect
            );
            of.entry(node).or_default().push([rate, quiet]);
        }
        let part = |node: &str, rate: fn(&Rate) -> f64| {
            let [beside, quiet] = &of[node][round];
            rate(beside) / rate(quiet)
        };
        cost.push(costs(NODE) / costs("plain"));
        kept.push(part(NODE, |rate| rate.undisturbed) / part("plain", |rate| rate.undisturbed));
        left_over.push(part(NODE, |rate| rate.exchanges) / part("plain", |rate| rate.exchanges));
        // A busy machine needs more rounds for the medians to say so.
        if round + 1 >= rounds && median(&kept) >= KEPT && (!own_machine || median(&left_over) >= KEPT) {
            break;
        }
    }
    for node in nodes {
        let all = |which: usize, rate: fn(&Rate) -> f64| median(&of[node].iter().map(|rates| rate(&rates[which])).collect::<Vec<_>>());
        println!(
            "{node}: median {:.0} exchanges/s ({:.0} undisturbed) beside the flood, {:.0} ({:.0}) without",
            all(0, |it| it.exchanges),
            all(0, |it| it.undisturbed),
            all(1, |it| it.exchanges),
            all(1, |it| it.undisturbed)
        );
    }
    for (what, list) in [("undisturbed", &kept), ("left over", &left_over)] {
        println!(
            "part of the rate that is kept, the product / one rule, {what}: median {:.3} of {} rounds {list:.2?}",
            median(list),
            list.len()
        );
    }
    println!("a denied datagram, the product / one rule: median {:.3} {cost:.2?}", median(&cost));
    let cost = median(&cost);
    assert!(cost <= COSTS, "a denied datagram costs {cost:.3} of what it costs with one plain rule");
    let median = (median(&kept), median(&left_over));
    assert!(median.0 >= KEPT, "beside the flood a permitted connection keeps {:.3} of what it keeps beside one plain rule", median.0);
    assert!(
        !own_machine || median.1 >= KEPT,
        "beside the flood permitted traffic has {:.3} of what it has beside one plain rule",
        median.1
    );
}
