//! Reads the table's sets of denied flows and its named counters. It changes nothing and resets nothing.

use super::error::FlowsError;
use super::key::{DecodeKey, FlowKey};
use super::netlink::{Attributes, DUMP, Message, Messages, SUBSYS_NFTABLES, answer, be_u32, be_u64, nftables_request};
use crate::dataplane::names::{
    COUNTER_AUDITED_IN, COUNTER_AUDITED_OUT, COUNTER_DENIED_IN, COUNTER_DENIED_OUT, COUNTER_OVERFLOW_IN, COUNTER_OVERFLOW_OUT, DeniedSet,
    TABLE,
};
use firebreak_policy::model::Direction;
use netlink_sys::constants::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::time::Duration;

const NFT_MSG_NEWTABLE: u8 = 0;
const NFT_MSG_GETTABLE: u8 = 1;
const NFT_MSG_NEWSET: u8 = 9;
const NFT_MSG_GETSET: u8 = 10;
const NFT_MSG_NEWSETELEM: u8 = 12;
const NFT_MSG_GETSETELEM: u8 = 13;
const NFT_MSG_NEWOBJ: u8 = 18;
const NFT_MSG_GETOBJ: u8 = 19;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_HANDLE: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_TIMEOUT: u16 = 11;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_SET_ELEM_EXPR: u16 = 7;
const NFTA_SET_ELEM_EXPRESSIONS: u16 = 11;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;

/// The kernel sends dumps in messages of up to 32 KiB if the receive buffer takes them (`NLMSG_GOODSIZE` else).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Elements handed on at a time: what a dump takes in memory.
const CHUNK: usize = 4_096;

/// One element of a denied set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementReading {
    /// The flow.
    pub key: FlowKey,
    /// Packets counted since the element was made.
    pub packets: u64,
    /// Bytes counted since the element was made.
    pub bytes: u64,
    /// How long ago it was made; `None` when the set has no timeout.
    pub age: Option<Duration>,
    /// When it ends; `None` when the set has no timeout.
    pub expires_in: Option<Duration>,
}

/// The named counters of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Every packet that was denied.
    pub denied: u64,
    /// Those of them whose flow found its set full.
    pub overflow: u64,
}

/// What a read begins with. The counters are read before the elements, so that nothing is in them that the elements cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableReading {
    /// The kernel's number of this table; a table that is made anew has another.
    pub handle: u64,
    /// `denied_in`, `denied_overflow_in`.
    pub ingress: Counters,
    /// `denied_out`, `denied_overflow_out`.
    pub egress: Counters,
    /// `audited_in` and `audited_out`: what was let through only because the node observes. No control sum is about it.
    pub audited: [u64; 2],
}

/// Reads over a socket of its own. Blocking.
pub struct Reader {
    socket: Socket,
    buffer: Vec<u8>,
    chunk: Vec<ElementReading>,
}

impl Reader {
    /// A reader in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, FlowsError> {
        let failed = |act| move |source| FlowsError::Socket { act, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        Ok(Self { socket, buffer: Vec::with_capacity(RECEIVE_BUFFER), chunk: Vec::with_capacity(CHUNK) })
    }

