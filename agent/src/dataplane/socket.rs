//! The nfnetlink socket: one transaction in one `sendmsg`, dumps, and single requests. The only file that reads or writes it.

use super::error::Refusal;
use super::names::Layer;
use super::wire::{
    ACK_HAS_ATTRIBUTES, Attributes, DUMP, DUMP_INTERRUPTED, ERROR_OFFSET, ERROR_TEXT, Message, Messages, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_HEADER, Received, Writer, read_u32,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// What the send buffer is raised to at start; larger batches raise it further.
const SEND_BUFFER: usize = 32 << 20;
/// The most that the kernel takes: `SO_SNDBUFFORCE` doubles it, in an `int`.
const SEND_BUFFER_MAX: usize = (i32::MAX as usize - 1) / 2;
/// Room for the kernel's complaints: some 100,000 of them.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The largest datagram of a dump: the kernel fills at most `MAX_RECVMSG_LEN` 32 KiB, and we read with room to spare.
const DATAGRAM: usize = 256 << 10;

/// A socket that speaks nf_tables.
#[derive(Debug)]
pub(super) struct NetfilterSocket {
    socket: Socket,
    port: u32,
    send_buffer: usize,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What became of a transaction.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is in force.
    Committed,
    /// It was refused, whole: each complaint with the message and the place in it.
    Refused(Vec<Complaint>),
    /// It cannot be sent in one piece.
    TooLarge {
        /// The largest that can.
        limit: usize,
    },
    /// It may be in force or not: the answer was lost.
    Unknown(String),
}

/// One complaint of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) sequence: u32,
    pub(super) offset: Option<u32>,
    pub(super) refusal: Refusal,
}

/// Why a request got no answer.
#[derive(Debug)]
pub(super) enum RequestError {
    Socket(io::Error),
    Refused(Refusal),
    /// The ruleset changed while it was dumped.
    Interrupted,
}

/// A dump that is being read.
#[derive(Debug)]
pub(super) struct Dump {
    sequence: u32,
    /// The ruleset changed since it began: what it gave is of no one moment.
    pub(super) interrupted: bool,
}

impl std::fmt::Display for RequestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(error) => write!(f, "{error}"),
            Self::Refused(refusal) => write!(f, "{refusal}"),
            Self::Interrupted => f.write_str("the ruleset changed meanwhile"),
        }
    }
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

