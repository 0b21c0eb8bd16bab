//! What one node needs: groups, segments and its own endpoints, by content. This is what goes over the wire, what
//! `flatten` turns into kernel sets, and what the agent keeps on disk.

use crate::address_set::AddressSet;
use crate::id_text::IdText;
use crate::members::Members;
use crate::model::{Action, Direction, Family, HostAccess, NamespaceName, PolicyKey, PortRange, Protocol, PublishedPort, WorkloadId};
use crate::shared_map::SharedMap;
use crate::tiers::rejects;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Everything one node needs. Equal states are equal in content, whatever the events that led to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// The node's own addresses, as its agent reported them: what `host` is, and where published ports listen.
    pub addresses: BTreeSet<IpAddr>,
    /// Peer groups by id; every group that a segment names is here.
    pub groups: SharedMap<GroupId, Group>,
    /// Segments by id; every segment that an endpoint names is here.
    pub segments: SharedMap<SegmentId, Segment>,
    /// The node's own workloads.
    pub endpoints: SharedMap<WorkloadId, LocalEndpoint>,
}

impl NodeState {
    /// Whether nothing but the groups differs. Objects that are the same memory are equal without a look.
    pub fn differs_only_in_groups(&self, other: &Self) -> bool {
        self.addresses == other.addresses && self.endpoints == other.endpoints && self.segments == other.segments
    }

    /// Whether a segment has enforced rules of tiers: what an agent without the feature `tiers` would pass over.
    pub fn needs_tiers(&self) -> bool {
        self.segments.values().any(|segment| segment.has_tiers(Direction::Ingress) || segment.has_tiers(Direction::Egress))
    }

    /// Whether a rule of a tier denies with an answer: what an agent without the feature `reject` does not know.
    pub fn needs_reject(&self) -> bool {
        self.segments.values().any(|segment| [Direction::Ingress, Direction::Egress].iter().any(|it| rejects(segment, *it)))
    }

    /// Whether a policy in Audit mode is about somebody: what an agent without the feature `audit` would pass over.
    pub fn needs_audit(&self) -> bool {
        self.segments.values().any(|segment| segment.audit.is_some())
    }
}

/// A peer group's id: stable for one meaning (selector and scope), whoever its members are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub IdText);

/// A segment's id: stable for one set of policies acting in one way, whoever its members are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub IdText);

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The resolved members of one selector, block list or entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// For people: `app=api in namespace shop`, `10.0.0.0/8`, `host`.
    pub title: String,
    /// Who is in it; empty is nobody.
    pub members: Members,
}

/// One member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// An address, on whatever port the rule says.
    Address(IpAddr),
    /// A block; blocks of one group are disjoint, `except` is already cut out.
    Block(IpNet),
    /// An address on one port only: what a named port of a peer resolved to.
    Service(IpAddr, Protocol, u16),
}

/// Workloads on which the same policies act in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its id.
    pub id: SegmentId,
    /// For people: `shop/web`.
    pub title: String,
    /// What is enforced for its members.
    pub rules: Arc<Rulebook>,
    /// What would be if every Audit policy were enforced; `None` when no Audit policy is about them.
    pub audit: Option<Arc<Rulebook>>,
}

impl Segment {
    /// Whether an enforced rule of a tier is about the direction.
    pub fn has_tiers(&self, direction: Direction) -> bool {
        !(self.rules.admin.of(direction).is_empty() && self.rules.baseline.of(direction).is_empty())
    }
}

/// What is judged by, in the order in which it is asked: Admin tier, policies of the namespace, Baseline tier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rulebook {
    /// The rules of the Admin tier in the order of their precedence.
    pub admin: TierRules,
    /// What may be received; `None` is not isolated.
    pub ingress: Option<Isolation>,
    /// What may be sent; `None` is not isolated.
    pub egress: Option<Isolation>,
    /// The rules of the Baseline tier in the order of their precedence; asked only where nothing isolates.
    pub baseline: TierRules,
}

impl Rulebook {
    /// What isolates the direction.
    pub fn isolation(&self, direction: Direction) -> Option<&Isolation> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }

    /// Every policy that has a say in the direction, in key order.
    pub fn policies(&self, direction: Direction) -> Vec<PolicyKey> {
        let tiers = [&self.admin, &self.baseline].into_iter().flat_map(|tier| tier.of(direction)).map(|rule| &rule.origin.policy);
        let isolating = self.isolation(direction).into_iter().flat_map(|it| &it.policies);
        tiers.chain(isolating).cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The groups that rules of tiers name.
    pub fn named_by_tiers(&self) -> impl Iterator<Item = &GroupId> {
        let rules = [&self.admin, &self.baseline].into_iter().flat_map(|it| it.ingress.iter().chain(&it.egress));
        rules.flat_map(|rule| match &rule.peers {
            CompiledPeers::Any => &[][..],
            CompiledPeers::Groups(ids) => ids,
        })
    }

    /// Every peers and services pair that a rule names, of both directions.
    pub fn peers(&self) -> impl Iterator<Item = &CompiledPeers> {
        let isolations = self.ingress.iter().chain(&self.egress).flat_map(|it| &it.rules).map(|rule| &rule.peers);
        let tiers = [&self.admin, &self.baseline].into_iter().flat_map(|it| it.ingress.iter().chain(&it.egress)).map(|rule| &rule.peers);
        isolations.chain(tiers)
    }
}

