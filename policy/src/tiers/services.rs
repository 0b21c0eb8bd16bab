//! The services of one family cut so that each rule is about all of a piece or about nothing of it.

use super::spans::Spans;
use crate::model::{Family, PortRange, Protocol};
use crate::node_state::{CompiledService, CompiledServices};
use std::collections::{BTreeMap, BTreeSet};

/// Ports of a protocol, or ICMP types and codes as `type << 8 | code`, or all of one or of several protocols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A stretch of one protocol; what has neither ports nor types has one stretch.
    Of { protocol: Protocol, first: u16, last: u16 },
    /// Every protocol that no rule names.
    Others(Vec<Protocol>),
}

impl Kind {
    /// Whether services of this kind are among these. What members say is no answer here.
    pub(super) fn is_of(&self, services: &CompiledServices) -> bool {
        let services = match services {
            CompiledServices::Any => return true,
            CompiledServices::Only(services) => services,
            CompiledServices::OfMembers => return false,
        };
        let Self::Of { protocol, first, last } = self else { return false };
        services.iter().any(|service| stretch(*service).is_some_and(|(of, from, to)| of == *protocol && from <= *first && *last <= to))
    }

    /// The only port that this is.
    pub(super) fn port(&self) -> Option<(u8, u16)> {
        match self {
            Self::Of { protocol, first, last } => (first == last && protocol.has_ports()).then_some((protocol.0, *first)),
            Self::Others(_) => None,
        }
    }
}

/// What a service is of its protocol.
fn stretch(service: CompiledService) -> Option<(Protocol, u16, u16)> {
    Some(match service {
        CompiledService::Protocol(protocol) => (protocol, 0, u16::MAX),
        CompiledService::Ports(protocol, ports) => (protocol, ports.first(), ports.last()),
        CompiledService::Icmp { family, kind, code } => {
            let protocol = match family {
                Family::V4 => Protocol::ICMP,
                Family::V6 => Protocol::ICMPV6,
            };
            let from = u16::from(kind) << 8;
            let (first, last) = code.map_or((from, from | 0xff), |code| (from | u16::from(code), from | u16::from(code)));
            (protocol, first, last)
        }
    })
}

/// Every service of the family, cut at each boundary that a rule has.
pub(super) fn kinds<'a>(family: Family, rules: impl Iterator<Item = (&'a CompiledServices, &'a BTreeMap<(u8, u16), Spans>)>) -> Vec<Kind> {
    let mut cuts: BTreeMap<Protocol, BTreeSet<u32>> = BTreeMap::new();
    let mut cut = |(protocol, first, last): (Protocol, u16, u16)| {
        cuts.entry(protocol).or_default().extend([u32::from(first), u32::from(last) + 1]);
    };
    for (services, named) in rules {
        match services {
            CompiledServices::Only(services) => services.iter().filter_map(|it| stretch(*it)).for_each(&mut cut),
            CompiledServices::Any | CompiledServices::OfMembers => {}
        }
        named.keys().for_each(|(protocol, port)| cut((Protocol(*protocol), *port, *port)));
    }
    let others = (0..=u8::MAX).map(Protocol).filter(|protocol| !cuts.contains_key(protocol)).collect();
    let mut kinds = vec![Kind::Others(others)];
    for (protocol, mut at) in cuts {
        // The other family's ICMP has no types here, and what has no ports has one stretch.
        if !(protocol.has_ports() || protocol.icmp_family() == Some(family)) {
            at.clear();
        }
        at.extend([0, u32::from(u16::MAX) + 1]);
        let ends: Vec<u32> = at.into_iter().collect();
        let part = |pair: &[u32]| match pair {
            [first, next] => Some(Kind::Of { protocol, first: u16::try_from(*first).ok()?, last: u16::try_from(next - 1).ok()? }),
            _ => None,
        };
        kinds.extend(ends.windows(2).filter_map(part));
    }
    kinds
}

/// As services of rules, in order; pieces that touch are one.
pub(super) fn listed(family: Family, kinds: Vec<Kind>) -> CompiledServices {
    let mut joined: BTreeMap<Protocol, Vec<(u16, u16)>> = BTreeMap::new();
    for kind in kinds {
        match kind {
            Kind::Others(protocols) => joined.extend(protocols.into_iter().map(|protocol| (protocol, vec![(0, u16::MAX)]))),
            Kind::Of { protocol, first, last } => {
                let stretches = joined.entry(protocol).or_default();
                match stretches.last_mut() {
                    Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
                    Some(_) | None => stretches.push((first, last)),
                }
            }
        }
    }
    let mut services = Vec::new();
    for (protocol, stretches) in joined {
        for (first, last) in stretches {
            if (first, last) == (0, u16::MAX) {
                services.push(CompiledService::Protocol(protocol));
            } else if protocol.has_ports() {
                services.extend(PortRange::new(first, last).map(|ports| CompiledService::Ports(protocol, ports)));
            } else {
                services.extend(types(family, first, last));
            }
        }
    }
    services.sort_unstable();
    CompiledServices::Only(services)
}

/// Whole types as far as there are, and codes beside them.
fn types(family: Family, first: u16, last: u16) -> Vec<CompiledService> {
    let byte = |number: u16| number.to_be_bytes();
    let ([from, _], [to, _]) = (byte(first), byte(last));
    let mut services = Vec::new();
    for kind in from..=to {
        let low = if kind == from { byte(first)[1] } else { 0 };
        let high = if kind == to { byte(last)[1] } else { u8::MAX };
        if (low, high) == (0, u8::MAX) {
            services.push(CompiledService::Icmp { family, kind, code: None });
        } else {
            services.extend((low..=high).map(|code| CompiledService::Icmp { family, kind, code: Some(code) }));
        }
    }
    services
}

/// What both have, written as it is in the narrower; a service of one that is in the other only in part is left out.
pub(super) fn common(one: &CompiledServices, other: &CompiledServices) -> CompiledServices {
    match (one, other) {
        (CompiledServices::Any, rest) | (rest, CompiledServices::Any) => rest.clone(),
        (CompiledServices::Only(one), CompiledServices::Only(other)) => {
            CompiledServices::Only(one.iter().filter(|service| other.contains(service)).copied().collect())
        }
        (CompiledServices::OfMembers, _) | (_, CompiledServices::OfMembers) => CompiledServices::Only(Vec::new()),
    }
}

/// What is left to say when those were said.
pub(super) fn without(services: &CompiledServices, said: &CompiledServices) -> CompiledServices {
    match (services, said) {
        (CompiledServices::Any, CompiledServices::Any) => CompiledServices::Only(Vec::new()),
        (CompiledServices::Only(services), CompiledServices::Only(said)) => {
            CompiledServices::Only(services.iter().filter(|service| !said.contains(service)).copied().collect())
        }
        (services, _) => services.clone(),
    }
}

/// The first of them, for people: a title has no room for all.
pub(super) fn text(services: &CompiledServices) -> String {
    match services {
        CompiledServices::Any | CompiledServices::OfMembers => "any".to_owned(),
        CompiledServices::Only(services) => match services.first() {
            None => "nothing".to_owned(),
            Some(CompiledService::Protocol(protocol)) => format!("protocol {}", protocol.0),
            Some(CompiledService::Ports(protocol, ports)) => format!("{protocol} {}-{}", ports.first(), ports.last()),
            Some(CompiledService::Icmp { family: _, kind, code: None }) => format!("type {kind}"),
            Some(CompiledService::Icmp { family: _, kind, code: Some(code) }) => format!("type {kind} code {code}"),
        },
    }
}
