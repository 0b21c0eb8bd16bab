//! One member more or less in the agent's own path (held state, core, dataplane's thread), and what a remote member takes of memory.

use crate::memory::of_process;
use crate::report::{Figure, Report};
use crate::stats::{median, percentile};
use crate::{dataplane, peer, scratch};
use anyhow::{Context as _, ensure};
use firebreak_agent::enforce::{self, EnforceLinks, EnforceStats, KernelThread};
use firebreak_agent::local::{LocalInterface, LocalWorkload, LocalWorkloads};
use firebreak_agent::session::{Applied, Committed, Held, NodeStatus};
use firebreak_policy::model::{
    Family, HostAccess, Labels, NamespaceName, NetworkAddress, NetworkName, NodeName, PolicyKey, PolicyKind, PortRange, Protocol,
    WorkloadId, WorkloadSource,
};
use firebreak_policy::node_state::{
    CompiledPeers, CompiledRule, CompiledService, CompiledServices, Group, GroupId, Isolation, LocalEndpoint, Member, NodeState, RuleRef,
    Rulebook, Segment, SegmentId,
};
use firebreak_policy::{Limits, Members};
use firebreak_proto::hash::{self, ContentHash, MemberSum, ObjectKey, ObjectKind, ObjectSum};
use firebreak_proto::state::{self, GroupChange};
use firebreak_proto::v1;
use firebreak_tests::namespace::Namespace;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Local workloads and groups spread over segments, all groups of one size, each let in by one segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) locals: u32,
    pub(crate) segments: u32,
    pub(crate) groups: u32,
    pub(crate) members: u32,
}

/// How many members come and go in the timed part.
const CHANGES: u32 = 1_000;

/// How many times `nft` is run beside it.
const BESIDE: u32 = 40;

/// Adds the figures.
///
/// # Errors
/// The kernel refused, or a child failed.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let size = |locals, segments, groups, members| Size { locals, segments, groups, members };
    changes(report, "a group of 200000 shared by 50 workloads", size(50, 1, 1, 200_000))?;
    changes(report, "50 groups of 4000, each let in by one workload", size(50, 50, 50, 4_000))?;
    changes(report, "2000 groups of 100, each let in by four workloads, 40 for each segment", size(200, 50, 2_000, 100))?;
    beside(report)?;
    for (name, size) in [
        ("one group of 100000, shared by 100 workloads", size(100, 1, 1, 100_000)),
        ("one group of 100000, let in by one workload", size(1, 1, 1, 100_000)),
        ("100 groups of 1000, each let in by one workload", size(100, 100, 100, 1_000)),
        ("25 groups of 4000, each let in by four workloads", size(100, 25, 25, 4_000)),
        ("100 groups of 1000, each let in by four workloads", size(400, 100, 100, 1_000)),
        ("195 groups of 512, each let in by one workload", size(195, 195, 195, 512)),
        ("1000 groups of 100, each let in by four workloads, ten for each segment", size(400, 100, 1_000, 100)),
        ("3125 groups of 32, each let in by four workloads, 31 for each segment", size(400, 100, 3_125, 32)),
        ("10000 groups of 10, each let in by four workloads, 100 for each segment", size(400, 100, 10_000, 10)),
    ] {
        let (agent, kernel) = memory_of(size)?;
        let per = |bytes: i64| f64::from(i32::try_from(bytes / 1_000).unwrap_or(i32::MAX)) / 100.0;
        let text = format!("memory per remote member, 100000 of them, {name}: agent {:.0} B, kernel {:.0} B", per(agent), per(kernel));
        report.add(Figure::new(text, per(agent + kernel), "B").at_most(512.0));
    }
    Ok(())
}

fn name() -> NodeName {
    NodeName::from("node-0")
}

fn local_address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a09_0000 + number).into()
}

fn member(group: u32, number: u32) -> Member {
    // Of a group of 200,000 there is one, of many groups each is small; the addresses between are free for newcomers.
    Member::Address(Ipv4Addr::from_bits(0x1000_0000 + group * 0x0000_4000 + number * 2).into())
}

