//! Who is behind the interfaces: what manifests declare and what the Docker engine runs, in one form.

use super::assemble::{Identity, Networks, Place};
use super::docker::{Container, Given, Network};
use crate::dataplane::MacAddress;
use crate::local::Vouched;
use firebreak_policy::model::{ContainerId, Labels, NamespaceName, NetworkName, Protocol, PublishedPort, WorkloadSource};
use firebreak_proto::workload::DeclaredWorkload;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The Compose project of a container becomes its namespace.
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
/// The Compose service becomes the label `app` where there is no such label.
const COMPOSE_SERVICE: &str = "com.docker.compose.service";
/// The namespace of containers that belong to no Compose project.
const DOCKER_NAMESPACE: &str = "docker";

/// A workload that a manifest declares.
pub fn declared(workload: &DeclaredWorkload, place: Place) -> Identity {
    let DeclaredWorkload { container, name, namespace, labels, named_ports, published_ports, network, location: _, addresses } = workload;
    let declared_place = workload.place();
    Identity {
        container: container.clone(),
        name: name.clone(),
        namespace: namespace.clone(),
        labels: labels.clone(),
        image_labels: BTreeMap::new(),
        image: String::new(),
        named_ports: named_ports.clone(),
        published_ports: published_ports.clone(),
        source: WorkloadSource::Manifest,
        place,
        declared_place,
        networks: Networks::Fixed(network.clone().unwrap_or_else(NetworkName::default_network)),
        vouched: (!addresses.is_empty()).then(|| Vouched { macs: BTreeSet::new(), addresses: addresses.clone() }),
    }
}

/// A container of the engine. Labels of its image select nothing, the Compose labels included.
pub fn docker(container: &Container, place: Place) -> Identity {
    let Container { id, name, pid: _, labels, image_labels, image, network: _, bridges, given, ports } = container;
    let namespace = labels.get(COMPOSE_PROJECT).map_or(DOCKER_NAMESPACE, String::as_str);
    let mut selecting = labels.clone();
    if let (Some(service), false) = (labels.get(COMPOSE_SERVICE), labels.contains_key("app")) {
        selecting.insert("app".to_owned(), service.clone());
    }
    let published_ports = ports
        .iter()
        .map(|port| PublishedPort {
            protocol: Protocol(port.protocol),
            host_address: port.host_address,
            host_port: port.host_port,
            workload_port: port.container_port,
        })
        .collect();
    Identity {
        container: ContainerId::new(id),
        name: name.clone(),
        namespace: NamespaceName::new(namespace),
        labels: Labels(selecting),
        image_labels: image_labels.clone(),
        image: image.clone(),
        named_ports: Vec::new(),
        published_ports,
        source: WorkloadSource::Docker,
        place,
        declared_place: String::new(),
        networks: Networks::HiddenBehind(bridges.iter().filter(|bridge| bridge.hidden).map(|bridge| bridge.name.clone()).collect()),
        vouched: vouched(given),
    }
}

/// What the engine gave to a container; an engine that gave no address (to a network of another driver) knows of none.
fn vouched(given: &[Given]) -> Option<Vouched> {
    let addresses: BTreeSet<IpAddr> = given.iter().flat_map(|given| &given.addresses).copied().collect();
    let macs = given.iter().filter_map(|given| given.mac).map(MacAddress).collect();
    (!addresses.is_empty()).then_some(Vouched { macs, addresses })
}

