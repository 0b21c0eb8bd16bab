//! The first half of settling: which policies select which kinds of workload, and which groups mean them.

use super::{AT_ONCE, KindRecord, PolicyRecord, Said, Work, Written};
use crate::compile::Problem;
use crate::index::claims::Place;
use crate::index::groups::{GroupRecord, Source, scope};
use crate::index::ids::{IdMap, IdSet, insert, remove};
use crate::index::labels::Scope;
use crate::index::parallel;
use crate::index::running::{Running, Touched};
use crate::index::stamps::Stamps;
use crate::index::template::{Draft, Item, Wanted, draft};
use crate::model::{NamespaceScope, Peer, PolicyKey};
use std::collections::BTreeSet;
use std::sync::Arc;

impl<S: Stamps> Written<S> {
    pub(super) fn take_in_referents(&mut self, work: &mut Work) {
        if let Some(networks) = self.pending.cluster_networks.take()
            && networks != self.cluster_networks
        {
            self.cluster_networks = networks;
            work.whole.extend(&self.of_world);
        }
        for (name, group) in std::mem::take(&mut self.pending.address_groups) {
            let before = self.address_groups.get(&name);
            if before == group.as_ref() {
                continue;
            }
            if before.is_some() != group.is_some() {
                // Rules that deny say something else while what they name is missing.
                let referring = self.referring.get(&name).into_iter().flatten().filter_map(|it| self.policies.get(*it));
                // In front: what was said of them counts more.
                self.pending.policies.splice(0..0, referring.map(|it| Said::Put(it.item.clone())));
            }
            work.whole.extend(self.of_address_groups.get(&name).into_iter().flatten());
            match group {
                Some(group) => drop(self.address_groups.insert(name, group)),
                None => drop(self.address_groups.remove(&name)),
            }
        }
    }

    /// Takes out what goes or is replaced; gives what comes, with the numbers of those that were there.
    pub(super) fn take_out_policies(&mut self, running: &mut Running, work: &mut Work) -> Vec<(Option<u32>, Item)> {
        let mut coming = Vec::new();
        let mut leaving: IdMap<u32, IdSet<u32>> = IdMap::default();
        let mut gone = Vec::new();
        let mut said = std::mem::take(&mut self.pending.policies);
        // Stable: the last word about a policy is the last of its run.
        said.sort_by(|one, other| one.key().cmp(&other.key()));
        let mut said = said.into_iter().peekable();
        while let Some(word) = said.next() {
            if said.peek().is_some_and(|next| next.key() == word.key()) {
                continue;
            }
            let (tiered, key) = word.key();
            let key = (tiered, key.clone());
            let number = self.policy_number(&key);
            let item = match word {
                Said::Put(item) => Some(item),
                Said::Remove(_) => None,
            };
            if let Some(number) = number.filter(|_| item.is_none()) {
                self.policy_ids.remove(&key, number);
            }
            if let Some(number) = number
                && let Some(record) = self.policies.take(number)
            {
                self.subjects.unregister(&record.subject, number);
                record.subject.let_go(&mut running.texts);
                for kind in &record.kinds {
                    leaving.entry(*kind).or_default().insert(number);
                    work.kinds.insert(*kind);
                }
                for name in record.item.referents() {
                    if let Some(policies) = self.referring.get_mut(&name) {
                        policies.remove(&number);
                    }
                    if self.referring.get(&name).is_some_and(BTreeSet::is_empty) {
                        self.referring.remove(&name);
                    }
                }
                self.leave_rank(&record.item, number);
                self.forget_problems(record.item.key());
                gone.extend(record.template.groups.iter().copied());
                if item.is_none() {
                    work.freed_policies.push(number);
                }
            }
            coming.extend(item.map(|item| (number, item)));
        }
        for (kind, policies) in leaving {
            let record = &mut self.kinds[kind as usize];
            record.policies = record.policies.iter().copied().filter(|policy| !policies.contains(policy)).collect();
        }
        // Let go of when what comes holds its own.
        work.freed_groups = gone;
        coming
    }

