//! From the tables of any other version to ours, in one transaction, while packets come.

use crate::contents::{everything, generation};
use crate::install::{config, open};
use crate::lab::{End, Lab, Topology, sets};
use crate::namespace::Namespace;
use firebreak_agent::dataplane::{Check, Dataplane, DataplaneConfig, OpenError, SkeletonState, uninstall};
use firebreak_policy::kernel_sets::{Element, SetId, Shape};
use firebreak_policy::model::{Direction, Family, Protocol};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PART1: &str = include_str!("../data/skeleton-part1.nft");
const OPEN_PORT: u16 = 2001;
const CLOSED_PORT: u16 = 2002;

/// Part 1's rules over a set of another form, with things that we do not have.
fn other_form() -> String {
    let before = "set in4_peer_port {\n\t\ttype ipv4_addr . ipv4_addr . inet_proto . inet_service\n";
    assert!(PART1.contains(before));
    let changed = PART1.replace(before, &format!("{before}\t\tflags interval\n"));
    let more = "table inet firebreak {\n\
                quota old_quota { 10 mbytes\n }\n limit old_limit { rate 5/second\n }\n\
                set old_set {\n type ipv4_addr\n elements = { 192.0.2.9 }\n }\n\
                map old_map {\n type ipv4_addr : verdict\n elements = { 192.0.2.8 : goto old_chain }\n }\n\
                chain old_chain {\n ip saddr @old_set drop\n }\n\
                chain old_hook {\n type filter hook forward priority -9; policy accept;\n ip saddr vmap @old_map\n }\n}\n";
    changed + more
}

/// An empty table that outlives its maker, as an agent makes it (`nft` 1.0.6 cannot).
fn persistent_table(node: &Namespace, family: u8) {
    node.run(move || {
        let message = |kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attributes: &[u8]| {
            let mut bytes = u32::try_from(20 + attributes.len()).unwrap().to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend((flags | 1).to_ne_bytes());
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend([family, 0]);
            bytes.extend(resource.to_be_bytes());
            bytes.extend(attributes);
            bytes
        };
        let mut attributes = vec![14, 0, 1, 0];
        attributes.extend(b"firebreak\0\0\0");
        attributes.extend([8, 0, 2, 0, 0, 0, 0, 4]);
        let batch =
            [message(16, 0, 1, 0, 10, &[]), message(10 << 8, 0x400 | 4, 2, family, 0, &attributes), message(17, 0, 3, 0, 10, &[])].concat();
        let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).unwrap();
        socket.bind_auto().unwrap();
        socket.send(&batch, 0).unwrap();
        let (answer, _) = socket.recv_from_full().unwrap();
        assert_eq!(&answer[16..20], &[0; 4], "the kernel made the table");
    });
}

/// Fills tables that outlive their maker: without `table` in front, at which the kernel would refuse to take the flag away.
fn load(node: &Namespace, ruleset: &str) {
    let scratch = Namespace::new();
    let loaded = scratch.nft_load(ruleset);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let listed: serde_json::Value = serde_json::from_str(&scratch.command("nft", "-j list ruleset")).unwrap();
    let objects = listed["nftables"].as_array().unwrap();
    let mut commands = Vec::new();
    for kind in ["chain", "counter", "quota", "limit", "set", "map", "rule"] {
        commands.extend(objects.iter().filter(|object| object.get(kind).is_some()).map(|object| serde_json::json!({ "add": object })));
    }
    for family in [1, 7, 3] {
        persistent_table(node, family);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), serde_json::json!({ "nftables": commands }).to_string()).unwrap();
    node.command("nft", &format!("-j -f {}", file.path().display()));
}