/// Where a container is, as far as the engine tells; `None` when its process has to be looked at.
pub fn told_place(container: &Container) -> Option<Place> {
    match &container.network {
        Network::Own => None,
        Network::Host => Some(Place::Host),
        Network::None => Some(Place::NoNetwork),
        Network::Container { of } => Some(Place::SharedWith(of.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::assemble::{Kernel, assemble};
    use crate::discovery::docker::{Bridge, Port};
    use firebreak_policy::model::NodeName;
    use firebreak_proto::workload::Location;

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn container(labels: &[(&str, &str)], image_labels: &[(&str, &str)]) -> Container {
        Container {
            id: "c".repeat(64),
            name: "shop-web-1".to_owned(),
            pid: 4711,
            labels: pairs(labels),
            image_labels: pairs(image_labels),
            image: "shop/web:1".to_owned(),
            network: Network::Own,
            bridges: vec![Bridge { name: "br-1".to_owned(), hidden: true }, Bridge { name: "br-2".to_owned(), hidden: false }],
            given: vec![Given { mac: Some([2, 66, 172, 17, 0, 2]), addresses: vec![IpAddr::from([172, 17, 0, 2])] }],
            ports: vec![Port { protocol: 6, host_address: None, host_port: 8080, container_port: 80 }],
        }
    }

    fn declaration() -> DeclaredWorkload {
        DeclaredWorkload {
            container: ContainerId::new("shop.db"),
            name: "db".to_owned(),
            namespace: NamespaceName::new("shop"),
            labels: Labels::default(),
            named_ports: Vec::new(),
            published_ports: Vec::new(),
            network: None,
            location: Location::NetworkNamespace("db".to_owned()),
            addresses: BTreeSet::new(),
        }
    }

    #[test]
    fn a_manifest_vouches_for_the_addresses_that_it_lists() {
        let address = IpAddr::from([10, 0, 0, 7]);
        let mut workload = declaration();
        assert_eq!(declared(&workload, Place::Namespace(1)).vouched, None);
        workload.addresses.insert(address);
        let vouched = Vouched { macs: BTreeSet::new(), addresses: [address].into() };
        assert_eq!(declared(&workload, Place::Namespace(1)).vouched, Some(vouched));
    }

    #[test]
    fn a_report_repeats_what_the_manifest_says_of_the_place_whatever_its_labels() {
        let reported = |identity: Identity| {
            let container = identity.container.clone();
            let local = assemble(&NodeName::new("n1"), &[], &Kernel::default(), &[identity]);
            local.workloads[&container].report().declared_place
        };
        let of = |workload: &DeclaredWorkload| reported(declared(workload, Place::Namespace(1)));
        let first = declaration();
        let place = of(&first);
        assert_eq!((place.is_empty(), &place), (false, &first.place()));
        assert_eq!(of(&DeclaredWorkload { labels: [("app", "db")].into_iter().collect(), ..first.clone() }), place);
        for elsewhere in [
            DeclaredWorkload { location: Location::NetworkNamespace("other".to_owned()), ..first.clone() },
            DeclaredWorkload { location: Location::Interface("db".into()), ..first.clone() },
            DeclaredWorkload { network: Some(NetworkName::new("vpc")), ..first.clone() },
            DeclaredWorkload { addresses: [IpAddr::from([10, 0, 0, 7])].into(), ..first.clone() },
        ] {
            assert_ne!(of(&elsewhere), place, "{elsewhere:?}");
        }
        assert_eq!(reported(docker(&container(&[], &[]), Place::Namespace(1))), "");
    }

    #[test]
    fn compose_labels_become_namespace_and_app() {
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let project = (COMPOSE_PROJECT, "shop");
        let service = (COMPOSE_SERVICE, "web");
        let table: &[(Pairs<'_>, Pairs<'_>, &str, Option<&str>)] = &[
            (&[], &[], "docker", None),
            (&[project, service], &[], "shop", Some("web")),
            (&[project, service, ("app", "front")], &[], "shop", Some("front")),
            (&[service], &[], "docker", Some("web")),
            (&[("app", "x")], &[], "docker", Some("x")),
            (&[], &[project, service, ("app", "y")], "docker", None),
        ];
        for (labels, image_labels, namespace, app) in table {
            let identity = docker(&container(labels, image_labels), Place::Namespace(1));
            assert_eq!((identity.namespace.as_str(), identity.labels.get("app")), (*namespace, *app), "{labels:?}");
            assert_eq!((identity.image_labels, &*identity.image), (pairs(image_labels), "shop/web:1"));
        }
    }

    #[test]
    fn a_container_keeps_its_ports_and_the_bridges_that_hide_it() {
        let identity = docker(&container(&[], &[]), Place::Namespace(1));
        let published = PublishedPort { protocol: Protocol::TCP, host_address: None, host_port: 8080, workload_port: 80 };
        assert_eq!(identity.published_ports, [published]);
        assert_eq!(identity.networks, Networks::HiddenBehind(["br-1".to_owned()].into()));
    }

    #[test]
    fn only_a_container_with_a_network_of_its_own_is_looked_for() {
        for (network, place) in [
            (Network::Own, None),
            (Network::Host, Some(Place::Host)),
            (Network::None, Some(Place::NoNetwork)),
            (Network::Container { of: "other".to_owned() }, Some(Place::SharedWith("other".to_owned()))),
        ] {
            assert_eq!(told_place(&Container { network, ..container(&[], &[]) }), place);
        }
    }
}
