//! What everybody said: the stored objects and what agents reported, each by its own word. Policies and inventory are worked out of it.

use super::published::{Published, Target};
use crate::store::{ChangeResult, Committed, Loaded, ObjectKey, StoredObject};
use firebreak_manifest::Object;
use firebreak_policy::index::Index;
use firebreak_policy::model::{
    AddressGroup, ContainerId, Inventory, Labels, Namespace, NamespaceName, NetworkName, Node, NodeName, Policy, PolicyKey, PolicyKind,
    PolicySet, Revision, TieredPolicy, Workload, WorkloadId,
};
use firebreak_policy::node_state::NodeState;
use firebreak_policy::reserved::{self, Around, Given, LabelRule, RESERVED_PREFIX};
use firebreak_policy::{Compiled, SharedMap};
use firebreak_proto::hash::Hashes;
use firebreak_proto::v1;
use firebreak_proto::workload::{DeclaredWorkload, Location, ReportedWorkload};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Everything that was said, and what it comes to: kept up word by word, so that a publication costs what changed.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// The stored objects, each converted once.
    objects: BTreeMap<ObjectKey, Kept>,
    /// The objects that say that a workload is there. The last by key counts.
    declaring: BTreeMap<WorkloadId, BTreeSet<ObjectKey>>,
    /// The objects for which a node's agent is to look.
    sought: BTreeMap<NodeName, BTreeSet<ObjectKey>>,
    node_objects: BTreeMap<NodeName, Node>,
    /// By name.
    rules: BTreeMap<String, LabelRule>,
    /// Workloads about whose labels there is something to tell.
    labels: SharedMap<WorkloadId, Given>,
    /// What LabelRules may say something else about than when they were asked.
    stale: Stale,
    reported: SharedMap<NodeName, Reported>,
    /// Stored objects whose newest version this program cannot read, with the reason. The last version that it read stays in force.
    unreadable: Arc<BTreeMap<ObjectKey, String>>,
    /// Workloads that a node reported to an earlier version of this program and that this one cannot read, with the reason.
    unread: BTreeMap<WorkloadId, String>,
    /// Nodes that were deleted, with the revision that says so: what was heard of them before is not heard again.
    forgotten: Arc<BTreeMap<NodeName, Revision>>,
    policies: PolicySet,
    inventory: Inventory,
    index: Index<Hashes>,
    states: SharedMap<NodeName, NodeState>,
    targets: SharedMap<NodeName, Target>,
    declared: SharedMap<NodeName, Vec<DeclaredWorkload>>,
    /// Nodes to which other workloads may be declared than in the last publication.
    redeclared: BTreeSet<NodeName>,
    publications: u64,
}

/// Workloads whose labels have to be worked out again.
#[derive(Debug, Default)]
struct Stale {
    all: bool,
    namespaces: BTreeSet<NamespaceName>,
    nodes: BTreeSet<NodeName>,
}

/// What a stored object is about.
#[derive(Debug)]
enum Kept {
    LabelRule(Box<LabelRule>),
    Namespace(Namespace),
    Node(Node),
    AddressGroup(Arc<AddressGroup>),
    Policy(Arc<Policy>),
    Tiered(Arc<TieredPolicy>),
    Workload {
        workload: Arc<Workload>,
        /// Whether the object itself says that the workload is there.
        is_there: bool,
        /// The images that it is made of, where the object says so.
        images: Option<Vec<String>>,
        /// What its node's agent is to look for.
        sought: Option<Box<DeclaredWorkload>>,
    },
}

/// What one node's agent reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reported {
    pub(crate) workloads: BTreeMap<ContainerId, Arc<ReportedWorkload>>,
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) labels: Labels,
    pub(crate) report: Option<v1::NodeReport>,
    /// The ticket of the last report of workloads; 0 while none was heard since this process began.
    pub(crate) heard: u64,
}

