//! Requests that are refused: each with its code, the field and the reason, and nothing half done.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api_support;

use api_support::{Server, namespace, object, policy, policy_json, reference};
use firebreak_proto::v1;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What a refusal has to say.
struct Expected {
    code: Code,
    /// Parts of the message, or of the field violations.
    parts: &'static [&'static str],
}

fn invalid(parts: &'static [&'static str]) -> Expected {
    Expected { code: Code::InvalidArgument, parts }
}

fn check(case: &str, status: &Status, expected: &Expected) {
    assert_eq!(status.code(), expected.code, "{case}: {status}");
    let mut text = status.message().to_owned();
    if let Some(bad) = status.get_details_bad_request() {
        for violation in bad.field_violations {
            text.push_str(&format!("\n{}: {}", violation.field, violation.description));
        }
    } else {
        assert_ne!(status.code(), Code::InvalidArgument, "{case}: a bad request names its fields: {status}");
    }
    for part in expected.parts {
        assert!(text.contains(part), "{case}: {part:?} is not in {text}");
    }
}

fn with(change: impl FnOnce(&mut v1::Object)) -> v1::Object {
    let mut object = policy("shop", "db", "db");
    change(&mut object);
    object
}

fn edited(change: impl FnOnce(&mut serde_json::Value)) -> v1::Object {
    let mut value = policy_json("shop", "db", "db");
    change(&mut value);
    object(&value)
}

