//! The names that people give to kinds.

use crate::output::BadInput;

/// What `get`, `describe` and `delete` can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An object of the store.
    Stored(Stored),
    /// Live workloads, as agents report them.
    Workloads,
    /// Nodes with their state.
    Nodes,
    /// Policies of every kind.
    Policies,
    /// Everything in the store.
    All,
}

/// A kind of object in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The API's name.
    pub(crate) name: &'static str,
    /// Whether objects of it live in a namespace.
    pub(crate) namespaced: bool,
}

const SEGMENT_POLICY: Stored = Stored { name: "SegmentPolicy", namespaced: true };
const NETWORK_POLICY: Stored = Stored { name: "NetworkPolicy", namespaced: true };
const CLUSTER_SEGMENT_POLICY: Stored = Stored { name: "ClusterSegmentPolicy", namespaced: false };
const ADMIN_NETWORK_POLICY: Stored = Stored { name: "AdminNetworkPolicy", namespaced: false };
const BASELINE_ADMIN_NETWORK_POLICY: Stored = Stored { name: "BaselineAdminNetworkPolicy", namespaced: false };
const CLUSTER_NETWORK_POLICY: Stored = Stored { name: "ClusterNetworkPolicy", namespaced: false };
const LABEL_RULE: Stored = Stored { name: "LabelRule", namespaced: false };
const ADDRESS_GROUP: Stored = Stored { name: "AddressGroup", namespaced: false };
const WORKLOAD: Stored = Stored { name: "Workload", namespaced: true };
const NAMESPACE: Stored = Stored { name: "Namespace", namespaced: false };
const POD: Stored = Stored { name: "Pod", namespaced: true };
const NODE: Stored = Stored { name: "Node", namespaced: false };

/// Lower-case name, plural and short name of each kind that `get` and `describe` know.
const NAMES: [(&[&str], Kind); 15] = [
    (&["workload", "workloads", "wl"], Kind::Workloads),
    (&["node", "nodes", "no"], Kind::Nodes),
    (&["segmentpolicy", "segmentpolicies", "sp"], Kind::Stored(SEGMENT_POLICY)),
    (&["networkpolicy", "networkpolicies", "netpol"], Kind::Stored(NETWORK_POLICY)),
    (&["clustersegmentpolicy", "clustersegmentpolicies", "csp"], Kind::Stored(CLUSTER_SEGMENT_POLICY)),
    (&["adminnetworkpolicy", "adminnetworkpolicies", "anp"], Kind::Stored(ADMIN_NETWORK_POLICY)),
    (&["baselineadminnetworkpolicy", "baselineadminnetworkpolicies", "banp"], Kind::Stored(BASELINE_ADMIN_NETWORK_POLICY)),
    (&["clusternetworkpolicy", "clusternetworkpolicies", "cnp"], Kind::Stored(CLUSTER_NETWORK_POLICY)),
    (&["labelrule", "labelrules", "lr"], Kind::Stored(LABEL_RULE)),
    (&["addressgroup", "addressgroups", "ag"], Kind::Stored(ADDRESS_GROUP)),
    (&["namespace", "namespaces", "ns"], Kind::Stored(NAMESPACE)),
    (&["pod", "pods", "po"], Kind::Stored(POD)),
    (&["manifest", "manifests"], Kind::Stored(WORKLOAD)),
    (&["policy", "policies"], Kind::Policies),
    (&["all"], Kind::All),
];

/// Every kind of policy, in the order in which they are listed.
pub(crate) const POLICIES: [&str; 6] = [
    SEGMENT_POLICY.name,
    NETWORK_POLICY.name,
    CLUSTER_SEGMENT_POLICY.name,
    ADMIN_NETWORK_POLICY.name,
    BASELINE_ADMIN_NETWORK_POLICY.name,
    CLUSTER_NETWORK_POLICY.name,
];

/// The kind that a person means.
///
/// # Errors
/// Names the word and lists the words that are known.
pub(crate) fn parse(word: &str) -> Result<Kind, BadInput> {
    let lower = word.to_ascii_lowercase();
    NAMES.iter().find(|(names, _)| names.contains(&lower.as_str())).map(|(_, kind)| *kind).ok_or_else(|| {
        let known: Vec<&str> = NAMES.iter().filter_map(|(names, _)| names.get(1).or(names.first()).copied()).collect();
        BadInput::new(format!("`{word}` is no kind that Firebreak knows; it knows {}", known.join(", ")))
    })
}

/// The stored kind that a person wants to delete; `workload` is then the manifest and `node` the Node object.
///
/// # Errors
/// Names the word; `policies` and `all` cannot be deleted in one go.
pub(crate) fn parse_stored(word: &str) -> Result<Stored, BadInput> {
    match parse(word)? {
        Kind::Stored(stored) => Ok(stored),
        Kind::Workloads => Ok(WORKLOAD),
        Kind::Nodes => Ok(NODE),
        Kind::Policies | Kind::All => Err(BadInput::new(format!("`{word}` is more than one kind; name one, for instance segmentpolicy"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_kind_in_any_case() {
        for (names, kind) in NAMES {
            for name in names {
                assert_eq!(parse(&name.to_uppercase()).unwrap(), kind, "{name}");
            }
        }
    }

    #[test]
    fn an_unknown_kind_is_refused_with_the_list_of_known_ones() {
        let error = parse("polcy").unwrap_err().to_string();
        assert!(error.contains("`polcy`") && error.contains("segmentpolicies"), "{error}");
        assert!(parse_stored("all").unwrap_err().to_string().contains("more than one kind"));
    }
}