impl Sources {
    /// What the store holds at start.
    pub(crate) fn of(loaded: &Loaded, cluster_networks: Vec<IpNet>) -> Self {
        let mut sources = Self::default();
        sources.index.set_cluster_networks(&cluster_networks);
        sources.policies.cluster_networks = cluster_networks;
        for object in &loaded.objects {
            sources.put(object);
        }
        for (name, record) in &loaded.nodes {
            let mut reported = Reported::default();
            if let Some(report) = &record.report {
                reported.take_report(report.clone());
                // What was true of a table before this process began is not known to be true now.
                if let Some(report) = &mut reported.report {
                    report.enforcing = false;
                }
            }
            for (container, workload) in &record.workloads {
                match ReportedWorkload::try_from(workload.clone()) {
                    Ok(workload) => drop(reported.workloads.insert(container.clone(), Arc::new(workload))),
                    Err(refusal) => {
                        let id = WorkloadId { node: name.clone(), container: container.clone() };
                        sources.unread.insert(id, refusal.to_string());
                    }
                }
            }
            let containers: Vec<ContainerId> = reported.workloads.keys().cloned().collect();
            sources.reported.insert(name.clone(), reported);
            sources.review_node(name);
            containers.into_iter().for_each(|container| sources.review_workload(&WorkloadId { node: name.clone(), container }));
        }
        sources
    }

    fn put(&mut self, stored: &StoredObject) {
        match Object::from_json(stored.json.as_bytes()).and_then(|object| Kept::of(&object)) {
            Ok(kept) => {
                if self.unreadable.contains_key(&stored.key) {
                    Arc::make_mut(&mut self.unreadable).remove(&stored.key);
                }
                self.replace(&stored.key, Some(kept));
            }
            Err(errors) => {
                tracing::error!(object = %stored.key, reason = %errors, "stored object cannot be read by this version; the last good version stays in force");
                Arc::make_mut(&mut self.unreadable).insert(stored.key.clone(), errors.to_string());
            }
        }
    }

    /// Takes in what an object says now, in place of what it said; `None` when it is deleted.
    fn replace(&mut self, key: &ObjectKey, now: Option<Kept>) {
        let withdrawn = self.objects.remove(key).and_then(|before| self.withdraw(key, before));
        let declared = now.and_then(|now| self.state(key, now));
        // Reviewed once for both: a workload that an object goes on to declare never goes.
        let ids: BTreeSet<WorkloadId> = withdrawn.into_iter().chain(declared).collect();
        ids.iter().for_each(|id| self.review_workload(id));
    }

    /// Takes in what an object says; gives the workload that it may be about.
    fn state(&mut self, key: &ObjectKey, now: Kept) -> Option<WorkloadId> {
        let mut about = None;
        match &now {
            Kept::LabelRule(rule) => {
                self.rules.insert(rule.name.clone(), (**rule).clone());
                self.stale.all = true;
            }
            Kept::Namespace(namespace) => {
                self.stale.namespaces.insert(namespace.name.clone());
                self.index.put_namespace(namespace);
                self.inventory.namespaces.insert(namespace.name.clone(), namespace.clone());
            }
            Kept::Node(node) => {
                self.node_objects.insert(node.name.clone(), node.clone());
                self.review_node(&node.name);
            }
            Kept::AddressGroup(group) => {
                self.index.put_address_group(group.clone());
                self.policies.address_groups.insert_shared(group.name.clone(), group.clone());
            }
            Kept::Policy(policy) => {
                self.index.put_policy(policy.clone());
                self.policies.policies.insert_shared(policy.key.clone(), policy.clone());
            }
            Kept::Tiered(policy) => {
                self.index.put_tiered(policy.clone());
                self.policies.tiered.insert_shared(policy.key.clone(), policy.clone());
            }
            Kept::Workload { workload, is_there, images: _, sought } => {
                let id = workload.id.clone();
                if sought.is_some() {
                    self.sought.entry(id.node.clone()).or_default().insert(key.clone());
                    self.redeclared.insert(id.node.clone());
                }
                if *is_there {
                    self.declaring.entry(id.clone()).or_default().insert(key.clone());
                }
                about = Some(id);
            }
        }
        self.objects.insert(key.clone(), now);
        about
    }

