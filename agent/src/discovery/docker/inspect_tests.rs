#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! Against answers recorded from an engine (Docker 20.10.24).

use super::*;
use serde_json::{Value, json};

const WEB: &str = include_str!("../../../tests/data/docker/container-web.json");
const HOST: &str = include_str!("../../../tests/data/docker/container-host.json");
const SIDE: &str = include_str!("../../../tests/data/docker/container-side.json");
const FBNET: &str = include_str!("../../../tests/data/docker/network-fbnet.json");
const BRIDGE: &str = include_str!("../../../tests/data/docker/network-bridge.json");
const IMAGE: &str = include_str!("../../../tests/data/docker/image.json");

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn networks() -> BTreeMap<String, NetworkFacts> {
    [FBNET, BRIDGE]
        .map(|text| serde_json::from_str::<NetworkInspect>(text).unwrap())
        .iter()
        .map(|answer| (answer.id.clone().unwrap(), network(answer).unwrap()))
        .collect()
}

fn read(answer: &Value) -> Result<Option<Container>, InspectError> {
    let image: ImageInspect = serde_json::from_str(IMAGE).unwrap();
    container(&serde_json::from_value(answer.clone()).unwrap(), Some(&image), &networks())
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_running_container_is_read_as_the_engine_tells_it() {
    let web = read(&value(WEB)).unwrap().unwrap();
    assert_eq!((web.name.as_str(), web.id.len(), web.pid > 1, &web.network), ("web", 64, true, &Network::Own));
    assert_eq!(web.labels, pairs(&[("com.docker.compose.project", "shop"), ("com.docker.compose.service", "web")]));
    assert_eq!(web.image_labels, pairs(&[("app", "imageapp"), ("from.image", "yes")]));
    assert_eq!(web.image, "fbtest");
    assert_eq!(web.bridges, [Bridge { name: "br-941e81c7031c".to_owned(), hidden: true }]);
    assert_eq!(web.ports, [Port { protocol: 6, host_address: None, host_port: 8080, container_port: 80 }]);
    assert_eq!(read(&value(HOST)).unwrap().unwrap().network, Network::Host);
    assert_eq!(read(&value(SIDE)).unwrap().unwrap().network, Network::Container { of: web.id });
}

#[test]
fn what_the_engine_gave_a_container_is_read_whole_or_the_container_is_refused() {
    let ours = Given { mac: Some([2, 0x42, 0xac, 0x12, 0, 2]), addresses: vec!["172.18.0.2".parse().unwrap()] };
    assert_eq!(read(&value(WEB)).unwrap().unwrap().given, [ours]);
    assert_eq!(read(&value(HOST)).unwrap().unwrap().given, []);
    let both = Given { mac: None, addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()] };
    let table = [
        (json!({"n": {"MacAddress": "", "IPAddress": "10.0.0.2", "GlobalIPv6Address": "fd00::2"}}), Ok(vec![both])),
        (json!({"n": {"MacAddress": "02:42", "IPAddress": "10.0.0.2"}}), Err("NetworkSettings.Networks[\"n\"].MacAddress")),
        (json!({"n": {"MacAddress": "", "IPAddress": "ten"}}), Err("NetworkSettings.Networks[\"n\"].IPAddress")),
    ];
    for (networks, expected) in table {
        let mut answer = value(WEB);
        answer["NetworkSettings"]["Networks"] = networks;
        let given = read(&answer).map(|container| container.unwrap().given).map_err(|error| error.field);
        assert_eq!(given, expected.map_err(str::to_owned));
    }
}

#[test]
fn a_label_with_the_image_s_value_is_the_image_s_and_one_that_was_changed_is_not() {
    let mut answer = value(WEB);
    answer["Config"]["Labels"] = json!({"app": "own", "from.image": "yes", "tier": "db"});
    let container = read(&answer).unwrap().unwrap();
    assert_eq!((container.labels, container.image_labels), (pairs(&[("app", "own"), ("tier", "db")]), pairs(&[("from.image", "yes")])));
}

