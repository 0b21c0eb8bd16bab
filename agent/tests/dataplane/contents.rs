//! What commits make the kernel hold.

use crate::install::open;
use crate::namespace::Namespace;
use firebreak_agent::dataplane::names::policy_sets;
use firebreak_agent::dataplane::{Claim, CommitError, Dataplane, Delta, Desired, MacAddress, ManagedInterface};
use firebreak_policy::Members;
use firebreak_policy::kernel_sets::{
    Chain, Comment, Element, GroupForm, GroupSet, KernelSets, SetId, Shape, Shared, SharedPeers, SharedRule, SharedService, ShortName, Span,
};
use firebreak_policy::model::{Direction, Family, InterfaceName, Protocol};
use firebreak_policy::node_state::Member;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => format!("10.1.2.{last}").parse().unwrap(),
        Family::V6 => format!("fd00:1::{last:x}").parse().unwrap(),
    }
}

/// Some elements of a set's form; the ranges are of the corners: one, all, a block, neither.
fn elements(id: SetId, count: u8) -> Vec<Element> {
    let at = |last| address(id.family, last);
    let all = match id.family {
        Family::V4 => Span { first: "0.0.0.0".parse().unwrap(), last: "255.255.255.255".parse().unwrap() },
        Family::V6 => Span { first: "::".parse().unwrap(), last: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap() },
    };
    let whole_bytes = Span { first: 0u8, last: 255 };
    let block = |n: u8| if n == 0 { all } else { Span { first: at(n), last: at(n + 5) } };
    (0..count)
        .map(|n| match id.shape {
            Shape::Isolated | Shape::HostJudged => Element::Local(at(n)),
            Shape::Peer => Element::Peer(at(n), at(n + 1)),
            Shape::PeerProtocol => Element::PeerProtocol(at(n), at(n + 1), Protocol(n)),
            Shape::PeerPort | Shape::PublishedAllow => Element::PeerPort(at(n), at(n + 1), Protocol::TCP, 443 + u16::from(n)),
            Shape::PeerIcmp => Element::PeerIcmp(at(n), at(n + 1), n, 0),
            Shape::Port | Shape::Published => Element::Port(at(n), Protocol::UDP, 53 + u16::from(n)),
            Shape::Range | Shape::Reject if n == 0 => Element::Range(at(n), block(n), whole_bytes, Span { first: 0, last: 65_535 }),
            Shape::Range | Shape::Reject => Element::Range(at(n), block(n), Span::single(n), Span { first: 80, last: 80 + u16::from(n) }),
            Shape::IcmpRange | Shape::RejectIcmp if n == 0 => Element::IcmpRange(at(n), block(n), whole_bytes, whole_bytes),
            Shape::IcmpRange | Shape::RejectIcmp => Element::IcmpRange(at(n), block(n), Span::single(n), Span { first: 0, last: n }),
        })
        .collect()
}

/// The shared form: a set of each family and form, and for each stage a chain of one rule of each kind; ten elements for each of the count.
fn shared(count: u8, note: &str) -> Shared {
    let mut shared = Shared::default();
    for family in [Family::V4, Family::V6] {
        let block = |n: u8| match family {
            Family::V4 => format!("10.2.{n}.0/24"),
            Family::V6 => format!("fd00:2:0:{n:x}::/64"),
        };
        let members: Members = (0..count)
            .flat_map(|n| {
                let peer = address(family, n);
                [Member::Address(peer), Member::Service(peer, Protocol::TCP, 80), Member::Block(block(n).parse().unwrap())]
            })
            .collect();
        let group = |form| GroupSet { family, form, name: ShortName::new("peers", []) };
        let of = |form| SharedPeers::In(group(form));
        let rules = [
            (of(GroupForm::Addresses), SharedService::Ports(Protocol::TCP, Span::single(443))),
            (of(GroupForm::Blocks), SharedService::Ports(Protocol::UDP, Span { first: 1_000, last: 2_000 })),
            (of(GroupForm::Blocks), SharedService::Icmp(3, Some(1))),
            (of(GroupForm::Addresses), SharedService::Icmp(8, None)),
            (of(GroupForm::Services), SharedService::Any),
            (SharedPeers::Any, SharedService::Protocol(Protocol(47))),
            (of(GroupForm::Blocks), SharedService::Protocols(Span { first: 0, last: 5 })),
        ];
        for form in [GroupForm::Addresses, GroupForm::Services, GroupForm::Blocks] {
            shared.groups.insert(group(form), (members.clone(), "".into()));
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            let rules = rules.map(|(peers, service)| SharedRule { peers, service, comment: format!("{note} {service:?}").as_str().into() });
            let chain = Chain { direction, family, name: ShortName::new("shop/web", [note]), answers: false };
            shared.chains.insert(chain, rules.into());
            let locals = (0..count).map(|n| ((direction, address(family, n)), (chain, format!("{note} number {n}").as_str().into())));
            shared.segments.extend(locals);
        }
    }
    shared
}

