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
//!
//! In a denied flood there are more, which drop what is known to be denied before anything else is done with it ([`super::skeleton`], `shield`):
//!
//! ```text
//! chain unknown_interface_in { jump shield_in ... }    # before all others
//! chain deny_in4_with_ports { ... jump shield_fill_in4 ... }
//! chain opened_forward {                               # and so at input and output
//!     type filter hook forward priority filter - 9; policy accept;
//!     jump opens
//! }
//! ```

mod part;

use super::error::{CommitError, ReadBackError, Refusal};
use super::moves;
use super::names::{COUNTER_UNKNOWN_IN, DIRECTIONS, FAMILIES, Layer, TABLE, shield};
use super::skeleton::{SHORTCUTS, ShieldPart, fill_place, judged_name, shield_chain};
use super::socket::{NetfilterSocket, RequestError};
use super::tables::DUMP_ATTEMPTS;
use super::wire::{Attributes, CREATE, Message, Received, Writer, chain, element, expression as e, rule, verdict};
use firebreak_policy::model::{Direction, Family};
use part::{Part, read_parts, write_parts};
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
    /// In which directions what is known to be denied is dropped first of all.
    pub(super) shields: BTreeSet<Direction>,
    /// Whether what is let through leaves its answer to be judged. It comes before the shields, and may stay while they are away.
    pub(super) opens: bool,
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
    Shield(ShieldPart),
}

/// Where a rule is that is not where it is to be.
const ELSEWHERE: usize = usize::MAX;

/// The base chains that are there for a shield: their hooks by number (`NF_INET_*`).
const OPENED: [(&str, u32); 3] = [("opened_input", 1), ("opened_forward", 2), ("opened_output", 3)];
/// Behind the chains that judge, which are at -10.
const OPENED_PRIORITY: i32 = -9;

impl Shortcuts {
    /// With as many bridges as have rules.
    pub(super) fn new(nothing_is_cut: bool, bridges: impl IntoIterator<Item = u32>) -> Self {
        let bridges: BTreeSet<u32> = bridges.into_iter().collect();
        let bridges = if bridges.len() > MOST_BRIDGES { BTreeSet::new() } else { bridges };
        Self { nothing_is_cut, bridges, ..Self::default() }
    }

    /// With what is shielded.
    pub(super) fn shielding(self, shields: BTreeSet<Direction>) -> Self {
        Self { opens: !shields.is_empty(), shields, ..self }
    }

    /// The same, but nobody is refused by what was denied a moment ago.
    pub(super) fn unshielded(self) -> Self {
        Self { shields: BTreeSet::new(), ..self }
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
        for direction in &self.shields {
            all.push(Placed { chain: COUNTER_UNKNOWN_IN, behind: 0, rule: Shortcut::Shield(ShieldPart::Ask(*direction)) });
            all.extend(FAMILIES.map(|family| {
                let (chain, behind) = fill_place(*direction, family);
                Placed { chain, behind, rule: Shortcut::Shield(ShieldPart::Fill(*direction, family)) }
            }));
        }
        if self.opens {
            all.extend(OPENED.map(|(chain, _)| Placed { chain, behind: 0, rule: Shortcut::Shield(ShieldPart::Opens) }));
        }
        all.sort();
        all
    }

    /// Which these are; `None` when they are not what [`Self::placed`] gives.
    pub(super) fn of(found: &[Placed]) -> Option<Self> {
        let bridges = found.iter().filter_map(|placed| match placed.rule {
            Shortcut::From(bridge) => Some(bridge),
            Shortcut::EstablishedTo(_) | Shortcut::Established | Shortcut::Judged(..) | Shortcut::Shield(_) => None,
        });
        let has = |rule: Shortcut| found.iter().any(|placed| placed.rule == rule);
        let nothing_is_cut = has(Shortcut::Established);
        let shields = DIRECTIONS.into_iter().filter(|direction| has(Shortcut::Shield(ShieldPart::Ask(*direction)))).collect();
        let opens = has(Shortcut::Shield(ShieldPart::Opens));
        let shortcuts = Self { shields, opens, ..Self::new(nothing_is_cut, bridges) };
        let is_whole = shortcuts.placed() == found && (opens || shortcuts.shields.is_empty());
        is_whole.then_some(shortcuts)
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
            Self::Shield(part) => vec![Part::Verdict(verdict::JUMP, Some(shield_chain(*part)))],
        }
    }

    /// The direction whose sets it is that the rule leads to be asked or filled.
    fn filled(&self) -> Option<Direction> {
        match self {
            Self::Shield(ShieldPart::Ask(direction) | ShieldPart::Fill(direction, _)) => Some(*direction),
            Self::Shield(ShieldPart::Opens) | Self::From(_) | Self::EstablishedTo(_) | Self::Established | Self::Judged(..) => None,
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
        let asks = DIRECTIONS.map(ShieldPart::Ask);
        let fills = DIRECTIONS.into_iter().flat_map(|direction| FAMILIES.map(|family| ShieldPart::Fill(direction, family)));
        let of_shield = asks.into_iter().chain(fills).chain([ShieldPart::Opens]).map(Self::Shield);
        of_bridge.chain(others).chain(of_shield).find(|rule| rule.parts() == parts)
    }
}

