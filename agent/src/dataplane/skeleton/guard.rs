//! The guards: nothing leaves a workload under another's name, and nothing reaches one that is not for it.
//!
//! From a workload, in `table netdev firebreak`, at the ingress hook of its own interface, whatever the topology: a base chain per
//! interface ([`crate::dataplane::ports`]) jumps to [`CHAIN_FROM_WORKLOAD`]. It is before the bridge learns a MAC address and before
//! anybody looks at the frame.
//!
//! To a workload, in `table bridge firebreak`, where frames leave through a port: flooding and other people's broadcasts stop
//! there. Where packets are routed there is nothing to guard: the node sends to an interface what its own routing table says, in a frame of
//! its own making. That is one hook per packet less than an egress hook on every interface, and it works before kernel 5.16.

use super::words::{
    Rules, accept, back, concat, count, dispatch, drop, field, goto, in_set, is, is_above, is_for_a_group, is_for_one_station,
    is_not_number, is_number, is_number_of, is_one_of, jump, l4proto, log, meta, not_in_set, raw, to_goto, update,
};
use crate::dataplane::config::DataplaneConfig;
use crate::dataplane::names::{
    BoundForm, CHAIN_FROM_WORKLOAD, COUNTER_GUARD_IN, COUNTER_GUARD_OUT, COUNTER_GUARD_OVERFLOW, COUNTER_GUARD_QUIET, GuardReason,
    SET_GUARD_OUT,
};
use firebreak_policy::model::Family;
use nftables::expr::{Expression, MetaKey, PayloadBase};
use nftables::stmt::Statement;

/// Bytes of a frame that go to NFLOG: an IPv6 header, its extensions and the ports.
const SNAPLEN: u32 = 128;

/// The IPv4 header without options: version 4, five words.
const PLAIN_IPV4: u32 = 0x45;

/// An ARP packet is 28 bytes long, and 18 of padding make the shortest frame (RFC 826, IEEE 802.3): more is room to talk.
const ARP_MOST: u32 = 46;

/// Neighbour discovery needs 24 bytes and an option or two; more is room to talk.
const NEIGHBOUR_MOST: u32 = 64;

/// Hop-by-hop, routing, no next header, destination options, mobility, HIP, shim6: the extension headers that say something to somebody on the way or hide
/// what follows (RFC 7045). Fragments, ESP and AH pass, and every protocol above IP does.
const ODD_EXTENSIONS: [u32; 7] = [0, 43, 59, 60, 135, 139, 140];

/// A router's and a renumberer's messages and node information queries: 130 .. 132 and 143 are quiet before.
const ROUTER_MESSAGES: [u32; 15] = [130, 131, 132, 134, 137, 138, 139, 140, 141, 142, 143, 148, 149, 151, 152];

/// ```text
/// chain from_workload {
///     iif . ether saddr . ip saddr @bound4 @nh,0,8 0x45 @ll,7,1 0 ip protocol { tcp, udp } th sport != 67 accept
///     iif . ether saddr . ip6 saddr @bound6 @ll,7,1 0 ip6 nexthdr { tcp, udp } th sport != 547 accept
///     iif . ether saddr != @bound_mac goto refuse_mac
///     ether type vmap { ip : goto from4, ip6 : goto from6, arp : goto from_arp }
///     goto refuse_ethertype
/// }
/// ```
/// The first two rules are the way of nearly every packet: plain TCP and UDP from the workload's own addresses. `ether type` and not
/// `meta protocol`: a VLAN tag that the kernel has moved into the packet's metadata is still seen.
pub(super) fn from_workload(rules: &mut Rules, config: &DataplaneConfig) {
    for counter in [COUNTER_GUARD_IN, COUNTER_GUARD_OVERFLOW, COUNTER_GUARD_QUIET] {
        rules.counter(counter);
    }
    let chains = ["from4", "from4_own", "from4_icmp", "from6", "from6_own", "from6_icmp", "from6_neighbour", "from_arp", "quiet"];
    for chain in [CHAIN_FROM_WORKLOAD].into_iter().chain(chains) {
        rules.chain(chain);
    }
    refusals(rules, config);
    rules.rule("quiet", [count(COUNTER_GUARD_QUIET), drop()]);

    let first = CHAIN_FROM_WORKLOAD;
    let ports = || ["tcp", "udp"];
    rules.rule(
        first,
        [
            own(Family::V4),
            is_number(raw(PayloadBase::NH, 0, 8), PLAIN_IPV4),
            is_for_one_station(),
            is_one_of(field("ip", "protocol"), &ports()),
            is_not_number(field("th", "sport"), 67),
            accept(),
        ],
    );
    rules.rule(
        first,
        [
            own(Family::V6),
            is_for_one_station(),
            is_one_of(field("ip6", "nexthdr"), &ports()),
            is_not_number(field("th", "sport"), 547),
            accept(),
        ],
    );
    rules.rule(first, [not_in_set(concat([iif(), field("ether", "saddr")]), BoundForm::Mac.name()), refuse(GuardReason::Mac)]);
    let kinds = vec![("ip", to_goto("from4")), ("ip6", to_goto("from6")), ("arp", to_goto("from_arp"))];
    rules.rule(first, [dispatch(field("ether", "type"), kinds)]);
    rules.rule(first, [refuse(GuardReason::EtherType)]);
    from4(rules);
    from6(rules);
    from_arp(rules);
}

