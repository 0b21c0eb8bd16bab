//! The tables, held open: found or installed at start, changed by commits.

mod shortcuts;

use super::check::{self, Check, Prints};
use super::config::DataplaneConfig;
use super::desired::Desired;
use super::error::{CommitError, ObserveError, OpenError, ReadBackError};
use super::flood::Floods;
use super::install::{InstallError, Site, Standing, Which, bring_about, survey};
use super::names::{Layer, SetRef};
use super::observe::{self, ObserveElement};
use super::plan::{KernelState, Plan, SetChange, plan_delta, plan_restore, plan_with};
use super::read_back::{read_back, read_back_of};
use super::render::{Batch, locate, render};
use super::report::{CommitReport, Delta, Opened, SkeletonState};
use super::revoked::{self, Revoked};
use super::shared::{plan_tidy, split_prepared};
use super::shortcut::Shortcuts;
use super::socket::{Complaint, NetfilterSocket, Outcome};
use super::walk::{Stands, Walk};
use super::{mark, tables};
use super::{moves, overlap};
use nix::errno::Errno;
use shortcuts::SHORTCUTS_CHANGED;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long a part of the background check takes: a commit may have to wait for it.
const PART: Duration = Duration::from_millis(20);

/// A set that changed too often in so many rounds is compared in one go, however long that takes: some half an hour without a look is enough.
const MOST_LEFT: u32 = 5;

/// The kernel's tables, held open. One per network namespace; dropping it leaves them in force.
#[derive(Debug)]
pub struct Dataplane {
    socket: NetfilterSocket,
    /// The tables that are there; a kernel without the bridge family has no `bridge firebreak`.
    layers: Vec<Layer>,
    /// What was committed. `None` when an answer was lost, until it is read back.
    actual: Option<KernelState>,
    owned: bool,
    /// Whether the tables are another version's and wait for the first commit.
    is_outdated: bool,
    /// What each chain is, as it was brought about or found.
    prints: Prints,
    /// The rules that come and go in the base chains; `None` when an answer was lost.
    shortcuts: Option<Shortcuts>,
    /// Whether those may be there that pass by what asks for cut connections.
    nothing_is_cut: bool,
    /// In which directions so much is denied that known packets are dropped first of all.
    floods: Floods,
    /// Until when the node observes, whoever said so, as far as is known: until then nothing is dropped so.
    observes_until: Option<Instant>,
    /// Until when TCP may be picked up in the middle; `None` while that was not read.
    grace: Option<Instant>,
    /// Whether there are chains or sets that nothing leads to any more.
    leftover: bool,
    /// What is to go after the last change.
    late: Vec<SetChange>,
    /// The next part of the background check.
    step: usize,
    /// The set that it is at.
    walk: Option<Walk>,
    /// The sets that changed too often, and in how many rounds.
    left: BTreeMap<SetRef, u32>,
    /// How many commits changed something.
    commits: u64,
    /// Until when the node observes, and why, if this process was told.
    observing: Option<(Instant, String)>,
    config: DataplaneConfig,
}

