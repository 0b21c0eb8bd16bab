//! Names and ids, each with a type of its own: two strings in a row are a bug in waiting.

use crate::id_text::IdText;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        name!($(#[$doc])* $name, Arc<str>);
    };
    ($(#[$doc:meta])* $name:ident, $text:ty) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($text);

        impl $name {
            /// Takes the text as it is; validation belongs to the edge that the text came in through.
            pub fn new(text: impl AsRef<str>) -> Self {
                Self(<$text>::from(text.as_ref()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The text, in memory that all copies share.
            pub fn shared(&self) -> &$text {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(<$text>::from(text))
            }
        }
    };
}

name!(
    /// The name of a node, as its agent presents it and as `Node` objects and `spec.nodeName` use it.
    NodeName
);
name!(
    /// A namespace: the scope of policies and of the workloads' names.
    NamespaceName
);
name!(
    /// A routing domain, see [`NetworkName::default_network`].
    NetworkName
);
name!(
    /// The name of an `AddressGroup`; address groups are cluster-scoped.
    GroupName
);
name!(
    /// What tells one workload from the others of its node: the container id, or the manifest's `namespace.name`.
    ContainerId,
    IdText
);
name!(
    /// The name of a host-side network interface (at most 15 bytes, `IFNAMSIZ - 1` of the kernel).
    InterfaceName
);

impl NetworkName {
    /// The network in which every node reaches every address; DESIGN calls it `default`.
    pub fn default_network() -> Self {
        Self::new("default")
    }

    /// The network of a bridge that hides its containers behind masquerading: `<node>/<bridge>`.
    pub fn hidden(node: &NodeName, bridge: &str) -> Self {
        Self::from(format!("{node}/{bridge}"))
    }

    /// Whether this is the network that all nodes share.
    pub fn is_default(&self) -> bool {
        self.as_str() == "default"
    }

    /// The node that owns a hidden network; `None` for the default network, which nobody owns.
    pub fn owner(&self) -> Option<NodeName> {
        self.as_str().split_once('/').map(|(node, _)| NodeName::new(node))
    }

    /// Whether an address of this network means the same thing on `node`: the default network does everywhere,
    /// a hidden one only on the node that owns it.
    pub fn reaches(&self, node: &NodeName) -> bool {
        match self.as_str().split_once('/') {
            None => true,
            Some((owner, _)) => owner == node.as_str(),
        }
    }
}

/// A workload's id: its node and what tells it from the others there. Its name is for people and may repeat.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WorkloadId {
    /// The node that runs it.
    pub node: NodeName,
    /// Unique on that node for as long as the workload lives.
    pub container: ContainerId,
}

impl WorkloadId {
    /// An id of its two parts.
    pub fn new(node: impl Into<NodeName>, container: impl Into<ContainerId>) -> Self {
        Self { node: node.into(), container: container.into() }
    }
}

impl Ord for WorkloadId {
    /// By node, then by container. Mostly the node is the same memory, and then its name is not looked at.
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        let nodes = match Arc::ptr_eq(self.node.shared(), other.node.shared()) {
            true => Ordering::Equal,
            false => self.node.cmp(&other.node),
        };
        nodes.then_with(|| self.container.cmp(&other.container))
    }
}

impl PartialOrd for WorkloadId {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.container)
    }
}

impl fmt::Debug for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(
    /// The store's number of a change that people or agents made; 0 is the empty store.
    Revision
);
number!(
    /// The number of a compiled state sent to one node, within an epoch; 0 means that none was sent yet.
    Generation
);
