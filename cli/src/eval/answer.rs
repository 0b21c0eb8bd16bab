//! Verdicts as JSON lines and as a table.

use super::probe::{Probe, Written};
use crate::output;
use anyhow::Context as _;
use firebreak_manifest::IntOrString;
use firebreak_policy::evaluate::{DirectionVerdict, NearMiss, Reason};
use firebreak_policy::node_state::RuleRef;
use firebreak_policy::{EvaluateError, FlowVerdict};
use serde::Serialize;

/// A probe and what came of it.
pub(super) struct Answer {
    /// The question.
    pub(super) probe: Probe,
    /// The verdict; an error only for a workload that has ended.
    pub(super) verdict: Result<FlowVerdict, EvaluateError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Allow,
    Deny,
}

impl Word {
    fn of(allowed: bool) -> Self {
        if allowed { Self::Allow } else { Self::Deny }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// One line of output: the probe's fields, then the verdicts.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    from: &'a str,
    to: &'a str,
    protocol: Scalar<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<Scalar<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_type: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_code: Option<i64>,
    verdict: Word,
    /// The verdict if every policy in Audit mode were enforced; only where one is about an end.
    #[serde(rename = "auditVerdict", skip_serializing_if = "Option::is_none")]
    audit_verdict: Option<Word>,
    egress: Side,
    ingress: Side,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Scalar<'a> {
    Number(i64),
    Text(&'a str),
}

impl<'a> Scalar<'a> {
    fn of(value: &'a IntOrString) -> Self {
        match value {
            IntOrString::Int(number) => Self::Number(*number),
            IntOrString::String(text) => Self::Text(text),
        }
    }
}

/// One end's verdict. `policy` is the policy that decided: the one whose rule allowed, or for a deny the first of those that
/// isolate, which `isolatedBy` lists. Absent when no policy had a say.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Side {
    verdict: Word,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    /// The rule's position in its direction's list, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    isolated_by: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest: Option<Nearest>,
    /// How a packet that a rule of a tier denies is answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'static str>,
    /// What it would be if every policy in Audit mode were enforced; only where one is about this end.
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<Box<Side>>,
}

/// The allow rule that came nearest to a denied flow, and what of it did not match.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Nearest {
    policy: String,
    rule: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_name: Option<String>,
    field: String,
    wanted: String,
    got: String,
}

impl Side {
    fn said(verdict: Word, reason: impl Into<String>) -> Self {
        let (policy, rule, rule_name, isolated_by, nearest, answer, audit) = Default::default();
        Self { verdict, reason: reason.into(), policy, rule, rule_name, isolated_by, nearest, answer, audit }
    }

    fn of(verdict: Option<&DirectionVerdict>) -> Self {
        let Some(DirectionVerdict { direction: _, reason, audit }) = verdict else {
            return Self::said(Word::Allow, "no workload of the manifests, so nobody judges here");
        };
        Self { audit: audit.as_ref().map(|audit| Box::new(Self::because(audit))), ..Self::because(reason) }
    }

    /// `None` where no policy in Audit mode is about either end.
    fn audit_verdict(ends: [&Self; 2]) -> Option<Word> {
        if ends.iter().all(|end| end.audit.is_none()) {
            return None;
        }
        let would = |end: &Self| end.audit.as_ref().map_or(end.verdict, |audit| audit.verdict);
        Some(Word::of(ends.into_iter().all(|end| would(end) == Word::Allow)))
    }

