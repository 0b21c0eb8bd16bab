//! `firebreak explain`.

use crate::args::{ExplainArgs, TextFormat};
use crate::client::{Client, refusal};
use crate::output::{BadInput, address, labels, print, print_json, protocol_name, protocol_number, rule, transport};
use crate::view;
use firebreak_proto::v1;
use serde_json::json;
use std::net::IpAddr;
use std::process::ExitCode;

const ECHO_REQUEST: u32 = 8;
const ECHO_REQUEST_V6: u32 = 128;

/// Exit code 0 whatever the verdict: the question was answered.
pub(crate) async fn run(client: &mut Client, arguments: ExplainArgs) -> anyhow::Result<ExitCode> {
    let (to, carried) = destination(&arguments.to)?;
    let request = v1::ExplainRequest { from: arguments.from.clone(), to, transport: Some(carried), namespace: arguments.namespace };
    let response = client.operator().await?.explain(request).await.map_err(|status| refusal("cannot explain", &status))?.into_inner();
    match arguments.output {
        TextFormat::Text => print(&text(&response, &carried))?,
        TextFormat::Json => print_json(&json!({
            "verdict": response.verdict.as_ref().map(|it| view::verdict(it.verdict())),
            "source": view::peer(response.source.as_ref()),
            "destination": view::peer(response.destination.as_ref()),
            "transport": view::transport(Some(&carried)),
            "egress": view::direction_verdict(response.verdict.as_ref().and_then(|it| it.egress.as_ref())),
            "ingress": view::direction_verdict(response.verdict.as_ref().and_then(|it| it.ingress.as_ref())),
            "revision": response.revision,
        }))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `END[:PORT][/PROTOCOL]`. An address with a port stands in brackets if it is IPv6; an end may hold a `/` of its own
/// (`namespace/name`), so the protocol is the last part only if it is one.
fn destination(text: &str) -> Result<(String, v1::Transport), BadInput> {
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, word)) if protocol_number(word).is_ok() => (rest, Some(protocol_number(word)?)),
        Some((rest, word)) if rest.contains(':') => {
            return Err(BadInput::new(format!("--to {text}: `{word}` is no protocol; write for instance {rest}/tcp")));
        }
        Some(_) | None => (text, None),
    };
    let (end, port) = end_and_port(text, rest)?;
    let protocol = protocol.unwrap_or(6);
    let known = u8::try_from(protocol).map(firebreak_policy::model::Protocol).ok();
    let carried = match (
        known.is_some_and(firebreak_policy::model::Protocol::has_ports),
        known.and_then(firebreak_policy::model::Protocol::icmp_family),
        port,
    ) {
        (true, _, Some(port)) => v1::Transport { protocol, port: Some(port.into()), icmp_type: None, icmp_code: None },
        (true, _, None) => {
            let name = protocol_name(protocol);
            return Err(BadInput::new(format!("--to {text}: {name} needs a port; write for instance {end}:443/{name}")));
        }
        (false, _, Some(_)) => return Err(BadInput::new(format!("--to {text}: {} has no ports", protocol_name(protocol)))),
        (false, Some(_), None) => {
            let kind = if protocol == 58 { ECHO_REQUEST_V6 } else { ECHO_REQUEST };
            v1::Transport { protocol, port: None, icmp_type: Some(kind), icmp_code: Some(0) }
        }
        (false, None, None) => v1::Transport { protocol, port: None, icmp_type: None, icmp_code: None },
    };
    Ok((end, carried))
}

fn end_and_port(text: &str, rest: &str) -> Result<(String, Option<u16>), BadInput> {
    if rest.parse::<IpAddr>().is_ok() {
        return Ok((rest.to_owned(), None));
    }
    let (end, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (end, after) = bracketed.split_once(']').ok_or_else(|| BadInput::new(format!("--to {text}: the bracket is not closed")))?;
            (end, after.strip_prefix(':'))
        }
        None => match rest.rsplit_once(':') {
            Some((end, port)) => (end, Some(port)),
            None => (rest, None),
        },
    };
    if end.is_empty() {
        return Err(BadInput::new(format!("--to {text}: names no end; write for instance db:5432/tcp")));
    }
    let port = match port {
        None => None,
        Some(digits) => Some(
            digits
                .parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| BadInput::new(format!("--to {text}: `{digits}` is no port from 1 to 65535")))?,
        ),
    };
    Ok((end.to_owned(), port))
}

