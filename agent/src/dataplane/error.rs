//! What can go wrong between the agent and the kernel. Each says what was tried, on what, and why it failed.

use super::names::Layer;
use firebreak_policy::kernel_sets::{Chain, GroupSet};
use nix::errno::Errno;
use std::io;
use std::net::IpAddr;

/// Why the dataplane could not be opened. Nothing was left half done: the kernel holds what it held before, or our whole tables.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No netlink socket, or it broke.
    #[error("nfnetlink socket: {0}")]
    Socket(#[source] io::Error),
    /// `nft` could not be run, or refused the fixed rules.
    #[error("installing the fixed rules with nft: {0}")]
    Nft(String),
    /// The kernel refused a step.
    #[error("{act} table {layer} firebreak: {source}")]
    Kernel {
        /// What was tried.
        act: &'static str,
        /// On which table.
        layer: Layer,
        /// The kernel's answer.
        source: Refusal,
    },
    /// Another process holds the table.
    #[error("table {layer} firebreak is owned by another process: is a second agent running in this network namespace?")]
    OwnedByAnother {
        /// Which table.
        layer: Layer,
    },
    /// A table has our name and nothing in it says that we made it.
    #[error(
        "table {layer} firebreak was not made by an agent; it was left as it is. To make room: firebreak-agent uninstall, or rename it"
    )]
    NotOurs {
        /// Which table.
        layer: Layer,
    },
    /// What the kernel holds could not be read.
    #[error(transparent)]
    ReadBack(#[from] ReadBackError),
}

/// Why the kernel's contents could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadBackError {
    /// The socket broke.
    #[error("reading back: nfnetlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused to list a set.
    #[error("reading back {set}: {source}")]
    Refused {
        /// Which set.
        set: String,
        /// The kernel's answer.
        source: Refusal,
    },
    /// An element is not one that we write.
    #[error("reading back {set}: {reason}")]
    Foreign {
        /// Which set.
        set: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody changed the ruleset again and again while it was read.
    #[error("reading back {set}: the ruleset changed during each of {attempts} attempts")]
    Busy {
        /// Which set.
        set: String,
        /// How often it was tried.
        attempts: u32,
    },
}

/// Why a commit was not made. The old contents are in force, whole, but for [`CommitError::Unknown`].
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// An element does not fit its set; nothing was sent.
    #[error("{set}: element {element} does not fit: {reason}")]
    Misfit {
        /// Which set.
        set: String,
        /// Which element.
        element: String,
        /// Why.
        reason: String,
    },
    /// The kernel refused an element; the whole generation was refused with it.
    #[error("{set}: {act} {element}: {source}")]
    Refused {
        /// Which set.
        set: String,
        /// `adding` or `removing`.
        act: &'static str,
        /// Which element, as far as the kernel says.
        element: String,
        /// The kernel's answer.
        source: Refusal,
        /// How many other elements were refused beside it.
        others: usize,
        /// Whose it is, where that can be told.
        culprit: Option<Box<Culprit>>,
    },
    /// The kernel refused the transaction as such.
    #[error("kernel transaction of {bytes} bytes: {source}")]
    Transaction {
        /// Its size.
        bytes: usize,
        /// The kernel's answer.
        source: Refusal,
    },
    /// It cannot be sent in one piece, and a generation is never split.
    #[error("a transaction of {bytes} bytes does not fit into the socket's send buffer of {limit} bytes")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest that can be sent.
        limit: usize,
    },
    /// The socket broke before anything was sent.
    #[error("nfnetlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel's answer was lost, and what it holds could not be read either. The next commit reads first.
    #[error("the kernel's answer was lost ({0}); what it holds will be read again before the next change")]
    Unknown(String),
    /// The tables of another version stay in force: they could not be replaced.
    #[error("the tables of another version stay in force; they could not be replaced: {0}")]
    Upgrade(String),
    /// Our table is gone or was changed, and could not be put back.
    #[error("our table was changed by somebody else and could not be put back: {0}")]
    Repair(String),
}

/// What a refused element or object is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// The set of a group.
    Group(GroupSet),
    /// The chain of a segment.
    Chain(Chain),
    /// What is said about a local address.
    Local(IpAddr),
}

/// The kernel's refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{errno}{}", message.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The text of the extended acknowledgement, where the kernel gave one.
    pub message: Option<String>,
}

/// Why `uninstall` could not remove everything; what is not named was removed.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// No netlink socket, or it broke.
    #[error("nfnetlink socket: {0}")]
    Socket(#[source] io::Error),
    /// Some tables stayed.
    #[error("not removed: {}", failures.join("; "))]
    Tables {
        /// One line per table.
        failures: Vec<String>,
        /// What was removed all the same.
        removed: Vec<String>,
    },
}

/// Why a node does not observe, or goes on observing.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// There is nothing that could be opened.
    #[error("this node has no tables of this version of the agent: nothing is denied by it, or its agent has to be started once")]
    NoTable,
    /// The table cannot be had.
    #[error("{0}")]
    Table(String),
    /// The kernel refused.
    #[error("the kernel refused: {source}")]
    Kernel {
        /// Its answer.
        source: Refusal,
    },
    /// No netlink socket, or it broke.
    #[error("nfnetlink socket: {0}")]
    Socket(#[source] io::Error),
}
