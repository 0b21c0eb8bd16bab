//! Address blocks: what is left of a block after its exceptions, and what `world` is.

use crate::model::{CidrBlock, Family};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeSet;

/// Special-purpose blocks that are not reached over the internet: the IANA IPv4 Special-Purpose Address Registry
/// (RFC 6890 and updates), multicast (RFC 5771) and class E (RFC 1112).
const NOT_PUBLIC_V4: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// Global unicast is 2000::/3 (RFC 4291); what the IANA IPv6 Special-Purpose Address Registry takes out of it.
const GLOBAL_V6: &str = "2000::/3";
const NOT_PUBLIC_V6: [&str; 5] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "2620:4f:8000::/48"];

/// The disjoint blocks that remain of `cidr` when each `except` is cut out.
pub(crate) fn remaining(block: &CidrBlock) -> BTreeSet<IpNet> {
    subtract(block.cidr.trunc(), &block.except)
}

/// Disjoint blocks with the same addresses as all of `blocks` together.
pub(crate) fn union(blocks: impl IntoIterator<Item = IpNet>) -> BTreeSet<IpNet> {
    IpNet::aggregate(&blocks.into_iter().collect()).into_iter().collect()
}

/// Every address outside the cluster networks; public addresses only while none is configured.
pub(crate) fn world(cluster_networks: &[IpNet]) -> BTreeSet<IpNet> {
    let parse = |text: &&str| text.parse::<IpNet>().ok();
    if cluster_networks.is_empty() {
        let v4: Vec<IpNet> = NOT_PUBLIC_V4.iter().filter_map(parse).collect();
        let v6: Vec<IpNet> = NOT_PUBLIC_V6.iter().filter_map(parse).collect();
        let mut public = subtract(whole(Family::V4), &v4);
        public.extend(parse(&GLOBAL_V6).into_iter().flat_map(|global| subtract(global, &v6)));
        return public;
    }
    let mut outside = subtract(whole(Family::V4), cluster_networks);
    outside.extend(subtract(whole(Family::V6), cluster_networks));
    outside
}

/// 0.0.0.0/0 or ::/0.
pub(crate) fn whole(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    }
}

fn subtract(block: IpNet, holes: &[IpNet]) -> BTreeSet<IpNet> {
    let holes: Vec<IpNet> = holes.iter().map(IpNet::trunc).filter(|hole| hole.contains(&block) || block.contains(hole)).collect();
    let mut remaining = BTreeSet::new();
    cut(block, &holes, &mut remaining);
    remaining
}

fn cut(block: IpNet, holes: &[IpNet], remaining: &mut BTreeSet<IpNet>) {
    if holes.iter().any(|hole| hole.contains(&block)) {
        return;
    }
    let inside: Vec<IpNet> = holes.iter().copied().filter(|hole| block.contains(hole)).collect();
    if inside.is_empty() {
        remaining.insert(block);
        return;
    }
    // A block with a strictly smaller hole is not a single address, so it has two halves.
    if let Ok(halves) = block.subnets(block.prefix_len() + 1) {
        for half in halves {
            cut(half, &inside, remaining);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn covers(blocks: &BTreeSet<IpNet>, address: &str) -> bool {
        let address: IpAddr = address.parse().unwrap();
        blocks.iter().any(|block| block.contains(&address))
    }

    #[test]
    fn exceptions_are_cut_out_and_nothing_else() {
        let block =
            CidrBlock { cidr: "10.0.0.0/8".parse().unwrap(), except: vec!["10.1.0.0/16".parse().unwrap(), "10.2.3.4/32".parse().unwrap()] };
        let left = remaining(&block);
        for (address, inside) in [
            ("10.0.0.1", true),
            ("10.1.0.0", false),
            ("10.1.255.255", false),
            ("10.2.3.3", true),
            ("10.2.3.4", false),
            ("10.2.3.5", true),
            ("11.0.0.0", false),
        ] {
            assert_eq!(covers(&left, address), inside, "{address}");
        }
        let whole_hole = CidrBlock { cidr: "10.0.0.0/8".parse().unwrap(), except: vec!["10.0.0.0/8".parse().unwrap()] };
        assert!(remaining(&whole_hole).is_empty());
    }

    #[test]
    fn the_world_is_public_until_cluster_networks_are_configured() {
        for (cluster, address, inside) in [
            (&[][..], "8.8.8.8", true),
            (&[], "10.0.0.1", false),
            (&[], "172.17.0.2", false),
            (&[], "169.254.169.254", false),
            (&[], "224.0.0.1", false),
            (&[], "2606:4700::1", true),
            (&[], "fd00::1", false),
            (&[], "fe80::1", false),
            (&["10.0.0.0/8"], "10.9.9.9", false),
            (&["10.0.0.0/8"], "192.168.1.1", true),
            (&["10.0.0.0/8"], "fd00::1", true),
        ] {
            let cluster: Vec<IpNet> = cluster.iter().map(|it: &&str| it.parse().unwrap()).collect();
            assert_eq!(covers(&world(&cluster), address), inside, "{cluster:?} {address}");
        }
        assert_eq!(NOT_PUBLIC_V4.iter().chain(&NOT_PUBLIC_V6).filter(|it| it.parse::<IpNet>().is_err()).count(), 0);
    }
}