fn text(response: &v1::ExplainResponse, carried: &v1::Transport) -> String {
    let mut out = String::new();
    let verdict = response.verdict.clone().unwrap_or_default();
    let word = if verdict.verdict() == v1::Verdict::Allow { "ALLOWED" } else { "DENIED" };
    out.push_str(&format!(
        "{word}  {} -> {} {}  (revision {})\n",
        end(response.source.as_ref()),
        end(response.destination.as_ref()),
        transport(Some(carried)),
        response.revision
    ));
    for (name, judged) in [("egress", &verdict.egress), ("ingress", &verdict.ingress)] {
        match judged {
            Some(judged) => out.push_str(&direction(name, judged)),
            None => out.push_str(&format!("  {name:<8}not judged: that end is no workload\n")),
        }
    }
    out
}

fn end(peer: Option<&v1::Peer>) -> String {
    let Some(peer) = peer else { return "?".to_owned() };
    let at = address(&peer.address);
    match (&peer.workload, peer.node.is_empty()) {
        (Some(id), _) => format!(
            "{}/{} ({}) on {} [{}]",
            peer.namespace,
            peer.name,
            if at.is_empty() { "no address" } else { &at },
            id.node,
            labels(&peer.labels)
        ),
        (None, false) => format!("node {} ({at})", peer.node),
        (None, true) => at,
    }
}

/// The lines that say why one direction was judged as it was.
pub(crate) fn direction(name: &str, judged: &v1::DirectionVerdict) -> String {
    let mut out = String::new();
    if judged.verdict() == v1::Verdict::Allow {
        let why = judged.rule.as_ref().map_or_else(|| judged.reason.clone(), |by| format!("by {}", rule(by)));
        out.push_str(&format!("  {name:<8}allow   {why}\n"));
        return out;
    }
    out.push_str(&format!("  {name:<8}deny    {}\n", judged.reason));
    for policy in &judged.isolating {
        out.push_str(&format!("          isolated by   {}\n", rule(policy)));
    }
    if let Some(nearest) = &judged.nearest {
        let by = nearest.rule.as_ref().map(rule).unwrap_or_default();
        out.push_str(&format!("          nearest rule  {by}: {} is {}, the rule allows {}\n", nearest.field, nearest.got, nearest.wanted));
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn port(protocol: u32, port: u32) -> v1::Transport {
        v1::Transport { protocol, port: Some(port), icmp_type: None, icmp_code: None }
    }

    #[test]
    fn destinations_are_read_with_and_without_namespace_protocol_and_brackets() {
        let ping = |protocol, kind| v1::Transport { protocol, port: None, icmp_type: Some(kind), icmp_code: Some(0) };
        for (text, end, carried) in [
            ("db:5432/tcp", "db", port(6, 5432)),
            ("db:5432", "db", port(6, 5432)),
            ("shop/db:53/udp", "shop/db", port(17, 53)),
            ("shop/db:53", "shop/db", port(6, 53)),
            ("db@node-a:80", "db@node-a", port(6, 80)),
            ("10.0.0.7:443/TCP", "10.0.0.7", port(6, 443)),
            ("[fd00::7]:443/sctp", "fd00::7", port(132, 443)),
            ("shop/db/icmp", "shop/db", ping(1, 8)),
            ("fd00::7/icmpv6", "fd00::7", ping(58, 128)),
            ("db/47", "db", v1::Transport { protocol: 47, port: None, icmp_type: None, icmp_code: None }),
        ] {
            assert_eq!(destination(text).unwrap(), (end.to_owned(), carried), "{text}");
        }
    }

    #[test]
    fn a_destination_that_cannot_be_meant_is_refused_with_the_word_that_is_wrong() {
        for (text, part) in [
            ("db", "tcp needs a port"),
            ("db:0", "`0` is no port"),
            ("db:70000/tcp", "`70000` is no port"),
            ("db:http/tcp", "`http` is no port"),
            ("db:53/upd", "`upd` is no protocol"),
            (":53/udp", "names no end"),
            ("[fd00::7", "bracket is not closed"),
            ("db:7/icmp", "icmp has no ports"),
        ] {
            let error = destination(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
