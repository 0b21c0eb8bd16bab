//! Unknown workload interfaces: what matches a name pattern and was not made known by its ifindex is denied, whatever it carries.
//! An interface that is made again under the same name has a new ifindex, so it is unknown from its first packet, and no agent
//! has to be there to say so.

use super::words::{Rules, accept, count, drop, in_set, is, meta, not_in_set};
use crate::dataplane::config::DataplaneConfig;
use crate::dataplane::names::{COUNTER_UNKNOWN_IN, COUNTER_UNKNOWN_OUT, Layer, SET_KNOWN_IF};
use nftables::expr::MetaKey;
use nftables::types::NfHook;

/// Before connection tracking (-200), br_netfilter and everybody else: an unknown interface makes no state.
const FIRST: i32 = -310;

/// In `inet` and `bridge`:
///
/// ```text
/// chain unknown_interface_in {
///     type filter hook prerouting priority -310; policy accept;
///     iif @known_if accept
///     iifname "veth*" iif != @known_if counter name unknown_interface_in drop
/// }
/// chain unknown_interface_out {
///     type filter hook postrouting priority -310; policy accept;
///     oif @known_if accept
///     oifname "veth*" oif != @known_if counter name unknown_interface_out drop
/// }
/// ```
///
/// and in `arp`, which has no other hooks, `input` and `output`. The first rule is for speed. At a bridge's way out the guards come
/// first ([`super::guard::to_workload`]): what is known there is judged by them.
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
