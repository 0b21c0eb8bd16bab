//! One agent's session. One generation is in flight; while it waits for its ack newer targets replace each other, so that an agent
//! that is slow, or does not read, costs one target and no more.

use super::difference::{Holding, difference};
use super::encoded::Encoded;
use super::frame::Frame;
use super::hello::Caller;
use super::report::{self, Parts, Whole};
use super::{Agents, Incoming, Outgoing};
use crate::hub::board::Line;
use crate::hub::published::{Published, Target};
use crate::hub::{Hub, Report};
use crate::store::{ReportedChange, Store};
use firebreak_policy::model::{Generation, NodeName, Revision};
use firebreak_proto::hash::{ContentHash, ObjectKey, ObjectKind, WireKind as _};
use firebreak_proto::v1::agent_message::Message as Up;
use firebreak_proto::v1::controller_message::Message as Down;
use firebreak_proto::workload::DeclaredWorkload;
use firebreak_proto::{MAX_MESSAGE_BYTES, PROTOCOL_VERSION, Refusal, v1};
use jiff::Timestamp;
use prometheus_client::metrics::histogram::Histogram;
use prost::Message as _;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// More objects than a node's state has.
const MOST_HELD: usize = 1_000_000;

/// Declared workloads in one message have so many bytes, but for one that has more by itself.
const DECLARED_BYTES: usize = 64 * 1024;

/// One that is larger leaves no room for the rest of its message.
const LARGEST_DECLARED: usize = MAX_MESSAGE_BYTES - 4_096;

/// What a field takes beside its content, at most.
const FRAME_BYTES: usize = 8;

/// How long a generation is held back that takes workloads from an agent which did not say yet what it runs.
const REPORT_PATIENCE: Duration = Duration::from_secs(15);

/// When a generation goes out again, whole where it was refused, that an agent could not make take effect.
const RETRY: Duration = Duration::from_secs(5);

/// One agent's session.
pub(super) struct Session {
    hub: Hub,
    store: Store,
    clock: fn() -> Timestamp,
    realize_seconds: Histogram,
    caller: Caller,
    /// The node's line on the board.
    line: Line,
    /// A revision that the store had when the node's name was found to be the caller's.
    joined: Revision,
    outgoing: Outgoing,
    encoded: Encoded,
    pending: VecDeque<Frame>,
    holding: Holding,
    /// Whether the agent has said everything that it holds.
    introduced: bool,
    reports: Parts,
    /// The ticket of this stream's first full report.
    told: Option<u64>,
    /// Until when a generation is held back for that report.
    patience: Option<Instant>,
    generation: Generation,
    sent: Option<Sent>,
    in_flight: bool,
    /// When what the agent refused, or failed at, is tried again although nothing changed.
    retry: Option<Instant>,
    /// It is time to.
    again: bool,
    /// The target that does not fit into messages, so that it is told of once.
    unsendable: Option<ContentHash>,
    declared: Option<Arc<Vec<DeclaredWorkload>>>,
    /// Until when an order that waits to be sent may be: whoever gave it was then told that the node does not do so.
    order_until: std::time::Instant,
}

/// The generation that was sent last.
#[derive(Debug)]
struct Sent {
    generation: Generation,
    revision: Revision,
    target: Arc<Target>,
    /// The publication that it came from.
    publication: u64,
    /// Whether it took effect whole, as far as the last ack tells.
    realized: bool,
}

impl Session {
    pub(super) fn new(service: &Agents, caller: Caller, joined: Revision, outgoing: Outgoing) -> Self {
        Self {
            hub: service.hub.clone(),
            store: service.store.clone(),
            clock: service.clock,
            realize_seconds: service.counted.realize_seconds.clone(),
            line: service.hub.board().line(&caller.node),
            caller,
            joined,
            outgoing,
            encoded: service.encoded.clone(),
            pending: VecDeque::new(),
            holding: Holding::default(),
            introduced: false,
            reports: Parts::default(),
            told: None,
            patience: None,
            generation: Generation(0),
            sent: None,
            in_flight: false,
            retry: None,
            again: false,
            unsendable: None,
            declared: None,
            order_until: std::time::Instant::now(),
        }
    }