impl Dataplane {
    /// Finds or installs our tables, takes ownership of them, and reads what they hold. Nothing is written when they are there
    /// and right. Runs `nft` when rules are to be installed.
    ///
    /// A first install denies the workload interfaces until the first commit makes them known. On error the kernel holds what it
    /// held before, or our tables without an owner, in force; the call may be repeated.
    pub fn open(config: &DataplaneConfig) -> Result<(Self, Opened), OpenError> {
        let mut socket = NetfilterSocket::open().map_err(OpenError::Socket)?;
        let sites = survey(&mut socket, config)?;
        let is_outdated = sites.iter().any(|site| !site.is_ours() && !site.elements_can_stay());
        let skeleton = if is_outdated {
            SkeletonState::Outdated
        } else if sites.iter().any(Site::is_empty) {
            SkeletonState::Installed
        } else if sites.iter().all(Site::is_current) {
            SkeletonState::Adopted
        } else {
            SkeletonState::Replaced
        };
        // Sets of another form need their elements in the same transaction, and those are known only at the first commit.
        let standing = if is_outdated {
            Standing::of(&sites, config)
        } else {
            match bring_about(&mut socket, config, &sites, Which::Stale, |_| Plan::default()) {
                Ok(standing) => standing,
                Err(InstallError::Open(error)) => return Err(error),
                Err(InstallError::Elements(error)) => return Err(OpenError::Nft(error.to_string())),
            }
        };
        let Standing { layers, persists } = standing;
        let mut this = Self {
            socket,
            layers,
            actual: None,
            owned: persists,
            is_outdated,
            prints: Prints::new(),
            shortcuts: None,
            nothing_is_cut: false,
            floods: Floods::new(config.flood_rate, BTreeSet::new()),
            observes_until: None,
            grace: None,
            leftover: false,
            late: Vec::new(),
            step: 0,
            walk: None,
            left: BTreeMap::new(),
            commits: 0,
            observing: None,
            config: config.clone(),
        };
        this.adopt()?;
        let readable: BTreeSet<SetRef> = sites.iter().flat_map(Site::readable).collect();
        let layers = &this.layers;
        let actual = read_back_of(&mut this.socket, layers, |set| !is_outdated || readable.contains(&set))?;
        let elements = actual.len();
        this.leftover = !plan_tidy(&actual.shared).is_empty();
        this.actual = Some(actual);
        let found = check::rules(&mut this.socket, &this.layers)?;
        let mut changed = Vec::new();
        let shortcuts_changed = if is_outdated { None } else { this.adopt_shortcuts(&found.shortcuts) };
        match skeleton {
            SkeletonState::Installed | SkeletonState::Replaced => this.mark(&found.prints)?,
            SkeletonState::Adopted => {
                changed.extend(sites.iter().filter_map(|site| site.changed(&found.prints)));
                changed.extend(found.wrong_ports);
                changed.extend(shortcuts_changed);
            }
            SkeletonState::Outdated => {}
        }
        this.prints = found.prints;
        if !is_outdated {
            this.put_shortcuts();
        }
        let opened = Opened { skeleton, owned: persists, elements, changed };
        if let Ok(Some(ObserveElement { left, note })) = this.observing() {
            this.observing = Some((Instant::now() + left, note));
        }
        Ok((this, opened))
    }

    fn adopt(&mut self) -> Result<(), OpenError> {
        if self.owned {
            for layer in &self.layers {
                tables::adopt(&mut self.socket, *layer)?;
            }
        }
        Ok(())
    }

    /// Leaves what the rules are beside them, where it is not.
    fn mark(&mut self, prints: &Prints) -> Result<(), OpenError> {
        for layer in &self.layers {
            if mark::found(&tables::look_into(&mut self.socket, *layer)?).is_none() {
                mark::write(&mut self.socket, *layer, &mark::name(prints, *layer))?;
            }
        }
        Ok(())
    }

    /// Makes the kernel hold what is desired, in one transaction; nothing is written when it does already.
    /// On error the old contents stay whole, but for [`CommitError::Unknown`].
    ///
    /// The tables of another version ([`SkeletonState::Outdated`]) are replaced in the same transaction: up to it their rules judge
    /// by their elements, after it ours by ours.
    pub fn commit(&mut self, desired: &Desired) -> Result<CommitReport, CommitError> {
        let asks_answers = self.may_pick_up();
        if self.is_outdated {
            self.rebuild(Which::Stale, |actual| plan_with(actual, desired, asks_answers))
                .map_err(|error| CommitError::Upgrade(error.to_string()))?;
            self.is_outdated = false;
            tracing::info!("the tables of another version were replaced in one transaction");
        }
        self.tidy_away()?;
        let asks_answers = self.may_pick_up();
        let plan = plan_with(self.actual()?, desired, asks_answers);
        let committed = match self.commit_in_steps(plan, Some(desired)) {
            Err(CommitError::Refused { source, .. }) if !self.owned && source.errno == Errno::ENOENT => {
                // Where the kernel does not keep others off, an element may have been taken away behind our back.
                self.actual = None;
                let plan = plan_with(self.actual()?, desired, asks_answers);
                self.commit_in_steps(plan, Some(desired))
            }
            result => result,
        };
        if committed.is_ok() {
            self.put_shortcuts();
        }
        committed
    }

