//! Who is told of a publication: only the sessions of nodes that it concerns. At a hundred publications a second and five thousand sessions
//! the difference is half a million wake-ups.

use super::published::Published;
use firebreak_policy::model::NodeName;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The sessions that wait for something of their node. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wakes {
    by_node: Arc<Mutex<HashMap<NodeName, Arc<Notify>>>>,
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
    }

    /// Wakes these nodes' sessions.
    pub(crate) fn wake<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeName>) {
        let by_node = self.lock();
        nodes.into_iter().filter_map(|node| by_node.get(node)).for_each(|wake| wake.notify_one());
    }

    /// Wakes all.
    pub(crate) fn wake_all(&self) {
        self.lock().values().for_each(|wake| wake.notify_one());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeName, Arc<Notify>>> {
        // A panic between two entries leaves both as they should be.
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nodes that have another target than in the publication before: a generation has to go to them.
pub(crate) fn targeted<'a>(before: &Published, now: &'a Published) -> Vec<&'a NodeName> {
    different(&before.targets, &now.targets, |before, now| Arc::ptr_eq(before, now) || before.hash == now.hash)
}

/// Nodes to which other workloads are declared.
pub(crate) fn declared<'a>(before: &Published, now: &'a Published) -> Vec<&'a NodeName> {
    let mut nodes = different(&before.declared, &now.declared, |before, now| Arc::ptr_eq(before, now) || before == now);
    // A list that became empty need not be there any more; the node is then among the targets, or is none.
    let ended = before.declared.keys().filter(|node| !now.declared.contains_key(*node));
    nodes.extend(ended.filter_map(|node| now.targets.get_key_value(node)).map(|(node, _)| node));
    nodes
}

/// The keys of `now` with another value before, or none. Both maps are walked once.
fn different<'a, V>(before: &BTreeMap<NodeName, V>, now: &'a BTreeMap<NodeName, V>, is_same: impl Fn(&V, &V) -> bool) -> Vec<&'a NodeName> {
    let mut before = before.iter().peekable();
    let mut nodes = Vec::new();
    for (node, value) in now {
        while before.next_if(|(earlier, _)| *earlier < node).is_some() {}
        let same = before.next_if(|(earlier, _)| *earlier == node).is_some_and(|(_, earlier)| is_same(earlier, value));
        if !same {
            nodes.push(node);
        }
    }
    nodes
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

    fn nodes(pairs: &[(&str, u8)]) -> BTreeMap<NodeName, u8> {
        pairs.iter().map(|(node, value)| (NodeName::new(*node), *value)).collect()
    }

    #[test]
    fn nodes_that_came_or_changed_are_different_and_those_that_went_are_not_named() {
        for (before, now, expected) in [
            (vec![], vec![("a", 1)], vec!["a"]),
            (vec![("a", 1), ("b", 1)], vec![("a", 1), ("b", 2)], vec!["b"]),
            (vec![("a", 1), ("b", 1), ("c", 1)], vec![("b", 1), ("c", 1), ("d", 1)], vec!["d"]),
            (vec![("b", 1)], vec![("a", 1), ("b", 1), ("c", 1)], vec!["a", "c"]),
            (vec![("a", 1)], vec![], vec![]),
        ] {
            let (before, now) = (nodes(&before), nodes(&now));
            let found: Vec<&str> = different(&before, &now, |one, other| one == other).into_iter().map(NodeName::as_str).collect();
            assert_eq!(found, expected, "{before:?} {now:?}");
        }
    }

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
}
