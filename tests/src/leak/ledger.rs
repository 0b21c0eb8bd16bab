//! What left and what arrived, counted by the kernels of both ends.
//!
//! Each namespace gets a table with sets of flow keys whose elements count. The table is owned by an `nft` process that lives as long as the
//! ledger: `nft flush ruleset` by others, which is one of the things that are tried on nodes, passes it over.

use super::{End, Outcome};
use crate::namespace::Namespace;
use crate::probe::Kind;
use crate::wait;
use anyhow::{Context as _, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

/// One family of one pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sight {
    /// Who sends.
    pub from: IpAddr,
    /// Who would receive.
    pub to: IpAddr,
    /// What.
    pub kind: Kind,
    /// Whether it is to pass.
    pub allowed: bool,
}

/// What was counted of a sight, in packets.
#[derive(Clone, Debug)]
pub struct Balance {
    /// Of what.
    pub sight: Sight,
    /// For people.
    pub name: String,
    /// Left the sender.
    pub sent: u64,
    /// Reached the receiver.
    pub arrived: u64,
    /// Left the receiver as an answer.
    pub answered: u64,
    /// Reached the sender as an answer.
    pub returned: u64,
}

impl Balance {
    /// Whether nothing is to be said: a permitted pair has got all that was sent, a forbidden one nothing.
    pub(super) fn is_even(&self) -> bool {
        let Self { sight, name: _, sent, arrived, answered, returned } = self;
        if sight.allowed { sent == arrived && answered == returned } else { *arrived == 0 && *answered == 0 }
    }

    pub(super) fn judge(self, outcome: &mut Outcome) {
        let is_even = self.is_even();
        let Self { sight, name, sent, arrived, answered, returned } = self;
        let counted = format!("{name}: sent {sent}, arrived {arrived}, answered {answered}, returned {returned}");
        if sent == 0 || (sight.allowed && (arrived == 0 || returned == 0)) {
            outcome.silent.push(counted.clone());
        }
        match (is_even, sight.allowed) {
            (true, _) => {}
            (false, true) => outcome.dropped.push(counted),
            (false, false) => outcome.leaked.push(counted),
        }
    }
}

const TABLE: &str = "inet fb_ledger";

/// Which way a packet goes, as its end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    Sent,
    Arrived,
    Answered,
    Returned,
}

impl Column {
    const ALL: [Self; 4] = [Self::Sent, Self::Arrived, Self::Answered, Self::Returned];

    fn word(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Arrived => "arrived",
            Self::Answered => "answered",
            Self::Returned => "returned",
        }
    }

    /// Whether it is counted where packets leave the namespace, and whether they are answers.
    fn leaves_and_answers(self) -> (bool, bool) {
        match self {
            Self::Sent => (true, false),
            Self::Arrived => (false, false),
            Self::Answered => (true, true),
            Self::Returned => (false, true),
        }
    }
}

/// The key of an element as `nft` prints it: source, destination, and protocol and port or ICMP type.
type Key = (IpAddr, IpAddr, String);

fn key(sight: &Sight, column: Column) -> Key {
    let (_, answers) = column.leaves_and_answers();
    let (source, destination) = if answers { (sight.to, sight.from) } else { (sight.from, sight.to) };
    let rest = match sight.kind {
        Kind::Tcp(port) => format!("tcp . {port}"),
        Kind::Udp(port) => format!("udp . {port}"),
        Kind::Sctp(port) => format!("sctp . {port}"),
        Kind::Ping => if answers { "echo-reply" } else { "echo-request" }.to_owned(),
    };
    (source, destination, rest)
}

fn set_name(sight: &Sight, column: Column) -> String {
    let digit = if sight.from.is_ipv4() { '4' } else { '6' };
    match sight.kind {
        Kind::Ping => format!("{}_icmp{digit}", column.word()),
        Kind::Tcp(_) | Kind::Udp(_) | Kind::Sctp(_) => format!("{}{digit}", column.word()),
    }
}

/// The ledgers of all ends of some pairs.
#[derive(Debug)]
pub(super) struct Ledger {
    sights: Vec<(Sight, String, String, String)>,
    books: BTreeMap<String, Child>,
}