    fn leave_rank(&mut self, item: &Item, number: u32) {
        let Some(rank) = item.rank() else { return };
        let Some(others) = self.ranks.get_mut(&rank) else { return };
        others.remove(&number);
        let others: Vec<u32> = others.iter().copied().collect();
        if others.is_empty() {
            self.ranks.remove(&rank);
        }
        others.into_iter().for_each(|other| self.review_problems(other));
    }

    fn review_problems(&mut self, number: u32) {
        let Some(record) = self.policies.get(number) else { return };
        let mut found: BTreeSet<Problem> = BTreeSet::new();
        for peer in record.item.peers() {
            match peer {
                Peer::Group(name) if !self.address_groups.contains_key(name) => {
                    found.insert(Problem::MissingAddressGroup(name.clone()));
                }
                Peer::Unknown => {
                    found.insert(Problem::UnknownPeer);
                }
                Peer::Group(_) | Peer::Workloads { .. } | Peer::Cidr(_) | Peer::Entity(_) | Peer::Nodes(_) => {}
            }
        }
        let same = record.item.rank().and_then(|rank| self.ranks.get(&rank));
        let others = same.into_iter().flatten().filter(|other| **other != number).filter_map(|other| self.policies.get(*other));
        found.extend(others.map(|other| Problem::SamePriority(other.item.key().clone())));
        if !found.is_empty() {
            Arc::make_mut(&mut self.problems).insert(record.item.key().clone(), found.into_iter().collect());
        } else if self.problems.contains_key(record.item.key()) {
            Arc::make_mut(&mut self.problems).remove(record.item.key());
        }
    }

    fn forget_problems(&mut self, key: &PolicyKey) {
        if self.problems.contains_key(key) {
            Arc::make_mut(&mut self.problems).remove(key);
        }
    }

    /// Groups that a change of a kind's claims at a place may be about.
    pub(super) fn note_claims(&self, claims: impl Iterator<Item = (Place, u32)>, work: &mut Work) {
        for (place, kind) in claims {
            if let Some(record) = self.kinds.get(kind as usize) {
                let kept = record.groups.iter().filter(|group| !work.whole.contains(group));
                work.places.extend(kept.map(|group| (*group, place)));
            }
        }
    }

    pub(super) fn take_in_kinds(&mut self, running: &Running, touched: &Touched, work: &mut Work) {
        let relabelled = touched.namespaces.iter().flat_map(|space| running.kinds_in(*space));
        let kinds: BTreeSet<u32> = touched.kinds.iter().chain(relabelled).copied().collect();
        if let Some(highest) = kinds.last()
            && self.kinds.len() <= *highest as usize
        {
            self.kinds.resize_with(*highest as usize + 1, KindRecord::default);
        }
        for number in kinds {
            match running.kind(number) {
                None => self.drop_kind(number),
                Some(_) => self.match_kind(running, number, work),
            }
        }
    }

    fn drop_kind(&mut self, number: u32) {
        let record = std::mem::take(&mut self.kinds[number as usize]);
        for policy in record.policies.iter() {
            if let Some(policy) = self.policies.get_mut(*policy) {
                remove(&mut policy.kinds, number);
            }
        }
        for group in record.groups {
            if let Some(group) = self.groups.get_mut(group) {
                remove(&mut group.kinds, number);
            }
        }
    }

