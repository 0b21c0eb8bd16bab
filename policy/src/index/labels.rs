//! Label texts and label sets as small integers, and selectors in terms of them.

use super::ids::{IdMap, NONE, id};
use crate::model::{LabelSelector, Labels, Operator, Requirement};
use std::collections::HashMap;
use std::sync::Arc;

/// A key with a value, or with [`NONE`] the key alone.
pub(super) type Pair = (u32, u32);

/// Texts by number. Each holder counts, and the last takes the text with it, so that labels that come and go leave nothing behind.
#[derive(Debug, Default)]
pub(super) struct Texts {
    ids: HashMap<Arc<str>, u32>,
    slots: Vec<(Arc<str>, u32)>,
    free: Vec<u32>,
}

impl Texts {
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    fn hold(&mut self, text: &str) -> u32 {
        if let Some(number) = self.ids.get(text) {
            self.slots[*number as usize].1 += 1;
            return *number;
        }
        let text: Arc<str> = Arc::from(text);
        let number = match self.free.pop() {
            Some(free) => {
                self.slots[free as usize] = (text.clone(), 1);
                free
            }
            None => {
                self.slots.push((text.clone(), 1));
                id(self.slots.len() - 1)
            }
        };
        self.ids.insert(text, number);
        number
    }

    fn let_go(&mut self, number: u32) {
        let (text, holders) = &mut self.slots[number as usize];
        *holders -= 1;
        if *holders == 0 {
            self.ids.remove(text);
            self.free.push(number);
        }
    }

    /// The labels by number, sorted by key.
    pub(super) fn hold_labels(&mut self, labels: &Labels) -> Box<[Pair]> {
        let mut pairs: Box<[Pair]> = labels.0.iter().map(|(key, value)| (self.hold(key), self.hold(value))).collect();
        pairs.sort_unstable();
        pairs
    }

    pub(super) fn let_labels_go(&mut self, pairs: &[Pair]) {
        for (key, value) in pairs {
            self.let_go(*key);
            self.let_go(*value);
        }
    }
}

/// Sets of labels by number: workloads with the same labels share one.
#[derive(Debug, Default)]
pub(super) struct LabelSets {
    ids: HashMap<Arc<[Pair]>, u32>,
    slots: Vec<(Arc<[Pair]>, u32)>,
    free: Vec<u32>,
}

impl LabelSets {
    pub(super) fn hold(&mut self, labels: &Labels, texts: &mut Texts) -> u32 {
        let pairs = texts.hold_labels(labels);
        if let Some(number) = self.ids.get(&*pairs) {
            self.slots[*number as usize].1 += 1;
            texts.let_labels_go(&pairs);
            return *number;
        }
        let pairs: Arc<[Pair]> = Arc::from(pairs);
        let number = match self.free.pop() {
            Some(free) => {
                self.slots[free as usize] = (pairs.clone(), 1);
                free
            }
            None => {
                self.slots.push((pairs.clone(), 1));
                id(self.slots.len() - 1)
            }
        };
        self.ids.insert(pairs, number);
        number
    }

    pub(super) fn let_go(&mut self, number: u32, texts: &mut Texts) {
        let (pairs, holders) = &mut self.slots[number as usize];
        *holders -= 1;
        if *holders == 0 {
            texts.let_labels_go(pairs);
            self.ids.remove(pairs);
            self.free.push(number);
        }
    }

    pub(super) fn pairs(&self, number: u32) -> &Arc<[Pair]> {
        &self.slots[number as usize].0
    }
}

/// The value under a key; labels are sorted by key.
fn value_of(labels: &[Pair], key: u32) -> Option<u32> {
    labels.binary_search_by_key(&key, |(key, _)| *key).ok().map(|at| labels[at].1)
}

/// One requirement in terms of numbers.
#[derive(Debug)]
enum Term {
    In(u32, Box<[u32]>),
    NotIn(u32, Box<[u32]>),
    Exists(u32),
    Absent(u32),
}

/// A label selector in terms of numbers; it holds its texts until [`Self::let_go`].
#[derive(Debug, Default)]
pub(super) struct Selector(Box<[Term]>);

impl Selector {
    pub(super) fn of(selector: &LabelSelector, texts: &mut Texts) -> Self {
        let LabelSelector { match_labels, match_expressions } = selector;
        let mut terms = Vec::with_capacity(match_labels.len() + match_expressions.len());
        for (key, value) in match_labels {
            terms.push(Term::In(texts.hold(key), [texts.hold(value)].into()));
        }
        for Requirement { key, operator } in match_expressions {
            let key = texts.hold(key);
            let mut values = |values: &[String]| -> Box<[u32]> { values.iter().map(|value| texts.hold(value)).collect() };
            terms.push(match operator {
                Operator::In(list) => Term::In(key, values(list)),
                Operator::NotIn(list) => Term::NotIn(key, values(list)),
                Operator::Exists => Term::Exists(key),
                Operator::DoesNotExist => Term::Absent(key),
            });
        }
        Self(terms.into())
    }

    pub(super) fn let_go(&self, texts: &mut Texts) {
        for term in &self.0 {
            match term {
                Term::In(key, values) | Term::NotIn(key, values) => {
                    texts.let_go(*key);
                    values.iter().for_each(|value| texts.let_go(*value));
                }
                Term::Exists(key) | Term::Absent(key) => texts.let_go(*key),
            }
        }
    }

    pub(super) fn matches(&self, labels: &[Pair]) -> bool {
        self.0.iter().all(|term| match term {
            Term::In(key, values) => value_of(labels, *key).is_some_and(|value| values.contains(&value)),
            Term::NotIn(key, values) => value_of(labels, *key).is_none_or(|value| !values.contains(&value)),
            Term::Exists(key) => value_of(labels, *key).is_some(),
            Term::Absent(key) => value_of(labels, *key).is_none(),
        })
    }

