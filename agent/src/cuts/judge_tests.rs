#![allow(clippy::unwrap_used)]

use super::*;
use crate::cuts::entry::{Detail, TCP_MIDSTREAM, TcpInfo, Tuple};
use firebreak_policy::model::{HostAccess, NamespaceName, PolicyKey, PolicyKind, PortRange, PublishedPort, WorkloadId};
use firebreak_policy::node_state::{
    CompiledPeers, CompiledRule, CompiledService, CompiledServices, Group, GroupId, Isolation, LocalEndpoint, Member, NodeState, RuleRef,
    Rulebook, Segment, SegmentId,
};
use std::sync::Arc;

const WEB: u8 = 1;
const DB: u8 = 2;
const STRANGER: u8 = 9;
const NODE: u8 = 254;
/// A node address that is not of global scope.
const NODE_LINK: u8 = 253;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// db takes 80/tcp, 7/udp and GRE from web and nothing else, and is published at node port 8080; web is not isolated.
fn state() -> NodeState {
    let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: NamespaceName::new("shop"), name: "db".to_owned() };
    let web = GroupId("web".into());
    let port = |protocol, port| CompiledService::Ports(protocol, PortRange::new(port, port).unwrap());
    let rule = CompiledRule {
        origin: RuleRef { policy: policy.clone(), index: 0, name: None },
        peers: CompiledPeers::Groups(vec![web.clone()]),
        services: CompiledServices::Only(vec![port(Protocol::TCP, 80), port(Protocol::UDP, 7), CompiledService::Protocol(Protocol(47))]),
    };
    let isolation = Isolation { policies: vec![policy], host_access: HostAccess::Allow, rules: vec![rule] };
    let segment = |name: &str, ingress| {
        Arc::new(Segment {
            id: SegmentId(name.into()),
            title: name.to_owned(),
            rules: Rulebook { ingress, ..Rulebook::default() }.into(),
            audit: None,
        })
    };
    let endpoint = |name: &str, last, published_ports| {
        let id = WorkloadId::new("n1", name);
        let endpoint = LocalEndpoint {
            id: id.clone(),
            name: name.to_owned(),
            namespace: NamespaceName::new("shop"),
            segment: SegmentId(name.into()),
            addresses: [ip(last)].into(),
            published_ports,
        };
        (id, Arc::new(endpoint))
    };
    let published = PublishedPort { protocol: Protocol::TCP, host_address: None, host_port: 8080, workload_port: 5432 };
    NodeState {
        addresses: [ip(NODE)].into(),
        groups: [(web.clone(), Arc::new(Group { id: web, title: "web".to_owned(), members: [Member::Address(ip(WEB))].into() }))].into(),
        segments: [(SegmentId("db".into()), segment("db", Some(isolation))), (SegmentId("web".into()), segment("web", None))].into(),
        endpoints: [endpoint("db", DB, vec![published]), endpoint("web", WEB, Vec::new())].into(),
    }
}

fn entry(protocol: Protocol, from: (u8, u16), to: (u8, u16)) -> Entry {
    let tuple = |(source, source_port), (destination, port)| Tuple {
        source: ip(source),
        destination: ip(destination),
        protocol,
        detail: if protocol.has_ports() { Detail::Ports(source_port, port) } else { Detail::None },
    };
    Entry { original: tuple(from, to), reply: tuple(to, from), ..Entry::probe(ip(from.0), ip(to.0)) }
}

fn judge(entry: &Entry) -> Judgement {
    let (state, locals) = (state(), [ip(WEB), ip(DB)].into());
    let node = [ip(NODE), ip(NODE_LINK)].into();
    Scene { generation: Generation(1), policy: NodeJudge::new(Arc::new(state)), node, locals }.judge(entry)
}

#[test]
fn an_entry_is_judged_as_its_first_packet_was() {
    use Judgement::{Forbidden, ForbiddenOneWay, Foreign, Keep};
    let (tcp, udp, sctp) = (Protocol::TCP, Protocol::UDP, Protocol::SCTP);
    let cases = [
        ("allowed", entry(tcp, (WEB, 1000), (DB, 80)), Keep),
        ("another port", entry(tcp, (WEB, 1000), (DB, 81)), Forbidden(Direction::Ingress)),
        ("another peer", entry(tcp, (STRANGER, 1000), (DB, 80)), Forbidden(Direction::Ingress)),
        ("another protocol", entry(sctp, (WEB, 1000), (DB, 80)), Forbidden(Direction::Ingress)),
        ("the other way", entry(udp, (DB, 1000), (WEB, 81)), Keep),
        ("the source port of an allowed service allows nothing", entry(udp, (WEB, 7), (DB, 1000)), Forbidden(Direction::Ingress)),
        ("between strangers", entry(tcp, (STRANGER, 1000), (8, 80)), Foreign),
        ("the node gets in", entry(tcp, (NODE, 1000), (DB, 5432)), Keep),
        ("by any of its addresses", entry(tcp, (NODE_LINK, 1000), (DB, 5432)), Keep),
        ("to the node", entry(tcp, (WEB, 1000), (NODE, 22)), Keep),
        ("to what is published", entry(tcp, (WEB, 1000), (NODE, 8080)), Forbidden(Direction::Ingress)),
        ("a workload to its own published port", entry(tcp, (DB, 1000), (NODE, 8080)), Keep),
        ("strangers' use of what is published is not judged there", entry(tcp, (STRANGER, 1000), (NODE, 8080)), Foreign),
        ("GRE from a peer", entry(Protocol(47), (WEB, 0), (DB, 0)), Keep),
        ("ESP, whose other direction is allowed", entry(Protocol(50), (WEB, 0), (DB, 0)), ForbiddenOneWay(Direction::Ingress)),
    ];
    for (name, entry, expected) in cases {
        assert_eq!(judge(&entry), expected, "{name}");
    }
}

