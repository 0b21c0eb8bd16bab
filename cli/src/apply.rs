//! `firebreak apply`.

use crate::args::ApplyArgs;
use crate::client::{Client, refusal};
use crate::output::{BadInput, print};
use crate::view;
use firebreak_proto::v1;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often `--wait` looks at the nodes.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Reads all files before anything is sent: one bad document refuses the whole call.
pub(crate) async fn run(client: &mut Client, arguments: ApplyArgs) -> anyhow::Result<ExitCode> {
    let objects = read(&arguments.filename)?;
    let request =
        v1::ApplyRequest { objects, dry_run: arguments.dry_run, reason: arguments.reason, expected_revision: arguments.if_revision };
    let sent = Instant::now();
    let response = client.operator().await?.apply(request).await.map_err(|status| refusal("nothing was applied", &status))?.into_inner();
    print(&changes(&response.changes, arguments.dry_run))?;
    if let (Some(seconds), false) = (arguments.wait, arguments.dry_run) {
        return wait_realized(client, response.revision, sent, Duration::from_secs(seconds)).await;
    }
    Ok(ExitCode::SUCCESS)
}

/// The objects of the files, as they travel.
///
/// # Errors
/// Every error of every document, with file, document, line and field.
pub(crate) fn read(files: &[PathBuf]) -> anyhow::Result<Vec<v1::Object>> {
    let located = firebreak_manifest::load_paths(files).map_err(|errors| BadInput::new(errors.to_string()))?;
    if located.is_empty() {
        return Err(BadInput::new("the files hold no object; nothing to do").into());
    }
    Ok(located.iter().map(|it| wire(&it.object)).collect())
}

fn wire(object: &firebreak_manifest::Object) -> v1::Object {
    v1::Object {
        api_version: object.api_version().to_owned(),
        kind: object.kind().to_string(),
        namespace: object.namespace().unwrap_or_default().to_owned(),
        name: object.name().to_owned(),
        json: object.to_json().into(),
        revision: 0,
        created: None,
        conditions: Vec::new(),
    }
}

/// kubectl's line per object, and what is wrong with it beside.
pub(crate) fn changes(changes: &[v1::ObjectChange], dry_run: bool) -> String {
    let mut text = String::new();
    for change in changes {
        let scope = if change.namespace.is_empty() { String::new() } else { format!(" -n {}", change.namespace) };
        let mode = if dry_run { " (dry run)" } else { "" };
        text.push_str(&format!("{}/{}{scope} {}{mode}\n", change.kind.to_lowercase(), change.name, view::result(change.result())));
        for condition in change.conditions.iter().filter(|it| it.status && it.r#type == "Degraded") {
            text.push_str(&format!("  warning: {}: {}\n", condition.reason, condition.message));
        }
    }
    text
}

async fn wait_realized(client: &mut Client, revision: u64, sent: Instant, at_most: Duration) -> anyhow::Result<ExitCode> {
    loop {
        let nodes = crate::nodes::fetch(client, "").await?;
        let connected: Vec<_> = nodes.iter().filter(|node| node.connection() == v1::NodeConnection::Connected).collect();
        let behind: Vec<&str> = connected.iter().filter(|node| node.acked_revision < revision).map(|node| node.name.as_str()).collect();
        let lost = nodes.len() - connected.len();
        if behind.is_empty() {
            let note = if lost == 0 { String::new() } else { format!("; {lost} not connected") };
            print(&format!("revision {revision} enforced on {} nodes after {} ms{note}\n", connected.len(), sent.elapsed().as_millis()))?;
            return Ok(ExitCode::SUCCESS);
        }
        if sent.elapsed() >= at_most {
            anyhow::bail!(
                "revision {revision} is stored, but after {} s not enforced on {}; `firebreak nodes` tells why",
                at_most.as_secs(),
                behind.join(", ")
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
