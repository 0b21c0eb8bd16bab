//! The collection of denied flows against the real kernel: a network namespace of its own, a real table, real packets, and a
//! FlowService in the process. Needs root. `cargo test -p firebreak-agent --test flows -- --nocapture` prints the figures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

mod bench;
mod service;
mod table;
mod traffic;

use bench::{Node, in_namespace};
use firebreak_agent::dataplane::{Dataplane, DataplaneConfig, Desired, InterfacePattern};
use firebreak_agent::flows::{Limits, NflogSocket};
use firebreak_policy::kernel_sets::{Element, SetId, Shape};
use firebreak_policy::model::{Direction, Family};
use firebreak_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use traffic::Kind;

/// Every kind over both families, judged at both ends.
fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for direction in [v1::Direction::Ingress, v1::Direction::Egress] {
        for is_v6 in [false, true] {
            kinds.extend([
                Kind::udp(direction, is_v6),
                Kind::tcp(direction, is_v6),
                Kind::ping(direction, is_v6),
                Kind::gre(direction, is_v6),
            ]);
        }
    }
    kinds
}

#[test]
fn each_flow_is_opened_once_within_a_second_and_closed_with_exact_totals() {
    in_namespace(async |namespace| {
        let node = Node::start(Limits::default());
        // The collection waits for its table.
        tokio::time::sleep(Duration::from_millis(300)).await;
        namespace.load(&table::text(65_536, "5m", 10_000));
        node.wait_until("the table is read", |stats, _| stats.reads > 0).await;
        let mut late = Vec::new();
        let mut sent = Vec::new();
        for (index, kind) in kinds().into_iter().enumerate() {
            let began = Instant::now();
            let mut bytes = kind.send();
            node.wait_until(&format!("{kind:?} is opened"), |_, seen| seen.flow(&kind).is_some_and(|flow| !flow.is_empty())).await;
            late.push(began.elapsed());
            // More packets of the flow: another record for none of them.
            let packets = 1 + u64::try_from(index).unwrap() * 3;
            for _ in 1..packets {
                bytes += kind.send();
            }
            sent.push((kind, packets, bytes));
        }
        node.wait_until("all are closed", |_, seen| seen.phases(v1::FlowPhase::Closed) == sent.len()).await;
        late.sort();
        println!("opened at the service after: median {:?}, worst {:?}", late[late.len() / 2], late[late.len() - 1]);
        assert!(late[late.len() - 1] < Duration::from_secs(1));
        let seen = node.stop().await;
        for (kind, packets, bytes) in sent {
            let records = seen.flow(&kind).unwrap();
            let opened: Vec<_> = records.iter().filter(|event| event.phase() == v1::FlowPhase::Opened).collect();
            let closed: Vec<_> = records.iter().filter(|event| event.phase() == v1::FlowPhase::Closed).collect();
            assert_eq!((opened.len(), closed.len()), (1, 1), "{kind:?}");
            assert_eq!((closed[0].packets, closed[0].bytes), (packets, bytes), "{kind:?}");
            assert_eq!(opened[0].packets, 1, "{kind:?}");
            assert_eq!(opened[0].source_port.is_some(), kind.has_ports(), "{kind:?}");
            assert!(records.iter().all(|event| event.flow_id == opened[0].flow_id), "{kind:?}: one id");
            assert_eq!((opened[0].container.as_str(), opened[0].interface.as_str()), ("web", "veth-web"), "{kind:?}");
        }
        assert_eq!(seen.lost(), BTreeMap::new());
    });
}

#[test]
fn the_products_own_table_tells_its_denied_flows() {
    in_namespace(async |_| {
        let config =
            DataplaneConfig { interface_patterns: vec![InterfacePattern::new("workload*").unwrap()], ..DataplaneConfig::default() };
        let (mut dataplane, _) = Dataplane::open(&config).unwrap();
        dataplane.commit(&judged(&[table::IN4, table::IN6])).unwrap();
        let node = Node::start(Limits::default());
        node.wait_until("the table is read", |stats, _| stats.reads > 0).await;
        let kinds: Vec<Kind> = kinds().into_iter().filter(|kind| kind.direction == v1::Direction::Ingress).collect();
        let mut sent = Vec::new();
        for kind in &kinds {
            let began = Instant::now();
            sent.push(kind.send() + kind.send() + kind.send());
            node.wait_until(&format!("{kind:?} is opened"), |_, seen| seen.flow(kind).is_some()).await;
            assert!(began.elapsed() < Duration::from_secs(1), "{kind:?}");
        }
        for (kind, bytes) in kinds.iter().zip(sent) {
            let last = |seen: &service::Seen| {
                seen.flow(kind).and_then(|records| records.last().map(|event| (event.phase(), event.packets, event.bytes)))
            };
            let closed = Some((v1::FlowPhase::Closed, 3, bytes));
            node.wait_until(&format!("{kind:?} is closed with its totals"), |_, seen| last(seen) == closed).await;
        }
        let seen = node.stop().await;
        assert_eq!((seen.phases(v1::FlowPhase::Opened), seen.phases(v1::FlowPhase::Closed)), (kinds.len(), kinds.len()));
        assert_eq!(seen.lost(), BTreeMap::new());
    });
}

