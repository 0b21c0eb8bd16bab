//! The nf_tables netlink format, byte by byte: message headers, attributes, and the numbers of `linux/netfilter/nf_tables.h`.
//!
//! Written by hand and not with the types of `netlink-packet-netfilter`: those allocate several times per element and have no
//! `NFTA_SET_ELEM_KEY_END` with a value inside, while this writes a million elements into one buffer. Pure: no I/O.

use super::names::Layer;

/// Length of `struct nlmsghdr`.
pub(super) const NLMSG_HEADER: usize = 16;
/// Length of `struct nfgenmsg`.
pub(super) const NFGEN_HEADER: usize = 4;
/// Length of `struct nlattr`.
pub(super) const ATTRIBUTE_HEADER: usize = 4;

/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(super) const ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`.
pub(super) const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_ACK_TLVS`.
pub(super) const ACK_HAS_ATTRIBUTES: u16 = 0x200;
/// `NLM_F_DUMP`.
pub(super) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x400;

/// `NLMSG_ERROR`.
pub(super) const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`.
pub(super) const NLMSG_DONE: u16 = 3;
/// `NFNL_MSG_BATCH_BEGIN`.
pub(super) const BATCH_BEGIN: u16 = 16;
/// `NFNL_MSG_BATCH_END`.
pub(super) const BATCH_END: u16 = 17;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;

/// The message types that we use, `NFT_MSG_*` with the subsystem in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Message {
    NewTable = SUBSYSTEM << 8,
    GetTable = (SUBSYSTEM << 8) | 1,
    DelTable = (SUBSYSTEM << 8) | 2,
    NewChain = (SUBSYSTEM << 8) | 3,
    GetChain = (SUBSYSTEM << 8) | 4,
    DelChain = (SUBSYSTEM << 8) | 5,
    NewRule = (SUBSYSTEM << 8) | 6,
    GetRule = (SUBSYSTEM << 8) | 7,
    DelRule = (SUBSYSTEM << 8) | 8,
    NewSet = (SUBSYSTEM << 8) | 9,
    GetSet = (SUBSYSTEM << 8) | 10,
    DelSet = (SUBSYSTEM << 8) | 11,
    NewSetElement = (SUBSYSTEM << 8) | 12,
    GetSetElement = (SUBSYSTEM << 8) | 13,
    DelSetElement = (SUBSYSTEM << 8) | 14,
    NewGeneration = (SUBSYSTEM << 8) | 15,
    GetGeneration = (SUBSYSTEM << 8) | 16,
    NewObject = (SUBSYSTEM << 8) | 18,
    GetObject = (SUBSYSTEM << 8) | 19,
}

impl Message {
    /// The number in `nlmsg_type`.
    pub(super) fn number(self) -> u16 {
        // The discriminants are the kernel's numbers, so this cannot lose anything.
        self as u16
    }
}

/// `NFTA_LIST_ELEM`.
pub(super) const LIST_ELEMENT: u16 = 1;
/// `NFTA_DATA_VALUE`.
pub(super) const DATA_VALUE: u16 = 1;
/// `NFTA_DATA_VERDICT`.
pub(super) const DATA_VERDICT: u16 = 2;
/// `NLM_F_APPEND`.
pub(super) const APPEND: u16 = 0x800;

/// `NFTA_VERDICT_*` and verdicts.
pub(super) mod verdict {
    pub(crate) const CODE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    /// `NFT_GOTO`.
    pub(crate) const GOTO: i32 = -4;
    /// `NFT_JUMP`.
    pub(crate) const JUMP: i32 = -3;
    /// `NF_ACCEPT`.
    pub(crate) const ACCEPT: i32 = 1;
}

/// `NFTA_RULE_*`.
pub(super) mod rule {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    pub(crate) const HANDLE: u16 = 3;
    pub(crate) const EXPRESSIONS: u16 = 4;
    /// The handle of a rule: the new one comes before it, or with [`APPEND`](super::APPEND) behind it.
    pub(crate) const POSITION: u16 = 6;
    pub(crate) const USERDATA: u16 = 7;
}

/// Expressions, and what they are made of: `NFTA_EXPR_*` and each one's own.
pub(super) mod expression {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    /// `NFTA_META_DREG`, `NFTA_META_KEY`.
    pub(crate) const META_TO: u16 = 1;
    pub(crate) const META_KEY: u16 = 2;
    /// `NFT_META_IIF`, `NFT_META_OIF`, `NFT_META_NFPROTO`, `NFT_META_L4PROTO`, `NFT_META_PKTTYPE`.
    pub(crate) const IIF: u32 = 4;
    pub(crate) const OIF: u32 = 5;
    pub(crate) const NFPROTO: u32 = 15;
    pub(crate) const L4PROTO: u32 = 16;
    pub(crate) const PKTTYPE: u32 = 19;
    /// `NFTA_PAYLOAD_*`.
    pub(crate) const PAYLOAD_TO: u16 = 1;
    pub(crate) const PAYLOAD_BASE: u16 = 2;
    pub(crate) const PAYLOAD_OFFSET: u16 = 3;
    pub(crate) const PAYLOAD_LENGTH: u16 = 4;
    /// `NFT_PAYLOAD_LL_HEADER`, `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
    pub(crate) const LINK: u32 = 0;
    pub(crate) const NETWORK: u32 = 1;
    pub(crate) const TRANSPORT: u32 = 2;
    /// `NFTA_CMP_*` and its operators.
    pub(crate) const CMP_FROM: u16 = 1;
    pub(crate) const CMP_OP: u16 = 2;
    pub(crate) const CMP_DATA: u16 = 3;
    pub(crate) const EQUAL: u32 = 0;
    pub(crate) const NOT_EQUAL: u32 = 1;
    pub(crate) const AT_MOST: u32 = 3;
    pub(crate) const AT_LEAST: u32 = 5;
    /// `NFTA_CT_DREG`, `NFTA_CT_KEY`, `NFT_CT_STATE`, and its bit for established connections (`NF_CT_STATE_BIT`).
    pub(crate) const CT_TO: u16 = 1;
    pub(crate) const CT_KEY: u16 = 2;
    pub(crate) const CT_STATE: u32 = 0;
    pub(crate) const STATE_ESTABLISHED: u32 = 1 << 1;
    /// `NFTA_BITWISE_*`; without an operator it is `(value & MASK) ^ XOR`, and so is operator 0.
    pub(crate) const BITWISE_FROM: u16 = 1;
    pub(crate) const BITWISE_TO: u16 = 2;
    pub(crate) const BITWISE_LENGTH: u16 = 3;
    pub(crate) const BITWISE_MASK: u16 = 4;
    pub(crate) const BITWISE_XOR: u16 = 5;
    pub(crate) const BITWISE_OPERATOR: u16 = 6;
    /// `NFTA_LOOKUP_*`.
    pub(crate) const LOOKUP_SET: u16 = 1;
    pub(crate) const LOOKUP_FROM: u16 = 2;
    /// `NFTA_IMMEDIATE_*`.
    pub(crate) const IMMEDIATE_TO: u16 = 1;
    pub(crate) const IMMEDIATE_DATA: u16 = 2;
    /// `NFT_REG_VERDICT`, `NFT_REG_1`, and the first of the registers of 4 bytes.
    pub(crate) const VERDICT: u32 = 0;
    pub(crate) const REGISTER: u32 = 1;
    pub(crate) const REGISTER_32: u32 = 8;
}

