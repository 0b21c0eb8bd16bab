//! Whether an entry may live. Pure.

use super::entry::{Detail, Entry, Tuple};
use crate::dataplane::Revoked;
use firebreak_policy::judge::{Fate, Path};
use firebreak_policy::model::{Direction, Generation, Protocol, Transport};
use firebreak_policy::node_judge::NodeJudge;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What entries are judged by.
#[derive(Debug)]
pub struct Scene {
    /// Which generation it is.
    pub generation: Generation,
    /// Policy, for the workloads that are alive here.
    pub policy: NodeJudge,
    /// The node's own addresses, of every scope: which hook a packet met depends on them.
    pub node: BTreeSet<IpAddr>,
    /// The addresses of local workloads: the kernel's sets `workload4` and `workload6`.
    pub locals: BTreeSet<IpAddr>,
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Neither end is a local workload.
    Foreign,
    /// Policy allows it.
    Keep,
    /// Policy forbids it, at this end.
    Forbidden(Direction),
    /// As before, and it has neither ports nor an identifier by which what the other end may send could be told from it: the entry is
    /// deleted, so that each direction is judged by itself again.
    ForbiddenOneWay(Direction),
}

impl Scene {
    /// Judges an entry as the rules judged its first packet.
    pub fn judge(&self, entry: &Entry) -> Judgement {
        let (source, destination) = (entry.source(), entry.destination());
        if !self.locals.contains(&source) && !self.locals.contains(&destination) {
            return Judgement::Foreign;
        }
        let Fate::Denied(direction) = self.fate(source, destination, entry.transport()) else { return Judgement::Keep };
        let reversed = || entry.reversed_transport().map(|transport| self.fate(destination, source, transport)) == Some(Fate::Passed);
        match entry.transport() {
            // Nobody knows who began it: policy need allow one orientation only, as when it was picked up (DESIGN 6.5).
            Transport::Port(Protocol::TCP, _) if entry.is_midstream() && reversed() => Judgement::Keep,
            Transport::Other(_) if reversed() => Judgement::ForbiddenOneWay(direction),
            Transport::Port(..) | Transport::Icmp { .. } | Transport::Other(_) => Judgement::Forbidden(direction),
        }
    }

    /// Whether the connection is allowed that a remembered packet answers.
    pub fn allows_again(&self, revoked: &Revoked) -> bool {
        let Revoked { from, to, protocol } = *revoked;
        let tuple =
            |(source, source_port), (destination, port)| Tuple { source, destination, protocol, detail: Detail::Ports(source_port, port) };
        let connection = Entry { original: tuple(to, from), reply: tuple(from, to), ..Entry::probe(to.0, from.0) };
        self.judge(&connection) == Judgement::Keep
    }

    fn fate(&self, source: IpAddr, destination: IpAddr, transport: Transport) -> Fate {
        let path = match (self.node.contains(&source), self.node.contains(&destination)) {
            // What is published is judged for local workloads only.
            (_, true) if !self.locals.contains(&source) => return Fate::Passed,
            (_, true) => Path::ToNode,
            (true, false) => Path::FromNode,
            (false, false) => Path::Forwarded,
        };
        self.policy.judge(path, source, destination, transport)
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
