//! From a plan to the bytes of one transaction, and from the kernel's complaint back to the element. Pure.

use super::element::{Entry, Key, encode, put_comment};
use super::error::{CommitError, Culprit};
use super::moves::local;
use super::names::{SetRef, TABLE, segment_chain};
use super::plan::{Plan, Port};
use super::ports;
use super::render_shared;
use super::shared::Object;
use super::wire::{self, Attributes, CREATE, DATA_VALUE, LIST_ELEMENT, Message, NFGEN_HEADER, NLMSG_HEADER, Writer, element};
use firebreak_policy::kernel_sets::{GroupForm, GroupSet, SetId, Shape};

/// The list of one message stays below this, so that its attribute's 16-bit length holds it and one element more.
const LIST_BYTES: usize = 60_000;

/// One transaction as it is sent, with an index of what is where.
#[derive(Debug)]
pub(super) struct Batch {
    /// For one `sendmsg`.
    pub(super) bytes: Vec<u8>,
    /// The sequence number of the first message; the rest count on.
    pub(super) first_sequence: u32,
    /// The messages between begin and end.
    pub(super) messages: Vec<Part>,
}

/// One message of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// Some elements of one set.
    Elements(Elements),
    /// A guard's base chain: where the message begins, which of the plan's list it is, and what is done.
    Port { start: usize, position: usize, act: PortAct },
}

/// What is done to a guard's base chain.
#[derive(Clone, Copy, Debug)]
pub(super) enum PortAct {
    Removes,
    Puts,
    Rewrites,
}

impl Part {
    fn start(self) -> usize {
        match self {
            Self::Elements(part) => part.start,
            Self::Port { start, .. } => start,
        }
    }
}

/// One message of a batch: some elements of one set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elements {
    /// Where it begins in the batch.
    start: usize,
    /// What of the plan it is from.
    source: Source,
    /// Whether it adds.
    puts: bool,
    /// The first of its elements, counted in the change's list.
    first: usize,
}

/// What of a plan a message is from.
#[derive(Clone, Copy, Debug)]
enum Source {
    Before(usize),
    Change(usize),
    After(usize),
}

impl Batch {
    /// The sequence number of the last message that is acknowledged.
    pub(super) fn last_sequence(&self) -> u32 {
        // A batch has at most one message per 60,000 bytes, far from 2^32.
        self.first_sequence.wrapping_add(u32::try_from(self.messages.len()).unwrap_or(u32::MAX))
    }

    /// The sequence number for the next batch.
    pub(super) fn next_sequence(&self) -> u32 {
        self.last_sequence().wrapping_add(2)
    }
}

/// What a message of a batch was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) set: String,
    pub(super) act: &'static str,
    pub(super) element: String,
    pub(super) culprit: Option<Culprit>,
}

/// Renders a plan. An element that does not fit its set is an error, and nothing is sent.
pub(super) fn render(plan: &Plan, first_sequence: u32) -> Result<Batch, CommitError> {
    let (put, removed) = plan.counts();
    let mut writer = Writer::with_capacity(256 + 160 * put + 96 * removed);
    let mut messages = Vec::new();
    let mut sequence = first_sequence;
    writer.batch_begin(sequence);
    objects(&mut writer, &mut messages, &mut sequence, &plan.before, Source::Before);
    // An interface is guarded before it is known; all of it takes effect at once, but for the hook, which is there a moment earlier.
    for (position, device) in plan.ports.remove.iter().enumerate() {
        messages.push(Part::Port { start: writer.len(), position, act: PortAct::Removes });
        ports::remove(&mut writer, &mut sequence, device);
    }
    for (position, port) in plan.ports.put.iter().enumerate() {
        for start in ports::put(&mut writer, &mut sequence, port) {
            messages.push(Part::Port { start, position, act: PortAct::Puts });
        }
    }
    for (position, port) in plan.ports.rewrite.iter().enumerate() {
        for start in ports::rewrite(&mut writer, &mut sequence, port) {
            messages.push(Part::Port { start, position, act: PortAct::Rewrites });
        }
    }
    for (index, change) in plan.changes.iter().enumerate() {
        let mut removals = change.remove.iter().map(|entry| (entry, None)).enumerate().peekable();
        while removals.peek().is_some() {
            sequence = sequence.wrapping_add(1);
            let first = removals.peek().map_or(0, |(at, _)| *at);
            messages.push(Part::Elements(Elements { start: writer.len(), source: Source::Change(index), puts: false, first }));
            render_message(&mut writer, Message::DelSetElement, 0, sequence, change.set, &mut removals)?;
        }
        let mut puts = change.put.iter().map(|(entry, comment)| (entry, Some(comment.as_ref()))).enumerate().peekable();
        while puts.peek().is_some() {
            sequence = sequence.wrapping_add(1);
            let first = puts.peek().map_or(0, |(at, _)| *at);
            messages.push(Part::Elements(Elements { start: writer.len(), source: Source::Change(index), puts: true, first }));
            render_message(&mut writer, Message::NewSetElement, CREATE, sequence, change.set, &mut puts)?;
        }
    }
    objects(&mut writer, &mut messages, &mut sequence, &plan.after, Source::After);
    if let Some(last) = messages.last() {
        writer.request_ack(last.start());
    }
    writer.batch_end(sequence.wrapping_add(1));
    Ok(Batch { bytes: writer.into_bytes(), first_sequence, messages })
}

