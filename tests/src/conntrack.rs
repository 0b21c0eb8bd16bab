//! What others do to conntrack: every entry of a node deleted, as `conntrack -F` does.

use crate::namespace::Namespace;
use anyhow::{Context as _, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use std::os::fd::AsRawFd as _;

/// Deletes every entry of the namespace.
///
/// # Errors
/// The kernel refused.
pub fn flush(inside: &Namespace) -> anyhow::Result<()> {
    // nlmsghdr (IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK, NLM_F_REQUEST | NLM_F_ACK), nfgenmsg of every family, no tuple: all of them.
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend(0x0102_u16.to_ne_bytes());
    request.extend(0x0005_u16.to_ne_bytes());
    request.extend([0; 12]);
    inside.run(move || {
        let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        sendto(netlink.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0_u8; 64];
        let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let code: [u8; 4] = answer.get(16..20).filter(|_| length >= 20).and_then(|code| code.try_into().ok()).context("no answer")?;
        ensure!(code == [0; 4], "error {}", i32::from_ne_bytes(code));
        Ok(())
    })?
}
