//! Who held an address, and when: a flow is named by its own time, not by the time at which it is read.

use firebreak_policy::model::{Inventory, NetworkAddress, Workload, WorkloadId};
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::sync::Arc;

/// How long an owner that has gone is remembered.
const REMEMBERED: SignedDuration = SignedDuration::from_mins(10);

/// A workload is known here a little after its first packet: reports take their time.
const REPORTING: SignedDuration = SignedDuration::from_secs(10);

/// Owners of addresses, those of the last minutes included.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    by_address: HashMap<NetworkAddress, Vec<Tenure>>,
    by_id: HashMap<WorkloadId, Tenure>,
}

/// A workload for as long as it was known as it is here.
#[derive(Clone, Debug)]
struct Tenure {
    from: Timestamp,
    until: Option<Timestamp>,
    workload: Arc<Workload>,
}

/// Who held an address at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// One workload.
    Workload(Arc<Workload>),
    /// Several: it cannot be told which.
    Several(Vec<WorkloadId>),
}

impl Owners {
    /// Takes in what is there now.
    pub(crate) fn observe(&mut self, inventory: &Inventory, now: Timestamp) {
        for tenure in self.by_id.values_mut().filter(|tenure| tenure.until.is_none()) {
            if inventory.workloads.get(&tenure.workload.id) != Some(&*tenure.workload) {
                tenure.until = Some(now);
            }
        }
        for tenure in self.by_address.values_mut().flatten().filter(|tenure| tenure.until.is_none()) {
            if inventory.workloads.get(&tenure.workload.id) != Some(&*tenure.workload) {
                tenure.until = Some(now);
            }
        }
        for workload in inventory.workloads.values().filter(|it| !it.terminated && !it.host_network) {
            if self.by_id.get(&workload.id).is_some_and(|tenure| tenure.until.is_none()) {
                continue;
            }
            let tenure = Tenure { from: now, until: None, workload: Arc::new(workload.clone()) };
            for address in &workload.addresses {
                self.by_address.entry(address.clone()).or_default().push(tenure.clone());
            }
            self.by_id.insert(workload.id.clone(), tenure);
        }
        let kept = |tenure: &Tenure| tenure.until.is_none_or(|until| now.duration_since(until) < REMEMBERED);
        self.by_id.retain(|_, tenure| kept(tenure));
        self.by_address.retain(|_, tenures| {
            tenures.retain(kept);
            !tenures.is_empty()
        });
    }

    /// The workload of an id, also when it ended a moment ago.
    pub(crate) fn workload(&self, id: &WorkloadId) -> Option<&Arc<Workload>> {
        self.by_id.get(id).map(|tenure| &tenure.workload)
    }

    /// Who held the address at that time; else who came to hold it a moment later, as reports take their time; else who held it last.
    pub(crate) fn at(&self, address: &NetworkAddress, time: Timestamp) -> Option<Owner> {
        let tenures = self.by_address.get(address)?;
        let held = |tenure: &&Tenure| tenure.from <= time && tenure.until.is_none_or(|until| time < until);
        let mut holders: Vec<&Tenure> = tenures.iter().filter(held).collect();
        if holders.is_empty() {
            let soon = tenures.iter().filter(|tenure| tenure.from > time && tenure.from.duration_since(time) < REPORTING);
            holders =
                soon.min_by_key(|tenure| tenure.from).or_else(|| tenures.iter().max_by_key(|tenure| tenure.until)).into_iter().collect();
        }
        match holders.as_slice() {
            [] => None,
            [only] => Some(Owner::Workload(Arc::clone(&only.workload))),
            several => Some(Owner::Several(several.iter().map(|tenure| tenure.workload.id.clone()).collect())),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use firebreak_policy::model::{Labels, NetworkName, WorkloadSource};

    fn workload(container: &str, address: &str) -> Workload {
        Workload {
            id: WorkloadId::new("n1", container),
            name: container.to_owned(),
            namespace: "shop".into(),
            labels: Labels::default(),
            addresses: vec![NetworkAddress { network: NetworkName::default_network(), address: address.parse().unwrap() }],
            named_ports: Vec::new(),
            published_ports: Vec::new(),
            interface: None,
            host_network: false,
            terminated: false,
            source: WorkloadSource::Docker,
        }
    }

    fn inventory(workloads: &[Workload]) -> Inventory {
        Inventory { workloads: workloads.iter().map(|it| (it.id.clone(), it.clone())).collect(), ..Inventory::default() }
    }

    #[test]
    fn an_address_is_named_by_the_time_of_the_flow() {
        let second = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).unwrap();
        let at = NetworkAddress { network: NetworkName::default_network(), address: "10.0.0.1".parse().unwrap() };
        let mut owners = Owners::default();
        owners.observe(&inventory(&[workload("old", "10.0.0.1")]), second(0));
        owners.observe(&inventory(&[]), second(100));
        owners.observe(&inventory(&[workload("new", "10.0.0.1")]), second(200));
        let name = |time| match owners.at(&at, second(time)) {
            Some(Owner::Workload(workload)) => workload.name.clone(),
            Some(Owner::Several(_)) => "several".to_owned(),
            None => "nobody".to_owned(),
        };
        for (time, expected) in [(50, "old"), (99, "old"), (195, "new"), (200, "new"), (500, "new")] {
            assert_eq!(name(time), expected, "{time}");
        }
        assert!(owners.workload(&WorkloadId::new("n1", "old")).is_some(), "one that went a moment ago is still known by its id");
        owners.observe(&inventory(&[workload("new", "10.0.0.1"), workload("twin", "10.0.0.1")]), second(300));
        assert!(matches!(owners.at(&at, second(301)), Some(Owner::Several(ids)) if ids.len() == 2));
        owners.observe(&inventory(&[]), second(400));
        owners.observe(&inventory(&[]), second(2000));
        assert!(owners.at(&at, second(350)).is_none(), "what is long gone is forgotten");
    }
}
