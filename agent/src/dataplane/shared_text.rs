//! Sets of groups and chains of segments as `nft -j` takes them: for the one transaction that changes rules and elements together. What
//! [`super::render_shared`] sends as bytes, here as text. Pure.

use super::element::{Entry, tidy};
use super::element_text::{command, element};
use super::names::{Layer, SetRef, TABLE, group_set, icmp_number, segment_chain};
use super::plan::SetChange;
use super::render_shared::{beyond, peer_is_source};
use super::shared::Object;
use firebreak_policy::kernel_sets::{Chain, GroupForm, GroupKey, GroupSet, SharedPeers, SharedRule, SharedService};
use firebreak_policy::model::{Direction, Family};
use serde_json::{Value, json};

/// The commands that make an object come or go. A set comes without the group's title: nft 1.0.6 takes none in JSON.
pub(super) fn commands(object: &Object) -> Vec<String> {
    let commands = match object {
        Object::AddSet(set, _title) => vec![json!({ "add": { "set": declared(set) } })],
        Object::AddChain(chain, rules) => with_rules(json!({ "add": { "chain": named(&segment_chain(chain)) } }), chain, rules),
        Object::RewriteChain(chain, rules) => with_rules(json!({ "flush": { "chain": named(&segment_chain(chain)) } }), chain, rules),
        Object::DeleteChain(chain) => vec![json!({ "delete": { "chain": named(&segment_chain(chain)) } })],
        Object::DeleteSet(set) => vec![json!({ "delete": { "set": named(&group_set(set)) } })],
    };
    commands.iter().map(Value::to_string).collect()
}

/// The elements that come and go in a set of a group or a map of segments.
pub(super) fn elements(change: &SetChange) -> Vec<String> {
    let gone: Vec<String> = change.remove.iter().map(|entry| of(entry, "").to_string()).collect();
    let come: Vec<String> = change.put.iter().map(|(entry, comment)| of(entry, comment).to_string()).collect();
    let (set, name) = (change.set, change.set.name());
    command("delete", set.layer(), &name, &gone).into_iter().chain(command("add", set.layer(), &name, &come)).collect()
}

fn of(entry: &Entry, comment: &str) -> Value {
    match entry {
        Entry::Group(GroupKey::Address(peer)) => element(peer.to_string().into(), comment, None),
        Entry::Group(GroupKey::Service(peer, protocol, port)) => {
            element(json!({ "concat": [peer.to_string(), protocol.0, port] }), comment, None)
        }
        Entry::Group(GroupKey::Block(block)) => {
            element(json!({ "prefix": { "addr": block.network().to_string(), "len": block.prefix_len() } }), comment, None)
        }
        Entry::Segment(local, chain) => {
            json!([element(local.to_string().into(), comment, None), { "jump": { "target": segment_chain(chain) } }])
        }
        // `elements` is asked about no other set.
        Entry::Interface(_) | Entry::Policy(_) | Entry::Bound(_) => Value::Null,
    }
}

fn named(name: &str) -> Value {
    json!({ "family": Layer::Inet.as_str(), "table": TABLE, "name": name })
}

fn declared(set: &GroupSet) -> Value {
    let address = match set.family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    let mut declared = named(&SetRef::Group(*set).name());
    declared["type"] = match set.form {
        GroupForm::Addresses | GroupForm::Blocks => address.into(),
        GroupForm::Services => json!([address, "inet_proto", "inet_service"]),
    };
    if set.form == GroupForm::Blocks {
        declared["flags"] = json!(["interval"]);
    }
    declared
}

fn with_rules(first: Value, chain: &Chain, rules: &[SharedRule]) -> Vec<Value> {
    let rule = |rule: &SharedRule| {
        let mut inside =
            json!({ "family": Layer::Inet.as_str(), "table": TABLE, "chain": segment_chain(chain), "expr": expressions(chain, rule) });
        let comment = tidy(&rule.comment);
        if !comment.is_empty() {
            inside["comment"] = comment.into_owned().into();
        }
        json!({ "add": { "rule": inside } })
    };
    [first].into_iter().chain(rules.iter().map(rule)).collect()
}

fn expressions(chain: &Chain, rule: &SharedRule) -> Vec<Value> {
    let protocol = || json!({ "meta": { "key": "l4proto" } });
    let field = |header: &str, name: &str| json!({ "payload": { "protocol": header, "field": name } });
    let is = |left: Value, right: Value| json!({ "match": { "op": "==", "left": left, "right": right } });
    let (header, icmp) = match chain.family {
        Family::V4 => ("ip", "icmp"),
        Family::V6 => ("ip6", "icmpv6"),
    };
    let port = if chain.answers { "sport" } else { "dport" };
    let mut expressions = Vec::new();
    match rule.service {
        SharedService::Any => {}
        SharedService::Protocol(number) => expressions.push(is(protocol(), number.0.into())),
        SharedService::Protocols(protocols) => {
            expressions.push(is(protocol(), json!({ "range": [protocols.first, protocols.last] })));
        }
        SharedService::Ports(number, ports) => {
            expressions.push(is(protocol(), number.0.into()));
            let range = if ports.first == ports.last { ports.first.into() } else { json!({ "range": [ports.first, ports.last] }) };
            expressions.push(is(field("th", port), range));
        }
        SharedService::Icmp(kind, code) => {
            expressions.push(is(protocol(), icmp_number(chain.family).into()));
            expressions.push(is(field(icmp, "type"), kind.into()));
            expressions.extend(code.map(|code| is(field(icmp, "code"), code.into())));
        }
    }
    if let SharedPeers::In(group) = rule.peers {
        let peer = field(header, if peer_is_source(chain) { "saddr" } else { "daddr" });
        let key = match group.form {
            GroupForm::Addresses | GroupForm::Blocks => peer,
            GroupForm::Services => json!({ "concat": [peer, protocol(), field("th", port)] }),
        };
        expressions.push(is(key, format!("@{}", group_set(&group)).into()));
    }
    expressions.push(match chain.direction {
        Direction::Ingress => json!({ "accept": null }),
        Direction::Egress => json!({ "goto": { "target": beyond(chain) } }),
    });
    expressions
}
