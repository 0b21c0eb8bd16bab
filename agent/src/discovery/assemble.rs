//! Interfaces and identities become workloads. Pure: a function of what was read, whatever the order in which it came.
//!
//! What holds:
//! 1. An interface that carries a default route, or is no veth, is nobody's, whatever pattern or identity says.
//! 2. An interface belongs to one workload. Where two claim it, a manifest goes before an engine; two of a kind are both denied.
//! 3. An interface that matches a pattern and belongs to nobody is unknown, and unknown is denied.

use super::rtnl::{HeldAddress, Link, PeerNamespace, Route, Scope};
use crate::dataplane::InterfacePattern;
use crate::local::{ExemptInterface, ExemptReason, LocalInterface, LocalWorkload, LocalWorkloads, Problem, Vouched, local_id};
use firebreak_policy::model::{
    ContainerId, InterfaceName, Labels, NamedPort, NamespaceName, NetworkAddress, NetworkName, NodeName, PublishedPort, WorkloadSource,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// A workload that holds more addresses than this on one interface is denied: each costs elements in the kernel, and its owner
/// can add as many as he likes.
pub const MAX_ADDRESSES: usize = 64;

/// What the kernel says, as far as it was asked.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// Every interface of the node.
    pub links: Vec<Link>,
    /// The routes of the node.
    pub routes: BTreeSet<Route>,
    /// What is in each namespace that a veth leads into, by the namespace's id.
    pub peers: HashMap<i32, Arc<PeerNamespace>>,
    /// The addresses of the node.
    pub own: Vec<HeldAddress>,
}

impl Kernel {
    /// Whether a default route leads out of the interface.
    fn leads_out(&self, index: u32) -> bool {
        self.routes.iter().any(|route| route.interface == index && route.destination.prefix_len() == 0)
    }

    /// Whether the node sends packets for this address to this interface, or straight to the bridge that it is a port of. Where nobody vouches
    /// for what a workload calls its own, the node's routes do: root in a container can give itself any address, and would else be whatever a
    /// block of addresses allows. By the default route the node sends to a router, whatever the interface, and over a bridge a route by a
    /// router is the router's. A bridge on which the node has no address of the family has no route; there the workload's word stands
    /// for what the node sends nowhere else.
    fn sends(&self, address: IpAddr, link: &Link) -> bool {
        let leads = |route: &&Route| route.destination.prefix_len() > 0 && route.destination.contains(&address);
        if let Some(longest) = self.routes.iter().filter(leads).map(|route| route.destination.prefix_len()).max() {
            let here = |route: &Route| route.interface == link.index || (Some(route.interface) == link.controller && !route.by_gateway);
            return self.routes.iter().filter(leads).any(|route| route.destination.prefix_len() == longest && here(route));
        }
        link.controller.is_some_and(|bridge| {
            let is_there = |own: &&HeldAddress| own.interface == bridge && own.scope == Scope::Global;
            !self.own.iter().filter(is_there).any(|own| own.address.is_ipv4() == address.is_ipv4())
        })
    }
}

/// A workload as its source knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What tells it from the others of the node.
    pub container: ContainerId,
    /// For people.
    pub name: String,
    /// The namespace whose policies apply.
    pub namespace: NamespaceName,
    /// What selectors look at.
    pub labels: Labels,
    /// Labels that came with the image.
    pub image_labels: BTreeMap<String, String>,
    /// The image as it was asked for; empty when that is not known.
    pub image: String,
    /// Ports that policies can name.
    pub named_ports: Vec<NamedPort>,
    /// Ports of the node that lead to it.
    pub published_ports: Vec<PublishedPort>,
    /// Who says so.
    pub source: WorkloadSource,
    /// Where it is.
    pub place: Place,
    /// What the manifest says of where it is; empty where there is none.
    pub declared_place: String,
    /// What its addresses mean.
    pub networks: Networks,
    /// The addresses that its source says it gave to it; `None` when the source does not know.
    pub vouched: Option<Vouched>,
}

/// Where a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind this host-side interface.
    Interface(InterfaceName),
    /// In the network namespace with this id in ours.
    Namespace(i32),
    /// In the node's network namespace.
    Host,
    /// In the network namespace of another container.
    SharedWith(String),
    /// Without any network.
    NoNetwork,
    /// Not to be found, and why.
    Unresolved(String),
}

/// Which network a workload's addresses belong to. Link-local ones always belong to the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Networks {
    /// This one.
    Fixed(NetworkName),
    /// The one of the bridge, for these bridges; else the default network.
    HiddenBehind(BTreeSet<String>),
}

