//! What was asked, on disk: so that the next agent knows who, and can tell of an end that nobody saw.

use super::Observing;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The file's content, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObserveRecord {
    /// Seconds since 1970.
    pub until: u64,
    /// Who asked.
    pub principal: String,
    /// Why.
    pub reason: String,
    /// Whether an agent has told of it.
    pub told: bool,
}

/// The file `observe` of a state directory.
#[derive(Clone, Debug)]
pub struct RecordFile(PathBuf);

impl RecordFile {
    /// Of this directory.
    pub fn new(folder: &Path) -> Self {
        Self(folder.join("observe"))
    }

    /// Reads it; `None` when there is none or it cannot be read: it only helps to tell, the kernel decides. Blocking.
    pub fn read(&self) -> Option<ObserveRecord> {
        std::fs::read(&self.0).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
    }

    /// Replaces it, or removes it. Blocking.
    ///
    /// # Errors
    /// What the system said.
    pub fn write(&self, record: Option<&ObserveRecord>) -> io::Result<()> {
        match record {
            Some(record) => {
                let draft = self.0.with_extension("observe-draft");
                std::fs::write(&draft, serde_json::to_vec(record)?)?;
                std::fs::rename(&draft, &self.0)
            }
            None => match std::fs::remove_file(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            },
        }
    }
}

impl ObserveRecord {
    /// Of a node that observes.
    pub fn of(observing: &Observing, told: bool) -> Self {
        let until = observing.until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { until, principal: observing.principal.clone(), reason: observing.reason.clone(), told }
    }

    /// Until when.
    pub fn until(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.until)
    }
}
