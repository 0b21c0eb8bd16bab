//! States whose names say what is peculiar about them. What one leaves behind in an index, another may stumble over.

use super::State;
use firebreak_policy::model::*;
use firebreak_policy::reserved::{LabelRule, RESERVED_PREFIX, apply};
use std::collections::BTreeMap;

/// Two nodes, two declared namespaces; shop/web, shop/api and ops/web on n1, shop/db (port http is 80/TCP) and other/web, of a namespace that nobody
/// declared, on n2.
fn cluster() -> Inventory {
    let mut inventory = Inventory::default();
    for (name, labels) in [("shop", vec![("team", "x")]), ("ops", vec![("team", "y")])] {
        inventory.namespaces.insert(name.into(), Namespace { name: name.into(), labels: labels.into_iter().collect() });
    }
    for (name, zone, address) in [("n1", "a", "10.0.0.1"), ("n2", "b", "10.0.0.2")] {
        let node = Node { name: name.into(), labels: [("zone", zone)].into_iter().collect(), addresses: vec![address.parse().unwrap()] };
        inventory.nodes.insert(name.into(), node);
    }
    for (node, namespace, app, address) in [
        ("n1", "shop", "web", "10.1.0.1"),
        ("n1", "shop", "api", "10.1.0.2"),
        ("n1", "ops", "web", "10.1.0.3"),
        ("n2", "shop", "db", "10.1.1.1"),
        ("n2", "other", "web", "10.1.1.2"),
    ] {
        add(&mut inventory, node, namespace, app, &[address]);
    }
    change(&mut inventory, "n2", "shop.db", |it| it.named_ports = vec![http(Protocol::TCP, 80)]);
    inventory
}

fn http(protocol: Protocol, port: u16) -> NamedPort {
    NamedPort { name: "http".to_owned(), protocol, port }
}

fn at(text: &str) -> NetworkAddress {
    let (address, network) = text.split_once('%').map_or((text, NetworkName::default_network()), |(at, network)| (at, network.into()));
    NetworkAddress { network, address: address.parse().unwrap() }
}

fn add(inventory: &mut Inventory, node: &str, namespace: &str, app: &str, addresses: &[&str]) {
    let id = WorkloadId::new(node, format!("{namespace}.{app}"));
    let workload = Workload {
        id: id.clone(),
        name: app.to_owned(),
        namespace: namespace.into(),
        labels: [("app", app)].into_iter().collect(),
        addresses: addresses.iter().map(|it| at(it)).collect(),
        named_ports: Vec::new(),
        published_ports: Vec::new(),
        interface: None,
        host_network: false,
        terminated: false,
        source: WorkloadSource::Manifest,
    };
    inventory.workloads.insert(id, workload);
}

fn change(inventory: &mut Inventory, node: &str, container: &str, how: impl FnOnce(&mut Workload)) {
    how(inventory.workloads.get_mut(&WorkloadId::new(node, container)).unwrap());
}

fn selector(text: &str) -> LabelSelector {
    text.parse().unwrap()
}

fn own(workloads: &str) -> Peer {
    Peer::Workloads { namespaces: NamespaceScope::Own, workloads: selector(workloads) }
}

fn across(namespaces: &str, workloads: &str) -> Peer {
    Peer::Workloads { namespaces: NamespaceScope::Matching(selector(namespaces)), workloads: selector(workloads) }
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Cidr(CidrBlock { cidr: cidr.parse().unwrap(), except: except.iter().map(|it| it.parse().unwrap()).collect() })
}

fn group(name: &str) -> Peer {
    Peer::Group(name.into())
}

fn named() -> Services {
    Services::Only(vec![Service::Named(Protocol::TCP, "http".to_owned())])
}

fn rule(peers: impl IntoIterator<Item = Peer>, services: Services) -> Rule {
    Rule { name: None, peers: Peers::Only(peers.into_iter().collect()), services }
}

fn from(peer: Peer) -> Vec<Rule> {
    vec![rule([peer], Services::Any)]
}