    /// As [`Self::commit`], for a known change of the policy sets; looks at nothing else.
    pub fn commit_delta(&mut self, delta: &Delta) -> Result<CommitReport, CommitError> {
        if self.is_outdated {
            return Err(CommitError::Upgrade("a whole state has to be committed first".to_owned()));
        }
        if *delta == Delta::default() {
            return self.tidy();
        }
        if !self.late.is_empty() {
            self.tidy_away()?;
        }
        let plan = plan_delta(self.actual()?, delta);
        let committed = self.commit_in_steps(plan, None);
        self.put_shortcuts();
        committed
    }

    /// Removes chains and sets that nothing leads to any more. They are left behind by a commit for the packets that were on their way;
    /// [`CommitReport::leftover`] says that there are some. The next commit does it too.
    pub fn tidy(&mut self) -> Result<CommitReport, CommitError> {
        let tidied = self.tidy_away();
        if !self.is_outdated {
            self.put_shortcuts();
        }
        tidied
    }

    fn tidy_away(&mut self) -> Result<CommitReport, CommitError> {
        if self.actual.is_none() {
            // What is read back is compared as a whole.
            self.late = Vec::new();
        }
        let late = Plan { changes: std::mem::take(&mut self.late), ..Plan::default() };
        if self.leftover || !late.is_empty() {
            moves::wait_for_packets_under_way();
        }
        if !self.leftover && self.actual.is_some() {
            return self.commit_plan(late);
        }
        self.commit_plan(late)?;
        let plan = plan_tidy(&self.actual()?.shared);
        self.commit_plan(plan)
    }

    /// What changes no verdict first: new chains and sets, which mean nothing until an address leads to them, and what the state before allows
    /// already. Then the change; what it leaves behind goes with [`Self::tidy`].
    fn commit_in_steps(&mut self, mut plan: Plan, desired: Option<&Desired>) -> Result<CommitReport, CommitError> {
        let actual = self.actual()?;
        let (mut early, mut late) = desired.map(|desired| moves::split(&mut plan, actual, &desired.sets)).unwrap_or_default();
        overlap::hold(&mut plan, &mut early, &mut late, actual);
        let early = Plan { changes: early, ..Plan::default() };
        let undo = early.undone();
        let mut first = split_prepared(&mut plan).unwrap_or_default();
        first.changes.extend(early.changes);
        let prepares = !first.is_empty();
        let prepared = self.commit_plan(first)?;
        if prepares {
            moves::wait_for_packets_under_way();
        }
        let report = match self.commit_plan(plan) {
            Ok(report) => report,
            Err(error) => {
                // What came first means nothing, so that it is no harm if it cannot be taken back.
                if !matches!(error, CommitError::Unknown(_)) {
                    let _ = self.commit_plan(undo).and_then(|_| self.tidy_away());
                }
                return Err(error);
            }
        };
        self.late = late;
        let late: usize = self.late.iter().map(|change| change.remove.len()).sum();
        let (removed, elements) = (report.removed + late, report.elements.saturating_sub(late));
        let report = CommitReport { removed, elements, leftover: self.leftover || late > 0, ..report };
        let (added, removed) = (report.added + prepared.added, report.removed + prepared.removed);
        Ok(CommitReport { added, removed, bytes: report.bytes + prepared.bytes, ..report })
    }

