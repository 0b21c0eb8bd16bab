//! Rules in the base chains of `table inet` that say for less what the fixed rules behind them say too, and come and go at run time.
//!
//! ```text
//! chain unknown_interface_in {
//!     iif "br0" accept                                 # of each bridge of workloads, up to a few: it is in known_if
//!     iif @known_if accept
//!     ...
//! }
//! chain forward {
//!     oif "br0" ct state established accept            # (*) the same
//!     oif != @known_if jump unknown_out
//!     ct state established accept                      # (*)
//!     ct state established ct label & 127 != 127 accept
//!     ct state != new jump state_forward
//!     tcp flags & (fin | syn | rst | ack) != syn jump midstream_forward
//!     meta nfproto ipv4 goto judged_forward4           # (*) past what asks for revoked connections
//!     meta nfproto ipv6 goto judged_forward6           # (*)
//!     ...
//! }
//! ```
//! and so for `input` and `output`, without bridges. Those with a star are there only while nothing is cut: no conntrack entry carries the label and
//! nothing is revoked. What asks for either costs 0.6 to 1.6 % of a round trip, and cuts are rare. The order makes it safe: they go before the first
//! entry is labelled, and come when a look at all entries has found none that is, by the one thread that labels ([`crate::cuts`]). The
//! fixed rules are whole without them, so whoever is killed in between, flushes these chains or replaces the rules leaves what asks.
//! A bridge's rules come after it is known and go before it is not.

use super::error::{CommitError, ReadBackError, Refusal};
use super::names::{COUNTER_UNKNOWN_IN, FAMILIES, Layer, TABLE};
use super::render_shared::{compare, conntrack_state, immediate, meta, only_bits};
use super::skeleton::{SHORTCUTS, judged_name};
use super::socket::{NetfilterSocket, RequestError};
use super::tables::DUMP_ATTEMPTS;
use super::wire::{Attributes, CREATE, DATA_VALUE, DATA_VERDICT, LIST_ELEMENT, Message, Received, Writer, expression as e, rule, verdict};
use firebreak_policy::model::Family;
use std::collections::{BTreeMap, BTreeSet};

/// Bridges that have rules of their own. With more of them the lookup is as cheap.
const MOST_BRIDGES: usize = 3;

/// Which shortcuts there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shortcuts {
    /// No entry carries the label and nothing is revoked, and nobody asks.
    pub(super) nothing_is_cut: bool,
    /// By ifindex.
    pub(super) bridges: BTreeSet<u32>,
}

/// A rule, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Placed {
    chain: &'static str,
    /// How many fixed rules come before it.
    behind: usize,
    rule: Shortcut,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shortcut {
    From(u32),
    EstablishedTo(u32),
    Established,
    Judged(&'static str, Family),
}

/// A part of a rule, as far as ours have it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Meta(u32),
    State,
    Bits(u32),
    Is(Vec<u8>),
    IsNot(Vec<u8>),
    Verdict(i32, Option<String>),
}

impl Shortcuts {
    /// With as many bridges as have rules.
    pub(super) fn new(nothing_is_cut: bool, bridges: impl IntoIterator<Item = u32>) -> Self {
        let bridges: BTreeSet<u32> = bridges.into_iter().collect();
        Self { nothing_is_cut, bridges: if bridges.len() > MOST_BRIDGES { BTreeSet::new() } else { bridges } }
    }

    /// The rules, sorted.
    pub(super) fn placed(&self) -> Vec<Placed> {
        let mut all: Vec<Placed> =
            self.bridges.iter().map(|bridge| Placed { chain: COUNTER_UNKNOWN_IN, behind: 0, rule: Shortcut::From(*bridge) }).collect();
        if self.nothing_is_cut {
            for (chain, established, judged) in SHORTCUTS {
                if chain == "forward" {
                    let to = |bridge: &u32| Placed { chain, behind: 0, rule: Shortcut::EstablishedTo(*bridge) };
                    all.extend(self.bridges.iter().map(to));
                }
                all.push(Placed { chain, behind: established, rule: Shortcut::Established });
                all.extend(FAMILIES.map(|family| Placed { chain, behind: judged, rule: Shortcut::Judged(chain, family) }));
            }
        }
        all.sort();
        all
    }