    fn because(reason: &Reason) -> Self {
        match reason {
            Reason::NotIsolated | Reason::OwnNode | Reason::ToItself => Self::said(Word::Allow, reason.to_string()),
            Reason::AllowedBy(RuleRef { policy, index, name }) => Self {
                policy: Some(policy.to_string()),
                rule: Some(*index),
                rule_name: name.clone(),
                ..Self::said(Word::Allow, "a rule allows")
            },
            Reason::NoRule { isolating, nearest } => Self {
                policy: isolating.first().map(ToString::to_string),
                isolated_by: isolating.iter().map(ToString::to_string).collect(),
                nearest: nearest.as_ref().map(Nearest::of),
                ..Self::said(Word::Deny, reason.to_string())
            },
            Reason::DeniedBy { rule: RuleRef { policy, index, name }, answer, text } => Self {
                policy: Some(policy.to_string()),
                rule: Some(*index),
                rule_name: name.clone(),
                answer: Some(match answer {
                    firebreak_policy::model::Answer::Drop => "drop",
                    firebreak_policy::model::Answer::Reject => "reject",
                }),
                ..Self::said(Word::Deny, text.clone().unwrap_or_else(|| "a rule denies".to_owned()))
            },
        }
    }

    /// For a person: `allow by SegmentPolicy shop/api rule from-web`, `deny by NetworkPolicy shop/db (port 5432/tcp wanted)`.
    fn text(&self) -> String {
        let Self { verdict, reason, policy, rule, rule_name, isolated_by, nearest, answer: _, audit } = self;
        let mut text = verdict.as_str().to_owned();
        match (policy, rule) {
            (None, _) => text.push_str(&format!(": {reason}")),
            (Some(policy), Some(rule)) => {
                let rule = rule_name.clone().unwrap_or_else(|| rule.to_string());
                text.push_str(&format!(": {policy} rule {rule}"));
            }
            (Some(_), None) => text.push_str(&format!(": {}", isolated_by.join(", "))),
        }
        if let Some(Nearest { field, wanted, .. }) = nearest {
            text.push_str(&format!(" ({field}: {wanted} would do)"));
        }
        if let Some(audit) = audit {
            text.push_str(&format!("; audit: {}", audit.text()));
        }
        text
    }
}

impl Nearest {
    fn of(miss: &NearMiss) -> Self {
        let NearMiss { rule: RuleRef { policy, index, name }, fields, wanted, got } = miss;
        let field = fields.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Self { policy: policy.to_string(), rule: *index, rule_name: name.clone(), field, wanted: wanted.clone(), got: got.clone() }
    }
}

impl Answer {
    fn line(&self) -> Line<'_> {
        let Written { from, to, protocol, port, icmp_type, icmp_code } = &self.probe.written;
        let (allowed, egress, ingress) = match &self.verdict {
            Ok(verdict) => (verdict.allowed(), Side::of(verdict.egress.as_ref()), Side::of(verdict.ingress.as_ref())),
            // Nothing is sent or received by what has ended.
            Err(error) => (false, Side::said(Word::Deny, error.to_string()), Side::said(Word::Deny, error.to_string())),
        };
        Line {
            from,
            to,
            protocol: protocol.as_ref().map_or(Scalar::Text("TCP"), Scalar::of),
            port: port.as_ref().map(Scalar::of),
            icmp_type: *icmp_type,
            icmp_code: *icmp_code,
            verdict: Word::of(allowed),
            audit_verdict: Side::audit_verdict([&egress, &ingress]),
            egress,
            ingress,
        }
    }
}

/// One JSON object per answer, a line each.
pub(super) fn json_lines(answers: &[Answer]) -> anyhow::Result<String> {
    let mut text = String::new();
    for answer in answers {
        text.push_str(&serde_json::to_string(&answer.line()).context("cannot write a verdict as JSON")?);
        text.push('\n');
    }
    Ok(text)
}

/// A table for people.
pub(super) fn table(answers: &[Answer]) -> String {
    let rows = answers.iter().map(|answer| {
        let line = answer.line();
        let transport = answer.probe.flow.transport.to_string();
        vec![line.from.to_owned(), line.to.to_owned(), transport, line.verdict.as_str().to_owned(), line.egress.text(), line.ingress.text()]
    });
    output::table(&["FROM", "TO", "CARRIES", "VERDICT", "EGRESS", "INGRESS"], rows.collect())
}
