//! The policy chains of `table inet firebreak`: which connections are judged, by which stage, in which order the sets are asked.
//! They are judged on their real ends: after destination NAT, before source NAT.

use super::words::{
    Rules, accept, back, concat, count, ct_state, dispatch, drop, field, goto, in_set, is, is_for_link_local, is_for_more_than_the_node,
    is_midstream, is_not, is_not_number, is_number, is_one_of, is_reset, jump, l4proto, look_up, meta, to_goto, to_jump,
};
use super::{cut, unknown};
use crate::dataplane::names::{self, COUNTER_OUT_OF_STATE, DIRECTIONS, FAMILIES, direction_word, family_digit};
use firebreak_policy::kernel_sets::{SetId, Shape};
use firebreak_policy::model::{Direction, Family};
use nftables::expr::{Expression, MetaKey, Verdict};
use nftables::types::NfHook;

/// `filter - 10`: after destination NAT, and before the host's own filter rules.
const BEFORE_FILTER: i32 = -10;

/// The protocols whose packets begin with ports, as nft calls them (`Protocol::has_ports`).
pub(super) const WITH_PORTS: [&str; 5] = ["tcp", "udp", "dccp", "sctp", "udplite"];

/// The hooks that judge, and how many of the rules of [`hooks`] stand before the one for established connections and before those that lead on by
/// family: where shortcuts are put.
pub(in crate::dataplane) const SHORTCUTS: [(&str, usize, usize); 3] = [("forward", 1, 4), ("input", 0, 3), ("output", 1, 4)];

/// Everything but the accounting, which the stages go to when they deny.
pub(super) fn add(rules: &mut Rules, label: u8) {
    hooks(rules, label);
    state(rules);
    for family in FAMILIES {
        judged(rules, family);
        published(rules, family);
        for direction in DIRECTIONS {
            stage(rules, direction, family);
        }
    }
}

/// ```text
/// chain forward {
///     type filter hook forward priority filter - 10; policy accept;
///     oif != @known_if jump unknown_out
///     ct state established ct label & 127 != 127 accept
///     ct state != new jump state_forward
///     tcp flags & (fin | syn | rst | ack) != syn jump midstream_forward
///     meta nfproto ipv4 goto forward4
///     meta nfproto ipv6 goto forward6
/// }
/// chain state_forward {
///     ct state vmap { established : goto cut, related : jump related, invalid : goto stateless, untracked : jump neighbours }
/// }
/// ```
/// and so for `input` (into the node, so without the first rule) and `output`. `invalid` is left alone on output: what the node
/// itself sends out of state is its answer to something that was let in. The chains `cut` and `midstream_*` are those of
/// [`super::cut`], `unknown_out` that of [`super::unknown`].
///
/// Rules that say the same for less come and go before some of these ([`crate::dataplane::shortcut`], and [`SHORTCUTS`] says where).
///
/// What every packet or every connection meets is measured (`bench`, row 5): a comparison costs a few nanoseconds, a lookup (a verdict map is
/// one) ten times that. So comparisons stand where there is a choice.
fn hooks(rules: &mut Rules, label: u8) {
    for (chain, hook, related, neighbours) in [
        ("forward", NfHook::Forward, "related", "neighbours"),
        ("input", NfHook::Input, "related_of_host", "neighbours_of_host"),
        ("output", NfHook::Output, "related_of_host", "neighbours_of_host"),
    ] {
        let state = format!("state_{chain}");
        rules.base_chain(chain, hook, BEFORE_FILTER);
        rules.chain(&state);
        let mut states = vec![("established", to_goto("cut")), ("related", to_jump(related)), ("untracked", to_jump(neighbours))];
        if chain != "output" {
            states.push(("invalid", to_goto("stateless")));
        }
        if chain != "input" {
            rules.rule(chain, unknown::leaves_through_unknown());
        }
        rules.rule(chain, cut::of_established(label));
        rules.rule(chain, [is_not(ct_state(), "new"), jump(&state)]);
        rules.rule(&state, [dispatch(ct_state(), states)]);
        rules.rule(chain, [is_midstream(), jump(&cut::midstream_name(chain))]);
        for family in FAMILIES {
            rules.rule(chain, [is(meta(MetaKey::Nfproto), nfproto(family)), goto(&format!("{chain}{}", family_digit(family)))]);
        }
    }
}

