//! What outlives the agent, in three small files of its state directory:
//!
//! - `flows-sequence`: the next sequence, written before records are sent. Records beyond it never left the process, so that a restarted agent of the
//!   same boot goes on there: no number is used twice, and a gap at the controller is a record that was really lost (the agent was killed before
//!   the controller had it), not a reserved block.
//! - `flows-cursor`: open flows, the elements' last readings and the control sums, every second while they change (less often when they are many) and at a stop. A restarted agent goes on with the
//!   same flow ids and exact totals. After a kill the file may be that old: what was opened since is in the journal ([`super::journal`]), and a
//!   flow that was closed since is closed again, under the same id.
//! - `flows-unacked`: records that the controller had not acknowledged when the agent was stopped in order. A killed agent loses them; its open flows
//!   are told again from the cursor, and cuts and events of the node from [`super::events`].
//!
//! Files are replaced by rename and not synced: they must outlive the process. After a reboot the kernel's table, its counters and the boot id are
//! gone too, so that only unacknowledged records of an earlier boot still mean something.

use super::control::ControlState;
use super::error::FlowsError;
use super::key::FlowKey;
use super::locals::LocalEnd;
use super::record::{FlowId, FlowTold, Phase, Record, from_proto};
use firebreak_policy::model::Generation;
use firebreak_proto::v1;
use prost::Message;
use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// How many entries are kept over a restart, open flows before others. The rest is told anew, with a note.
const MAX_ENTRIES: usize = 150_000;

/// Flows, elements and sums at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The kernel's number of the table that the elements belong to.
    pub handle: Option<u64>,
    /// Ingress, egress.
    pub control: [ControlState; 2],
    /// One per flow key.
    pub entries: Vec<CursorEntry>,
    /// The first journal that is about what came after this cursor.
    pub journal: u64,
}

/// One flow key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorEntry {
    /// The key.
    pub key: FlowKey,
    /// Its element as it was read last.
    pub element: Option<CursorElement>,
    /// Its flow, if one is open.
    pub flow: Option<CursorFlow>,
}

/// An element as it was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorElement {
    /// Packets that were told.
    pub packets: u64,
    /// Bytes that were told.
    pub bytes: u64,
    /// When it ends.
    pub ends: Option<SystemTime>,
}

/// An open flow. Fields as in [`FlowTold`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CursorFlow {
    pub id: FlowId,
    pub local: Option<Arc<LocalEnd>>,
    pub generation: Generation,
    pub first_seen: SystemTime,
    pub last_seen: SystemTime,
    pub packets: u64,
    pub bytes: u64,
    /// The length of the logged packet, while no element was read that has it.
    pub logged: Option<u32>,
    pub source_port: Option<u16>,
    pub note: Cow<'static, str>,
}