/// Every set filled, and some interfaces.
pub fn everything(count: u8, note: &str) -> Desired {
    let mut sets = BTreeMap::new();
    for id in policy_sets() {
        let contents: BTreeMap<Element, Comment> = elements(id, count)
            .into_iter()
            .enumerate()
            .map(|(n, element)| (element, format!("{note} number {n} of {id:?}").into()))
            .collect();
        sets.insert(id, contents);
    }
    let interfaces = (1..=u32::from(count))
        .map(|index| {
            let last = u8::try_from(index).unwrap();
            let addresses: BTreeSet<IpAddr> = [address(Family::V4, last), address(Family::V6, last)].into();
            let mac = Some(MacAddress([2, 0, 0, 0, 0, last]));
            let claim = Claim { mac, addresses: addresses.clone(), vouched: false, link: 1 };
            let name = InterfaceName::from(format!("wl{index}"));
            (index, ManagedInterface { name, workload: format!("shop/web-{index}").into(), addresses, claim })
        })
        .collect();
    Desired { sets: KernelSets { sets, shared: shared(count, note) }, interfaces, exempt: [(900, InterfaceName::new("wl-uplink"))].into() }
}

/// The number of the kernel's ruleset: it rises with every transaction that changes something.
pub fn generation(namespace: &Namespace) -> String {
    namespace.run(|| {
        // `nft monitor` would tell it too, but later; this is what NFT_MSG_GETGEN answers.
        use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
        use netlink_packet_netfilter::nftables::{GenMessage, NfTablesMessage};
        use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
        let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).unwrap();
        socket.bind_auto().unwrap();
        let inner = NfTablesMessage::GetGen(GenMessage { attributes: vec![] });
        let message = NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0), inner);
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.header.flags = NLM_F_REQUEST;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        socket.send(&bytes, 0).unwrap();
        let (answer, _) = socket.recv_from_full().unwrap();
        format!("{:?}", NetlinkMessage::<NetfilterMessage>::deserialize(&answer).unwrap().payload)
            .split("ProcPid")
            .next()
            .unwrap()
            .to_owned()
    })
}

fn commit(node: &Namespace, mut dataplane: Dataplane, desired: Desired) -> Dataplane {
    node.run(move || {
        dataplane.commit(&desired).unwrap();
        dataplane
    })
}