/// One policy: A may send to B's open port and nothing else.
fn policy(lab: &Lab) -> firebreak_agent::dataplane::Desired {
    let id = |shape| SetId { direction: Direction::Ingress, family: Family::V4, shape };
    let (a, b) = (lab.address(End::A, Family::V4), lab.address(End::B, Family::V4));
    lab.desired(sets([(id(Shape::Isolated), Element::Local(b)), (id(Shape::PeerPort), Element::PeerPort(b, a, Protocol::UDP, OPEN_PORT))]))
}

/// The same as the old agent wrote it.
fn old_elements(lab: &Lab) -> String {
    let (a, b) = (lab.address(End::A, Family::V4), lab.address(End::B, Family::V4));
    let mut text = format!(
        "add element inet firebreak in4_isolated {{ {b} }}\nadd element inet firebreak workload4 {{ {a}, {b} }}\n\
         add element inet firebreak in4_peer_port {{ {b} . {a} . udp . {OPEN_PORT} }}\n"
    );
    for family in ["inet", "bridge", "arp"] {
        text += &format!("add element {family} firebreak known_if {{ {}, {} }}\n", lab.index("wl0"), lab.index("wl1"));
    }
    text
}

/// Traffic from A to B, each packet from a port of its own.
struct Traffic {
    stop: Arc<AtomicBool>,
    sender: std::thread::JoinHandle<(u64, u64)>,
    open: std::thread::JoinHandle<u64>,
    closed: std::thread::JoinHandle<u64>,
}

/// Counts what arrives until nothing has for a while.
fn count(socket: UdpSocket) -> std::thread::JoinHandle<u64> {
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    std::thread::spawn(move || {
        let mut count = 0;
        while socket.recv(&mut [0; 16]).is_ok() {
            count += 1;
        }
        count
    })
}

impl Traffic {
    fn start(lab: &Lab) -> Self {
        let to = lab.address(End::B, Family::V4);
        let listen = |port| lab.b.run(move || UdpSocket::bind(SocketAddr::new(to, port)).unwrap());
        let (open, closed) = (listen(OPEN_PORT), listen(CLOSED_PORT));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // Sockets belong to the namespace of the thread that makes them.
        let path = lab.a.path().to_owned();
        let sender = std::thread::spawn(move || {
            nix::sched::setns(std::fs::File::open(path).unwrap(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let (mut permitted, mut forbidden) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(b"open", SocketAddr::new(to, OPEN_PORT)).unwrap();
                socket.send_to(b"closed", SocketAddr::new(to, CLOSED_PORT)).unwrap();
                (permitted, forbidden) = (permitted + 1, forbidden + 1);
                std::thread::sleep(Duration::from_micros(100));
            }
            (permitted, forbidden)
        });
        Self { stop, sender, open: count(open), closed: count(closed) }
    }

    /// How many were sent to each port, and arrived.
    fn stop(self) -> [(u64, u64); 2] {
        self.stop.store(true, Ordering::Relaxed);
        let (permitted, forbidden) = self.sender.join().unwrap();
        [(permitted, self.open.join().unwrap()), (forbidden, self.closed.join().unwrap())]
    }
}

/// Loads old rules, sends all the time, upgrades; tells how long the transaction took and what was counted.
fn upgrade_under_traffic(topology: Topology, ruleset: &str, expected: SkeletonState) {
    let lab = Lab::new(topology);
    load(&lab.node, ruleset);
    let written = lab.node.nft_load(&old_elements(&lab));
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let traffic = Traffic::start(&lab);
    std::thread::sleep(Duration::from_millis(100));
    let (mut dataplane, opened) = open(&lab.node);
    assert_eq!((opened.skeleton, opened.owned), (expected, true), "{topology:?}");
    let desired = policy(&lab);
    let begun = Instant::now();
    dataplane = lab.node.run({
        let desired = desired.clone();
        move || {
            dataplane.commit(&desired).unwrap();
            dataplane
        }
    });
    let took = begun.elapsed();
    std::thread::sleep(Duration::from_millis(100));
    let [(permitted, arrived), (forbidden, leaked)] = traffic.stop();
    println!("{topology:?} {expected:?}: {took:?}; {arrived} of {permitted} permitted, {leaked} of {forbidden} forbidden packets arrived");
    assert!(permitted > 100, "the traffic is real");
    assert_eq!((arrived, leaked), (permitted, 0), "{topology:?}");
    let ruleset = lab.node.ruleset();
    for old in ["old_", "skeleton_812d6a41_0a6e81ad"] {
        assert!(!ruleset.contains(old), "{old} is left:\n{ruleset}");
    }
    // Our form, owned, and written once.
    let before = generation(&lab.node);
    assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0);
    assert_eq!(generation(&lab.node), before);
    assert!(!lab.node.nft_load("delete table inet firebreak").status.success(), "owned");
    drop(dataplane);
    let (_next, opened) = open(&lab.node);
    assert_eq!(opened.skeleton, SkeletonState::Adopted);
}