#[derive(Clone, PartialEq, Message)]
struct CursorFile {
    #[prost(string, tag = "1")]
    boot_id: String,
    #[prost(uint64, optional, tag = "2")]
    handle: Option<u64>,
    #[prost(message, repeated, tag = "3")]
    control: Vec<ControlFile>,
    #[prost(message, repeated, tag = "4")]
    entries: Vec<EntryFile>,
    #[prost(uint64, tag = "5")]
    journal: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ControlFile {
    #[prost(uint64, optional, tag = "1")]
    base: Option<u64>,
    #[prost(uint64, tag = "2")]
    told: u64,
    #[prost(uint64, tag = "3")]
    overflow_told: u64,
    #[prost(uint64, tag = "4")]
    lost: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EntryFile {
    /// The key, and the flow if one is open.
    #[prost(message, optional, tag = "1")]
    flow: Option<v1::FlowEvent>,
    #[prost(bool, tag = "2")]
    is_open: bool,
    #[prost(uint32, optional, tag = "3")]
    logged: Option<u32>,
    #[prost(message, optional, tag = "4")]
    element: Option<ElementFile>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ElementFile {
    #[prost(uint64, tag = "1")]
    packets: u64,
    #[prost(uint64, tag = "2")]
    bytes: u64,
    #[prost(message, optional, tag = "3")]
    ends: Option<prost_types::Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct UnackedFile {
    #[prost(string, tag = "1")]
    boot_id: String,
    #[prost(message, repeated, tag = "2")]
    records: Vec<v1::FlowRecord>,
}

/// The files of one agent in one boot.
#[derive(Clone, Debug)]
pub struct StateFiles {
    pub(super) directory: PathBuf,
    pub(super) boot_id: String,
}

impl StateFiles {
    /// Makes the directory if it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: &Path, boot_id: &str) -> Result<Self, FlowsError> {
        fs::create_dir_all(directory).map_err(|source| FlowsError::State { act: "create", path: directory.to_owned(), source })?;
        Ok(Self { directory: directory.to_owned(), boot_id: boot_id.to_owned() })
    }

    /// The next sequence of this boot; 1 when this boot has sent none.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged: going on could use a number twice.
    pub fn read_sequence(&self) -> Result<u64, FlowsError> {
        let path = self.path("flows-sequence");
        let Some(bytes) = read(&path)? else { return Ok(1) };
        let damaged = || FlowsError::State { act: "read", path: path.clone(), source: io::Error::from(io::ErrorKind::InvalidData) };
        let text = String::from_utf8(bytes).map_err(|_| damaged())?;
        let (boot_id, next) = text.trim_end().split_once(' ').ok_or_else(damaged)?;
        if boot_id == self.boot_id { next.parse().map_err(|_| damaged()) } else { Ok(1) }
    }

    /// Keeps the next sequence.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_sequence(&self, next: u64) -> Result<(), FlowsError> {
        write(&self.path("flows-sequence"), format!("{} {next}\n", self.boot_id).as_bytes())
    }

    /// The cursor of this boot. A damaged one is an error; the caller goes on without.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn read_cursor(&self) -> Result<Option<Cursor>, FlowsError> {
        let Some(bytes) = read(&self.path("flows-cursor"))? else { return Ok(None) };
        let file = CursorFile::decode(bytes.as_slice()).map_err(|_| FlowsError::Decode { what: "flows-cursor", reason: "not a cursor" })?;
        if file.boot_id != self.boot_id {
            return Ok(None);
        }
        file.into_cursor().map(Some)
    }

    /// Keeps a cursor.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_cursor(&self, cursor: Cursor) -> Result<(), FlowsError> {
        write(&self.path("flows-cursor"), &CursorFile::of(cursor, self.boot_id.clone()).encode_to_vec())
    }

    /// Takes the records that an earlier agent left, oldest first; the file is gone afterwards. A sequence is there for records that were sent in
    /// this boot.
    ///
    /// # Errors
    /// When the file cannot be read, removed, or is damaged (it is removed then too).
    pub fn take_unacked(&self) -> Result<Vec<(Option<u64>, Record)>, FlowsError> {
        self.take_unacked_after(|_| {})
    }

    /// As [`Self::take_unacked`]; `keep` sees the records before their file goes.
    pub(super) fn take_unacked_after(&self, keep: impl FnOnce(&[(Option<u64>, Record)])) -> Result<Vec<(Option<u64>, Record)>, FlowsError> {
        let path = self.path("flows-unacked");
        let Some(bytes) = read(&path)? else { return Ok(Vec::new()) };
        let records = self.decode_unacked(&bytes);
        if let Ok(records) = &records {
            keep(records);
        }
        fs::remove_file(&path).map_err(|source| FlowsError::State { act: "remove", path, source })?;
        records
    }

    fn decode_unacked(&self, bytes: &[u8]) -> Result<Vec<(Option<u64>, Record)>, FlowsError> {
        let damaged = FlowsError::Decode { what: "flows-unacked", reason: "not a list of records" };
        let Ok(file) = UnackedFile::decode(bytes) else { return Err(damaged) };
        let is_this_boot = file.boot_id == self.boot_id;
        let record = |record: v1::FlowRecord| {
            let sequence = (is_this_boot && record.sequence > 0).then_some(record.sequence);
            from_proto(record).map(|record| (sequence, record))
        };
        file.records.into_iter().map(record).collect()
    }