fn bad_objects() -> Vec<(&'static str, v1::Object, Expected)> {
    vec![
        ("empty kind", with(|object| object.kind.clear()), invalid(&["objects[1].kind", "is empty"])),
        ("empty name", with(|object| object.name.clear()), invalid(&["objects[1].name", "is empty"])),
        ("unknown kind", with(|object| object.json = object_json("Ingress").into()), invalid(&["objects[1]", "Ingress"])),
        (
            "kind mismatch",
            with(|object| object.kind = "NetworkPolicy".to_owned()),
            invalid(&["objects[1].kind", "\"NetworkPolicy\"", "JSON says \"SegmentPolicy\""]),
        ),
        ("name mismatch", with(|object| object.name = "web".to_owned()), invalid(&["objects[1].name", "\"web\"", "\"db\""])),
        (
            "namespace mismatch",
            with(|object| object.namespace = "team".to_owned()),
            invalid(&["objects[1].namespace", "\"team\"", "\"shop\""]),
        ),
        ("empty namespace", with(|object| object.namespace.clear()), invalid(&["objects[1].namespace", "\"\""])),
        ("api version mismatch", with(|object| object.api_version = "v1".to_owned()), invalid(&["objects[1].api_version", "\"v1\""])),
        ("no JSON", with(|object| object.json = "".into()), invalid(&["objects[1] SegmentPolicy shop/db"])),
        ("broken JSON", with(|object| object.json = "{\"kind\":".into()), invalid(&["objects[1] SegmentPolicy shop/db"])),
        (
            "not UTF-8",
            with(|object| object.json = vec![b'{', 0xff, b'}'].into()),
            invalid(&["objects[1] SegmentPolicy shop/db", "cannot be read as JSON"]),
        ),
        ("a list", with(|object| object.json = "[]".into()), invalid(&["objects[1] SegmentPolicy shop/db"])),
        ("duplicate key", with(|object| object.json = r#"{"kind":"SegmentPolicy","kind":"Pod"}"#.into()), invalid(&["objects[1]", "kind"])),
        (
            "unknown field",
            edited(|value| value["spec"]["logLevel"] = json!("all")),
            invalid(&["objects[1] SegmentPolicy shop/db: spec.logLevel", "not a known field"]),
        ),
        ("wrong type", edited(|value| value["spec"]["ingress"] = json!("all")), invalid(&["spec.ingress"])),
        (
            "bad port",
            edited(|value| value["spec"]["ingress"][0]["ports"][0]["port"] = json!(70_000)),
            invalid(&["spec.ingress[0].ports[0].port", "70000"]),
        ),
        (
            "bad block",
            edited(|value| value["spec"]["ingress"][0]["from"] = json!([{"cidr": "10.0.0.0/40"}])),
            invalid(&["spec.ingress[0].from[0]", "10.0.0.0/40"]),
        ),
        ("a mode that is none", edited(|value| value["spec"]["mode"] = json!("Maybe")), invalid(&["objects[1]", "spec.mode", "Maybe"])),
        ("an answer that is none", object(&tier("Shout")), invalid(&["objects[1]", "spec.ingress[0].answer", "Shout"])),
        ("empty peers", edited(|value| value["spec"]["ingress"][0]["from"] = json!([])), invalid(&["spec.ingress[0].from"])),
        ("bad name", edited(|value| value["metadata"]["name"] = json!("Bad_Name")), invalid(&["metadata.name", "Bad_Name"])),
        (
            "two faults",
            edited(|value| {
                value["spec"]["x"] = json!(1);
                value["spec"]["y"] = json!(2);
            }),
            invalid(&["2 faults", "spec.x", "spec.y"]),
        ),
        ("too large", with(|object| object.json = vec![b' '; (1 << 20) + 1].into()), invalid(&["objects[1].json", "1048577 bytes"])),
        ("named twice", namespace("good"), invalid(&["objects[1]", "Namespace good is named twice"])),
    ]
}

fn tier(answer: &str) -> serde_json::Value {
    json!({
        "apiVersion": "firebreak.dev/v1alpha1",
        "kind": "ClusterSegmentPolicy",
        "metadata": {"name": "tier"},
        "spec": {
            "tier": "Admin",
            "priority": 1,
            "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "answer": answer, "from": [{"entity": "any"}]}],
        },
    })
}

#[tokio::test]
async fn policies_of_tiers_are_taken() {
    let server = Server::start().await;
    for answer in ["Drop", "Reject"] {
        let request = v1::ApplyRequest { objects: vec![object(&tier(answer))], ..v1::ApplyRequest::default() };
        server.client.clone().apply(request).await.unwrap();
    }
    server.stop().await;
}

fn object_json(kind: &str) -> String {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": kind, "metadata": {"name": "db", "namespace": "shop"}}).to_string()
}

#[tokio::test]
async fn one_bad_object_refuses_the_whole_request_and_is_named() {
    let server = Server::start().await;
    for (case, bad, expected) in bad_objects() {
        for dry_run in [false, true] {
            let request = v1::ApplyRequest { objects: vec![namespace("good"), bad.clone()], dry_run, ..v1::ApplyRequest::default() };
            let status = server.client.clone().apply(request).await.unwrap_err();
            check(case, &status, &expected);
        }
    }
    let list = server.client.clone().list(v1::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.objects.len(), list.revision), (0, 0), "nothing is half applied");
    server.stop().await;
}

#[tokio::test]
async fn a_bad_apply_request_is_refused() {
    let server = Server::start().await;
    let base = || v1::ApplyRequest { objects: vec![namespace("good")], ..v1::ApplyRequest::default() };
    let many = (0..10_001).map(|number| v1::Object { name: format!("n{number}"), ..v1::Object::default() }).collect();
    let cases = [
        ("no objects", v1::ApplyRequest { objects: Vec::new(), ..base() }, invalid(&["objects", "is empty"])),
        ("too many objects", v1::ApplyRequest { objects: many, ..base() }, invalid(&["objects", "10001", "at most 10000"])),
        ("long reason", v1::ApplyRequest { reason: "x".repeat(1_025), ..base() }, invalid(&["reason", "1025 bytes"])),
        ("two-line reason", v1::ApplyRequest { reason: "one\ntwo".to_owned(), ..base() }, invalid(&["reason", "control characters"])),
        ("stale", v1::ApplyRequest { expected_revision: 7, ..base() }, Expected { code: Code::Aborted, parts: &["at revision 0, not 7"] }),
        (
            "over a message",
            v1::ApplyRequest { objects: (0..5).map(|_| with(|object| object.json = vec![b' '; 1 << 20].into())).collect(), ..base() },
            Expected { code: Code::OutOfRange, parts: &["message length too large"] },
        ),
    ];
    for (case, request, expected) in cases {
        let status = server.client.clone().apply(request).await.unwrap_err();
        check(case, &status, &expected);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_reference_to_no_possible_object_is_refused() {
    let server = Server::start().await;
    let cases = [
        ("empty kind", reference("", "shop", "db"), ".kind", "is empty; use one of"),
        ("unknown kind", reference("segmentpolicy", "shop", "db"), ".kind", "\"segmentpolicy\" is not known; use one of"),
        ("empty name", reference("SegmentPolicy", "shop", ""), ".name", "is empty"),
        ("no namespace", reference("SegmentPolicy", "", "db"), ".namespace", "lives in a namespace"),
        ("a namespace", reference("AddressGroup", "shop", "office"), ".namespace", "lives in no namespace"),
    ];
    for (case, wire, field, reason) in cases {
        let get = server.client.clone().get(v1::GetRequest { object: Some(wire.clone()) }).await.unwrap_err();
        let delete = v1::DeleteRequest { objects: vec![wire], ..v1::DeleteRequest::default() };
        let delete = server.client.clone().delete(delete).await.unwrap_err();
        for (method, status, place) in [("get", get, "object"), ("delete", delete, "objects[0]")] {
            assert_eq!(status.code(), Code::InvalidArgument, "{method} {case}: {status}");
            let violation = status.get_details_bad_request().unwrap().field_violations.swap_remove(0);
            assert_eq!(violation.field, format!("{place}{field}"), "{method} {case}");
            assert!(violation.description.contains(reason), "{method} {case}: {}", violation.description);
        }
    }
    let mut client = server.client.clone();
    check("no object", &client.get(v1::GetRequest { object: None }).await.unwrap_err(), &invalid(&["object: is not there"]));
    let twice = vec![reference("Namespace", "", "a"), reference("Namespace", "", "a")];
    let request = v1::DeleteRequest { objects: twice, ignore_not_found: true, ..v1::DeleteRequest::default() };
    check("twice", &client.delete(request).await.unwrap_err(), &invalid(&["objects[1]", "Namespace a is named twice"]));
    check("nothing", &client.delete(v1::DeleteRequest::default()).await.unwrap_err(), &invalid(&["objects: is empty"]));
    let status = client.get(v1::GetRequest { object: Some(reference("SegmentPolicy", "shop", "db")) }).await.unwrap_err();
    check("absent", &status, &Expected { code: Code::NotFound, parts: &["not found: SegmentPolicy shop/db"] });
    let many = (0..9_000).map(|number| reference("SegmentPolicy", "shop", &format!("policy-{number}"))).collect();
    let status = client.delete(v1::DeleteRequest { objects: many, ..v1::DeleteRequest::default() }).await.unwrap_err();
    check("many absent", &status, &Expected { code: Code::NotFound, parts: &["shop/policy-9 and 8990 more"] });
    server.stop().await;
}

#[tokio::test]
async fn bad_filters_and_page_tokens_are_refused() {
    let server = Server::start().await;
    server.apply((0..3).map(|number| namespace(&format!("n{number}"))).collect()).await;
    let mut client = server.client.clone();
    let page = v1::ListRequest { page_size: 1, ..v1::ListRequest::default() };
    let token = client.list(page.clone()).await.unwrap().into_inner().next_page_token;
    let trail = client.list_revisions(v1::ListRevisionsRequest::default()).await.unwrap().into_inner();
    assert_eq!((token.is_empty(), trail.next_page_token.as_str()), (false, ""));
    let cases = [
        ("page too large", v1::ListRequest { page_size: 1_001, ..page.clone() }, invalid(&["page_size", "1001"])),
        ("unknown kind", v1::ListRequest { kind: "Service".to_owned(), ..page.clone() }, invalid(&["kind", "\"Service\" is not known"])),
        ("bad selector", v1::ListRequest { label_selector: "a in b".to_owned(), ..page.clone() }, invalid(&["label_selector", "a in b"])),
        ("long selector", v1::ListRequest { label_selector: "a,".repeat(3_000), ..page.clone() }, invalid(&["label_selector", "4096"])),
        ("no token", v1::ListRequest { page_token: "zz".to_owned(), ..page.clone() }, invalid(&["page_token", "begin again"])),
        ("odd token", v1::ListRequest { page_token: "abc".to_owned(), ..page.clone() }, invalid(&["page_token"])),
        ("cut token", v1::ListRequest { page_token: token[..token.len() - 2].to_owned(), ..page.clone() }, invalid(&["page_token"])),
        ("long token", v1::ListRequest { page_token: "00".repeat(9_000), ..page.clone() }, invalid(&["page_token"])),
        ("not ASCII", v1::ListRequest { page_token: "\u{e9}\u{e9}".to_owned(), ..page.clone() }, invalid(&["page_token"])),
        (
            "other list's token",
            v1::ListRequest { kind: "Namespace".to_owned(), page_token: token.clone(), ..page },
            invalid(&["page_token", "other filters"]),
        ),
    ];
    for (case, request, expected) in cases {
        check(case, &client.list(request).await.unwrap_err(), &expected);
    }
    let status = client.list_revisions(v1::ListRevisionsRequest { page_size: 0, page_token: token.clone() }).await.unwrap_err();
    check("a list's token for the audit trail", &status, &invalid(&["page_token"]));
    let status = client.list_workloads(v1::ListWorkloadsRequest { page_token: token.clone(), ..Default::default() }).await.unwrap_err();
    check("a list's token for workloads", &status, &invalid(&["page_token"]));
    let status = client.list_nodes(v1::ListNodesRequest { page_token: token, ..Default::default() }).await.unwrap_err();
    check("a list's token for nodes", &status, &invalid(&["page_token"]));
    let status = client.watch(v1::WatchRequest { kind: "Service".to_owned(), ..Default::default() }).await.unwrap_err();
    check("watch an unknown kind", &status, &invalid(&["kind"]));
    let status = client.watch(v1::WatchRequest { after_revision: 99, ..Default::default() }).await.unwrap_err();
    check("watch the future", &status, &Expected { code: Code::OutOfRange, parts: &["revision 99 does not exist", "at revision 1"] });
    server.stop().await;
}

#[tokio::test]
async fn a_question_that_is_not_clear_is_refused() {
    let server = Server::start().await;
    let tcp = |port| v1::Transport { protocol: 6, port, ..v1::Transport::default() };
    let ask = |from: &str, to: &str, transport| v1::ExplainRequest {
        from: from.to_owned(),
        to: to.to_owned(),
        transport,
        namespace: String::new(),
    };
    let cases = [
        ("no transport", ask("a", "b", None), invalid(&["transport", "is not there"])),
        ("no source", ask("", "b", Some(tcp(Some(1)))), invalid(&["from", "neither"])),
        ("bad destination", ask("a", "x/y/z", Some(tcp(Some(1)))), invalid(&["to", "x/y/z"])),
        ("mapped address", ask("::ffff:10.0.0.1", "b", Some(tcp(Some(1)))), invalid(&["from", "IPv4"])),
        ("no port", ask("a", "b", Some(tcp(None))), invalid(&["transport.port", "TCP"])),
        ("port 0", ask("a", "b", Some(tcp(Some(0)))), invalid(&["transport.port", "0"])),
        ("port 65536", ask("a", "b", Some(tcp(Some(65_536)))), invalid(&["transport.port", "65536"])),
        (
            "protocol 256",
            ask("a", "b", Some(v1::Transport { protocol: 256, ..Default::default() })),
            invalid(&["transport.protocol", "256"]),
        ),
        (
            "port of GRE",
            ask("a", "b", Some(v1::Transport { protocol: 47, port: Some(1), ..Default::default() })),
            invalid(&["transport.port", "no ports"]),
        ),
        (
            "type of TCP",
            ask("a", "b", Some(v1::Transport { icmp_type: Some(8), ..tcp(Some(1)) })),
            invalid(&["transport.icmp_type", "not ICMP"]),
        ),
        (
            "type without code",
            ask("a", "b", Some(v1::Transport { protocol: 1, icmp_type: Some(8), ..Default::default() })),
            invalid(&["transport", "icmp_code"]),
        ),
        (
            "type 256",
            ask("a", "b", Some(v1::Transport { protocol: 1, icmp_type: Some(256), icmp_code: Some(0), ..Default::default() })),
            invalid(&["transport.icmp_type", "256"]),
        ),
    ];
    for (case, request, expected) in cases {
        check(case, &server.client.clone().explain(request).await.unwrap_err(), &expected);
    }
    let block = |address: &[u8], prefix_length| Some(v1::Cidr { address: address.to_vec().into(), prefix_length });
    let cases = [
        ("direction", v1::WatchFlowsRequest { direction: 9, ..Default::default() }, invalid(&["direction", "9"])),
        ("verdict", v1::WatchFlowsRequest { verdict: -1, ..Default::default() }, invalid(&["verdict", "-1"])),
        ("short address", v1::WatchFlowsRequest { source: block(&[10, 0], 8), ..Default::default() }, invalid(&["source", "2 bytes"])),
        (
            "long prefix",
            v1::WatchFlowsRequest { destination: block(&[10, 0, 0, 0], 33), ..Default::default() },
            invalid(&["destination", "33"]),
        ),
        (
            "host bits",
            v1::WatchFlowsRequest { source: block(&[10, 0, 0, 1], 8), ..Default::default() },
            invalid(&["source", "host bits", "10.0.0.0/8"]),
        ),
        ("protocol", v1::WatchFlowsRequest { protocol: Some(300), ..Default::default() }, invalid(&["protocol", "300"])),
        ("port", v1::WatchFlowsRequest { port: Some(70_000), ..Default::default() }, invalid(&["port", "70000"])),
        ("workload", v1::WatchFlowsRequest { workload: "shop/".to_owned(), ..Default::default() }, invalid(&["workload", "shop/"])),
    ];
    for (case, request, expected) in cases {
        check(case, &server.client.clone().watch_flows(request).await.unwrap_err(), &expected);
    }
    let mut client = server.client.clone();
    let status = client.delete_node(v1::DeleteNodeRequest::default()).await.unwrap_err();
    check("nameless node", &status, &invalid(&["name", "is empty"]));
    let status = client.delete_node(v1::DeleteNodeRequest { name: "n9".to_owned(), reason: String::new() }).await.unwrap_err();
    check("unknown node", &status, &Expected { code: Code::NotFound, parts: &["node n9 is not known"] });
    server.stop().await;
}
