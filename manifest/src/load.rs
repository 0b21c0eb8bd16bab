//! From files and texts to checked objects.

use crate::convert::{self, DEFAULT_NAMESPACE};
use crate::decode::decode;
use crate::error::{Error, Errors, Place};
use crate::kinds::{Kind, Object, ObjectKey};
use crate::path::Problems;
use crate::text::{Document, documents};
use crate::tree::{Position, Tree, Unplaced, Value, quoted};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most that is read from one source, in bytes.
pub const MAX_BYTES: usize = 128 * 1024 * 1024;

/// An object and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Located<T> {
    /// The object.
    pub object: T,
    /// Where.
    pub place: Place,
}

/// Reads every document of a text. Empty documents are passed over, a `kind: List` is its items. Errors: everything that is
/// wrong in any document, and objects that are there twice; then no object comes back.
pub fn parse_str(source: &str, text: &str) -> Result<Vec<Located<Object>>, Errors> {
    let mut load = Load::default();
    load.text(source, text);
    load.finish()
}

/// Reads files, directories (their `*.yaml`, `*.yml` and `*.json` in name order, not below) and `-` for standard input, as
/// [`parse_str`] reads a text. Objects must differ across all of them.
pub fn load_paths(paths: &[PathBuf]) -> Result<Vec<Located<Object>>, Errors> {
    let mut load = Load::default();
    for path in paths {
        load.path(path);
    }
    load.finish()
}

pub(crate) fn from_json(json: &[u8]) -> Result<Object, Errors> {
    let place = Place::nowhere();
    let Unplaced(tree) = serde_json::from_slice(json)
        .map_err(|error| Error::Syntax { place: place.clone(), reason: format!("cannot be read as JSON: {error}") })?;
    let mut load = Load::default();
    load.object(&tree, &place);
    let mut objects = load.finish()?.into_iter().map(|located| located.object);
    match (objects.next(), objects.next()) {
        (Some(object), None) => Ok(object),
        (_, _) => Err(Error::Syntax { place, reason: "is a List; exactly one object is expected here".to_owned() }.into()),
    }
}

#[derive(Default)]
struct Load {
    objects: Vec<Located<Object>>,
    errors: Vec<Error>,
}

impl Load {
    fn finish(mut self) -> Result<Vec<Located<Object>>, Errors> {
        let mut first: HashMap<ObjectKey, &Place> = HashMap::with_capacity(self.objects.len());
        for Located { object, place } in &self.objects {
            match first.entry(object.key()) {
                std::collections::hash_map::Entry::Vacant(free) => drop(free.insert(place)),
                std::collections::hash_map::Entry::Occupied(taken) => {
                    self.errors.push(Error::Duplicate { place: place.clone(), first: (*taken.get()).clone() });
                }
            }
        }
        Errors::check(self.errors)?;
        Ok(self.objects)
    }

    fn path(&mut self, path: &Path) {
        let read = |cause| Error::Read { path: path.to_owned(), cause };
        if path == Path::new("-") {
            return self.reader("-", path, std::io::stdin().lock());
        }
        if !path.is_dir() {
            match std::fs::File::open(path) {
                Ok(file) => self.reader(&path.display().to_string(), path, file),
                Err(cause) => self.errors.push(read(cause)),
            }
            return;
        }
        match manifests_in(path) {
            Err(cause) => self.errors.push(read(cause)),
            Ok(files) if files.is_empty() => self.errors.push(Error::EmptyDirectory { path: path.to_owned() }),
            Ok(files) => files.iter().for_each(|file| self.path(file)),
        }
    }

    fn reader(&mut self, name: &str, path: &Path, reader: impl Read) {
        let mut bytes = Vec::new();
        // One byte more than is taken tells "exactly the most" from "more".
        let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        if let Err(cause) = reader.take(limit).read_to_end(&mut bytes) {
            return self.errors.push(Error::Read { path: path.to_owned(), cause });
        }
        match String::from_utf8(bytes) {
            Ok(text) => self.text(name, &text),
            Err(error) => self.errors.push(Error::NotUtf8 { name: name.to_owned(), offset: error.utf8_error().valid_up_to() }),
        }
    }

    fn text(&mut self, source: &str, text: &str) {
        if text.len() > MAX_BYTES {
            return self.errors.push(Error::TooLarge { name: source.to_owned(), size: text.len() });
        }
        let source: Arc<str> = Arc::from(source);
        for Document { number, content } in documents(text) {
            let place = Place::of_document(&source, number);
            match content {
                Ok(tree) => self.object(&tree, &place),
                Err((position, reason)) => self.errors.push(Error::Syntax { place: place.at(position), reason }),
            }
        }
    }

    /// One object, or a List of them.
    fn object(&mut self, tree: &Tree, place: &Place) {
        let place = place.at(tree.position);
        let is_list = tree.get("apiVersion").and_then(Tree::text) == Some("v1") && tree.get("kind").and_then(Tree::text) == Some("List");
        if is_list {
            return self.list(tree, &place);
        }
        match kind_of(tree) {
            Err(Unknown { field: Some(field), position, reason }) => {
                self.errors.push(Error::UnknownKind { place: place.at(position), field: field.to_owned(), reason });
            }
            Err(Unknown { field: None, position, reason }) => self.errors.push(Error::Syntax { place: place.at(position), reason }),
            Ok(kind) => {
                let place = place.with_object(Some(title(kind, tree)));
                match read(kind, tree) {
                    Ok(object) => {
                        let place = place.with_object(Some(object.key().to_string()));
                        self.objects.push(Located { object, place });
                    }
                    Err(problems) => {
                        self.errors.extend(problems.into_list().into_iter().map(|problem| Error::of_problem(&place, problem)));
                    }
                }
            }
        }
    }

