//! nft's words as small functions over the types of crate `nftables`, so that the rules read like rules.

use crate::dataplane::names::{Layer, TABLE};
use nftables::expr::{
    BinaryOperation, CT, Expression, Exthdr, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadBase, PayloadField,
    PayloadRaw, Prefix, SetItem, Verdict,
};
use nftables::schema::{Chain, Counter, NfListObject, Rule};
use nftables::stmt::{self, JumpTarget, Match, Operator, SetOp, Statement, VerdictMap};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};

/// The chains and counters of one table, in the order in which they are added.
#[derive(Debug)]
pub(super) struct Rules {
    layer: Layer,
    pub(super) chains: Vec<NfListObject<'static>>,
    pub(super) rules: Vec<NfListObject<'static>>,
    pub(super) counters: Vec<String>,
}

impl Rules {
    /// None yet.
    pub(super) fn new(layer: Layer) -> Self {
        Self { layer, chains: Vec::new(), rules: Vec::new(), counters: Vec::new() }
    }

    /// `chain NAME { }`
    pub(super) fn chain(&mut self, name: &str) {
        let chain = Chain { family: family(self.layer), table: TABLE.into(), name: name.to_owned().into(), ..Chain::default() };
        self.chains.push(NfListObject::Chain(chain));
    }

    /// `chain NAME { type filter hook HOOK priority PRIORITY; policy accept; }`
    pub(super) fn base_chain(&mut self, name: &str, hook: NfHook, priority: i32) {
        self.chains.push(NfListObject::Chain(Chain {
            family: family(self.layer),
            table: TABLE.into(),
            name: name.to_owned().into(),
            _type: Some(NfChainType::Filter),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        }));
    }

    /// `counter NAME { }`
    pub(super) fn counter(&mut self, name: &str) {
        self.counters.push(name.to_owned());
    }

    /// A rule at the end of a chain.
    pub(super) fn rule<const N: usize>(&mut self, chain: &str, statements: [Statement<'static>; N]) {
        self.rule_of(chain, statements.to_vec());
    }

    /// A rule at the end of a chain.
    pub(super) fn rule_of(&mut self, chain: &str, statements: Vec<Statement<'static>>) {
        self.rules.push(NfListObject::Rule(Rule {
            family: family(self.layer),
            table: TABLE.into(),
            chain: chain.to_owned().into(),
            expr: statements.into(),
            ..Rule::default()
        }));
    }
}

/// A counter to add. Both numbers are given: nft reads a missing one as null and refuses that.
pub(super) fn counter_object(layer: Layer, name: &str) -> NfListObject<'static> {
    NfListObject::Counter(Counter {
        family: family(layer),
        table: TABLE.into(),
        name: name.to_owned().into(),
        handle: None,
        packets: Some(0),
        bytes: Some(0),
    })
}

pub(super) fn family(layer: Layer) -> NfFamily {
    match layer {
        Layer::Inet => NfFamily::INet,
        Layer::Bridge => NfFamily::Bridge,
        Layer::Arp => NfFamily::ARP,
        Layer::Netdev => NfFamily::NetDev,
    }
}

/// `PROTOCOL FIELD`, such as `ip saddr`.
pub(super) fn field(protocol: &'static str, field: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField { protocol: protocol.into(), field: field.into() })))
}

/// `@BASE,OFFSET,LENGTH`, in bits.
pub(super) fn raw(base: PayloadBase, offset: u32, len: u32) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(PayloadRaw { base, offset, len })))
}

/// `meta KEY`.
pub(super) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

/// `meta l4proto`.
pub(super) fn l4proto() -> Expression<'static> {
    meta(MetaKey::L4proto)
}

/// `A . B . C`
pub(super) fn concat(fields: impl IntoIterator<Item = Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(fields.into_iter().collect()))
}