/// `NFTA_TABLE_*`.
pub(super) mod table {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const FLAGS: u16 = 2;
    /// `NFT_TABLE_F_OWNER`, kernel 5.12.
    pub(crate) const FLAG_OWNER: u32 = 2;
    /// `NFT_TABLE_F_PERSIST`, kernel 6.9.
    pub(crate) const FLAG_PERSIST: u32 = 4;
}

/// `NFTA_CHAIN_*` and `NFTA_HOOK_*`.
pub(super) mod chain {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const HOOK: u16 = 4;
    pub(crate) const POLICY: u16 = 5;
    pub(crate) const TYPE: u16 = 7;
    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
    pub(crate) const HOOK_DEVICE: u16 = 3;
    /// `NF_NETDEV_INGRESS`.
    pub(crate) const INGRESS: u32 = 0;
    /// `NF_DROP`, `NF_ACCEPT`.
    pub(crate) const DROP: u32 = 0;
    pub(crate) const ACCEPT: u32 = 1;
}

/// `NFTA_GEN_*`.
pub(super) mod generation {
    pub(crate) const PROCESS_ID: u16 = 2;
    pub(crate) const PROCESS_NAME: u16 = 3;
}

/// `NFTA_SET_*`.
pub(super) mod set {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const KEY_TYPE: u16 = 4;
    pub(crate) const KEY_LENGTH: u16 = 5;
    pub(crate) const DESCRIPTION: u16 = 9;
    pub(crate) const DESCRIPTION_SIZE: u16 = 1;
    pub(crate) const TIMEOUT: u16 = 11;
    pub(crate) const EXPRESSION: u16 = 17;
    pub(crate) const EXPRESSIONS: u16 = 18;
    pub(crate) const FLAG_ANONYMOUS: u32 = 0x1;
    pub(crate) const FLAG_INTERVAL: u32 = 0x4;
    pub(crate) const FLAG_MAP: u32 = 0x8;
    pub(crate) const FLAG_TIMEOUT: u32 = 0x10;
    pub(crate) const FLAG_EVAL: u32 = 0x20;
    pub(crate) const FLAG_OBJECT: u32 = 0x40;
    pub(crate) const ID: u16 = 10;
    pub(crate) const USERDATA: u16 = 13;
    /// nft's own numbers of types, of 6 bits each: a concatenation is one behind the other (libnftables, `datatype.h`).
    pub(crate) const TYPE_BITS: u32 = 6;
    pub(crate) const IPV4_ADDR: u32 = 7;
    pub(crate) const IPV6_ADDR: u32 = 8;
    pub(crate) const INET_PROTO: u32 = 12;
    pub(crate) const INET_SERVICE: u32 = 13;
    /// `NFTNL_UDATA_SET_KEYBYTEORDER` and `_COMMENT` of libnftnl.
    pub(crate) const USERDATA_BYTE_ORDER: u8 = 0;
    pub(crate) const USERDATA_COMMENT: u8 = 7;
    /// `BYTEORDER_BIG_ENDIAN` of libnftables; it stands there in host order.
    pub(crate) const BIG_ENDIAN: u32 = 2;
}

