//! Sets of groups and chains of segments as nf_tables messages. The rules are the ones that nft makes of the text in `shared_sets.rs`
//! of the policy crate, expression by expression, so that `nft list` shows that text. Pure.

use super::error::Culprit;
use super::names::Layer;
use super::names::{TABLE, beyond_answer, beyond_egress, group_set, icmp_number, segment_chain};
use super::render::Place;
use super::shared::Object;
use super::wire::{APPEND, CREATE, DATA_VALUE, DATA_VERDICT, LIST_ELEMENT, Message, Writer, chain, expression as e, rule, set, verdict};
use firebreak_policy::kernel_sets::{Chain, GroupForm, GroupSet, SharedPeers, SharedRule, SharedService};
use firebreak_policy::model::{Direction, Family};

/// One message about an object.
#[derive(Clone, Copy, Debug)]
pub(super) enum ObjectMessage<'a> {
    AddSet(&'a GroupSet, &'a str),
    AddChain(&'a Chain),
    AddRule(&'a Chain, &'a SharedRule),
    FlushChain(&'a Chain),
    DeleteChain(&'a Chain),
    DeleteSet(&'a GroupSet),
}

/// The messages that make an object come or go.
pub(super) fn messages(object: &Object) -> Vec<ObjectMessage<'_>> {
    match object {
        Object::AddSet(set, title) => vec![ObjectMessage::AddSet(set, title)],
        Object::AddChain(chain, rules) => with_rules(ObjectMessage::AddChain(chain), chain, rules),
        Object::RewriteChain(chain, rules) => with_rules(ObjectMessage::FlushChain(chain), chain, rules),
        Object::DeleteChain(chain) => vec![ObjectMessage::DeleteChain(chain)],
        Object::DeleteSet(set) => vec![ObjectMessage::DeleteSet(set)],
    }
}

fn with_rules<'a>(first: ObjectMessage<'a>, chain: &'a Chain, rules: &'a [SharedRule]) -> Vec<ObjectMessage<'a>> {
    let rules = rules.iter().map(|rule| ObjectMessage::AddRule(chain, rule));
    [first].into_iter().chain(rules).collect()
}

/// What a complaint about an object is about.
pub(super) fn place(object: &Object, puts: bool) -> Place {
    let (name, what, culprit) = match object {
        Object::AddSet(set, title) => (group_set(set), format!("the set of {title}"), Culprit::Group(*set)),
        Object::DeleteSet(set) => (group_set(set), "the set".to_owned(), Culprit::Group(*set)),
        Object::AddChain(chain, _) | Object::RewriteChain(chain, _) | Object::DeleteChain(chain) => {
            (segment_chain(chain), "the chain".to_owned(), Culprit::Chain(Chain { answers: false, ..*chain }))
        }
    };
    Place {
        set: format!("{} {TABLE} {name}", Layer::Inet),
        act: if puts { "adding" } else { "removing" },
        element: what,
        culprit: Some(culprit),
    }
}

/// Writes one message.
pub(super) fn render(writer: &mut Writer, message: &ObjectMessage<'_>, sequence: u32) {
    match message {
        ObjectMessage::AddSet(set, title) => add_set(writer, set, title, sequence),
        ObjectMessage::AddChain(name) => chain_message(writer, Message::NewChain, CREATE, name, sequence),
        ObjectMessage::DeleteChain(name) => chain_message(writer, Message::DelChain, 0, name, sequence),
        ObjectMessage::AddRule(name, content) => {
            add_rule(writer, name, &content.comment, sequence, |writer| conditions(writer, name, content))
        }
        ObjectMessage::FlushChain(name) => {
            let open = writer.begin(Message::DelRule, 0, sequence, Layer::Inet);
            writer.text(rule::TABLE, TABLE);
            writer.text(rule::CHAIN, &segment_chain(name));
            writer.end(open);
        }
        ObjectMessage::DeleteSet(name) => {
            let open = writer.begin(Message::DelSet, 0, sequence, Layer::Inet);
            writer.text(set::TABLE, TABLE);
            writer.text(set::NAME, &group_set(name));
            writer.end(open);
        }
    }
}

fn chain_message(writer: &mut Writer, message: Message, flags: u16, name: &Chain, sequence: u32) {
    let open = writer.begin(message, flags, sequence, Layer::Inet);
    writer.text(chain::TABLE, TABLE);
    writer.text(chain::NAME, &segment_chain(name));
    writer.end(open);
}

