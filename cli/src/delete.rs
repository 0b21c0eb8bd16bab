//! `firebreak delete`.

use crate::args::DeleteArgs;
use crate::client::{Client, refusal};
use crate::kinds;
use crate::output::{BadInput, print};
use firebreak_proto::v1;
use std::process::ExitCode;

/// Deletes all that is named, or nothing.
pub(crate) async fn run(client: &mut Client, arguments: DeleteArgs) -> anyhow::Result<ExitCode> {
    if arguments.forget {
        return forget(client, arguments).await;
    }
    let objects = targets(&arguments)?;
    let request =
        v1::DeleteRequest { objects, ignore_not_found: arguments.ignore_not_found, reason: arguments.reason, dry_run: arguments.dry_run };
    let response = client.operator().await?.delete(request).await.map_err(|status| refusal("nothing was deleted", &status))?.into_inner();
    print(&crate::apply::changes(&response.changes, arguments.dry_run))?;
    Ok(ExitCode::SUCCESS)
}

fn targets(arguments: &DeleteArgs) -> anyhow::Result<Vec<v1::ObjectRef>> {
    if !arguments.filename.is_empty() {
        let objects = crate::apply::read(&arguments.filename)?;
        return Ok(objects.into_iter().map(|it| v1::ObjectRef { kind: it.kind, namespace: it.namespace, name: it.name }).collect());
    }
    let (kind, names) = kind_and_names(arguments)?;
    let kind = kinds::parse_stored(&kind)?;
    let namespace = if kind.namespaced { arguments.namespace.clone() } else { String::new() };
    Ok(names.into_iter().map(|name| v1::ObjectRef { kind: kind.name.to_owned(), namespace: namespace.clone(), name }).collect())
}

fn kind_and_names(arguments: &DeleteArgs) -> Result<(String, Vec<String>), BadInput> {
    let word = arguments.kind.clone().unwrap_or_default();
    let (kind, mut names) = match word.split_once('/') {
        Some((kind, name)) => (kind.to_owned(), vec![name.to_owned()]),
        None => (word, Vec::new()),
    };
    names.extend(arguments.names.iter().cloned());
    if names.is_empty() || names.iter().any(String::is_empty) {
        return Err(BadInput::new(format!("name what to delete: firebreak delete {kind} NAME")));
    }
    Ok((kind, names))
}

async fn forget(client: &mut Client, arguments: DeleteArgs) -> anyhow::Result<ExitCode> {
    let (kind, names) = kind_and_names(&arguments)?;
    if kinds::parse(&kind)? != kinds::Kind::Nodes {
        return Err(BadInput::new(format!("--forget is for nodes, `{kind}` is none: firebreak delete node NAME --forget")).into());
    }
    if arguments.dry_run {
        return Err(BadInput::new("--forget has no dry run; `firebreak describe node NAME` shows what would be forgotten").into());
    }
    for name in names {
        let request = v1::DeleteNodeRequest { name: name.clone(), reason: arguments.reason.clone() };
        client.operator().await?.delete_node(request).await.map_err(|status| refusal(format!("node {name} was not forgotten"), &status))?;
        print(&format!("node/{name} forgotten\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
