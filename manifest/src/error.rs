//! What is refused, where, and what to do about it.

use crate::kinds::ObjectKey;
use crate::path::Problem;
use crate::tree::Position;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Where something was written. Prints as `shop.yaml:14:9: document 2: SegmentPolicy shop/db`, with what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named, `-` for standard input, or what the caller called the text. `None` for objects that come
    /// from the wire or the store.
    pub source: Option<Arc<str>>,
    /// The document in the file, from 1.
    pub document: Option<usize>,
    /// The line in the file, from 1.
    pub line: Option<u64>,
    /// The column in the line, from 1, in characters.
    pub column: Option<u64>,
    /// Kind, namespace and name, as far as they were readable.
    pub object: Option<String>,
}

impl Place {
    pub(crate) fn of_document(source: &Arc<str>, document: usize) -> Self {
        Self { source: Some(Arc::clone(source)), document: Some(document), line: None, column: None, object: None }
    }

    pub(crate) fn nowhere() -> Self {
        Self { source: None, document: None, line: None, column: None, object: None }
    }

    pub(crate) fn at(&self, position: Position) -> Self {
        if position == Position::UNKNOWN {
            return self.clone();
        }
        Self { line: Some(position.line), column: Some(position.column), ..self.clone() }
    }

    pub(crate) fn with_object(mut self, object: Option<String>) -> Self {
        self.object = object;
        self
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, document, line, column, object } = self;
        let mut separator = "";
        if let Some(source) = source {
            f.write_str(source)?;
            if let (Some(line), Some(column)) = (line, column) {
                write!(f, ":{line}:{column}")?;
            }
            separator = ": ";
        }
        if let Some(document) = document {
            write!(f, "{separator}document {document}")?;
            separator = ": ";
        }
        match object {
            Some(object) => write!(f, "{separator}{object}"),
            None if separator.is_empty() => f.write_str("object"),
            None => Ok(()),
        }
    }
}

/// One thing that is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read.
    #[error("{}: cannot be read: {cause}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
    /// A directory without a single manifest: most likely a mistake in the path.
    #[error("{}: has no file that ends in .yaml, .yml or .json; name a file, or another directory", path.display())]
    EmptyDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// More text than one source may have.
    #[error("{name}: has {size} bytes; at most {max} are read from one source, so split it", max = crate::MAX_BYTES)]
    TooLarge {
        /// The source.
        name: String,
        /// Its size in bytes, as far as it was read.
        size: usize,
    },
    /// Text that is not UTF-8.
    #[error("{name}: is not UTF-8 text (first bad byte at offset {offset}); save it as UTF-8")]
    NotUtf8 {
        /// The source.
        name: String,
        /// The first byte that is not UTF-8, from 0.
        offset: usize,
    },
    /// Not YAML, or YAML that is not taken: duplicate keys, unknown tags, alias bombs.
    #[error("{place}: {reason}")]
    Syntax {
        /// Where.
        place: Place,
        /// What is wrong.
        reason: String,
    },
    /// A document that is no object, or an object of a kind that is not known.
    #[error("{place}: {field}: {reason}")]
    UnknownKind {
        /// Where.
        place: Place,
        /// `apiVersion` or `kind`.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A field with a wrong value, a missing or an unknown field.
    #[error("{place}: {}{reason}", field_prefix(field))]
    Field {
        /// Where.
        place: Place,
        /// The field's path: `spec.ingress[0].ports[1].endPort`.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The same object is there twice.
    #[error("{place}: is there twice, first at {first}; keep one")]
    Duplicate {
        /// Where it is the second time.
        place: Place,
        /// Where it is the first time.
        first: Place,
    },
    /// Objects that are each right but cannot stand together.
    #[error("{object}: {reason}")]
    Conflict {
        /// The object.
        object: ObjectKey,
        /// What is wrong and what to do.
        reason: String,
    },
}

fn field_prefix(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("{field}: ") }
}

impl Error {
    /// The place in the text, where there is one.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Syntax { place, .. } | Self::UnknownKind { place, .. } | Self::Field { place, .. } | Self::Duplicate { place, .. } => {
                Some(place)
            }
            Self::Read { .. } | Self::EmptyDirectory { .. } | Self::TooLarge { .. } | Self::NotUtf8 { .. } | Self::Conflict { .. } => None,
        }
    }

    /// The field's path; empty when it is not about one field.
    pub fn field(&self) -> &str {
        match self {
            Self::UnknownKind { field, .. } | Self::Field { field, .. } => field,
            Self::Read { .. }
            | Self::EmptyDirectory { .. }
            | Self::TooLarge { .. }
            | Self::NotUtf8 { .. }
            | Self::Syntax { .. }
            | Self::Duplicate { .. }
            | Self::Conflict { .. } => "",
        }
    }

    pub(crate) fn of_problem(place: &Place, problem: Problem) -> Self {
        let Problem { field, position, reason } = problem;
        Self::Field { place: place.at(position), field, reason }
    }
}

/// Everything that is refused about one load; never empty. Prints one refusal per line.
#[derive(Debug)]
pub struct Errors(Vec<Error>);

impl Errors {
    /// `Ok` if there are none.
    pub(crate) fn check(errors: Vec<Error>) -> Result<(), Self> {
        if errors.is_empty() { Ok(()) } else { Err(Self(errors)) }
    }

    /// All of them, in the order of the text.
    pub fn iter(&self) -> std::slice::Iter<'_, Error> {
        self.0.iter()
    }

    /// All of them, in the order of the text.
    pub fn into_vec(self) -> Vec<Error> {
        self.0
    }
}

impl From<Error> for Errors {
    fn from(error: Error) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