/// `NFTA_SET_ELEM_LIST_*` and `NFTA_SET_ELEM_*`.
pub(super) mod element {
    pub(crate) const LIST_TABLE: u16 = 1;
    pub(crate) const LIST_SET: u16 = 2;
    pub(crate) const LIST_ELEMENTS: u16 = 3;
    pub(crate) const KEY: u16 = 1;
    pub(crate) const TIMEOUT: u16 = 4;
    pub(crate) const EXPIRATION: u16 = 5;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    /// `NFT_SET_ELEM_INTERVAL_END`.
    pub(crate) const INTERVAL_END: u32 = 1;
    pub(crate) const USERDATA: u16 = 6;
    pub(crate) const KEY_END: u16 = 10;
    /// The one expression that an element carries; kernels that know several send them as a list.
    pub(crate) const EXPRESSION: u16 = 7;
    pub(crate) const EXPRESSIONS: u16 = 11;
    pub(crate) const COUNTER_BYTES: u16 = 1;
    pub(crate) const COUNTER_PACKETS: u16 = 2;
    /// In milliseconds.
    pub(crate) const EXPIRES: u16 = 5;
    /// `NFTNL_UDATA_SET_ELEM_COMMENT` of libnftnl, which is what `nft list` shows.
    pub(crate) const USERDATA_COMMENT: u8 = 0;
}

/// `NFTA_OBJ_*`.
pub(super) mod object {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const TYPE: u16 = 3;
    pub(crate) const DATA: u16 = 4;
    /// `NFT_OBJECT_COUNTER`.
    pub(crate) const COUNTER: u32 = 1;

