//! The file's form, and how it is replaced.
//!
//! ```text
//! "firebreak-state\n"       16 bytes
//! version                    4 bytes, little endian
//! length of the body         8 bytes, little endian
//! body                       frames: length (4 bytes, little endian), ControllerMessage
//! BLAKE3 of all the above   32 bytes
//! ```
//!
//! The body is what a controller would send to an agent that holds nothing: `Declared`, `Update`s, one `Commit`. It is read by the
//! code that reads the controller's stream, and every object's hash and the Commit's are checked as they are there.

use super::Kept;
use crate::session::{Committed, Held, HeldError};
use firebreak_policy::model::NodeName;
use firebreak_proto::hash::{self, ContentHash, ObjectKey, ObjectKind};
use firebreak_proto::state::{GroupChange, endpoint_update, group_update, node_update, segment_update};
use firebreak_proto::v1;
use firebreak_proto::v1::controller_message::Message as Down;
use firebreak_proto::workload::DeclaredWorkload;
use prost::Message;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The version of the form. Another one is refused: an older agent does not guess, a newer one brings a reader for this one.
pub const VERSION: u32 = 2;
/// In which the Commit's hash was over all objects in order. The file's own checksum stands in for it.
const ORDERED_HASH: u32 = 1;
/// The largest file that is written or read: some 5 million members.
pub const MAX_BYTES: usize = 256 << 20;

const MAGIC: &[u8; 16] = b"firebreak-state\n";
const HEADER: usize = MAGIC.len() + 4 + 8;
const CHECKSUM: usize = 32;

/// Why the state on disk cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system's refusal.
    #[error("{act} {}: {source}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{file}: damaged: {reason}")]
    Damaged {
        /// Which file.
        file: String,
        /// In what way.
        reason: String,
    },
    /// It is of another version of the agent.
    #[error("{file}: written in version {found} of its form; this agent reads versions {ORDERED_HASH} to {VERSION}")]
    Version {
        /// Which file.
        file: String,
        /// The version found.
        found: u32,
    },
    /// It is another node's.
    #[error("{file}: it is not this node's: {reason}")]
    OtherNode {
        /// Which file.
        file: String,
        /// What says so.
        reason: String,
    },
    /// It is larger than what is kept.
    #[error("{file}: {bytes} bytes are more than the {MAX_BYTES} that are kept")]
    TooLarge {
        /// Which file.
        file: String,
        /// How large.
        bytes: usize,
    },
}

impl StateError {
    /// A fixed word, for warnings.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "StateUnreadable",
            Self::Damaged { .. } => "StateDamaged",
            Self::Version { .. } => "StateOfOtherVersion",
            Self::OtherNode { .. } => "StateOfOtherNode",
            Self::TooLarge { .. } => "StateTooLarge",
        }
    }

    /// The same with the file's name.
    pub(super) fn in_file(self, path: &Path) -> Self {
        let name = path.display().to_string();
        match self {
            Self::Io { .. } => self,
            Self::Damaged { file: _, reason } => Self::Damaged { file: name, reason },
            Self::Version { file: _, found } => Self::Version { file: name, found },
            Self::OtherNode { file: _, reason } => Self::OtherNode { file: name, reason },
            Self::TooLarge { file: _, bytes } => Self::TooLarge { file: name, bytes },
        }
    }
}

fn damaged(reason: impl Into<String>) -> StateError {
    StateError::Damaged { file: String::new(), reason: reason.into() }
}

/// The file's bytes. Pure.
///
/// # Errors
/// [`StateError::TooLarge`].
pub fn encode(node: &NodeName, kept: &Kept) -> Result<Vec<u8>, StateError> {
    let mut bytes = Vec::with_capacity(64 << 10);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&0u64.to_le_bytes());
    let declared = v1::Declared { workloads: kept.declared.iter().map(Into::into).collect(), reset: true, last: true };
    frame(&mut bytes, Down::Declared(declared))?;
    let state = &kept.committed.state;
    let objects: BTreeMap<ObjectKey, ContentHash> = hash::objects_of(node, state).into_iter().collect();
    for group in state.groups.values() {
        let hash = objects.get(&ObjectKey::new(ObjectKind::Group, group.id.0.clone())).copied();
        let add = group.members.iter().copied().collect();
        let change = GroupChange { id: group.id.clone(), title: group.title.clone(), reset: true, add, remove: Vec::new(), hash };
        object(&mut bytes, group_update(&change))?;
    }
    for segment in state.segments.values() {
        object(&mut bytes, segment_update(segment))?;
    }
    for endpoint in state.endpoints.values() {
        object(&mut bytes, endpoint_update(endpoint))?;
    }
    object(&mut bytes, node_update(node, &state.addresses))?;
    let Committed { epoch, generation, revision, state: _, refused: _ } = &*kept.committed;
    let whole = hash::commit_hash(objects.iter().map(|(key, hash)| (key, *hash)));
    frame(
        &mut bytes,
        Down::Commit(v1::Commit { epoch: epoch.clone(), generation: generation.0, revision: revision.0, hash: whole.to_wire() }),
    )?;
    let body = u64::try_from(bytes.len() - HEADER).unwrap_or(u64::MAX);
    bytes[MAGIC.len() + 4..HEADER].copy_from_slice(&body.to_le_bytes());
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    Ok(bytes)
}

