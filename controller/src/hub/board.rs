//! How far each node is, as its session tells. A board that everybody reads and the sessions write; locks are held for a moment only.

use super::published::Target;
use super::wave::Times;
use crate::store::ObjectKey;
use firebreak_policy::model::{Generation, NodeName, Revision};
use firebreak_proto::v1;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Publications that a node's wait tells apart; what is beyond counts as the last of them.
const MOST_WAITING: usize = 64;

/// Changes of policies whose way to the nodes is remembered.
const MOST_WAVES: usize = 512;

/// The nodes that had a session since this process began, and what every node has not realized yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board {
    nodes: Arc<Mutex<BTreeMap<NodeName, Line>>>,
    waits: Arc<Mutex<Waits>>,
    /// Where orders to a node's session go.
    orders: Arc<Mutex<BTreeMap<NodeName, mpsc::Sender<Order>>>>,
}

/// An order, and until when it may be passed on.
pub(crate) type Order = (v1::Observe, Instant);

impl Board {
    /// The orders that a node's new session is to pass on.
    pub(crate) fn take_orders(&self, node: &NodeName) -> mpsc::Receiver<Order> {
        let (sender, receiver) = mpsc::channel(4);
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), sender);
        receiver
    }

    /// Hands an order to the node's session; `false` when there is none, or others wait before it.
    pub(crate) fn order(&self, node: &NodeName, order: Order) -> bool {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.get(node).is_some_and(|session| session.try_send(order).is_ok())
    }
}

/// What every node has not realized yet, and how fast changes of policies were realized.
#[derive(Debug, Default)]
struct Waits {
    by_node: HashMap<NodeName, Wait>,
    /// By publication.
    waves: BTreeMap<u64, Wave>,
    /// The publication of a policy's newest version.
    by_policy: HashMap<ObjectKey, u64>,
}

/// A publication that came with changes of policies.
#[derive(Debug, Default)]
struct Wave {
    policies: Vec<ObjectKey>,
    times: Times,
}

impl Waits {
    fn begin_wave(&mut self, publication: u64, policies: Vec<ObjectKey>) {
        for policy in &policies {
            self.by_policy.insert(policy.clone(), publication);
        }
        self.waves.insert(publication, Wave { policies, times: Times::default() });
        if self.waves.len() > MOST_WAVES
            && let Some((oldest, wave)) = self.waves.pop_first()
        {
            for policy in wave.policies {
                if self.by_policy.get(&policy) == Some(&oldest) {
                    self.by_policy.remove(&policy);
                }
            }
        }
    }

    fn realized(&mut self, node: &NodeName, publication: u64, now: Instant) -> Option<Duration> {
        let wait = self.by_node.get_mut(node)?;
        let lag = wait.lag(now);
        for (answered, since) in wait.0.iter().take_while(|(waiting, _)| *waiting <= publication) {
            if let Some(wave) = self.waves.get_mut(answered) {
                wave.times.add(now.duration_since(*since));
            }
        }
        wait.realized(publication);
        lag
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
    /// A revision that the store had when the newest session began.
    pub(crate) joined: Revision,
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

/// One node's line. A session holds its own, so that what it writes with each ack is not looked up among all. The line of a node that was forgotten is
/// on the board no more; what its last session still writes is read by nobody.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line(Arc<Mutex<Progress>>);

impl Line {
    /// Changes it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.0));
    }

    /// What it says.
    pub(crate) fn ask<T>(&self, ask: impl FnOnce(&Progress) -> T) -> T {
        ask(&lock(&self.0))
    }
}

impl Board {
    /// A node's line; a fresh one where it has none.
    pub(crate) fn line(&self, node: &NodeName) -> Line {
        let mut nodes = self.lock();
        match nodes.get(node) {
            Some(line) => line.clone(),
            None => nodes.entry(node.clone()).or_default().clone(),
        }
    }

    /// One node's line as it is now.
    pub(crate) fn of(&self, node: &NodeName) -> Option<Progress> {
        self.ask(node, Progress::clone)
    }

    /// The same of anything; `None` of a node that has no line.
    pub(crate) fn ask<T>(&self, node: &NodeName, ask: impl FnOnce(&Progress) -> T) -> Option<T> {
        self.lock().get(node).map(|line| line.ask(ask))
    }