/// Joins what the kernel says with what the sources say. `in_sync` is left false and `warnings` empty: they are not a matter of
/// one moment.
pub fn assemble(node: &NodeName, patterns: &[InterfacePattern], kernel: &Kernel, identities: &[Identity]) -> LocalWorkloads {
    let by_index: HashMap<u32, &Link> = kernel.links.iter().map(|link| (link.index, link)).collect();
    let places: Vec<Result<Vec<&Link>, Problem>> = identities.iter().map(|identity| find(&identity.place, kernel)).collect();
    let claims = claims(identities, &places);

    let mut workloads = BTreeMap::new();
    let mut managed = BTreeSet::new();
    for (position, (identity, place)) in identities.iter().zip(&places).enumerate() {
        let outcome = place.clone().and_then(|links| {
            let mut interfaces = BTreeMap::new();
            for link in links {
                settle(link, position, identities, &claims)?;
                interfaces.insert(link.index, interface(node, link, &by_index, kernel, &identity.networks, identity.vouched.as_ref())?);
            }
            let not_routed: BTreeSet<IpAddr> = interfaces.values().flat_map(|interface| &interface.not_routed).copied().collect();
            let mut left = interfaces.values().flat_map(|interface| &interface.addresses);
            if !not_routed.is_empty() && left.all(|at| own_affair(at.address)) {
                return Err(Problem::NotRouted(not_routed));
            }
            Ok(interfaces)
        });
        let (interfaces, problem) = match outcome {
            Ok(interfaces) => (interfaces, None),
            Err(problem) => (BTreeMap::new(), Some(problem)),
        };
        managed.extend(interfaces.keys().copied());
        let workload = LocalWorkload {
            id: local_id(node, &identity.container),
            name: identity.name.clone(),
            namespace: identity.namespace.clone(),
            labels: identity.labels.clone(),
            image_labels: identity.image_labels.clone(),
            image: identity.image.clone(),
            named_ports: identity.named_ports.clone(),
            published_ports: identity.published_ports.clone(),
            interfaces,
            host_network: identity.place == Place::Host,
            source: identity.source,
            declared_place: identity.declared_place.clone(),
            problem,
        };
        workloads.insert(identity.container.clone(), Arc::new(workload));
    }

    let in_patterns = |link: &Link| patterns.iter().any(|pattern| pattern.matches(&link.name));
    let mut declared: BTreeMap<u32, (InterfaceName, String)> = BTreeMap::new();
    for (identity, links) in identities.iter().zip(&places) {
        for link in links.iter().flatten().filter(|link| !in_patterns(link)) {
            let title = format!("{}/{}", identity.namespace, identity.name);
            let one = declared.entry(link.index).or_insert_with(|| (InterfaceName::new(&link.name), title.clone()));
            one.1 = one.1.clone().min(title);
        }
    }

    let mut exempt = BTreeMap::new();
    let mut unknown = BTreeMap::new();
    for link in kernel.links.iter().filter(|link| in_patterns(link)) {
        let name = InterfaceName::new(&link.name);
        match exempt_reason(link, kernel) {
            Some(reason) => drop(exempt.insert(link.index, ExemptInterface { name, reason })),
            None if managed.contains(&link.index) => {}
            None => drop(unknown.insert(link.index, name)),
        }
    }
    let bridged = managed
        .iter()
        .chain(unknown.keys())
        .chain(declared.keys())
        .any(|index| by_index.get(index).is_some_and(|link| link.controller.is_some()));
    let node_addresses = kernel.own.iter().filter(|held| held.scope == Scope::Global).map(|held| held.address).collect();
    let own_addresses = kernel.own.iter().map(|held| held.address).collect();
    let node_macs = kernel.links.iter().filter_map(|link| link.mac).collect();
    LocalWorkloads {
        in_sync: false,
        workloads,
        exempt,
        unknown,
        declared,
        node_addresses,
        own_addresses,
        node_macs,
        bridged,
        warnings: BTreeSet::new(),
    }
}

/// The ids of the namespaces whose addresses [`assemble`] asks for, each with the interfaces that lead into it: everything that
/// matches a pattern, and everything that is named by an identity.
pub fn wanted_peers(patterns: &[InterfacePattern], links: &[Link], identities: &[Identity]) -> BTreeMap<i32, BTreeSet<(u32, u32)>> {
    let named: BTreeSet<&str> = identities
        .iter()
        .filter_map(|identity| if let Place::Interface(name) = &identity.place { Some(name.as_str()) } else { None })
        .collect();
    let entered: BTreeSet<i32> =
        identities.iter().filter_map(|identity| if let Place::Namespace(nsid) = identity.place { Some(nsid) } else { None }).collect();
    let mut wanted: BTreeMap<i32, BTreeSet<(u32, u32)>> = BTreeMap::new();
    for link in links.iter().filter(|link| link.veth) {
        let (Some(nsid), Some(peer)) = (link.peer_nsid, link.peer_index) else { continue };
        if entered.contains(&nsid) || named.contains(link.name.as_str()) || patterns.iter().any(|pattern| pattern.matches(&link.name)) {
            wanted.entry(nsid).or_default().insert((link.index, peer));
        }
    }
    wanted
}

fn exempt_reason(link: &Link, kernel: &Kernel) -> Option<ExemptReason> {
    if kernel.leads_out(link.index) {
        Some(ExemptReason::DefaultRoute)
    } else if !link.veth {
        Some(ExemptReason::NotVeth)
    } else {
        None
    }
}

