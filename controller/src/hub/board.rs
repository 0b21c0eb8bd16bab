//! How far each node is, as its session tells. A board that everybody reads and the sessions write; locks are held for a moment only.

use super::published::Target;
use firebreak_policy::model::{Generation, NodeName, Revision};
use firebreak_proto::v1;
use jiff::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Publications that a node's wait tells apart; what is beyond counts as the last of them.
const MOST_WAITING: usize = 64;

/// The nodes that had a session since this process began, and what every node has not realized yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board {
    nodes: Arc<Mutex<BTreeMap<NodeName, Progress>>>,
    waits: Arc<Mutex<BTreeMap<NodeName, Wait>>>,
    /// Where orders to a node's session go.
    orders: Arc<Mutex<BTreeMap<NodeName, mpsc::Sender<v1::Observe>>>>,
}

impl Board {
    /// The orders that a node's new session is to pass on.
    pub(crate) fn take_orders(&self, node: &NodeName) -> mpsc::Receiver<v1::Observe> {
        let (sender, receiver) = mpsc::channel(4);
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), sender);
        receiver
    }

    /// Hands an order to the node's session; `false` when there is none, or others wait before it.
    pub(crate) fn order(&self, node: &NodeName, order: v1::Observe) -> bool {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.get(node).is_some_and(|session| session.try_send(order).is_ok())
    }
}

/// Publications that are new for a node and that it did not ack yet, oldest first, with the time since which each waits.
#[derive(Debug, Default)]
struct Wait(VecDeque<(u64, Instant)>);

impl Wait {
    fn expect(&mut self, publication: u64, now: Instant) {
        let full = self.0.len() == MOST_WAITING;
        match self.0.back_mut() {
            // Stays short while a node is lost: the oldest changes keep their times, the last entry stands for all that follow.
            Some((last, _)) if full => *last = publication,
            Some(_) | None => self.0.push_back((publication, now)),
        }
    }

    fn realized(&mut self, publication: u64) {
        self.0.retain(|(waiting, _)| *waiting > publication);
    }

    fn lag(&self, now: Instant) -> Option<Duration> {
        self.0.front().map(|(_, since)| now.duration_since(*since))
    }
}

/// How far one node is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) connected: bool,
    /// The boot of the newest session; what an earlier boot acked is not in the kernel any more.
    pub(crate) boot_id: String,
    pub(crate) sent_generation: Generation,
    pub(crate) acked_generation: Generation,
    pub(crate) acked_revision: Revision,
    /// What the node enforces as far as its last good ack tells.
    pub(crate) acked: Option<Arc<Target>>,
    pub(crate) refused: Vec<v1::RefusedObject>,
    pub(crate) failure: String,
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) agent_version: String,
}

impl Board {
    /// Changes one node's line.
    pub(crate) fn update(&self, node: &NodeName, change: impl FnOnce(&mut Progress)) {
        change(self.lock().entry(node.clone()).or_default());
    }

    /// One node's line as it is now.
    pub(crate) fn of(&self, node: &NodeName) -> Option<Progress> {
        self.lock().get(node).cloned()
    }

    /// What one node's line says, without a copy of it.
    pub(crate) fn tells(&self, node: &NodeName, ask: impl FnOnce(&Progress) -> bool) -> bool {
        self.lock().get(node).is_some_and(ask)
    }

    /// A session began. What an earlier boot of the node acked, refused or failed at is gone with it.
    pub(crate) fn connected(&self, node: &NodeName, boot_id: &str, agent_version: &str, now: (Timestamp, Instant)) {
        let (seen, now) = now;
        self.update(node, |progress| {
            if progress.boot_id != boot_id {
                *progress = Progress { boot_id: boot_id.to_owned(), ..Progress::default() };
            }
            progress.connected = true;
            progress.agent_version = agent_version.to_owned();
            progress.last_seen = Some(seen);
        });
        if self.tells(node, |progress| progress.acked.is_none()) {
            let mut waits = lock(&self.waits);
            let wait = waits.entry(node.clone()).or_default();
            if wait.0.is_empty() {
                // Whatever generation it acks first answers this.
                wait.expect(0, now);
            }
        }
    }

    /// A publication has something new for these nodes.
    pub(crate) fn expect<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeName>, publication: u64, now: Instant) {
        let mut waits = lock(&self.waits);
        for node in nodes {
            waits.entry(node.clone()).or_default().expect(publication, now);
        }
    }

    /// The node realized a publication, and with it every one before. Gives how long the oldest of its changes had waited.
    pub(crate) fn realized(&self, node: &NodeName, publication: u64, now: Instant) -> Option<Duration> {
        let mut waits = lock(&self.waits);
        let wait = waits.get_mut(node)?;
        let lag = wait.lag(now);
        wait.realized(publication);
        lag
    }

    /// How long the oldest change that the node has not realized waits; `None` when there is none.
    pub(crate) fn lag(&self, node: &NodeName, now: Instant) -> Option<Duration> {
        lock(&self.waits).get(node).and_then(|wait| wait.lag(now))
    }

    /// A session ended.
    pub(crate) fn disconnected(&self, node: &NodeName) {
        if let Some(progress) = self.lock().get_mut(node) {
            progress.connected = false;
        }
    }

    /// A forgotten node has no line.
    pub(crate) fn forget(&self, node: &NodeName) {
        self.lock().remove(node);
        lock(&self.waits).remove(node);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Progress>> {
        lock(&self.nodes)
    }
}

fn lock<T>(lines: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while a line is written leaves the line as it was or as it should be; both can be read.
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_that_of_the_oldest_change_that_is_not_realized() {
        let (board, node, begun) = (Board::default(), NodeName::new("n1"), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let lag = |seconds| board.lag(&node, at(seconds)).map(|lag| lag.as_secs());
        assert_eq!(lag(0), None);
        for (publication, second) in [(1, 10), (2, 20), (3, 30)] {
            board.expect([&node], publication, at(second));
        }
        assert_eq!(lag(40), Some(30), "newer changes do not make it smaller");
        assert_eq!(board.realized(&node, 2, at(41)).map(|lag| lag.as_secs()), Some(31));
        assert_eq!(lag(50), Some(20), "the third change still waits");
        board.realized(&node, 1, at(51));
        assert_eq!(lag(60), Some(30), "a late word of an old publication changes nothing");
        board.realized(&node, 3, at(61));
        assert_eq!(lag(70), None);
        for publication in 4..1_000 {
            board.expect([&node], publication, at(publication));
        }
        board.realized(&node, 900, at(1_000));
        assert!(lag(1_000).is_some_and(|lag| lag >= 100), "however many wait, what is not realized still waits");
        board.realized(&node, 999, at(1_000));
        assert_eq!(lag(1_000), None);
    }

    #[test]
    fn a_new_boot_waits_until_its_first_ack_and_a_forgotten_node_waits_for_nothing() {
        let (board, node, begun) = (Board::default(), NodeName::new("n1"), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        board.connected(&node, "boot-1", "1", (Timestamp::UNIX_EPOCH, at(0)));
        assert!(board.lag(&node, at(5)).is_some());
        board.realized(&node, 7, at(5));
        board.connected(&node, "boot-2", "1", (Timestamp::UNIX_EPOCH, at(10)));
        assert_eq!(board.lag(&node, at(15)), Some(Duration::from_secs(5)));
        board.forget(&node);
        assert_eq!(board.lag(&node, at(20)), None);
    }
}