    /// Runs until the agent goes, sends something that cannot be taken, or the token is cancelled.
    pub(super) async fn run(self, inbound: Incoming, token: &CancellationToken) -> Result<(), Status> {
        let (hub, node) = (self.hub.clone(), self.caller.node.clone());
        let wake = hub.wakes().register(&node);
        // What was published before is news for this session.
        wake.notify_one();
        let ended = self.serve(inbound, token, &wake).await;
        hub.wakes().forget(&node, &wake);
        ended
    }

    async fn serve(mut self, mut inbound: Incoming, token: &CancellationToken, wake: &Notify) -> Result<(), Status> {
        let mut orders = self.hub.board().take_orders(&self.caller.node);
        let outgoing = self.outgoing.clone();
        // One for all rounds: to begin to wait for it takes two locks.
        let mut cancelled = std::pin::pin!(token.cancelled());
        loop {
            self.hand_over();
            tokio::select! {
                () = &mut cancelled => return Err(Status::aborted("the session ends: the controller is stopping, or the node has a newer session")),
                message = inbound.message() => match message {
                    Ok(Some(message)) => self.take(message).await?,
                    Ok(None) => return Ok(()),
                    // The connection broke; there is nobody to tell.
                    Err(status) => {
                        tracing::debug!(node = %self.caller.node, reason = %status, "connection lost");
                        return Ok(());
                    }
                },
                () = wake.notified(), if self.introduced => {
                    let before = self.generation;
                    self.publish()?;
                    self.settle_unless_sent(before);
                }
                // Not behind others, where it would wait for longer than whoever gave it.
                Some((order, until)) = orders.recv(), if self.declared.is_some() && self.pending.is_empty() => {
                    self.order_until = until;
                    self.pending.push_back(Frame::Message(Down::Observe(order)));
                }
                () = tokio::time::sleep_until(self.patience.unwrap_or_else(Instant::now)), if self.patience.is_some() => {
                    tracing::warn!(node = %self.caller.node, "an agent did not say what it runs; its node gets the state that is known");
                    self.send_newest();
                }
                () = tokio::time::sleep_until(self.retry.unwrap_or_else(Instant::now)), if self.retry.is_some() => {
                    (self.retry, self.again) = (None, true);
                    self.send_newest();
                }
                permit = outgoing.reserve(), if !self.pending.is_empty() => {
                    drop(permit.map_err(|_| Status::cancelled("the agent does not listen any more"))?);
                }
            }
        }
    }

    /// Hands what has room to the connection, into one write of it.
    fn hand_over(&mut self) {
        while !self.pending.is_empty()
            && let Ok(permit) = self.outgoing.try_reserve()
        {
            match self.pending.pop_front() {
                Some(Frame::Message(Down::Observe(_))) if self.order_until < std::time::Instant::now() => {
                    tracing::warn!(node = %self.caller.node, "an order to observe is dropped: the agent does not read");
                }
                Some(frame) => permit.send(Ok(frame)),
                None => {}
            }
        }
    }

    async fn take(&mut self, message: v1::AgentMessage) -> Result<(), Status> {
        let message =
            message.message.ok_or_else(|| Status::invalid_argument("message: is not set, or of a kind that this version does not know"))?;
        let name = name_of(&message);
        let invalid = |refusal: Refusal| Status::invalid_argument(refusal.within(name).to_string());
        let now = (self.clock)();
        self.line.update(|progress| progress.last_seen = Some(now));
        match message {
            Up::Hello(_) => Err(Status::invalid_argument("hello: came twice")),
            Up::Held(held) => self.held(held).map_err(invalid),
            Up::Workloads(_) | Up::Node(_) | Up::Ack(_) if !self.introduced => {
                Err(Status::invalid_argument(format!("{name}: came before the last part of held")))
            }
            Up::Workloads(part) => match self.reports.take(&self.caller.node, part).map_err(invalid)? {
                Some(whole) => self.reported(whole).await,
                None => Ok(()),
            },
            Up::Node(report) => {
                report::check_node(&report).map_err(invalid)?;
                self.node_reported(report).await
            }
            Up::Ack(ack) => self.acked(ack).map_err(invalid),
        }
    }