    /// Which these are; `None` when they are not what [`Self::placed`] gives.
    pub(super) fn of(found: &[Placed]) -> Option<Self> {
        let bridges = found.iter().filter_map(|placed| match placed.rule {
            Shortcut::From(bridge) => Some(bridge),
            Shortcut::EstablishedTo(_) | Shortcut::Established | Shortcut::Judged(..) => None,
        });
        let nothing_is_cut = found.iter().any(|placed| placed.rule == Shortcut::Established);
        Some(Self::new(nothing_is_cut, bridges)).filter(|shortcuts| shortcuts.placed() == found)
    }
}

impl Shortcut {
    fn parts(&self) -> Vec<Part> {
        let established = [Part::State, Part::Bits(e::STATE_ESTABLISHED), Part::IsNot(vec![0; 4])];
        let accept = Part::Verdict(verdict::ACCEPT, None);
        let is = |key, index: u32| [Part::Meta(key), Part::Is(index.to_ne_bytes().to_vec())];
        match self {
            Self::From(bridge) => [is(e::IIF, *bridge).as_slice(), &[accept]].concat(),
            Self::EstablishedTo(bridge) => [is(e::OIF, *bridge).as_slice(), &established, &[accept]].concat(),
            Self::Established => [established.as_slice(), &[accept]].concat(),
            Self::Judged(hook, family) => {
                let to = Part::Verdict(verdict::GOTO, Some(judged_name(hook, *family)));
                vec![Part::Meta(e::NFPROTO), Part::Is(vec![number(*family)]), to]
            }
        }
    }

    /// Which rule of a chain this is, if it is one of ours.
    fn read(chain: &'static str, expressions: Attributes<'_>) -> Option<Self> {
        let parts = read_parts(expressions)?;
        let index = parts.iter().find_map(|part| match part {
            Part::Is(value) => Some(u32::from_ne_bytes(value.as_slice().try_into().ok()?)),
            Part::Meta(_) | Part::State | Part::Bits(_) | Part::IsNot(_) | Part::Verdict(..) => None,
        });
        let of_bridge = index.map(|index| [Self::From(index), Self::EstablishedTo(index)]).into_iter().flatten();
        let others = [Self::Established].into_iter().chain(FAMILIES.map(|family| Self::Judged(chain, family)));
        of_bridge.chain(others).find(|rule| rule.parts() == parts)
    }
}

/// `NFPROTO_*`.
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn read_parts(expressions: Attributes<'_>) -> Option<Vec<Part>> {
    let is_ours = |register: u32| matches!(register, e::REGISTER | e::REGISTER_32);
    let mut parts = Vec::new();
    for item in expressions.filter(|item| item.kind == LIST_ELEMENT) {
        let (name, data) = (item.nested().find(e::NAME)?.as_text()?, item.nested().find(e::DATA)?);
        let number = |kind| data.nested().find(kind)?.as_u32();
        let bytes = |kind| Some(data.nested().find(kind)?.nested().find(DATA_VALUE)?.value);
        let is_part = match name {
            "meta" => is_ours(number(e::META_TO)?),
            "ct" => is_ours(number(e::CT_TO)?) && number(e::CT_KEY)? == e::CT_STATE && data.nested().count() == 2,
            "bitwise" => {
                is_ours(number(e::BITWISE_FROM)?)
                    && is_ours(number(e::BITWISE_TO)?)
                    && number(e::BITWISE_LENGTH)? == 4
                    && number(e::BITWISE_OPERATOR).unwrap_or(0) == 0
                    && bytes(e::BITWISE_XOR)? == [0; 4]
            }
            "cmp" => is_ours(number(e::CMP_FROM)?),
            "immediate" => number(e::IMMEDIATE_TO)? == e::VERDICT,
            _ => false,
        };
        if !is_part {
            return None;
        }
        parts.push(match name {
            "meta" => Part::Meta(number(e::META_KEY)?),
            "ct" => Part::State,
            "bitwise" => Part::Bits(u32::from_ne_bytes(bytes(e::BITWISE_MASK)?.try_into().ok()?)),
            "cmp" => match number(e::CMP_OP)? {
                e::EQUAL => Part::Is(bytes(e::CMP_DATA)?.to_vec()),
                e::NOT_EQUAL => Part::IsNot(bytes(e::CMP_DATA)?.to_vec()),
                _ => return None,
            },
            _ => {
                let found = data.nested().find(e::IMMEDIATE_DATA)?.nested().find(DATA_VERDICT)?;
                let code = i32::from_be_bytes(found.nested().find(verdict::CODE)?.value.try_into().ok()?);
                Part::Verdict(code, found.nested().find(verdict::CHAIN).and_then(|chain| chain.as_text()).map(str::to_owned))
            }
        });
    }
    Some(parts)
}

