//! `firebreak history`: the audit trail.

use crate::args::{HistoryArgs, TextFormat};
use crate::client::{Client, refusal};
use crate::output::{print, print_table, time};
use crate::view;
use firebreak_proto::v1;
use std::process::ExitCode;

/// The largest page that the API gives.
const PAGE: u32 = 1000;

/// Shows the newest changes first.
pub(crate) async fn run(client: &mut Client, arguments: HistoryArgs) -> anyhow::Result<ExitCode> {
    let entries = fetch(client, arguments.limit).await?;
    match arguments.output {
        TextFormat::Json => {
            for entry in &entries {
                print(&format!("{}\n", view::revision(entry)))?;
            }
        }
        TextFormat::Text => {
            let rows = entries.iter().map(|entry| {
                vec![
                    entry.revision.to_string(),
                    time(entry.time.as_ref()),
                    entry.principal.clone(),
                    entry.verb.clone(),
                    changes(entry),
                    entry.reason.clone(),
                ]
            });
            print_table(&["REVISION", "TIME", "WHO", "VERB", "WHAT", "WHY"], rows.collect())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn fetch(client: &mut Client, limit: u32) -> anyhow::Result<Vec<v1::RevisionEntry>> {
    let limit = usize::try_from(limit)?;
    let mut entries = Vec::new();
    let mut page_token = String::new();
    while entries.len() < limit {
        let wanted = u32::try_from(limit - entries.len())?.min(PAGE);
        let request = v1::ListRevisionsRequest { page_size: wanted, page_token };
        let page = client
            .operator()
            .await?
            .list_revisions(request)
            .await
            .map_err(|status| refusal("cannot read the audit trail", &status))?
            .into_inner();
        entries.extend(page.revisions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(entries)
}

fn changes(entry: &v1::RevisionEntry) -> String {
    const SHOWN: usize = 3;
    let mut texts: Vec<String> = entry
        .changes
        .iter()
        .take(SHOWN)
        .map(|it| {
            let scope = if it.namespace.is_empty() { String::new() } else { format!("{}/", it.namespace) };
            format!("{} {scope}{} {}", it.kind, it.name, view::result(it.result()))
        })
        .collect();
    if entry.changes.len() > SHOWN {
        texts.push(format!("and {} more", entry.changes.len() - SHOWN));
    }
    texts.join("; ")
}
