//! Every name that the kernel side carries, in one place: tables, sets, chains, counters, log prefixes.
//! `nft list ruleset` shows them to people, so a name says what the thing is.

use firebreak_policy::kernel_sets::{Chain, GroupForm, GroupSet, SetId, Shape, ShortName};
use firebreak_policy::model::{Direction, Family, Protocol};
use std::fmt;

/// The name of each of our tables.
pub const TABLE: &str = "firebreak";

/// What the log prefix of a denied ingress flow is.
pub const LOG_DENY_IN: &str = "firebreak deny in";
/// What the log prefix of a denied egress flow is.
pub const LOG_DENY_OUT: &str = "firebreak deny out";
/// The prefix of a packet that was denied in the ingress stage and found no room in its set.
pub const LOG_UNCOUNTED_IN: &str = "firebreak deny in uncounted";
/// The prefix of a packet that was denied in the egress stage and found no room in its set.
pub const LOG_UNCOUNTED_OUT: &str = "firebreak deny out uncounted";

/// The log prefix of an ingress flow that would have been denied, while the node only observes.
pub const LOG_AUDIT_IN: &str = "firebreak audit in";
/// The same of an egress flow.
pub const LOG_AUDIT_OUT: &str = "firebreak audit out";

/// The log prefix of an ingress flow that is denied with an answer.
pub const LOG_REJECT_IN: &str = "firebreak reject in";
/// The same of an egress flow.
pub const LOG_REJECT_OUT: &str = "firebreak reject out";

/// Counts every packet denied by the ingress stage: the control sum of the `denied_in*` sets.
pub const COUNTER_DENIED_IN: &str = "denied_in";
/// Counts every packet denied by the egress stage: the control sum of the `denied_out*` sets.
pub const COUNTER_DENIED_OUT: &str = "denied_out";
/// Denied ingress packets that found their set full: counted here only.
pub const COUNTER_OVERFLOW_IN: &str = "denied_overflow_in";
/// Denied egress packets that found their set full: counted here only.
pub const COUNTER_OVERFLOW_OUT: &str = "denied_overflow_out";
/// Packets that the ingress stage let through only because the node observes.
pub const COUNTER_AUDITED_IN: &str = "audited_in";
/// Packets that the egress stage let through only because the node observes.
pub const COUNTER_AUDITED_OUT: &str = "audited_out";
/// Packets of local workloads that belong to no connection and cannot begin one.
pub const COUNTER_OUT_OF_STATE: &str = "out_of_state";
/// Packets of connections that were cut.
pub const COUNTER_CUT: &str = "cut";
/// Packets that came in through an unknown workload interface.
pub const COUNTER_UNKNOWN_IN: &str = "unknown_interface_in";
/// Packets that were to leave through an unknown workload interface.
pub const COUNTER_UNKNOWN_OUT: &str = "unknown_interface_out";

/// Interfaces that may talk, by ifindex; in each of the three tables.
pub const SET_KNOWN_IF: &str = "known_if";
/// Holds `ipv4` and `ipv6` for as long as the node observes: what policy denies is then let through, counted and logged.
pub const SET_OBSERVE: &str = "observe";
/// Interfaces of workloads, by ifindex, in the bridge table: what leaves through them is for them alone.
pub const SET_GUARDED_IF: &str = "guarded_if";
/// Counts what a port of a bridge was not to get, by port and EtherType: flooding and other people's broadcasts.
pub const SET_GUARD_OUT: &str = "guard_out_ports";
/// The sum of [`SET_GUARD_OUT`].
pub const COUNTER_GUARD_OUT: &str = "guard_out";
/// Frames of workloads that a guard refused: the control sum of the `guard_in_*` sets.
pub const COUNTER_GUARD_IN: &str = "guard_in";
/// Refused frames that found their set full: counted here only.
pub const COUNTER_GUARD_OVERFLOW: &str = "guard_overflow";
/// What every host says by itself and nobody needs (IGMP, MLD): refused, and nothing that anybody tried.
pub const COUNTER_GUARD_QUIET: &str = "guard_quiet";
/// How the name of a guard's base chain begins; the interface's name follows.
pub const PORT_CHAIN: &str = "port_";
/// Where every guard's base chain jumps to.
pub const CHAIN_FROM_WORKLOAD: &str = "from_workload";
/// How the log prefix of a refused frame begins; what it violated follows.
pub const LOG_GUARD: &str = "firebreak guard ";

