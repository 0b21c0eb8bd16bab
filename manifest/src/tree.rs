//! A document as it was written, with the position of every value.

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;

/// A line and a column, both from 1; 0 is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// The line.
    pub(crate) line: u64,
    /// The column, in characters.
    pub(crate) column: u64,
}

impl Position {
    /// The text is not at hand, or never was text.
    pub(crate) const UNKNOWN: Self = Self { line: 0, column: 0 };
}

impl From<serde_saphyr::Location> for Position {
    fn from(location: serde_saphyr::Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

/// A value and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// The value.
    pub(crate) value: Value,
    /// Where it begins.
    pub(crate) position: Position,
}

/// A value as YAML and JSON know it.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// `null`, `~`, or nothing after the colon.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// A number with a fraction or exponent.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Tree>),
    /// A mapping, in the order written. Keys are unique.
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// Where the key is.
    pub(crate) position: Position,
    /// The value.
    pub(crate) value: Tree,
}

impl Tree {
    /// The value under `key`, if this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Tree> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) | Value::List(_) => None,
        }
    }

    /// The text, if this is text.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Moves every position down by so many lines: where in its file a document began.
    pub(crate) fn shift(&mut self, lines: u64) {
        let shift = |position: &mut Position| {
            if *position != Position::UNKNOWN {
                position.line += lines;
            }
        };
        shift(&mut self.position);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(entries) => {
                for entry in entries {
                    shift(&mut entry.position);
                    entry.value.shift(lines);
                }
            }
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) => {}
        }
    }
}

impl Value {
    /// What it is, for people: `a list`, `the number 80`.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing (null)".to_owned(),
            Self::Bool(value) => format!("the truth value {value}"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(text) => format!("the text {}", quoted(text)),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Text in quotes for a message, shortened when it is long.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// From a reader that tells positions (YAML).
impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Read::<true>.deserialize(deserializer)
    }
}

/// A tree from `serde_json`, which tells no positions.
pub(crate) struct Unplaced(pub(crate) Tree);

impl<'de> Deserialize<'de> for Unplaced {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Read::<false>.deserialize(deserializer).map(Self)
    }
}

/// What [`Spanned`] reads; the same reader goes on below it.
struct Placed(Value);

impl<'de> Deserialize<'de> for Placed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Build::<true>).map(Self)
    }
}

struct Read<const POSITIONS: bool>;

impl<'de, const POSITIONS: bool> DeserializeSeed<'de> for Read<POSITIONS> {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        if POSITIONS {
            let Spanned { value: Placed(value), referenced, defined: _ } = Spanned::deserialize(deserializer)?;
            Ok(Tree { value, position: referenced.into() })
        } else {
            Ok(Tree { value: deserializer.deserialize_any(Build::<false>)?, position: Position::UNKNOWN })
        }
    }
}

struct Build<const POSITIONS: bool>;

impl<'de, const POSITIONS: bool> Visitor<'de> for Build<POSITIONS> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Read::<POSITIONS>)? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some((key, position)) = next_key::<A, POSITIONS>(&mut access)? {
            // The YAML reader refuses a key that is there twice; serde_json does not.
            if !seen.insert(key.clone()) {
                return Err(serde::de::Error::custom(format_args!("the key {} is there twice", quoted(&key))));
            }
            let value = access.next_value_seed(Read::<POSITIONS>)?;
            entries.push(Entry { key, position, value });
        }
        Ok(Value::Map(entries))
    }
}

fn next_key<'de, A: MapAccess<'de>, const POSITIONS: bool>(access: &mut A) -> Result<Option<(String, Position)>, A::Error> {
    if POSITIONS {
        Ok(access.next_key::<Spanned<String>>()?.map(|key| (key.value, key.referenced.into())))
    } else {
        Ok(access.next_key::<String>()?.map(|key| (key, Position::UNKNOWN)))
    }
}