/// `NFPROTO_*`.
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Takes the shortcuts out of a dump of rules, in its order.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Of each chain, how many fixed rules there were.
    fixed: BTreeMap<&'static str, usize>,
    found: Vec<Placed>,
    /// The base chains of a shield that are there.
    opened: BTreeSet<&'static str>,
}

impl Reader {
    /// Whether the rule is a shortcut. What has the form of one counts as one wherever it stands; [`Self::found`] says where.
    pub(super) fn takes(&mut self, chain: &str, expressions: Attributes<'_>) -> bool {
        let Some(chain) = chains().find(|name| *name == chain) else { return false };
        let behind = self.fixed.entry(chain).or_default();
        let shortcut = Shortcut::read(chain, expressions);
        let is_shortcut = shortcut.is_some();
        *behind += usize::from(!is_shortcut);
        let is_late = |rule: &Shortcut| {
            let is_before = |placed: &Placed| placed.chain == chain && !matches!(placed.rule, Shortcut::Shield(_));
            matches!(rule, Shortcut::Shield(ShieldPart::Ask(_))) && self.found.iter().any(is_before)
        };
        let placed = shortcut.map(|rule| Placed { chain, behind: if is_late(&rule) { ELSEWHERE } else { *behind }, rule });
        self.found.extend(placed);
        is_shortcut
    }

    /// Whether the chain is one that is there for a shield.
    pub(super) fn takes_chain(&mut self, received: &Received<'_>) -> bool {
        let find = |kind| received.attributes().find(kind);
        let name = find(chain::NAME).and_then(|name| name.as_text());
        let Some((of, hook)) = OPENED.into_iter().find(|(chain, _)| Some(*chain) == name) else { return false };
        let of_hook = |kind| find(chain::HOOK)?.nested().find(kind)?.as_u32();
        let is_right = of_hook(chain::HOOK_NUMBER) == Some(hook)
            && of_hook(chain::HOOK_PRIORITY) == Some(u32::from_ne_bytes(OPENED_PRIORITY.to_ne_bytes()))
            && find(chain::POLICY).and_then(|policy| policy.as_u32()) == Some(chain::ACCEPT);
        if is_right {
            self.opened.insert(of);
        } else {
            self.found.push(Placed { chain: of, behind: ELSEWHERE, rule: OPENS });
        }
        true
    }

    /// The shortcuts, sorted.
    pub(super) fn found(mut self) -> Vec<Placed> {
        for chain in std::mem::take(&mut self.opened) {
            if !self.found.iter().any(|placed| placed.chain == chain) {
                self.found.push(Placed { chain, behind: ELSEWHERE, rule: OPENS });
            }
        }
        self.found.sort();
        self.found
    }
}

/// The chains that have some.
fn chains() -> impl Iterator<Item = &'static str> {
    let denying = DIRECTIONS.into_iter().flat_map(|direction| FAMILIES.map(|family| fill_place(direction, family).0));
    [COUNTER_UNKNOWN_IN].into_iter().chain(SHORTCUTS.map(|(chain, ..)| chain)).chain(denying).chain(OPENED.map(|(chain, _)| chain))
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
    let (opens, come): (Vec<&Placed>, Vec<&Placed>) = come.into_iter().partition(|placed| placed.rule == OPENS);
    let filled: BTreeSet<Direction> = come.iter().filter_map(|placed| placed.rule.filled()).collect();
    let mut places = Vec::new();
    for placed in come {
        let before = fixed.get(placed.chain).and_then(|handles| handles.get(placed.behind));
        let before = before.ok_or_else(|| CommitError::Unknown(format!("chain {} is not as it was made", placed.chain)))?;
        places.push((placed, *before));
    }
    if !opens.is_empty() {
        put_opens(socket, &opens)?;
    }
    if !filled.is_empty() {
        // None of them was let through before its answer was left to be judged, and none fills what is to be empty.
        moves::wait_for_packets_under_way();
    }
    let written = socket.transact_messages(|writer, sequence| {
        for (chain, handle) in &gone {
            delete(writer, sequence, chain, *handle);
        }
        for direction in &filled {
            for family in FAMILIES {
                flush(writer, sequence, &shield(*direction, family));
            }
        }
        for (placed, before) in &places {
            put(writer, sequence, placed, Some(*before));
        }
    });
    match written.map_err(CommitError::Socket)? {
        Ok(()) => Ok(true),
        Err(source) if opens.is_empty() => Err(refused(source)),
        Err(source) => Err(CommitError::Unknown(refused(source).to_string())),
    }
}

