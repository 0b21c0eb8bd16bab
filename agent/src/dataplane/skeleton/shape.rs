//! The form of a set: as we declare it, and as the kernel has it. Where the two are the same, its elements can stay when the rules
//! are replaced.

use super::sets::{INTEGER_32, INTEGER_48, INTEGER_128, SetSpec};
use crate::dataplane::wire::{Attributes, set};

/// What must be the same for a set to go on as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::dataplane) struct SetShape {
    /// Ours is only that of segments.
    is_map: bool,
    interval: bool,
    timeout: bool,
    /// nft's number of the type, six bits for each field.
    key_type: u32,
    key_bytes: u32,
    /// Of elements that name none; 0 is none.
    timeout_milliseconds: u64,
    /// The most elements; 0 is no limit.
    size: u32,
    /// Whether elements carry counters.
    counts: bool,
    /// Whether rules may write it.
    is_dynamic: bool,
}

/// nft's number of a type, and its length in a key, which is padded to whole registers of 4 bytes (`enum datatypes`, datatype.h).
fn field(name: &str) -> Option<(u32, u32)> {
    Some(match name {
        "nf_proto" => (2, 1),
        "ipv4_addr" => (7, 4),
        "ipv6_addr" => (8, 16),
        INTEGER_32 => (4, 4),
        INTEGER_48 => (4, 6),
        INTEGER_128 => (4, 16),
        "ether_addr" => (9, 6),
        "ether_type" => (10, 2),
        "inet_proto" => (12, 1),
        "inet_service" => (13, 2),
        "icmp_type" => (14, 1),
        "mark" => (19, 4),
        "iface_index" => (20, 4),
        "icmpv6_type" => (29, 1),
        "icmp_code" => (32, 1),
        "icmpv6_code" => (33, 1),
        _ => return None,
    })
}

impl SetShape {
    /// As it is declared; `is_dynamic` when rules write it. `None` when it has a field whose number is not known here: such a set is
    /// made anew each time, which is slower and just as right.
    pub(super) fn of(spec: &SetSpec, is_dynamic: bool) -> Option<Self> {
        let fields = spec.fields.iter().map(|name| field(name)).collect::<Option<Vec<_>>>()?;
        let key_bytes = match fields.as_slice() {
            [(_, bytes)] => *bytes,
            several => several.iter().map(|(_, bytes)| bytes.next_multiple_of(4)).sum(),
        };
        Some(Self {
            is_map: spec.map.is_some(),
            interval: spec.flags.contains(&"interval"),
            timeout: spec.flags.contains(&"timeout"),
            key_type: fields.iter().fold(0, |all, (number, _)| (all << 6) | number),
            key_bytes,
            timeout_milliseconds: spec.timeout.unwrap_or(0).saturating_mul(1000),
            size: spec.size.unwrap_or(0),
            counts: !spec.stmt.is_empty(),
            is_dynamic,
        })
    }

    /// As the kernel tells of it (`NFT_MSG_NEWSET`).
    pub(in crate::dataplane) fn read(attributes: Attributes<'_>) -> Self {
        let find = |kind| attributes.find(kind);
        let number = |kind| find(kind).and_then(|attribute| attribute.as_u32()).unwrap_or(0);
        let flags = number(set::FLAGS);
        let size = find(set::DESCRIPTION).and_then(|description| description.nested().find(set::DESCRIPTION_SIZE)?.as_u32());
        Self {
            is_map: flags & (set::FLAG_MAP | set::FLAG_OBJECT) != 0,
            interval: flags & set::FLAG_INTERVAL != 0,
            timeout: flags & set::FLAG_TIMEOUT != 0,
            key_type: number(set::KEY_TYPE),
            key_bytes: number(set::KEY_LENGTH),
            timeout_milliseconds: find(set::TIMEOUT).and_then(|timeout| timeout.as_u64()).unwrap_or(0),
            size: size.unwrap_or(0),
            counts: find(set::EXPRESSION).is_some() || find(set::EXPRESSIONS).is_some(),
            is_dynamic: flags & set::FLAG_EVAL != 0,
        }
    }

    /// Whether a set of the other shape holds the same elements.
    pub(super) fn holds_the_same(&self, other: &Self) -> bool {
        Self { size: other.size, ..self.clone() } == *other
    }

    /// Whether it is a map.
    pub(super) fn is_map(&self) -> bool {
        self.is_map
    }
}
