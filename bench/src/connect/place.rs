//! A node with a client and a server, and what stands between them.

use super::traffic::{DENIED_PORTS, Metric, PORT, Traffic};
use crate::dataplane::open;
use crate::scratch;
use anyhow::{Context as _, ensure};
use firebreak_agent::dataplane::{Claim, Dataplane, Desired, MacAddress, ManagedInterface};
use firebreak_policy::kernel_sets::{
    Chain, Comment, Element, GroupForm, GroupSet, KernelSets, SetId, Shape, Shared, SharedPeers, SharedRule, SharedService, ShortName, Span,
};
use firebreak_policy::model::{Direction, Family, InterfaceName, Protocol};
use firebreak_policy::node_state::Member;
use firebreak_tests::lab::{Lab, Node, Topology, Workload};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Elements that one policy makes in each direction.
const PER_POLICY: u32 = 10;

/// Blocks beside the one that is hit.
const BLOCKS: u32 = 1_000;

/// Which set lets the packet through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    Exact,
    Peer,
    Protocol,
    FromAnyone,
    /// A block of addresses with a range of ports, in the segment's chain: what the agent makes of it.
    Shared,
    /// The same multiplied out: what it makes of what finds no room in a chain.
    Range,
}

/// What stands between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// The least that a stateful firewall does.
    Conntrack,
    /// The same, and a chain with nothing in it at each hook that our guards use: what no rule of ours can be cheaper than.
    EmptyHooks,
    /// One rule that drops what is denied, and nothing else: no connection is followed.
    OneRule,
    /// The same where connections are followed.
    OneRuleTracked,
    /// Our policy chains alone, with every element: the guards are taken away.
    Policy { policies: u32 },
    /// Our tables with nobody isolated.
    Guards,
    /// All that an agent installs.
    Everything { policies: u32, hit: Hit },
    /// The same while some connection is cut, so that every packet is asked for the label and every datagram of a new one for those revoked.
    WhileCut { policies: u32 },
}

/// A node with a client, a server, rules and open sockets.
pub(super) struct Place {
    client: Workload,
    traffic: Vec<(Family, Traffic)>,
    // In the order in which they have to go.
    _dataplane: Option<Dataplane>,
    _server: Workload,
    _node: Node,
    _lab: Lab,
}

impl Place {
    /// Makes it; `tag` is short and this place's own.
    ///
    /// # Errors
    /// The lab is broken, or the rules do not do what they are for.
    pub(super) fn new(tag: &str, topology: Topology, between: Between) -> anyhow::Result<Self> {
        let prefix = scratch::prefix(tag);
        let mut lab = Lab::new(&prefix)?;
        let mut node = lab.node("node", topology)?;
        if topology == Topology::Bridged {
            node.namespace.sysctl("net.bridge.bridge-nf-call-iptables", "1")?;
            node.namespace.sysctl("net.bridge.bridge-nf-call-ip6tables", "1")?;
        }
        let client = node.workload(&format!("{prefix}-client"))?;
        let server = node.workload(&format!("{prefix}-server"))?;
        let mut built = Builder { node: &node, client: &client, server: &server };
        let dataplane = built.stand(between)?;
        let traffic = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| *family == Family::V4 || built.serves_v6(between))
            .map(|family| anyhow::Ok((family, Traffic::open(&client, &server, family).with_context(|| format!("{between:?}"))?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { client, traffic, _dataplane: dataplane, _server: server, _node: node, _lab: lab })
    }

    /// The median time of one round.
    ///
    /// # Errors
    /// Something was lost.
    pub(super) fn time(&self, family: Family, metric: Metric) -> anyhow::Result<Duration> {
        let (_, traffic) = self.traffic.iter().find(|(of, _)| *of == family).context("no such traffic here")?;
        traffic.time(&self.client, metric)
    }
}

struct Builder<'a> {
    node: &'a Node,
    client: &'a Workload,
    server: &'a Workload,
}

