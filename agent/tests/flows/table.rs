//! A table with the sets, counters and accounting rules of the product's, and two judged addresses in place of its policy.

/// What is judged as ingress.
pub const IN4: &str = "10.77.0.2";
pub const IN6: &str = "fd77::2";
/// What is judged as egress: packets to this destination, as if their source were a workload.
pub const OUT4: &str = "10.77.0.3";
pub const OUT6: &str = "fd77::3";

/// One transaction for `nft -f`.
/// At most `uncounted` packets a second that found no room are logged.
pub fn text(size: u32, timeout: &str, uncounted: u32) -> String {
    let flags = format!("size {size}; flags dynamic,timeout; timeout {timeout}; counter;");
    let mut body = String::new();
    for direction in ["in", "out"] {
        body += &format!("counter denied_{direction} {{ }}\ncounter denied_overflow_{direction} {{ }}\n");
        for (digit, address, icmp) in [("4", "ipv4_addr", "icmp"), ("6", "ipv6_addr", "icmpv6")] {
            let name = format!("denied_{direction}{digit}");
            body += &format!("set {name} {{ type {address} . {address} . inet_proto . inet_service; {flags} }}\n");
            body += &format!("set {name}_icmp {{ type {address} . {address} . {icmp}_type . {icmp}_code; {flags} }}\n");
            body += &format!("set {name}_proto {{ type {address} . {address} . inet_proto; {flags} }}\n");
            body += &chains(direction, digit, icmp, &name, uncounted);
        }
    }
    body += &format!(
        "chain output {{ type filter hook output priority filter; policy accept;
            ip daddr {IN4} goto deny_in4
            ip6 daddr {IN6} goto deny_in6
            ip daddr {OUT4} goto deny_out4
            ip6 daddr {OUT6} goto deny_out6
        }}\n"
    );
    format!("table inet firebreak {{\n{body}}}\n")
}

fn chains(direction: &str, digit: &str, icmp: &str, set: &str, uncounted: u32) -> String {
    let (ip, icmp_protocol) = if digit == "4" { ("ip", "icmp") } else { ("ip6", "ipv6-icmp") };
    let chain = format!("deny_{direction}{digit}");
    let ends = format!("{ip} saddr . {ip} daddr");
    let account = |set: String, key: String| {
        format!(
            "{key} @{set} drop
            update @{set} {{ {key} }} log prefix \"firebreak deny {direction}\" group 5 snaplen 128 drop
            counter name denied_overflow_{direction}
            limit rate {uncounted}/second burst {uncounted} packets log prefix \"firebreak deny {direction} uncounted\" group 5 snaplen 128
            drop\n"
        )
    };
    format!(
        "chain {chain}_ports {{ {} }}
        chain {chain}_types {{ {} }}
        chain {chain} {{
            counter name denied_{direction}
            meta l4proto vmap {{ tcp : goto {chain}_ports, udp : goto {chain}_ports, {icmp_protocol} : goto {chain}_types }}
            {}
        }}\n",
        account(set.to_owned(), format!("{ends} . meta l4proto . th dport")),
        account(format!("{set}_icmp"), format!("{ends} . {icmp} type . {icmp} code")),
        account(format!("{set}_proto"), format!("{ends} . meta l4proto")),
    )
}
