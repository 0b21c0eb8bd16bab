//! What people wrote, after every kind of object was brought to one form.

use super::id::{GroupName, NamespaceName};
use super::label::LabelSelector;
use crate::shared_map::SharedMap;
use ipnet::IpNet;
use std::fmt;

/// The policies and what they refer to, at one revision. Copies share their memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    /// Policies of namespaces by key.
    pub policies: SharedMap<PolicyKey, Policy>,
    /// Policies of the tiers around them by key.
    pub tiered: SharedMap<PolicyKey, TieredPolicy>,
    /// Named address groups.
    pub address_groups: SharedMap<GroupName, AddressGroup>,
    /// The configured `clusterNetworks`. Empty means "not configured": the entity `world` is then the public addresses only.
    pub cluster_networks: Vec<IpNet>,
}

impl PolicySet {
    /// The same set with every Audit policy enforced: what the audit verdict is by. `None` when there is none, and both verdicts are one.
    pub fn with_audit_enforced(&self) -> Option<Self> {
        let namespaced = self.policies.values().map(|it| it.mode);
        if !namespaced.chain(self.tiered.values().map(|it| it.mode)).any(|mode| mode == Mode::Audit) {
            return None;
        }
        let mut set = self.clone();
        set.policies.values_mut().for_each(|it| it.mode = Mode::Enforce);
        set.tiered.values_mut().for_each(|it| it.mode = Mode::Enforce);
        Some(set)
    }
}

/// Which of the kinds a policy came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `firebreak.dev/v1alpha1` SegmentPolicy.
    SegmentPolicy,
    /// `firebreak.dev/v1alpha1` ClusterSegmentPolicy.
    ClusterSegmentPolicy,
    /// `policy.networking.k8s.io/v1alpha1` AdminNetworkPolicy.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1` BaselineAdminNetworkPolicy.
    BaselineAdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
}

impl PolicyKind {
    /// Every kind, in the order in which policies of equal standing are named.
    pub const ALL: [Self; 6] = [
        Self::NetworkPolicy,
        Self::SegmentPolicy,
        Self::ClusterSegmentPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];

    /// The kind's name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::SegmentPolicy => "SegmentPolicy",
            Self::ClusterSegmentPolicy => "ClusterSegmentPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// Whether its policies belong to a namespace; the others are cluster-scoped and stand in a tier.
    pub fn is_namespaced(self) -> bool {
        match self {
            Self::NetworkPolicy | Self::SegmentPolicy => true,
            Self::ClusterSegmentPolicy | Self::AdminNetworkPolicy | Self::BaselineAdminNetworkPolicy | Self::ClusterNetworkPolicy => false,
        }
    }
}

/// Identifies a policy; one name in two namespaces is two policies (SEMANTICS 10).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// The kind it was written as.
    pub kind: PolicyKind,
    /// Its namespace; the empty name for cluster-scoped kinds, which no namespace can have.
    pub namespace: NamespaceName,
    /// Its name.
    pub name: String,
}

impl PolicyKey {
    /// The key of a policy of a cluster-scoped kind.
    pub fn cluster_scoped(kind: PolicyKind, name: impl Into<String>) -> Self {
        Self { kind, namespace: NamespaceName::new(""), name: name.into() }
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.is_namespaced() {
            true => write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name),
            false => write!(f, "{} {}", self.kind.as_str(), self.name),
        }
    }
}

/// Whether a policy decides, or only says what it would decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It takes no part in the enforced verdict, as if it were absent; the audit verdict is that of the same set with every such policy enforced.
    Audit,
}

/// Additive allow with default deny for what it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Kind, namespace, name.
    pub key: PolicyKey,
    /// Whether it decides.
    pub mode: Mode,
    /// The workloads of the policy's own namespace that it is about.
    pub subject: LabelSelector,
    /// `None`: this policy does not concern the direction. `Some`: it isolates it and these rules allow (SEMANTICS 13).
    pub ingress: Option<Vec<Rule>>,
    /// The same for what the subjects send.
    pub egress: Option<Vec<Rule>>,
    /// Whether the subject's own node gets in unasked.
    pub host_access: HostAccess,
}

/// A tier around the policies of namespaces. The first decision wins; `Pass` leaves the tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Before the policies of namespaces.
    Admin,
    /// After them, and only where none of them isolates (SEMANTICS 17).
    Baseline,
}

impl Tier {
    /// `Admin` or `Baseline`, as the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        }
    }
}

/// A policy of a tier: rules in order, of which the first that matches decides. It isolates nobody (SEMANTICS 14).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TieredPolicy {
    /// Kind and name.
    pub key: PolicyKey,
    /// Its tier; priorities do not compare across tiers.
    pub tier: Tier,
    /// 0 to 1000, the lowest first. Of equal ones the first by key, so that the outcome never depends on chance.
    pub priority: u16,
    /// Whether it decides.
    pub mode: Mode,
    /// The workloads that it is about.
    pub subject: Subject,
    /// On what the subjects receive.
    pub ingress: Vec<TieredRule>,
    /// On what the subjects send.
    pub egress: Vec<TieredRule>,
}