impl Builder<'_> {
    fn serves_v6(&self, between: Between) -> bool {
        match between {
            Between::Conntrack
            | Between::EmptyHooks
            | Between::OneRule
            | Between::OneRuleTracked
            | Between::Policy { .. }
            | Between::WhileCut { .. }
            | Between::Guards => true,
            Between::Everything { hit, .. } => hit == Hit::Exact,
        }
    }

    fn stand(&mut self, between: Between) -> anyhow::Result<Option<Dataplane>> {
        match between {
            Between::Conntrack => self.nft(CONNTRACK_ALONE).map(|()| None),
            Between::EmptyHooks => self.nft(&(CONNTRACK_ALONE.to_owned() + &self.empty_hooks())).map(|()| None),
            Between::OneRule => self.nft(&one_rule("")).map(|()| None),
            Between::OneRuleTracked => self.nft(&one_rule("ct state established,related accept;")).map(|()| None),
            Between::Guards => self.enforce(KernelSets::default()).map(Some),
            Between::Everything { policies, hit } => {
                let dataplane = self.enforce(self.sets(policies, hit))?;
                // Where everything from the client is allowed there is nothing to refuse.
                if !matches!(hit, Hit::Peer | Hit::Protocol) {
                    self.refuses()?;
                }
                Ok(Some(dataplane))
            }
            Between::WhileCut { policies } => {
                let mut dataplane = self.enforce(self.sets(policies, Hit::Exact))?;
                ensure!(!dataplane.pass_by_cuts(false)?, "the rules do not ask");
                self.refuses()?;
                Ok(Some(dataplane))
            }
            Between::Policy { policies } => {
                // Without its owner the table is everybody's.
                drop(self.enforce(self.sets(policies, Hit::Exact))?);
                self.nft(
                    "delete table netdev firebreak\ndelete table bridge firebreak\ndelete table arp firebreak\n\
                     flush chain inet firebreak unknown_interface_in\ndelete chain inet firebreak unknown_interface_in\n",
                )?;
                let listed = self.node.namespace.output("nft -a list chain inet firebreak forward")?;
                let rule =
                    listed.lines().find(|line| line.contains("jump unknown_out")).context("forward asks for no unknown interface")?;
                let handle = rule.rsplit(' ').next().context("a rule without a handle")?;
                self.nft(&format!("delete rule inet firebreak forward handle {handle}\n"))?;
                self.refuses()?;
                Ok(None)
            }
        }
    }

    fn nft(&self, text: &str) -> anyhow::Result<()> {
        let folder = scratch::folder()?;
        let path = folder.path().join("rules.nft");
        std::fs::write(&path, text)?;
        self.node.namespace.output(&format!("nft -f {}", path.display())).map(drop)
    }

    /// The hooks of [`Between::Everything`], beside forward.
    fn empty_hooks(&self) -> String {
        let ports: String = [&self.client.interface, &self.server.interface]
            .iter()
            .enumerate()
            .map(|(number, device)| {
                format!("chain port{number} {{ type filter hook ingress device \"{device}\" priority -500; policy accept; }}\n")
            })
            .collect();
        let bridge = "table bridge floor {\n\
                      chain in { type filter hook prerouting priority -450; policy accept; }\n\
                      chain out { type filter hook postrouting priority -450; policy accept; }\n}\n";
        format!(
            "table netdev floor {{\n{ports}}}\n\
             table inet floor {{\nchain in {{ type filter hook prerouting priority -450; policy accept; }}\n}}\n{}",
            match self.node.topology {
                Topology::Bridged => bridge,
                Topology::Routed => "",
            }
        )
    }

    /// Client and server isolated in the directions of the connection; both must let it through.
    fn sets(&self, policies: u32, hit: Hit) -> KernelSets {
        let mut sets: BTreeMap<SetId, BTreeMap<Element, Comment>> = BTreeMap::new();
        let mut shared = Shared::default();
        let (client, server) = (self.client.addresses(), self.server.addresses());
        for (direction, locals, remotes) in [(Direction::Ingress, server, client), (Direction::Egress, client, server)] {
            for (local, remote) in locals.into_iter().zip(remotes) {
                let family = Family::of(local);
                let mut put = |shape, element, comment: &Comment| {
                    sets.entry(SetId { direction, family, shape }).or_default().insert(element, Comment::clone(comment));
                };
                let ours: Comment = "shop/web#0 by SegmentPolicy shop/web".into();
                put(Shape::Isolated, Element::Local(local), &ours);
                if hit == Hit::Shared {
                    share(&mut shared, direction, local, remote);
                }
                for protocol in [Protocol::TCP, Protocol::UDP] {
                    let (shape, element) = match hit {
                        Hit::Shared => continue,
                        Hit::Exact => (Shape::PeerPort, Element::PeerPort(local, remote, protocol, PORT)),
                        Hit::Peer => (Shape::Peer, Element::Peer(local, remote)),
                        Hit::Protocol => (Shape::PeerProtocol, Element::PeerProtocol(local, remote, protocol)),
                        Hit::FromAnyone => (Shape::Port, Element::Port(local, protocol, PORT)),
                        Hit::Range => {
                            (Shape::Range, Element::Range(local, block(remote), Span::single(protocol.0), Span { first: 8000, last: 8999 }))
                        }
                    };
                    put(shape, element, &ours);
                }
                if family == Family::V6 {
                    continue;
                }
                if hit == Hit::Range {
                    for number in 0..BLOCKS {
                        let peers = block(IpAddr::V4(Ipv4Addr::from_bits(0x0c00_0000 + number * 256)));
                        let ports = Span { first: 8000, last: 8999 };
                        put(Shape::Range, Element::Range(local, peers, Span::single(Protocol::TCP.0), ports), &ours);
                    }
                }
                for policy in 0..policies {
                    let comment: Comment = format!("shop/app-{policy} by SegmentPolicy shop/app-{policy}").into();
                    for number in 0..PER_POLICY {
                        let peer = IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + policy * PER_POLICY + number));
                        put(Shape::PeerPort, Element::PeerPort(local, peer, Protocol::TCP, PORT), &comment);
                    }
                }
            }
        }
        KernelSets { sets, shared }
    }

    fn enforce(&self, sets: KernelSets) -> anyhow::Result<Dataplane> {
        let mut dataplane = open(&self.node.namespace)?;
        let mut interfaces = BTreeMap::new();
        for workload in [self.client, self.server] {
            let index = self.index(&workload.interface)?;
            let link = match self.node.topology {
                Topology::Bridged => self.index("br0")?,
                Topology::Routed => index,
            };
            let managed = ManagedInterface {
                name: InterfaceName::new(&workload.interface),
                workload: "by the benchmark".into(),
                addresses: workload.addresses().into(),
                claim: Claim { mac: Some(mac(workload)?), addresses: workload.addresses().into(), vouched: true, link },
            };
            interfaces.insert(index, managed);
        }
        let wanted: usize = sets.sets.values().map(BTreeMap::len).sum();
        let committed = dataplane.commit(&Desired { sets, interfaces, exempt: BTreeMap::new() })?;
        ensure!(committed.elements >= wanted, "{committed:?}");
        // As the agent says it moments after its first commit.
        ensure!(dataplane.pass_by_cuts(true)?, "the rules ask for cut connections");
        Ok(dataplane)
    }

    /// The rules are really asked: another port is denied.
    fn refuses(&self) -> anyhow::Result<()> {
        let to = SocketAddr::new(self.server.v4.into(), 22);
        let answered = self.client.namespace.run(move || {
            // Nobody listens there: an unfiltered server would refuse at once.
            TcpStream::connect_timeout(&to, Duration::from_millis(100)).map_err(|error| error.kind())
        })?;
        ensure!(matches!(answered, Err(std::io::ErrorKind::TimedOut)), "the rules are not in the way: {answered:?}");
        Ok(())
    }

    fn index(&self, interface: &str) -> anyhow::Result<u32> {
        let text = self.node.namespace.output(&format!("ip -o link show {interface}"))?;
        text.split(':').next().context("ip said nothing")?.trim().parse().with_context(|| format!("no ifindex in {text:?}"))
    }
}

