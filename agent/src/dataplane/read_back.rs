//! What the kernel holds, read from the kernel: at start, and when an answer was lost. Never on the way of a commit.

use super::element::{Comments, Entry, RawElement, decode, decode_segment, read_element};
use super::error::{OpenError, ReadBackError};
use super::literal::{self, PortRule};
use super::names::{Layer, SetRef, TABLE, is_port_chain, parse_group_set, parse_segment_chain};
use super::plan::{KernelState, Ports};
use super::ports;
use super::render::is_interval_of_one_field;
use super::socket::{NetfilterSocket, RequestError};
use super::tables::{DUMP_ATTEMPTS, look_into};
use super::wire::{Message, Received, Writer, chain, element, rule};
use std::collections::BTreeMap;

/// Reads every set that the agent writes, of the tables that are there.
pub(super) fn read_back(socket: &mut NetfilterSocket, layers: &[Layer]) -> Result<KernelState, ReadBackError> {
    read_back_of(socket, layers, |_| true)
}

/// The same of some sets; of the others it is as if they were empty.
pub(super) fn read_back_of(
    socket: &mut NetfilterSocket,
    layers: &[Layer],
    which: impl Fn(SetRef) -> bool,
) -> Result<KernelState, ReadBackError> {
    let mut state = KernelState::empty(layers.iter().copied());
    let mut comments = Comments::default();
    for set in SetRef::all().into_iter().filter(|set| layers.contains(&set.layer()) && which(*set)) {
        read_set(socket, set, &mut comments, &mut state)?;
    }
    if layers.contains(&Layer::Netdev) {
        state.ports = Some(read_ports(socket)?);
    }
    if layers.contains(&Layer::Inet) {
        let present = look_into(socket, Layer::Inet).map_err(|error| {
            let set = format!("{} {TABLE}", Layer::Inet);
            // Such as that the table is gone.
            if let OpenError::Kernel { source, .. } = error {
                return ReadBackError::Refused { set, source };
            }
            ReadBackError::Foreign { set, reason: error.to_string() }
        })?;
        state.shared.chains = present.chains.iter().filter_map(|name| Some((parse_segment_chain(name)?, Vec::new()))).collect();
        for set in present.sets.keys().filter_map(|name| parse_group_set(name)) {
            state.shared.groups.entry(set).or_default();
            if which(SetRef::Group(set)) {
                read_set(socket, SetRef::Group(set), &mut comments, &mut state)?;
            }
        }
    }
    Ok(state)
}

/// The guards' base chains, by interface.
fn read_ports(socket: &mut NetfilterSocket) -> Result<Ports, ReadBackError> {
    let devices: BTreeMap<String, String> = dump_netdev(socket, Message::GetChain, chain::TABLE, |received| {
        let name = received.attributes().find(chain::NAME)?.as_text()?;
        Some((name.to_owned(), ports::device(received)?.to_owned()))
    })?;
    let mut rules: BTreeMap<String, Vec<PortRule>> = BTreeMap::new();
    let found: Vec<(String, PortRule)> = dump_netdev(socket, Message::GetRule, rule::TABLE, |received| {
        let name = received.attributes().find(rule::CHAIN)?.as_text().filter(|name| is_port_chain(name))?;
        Some((name.to_owned(), ports::read_rule(received.attributes().find(rule::EXPRESSIONS)?.nested())))
    })?;
    for (chain, found) in found {
        rules.entry(chain).or_default().push(found);
    }
    let literals = |chain: &String| literal::read_chain(rules.get(chain).map_or(&[], Vec::as_slice));
    Ok(devices.iter().map(|(chain, device)| (device.clone(), literals(chain))).collect())
}

fn dump_netdev<T, C: FromIterator<T>>(
    socket: &mut NetfilterSocket,
    message: Message,
    table: u16,
    read: impl Fn(&Received<'_>) -> Option<T>,
) -> Result<C, ReadBackError> {
    let what = || format!("chains of table {} {TABLE}", Layer::Netdev);
    for _ in 0..DUMP_ATTEMPTS {
        let mut found = Vec::new();
        let take = |received: &Received<'_>| -> Result<(), std::convert::Infallible> {
            let of = received.attributes().find(table);
            if received.family() == Some(Layer::Netdev.number()) && of.and_then(|name| name.as_text()) == Some(TABLE) {
                found.extend(read(received));
            }
            Ok(())
        };
        match socket.dump(message, Some(Layer::Netdev), |writer| writer.text(table, TABLE), take) {
            Ok(Ok(())) => return Ok(found.into_iter().collect()),
            Err(RequestError::Interrupted) => {}
            Err(RequestError::Refused(source)) => return Err(ReadBackError::Refused { set: what(), source }),
            Err(RequestError::Socket(error)) => return Err(ReadBackError::Socket(error)),
        }
    }
    Err(ReadBackError::Busy { set: what(), attempts: DUMP_ATTEMPTS })
}