    /// nft's word for a kind of named objects (`NFT_OBJECT_*`) that can be deleted by it.
    pub(crate) fn word(kind: u32) -> Option<&'static str> {
        Some(match kind {
            COUNTER => "counter",
            2 => "quota",
            3 => "ct helper",
            4 => "limit",
            7 => "ct timeout",
            8 => "secmark",
            9 => "ct expectation",
            10 => "synproxy",
            _ => return None,
        })
    }

    /// `NFTA_COUNTER_BYTES` and `NFTA_COUNTER_PACKETS`, in the data of a counter.
    pub(crate) const BYTES: u16 = 1;
    pub(crate) const PACKETS: u16 = 2;
}

/// `NLMSGERR_ATTR_MSG`.
pub(super) const ERROR_TEXT: u16 = 1;
/// `NLMSGERR_ATTR_OFFS`.
pub(super) const ERROR_OFFSET: u16 = 2;

/// `NLA_F_NESTED`; the two highest bits of a type are flags.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// Netlink messages, one behind the other, as they go into one `sendmsg`.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

/// Where an open message or nested attribute began.
#[derive(Clone, Copy, Debug)]
#[must_use = "a message or nest that is not closed has no length"]
pub(super) struct Open(usize);

impl Writer {
    /// With room for about so many bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Begins a message to nf_tables.
    pub(super) fn begin(&mut self, message: Message, flags: u16, sequence: u32, layer: Layer) -> Open {
        self.begin_raw(message.number(), REQUEST | flags, sequence, layer.number(), 0)
    }

    /// As [`Self::begin`]; without a layer it asks about all families (`NFPROTO_UNSPEC`).
    pub(super) fn begin_for(&mut self, message: Message, flags: u16, sequence: u32, layer: Option<Layer>) -> Open {
        self.begin_raw(message.number(), REQUEST | flags, sequence, layer.map_or(0, Layer::number), 0)
    }

    /// Asks for an acknowledgement of the last message.
    pub(super) fn request_ack_of_last(&mut self) {
        let mut start = 0;
        let mut at = 0;
        for message in Messages::new(&self.bytes) {
            start = at;
            at += NLMSG_HEADER + message.body.len();
        }
        self.request_ack(start);
    }

