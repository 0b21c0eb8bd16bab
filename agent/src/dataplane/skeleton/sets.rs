//! The sets of the tables: names, types, flags. Declared with types of our own: crate `nftables` knows neither `iface_index` nor
//! the ICMP types.

use crate::dataplane::config::DataplaneConfig;
use crate::dataplane::names::{
    BoundForm, DIRECTIONS, DeniedKey, DeniedSet, FAMILIES, GuardReason, Layer, SET_GUARD_OUT, SET_KNOWN_IF, SET_MIDSTREAM, SET_OBSERVE,
    SetRef, TABLE, opened, revoked, shield,
};
use firebreak_policy::kernel_sets::{GroupForm, Shape};
use firebreak_policy::model::Family;
use serde::{Serialize, Serializer};

/// A set as `nft -j` takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct SetSpec {
    pub(super) family: &'static str,
    pub(super) table: &'static str,
    pub(super) name: String,
    #[serde(rename = "type", serialize_with = "one_or_many")]
    pub(super) fields: Vec<&'static str>,
    /// What its elements lead to, when it is a map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) map: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) flags: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u32>,
    /// The statements that each element carries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) stmt: Vec<Stateful>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) elem: Vec<Timed>,
    /// What its keys are made of, for keys of raw bytes, which nft 1.0.6 takes in its text and not in JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) type_of: Option<&'static str>,
}

/// `counter`, in a set's declaration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stateful {
    /// Each element counts the packets that hit it.
    Counter(Option<()>),
}

/// An element that ends by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Timed {
    elem: TimedElement,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct TimedElement {
    val: &'static str,
    timeout: u64,
}

impl SetSpec {
    fn plain(layer: Layer, name: String, fields: Vec<&'static str>) -> Self {
        Self {
            family: layer.as_str(),
            table: TABLE,
            name,
            fields,
            map: None,
            flags: Vec::new(),
            timeout: None,
            size: None,
            stmt: Vec::new(),
            elem: Vec::new(),
            type_of: None,
        }
    }
}

/// The sets of a table whose elements the agent writes, and whose form therefore stands for as long as they hold something.
///
/// ```text
/// set in4_isolated      { type ipv4_addr; }
/// set in4_peer_port     { type ipv4_addr . ipv4_addr . inet_proto . inet_service; }
/// set in4_peer          { type ipv4_addr . ipv4_addr; }
/// set in4_peer_protocol { type ipv4_addr . ipv4_addr . inet_proto; }
/// set in4_port          { type ipv4_addr . inet_proto . inet_service; }
/// set in4_range         { type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags interval; }
/// set in4_peer_icmp     { type ipv4_addr . ipv4_addr . icmp_type . icmp_code; }
/// set in4_icmp_range    { type ipv4_addr . ipv4_addr . icmp_type . icmp_code; flags interval; }
/// set in4_reject        { type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags interval; }
/// set in4_reject_icmp   { type ipv4_addr . ipv4_addr . icmp_type . icmp_code; flags interval; }
/// map in4_segment       { type ipv4_addr : verdict; }
/// map in4_segment_answers { type ipv4_addr : verdict; }
/// set published4        { type ipv4_addr . inet_proto . inet_service; }
/// set published_allow4  { type ipv4_addr . ipv4_addr . inet_proto . inet_service; }
/// ```
pub(super) fn written(layer: Layer) -> Vec<SetSpec> {
    SetRef::all().into_iter().filter(|set| set.layer() == layer).map(|set| written_set(layer, set)).collect()
}

/// Interfaces that may be known at once. A size that is said beforehand makes the kernel take a table that does not grow: for keys of 4 bytes a
/// lookup costs a third less, and each packet meets two to four. The table takes 128 KiB.
const KNOWN_SIZE: u32 = 8192;