    /// Keeps the records that were not acknowledged; sequence 0 is a record that was not sent.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_unacked(&self, records: Vec<v1::FlowRecord>) -> Result<(), FlowsError> {
        write(&self.path("flows-unacked"), &UnackedFile { boot_id: self.boot_id.clone(), records }.encode_to_vec())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl CursorFile {
    fn of(cursor: Cursor, boot_id: String) -> Self {
        let Cursor { handle, control, mut entries, journal } = cursor;
        if entries.len() > MAX_ENTRIES {
            entries.sort_by_key(|entry| entry.flow.is_none());
            entries.truncate(MAX_ENTRIES);
        }
        let control = control.map(|ControlState { base, told, overflow_told, lost }| ControlFile { base, told, overflow_told, lost });
        Self { boot_id, handle, control: control.into(), entries: entries.into_iter().map(EntryFile::of).collect(), journal }
    }

    fn into_cursor(self) -> Result<Cursor, FlowsError> {
        let sum =
            |file: &ControlFile| ControlState { base: file.base, told: file.told, overflow_told: file.overflow_told, lost: file.lost };
        let [ingress, egress] = self.control.as_slice() else {
            return Err(FlowsError::Decode { what: "flows-cursor", reason: "not two control sums" });
        };
        let control = [sum(ingress), sum(egress)];
        let entries = self.entries.into_iter().map(EntryFile::into_entry).collect::<Result<_, _>>()?;
        Ok(Cursor { handle: self.handle, control, entries, journal: self.journal })
    }
}

impl EntryFile {
    pub(super) fn of(entry: CursorEntry) -> Self {
        let CursorEntry { key, element, flow } = entry;
        let (is_open, logged) = (flow.is_some(), flow.as_ref().and_then(|flow| flow.logged));
        let flow = flow.unwrap_or(CursorFlow {
            id: FlowId([0; 16]),
            local: None,
            generation: Generation(0),
            first_seen: SystemTime::UNIX_EPOCH,
            last_seen: SystemTime::UNIX_EPOCH,
            packets: 0,
            bytes: 0,
            logged: None,
            source_port: None,
            note: Cow::Borrowed(""),
        });
        let CursorFlow { id, local, generation, first_seen, last_seen, packets, bytes, logged: _, source_port, note } = flow;
        let phase = Phase::Updated;
        let told = FlowTold { id, phase, key, local, source_port, packets, bytes, first_seen, last_seen, generation, note };
        let element = element.map(|CursorElement { packets, bytes, ends }| ElementFile {
            packets,
            bytes,
            ends: ends.map(prost_types::Timestamp::from),
        });
        Self { flow: Some(told.to_proto()), is_open, logged, element }
    }

    pub(super) fn into_entry(self) -> Result<CursorEntry, FlowsError> {
        let missing = |reason| FlowsError::Decode { what: "flows-cursor", reason };
        let FlowTold { id, phase: _, key, local, source_port, packets, bytes, first_seen, last_seen, generation, note } =
            FlowTold::from_proto(self.flow.ok_or(missing("an entry without a key"))?)?;
        let logged = self.logged;
        let flow =
            self.is_open.then_some(CursorFlow { id, local, generation, first_seen, last_seen, packets, bytes, logged, source_port, note });
        let element = |file: ElementFile| -> Result<CursorElement, FlowsError> {
            let ends = file.ends.map(SystemTime::try_from).transpose().map_err(|_| missing("an element's end is out of range"))?;
            Ok(CursorElement { packets: file.packets, bytes: file.bytes, ends })
        };
        Ok(CursorEntry { key, element: self.element.map(element).transpose()?, flow })
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, FlowsError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FlowsError::State { act: "read", path: path.to_owned(), source }),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), FlowsError> {
    let beside = path.with_extension("tmp");
    let written = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    written.map_err(|source| FlowsError::State { act: "write", path: path.to_owned(), source })
}

#[cfg(test)]
#[path = "cursor_tests.rs"]
mod tests;
