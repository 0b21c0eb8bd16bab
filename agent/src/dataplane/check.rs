//! Compares what the kernel holds with what we put there.
//!
//! Rules are compared by a fingerprint of each chain, taken when the rules were brought about or found; elements with what was
//! committed. In the background one part at a time: the rules of all tables (a few hundred small messages), or a part of one set.

use super::error::ReadBackError;
use super::literal::{self, PortRule};
use super::names::{Layer, SetRef, TABLE, is_port_chain, parse_segment_chain, segment_chain};
use super::plan::{KernelState, SetChange, restore_of};
use super::ports;
use super::read_back::read_back_of;
use super::shortcut::{Placed, Reader};
use super::socket::{NetfilterSocket, RequestError};
use super::tables::DUMP_ATTEMPTS;
use super::wire::{Attributes, LIST_ELEMENT, Message, Received, chain, expression, rule};
use firebreak_policy::kernel_sets::Chain;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How much to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Everything.
    All,
    /// The next part.
    Step,
}

/// What each chain is, by table and name.
pub(super) type Prints = BTreeMap<(Layer, String), blake3::Hash>;

/// The rules as they are.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) prints: Prints,
    /// The guards' base chains that do not say what they are to say, in words.
    pub(super) wrong_ports: Vec<String>,
    /// Those that come and go in the base chains, which are in no fingerprint.
    pub(super) shortcuts: Vec<Placed>,
}

/// Takes the fingerprints of what is there, and looks into the guards' base chains.
pub(super) fn rules(socket: &mut NetfilterSocket, layers: &[Layer]) -> Result<Rules, ReadBackError> {
    let mut prints = Prints::new();
    // By chain, whether it is itself right, and its rules.
    let mut ports: BTreeMap<String, (bool, Vec<PortRule>)> = BTreeMap::new();
    let mut shortcuts = Reader::default();
    for layer in layers {
        let mut chains: HashMap<String, blake3::Hasher> = HashMap::new();
        dump(socket, *layer, Message::GetChain, chain::TABLE, |received| {
            let Some(name) = text(received, chain::NAME) else { return };
            if is_port(*layer, &name) {
                ports.insert(name, (ports::is_right_chain(received), Vec::new()));
            } else if *layer != Layer::Inet || !shortcuts.takes_chain(received) {
                let hasher = chains.entry(name).or_default();
                // Not its handle, its counters, or how often it is used.
                for kind in [chain::HOOK, chain::POLICY, chain::TYPE] {
                    hasher.update(received.attributes().find(kind).map_or(&[], |attribute| attribute.value));
                    hasher.update(&[0xff]);
                }
            }
        })?;
        dump(socket, *layer, Message::GetRule, rule::TABLE, |received| {
            let expressions = received.attributes().find(rule::EXPRESSIONS);
            let (Some(name), Some(expressions)) = (text(received, rule::CHAIN), expressions) else { return };
            if is_port(*layer, &name) {
                let (_, rules) = ports.entry(name).or_insert((false, Vec::new()));
                rules.push(ports::read_rule(expressions.nested()));
            } else if *layer != Layer::Inet || !shortcuts.takes(&name, expressions.nested()) {
                hash_rule(chains.entry(name).or_default(), expressions.nested());
            }
        })?;
        prints.extend(chains.into_iter().map(|(name, hasher)| ((*layer, name), hasher.finalize())));
    }
    let is_wrong = |(_, (is_right, rules)): &(String, (bool, Vec<PortRule>))| !is_right || literal::read_chain(rules).is_none();
    let wrong_ports =
        ports.into_iter().filter(is_wrong).map(|(chain, _)| format!("chain {} {TABLE} {chain}: changed", Layer::Netdev)).collect();
    Ok(Rules { prints, wrong_ports, shortcuts: shortcuts.found() })
}

/// The guards' base chains come, go and change with commits.
fn is_port(layer: Layer, chain: &str) -> bool {
    layer == Layer::Netdev && is_port_chain(chain)
}

/// What a rule says, without what it counts.
fn hash_rule(hasher: &mut blake3::Hasher, expressions: Attributes<'_>) {
    hasher.update(b"rule");
    for item in expressions.filter(|item| item.kind == LIST_ELEMENT) {
        let name = item.nested().find(expression::NAME).map_or(&[] as &[u8], |name| name.value);
        hasher.update(name);
        let counts = [b"counter\0".as_slice(), b"quota\0", b"last\0"];
        if !counts.contains(&name) {
            hasher.update(item.nested().find(expression::DATA).map_or(&[], |data| data.value));
        }
    }
}

fn text(received: &Received<'_>, kind: u16) -> Option<String> {
    received.attributes().find(kind)?.as_text().map(str::to_owned)
}

fn dump(
    socket: &mut NetfilterSocket,
    layer: Layer,
    message: Message,
    table_attribute: u16,
    mut take: impl FnMut(&Received<'_>),
) -> Result<(), ReadBackError> {
    for _ in 0..DUMP_ATTEMPTS {
        let mut copies = Vec::new();
        let keep = |received: &Received<'_>| -> Result<(), std::convert::Infallible> {
            let table = received.attributes().find(table_attribute);
            if received.family() == Some(layer.number()) && table.and_then(|table| table.as_text()) == Some(TABLE) {
                copies.push((received.kind, received.body.to_vec()));
            }
            Ok(())
        };
        match socket.dump(message, Some(layer), |writer| writer.text(table_attribute, TABLE), keep) {
            Ok(Ok(())) => {
                for (kind, body) in &copies {
                    take(&Received { kind: *kind, flags: 0, sequence: 0, port: 0, body });
                }
                return Ok(());
            }
            Err(RequestError::Interrupted) => {}
            // No table, no chains.
            Err(RequestError::Refused(refusal)) if refusal.errno == nix::errno::Errno::ENOENT => return Ok(()),
            Err(RequestError::Refused(source)) => return Err(ReadBackError::Refused { set: format!("rules of {layer}"), source }),
            Err(RequestError::Socket(error)) => return Err(ReadBackError::Socket(error)),
        }
    }
    Err(ReadBackError::Busy { set: format!("rules of {layer}"), attempts: DUMP_ATTEMPTS })
}

