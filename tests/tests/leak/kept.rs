//! What permitted traffic keeps of its rate beside the hardest flood that the machine can send.

use crate::field::Field;
use crate::flood::{PORTS, median, plain, senders};
use firebreak_tests::flood::{Flood, Link, Stream};
use firebreak_tests::frames::wire::read_interface;
use firebreak_tests::permitted::{Permitted, Traffic};
use firebreak_tests::{scaled, wait};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

const PRODUCT: &str = "bridged";
const PLAIN: &str = "plain";
const TRACKED: &str = "tracked";

/// The rate that permitted traffic has beside a flood that the product drops, to what it has where one plain rule drops it and there is no agent. A
/// machine that others use gives and takes more than that from one moment to the next: there it is asked for less.
fn kept_at_least() -> f64 {
    [0.5, 0.9][scaled(0, 1)]
}

/// Rounds of the paces that are told and not asserted.
const FEW: usize = 5;

/// How fast is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pace {
    /// As fast as a sender on each processor can, to whoever drops it.
    Fastest,
    /// So many packets a second, the same for all.
    Same(u64),
}

/// The product's node and two without an agent, whose one rule drops the flood; on one of these connections are followed too.
struct Arena {
    field: Field,
    links: BTreeMap<&'static str, Link>,
}

impl Arena {
    fn start() -> Self {
        let mut field = Field::start("fl").unwrap();
        plain(&mut field, PLAIN, false);
        plain(&mut field, TRACKED, true);
        let link = |node: &'static str| {
            let [from, to] = ["open", "srv"].map(|app| format!("field/{app}-{node}"));
            let stations = [&from, &to].map(|name| read_interface(field.site.namespace(name).unwrap(), "eth0").unwrap().mac);
            (node, Link { interface: "eth0".into(), stations, from: field.site.addresses(&from).unwrap().to_vec() })
        };
        let links = [PRODUCT, PLAIN, TRACKED].map(link).into();
        Self { field, links }
    }

    fn flood(&self, node: &str, pace: Pace) -> Flood {
        let [from, to] = ["open", "srv"].map(|app| format!("field/{app}-{node}"));
        let per_second = match pace {
            Pace::Fastest => None,
            Pace::Same(rate) => Some(rate),
        };
        let stream = Stream { to: self.field.site.addresses(&to).unwrap().to_vec(), ports: PORTS, per_second, packets: None };
        let flows = stream.flows() as u64;
        let flood = Flood::start_frames(senders(), self.field.site.namespace(&from).unwrap(), &self.links[node], stream).unwrap();
        wait::until_true("every flow to begin", Duration::from_secs(60), || flood.sent() > flows).unwrap();
        flood
    }

    /// Packets a second with nothing beside them.
    fn alone(&self, node: &str, lasting: Duration) -> f64 {
        let flood = self.flood(node, Pace::Fastest);
        // What is measured is a time: there is no condition to wait for.
        std::thread::sleep(lasting);
        let (sent, lasted) = flood.stop().unwrap();
        sent as f64 / lasted.as_secs_f64()
    }

    fn beside(&self, permitted: &Permitted<'_>, node: &str, pace: Pace, traffic: Traffic, lasting: Duration) -> Rates {
        let flood = self.flood(node, pace);
        let permitted = permitted.measure(traffic, lasting).unwrap();
        let (sent, lasted) = flood.stop().unwrap();
        Rates { permitted, flooded: sent as f64 / lasted.as_secs_f64() }
    }
}

/// Requests or bytes, and denied packets, a second.
#[derive(Clone, Copy, Debug)]
struct Rates {
    permitted: f64,
    flooded: f64,
}