impl NetfilterSocket {
    /// Opens one in the caller's network namespace, where it stays.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // Both are refinements: without them complaints are longer, or have no text.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        let mut this = Self { socket, port, send_buffer: 0, sequence: 1, buffer: Vec::with_capacity(DATAGRAM) };
        // Needs CAP_NET_ADMIN, as everything here does; preflight says so in words.
        let _ = setsockopt(&this.borrow(), sockopt::RcvBufForce, &RECEIVE_BUFFER);
        this.raise_send_buffer(SEND_BUFFER);
        Ok(this)
    }

    fn borrow(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Its address.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// The first sequence number of the next batch or request.
    pub(super) fn sequence(&self) -> u32 {
        self.sequence
    }

    fn raise_send_buffer(&mut self, bytes: usize) {
        if bytes > self.send_buffer && setsockopt(&self.borrow(), sockopt::SndBufForce, &bytes).is_ok() {
            self.send_buffer = bytes;
        }
    }

    /// Sends one transaction whole and reads the kernel's answer, which is there when `sendmsg` returns: nf_tables works in the
    /// sender's context. `last` is the sequence number of the message that asked for an acknowledgement.
    pub(super) fn transact(&mut self, bytes: &[u8], last: u32, next: u32) -> io::Result<Outcome> {
        self.sequence = next;
        // The kernel asks for the length and some of its own beside it.
        let wanted = bytes.len() + (64 << 10);
        if wanted > SEND_BUFFER_MAX {
            return Ok(Outcome::TooLarge { limit: SEND_BUFFER_MAX });
        }
        self.raise_send_buffer(wanted);
        self.drain();
        match self.socket.send(bytes, 0) {
            Ok(sent) if sent == bytes.len() => {}
            Ok(sent) => return Ok(Outcome::Unknown(format!("{sent} of {} bytes were sent", bytes.len()))),
            Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => {
                return Ok(Outcome::TooLarge { limit: self.send_buffer });
            }
            Err(error) => return Err(error),
        }
        self.answers(last)
    }

    /// Throws away answers to what nobody waits for any more.
    fn drain(&mut self) {
        while let Ok(true) = self.receive(true) {}
    }

    fn answers(&mut self, last: u32) -> io::Result<Outcome> {
        let mut complaints = Vec::new();
        let mut acknowledged = false;
        let mut lost = false;
        loop {
            match self.receive(true) {
                Ok(true) => {}
                Ok(false) => break,
                // Complaints did not fit into the receive buffer; what did is still there.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    lost = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            for message in Messages::new(&self.buffer) {
                match read_error(&message) {
                    Some(None) if message.sequence == last => acknowledged = true,
                    Some(Some(complaint)) => complaints.push(complaint),
                    Some(None) | None => {}
                }
            }
        }
        Ok(if !complaints.is_empty() {
            Outcome::Refused(complaints)
        } else if acknowledged {
            Outcome::Committed
        } else if lost {
            Outcome::Unknown("the receive buffer overflowed (ENOBUFS)".to_owned())
        } else {
            Outcome::Unknown("no acknowledgement".to_owned())
        })
    }

    /// Receives one datagram into the buffer; `false` when there is none and `now` is set.
    fn receive(&mut self, now: bool) -> io::Result<bool> {
        self.buffer.clear();
        self.buffer.reserve(DATAGRAM);
        let flags = if now { nix::libc::MSG_DONTWAIT } else { 0 };
        loop {
            match self.socket.recv(&mut self.buffer, flags) {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A transaction of a few messages, which `fill` writes with the sequence numbers that it counts up; for tables.
    pub(super) fn transact_messages(&mut self, fill: impl FnOnce(&mut Writer, &mut u32)) -> io::Result<Result<(), Refusal>> {
        self.few_messages(fill, true)
    }

    /// As [`Self::transact_messages`], but the kernel only says what it would do: a batch without its end is validated and
    /// undone (`NFNL_ABORT_VALIDATE`; what `nft -c` does too).
    pub(super) fn try_messages(&mut self, fill: impl FnOnce(&mut Writer, &mut u32)) -> io::Result<Result<(), Refusal>> {
        self.few_messages(fill, false)
    }

    fn few_messages(&mut self, fill: impl FnOnce(&mut Writer, &mut u32), commit: bool) -> io::Result<Result<(), Refusal>> {
        let mut writer = Writer::default();
        let mut sequence = self.sequence;
        writer.batch_begin(sequence);
        fill(&mut writer, &mut sequence);
        writer.request_ack_of_last();
        if commit {
            writer.batch_end(sequence.wrapping_add(1));
        }
        let bytes = writer.into_bytes();
        Ok(match self.transact(&bytes, sequence, sequence.wrapping_add(2))? {
            Outcome::Committed => Ok(()),
            Outcome::Refused(complaints) => {
                Err(complaints.into_iter().next().map_or(Refusal { errno: Errno::EIO, message: None }, |complaint| complaint.refusal))
            }
            Outcome::TooLarge { .. } => Err(Refusal { errno: Errno::EMSGSIZE, message: None }),
            Outcome::Unknown(text) => Err(Refusal { errno: Errno::EIO, message: Some(text) }),
        })
    }

    /// Asks for a dump and hands each message of it to `take`.
    pub(super) fn dump<E>(
        &mut self,
        message: Message,
        layer: Option<Layer>,
        attributes: impl FnOnce(&mut Writer),
        mut take: impl FnMut(&Received<'_>) -> Result<(), E>,
    ) -> Result<Result<(), E>, RequestError> {
        let mut dump = self.begin_dump(message, layer, attributes)?;
        let mut result = Ok(());
        let mut take = |message: &Received<'_>| {
            if result.is_ok() {
                result = take(message);
            }
        };
        while !self.go_on(&mut dump, &mut take)? {}
        if dump.interrupted { Err(RequestError::Interrupted) } else { Ok(result) }
    }

    /// Asks for a dump that [`Self::go_on`] reads. The kernel works it out as it is read, and a socket has one at a time.
    pub(super) fn begin_dump(
        &mut self,
        message: Message,
        layer: Option<Layer>,
        attributes: impl FnOnce(&mut Writer),
    ) -> Result<Dump, RequestError> {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let mut writer = Writer::default();
        let open = writer.begin_for(message, DUMP, sequence, layer);
        attributes(&mut writer);
        writer.end(open);
        self.drain();
        self.socket.send(&writer.into_bytes(), 0)?;
        Ok(Dump { sequence, interrupted: false })
    }

    /// Hands the next messages of a dump to `take`; says whether it is at its end.
    pub(super) fn go_on(&mut self, dump: &mut Dump, take: &mut dyn FnMut(&Received<'_>)) -> Result<bool, RequestError> {
        self.receive(false)?;
        for message in Messages::new(&self.buffer).filter(|message| message.sequence == dump.sequence) {
            dump.interrupted |= message.flags & DUMP_INTERRUPTED != 0;
            if message.kind == NLMSG_DONE {
                return Ok(true);
            }
            match read_error(&message) {
                Some(Some(complaint)) => return Err(RequestError::Refused(complaint.refusal)),
                Some(None) => {}
                None => take(&message),
            }
        }
        Ok(false)
    }

    /// Asks for one thing and hands the answer to `take`.
    pub(super) fn get<T>(
        &mut self,
        message: Message,
        layer: Option<Layer>,
        attributes: impl FnOnce(&mut Writer),
        take: impl FnOnce(&Received<'_>) -> T,
    ) -> Result<T, RequestError> {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let mut writer = Writer::default();
        let open = writer.begin_for(message, 0, sequence, layer);
        attributes(&mut writer);
        writer.end(open);
        self.drain();
        self.socket.send(&writer.into_bytes(), 0)?;
        loop {
            self.receive(false)?;
            let answer = Messages::new(&self.buffer).find(|message| message.sequence == sequence);
            let Some(answer) = answer else { continue };
            return match read_error(&answer) {
                Some(Some(complaint)) => Err(RequestError::Refused(complaint.refusal)),
                Some(None) => continue,
                None => Ok(take(&answer)),
            };
        }
    }
}

/// `None` when the message is no `NLMSG_ERROR`, `Some(None)` when it is an acknowledgement.
fn read_error(message: &Received<'_>) -> Option<Option<Complaint>> {
    if message.kind != NLMSG_ERROR {
        return None;
    }
    let code = read_u32(message.body).map_or(-(Errno::EIO as i32), |code| i32::from_ne_bytes(code.to_ne_bytes()));
    if code == 0 {
        return Some(None);
    }
    let mut complaint = Complaint {
        sequence: message.sequence,
        offset: None,
        refusal: Refusal { errno: Errno::from_raw(code.wrapping_neg()), message: None },
    };
    if message.flags & ACK_HAS_ATTRIBUTES != 0 {
        // Behind the number stands the header of our message, alone because of NETLINK_CAP_ACK.
        for attribute in Attributes::new(message.body.get(4 + NLMSG_HEADER..).unwrap_or_default()) {
            match attribute.kind {
                ERROR_TEXT => complaint.refusal.message = attribute.as_text().map(str::to_owned),
                // Netlink's own numbers are in host order.
                ERROR_OFFSET => complaint.offset = read_u32(attribute.value),
                _ => {}
            }
        }
    }
    Some(Some(complaint))
}
