//! Ids by meaning: one text for one meaning, hashed. Members never enter, so that ids stay when members change.

use crate::id_text::IdText;
use crate::model::{CidrBlock, Entity, LabelSelector, NamespaceName, NamespaceScope, NodeName, Operator, Peer, Protocol, Requirement};
use crate::node_state::{GroupId, SegmentId};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Whose members a group has, besides those of the default network that every node shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part<'a> {
    /// Members that mean the same on every node.
    Shared,
    /// Members of this node's hidden networks.
    HiddenOn(&'a NodeName),
    /// All members as this node sees them, because some of the shared ones mean something else there.
    AllOn(&'a NodeName),
}

/// What a group is of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    /// The addresses that a peer means.
    Peer(&'a Peer),
    /// The places where workloads that a peer means have a port of this name; without a peer, all workloads.
    NamedPort(Option<&'a Peer>, Protocol, &'a str),
}

/// Which addresses count as a workload's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Claim {
    /// Those that are nobody else's too: what a rule that allows goes by.
    Sure,
    /// Every one that it claims: what a rule that denies goes by, or a workload would escape it by claiming a neighbour's address.
    Any,
}

pub(crate) fn group_id(namespace: &NamespaceName, subject: Subject<'_>, claim: Claim, part: Part<'_>) -> GroupId {
    group_id_of(&group_text(namespace, subject, claim), part)
}

/// The meaning of a group, whoever asks: what [`group_id_of`] makes its ids of.
pub(crate) fn group_text(namespace: &NamespaceName, subject: Subject<'_>, claim: Claim) -> String {
    let mut text = String::from("group/1\n");
    match claim {
        Claim::Sure => {}
        Claim::Any => text.push_str("any claim\n"),
    }
    match subject {
        Subject::Peer(peer) => peer_text(&mut text, namespace, peer),
        Subject::NamedPort(peer, protocol, name) => {
            push(&mut text, format_args!("named {} {name:?}\n", protocol.0));
            if let Some(peer) = peer {
                peer_text(&mut text, namespace, peer);
            }
        }
    }
    text
}

/// The id of one part of a group.
pub(crate) fn group_id_of(text: &str, part: Part<'_>) -> GroupId {
    match part {
        Part::Shared => GroupId(hash(text)),
        Part::HiddenOn(node) => GroupId(hash(&format!("{text}hidden on {node:?}\n"))),
        Part::AllOn(node) => GroupId(hash(&format!("{text}all on {node:?}\n"))),
    }
}

pub(crate) fn segment_id(text: &str) -> SegmentId {
    SegmentId(hash(text))
}

fn peer_text(text: &mut String, namespace: &NamespaceName, peer: &Peer) {
    match peer {
        Peer::Workloads { namespaces: NamespaceScope::Own, workloads } => {
            push(text, format_args!("workloads in {namespace:?}\n"));
            selector_text(text, workloads);
        }
        Peer::Workloads { namespaces: NamespaceScope::Matching(selector), workloads } => {
            text.push_str("workloads where\n");
            selector_text(text, selector);
            selector_text(text, workloads);
        }
        Peer::Cidr(block) => block_text(text, block),
        Peer::Group(name) => push(text, format_args!("group {name:?}\n")),
        Peer::Entity(Entity::Any) => text.push_str("any\n"),
        Peer::Entity(Entity::Host) => text.push_str("host\n"),
        Peer::Entity(Entity::World) => text.push_str("world\n"),
        Peer::Nodes(selector) => {
            text.push_str("nodes where\n");
            selector_text(text, selector);
        }
        Peer::Unknown => text.push_str("unknown\n"),
    }
}

fn block_text(text: &mut String, block: &CidrBlock) {
    let mut except: Vec<String> = block.except.iter().map(|it| it.trunc().to_string()).collect();
    except.sort();
    push(text, format_args!("block {} {except:?}\n", block.cidr.trunc()));
}

/// The one spelling of a selector: pairs before expressions, everything sorted, nothing twice.
pub(crate) fn canonical_selector(selector: &LabelSelector) -> Cow<'_, LabelSelector> {
    if selector.match_expressions.is_empty() {
        return Cow::Borrowed(selector);
    }
    let mut match_labels = selector.match_labels.clone();
    let sorted = |values: &Vec<String>| values.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    let sorted_requirement = |Requirement { key, operator }: &Requirement| Requirement {
        key: key.clone(),
        operator: match operator {
            Operator::In(values) => Operator::In(sorted(values)),
            Operator::NotIn(values) => Operator::NotIn(sorted(values)),
            Operator::Exists => Operator::Exists,
            Operator::DoesNotExist => Operator::DoesNotExist,
        },
    };
    let expressions: BTreeSet<Requirement> = selector.match_expressions.iter().map(sorted_requirement).collect();
    let mut is_pair = |Requirement { key, operator }: &Requirement| match operator {
        Operator::In(values) => match values.as_slice() {
            // A key that must have two values at once matches nothing; such a selector keeps both terms.
            [only] => match_labels.entry(key.clone()).or_insert_with(|| only.clone()) == only,
            _ => false,
        },
        Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => false,
    };
    let match_expressions = expressions.into_iter().filter(|it| !is_pair(it)).collect();
    Cow::Owned(LabelSelector { match_labels, match_expressions })
}

fn selector_text(text: &mut String, selector: &LabelSelector) {
    let canonical = canonical_selector(selector);
    let mut terms: Vec<String> = canonical.match_labels.iter().map(|(key, value)| format!("{key:?} in {:?}", [value])).collect();
    for Requirement { key, operator } in &canonical.match_expressions {
        terms.push(match operator {
            Operator::In(values) => format!("{key:?} in {values:?}"),
            Operator::NotIn(values) => format!("{key:?} notin {values:?}"),
            Operator::Exists => format!("{key:?} exists"),
            Operator::DoesNotExist => format!("{key:?} absent"),
        });
    }
    terms.sort();
    push(text, format_args!("selector {}\n", terms.join(" and ")));
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
}

/// 16 bytes of BLAKE3 as 32 hexadecimal digits.
fn hash(text: &str) -> IdText {
    let digest = blake3::hash(text.as_bytes()).to_hex();
    IdText::from(&digest.as_str()[..32])
}