/// The rules of one tier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TierRules {
    /// On what is received.
    pub ingress: Vec<TierRule>,
    /// On what is sent.
    pub egress: Vec<TierRule>,
}

impl TierRules {
    /// The rules of one direction.
    pub fn of(&self, direction: Direction) -> &[TierRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// One rule of a tier with its peers and ports resolved for a segment; what fails closed is resolved already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierRule {
    /// Where it was written.
    pub origin: RuleRef,
    /// What it decides.
    pub action: Action,
    /// Who.
    pub peers: CompiledPeers,
    /// Which services.
    pub services: CompiledServices,
    /// Why, in the author's words.
    pub reason: Option<String>,
}

/// An isolated direction: everything is denied but what the rules allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// The policies that isolate, in key order; never empty.
    pub policies: Vec<PolicyKey>,
    /// Whether the own node is judged too; only ingress asks.
    pub host_access: HostAccess,
    /// What is allowed.
    pub rules: Vec<CompiledRule>,
}

/// One rule with its peers and ports resolved for a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledRule {
    /// Where it was written.
    pub origin: RuleRef,
    /// Who.
    pub peers: CompiledPeers,
    /// Which services.
    pub services: CompiledServices,
}

/// Points at a rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    /// The policy.
    pub policy: PolicyKey,
    /// Position in the direction's list, from 0.
    pub index: u32,
    /// The rule's own name, where its author gave one.
    pub name: Option<String>,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}#{name}", self.policy),
            None => write!(f, "{}#{}", self.policy, self.index),
        }
    }
}

/// Resolved peers. Empty never means any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompiledPeers {
    /// Every address.
    Any,
    /// The members of these groups.
    Groups(Vec<GroupId>),
}

/// Resolved services. Empty never means any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompiledServices {
    /// Every protocol, every port.
    Any,
    /// One of these.
    Only(Vec<CompiledService>),
    /// What the group's [`Member::Service`] entries say: a named port at the other end.
    OfMembers,
}

/// One resolved service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CompiledService {
    /// Every port, or every type, of a protocol.
    Protocol(Protocol),
    /// A range of ports.
    Ports(Protocol, PortRange),
    /// ICMP or ICMPv6 by type, and by code where one is given.
    Icmp {
        /// ICMP belongs to IPv4, ICMPv6 to IPv6.
        family: Family,
        /// The type.
        kind: u8,
        /// The code; `None` is every code.
        code: Option<u8>,
    },
}

/// A workload of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Its id.
    pub id: WorkloadId,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its segment.
    pub segment: SegmentId,
    /// Its addresses, whatever their network: on one node an address means one thing.
    pub addresses: AddressSet,
    /// Ports of this node that lead to it.
    pub published_ports: Vec<PublishedPort>,
}

/// The kinds of object that a node holds, in the order in which the Commit hash takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A peer group.
    Group,
    /// A segment.
    Segment,
    /// A workload of the node.
    Endpoint,
    /// The node itself.
    Node,
}

impl ObjectKind {
    /// For people and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Segment => "segment",
            Self::Endpoint => "endpoint",
            Self::Node => "node",
        }
    }
}

/// Names one object of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: ObjectKind,
    /// Group id, segment id, container id, or the node's name.
    pub id: IdText,
}

impl ObjectKey {
    /// A key of its two parts.
    pub fn new(kind: ObjectKind, id: impl Into<IdText>) -> Self {
        Self { kind, id: id.into() }
    }

    /// A number in the order of the keys.
    pub(crate) fn head_of(kind: ObjectKind, id: &IdText) -> u64 {
        // Two bits hold the four kinds.
        ((kind as u64) << 62) | (id.head() >> 2)
    }

    /// Whether it comes before another in order. Said without a branch on the kind, which nobody could foretell in a list of all kinds.
    pub(crate) fn is_before(&self, other: &Self) -> bool {
        let place = |it: &Self| (u128::from(it.kind as u8) << 64) | u128::from(it.id.head());
        let (here, there) = (place(self), place(other));
        if here == there { self.id < other.id } else { here < there }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.id)
    }
}
