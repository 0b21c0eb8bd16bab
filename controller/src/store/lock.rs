//! One process at a time: an advisory lock on a file beside the database.

use super::types::StoreError;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The mode of every file that the store makes: it holds the ids by which agents are known.
const PRIVATE: u32 = 0o600;

/// Makes an empty file that only its owner reads and writes. One that is there is an error.
pub(super) fn create_private(path: &Path) -> Result<(), StoreError> {
    let made = File::options().write(true).create_new(true).mode(PRIVATE).open(path);
    made.map(drop).map_err(|error| StoreError::File {
        act: "cannot write",
        path: path.display().to_string(),
        reason: if error.kind() == ErrorKind::AlreadyExists { "the file is already there".to_owned() } else { error.to_string() },
    })
}

/// Holds the lock until it is dropped; the kernel drops it when the process dies.
#[derive(Debug)]
pub(super) struct DatabaseLock {
    _file: File,
}

impl DatabaseLock {
    /// Takes the lock of the database at `path`, or says that a controller runs. Never waits.
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        let lock_path = sibling(path, ".lock");
        let refused = |reason: String| StoreError::File { act: "cannot lock database", path: path.display().to_string(), reason };
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(PRIVATE)
            .open(&lock_path)
            .map_err(|error| refused(format!("{}: {error}", lock_path.display())))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(refused("a running firebreak-controller has it open".to_owned())),
            Err(TryLockError::Error(error)) => Err(refused(error.to_string())),
        }
    }
}

/// The path with something appended to its file name.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