#[test]
fn published_ports_are_read_whole_or_the_container_is_refused() {
    let all = |port, protocol| Port { protocol, host_address: None, host_port: port, container_port: 80 };
    let table = [
        (json!({}), Ok(vec![])),
        (json!({"80/tcp": null}), Ok(vec![])),
        (json!({"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}]}), Ok(vec![all(8080, 6)])),
        (json!({"80/udp": [{"HostIp": "", "HostPort": "53"}]}), Ok(vec![all(53, 17)])),
        (json!({"80/sctp": [{"HostIp": "", "HostPort": "9"}]}), Ok(vec![all(9, 132)])),
        (
            json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}),
            Ok(vec![Port { host_address: Some("127.0.0.1".parse().unwrap()), ..all(8080, 6) }]),
        ),
        (json!({"80/tcp": [{"HostIp": "all", "HostPort": "8080"}]}), Err("HostIp \"all\" is no address")),
        (json!({"80/tcp": [{"HostIp": "", "HostPort": "99999"}]}), Err("HostPort \"99999\" is no port")),
        (json!({"80/tcp": [{"HostIp": "", "HostPort": ""}]}), Err("HostPort \"\" is no port")),
        (json!({"80/tcp": [{"HostIp": "", "HostPort": "0"}]}), Err("HostPort \"0\" is no port")),
        (json!({"80": [{"HostIp": "", "HostPort": "1"}]}), Err("is no port and protocol")),
        (json!({"80/dccp": [{"HostIp": "", "HostPort": "1"}]}), Err("is no port and protocol")),
        (json!({"http/tcp": [{"HostIp": "", "HostPort": "1"}]}), Err("is no port and protocol")),
    ];
    for (ports, expected) in table {
        let mut answer = value(WEB);
        answer["NetworkSettings"]["Ports"] = ports.clone();
        match (read(&answer), expected) {
            (Ok(container), Ok(expected)) => assert_eq!(container.unwrap().ports, expected, "{ports}"),
            (Err(error), Err(reason)) => {
                assert!(error.field.starts_with("NetworkSettings.Ports["), "{error}");
                assert_eq!(error.reason, reason, "{ports}");
            }
            (read, expected) => panic!("{ports}: {read:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn what_is_not_running_is_nobody_and_what_has_no_process_is_refused() {
    let with = |path: &str, to: Value| {
        let mut answer = value(WEB);
        *answer.pointer_mut(path).unwrap() = to;
        answer
    };
    assert_eq!(read(&with("/State/Running", json!(false))), Ok(None));
    for (answer, field) in [
        (with("/State/Pid", json!(0)), "State.Pid"),
        (with("/State/Pid", json!(-1)), "State.Pid"),
        (with("/State", json!(null)), "State"),
        (with("/Id", json!("")), "Id"),
    ] {
        assert_eq!(read(&answer).unwrap_err().field, field);
    }
    assert_eq!(read(&with("/HostConfig/NetworkMode", json!("none"))).unwrap().unwrap().network, Network::None);
    assert_eq!(read(&with("/Name", json!(null))).unwrap().unwrap().name.len(), 64, "without a name, the id stands for it");
}

#[test]
fn a_bridge_hides_its_addresses_unless_it_is_routed() {
    let bridge = |name: &str, hidden| Some(Bridge { name: name.to_owned(), hidden });
    let masquerade = |value: &str| json!({"com.docker.network.bridge.name": "b0", "com.docker.network.bridge.enable_ip_masquerade": value});
    let mode = |value: &str| json!({"com.docker.network.bridge.name": "b0", "com.docker.network.bridge.gateway_mode_ipv4": value});
    let id = "941e81c7031c8aae4823c3179d7fafbcf0d17d08a016b07fe6c8219936a8ca5c";
    let table = [
        (json!({"Driver": "bridge", "Id": id, "Options": {}}), Ok(bridge("br-941e81c7031c", true))),
        (json!({"Driver": "bridge", "Id": id, "Options": null}), Ok(bridge("br-941e81c7031c", true))),
        (json!({"Driver": "bridge", "Id": id, "Options": masquerade("true")}), Ok(bridge("b0", true))),
        (json!({"Driver": "bridge", "Id": id, "Options": masquerade("false")}), Ok(bridge("b0", false))),
        (json!({"Driver": "bridge", "Id": id, "Options": masquerade("false"), "Internal": true}), Ok(bridge("b0", true))),
        (json!({"Driver": "bridge", "Id": id, "Options": mode("routed")}), Ok(bridge("b0", false))),
        (json!({"Driver": "bridge", "Id": id, "Options": mode("nat")}), Ok(bridge("b0", true))),
        (json!({"Driver": "bridge", "Id": id, "Options": mode("isolated")}), Ok(bridge("b0", true))),
        (json!({"Driver": "macvlan", "Id": id}), Ok(None)),
        (json!({"Driver": "host", "Id": id}), Ok(None)),
        (json!({"Driver": "bridge", "Id": "short"}), Err("Id")),
        (json!({"Id": id}), Err("Driver")),
    ];
    for (answer, expected) in table {
        let read = network(&serde_json::from_value(answer.clone()).unwrap());
        assert_eq!(read.as_ref().map(|facts| facts.bridge.clone()).map_err(|error| error.field.as_str()), expected, "{answer}");
    }
}
