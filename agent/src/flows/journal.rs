//! What a killed agent had told since its last cursor: written before it is handed on, so that the next agent goes on under the same flow ids
//! and no packet is told under two of them.
//!
//! `flows-journal.<boot>.<number>`: messages, each behind its length, appended and not synced (they must outlive the process, not the machine). Each
//! cursor begins a new number and says which; the ones before it go.

use super::cursor::{CursorEntry, EntryFile, StateFiles};
use super::error::FlowsError;
use super::key::FlowKey;
use prost::Message;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

/// One thing that was told since the last cursor and that counters do not tell again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalEntry {
    /// A flow was opened.
    Opened {
        /// The flow, and its element if it was read.
        entry: CursorEntry,
        /// Packets of it that are in the control sum's `told`.
        told: u64,
        /// Whether its first packet is in the overflow counter.
        uncounted: bool,
    },
    /// A packet of an open flow that no element counts.
    Uncounted {
        /// Its flow.
        key: FlowKey,
        /// Its length.
        length: u32,
    },
}

#[derive(Clone, PartialEq, Message)]
struct JournalFile {
    #[prost(message, optional, tag = "1")]
    entry: Option<EntryFile>,
    #[prost(uint64, tag = "2")]
    told: u64,
    #[prost(bool, tag = "3")]
    uncounted: bool,
    /// Of a single packet; `entry` then has the key alone.
    #[prost(uint32, optional, tag = "4")]
    length: Option<u32>,
}

impl JournalFile {
    fn of(entry: JournalEntry) -> Self {
        match entry {
            JournalEntry::Opened { entry, told, uncounted } => Self { entry: Some(EntryFile::of(entry)), told, uncounted, length: None },
            JournalEntry::Uncounted { key, length } => {
                let entry = EntryFile::of(CursorEntry { key, element: None, flow: None });
                Self { entry: Some(entry), told: 0, uncounted: true, length: Some(length) }
            }
        }
    }

    fn into_entry(self) -> Result<JournalEntry, FlowsError> {
        let Self { entry, told, uncounted, length } = self;
        let entry = entry.ok_or(FlowsError::Decode { what: "flows-journal", reason: "no entry" })?.into_entry()?;
        Ok(match length {
            None => JournalEntry::Opened { entry, told, uncounted },
            Some(length) => JournalEntry::Uncounted { key: entry.key, length },
        })
    }
}

