//! The Firebreak controller: policy goes in, per-node state goes out, denied flows come back.
#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod metrics;
pub mod store;
