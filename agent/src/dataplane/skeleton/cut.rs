//! Connections that were cut: the label on their entries, and what keeps them from coming back when somebody deletes the entry.

use super::policy::{WITH_PORTS, allows_with_ports, ip, nfproto, set};
use super::words::{
    Rules, accept, back, concat, count, dispatch, drop, field, goto, has_no_label, in_set, is_direction, is_established, is_not, is_number,
    is_opening, jump, l4proto, look_up, meta, not_in_set, prohibit, reset, set_label, to_goto, to_jump, update,
};
use crate::dataplane::names::{self, COUNTER_CUT, FAMILIES, SET_MIDSTREAM, SET_OBSERVE, family_digit, revoked};
use firebreak_policy::kernel_sets::Shape;
use firebreak_policy::model::{Direction, Family};
use nftables::expr::{Expression, MetaKey};
use nftables::stmt::Statement;

/// The hooks that judge.
const HOOKS: [&str; 3] = ["forward", "input", "output"];

/// The chain that a packet in the middle of a TCP connection without an entry goes through at a hook.
pub(super) fn midstream_name(hook: &str) -> String {
    format!("midstream_{hook}")
}

/// ```text
/// chain forward {
///     ...
///     ct state established ct label & 127 != 127 accept
///     ct state != new jump state_forward               # from where what is established goes to cut
///     ...
/// }
/// chain cut {
///     meta nfproto @observe accept
///     counter name cut
///     ct label set 127
///     meta nfproto vmap { ipv4 : jump cut4, ipv6 : jump cut6 }
///     tcp flags & (fin | syn | rst | ack) == syn drop  # another connection from the same port, perhaps allowed: it asks again
///     meta l4proto tcp reject with tcp reset           # both ends learn it with their next packet
///     reject with icmpx admin-prohibited
/// }
/// chain cut4 {
///     meta l4proto vmap { tcp : goto cut4_with_ports, ... }
/// }
/// chain cut4_with_ports {
///     ct direction original update @revoked4 { ip daddr . th dport . ip saddr . th sport . meta l4proto }
///     ct direction reply update @revoked4 { ip saddr . th sport . ip daddr . th dport . meta l4proto }
/// }
/// ```
/// A port that is used again while conntrack keeps the cut connection meets its label. If policy allows the new connection the label is taken away
/// moments after the commit, so the attempt is dropped, as policy drops one that it forbids, and not answered.
/// The label is set already where it is set; kernels before 6.18 keep room for labels in new entries only if some rule sets one.
/// `revoked4` holds what the end that did not begin the connection sends.
/// The agent sets the label where a newer generation forbids the connection. What every packet of an open connection pays is one rule.
pub(super) fn add(rules: &mut Rules, label: u8) {
    rules.counter(COUNTER_CUT);
    rules.chain("cut");
    // What policy forbids is let through while the node observes; the label stays, so that it ends with that.
    rules.rule("cut", [in_set(meta(MetaKey::Nfproto), SET_OBSERVE), accept()]);
    rules.rule("cut", [count(COUNTER_CUT)]);
    rules.rule("cut", [set_label(label)]);
    let families = FAMILIES.map(|family| (nfproto(family), to_jump(&format!("cut{}", family_digit(family)))));
    rules.rule("cut", [dispatch(meta(MetaKey::Nfproto), families.to_vec())]);
    rules.rule("cut", [is_opening(), drop()]);
    rules.rule("cut", [reset()]);
    rules.rule("cut", [prohibit()]);
    for hook in HOOKS {
        midstream(rules, hook);
    }
    for family in FAMILIES {
        remembered(rules, family);
        again(rules, family);
        Reversed { purpose: Purpose::Midstream, family }.add(rules);
        Reversed { purpose: Purpose::Revoked, family }.add(rules);
    }
}

/// What a packet of an established connection that is not cut meets at a hook.
pub(super) fn of_established(label: u8) -> [Statement<'static>; 3] {
    [is_established(), has_no_label(label), accept()]
}

fn remembered(rules: &mut Rules, family: Family) {
    let chain = format!("cut{}", family_digit(family));
    let with_ports = format!("{chain}_with_ports");
    rules.chain(&chain);
    rules.chain(&with_ports);
    rules.rule(&chain, [dispatch(l4proto(), WITH_PORTS.iter().map(|name| (*name, to_goto(&with_ports))).collect())]);
    rules.rule(&with_ports, [is_direction("original"), update(&revoked(family), answer(family))]);
    rules.rule(&with_ports, [is_direction("reply"), update(&revoked(family), itself(family))]);
}

