//! The words of Firebreak as types: names, labels, workloads, networks, policies, flows.

pub mod flow;
pub mod id;
pub mod inventory;
pub mod label;
pub mod policy;

pub use flow::{Endpoint, Flow, Transport};
pub use id::{ContainerId, Generation, GroupName, InterfaceName, NamespaceName, NetworkName, NodeName, Revision, WorkloadId};
pub use inventory::{Inventory, NamedPort, Namespace, NetworkAddress, Node, PublishedPort, Workload, WorkloadSource};
pub use label::{LabelSelector, Labels, Operator, Requirement, SelectorError};
pub use policy::{
    Action, AddressGroup, Answer, CidrBlock, Direction, Entity, Family, HostAccess, Mode, NamespaceScope, Peer, Peers, Policy, PolicyKey,
    PolicyKind, PolicySet, PortRange, Protocol, Rule, Service, Services, Subject, Tier, TieredPolicy, TieredRule,
};
