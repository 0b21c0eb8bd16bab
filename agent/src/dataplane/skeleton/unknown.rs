//! Unknown workload interfaces: what matches a name pattern and was not made known by its ifindex is denied, whatever it carries.
//! An interface that is made again under the same name has a new ifindex, so it is unknown from its first packet, and no agent
//! has to be there to say so.

use super::words::{Rules, accept, count, drop, in_set, is, jump, meta, not_in_set};
use crate::dataplane::config::DataplaneConfig;
use crate::dataplane::names::{COUNTER_UNKNOWN_IN, COUNTER_UNKNOWN_OUT, Layer, SET_KNOWN_IF};
use nftables::expr::MetaKey;
use nftables::stmt::Statement;
use nftables::types::NfHook;

/// Before defragmentation (-400), connection tracking (-200), br_netfilter and everybody else: an unknown interface makes no state, and
/// none of its fragments becomes part of somebody else's packet.
const FIRST: i32 = -450;

/// What leaves through an unknown interface, in `inet`.
const CHAIN_OUT: &str = "unknown_out";

/// In `inet` and `bridge`:
///
/// ```text
/// chain unknown_interface_in {
///     type filter hook prerouting priority -450; policy accept;
///     iif @known_if accept
///     iifname "veth*" iif != @known_if counter name unknown_interface_in drop
/// }
/// ```
///
/// and on the way out, in `bridge` at its postrouting hook, where the guards come first ([`super::guard::to_workload`]):
///
/// ```text
/// chain unknown_interface_out {
///     type filter hook postrouting priority -450; policy accept;
///     ...
///     oifname "veth*" oif != @known_if counter name unknown_interface_out drop
/// }
/// ```
///
/// in `inet` from the first rule of `forward` and `output` ([`leaves_through_unknown`]), which every packet on its way out goes through: a hook of
/// its own would cost more than the lookup.
///
/// ```text
/// chain unknown_out {
///     oifname "veth*" counter name unknown_interface_out drop
/// }
/// ```
///
/// In `arp`, which has no other hooks, `input` and `output`. Known interfaces leave with the first lookup.
pub(super) fn add(rules: &mut Rules, layer: Layer, config: &DataplaneConfig) {
    let (enters, leaves) = match layer {
        Layer::Inet | Layer::Bridge => (NfHook::Prerouting, NfHook::Postrouting),
        Layer::Arp => (NfHook::Input, NfHook::Output),
        // Its hooks are bound to devices, not to patterns (nft 1.0.6 never ends listing a chain of a device prefix).
        Layer::Netdev => return,
    };
    for (chain, hook, name, index) in
        [(COUNTER_UNKNOWN_IN, enters, MetaKey::Iifname, MetaKey::Iif), (COUNTER_UNKNOWN_OUT, leaves, MetaKey::Oifname, MetaKey::Oif)]
    {
        rules.counter(chain);
        if layer == Layer::Inet && chain == COUNTER_UNKNOWN_OUT {
            rules.chain(CHAIN_OUT);
            for pattern in &config.interface_patterns {
                rules.rule(CHAIN_OUT, [is(meta(name), pattern.as_str()), count(chain), drop()]);
            }
            continue;
        }
        rules.base_chain(chain, hook, FIRST);
        if layer == Layer::Bridge && chain == COUNTER_UNKNOWN_OUT {
            for rule in super::guard::first_at_the_way_out() {
                rules.rule_of(chain, rule);
            }
        } else {
            rules.rule(chain, [in_set(meta(index), SET_KNOWN_IF), accept()]);
        }
        // A rule per pattern: nft 1.0.6 has no wildcards in anonymous sets that it could list again.
        for pattern in &config.interface_patterns {
            rules.rule(chain, [is(meta(name), pattern.as_str()), not_in_set(meta(index), SET_KNOWN_IF), count(chain), drop()]);
        }
    }
}

/// `oif != @known_if jump unknown_out`, in the chains of `inet`.
pub(super) fn leaves_through_unknown() -> [Statement<'static>; 2] {
    [not_in_set(meta(MetaKey::Oif), SET_KNOWN_IF), jump(CHAIN_OUT)]
}
