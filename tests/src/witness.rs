//! Counters inside the workloads that forbidden packets are sent to: a packet that arrives is counted by the receiver's own kernel, however
//! late it comes and whether or not anybody answers it. The product's table is in the node's namespace, this one in the workload's.

use crate::lab::Workload;
use crate::namespace::Namespace;
use crate::probe::Kind;
use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::Stdio;

/// The witnesses' table. `add` and `delete` before it is made: a witness that was dropped without its namespace leaves nothing that counts on.
const TABLE: &str = "inet fb_witness";

/// What is watched for: packets of one kind between two addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sight {
    /// Who sends.
    pub from: IpAddr,
    /// Who would receive.
    pub to: IpAddr,
    /// What.
    pub kind: Kind,
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}", self.from, self.to, self.kind)
    }
}

impl Sight {
    /// The nft rule that counts it; the comment is how its counter is found again.
    fn rule(&self, number: usize) -> String {
        let family = if self.from.is_ipv4() { "ip" } else { "ip6" };
        let what = match self.kind {
            Kind::Tcp(port) => format!("tcp dport {port}"),
            Kind::Udp(port) => format!("udp dport {port}"),
            Kind::Sctp(port) => format!("sctp dport {port}"),
            Kind::Ping if self.from.is_ipv4() => "icmp type echo-request".to_owned(),
            Kind::Ping => "icmpv6 type echo-request".to_owned(),
        };
        format!("{family} saddr {} {family} daddr {} {what} counter comment \"{number}\"", self.from, self.to)
    }
}

/// Witnesses in all receiving workloads of some pairs.
#[derive(Debug)]
pub struct Witness<'a> {
    sights: Vec<Sight>,
    /// By the receiver's namespace name.
    places: BTreeMap<&'a str, &'a Namespace>,
}

impl<'a> Witness<'a> {
    /// Begins to count what arrives from the first workload at the second, in both families.
    ///
    /// # Errors
    /// What `nft` said.
    pub fn start(pairs: &[(&'a Workload, &'a Workload, Kind)]) -> anyhow::Result<Self> {
        let mut sights = Vec::new();
        let mut places = BTreeMap::new();
        let mut rules: BTreeMap<&str, String> = BTreeMap::new();
        for (from, to, kind) in pairs {
            places.insert(to.namespace.name(), &to.namespace);
            for (from, address) in from.addresses().into_iter().zip(to.addresses()) {
                let sight = Sight { from, to: address, kind: *kind };
                let text = rules.entry(to.namespace.name()).or_default();
                text.push_str(&format!("    {}\n", sight.rule(sights.len())));
                sights.push(sight);
            }
        }
        for (name, namespace) in &places {
            let rules = rules.get(name).map(String::as_str).unwrap_or_default();
            load(
                namespace,
                &format!(
                    "add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n  chain arrivals {{\n    \
                     type filter hook prerouting priority raw; policy accept;\n{rules}  }}\n}}\n"
                ),
            )?;
        }
        Ok(Self { sights, places })
    }

    /// How many packets of each kind have arrived so far, in the order of the pairs, IPv4 before IPv6.
    ///
    /// # Errors
    /// What `nft` said, or a counter is not there.
    pub fn arrivals(&self) -> anyhow::Result<Vec<(Sight, u64)>> {
        let mut counts = BTreeMap::new();
        for namespace in self.places.values() {
            let listing: serde_json::Value =
                serde_json::from_str(&namespace.output(&format!("nft -j list table {TABLE}"))?).context("cannot read what nft lists")?;
            for entry in listing["nftables"].as_array().context("nft lists nothing")? {
                let Some(number) = entry["rule"]["comment"].as_str() else { continue };
                let expressions = entry["rule"]["expr"].as_array().context("a rule without expressions")?;
                let packets = expressions.iter().find_map(|it| it["counter"]["packets"].as_u64()).context("a rule without a counter")?;
                counts.insert(number.parse::<usize>()?, packets);
            }
        }
        let count = |number: usize, sight: &Sight| counts.get(&number).copied().with_context(|| format!("the counter of {sight} is gone"));
        self.sights.iter().enumerate().map(|(number, sight)| Ok((*sight, count(number, sight)?))).collect()
    }
}

fn load(namespace: &Namespace, text: &str) -> anyhow::Result<()> {
    let mut command = namespace.command("nft");
    let mut nft = command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot run nft")?;
    nft.stdin.take().context("nft has no input")?.write_all(text.as_bytes())?;
    let output = nft.wait_with_output()?;
    ensure!(output.status.success(), "nft in {}: {}\n{text}", namespace.name(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
