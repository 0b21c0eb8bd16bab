//! Notices that somebody else changed our tables; for kernels that cannot keep others off them.

use super::names::TABLE;
use super::wire::{Messages, table};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Room for the notifications of a large transaction of our own.
const RECEIVE_BUFFER: usize = 16 << 20;
const DATAGRAM: usize = 256 << 10;

/// The kernel's notifications about nf_tables. Its descriptor is readable when there are some.
#[derive(Debug)]
pub struct ChangeWatch {
    socket: Socket,
    ours: u32,
}

impl ChangeWatch {
    /// Listens in the caller's network namespace; `ours` is [`super::Dataplane::port`].
    pub fn open(ours: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        // A refinement: without it a large commit of our own overflows, which is taken for a change.
        let _ = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER);
        socket.add_membership(GROUP)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, ours })
    }

    /// Reads what there is, without waiting, and says whether somebody else changed a table of ours. Lost notifications count
    /// as a change.
    pub fn changed(&mut self) -> io::Result<bool> {
        let mut changed = false;
        let mut buffer: Vec<u8> = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {
                    // The table's name is attribute 1 of every kind of message (`NFTA_*_TABLE`, `NFTA_TABLE_NAME`).
                    changed |= Messages::new(&buffer).any(|message| {
                        message.port != self.ours && message.attributes().find(table::NAME).and_then(|name| name.as_text()) == Some(TABLE)
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for ChangeWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
