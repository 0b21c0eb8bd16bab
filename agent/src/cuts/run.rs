//! The thread that cuts: after each commit, beside everything else. The latest state wins.

use super::affected::{Affected, Concerned, concerned};
use super::apply::{Change, Conntrack, dumps_of};
use super::clean::Clean;
use super::entry::Entry;
use super::error::ConntrackError;
use super::gate::{Gate, Sitting, Turn};
use super::idle::Silent;
use super::judge::Scene;
use super::pass::{Outcome, Sink, pass};
use super::rules::{Rules, RulesLink};
use super::socket::{ConntrackSocket, Selects};
use super::wire::Label;
use crate::audit::AuditHandle;
use crate::core;
use crate::flows::{CutTold, FlowId, LocalView, Record, Told};
use crate::local::{LocalWorkloads, Warning};
use crate::session::{Committed, NodeStatus};
use firebreak_policy::kernel_sets::KernelSets;
use firebreak_policy::model::{Direction, Generation};
use firebreak_policy::node_judge::NodeJudge;
use firebreak_policy::node_state::NodeState;
use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, watch};

/// How long after a pass the second one begins: what was let through by the old rules has its entry by then.
const SECOND_LOOK: Duration = Duration::from_millis(200);
/// How long after a failed pass everything is judged again.
const RETRY: Duration = Duration::from_millis(500);
/// After a look the thread rests as long as it took, so that a stream of changes costs half a processor at most; never longer than this.
const REST: Duration = Duration::from_millis(200);
/// By so much later may it begin, so that second looks that are this close become one: each walks past the kernel's whole table, which takes 26 ms
/// of a processor on this machine (262,144 buckets) however few entries there are.
const TOGETHER: Duration = Duration::from_millis(100);
/// Cuts in one message to the reporter.
const BATCH: usize = 256;
/// The code of the warning that conntrack does not do what it should.
pub const WARNING: &str = "ConnectionsNotCut";

/// Settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutConfig {
    /// The bit of the label, as the rules have it.
    pub label: u8,
    /// For how long after a first install TCP may be picked up in the middle.
    pub midstream_grace: Duration,
    /// Whether entries may be selected in the kernel, where it can.
    pub selects: bool,
}

/// What the thread is connected to.
pub struct CutLinks {
    /// Names the local end of a cut.
    pub view: Arc<dyn LocalView>,
    /// Where cuts are told.
    pub records: mpsc::Sender<Vec<Record>>,
    /// What people should know.
    pub status: watch::Sender<NodeStatus>,
}

/// A commit that was made: of what the controller wants for what runs here.
#[derive(Clone, Debug)]
pub struct Made {
    /// What the controller wants.
    pub committed: Arc<Committed>,
    /// What runs here.
    pub local: Arc<LocalWorkloads>,
}

impl Made {
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.committed, &other.committed) && Arc::ptr_eq(&self.local, &other.local)
    }

    /// What entries are judged by while it is in force.
    pub(super) fn scene(&self) -> Scene {
        Judged::new(self).scene()
    }

    /// The same, and the state of the workloads that are alive here.
    pub(crate) fn scene_and_state(&self) -> (Scene, Arc<NodeState>) {
        let judged = Judged::new(self);
        (judged.scene(), judged.state)
    }
}

/// A commit to look at.
struct Job {
    made: Made,
    /// One of those that this one took the place of was the same as another before it.
    is_again: bool,
}

#[derive(Default)]
struct Slot {
    next: Option<Job>,
    is_over: bool,
}

/// Tells the thread of commits; it ends when this is dropped.
pub struct CutHandle {
    slot: Arc<(Mutex<Slot>, Condvar)>,
    gate: Arc<Gate>,
    purger: ConntrackSocket,
    rules: RulesLink,
    audit: Option<AuditHandle>,
}

impl std::fmt::Debug for CutHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CutHandle").finish_non_exhaustive()
    }
}

/// Whether there is ctnetlink at all, and in which families it selects entries by address.
///
/// # Errors
/// There is none.
pub fn probe() -> Result<Selects, ConntrackError> {
    ConntrackSocket::open(Label::new(0))?.probe()
}

/// Turns `net.netfilter.nf_conntrack_acct` on, so that entries that are made from now on count; without it cuts are told without packets
/// and bytes.
pub fn count_connections() {
    const SYSCTL: &str = "/proc/sys/net/netfilter/nf_conntrack_acct";
    let is_on = std::fs::read_to_string(SYSCTL).is_ok_and(|value| value.trim() == "1");
    if is_on {
        return;
    }
    match std::fs::write(SYSCTL, "1") {
        Ok(()) => tracing::info!("net.netfilter.nf_conntrack_acct turned on"),
        Err(error) => tracing::warn!(%error, "{SYSCTL} cannot be turned on: cuts are told without packets and bytes"),
    }
}

