//! The only code that talks rtnetlink: what the kernel says of interfaces, addresses, default routes and namespaces, and that
//! something changed.
//!
//! A container's addresses are read without entering it: dumping a veth gives its peer's namespace an id in ours
//! (`IFLA_LINK_NETNSID`, the kernel assigns one when it is asked), `RTM_GETADDR` with `IFA_TARGET_NETNSID` lists what is in there
//! (`NETLINK_GET_STRICT_CHK` makes the kernel look at that attribute), and `NETLINK_LISTEN_ALL_NSID` brings its changes.

#![allow(clippy::wildcard_enum_match_arm, reason = "the netlink crates' enums are open: the kernel adds to them")]

use crate::dataplane::MacAddress;
use futures::StreamExt;
use netlink_packet_core::{DefaultNla, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

/// `NLM_F_DUMP_INTR` of linux/netlink.h: something changed while the list was made, so that it may lack something.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// `IFLA_TARGET_NETNSID` of linux/if_link.h, which the crate has no name for: asks about another namespace.
const IFLA_TARGET_NETNSID: u16 = 46;
/// How often an interrupted dump is made again before what was read is taken: changes that go on will be told.
const DUMP_ATTEMPTS: usize = 5;
/// How much the kernel may queue for us before it drops notifications (which we then hear of as an overrun).
const RECEIVE_BUFFER: u32 = 4 << 20;

/// A network interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its ifindex.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is one end of a veth pair.
    pub veth: bool,
    /// The interface that it is a port of.
    pub controller: Option<u32>,
    /// The id, in our namespace, of the namespace that the other end is in; `None` when that is our own.
    pub peer_nsid: Option<i32>,
    /// The ifindex of the other end in its namespace.
    pub peer_index: Option<u32>,
    /// Its own MAC address; `None` when it has none, or none of six bytes.
    pub mac: Option<MacAddress>,
}

/// What is in a namespace that a veth leads into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNamespace {
    /// The addresses that its interfaces hold.
    pub addresses: Vec<HeldAddress>,
    /// The MAC addresses of its interfaces, by their ifindex in there.
    pub macs: BTreeMap<u32, MacAddress>,
}

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldAddress {
    /// The ifindex in the address's own namespace.
    pub interface: u32,
    /// The address itself (not the peer of a point-to-point link).
    pub address: IpAddr,
    /// What it reaches.
    pub scope: Scope,
}