    /// What one node's line says, without a copy of it.
    pub(crate) fn tells(&self, node: &NodeName, ask: impl FnOnce(&Progress) -> bool) -> bool {
        self.ask(node, ask).unwrap_or(false)
    }

    /// A session began. What an earlier boot of the node acked, refused or failed at is gone with it.
    pub(crate) fn connected(&self, node: &NodeName, boot_id: &str, agent_version: &str, joined: Revision, now: (Timestamp, Instant)) {
        let (seen, now) = now;
        // Not let go of before it says when the session joined: a line that is forgotten meanwhile would be nobody's.
        let mut lines = self.lock();
        lines.entry(node.clone()).or_default().update(|progress| {
            if progress.boot_id != boot_id {
                // Numbers of generations do not come back.
                let sent_generation = progress.sent_generation;
                *progress = Progress { boot_id: boot_id.to_owned(), sent_generation, ..Progress::default() };
            }
            (progress.connected, progress.joined) = (true, joined);
            progress.agent_version = agent_version.to_owned();
            progress.last_seen = Some(seen);
        });
        drop(lines);
        if self.tells(node, |progress| progress.acked.is_none()) {
            let mut waits = lock(&self.waits);
            let wait = waits.by_node.entry(node.clone()).or_default();
            if wait.0.is_empty() {
                // Whatever generation it acks first answers this.
                wait.expect(0, now);
            }
        }
    }

    /// A publication has something new for these nodes; these policies were changed in it.
    pub(crate) fn expect<'a>(
        &self,
        nodes: impl IntoIterator<Item = &'a NodeName>,
        publication: u64,
        now: Instant,
        policies: impl IntoIterator<Item = ObjectKey>,
    ) {
        let mut waits = lock(&self.waits);
        let policies: Vec<ObjectKey> = policies.into_iter().collect();
        if !policies.is_empty() {
            waits.begin_wave(publication, policies);
        }
        for node in nodes {
            match waits.by_node.get_mut(node) {
                Some(wait) => wait.expect(publication, now),
                None => waits.by_node.entry(node.clone()).or_default().expect(publication, now),
            }
        }
    }

    /// How long the newest version of a policy took to 99 of 100 of the nodes that have it so far; `None` when it changed nothing anywhere, or long ago.
    pub(crate) fn took(&self, policy: &ObjectKey) -> Option<Duration> {
        let waits = lock(&self.waits);
        waits.by_policy.get(policy).and_then(|publication| waits.waves.get(publication)).and_then(|wave| wave.times.percentile(99))
    }

    /// The node realized a publication, and with it every one before. Gives how long the oldest of its changes had waited.
    pub(crate) fn realized(&self, node: &NodeName, publication: u64, now: Instant) -> Option<Duration> {
        lock(&self.waits).realized(node, publication, now)
    }

    /// How long the oldest change that the node has not realized waits; `None` when there is none.
    pub(crate) fn lag(&self, node: &NodeName, now: Instant) -> Option<Duration> {
        lock(&self.waits).by_node.get(node).and_then(|wait| wait.lag(now))
    }

    /// A session ended.
    pub(crate) fn disconnected(&self, node: &NodeName) {
        if let Some(line) = self.lock().get(node) {
            line.update(|progress| progress.connected = false);
        }
    }