/// ```text
/// chain refuse_arp {
///     counter name guard_in
///     iif . ether type @guard_in_arp drop
///     update @guard_in_arp { iif . ether type } log prefix "firebreak guard arp" group 5 snaplen 128 drop
///     counter name guard_overflow drop
/// }
/// ```
/// As with denied flows: the element counts, only a new one logs.
fn refusals(rules: &mut Rules, config: &DataplaneConfig) {
    for reason in GuardReason::ALL {
        let (chain, set) = (refusal(reason), reason.set());
        let key = || concat([iif(), field("ether", "type")]);
        rules.chain(&chain);
        rules.rule(&chain, [count(COUNTER_GUARD_IN)]);
        rules.rule(&chain, [in_set(key(), &set), drop()]);
        rules.rule(&chain, [update(&set, key()), log(reason.log_prefix(), config.nflog_group, SNAPLEN), drop()]);
        rules.rule(&chain, [count(COUNTER_GUARD_OVERFLOW), drop()]);
    }
}

/// ```text
/// chain from4 {
///     ip protocol igmp goto quiet                                   # every host joins its groups by itself
///     iif . ether saddr . ip saddr @bound4 goto from4_own
///     ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 iif . @th,288,48 @bound_chaddr accept
///     goto refuse_address
/// }
/// chain from4_own {
///     @nh,0,8 != 0x45 goto refuse_options
///     ip daddr 255.255.255.255 udp sport 68 udp dport 67 iif . @th,288,48 @bound_chaddr accept
///     @ll,7,1 1 goto refuse_group                                   # a group's frame, whatever the packet's destination
///     ip protocol icmp goto from4_icmp
///     udp sport 67 udp dport 68 goto refuse_dhcp
///     accept
/// }
/// chain from4_icmp {
///     icmp type { redirect, router-advertisement, router-solicitation } goto refuse_router
///     icmp type != { destination-unreachable, source-quench, time-exceeded, parameter-problem } accept
///     iif . @th,192,32 @bound_quoted4 accept                        # about a packet that was sent to the workload
///     goto refuse_icmp_error
/// }
/// ```
/// What cannot be read (a later fragment, a packet that is cut off) does not match, so every check that lets something pass is one that
/// must match; but the later fragments of an own packet pass: the policy sees the packet put together.
fn from4(rules: &mut Rules) {
    rules.rule("from4", [is(field("ip", "protocol"), "igmp"), goto("quiet")]);
    rules.rule("from4", [own(Family::V4), goto("from4_own")]);
    let [to_all, from_client, to_server] = dhcp_client();
    rules.rule("from4", [is(field("ip", "saddr"), "0.0.0.0"), to_all, from_client, to_server, own_chaddr(), accept()]);
    rules.rule("from4", [refuse(GuardReason::Address)]);

    rules.rule("from4_own", [is_not_number(raw(PayloadBase::NH, 0, 8), PLAIN_IPV4), refuse(GuardReason::Options)]);
    let [to_all, from_client, to_server] = dhcp_client();
    rules.rule("from4_own", [to_all, from_client, to_server, own_chaddr(), accept()]);
    rules.rule("from4_own", [is_for_a_group(), refuse(GuardReason::Group)]);
    rules.rule("from4_own", [is(field("ip", "protocol"), "icmp"), goto("from4_icmp")]);
    let (from_server, to_client) = (is_number(field("udp", "sport"), 67), is_number(field("udp", "dport"), 68));
    rules.rule("from4_own", [from_server, to_client, refuse(GuardReason::Dhcp)]);
    rules.rule("from4_own", [accept()]);

    let routers = ["redirect", "router-advertisement", "router-solicitation"];
    rules.rule("from4_icmp", [is_one_of(field("icmp", "type"), &routers), refuse(GuardReason::Router)]);
    let errors = ["destination-unreachable", "source-quench", "time-exceeded", "parameter-problem"];
    rules.chain("from4_error");
    rules.rule("from4_icmp", [is_one_of(field("icmp", "type"), &errors), goto("from4_error")]);
    rules.rule("from4_icmp", [accept()]);
    let quoted = concat([iif(), raw(PayloadBase::TH, 192, 32)]);
    rules.rule("from4_error", [in_set(quoted, BoundForm::Quoted4.name()), accept()]);
    rules.rule("from4_error", [refuse(GuardReason::IcmpError)]);
}

