//! What several kinds share: metadata, selectors, blocks, ports.

use super::note;
use crate::kinds::Kind;
use crate::path::{At, Problems};
use crate::validate;
use crate::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use firebreak_policy::model::{self, CidrBlock, Operator, PortRange, Protocol, Requirement};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// `TotalAnnotationSizeLimitB` of the Kubernetes API.
const ANNOTATION_BYTES: usize = 256 * 1024;

/// `ValidateObjectMeta`, as far as the fields are kept.
pub(super) fn check_metadata(kind: Kind, metadata: &ObjectMeta, problems: &mut Problems<'_>) {
    let ObjectMeta { name, namespace, labels, annotations } = metadata;
    let root = At::ROOT;
    let at = root.field("metadata");
    let name_rule = match kind {
        Kind::Namespace => validate::dns_label(name),
        Kind::Node
        | Kind::LabelRule
        | Kind::AddressGroup
        | Kind::Pod
        | Kind::Workload
        | Kind::NetworkPolicy
        | Kind::SegmentPolicy
        | Kind::ClusterSegmentPolicy
        | Kind::AdminNetworkPolicy
        | Kind::BaselineAdminNetworkPolicy
        | Kind::ClusterNetworkPolicy => validate::dns_subdomain(name),
    };
    note(name_rule, &at.field("name"), problems);
    if let Some(namespace) = namespace {
        if kind.is_namespaced() {
            note(validate::dns_label(namespace), &at.field("namespace"), problems);
        } else {
            problems.add(&at.field("namespace"), format!("an object of kind {kind} is in no namespace; leave the field out"));
        }
    }
    check_pairs(labels.as_ref(), &at.field("labels"), problems);
    let at = at.field("annotations");
    let mut size = 0;
    for (key, value) in annotations.iter().flatten() {
        note(validate::qualified_name(&key.to_lowercase()), &at.key(key), problems);
        size += key.len() + value.len();
    }
    if size > ANNOTATION_BYTES {
        problems.add(&at, format!("the annotations have {size} bytes; at most {ANNOTATION_BYTES} are taken"));
    }
}

fn check_pairs(pairs: Option<&BTreeMap<String, String>>, at: &At<'_>, problems: &mut Problems<'_>) {
    for (key, value) in pairs.into_iter().flatten() {
        note(validate::qualified_name(key), &at.key(key), problems);
        note(validate::label_value(value), &at.key(key), problems);
    }
}

/// The annotation by which a policy of the Kubernetes API is put into Audit mode.
const MODE_ANNOTATION: &str = "firebreak.dev/mode";

/// The mode of a policy of the Kubernetes API, which has no field for it.
pub(super) fn mode(metadata: &ObjectMeta, problems: &mut Problems<'_>) -> model::Mode {
    match metadata.annotations.as_ref().and_then(|annotations| annotations.get(MODE_ANNOTATION)).map(String::as_str) {
        None | Some("Enforce") => model::Mode::Enforce,
        Some("Audit") => model::Mode::Audit,
        Some(other) => {
            let root = At::ROOT;
            let at = root.field("metadata");
            let at = at.field("annotations");
            problems.add(&at.key(MODE_ANNOTATION), format!("{other:?} is not known; use Enforce or Audit"));
            model::Mode::Enforce
        }
    }
}

/// The priority of a policy of a tier.
pub(super) fn priority(priority: i64, at: &At<'_>, problems: &mut Problems<'_>) -> u16 {
    match u16::try_from(priority).ok().filter(|it| *it <= 1000) {
        Some(priority) => priority,
        None => {
            problems.add(at, format!("{priority} is out of range; use 0 (first) to 1000"));
            0
        }
    }
}

/// `ValidateLabelSelector`, and the selector.
pub(super) fn selector(selector: &LabelSelector, at: &At<'_>, problems: &mut Problems<'_>) -> model::LabelSelector {
    let LabelSelector { match_labels, match_expressions } = selector;
    check_pairs(match_labels.as_ref(), &at.field("matchLabels"), problems);
    let list = at.field("matchExpressions");
    let mut requirements = Vec::new();
    for (position, expression) in match_expressions.iter().flatten().enumerate() {
        requirements.extend(requirement(expression, &list.index(position), problems));
    }
    model::LabelSelector { match_labels: match_labels.clone().unwrap_or_default(), match_expressions: requirements }
}

fn requirement(requirement: &LabelSelectorRequirement, at: &At<'_>, problems: &mut Problems<'_>) -> Option<Requirement> {
    let LabelSelectorRequirement { key, operator, values } = requirement;
    note(validate::qualified_name(key), &at.field("key"), problems);
    let list = at.field("values");
    let values = values.as_deref().unwrap_or_default();
    for (position, value) in values.iter().enumerate() {
        note(validate::label_value(value), &list.index(position), problems);
    }
    match (operator.as_str(), values.is_empty()) {
        ("In" | "NotIn", true) => problems.add(&list, format!("is empty; the operator {operator} needs at least one value")),
        ("Exists" | "DoesNotExist", false) => problems.add(&list, format!("the operator {operator} takes no values; leave the field out")),
        ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
        (_, _) => problems.add(&at.field("operator"), format!("{operator:?} is not known; use one of In, NotIn, Exists, DoesNotExist")),
    }
    let operator = match operator.as_str() {
        "In" => Operator::In(values.to_vec()),
        "NotIn" => Operator::NotIn(values.to_vec()),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        _ => return None,
    };
    Some(Requirement { key: key.clone(), operator })
}

/// `ValidateIPBlock`, and the block.
pub(super) fn block(cidr: &str, except: Option<&[String]>, at: &At<'_>, problems: &mut Problems<'_>) -> Option<CidrBlock> {
    let cidr: Option<IpNet> = note(validate::cidr(cidr), &at.field("cidr"), problems);
    let list = at.field("except");
    let mut cut = Vec::new();
    for (position, text) in except.into_iter().flatten().enumerate() {
        let at = list.index(position);
        match &cidr {
            Some(block) => cut.extend(note(validate::except(block, text), &at, problems)),
            None => cut.extend(note(validate::cidr(text), &at, problems)),
        }
    }
    Some(CidrBlock { cidr: cidr?, except: cut })
}

/// Addresses, each once.
pub(super) fn addresses<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    at: &At<'_>,
    inner: Option<&str>,
    problems: &mut Problems<'_>,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (position, text) in texts.into_iter().enumerate() {
        let item = at.index(position);
        let at = inner.map_or(item, |field| item.field(field));
        if let Some(address) = note(validate::address(text), &at, problems) {
            if addresses.contains(&address) {
                problems.add(&at, format!("{address} is there twice; keep one"));
            } else {
                addresses.push(address);
            }
        }
    }
    addresses
}

/// A port and perhaps the end of a range, both numbers.
pub(super) fn port_range(port: i64, end_port: Option<i64>, at: &At<'_>, problems: &mut Problems<'_>) -> Option<PortRange> {
    let first = note(validate::port_number(port), &at.field("port"), problems);
    let Some(end_port) = end_port else { return first.map(PortRange::single) };
    let last = note(validate::port_number(end_port), &at.field("endPort"), problems);
    let (first, last) = (first?, last?);
    let range = PortRange::new(first, last);
    if range.is_none() {
        problems.add(&at.field("endPort"), format!("{last} is below the port {first}; a range goes from port up to endPort, inclusive"));
    }
    range
}

/// Whether a protocol can have named ports.
pub(super) fn has_named_ports(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
}
