//! Groups: once per meaning, shared by every policy and node that uses them, kept up address by address.

use super::claims::Place;
use super::ids::{Counts, NONE};
use super::labels::{Handle, Home, Scope, Selector};
use super::running::Running;
use super::stamps::Stamps;
use super::template::Wanted;
use crate::compile::blocks;
use crate::compile::canonical::{Claim, Part, Subject, group_id_of};
use crate::compile::groups::canonical_title;
use crate::compile::is_link_local;
use crate::members::Members;
use crate::model::{
    AddressGroup, CidrBlock, Entity, Family, GroupName, LabelSelector, NamespaceName, NamespaceScope, NetworkAddress, Peer, Protocol,
    Workload,
};
use crate::node_state::{Group, Member};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// A resolved peer.
#[derive(Debug)]
pub(super) struct GroupRecord<S: Stamps> {
    /// Its meaning, from which the ids of its parts are made.
    text: Box<str>,
    pub(super) claim: Claim,
    pub(super) meaning: Meaning,
    /// The members that mean the same on every node.
    pub(super) shared: Arc<Group>,
    /// `None` before it was worked out for the first time.
    stamp: Option<S::Stamp>,
    sum: S::Sum,
    /// Members in hidden networks, by the node that owns the network.
    hidden: BTreeMap<u32, BTreeSet<Member>>,
    /// The kinds of workload that it means, sorted.
    pub(super) kinds: Vec<u32>,
    /// By how many segments each node uses it.
    pub(super) nodes: Counts,
    /// How many policies name it.
    pub(super) uses: u32,
}

/// What a group is of.
#[derive(Debug)]
pub(super) enum Meaning {
    /// Blocks as they are written somewhere.
    Blocks(Source),
    /// The addresses of whatever node asks.
    Host,
    /// The addresses of the nodes that match.
    Nodes(LabelSelector),
    /// Addresses of workloads, or places where they have a port of a name.
    Workloads(Box<Workloads>),
    /// A node is no workload and names no ports; an unknown peer is nobody.
    Nobody,
}

/// Which workloads, and what of them.
#[derive(Debug)]
pub(super) struct Workloads {
    pub(super) scope: Scope,
    port: Option<(Protocol, Box<str>)>,
    /// Only addresses in these blocks.
    within: Option<(Source, BTreeSet<IpNet>)>,
}

/// Where blocks are written.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Cidr(CidrBlock),
    Group(GroupName),
    World,
    Any,
}

/// What blocks may be made of beside what a policy says.
#[derive(Clone, Copy)]
pub(super) struct Referents<'a> {
    pub(super) address_groups: &'a BTreeMap<GroupName, Arc<AddressGroup>>,
    pub(super) cluster_networks: &'a [IpNet],
}

impl Source {
    fn of(peer: &Peer) -> Option<Self> {
        match peer {
            Peer::Cidr(block) => Some(Self::Cidr(block.clone())),
            Peer::Group(name) => Some(Self::Group(name.clone())),
            Peer::Entity(Entity::World) => Some(Self::World),
            Peer::Entity(Entity::Any) => Some(Self::Any),
            Peer::Entity(Entity::Host) | Peer::Workloads { .. } | Peer::Nodes(_) | Peer::Unknown => None,
        }
    }

    fn blocks(&self, referents: Referents<'_>) -> BTreeSet<IpNet> {
        match self {
            Self::Cidr(block) => blocks::remaining(block),
            // A missing group is nobody in an allow (DESIGN section 3).
            Self::Group(name) => {
                let listed = referents.address_groups.get(name).map(|group| group.blocks.as_slice()).unwrap_or_default();
                blocks::union(listed.iter().flat_map(blocks::remaining))
            }
            Self::World => blocks::world(referents.cluster_networks),
            Self::Any => [Family::V4, Family::V6].map(blocks::whole).into(),
        }
    }
}

impl Meaning {
    fn of(namespace: &NamespaceName, subject: Subject<'_>, running: &mut Running) -> Self {
        match subject {
            Subject::Peer(Peer::Workloads { namespaces, workloads }) => {
                Self::workloads(scope(namespace, namespaces, workloads, running), None, None)
            }
            Subject::Peer(Peer::Nodes(selector)) => Self::Nodes(selector.clone()),
            Subject::Peer(Peer::Entity(Entity::Host)) => Self::Host,
            Subject::Peer(peer) => Source::of(peer).map_or(Self::Nobody, Self::Blocks),
            Subject::NamedPort(peer, protocol, name) => {
                let port = Some((protocol, Box::from(name)));
                match peer {
                    None | Some(Peer::Entity(Entity::Any)) => Self::workloads(everybody(), port, None),
                    Some(Peer::Workloads { namespaces, workloads }) => {
                        Self::workloads(scope(namespace, namespaces, workloads, running), port, None)
                    }
                    Some(Peer::Entity(Entity::Host) | Peer::Nodes(_) | Peer::Unknown) => Self::Nobody,
                    Some(peer @ (Peer::Cidr(_) | Peer::Group(_) | Peer::Entity(Entity::World))) => {
                        Self::workloads(everybody(), port, Source::of(peer))
                    }
                }
            }
        }
    }