/// ```text
/// chain related {
///     meta l4proto { icmp, ipv6-icmp } accept          # errors about a connection; what a helper expects is judged
/// }
/// chain related_of_host {
///     meta l4proto { icmp, ipv6-icmp } accept
///     tcp flags & rst == rst accept                    # the kernel's own, by which a connection is cut
/// }
/// chain neighbours {
///     icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } ip6 hoplimit 255 accept
/// }
/// chain neighbours_of_host {
///     icmpv6 type { nd-*, mld* } accept
/// }
/// chain stateless {
///     ip saddr @workload4 goto out_of_state
///     ip daddr @workload4 goto out_of_state
///     ip6 saddr @workload6 goto out_of_state
///     ip6 daddr @workload6 goto out_of_state
/// }
/// chain out_of_state {
///     counter name out_of_state drop
/// }
/// ```
/// What belongs to no connection and cannot begin one is refused for local workloads in both directions, isolated or not: asked
/// only where somebody is isolated, a connection would live on through the other direction. It is counted and makes no flow
/// record: policy did not decide it.
fn state(rules: &mut Rules) {
    rules.counter(COUNTER_OUT_OF_STATE);
    for chain in ["related", "related_of_host", "neighbours", "neighbours_of_host", "stateless", "out_of_state"] {
        rules.chain(chain);
    }
    for chain in ["related", "related_of_host"] {
        rules.rule(chain, [is_one_of(l4proto(), &["icmp", "ipv6-icmp"]), accept()]);
    }
    rules.rule("related_of_host", [is_reset(), accept()]);
    // 255: it has not been routed (RFC 4861, section 7.1).
    let between = ["nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit"];
    rules.rule("neighbours", [is_one_of(field("icmpv6", "type"), &between), is_number(field("ip6", "hoplimit"), 255), accept()]);
    let with_host = [
        "nd-neighbor-solicit",
        "nd-neighbor-advert",
        "nd-router-solicit",
        "nd-router-advert",
        "mld-listener-query",
        "mld-listener-report",
        "mld-listener-done",
        "mld2-listener-report",
    ];
    rules.rule("neighbours_of_host", [is_one_of(field("icmpv6", "type"), &with_host), accept()]);
    for family in FAMILIES {
        for end in ["saddr", "daddr"] {
            rules.rule("stateless", [in_set(field(ip(family), end), &names::workloads(family)), goto("out_of_state")]);
        }
    }
    rules.rule("out_of_state", [count(COUNTER_OUT_OF_STATE), drop()]);
}

/// Where a hook leads for a new connection of which nothing is revoked.
pub(in crate::dataplane) fn judged_name(hook: &str, family: Family) -> String {
    format!("judged_{hook}{}", family_digit(family))
}

