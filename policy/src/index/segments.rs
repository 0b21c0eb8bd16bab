//! Segments: named and built from the templates of the policies that select their workloads.

use super::ids::Counts;
use super::stamps::Stamps;
use super::template::{Item, PortName, RuleTemplate, ServiceTemplate, Template};
use crate::compile::canonical::segment_id;
use crate::compile::segments::APPLICATION_LABELS;
use crate::model::{Direction, HostAccess, Mode, NamespaceName, PortRange, Tier, Workload};
use crate::node_state::{
    CompiledPeers, CompiledRule, CompiledService, CompiledServices, GroupId, Isolation, RuleRef, Rulebook, Segment, SegmentId, TierRule,
    TierRules,
};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

/// How a workload resolves the ports that its policies name, in the order of the names.
pub(super) type Ports = Box<[(PortName, Box<[u16]>)]>;

/// A segment that some workload is in.
#[derive(Debug)]
pub(super) struct SegmentRecord<S: Stamps> {
    /// The policies that select its workloads, in order.
    pub(super) policies: Arc<[u32]>,
    pub(super) ports: Ports,
    /// As nodes have it on which every group is the shared one. It has no rules before it is built.
    pub(super) shared: Arc<Segment>,
    /// `None` before it is built.
    pub(super) stamp: Option<S::Stamp>,
    /// Every group that it names, sorted.
    pub(super) groups: Arc<[u32]>,
    /// How many workloads of it each node has.
    pub(super) nodes: Counts,
}

impl<S: Stamps> SegmentRecord<S> {
    pub(super) fn id(&self) -> &SegmentId {
        &self.shared.id
    }

    /// A segment that is not built yet and has no workloads.
    pub(super) fn new(id: SegmentId, title: Box<str>, policies: Arc<[u32]>, ports: Ports, no_rules: &Arc<Rulebook>) -> Self {
        let shared = Arc::new(Segment { id, title: title.into(), rules: no_rules.clone(), audit: None });
        Self { policies, ports, shared, stamp: None, groups: Arc::default(), nodes: Counts::default() }
    }
}

/// What tells the segments of workloads of one kind apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Variant {
    /// The workload's own name, where no label says which application it is.
    name: Option<Box<str>>,
    ports: Ports,
}

impl Variant {
    /// Whether other workloads of its kind can be of the same.
    pub(super) fn is_common(&self) -> bool {
        self.name.is_none()
    }

    pub(super) fn of(workload: &Workload, named: &[PortName]) -> Self {
        let labelled = APPLICATION_LABELS.iter().any(|key| workload.labels.get(key).is_some());
        let ports = named.iter().map(|(protocol, name)| {
            let own = workload.named_ports.iter().filter(|it| it.protocol == *protocol && *it.name == **name);
            let numbers: BTreeSet<u16> = own.map(|it| it.port).collect();
            ((*protocol, name.clone()), numbers.into_iter().collect())
        });
        Self { name: (!labelled).then(|| workload.name.as_str().into()), ports: ports.collect() }
    }

    pub(super) fn ports(&self) -> &Ports {
        &self.ports
    }

    pub(super) fn into_ports(self) -> Ports {
        self.ports
    }
}

/// The title of the segment of a workload.
pub(super) fn title(workload: &Workload) -> Box<str> {
    let application = APPLICATION_LABELS.iter().find_map(|key| workload.labels.get(key)).unwrap_or(&workload.name);
    title_of(&workload.namespace, application)
}

fn title_of(namespace: &NamespaceName, application: &str) -> Box<str> {
    format!("{namespace}/{application}").into()
}

/// Title, policies, and how its workloads resolve the ports that these name.
pub(super) fn name<'a>(title: &str, policies: impl Iterator<Item = &'a Template>, ports: &Ports) -> SegmentId {
    let mut text = format!("segment/1\n{title:?}\n");
    for template in policies {
        text.push_str(&template.line);
        for named in &template.named {
            let (protocol, name) = named;
            let numbers: BTreeSet<u16> = numbers(ports, named).iter().copied().collect();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {} {name:?} is {numbers:?}", protocol.0);
        }
    }
    segment_id(&text)
}

fn numbers<'a>(ports: &'a Ports, named: &PortName) -> &'a [u16] {
    ports.binary_search_by(|(it, _)| it.cmp(named)).map(|at| &*ports[at].1).unwrap_or_default()
}

