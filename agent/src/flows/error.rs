//! Errors at the edge of this module.

use std::io;
use std::path::PathBuf;

/// Why denied flows cannot be collected, or one step of it did not work.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// A netlink socket could not be made or set up.
    #[error("{act} on an nfnetlink socket")]
    Socket {
        /// What was tried.
        act: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Another process reads the NFLOG group, or the kernel lacks nfnetlink_log.
    #[error("bind NFLOG group {group}")]
    Bind {
        /// The group.
        group: u16,
        /// The kernel's answer: EPERM or EBUSY is another reader, EINVAL or EOPNOTSUPP a kernel without nfnetlink_log.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to read a part of the table.
    #[error("read {what} of table inet {table}")]
    Read {
        /// Set, counter or table.
        what: String,
        /// The table.
        table: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel sent something that nfnetlink does not allow.
    #[error("decode {what}: {reason}")]
    Decode {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A state file could not be read or written.
    #[error("{act} {}", path.display())]
    State {
        /// What was tried.
        act: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started, or ended in a panic.
    #[error("{0} ended unexpectedly")]
    Task(&'static str),
}