    fn workloads(scope: Scope, port: Option<(Protocol, Box<str>)>, within: Option<Source>) -> Self {
        Self::Workloads(Box::new(Workloads { scope, port, within: within.map(|source| (source, BTreeSet::new())) }))
    }

    /// Which workloads it is about.
    pub(super) fn scope(&self) -> Option<&Scope> {
        match self {
            Self::Workloads(workloads) => Some(&workloads.scope),
            Self::Blocks(_) | Self::Host | Self::Nodes(_) | Self::Nobody => None,
        }
    }

    /// Whether it is of nodes.
    pub(super) fn is_of_nodes(&self) -> bool {
        match self {
            Self::Nodes(_) => true,
            Self::Blocks(_) | Self::Host | Self::Workloads(_) | Self::Nobody => false,
        }
    }

    /// Where the blocks come from that it depends on.
    pub(super) fn source(&self) -> Option<&Source> {
        match self {
            Self::Blocks(source) => Some(source),
            Self::Workloads(workloads) => workloads.within.as_ref().map(|(source, _)| source),
            Self::Host | Self::Nodes(_) | Self::Nobody => None,
        }
    }
}

fn everybody() -> Scope {
    Scope { home: Home::Everywhere, workloads: Selector::default(), handle: Handle::Nothing }
}

/// The workloads that a peer of a policy in `own` names.
pub(super) fn scope(own: &NamespaceName, namespaces: &NamespaceScope, workloads: &LabelSelector, running: &mut Running) -> Scope {
    let home = match namespaces {
        NamespaceScope::Own => Home::Own(running.namespace_id(own)),
        NamespaceScope::Matching(selector) if selector.is_everything() => Home::Everywhere,
        NamespaceScope::Matching(selector) => Home::Matching(Selector::of(selector, &mut running.texts)),
    };
    let workloads = Selector::of(workloads, &mut running.texts);
    let handle = running.handle(&home, &workloads);
    Scope { home, workloads, handle }
}

/// The members of a group, worked out.
#[derive(Debug)]
pub(super) struct Worked<S: Stamps> {
    /// The shared members with their hash, where they are others than before.
    shared: Option<(Arc<Group>, S::Stamp)>,
    sum: S::Sum,
    /// Of the nodes for which it was worked out; all others keep theirs, or with `whole` have none.
    hidden: BTreeMap<u32, BTreeSet<Member>>,
    whole: bool,
    within: Option<BTreeSet<IpNet>>,
}

/// On which nodes a group is another now.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) shared: bool,
    pub(super) hidden: Vec<u32>,
}

/// A group as one node sees it.
#[derive(Debug)]
pub(super) enum View<S: Stamps> {
    Shared,
    Own(Vec<(Arc<Group>, S::Stamp)>),
}

impl<S: Stamps> GroupRecord<S> {
    /// A group that has no members yet.
    pub(super) fn new(namespace: &NamespaceName, wanted: Wanted<'_>, running: &mut Running) -> Self {
        let Wanted { subject, claim, text, id, title } = wanted;
        let title = title.unwrap_or_else(|| canonical_title(namespace, subject));
        Self {
            text: text.into(),
            claim,
            meaning: Meaning::of(namespace, subject, running),
            shared: Arc::new(Group { id, title, members: Members::default() }),
            stamp: None,
            sum: S::Sum::default(),
            hidden: BTreeMap::new(),
            kinds: Vec::new(),
            nodes: Counts::default(),
            uses: 0,
        }
    }

    /// The hash of the shared members.
    pub(super) fn stamp(&self) -> S::Stamp {
        self.stamp.unwrap_or_else(|| S::group(&self.shared.id, &self.shared.title, &self.sum))
    }

