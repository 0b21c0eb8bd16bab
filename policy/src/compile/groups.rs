//! Resolves peers to groups: once per meaning, shared by every rule and node that uses them.

use super::addresses::{AddressBook, is_link_local, takes_part};
use super::blocks;
use super::canonical::{Claim, Part, Subject, canonical_selector, group_id};
use super::index::Index;
use crate::model::{
    CidrBlock, Entity, Inventory, LabelSelector, NamespaceName, NamespaceScope, NetworkAddress, NetworkName, NodeName, Peer, PolicySet,
    Workload,
};
use crate::node_state::{Group, GroupId, Member};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// A resolved peer, before it is known which node asks.
struct Resolved {
    shared: Arc<Group>,
    /// Members in hidden networks, by the node that owns the network.
    hidden: BTreeMap<NodeName, BTreeSet<Member>>,
}

/// Makes groups and remembers them.
pub(crate) struct Groups<'a> {
    policies: &'a PolicySet,
    inventory: &'a Inventory,
    index: &'a Index<'a>,
    book: &'a AddressBook,
    resolved: HashMap<GroupId, Resolved>,
    /// On each node, the addresses that more than one of the networks that reach it use: nobody's there.
    ambiguous: BTreeMap<NodeName, BTreeSet<IpAddr>>,
}

impl<'a> Groups<'a> {
    pub(crate) fn new(policies: &'a PolicySet, inventory: &'a Inventory, index: &'a Index<'a>, book: &'a AddressBook) -> Self {
        Self { policies, inventory, index, book, resolved: HashMap::new(), ambiguous: ambiguous(inventory) }
    }

    /// The groups that a subject means in a policy of `namespace`, as `node` sees them.
    pub(crate) fn on_node(&mut self, node: &NodeName, namespace: &NamespaceName, subject: Subject<'_>, claim: Claim) -> Vec<Arc<Group>> {
        if let Subject::Peer(peer @ Peer::Entity(Entity::Host)) = subject {
            return vec![self.host(node, namespace, peer, claim)];
        }
        let id = group_id(namespace, subject, claim, Part::Shared);
        if !self.resolved.contains_key(&id) {
            let resolved = self.resolve(id.clone(), namespace, subject, claim);
            self.resolved.insert(id.clone(), resolved);
        }
        let Some(resolved) = self.resolved.get(&id) else { return Vec::new() };
        let hidden = resolved.hidden.get(node);
        let none = BTreeSet::new();
        let ambiguous = match claim {
            Claim::Sure => self.ambiguous.get(node).unwrap_or(&none),
            Claim::Any => &none,
        };
        let is_ambiguous = |member: &Member| match member {
            Member::Address(address) | Member::Service(address, ..) => ambiguous.contains(address),
            Member::Block(_) => false,
        };
        if !ambiguous.is_empty() && resolved.shared.members.iter().any(is_ambiguous) {
            let all = resolved.shared.members.iter().chain(hidden.into_iter().flatten());
            let members = all.filter(|member| !is_ambiguous(member)).copied().collect();
            let id = group_id(namespace, subject, claim, Part::AllOn(node));
            return vec![Arc::new(Group { id, title: resolved.shared.title.clone(), members })];
        }
        let mut groups = vec![resolved.shared.clone()];
        if let Some(hidden) = hidden {
            let members: BTreeSet<Member> = hidden.iter().filter(|member| !is_ambiguous(member)).copied().collect();
            if !members.is_empty() {
                let id = group_id(namespace, subject, claim, Part::HiddenOn(node));
                groups.push(Arc::new(Group { id, title: resolved.shared.title.clone(), members: members.into() }));
            }
        }
        groups
    }

    fn host(&self, node: &NodeName, namespace: &NamespaceName, peer: &Peer, claim: Claim) -> Arc<Group> {
        let id = group_id(namespace, Subject::Peer(peer), claim, Part::AllOn(node));
        let members = self.inventory.nodes.get(node).into_iter().flat_map(|node| &node.addresses).map(|it| Member::Address(*it)).collect();
        Arc::new(Group { id, title: "host".to_owned(), members })
    }

