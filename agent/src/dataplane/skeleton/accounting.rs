//! What is denied: counted exactly, logged once per flow.

use super::policy::{WITH_PORTS, deny_name, icmp_header, icmp_protocol, ip};
use super::words::{Rules, concat, count, dispatch, drop, field, goto, in_set, l4proto, log, to_goto, update};
use crate::dataplane::config::DataplaneConfig;
use crate::dataplane::names::{
    COUNTER_DENIED_IN, COUNTER_DENIED_OUT, COUNTER_OVERFLOW_IN, COUNTER_OVERFLOW_OUT, DIRECTIONS, DeniedKey, DeniedSet, FAMILIES,
    LOG_DENY_IN, LOG_DENY_OUT,
};
use firebreak_policy::model::{Direction, Family};
use nftables::expr::{Expression, Verdict};

/// Bytes of a packet that go to NFLOG: an IPv6 header, its extensions and the ports.
const SNAPLEN: u32 = 128;

/// ```text
/// chain deny_in4 {
///     counter name denied_in
///     meta l4proto vmap { tcp : goto deny_in4_with_ports, ..., icmp : goto deny_in4_with_types }
///     ip saddr . ip daddr . meta l4proto @denied_in4_proto drop
///     update @denied_in4_proto { ip saddr . ip daddr . meta l4proto } log prefix "firebreak deny in" group 5 snaplen 128 drop
///     counter name denied_overflow_in drop
/// }
/// ```
/// The first rule counts in the element that it finds and leaves; only a new element logs; a packet that finds its set full breaks
/// off the second rule, and is counted by the third.
pub(super) fn add(rules: &mut Rules, config: &DataplaneConfig) {
    for direction in DIRECTIONS {
        let (total, overflow, prefix) = match direction {
            Direction::Ingress => (COUNTER_DENIED_IN, COUNTER_OVERFLOW_IN, LOG_DENY_IN),
            Direction::Egress => (COUNTER_DENIED_OUT, COUNTER_OVERFLOW_OUT, LOG_DENY_OUT),
        };
        rules.counter(total);
        rules.counter(overflow);
        for family in FAMILIES {
            let chain = deny_name(direction, family);
            let (with_ports, with_types) = (format!("{chain}_with_ports"), format!("{chain}_with_types"));
            for name in [&chain, &with_ports, &with_types] {
                rules.chain(name);
            }
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
        rules.rule(&overflow_name(direction), [count(overflow), drop()]);
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
