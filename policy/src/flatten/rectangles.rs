//! Makes overlapping address and port ranges into disjoint ones: interval sets of the kernel refuse elements that overlap.

use crate::kernel_sets::{Comment, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses on a range of services: ports of one protocol, or codes of one ICMP type.
#[derive(Clone, Debug)]
pub(crate) struct Rectangle {
    pub(crate) peers: Span<IpAddr>,
    /// `None` is every service there is.
    pub(crate) service: Option<(u8, Span<u16>)>,
    pub(crate) comment: Comment,
}

/// A disjoint piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) peers: Span<IpAddr>,
    pub(crate) service: Option<(u8, Span<u16>)>,
    pub(crate) comment: Comment,
}

/// What one stretch of addresses may be reached on.
#[derive(Clone, PartialEq, Eq)]
enum Services {
    All(Comment),
    Some(BTreeMap<u8, Vec<(Span<u16>, Comment)>>),
}

/// The disjoint pieces that cover exactly what the rectangles cover, all of one family. The address axis is cut at every boundary, services
/// are united per stretch, and neighbours that allow the same are joined again.
pub(crate) fn disjoint(rectangles: &[Rectangle]) -> Vec<Piece> {
    let mut stretches: Vec<(Span<u128>, Services)> = Vec::new();
    let mut v6 = false;
    let mut boundaries = BTreeSet::new();
    for rectangle in rectangles {
        v6 |= rectangle.peers.first.is_ipv6();
        boundaries.insert(number(rectangle.peers.first));
        // The end of the axis has no successor and needs no cut.
        boundaries.extend(number(rectangle.peers.last).checked_add(1));
    }
    let starts: Vec<u128> = boundaries.into_iter().collect();
    for (position, start) in starts.iter().enumerate() {
        let last = starts.get(position + 1).map_or(axis_end(v6), |next| next - 1);
        let covering: Vec<&Rectangle> =
            rectangles.iter().filter(|it| number(it.peers.first) <= *start && number(it.peers.last) >= last).collect();
        if covering.is_empty() {
            continue;
        }
        let services = unite(&covering);
        match stretches.last_mut() {
            Some((span, previous)) if span.last.checked_add(1) == Some(*start) && *previous == services => span.last = last,
            Some(_) | None => stretches.push((Span { first: *start, last }, services)),
        }
    }
    stretches.into_iter().flat_map(|(span, services)| pieces(span, services, v6)).collect()
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

fn pieces(span: Span<u128>, services: Services, v6: bool) -> Vec<Piece> {
    let peers = Span { first: address(span.first, v6), last: address(span.last, v6) };
    match services {
        Services::All(comment) => vec![Piece { peers, service: None, comment }],
        Services::Some(by_protocol) => by_protocol
            .into_iter()
            .flat_map(|(protocol, ranges)| {
                ranges.into_iter().map(move |(ports, comment)| Piece { peers, service: Some((protocol, ports)), comment })
            })
            .collect(),
    }
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
}