    /// Asks the selectors that are registered about a kind.
    fn match_kind(&mut self, running: &Running, number: u32, work: &mut Work) {
        let Some(kind) = running.kind(number) else { return };
        let (space, space_labels, labels) = (kind.namespace, running.namespace_labels(kind.namespace), running.labels(kind));
        let is_meant = |scope: Option<&Scope>| scope.is_some_and(|it| it.matches(space, space_labels, labels));
        let mut policies: Vec<u32> = self.subjects.candidates(space, space_labels, labels).collect();
        policies.retain(|policy| is_meant(self.policies.get(*policy).map(|it| &it.subject)));
        policies.sort_by(|one, other| self.order(*one, *other));
        let mut groups: Vec<u32> = self.peers.candidates(space, space_labels, labels).collect();
        groups.retain(|group| is_meant(self.groups.get(*group).and_then(|it| it.meaning.scope())));
        groups.sort_unstable();
        let record = &mut self.kinds[number as usize];
        if *record.policies != *policies || !record.is_known {
            record.is_known = true;
            let before = std::mem::replace(&mut record.policies, policies.as_slice().into());
            work.kinds.insert(number);
            for policy in before.iter().filter(|it| !policies.contains(it)) {
                if let Some(policy) = self.policies.get_mut(*policy) {
                    remove(&mut policy.kinds, number);
                }
            }
            for policy in policies {
                if let Some(policy) = self.policies.get_mut(policy) {
                    insert(&mut policy.kinds, number);
                }
            }
        }
        let record = &mut self.kinds[number as usize];
        if record.groups == groups {
            return;
        }
        let before = std::mem::replace(&mut record.groups, groups.clone());
        let left = before.iter().filter(|group| groups.binary_search(group).is_err());
        let joined = groups.iter().filter(|group| before.binary_search(group).is_err());
        let places: BTreeSet<_> = kind
            .workloads
            .iter()
            .filter_map(|workload| running.workload(*workload))
            .flat_map(|held| held.workload.addresses.iter().filter_map(|at| Some(running.place_of(at)?.0)))
            .collect();
        for (group, joins) in left.map(|it| (*it, false)).chain(joined.map(|it| (*it, true))) {
            let Some(record) = self.groups.get_mut(group) else { continue };
            match joins {
                true => insert(&mut record.kinds, number),
                false => remove(&mut record.kinds, number),
            };
            work.places.extend(places.iter().map(|place| (group, *place)));
        }
    }

    fn order(&self, one: u32, other: u32) -> std::cmp::Ordering {
        match (self.policies.get(one), self.policies.get(other)) {
            (Some(one), Some(other)) => one.item.order(&other.item),
            // Numbers on lists are of policies that are there.
            (None, _) | (_, None) => one.cmp(&other),
        }
    }

    pub(super) fn bring_in_policies(&mut self, coming: Vec<(Option<u32>, Item)>, running: &mut Running, work: &mut Work) {
        let (mut numbers, mut fresh) = (Vec::with_capacity(coming.len()), Vec::new());
        for coming in coming.chunks(AT_ONCE) {
            let drafts = parallel::map(coming, |(_, item)| {
                draft(item, &|name| !self.address_groups.contains_key(name), &|group| self.group_number(group).is_some())
            });
            for ((number, item), draft) in coming.iter().zip(drafts) {
                let Draft { template, groups } = draft;
                let groups: Vec<u32> = groups.into_iter().map(|wanted| self.hold_group(item.key(), wanted, running, &mut fresh)).collect();
                let template = template.numbered(&groups);
                for group in &template.groups {
                    if let Some(group) = self.groups.get_mut(*group) {
                        group.uses += 1;
                    }
                }
                let subject = subject(item, running);
                let record = PolicyRecord { item: item.clone(), subject, template, kinds: Vec::new() };
                let number = match number {
                    Some(number) => {
                        self.policies.put(*number, record);
                        *number
                    }
                    None => {
                        let number = self.policies.add(record);
                        self.policy_ids.insert(&(item.rank().is_some(), item.key().clone()), number);
                        number
                    }
                };
                for name in item.referents() {
                    self.referring.entry(name).or_default().insert(number);
                }
                if let Some(rank) = item.rank() {
                    self.ranks.entry(rank).or_default().insert(number);
                }
                numbers.push(number);
            }
        }
        drop(coming);
        for number in &numbers {
            self.review_problems(*number);
            let rank = self.policies.get(*number).and_then(|it| it.item.rank());
            let same: Vec<u32> = rank.and_then(|rank| self.ranks.get(&rank)).into_iter().flatten().copied().collect();
            same.into_iter().for_each(|other| self.review_problems(other));
        }
        self.match_groups(&fresh, running, work);
        self.match_policies(&numbers, running, work);
        let released = std::mem::take(&mut work.freed_groups);
        self.let_groups_go(released, running, work);
    }

