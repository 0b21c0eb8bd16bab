//! The fixed rules, brought into the kernel: at a first install, after an upgrade, after somebody else changed them. Always in one
//! transaction over all tables, with the elements where sets are made anew, so that no packet meets half a state.

use super::check::Prints;
use super::config::DataplaneConfig;
use super::element_text;
use super::error::{CommitError, OpenError};
use super::feature::Feature;
use super::names::{Layer, SetRef, TABLE};
use super::plan::{KernelState, Plan};
use super::read_back::read_back_of;
use super::skeleton::{Present, Skeleton, Transition};
use super::socket::NetfilterSocket;
use super::wire::table;
use super::{mark, nft, tables};
use nix::errno::Errno;
use std::collections::BTreeSet;

/// One table: what it is to be, and what is there.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) layer: Layer,
    skeleton: Skeleton,
    found: Option<tables::Found>,
    present: Present,
}

impl Site {
    /// Whether there is nothing: no table, or one that was made and never filled, because the agent was killed between the two.
    pub(super) fn is_empty(&self) -> bool {
        self.present == Present::default()
    }

    /// Whether our rules are there, by their stamp.
    pub(super) fn is_ours(&self) -> bool {
        tables::stamp(&self.present).is_some_and(|stamp| stamp == *self.skeleton.stamp())
    }

    /// Whether our rules are there and carry the mark of what they were.
    pub(super) fn is_current(&self) -> bool {
        self.is_ours() && mark::found(&self.present).is_some()
    }

    /// What differs from the mark, in words. Rules that are to be replaced are nobody's concern.
    pub(super) fn changed(&self, prints: &Prints) -> Option<String> {
        let found = mark::found(&self.present).filter(|_| self.is_ours())?;
        (found != mark::name(prints, self.layer)).then(|| format!("rules of table {} {TABLE}: changed while no agent ran", self.layer))
    }

    /// Whether the rules can be replaced and no set that we write need be made anew.
    pub(super) fn elements_can_stay(&self) -> bool {
        self.is_empty() || self.skeleton.elements_can_stay(&self.present)
    }
}

impl Site {
    /// The sets of ours that are there and hold what ours would.
    pub(super) fn readable(&self) -> impl Iterator<Item = SetRef> + '_ {
        let is_there = |set: &SetRef| set.layer() == self.layer && self.skeleton.can_be_read(&self.present, &set.name());
        SetRef::all().into_iter().filter(is_there)
    }
}

/// Which tables are brought to their rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Those that are not there, carry another stamp, or do not say what they were.
    Stale,
    /// All: somebody may have changed them under their stamp.
    All,
}

/// Looks what is there. Writes nothing.
///
/// # Errors
/// What the kernel refused, or a table of our name that no agent made.
pub(super) fn survey(socket: &mut NetfilterSocket, config: &DataplaneConfig) -> Result<Vec<Site>, OpenError> {
    let mut sites = Vec::new();
    for layer in Layer::ALL.into_iter().filter(|layer| !is_absent(config, *layer)) {
        let skeleton = Skeleton::new(layer, config).map_err(|error| OpenError::Nft(error.to_string()))?;
        let found = match tables::find(socket, layer) {
            Ok(found) => found,
            // A kernel without this family: preflight reports it; the others hold.
            Err(OpenError::Kernel { source, .. }) if is_no_family(layer, source.errno) => continue,
            Err(error) => return Err(error),
        };
        let present = match found {
            Some(_) => tables::look_into(socket, layer)?,
            None => Present::default(),
        };
        if present != Present::default() && tables::stamp(&present).is_none() && !tables::looks_like_ours(&present) {
            return Err(OpenError::NotOurs { layer });
        }
        sites.push(Site { layer, skeleton, found, present });
    }
    Ok(sites)
}

fn is_absent(config: &DataplaneConfig, layer: Layer) -> bool {
    match layer {
        // Preflight refuses to start without the netdev family.
        Layer::Inet | Layer::Netdev => false,
        Layer::Bridge => config.absent.contains(&Feature::BridgeFamily),
        Layer::Arp => config.absent.contains(&Feature::ArpFamily),
    }
}

fn is_no_family(layer: Layer, errno: Errno) -> bool {
    layer != Layer::Inet && matches!(errno, Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)
}

