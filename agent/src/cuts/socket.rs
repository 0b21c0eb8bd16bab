//! The ctnetlink socket: the only file that reads or writes it. Blocking.

use super::apply::{Change, Changed, Conntrack, Size};
use super::entry::Entry;
use super::error::ConntrackError;
use super::wire::{self, Decoded, Filter, Label, SUBSYS_CTNETLINK};
use crate::flows::netlink::{self, Message, Messages};
use firebreak_policy::model::Family;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;

/// Room for a part of a dump and for the answers to a chunk of changes.
const RECEIVE_BUFFER: usize = 4 << 20;
const DATAGRAM: usize = 256 << 10;
/// `NFNLGRP_CONNTRACK_NEW`.
const GROUP_NEW: u32 = 1;
/// Datagrams of new entries that are taken before somebody else has a turn.
const DATAGRAMS_AT_ONCE: usize = 1024;
/// Changes in one `sendmsg`.
const CHUNK: usize = 64;

/// A socket that speaks ctnetlink.
#[derive(Debug)]
pub struct ConntrackSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    label: Label,
    /// In which families the kernel selects by address (`CTA_FILTER`, kernel 5.8), as [`Self::probe`] found.
    selects: Selects,
    /// IPv4 and IPv6 entries of the last dump of everything.
    seen: [usize; 2],
}

/// In which families the kernel selects entries by address itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selects {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Selects {
    fn by(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// What a dump went past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Entries that were looked at.
    pub entries: usize,
    /// Entries of other zones, which our rules do not see.
    pub other_zones: usize,
}

