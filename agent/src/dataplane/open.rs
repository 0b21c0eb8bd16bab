//! The tables, held open: found or installed at start, changed by commits.

use super::config::DataplaneConfig;
use super::desired::Desired;
use super::error::{CommitError, OpenError, ReadBackError};
use super::install::{InstallError, Site, Standing, Which, bring_about, survey};
use super::names::{Layer, SetRef};
use super::plan::{KernelState, Plan, plan, plan_delta, plan_restore};
use super::read_back::{read_back, read_back_of};
use super::render::{Batch, locate, render};
use super::report::{CommitReport, Delta, Opened, SkeletonState};
use super::socket::{Complaint, NetfilterSocket, Outcome};
use super::tables;
use nix::errno::Errno;
use std::collections::BTreeSet;

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
        } else if sites.iter().all(Site::is_ours) {
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
        let mut this = Self { socket, layers, actual: None, owned: persists, is_outdated, config: config.clone() };
        this.adopt()?;
        let readable: BTreeSet<SetRef> = sites.iter().flat_map(Site::readable).collect();
        let layers = &this.layers;
        let actual = read_back_of(&mut this.socket, layers, |set| !is_outdated || readable.contains(&set))?;
        let opened = Opened { skeleton, owned: persists, elements: actual.len() };
        this.actual = Some(actual);
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

    /// Makes the kernel hold what is desired, in one transaction; nothing is written when it does already.
    /// On error the old contents stay whole, but for [`CommitError::Unknown`].
    ///
    /// The tables of another version ([`SkeletonState::Outdated`]) are replaced in the same transaction: up to it their rules judge
    /// by their elements, after it ours by ours.
    pub fn commit(&mut self, desired: &Desired) -> Result<CommitReport, CommitError> {
        if self.is_outdated {
            self.rebuild(Which::Stale, |actual| plan(actual, desired)).map_err(|error| CommitError::Upgrade(error.to_string()))?;
            self.is_outdated = false;
            tracing::info!("the tables of another version were replaced in one transaction");
        }
        let actual = self.actual()?;
        let plan = plan(actual, desired);
        match self.commit_plan(plan) {
            Err(CommitError::Refused { source, .. }) if !self.owned && source.errno == Errno::ENOENT => {
                // Where the kernel does not keep others off, an element may have been taken away behind our back.
                self.actual = None;
                let plan = super::plan::plan(self.actual()?, desired);
                self.commit_plan(plan)
            }
            result => result,
        }
    }

    /// As [`Self::commit`], for a known change of the policy sets; looks at nothing else.
    pub fn commit_delta(&mut self, delta: &Delta) -> Result<CommitReport, CommitError> {
        if self.is_outdated {
            return Err(CommitError::Upgrade("a whole state has to be committed first".to_owned()));
        }
        let plan = plan_delta(self.actual()?, delta);
        self.commit_plan(plan)
    }

    /// Reads what the kernel holds and takes that for what was committed. Says how many elements there are.
    /// A commit needs it never: it is for checks, and after [`CommitError::Unknown`] it comes by itself.
    pub fn read_back(&mut self) -> Result<usize, ReadBackError> {
        let actual = read_back(&mut self.socket, &self.layers)?;
        let elements = actual.len();
        self.actual = Some(actual);
        Ok(elements)
    }

    /// Puts back what somebody else changed in our tables, rules and elements in one transaction. Runs `nft`; the report is about
    /// the elements. Sets that still hold what they should are left alone.
    ///
    /// # Errors
    /// [`CommitError::Repair`]; the call may be repeated.
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
        let elements = self.actual()?.len();
        Ok(CommitReport { added: counts.0, removed: counts.1, bytes: 0, elements })
    }

    /// Brings rules and elements about in one transaction. `nft` does it, so the tables have no owner for that moment; somebody else's
    /// change in it is noticed like any other.
    fn rebuild(&mut self, which: Which, elements: impl FnOnce(&KernelState) -> Plan) -> Result<(), InstallError> {
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
        self.actual = None;
        self.actual = Some(read_back(&mut self.socket, &self.layers).map_err(OpenError::from)?);
        Ok(())
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

    fn commit_plan(&mut self, plan: Plan) -> Result<CommitReport, CommitError> {
        let elements = self.actual()?.len();
        if plan.is_empty() {
            return Ok(CommitReport { elements, ..CommitReport::default() });
        }
        let batch = render(&plan, self.socket.sequence())?;
        let outcome = self.socket.transact(&batch.bytes, batch.last_sequence(), batch.next_sequence()).map_err(CommitError::Socket)?;
        match outcome {
            Outcome::Committed => {
                let (added, removed) = plan.counts();
                let actual = self.actual.get_or_insert_default();
                actual.apply(plan);
                Ok(CommitReport { added, removed, bytes: batch.bytes.len(), elements: actual.len() })
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
            };
        }
    }
    let source = complaints.first().map_or(super::Refusal { errno: Errno::EIO, message: None }, |complaint| complaint.refusal.clone());
    CommitError::Transaction { bytes: batch.bytes.len(), source }
}
