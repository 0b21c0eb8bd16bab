//! What is denied: counted exactly, logged once per flow.

use super::policy::{by_protocol, deny_name, icmp_header, ip};
use super::words::{
    Rules, accept, back, concat, count, drop, field, goto, in_set, is, is_number, is_one_of, l4proto, limit, log, meta, prohibit, reset,
    update,
};
use crate::dataplane::config::DataplaneConfig;
use crate::dataplane::names::{
    self, COUNTER_AUDITED_IN, COUNTER_AUDITED_OUT, COUNTER_DENIED_IN, COUNTER_DENIED_OUT, COUNTER_OVERFLOW_IN, COUNTER_OVERFLOW_OUT,
    DIRECTIONS, DeniedKey, DeniedSet, FAMILIES, LOG_AUDIT_IN, LOG_AUDIT_OUT, LOG_DENY_IN, LOG_DENY_OUT, LOG_REJECT_IN, LOG_REJECT_OUT,
    LOG_UNCOUNTED_IN, LOG_UNCOUNTED_OUT, Outcome, SET_OBSERVE, direction_word, family_digit,
};
use firebreak_policy::kernel_sets::{SetId, Shape};
use firebreak_policy::model::{Direction, Family};
use nftables::expr::{Expression, MetaKey};
use nftables::stmt::Statement;

/// Bytes of a packet that go to NFLOG: an IPv6 header, its extensions and the ports.
const SNAPLEN: u32 = 128;

/// Packets a second that are logged although no set counted them, and how many at once.
const UNCOUNTED_PER_SECOND: u32 = 5_000;
const UNCOUNTED_BURST: u32 = 10_000;

/// Where a packet is answered that a rule denies with an answer.
const ANSWER: &str = "answer";

/// Multicast listener discovery (RFC 2710, RFC 3810).
const MLD: [&str; 4] = ["mld-listener-query", "mld-listener-report", "mld-listener-done", "mld2-listener-report"];

/// ```text
/// chain deny_in4 {
///     ...                                                            # DHCP of its own address ([`dhcp`])
///     counter name denied_in
///     ...                                                            # by protocol to deny_in4_with_ports or _with_types ([`by_protocol`])
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
/// What a rule of a tier denies with an answer (`in4_reject`, `in4_reject_icmp`) is counted and logged in sets of its own, and answered:
///
/// ```text
/// chain deny_in4_with_ports {
///     ip daddr . ip saddr . meta l4proto . th dport @in4_reject goto reject_in4_with_ports
///     ...
/// }
/// chain reject_in4_with_ports {
///     ip saddr . ip daddr . meta l4proto . th dport @rejected_in4 goto answer
///     update @rejected_in4 { ... } log prefix "firebreak reject in" group 5 snaplen 128 goto answer
///     goto deny_in_uncounted                                         # full: dropped
/// }
/// chain answer {
///     meta l4proto tcp reject with tcp reset
///     reject with icmpx admin-prohibited
/// }
/// ```
/// The first rule counts in the element that it finds and leaves; only a new element logs; a packet that finds its set full breaks
/// off the second rule, and is counted by the third.
///
/// While the node observes ([`SET_OBSERVE`]), the first rule of `deny_in4` is
///
/// ```text
///     meta nfproto @observe goto audit_in4
/// ```
///
/// and `audit_in4` is the same with other sets and counters and `return` in the place of `drop`: this direction lets it through, the
/// other is still judged. Only what policy denies comes here: unknown interfaces, the guards, and what belongs to no connection stay denied.
pub(super) fn add(rules: &mut Rules, config: &DataplaneConfig) {
    rules.chain(ANSWER);
    rules.rule(ANSWER, [reset()]);
    rules.rule(ANSWER, [prohibit()]);
    for outcome in [Outcome::Rejected, Outcome::Denied, Outcome::Audited] {
        for direction in DIRECTIONS {
            Accounting { outcome, direction, group: config.nflog_group }.add(rules);
        }
    }
}

struct Accounting {
    outcome: Outcome,
    direction: Direction,
    group: u16,
}

impl Accounting {
    fn add(&self, rules: &mut Rules) {
        let total = match (self.outcome, self.direction) {
            (Outcome::Denied | Outcome::Rejected, Direction::Ingress) => COUNTER_DENIED_IN,
            (Outcome::Denied | Outcome::Rejected, Direction::Egress) => COUNTER_DENIED_OUT,
            (Outcome::Audited, Direction::Ingress) => COUNTER_AUDITED_IN,
            (Outcome::Audited, Direction::Egress) => COUNTER_AUDITED_OUT,
        };
        if self.outcome != Outcome::Rejected {
            rules.counter(total);
        }
        for family in FAMILIES {
            let chain = self.chain(family);
            let (with_ports, with_types) = (format!("{chain}_with_ports"), format!("{chain}_with_types"));
            for name in [&chain, &with_ports, &with_types] {
                rules.chain(name);
            }
            if self.outcome == Outcome::Denied {
                if family == Family::V6 {
                    // Every IPv6 host announces its groups to its link by itself (RFC 3810): stopped like the rest, but nothing that anybody tried.
                    rules.rule(&chain, [is_one_of(field("icmpv6", "type"), &MLD), is_number(field("ip6", "hoplimit"), 1), drop()]);
                }
                rules.rule_of(&chain, dhcp(self.direction, family));
                let audit = Self { outcome: Outcome::Audited, ..*self }.chain(family);
                rules.rule(&chain, [in_set(meta(MetaKey::Nfproto), SET_OBSERVE), goto(&audit)]);
            }
            // What is answered was counted and told apart where it was denied.
            if self.outcome != Outcome::Rejected {
                rules.rule(&chain, [count(total)]);
                by_protocol(rules, &chain, family, &with_ports, &with_types);
            }
            for (name, key) in [(&chain, DeniedKey::Protocol), (&with_ports, DeniedKey::Port), (&with_types, DeniedKey::Icmp)] {
                if self.outcome == Outcome::Denied {
                    let answered = name.replacen("deny", "reject", 1);
                    rules.rule(name, [rejected(self.direction, family, key), goto(&answered)]);
                }
                let set = DeniedSet { direction: self.direction, family, key, outcome: self.outcome }.name();
                rules.rule(name, [in_set(flow(family, key), &set), self.end()]);
                rules.rule(name, [update(&set, flow(family, key)), log(self.prefix(), self.group, SNAPLEN), self.end()]);
                rules.rule(name, [self.uncounted()]);
            }
        }
        self.add_uncounted(rules);
    }