    /// Takes back what an object said; gives the workload that it may have been about.
    fn withdraw(&mut self, key: &ObjectKey, before: Kept) -> Option<WorkloadId> {
        match before {
            Kept::LabelRule(rule) => {
                self.rules.remove(&rule.name);
                self.stale.all = true;
            }
            Kept::Namespace(namespace) => {
                self.stale.namespaces.insert(namespace.name.clone());
                self.index.remove_namespace(&namespace.name);
                self.inventory.namespaces.remove(&namespace.name);
            }
            Kept::Node(node) => {
                self.node_objects.remove(&node.name);
                self.review_node(&node.name);
            }
            Kept::AddressGroup(group) => {
                self.index.remove_address_group(&group.name);
                self.policies.address_groups.remove(&group.name);
            }
            Kept::Policy(policy) => {
                self.index.remove_policy(&policy.key);
                self.policies.policies.remove(&policy.key);
            }
            Kept::Tiered(policy) => {
                self.index.remove_tiered(&policy.key);
                self.policies.tiered.remove(&policy.key);
            }
            Kept::Workload { workload, is_there: _, images: _, sought: _ } => {
                let id = &workload.id;
                if take_out(&mut self.sought, &id.node, key) {
                    self.redeclared.insert(id.node.clone());
                }
                take_out(&mut self.declaring, id, key);
                return Some(id.clone());
            }
        }
        None
    }

    /// Works out what is known of a workload. What an agent sees goes before what an object says of it; the labels and ports of one that it looked for
    /// by an object are the object's.
    fn review_workload(&mut self, id: &WorkloadId) {
        let reported = self.reported.get(&id.node).and_then(|node| node.workloads.get(&id.container));
        let declared = || self.declaring.get(id).into_iter().flatten().rev().filter_map(|key| self.objects.get(key)?.workload());
        let reworded = reported.and_then(|reported| self.reworded(reported));
        let said = match reported {
            Some(reported) => Some(Said::Reported(reworded.as_ref().unwrap_or(&reported.workload))),
            None => declared().next().map(|(workload, _)| Said::Declared(workload)),
        };
        let given = said.as_ref().and_then(|said| {
            let of_report = reported.map(|it| Some(it.image.clone()).filter(|image| !image.is_empty()).into_iter().collect());
            self.given(said.workload(), || of_report.or_else(|| declared().find_map(|(_, images)| images.cloned())).unwrap_or_default())
        });
        let known = self.inventory.workloads.get_shared(id);
        let labels = given.as_ref().map(|given| &given.labels);
        let now = said.and_then(|said| match said.labelled(labels, known) {
            Some(now) => Some(now),
            None => known.cloned(),
        });
        let told = given.filter(|given| !given.ignored.is_empty() || !given.contested.is_empty());
        match told {
            Some(told) if self.labels.get(id) == Some(&told) => {}
            Some(told) => drop(self.labels.insert(id.clone(), told)),
            None => drop(self.labels.remove(id)),
        }
        let known = self.inventory.workloads.get_shared(id);
        match now {
            Some(now) if known.is_some_and(|known| Arc::ptr_eq(known, &now)) => {}
            Some(now) => {
                self.index.put_workload(now.clone());
                self.inventory.workloads.insert_shared(id.clone(), now);
            }
            None if known.is_none() => {}
            None => {
                self.index.remove_workload(id);
                self.inventory.workloads.remove(id);
            }
        }
    }

    /// A workload with the labels and ports that the object by which its agent looked for it has by now, which the agent need not have heard of;
    /// `None` when these are what it reported. An object that says something else of where the workload is waits for the agent: what runs where it
    /// was must not be given the labels of what is to be elsewhere.
    fn reworded(&self, reported: &ReportedWorkload) -> Option<Workload> {
        let id = &reported.workload.id;
        let (namespace, name) = id.container.as_str().split_once('.').filter(|_| !reported.declared_place.is_empty())?;
        let key = ObjectKey::new("Workload", namespace, name);
        let Kept::Workload { workload, sought: Some(sought), .. } = self.objects.get(&key)? else { return None };
        if workload.id != *id || sought.place() != reported.declared_place {
            return None;
        }
        let DeclaredWorkload { labels, named_ports, published_ports, .. } = &**sought;
        let seen = &reported.workload;
        let is_same = (&seen.labels, &seen.named_ports, &seen.published_ports) == (labels, named_ports, published_ports);
        (!is_same).then(|| Workload {
            labels: labels.clone(),
            named_ports: named_ports.clone(),
            published_ports: published_ports.clone(),
            ..seen.clone()
        })
    }

