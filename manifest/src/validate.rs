//! The syntax of names, labels, ports and addresses, as `k8s.io/apimachinery/pkg/util/validation` defines them.
//! Each function says in words what is wrong and what is taken.

use firebreak_policy::model::Protocol;
use ipnet::IpNet;
use std::net::IpAddr;

/// `IsDNS1123Subdomain`: the names of most objects.
pub(crate) fn dns_subdomain(text: &str) -> Result<(), String> {
    let right = !text.is_empty() && text.len() <= 253 && text.split('.').all(is_label_text);
    right.then_some(()).ok_or_else(|| {
        format!(
            "{text:?} is not a DNS-1123 subdomain: at most 253 of a-z, 0-9, - and ., each part beginning and ending with a letter or digit"
        )
    })
}

/// `IsDNS1123Label`: the names of namespaces.
pub(crate) fn dns_label(text: &str) -> Result<(), String> {
    let right = text.len() <= 63 && is_label_text(text);
    right.then_some(()).ok_or_else(|| {
        format!("{text:?} is not a DNS-1123 label: at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit")
    })
}

fn is_label_text(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = text.bytes().next().is_some_and(alphanumeric) && text.bytes().next_back().is_some_and(alphanumeric);
    ends && text.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
}

/// `IsQualifiedName`: label and annotation keys.
pub(crate) fn qualified_name(text: &str) -> Result<(), String> {
    let name = match text.split_once('/') {
        None => text,
        Some((prefix, name)) => {
            dns_subdomain(prefix).map_err(|reason| format!("the prefix of the key {text:?} is wrong: {reason}"))?;
            name
        }
    };
    let right = !name.is_empty() && name.len() <= 63 && is_label_value_text(name);
    right.then_some(()).ok_or_else(|| {
        format!("{text:?} is not a label key: an optional DNS prefix and /, then at most 63 of A-Z, a-z, 0-9, -, _ and ., beginning and ending with a letter or digit")
    })
}

/// `IsValidLabelValue`; an empty value is a value.
pub(crate) fn label_value(text: &str) -> Result<(), String> {
    let right = text.is_empty() || (text.len() <= 63 && is_label_value_text(text));
    right.then_some(()).ok_or_else(|| {
        format!(
            "{text:?} is not a label value: empty, or at most 63 of A-Z, a-z, 0-9, -, _ and ., beginning and ending with a letter or digit"
        )
    })
}

fn is_label_value_text(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_alphanumeric();
    let ends = text.bytes().next().is_some_and(alphanumeric) && text.bytes().next_back().is_some_and(alphanumeric);
    ends && text.bytes().all(|byte| alphanumeric(byte) || matches!(byte, b'-' | b'_' | b'.'))
}

/// `IsValidPortName` (IANA_SVC_NAME, RFC 6335 section 5.1, lower case).
pub(crate) fn port_name(text: &str) -> Result<(), String> {
    let allowed = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let reason = if text.is_empty() || text.len() > 15 {
        "has to have 1 to 15 characters"
    } else if !allowed {
        "may have only a-z, 0-9 and -"
    } else if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        "has to have at least one letter; write a number without quotes"
    } else if text.contains("--") {
        "may not have two hyphens in a row"
    } else if text.starts_with('-') || text.ends_with('-') {
        "may not begin or end with a hyphen"
    } else {
        return Ok(());
    };
    Err(format!("the port name {text:?} {reason}"))
}

/// `IsValidPortNum`.
pub(crate) fn port_number(number: i64) -> Result<u16, String> {
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| format!("{number} is not a port; use 1 to 65535"))
}

/// The protocols of the Kubernetes API; exact spelling.
pub(crate) fn kubernetes_protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "TCP" => Ok(Protocol::TCP),
        "UDP" => Ok(Protocol::UDP),
        "SCTP" => Ok(Protocol::SCTP),
        _ => Err(format!("{text:?} is not known; use one of TCP, UDP, SCTP")),
    }
}

/// One address. Leading zeros, zones and IPv4-mapped IPv6 are refused: they mean different things to different readers.
pub(crate) fn address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address; write it like 10.0.0.7 or 2001:db8::7"))?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("{text} is an IPv4 address written as IPv6; write {}", address.to_canonical()))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(address),
    }
}

/// One block, host bits cleared (SEMANTICS 9: a CIDR may carry them).
pub(crate) fn cidr(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{text:?} is not a CIDR block; write it like 10.0.0.0/8 or 2001:db8::/32");
    let Some((ip, length)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => format!("{text:?} has no prefix length; for this one address write {ip}/32"),
            Ok(IpAddr::V6(ip)) => format!("{text:?} has no prefix length; for this one address write {ip}/128"),
            Err(_) => wrong(),
        });
    };
    let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
    if let IpAddr::V6(v6) = ip
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(format!("{text:?} is an IPv4 block written as IPv6; write it as IPv4"));
    }
    let plain = length.bytes().all(|byte| byte.is_ascii_digit()) && (length.len() == 1 || !length.starts_with('0'));
    let length: u8 = length.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    IpNet::new(ip, length).map(|net| net.trunc()).map_err(|_| wrong())
}

/// One `except` of a block: strictly inside it, as `ValidateIPBlock` asks.
pub(crate) fn except(block: &IpNet, text: &str) -> Result<IpNet, String> {
    let except = cidr(text)?;
    let inside = block.contains(&except) && except.prefix_len() > block.prefix_len();
    inside
        .then_some(except)
        .ok_or_else(|| format!("{text:?} is not a strict part of the block {block}; an except lies inside its block and is smaller"))
}

/// `dev_valid_name` of the kernel (net/core/dev.c).
pub(crate) fn interface_name(text: &str) -> Result<(), String> {
    let right = !text.is_empty()
        && text.len() <= 15
        && text != "."
        && text != ".."
        && !text.bytes().any(|byte| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte.is_ascii_control());
    right.then_some(()).ok_or_else(|| format!("{text:?} is not an interface name: 1 to 15 bytes without /, : and white space"))
}

/// A file name in /run/netns.
pub(crate) fn network_namespace(text: &str) -> Result<(), String> {
    let right = !text.is_empty()
        && text.len() <= 255
        && text != "."
        && text != ".."
        && !text.bytes().any(|byte| byte == b'/' || byte.is_ascii_control());
    right
        .then_some(())
        .ok_or_else(|| format!("{text:?} is not the name of a network namespace: a file name in /run/netns, as `ip netns` lists them"))
}
