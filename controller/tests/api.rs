//! The operator service over its real socket: what is applied is listed, watched, told in the audit trail, copied.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api_support;

use api_support::{Server, group, namespace, object, policy, policy_json, reference};
use firebreak_controller::store::Store;
use firebreak_proto::v1;
use futures::StreamExt;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tonic::Code;
use v1::ChangeResult::{Configured, Created, Deleted, NotFound, Unchanged};

fn results(changes: &[v1::ObjectChange]) -> Vec<(&str, v1::ChangeResult)> {
    changes.iter().map(|change| (change.name.as_str(), change.result())).collect()
}

#[tokio::test]
async fn what_is_applied_is_there_and_what_stays_the_same_makes_no_revision() {
    let server = Server::start().await;
    let first = server.apply(vec![namespace("shop"), policy("shop", "db", "db"), group("office", "192.0.2.0/24")]).await;
    assert_eq!(first.revision, 1);
    assert_eq!(results(&first.changes), [("shop", Created), ("db", Created), ("office", Created)]);
    let again = server.apply(vec![namespace("shop"), policy("shop", "db", "db")]).await;
    assert_eq!((again.revision, results(&again.changes)), (1, vec![("shop", Unchanged), ("db", Unchanged)]));
    let changed = server.apply(vec![namespace("shop"), policy("shop", "db", "database")]).await;
    assert_eq!((changed.revision, results(&changed.changes)), (2, vec![("shop", Unchanged), ("db", Configured)]));

    let get = v1::GetRequest { object: Some(reference("SegmentPolicy", "shop", "db")) };
    let got = server.client.clone().get(get).await.unwrap().into_inner();
    assert_eq!((got.revision, got.kind.as_str(), got.api_version.as_str()), (2, "SegmentPolicy", "firebreak.dev/v1alpha1"));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&got.json).unwrap(), policy_json("shop", "db", "database"));
    assert!(got.created.unwrap().seconds > 1_700_000_000);

    let deleted = server.delete(vec![reference("SegmentPolicy", "shop", "db"), reference("Namespace", "", "shop")]).await;
    assert_eq!((deleted.revision, results(&deleted.changes)), (3, vec![("db", Deleted), ("shop", Deleted)]));
    server.stop().await;
}

#[tokio::test]
async fn a_field_order_that_differs_is_no_change() {
    let server = Server::start().await;
    let mut one = namespace("shop");
    one.json = r#"{"kind":"Namespace","apiVersion":"v1","metadata":{"labels":{"b":"2","a":"1"},"name":"shop"}}"#.into();
    let mut two = one.clone();
    two.json = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","labels":{"a":"1","b":"2"},"uid":"x"}}"#.into();
    assert_eq!(server.apply(vec![one]).await.revision, 1);
    assert_eq!(server.apply(vec![two]).await.revision, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_dry_run_tells_what_would_happen_and_changes_nothing() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop")]).await;
    let request = v1::ApplyRequest { objects: vec![namespace("shop"), namespace("team")], dry_run: true, ..v1::ApplyRequest::default() };
    let told = server.client.clone().apply(request).await.unwrap().into_inner();
    assert_eq!((told.revision, results(&told.changes)), (1, vec![("shop", Unchanged), ("team", Created)]));
    let request = v1::DeleteRequest { objects: vec![reference("Namespace", "", "shop")], dry_run: true, ..v1::DeleteRequest::default() };
    let told = server.client.clone().delete(request).await.unwrap().into_inner();
    assert_eq!((told.revision, results(&told.changes)), (1, vec![("shop", Deleted)]));
    let list = server.client.clone().list(v1::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.objects.len(), list.revision), (1, 1));
    server.stop().await;
}

#[tokio::test]
async fn a_change_with_an_expected_revision_happens_at_that_revision_only() {
    let server = Server::start().await;
    server.apply(vec![namespace("a")]).await;
    let request = |expected_revision| v1::ApplyRequest { objects: vec![namespace("b")], expected_revision, ..v1::ApplyRequest::default() };
    for wrong in [2, u64::MAX] {
        let status = server.client.clone().apply(request(wrong)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Aborted, format!("the store is at revision 1, not {wrong}").as_str()));
    }
    assert_eq!(server.client.clone().apply(request(1)).await.unwrap().into_inner().revision, 2);
    assert_eq!(server.client.clone().apply(request(1)).await.unwrap_err().code(), Code::Aborted);
    server.stop().await;
}