    /// The labels that rules give a workload, where they or the reserved prefix make a difference to any workload.
    fn given(&self, workload: &Workload, images: impl FnOnce() -> Vec<String>) -> Option<Given> {
        if self.rules.is_empty() && !workload.labels.0.keys().any(|key| key.starts_with(RESERVED_PREFIX)) {
            return None;
        }
        let (none, images) = (Labels::default(), images());
        let around = Around {
            namespace: self.inventory.namespaces.get(&workload.namespace).map_or(&none, |it| &it.labels),
            node: self.inventory.nodes.get(&workload.id.node).map_or(&none, |it| &it.labels),
            images: &images,
        };
        Some(reserved::given(self.rules.values(), workload, around))
    }

    /// Works out labels again where what rules ask for has changed.
    fn relabel(&mut self) {
        let Stale { all, namespaces, nodes } = std::mem::take(&mut self.stale);
        if !all && self.rules.is_empty() {
            return;
        }
        let is_meant = |id: &WorkloadId, workload: &Workload| all || namespaces.contains(&workload.namespace) || nodes.contains(&id.node);
        let all: Vec<WorkloadId> = match all || !namespaces.is_empty() || !nodes.is_empty() {
            true => self.inventory.workloads.iter().filter(|(id, it)| is_meant(id, it)).map(|(id, _)| id.clone()).collect(),
            false => Vec::new(),
        };
        all.iter().for_each(|id| self.review_workload(id));
    }

    /// Works out what is known of a node.
    fn review_node(&mut self, name: &NodeName) {
        let (object, reported) = (self.node_objects.get(name), self.reported.get(name));
        if object.is_none() && reported.is_none() {
            self.stale.nodes.insert(name.clone());
            self.index.remove_node(name);
            self.inventory.nodes.remove(name);
            return;
        }
        let empty = || Node { name: name.clone(), labels: Labels::default(), addresses: Vec::new() };
        let mut node = object.cloned().unwrap_or_else(empty);
        if let Some(reported) = reported {
            // What a Node object says of a label goes before what the agent's configuration says.
            for (key, value) in &reported.labels.0 {
                node.labels.0.entry(key.clone()).or_insert_with(|| value.clone());
            }
            node.addresses.extend(&reported.addresses);
            node.addresses.sort_unstable();
            node.addresses.dedup();
        }
        if self.inventory.nodes.get(name) == Some(&node) {
            return;
        }
        if self.inventory.nodes.get(name).map(|it| &it.labels) != Some(&node.labels) {
            self.stale.nodes.insert(name.clone());
        }
        let node = Arc::new(node);
        self.index.put_node(node.clone());
        self.inventory.nodes.insert_shared(name.clone(), node);
    }

    /// Takes in one revision of the store.
    pub(crate) fn commit(&mut self, committed: &Committed) {
        for change in &committed.changes {
            match change.result {
                ChangeResult::Created | ChangeResult::Configured => self.put(&change.object),
                ChangeResult::Deleted => {
                    self.replace(&change.object.key, None);
                    if self.unreadable.contains_key(&change.object.key) {
                        Arc::make_mut(&mut self.unreadable).remove(&change.object.key);
                    }
                }
                ChangeResult::Unchanged | ChangeResult::NotFound => {}
            }
        }
        for node in &committed.forgotten_nodes {
            self.unread.retain(|id, _| id.node != *node);
            if let Some(reported) = self.reported.remove(node) {
                self.review_node(node);
                for container in reported.workloads.keys() {
                    self.review_workload(&WorkloadId { node: node.clone(), container: container.clone() });
                }
            }
            Arc::make_mut(&mut self.forgotten).insert(node.clone(), committed.revision);
        }
    }