/// Takes away what drops known denied packets first of all, whatever else is there. Says whether there was something.
///
/// # Errors
/// It is as it was, unless the answer was lost ([`CommitError::Unknown`]).
pub(super) fn unshield(socket: &mut NetfilterSocket) -> Result<bool, CommitError> {
    let (_, found) = layout(socket).map_err(|error: ReadBackError| CommitError::Unknown(error.to_string()))?;
    let gone: Vec<&(Placed, u64)> = found.iter().filter(|(placed, _)| placed.rule.filled().is_some()).collect();
    if gone.is_empty() {
        return Ok(false);
    }
    let written = socket.transact_messages(|writer, sequence| {
        for (placed, handle) in &gone {
            delete(writer, sequence, placed.chain, *handle);
        }
    });
    written.map_err(CommitError::Socket)?.map_err(refused)?;
    Ok(true)
}

const OPENS: Shortcut = Shortcut::Shield(ShieldPart::Opens);

/// The base chains behind those that judge, each with its rule.
fn put_opens(socket: &mut NetfilterSocket, opens: &[&Placed]) -> Result<(), CommitError> {
    let written = socket.transact_messages(|writer, sequence| {
        for (placed, (_, hook)) in
            opens.iter().filter_map(|placed| Some((placed, OPENED.into_iter().find(|(chain, _)| *chain == placed.chain)?)))
        {
            *sequence = sequence.wrapping_add(1);
            let open = writer.begin(Message::NewChain, CREATE, *sequence, Layer::Inet);
            writer.text(chain::TABLE, TABLE);
            writer.text(chain::NAME, placed.chain);
            let nest = writer.nest(chain::HOOK);
            writer.number(chain::HOOK_NUMBER, hook);
            writer.number(chain::HOOK_PRIORITY, u32::from_ne_bytes(OPENED_PRIORITY.to_ne_bytes()));
            writer.end_nest(nest);
            writer.number(chain::POLICY, chain::ACCEPT);
            writer.text(chain::TYPE, "filter");
            writer.end(open);
            put(writer, sequence, placed, None);
        }
    });
    written.map_err(CommitError::Socket)?.map_err(refused)
}

/// A rule before the fixed one of that handle.
fn put(writer: &mut Writer, sequence: &mut u32, placed: &Placed, before: Option<u64>) {
    // What is asked first of all stands before other shortcuts too: without a position it is the chain's first.
    let is_first = matches!(placed.rule, Shortcut::Shield(ShieldPart::Ask(_)));
    message(writer, sequence, Message::NewRule, CREATE, placed.chain, |writer| {
        if let Some(before) = before.filter(|_| !is_first) {
            writer.attribute(rule::POSITION, &before.to_be_bytes());
        }
        let list = writer.nest(rule::EXPRESSIONS);
        write_parts(writer, placed.rule.parts());
        writer.end_nest(list);
    });
}

fn delete(writer: &mut Writer, sequence: &mut u32, of: &str, handle: u64) {
    if OPENED.iter().any(|(opened, _)| *opened == of) {
        // With its rules.
        *sequence = sequence.wrapping_add(1);
        let open = writer.begin(Message::DelChain, 0, *sequence, Layer::Inet);
        writer.text(chain::TABLE, TABLE);
        writer.text(chain::NAME, of);
        writer.end(open);
    } else {
        message(writer, sequence, Message::DelRule, 0, of, |writer| writer.attribute(rule::HANDLE, &handle.to_be_bytes()));
    }
}

/// Takes all elements out of a set.
fn flush(writer: &mut Writer, sequence: &mut u32, set: &str) {
    *sequence = sequence.wrapping_add(1);
    let open = writer.begin(Message::DelSetElement, 0, *sequence, Layer::Inet);
    writer.text(element::LIST_TABLE, TABLE);
    writer.text(element::LIST_SET, set);
    writer.end(open);
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
        write_parts(&mut writer, rule.parts());
        writer.into_bytes()
    }

    #[test]
    fn what_is_written_is_read_as_the_same_and_nothing_else_is() {
        let all = Shortcuts::new(true, [7, 9]).shielding(DIRECTIONS.into());
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
