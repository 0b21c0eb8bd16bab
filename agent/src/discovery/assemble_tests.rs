#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::dataplane::MacAddress;
use firebreak_policy::model::WorkloadId;

/// Of the other end of each veth.
const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

fn node() -> NodeName {
    NodeName::new("n1")
}

fn veth(index: u32, name: &str, nsid: Option<i32>, controller: Option<u32>) -> Link {
    Link { index, name: name.to_owned(), veth: true, controller, peer_nsid: nsid, peer_index: Some(2), mac: None }
}

fn other(index: u32, name: &str) -> Link {
    Link { index, name: name.to_owned(), veth: false, controller: None, peer_nsid: None, peer_index: None, mac: None }
}

fn held(interface: u32, address: &str, scope: Scope) -> HeldAddress {
    HeldAddress { interface, address: address.parse().unwrap(), scope }
}

fn identity(name: &str, source: WorkloadSource, place: Place) -> Identity {
    Identity {
        container: ContainerId::new(name),
        name: name.to_owned(),
        namespace: NamespaceName::new("shop"),
        labels: Labels::default(),
        image_labels: BTreeMap::new(),
        image: String::new(),
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        source,
        place,
        declared_place: String::new(),
        networks: Networks::HiddenBehind(["br0".to_owned()].into()),
        vouched: None,
    }
}

fn manifest(name: &str, place: Place) -> Identity {
    identity(name, WorkloadSource::Manifest, place)
}

fn engine(name: &str, place: Place) -> Identity {
    identity(name, WorkloadSource::Docker, place)
}

fn behind(name: &str) -> Place {
    Place::Interface(InterfaceName::new(name))
}

fn kernel(links: Vec<Link>) -> Kernel {
    let addresses = vec![
        held(1, "127.0.0.1", Scope::Host),
        held(2, "10.0.0.2", Scope::Global),
        held(2, "fe80::2", Scope::Link),
        held(9, "10.9.9.9", Scope::Global),
    ];
    let inside = Arc::new(PeerNamespace { addresses, macs: BTreeMap::from([(2, MAC), (9, MacAddress([2, 0, 0, 0, 0, 9]))]) });
    // The node sends the addresses to whatever they are behind.
    let routes =
        links.iter().flat_map(|link| [Some(link.index), link.controller]).flatten().map(|index| route("10.0.0.0/8", index)).collect();
    Kernel { links, peers: HashMap::from([(0, inside.clone()), (1, inside)]), routes, ..Kernel::default() }
}

fn route(destination: &str, interface: u32) -> Route {
    Route { destination: destination.parse().unwrap(), interface, by_gateway: false }
}

fn run(kernel: &Kernel, identities: &[Identity]) -> LocalWorkloads {
    assemble(&node(), &[InterfacePattern::new("veth*").unwrap()], kernel, identities)
}

/// `name: interface addresses` or `name: problem`.
fn told(local: &LocalWorkloads) -> Vec<String> {
    let told = |workload: &Arc<LocalWorkload>| match &workload.problem {
        Some(problem) => format!("{}: {problem}", workload.name),
        None => {
            let interfaces = workload.interfaces.values().map(|interface| {
                let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
                format!(" {} {}", interface.name, addresses.join(" "))
            });
            format!("{}:{}", workload.name, interfaces.collect::<String>())
        }
    };
    local.workloads.values().map(told).collect()
}