    /// Takes in a report of workloads.
    pub(crate) fn report(
        &mut self,
        node: &NodeName,
        upserts: Vec<Arc<ReportedWorkload>>,
        removed: &[ContainerId],
        full: bool,
        ticket: u64,
    ) {
        self.meet(node);
        let Some(reported) = self.reported.get_mut(node) else { return };
        reported.heard = ticket;
        let is_said =
            |container: &ContainerId| removed.contains(container) || upserts.iter().any(|it| it.workload.id.container == *container);
        self.unread.retain(|id, _| id.node != *node || !(full || is_said(&id.container)));
        let mut touched: BTreeSet<ContainerId> = removed.iter().cloned().collect();
        if full {
            touched.extend(std::mem::take(&mut reported.workloads).into_keys());
        }
        for container in removed {
            reported.workloads.remove(container);
        }
        touched.extend(upserts.iter().map(|it| it.workload.id.container.clone()));
        reported.workloads.extend(upserts.into_iter().map(|it| (it.workload.id.container.clone(), it)));
        for container in touched {
            self.review_workload(&WorkloadId { node: node.clone(), container });
        }
    }

    /// Takes in a node's word about itself.
    pub(crate) fn report_node(&mut self, node: &NodeName, report: v1::NodeReport) {
        self.meet(node);
        if let Some(reported) = self.reported.get_mut(node) {
            reported.take_report(report);
        }
        self.review_node(node);
    }

    /// A node of which nothing was heard yet.
    pub(crate) fn meet(&mut self, node: &NodeName) {
        if !self.reported.contains_key(node) {
            self.reported.insert(node.clone(), Reported::default());
            self.review_node(node);
        }
    }

    /// Whether something of a node was heard before the node was deleted, `at` being a revision that the store had before it was kept.
    pub(crate) fn is_stale(&self, node: &NodeName, at: Revision) -> bool {
        self.forgotten.get(node).is_some_and(|forgotten| at < *forgotten)
    }

    pub(crate) fn unreadable(&self) -> &BTreeMap<ObjectKey, String> {
        &self.unreadable
    }

    pub(crate) fn unread(&self) -> &BTreeMap<WorkloadId, String> {
        &self.unread
    }

    /// This moment. Costs what changed since the last, and a reference count for each piece of what did not.
    pub(crate) fn publish(&mut self, epoch: &Arc<str>, revision: Revision) -> Published {
        self.relabel();
        self.index.settle();
        let mut changed = Vec::new();
        for node in self.index.take_changed().into_keys() {
            let Some(holding) = self.index.node(&node) else {
                self.targets.remove(&node);
                self.states.remove(&node);
                continue;
            };
            let target = Target::held(holding);
            if self.targets.get(&node).is_some_and(|before| before.hash == target.hash) {
                continue;
            }
            self.states.insert_shared(node.clone(), target.state.clone());
            self.targets.insert(node.clone(), target);
            changed.push(node);
        }
        let redeclared: Vec<NodeName> = std::mem::take(&mut self.redeclared).into_iter().collect();
        redeclared.iter().for_each(|node| self.declare(node));
        let (conflicts, problems) = (self.index.running().conflicts().clone(), self.index.written().problems().clone());
        self.publications += 1;
        Published {
            number: self.publications,
            epoch: Arc::clone(epoch),
            revision,
            policies: Arc::new(self.policies.clone()),
            inventory: Arc::new(self.inventory.clone()),
            compiled: Arc::new(Compiled::assembled(self.states.clone(), conflicts, problems)),
            targets: self.targets.clone(),
            declared: self.declared.clone(),
            reported: self.reported.clone(),
            unreadable: self.unreadable.clone(),
            labels: self.labels.clone(),
            forgotten: self.forgotten.clone(),
            changed,
            redeclared,
        }
    }

    fn declare(&mut self, node: &NodeName) {
        let objects = self.sought.get(node).into_iter().flatten().filter_map(|key| self.objects.get(key));
        let list: Vec<DeclaredWorkload> = objects
            .filter_map(|kept| match kept {
                Kept::Workload { sought, .. } => sought.as_deref().cloned(),
                Kept::LabelRule(_) | Kept::Namespace(_) | Kept::Node(_) | Kept::AddressGroup(_) | Kept::Policy(_) | Kept::Tiered(_) => None,
            })
            .collect();
        match list.is_empty() {
            true => drop(self.declared.remove(node)),
            false => drop(self.declared.insert(node.clone(), list)),
        }
    }