fn objects(writer: &mut Writer, messages: &mut Vec<Part>, sequence: &mut u32, objects: &[Object], source: impl Fn(usize) -> Source) {
    for (index, object) in objects.iter().enumerate() {
        for message in render_shared::messages(object) {
            *sequence = sequence.wrapping_add(1);
            let puts = !matches!(object, Object::DeleteChain(_) | Object::DeleteSet(_));
            messages.push(Part::Elements(Elements { start: writer.len(), source: source(index), puts, first: 0 }));
            render_shared::render(writer, &message, *sequence);
        }
    }
}

/// One message with as many elements as fit; at least one.
fn render_message<'a>(
    writer: &mut Writer,
    message: Message,
    flags: u16,
    sequence: u32,
    set: SetRef,
    entries: &mut std::iter::Peekable<impl Iterator<Item = (usize, (&'a super::element::Entry, Option<&'a str>))>>,
) -> Result<(), CommitError> {
    let mut key = Key::default();
    let mut userdata = Vec::new();
    let one_field = is_interval_of_one_field(set);
    let open = writer.begin(message, flags, sequence, set.layer());
    writer.text(element::LIST_TABLE, TABLE);
    writer.text(element::LIST_SET, &set.name());
    let start = writer.len();
    let list = writer.nest(element::LIST_ELEMENTS);
    while writer.len() - start < LIST_BYTES {
        let Some((_, (entry, comment))) = entries.next() else { break };
        encode(set, entry, &mut key).map_err(|misfit| CommitError::Misfit {
            set: set.to_string(),
            element: entry.to_string(),
            reason: misfit.to_string(),
        })?;
        let item = writer.nest(LIST_ELEMENT);
        put_data(writer, element::KEY, &key.first);
        if !key.last.is_empty() && !one_field {
            put_data(writer, element::KEY_END, &key.last);
        }
        if let (Entry::Segment(_, chain), Some(_)) = (entry, comment) {
            let data = writer.nest(element::DATA);
            render_shared::put_verdict(writer, wire::verdict::JUMP, Some(&segment_chain(chain)));
            writer.end_nest(data);
        }
        if let Some(comment) = comment
            && !comment.is_empty()
        {
            put_comment(&mut userdata, comment);
            writer.attribute(element::USERDATA, &userdata);
        }
        writer.end_nest(item);
        if one_field && !key.last.is_empty() {
            let item = writer.nest(LIST_ELEMENT);
            put_data(writer, element::KEY, &key.last);
            writer.number(element::FLAGS, element::INTERVAL_END);
            writer.end_nest(item);
        }
    }
    writer.end_nest(list);
    writer.end(open);
    Ok(())
}

/// Whether an interval of this set is two elements, one of them marked as the end.
pub(super) fn is_interval_of_one_field(set: SetRef) -> bool {
    matches!(set, SetRef::Group(GroupSet { form: GroupForm::Blocks, .. }))
}

