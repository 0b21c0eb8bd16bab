//! What everybody said: the stored objects and what agents reported, each by its own word. Policies and inventory are worked out of it.

use crate::store::{ChangeResult, Committed, Loaded, ObjectKey, StoredObject};
use firebreak_manifest::Object;
use firebreak_policy::model::{
    ContainerId, Inventory, Labels, NetworkName, Node, NodeName, PolicyKey, PolicyKind, PolicySet, Revision, Workload, WorkloadId,
};
use firebreak_policy::reserved::{self, Given, LabelRule};
use firebreak_proto::v1;
use firebreak_proto::workload::{DeclaredWorkload, Location, ReportedWorkload};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Everything that was said.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    objects: BTreeMap<ObjectKey, Object>,
    reported: BTreeMap<NodeName, Reported>,
    cluster_networks: Vec<IpNet>,
    /// Stored objects whose newest version this program cannot read, with the reason. The last version that it read stays in force.
    unreadable: BTreeMap<ObjectKey, String>,
    /// Nodes that were deleted, with the revision that says so: what was heard of them before is not heard again.
    forgotten: BTreeMap<NodeName, Revision>,
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

/// Policies and inventory of one moment, and what every node's agent is to look for.
#[derive(Debug, Default)]
pub(crate) struct Assembled {
    pub(crate) policies: PolicySet,
    pub(crate) inventory: Inventory,
    pub(crate) declared: BTreeMap<NodeName, Vec<DeclaredWorkload>>,
    /// Of workloads about whose labels there is something to tell.
    pub(crate) labels: BTreeMap<WorkloadId, Given>,
    rules: BTreeMap<String, LabelRule>,
    images: BTreeMap<WorkloadId, Vec<String>>,
}

impl Sources {
    /// What the store holds at start.
    pub(crate) fn of(loaded: &Loaded, cluster_networks: Vec<IpNet>) -> Self {
        let mut sources = Self { cluster_networks, ..Self::default() };
        for object in &loaded.objects {
            sources.put(object);
        }
        for (name, record) in &loaded.nodes {
            let reported = sources.reported.entry(name.clone()).or_default();
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
                        tracing::error!(node = %name, container = %container, reason = %refusal, "stored workload cannot be read")
                    }
                }
            }
        }
        sources
    }

    fn put(&mut self, stored: &StoredObject) {
        // Converted here once, so that what is kept can be assembled at any time.
        match Object::from_json(stored.json.as_bytes()).and_then(|object| Assembled::default().add(&object).map(|()| object)) {
            Ok(object) => {
                self.unreadable.remove(&stored.key);
                self.objects.insert(stored.key.clone(), object);
            }
            Err(errors) => {
                tracing::error!(object = %stored.key, reason = %errors, "stored object cannot be read by this version; the last good version stays in force");
                self.unreadable.insert(stored.key.clone(), errors.to_string());
            }
        }
    }

    /// Takes in one revision of the store.
    pub(crate) fn commit(&mut self, committed: &Committed) {
        for change in &committed.changes {
            match change.result {
                ChangeResult::Created | ChangeResult::Configured => self.put(&change.object),
                ChangeResult::Deleted => {
                    self.objects.remove(&change.object.key);
                    self.unreadable.remove(&change.object.key);
                }
                ChangeResult::Unchanged | ChangeResult::NotFound => {}
            }
        }
        for node in &committed.forgotten_nodes {
            self.reported.remove(node);
            self.forgotten.insert(node.clone(), committed.revision);
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
        let reported = self.reported.entry(node.clone()).or_default();
        reported.heard = ticket;
        if full {
            reported.workloads.clear();
        }
        for container in removed {
            reported.workloads.remove(container);
        }
        reported.workloads.extend(upserts.into_iter().map(|it| (it.workload.id.container.clone(), it)));
    }

    /// Takes in a node's word about itself.
    pub(crate) fn report_node(&mut self, node: &NodeName, report: v1::NodeReport) {
        self.reported.entry(node.clone()).or_default().take_report(report);
    }

    /// A node of which nothing was heard yet.
    pub(crate) fn meet(&mut self, node: &NodeName) {
        self.reported.entry(node.clone()).or_default();
    }

    /// Whether something of a node was heard before the node was deleted, `at` being a revision that the store had before it was kept.
    pub(crate) fn is_stale(&self, node: &NodeName, at: Revision) -> bool {
        self.forgotten.get(node).is_some_and(|forgotten| at < *forgotten)
    }

    pub(crate) fn forgotten(&self) -> &BTreeMap<NodeName, Revision> {
        &self.forgotten
    }

    pub(crate) fn reported(&self) -> &BTreeMap<NodeName, Reported> {
        &self.reported
    }

    pub(crate) fn unreadable(&self) -> &BTreeMap<ObjectKey, String> {
        &self.unreadable
    }

    /// Works out policies and inventory. What an agent sees goes before what a manifest says of the same workload.
    pub(crate) fn assemble(&self) -> Assembled {
        let mut assembled = Assembled::default();
        assembled.policies.cluster_networks.clone_from(&self.cluster_networks);
        for (key, object) in &self.objects {
            if let Err(errors) = assembled.add(object) {
                // Cannot be: `put` converted it.
                tracing::error!(object = %key, reason = %errors, "object does not convert");
            }
        }
        for (name, reported) in &self.reported {
            assembled.add_node(name, reported);
        }
        assembled.labels = reserved::apply(&assembled.rules, &mut assembled.inventory, &assembled.images);
        assembled
    }
}

