//! What passes between the agent and its helper: a kind, a length, bytes, and perhaps a descriptor. Both ends are the same program,
//! so nothing needs to be compatible.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Kind, then the length in four bytes, the lowest first.
const HEADER: usize = 5;
/// The longest body: the fixed rules are some 100 KB; with them go the elements, some 150 bytes each, when a table is rebuilt.
const BODY_MAX: usize = 128 << 20;

/// One message.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) body: Vec<u8>,
    pub(super) descriptor: Option<OwnedFd>,
}

/// Sends one message; the descriptor travels with its header.
pub(super) fn send(stream: &UnixStream, kind: u8, body: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= BODY_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} bytes for the helper", body.len())))?;
    let mut header = [kind, 0, 0, 0, 0];
    header[1..].copy_from_slice(&length.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let sent = sendmsg(stream, &[IoSlice::new(&header)], &mut control, SendFlags::NOSIGNAL)?;
    let mut stream = stream;
    stream.write_all(&header[sent..])?;
    stream.write_all(body)
}

/// Waits for one message; `None` when the other end is gone.
pub(super) fn receive(stream: &UnixStream) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(stream, &mut [IoSliceMut::new(&mut header)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if received == 0 {
        return Ok(None);
    }
    let descriptor = control
        .drain()
        .find_map(|message| if let RecvAncillaryMessage::ScmRights(mut descriptors) = message { descriptors.next() } else { None });
    let mut stream = stream;
    stream.read_exact(&mut header[received..])?;
    let [kind, length @ ..] = header;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > BODY_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(Frame { kind, body, descriptor }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_message_arrives_whole_with_its_descriptor() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let body: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let sent = body.clone();
        let sender = std::thread::spawn(move || {
            send(&here, 7, &sent, Some(writer.as_fd())).unwrap();
            send(&here, 8, &[], None).unwrap();
        });
        let first = receive(&there).unwrap().unwrap();
        assert_eq!((first.kind, first.body), (7, body));
        let second = receive(&there).unwrap().unwrap();
        assert_eq!((second.kind, second.body.len(), second.descriptor.is_none()), (8, 0, true));
        sender.join().unwrap();
        assert!(receive(&there).unwrap().is_none());
        std::fs::File::from(first.descriptor.unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn what_is_too_long_is_refused_at_both_ends() {
        let (here, there) = UnixStream::pair().unwrap();
        assert!(send(&here, 1, &vec![0; BODY_MAX + 1], None).is_err());
        (&here).write_all(&[1, 255, 255, 255, 255]).unwrap();
        assert_eq!(receive(&there).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