    /// The table's handle and counters. `None` when there is no such table (yet).
    ///
    /// # Errors
    /// When the kernel refuses or a counter is missing.
    pub fn table(&mut self) -> Result<Option<TableReading>, FlowsError> {
        let name = c_string(TABLE);
        let request = nftables_request(NFT_MSG_GETTABLE, 0, &[(NFTA_TABLE_NAME, &name)]);
        let mut handle = None;
        let found = self.exchange(&request, "the table", |kind, attributes| {
            if kind == NFT_MSG_NEWTABLE {
                handle = attributes.find(NFTA_TABLE_HANDLE).and_then(be_u64);
            }
            Ok(())
        });
        match found {
            Ok(()) => {}
            Err(FlowsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let handle = handle.ok_or(FlowsError::Decode { what: "table", reason: "no handle" })?;
        let mut counters = |denied, overflow| -> Result<Counters, FlowsError> {
            Ok(Counters { denied: self.counter(denied)?, overflow: self.counter(overflow)? })
        };
        let ingress = counters(COUNTER_DENIED_IN, COUNTER_OVERFLOW_IN)?;
        let egress = counters(COUNTER_DENIED_OUT, COUNTER_OVERFLOW_OUT)?;
        let audited = [self.counter_or_none(COUNTER_AUDITED_IN)?, self.counter_or_none(COUNTER_AUDITED_OUT)?];
        Ok(Some(TableReading { handle, ingress, egress, audited }))
    }

    /// Hands on the elements of one set in chunks. An element that comes or goes during the read may be missed or given twice.
    ///
    /// # Errors
    /// When the kernel refuses or sends what cannot be decoded; chunks that were handed on are right all the same.
    pub fn elements(&mut self, set: DeniedSet, mut each: impl FnMut(&[ElementReading])) -> Result<usize, FlowsError> {
        let (table, name) = (c_string(TABLE), set.name());
        let timeout = self.timeout(&name)?;
        let terminated = c_string(&name);
        let attributes = [(NFTA_SET_ELEM_LIST_TABLE, table.as_slice()), (NFTA_SET_ELEM_LIST_SET, &terminated)];
        let request = nftables_request(NFT_MSG_GETSETELEM, DUMP, &attributes);
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.clear();
        let mut count = 0;
        let result = self.exchange(&request, &name, |kind, attributes| {
            if kind != NFT_MSG_NEWSETELEM {
                return Ok(());
            }
            let elements = attributes.find(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
            for (_, element) in Attributes(elements).filter(|(kind, _)| *kind == NFTA_LIST_ELEM) {
                chunk.push(decode_element(set, timeout, Attributes(element))?);
                count += 1;
                if chunk.len() == CHUNK {
                    each(&chunk);
                    chunk.clear();
                }
            }
            Ok(())
        });
        if !chunk.is_empty() {
            each(&chunk);
        }
        self.chunk = chunk;
        result.map(|()| count)
    }

    fn timeout(&mut self, set: &str) -> Result<Option<Duration>, FlowsError> {
        let (table, name) = (c_string(TABLE), c_string(set));
        let request = nftables_request(NFT_MSG_GETSET, 0, &[(NFTA_SET_TABLE, &table), (NFTA_SET_NAME, &name)]);
        let mut timeout = None;
        self.exchange(&request, set, |kind, attributes| {
            if kind == NFT_MSG_NEWSET {
                timeout = attributes.find(NFTA_SET_TIMEOUT).and_then(be_u64).map(Duration::from_millis);
            }
            Ok(())
        })?;
        Ok(timeout)
    }

    /// Tables of an earlier version have no such counter.
    fn counter_or_none(&mut self, name: &str) -> Result<u64, FlowsError> {
        match self.counter(name) {
            Err(FlowsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(0),
            counted => counted,
        }
    }

    fn counter(&mut self, name: &str) -> Result<u64, FlowsError> {
        let (table, terminated, kind) = (c_string(TABLE), c_string(name), NFT_OBJECT_COUNTER.to_be_bytes());
        let attributes = [(NFTA_OBJ_TABLE, table.as_slice()), (NFTA_OBJ_NAME, &terminated), (NFTA_OBJ_TYPE, &kind)];
        let request = nftables_request(NFT_MSG_GETOBJ, 0, &attributes);
        let mut packets = None;
        self.exchange(&request, name, |kind, attributes| {
            if kind == NFT_MSG_NEWOBJ && attributes.find(NFTA_OBJ_TYPE).and_then(be_u32) == Some(NFT_OBJECT_COUNTER) {
                packets = attributes.find(NFTA_OBJ_DATA).and_then(|data| Attributes(data).find(NFTA_COUNTER_PACKETS)).and_then(be_u64);
            }
            Ok(())
        })?;
        packets.ok_or(FlowsError::Decode { what: "named counter", reason: "no packets" })
    }

    /// Sends a request and takes what comes until the dump's end, an error, or (for a single object) the object.
    fn exchange(
        &mut self,
        request: &[u8],
        what: &str,
        mut each: impl FnMut(u8, Attributes<'_>) -> Result<(), FlowsError>,
    ) -> Result<(), FlowsError> {
        let failed = |source| FlowsError::Read { what: what.to_owned(), table: TABLE, source };
        let is_dump = u16::from_ne_bytes([request[6], request[7]]) & DUMP == DUMP;
        self.drain_stale()?;
        self.socket.send(request, 0).map_err(failed)?;
        let mut refused = Ok(());
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0).map_err(failed)?;
            for message in Messages(&self.buffer) {
                match message? {
                    Message::Content { subsystem: SUBSYS_NFTABLES, kind, attributes } => {
                        // A decoding error must not leave the rest of the dump in the socket for the next request.
                        if refused.is_ok() {
                            refused = each(kind, Attributes(attributes));
                        }
                        if !is_dump {
                            return refused;
                        }
                    }
                    Message::Answer(code) => {
                        answer(code).map_err(failed)?;
                        return refused;
                    }
                    Message::Done => return refused,
                    Message::Content { .. } | Message::Other => {}
                }
            }
        }
    }

    /// Takes what a failed exchange left behind.
    fn drain_stale(&mut self) -> Result<(), FlowsError> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, nix::libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // A full receive buffer is told once and then cleared.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
                Err(source) => return Err(FlowsError::Socket { act: "empty", source }),
            }
        }
    }
}