fn put_data(writer: &mut Writer, kind: u16, value: &[u8]) {
    let data = writer.nest(kind);
    writer.attribute(DATA_VALUE, value);
    writer.end_nest(data);
}

/// Which element a complaint is about: `sequence` tells the message, `offset` (from the message's beginning, as
/// `NLMSGERR_ATTR_OFFS` has it) the element. Without an offset, and with several elements, the element is a count.
/// `None` when the complaint is about the transaction as such.
pub(super) fn locate(plan: &Plan, batch: &Batch, sequence: u32, offset: Option<u32>) -> Option<Place> {
    let position = usize::try_from(sequence.wrapping_sub(batch.first_sequence)).ok()?.checked_sub(1)?;
    let part = batch.messages.get(position)?;
    let end = batch.messages.get(position + 1).map_or(batch.bytes.len(), |next| next.start());
    let part = match *part {
        Part::Elements(part) => part,
        Part::Port { start: _, position, act } => return port_place(plan, position, act),
    };
    let change = match part.source {
        Source::Change(index) => plan.changes.get(index)?,
        Source::Before(index) => return plan.before.get(index).map(|object| render_shared::place(object, part.puts)),
        Source::After(index) => return plan.after.get(index).map(|object| render_shared::place(object, part.puts)),
    };
    let starts = element_offsets(batch.bytes.get(part.start..end)?);
    let chosen = match offset {
        Some(offset) => {
            let offset = usize::try_from(offset).ok()?;
            starts.iter().rposition(|start| *start <= offset)
        }
        None => (starts.len() == 1).then_some(0),
    };
    let entry = chosen.and_then(|index| {
        let index = part.first + if is_interval_of_one_field(change.set) { index / 2 } else { index };
        if part.puts { change.put.get(index).map(|(entry, _)| entry) } else { change.remove.get(index) }
    });
    Some(Place {
        set: change.set.to_string(),
        act: if part.puts { "adding" } else { "removing" },
        element: entry.map_or_else(|| format!("one of {} elements", starts.len()), ToString::to_string),
        culprit: culprit(change.set, entry),
    })
}

/// Whose an element is, where it is an object's of the controller.
fn culprit(set: SetRef, entry: Option<&Entry>) -> Option<Culprit> {
    if let SetRef::Group(set) = set {
        return Some(Culprit::Group(set));
    }
    match (set, entry?) {
        (SetRef::Policy(SetId { shape: Shape::Published, .. }), _) => None,
        (SetRef::Policy(_), Entry::Policy(element)) => Some(Culprit::Local(local(element))),
        (SetRef::Segments(..), Entry::Segment(local, _)) => Some(Culprit::Local(*local)),
        (SetRef::Group(_), _) => None,
        (
            SetRef::Policy(_) | SetRef::Segments(..) | SetRef::KnownInterfaces(_) | SetRef::Workloads(_) | SetRef::Bound(..),
            Entry::Policy(_) | Entry::Segment(..) | Entry::Group(_) | Entry::Interface(_) | Entry::Bound(_),
        ) => None,
    }
}

fn port_place(plan: &Plan, position: usize, act: PortAct) -> Option<Place> {
    let of = |ports: &'_ [Port]| ports.get(position).map(|port| port.device.clone());
    let (act, device) = match act {
        PortAct::Removes => ("removing", plan.ports.remove.get(position).cloned()),
        PortAct::Puts => ("adding", of(&plan.ports.put)),
        PortAct::Rewrites => ("rewriting", of(&plan.ports.rewrite)),
    };
    let device = device?;
    Some(Place {
        set: format!("netdev {TABLE} {}", super::names::port_chain(&device)),
        act,
        element: format!("the guard of {device}"),
        culprit: None,
    })
}

