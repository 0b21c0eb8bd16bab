//! How much memory an idle agent takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use firebreak_tests::crowd::Crowd;

const WORKLOADS: u8 = 100;
/// What the agent may hold of its own in any build: of the 20 MB of a release build (`make bench` checks them) some 10 MB are the program.
const OWN_MAX: u64 = 10_000_000;
/// What is allowed of the build that `make test` makes, whose program is not optimised and three times as large.
const DEBUG_MAX: u64 = 48_000_000;

#[test]
fn an_idle_agent_with_a_hundred_workloads_takes_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut crowd = Crowd::start(&format!("fbw{}", std::process::id()), WORKLOADS, folder.path()).unwrap();
    let idle = crowd.idle().unwrap();
    println!("{idle:?}");
    assert!(idle.agent_anonymous <= OWN_MAX && idle.agent <= DEBUG_MAX, "{idle:?}");
}