/// `KEY @SET`
pub(super) fn in_set(key: Expression<'static>, set: &str) -> Statement<'static> {
    matches(key, Operator::EQ, Expression::String(format!("@{set}").into()))
}

/// `KEY != @SET`
pub(super) fn not_in_set(key: Expression<'static>, set: &str) -> Statement<'static> {
    matches(key, Operator::NEQ, Expression::String(format!("@{set}").into()))
}

/// `KEY WORD`, such as `iifname "veth*"`.
pub(super) fn is(key: Expression<'static>, word: &str) -> Statement<'static> {
    matches(key, Operator::EQ, Expression::String(word.to_owned().into()))
}

/// `KEY != NUMBER`
pub(super) fn is_not_number(key: Expression<'static>, number: u32) -> Statement<'static> {
    matches(key, Operator::NEQ, Expression::Number(number))
}

/// `KEY > NUMBER`; crate `nftables` 0.6 writes `>` for its operator LT and `<` for GT.
pub(super) fn is_above(key: Expression<'static>, number: u32) -> Statement<'static> {
    matches(key, Operator::LT, Expression::Number(number))
}

/// `KEY { NUMBER, ... }`
pub(super) fn is_number_of(key: Expression<'static>, numbers: &[u32]) -> Statement<'static> {
    let items = numbers.iter().map(|number| SetItem::Element(Expression::Number(*number))).collect();
    matches(key, Operator::EQ, Expression::Named(NamedExpression::Set(items)))
}

/// `@ll,7,1 0`: the frame is for one station (IEEE 802: the first bit on the wire of a group's address is 1).
pub(super) fn is_for_one_station() -> Statement<'static> {
    is_number(raw(PayloadBase::LL, 7, 1), 0)
}

/// `@ll,7,1 1`: the frame is for a group or for everybody.
pub(super) fn is_for_a_group() -> Statement<'static> {
    is_number(raw(PayloadBase::LL, 7, 1), 1)
}

/// `ct state established`
pub(super) fn is_established() -> Statement<'static> {
    matches(ct_state(), Operator::IN, Expression::String("established".into()))
}

/// `KEY NUMBER`
pub(super) fn is_number(key: Expression<'static>, number: u32) -> Statement<'static> {
    matches(key, Operator::EQ, Expression::Number(number))
}

/// `KEY { WORD, ... }`
pub(super) fn is_one_of(key: Expression<'static>, words: &[&'static str]) -> Statement<'static> {
    let items = words.iter().map(|word| SetItem::Element(Expression::String((*word).into()))).collect();
    matches(key, Operator::EQ, Expression::Named(NamedExpression::Set(items)))
}

/// `fib daddr type != local`: for a group or for everybody, or an anycast address.
pub(super) fn is_for_more_than_the_node() -> Statement<'static> {
    let kind = Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Type, flags: [FibFlag::Daddr].into() }));
    matches(kind, Operator::NEQ, Expression::String("local".into()))
}

/// `ip6 daddr fe80::/10`
pub(super) fn is_for_link_local() -> Statement<'static> {
    let block = Prefix { addr: Box::new(Expression::String("fe80::".into())), len: 10 };
    matches(field("ip6", "daddr"), Operator::EQ, Expression::Named(NamedExpression::Prefix(block)))
}

/// `tcp flags & (fin | syn | rst | ack) != syn`: a segment that cannot begin a connection.
pub(super) fn is_midstream() -> Statement<'static> {
    tcp_flags(Operator::NEQ)
}

/// `tcp flags & (fin | syn | rst | ack) == syn`: a segment that asks for a connection.
pub(super) fn is_opening() -> Statement<'static> {
    tcp_flags(Operator::EQ)
}

fn tcp_flags(than_syn_alone: Operator) -> Statement<'static> {
    const FIN_SYN_RST_ACK: u32 = 0x17;
    const SYN: u32 = 0x02;
    let flags = BinaryOperation::AND(field("tcp", "flags"), Expression::Number(FIN_SYN_RST_ACK));
    matches(Expression::BinaryOperation(Box::new(flags)), than_syn_alone, Expression::Number(SYN))
}

fn matches(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

/// `KEY vmap { WORD : VERDICT, ... }`; jumps and gotos only: crate `nftables` writes `accept` in a way that nft 1.0.6 refuses.
pub(super) fn dispatch(key: Expression<'static>, verdicts: Vec<(&'static str, Verdict<'static>)>) -> Statement<'static> {
    let items = verdicts
        .into_iter()
        .map(|(word, verdict)| SetItem::Mapping(Expression::String(word.into()), Expression::Verdict(verdict)))
        .collect();
    Statement::VerdictMap(VerdictMap { key, data: Expression::Named(NamedExpression::Set(items)) })
}

/// `KEY vmap @MAP`
pub(super) fn look_up(key: Expression<'static>, map: &str) -> Statement<'static> {
    Statement::VerdictMap(VerdictMap { key, data: Expression::String(format!("@{map}").into()) })
}

/// `ct label & BIT != BIT`: it is not set. (Crate `nftables` lacks nft's `!`.)
pub(super) fn has_no_label(bit: u8) -> Statement<'static> {
    let only = BinaryOperation::AND(ct("label"), Expression::Number(bit.into()));
    matches(Expression::BinaryOperation(Box::new(only)), Operator::NEQ, Expression::Number(bit.into()))
}

/// `ct label set BIT`
pub(super) fn set_label(bit: u8) -> Statement<'static> {
    Statement::Mangle(stmt::Mangle { key: ct("label"), value: Expression::Number(bit.into()) })
}

/// `ct direction WORD`
pub(super) fn is_direction(word: &str) -> Statement<'static> {
    is(ct("direction"), word)
}

