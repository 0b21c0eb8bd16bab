//! From a tree to our types through serde, so that every fault has a place and one fault does not hide the next.
//!
//! serde stops at the first fault. So the tree is read again without the value that was at fault, until nothing new comes
//! up: the faults are all reported, and the object is refused all the same, because any problem refuses it.

use crate::kinds::meta::{SERVER_SET, STRUCT_NAME as META};
use crate::path::{At, Part, Problems};
use crate::tree::{Entry, Tree, Value, quoted};
use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;

/// How an object's fields are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// Unknown fields and explicit nulls refuse the object: our own kinds.
    Ours,
    /// Unknown fields refuse the object; null is the same as absent, as for the Kubernetes API: NetworkPolicy.
    Strict,
    /// Unknown fields are passed over: Namespace, Node, Pod.
    Modelled,
}

/// How often one object is read again to find more faults.
const PASSES: usize = 16;

/// Reads the tree as a `T`. `None` if anything was wrong; what, is then in `problems`.
pub(crate) fn decode<T: DeserializeOwned>(tree: &Tree, strictness: Strictness, problems: &mut Problems<'_>) -> Option<T> {
    let collected = std::mem::replace(problems, Problems::new(None));
    let shared = Shared { problems: RefCell::new(collected), skip: RefCell::default(), skipped_now: Cell::new(false) };
    let mut object = None;
    for _ in 0..PASSES {
        shared.skipped_now.set(false);
        let decoder = Decoder { tree, at: &At::ROOT, strictness, shared: &shared };
        object = T::deserialize(decoder).ok();
        if object.is_some() || !shared.skipped_now.get() {
            break;
        }
    }
    *problems = shared.problems.into_inner();
    object.filter(|_| problems.is_empty())
}

/// What all decoders of one object share.
struct Shared<'q> {
    problems: RefCell<Problems<'q>>,
    /// Paths of values that were at fault in an earlier pass.
    skip: RefCell<BTreeSet<String>>,
    /// Whether this pass found one to skip in the next.
    skipped_now: Cell<bool>,
}

impl Shared<'_> {
    /// The value at this place was at fault; only the innermost one of a pass is taken out.
    fn skip_next_time(&self, at: &At<'_>) {
        if !self.skipped_now.replace(true) {
            self.skip.borrow_mut().insert(at.to_string());
        }
    }

    fn skips(&self, at: &At<'_>) -> bool {
        let skip = self.skip.borrow();
        !skip.is_empty() && skip.contains(&at.to_string())
    }
}

/// Why serde stopped.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It is among the problems already.
    Reported,
    /// Said by a visitor, which does not know the place.
    Reason(String),
    /// The value is of another kind than the visitor expects.
    Expected(String),
    /// A field that has to be there is not.
    Missing(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported => f.write_str("reported"),
            Self::Reason(reason) => f.write_str(reason),
            Self::Expected(expected) => write!(f, "has to be {expected}"),
            Self::Missing(field) => write!(f, "{field} is missing"),
        }
    }
}

impl std::error::Error for Fault {}

impl serde::de::Error for Fault {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::Reason(reason.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::Reason(format!("{} is not known; use one of {}", quoted(variant), expected.join(", ")))
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::Expected(expected.to_string())
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::Expected(expected.to_string())
    }
}

struct Decoder<'t, 'p, 's, 'q> {
    tree: &'t Tree,
    at: &'p At<'p>,
    strictness: Strictness,
    shared: &'s Shared<'q>,
}

impl Decoder<'_, '_, '_, '_> {
    fn report(&self, fault: Fault) -> Fault {
        match fault {
            Fault::Reported => {}
            Fault::Reason(reason) => self.shared.problems.borrow_mut().add_once(self.at, Part::Value, reason),
            Fault::Expected(expected) => {
                let reason = format!("has to be {expected}, not {}", self.tree.value.describe());
                self.shared.problems.borrow_mut().add_once(self.at, Part::Value, reason);
            }
            // A field that was at fault itself is not missing as well.
            Fault::Missing(field) if self.tree.get(field).is_some() => {}
            Fault::Missing(field) => {
                self.shared.problems.borrow_mut().add_once(&self.at.field(field), Part::Value, "is required, but not there")
            }
        }
        Fault::Reported
    }

    fn wrong(&self, expected: &str) -> Fault {
        let advice = match (&self.tree.value, expected) {
            (Value::Bool(_) | Value::Integer(_) | Value::Float(_), "text") => ": put it in quotes",
            _ => "",
        };
        self.report(Fault::Reason(format!("has to be {expected}, not {}{advice}", self.tree.value.describe())))
    }

    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.tree.value {
            Value::Integer(number) => visit_integer(number, visitor).map_err(|fault| self.report(fault)),
            Value::Float(number) => visitor.visit_f64(number).map_err(|fault| self.report(fault)),
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => Err(self.wrong("a whole number")),
        }
    }

    fn string<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.tree.value {
            Value::Text(text) => visitor.visit_str(text).map_err(|fault| self.report(fault)),
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => Err(self.wrong("text")),
        }
    }

    fn list<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.tree.value {
            Value::List(items) => visitor.visit_seq(Elements { decoder: &self, items, next: 0 }).map_err(|fault| self.report(fault)),
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) | Value::Map(_) => {
                Err(self.wrong("a list"))
            }
        }
    }

    fn map<'de, V: Visitor<'de>>(
        self,
        known: Option<&'static [&'static str]>,
        passed: &[&str],
        strictness: Strictness,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let Value::Map(entries) = &self.tree.value else { return Err(self.wrong("a mapping")) };
        let mut wanted = Vec::with_capacity(entries.len());
        for entry in entries {
            if known.is_none_or(|known| known.contains(&entry.key.as_str())) {
                wanted.push(entry);
            } else if strictness != Strictness::Modelled && !passed.contains(&entry.key.as_str()) {
                self.unknown(entry, known.unwrap_or_default());
            }
        }
        let fields = Fields { decoder: &self, strictness, keys_are_fields: known.is_some(), entries: wanted.into_iter(), value: None };
        visitor.visit_map(fields).map_err(|fault| self.report(fault))
    }

    fn unknown(&self, entry: &Entry, known: &[&str]) {
        let nearest = known.iter().find(|name| name.eq_ignore_ascii_case(&entry.key));
        let advice = match nearest {
            Some(name) => format!("write {name}"),
            None => format!("known here: {}", known.join(", ")),
        };
        self.shared.problems.borrow_mut().add_once(&self.at.field(&entry.key), Part::Key, format!("is not a known field; {advice}"));
    }
}