    /// All its members, from nothing.
    pub(super) fn work_out(&self, running: &Running, referents: Referents<'_>) -> Worked<S> {
        let mut shared: Vec<Member> = Vec::new();
        let mut hidden: BTreeMap<u32, BTreeSet<Member>> = BTreeMap::new();
        let mut within = None;
        match &self.meaning {
            Meaning::Blocks(source) => shared.extend(source.blocks(referents).into_iter().map(Member::Block)),
            Meaning::Nodes(selector) => {
                let declared = running.nodes().iter().filter_map(|host| host.declared.as_ref());
                let nodes = declared.filter(|node| selector.matches(&node.labels));
                shared.extend(nodes.flat_map(|node| &node.addresses).map(|address| Member::Address(*address)));
            }
            Meaning::Host | Meaning::Nobody => {}
            Meaning::Workloads(workloads) => {
                within = workloads.within.as_ref().map(|(source, _)| source.blocks(referents));
                let kinds = self.kinds.iter().filter_map(|kind| running.kind(*kind));
                for held in kinds.flat_map(|kind| &kind.workloads).filter_map(|number| running.workload(*number)) {
                    for at in &held.workload.addresses {
                        let Some((place, network)) = running.place_of(at) else { continue };
                        if !self.counts(running, &place, network, within.as_ref()) {
                            continue;
                        }
                        let member = |member| match place.owner {
                            NONE => shared.push(member),
                            owner => {
                                hidden.entry(owner).or_default().insert(member);
                            }
                        };
                        workloads.members_of(&held.workload, at).for_each(member);
                    }
                }
            }
        }
        let members: Members = shared.into_iter().collect();
        let mut sum = S::Sum::default();
        members.iter().for_each(|member| S::add(&mut sum, member));
        Worked { shared: self.other(members, &sum), sum, hidden, whole: true, within }
    }

    /// The shared part with these members, if it has others now or has no hash yet.
    fn other(&self, members: Members, sum: &S::Sum) -> Option<(Arc<Group>, S::Stamp)> {
        let Group { id, title, members: before } = &*self.shared;
        if *before == members {
            return self.stamp.is_none().then(|| (self.shared.clone(), self.stamp()));
        }
        Some((Arc::new(Group { id: id.clone(), title: title.clone(), members }), S::group(id, title, sum)))
    }

    /// Its members after the claims at these places changed.
    pub(super) fn work_out_at(&self, running: &Running, places: &[Place]) -> Worked<S> {
        let (mut members, mut sum) = (self.shared.members.clone(), self.sum);
        let mut elsewhere: BTreeMap<u32, BTreeSet<Member>> = BTreeMap::new();
        for place in places {
            let now = self.at(running, place);
            if place.owner != NONE {
                let before = || self.hidden.get(&place.owner).cloned().unwrap_or_default();
                let hidden = elsewhere.entry(place.owner).or_insert_with(before);
                hidden.retain(|member| !is_of(member, place.address));
                hidden.extend(now);
                continue;
            }
            let before: Vec<Member> = members_at(&members, place.address).collect();
            for gone in before.iter().filter(|member| !now.contains(member)) {
                members.remove(gone);
                S::remove(&mut sum, gone);
            }
            for come in now.into_iter().filter(|member| !before.contains(member)) {
                members.insert(come);
                S::add(&mut sum, &come);
            }
        }
        Worked { shared: self.other(members, &sum), sum, hidden: elsewhere, whole: false, within: None }
    }

    /// The members that the claims at a place come to.
    fn at(&self, running: &Running, place: &Place) -> BTreeSet<Member> {
        let Meaning::Workloads(workloads) = &self.meaning else { return BTreeSet::new() };
        let within = workloads.within.as_ref().map(|(_, blocks)| blocks);
        let mut found = BTreeSet::new();
        for claim in running.claims.at(place) {
            let Some(held) = running.workload(claim.workload) else { continue };
            if self.kinds.binary_search(&held.kind).is_ok() && self.counts(running, place, claim.network, within) {
                found.extend(workloads.members_at(&held.workload, place.address));
            }
        }
        found
    }

    /// Whether a claim at the place counts.
    fn counts(&self, running: &Running, place: &Place, network: u32, within: Option<&BTreeSet<IpNet>>) -> bool {
        let sure = match self.claim {
            Claim::Sure => !running.claims.is_contested(place, network),
            Claim::Any => true,
        };
        sure && !is_link_local(place.address) && within.is_none_or(|blocks| blocks.iter().any(|block| block.contains(&place.address)))
    }