#[tokio::test]
async fn a_delete_of_nothing_is_an_error_unless_it_is_tolerated() {
    let server = Server::start().await;
    server.apply(vec![namespace("a")]).await;
    let objects = vec![reference("Namespace", "", "a"), reference("SegmentPolicy", "shop", "no")];
    let request = v1::DeleteRequest { objects: objects.clone(), ..v1::DeleteRequest::default() };
    let status = server.client.clone().delete(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "not found: SegmentPolicy shop/no"));
    let request = v1::DeleteRequest { objects, ignore_not_found: true, ..v1::DeleteRequest::default() };
    let done = server.client.clone().delete(request).await.unwrap().into_inner();
    assert_eq!((done.revision, results(&done.changes)), (2, vec![("a", Deleted), ("no", NotFound)]));
    server.stop().await;
}

async fn all_pages(server: &Server, mut request: v1::ListRequest, between: impl AsyncFn(usize)) -> Vec<(String, String, String, u64)> {
    let mut seen = Vec::new();
    for page_number in 0.. {
        let page = server.client.clone().list(request.clone()).await.unwrap().into_inner();
        assert!(u32::try_from(page.objects.len()).unwrap() <= request.page_size.max(1) || request.page_size == 0);
        seen.extend(page.objects.into_iter().map(|object| (object.kind, object.namespace, object.name, object.revision)));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        between(page_number).await;
    }
    seen
}

#[tokio::test]
async fn a_list_is_of_one_revision_page_by_page_whatever_changes_meanwhile() {
    let server = Server::start().await;
    let objects: Vec<_> =
        (0..23).map(|number| policy(if number % 2 == 0 { "even" } else { "odd" }, &format!("p{number:02}"), "db")).collect();
    server.apply(objects).await;
    server.apply(vec![namespace("odd"), group("office", "192.0.2.0/24")]).await;
    let request = v1::ListRequest { page_size: 5, ..v1::ListRequest::default() };
    let all = all_pages(&server, request, async |page| {
        server.apply(vec![policy("even", &format!("new{page}"), "x"), policy("odd", "p01", &format!("changed{page}"))]).await;
        server
            .client
            .clone()
            .delete(v1::DeleteRequest {
                objects: vec![reference("SegmentPolicy", "odd", "p21")],
                ignore_not_found: true,
                ..v1::DeleteRequest::default()
            })
            .await
            .unwrap();
    })
    .await;
    assert_eq!(all.len(), 25);
    assert!(all.iter().all(|(_, _, name, revision)| *revision <= 2 && !name.starts_with("new")));

    let cases = [
        (v1::ListRequest { kind: "Namespace".to_owned(), ..v1::ListRequest::default() }, 1),
        (v1::ListRequest { kind: "SegmentPolicy".to_owned(), namespace: "odd".to_owned(), ..v1::ListRequest::default() }, 10),
        (v1::ListRequest { namespace: "nowhere".to_owned(), ..v1::ListRequest::default() }, 0),
        (v1::ListRequest { label_selector: "team=db".to_owned(), page_size: 3, ..v1::ListRequest::default() }, 21),
        (
            v1::ListRequest {
                label_selector: "team in (db,x),!none".to_owned(),
                namespace: "even".to_owned(),
                ..v1::ListRequest::default()
            },
            16,
        ),
        (v1::ListRequest { label_selector: "!team".to_owned(), ..v1::ListRequest::default() }, 2),
    ];
    for (request, expected) in cases {
        let label = format!("{request:?}");
        let found = all_pages(&server, request, async |_| {}).await;
        assert_eq!(found.len(), expected, "{label}");
        assert!(found.is_sorted(), "{label}");
    }
    server.stop().await;
}

/// Objects of a quarter of a mebibyte each.
fn large(count: usize) -> Vec<v1::Object> {
    let note = "x".repeat(250_000);
    let named = |number: usize| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("n{number:02}"), "annotations": {"note": note}}});
    (0..count).map(|number| object(&named(number))).collect()
}

#[tokio::test]
async fn large_objects_make_short_pages_that_fit_into_a_message() {
    let server = Server::start().await;
    for object in large(30) {
        server.apply(vec![object]).await;
    }
    assert_eq!(all_pages(&server, v1::ListRequest::default(), async |_| {}).await.len(), 30);
    let mut watch = server.client.clone().watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    for number in 0..30 {
        assert_eq!(watch.next().await.unwrap().unwrap().object.unwrap().name, format!("n{number:02}"));
    }
    server.stop().await;
}

