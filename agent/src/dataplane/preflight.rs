//! What has to be there before there can be enforcement: each thing is tried, none is guessed from a version. Nothing is left
//! behind: the kernel takes each trial transaction apart again.

use super::config::DataplaneConfig;
use super::names::Layer;
use super::nft::{self, NftRefusal};
use super::socket::NetfilterSocket;
use super::wire::{CREATE, Message, table};
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
/// runs `nft`. With `bridged` workloads, `net.bridge.bridge-nf-call-*` are put right where the configuration allows it.
pub fn preflight(config: &DataplaneConfig, bridged: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(capability());
    match netlink() {
        Err(finding) => findings.push(finding),
        Ok(mut socket) => {
            findings.extend(ownership(&mut socket));
            findings.extend(features(config));
        }
    }
    if bridged {
        findings.extend(bridge_sysctls(Path::new("/proc/sys/net/bridge"), config.set_bridge_sysctls));
    }
    findings
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

fn netlink() -> Result<NetfilterSocket, Finding> {
    let finding = |error: String| Finding {
        code: "NoNfTables",
        severity: Severity::Fatal,
        message: format!("the kernel does not answer on nf_tables netlink: {error}"),
        remedy: "modprobe nf_tables, or run a kernel built with CONFIG_NF_TABLES".to_owned(),
    };
    let mut socket = NetfilterSocket::open().map_err(|error| finding(error.to_string()))?;
    match socket.get(Message::GetGeneration, None, |_| {}, |_| ()) {
        Ok(()) => Ok(socket),
        Err(error) => Err(finding(error.to_string())),
    }
}

fn ownership(socket: &mut NetfilterSocket) -> Option<Finding> {
    let tried = socket.try_messages(|writer, sequence| {
        *sequence = sequence.wrapping_add(1);
        let open = writer.begin(Message::NewTable, CREATE, *sequence, Layer::Inet);
        writer.text(table::NAME, PROBE);
        writer.number(table::FLAGS, table::FLAG_OWNER | table::FLAG_PERSIST);
        writer.end(open);
    });
    let reason = match tried {
        Ok(Ok(())) => return None,
        Ok(Err(refusal)) => refusal.to_string(),
        Err(error) => error.to_string(),
    };
    Some(Finding {
        code: "NoTableOwner",
        severity: Severity::Notice,
        message: format!("the kernel cannot keep other processes off our tables (owner and persist flags: {reason})"),
        remedy: "kernel 6.9 or later; until then keep `nft flush ruleset` out of other programs' configuration".to_owned(),
    })
}

/// The table's name in trials; it never comes to be.
const PROBE: &str = "firebreak_probe";

struct Feature {
    code: &'static str,
    severity: Severity,
    family: &'static str,
    body: &'static str,
    what: &'static str,
    remedy: &'static str,
}

const FEATURES: [Feature; 7] = [
    Feature {
        code: "NoInetFamily",
        severity: Severity::Fatal,
        family: "inet",
        body: "chain c { type filter hook forward priority -10; policy accept;\n}",
        what: "the inet family",
        remedy: "modprobe nf_tables_inet, or a kernel built with CONFIG_NF_TABLES_INET",
    },
    Feature {
        code: "NoConntrack",
        severity: Severity::Fatal,
        family: "inet",
        body: "chain c { type filter hook forward priority -10; policy accept; ct state established accept\n}",
        what: "connection tracking in rules (ct)",
        remedy: "modprobe nf_conntrack nft_ct, or a kernel built with CONFIG_NFT_CT",
    },
    Feature {
        code: "NoConcatenatedRanges",
        severity: Severity::Fatal,
        family: "inet",
        body: "set s { type ipv6_addr . ipv6_addr . inet_proto . inet_service; flags interval;\n}",
        what: "sets of concatenated ranges",
        remedy: "kernel 5.6 or later and nft 0.9.4 or later",
    },
    Feature {
        code: "NoDynamicSets",
        severity: Severity::Fatal,
        family: "inet",
        body: "set s { type ipv4_addr; size 16; flags dynamic,timeout; timeout 1m; counter;\n}\n\
               chain c { type filter hook forward priority -10; policy accept; update @s { ip saddr }\n}",
        what: "sets that rules fill, with counters",
        remedy: "kernel 5.7 or later and nft 0.9.5 or later",
    },
    Feature {
        code: "NoPacketLog",
        severity: Severity::Fatal,
        family: "inet",
        body: "chain c { type filter hook forward priority -10; policy accept; log prefix \"p\" group 5 snaplen 128\n}",
        what: "logging to NFLOG",
        remedy: "modprobe nfnetlink_log nft_log, or a kernel built with CONFIG_NETFILTER_NETLINK_LOG",
    },
    Feature {
        code: "NoBridgeFamily",
        severity: Severity::Warning,
        family: "bridge",
        body: "chain c { type filter hook prerouting priority -310; policy accept; meta iifname \"p*\" drop\n}",
        what: "the bridge family: unknown interfaces on bridges stay open",
        remedy: "modprobe nf_tables_bridge, or a kernel built with CONFIG_NF_TABLES_BRIDGE",
    },
    Feature {
        code: "NoArpFamily",
        severity: Severity::Warning,
        family: "arp",
        body: "chain c { type filter hook input priority -310; policy accept; meta iifname \"p*\" drop\n}",
        what: "the arp family: unknown interfaces can speak ARP",
        remedy: "a kernel built with CONFIG_NF_TABLES_ARP",
    },
];

fn features(config: &DataplaneConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    for feature in FEATURES {
        let ruleset = format!("table {} {PROBE} {{\n{}\n}}\n", feature.family, feature.body);
        match nft::check(&config.nft, &ruleset) {
            Ok(()) => {}
            Err(NftRefusal::Missing(error)) => {
                return vec![Finding {
                    code: "NoNft",
                    severity: Severity::Fatal,
                    message: format!("the program {} cannot be run: {error}; it installs the fixed rules", config.nft.program().display()),
                    remedy: "apt-get install nftables (1.0.6 or later), or say where it is".to_owned(),
                }];
            }
            Err(NftRefusal::Failed(complaint)) => findings.push(Finding {
                code: feature.code,
                severity: feature.severity,
                message: format!("missing: {} ({complaint})", feature.what),
                remedy: feature.remedy.to_owned(),
            }),
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
