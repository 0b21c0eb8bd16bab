//! The thread that follows new connections while policies in Audit mode are about somebody here. The latest state wins.

use super::scene::Scenes;
use crate::cuts::{Affected, Conntrack, ConntrackError, ConntrackSocket, Entry, Label, Made, dumps_of};
use crate::flows::{FlowsStats, PacketSeen};
use crate::local::Warning;
use crate::session::NodeStatus;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// The code of the warning that not everything is seen.
pub const WARNING: &str = "AuditIncomplete";
/// How long after a dump the next one may begin, and how long a failure rests.
const BETWEEN_DUMPS: Duration = Duration::from_secs(1);
/// Packets in one message to the collection.
const BATCH: usize = 256;
/// Without it (0) the kernel tells nobody of new entries; 2, the default since 5.19, is "when somebody listens".
const EVENTS: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

/// What the thread is connected to.
pub struct AuditLinks {
    /// Where connections are told that an audited policy would deny.
    pub packets: mpsc::Sender<Vec<PacketSeen>>,
    /// What people should know.
    pub status: watch::Sender<NodeStatus>,
    /// What is counted.
    pub stats: Arc<FlowsStats>,
}

#[derive(Default)]
struct Slot {
    next: Option<Made>,
    is_over: bool,
}

/// Tells the thread of commits; it ends when this is dropped.
#[derive(Debug)]
pub struct AuditHandle {
    slot: Arc<Mutex<Slot>>,
    wake: UnixStream,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("is_over", &self.is_over).finish_non_exhaustive()
    }
}

impl AuditHandle {
    /// A commit was made. Returns at once; one before it that was not looked at yet is passed over.
    pub fn committed(&self, made: Made) {
        self.lock().next = Some(made);
        self.wake();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full is as good as written: the thread has not read yet.
        let _ = (&self.wake).write(&[0]);
    }
}

impl Drop for AuditHandle {
    fn drop(&mut self) {
        self.lock().is_over = true;
        self.wake();
    }
}

/// Starts the thread, in the network namespace of the calling one. Entries with the bit `label` are cut.
///
/// # Errors
/// There is no ctnetlink, or the system has no thread to give.
pub fn start(label: u8, links: AuditLinks) -> Result<AuditHandle, ConntrackError> {
    let failed = |act| move |source| ConntrackError::Socket { act, source };
    let (wake, woken) = UnixStream::pair().map_err(failed("wake a thread beside"))?;
    for end in [&wake, &woken] {
        end.set_nonblocking(true).map_err(failed("wake a thread beside"))?;
    }
    let slot: Arc<Mutex<Slot>> = Arc::default();
    let dumper = ConntrackSocket::open(Label::new(label))?;
    let follower = Follower {
        links,
        label,
        dumper,
        scenes: None,
        socket: None,
        affected: Affected::default(),
        dump_at: Instant::now(),
        dumped: HashSet::new(),
        lost: None,
    };
    let of_thread = slot.clone();
    thread::Builder::new()
        .name("audit".to_owned())
        .spawn(move || follower.run(&of_thread, &woken))
        .map_err(failed("start a thread beside"))?;
    Ok(AuditHandle { slot, wake })
}

struct Follower {
    links: AuditLinks,
    label: u8,
    dumper: ConntrackSocket,
    /// While a policy in Audit mode is about somebody here.
    scenes: Option<Scenes>,
    /// New entries, so long.
    socket: Option<ConntrackSocket>,
    /// Whose connections a dump is to look at.
    affected: Affected,
    dump_at: Instant,
    /// The entries (`CTA_ID`) that the last dump has told, until the next may begin: one that is new is in the dump a moment before the kernel
    /// tells of it, and another may have its number later.
    dumped: HashSet<u32>,
    /// What the node's warning says.
    lost: Option<String>,
}

impl Follower {
    fn run(mut self, slot: &Mutex<Slot>, woken: &UnixStream) {
        loop {
            self.wait(woken);
            let made = {
                let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                if slot.is_over {
                    return;
                }
                slot.next.take()
            };
            if let Some(made) = made {
                self.take(&made);
            }
            if let Err(error) = self.work() {
                tracing::error!(error = &error as &dyn std::error::Error, "audited connections: not all were seen; following them anew");
                FlowsStats::add(&self.links.stats.audit_overruns, 1);
                self.socket = None;
                self.missed(format!("connections that policies in Audit mode would deny are not all told: {error}"));
                self.dump_at = Instant::now() + BETWEEN_DUMPS;
            }
        }
    }

