#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::flows::netlink::{Message, Messages};
use proptest::prelude::*;

fn entry(v6: bool, protocol: Protocol, details: [Detail; 2]) -> Entry {
    let end = |last: u8| if v6 { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]) } else { IpAddr::from([10, 0, 0, last]) };
    let tuple = |source, destination, detail| Tuple { source: end(source), destination: end(destination), protocol, detail };
    Entry {
        original: tuple(1, 2, details[0]),
        reply: tuple(3, 4, details[1]),
        id: 7,
        status: SEEN_REPLY | ASSURED | CONFIRMED,
        timeout: 99,
        is_cut: true,
        tcp: None,
        sctp: None,
        counters: None,
    }
}

fn entries() -> Vec<Entry> {
    let icmp = |kind| Detail::Icmp { kind, code: 0, id: 4711 };
    let ports = [Detail::Ports(1, 2), Detail::Ports(3, 4)];
    let tcp = TcpInfo { state: 3, flags: [TCP_LIBERAL; 2] };
    let mut all = Vec::new();
    for v6 in [false, true] {
        all.push(Entry { tcp: Some(tcp), ..entry(v6, Protocol::TCP, ports) });
        all.push(Entry { tcp: Some(TcpInfo { flags: [TCP_MIDSTREAM; 2], ..tcp }), ..entry(v6, Protocol::TCP, ports) });
        all.push(Entry { sctp: Some(SctpInfo { state: 4, tags: [5, 6] }), ..entry(v6, Protocol::SCTP, ports) });
        all.push(entry(v6, Protocol::UDP, ports));
        all.push(entry(v6, Protocol(47), [Detail::None, Detail::None]));
    }
    all.push(entry(false, Protocol::ICMP, [icmp(8), icmp(0)]));
    all.push(entry(true, Protocol::ICMPV6, [icmp(128), icmp(129)]));
    all
}

/// What a request carries, read as if the kernel had sent it.
fn read(request: &[u8], label: Label) -> Entry {
    let mut messages = Messages(request);
    let Some(Ok(Message::Content { subsystem: SUBSYS_CTNETLINK, kind: CT_NEW, attributes })) = messages.next() else {
        panic!("no message")
    };
    assert!(messages.next().is_none());
    match decode(attributes, label) {
        Decoded::Entry(entry) => entry,
        other @ (Decoded::OtherZone | Decoded::Unreadable) => panic!("{other:?}"),
    }
}

#[test]
fn an_entry_that_is_made_reads_back_as_it_was() {
    for expected in entries() {
        let read = read(&create_labelled(&expected, Label::new(127), 1), Label::new(127));
        // The kernel numbers and counts by itself.
        assert_eq!(read, Entry { id: 0, ..expected });
    }
}

#[test]
fn a_label_is_one_bit_and_no_other() {
    for bit in [0, 1, 63, 64, 100, 127] {
        let request = set_label(&entries()[0].original, Label::new(bit), true, 1);
        let Some(Ok(Message::Content { attributes, .. })) = Messages(&request).next() else { panic!() };
        let (labels, mask) = (Attributes(attributes).find(cta::LABELS).unwrap(), Attributes(attributes).find(cta::LABELS_MASK).unwrap());
        assert_eq!((labels, labels.len()), (mask, 16));
        assert_eq!(labels.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        for other in 0..128 {
            assert_eq!(Label::new(other).is_in(labels), other == bit, "bit {bit} read as {other}");
        }
        // As nft writes it into its register on a little-endian machine.
        if cfg!(target_endian = "little") {
            assert_eq!(labels[usize::from(bit / 8)], 1 << (bit % 8));
        }
        let cleared = set_label(&entries()[0].original, Label::new(bit), false, 1);
        let Some(Ok(Message::Content { attributes, .. })) = Messages(&cleared).next() else { panic!() };
        assert_eq!(Attributes(attributes).find(cta::LABELS), Some(&[0; 16][..]));
        assert_eq!(Attributes(attributes).find(cta::LABELS_MASK), Some(mask));
    }
}

#[test]
fn entries_of_other_zones_and_without_tuples_are_no_entries() {
    let mut zoned = create_labelled(&entries()[0], Label::new(0), 1);
    zoned.extend([6, 0, 18, 0, 0, 5, 0, 0]);
    let length = u32::try_from(zoned.len()).unwrap();
    zoned[..4].copy_from_slice(&length.to_ne_bytes());
    let Some(Ok(Message::Content { attributes, .. })) = Messages(&zoned).next() else { panic!() };
    assert_eq!(decode(attributes, Label::new(0)), Decoded::OtherZone);
    assert_eq!(decode(&[], Label::new(0)), Decoded::Unreadable);
}

proptest! {
    #[test]
    fn no_bytes_make_the_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), bit in 0..128_u8) {
        decode(&bytes, Label::new(bit));
        let whole = create_labelled(&entries()[0], Label::new(bit), 1);
        let mut broken = whole.clone();
        for (at, byte) in bytes.iter().enumerate().take(20) {
            let place = 20 + (at * 37 + usize::from(*byte)) % (whole.len() - 20);
            broken[place] ^= byte;
        }
        decode(&broken[20..], Label::new(bit));
    }
}