    fn held(&mut self, held: v1::Held) -> Result<(), Refusal> {
        if self.introduced {
            return Err(Refusal::new("last", "came already"));
        }
        for (at, object) in held.objects.into_iter().enumerate() {
            let within = |refusal: Refusal| refusal.within(format_args!("objects[{at}]"));
            let kind = ObjectKind::from_wire(object.kind).map_err(within)?;
            if object.id.is_empty() {
                return Err(within(Refusal::new("id", "is empty")));
            }
            let hash = ContentHash::from_wire(&object.hash, "hash").map_err(within)?;
            self.holding.tell(ObjectKey::new(kind, object.id), hash);
        }
        if self.holding.told() > MOST_HELD {
            return Err(Refusal::new("objects", format!("names over {MOST_HELD} objects")));
        }
        self.introduced = held.last;
        Ok(())
    }

    async fn reported(&mut self, whole: Whole) -> Result<(), Status> {
        let Whole { upserts, removed, full, stored } = whole;
        let at = self.store.revision();
        self.keep(stored).await?;
        let ticket = self.hub.ticket();
        if full {
            self.told.get_or_insert(ticket);
        }
        self.tell(at, Report::Workloads { node: self.caller.node.clone(), upserts, removed, full, ticket }).await
    }

    async fn node_reported(&mut self, report: v1::NodeReport) -> Result<(), Status> {
        let node = self.caller.node.clone();
        let at = self.store.revision();
        self.keep(ReportedChange {
            node: node.clone(),
            upserts: Vec::new(),
            removed: Vec::new(),
            full: false,
            report: Some(report.clone()),
        })
        .await?;
        self.tell(at, Report::Node(node, report)).await
    }

    async fn keep(&self, change: ReportedChange) -> Result<(), Status> {
        self.store.put_reported(change).await.map_err(|error| {
            tracing::error!(node = %self.caller.node, error = %error, "could not keep a report");
            Status::unavailable("the report could not be kept; the agent is to report again")
        })
    }

    async fn tell(&self, at: Revision, report: Report) -> Result<(), Status> {
        if self.hub.report(at, report).await { Ok(()) } else { Err(Status::unavailable("the controller is stopping")) }
    }

