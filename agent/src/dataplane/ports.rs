//! The base chains of the guards, one per interface: the only rules that come and go at run time. Pure: bytes and names.
//!
//! ```text
//! chain port_veth12 {
//!     type filter hook ingress device "veth12" priority -500; policy drop;
//!     ...                                                             # of each of its addresses: [`super::literal`]
//!     jump from_workload
//! }
//! ```
//! One chain per device, because the kernel takes no device into two chains of a table in one transaction, no more than 256 devices
//! in a message, and `nft list chain` fails for a chain of more than some hundred. The kernel binds it to the name: it stays when
//! the interface is deleted, and the next one of that name meets it with nothing bound to its ifindex, so that all is refused.

use super::element::put_comment;
use super::literal::{self, Literal, PortRule};
use super::names::{CHAIN_FROM_WORKLOAD, Layer, TABLE, is_port_chain, port_chain};
use super::plan::{Port, PortChange};
use super::render_shared::immediate;
use super::wire::{APPEND, Attributes, CREATE, DATA_VERDICT, LIST_ELEMENT, Message, Received, Writer, chain, expression, rule, verdict};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Before connection tracking and everybody else.
const PRIORITY: i32 = -500;

/// Makes the chain of an interface with its rules; gives the beginnings of the messages. The chain refuses all from the
/// moment that it is there, and without its rules.
pub(super) fn put(writer: &mut Writer, sequence: &mut u32, Port { device, literals }: &Port) -> Vec<usize> {
    let name = port_chain(device);
    let chain_start = writer.len();
    *sequence = sequence.wrapping_add(1);
    let open = writer.begin(Message::NewChain, CREATE, *sequence, Layer::Netdev);
    writer.text(chain::TABLE, TABLE);
    writer.text(chain::NAME, &name);
    let hook = writer.nest(chain::HOOK);
    writer.number(chain::HOOK_NUMBER, chain::INGRESS);
    writer.number(chain::HOOK_PRIORITY, u32::from_ne_bytes(PRIORITY.to_ne_bytes()));
    writer.text(chain::HOOK_DEVICE, device);
    writer.end_nest(hook);
    writer.number(chain::POLICY, chain::DROP);
    writer.text(chain::TYPE, "filter");
    writer.end(open);
    let mut starts = vec![chain_start];
    rules(writer, sequence, &name, literals, &mut starts);
    starts
}

/// Gives the chain of an interface other rules; gives the beginnings of the messages.
pub(super) fn rewrite(writer: &mut Writer, sequence: &mut u32, Port { device, literals }: &Port) -> Vec<usize> {
    let name = port_chain(device);
    let mut starts = vec![writer.len()];
    *sequence = sequence.wrapping_add(1);
    // Without a handle: all rules of the chain.
    let open = writer.begin(Message::DelRule, 0, *sequence, Layer::Netdev);
    writer.text(rule::TABLE, TABLE);
    writer.text(rule::CHAIN, &name);
    writer.end(open);
    rules(writer, sequence, &name, literals, &mut starts);
    starts
}

fn rules(writer: &mut Writer, sequence: &mut u32, chain: &str, literals: &BTreeSet<Literal>, starts: &mut Vec<usize>) {
    let mut rule = |comment: Option<&str>, expressions: &mut dyn FnMut(&mut Writer)| {
        starts.push(writer.len());
        *sequence = sequence.wrapping_add(1);
        let open = writer.begin(Message::NewRule, CREATE | APPEND, *sequence, Layer::Netdev);
        writer.text(rule::TABLE, TABLE);
        writer.text(rule::CHAIN, chain);
        let list = writer.nest(rule::EXPRESSIONS);
        expressions(writer);
        writer.end_nest(list);
        if let Some(comment) = comment {
            let mut userdata = Vec::new();
            put_comment(&mut userdata, comment);
            writer.attribute(rule::USERDATA, &userdata);
        }
        writer.end(open);
    };
    for literal_rule in literal::rules(literals) {
        rule(Some(&literal_rule.comment), &mut |writer| literal::write(writer, &literal_rule));
    }
    rule(None, &mut |writer| immediate(writer, verdict::JUMP, Some(CHAIN_FROM_WORKLOAD)));
}

/// Removes the chain of an interface with its rule; one message.
pub(super) fn remove(writer: &mut Writer, sequence: &mut u32, device: &str) {
    *sequence = sequence.wrapping_add(1);
    let open = writer.begin(Message::DelChain, 0, *sequence, Layer::Netdev);
    writer.text(chain::TABLE, TABLE);
    writer.text(chain::NAME, &port_chain(device));
    writer.end(open);
}

