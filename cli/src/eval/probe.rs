//! Probes: JSON lines in, flows between named ends out.

use crate::output::protocol_number;
use firebreak_manifest::IntOrString;
use firebreak_policy::model::{Endpoint, Family, Flow, Inventory, NamedPort, Protocol, Transport, WorkloadId};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The namespace of an end that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// One question.
#[derive(Debug)]
pub(super) struct Probe {
    /// As it was written.
    pub(super) written: Written,
    /// What it means.
    pub(super) flow: Flow,
}

/// A probe as it was written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Written {
    /// `ns/pod`, `pod` or an address.
    pub(super) from: String,
    /// `ns/pod`, `pod` or an address.
    pub(super) to: String,
    /// TCP when absent.
    pub(super) protocol: Option<IntOrString>,
    /// A number, or a name that the destination gives one of its ports.
    pub(super) port: Option<IntOrString>,
    /// For ICMP and ICMPv6; echo request when absent.
    pub(super) icmp_type: Option<i64>,
    /// For ICMP and ICMPv6; 0 when absent.
    pub(super) icmp_code: Option<i64>,
}

/// The workloads by namespace and name.
pub(super) struct Ends<'a> {
    workloads: BTreeMap<(&'a str, &'a str), (&'a WorkloadId, &'a [NamedPort])>,
}

impl<'a> Ends<'a> {
    /// Those of an inventory that was built from manifests: there a name is one workload.
    pub(super) fn of(inventory: &'a Inventory) -> Self {
        let entry = |workload: &'a firebreak_policy::model::Workload| {
            ((workload.namespace.as_str(), workload.name.as_str()), (&workload.id, workload.named_ports.as_slice()))
        };
        Self { workloads: inventory.workloads.values().map(entry).collect() }
    }

    fn find(&self, field: &str, text: &str) -> Result<(Endpoint, &'a [NamedPort]), String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            if address.to_canonical() != address {
                return Err(format!("{field}: {text} is an IPv4 address written as IPv6; write {}", address.to_canonical()));
            }
            return Ok((Endpoint::Address(address), &[]));
        }
        let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
        match self.workloads.get(&(namespace, name)) {
            Some((id, ports)) => Ok((Endpoint::Workload((*id).clone()), ports)),
            None => {
                let elsewhere: Vec<String> = self
                    .workloads
                    .keys()
                    .filter(|(_, other)| *other == name)
                    .map(|(namespace, name)| format!("{namespace}/{name}"))
                    .collect();
                let advice = match elsewhere.as_slice() {
                    [] => "give a Pod or Workload of the manifests as namespace/name, or an IP address".to_owned(),
                    some => format!("do you mean {}?", some.join(" or ")),
                };
                Err(format!("{field}: no Pod or Workload of the manifests is called {namespace}/{name}; {advice}"))
            }
        }
    }
}

/// All probes of a text. Blank lines are passed over.
///
/// # Errors
/// One message for each line that is refused, with its place and what to do.
pub(super) fn parse(source: &str, text: &str, ends: &Ends<'_>) -> Result<Vec<Probe>, Vec<String>> {
    let mut probes = Vec::new();
    let mut errors = Vec::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _): &(&str, usize)| !line.trim().is_empty()) {
        match parse_line(line, ends) {
            Ok(probe) => probes.push(probe),
            Err((Some(column), reason)) => errors.push(format!("{source}:{number}:{column}: {reason}")),
            Err((None, reason)) => errors.push(format!("{source}:{number}: {reason}")),
        }
    }
    if errors.is_empty() { Ok(probes) } else { Err(errors) }
}

fn parse_line(line: &str, ends: &Ends<'_>) -> Result<Probe, (Option<usize>, String)> {
    let written: Written = serde_json::from_str(line).map_err(|error| {
        let text = error.to_string();
        // The place is said in our own form.
        let reason = text.split(" at line ").next().unwrap_or(&text);
        (
            Some(error.column()),
            format!("no probe: {reason}; write it like {{\"from\":\"ns/pod\",\"to\":\"ns/pod\",\"protocol\":\"TCP\",\"port\":80}}"),
        )
    })?;
    let flow = flow(&written, ends).map_err(|reason| (None, reason))?;
    Ok(Probe { written, flow })
}

fn flow(written: &Written, ends: &Ends<'_>) -> Result<Flow, String> {
    let Written { from, to, protocol, port, icmp_type, icmp_code } = written;
    let (from, _) = ends.find("from", from)?;
    let (to, ports) = ends.find("to", to)?;
    let protocol = match protocol {
        None => Protocol::TCP,
        Some(IntOrString::Int(number)) => {
            u8::try_from(*number).map(Protocol).map_err(|_| format!("protocol: {number} is no IP protocol; use 0 to 255"))?
        }
        Some(IntOrString::String(word)) => {
            protocol_number(word).ok().and_then(|number| u8::try_from(number).ok()).map(Protocol).ok_or_else(|| {
                format!("protocol: {word:?} is not known; use TCP, UDP, SCTP, DCCP, UDPLite, ICMP, ICMPv6 or a number from 0 to 255")
            })?
        }
    };
    let has_icmp = icmp_type.is_some() || icmp_code.is_some();
    let transport = match (protocol.has_ports(), protocol.icmp_family()) {
        (true, _) if has_icmp => {
            return Err(format!("icmpType, icmpCode: {protocol} has none; leave them out, or give the protocol ICMP or ICMPv6"));
        }
        (true, _) => Transport::Port(protocol, port_of(port.as_ref(), protocol, &written.to, ports)?),
        (false, _) if port.is_some() => return Err(format!("port: {protocol} has no ports; leave it out")),
        (false, Some(family)) => icmp(family, *icmp_type, *icmp_code)?,
        (false, None) if has_icmp => return Err(format!("icmpType, icmpCode: {protocol} has none; leave them out")),
        (false, None) => Transport::Other(protocol),
    };
    Ok(Flow { from, to, transport })
}

fn port_of(port: Option<&IntOrString>, protocol: Protocol, to: &str, ports: &[NamedPort]) -> Result<u16, String> {
    match port {
        None => Err(format!("port: is missing, and {protocol} needs one; add for instance \"port\":80")),
        Some(IntOrString::Int(number)) => {
            u16::try_from(*number).ok().filter(|port| *port != 0).ok_or_else(|| format!("port: {number} is not a port; use 1 to 65535"))
        }
        Some(IntOrString::String(name)) => ports
            .iter()
            .find(|named| named.protocol == protocol && named.name == *name)
            .map(|named| named.port)
            .ok_or_else(|| format!("port: {to} has no {protocol} port of the name {name:?}; give the number")),
    }
}

fn icmp(family: Family, kind: Option<i64>, code: Option<i64>) -> Result<Transport, String> {
    let byte = |field: &str, number: i64| u8::try_from(number).map_err(|_| format!("{field}: {number} is out of range; use 0 to 255"));
    let Some(kind) = kind else {
        return match code {
            None => Ok(Transport::ping(family)),
            Some(_) => Err("icmpCode: is given without icmpType; a code means something only within a type".to_owned()),
        };
    };
    Ok(Transport::Icmp { family, kind: byte("icmpType", kind)?, code: byte("icmpCode", code.unwrap_or(0))? })
}