/// Local addresses that nobody may reach, the own node included.
fn judged(addresses: &[&str]) -> Desired {
    let mut desired = Desired::default();
    for address in addresses {
        let address: IpAddr = address.parse().unwrap();
        for shape in [Shape::Isolated, Shape::HostJudged] {
            let set = SetId { direction: Direction::Ingress, family: Family::of(address), shape };
            desired.sets.sets.entry(set).or_default().insert(Element::Local(address), "test".into());
        }
    }
    desired
}

#[test]
fn ten_thousand_new_flows_at_once_are_each_opened_once() {
    in_namespace(async |namespace| {
        namespace.load(&table::text(65_536, "5m", 10_000));
        let node = Node::start(Limits::default());
        node.wait_until("the table is read", |stats, _| stats.reads > 0).await;
        let began = Instant::now();
        tokio::task::spawn_blocking(|| traffic::send_udp_to_ports(1..=10_000)).await.unwrap();
        let sent = began.elapsed();
        node.wait_until("all are opened", |_, seen| seen.phases(v1::FlowPhase::Opened) == 10_000).await;
        let opened = began.elapsed();
        let stats = node.stats();
        println!(
            "10,000 new flows: sent within {sent:?}, all at the service after {opened:?}: {:.0} flows/s; NFLOG told {}, missed {}, overruns {}; {} opened by a read; {} found no memory in the kernel",
            10_000.0 / opened.as_secs_f64(),
            stats.nflog_packets,
            stats.nflog_missed,
            stats.nflog_overruns,
            stats.flows_opened_by_read,
            firebreak_agent::flows::Reader::open().unwrap().table().unwrap().unwrap().ingress.overflow,
        );
        node.wait_until("all are closed", |_, seen| seen.phases(v1::FlowPhase::Closed) == 10_000).await;
        let seen = node.stop().await;
        assert_eq!(seen.phases(v1::FlowPhase::Opened), 10_000);
        let ports: BTreeSet<u32> = seen.events().map(|event| event.transport.unwrap().port()).collect();
        assert_eq!(ports, (1..=10_000).collect());
        assert_eq!(seen.closed_packets(), 10_000);
        assert_eq!(seen.lost(), BTreeMap::new());
        assert!(seen.sequences_are_whole());
    });
}