/// Builds segments out of policies in order, with the groups as one node sees them.
pub(super) struct Builder<'a> {
    pub(super) policies: Vec<(&'a Item, &'a Template)>,
    pub(super) ports: &'a Ports,
    pub(super) ids: &'a dyn Fn(u32, &mut Vec<GroupId>),
}

impl Builder<'_> {
    /// What is enforced, and what would be if every Audit policy were, where there is one.
    pub(super) fn build(&self) -> (Arc<Rulebook>, Option<Arc<Rulebook>>) {
        let audited = self.policies.iter().any(|(item, _)| item.mode() == Mode::Audit);
        (Arc::new(self.rulebook(false)), audited.then(|| Arc::new(self.rulebook(true))))
    }

    /// What the policies say that are enforced, and with `audit` those in Audit mode as if they were.
    fn rulebook(&self, audit: bool) -> Rulebook {
        let tier =
            |tier| TierRules { ingress: self.tier(tier, Direction::Ingress, audit), egress: self.tier(tier, Direction::Egress, audit) };
        Rulebook {
            admin: tier(Tier::Admin),
            ingress: self.isolation(Direction::Ingress, audit),
            egress: self.isolation(Direction::Egress, audit),
            baseline: tier(Tier::Baseline),
        }
    }

    fn counting(&self, audit: bool) -> impl Iterator<Item = (&Item, &Template)> {
        let counts = move |mode| match mode {
            Mode::Enforce => true,
            Mode::Audit => audit,
        };
        self.policies.iter().copied().filter(move |(item, _)| counts(item.mode()))
    }

    fn isolation(&self, direction: Direction, audit: bool) -> Option<Isolation> {
        let mut isolation = Isolation { policies: Vec::new(), host_access: HostAccess::Allow, rules: Vec::new() };
        for (item, template) in self.counting(audit) {
            let Item::Namespaced(policy) = item else { continue };
            let Some(templates) = template.rules(direction) else { continue };
            isolation.policies.push(policy.key.clone());
            isolation.host_access = isolation.host_access.max(policy.host_access);
            let written = match direction {
                Direction::Ingress => policy.ingress.as_deref(),
                Direction::Egress => policy.egress.as_deref(),
            };
            let written = written.unwrap_or_default();
            isolation.rules.reserve(templates.len());
            for rule in templates {
                let name = written.get(rule.position as usize).and_then(|written| written.name.as_ref());
                let origin = RuleRef { policy: policy.key.clone(), index: rule.position, name: name.cloned() };
                isolation.rules.push(CompiledRule { origin, peers: self.peers(rule), services: self.services(rule) });
            }
        }
        (!isolation.policies.is_empty()).then_some(isolation)
    }

    fn tier(&self, tier: Tier, direction: Direction, audit: bool) -> Vec<TierRule> {
        let mut rules = Vec::new();
        for (item, template) in self.counting(audit) {
            let Item::Tiered(policy) = item else { continue };
            if policy.tier != tier {
                continue;
            }
            for rule in template.rules(direction).unwrap_or_default() {
                let written = policy.rules(direction).get(rule.position as usize);
                let origin =
                    RuleRef { policy: policy.key.clone(), index: rule.position, name: written.and_then(|written| written.name.clone()) };
                let reason = written.and_then(|written| written.reason.clone());
                rules.push(TierRule { origin, action: rule.action, peers: self.peers(rule), services: self.services(rule), reason });
            }
        }
        rules
    }

    fn peers(&self, rule: &RuleTemplate) -> CompiledPeers {
        let Some(groups) = &rule.peers else { return CompiledPeers::Any };
        let mut ids = Vec::with_capacity(groups.len());
        groups.iter().for_each(|group| (self.ids)(*group, &mut ids));
        ids.sort_unstable();
        ids.dedup();
        CompiledPeers::Groups(ids)
    }

    fn services(&self, rule: &RuleTemplate) -> CompiledServices {
        match &rule.services {
            ServiceTemplate::Any => CompiledServices::Any,
            ServiceTemplate::OfMembers => CompiledServices::OfMembers,
            ServiceTemplate::Only { numbers, own } if own.is_empty() => CompiledServices::Only(numbers.to_vec()),
            ServiceTemplate::Only { numbers: written, own } => {
                let named = own.iter().flat_map(|named| {
                    numbers(self.ports, named).iter().map(|port| CompiledService::Ports(named.0, PortRange::single(*port)))
                });
                let all: BTreeSet<CompiledService> = written.iter().copied().chain(named).collect();
                CompiledServices::Only(all.into_iter().collect())
            }
        }
    }
}
