//! What the rules that come and go are made of, as nf_tables has it. Pure.

use crate::dataplane::render_shared::{compare, conntrack_state, immediate, meta, only_bits};
use crate::dataplane::wire::{Attributes, DATA_VALUE, DATA_VERDICT, LIST_ELEMENT, Writer, expression as e, verdict};

/// A part of a rule, as far as ours have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Meta(u32),
    State,
    Bits(u32),
    Is(Vec<u8>),
    IsNot(Vec<u8>),
    Verdict(i32, Option<String>),
}

/// The parts of a rule; `None` when it has one that ours have not.
pub(super) fn read_parts(expressions: Attributes<'_>) -> Option<Vec<Part>> {
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

/// As the expressions of a rule.
pub(super) fn write_parts(writer: &mut Writer, parts: Vec<Part>) {
    for part in parts {
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
