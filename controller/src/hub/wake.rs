//! Who is told of a publication: only the sessions of nodes that it concerns. At a hundred publications a second and five thousand sessions
//! the difference is half a million wake-ups.
//!
//! A publication that concerns many is told of in turn: so many nodes are under way at a time, and the next one's turn comes when one of them has
//! acknowledged. A change of a few nodes that comes meanwhile waits for these and not for thousands. Whoever ends a turn gives the next one, on the
//! thread that it is on: a task that did so would be woken for each ack.

use firebreak_policy::model::NodeName;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Nodes of a publication that are told at once; where it concerns more, they are told in turn. Some 25 changes of a few nodes that came while the one
/// before was worked out are one publication, and do not wait behind a change for all.
const AT_ONCE: usize = 512;

/// So many are under way at a time where they are told in turn: enough to keep the processors busy, and some 4 ms of work before the next change of a
/// few nodes.
const UNDER_WAY: usize = 64;

/// After so long without an ack a node is not waited for any more: turns spare this machine's processors, which have done their part by then. Agents that
/// are far away, slow, or read nothing hold nobody up: 500 that read nothing take a fifth of a second of the others' time once.
const TURN_PATIENCE: Duration = Duration::from_millis(25);

/// The sessions that wait for something of their node. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wakes {
    by_node: Arc<Mutex<HashMap<NodeName, Arc<Notify>>>>,
    turns: Arc<Mutex<Turns>>,
    /// Somebody waits for his turn.
    waited: Arc<Notify>,
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

    /// Wakes these nodes' sessions: a few at once, many in turn. To name one twice does no harm.
    pub(crate) fn wake<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeName>) {
        let nodes: Vec<&NodeName> = nodes.into_iter().collect();
        if nodes.len() <= AT_ONCE {
            let by_node = self.lock();
            return nodes.iter().filter_map(|node| by_node.get(*node)).for_each(|wake| wake.notify_one());
        }
        let mut turns = self.turns();
        for node in nodes {
            // One that waits already will be told the newest.
            if turns.named.insert(node.clone()) {
                turns.waiting.push_back(node.clone());
            }
        }
        self.give(&mut turns, Instant::now());
        drop(turns);
        self.waited.notify_one();
    }

    /// Wakes all.
    pub(crate) fn wake_all(&self) {
        let nodes: Vec<NodeName> = self.lock().keys().cloned().collect();
        self.wake(&nodes);
    }

    /// A node's session has nothing under way any more, or had nothing to send.
    pub(crate) fn settle(&self, node: &NodeName) {
        let mut turns = self.turns();
        if turns.under_way.remove(node).is_some() {
            self.give(&mut turns, Instant::now());
        }
    }

    /// Looks, until `stop`, that nobody is waited for too long.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            let again = self.pass_over(Instant::now());
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.waited.notified(), if again.is_none() => {}
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now).into()), if again.is_some() => {}
            }
        }
    }

    /// Gives their turn to others in place of those who have not answered for too long; tells when to look again, if anybody waits.
    fn pass_over(&self, now: Instant) -> Option<Instant> {
        let mut turns = self.turns();
        if turns.waiting.is_empty() {
            // Nobody waits for them.
            turns.under_way.clear();
            return None;
        }
        turns.under_way.retain(|_, since| now.duration_since(*since) < TURN_PATIENCE);
        self.give(&mut turns, now);
        let oldest = turns.under_way.values().min().copied();
        oldest.map(|oldest| oldest + TURN_PATIENCE)
    }

    /// Wakes those whose turn it is.
    fn give(&self, turns: &mut Turns, now: Instant) {
        if turns.waiting.is_empty() || turns.under_way.len() >= UNDER_WAY {
            return;
        }
        let by_node = self.lock();
        while turns.under_way.len() < UNDER_WAY {
            let Some(node) = turns.waiting.pop_front() else { return };
            turns.named.remove(&node);
            // Who has no session takes no turn.
            if let Some(wake) = by_node.get(&node) {
                wake.notify_one();
                turns.under_way.insert(node, now);
            }
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wake_before_the_wait_is_kept_and_only_the_newest_session_of_a_node_gets_it() {
        let (wakes, one, other) = (Wakes::default(), NodeName::new("n1"), NodeName::new("n2"));
        let (older, newer, another) = (wakes.register(&one), wakes.register(&one), wakes.register(&other));
        wakes.forget(&one, &older);
        wakes.wake([&one]);
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
        let these = |nodes: &[NodeName]| nodes.iter().cloned().collect::<BTreeSet<_>>();
        wakes.wake(&nodes);
        wakes.wake(&nodes[UNDER_WAY..]);
        assert_eq!(under_way(), these(&nodes[..UNDER_WAY]));
        assert_eq!(wakes.turns().waiting.len(), 1_000 - UNDER_WAY, "nobody waits twice");
        nodes[..10].iter().for_each(|node| wakes.settle(node));
        nodes[..10].iter().for_each(|node| wakes.settle(node));
        assert_eq!(under_way(), these(&nodes[10..UNDER_WAY + 10]), "whoever ends a turn gives the next one, and only one");
        let again = wakes.pass_over(begun).unwrap();
        assert!(again > begun && again <= Instant::now() + TURN_PATIENCE, "who does not answer is looked after");
        let mut now = Instant::now() + TURN_PATIENCE;
        wakes.pass_over(now);
        assert_eq!(under_way(), these(&nodes[UNDER_WAY + 10..2 * UNDER_WAY + 10]), "those of the begin are not waited for");
        let mut rounds = 0;
        while wakes.pass_over(now).is_some() {
            now += TURN_PATIENCE;
            rounds += 1;
        }
        assert!(wakes.turns().waiting.is_empty() && wakes.turns().named.is_empty() && under_way().is_empty());
        assert!(rounds <= 900 / UNDER_WAY, "who has no session takes no turn: {rounds} rounds");
    }

    #[tokio::test]
    async fn all_of_many_are_told_although_nobody_answers() {
        let (wakes, stop) = (Wakes::default(), CancellationToken::new());
        let nodes: Vec<NodeName> = (0..1_000).map(|number| NodeName::new(format!("n{number:04}"))).collect();
        let waits: Vec<Arc<Notify>> = nodes.iter().map(|node| wakes.register(node)).collect();
        let running = tokio::spawn(wakes.clone().run(stop.clone()));
        wakes.wake(&nodes);
        let all = async {
            for wait in &waits {
                wait.notified().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
        stop.cancel();
        running.await.unwrap();
    }
}
