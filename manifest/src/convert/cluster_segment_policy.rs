//! ClusterSegmentPolicy to the policy of a tier.

use super::parts;
use super::segment_policy::{by_address, mode_of, rule_name, services_of};
use crate::path::{At, Problems};
use crate::{
    ClusterPeer, ClusterSegmentEgressRule, ClusterSegmentIngressRule, ClusterSegmentPolicy, ClusterSegmentPolicySpec, ClusterSubject,
    RuleAction, RuleAnswer, ServicePort, Tier,
};
use firebreak_policy::model::{self, Action, Answer, NamespaceScope, Peer, Peers, PolicyKey, PolicyKind, TieredPolicy, TieredRule};
use std::collections::BTreeSet;

/// A reason that is longer is an essay.
const REASON_BYTES: usize = 256;

pub(super) fn policy(object: &ClusterSegmentPolicy, problems: &mut Problems<'_>) -> TieredPolicy {
    let ClusterSegmentPolicy { metadata, spec } = object;
    let ClusterSegmentPolicySpec { tier, priority, mode, subject, ingress, egress } = spec;
    let root = At::ROOT;
    let at = root.field("spec");
    if ingress.is_none() && egress.is_none() {
        problems.add(&at, "says nothing: give ingress, egress or both");
    }
    let ClusterSubject { namespaces, workloads } = subject;
    let subject_at = at.field("subject");
    TieredPolicy {
        key: PolicyKey::cluster_scoped(PolicyKind::ClusterSegmentPolicy, &metadata.name),
        tier: match tier {
            Tier::Admin => model::Tier::Admin,
            Tier::Baseline => model::Tier::Baseline,
        },
        priority: parts::priority(*priority, &at.field("priority"), problems),
        mode: mode_of(*mode),
        subject: model::Subject {
            namespaces: parts::selector(namespaces, &subject_at.field("namespaces"), problems),
            workloads: workloads
                .as_ref()
                .map_or_else(model::LabelSelector::everything, |it| parts::selector(it, &subject_at.field("workloads"), problems)),
        },
        ingress: {
            let written = ingress.iter().flatten().map(|ClusterSegmentIngressRule { name, action, answer, reason, from, ports }| Written {
                name,
                action: *action,
                answer: *answer,
                reason,
                peers: from,
                ports,
            });
            rules_of(written, "from", &at.field("ingress"), problems)
        },
        egress: {
            let written = egress.iter().flatten().map(|ClusterSegmentEgressRule { name, action, answer, reason, to, ports }| Written {
                name,
                action: *action,
                answer: *answer,
                reason,
                peers: to,
                ports,
            });
            rules_of(written, "to", &at.field("egress"), problems)
        },
    }
}

struct Written<'a> {
    name: &'a Option<String>,
    action: RuleAction,
    answer: Option<RuleAnswer>,
    reason: &'a Option<String>,
    peers: &'a [ClusterPeer],
    ports: &'a Option<Vec<ServicePort>>,
}

fn rules_of<'a>(
    written: impl Iterator<Item = Written<'a>>,
    peers_field: &str,
    list: &At<'_>,
    problems: &mut Problems<'_>,
) -> Vec<TieredRule> {
    let mut names = BTreeSet::new();
    let mut rules = Vec::new();
    for (position, Written { name, action, answer, reason, peers, ports }) in written.enumerate() {
        let at = list.index(position);
        if let Some(name) = name {
            rule_name(name, &at.field("name"), problems);
            if !names.insert(name) {
                problems.add(&at.field("name"), format!("{name:?} names two rules of this list; verdicts could not tell them apart"));
            }
        }
        if let Some(reason) = reason
            && (reason.trim().is_empty() || reason.len() > REASON_BYTES || reason.contains(char::is_control))
        {
            problems.add(&at.field("reason"), format!("has to be one line of 1 to {REASON_BYTES} bytes, or absent"));
        }
        let action = match (action, answer) {
            (RuleAction::Deny, None | Some(RuleAnswer::Drop)) => Action::Deny(Answer::Drop),
            (RuleAction::Deny, Some(RuleAnswer::Reject)) => Action::Deny(Answer::Reject),
            (RuleAction::Allow | RuleAction::Pass, Some(_)) => {
                problems.add(&at.field("answer"), "only a rule with `action: Deny` answers; leave the field out");
                Action::Pass
            }
            (RuleAction::Allow, None) => Action::Allow,
            (RuleAction::Pass, None) => Action::Pass,
        };
        let peers = peers_of(peers, &at.field(peers_field), problems);
        let services = services_of(ports.as_deref(), &at.field("ports"), problems);
        rules.push(TieredRule { name: name.clone(), action, peers, services, reason: reason.clone() });
    }
    rules
}

fn peers_of(peers: &[ClusterPeer], list: &At<'_>, problems: &mut Problems<'_>) -> Peers {
    if peers.is_empty() {
        problems.add(list, "is empty; name at least one peer, `entity: any` for anyone, or remove the rule");
    }
    let mut only = Vec::new();
    for (position, written) in peers.iter().enumerate() {
        only.extend(peer(written, &list.index(position), problems));
    }
    Peers::Only(only)
}

fn peer(peer: &ClusterPeer, at: &At<'_>, problems: &mut Problems<'_>) -> Option<Peer> {
    let ClusterPeer { namespaces, workloads, cidr, address_group, entity, nodes } = peer;
    if workloads.is_some() && namespaces.is_none() {
        problems.add(&at.field("workloads"), "needs namespaces, `{}` for every namespace: this policy is in none of its own");
        return None;
    }
    let forms = [namespaces.is_some(), cidr.is_some(), address_group.is_some(), entity.is_some(), nodes.is_some()];
    match forms.into_iter().filter(|present| *present).count() {
        0 => problems.add(at, "is an empty peer; give namespaces, cidr, addressGroup, entity or nodes"),
        1 => {}
        _ => {
            problems.add(at, "mixes kinds of peers; make one peer of each of: namespaces with workloads, cidr, addressGroup, entity, nodes")
        }
    }
    if let Some(namespaces) = namespaces {
        let everything = model::LabelSelector::everything;
        let workloads = workloads.as_ref().map_or_else(everything, |it| parts::selector(it, &at.field("workloads"), problems));
        let namespaces = NamespaceScope::Matching(parts::selector(namespaces, &at.field("namespaces"), problems));
        return Some(Peer::Workloads { namespaces, workloads });
    }
    if let Some(nodes) = nodes {
        return Some(Peer::Nodes(parts::selector(nodes, &at.field("nodes"), problems)));
    }
    by_address((cidr.as_ref(), address_group.as_deref(), *entity), at, problems)
}