    /// Reads what the kernel holds and takes that for what was committed. Says how many elements there are.
    /// A commit needs it never: it is for checks, and after [`CommitError::Unknown`] it comes by itself.
    pub fn read_back(&mut self) -> Result<usize, ReadBackError> {
        let actual = read_back(&mut self.socket, &self.layers)?;
        let elements = actual.len();
        self.leftover = !plan_tidy(&actual.shared).is_empty();
        self.walk = None;
        self.actual = Some(actual);
        Ok(elements)
    }

    /// Puts back what somebody else changed in our tables, rules and elements in one transaction. Runs `nft`; the report is about
    /// the elements. Sets that still hold what they should are left alone.
    ///
    /// # Errors
    /// [`CommitError::Repair`]; the call may be repeated.
    ///
    /// An owned table may have been changed too, while it had no owner.
    pub fn repair(&mut self) -> Result<CommitReport, CommitError> {
        if self.is_outdated {
            return Err(CommitError::Repair("the tables are another version's; the next commit replaces them".to_owned()));
        }
        let committed = self.actual.clone().unwrap_or_else(|| KernelState::empty(self.layers.iter().copied()));
        let mut counts = (0, 0);
        let rebuilt = self.rebuild(Which::All, |actual| {
            let plan = plan_restore(actual, &committed);
            counts = plan.counts();
            plan
        });
        rebuilt.map_err(|error| CommitError::Repair(error.to_string()))?;
        self.put_shortcuts();
        let elements = self.actual()?.len();
        Ok(CommitReport { added: counts.0, removed: counts.1, bytes: 0, elements, leftover: self.leftover })
    }

    /// Brings rules and elements about in one transaction. `nft` does it, so the tables have no owner for that moment; somebody else's
    /// change in it is noticed like any other.
    fn rebuild(&mut self, which: Which, elements: impl FnOnce(&KernelState) -> Plan) -> Result<(), InstallError> {
        if let Err(error) = self.drop_shield() {
            // The table may be gone, which is what is about to be put right. With the rules the shield goes too.
            tracing::debug!(error = &error as &dyn std::error::Error, "the shield cannot be taken away before the rules");
        }
        if self.owned {
            // The kernel takes ownership back with the socket, and in no other way.
            self.socket = NetfilterSocket::open().map_err(OpenError::Socket)?;
        }
        let done = survey(&mut self.socket, &self.config)
            .map_err(InstallError::from)
            .and_then(|sites| bring_about(&mut self.socket, &self.config, &sites, which, elements));
        if let Ok(standing) = &done {
            self.layers.clone_from(&standing.layers);
            self.owned = standing.persists;
        }
        self.adopt()?;
        done?;
        let known = self.actual.take().map(|actual| actual.shared.chains).unwrap_or_default();
        let mut actual = read_back(&mut self.socket, &self.layers).map_err(OpenError::from)?;
        for (chain, rules) in &mut actual.shared.chains {
            if let Some(known) = known.get(chain) {
                rules.clone_from(known);
            }
        }
        self.leftover = !plan_tidy(&actual.shared).is_empty();
        self.actual = Some(actual);
        self.walk = None;
        // Rules that are replaced leave none, and whoever cuts says when there is nothing cut.
        (self.shortcuts, self.nothing_is_cut) = (None, false);
        self.grace = None;
        self.prints = check::rules(&mut self.socket, &self.layers).map_err(OpenError::from)?.prints;
        self.mark(&self.prints.clone())?;
        self.observe_again();
        Ok(())
    }

