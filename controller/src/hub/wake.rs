//! Who is told of a publication: only the sessions of nodes that it concerns. At a hundred publications a second and five thousand sessions
//! the difference is half a million wake-ups.
//!
//! A publication that concerns many is told of in turn: so many nodes are under way at a time, and the next one's turn comes when one of them has
//! acknowledged. A change of a few nodes that comes meanwhile waits for these and not for thousands.

use firebreak_policy::model::NodeName;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Nodes of a publication that are told at once, and that are under way at a time where it concerns more.
const AT_ONCE: usize = 256;

/// So many get their turn in one go; what waits for a processor then goes first. Meant for the next change of a few nodes; the figures in docs/scale.md
/// do not show that it helps.
const IN_ONE_GO: usize = 16;

/// After so long without an ack a node is not waited for any more: agents that are slow, or read nothing, hold nobody up.
const TURN_PATIENCE: Duration = Duration::from_millis(250);

/// The sessions that wait for something of their node. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wakes {
    by_node: Arc<Mutex<HashMap<NodeName, Arc<Notify>>>>,
    turns: Arc<Mutex<Turns>>,
    /// Somebody waits for his turn, or has ended it.
    moved: Arc<Notify>,
}

/// When to look again whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// At once: there is room for more.
    Now,
    /// Then, although nobody has ended his turn.
    At(Instant),
    /// When somebody came, or ended his turn.
    WhenMoved,
}

/// Whose turn it is.
#[derive(Debug, Default)]
struct Turns {
    waiting: VecDeque<NodeName>,
    /// The same names.
    named: HashSet<NodeName>,
    under_way: HashMap<NodeName, Instant>,
}

