//! `firebreak describe`.

use crate::args::DescribeArgs;
use crate::client::Client;
use crate::kinds::{self, Kind};
use crate::output::{BadInput, print, yaml};
use crate::view;
use firebreak_proto::v1;
use serde_json::Value;
use std::process::ExitCode;

/// Shows everything known of one thing.
pub(crate) async fn run(client: &mut Client, arguments: DescribeArgs) -> anyhow::Result<ExitCode> {
    let (word, name) = match (arguments.kind.split_once('/'), arguments.name) {
        (Some((kind, name)), None) => (kind.to_owned(), name.to_owned()),
        (None, Some(name)) => (arguments.kind, name),
        (Some(_), Some(_)) => return Err(BadInput::new("write `kind name` or `kind/name`, not both").into()),
        (None, None) => return Err(BadInput::new(format!("name what to describe: firebreak describe {} NAME", arguments.kind)).into()),
    };
    let namespace = arguments.namespace.unwrap_or_default();
    let values = match kinds::parse(&word)? {
        Kind::Nodes => crate::nodes::fetch(client, &name).await?.iter().map(view::node).collect(),
        Kind::Workloads => workloads(client, &namespace, &name).await?,
        Kind::Stored(stored) => objects(client, &[stored.name], &namespace, &name).await?,
        Kind::Policies => objects(client, &kinds::POLICIES, &namespace, &name).await?,
        Kind::All => return Err(BadInput::new("describe is about one thing; name its kind").into()),
    };
    if values.is_empty() {
        anyhow::bail!(
            "no {word} is called {name}{}",
            if namespace.is_empty() { String::new() } else { format!(" in namespace {namespace}") }
        );
    }
    for (position, value) in values.iter().enumerate() {
        print(&format!("{}{}", if position == 0 { "" } else { "---\n" }, yaml(value)?))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn workloads(client: &mut Client, namespace: &str, name: &str) -> anyhow::Result<Vec<Value>> {
    let (name, node) = match name.split_once('@') {
        Some((name, node)) => (name, Some(node)),
        None => (name, None),
    };
    let all = crate::get::fetch_workloads(client, namespace, "").await?;
    let wanted = |it: &&v1::WorkloadStatus| {
        it.workload
            .as_ref()
            .is_some_and(|workload| workload.name == name && node.is_none_or(|node| workload.id.as_ref().is_some_and(|id| id.node == node)))
    };
    Ok(all.iter().filter(wanted).map(view::workload).collect())
}

async fn objects(client: &mut Client, kinds: &[&str], namespace: &str, name: &str) -> anyhow::Result<Vec<Value>> {
    let (objects, _) = crate::get::fetch_objects(client, kinds, namespace, "").await?;
    objects.iter().filter(|it| it.name == name).map(view::object).collect()
}
