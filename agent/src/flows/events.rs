//! Records that no counter and no later agent tells again (cuts, events of the node), kept beside the outbox until the controller has them: a killed
//! agent does not lose them.
//!
//! `flows-events`: messages, each behind its length, appended and not synced (they must outlive the process, not the machine). The file goes when none of
//! them waits any more. The next agent tells what it finds in it; what had been acknowledged shortly before is then told twice, under the same id.

use super::cursor::StateFiles;
use super::error::FlowsError;
use super::outbox::Outbox;
use super::record::{Record, Told, from_proto};
use firebreak_proto::v1;
use prost::Message;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The most that are kept: the outbox holds no more either.
const MOST: usize = 100_000;
/// How often it is asked whether any waits.
const LOOK: Duration = Duration::from_secs(1);

/// Whether it is told once and never again.
pub(super) fn is_event(told: &Told) -> bool {
    match told {
        Told::Cut(_) | Told::Node(_) => true,
        Told::Flow(_) | Told::Lost { .. } | Told::Guard(_) => false,
    }
}

/// What is in the file.
#[derive(Debug)]
pub(super) struct Events {
    files: StateFiles,
    kept: usize,
    looked: Option<Instant>,
}

impl Events {
    /// With what an agent before has left in it, which is given back too.
    pub(super) fn open(files: StateFiles) -> (Self, Vec<Record>) {
        let left = files.read_events().unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "events of the agent before are lost");
            Vec::new()
        });
        (Self { files, kept: left.len(), looked: None }, left)
    }

    /// Takes back into the outbox what the agent before did not get acknowledged. Stopped in order it left all of that in one file, which goes
    /// now: the events in it are kept here first, or a kill from here on would lose them.
    pub(super) fn take_back(files: &StateFiles, outbox: &mut Outbox) -> Self {
        let (mut events, left) = Self::open(files.clone());
        let unacked = files.take_unacked_after(|records| events.keep(records.iter().map(|(_, record)| record)));
        outbox.restore(unacked.unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "denied flows: records of the agent before are lost");
            Vec::new()
        }));
        outbox.restore(left.into_iter().map(|record| (None, record)).collect());
        events
    }

    /// Keeps those of the records that are events.
    pub(super) fn keep<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) {
        let events: Vec<v1::FlowRecord> =
            records.into_iter().filter(|record| is_event(&record.told)).map(|record| record.to_proto(0)).collect();
        if events.is_empty() {
            return;
        }
        if self.kept >= MOST {
            tracing::error!(events = events.len(), "too many events wait for the controller: a killed agent would lose these");
            return;
        }
        self.kept += events.len();
        if let Err(error) = self.files.append_events(&events) {
            tracing::error!(error = &error as &dyn std::error::Error, "events are not kept: a killed agent would lose them");
        }
    }

    /// Lets the file go when none of its records waits.
    pub(super) fn acknowledged(&mut self, outbox: &Outbox, now: Instant) {
        if self.kept == 0 || self.looked.is_some_and(|looked| now < looked + LOOK) {
            return;
        }
        self.looked = Some(now);
        if !outbox.holds(is_event) {
            self.gone();
        }
    }

    /// They are somewhere else.
    pub(super) fn gone(&mut self) {
        match self.files.drop_events() {
            Ok(()) => self.kept = 0,
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "events would be told again"),
        }
    }
}

impl StateFiles {
    fn append_events(&self, records: &[v1::FlowRecord]) -> Result<(), FlowsError> {
        let path = self.events();
        let bytes: Vec<u8> = records.iter().flat_map(Message::encode_length_delimited_to_vec).collect();
        let written = fs::File::options().create(true).append(true).open(&path).and_then(|mut file| file.write_all(&bytes));
        written.map_err(|source| FlowsError::State { act: "write", path, source })
    }