const CONNTRACK_ALONE: &str = "table inet alone { chain forward { type filter hook forward priority 0; \
                               ct state established,related accept; ct state new accept\n }\n}\n";

fn one_rule(before: &str) -> String {
    let (first, last) = DENIED_PORTS.into_inner();
    format!("table inet alone {{ chain forward {{ type filter hook forward priority 0; {before} udp dport {first}-{last} drop\n }}\n}}\n")
}

/// A chain of the segment with one rule per protocol, of one block list of [`BLOCKS`] and the one that is hit.
fn share(shared: &mut Shared, direction: Direction, local: IpAddr, remote: IpAddr) {
    let family = Family::of(local);
    let title = format!("web of {local}");
    let group = GroupSet { family, form: GroupForm::Blocks, name: ShortName::new("blocks", [title.as_str()]) };
    let others = (0..BLOCKS).filter(|_| family == Family::V4).map(|number| {
        let first = IpAddr::V4(Ipv4Addr::from_bits(0x0c00_0000 + number * 512));
        Member::Block(prefix(first))
    });
    let members = others.chain([Member::Block(prefix(remote))]).collect();
    let rule = |protocol| SharedRule {
        peers: SharedPeers::In(group),
        service: SharedService::Ports(protocol, Span { first: 8000, last: 8999 }),
        comment: "shop/web <- blocks by SegmentPolicy shop/web#0".into(),
    };
    let chain = Chain { direction, family, name: ShortName::new("shop/web", [title.as_str()]), answers: false };
    shared.groups.insert(group, (members, "blocks".into()));
    shared.chains.insert(chain, vec![rule(Protocol::TCP), rule(Protocol::UDP)]);
    shared.segments.insert((direction, local), (chain, "shop/web".into()));
}

/// The same as a prefix.
fn prefix(around: IpAddr) -> IpNet {
    let length = if around.is_ipv4() { 24 } else { 120 };
    // These lengths fit their families.
    IpNet::new(around, length).unwrap_or_else(|_| around.into()).trunc()
}

/// The /24 or /120 around an address.
fn block(around: IpAddr) -> Span<IpAddr> {
    match around {
        IpAddr::V4(address) => {
            let first = address.to_bits() & !0xff;
            Span { first: Ipv4Addr::from_bits(first).into(), last: Ipv4Addr::from_bits(first | 0xff).into() }
        }
        IpAddr::V6(address) => {
            let first = address.to_bits() & !0xff;
            Span { first: Ipv6Addr::from_bits(first).into(), last: Ipv6Addr::from_bits(first | 0xff).into() }
        }
    }
}

/// The MAC address of a workload's own interface.
fn mac(workload: &Workload) -> anyhow::Result<MacAddress> {
    let listed = workload.namespace.output("ip -o link show eth0")?;
    let text = listed.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("no MAC address")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<u8>, _>>()?;
    Ok(MacAddress(<[u8; 6]>::try_from(bytes).map_err(|bytes| anyhow::anyhow!("{bytes:?} is no MAC address"))?))
}