/// ```text
/// chain forward4 {
///     meta l4proto != tcp ip saddr . th sport . ip daddr . th dport . meta l4proto @revoked4 jump revoked_forward4
///     goto judged_forward4
/// }
/// chain judged_forward4 {                              # egress of a local source first, then ingress of a local destination
///     ip saddr . ip daddr . meta l4proto . th dport @out4_peer_port goto arrives4
///     ip saddr @out4_isolated jump out4
///     goto arrives4
/// }
/// chain arrives4 {
///     ip daddr . ip saddr . meta l4proto . th dport @in4_peer_port accept
///     ip daddr @in4_isolated goto in4
/// }
/// chain judged_input4 {                                # to the node; what is published there leads on to a workload
///     ip saddr . ip daddr . meta l4proto . th dport @out4_peer_port goto reaches_node4
///     ip saddr @out4_isolated jump out4
///     goto reaches_node4
/// }
/// chain reaches_node4 {
///     ip daddr . meta l4proto . th dport @published4 ip saddr @workload4 goto published4
///     ip saddr @workload4 fib daddr type != local jump odd_address4
/// }
/// chain odd_address4 {                                 # a relay that listens on every address takes what comes for these as well
///     udp sport 68 udp dport 67 return                 # (546 and 547)
///     meta l4proto { tcp, udp, dccp, sctp, udplite } goto deny_in4
/// }
/// chain beyond_out4 {                                  # where a segment's chain has let the egress stage be passed
///     oif != 0 jump arrives4
///     oif 0 jump reaches_node4                         # at the input hook
///     accept
/// }
/// chain judged_output4 {                               # the own node gets in unless it is judged too
///     ip daddr @in4_host_judged goto arrives4
/// }
/// ```
/// While no connection is cut nothing is revoked, and the hooks lead to `judged_*` at once ([`crate::dataplane::shortcut`]).
/// An element of `peer_port` lets a packet pass whether or not its workload is isolated, so it is asked first: what is allowed by one pays for
/// one lookup in each direction. Protocols without ports are in no such element, whatever stands where the port would be.
fn judged(rules: &mut Rules, family: Family) {
    let digit = family_digit(family);
    let [forward, input, output] = ["forward", "input", "output"].map(|hook| judged_name(hook, family));
    let (arrives, reaches_node) = (format!("arrives{digit}"), format!("reaches_node{digit}"));
    let (source, destination) = (field(ip(family), "saddr"), field(ip(family), "daddr"));
    let (ingress, egress) = (stage_name(Direction::Ingress, family), stage_name(Direction::Egress, family));
    let isolated_in = set(Direction::Ingress, family, Shape::Isolated);
    let isolated_out = set(Direction::Egress, family, Shape::Isolated);
    for chain in [&forward, &input, &output, &arrives, &reaches_node] {
        rules.chain(chain);
    }
    for (hook, judged) in [("forward", &forward), ("input", &input), ("output", &output)] {
        let chain = format!("{hook}{digit}");
        rules.chain(&chain);
        rules.rule(&chain, cut::revoked_guard(family, hook));
        rules.rule(&chain, [goto(judged)]);
    }
    let exact = |local: &Expression<'static>, peer: &Expression<'static>, direction| {
        let key = concat([local.clone(), peer.clone(), l4proto(), field("th", "dport")]);
        in_set(key, &set(direction, family, Shape::PeerPort))
    };
    for (chain, next) in [(&forward, &arrives), (&input, &reaches_node)] {
        rules.rule(chain, [exact(&source, &destination, Direction::Egress), goto(next)]);
        rules.rule(chain, [in_set(source.clone(), &isolated_out), jump(&egress)]);
        rules.rule(chain, [goto(next)]);
    }
    rules.rule(&arrives, [exact(&destination, &source, Direction::Ingress), accept()]);
    rules.rule(&arrives, [in_set(destination.clone(), &isolated_in), goto(&ingress)]);
    let beyond = names::beyond_egress(family);
    rules.chain(&beyond);
    // At the input hook there is no interface to leave by.
    rules.rule(&beyond, [is_not_number(meta(MetaKey::Oif), 0), jump(&arrives)]);
    rules.rule(&beyond, [is_number(meta(MetaKey::Oif), 0), jump(&reaches_node)]);
    rules.rule(&beyond, [accept()]);

    let service = concat([destination.clone(), l4proto(), field("th", "dport")]);
    let published = set(Direction::Egress, family, Shape::Published);
    let local = || in_set(field(ip(family), "saddr"), &names::workloads(family));
    rules.rule(&reaches_node, [in_set(service, &published), local(), goto(&published)]);
    let odd = format!("odd_address{digit}");
    rules.rule(&reaches_node, [local(), is_for_more_than_the_node(), jump(&odd)]);
    let (client, server) = match family {
        Family::V4 => (68, 67),
        Family::V6 => {
            // An interface has one of its own, which is in no set.
            rules.rule(&reaches_node, [local(), is_for_link_local(), jump(&odd)]);
            (546, 547)
        }
    };
    rules.chain(&odd);
    rules.rule(&odd, [is_number(field("udp", "sport"), client), is_number(field("udp", "dport"), server), back()]);
    rules.rule(&odd, [is_one_of(l4proto(), &WITH_PORTS), goto(&deny_name(Direction::Ingress, family))]);

    let host_judged = set(Direction::Ingress, family, Shape::HostJudged);
    rules.rule(&output, [in_set(destination, &host_judged), goto(&arrives)]);
}

