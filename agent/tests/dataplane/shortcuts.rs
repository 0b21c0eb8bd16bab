//! Rules that come and go in the base chains: about bridges, and past what asks for cut connections while there are none.

use crate::install::open;
use crate::lab::{End, Lab, Topology, sets};
use crate::packets::{connect, ticks};
use firebreak_agent::cuts::{Change, Changed, Conntrack, ConntrackSocket, Entry, Filter, Label};
use firebreak_agent::dataplane::{Check, Desired, Revoked, SkeletonState, read_revoked};
use firebreak_policy::model::{Family, Protocol};
use std::collections::BTreeSet;

/// The rules of a base chain, without their list's frame.
fn rules(lab: &Lab, chain: &str) -> Vec<String> {
    let listed = lab.node.command("nft", &format!("list chain inet firebreak {chain}"));
    let inside = listed.lines().map(str::trim).filter(|line| !line.is_empty() && !line.ends_with('{') && *line != "}");
    inside.filter(|line| !line.starts_with("type filter")).map(str::to_owned).collect()
}

const CHAINS: [&str; 4] = ["unknown_interface_in", "forward", "input", "output"];

fn all(lab: &Lab) -> Vec<Vec<String>> {
    CHAINS.map(|chain| rules(lab, chain)).to_vec()
}

#[test]
fn shortcuts_stand_before_the_rules_that_say_the_same_and_go_as_they_came() {
    for topology in [Topology::Routed, Topology::Bridged] {
        let lab = Lab::new(topology);
        let (mut dataplane, _) = open(&lab.node);
        let nobody = all(&lab);
        let desired = lab.desired(sets([]));
        dataplane.commit(&desired).unwrap();
        let is_bridged = topology == Topology::Bridged;
        let of_bridge = |rule: &str| is_bridged.then(|| rule.to_owned());
        let expected_in: Vec<String> = of_bridge("iif \"br0\" accept").into_iter().chain(nobody[0].clone()).collect();
        assert_eq!(rules(&lab, CHAINS[0]), expected_in, "{topology:?}");
        assert_eq!(all(&lab)[1..], nobody[1..], "{topology:?}: nobody has said that nothing is cut");
        let fixed = all(&lab);

        assert!(dataplane.pass_by_cuts(true).unwrap());
        let with = |hook: &str, fixed: &[String]| {
            let mut expected: Vec<String> = Vec::new();
            if hook == "forward" {
                expected.extend(of_bridge("oif \"br0\" ct state established accept"));
            }
            for rule in fixed {
                if rule.contains("ct label") {
                    expected.push("ct state established accept".to_owned());
                }
                if rule.contains("nfproto ipv4") {
                    expected.extend(["4", "6"].map(|family| format!("meta nfproto ipv{family} goto judged_{hook}{family}")));
                }
                expected.push(rule.clone());
            }
            expected
        };
        for (hook, fixed) in CHAINS.iter().zip(&fixed).skip(1) {
            assert_eq!(rules(&lab, hook), with(hook, fixed), "{topology:?}");
        }
        let short = all(&lab);
        let generation = crate::contents::generation(&lab.node);
        assert!(dataplane.pass_by_cuts(true).unwrap());
        assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0);
        assert_eq!(crate::contents::generation(&lab.node), generation, "said again, nothing is written");
        assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0], "{topology:?}");

        // The next agent takes them over as they are.
        drop(dataplane);
        let (mut dataplane, opened) = open(&lab.node);
        assert_eq!((opened.skeleton, opened.changed), (SkeletonState::Adopted, Vec::new()), "{topology:?}");
        let generation = crate::contents::generation(&lab.node);
        dataplane.commit(&desired).unwrap();
        assert_eq!((crate::contents::generation(&lab.node), all(&lab)), (generation, short), "{topology:?}");
        assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0], "{topology:?}");

        assert!(!dataplane.pass_by_cuts(false).unwrap());
        assert_eq!(all(&lab), fixed, "{topology:?}");
        dataplane.commit(&Desired { interfaces: Default::default(), ..desired.clone() }).unwrap();
        assert_eq!(all(&lab), nobody, "{topology:?}: no bridge is known");
        dataplane.commit(&desired).unwrap();
        assert!(dataplane.pass_by_cuts(true).unwrap());
        // Rules that are put right ask until somebody says again that nothing is cut.
        let dataplane = lab.node.run(move || {
            dataplane.repair().unwrap();
            dataplane
        });
        assert_eq!(all(&lab), fixed, "{topology:?}");
        drop(dataplane);
    }
}