fn state_of(size: Size) -> NodeState {
    let mut state = NodeState::default();
    let policy = PolicyKey { kind: PolicyKind::SegmentPolicy, namespace: NamespaceName::from("shop"), name: "db".to_owned() };
    let mut rules: BTreeMap<u32, Vec<CompiledRule>> = BTreeMap::new();
    for number in 0..size.groups {
        let group = GroupId(format!("group-{number:05}").into());
        let members: Members = (0..size.members).map(|of| member(number, of)).collect();
        state.groups.insert_shared(
            group.clone(),
            Arc::new(Group { id: group.clone(), title: format!("app=api-{number} in namespace shop"), members }),
        );
        let service = CompiledService::Ports(Protocol::TCP, PortRange::single(5432));
        let of_segment = rules.entry(number % size.segments).or_default();
        of_segment.push(CompiledRule {
            origin: RuleRef { policy: policy.clone(), index: u32::try_from(of_segment.len()).unwrap_or(u32::MAX), name: None },
            peers: CompiledPeers::Groups(vec![group]),
            services: CompiledServices::Only(vec![service]),
        });
    }
    for (number, rules) in rules {
        let ingress = Isolation { policies: vec![policy.clone()], host_access: HostAccess::Allow, rules };
        let id = SegmentId(format!("segment-{number:04}").into());
        let segment = Segment {
            id: id.clone(),
            title: format!("shop/db-{number}"),
            rules: Rulebook { ingress: Some(ingress), ..Rulebook::default() }.into(),
            audit: None,
        };
        state.segments.insert_shared(id, Arc::new(segment));
    }
    for number in 0..size.locals {
        let id = WorkloadId::new(name(), &*format!("w{number}"));
        let endpoint = LocalEndpoint {
            id: id.clone(),
            name: format!("db-{number}"),
            namespace: NamespaceName::from("shop"),
            segment: SegmentId(format!("segment-{:04}", number % size.segments).into()),
            addresses: [local_address(number)].into(),
            published_ports: Vec::new(),
        };
        state.endpoints.insert_shared(id, Arc::new(endpoint));
    }
    state
}

fn locals(state: &NodeState) -> LocalWorkloads {
    let workload = |(index, endpoint): (u32, &LocalEndpoint)| {
        let addresses =
            endpoint.addresses.iter().map(|it| NetworkAddress { network: NetworkName::default_network(), address: *it }).collect();
        let workload = LocalWorkload {
            id: endpoint.id.clone(),
            name: endpoint.name.clone(),
            namespace: endpoint.namespace.clone(),
            labels: Labels::default(),
            image_labels: BTreeMap::new(),
            image: String::new(),
            named_ports: Vec::new(),
            published_ports: Vec::new(),
            interfaces: [(
                index,
                LocalInterface {
                    name: format!("veth{index}").into(),
                    addresses,
                    mac: None,
                    vouched: None,
                    not_routed: BTreeSet::new(),
                    link: index,
                },
            )]
            .into(),
            host_network: false,
            source: WorkloadSource::Manifest,
            declared_place: String::new(),
            problem: None,
        };
        (endpoint.id.container.clone(), Arc::new(workload))
    };
    LocalWorkloads { in_sync: true, workloads: (10..).zip(state.endpoints.values()).map(workload).collect(), ..LocalWorkloads::default() }
}

/// How long one change took, from the update in the agent's hands.
struct Took {
    /// Until the kernel had it, by the clock of the thread that asked the kernel.
    to_commit: Duration,
    /// Until whoever acks it heard so.
    to_answer: Duration,
    /// Of it in the dataplane's thread.
    inside: Duration,
}

/// The controller's side of a stream, and the agent behind it.
struct Agent {
    held: Held,
    hashes: BTreeMap<ObjectKey, ContentHash>,
    sum: ObjectSum,
    sums: BTreeMap<GroupId, MemberSum>,
    generation: u64,
    committed: watch::Sender<Option<Arc<Committed>>>,
    applied: watch::Receiver<Option<Arc<Applied>>>,
    _local: watch::Sender<Arc<LocalWorkloads>>,
    _status: watch::Receiver<NodeStatus>,
    stop: CancellationToken,
}

impl Agent {
    fn start(inside: &Namespace, local: LocalWorkloads) -> anyhow::Result<Self> {
        let dataplane = dataplane::open(inside)?;
        let kernel = inside.run(move || KernelThread::start(dataplane, None, None, Limits::DEFAULT))??;
        let (committed, of_task) = watch::channel(None);
        let (local, local_of_task) = watch::channel(Arc::new(local));
        let (applied_of_task, applied) = watch::channel(None);
        let (status_of_task, status) = watch::channel(NodeStatus { tables_whole: true, able: true, ..NodeStatus::default() });
        let stats = Arc::new(EnforceStats::default());
        let links = EnforceLinks { committed: of_task, local: local_of_task, applied: applied_of_task, status: status_of_task, stats };
        let stop = CancellationToken::new();
        tokio::spawn(enforce::run(kernel, links, stop.clone()));
        let held = Held::nothing(name());
        let (hashes, sum, sums) = (BTreeMap::new(), ObjectSum::default(), BTreeMap::new());
        Ok(Self { held, hashes, sum, sums, generation: 0, committed, applied, _local: local, _status: status, stop })
    }