    fn acked(&mut self, ack: v1::Ack) -> Result<(), Refusal> {
        let v1::Ack { generation, revision, epoch, applied_at: _, kernel_time: _, refused, failure } = ack;
        let Some(sent) = &mut self.sent else {
            return Err(Refusal::new("generation", format!("{generation} was never sent on this stream")));
        };
        if generation > sent.generation.0 {
            return Err(Refusal::new("generation", format!("{generation} was never sent; the newest is {}", sent.generation)));
        }
        if generation < sent.generation.0 {
            // Of a generation that was replaced; the newest one's ack will come.
            return Ok(());
        }
        if self.pending.iter().any(|frame| matches!(frame, Frame::Message(Down::Commit(_)))) {
            return Err(Refusal::new("generation", format!("{generation} was not sent yet")));
        }
        if revision != sent.revision.0 {
            return Err(Refusal::new("revision", format!("{revision} is not generation {generation}'s, which is {}", sent.revision)));
        }
        if self.hub.newest().is_some_and(|published| *published.epoch != *epoch) {
            return Err(Refusal::new("epoch", "is not this controller's"));
        }
        let mut keys = Vec::with_capacity(refused.len());
        for (at, object) in refused.iter().enumerate() {
            let kind = ObjectKind::from_wire(object.kind).map_err(|refusal| refusal.within(format_args!("refused[{at}]")))?;
            keys.push(ObjectKey::new(kind, object.id.as_str()));
        }
        for key in keys {
            // It goes out whole with the next generation.
            self.holding.refuse(key);
        }
        self.in_flight = false;
        sent.realized = failure.is_empty() && refused.is_empty();
        self.retry = if sent.realized { None } else { Some(Instant::now() + RETRY) };
        if sent.realized
            && let Some(lag) = self.hub.board().realized(&self.caller.node, sent.publication, std::time::Instant::now())
        {
            self.realize_seconds.observe(lag.as_secs_f64());
        }
        let target = Arc::clone(&sent.target);
        let (acked_generation, acked_revision) = (sent.generation, sent.revision);
        if !failure.is_empty() {
            tracing::error!(node = %self.caller.node, generation, reason = %failure, "a generation did not take effect");
        }
        for object in &refused {
            tracing::error!(node = %self.caller.node, object = %object.id, reason = %object.reason, "an agent refused an object");
        }
        self.line.update(|progress| {
            if failure.is_empty() {
                (progress.acked_generation, progress.acked_revision) = (acked_generation, acked_revision);
                progress.acked = Some(target);
            }
            progress.refused = refused;
            progress.failure = failure;
        });
        self.send_newest();
        self.settle_unless_sent(acked_generation);
        Ok(())
    }

    /// Others may have their turn, unless a generation after `before` was just put on its way.
    fn settle_unless_sent(&self, before: Generation) {
        if self.generation == before {
            self.hub.wakes().settle(&self.caller.node);
        }
    }