/// ```text
/// chain cut_again4 {
///     meta nfproto @observe accept
///     counter name cut
///     update @revoked4 { ip saddr . th sport . ip daddr . th dport . meta l4proto } drop
///     drop
/// }
/// ```
fn again(rules: &mut Rules, family: Family) {
    let chain = again_name(family);
    rules.chain(&chain);
    rules.rule(&chain, [in_set(meta(MetaKey::Nfproto), SET_OBSERVE), accept()]);
    rules.rule(&chain, [count(COUNTER_CUT)]);
    rules.rule(&chain, [update(&revoked(family), itself(family)), drop()]);
    rules.rule(&chain, [drop()]);
}

fn again_name(family: Family) -> String {
    format!("cut_again{}", family_digit(family))
}

/// ```text
/// chain midstream_forward {
///     meta l4proto != @midstream_allowed goto stateless
///     meta nfproto vmap { ipv4 : goto midstream_forward4, ipv6 : goto midstream_forward6 }
/// }
/// ```
/// Only for a while after a first install does TCP pass that is older than its entry: if policy allows either orientation, for nobody
/// knows who began it, and if it is not one that was cut. The agent judges what passed so like other established connections.
fn midstream(rules: &mut Rules, hook: &str) {
    let chain = midstream_name(hook);
    rules.chain(&chain);
    rules.rule(&chain, [not_in_set(l4proto(), SET_MIDSTREAM), goto("stateless")]);
    let families = FAMILIES.map(|family| (nfproto(family), to_goto(&format!("{chain}{}", family_digit(family)))));
    rules.rule(&chain, [dispatch(meta(MetaKey::Nfproto), families.to_vec())]);
}

/// `meta l4proto != tcp ip saddr . th sport . ip daddr . th dport . meta l4proto @revoked4 jump revoked_forward4`
///
/// For each new connection, before policy. TCP does not need it: what cannot begin a connection is refused.
pub(super) fn revoked_guard(family: Family, hook: &str) -> [Statement<'static>; 3] {
    let chain = format!("revoked_{hook}{}", family_digit(family));
    [is_not(l4proto(), "tcp"), in_set(itself(family), &revoked(family)), jump(&chain)]
}

/// The packet's own ends.
pub(super) fn itself(family: Family) -> Expression<'static> {
    ends(family, "saddr", "sport", "daddr", "dport")
}

/// The ends of its answer.
pub(super) fn answer(family: Family) -> Expression<'static> {
    ends(family, "daddr", "dport", "saddr", "sport")
}

fn ends(family: Family, from: &'static str, from_port: &'static str, to: &'static str, to_port: &'static str) -> Expression<'static> {
    concat([field(ip(family), from), field("th", from_port), field(ip(family), to), field("th", to_port), l4proto()])
}

/// Why a packet is judged as the answer to a connection from its other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// It passes if that connection is allowed, and is judged by itself otherwise.
    Midstream,
    /// It is refused unless that connection is allowed again, and is judged by itself then.
    Revoked,
}

/// The stages for a packet that may be an answer: source and destination change places, the service is at the source port.
///
/// ```text
/// chain midstream_forward4 {
///     ip saddr . th sport . ip daddr . th dport . meta l4proto @revoked4 goto revoked_forward4
///     ip daddr . th dport . ip saddr . th sport . meta l4proto @revoked4 return
///     ip daddr != @out4_isolated goto midstream_in4
///     ip daddr vmap @out4_segment_answers
///     ip daddr . ip saddr . meta l4proto . th sport @out4_peer_port goto midstream_in4
///     ...
/// }
/// chain beyond_answer_out4 {                           # where a segment's chain has let the egress stage be passed
///     iif 0 goto midstream_published4                  # at the output hook
///     goto midstream_in4
/// }
/// chain midstream_in4 {
///     ip saddr != @in4_isolated accept
///     ip saddr vmap @in4_segment_answers
///     ip saddr . ip daddr . meta l4proto . th sport @in4_peer_port accept
///     ...
/// }
/// chain midstream_input4 {                             # to the node: the connection would be the node's
///     ip saddr != @in4_host_judged accept
///     goto midstream_in4
/// }
/// chain midstream_output4 {                            # from the node: the connection would be one to the node
///     ip daddr != @out4_isolated goto midstream_published4
///     ip daddr . ip saddr . meta l4proto . th sport @out4_peer_port goto midstream_published4
///     ...
/// }
/// chain midstream_published4 {
///     ip saddr . meta l4proto . th sport @published4 ip daddr @workload4 goto midstream_published_allow4
///     accept
/// }
/// chain midstream_published_allow4 {
///     ip daddr . ip saddr . meta l4proto . th sport @published_allow4 accept
/// }
/// ```
/// `revoked_*` are the same with `return` in the place of `accept`, and `goto cut_again4` at the end of each, and without the chains of segments:
/// what those allow again the agent takes out of `revoked4` ([`crate::dataplane::Revoked`]). A packet that passed these chains would have to be
/// judged by itself behind them, and the kernel, which walks every way through chains and maps when rules come, would walk the fourth power of them.
/// The chains of segments are there for answers only as long as TCP may be picked up in the middle.
struct Reversed {
    purpose: Purpose,
    family: Family,
}