impl ConntrackSocket {
    /// Opens one in the caller's network namespace, where it stays.
    ///
    /// # Errors
    /// The kernel has no netfilter netlink, or has no descriptor to give.
    pub fn open(label: Label) -> Result<Self, ConntrackError> {
        let error = |act| move |source| ConntrackError::Socket { act, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(error("open"))?;
        socket.bind_auto().map_err(error("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(error("connect"))?;
        // Refinements: without them answers are longer, or a dump comes in smaller parts.
        let _ = socket.set_cap_ack(true);
        let _ = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self { socket, sequence: 1, buffer: Vec::with_capacity(DATAGRAM), label, selects: Selects::default(), seen: [0; 2] })
    }

    /// Finds out in which families the kernel selects entries by address, by an entry between addresses that are for documentation only
    /// (RFC 5737, RFC 3849), which it makes and deletes. Kernel 6.18 has the filter for IPv6 and gives all entries but those asked for.
    ///
    /// # Errors
    /// Conntrack cannot be listed at all.
    pub fn probe(&mut self) -> Result<Selects, ConntrackError> {
        self.dump_once(Filter::From([192, 0, 2, 1].into()), false, &mut |_| {})?;
        let v6 = |last| [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into();
        self.selects =
            Selects { v4: self.selects_between([192, 0, 2, 1].into(), [192, 0, 2, 2].into())?, v6: self.selects_between(v6(1), v6(2))? };
        Ok(self.selects)
    }

    /// Asks the kernel to tell of each new entry, which it does once the entry's first packet has passed every hook.
    ///
    /// # Errors
    /// The kernel does not.
    pub fn follow_new(&mut self) -> Result<(), ConntrackError> {
        self.socket.add_membership(GROUP_NEW).map_err(|source| ConntrackError::Socket { act: "follow new entries on", source })
    }

    /// Takes the new entries that the kernel has told of since the last call, of zone 0; at most some thousands. `false` when it could not tell of all: its buffer
    /// was full.
    ///
    /// # Errors
    /// The socket failed.
    pub fn take_new(&mut self, take: &mut dyn FnMut(Entry)) -> Result<bool, ConntrackError> {
        for _ in 0..DATAGRAMS_AT_ONCE {
            match self.receive(true) {
                Ok(true) => {}
                Ok(false) => return Ok(true),
                Err(ConntrackError::Socket { source, .. }) if source.raw_os_error() == Some(nix::libc::ENOBUFS) => return Ok(false),
                Err(error) => return Err(error),
            }
            for message in Messages(&self.buffer) {
                match message.map_err(|_| ConntrackError::Malformed("a message is cut off"))? {
                    Message::Content { subsystem: SUBSYS_CTNETLINK, kind: wire::CT_NEW, attributes } => {
                        match wire::decode(attributes, self.label) {
                            Decoded::Entry(entry) => take(entry),
                            // Our rules do not see them.
                            Decoded::OtherZone | Decoded::Unreadable => {}
                        }
                    }
                    Message::Answer(_) | Message::Done | Message::Content { .. } | Message::Other => {}
                }
            }
        }
        Ok(true)
    }

    /// What another socket's probe found.
    pub fn selecting(self, selects: Selects) -> Self {
        Self { selects, ..self }
    }

    fn selects_between(&mut self, source: IpAddr, destination: IpAddr) -> Result<bool, ConntrackError> {
        let entry = Entry::probe(source, destination);
        let first = self.sequence.wrapping_add(1).max(1);
        let message = wire::create_labelled(&entry, self.label, self.next_sequence());
        if self.exchange(vec![message], first)? != [None] {
            return Ok(false);
        }
        let mut finds = |filter: Filter| {
            let mut found = Vec::new();
            let took = self.dump_once(filter, true, &mut |entry| found.push(entry));
            match took {
                Ok(_) => Ok(found.pop()),
                Err(ConntrackError::Refused(_)) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let (from, to) = (finds(Filter::From(source))?, finds(Filter::To(destination))?);
        let selects = from.is_some() && to.is_some();
        let mut made = from.or(to);
        if made.is_none() {
            self.dump_once(Filter::From(source), false, &mut |entry| made = Some(entry))?;
        }
        if let Some(made) = made {
            self.change(&[Change::Delete(&made)])?;
        }
        Ok(selects)
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ConntrackError> {
        // Answers to what nobody waits for any more.
        while let Ok(true) = self.receive(true) {}
        self.socket.send(bytes, 0).map(drop).map_err(|source| ConntrackError::Socket { act: "write to", source })
    }

    /// Receives one datagram; `false` when there is none and `now` is set.
    fn receive(&mut self, now: bool) -> Result<bool, ConntrackError> {
        self.buffer.clear();
        self.buffer.reserve(DATAGRAM);
        let flags = if now { nix::libc::MSG_DONTWAIT } else { 0 };
        loop {
            match self.socket.recv(&mut self.buffer, flags) {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ConntrackError::Socket { act: "read from", source }),
            }
        }
    }

    fn dump_once(&mut self, filter: Filter, in_kernel: bool, take: &mut dyn FnMut(Entry)) -> Result<Passed, ConntrackError> {
        let sequence = self.next_sequence();
        self.send(&wire::dump(filter, in_kernel, sequence))?;
        let mut passed = Passed::default();
        loop {
            self.receive(false)?;
            for message in Messages(&self.buffer) {
                match message.map_err(|_| ConntrackError::Malformed("a message is cut off"))? {
                    Message::Content { subsystem: SUBSYS_CTNETLINK, kind: _, attributes } => match wire::decode(attributes, self.label) {
                        Decoded::Entry(entry) => {
                            passed.entries += 1;
                            if filter.takes(&entry) {
                                take(entry);
                            }
                        }
                        Decoded::OtherZone => passed.other_zones += 1,
                        Decoded::Unreadable => {}
                    },
                    Message::Answer(code) => netlink::answer(code).map_err(ConntrackError::Refused)?,
                    Message::Done => return Ok(passed),
                    Message::Content { .. } | Message::Other => {}
                }
            }
        }
    }

    /// Sends messages that each ask for an answer, and gives the answers in order.
    fn exchange(&mut self, messages: Vec<Vec<u8>>, first: u32) -> Result<Vec<Option<Errno>>, ConntrackError> {
        let count = messages.len();
        self.send(&messages.concat())?;
        let mut answers: Vec<Option<Option<Errno>>> = vec![None; count];
        while answers.iter().any(Option::is_none) {
            // ctnetlink works in the sender's context: the answers are there when `send` returns.
            if !self.receive(true)? {
                return Err(ConntrackError::Malformed("some changes were not answered"));
            }
            for (sequence, code) in netlink::answers(&self.buffer) {
                let place = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if let Some(answer) = answers.get_mut(place) {
                    *answer = Some((code != 0).then(|| Errno::from_raw(code.saturating_neg())));
                }
            }
        }
        Ok(answers.into_iter().map(Option::flatten).collect())
    }

    fn change_chunk(&mut self, changes: &[Change<'_>]) -> Result<Vec<Changed>, ConntrackError> {
        let mut messages = Vec::new();
        let mut spans = Vec::new();
        let first = self.sequence.wrapping_add(1).max(1);
        for change in changes {
            let start = messages.len();
            match change {
                Change::Label(entry) => messages.push(wire::set_label(&entry.original, self.label, true, self.next_sequence())),
                Change::Clear(entry) => messages.push(wire::set_label(&entry.original, self.label, false, self.next_sequence())),
                Change::Delete(entry) => messages.push(wire::delete(entry, self.next_sequence())),
                Change::Remake(entry) => {
                    messages.push(wire::delete(entry, self.next_sequence()));
                    messages.push(wire::create_labelled(entry, self.label, self.next_sequence()));
                }
            }
            spans.push(start..messages.len());
        }
        let answers = self.exchange(messages, first)?;
        // Of two messages the second counts: an entry that had ended before the first is made all the same, or was another by then.
        let last = |span: std::ops::Range<usize>| answers.get(span).and_then(<[_]>::last).copied().flatten();
        Ok(spans.into_iter().map(|span| Changed::from(last(span))).collect())
    }
}

impl Conntrack for ConntrackSocket {
    fn dump(&mut self, filter: Filter, take: &mut dyn FnMut(Entry)) -> Result<Passed, ConntrackError> {
        let in_kernel = filter.family().is_some_and(|family| self.selects.by(family));
        if filter != Filter::All {
            return self.dump_once(filter, in_kernel, take);
        }
        let mut seen = [0; 2];
        let passed = self.dump_once(filter, false, &mut |entry| {
            seen[usize::from(entry.source().is_ipv6())] += 1;
            take(entry);
        })?;
        self.seen = seen;
        Ok(passed)
    }

    fn selects(&self, family: Family) -> bool {
        self.selects.by(family)
    }

    fn size(&self) -> Size {
        let read = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?;
            text.trim().parse().ok()
        };
        // Unknown: everything is read, which is never wrong.
        let (entries, buckets) = (read("count").unwrap_or(0), read("buckets").unwrap_or(usize::MAX));
        let [v4, v6] = self.seen;
        // Until everything was read once nobody knows which family has how many.
        let share = |part: usize| entries.saturating_mul(part).checked_div(v4 + v6).unwrap_or(entries);
        Size { v4: share(v4), v6: share(v6), buckets }
    }

    fn find(&mut self, entry: &Entry) -> Result<Option<Entry>, ConntrackError> {
        let sequence = self.next_sequence();
        self.send(&wire::get(&entry.original, sequence))?;
        let mut found = None;
        while self.receive(true)? {
            for message in Messages(&self.buffer) {
                match message.map_err(|_| ConntrackError::Malformed("a message is cut off"))? {
                    Message::Content { subsystem: SUBSYS_CTNETLINK, kind: _, attributes } => {
                        if let Decoded::Entry(other) = wire::decode(attributes, self.label) {
                            found = (other.id == entry.id).then_some(other);
                        }
                    }
                    Message::Answer(_) | Message::Done | Message::Content { .. } | Message::Other => {}
                }
            }
        }
        Ok(found)
    }

    fn change(&mut self, changes: &[Change<'_>]) -> Result<Vec<Changed>, ConntrackError> {
        let mut changed = Vec::with_capacity(changes.len());
        for chunk in changes.chunks(CHUNK) {
            changed.extend(self.change_chunk(chunk)?);
        }
        Ok(changed)
    }
}

impl std::os::fd::AsFd for ConntrackSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