    /// The last may be cut short: its agent was killed while it wrote.
    fn read_events(&self) -> Result<Vec<Record>, FlowsError> {
        let path = self.events();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(FlowsError::State { act: "read", path, source }),
        };
        let (mut left, mut records) = (bytes.as_slice(), Vec::new());
        let is_whole = |left: &[u8]| {
            prost::decode_length_delimiter(left)
                .is_ok_and(|length| prost::length_delimiter_len(length).checked_add(length).is_some_and(|whole| whole <= left.len()))
        };
        while !left.is_empty() && is_whole(left) {
            let record = v1::FlowRecord::decode_length_delimited(&mut left)
                .map_err(|_| FlowsError::Decode { what: "flows-events", reason: "not a list of records" })?;
            records.push(from_proto(record)?);
        }
        if !left.is_empty() {
            // What is appended must not follow half a record.
            let whole = u64::try_from(bytes.len() - left.len()).unwrap_or(0);
            let shortened = fs::File::options().write(true).open(&path).and_then(|file| file.set_len(whole));
            shortened.map_err(|source| FlowsError::State { act: "shorten", path, source })?;
        }
        Ok(records)
    }

    fn drop_events(&self) -> Result<(), FlowsError> {
        let path = self.events();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FlowsError::State { act: "remove", path, source: error }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn events(&self) -> PathBuf {
        self.directory.join("flows-events")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{NodeEventKind, NodeTold};
    use super::*;
    use firebreak_policy::model::Direction;
    use std::time::SystemTime;

    fn event(message: &str) -> Record {
        NodeTold::new(NodeEventKind::Tampered, message.to_owned()).at(SystemTime::UNIX_EPOCH + Duration::from_secs(7))
    }

    #[test]
    fn what_nobody_tells_again_outlives_a_kill_until_the_controller_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let files = StateFiles::open(directory.path(), "boot").unwrap();
        let lost = Record {
            time: SystemTime::UNIX_EPOCH,
            told: Told::Lost { direction: Direction::Ingress, packets: 1, reason: "counters tell it".into() },
        };
        let (mut events, left) = Events::open(files.clone());
        assert_eq!(left, []);
        events.keep(&[event("one"), lost.clone()]);
        events.keep(&[event("two")]);
        drop(events);

        // Cut short by a kill: the whole ones are there, and what is added follows them.
        let path = files.events();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 2]).unwrap();
        let (mut events, left) = Events::open(files.clone());
        assert_eq!(left, [event("one")]);
        events.keep(&[event("three")]);
        let (mut events, left) = Events::open(files.clone());
        assert_eq!(left, [event("one"), event("three")]);

        let mut outbox = Outbox::new(10, 1);
        let now = Instant::now();
        left.into_iter().chain([lost]).for_each(|record| outbox.push(record));
        outbox.next_batch(SystemTime::UNIX_EPOCH);
        outbox.acknowledge(1).unwrap();
        events.acknowledged(&outbox, now);
        assert!(path.exists(), "one of them waits");
        outbox.acknowledge(2).unwrap();
        events.acknowledged(&outbox, now + LOOK / 2);
        assert!(path.exists(), "it is not asked that often");
        events.acknowledged(&outbox, now + LOOK);
        assert!(!path.exists() && !outbox.is_empty(), "what still waits is none of them");
        assert_eq!(Events::open(files).1, []);
    }

    #[test]
    fn what_an_agent_left_in_order_outlives_the_kill_of_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let files = StateFiles::open(directory.path(), "boot").unwrap();
        let stopped = |outbox: &Outbox| files.write_unacked(outbox.unacknowledged()).unwrap();
        let mut first = Outbox::new(10, 1);
        first.push(event("one"));
        stopped(&first);
        // Each of them is killed before the controller has acknowledged anything.
        for _ in 0..3 {
            let mut outbox = Outbox::new(10, 1);
            let _killed = Events::take_back(&files, &mut outbox);
            assert_eq!(outbox.next_batch(SystemTime::UNIX_EPOCH).len(), 1);
        }
        let mut outbox = Outbox::new(10, 1);
        let mut events = Events::take_back(&files, &mut outbox);
        outbox.next_batch(SystemTime::UNIX_EPOCH);
        outbox.acknowledge(1).unwrap();
        events.acknowledged(&outbox, Instant::now());
        let mut outbox = Outbox::new(10, 1);
        let _ = Events::take_back(&files, &mut outbox);
        assert!(outbox.is_empty(), "the controller has it");
    }
}