/// ```text
/// chain from6 {
///     icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } goto quiet
///     iif . ether saddr . ip6 saddr @bound6 goto from6_own
///     ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit } goto from6_unspecified
///     goto refuse_address
/// }
/// chain from6_own {
///     ip6 nexthdr { 0, 43, 59, 60, 135, 139, 140 } goto refuse_options
///     meta l4proto ipv6-icmp goto from6_icmp
///     ip6 daddr ff02::1:2 udp sport 546 udp dport 547 accept        # a DHCP client (RFC 8415)
///     @ll,7,1 1 goto refuse_group
///     udp sport 547 udp dport 546 goto refuse_dhcp
///     accept
/// }
/// chain from6_icmp {
///     icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } goto from6_neighbour
///     icmpv6 type { nd-router-advert, nd-redirect, ... } goto refuse_router
///     @ll,7,1 1 goto refuse_group
///     icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } goto from6_error
///     accept
/// }
/// chain from6_error {
///     iif . @th,256,128 @bound_target6 accept
///     goto refuse_icmp_error
/// }
/// chain from6_neighbour {
///     ip6 hoplimit != 255 goto refuse_neighbour                     # RFC 4861, section 7.1
///     ip6 length > 64 goto refuse_neighbour
///     icmpv6 type { nd-neighbor-solicit, nd-router-solicit } accept # asks whom it likes
///     icmpv6 type nd-neighbor-advert iif . @th,64,128 @bound_target6 accept
///     goto refuse_neighbour
/// }
/// chain from6_unspecified {                                         # duplicate address detection (RFC 4862) of its own addresses
///     ip6 hoplimit != 255 goto refuse_neighbour
///     ip6 length > 64 goto refuse_neighbour
///     icmpv6 type nd-neighbor-solicit iif . @th,64,128 @bound_target6 accept
///     icmpv6 type nd-router-solicit accept
///     goto refuse_neighbour
/// }
/// ```
fn from6(rules: &mut Rules) {
    let kind = || field("icmpv6", "type");
    rules.chain("from6_error");
    rules.chain("from6_unspecified");
    let announcements = ["mld-listener-report", "mld-listener-done", "mld2-listener-report"];
    rules.rule("from6", [is_one_of(kind(), &announcements), goto("quiet")]);
    rules.rule("from6", [own(Family::V6), goto("from6_own")]);
    let before = ["nd-neighbor-solicit", "nd-router-solicit"];
    rules.rule("from6", [is(field("ip6", "saddr"), "::"), is_one_of(kind(), &before), goto("from6_unspecified")]);
    rules.rule("from6", [refuse(GuardReason::Address)]);

    rules.rule("from6_own", [is_number_of(field("ip6", "nexthdr"), &ODD_EXTENSIONS), refuse(GuardReason::Options)]);
    rules.rule("from6_own", [is(l4proto(), "ipv6-icmp"), goto("from6_icmp")]);
    let (from_client, to_server) = (is_number(field("udp", "sport"), 546), is_number(field("udp", "dport"), 547));
    rules.rule("from6_own", [is(field("ip6", "daddr"), "ff02::1:2"), from_client, to_server, accept()]);
    rules.rule("from6_own", [is_for_a_group(), refuse(GuardReason::Group)]);
    let (from_server, to_client) = (is_number(field("udp", "sport"), 547), is_number(field("udp", "dport"), 546));
    rules.rule("from6_own", [from_server, to_client, refuse(GuardReason::Dhcp)]);
    rules.rule("from6_own", [accept()]);

    let neighbours = ["nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit"];
    rules.rule("from6_icmp", [is_one_of(kind(), &neighbours), goto("from6_neighbour")]);
    rules.rule("from6_icmp", [is_number_of(kind(), &ROUTER_MESSAGES), refuse(GuardReason::Router)]);
    rules.rule("from6_icmp", [is_for_a_group(), refuse(GuardReason::Group)]);
    let errors = ["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"];
    rules.rule("from6_icmp", [is_one_of(kind(), &errors), goto("from6_error")]);
    rules.rule("from6_icmp", [accept()]);
    let quoted = concat([iif(), raw(PayloadBase::TH, 256, 128)]);
    rules.rule("from6_error", [in_set(quoted, BoundForm::Target6.name()), accept()]);
    rules.rule("from6_error", [refuse(GuardReason::IcmpError)]);

    for chain in ["from6_neighbour", "from6_unspecified"] {
        rules.rule(chain, [is_not_number(field("ip6", "hoplimit"), 255), refuse(GuardReason::Neighbour)]);
        rules.rule(chain, [is_above(field("ip6", "length"), NEIGHBOUR_MOST), refuse(GuardReason::Neighbour)]);
    }
    let own_target = || in_set(concat([iif(), raw(PayloadBase::TH, 64, 128)]), BoundForm::Target6.name());
    rules.rule("from6_neighbour", [is_one_of(kind(), &before), accept()]);
    rules.rule("from6_neighbour", [is(kind(), "nd-neighbor-advert"), own_target(), accept()]);
    rules.rule("from6_unspecified", [is(kind(), "nd-neighbor-solicit"), own_target(), accept()]);
    rules.rule("from6_unspecified", [is(kind(), "nd-router-solicit"), accept()]);
    for chain in ["from6_neighbour", "from6_unspecified"] {
        rules.rule(chain, [refuse(GuardReason::Neighbour)]);
    }
}