    /// Takes the whole state in, as it comes over the wire.
    async fn load(&mut self, state: &NodeState) -> anyhow::Result<()> {
        self.hashes = hash::objects_of(&name(), state).into_iter().collect();
        self.sum = ObjectSum::of(self.hashes.iter().map(|(key, hash)| (key, *hash)));
        for group in state.groups.values() {
            self.sums.insert(group.id.clone(), MemberSum::of(&group.members));
            let whole = GroupChange {
                id: group.id.clone(),
                title: group.title.clone(),
                reset: true,
                add: group.members.iter().copied().collect(),
                remove: Vec::new(),
                hash: Some(hash::whole_group_hash(group)),
            };
            self.held.update(state::group_update(&whole))?;
        }
        for update in state.segments.values().map(state::segment_update).chain(state.endpoints.values().map(state::endpoint_update)) {
            self.held.update(update)?;
        }
        self.held.update(state::node_update(&name(), &BTreeSet::new()))?;
        let commit = self.next_commit();
        self.enforced(commit).await
    }

    fn next_commit(&mut self) -> v1::Commit {
        self.generation += 1;
        let hash = self.sum.commit_hash().to_wire();
        v1::Commit { epoch: "e".to_owned(), generation: self.generation, revision: self.generation, hash }
    }

    async fn enforced(&mut self, commit: v1::Commit) -> anyhow::Result<()> {
        let committed = self.held.commit(commit)?;
        self.committed.send_replace(Some(committed));
        self.applied.changed().await?;
        let applied = self.applied.borrow_and_update().clone().context("nothing was applied")?;
        ensure!(applied.failure.is_none() && applied.generation.0 == self.generation, "{applied:?}");
        Ok(())
    }

