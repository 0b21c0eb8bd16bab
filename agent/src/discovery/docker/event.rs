//! What the watcher tells, one JSON object per line.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// No line is longer; a longer one ends the watcher.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// The list of all running containers begins.
    FullSyncBegin,
    /// The list is complete: what it did not name is not running.
    FullSyncEnd,
    /// A container runs, or something about it has changed.
    Running {
        /// The container.
        container: Box<Container>,
    },
    /// A container has ended.
    Stopped {
        /// Its full id.
        id: String,
    },
    /// The engine cannot be asked at the moment.
    Trouble {
        /// Why, for people.
        reason: String,
    },
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Its full id.
    pub id: String,
    /// Its name, without the slash.
    pub name: String,
    /// The process whose network namespace is the container's.
    pub pid: u32,
    /// Labels given to the container.
    pub labels: BTreeMap<String, String>,
    /// Labels that it has from its image.
    pub image_labels: BTreeMap<String, String>,
    /// Its image as it was asked for; empty when the engine does not say.
    pub image: String,
    /// What network it is in.
    pub network: Network,
    /// The bridges that it is on.
    pub bridges: Vec<Bridge>,
    /// What the engine gave it in each network.
    pub given: Vec<Given>,
    /// Ports of the node that lead to it.
    pub ports: Vec<Port>,
}

/// What the engine gave a container in one of its networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Its MAC address there; `None` when the engine does not say.
    pub mac: Option<[u8; 6]>,
    /// Its addresses there.
    pub addresses: Vec<IpAddr>,
}

/// What network a container is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Network {
    /// A namespace of its own.
    Own,
    /// The node's.
    Host,
    /// A namespace of its own with nothing in it.
    None,
    /// The one of another container.
    Container {
        /// Its id or name.
        of: String,
    },
}

/// A bridge of the node that a container is on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// The interface's name.
    pub name: String,
    /// Whether addresses behind it mean something on this node only.
    pub hidden: bool,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// IP protocol number.
    pub protocol: u8,
    /// The address that it is bound to; `None` is all.
    pub host_address: Option<IpAddr>,
    /// The port on the node.
    pub host_port: u16,
    /// The port of the container.
    pub container_port: u16,
}
