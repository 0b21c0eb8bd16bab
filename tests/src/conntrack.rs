//! What others do to conntrack: every entry of a node deleted, as `conntrack -F` does.

use crate::namespace::Namespace;
use anyhow::{Context as _, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use std::net::Ipv4Addr;
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

/// Makes entries of UDP exchanges between an address and `count` others, each with its answer seen, as if they had been. They end by themselves
/// after ten minutes.
///
/// # Errors
/// The kernel refused one.
pub fn fill(inside: &Namespace, source: Ipv4Addr, count: u32) -> anyhow::Result<()> {
    const CHUNK: u32 = 500;
    inside.run(move || {
        let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        for first in (0..count).step_by(usize::try_from(CHUNK)?) {
            let messages: Vec<u8> = (first..count.min(first + CHUNK)).flat_map(|number| new_entry(source, number)).collect();
            sendto(netlink.as_raw_fd(), &messages, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
            let mut answer = [0_u8; 4096];
            // Only what goes wrong is answered.
            if let Ok(length) = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
                anyhow::bail!("after {first} entries: {:?}", &answer[..length.min(36)]);
            }
        }
        Ok(())
    })?
}

fn new_entry(source: Ipv4Addr, number: u32) -> Vec<u8> {
    // 50,000 ports to each address of 10.99.0.0/16.
    let [high, low] = u16::try_from(number / 50_000).unwrap_or(u16::MAX).to_be_bytes();
    let destination = Ipv4Addr::new(10, 99, high, low);
    let port = u16::try_from(1_024 + number % 50_000).unwrap_or(u16::MAX);
    let attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    const NESTED: u16 = 0x8000;
    let tuple = |kind: u16, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)| {
        let ends = [attribute(1, &from.0.octets()), attribute(2, &to.0.octets())].concat();
        let udp = [attribute(1, &[17]), attribute(2, &from.1.to_be_bytes()), attribute(3, &to.1.to_be_bytes())].concat();
        attribute(kind | NESTED, &[attribute(1 | NESTED, &ends), attribute(2 | NESTED, &udp)].concat())
    };
    let (here, there) = ((source, 999), (destination, port));
    // CTA_STATUS: seen reply, assured, confirmed; CTA_TIMEOUT: 600 s.
    let rest = [attribute(3, &0x0e_u32.to_be_bytes()), attribute(7, &600_u32.to_be_bytes())].concat();
    let body = [tuple(1, here, there), tuple(2, there, here), rest].concat();
    let mut message = Vec::with_capacity(20 + body.len());
    message.extend(u32::try_from(20 + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
    // IPCTNL_MSG_CT_NEW; NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL.
    message.extend(0x0100_u16.to_ne_bytes());
    message.extend(0x0601_u16.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([2, 0, 0, 0]);
    message.extend(body);
    message
}

/// How many entries the namespace has.
///
/// # Errors
/// The file and why it could not be read.
pub fn count(inside: &Namespace) -> anyhow::Result<u32> {
    inside.read_sysctl("net.netfilter.nf_conntrack_count")?.parse().context("nf_conntrack_count is no number")
}
