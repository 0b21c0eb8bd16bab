//! Node and AddressGroup to the model.

use super::{labels, note, parts};
use crate::path::{At, Problems};
use crate::validate;
use crate::{AddressGroup, Node, NodeAddress};
use firebreak_policy::model::{self, GroupName, NodeName};

pub(super) fn node(object: &Node, problems: &mut Problems<'_>) -> model::Node {
    let Node { metadata, status } = object;
    let root = At::ROOT;
    let status_at = root.field("status");
    let list = status_at.field("addresses");
    let mut addresses = Vec::new();
    for (position, NodeAddress { kind, address }) in status.iter().flat_map(|status| status.addresses.iter().flatten()).enumerate() {
        let item = list.index(position);
        match kind.as_str() {
            "InternalIP" | "ExternalIP" => {
                let address = note(validate::address(address), &item.field("address"), problems);
                // A node may have one address as internal and external.
                addresses.extend(address.filter(|address| !addresses.contains(address)));
            }
            "Hostname" | "InternalDNS" | "ExternalDNS" => {}
            other => problems.add(
                &item.field("type"),
                format!("{other:?} is not known; use one of InternalIP, ExternalIP, Hostname, InternalDNS, ExternalDNS"),
            ),
        }
    }
    model::Node { name: NodeName::new(&metadata.name), labels: labels(metadata), addresses }
}

pub(super) fn address_group(object: &AddressGroup, problems: &mut Problems<'_>) -> model::AddressGroup {
    let AddressGroup { metadata, spec } = object;
    let root = At::ROOT;
    let spec_at = root.field("spec");
    let list = spec_at.field("blocks");
    let mut blocks = Vec::new();
    for (position, written) in spec.blocks.iter().enumerate() {
        blocks.extend(parts::block(&written.cidr, written.except.as_deref(), &list.index(position), problems));
    }
    model::AddressGroup { name: GroupName::new(&metadata.name), blocks }
}