fn write_parts(writer: &mut Writer, rule: &Shortcut) {
    for part in rule.parts() {
        match part {
            Part::Meta(key) => meta(writer, key, e::REGISTER),
            Part::State => conntrack_state(writer),
            Part::Bits(bits) => only_bits(writer, bits),
            Part::Is(value) => compare(writer, e::EQUAL, &value),
            Part::IsNot(value) => compare(writer, e::NOT_EQUAL, &value),
            Part::Verdict(code, to) => immediate(writer, code, to.as_deref()),
        }
    }
}

/// Takes the shortcuts out of a dump of rules, in its order.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Of each chain, how many fixed rules there were.
    fixed: BTreeMap<&'static str, usize>,
    found: Vec<Placed>,
}

impl Reader {
    /// Whether the rule is a shortcut. What has the form of one counts as one wherever it stands; [`Self::found`] says where.
    pub(super) fn takes(&mut self, chain: &str, expressions: Attributes<'_>) -> bool {
        let Some(chain) = chains().find(|name| *name == chain) else { return false };
        let behind = self.fixed.entry(chain).or_default();
        let shortcut = Shortcut::read(chain, expressions);
        let is_shortcut = shortcut.is_some();
        *behind += usize::from(!is_shortcut);
        self.found.extend(shortcut.map(|rule| Placed { chain, behind: *behind, rule }));
        is_shortcut
    }

    /// The shortcuts, sorted.
    pub(super) fn found(mut self) -> Vec<Placed> {
        self.found.sort();
        self.found
    }
}

/// The base chains that have some.
fn chains() -> impl Iterator<Item = &'static str> {
    [COUNTER_UNKNOWN_IN].into_iter().chain(SHORTCUTS.map(|(chain, ..)| chain))
}

/// The rules of these chains as they are: the handles of the fixed ones by chain, and the shortcuts with theirs.
type Layout = (BTreeMap<&'static str, Vec<u64>>, Vec<(Placed, u64)>);

fn layout(socket: &mut NetfilterSocket) -> Result<Layout, ReadBackError> {
    let (mut fixed, mut found): Layout = Default::default();
    for chain in chains() {
        let fixed = fixed.entry(chain).or_default();
        for (handle, shortcut) in rules_of(socket, chain)? {
            match shortcut {
                Some(rule) => found.push((Placed { chain, behind: fixed.len(), rule }, handle)),
                None => fixed.push(handle),
            }
        }
    }
    Ok((fixed, found))
}

fn rules_of(socket: &mut NetfilterSocket, chain: &'static str) -> Result<Vec<(u64, Option<Shortcut>)>, ReadBackError> {
    let what = || format!("chain {} {TABLE} {chain}", Layer::Inet);
    for _ in 0..DUMP_ATTEMPTS {
        let mut rules = Vec::new();
        let take = |received: &Received<'_>| -> Result<(), std::convert::Infallible> {
            let find = |kind| received.attributes().find(kind);
            let is_of = |kind, name| find(kind).and_then(|text| text.as_text()) == Some(name);
            if received.family() == Some(Layer::Inet.number()) && is_of(rule::TABLE, TABLE) && is_of(rule::CHAIN, chain) {
                let handle = find(rule::HANDLE).and_then(|handle| handle.as_u64());
                let shortcut = find(rule::EXPRESSIONS).and_then(|expressions| Shortcut::read(chain, expressions.nested()));
                rules.extend(handle.map(|handle| (handle, shortcut)));
            }
            Ok(())
        };
        let asked = |writer: &mut Writer| {
            writer.text(rule::TABLE, TABLE);
            writer.text(rule::CHAIN, chain);
        };
        match socket.dump(Message::GetRule, Some(Layer::Inet), asked, take) {
            Ok(Ok(())) => return Ok(rules),
            Err(RequestError::Interrupted) => {}
            Err(RequestError::Refused(source)) => return Err(ReadBackError::Refused { set: what(), source }),
            Err(RequestError::Socket(error)) => return Err(ReadBackError::Socket(error)),
        }
    }
    Err(ReadBackError::Busy { set: what(), attempts: DUMP_ATTEMPTS })
}