impl StateFiles {
    /// Adds to a journal.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_journal(&self, number: u64, entries: Vec<JournalEntry>) -> Result<(), FlowsError> {
        let path = self.journal(number);
        let bytes: Vec<u8> = entries.into_iter().flat_map(|entry| JournalFile::of(entry).encode_length_delimited_to_vec()).collect();
        let written = fs::File::options().create(true).append(true).open(&path).and_then(|mut file| file.write_all(&bytes));
        written.map_err(|source| FlowsError::State { act: "write", path, source })
    }

    /// What the journals of this boot from this number on say, oldest first, and the number that nobody has used.
    ///
    /// # Errors
    /// When a file cannot be read, or an entry that is there in full is damaged. The last entry may be cut short: its agent was killed before it
    /// told of it.
    pub fn read_journals(&self, from: u64) -> Result<(Vec<JournalEntry>, u64), FlowsError> {
        let mut entries = Vec::new();
        let mut next = from;
        for number in self.journals()?.into_iter().filter(|number| *number >= from) {
            next = number + 1;
            let path = self.journal(number);
            let bytes = fs::read(&path).map_err(|source| FlowsError::State { act: "read", path, source })?;
            let mut left = bytes.as_slice();
            while !left.is_empty() {
                let is_whole = prost::decode_length_delimiter(left)
                    .is_ok_and(|length| prost::length_delimiter_len(length).checked_add(length).is_some_and(|whole| whole <= left.len()));
                if !is_whole {
                    break;
                }
                let file = JournalFile::decode_length_delimited(&mut left)
                    .map_err(|_| FlowsError::Decode { what: "flows-journal", reason: "not a list of entries" })?;
                entries.push(file.into_entry()?);
            }
        }
        Ok((entries, next))
    }

    /// Removes the journals before this number, and those of other boots.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn drop_journals(&self, before: u64) -> Result<(), FlowsError> {
        let ours = format!("flows-journal.{}.", self.boot_id);
        for (name, path) in self.journal_files()? {
            let is_kept = name.strip_prefix(&ours).and_then(|number| number.parse::<u64>().ok()).is_some_and(|number| number >= before);
            if !is_kept {
                fs::remove_file(&path).map_err(|source| FlowsError::State { act: "remove", path, source })?;
            }
        }
        Ok(())
    }

    fn journal(&self, number: u64) -> PathBuf {
        self.directory.join(format!("flows-journal.{}.{number}", self.boot_id))
    }

    /// The numbers of this boot's journals, rising.
    fn journals(&self) -> Result<Vec<u64>, FlowsError> {
        let ours = format!("flows-journal.{}.", self.boot_id);
        let mut numbers: Vec<u64> = self.journal_files()?.iter().filter_map(|(name, _)| name.strip_prefix(&ours)?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn journal_files(&self) -> Result<Vec<(String, PathBuf)>, FlowsError> {
        let failed = |source| FlowsError::State { act: "list", path: self.directory.clone(), source };
        let listed: io::Result<Vec<_>> = fs::read_dir(&self.directory).map_err(failed)?.collect();
        let names = listed.map_err(failed)?.into_iter().filter_map(|file| Some((file.file_name().into_string().ok()?, file.path())));
        Ok(names.filter(|(name, _)| name.starts_with("flows-journal.")).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::key::FlowVerdict;
    use super::*;
    use firebreak_policy::model::{Direction, Protocol, Transport};
    use std::net::IpAddr;

    fn packet(port: u16) -> JournalEntry {
        let key = FlowKey {
            direction: Direction::Ingress,
            verdict: FlowVerdict::Drop,
            source: IpAddr::from([10, 0, 0, 1]),
            destination: IpAddr::from([10, 0, 0, 2]),
            transport: Transport::Port(Protocol::TCP, port),
        };
        if port % 2 == 0 {
            JournalEntry::Uncounted { key, length: port.into() }
        } else {
            JournalEntry::Opened { entry: CursorEntry { key, element: None, flow: None }, told: port.into(), uncounted: port == 3 }
        }
    }

    #[test]
    fn a_journal_is_read_from_the_cursors_number_on_and_a_cut_entry_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let files = StateFiles::open(directory.path(), "boot").unwrap();
        assert_eq!(files.read_journals(0).unwrap(), (vec![], 0));
        files.append_journal(9, vec![packet(1)]).unwrap();
        files.append_journal(10, vec![packet(2), packet(3)]).unwrap();
        files.append_journal(10, vec![packet(4)]).unwrap();
        files.append_journal(11, vec![packet(5), packet(6)]).unwrap();
        let cut = files.journal(11);
        let bytes = fs::read(&cut).unwrap();
        for length in [bytes.len() - 1, bytes.len() - 3] {
            fs::write(&cut, &bytes[..length]).unwrap();
            assert_eq!(files.read_journals(10).unwrap(), ([2, 3, 4, 5].map(packet).to_vec(), 12));
        }
        let other = StateFiles::open(directory.path(), "other").unwrap();
        assert_eq!(other.read_journals(0).unwrap(), (vec![], 0), "another boot's is nobody's");
        files.drop_journals(11).unwrap();
        assert_eq!(files.read_journals(0).unwrap(), (vec![packet(5)], 12));
        other.drop_journals(0).unwrap();
        assert_eq!(files.read_journals(0).unwrap(), (vec![], 0));
    }
}