/// The same, coming and going, as commands for `nft -j`.
pub(super) fn text(change: &PortChange) -> Vec<String> {
    let family = Layer::Netdev.as_str();
    let gone = change
        .remove
        .iter()
        .map(|device| json!({ "delete": { "chain": { "family": family, "table": TABLE, "name": port_chain(device) } } }));
    let with_rules = |first: Value, Port { device, literals }: &Port| {
        let name = port_chain(device);
        let rule = |expressions: Value| json!({ "family": family, "table": TABLE, "chain": name, "expr": expressions });
        let of_literals = literal::rules(literals).map(|literal_rule| {
            let mut inside = rule(literal::text(&literal_rule));
            inside["comment"] = literal_rule.comment.into();
            inside
        });
        let jump = rule(json!([{ "jump": { "target": CHAIN_FROM_WORKLOAD } }]));
        let rules = of_literals.chain([jump]).map(|inside| json!({ "add": { "rule": inside } }));
        [first].into_iter().chain(rules).collect::<Vec<Value>>()
    };
    let come = change.put.iter().flat_map(|port| with_rules(command(&port_chain(&port.device), &port.device), port));
    let flush = |port: &Port| json!({ "flush": { "chain": { "family": family, "table": TABLE, "name": port_chain(&port.device) } } });
    let changed = change.rewrite.iter().flat_map(|port| with_rules(flush(port), port));
    gone.chain(come).chain(changed).map(|command| command.to_string()).collect()
}

/// The command for `nft -j` that makes the chain of an interface, or one that is there so again.
pub(super) fn command(name: &str, device: &str) -> Value {
    let (family, priority) = (Layer::Netdev.as_str(), PRIORITY);
    json!({ "add": { "chain": { "family": family, "table": TABLE, "name": name, "type": "filter", "hook": "ingress", "dev": device, "prio": priority, "policy": "drop" } } })
}

/// Whether a chain of a dump is as [`put`] makes it.
pub(super) fn is_right_chain(received: &Received<'_>) -> bool {
    let find = |kind| received.attributes().find(kind);
    let hook = |kind| find(chain::HOOK)?.nested().find(kind)?.as_u32();
    find(chain::POLICY).and_then(|policy| policy.as_u32()) == Some(chain::DROP)
        && find(chain::TYPE).and_then(|kind| kind.as_text()) == Some("filter")
        && hook(chain::HOOK_NUMBER) == Some(chain::INGRESS)
        && hook(chain::HOOK_PRIORITY) == Some(u32::from_ne_bytes(PRIORITY.to_ne_bytes()))
}

/// What a rule of a dump is to its chain.
pub(super) fn read_rule(expressions: Attributes<'_>) -> PortRule {
    if is_jump(expressions) { PortRule::Jump } else { literal::read_rule(expressions) }
}

/// Whether a rule has no condition, and the jump.
fn is_jump(expressions: Attributes<'_>) -> bool {
    let mut several = expressions.filter(|item| item.kind == LIST_ELEMENT);
    let (Some(only), None) = (several.next(), several.next()) else { return false };
    let is_immediate = only.nested().find(expression::NAME).and_then(|name| name.as_text()) == Some("immediate");
    let jumps_to = || {
        let data = only.nested().find(expression::DATA)?;
        let register = data.nested().find(expression::IMMEDIATE_TO)?.as_u32()?;
        let found = data.nested().find(expression::IMMEDIATE_DATA)?.nested().find(DATA_VERDICT)?;
        let code = found.nested().find(verdict::CODE)?.as_u32()?;
        let chain = found.nested().find(verdict::CHAIN)?.as_text()?;
        Some((register, code, chain))
    };
    let jump = u32::from_ne_bytes(verdict::JUMP.to_ne_bytes());
    is_immediate && jumps_to() == Some((expression::VERDICT, jump, CHAIN_FROM_WORKLOAD))
}

/// The device of one chain of a dump; `None` when the chain is no interface's.
pub(super) fn device<'a>(received: &Received<'a>) -> Option<&'a str> {
    let attributes = || received.attributes();
    let ours = received.family() == Some(Layer::Netdev.number())
        && attributes().find(chain::TABLE).and_then(|name| name.as_text()) == Some(TABLE)
        && attributes().find(chain::NAME).and_then(|name| name.as_text()).is_some_and(is_port_chain);
    if !ours {
        return None;
    }
    attributes().find(chain::HOOK)?.nested().find(chain::HOOK_DEVICE)?.as_text()
}

#[cfg(test)]
mod tests {
    use super::super::names::port_chain;

    #[test]
    fn no_two_interfaces_have_one_chain_and_a_person_reads_it() {
        assert_eq!(port_chain("veth12"), "port_veth12");
        assert_eq!(port_chain("cali0-a.b_c"), "port_cali0-a.b_c");
        assert_eq!(port_chain("x@y"), "port.784079");
        assert_ne!(port_chain("784079"), port_chain("x@y"));
    }
}