#[test]
fn what_is_committed_is_read_back_whole_listed_and_written_only_once() {
    let node = Namespace::new();
    let (mut dataplane, _) = open(&node);
    let desired = everything(6, "first");
    let report = dataplane.commit(&desired).unwrap();
    // Known in three tables, with two addresses each, and six elements in each of the eleven sets of the guards;
    // the shared form, whose chains are led to by answers too as long as connections may be picked up.
    let expected = policy_sets().len() * 6 + 3 * 7 + 12 + 6 * 11 + 10 * 6 + 4 * 6;
    assert_eq!((report.added, report.removed, report.elements), (expected, 0, expected));

    let before = generation(&node);
    assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0);
    assert_eq!(dataplane.read_back().unwrap(), expected);
    assert_eq!(dataplane.commit(&desired).unwrap().bytes, 0, "what was read back is what was committed, comments too");
    assert_eq!(generation(&node), before, "the kernel saw no transaction");

    let listed = node.stable_ruleset();
    let other = Namespace::new();
    let loaded = other.nft_load(&listed);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    for expected in [
        "10.1.2.0 . 0.0.0.0/0 . 0-255 . 0-65535 comment \"first number 0 of",
        "10.1.2.2 . 10.1.2.2-10.1.2.7 . igmp . 80-82",
        "10.1.2.1 . 10.1.2.2 . tcp . 444",
        "comment \"shop/web-2\"",
    ] {
        assert!(listed.contains(expected), "{expected} is not in\n{listed}");
    }

    for next in [everything(4, "first"), everything(6, "second"), Desired::default(), everything(3, "third")] {
        dataplane = commit(&node, dataplane, next.clone());
        dataplane.read_back().unwrap();
        assert_eq!(dataplane.commit(&next).unwrap().bytes, 0);
    }
}

#[test]
fn a_delta_does_what_a_commit_of_the_whole_does() {
    let node = Namespace::new();
    let (mut dataplane, _) = open(&node);
    let (before, mut after) = (everything(5, "one"), everything(3, "one"));
    // Of the shared form a delta has the members, and nothing else.
    after.sets.shared.segments.clone_from(&before.sets.shared.segments);
    dataplane.commit(&before).unwrap();
    let mut delta = Delta::default();
    for (id, contents) in &before.sets.sets {
        for element in contents.keys().filter(|element| !after.sets.sets[id].contains_key(element)) {
            delta.remove.push((*id, element.clone()));
        }
    }
    delta.groups = after.sets.shared.groups.iter().map(|(set, (members, _))| (*set, members.clone())).collect();
    let report = dataplane.commit_delta(&delta).unwrap();
    assert_eq!((report.added, report.removed), (0, 2 * policy_sets().len() + 2 * 6));
    dataplane.read_back().unwrap();
    let now = Desired { sets: after.sets.clone(), ..before.clone() };
    assert_eq!(dataplane.commit(&now).unwrap().bytes, 0);
    assert_eq!(dataplane.commit_delta(&delta).unwrap().bytes, 0, "what is gone already is no error");
}

#[test]
fn a_refused_change_leaves_the_old_state_whole_and_names_the_element() {
    let node = Namespace::new();
    let (mut dataplane, _) = open(&node);
    let before = everything(3, "old");
    dataplane.commit(&before).unwrap();
    let ruleset = node.stable_ruleset();

    let range = SetId { direction: Direction::Ingress, family: Family::V4, shape: Shape::Range };
    let mut after = everything(5, "new");
    // Overlaps another element: the kernel refuses that, and with it the whole transaction.
    let overlapping = Element::Range(
        address(Family::V4, 0),
        Span { first: address(Family::V4, 0), last: address(Family::V4, 9) },
        Span::single(6),
        Span { first: 1, last: 2 },
    );
    after.sets.sets.get_mut(&range).unwrap().insert(overlapping.clone(), "overlapping".into());
    match dataplane.commit(&after) {
        Err(CommitError::Refused { set, act, element, .. }) => {
            assert_eq!((set.as_str(), act), ("inet firebreak in4_range", "adding"));
            assert!(element.starts_with("10.1.2.0 . "), "{element}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(node.stable_ruleset(), ruleset);
    assert_eq!(dataplane.commit(&before).unwrap().bytes, 0, "and the agent knows it");

    let isolated = SetId { direction: Direction::Egress, family: Family::V6, shape: Shape::Isolated };
    let mut misfit = before.clone();
    misfit.sets.sets.get_mut(&isolated).unwrap().insert(Element::Local(address(Family::V4, 1)), "".into());
    assert!(matches!(dataplane.commit(&misfit), Err(CommitError::Misfit { set, .. }) if set == "inet firebreak out6_isolated"));
    assert_eq!(node.stable_ruleset(), ruleset);
}
