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

/// A selector that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{term}` is no selector term: {reason}; write for instance app=web,tier in (a,b),!legacy")]
pub struct SelectorError {
    term: String,
    reason: &'static str,
}

/// Reads what `kubectl -l` takes (`labels.Parse` of k8s.io/apimachinery): `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`,
/// separated by commas. The empty text is `{}`.
impl std::str::FromStr for LabelSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut selector = Self::default();
        if text.trim().is_empty() {
            return Ok(selector);
        }
        for term in split_terms(text) {
            let requirement = parse_term(term.trim())?;
            selector.match_expressions.push(requirement);
        }
        Ok(selector)
    }
}

/// Splits at commas outside parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut inside) = (0, false);
    for (position, character) in text.char_indices() {
        match character {
            '(' => inside = true,
            ')' => inside = false,
            ',' if !inside => {
                terms.push(&text[start..position]);
                start = position + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn parse_term(term: &str) -> Result<Requirement, SelectorError> {
    let refuse = |reason| SelectorError { term: term.to_owned(), reason };
    let (key, operator) = if let Some((key, rest)) =
        term.split_once(" notin ").or_else(|| term.split_once(" notin(").map(|(key, _)| (key, &term[key.len() + 6..])))
    {
        (key, Operator::NotIn(parse_values(rest).ok_or_else(|| refuse("values stand in parentheses"))?))
    } else if let Some((key, rest)) =
        term.split_once(" in ").or_else(|| term.split_once(" in(").map(|(key, _)| (key, &term[key.len() + 3..])))
    {
        (key, Operator::In(parse_values(rest).ok_or_else(|| refuse("values stand in parentheses"))?))
    } else if let Some((key, value)) = term.split_once("!=") {
        (key, Operator::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Operator::In(vec![value.trim().to_owned()]))
    } else if let Some(key) = term.strip_prefix('!') {
        (key, Operator::DoesNotExist)
    } else {
        (term, Operator::Exists)
    };
    let key = key.trim();
    if key.is_empty() {
        return Err(refuse("a key is missing"));
    }
    let is_key = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.' | '/');
    if !key.chars().all(is_key) {
        return Err(refuse("the key has a character that label keys cannot have"));
    }
    Ok(Requirement { key: key.to_owned(), operator })
}

fn parse_values(text: &str) -> Option<Vec<String>> {
    let inside = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some(inside.split(',').map(|value| value.trim().to_owned()).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_read_as_kubectl_reads_it() {
        let labels: Labels = [("app", "web"), ("tier", "a"), ("empty", "")].into_iter().collect();
        for (text, matches) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=db", false),
            ("app!=db", true),
            ("missing!=db", true),
            ("tier in (a,b)", true),
            ("tier in(a, b),app", true),
            ("tier notin (a,b)", false),
            ("missing notin(a)", true),
            ("app,!legacy", true),
            ("!app", false),
            ("empty=", true),
        ] {
            assert_eq!(text.parse::<LabelSelector>().unwrap().matches(&labels), matches, "{text}");
        }
    }

    #[test]
    fn a_term_that_is_none_is_refused_by_name() {
        for text in ["=web", "app=web,", "tier in a", "a b", "!", "tier in (a"] {
            assert!(text.parse::<LabelSelector>().unwrap_err().to_string().contains("no selector term"), "{text}");
        }
    }
}
