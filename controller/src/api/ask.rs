//! ListWorkloads, ListNodes, Explain: what the hub knows.

use super::OperatorApi;
use super::live::{EndName, LiveError, NodeQuery, Question, WorkloadQuery};
use super::page;
use super::read::{namespace_filter, selector};
use super::refusal::invalid;
use crate::auth::{Act, Principal, Target, authorize};
use firebreak_policy::model::{NamespaceName, NodeName, Transport, WorkloadId};
use firebreak_proto::{convert, v1};
use prost::Message;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tonic::Status;

/// Where the next page of workloads begins, and of which list.
#[derive(Debug, Serialize, Deserialize)]
struct WorkloadToken {
    namespace: String,
    node: String,
    selector: String,
    after: (String, String),
}

/// Where the next page of nodes begins.
#[derive(Debug, Serialize, Deserialize)]
struct NodeToken {
    name: String,
    after: String,
}

pub(super) fn of_live(error: LiveError) -> Status {
    match error {
        LiveError::NotFound(message) => Status::not_found(message),
        LiveError::Unclear { field, reason } => invalid(field, reason),
        LiveError::NotReady(message) => Status::failed_precondition(message),
        LiveError::Unavailable(message) => Status::unavailable(message),
    }
}

/// Bytes of a page's items: a message has 4 MiB, and one item more is always far less than the rest of that.
const ITEM_BYTES: usize = 3 << 20;

/// As many of the items as make a page, and whether there were more.
fn cut<T: Message>(mut items: Vec<T>, size: usize) -> (Vec<T>, bool) {
    let all = items.len();
    let mut bytes = 0;
    let fit = items.iter().take_while(|item| {
        let room = bytes < ITEM_BYTES;
        bytes += item.encoded_len();
        room
    });
    let page = fit.count().min(size);
    items.truncate(page);
    (items, all > page)
}

impl OperatorApi {
    pub(super) async fn list_live_workloads(
        &self,
        principal: Principal,
        request: v1::ListWorkloadsRequest,
    ) -> Result<v1::ListWorkloadsResponse, Status> {
        authorize(&principal, Act::Read, Target::Everything)?;
        let v1::ListWorkloadsRequest { namespace, node, label_selector, page_size, page_token } = request;
        let size = usize::try_from(page::size(page_size, 500)?).unwrap_or(usize::MAX);
        let mut query = WorkloadQuery {
            namespace: namespace_filter(&namespace),
            node: (!node.is_empty()).then(|| NodeName::new(&node)),
            selector: selector(&label_selector)?,
            after: None,
            limit: size + 1,
        };
        if let Some(token) = page::read_token::<WorkloadToken>(&page_token)? {
            let WorkloadToken { namespace: token_namespace, node: token_node, selector: token_selector, after: (on, container) } = token;
            if (&token_namespace, &token_node, &token_selector) != (&namespace, &node, &label_selector) {
                return Err(page::foreign_token());
            }
            query.after = Some(WorkloadId::new(on, container));
        }
        let (workloads, more) = cut(self.live.workloads(query).await.map_err(of_live)?, size);
        let last = workloads.last().and_then(|status| status.workload.as_ref()).and_then(|workload| workload.id.as_ref());
        let next_page_token = match last {
            Some(id) if more => {
                let after = (id.node.clone(), id.container.clone());
                page::write_token(&WorkloadToken { namespace, node, selector: label_selector, after })
            }
            Some(_) | None => String::new(),
        };
        Ok(v1::ListWorkloadsResponse { workloads, next_page_token })
    }

    pub(super) async fn list_live_nodes(
        &self,
        principal: Principal,
        request: v1::ListNodesRequest,
    ) -> Result<v1::ListNodesResponse, Status> {
        authorize(&principal, Act::Read, Target::Everything)?;
        let v1::ListNodesRequest { name, page_size, page_token } = request;
        let size = usize::try_from(page::size(page_size, 500)?).unwrap_or(usize::MAX);
        let mut query = NodeQuery { name: (!name.is_empty()).then(|| NodeName::new(&name)), after: None, limit: size + 1 };
        if let Some(NodeToken { name: token_name, after }) = page::read_token::<NodeToken>(&page_token)? {
            if token_name != name {
                return Err(page::foreign_token());
            }
            query.after = Some(NodeName::from(after));
        }
        let (nodes, more) = cut(self.live.nodes(query).await.map_err(of_live)?, size);
        let next_page_token = match nodes.last() {
            Some(node) if more => page::write_token(&NodeToken { name, after: node.name.clone() }),
            Some(_) | None => String::new(),
        };
        Ok(v1::ListNodesResponse { nodes, next_page_token })
    }

