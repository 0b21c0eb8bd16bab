//! WatchFlows: the kept denied flows, then those to come.

use super::live::FlowTap;
use super::refusal::Violations;
use super::{Open, OperatorApi, Streamed};
use crate::auth::{Act, Principal, Target, authorize};
use bytes::Bytes;
use firebreak_proto::convert::address_from_wire;
use firebreak_proto::v1;
use futures::stream;
use ipnet::IpNet;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

/// Flows that one look at the kept ones gives; more than are kept.
const ALL_KEPT: usize = 1_000_000;
/// What is shown without `follow` and without a number.
const DEFAULT_TAIL: usize = 100;

/// Which flows a watcher wants.
#[derive(Debug)]
pub(super) struct Filter {
    namespace: String,
    workload: Option<(Option<String>, String)>,
    node: String,
    direction: Option<v1::Direction>,
    verdict: Option<v1::Verdict>,
    source: Option<IpNet>,
    destination: Option<IpNet>,
    protocol: Option<u32>,
    port: Option<u32>,
    cuts: bool,
}

/// What filters look at, of a denied flow or of a cut.
struct Seen<'a> {
    direction: v1::Direction,
    verdict: v1::Verdict,
    source: &'a Bytes,
    destination: &'a Bytes,
    transport: Option<&'a v1::Transport>,
}

impl<'a> Seen<'a> {
    /// `None` of a record that tells of a loss.
    fn of(flow: &'a v1::AttributedFlow) -> Option<Self> {
        let of_event = flow.event.as_ref().map(|event| Self {
            direction: event.direction(),
            verdict: event.verdict(),
            source: &event.source,
            destination: &event.destination,
            transport: event.transport.as_ref(),
        });
        let of_cut = || {
            flow.cut.as_ref().map(|cut| Self {
                direction: cut.direction(),
                // Its ends are answered: RST, or ICMP.
                verdict: v1::Verdict::Reject,
                source: &cut.source,
                destination: &cut.destination,
                transport: cut.transport.as_ref(),
            })
        };
        of_event.or_else(of_cut)
    }
}

struct FlowWatch {
    filter: Filter,
    tap: Arc<dyn FlowTap>,
    ready: VecDeque<Arc<v1::AttributedFlow>>,
    live: Option<broadcast::Receiver<Arc<v1::AttributedFlow>>>,
    cursor: u64,
    _open: Open,
}

impl OperatorApi {
    pub(super) fn watch_flow_events(
        &self,
        principal: &Principal,
        request: v1::WatchFlowsRequest,
    ) -> Result<Streamed<v1::AttributedFlow>, Status> {
        authorize(principal, Act::WatchFlows, Target::Everything)?;
        let (follow, tail, after) = (request.follow, request.tail, request.after_cursor);
        let filter = Filter::read(request)?;
        let open = self.open_stream()?;
        // Subscribed before the kept ones are looked at: none is missed, and the cursor tells those that come twice.
        let live = follow.then(|| self.flows.subscribe());
        let wanted = match (tail, follow, after) {
            (0, true, 0) => 0,
            (0, false, 0) => DEFAULT_TAIL,
            (0, _, _) => ALL_KEPT,
            (tail, _, _) => usize::try_from(tail).unwrap_or(usize::MAX),
        };
        let kept = self.flows.recent(after, ALL_KEPT);
        if after > 0 {
            let newest = self.flows.recent(0, 1).last().map_or(0, |flow| flow.cursor);
            if after > newest {
                return Err(Status::out_of_range(format!(
                    "cursor {after} is not known, the newest is {newest}; begin again without a cursor"
                )));
            }
            refuse_gap(after, &kept)?;
        }
        let cursor = kept.last().map_or(after, |flow| flow.cursor);
        let mut ready: VecDeque<_> = kept.into_iter().filter(|flow| filter.takes(flow)).collect();
        ready.drain(..ready.len().saturating_sub(wanted));
        let watch = FlowWatch { filter, tap: Arc::clone(&self.flows), ready, live, cursor, _open: open };
        let events =
            stream::try_unfold(watch, |mut watch| async move { Ok(watch.next().await?.map(|flow| (Arc::unwrap_or_clone(flow), watch))) });
        Ok(self.until_stopped(events))
    }
}

impl FlowWatch {
    async fn next(&mut self) -> Result<Option<Arc<v1::AttributedFlow>>, Status> {
        loop {
            if let Some(flow) = self.ready.pop_front() {
                return Ok(Some(flow));
            }
            let Some(live) = &mut self.live else { return Ok(None) };
            match live.recv().await {
                Ok(flow) if flow.cursor <= self.cursor => {}
                Ok(flow) => {
                    self.cursor = flow.cursor;
                    if self.filter.takes(&flow) {
                        return Ok(Some(flow));
                    }
                }
                Err(RecvError::Lagged(_)) => self.catch_up()?,
                Err(RecvError::Closed) => return Err(Status::unavailable("the controller is stopping")),
            }
        }
    }

