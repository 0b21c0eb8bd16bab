//! The dataplane against the real kernel: each test in fresh network namespaces of its own, as root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]

mod contents;
mod figures;
mod frames;
mod guards;
mod install;
mod lab;
mod literals;
mod live;
mod namespace;
mod ownership;
mod packets;
mod preflight;
mod shield;
mod shortcuts;
mod upgrade;
