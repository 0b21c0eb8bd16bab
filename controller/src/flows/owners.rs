//! Who held an address, and when: a flow is named by its own time, not by the time at which it is read.

use firebreak_policy::SharedMap;
use firebreak_policy::model::{ContainerId, Inventory, NetworkAddress, NetworkName, NodeName, Workload, WorkloadId};
use firebreak_policy::shared_map::Difference;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

/// How long an owner that has gone is remembered.
const REMEMBERED: SignedDuration = SignedDuration::from_mins(10);

/// A workload is known here a little after its first packet: reports take their time.
const REPORTING: SignedDuration = SignedDuration::from_secs(10);

/// Owners of addresses, those of the last minutes included.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    by_address: HashMap<NetworkName, HashMap<IpAddr, Vec<Tenure>>>,
    by_id: HashMap<NodeName, HashMap<ContainerId, Tenure>>,
    /// Tenures that ended, in the order of their ends.
    ended: VecDeque<(Timestamp, Arc<Workload>)>,
    /// The workloads that were taken in last.
    seen: SharedMap<WorkloadId, Workload>,
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
    /// Nobody then; one workload had held it until so long before.
    Former(Arc<Workload>, SignedDuration),
    /// Several: it cannot be told which.
    Several(Vec<WorkloadId>),
}

/// Whose tenure ends, and whose begins.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    ends: Vec<Arc<Workload>>,
    begins: Vec<Arc<Workload>>,
    seen: SharedMap<WorkloadId, Workload>,
}

fn holds_addresses(workload: &Workload) -> bool {
    !workload.terminated && !workload.host_network
}

impl Owners {
    /// What is different now; passes over what is the same memory, writes nothing.
    pub(crate) fn changes(&self, inventory: &Inventory) -> Changes {
        let current = |id: &WorkloadId| self.tenure(id).filter(|tenure| tenure.until.is_none());
        let mut changes = Changes { seen: inventory.workloads.clone(), ..Changes::default() };
        for Difference { key, now, before: _ } in self.seen.differences(&inventory.workloads) {
            let tenure = current(key);
            if let Some(tenure) = tenure.filter(|tenure| now.is_none_or(|now| **now != *tenure.workload)) {
                changes.ends.push(Arc::clone(&tenure.workload));
            }
            let new = |now: &&Arc<Workload>| holds_addresses(now) && tenure.is_none_or(|tenure| *tenure.workload != ***now);
            changes.begins.extend(now.filter(new).map(Arc::clone));
        }
        changes
    }

    /// Takes the changes in, and forgets who ended long ago. Costs what changed.
    pub(crate) fn take(&mut self, changes: Changes, now: Timestamp) {
        let Changes { ends, begins, seen } = changes;
        self.seen = seen;
        for workload in ends {
            if let Some(tenure) = self.by_id.get_mut(&workload.id.node).and_then(|here| here.get_mut(&workload.id.container)) {
                tenure.until = Some(now);
            }
            for NetworkAddress { network, address } in &workload.addresses {
                let tenures = self.by_address.get_mut(network).and_then(|there| there.get_mut(address)).into_iter().flatten();
                for tenure in tenures.filter(|tenure| Arc::ptr_eq(&tenure.workload, &workload)) {
                    tenure.until = Some(now);
                }
            }
            self.ended.push_back((now, workload));
        }
        for workload in begins {
            let tenure = Tenure { from: now, until: None, workload };
            for NetworkAddress { network, address } in tenure.workload.addresses.iter().collect::<BTreeSet<_>>() {
                self.by_address.entry(network.clone()).or_default().entry(*address).or_default().push(tenure.clone());
            }
            let WorkloadId { node, container } = tenure.workload.id.clone();
            self.by_id.entry(node).or_default().insert(container, tenure);
        }
        while let Some((_, workload)) = self.ended.pop_front_if(|(until, _)| now.duration_since(*until) >= REMEMBERED) {
            self.forget(&workload);
        }
    }

    fn forget(&mut self, workload: &Arc<Workload>) {
        let WorkloadId { node, container } = &workload.id;
        if self.tenure(&workload.id).is_some_and(|tenure| Arc::ptr_eq(&tenure.workload, workload))
            && let Some(here) = self.by_id.get_mut(node)
        {
            here.remove(container);
            if here.is_empty() {
                self.by_id.remove(node);
            }
        }
        for NetworkAddress { network, address } in &workload.addresses {
            let Some(there) = self.by_address.get_mut(network) else { continue };
            let Some(tenures) = there.get_mut(address) else { continue };
            tenures.retain(|tenure| !Arc::ptr_eq(&tenure.workload, workload));
            if tenures.is_empty() {
                there.remove(address);
            }
            if there.is_empty() {
                self.by_address.remove(network);
            }
        }
    }

    fn tenure(&self, id: &WorkloadId) -> Option<&Tenure> {
        self.by_id.get(&id.node)?.get(&id.container)
    }

    /// The workload that its node knows by this id, also when it ended a moment ago.
    pub(crate) fn workload(&self, node: &NodeName, container: &str) -> Option<&Arc<Workload>> {
        Some(&self.by_id.get(node)?.get(container)?.workload)
    }