impl Reversed {
    fn add(&self, rules: &mut Rules) {
        for chain in ["forward", "in", "input", "output", "published", "published_allow"] {
            rules.chain(&self.name(chain));
        }
        if self.purpose == Purpose::Midstream {
            for hook in HOOKS {
                let cut = goto(&Self { purpose: Purpose::Revoked, family: self.family }.name(hook));
                rules.rule(&self.name(hook), [in_set(itself(self.family), &revoked(self.family)), cut]);
                rules.rule(&self.name(hook), [in_set(answer(self.family), &revoked(self.family)), back()]);
            }
        }
        let (source, destination) = (field(ip(self.family), "saddr"), field(ip(self.family), "daddr"));
        let port = field("th", "sport");
        for (chain, next) in [("forward", "in"), ("output", "published")] {
            self.stage(rules, chain, Direction::Egress, (&destination, &source), &|| goto(&self.name(next)));
        }
        if self.purpose == Purpose::Midstream {
            let beyond = names::beyond_answer(self.family);
            rules.chain(&beyond);
            // At the output hook there is no interface that it came by.
            rules.rule(&beyond, [is_number(meta(MetaKey::Iif), 0), goto(&self.name("published"))]);
            rules.rule(&beyond, [goto(&self.name("in"))]);
        }
        self.stage(rules, "in", Direction::Ingress, (&source, &destination), &|| self.allowed());

        rules.rule(&self.name("input"), [not_in_set(source.clone(), &self.set(Direction::Ingress, Shape::HostJudged)), self.allowed()]);
        rules.rule(&self.name("input"), [goto(&self.name("in"))]);

        let (published, allow) = (self.name("published"), self.name("published_allow"));
        let service = concat([source.clone(), l4proto(), port.clone()]);
        let local = in_set(destination.clone(), &names::workloads(self.family));
        rules.rule(&published, [in_set(service, &self.set(Direction::Egress, Shape::Published)), local, goto(&allow)]);
        rules.rule(&published, [self.allowed()]);
        let key = concat([destination, source, l4proto(), port]);
        rules.rule(&allow, [in_set(key, &self.set(Direction::Egress, Shape::PublishedAllow)), self.allowed()]);
        rules.rule(&allow, [self.denied()]);
    }

    fn stage(
        &self,
        rules: &mut Rules,
        chain: &str,
        direction: Direction,
        (local, peer): (&Expression<'static>, &Expression<'static>),
        allowed: &dyn Fn() -> Statement<'static>,
    ) {
        let chain = self.name(chain);
        rules.rule(&chain, [not_in_set(local.clone(), &self.set(direction, Shape::Isolated)), allowed()]);
        if self.purpose == Purpose::Midstream {
            rules.rule(&chain, [look_up(local.clone(), &names::segments(names::Asked::Answer, direction, self.family))]);
        }
        for (key, shape) in allows_with_ports(local, peer, &field("th", "sport")) {
            rules.rule(&chain, [in_set(key, &self.set(direction, shape)), allowed()]);
        }
        rules.rule(&chain, [self.denied()]);
    }

    fn allowed(&self) -> Statement<'static> {
        match self.purpose {
            Purpose::Midstream => accept(),
            Purpose::Revoked => back(),
        }
    }

    fn denied(&self) -> Statement<'static> {
        match self.purpose {
            Purpose::Midstream => back(),
            Purpose::Revoked => goto(&again_name(self.family)),
        }
    }

    fn name(&self, chain: &str) -> String {
        let purpose = match self.purpose {
            Purpose::Midstream => "midstream",
            Purpose::Revoked => "revoked",
        };
        format!("{purpose}_{chain}{}", family_digit(self.family))
    }

    fn set(&self, direction: Direction, shape: Shape) -> String {
        set(direction, self.family, shape)
    }
}
