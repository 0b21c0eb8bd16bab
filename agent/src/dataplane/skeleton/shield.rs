//! The shield: in a denied flood, what is known to be denied is dropped before anything else is done with it.
//!
//! A denied packet of a known flow costs some 7 us, most of it defragmentation, connection tracking and the way to the chain that denies: under a
//! flood these are taken from the traffic that is let through. So while the agent sees a flood, a packet with ports that is denied leaves both its ends in
//! `shield_in4` for four seconds, and that is asked first of all. What it holds is counted where it would be counted behind it, and dropped.
//!
//! These chains are whole by themselves, and nothing leads to them: the rules that do come and go ([`crate::dataplane::shortcut`]).
//!
//! ```text
//! chain unknown_interface_in {                         # prerouting, before everything
//!     jump shield_in                                   # (*)
//!     ...
//! }
//! chain deny_in4_with_ports {
//!     ...                                              # what is answered leaves
//!     jump shield_fill_in4                             # (*)
//!     ...
//! }
//! chain opened_forward {                               # (*)
//!     type filter hook forward priority filter - 9; policy accept;
//!     jump opens
//! }
//! ```
//!
//! What must not be: that anything is refused which policy lets through. The verdict of a packet is one of its ends, as long as policy stays. So
//!
//! - the two rules with a star are away while a generation is committed and while the node observes, and when they come again the sets are empty;
//! - a packet that belongs to a connection passes whatever it holds. For TCP its flags tell: only what asks for a connection is dropped. For other
//!   protocols an answer looks like the packets that were denied before the connection was begun from the other end: so what is let through
//!   and is not established leaves its answer in `opened4` at a hook of its own behind policy, before its connection is confirmed. From then on the answer is
//!   judged, and what the shield held or was given meanwhile is gone before `opened4` is;
//! - a fragment goes on: without its first the others would wait in the kernel, which has room for few;
//! - an answer of a DHCP server goes on, whose verdict depends on more than its ends.

use super::accounting::flow;
use super::cut::{answer, itself};
use super::policy::WITH_PORTS;
use super::words::{
    Rules, accept, add as put, back, count, drop, field, in_set, is, is_established, is_fragment4, is_fragment6, is_midstream, is_not,
    is_number, is_one_of, jump, l4proto, update,
};
use crate::dataplane::names::{
    COUNTER_DENIED_IN, COUNTER_DENIED_OUT, DIRECTIONS, DeniedKey, DeniedSet, FAMILIES, Outcome, direction_word, family_digit, opened,
    shield,
};
use firebreak_policy::model::{Direction, Family};

/// What a rule that comes and goes leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::dataplane) enum Part {
    /// Whether a packet's like was denied in this direction.
    Ask(Direction),
    /// That it is.
    Fill(Direction, Family),
    /// That something else was let through.
    Opens,
}

/// The chain's name.
pub(in crate::dataplane) fn chain(part: Part) -> String {
    match part {
        Part::Ask(direction) => format!("shield_{}", direction_word(direction)),
        Part::Fill(direction, family) => format!("shield_fill_{}{}", direction_word(direction), family_digit(family)),
        Part::Opens => "opens".to_owned(),
    }
}

/// Where denied packets with ports are led on to be remembered: the chain, and how many of its rules stand before. They say what is answered.
pub(in crate::dataplane) fn fill_place(direction: Direction, family: Family) -> (&'static str, usize) {
    let chain = match (direction, family) {
        (Direction::Ingress, Family::V4) => "deny_in4_with_ports",
        (Direction::Ingress, Family::V6) => "deny_in6_with_ports",
        (Direction::Egress, Family::V4) => "deny_out4_with_ports",
        (Direction::Egress, Family::V6) => "deny_out6_with_ports",
    };
    (chain, 1)
}

/// ```text
/// chain shield_in {
///     tcp flags & (fin | syn | rst | ack) != syn return      # connections that there are do not pay for the lookup
///     ip saddr . th sport . ip daddr . th dport . meta l4proto @shield_in4 jump shielded_in4
///     ip6 saddr . th sport . ip6 daddr . th dport . meta l4proto @shield_in6 jump shielded_in6
/// }
/// chain shielded_in4 {
///     ip frag-off & 0x3fff != 0 return
///     meta l4proto != tcp ip saddr . th sport . ip daddr . th dport . meta l4proto @opened4 return
///     ip saddr . ip daddr . meta l4proto . th dport @denied_in4 counter name denied_in drop
/// }
/// chain shield_fill_in4 {
///     udp sport 67 udp dport 68 return
///     add @shield_in4 { ip saddr . th sport . ip daddr . th dport . meta l4proto }
/// }
/// chain opens {
///     ct state established accept
///     meta l4proto tcp accept
///     meta l4proto { udp, dccp, sctp, udplite } update @opened4 { ip daddr . th dport . ip saddr . th sport . meta l4proto }
///     ...
/// }
/// ```
pub(super) fn add(rules: &mut Rules) {
    for direction in DIRECTIONS {
        let ask = chain(Part::Ask(direction));
        rules.chain(&ask);
        rules.rule(&ask, [is_midstream(), back()]);
        for family in FAMILIES {
            let shielded = format!("shielded_{}{}", direction_word(direction), family_digit(family));
            let (set, fill) = (shield(direction, family), chain(Part::Fill(direction, family)));
            rules.chain(&shielded);
            rules.chain(&fill);
            rules.rule(&ask, [in_set(itself(family), &set), jump(&shielded)]);

            rules.rule(&shielded, [if family == Family::V4 { is_fragment4() } else { is_fragment6() }, back()]);
            rules.rule(&shielded, [is_not(l4proto(), "tcp"), in_set(itself(family), &opened(family)), back()]);
            let denied = DeniedSet { direction, family, key: DeniedKey::Port, outcome: Outcome::Denied }.name();
            rules.rule(&shielded, [in_set(flow(family, DeniedKey::Port), &denied), count(total(direction)), drop()]);

            if direction == Direction::Ingress {
                let (server, client) = if family == Family::V4 { (67, 68) } else { (547, 546) };
                rules.rule(&fill, [is_number(field("udp", "sport"), server), is_number(field("udp", "dport"), client), back()]);
            }
            rules.rule(&fill, [put(&set, itself(family))]);
        }
    }
    let opens = chain(Part::Opens);
    rules.chain(&opens);
    rules.rule(&opens, [is_established(), accept()]);
    rules.rule(&opens, [is(l4proto(), "tcp"), accept()]);
    for family in FAMILIES {
        rules.rule(&opens, [is_one_of(l4proto(), &WITH_PORTS[1..]), update(&opened(family), answer(family))]);
    }
}

fn total(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => COUNTER_DENIED_IN,
        Direction::Egress => COUNTER_DENIED_OUT,
    }
}