    /// A packet that found no room in a set: told by NFLOG alone, within bounds.
    fn add_uncounted(&self, rules: &mut Rules) {
        let (overflow, prefix) = match (self.outcome, self.direction) {
            // There is no control sum of what was let through, so that this needs no place of its own.
            (Outcome::Audited, _) => return,
            // In the place of what is dropped.
            (Outcome::Rejected, _) => return,
            (Outcome::Denied, Direction::Ingress) => (COUNTER_OVERFLOW_IN, LOG_UNCOUNTED_IN),
            (Outcome::Denied, Direction::Egress) => (COUNTER_OVERFLOW_OUT, LOG_UNCOUNTED_OUT),
        };
        let chain = overflow_name(self.direction);
        rules.counter(overflow);
        rules.chain(&chain);
        rules.rule(&chain, [count(overflow)]);
        rules.rule(&chain, [limit(UNCOUNTED_PER_SECOND, UNCOUNTED_BURST), log(prefix, self.group, SNAPLEN)]);
        rules.rule(&chain, [drop()]);
    }

    fn uncounted(&self) -> Statement<'static> {
        match self.outcome {
            Outcome::Denied | Outcome::Rejected => goto(&overflow_name(self.direction)),
            Outcome::Audited => back(),
        }
    }

    fn end(&self) -> Statement<'static> {
        match self.outcome {
            Outcome::Denied => drop(),
            Outcome::Rejected => goto(ANSWER),
            Outcome::Audited => back(),
        }
    }

    fn prefix(&self) -> &'static str {
        match (self.outcome, self.direction) {
            (Outcome::Denied, Direction::Ingress) => LOG_DENY_IN,
            (Outcome::Denied, Direction::Egress) => LOG_DENY_OUT,
            (Outcome::Rejected, Direction::Ingress) => LOG_REJECT_IN,
            (Outcome::Rejected, Direction::Egress) => LOG_REJECT_OUT,
            (Outcome::Audited, Direction::Ingress) => LOG_AUDIT_IN,
            (Outcome::Audited, Direction::Egress) => LOG_AUDIT_OUT,
        }
    }

    fn chain(&self, family: Family) -> String {
        match self.outcome {
            Outcome::Denied => deny_name(self.direction, family),
            Outcome::Rejected => format!("reject_{}{}", direction_word(self.direction), family_digit(family)),
            Outcome::Audited => format!("audit_{}{}", direction_word(self.direction), family_digit(family)),
        }
    }
}

/// What a workload's own address needs to live passes whatever policy says: a DHCP client's broadcasts, and answers that come over the link and not
/// through a router. No other workload can send such an answer: its guard refuses it. It is asked where a packet is about to be denied,
/// so that it costs nobody else anything.
///
/// ```text
/// ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept                              # deny_out4
/// udp sport 67 udp dport 68 meta iifkind "bridge" meta oifkind "bridge" accept           # deny_in4
/// ip6 daddr ff02::1:2 udp sport 546 udp dport 547 accept                                 # deny_out6
/// udp sport 547 udp dport 546 meta iifkind "bridge" meta oifkind "bridge" accept         # deny_in6
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
            let [from, to, end] = ports(server, client);
            // The name of an interface's kind costs more than ports.
            [vec![from, to], over_the_link.to_vec(), vec![end]].concat()
        }
    }
}

fn overflow_name(direction: Direction) -> String {
    format!("deny_{}_uncounted", direction_word(direction))
}

/// `ip daddr . ip saddr . meta l4proto . th dport @in4_reject`, and the same without ports, and by type and code.
fn rejected(direction: Direction, family: Family, key: DeniedKey) -> Statement<'static> {
    let (local, peer) = match direction {
        Direction::Ingress => ("daddr", "saddr"),
        Direction::Egress => ("saddr", "daddr"),
    };
    let mut fields = vec![field(ip(family), local), field(ip(family), peer)];
    let shape = match key {
        DeniedKey::Port => {
            fields.extend([l4proto(), field("th", "dport")]);
            Shape::Reject
        }
        DeniedKey::Icmp => {
            fields.extend([field(icmp_header(family), "type"), field(icmp_header(family), "code")]);
            Shape::RejectIcmp
        }
        // Such an element spans every port, so any two bytes will do.
        DeniedKey::Protocol => {
            fields.extend([l4proto(), field("th", "sport")]);
            Shape::Reject
        }
    };
    in_set(concat(fields), &names::policy_set(SetId { direction, family, shape }))
}

pub(super) fn flow(family: Family, key: DeniedKey) -> Expression<'static> {
    let mut fields = vec![field(ip(family), "saddr"), field(ip(family), "daddr")];
    match key {
        DeniedKey::Port => fields.extend([l4proto(), field("th", "dport")]),
        DeniedKey::Icmp => fields.extend([field(icmp_header(family), "type"), field(icmp_header(family), "code")]),
        DeniedKey::Protocol => fields.push(l4proto()),
    }
    concat(fields)
}
