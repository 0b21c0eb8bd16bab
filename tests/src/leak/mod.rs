//! The leak checker: permitted and forbidden traffic all the time, every wrong decision counted.
//!
//! Nothing here is judged by a clock. Two ledgers are kept by kernels at both ends of every pair ([`ledger`]): what left the sender and what
//! reached the receiver, and the same of the answers. A forbidden packet that reached its receiver has leaked, however late and whether or not
//! anybody answered. A permitted packet that left and never arrived was dropped; one that a busy machine keeps for a second is late, sent again
//! by TCP, and in the end as many have arrived as were sent. So a zero is a zero, and a slow machine makes no false alarm.
//!
//! Beside that the sockets tell: a connection that was refused or reset, and one that got no answer for [`station::PATIENCE`].

mod client;
mod ledger;
mod shared;
mod station;

use crate::namespace::Namespace;
use crate::probe::Kind;
use anyhow::{Context as _, ensure};
use ledger::Ledger;
pub use ledger::{Balance, Sight};
use shared::{Phase, Shared};
use station::{Job, Plan, Sockets};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Over what the acceptance asks for (2,000), in all directions together; `FIREBREAK_PROBES` gives another number where the machine is shared.
pub fn probes_per_second() -> u32 {
    std::env::var("FIREBREAK_PROBES").ok().and_then(|it| it.parse().ok()).unwrap_or(2_300)
}

/// Who sends and receives: a workload or a node.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where its sockets are.
    pub namespace: &'a Namespace,
    /// The addresses it sends from and is reached at, IPv4 first.
    pub addresses: [IpAddr; 2],
    /// Whether the product's own tables are in its namespace: then a packet has arrived behind them and not before.
    pub is_node: bool,
}

/// From, to, what, and whether it is to pass: over IPv4 and IPv6. Names are for people.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Who sends.
    pub from: (&'a str, End<'a>),
    /// Who would receive.
    pub to: (&'a str, End<'a>),
    /// What; SCTP is not among it.
    pub kind: Kind,
    /// Whether it is to pass.
    pub allowed: bool,
}

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Probes sent, each a new connection, datagram or echo request that is to pass.
    pub permitted: u64,
    /// Probes sent that are not to pass.
    pub forbidden: u64,
    /// Messages that long-lived connections carried, both ways.
    pub ticks: u64,
    /// How long probes were sent.
    pub lasted: Duration,
    /// Forbidden packets that arrived, by pair.
    pub leaked: Vec<String>,
    /// Permitted packets that left and did not arrive, by pair.
    pub dropped: Vec<String>,
    /// Connections refused, reset or without an answer, as the sockets told.
    pub refused: Vec<String>,
    /// Pairs of which nothing was sent, or of which a permitted one never arrived: they show nothing.
    pub silent: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { permitted, forbidden, ticks, lasted, leaked, dropped, refused, silent } = self;
        let rate = (permitted + forbidden) as f64 / lasted.as_secs_f64().max(0.001);
        write!(
            f,
            "{permitted} permitted and {forbidden} forbidden probes in {:.1} s ({rate:.0}/s), {ticks} ticks on open connections; leaked {}, dropped {}, \
             refused or reset {}, silent {}",
            lasted.as_secs_f64(),
            leaked.len(),
            dropped.len(),
            refused.len(),
            silent.len()
        )
    }
}

impl Outcome {
    /// Zero wrong decisions, and enough was sent to tell.
    ///
    /// # Errors
    /// Every wrong decision, by pair.
    pub fn clean(&self, what: &str, at_least: u64) -> anyhow::Result<()> {
        println!("{what}: {self}");
        let wrong = [("leaked", &self.leaked), ("dropped", &self.dropped), ("refused", &self.refused), ("silent", &self.silent)];
        let wrong: Vec<String> = wrong.iter().flat_map(|(how, list)| list.iter().map(move |it| format!("{how}: {it}"))).collect();
        ensure!(wrong.is_empty(), "{what}: {self}\n  {}", wrong.join("\n  "));
        ensure!(self.permitted >= at_least && self.forbidden >= at_least, "{what}: too few probes to tell: {self}");
        Ok(())
    }
}

/// A running checker: one thread in each namespace that sends or receives.
#[derive(Debug)]
pub struct LeakChecker {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
    ledger: Ledger,
    begun: Instant,
}

