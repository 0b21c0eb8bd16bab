//! How much memory a compile takes at its peak, in a process that does nothing else.

use crate::report::{Figure, Report};
use crate::{scratch, world};
use anyhow::{Context as _, ensure};
use firebreak_policy::compile;
use firebreak_tests::crowd::Crowd;
use std::process::{Command, ExitCode};

/// How many local workloads row 7 asks for.
const WORKLOADS: u8 = 100;

/// Memory of an idle agent with many local workloads.
///
/// # Errors
/// The lab did not come up.
pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let folder = scratch::folder()?;
    let mut crowd = Crowd::start(&scratch::prefix("w"), WORKLOADS, folder.path())?;
    let idle = crowd.idle()?;
    let workloads = crowd.len();
    let agent = format!("agent resident memory, idle, {workloads} local workloads (row 7)");
    report.add(Figure::new(agent, megabytes(idle.agent), "MB").at_most(20.0));
    report.add(Figure::new("its helper, beside it (some 4 MB of it are the same program's pages)", megabytes(idle.helper), "MB"));
    Ok(())
}

/// Runs [`child`] and gives the bytes that it printed.
///
/// # Errors
/// It failed.
pub(crate) fn of_compile(workloads: usize, policies: usize) -> anyhow::Result<u64> {
    let child = Command::new(std::env::current_exe()?)
        .args(["compile-memory", &workloads.to_string(), &policies.to_string()])
        .output()
        .context("cannot run compile-memory")?;
    ensure!(child.status.success(), "compile-memory: {}", String::from_utf8_lossy(&child.stderr));
    let text = String::from_utf8(child.stdout)?;
    text.trim().parse().with_context(|| format!("compile-memory printed {text:?}"))
}

/// Prints the peak resident memory after a compile less what was resident before it, in bytes.
pub(crate) fn child(workloads: usize, policies: usize) -> ExitCode {
    let measure = || -> anyhow::Result<u64> {
        let (policies, inventory) = world::cluster(workloads, policies);
        let before = of_process("self", "VmRSS")?;
        let compiled = std::hint::black_box(compile(&policies, &inventory));
        let peak = of_process("self", "VmHWM")?;
        ensure!(!compiled.nodes().is_empty(), "nothing was compiled");
        Ok(peak.saturating_sub(before))
    };
    match measure() {
        Ok(bytes) => {
            println!("{bytes}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A field of `/proc/<process>/status` that is in kB, in bytes.
///
/// # Errors
/// The process or the field is not there.
pub(crate) fn of_process(process: &str, field: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let words = line.with_context(|| format!("{path} has no {field}"))?;
    let kilobytes: u64 = words.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// Bytes as MB (10^6), for the report.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    // Exact: far below 2^53 bytes.
    u32::try_from(bytes / 1000).map_or(f64::INFINITY, f64::from) / 1e3
}