    /// Begins a message of any type; `resource` is `nfgenmsg.res_id`.
    fn begin_raw(&mut self, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> Open {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        Open(start)
    }

    /// Ends a message: its length is known now. Attributes pad themselves, so it is aligned.
    pub(super) fn end(&mut self, open: Open) {
        // A message holds at most one list of 65,535 bytes and two names, so its length fits.
        let length = u32::try_from(self.bytes.len() - open.0).unwrap_or(u32::MAX);
        self.bytes[open.0..open.0 + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// The beginning of a transaction.
    pub(super) fn batch_begin(&mut self, sequence: u32) {
        let open = self.begin_raw(BATCH_BEGIN, REQUEST, sequence, 0, SUBSYSTEM);
        self.end(open);
    }

    /// The end of a transaction.
    pub(super) fn batch_end(&mut self, sequence: u32) {
        let open = self.begin_raw(BATCH_END, REQUEST, sequence, 0, SUBSYSTEM);
        self.end(open);
    }

    /// Asks for an acknowledgement of a message that was begun at `start`.
    pub(super) fn request_ack(&mut self, start: usize) {
        let flags = u16::from_ne_bytes([self.bytes[start + 6], self.bytes[start + 7]]) | ACK;
        self.bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// An attribute, padded to 4 bytes. The caller keeps `value` below 65,532 bytes.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// A name: text with a closing zero.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        let mut value = Vec::with_capacity(text.len() + 1);
        value.extend_from_slice(text.as_bytes());
        value.push(0);
        self.attribute(kind, &value);
    }

    /// A number, in network order as nf_tables has them all.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Begins an attribute that holds attributes.
    pub(super) fn nest(&mut self, kind: u16) -> Open {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        Open(start)
    }

    /// Ends it. The caller keeps what is inside below 65,532 bytes.
    pub(super) fn end_nest(&mut self, open: Open) {
        let length = u16::try_from(self.bytes.len() - open.0).unwrap_or(u16::MAX);
        self.bytes[open.0..open.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// One received message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    /// `nlmsg_type`.
    pub(super) kind: u16,
    /// `nlmsg_flags`.
    pub(super) flags: u16,
    /// `nlmsg_seq`.
    pub(super) sequence: u32,
    /// `nlmsg_pid`: in a notification, the socket that made the change.
    pub(super) port: u32,
    /// What follows `struct nlmsghdr`.
    pub(super) body: &'a [u8],
}

impl<'a> Received<'a> {
    /// The attributes behind `struct nfgenmsg`.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes { rest: self.body.get(NFGEN_HEADER..).unwrap_or_default() }
    }

    /// `nfgenmsg.nfgen_family`.
    pub(super) fn family(&self) -> Option<u8> {
        self.body.first().copied()
    }
}

/// The messages of one datagram. Ends at the first that is cut off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Of these bytes.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Received<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.rest.get(..NLMSG_HEADER)?;
        let length = usize::try_from(read_u32(header)?).ok()?;
        let body = self.rest.get(NLMSG_HEADER..length)?;
        let received = Received {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: read_u32(&header[8..])?,
            port: read_u32(&header[12..])?,
            body,
        };
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    }
}

/// One received attribute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attribute<'a> {
    /// Its type, without the flag bits.
    pub(super) kind: u16,
    /// Its value.
    pub(super) value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// What it holds, when it is nested.
    pub(super) fn nested(&self) -> Attributes<'a> {
        Attributes { rest: self.value }
    }

    /// Text up to its closing zero; `None` if that is no UTF-8.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        std::str::from_utf8(&self.value[..end]).ok()
    }

    /// A 64-bit number in network order.
    pub(super) fn as_u64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_be_bytes)
    }

    /// A 32-bit number in network order.
    pub(super) fn as_u32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.get(..4)?.try_into().ok()?))
    }
}

/// The attributes in some bytes. Ends at the first that is cut off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Of these bytes.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The first of a kind.
    pub(super) fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        self.by_ref().find(|attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.rest.get(..ATTRIBUTE_HEADER)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = self.rest.get(ATTRIBUTE_HEADER..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind, value })
    }
}

/// A 32-bit number in host order, as netlink's own headers have them.
pub(super) fn read_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut writer = Writer::default();
        writer.batch_begin(1);
        let message = writer.begin(Message::NewSetElement, CREATE, 2, Layer::Inet);
        writer.text(element::LIST_TABLE, "firebreak");
        let list = writer.nest(element::LIST_ELEMENTS);
        writer.number(7, 0x0102_0304);
        writer.end_nest(list);
        writer.end(message);
        writer.batch_end(3);
        let bytes = writer.into_bytes();

        let messages: Vec<Received<'_>> = Messages::new(&bytes).collect();
        assert_eq!(messages.iter().map(|m| m.kind).collect::<Vec<_>>(), [BATCH_BEGIN, Message::NewSetElement.number(), BATCH_END]);
        assert_eq!(messages[1].sequence, 2);
        assert_eq!(messages[1].family(), Some(1));
        assert_eq!(messages[1].attributes().find(element::LIST_TABLE).unwrap().as_text(), Some("firebreak"));
        let list = messages[1].attributes().find(element::LIST_ELEMENTS).unwrap();
        assert_eq!(list.nested().find(7).unwrap().as_u32(), Some(0x0102_0304));
    }

    #[test]
    fn broken_bytes_end_the_reading_and_never_panic() {
        for bytes in [&[][..], &[1, 2, 3], &[0; 16], &[255; 40], &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0]] {
            for message in Messages::new(bytes).take(10) {
                assert!(message.attributes().count() <= 10);
            }
            assert!(Attributes::new(bytes).take(100).count() <= 100);
        }
    }
}