/// Holds `tcp` for as long as connections that are older than the first install may be picked up in the middle.
pub const SET_MIDSTREAM: &str = "midstream_allowed";

/// The set of what the other end of a cut connection would send, so that it does not pass as new when the entry is gone.
pub fn revoked(family: Family) -> String {
    format!("revoked{}", family_digit(family))
}

/// While a flood is denied: the packets with ports that were denied a moment ago in this direction, by both their ends.
pub fn shield(direction: Direction, family: Family) -> String {
    format!("shield_{}{}", direction_word(direction), family_digit(family))
}

/// While a flood is denied: the answers to connections that were let through a moment ago, by both their ends.
pub fn opened(family: Family) -> String {
    format!("opened{}", family_digit(family))
}

/// Which table: its netfilter family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// `inet firebreak`: policy, and unknown interfaces where packets are routed.
    Inet,
    /// `bridge firebreak`: unknown interfaces that are ports of a bridge.
    Bridge,
    /// `arp firebreak`: ARP on unknown interfaces that are routed.
    Arp,
    /// `netdev firebreak`: the guards of the workloads' interfaces.
    Netdev,
}

impl Layer {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Inet, Self::Bridge, Self::Arp, Self::Netdev];
    /// Those that know interfaces by name pattern and [`SET_KNOWN_IF`].
    pub const KNOWING: [Self; 3] = [Self::Inet, Self::Bridge, Self::Arp];

    /// What `nft` calls the family.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
        }
    }

    /// The number of the family, `NFPROTO_*` of `linux/netfilter.h`.
    pub fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Arp => 3,
            Self::Netdev => 5,
            Self::Bridge => 7,
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One of the sets whose elements the agent writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetRef {
    /// Who may talk at all: [`SET_KNOWN_IF`] of one table.
    KnownInterfaces(Layer),
    /// The addresses of the node's workloads, isolated or not.
    Workloads(Family),
    /// Policy.
    Policy(SetId),
    /// What interfaces are bound to: the guards' sets.
    Bound(Layer, BoundForm),
    /// A map from local addresses to the chains of their segments.
    Segments(Asked, Direction, Family),
    /// The members of a group in the shared form. Such sets come and go.
    Group(GroupSet),
}

/// What one of the guards' sets binds an interface to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BoundForm {
    /// Nothing: that it is a workload's.
    Guarded,
    /// Its MAC address.
    Mac,
    /// The same, as the bytes of a DHCP client's hardware address.
    Chaddr,
    /// MAC and IP address at once.
    Address(Family),
    /// An IP address, to which packets and ARP may go.
    Ip(Family),
    /// An IPv4 address, as the bytes of the packet that an ICMP error quotes.
    Quoted4,
    /// An IPv6 address, as the bytes of a neighbour discovery target or of the packet that an ICMP error quotes.
    Target6,
}

impl BoundForm {
    /// Those of a table, in the order in which plans name them.
    pub fn of(layer: Layer) -> &'static [Self] {
        const V4: BoundForm = BoundForm::Address(Family::V4);
        const V6: BoundForm = BoundForm::Address(Family::V6);
        match layer {
            Layer::Inet | Layer::Arp => &[],
            Layer::Bridge => &[Self::Guarded, Self::Mac, Self::Ip(Family::V4), Self::Ip(Family::V6), Self::Target6],
            Layer::Netdev => &[Self::Mac, Self::Chaddr, V4, V6, Self::Quoted4, Self::Target6],
        }
    }

    /// The set's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guarded => SET_GUARDED_IF,
            Self::Mac => "bound_mac",
            Self::Chaddr => "bound_chaddr",
            Self::Address(Family::V4) => "bound4",
            Self::Address(Family::V6) => "bound6",
            Self::Ip(Family::V4) => "bound_ip4",
            Self::Ip(Family::V6) => "bound_ip6",
            Self::Quoted4 => "bound_quoted4",
            Self::Target6 => "bound_target6",
        }
    }
}

impl SetRef {
    /// The table that the set is in.
    pub fn layer(self) -> Layer {
        match self {
            Self::KnownInterfaces(layer) | Self::Bound(layer, _) => layer,
            Self::Workloads(_) | Self::Policy(_) | Self::Segments(..) | Self::Group(_) => Layer::Inet,
        }
    }

