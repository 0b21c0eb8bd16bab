//! The phases of a simulation, one after the other.

use super::agent::Mode;
use super::company::{Change, Company, Concerned, Size};
use super::fleet::{Fleet, Spread};
use super::outcome::{Churn, Connected, OneChange, Outcome, Stall};
use crate::flow_rate::processor_time;
use crate::{memory, scratch};
use anyhow::{Context as _, bail, ensure};
use firebreak_proto::v1;
use firebreak_proto::v1::operator_service_client::OperatorServiceClient;
use firebreak_tests::lab::Lab;
use firebreak_tests::system::{CONTROLLER, Controller};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// Objects in one call.
const BATCH: usize = 2_000;
/// How often one change for all is measured.
const ROUNDS: usize = 5;
/// Longer than anything takes that is still to be told of.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often it is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(5);

type Operator = OperatorServiceClient<Channel>;

/// A controller, its agents, and what was measured so far.
pub(crate) struct Driver {
    outcome: Outcome,
    company: Company,
    operator: Operator,
    /// Of the operator's calls: an operator is no agent, and does not wait for a thread behind thousands of them.
    calls: Runtime,
    fleet: Fleet,
    runtime: Runtime,
    controller: Controller,
    lab: Lab,
    _folder: TempDir,
}

/// A change that was made.
struct Made {
    concerned: Concerned,
    revision: u64,
    called: Instant,
    answered: Duration,
}

/// What processors and wire had done at a moment.
struct Meter {
    at: Instant,
    controller: Duration,
    agents: Duration,
    wire: u64,
}

impl Driver {
    /// A controller that knows the whole company, and no agent yet.
    pub(crate) fn start(size: Size) -> anyhow::Result<Self> {
        raise_open_files()?;
        let folder = scratch::folder()?;
        let lab = Lab::new(&scratch::prefix("g"))?;
        let mut controller = Controller::start(&lab.core, folder.path())?;
        // Threads of the runtime are in the namespace of the thread that makes them; so is every connection of theirs.
        let runtime = lab.core.run(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build())??;
        let socket = Endpoint::try_from(format!("unix://{}", controller.socket().display()))?;
        let calls = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let channel = {
            let _inside = calls.enter();
            socket.connect_lazy()
        };
        let mut operator = OperatorServiceClient::new(channel).max_encoding_message_size(64 << 20).max_decoding_message_size(64 << 20);
        let company = Company::new(size);
        let (pods, _, policies) = company.counts();
        let begun = Instant::now();
        let objects = company.objects();
        for some in objects.chunks(BATCH) {
            let request = v1::ApplyRequest { objects: some.to_vec(), reason: "simulation".to_owned(), ..v1::ApplyRequest::default() };
            calls.block_on(operator.apply(request)).context("the company was not accepted")?;
        }
        let load_ms = ms(begun.elapsed());
        eprintln!("  {} objects applied in {load_ms:.0} ms", objects.len());
        // What follows begins with a controller that has just started.
        controller.kill()?;
        controller.start_again(&lab.core)?;
        let endpoint = Endpoint::try_from(format!("http://{CONTROLLER}"))?;
        let fleet = Fleet::new(&runtime, &endpoint, size.agents);
        let outcome = Outcome { size, pods, policies, load_ms, ..Outcome::default() };
        Ok(Self { outcome, company, operator, calls, fleet, runtime, controller, lab, _folder: folder })
    }

    /// Connects all agents at once.
    pub(crate) fn connect(&mut self) -> anyhow::Result<()> {
        let before = self.meter()?;
        self.fleet.order(0..self.agents(), Mode::Serve);
        self.until_in_sync()?;
        self.outcome.cold = self.connected(&before)?;
        eprintln!("  in sync after {:.0} ms", self.outcome.cold.took_ms);
        Ok(())
    }

