//! Notices that somebody else changed our tables; for kernels that cannot keep others off them.

use super::names::TABLE;
use super::wire::{Message, Messages, Received, generation, table};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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

    /// For waiting in a runtime.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    #[allow(unsafe_code)]
    pub fn watched(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the descriptor is that of a socket which `self` owns, and does not change or close while it is registered.
        unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }.map_err(io::Error::from)
    }

    /// Reads what there is, without waiting, and says whether somebody else changed a table of ours. Lost notifications count
    /// as a change.
    pub fn changed(&mut self) -> io::Result<bool> {
        Ok(self.changes()?.is_some())
    }

    /// The same, with the process that made the last of the changes, where the kernel tells it (`NFT_MSG_NEWGEN`).
    pub fn changes(&mut self) -> io::Result<Option<ForeignChange>> {
        let mut change: Option<ForeignChange> = None;
        let mut pending = false;
        let mut buffer: Vec<u8> = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {
                    for message in Messages::new(&buffer).filter(|message| message.port != self.ours) {
                        if message.kind == Message::NewGeneration.number() {
                            // It ends the notifications of a transaction.
                            if std::mem::take(&mut pending) {
                                change.get_or_insert_default().process = process(&message);
                            }
                        } else if message.attributes().find(table::NAME).and_then(|name| name.as_text()) == Some(TABLE) {
                            // The table's name is attribute 1 of every kind of message (`NFTA_*_TABLE`, `NFTA_TABLE_NAME`).
                            pending = true;
                            change.get_or_insert_default();
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(change),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    change.get_or_insert_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Somebody else's change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignChange {
    /// `nft (pid 123)`, where the kernel tells it.
    pub process: Option<String>,
}

fn process(message: &Received<'_>) -> Option<String> {
    let name = message.attributes().find(generation::PROCESS_NAME)?.as_text()?.to_owned();
    let pid = message.attributes().find(generation::PROCESS_ID)?.as_u32()?;
    Some(format!("{name} (pid {pid})"))
}

impl AsRawFd for ChangeWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for ChangeWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