impl Reported {
    fn take_report(&mut self, report: v1::NodeReport) {
        let addresses = report.addresses.iter().filter_map(|bytes| firebreak_proto::convert::address_from_wire(bytes, "addresses").ok());
        self.addresses = addresses.collect();
        self.labels = report.labels.clone().into_iter().collect();
        self.report = Some(report);
    }
}

impl Assembled {
    fn add(&mut self, object: &Object) -> Result<(), firebreak_manifest::Errors> {
        match object {
            Object::Namespace(namespace) => {
                let namespace = namespace.to_model()?;
                self.inventory.namespaces.insert(namespace.name.clone(), namespace);
            }
            Object::Node(node) => {
                let node = node.to_model()?;
                self.node(&node.name).labels = node.labels;
                self.node(&node.name).addresses.extend(node.addresses);
            }
            Object::LabelRule(rule) => {
                let rule = rule.to_model()?;
                self.rules.insert(rule.name.clone(), rule);
            }
            Object::AddressGroup(group) => {
                let group = group.to_model()?;
                self.policies.address_groups.insert(group.name.clone(), group);
            }
            Object::NetworkPolicy(policy) => {
                let policy = policy.to_policy()?;
                self.policies.policies.insert(policy.key.clone(), policy);
            }
            Object::SegmentPolicy(policy) => {
                let policy = policy.to_policy()?;
                self.policies.policies.insert(policy.key.clone(), policy);
            }
            Object::ClusterSegmentPolicy(policy) => {
                let policy = policy.to_policy()?;
                self.policies.tiered.insert(policy.key.clone(), policy);
            }
            Object::AdminNetworkPolicy(policy) => {
                let policy = policy.to_policy()?;
                self.policies.tiered.insert(policy.key.clone(), policy);
            }
            Object::BaselineAdminNetworkPolicy(policy) => {
                let policy = policy.to_policy()?;
                self.policies.tiered.insert(policy.key.clone(), policy);
            }
            Object::ClusterNetworkPolicy(policy) => {
                let policy = policy.to_policy()?;
                self.policies.tiered.insert(policy.key.clone(), policy);
            }
            Object::Pod(pod) => {
                let workload = pod.to_model()?;
                self.images.insert(workload.id.clone(), pod.images());
                self.inventory.workloads.insert(workload.id.clone(), workload);
            }
            Object::Workload(manifest) => {
                let workload = manifest.to_model()?;
                self.declare(manifest, &workload);
                // Without addresses of its own it lives when its agent has found it.
                if !workload.addresses.is_empty() {
                    self.inventory.workloads.insert(workload.id.clone(), workload);
                }
            }
        }
        Ok(())
    }

    fn declare(&mut self, manifest: &firebreak_manifest::Workload, workload: &Workload) {
        let location = match (&manifest.spec.interface, &manifest.spec.network_namespace) {
            (Some(interface), _) => Location::Interface(interface.as_str().into()),
            (None, Some(namespace)) => Location::NetworkNamespace(namespace.clone()),
            // The manifest's validation asks for exactly one.
            (None, None) => return,
        };
        self.declared.entry(workload.id.node.clone()).or_default().push(DeclaredWorkload {
            container: workload.id.container.clone(),
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            labels: workload.labels.clone(),
            named_ports: workload.named_ports.clone(),
            published_ports: workload.published_ports.clone(),
            network: manifest.spec.network.as_deref().map(NetworkName::new),
            location,
            addresses: workload.addresses.iter().map(|at| at.address).collect(),
        });
    }

    fn node(&mut self, name: &NodeName) -> &mut Node {
        self.inventory.nodes.entry(name.clone()).or_insert_with(|| Node {
            name: name.clone(),
            labels: Labels::default(),
            addresses: Vec::new(),
        })
    }

    fn add_node(&mut self, name: &NodeName, reported: &Reported) {
        let node = self.node(name);
        // What a Node object says of a label goes before what the agent's configuration says.
        for (key, value) in &reported.labels.0 {
            node.labels.0.entry(key.clone()).or_insert_with(|| value.clone());
        }
        node.addresses.extend(&reported.addresses);
        node.addresses.sort_unstable();
        node.addresses.dedup();
        for workload in reported.workloads.values() {
            self.inventory.workloads.insert(workload.workload.id.clone(), workload.workload.clone());
            let images = Some(workload.image.clone()).filter(|image| !image.is_empty());
            self.images.insert(workload.workload.id.clone(), images.into_iter().collect());
        }
    }
}

/// The policy that an object of the store is; `None` for every other kind.
pub(crate) fn policy_key(key: &ObjectKey) -> Option<PolicyKey> {
    let kind = PolicyKind::ALL.into_iter().find(|kind| kind.as_str() == key.kind.as_str())?;
    match kind.is_namespaced() {
        true => Some(PolicyKey { kind, namespace: key.namespace.clone()?, name: key.name.clone() }),
        false => Some(PolicyKey::cluster_scoped(kind, key.name.clone())),
    }
}
