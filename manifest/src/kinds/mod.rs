//! The kinds of objects, one file each, and the one type that holds any of them.

pub(crate) mod address_group;
pub(crate) mod admin;
pub(crate) mod cluster;
pub(crate) mod cluster_segment_policy;
pub(crate) mod label_rule;
pub(crate) mod meta;
pub(crate) mod network_policy;
pub(crate) mod pod;
pub(crate) mod segment_policy;
pub(crate) mod selector;
pub(crate) mod value;
pub(crate) mod workload;

use crate::decode::Strictness;
use crate::error::Errors;
use crate::load;
use address_group::AddressGroup;
use label_rule::LabelRule;
use admin::{AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy};
use cluster::{Namespace, Node};
use cluster_segment_policy::ClusterSegmentPolicy;
use firebreak_policy::model::Labels;
use meta::ObjectMeta;
use network_policy::NetworkPolicy;
use pod::Pod;
use segment_policy::SegmentPolicy;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::fmt;
use workload::Workload;

/// `apiVersion` of our own kinds.
pub(crate) const FIREBREAK: &str = "firebreak.dev/v1alpha1";

/// A kind of object that Firebreak knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `firebreak.dev/v1alpha1` LabelRule.
    LabelRule,
    /// `firebreak.dev/v1alpha1` AddressGroup.
    AddressGroup,
    /// `v1` Pod.
    Pod,
    /// `firebreak.dev/v1alpha1` Workload.
    Workload,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `firebreak.dev/v1alpha1` SegmentPolicy.
    SegmentPolicy,
    /// `firebreak.dev/v1alpha1` ClusterSegmentPolicy.
    ClusterSegmentPolicy,
    /// `policy.networking.k8s.io/v1alpha1` AdminNetworkPolicy.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1` BaselineAdminNetworkPolicy.
    BaselineAdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
}

impl Kind {
    /// Every kind, referents before what refers to them.
    pub const ALL: [Self; 12] = [
        Self::Namespace,
        Self::Node,
        Self::LabelRule,
        Self::AddressGroup,
        Self::Pod,
        Self::Workload,
        Self::NetworkPolicy,
        Self::SegmentPolicy,
        Self::ClusterSegmentPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];

    /// The kind as it is written: `SegmentPolicy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::LabelRule => "LabelRule",
            Self::AddressGroup => "AddressGroup",
            Self::Pod => "Pod",
            Self::Workload => "Workload",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::SegmentPolicy => "SegmentPolicy",
            Self::ClusterSegmentPolicy => "ClusterSegmentPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// The API group and version as they are written: `networking.k8s.io/v1`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod => "v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::LabelRule | Self::AddressGroup | Self::Workload | Self::SegmentPolicy | Self::ClusterSegmentPolicy => FIREBREAK,
            Self::AdminNetworkPolicy | Self::BaselineAdminNetworkPolicy => "policy.networking.k8s.io/v1alpha1",
            Self::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
        }
    }

    /// Whether its objects live in a namespace; the others are cluster-scoped.
    pub fn is_namespaced(self) -> bool {
        match self {
            Self::Namespace
            | Self::Node
            | Self::LabelRule
            | Self::AddressGroup
            | Self::ClusterSegmentPolicy
            | Self::AdminNetworkPolicy
            | Self::BaselineAdminNetworkPolicy
            | Self::ClusterNetworkPolicy => false,
            Self::Pod | Self::Workload | Self::NetworkPolicy | Self::SegmentPolicy => true,
        }
    }

    /// The kind of this exact name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    pub(crate) fn strictness(self) -> Strictness {
        match self {
            Self::Namespace | Self::Node | Self::Pod => Strictness::Modelled,
            Self::NetworkPolicy | Self::AdminNetworkPolicy | Self::BaselineAdminNetworkPolicy | Self::ClusterNetworkPolicy => {
                Strictness::Strict
            }
            Self::LabelRule | Self::AddressGroup | Self::Workload | Self::SegmentPolicy | Self::ClusterSegmentPolicy => Strictness::Ours,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What identifies an object. Prints as `SegmentPolicy shop/db`, `AddressGroup partners`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace; `None` for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        match namespace {
            Some(namespace) => write!(f, "{kind} {namespace}/{name}"),
            None => write!(f, "{kind} {name}"),
        }
    }
}