fn c_string(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn decode_element(set: DeniedSet, set_timeout: Option<Duration>, element: Attributes<'_>) -> Result<ElementReading, FlowsError> {
    let malformed = |reason| FlowsError::Decode { what: "set element", reason };
    let (mut key, mut own_timeout, mut expires_in, mut counter) = (None, None, None, None);
    for (kind, value) in element {
        match kind {
            NFTA_SET_ELEM_KEY => key = Attributes(value).find(NFTA_DATA_VALUE).and_then(|key| set.decode_key(key)),
            NFTA_SET_ELEM_TIMEOUT => own_timeout = be_u64(value).map(Duration::from_millis),
            NFTA_SET_ELEM_EXPIRATION => expires_in = be_u64(value).map(Duration::from_millis),
            NFTA_SET_ELEM_EXPR => counter = counter.or(decode_counter(Attributes(value))),
            NFTA_SET_ELEM_EXPRESSIONS => {
                counter = counter.or(Attributes(value).find_map(|(_, expression)| decode_counter(Attributes(expression))));
            }
            _ => {}
        }
    }
    let (packets, bytes) = counter.ok_or(malformed("no counter"))?;
    let age = own_timeout.or(set_timeout).zip(expires_in).map(|(timeout, left)| timeout.saturating_sub(left));
    Ok(ElementReading { key: key.ok_or(malformed("key has not the set's layout"))?, packets, bytes, age, expires_in })
}

fn decode_counter(expression: Attributes<'_>) -> Option<(u64, u64)> {
    if expression.find(NFTA_EXPR_NAME)? != b"counter\0" {
        return None;
    }
    let counter = Attributes(expression.find(NFTA_EXPR_DATA)?);
    Some((counter.find(NFTA_COUNTER_PACKETS).and_then(be_u64)?, counter.find(NFTA_COUNTER_BYTES).and_then(be_u64)?))
}

impl TableReading {
    /// The counters of a direction.
    pub fn of(&self, direction: Direction) -> Counters {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        let mut bytes = [length.to_ne_bytes(), (kind | 0x8000).to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn counter(packets: u64, bytes: u64) -> Vec<u8> {
        let data = [nested(NFTA_COUNTER_BYTES, &bytes.to_be_bytes()), nested(NFTA_COUNTER_PACKETS, &packets.to_be_bytes())].concat();
        [nested(NFTA_EXPR_NAME, b"counter\0"), nested(NFTA_EXPR_DATA, &data)].concat()
    }

    #[test]
    fn an_element_is_read_with_one_expression_or_a_list_of_them() {
        let key = nested(NFTA_SET_ELEM_KEY, &nested(NFTA_DATA_VALUE, &[10, 0, 0, 1, 10, 0, 0, 2, 6, 0, 0, 0, 0, 80, 0, 0]));
        let left = nested(NFTA_SET_ELEM_EXPIRATION, &299_000u64.to_be_bytes());
        let other = nested(NFTA_LIST_ELEM, &nested(NFTA_EXPR_NAME, b"limit\0"));
        let list = [other, nested(NFTA_LIST_ELEM, &counter(3, 180))].concat();
        let set = DeniedSet::all()[0];
        for expression in [nested(NFTA_SET_ELEM_EXPR, &counter(3, 180)), nested(NFTA_SET_ELEM_EXPRESSIONS, &list)] {
            let bytes = [key.clone(), left.clone(), expression].concat();
            let read = decode_element(set, Some(Duration::from_secs(300)), Attributes(&bytes)).ok();
            let seconds = |seconds| Some(Duration::from_secs(seconds));
            let read = read.map(|read| (read.packets, read.bytes, read.age, read.expires_in));
            assert_eq!(read, Some((3, 180, seconds(1), seconds(299))));
        }
        assert!(decode_element(set, None, Attributes(&key)).is_err(), "without a counter");
        assert!(decode_element(set, None, Attributes(&nested(NFTA_SET_ELEM_EXPR, &counter(3, 180)))).is_err(), "without a key");
    }

    proptest! {
        #[test]
        fn no_element_makes_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u16..12) {
            for set in DeniedSet::all() {
                let _ = decode_element(set, None, Attributes(&bytes));
                let _ = decode_element(set, Some(Duration::MAX), Attributes(&nested(kind, &bytes)));
            }
        }
    }
}
