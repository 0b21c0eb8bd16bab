//! What is denied: counted exactly, logged once per flow.

use super::policy::{WITH_PORTS, deny_name, icmp_header, icmp_protocol, ip};
use super::words::{
    Rules, accept, concat, count, dispatch, drop, field, goto, in_set, is, is_number, is_one_of, l4proto, limit, log, meta, to_goto, update,
};
use crate::dataplane::config::DataplaneConfig;
use crate::dataplane::names::{
    COUNTER_DENIED_IN, COUNTER_DENIED_OUT, COUNTER_OVERFLOW_IN, COUNTER_OVERFLOW_OUT, DIRECTIONS, DeniedKey, DeniedSet, FAMILIES,
    LOG_DENY_IN, LOG_DENY_OUT, LOG_UNCOUNTED_IN, LOG_UNCOUNTED_OUT,
};
use firebreak_policy::model::{Direction, Family};
use nftables::expr::{Expression, MetaKey, Verdict};
use nftables::stmt::Statement;

/// Bytes of a packet that go to NFLOG: an IPv6 header, its extensions and the ports.
const SNAPLEN: u32 = 128;

/// Packets a second that are logged although no set counted them, and how many at once.
const UNCOUNTED_PER_SECOND: u32 = 5_000;
const UNCOUNTED_BURST: u32 = 10_000;

/// Multicast listener discovery (RFC 2710, RFC 3810).
const MLD: [&str; 4] = ["mld-listener-query", "mld-listener-report", "mld-listener-done", "mld2-listener-report"];

/// ```text
/// chain deny_in4 {
///     ...                                                            # DHCP of its own address ([`dhcp`])
///     counter name denied_in
///     meta l4proto vmap { tcp : goto deny_in4_with_ports, ..., icmp : goto deny_in4_with_types }
///     ip saddr . ip daddr . meta l4proto @denied_in4_proto drop
///     update @denied_in4_proto { ip saddr . ip daddr . meta l4proto } log prefix "firebreak deny in" group 5 snaplen 128 drop
///     goto deny_in_uncounted
/// }
/// chain deny_in_uncounted {
///     counter name denied_overflow_in
///     limit rate 5000/second burst 10000 packets log prefix "firebreak deny in uncounted" group 5 snaplen 128
///     drop
/// }
/// ```
/// The first rule counts in the element that it finds and leaves; only a new element logs; a packet that finds its set full breaks
/// off the second rule, and is counted by the third.
pub(super) fn add(rules: &mut Rules, config: &DataplaneConfig) {
    for direction in DIRECTIONS {
        let (total, overflow, prefix, uncounted) = match direction {
            Direction::Ingress => (COUNTER_DENIED_IN, COUNTER_OVERFLOW_IN, LOG_DENY_IN, LOG_UNCOUNTED_IN),
            Direction::Egress => (COUNTER_DENIED_OUT, COUNTER_OVERFLOW_OUT, LOG_DENY_OUT, LOG_UNCOUNTED_OUT),
        };
        rules.counter(total);
        rules.counter(overflow);
        for family in FAMILIES {
            let chain = deny_name(direction, family);
            let (with_ports, with_types) = (format!("{chain}_with_ports"), format!("{chain}_with_types"));
            for name in [&chain, &with_ports, &with_types] {
                rules.chain(name);
            }
            if family == Family::V6 {
                // Every IPv6 host announces its groups to its link by itself (RFC 3810): stopped like the rest, but nothing that anybody tried.
                rules.rule(&chain, [is_one_of(field("icmpv6", "type"), &MLD), is_number(field("ip6", "hoplimit"), 1), drop()]);
            }
            rules.rule_of(&chain, dhcp(direction, family));
            rules.rule(&chain, [count(total)]);
            let mut kinds: Vec<(&'static str, Verdict<'static>)> = WITH_PORTS.iter().map(|name| (*name, to_goto(&with_ports))).collect();
            kinds.push((icmp_protocol(family), to_goto(&with_types)));
            rules.rule(&chain, [dispatch(l4proto(), kinds)]);
            for (name, key) in [(&chain, DeniedKey::Protocol), (&with_ports, DeniedKey::Port), (&with_types, DeniedKey::Icmp)] {
                let set = DeniedSet { direction, family, key }.name();
                rules.rule(name, [in_set(flow(family, key), &set), drop()]);
                rules.rule(name, [update(&set, flow(family, key)), log(prefix, config.nflog_group, SNAPLEN), drop()]);
                if name != &chain {
                    rules.rule(name, [goto(&overflow_name(direction))]);
                }
            }
            rules.rule(&chain, [goto(&overflow_name(direction))]);
        }
        rules.chain(&overflow_name(direction));
        rules.rule(&overflow_name(direction), [count(overflow)]);
        // A packet that found no room in a set is told by NFLOG alone, within bounds.
        rules.rule(&overflow_name(direction), [limit(UNCOUNTED_PER_SECOND, UNCOUNTED_BURST), log(uncounted, config.nflog_group, SNAPLEN)]);
        rules.rule(&overflow_name(direction), [drop()]);
    }
}

/// What a workload's own address needs to live passes whatever policy says: a DHCP client's broadcasts, and answers that come over the link and not
/// through a router. No other workload can send such an answer: its guard refuses it. It is asked where a packet is about to be denied,
/// so that it costs nobody else anything.
///
/// ```text
/// ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept                              # deny_out4
/// meta iifkind "bridge" meta oifkind "bridge" udp sport 67 udp dport 68 accept           # deny_in4
/// ip6 daddr ff02::1:2 udp sport 546 udp dport 547 accept                                 # deny_out6
/// meta iifkind "bridge" meta oifkind "bridge" udp sport 547 udp dport 546 accept         # deny_in6
/// ```
fn dhcp(direction: Direction, family: Family) -> Vec<Statement<'static>> {
    let (client, server, everybody) = match family {
        Family::V4 => (68, 67, "255.255.255.255"),
        Family::V6 => (546, 547, "ff02::1:2"),
    };
    let ports = |from, to| [is_number(field("udp", "sport"), from), is_number(field("udp", "dport"), to), accept()];
    match direction {
        Direction::Egress => [vec![is(field(ip(family), "daddr"), everybody)], ports(client, server).to_vec()].concat(),
        Direction::Ingress => {
            let over_the_link = [MetaKey::Iifkind, MetaKey::Oifkind].map(|kind| is(meta(kind), "bridge"));
            [over_the_link.to_vec(), ports(server, client).to_vec()].concat()
        }
    }
}

fn overflow_name(direction: Direction) -> String {
    format!("deny_{}_uncounted", crate::dataplane::names::direction_word(direction))
}

fn flow(family: Family, key: DeniedKey) -> Expression<'static> {
    let mut fields = vec![field(ip(family), "saddr"), field(ip(family), "daddr")];
    match key {
        DeniedKey::Port => fields.extend([l4proto(), field("th", "dport")]),
        DeniedKey::Icmp => fields.extend([field(icmp_header(family), "type"), field(icmp_header(family), "code")]),
        DeniedKey::Protocol => fields.push(l4proto()),
    }
    concat(fields)
}
