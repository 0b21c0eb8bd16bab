//! What runs on this node: veths as the kernel tells of them, joined with those who know what is behind them.
//!
//! [`run`] hears that something changed ([`rtnl::Monitor`], declared workloads, the Docker engine), reads again what the change
//! can have touched, and publishes the whole truth if it differs ([`assemble`]).

pub mod assemble;
pub mod docker;
pub mod identity;
pub(crate) mod probe;
pub mod rtnl;
mod run;

pub use run::{DiscoveryConfig, run};
