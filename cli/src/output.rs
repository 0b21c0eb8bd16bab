//! Tables, times and addresses as text.

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table};
use firebreak_proto::v1;
use prost_types::Timestamp;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Wrong arguments or input: ends with exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadInput(String);

impl BadInput {
    /// An error with this text.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Prints rows below a header, kubectl's way: columns by spaces, no lines, never wrapped.
pub(crate) fn print_table(header: &[&str], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    print(&table(header, rows))
}

/// The same as text.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(ToString::to_string).collect::<Vec<_>>());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Writes to stdout and flushes, so that a follower sees it at once. A closed pipe is an error that ends the command.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to standard output")
}

/// A JSON value as YAML.
pub(crate) fn yaml(value: &serde_json::Value) -> anyhow::Result<String> {
    serde_saphyr::to_string(value).context("cannot print as YAML")
}

/// Prints JSON, indented, with a newline.
pub(crate) fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value).context("cannot print as JSON")? + "\n"))
}

/// 4 or 16 bytes as an address; anything else shows as what it is.
pub(crate) fn address(bytes: &[u8]) -> String {
    match ip(bytes) {
        Some(address) => address.to_string(),
        None if bytes.is_empty() => String::new(),
        None => format!("<{} bytes, no address>", bytes.len()),
    }
}

/// 4 or 16 bytes as an address.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(four).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| Ipv6Addr::from(sixteen).into())
}

/// RFC 3339 in UTC with milliseconds; `-` for an absent time.
pub(crate) fn time(stamp: Option<&Timestamp>) -> String {
    stamp
        .and_then(|stamp| jiff::Timestamp::new(stamp.seconds, stamp.nanos).ok())
        .map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"))
}

/// How long ago, as kubectl says it: `5s`, `3m`, `2h`, `9d`; `-` for an absent time.
pub(crate) fn age(stamp: Option<&Timestamp>, now: jiff::Timestamp) -> String {
    let Some(then) = stamp.and_then(|stamp| jiff::Timestamp::new(stamp.seconds, stamp.nanos).ok()) else { return "-".to_owned() };
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `a=b,c=d`, or `<none>`.
pub(crate) fn labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let mut pairs: Vec<String> = labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.sort();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// `namespace/name#rule`, with the kind when it is not ours.
pub(crate) fn rule(rule: &v1::RuleRef) -> String {
    let mut text = format!("{} {}/{}", rule.kind, rule.namespace, rule.name);
    match (rule.rule_name.is_empty(), rule.rule_index) {
        (false, _) => text.push_str(&format!(" rule \"{}\"", rule.rule_name)),
        (true, Some(index)) => text.push_str(&format!(" rule {}", index.saturating_add(1))),
        (true, None) => {}
    }
    text
}

/// `5432/tcp`, `icmp type 8 code 0`.
pub(crate) fn transport(transport: Option<&v1::Transport>) -> String {
    let Some(transport) = transport else { return "-".to_owned() };
    let name = protocol_name(transport.protocol);
    match (transport.port, transport.icmp_type) {
        (Some(port), _) => format!("{port}/{name}"),
        (None, Some(kind)) => format!("{name} type {kind} code {}", transport.icmp_code.unwrap_or(0)),
        (None, None) => name,
    }
}

/// The name of a protocol in lower case, or its number.
pub(crate) fn protocol_name(number: u32) -> String {
    u8::try_from(number)
        .ok()
        .and_then(|number| firebreak_policy::model::Protocol(number).name())
        .map_or_else(|| format!("protocol-{number}"), str::to_lowercase)
}

/// The number of a protocol that a person named.
///
/// # Errors
/// Names the word and what would be understood.
pub(crate) fn protocol_number(word: &str) -> Result<u32, BadInput> {
    if let Ok(number) = word.parse::<u8>() {
        return Ok(number.into());
    }
    (0..=u8::MAX)
        .find(|number| firebreak_policy::model::Protocol(*number).name().is_some_and(|name| name.eq_ignore_ascii_case(word)))
        .map(u32::from)
        .ok_or_else(|| {
            BadInput::new(format!("`{word}` is no protocol; use tcp, udp, sctp, dccp, udplite, icmp, icmpv6 or a number from 0 to 255"))
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_said_as_kubectl_says_them() {
        let now = jiff::Timestamp::from_second(1_000_000).unwrap();
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")] {
            let then = Timestamp { seconds: 1_000_000 - seconds, nanos: 0 };
            assert_eq!(age(Some(&then), now), text);
        }
        assert_eq!(age(None, now), "-");
    }

    #[test]
    fn protocols_are_known_by_name_in_any_case_and_by_number() {
        for (word, number) in [("tcp", 6), ("UDP", 17), ("Icmpv6", 58), ("sctp", 132), ("47", 47)] {
            assert_eq!(protocol_number(word).unwrap(), number);
        }
        assert!(protocol_number("tpc").unwrap_err().to_string().contains("`tpc`"));
        assert!(protocol_number("256").is_err());
    }

    #[test]
    fn a_table_has_no_lines_and_no_trailing_spaces() {
        assert_eq!(
            table(&["NAME", "AGE"], vec![vec!["web".into(), "5s".into()], vec!["database".into(), "3m".into()]]),
            "NAME      AGE\nweb       5s\ndatabase  3m\n"
        );
    }
}