    /// Takes in what was worked out and says where that makes a difference.
    pub(super) fn install(&mut self, worked: Worked<S>) -> Moved {
        let Worked { shared, sum, hidden, whole, within } = worked;
        if let (Meaning::Workloads(workloads), Some(blocks)) = (&mut self.meaning, within)
            && let Some((_, kept)) = &mut workloads.within
        {
            *kept = blocks;
        }
        let mut moved = Moved::default();
        if let Some((group, stamp)) = shared {
            moved.shared = self.shared.members != group.members;
            (self.shared, self.stamp, self.sum) = (group, Some(stamp), sum);
        }
        if whole {
            let gone: Vec<u32> = self.hidden.keys().filter(|node| !hidden.contains_key(node)).copied().collect();
            gone.iter().for_each(|node| drop(self.hidden.remove(node)));
            moved.hidden.extend(gone);
        }
        for (node, members) in hidden {
            if self.hidden.get(&node).is_some_and(|before| *before == members) {
                continue;
            }
            match members.is_empty() {
                true if self.hidden.remove(&node).is_none() => continue,
                true => {}
                false => drop(self.hidden.insert(node, members)),
            }
            moved.hidden.push(node);
        }
        moved
    }

    /// The group as a node sees it.
    pub(super) fn on_node(&self, node: u32, running: &Running) -> View<S> {
        let host = running.node(node);
        match &self.meaning {
            Meaning::Host => {
                let members: Members = host.addresses().iter().map(|address| Member::Address(*address)).collect();
                return View::Own(vec![self.part(Part::AllOn(&host.name), members, None)]);
            }
            Meaning::Blocks(_) | Meaning::Nodes(_) | Meaning::Workloads(_) | Meaning::Nobody => {}
        }
        let hidden = self.hidden.get(&node);
        let none = BTreeSet::new();
        let ambiguous = match self.claim {
            Claim::Sure => running.claims.ambiguous_on(node).unwrap_or(&none),
            Claim::Any => &none,
        };
        let is_ambiguous = |member: &Member| match member {
            Member::Address(address) | Member::Service(address, ..) => ambiguous.contains(address),
            Member::Block(_) => false,
        };
        let own = || hidden.into_iter().flatten().filter(|member| !is_ambiguous(member)).copied();
        let doubtful: Vec<Member> = ambiguous.iter().flat_map(|address| members_at(&self.shared.members, *address)).collect();
        if !doubtful.is_empty() {
            let (mut members, mut sum) = (self.shared.members.clone(), self.sum);
            for member in &doubtful {
                members.remove(member);
                S::remove(&mut sum, member);
            }
            for member in own().filter(|member| members.insert(*member)).collect::<Vec<_>>() {
                S::add(&mut sum, &member);
            }
            return View::Own(vec![self.part(Part::AllOn(&host.name), members, Some(sum))]);
        }
        let members: BTreeSet<Member> = own().collect();
        if members.is_empty() {
            return View::Shared;
        }
        View::Own(vec![(self.shared.clone(), self.stamp()), self.part(Part::HiddenOn(&host.name), members.into(), None)])
    }

    fn part(&self, part: Part<'_>, members: Members, sum: Option<S::Sum>) -> (Arc<Group>, S::Stamp) {
        let id = group_id_of(&self.text, part);
        let title = self.shared.title.clone();
        let sum = sum.unwrap_or_else(|| {
            let mut sum = S::Sum::default();
            members.iter().for_each(|member| S::add(&mut sum, member));
            sum
        });
        let stamp = S::group(&id, &title, &sum);
        (Arc::new(Group { id, title, members }), stamp)
    }
}

impl Workloads {
    fn members_of<'a>(&'a self, workload: &'a Workload, at: &NetworkAddress) -> impl Iterator<Item = Member> + 'a {
        self.members_at(workload, at.address)
    }

    fn members_at<'a>(&'a self, workload: &'a Workload, address: IpAddr) -> impl Iterator<Item = Member> + 'a {
        let plain = self.port.is_none().then_some(Member::Address(address));
        let named = self.port.iter().flat_map(move |(protocol, name)| {
            let ports = workload.named_ports.iter().filter(move |it| it.protocol == *protocol && *it.name == **name);
            ports.map(move |port| Member::Service(address, port.protocol, port.port))
        });
        plain.into_iter().chain(named)
    }
}

fn is_of(member: &Member, of: IpAddr) -> bool {
    match member {
        Member::Address(address) | Member::Service(address, ..) => *address == of,
        Member::Block(_) => false,
    }
}

/// The members that are an address, on every port or on some.
fn members_at(members: &Members, address: IpAddr) -> impl Iterator<Item = Member> + '_ {
    let plain = members.get(&Member::Address(address)).copied();
    let named = members.range(Member::Service(address, Protocol(0), 0)..=Member::Service(address, Protocol(u8::MAX), u16::MAX));
    plain.into_iter().chain(named.copied())
}
