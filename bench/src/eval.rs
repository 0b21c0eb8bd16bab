//! `firebreak eval`: probes per second of the real command.

use crate::report::{Figure, Report};
use crate::scratch;
use crate::stats::{median, timed};
use anyhow::{Context as _, ensure};
use firebreak_tests::system::binaries;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const PROBES: u32 = 100_000;
const PODS: u32 = 1_000;
const ROUNDS: usize = 5;

/// Adds the rate, whole and without what a run without probes takes.
///
/// # Errors
/// The command failed.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let folder = scratch::folder()?;
    let (manifests, probes) = (folder.path().join("cluster.yaml"), folder.path().join("probes.jsonl"));
    std::fs::write(&manifests, cluster(Addresses::Discovered)?)?;
    let mut lines = String::new();
    for number in 0..PROBES {
        let (from, to) = (number.wrapping_mul(7_919) % PODS, number.wrapping_mul(104_729).wrapping_add(1) % PODS);
        writeln!(lines, r#"{{"from":"team-{}/w{from}","to":"team-{}/w{to}","protocol":"TCP","port":8080}}"#, from % 20, to % 20)?;
    }
    std::fs::write(&probes, lines)?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        with.push(run(&manifests, Some(&probes))?);
        without.push(run(&manifests, None)?);
    }
    let (whole, empty) = (median(&with), median(&without));
    let size = format!("{PODS} workloads x 200 policies, {PROBES} probes, median of {ROUNDS}");
    let rate = |time: Duration| f64::from(PROBES) / time.as_secs_f64();
    report.add(Figure::new(format!("firebreak eval, whole process, {size}"), rate(whole), "probes/s"));
    report.add(Figure::new(format!("firebreak eval, less a run without probes, {size}"), rate(whole.saturating_sub(empty)), "probes/s"));
    report.add(Figure::ms("firebreak eval without probes: 1220 objects of YAML read and checked", empty));
    Ok(())
}

fn run(manifests: &Path, probes: Option<&Path>) -> anyhow::Result<Duration> {
    let mut command = Command::new(binaries()?.join("firebreak"));
    command.args(["eval", "-o", "json", "-f"]).arg(manifests).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(probes) = probes {
        command.arg("--probes").arg(probes);
    }
    let (output, took) = timed(|| command.output());
    let output = output.context("cannot run firebreak eval")?;
    ensure!(output.status.success(), "firebreak eval: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}

/// Where the addresses of the made-up workloads are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// Nowhere: a node would find them.
    Discovered,
    /// In the manifest.
    Listed,
}

/// The address of a workload of [`cluster`] that lists them.
pub(crate) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0100 + number)
}

/// The id that the node of a workload of [`cluster`] knows it by.
pub(crate) fn container(number: u32) -> String {
    format!("team-{}.w{number}", number % 20)
}

/// 20 namespaces of 10 apps, a NetworkPolicy for each app; 1,000 workloads, the nth of which is on node n modulo 10.
///
/// # Errors
/// None: writing to a string does not fail.
pub(crate) fn cluster(addresses: Addresses) -> anyhow::Result<String> {
    let mut text = String::new();
    for space in 0..20 {
        writeln!(text, "apiVersion: v1\nkind: Namespace\nmetadata: {{name: team-{space}}}\n---")?;
        for app in 0..10 {
            writeln!(
                text,
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: a{app}, namespace: team-{space}}}\nspec:\n  \
                 podSelector: {{matchLabels: {{app: a{app}}}}}\n  policyTypes: [Ingress]\n  ingress:\n  - from:\n    \
                 - podSelector: {{matchLabels: {{app: a{}}}}}\n    ports:\n    - {{protocol: TCP, port: 8080}}\n---",
                (app + 1) % 10
            )?;
        }
    }
    for number in 0..PODS {
        let (space, app) = (number % 20, number / 20 % 10);
        let listed = match addresses {
            Addresses::Discovered => String::new(),
            Addresses::Listed => format!(", addresses: [{}]", address(number)),
        };
        writeln!(
            text,
            "apiVersion: firebreak.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{number}, namespace: team-{space}, labels: {{app: a{app}}}}}\n\
             spec: {{node: node-{}, networkNamespace: w{number}{listed}}}\n---",
            number % 10
        )?;
    }
    Ok(text)
}
