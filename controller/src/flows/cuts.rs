//! One event per cut connection, although both ends' nodes may tell of it. Pure: time is handed in.
//!
//! Two words are of one connection if they agree on its ends somewhere on the wire: at one node before its translation, at the other after
//! its own. Addresses of a network that only one node knows mean nothing elsewhere, so they agree with that node's only.

use firebreak_policy::model::{NetworkName, NodeName};
use firebreak_proto::v1;
use jiff::Timestamp;
use std::collections::{BTreeSet, HashMap, VecDeque};

/// For how long after one node's word the other's is of the same connection. Longer, and another connection between the same ports could be
/// taken for it; a node that is slower than this tells of a second event, which says what it is by its ends.
const WINDOW_SECONDS: i64 = 60;
/// Words that are kept in mind.
const MOST: usize = 200_000;

/// Whether a cut was told before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It is news.
    First,
    /// Another node told of it.
    Before,
}

/// Ends on the wire: where they mean something, protocol, source and destination with ports.
type Ends = (String, u32, Vec<u8>, u32, Vec<u8>, u32);

/// The cuts of the last minute.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    next: u64,
    by_ends: HashMap<Ends, u64>,
    cuts: HashMap<u64, Cut>,
    /// By time.
    order: VecDeque<(Timestamp, u64)>,
}

#[derive(Debug)]
struct Cut {
    nodes: BTreeSet<NodeName>,
    ends: BTreeSet<Ends>,
}

impl Cuts {
    /// A node tells of a cut. A second word of the same node is another connection: it cuts each once.
    pub(super) fn tell(&mut self, node: &NodeName, cut: &v1::CutEvent, now: Timestamp) -> Told {
        self.forget(now);
        let ends = ends(node, cut);
        let known = ends.iter().find_map(|ends| self.by_ends.get(ends)).copied();
        let known = known.and_then(|number| self.cuts.get_mut(&number));
        if known.is_some_and(|known| known.nodes.insert(node.clone())) {
            return Told::Before;
        }
        let number = self.next;
        self.next += 1;
        for ends in &ends {
            self.by_ends.insert(ends.clone(), number);
        }
        self.cuts.insert(number, Cut { nodes: BTreeSet::from([node.clone()]), ends });
        self.order.push_back((now, number));
        Told::First
    }

    fn forget(&mut self, now: Timestamp) {
        while let Some((at, number)) = self.order.front().copied() {
            if self.order.len() < MOST && now.as_second() - at.as_second() <= WINDOW_SECONDS {
                return;
            }
            self.order.pop_front();
            let Some(cut) = self.cuts.remove(&number) else { continue };
            for ends in cut.ends {
                if self.by_ends.get(&ends) == Some(&number) {
                    self.by_ends.remove(&ends);
                }
            }
        }
    }
}

fn ends(node: &NodeName, cut: &v1::CutEvent) -> BTreeSet<Ends> {
    let transport = cut.transport.unwrap_or_default();
    let at = |place: String, source: &[u8], source_port: Option<u32>, destination: &[u8], port: Option<u32>| {
        // No port is another thing than port 0.
        let number = |port: Option<u32>| port.map_or(u32::MAX, |port| port);
        (place, transport.protocol, source.to_vec(), number(source_port), destination.to_vec(), number(port))
    };
    let everywhere = NetworkName::default_network().to_string();
    // What no workload of ours holds is known by address alone.
    let place = if cut.network.is_empty() { format!("{node}/") } else { cut.network.clone() };
    let real = at(place, &cut.source, cut.source_port, &cut.destination, transport.port);
    let wire = [&cut.arrived, &cut.left].into_iter().flatten();
    let wire = wire.map(|it| at(everywhere.clone(), &it.source, it.source_port, &it.destination, it.destination_port));
    [real].into_iter().chain(wire).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const WEB: [u8; 4] = [10, 0, 0, 1];
    const DB: [u8; 4] = [10, 0, 1, 1];
    const NODE_A: [u8; 4] = [192, 0, 2, 1];

    fn cut(network: &str, source: [u8; 4], source_port: u32) -> v1::CutEvent {
        v1::CutEvent {
            network: network.to_owned(),
            source: source.to_vec().into(),
            source_port: Some(source_port),
            destination: DB.to_vec().into(),
            transport: Some(v1::Transport { protocol: 6, port: Some(5432), icmp_type: None, icmp_code: None }),
            ..v1::CutEvent::default()
        }
    }

    fn wire(source: [u8; 4], source_port: u32) -> Option<v1::WireEnds> {
        Some(v1::WireEnds {
            source: source.to_vec().into(),
            source_port: Some(source_port),
            destination: DB.to_vec().into(),
            destination_port: Some(5432),
        })
    }

    #[test]
    fn both_nodes_tell_of_one_connection_and_it_is_one_event() {
        let at = |second: i64| Timestamp::new(second, 0).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(NodeName::from);
        let hidden = v1::CutEvent { arrived: wire(WEB, 1), left: wire(NODE_A, 9), ..cut("a/docker0", WEB, 1) };
        let cases: [(&str, Vec<(&NodeName, v1::CutEvent, i64, Told)>); 7] = [
            ("one each", vec![(&a, cut("default", WEB, 1), 0, Told::First), (&b, cut("default", WEB, 1), 1, Told::Before)]),
            ("another port", vec![(&a, cut("default", WEB, 1), 0, Told::First), (&b, cut("default", WEB, 2), 1, Told::First)]),
            (
                "cut, allowed and cut again",
                vec![
                    (&a, cut("default", WEB, 1), 0, Told::First),
                    (&b, cut("default", WEB, 1), 0, Told::Before),
                    (&b, cut("default", WEB, 1), 5, Told::First),
                    (&a, cut("default", WEB, 1), 5, Told::Before),
                ],
            ),
            ("much later", vec![(&a, cut("default", WEB, 1), 0, Told::First), (&b, cut("default", WEB, 1), 61, Told::First)]),
            ("behind masquerading", vec![(&a, hidden.clone(), 0, Told::First), (&b, cut("default", NODE_A, 9), 0, Told::Before)]),
            ("the other first", vec![(&b, cut("default", NODE_A, 9), 0, Told::First), (&a, hidden, 0, Told::Before)]),
            (
                "the same addresses in other networks",
                vec![
                    (&a, cut("a/docker0", WEB, 1), 0, Told::First),
                    (&b, cut("b/docker0", WEB, 1), 0, Told::First),
                    (&c, cut("", WEB, 1), 0, Told::First),
                ],
            ),
        ];
        for (name, words) in cases {
            let mut cuts = Cuts::default();
            for (position, (node, cut, second, expected)) in words.into_iter().enumerate() {
                assert_eq!(cuts.tell(node, &cut, at(second)), expected, "{name}: word {position}");
            }
        }
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let mut cuts = Cuts::default();
        for second in 0..500 {
            cuts.tell(&NodeName::from("a"), &cut("default", WEB, 1_000 + second), Timestamp::new(second.into(), 0).unwrap());
        }
        assert!(cuts.cuts.len() <= 62 && cuts.by_ends.len() <= 62 && cuts.order.len() <= 62, "{}", cuts.cuts.len());
    }
}
