//! The rules of a guard about one address of its interface by itself: what nearly every packet takes, without a lookup. Pure.
//!
//! ```text
//! iif 12 ether saddr 02:42:ac:11:00:02 ether type ip @nh,0,8 0x45 ip saddr 172.17.0.2
//!     meta pkttype != broadcast meta pkttype != multicast ip protocol != icmp ip protocol != igmp th sport != 67 accept
//! meta l4proto tcp iif 12 ether saddr 02:42:ac:11:00:02 ether type ip6 ip6 saddr fd00::2 ip6 nexthdr tcp
//!     meta pkttype != broadcast meta pkttype != multicast accept                                                      # and so for udp
//! ```
//! `nft list` shows raw bytes (`@ll,48,64`) for the addresses, because it reads no header without a comparison that says which one it is; a comment
//! says them.
//!
//! They say what the first two rules of the shared chain say ([`super::skeleton`], `from_workload`) of one element of its sets, so that they pass
//! nothing that it would not pass; whatever they do not match goes on to it. MAC address and EtherType are one load of 8 bytes: a load from the
//! link-layer header costs three times as much as a comparison, and is cut short where the kernel has moved a VLAN tag aside, so that such a
//! frame does not match. That the frame is for one station is asked of `pkttype`, which the kernel sets by the destination of each frame that
//! comes out of a veth (`eth_type_trans`).

use super::desired::MacAddress;
use super::render_shared::{compare, immediate, meta, payload};
use super::wire::{Attributes, DATA_VALUE, DATA_VERDICT, LIST_ELEMENT, Writer, expression as e, verdict};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of a family. An interface with more has none: behind the fourth the lookup is as cheap.
const MOST: usize = 4;

/// An address of an interface, and the MAC address that its packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Literal {
    pub(super) index: u32,
    pub(super) mac: MacAddress,
    pub(super) address: IpAddr,
}

/// What an interface gets, of all its addresses.
pub(super) fn chosen(index: u32, mac: MacAddress, addresses: &BTreeSet<IpAddr>) -> BTreeSet<Literal> {
    // Link-local IPv6 addresses speak to neighbours, mostly by ICMP, which goes the long way anyway.
    let is_busy = |address: &&IpAddr| !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().filter(is_busy).partition(|address| address.is_ipv4());
    let few = [v4, v6].into_iter().filter(|family| family.len() <= MOST);
    few.flatten().map(|address| Literal { index, mac, address }).collect()
}

/// What a condition looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Meta(u32),
    /// Base, offset and length in bytes.
    Payload(u32, u32, u32),
}

/// The conditions under which a packet is accepted, and the same in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    conditions: Vec<Condition>,
    pub(super) comment: String,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    load: Load,
    is_equal: bool,
    value: Vec<u8>,
}

fn is(load: Load, value: &[u8]) -> Condition {
    Condition { load, is_equal: true, value: value.to_vec() }
}

fn is_not(load: Load, value: &[u8]) -> Condition {
    Condition { load, is_equal: false, value: value.to_vec() }
}

const INTERFACE: Load = Load::Meta(e::IIF);
const PACKET_TYPE: Load = Load::Meta(e::PKTTYPE);
const PROTOCOL: Load = Load::Meta(e::L4PROTO);
/// MAC source address and EtherType.
const FRAME: Load = Load::Payload(e::LINK, 6, 8);
const SOURCE4: Load = Load::Payload(e::NETWORK, 12, 4);
const SOURCE6: Load = Load::Payload(e::NETWORK, 8, 16);
/// Version and header length.
const HEADER4: Load = Load::Payload(e::NETWORK, 0, 1);
const PROTOCOL4: Load = Load::Payload(e::NETWORK, 9, 1);
const NEXT6: Load = Load::Payload(e::NETWORK, 6, 1);
const SOURCE_PORT: Load = Load::Payload(e::TRANSPORT, 0, 2);

const TCP: u8 = 6;
const UDP: u8 = 17;

fn frame(mac: MacAddress, ether_type: [u8; 2]) -> Condition {
    is(FRAME, &[mac.0.as_slice(), &ether_type].concat())
}

/// `PACKET_BROADCAST`, `PACKET_MULTICAST`.
fn is_for_one_station() -> [Condition; 2] {
    [is_not(PACKET_TYPE, &[1]), is_not(PACKET_TYPE, &[2])]
}

/// The conditions of each rule.
fn rules_of(literal: &Literal) -> Vec<Vec<Condition>> {
    let interface = is(INTERFACE, &literal.index.to_ne_bytes());
    match literal.address {
        IpAddr::V4(address) => {
            let mut rule = vec![interface, frame(literal.mac, [0x08, 0x00]), is(HEADER4, &[0x45]), is(SOURCE4, &address.octets())];
            rule.extend(is_for_one_station());
            rule.extend([is_not(PROTOCOL4, &[1]), is_not(PROTOCOL4, &[2]), is_not(SOURCE_PORT, &67u16.to_be_bytes())]);
            vec![rule]
        }
        IpAddr::V6(address) => {
            let rule = |protocol: u8| {
                let mut rule = vec![
                    // First, so that the other rule costs little.
                    is(PROTOCOL, &[protocol]),
                    interface.clone(),
                    frame(literal.mac, [0x86, 0xdd]),
                    is(SOURCE6, &address.octets()),
                    is(NEXT6, &[protocol]),
                ];
                rule.extend(is_for_one_station());
                if protocol == UDP {
                    rule.push(is_not(SOURCE_PORT, &547u16.to_be_bytes()));
                }
                rule
            };
            vec![rule(TCP), rule(UDP)]
        }
    }
}