    /// Who held the address at that time; else who came to hold it a moment later, as reports take their time; else who had held it last;
    /// else who was the first to be known there, for a flow from before anybody was.
    #[cfg(test)]
    pub(crate) fn at(&self, network: &NetworkName, address: IpAddr, time: Timestamp) -> Option<Owner> {
        self.network(network)?.at(address, time)
    }

    /// A network's addresses, for those who look up many.
    pub(crate) fn network(&self, network: &NetworkName) -> Option<Addresses<'_>> {
        self.by_address.get(network).map(Addresses)
    }
}

/// Owners of one network's addresses.
#[derive(Clone, Copy)]
pub(crate) struct Addresses<'a>(&'a HashMap<IpAddr, Vec<Tenure>>);

impl Addresses<'_> {
    /// As [`Owners::at`].
    pub(crate) fn at(self, address: IpAddr, time: Timestamp) -> Option<Owner> {
        let tenures = self.0.get(&address)?;
        let held = tenures.iter().filter(|it| it.from <= time && it.until.is_none_or(|until| time < until));
        if let Some(owner) = owner(held) {
            return Some(owner);
        }
        let next = tenures.iter().filter(|it| it.from > time).map(|it| it.from).min();
        let last = tenures.iter().filter_map(|it| it.until).filter(|until| *until <= time).max();
        let from_next = |next| owner(tenures.iter().filter(move |it| it.from == next));
        match (next, last) {
            (Some(next), _) if next.duration_since(time) < REPORTING => from_next(next),
            (_, Some(last)) => match owner(tenures.iter().filter(|it| it.until == Some(last))) {
                Some(Owner::Workload(workload)) => Some(Owner::Former(workload, time.duration_since(last))),
                other => other,
            },
            (Some(next), None) => from_next(next),
            (None, None) => None,
        }
    }
}

fn owner<'a>(mut holders: impl Iterator<Item = &'a Tenure>) -> Option<Owner> {
    let first = holders.next()?;
    let Some(second) = holders.next() else { return Some(Owner::Workload(Arc::clone(&first.workload))) };
    Some(Owner::Several([first, second].into_iter().chain(holders).map(|tenure| tenure.workload.id.clone()).collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use firebreak_policy::model::{Labels, WorkloadSource};

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

    fn second(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn observe(owners: &mut Owners, workloads: &[Workload], seconds: i64) {
        let changes = owners.changes(&inventory(workloads));
        owners.take(changes, second(seconds));
    }

    fn name(owners: &Owners, address: &str, seconds: i64) -> String {
        match owners.at(&NetworkName::default_network(), address.parse().unwrap(), second(seconds)) {
            Some(Owner::Workload(workload)) => workload.name.clone(),
            Some(Owner::Former(workload, before)) => format!("{} {}s ago", workload.name, before.as_secs()),
            Some(Owner::Several(ids)) => ids.iter().map(|id| id.container.to_string()).collect::<Vec<_>>().join("+"),
            None => "nobody".to_owned(),
        }
    }

    #[test]
    fn an_address_is_named_by_the_time_of_the_flow() {
        let mut owners = Owners::default();
        observe(&mut owners, &[workload("old", "10.0.0.1")], 0);
        observe(&mut owners, &[], 100);
        observe(&mut owners, &[workload("new", "10.0.0.1")], 200);
        let times = [
            (-60, "old"),
            (0, "old"),
            (50, "old"),
            (99, "old"),
            (130, "old 30s ago"),
            (189, "old 89s ago"),
            (195, "new"),
            (200, "new"),
            (500, "new"),
        ];
        for (time, expected) in times {
            assert_eq!(name(&owners, "10.0.0.1", time), expected, "{time}");
        }
        assert!(owners.workload(&"n1".into(), "old").is_some(), "one that went a moment ago is still known by its id");
        observe(&mut owners, &[workload("new", "10.0.0.1"), workload("twin", "10.0.0.1")], 300);
        for (time, expected) in [(299, "new"), (301, "new+twin")] {
            assert_eq!(name(&owners, "10.0.0.1", time), expected, "{time}");
        }
        observe(&mut owners, &[], 400);
        assert_eq!(name(&owners, "10.0.0.1", 410), "new+twin", "which of the two went last cannot be told");
        observe(&mut owners, &[], 2000);
        assert_eq!(name(&owners, "10.0.0.1", 350), "nobody", "what is long gone is forgotten");
        assert!(owners.by_id.is_empty() && owners.by_address.is_empty() && owners.ended.is_empty());
    }

    #[test]
    fn a_workload_that_changes_is_known_as_it_was_at_the_time() {
        let mut owners = Owners::default();
        let mut moved = workload("web", "10.0.0.2");
        observe(&mut owners, &[workload("web", "10.0.0.1")], 0);
        observe(&mut owners, std::slice::from_ref(&moved), 100);
        moved.terminated = true;
        observe(&mut owners, &[moved], 150);
        let table = [("10.0.0.1", 50, "web"), ("10.0.0.1", 120, "web 20s ago"), ("10.0.0.2", 120, "web"), ("10.0.0.2", 160, "web 10s ago")];
        for (address, time, expected) in table {
            assert_eq!(name(&owners, address, time), expected, "{address} {time}");
        }
        observe(&mut owners, &[], 701);
        assert_eq!(name(&owners, "10.0.0.1", 50), "nobody");
        assert_eq!(name(&owners, "10.0.0.2", 120), "web", "the second tenure is remembered for its own time");
    }
}
