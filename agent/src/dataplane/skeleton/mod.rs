//! The fixed rules: the same on every node, installed once, as text for `nft -j`. Policy is only in the elements of the sets.
//! Pure: builds the text, does not run anything.

mod accounting;
mod cut;
mod guard;
mod policy;
mod sets;
mod shape;
mod shield;
mod unknown;
mod words;

use super::config::DataplaneConfig;
use super::names::{
    CHAIN_FROM_WORKLOAD, FAMILIES, Layer, SetRef, TABLE, beyond_answer, beyond_egress, is_port_chain, parse_group_set, parse_segment_chain,
};
use super::ports;
pub(super) use policy::{SHORTCUTS, judged_name};
use serde::Serialize;
use serde_json::{Value, json};
pub(super) use sets::{INTEGER_32, INTEGER_48, INTEGER_128};
use sets::{SetSpec, written_set};
pub(super) use shape::SetShape;
pub(super) use shield::{Part as ShieldPart, chain as shield_chain, fill_place};
use std::collections::{BTreeMap, BTreeSet};
use words::Rules;

/// What tells one skeleton from another, kept in the kernel as the name of a counter: `skeleton_<form>_<rules>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Of the sets that the agent writes. Another form cannot take over the elements.
    pub(super) form: String,
    /// Of everything else.
    pub(super) rules: String,
}

const STAMP: &str = "skeleton_";

impl Stamp {
    /// As the counter's name.
    pub(super) fn counter(&self) -> String {
        format!("{STAMP}{}_{}", self.form, self.rules)
    }

    /// From a counter's name; `None` when it is another counter.
    pub(super) fn parse(counter: &str) -> Option<Self> {
        let (form, rules) = counter.strip_prefix(STAMP)?.split_once('_')?;
        Some(Self { form: form.to_owned(), rules: rules.to_owned() })
    }
}

/// What a table has already, as far as replacing its rules must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) chains: Vec<String>,
    /// Of the guards' base chains, the device.
    pub(super) ports: BTreeMap<String, String>,
    /// Named sets and maps.
    pub(super) sets: BTreeMap<String, SetShape>,
    pub(super) counters: Vec<String>,
    /// Other named objects: nft's word for the kind, and the name. We have none; another version may.
    pub(super) others: Vec<(&'static str, String)>,
}

/// The fixed rules of one table.
#[derive(Debug)]
pub(super) struct Skeleton {
    layer: Layer,
    /// Those whose elements the agent writes.
    written: Vec<SetSpec>,
    /// Those that the kernel writes.
    counted: Vec<SetSpec>,
    /// Those that the kernel writes and that outlive their rules.
    kept: Vec<SetSpec>,
    /// That the agent fills for a time.
    timed: Vec<SetSpec>,
    /// As it is at a first install, and without its element.
    midstream: Option<(SetSpec, SetSpec)>,
    rules: Rules,
    stamp: Stamp,
}

impl Skeleton {
    /// For a configuration.
    pub(super) fn new(layer: Layer, config: &DataplaneConfig) -> Result<Self, serde_json::Error> {
        let mut rules = Rules::new(layer);
        match layer {
            Layer::Inet | Layer::Arp => unknown::add(&mut rules, layer, config),
            Layer::Bridge => {
                unknown::add(&mut rules, layer, config);
                guard::to_workload(&mut rules);
            }
            Layer::Netdev => guard::from_workload(&mut rules, config),
        }
        let (mut counted, mut kept, mut timed) = (sets::refused(layer, config), Vec::new(), Vec::new());
        let mut midstream = None;
        match layer {
            Layer::Inet => {
                policy::add(&mut rules, config.cut_label);
                cut::add(&mut rules, config.cut_label);
                accounting::add(&mut rules, config);
                shield::add(&mut rules);
                counted.extend(sets::counted(config));
                counted.extend(sets::shield_sets(config));
                kept = sets::revoked_sets();
                timed = vec![sets::observe()];
                midstream = Some((sets::midstream(config, true), sets::midstream(config, false)));
            }
            Layer::Bridge | Layer::Arp | Layer::Netdev => {}
        }
        let written = sets::written(layer);
        let form = fingerprint(&written)?;
        let later = midstream.as_ref().map(|(_, later)| later);
        let rules_stamp = fingerprint(&(&counted, &kept, &timed, later, &rules.counters, &rules.chains, &rules.rules))?;
        Ok(Self { layer, written, counted, kept, timed, midstream, rules, stamp: Stamp { form, rules: rules_stamp } })
    }

    /// What it is known by.
    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// The sets that have to be made before the rest, as text for `nft -f`: those that its JSON cannot declare. Empty when none is
    /// missing. Nothing looks at them before the transition.
    pub(super) fn prelude(&self, present: &Present) -> String {
        let missing = self.written.iter().filter(|set| !present.sets.contains_key(&set.name));
        missing
            .filter_map(|set| Some(format!("add set {} {TABLE} {} {{ typeof {}; }}\n", self.layer.as_str(), set.name, set.type_of?)))
            .collect()
    }