/// Makes them so, in one transaction; writes nothing when they are. Says whether it wrote.
///
/// # Errors
/// They are as they were, unless the answer was lost ([`CommitError::Unknown`]).
pub(super) fn write(socket: &mut NetfilterSocket, wanted: &Shortcuts) -> Result<bool, CommitError> {
    let unread = |error: ReadBackError| CommitError::Unknown(error.to_string());
    let (fixed, found) = layout(socket).map_err(unread)?;
    let wanted = wanted.placed();
    let is_held = |placed: &Placed| found.iter().any(|(held, _)| held == placed);
    let (mut gone, mut seen) = (Vec::new(), BTreeSet::new());
    for (held, handle) in &found {
        // One that is there twice goes once.
        if !wanted.contains(held) || !seen.insert(held) {
            gone.push((held.chain, *handle));
        }
    }
    let come: Vec<&Placed> = wanted.iter().filter(|placed| !is_held(placed)).collect();
    if gone.is_empty() && come.is_empty() {
        return Ok(false);
    }
    let mut places = Vec::new();
    for placed in come {
        let before = fixed.get(placed.chain).and_then(|handles| handles.get(placed.behind));
        let before = before.ok_or_else(|| CommitError::Unknown(format!("chain {} is not as it was made", placed.chain)))?;
        places.push((placed, *before));
    }
    let written = socket.transact_messages(|writer, sequence| {
        for (chain, handle) in &gone {
            message(writer, sequence, Message::DelRule, 0, chain, |writer| writer.attribute(rule::HANDLE, &handle.to_be_bytes()));
        }
        for (placed, before) in &places {
            message(writer, sequence, Message::NewRule, CREATE, placed.chain, |writer| {
                writer.attribute(rule::POSITION, &before.to_be_bytes());
                let list = writer.nest(rule::EXPRESSIONS);
                write_parts(writer, &placed.rule);
                writer.end_nest(list);
            });
        }
    });
    match written.map_err(CommitError::Socket)? {
        Ok(()) => Ok(true),
        Err(source) => Err(refused(source)),
    }
}

fn refused(source: Refusal) -> CommitError {
    CommitError::Transaction { bytes: 0, source }
}

fn message(writer: &mut Writer, sequence: &mut u32, kind: Message, flags: u16, chain: &str, content: impl FnOnce(&mut Writer)) {
    *sequence = sequence.wrapping_add(1);
    let open = writer.begin(kind, flags, *sequence, Layer::Inet);
    writer.text(rule::TABLE, TABLE);
    writer.text(rule::CHAIN, chain);
    content(writer);
    writer.end(open);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn written(rule: &Shortcut) -> Vec<u8> {
        let mut writer = Writer::with_capacity(256);
        write_parts(&mut writer, rule);
        writer.into_bytes()
    }

    #[test]
    fn what_is_written_is_read_as_the_same_and_nothing_else_is() {
        let all = Shortcuts::new(true, [7, 9]);
        for placed in all.placed() {
            let bytes = written(&placed.rule);
            let read = |bytes: &[u8]| Shortcut::read(placed.chain, Attributes::new(bytes));
            assert_eq!(read(&bytes), Some(placed.rule.clone()));
            for position in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[position] ^= 0x10;
                // Padding, or the flag of an attribute that holds attributes, says nothing.
                let says_nothing = matches!(bytes[position], 0 | 0x80);
                assert!(read(&changed) != Some(placed.rule.clone()) || says_nothing, "{placed:?}: byte {position} of {bytes:02x?}");
            }
        }
    }

    #[test]
    fn only_a_whole_set_of_shortcuts_in_its_places_is_taken_for_one() {
        for (nothing_is_cut, bridges) in [(false, vec![]), (true, vec![]), (false, vec![7]), (true, vec![7, 9])] {
            let shortcuts = Shortcuts::new(nothing_is_cut, bridges);
            let placed = shortcuts.placed();
            assert_eq!(Shortcuts::of(&placed), Some(shortcuts.clone()));
            for at in 0..placed.len() {
                let mut fewer = placed.clone();
                let one = fewer.remove(at);
                // A bridge that has nothing else may go.
                let is_whole = Shortcuts::of(&fewer).is_some();
                assert!(!is_whole || matches!(one.rule, Shortcut::From(_)) && !nothing_is_cut, "without {one:?}");
                let mut moved = placed.clone();
                moved[at].behind += 1;
                moved.sort();
                assert_eq!(Shortcuts::of(&moved), None, "{one:?} a rule later");
            }
            let twice: Vec<Placed> = placed.iter().flat_map(|placed| [placed.clone(), placed.clone()]).collect();
            assert_eq!(Shortcuts::of(&twice).is_some(), placed.is_empty());
        }
        assert_eq!(Shortcuts::new(true, 0..9).bridges, BTreeSet::new(), "behind a few the lookup is as cheap");
    }
}
