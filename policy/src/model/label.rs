//! Labels and label selectors, as `metav1.LabelSelector` of the Kubernetes API defines them.

use std::collections::BTreeMap;
use std::fmt;

/// Labels in key order. An empty value is a value (SEMANTICS 8).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(pub BTreeMap<String, String>);

impl Labels {
    /// The value under `key`, if the key is there.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (key, value)) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            write!(f, "{key}={value}")?;
        }
        Ok(())
    }
}

/// All of `match_labels` and all of `match_expressions` must hold. A selector without either matches everything:
/// that is what the Kubernetes API says of `{}`; an absent selector is a different thing and never reaches this type.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelector {
    /// Pairs that must be there as they are.
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    pub match_expressions: Vec<Requirement>,
}

/// One requirement on one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label key.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
}

/// `metav1.LabelSelectorOperator` with its values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key is there with one of these values.
    In(Vec<String>),
    /// The key is absent, or has none of these values (SEMANTICS 8).
    NotIn(Vec<String>),
    /// The key is there, with any value.
    Exists,
    /// The key is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// The selector `{}`.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether the labels satisfy every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether this is `{}`.
    pub fn is_everything(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|wanted| wanted == value)),
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|unwanted| unwanted != value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// As `kubectl get -l` writes it: `app=web,tier in (a,b),!legacy`; `*` for `{}`.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("*");
        }
        let mut separator = "";
        for (key, value) in &self.match_labels {
            write!(f, "{separator}{key}={value}")?;
            separator = ",";
        }
        for Requirement { key, operator } in &self.match_expressions {
            match operator {
                Operator::In(values) => write!(f, "{separator}{key} in ({})", values.join(","))?,
                Operator::NotIn(values) => write!(f, "{separator}{key} notin ({})", values.join(","))?,
                Operator::Exists => write!(f, "{separator}{key}")?,
                Operator::DoesNotExist => write!(f, "{separator}!{key}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}