    fn list(&mut self, tree: &Tree, place: &Place) {
        match tree.get("items").map(|items| &items.value) {
            Some(Value::List(items)) => items.iter().for_each(|item| self.object(item, place)),
            None | Some(Value::Null) => {}
            Some(other) => {
                let reason = format!("has to be a list, not {}", other.describe());
                self.errors.push(Error::Field { place: place.clone(), field: "items".to_owned(), reason });
            }
        }
    }
}

fn manifests_in(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let wanted = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json");
        if wanted && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Why a document's kind is not known: the field at fault, if the document has fields.
struct Unknown {
    field: Option<&'static str>,
    position: Position,
    reason: String,
}

fn kind_of(tree: &Tree) -> Result<Kind, Unknown> {
    let position = tree.position;
    let Value::Map(_) = &tree.value else {
        let reason = format!("a document has to be a mapping with apiVersion and kind, not {}", tree.value.describe());
        return Err(Unknown { field: None, position, reason });
    };
    let text = |field| {
        let wrong = |position, reason| Unknown { field: Some(field), position, reason };
        let found = tree.get(field).ok_or_else(|| wrong(position, "is required, but not there".to_owned()))?;
        let text = found.text().ok_or_else(|| wrong(found.position, format!("has to be text, not {}", found.value.describe())))?;
        Ok((found.position, text))
    };
    let (version_position, version) = text("apiVersion")?;
    let (kind_position, name) = text("kind")?;
    match Kind::from_name(name) {
        Some(kind) if kind.api_version() == version => Ok(kind),
        Some(kind) => {
            let reason = format!("{} is not the version of {kind} that is read here; write {}", quoted(version), kind.api_version());
            Err(Unknown { field: Some("apiVersion"), position: version_position, reason })
        }
        None => {
            let known = Kind::ALL.map(|kind| format!("{} {kind}", kind.api_version())).join(", ");
            let reason = format!("{} {} is not known here; known are {known}", quoted(version), quoted(name));
            Err(Unknown { field: Some("kind"), position: kind_position, reason })
        }
    }
}

/// Kind and name, as far as they can be read before the object is.
fn title(kind: Kind, tree: &Tree) -> String {
    let metadata = tree.get("metadata");
    let name = metadata.and_then(|metadata| metadata.get("name")).and_then(Tree::text);
    let namespace = metadata.and_then(|metadata| metadata.get("namespace")).and_then(Tree::text);
    match (name, kind.is_namespaced()) {
        (None, _) => format!("{kind} without a name"),
        (Some(name), true) => format!("{kind} {}/{name}", namespace.unwrap_or(DEFAULT_NAMESPACE)),
        (Some(name), false) => format!("{kind} {name}"),
    }
}

fn read(kind: Kind, tree: &Tree) -> Result<Object, Problems<'_>> {
    let mut problems = Problems::new(Some(tree));
    let strictness = kind.strictness();
    let object = match kind {
        Kind::Namespace => decode(tree, strictness, &mut problems).map(Object::Namespace),
        Kind::Node => decode(tree, strictness, &mut problems).map(Object::Node),
        Kind::LabelRule => decode(tree, strictness, &mut problems).map(Object::LabelRule),
        Kind::AddressGroup => decode(tree, strictness, &mut problems).map(Object::AddressGroup),
        Kind::Pod => decode(tree, strictness, &mut problems).map(Object::Pod),
        Kind::Workload => decode(tree, strictness, &mut problems).map(Object::Workload),
        Kind::NetworkPolicy => decode(tree, strictness, &mut problems).map(Object::NetworkPolicy),
        Kind::SegmentPolicy => decode(tree, strictness, &mut problems).map(Object::SegmentPolicy),
        Kind::ClusterSegmentPolicy => decode(tree, strictness, &mut problems).map(Object::ClusterSegmentPolicy),
        Kind::AdminNetworkPolicy => decode(tree, strictness, &mut problems).map(Object::AdminNetworkPolicy),
        Kind::BaselineAdminNetworkPolicy => decode(tree, strictness, &mut problems).map(Object::BaselineAdminNetworkPolicy),
        Kind::ClusterNetworkPolicy => decode(tree, strictness, &mut problems).map(Object::ClusterNetworkPolicy),
    };
    let Some(mut object) = object else { return Err(problems) };
    let metadata = object.metadata_mut();
    // kubectl prints `namespace: ""` for none.
    metadata.namespace = metadata.namespace.take().filter(|namespace| !namespace.is_empty());
    if kind.is_namespaced() {
        metadata.namespace.get_or_insert_with(|| DEFAULT_NAMESPACE.to_owned());
    }
    convert::check(&object, &mut problems);
    if problems.is_empty() { Ok(object) } else { Err(problems) }
}