/// What [`bring_about`] left behind.
#[derive(Debug)]
pub(super) struct Standing {
    /// The tables that are there.
    pub(super) layers: Vec<Layer>,
    /// Whether each of them outlives its owner and can be owned.
    pub(super) persists: bool,
}

impl Standing {
    /// What is there already.
    pub(super) fn of(sites: &[Site], config: &DataplaneConfig) -> Self {
        let may_own = !config.absent.contains(&Feature::TableOwner);
        let found = || sites.iter().filter_map(|site| Some((site.layer, site.found?)));
        Self { layers: found().map(|(layer, _)| layer).collect(), persists: may_own && found().all(|(_, found)| found.persists()) }
    }
}

/// Why the rules were not brought into the kernel. What was there is there.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstallError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Elements(#[from] CommitError),
}

/// Makes the rules so, in one run of `nft` and one transaction; before it, a run makes those sets that nft's JSON cannot declare, which
/// nothing looks at yet. Nobody may own the tables: `nft` has a socket of its own. `elements`
/// is what has to change beside them, given what the sets that stay hold.
///
/// # Errors
/// What was there stays whole.
pub(super) fn bring_about(
    socket: &mut NetfilterSocket,
    config: &DataplaneConfig,
    sites: &[Site],
    which: Which,
    elements: impl FnOnce(&KernelState) -> Plan,
) -> Result<Standing, InstallError> {
    let may_own = !config.absent.contains(&Feature::TableOwner);
    let mut standing = Standing { layers: Vec::new(), persists: may_own };
    let mut commands = Vec::new();
    let mut prelude = String::new();
    let mut empty = BTreeSet::new();
    let mut flushes_ports = false;
    let mut made = Vec::new();
    for site in sites {
        match site.found {
            Some(found) => standing.persists &= found.persists(),
            None => match tables::create(socket, site.layer, may_own) {
                Ok(persists) => {
                    standing.persists &= persists;
                    made.push(site.layer);
                }
                Err(OpenError::Kernel { source, .. }) if is_no_family(site.layer, source.errno) => continue,
                Err(error) => return Err(error.into()),
            },
        }
        standing.layers.push(site.layer);
        if which == Which::Stale && site.is_current() {
            continue;
        }
        if let Some(found) = site.found {
            release_check(site.layer, found)?;
        }
        prelude.push_str(&site.skeleton.prelude(&site.present));
        let transition = site.skeleton.transition(&site.present).map_err(|error| OpenError::Nft(error.to_string()))?;
        let Transition { commands: more, kept } = transition;
        commands.extend(more);
        flushes_ports |= site.layer == Layer::Netdev;
        empty.extend(SetRef::all().into_iter().filter(|set| set.layer() == site.layer && !kept.contains(&set.name())));
    }
    if commands.is_empty() {
        return Ok(standing);
    }
    let fill = || -> Result<(), InstallError> {
        if !prelude.is_empty() {
            nft::apply_text(&config.nft, &prelude)?;
        }
        let held = read_back_of(socket, &standing.layers, |set| !empty.contains(&set)).map_err(OpenError::from)?;
        let mut plan = elements(&held);
        if flushes_ports {
            plan.ports.keep(held.ports.iter().flatten());
        }
        let fields = |layer, set: &str| sites.iter().find(|site| site.layer == layer).and_then(|site| site.skeleton.fields(set));
        Ok(nft::apply(&config.nft, &commands, &element_text::commands(&plan, fields)?)?)
    };
    let filled = fill();
    if filled.is_err() {
        // Where they cannot be taken away again they are empty, and the next try fills them.
        made.iter().for_each(|layer| drop(tables::delete(socket, *layer)));
    }
    filled?;
    Ok(standing)
}

/// Rules are replaced by `nft`, so nobody may own the table. An owner is either another agent or one that is just ending: taking
/// the table over and giving it back tells, and waits for the second.
fn release_check(layer: Layer, found: tables::Found) -> Result<(), OpenError> {
    if found.flags & table::FLAG_OWNER == 0 {
        return Ok(());
    }
    let mut probe = NetfilterSocket::open().map_err(OpenError::Socket)?;
    tables::adopt(&mut probe, layer)
    // Dropping the probe's socket leaves the table an orphan again.
}