    /// One member comes or goes.
    async fn change(&mut self, group: &Group, member: Member, comes: bool) -> anyhow::Result<Took> {
        let sum = self.sums.entry(group.id.clone()).or_default();
        if comes {
            sum.add(&member)
        } else {
            sum.remove(&member)
        };
        let hash = hash::group_hash(&group.id, &group.title, sum);
        let key = ObjectKey::new(ObjectKind::Group, group.id.0.clone());
        if let Some(before) = self.hashes.insert(key.clone(), hash) {
            self.sum.remove(&key, before);
        }
        self.sum.add(&key, hash);
        let (add, remove) = if comes { (vec![member], vec![]) } else { (vec![], vec![member]) };
        let change = GroupChange { id: group.id.clone(), title: group.title.clone(), reset: false, add, remove, hash: Some(hash) };
        let (update, commit) = (state::group_update(&change), self.next_commit());
        let (begun, began) = (Instant::now(), SystemTime::now());
        self.held.update(update)?;
        self.enforced(commit).await?;
        let to_answer = begun.elapsed();
        let applied = self.applied.borrow().clone().context("nothing was applied")?;
        Ok(Took { to_commit: applied.at.duration_since(began)?, to_answer, inside: applied.kernel_time })
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

fn changes(report: &mut Report, what: &str, size: Size) -> anyhow::Result<()> {
    let inside = Namespace::new(&scratch::prefix("one"))?;
    let state = state_of(size);
    let runtime = runtime()?;
    let mut agent = runtime.block_on(async {
        let mut agent = Agent::start(&inside, locals(&state))?;
        agent.load(&state).await?;
        anyhow::Ok(agent)
    })?;
    // A task beside the one that enforces, as the agent's session is.
    let changing = runtime.spawn(async move {
        let mut times = Vec::new();
        for number in 0..CHANGES {
            let group = number / 2 % size.groups;
            let (_, object) = state.groups.iter().nth(usize::try_from(group)?).context("no group")?;
            let Member::Address(address) = member(group, (number / 2 * 7_919) % size.members) else { continue };
            let IpAddr::V4(address) = address else { continue };
            let newcomer = Member::Address(Ipv4Addr::from_bits(address.to_bits() + 1).into());
            times.push(agent.change(object, newcomer, number % 2 == 0).await?);
        }
        agent.stop.cancel();
        anyhow::Ok(times)
    });
    let all = runtime.block_on(changing)??;
    let of = |part: fn(&Took) -> Duration| all.iter().map(part).collect::<Vec<_>>();
    let (times, answers, insides) = (of(|it| it.to_commit), of(|it| it.to_answer), of(|it| it.inside));
    let name = format!("one member's change through the agent (update, hash check, core, thread, kernel), to the kernel's commit, {what}");
    report.add(Figure::us(format!("{name}, p50 of {CHANGES} (row 1)"), median(&times)).at_most(100.0));
    report.add(Figure::us(format!("{name}, p99 (row 1)"), percentile(&times, 99)).at_most(1_000.0));
    report.add(Figure::us(format!("to the answer that the ack waits for, {what}, p50"), median(&answers)));
    report.add(Figure::us(format!("to the answer that the ack waits for, {what}, p99"), percentile(&answers, 99)));
    report.add(Figure::us(format!("of it in the dataplane's thread, {what}, p50"), median(&insides)));
    report.add(Figure::us(format!("of it in the dataplane's thread, {what}, p99"), percentile(&insides, 99)));
    Ok(())
}

/// The same one member with `nft`: a set of 200,000 addresses is there, and one process adds one more or takes it away.
fn beside(report: &mut Report) -> anyhow::Result<()> {
    let theirs = Namespace::new(&scratch::prefix("nft"))?;
    let folder = scratch::folder()?;
    let Some(all) = (0..200_000).map(|of| member(0, of)).map(address_of).collect::<Option<Vec<IpAddr>>>() else { return Ok(()) };
    let file = folder.path().join("members.nft");
    std::fs::write(&file, peer::addresses(&all))?;
    peer::load(&theirs, &file, false)?;
    for (how, json) in [("nft -f", false), ("nft -j -f", true)] {
        let mut times = Vec::new();
        for round in 0..BESIDE {
            let newcomer = Ipv4Addr::from_bits(0x0b00_0001 + round / 2).into();
            std::fs::write(&file, peer::one_address(newcomer, round % 2 == 0, json))?;
            times.push(peer::load(&theirs, &file, json)?);
        }
        let name = format!("one member's change with {how}, one process for each, 200000 addresses loaded");
        report.add(Figure::us(format!("{name}, p50 of {BESIDE} (row 1)"), median(&times)));
        report.add(Figure::us(format!("{name}, the slowest"), percentile(&times, 99)));
    }
    Ok(())
}

fn address_of(member: Member) -> Option<IpAddr> {
    match member {
        Member::Address(address) => Some(address),
        Member::Block(_) | Member::Service(..) => None,
    }
}

fn memory_of(size: Size) -> anyhow::Result<(i64, i64)> {
    let numbers = [size.locals, size.segments, size.groups, size.members].map(|it| it.to_string());
    let child = Command::new(std::env::current_exe()?).arg("member-memory").args(numbers).output().context("cannot run member-memory")?;
    ensure!(child.status.success(), "member-memory: {}", String::from_utf8_lossy(&child.stderr));
    let text = String::from_utf8(child.stdout)?;
    let mut words = text.split_whitespace().map(str::parse);
    let mut next = || words.next().with_context(|| format!("member-memory printed {text:?}"));
    Ok((next()??, next()??))
}

/// Loads a state into an agent in a process that does nothing else, and prints by how many bytes the process and the kernel's own memory grew.
pub(crate) fn child(size: Size) -> ExitCode {
    match grown(size) {
        Ok((agent, kernel)) => {
            println!("{agent} {kernel}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn grown(size: Size) -> anyhow::Result<(i64, i64)> {
    let inside = Namespace::new(&scratch::prefix("mem"))?;
    runtime()?.block_on(async {
        // What the controller's side takes is made and hashed before the first look, and is not the agent's.
        let state = state_of(size);
        let mut agent = Agent::start(&inside, self::locals(&state))?;
        let resident = i64::try_from(of_process("self", "VmRSS")?)?;
        let kernel = kernel_bytes()?;
        agent.load(&state).await?;
        let grown = (i64::try_from(of_process("self", "VmRSS")?)? - resident, kernel_bytes()? - kernel);
        agent.stop.cancel();
        ensure!(Family::of(local_address(0)) == Family::V4, "the sizes are of IPv4");
        Ok(grown)
    })
}

/// What the kernel cannot give back: slabs, and what is mapped for large tables.
pub(crate) fn kernel_bytes() -> anyhow::Result<i64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| -> anyhow::Result<i64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).with_context(|| format!("no {name}"))?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<i64>()? * 1024)
    };
    Ok(field("SUnreclaim")? + field("VmallocUsed")?)
}
