//! The Firebreak node agent as a library, so that tests and benchmarks can drive its parts.

pub mod app;
pub mod audit;
mod barred;
pub mod config;
pub mod confine;
pub mod core;
pub mod cuts;
pub mod dataplane;
pub mod discovery;
pub mod enforce;
pub mod flows;
pub mod guards;
pub mod helper;
pub mod http;
pub mod identity;
pub mod local;
pub mod memory;
pub mod metrics;
pub mod observe;
pub mod ready;
pub mod relayed;
pub mod session;
pub mod shield;
pub mod state;
pub mod tamper;