    fn resolve(&self, id: GroupId, namespace: &NamespaceName, subject: Subject<'_>, claim: Claim) -> Resolved {
        let mut shared = BTreeSet::new();
        let mut hidden: BTreeMap<NodeName, BTreeSet<Member>> = BTreeMap::new();
        let mut add = |at: &NetworkAddress, member: Member| match at.network.owner() {
            None => shared.extend([member]),
            Some(node) => hidden.entry(node).or_default().extend([member]),
        };
        match subject {
            Subject::Peer(Peer::Workloads { namespaces, workloads }) => {
                for workload in self.index.peers(namespace, namespaces, workloads) {
                    for at in self.addresses(workload, claim) {
                        add(at, Member::Address(at.address));
                    }
                }
            }
            Subject::Peer(Peer::Nodes(selector)) => {
                let nodes = self.inventory.nodes.values().filter(|node| selector.matches(&node.labels));
                shared = nodes.flat_map(|node| &node.addresses).map(|address| Member::Address(*address)).collect();
            }
            Subject::Peer(peer) => shared = self.blocks(peer).into_iter().map(Member::Block).collect(),
            Subject::NamedPort(peer, protocol, name) => {
                for (workload, at) in self.holders_of(namespace, peer, claim) {
                    for port in workload.named_ports.iter().filter(|it| it.protocol == protocol && it.name == name) {
                        add(at, Member::Service(at.address, protocol, port.port));
                    }
                }
            }
        }
        let title = canonical_title(namespace, subject);
        Resolved { shared: Arc::new(Group { id, title, members: shared.into() }), hidden }
    }

    /// The workloads that a peer means, each with the addresses under which the peer means it.
    fn holders_of(&self, namespace: &NamespaceName, peer: Option<&Peer>, claim: Claim) -> Vec<(&'a Workload, &'a NetworkAddress)> {
        let (workloads, blocks) = match peer {
            None | Some(Peer::Entity(Entity::Any)) => (self.index.peers(namespace, &everywhere(), &LabelSelector::everything()), None),
            Some(Peer::Workloads { namespaces, workloads }) => (self.index.peers(namespace, namespaces, workloads), None),
            // A node is no workload and names no ports.
            Some(Peer::Entity(Entity::Host) | Peer::Nodes(_) | Peer::Unknown) => (Vec::new(), None),
            Some(peer @ (Peer::Cidr(_) | Peer::Group(_) | Peer::Entity(Entity::World))) => {
                (self.index.peers(namespace, &everywhere(), &LabelSelector::everything()), Some(self.blocks(peer)))
            }
        };
        let meant = |at: &NetworkAddress| blocks.as_ref().is_none_or(|blocks| blocks.iter().any(|block| block.contains(&at.address)));
        workloads.into_iter().flat_map(|it| self.addresses(it, claim).map(move |at| (it, at))).filter(|(_, at)| meant(at)).collect()
    }

    fn addresses(&self, workload: &'a Workload, claim: Claim) -> impl Iterator<Item = &'a NetworkAddress> + use<'a> {
        let book = self.book;
        workload.addresses.iter().filter(move |at| match claim {
            Claim::Sure => !book.is_contested(at) && !is_link_local(at.address),
            Claim::Any => !is_link_local(at.address),
        })
    }

    fn blocks(&self, peer: &Peer) -> BTreeSet<ipnet::IpNet> {
        match peer {
            Peer::Cidr(block) => blocks::remaining(block),
            // A missing group is nobody in an allow (DESIGN section 3); `problems` shows it.
            Peer::Group(name) => {
                let listed = self.policies.address_groups.get(name).map(|group| group.blocks.as_slice()).unwrap_or_default();
                blocks::union(listed.iter().flat_map(blocks::remaining))
            }
            Peer::Entity(Entity::World) => blocks::world(&self.policies.cluster_networks),
            Peer::Entity(Entity::Any) => [crate::model::Family::V4, crate::model::Family::V6].map(blocks::whole).into(),
            Peer::Entity(Entity::Host) | Peer::Workloads { .. } | Peer::Nodes(_) | Peer::Unknown => BTreeSet::new(),
        }
    }
}

fn everywhere() -> NamespaceScope {
    NamespaceScope::Matching(LabelSelector::everything())
}

/// Nobody reads more of a title, and it travels with every part of its group.
const LONGEST_TITLE: usize = 512;

/// The title of a group. Rules that spell one selector differently share a group: its title must not depend on which of them comes first.
/// A long one says how long it is, and not all of it.
pub(crate) fn canonical_title(namespace: &NamespaceName, subject: Subject<'_>) -> String {
    let mut whole = match subject {
        Subject::Peer(peer) => title(namespace, Subject::Peer(&canonical_peer(peer))),
        Subject::NamedPort(peer, protocol, name) => {
            let peer = peer.map(canonical_peer);
            title(namespace, Subject::NamedPort(peer.as_deref(), protocol, name))
        }
    };
    if whole.len() > LONGEST_TITLE {
        let bytes = whole.len();
        whole.truncate(whole.floor_char_boundary(LONGEST_TITLE - 32));
        whole.push_str(&format!("... ({bytes} bytes)"));
    }
    whole
}