    /// Reads on from the kept flows. A watcher that is behind even those is told from where it can go on.
    fn catch_up(&mut self) -> Result<(), Status> {
        let kept = self.tap.recent(self.cursor, ALL_KEPT);
        refuse_gap(self.cursor, &kept)?;
        self.cursor = kept.last().map_or(self.cursor, |flow| flow.cursor);
        self.ready.extend(kept.into_iter().filter(|flow| self.filter.takes(flow)));
        Ok(())
    }
}

/// DATA_LOSS when flows between the cursor and the kept ones are gone; the message says from where to go on.
#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
fn refuse_gap(cursor: u64, kept: &[Arc<v1::AttributedFlow>]) -> Result<(), Status> {
    match kept.first().map(|first| first.cursor) {
        Some(first) if first > cursor + 1 => Err(Status::data_loss(format!(
            "flow records after cursor {cursor} are no longer kept: the watch was too slow, or the controller was restarted; \
             go on with after_cursor {}",
            first - 1
        ))),
        Some(_) | None => Ok(()),
    }
}

impl Filter {
    #[allow(clippy::result_large_err, reason = "handlers hand the status on")]
    fn read(request: v1::WatchFlowsRequest) -> Result<Self, Status> {
        let v1::WatchFlowsRequest {
            follow: _,
            tail: _,
            namespace,
            workload,
            node,
            direction,
            verdict,
            source,
            destination,
            protocol,
            port,
            after_cursor: _,
            cuts,
        } = request;
        let mut violations = Violations::default();
        let direction = v1::Direction::try_from(direction)
            .map_err(|_| violations.add("direction", format!("{direction} is no direction")))
            .unwrap_or_default();
        let verdict =
            v1::Verdict::try_from(verdict).map_err(|_| violations.add("verdict", format!("{verdict} is no verdict"))).unwrap_or_default();
        let mut block = |field: &str, wire: Option<v1::Cidr>| match wire.as_ref().map(read_block) {
            Some(Err(reason)) => {
                violations.add(field, reason);
                None
            }
            Some(Ok(block)) => Some(block),
            None => None,
        };
        let (source, destination) = (block("source", source), block("destination", destination));
        if let Some(number) = protocol.filter(|number| *number > 255) {
            violations.add("protocol", format!("{number} is no IP protocol number; they end at 255"));
        }
        if let Some(number) = port.filter(|number| *number > 65_535) {
            violations.add("port", format!("{number} is no port; they end at 65535"));
        }
        let workload = match workload.split_once('/') {
            None if workload.is_empty() => None,
            None => Some((None, workload)),
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Some((Some(namespace.to_owned()), name.to_owned())),
            Some(_) => {
                violations.add("workload", format!("{workload:?} is neither `name` nor `namespace/name`"));
                None
            }
        };
        violations.check()?;
        Ok(Self {
            namespace,
            workload,
            node,
            direction: (direction != v1::Direction::Unspecified).then_some(direction),
            verdict: (verdict != v1::Verdict::Unspecified).then_some(verdict),
            source,
            destination,
            protocol,
            port,
            cuts,
        })
    }

    /// Whether the watcher wants it. A record that tells of a loss passes every filter but the node's: what was lost could have been anything.
    fn takes(&self, flow: &v1::AttributedFlow) -> bool {
        if !self.node.is_empty() && self.node != flow.node {
            return false;
        }
        let Some(seen) = Seen::of(flow) else { return true };
        if self.cuts && flow.cut.is_none() {
            return false;
        }
        let ends = [flow.source.as_ref(), flow.destination.as_ref()];
        let end = |wanted: &dyn Fn(&v1::Peer) -> bool| ends.iter().flatten().any(|peer| wanted(peer));
        let transport = seen.transport;
        (self.namespace.is_empty() || end(&|peer| peer.namespace == self.namespace))
            && self.workload.as_ref().is_none_or(|(namespace, name)| {
                end(&|peer| peer.name == *name && namespace.as_ref().is_none_or(|namespace| *namespace == peer.namespace))
            })
            && self.direction.is_none_or(|direction| seen.direction == direction)
            && self.verdict.is_none_or(|verdict| seen.verdict == verdict)
            && self.source.is_none_or(|block| holds(block, seen.source))
            && self.destination.is_none_or(|block| holds(block, seen.destination))
            && self.protocol.is_none_or(|protocol| transport.is_some_and(|transport| transport.protocol == protocol))
            && self.port.is_none_or(|port| transport.is_some_and(|transport| transport.port == Some(port)))
    }
}

fn read_block(wire: &v1::Cidr) -> Result<IpNet, String> {
    let address = address_from_wire(&wire.address, "address").map_err(|refusal| refusal.reason)?;
    let length = u8::try_from(wire.prefix_length).map_err(|_| format!("{} is no prefix length", wire.prefix_length))?;
    let block = IpNet::new(address, length).map_err(|_| format!("{length} is no prefix length of {address}"))?;
    if block.network() == address { Ok(block) } else { Err(format!("{block} has host bits set; did you mean {}?", block.trunc())) }
}

fn holds(block: IpNet, bytes: &Bytes) -> bool {
    address_from_wire(bytes, "address").is_ok_and(|address| block.contains(&address))
}