#[test]
fn a_workload_is_where_its_source_says_or_the_reason_is_told() {
    type Case = (&'static str, Vec<Link>, Vec<Identity>, Vec<&'static str>, Vec<u32>);
    let table: Vec<Case> = vec![
        ("nobody", vec![veth(7, "veth7", Some(0), None)], vec![], vec![], vec![7]),
        (
            "routed, by interface",
            vec![veth(7, "veth7", Some(0), None)],
            vec![manifest("a", behind("veth7"))],
            vec!["a: veth7 10.0.0.2 fe80::2%n1/veth7"],
            vec![],
        ),
        (
            "bridged, by namespace, hidden",
            vec![other(3, "br0"), veth(7, "veth7", Some(0), Some(3))],
            vec![engine("a", Place::Namespace(0))],
            vec!["a: veth7 10.0.0.2%n1/br0 fe80::2%n1/br0"],
            vec![],
        ),
        (
            "on a bridge that hides nobody",
            vec![other(3, "br1"), veth(7, "veth7", Some(0), Some(3))],
            vec![engine("a", Place::Namespace(0))],
            vec!["a: veth7 10.0.0.2 fe80::2%n1/br1"],
            vec![],
        ),
        (
            "two interfaces",
            vec![veth(7, "veth7", Some(0), None), Link { peer_index: Some(9), ..veth(8, "veth8", Some(0), None) }],
            vec![engine("a", Place::Namespace(0))],
            vec!["a: veth7 10.0.0.2 fe80::2%n1/veth7 veth8 10.9.9.9"],
            vec![],
        ),
        (
            "interface outside the patterns",
            vec![veth(7, "c7", Some(0), None)],
            vec![manifest("a", behind("c7"))],
            vec!["a: c7 10.0.0.2 fe80::2%n1/c7"],
            vec![],
        ),
        (
            "interface outside the patterns, of two",
            vec![veth(7, "c7", Some(0), None)],
            vec![manifest("a", behind("c7")), manifest("b", behind("c7"))],
            vec![
                "a: interface c7 is claimed by another workload too; it is denied",
                "b: interface c7 is claimed by another workload too; it is denied",
            ],
            vec![],
        ),
        ("missing interface", vec![], vec![manifest("a", behind("veth7"))], vec!["a: there is no interface veth7"], vec![]),
        (
            "no way into the namespace",
            vec![veth(7, "veth7", Some(1), None)],
            vec![engine("a", Place::Namespace(0))],
            vec!["a: no veth of the node leads to its network namespace"],
            vec![7],
        ),
        ("not a veth", vec![other(7, "vethx")], vec![manifest("a", behind("vethx"))], vec!["a: interface vethx is not a veth"], vec![]),
        (
            "both ends here",
            vec![veth(7, "veth7", None, None), veth(8, "veth8", None, None)],
            vec![manifest("a", behind("veth7"))],
            vec!["a: the other end of veth7 is in the node's own network namespace"],
            vec![7, 8],
        ),
        ("the node's network", vec![], vec![engine("a", Place::Host)], vec!["a: shares the node's network"], vec![]),
        ("no network", vec![], vec![engine("a", Place::NoNetwork)], vec!["a:"], vec![]),
        (
            "unresolved",
            vec![],
            vec![engine("a", Place::Unresolved("its process is gone".to_owned()))],
            vec!["a: its process is gone"],
            vec![],
        ),
        (
            "two manifests",
            vec![veth(7, "veth7", Some(0), None)],
            vec![manifest("a", behind("veth7")), manifest("b", Place::Namespace(0))],
            vec![
                "a: interface veth7 is claimed by another workload too; it is denied",
                "b: interface veth7 is claimed by another workload too; it is denied",
            ],
            vec![7],
        ),
        (
            "a manifest and an engine",
            vec![veth(7, "veth7", Some(0), None)],
            vec![engine("a", Place::Namespace(0)), manifest("b", behind("veth7"))],
            vec!["a: interface veth7 is claimed by another workload too; it is denied", "b: veth7 10.0.0.2 fe80::2%n1/veth7"],
            vec![],
        ),
    ];
    for (case, links, identities, expected, unknown) in table {
        let local = run(&kernel(links.clone()), &identities);
        assert_eq!(told(&local), expected, "{case}");
        assert_eq!(local.unknown.keys().copied().collect::<Vec<_>>(), unknown, "{case}");
        let declared: Vec<&str> = local.declared.values().map(|(name, _)| name.as_str()).collect();
        assert_eq!(declared, if case.starts_with("interface outside the patterns") { vec!["c7"] } else { vec![] }, "{case}");
        let turned: Vec<Identity> = identities.into_iter().rev().collect();
        let links: Vec<Link> = links.into_iter().rev().collect();
        assert_eq!(run(&kernel(links), &turned), local, "{case}: the order does not matter");
    }
}