    fn publish(&mut self) -> Result<(), Status> {
        let Some(published) = self.hub.newest() else { return Ok(()) };
        if published.forgotten.get(&self.caller.node).is_some_and(|forgotten| self.joined < *forgotten) {
            return Err(Status::aborted("an operator deleted the node; connect again to take the name anew"));
        }
        if self.sent.is_none() && self.declared.is_none() {
            let welcome = v1::Welcome {
                protocol: PROTOCOL_VERSION,
                epoch: published.epoch.to_string(),
                controller_version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            self.pending.push_back(Frame::Message(Down::Welcome(welcome)));
            // Numbers of generations go on from what the agent holds, and from what was sent to its node before: one that says that it holds an older
            // generation, or none, is not sent a number again that stood for something else. What it holds is told by the hashes alone.
            if self.caller.epoch == *published.epoch {
                self.generation = self.caller.generation;
            }
            let sent = self.line.ask(|progress| progress.sent_generation);
            self.generation = self.generation.max(sent);
        }
        self.declare(&published);
        self.send_newest();
        Ok(())
    }

    fn declare(&mut self, published: &Published) {
        let declared = published.declared.get_shared(&self.caller.node).cloned().unwrap_or_default();
        if self.declared.as_ref() == Some(&declared) {
            return;
        }
        let mut parts = vec![v1::Declared::default()];
        let mut bytes = 0;
        for workload in declared.iter().map(v1::DeclaredWorkload::from) {
            let more = workload.encoded_len() + FRAME_BYTES;
            if more > LARGEST_DECLARED {
                tracing::error!(node = %self.caller.node, workload = %workload.name, bytes = more, "a declared workload does not fit into a message; its node does not look for it");
                continue;
            }
            bytes += more;
            match parts.last_mut() {
                Some(part) if bytes <= DECLARED_BYTES => part.workloads.push(workload),
                Some(_) | None => {
                    bytes = more;
                    parts.push(v1::Declared { workloads: vec![workload], ..v1::Declared::default() });
                }
            }
        }
        if let Some(first) = parts.first_mut() {
            first.reset = true;
        }
        if let Some(last) = parts.last_mut() {
            last.last = true;
        }
        // A list that the agent has not read yet is replaced: the new one begins with a reset.
        self.pending.retain(|frame| !matches!(frame, Frame::Message(Down::Declared(_))));
        self.pending.extend(parts.into_iter().map(|part| Frame::Message(Down::Declared(part))));
        self.declared = Some(declared);
    }

    /// Whether the target lacks workloads that the agent holds, and nothing was heard yet of what it runs. A controller with a restored database,
    /// or one that was told to forget the node, knows less than the agent: sent at once, the target would cut live workloads off until the
    /// agent's report is compiled.
    fn takes_unheard(&self, published: &Published, target: &Target) -> bool {
        let heard = published.reported.get(&self.caller.node).map_or(0, |reported| reported.heard);
        self.told.is_none_or(|ticket| heard < ticket)
            && self.holding.keys().any(|key| key.kind == ObjectKind::Endpoint && !target.objects.contains(key))
    }

    /// Sends the newest target unless it was sent already or another one is in flight.
    fn send_newest(&mut self) {
        if self.in_flight {
            return;
        }
        let Some(published) = self.hub.newest() else { return };
        // A node that was met a moment ago is in the next publication.
        let Some(target) = published.targets.get_shared(&self.caller.node) else { return };
        let node: NodeName = self.caller.node.clone();
        if let Some(sent) = self.sent.as_ref().filter(|sent| sent.target.hash == target.hash && !self.again) {
            // Nothing changed for this node, or it changed back before it was sent, or what could not be sent is not wanted any more.
            if self.unsendable.take().is_some() && sent.realized {
                self.line.update(|progress| progress.failure.clear());
            }
            if sent.realized {
                self.hub.board().realized(&node, published.number, std::time::Instant::now());
            }
            return;
        }
        if self.sent.is_none() && self.takes_unheard(&published, target) {
            let until = *self.patience.get_or_insert_with(|| Instant::now() + REPORT_PATIENCE);
            if Instant::now() < until {
                return;
            }
        }
        self.patience = None;
        let frames = if let Some(what) = self.caller.lacks(&target.state) {
            // It would pass over fields that it does not know, and let through what they deny.
            Err(format!("agent {} does not know {what}, which are about its workloads: upgrade it", self.caller.version))
        } else {
            difference(&node, &self.holding, target, &self.encoded).map_err(|oversized| oversized.to_string())
        };
        let frames = match frames {
            Ok(frames) => frames,
            Err(reason) => {
                if self.unsendable.replace(target.hash) != Some(target.hash) {
                    tracing::error!(node = %node, reason, "a generation cannot be sent; the node keeps the one that it has");
                    self.line.update(|progress| progress.failure = reason);
                }
                return;
            }
        };
        // What was due to be tried again stays due while it cannot be sent.
        (self.unsendable, self.retry, self.again) = (None, None, false);
        self.generation = Generation(self.generation.0 + 1);
        self.pending.extend(frames);
        self.pending.push_back(Frame::Message(Down::Commit(v1::Commit {
            epoch: published.epoch.to_string(),
            generation: self.generation.0,
            revision: published.revision.0,
            hash: target.hash.to_wire(),
        })));
        self.holding.send(target);
        self.sent = Some(Sent {
            generation: self.generation,
            revision: published.revision,
            target: Arc::clone(target),
            publication: published.number,
            realized: false,
        });
        self.in_flight = true;
        let generation = self.generation;
        self.line.update(|progress| progress.sent_generation = generation);
    }
}

/// The message's field in `AgentMessage`.
pub(super) fn name_of(message: &Up) -> &'static str {
    match message {
        Up::Hello(_) => "hello",
        Up::Held(_) => "held",
        Up::Workloads(_) => "workloads",
        Up::Node(_) => "node",
        Up::Ack(_) => "ack",
    }
}