fn policy(name: &str, subject: &str, ingress: Vec<Rule>) -> Policy {
    let key = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: "shop".into(), name: name.to_owned() };
    Policy { key, mode: Mode::Enforce, subject: selector(subject), ingress: Some(ingress), egress: None, host_access: HostAccess::Allow }
}

fn tiered(name: &str, tier: Tier, priority: u16, action: Action, peers: Vec<Peer>) -> TieredPolicy {
    TieredPolicy {
        key: PolicyKey::cluster_scoped(PolicyKind::ClusterSegmentPolicy, name.to_owned()),
        tier,
        priority,
        mode: Mode::Enforce,
        subject: Subject { namespaces: selector("team=x"), workloads: LabelSelector::everything() },
        ingress: vec![TieredRule { name: None, action, peers: Peers::Only(peers), services: Services::Any, reason: None }],
        egress: Vec::new(),
    }
}

fn policies(all: impl IntoIterator<Item = Policy>) -> PolicySet {
    PolicySet { policies: all.into_iter().map(|it| (it.key.clone(), it)).collect(), ..PolicySet::default() }
}

fn tiers(mut set: PolicySet, all: impl IntoIterator<Item = TieredPolicy>) -> PolicySet {
    set.tiered.extend(all.into_iter().map(|it| (it.key.clone(), it)));
    set
}

fn with_group(mut set: PolicySet, name: &str, blocks: &[&str]) -> PolicySet {
    let blocks = blocks.iter().map(|it| CidrBlock { cidr: it.parse().unwrap(), except: Vec::new() }).collect();
    set.address_groups.insert(name.into(), AddressGroup { name: name.into(), blocks });
    set
}

/// shop/db lets in shop/api.
fn guarded() -> PolicySet {
    policies([policy("db", "app=db", from(own("app=api")))])
}

fn sharing() -> PolicySet {
    policies([policy("db", "app=db", from(own("app=api"))), policy("web", "app=web", from(own("app=api")))])
}

fn letting_in_the_db() -> PolicySet {
    policies([policy("web", "app=web", from(own("app=db")))])
}

/// The db is about whoever has the reserved label, which a rule gives to shop/api; a workload that says so itself is passed over.
fn reserved(mut inventory: Inventory, given: &str) -> (PolicySet, Inventory) {
    let key = format!("{RESERVED_PREFIX}zone");
    change(&mut inventory, "n1", "ops.web", |it| drop(it.labels.0.insert(key.clone(), "pci".to_owned())));
    let rule = LabelRule {
        name: "zones".to_owned(),
        namespaces: selector("team=x"),
        workloads: selector(given),
        nodes: LabelSelector::everything(),
        images: Vec::new(),
        labels: [(key.clone(), "pci".to_owned())].into_iter().collect(),
    };
    apply(&[(rule.name.clone(), rule)].into(), &mut inventory, &BTreeMap::new());
    (policies([policy("db", "app=db", from(across("", &format!("{key}=pci"))))]), inventory)
}

fn edited(how: impl FnOnce(&mut Inventory)) -> Inventory {
    let mut inventory = cluster();
    how(&mut inventory);
    inventory
}

fn bare() -> Inventory {
    edited(|it| it.workloads.clear())
}