fn add_set(writer: &mut Writer, name: &GroupSet, title: &str, sequence: u32) {
    let (address, length) = match name.family {
        Family::V4 => (set::IPV4_ADDR, 4),
        Family::V6 => (set::IPV6_ADDR, 16),
    };
    let (kind, length, flags) = match name.form {
        GroupForm::Addresses => (address, length, 0),
        GroupForm::Blocks => (address, length, set::FLAG_INTERVAL),
        GroupForm::Services => {
            let kind = (address << (2 * set::TYPE_BITS)) | (set::INET_PROTO << set::TYPE_BITS) | set::INET_SERVICE;
            (kind, length + 8, 0)
        }
    };
    let open = writer.begin(Message::NewSet, CREATE, sequence, Layer::Inet);
    writer.text(set::TABLE, TABLE);
    writer.text(set::NAME, &group_set(name));
    writer.number(set::FLAGS, flags);
    writer.number(set::KEY_TYPE, kind);
    writer.number(set::KEY_LENGTH, length);
    // Within the transaction: rules may name a set by it. Ours go by name.
    writer.number(set::ID, sequence);
    let mut userdata = vec![set::USERDATA_BYTE_ORDER, 4];
    userdata.extend_from_slice(&set::BIG_ENDIAN.to_ne_bytes());
    let title = super::element::tidy(title);
    if let (false, Ok(length)) = (title.is_empty(), u8::try_from(title.len() + 1)) {
        userdata.extend_from_slice(&[set::USERDATA_COMMENT, length]);
        userdata.extend_from_slice(title.as_bytes());
        userdata.push(0);
    }
    writer.attribute(set::USERDATA, &userdata);
    writer.end(open);
}

fn add_rule(writer: &mut Writer, name: &Chain, comment: &str, sequence: u32, expressions: impl FnOnce(&mut Writer)) {
    let open = writer.begin(Message::NewRule, CREATE | APPEND, sequence, Layer::Inet);
    writer.text(rule::TABLE, TABLE);
    writer.text(rule::CHAIN, &segment_chain(name));
    let list = writer.nest(rule::EXPRESSIONS);
    expressions(writer);
    writer.end_nest(list);
    if !comment.is_empty() {
        let mut userdata = Vec::new();
        // The comment of a rule is coded as that of an element.
        super::element::put_comment(&mut userdata, &super::element::tidy(comment));
        writer.attribute(rule::USERDATA, &userdata);
    }
    writer.end(open);
}

/// `meta l4proto tcp th dport 80 ip saddr @group4_... accept`
fn conditions(writer: &mut Writer, name: &Chain, content: &SharedRule) {
    // Comparisons first: a lookup costs ten times as much.
    match content.service {
        SharedService::Any => {}
        SharedService::Protocol(protocol) => is_protocol(writer, protocol.0),
        SharedService::Protocols(protocols) => {
            meta(writer, e::L4PROTO, e::REGISTER);
            compare(writer, e::AT_LEAST, &[protocols.first]);
            compare(writer, e::AT_MOST, &[protocols.last]);
        }
        SharedService::Ports(protocol, ports) => {
            is_protocol(writer, protocol.0);
            payload(writer, e::TRANSPORT, port_of_service(name), 2, e::REGISTER);
            if ports.first == ports.last {
                compare(writer, e::EQUAL, &ports.first.to_be_bytes());
            } else {
                compare(writer, e::AT_LEAST, &ports.first.to_be_bytes());
                compare(writer, e::AT_MOST, &ports.last.to_be_bytes());
            }
        }
        SharedService::Icmp(kind, code) => {
            is_protocol(writer, icmp_number(name.family));
            payload(writer, e::TRANSPORT, 0, 1, e::REGISTER);
            compare(writer, e::EQUAL, &[kind]);
            if let Some(code) = code {
                payload(writer, e::TRANSPORT, 1, 1, e::REGISTER);
                compare(writer, e::EQUAL, &[code]);
            }
        }
    }
    if let SharedPeers::In(group) = content.peers {
        // nft reads an address only behind a test of the family.
        meta(writer, e::NFPROTO, e::REGISTER);
        let family: u8 = match name.family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        compare(writer, e::EQUAL, &[family]);
        peer(writer, name);
        if group.form == GroupForm::Services {
            let (protocol, port) = match name.family {
                Family::V4 => (e::REGISTER_32 + 1, e::REGISTER_32 + 2),
                Family::V6 => (e::REGISTER_32 + 4, e::REGISTER_32 + 5),
            };
            meta(writer, e::L4PROTO, protocol);
            payload(writer, e::TRANSPORT, port_of_service(name), 2, port);
        }
        lookup(writer, &group);
    }
    // Not by coming back: that is what a packet does that meets a chain while it is made.
    match name.direction {
        Direction::Ingress => immediate(writer, verdict::ACCEPT, None),
        Direction::Egress => immediate(writer, verdict::GOTO, Some(&beyond(name))),
    }
}