    /// The commands that make of what is there, whatever it is, these rules, in one transaction. A set that is there in the same form
    /// stays with its elements; every other one is made anew and empty. So is everything else: chains, rules, maps, and objects
    /// that we do not have. Counters go on counting. The guards' base chains stay, and get their one rule back.
    pub(super) fn transition(&self, present: &Present) -> Result<Transition, serde_json::Error> {
        let family = self.layer.as_str();
        let named = |kind: &str, name: &str| json!({ "delete": { kind: { "family": family, "table": TABLE, "name": name } } });
        let is_first = *present == Present::default();
        let sets = self.sets(is_first);
        let is_kept = |name: &str| {
            let shape = sets.iter().find(|(set, _)| set.name == name).and_then(|(set, is_dynamic)| SetShape::of(set, *is_dynamic));
            shape.is_some() && present.sets.get(name) == shape.as_ref()
        };
        let mut kept: BTreeSet<String> =
            present.sets.keys().filter(|name| is_kept(name) || self.is_group(present, name)).cloned().collect();
        let from_prelude = self.written.iter().filter(|set| set.type_of.is_some());
        kept.extend(from_prelude.map(|set| set.name.clone()));
        let mut commands = Vec::new();
        // The chains of segments are the agent's as the elements are, and what they lead to stays for their sake.
        let is_segment = |chain: &str| self.layer == Layer::Inet && parse_segment_chain(chain).is_some();
        let flush = |chain: &String| json!({ "flush": { "chain": { "family": family, "table": TABLE, "name": chain } } });
        commands.extend(present.chains.iter().filter(|chain| !is_segment(chain)).map(flush));
        // Maps first: their elements may hold chains.
        let goes = |name: &str, shape: &SetShape| shape.is_map() && !kept.contains(name);
        commands.extend(present.sets.iter().filter(|(name, shape)| goes(name, shape)).map(|(name, _)| named("map", name)));
        let is_port = |chain: &str| self.layer == Layer::Netdev && is_port_chain(chain);
        let is_led_to = |chain: &str| {
            self.layer == Layer::Inet && FAMILIES.iter().any(|family| beyond_egress(*family) == chain || beyond_answer(*family) == chain)
        };
        let stays = |chain: &str| {
            is_port(chain) || is_segment(chain) || is_led_to(chain) || (self.layer == Layer::Inet && POLICY_HOOKS.contains(&chain))
        };
        commands.extend(present.chains.iter().filter(|chain| !stays(chain)).map(|chain| named("chain", chain)));
        let goes = |name: &str, shape: &SetShape| !shape.is_map() && !kept.contains(name);
        commands.extend(present.sets.iter().filter(|(name, shape)| goes(name, shape)).map(|(name, _)| named("set", name)));
        let stamp = self.stamp.counter();
        let wanted = |name: &String| self.rules.counters.contains(name);
        commands.extend(present.counters.iter().filter(|name| !wanted(name)).map(|name| named("counter", name)));
        commands.extend(present.others.iter().map(|(kind, name)| named(kind, name)));

        for (set, _) in sets.iter().filter(|(set, _)| !kept.contains(&set.name)) {
            commands.push(add_set(set)?);
        }
        for counter in self.rules.counters.iter().filter(|name| !present.counters.contains(name)).chain([&stamp]) {
            commands.push(add_object(&words::counter_object(self.layer, counter))?);
        }
        let mut jumps = Rules::new(self.layer);
        for chain in present.chains.iter().filter(|chain| is_port(chain)) {
            jumps.rule(chain, [words::jump(CHAIN_FROM_WORKLOAD)]);
        }
        // Their policy may have been changed.
        commands.extend(present.ports.iter().map(|(chain, device)| ports::command(chain, device)));
        for object in self.rules.chains.iter().chain(&self.rules.rules).chain(&jumps.rules) {
            commands.push(add_object(object)?);
        }
        Ok(Transition { commands, kept })
    }

    /// Whether every set whose elements the agent writes is there in our form, so that the rules alone can be replaced.
    pub(super) fn elements_can_stay(&self, present: &Present) -> bool {
        // Before there were maps of segments there were none of their elements.
        let is_new_map = |set: &SetSpec| set.map.is_some() && !present.sets.contains_key(&set.name);
        self.written.iter().all(|set| is_new_map(set) || self.is_there(present, &set.name))
    }

    /// Whether it is the set of a group, in our form.
    fn is_group(&self, present: &Present, set: &str) -> bool {
        let spec = parse_group_set(set).filter(|_| self.layer == Layer::Inet).map(|group| written_set(self.layer, SetRef::Group(group)));
        let shape = spec.and_then(|spec| SetShape::of(&spec, false));
        shape.is_some() && present.sets.get(set) == shape.as_ref()
    }

