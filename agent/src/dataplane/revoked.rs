//! Connections that were cut, by what their answering end sends: the kernel's rules write these sets, and the agent takes out what policy allows
//! again by rules that they cannot ask the other way round.

use super::error::{CommitError, ReadBackError};
use super::names::{FAMILIES, Layer, TABLE, family_digit, revoked};
use super::socket::{NetfilterSocket, RequestError};
use super::tables::DUMP_ATTEMPTS;
use super::wire::{DATA_VALUE, LIST_ELEMENT, Message, Received, Writer, element};
use firebreak_policy::model::{Family, Protocol};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An element of `revoked4` or `revoked6`: a packet from the end that did not begin the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revoked {
    /// Who sends it.
    pub from: (IpAddr, u16),
    /// To whom, who began the connection.
    pub to: (IpAddr, u16),
    /// Of a protocol with ports.
    pub protocol: Protocol,
}

/// Elements in one message; of the longer form 70 bytes each, far below what an attribute's length can say.
const PER_MESSAGE: usize = 512;

impl Revoked {
    fn family(&self) -> Family {
        Family::of(self.from.0)
    }

    /// `ip saddr . th sport . ip daddr . th dport . meta l4proto`, each padded to whole registers.
    fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(44);
        for (address, port) in [self.from, self.to] {
            match address {
                IpAddr::V4(address) => key.extend(address.octets()),
                IpAddr::V6(address) => key.extend(address.octets()),
            }
            key.extend(port.to_be_bytes());
            key.extend([0; 2]);
        }
        key.extend([self.protocol.0, 0, 0, 0]);
        key
    }

    fn read(family: Family, key: &[u8]) -> Option<Self> {
        let (end, rest) = read_end(family, key)?;
        let (to, rest) = read_end(family, rest)?;
        Some(Self { from: end, to, protocol: Protocol(*rest.first()?) })
    }
}

fn read_end(family: Family, bytes: &[u8]) -> Option<((IpAddr, u16), &[u8])> {
    let (address, rest): (IpAddr, _) = match family {
        Family::V4 => bytes.split_first_chunk::<4>().map(|(octets, rest)| (Ipv4Addr::from(*octets).into(), rest))?,
        Family::V6 => bytes.split_first_chunk::<16>().map(|(octets, rest)| (Ipv6Addr::from(*octets).into(), rest))?,
    };
    let (port, rest) = rest.split_first_chunk::<4>()?;
    Some(((address, u16::from_be_bytes([port[0], port[1]])), rest))
}

/// What the sets hold, in the caller's network namespace.
///
/// # Errors
/// They could not be read.
pub fn read_revoked() -> Result<BTreeSet<Revoked>, ReadBackError> {
    let mut socket = NetfilterSocket::open().map_err(ReadBackError::Socket)?;
    read(&mut socket)
}

pub(super) fn read(socket: &mut NetfilterSocket) -> Result<BTreeSet<Revoked>, ReadBackError> {
    let mut all = BTreeSet::new();
    for family in FAMILIES {
        read_family(socket, family, &mut all)?;
    }
    Ok(all)
}

fn read_family(socket: &mut NetfilterSocket, family: Family, all: &mut BTreeSet<Revoked>) -> Result<(), ReadBackError> {
    let set = revoked(family);
    for _ in 0..DUMP_ATTEMPTS {
        let mut found = Vec::new();
        let take = |received: &Received<'_>| -> Result<(), std::convert::Infallible> {
            let Some(list) = received.attributes().find(element::LIST_ELEMENTS) else { return Ok(()) };
            for item in list.nested() {
                let key = item.nested().find(element::KEY).and_then(|key| key.nested().find(DATA_VALUE));
                found.extend(key.and_then(|key| Revoked::read(family, key.value)));
            }
            Ok(())
        };
        let asked = |writer: &mut Writer| {
            writer.text(element::LIST_TABLE, TABLE);
            writer.text(element::LIST_SET, &set);
        };
        match socket.dump(Message::GetSetElement, Some(Layer::Inet), asked, take) {
            Ok(Ok(())) => {
                all.extend(found);
                return Ok(());
            }
            Err(RequestError::Interrupted) => {}
            Err(RequestError::Refused(source)) => return Err(ReadBackError::Refused { set, source }),
            Err(RequestError::Socket(error)) => return Err(ReadBackError::Socket(error)),
        }
    }
    Err(ReadBackError::Busy { set: format!("revoked{}", family_digit(family)), attempts: DUMP_ATTEMPTS })
}

/// Takes out those of them that are there, in one transaction; says how many.
///
/// # Errors
/// None was taken out.
pub(super) fn forget(socket: &mut NetfilterSocket, which: &BTreeSet<Revoked>) -> Result<usize, CommitError> {
    // One that ends by itself between reading and deleting makes the kernel refuse the whole.
    let mut attempt = 0;
    loop {
        attempt += 1;
        let there = read(socket).map_err(|error| CommitError::Unknown(error.to_string()))?;
        let gone: Vec<&Revoked> = which.intersection(&there).collect();
        if gone.is_empty() {
            return Ok(0);
        }
        let done = socket.transact_messages(|writer, sequence| {
            for family in FAMILIES {
                let of_family: Vec<&Revoked> = gone.iter().copied().filter(|revoked| revoked.family() == family).collect();
                for some in of_family.chunks(PER_MESSAGE) {
                    message(writer, sequence, family, some);
                }
            }
        });
        match done.map_err(CommitError::Socket)? {
            Ok(()) => return Ok(gone.len()),
            Err(refusal) if refusal.errno == Errno::ENOENT && attempt < 3 => {}
            Err(source) => return Err(CommitError::Transaction { bytes: 0, source }),
        }
    }
}

fn message(writer: &mut Writer, sequence: &mut u32, family: Family, some: &[&Revoked]) {
    *sequence = sequence.wrapping_add(1);
    let open = writer.begin(Message::DelSetElement, 0, *sequence, Layer::Inet);
    writer.text(element::LIST_TABLE, TABLE);
    writer.text(element::LIST_SET, &revoked(family));
    let list = writer.nest(element::LIST_ELEMENTS);
    for revoked in some {
        let item = writer.nest(LIST_ELEMENT);
        let nest = writer.nest(element::KEY);
        writer.attribute(DATA_VALUE, &revoked.key());
        writer.end_nest(nest);
        writer.end_nest(item);
    }
    writer.end_nest(list);
    writer.end(open);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_reads_back_as_what_it_was_written_from() {
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let revoked = Revoked { from: (from.parse().unwrap(), 5353), to: (to.parse().unwrap(), 40_000), protocol: Protocol::UDP };
            let key = revoked.key();
            assert_eq!(key.len(), if revoked.family() == Family::V4 { 20 } else { 44 });
            assert_eq!(Revoked::read(revoked.family(), &key), Some(revoked));
            assert_eq!(Revoked::read(revoked.family(), &key[..key.len() - 4]), None);
        }
    }
}