/// ```text
/// chain from_arp {
///     arp htype != 1 goto refuse_arp
///     arp ptype != ip goto refuse_arp
///     arp hlen != 6 goto refuse_arp
///     arp plen != 4 goto refuse_arp
///     meta length > 46 goto refuse_arp
///     iif . arp saddr ether . arp saddr ip @bound4 accept           # question, answer, announcement: of its own address
///     arp operation request arp saddr ip 0.0.0.0 iif . arp saddr ether . arp daddr ip @bound4 accept  # a probe (RFC 5227)
///     goto refuse_arp
/// }
/// ```
fn from_arp(rules: &mut Rules) {
    let arp = |name| field("arp", name);
    for (name, only) in [("htype", 1), ("ptype", 0x0800), ("hlen", 6), ("plen", 4)] {
        rules.rule("from_arp", [is_not_number(arp(name), only), refuse(GuardReason::Arp)]);
    }
    rules.rule("from_arp", [is_above(meta(MetaKey::Length), ARP_MOST), refuse(GuardReason::Arp)]);
    let bound = BoundForm::Address(Family::V4).name();
    rules.rule("from_arp", [in_set(concat([iif(), arp("saddr ether"), arp("saddr ip")]), bound), accept()]);
    let probe = in_set(concat([iif(), arp("saddr ether"), arp("daddr ip")]), bound);
    rules.rule("from_arp", [is(arp("operation"), "request"), is(arp("saddr ip"), "0.0.0.0"), probe, accept()]);
    rules.rule("from_arp", [refuse(GuardReason::Arp)]);
}