    /// The pairs of which whatever matches must have one, for each term that has such: its position and the pairs.
    fn must(&self) -> impl Iterator<Item = (usize, Vec<Pair>)> + '_ {
        self.0.iter().enumerate().filter_map(|(position, term)| match term {
            Term::In(key, values) => {
                let mut pairs: Vec<Pair> = values.iter().map(|value| (*key, *value)).collect();
                pairs.sort_unstable();
                pairs.dedup();
                Some((position, pairs))
            }
            Term::Exists(key) => Some((position, vec![(*key, NONE)])),
            Term::NotIn(..) | Term::Absent(_) => None,
        })
    }

    /// The term that fewest satisfy, by what `count` says of a pair.
    pub(super) fn rarest(&self, count: impl Fn(Pair) -> usize) -> Option<(usize, Vec<Pair>, usize)> {
        self.must()
            .map(|(position, pairs)| {
                let many = pairs.iter().map(|pair| count(*pair)).sum();
                (position, pairs, many)
            })
            .min_by_key(|(_, _, many)| *many)
    }

    /// The pairs of the term at a position that [`Self::rarest`] gave.
    pub(super) fn pairs_at(&self, position: usize) -> Vec<Pair> {
        self.must().find(|(at, _)| *at == position).map(|(_, pairs)| pairs).unwrap_or_default()
    }
}

/// What a set of labels can be found by: its pairs and its keys.
pub(super) fn handles(labels: &[Pair]) -> impl Iterator<Item = Pair> + '_ {
    labels.iter().flat_map(|(key, value)| [(*key, *value), (*key, NONE)])
}

/// In which namespaces a selector looks.
#[derive(Debug)]
pub(super) enum Home {
    Own(u32),
    Everywhere,
    Matching(Selector),
}

/// Which workloads a policy or a peer is about.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) home: Home,
    pub(super) workloads: Selector,
    /// By which of its terms it is found; chosen when it is registered.
    pub(super) handle: Handle,
}

/// The term by which a scope is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handle {
    /// It has none that asks for a pair.
    Nothing,
    /// The workload's labels must satisfy the term at this position.
    Workloads(usize),
    /// The namespace's labels must.
    Namespaces(usize),
}

/// Where a scope is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Anchor {
    Everything,
    Namespace(u32),
    NamespaceAnd(u32, Pair),
    Workloads(Pair),
    NamespaceLabels(Pair),
}

impl Scope {
    pub(super) fn let_go(&self, texts: &mut Texts) {
        self.workloads.let_go(texts);
        match &self.home {
            Home::Own(_) | Home::Everywhere => {}
            Home::Matching(selector) => selector.let_go(texts),
        }
    }

    /// Whether it is about workloads of this kind.
    pub(super) fn matches(&self, namespace: u32, namespace_labels: &[Pair], labels: &[Pair]) -> bool {
        let at_home = match &self.home {
            Home::Own(own) => *own == namespace,
            Home::Everywhere => true,
            Home::Matching(selector) => selector.matches(namespace_labels),
        };
        at_home && self.workloads.matches(labels)
    }

    /// Where it is registered, and looked for by what it may be about.
    pub(super) fn anchors(&self) -> Vec<Anchor> {
        match (self.handle, &self.home) {
            (Handle::Nothing, Home::Own(own)) => vec![Anchor::Namespace(*own)],
            (Handle::Nothing, Home::Everywhere | Home::Matching(_)) => vec![Anchor::Everything],
            (Handle::Workloads(at), Home::Own(own)) => {
                self.workloads.pairs_at(at).into_iter().map(|pair| Anchor::NamespaceAnd(*own, pair)).collect()
            }
            (Handle::Workloads(at), Home::Everywhere | Home::Matching(_)) => {
                self.workloads.pairs_at(at).into_iter().map(Anchor::Workloads).collect()
            }
            (Handle::Namespaces(at), Home::Matching(selector)) => selector.pairs_at(at).into_iter().map(Anchor::NamespaceLabels).collect(),
            // Only a selector of namespaces has a term about them.
            (Handle::Namespaces(_), Home::Own(_) | Home::Everywhere) => vec![Anchor::Everything],
        }
    }
}

/// Who is registered where.
#[derive(Debug, Default)]
pub(super) struct Anchors(IdMap<Anchor, Vec<u32>>);

impl Anchors {
    pub(super) fn register(&mut self, scope: &Scope, who: u32) {
        for anchor in scope.anchors() {
            self.0.entry(anchor).or_default().push(who);
        }
    }

    pub(super) fn unregister(&mut self, scope: &Scope, who: u32) {
        for anchor in scope.anchors() {
            if let Some(list) = self.0.get_mut(&anchor) {
                if let Some(at) = list.iter().position(|it| *it == who) {
                    list.swap_remove(at);
                }
                if list.is_empty() {
                    self.0.remove(&anchor);
                }
            }
        }
    }

    /// Everybody who may be about workloads of this kind, each once.
    pub(super) fn candidates<'a>(
        &'a self,
        namespace: u32,
        namespace_labels: &'a [Pair],
        labels: &'a [Pair],
    ) -> impl Iterator<Item = u32> + 'a {
        let here = handles(labels).flat_map(move |pair| [Anchor::NamespaceAnd(namespace, pair), Anchor::Workloads(pair)]);
        let around = handles(namespace_labels).map(Anchor::NamespaceLabels);
        let always = [Anchor::Everything, Anchor::Namespace(namespace)];
        always.into_iter().chain(here).chain(around).filter_map(|anchor| self.0.get(&anchor)).flatten().copied()
    }
}