    /// The set's name in its table.
    pub fn name(self) -> String {
        match self {
            Self::KnownInterfaces(_) => SET_KNOWN_IF.to_owned(),
            Self::Workloads(family) => workloads(family),
            Self::Policy(id) => policy_set(id),
            Self::Bound(_, form) => form.name().to_owned(),
            Self::Segments(asked, direction, family) => segments(asked, direction, family),
            Self::Group(set) => group_set(&set),
        }
    }

    /// Every set that the agent writes and that is always there, in the order in which plans name them.
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Layer::KNOWING.into_iter().map(Self::KnownInterfaces).collect();
        all.extend(FAMILIES.map(Self::Workloads));
        all.extend(policy_sets().into_iter().map(Self::Policy));
        for layer in Layer::ALL {
            all.extend(BoundForm::of(layer).iter().map(|form| Self::Bound(layer, *form)));
        }
        for direction in DIRECTIONS {
            for asked in [Asked::Packet, Asked::Answer] {
                all.extend(FAMILIES.map(|family| Self::Segments(asked, direction, family)));
            }
        }
        all.sort_unstable();
        all
    }
}

impl fmt::Display for SetRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {TABLE} {}", self.layer(), self.name())
    }
}

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Both directions.
pub const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Every policy set that exists in the table.
pub fn policy_sets() -> Vec<SetId> {
    const BOTH: [Shape; 10] = [
        Shape::Isolated,
        Shape::PeerPort,
        Shape::Peer,
        Shape::PeerProtocol,
        Shape::Port,
        Shape::Range,
        Shape::PeerIcmp,
        Shape::IcmpRange,
        Shape::Reject,
        Shape::RejectIcmp,
    ];
    let mut sets = Vec::new();
    for family in FAMILIES {
        for direction in DIRECTIONS {
            sets.extend(BOTH.map(|shape| SetId { direction, family, shape }));
        }
        sets.push(SetId { direction: Direction::Ingress, family, shape: Shape::HostJudged });
        sets.push(SetId { direction: Direction::Egress, family, shape: Shape::Published });
        sets.push(SetId { direction: Direction::Egress, family, shape: Shape::PublishedAllow });
    }
    sets.sort_unstable();
    sets
}

/// The name of a policy set: `in4_peer_port`, `out6_range`, `published4`.
pub fn policy_set(id: SetId) -> String {
    let family = family_digit(id.family);
    let shape = match id.shape {
        Shape::Published => return format!("published{family}"),
        Shape::PublishedAllow => return format!("published_allow{family}"),
        Shape::Isolated => "isolated",
        Shape::HostJudged => "host_judged",
        Shape::PeerPort => "peer_port",
        Shape::Peer => "peer",
        Shape::PeerProtocol => "peer_protocol",
        Shape::Port => "port",
        Shape::Range => "range",
        Shape::PeerIcmp => "peer_icmp",
        Shape::IcmpRange => "icmp_range",
        Shape::Reject => "reject",
        Shape::RejectIcmp => "reject_icmp",
    };
    format!("{}{family}_{shape}", direction_word(id.direction))
}

/// The set of the addresses of local workloads: `workload4`, `workload6`.
pub fn workloads(family: Family) -> String {
    format!("workload{}", family_digit(family))
}

/// What a packet is to the connection that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asked {
    /// It goes from who begins it to the service.
    Packet,
    /// It may be an answer, and comes from the service.
    Answer,
}

impl Asked {
    /// What a chain is asked about.
    pub fn of(chain: &Chain) -> Self {
        if chain.answers { Self::Answer } else { Self::Packet }
    }
}

/// The map of the chains of segments: `in4_segment`, `in4_segment_answers`.
pub fn segments(asked: Asked, direction: Direction, family: Family) -> String {
    let suffix = match asked {
        Asked::Packet => "",
        Asked::Answer => "_answers",
    };
    format!("{}{}_segment{suffix}", direction_word(direction), family_digit(family))
}

/// What a group's set is called by its form.
const GROUP_WORDS: [(GroupForm, &str); 3] =
    [(GroupForm::Addresses, "group"), (GroupForm::Services, "service"), (GroupForm::Blocks, "block")];

/// The set of a group in the shared form: `group4_app_api_in_shop_1f0c...`, `block6_...`, `service4_...`.
pub fn group_set(set: &GroupSet) -> String {
    let word = GROUP_WORDS.iter().find(|(form, _)| *form == set.form).map_or("", |(_, word)| *word);
    format!("{word}{}_{}", family_digit(set.family), set.name.as_str())
}