    /// The number of a group, which is there afterwards.
    fn hold_group(&mut self, key: &PolicyKey, wanted: Wanted<'_>, running: &mut Running, fresh: &mut Vec<u32>) -> u32 {
        if let Some(number) = self.group_number(&wanted.id) {
            return number;
        }
        let id = wanted.id.clone();
        let number = self.groups.add(GroupRecord::new(&key.namespace, wanted, running));
        self.group_ids.insert(&id, number);
        fresh.push(number);
        number
    }

    /// Finds the kinds that new groups mean.
    fn match_groups(&mut self, fresh: &[u32], running: &Running, work: &mut Work) {
        let kinds = parallel::map(fresh, |group| {
            self.groups.get(*group).and_then(|it| it.meaning.scope()).map(|scope| running.matching(scope)).unwrap_or_default()
        });
        for (number, kinds) in fresh.iter().zip(kinds) {
            work.whole.insert(*number);
            for kind in &kinds {
                insert(&mut self.kinds[*kind as usize].groups, *number);
            }
            let Some(group) = self.groups.get_mut(*number) else { continue };
            group.kinds = kinds;
            if let Some(scope) = group.meaning.scope() {
                self.peers.register(scope, *number);
            }
            match group.meaning.source() {
                Some(Source::Group(name)) => drop(self.of_address_groups.entry(name.clone()).or_default().insert(*number)),
                Some(Source::World) => drop(self.of_world.insert(*number)),
                Some(Source::Cidr(_) | Source::Any) | None => {}
            }
            if group.meaning.is_of_nodes() {
                self.of_nodes.insert(*number);
            }
        }
    }

    /// Finds the kinds that policies select.
    fn match_policies(&mut self, numbers: &[u32], running: &Running, work: &mut Work) {
        let kinds = parallel::map(numbers, |policy| self.policies.get(*policy).map(|it| running.matching(&it.subject)).unwrap_or_default());
        let mut joining: IdMap<u32, Vec<u32>> = IdMap::default();
        for (number, kinds) in numbers.iter().zip(kinds) {
            for kind in &kinds {
                joining.entry(*kind).or_default().push(*number);
            }
            if let Some(policy) = self.policies.get_mut(*number) {
                policy.kinds = kinds;
                self.subjects.register(&policy.subject, *number);
            }
        }
        let mut joining: Vec<(u32, Vec<u32>)> = joining.into_iter().collect();
        joining.sort_unstable_by_key(|(kind, _)| *kind);
        for (kind, joining) in joining {
            let mut policies: Vec<u32> = self.kinds[kind as usize].policies.iter().copied().chain(joining).collect();
            policies.sort_by(|one, other| self.order(*one, *other));
            policies.dedup();
            self.kinds[kind as usize].policies = policies.into();
            work.kinds.insert(kind);
        }
    }

    fn let_groups_go(&mut self, released: Vec<u32>, running: &mut Running, work: &mut Work) {
        for number in released {
            let Some(group) = self.groups.get_mut(number) else { continue };
            group.uses -= 1;
            if group.uses > 0 {
                continue;
            }
            for kind in &group.kinds {
                remove(&mut self.kinds[*kind as usize].groups, number);
            }
            if let Some(scope) = group.meaning.scope() {
                self.peers.unregister(scope, number);
                scope.let_go(&mut running.texts);
            }
            if let Some(Source::Group(name)) = group.meaning.source()
                && let Some(groups) = self.of_address_groups.get_mut(name)
            {
                groups.remove(&number);
                if groups.is_empty() {
                    self.of_address_groups.remove(name);
                }
            }
            self.of_world.remove(&number);
            self.of_nodes.remove(&number);
            self.group_ids.remove(&group.shared.id, number);
            work.whole.remove(&number);
            // Its slot is needed until the nodes have let go of it too.
            work.freed_groups.push(number);
        }
    }
}

/// The workloads that a policy is about.
fn subject(item: &Item, running: &mut Running) -> Scope {
    match item {
        Item::Namespaced(policy) => scope(&policy.key.namespace, &NamespaceScope::Own, &policy.subject, running),
        Item::Tiered(policy) => {
            let namespaces = NamespaceScope::Matching(policy.subject.namespaces.clone());
            scope(&policy.key.namespace, &namespaces, &policy.subject.workloads, running)
        }
    }
}