/// The elements in one message of a dump of a set, with their comments.
pub(super) fn each_element(set: SetRef, received: &Received<'_>, mut take: impl FnMut(Entry, &str)) -> Result<(), String> {
    let Some(list) = received.attributes().find(element::LIST_ELEMENTS) else { return Ok(()) };
    for item in list.nested() {
        let RawElement { first, last, comment, ends: _, chain } = read_element(item.nested()).ok_or("an element without a key")?;
        let entry = match set {
            SetRef::Segments(asked, direction, family) => decode_segment(asked, direction, family, first, chain),
            SetRef::Group(_) | SetRef::KnownInterfaces(_) | SetRef::Workloads(_) | SetRef::Policy(_) | SetRef::Bound(..) => {
                if is_interval_of_one_field(set) {
                    return Err("a bound of an interval tells nothing by itself".to_owned());
                }
                decode(set, first, last)
            }
        };
        take(entry.map_err(|misfit| format!("element {first:02x?}-{last:02x?}: {misfit}"))?, comment);
    }
    Ok(())
}

/// The keys of a message of elements of an interval set of one field, and whether each ends an interval.
fn each_bound(received: &Received<'_>, mut take: impl FnMut(&[u8], bool)) -> Result<(), String> {
    let Some(list) = received.attributes().find(element::LIST_ELEMENTS) else { return Ok(()) };
    for item in list.nested() {
        let RawElement { first, last: _, comment: _, ends, chain: _ } = read_element(item.nested()).ok_or("an element without a key")?;
        take(first, ends);
    }
    Ok(())
}

fn read_set(socket: &mut NetfilterSocket, set: SetRef, comments: &mut Comments, state: &mut KernelState) -> Result<(), ReadBackError> {
    let name = set.name();
    for _ in 0..DUMP_ATTEMPTS {
        let mut elements = Vec::new();
        let mut bounds: Vec<(Vec<u8>, bool)> = Vec::new();
        let take = |received: &Received<'_>| -> Result<(), String> {
            if is_interval_of_one_field(set) {
                return each_bound(received, |key, ends| bounds.push((key.to_owned(), ends)));
            }
            each_element(set, received, |entry, comment| elements.push((entry, comments.share(comment))))
        };
        let asked = |writer: &mut Writer| {
            writer.text(element::LIST_TABLE, TABLE);
            writer.text(element::LIST_SET, &name);
        };
        let dumped = socket.dump(Message::GetSetElement, Some(set.layer()), asked, take);
        match dumped {
            Ok(Ok(())) => {
                let intervals = intervals(set, bounds).map_err(|reason| ReadBackError::Foreign { set: set.to_string(), reason })?;
                for entry in intervals {
                    state.insert(set, entry, comments.share(""));
                }
                for (entry, comment) in elements {
                    state.insert(set, entry, comment);
                }
                return Ok(());
            }
            Ok(Err(reason)) => return Err(ReadBackError::Foreign { set: set.to_string(), reason }),
            Err(RequestError::Interrupted) => {}
            Err(RequestError::Refused(source)) => return Err(ReadBackError::Refused { set: set.to_string(), source }),
            Err(RequestError::Socket(error)) => return Err(ReadBackError::Socket(error)),
        }
    }
    Err(ReadBackError::Busy { set: set.to_string(), attempts: DUMP_ATTEMPTS })
}

/// The blocks between bounds: a beginning, and the end that comes next. An end without a beginning is how nft marks what lies before.
fn intervals(set: SetRef, mut bounds: Vec<(Vec<u8>, bool)>) -> Result<Vec<Entry>, String> {
    // Where one block ends the next may begin: its end comes first.
    bounds.sort_by(|(one, one_ends), (other, other_ends)| one.cmp(other).then(other_ends.cmp(one_ends)));
    let mut entries = Vec::new();
    let mut begun: Option<Vec<u8>> = None;
    for (key, ends) in bounds {
        match (begun.take(), ends) {
            (None, false) => begun = Some(key),
            (None, true) => {}
            (Some(first), true) => entries.push(block(set, &first, Some(&key))?),
            (Some(first), false) => return Err(format!("the interval at {first:02x?} has no end")),
        }
    }
    if let Some(first) = begun {
        entries.push(block(set, &first, None)?);
    }
    Ok(entries)
}

fn block(set: SetRef, first: &[u8], last: Option<&[u8]>) -> Result<Entry, String> {
    decode(set, first, last).map_err(|misfit| format!("interval {first:02x?}-{last:02x?}: {misfit}"))
}