/// What is peculiar about policies.
fn written() -> Vec<(&'static str, State)> {
    let in_mode = |mode, of: Policy| Policy { mode, ..of };
    let egress = |services| Policy { ingress: None, egress: Some(vec![rule([own("")], services)]), ..policy("out", "app=web", Vec::new()) };
    let host = Policy { host_access: HostAccess::Judge, ..policy("db", "app=db", from(Peer::Entity(Entity::Host))) };
    let drop_it = Action::Deny(Answer::Drop);
    let mut world = policies([policy("db", "app=db", from(Peer::Entity(Entity::World)))]);
    world.cluster_networks = vec!["10.1.0.0/16".parse().unwrap()];
    vec![
        ("workloads that no policy is about", (PolicySet::default(), cluster())),
        ("a policy that selects nobody", (policies([policy("nobody", "app=nobody", from(own("")))]), cluster())),
        ("a policy without rules", (policies([policy("closed", "", Vec::new())]), cluster())),
        ("one workload lets in another", (guarded(), cluster())),
        ("two segments share a group", (sharing(), cluster())),
        (
            "two policies about the same workload",
            (
                policies([policy("db", "app=db", from(own("app=api"))), policy("more", "app in (db, web)", from(across("team=y", "")))]),
                cluster(),
            ),
        ),
        (
            "an allow of a tier over a policy",
            (tiers(guarded(), [tiered("first", Tier::Admin, 5, Action::Allow, vec![across("", "")])]), cluster()),
        ),
        (
            "tiers deny what a policy allows",
            (tiers(guarded(), [tiered("first", Tier::Admin, 5, drop_it, vec![across("", "app=api")])]), cluster()),
        ),
        (
            "a tier passes what the next one denies",
            (
                tiers(
                    PolicySet::default(),
                    [
                        tiered("first", Tier::Admin, 5, Action::Pass, vec![across("", "")]),
                        tiered("last", Tier::Baseline, 0, Action::Deny(Answer::Reject), vec![across("", "")]),
                    ],
                ),
                cluster(),
            ),
        ),
        (
            "two policies of one priority",
            (
                tiers(
                    guarded(),
                    [
                        tiered("one", Tier::Admin, 5, drop_it, vec![across("team=y", "")]),
                        tiered("other", Tier::Admin, 5, Action::Allow, vec![across("", "")]),
                    ],
                ),
                cluster(),
            ),
        ),
        ("audit alone", (policies([in_mode(Mode::Audit, policy("db", "app=db", from(own("app=api"))))]), cluster())),
        (
            "audit beside what is enforced",
            (
                policies([policy("db", "app=db", from(own("app=api"))), in_mode(Mode::Audit, policy("more", "app=db", Vec::new()))]),
                cluster(),
            ),
        ),
        ("a named port of its own", (policies([policy("db", "app in (db, web)", vec![rule([own("")], named())])]), cluster())),
        ("a named port of others", (policies([egress(named())]), cluster())),
        ("blocks with a hole", (policies([policy("db", "app=db", from(block("10.1.0.0/16", &["10.1.0.2/32"])))]), cluster())),
        ("the world", (world, cluster())),
        ("the node is judged", (policies([host]), cluster())),
        (
            "nodes as peers",
            (tiers(PolicySet::default(), [tiered("nodes", Tier::Admin, 1, drop_it, vec![Peer::Nodes(selector("zone=a"))])]), cluster()),
        ),
        (
            "an address group",
            (with_group(policies([policy("db", "app=db", from(group("office")))]), "office", &["10.9.0.0/24", "10.1.0.1/32"]), cluster()),
        ),
        (
            "another content of the address group",
            (with_group(policies([policy("db", "app=db", from(group("office")))]), "office", &["10.1.0.2/32"]), cluster()),
        ),
        ("address group missing", (policies([policy("db", "app=db", from(group("office")))]), cluster())),
        (
            "address group missing from a deny",
            (tiers(guarded(), [tiered("first", Tier::Admin, 5, drop_it, vec![group("office")])]), cluster()),
        ),
        ("a peer that nobody knows", (tiers(guarded(), [tiered("first", Tier::Admin, 5, Action::Pass, vec![Peer::Unknown])]), cluster())),
    ]
}

