//! The tables, held open: found or installed at start, changed by commits.

use super::config::DataplaneConfig;
use super::desired::Desired;
use super::error::{CommitError, OpenError, ReadBackError};
use super::feature::Feature;
use super::names::Layer;
use super::plan::{KernelState, Plan, plan, plan_delta, plan_restore};
use super::read_back::read_back;
use super::render::{Batch, locate, render};
use super::report::{CommitReport, Delta, Opened, SkeletonState};
use super::skeleton::Skeleton;
use super::socket::{Complaint, NetfilterSocket, Outcome};
use super::{nft, tables};
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
        let (layers, skeleton, persists) = install(&mut socket, config, Rules::Compare)?;
        for layer in &layers {
            if persists {
                tables::adopt(&mut socket, *layer)?;
            }
        }
        let actual = read_back(&mut socket, &layers)?;
        let opened = Opened { skeleton, owned: persists, elements: actual.len() };
        let config = config.clone();
        Ok((Self { socket, layers, actual: Some(actual), owned: persists, config }, opened))
    }

    /// Makes the kernel hold what is desired, in one transaction; nothing is written when it does already.
    /// On error the old contents stay whole, but for [`CommitError::Unknown`].
    pub fn commit(&mut self, desired: &Desired) -> Result<CommitReport, CommitError> {
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

    /// Puts back what somebody else changed in our tables: the rules in one transaction, then the elements in another. For
    /// kernels that let others in ([`Self::owned`] is false), when a [`super::ChangeWatch`] has seen a change. Runs `nft`.
    /// The report is about the elements.
    pub fn repair(&mut self) -> Result<CommitReport, CommitError> {
        if self.owned {
            return Ok(CommitReport { elements: self.actual()?.len(), ..CommitReport::default() });
        }
        let repair = |error: OpenError| CommitError::Repair(error.to_string());
        let (layers, _, _) = install(&mut self.socket, &self.config, Rules::Replace).map_err(repair)?;
        let committed = self.actual.take();
        let actual = read_back(&mut self.socket, &layers).map_err(|error| CommitError::Repair(error.to_string()))?;
        self.layers = layers;
        let plan = committed.map(|committed| plan_restore(&actual, &committed)).unwrap_or_default();
        self.actual = Some(actual);
        self.commit_plan(plan)
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

/// When the rules of a table that is there are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    /// When its stamp is another.
    Compare,
    /// Always: somebody may have changed them under their stamp.
    Replace,
}

/// Sees to it that each table is there with our rules. All that is missing is filled by one run of `nft`, in one transaction.
fn install(socket: &mut NetfilterSocket, config: &DataplaneConfig, rules: Rules) -> Result<(Vec<Layer>, SkeletonState, bool), OpenError> {
    let mut layers = Vec::new();
    let mut commands = Vec::new();
    let mut state = SkeletonState::Adopted;
    let may_own = !config.absent.contains(&Feature::TableOwner);
    let mut all_persist = may_own;
    let is_absent = |layer| match layer {
        Layer::Inet => false,
        Layer::Bridge => config.absent.contains(&Feature::BridgeFamily),
        Layer::Arp => config.absent.contains(&Feature::ArpFamily),
    };
    for layer in Layer::ALL.into_iter().filter(|layer| !is_absent(*layer)) {
        let skeleton = Skeleton::new(layer, config).map_err(|error| OpenError::Nft(error.to_string()))?;
        let found = tables::find(socket, layer)?;
        let present = match found {
            Some(_) => tables::look_into(socket, layer)?,
            None => super::skeleton::Present::default(),
        };
        match (tables::stamp(&present), found) {
            (Some(stamp), Some(found)) if rules == Rules::Compare && stamp == *skeleton.stamp() => all_persist &= found.persists(),
            (Some(stamp), Some(found)) if stamp.form == skeleton.stamp().form => {
                all_persist &= found.persists();
                release_check(socket, layer, found)?;
                commands.extend(skeleton.replace(&present).map_err(|error| OpenError::Nft(error.to_string()))?);
                state = if state == SkeletonState::Adopted { SkeletonState::Replaced } else { state };
            }
            // Made and not filled: the agent was killed between the two.
            (None, Some(found)) if present == super::skeleton::Present::default() => {
                all_persist &= found.persists();
                commands.extend(skeleton.install().map_err(|error| OpenError::Nft(error.to_string()))?);
                state = SkeletonState::Installed;
            }
            (stamp, Some(_)) => {
                let found = stamp.map_or_else(|| "none".to_owned(), |stamp| stamp.counter());
                return Err(OpenError::OtherForm { layer, found, ours: skeleton.stamp().counter() });
            }
            (_, None) => {
                match tables::create(socket, layer, may_own) {
                    Ok(persists) => all_persist &= persists,
                    // A kernel without this family: preflight reports it; the others hold.
                    Err(OpenError::Kernel { source, .. })
                        if layer != Layer::Inet && matches!(source.errno, Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) =>
                    {
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                commands.extend(skeleton.install().map_err(|error| OpenError::Nft(error.to_string()))?);
                state = SkeletonState::Installed;
            }
        }
        layers.push(layer);
    }
    if !commands.is_empty() {
        nft::apply(&config.nft, commands)?;
    }
    Ok((layers, state, all_persist))
}

/// Rules are replaced by `nft`, so nobody may own the table. An owner is either another agent or one that is just ending: taking
/// the table over and giving it back tells, and waits for the second.
fn release_check(_socket: &mut NetfilterSocket, layer: Layer, found: tables::Found) -> Result<(), OpenError> {
    if found.flags & super::wire::table::FLAG_OWNER == 0 {
        return Ok(());
    }
    let mut probe = NetfilterSocket::open().map_err(OpenError::Socket)?;
    tables::adopt(&mut probe, layer)
    // Dropping the probe's socket leaves the table an orphan again.
}