/// ```text
/// chain published4 {
///     ip saddr . ip daddr . meta l4proto . th dport @published_allow4 accept
///     goto deny_in4
/// }
/// ```
fn published(rules: &mut Rules, family: Family) {
    let chain = set(Direction::Egress, family, Shape::Published);
    rules.chain(&chain);
    let key = concat([field(ip(family), "saddr"), field(ip(family), "daddr"), l4proto(), field("th", "dport")]);
    rules.rule(&chain, [in_set(key, &set(Direction::Egress, family, Shape::PublishedAllow)), accept()]);
    rules.rule(&chain, [goto(&deny_name(Direction::Ingress, family))]);
}

/// One stage, for what `peer_port` has not allowed; `return` is "this direction allows it". A segment's own chain says it by another verdict
/// (`accept`, on egress `goto beyond_out4`): what falls through it, as a packet does that was under way while it was made, is not allowed by it.
///
/// ```text
/// chain in4 {
///     ip daddr vmap @in4_segment
///     ...                                                            # by protocol ([`by_protocol`])
///     ip daddr . ip saddr @in4_peer return
///     ip daddr . ip saddr . meta l4proto @in4_peer_protocol return
///     ip daddr . ip saddr . meta l4proto . th sport @in4_range return
///     goto deny_in4
/// }
/// chain in4_with_ports {
///     ip daddr . ip saddr @in4_peer return
///     ip daddr . ip saddr . meta l4proto @in4_peer_protocol return
///     ip daddr . meta l4proto . th dport @in4_port return
///     ip daddr . ip saddr . meta l4proto . th dport @in4_range return
///     goto deny_in4
/// }
/// chain in4_with_types {
///     ip daddr . ip saddr . icmp type . icmp code @in4_peer_icmp return
///     ip daddr . ip saddr @in4_peer return
///     ip daddr . ip saddr . meta l4proto @in4_peer_protocol return
///     ip daddr . ip saddr . icmp type . icmp code @in4_icmp_range return
///     goto deny_in4
/// }
/// ```
fn stage(rules: &mut Rules, direction: Direction, family: Family) {
    let name = stage_name(direction, family);
    let (with_ports, with_types) = (format!("{name}_with_ports"), format!("{name}_with_types"));
    let (local, peer) = match direction {
        Direction::Ingress => (field(ip(family), "daddr"), field(ip(family), "saddr")),
        Direction::Egress => (field(ip(family), "saddr"), field(ip(family), "daddr")),
    };
    let set = |shape| set(direction, family, shape);
    let ends = || vec![local.clone(), peer.clone()];
    let with = |more: Vec<Expression<'static>>| concat([ends(), more].concat());
    let allow = |key: Expression<'static>, shape: Shape| [in_set(key, &set(shape)), back()];
    let deny = || [goto(&deny_name(direction, family))];
    for chain in [&name, &with_ports, &with_types] {
        rules.chain(chain);
    }

    // First: where there is such a chain it holds what is asked most, ranges and large groups.
    rules.rule(&name, [look_up(local.clone(), &names::segments(names::Asked::Packet, direction, family))]);
    by_protocol(rules, &name, family, &with_ports, &with_types);
    rules.rule(&name, allow(with(vec![]), Shape::Peer));
    rules.rule(&name, allow(with(vec![l4proto()]), Shape::PeerProtocol));
    // Such an element spans every port, so any two bytes will do; the first two are there in the shortest packet that says
    // anything. (nft takes no constant in a concatenation.)
    rules.rule(&name, allow(with(vec![l4proto(), field("th", "sport")]), Shape::Range));
    rules.rule(&name, deny());

    // The first has been asked.
    for (key, shape) in allows_with_ports(&local, &peer, &field("th", "dport")).into_iter().skip(1) {
        rules.rule(&with_ports, allow(key, shape));
    }
    rules.rule(&with_ports, deny());

    let message = || vec![field(icmp_header(family), "type"), field(icmp_header(family), "code")];
    rules.rule(&with_types, allow(with(message()), Shape::PeerIcmp));
    rules.rule(&with_types, allow(with(vec![]), Shape::Peer));
    rules.rule(&with_types, allow(with(vec![l4proto()]), Shape::PeerProtocol));
    rules.rule(&with_types, allow(with(message()), Shape::IcmpRange));
    rules.rule(&with_types, deny());
}