/// Starts the thread, in the network namespace of the calling one.
///
/// # Errors
/// There is no ctnetlink, or the system has no thread to give.
pub fn start(config: CutConfig, links: CutLinks) -> Result<CutHandle, ConntrackError> {
    let label = Label::new(config.label);
    let (mut dumper, changer, purger) = (ConntrackSocket::open(label)?, ConntrackSocket::open(label)?, ConntrackSocket::open(label)?);
    let found = dumper.probe()?;
    let selects = if config.selects { found } else { Selects::default() };
    let (dumper, purger) = (dumper.selecting(selects), purger.selecting(selects));
    tracing::info!(selects_ipv4 = selects.v4, selects_ipv6 = selects.v6, "conntrack: cuts are possible");
    let slot: Arc<(Mutex<Slot>, Condvar)> = Arc::default();
    let gate: Arc<Gate> = Arc::default();
    let rules = RulesLink::default();
    let now = Instant::now();
    let mut cutter = Cutter {
        dumper,
        changer,
        gate: gate.clone(),
        rules: rules.clone(),
        clean: Clean::default(),
        may_be_revoked: true,
        links,
        judged: None,
        affected: Affected::everything(),
        second: VecDeque::new(),
        rest_until: now,
        silent: Silent::new(now, now + config.midstream_grace + super::idle::SILENCE),
        is_warned: false,
        knows_zones: false,
    };
    let of_thread = slot.clone();
    thread::Builder::new()
        .name("cuts".to_owned())
        .spawn(move || cutter.run(&of_thread))
        .map_err(|source| ConntrackError::Socket { act: "start a thread beside", source })?;
    Ok(CutHandle { slot, gate, purger, rules, audit: None })
}

impl CutHandle {
    /// Says where the rules are told whether anything is cut; before the first commit is.
    pub fn with_rules(&self, rules: Box<dyn Rules>) {
        self.rules.set(rules);
    }

    /// Tells those who judge by policies in Audit mode of each commit, too.
    pub fn tell_audit(&mut self, audit: AuditHandle) {
        self.audit = Some(audit);
    }

    /// To be held during a commit and told how that went. Waits for one part of a pass at most.
    pub fn turn(&self) -> Turn<'_> {
        self.gate.turn()
    }

    /// A commit was made. Returns at once; a commit before it that was not looked at yet is passed over.
    pub fn committed(&self, made: Made) {
        if let Some(audit) = &self.audit {
            audit.committed(made.clone());
        }
        let (slot, woken) = &*self.slot;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let is_again = slot.next.as_ref().is_some_and(|job| job.is_again || job.made.is_same(&made));
        slot.next = Some(Job { made, is_again });
        woken.notify_one();
    }

    /// Deletes every entry of these addresses, before they get a new owner. What cannot be deleted is logged: the commit that follows is
    /// judged all the same.
    pub fn forget(&mut self, addresses: &BTreeSet<IpAddr>) {
        if addresses.is_empty() {
            return;
        }
        match forget(&mut self.purger, addresses) {
            Ok(0) => {}
            Ok(entries) => tracing::info!(entries, addresses = addresses.len(), "conntrack: entries of former owners deleted"),
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "conntrack: entries of former owners stay"),
        }
    }
}

impl Drop for CutHandle {
    fn drop(&mut self) {
        let (slot, woken) = &*self.slot;
        slot.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
        woken.notify_one();
    }
}

fn forget(conntrack: &mut dyn Conntrack, addresses: &BTreeSet<IpAddr>) -> Result<usize, ConntrackError> {
    let mut entries: Vec<Entry> = Vec::new();
    for filter in dumps_of(addresses, conntrack) {
        conntrack.dump(filter, &mut |entry| {
            if addresses.contains(&entry.source()) || addresses.contains(&entry.destination()) {
                entries.push(entry);
            }
        })?;
    }
    let changes: Vec<Change<'_>> = entries.iter().map(Change::Delete).collect();
    conntrack.change(&changes)?;
    Ok(entries.len())
}

/// What was judged last.
struct Judged {
    generation: Generation,
    state: Arc<NodeState>,
    node: BTreeSet<IpAddr>,
    locals: BTreeSet<IpAddr>,
    made: Made,
}

impl Judged {
    fn new(made: &Made) -> Self {
        let mut state = NodeState::default();
        let desired = core::desired(&made.committed.state, &made.local, |alive| {
            state = alive.clone();
            KernelSets::default()
        });
        let locals = desired.interfaces.values().flat_map(|interface| interface.addresses.iter().copied()).collect();
        let node = state.addresses.union(&made.local.own_addresses).copied().collect();
        Self { generation: made.committed.generation, state: Arc::new(state), node, locals, made: made.clone() }
    }