/// What differs between the rules, in words.
pub(super) fn differences(expected: &Prints, found: &Prints) -> Vec<String> {
    let mut words = Vec::new();
    let is_fixed = |key: &&(Layer, String)| segment(key.0, &key.1).is_none();
    let is_gone = |layer: Layer| !found.keys().any(|(other, _)| *other == layer);
    let layers: BTreeSet<Layer> = expected.keys().map(|(layer, _)| *layer).collect();
    words.extend(layers.into_iter().filter(|layer| is_gone(*layer)).map(|layer| format!("table {layer} {TABLE}: gone")));
    for ((layer, name), print) in expected.iter().filter(|(key, _)| !is_gone(key.0) && is_fixed(key)) {
        match found.get(&(*layer, name.clone())) {
            None => words.push(format!("chain {layer} {TABLE} {name}: gone")),
            Some(other) if other != print => words.push(format!("chain {layer} {TABLE} {name}: changed")),
            Some(_) => {}
        }
    }
    for (layer, name) in found.keys().filter(|key| is_fixed(key) && !expected.contains_key(*key)) {
        words.push(format!("chain {layer} {TABLE} {name}: added"));
    }
    words
}

/// The same of the chains of segments, which come and go with commits. Their names say their rules, so that one that comes is taken as it is
/// when it is first seen.
pub(super) fn segment_differences(prints: &mut Prints, found: &Prints, committed: &KernelState) -> Vec<String> {
    let mut words = Vec::new();
    prints.retain(|(layer, name), _| segment(*layer, name).is_none_or(|chain| committed.shared.chains.contains_key(&chain)));
    for chain in committed.shared.chains.keys() {
        let key = (Layer::Inet, segment_chain(chain));
        match (prints.get(&key), found.get(&key)) {
            (_, None) => words.push(format!("chain {} {TABLE} {}: gone", key.0, key.1)),
            (Some(print), Some(other)) if print != other => words.push(format!("chain {} {TABLE} {}: changed", key.0, key.1)),
            (Some(_), Some(_)) => {}
            (None, Some(first_seen)) => drop(prints.insert(key, *first_seen)),
        }
    }
    for (layer, name) in found.keys() {
        if segment(*layer, name).is_some_and(|chain| !committed.shared.chains.contains_key(&chain)) {
            words.push(format!("chain {layer} {TABLE} {name}: added"));
        }
    }
    words
}

fn segment(layer: Layer, chain: &str) -> Option<Chain> {
    if layer == Layer::Inet { parse_segment_chain(chain) } else { None }
}

/// Which of the guards' base chains are missing, let something else pass, or should not be there, in words.
pub(super) fn port_differences(
    socket: &mut NetfilterSocket,
    committed: &KernelState,
    layers: &[Layer],
) -> Result<Vec<String>, ReadBackError> {
    let held = match read_back_of(socket, layers, |_| false) {
        Ok(held) => held,
        // Its table is gone, which the rules tell.
        Err(ReadBackError::Refused { source, .. }) if source.errno == nix::errno::Errno::ENOENT => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let (held, committed) = (held.ports.unwrap_or_default(), committed.ports.clone().unwrap_or_default());
    let word = |port: &String, what| format!("guard of interface {port}: {what}");
    let mut words = Vec::new();
    for (port, literals) in &committed {
        match held.get(port) {
            None => words.push(word(port, "gone")),
            // Rules that are not ours are told as such.
            Some(Some(other)) if Some(other) != literals.as_ref() => words.push(word(port, "changed")),
            Some(_) => {}
        }
    }
    words.extend(held.keys().filter(|port| !committed.contains_key(*port)).map(|port| word(port, "added")));
    Ok(words)
}

/// What differs between the elements of some sets, in words.
pub(super) fn element_differences(
    socket: &mut NetfilterSocket,
    committed: &KernelState,
    layers: &[Layer],
    sets: &[SetRef],
    which: impl Fn(SetRef) -> bool,
) -> Result<Vec<String>, ReadBackError> {
    let mut words = Vec::new();
    for set in sets.iter().copied().filter(|set| layers.contains(&set.layer()) && which(*set)) {
        let held = match read_back_of(socket, layers, |other| other == set) {
            Ok(held) => held,
            Err(ReadBackError::Refused { source, .. }) if source.errno == nix::errno::Errno::ENOENT => {
                words.push(format!("set {set}: gone"));
                continue;
            }
            Err(ReadBackError::Foreign { set, reason }) => {
                words.push(format!("set {set}: {reason}"));
                continue;
            }
            Err(error) => return Err(error),
        };
        let SetChange { set, remove, put } = restore_of(set, &held, committed);
        if !(remove.is_empty() && put.is_empty()) {
            words.push(format!("set {set}: {} elements missing or changed, {} to be removed", put.len(), remove.len()));
        }
    }
    Ok(words)
}