#[test]
fn the_way_out_is_exempt_whoever_claims_it() {
    let mut kernel = kernel(vec![veth(7, "veth7", Some(0), None), veth(8, "veth8", Some(0), None)]);
    kernel.routes.insert(route("0.0.0.0/0", 7));
    let local = run(&kernel, &[manifest("a", behind("veth7")), engine("b", Place::Namespace(0))]);
    assert_eq!(told(&local), ["a: interface veth7 carries a default route", "b: veth8 10.0.0.2 fe80::2%n1/veth8"]);
    assert_eq!(local.exempt.keys().copied().collect::<Vec<_>>(), [7]);
    assert!(local.unknown.is_empty());
}

#[test]
fn without_anybody_to_vouch_an_address_is_a_workloads_only_where_the_node_sends_its_packets_there() {
    const ELSEWHERE: u32 = 4;
    const BRIDGE: u32 = 3;
    let by_gateway = |destination, interface| Route { by_gateway: true, ..route(destination, interface) };
    let way_out = || by_gateway("0.0.0.0/0", ELSEWHERE);
    let own = |address: &str| vec![held(BRIDGE, address, Scope::Global)];
    let none = Vec::new;
    type Case = (&'static str, Option<u32>, Vec<Route>, Vec<HeldAddress>, bool);
    let table: Vec<Case> = vec![
        ("its own route", None, vec![route("10.0.0.2/32", 7), way_out()], none(), true),
        ("a route by a router inside", None, vec![by_gateway("10.0.0.0/24", 7), way_out()], none(), true),
        ("no route", None, vec![], none(), false),
        ("the default route", None, vec![way_out()], none(), false),
        ("a longer route elsewhere", None, vec![route("10.0.0.0/24", 7), route("10.0.0.2/32", ELSEWHERE)], none(), false),
        ("a longer route here", None, vec![route("10.0.0.0/24", ELSEWHERE), route("10.0.0.2/32", 7)], none(), true),
        ("one of several ways", None, vec![route("10.0.0.0/24", ELSEWHERE), route("10.0.0.0/24", 7)], none(), true),
        ("the bridge's subnet", Some(BRIDGE), vec![route("10.0.0.0/24", BRIDGE), way_out()], own("10.0.0.254"), true),
        ("outside the bridge's subnet", Some(BRIDGE), vec![route("10.1.0.0/24", BRIDGE), way_out()], own("10.1.0.254"), false),
        (
            "the bridge is the way out",
            Some(BRIDGE),
            vec![route("10.1.0.0/24", BRIDGE), by_gateway("0.0.0.0/0", BRIDGE)],
            own("10.1.0.254"),
            false,
        ),
        ("behind a router on the bridge", Some(BRIDGE), vec![by_gateway("10.0.0.0/24", BRIDGE)], own("10.1.0.254"), false),
        ("straight by the bridge", Some(BRIDGE), vec![route("10.0.0.2/32", BRIDGE), way_out()], own("10.1.0.254"), true),
        ("a bridge without an address", Some(BRIDGE), vec![way_out()], none(), true),
        ("and the node sends elsewhere", Some(BRIDGE), vec![route("10.0.0.0/24", ELSEWHERE), way_out()], none(), false),
        ("a bridge with an address of the other family", Some(BRIDGE), vec![], own("fd00::1"), true),
        ("and one of its own on the link", Some(BRIDGE), vec![], vec![held(BRIDGE, "169.254.0.1", Scope::Link)], true),
    ];
    let address: IpAddr = "10.0.0.2".parse().unwrap();
    for (case, controller, routes, own, expected) in table {
        let mut kernel = kernel(vec![Link { peer_index: Some(2), ..veth(7, "veth7", Some(0), controller) }, other(BRIDGE, "br9")]);
        kernel.routes = routes.into_iter().collect();
        kernel.own = own;
        let local = run(&kernel, &[manifest("a", behind("veth7"))]);
        let workload = local.workloads.values().next().unwrap();
        assert_eq!(workload.addresses().contains(&address), expected, "{case}");
        // It is the only one: without it nothing is left to enforce, and its owner hears why.
        let problem = (!expected).then(|| Problem::NotRouted([address].into()));
        assert_eq!((workload.problem.clone(), local.unknown.contains_key(&7)), (problem, !expected), "{case}");
        let given = Vouched { addresses: [address].into(), macs: [].into() };
        let vouched = Identity { vouched: Some(given), ..manifest("a", behind("veth7")) };
        let local = run(&kernel, &[vouched]);
        assert!(local.workloads.values().any(|it| it.addresses().contains(&address)), "{case}: somebody vouches");
    }
}

#[test]
fn an_address_without_a_route_is_left_out_and_told_and_the_others_stay() {
    let addresses = ["10.0.0.2", "203.0.113.9", "169.254.0.9", "2001:db8::9", "fe80::2"].map(|address| {
        let scope = if crate::local::is_link_local(address.parse().unwrap()) { Scope::Link } else { Scope::Global };
        held(2, address, scope)
    });
    let inside = Arc::new(PeerNamespace { addresses: addresses.to_vec(), macs: BTreeMap::new() });
    let kernel = Kernel { peers: HashMap::from([(0, inside)]), ..kernel(vec![veth(7, "veth7", Some(0), None)]) };
    let local = run(&kernel, &[manifest("a", behind("veth7"))]);
    assert_eq!(told(&local), ["a: veth7 10.0.0.2 fe80::2%n1/veth7"]);
    let interface = &local.workloads[&ContainerId::new("a")].interfaces[&7];
    let not_routed: Vec<String> = interface.not_routed.iter().map(ToString::to_string).collect();
    assert_eq!(not_routed, ["169.254.0.9", "203.0.113.9", "2001:db8::9"]);
}

#[test]
fn one_that_piles_up_addresses_is_denied() {
    let many = |count: u16| {
        let address = |number: u16| HeldAddress {
            interface: 2,
            address: IpAddr::from([10, 1, (number >> 8) as u8, number as u8]),
            scope: Scope::Global,
        };
        Arc::new(PeerNamespace { addresses: (0..count).map(address).collect(), macs: BTreeMap::new() })
    };
    for (count, denied) in [(64, false), (65, true)] {
        let kernel = Kernel { peers: HashMap::from([(0, many(count))]), ..kernel(vec![veth(7, "veth7", Some(0), None)]) };
        let local = run(&kernel, &[engine("a", Place::Namespace(0))]);
        let workload = &local.workloads[&ContainerId::new("a")];
        assert_eq!((workload.problem.is_some(), local.unknown.contains_key(&7)), (denied, denied), "{count}");
        assert_eq!(workload.id, WorkloadId::new("n1", "a"));
    }
}

#[test]
fn an_ipv4_mapped_address_is_not_reported() {
    let addresses = vec![held(2, "::ffff:10.0.0.9", Scope::Global), held(2, "10.0.0.2", Scope::Global)];
    let inside = Arc::new(PeerNamespace { addresses, macs: BTreeMap::new() });
    let kernel = Kernel { peers: HashMap::from([(0, inside)]), ..kernel(vec![veth(7, "veth7", Some(0), None)]) };
    let local = run(&kernel, &[engine("a", Place::Namespace(0))]);
    assert_eq!(told(&local), ["a: veth7 10.0.0.2"]);
}

#[test]
fn the_node_s_addresses_are_the_global_ones() {
    let own = vec![
        held(1, "127.0.0.1", Scope::Host),
        held(1, "203.0.113.7", Scope::Global),
        held(2, "192.0.2.1", Scope::Global),
        held(2, "fe80::1", Scope::Link),
        held(3, "172.17.0.1", Scope::Global),
    ];
    let local = run(&Kernel { own, ..Kernel::default() }, &[]);
    assert_eq!(local.node_addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["172.17.0.1", "192.0.2.1", "203.0.113.7"]);
}

#[test]
fn addresses_are_asked_for_where_they_can_matter() {
    let links = [
        veth(7, "veth7", Some(0), None),
        veth(8, "c8", Some(1), None),
        veth(9, "c9", Some(2), None),
        veth(10, "c10", Some(3), None),
        veth(11, "veth11", None, None),
        other(12, "veth12"),
    ];
    let identities = [manifest("a", behind("c8")), engine("b", Place::Namespace(2))];
    let wanted = wanted_peers(&[InterfacePattern::new("veth*").unwrap()], &links, &identities);
    let pairs = |index| BTreeSet::from([(index, 2)]);
    assert_eq!(wanted, BTreeMap::from([(0, pairs(7)), (1, pairs(8)), (2, pairs(9))]));
}
