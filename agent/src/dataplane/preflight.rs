//! What has to be there before there can be enforcement: each thing is tried, none is guessed from a version. Nothing is left
//! behind: the kernel takes each trial transaction apart again.

use super::config::DataplaneConfig;
use super::feature::Feature;
use super::names::Layer;
use super::nft::{self, NftRefusal};
use super::socket::NetfilterSocket;
use super::wire::{CREATE, Message, table};
use crate::confine;
use crate::discovery::probe;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; enforcement is whole.
    Notice,
    /// Part of the enforcement is missing.
    Warning,
    /// There can be no enforcement.
    Fatal,
}

/// One thing that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Fixed, for machines: `NoNetAdmin`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, one line.
    pub message: String,
    /// What to do about it, one line.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (remedy: {})", self.code, self.message, self.remedy)
    }
}

/// Checks capabilities, programs, kernel features and sysctls, in the caller's network namespace. Empty is all well. Blocking;
/// runs `nft`, once when nothing is missing. With `bridged` workloads, `net.bridge.bridge-nf-call-*` are put right where the
/// configuration allows it. What [`DataplaneConfig::absent`] names counts as missing.
pub fn preflight(config: &DataplaneConfig, bridged: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(capability());
    findings.extend(features(config));
    if bridged {
        findings.extend(bridge_sysctls(Path::new("/proc/sys/net/bridge"), config.set_bridge_sysctls));
    }
    findings
}

/// The features that findings say are missing: what is to be taken for absent from here on.
pub fn absent(findings: &[Finding]) -> BTreeSet<Feature> {
    Feature::ALL.into_iter().filter(|feature| findings.iter().any(|finding| finding.code == feature.code())).collect()
}

fn capability() -> Option<Finding> {
    let missing = match rustix::thread::capabilities(None) {
        Ok(held) if held.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN) => return None,
        Ok(_) => "CAP_NET_ADMIN is missing".to_owned(),
        Err(error) => format!("capabilities cannot be read: {error}"),
    };
    Some(Finding {
        code: "NoNetAdmin",
        severity: Severity::Fatal,
        message: format!("{missing}; the kernel lets nobody change nftables without it"),
        remedy: "run the agent as root, or with AmbientCapabilities=CAP_NET_ADMIN in its systemd unit".to_owned(),
    })
}

fn missing(feature: Feature, reason: &str) -> Finding {
    Finding {
        code: feature.code(),
        severity: feature.severity(),
        message: format!("{} ({reason})", feature.without()),
        remedy: feature.remedy().to_owned(),
    }
}

/// Tries every feature. Without nf_tables there is nothing to try the others with.
fn features(config: &DataplaneConfig) -> Vec<Finding> {
    let tried = |feature: Feature, probe: &mut dyn FnMut() -> Result<(), String>| {
        let told = config.absent.contains(&feature);
        let outcome = if told { Err("--without-feature says so".to_owned()) } else { probe() };
        outcome.err().map(|reason| missing(feature, &reason))
    };
    let mut socket = NetfilterSocket::open().map_err(|error| error.to_string());
    let mut findings = Vec::new();
    findings.extend(tried(Feature::NfTables, &mut || answers(socket.as_mut().map_err(|error| error.clone())?)));
    if findings.is_empty() {
        findings.extend(tried(Feature::TableOwner, &mut || ownership(socket.as_mut().map_err(|error| error.clone())?)));
        findings.extend(rules(config));
    }
    findings.extend(tried(Feature::TargetNamespace, &mut probe::target_namespace));
    findings.extend(tried(Feature::AllNamespaces, &mut probe::all_namespaces));
    findings.extend(tried(Feature::SeccompFilter, &mut confine::probe_filter));
    findings
}

fn answers(socket: &mut NetfilterSocket) -> Result<(), String> {
    socket.get(Message::GetGeneration, None, |_| {}, |_| ()).map_err(|error| error.to_string())
}

fn ownership(socket: &mut NetfilterSocket) -> Result<(), String> {
    let tried = socket.try_messages(|writer, sequence| {
        *sequence = sequence.wrapping_add(1);
        let open = writer.begin(Message::NewTable, CREATE, *sequence, Layer::Inet);
        writer.text(table::NAME, PROBE);
        writer.number(table::FLAGS, table::FLAG_OWNER | table::FLAG_PERSIST);
        writer.end(open);
    });
    tried.map_err(|error| error.to_string())?.map_err(|refusal| refusal.to_string())
}

/// The table's name in trials; it never comes to be.
const PROBE: &str = "firebreak_probe";