impl TieredPolicy {
    /// The rules of one direction.
    pub fn rules(&self, direction: Direction) -> &[TieredRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// The workloads that a policy of a tier is about: those that match in the namespaces that match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// In which namespaces; a namespace that nobody declared has no labels.
    pub namespaces: LabelSelector,
    /// Which workloads there.
    pub workloads: LabelSelector,
}

/// One rule of a policy of a tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TieredRule {
    /// The rule's own name, where its author gave one.
    pub name: Option<String>,
    /// What it decides for what it matches.
    pub action: Action,
    /// Who may be at the other end. Here [`NamespaceScope::Own`] means nobody: these policies have no namespace.
    pub peers: Peers,
    /// On which ports of the destination.
    pub services: Services,
    /// Why, in the author's words; reported with each denied flow.
    pub reason: Option<String>,
}

/// What a rule of a tier decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Let through; final for this side only (SEMANTICS 16).
    Allow,
    /// Stop; final.
    Deny(Answer),
    /// Leave the whole tier (SEMANTICS 15).
    Pass,
}

/// How a denied packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// Not at all.
    Drop,
    /// With a TCP reset or an ICMP error.
    Reject,
}

/// Whether the workload's own node gets in past this policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostAccess {
    /// The node gets in whatever the rules say (NetworkPolicy always; probes depend on it).
    Allow,
    /// The node is judged by the ingress rules like any other peer.
    Judge,
}

/// Traffic that is allowed: these peers on these services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The rule's own name, where its author gave one.
    pub name: Option<String>,
    /// Who may be at the other end.
    pub peers: Peers,
    /// On which ports of the destination.
    pub services: Services,
}

/// Who may be at the other end. Empty never means any: `Only(vec![])` is nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Every address.
    Any,
    /// One of these.
    Only(Vec<Peer>),
}

/// One peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// The workloads that match in the namespaces that match (SEMANTICS 6).
    Workloads {
        /// In which namespaces.
        namespaces: NamespaceScope,
        /// Which workloads there.
        workloads: LabelSelector,
    },
    /// A block of addresses, pods included (SEMANTICS 7).
    Cidr(CidrBlock),
    /// A named `AddressGroup`. When it is missing it fails closed like [`Self::Unknown`].
    Group(GroupName),
    /// One of the entities.
    Entity(Entity),
    /// The addresses of the nodes that match, not the workloads on them (SEMANTICS 18).
    Nodes(LabelSelector),
    /// A peer of a Kubernetes object with no field that is known here. It fails closed: an allow with it matches nothing through it, a Deny
    /// or a Pass becomes a Deny of everything (SEMANTICS 20, and the API's documentation of its peers).
    Unknown,
}

/// The namespaces that a workload peer looks in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceScope {
    /// The policy's own namespace.
    Own,
    /// Every namespace whose labels match; a namespace that nobody declared has no labels.
    Matching(LabelSelector),
}

/// A block without some blocks. `except` cuts only this block (SEMANTICS 9).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrBlock {
    /// The block, host bits cleared.
    pub cidr: IpNet,
    /// What is cut out of it, host bits cleared.
    pub except: Vec<IpNet>,
}

/// Peers that have a name of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entity {
    /// Every address.
    Any,
    /// The addresses of the subject's own node.
    Host,
    /// Every address outside the configured cluster networks; public addresses only until those are configured.
    World,
}

/// Which services of the destination. Empty never means any: `Only(vec![])` is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services {
    /// Every protocol, every port.
    Any,
    /// One of these.
    Only(Vec<Service>),
}

/// One service of a destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Every port, or every type, of a protocol.
    Protocol(Protocol),
    /// A range of ports of a protocol that has ports.
    Ports(Protocol, PortRange),
    /// A port that the destination workload names; never matches an address outside (SEMANTICS 5).
    Named(Protocol, String),
    /// ICMP (IPv4) or ICMPv6 messages by type, and by code where one is given.
    Icmp {
        /// ICMP belongs to IPv4, ICMPv6 to IPv6.
        family: Family,
        /// The type.
        kind: u8,
        /// The code; `None` is every code.
        code: Option<u8>,
    },
}

/// Both ends inclusive; `first <= last` by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `None` if `last < first`.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// A range of one port.
    pub fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// The first port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether the port is in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// An IP protocol number (IANA "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// DCCP.
    pub const DCCP: Self = Self(33);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// UDP-Lite.
    pub const UDPLITE: Self = Self(136);

    /// Whether its packets begin with a source and a destination port.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::DCCP | Self::SCTP | Self::UDPLITE)
    }

    /// The family whose ICMP this is.
    pub fn icmp_family(self) -> Option<Family> {
        match self {
            Self::ICMP => Some(Family::V4),
            Self::ICMPV6 => Some(Family::V6),
            _ => None,
        }
    }

    /// The name that the Kubernetes API or IANA gives it, if it is one that policies can name.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::ICMP => "ICMP",
            Self::TCP => "TCP",
            Self::UDP => "UDP",
            Self::DCCP => "DCCP",
            Self::ICMPV6 => "ICMPv6",
            Self::SCTP => "SCTP",
            Self::UDPLITE => "UDPLite",
            _ => return None,
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "protocol {}", self.0),
        }
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Seen from the workload that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// What the subject receives.
    Ingress,
    /// What the subject sends.
    Egress,
}

impl Direction {
    /// `ingress` or `egress`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A named list of address blocks that several policies share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressGroup {
    /// Its name.
    pub name: GroupName,
    /// Its blocks; an empty list is nobody.
    pub blocks: Vec<CidrBlock>,
}