    pub(super) async fn explain_flow(&self, principal: Principal, request: v1::ExplainRequest) -> Result<v1::ExplainResponse, Status> {
        authorize(&principal, Act::Explain, Target::Everything)?;
        let v1::ExplainRequest { from, to, transport, namespace } = request;
        let namespace = NamespaceName::new(if namespace.is_empty() { "default" } else { &namespace });
        let transport = transport.ok_or_else(|| invalid("transport", "is not there; it says what the flow carries"))?;
        let transport = read_transport(transport)?;
        let question = Question { from: end("from", &from, &namespace)?, to: end("to", &to, &namespace)?, transport };
        self.live.explain(question).await.map_err(of_live)
    }
}

/// Reads what the flow carries: a port with a protocol that has ports, type and code with ICMP, neither with any other.
#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
fn read_transport(wire: v1::Transport) -> Result<Transport, Status> {
    let v1::Transport { protocol, port, icmp_type, icmp_code } = wire;
    let protocol = convert::protocol_from_wire(protocol, "transport.protocol").map_err(|refusal| invalid(refusal.field, refusal.reason))?;
    let byte = |field: &str, number: u32| u8::try_from(number).map_err(|_| invalid(field, format!("{number} is over 255")));
    match (protocol.has_ports(), protocol.icmp_family(), port, icmp_type, icmp_code) {
        (true, _, Some(port), None, None) => convert::port_from_wire(port, "transport.port")
            .map(|port| Transport::Port(protocol, port))
            .map_err(|refusal| invalid(refusal.field, refusal.reason)),
        (true, _, None, None, None) => Err(invalid("transport.port", format!("is not there; {protocol} is judged by port"))),
        (false, Some(family), None, Some(kind), Some(code)) => {
            let (kind, code) = (byte("transport.icmp_type", kind)?, byte("transport.icmp_code", code)?);
            Ok(Transport::Icmp { family, kind, code })
        }
        (false, Some(family), None, None, None) => Ok(Transport::ping(family)),
        (false, Some(_), None, _, _) => {
            Err(invalid("transport", "has only one of icmp_type and icmp_code; give both, or none for an echo request"))
        }
        (false, None, None, None, None) => Ok(Transport::Other(protocol)),
        (false, _, Some(_), _, _) => Err(invalid("transport.port", format!("is given, but {protocol} has no ports"))),
        (_, _, _, _, _) => Err(invalid("transport.icmp_type", format!("is given, but {protocol} is not ICMP"))),
    }
}

/// Reads `name`, `namespace/name`, `name@node`, `namespace/name@node` or an address.
#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
fn end(field: &'static str, text: &str, namespace: &NamespaceName) -> Result<EndName, Status> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return match address {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(invalid(field, format!("{text} is an IPv4 address written as IPv6"))),
            IpAddr::V4(_) | IpAddr::V6(_) => Ok(EndName::Address(address)),
        };
    }
    let (who, node) = match text.split_once('@') {
        Some((who, node)) => (who, Some(node)),
        None => (text, None),
    };
    let (namespace, name) = match who.split_once('/') {
        Some((namespace, name)) => (NamespaceName::new(namespace), name),
        None => (namespace.clone(), who),
    };
    let nameless = name.is_empty() || name.contains('/') || namespace.as_str().is_empty() || node.is_some_and(str::is_empty);
    if nameless || text.chars().any(|letter| letter.is_whitespace() || letter.is_control()) {
        return Err(invalid(field, format!("{text:?} is neither `name`, `namespace/name`, `name@node` nor an address")));
    }
    Ok(EndName::Workload { namespace, name: name.to_owned(), node: node.map(NodeName::new) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_page_ends_at_its_size_or_when_a_message_is_full() {
        let node = |bytes: usize| v1::NodeStatus { failure: "x".repeat(bytes), ..v1::NodeStatus::default() };
        for (count, bytes, size, expected) in
            [(0, 0, 5, (0, false)), (5, 10, 5, (5, false)), (6, 10, 5, (5, true)), (10, 1 << 20, 10, (3, true))]
        {
            let (page, more) = cut(vec![node(bytes); count], size);
            assert_eq!((page.len(), more), expected);
        }
    }

    #[test]
    fn an_end_is_a_workload_or_an_address_and_nothing_in_between() {
        let workload = |namespace: &str, name: &str, node: Option<&str>| {
            Some(EndName::Workload { namespace: NamespaceName::new(namespace), name: name.to_owned(), node: node.map(NodeName::new) })
        };
        let cases = [
            ("web", workload("shop", "web", None)),
            ("team/web", workload("team", "web", None)),
            ("web@n1", workload("shop", "web", Some("n1"))),
            ("team/web@n1", workload("team", "web", Some("n1"))),
            ("10.0.0.1", Some(EndName::Address("10.0.0.1".parse().unwrap()))),
            ("fd00::1", Some(EndName::Address("fd00::1".parse().unwrap()))),
            ("::ffff:10.0.0.1", None),
            ("", None),
            ("/web", None),
            ("team/", None),
            ("a/b/c", None),
            ("web@", None),
            ("@n1", None),
            ("we b", None),
        ];
        for (text, expected) in cases {
            assert_eq!(end("from", text, &NamespaceName::new("shop")).ok(), expected, "{text:?}");
        }
    }
}