/// Where the elements of a message begin, from the message's beginning.
fn element_offsets(message: &[u8]) -> Vec<usize> {
    let mut at = NLMSG_HEADER + NFGEN_HEADER;
    let Some(body) = message.get(at..) else { return Vec::new() };
    for attribute in Attributes::new(body) {
        if attribute.kind == element::LIST_ELEMENTS {
            let mut starts = Vec::new();
            at += wire::ATTRIBUTE_HEADER;
            for item in attribute.nested() {
                starts.push(at);
                at += (wire::ATTRIBUTE_HEADER + item.value.len()).next_multiple_of(4);
            }
            return starts;
        }
        at += (wire::ATTRIBUTE_HEADER + attribute.value.len()).next_multiple_of(4);
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::super::element::{Entry, decode, read_element};
    use super::super::plan::{PortChange, SetChange};
    use super::super::wire::{BATCH_BEGIN, BATCH_END, Messages};
    use super::*;
    use firebreak_policy::kernel_sets::{Element, SetId, Shape};
    use firebreak_policy::model::{Direction, Family, Protocol};
    use std::net::{IpAddr, Ipv4Addr};

    const SET: SetRef = SetRef::Policy(SetId { direction: Direction::Ingress, family: Family::V4, shape: Shape::PeerPort });

    fn entry(number: u32) -> Entry {
        let peer = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number));
        Entry::Policy(Element::PeerPort(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), peer, Protocol::TCP, 443))
    }

    #[test]
    fn a_large_plan_becomes_messages_that_hold_all_of_it_in_order() {
        let plan = Plan {
            ports: PortChange::default(),
            changes: vec![SetChange {
                set: SET,
                remove: (0..2_000).map(entry).collect(),
                put: (5_000..10_000).map(|number| (entry(number), format!("number {number}").into())).collect(),
            }],
            ..Plan::default()
        };
        let batch = render(&plan, 100).unwrap();
        let messages: Vec<_> = Messages::new(&batch.bytes).collect();
        assert_eq!(messages.first().unwrap().kind, BATCH_BEGIN);
        assert_eq!(messages.last().unwrap().kind, BATCH_END);
        assert_eq!(messages.last().unwrap().sequence + 1, batch.next_sequence());
        assert!(messages.windows(2).all(|pair| pair[0].sequence + 1 == pair[1].sequence));
        let acked: Vec<u32> = messages.iter().filter(|m| m.flags & wire::ACK != 0).map(|m| m.sequence).collect();
        assert_eq!(acked, [batch.last_sequence()]);

        let mut seen = Vec::new();
        for message in &messages[1..messages.len() - 1] {
            let puts = message.kind == Message::NewSetElement.number();
            for item in message.attributes().find(element::LIST_ELEMENTS).unwrap().nested() {
                let raw = read_element(item.nested()).unwrap();
                seen.push((puts, decode(SET, raw.first, raw.last).unwrap(), raw.comment.to_owned()));
            }
        }
        let mut expected: Vec<_> = (0..2_000).map(|number| (false, entry(number), String::new())).collect();
        expected.extend((5_000..10_000).map(|number| (true, entry(number), format!("number {number}"))));
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_complaint_is_traced_to_its_element() {
        let plan = Plan {
            ports: PortChange::default(),
            changes: vec![SetChange {
                set: SET,
                remove: vec![entry(1)],
                put: (10..5_000).map(|number| (entry(number), "".into())).collect(),
            }],
            ..Plan::default()
        };
        let batch = render(&plan, 7).unwrap();
        assert!(batch.messages.len() > 2);
        for (position, part) in batch.messages.iter().enumerate() {
            let end = batch.messages.get(position + 1).map_or(batch.bytes.len(), |next| next.start());
            let Part::Elements(part) = part else { panic!("{part:?}") };
            for (index, start) in element_offsets(&batch.bytes[part.start..end]).into_iter().enumerate() {
                let sequence = 7 + 1 + u32::try_from(position).unwrap();
                let place = locate(&plan, &batch, sequence, Some(u32::try_from(start).unwrap())).unwrap();
                let expected = if part.puts { plan.changes[0].put[part.first + index].0.to_string() } else { entry(1).to_string() };
                assert_eq!(place.element, expected);
                assert_eq!(place.act, if part.puts { "adding" } else { "removing" });
                assert_eq!(place.set, "inet firebreak in4_peer_port");
            }
        }
        assert_eq!(locate(&plan, &batch, 7, None), None, "about the transaction itself");
        assert_eq!(locate(&plan, &batch, 8, None).unwrap().element, entry(1).to_string(), "the only element of its message");
        assert!(locate(&plan, &batch, 9, None).unwrap().element.starts_with("one of "));
    }
}
