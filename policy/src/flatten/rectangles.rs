//! Makes overlapping address and port ranges into disjoint ones: interval sets of the kernel refuse elements that overlap.

use crate::kernel_sets::{Comment, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses on a range of services: ports of one protocol, or codes of one ICMP type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rectangle {
    pub(crate) peers: Span<IpAddr>,
    /// `None` is every service there is.
    pub(crate) service: Option<(u8, Span<u16>)>,
    pub(crate) comment: Comment,
}

/// What one stretch of addresses may be reached on.
#[derive(Clone, PartialEq, Eq)]
enum Services {
    All(Comment),
    Some(BTreeMap<u8, Vec<(Span<u16>, Comment)>>),
}

/// Disjoint rectangles that cover exactly what these cover, all of one family. The address axis is cut at every boundary, services are
/// united per stretch, and neighbours that allow the same are joined again.
pub(crate) fn disjoint(rectangles: &[Rectangle]) -> Vec<Rectangle> {
    let v6 = is_v6(rectangles);
    stretches(rectangles).into_iter().flat_map(|(span, services)| pieces(span, services, v6)).collect()
}

/// Disjoint rectangles that cover what both cover.
pub(crate) fn intersection(one: &[Rectangle], other: &[Rectangle]) -> Vec<Rectangle> {
    let v6 = is_v6(one);
    let (one, other) = (stretches(one), stretches(other));
    let (mut left, mut right) = (one.iter().peekable(), other.iter().peekable());
    let mut common = Vec::new();
    while let (Some((mine, services)), Some((theirs, their_services))) = (left.peek(), right.peek()) {
        let span = Span { first: mine.first.max(theirs.first), last: mine.last.min(theirs.last) };
        if span.first <= span.last {
            common.extend(pieces(span, shared(services, their_services), v6));
        }
        if mine.last <= theirs.last {
            left.next();
        } else {
            right.next();
        }
    }
    common
}

/// One pass along the address axis, with the rectangles that cover the present stretch.
fn stretches(rectangles: &[Rectangle]) -> Vec<(Span<u128>, Services)> {
    let v6 = is_v6(rectangles);
    let mut changes: BTreeMap<u128, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for (index, rectangle) in rectangles.iter().enumerate() {
        changes.entry(number(rectangle.peers.first)).or_default().0.push(index);
        // The end of the axis has no successor and needs no cut.
        if let Some(after) = number(rectangle.peers.last).checked_add(1) {
            changes.entry(after).or_default().1.push(index);
        }
    }
    let lasts: Vec<u128> = changes.keys().skip(1).map(|next| next - 1).chain([axis_end(v6)]).collect();
    let mut covering = BTreeSet::new();
    let mut stretches: Vec<(Span<u128>, Services)> = Vec::new();
    for ((start, (beginning, ending)), last) in changes.into_iter().zip(lasts) {
        for index in ending {
            covering.remove(&index);
        }
        covering.extend(beginning);
        if covering.is_empty() {
            continue;
        }
        let services = unite(&covering.iter().filter_map(|index| rectangles.get(*index)).collect::<Vec<_>>());
        match stretches.last_mut() {
            Some((span, previous)) if span.last.checked_add(1) == Some(start) && *previous == services => span.last = last,
            Some(_) | None => stretches.push((Span { first: start, last }, services)),
        }
    }
    stretches
}

/// The services that both allow.
fn shared(one: &Services, other: &Services) -> Services {
    let (one, other) = match (one, other) {
        (Services::All(_), some) | (some, Services::All(_)) => return some.clone(),
        (Services::Some(one), Services::Some(other)) => (one, other),
    };
    let mut both = BTreeMap::new();
    for (protocol, ranges) in one {
        let theirs = other.get(protocol).map(Vec::as_slice).unwrap_or_default();
        let common = ranges.iter().flat_map(|(mine, comment)| {
            theirs.iter().filter_map(move |(their, _)| {
                let range = Span { first: mine.first.max(their.first), last: mine.last.min(their.last) };
                (range.first <= range.last).then(|| (range, comment.clone()))
            })
        });
        both.insert(*protocol, common.collect());
    }
    Services::Some(both)
}

fn unite(covering: &[&Rectangle]) -> Services {
    if let Some(comment) = covering.iter().filter(|it| it.service.is_none()).map(|it| it.comment.clone()).min() {
        return Services::All(comment);
    }
    let mut by_protocol: BTreeMap<u8, Vec<(Span<u16>, Comment)>> = BTreeMap::new();
    for rectangle in covering {
        if let Some((protocol, ports)) = rectangle.service {
            by_protocol.entry(protocol).or_default().push((ports, rectangle.comment.clone()));
        }
    }
    for ranges in by_protocol.values_mut() {
        *ranges = unite_ports(std::mem::take(ranges));
    }
    Services::Some(by_protocol)
}

/// Ranges that touch or overlap become one, under the comment that sorts first.
fn unite_ports(mut ranges: Vec<(Span<u16>, Comment)>) -> Vec<(Span<u16>, Comment)> {
    ranges.sort();
    let mut united: Vec<(Span<u16>, Comment)> = Vec::new();
    for (range, comment) in ranges {
        match united.last_mut() {
            Some((previous, first)) if u32::from(range.first) <= u32::from(previous.last) + 1 => {
                previous.last = previous.last.max(range.last);
                if comment < *first {
                    *first = comment;
                }
            }
            Some(_) | None => united.push((range, comment)),
        }
    }
    united
}

fn pieces(span: Span<u128>, services: Services, v6: bool) -> Vec<Rectangle> {
    let peers = Span { first: address(span.first, v6), last: address(span.last, v6) };
    match services {
        Services::All(comment) => vec![Rectangle { peers, service: None, comment }],
        Services::Some(by_protocol) => by_protocol
            .into_iter()
            .flat_map(|(protocol, ranges)| {
                ranges.into_iter().map(move |(ports, comment)| Rectangle { peers, service: Some((protocol, ports)), comment })
            })
            .collect(),
    }
}

fn is_v6(rectangles: &[Rectangle]) -> bool {
    rectangles.first().is_some_and(|it| it.peers.first.is_ipv6())
}

fn axis_end(v6: bool) -> u128 {
    if v6 { u128::MAX } else { u128::from(u32::MAX) }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(small) if !v6 => IpAddr::V4(Ipv4Addr::from_bits(small)),
        Ok(_) | Err(_) => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rectangle(first: &str, last: &str, service: Option<(u8, u16, u16)>, comment: &str) -> Rectangle {
        Rectangle {
            peers: Span { first: first.parse().unwrap(), last: last.parse().unwrap() },
            service: service.map(|(protocol, first, last)| (protocol, Span { first, last })),
            comment: Comment::from(comment),
        }
    }

    fn shown(rectangles: &[Rectangle]) -> Vec<String> {
        disjoint(rectangles).iter().map(|it| format!("{:?} {:?} {}", it.peers, it.service, it.comment)).collect()
    }

    #[test]
    fn overlapping_rectangles_become_disjoint_pieces() {
        assert_eq!(
            shown(&[rectangle("10.0.0.0", "10.0.0.9", Some((6, 80, 90)), "a"), rectangle("10.0.0.5", "10.0.0.20", Some((6, 85, 99)), "b")]),
            ["10.0.0.0-10.0.0.4 Some((6, 80-90)) a", "10.0.0.5-10.0.0.9 Some((6, 80-99)) a", "10.0.0.10-10.0.0.20 Some((6, 85-99)) b"]
        );
    }

    #[test]
    fn everything_swallows_what_it_covers_and_equal_neighbours_join() {
        assert_eq!(
            shown(&[rectangle("0.0.0.0", "255.255.255.255", None, "all"), rectangle("10.0.0.0", "10.0.0.9", Some((17, 53, 53)), "dns"),]),
            ["0.0.0.0-255.255.255.255 None all"]
        );
        assert_eq!(
            shown(&[
                rectangle("::", "::ffff", Some((6, 1, 2)), "x"),
                rectangle("::1:0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Some((6, 1, 2)), "x")
            ]),
            ["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff Some((6, 1-2)) x"]
        );
    }

    #[test]
    fn what_both_cover_is_kept_and_nothing_else() {
        let one = [rectangle("10.0.0.0", "10.0.0.9", Some((6, 80, 90)), "a"), rectangle("10.0.0.20", "10.0.0.20", None, "b")];
        let other = [rectangle("10.0.0.5", "10.0.0.30", Some((6, 85, 99)), "c"), rectangle("10.0.0.8", "10.0.0.8", Some((17, 1, 2)), "d")];
        let both: Vec<String> = intersection(&one, &other).iter().map(|it| format!("{:?} {:?}", it.peers, it.service)).collect();
        assert_eq!(
            both,
            ["10.0.0.5-10.0.0.7 Some((6, 85-90))", "10.0.0.8 Some((6, 85-90))", "10.0.0.9 Some((6, 85-90))", "10.0.0.20 Some((6, 85-99))"]
        );
        assert!(intersection(&one, &[]).is_empty());
    }

    #[test]
    fn ten_thousand_blocks_are_one_pass() {
        let block = |number: u32| Rectangle {
            peers: Span { first: Ipv4Addr::from_bits(number * 512).into(), last: Ipv4Addr::from_bits(number * 512 + 255).into() },
            service: Some((6, Span { first: 80, last: 90 })),
            comment: Comment::from("block"),
        };
        let blocks: Vec<Rectangle> = (0..10_000).map(block).collect();
        let began = std::time::Instant::now();
        assert_eq!(disjoint(&blocks), blocks);
        // Milliseconds alone; each block against each other would be a minute.
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }
}