/// The set of a group that has this name; `None` when it is another set.
pub(super) fn parse_group_set(name: &str) -> Option<GroupSet> {
    let (form, rest) = GROUP_WORDS.iter().find_map(|(form, word)| Some((*form, name.strip_prefix(word)?)))?;
    let (family, rest) = parse_digit(rest)?;
    Some(GroupSet { family, form, name: ShortName::parse(rest.strip_prefix('_')?)? })
}

/// The chain of a segment: `in4_of_shop_db_83aa...`, `in4_answers_of_shop_db_83aa...`.
pub fn segment_chain(chain: &Chain) -> String {
    let word = if chain.answers { "_answers_of_" } else { "_of_" };
    format!("{}{}{word}{}", direction_word(chain.direction), family_digit(chain.family), chain.name.as_str())
}

/// The chain of a segment that has this name; `None` when it is another chain.
pub(super) fn parse_segment_chain(name: &str) -> Option<Chain> {
    let (direction, rest) = DIRECTIONS.iter().find_map(|direction| Some((*direction, name.strip_prefix(direction_word(*direction))?)))?;
    let (family, rest) = parse_digit(rest)?;
    let (answers, rest) = rest.strip_prefix("_answers").map_or((false, rest), |rest| (true, rest));
    Some(Chain { direction, family, name: ShortName::parse(rest.strip_prefix("_of_")?)?, answers })
}

fn parse_digit(text: &str) -> Option<(Family, &str)> {
    FAMILIES.iter().find_map(|family| Some((*family, text.strip_prefix(family_digit(*family))?)))
}

/// What is still to be asked of a packet that the egress stage lets through: `beyond_out4`.
pub(super) fn beyond_egress(family: Family) -> String {
    format!("beyond_out{}", family_digit(family))
}

/// What is still to be asked of an answer when the egress stage lets the connection through: `beyond_answer_out4`.
pub(super) fn beyond_answer(family: Family) -> String {
    format!("beyond_answer_out{}", family_digit(family))
}

/// The number of the family's ICMP.
pub(super) fn icmp_number(family: Family) -> u8 {
    match family {
        Family::V4 => Protocol::ICMP.0,
        Family::V6 => Protocol::ICMPV6.0,
    }
}

/// What a denied flow is told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeniedKey {
    /// `saddr . daddr . protocol . dport`.
    Port,
    /// `saddr . daddr . type . code`.
    Icmp,
    /// `saddr . daddr . protocol`.
    Protocol,
}

/// What became of a flow that policy denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It was refused.
    Denied,
    /// It was refused with an answer, because a rule says so.
    Rejected,
    /// It was let through, because the node observes.
    Audited,
}

/// One of the dynamic sets that count flows that policy denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeniedSet {
    /// The stage that denied.
    pub direction: Direction,
    /// IPv4 or IPv6.
    pub family: Family,
    /// What tells its flows apart.
    pub key: DeniedKey,
    /// Whether its flows were refused.
    pub outcome: Outcome,
}

impl DeniedSet {
    /// All thirty-six.
    pub fn all() -> Vec<Self> {
        let keys = [DeniedKey::Port, DeniedKey::Icmp, DeniedKey::Protocol];
        let mut all = Vec::new();
        for outcome in [Outcome::Denied, Outcome::Rejected, Outcome::Audited] {
            for direction in DIRECTIONS {
                for family in FAMILIES {
                    all.extend(keys.map(|key| Self { direction, family, key, outcome }));
                }
            }
        }
        all
    }

    /// Its name: `denied_in4`, `denied_out6_icmp`, `denied_in4_proto`.
    pub fn name(self) -> String {
        let suffix = match self.key {
            DeniedKey::Port => "",
            DeniedKey::Icmp => "_icmp",
            DeniedKey::Protocol => "_proto",
        };
        let outcome = match self.outcome {
            Outcome::Denied => "denied",
            Outcome::Rejected => "rejected",
            Outcome::Audited => "audited",
        };
        format!("{outcome}_{}{}{suffix}", direction_word(self.direction), family_digit(self.family))
    }
}

