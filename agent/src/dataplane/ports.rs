//! The base chains of the guards, one per interface: the only rules that come and go at run time. Pure: bytes and names.
//!
//! ```text
//! chain port_veth12 {
//!     type filter hook ingress device "veth12" priority -500; policy drop;
//!     jump from_workload
//! }
//! ```
//! One chain per device, because the kernel takes no device into two chains of a table in one transaction, no more than 256 devices
//! in a message, and `nft list chain` fails for a chain of more than some hundred. The kernel binds it to the name: it stays when
//! the interface is deleted, and the next one of that name meets it with nothing bound to its ifindex, so that all is refused.

use super::names::{CHAIN_FROM_WORKLOAD, Layer, TABLE, is_port_chain, port_chain};
use super::plan::PortChange;
use super::wire::{CREATE, LIST_ELEMENT, Message, Received, Writer, chain, rule};
use serde_json::json;

/// Before connection tracking and everybody else.
const PRIORITY: i32 = -500;

/// Makes the chain of an interface with its one rule; two messages, of which it gives the beginnings. The chain refuses all from the
/// moment that it is there, and without its rule.
pub(super) fn put(writer: &mut Writer, sequence: &mut u32, device: &str) -> [usize; 2] {
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

    let rule_start = writer.len();
    *sequence = sequence.wrapping_add(1);
    let open = writer.begin(Message::NewRule, CREATE | rule::APPEND, *sequence, Layer::Netdev);
    writer.text(rule::TABLE, TABLE);
    writer.text(rule::CHAIN, &name);
    let expressions = writer.nest(rule::EXPRESSIONS);
    let expression = writer.nest(LIST_ELEMENT);
    writer.text(rule::EXPRESSION_NAME, "immediate");
    let immediate = writer.nest(rule::EXPRESSION_DATA);
    writer.number(rule::IMMEDIATE_REGISTER, rule::REGISTER_VERDICT);
    let data = writer.nest(rule::IMMEDIATE_DATA);
    let verdict = writer.nest(rule::DATA_VERDICT);
    writer.number(rule::VERDICT_CODE, rule::JUMP);
    writer.text(rule::VERDICT_CHAIN, CHAIN_FROM_WORKLOAD);
    writer.end_nest(verdict);
    writer.end_nest(data);
    writer.end_nest(immediate);
    writer.end_nest(expression);
    writer.end_nest(expressions);
    writer.end(open);
    [chain_start, rule_start]
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
    let (family, priority) = (Layer::Netdev.as_str(), PRIORITY);
    let gone = change
        .remove
        .iter()
        .map(|device| json!({ "delete": { "chain": { "family": family, "table": TABLE, "name": port_chain(device) } } }));
    let come = change.put.iter().flat_map(|device| {
        let name = port_chain(device);
        let hook = json!({ "family": family, "table": TABLE, "name": name, "type": "filter", "hook": "ingress", "dev": device, "prio": priority, "policy": "drop" });
        let jump = json!({ "jump": { "target": CHAIN_FROM_WORKLOAD } });
        [
            json!({ "add": { "chain": hook } }),
            json!({ "add": { "rule": { "family": family, "table": TABLE, "chain": name, "expr": [jump] } } }),
        ]
    });
    gone.chain(come).map(|command| command.to_string()).collect()
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