    fn scene(&self) -> Scene {
        let policy = NodeJudge::new(self.state.clone());
        Scene { generation: self.generation, policy, node: self.node.clone(), locals: self.locals.clone() }
    }
}

/// What a second look is about, and when.
struct Second {
    at: Instant,
    affected: Affected,
}

struct Cutter {
    dumper: ConntrackSocket,
    changer: ConntrackSocket,
    gate: Arc<Gate>,
    rules: RulesLink,
    clean: Clean,
    /// Whether the rules ask for what is remembered without an entry.
    may_be_revoked: bool,
    links: CutLinks,
    judged: Option<Judged>,
    /// What is to be judged by a first look.
    affected: Affected,
    /// By time.
    second: VecDeque<Second>,
    rest_until: Instant,
    silent: Silent,
    is_warned: bool,
    knows_zones: bool,
}

impl Cutter {
    fn run(&mut self, slot: &(Mutex<Slot>, Condvar)) {
        while let Some(job) = self.wait(slot) {
            if let Some(job) = job {
                self.take(&job);
            }
            self.work();
        }
    }

    /// The next job, or `Some(None)` when something else is due; `None` at the end.
    fn wait(&self, (slot, woken): &(Mutex<Slot>, Condvar)) -> Option<Option<Job>> {
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if slot.is_over {
                return None;
            }
            let now = Instant::now();
            let is_rested = now >= self.rest_until;
            if is_rested && let Some(job) = slot.next.take() {
                return Some(Some(job));
            }
            let due = self.second.front().map(|second| second.at).into_iter().chain(self.silent.due()).chain(self.clean.due()).min();
            let due = if is_rested { due } else { Some(self.rest_until) };
            slot = match due {
                None => woken.wait(slot).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let left = due.saturating_duration_since(now);
                    if left.is_zero() {
                        return Some(None);
                    }
                    woken.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn take(&mut self, job: &Job) {
        let judged = Judged::new(&job.made);
        if job.is_again || self.judged.as_ref().is_some_and(|before| job.made.is_same(&before.made)) {
            // Committed once more as it was: what the rules let through meanwhile is not known (a table that was put right, a node that observed).
            self.affected = Affected::everything();
        }
        let concerned = match &self.judged {
            None => Concerned { forbids: Affected::everything(), allows: Affected::default() },
            Some(before) => {
                let mut concerned = concerned(&before.state, &judged.state);
                concerned.forbids.add(Affected {
                    everything: before.node != judged.node,
                    addresses: before.locals.symmetric_difference(&judged.locals).copied().collect(),
                });
                concerned
            }
        };
        self.affected.add(concerned.forbids);
        // Only what was cut before can wait for this; what is new passes already.
        self.look_again(concerned.allows);
        self.judged = Some(judged);
    }

    fn work(&mut self) {
        let now = Instant::now();
        if self.clean.take_due(now) {
            self.affected.add(Affected::everything());
        }
        let mut affected = if self.judged.is_some() { std::mem::take(&mut self.affected) } else { Affected::default() };
        let fresh = affected.clone();
        while let Some(second) = self.second.pop_front_if(|second| second.at <= now) {
            affected.add(second.affected);
        }
        if !affected.is_empty() {
            let result = self.look(&affected);
            self.rest_until = Instant::now() + now.elapsed().min(REST);
            match result {
                Ok(()) => self.look_again(fresh),
                Err(error) => self.failed(&error),
            }
        }
        if self.silent.due().is_some_and(|due| due <= now) {
            match self.silent.check(now, &mut self.changer) {
                Ok(0) => {}
                Ok(entries) => tracing::debug!(entries, "conntrack: entries of cut connections that fell silent deleted"),
                Err(error) => self.failed(&error),
            }
        }
    }

    fn look_again(&mut self, affected: Affected) {
        let at = Instant::now() + SECOND_LOOK;
        match self.second.back_mut() {
            _ if affected.is_empty() => {}
            Some(last) if last.at >= at => last.affected.add(affected),
            Some(_) | None => self.second.push_back(Second { at: at + TOGETHER, affected }),
        }
    }

    /// Everything is judged again a little later.
    fn failed(&mut self, error: &ConntrackError) {
        tracing::error!(error = error as &dyn std::error::Error, "conntrack: not every connection was judged; trying again");
        self.warn(Some(format!("established connections are not judged: {error}")));
        self.second = VecDeque::from([Second { at: Instant::now() + RETRY, affected: Affected::everything() }]);
    }

    fn look(&mut self, affected: &Affected) -> Result<(), ConntrackError> {
        let Some(judged) = &self.judged else { return Ok(()) };
        let begun = Instant::now();
        let mut sitting = Sitting { gate: self.gate.clone(), of: judged.made.clone(), rules: self.rules.clone(), has_asked: false };
        let mut teller = Teller { links: &self.links, silent: &mut self.silent, records: Vec::new() };
        let scene = Arc::new(judged.scene());
        let result = pass(&mut self.dumper, &mut self.changer, scene.clone(), &mut sitting, affected, &mut teller);
        teller.send();
        if sitting.has_asked {
            self.may_be_revoked = true;
            self.clean.not_yet(Instant::now());
        }
        let outcome = result?;
        self.say(&outcome, begun);
        if outcome.is_unsure {
            // The commit that follows says what is in force.
            self.affected.add(Affected::everything());
            return Ok(());
        }
        self.forget_allowed(&scene)?;
        self.tell_rules(affected.everything, outcome.labelled > 0, sitting.has_asked)
    }

    /// The rules ask the other way round only sets that name both ends; what a list of blocks or a large group allows again is known here.
    fn forget_allowed(&mut self, scene: &Scene) -> Result<(), ConntrackError> {
        let Some(judged) = self.judged.as_ref().filter(|_| self.may_be_revoked) else { return Ok(()) };
        let forgotten = self.rules.forget(&judged.made, |revoked| scene.allows_again(revoked))?;
        if forgotten > 0 {
            tracing::info!(forgotten, "connections that were cut and whose entries are gone are allowed again");
        }
        Ok(())
    }

    /// Has the rules ask for the label where there are some, and pass by it where a second look has found none.
    fn tell_rules(&mut self, at_everything: bool, found_some: bool, has_asked: bool) -> Result<(), ConntrackError> {
        if found_some && !has_asked {
            // Of an agent before, or of somebody else who has brought them in.
            self.may_be_revoked = true;
            self.rules.ask()?;
        }
        let now = Instant::now();
        if self.clean.looked(now, at_everything, !(found_some || has_asked)) {
            self.may_be_revoked = !self.rules.pass_by()?;
            if self.may_be_revoked {
                self.clean.not_yet(now);
            }
        }
        Ok(())
    }

    fn say(&mut self, outcome: &Outcome, begun: Instant) {
        let Outcome { entries, other_zones, cut, cleared, labelled: _, refused, is_unsure: _ } = outcome;
        let generation = self.judged.as_ref().map_or(0, |judged| judged.generation.0);
        if cut + cleared > 0 {
            tracing::info!(generation, entries, cut, cleared, took = ?begun.elapsed(), "connections cut");
        } else {
            tracing::debug!(generation, entries, took = ?begun.elapsed(), "connections judged");
        }
        if *other_zones > 0 && !std::mem::replace(&mut self.knows_zones, true) {
            tracing::warn!(entries = other_zones, "conntrack: entries of zones other than 0 are not judged");
        }
        self.warn(refused.map(|(count, errno)| format!("{count} forbidden connections could not be cut: {errno}")));
    }

    fn warn(&mut self, message: Option<String>) {
        if message.is_none() && !self.is_warned {
            return;
        }
        self.is_warned = message.is_some();
        self.links.status.send_if_modified(|status| {
            let before = status.clone();
            status.warnings.retain(|warning| warning.code != WARNING);
            status.warnings.extend(message.map(|message| Warning::new(WARNING, message)));
            *status != before
        });
    }
}

/// Makes records of cuts and keeps labelled entries in mind.
struct Teller<'a> {
    links: &'a CutLinks,
    silent: &'a mut Silent,
    records: Vec<Record>,
}

impl Teller<'_> {
    fn send(&mut self) {
        if !self.records.is_empty() {
            // A reporter that has ended is noticed by its owner.
            let _ = self.links.records.blocking_send(std::mem::take(&mut self.records));
        }
    }
}

impl Sink for Teller<'_> {
    fn cut(&mut self, entry: &Entry, direction: Direction, generation: Generation) {
        if !entry.is_connection() {
            return;
        }
        let address = match direction {
            Direction::Ingress => entry.destination(),
            Direction::Egress => entry.source(),
        };
        let local = self.links.view.locate(Instant::now(), direction, address);
        let told = CutTold::new(FlowId(*uuid::Uuid::new_v4().as_bytes()), entry, direction, local, generation);
        self.records.push(Record { time: SystemTime::now(), told: Told::Cut(Box::new(told)) });
        if self.records.len() >= BATCH {
            self.send();
        }
    }

    fn labelled(&mut self, entry: Entry) {
        self.silent.watch(Instant::now(), entry);
    }
}
