//! Who holds an address: a new owner inherits no connection of the one before. Pure.
//!
//! Before an interface becomes known nothing passes it, so no entry of its addresses can be its own: they are deleted before the commit that
//! makes it known. An interface that was known before keeps its connections, whatever came between.

use crate::dataplane::Desired;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// By address, the interface behind which it was last.
#[derive(Debug, Default)]
pub struct Owners {
    last: HashMap<IpAddr, u32>,
    /// What the kernel held at start; `None` after a first install, when everybody keeps what they have.
    at_start: Option<BTreeSet<u32>>,
    has_begun: bool,
}

impl Owners {
    /// Knows nobody. `at_start` are the interfaces that the kernel knew when the agent started, `None` if the rules were not there before.
    pub fn new(at_start: Option<BTreeSet<u32>>) -> Self {
        Self { last: HashMap::new(), at_start, has_begun: false }
    }

    /// The addresses that get a new owner by this commit, to be told before it.
    pub fn newly_owned(&self, desired: &Desired) -> BTreeSet<IpAddr> {
        let is_new = |address: &IpAddr, interface: u32| match self.last.get(address) {
            Some(last) => *last != interface,
            None => self.has_begun || self.at_start.as_ref().is_some_and(|known| !known.contains(&interface)),
        };
        let owned =
            desired.interfaces.iter().flat_map(|(interface, managed)| managed.addresses.iter().map(|address| (*address, *interface)));
        owned.filter(|(address, interface)| is_new(address, *interface)).map(|(address, _)| address).collect()
    }

    /// The commit was made.
    pub fn take(&mut self, desired: &Desired) {
        self.has_begun = true;
        for (interface, managed) in &desired.interfaces {
            self.last.extend(managed.addresses.iter().map(|address| (*address, *interface)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{Claim, ManagedInterface};

    fn desired(interfaces: &[(u32, u8)]) -> Desired {
        let managed = |last: u8| ManagedInterface {
            name: "veth".into(),
            workload: "shop/web".into(),
            addresses: [IpAddr::from([10, 0, 0, last])].into(),
            claim: Claim::default(),
        };
        Desired { interfaces: interfaces.iter().map(|(index, last)| (*index, managed(*last))).collect(), ..Desired::default() }
    }

    #[test]
    fn an_address_behind_another_interface_has_a_new_owner_and_one_that_comes_back_has_not() {
        let mut owners = Owners::new(Some([1].into()));
        let newly = |owners: &Owners, interfaces: &[(u32, u8)]| {
            owners.newly_owned(&desired(interfaces)).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(newly(&owners, &[(1, 1), (2, 2)]), ["10.0.0.2"], "1 was known before the agent started");
        owners.take(&desired(&[(1, 1), (2, 2)]));
        assert_eq!(newly(&owners, &[(1, 1), (3, 2)]), ["10.0.0.2"]);
        owners.take(&desired(&[(1, 1)]));
        assert_eq!(newly(&owners, &[(1, 1), (2, 2)]), [""; 0], "the same interface again");
        assert_eq!(newly(&owners, &[(1, 1), (4, 4)]), ["10.0.0.4"]);
        let first_install = Owners::new(None);
        assert_eq!(newly(&first_install, &[(1, 1), (2, 2)]), [""; 0], "connections from before the first start are judged, not ended");
    }
}