/// ```text
/// meta l4proto tcp goto in4_with_ports
/// meta l4proto udp goto in4_with_ports
/// meta l4proto vmap { dccp : goto in4_with_ports, ..., icmp : goto in4_with_types }
/// ```
/// What is asked most by comparisons, which cost a third of a lookup.
pub(super) fn by_protocol(rules: &mut Rules, chain: &str, family: Family, with_ports: &str, with_types: &str) {
    let [tcp, udp, others @ ..] = WITH_PORTS;
    for name in [tcp, udp] {
        rules.rule(chain, [is(l4proto(), name), goto(with_ports)]);
    }
    let mut kinds: Vec<(&'static str, Verdict<'static>)> = others.iter().map(|name| (*name, to_goto(with_ports))).collect();
    kinds.push((icmp_protocol(family), to_goto(with_types)));
    rules.rule(chain, [dispatch(l4proto(), kinds)]);
}

/// What allows a packet with ports, in the order in which it is asked; `port` is the service's.
pub(super) fn allows_with_ports(
    local: &Expression<'static>,
    peer: &Expression<'static>,
    port: &Expression<'static>,
) -> [(Expression<'static>, Shape); 5] {
    let with = |more: &[Expression<'static>]| concat([local, peer].into_iter().chain(more).cloned());
    [
        (with(&[l4proto(), port.clone()]), Shape::PeerPort),
        (with(&[]), Shape::Peer),
        (with(&[l4proto()]), Shape::PeerProtocol),
        (concat([local.clone(), l4proto(), port.clone()]), Shape::Port),
        (with(&[l4proto(), port.clone()]), Shape::Range),
    ]
}

pub(super) fn set(direction: Direction, family: Family, shape: Shape) -> String {
    names::policy_set(SetId { direction, family, shape })
}

/// `in4`, `out6`.
fn stage_name(direction: Direction, family: Family) -> String {
    format!("{}{}", direction_word(direction), family_digit(family))
}

/// `deny_in4`, `deny_out6`.
pub(super) fn deny_name(direction: Direction, family: Family) -> String {
    format!("deny_{}", stage_name(direction, family))
}

/// The header that nft reads addresses from.
pub(super) fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The header that nft reads type and code from.
pub(super) fn icmp_header(family: Family) -> &'static str {
    match family {
        Family::V4 => "icmp",
        Family::V6 => "icmpv6",
    }
}

/// The name of the family's ICMP as a protocol.
pub(super) fn icmp_protocol(family: Family) -> &'static str {
    match family {
        Family::V4 => "icmp",
        Family::V6 => "ipv6-icmp",
    }
}

pub(super) fn nfproto(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}