impl LeakChecker {
    /// Opens the ledgers and every listener, then begins to send: so many probes a second over all pairs, evenly. Each permitted TCP pair also
    /// keeps a connection open for the whole time, with messages both ways.
    ///
    /// # Errors
    /// A port is taken, or `nft` refuses a ledger.
    pub fn start(pairs: &[Pair<'_>], per_second: u32) -> anyhow::Result<Self> {
        let mut plans: BTreeMap<&str, (End<'_>, Plan)> = BTreeMap::new();
        let mut sights = Vec::new();
        for pair in pairs {
            for (end, slot) in [(pair.from.1, pair.from.1.namespace.name()), (pair.to.1, pair.to.1.namespace.name())] {
                plans.entry(slot).or_insert_with(|| (end, Plan::new(end.addresses)));
            }
            for (from, to) in pair.from.1.addresses.into_iter().zip(pair.to.1.addresses) {
                let sight = Sight { from, to, kind: pair.kind, allowed: pair.allowed };
                let name = format!("{} -> {} ({to}) {}", pair.from.0, pair.to.0, pair.kind);
                sights.push((sight, name.clone(), pair.from.1.namespace.name().to_owned(), pair.to.1.namespace.name().to_owned()));
                let job = Job { from, to, kind: pair.kind, allowed: pair.allowed, name };
                plans.get_mut(pair.from.1.namespace.name()).context("the sender is planned")?.1.jobs.push(job);
            }
            plans.get_mut(pair.to.1.namespace.name()).context("the receiver is planned")?.1.serve(pair.kind);
        }
        let jobs = sights.len();
        let ends: Vec<End<'_>> = plans.values().map(|(end, _)| *end).collect();
        let ledger = Ledger::open(&ends, sights)?;
        let shared = Arc::new(Shared::new(plans.len()));
        // All listen before the first one sends.
        let mut ready = Vec::new();
        for (end, mut plan) in plans.into_values() {
            plan.share(per_second, jobs);
            let (plan, sockets) = end.namespace.run(move || Sockets::open(&plan).map(|sockets| (plan, sockets)))??;
            ready.push((end, plan, sockets));
        }
        let mut threads = Vec::new();
        for (end, plan, sockets) in ready {
            let shared = Arc::clone(&shared);
            let thread = end.namespace.spawn(move || station::run(plan, sockets, &shared))?;
            threads.push(std::thread::spawn(move || thread.join().map_err(|_| anyhow::anyhow!("a probing thread panicked"))??));
        }
        Ok(Self { shared, threads, ledger, begun: Instant::now() })
    }

    /// Probes sent so far: permitted, forbidden.
    pub fn sent(&self) -> (u64, u64) {
        self.shared.sent()
    }

    /// Waits until so many more probes of each sort were sent.
    ///
    /// # Errors
    /// They are not sent: a probing thread ended.
    pub fn wait_for(&self, more: u64) -> anyhow::Result<()> {
        let (permitted, forbidden) = self.sent();
        crate::wait::until_true("more probes to be sent", Duration::from_secs(120), || {
            let now = self.sent();
            now.0 >= permitted + more && now.1 >= forbidden + more
        })
        .map(drop)
    }

    /// How many forbidden packets have arrived so far.
    ///
    /// # Errors
    /// A ledger cannot be read.
    pub fn leaked(&self) -> anyhow::Result<u64> {
        Ok(self.ledger.read()?.iter().filter(|balance| !balance.sight.allowed).map(|balance| balance.arrived).sum())
    }

    /// Stops in order (no probe is left half-way) and gives what was counted.
    ///
    /// # Errors
    /// A probe could not be sent for a reason that is not policy, or a ledger cannot be read.
    pub fn stop(mut self) -> anyhow::Result<Outcome> {
        let lasted = self.begun.elapsed();
        self.shared.advance(Phase::Quiet);
        self.shared.wait_idle()?;
        self.shared.advance(Phase::Close);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow::anyhow!("a probing thread panicked"))??;
        }
        // What is on its way arrives: the last packets of connections that closed.
        let settled = crate::wait::until("the ledgers to balance", Duration::from_secs(3), || {
            let balances = self.ledger.read()?;
            ensure!(balances.iter().all(Balance::is_even), "they do not");
            Ok(balances)
        });
        let balances = match settled {
            Ok((balances, _)) => balances,
            Err(_) => self.ledger.read()?,
        };
        let (permitted, forbidden) = self.shared.sent();
        let mut outcome =
            Outcome { permitted, forbidden, ticks: self.shared.ticks(), lasted, refused: self.shared.refused(), ..Outcome::default() };
        for balance in balances {
            balance.judge(&mut outcome);
        }
        Ok(outcome)
    }
}

impl Drop for LeakChecker {
    fn drop(&mut self) {
        self.shared.advance(Phase::Close);
    }
}
