//! The same verdict as [`KernelSets::judge`](crate::kernel_sets::KernelSets::judge), worked out from the node's state without multiplying it
//! out: what an agent asks about each of a hundred thousand connections, where the sets of a large group would not fit twice into memory.

use crate::compile::is_link_local;
use crate::flatten::{CLOSED, side};
use crate::judge::{Fate, Path};
use crate::model::{Direction, Family, HostAccess, Protocol, PublishedPort, Transport};
use crate::node_state::{
    CompiledPeers, CompiledRule, CompiledService, CompiledServices, Group, Isolation, LocalEndpoint, Member, NodeState,
};
use crate::tiers::resolved;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A node's state, indexed by address and by published port.
#[derive(Debug)]
pub struct NodeJudge {
    state: Arc<NodeState>,
    claimants: HashMap<IpAddr, Vec<Arc<LocalEndpoint>>>,
    published: HashMap<(Protocol, u16), Vec<Publishes>>,
}

/// Who publishes, and what.
type Publishes = (Arc<LocalEndpoint>, PublishedPort);

impl NodeJudge {
    /// Of a state; as `flatten` takes it.
    pub fn new(state: Arc<NodeState>) -> Self {
        let state = resolved(&state).map_or(state, Arc::new);
        let mut claimants: HashMap<IpAddr, Vec<Arc<LocalEndpoint>>> = HashMap::new();
        let mut published: HashMap<(Protocol, u16), Vec<_>> = HashMap::new();
        for endpoint in state.endpoints.values_shared() {
            for address in &endpoint.addresses {
                claimants.entry(*address).or_default().push(endpoint.clone());
            }
            for port in &endpoint.published_ports {
                published.entry((port.protocol, port.host_port)).or_default().push((endpoint.clone(), port.clone()));
            }
        }
        Self { state, claimants, published }
    }

    /// The fate of the first packet of a connection on this node, its addresses being the real ends.
    pub fn judge(&self, path: Path, source: IpAddr, destination: IpAddr, transport: Transport) -> Fate {
        let egress = || self.allows(Direction::Egress, source, destination, transport);
        let ingress = || self.allows(Direction::Ingress, destination, source, transport);
        match path {
            Path::Forwarded if !egress() => Fate::Denied(Direction::Egress),
            Path::Forwarded if !ingress() => Fate::Denied(Direction::Ingress),
            Path::FromNode if self.is_host_judged(destination) && !ingress() => Fate::Denied(Direction::Ingress),
            Path::ToNode if !egress() => Fate::Denied(Direction::Egress),
            Path::ToNode if self.is_barred(source, destination, transport) => Fate::Denied(Direction::Ingress),
            Path::Forwarded | Path::FromNode | Path::ToNode => Fate::Passed,
        }
    }

    /// The isolations that are in force for an address: those of its claimants that are isolated and not opened by one rule.
    fn isolations(&self, direction: Direction, local: IpAddr) -> Vec<&Isolation> {
        let claimants = self.claimants.get(&local).map(Vec::as_slice).unwrap_or_default();
        let isolation = |endpoint: &Arc<LocalEndpoint>| match self.state.segments.get(&endpoint.segment) {
            Some(segment) => side(segment, direction),
            None => Some(&CLOSED),
        };
        let opens = |rule: &CompiledRule| rule.peers == CompiledPeers::Any && rule.services == CompiledServices::Any;
        claimants.iter().filter_map(isolation).filter(|isolation| !isolation.rules.iter().any(opens)).collect()
    }

    fn is_host_judged(&self, local: IpAddr) -> bool {
        self.isolations(Direction::Ingress, local).iter().any(|isolation| isolation.host_access == HostAccess::Judge)
    }

    fn allows(&self, direction: Direction, local: IpAddr, peer: IpAddr, transport: Transport) -> bool {
        let isolations = self.isolations(direction, local);
        let judges = |isolation: &Isolation| direction == Direction::Ingress && isolation.host_access == HostAccess::Judge;
        // The node is judged because of one claimant; the others let it in without a rule that says so.
        let admits_node = isolations.len() > 1 && isolations.iter().any(|it| judges(it)) && self.state.addresses.contains(&peer);
        isolations.iter().all(|it| {
            (admits_node && !judges(it)) || it.rules.iter().any(|rule| self.rule_allows(rule, Family::of(local), peer, transport))
        })
    }

    fn rule_allows(&self, rule: &CompiledRule, family: Family, peer: IpAddr, transport: Transport) -> bool {
        if Family::of(peer) != family {
            return false;
        }
        match &rule.services {
            CompiledServices::OfMembers => {
                let Transport::Port(protocol, port) = transport else { return false };
                self.groups(&rule.peers).any(|group| group.members.contains(&Member::Service(peer, protocol, port)))
            }
            CompiledServices::Any => self.is_peer(&rule.peers, peer),
            CompiledServices::Only(services) => {
                services.iter().any(|service| is_service(*service, transport)) && self.is_peer(&rule.peers, peer)
            }
        }
    }