    /// Kills the controller and starts it again on its files.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.settle()?;
        self.controller.kill()?;
        let begun = Instant::now();
        self.controller.start_again(&self.lab.core)?;
        let before = Meter { controller: Duration::ZERO, at: begun, ..self.meter()? };
        self.until_in_sync()?;
        self.outcome.restart = self.connected(&before)?;
        eprintln!("  in sync again after {:.0} ms", self.outcome.restart.took_ms);
        Ok(())
    }

    /// A change that concerns every node, by itself, several times.
    pub(crate) fn one_change_for_all(&mut self) -> anyhow::Result<()> {
        let before = self.meter()?;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let change = self.company.roll_monitor().context("nobody is admitted by all")?;
            let made = self.calls.block_on(make(self.operator.clone(), change))?;
            self.until("all have one change", |fleet| fleet.have(0..fleet.size(), made.revision) == fleet.size() as usize)?;
            times.push(self.fleet.waits(&Concerned::All, made.revision, made.called).into_iter().flatten().max().unwrap_or_default());
            self.settle()?;
        }
        let after = self.meter()?;
        let rounds = times.len().max(1);
        self.outcome.one_change = OneChange {
            to_last_ack: Spread::of(&times),
            controller_cpu_ms: ms(after.controller.saturating_sub(before.controller)) / rounds as f64,
            bytes_down: self.fleet.take_traffic().bytes_down / rounds as u64,
        };
        eprintln!("  one change for all: {:?}", self.outcome.one_change.to_last_ack);
        Ok(())
    }

    /// Changes at a rate for some seconds.
    pub(crate) fn churn(&mut self, rate: u32, seconds: u32) -> anyhow::Result<()> {
        let before = self.meter()?;
        let made = self.changes(rate, seconds)?;
        let after = self.meter()?;
        let resident = self.resident()?;
        let took = after.at.duration_since(before.at).as_secs_f64();
        self.until_acked(&made, 0..self.agents());
        let measured = self.lags(&made, 0);
        let calls: Vec<Duration> = made.iter().map(|made| made.answered).collect();
        self.outcome.churn = Churn {
            changes: made.len(),
            rate,
            few: Spread::of(&measured.few),
            all: Spread::of(&measured.all),
            last_ack: Spread::of(&measured.last),
            accepted_few: Spread::of(&measured.accepted_few),
            accepted_all: Spread::of(&measured.accepted_all),
            call: Spread::of(&calls),
            lost: measured.lost,
            controller_cpu: after.controller.saturating_sub(before.controller).as_secs_f64() / took,
            agents_cpu: after.agents.saturating_sub(before.agents).as_secs_f64() / took,
            wire_bytes_per_second: (after.wire - before.wire) as f64 / took,
            resident,
            traffic: self.fleet.take_traffic(),
        };
        eprintln!("  churn: {:?}", self.outcome.churn);
        self.settle()
    }

    /// A tenth of the agents read nothing for some seconds, during changes at the same rate.
    pub(crate) fn stall(&mut self, rate: u32, seconds: u32) -> anyhow::Result<()> {
        let stalled = self.agents() / 10;
        let resident = self.resident()?;
        self.fleet.order(0..stalled, Mode::Stall);
        let made = self.changes(rate, seconds)?;
        self.until_acked(&made, stalled..self.agents());
        let measured = self.lags(&made, stalled);
        let at_end = self.resident()?;
        self.fleet.take_traffic();
        let begun = Instant::now();
        self.fleet.order(0..stalled, Mode::Serve);
        self.settle()?;
        let most = self.fleet.acked_since(0..stalled, begun).into_iter().max().unwrap_or_default();
        self.outcome.stall = Stall {
            stalled,
            changes: made.len(),
            few: Spread::of(&measured.few),
            lost: measured.lost,
            grew: at_end.saturating_sub(resident),
            resident: at_end,
            converged_ms: ms(begun.elapsed()),
            most_generations: u32::try_from(most)?,
            traffic: self.fleet.take_traffic(),
        };
        eprintln!("  stall: {:?}", self.outcome.stall);
        Ok(())
    }

    /// What was measured, with everything that did not add up.
    pub(crate) fn finish(mut self) -> anyhow::Result<Outcome> {
        self.outcome.problems.extend(self.fleet.problems());
        for problem in self.outcome.problems.iter().take(10) {
            eprintln!("  problem: {problem}");
        }
        self.fleet.order(0..self.agents(), Mode::Stop);
        self.runtime.shutdown_background();
        self.calls.shutdown_background();
        Ok(self.outcome)
    }

    fn agents(&self) -> u32 {
        self.company.agents()
    }

    /// Makes changes at a rate, each at its time however long the others take.
    fn changes(&mut self, rate: u32, seconds: u32) -> anyhow::Result<Vec<Made>> {
        let (company, operator) = (&mut self.company, &self.operator);
        let changes: Vec<Change> = (0..rate * seconds).map_while(|_| company.change()).collect();
        let operator = operator.clone();
        self.calls.block_on(async move {
            let (mut made, mut calls) = (Vec::with_capacity(changes.len()), JoinSet::new());
            let mut times = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
            for change in changes {
                times.tick().await;
                calls.spawn(make(operator.clone(), change));
                while let Some(done) = calls.try_join_next() {
                    made.push(done??);
                }
            }
            while let Some(done) = calls.join_next().await {
                made.push(done??);
            }
            Ok(made)
        })
    }

    fn lags(&self, made: &[Made], from: u32) -> Lags {
        let mut lags = Lags::default();
        for Made { concerned, revision, called, answered } in made {
            let concerned = match concerned {
                Concerned::Some(nodes) => Concerned::Some(nodes.iter().copied().filter(|node| *node >= from).collect()),
                Concerned::All => Concerned::Some((from..self.agents()).collect()),
            };
            let is_for_all = concerned.count(self.agents()) == self.agents() - from;
            let waits = self.fleet.waits(&concerned, *revision, *called);
            lags.lost += waits.iter().filter(|wait| wait.is_none()).count();
            lags.last.extend(waits.iter().flatten().max());
            let (of_call, of_answer) =
                if is_for_all { (&mut lags.all, &mut lags.accepted_all) } else { (&mut lags.few, &mut lags.accepted_few) };
            for wait in waits.into_iter().flatten() {
                of_call.push(wait);
                // A node may have it before the answer is there.
                of_answer.push(wait.saturating_sub(*answered));
            }
        }
        lags
    }

    /// Waits for the acks of all changes, as long as they go on coming.
    fn until_acked(&self, made: &[Made], whose: std::ops::Range<u32>) {
        let mut left = usize::MAX;
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_secs(20) {
            let waiting = self.lags(made, whose.start).lost;
            if waiting == 0 {
                return;
            }
            if waiting < left {
                (left, since) = (waiting, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until the controller says that every node has what it is to have.
    fn settle(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let wanted = format!("realized {0}/{0} nodes", self.agents());
        let request = v1::GetRequest { object: Some(Company::any_policy()) };
        loop {
            let answer = self.calls.block_on(self.operator.clone().get(request.clone()));
            let told = match answer {
                Ok(answer) => {
                    answer.into_inner().conditions.into_iter().find(|it| it.r#type == "Realized").map(|it| it.message).unwrap_or_default()
                }
                Err(status) => status.to_string(),
            };
            if told.replace(',', "").starts_with(&wanted) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("not in sync after {PATIENCE:?}: {told:?}");
            }
            std::thread::sleep(4 * LOOK);
        }
    }

    fn until_in_sync(&self) -> anyhow::Result<()> {
        self.until("all agents in sync", |fleet| fleet.in_sync() == fleet.size() as usize)?;
        self.settle()
    }

    fn until(&self, what: &str, holds: impl Fn(&Fleet) -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !holds(&self.fleet) {
            let problems = self.fleet.problems();
            ensure!(problems.len() < 10, "{what}: {}", problems.join("\n"));
            ensure!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}; {} agents are in sync", self.fleet.in_sync());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn connected(&mut self, before: &Meter) -> anyhow::Result<Connected> {
        let after = self.meter()?;
        Ok(Connected {
            took_ms: ms(after.at.duration_since(before.at)),
            controller_cpu_ms: ms(after.controller.saturating_sub(before.controller)),
            resident: self.resident()?,
            traffic: self.fleet.take_traffic(),
        })
    }

    fn process(&mut self) -> anyhow::Result<u32> {
        Ok(self.controller.process().context("the controller has ended")?.id())
    }

    fn resident(&mut self) -> anyhow::Result<u64> {
        memory::of_process(&self.process()?.to_string(), "VmRSS")
    }

    fn meter(&mut self) -> anyhow::Result<Meter> {
        Ok(Meter {
            at: Instant::now(),
            controller: processor_time(self.process()?)?,
            agents: processor_time(std::process::id())?,
            wire: self.lab.core.run(loopback_bytes)??,
        })
    }
}

#[derive(Default)]
struct Lags {
    few: Vec<Duration>,
    all: Vec<Duration>,
    last: Vec<Duration>,
    accepted_few: Vec<Duration>,
    accepted_all: Vec<Duration>,
    lost: usize,
}

async fn make(mut operator: Operator, change: Change) -> anyhow::Result<Made> {
    let Change { object, concerned } = change;
    let called = Instant::now();
    let request = v1::ApplyRequest { objects: vec![object], reason: "simulation".to_owned(), ..v1::ApplyRequest::default() };
    let answer = operator.apply(request).await.context("a change was not accepted")?.into_inner();
    Ok(Made { concerned, revision: answer.revision, called, answered: called.elapsed() })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A connection is an open file at both ends.
fn raise_open_files() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the number of open files")
}

/// What went over the loopback interface of the thread's namespace so far, with all headers.
fn loopback_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").context("cannot read /proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no loopback interface")?;
    Ok(line.split_whitespace().next().context("no counter")?.parse()?)
}
