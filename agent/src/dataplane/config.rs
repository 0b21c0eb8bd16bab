//! What the dataplane is told once, at start.

use super::feature::Feature;
use super::nft::Nft;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// Settings of the kernel side. The agent's configuration makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataplaneConfig {
    /// Which interfaces are workload interfaces: one that matches and was not made known is denied.
    pub interface_patterns: Vec<InterfacePattern>,
    /// The NFLOG group that the first packet of a denied flow goes to.
    pub nflog_group: u16,
    /// How long the kernel keeps a denied flow after its first packet; at least 4 times the interval at which the sets are read.
    pub denied_timeout: Duration,
    /// How many denied flows each of the sets holds.
    pub denied_size: u32,
    /// So many denied packets a second in one direction are a flood: the known ones of them are then dropped before anything else is done with them.
    pub flood_rate: u64,
    /// For how long after a first install TCP connections that are older may be picked up in the middle.
    pub midstream_grace: Duration,
    /// The bit of the conntrack label that says that a connection was cut, 0 to 127. Labels are also used by Open vSwitch, in zones of its own.
    pub cut_label: u8,
    /// Whether `net.bridge.bridge-nf-call-*` may be put right.
    pub set_bridge_sysctls: bool,
    /// How `nft` is run: for the fixed rules and the preflight, never for a commit and never at `uninstall`.
    pub nft: Nft,
    /// What this kernel is taken to lack: what the preflight found, and what `--without-feature` says. Where there is a fallback it
    /// is taken.
    pub absent: BTreeSet<Feature>,
}

impl DataplaneConfig {
    /// The NFLOG group that the first of a guard's refused frames goes to: the next one, so that neither flood drowns the other's events.
    pub fn guard_nflog_group(&self) -> u16 {
        self.nflog_group.wrapping_add(1)
    }
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            interface_patterns: Vec::new(),
            nflog_group: 5,
            denied_timeout: Duration::from_secs(300),
            denied_size: 65_536,
            flood_rate: 10_000,
            midstream_grace: Duration::from_secs(120),
            cut_label: 127,
            set_bridge_sysctls: true,
            nft: "nft".into(),
            absent: BTreeSet::new(),
        }
    }
}

/// An interface name, or the beginning of one followed by `*`. Short enough for the kernel, free of what nft reads specially.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfacePattern(String);

/// Why a text is no interface pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interface pattern {text:?}: {reason}")]
pub struct PatternError {
    text: String,
    reason: &'static str,
}

impl InterfacePattern {
    /// Takes `veth*`, `cali*` or a whole name. `*` alone is refused: it would deny the node's own interfaces.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let refuse = |reason| Err(PatternError { text: text.to_owned(), reason });
        let stem = text.strip_suffix('*').unwrap_or(text);
        if stem.is_empty() {
            return refuse("must begin with at least one character of a name");
        }
        // IFNAMSIZ is 16 with the closing zero; a prefix of 15 can still be matched by nothing but itself.
        if stem.len() > 15 {
            return refuse("longer than the 15 bytes of an interface name");
        }
        if !stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'@')) {
            return refuse("only letters, digits, '_', '-', '.', '@' and one '*' at the end");
        }
        Ok(Self(text.to_owned()))
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an interface name matches.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == self.0,
        }
    }
}

impl fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::str::FromStr for InterfacePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_the_beginning_of_one() {
        for (text, name, expected) in [
            ("veth*", "veth12ab", true),
            ("veth*", "eth0", false),
            ("veth*", "veth", true),
            ("tap0", "tap0", true),
            ("tap0", "tap01", false),
        ] {
            assert_eq!(InterfacePattern::new(text).unwrap().matches(name), expected, "{text} {name}");
        }
        for text in ["", "*", "a*b", "veth**", "sixteen-letters1", "ve th*", "veth\"*", "eth0/x", "é*"] {
            assert!(InterfacePattern::new(text).is_err(), "{text:?} was taken");
        }
    }
}
