//! Published ports over which outsiders get past policy: an IPv4 container's port, published on IPv6 too. No destination NAT leads from
//! one family to the other, so docker-proxy relays, and the container sees its own node. `hostAccess: Judge` closes that.

use crate::local::Warning;
use crate::session::{Committed, NodeStatus};
use firebreak_policy::model::{Family, HostAccess, Protocol};
use firebreak_policy::node_state::{LocalEndpoint, NodeState};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Of the warning.
const CODE: &str = "RelayedPublishedPort";
/// How many ports are named.
const NAMED: usize = 5;

/// Ports on which a process of the node takes connections or datagrams over IPv6.
type Listening = BTreeSet<(Protocol, u16)>;

/// Looks again, because docker-proxy begins to listen a moment after its container is known.
const LOOK: Duration = Duration::from_secs(5);

/// Keeps the node's warning right until `shutdown`.
pub async fn watch(mut committed: watch::Receiver<Option<Arc<Committed>>>, status: watch::Sender<NodeStatus>, shutdown: CancellationToken) {
    loop {
        let enforced = committed.borrow_and_update().clone();
        let open = enforced.map(|enforced| open_ports(&enforced.state)).unwrap_or_default();
        let found = if open.is_empty() { None } else { warning(&open, &listening_or_all(&open)) };
        status.send_if_modified(|status| {
            let before = status.warnings.clone();
            status.warnings.retain(|warning| warning.code != CODE);
            status.warnings.extend(found);
            status.warnings != before
        });
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = committed.changed() => if changed.is_err() {
                shutdown.cancelled().await;
                return;
            },
            () = tokio::time::sleep(LOOK), if !open.is_empty() => {}
        }
    }
}

/// Where it cannot be read who listens, the warning is given for every port that may be open.
fn listening_or_all(open: &OpenPorts) -> Listening {
    listening().unwrap_or_else(|error| {
        tracing::debug!(reason = %error, "who listens over IPv6 cannot be read");
        open.keys().copied().collect()
    })
}

/// By protocol and port of the node, the workloads to which a relay would lead IPv6 clients past policy.
type OpenPorts = BTreeMap<(Protocol, u16), BTreeSet<String>>;

fn open_ports(state: &NodeState) -> OpenPorts {
    let resolved = firebreak_policy::resolved(state);
    let state = resolved.as_ref().unwrap_or(state);
    let on_ipv6 = |host: Option<IpAddr>| host.is_none_or(|host| Family::of(host) == Family::V6);
    let mut open = OpenPorts::new();
    for endpoint in state.endpoints.values().filter(|endpoint| lets_the_node_in(state, endpoint) && is_ipv4_only(endpoint)) {
        for port in endpoint.published_ports.iter().filter(|port| on_ipv6(port.host_address)) {
            let workload = format!("{}/{}", endpoint.namespace, endpoint.name);
            open.entry((port.protocol, port.host_port)).or_default().insert(workload);
        }
    }
    open
}

/// Names the ports on which somebody relays; an engine without docker-proxy does not.
fn warning(open: &OpenPorts, listening: &Listening) -> Option<Warning> {
    let relayed = open.iter().filter(|(port, _)| listening.contains(port));
    let named: Vec<String> =
        relayed.flat_map(|((_, port), workloads)| workloads.iter().map(move |it| format!("{it} (port {port})"))).collect();
    if named.is_empty() {
        return None;
    }
    let more = if named.len() > NAMED { format!(" and {} more", named.len() - NAMED) } else { String::new() };
    let message = format!(
        "docker-proxy relays IPv6 clients to isolated workloads as this node, which their policies let in: {}{more}. Say hostAccess: Judge in the \
         policy, publish the port on an IPv4 address, or run the engine with --userland-proxy=false",
        named[..named.len().min(NAMED)].join(", ")
    );
    Some(Warning::new(CODE, message))
}

fn lets_the_node_in(state: &NodeState, endpoint: &LocalEndpoint) -> bool {
    let ingress = state.segments.get(&endpoint.segment).and_then(|segment| segment.rules.ingress.as_ref());
    ingress.is_some_and(|isolation| match isolation.host_access {
        HostAccess::Allow => true,
        HostAccess::Judge => false,
    })
}

fn is_ipv4_only(endpoint: &LocalEndpoint) -> bool {
    endpoint.addresses.iter().all(|address| Family::of(*address) == Family::V4 || crate::local::is_link_local(*address))
}

/// Reads who listens over IPv6 in this process's network namespace.
fn listening() -> std::io::Result<Listening> {
    let mut ports = Listening::new();
    // TCP_LISTEN is 10, and an unconnected UDP socket is in TCP_CLOSE, 7 (net/tcp_states.h).
    for (table, protocol, state) in [("tcp6", Protocol::TCP, "0A"), ("udp6", Protocol::UDP, "07")] {
        ports.extend(bound(&std::fs::read_to_string(format!("/proc/self/net/{table}"))?, state).map(|port| (protocol, port)));
    }
    Ok(ports)
}

/// The local ports of the sockets in this state: `sl local_address:port remote_address:port st ...`, in hexadecimal.
fn bound<'a>(table: &'a str, state: &'a str) -> impl Iterator<Item = u16> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let local = words.next()?;
        (words.nth(1)? == state).then_some(())?;
        u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
    })
}

#[cfg(test)]
#[path = "relayed_tests.rs"]
mod tests;