/// What an address reaches (`ifa_scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Beyond the link.
    Global,
    /// The link.
    Link,
    /// The namespace it is in.
    Host,
}

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum RtnlError {
    /// No socket.
    #[error("rtnetlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel's refusal.
    #[error("rtnetlink {asked}: {errno}")]
    Refused {
        /// What was asked for.
        asked: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The connection has ended.
    #[error("rtnetlink {0}: the connection has ended")]
    Ended(&'static str),
}

/// A connection for questions. They are asked one after the other: the kernel makes one dump at a time per socket.
#[derive(Debug)]
pub struct Rtnl {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Rtnl {
    /// Opens a connection in the namespace of the calling thread.
    pub fn open() -> Result<Self, RtnlError> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Every interface of the node. Gives the namespaces at the far ends of veths their ids.
    pub async fn links(&mut self) -> Result<Vec<Link>, RtnlError> {
        let answers = self.dump("links", RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| if let RouteNetlinkMessage::NewLink(link) = answer { Some(read_link(link)) } else { None })
            .collect())
    }

    /// What is in a namespace, by its id. One that is gone is empty.
    pub async fn peer_namespace(&mut self, nsid: i32) -> Result<PeerNamespace, RtnlError> {
        let addresses = self.addresses(Some(nsid)).await?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Other(DefaultNla::new(IFLA_TARGET_NETNSID, nsid.to_ne_bytes().to_vec())));
        let answers = match self.dump("links", RouteNetlinkMessage::GetLink(message)).await {
            Err(RtnlError::Refused { errno: Errno::EINVAL, .. }) => return Ok(PeerNamespace::default()),
            answers => answers?,
        };
        let links = answers
            .into_iter()
            .filter_map(|answer| if let RouteNetlinkMessage::NewLink(link) = answer { Some(read_link(link)) } else { None });
        Ok(PeerNamespace { addresses, macs: links.filter_map(|link| Some((link.index, link.mac?))).collect() })
    }

    /// Every address in a namespace, by its id, or of the node. A namespace that is gone has none.
    pub async fn addresses(&mut self, nsid: Option<i32>) -> Result<Vec<HeldAddress>, RtnlError> {
        let mut addresses = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = AddressMessage::default();
            message.header.family = family;
            message.attributes.extend(nsid.map(AddressAttribute::TargetNetNsId));
            let answers = match self.dump("addresses", RouteNetlinkMessage::GetAddress(message)).await {
                // rtnl_get_net_ns_capable: no namespace has this id any more.
                Err(RtnlError::Refused { errno: Errno::EINVAL, .. }) if nsid.is_some() => return Ok(Vec::new()),
                answers => answers?,
            };
            addresses.extend(
                answers
                    .into_iter()
                    .filter_map(|answer| if let RouteNetlinkMessage::NewAddress(address) = answer { read_address(&address) } else { None }),
            );
        }
        Ok(addresses)
    }

    /// The interfaces that a default route leads out of, in any routing table. Routes that a router advertisement made do not
    /// count: a container can send one.
    pub async fn default_routes(&mut self) -> Result<BTreeSet<u32>, RtnlError> {
        let mut interfaces = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            for answer in self.dump("routes", RouteNetlinkMessage::GetRoute(message)).await? {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    interfaces.extend(ways_out(&route));
                }
            }
        }
        Ok(interfaces)
    }

    /// The id that a namespace (`/proc/PID/ns/net`, `/run/netns/NAME`) has in ours; `None` when it has none: no interface leads
    /// into it.
    pub async fn nsid_of(&mut self, namespace: &File) -> Result<Option<i32>, RtnlError> {
        let mut message = NsidMessage::default();
        let fd = u32::try_from(namespace.as_raw_fd()).map_err(|_| RtnlError::Refused { asked: "nsid", errno: Errno::EBADF })?;
        message.attributes.push(NsidAttribute::Fd(fd));
        let answers = self.ask("nsid", RouteNetlinkMessage::GetNsId(message), NLM_F_REQUEST).await?.0;
        let id = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(message) => {
                message.attributes.into_iter().find_map(|attribute| if let NsidAttribute::Id(id) = attribute { Some(id) } else { None })
            }
            _ => None,
        });
        // NETNSA_NSID_NOT_ASSIGNED is -1.
        Ok(id.filter(|id| *id >= 0))
    }

    async fn dump(&mut self, asked: &'static str, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, RtnlError> {
        let mut answers = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            let interrupted;
            (answers, interrupted) = self.ask(asked, message.clone(), NLM_F_REQUEST | NLM_F_DUMP).await?;
            if !interrupted {
                break;
            }
        }
        Ok(answers)
    }

    async fn ask(
        &mut self,
        asked: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), RtnlError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut answers = self.handle.request(request).map_err(|_| RtnlError::Ended(asked))?;
        let mut read = Vec::new();
        let mut interrupted = false;
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => read.push(message),
                NetlinkPayload::Error(error) => {
                    let errno = Errno::from_raw(error.raw_code().saturating_neg());
                    return Err(RtnlError::Refused { asked, errno });
                }
                _ => {}
            }
            // A question that is no dump has one answer and no end.
            if flags & NLM_F_DUMP != NLM_F_DUMP {
                break;
            }
        }
        if self.connection.is_finished() { Err(RtnlError::Ended(asked)) } else { Ok((read, interrupted)) }
    }
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        veth: false,
        controller: None,
        peer_nsid: None,
        peer_index: None,
        mac: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.controller = Some(index).filter(|index| *index != 0),
            LinkAttribute::LinkNetNsId(id) => link.peer_nsid = Some(id).filter(|id| *id >= 0),
            LinkAttribute::Link(index) => link.peer_index = Some(index).filter(|index| *index != 0),
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddress),
            LinkAttribute::LinkInfo(infos) => {
                link.veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
            }
            _ => {}
        }
    }
    link
}

fn read_address(message: &AddressMessage) -> Option<HeldAddress> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the other end and IFA_LOCAL the own one (linux/if_addr.h).
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(own_or_other) => address = address.or(Some(*own_or_other)),
            _ => {}
        }
    }
    let scope = match message.header.scope {
        AddressScope::Host | AddressScope::Nowhere => Scope::Host,
        AddressScope::Link => Scope::Link,
        _ => Scope::Global,
    };
    let address = address?.to_canonical();
    let scope = if crate::local::is_link_local(address) { Scope::Link } else { scope };
    Some(HeldAddress { interface: message.header.index, address, scope })
}

fn ways_out(route: &RouteMessage) -> Vec<u32> {
    let counts = route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && route.header.protocol != RouteProtocol::Ra;
    if !counts {
        return Vec::new();
    }
    let mut interfaces = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => interfaces.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    interfaces
}

/// What a notification was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Interfaces of the node, or the far ends of its veths.
    Links,
    /// Addresses in a namespace that has an id in ours, or of the node; in another namespace interfaces too, for their MAC addresses.
    Addresses(Option<i32>),
    /// A default route.
    DefaultRoute,
    /// The kernel dropped notifications: everything has to be read again.
    Overrun,
}

/// Hears of changes, in the node's namespace and in every one that has an id in it.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

// linux/rtnetlink.h
const GROUPS: [u32; 5] = [1, 5, 9, 7, 11]; // LINK, IPV4_IFADDR, IPV6_IFADDR, IPV4_ROUTE, IPV6_ROUTE
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// `SOL_NETLINK` and `NETLINK_LISTEN_ALL_NSID` of linux/socket.h and linux/netlink.h: the control message with the sender's id.
const SOL_NETLINK: i32 = 270;
const NETLINK_LISTEN_ALL_NSID: i32 = 8;
const NLMSG_HEADER_BYTES: usize = 16;

