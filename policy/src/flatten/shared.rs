//! The shared form of what the layout says belongs into it.

use super::grants::{Grant, GrantPeers, GrantService, Layout, Merged, Side, SideKey};
use super::{listed, said, side};
use crate::kernel_sets::{Chain, Comment, GroupForm, GroupSet, KernelSets, SharedPeers, SharedRule, SharedService, ShortName, Span};
use crate::model::{Direction, Family};
use crate::node_state::{CompiledService, Group, Isolation, NodeState};
use std::collections::BTreeSet;

/// Adds the chains, the sets of groups that they name, and which local address has which chain.
pub(super) fn add(sets: &mut KernelSets, state: &NodeState, layout: &Layout) {
    for (key, side) in layout.sides.iter().filter(|(_, side)| side.in_chain.contains(&true)) {
        add_side(sets, state, layout, key, side);
    }
}

fn add_side(sets: &mut KernelSets, state: &NodeState, layout: &Layout, key: &SideKey, of: &Side) {
    let (id, direction, family) = key;
    let Some(segment) = state.segments.get(id) else { return };
    let Some(isolation) = side(segment, *direction) else { return };
    let mut rules: Vec<SharedRule> = Vec::new();
    for merged in &of.merged {
        rules.push(together(sets, layout, (&segment.title, *direction, *family), isolation, of, merged));
    }
    let is_merged = |index: usize| of.merged.iter().any(|merged| merged.grants.binary_search(&index).is_ok());
    let chosen = of.grants.iter().zip(&of.in_chain).enumerate().filter(|(index, (_, in_chain))| **in_chain && !is_merged(*index));
    for grant in chosen.map(|(_, (grant, _))| grant) {
        if let Some(rule) = rule(sets, state, &segment.title, *direction, *family, isolation, grant) {
            rules.push(rule);
        }
    }
    // Exact sets first, as the cheaper ones; of rules that allow the same the first by text is kept, whatever their order.
    rules.sort();
    rules.dedup_by(|one, kept| (one.peers, one.service) == (kept.peers, kept.service));
    let text: Vec<String> = rules.iter().map(|rule| format!("{rule:?}")).collect();
    let name = ShortName::new(&segment.title, [&*id.0].into_iter().chain(text.iter().map(String::as_str)));
    let chain = Chain { direction: *direction, family: *family, name, answers: false };
    sets.shared.chains.insert(chain, rules);
    for (address, who) in &of.locals {
        let comment = super::comment(format!("{who} isolated by {}", listed(isolation)));
        sets.shared.segments.insert((*direction, *address), (chain, comment));
    }
}

fn rule(
    sets: &mut KernelSets,
    state: &NodeState,
    who: &str,
    direction: Direction,
    family: Family,
    isolation: &Isolation,
    grant: &Grant,
) -> Option<SharedRule> {
    let written = isolation.rules.get(grant.rule)?;
    let service = service(grant.service);
    Some(match &grant.peers {
        GrantPeers::Any => SharedRule { peers: SharedPeers::Any, service, comment: said(who, direction, "any", written) },
        GrantPeers::Group(id, form) => {
            let group = state.groups.get(id)?;
            let set = group_set(group, family, *form);
            sets.shared.groups.insert(set, (group.members.clone(), title(group)));
            SharedRule { peers: SharedPeers::In(set), service, comment: said(who, direction, &group.title, written) }
        }
    })
}

/// The rule of several groups, with their set.
fn together(
    sets: &mut KernelSets,
    layout: &Layout,
    (who, direction, family): (&str, Direction, Family),
    isolation: &Isolation,
    of: &Side,
    merged: &Merged,
) -> SharedRule {
    let set = merged.set(family);
    let members = layout.unions.get(&set).cloned().unwrap_or_default();
    sets.shared.groups.insert(set, (members, super::comment(merged.title())));
    let written = merged.grants.iter().filter_map(|index| isolation.rules.get(of.grants.get(*index)?.rule));
    let origins: BTreeSet<String> = written.map(|rule| rule.origin.to_string()).collect();
    let arrow = super::arrow(direction);
    let origins: Vec<String> = origins.into_iter().collect();
    let comment = super::comment(format!("{who} {arrow} {} by {}", merged.title(), origins.join(", ")));
    SharedRule { peers: SharedPeers::In(set), service: service(merged.service), comment }
}

/// The set of a group's members of one family and form.
pub(super) fn group_set(group: &Group, family: Family, form: GroupForm) -> GroupSet {
    GroupSet { family, form, name: ShortName::new(&group.title, [&*group.id.0]) }
}

fn title(group: &Group) -> Comment {
    super::comment(group.title.clone())
}

fn service(service: GrantService) -> SharedService {
    match service {
        GrantService::Any | GrantService::OfMembers => SharedService::Any,
        GrantService::One(CompiledService::Protocol(protocol)) => SharedService::Protocol(protocol),
        GrantService::Protocols(protocols) => SharedService::Protocols(protocols),
        GrantService::One(CompiledService::Ports(protocol, ports)) => {
            SharedService::Ports(protocol, Span { first: ports.first(), last: ports.last() })
        }
        GrantService::One(CompiledService::Icmp { family: _, kind, code }) => SharedService::Icmp(kind, code),
    }
}