    /// A node that this revision forgot has no line, unless a session has begun since.
    pub(crate) fn forget(&self, node: &NodeName, at: Revision) {
        let mut lines = self.lock();
        if lines.get(node).is_some_and(|line| line.ask(|progress| progress.joined >= at)) {
            return;
        }
        lines.remove(node);
        drop(lines);
        lock(&self.waits).by_node.remove(node);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Line>> {
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
    use crate::store::KindName;

    #[test]
    fn lag_is_that_of_the_oldest_change_that_is_not_realized() {
        let (board, node, begun) = (Board::default(), NodeName::new("n1"), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let lag = |seconds| board.lag(&node, at(seconds)).map(|lag| lag.as_secs());
        assert_eq!(lag(0), None);
        for (publication, second) in [(1, 10), (2, 20), (3, 30)] {
            board.expect([&node], publication, at(second), []);
        }
        assert_eq!(lag(40), Some(30), "newer changes do not make it smaller");
        assert_eq!(board.realized(&node, 2, at(41)).map(|lag| lag.as_secs()), Some(31));
        assert_eq!(lag(50), Some(20), "the third change still waits");
        board.realized(&node, 1, at(51));
        assert_eq!(lag(60), Some(30), "a late word of an old publication changes nothing");
        board.realized(&node, 3, at(61));
        assert_eq!(lag(70), None);
        for publication in 4..1_000 {
            board.expect([&node], publication, at(publication), []);
        }
        board.realized(&node, 900, at(1_000));
        assert!(lag(1_000).is_some_and(|lag| lag >= 100), "however many wait, what is not realized still waits");
        board.realized(&node, 999, at(1_000));
        assert_eq!(lag(1_000), None);
    }

    #[test]
    fn a_policys_time_is_that_of_the_nodes_which_its_newest_version_concerned() {
        let (board, begun) = (Board::default(), Instant::now());
        let at = |milliseconds| begun + Duration::from_millis(milliseconds);
        let key = |name: &str| ObjectKey { kind: KindName::new("SegmentPolicy"), namespace: Some("shop".into()), name: name.into() };
        let nodes: Vec<NodeName> = (0..100).map(|number| NodeName::new(format!("n{number}"))).collect();
        board.expect(&nodes, 1, at(0), [key("web"), key("db")]);
        assert_eq!(board.took(&key("web")), None, "nobody has it");
        for (node, took) in nodes.iter().zip(1..) {
            board.realized(node, 1, at(took));
        }
        let milliseconds = |name: &str| board.took(&key(name)).map(|took| took.as_millis());
        assert!(milliseconds("web").is_some_and(|took| (98..110).contains(&took)), "{:?}", milliseconds("web"));
        board.expect(&nodes[..2], 2, at(1_000), [key("db")]);
        board.realized(&nodes[0], 2, at(1_005));
        assert!(milliseconds("db").is_some_and(|took| (5..7).contains(&took)), "{:?}", milliseconds("db"));
        assert!(milliseconds("web").is_some_and(|took| took > 90), "the other policy's time stays");
        for publication in 3..2_000 {
            board.expect([], publication, at(2_000), [key(&format!("p{publication}"))]);
        }
        assert_eq!(milliseconds("web"), None, "what was long ago is forgotten");
        assert_eq!(lock(&board.waits).by_policy.len(), MOST_WAVES);
    }

    #[test]
    fn what_a_session_of_a_forgotten_node_writes_is_nobodys() {
        let (board, node) = (Board::default(), NodeName::new("n1"));
        let acked = || board.ask(&node, |progress| progress.acked_generation.0);
        board.connected(&node, "boot-1", "1", Revision(3), (Timestamp::UNIX_EPOCH, Instant::now()));
        let line = board.line(&node);
        line.update(|progress| progress.acked_generation = Generation(7));
        assert_eq!(acked(), Some(7));
        board.forget(&node, Revision(2));
        line.update(|progress| progress.acked_generation = Generation(8));
        assert_eq!(acked(), Some(8), "its session began later");
        board.forget(&node, Revision(4));
        line.update(|progress| progress.acked_generation = Generation(9));
        assert_eq!(acked(), None);
        board.connected(&node, "boot-2", "1", Revision(4), (Timestamp::UNIX_EPOCH, Instant::now()));
        line.update(|progress| progress.acked_generation = Generation(10));
        assert_eq!(acked(), Some(0), "a newer session has a line of its own");
    }

    #[test]
    fn a_new_boot_waits_until_its_first_ack_and_a_forgotten_node_waits_for_nothing() {
        let (board, node, begun) = (Board::default(), NodeName::new("n1"), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        board.connected(&node, "boot-1", "1", Revision(3), (Timestamp::UNIX_EPOCH, at(0)));
        assert!(board.lag(&node, at(5)).is_some());
        board.realized(&node, 7, at(5));
        board.connected(&node, "boot-2", "1", Revision(5), (Timestamp::UNIX_EPOCH, at(10)));
        assert_eq!(board.lag(&node, at(15)), Some(Duration::from_secs(5)));
        board.forget(&node, Revision(5));
        assert!(board.of(&node).is_some() && board.lag(&node, at(20)).is_some(), "the session began after the node was forgotten");
        board.forget(&node, Revision(6));
        assert!(board.of(&node).is_none() && board.lag(&node, at(20)).is_none());
    }
}