/// The rules of these literals, in order.
pub(super) fn rules(literals: &BTreeSet<Literal>) -> impl Iterator<Item = Rule> {
    literals.iter().flat_map(|literal| {
        rules_of(literal).into_iter().map(|conditions| Rule { conditions, comment: format!("{} from {}", literal.address, literal.mac) })
    })
}

/// The expressions of a rule.
pub(super) fn write(writer: &mut Writer, rule: &Rule) {
    let mut loaded = None;
    for condition in &rule.conditions {
        if loaded != Some(condition.load) {
            match condition.load {
                Load::Meta(key) => meta(writer, key, e::REGISTER),
                Load::Payload(base, offset, length) => payload(writer, base, offset, length, e::REGISTER),
            }
            loaded = Some(condition.load);
        }
        compare(writer, if condition.is_equal { e::EQUAL } else { e::NOT_EQUAL }, &condition.value);
    }
    immediate(writer, verdict::ACCEPT, None);
}

/// The same for `nft -j`: the list of its statements.
pub(super) fn text(rule: &Rule) -> Value {
    let accept = json!({ "accept": null });
    rule.conditions.iter().map(match_of).chain([accept]).collect()
}

fn match_of(condition: &Condition) -> Value {
    let digits: String = condition.value.iter().map(|byte| format!("{byte:02x}")).collect();
    let number = || Value::from(format!("0x{digits}"));
    let (left, right) = match condition.load {
        Load::Meta(e::IIF) => {
            let index = condition.value.as_slice().try_into().map_or(0, u32::from_ne_bytes);
            (json!({ "meta": { "key": "iif" } }), index.into())
        }
        Load::Meta(key) => (json!({ "meta": { "key": if key == e::PKTTYPE { "pkttype" } else { "l4proto" } } }), number()),
        Load::Payload(base, offset, length) => {
            let base = match base {
                e::LINK => "ll",
                e::NETWORK => "nh",
                _ => "th",
            };
            (json!({ "payload": { "base": base, "offset": offset * 8, "len": length * 8 } }), number())
        }
    };
    json!({ "match": { "op": if condition.is_equal { "==" } else { "!=" }, "left": left, "right": right } })
}

/// A rule of an interface's chain as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortRule {
    /// The jump to the shared chain and nothing else.
    Jump,
    /// One of a literal's.
    Of(Literal),
    /// None of ours.
    Other,
}

/// What a rule's expressions are, up to how often something is loaded.
pub(super) fn read_rule(expressions: Attributes<'_>) -> PortRule {
    read_conditions(expressions).and_then(|conditions| literal_of(&conditions)).map_or(PortRule::Other, PortRule::Of)
}

/// What a whole chain says: its literals, when its rules are theirs in order and then the jump.
pub(super) fn read_chain(found: &[PortRule]) -> Option<BTreeSet<Literal>> {
    let (PortRule::Jump, before) = found.split_last()? else { return None };
    let found: Vec<Literal> =
        before.iter().map(|rule| if let PortRule::Of(literal) = rule { Some(*literal) } else { None }).collect::<Option<_>>()?;
    let literals: BTreeSet<Literal> = found.iter().copied().collect();
    let expected = literals.iter().flat_map(|literal| rules_of(literal).into_iter().map(|_| *literal));
    expected.eq(found.iter().copied()).then_some(literals)
}

fn read_conditions(expressions: Attributes<'_>) -> Option<Vec<Condition>> {
    let mut conditions = Vec::new();
    let mut loaded = None;
    let mut is_over = false;
    for item in expressions.filter(|item| item.kind == LIST_ELEMENT) {
        if is_over {
            return None;
        }
        let (name, data) = (item.nested().find(e::NAME)?.as_text()?, item.nested().find(e::DATA)?);
        let number = |kind| data.nested().find(kind)?.as_u32();
        match name {
            "meta" => {
                loaded = Some(Load::Meta(number(e::META_KEY)?)).filter(|_| is_our_register(number(e::META_TO)));
            }
            "payload" => {
                let load = Load::Payload(number(e::PAYLOAD_BASE)?, number(e::PAYLOAD_OFFSET)?, number(e::PAYLOAD_LENGTH)?);
                loaded = Some(load).filter(|_| is_our_register(number(e::PAYLOAD_TO)));
            }
            "cmp" => {
                let load = loaded.filter(|_| is_our_register(number(e::CMP_FROM)))?;
                let is_equal = match number(e::CMP_OP)? {
                    e::EQUAL => true,
                    e::NOT_EQUAL => false,
                    _ => return None,
                };
                let value = data.nested().find(e::CMP_DATA)?.nested().find(DATA_VALUE)?.value.to_vec();
                conditions.push(Condition { load, is_equal, value });
            }
            "immediate" => {
                let found = data.nested().find(e::IMMEDIATE_DATA)?.nested().find(DATA_VERDICT)?;
                let code = found.nested().find(verdict::CODE)?.as_u32()?;
                if number(e::IMMEDIATE_TO)? != e::VERDICT || code != u32::from_ne_bytes(verdict::ACCEPT.to_ne_bytes()) {
                    return None;
                }
                is_over = true;
            }
            _ => return None,
        }
    }
    is_over.then_some(conditions)
}