pub(super) fn written_set(layer: Layer, set: SetRef) -> SetSpec {
    match set {
        SetRef::KnownInterfaces(_) => {
            SetSpec { size: Some(KNOWN_SIZE), ..SetSpec::plain(layer, SET_KNOWN_IF.to_owned(), vec!["iface_index"]) }
        }
        SetRef::Workloads(family) => SetSpec::plain(layer, set.name(), vec![address(family)]),
        SetRef::Bound(layer, form) => bound_set(layer, form),
        SetRef::Segments(_, _, family) => SetSpec { map: Some("verdict"), ..SetSpec::plain(layer, set.name(), vec![address(family)]) },
        // Made when a group needs one.
        SetRef::Group(group) => {
            let address = address(group.family);
            match group.form {
                GroupForm::Addresses => SetSpec::plain(layer, set.name(), vec![address]),
                GroupForm::Services => SetSpec::plain(layer, set.name(), vec![address, "inet_proto", "inet_service"]),
                GroupForm::Blocks => SetSpec { flags: vec!["interval"], ..SetSpec::plain(layer, set.name(), vec![address]) },
            }
        }
        SetRef::Policy(id) => {
            let local = address(id.family);
            let (fields, interval) = match id.shape {
                Shape::Isolated | Shape::HostJudged => (vec![local], false),
                Shape::Peer => (vec![local, local], false),
                Shape::PeerProtocol => (vec![local, local, "inet_proto"], false),
                Shape::PeerPort | Shape::PublishedAllow => (vec![local, local, "inet_proto", "inet_service"], false),
                Shape::Port | Shape::Published => (vec![local, "inet_proto", "inet_service"], false),
                Shape::Range | Shape::Reject => (vec![local, local, "inet_proto", "inet_service"], true),
                Shape::PeerIcmp => ([vec![local, local], icmp(id.family)].concat(), false),
                Shape::IcmpRange | Shape::RejectIcmp => ([vec![local, local], icmp(id.family)].concat(), true),
            };
            let mut spec = SetSpec::plain(layer, set.name(), fields);
            if interval {
                spec.flags.push("interval");
            }
            spec
        }
    }
}

/// Raw bytes of a packet, which nft has as `integer` of some length; these names are ours.
pub(in crate::dataplane) const INTEGER_32: &str = "integer 32";
pub(in crate::dataplane) const INTEGER_48: &str = "integer 48";
pub(in crate::dataplane) const INTEGER_128: &str = "integer 128";

/// What guards bind interfaces to.
///
/// ```text
/// set bound4        { type iface_index . ether_addr . ipv4_addr; }
/// set bound_mac     { type iface_index . ether_addr; }
/// set bound_quoted4 { typeof iif . @th,192,32; }        # the destination in the packet that an ICMP error quotes
/// set bound_target6 { typeof iif . @th,64,128; }        # nft 1.0.6 has no icmpv6 taddr
/// set bound_chaddr  { typeof iif . @th,288,48; }        # RFC 2131: op .. giaddr are 28 bytes behind the UDP header
/// ```
fn bound_set(layer: Layer, form: BoundForm) -> SetSpec {
    let (fields, type_of) = match form {
        BoundForm::Guarded => (vec!["iface_index"], None),
        BoundForm::Mac => (vec!["iface_index", "ether_addr"], None),
        BoundForm::Address(family) => (vec!["iface_index", "ether_addr", address(family)], None),
        BoundForm::Ip(family) => (vec!["iface_index", address(family)], None),
        BoundForm::Chaddr => (vec!["iface_index", INTEGER_48], Some("iif . @th,288,48")),
        BoundForm::Quoted4 => (vec!["iface_index", INTEGER_32], Some("iif . @th,192,32")),
        BoundForm::Target6 => (vec!["iface_index", INTEGER_128], Some("iif . @th,64,128")),
    };
    SetSpec { type_of, ..SetSpec::plain(layer, form.name().to_owned(), fields) }
}

/// The sets of frames that guards refused; the kernel writes them.
///
/// ```text
/// set guard_in_arp {
///     type iface_index . ether_type
///     size 65536; flags dynamic,timeout; timeout 5m; counter
/// }
/// ```
pub(super) fn refused(layer: Layer, config: &DataplaneConfig) -> Vec<SetSpec> {
    let names = match layer {
        Layer::Inet | Layer::Arp => Vec::new(),
        Layer::Bridge => vec![SET_GUARD_OUT.to_owned()],
        Layer::Netdev => GuardReason::ALL.map(GuardReason::set).to_vec(),
    };
    names
        .into_iter()
        .map(|name| SetSpec {
            flags: vec!["timeout"],
            timeout: Some(config.denied_timeout.as_secs().max(1)),
            size: Some(config.denied_size),
            stmt: vec![Stateful::Counter(None)],
            ..SetSpec::plain(layer, name, vec!["iface_index", "ether_type"])
        })
        .collect()
}

/// The sets that the kernel itself writes; they may be made anew at any time.
///
/// ```text
/// set denied_in4 {
///     type ipv4_addr . ipv4_addr . inet_proto . inet_service
///     size 65536; flags dynamic,timeout; timeout 5m; counter
/// }
/// ```
pub(super) fn counted(config: &DataplaneConfig) -> Vec<SetSpec> {
    DeniedSet::all()
        .into_iter()
        .map(|set| {
            let end = address(set.family);
            let fields = match set.key {
                DeniedKey::Port => vec![end, end, "inet_proto", "inet_service"],
                DeniedKey::Icmp => [vec![end, end], icmp(set.family)].concat(),
                DeniedKey::Protocol => vec![end, end, "inet_proto"],
            };
            SetSpec {
                flags: vec!["timeout"],
                timeout: Some(config.denied_timeout.as_secs().max(1)),
                size: Some(config.denied_size),
                stmt: vec![Stateful::Counter(None)],
                ..SetSpec::plain(Layer::Inet, set.name(), fields)
            }
        })
        .collect()
}

