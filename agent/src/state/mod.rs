//! What the agent enforces, on disk: so that a node that starts without a controller is protected as it was, and a restarted agent
//! asks for the difference only.
//!
//! What holds:
//! 1. A file takes effect whole or not at all: a damaged one, one of another version or of another node is refused by name.
//! 2. After a power cut the file is the one before or the one after, never a mixture ([`file`]).
//! 3. What is on disk is older than what the kernel holds or the same. Whether it is the same says the [`Marker`]; where it is
//!    not, the kernel keeps what it has until the controller answers, and nothing goes back to an older state.
//! 4. Writing is off the way of a commit; the latest state wins.

mod file;
mod keep;
mod marker;

pub use file::{MAX_BYTES, StateError, VERSION, decode, encode};
pub use keep::{KeepLinks, keep};
pub use marker::Marker;

use crate::local::Warning;
use crate::session::Committed;
use firebreak_policy::model::{Generation, NodeName};
use firebreak_proto::workload::DeclaredWorkload;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is kept: the state of the last generation that the kernel took, and the workloads that manifests declare for this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The last generation that took effect. Objects that were refused are not in it.
    pub committed: Arc<Committed>,
    /// Where the agent looks for workloads beside what it finds by itself.
    pub declared: Arc<Vec<DeclaredWorkload>>,
}

/// The file of a state directory.
#[derive(Clone, Debug)]
pub struct StateFile {
    node: NodeName,
    path: PathBuf,
}

impl StateFile {
    /// In this directory, of this node.
    pub fn new(folder: &Path, node: NodeName) -> Self {
        Self { node, path: folder.join("state") }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; `None` when there is none. Blocking.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or is not of this version and node. Nothing of it is used then; the file stays.
    pub fn load(&self) -> Result<Option<Kept>, StateError> {
        match file::read(&self.path)? {
            Some(bytes) => decode(&self.node, &bytes).map(Some).map_err(|error| error.in_file(&self.path)),
            None => Ok(None),
        }
    }

    /// Replaces it. When this returns without an error, it is there also after a power cut; with an error, the one before is.
    /// Blocking.
    ///
    /// # Errors
    /// When it is too large or cannot be written.
    pub fn store(&self, kept: &Kept) -> Result<usize, StateError> {
        let bytes = encode(&self.node, kept).map_err(|error| error.in_file(&self.path))?;
        file::replace(&self.path, &bytes)?;
        Ok(bytes.len())
    }
}

/// What a starting agent has to go by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// What was on disk and can be used.
    pub kept: Option<Kept>,
    /// Whether the kernel may be brought to it before the controller has answered.
    pub enforce: bool,
    /// Why what is on disk cannot be used, for people.
    pub refused: Option<Warning>,
}

/// Reads what is on disk and decides what it is good for. `empty` says that the kernel held nothing of ours: the node has
/// booted, or somebody has removed it. Blocking.
pub fn restore(file: &StateFile, marker: &Marker, empty: bool) -> Restored {
    match file.load() {
        Ok(None) => Restored::default(),
        Ok(Some(kept)) => {
            let Committed { epoch, generation, revision, state: _, refused: _ } = &*kept.committed;
            let is_state = *generation != Generation(0);
            let enforce = is_state && (empty || marker.is(epoch, *generation));
            tracing::info!(generation = generation.0, revision = revision.0, enforce, "state on disk");
            Restored { kept: Some(kept), enforce, refused: None }
        }
        Err(error) => {
            let message = format!(
                "{error}; nothing of it is used: what the kernel holds stays in force, new workloads are denied until the controller \
                 answers. The next state from the controller replaces the file"
            );
            tracing::error!(code = error.code(), "{message}");
            Restored { kept: None, enforce: false, refused: Some(Warning::new(error.code(), message)) }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