impl Ledger {
    /// Begins to count. A sight comes with its name and the namespaces of its sender and receiver.
    ///
    /// # Errors
    /// What `nft` said.
    pub(super) fn open(ends: &[End<'_>], sights: Vec<(Sight, String, String, String)>) -> anyhow::Result<Self> {
        let mut ledger = Self { sights, books: BTreeMap::new() };
        for end in ends {
            let name = end.namespace.name();
            let text = text(end.is_node, &ledger.elements(name));
            ledger.books.insert(name.to_owned(), book(end.namespace, &text)?);
        }
        Ok(ledger)
    }

    /// The elements of each set of one namespace.
    fn elements(&self, namespace: &str) -> BTreeMap<String, BTreeSet<Key>> {
        let mut elements: BTreeMap<String, BTreeSet<Key>> = BTreeMap::new();
        for (sight, _, sender, receiver) in &self.sights {
            for column in Column::ALL {
                let place = match column {
                    Column::Sent | Column::Returned => sender,
                    Column::Arrived | Column::Answered => receiver,
                };
                if place == namespace {
                    elements.entry(set_name(sight, column)).or_default().insert(key(sight, column));
                }
            }
        }
        elements
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// What `nft` said, or a counter is not there.
    pub(super) fn read(&self) -> anyhow::Result<Vec<Balance>> {
        let books: BTreeMap<&str, BTreeMap<(String, Key), u64>> =
            self.books.keys().map(|name| Ok((name.as_str(), read_book(name)?))).collect::<anyhow::Result<_>>()?;
        let balance = |(sight, name, sender, receiver): &(Sight, String, String, String)| {
            let count = |column, place: &str| {
                let counted = books.get(place).and_then(|book| book.get(&(set_name(sight, column), key(sight, column))));
                counted.copied().with_context(|| format!("no counter of {name} in {place}"))
            };
            Ok(Balance {
                sight: *sight,
                name: name.clone(),
                sent: count(Column::Sent, sender)?,
                arrived: count(Column::Arrived, receiver)?,
                answered: count(Column::Answered, receiver)?,
                returned: count(Column::Returned, sender)?,
            })
        };
        self.sights.iter().map(balance).collect()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        for nft in self.books.values_mut() {
            // Tear-down goes on whatever happens; the table goes with its owner.
            let _ = nft.kill();
            let _ = nft.wait();
        }
    }
}

/// Where a workload's packets arrive, nothing stands before it in its own namespace. On a node the product's rules do.
fn text(is_node: bool, elements: &BTreeMap<String, BTreeSet<Key>>) -> String {
    let arrival = if is_node { "hook input priority 300" } else { "hook prerouting priority -300" };
    let mut text = format!(
        "add table {TABLE} {{ flags owner; }}\nadd chain {TABLE} leaving {{ type filter hook output priority -300; policy accept; }}\n\
         add chain {TABLE} coming {{ type filter {arrival}; policy accept; }}\n"
    );
    for column in Column::ALL {
        let (leaves, answers) = column.leaves_and_answers();
        let (chain, port) = (if leaves { "leaving" } else { "coming" }, if answers { "sport" } else { "dport" });
        for (digit, header, icmp, address) in [("4", "ip", "icmp", "ipv4_addr"), ("6", "ip6", "icmpv6", "ipv6_addr")] {
            let ports = (format!("{}{digit}", column.word()), "inet_proto . inet_service".to_owned(), format!("meta l4proto . th {port}"));
            let types = (format!("{}_icmp{digit}", column.word()), format!("{icmp}_type"), format!("{icmp} type"));
            for (set, kind, fields) in [ports, types] {
                let Some(keys) = elements.get(&set) else { continue };
                let keys: Vec<String> =
                    keys.iter().map(|(source, destination, rest)| format!("{source} . {destination} . {rest}")).collect();
                text += &format!(
                    "add set {TABLE} {set} {{ type {address} . {address} . {kind}; counter; }}\nadd element {TABLE} {set} {{ {} }}\n\
                     add rule {TABLE} {chain} {header} saddr . {header} daddr . {fields} @{set}\n",
                    keys.join(", ")
                );
            }
        }
    }
    // The last command: when it is there, all are.
    text + &format!("add counter {TABLE} complete\n")
}

fn book(namespace: &Namespace, text: &str) -> anyhow::Result<Child> {
    let mut command = namespace.command("nft");
    // Interactive: one socket, which owns the table, for as long as the process runs.
    let mut nft = command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("cannot run nft")?;
    let input = nft.stdin.as_mut().context("nft has no input")?;
    input.write_all(text.as_bytes())?;
    input.flush()?;
    wait::until("nft to make a ledger", Duration::from_secs(20), || {
        namespace.output(&format!("nft list counter {TABLE} complete")).map(drop)
    })?;
    Ok(nft)
}

fn read_book(namespace: &str) -> anyhow::Result<BTreeMap<(String, Key), u64>> {
    let output = std::process::Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-j", "list", "sets", "table"])
        .args(TABLE.split(' '))
        .output()?;
    ensure!(output.status.success(), "nft in {namespace}: {}", String::from_utf8_lossy(&output.stderr).trim());
    // Sets alone: nft 1.0.6 cannot say as JSON that a table is owned.
    let listing: serde_json::Value = serde_json::from_slice(&output.stdout).context("cannot read what nft lists")?;
    let mut counts = BTreeMap::new();
    let entries = listing["nftables"].as_array().context("nft lists nothing")?;
    // It lists those of every table all the same.
    for set in entries.iter().map(|entry| &entry["set"]).filter(|set| set["table"] == "fb_ledger") {
        let name = set["name"].as_str().context("a set without a name")?;
        for element in set["elem"].as_array().into_iter().flatten().map(|element| &element["elem"]) {
            let fields: Vec<String> = element["val"]["concat"].as_array().context("no key")?.iter().map(word).collect();
            let [source, destination, rest @ ..] = fields.as_slice() else { bail!("a key of {} fields", fields.len()) };
            let packets = element["counter"]["packets"].as_u64().context("an element without a counter")?;
            counts.insert((name.to_owned(), (source.parse()?, destination.parse()?, rest.join(" . "))), packets);
        }
    }
    Ok(counts)
}

fn word(field: &serde_json::Value) -> String {
    field.as_str().map_or_else(|| field.to_string(), str::to_owned)
}
