//! What the agent needs of a kernel, piece by piece. Whether a piece is there is found out by trying it ([`super::preflight`]);
//! `docs/kernels.md` says since when kernels have it.

use super::preflight::Severity;
use std::fmt;

/// A piece of a kernel that enforcement is built on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// nf_tables over netlink.
    NfTables,
    /// Tables of the family inet.
    InetFamily,
    /// Connection tracking in rules.
    Conntrack,
    /// Labels of conntrack entries in rules.
    ConntrackLabels,
    /// Hash sets of concatenations with ranges.
    ConcatenatedRanges,
    /// Sets that rules fill, with counters.
    DynamicSets,
    /// Logging to NFLOG, with a limit.
    PacketLog,
    /// Rejecting in the family inet.
    Reject,
    /// Rules where a device's packets come in.
    NetdevIngress,
    /// The addresses in another network namespace (`IFA_TARGET_NETNSID`).
    TargetNamespace,
    /// Notifications of other network namespaces (`NETLINK_LISTEN_ALL_NSID`).
    AllNamespaces,
    /// Tables of the family bridge.
    BridgeFamily,
    /// Tables of the family arp.
    ArpFamily,
    /// Tables that are kept from other processes and outlive their owner.
    TableOwner,
    /// Filters of system calls.
    SeccompFilter,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::NfTables,
        Self::InetFamily,
        Self::Conntrack,
        Self::ConntrackLabels,
        Self::ConcatenatedRanges,
        Self::DynamicSets,
        Self::PacketLog,
        Self::Reject,
        Self::NetdevIngress,
        Self::TargetNamespace,
        Self::AllNamespaces,
        Self::BridgeFamily,
        Self::ArpFamily,
        Self::TableOwner,
        Self::SeccompFilter,
    ];

    /// As `--without-feature` and `docs/kernels.md` write it.
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// The code of the finding that says that it is missing.
    pub fn code(self) -> &'static str {
        self.words().1
    }

    /// How bad its absence is. Where it is not fatal there is a fallback, which [`Self::without`] names.
    pub fn severity(self) -> Severity {
        match self {
            Self::NfTables
            | Self::InetFamily
            | Self::Conntrack
            | Self::ConntrackLabels
            | Self::ConcatenatedRanges
            | Self::DynamicSets
            | Self::PacketLog
            | Self::Reject
            | Self::NetdevIngress
            | Self::TargetNamespace
            | Self::AllNamespaces => Severity::Fatal,
            Self::BridgeFamily | Self::ArpFamily => Severity::Warning,
            Self::TableOwner | Self::SeccompFilter => Severity::Notice,
        }
    }

    /// What there is instead, or why there can be nothing.
    pub fn without(self) -> &'static str {
        self.words().2
    }

    /// What to do about its absence.
    pub fn remedy(self) -> &'static str {
        self.words().3
    }

    /// Name, code, what there is without it, remedy.
    fn words(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::NfTables => (
                "nf-tables",
                "NoNfTables",
                "the kernel does not answer on nf_tables netlink",
                "modprobe nf_tables, or a kernel built with CONFIG_NF_TABLES",
            ),
            Self::InetFamily => (
                "inet-family",
                "NoInetFamily",
                "there is no inet family, which holds the policy",
                "modprobe nf_tables_inet, or a kernel built with CONFIG_NF_TABLES_INET",
            ),
            Self::Conntrack => (
                "conntrack",
                "NoConntrack",
                "rules cannot ask connection tracking (ct), so replies cannot be told from new connections",
                "modprobe nf_conntrack nft_ct, or a kernel built with CONFIG_NFT_CT",
            ),
            Self::ConntrackLabels => (
                "conntrack-labels",
                "NoConntrackLabels",
                "rules cannot ask for labels of connections (ct label), so connections that policy forbids could not be ended",
                "a kernel built with CONFIG_NF_CONNTRACK_LABELS",
            ),
            Self::ConcatenatedRanges => (
                "concatenated-ranges",
                "NoConcatenatedRanges",
                "there are no sets of concatenated ranges, which hold CIDR and port ranges",
                "kernel 5.6 or later and nft 0.9.4 or later",
            ),
            Self::DynamicSets => (
                "dynamic-sets",
                "NoDynamicSets",
                "rules cannot fill sets with counters, so denied flows could not be counted",
                "kernel 5.7 or later and nft 0.9.5 or later",
            ),
            Self::PacketLog => (
                "packet-log",
                "NoPacketLog",
                "rules cannot log to NFLOG",
                "modprobe nfnetlink_log nft_log, or a kernel built with CONFIG_NETFILTER_NETLINK_LOG",
            ),
            Self::Reject => (
                "reject",
                "NoReject",
                "rules of the inet family cannot reject, so a cut connection could not be ended",
                "modprobe nft_reject_inet, or a kernel built with CONFIG_NFT_REJECT",
            ),
            Self::NetdevIngress => (
                "netdev-ingress",
                "NoNetdevIngress",
                "there are no rules where a device's packets come in, so an interface could not be bound to its workload's addresses",
                "a kernel built with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_INGRESS",
            ),
            Self::TargetNamespace => (
                "target-namespace",
                "NoTargetNamespace",
                "the addresses of workloads cannot be asked for (IFA_TARGET_NETNSID with strict checks)",
                "kernel 5.0 or later",
            ),
            Self::AllNamespaces => (
                "all-namespaces",
                "NoAllNamespaces",
                "changes of addresses in workloads are not told (NETLINK_LISTEN_ALL_NSID)",
                "kernel 4.2 or later, and CAP_NET_BROADCAST for the agent",
            ),
            Self::BridgeFamily => (
                "bridge-family",
                "NoBridgeFamily",
                "there is no bridge family: unknown interfaces on bridges stay open for what is not IP, and what a bridge floods reaches every workload on it",
                "modprobe nf_tables_bridge, or a kernel built with CONFIG_NF_TABLES_BRIDGE",
            ),
            Self::ArpFamily => (
                "arp-family",
                "NoArpFamily",
                "there is no arp family: unknown interfaces can speak ARP with the node",
                "a kernel built with CONFIG_NF_TABLES_ARP",
            ),
            Self::TableOwner => (
                "table-owner",
                "NoTableOwner",
                "the kernel cannot keep other processes off our tables: what they change is noticed and put back",
                "kernel 6.9 or later; until then keep `nft flush ruleset` out of other programs' configuration",
            ),
            Self::SeccompFilter => (
                "seccomp-filter",
                "NoSeccompFilter",
                "the kernel has no filters of system calls: the agent could start programs, with no more than its own capabilities",
                "a kernel built with CONFIG_SECCOMP_FILTER",
            ),
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such feature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no feature {0:?}: there are {names}", names = Feature::ALL.map(Feature::name).join(", "))]
pub struct UnknownFeature(String);

impl std::str::FromStr for Feature {
    type Err = UnknownFeature;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|feature| feature.name() == name).ok_or_else(|| UnknownFeature(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_feature_has_a_name_and_a_code_of_its_own() {
        for feature in Feature::ALL {
            assert_eq!(feature.name().parse::<Feature>().unwrap(), feature);
        }
        assert_eq!(Feature::ALL.iter().map(|feature| feature.code()).collect::<BTreeSet<_>>().len(), Feature::ALL.len());
        assert!("netdev".parse::<Feature>().unwrap_err().to_string().contains("netdev-ingress"));
    }
}