/// One object of any kind. What this module makes is valid: it converts to the model whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// `v1` Namespace.
    Namespace(Namespace),
    /// `v1` Node.
    Node(Node),
    /// `firebreak.dev/v1alpha1` LabelRule.
    LabelRule(LabelRule),
    /// `firebreak.dev/v1alpha1` AddressGroup.
    AddressGroup(AddressGroup),
    /// `v1` Pod.
    Pod(Pod),
    /// `firebreak.dev/v1alpha1` Workload.
    Workload(Workload),
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy(NetworkPolicy),
    /// `firebreak.dev/v1alpha1` SegmentPolicy.
    SegmentPolicy(SegmentPolicy),
    /// `firebreak.dev/v1alpha1` ClusterSegmentPolicy.
    ClusterSegmentPolicy(ClusterSegmentPolicy),
    /// `policy.networking.k8s.io/v1alpha1` AdminNetworkPolicy.
    AdminNetworkPolicy(AdminNetworkPolicy),
    /// `policy.networking.k8s.io/v1alpha1` BaselineAdminNetworkPolicy.
    BaselineAdminNetworkPolicy(BaselineAdminNetworkPolicy),
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy(ClusterNetworkPolicy),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::LabelRule(_) => Kind::LabelRule,
            Self::AddressGroup(_) => Kind::AddressGroup,
            Self::Pod(_) => Kind::Pod,
            Self::Workload(_) => Kind::Workload,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
            Self::SegmentPolicy(_) => Kind::SegmentPolicy,
            Self::ClusterSegmentPolicy(_) => Kind::ClusterSegmentPolicy,
            Self::AdminNetworkPolicy(_) => Kind::AdminNetworkPolicy,
            Self::BaselineAdminNetworkPolicy(_) => Kind::BaselineAdminNetworkPolicy,
            Self::ClusterNetworkPolicy(_) => Kind::ClusterNetworkPolicy,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Namespace(Namespace { metadata })
            | Self::Node(Node { metadata, .. })
            | Self::LabelRule(LabelRule { metadata, .. })
            | Self::AddressGroup(AddressGroup { metadata, .. })
            | Self::Pod(Pod { metadata, .. })
            | Self::Workload(Workload { metadata, .. })
            | Self::NetworkPolicy(NetworkPolicy { metadata, .. })
            | Self::SegmentPolicy(SegmentPolicy { metadata, .. })
            | Self::ClusterSegmentPolicy(ClusterSegmentPolicy { metadata, .. })
            | Self::AdminNetworkPolicy(AdminNetworkPolicy { metadata, .. })
            | Self::BaselineAdminNetworkPolicy(BaselineAdminNetworkPolicy { metadata, .. })
            | Self::ClusterNetworkPolicy(ClusterNetworkPolicy { metadata, .. }) => metadata,
        }
    }

    pub(crate) fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Namespace(Namespace { metadata })
            | Self::Node(Node { metadata, .. })
            | Self::LabelRule(LabelRule { metadata, .. })
            | Self::AddressGroup(AddressGroup { metadata, .. })
            | Self::Pod(Pod { metadata, .. })
            | Self::Workload(Workload { metadata, .. })
            | Self::NetworkPolicy(NetworkPolicy { metadata, .. })
            | Self::SegmentPolicy(SegmentPolicy { metadata, .. })
            | Self::ClusterSegmentPolicy(ClusterSegmentPolicy { metadata, .. })
            | Self::AdminNetworkPolicy(AdminNetworkPolicy { metadata, .. })
            | Self::BaselineAdminNetworkPolicy(BaselineAdminNetworkPolicy { metadata, .. })
            | Self::ClusterNetworkPolicy(ClusterNetworkPolicy { metadata, .. }) => metadata,
        }
    }

    /// `firebreak.dev/v1alpha1`, for instance.
    pub fn api_version(&self) -> &'static str {
        self.kind().api_version()
    }

    /// Its namespace; `None` for cluster-scoped kinds.
    pub fn namespace(&self) -> Option<&str> {
        self.metadata().namespace.as_deref()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.metadata().name
    }

    /// Its labels; empty when it has none.
    pub fn labels(&self) -> Labels {
        self.metadata().labels.iter().flatten().collect()
    }

    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind(), namespace: self.namespace().map(str::to_owned), name: self.name().to_owned() }
    }

    /// The canonical JSON: one line, fields in a fixed order, absent fields left out. Equal objects have equal texts.
    pub fn to_json(&self) -> String {
        // Serializing our own types to a string cannot fail: every map has string keys and nothing here returns an error.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The object as YAML, for people.
    pub fn to_yaml(&self) -> String {
        // As above.
        serde_saphyr::to_string(self).unwrap_or_default()
    }

    /// Reads one object from JSON and checks it as [`crate::parse_str`] does; its faults have a field but no line.
    pub fn from_json(json: &[u8]) -> Result<Self, Errors> {
        load::from_json(json)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = match self {
            Self::Namespace(_) => 3,
            Self::Node(Node { status, .. }) => 3 + usize::from(status.is_some()),
            Self::Pod(Pod { status, .. }) => 4 + usize::from(status.is_some()),
            Self::LabelRule(_)
            | Self::AddressGroup(_)
            | Self::Workload(_)
            | Self::NetworkPolicy(_)
            | Self::SegmentPolicy(_)
            | Self::ClusterSegmentPolicy(_)
            | Self::AdminNetworkPolicy(_)
            | Self::BaselineAdminNetworkPolicy(_)
            | Self::ClusterNetworkPolicy(_) => 4,
        };
        let mut object = serializer.serialize_struct("Object", fields)?;
        object.serialize_field("apiVersion", self.api_version())?;
        object.serialize_field("kind", self.kind().as_str())?;
        object.serialize_field("metadata", self.metadata())?;
        match self {
            Self::Namespace(Namespace { metadata: _ }) => {}
            Self::Node(Node { metadata: _, status }) => {
                if let Some(status) = status {
                    object.serialize_field("status", status)?;
                }
            }
            Self::Pod(Pod { metadata: _, spec, status }) => {
                object.serialize_field("spec", spec)?;
                if let Some(status) = status {
                    object.serialize_field("status", status)?;
                }
            }
            Self::LabelRule(LabelRule { metadata: _, spec }) => object.serialize_field("spec", spec)?,
            Self::AddressGroup(AddressGroup { metadata: _, spec }) => object.serialize_field("spec", spec)?,
            Self::Workload(Workload { metadata: _, spec }) => object.serialize_field("spec", spec)?,
            Self::NetworkPolicy(NetworkPolicy { metadata: _, spec }) => object.serialize_field("spec", spec)?,
            Self::SegmentPolicy(SegmentPolicy { metadata: _, spec }) => object.serialize_field("spec", spec)?,
            Self::ClusterSegmentPolicy(ClusterSegmentPolicy { metadata: _, spec }) => object.serialize_field("spec", spec)?,
            Self::AdminNetworkPolicy(AdminNetworkPolicy { metadata: _, spec }) => object.serialize_field("spec", spec)?,
            Self::BaselineAdminNetworkPolicy(BaselineAdminNetworkPolicy { metadata: _, spec }) => object.serialize_field("spec", spec)?,
            Self::ClusterNetworkPolicy(ClusterNetworkPolicy { metadata: _, spec }) => object.serialize_field("spec", spec)?,
        }
        object.end()
    }
}
