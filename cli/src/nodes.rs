//! `firebreak nodes`.

use crate::args::{Format, NodesArgs};
use crate::client::{Client, refusal};
use crate::output::{address, age, labels, print, print_json, print_table, yaml};
use crate::view;
use firebreak_proto::v1;
use serde_json::{Value, json};
use std::process::ExitCode;

const PAGE: u32 = 500;

/// Shows how far each node is.
pub(crate) async fn run(client: &mut Client, arguments: NodesArgs) -> anyhow::Result<ExitCode> {
    let nodes = fetch(client, arguments.name.as_deref().unwrap_or_default()).await?;
    if let (Some(name), true) = (&arguments.name, nodes.is_empty()) {
        anyhow::bail!("no node is called {name}; `firebreak nodes` lists those that are known");
    }
    show(&nodes, arguments.output)?;
    Ok(ExitCode::SUCCESS)
}

/// All nodes, or the one of that name, over all pages.
pub(crate) async fn fetch(client: &mut Client, name: &str) -> anyhow::Result<Vec<v1::NodeStatus>> {
    let mut nodes = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListNodesRequest { name: name.to_owned(), page_size: PAGE, page_token };
        let page = client.operator().await?.list_nodes(request).await.map_err(|status| refusal("cannot list nodes", &status))?.into_inner();
        nodes.extend(page.nodes);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(nodes);
        }
    }
}

/// Prints nodes in the format asked for.
pub(crate) fn show(nodes: &[v1::NodeStatus], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Table | Format::Wide => table(nodes, format == Format::Wide),
        Format::Json => print_json(&json!({"kind": "List", "items": nodes.iter().map(view::node).collect::<Vec<_>>()})),
        Format::Yaml => print(&yaml(&json!({"kind": "List", "items": nodes.iter().map(view::node).collect::<Vec<Value>>()}))?),
        Format::Name => print(&nodes.iter().map(|node| format!("node/{}\n", node.name)).collect::<String>()),
    }
}

fn table(nodes: &[v1::NodeStatus], wide: bool) -> anyhow::Result<()> {
    let now = jiff::Timestamp::now();
    let mut header = vec!["NAME", "STATUS", "ENFORCING", "REVISION", "GENERATION", "LAG", "WORKLOADS", "CONFLICTS", "WARNINGS", "SEEN"];
    if wide {
        header.extend(["AGENT", "KERNEL", "ADDRESSES", "LABELS"]);
    }
    let rows = nodes.iter().map(|node| row(node, wide, now)).collect();
    print_table(&header, rows)
}

fn row(node: &v1::NodeStatus, wide: bool, now: jiff::Timestamp) -> Vec<String> {
    let mut row = vec![
        node.name.clone(),
        view::connection(node.connection()).to_owned(),
        enforcing(node),
        behind(node.acked_revision, node.target_revision),
        behind(node.acked_generation, node.sent_generation),
        if node.lag_milliseconds == 0 { "-".to_owned() } else { format!("{} ms", node.lag_milliseconds) },
        node.workloads.to_string(),
        node.conflicts.len().to_string(),
        warnings(node),
        age(node.last_seen.as_ref(), now),
    ];
    if wide {
        row.push(node.agent_version.clone());
        row.push(node.kernel.clone());
        row.push(node.addresses.iter().map(|it| address(it)).collect::<Vec<_>>().join(","));
        row.push(labels(&node.labels));
    }
    row
}

fn enforcing(node: &v1::NodeStatus) -> String {
    match (&node.observing, node.enforcing) {
        (Some(observing), _) => format!("OBSERVES until {}", crate::output::time(observing.until.as_ref())),
        (None, true) => "yes".to_owned(),
        (None, false) => "no".to_owned(),
    }
}

/// `7`, or `5/7` where the second number is the one to reach.
fn behind(reached: u64, wanted: u64) -> String {
    if reached == wanted { reached.to_string() } else { format!("{reached}/{wanted}") }
}

fn warnings(node: &v1::NodeStatus) -> String {
    let mut codes: Vec<String> = node.warnings.iter().map(|it| it.code.clone()).collect();
    if !node.refused.is_empty() {
        codes.push(format!("Refused({})", node.refused.len()));
    }
    if !node.failure.is_empty() {
        codes.push("CommitFailed".to_owned());
    }
    codes.dedup();
    if codes.is_empty() { "-".to_owned() } else { codes.join(",") }
}