/// In the bridge table, behind what [`super::unknown`] has put there:
///
/// ```text
/// chain unknown_interface_out {
///     oif . ether daddr . ip daddr @bound4 accept
///     oif . ether daddr . ip6 daddr @bound6 ip6 nexthdr { tcp, udp } accept
///     oif @guarded_if goto to_workload
///     ...                                                            # unknown interfaces
/// }
/// chain to_workload {
///     oif . ether daddr . ip daddr @bound4 accept
///     oif . arp daddr ip @bound_ip4 accept                           # asks for it, or answers it
///     icmpv6 type { nd-router-advert, nd-redirect } goto refuse_out
///     icmpv6 type nd-neighbor-solicit oif . @th,64,128 @bound_target6 accept     # to a group, and about it
///     oif . ether daddr . ip6 daddr @bound6 accept
///     udp sport 67 udp dport 68 jump dhcp_answer
///     goto refuse_out
/// }
/// chain dhcp_answer {
///     oif . ether daddr @bound_mac accept
///     ip daddr 255.255.255.255 accept
/// }
/// chain refuse_out {
///     counter name guard_out
///     oif . ether type @guard_out_ports drop
///     update @guard_out_ports { oif . ether type } drop
///     drop
/// }
/// ```
/// What stops here is mostly flooding, so it is counted by port and not told.
pub(super) fn to_workload(rules: &mut Rules) {
    rules.counter(COUNTER_GUARD_OUT);
    for chain in ["to_workload", "dhcp_answer", "refuse_out"] {
        rules.chain(chain);
    }
    let kind = || field("icmpv6", "type");
    rules.rule("to_workload", [for_it(Family::V4), accept()]);
    rules.rule("to_workload", [in_set(concat([oif(), field("arp", "daddr ip")]), BoundForm::Ip4.name()), accept()]);
    rules.rule("to_workload", [is_one_of(kind(), &["nd-router-advert", "nd-redirect"]), goto("refuse_out")]);
    let about_it = in_set(concat([oif(), raw(PayloadBase::TH, 64, 128)]), BoundForm::Target6.name());
    rules.rule("to_workload", [is(kind(), "nd-neighbor-solicit"), about_it, accept()]);
    rules.rule("to_workload", [for_it(Family::V6), accept()]);
    let (from_server, to_client) = (is_number(field("udp", "sport"), 67), is_number(field("udp", "dport"), 68));
    rules.rule("to_workload", [from_server, to_client, jump("dhcp_answer")]);
    rules.rule("to_workload", [goto("refuse_out")]);

    rules.rule("dhcp_answer", [in_set(concat([oif(), field("ether", "daddr")]), BoundForm::Mac.name()), accept()]);
    rules.rule("dhcp_answer", [is(field("ip", "daddr"), "255.255.255.255"), accept()]);
    rules.rule("dhcp_answer", [back()]);

    let port = || concat([oif(), field("ether", "type")]);
    rules.rule("refuse_out", [count(COUNTER_GUARD_OUT)]);
    rules.rule("refuse_out", [in_set(port(), SET_GUARD_OUT), drop()]);
    rules.rule("refuse_out", [update(SET_GUARD_OUT, port()), drop()]);
    rules.rule("refuse_out", [drop()]);
}

/// The rules of a bridge's way out before those about unknown interfaces: the way of nearly every packet first.
pub(super) fn first_at_the_way_out() -> [Vec<Statement<'static>>; 3] {
    [
        vec![for_it(Family::V4), accept()],
        vec![for_it(Family::V6), is_one_of(field("ip6", "nexthdr"), &["tcp", "udp"]), accept()],
        vec![in_set(oif(), BoundForm::Guarded.name()), goto("to_workload")],
    ]
}

/// `oif . ether daddr . ip daddr @bound4`: the frame and the packet are both for the workload.
fn for_it(family: Family) -> Statement<'static> {
    let key = concat([oif(), field("ether", "daddr"), field(super::policy::ip(family), "daddr")]);
    in_set(key, BoundForm::Address(family).name())
}

/// `iif . ether saddr . ip saddr @bound4`: the frame and the packet are both from the workload.
fn own(family: Family) -> Statement<'static> {
    let key = concat([iif(), field("ether", "saddr"), field(super::policy::ip(family), "saddr")]);
    in_set(key, BoundForm::Address(family).name())
}

/// `ip daddr 255.255.255.255 udp sport 68 udp dport 67`
fn dhcp_client() -> [Statement<'static>; 3] {
    [is(field("ip", "daddr"), "255.255.255.255"), is_number(field("udp", "sport"), 68), is_number(field("udp", "dport"), 67)]
}

/// `iif . @th,288,48 @bound_chaddr`
fn own_chaddr() -> Statement<'static> {
    in_set(concat([iif(), raw(PayloadBase::TH, 288, 48)]), BoundForm::Chaddr.name())
}

fn iif() -> Expression<'static> {
    meta(MetaKey::Iif)
}

fn oif() -> Expression<'static> {
    meta(MetaKey::Oif)
}

fn refusal(reason: GuardReason) -> String {
    format!("refuse_{}", reason.word())
}

fn refuse(reason: GuardReason) -> Statement<'static> {
    goto(&refusal(reason))
}