fn told(event: &v1::WatchEvent) -> (v1::ChangeResult, String, u64) {
    (event.change(), event.object.as_ref().unwrap().name.clone(), event.revision)
}

#[tokio::test]
async fn a_watch_begins_with_what_there_is_goes_on_with_what_changes_and_can_be_resumed() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), policy("shop", "db", "db")]).await;
    server.apply(vec![policy("shop", "web", "web")]).await;
    let mut client = server.client.clone();
    let request = v1::WatchRequest { kind: "SegmentPolicy".to_owned(), ..v1::WatchRequest::default() };
    let mut watch = client.watch(request.clone()).await.unwrap().into_inner();
    let mut events = Vec::new();
    for _ in 0..2 {
        events.push(told(&watch.next().await.unwrap().unwrap()));
    }
    server.apply(vec![namespace("other"), policy("shop", "db", "database")]).await;
    server.delete(vec![reference("SegmentPolicy", "shop", "web")]).await;
    for _ in 0..2 {
        events.push(told(&watch.next().await.unwrap().unwrap()));
    }
    let told_so_far = |list: &[(v1::ChangeResult, &str, u64)]| list.iter().map(|(c, n, r)| (*c, (*n).to_owned(), *r)).collect::<Vec<_>>();
    assert_eq!(events, told_so_far(&[(Created, "db", 1), (Created, "web", 2), (Configured, "db", 3), (Deleted, "web", 4)]));

    let mut resumed = client.watch(v1::WatchRequest { after_revision: 2, ..request }).await.unwrap().into_inner();
    let mut again = Vec::new();
    for _ in 0..2 {
        again.push(told(&resumed.next().await.unwrap().unwrap()));
    }
    assert_eq!(again, events[2..]);

    // Stopping ends watches with a status that says so.
    let waiting = tokio::spawn(async move { watch.next().await });
    let begun = std::time::Instant::now();
    server.stop().await;
    let status = waiting.await.unwrap().unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(begun.elapsed() < Duration::from_secs(4), "an open watch does not delay the stop: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_watcher_that_does_not_read_costs_nothing_and_loses_nothing() {
    let server = Server::start().await;
    let mut watch = server.client.clone().watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    for number in 0..600 {
        server.apply(vec![policy("shop", "db", &format!("a{number}"))]).await;
    }
    for expected in 1..=600 {
        assert_eq!(watch.next().await.unwrap().unwrap().revision, expected);
    }
    server.stop().await;
}

#[tokio::test]
async fn the_audit_trail_tells_who_did_what_when_and_why_newest_first() {
    let server = Server::start().await;
    let mut client = server.client.clone();
    for number in 0..5 {
        let reason = format!("ticket {number}");
        client
            .apply(v1::ApplyRequest { objects: vec![namespace(&format!("n{number}"))], reason, ..v1::ApplyRequest::default() })
            .await
            .unwrap();
    }
    server.delete(vec![reference("Namespace", "", "n0")]).await;
    let mut entries = Vec::new();
    let mut request = v1::ListRevisionsRequest { page_size: 4, page_token: String::new() };
    loop {
        let page = client.list_revisions(request.clone()).await.unwrap().into_inner();
        entries.extend(page.revisions);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(entries.iter().map(|entry| entry.revision).collect::<Vec<_>>(), [6, 5, 4, 3, 2, 1]);
    let uid = nix::unistd::geteuid().as_raw();
    assert!(entries.iter().all(|entry| entry.principal.starts_with(&format!("uid {uid}"))), "{:?}", entries[0].principal);
    assert_eq!((entries[0].verb.as_str(), results(&entries[0].changes)), ("delete", vec![("n0", Deleted)]));
    assert_eq!((entries[5].verb.as_str(), entries[5].reason.as_str()), ("apply", "ticket 0"));
    assert!(entries[0].time.unwrap().seconds >= entries[5].time.unwrap().seconds);
    server.stop().await;
}

#[tokio::test]
async fn a_backup_over_the_api_opens_as_a_store_and_leaves_nothing_behind() {
    let server = Server::start().await;
    let mut names = BTreeSet::new();
    for object in large(20) {
        names.insert(object.name.clone());
        server.apply(vec![object]).await;
    }
    let mut chunks = server.client.clone().backup(v1::BackupRequest {}).await.unwrap().into_inner();
    let second = server.client.clone().backup(v1::BackupRequest {}).await.unwrap_err();
    assert_eq!(second.code(), Code::ResourceExhausted);
    let mut copy = Vec::new();
    while let Some(chunk) = chunks.next().await {
        copy.extend_from_slice(&chunk.unwrap().data);
    }
    let path = server.folder.path().join("copy.db");
    std::fs::write(&path, copy).unwrap();
    let loaded = Store::open(&path).unwrap().load().await.unwrap();
    assert_eq!(loaded.objects.iter().map(|object| object.key.name.clone()).collect::<BTreeSet<_>>(), names);
    let folder = server.stop().await;
    let left: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert_eq!(left, [] as [String; 0]);
    assert!(!folder.path().join("controller.sock").exists(), "the socket goes with the controller");
}

#[tokio::test]
async fn state_outlives_a_restart() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop"), policy("shop", "db", "db")]).await;
    let server = Server::start_in(server.stop().await).await;
    let list = server.client.clone().list(v1::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.objects.len(), list.revision), (2, 1));
    server.stop().await;
}