#[test]
fn the_real_ends_count_and_not_those_before_translation() {
    let node_port = |from: (u8, u16), to| {
        let reply = entry(Protocol::TCP, to, from).original;
        Entry { reply, ..entry(Protocol::TCP, from, (NODE, 8080)) }
    };
    assert_eq!(judge(&node_port((STRANGER, 1000), (DB, 5432))), Judgement::Forbidden(Direction::Ingress));
    assert_eq!(judge(&node_port((WEB, 1000), (DB, 80))), Judgement::Keep);
    // The source is hidden behind the node only after it was judged.
    let mut masqueraded = entry(Protocol::TCP, (WEB, 1000), (DB, 81));
    masqueraded.reply.destination = ip(NODE);
    assert_eq!(judge(&masqueraded), Judgement::Forbidden(Direction::Ingress));
}

#[test]
fn what_was_picked_up_in_the_middle_lives_if_either_orientation_is_allowed() {
    let tcp = |flags: u8| Some(TcpInfo { state: 3, flags: [flags; 2] });
    let forbidden = Judgement::Forbidden(Direction::Ingress);
    let answer = entry(Protocol::TCP, (DB, 80), (WEB, 1000));
    let cases = [
        ("from the client", entry(Protocol::TCP, (WEB, 1000), (DB, 81)), TCP_MIDSTREAM, Judgement::Keep),
        ("its entry was made anew by us", entry(Protocol::TCP, (WEB, 1000), (DB, 81)), 0x08, forbidden),
        ("it was seen from its beginning", entry(Protocol::TCP, (WEB, 1000), (DB, 81)), 0x02, forbidden),
        ("from the server", answer, TCP_MIDSTREAM, Judgement::Keep),
        ("a stranger's, for db may call strangers", entry(Protocol::TCP, (STRANGER, 1000), (DB, 81)), TCP_MIDSTREAM, Judgement::Keep),
    ];
    for (name, entry, flags, expected) in cases {
        assert_eq!(judge(&Entry { tcp: tcp(flags), ..entry }), expected, "{name}");
    }
}

#[test]
fn icmp_is_judged_by_type_of_its_own_family() {
    let echo = |protocol: Protocol| {
        let tuple = |source, destination, kind| Tuple {
            source: ip(source),
            destination: ip(destination),
            protocol,
            detail: Detail::Icmp { kind, code: 0, id: 1 },
        };
        Entry { original: tuple(WEB, DB, 8), reply: tuple(DB, WEB, 0), ..entry(protocol, (WEB, 0), (DB, 0)) }
    };
    assert_eq!(echo(Protocol::ICMP).transport(), Transport::ping(firebreak_policy::model::Family::V4));
    assert_eq!(judge(&echo(Protocol::ICMP)), Judgement::Forbidden(Direction::Ingress));
    assert_eq!(echo(Protocol::ICMPV6).transport(), Transport::Other(Protocol::ICMPV6), "ICMPv6 within IPv4 has no type that rules read");
}

#[test]
fn what_a_cut_connections_other_end_sends_is_forgotten_only_if_the_connection_is_allowed() {
    let scene = || {
        let locals = [ip(WEB), ip(DB)].into();
        Scene { generation: Generation(1), policy: NodeJudge::new(Arc::new(state())), node: [ip(NODE)].into(), locals }
    };
    for (name, from, to, protocol, expected) in [
        ("db answers web on an allowed port", (DB, 7), (WEB, 1000), Protocol::UDP, true),
        ("of another port", (DB, 8), (WEB, 1000), Protocol::UDP, false),
        ("of another protocol", (DB, 7), (WEB, 1000), Protocol::SCTP, false),
        ("to another peer", (DB, 7), (STRANGER, 1000), Protocol::UDP, false),
        ("web answers db on a port that db allows web", (WEB, 1000), (DB, 7), Protocol::UDP, true),
        ("web, which takes everything, answers db", (WEB, 53), (DB, 1000), Protocol::UDP, true),
        ("strangers are the rules' own matter", (STRANGER, 53), (8, 1000), Protocol::UDP, false),
    ] {
        let revoked = Revoked { from: (ip(from.0), from.1), to: (ip(to.0), to.1), protocol };
        assert_eq!(scene().allows_again(&revoked), expected, "{name}");
    }
}