/// What is tried as rules in nft's words: feature, family, the table's body.
const RULES: [(Feature, &str, &str); 10] = [
    (Feature::InetFamily, "inet", "chain c { type filter hook forward priority -10; policy accept;\n}"),
    (Feature::Conntrack, "inet", "chain c { type filter hook forward priority -10; policy accept; ct state established accept\n}"),
    (Feature::ConntrackLabels, "inet", "chain c { type filter hook forward priority -10; policy accept; ct label 127 drop\n}"),
    (Feature::ConcatenatedRanges, "inet", "set s { type ipv6_addr . ipv6_addr . inet_proto . inet_service; flags interval;\n}"),
    (
        Feature::DynamicSets,
        "inet",
        "set s { type ipv4_addr; size 16; flags dynamic,timeout; timeout 1m; counter;\n}\n\
         chain c { type filter hook forward priority -10; policy accept; update @s { ip saddr }\n}",
    ),
    (
        Feature::PacketLog,
        "inet",
        "chain c { type filter hook forward priority -10; policy accept; limit rate 5/second log prefix \"p\" group 5 snaplen 128\n}",
    ),
    (
        Feature::Reject,
        "inet",
        "chain c { type filter hook forward priority -10; policy accept; meta l4proto tcp reject with tcp reset\n\
         reject with icmpx type admin-prohibited\n}",
    ),
    // Every network namespace has its lo.
    (
        Feature::NetdevIngress,
        "netdev",
        "chain c { type filter hook ingress device \"lo\" priority 0; policy accept; iifname \"p*\" drop\n}",
    ),
    (Feature::BridgeFamily, "bridge", "chain c { type filter hook prerouting priority -310; policy accept; meta iifname \"p*\" drop\n}"),
    (Feature::ArpFamily, "arp", "chain c { type filter hook input priority -310; policy accept; meta iifname \"p*\" drop\n}"),
];

/// All rules in one run of `nft`; only when that fails one run for each, to find what is missing.
fn rules(config: &DataplaneConfig) -> Vec<Finding> {
    let table = |(number, (_, family, body)): (usize, &(Feature, &str, &str))| format!("table {family} {PROBE}{number} {{\n{body}\n}}\n");
    let present = RULES.iter().enumerate().filter(|(_, (feature, ..))| !config.absent.contains(feature));
    let all_there = nft::check(&config.nft, &present.map(table).collect::<String>());
    let mut findings = Vec::new();
    for rule in RULES.iter().enumerate() {
        let feature = rule.1.0;
        if config.absent.contains(&feature) {
            findings.push(missing(feature, "--without-feature says so"));
            continue;
        }
        if all_there.is_ok() {
            continue;
        }
        match nft::check(&config.nft, &table(rule)) {
            Ok(()) => {}
            Err(NftRefusal::Missing(error)) => {
                return vec![Finding {
                    code: "NoNft",
                    severity: Severity::Fatal,
                    message: format!("the program {} cannot be run: {error}; it installs the fixed rules", config.nft.program().display()),
                    remedy: "apt-get install nftables (1.0.6 or later), or say where it is".to_owned(),
                }];
            }
            Err(NftRefusal::Failed(complaint)) => findings.push(missing(feature, &complaint)),
        }
    }
    findings
}

/// Bridged packets meet the inet hooks only through br_netfilter, and only where these are 1.
fn bridge_sysctls(folder: &Path, may_set: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, family) in [("bridge-nf-call-iptables", "IPv4"), ("bridge-nf-call-ip6tables", "IPv6")] {
        let path = folder.join(name);
        let value = match fs::read_to_string(&path) {
            Ok(value) => value,
            Err(error) => {
                findings.push(Finding {
                    code: "NoBridgeNetfilter",
                    severity: Severity::Warning,
                    message: format!("{}: {error}: {family} between workloads on one bridge is NOT enforced", path.display()),
                    remedy: "modprobe br_netfilter, and name it in /etc/modules-load.d/".to_owned(),
                });
                continue;
            }
        };
        if value.trim() == "1" {
            continue;
        }
        let kept_off = if may_set {
            match fs::write(&path, "1\n") {
                Ok(()) => {
                    findings.push(Finding {
                        code: "BridgeNetfilterPutRight",
                        severity: Severity::Notice,
                        message: format!(
                            "net.bridge.{name} was {}: set to 1, so that {family} between workloads on one bridge is judged",
                            value.trim()
                        ),
                        remedy: format!("net.bridge.{name} = 1 in /etc/sysctl.d/, so that it is right before the agent starts"),
                    });
                    continue;
                }
                Err(error) => format!("and cannot be set: {error}"),
            }
        } else {
            "and may not be set by configuration".to_owned()
        };
        findings.push(Finding {
            code: "BridgeNetfilterOff",
            severity: Severity::Warning,
            message: format!("net.bridge.{name} is {} {kept_off}: {family} between workloads on one bridge is NOT enforced", value.trim()),
            remedy: format!("sysctl -w net.bridge.{name}=1"),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bridge_sysctls_are_put_right_only_where_that_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"];
        let codes = |findings: Vec<Finding>| findings.into_iter().map(|finding| finding.code).collect::<Vec<_>>();
        assert_eq!(codes(bridge_sysctls(folder.path(), true)), ["NoBridgeNetfilter"; 2]);
        for name in names {
            fs::write(folder.path().join(name), "0\n").unwrap();
        }
        let off = bridge_sysctls(folder.path(), false);
        assert!(off.iter().all(|finding| finding.message.contains("NOT enforced") && finding.severity == Severity::Warning));
        assert_eq!(codes(off), ["BridgeNetfilterOff"; 2]);
        assert_eq!(codes(bridge_sysctls(folder.path(), true)), ["BridgeNetfilterPutRight"; 2]);
        assert_eq!(codes(bridge_sysctls(folder.path(), false)), [""; 0]);
    }
}