#[tokio::test]
async fn metrics_health_and_reflection_answer_on_their_listeners() {
    let server = Server::start().await;
    server.apply(vec![namespace("shop")]).await;
    server.client.clone().get(v1::GetRequest { object: Some(reference("Namespace", "", "no")) }).await.unwrap_err();
    let (status, metrics) = server.http("/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    for line in [
        "firebreak_controller_operator_requests_total{method=\"Apply\",code=\"OK\"} 1",
        "firebreak_controller_operator_requests_total{method=\"Get\",code=\"NOT_FOUND\"} 1",
        "firebreak_controller_store_revision 1",
        "firebreak_controller_operator_open_streams 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert_eq!(server.http("/healthz").await, ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned()));
    assert_eq!(server.http("/readyz").await.0, "HTTP/1.1 200 OK");

    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    let agents = tonic::transport::Endpoint::try_from(format!("http://{}", server.agents)).unwrap().connect().await.unwrap();
    for channel in [server.channel.clone(), agents] {
        let request = HealthCheckRequest { service: "firebreak.v1.OperatorService".to_owned() };
        let mut health = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
        while health.next().await.unwrap().unwrap().status() != ServingStatus::Serving {}
        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_response::MessageResponse};
        let ask = ServerReflectionRequest { host: String::new(), message_request: Some(MessageRequest::ListServices(String::new())) };
        let mut answers =
            ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
        let Some(MessageResponse::ListServicesResponse(services)) = answers.next().await.unwrap().unwrap().message_response else {
            panic!("no list of services");
        };
        assert!(services.service.iter().any(|service| service.name == "firebreak.v1.OperatorService"));
    }
    server.stop().await;
}

/// `type=status(reason)` of each condition.
fn known(conditions: &[v1::Condition]) -> Vec<String> {
    conditions.iter().map(|condition| format!("{}={}({})", condition.r#type, condition.status, condition.reason)).collect()
}

#[tokio::test]
async fn a_policy_that_names_a_missing_group_is_degraded_until_the_group_appears() {
    let server = Server::start().await;
    let applied = server.apply(vec![policy("shop", "db", "db"), namespace("shop")]).await;
    let conditions = known(&applied.changes[0].conditions);
    assert!(conditions.contains(&"Accepted=true(Valid)".to_owned()), "{conditions:?}");
    assert!(conditions.contains(&"Degraded=true(MissingAddressGroup)".to_owned()), "{conditions:?}");
    let degraded = applied.changes[0].conditions.iter().find(|condition| condition.r#type == "Degraded").unwrap();
    assert!(degraded.message.contains("office"), "{degraded:?}");
    server.apply(vec![group("office", "192.0.2.0/24")]).await;
    let get = v1::GetRequest { object: Some(reference("SegmentPolicy", "shop", "db")) };
    let healed = known(&server.client.clone().get(get).await.unwrap().into_inner().conditions);
    assert!(!healed.iter().any(|condition| condition.starts_with("Degraded=true")), "{healed:?}");
    server.stop().await;
}

#[tokio::test]
async fn the_operator_service_is_not_on_the_agents_listener() {
    let server = Server::start().await;
    let agents = tonic::transport::Endpoint::try_from(format!("http://{}", server.agents)).unwrap().connect().await.unwrap();
    let status = api_support::Client::new(agents).list(v1::ListRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    server.stop().await;
}
