//! The fixed rules: the same on every node, installed once, as text for `nft -j`. Policy is only in the elements of the sets.
//! Pure: builds the text, does not run anything.

mod accounting;
mod cut;
mod policy;
mod sets;
mod unknown;
mod words;

use super::config::DataplaneConfig;
use super::names::{Layer, TABLE};
use serde::Serialize;
use serde_json::{Value, json};
use sets::SetSpec;
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
    pub(super) sets: Vec<String>,
    pub(super) counters: Vec<String>,
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
    /// As it is at a first install, and without its element.
    midstream: Option<(SetSpec, SetSpec)>,
    rules: Rules,
    stamp: Stamp,
}

impl Skeleton {
    /// For a configuration.
    pub(super) fn new(layer: Layer, config: &DataplaneConfig) -> Result<Self, serde_json::Error> {
        let mut rules = Rules::new(layer);
        unknown::add(&mut rules, layer, config);
        let (mut counted, mut kept) = (Vec::new(), Vec::new());
        let mut midstream = None;
        match layer {
            Layer::Inet => {
                policy::add(&mut rules);
                cut::add(&mut rules, config.cut_label);
                accounting::add(&mut rules, config);
                counted = sets::counted(config);
                kept = sets::revoked_sets();
                midstream = Some((sets::midstream(config, true), sets::midstream(config, false)));
            }
            Layer::Bridge | Layer::Arp => {}
        }
        let written = sets::written(layer);
        let form = fingerprint(&written)?;
        let later = midstream.as_ref().map(|(_, later)| later);
        let rules_stamp = fingerprint(&(&counted, &kept, later, &rules.counters, &rules.chains, &rules.rules))?;
        Ok(Self { layer, written, counted, kept, midstream, rules, stamp: Stamp { form, rules: rules_stamp } })
    }

    /// What it is known by.
    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// The commands that fill an empty table.
    pub(super) fn install(&self) -> Result<Vec<Value>, serde_json::Error> {
        let first = self.midstream.as_ref().map(|(first, _)| first);
        let sets = self.written.iter().chain(&self.counted).chain(&self.kept).chain(first);
        let mut commands = sets.map(add_set).collect::<Result<Vec<Value>, _>>()?;
        for counter in self.rules.counters.iter().chain([&self.stamp.counter()]) {
            commands.push(add_object(&words::counter_object(self.layer, counter))?);
        }
        for object in self.rules.chains.iter().chain(&self.rules.rules) {
            commands.push(add_object(object)?);
        }
        Ok(commands)
    }

    /// The commands that put these rules in the place of others, in one transaction; the sets of the agent's elements stay as
    /// they are and must be of the same form, or are made if they are missing. What only counts is made anew.
    pub(super) fn replace(&self, present: &Present) -> Result<Vec<Value>, serde_json::Error> {
        let family = self.layer.as_str();
        let named = |kind: &str, name: &str| json!({ "delete": { kind: { "family": family, "table": TABLE, "name": name } } });
        let mut commands = vec![json!({ "flush": { "table": { "family": family, "name": TABLE } } })];
        let wanted: Vec<&str> = self.rules.chain_names().collect();
        commands.extend(present.chains.iter().filter(|chain| !wanted.contains(&chain.as_str())).map(|chain| named("chain", chain)));
        for set in self.written.iter().chain(&self.kept).filter(|set| !present.sets.contains(&set.name)) {
            commands.push(add_set(set)?);
        }
        for set in &self.counted {
            if present.sets.contains(&set.name) {
                commands.push(named("set", &set.name));
            }
            commands.push(add_set(set)?);
        }
        for (_, later) in self.midstream.iter().filter(|(_, set)| !present.sets.contains(&set.name)) {
            commands.push(add_set(later)?);
        }
        commands.extend(present.counters.iter().filter(|name| Stamp::parse(name).is_some()).map(|name| named("counter", name)));
        let stamp = self.stamp.counter();
        for counter in self.rules.counters.iter().filter(|name| !present.counters.contains(name)).chain([&stamp]) {
            commands.push(add_object(&words::counter_object(self.layer, counter))?);
        }
        for object in self.rules.chains.iter().chain(&self.rules.rules) {
            commands.push(add_object(object)?);
        }
        Ok(commands)
    }
}

/// Commands as one transaction for `nft -j -f -`.
pub(super) fn document(commands: Vec<Value>) -> String {
    json!({ "nftables": commands }).to_string()
}

fn add_set(set: &SetSpec) -> Result<Value, serde_json::Error> {
    Ok(json!({ "add": { "set": serde_json::to_value(set)? } }))
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
