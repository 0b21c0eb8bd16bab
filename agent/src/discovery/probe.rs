//! Whether the kernel's rtnetlink has what discovery is built on: each piece is tried. Blocking; changes nothing.

#![allow(clippy::wildcard_enum_match_arm, reason = "the netlink crates' enums are open: the kernel adds to them")]

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use std::io;

/// An id that no namespace has: they are given from 0 on.
const NOBODYS: i32 = i32::MAX - 1;

/// Asks for the addresses in a namespace that is not there: a kernel that looks at the attribute refuses, one that does not lists our
/// own addresses, which would be taken for a workload's.
pub(crate) fn target_namespace() -> Result<(), String> {
    let asked = || -> io::Result<Result<(), String>> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_netlink_get_strict_chk(true)?;
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.attributes.push(AddressAttribute::TargetNetNsId(NOBODYS));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetAddress(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        socket.send(&bytes, 0)?;
        let (answer, _) = socket.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
        // A dump that was refused ends with the reason (netlink_dump_done), if it was not refused before.
        let refusal = match answer.payload {
            NetlinkPayload::Error(error) => Some(error.raw_code()),
            NetlinkPayload::Done(end) if end.code != 0 => Some(end.code),
            _ => None,
        };
        Ok(match refusal.map(|code| Errno::from_raw(code.saturating_neg())) {
            Some(Errno::EINVAL) => Ok(()),
            Some(errno) => Err(errno.to_string()),
            None => Err("the attribute is passed over".to_owned()),
        })
    };
    asked().unwrap_or_else(|error| Err(error.to_string()))
}

/// Asks for the notifications of all namespaces.
pub(crate) fn all_namespaces() -> Result<(), String> {
    let asked = || Socket::new(NETLINK_ROUTE)?.set_listen_all_namespaces(true);
    asked().map_err(|error: io::Error| error.to_string())
}