fn find<'a>(place: &Place, kernel: &'a Kernel) -> Result<Vec<&'a Link>, Problem> {
    match place {
        Place::Interface(name) => {
            let link = kernel.links.iter().find(|link| link.name == name.as_str());
            let link = link.ok_or_else(|| Problem::NoInterface(format!("there is no interface {name}")))?;
            match exempt_reason(link, kernel) {
                Some(reason) => Err(Problem::Exempt(name.clone(), reason)),
                None => Ok(vec![link]),
            }
        }
        Place::Namespace(nsid) => {
            let leads_in = |link: &&Link| link.veth && link.peer_nsid == Some(*nsid) && exempt_reason(link, kernel).is_none();
            let links: Vec<&Link> = kernel.links.iter().filter(leads_in).collect();
            if links.is_empty() {
                Err(Problem::NoInterface("no veth of the node leads to its network namespace".to_owned()))
            } else {
                Ok(links)
            }
        }
        Place::Host => Err(Problem::HostNetwork),
        Place::SharedWith(other) => Err(Problem::SharedNetwork(other.clone())),
        Place::NoNetwork => Ok(Vec::new()),
        Place::Unresolved(why) => Err(Problem::NoInterface(why.clone())),
    }
}

/// By ifindex, the positions of the identities that claim it.
fn claims(identities: &[Identity], places: &[Result<Vec<&Link>, Problem>]) -> HashMap<u32, Vec<usize>> {
    let mut claims: HashMap<u32, Vec<usize>> = HashMap::new();
    for (position, _) in identities.iter().enumerate() {
        for link in places[position].iter().flatten() {
            claims.entry(link.index).or_default().push(position);
        }
    }
    claims
}

/// Whether the interface is this identity's.
fn settle(link: &Link, position: usize, identities: &[Identity], claims: &HashMap<u32, Vec<usize>>) -> Result<(), Problem> {
    let rank = |position: usize| identities[position].source == WorkloadSource::Manifest;
    let rivals = claims.get(&link.index).into_iter().flatten().copied().filter(|other| *other != position);
    if rivals.into_iter().any(|other| rank(other) >= rank(position)) {
        return Err(Problem::ClaimedTwice(InterfaceName::new(&link.name)));
    }
    Ok(())
}

/// A link-local IPv6 address is nobody's peer, and every interface gives itself one.
fn own_affair(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn interface(
    node: &NodeName,
    link: &Link,
    by_index: &HashMap<u32, &Link>,
    kernel: &Kernel,
    networks: &Networks,
    vouched: Option<&Vouched>,
) -> Result<LocalInterface, Problem> {
    let (Some(nsid), Some(peer)) = (link.peer_nsid, link.peer_index) else {
        let message = format!("the other end of {} is in the node's own network namespace", link.name);
        return Err(Problem::NoInterface(message));
    };
    let bridge = link.controller.and_then(|controller| by_index.get(&controller)).map(|bridge| bridge.name.as_str());
    let on_link = NetworkName::hidden(node, bridge.unwrap_or(&link.name));
    let network = match networks {
        Networks::Fixed(network) => network.clone(),
        Networks::HiddenBehind(bridges) => match bridge {
            Some(bridge) if bridges.contains(bridge) => NetworkName::hidden(node, bridge),
            Some(_) | None => NetworkName::default_network(),
        },
    };
    let held: BTreeSet<(IpAddr, Scope)> = kernel
        .peers
        .get(&nsid)
        .into_iter()
        .flat_map(|inside| inside.addresses.iter())
        .filter(|held| held.interface == peer && held.scope != Scope::Host)
        // An IPv4-mapped address has no packets of its own (RFC 4291 2.5.5.2). A container that gives itself one must not be able to make the
        // controller refuse its node's whole report.
        .filter(|held| !matches!(held.address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some()))
        .map(|held| (held.address, held.scope))
        .collect();
    if held.len() > MAX_ADDRESSES {
        return Err(Problem::TooManyAddresses(MAX_ADDRESSES));
    }
    let (held, not_routed): (BTreeSet<_>, BTreeSet<_>) =
        held.into_iter().partition(|(address, _)| vouched.is_some() || own_affair(*address) || kernel.sends(*address, link));
    let not_routed: BTreeSet<IpAddr> = not_routed.into_iter().map(|(address, _)| address).collect();
    let addresses = held
        .into_iter()
        .map(|(address, scope)| NetworkAddress { network: if scope == Scope::Link { on_link.clone() } else { network.clone() }, address })
        .collect();
    let mac = kernel.peers.get(&nsid).and_then(|inside| inside.macs.get(&peer)).copied();
    let on = link.controller.unwrap_or(link.index);
    Ok(LocalInterface { name: InterfaceName::new(&link.name), addresses, not_routed, mac, vouched: vouched.cloned(), link: on })
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