fn canonical_peer(peer: &Peer) -> Cow<'_, Peer> {
    match peer {
        Peer::Workloads { namespaces, workloads } => {
            let namespaces = match namespaces {
                NamespaceScope::Own => None,
                NamespaceScope::Matching(selector) => Some(canonical_selector(selector)),
            };
            match (namespaces, canonical_selector(workloads)) {
                (None | Some(Cow::Borrowed(_)), Cow::Borrowed(_)) => Cow::Borrowed(peer),
                (namespaces, workloads) => {
                    let namespaces = namespaces.map_or(NamespaceScope::Own, |selector| NamespaceScope::Matching(selector.into_owned()));
                    Cow::Owned(Peer::Workloads { namespaces, workloads: workloads.into_owned() })
                }
            }
        }
        Peer::Nodes(selector) => Cow::Owned(Peer::Nodes(canonical_selector(selector).into_owned())),
        Peer::Cidr(_) | Peer::Group(_) | Peer::Entity(_) | Peer::Unknown => Cow::Borrowed(peer),
    }
}

fn title(namespace: &NamespaceName, subject: Subject<'_>) -> String {
    match subject {
        Subject::Peer(peer) => peer_title(namespace, peer),
        Subject::NamedPort(None, _, name) => format!("port {name}"),
        Subject::NamedPort(Some(peer), _, name) => format!("{} port {name}", peer_title(namespace, peer)),
    }
}

/// A peer in words: `shop/app=api`, `{team=web}/*`, `10.0.0.0/8 except 10.1.0.0/16`.
pub(crate) fn peer_title(namespace: &NamespaceName, peer: &Peer) -> String {
    match peer {
        Peer::Workloads { namespaces: NamespaceScope::Own, workloads } => format!("{namespace}/{workloads}"),
        Peer::Workloads { namespaces: NamespaceScope::Matching(selector), workloads } if selector.is_everything() => {
            format!("*/{workloads}")
        }
        Peer::Workloads { namespaces: NamespaceScope::Matching(selector), workloads } => format!("{{{selector}}}/{workloads}"),
        Peer::Cidr(block) => block_title(block),
        Peer::Group(name) => format!("group {name}"),
        Peer::Entity(Entity::Any) => "any".to_owned(),
        Peer::Entity(Entity::Host) => "host".to_owned(),
        Peer::Entity(Entity::World) => "world".to_owned(),
        Peer::Nodes(selector) => format!("nodes {selector}"),
        Peer::Unknown => "unknown peer".to_owned(),
    }
}

fn block_title(block: &CidrBlock) -> String {
    let except: BTreeSet<ipnet::IpNet> = block.except.iter().map(ipnet::IpNet::trunc).collect();
    if except.is_empty() {
        return block.cidr.trunc().to_string();
    }
    let except: Vec<String> = except.iter().map(ToString::to_string).collect();
    format!("{} except {}", block.cidr.trunc(), except.join(","))
}

fn ambiguous(inventory: &Inventory) -> BTreeMap<NodeName, BTreeSet<IpAddr>> {
    let mut networks: HashMap<IpAddr, BTreeSet<&NetworkName>> = HashMap::new();
    for workload in inventory.workloads.values().filter(|it| takes_part(it)) {
        for at in &workload.addresses {
            networks.entry(at.address).or_default().insert(&at.network);
        }
    }
    let mut ambiguous: BTreeMap<NodeName, BTreeSet<IpAddr>> = BTreeMap::new();
    for (address, networks) in networks.into_iter().filter(|(_, networks)| networks.len() > 1) {
        for node in networks.iter().filter_map(|network| network.owner()) {
            if networks.iter().filter(|network| network.reaches(&node)).count() > 1 {
                ambiguous.entry(node).or_default().insert(address);
            }
        }
    }
    ambiguous
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_never_longer_than_anybody_reads() {
        let except = (0..5_000_u16).map(|n| format!("10.{}.{}.1/32", n / 250, n % 250).parse().unwrap()).collect();
        let peer = Peer::Cidr(CidrBlock { cidr: "10.0.0.0/8".parse().unwrap(), except });
        let title = canonical_title(&NamespaceName::new("shop"), Subject::Peer(&peer));
        assert!(title.starts_with("10.0.0.0/8 except 10.0.0.1/32,") && title.ends_with(" bytes)"), "{title}");
        assert!(title.len() <= LONGEST_TITLE, "{}", title.len());
    }
}