    /// Policies and inventory, worked out from nothing.
    #[cfg(test)]
    pub(crate) fn assembled(&self) -> (PolicySet, Inventory, BTreeMap<WorkloadId, Given>) {
        let mut images = BTreeMap::new();
        let mut policies = PolicySet { cluster_networks: self.policies.cluster_networks.clone(), ..PolicySet::default() };
        let mut inventory = Inventory::default();
        for kept in self.objects.values() {
            match kept {
                Kept::Namespace(it) => drop(inventory.namespaces.insert(it.name.clone(), it.clone())),
                Kept::Node(it) => drop(inventory.nodes.insert(it.name.clone(), it.clone())),
                Kept::AddressGroup(it) => drop(policies.address_groups.insert_shared(it.name.clone(), it.clone())),
                Kept::Policy(it) => drop(policies.policies.insert_shared(it.key.clone(), it.clone())),
                Kept::Tiered(it) => drop(policies.tiered.insert_shared(it.key.clone(), it.clone())),
                Kept::LabelRule(_) => {}
                Kept::Workload { workload, is_there: true, images: some, .. } => {
                    images.extend(some.clone().map(|some| (workload.id.clone(), some)));
                    drop(inventory.workloads.insert_shared(workload.id.clone(), workload.clone()));
                }
                Kept::Workload { is_there: false, .. } => {}
            }
        }
        for (name, reported) in &self.reported {
            let empty = || Node { name: name.clone(), labels: Labels::default(), addresses: Vec::new() };
            let node = inventory.nodes.get_or_insert_with(name, empty);
            for (key, value) in &reported.labels.0 {
                node.labels.0.entry(key.clone()).or_insert_with(|| value.clone());
            }
            node.addresses.extend(&reported.addresses);
            node.addresses.sort_unstable();
            node.addresses.dedup();
            for workload in reported.workloads.values() {
                let image = Some(workload.image.clone()).filter(|image| !image.is_empty());
                images.insert(workload.workload.id.clone(), image.into_iter().collect());
                let mut seen = workload.workload.clone();
                let by_object = self.objects.values().filter_map(|kept| match kept {
                    Kept::Workload { sought: Some(sought), workload, .. } if workload.id == seen.id => Some(sought),
                    Kept::Workload { .. }
                    | Kept::LabelRule(_)
                    | Kept::Namespace(_)
                    | Kept::Node(_)
                    | Kept::AddressGroup(_)
                    | Kept::Policy(_)
                    | Kept::Tiered(_) => None,
                });
                if let Some(DeclaredWorkload { labels, named_ports, published_ports, .. }) =
                    by_object.map(|sought| &**sought).find(|sought| sought.place() == workload.declared_place)
                {
                    (seen.labels, seen.named_ports, seen.published_ports) = (labels.clone(), named_ports.clone(), published_ports.clone());
                }
                inventory.workloads.insert(seen.id.clone(), seen);
            }
        }
        let told = reserved::apply(&self.rules, &mut inventory, &images);
        (policies, inventory, told)
    }
}

/// Takes a key off the list of somebody; `true` when it was there.
fn take_out<K: Ord>(lists: &mut BTreeMap<K, BTreeSet<ObjectKey>>, of: &K, key: &ObjectKey) -> bool {
    let Some(list) = lists.get_mut(of) else { return false };
    let was = list.remove(key);
    if list.is_empty() {
        lists.remove(of);
    }
    was
}

impl Reported {
    fn take_report(&mut self, report: v1::NodeReport) {
        let addresses = report.addresses.iter().filter_map(|bytes| firebreak_proto::convert::address_from_wire(bytes, "addresses").ok());
        self.addresses = addresses.collect();
        self.labels = report.labels.clone().into_iter().collect();
        self.report = Some(report);
    }
}

