//! The rules of a guard that name an address of their interface themselves.

use crate::contents::generation;
use crate::frames::{ethernet, ipv4, send, udp};
use crate::install::open;
use crate::lab::{End, Lab, Topology};
use firebreak_agent::dataplane::names::GuardReason;
use firebreak_agent::dataplane::{Check, GuardReader, SkeletonState};
use firebreak_policy::kernel_sets::KernelSets;
use firebreak_policy::model::{Family, Protocol, Transport};
use std::net::IpAddr;

fn chain(lab: &Lab, interface: &str) -> String {
    lab.node.command("nft", &format!("list chain netdev firebreak port_{interface}"))
}

/// Frames from the IPv4 address of `a` that its guard refused for their address.
fn refused(lab: &Lab) -> u64 {
    let reading = lab.node.run(|| GuardReader::open().unwrap().read().unwrap().unwrap());
    let of_address = reading.counts.iter().filter(|count| (count.reason, count.ether_type) == (GuardReason::Address, 0x0800));
    of_address.map(|count| count.packets).sum()
}

/// The number of the ruleset's generation.
fn number(lab: &Lab) -> u32 {
    let said = generation(&lab.node);
    let digits: String = said.chars().rev().skip_while(|sign| !sign.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.chars().rev().collect::<String>().parse().unwrap()
}

#[test]
fn the_addresses_of_an_interface_are_rules_of_its_chain_that_change_with_its_elements_and_are_adopted() {
    for topology in [Topology::Routed, Topology::Bridged] {
        let lab = Lab::new(topology);
        let (mut dataplane, _) = open(&lab.node);
        let desired = lab.desired(KernelSets::default());
        dataplane.commit(&desired).unwrap();
        let (a, b) = (lab.address(End::A, Family::V4), lab.address(End::B, Family::V4));
        let listed = chain(&lab, "wl0");
        for words in [
            format!("comment \"{a} from {}\"", lab.mac(End::A)),
            format!("comment \"{} from {}\"", lab.address(End::A, Family::V6), lab.mac(End::A)),
            "iif \"wl0\"".to_owned(),
        ] {
            assert!(listed.contains(&words), "a person reads {words:?} in it:\n{listed}");
        }
        assert_eq!(listed.matches(" accept").count(), 3, "{listed}");
        lab.settle_neighbours();
        for family in [Family::V4, Family::V6] {
            for protocol in [Protocol::TCP, Protocol::UDP] {
                assert!(
                    lab.probe(End::A, lab.address(End::B, family), End::B, Transport::Port(protocol, 2000)),
                    "{topology:?} {protocol:?}"
                );
            }
        }

        // The address goes: one transaction, and a frame from it is refused from then on.
        let mut without = desired.clone();
        without.interfaces.get_mut(&lab.index("wl0")).unwrap().claim.addresses.retain(IpAddr::is_ipv6);
        let before = number(&lab);
        dataplane.commit(&without).unwrap();
        assert_eq!(number(&lab), before + 1, "{topology:?}: rules and elements in one transaction");
        assert_eq!(chain(&lab, "wl0").matches(" accept").count(), 2, "{topology:?}");
        let (IpAddr::V4(from), IpAddr::V4(to)) = (a, b) else { panic!("{a} and {b}") };
        let frame = ethernet([2, 0, 0, 0, 0, 0xb], lab.mac(End::A).0, 0x0800, &ipv4(from, to, 17, &[], &udp(4000, 2000, b"x")));
        let refused_before = refused(&lab);
        send(&lab.a, "eth0", &frame, 1);
        assert_eq!(refused(&lab), refused_before + 1, "{topology:?}");

        // The next agent reads the rules and writes nothing.
        drop(dataplane);
        let (mut dataplane, opened) = open(&lab.node);
        assert_eq!((opened.skeleton, opened.changed), (SkeletonState::Adopted, Vec::new()), "{topology:?}");
        assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0], "{topology:?}");
        let before = generation(&lab.node);
        let bytes = dataplane.commit(&without).unwrap().bytes;
        assert_eq!((bytes, generation(&lab.node)), (0, before), "{topology:?}");
        dataplane.commit(&desired).unwrap();
        assert_eq!(chain(&lab, "wl0"), listed, "{topology:?}: as before");
        drop(dataplane);
    }
}

#[test]
fn a_rule_about_an_address_that_nobody_committed_is_taken_away() {
    let lab = Lab::new(Topology::Bridged);
    let (mut dataplane, _) = open(&lab.node);
    let desired = lab.desired(KernelSets::default());
    dataplane.commit(&desired).unwrap();
    let (listed, index) = (chain(&lab, "wl0"), lab.index("wl0"));
    drop(dataplane);
    // Written as an agent would write it for another address.
    let foreign = format!(
        "meta iif {index} @ll,48,64 0x02000000000a0800 @nh,0,8 0x45 @nh,96,32 0x0a070963 \
         meta pkttype != broadcast meta pkttype != multicast @nh,72,8 != 1 @nh,72,8 != 2 @th,0,16 != 67 accept"
    );
    lab.node.nft_load_given_up(&format!("insert rule netdev firebreak port_wl0 {foreign}"));
    let (mut dataplane, _) = open(&lab.node);
    assert!(dataplane.commit(&desired).unwrap().bytes > 0);
    assert_eq!(chain(&lab, "wl0"), listed);
    assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0]);
}
