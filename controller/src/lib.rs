//! The Firebreak controller: policy goes in, per-node state goes out, denied flows come back.
#![forbid(unsafe_code)]

pub mod api;
pub mod app;
pub mod auth;
pub mod config;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod store;
