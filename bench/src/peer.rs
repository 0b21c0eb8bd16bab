//! The peer of the dataplane figures: `nft` with a set of the same type and the same elements, in a namespace of its own, so that it
//! never has to look at our tables.

use anyhow::{Context as _, ensure};
use firebreak_policy::kernel_sets::{Comment, Element};
use firebreak_tests::namespace::Namespace;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const TABLE: &str = "peer";
const SET: &str = "allowed";

/// The elements as nft's text.
///
/// # Errors
/// An element that is no address, address, protocol, port.
pub(crate) fn text<'a>(elements: impl IntoIterator<Item = (&'a Element, &'a Comment)>) -> anyhow::Result<String> {
    let mut out =
        format!("table inet {TABLE} {{\n set {SET} {{\n  type ipv4_addr . ipv4_addr . inet_proto . inet_service\n  elements = {{\n");
    for (element, comment) in elements {
        let (local, peer, protocol, port) = fields(element)?;
        writeln!(out, "{local} . {peer} . {protocol} . {port} comment \"{comment}\",")?;
    }
    out.push_str("  }\n }\n}\n");
    Ok(out)
}

/// The elements as nft's JSON.
///
/// # Errors
/// As [`text`].
pub(crate) fn json<'a>(elements: impl IntoIterator<Item = (&'a Element, &'a Comment)>) -> anyhow::Result<String> {
    let elements = elements
        .into_iter()
        .map(|(element, comment)| {
            let (local, peer, protocol, port) = fields(element)?;
            Ok(json!({"elem": {"val": {"concat": [local, peer, protocol, port]}, "comment": &**comment}}))
        })
        .collect::<anyhow::Result<Vec<Value>>>()?;
    let kinds = ["ipv4_addr", "ipv4_addr", "inet_proto", "inet_service"];
    let commands = json!({"nftables": [
        {"add": {"table": {"family": "inet", "name": TABLE}}},
        {"add": {"set": {"family": "inet", "table": TABLE, "name": SET, "type": kinds}}},
        {"add": {"element": {"family": "inet", "table": TABLE, "name": SET, "elem": elements}}},
    ]});
    Ok(commands.to_string())
}

/// A set of addresses as nft's text.
pub(crate) fn addresses(all: &[IpAddr]) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    format!("table inet {TABLE} {{\n set {SET} {{\n  type ipv4_addr\n  elements = {{ {} }}\n }}\n}}\n", all.join(", "))
}

/// One address that comes into that set or goes.
pub(crate) fn one_address(address: IpAddr, comes: bool, json: bool) -> String {
    let act = if comes { "add" } else { "delete" };
    if json {
        let element = json!({"element": {"family": "inet", "table": TABLE, "name": SET, "elem": [address.to_string()]}});
        json!({"nftables": [{ act: element }]}).to_string()
    } else {
        format!("{act} element inet {TABLE} {SET} {{ {address} }}\n")
    }
}

fn fields(element: &Element) -> anyhow::Result<(String, String, u8, u16)> {
    let Element::PeerPort(local, peer, protocol, port) = element else { anyhow::bail!("{element:?} is no element of this set") };
    Ok((local.to_string(), peer.to_string(), protocol.0, *port))
}

/// Runs one `nft` that loads the file, from its start to its end.
///
/// # Errors
/// What it said.
pub(crate) fn load(inside: &Namespace, file: &Path, json: bool) -> anyhow::Result<Duration> {
    let path = file.to_str().context("the temporary path is not UTF-8")?;
    let arguments: &[&str] = if json { &["-j", "-f", path] } else { &["-f", path] };
    run(inside, arguments)
}

/// Removes what [`load`] made.
///
/// # Errors
/// What `nft` said.
pub(crate) fn clear(inside: &Namespace) -> anyhow::Result<()> {
    run(inside, &["delete", "table", "inet", TABLE]).map(drop)
}

/// Runs one `nft` that adds one element.
///
/// # Errors
/// As [`load`].
pub(crate) fn add(inside: &Namespace, element: &Element) -> anyhow::Result<Duration> {
    let (local, peer, protocol, port) = fields(element)?;
    let words = format!("{{ {local} . {peer} . {protocol} . {port} comment \"added\" }}");
    run(inside, &["add", "element", "inet", TABLE, SET, &words])
}

/// Entered by the calling process's thread, not by `ip netns exec`: nft alone is timed.
fn run(inside: &Namespace, arguments: &[&str]) -> anyhow::Result<Duration> {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    inside.run(move || {
        let begun = Instant::now();
        let output = std::process::Command::new("nft").args(&arguments).output().context("cannot run nft")?;
        let took = begun.elapsed();
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).chars().take(500).collect::<String>());
        Ok(took)
    })?
}