/// Of all rounds, by what is measured and where.
type Measured = BTreeMap<(Pace, Traffic, &'static str), Vec<Rates>>;

fn kept(measured: &Measured, pace: Pace, traffic: Traffic, against: &'static str) -> Vec<f64> {
    let [ours, theirs] = [PRODUCT, against].map(|node| &measured[&(pace, traffic, node)]);
    ours.iter().zip(theirs).map(|(ours, theirs)| ours.permitted / theirs.permitted).collect()
}

/// The machine's limit is known by what the same senders send where each packet is dropped as it arrives, before the node does anything with it.
fn print_limits(arena: &Arena, lasting: Duration) {
    // Of the product first while each flow is new, and then as all others see it.
    for node in [PRODUCT, PRODUCT, PLAIN, TRACKED] {
        println!("{} senders, nothing beside them, {node}: {:.0} packets/s", senders(), arena.alone(node, lasting));
    }
    let node = &arena.field.site.node(PLAIN).unwrap().namespace;
    let port = &arena.field.site.workload_of(&format!("field/open-{PLAIN}")).unwrap().interface;
    let rule = |text: &str| node.output(&format!("nft {text}")).unwrap();
    rule("add table netdev floor");
    rule(&format!("add chain netdev floor in {{ type filter hook ingress device {port} priority -500 ; policy drop ; }}"));
    println!("{} senders, dropped as they arrive: {:.0} packets/s", senders(), arena.alone(PLAIN, lasting));
    rule("delete table netdev floor");
}

#[test]
fn beside_the_hardest_flood_permitted_traffic_keeps_nine_tenths_of_its_rate_beside_the_same_that_one_rule_drops() {
    let arena = Arena::start();
    let lasting = Duration::from_millis(u64::try_from(scaled(200, 1_000)).unwrap());
    let permitted: BTreeMap<&str, Permitted<'_>> = [PRODUCT, PLAIN, TRACKED]
        .map(|node| {
            let [client, server] = ["tight", "srv"].map(|app| arena.field.site.namespace(&format!("field/{app}-{node}")).unwrap());
            let to = arena.field.site.addresses(&format!("field/srv-{node}")).unwrap()[0];
            (node, Permitted::start(client, server, SocketAddr::new(to, 9002)).unwrap())
        })
        .into();
    print_limits(&arena, Duration::from_secs(1));
    let mut paces = vec![Pace::Fastest];
    if scaled(0, 1) == 1 {
        // What is left of it where permitted traffic takes its part of the processors.
        let most = arena.beside(&permitted[PRODUCT], PRODUCT, Pace::Fastest, Traffic::Requests, lasting).flooded as u64;
        paces.extend([Pace::Same(most), Pace::Same(most / 2)]);
    }
    let mut measured = Measured::new();
    let (rounds, bound) = (scaled(5, 15), scaled(45, 15));
    for round in 0..bound {
        // What is only told needs less.
        let paces = if round < FEW { paces.as_slice() } else { &paces[..1] };
        for pace in paces {
            for traffic in Traffic::ALL {
                let mut order = [PRODUCT, PLAIN, TRACKED];
                if round % 2 == 1 {
                    order.reverse();
                }
                for node in order {
                    let rates = arena.beside(&permitted[node], node, *pace, traffic, lasting);
                    measured.entry((*pace, traffic, node)).or_default().push(rates);
                }
            }
        }
        let holds = |traffic| median(&kept(&measured, Pace::Fastest, traffic, PLAIN)) >= kept_at_least();
        // A busy machine needs more rounds for the medians to say so.
        if round + 1 >= rounds && Traffic::ALL.into_iter().all(holds) {
            break;
        }
    }
    for ((pace, traffic, node), rates) in &measured {
        let of = |which: fn(&Rates) -> f64| median(&rates.iter().map(which).collect::<Vec<_>>());
        let list = kept(&measured, *pace, *traffic, node);
        let ratio = median(&list);
        println!(
            "{pace:?}, {traffic:?}, {node}: median {:.0}/s beside {:.0} denied packets/s; the product / this: {ratio:.3} {list:.2?}",
            of(|it| it.permitted),
            of(|it| it.flooded)
        );
    }
    for traffic in Traffic::ALL {
        let ratio = median(&kept(&measured, Pace::Fastest, traffic, PLAIN));
        assert!(
            ratio >= kept_at_least(),
            "{traffic:?}: beside the flood permitted traffic has {ratio:.3} of what it has beside one plain rule"
        );
    }
}