/// Where a chain of the egress stage leads what it allows.
pub(super) fn beyond(name: &Chain) -> String {
    if name.answers { beyond_answer(name.family) } else { beyond_egress(name.family) }
}

/// Where the service's port stands: that of the destination, in an answer that of the source.
fn port_of_service(name: &Chain) -> u32 {
    if name.answers { 0 } else { 2 }
}

/// Whether the other end is the packet's source: in what comes in, and in an answer to what went out.
pub(super) fn peer_is_source(name: &Chain) -> bool {
    (name.direction == Direction::Ingress) != name.answers
}

/// The address of the other end.
fn peer(writer: &mut Writer, name: &Chain) {
    let (offset, length) = match (name.family, peer_is_source(name)) {
        (Family::V4, true) => (12, 4),
        (Family::V4, false) => (16, 4),
        (Family::V6, true) => (8, 16),
        (Family::V6, false) => (24, 16),
    };
    payload(writer, e::NETWORK, offset, length, e::REGISTER);
}

fn is_protocol(writer: &mut Writer, number: u8) {
    meta(writer, e::L4PROTO, e::REGISTER);
    compare(writer, e::EQUAL, &[number]);
}

fn expression(writer: &mut Writer, name: &str, content: impl FnOnce(&mut Writer)) {
    let item = writer.nest(LIST_ELEMENT);
    writer.text(e::NAME, name);
    let data = writer.nest(e::DATA);
    content(writer);
    writer.end_nest(data);
    writer.end_nest(item);
}

pub(super) fn meta(writer: &mut Writer, key: u32, to: u32) {
    expression(writer, "meta", |writer| {
        writer.number(e::META_KEY, key);
        writer.number(e::META_TO, to);
    });
}

pub(super) fn payload(writer: &mut Writer, base: u32, offset: u32, length: u32, to: u32) {
    expression(writer, "payload", |writer| {
        writer.number(e::PAYLOAD_TO, to);
        writer.number(e::PAYLOAD_BASE, base);
        writer.number(e::PAYLOAD_OFFSET, offset);
        writer.number(e::PAYLOAD_LENGTH, length);
    });
}

pub(super) fn compare(writer: &mut Writer, operator: u32, value: &[u8]) {
    expression(writer, "cmp", |writer| {
        writer.number(e::CMP_FROM, e::REGISTER);
        writer.number(e::CMP_OP, operator);
        let data = writer.nest(e::CMP_DATA);
        writer.attribute(DATA_VALUE, value);
        writer.end_nest(data);
    });
}

/// `ct state`
pub(super) fn conntrack_state(writer: &mut Writer) {
    expression(writer, "ct", |writer| {
        writer.number(e::CT_KEY, e::CT_STATE);
        writer.number(e::CT_TO, e::REGISTER);
    });
}

/// `& BITS`, of a number of four bytes in the machine's order.
pub(super) fn only_bits(writer: &mut Writer, bits: u32) {
    expression(writer, "bitwise", |writer| {
        writer.number(e::BITWISE_FROM, e::REGISTER);
        writer.number(e::BITWISE_TO, e::REGISTER);
        writer.number(e::BITWISE_LENGTH, 4);
        for (kind, value) in [(e::BITWISE_MASK, bits), (e::BITWISE_XOR, 0)] {
            let data = writer.nest(kind);
            writer.attribute(DATA_VALUE, &value.to_ne_bytes());
            writer.end_nest(data);
        }
    });
}

fn lookup(writer: &mut Writer, group: &GroupSet) {
    expression(writer, "lookup", |writer| {
        writer.text(e::LOOKUP_SET, &group_set(group));
        writer.number(e::LOOKUP_FROM, e::REGISTER);
    });
}

/// A verdict; `to` is the chain of a jump or goto.
pub(super) fn immediate(writer: &mut Writer, code: i32, to: Option<&str>) {
    expression(writer, "immediate", |writer| {
        writer.number(e::IMMEDIATE_TO, e::VERDICT);
        let data = writer.nest(e::IMMEDIATE_DATA);
        put_verdict(writer, code, to);
        writer.end_nest(data);
    });
}

/// A verdict as data; `to` is the chain of a goto.
pub(super) fn put_verdict(writer: &mut Writer, code: i32, to: Option<&str>) {
    let open = writer.nest(DATA_VERDICT);
    writer.attribute(verdict::CODE, &code.to_be_bytes());
    if let Some(to) = to {
        writer.text(verdict::CHAIN, to);
    }
    writer.end_nest(open);
}