#[test]
fn the_rules_of_part_1_are_replaced_without_a_wrong_decision() {
    for topology in [Topology::Routed, Topology::Bridged] {
        // The bridge table has got sets since then, so that the elements come with the rules.
        upgrade_under_traffic(topology, PART1, SkeletonState::Outdated);
    }
}

/// What Part 2 made first of the same: interfaces in a set that grows, and guards that only look up.
fn before_literals(ruleset: &str) -> String {
    let mut kept = Vec::new();
    let mut left_out = 0;
    for line in ruleset.lines() {
        if line.trim() == "size 8192" || line.contains("pkttype != broadcast") {
            left_out += 1;
        } else if let Some((before, _)) = line.split_once("counter skeleton_") {
            kept.push(format!("{before}counter skeleton_00000000_00000000 {{"));
        } else if !line.starts_with("\tflags") {
            kept.push(line.split(" # progname").next().unwrap().to_owned());
        }
    }
    assert_eq!(left_out, 3 + 2 * 3, "a size in three tables, and a rule for IPv4 and two for IPv6 of each interface");
    kept.join("\n")
}

#[test]
fn guards_that_only_look_up_get_their_literals_in_one_transaction_without_a_wrong_decision() {
    for topology in [Topology::Routed, Topology::Bridged] {
        let lab = Lab::new(topology);
        let desired = policy(&lab);
        let (mut ours, _) = open(&lab.node);
        ours.commit(&desired).unwrap();
        drop(ours);
        let old = before_literals(&lab.node.ruleset());
        lab.node.run(|| uninstall().unwrap());
        let loaded = lab.node.nft_load(&old);
        assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
        let traffic = Traffic::start(&lab);
        std::thread::sleep(Duration::from_millis(100));
        let (mut dataplane, opened) = open(&lab.node);
        assert_eq!(opened.skeleton, SkeletonState::Outdated, "{topology:?}");
        assert_eq!(lab.node.stable_ruleset().matches("pkttype != broadcast").count(), 0, "{topology:?}: in force as they were");
        dataplane = lab.node.run({
            let desired = desired.clone();
            move || {
                assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0, "all of it was in the one transaction");
                dataplane
            }
        });
        std::thread::sleep(Duration::from_millis(100));
        let [(permitted, arrived), (_, leaked)] = traffic.stop();
        assert!(permitted > 100, "the traffic is real");
        assert_eq!((arrived, leaked), (permitted, 0), "{topology:?}");
        let ruleset = lab.node.stable_ruleset();
        assert_eq!((ruleset.matches("pkttype != broadcast").count(), ruleset.matches("size 8192").count()), (6, 3), "{topology:?}");
        assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0], "{topology:?}");
        drop(dataplane);
        assert_eq!(open(&lab.node).1.skeleton, SkeletonState::Adopted);
    }
}

#[test]
fn tables_with_sets_of_another_form_are_replaced_with_their_elements_without_a_wrong_decision() {
    for topology in [Topology::Routed, Topology::Bridged] {
        upgrade_under_traffic(topology, &other_form(), SkeletonState::Outdated);
    }
}

