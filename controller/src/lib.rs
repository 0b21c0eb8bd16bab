//! The Firebreak controller: policy goes in, per-node state goes out, denied flows come back.
#![forbid(unsafe_code)]

pub mod agents;
pub mod api;
pub mod app;
pub mod auth;
pub mod config;
pub mod flows;
pub mod http;
pub mod hub;
pub mod listen;
pub mod metrics;
pub mod store;
