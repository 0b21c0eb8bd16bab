//! Every name that the kernel side carries, in one place: tables, sets, chains, counters, log prefixes.
//! `nft list ruleset` shows them to people, so a name says what the thing is.

use firebreak_policy::kernel_sets::{SetId, Shape};
use firebreak_policy::model::{Direction, Family};
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

/// Counts every packet denied by the ingress stage: the control sum of the `denied_in*` sets.
pub const COUNTER_DENIED_IN: &str = "denied_in";
/// Counts every packet denied by the egress stage: the control sum of the `denied_out*` sets.
pub const COUNTER_DENIED_OUT: &str = "denied_out";
/// Denied ingress packets that found their set full: counted here only.
pub const COUNTER_OVERFLOW_IN: &str = "denied_overflow_in";
/// Denied egress packets that found their set full: counted here only.
pub const COUNTER_OVERFLOW_OUT: &str = "denied_overflow_out";
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
/// Holds `tcp` for as long as connections that are older than the first install may be picked up in the middle.
pub const SET_MIDSTREAM: &str = "midstream_allowed";

/// The set of what the other end of a cut connection would send, so that it does not pass as new when the entry is gone.
pub fn revoked(family: Family) -> String {
    format!("revoked{}", family_digit(family))
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
}

impl Layer {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Inet, Self::Bridge, Self::Arp];

    /// What `nft` calls the family.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Arp => "arp",
        }
    }

    /// The number of the family, `NFPROTO_*` of `linux/netfilter.h`.
    pub fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Arp => 3,
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
}

impl SetRef {
    /// The table that the set is in.
    pub fn layer(self) -> Layer {
        match self {
            Self::KnownInterfaces(layer) => layer,
            Self::Workloads(_) | Self::Policy(_) => Layer::Inet,
        }
    }

    /// The set's name in its table.
    pub fn name(self) -> String {
        match self {
            Self::KnownInterfaces(_) => SET_KNOWN_IF.to_owned(),
            Self::Workloads(family) => workloads(family),
            Self::Policy(id) => policy_set(id),
        }
    }

    /// Every set that the agent writes, in the order in which plans name them.
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Layer::ALL.into_iter().map(Self::KnownInterfaces).collect();
        all.extend(FAMILIES.map(Self::Workloads));
        all.extend(policy_sets().into_iter().map(Self::Policy));
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
    const BOTH: [Shape; 8] =
        [Shape::Isolated, Shape::PeerPort, Shape::Peer, Shape::PeerProtocol, Shape::Port, Shape::Range, Shape::PeerIcmp, Shape::IcmpRange];
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
    };
    format!("{}{family}_{shape}", direction_word(id.direction))
}

/// The set of the addresses of local workloads: `workload4`, `workload6`.
pub fn workloads(family: Family) -> String {
    format!("workload{}", family_digit(family))
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

/// One of the dynamic sets that count denied flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeniedSet {
    /// The stage that denied.
    pub direction: Direction,
    /// IPv4 or IPv6.
    pub family: Family,
    /// What tells its flows apart.
    pub key: DeniedKey,
}

impl DeniedSet {
    /// All twelve.
    pub fn all() -> Vec<Self> {
        let keys = [DeniedKey::Port, DeniedKey::Icmp, DeniedKey::Protocol];
        DIRECTIONS
            .into_iter()
            .flat_map(|direction| FAMILIES.into_iter().flat_map(move |family| keys.map(|key| Self { direction, family, key })))
            .collect()
    }

    /// Its name: `denied_in4`, `denied_out6_icmp`, `denied_in4_proto`.
    pub fn name(self) -> String {
        let suffix = match self.key {
            DeniedKey::Port => "",
            DeniedKey::Icmp => "_icmp",
            DeniedKey::Protocol => "_proto",
        };
        format!("denied_{}{}{suffix}", direction_word(self.direction), family_digit(self.family))
    }
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
        let denied: BTreeSet<String> = DeniedSet::all().into_iter().map(DeniedSet::name).collect();
        assert_eq!(denied.len(), 12);
        assert!(denied.contains("denied_in4") && denied.contains("denied_out6_icmp") && denied.contains("denied_in6_proto"));
    }
}