#[test]
fn without_a_known_state_the_tables_of_another_form_stay_in_force() {
    let lab = Lab::new(Topology::Routed);
    load(&lab.node, &other_form());
    lab.node.nft_load(&old_elements(&lab));
    let before = lab.node.stable_ruleset();
    for _ in 0..2 {
        let (dataplane, opened) = open(&lab.node);
        assert_eq!((opened.skeleton, opened.owned), (SkeletonState::Outdated, true));
        assert_eq!(dataplane.known_interfaces(), [lab.index("wl0"), lab.index("wl1")].into());
        assert_eq!(lab.node.stable_ruleset(), before, "left as it was, and protected");
        assert!(!lab.node.nft_load("flush chain inet firebreak forward").status.success());
    }
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_tables_whole_and_owned_and_can_be_repeated() {
    let node = Namespace::new();
    load(&node, &other_form());
    let before = node.stable_ruleset();
    let broken = DataplaneConfig { nft: "/bin/false".into(), ..config() };
    let mut dataplane = node.run(move || Dataplane::open(&broken).unwrap().0);
    let refused = node.run(move || {
        let refused = dataplane.commit(&everything(3, "new")).unwrap_err().to_string();
        (refused, dataplane)
    });
    assert!(refused.0.contains("stay in force") && refused.0.contains("/bin/false"), "{}", refused.0);
    assert_eq!(node.stable_ruleset(), before);
    assert!(!node.nft_load("delete table inet firebreak").status.success(), "owned again");
    drop(refused);

    // An agent that is killed between the transaction and taking ownership leaves a whole table without an owner.
    let (dataplane, _) = open(&node);
    let dataplane = node.run(move || {
        let mut dataplane = dataplane;
        dataplane.commit(&everything(3, "new")).unwrap();
        dataplane
    });
    drop(dataplane);
    let (mut next, opened) = open(&node);
    assert_eq!((opened.skeleton, opened.owned), (SkeletonState::Adopted, true));
    assert_eq!(next.commit(&everything(3, "new")).unwrap().bytes, 0);
}

#[test]
fn an_upgrade_writes_every_kind_of_element_as_a_commit_does() {
    let node = Namespace::new();
    load(&node, &other_form());
    let (dataplane, opened) = open(&node);
    assert_eq!(opened.skeleton, SkeletonState::Outdated);
    let desired = everything(6, "new");
    let upgraded = node.run(move || {
        let mut dataplane = dataplane;
        let report = dataplane.commit(&desired).unwrap();
        assert_eq!(report.bytes, 0, "all of it was in the one transaction");
        dataplane
    });
    let fresh = Namespace::new();
    let (mut other, _) = open(&fresh);
    other.commit(&everything(6, "new")).unwrap();
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).filter(|line| !line.contains("tcp timeout")).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(sorted(node.stable_ruleset()), sorted(fresh.stable_ruleset()));
    drop(upgraded);
}

#[test]
fn a_table_of_our_name_that_no_agent_made_is_refused_and_left() {
    let node = Namespace::new();
    node.nft_load("table inet firebreak {\n chain forward { type filter hook forward priority 0; }\n }");
    let before = node.stable_ruleset();
    let refused = node.run(|| Dataplane::open(&config()).map(|_| ())).unwrap_err();
    assert!(matches!(refused, OpenError::NotOurs { .. }) && refused.to_string().contains("firebreak-agent uninstall"), "{refused}");
    assert!(node.stable_ruleset().starts_with(&before), "left as it was");
}

#[test]
fn a_first_install_that_was_cut_short_is_finished() {
    let node = Namespace::new();
    persistent_table(&node, 1);
    let (_dataplane, opened) = open(&node);
    assert_eq!((opened.skeleton, opened.owned), (SkeletonState::Installed, true));
}
