//! How much memory an idle agent takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::crowd::Crowd;

const WORKLOADS: u8 = 100;
/// What is allowed of the build that `make test` makes: the figure of 20 MB is the release build's, which `make bench` checks.
const DEBUG_MAX: u64 = 32_000_000;

#[test]
fn an_idle_agent_with_a_hundred_workloads_takes_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut crowd = Crowd::start(&format!("fbw{}", std::process::id()), WORKLOADS, folder.path()).unwrap();
    let idle = crowd.idle().unwrap();
    assert!(idle.agent <= DEBUG_MAX, "{idle:?}");
}
