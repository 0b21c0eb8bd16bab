#![allow(clippy::unwrap_used)]

use super::*;
use firebreak_policy::model::{NamespaceName, PolicyKey, PolicyKind, PublishedPort, WorkloadId};
use firebreak_policy::node_state::{Isolation, Rulebook, Segment, SegmentId};

/// One workload with a published port; `host_access` is its policy's, `None` is no policy.
fn state(host_access: Option<HostAccess>, addresses: &[&str], host_address: Option<&str>) -> NodeState {
    let segment = SegmentId("s".into());
    let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: NamespaceName::new("shop"), name: "p".to_owned() };
    let isolation = host_access.map(|host_access| Isolation { policies: vec![policy], host_access, rules: Vec::new() });
    let id = WorkloadId::new("n1", "db");
    let host_address = host_address.map(|address| address.parse().unwrap());
    let endpoint = LocalEndpoint {
        id: id.clone(),
        name: "db".to_owned(),
        namespace: NamespaceName::new("shop"),
        segment: segment.clone(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        published_ports: vec![PublishedPort { protocol: Protocol::TCP, host_address, host_port: 15432, workload_port: 5432 }],
    };
    let mut state = NodeState::default();
    state.segments.insert_shared(
        segment.clone(),
        Arc::new(Segment {
            id: segment,
            title: "db".to_owned(),
            rules: Rulebook { ingress: isolation, ..Rulebook::default() }.into(),
            audit: None,
        }),
    );
    state.endpoints.insert_shared(id, Arc::new(endpoint));
    state
}

#[test]
fn only_a_port_that_leads_past_a_policy_is_warned_of() {
    use HostAccess::{Allow, Judge};
    let listens = Listening::from([(Protocol::TCP, 15432)]);
    let other = Listening::from([(Protocol::UDP, 15432), (Protocol::TCP, 5432)]);
    let v4 = ["172.17.0.2", "fe80::2"];
    for (case, state, listening, expected) in [
        ("relayed", state(Some(Allow), &v4, None), &listens, true),
        ("relayed at one address", state(Some(Allow), &v4, Some("fd77::1")), &listens, true),
        ("nobody relays", state(Some(Allow), &v4, None), &other, false),
        ("the node is judged", state(Some(Judge), &v4, None), &listens, false),
        ("not isolated", state(None, &v4, None), &listens, false),
        ("IPv4 only, which destination NAT serves", state(Some(Allow), &v4, Some("0.0.0.0")), &listens, false),
        ("both families", state(Some(Allow), &["172.17.0.2", "fd00::2"], None), &listens, false),
    ] {
        let warning = warning(&open_ports(&state), listening);
        assert_eq!(warning.is_some(), expected, "{case}");
        assert!(
            warning.is_none_or(|warning| warning.message.contains("shop/db (port 15432)") && warning.message.contains("hostAccess: Judge"))
        );
    }
}

#[test]
fn who_listens_is_read_from_the_kernels_tables() {
    let table = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
        0: 00000000000000000000000000000000:3C48 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0\n   \
        1: 00000000000000000000000001000000:1538 00000000000000000000000001000000:9C40 01 00000000:00000000 00:00000000 00000000     0        0\n";
    assert_eq!(bound(table, "0A").collect::<Vec<_>>(), [15432]);
    let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(listening().unwrap().contains(&(Protocol::TCP, port)));
    drop(listener);
    assert!(!listening().unwrap().contains(&(Protocol::TCP, port)));
}