    fn groups<'a>(&'a self, peers: &'a CompiledPeers) -> impl Iterator<Item = &'a Group> {
        let ids = match peers {
            CompiledPeers::Any => &[][..],
            CompiledPeers::Groups(ids) => ids,
        };
        let groups = &self.state.groups;
        ids.iter().filter_map(|id| groups.get(id))
    }

    fn is_peer(&self, peers: &CompiledPeers, peer: IpAddr) -> bool {
        match peers {
            CompiledPeers::Any => true,
            CompiledPeers::Groups(ids) => ids.iter().filter_map(|id| self.state.groups.get(id)).any(|group| is_member(group, peer)),
        }
    }

    /// Whether a port of the node leads to a workload that the source may not reach; as `flatten` fills the published sets.
    fn is_barred(&self, source: IpAddr, at: IpAddr, transport: Transport) -> bool {
        let Transport::Port(protocol, port) = transport else { return false };
        if !self.state.addresses.contains(&at) {
            return false;
        }
        let behind = self.published.get(&(protocol, port)).map(Vec::as_slice).unwrap_or_default();
        let mut targets = behind.iter().filter(|(_, port)| port.host_address.is_none_or(|bound| bound == at)).peekable();
        if targets.peek().is_none() {
            return false;
        }
        // An address that two workloads claim may use the port only if both may, and a port that leads to two only who may reach both.
        let Some(sources) = self.claimants.get(&source).filter(|_| Family::of(source) == Family::of(at)) else { return true };
        targets.any(|(target, port)| sources.iter().any(|from| !self.may_reach(from, target, port, Family::of(at))))
    }

    fn may_reach(&self, source: &LocalEndpoint, target: &LocalEndpoint, port: &PublishedPort, family: Family) -> bool {
        if source.id == target.id {
            return true;
        }
        let transport = Transport::Port(port.protocol, port.workload_port);
        let usable = |it: &&IpAddr| !is_link_local(**it);
        let pairs =
            source.addresses.iter().filter(usable).flat_map(|from| target.addresses.iter().filter(usable).map(move |to| (*from, *to)));
        let same_family: Vec<(IpAddr, IpAddr)> = pairs.filter(|(from, to)| Family::of(*from) == Family::of(*to)).collect();
        let preferred: Vec<_> = same_family.iter().copied().filter(|(from, _)| Family::of(*from) == family).collect();
        let judged = if preferred.is_empty() { same_family } else { preferred };
        if judged.is_empty() {
            // The relay changes families, so no rule speaks of this pair: only where nothing is isolated is it allowed.
            let open = |direction, of: &LocalEndpoint| of.addresses.iter().all(|it| self.isolations(direction, *it).is_empty());
            return open(Direction::Egress, source) && open(Direction::Ingress, target);
        }
        judged
            .into_iter()
            .all(|(from, to)| self.allows(Direction::Egress, from, to, transport) && self.allows(Direction::Ingress, to, from, transport))
    }
}

fn is_service(service: CompiledService, transport: Transport) -> bool {
    match (service, transport) {
        (CompiledService::Protocol(protocol), _) => protocol == transport.protocol(),
        (CompiledService::Ports(protocol, ports), Transport::Port(of, port)) => of == protocol && ports.contains(port),
        (CompiledService::Icmp { family, kind, code }, Transport::Icmp { family: of, kind: got, code: got_code }) => {
            family == of && kind == got && code.is_none_or(|code| code == got_code)
        }
        (CompiledService::Ports(..) | CompiledService::Icmp { .. }, _) => false,
    }
}

/// By exact lookups: an address, then each block that could hold it, longest first. Does not rely on blocks being disjoint.
pub(crate) fn is_member(group: &Group, peer: IpAddr) -> bool {
    if group.members.contains(&Member::Address(peer)) {
        return true;
    }
    let (first, longest) = match peer {
        IpAddr::V4(_) => (IpAddr::from(Ipv4Addr::UNSPECIFIED), 32),
        IpAddr::V6(_) => (IpAddr::from(Ipv6Addr::UNSPECIFIED), 128),
    };
    let block = |address: IpAddr, length: u8| IpNet::new(address, length).ok().map(|block| Member::Block(block.trunc()));
    let (Some(lowest), Some(highest)) = (block(first, 0), block(peer, longest)) else { return false };
    // A group without a block at or below the address has none that holds it.
    group.members.range(lowest..=highest).next().is_some()
        && (0..=longest).rev().filter_map(|length| block(peer, length)).any(|block| group.members.contains(&block))
}
