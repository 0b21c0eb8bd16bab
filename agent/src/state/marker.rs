//! Which generation the kernel holds or may hold, written before each commit.
//!
//! The state file is written after the fact, so that an agent that dies in between leaves a kernel that is ahead of it. The next agent
//! must not take the kernel back. The marker tells it: it is written before the kernel is asked, into the page cache only (some 2 us),
//! which is enough: the page cache outlives a killed agent, and a crash of the node takes the kernel's tables with it.

use super::StateError;
use firebreak_policy::model::Generation;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One line of fixed length, so that one write replaces all of it.
const LENGTH: usize = 256;

/// The file `enforced` of the state directory.
#[derive(Debug)]
pub struct Marker {
    file: File,
    path: PathBuf,
    boot_id: String,
    last: Option<(String, Generation)>,
}

impl Marker {
    /// Opens it, or makes it. Blocking.
    ///
    /// # Errors
    /// When it cannot be read or made.
    pub fn open(folder: &Path, boot_id: &str) -> Result<Self, StateError> {
        let path = folder.join("enforced");
        let failed = |source| StateError::Io { act: "opening", path: path.clone(), source };
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path).map_err(failed)?;
        let mut bytes = [0; LENGTH];
        let length = file.read_at(&mut bytes, 0).map_err(failed)?;
        // Whatever cannot be read says nothing, so that the kernel is left alone.
        let last = std::str::from_utf8(&bytes[..length]).ok().and_then(|text| {
            let mut words = text.split_whitespace();
            let (boot, epoch, generation) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
            (boot == boot_id).then(|| (epoch.to_owned(), Generation(generation)))
        });
        Ok(Self { file, path, boot_id: boot_id.to_owned(), last })
    }

    /// Whether nothing newer than this generation was ever asked of the kernel in this boot.
    pub fn is(&self, epoch: &str, generation: Generation) -> bool {
        self.last.as_ref().is_some_and(|(last_epoch, last)| last_epoch == epoch && *last == generation)
    }

    /// Says that this generation is about to be asked of the kernel. Returns what stood there before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&mut self, epoch: &str, generation: Generation) -> Result<Option<(String, Generation)>, StateError> {
        if self.is(epoch, generation) {
            return Ok(self.last.clone());
        }
        let mut line = format!("{} {epoch} {}", self.boot_id, generation.0).into_bytes();
        line.resize(LENGTH - 1, b' ');
        line.push(b'\n');
        self.file.write_all_at(&line, 0).map_err(|source| StateError::Io { act: "writing", path: self.path.clone(), source })?;
        Ok(self.last.replace((epoch.to_owned(), generation)))
    }
}