/// What is peculiar about what is running.
fn running() -> Vec<(&'static str, State)> {
    let here = |how: fn(&mut Inventory)| (sharing(), edited(how));
    let deny_all_of_shop = || tiers(sharing(), [tiered("first", Tier::Admin, 5, Action::Deny(Answer::Drop), vec![across("", "app=api")])]);
    let ports = || {
        policies([Policy {
            egress: Some(vec![rule([own("")], named())]),
            ..policy("db", "app in (db, web)", vec![rule([own("")], named())])
        }])
    };
    vec![
        ("nothing", State::default()),
        ("policies without anything that runs", (sharing(), Inventory::default())),
        ("namespace without workloads", (sharing(), bare())),
        (
            "a workload of another application",
            here(|it| change(it, "n1", "shop.api", |it| it.labels = [("app", "db")].into_iter().collect())),
        ),
        ("workloads that no label names", here(|it| change(it, "n1", "shop.api", |it| it.labels = [("tier", "a")].into_iter().collect()))),
        ("a workload of another namespace", here(|it| change(it, "n1", "shop.api", |it| it.namespace = "ops".into()))),
        (
            "a namespace with other labels",
            (
                deny_all_of_shop(),
                edited(|it| {
                    drop(
                        it.namespaces
                            .insert("shop".into(), Namespace { name: "shop".into(), labels: [("team", "y")].into_iter().collect() }),
                    )
                }),
            ),
        ),
        ("a namespace that is not declared", (deny_all_of_shop(), edited(|it| drop(it.namespaces.remove("shop"))))),
        ("nodes that are not declared", here(|it| it.nodes.clear())),
        (
            "a node with other labels and addresses",
            (
                tiers(
                    PolicySet::default(),
                    [tiered("nodes", Tier::Admin, 1, Action::Deny(Answer::Drop), vec![Peer::Nodes(selector("zone=a"))])],
                ),
                edited(|it| {
                    it.nodes.insert(
                        "n2".into(),
                        Node {
                            name: "n2".into(),
                            labels: [("zone", "a")].into_iter().collect(),
                            addresses: vec!["10.0.0.9".parse().unwrap()],
                        },
                    );
                }),
            ),
        ),
        (
            "a workload that ended and one in its node's network",
            here(|it| {
                change(it, "n1", "shop.api", |it| it.terminated = true);
                change(it, "n1", "ops.web", |it| it.host_network = true);
            }),
        ),
        (
            "a workload with another address",
            here(|it| change(it, "n1", "shop.api", |it| it.addresses = vec![at("10.1.0.8"), at("fd00::8")])),
        ),
        ("a workload without addresses", here(|it| change(it, "n1", "shop.api", |it| it.addresses.clear()))),
        ("address claimed twice", here(|it| add(it, "n2", "ops", "thief", &["10.1.0.2"]))),
        ("address claimed twice where it is denied", (deny_all_of_shop(), edited(|it| add(it, "n2", "ops", "thief", &["10.1.0.2"])))),
        ("address claimed by a node too", here(|it| change(it, "n1", "shop.api", |it| it.addresses = vec![at("10.0.0.2")]))),
        ("an address of a hidden network", here(|it| change(it, "n1", "shop.api", |it| it.addresses = vec![at("172.17.0.2%n1/docker0")]))),
        (
            "an address of a hidden network that others have too",
            here(|it| {
                change(it, "n1", "shop.api", |it| it.addresses.push(at("10.1.1.1%n1/docker0")));
                add(it, "n2", "shop", "apart", &["10.1.0.1%n2/docker0"]);
            }),
        ),
        ("a peer of another node", (letting_in_the_db(), cluster())),
        (
            "a peer whose address a hidden network has too",
            (letting_in_the_db(), edited(|it| change(it, "n1", "ops.web", |it| it.addresses.push(at("10.1.1.1%n1/docker0"))))),
        ),
        (
            "other numbers of a named port",
            (
                ports(),
                edited(|it| {
                    change(it, "n2", "shop.db", |it| it.named_ports = vec![http(Protocol::TCP, 8080), http(Protocol::UDP, 53)]);
                    change(it, "n1", "shop.web", |it| it.named_ports = vec![http(Protocol::TCP, 8080)]);
                }),
            ),
        ),
        (
            "a published port",
            here(|it| {
                change(it, "n2", "shop.db", |it| {
                    it.published_ports =
                        vec![PublishedPort { protocol: Protocol::TCP, host_address: None, host_port: 5432, workload_port: 5432 }];
                })
            }),
        ),
        ("reserved labels", reserved(cluster(), "app=api")),
        ("reserved labels of another workload", reserved(cluster(), "app=web")),
    ]
}

/// Every state with its name.
pub(super) fn all() -> Vec<(&'static str, State)> {
    written().into_iter().chain(running()).collect()
}
