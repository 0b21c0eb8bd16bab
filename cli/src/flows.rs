//! `firebreak flows`: denied flows and cut connections, as the SOC reads them.

use crate::args::{DirectionArg, FlowsArgs, TextFormat, VerdictArg};
use crate::client::{Client, refusal};
use crate::output::{address, labels, print, protocol_number, rule, time, transport};
use crate::view;
use firebreak_proto::v1;
use ipnet::IpNet;
use std::process::ExitCode;

const KEPT_SHOWN: u32 = 100;

/// Prints records one by one, each flushed, so that a follower sees a flow when it arrives.
pub(crate) async fn run(client: &mut Client, arguments: FlowsArgs) -> anyhow::Result<ExitCode> {
    let request = request(&arguments)?;
    let mut flows =
        client.operator().await?.watch_flows(request).await.map_err(|status| refusal("cannot watch flows", &status))?.into_inner();
    let mut shown = 0_u64;
    while arguments.count.is_none_or(|count| shown < count) {
        match flows.message().await.map_err(|status| refusal("the flows broke off", &status))? {
            Some(flow) => print(&record(&flow, arguments.output))?,
            None if arguments.follow => {
                anyhow::bail!("the controller ended the flows; run the command again, with --after to go on where you were")
            }
            None => break,
        }
        shown += 1;
    }
    Ok(ExitCode::SUCCESS)
}

fn request(arguments: &FlowsArgs) -> anyhow::Result<v1::WatchFlowsRequest> {
    let direction = match arguments.direction {
        None => v1::Direction::Unspecified,
        Some(DirectionArg::Ingress) => v1::Direction::Ingress,
        Some(DirectionArg::Egress) => v1::Direction::Egress,
    };
    let verdict = match arguments.verdict {
        None => v1::Verdict::Unspecified,
        Some(VerdictArg::Allow) => v1::Verdict::Allow,
        Some(VerdictArg::Drop) => v1::Verdict::Drop,
        Some(VerdictArg::Reject) => v1::Verdict::Reject,
        Some(VerdictArg::Audit) => v1::Verdict::Audit,
    };
    Ok(v1::WatchFlowsRequest {
        follow: arguments.follow,
        tail: arguments.tail.unwrap_or(if arguments.follow { 0 } else { KEPT_SHOWN }),
        namespace: arguments.namespace.clone(),
        workload: arguments.workload.clone(),
        node: arguments.node.clone(),
        direction: direction.into(),
        verdict: verdict.into(),
        source: arguments.from.map(cidr),
        destination: arguments.to.map(cidr),
        protocol: arguments.protocol.as_deref().map(protocol_number).transpose()?,
        port: arguments.port.map(u32::from),
        after_cursor: arguments.after,
        cuts: arguments.cuts,
    })
}

fn cidr(block: IpNet) -> v1::Cidr {
    let block = block.trunc();
    let address = match block {
        IpNet::V4(block) => block.addr().octets().to_vec(),
        IpNet::V6(block) => block.addr().octets().to_vec(),
    };
    v1::Cidr { address: address.into(), prefix_length: block.prefix_len().into() }
}

fn record(flow: &v1::AttributedFlow, format: TextFormat) -> String {
    match format {
        TextFormat::Json => format!("{}\n", view::flow(flow)),
        TextFormat::Text => text(flow),
    }
}

/// Two lines: what happened, and why.
fn text(flow: &v1::AttributedFlow) -> String {
    let at = time(flow.time.as_ref().and_then(|stamp| stamp.node_time.as_ref()));
    if let Some(lost) = &flow.lost {
        return format!(
            "{at}  LOST     {} {} packets on {}: {}\n",
            view::direction(lost.direction()),
            lost.packets,
            flow.node,
            lost.reason
        );
    }
    if let Some(cut) = &flow.cut {
        return cut_text(&at, flow, cut);
    }
    let Some(event) = &flow.event else { return format!("{at}  EMPTY    record {} of {}\n", flow.sequence, flow.node) };
    let source_port = event.source_port.map(|port| format!(":{port}")).unwrap_or_default();
    let mut out = format!(
        "{at}  {:<7}  {:<7}  {} -> {} {}  {} at {}{}  {} packets {} bytes  id {}\n",
        view::phase(event.phase()),
        view::verdict(event.verdict()).to_uppercase(),
        end(flow.source.as_ref(), &event.source, &source_port),
        end(flow.destination.as_ref(), &event.destination, ""),
        transport(event.transport.as_ref()),
        view::direction(event.direction()),
        flow.node,
        if event.interface.is_empty() { String::new() } else { format!("/{}", event.interface) },
        event.packets,
        event.bytes,
        view::hex(event.flow_id.get(..4).unwrap_or(&event.flow_id)),
    );
    if event.phase() == v1::FlowPhase::Opened {
        out.push_str(&why(flow.reason.as_ref()));
    }
    if !event.note.is_empty() {
        out.push_str(&format!("    note: {}\n", event.note));
    }
    out
}

/// Two lines: which connection was ended, and why.
fn cut_text(at: &str, flow: &v1::AttributedFlow, cut: &v1::CutEvent) -> String {
    let source_port = cut.source_port.map(|port| format!(":{port}")).unwrap_or_default();
    let counted = match (cut.packets_sent, cut.bytes_sent, cut.packets_received, cut.bytes_received) {
        (Some(packets), Some(bytes), Some(answers), Some(answer_bytes)) => {
            format!("sent {packets} packets {bytes} bytes, received {answers} packets {answer_bytes} bytes")
        }
        _ => "not counted".to_owned(),
    };
    let mut out = format!(
        "{at}  CUT      {} -> {} {}  {} at {}{}  generation {}  {counted}  id {}\n",
        end(flow.source.as_ref(), &cut.source, &source_port),
        end(flow.destination.as_ref(), &cut.destination, ""),
        transport(cut.transport.as_ref()),
        view::direction(cut.direction()),
        flow.node,
        if cut.interface.is_empty() { String::new() } else { format!("/{}", cut.interface) },
        cut.generation,
        view::hex(cut.cut_id.get(..4).unwrap_or(&cut.cut_id)),
    );
    out.push_str(&why(flow.reason.as_ref()));
    if !cut.note.is_empty() {
        out.push_str(&format!("    note: {}\n", cut.note));
    }
    out
}

fn end(peer: Option<&v1::Peer>, raw: &[u8], port: &str) -> String {
    let at = format!("{}{port}", address(raw));
    let Some(peer) = peer else { return at };
    let note = if peer.note.is_empty() { String::new() } else { format!(" ({})", peer.note) };
    match (&peer.workload, peer.node.is_empty()) {
        (Some(_), _) => format!("{}/{} [{}] {at}{note}", peer.namespace, peer.name, labels(&peer.labels)),
        (None, false) => format!("node {} {at}{note}", peer.node),
        (None, true) => format!("{at}{note}"),
    }
}

fn why(reason: Option<&v1::DirectionVerdict>) -> String {
    let Some(reason) = reason else { return String::new() };
    let mut out = format!("    why: {}", reason.reason);
    if !reason.isolating.is_empty() {
        let policies: Vec<String> = reason.isolating.iter().map(rule).collect();
        out.push_str(&format!("; isolated by {}", policies.join(", ")));
    }
    if let Some(nearest) = &reason.nearest {
        let by = nearest.rule.as_ref().map(rule).unwrap_or_default();
        out.push_str(&format!("; nearest {by}: {} is {}, the rule allows {}", nearest.field, nearest.got, nearest.wanted));
    }
    out.push('\n');
    out
}
