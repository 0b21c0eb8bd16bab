//! What can go wrong between the agent and conntrack.

use std::io;

/// Why conntrack could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The socket broke.
    #[error("conntrack: cannot {act} a netlink socket: {source}")]
    Socket {
        /// What was tried.
        act: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused to list entries.
    #[error("conntrack: listing entries: {0}")]
    Refused(#[source] io::Error),
    /// The kernel's answer could not be read.
    #[error("conntrack: answer of the kernel: {0}")]
    Malformed(&'static str),
    /// The rules could not be made to ask for the label, so none was set, or to forget what was cut.
    #[error("conntrack: the rules about cut connections: {0}")]
    Rules(String),
}