/// What a frame of a workload violated: each has a set `guard_in_*` that counts it by interface and EtherType.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuardReason {
    /// Its source is not the interface's MAC address.
    Mac,
    /// Its source is no IP address of the workload.
    Address,
    /// ARP about an address that is not the workload's, or that is not plain ARP.
    Arp,
    /// Neighbour discovery about an address that is not the workload's, or that is not plain.
    Neighbour,
    /// A router's messages: advertisements, redirects.
    Router,
    /// A DHCP server's messages.
    Dhcp,
    /// Neither IPv4 nor IPv6 nor ARP, or with a VLAN tag.
    EtherType,
    /// IP options and IPv6 extension headers.
    Options,
    /// To a group or to everybody.
    Group,
    /// An ICMP error about a packet that was not the workload's.
    IcmpError,
}

impl GuardReason {
    /// All ten.
    pub const ALL: [Self; 10] = [
        Self::Mac,
        Self::Address,
        Self::Arp,
        Self::Neighbour,
        Self::Router,
        Self::Dhcp,
        Self::EtherType,
        Self::Options,
        Self::Group,
        Self::IcmpError,
    ];

    /// The word in names and log prefixes.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mac => "mac",
            Self::Address => "address",
            Self::Arp => "arp",
            Self::Neighbour => "neighbour",
            Self::Router => "router",
            Self::Dhcp => "dhcp",
            Self::EtherType => "ethertype",
            Self::Options => "options",
            Self::Group => "group",
            Self::IcmpError => "icmp_error",
        }
    }

    /// The dynamic set that counts it: `guard_in_arp`.
    pub fn set(self) -> String {
        format!("guard_in_{}", self.word())
    }

    /// The prefix of the first of its frames on an interface: `firebreak guard arp`.
    pub fn log_prefix(self) -> String {
        format!("{LOG_GUARD}{}", self.word())
    }

    /// The reason that a log prefix tells; `None` when it is no guard's.
    pub fn of_prefix(prefix: &str) -> Option<Self> {
        let word = prefix.strip_prefix(LOG_GUARD)?;
        Self::ALL.into_iter().find(|reason| reason.word() == word)
    }
}

/// The base chain that guards an interface: `port_veth12`. A name that nft could not read again is spelled in hex after another
/// beginning, so that no two interfaces have one chain.
pub fn port_chain(interface: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if interface.bytes().all(plain) {
        return format!("{PORT_CHAIN}{interface}");
    }
    let hex: String = interface.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("port.{hex}")
}

/// Whether a chain of the netdev table is an interface's.
pub fn is_port_chain(chain: &str) -> bool {
    chain.starts_with(PORT_CHAIN) || chain.starts_with("port.")
}

/// `in` or `out`, as all names have it.
pub(super) fn direction_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

/// `4` or `6`, as all names have it.
pub(super) fn family_digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_set_has_a_name_of_its_own_that_says_what_it_is() {
        let names: Vec<String> = SetRef::all().into_iter().map(|set| set.to_string()).collect();
        let distinct: BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        for expected in
            ["inet firebreak in4_peer_port", "inet firebreak out6_range", "inet firebreak published_allow4", "bridge firebreak known_if"]
        {
            assert!(names.iter().any(|name| name == expected), "{expected} is missing from {names:?}");
        }
        let name = ShortName::new("app=api in namespace shop", ["some id"]);
        for family in FAMILIES {
            for form in [GroupForm::Addresses, GroupForm::Services, GroupForm::Blocks] {
                let set = GroupSet { family, form, name };
                assert_eq!(parse_group_set(&group_set(&set)), Some(set));
                assert_eq!(parse_segment_chain(&group_set(&set)), None);
            }
            for direction in DIRECTIONS {
                let chain = Chain { direction, family, name, answers: false };
                assert_eq!(parse_segment_chain(&segment_chain(&chain)), Some(chain));
                assert_eq!(parse_segment_chain(&segment_chain(&chain.of_answers())), Some(chain.of_answers()));
                assert!(segment_chain(&chain).contains("of_app_api_in_namespace_shop_"));
            }
        }
        for set in SetRef::all() {
            assert_eq!(parse_group_set(&set.name()), None, "{set}");
        }
        let denied: BTreeSet<String> = DeniedSet::all().into_iter().map(DeniedSet::name).collect();
        assert_eq!(denied.len(), 36);
        assert!(denied.contains("denied_in4") && denied.contains("denied_out6_icmp") && denied.contains("audited_in6_proto"));
    }
}