#[test]
fn a_shortcut_that_was_taken_away_added_or_moved_while_no_agent_ran_is_noticed_and_put_right() {
    let lab = Lab::new(Topology::Bridged);
    let (mut dataplane, _) = open(&lab.node);
    let desired = lab.desired(sets([]));
    dataplane.commit(&desired).unwrap();
    let fixed = all(&lab);
    for (nothing_is_cut, change) in [
        (true, "insert rule inet firebreak forward ct state established accept"),
        (false, "insert rule inet firebreak forward ct state established accept"),
        (false, "add rule inet firebreak unknown_interface_in iif lo accept"),
        (false, "insert rule inet firebreak unknown_interface_in iif wl0 accept"),
        (false, "insert rule inet firebreak input meta nfproto ipv4 goto judged_input4"),
        (false, "insert rule inet firebreak input meta nfproto ipv4 goto judged_forward4"),
    ] {
        dataplane.pass_by_cuts(nothing_is_cut).unwrap();
        let before = all(&lab);
        drop(dataplane);
        lab.node.nft_load_given_up(change);
        let opened;
        (dataplane, opened) = open(&lab.node);
        assert_ne!(opened.changed, Vec::<String>::new(), "{change}");
        dataplane = lab.node.run(move || {
            dataplane.repair().unwrap();
            dataplane
        });
        assert_eq!(all(&lab), fixed, "{change}: it asks again, whatever was there: {before:#?}");
        assert_eq!(dataplane.check(Check::All).unwrap(), [""; 0], "{change}");
    }
}

/// The entry of the only TCP connection to this port.
fn entry_of(conntrack: &mut ConntrackSocket, client: std::net::SocketAddr) -> Entry {
    let mut found = Vec::new();
    conntrack.dump(Filter::All, &mut |entry| found.push(entry)).unwrap();
    found.retain(|entry| entry.source() == client.ip() && entry.original.protocol == Protocol::TCP);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn rules_that_pass_by_do_not_see_a_label_and_ask_as_soon_as_they_are_told() {
    for (topology, family) in [(Topology::Routed, Family::V4), (Topology::Bridged, Family::V6)] {
        let lab = Lab::new(topology);
        let (mut dataplane, _) = open(&lab.node);
        dataplane.commit(&lab.desired(sets([]))).unwrap();
        assert!(dataplane.pass_by_cuts(true).unwrap());
        let (mut client, mut server) = connect(&lab, family);
        assert!(ticks(&mut client, &mut server));
        let address = client.local_addr().unwrap();
        let changed = lab.node.run(move || {
            let mut conntrack = ConntrackSocket::open(Label::new(crate::install::config().cut_label)).unwrap();
            let entry = entry_of(&mut conntrack, address);
            conntrack.change(&[Change::Label(&entry)]).unwrap()
        });
        assert_eq!(changed, [Changed::Done], "{topology:?}: there is room for a label though nothing asks for it");
        assert!(ticks(&mut client, &mut server), "{topology:?}: nobody may label while rules pass by");
        assert!(!dataplane.pass_by_cuts(false).unwrap());
        assert!(!ticks(&mut client, &mut server), "{topology:?}: it is cut");
        assert!(!dataplane.pass_by_cuts(true).unwrap(), "{topology:?}: its ends are remembered");
        let remembered = lab.node.run(|| read_revoked().unwrap());
        let server = (lab.address(End::B, family), 1001);
        let answer = Revoked { from: server, to: (address.ip(), address.port()), protocol: Protocol::TCP };
        assert_eq!(remembered, BTreeSet::from([answer]), "{topology:?}");
        assert!(rules(&lab, "forward").iter().all(|rule| rule != "ct state established accept"), "{topology:?}");
        let strange = Revoked { from: (server.0, 1), ..answer };
        assert_eq!(dataplane.forget_revoked(&[strange, answer].into()).unwrap(), 1, "{topology:?}: what is not there is no harm");
        assert_eq!(lab.node.run(|| read_revoked().unwrap()), BTreeSet::new(), "{topology:?}");
        assert!(dataplane.pass_by_cuts(true).unwrap(), "{topology:?}: nothing is remembered");
    }
}