    /// Compares what the kernel holds with what we put there, and says what differs, in words. [`Check::Step`] looks at the rules
    /// or at a part of one set, in turn, and takes some 20 ms. Tables of another version are not compared.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn check(&mut self, how: Check) -> Result<Vec<String>, ReadBackError> {
        let Some(committed) = self.actual.as_ref().filter(|_| !self.is_outdated) else { return Ok(Vec::new()) };
        let mut words = Vec::new();
        let is_rules = how == Check::All || (self.step == 0 && self.walk.is_none());
        if is_rules {
            let found = check::rules(&mut self.socket, &self.layers)?;
            words = check::differences(&self.prints, &found.prints);
            words.extend(check::segment_differences(&mut self.prints, &found.prints, committed));
            words.extend(found.wrong_ports);
            if self.shortcuts.as_ref().is_some_and(|shortcuts| shortcuts.placed() != found.shortcuts) {
                words.push(SHORTCUTS_CHANGED.to_owned());
            }
            words.extend(check::port_differences(&mut self.socket, committed, &self.layers)?);
        }
        let mut suspect = None;
        if how == Check::Step {
            let until = Instant::now() + PART;
            let mut walk = self.walk.take();
            if walk.is_none() {
                let sets: Vec<SetRef> = committed.sets().into_iter().filter(|set| self.layers.contains(&set.layer())).collect();
                let set = self.step.checked_sub(1).and_then(|at| sets.get(at));
                self.step = if self.step >= sets.len() { 0 } else { self.step + 1 };
                walk = set.map(|set| Walk::begin(*set, self.commits)).transpose()?;
            }
            if let Some(mut walk) = walk {
                match walk.go_on(committed, self.commits, until)? {
                    Stands::More => self.walk = Some(walk),
                    Stands::Same => drop(self.left.remove(&walk.set())),
                    Stands::Busy => {
                        let times = self.left.entry(walk.set()).or_default();
                        *times += 1;
                        if *times >= MOST_LEFT {
                            suspect = Some(walk.set());
                        }
                    }
                    Stands::Unsure => suspect = Some(walk.set()),
                }
            }
        }
        if let Some(set) = suspect {
            self.left.remove(&set);
        }
        let chosen = |set: SetRef| how == Check::All || suspect == Some(set);
        words.extend(check::element_differences(&mut self.socket, committed, &self.layers, &committed.sets(), chosen)?);
        Ok(words)
    }

    /// Whether the next [`Check::Step`] goes on with a set that was begun.
    pub fn is_mid_check(&self) -> bool {
        self.walk.is_some()
    }

    /// Lets what policy denies through for a time (`None` ends that), with a note for people; ends by itself.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn observe(&mut self, wanted: Option<(Duration, &str)>) -> Result<(), ObserveError> {
        if self.is_outdated {
            return Err(ObserveError::NoTable);
        }
        if wanted.is_some()
            && let Err(error) = self.drop_shield()
        {
            // What it holds is gone within seconds, and what is let through does not come into it.
            tracing::warn!(error = &error as &dyn std::error::Error, "what was denied a moment ago is refused for some seconds more");
        }
        let written = observe::write(&mut self.socket, wanted);
        if written.is_ok() {
            self.observing = wanted.map(|(duration, note)| (Instant::now() + duration, note.to_owned()));
            self.observes_until = self.observing.as_ref().map(|(until, _)| *until);
        }
        self.put_shortcuts();
        written
    }

    /// Whether the node observes, from the kernel.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observing(&mut self) -> Result<Option<ObserveElement>, ObserveError> {
        if self.is_outdated { Ok(None) } else { observe::read(&mut self.socket) }
    }

    /// Puts the rest of the time back that a table made anew has lost. Where that fails, what policy denies is denied.
    fn observe_again(&mut self) {
        let Some((until, note)) = self.observing.clone() else { return };
        let left = until.saturating_duration_since(Instant::now());
        if !left.is_zero() && matches!(observe::read(&mut self.socket), Ok(None)) {
            let _ = observe::write(&mut self.socket, Some((left, &note)));
        }
    }

    /// The socket's own address, by which the kernel tells our changes from others'.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// The interfaces that may talk, by ifindex, as far as they are known.
    pub fn known_interfaces(&self) -> BTreeSet<u32> {
        let known = self.actual.iter().filter_map(|actual| actual.known.get(&Layer::Inet));
        known.flat_map(|interfaces| interfaces.keys().copied()).collect()
    }

    /// Whether the kernel keeps other processes from changing our tables.
    pub fn owned(&self) -> bool {
        self.owned
    }

    fn actual(&mut self) -> Result<&KernelState, CommitError> {
        if self.actual.is_none() {
            self.read_back().map_err(|error| CommitError::Unknown(error.to_string()))?;
        }
        self.actual.as_ref().ok_or_else(|| CommitError::Unknown("nothing was read back".to_owned()))
    }

    /// Takes note of what was committed; says how many elements there are.
    fn take(&mut self, plan: Plan) -> usize {
        let concerns_chains = plan.concerns_chains();
        let actual = self.actual.get_or_insert_default();
        actual.apply(plan);
        if concerns_chains {
            self.leftover = !plan_tidy(&actual.shared).is_empty();
        }
        actual.len()
    }

    /// Takes out of the sets of cut connections what the caller knows to be allowed again; what its answering end sends is judged by itself then.
    /// Says how many were there.
    ///
    /// # Errors
    /// None was taken out.
    pub fn forget_revoked(&mut self, which: &BTreeSet<Revoked>) -> Result<usize, CommitError> {
        if self.is_outdated { Ok(0) } else { revoked::forget(&mut self.socket, which) }
    }

    /// Whether TCP may be picked up in the middle, so that segments have chains for answers. Where that cannot be read they have none.
    fn may_pick_up(&mut self) -> bool {
        let now = Instant::now();
        let socket = &mut self.socket;
        let read = || observe::midstream_left(socket).map_or(now, |left| now + left);
        now < *self.grace.get_or_insert_with(read)
    }

    fn commit_plan(&mut self, plan: Plan) -> Result<CommitReport, CommitError> {
        self.drop_shortcuts_of(&plan)?;
        let elements = self.actual()?.len();
        if plan.is_empty() {
            // What is only learnt needs no writing.
            self.take(plan);
            return Ok(CommitReport { elements, leftover: self.leftover, ..CommitReport::default() });
        }
        // Nobody asks whether the plan lets something through that was denied: few do not.
        self.drop_shield()?;
        let batch = render(&plan, self.socket.sequence())?;
        let outcome = self.socket.transact(&batch.bytes, batch.last_sequence(), batch.next_sequence()).map_err(CommitError::Socket)?;
        match outcome {
            Outcome::Committed => {
                let (added, removed) = plan.counts();
                self.commits += 1;
                let elements = self.take(plan);
                Ok(CommitReport { added, removed, bytes: batch.bytes.len(), elements, leftover: self.leftover })
            }
            Outcome::Refused(complaints) => Err(explain(&plan, &batch, &complaints)),
            Outcome::TooLarge { limit } => Err(CommitError::TooLarge { bytes: batch.bytes.len(), limit }),
            Outcome::Unknown(reason) => {
                self.actual = None;
                Err(CommitError::Unknown(reason))
            }
        }
    }
}

/// The first complaint that is about an element, else the first.
fn explain(plan: &Plan, batch: &Batch, complaints: &[Complaint]) -> CommitError {
    for complaint in complaints {
        if let Some(place) = locate(plan, batch, complaint.sequence, complaint.offset) {
            return CommitError::Refused {
                set: place.set,
                act: place.act,
                element: place.element,
                source: complaint.refusal.clone(),
                others: complaints.len() - 1,
                culprit: place.culprit.map(Box::new),
            };
        }
    }
    let source = complaints.first().map_or(super::Refusal { errno: Errno::EIO, message: None }, |complaint| complaint.refusal.clone());
    CommitError::Transaction { bytes: batch.bytes.len(), source }
}