    /// Whether a set whose elements the agent writes is there in our form.
    pub(super) fn is_there(&self, present: &Present, set: &str) -> bool {
        let shape = self.written.iter().find(|spec| spec.name == set).and_then(|spec| SetShape::of(spec, false));
        shape.is_some() && present.sets.get(set) == shape.as_ref()
    }

    /// Whether a set whose elements the agent writes is there in a form whose elements are ours, though it may have to be made anew.
    pub(super) fn can_be_read(&self, present: &Present, set: &str) -> bool {
        let shape = self.written.iter().find(|spec| spec.name == set).and_then(|spec| SetShape::of(spec, false));
        shape.zip(present.sets.get(set)).is_some_and(|(shape, held)| shape.holds_the_same(held))
    }

    /// All sets, and whether rules write them. At a first install connections that are older may be picked up for a while.
    fn sets(&self, is_first: bool) -> Vec<(&SetSpec, bool)> {
        let midstream = self.midstream.as_ref().map(|(first, later)| if is_first { first } else { later });
        let written = self.written.iter().chain(&self.timed).chain(midstream).map(|set| (set, false));
        written.chain(self.counted.iter().chain(&self.kept).map(|set| (set, true))).collect()
    }

    /// The fields of a set whose elements the agent writes.
    pub(super) fn fields(&self, set: &str) -> Option<&[&'static str]> {
        self.written.iter().find(|spec| spec.name == set).map(|spec| spec.fields.as_slice())
    }
}

/// The base chains that policy hangs on. Their hook and priority have been the same in every version, and they are never made anew: a packet that
/// has begun its way through the hook's list before a new chain was registered would go through the old, emptied one alone. (Seen: one
/// forbidden packet in some 20,000 during upgrades that made them anew.)
const POLICY_HOOKS: [&str; 3] = ["forward", "input", "output"];

/// What [`Skeleton::transition`] comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Transition {
    /// For `nft`.
    pub(super) commands: Vec<Value>,
    /// The sets that stay with their elements.
    pub(super) kept: BTreeSet<String>,
}

/// Commands as one transaction for `nft -j -f -`.
/// `elements` are commands too, as text: there may be a million of them.
pub(super) fn document(commands: &[Value], elements: &[String]) -> String {
    let mut text = String::from("{\"nftables\":[");
    for (position, command) in commands.iter().map(Value::to_string).chain(elements.iter().cloned()).enumerate() {
        if position > 0 {
            text.push(',');
        }
        text.push_str(&command);
    }
    text.push_str("]}");
    text
}

fn add_set(set: &SetSpec) -> Result<Value, serde_json::Error> {
    let kind = if set.map.is_some() { "map" } else { "set" };
    Ok(json!({ "add": { kind: serde_json::to_value(set)? } }))
}

fn add_object(object: &nftables::schema::NfListObject<'_>) -> Result<Value, serde_json::Error> {
    Ok(json!({ "add": serde_json::to_value(object)? }))
}

/// Eight hex digits of FNV-1a (64 bits, folded) over the JSON text: it must be the same from every build of the agent, which no
/// hasher of the standard library promises. The text comes from the types and not from a `Value`, whose order depends on features.
fn fingerprint(content: &impl Serialize) -> Result<String, serde_json::Error> {
    let text = serde_json::to_vec(content)?;
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let folded = (hash >> 32) ^ (hash & 0xffff_ffff);
    Ok(format!("{folded:08x}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::dataplane::InterfacePattern;

    #[test]
    fn a_stamp_is_the_same_for_the_same_rules_and_only_for_them() {
        let config = DataplaneConfig { interface_patterns: vec![InterfacePattern::new("veth*").unwrap()], ..DataplaneConfig::default() };
        let stamp = |config: &DataplaneConfig| Skeleton::new(Layer::Inet, config).unwrap().stamp().clone();
        let ours = stamp(&config);
        assert_eq!(stamp(&config), ours);
        assert_eq!(Stamp::parse(&ours.counter()), Some(ours.clone()));
        for other in [
            DataplaneConfig { nflog_group: 6, ..config.clone() },
            DataplaneConfig { interface_patterns: vec![InterfacePattern::new("cali*").unwrap()], ..config.clone() },
            DataplaneConfig { denied_size: 1024, ..config.clone() },
            DataplaneConfig { cut_label: 3, ..config.clone() },
        ] {
            assert_ne!(stamp(&other).rules, ours.rules);
            assert_eq!(stamp(&other).form, ours.form, "the sets of the agent's elements do not depend on configuration");
        }
        assert_eq!(Stamp::parse("denied_in"), None);
    }
}
