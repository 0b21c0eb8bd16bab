//! Who is there when an attack is made: the attacker's knowledge of its surroundings, for one node and one family.

use firebreak_tests::frames::internet::packet;
use firebreak_tests::frames::link::framed;
use firebreak_tests::frames::transport::{UDP, udp};
use firebreak_tests::frames::{Mac, Marker};
use firebreak_tests::lab::Topology;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Party {
    pub(crate) mac: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) link_local: Ipv6Addr,
}

/// The surroundings of an attacker. `marker` is the attack's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    pub(crate) node: &'static str,
    pub(crate) topology: Topology,
    pub(crate) is_v4: bool,
    pub(crate) marker: Marker,
    pub(crate) attacker: Party,
    /// Lets in only `friend`.
    pub(crate) victim: Party,
    /// Not isolated: whoever says what is honest reaches it.
    pub(crate) friend: Party,
    /// Lets nobody in.
    pub(crate) bystander: Party,
    /// The node, as its workloads reach it.
    pub(crate) gateway: Party,
    /// A friend on the other node.
    pub(crate) remote_friend: Party,
    /// The node's address on the network between the nodes.
    pub(crate) uplink: [IpAddr; 2],
}

impl Scene {
    /// A party's address in this scene's family.
    pub(crate) fn ip(&self, party: &Party) -> IpAddr {
        if self.is_v4 { party.v4.into() } else { party.v6.into() }
    }

    pub(crate) fn me(&self) -> IpAddr {
        self.ip(&self.attacker)
    }

    pub(crate) fn it(&self) -> IpAddr {
        self.ip(&self.victim)
    }

    /// The node's address on the network between the nodes, in this family.
    pub(crate) fn uplink(&self) -> IpAddr {
        self.uplink[usize::from(!self.is_v4)]
    }

    /// An address of this family.
    pub(crate) fn address(&self, v4: &str, v6: &str) -> IpAddr {
        if self.is_v4 { v4 } else { v6 }.parse().unwrap()
    }

    /// An address beside the workloads' that nobody has.
    pub(crate) fn nobody(&self) -> IpAddr {
        let [a, b, c, _] = self.attacker.v4.octets();
        let [s, t, ..] = self.attacker.v6.segments();
        if self.is_v4 { Ipv4Addr::new(a, b, c, 200).into() } else { Ipv6Addr::new(s, t, 0, 0, 0, 0, 0, 200).into() }
    }

    pub(crate) fn is_bridged(&self) -> bool {
        self.topology == Topology::Bridged
    }

    /// The MAC addresses by which a packet gets to the victim: its own where both are on one bridge, and the node's.
    pub(crate) fn ways(&self) -> Vec<Mac> {
        if self.is_bridged() { vec![self.victim.mac, self.gateway.mac] } else { vec![self.gateway.mac] }
    }

    /// The packet in a frame of the attacker's own for each way to the victim.
    pub(crate) fn send(&self, packet: &[u8]) -> Vec<Vec<u8>> {
        self.ways().into_iter().map(|way| framed(way, self.attacker.mac, packet)).collect()
    }

    /// Several packets, in this order on each way.
    pub(crate) fn send_all(&self, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        self.ways().into_iter().flat_map(|way| packets.iter().map(move |packet| framed(way, self.attacker.mac, packet))).collect()
    }

    /// A datagram with the marker.
    pub(crate) fn datagram(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        packet(from, to, UDP, &udp(from, to, (40_000, 80), &self.text()))
    }

    /// The datagram that the attacker may not send to the victim, and nothing odd about it.
    pub(crate) fn honest(&self) -> Vec<u8> {
        self.datagram(self.me(), self.it())
    }

    /// The marker.
    pub(crate) fn text(&self) -> [u8; 8] {
        self.marker.bytes()
    }
}