impl Monitor {
    /// Opens a socket in the namespace of the calling thread. From here on no change is missed unheard.
    pub fn open() -> Result<Self, RtnlError> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_listen_all_namespaces(true)?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        // SAFETY: `Socket` owns its descriptor, gives the same one for as long as it lives, and nobody closes it from elsewhere.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self { socket, buffer: vec![0; 64 * 1024] })
    }

    /// The next changes, without repetition. May be cancelled; nothing is lost by it.
    pub async fn next(&mut self) -> Result<BTreeSet<Change>, RtnlError> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut changes = BTreeSet::new();
            // Takes all there is, within bounds, so that a burst becomes one round.
            for _ in 0..1024 {
                let Ok(read) = ready.try_io(|socket| receive(socket.get_ref(), &mut self.buffer, &mut changes)) else { break };
                read?;
            }
            drop(ready);
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

fn receive(socket: &Socket, buffer: &mut [u8], changes: &mut BTreeSet<Change>) -> io::Result<()> {
    let mut space = nix::cmsg_space!([u8; 64]);
    let mut parts = [IoSliceMut::new(buffer)];
    let (length, nsid, truncated) = match recvmsg::<NetlinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT) {
        Ok(message) => (message.bytes, sender(message.cmsgs()), message.flags.contains(MsgFlags::MSG_TRUNC)),
        Err(Errno::ENOBUFS) => {
            changes.insert(Change::Overrun);
            return Ok(());
        }
        Err(errno) => return Err(errno.into()),
    };
    if truncated {
        changes.insert(Change::Overrun);
    }
    changes.extend(read_notifications(&buffer[..length.min(buffer.len())], nsid));
    Ok(())
}

fn sender<'a>(messages: nix::Result<impl Iterator<Item = ControlMessageOwned> + 'a>) -> Option<i32> {
    messages.into_iter().flatten().find_map(|message| match message {
        ControlMessageOwned::Unknown(message)
            if message.cmsg_header.cmsg_level == SOL_NETLINK && message.cmsg_header.cmsg_type == NETLINK_LISTEN_ALL_NSID =>
        {
            message.data_bytes.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes))
        }
        _ => None,
    })
}

/// What the notifications of one datagram are about. Only headers are read: what has changed is asked for afterwards.
fn read_notifications(mut bytes: &[u8], nsid: Option<i32>) -> BTreeSet<Change> {
    let mut changes = BTreeSet::new();
    while let Some((header, _)) = bytes.split_first_chunk::<NLMSG_HEADER_BYTES>() {
        let length = usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]])).unwrap_or(usize::MAX);
        if length < NLMSG_HEADER_BYTES || length > bytes.len() {
            changes.insert(Change::Overrun);
            break;
        }
        let payload = &bytes[NLMSG_HEADER_BYTES..length];
        match (u16::from_ne_bytes([header[4], header[5]]), nsid) {
            (RTM_NEWLINK | RTM_DELLINK, None) | (RTM_DELLINK, Some(_)) => {
                changes.insert(Change::Links);
            }
            (RTM_NEWADDR | RTM_DELADDR, _) | (RTM_NEWLINK, Some(_)) => {
                changes.insert(Change::Addresses(nsid));
            }
            // The second byte of struct rtmsg is the length of the destination's prefix.
            (RTM_NEWROUTE | RTM_DELROUTE, None) if payload.get(1) == Some(&0) => {
                changes.insert(Change::DefaultRoute);
            }
            _ => {}
        }
        // NLMSG_ALIGN
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(NLMSG_HEADER_BYTES + payload.len()).unwrap_or(0);
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_notification_says_what_is_to_be_read_again() {
        let default_route = [2, 0, 0, 0];
        let other_route = [2, 24, 0, 0];
        let table: &[(Vec<u8>, Option<i32>, &[Change])] = &[
            (message(RTM_NEWLINK, &[0; 16]), None, &[Change::Links]),
            (message(RTM_DELLINK, &[0; 16]), None, &[Change::Links]),
            (message(RTM_NEWLINK, &[0; 16]), Some(3), &[Change::Addresses(Some(3))]),
            (message(RTM_DELLINK, &[0; 16]), Some(3), &[Change::Links]),
            (message(RTM_NEWADDR, &[0; 8]), Some(3), &[Change::Addresses(Some(3))]),
            (message(RTM_DELADDR, &[0; 8]), None, &[Change::Addresses(None)]),
            (message(RTM_NEWROUTE, &default_route), None, &[Change::DefaultRoute]),
            (message(RTM_DELROUTE, &other_route), None, &[]),
            (message(RTM_NEWROUTE, &default_route), Some(3), &[]),
            ([message(RTM_NEWADDR, &[0; 9]), message(RTM_NEWLINK, &[])].concat(), None, &[Change::Links, Change::Addresses(None)]),
            (vec![0; 16], None, &[Change::Overrun]),
            (message(RTM_NEWLINK, &[0; 16])[..20].to_vec(), None, &[Change::Overrun]),
            (Vec::new(), None, &[]),
        ];
        for (bytes, nsid, expected) in table {
            assert_eq!(read_notifications(bytes, *nsid).into_iter().collect::<Vec<_>>(), *expected, "{bytes:?}");
        }
    }
}
