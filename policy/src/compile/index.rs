//! Finds the workloads that a selector matches without asking every workload: by the label pairs that it must have.

use super::addresses::takes_part;
use crate::model::{Inventory, LabelSelector, Labels, NamespaceName, NamespaceScope, Operator, Workload};
use std::collections::{BTreeMap, HashMap};

/// The workloads that can be subject or peer, by namespace and by label pair.
pub(crate) struct Index<'a> {
    inventory: &'a Inventory,
    by_namespace: BTreeMap<&'a NamespaceName, Vec<&'a Workload>>,
    by_pair: HashMap<&'a str, HashMap<&'a str, Vec<&'a Workload>>>,
    all: Vec<&'a Workload>,
    no_labels: Labels,
}

impl<'a> Index<'a> {
    pub(crate) fn of(inventory: &'a Inventory) -> Self {
        let all: Vec<&Workload> = inventory.workloads.values().filter(|it| takes_part(it)).collect();
        let mut by_namespace: BTreeMap<&NamespaceName, Vec<&Workload>> = BTreeMap::new();
        let mut by_pair: HashMap<&str, HashMap<&str, Vec<&Workload>>> = HashMap::new();
        for workload in &all {
            by_namespace.entry(&workload.namespace).or_default().push(workload);
            for (key, value) in &workload.labels.0 {
                by_pair.entry(key).or_default().entry(value).or_default().push(workload);
            }
        }
        Self { inventory, by_namespace, by_pair, all, no_labels: Labels::default() }
    }

    /// The workloads that a peer of a policy in `own` names, in id order.
    pub(crate) fn peers(&self, own: &NamespaceName, namespaces: &NamespaceScope, workloads: &LabelSelector) -> Vec<&'a Workload> {
        match namespaces {
            NamespaceScope::Own => self.in_namespace(own, workloads),
            NamespaceScope::Matching(selector) if selector.is_everything() => self.narrowest(workloads, &self.all),
            NamespaceScope::Matching(selector) => {
                let mut matching: Vec<&Workload> = self
                    .by_namespace
                    .keys()
                    .filter(|name| selector.matches(self.namespace_labels(name)))
                    .flat_map(|name| self.in_namespace(name, workloads))
                    .collect();
                matching.sort_by(|one, other| one.id.cmp(&other.id));
                matching
            }
        }
    }

    /// The workloads of one namespace that match, in id order.
    pub(crate) fn in_namespace(&self, namespace: &NamespaceName, selector: &LabelSelector) -> Vec<&'a Workload> {
        let Some(members) = self.by_namespace.get(namespace) else { return Vec::new() };
        let mut matching = self.narrowest(selector, members);
        matching.retain(|workload| workload.namespace == *namespace);
        matching
    }

    /// A namespace that nobody declared has no labels.
    pub(crate) fn namespace_labels(&self, name: &NamespaceName) -> &Labels {
        self.inventory.namespaces.get(name).map_or(&self.no_labels, |namespace| &namespace.labels)
    }

    fn narrowest(&self, selector: &LabelSelector, otherwise: &[&'a Workload]) -> Vec<&'a Workload> {
        let exact = selector.match_labels.iter().map(|(key, value)| self.with_pair(key, value));
        let single = selector.match_expressions.iter().filter_map(|requirement| match &requirement.operator {
            Operator::In(values) if values.len() == 1 => values.first().map(|value| self.with_pair(&requirement.key, value)),
            Operator::In(_) | Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
        });
        let candidates = exact.chain(single).min_by_key(|list| list.len()).filter(|list| list.len() < otherwise.len()).unwrap_or(otherwise);
        candidates.iter().copied().filter(|workload| selector.matches(&workload.labels)).collect()
    }

    fn with_pair(&self, key: &str, value: &str) -> &[&'a Workload] {
        self.by_pair.get(key).and_then(|values| values.get(value)).map(Vec::as_slice).unwrap_or_default()
    }
}
