//! Netlink framing for reading: messages in a datagram, attributes in a message, and requests for what is read. Borrowing and bounds-checked:
//! tens of thousands of elements are read each second, and `netlink-packet-netfilter` 0.4 copies each and does not read element expressions.

use super::error::FlowsError;
use std::io;

/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const SUBSYS_NFTABLES: u8 = 10;
/// `NFNL_SUBSYS_ULOG`.
pub(crate) const SUBSYS_ULOG: u8 = 4;
/// `NFPROTO_INET`.
pub(crate) const FAMILY_INET: u8 = 1;

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_DUMP` (`NLM_F_ROOT | NLM_F_MATCH`).
pub(crate) const DUMP: u16 = 0x300;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// Without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// One message of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// Content: subsystem, message type, and the attributes behind the netfilter header.
    Content { subsystem: u8, kind: u8, attributes: &'a [u8] },
    /// The kernel's answer to a request: 0 is success.
    Answer(i32),
    /// The end of a dump.
    Done,
    /// Nothing for us.
    Other,
}

/// The messages of one datagram. A malformed one ends the walk with an error.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, FlowsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = self.split();
        if message.is_err() {
            self.0 = &[];
        }
        Some(message)
    }
}

impl<'a> Messages<'a> {
    fn split(&mut self) -> Result<Message<'a>, FlowsError> {
        let malformed = |reason| FlowsError::Decode { what: "netlink message", reason };
        let header: &[u8; NLMSG_HEADER] = self.0.first_chunk().ok_or(malformed("shorter than its header"))?;
        let length = usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]])).unwrap_or(usize::MAX);
        let body = self.0.get(NLMSG_HEADER..length).ok_or(malformed("length is outside the datagram"))?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        Ok(match kind {
            NLMSG_ERROR => {
                let code: &[u8; 4] = body.first_chunk().ok_or(malformed("error without a code"))?;
                Message::Answer(i32::from_ne_bytes(*code))
            }
            // A dump that fails half-way ends with a negative code.
            NLMSG_DONE => match body.first_chunk::<4>().map(|code| i32::from_ne_bytes(*code)) {
                Some(code) if code < 0 => Message::Answer(code),
                Some(_) | None => Message::Done,
            },
            0..=NLMSG_OVERRUN => Message::Other,
            _ => {
                let attributes = body.get(NFGEN_HEADER..).ok_or(malformed("no netfilter header"))?;
                let [kind, subsystem] = kind.to_le_bytes();
                Message::Content { subsystem, kind, attributes }
            }
        })
    }
}

fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// The kernel's answer as an error.
pub(crate) fn answer(code: i32) -> Result<(), io::Error> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

/// The answers in a datagram: the sequence of the request, and the kernel's code; 0 is success.
pub(crate) fn answers(datagram: &[u8]) -> Vec<(u32, i32)> {
    let mut answers = Vec::new();
    let mut rest = datagram;
    while let Some(header) = rest.first_chunk::<NLMSG_HEADER>() {
        let length = usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]])).unwrap_or(usize::MAX);
        let Some(body) = rest.get(NLMSG_HEADER..length) else { break };
        if let (NLMSG_ERROR, Some(code)) = (u16::from_ne_bytes([header[4], header[5]]), body.first_chunk::<4>()) {
            answers.push((u32::from_ne_bytes([header[8], header[9], header[10], header[11]]), i32::from_ne_bytes(*code)));
        }
        rest = rest.get(align(length)..).unwrap_or_default();
    }
    answers
}

/// The attributes of a message or of a nested attribute: type and value. What is malformed ends the walk: the kernel never sends it, and a
/// decoder then misses what it needs and says so.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header: &[u8; ATTRIBUTE_HEADER] = self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]) & ATTRIBUTE_TYPE, value))
    }
}

impl<'a> Attributes<'a> {
    /// The first attribute of a type.
    pub(crate) fn find(mut self, wanted: u16) -> Option<&'a [u8]> {
        self.find_map(|(kind, value)| (kind == wanted).then_some(value))
    }
}

/// A big-endian number of exactly 4 bytes.
pub(crate) fn be_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A big-endian number of exactly 8 bytes.
pub(crate) fn be_u64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

/// A request to nf_tables about the inet family, with string and number attributes.
pub(crate) fn nftables_request(kind: u8, flags: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut request = Vec::with_capacity(128);
    request.extend([0; 4]);
    request.extend(u16::from_le_bytes([kind, SUBSYS_NFTABLES]).to_ne_bytes());
    request.extend((flags | REQUEST).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([FAMILY_INET, 0, 0, 0]);
    for (kind, value) in attributes {
        // Values are names of at most 128 bytes and numbers.
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        request.extend(length.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(*value);
        request.resize(align(request.len()), 0);
    }
    let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
    request[..4].copy_from_slice(&length.to_ne_bytes());
    request
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_reads_back_as_it_was_made() {
        let request = nftables_request(13, DUMP, &[(1, b"firebreak\0"), (2, b"denied_in4\0")]);
        let messages: Vec<Message> = Messages(&request).map(Result::unwrap).collect();
        let [Message::Content { subsystem: SUBSYS_NFTABLES, kind: 13, attributes }] = messages.as_slice() else { panic!("{messages:?}") };
        let attributes: Vec<_> = Attributes(attributes).collect();
        assert_eq!(attributes, [(1, b"firebreak\0".as_slice()), (2, b"denied_in4\0")]);
    }

    #[test]
    fn malformed_datagrams_are_errors() {
        let whole = nftables_request(13, DUMP, &[]);
        for length in 1..whole.len() {
            assert!(Messages(&whole[..length]).any(|message| message.is_err()), "cut to {length} bytes");
        }
        let mut short = whole.clone();
        short[..4].copy_from_slice(&3u32.to_ne_bytes());
        assert!(Messages(&short).any(|message| message.is_err()), "a length under the header's");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_walk_panic_or_run_for_ever(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Messages(&bytes).count() <= bytes.len());
            prop_assert!(Attributes(&bytes).count() <= bytes.len());
        }
    }
}