/// `tcp flags & rst == rst`
pub(super) fn is_reset() -> Statement<'static> {
    const RST: u32 = 0x04;
    let flags = BinaryOperation::AND(field("tcp", "flags"), Expression::Number(RST));
    matches(Expression::BinaryOperation(Box::new(flags)), Operator::EQ, Expression::Number(RST))
}

/// `KEY != WORD`, such as `meta l4proto != tcp`.
pub(super) fn is_not(key: Expression<'static>, word: &str) -> Statement<'static> {
    matches(key, Operator::NEQ, Expression::String(word.to_owned().into()))
}

/// `meta l4proto tcp reject with tcp reset`
pub(super) fn reset() -> Statement<'static> {
    Statement::Reject(Some(stmt::Reject::new(Some(stmt::RejectType::TCPReset), None)))
}

/// `reject with icmpx admin-prohibited`
pub(super) fn prohibit() -> Statement<'static> {
    Statement::Reject(Some(stmt::Reject::new(Some(stmt::RejectType::ICMPX), Some(RejectCode::AdminProhibited))))
}

/// `ct state`
pub(super) fn ct_state() -> Expression<'static> {
    ct("state")
}

/// `ct KEY`
fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), ..CT::default() }))
}

/// `goto CHAIN`, in a dispatch.
pub(super) fn to_goto(chain: &str) -> Verdict<'static> {
    Verdict::Goto(JumpTarget { target: chain.to_owned().into() })
}

/// `jump CHAIN`, in a dispatch.
pub(super) fn to_jump(chain: &str) -> Verdict<'static> {
    Verdict::Jump(JumpTarget { target: chain.to_owned().into() })
}

/// `goto CHAIN`
pub(super) fn goto(chain: &str) -> Statement<'static> {
    Statement::Goto(JumpTarget { target: chain.to_owned().into() })
}

/// `jump CHAIN`
pub(super) fn jump(chain: &str) -> Statement<'static> {
    Statement::Jump(JumpTarget { target: chain.to_owned().into() })
}

/// `return`
pub(super) fn back() -> Statement<'static> {
    Statement::Return(None)
}

/// `accept`
pub(super) fn accept() -> Statement<'static> {
    Statement::Accept(None)
}

/// `drop`
pub(super) fn drop() -> Statement<'static> {
    Statement::Drop(None)
}

/// `counter name NAME`
pub(super) fn count(name: &str) -> Statement<'static> {
    Statement::Counter(stmt::Counter::Named(name.to_owned().into()))
}

/// `update @SET { KEY }`
pub(super) fn update(set: &str, key: Expression<'static>) -> Statement<'static> {
    Statement::Set(stmt::Set { op: SetOp::Update, elem: key, set: format!("@{set}").into() })
}

/// `add @SET { KEY }`: an element that is there is left as it is.
pub(super) fn add(set: &str, key: Expression<'static>) -> Statement<'static> {
    Statement::Set(stmt::Set { op: SetOp::Add, elem: key, set: format!("@{set}").into() })
}

/// `ip frag-off & 0x3fff != 0`: a part of a packet, the first one too.
pub(super) fn is_fragment4() -> Statement<'static> {
    let part = BinaryOperation::AND(field("ip", "frag-off"), Expression::Number(0x3fff));
    matches(Expression::BinaryOperation(Box::new(part)), Operator::NEQ, Expression::Number(0))
}

/// `exthdr frag exists`
pub(super) fn is_fragment6() -> Statement<'static> {
    let header = Expression::Named(NamedExpression::Exthdr(Exthdr { name: "frag".into(), field: None, offset: None }));
    matches(header, Operator::EQ, Expression::Boolean(true))
}

/// `log prefix "TEXT" group N snaplen BYTES`
pub(super) fn log(prefix: impl Into<std::borrow::Cow<'static, str>>, group: u16, snaplen: u32) -> Statement<'static> {
    Statement::Log(Some(stmt::Log { prefix: Some(prefix.into()), snaplen: Some(snaplen), ..stmt::Log::new(Some(u32::from(group))) }))
}

/// `limit rate N/second burst M packets`
pub(super) fn limit(per_second: u32, burst: u32) -> Statement<'static> {
    Statement::Limit(stmt::Limit {
        rate: per_second,
        rate_unit: None,
        per: Some("second".into()),
        burst: Some(burst),
        burst_unit: None,
        inv: None,
    })
}
