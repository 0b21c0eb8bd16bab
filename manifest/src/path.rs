//! Where in an object something is: a path of fields, list positions and map keys, kept on the stack.

use crate::tree::{Position, Tree, Value};
use std::fmt;

/// A place in an object: `spec.ingress[0].ports[1].endPort`. Made on the way down; costs nothing until it is printed.
#[derive(Clone, Copy)]
pub(crate) struct At<'p> {
    parent: Option<&'p At<'p>>,
    step: Step<'p>,
}

/// Which part of an entry is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The name of the field.
    Key,
    /// What it has been given.
    Value,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Field(&'p str),
    Index(usize),
    Key(&'p str),
}

impl<'p> At<'p> {
    /// The whole object.
    pub(crate) const ROOT: At<'static> = At { parent: None, step: Step::Root };

    /// Whether this is the whole object.
    pub(crate) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// A field of this struct.
    pub(crate) fn field(&'p self, name: &'p str) -> At<'p> {
        At { parent: Some(self), step: Step::Field(name) }
    }

    /// An element of this list.
    pub(crate) fn index(&'p self, position: usize) -> At<'p> {
        At { parent: Some(self), step: Step::Index(position) }
    }

    /// An entry of this map whose keys people choose, such as labels.
    pub(crate) fn key(&'p self, key: &'p str) -> At<'p> {
        At { parent: Some(self), step: Step::Key(key) }
    }

    fn steps(&self) -> Vec<Step<'p>> {
        let mut steps = Vec::new();
        let mut at = *self;
        loop {
            match at.step {
                Step::Root => {}
                Step::Field(_) | Step::Index(_) | Step::Key(_) => steps.push(at.step),
            }
            match at.parent {
                Some(parent) => at = *parent,
                None => break,
            }
        }
        steps.reverse();
        steps
    }

    /// The position of this place in the text, or of what comes nearest above it when it is not written there.
    pub(crate) fn locate(&self, root: &Tree, part: Part) -> Position {
        let mut tree = root;
        let mut position = root.position;
        for step in self.steps() {
            let (found, key_position) = match (&tree.value, step) {
                (Value::Map(entries), Step::Field(name) | Step::Key(name)) => match entries.iter().find(|entry| entry.key == name) {
                    Some(entry) => (&entry.value, Some(entry.position)),
                    None => break,
                },
                (Value::List(items), Step::Index(index)) => match items.get(index) {
                    Some(item) => (item, None),
                    None => break,
                },
                (
                    Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) | Value::Map(_) | Value::List(_),
                    _,
                ) => break,
            };
            // A mapping or list below a key begins on a later line; the key's own line is where people look.
            position = match (&found.value, key_position, part) {
                (Value::Map(_) | Value::List(_), Some(key), Part::Value) | (_, Some(key), Part::Key) => key,
                (_, _, _) => found.position,
            };
            tree = found;
        }
        position
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for step in self.steps() {
            match step {
                Step::Root => {}
                Step::Field(name) if first => f.write_str(name)?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => write!(f, "[{key}]")?,
            }
            first = false;
        }
        Ok(())
    }
}

/// What is wrong with one object, collected.
pub(crate) struct Problems<'t> {
    root: Option<&'t Tree>,
    list: Vec<Problem>,
    more: bool,
}

/// The most that is told of one object; a person mends these first, and a hostile object costs no more than this.
const MOST: usize = 100;

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    /// The field's path.
    pub(crate) field: String,
    /// Where it is in the text.
    pub(crate) position: Position,
    /// What is wrong and what to do.
    pub(crate) reason: String,
}

impl<'t> Problems<'t> {
    /// Nothing is wrong yet. With the object's tree, problems get a line and column.
    pub(crate) fn new(root: Option<&'t Tree>) -> Self {
        Self { root, list: Vec::new(), more: false }
    }

    /// Something is wrong with the value at this place.
    pub(crate) fn add(&mut self, at: &At<'_>, reason: impl Into<String>) {
        self.add_part(at, Part::Value, reason.into());
    }

    /// The same of either part, unless it was said already.
    pub(crate) fn add_once(&mut self, at: &At<'_>, part: Part, reason: impl Into<String>) {
        let (field, reason) = (at.to_string(), reason.into());
        if !self.list.iter().any(|problem| problem.field == field && problem.reason == reason) {
            self.add_part(at, part, reason);
        }
    }

    fn add_part(&mut self, at: &At<'_>, part: Part, reason: String) {
        if self.list.len() >= MOST {
            self.more = true;
            return;
        }
        let position = self.root.map_or(Position::UNKNOWN, |root| at.locate(root, part));
        self.list.push(Problem { field: at.to_string(), position, reason });
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them, in the order of the text; without a text, in the order in which they were found.
    pub(crate) fn into_list(self) -> Vec<Problem> {
        let mut list = self.list;
        list.sort_by_key(|problem| problem.position);
        if self.more {
            let reason = format!("has more faults than these {MOST}; the others are told when these are mended");
            list.push(Problem { field: String::new(), position: Position::UNKNOWN, reason });
        }
        list
    }
}