/// `set midstream_allowed { type inet_proto; flags timeout; elements = { tcp timeout 2m } }`; at a first install with its element.
pub(super) fn midstream(config: &DataplaneConfig, first_install: bool) -> SetSpec {
    let grace = config.midstream_grace.as_secs();
    let elem = if first_install && grace > 0 { vec![Timed { elem: TimedElement { val: "tcp", timeout: grace } }] } else { Vec::new() };
    SetSpec { flags: vec!["timeout"], elem, ..SetSpec::plain(Layer::Inet, SET_MIDSTREAM.to_owned(), vec!["inet_proto"]) }
}

/// For how long an end of a cut connection must be silent until what it sends is new: longer than conntrack keeps a UDP stream (120 s).
const REVOKED_SECONDS: u64 = 300;
/// Cut connections that are kept in mind so; the label of their entries holds without it.
const REVOKED_SIZE: u32 = 131_072;

/// The sets that the kernel itself writes and that must not be made anew.
///
/// ```text
/// set revoked4 {
///     type ipv4_addr . inet_service . ipv4_addr . inet_service . inet_proto
///     size 131072; flags dynamic,timeout; timeout 5m
/// }
/// ```
pub(super) fn revoked_sets() -> Vec<SetSpec> {
    let set = |family| {
        let end = address(family);
        SetSpec {
            flags: vec!["timeout"],
            timeout: Some(REVOKED_SECONDS),
            size: Some(REVOKED_SIZE),
            ..SetSpec::plain(Layer::Inet, revoked(family), vec![end, "inet_service", end, "inet_service", "inet_proto"])
        }
    };
    FAMILIES.map(set).to_vec()
}

/// For how long a denied packet's like is refused unjudged. With one second, 20,000 flows go the whole way each second, a sixth of a processor.
const SHIELD_SECONDS: u64 = 4;
/// How long an answer is judged whatever the shield holds: longer than what the shield held when the connection was opened.
const OPENED_SECONDS: u64 = SHIELD_SECONDS + 1;
/// Connections of other protocols than TCP that may be opened in that time, each remembered.
const OPENED_SIZE: u32 = 131_072;

/// The sets of [`super::shield`]; the kernel writes them.
///
/// ```text
/// set shield_in4 {
///     type ipv4_addr . inet_service . ipv4_addr . inet_service . inet_proto
///     size 65536; flags dynamic,timeout; timeout 4s
/// }
/// set opened4 { ...; size 131072; ...; timeout 5s }
/// ```
pub(super) fn shield_sets(config: &DataplaneConfig) -> Vec<SetSpec> {
    let set = |family, name, seconds, size| {
        let end = address(family);
        SetSpec {
            flags: vec!["timeout"],
            timeout: Some(seconds),
            size: Some(size),
            ..SetSpec::plain(Layer::Inet, name, vec![end, "inet_service", end, "inet_service", "inet_proto"])
        }
    };
    // What the sets of denied flows have no room for goes the whole way.
    let of = |family| {
        let shields = DIRECTIONS.map(|direction| set(family, shield(direction, family), SHIELD_SECONDS, config.denied_size));
        shields.into_iter().chain([set(family, opened(family), OPENED_SECONDS, OPENED_SIZE)])
    };
    FAMILIES.into_iter().flat_map(of).collect()
}

/// `set observe { type nf_proto; flags timeout; }`: while it holds a family, what policy denies of it is let through and told.
pub(super) fn observe() -> SetSpec {
    SetSpec { flags: vec!["timeout"], ..SetSpec::plain(Layer::Inet, SET_OBSERVE.to_owned(), vec!["nf_proto"]) }
}

/// nft takes a list for a concatenation and a bare word for one field.
fn one_or_many<S: Serializer>(fields: &[&'static str], serializer: S) -> Result<S::Ok, S::Error> {
    match fields {
        [one] => one.serialize(serializer),
        many => many.serialize(serializer),
    }
}

fn address(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

fn icmp(family: Family) -> Vec<&'static str> {
    match family {
        Family::V4 => vec!["icmp_type", "icmp_code"],
        Family::V6 => vec!["icmpv6_type", "icmpv6_code"],
    }
}