/// What is said of a workload, by whom it is best known.
enum Said<'a> {
    Reported(&'a Workload),
    Declared(&'a Arc<Workload>),
}

impl Said<'_> {
    fn workload(&self) -> &Workload {
        match self {
            Self::Reported(workload) => workload,
            Self::Declared(workload) => workload,
        }
    }

    /// The workload with these labels; `None` when that is what is known of it already.
    fn labelled(&self, labels: Option<&Labels>, known: Option<&Arc<Workload>>) -> Option<Arc<Workload>> {
        let said = self.workload();
        match labels.filter(|labels| **labels != said.labels) {
            None if known.is_some_and(|known| **known == *said) => None,
            None => Some(match self {
                Self::Reported(workload) => Arc::new((*workload).clone()),
                Self::Declared(workload) => Arc::clone(workload),
            }),
            Some(labels) => {
                let now = Workload { labels: labels.clone(), ..said.clone() };
                (known.is_none_or(|known| **known != now)).then(|| Arc::new(now))
            }
        }
    }
}

impl Kept {
    /// A workload that the object declares, and its images where the object says them.
    fn workload(&self) -> Option<(&Arc<Workload>, Option<&Vec<String>>)> {
        match self {
            Self::Workload { workload, images, .. } => Some((workload, images.as_ref())),
            Self::LabelRule(_) | Self::Namespace(_) | Self::Node(_) | Self::AddressGroup(_) | Self::Policy(_) | Self::Tiered(_) => None,
        }
    }

    fn of(object: &Object) -> Result<Self, firebreak_manifest::Errors> {
        Ok(match object {
            Object::Namespace(namespace) => Self::Namespace(namespace.to_model()?),
            Object::Node(node) => Self::Node(node.to_model()?),
            Object::AddressGroup(group) => Self::AddressGroup(Arc::new(group.to_model()?)),
            Object::NetworkPolicy(policy) => Self::Policy(Arc::new(policy.to_policy()?)),
            Object::SegmentPolicy(policy) => Self::Policy(Arc::new(policy.to_policy()?)),
            Object::ClusterSegmentPolicy(policy) => Self::Tiered(Arc::new(policy.to_policy()?)),
            Object::AdminNetworkPolicy(policy) => Self::Tiered(Arc::new(policy.to_policy()?)),
            Object::BaselineAdminNetworkPolicy(policy) => Self::Tiered(Arc::new(policy.to_policy()?)),
            Object::ClusterNetworkPolicy(policy) => Self::Tiered(Arc::new(policy.to_policy()?)),
            Object::LabelRule(rule) => Self::LabelRule(Box::new(rule.to_model()?)),
            Object::Pod(pod) => {
                Self::Workload { workload: Arc::new(pod.to_model()?), is_there: true, images: Some(pod.images()), sought: None }
            }
            Object::Workload(manifest) => {
                let workload = manifest.to_model()?;
                let sought = sought(manifest, &workload).map(Box::new);
                // Without addresses of its own it lives when its agent has found it.
                Self::Workload { is_there: !workload.addresses.is_empty(), workload: Arc::new(workload), images: None, sought }
            }
        })
    }
}

/// What the agent of a workload's node is to look for.
fn sought(manifest: &firebreak_manifest::Workload, workload: &Workload) -> Option<DeclaredWorkload> {
    let location = match (&manifest.spec.interface, &manifest.spec.network_namespace) {
        (Some(interface), _) => Location::Interface(interface.as_str().into()),
        (None, Some(namespace)) => Location::NetworkNamespace(namespace.clone()),
        // The manifest's validation asks for exactly one.
        (None, None) => return None,
    };
    Some(DeclaredWorkload {
        container: workload.id.container.clone(),
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        labels: workload.labels.clone(),
        named_ports: workload.named_ports.clone(),
        published_ports: workload.published_ports.clone(),
        network: manifest.spec.network.as_deref().map(NetworkName::new),
        location,
        addresses: workload.addresses.iter().map(|at| at.address).collect(),
    })
}

/// The policy that an object of the store is; `None` for every other kind.
pub(crate) fn policy_key(key: &ObjectKey) -> Option<PolicyKey> {
    let kind = PolicyKind::ALL.into_iter().find(|kind| kind.as_str() == key.kind.as_str())?;
    match kind.is_namespaced() {
        true => Some(PolicyKey { kind, namespace: key.namespace.clone()?, name: key.name.clone() }),
        false => Some(PolicyKey::cluster_scoped(kind, key.name.clone())),
    }
}