#[test]
fn without_nflog_flows_are_opened_by_the_next_read() {
    in_namespace(async |namespace| {
        namespace.load(&table::text(65_536, "5m", 10_000));
        let other = NflogSocket::open(5).expect("the group is free in a new namespace");
        let node = Node::start(Limits::default());
        node.wait_until("the table is read", |stats, _| stats.reads > 0).await;
        let kind = Kind::udp(v1::Direction::Ingress, false);
        let began = Instant::now();
        kind.send();
        node.wait_until("it is opened", |_, seen| seen.flow(&kind).is_some()).await;
        println!("opened without NFLOG after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(1));
        // The other reader goes; the group is bound within its retry.
        drop(other);
        let later = Kind::tcp(v1::Direction::Egress, true);
        let bound = async {
            loop {
                match NflogSocket::open(5) {
                    Ok(probe) => drop(probe),
                    Err(_) => return,
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), bound).await.expect("the group is bound again");
        later.send();
        node.wait_until("it is told by NFLOG", |stats, seen| stats.nflog_packets == 1 && seen.flow(&later).is_some()).await;
        let seen = node.stop().await;
        assert_eq!(seen.flow(&kind).unwrap()[0].source_port, None);
        assert!(seen.flow(&later).unwrap()[0].source_port.is_some());
    });
}

#[test]
fn every_packet_is_told_though_entries_end_and_sets_are_full() {
    in_namespace(async |namespace| {
        // Room for 20 flows, and entries end after 2 s: what happens after 5 minutes, sooner.
        namespace.load(&table::text(20, "2s", 50));
        let node = Node::start(Limits::default());
        node.wait_until("the table is read", |stats, _| stats.reads > 0).await;
        let began = Instant::now();
        let mut sent = 0;
        while began.elapsed() < Duration::from_secs(7) {
            traffic::send_udp_to_ports(1..=40);
            sent += 40;
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        // Losses are told every 10 s at most.
        node.wait_until("each packet is told", |_, seen| seen.closed_packets() + seen.lost().values().sum::<u64>() >= sent).await;
        let seen = node.stop().await;
        println!("{sent} packets: {} in flows' totals, lost {:?}", seen.closed_packets(), seen.lost());
        assert_eq!(seen.closed_packets() + seen.lost().values().sum::<u64>(), sent);
        assert!(seen.lost().contains_key("flow set full or no memory for an entry"));
    });
}

#[test]
fn a_table_that_is_made_anew_and_a_restarted_agent_go_on_with_exact_totals() {
    in_namespace(async |namespace| {
        namespace.load(&table::text(65_536, "5m", 10_000));
        let node = Node::start(Limits::default());
        node.wait_until("the table is read", |stats, _| stats.reads > 0).await;
        let kind = Kind::udp(v1::Direction::Ingress, false);
        let mut bytes = kind.send() + kind.send();
        let reads = node.stats().reads;
        node.wait_until("both are read", |stats, _| stats.reads >= reads + 2).await;
        namespace.load("delete table inet firebreak");
        namespace.load(&table::text(65_536, "5m", 10_000));
        bytes += kind.send();
        let reads = node.stats().reads;
        node.wait_until("the new table is read", |stats, _| stats.reads >= reads + 2).await;
        // Counted while no agent runs.
        let (state, first) = node.stop_and_keep().await;
        bytes += kind.send() + kind.send();
        let node = Node::start_with(Limits::default(), state);
        node.wait_until("it is closed", |_, seen| seen.phases(v1::FlowPhase::Closed) == 1).await;
        let second = node.stop().await;
        let records: Vec<_> = first.flow(&kind).unwrap().into_iter().chain(second.flow(&kind).unwrap()).collect();
        assert!(records.iter().all(|event| event.flow_id == records[0].flow_id), "{records:#?}");
        assert_eq!(records.iter().filter(|event| event.phase() == v1::FlowPhase::Opened).count(), 1);
        let last = records.last().unwrap();
        assert_eq!((last.phase(), last.packets, last.bytes), (v1::FlowPhase::Closed, 5, bytes));
        assert!(first.sequence_range().1 < second.sequence_range().0, "numbers go on");
        assert_eq!((first.lost(), second.lost()), (BTreeMap::new(), BTreeMap::new()));
    });
}

#[test]
fn a_killed_agent_leaves_a_cursor_and_the_next_tells_every_packet_once() {
    in_namespace(async |namespace| {
        namespace.load(&table::text(65_536, "5m", 10_000));
        let kind = Kind::udp(v1::Direction::Egress, true);
        let mut state = None;
        let mut sent = 0;
        let mut records = Vec::new();
        for round in 0..5 {
            let node = match state.take() {
                Some(state) => Node::start_with(Limits::default(), state),
                None => Node::start(Limits::default()),
            };
            node.wait_until("the table is read", |stats, _| stats.reads > 0).await;
            kind.send();
            sent += 1;
            if round == 0 {
                node.wait_until("the flow is on disk", |_, seen| seen.phases(v1::FlowPhase::Opened) == 1 && node.kept_len() > 100).await;
            }
            if round == 4 {
                node.wait_until("it is closed", |_, seen| seen.phases(v1::FlowPhase::Closed) == 1).await;
            }
            let (kept, seen) = if round == 4 { node.stop_and_keep().await } else { node.kill().await };
            records.extend(seen.flow(&kind).unwrap_or_default());
            assert_eq!(seen.lost(), BTreeMap::new());
            state = Some(kept);
        }
        assert!(records.iter().all(|event| event.flow_id == records[0].flow_id), "{records:#?}");
        assert_eq!(records.iter().filter(|event| event.phase() == v1::FlowPhase::Opened).count(), 1);
        assert_eq!(records.last().map(|event| (event.phase(), event.packets)), Some((v1::FlowPhase::Closed, sent)));
    });
}

#[test]
fn a_full_set_of_flows_is_read_whole() {
    in_namespace(async |namespace| {
        namespace.load(&table::text(65_536, "5m", 10_000));
        tokio::task::spawn_blocking(|| traffic::send_udp_to_ports(1..=65_535)).await.unwrap();
        let mut reader = firebreak_agent::flows::Reader::open().unwrap();
        let set = firebreak_agent::dataplane::names::DeniedSet::all()[0];
        let began = Instant::now();
        let (mut packets, mut flows) = (0, BTreeSet::new());
        let count = reader
            .elements(set, |elements| {
                packets += elements.iter().map(|element| element.packets).sum::<u64>();
                flows.extend(elements.iter().map(|element| element.key.transport));
            })
            .unwrap();
        let counters = reader.table().unwrap().unwrap().ingress;
        println!("{count} elements of {} read in {:?}; {} packets found no memory", set.name(), began.elapsed(), counters.overflow);
        assert_eq!(counters.denied, 65_535);
        let told = u64::try_from(count).unwrap();
        assert_eq!((flows.len(), packets, told + counters.overflow), (count, told, 65_535));
    });
}
