//! Who this installation is, on disk.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or made.
    #[error("{act} {}: {source}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another agent uses the directory.
    #[error("{} is in use by another agent", .0.display())]
    Busy(PathBuf),
    /// The file is not what we wrote.
    #[error("{} holds no instance id; restore it, or remove it and have the node's pin removed at the controller", .0.display())]
    Broken(PathBuf),
}

/// The state directory, held against a second agent for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory (0700) if it is missing, and locks it.
    ///
    /// # Errors
    /// When it cannot be made, or another agent has it.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        let failed = |act, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Io { act, path, source }
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("making", path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("opening", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(IdentityError::Busy(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed("locking", &lock_path)(source)),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The installation's id, made at the first call. The controller pins the node's name to it.
    ///
    /// # Errors
    /// When it cannot be read, written, or is not an id. A broken id is never replaced by itself: that would look like another
    /// installation.
    pub fn instance_id(&self) -> Result<String, IdentityError> {
        let path = self.path.join("instance_id");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let id = text.trim();
                let plausible = id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
                if plausible { Ok(id.to_owned()) } else { Err(IdentityError::Broken(path)) }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = random_id()?;
                write_whole(&self.path, &path, &id).map_err(|source| IdentityError::Io { act: "writing", path: path.clone(), source })?;
                Ok(id)
            }
            Err(source) => Err(IdentityError::Io { act: "reading", path, source }),
        }
    }
}

/// The kernel's boot id.
///
/// # Errors
/// When /proc does not have it.
pub fn boot_id() -> Result<String, IdentityError> {
    read_line("/proc/sys/kernel/random/boot_id")
}

/// The kernel's release, for people.
///
/// # Errors
/// When /proc does not have it.
pub fn kernel_release() -> Result<String, IdentityError> {
    read_line("/proc/sys/kernel/osrelease")
}

/// 122 random bits, from the kernel (random(4)).
fn random_id() -> Result<String, IdentityError> {
    read_line("/proc/sys/kernel/random/uuid")
}

fn read_line(path: &str) -> Result<String, IdentityError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(IdentityError::Io { act: "reading", path: PathBuf::from(path), source }),
    }
}

/// After this returns the file is there whole, also after a power cut; before, it is not there at all.
fn write_whole(folder: &Path, path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_installation_keeps_its_id_and_nobody_else_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let state = StateDir::open(&path).unwrap();
        let id = state.instance_id().unwrap();
        assert_eq!(state.instance_id().unwrap(), id);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("instance_id"))), (0o700, 0o600));
        assert!(matches!(StateDir::open(&path), Err(IdentityError::Busy(_))), "a second agent is refused");
        drop(state);
        assert_eq!(StateDir::open(&path).unwrap().instance_id().unwrap(), id);
    }

    #[test]
    fn a_broken_id_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "\n", "not an id", "0123"] {
            std::fs::write(folder.path().join("instance_id"), text).unwrap();
            assert!(matches!(StateDir::open(folder.path()).unwrap().instance_id(), Err(IdentityError::Broken(_))), "{text:?}");
        }
    }

    #[test]
    fn the_kernel_says_who_it_is() {
        assert_eq!(boot_id().unwrap().len(), 36);
        assert!(!kernel_release().unwrap().is_empty());
    }
}