/// The kernel tells the first register of 16 bytes by its number as such or as the first of those of 4.
fn is_our_register(number: Option<u32>) -> bool {
    matches!(number, Some(e::REGISTER | e::REGISTER_32))
}

/// Whose rule it is: of the literal that it names, one that says exactly what it is to say.
fn literal_of(conditions: &[Condition]) -> Option<Literal> {
    let value = |load: Load| conditions.iter().find(|condition| condition.load == load).map(|condition| condition.value.as_slice());
    let index = u32::from_ne_bytes(value(INTERFACE)?.try_into().ok()?);
    let (mac, _) = value(FRAME)?.split_first_chunk::<6>()?;
    let four = || value(SOURCE4).and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(|octets| IpAddr::from(Ipv4Addr::from(octets)));
    let six = || value(SOURCE6).and_then(|octets| <[u8; 16]>::try_from(octets).ok()).map(|octets| IpAddr::from(Ipv6Addr::from(octets)));
    let literal = Literal { index, mac: MacAddress(*mac), address: four().or_else(six)? };
    rules_of(&literal).iter().any(|rule| rule == conditions).then_some(literal)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn literal(address: &str) -> Literal {
        Literal { index: 12, mac: MacAddress([2, 0, 0, 0, 0, 7]), address: address.parse().unwrap() }
    }

    fn written(literals: &BTreeSet<Literal>) -> Vec<Vec<u8>> {
        let bytes = |rule: Rule| {
            let mut writer = Writer::with_capacity(512);
            write(&mut writer, &rule);
            writer.into_bytes()
        };
        rules(literals).map(bytes).collect()
    }

    #[test]
    fn what_is_written_is_read_as_the_same_and_anything_else_is_not_ours() {
        let literals: BTreeSet<Literal> = [literal("192.0.2.1"), literal("192.0.2.2"), literal("2001:db8::1")].into();
        let rules: Vec<Vec<u8>> = written(&literals);
        assert_eq!(rules.len(), 4, "an IPv6 address has one for TCP and one for UDP");
        let mut found: Vec<PortRule> = rules.iter().map(|rule| read_rule(Attributes::new(rule))).collect();
        assert!(!found.contains(&PortRule::Other));
        found.push(PortRule::Jump);
        assert_eq!(read_chain(&found), Some(literals));

        for position in 0..found.len() {
            let mut fewer = found.clone();
            fewer.remove(position);
            let is_whole = matches!(found[position], PortRule::Of(Literal { address: IpAddr::V4(_), .. }));
            assert_eq!(read_chain(&fewer).is_some(), is_whole, "without rule {position}");
        }
        found.swap(0, 1);
        assert_eq!(read_chain(&found), None, "in another order");

        for rule in &rules {
            for position in 0..rule.len() {
                let mut changed = rule.clone();
                changed[position] ^= 0x40;
                let read = read_rule(Attributes::new(&changed));
                assert!(
                    read != read_rule(Attributes::new(rule)) || is_padding(rule, position),
                    "byte {position} of {rule:02x?} means nothing"
                );
            }
        }
    }

    /// Whether the bytes are a name's end, an attribute's padding or the flag bits of its type.
    fn is_padding(rule: &[u8], position: usize) -> bool {
        let mut changed = rule.to_vec();
        changed[position] = 0;
        rule[position] == 0 || read_rule(Attributes::new(&changed)) == read_rule(Attributes::new(rule))
    }

    #[test]
    fn an_interface_with_few_addresses_has_a_rule_for_each_and_one_with_many_has_none() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        let table: &[(&[&str], &[&str])] = &[
            (&[], &[]),
            (&["192.0.2.1", "fe80::1", "2001:db8::1"], &["192.0.2.1", "2001:db8::1"]),
            (&["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"], &["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]),
            (&["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "2001:db8::1"], &["2001:db8::1"]),
        ];
        for (has, expected) in table {
            let literals: BTreeSet<IpAddr> =
                chosen(12, MacAddress([2, 0, 0, 0, 0, 7]), &addresses(has)).iter().map(|literal| literal.address).collect();
            assert_eq!(literals, addresses(expected), "{has:?}");
        }
    }
}