fn visit_integer<'de, V: Visitor<'de>>(number: i128, visitor: V) -> Result<V::Value, Fault> {
    if let Ok(number) = i64::try_from(number) {
        visitor.visit_i64(number)
    } else if let Ok(number) = u64::try_from(number) {
        visitor.visit_u64(number)
    } else {
        Err(Fault::Reason(format!("{number} is out of range")))
    }
}

impl<'de> Deserializer<'de> for Decoder<'_, '_, '_, '_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.tree.value {
            Value::Null => visitor.visit_unit().map_err(|fault| self.report(fault)),
            Value::Bool(value) => visitor.visit_bool(*value).map_err(|fault| self.report(fault)),
            Value::Integer(_) | Value::Float(_) => self.number(visitor),
            Value::Text(_) => self.string(visitor),
            Value::List(_) => self.list(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.tree.value {
            Value::Bool(value) => visitor.visit_bool(value).map_err(|fault| self.report(fault)),
            Value::Null | Value::Integer(_) | Value::Float(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => {
                Err(self.wrong("true or false"))
            }
        }
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.number(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.string(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.string(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match (&self.tree.value, self.strictness) {
            (Value::Null, Strictness::Ours) => {
                Err(self.report(Fault::Reason("is null: give it a value or leave the field out".to_owned())))
            }
            (Value::Null, Strictness::Strict | Strictness::Modelled) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let strictness = self.strictness;
        self.map(None, &[], strictness, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        // What tools and the Kubernetes API server write: a status, and much in the metadata, nulls included.
        let (passed, strictness): (&[&str], Strictness) = match (name, self.strictness) {
            (META, Strictness::Modelled) => (SERVER_SET, Strictness::Modelled),
            (META, Strictness::Ours | Strictness::Strict) => (SERVER_SET, Strictness::Strict),
            (_, strictness) if self.at.is_root() => (&["status", "apiVersion", "kind"], strictness),
            (_, strictness) => (&[], strictness),
        };
        self.map(Some(fields), passed, strictness, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        match &self.tree.value {
            Value::Text(text) => visitor.visit_enum(Word(text)).map_err(|fault| self.report(fault)),
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => Err(self.wrong("text")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

/// A list's elements.
struct Elements<'d, 't, 'p, 's, 'q> {
    decoder: &'d Decoder<'t, 'p, 's, 'q>,
    items: &'t [Tree],
    next: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_, '_, '_, '_, '_> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Decoder { tree: _, at: list, strictness, shared } = self.decoder;
        while let Some(tree) = self.items.get(self.next) {
            let at = list.index(self.next);
            self.next += 1;
            if shared.skips(&at) {
                continue;
            }
            let element = seed.deserialize(Decoder { tree, at: &at, strictness: *strictness, shared });
            return element.map(Some).inspect_err(|_| shared.skip_next_time(&at));
        }
        Ok(None)
    }
}

/// A mapping's entries.
struct Fields<'d, 't, 'p, 's, 'q> {
    decoder: &'d Decoder<'t, 'p, 's, 'q>,
    strictness: Strictness,
    keys_are_fields: bool,
    entries: std::vec::IntoIter<&'t Entry>,
    value: Option<&'t Entry>,
}

impl<'de> MapAccess<'de> for Fields<'_, '_, '_, '_, '_> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        for entry in self.entries.by_ref() {
            let at = entry_at(self.decoder.at, &entry.key, self.keys_are_fields);
            if self.decoder.shared.skips(&at) {
                continue;
            }
            self.value = Some(entry);
            let key: StrDeserializer<'_, Fault> = entry.key.as_str().into_deserializer();
            return seed.deserialize(key).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let Some(entry) = self.value.take() else { return Err(Fault::Reason("a value was asked for before its key".to_owned())) };
        let at = entry_at(self.decoder.at, &entry.key, self.keys_are_fields);
        let shared = self.decoder.shared;
        let value = seed.deserialize(Decoder { tree: &entry.value, at: &at, strictness: self.strictness, shared });
        value.inspect_err(|_| shared.skip_next_time(&at))
    }
}

fn entry_at<'p>(mapping: &'p At<'p>, key: &'p str, is_field: bool) -> At<'p> {
    if is_field { mapping.field(key) } else { mapping.key(key) }
}

/// A word that names a variant.
struct Word<'t>(&'t str);

impl<'de> EnumAccess<'de> for Word<'_> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Fault> {
        let name: StrDeserializer<'_, Fault> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _: S) -> Result<S::Value, Fault> {
        Err(Fault::Reason("has to be a mapping, not a word".to_owned()))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        Err(Fault::Reason("has to be a list, not a word".to_owned()))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Fault> {
        Err(Fault::Reason("has to be a mapping, not a word".to_owned()))
    }
}
