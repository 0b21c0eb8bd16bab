//! `firebreak get`.

use crate::args::{Format, GetArgs};
use crate::client::{Client, refusal};
use crate::kinds::{self, Kind};
use crate::output::{BadInput, address, age, labels, print, print_json, print_table, yaml};
use crate::view;
use firebreak_proto::v1;
use serde_json::{Value, json};
use std::process::ExitCode;

const PAGE: u32 = 500;

/// Lists, or shows one.
pub(crate) async fn run(client: &mut Client, arguments: GetArgs) -> anyhow::Result<ExitCode> {
    let (word, name) = match (arguments.kind.split_once('/'), &arguments.name) {
        (Some((kind, name)), None) => (kind.to_owned(), Some(name.to_owned())),
        (Some(_), Some(_)) => return Err(BadInput::new("write `kind name` or `kind/name`, not both").into()),
        (None, name) => (arguments.kind.clone(), name.clone()),
    };
    let kind = kinds::parse(&word)?;
    let namespace = arguments.namespace.clone().unwrap_or_default();
    match kind {
        Kind::Workloads => workloads(client, &arguments, &namespace, name.as_deref()).await?,
        Kind::Nodes => {
            refuse_watch(&arguments, "nodes")?;
            let selector = arguments
                .selector
                .parse::<firebreak_policy::model::LabelSelector>()
                .map_err(|error| BadInput::new(format!("-l {}: {error}", arguments.selector)))?;
            let mut nodes = crate::nodes::fetch(client, name.as_deref().unwrap_or_default()).await?;
            if !selector.is_everything() {
                nodes.retain(|node| selector.matches(&node.labels.clone().into_iter().collect()));
            }
            found(nodes.is_empty(), "node", name.as_deref())?;
            crate::nodes::show(&nodes, arguments.output)?;
        }
        Kind::Stored(stored) => stored_objects(client, &arguments, &[stored.name], &namespace, name.as_deref()).await?,
        Kind::Policies => stored_objects(client, &arguments, &kinds::POLICIES, &namespace, name.as_deref()).await?,
        Kind::All => stored_objects(client, &arguments, &[""], &namespace, name.as_deref()).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn refuse_watch(arguments: &GetArgs, what: &str) -> Result<(), BadInput> {
    if arguments.watch { Err(BadInput::new(format!("--watch is for stored objects; {what} cannot be watched yet"))) } else { Ok(()) }
}

fn found(empty: bool, what: &str, name: Option<&str>) -> anyhow::Result<()> {
    match (empty, name) {
        (true, Some(name)) => Err(anyhow::anyhow!("no {what} is called {name}")),
        (true, None) | (false, _) => Ok(()),
    }
}

/// Live workloads over all pages.
pub(crate) async fn fetch_workloads(client: &mut Client, namespace: &str, selector: &str) -> anyhow::Result<Vec<v1::WorkloadStatus>> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListWorkloadsRequest {
            namespace: namespace.to_owned(),
            node: String::new(),
            label_selector: selector.to_owned(),
            page_size: PAGE,
            page_token,
        };
        let page = client
            .operator()
            .await?
            .list_workloads(request)
            .await
            .map_err(|status| refusal("cannot list workloads", &status))?
            .into_inner();
        all.extend(page.workloads);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

async fn workloads(client: &mut Client, arguments: &GetArgs, namespace: &str, name: Option<&str>) -> anyhow::Result<()> {
    refuse_watch(arguments, "workloads")?;
    let mut all = fetch_workloads(client, namespace, &arguments.selector).await?;
    if let Some(name) = name {
        all.retain(|it| it.workload.as_ref().is_some_and(|workload| workload.name == name));
    }
    found(all.is_empty(), "workload", name)?;
    match arguments.output {
        Format::Table | Format::Wide => workload_table(&all, arguments.output == Format::Wide),
        Format::Json => print_json(&list(all.iter().map(view::workload).collect())),
        Format::Yaml => print(&yaml(&list(all.iter().map(view::workload).collect()))?),
        Format::Name => {
            print(&all.iter().filter_map(|it| it.workload.as_ref()).map(|it| format!("workload/{}\n", it.name)).collect::<String>())
        }
    }
}

fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn workload_table(all: &[v1::WorkloadStatus], wide: bool) -> anyhow::Result<()> {
    let mut header = vec!["NAMESPACE", "NAME", "NODE", "ADDRESSES", "SEGMENT", "ENFORCED", "ISOLATED"];
    if wide {
        header.extend(["INTERFACE", "SOURCE", "CONTAINER", "LABELS"]);
    }
    let rows = all.iter().map(|it| workload_row(it, wide)).collect();
    print_table(&header, rows)
}

fn workload_row(status: &v1::WorkloadStatus, wide: bool) -> Vec<String> {
    let workload = status.workload.clone().unwrap_or_default();
    let id = workload.id.clone().unwrap_or_default();
    let addresses: Vec<String> = workload.addresses.iter().map(|it| address(&it.address)).collect();
    let enforced = if status.enforced { "yes".to_owned() } else { format!("no: {}", status.reason) };
    let mut row = vec![
        workload.namespace.clone(),
        workload.name.clone(),
        id.node.clone(),
        if addresses.is_empty() { "<none>".to_owned() } else { addresses.join(",") },
        status.segment.clone(),
        enforced,
        isolated(status).to_owned(),
    ];
    if wide {
        row.extend([workload.interface.clone(), view::source(workload.source()).to_owned(), id.container, labels(&workload.labels)]);
    }
    row
}

fn isolated(status: &v1::WorkloadStatus) -> &'static str {
    match (status.ingress_policies.is_empty(), status.egress_policies.is_empty()) {
        (true, true) => "no",
        (false, true) => "ingress",
        (true, false) => "egress",
        (false, false) => "both",
    }
}

/// Stored objects over all pages, kind by kind.
pub(crate) async fn fetch_objects(
    client: &mut Client,
    kinds: &[&str],
    namespace: &str,
    selector: &str,
) -> anyhow::Result<(Vec<v1::Object>, u64)> {
    let mut objects = Vec::new();
    let mut revision = u64::MAX;
    for kind in kinds {
        let mut page_token = String::new();
        loop {
            let request = v1::ListRequest {
                kind: (*kind).to_owned(),
                namespace: namespace.to_owned(),
                label_selector: selector.to_owned(),
                page_size: PAGE,
                page_token,
            };
            let page = client.operator().await?.list(request).await.map_err(|status| refusal("cannot list", &status))?.into_inner();
            objects.extend(page.objects);
            // Watching on from the oldest page misses nothing.
            revision = revision.min(page.revision);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
    }
    Ok((objects, revision))
}

async fn stored_objects(
    client: &mut Client,
    arguments: &GetArgs,
    kinds: &[&str],
    namespace: &str,
    name: Option<&str>,
) -> anyhow::Result<()> {
    let (mut objects, revision) = fetch_objects(client, kinds, namespace, &arguments.selector).await?;
    if let Some(name) = name {
        objects.retain(|it| it.name == name);
    }
    if !arguments.watch {
        found(objects.is_empty(), &arguments.kind, name)?;
    }
    show(&objects, arguments.output)?;
    if arguments.watch {
        watch(client, arguments, kinds, namespace, name, revision).await?;
    }
    Ok(())
}

fn show(objects: &[v1::Object], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Table | Format::Wide => {
            let mut header = vec!["KIND", "NAMESPACE", "NAME", "STATUS", "REVISION", "AGE"];
            if format == Format::Wide {
                header.push("MESSAGE");
            }
            print_table(&header, objects.iter().map(|it| object_row(it, format == Format::Wide)).collect())
        }
        Format::Json => print_json(&list(values(objects)?)),
        Format::Yaml => print(&yaml(&list(values(objects)?))?),
        Format::Name => print(&objects.iter().map(|it| format!("{}/{}\n", it.kind.to_lowercase(), it.name)).collect::<String>()),
    }
}

fn values(objects: &[v1::Object]) -> anyhow::Result<Vec<Value>> {
    objects.iter().map(view::object).collect()
}

fn object_row(object: &v1::Object, wide: bool) -> Vec<String> {
    let namespace = if object.namespace.is_empty() { "-".to_owned() } else { object.namespace.clone() };
    let mut row = vec![
        object.kind.clone(),
        namespace,
        object.name.clone(),
        status(object),
        object.revision.to_string(),
        age(object.created.as_ref(), jiff::Timestamp::now()),
    ];
    if wide {
        let messages: Vec<String> = object.conditions.iter().filter(|it| !it.message.is_empty()).map(|it| it.message.clone()).collect();
        row.push(messages.join("; "));
    }
    row
}

fn status(object: &v1::Object) -> String {
    match object.conditions.iter().find(|it| it.r#type == "Degraded" && it.status) {
        Some(degraded) => format!("Degraded({})", degraded.reason),
        None => {
            object.conditions.iter().filter(|it| it.status).map(|it| it.r#type.clone()).next_back().unwrap_or_else(|| "Accepted".to_owned())
        }
    }
}

async fn watch(
    client: &mut Client,
    arguments: &GetArgs,
    kinds: &[&str],
    namespace: &str,
    name: Option<&str>,
    after: u64,
) -> anyhow::Result<()> {
    let kind = match kinds {
        [one] => (*one).to_owned(),
        _ => String::new(),
    };
    let request = v1::WatchRequest { kind, namespace: namespace.to_owned(), after_revision: after };
    let mut events = client.operator().await?.watch(request).await.map_err(|status| refusal("cannot watch", &status))?.into_inner();
    while let Some(event) = events.message().await.map_err(|status| refusal("the watch broke off", &status))? {
        let Some(object) = &event.object else { continue };
        let wanted = name.is_none_or(|name| object.name == name) && (kinds.contains(&"") || kinds.contains(&object.kind.as_str()));
        if !wanted {
            continue;
        }
        match arguments.output {
            Format::Table | Format::Wide | Format::Name => print(&format!(
                "{}  {}/{}{}  revision {}\n",
                view::result(event.change()),
                object.kind.to_lowercase(),
                if object.namespace.is_empty() { String::new() } else { format!("{}/", object.namespace) },
                object.name,
                event.revision
            ))?,
            Format::Json => print(&format!(
                "{}\n",
                json!({"change": view::result(event.change()), "revision": event.revision, "object": view::object(object)?})
            ))?,
            Format::Yaml => print(&format!("---\n{}", yaml(&view::object(object)?)?))?,
        }
    }
    anyhow::bail!("the controller ended the watch; run the command again")
}
