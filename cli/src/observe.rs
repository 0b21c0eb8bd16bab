//! `firebreak node observe`.

use crate::args::ObserveArgs;
use crate::client::{Client, refusal};
use crate::output::{print, time};
use firebreak_proto::v1;
use std::process::ExitCode;

/// Begins or ends it, and says what the node says.
pub(crate) async fn run(client: &mut Client, arguments: ObserveArgs) -> anyhow::Result<ExitCode> {
    let ObserveArgs { name, duration, off: _, reason } = arguments;
    let duration = duration.map(prost_types::Duration::try_from).transpose()?;
    let request = v1::SetObserveRequest { name: name.clone(), duration, reason };
    let answer = client.operator().await?.set_observe(request).await;
    let v1::SetObserveResponse { revision: _, observing } =
        answer.map_err(|status| refusal(format!("node {name} was not told to observe, or does not say so"), &status))?.into_inner();
    print(&match observing {
        Some(observing) => format!(
            "node/{name} observes until {}: what policy denies is LET THROUGH and told by `firebreak flows --verdict audit`; end it with \
             `firebreak node observe {name} --off`\n",
            time(observing.until.as_ref())
        ),
        None => format!("node/{name} enforces\n"),
    })?;
    Ok(ExitCode::SUCCESS)
}
