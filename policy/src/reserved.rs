//! Labels that only the controller's own rules give. Whoever may set a workload's labels (a team's manifest, a container's creator) could
//! otherwise make it a member of whatever policy is about; what a workload says below the reserved prefix is passed over and told.

use crate::model::{Inventory, LabelSelector, Labels, Workload, WorkloadId};
use std::collections::{BTreeMap, BTreeSet};

/// What keys of reserved labels begin with.
pub const RESERVED_PREFIX: &str = "reserved.firebreak.dev/";

/// Gives labels to the workloads that it is about: all that is asked must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRule {
    /// Its name; of two rules that give one key, the first by name goes first.
    pub name: String,
    /// In which namespaces, by their labels. A namespace that nobody declared has none.
    pub namespaces: LabelSelector,
    /// Which workloads, by their own labels without the reserved ones: rules do not build on each other.
    pub workloads: LabelSelector,
    /// On which nodes, by their labels. A node that nobody declared has none.
    pub nodes: LabelSelector,
    /// From which images; empty asks for none.
    pub images: Vec<ImagePattern>,
    /// What they get; every key begins with [`RESERVED_PREFIX`].
    pub labels: Labels,
}

/// An image as it was asked for (`registry.example/shop/db:1.2`), or how such a name begins, with `*` behind it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImagePattern(pub String);

impl ImagePattern {
    /// Whether an image's name is or begins so.
    pub fn matches(&self, image: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => image.starts_with(beginning),
            None => self.0 == image,
        }
    }
}

/// What is known of a workload beside itself.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// The labels of its namespace.
    pub namespace: &'a Labels,
    /// The labels of its node.
    pub node: &'a Labels,
    /// The images that it is made of; a rule that asks for images asks for all of them. Empty where nobody knows: no such rule is about it.
    pub images: &'a [String],
}

/// The labels that select a workload, and what is to be told of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Its own without reserved ones, and those that rules give.
    pub labels: Labels,
    /// Its own labels below the reserved prefix: passed over.
    pub ignored: BTreeSet<String>,
    /// Keys to which several rules give different values, with the names of those that were passed over.
    pub contested: BTreeMap<String, BTreeSet<String>>,
}

/// Works out the labels of a workload. Rules in the order of their names.
pub fn given<'r>(rules: impl IntoIterator<Item = &'r LabelRule>, workload: &Workload, around: Around<'_>) -> Given {
    let (reserved, own): (BTreeMap<_, _>, BTreeMap<_, _>) =
        workload.labels.0.iter().map(|(key, value)| (key.clone(), value.clone())).partition(|(key, _)| key.starts_with(RESERVED_PREFIX));
    let own = Labels(own);
    let mut given = Given { labels: own.clone(), ignored: reserved.into_keys().collect(), contested: BTreeMap::new() };
    for rule in rules.into_iter().filter(|rule| rule.is_about(&own, around)) {
        for (key, value) in &rule.labels.0 {
            match given.labels.get(key) {
                None => drop(given.labels.0.insert(key.clone(), value.clone())),
                Some(first) if first == value => {}
                Some(_) => drop(given.contested.entry(key.clone()).or_default().insert(rule.name.clone())),
            }
        }
    }
    given
}

impl LabelRule {
    fn is_about(&self, own: &Labels, around: Around<'_>) -> bool {
        let by_image = || !around.images.is_empty() && around.images.iter().all(|image| self.images.iter().any(|it| it.matches(image)));
        self.namespaces.matches(around.namespace)
            && self.workloads.matches(own)
            && self.nodes.matches(around.node)
            && (self.images.is_empty() || by_image())
    }
}

/// Gives every workload of an inventory its labels, and says of which there is something to tell.
pub fn apply(
    rules: &BTreeMap<String, LabelRule>,
    inventory: &mut Inventory,
    images: &BTreeMap<WorkloadId, Vec<String>>,
) -> BTreeMap<WorkloadId, Given> {
    let none = Labels::default();
    let mut told = BTreeMap::new();
    let ids: Vec<WorkloadId> = inventory.workloads.keys().cloned().collect();
    for id in &ids {
        let Some(workload) = inventory.workloads.get(id) else { continue };
        let around = Around {
            namespace: inventory.namespaces.get(&workload.namespace).map_or(&none, |it| &it.labels),
            node: inventory.nodes.get(&id.node).map_or(&none, |it| &it.labels),
            images: images.get(id).map(Vec::as_slice).unwrap_or_default(),
        };
        let given = given(rules.values(), workload, around);
        if workload.labels != given.labels
            && let Some(workload) = inventory.workloads.get_mut(id)
        {
            workload.labels = given.labels.clone();
        }
        if !given.ignored.is_empty() || !given.contested.is_empty() {
            told.insert(id.clone(), given);
        }
    }
    told
}