impl Wakes {
    /// What a node's new session waits for; an older one of the node is not told any more. A wake that comes while it does not wait is kept.
    pub(crate) fn register(&self, node: &NodeName) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        self.lock().insert(node.clone(), Arc::clone(&wake));
        wake
    }

    /// A session ended.
    pub(crate) fn forget(&self, node: &NodeName, wake: &Arc<Notify>) {
        let mut by_node = self.lock();
        if by_node.get(node).is_some_and(|newest| Arc::ptr_eq(newest, wake)) {
            by_node.remove(node);
        }
        drop(by_node);
        self.settle(node);
    }

    /// Wakes these nodes' sessions: a few at once, many in turn.
    pub(crate) fn wake(&self, nodes: &BTreeSet<&NodeName>) {
        if nodes.len() <= AT_ONCE {
            let by_node = self.lock();
            return nodes.iter().filter_map(|node| by_node.get(*node)).for_each(|wake| wake.notify_one());
        }
        let mut turns = self.turns();
        for node in nodes {
            // One that waits already will be told the newest.
            if turns.named.insert((*node).clone()) {
                turns.waiting.push_back((*node).clone());
            }
        }
        drop(turns);
        self.moved.notify_one();
    }

    /// Wakes all.
    pub(crate) fn wake_all(&self) {
        let nodes: Vec<NodeName> = self.lock().keys().cloned().collect();
        self.wake(&nodes.iter().collect());
    }

    /// A node's session has nothing under way any more, or had nothing to send.
    pub(crate) fn settle(&self, node: &NodeName) {
        if self.turns().under_way.remove(node).is_some() {
            self.moved.notify_one();
        }
    }

    /// Gives turns until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            let again = match self.advance(Instant::now()) {
                Next::Now => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Next::At(moment) => Some(moment),
                Next::WhenMoved => None,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.moved.notified() => {}
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now).into()), if again.is_some() => {}
            }
        }
    }

    /// Wakes those whose turn it is; tells when to look again although nobody has ended his.
    fn advance(&self, now: Instant) -> Next {
        let mut turns = self.turns();
        if turns.waiting.is_empty() {
            return Next::WhenMoved;
        }
        turns.under_way.retain(|_, since| now.duration_since(*since) < TURN_PATIENCE);
        let by_node = self.lock();
        for _ in 0..IN_ONE_GO {
            if turns.under_way.len() >= AT_ONCE {
                break;
            }
            let Some(node) = turns.waiting.pop_front() else { break };
            turns.named.remove(&node);
            if let Some(wake) = by_node.get(&node) {
                wake.notify_one();
                turns.under_way.insert(node, now);
            }
        }
        match turns.under_way.values().min() {
            _ if turns.waiting.is_empty() => Next::WhenMoved,
            Some(oldest) if turns.under_way.len() >= AT_ONCE => Next::At(*oldest + TURN_PATIENCE),
            Some(_) | None => Next::Now,
        }
    }

    /// Taken before `by_node`, where both are.
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeName, Arc<Notify>>> {
        // A panic between two entries leaves both as they should be.
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What happened to nodes since the last publication beside what their targets show.
#[derive(Debug, Default)]
pub(crate) struct Touched(BTreeSet<NodeName>);

impl Touched {
    /// A node's report was taken in, or it was forgotten.
    pub(crate) fn add(&mut self, node: &NodeName) {
        self.0.insert(node.clone());
    }

    /// All of them; none are left.
    pub(crate) fn take(&mut self) -> BTreeSet<NodeName> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wake_before_the_wait_is_kept_and_only_the_newest_session_of_a_node_gets_it() {
        let (wakes, one, other) = (Wakes::default(), NodeName::new("n1"), NodeName::new("n2"));
        let (older, newer, another) = (wakes.register(&one), wakes.register(&one), wakes.register(&other));
        wakes.forget(&one, &older);
        wakes.wake(&[&one].into());
        newer.notified().await;
        let is_woken = |wake: &Arc<Notify>| {
            let wake = Arc::clone(wake);
            async move { tokio::time::timeout(std::time::Duration::from_millis(20), wake.notified()).await.is_ok() }
        };
        assert!(!is_woken(&older).await && !is_woken(&another).await && !is_woken(&newer).await);
        wakes.wake_all();
        assert!(is_woken(&another).await && is_woken(&newer).await);
        wakes.forget(&other, &another);
        wakes.wake_all();
        assert!(!is_woken(&another).await);
    }

    #[test]
    fn of_many_so_many_are_under_way_at_a_time_and_who_does_not_answer_holds_nobody_up() {
        let (wakes, begun) = (Wakes::default(), Instant::now());
        let nodes: Vec<NodeName> = (0..1_000).map(|number| NodeName::new(format!("n{number:04}"))).collect();
        for node in &nodes[..900] {
            wakes.register(node);
        }
        let under_way = || wakes.turns().under_way.keys().cloned().collect::<BTreeSet<_>>();
        wakes.wake(&nodes.iter().collect());
        wakes.wake(&nodes.iter().collect());
        assert_eq!(wakes.turns().waiting.len(), 1_000, "nobody waits twice");
        assert_eq!((wakes.advance(begun), under_way().len()), (Next::Now, IN_ONE_GO));
        let fill = |now| {
            loop {
                match wakes.advance(now) {
                    Next::Now => {}
                    next @ (Next::At(_) | Next::WhenMoved) => return next,
                }
            }
        };
        assert_eq!((fill(begun), under_way().len()), (Next::At(begun + TURN_PATIENCE), AT_ONCE));
        nodes[..100].iter().for_each(|node| wakes.settle(node));
        fill(begun + Duration::from_millis(1));
        assert_eq!(under_way(), nodes[100..AT_ONCE + 100].iter().cloned().collect(), "the next ones have their turn");
        fill(begun + TURN_PATIENCE);
        assert_eq!(wakes.turns().waiting.len(), 1_000 - 100 - AT_ONCE - (AT_ONCE - 100), "those of the begin are not waited for");
        let mut now = begun + TURN_PATIENCE;
        while fill(now) != Next::WhenMoved {
            now += TURN_PATIENCE;
        }
        assert!(wakes.turns().waiting.is_empty() && wakes.turns().named.is_empty());
        assert!(now <= begun + 5 * TURN_PATIENCE, "who has no session takes no turn");
    }
}