    /// Until a commit was made, a new entry is there, or a dump is due.
    fn wait(&self, mut woken: &UnixStream) {
        let due = (self.scenes.is_some() && (!self.affected.is_empty() || self.socket.is_none() || !self.dumped.is_empty()))
            .then_some(self.dump_at);
        let timeout = due.map_or(PollTimeout::NONE, |due| {
            let left = due.saturating_duration_since(Instant::now());
            // One more, so that it is due when the wait is over.
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.socket.as_ref().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        // Interrupted is as good as woken.
        let _ = poll(&mut fds, timeout);
        let mut told = [0; 64];
        while matches!(woken.read(&mut told), Ok(read) if read == told.len()) {}
    }

    fn take(&mut self, made: &Made) {
        let scenes = Scenes::of(made);
        match &scenes {
            Some(scenes) => self.affected.add(scenes.affected_since(self.scenes.as_ref())),
            None => {
                (self.socket, self.affected) = (None, Affected::default());
                self.warn(None);
            }
        }
        self.scenes = scenes;
    }

    fn work(&mut self) -> Result<(), ConntrackError> {
        let Some(scenes) = &self.scenes else { return Ok(()) };
        let now = Instant::now();
        if self.socket.is_none() {
            if now < self.dump_at {
                return Ok(());
            }
            let unseen = events_are_off();
            let mut socket = ConntrackSocket::open(Label::new(self.label))?;
            socket.follow_new()?;
            // What came before is found by a dump.
            (self.socket, self.affected) = (Some(socket), Affected::everything());
            self.warn(unseen);
            return self.work();
        }
        let mut teller = Teller { links: &self.links, packets: Vec::new() };
        let Some(socket) = &mut self.socket else { return Ok(()) };
        let dumped = &self.dumped;
        let mut is_whole = socket.take_new(&mut |entry| {
            if !dumped.contains(&entry.id) {
                teller.tell(scenes, &entry, false);
            }
        })?;
        if now >= self.dump_at {
            self.dumped = HashSet::new();
        }
        if !self.affected.is_empty() && now >= self.dump_at {
            let affected = std::mem::take(&mut self.affected);
            self.dump_at = now + BETWEEN_DUMPS;
            let mut found = Vec::new();
            dump(&mut self.dumper, &affected, &mut |entry| {
                if entry.is_connection() && scenes.would_be_denied(&entry).is_some() {
                    found.push(entry);
                }
            })?;
            // Those that came meanwhile are new, each to be counted, and not among those that were there before.
            let mut came = HashSet::new();
            is_whole &= socket.take_new(&mut |entry| {
                teller.tell(scenes, &entry, false);
                came.insert(entry.id);
            })?;
            for entry in found.iter().filter(|entry| !came.contains(&entry.id)) {
                teller.tell(scenes, entry, true);
                self.dumped.insert(entry.id);
            }
        }
        teller.send();
        if !is_whole {
            FlowsStats::add(&self.links.stats.audit_overruns, 1);
            self.missed("new connections came faster than they could be judged by policies in Audit mode: not all are told".to_owned());
        }
        Ok(())
    }

    fn missed(&mut self, message: String) {
        self.affected = Affected::everything();
        self.warn(Some(message));
    }

    fn warn(&mut self, message: Option<String>) {
        if self.lost == message {
            return;
        }
        self.lost.clone_from(&message);
        self.links.status.send_modify(|status| {
            status.warnings.retain(|warning| warning.code != WARNING);
            status.warnings.extend(message.map(|message| Warning::new(WARNING, message)));
        });
    }
}

/// Turns the events of conntrack on where they are off; says so where that cannot be done.
fn events_are_off() -> Option<String> {
    let is_off = std::fs::read_to_string(EVENTS).is_ok_and(|value| value.trim() == "0");
    if !is_off {
        return None;
    }
    match std::fs::write(EVENTS, "2") {
        Ok(()) => {
            tracing::info!("net.netfilter.nf_conntrack_events set to 2: policies in Audit mode need it");
            None
        }
        Err(error) => Some(format!(
            "connections that policies in Audit mode would deny are not told: {EVENTS} is 0 and cannot be set ({error}); set it to 2"
        )),
    }
}

fn dump(conntrack: &mut ConntrackSocket, affected: &Affected, take: &mut dyn FnMut(Entry)) -> Result<(), ConntrackError> {
    if affected.everything {
        return conntrack.dump(crate::cuts::Filter::All, take).map(drop);
    }
    let concerns = |entry: &Entry| affected.addresses.contains(&entry.source()) || affected.addresses.contains(&entry.destination());
    for filter in dumps_of(&affected.addresses, conntrack) {
        conntrack.dump(filter, &mut |entry| {
            if concerns(&entry) {
                take(entry);
            }
        })?;
    }
    Ok(())
}

/// Hands packets on in batches. It waits for room: what comes meanwhile waits in the kernel's buffer, and what that has no room for is counted.
struct Teller<'a> {
    links: &'a AuditLinks,
    packets: Vec<PacketSeen>,
}

impl Teller<'_> {
    /// `is_known`: the connection was there before, and may have been told.
    fn tell(&mut self, scenes: &Scenes, entry: &Entry, is_known: bool) {
        let Some(key) = scenes.would_be_denied(entry) else { return };
        let packet = PacketSeen { key, source_port: entry.source_port(), length: 0, input: None, output: None, is_counted: is_known };
        self.packets.push(packet);
        if self.packets.len() == BATCH {
            self.send();
        }
    }

    fn send(&mut self) {
        if !self.packets.is_empty() {
            // A collection that is gone means that the agent is stopping.
            let _ = self.links.packets.blocking_send(std::mem::take(&mut self.packets));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn a_wake_that_nobody_read_yet_is_enough() {
        let (wake, woken) = UnixStream::pair().unwrap_or_else(|error| unreachable!("{error}"));
        wake.set_nonblocking(true).unwrap_or_else(|error| unreachable!("{error}"));
        let handle = AuditHandle { slot: Arc::default(), wake };
        (0..1_000_000).for_each(|_| handle.wake());
        assert_eq!((&woken).read(&mut [0; 1]).map_err(|error| error.kind()), Ok::<_, ErrorKind>(1));
    }
}