fn object(bytes: &mut Vec<u8>, update: v1::ObjectUpdate) -> Result<(), StateError> {
    frame(bytes, Down::Update(v1::Update { updates: vec![update] }))
}

fn frame(bytes: &mut Vec<u8>, message: Down) -> Result<(), StateError> {
    let message = v1::ControllerMessage { message: Some(message) };
    let length = message.encoded_len();
    let after = bytes.len() + 4 + length + CHECKSUM;
    match u32::try_from(length) {
        Ok(length) if after <= MAX_BYTES => {
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&message.encode_to_vec());
            Ok(())
        }
        Ok(_) | Err(_) => Err(StateError::TooLarge { file: String::new(), bytes: after }),
    }
}

/// Reads what [`encode`] made. Pure.
///
/// # Errors
/// For every byte that is not as it was written. Nothing is ever used in part.
pub fn decode(node: &NodeName, bytes: &[u8]) -> Result<Kept, StateError> {
    let short = || damaged(format!("{} bytes are no whole file", bytes.len()));
    let (content, checksum) = bytes.len().checked_sub(CHECKSUM).and_then(|at| bytes.split_at_checked(at)).ok_or_else(short)?;
    let (magic, rest) = content.split_first_chunk::<16>().ok_or_else(short)?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (length, body) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    if magic != MAGIC {
        return Err(damaged("it does not begin as a state file does"));
    }
    // Before the checksum: another version may have another one.
    let version = u32::from_le_bytes(*version);
    if !(ORDERED_HASH..=VERSION).contains(&version) {
        return Err(StateError::Version { file: String::new(), found: version });
    }
    if u64::from_le_bytes(*length) != u64::try_from(body.len()).unwrap_or(u64::MAX) {
        return Err(damaged(format!("it was cut off or has a tail: {} bytes of body", body.len())));
    }
    if blake3::hash(content).as_bytes().as_slice() != checksum {
        return Err(damaged("its checksum does not fit"));
    }
    replay(node, body, version)
}

/// Takes the frames as an agent that holds nothing takes the controller's messages.
fn replay(node: &NodeName, mut body: &[u8], version: u32) -> Result<Kept, StateError> {
    let mut held = Held::nothing(node.clone());
    let mut declared = None;
    let of_held = |error: HeldError| damaged(error.to_string());
    while !body.is_empty() {
        let (length, rest) = body.split_first_chunk::<4>().ok_or_else(|| damaged("a frame without a length"))?;
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (message, rest) = rest.split_at_checked(length).ok_or_else(|| damaged("a frame that is longer than the file"))?;
        body = rest;
        let message = v1::ControllerMessage::decode(message).map_err(|error| damaged(error.to_string()))?;
        match message.message {
            Some(Down::Declared(list)) => {
                let read: Result<Vec<_>, _> = list.workloads.into_iter().map(DeclaredWorkload::try_from).collect();
                declared = Some(read.map_err(|refusal| damaged(refusal.to_string()))?);
            }
            Some(Down::Update(update)) => update.updates.into_iter().try_for_each(|update| held.update(update)).map_err(of_held)?,
            Some(Down::Commit(mut commit)) => {
                if version == ORDERED_HASH {
                    commit.hash = held.commit_hash().to_wire();
                }
                let committed = held.commit(commit).map_err(of_held)?;
                if let Some((key, refusal)) = committed.refused.first_key_value() {
                    return Err(StateError::OtherNode { file: String::new(), reason: format!("{key}: {refusal}") });
                }
                return match (declared, body) {
                    (Some(declared), []) => Ok(Kept { committed, declared: Arc::new(declared) }),
                    (Some(_), _) => Err(damaged("something follows its end")),
                    (None, _) => Err(damaged("the declared workloads are missing")),
                };
            }
            Some(Down::Welcome(_) | Down::Observe(_)) | None => return Err(damaged("a frame of another kind")),
        }
    }
    Err(damaged("its end is missing"))
}

/// The file's bytes; `None` when there is none. Never more than [`MAX_BYTES`].
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    let failed = |source| StateError::Io { act: "reading", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_BYTES {
        return Err(StateError::TooLarge { file: path.display().to_string(), bytes: bytes.len() });
    }
    Ok(Some(bytes))
}

/// Puts the bytes in the file's place: a draft beside it, synced, renamed over it, and the folder synced. At each moment, also of
/// a power cut, the name leads to the whole file before or the whole one after.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let draft = path.with_extension("draft");
    let failed = |act, path: &Path| {
        let path = path.to_owned();
        move |source| StateError::Io { act, path, source }
    };
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft).map_err(failed("opening", &draft))?;
    file.write_all(bytes).map_err(failed("writing", &draft))?;
    file.sync_all().map_err(failed("syncing", &draft))?;
    std::fs::rename(&draft, path).map_err(failed("renaming to", path))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("syncing", folder))
}
